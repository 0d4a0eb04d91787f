"""One verdict per clause, out of what the tests found.

Invariants: a clause that no test reached is *unreached*, never a pass; a
clause that needs what is not claimed is *unclaimed*, never a pass; a failure
is expected only if somebody listed it with a reason, and an entry that no
longer fails is *stale* and fails the run, unless it says that not every run
shows its fault.
"""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any

from forge_conformance.judging import files
from forge_conformance.judging.judge import At
from forge_spec import BY_SLUG, CLAUSES
from forge_spec.clauses import CAPABILITIES, Clause, Level


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


CHAPTER_NAMES = tuple(dict.fromkeys(clause.chapter for clause in CLAUSES))
"""The chapters, in the order of the specification."""

MODES = ("sync", "async", "pinned")
"""The capabilities that are ways to save, the plainest first."""

_HOW_TESTS_RUN = frozenset({*MODES, "gpu"})
"""The capabilities that decide in which mode and on which device tests run. They count without clauses of their own."""


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
    failed_at: tuple[At, ...] = ()
    """The lines of the test's module in which a clause failed."""
    events: frozenset[str] = frozenset()
    """What happened besides training, saving, waiting and resuming; see `Judge.events`."""
    is_of_a_call: bool = False
    """Whether a call raised, hung or ended its process, where the test expected it to return."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Finding":
        """From the user property that a test report carries."""
        known = {name: values[name] for name in ("case", "reached", "outcome", "seconds")}
        clauses = tuple(values["clauses"])
        failed_at = tuple((module, line) for module, line in values.get("failed_at", ()))
        return cls(
            **known,
            clauses=clauses,
            failure=values.get("failure"),
            reason=values.get("reason"),
            failed_at=failed_at,
            events=frozenset(values.get("events", ())),
            is_of_a_call=values.get("is_of_a_call", False),
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
    is_sometimes: bool = False
    """Whether the fault shows only in some runs, as in a race; then a run in which it holds is no surprise."""

    def covers(self, finding: Finding) -> bool:
        """Whether this failure was expected."""
        assert finding.failure is not None, "only failures are asked about"
        return finding.failure["clause"] == self.slug and self.matches(finding)

    def matches(self, finding: Finding) -> bool:
        """Whether this case is meant."""
        return is_case(finding.case, self.cases)

    @property
    def line(self) -> str:
        """The line of the file."""
        return f"{'sometimes ' if self.is_sometimes else ''}{self}: {self.reason}"

    def __str__(self) -> str:
        return self.slug if self.cases == "*" else f"{self.slug} @ {self.cases}"


class BadExpectations(Exception):
    """The expected-failures file can't be used; the text names line and reason."""


_ENTRY = re.compile(
    r"(?P<sometimes>sometimes )?(?P<slug>[a-z-]+\.[a-z0-9-]+)(?:\s*@\s*(?P<cases>\S+?))?:\s+(?P<reason>\S.*)"
)


def read_expected(path: Path) -> tuple[Expected, ...]:
    """Lines `slug: reason` or `slug @ case-pattern: reason`, after `sometimes ` where not every run shows it.

    `#` begins a comment line.
    """
    try:
        lines = files.read_text(path).splitlines()
    except OSError as error:
        raise BadExpectations(f"--xfail-file {path} can't be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise BadExpectations(f"--xfail-file {path} is not UTF-8 text: {error.reason}.") from None
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
        entries.append(Expected(match["slug"], match["cases"] or "*", match["reason"], bool(match["sometimes"])))
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
    """The failed clause at the root, when this one rests on it and that was seen; see `root_of`."""
    seen_in: str = ""
    """The case in which that one failed, although nothing happened there that did not happen here as well."""
    reason: str = ""
    """Why it is unreached, unclaimed, expected to fail, or an error."""


@dataclass(frozen=True)
class Cause:
    """One thing to mend: a failed clause, and the others that very likely failed because of it."""

    root: Judged
    consequences: tuple[Judged, ...] = ()
    """They rest on the root, see `root_of`."""
    same_error: tuple[Judged, ...] = ()
    """They failed by an error with the same text."""

    @property
    def tests(self) -> int:
        """How many tests failed."""
        return sum(len(one.failures) for one in (self.root, *self.consequences, *self.same_error))


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
    asked: tuple[str, ...] = ()
    """The clauses that were asked for, each with all of its tests; empty if all were, or only some tests."""
    errors: tuple[str, ...] = field(default=())
    interrupted: str = ""
    """After how many tests it was interrupted, in words; "" for a run that came to its end."""
    sources: str = ""
    """A fingerprint of the code that was run, the suite's and the manager's; "" where that is not known."""
    options: tuple[str, ...] = ()
    """The other options that it takes to run a test alone, besides manager, level and choice of tests."""
    ranks: tuple[int, ...] = ()
    """How many ranks the tests for several ranks had."""
    device: str = "cpu"
    expected: tuple[Expected, ...] = ()
    """The entries of the expected-failures file."""

    def count(self, verdict: Verdict) -> int:
        """How many clauses have this verdict."""
        return sum(judged.verdict is verdict for judged in self.judged)

    @property
    def status(self) -> Status:
        """What the run exits with."""
        if self.errors or self.interrupted or self.count(Verdict.ERROR):
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

    A clause that failed has a verdict whatever was asked for, even if another one was to be judged.
    """
    failed = {finding.failure["clause"] for finding in findings if finding.failure is not None}
    asked = [clause.slug for clause in CLAUSES if clause.level <= level and (only is None or clause.slug in only)]
    clauses = [clause for clause in CLAUSES if clause.slug in failed.union(asked)]
    judged = tuple(_judge(clause, findings, capabilities, expected) for clause in clauses)
    verdicts = {one.clause.slug: one.verdict for one in judged}
    stale = tuple(entry for entry in expected if _is_stale(entry, findings, verdicts, is_partial=only is not None))
    return judged, stale


def _judge(
    clause: Clause,
    findings: Sequence[Finding],
    capabilities: frozenset[str],
    expected: Sequence[Expected],
) -> Judged:
    missing = sorted(clause.capabilities - capabilities)
    failures = tuple(f for f in findings if f.failure is not None and f.failure["clause"] == clause.slug)
    if missing and not failures:
        return Judged(clause, Verdict.UNCLAIMED, 0, reason=f"needs {', '.join(missing)}")
    mine = [finding for finding in findings if clause.slug in finding.clauses]  # others may have failed it on their way
    reached = sum(finding.reached.get(clause.slug, 0) for finding in mine)
    cases = tuple(finding.case for finding in mine)
    if failures:
        return _failed(clause, reached, cases, failures, expected, findings)
    errors = [finding for finding in mine if finding.outcome == "error"]
    if errors:
        return Judged(clause, Verdict.ERROR, reached, cases, tuple(errors), reason=str(errors[0].reason))
    if not reached:
        return Judged(clause, Verdict.UNREACHED, 0, cases, reason=_why_unreached(mine, capabilities))
    return Judged(clause, Verdict.PASS, reached, cases)


def _failed(
    clause: Clause,
    reached: int,
    cases: tuple[str, ...],
    failures: tuple[Finding, ...],
    expected: Sequence[Expected],
    findings: Sequence[Finding],
) -> Judged:
    reasons = [next((entry.reason for entry in expected if entry.covers(finding)), None) for finding in failures]
    is_expected = all(reason is not None for reason in reasons)
    verdict = Verdict.EXPECTED_FAIL if is_expected else Verdict.FAIL
    unexpected = tuple(f for f, reason in zip(failures, reasons, strict=True) if reason is None)
    why = "; ".join(dict.fromkeys(reason for reason in reasons if reason is not None)) if is_expected else ""
    root = root_of(clause, unexpected or failures, findings)
    slug, case = ("", "") if root is None else root
    return Judged(clause, verdict, max(reached, 1), cases, unexpected or failures, slug or None, case, why)


def foundations(slug: str) -> tuple[str, ...]:
    """All clauses that one rests on, directly or not; what lies deepest comes first."""
    found: dict[str, None] = {}
    for below in BY_SLUG[slug].rests_on:
        found |= dict.fromkeys((*foundations(below), below))
    return tuple(found)


def root_of(clause: Clause, failures: Sequence[Finding], findings: Sequence[Finding]) -> tuple[str, str] | None:
    """The failed clause furthest down that explains all these failures, and a case that shows it; None if none does.

    A failure is explained by another one in which nothing happened to the
    manager that did not happen here: it then has to be expected here, too.
    So a call that fails there explains nothing here, if every call returned.
    """
    for slug in foundations(clause.slug):
        others = [other for other in findings if other.failure is not None and other.failure["clause"] == slug]
        shown = [[other for other in others if _explains(other, failure)] for failure in failures]
        if all(shown):
            return slug, min(shown[0], key=lambda other: len(other.events)).case
    return None


def _explains(other: Finding, failure: Finding) -> bool:
    return other.events <= failure.events and (not other.is_of_a_call or _has_failed_call(failure))


_FAILED_CALL = re.compile(r"\b[A-Z]\w*(?:Error|Exception|Failure)\b|did not return within|ended by itself")


def _has_failed_call(finding: Finding) -> bool:
    """Whether a call failed, also where the test went on and reports it among what it saw."""
    assert finding.failure is not None, "only failures are asked about"
    return finding.is_of_a_call or _FAILED_CALL.search(finding.failure["seen"]) is not None


def causes(judged: Sequence[Judged]) -> tuple[Cause, ...]:
    """Group the clauses that failed unexpectedly by what has to be fixed; the cause of most failed tests first."""
    failed = {one.clause.slug: one for one in judged if one.verdict is Verdict.FAIL}
    resting: dict[str, list[Judged]] = {slug: [] for slug in failed}
    for one in failed.values():
        resting[_root_in(one, failed)].append(one)
    found: dict[str, Cause] = {}
    for slug, group in resting.items():
        if not group:
            continue
        cause = Cause(failed[slug], tuple(one for one in group if one is not failed[slug]))
        error = _error_in(cause.root.failures[0]) or slug
        if error in found:
            before = found[error]
            same = (*before.same_error, cause.root, *cause.consequences)
            found[error] = replace(before, same_error=same)
        else:
            found[error] = cause
    return tuple(sorted(found.values(), key=lambda cause: -cause.tests))


def _root_in(one: Judged, failed: Mapping[str, Judged]) -> str:
    """The failed clause that this one rests on in the end; its own if it rests on none, or on an expected failure."""
    while one.because_of is not None and one.because_of in failed:
        one = failed[one.because_of]
    return one.clause.slug


_ERROR = re.compile(r"\b(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Failure)\b: .+")
_SAID_NOTHING = re.compile(r"\b[A-Z]\w*(?:Error|Exception|Failure) \(no message\)")
_VARIES = re.compile(r"'[^']*'|\"[^\"]*\"|(?<!\w)/\S+|\d+")


def _error_in(finding: Finding) -> str:
    """The error that a failure shows, without the numbers, names and paths that vary; empty if none."""
    assert finding.failure is not None, "only failures are asked about"
    seen = finding.failure["seen"]
    match = _ERROR.search(seen.partition("\n")[0])
    errors = errors_behind(finding) or [_last_error(seen) or (match[0] if match else "")]
    if not errors[0] and _SAID_NOTHING.search(seen.partition("\n")[0]) and (place := raised_at(finding)):
        return f"raised at {place}"  # what has no text is the same where it comes from the same place
    return _VARIES.sub("_", errors[0])


_RAISED = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit|Warning|Failure)\b.*")


def errors_behind(finding: Finding) -> list[str]:
    """The errors of a failure's traceback that its message does not repeat, the first one first."""
    assert finding.failure is not None, "only failures are asked about"
    raised = [line for line in finding.failure["detail"].splitlines() if _RAISED.fullmatch(line)]
    return [line for line in dict.fromkeys(raised) if line.partition(": ")[2] not in finding.failure["seen"]]


def in_brief(seen: str) -> str:
    r"""What was seen, without the traceback that a message may have in it: its first line, and the error at its end.

    >>> in_brief("load() raised CheckpointException: ranks [0]\nTraceback:\n  File ...\nRuntimeError: no key 'step'")
    "load() raised CheckpointException: ranks [0]: RuntimeError: no key 'step'"
    """
    first, error = seen.partition("\n")[0], _last_error(seen)
    return f"{first}: {error}" if error else seen


def _last_error(seen: str) -> str:
    """The error at the end of a traceback that is a part of a message; "" if it has none."""
    return next((line for line in reversed(seen.splitlines()[1:]) if _RAISED.fullmatch(line)), "")


_FRAME = re.compile(r'^[ |]*File "(?P<file>[^"\n]+)", line (?P<line>\d+), in (?P<function>\S+)$', re.MULTILINE)


def raised_at(finding: Finding) -> str:
    """The innermost place in a failure's traceback, without the folder of installed packages.

    "" if there is none, or if the message has a traceback of its own.
    """
    assert finding.failure is not None, "only failures are asked about"
    frames = list(_FRAME.finditer(finding.failure["detail"]))
    if not frames or _last_error(finding.failure["seen"]):
        return ""
    file = frames[-1]["file"].rpartition("/site-packages/")[2]
    return f"{file}:{frames[-1]['line']}, in {frames[-1]['function']}"


def _why_unreached(mine: Sequence[Finding], capabilities: frozenset[str]) -> str:
    if capabilities.isdisjoint(MODES):
        return f"no way to save is claimed, of {', '.join(MODES)}"
    if not mine:
        return "no test that judges it fits what is claimed and asked for"
    reasons = dict.fromkeys(finding.reason for finding in mine if finding.outcome == "unreached" and finding.reason)
    if reasons:
        return "; ".join(str(reason) for reason in reasons)
    blocked = {f.failure["clause"] for f in mine if f.failure is not None}
    if blocked:
        return f"every test that would reach it failed before, at {', '.join(sorted(blocked))}"
    return "it never arose"


def _is_stale(entry: Expected, findings: Sequence[Finding], verdicts: dict[str, Verdict], is_partial: bool) -> bool:
    """It was judged and held in all cases that it covers; a partial run says nothing of those that it leaves out."""
    if entry.is_sometimes or verdicts.get(entry.slug) in (None, Verdict.UNREACHED, Verdict.UNCLAIMED, Verdict.ERROR):
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


def unjudged_claims(claimed: frozenset[str]) -> str:
    """Say which claims judge nothing, since each of their clauses needs another one that is missing; empty if none do.

    >>> unjudged_claims(frozenset({"sync", "reshard"}))
    'no clause judges reshard without distributed; claim distributed too, or leave reshard out.'
    """
    dependent: dict[str, list[str]] = {}
    for name, needed in needs_of_unjudged(claimed).items():
        dependent.setdefault(needed, []).append(name)
    return " Also, ".join(
        f"no clause judges {', '.join(names)} without {needed}; claim {needed} too, or leave {', '.join(names)} out."
        for needed, names in dependent.items()
    )


def needs_of_unjudged(claimed: frozenset[str]) -> dict[str, str]:
    """Each claim that judges nothing, and the claims that its clauses lack.

    >>> needs_of_unjudged(frozenset({"sync", "pipeline"}))
    {'pipeline': 'distributed or layout'}
    """
    found: dict[str, str] = {}
    for name in CAPABILITIES:
        missing = [clause.capabilities - claimed for clause in CLAUSES if name in clause.capabilities]
        if name in claimed - _HOW_TESTS_RUN and all(missing):
            found[name] = _alternatives(missing)
    return found


def _alternatives(missing: Sequence[frozenset[str]]) -> str:
    """Return the smallest of these sets, such as `distributed or layout`."""
    fewest = {tuple(sorted(one)) for one in missing if not any(other < one for other in missing)}
    return " or ".join(" and ".join(one) for one in sorted(fewest))
