"""A report as it lies in a folder, and what it says by the specification of today.

Invariants: a report that is missing, of another form, partial or with an error of the suite says of no clause that it
passes. Neither does a report of a clause that has changed since. What such a report says of failures is kept.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from forge_conformance import __version__
from forge_conformance.adapter import Traits
from forge_conformance.judging import files
from forge_conformance.judging.text import counted
from forge_conformance.judging.verdicts import CHAPTER_NAMES, Status, Verdict
from forge_conformance.report import compact, form
from forge_spec import BY_SLUG, CLAUSES, digests
from forge_spec.clauses import Clause, Level
from forge_spec.disk import STORAGES

SCHEMA_VERSION = 1
"""The form of `report.json`, which `schema.json` describes."""
SUITE = "forge-ref"
"""The package that the suite is installed from; among the versions of a manager it is no news."""


class Mark(StrEnum):
    """What is shown of a clause: a verdict, or why there is none."""

    PASS = "pass"
    FAIL = "fail"
    EXPECTED_FAIL = "expected-fail"
    ERROR = "error"
    OUT_OF_DATE = "out of date"
    NOT_JUDGED = "not judged"
    UNREACHED = "unreached"
    BOTH_ALLOWED = "both allowed"
    UNCLAIMED = "unclaimed"


MEANINGS: Mapping[Mark, str] = {
    Mark.PASS: "The clause held each time that its situation arose.",
    Mark.FAIL: "The clause did not hold.",
    Mark.EXPECTED_FAIL: "The clause did not hold; a list of known failures names it.",
    Mark.ERROR: "The suite itself failed; nothing is known about the clause.",
    Mark.OUT_OF_DATE: "The clause has changed since it was judged.",
    Mark.NOT_JUDGED: "The report says nothing about the clause.",
    Mark.UNREACHED: "The situation of the clause never arose.",
    Mark.BOTH_ALLOWED: "The manager works in another way than the tests need, and the specification allows both.",
    Mark.UNCLAIMED: "The manager does not claim what the clause is about. This is not held against it.",
}
FAILED = (Mark.FAIL, Mark.EXPECTED_FAIL)
_SETTLED = (Mark.PASS, Mark.BOTH_ALLOWED, Mark.UNCLAIMED)
"""Marks that keep no level from being reached."""
_IN_A_COUNT = {Mark.EXPECTED_FAIL: "known fail"}
"""Beside a release without a list of known failures, its own name would look like another quality."""


class State(StrEnum):
    """How far a report can be relied on."""

    COMPLETE = "complete"
    SOME = "some clauses"
    OUT_OF_DATE = "out of date"
    PARTIAL = "partial"
    ERROR = "error of the suite"
    UNREADABLE = "no report"


@dataclass(frozen=True)
class Line:
    """A clause, and what a report says of it."""

    slug: str
    mark: Mark
    clause: Clause | None
    """None for a clause that the specification of today does not have."""
    said: Mapping[str, Any]
    """Its part of the report; empty if the report does not have it."""

    @property
    def failures(self) -> list[Mapping[str, Any]]:
        """The failures that have a story."""
        return [failure for failure in self.said.get("failures", ()) if "expected" in failure]

    @property
    def troubles(self) -> list[Mapping[str, Any]]:
        """What kept the suite from judging it."""
        return [failure for failure in self.said.get("failures", ()) if "expected" not in failure]

    @property
    def reason(self) -> str:
        """Why there is no pass, where the report or this version says so."""
        return self.said.get("reason") or ("" if self.mark in (*FAILED, Mark.PASS) else MEANINGS[self.mark])


@dataclass(frozen=True)
class Deaths:
    """How many disks a kind of death left, or how many points were tried, and how many of them were bad."""

    tried: int = 0
    bad: int = 0
    is_cut_short: bool = False
    where: tuple[str, ...] = ()
    """The storages, or the kinds of faults."""

    def __str__(self) -> str:
        if not self.tried:
            return "not explored"
        cut = ", stopped by the time limit" if self.is_cut_short else ""
        return f"{self.tried - self.bad:,} of {self.tried:,}{cut}"


@dataclass(frozen=True)
class Stored:
    """What a folder of reports holds of one manager."""

    name: str
    """The name of the folder."""
    report: Mapping[str, Any]
    """Empty if there is none that can be read."""
    crash: Mapping[str, Any]
    """Empty if there is none that can be read."""
    trouble: str = ""
    """Why there is no report; a sentence without its end."""
    crash_trouble: str = ""

    # -- what was judged ------------------------------------------------------

    @property
    def adapter(self) -> str:
        """What `--impl` named."""
        return str(self.report["implementation"]["name"] if self.report else self.crash.get("implementation", ""))

    @property
    def environment(self) -> Mapping[str, Any]:
        """The Python that the manager lived in."""
        found: Mapping[str, Any] = (self.report.get("implementation") or self.crash).get("environment", {})
        return found

    @property
    def versions(self) -> dict[str, str]:
        """The packages that the manager consists of."""
        found = dict(self.environment.get("versions", {}))
        return {name: version for name, version in found.items() if name != SUITE} or found

    @property
    def release(self) -> str:
        """The manager's own package with its version; "" if it is not an installed package."""
        return next((f"{name} {version}" for name, version in self.versions.items()), "")

    @property
    def capabilities(self) -> frozenset[str]:
        """What the manager was held to."""
        return frozenset(self.report["implementation"]["capabilities"] if self.report else ())

    @property
    def level(self) -> Level | None:
        """The level that was judged."""
        return Level.named(self.report["level"]) if self.report else None

    # -- how far it can be relied on --------------------------------------------

    @cached_property
    def state(self) -> tuple[State, str]:
        """The state, and the reason in a sentence; "" for a complete report of today's specification."""
        report = self.report
        if not report:
            return State.UNREADABLE, f"{self.trouble}."
        errors = [str(error).partition("\n")[0].rstrip(".") for error in report["errors"]]
        if report["is_partial"] and (not report.get("asked") or report["exit_status"] == Status.OUR_ERROR):
            return State.PARTIAL, f"{errors[0] if errors else 'Only some tests were asked for'}. No pass is shown."
        if report["exit_status"] == Status.OUR_ERROR:
            errors += [line.reason for line in self.lines if line.mark is Mark.ERROR]
            return State.ERROR, f"{errors[0] if errors else 'The report does not say which'}."
        if report.get("specification") != digests.of_specification():
            return State.OUT_OF_DATE, f"{self._changes()}."
        if report["is_partial"]:
            return State.SOME, "The others were not asked for."
        return State.COMPLETE, ""

    @property
    def other_suite(self) -> str:
        """The version of the suite that judged, if it is not this one; else ""."""
        version = str(self.report.get("suite_version", "")) if self.report else ""
        return version if version != __version__ else ""

    @property
    def is_sound(self) -> bool:
        """Whether a pass in it is one."""
        return self.state[0] in (State.COMPLETE, State.SOME, State.OUT_OF_DATE)

    def _changes(self) -> str:
        if "specification" not in self.report:
            return "The report does not say by which specification it judged"
        marks = [line.mark for line in self.lines if line.clause and line.clause.level <= (self.level or Level.CORE)]
        gone = sum(line.clause is None for line in self.lines)
        numbers = ((marks.count(Mark.OUT_OF_DATE), "changed"), (marks.count(Mark.NOT_JUDGED), "new"), (gone, "gone"))
        said = ", ".join(f"{counted(number, 'clause')} {how}" for number, how in numbers if number)
        what = f": {said}" if said else ", but no clause of this level"
        return f"Since it was judged, the specification has changed{what}"

    # -- clauses ----------------------------------------------------------------

    @cached_property
    def lines(self) -> list[Line]:
        """Every clause of today up to the level judged, in the order of the specification; then those gone."""
        said = {one["slug"]: one for one in self.report.get("clauses", ())}
        mine = [clause for clause in CLAUSES if clause.slug in said or clause.level <= (self.level or 0)]
        gone = [slug for slug in said if slug not in BY_SLUG]
        marks = {clause.slug: _mark(clause, said.get(clause.slug), self.capabilities) for clause in mine}
        return [
            *(Line(clause.slug, marks[clause.slug], clause, said.get(clause.slug, {})) for clause in mine),
            *(Line(slug, Mark.OUT_OF_DATE, None, said[slug]) for slug in gone),
        ]

    @cached_property
    def by_slug(self) -> dict[str, Line]:
        """The lines under their slugs."""
        return {line.slug: line for line in self.lines}

    def mark(self, slug: str) -> Mark:
        """What a table shows of a clause: a pass only if the whole report is sound."""
        line = self.by_slug.get(slug)
        if line is None:
            return Mark.NOT_JUDGED
        return line.mark if self.is_sound or line.mark in FAILED else Mark.NOT_JUDGED

    def counts(self, level: Level | None = None, chapter: str = "") -> Counter[Mark]:
        """How many clauses have each mark, of one level or chapter."""
        chosen = (
            line.slug
            for line in self.lines
            if line.clause and level in (None, line.clause.level) and chapter in ("", line.clause.chapter)
        )
        return Counter(map(self.mark, chosen))

    @property
    def reached(self) -> str:
        """The highest level whose clauses, with those below it, are all settled and some of which pass."""
        if not self.is_sound:
            return "unknown"
        reached = [level for level in self._levels if not self._unsettled(level)]
        return str(reached[-1]) if reached else "none"

    @property
    def short_of(self) -> str:
        """What keeps the next level from being reached; "" if the highest level judged is reached."""
        missing = [level for level in self._levels if self._unsettled(level)] if self.is_sound else []
        return f"{missing[0]}: {self._unsettled(missing[0])}" if missing else ""

    @property
    def _levels(self) -> list[Level]:
        """The levels up to the first one that is not reached."""
        found: list[Level] = []
        for level in Level:
            if self.level is None or level > self.level or (found and self._unsettled(found[-1])):
                break
            found.append(level)
        return found

    def _unsettled(self, level: Level) -> str:
        """The clauses of a level that keep it from being reached, in words; "" if there are none."""
        counts = self.counts(level)
        open_marks = [mark for mark in Mark if counts[mark] and mark not in _SETTLED]
        found = ", ".join(f"{counts[mark]} {_IN_A_COUNT.get(mark, mark)}" for mark in open_marks)
        return found or ("" if counts[Mark.PASS] else "no clause passes")

    @property
    def sometimes(self) -> frozenset[str]:
        """The clauses that fail only in some runs, as the list of expected failures says."""
        entries = (entry.split() for entry in self.report.get("expected_failures", ()))
        return frozenset(words[1].rstrip(":") for words in entries if words[:1] == ["sometimes"] and words[1:])

    @property
    def traits(self) -> Mapping[str, Any]:
        """The traits that are not the usual ones."""
        found: Mapping[str, Any] = self.report.get("implementation", {}).get("traits", {})
        return found

    # -- deaths -----------------------------------------------------------------

    @property
    def crash_state(self) -> str:
        """Why the exploration can't be relied on; "" if it can, or if there is none."""
        if self.crash_trouble or not self.crash:
            return self.crash_trouble
        if self.crash["interrupted"]:
            return f"interrupted {self.crash['interrupted']}"
        if self.crash["exit"]["status"] == Status.OUR_ERROR:
            return f"error of the suite: {self.crash['exit']['why']}"
        is_old = self.crash.get("specification") != digests.of_specification()
        return "explored by another version of the specification" if is_old else ""

    @cached_property
    def kills(self) -> Deaths:
        """Disks that kills leave."""
        return self._disks(is_power=False)

    @cached_property
    def power(self) -> Deaths:
        """Disks that losses of power leave."""
        return self._disks(is_power=True)

    def _disks(self, is_power: bool) -> Deaths:
        storages = [one for recording in self.crash.get("recordings", ()) for one in recording.get("storages", ())]
        mine = [one for one in storages if (one["storage"].partition(",")[0] in STORAGES) is is_power]
        return Deaths(
            tried=sum(one["totals"]["disks"] for one in mine),
            bad=sum(one["totals"]["bad"] for one in mine),
            is_cut_short=any(one["is_cut_short"] for one in mine),
            where=tuple(dict.fromkeys(one["storage"] for one in mine)),
        )

    @cached_property
    def real(self) -> Deaths:
        """Deaths and failing calls of real processes."""
        drills = self.crash.get("drills", ())
        bad = sum(bad["points"] for one in drills for bad in one["bad"])
        return Deaths(
            sum(one["points"] for one in drills), bad, where=tuple(dict.fromkeys(one["kind"] for one in drills))
        )


_TRAIT = re.compile(rf"\btraits? ({'|'.join(field.name for field in fields(Traits))})\b")


def _mark(clause: Clause, said: Mapping[str, Any] | None, claimed: frozenset[str]) -> Mark:
    if clause.capabilities - claimed and not (said and said.get("failures")):
        return Mark.UNCLAIMED
    if said is None:
        return Mark.NOT_JUDGED
    if said.get("digest") != digests.of(clause):
        return Mark.OUT_OF_DATE
    reasons = said.get("reason", "").split("; ")
    if said["verdict"] == Verdict.UNREACHED and all(map(_TRAIT.search, reasons)):
        return Mark.BOTH_ALLOWED
    return Mark(said["verdict"])


def chapters(lines: Sequence[Line]) -> Iterator[tuple[str, list[Line]]]:
    """Lines by chapter, in the order of the specification; clauses that are gone come last, under "gone"."""
    for name in CHAPTER_NAMES:
        yield name, [line for line in lines if line.clause and line.clause.chapter == name]
    yield "gone", [line for line in lines if line.clause is None]


# -- reading ------------------------------------------------------------------------


def read(directory: Path) -> Stored:
    """Return what a folder holds; whatever is wrong with it is said in the result."""
    if not directory.exists():
        return Stored(directory.resolve().name, {}, {}, "The folder is not there")
    report, trouble = _read(directory / "report.json", _report_from)
    crash, crash_trouble = _read(directory / "crash" / "crash.json", _crash_from)
    if crash_trouble == "There is no crash.json":
        crash_trouble = ""
    return Stored(directory.resolve().name, report, crash, trouble, crash_trouble)


def read_crash(out: Path) -> dict[str, Any]:
    """Return the exploration in the `--out` of `crash`; empty if there is none that can be read."""
    return _read(out / "crash.json", _crash_from)[0]


def _read(path: Path, made_from: Callable[[Any], dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """The values of a file, or why there are none."""
    try:
        values = files.read_json(path)
        if isinstance(values, dict) and values.keys() == {"trouble"}:  # what a table keeps of a file that it can't show
            return {}, str(values["trouble"])
        return made_from(values), ""
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        return {}, f"There is no {path.name}" if is_missing else f"{path.name} can't be read: {error.strerror}"
    except _Misfit as misfit:
        return {}, f"{path.name} can't be shown: {misfit}"
    except ValueError as error:
        return {}, f"{path.name} is not JSON: {error}"


class _Misfit(Exception):
    """Values are not those of a report; the text says in what."""


def _report_from(values: Any) -> dict[str, Any]:
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        raise _Misfit(f"it has schema version {version!r}, and this version of the suite reads {SCHEMA_VERSION}")
    try:
        report = compact.expanded(values)
    except (KeyError, TypeError, IndexError) as error:
        raise _Misfit(f"its lines are not complete, {type(error).__name__}: {error}") from None
    _expect(report, form.REPORT)
    failures = [failure for clause in report["clauses"] for failure in clause.get("failures", ())]
    for failure in (failure for failure in failures if "expected" in failure):
        _expect(failure, form.FAILURE)
    _check_level(report)
    unknown = [one["verdict"] for one in report["clauses"] if one["verdict"] not in [*Verdict]]
    if unknown:
        raise _Misfit(f"{unknown[0]!r} is not a verdict")
    return report


def _crash_from(values: Any) -> dict[str, Any]:
    _expect(values, form.CRASH)
    _check_level(values)
    return dict(values)


def _expect(values: Any, expected: form.Form) -> None:
    found = next(form.misfits(values, expected, "the report"), "")
    if found:
        raise _Misfit(found)


def _check_level(values: Mapping[str, Any]) -> None:
    try:
        Level.named(values["level"])
    except ValueError as error:
        raise _Misfit(str(error)) from None
