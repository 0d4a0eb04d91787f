"""`forge-conformance crash`: every disk that a death can leave, deaths and failures in earnest, and the report.

Each recording, a scenario in a mode, is a job of its own, and so is each drill, with a warm server and
a folder of its own, in a process of its own where there are several.  The
folder is in memory where there is room (`/dev/shm`), else where temporary files go.
"""

import argparse
import contextlib
import multiprocessing
import multiprocessing.util
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from forge_conformance.harness.ranks import Shape
from forge_conformance.harness.scenario import kinds_claimed
from forge_conformance.harness.server import CannotJudge, Implementation, Server
from forge_conformance.harness.worker import ManagerFault, Unsupported
from forge_conformance.report.verdicts import Status
from forge_spec.clauses import Level
from forge_spec.disk import STORAGES

from . import report
from .drills import SITUATIONS, Drill, Drilled
from .earnest import DEATHS_TIER, ERRORS_TIER, Asked, drilled, drills
from .explorer import Effort, Exploration, Explored, Totals
from .landing import OTHER_SEED, Landing
from .live import room_told
from .order import disorders
from .path import followed
from .processes import ALONE, Digest, Undisturbed
from .recorders import RECORDERS, Kind, choose
from .recording import Recorded, Recording
from .replay import outcome, script
from .report import Found, Result
from .resume import Resumer
from .scenarios import SCENARIOS
from .story import disk_of, shrink, tell
from .trace import Disk
from .verdicts import verdict_of

KILL = "kill"
TIERS = ("disks", DEATHS_TIER, ERRORS_TIER)
_MODES = ("sync", "async")
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


@dataclass(frozen=True)
class DrillJob:
    """One kind of mishap, in one situation and mode."""

    manager: Manager
    drill: Drill
    asked: Asked


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command, besides those that it shares with others."""
    parser.add_argument(
        "--tier",
        action="append",
        choices=TIERS,
        help="disks: resume from every disk that a death may leave; deaths: die in earnest; errors: let calls fail and "
        "the disk fill; repeatable (all)",
    )
    parser.add_argument(
        "--every",
        type=_positive,
        default=0,
        metavar="N",
        help="die and fail at every N-th operation (the tier decides)",
    )
    parser.add_argument("--point", metavar="NAME", help="only this death or failure, as the report names it")
    names = ", ".join((KILL, *STORAGES))
    parser.add_argument("--scenario", action="append", choices=list(SCENARIOS), help="only this one; repeatable")
    parser.add_argument("--mode", choices=["sync", "async", "pinned"], help="only this one (all that are claimed)")
    parser.add_argument(
        "--storage",
        action="append",
        choices=[KILL, *STORAGES, "all"],
        help=f"what may be lost, and counts then: {names}; repeatable (kill, and at level durable all of them)",
    )
    parser.add_argument(
        "--recorder", choices=list(RECORDERS), help="how the manager is watched (the best that works here)"
    )
    parser.add_argument("--every-write", action="store_true", help="do not leave out the middle of bursts of writes")
    parser.add_argument(
        "--going-on",
        type=_count,
        default=40,
        metavar="N",
        help="runs to go on with after a resume from what a kill leaves, per recording; after a loss of power, per "
        "storage, and after a second death, a quarter of it, and of several ranks as well (40)",
    )
    parser.add_argument(
        "--second-deaths",
        type=_count,
        default=2,
        metavar="N",
        help="resumed runs that are killed again, per recording (2)",
    )
    parser.add_argument(
        "--seconds", type=_positive, default=600, metavar="S", help="time for one recording under one storage (600)"
    )
    parser.add_argument(
        "--check-replays", action="store_true", help="run each replay script alone and compare its verdict (s each)"
    )


def run(options: argparse.Namespace, level_named: Any) -> int:
    """The exit status, as for `run`; a coarse recorder never makes it 0."""
    manager = Manager(options.impl, options.python, options.timeout, options.import_timeout, options.recorder)
    has_ranks = any(SCENARIOS[name].shape != ALONE for name in options.scenario or SCENARIOS)
    with workplace(manager, has_ranks or _tiers(options) != ("disks",)) as place:
        implementation = place.server.implementation
        _refuse_unclaimed(options, implementation)
        by_power = any(name != KILL for name in options.storage or ())
        level: Level = level_named(options.level or ("durable" if by_power else implementation.level))
        jobs: list[Job | DrillJob] = list(_jobs(options, manager, implementation, level))
        jobs += _drill_jobs(options, manager, implementation)
        if not jobs:
            raise CannotJudge(_nothing_to_do(options, implementation))
        means = _means(jobs, place.recorder, options.n)
        out = options.out or Path("reports") / "crash"
        out.mkdir(parents=True, exist_ok=True)
        done, means = _finished(jobs, options.n, place, means)
    results = [one for one in done if isinstance(one, Result)]
    tried = [one for one in done if isinstance(one, Drilled)]
    again = shlex.join(_same_manager(options))
    written = report.write(implementation, level, results, tried, again, out, means)
    if options.check_replays and not means.interrupted:
        results, means = _with_replays(results, out, manager, options.n, means)
        report.write(implementation, level, results, tried, again, out, means)
    print(report.console(implementation, level, results, tried, again, out, means))
    print(f"written: {', '.join(written)}")
    status = _status(results, tried, level, means)
    beyond = report.ways(results, tried) - len(report.counted(results, level, tried))
    if status == Status.PASSED and beyond > 0:
        print(
            f"exit status 0: {beyond} way{'' if beyond == 1 else 's'} to be bad fell by clauses above level {level}; "
            "--level durable counts all."
        )
    return status


def _refuse_unclaimed(options: argparse.Namespace, implementation: Implementation) -> None:
    """`CannotJudge` where a mode or a scenario is asked for that the manager does not have."""
    claimed = implementation.capabilities
    if options.mode and options.mode not in claimed:
        modes = ", ".join(mode for mode in (*_MODES, "pinned") if mode in claimed)
        raise CannotJudge(f"--mode {options.mode}: {options.impl} does not claim it; it claims {modes}.")
    for name in options.scenario or ():
        missing = sorted(SCENARIOS[name].needs - claimed)
        if missing:
            raise CannotJudge(f"--scenario {name} needs {', '.join(missing)}, which {options.impl} does not claim.")


def _nothing_to_do(options: argparse.Namespace, implementation: Implementation) -> str:
    modes = [mode for mode in _MODES if mode in implementation.capabilities]
    names = [drill.name for drill in drills(TIERS, list(SITUATIONS), modes, implementation.capabilities)]
    if options.point and any(options.point.startswith(f"{name}/") for name in names):
        return f"--point {options.point} is left out by --tier, --scenario or --mode; ask for the point alone."
    if options.point:
        return (
            f"--point {options.point}: a point is named as a report names it, by its drill and what happens there, "
            f"kill/steady/sync/1/7 for example. Drills of this manager are {', '.join(names)}."
        )
    return (
        f"For {', '.join(options.scenario or ['any scenario'])} there is nothing in tier {', '.join(_tiers(options))}."
    )


def _status(results: Sequence[Result], tried: Sequence[Drilled], level: Level, means: report.Means) -> Status:
    found = [one for result in results for one in result.found]
    is_contradicted = any(explored.contradiction for result in results for explored in result.explored)
    if means.interrupted or is_contradicted or any(one.replayed not in ("", one.verdict.word) for one in found):
        return Status.OUR_ERROR
    if report.counted(results, level, tried):
        return Status.FAILED
    if any(explored.totals.states == 0 for result in results for explored in result.explored):
        return Status.NOTHING_JUDGED
    is_whole = not means.recorder.is_coarse and not any(
        [*(one.refusal for one in results), *(one.refusal for one in tried)]
    )
    return Status.PASSED if is_whole else Status.NOTHING_JUDGED


def _finished(
    jobs: Sequence["Job | DrillJob"], side_by_side: int, place: "Place", means: report.Means
) -> tuple[list[Result | Drilled], report.Means]:
    """What came of all jobs, or of those until it was interrupted."""
    done: list[Result | Drilled] = []
    try:
        for one in _results(jobs, side_by_side, place):
            done.append(one)
    except KeyboardInterrupt:
        if not done:
            raise
        means = replace(means, interrupted=f"after {len(done)} of {len(jobs)} recordings and drills")
    return done, means


def _means(jobs: Sequence["Job | DrillJob"], recorder: Kind, side_by_side: int) -> report.Means:
    """`CannotJudge` where the recorder can say nothing of what is asked for."""
    storages = next((job.storages for job in jobs if isinstance(job, Job)), ())
    unreached = tuple(name for name in storages if name != KILL) if recorder.is_coarse else ()
    if storages and len(unreached) == len(storages):
        raise CannotJudge(
            f"{', '.join(unreached)}: nothing can be said with {recorder.says}: {recorder.unseen}. Ask for --storage "
            f"{KILL}, or record with another --recorder."
        )
    return report.Means(recorder, unreached, side_by_side=side_by_side)


def _same_manager(options: argparse.Namespace) -> list[str]:
    """The command for another run against the same manager, at a level yet to be said."""
    given = ["--impl", options.impl, *(["--python", options.python] if options.python else [])]
    return ["forge-conformance", "crash", *given]


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return number


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return int(text)


def _tiers(options: argparse.Namespace) -> tuple[str, ...]:
    return tuple(dict.fromkeys(options.tier or TIERS))


def _drill_jobs(options: argparse.Namespace, manager: Manager, implementation: Implementation) -> Iterator["DrillJob"]:
    modes = [options.mode] if options.mode else [mode for mode in _MODES if mode in implementation.capabilities]
    situations = options.scenario or list(SITUATIONS)
    asked = Asked(options.every, options.point or "")
    for drill in drills(_tiers(options), situations, modes, implementation.capabilities):
        if asked.point.startswith(f"{drill.name}/") or not asked.point:
            yield DrillJob(manager, drill, asked)


def _jobs(options: argparse.Namespace, manager: Manager, implementation: Implementation, level: Level) -> Iterator[Job]:
    if "disks" not in _tiers(options) or options.point:
        return
    claimed = [mode for mode in _MODES if mode in implementation.capabilities]
    chosen = options.storage or ["all" if level >= Level.DURABLE else KILL]
    storages = (KILL, *STORAGES) if "all" in chosen else tuple(dict.fromkeys(chosen))
    for name in options.scenario or SCENARIOS:
        if SCENARIOS[name].needs <= implementation.capabilities:
            effort = Effort(not options.every_write, options.going_on, options.seconds, options.second_deaths)
            effort = effort if SCENARIOS[name].shape == ALONE else effort.quarter
            for mode in [options.mode] if options.mode else claimed:
                yield Job(manager, name, mode, storages, effort)


def _results(jobs: Sequence[Job | DrillJob], processes: int, place: "Place") -> Iterator[Result | Drilled]:
    progress = _Progress(len(jobs))
    try:
        if processes == 1:
            for job in jobs:
                yield progress.shown(_done(job, place))
            return
        context = multiprocessing.get_context("spawn")
        begins = (jobs[0].manager, place.has_ranks, place.folder.parent)
        with ProcessPoolExecutor(min(processes, len(jobs)), context, _begin, begins) as pool:
            try:
                for done in as_completed([pool.submit(_done_there, job) for job in jobs]):
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
    """One line that is written over and over on a terminal, and a line for each job elsewhere."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._done = 0
        self._sum = Totals()
        self._points = 0
        self._bad_points = 0
        self._is_terminal = sys.stderr.isatty()

    def shown(self, result: Result | Drilled) -> Result | Drilled:
        """Count a result in."""
        self._done += 1
        if isinstance(result, Drilled):
            self._points += result.points
            self._bad_points += sum(bad.points for bad in result.bad)
        else:
            for explored in result.explored:
                self._sum.add(explored.totals)
        filled = 24 * self._done // self._jobs
        line = f"[{'#' * filled}{'.' * (24 - filled)}] {self._done}/{self._jobs} done"
        for count, bad, what in (
            (self._sum.new, self._sum.new_bad, "disks"),
            (self._points, self._bad_points, "deaths and failures"),
        ):
            line += f", {count:,} {what}" if count else ""
            line += f" ({bad:,} bad)" if bad else ""
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
    recorder: Kind
    has_ranks: bool = False
    """Whether the server is ready for several ranks."""
    _runs: dict[tuple[int, Shape], Undisturbed] = field(default_factory=dict)

    def undisturbed(self, shape: Shape) -> Undisturbed:
        """The run that is recorded, by one or several ranks."""
        return self._run(0, shape)

    def fresh(self, shape: Shape) -> Digest:
        """What a process has that resumes and finds nothing."""
        return self._run(OTHER_SEED, shape).digest(0)

    def _run(self, seed: int, shape: Shape) -> Undisturbed:
        if (seed, shape) not in self._runs:
            self._runs[seed, shape] = Undisturbed(self.server, seed, shape)
        return self._runs[seed, shape]


_place: Place | CannotJudge | None = None
"""The workplace of a process that is one of several, or why it has none."""


@contextlib.contextmanager
def workplace(manager: Manager, with_ranks: bool = False, below: Path | None = None) -> Iterator["Place"]:
    """A place to explore in, for several ranks as well if the manager claims them; gone afterwards."""
    recorder = choose(manager.recorder)
    server = Server(manager.impl, manager.python, manager.timeout_s, manager.import_timeout_s)
    base = Path(tempfile.mkdtemp(prefix="forge-crash-", dir=below or _roomy()))
    try:
        claimed = server.implementation.capabilities
        has_ranks = with_ranks and "distributed" in claimed
        server.rehearse([mode for mode in _MODES if mode in claimed], has_ranks)
        yield Place(server, base / "checkpoints", kinds_claimed(claimed), recorder, has_ranks)
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


def _done(job: Job | DrillJob, place: Place) -> Result | Drilled:
    if isinstance(job, DrillJob):
        return drilled(job.drill, job.manager, place, job.asked)
    return explore(job, place)


def _begin(manager: Manager, has_ranks: bool, base: Path) -> None:
    """In each process that is not alone, once: a workplace below `base`, which ends with the process."""
    global _place
    opened = contextlib.ExitStack()
    multiprocessing.util.Finalize(None, opened.close, exitpriority=1)
    try:
        _place = opened.enter_context(workplace(manager, has_ranks, base))
    except CannotJudge as reason:  # raised here, the pool would be broken and say nothing
        _place = reason


def _done_there(job: Job | DrillJob) -> Result | Drilled:
    assert _place is not None, "a process begins before it does anything"
    if isinstance(_place, CannotJudge):
        raise _place
    return _done(job, _place)


def explore(job: Job, place: Place) -> Result:
    """Record, and visit what a death can leave of it."""
    begun = time.perf_counter()
    unrecorded_s = min(_unrecorded_s(job, place) for _ in range(2))
    try:
        recorded, recorded_s = record(job.scenario, job.mode, place)
    except CannotJudge as reason:
        return Result(job.scenario, job.mode, refusal=str(reason))
    fresh = place.fresh(recorded.shape)
    resumer = Resumer(place.server, place.folder, recorded, place.kinds, fresh, place.recorder)
    exploration = Exploration(recorded, resumer, job.effort)
    reached = [name for name in job.storages if name == KILL or not place.recorder.is_coarse]
    explored = []
    for order in (recorded, *recorded.others):
        whole = exploration.of(order)
        less = replace(whole, effort=job.effort.quarter)
        explored += [(whole if name == KILL else less).under(STORAGES.get(name)) for name in reached]
    again = [explore_again(job, place, exploration, *death) for death in exploration.deaths(job.effort.deaths_again)]
    found = [one for result in explored for one in _found(job, place, exploration.of(result.recorded), result)]
    found += [one for _, stories in again for one in stories]
    found = [replace(one, name=f"{job.scenario}-{job.mode}-{number}") for number, one in enumerate(found, start=1)]
    layout = place.server.implementation.layout
    disordered, looked = ([], 0) if place.recorder.is_coarse else disorders(recorded, layout)
    return Result(
        job.scenario,
        job.mode,
        (*explored, *(second for second, _ in again)),
        tuple(found),
        tuple(disordered),
        looked,
        tuple(followed(one, layout) for one in (recorded, *recorded.others)),
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
        recorded.scenario, place.server, place.folder, job.mode, place.kinds,
        place.undisturbed(recorded.shape), saves=recorded.saves, shape=recorded.shape, kind=place.recorder,
    )  # fmt: skip
    recording.every, recording.below = recorded.every, recorded.below
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
    second = replace(recording.end(), special=f"second death from {_resumed(landing)}")
    resumer = Resumer(place.server, place.folder, second, place.kinds, place.fresh(second.shape), place.recorder)
    exploration = Exploration(second, resumer, job.effort.quarter)
    explored = exploration.under(None)
    return explored, list(_found(job, place, exploration, explored))


def _resumed(landing: Landing) -> str:
    return f"step {landing.step}" if landing.step else "nothing"


def record(scenario: str, mode: str, place: Place) -> tuple[Recorded, float]:
    """Let the manager go through a scenario; what it did, and how long that took in seconds."""
    if SCENARIOS[scenario].shape != ALONE and not place.server.implementation.environment["has_numpy"]:
        raise CannotJudge(
            "torch.distributed sends objects between ranks through numpy, which the manager's Python lacks"
        )
    if SCENARIOS[scenario].shape != ALONE and place.recorder.name != "seccomp":
        raise CannotJudge("Several ranks are recorded by seccomp alone: the other recorders do not see their messages.")
    _empty(place.folder)
    recording = _recording(scenario, mode, place)
    begun = time.perf_counter()
    try:
        SCENARIOS[scenario].run(recording)
    except (ManagerFault, Unsupported) as fault:
        raise CannotJudge(
            f"Scenario {scenario!r} ({SCENARIOS[scenario].says}) could not be recorded in mode {mode}, so no disks of "
            f"it can be explored. {fault}{room_told(place.folder)}"
        ) from None
    seconds = time.perf_counter() - begun
    return recording.end(), seconds


def _unrecorded_s(job: Job, place: Place) -> float:
    """How long the scenario takes when nobody records; 0 where it needs the recorder to happen at all."""
    if job.scenario in ("fallback", "disk-full"):
        return 0.0
    _empty(place.folder)
    recording = _recording(job.scenario, job.mode, place, is_recorded=False)
    begun = time.perf_counter()
    with contextlib.suppress(ManagerFault, Unsupported, CannotJudge):
        SCENARIOS[job.scenario].run(recording)
    return time.perf_counter() - begun


def _recording(scenario: str, mode: str, place: Place, is_recorded: bool = True) -> Recording:
    shape = SCENARIOS[scenario].shape
    undisturbed = place.undisturbed(shape)
    return Recording(
        scenario, place.server, place.folder, mode, place.kinds, undisturbed, is_recorded, shape=shape,
        kind=place.recorder,
    )  # fmt: skip


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
        special = f", {recorded.special}" if recorded.special else ""
        title = f"scenario {recorded.scenario}{special}, {recorded.mode}: {says}"
        steps = tuple(saved.step for saved in recorded.saves)
        story = tell(recorded.trace, storage, state, disk, bad.verdict, steps, title)
        replay = script(job.manager.impl, place.folder, recorded, disk, story, exploration.allowed(state.cut))
        yield Found("", explored.storage, bad.verdict, bad.states, story.missing, story.text, replay)
