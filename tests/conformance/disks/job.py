"""One recording explored: a scenario in a mode is recorded, its disks are resumed from, and bad ones are explained."""

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forge_conformance.disks.durable_order import disorders
from forge_conformance.disks.explorer import Effort, Exploration, Explored, allowed_after
from forge_conformance.disks.model_path import followed
from forge_conformance.disks.recording import Recorded, Recording
from forge_conformance.disks.replay import script
from forge_conformance.disks.result import Found, Result
from forge_conformance.disks.resumer import Resumer
from forge_conformance.disks.scenarios import SCENARIOS
from forge_conformance.disks.states import KILL, State
from forge_conformance.disks.story import disk_of, shrink, tell
from forge_conformance.judging.judge import CannotJudge
from forge_conformance.runs.group import ALONE
from forge_conformance.runs.landing import Ignored, Landing
from forge_conformance.runs.ledger import Saved
from forge_conformance.runs.machine import disk_is_full
from forge_conformance.runs.process import Hung, ManagerFault, Unsupported, is_block
from forge_conformance.runs.verdict import Verdict, verdict_of
from forge_conformance.runs.workplace import Place
from forge_conformance.watch.trace import Disk
from forge_spec.disk import STORAGES


@dataclass(frozen=True)
class Job:
    """One recording and what is asked of it."""

    scenario: str
    mode: str
    storages: tuple[str, ...]
    effort: Effort


def explore(job: Job, place: Place) -> Result:
    """Record, and visit what a death can leave of it; refused with a reason where that can't be done."""
    try:
        return _explored(job, place)
    except CannotJudge as reason:
        return Result(job.scenario, job.mode, refusal=str(reason), is_blocked=is_block(reason))


def _explored(job: Job, place: Place) -> Result:
    begun = time.perf_counter()
    unrecorded_s = min(_unrecorded_s(job, place) for _ in range(2))
    recorded, recorded_s, stopped = record(job.scenario, job.mode, place)
    fresh = place.fresh(recorded.shape)
    resumer = Resumer(place.server, place.folder, recorded, place.kinds, fresh, place.recorder)
    changed = [_changed(job, place, recorded, verdict) for verdict in resumer.look_without_death(stopped is None)]
    recorded = _without(recorded, resumer.ignored)
    exploration = Exploration(recorded, resumer, job.effort)
    reached = [name for name in job.storages if name == KILL or not place.recorder.is_coarse]
    explored = []
    for order in (recorded, *recorded.others):
        whole = exploration.of(order)
        less = replace(whole, effort=job.effort.reduced)
        explored += [(whole if name == KILL else less).under(STORAGES.get(name)) for name in reached]
    again, refusals = _second_deaths(job, place, exploration)
    refusals += [] if stopped is None else [stopped]
    found = [
        *changed,
        *(one for result in explored for one in _found(job, place, exploration.of(result.recorded), result)),
    ]
    found += [one for _, stories in again for one in stories]
    found = [replace(one, name=f"{job.scenario}-{job.mode}-{number}") for number, one in enumerate(found, start=1)]
    layout = place.server.implementation.layout_under(recorded.settings)
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
        " ".join(map(str, refusals)),
        any(map(is_block, refusals)),
    )


def _second_deaths(
    job: Job, place: Place, exploration: Exploration
) -> tuple[list[tuple[Explored, list[Found]]], list[CannotJudge]]:
    """What came of runs that resumed and were killed again, and why others could not be explored."""
    again, refusals = [], []
    for number, (disk, landing) in enumerate(exploration.deaths(job.effort.deaths_again), start=1):
        try:
            again.append(explore_again(job, place, exploration, disk, landing, number))
        except CannotJudge as reason:
            refusals.append(reason)
    return again, refusals


def explore_again(
    job: Job, place: Place, before: Exploration, disk: Disk, landing: Landing, number: int
) -> tuple[Explored, list[Found]]:
    """A second death: the run that resumes from a disk and goes on is killed as well, at each of its operations.

    `number` distinguishes the disks of a recording from which runs are killed a second time.
    """
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
    fault: ManagerFault | None = None
    try:
        with recording.life(**settings) as life:
            life.load()
            life.save_on(recorded.every)
    except (
        ManagerFault
    ) as reason:  # explored is how far it got; that a run can't go on is judged where it is killed once
        fault = reason
    special = f"second death on disk {number}, {_resumed(landing)}"
    if isinstance(fault, Hung) or (fault is not None and recorded.is_hooked):
        raise CannotJudge(f"The {special}, could not be explored. {fault}") from fault
    try:
        second = replace(recording.end(), special=special)
    except CannotJudge as reason:
        raise CannotJudge(f"The {special}, could not be explored. {fault or reason}") from fault
    fresh, ignored = place.fresh(second.shape), before.resumer.ignored
    resumer = Resumer(place.server, place.folder, second, place.kinds, fresh, place.recorder, ignored)
    exploration = Exploration(second, resumer, job.effort.reduced)
    explored = exploration.under(None)
    return explored, list(_found(job, place, exploration, explored))


def _resumed(landing: Landing) -> str:
    return f"from step {landing.step}" if landing.step else "a fresh start"


def record(scenario: str, mode: str, place: Place) -> tuple[Recorded, float, CannotJudge | None]:
    """Let the manager go through a scenario; what it did, and how long that took in seconds.

    Where it can't go on after a death of the scenario, what it did until then, and the reason: that is judged.
    """
    if SCENARIOS[scenario].shape != ALONE and not place.server.implementation.environment["has_numpy"]:
        raise CannotJudge(
            "torch.distributed sends objects between ranks through numpy, which the manager's Python lacks"
        )
    if SCENARIOS[scenario].shape != ALONE and place.recorder.name != "seccomp":
        raise CannotJudge("Several ranks are recorded by seccomp alone: the other recorders do not see their messages.")
    _empty(place.folder)
    recording = _recording(scenario, mode, place)
    begun, stopped = time.perf_counter(), None
    try:
        SCENARIOS[scenario].run(recording)
    except (ManagerFault, Unsupported) as fault:
        said = f"Scenario {scenario!r} ({SCENARIOS[scenario].says}) could not be recorded in mode {mode}"
        if isinstance(fault, Unsupported) or not recording.has_died:
            full = disk_is_full(place.folder)
            raise CannotJudge(f"{said}, so no disks of it can be explored. {fault}{full}") from fault
        stopped = CannotJudge(f"{said} to its end. {fault}")
        stopped.__cause__ = fault
    seconds = time.perf_counter() - begun
    return recording.end(), seconds, stopped


def _unrecorded_s(job: Job, place: Place) -> float:
    """How long the scenario takes when nobody records; 0 where it needs the recorder to happen at all."""
    if job.scenario in ("fallback", "disk-full", "removal"):
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


def _without(recorded: Recorded, ignored: Ignored) -> Recorded:
    """The same, without the items of the state that are not compared."""

    def compared(saved: Saved) -> Saved:
        return replace(saved, state={name: value for name, value in saved.state.items() if name not in ignored.saved})

    others = tuple(_without(other, ignored) for other in recorded.others)
    return replace(recorded, saves=tuple(map(compared, recorded.saves)), others=others)


def _changed(job: Job, place: Place, recorded: Recorded, verdict: Verdict) -> Found:
    """What does not come back without any death, from the folder at the beginning or at the end."""
    trace, is_fresh = recorded.trace, verdict.clause == "resume.fresh"
    state = State(trace.begins if is_fresh else len(trace.effects))
    disk, steps = trace.disk(state.cut), tuple(saved.step for saved in recorded.saves)
    title = f"scenario {recorded.scenario}, {recorded.mode}: {SCENARIOS[job.scenario].says}"
    story = tell(trace, None, state, disk, verdict, steps, title)
    layout = place.server.implementation.layout_under(recorded.settings)
    replay = script(place.manager.impl, place.folder, recorded, disk, story, allowed_after(recorded, state.cut), layout)
    return Found("", "no death", verdict, 1, (), story.text, replay)


def _found(job: Job, place: Place, exploration: Exploration, explored: Explored) -> Iterator[Found]:
    recorded = exploration.recorded
    storage, layout = STORAGES.get(explored.storage), place.server.implementation.layout_under(recorded.settings)
    for bad in explored.bad:
        state = bad.state
        says = SCENARIOS[job.scenario].says
        if storage is not None:
            allowed = exploration.allowed(state.cut)

            def is_bad(disk: Any, allowed: Any = allowed, verdict: Verdict = bad.verdict) -> bool:
                landing, going_on = exploration.outcome(disk, goes_on=verdict.came_back)
                return verdict_of(landing, going_on, allowed, recorded.saves, True).word == verdict.word

            state = shrink(recorded.trace, storage, state, is_bad)
        disk = disk_of(recorded.trace, storage, state)
        special = f", {recorded.special}" if recorded.special else ""
        title = f"scenario {recorded.scenario}{special}, {recorded.mode}: {says}"
        steps = tuple(saved.step for saved in recorded.saves)
        story = tell(recorded.trace, storage, state, disk, bad.verdict, steps, title)
        allowed = exploration.allowed(state.cut)
        replay = script(place.manager.impl, place.folder, recorded, disk, story, allowed, layout)
        yield Found("", explored.storage, bad.verdict, bad.states, story.missing, story.text, replay)
