"""Recognises the lines in which a script says how far it is, and what in them is comparable.

A progress line recurs with the same words and other numbers.  One of its numbers, or a pair such as epoch and step,
grows from line to line: that names the step.  All other numbers are compared with those of the undisturbed run,
unless two undisturbed runs differ in them: a duration, a date, a speed.
"""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from forge_conformance.scripts.judge import Form, Line

_NUMBER = r"(?:[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?|\bnan\b|\binf\b)"
_NAMES_A_STEP = re.compile(r"(step|iter|iteration|batch|epoch|update|it)\W*$", re.I)
_MOST_NUMBERS = 12


def guess(output: Sequence[str]) -> Form | None:
    """The form of the progress lines; None if no kind of line looks like one."""
    kinds: dict[str, list[list[str]]] = defaultdict(list)
    for text in output:
        numbers = re.findall(_NUMBER, text)
        if numbers and len(numbers) <= _MOST_NUMBERS:
            kinds[re.sub(_NUMBER, "\0", text.strip())].append(numbers)
    found = [(kind, rows, key) for kind, rows in kinds.items() if (key := _key(kind, rows))]
    if not found:
        return None
    kind, rows, key = max(found, key=lambda one: (len(one[1]), len(one[1][0])))
    groups = [f"n{number}" for number in range(len(rows[0]))]
    values = tuple(group for at, group in enumerate(groups) if at not in key)
    return Form(_pattern(kind, groups), tuple(groups[at] for at in key), values)


def _pattern(kind: str, groups: Sequence[str]) -> str:
    parts = [re.escape(part) for part in kind.split("\0")]
    slots = [f"(?P<{group}>{_NUMBER})" for group in groups] + [""]
    return rf"^\s*{''.join(part + slot for part, slot in zip(parts, slots, strict=True))}\s*$"


def _key(kind: str, rows: Sequence[Sequence[str]]) -> tuple[int, ...]:
    """Which numbers of a kind of line name its step; () if none do."""
    if len(rows) < 2:
        return ()
    words = kind.split("\0")
    places = range(len(rows[0]))
    named = [at for at in places if _NAMES_A_STEP.search(words[at])]
    counts = [at for at in places if at not in named and all(re.fullmatch(r"\d+", row[at]) for row in rows)]
    able = [*named, *counts]
    candidates = [*((at,) for at in able), *itertools.permutations(able, 2)]
    return next((key for key in candidates if _grows([tuple(float(row[at]) for at in key) for row in rows])), ())


def _grows(numbers: Sequence[tuple[float, ...]]) -> bool:
    return all(before < after for before, after in itertools.pairwise(numbers))


def from_pattern(pattern: str, tolerance: float = 0.0) -> Form:
    """The form that a user names: the group `step`, and `value` if there is one; `re.error` if it is no pattern."""
    groups = re.compile(pattern).groupindex
    if "step" not in groups:
        raise re.error("it has no group called step: write (?P<step>[0-9]+)")
    return Form(pattern, ("step",), ("value",) if "value" in groups else ("",), tolerance)


def read(form: Form, output: Iterable[str]) -> tuple[Line, ...]:
    """The progress lines of a run; a line that is printed again, for example by another rank, counts once."""
    return tuple(_once(line for text in output if (line := form.read(text)) is not None))


def _once(lines: Iterable[Line]) -> Iterator[Line]:
    known: set[tuple[str, ...]] = set()
    for line in lines:
        if line.key not in known:
            known.add(line.key)
            yield line


def without(form: Form, one: Sequence[Line], other: Sequence[Line]) -> tuple[Form, tuple[str, ...]]:
    """The form without the values in which two runs differ, and these values' names."""
    differing = tuple(
        name
        for at, name in enumerate(form.values)
        if not all(
            replace(form, values=(name,)).is_equal(_only(a, at), _only(b, at)) for a, b in zip(one, other, strict=False)
        )
    )
    return replace(form, values=tuple(name for name in form.values if name not in differing)), differing


def _only(line: Line, at: int) -> Line:
    return replace(line, values=line.values[at : at + 1])
