"""What fails in one manager, as Markdown, for where a repository is read without its HTML pages.

Of each clause it has the first failure; the page `index.html` beside it has all of them. Then come the clauses that
neither passed nor failed, with the reason.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from forge_conformance.judging.text import counted, shortened
from forge_conformance.report.manager import STATES, Around, how_often, how_to_repeat, reproduce, stories_of_deaths
from forge_conformance.report.markup import visible
from forge_conformance.report.page import anchor
from forge_conformance.report.stored import FAILED, Line, Mark, State, Stored

_NEITHER = (Mark.ERROR, Mark.OUT_OF_DATE, Mark.UNREACHED, Mark.BOTH_ALLOWED)
TOLD = (*FAILED, *_NEITHER)
"""The marks of clauses that have a place on the page."""
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|&~])")


def plain(text: str) -> str:
    r"""Text on one line, without a meaning in Markdown or HTML.

    >>> plain("a\nb")
    'a b'
    >>> print(plain("a *b* <c>"))
    a \*b\* \<c\>
    """
    return _escaped(" ".join(text.split()))


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", visible(text))


def with_code(text: str) -> str:
    r"""Text on one line, in which only the backticks have a meaning: code stands between them.

    >>> print(with_code("run `a_b` in *c*"))
    run `a_b` in \*c\*
    """
    parts = " ".join(text.split()).split("`")
    return "".join(f"`{visible(part)}`" if at % 2 else _escaped(part) for at, part in enumerate(parts))


def markdown(stored: Stored, around: Around) -> str:
    """Return the page."""
    return "\n".join([*_head(stored, around), *_clauses(stored), *_neither(stored), *_deaths(stored)]) + "\n"


def _head(stored: Stored, around: Around) -> Iterator[str]:
    state, reason = stored.state
    yield f"# {plain(f'{stored.name}: {stored.release}' if stored.release else stored.name)}"
    yield f"\n{plain(f'{state}: {reason}')}\n" if state is not State.COMPLETE else ""
    whole = " [The whole report](index.html), as a page for a browser." if stored.report or stored.crash else ""
    yield f"[All managers](../README.md).{whole}"
    if stored.report:
        counts = ", ".join(f"{number} {mark}" for mark, number in sorted(stored.counts().items()))
        short_of = f" ({stored.short_of})" if stored.short_of else ""
        yield f"\nLevel reached: {stored.reached}{short_of}. Clauses: {counts}."
    yield from (f"\nFinding: [{plain(one.title)}]({one.link})" for one in around.findings)
    if again := how_to_repeat(stored):
        yield f"\n{with_code(again)}"


def _clauses(stored: Stored) -> Iterator[str]:
    for line in stored.lines:
        if line.mark in FAILED and line.failures:
            yield from ("", f'### <a id="{anchor(line.slug)}"></a>{line.slug}', *_failure(line, stored))


def _failure(line: Line, stored: Stored) -> Iterator[str]:
    first, *others = line.failures
    if line.clause:
        yield f"\nA checkpoint manager {line.clause.sentence}. (level {line.clause.level})"
    if line.reason:
        yield f"\n*{line.mark}*: {plain(shortened(line.reason, 2000))}"
    yield from ("", *_fenced(_told(first)), "", *_fenced(reproduce(first["test"], stored)))
    if others:
        yield f"\nAlso in {counted(len(others), 'other test')}."


def _told(failure: Mapping[str, Any]) -> str:
    story = [f"{number}. {sentence}" for number, sentence in enumerate(failure["story"], 1)]
    return "\n".join([failure["test"], *story, f"expected: {failure['expected']}", f"seen: {failure['seen']}"])


def _fenced(text: str) -> list[str]:
    """A block whose fence is longer than any that is in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [f"{fence}text", visible(text), fence]


def _neither(stored: Stored) -> Iterator[str]:
    lines = [line for line in stored.lines if stored.mark(line.slug) in _NEITHER]
    yield from ("\n## Neither passed nor failed", "") if lines else ()
    for line in lines:
        reason = plain(shortened(line.reason, 500))
        yield f'- <a id="{anchor(line.slug)}"></a>{line.slug}, *{line.mark}*: {reason}'


def _deaths(stored: Stored) -> Iterator[str]:
    told = list(stories_of_deaths(stored))
    if told:
        yield f"\n## What deaths leave\n\n{STATES}"
    for cause, story in told:
        yield f"\n### {cause['clause']}: {plain(cause['verdict'])}"
        beyond = "" if cause["counts"] else f" It does not count at level {stored.crash['level']}."
        yield f"\n{how_often(cause, stored.crash).capitalize()}; {plain(shortened(cause['why'], 500))}.{beyond}"
        yield from ("", *_fenced(f"{story}\n\n  reproduce: {cause['replay']}".strip()))
