"""What became of each mutant, and what that says about the suite.

Five things are reported, each in a line of its own.  Three of them are gaps in the
suite and fail the command: a mutant that survives, a mutant that fails by another
clause than its own, and a clause that no mutant breaks.  The others may be
chance: a test that was tried and has never killed anything, and an assertion
that was never seen to fail.

Whatever goes wrong with a mutant itself is an error of the suite, never a kill.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

from forge_conformance.judging.judge import At
from forge_conformance.judging.verdicts import Finding, Status, judge
from forge_conformance.matrix.assertions import Assertion, never_failed
from forge_conformance.matrix.mutants import Mutant
from forge_conformance.matrix.trial import Trial
from forge_spec import CLAUSES
from forge_spec.clauses import CAPABILITIES, Clause

IDLE_TEST = "a test that has never killed anything"
IDLE_ASSERTION = "an assertion that was never seen to fail"
_SLIP = re.compile(r"raised (?:Name|Attribute|Type|Import|ModuleNotFound|UnboundLocal|Assertion|Syntax)Error\b")
"""What a manager raises whose author has slipped: the clause that takes the blame says nothing about the mistake."""


class End(StrEnum):
    """How a mutant ends."""

    KILLED = "killed"
    ELSEWHERE = "fails by another clause"
    SURVIVES = "survives"
    NOT_JUDGED = "not judged here"
    ERROR = "error"


@dataclass(frozen=True)
class Base:
    """A right manager that mutants are made from, as the suite has judged it here."""

    name: str
    status: int = Status.PASSED
    verdicts: Mapping[str, str] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0
    errors: tuple[str, ...] = ()

    def unreached(self, slug: str) -> str:
        """Why this clause can't be judged here, whoever is asked; "" if it can."""
        return self.reasons.get(slug, "") or "it never arose" if self.verdicts.get(slug) == "unreached" else ""

    @classmethod
    def of(cls, name: str, report: Mapping[str, Any]) -> "Base":
        """From the report of a run."""
        clauses = report["clauses"]
        verdicts = {clause["slug"]: clause["verdict"] for clause in clauses}
        reasons = {clause["slug"]: clause["reason"] for clause in clauses}
        return cls(name, report["exit_status"], verdicts, reasons, report["seconds"])

    @classmethod
    def tried(cls, trial: Trial) -> "Base":
        """From a trial by its mutants' clauses; what else fails on the way is not what they are about."""
        mutant, found = trial.mutant, trial.findings
        judged, _ = judge(found, mutant.level, frozenset(CAPABILITIES), only=frozenset(mutant.clauses))
        verdicts = {one.clause.slug: str(one.verdict) for one in judged}
        failed = any(one.failure is not None and one.failure["clause"] in mutant.clauses for one in found)
        errors = [*trial.errors, *(f"{one.case}: {one.reason}" for one in found if one.outcome == "error")]
        status = Status.OUR_ERROR if errors else Status.FAILED if failed else Status.PASSED
        reasons = {one.clause.slug: one.reason for one in judged}
        return cls(str(mutant.path), status, verdicts, reasons, trial.wall_s, tuple(errors))


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant, and why."""

    trial: Trial
    base: Base

    @property
    def mutant(self) -> Mutant:
        """Whose outcome it is."""
        return self.trial.mutant

    @cached_property
    def failed(self) -> dict[str, list[Finding]]:
        """The tests in which each clause failed."""
        found: dict[str, list[Finding]] = {}
        for finding in self.trial.findings:
            if finding.failure is not None:
                found.setdefault(finding.failure["clause"], []).append(finding)
        return found

    @cached_property
    def errors(self) -> list[str]:
        """What went wrong with the mutant itself, or with the suite."""
        of_tests = [f"{one.case}: {one.reason}" for one in self.trial.findings if one.outcome == "error"]
        slips = [
            f"{one.case}: a programming error, not the intended mistake: {one.failure['seen']}"
            for one in self.trial.findings
            if one.failure is not None and _SLIP.search(one.failure["seen"])
        ]
        return [*self.trial.errors, *of_tests, *slips]

    @property
    def failed_at(self) -> list[At]:
        """The lines of tests in which a clause failed."""
        return [at for finding in self.trial.findings for at in finding.failed_at]

    @property
    def seen(self) -> str:
        """What gave it away, in the first test in which its own clause failed."""
        own = self.failed.get(self.mutant.own.slug, [])
        return str(own[0].failure["seen"]) if own and own[0].failure is not None else ""

    @cached_property
    def end(self) -> End:
        """How it ended."""
        own = self.mutant.own.slug
        if self.errors:
            return End.ERROR
        if own in self.failed:
            return End.KILLED
        if self.failed:
            return End.ELSEWHERE
        is_reached = any(finding.reached.get(own) for finding in self.trial.findings)
        return End.NOT_JUDGED if self.base.unreached(own) and not is_reached else End.SURVIVES

    @property
    def is_hang(self) -> bool:
        """Whether all that it fails by is a call that does not return."""
        own = self.failed.get(self.mutant.own.slug, [])
        return bool(own) and all(finding.case in self.trial.hung for finding in own)

    @property
    def because(self) -> str:
        """The same in words."""
        own, others = self.mutant.own.slug, [slug for slug in self.failed if slug != self.mutant.own.slug]
        too = f"; {', '.join(others)} failed too" if others else ""
        match self.end:
            case End.KILLED:
                cases = self.failed[own]
                tried = sum(own in finding.clauses or finding in cases for finding in self.trial.findings)
                how = "a hang, " if self.is_hang else ""
                return f"{how}{own} in {len(cases)} of {tried} tests{too}"
            case End.ELSEWHERE:
                arose = sum(finding.reached.get(own, 0) for finding in self.trial.findings)
                held = f"held {arose} times" if arose else "was unreached"
                return f"{own} {held}, and {', '.join(others)} failed, in {self.failed[others[0]][0].case}"
            case End.SURVIVES:
                arose = sum(finding.reached.get(own, 0) for finding in self.trial.findings)
                return f"{own} held in all of {len(self.trial.findings)} tests, and its situation arose {arose} times"
            case End.NOT_JUDGED:
                return self.base.unreached(own)
            case End.ERROR:
                return self.errors[0]


@dataclass(frozen=True)
class Line:
    """One thing that the matrix has found out about the suite."""

    kind: str
    text: str
    fails: bool = True


@dataclass(frozen=True)
class Matrix:
    """All outcomes; everything that is rendered comes from here."""

    base: Base
    outcomes: tuple[Outcome, ...]
    unread: tuple[str, ...] = ()
    """Files that are no mutants, and why."""
    other_bases: tuple[Base, ...] = ()
    asked: frozenset[str] | None = None
    """The clauses that this is about; None for all that the bases claim."""
    is_partial: bool = False
    """Whether only some mutants were tried: then nothing is said of what none of them does."""
    seconds: float = field(default=0)
    interrupted: str = ""
    """When it was; "" if it came to its end."""
    until_killed: bool = False
    """Whether mutants were tried no further once they were killed: then nothing is said of tests and assertions."""
    assertions: tuple[Assertion, ...] = ()
    """Every one of the suite."""

    @cached_property
    def clauses(self) -> list[Clause]:
        """The clauses that mutants have to break, in reading order: those that a base claims."""
        verdicts = [base.verdicts for base in (self.base, *self.other_bases)]
        claimed = {slug for one in verdicts for slug, verdict in one.items() if verdict != "unclaimed"}
        return [
            clause for clause in CLAUSES if clause.slug in claimed and (self.asked is None or clause.slug in self.asked)
        ]

    def killed_by(self, slug: str) -> list[Outcome]:
        """The mutants that break this clause, say so, and fail by it."""
        return [one for one in self.outcomes if slug in one.mutant.clauses and slug in one.failed and not one.errors]

    @cached_property
    def tests_that_killed_nothing(self) -> list[str]:
        """Tests that were tried on mutants and in which nothing ever failed, each named without its parameters.

        Those that could never be tried, as without a GPU, have the reason behind the name.
        """
        idle: dict[str, set[str]] = {}
        killed: set[str] = set()
        for one in self.outcomes:
            for finding in one.trial.findings:
                idle.setdefault(_name(finding.case), set()).add(finding.reason or "")
                if finding.failure is not None and not one.errors:
                    killed.add(_name(finding.case))
        return sorted(f"{name}{_unreached(idle[name])}" for name in idle.keys() - killed)

    @cached_property
    def lines(self) -> list[Line]:
        """Everything to report, with what fails the command first."""
        cut = [Line("interrupted", f"{self.interrupted}; nothing is said of the rest")] if self.interrupted else []
        return [*cut, *self._about_bases(), *self._about_mutants(), *self._about_clauses(), *self._about_tests()]

    def _about_bases(self) -> Iterable[Line]:
        for base in (self.base, *self.other_bases):
            if base.status != Status.PASSED:
                failed = [slug for slug, verdict in base.verdicts.items() if verdict in ("fail", "error")]
                what = ", ".join([*failed, *base.errors]) or "something else"
                yield Line("the base fails", f"{base.name}, which has to be right: {what}")

    def _about_mutants(self) -> Iterable[Line]:
        yield from (Line("an error of the suite", reason) for reason in self.unread)
        kinds = {
            End.ERROR: "an error of the suite",
            End.SURVIVES: "a mutant survives",
            End.ELSEWHERE: f"a mutant {End.ELSEWHERE}",
        }
        for end, kind in kinds.items():
            yield from (Line(kind, f"{one.mutant.name}: {one.because}") for one in self.outcomes if one.end is end)

    def _about_clauses(self) -> Iterable[Line]:
        if self.is_partial:
            return
        for clause in self.clauses:
            if self.killed_by(clause.slug):
                continue
            waiting = [one for one in self.outcomes if one.end is End.NOT_JUDGED and clause.slug in one.mutant.clauses]
            if not waiting:
                yield Line("a clause that no mutant breaks", clause.slug)

    def _about_tests(self) -> Iterable[Line]:
        if self.is_partial or self.asked is not None or self.until_killed:
            return
        yield from (Line(IDLE_TEST, test, fails=False) for test in self.tests_that_killed_nothing)
        at = [at for one in self.outcomes for at in one.failed_at]
        yield from (Line(IDLE_ASSERTION, str(one), fails=False) for one in never_failed(self.assertions, at))

    def count(self, end: End) -> int:
        """How many mutants end so."""
        return sum(one.end is end for one in self.outcomes)

    @property
    def status(self) -> Status:
        """What the command exits with."""
        if self.unread or self.interrupted or self.count(End.ERROR):
            return Status.OUR_ERROR
        return Status.FAILED if any(line.fails for line in self.lines) else Status.PASSED


def _unreached(reasons: set[str]) -> str:
    return "" if "" in reasons else f" (unreached: {min(reasons)})"


def _name(case: str) -> str:
    return case.partition("[")[0]


def in_order(outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """In the order of the clauses, and of the names."""
    place = {clause.slug: number for number, clause in enumerate(CLAUSES)}
    return tuple(sorted(outcomes, key=lambda one: (place[one.mutant.own.slug], one.mutant.name)))
