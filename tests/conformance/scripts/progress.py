"""Recognises the lines in which a script says how far it is, and what in them is comparable.

A progress line recurs with the same words and other numbers.  One of its numbers, or a pair such as epoch and step,
grows from line to line: that names the step.  All other numbers are compared with those of the undisturbed run,
unless two undisturbed runs differ in them.

Dates, times, durations, speeds and sizes of memory are never compared, because a verdict must not depend on the clock:
two undisturbed runs of one minute print the same minute, and a restart may print the next one.
"""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from forge_conformance.scripts.judge import Form, Line, drawn

_NUMBER = r"(?:[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?|\bnan\b|\binf\b)"
_NAMES_A_STEP = re.compile(r"(step|iter|iteration|batch|epoch|update|it)\W*$", re.I)
_MOST_NUMBERS = 12
_DATE = r"(?:\d{4}[-/]\d\d?[-/]\d\d?|\d\d?[-/]\d\d?[-/]\d{4})"
_TIME = r"(?<![\d:.])\d{1,3}:\d\d(?::\d\d)?(?:[.,]\d+)?(?![\d:])"
_CLOCK = rf"(?:{_DATE}(?:[ T]+{_TIME})?|{_TIME})"
_BEFORE_A_TIME = re.compile(
    r"(?<![a-z])((run)?time|elapsed|eta|remaining|took|duration|dt|speed|throughput|fps|mfu|mem|memory|rss)\W*$", re.I
)
_AFTER_A_TIME = re.compile(
    r"\s*(([mun\u00b5]?s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|[kmgt]i?b)(?![a-z])"
    r"|[a-z]*/(s|sec|second)(?![a-z])|s/[a-z]+)",
    re.I,
)


@dataclass(frozen=True)
class _Kind:
    """Lines with the same words; \\1 stands for a date or a time in them, and \\0 for another number."""

    words: str
    rows: list[list[str]]
    """The numbers of each line."""

    @property
    def timed(self) -> frozenset[int]:
        """Which numbers a clock has made."""
        parts = self.words.split("\0")
        pairs = enumerate(itertools.pairwise(parts))
        return frozenset(at for at, (before, after) in pairs if _is_timed(before, after))

    @property
    def key(self) -> tuple[int, ...]:
        """Which numbers name the step; () if none do."""
        if len(self.rows) < 2:
            return ()
        words, timed = self.words.split("\0"), self.timed
        places = [at for at in range(len(self.rows[0])) if at not in timed]
        named = [at for at in places if _NAMES_A_STEP.search(words[at])]
        counts = [at for at in places if at not in named and all(re.fullmatch(r"\d+", row[at]) for row in self.rows)]
        able = [*named, *counts]
        candidates = [*((at,) for at in able), *itertools.permutations(able, 2)]
        return next((key for key in candidates if _grows(self._numbers(key))), ())

    def _numbers(self, key: Sequence[int]) -> list[tuple[float, ...]]:
        return [tuple(float(row[at]) for at in key) for row in self.rows]

    def as_bar(self) -> "_Kind":
        """Each step once, as it is drawn last."""
        last = [row for row, following in itertools.pairwise(self.rows) if row[0] != following[0]]
        return _Kind(self.words, [*last, *self.rows[-1:]])

    @property
    def is_whole(self) -> bool:
        """Whether a bar was drawn at each step: all steps are equally long, but for a last one."""
        pairs = itertools.pairwise(int(row[0]) for row in self.rows)
        lengths = [(after - before, after) for before, after in pairs if after > before]
        usual = lengths[0][0] if lengths else 0
        return bool(lengths) and all(length == usual or (length < usual and not after) for length, after in lengths)

    def form(self, is_bar: bool) -> Form:
        """The form of these lines."""
        groups = [f"n{number}" for number in range(len(self.rows[0]))]
        spared = {*self.key, *self.timed}
        values = tuple(group for at, group in enumerate(groups) if at not in spared)
        return Form(_pattern(self.words, groups), tuple(groups[at] for at in self.key), values, is_bar=is_bar)


def guess(output: Sequence[str]) -> Form | None:
    """The form of the progress lines; None if no kind of line looks like one.

    Lines are better than a bar, which is taken if it says more than twice as often how far the script is.
    """
    bars = [said[0] for text in output if (said := drawn(text)) is not None]
    line = _most(kind for kind in _kinds([text for text in output if drawn(text) is None]) if kind.key)
    drawings = [kind.as_bar() for kind in _kinds(bars)]
    bar = _most(kind for kind in drawings if kind.key)
    if bar is not None and bar.is_whole and (line is None or len(bar.rows) > 2 * len(line.rows)):
        return bar.form(is_bar=True)
    return None if line is None else line.form(is_bar=False)


def _kinds(output: Sequence[str]) -> list[_Kind]:
    found: dict[str, list[list[str]]] = defaultdict(list)
    for text in output:
        dated = re.sub(_CLOCK, "\1", text.strip())
        numbers = re.findall(_NUMBER, dated)
        if numbers and len(numbers) <= _MOST_NUMBERS:
            found[re.sub(_NUMBER, "\0", dated)].append(numbers)
    return [_Kind(words, rows) for words, rows in found.items()]


def timeless(text: str) -> str:
    """A line without dates and times, with which those of logs begin."""
    return re.sub(_CLOCK, "", text).strip(" -|:")


def _most(kinds: Iterable[_Kind]) -> _Kind | None:
    return max(kinds, key=lambda kind: (len(kind.rows), len(kind.rows[0])), default=None)


def _is_timed(before: str, after: str) -> bool:
    return bool(_BEFORE_A_TIME.search(before) or _AFTER_A_TIME.match(after))


def _pattern(kind: str, groups: Sequence[str]) -> str:
    parts = [re.escape(part).replace("\1", _CLOCK) for part in kind.split("\0")]
    slots = [f"(?P<{group}>{_NUMBER})" for group in groups] + [""]
    return rf"^\s*{''.join(part + slot for part, slot in zip(parts, slots, strict=True))}\s*$"


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
    found: dict[tuple[str, ...], Line] = {}
    for text in output:
        line = form.read(text)
        if line is not None and (form.is_bar or line.key not in found):
            found[line.key] = line
    return tuple(found.values())


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
