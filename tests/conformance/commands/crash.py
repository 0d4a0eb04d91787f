"""`forge-conformance crash`: every disk that a death can leave, deaths and failures of real processes, and the report.

Each recording, a scenario in a mode, is a job of its own, and so is each drill, with a warm server and
a folder of its own, in a process of its own where there are several.  The
folder is in memory where there is room (`/dev/shm`), else where temporary files go.
"""

import argparse
import contextlib
import multiprocessing
import multiprocessing.util
import os
import shlex
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from forge_conformance.commands import options as shared
from forge_conformance.deaths.drills import SITUATIONS, Drill, Drilled
from forge_conformance.deaths.plan import DEATHS_TIER, ERRORS_TIER, DrillSelection, drilled, drills, says
from forge_conformance.disks.explorer import Effort, Totals
from forge_conformance.disks.job import Job, explore
from forge_conformance.disks.replay import outcome
from forge_conformance.disks.result import Found, Result
from forge_conformance.disks.scenarios import SCENARIOS
from forge_conformance.disks.states import KILL
from forge_conformance.judging.judge import CannotJudge
from forge_conformance.judging.verdicts import MODES, Status
from forge_conformance.report import crash as render
from forge_conformance.report import stored
from forge_conformance.report.crash import RecordingSetup, Report
from forge_conformance.runs.group import ALONE
from forge_conformance.runs.machine import MachineLacks
from forge_conformance.runs.pool import done_side_by_side, leave_signals_to_the_command
from forge_conformance.runs.server import Implementation
from forge_conformance.runs.sources import fingerprint
from forge_conformance.runs.workplace import Manager, Place, workplace
from forge_conformance.watch.backends import RECORDERS, Backend
from forge_spec.clauses import Level
from forge_spec.disk import STORAGES

HELP = "resume from every disk that a death can leave; kill real processes and let their calls fail"
TIERS = ("disks", DEATHS_TIER, ERRORS_TIER)
_OUT = Path("reports/crash")
_OUT_OF_POINTS = Path("reports/crash-point")
"""A folder of its own: the command that repeats a failure does not name one."""


@dataclass(frozen=True)
class DrillJob:
    """One kind of fault, in one situation and mode."""

    drill: Drill
    selection: DrillSelection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    shared.add_manager(parser)
    shared.add_level(parser)
    shared.add_claims(parser)
    shared.add_out(parser, f"./{_OUT}; with --point, ./{_OUT_OF_POINTS}")
    shared.add_unless_judged(parser)
    shared.add_jobs(parser, "recordings and drills that are gone through")
    parser.add_argument(
        "--tier",
        action="append",
        choices=TIERS,
        help="disks: resume from every disk that a death may leave; deaths: let real processes die; errors: let calls "
        "of saves and resumes fail and the disk fill; repeatable (all)",
    )
    parser.add_argument(
        "--every",
        type=shared.count,
        default=0,
        metavar="N",
        help="kill or fail at every N-th operation (default: depends on the drill)",
    )
    parser.add_argument("--point", metavar="NAME", help="only this death or failure, as the report names it")
    parser.add_argument("--scenario", action="append", choices=list(SCENARIOS), help="only this scenario; repeatable")
    parser.add_argument(
        "--mode",
        action="append",
        choices=MODES,
        help="only this mode; repeatable (sync and async, where they are claimed)",
    )
    shared.add_storages(parser, KILL)
    parser.add_argument(
        "--recorder", choices=list(RECORDERS), help="how the manager is watched (the best that works here)"
    )
    parser.add_argument(
        "--going-on",
        type=shared.count_or_none,
        default=40,
        metavar="N",
        help="of each recording, continue N of the resumes after a kill (40); a quarter of that after a loss of power, "
        "after a second death, and with several ranks",
    )
    parser.add_argument(
        "--second-deaths",
        type=shared.count_or_none,
        default=2,
        metavar="N",
        help="kill N of the resumed runs of each recording a second time (2)",
    )
    parser.add_argument(
        "--seconds",
        type=shared.count,
        default=600,
        metavar="S",
        help="time limit for each recording under each storage, in seconds (600)",
    )


def run(options: argparse.Namespace) -> int:
    """The exit status, as for `run`; a coarse recorder never makes it 0."""
    shared.claims(options.claims, frozenset())  # a bad one is refused before anything starts
    claims = partial(shared.claims, options.claims)
    manager = Manager(options.impl, options.python, options.timeout, options.import_timeout, options.recorder, claims)
    has_ranks = any(SCENARIOS[name].shape != ALONE for name in options.scenario or SCENARIOS)
    out = options.out or (_OUT_OF_POINTS if options.point else _OUT)
    with_ranks = has_ranks or _tiers(options) != ("disks",)
    with shared.temporary_folder(), workplace(manager, with_ranks) as place:
        implementation = place.server.implementation
        _refuse_unclaimed(options, implementation)
        by_power = any(name != KILL for name in options.storage or ())
        usual = "durable" if by_power else implementation.level
        level = shared.level(usual if options.level is None else options.level)
        jobs: list[Job | DrillJob] = [*_jobs(options, implementation, level), *_drill_jobs(options, implementation)]
        if not jobs:
            raise CannotJudge(_nothing_to_do(options, implementation))
        setup = _setup(jobs, place.recorder, options.n)
        again = shlex.join(_same_manager(options))
        sources = "" if options.python else fingerprint(options.impl)
        report = Report(implementation, level, (), (), again, out, setup, sources, _asked(options, implementation))
        if options.unless_judged:
            status = shared.judged_before(out, "crash.json", partial(render.status_of, report))
            if status is not None:
                return status
        out.mkdir(parents=True, exist_ok=True)
        _say_if_whole(out, jobs, options.point)
        if not options.point:  # this takes seconds; a kill may leave the exploration that is there
            endless = replace(report, setup=replace(setup, interrupted="before its end"))
            shared.begin(render.files(endless), "crash.json", out)
        done, setup = _finished(jobs, options.n, place, setup)
    results = tuple(one for one in done if isinstance(one, Result))
    drilled = tuple(one for one in done if isinstance(one, Drilled))
    report = replace(report, results=results, drilled=drilled, setup=setup)
    scripts = render.scripts(report)
    are_written = shared.write_scripts(scripts, out)
    if options.check_replays and are_written and not setup.interrupted:
        report = _with_replays(report, manager)
    kept = f"{out}/replay-*.py ({len(scripts)})" if scripts and are_written else ""
    status = report.status if are_written else Status.OUR_ERROR
    return shared.publish(render.console(report), render.files(report), out, status, kept)


def _say_if_whole(out: Path, jobs: Sequence["Job | DrillJob"], point: str | None) -> None:
    """An exploration took minutes: nobody loses it to one of less without being told."""
    earlier = stored.read_crash(out)
    if earlier.get("interrupted") or earlier.get("asked", {}).get("point"):
        return
    recorded = {
        (one["scenario"], one["mode"], storage["storage"].partition(",")[0])
        for one in earlier.get("recordings", ())
        for storage in one.get("storages", ())
    }
    tried = {(one["kind"], one["situation"], one["mode"]) for one in earlier.get("drills", ())}
    now = {(job.scenario, job.mode, storage) for job in jobs if isinstance(job, Job) for storage in job.storages}
    now |= {(job.drill.kind, job.drill.situation, job.drill.mode) for job in jobs if isinstance(job, DrillJob)}
    if (point and earlier) or (recorded | tried) - now:
        print(f"forge-conformance: the complete report in {out} is replaced by one that covers less.", file=sys.stderr)


_HOW = ("command", "out", "n", "unless_judged")
"""Options that change nothing of what is explored."""


def _asked(options: argparse.Namespace, implementation: Implementation) -> dict[str, Any]:
    """What decides, besides code and environment, what is explored."""
    chosen = {name: value for name, value in vars(options).items() if name not in _HOW}
    return {**chosen, "capabilities": sorted(implementation.capabilities)}


def _refuse_unclaimed(options: argparse.Namespace, implementation: Implementation) -> None:
    """`CannotJudge` where a mode or a scenario is asked for that the manager does not have."""
    claimed = implementation.capabilities
    for mode in options.mode or ():
        if mode not in claimed:
            modes = ", ".join(implementation.modes)
            raise CannotJudge(f"--mode {mode}: {options.impl} does not claim this mode. It claims {modes}.")
    for name in options.scenario or ():
        missing = sorted(SCENARIOS[name].needs - claimed)
        if missing:
            raise CannotJudge(f"--scenario {name} needs {', '.join(missing)}, which {options.impl} does not claim.")


def _nothing_to_do(options: argparse.Namespace, implementation: Implementation) -> str:
    usual = implementation.usual_modes
    names = [drill.name for drill in drills(TIERS, list(SITUATIONS), usual, implementation.capabilities)]
    if options.point and any(options.point.startswith(f"{name}/") for name in names):
        return f"--tier, --scenario or --mode leaves out --point {options.point}. Use --point without them."
    if options.point:
        return (
            f"--point {options.point}: unknown. Name a point as the report does, by its drill and its place there, for "
            f"example kill/steady/sync/1/7. Drills of this manager: {', '.join(names)}."
        )
    return (
        f"For {', '.join(options.scenario or ['any scenario'])} there is nothing in tier {', '.join(_tiers(options))}."
    )


def _finished(
    jobs: Sequence["Job | DrillJob"], side_by_side: int, place: "Place", setup: RecordingSetup
) -> tuple[list[Result | Drilled], RecordingSetup]:
    """What came of all jobs, or of those until it was interrupted."""
    done: list[Result | Drilled] = []
    try:
        for one in _results(jobs, side_by_side, place):
            done.append(one)
    except KeyboardInterrupt:
        if not done:
            raise
        setup = replace(setup, interrupted=f"after {len(done)} of {len(jobs)} recordings and drills")
    except BrokenProcessPool:
        ended = f"one of its processes ended, after {len(done)} of {len(jobs)} recordings and drills"
        setup = replace(setup, interrupted=ended)
    return done, setup


def _setup(jobs: Sequence["Job | DrillJob"], recorder: Backend, side_by_side: int) -> RecordingSetup:
    """`CannotJudge` where the recorder can say nothing of what is asked for."""
    storages = next((job.storages for job in jobs if isinstance(job, Job)), ())
    unreached = tuple(name for name in storages if name != KILL) if recorder.is_coarse else ()
    if storages and len(unreached) == len(storages):
        raise CannotJudge(
            f"{', '.join(unreached)}: nothing can be explored with {recorder.says}: {recorder.unseen}. "
            f"Ask for --storage {KILL}, or record with another --recorder."
        )
    return RecordingSetup(recorder, unreached, side_by_side=side_by_side)


def _same_manager(options: argparse.Namespace) -> list[str]:
    """The command for another run against the same manager, at a level yet to be said."""
    return ["forge-conformance", "crash", "--impl", options.impl, *shared.unusual(options, {"recorder": None})]


def _tiers(options: argparse.Namespace) -> tuple[str, ...]:
    return tuple(dict.fromkeys(options.tier or TIERS))


def _modes(options: argparse.Namespace, implementation: Implementation) -> list[str]:
    return list(dict.fromkeys(options.mode or implementation.usual_modes))


def _drill_jobs(options: argparse.Namespace, implementation: Implementation) -> Iterator["DrillJob"]:
    modes = _modes(options, implementation)
    situations = options.scenario or list(SITUATIONS)
    selection = DrillSelection(options.every, options.point or "")
    for drill in drills(_tiers(options), situations, modes, implementation.capabilities):
        if selection.point.startswith(f"{drill.name}/") or not selection.point:
            yield DrillJob(drill, selection)


def _jobs(options: argparse.Namespace, implementation: Implementation, level: Level) -> Iterator[Job]:
    if "disks" not in _tiers(options) or options.point:
        return
    chosen = options.storage or ["all" if level >= Level.DURABLE else KILL]
    storages = (KILL, *STORAGES) if "all" in chosen else tuple(dict.fromkeys(chosen))
    for name in options.scenario or SCENARIOS:
        if SCENARIOS[name].needs <= implementation.capabilities:
            effort = Effort(not options.every_write, options.going_on, options.seconds, options.second_deaths)
            effort = effort if SCENARIOS[name].shape == ALONE else effort.reduced
            for mode in _modes(options, implementation):
                yield Job(name, mode, storages, effort)


def _results(jobs: Sequence[Job | DrillJob], processes: int, place: "Place") -> Iterator[Result | Drilled]:
    progress = _Progress(len(jobs))
    try:
        if processes == 1:
            for job in jobs:
                yield progress.shown(_done(job, place))
            return
        begins = (place.manager, place.has_ranks, place.folder.parent)
        for done in done_side_by_side(_done_there, jobs, processes, "spawn", _begin, begins):
            yield progress.shown(done)
    finally:
        progress.end()


def _with_replays(report: Report, manager: Manager) -> Report:
    """The same, with the verdict that each script comes to by itself; those of one recording share its folder."""
    timeout_s = manager.import_timeout_s + 10 * manager.timeout_s

    def check(found: Found) -> Found:
        # one that shows a hang is not given the time that an import may take
        patience_s = 3 * manager.timeout_s if found.verdict.word == "hung" else timeout_s
        return replace(found, replayed=outcome(report.out / f"replay-{found.name}.py", manager.python, patience_s))

    def check_all(result: Result) -> Result:
        return replace(result, found=tuple(map(check, result.found)))

    try:
        with ThreadPoolExecutor(report.setup.side_by_side) as pool:
            return replace(report, results=tuple(pool.map(check_all, report.results)))
    except KeyboardInterrupt:
        return replace(report, setup=replace(report.setup, interrupted="while the replay scripts were checked"))


class _Progress(shared.Progress):
    """Counts disks, deaths and failures."""

    def __init__(self, jobs: int) -> None:
        super().__init__(jobs)
        self._sum = Totals()
        self._points = 0
        self._bad_points = 0

    def shown(self, result: Result | Drilled) -> Result | Drilled:
        """Count a result in."""
        if isinstance(result, Drilled):
            self._points += result.points
            self._bad_points += sum(bad.points for bad in result.bad)
        else:
            for explored in result.explored:
                self._sum.add(explored.totals)
        done = self.done + 1
        filled = 24 * done // self.total
        line = f"[{'#' * filled}{'.' * (24 - filled)}] {done}/{self.total} done"
        for number, bad, what in (
            (self._sum.new, self._sum.new_bad, "disks"),
            (self._points, self._bad_points, "deaths and failures"),
        ):
            line += f", {number:,} {what}" if number else ""
            line += f" ({bad:,} bad)" if bad else ""
        self.show(line)
        return result


_place: Place | Exception | None = None
"""The workplace of a process that is one of several, or why it has none."""


def _done(job: Job | DrillJob, place: Place) -> Result | Drilled:
    """What came of a job; an error of ours costs no more than this one."""
    try:
        return drilled(job.drill, place, job.selection) if isinstance(job, DrillJob) else explore(job, place)
    except MachineLacks:
        raise
    except Exception:
        error = traceback.format_exc()
        if isinstance(job, DrillJob):
            return Drilled(job.drill, says(job.drill), error=error)
        return Result(job.scenario, job.mode, error=error)


def _begin(manager: Manager, has_ranks: bool, base: Path) -> None:
    """In each process that is not alone, once: a workplace below `base`, which ends with the process."""
    global _place
    leave_signals_to_the_command()
    threading.Thread(target=_end_with_the_command, daemon=True).start()
    opened = contextlib.ExitStack()
    multiprocessing.util.Finalize(None, opened.close, exitpriority=1)
    try:
        _place = opened.enter_context(workplace(manager, has_ranks, base))
    except (CannotJudge, MachineLacks) as reason:  # raised here, the pool would be broken and say nothing
        _place = reason


def _end_with_the_command() -> None:
    """A process of a pool would wait for ever for one that was killed; its servers end with it."""
    command = multiprocessing.parent_process()
    assert command is not None, "this is a process of a pool"
    command.join()
    os._exit(Status.OUR_ERROR)


def _done_there(job: Job | DrillJob) -> Result | Drilled:
    assert _place is not None, "a process begins before it does anything"
    if isinstance(_place, Exception):
        raise _place
    return _done(job, _place)
