"""`forge-conformance crash`: record a manager, visit every disk that its death can leave, and report.

Each recording, a scenario in a mode, is a job of its own with a warm server and
a folder of its own, in a process of its own where there are several.  The
folder is in memory where there is room (`/dev/shm`), else where temporary files go.
"""

import argparse
import contextlib
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forge_conformance.harness.scenario import Timeline, kinds_claimed
from forge_conformance.harness.server import CannotJudge, Implementation, Server
from forge_conformance.harness.worker import ManagerFault, Unsupported
from forge_conformance.report.verdicts import Status
from forge_spec.clauses import Level
from forge_spec.disk import STORAGES

from . import report
from .explorer import Effort, Exploration, Explored, Totals
from .order import disorders
from .recorders import RECORDERS, Kind, choose
from .recording import Recorded, Recording
from .replay import outcome, script
from .report import Found, Result
from .resume import Landing, Resumer
from .scenarios import SCENARIOS
from .story import disk_of, shrink, tell
from .trace import Disk
from .verdicts import verdict_of

KILL = "kill"
_ROOM_BYTES = 1 << 30


@dataclass(frozen=True)
class Manager:
    """How to start what is explored; see `Server`."""

    impl: str
    python: str | None = None
    timeout_s: float = 20
    import_timeout_s: float = 120
    recorder: str | None = None
    """One of `RECORDERS`; None for the best that works."""


@dataclass(frozen=True)
class Job:
    """One recording and what is asked of it."""

    manager: Manager
    scenario: str
    mode: str
    storages: tuple[str, ...]
    effort: Effort


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command, besides those that it shares with others."""
    names = ", ".join((KILL, *STORAGES))
    parser.add_argument("--scenario", action="append", choices=list(SCENARIOS), help="only this one; repeatable")
    parser.add_argument("--mode", choices=["sync", "async", "pinned"], help="only this one (all that are claimed)")
    parser.add_argument(
        "--storage",
        action="append",
        choices=[KILL, *STORAGES, "all"],
        help=f"what may be lost: {names}; repeatable (kill, and at level durable all of them)",
    )
    parser.add_argument(
        "--recorder", choices=list(RECORDERS), help="how the manager is watched (the best that works here)"
    )
    parser.add_argument("--every-write", action="store_true", help="do not leave out the middle of bursts of writes")
    parser.add_argument(
        "--going-on", type=int, default=40, metavar="N", help="runs to go on with after a resume, per storage (40)"
    )
    parser.add_argument(
        "--second-deaths",
        type=int,
        default=2,
        metavar="N",
        help="resumed runs that are killed again, per recording (2)",
    )
    parser.add_argument(
        "--seconds", type=float, default=600, metavar="S", help="time for one recording under one storage (600)"
    )
    parser.add_argument(
        "--check-replays", action="store_true", help="run each replay script alone and compare its verdict (s each)"
    )


def run(options: argparse.Namespace, level_named: Any) -> int:
    """The exit status, as for `run`; a coarse recorder never makes it 0."""
    begun = time.perf_counter()
    manager = Manager(options.impl, options.python, options.timeout, options.import_timeout, options.recorder)
    with workplace(manager) as place:
        implementation = place.server.implementation
        level: Level = level_named(options.level or implementation.level)
        jobs = list(_jobs(options, manager, implementation, level))
        if not jobs:
            raise CannotJudge(f"{options.impl} does not claim what the scenarios that were asked for need.")
        means = _means(jobs, place.recorder)
        out = options.out or Path("reports") / "crash"
        out.mkdir(parents=True, exist_ok=True)
        results, means = _explored(jobs, options.n, place, means)
    seconds = time.perf_counter() - begun
    written = report.write(implementation, level, results, out, seconds, means)
    if options.check_replays and not means.interrupted:
        results, means = _with_replays(results, out, manager, options.n, means)
        report.write(implementation, level, results, out, seconds, means)
    print(report.console(implementation, level, results, out, seconds, means))
    print(f"written: {', '.join(written)}")
    return _status(results, level, means)


def _status(results: Sequence[Result], level: Level, means: report.Means) -> Status:
    found = [one for result in results for one in result.found]
    is_contradicted = any(explored.contradiction for result in results for explored in result.explored)
    if means.interrupted or is_contradicted or any(one.replayed not in ("", one.verdict.word) for one in found):
        return Status.OUR_ERROR
    if report.counted(results, level):
        return Status.FAILED
    is_whole = not means.recorder.is_coarse and not any(result.refusal for result in results)
    return Status.PASSED if is_whole else Status.NOTHING_JUDGED


def _explored(
    jobs: Sequence[Job], side_by_side: int, place: "Place", means: report.Means
) -> tuple[list[Result], report.Means]:
    """What was explored, all of it or until it was interrupted."""
    results: list[Result] = []
    try:
        for result in _results(jobs, side_by_side, place):
            results.append(result)
    except KeyboardInterrupt:
        if not results:
            raise
        means = replace(means, interrupted=f"after {len(results)} of {len(jobs)} recordings")
    return results, means


def _means(jobs: Sequence[Job], recorder: Kind) -> report.Means:
    """`CannotJudge` where the recorder can say nothing of what is asked for."""
    storages = jobs[0].storages
    unreached = tuple(name for name in storages if name != KILL) if recorder.is_coarse else ()
    if len(unreached) == len(storages):
        raise CannotJudge(
            f"{', '.join(unreached)}: nothing can be said with {recorder.says}: {recorder.unseen}. Ask for --storage "
            f"{KILL}, or record with another --recorder."
        )
    return report.Means(recorder, unreached)


def _jobs(options: argparse.Namespace, manager: Manager, implementation: Implementation, level: Level) -> Iterator[Job]:
    claimed = [mode for mode in ("sync", "async") if mode in implementation.capabilities]
    chosen = options.storage or ["all" if level >= Level.DURABLE else KILL]
    storages = (KILL, *STORAGES) if "all" in chosen else tuple(dict.fromkeys(chosen))
    effort = Effort(not options.every_write, options.going_on, options.seconds, options.second_deaths)
    for name in options.scenario or SCENARIOS:
        if SCENARIOS[name].needs <= implementation.capabilities:
            for mode in [options.mode] if options.mode else claimed:
                yield Job(manager, name, mode, storages, effort)


def _results(jobs: Sequence[Job], processes: int, place: "Place") -> Iterator[Result]:
    progress = _Progress(len(jobs))
    try:
        if processes == 1:
            for job in jobs:
                yield progress.shown(explore(job, place))
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(processes, len(jobs)), context) as pool:
            try:
                for done in as_completed([pool.submit(_explore_alone, job) for job in jobs]):
                    yield progress.shown(done.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        progress.end()


def _with_replays(
    results: list[Result], out: Path, manager: Manager, side_by_side: int, means: report.Means
) -> tuple[list[Result], report.Means]:
    """The same, with what each script came to by itself; those of one recording share its folder."""
    timeout_s = manager.import_timeout_s + 10 * manager.timeout_s

    def check(found: Found) -> Found:
        # one that shows a hang is not given the time that an import may take
        patience_s = 3 * manager.timeout_s if found.verdict.word == "hung" else timeout_s
        return replace(found, replayed=outcome(out / f"replay-{found.name}.py", manager.python, patience_s))

    def check_all(result: Result) -> Result:
        return replace(result, found=tuple(map(check, result.found)))

    try:
        with ThreadPoolExecutor(side_by_side) as pool:
            return list(pool.map(check_all, results)), means
    except KeyboardInterrupt:
        return results, replace(means, interrupted="while the replay scripts were checked")


class _Progress:
    """One line that is written over and over on a terminal, and a line for each recording elsewhere."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._done = 0
        self._sum = Totals()
        self._is_terminal = sys.stderr.isatty()

    def shown(self, result: Result) -> Result:
        """Count a result in."""
        self._done += 1
        for explored in result.explored:
            self._sum.add(explored.totals)
        filled = 24 * self._done // self._jobs
        line = f"[{'#' * filled}{'.' * (24 - filled)}] {self._done}/{self._jobs} recordings, {self._sum.new:,} disks"
        line += f", {self._sum.bad:,} bad" if self._sum.bad else ""
        end = "" if self._is_terminal else "\n"
        print(("\r\033[K" if self._is_terminal else "") + line, end=end, file=sys.stderr, flush=True)
        return result

    def end(self) -> None:
        """Leave the terminal's line clean."""
        if self._is_terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Place:
    """A warm server, a folder to build disks in, and the undisturbed run."""

    server: Server
    folder: Path
    kinds: tuple[str, ...]
    timeline: Timeline
    fresh: dict[str, str]
    recorder: Kind


@contextlib.contextmanager
def workplace(manager: Manager) -> Iterator["Place"]:
    """A place to explore in, gone afterwards."""
    recorder = choose(manager.recorder)
    server = Server(manager.impl, manager.python, manager.timeout_s, manager.import_timeout_s)
    base = Path(tempfile.mkdtemp(prefix="forge-crash-", dir=_roomy()))
    try:
        claimed = server.implementation.capabilities
        server.rehearse([mode for mode in ("sync", "async") if mode in claimed])
        kinds = kinds_claimed(server.implementation.capabilities)
        fresh = Timeline(server, 999).digest(0)
        yield Place(server, base / "checkpoints", kinds, Timeline(server, 0), fresh, recorder)
    finally:
        server.close()
        shutil.rmtree(base, ignore_errors=True)


def _roomy() -> str | None:
    """A folder in memory that has room; None for where temporary files go."""
    memory = "/dev/shm"
    with contextlib.suppress(OSError):
        if shutil.disk_usage(memory).free > _ROOM_BYTES:
            return memory
    return None


def _explore_alone(job: Job) -> Result:
    with workplace(job.manager) as place:
        return explore(job, place)


def explore(job: Job, place: Place) -> Result:
    """Record, and visit what a death can leave of it."""
    begun = time.perf_counter()
    unrecorded_s = min(_unrecorded_s(job, place) for _ in range(2))
    try:
        recorded, recorded_s = record(job.scenario, job.mode, place)
    except CannotJudge as reason:
        return Result(job.scenario, job.mode, refusal=str(reason))
    resumer = Resumer(place.server, place.folder, recorded, place.kinds, place.fresh, place.recorder)
    exploration = Exploration(recorded, resumer, job.effort)
    reached = [name for name in job.storages if name == KILL or not place.recorder.is_coarse]
    explored = [exploration.under(STORAGES.get(name)) for name in reached]
    again = [explore_again(job, place, exploration, *death) for death in exploration.deaths(job.effort.deaths_again)]
    found = [one for result in explored for one in _found(job, place, exploration, result)]
    found += [one for _, stories in again for one in stories]
    found = [replace(one, name=f"{job.scenario}-{job.mode}-{number}") for number, one in enumerate(found, start=1)]
    layout = place.server.implementation.layout
    disordered, looked = ([], 0) if place.recorder.is_coarse else disorders(recorded.trace, layout)
    return Result(
        job.scenario,
        job.mode,
        (*explored, *(second for second, _ in again)),
        tuple(found),
        tuple(disordered),
        looked,
        recorded_s,
        unrecorded_s,
        time.perf_counter() - begun,
    )


def explore_again(
    job: Job, place: Place, before: Exploration, disk: Disk, landing: Landing
) -> tuple[Explored, list[Found]]:
    """A second death: the run that resumes from a disk and goes on is killed as well, at each of its operations."""
    before.resumer.rebuild(disk)
    recorded = before.recorded
    recording = Recording(
        f"{recorded.scenario}, second death", place.server, place.folder, job.mode, place.kinds, place.timeline,
        saves=recorded.saves, kind=place.recorder,
    )  # fmt: skip
    recording.every = recorded.every
    settings = {name: value for name, value in recorded.settings.items() if name != "mode"}
    if landing.saves:
        recording.journal.mark("acknowledged", max(landing.saves))
    with recording.life(**settings) as life:
        life.load()
        first = (landing.step // recorded.every + 1) * recorded.every
        try:
            life.save_at(first, first + recorded.every)
            life.wait()
        except ManagerFault:
            pass  # that it can't go on was found out before; here it is about how far it got
    second = recording.end()
    resumer = Resumer(place.server, place.folder, second, place.kinds, place.fresh, place.recorder)
    exploration = Exploration(second, resumer, job.effort)
    explored = exploration.under(None)
    return explored, list(_found(job, place, exploration, explored))


def record(scenario: str, mode: str, place: Place) -> tuple[Recorded, float]:
    """Let the manager go through a scenario; what it did, and how long that took in seconds."""
    _empty(place.folder)
    recording = Recording(scenario, place.server, place.folder, mode, place.kinds, place.timeline, kind=place.recorder)
    begun = time.perf_counter()
    try:
        SCENARIOS[scenario].run(recording)
    except (ManagerFault, Unsupported) as fault:
        raise CannotJudge(
            f"Scenario {scenario!r} ({SCENARIOS[scenario].says}) could not be recorded in mode {mode}, so no disks of "
            f"it can be explored. {fault}"
        ) from None
    seconds = time.perf_counter() - begun
    return recording.end(), seconds


def _unrecorded_s(job: Job, place: Place) -> float:
    """How long the scenario takes when nobody records; 0 where it needs the recorder to happen at all."""
    if job.scenario in ("fallback", "disk-full"):
        return 0.0
    _empty(place.folder)
    recording = Recording(job.scenario, place.server, place.folder, job.mode, place.kinds, place.timeline, False)
    begun = time.perf_counter()
    with contextlib.suppress(ManagerFault, Unsupported, CannotJudge):
        SCENARIOS[job.scenario].run(recording)
    return time.perf_counter() - begun


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _found(job: Job, place: Place, exploration: Exploration, explored: Explored) -> Iterator[Found]:
    recorded = exploration.recorded
    storage = STORAGES.get(explored.storage)
    for bad in explored.bad:
        state = bad.state
        says = SCENARIOS[job.scenario].says
        if storage is not None:
            allowed = exploration.allowed(state.cut)

            def is_bad(disk: Any, allowed: Any = allowed, word: str = bad.verdict.word) -> bool:
                landing, going_on = exploration.outcome(disk, goes_on=word == "stuck")
                return verdict_of(landing, going_on, allowed, recorded.saves, True).word == word

            state = shrink(recorded.trace, storage, state, is_bad)
        disk = disk_of(recorded.trace, storage, state)
        title = f"scenario {recorded.scenario}, {recorded.mode}: {says}"
        steps = tuple(saved.step for saved in recorded.saves)
        story = tell(recorded.trace, storage, state, disk, bad.verdict, steps, title)
        replay = script(job.manager.impl, place.folder, recorded, disk, story, exploration.allowed(state.cut))
        yield Found("", explored.storage, bad.verdict, bad.states, story.missing, story.text, replay)
