"""One verdict per clause, out of what the tests found.

Invariants: a clause that no test reached is *unreached*, never a pass; a
clause that needs what is not claimed is *unclaimed*, never a pass; a failure
is expected only if somebody listed it with a reason, and an entry that no
longer fails is *stale* and fails the run.
"""

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any

from forge_conformance.harness.judge import At
from forge_spec import BY_SLUG, CLAUSES
from forge_spec.clauses import Clause, Level


class Verdict(StrEnum):
    """What a report says of a clause."""

    PASS = "pass"
    FAIL = "fail"
    EXPECTED_FAIL = "expected-fail"
    UNREACHED = "unreached"
    UNCLAIMED = "unclaimed"
    ERROR = "error"


class Status(IntEnum):
    """The exit status of a run."""

    PASSED = 0
    FAILED = 1
    NOTHING_JUDGED = 2
    OUR_ERROR = 3


MODES = frozenset({"sync", "async", "pinned"})
"""The capabilities that are ways to save."""


@dataclass(frozen=True)
class Finding:
    """What one test found out; see `plugin.found_out`."""

    case: str
    clauses: tuple[str, ...]
    reached: dict[str, int]
    outcome: str
    seconds: float
    failure: dict[str, Any] | None = None
    reason: str | None = None
    fell_at: tuple[At, ...] = ()
    """The lines of the test's module in which a clause fell."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Finding":
        """From the user property that a test report carries."""
        known = {name: values[name] for name in ("case", "reached", "outcome", "seconds")}
        clauses = tuple(values["clauses"])
        fell_at = tuple((module, line) for module, line in values.get("fell_at", ()))
        return cls(
            **known, clauses=clauses, failure=values.get("failure"), reason=values.get("reason"), fell_at=fell_at
        )


def is_case(case: str, pattern: str) -> bool:
    """Whether a test's name in reports matches: `*` and `?` stand for others, brackets are part of a name."""
    return fnmatch.fnmatchcase(case, pattern.replace("[", "[[]"))


@dataclass(frozen=True)
class Expected:
    """One entry of an expected-failures file: a clause, in all cases or in those that match a pattern."""

    slug: str
    cases: str
    reason: str

    def covers(self, finding: Finding) -> bool:
        """Whether this failure was expected."""
        assert finding.failure is not None, "only failures are asked about"
        return finding.failure["clause"] == self.slug and self.matches(finding)

    def matches(self, finding: Finding) -> bool:
        """Whether this case is meant."""
        return is_case(finding.case, self.cases)

    def __str__(self) -> str:
        return self.slug if self.cases == "*" else f"{self.slug} @ {self.cases}"


class BadExpectations(Exception):
    """The expected-failures file can't be used; the text names line and reason."""


_ENTRY = re.compile(r"(?P<slug>[a-z-]+\.[a-z0-9-]+)(?:\s*@\s*(?P<cases>\S+?))?:\s+(?P<reason>\S.*)")


def read_expected(path: Path) -> tuple[Expected, ...]:
    """Lines `slug: reason` or `slug @ case-pattern: reason`; `#` begins a comment line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BadExpectations(f"--xfail-file {path} can't be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise BadExpectations(f"--xfail-file {path} is no text in UTF-8: {error.reason}.") from None
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _ENTRY.fullmatch(line.strip())
        if match is None:
            raise BadExpectations(
                f"{path}, line {number}: {line!r} is not `slug: reason` or `slug @ case-pattern: reason`; "
                "every expected failure needs its reason."
            )
        if match["slug"] not in BY_SLUG:
            raise BadExpectations(
                f"{path}, line {number}: there is no clause {match['slug']!r}; see forge-conformance list."
            )
        entries.append(Expected(match["slug"], match["cases"] or "*", match["reason"]))
    return tuple(entries)


@dataclass(frozen=True)
class Judged:
    """A clause and its verdict."""

    clause: Clause
    verdict: Verdict
    reached: int
    """How often its situation arose, over all tests."""
    cases: tuple[str, ...] = ()
    failures: tuple[Finding, ...] = ()
    because_of: str | None = None
    """The fallen clause at the root, when this one rests on it."""
    reason: str = ""
    """Why it is unreached, unclaimed, expected to fail, or an error."""


@dataclass(frozen=True)
class Report:
    """A whole run; everything that is rendered comes from here."""

    implementation: dict[str, Any]
    level: Level
    judged: tuple[Judged, ...]
    stale: tuple[Expected, ...]
    mismatches: tuple[str, ...]
    """Capabilities that are claimed and visibly missing, or visibly there and not claimed."""
    findings: tuple[Finding, ...]
    seconds: float
    is_partial: bool = False
    """Whether only some clauses were asked for."""
    errors: tuple[str, ...] = field(default=())
    options: tuple[str, ...] = ()
    """What the command was told besides manager, level and choice of tests: what it takes to run a test alone."""

    def count(self, verdict: Verdict) -> int:
        """How many clauses have this verdict."""
        return sum(judged.verdict is verdict for judged in self.judged)

    @property
    def status(self) -> Status:
        """What the run exits with."""
        if self.errors or self.count(Verdict.ERROR):
            return Status.OUR_ERROR
        if self.count(Verdict.FAIL) or self.stale:
            return Status.FAILED
        if not self.count(Verdict.PASS) and not self.count(Verdict.EXPECTED_FAIL):
            return Status.NOTHING_JUDGED
        return Status.PASSED


def judge(
    findings: Sequence[Finding],
    level: Level,
    capabilities: frozenset[str],
    expected: Sequence[Expected] = (),
    only: frozenset[str] | None = None,
) -> tuple[tuple[Judged, ...], tuple[Expected, ...]]:
    """The verdict of every clause up to `level` (or of `only` these), and the expectations that are stale.

    A clause that fell has a verdict whatever was asked for: a test that falls on the way has not held.
    """
    fallen = {finding.failure["clause"] for finding in findings if finding.failure is not None}
    asked = [clause.slug for clause in CLAUSES if clause.level <= level and (only is None or clause.slug in only)]
    clauses = [clause for clause in CLAUSES if clause.slug in fallen.union(asked)]
    judged = tuple(_judge(clause, findings, capabilities, expected, fallen) for clause in clauses)
    verdicts = {one.clause.slug: one.verdict for one in judged}
    stale = tuple(entry for entry in expected if _is_stale(entry, findings, verdicts, is_partial=only is not None))
    return judged, stale


def _judge(
    clause: Clause,
    findings: Sequence[Finding],
    capabilities: frozenset[str],
    expected: Sequence[Expected],
    fallen: set[str],
) -> Judged:
    missing = sorted(clause.capabilities - capabilities)
    if missing and clause.slug not in fallen:
        return Judged(clause, Verdict.UNCLAIMED, 0, reason=f"needs {', '.join(missing)}")
    mine = [finding for finding in findings if clause.slug in finding.clauses]  # it may fall in others on the way
    reached = sum(finding.reached.get(clause.slug, 0) for finding in mine)
    cases = tuple(finding.case for finding in mine)
    failures = tuple(f for f in findings if f.failure is not None and f.failure["clause"] == clause.slug)
    if failures:
        return _fallen(clause, reached, cases, failures, expected, fallen)
    errors = [finding for finding in mine if finding.outcome == "error"]
    if errors:
        return Judged(clause, Verdict.ERROR, reached, cases, tuple(errors), reason=str(errors[0].reason))
    if not reached:
        return Judged(clause, Verdict.UNREACHED, 0, cases, reason=_why_unreached(mine, capabilities))
    return Judged(clause, Verdict.PASS, reached, cases)


def _fallen(
    clause: Clause,
    reached: int,
    cases: tuple[str, ...],
    failures: tuple[Finding, ...],
    expected: Sequence[Expected],
    fallen: set[str],
) -> Judged:
    reasons = [next((entry.reason for entry in expected if entry.covers(finding)), None) for finding in failures]
    is_expected = all(reason is not None for reason in reasons)
    verdict = Verdict.EXPECTED_FAIL if is_expected else Verdict.FAIL
    unexpected = tuple(f for f, reason in zip(failures, reasons, strict=True) if reason is None)
    why = "; ".join(dict.fromkeys(reason for reason in reasons if reason is not None)) if is_expected else ""
    root = root_of(clause, fallen)
    return Judged(clause, verdict, max(reached, 1), cases, unexpected or failures, root, why)


def root_of(clause: Clause, fallen: Iterable[str]) -> str | None:
    """The fallen clause furthest down among those that this one rests on; None if it stands on firm ground."""
    slugs = set(fallen)
    for slug in clause.rests_on:
        below = root_of(BY_SLUG[slug], slugs)
        if below is not None:
            return below
        if slug in slugs:
            return slug
    return None


def _why_unreached(mine: Sequence[Finding], capabilities: frozenset[str]) -> str:
    if not capabilities & MODES:
        return f"no way to save is claimed, of {', '.join(sorted(MODES))}"
    if not mine:
        return "no test that judges it fits what is claimed and asked for"
    reasons = dict.fromkeys(finding.reason for finding in mine if finding.outcome == "unreached" and finding.reason)
    if reasons:
        return "; ".join(str(reason) for reason in reasons)
    blocked = {f.failure["clause"] for f in mine if f.failure is not None}
    if blocked:
        return f"every test that would reach it fell before, at {', '.join(sorted(blocked))}"
    return "it never arose"


def _is_stale(entry: Expected, findings: Sequence[Finding], verdicts: dict[str, Verdict], is_partial: bool) -> bool:
    """It was judged and held in all cases that it covers; a partial run says nothing of those that it leaves out."""
    if verdicts.get(entry.slug) in (None, Verdict.UNREACHED, Verdict.UNCLAIMED, Verdict.ERROR):
        return False
    if any(finding.failure is not None and entry.covers(finding) for finding in findings):
        return False
    return not is_partial or any(entry.slug in finding.clauses and entry.matches(finding) for finding in findings)


def capability_mismatches(claimed: frozenset[str], probe: dict[str, bool]) -> tuple[str, ...]:
    """What is claimed and visibly missing, and what is visibly there and not claimed."""
    lacking = sorted(name for name in claimed if probe.get(name) is False)
    missing = [f"{name} is claimed, but the implementation lacks it" for name in lacking]
    silent = [
        f"{name} is there, but not claimed: it was not judged"
        for name, is_there in sorted(probe.items())
        if is_there and name not in claimed
    ]
    return tuple(missing + silent)
