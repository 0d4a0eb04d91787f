"""What a crash exploration found: the causes first, on one screen, then the details; also as JSON and as a page.

A *cause* is one way in which one clause fails, however many deaths, recordings
and drills show it.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from forge_conformance import __version__
from forge_conformance.deaths.drills import Bad, Drilled
from forge_conformance.disks.explorer import Explored, Totals
from forge_conformance.disks.result import Found, Result
from forge_conformance.disks.story import sentence
from forge_conformance.judging.text import counted, shortened, wrapped
from forge_conformance.judging.verdicts import Status
from forge_conformance.report.markup import Content, Html, row, table, tag
from forge_conformance.report.page import anchor, cards, folded, page
from forge_conformance.runs.server import Implementation
from forge_conformance.runs.verdict import Verdict
from forge_conformance.watch.backends import Backend
from forge_spec import BY_SLUG, digests
from forge_spec.clauses import Level
from forge_spec.disk import Bytes, Mark

_SHOWN = 3
"""Stories on a terminal."""
_CAUSES = 12
"""Causes on a terminal."""
_COLUMNS = "{:<14}{:<7}{:<44}{:>9}{:>8}{:>6}{:>9}{:>10}"
_DRILLS = "{:<12}{:<12}{:<7}{:>6}{:>8}{:>6}{:>9}{:>7}{:>9}"


_BY_THEIR_TEXT = ("refused", "died", "hung", "stuck")
"""Verdicts with as many causes as there are errors."""


@dataclass(frozen=True)
class RecordingSetup:
    """How it was recorded, and what that left out."""

    recorder: Backend
    unreached: tuple[str, ...] = ()
    """Storages that were asked for and that this recorder can say nothing about."""
    interrupted: str = ""
    """When it was, in words; "" if it came to its end."""
    side_by_side: int = 1
    """Recordings and drills that were gone through at the same time."""

    def took_s(self, jobs: Sequence[Result] | Sequence[Drilled]) -> float:
        """How long all of these took, so many of them at the same time."""
        return sum(job.seconds for job in jobs) / max(1, min(self.side_by_side, len(jobs)))

    def sentences(self) -> Iterator[str]:
        """Limits that nobody may overlook; none after a recorder that sees everything and came to its end."""
        if self.interrupted:
            yield f"PARTIAL: interrupted {self.interrupted}."
        if self.recorder.is_coarse:
            yield f"UNSEEN: {self.recorder.unseen}."
            yield f"UNREACHED: {', '.join((*self.unreached, 'durable.order'))}, and every death that nobody saw."


@dataclass(frozen=True)
class Failure:
    """One way in which one recording or drill fails."""

    verdict: Verdict
    where: str
    why: str
    """In words: the fsync that is missing, or what was seen."""
    ways: int
    """Deaths, failing calls or orders that come out so."""
    replay: str
    """The command that shows the simplest of them again."""
    story: str

    @property
    def counts_always(self) -> bool:
        """Whether it counts at each level: a run that is blocked does not go on by itself."""
        return self.verdict.word == "hung"


@dataclass(frozen=True)
class Cause:
    """Failures that differ in their numbers alone; the first is the example."""

    failures: tuple[Failure, ...]

    @property
    def example(self) -> Failure:
        """The one to begin with."""
        return self.failures[0]

    @property
    def ways(self) -> int:
        """All deaths, failing calls and orders that come out so."""
        return sum(failure.ways for failure in self.failures)


@dataclass(frozen=True)
class Report:
    """A whole exploration; everything that is rendered comes from here."""

    implementation: Implementation
    level: Level
    results: tuple[Result, ...]
    drilled: tuple[Drilled, ...]
    again: str
    """The command that runs against the same manager, at a level yet to be said."""
    out: Path
    """The directory of the report's files."""
    setup: RecordingSetup
    sources: str = ""
    """A fingerprint of the code, the suite's and the manager's; "" where that is not known."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """What decides, besides code and environment, what is explored."""

    @property
    def found(self) -> list[Found]:
        """The kinds of bad disks."""
        return [found for result in self.results for found in result.found]

    @cached_property
    def causes(self) -> list[Cause]:
        """Every cause of failure: those that count at this level first, and of these the most frequent ones."""
        grouped: dict[tuple[str, ...], list[Failure]] = {}
        for failure in (*self._of_results(), *self._of_drills()):
            grouped.setdefault(_alike(failure), []).append(failure)
        causes = [Cause(tuple(failures)) for failures in grouped.values()]
        return sorted(causes, key=lambda cause: (not self.counts(cause), -cause.ways))

    def _of_results(self) -> Iterator[Failure]:
        for result in self.results:
            for one in result.found:
                where = f"{result.scenario}, {result.mode}, {one.storage}"
                why = one.missing[0].partition(";")[0] if one.missing else one.verdict.seen
                yield Failure(one.verdict, where, why, one.states, f"python {self.out}/replay-{one.name}.py", one.text)
            for disorder in result.disorders:
                verdict, where = Verdict("disorder", "durable.order"), f"{result.scenario}, {result.mode}"
                again = f"{self.again} --level durable --tier disks --scenario {result.scenario} --mode {result.mode}"
                yield Failure(verdict, where, disorder.what, 1, again, disorder.what)

    def _of_drills(self) -> Iterator[Failure]:
        for one in self.drilled:
            for bad in one.bad:
                yield Failure(bad.verdict, one.drill.name, bad.verdict.seen, bad.points, self.replay(bad), bad.text)

    def counts(self, cause: Cause) -> bool:
        """Whether it counts at this level."""
        return cause.example.counts_always or level_of(cause.example.verdict) <= self.level

    @property
    def totals(self) -> Totals:
        """Sums over all recordings."""
        totals = Totals()
        for result in self.results:
            for explored in result.explored:
                totals.add(explored.totals)
        return totals

    @property
    def status(self) -> Status:
        """What the command exits with."""
        return self.outcome[0]

    @cached_property
    def outcome(self) -> tuple[Status, str]:
        """The worst that was seen, as an exit status and in words; a coarse recorder never makes it 0."""
        explored = [one for result in self.results for one in result.explored]
        jobs: list[Result | Drilled] = [*self.results, *self.drilled]
        counted_ones = [cause for cause in self.causes if self.counts(cause)]
        seen: tuple[tuple[bool, Status, str], ...] = (
            (bool(self.setup.interrupted), Status.OUR_ERROR, "it was interrupted"),
            (any(job.error for job in jobs), Status.OUR_ERROR, "the suite itself failed"),
            (
                any(one.contradiction for one in explored),
                Status.OUR_ERROR,
                "disks that look equal to a resume came out differently",
            ),
            (
                any(one.replayed not in ("", one.verdict.word) for one in self.found),
                Status.OUR_ERROR,
                "a replay script came to another verdict",
            ),
            (
                bool(counted_ones),
                Status.FAILED,
                f"{counted(len(counted_ones), 'cause')} of failure at level {self.level}",
            ),
            (any(job.is_blocked for job in jobs), Status.FAILED, "a run without any death hung"),
            (any(job.refusal for job in jobs), Status.NOTHING_JUDGED, "not everything could be explored or tried"),
            (self.setup.recorder.is_coarse, Status.NOTHING_JUDGED, "the recorder does not see everything"),
            (any(one.totals.states == 0 for one in explored), Status.NOTHING_JUDGED, "there was nothing to explore"),
        )
        found = [(status, why) for is_so, status, why in seen if is_so]
        return found[0] if found else (Status.PASSED, f"nothing fails at level {self.level}")

    def replay(self, bad: Bad) -> str:
        """The command that tries one point again, at the level of the clause that failed."""
        return f"{self.again} --level {level_of(bad.verdict)} --point {bad.point}"


def _alike(failure: Failure) -> tuple[str, ...]:
    """Equal for failures of one cause: an error says why it came; where a resume came back differs by chance."""
    verdict = failure.verdict
    says_why = failure.why != verdict.seen or verdict.word in _BY_THEIR_TEXT
    why = re.sub(r"0x[0-9a-f]+|[0-9]+", "N", failure.why.partition("\n")[0]) if says_why else ""
    return verdict.clause, verdict.word, why


def level_of(verdict: Verdict) -> Level:
    """The level of the clause that a bad verdict is about."""
    return BY_SLUG[verdict.clause].level


# -- terminal -------------------------------------------------------------------------


def console(report: Report) -> str:
    """A summary on one screen: how it ended, the causes, what was not tried, and sums; below it, the details."""
    setup = report.setup
    lines = [
        f"crash exploration of {report.implementation.name}, level {report.level}; recorded by {setup.recorder.says}"
    ]
    lines += [*map(wrapped, setup.sentences()), "", *_summary(report), "", "details"]
    if report.results:
        lines += ["", *_of_disks(report)]
    if report.drilled:
        lines += ["", *_of_drills(report)]
    return "\n".join([*lines, *_stories(report)])


def _summary(report: Report) -> Iterator[str]:
    status, why = report.outcome
    yield f"exit status {status:d}: {why}"
    for cause in report.causes[:_CAUSES]:
        yield wrapped(f"FAILED {_in_a_line(cause)}{_beyond(report, cause)}")
        yield f"    reproduce: {cause.example.replay}"
    if len(report.causes) > _CAUSES:
        yield f"and {counted(len(report.causes) - _CAUSES, 'more cause')}, each explained in {report.out}/crash.html"
    beyond = sum(not report.counts(cause) for cause in report.causes)
    if status == Status.PASSED and beyond:
        yield f"not counted: {counted(beyond, 'cause')} above level {report.level}; --level durable counts all"
    for jobs, what in ((report.results, "recording"), (report.drilled, "drill")):
        for attribute, said in (
            ("refusal", "could not be gone through as a whole"),
            ("error", "met an error of the suite"),
        ):
            number = sum(bool(getattr(job, attribute)) for job in jobs)
            if number:
                yield f"{counted(number, what)} of {len(jobs)} {said}; the reasons are below"
    yield from map(wrapped, [*_replays(report), *_sums(report)] if report.results else [])
    yield from map(wrapped, [_sum_of_drills(report)] if report.drilled else [])


def _in_a_line(cause: Cause) -> str:
    """Clause, verdict, how often, why, and where for example."""
    example, verdict = cause.example, cause.example.verdict
    wheres = {failure.where for failure in cause.failures}
    places = f" in {len(wheres)} recordings or drills" if len(wheres) > 1 else ""
    why = shortened(example.why.partition("\n")[0], 160)
    return (
        f"{verdict.clause}: {verdict.word}, {counted(cause.ways, 'time')}{places}; for example {example.where}: {why}"
    )


def _of_disks(report: Report) -> Iterator[str]:
    yield _COLUMNS.format("scenario", "mode", "storage", "states", "disks", "bad", "resumes", "a second")
    for result in report.results:
        yield from (_line(result, explored) for explored in result.explored)
    yield from ("", *_notes(report))


def _stories(report: Report) -> Iterator[str]:
    """The simplest story of a few causes."""
    for cause in report.causes[:_SHOWN]:
        yield from ("", cause.example.story, "", f"  reproduce: {cause.example.replay}")
    if len(report.causes) > _SHOWN:
        yield from ("", f"{len(report.causes)} causes in all, each explained in {report.out}/crash.html")


def _of_drills(report: Report) -> Iterator[str]:
    head = ("real deaths", "situation", "mode", "ranks", "points", "bad", "went on", "s", "s/point")
    yield _DRILLS.format(*head)
    for drilled in report.drilled:
        drill, bad_points = drilled.drill, sum(one.points for one in drilled.bad)
        each = f"{drilled.seconds / drilled.points:.3f}" if drilled.points else ""
        counts = (drill.ranks, drilled.points, bad_points, drilled.went_on, round(drilled.seconds), each)
        yield _DRILLS.format(drill.kind, drill.situation, drill.mode, *counts)
    yield from ("", *_notes_of_drills(report))


def _beyond(report: Report, cause: Cause) -> str:
    level = level_of(cause.example.verdict)
    return "" if report.counts(cause) else f" (of level {level}, not counted at level {report.level})"


def _notes_of_drills(report: Report) -> Iterator[str]:
    for one in report.drilled:
        if one.refusal:
            yield wrapped(f"NOT TRIED ({one.drill.name}): {one.refusal}")
        if one.error:
            yield wrapped(f"ERROR OF THE SUITE ({one.drill.name}): nothing was tried. {one.error}")
        if one.outside:
            beside = ", ".join(one.outside[:3])
            yield f"OUTSIDE ({one.drill.name}): files beside the folder were opened for writing: {beside}"
    left_out, not_possible = (
        sum(getattr(one, name) for one in report.drilled) for name in ("left_out", "not_possible")
    )
    if left_out:
        yield f"left out: {left_out:,} more points at which the same could have happened (--every 1)"
    if not_possible:
        yield f"left out: {not_possible:,} points at which the fault could not be brought about"


def _sum_of_drills(report: Report) -> str:
    drilled = report.drilled
    points, seconds = sum(one.points for one in drilled), report.setup.took_s(drilled)
    bad = sum(found.points for one in drilled for found in one.bad)
    each = f", {seconds / points:.3f} s a point" if points else ""
    return f"{counted(points, 'point')} on real processes, {bad:,} bad; {seconds:.0f} s{each}{_beside(report.setup)}"


def _beside(setup: RecordingSetup) -> str:
    return f" ({setup.side_by_side} at the same time)" if setup.side_by_side > 1 else ""


def _line(result: Result, explored: Explored) -> str:
    totals = explored.totals
    rate = totals.disks / totals.seconds if totals.seconds else 0
    counts = (totals.states, totals.disks, totals.bad, totals.resumes, round(rate))
    return _COLUMNS.format(result.scenario, result.mode, _storage(explored), *map("{:,}".format, counts))


def _storage(explored: Explored) -> str:
    return ", ".join(filter(None, (explored.storage, explored.recorded.special)))


def _notes(report: Report) -> Iterator[str]:
    """What was not seen and what was not tried."""
    for result in report.results:
        where = f"{result.scenario}, {result.mode}"
        if result.refusal:
            yield wrapped(f"NOT EXPLORED ({where}): {result.refusal}")
        if result.error:
            yield wrapped(f"ERROR OF THE SUITE ({where}): nothing was explored. {result.error}")
        if not result.explored:
            continue
        trace = result.explored[0].recorded.trace
        yield from (f"UNSEEN ({where}): {sentence}" for sentence in trace.unseen)
        if trace.outside:
            beside = ", ".join(trace.outside[:3])
            yield f"OUTSIDE ({where}): files beside the folder were opened for writing, and are not explored: {beside}"
        yield from (f"INVALID RESULT ({where}): {one.contradiction}" for one in result.explored if one.contradiction)
    yield from _paths(report)
    totals = report.totals
    stayed = totals.disks - totals.went_on
    if stayed:
        yield f"left out: going on after the resume, on {stayed:,} of {totals.disks:,} disks (--going-on)"
    if totals.left_out:
        yield f"left out: {totals.left_out:,} pairs of lost names"
    explored = [one for result in report.results for one in result.explored]
    late = [f"{one.recorded.scenario}, {_storage(one)}" for one in explored if one.is_cut_short]
    if late:
        yield f"left out: the rest of {'; '.join(late)} (--seconds)"


def _paths(report: Report) -> Iterator[str]:
    """Whether the model allows the recordings."""
    every = [(result, one) for result in report.results for one in result.followed]
    for result, one in every:
        where = ", ".join(filter(None, (result.scenario, result.mode, one.special)))
        if one.not_allowed:
            yield wrapped(f"NO PATH OF THE MODEL ({where}): {one.not_allowed}")
        if one.not_compared:
            yield f"not compared with the model ({where}): {one.not_compared}"
    compared = [one for _, one in every if not one.not_compared]
    paths, seen = sum(not one.not_allowed for one in compared), sum(one.seen for one in compared)
    if compared:
        yield f"the model allows {paths} of {len(compared)} recordings ({seen:,} observations)"
    if paths < len(compared):
        yield "  (A recording that the model does not allow is reported, but not judged.)"


def _replays(report: Report) -> Iterator[str]:
    """What came of the scripts, where they were run."""
    tried = [found for found in report.found if found.replayed]
    if tried:
        same = sum(found.replayed == found.verdict.word for found in tried)
        yield f"{same} of {len(tried)} replay scripts came to the same verdict by themselves"
    for found in tried:
        if found.replayed != found.verdict.word:
            yield f"NOT REPRODUCED: replay-{found.name}.py says {found.replayed}, the exploration {found.verdict.word}"


def _sums(report: Report) -> Iterator[str]:
    totals, seconds = report.totals, max(1e-9, report.setup.took_s(report.results))
    plain = sum(result.unrecorded_s for result in report.results)
    recorded = sum(result.recorded_s for result in report.results if result.unrecorded_s)
    cost = f"; recording took {recorded / plain:.1f} times as long as not recording" if plain else ""
    yield (
        f"{totals.new:,} distinct disks out of {totals.states:,} states, {totals.new_bad:,} bad; {seconds:.0f} s, "
        f"{totals.new / seconds:,.0f} distinct disks judged a second{_beside(report.setup)}"
    )
    again = f"{totals.confirmed:,} shared outcomes were tried again and confirmed"
    yield f"{totals.resumes:,} processes resumed; {again}{cost}"


# -- files ----------------------------------------------------------------------------


def files(report: Report) -> dict[str, str]:
    """The report's files by name."""
    return {
        "crash.html": html_page(report),
        "console.txt": console(report) + "\n",
        "crash.json": json.dumps(as_json(report), indent=1) + "\n",
    }


QUESTION = ("version", "specification", "sources", "implementation", "environment", "level", "asked")
"""What an exploration is about: two in which all of these are equal are about the same."""


def status_of(report: Report, written: Any) -> Status | None:
    """The exit status of a written report, as read from JSON, if it is complete and about the same; else None."""
    if not isinstance(written, dict) or not report.sources:
        return None
    asked = json.loads(json.dumps(as_json(report)))
    is_whole = written.get("interrupted") == "" and written.get("exit", {}).get("status") != Status.OUR_ERROR
    is_same = all(written.get(name) == asked[name] for name in QUESTION)
    return Status(written["exit"]["status"]) if is_whole and is_same else None


def scripts(report: Report) -> dict[str, str]:
    """A replay script for each kind of bad disk, by the name of its file."""
    return {f"replay-{found.name}.py": found.replay for found in report.found}


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain values."""
    setup = report.setup
    return {
        "version": __version__,
        "specification": digests.of_specification(),
        "sources": report.sources,
        "asked": dict(report.asked),
        "implementation": report.implementation.name,
        "environment": report.implementation.environment,
        "level": str(report.level),
        "recorder": {
            "name": setup.recorder.name,
            "says": setup.recorder.says,
            "is_coarse": setup.recorder.is_coarse,
            "unseen": setup.recorder.unseen,
            "unreached": list(setup.unreached),
        },
        "interrupted": setup.interrupted,
        "exit": {"status": int(report.status), "why": report.outcome[1]},
        "causes": [_cause_json(cause, report) for cause in report.causes],
        "side_by_side": setup.side_by_side,
        "totals": asdict(report.totals),
        "recordings": [_recording_json(result) for result in report.results],
        "seconds": round(setup.took_s(report.results) + setup.took_s(report.drilled), 3),
        "drills": [_drilled_json(one, report) for one in report.drilled],
    }


def _verdict_json(verdict: Verdict) -> dict[str, str]:
    return {
        "verdict": verdict.word,
        "clause": verdict.clause,
        "seen": verdict.seen,
        "expected": verdict.expected,
    }


def _cause_json(cause: Cause, report: Report) -> dict[str, Any]:
    example = cause.example
    return {
        **_verdict_json(example.verdict),
        "why": example.why,
        "counts": report.counts(cause),
        "times": cause.ways,
        "where": [failure.where for failure in cause.failures],
        "replay": example.replay,
    }


def _recording_json(result: Result) -> dict[str, Any]:
    ended = {"refusal": result.refusal, "is_blocked": result.is_blocked, "error": result.error}
    if not result.explored:
        return {"scenario": result.scenario, "mode": result.mode, **ended}
    trace = result.explored[0].recorded.trace
    return {
        "scenario": result.scenario,
        "mode": result.mode,
        **ended,
        "effects": len(trace.effects),
        "unseen": list(trace.unseen),
        "outside": list(trace.outside),
        "recorded_s": round(result.recorded_s, 3),
        "unrecorded_s": round(result.unrecorded_s, 3),
        "orders": {"looked_at": result.orders_looked_at, "disorders": [asdict(one) for one in result.disorders]},
        "followed": [asdict(one) for one in result.followed],
        "storages": [
            {
                "storage": _storage(one),
                "totals": asdict(one.totals),
                "is_cut_short": one.is_cut_short,
                "contradiction": one.contradiction,
            }
            for one in result.explored
        ],
        "bad": [
            {
                "name": found.name,
                "storage": found.storage,
                **_verdict_json(found.verdict),
                "missing": list(found.missing),
                "states": found.states,
                "replayed": found.replayed,
                "story": found.text,
            }
            for found in result.found
        ],
    }


def _drilled_json(one: Drilled, report: Report) -> dict[str, Any]:
    plain = ("says", "refusal", "is_blocked", "error", "outside", "points", "went_on", "left_out", "not_possible")
    return {
        **asdict(one.drill),
        **{name: getattr(one, name) for name in plain},
        "seconds": round(one.seconds, 3),
        "bad": [
            {
                "point": bad.point,
                "points": bad.points,
                **_verdict_json(bad.verdict),
                "story": bad.text,
                "replay": report.replay(bad),
            }
            for bad in one.bad
        ],
    }


# -- page -----------------------------------------------------------------------------


def html_page(report: Report) -> str:
    """What was tried on real processes, and each recording's operations with what a death after each of them leaves."""
    status, why = report.outcome
    body: list[Content] = [tag("h1", "Crash exploration ", tag("small", report.implementation.name))]
    body += [tag("p", said, class_="banner") for said in report.setup.sentences()]
    body.append(tag("p", tag("b", f"Exit status {status:d}: {why}.")))
    body.append(cards((f"{number:,}", what) for number, what in _figures(report)))
    body.append(tag("p", f"Failures of clauses above level {report.level} are shown, and not counted.", class_="soft"))
    body.append(tag("p", f"Recorded by {report.setup.recorder.says}.", class_="soft"))
    body += _causes_section(report)
    body += _drills_section(report) if report.drilled else []
    if report.results:
        body += [tag("p", said) for said in _sums(report)]
        body.append(tag("p", _HOW_TO_READ, class_="soft"))
    for result in report.results:
        body += _section(result)
    return page(f"Crash exploration of {report.implementation.name}", body)


_HOW_TO_READ = (
    "A row is an operation, a column a kind of death right after it. A number counts the disks first met there, so "
    "their sum is that of distinct disks. Red cells have bad ones, met first or again."
)


def _figures(report: Report) -> Iterator[tuple[int, str]]:
    totals = report.totals
    yield sum(report.counts(cause) for cause in report.causes), f"causes of failure at level {report.level}"
    if report.results:
        yield totals.new, "distinct disks that a death leaves"
        yield totals.new_bad, "of them bad"
    if report.drilled:
        yield sum(one.points for one in report.drilled), "deaths and failing calls of real processes"
        yield sum(found.points for one in report.drilled for found in one.bad), "of them bad"


def _causes_section(report: Report) -> Iterator[Html]:
    """Each cause with its story and the command that shows it again, under an address of its own."""
    if report.causes:
        yield tag("h2", "Causes", id="causes")
    yield tag("ol", (_cause(number, cause, report) for number, cause in enumerate(report.causes, 1)))


def _cause(number: int, cause: Cause, report: Report) -> Html:
    return tag(
        "li",
        f"{_in_a_line(cause)}{_beyond(report, cause)}",
        folded("what happened", tag("pre", cause.example.story), is_open=number == 1),
        tag("p", "reproduce: ", tag("code", cause.example.replay)),
        id=f"cause-{number}",
    )


def _drills_section(report: Report) -> Iterator[Html]:
    yield tag("h2", "On real processes", id="drills")
    yield tag("p", _sum_of_drills(report))
    yield table(("what", "where", "points", "bad", "seconds"), map(_drilled_row, report.drilled))
    for bad in (bad for one in report.drilled for bad in one.bad):
        head = f"{bad.verdict.word} [{bad.verdict.clause}], {bad.point}, {counted(bad.points, 'point')}"
        yield folded(head, tag("pre", f"{bad.text}\n\n  reproduce: {report.replay(bad)}"), id_=anchor(bad.point))


def _drilled_row(one: Drilled) -> Html:
    drill, bad_points = one.drill, sum(found.points for found in one.bad)
    where = f"{drill.situation}, {drill.mode}" + (f", {drill.ranks} ranks" if drill.ranks > 1 else "")
    bad = tag("td", bad_points, class_=f"number {'bad' if bad_points else 'good'}")
    return row(one.says, where, one.refusal or one.error or one.points, bad, f"{one.seconds:.1f}")


def _section(result: Result) -> Iterator[Html]:
    name = f"{result.scenario}, {result.mode}"
    yield tag("h2", name, id=anchor(name))
    yield from (tag("p", said, class_="banner") for said in (result.refusal, result.error) if said)
    for found in result.found:
        head = f"{found.verdict.word} [{found.verdict.clause}], {found.storage}, {found.states} states"
        yield folded(head, tag("pre", found.text), id_=found.name)
    for own in _by_trace(result.explored):
        special = own[0].recorded.special
        columns = ("", "operation", *(explored.storage for explored in own))
        yield folded(f"operations{special and f': {special}'}", table(columns, _rows(own)))


def _by_trace(explored: Iterable[Explored]) -> list[list[Explored]]:
    """Together what shares its operations."""
    groups: dict[int, list[Explored]] = {}
    for one in explored:
        groups.setdefault(id(one.recorded), []).append(one)
    return list(groups.values())


def _rows(own: Sequence[Explored]) -> Iterator[Html]:
    recorded = own[0].recorded
    trace, steps = recorded.trace, [saved.step for saved in recorded.saves]
    for at, effect in enumerate(trace.effects):
        cells = [explored.cuts.get(at + 1) for explored in own]
        if isinstance(effect, Bytes) and not any(cells):
            continue
        is_mark = isinstance(effect, Mark)
        said = sentence(effect, steps) if isinstance(effect, Mark) else trace.calls[at]
        number = tag("td", at + 1, class_="number")
        yield row(number, str(said or "was there before"), *map(_cell, cells), class_="label" if is_mark else None)


def _cell(cell: tuple[int, int] | None) -> Html:
    if cell is None:
        return tag("td")
    met, bad = cell
    said = f"{met or ''}{f' / {bad} bad' if bad else ''}"
    return tag("td", said, class_=f"number {'bad' if bad else 'good'}")
