"""What a crash exploration found, for a terminal, for programs, and as a page with the operations and the cuts."""

import html
import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forge_conformance import __version__
from forge_conformance.harness.server import Implementation
from forge_spec import BY_SLUG
from forge_spec.clauses import Level
from forge_spec.disk import Bytes, Mark

from .drills import Bad, Drilled
from .explorer import Explored, Totals
from .order import Disorder
from .path import Followed
from .recorders import Kind
from .story import sentence
from .verdicts import Verdict

_SHOWN = 3
_COLUMNS = "{:<14}{:<7}{:<32}{:>9}{:>8}{:>6}{:>9}{:>10}"
_DRILLS = "{:<12}{:<12}{:<7}{:>6}{:>8}{:>6}{:>9}{:>7}{:>9}"


@dataclass(frozen=True)
class Found:
    """A way in which disks are bad, with its simplest example."""

    name: str
    storage: str
    verdict: Verdict
    states: int
    missing: tuple[str, ...]
    text: str
    replay: str
    replayed: str = ""
    """The verdict that the replay script came to by itself; "" if it was not run."""


@dataclass(frozen=True)
class Result:
    """Everything about one recording."""

    scenario: str
    mode: str
    explored: tuple[Explored, ...] = ()
    found: tuple[Found, ...] = ()
    disorders: tuple[Disorder, ...] = ()
    orders_looked_at: int = 0
    followed: tuple[Followed, ...] = ()
    """What the model says of the recording, and of its other orders."""
    recorded_s: float = 0
    unrecorded_s: float = 0
    seconds: float = 0
    refusal: str = ""
    """Why nothing could be explored; "" if something was."""


def counted(results: Sequence[Result], level: Level, tried: Sequence[Drilled] = ()) -> list[Verdict]:
    """What counts against a manager at this level."""
    disordered = Verdict("disorder", "durable.order")
    verdicts = [found.verdict for result in results for found in result.found]
    verdicts += [disordered for result in results for _ in result.disorders]
    verdicts += [bad.verdict for drilled in tried for bad in drilled.bad]
    return [verdict for verdict in verdicts if _level(verdict.clause) <= level]


def ways(results: Sequence[Result], tried: Sequence[Drilled]) -> int:
    """In how many ways something is bad, whether it counts or not."""
    of_disks = sum(len(result.found) + len(result.disorders) for result in results)
    return of_disks + sum(len(drilled.bad) for drilled in tried)


def _level(clause: str) -> Level:
    return BY_SLUG[clause].level


@dataclass(frozen=True)
class Means:
    """How it was recorded, and what that left out."""

    recorder: Kind
    unreached: tuple[str, ...] = ()
    """Storages that were asked for and that this recorder can say nothing about."""
    interrupted: str = ""
    """When it was, in words; "" if it came to its end."""
    side_by_side: int = 1
    """Recordings and drills that were gone through at once."""

    def took_s(self, jobs: Sequence[Result] | Sequence[Drilled]) -> float:
        """How long all of these took, so many of them side by side."""
        return sum(job.seconds for job in jobs) / max(1, min(self.side_by_side, len(jobs)))

    def sentences(self) -> Iterator[str]:
        """What nobody may overlook; nothing after a recorder that sees everything and came to its end."""
        if self.interrupted:
            yield f"PARTIAL: interrupted {self.interrupted}."
        if self.recorder.is_coarse:
            yield f"UNSEEN: {self.recorder.unseen}."
            yield f"UNREACHED: {', '.join((*self.unreached, 'durable.order'))}, and every death that nobody saw."


def console(
    implementation: Implementation,
    level: Level,
    results: Sequence[Result],
    tried: Sequence[Drilled],
    again: str,
    out: Path,
    means: Means,
) -> str:
    """A line for each recording and storage and for each drill, what is bad by clause, the simplest stories, the sums.

    `again` is the command that runs against the same manager again.
    """
    lines = [f"crash exploration of {implementation.name}, level {level}; recorded by {means.recorder.says}"]
    lines += [*(textwrap.fill(said, 110, subsequent_indent="    ") for said in means.sentences()), ""]
    if results:
        lines += _of_disks(level, results, out)
    if tried:
        lines += _in_earnest(level, tried, again, out)
    sums = [*_replays(results), _sum(results, means)] if results else []
    return "\n".join([*lines, "", *sums, *([_sum_in_earnest(tried, means)] if tried else [])])


def _of_disks(level: Level, results: Sequence[Result], out: Path) -> list[str]:
    lines: list[str] = []
    head = ("scenario", "mode", "storage", "states", "disks", "bad", "resumes", "a second")
    lines.append(_COLUMNS.format(*head))
    for result in results:
        lines += [_line(result, explored) for explored in result.explored]
    lines += ["", *_notes(results), *_by_clause(results, level)]
    every = [found for result in results for found in result.found]
    shown = list({(found.verdict.word, found.verdict.clause): found for found in reversed(every)}.values())[::-1]
    for found in shown[:_SHOWN]:
        lines += ["", found.text, "", f"  replay: python {out}/replay-{found.name}.py"]
    if len(every) > _SHOWN:
        lines += ["", f"{len(every)} ways to be bad in all, each told in {out}/crash.html"]
    return [*lines, ""]


def _in_earnest(level: Level, tried: Sequence[Drilled], again: str, out: Path) -> list[str]:
    """A line for each drill, what is bad, and the simplest stories."""
    lines = [_DRILLS.format("in earnest", "situation", "mode", "ranks", "points", "bad", "went on", "s", "s/point")]
    for drilled in tried:
        drill, bad = drilled.drill, sum(one.points for one in drilled.bad)
        each = f"{drilled.seconds / drilled.points:.3f}" if drilled.points else ""
        counts = (drill.ranks, drilled.points, bad, drilled.went_on, round(drilled.seconds), each)
        lines.append(_DRILLS.format(drill.kind, drill.situation, drill.mode, *counts))
    lines += ["", *_notes_in_earnest(tried)]
    found = [(drilled, bad) for drilled in tried for bad in drilled.bad]
    lines += [_fell(*one, level) for one in found]
    shown = list({(one.verdict.word, one.verdict.clause): one for _, one in reversed(found)}.values())[::-1]
    for one in shown[:_SHOWN]:
        lines += ["", one.text, "", f"  replay: {replayed(again, one)}"]
    if len(found) > _SHOWN:
        lines += ["", f"{len(found)} ways to be bad in earnest, each told in {out}/crash.html"]
    return lines


def replayed(again: str, bad: Bad) -> str:
    """The command that does one point again, at the level of what fell."""
    return f"{again} --level {_level(bad.verdict.clause)} --point {bad.point}"


def _fell(drilled: Drilled, bad: Bad, level: Level) -> str:
    clause = bad.verdict.clause
    beyond = "" if _level(clause) <= level else f" (of level {_level(clause)}, not counted at level {level})"
    return f"FELL {clause}: {bad.verdict.word}, {_points(bad.points)} of {drilled.drill.name}{beyond}"


def _notes_in_earnest(tried: Sequence[Drilled]) -> Iterator[str]:
    for one in tried:
        if one.refusal:
            yield textwrap.fill(f"NOT TRIED ({one.drill.name}): {one.refusal}", 110, subsequent_indent="    ")
        if one.outside:
            beside = ", ".join(one.outside[:3])
            yield f"OUTSIDE ({one.drill.name}): files beside the folder were opened for writing: {beside}"
    left_out = sum(one.left_out for one in tried)
    if left_out:
        yield f"left out: {left_out:,} more points at which the same could have happened (--every 1)"
    void = sum(one.void for one in tried)
    if void:
        yield f"left out: {void:,} points at which nothing happened when it came to it"


def _sum_in_earnest(tried: Sequence[Drilled], means: Means) -> str:
    points, seconds = sum(one.points for one in tried), means.took_s(tried)
    bad = sum(found.points for one in tried for found in one.bad)
    each = f", {seconds / points:.3f} s a point" if points else ""
    return f"{_points(points)} in earnest, {bad:,} bad; {seconds:.0f} s{each}{_beside(means)}"


def _beside(means: Means) -> str:
    return f" ({means.side_by_side} side by side)" if means.side_by_side > 1 else ""


def _points(count: int) -> str:
    return f"{count:,} point{'' if count == 1 else 's'}"


def _line(result: Result, explored: Explored) -> str:
    totals = explored.totals
    rate = totals.disks / totals.seconds if totals.seconds else 0
    counts = (totals.states, totals.disks, totals.bad, totals.resumes, round(rate))
    return _COLUMNS.format(result.scenario, result.mode, _storage(explored), *map("{:,}".format, counts))


def _storage(explored: Explored) -> str:
    return ", ".join(filter(None, (explored.storage, explored.recorded.special)))


def _notes(results: Sequence[Result]) -> Iterator[str]:
    """What was not seen and what was not tried."""
    for result in results:
        where = f"{result.scenario}, {result.mode}"
        if result.refusal:
            yield textwrap.fill(f"NOT EXPLORED ({where}): {result.refusal}", 110, subsequent_indent="    ")
            continue
        trace = result.explored[0].recorded.trace
        yield from (f"UNSEEN ({where}): {sentence}" for sentence in trace.unseen)
        if trace.outside:
            beside = ", ".join(trace.outside[:3])
            yield f"OUTSIDE ({where}): files beside the folder were opened for writing, and are not explored: {beside}"
        yield from (f"WORTHLESS ({where}): {one.contradiction}" for one in result.explored if one.contradiction)
    yield from _paths(results)
    totals = _totals(results)
    stayed = totals.disks - totals.went_on
    if stayed:
        yield f"left out: going on after the resume, on {stayed:,} of {totals.disks:,} disks (--going-on)"
    if totals.left_out:
        yield f"left out: {totals.left_out:,} pairs of lost names"
    late = [
        f"{one.recorded.scenario}, {_storage(one)}" for result in results for one in result.explored if one.is_cut_short
    ]
    if late:
        yield f"left out: the rest of {'; '.join(late)} (--seconds)"


def _paths(results: Sequence[Result]) -> Iterator[str]:
    """Whether the recordings are paths of the model."""
    every = [(result, one) for result in results for one in result.followed]
    for result, one in every:
        where = ", ".join(filter(None, (result.scenario, result.mode, one.special)))
        if one.strange:
            yield textwrap.fill(f"NO PATH OF THE MODEL ({where}): {one.strange}", 110, subsequent_indent="    ")
        if one.untold:
            yield f"not followed by the model ({where}): {one.untold}"
    told = [one for _, one in every if not one.untold]
    paths, seen = sum(not one.strange for one in told), sum(one.seen for one in told)
    if told:
        yield f"{paths} of {len(told)} recordings are paths of the model ({seen:,} things seen)"
    if paths < len(told):
        yield "  (what is no path is a question and no verdict: the model is one protocol of those that keep the rules)"


def _replays(results: Sequence[Result]) -> Iterator[str]:
    """What came of the scripts, where they were run."""
    tried = [found for result in results for found in result.found if found.replayed]
    if tried:
        same = sum(found.replayed == found.verdict.word for found in tried)
        yield f"{same} of {len(tried)} replay scripts came to the same verdict by themselves"
    for found in tried:
        if found.replayed != found.verdict.word:
            yield f"NOT REPRODUCED: replay-{found.name}.py says {found.replayed}, the exploration {found.verdict.word}"


def _totals(results: Sequence[Result]) -> Totals:
    totals = Totals()
    for result in results:
        for explored in result.explored:
            totals.add(explored.totals)
    return totals


def _by_clause(results: Sequence[Result], level: Level) -> Iterator[str]:
    fallen = Counter(found.verdict.clause for result in results for found in result.found)
    fallen.update("durable.order" for result in results for _ in result.disorders)
    for clause, count in sorted(fallen.items()):
        words = sorted({f.verdict.word for r in results for f in r.found if f.verdict.clause == clause})
        beyond = "" if _level(clause) <= level else f" (of level {_level(clause)}, not counted at level {level})"
        ways = f"{count} way{'s' if count > 1 else ''}"
        yield f"FELL {clause}: {ways}{': ' + ', '.join(words) if words else ''}{beyond}"
    for result in results:
        if result.disorders:
            yield f"  durable.order, {result.scenario}, {result.mode}: {result.disorders[0].what}"


def _sum(results: Sequence[Result], means: Means) -> str:
    totals, seconds = _totals(results), max(1e-9, means.took_s(results))
    plain = sum(result.unrecorded_s for result in results)
    recorded = sum(result.recorded_s for result in results if result.unrecorded_s)
    cost = f"; recording took {recorded / plain:.1f} times as long as not recording" if plain else ""
    return (
        f"{totals.new:,} distinct disks out of {totals.states:,} states, {totals.new_bad:,} bad; {totals.resumes:,} "
        f"processes resumed, {totals.confirmed:,} shared outcomes were tried again and confirmed; {seconds:.0f} s, "
        f"{totals.new / seconds:,.0f} distinct disks judged a second{_beside(means)}{cost}"
    )


def write(
    implementation: Implementation,
    level: Level,
    results: Sequence[Result],
    tried: Sequence[Drilled],
    again: str,
    out: Path,
    means: Means,
) -> list[str]:
    """The report's files, and a replay script for each way of a disk to be bad; their paths."""
    written = _json(implementation, level, results, means) | {
        "seconds": round(means.took_s(results) + means.took_s(tried), 3),
        "in_earnest": [_drilled_json(one, again) for one in tried],
    }
    (out / "crash.json").write_text(json.dumps(written, indent=1) + "\n")
    (out / "crash.html").write_text(page(implementation, level, results, tried, again, means))
    for result in results:
        for found in result.found:
            (out / f"replay-{found.name}.py").write_text(found.replay)
    replays = sum(len(result.found) for result in results)
    scripts = [f"{out}/replay-*.py ({replays})"] if replays else []
    return [f"{out}/crash.json", f"{out}/crash.html", *scripts]


def _json(implementation: Implementation, level: Level, results: Sequence[Result], means: Means) -> dict[str, Any]:
    return {
        "version": __version__,
        "implementation": implementation.name,
        "environment": implementation.environment,
        "level": str(level),
        "recorder": {
            "name": means.recorder.name,
            "says": means.recorder.says,
            "is_coarse": means.recorder.is_coarse,
            "unseen": means.recorder.unseen,
            "unreached": list(means.unreached),
        },
        "interrupted": means.interrupted,
        "side_by_side": means.side_by_side,
        "totals": asdict(_totals(results)),
        "recordings": [_recording_json(result) for result in results],
    }


def _recording_json(result: Result) -> dict[str, Any]:
    if result.refusal:
        return {"scenario": result.scenario, "mode": result.mode, "refusal": result.refusal}
    trace = result.explored[0].recorded.trace
    return {
        "scenario": result.scenario,
        "mode": result.mode,
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
                "verdict": found.verdict.word,
                "clause": found.verdict.clause,
                "seen": found.verdict.seen,
                "expected": found.verdict.expected,
                "missing": list(found.missing),
                "states": found.states,
                "replayed": found.replayed,
                "story": found.text,
            }
            for found in result.found
        ],
    }


def _drilled_json(one: Drilled, again: str) -> dict[str, Any]:
    return {
        **asdict(one.drill),
        "says": one.says,
        "refusal": one.refusal,
        "outside": list(one.outside),
        "points": one.points,
        "went_on": one.went_on,
        "left_out": one.left_out,
        "void": one.void,
        "seconds": round(one.seconds, 3),
        "bad": [
            {
                "point": bad.point,
                "points": bad.points,
                "verdict": bad.verdict.word,
                "clause": bad.verdict.clause,
                "seen": bad.verdict.seen,
                "expected": bad.verdict.expected,
                "story": bad.text,
                "replay": replayed(again, bad),
            }
            for bad in one.bad
        ],
    }


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; } td, th { padding: 0 .7rem 0 0; text-align: left; white-space: nowrap; }
td.n { text-align: right; color: #888; } tr.mark td { color: #06c; font-weight: 600; }
td.good { background: #bfe5c4; } td.bad { background: #f0a8a0; } td.cut { text-align: right; min-width: 4.5rem; }
pre { background: #f6f6f4; padding: 1rem; overflow-x: auto; } details { margin: .6rem 0; }
"""


def page(
    implementation: Implementation,
    level: Level,
    results: Sequence[Result],
    tried: Sequence[Drilled],
    again: str,
    means: Means,
) -> str:
    """One self-contained HTML page: what was tried in earnest, and each recording's operations, with what a death
    after each of them leaves."""
    body = [f"<h1>Crash exploration of {html.escape(implementation.name)}</h1>"]
    body.append(f"<p>Judged at level {level}: what fell by clauses above it is told here, and not counted.</p>")
    body.append(f"<p>Recorded by {html.escape(means.recorder.says)}.</p>")
    body += [f"<p><b>{html.escape(said)}</b></p>" for said in means.sentences()]
    body += _tried_section(tried, again, means) if tried else []
    if results:
        body += [f"<p>{html.escape(_sum(results, means))}</p>"]
        body.append(
            "<p>A row is an operation, a column a kind of death right after it. A number counts the disks first met "
            "there, so their sum is that of distinct disks; red cells have bad ones, met first or again.</p>"
        )
    for result in results:
        body += _section(result) if result.explored else [f"<p>{html.escape(result.refusal)}</p>"]
    head = f"<!doctype html><meta charset=utf-8><title>Crash exploration</title><style>{_STYLE}</style>"
    return head + "\n".join(body) + "\n"


def _tried_section(tried: Sequence[Drilled], again: str, means: Means) -> Iterator[str]:
    yield f"<h2>In earnest</h2><p>{html.escape(_sum_in_earnest(tried, means))}</p><table>"
    yield "<tr><th>what</th><th>where</th><th>points</th><th>bad</th><th>seconds</th></tr>"
    for one in tried:
        drill, bad = one.drill, sum(found.points for found in one.bad)
        where = f"{drill.situation}, {drill.mode}" + (f", {drill.ranks} ranks" if drill.ranks > 1 else "")
        cells = (one.says, where, one.refusal or one.points, bad, f"{one.seconds:.1f}")
        css = ("", "", "", f' class="{"bad" if bad else "good"}"', "")
        yield (
            "<tr>"
            + "".join(f"<td{c}>{html.escape(str(cell))}</td>" for c, cell in zip(css, cells, strict=True))
            + "</tr>"
        )
    yield "</table>"
    for one in tried:
        for found in one.bad:
            head = f"{found.verdict.word} [{found.verdict.clause}], {found.point}, {_points(found.points)}"
            text = f"{found.text}\n\n  replay: {replayed(again, found)}"
            yield f"<details open><summary>{html.escape(head)}</summary><pre>{html.escape(text)}</pre></details>"


def _section(result: Result) -> Iterator[str]:
    yield f"<h2>{html.escape(result.scenario)}, {html.escape(result.mode)}</h2>"
    for found in result.found:
        head = f"{found.verdict.word} [{found.verdict.clause}], {found.storage}, {found.states} states"
        yield f"<details open><summary>{html.escape(head)}</summary><pre>{html.escape(found.text)}</pre></details>"
    for own in _by_trace(result.explored):
        names = "".join(f"<th>{html.escape(explored.storage)}</th>" for explored in own)
        special = own[0].recorded.special
        yield f"<details><summary>operations{special and ': ' + html.escape(special)}</summary>"
        yield f"<table><tr><th></th><th>operation</th>{names}</tr>"
        yield from _rows(own)
        yield "</table></details>"


def _by_trace(explored: Iterable[Explored]) -> list[list[Explored]]:
    """Together what shares its operations."""
    groups: dict[int, list[Explored]] = {}
    for one in explored:
        groups.setdefault(id(one.recorded), []).append(one)
    return list(groups.values())


def _rows(own: Sequence[Explored]) -> Iterator[str]:
    recorded = own[0].recorded
    trace, steps = recorded.trace, [saved.step for saved in recorded.saves]
    for at, effect in enumerate(trace.effects):
        cells = [explored.cuts.get(at + 1) for explored in own]
        if isinstance(effect, Bytes) and not any(cells):
            continue
        is_mark = isinstance(effect, Mark)
        said = sentence(effect, steps) if isinstance(effect, Mark) else trace.calls[at]
        shown = "".join(_cell(cell) for cell in cells)
        css = " class=mark" if is_mark else ""
        yield f"<tr{css}><td class=n>{at}</td><td>{html.escape(str(said or 'was there before'))}</td>{shown}</tr>"


def _cell(cell: tuple[int, int] | None) -> str:
    if cell is None:
        return "<td></td>"
    met, bad = cell
    return f'<td class="cut {"bad" if bad else "good"}">{met or ""}{f" / {bad} bad" if bad else ""}</td>'
