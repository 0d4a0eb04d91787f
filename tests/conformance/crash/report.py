"""What a crash exploration found, for a terminal, for programs, and as a page with the operations and the cuts."""

import html
import json
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forge_conformance import __version__
from forge_conformance.harness.server import Implementation
from forge_spec import BY_SLUG
from forge_spec.clauses import Level
from forge_spec.disk import Bytes, Mark

from .explorer import Explored, Totals
from .order import Disorder
from .recorders import Kind
from .verdicts import Verdict

_SHOWN = 3
_COLUMNS = "{:<12}{:<7}{:<15}{:>9}{:>8}{:>6}{:>9}{:>10}"


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
    recorded_s: float = 0
    unrecorded_s: float = 0
    seconds: float = 0
    refusal: str = ""
    """Why nothing could be explored; "" if something was."""


def counted(results: Sequence[Result], level: Level) -> list[Found]:
    """What counts against a manager at this level."""
    return [found for result in results for found in result.found if _level(found.verdict.clause) <= level] + [
        Found("", "posix-strict", Verdict("disorder", "durable.order"), 1, (), disorder.what, "")
        for result in results
        for disorder in result.disorders
        if level >= Level.DURABLE
    ]


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

    def sentences(self) -> Iterator[str]:
        """What nobody may overlook; nothing after a recorder that sees everything and came to its end."""
        if self.interrupted:
            yield f"PARTIAL: interrupted {self.interrupted}."
        if self.recorder.is_coarse:
            yield f"UNSEEN: {self.recorder.unseen}."
            yield f"UNREACHED: {', '.join((*self.unreached, 'durable.order'))}, and every death that nobody saw."


def console(
    implementation: Implementation, level: Level, results: Sequence[Result], out: Path, seconds: float, means: Means
) -> str:
    """A line for each recording and storage, what is bad by clause, the simplest stories, and the sums."""
    lines = [f"crash exploration of {implementation.name}, level {level}; recorded by {means.recorder.says}"]
    lines += [*(textwrap.fill(said, 110, subsequent_indent="    ") for said in means.sentences()), ""]
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
    return "\n".join([*lines, "", *_replays(results), _sum(results, seconds)])


def _line(result: Result, explored: Explored) -> str:
    totals = explored.totals
    rate = totals.disks / totals.seconds if totals.seconds else 0
    counts = (totals.states, totals.disks, totals.bad, totals.resumes, round(rate))
    return _COLUMNS.format(result.scenario, result.mode, _storage(result, explored), *map("{:,}".format, counts))


def _storage(result: Result, explored: Explored) -> str:
    return explored.storage if explored.recorded is result.explored[0].recorded else "second death"


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
            yield f"OUTSIDE ({where}): files beside the folder were opened for writing: {', '.join(trace.outside[:3])}"
        yield from (f"WORTHLESS ({where}): {one.contradiction}" for one in result.explored if one.contradiction)
    totals = _totals(results)
    stayed = totals.disks - totals.went_on
    if stayed:
        yield f"left out: going on after the resume, on {stayed:,} of {totals.disks:,} disks (--going-on)"
    if totals.left_out:
        yield f"left out: {totals.left_out:,} pairs of lost names"
    late = [
        f"{one.recorded.scenario}, {one.storage}" for result in results for one in result.explored if one.is_cut_short
    ]
    if late:
        yield f"left out: the rest of {'; '.join(late)} (--seconds)"


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


def _sum(results: Sequence[Result], seconds: float) -> str:
    totals = _totals(results)
    plain = sum(result.unrecorded_s for result in results)
    recorded = sum(result.recorded_s for result in results if result.unrecorded_s)
    cost = f"; recording took {recorded / plain:.1f} times as long as not recording" if plain else ""
    return (
        f"{totals.new:,} distinct disks out of {totals.states:,} states, {totals.bad:,} bad; {totals.resumes:,} "
        f"processes resumed, {totals.confirmed:,} shared outcomes were tried again and confirmed; {seconds:.0f} s, "
        f"{totals.disks / seconds:,.0f} disks judged a second{cost}"
    )


def write(
    implementation: Implementation, level: Level, results: Sequence[Result], out: Path, seconds: float, means: Means
) -> list[str]:
    """The report's files, and a replay script for each way to be bad; their paths."""
    (out / "crash.json").write_text(json.dumps(_json(implementation, level, results, seconds, means), indent=1) + "\n")
    (out / "crash.html").write_text(page(implementation, results, means))
    for result in results:
        for found in result.found:
            (out / f"replay-{found.name}.py").write_text(found.replay)
    replays = sum(len(result.found) for result in results)
    scripts = [f"{out}/replay-*.py ({replays})"] if replays else []
    return [f"{out}/crash.json", f"{out}/crash.html", *scripts]


def _json(
    implementation: Implementation, level: Level, results: Sequence[Result], seconds: float, means: Means
) -> dict[str, Any]:
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
        "seconds": round(seconds, 3),
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
        "storages": [
            {
                "storage": _storage(result, one),
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


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; } td, th { padding: 0 .7rem 0 0; text-align: left; white-space: nowrap; }
td.n { text-align: right; color: #888; } tr.mark td { color: #06c; font-weight: 600; }
td.good { background: #bfe5c4; } td.bad { background: #f0a8a0; } td.cut { text-align: right; min-width: 4.5rem; }
pre { background: #f6f6f4; padding: 1rem; overflow-x: auto; } details { margin: .6rem 0; }
"""


def page(implementation: Implementation, results: Sequence[Result], means: Means) -> str:
    """One self-contained HTML page: each recording's operations, with what a death after each of them leaves."""
    body = [f"<h1>Crash exploration of {html.escape(implementation.name)}</h1>"]
    body += [f"<p>{html.escape(_sum(results, max(1e-9, sum(result.seconds for result in results))))}</p>"]
    body.append(f"<p>Recorded by {html.escape(means.recorder.says)}.</p>")
    body += [f"<p><b>{html.escape(said)}</b></p>" for said in means.sentences()]
    body.append("<p>A cell counts the disks first met if death comes after the operation; red: some are bad.</p>")
    for result in results:
        body += _section(result) if result.explored else [f"<p>{html.escape(result.refusal)}</p>"]
    head = f"<!doctype html><meta charset=utf-8><title>Crash exploration</title><style>{_STYLE}</style>"
    return head + "\n".join(body) + "\n"


def _section(result: Result) -> Iterator[str]:
    yield f"<h2>{html.escape(result.scenario)}, {html.escape(result.mode)}</h2>"
    for found in result.found:
        head = f"{found.verdict.word} [{found.verdict.clause}], {found.storage}, {found.states} states"
        yield f"<details open><summary>{html.escape(head)}</summary><pre>{html.escape(found.text)}</pre></details>"
    own = [explored for explored in result.explored if explored.recorded is result.explored[0].recorded]
    names = "".join(f"<th>{html.escape(explored.storage)}</th>" for explored in own)
    yield f"<details><summary>operations</summary><table><tr><th></th><th>operation</th>{names}</tr>"
    yield from _rows(own)
    yield "</table></details>"


def _rows(own: Sequence[Explored]) -> Iterator[str]:
    recorded = own[0].recorded
    trace, saves = recorded.trace, recorded.saves
    for at, effect in enumerate(trace.effects):
        cells = [explored.cuts.get(at + 1) for explored in own]
        if isinstance(effect, Bytes) and not any(cells):
            continue
        is_mark = isinstance(effect, Mark)
        said = f"save of step {saves[effect.save].step}: {effect.word}" if isinstance(effect, Mark) else trace.calls[at]
        shown = "".join(_cell(cell) for cell in cells)
        css = " class=mark" if is_mark else ""
        yield f"<tr{css}><td class=n>{at}</td><td>{html.escape(str(said or 'was there before'))}</td>{shown}</tr>"


def _cell(cell: tuple[int, int] | None) -> str:
    if cell is None:
        return "<td></td>"
    met, bad = cell
    return f'<td class="cut {"bad" if bad else "good"}">{met or ""}{f" / {bad} bad" if bad else ""}</td>'
