"""Several ranks save: what stands in the folder, who waits for whom, and what becomes of it when one of them fails.

One rank is held at a file operation, or its disk is full, or it is gone; the
others show what the manager makes of it.
"""

import errno
import os
import signal
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest

from forge_conformance.judging.judge import Unreached, judges
from forge_conformance.runs.group import OnRank, Shape, staged, values
from forge_conformance.runs.life import World
from forge_conformance.runs.scenario import Scenario
from forge_conformance.runs.state import ALL_KINDS
from forge_conformance.watch.gate import Operation, Picks, at, in_background
from forge_conformance.worker.system_calls import REMOVES
from forge_spec import commit

_LOOKS = 50
"""How often ranks are looked at that stand still with nothing held, before they are taken to hang."""
_IMPATIENT_S = 8
"""How long groups of processes wait where a rank never answers: shorter than the suite waits for a command."""


# -- what is saved ------------------------------------------------------------


@judges("layout.stage-dirs")
def test_each_pipeline_stage_has_a_directory_of_its_own(run: Scenario, ranks: int) -> None:
    world = run.world(staged(ranks))
    world.train_to(2)
    world.save()
    world.wait()
    path = run.folder.of(2)
    stages = [run.folder.stage(number) for number in range(2)]
    shared = {name for name in run.folder.layout.required if name not in run.folder.layout.required_of_stage}
    run.expect(
        "layout.stage-dirs",
        _names(path) == shared | set(stages),
        expected=f"{sorted(shared | set(stages))} in {path.name}, and nothing else",
        seen=sorted(_names(path)),
    )
    for stage in stages:
        run.expect(
            "layout.stage-dirs",
            ".metadata" in _names(path / stage) and len(_names(path / stage)) > 1,
            expected=f"a marker and shards in {path.name}/{stage}",
            seen=sorted(_names(path / stage)),
        )


@judges("commit.inert", needs=("distributed",))
def test_ranks_that_save_train_as_ranks_that_do_not(run: Scenario, team: Shape) -> None:
    world = run.world(team, mode=run.background_mode)
    for step in (1, 3):
        _expect_losses(run, world, "commit.inert", world.train_to(step))
        before = world.digest()
        world.save()
        run.expect_same("commit.inert", world.digest(), before, ALL_KINDS, f"every rank's state around step {step}")
        world.wait()
    _expect_losses(run, world, "commit.inert", world.train_to(5))


@judges("commit.resave", "resume.exact", needs=("distributed",))
def test_a_step_saved_again_by_fewer_ranks_keeps_nothing_of_the_others(run: Scenario, ranks: int) -> None:
    run.world(Shape(ranks)).commit_at(2)
    before = {path: path.read_bytes() for path in _shards(run, 2)}
    fewer = Shape(max(1, ranks // 2))
    run.world(fewer, seed=1).commit_at(2)
    left = [path.name for path, content in before.items() if path.exists() and path.read_bytes() == content]
    run.expect("commit.resave", not left, expected=f"no shard of the {ranks} ranks that saved before", seen=left)
    again = run.world(fewer, seed=9)
    run.expect_landing("commit.resave", again.load(), {2})
    run.expect_state("resume.exact", again, 2, seed=1)


# -- who waits for whom -------------------------------------------------------


@judges("commit.collective", needs=("layout",))
def test_no_rank_returns_before_rank_0_has_written_what_all_share(run: Scenario, ranks: int, mode: str) -> None:
    world = run.world(Shape(ranks), mode=mode, gated=[0])
    world.train_to(2)
    for file in ("train_state.pt", "metadata.json"):
        _expect_all_wait(run, world, partial(_names_a, names=(file,)), f"writes {file}")
        world.step += 1
        world.ranks.together("train", steps=1)


@judges("commit.collective", needs=("sync", "pointer"))
def test_no_rank_returns_from_a_synchronous_save_before_latest_has_moved(run: Scenario, ranks: int) -> None:
    world = run.world(Shape(ranks), mode="sync", gated=[0])
    world.train_to(2)
    pointer = str(run.folder.layout.pointer)
    _expect_all_wait(run, world, lambda operation: operation.paths[-1] == pointer, f"moves {pointer}")
    run.expect("commit.collective", run.folder.latest() == 2, expected="latest at step 2", seen=str(run.folder))


@pytest.mark.parametrize("call", ["wait", "flush"])
@judges("commit.no-later-than", needs=("distributed", "async"))
def test_no_rank_returns_from_a_wait_before_the_flush_of_any_is_committed(
    run: Scenario, fewest: int, call: str
) -> None:
    for held in (0, fewest - 1):
        world = run.world(Shape(fewest), mode="async", gated=[held])
        world.train_to(2 + held)
        _save_held(run, world, held)
        world.tell(f"calls {call} on every rank")
        world.ranks.begin(call)
        done = world.ranks.settled()
        run.expect(
            "commit.no-later-than",
            not done,
            expected=f"{call} to return on no rank while the flush of rank {held} is held",
            seen=f"it has returned on rank {_listed(done)}; {run.folder}",
        )
        world.open_gates()
        values(world.ranks.ends())
        world.kill()


@judges("commit.all-stages")
def test_latest_waits_for_a_stage_that_is_held_back(run: Scenario, ranks: int, mode: str) -> None:
    shape = staged(ranks)
    last, markers = shape.members(1), run.folder.layout.required_of_stage
    world = run.world(shape, mode=mode, gated=last)
    world.commit_at(2)
    world.train_to(4)
    for rank in last:
        world.gate_of(rank).close(partial(_names_a, names=markers))
    world.tell(f"goes on, but the last stage, rank {_listed(last)}, is held whenever it touches {_listed(markers)}")
    world.begin_save()
    if not world.wait_held(last, run.patience_s):
        raise Unreached(f"no rank of the last stage touches {_listed(markers)} in a save, so it can't be held back")
    if len(world.ranks.settled()) == world.shape.ranks:  # `save` has returned, and the flush goes on
        values(world.ranks.ends())
        world.begin_wait()
    while held := (world.ranks.settled(), world.wait_held(last, 0.1))[1]:
        gate, look = world.gate_of(held[0]), run.folder.look()
        run.expect(
            "commit.all-stages",
            commit.may_point_at(look.resume_point, look.complete),
            expected=f"latest at a step whose stages are all durable while rank {held[0]} is held",
            seen=f"just before {gate.held()[0]} on rank {held[0]}: {look}",
        )
        gate.step()
    world.open_gates()
    values(world.ranks.ends())
    world.wait()
    run.expect("commit.all-stages", run.folder.latest() == 4, expected="latest at 4 in the end", seen=str(run.folder))


@judges("commit.own-group", "commit.no-later-than", "resume.exact")
def test_training_and_back_to_back_saves_never_meet_a_flush_in_their_groups(run: Scenario, team: Shape) -> None:
    world = run.world(team, mode="async", gated=[0])
    world.train_to(2)
    gate = world.gate_of(0)
    _save_held(run, world, 0)
    files: set[tuple[str, ...]] = set()
    while gate.wait_held(0.3):
        if gate.held()[0].paths not in files:
            files.add(gate.held()[0].paths)
            world.tell(f"has a flush that is held before {gate.held()[0]} on rank 0, and should train on")
            losses = _train_beside_a_flush(run, world)
            _expect_losses(run, world, "commit.own-group", losses)
        gate.step()
    world.open_gates()
    saved = range(world.step + 1, world.step + 5)
    for step in saved:
        world.train_to(step)
        world.save()
    world.wait()
    run.expect(
        "commit.own-group",
        run.folder.complete() >= {2, *saved},
        expected=f"every save of the run complete: 2, {_listed(saved)}",
        seen=str(run.folder),
    )
    again = run.world(team, mode="async", seed=9)
    run.expect_landing("commit.own-group", again.load(), {saved[-1]})
    run.expect_state("resume.exact", again, saved[-1])


def _train_beside_a_flush(run: Scenario, world: World) -> list[list[str]]:
    """One step; a hang is seen by the watchdog, and an error that comes out of training is no hang."""
    try:
        return world.train_to(world.step + 1)
    except OnRank as fault:
        if not fault.is_refusal:
            raise
        run.judge.record_failure(
            "commit.no-later-than",
            expected="the save to be committed in the end, however long its flush takes, and training to go on",
            seen=str(fault),
        )
        raise Unreached("training raised an error of the flush beside it, and did not hang") from fault


@judges("commit.snapshot", needs=("distributed", "async"))
def test_what_ranks_change_after_save_has_returned_does_not_reach_the_disk(run: Scenario, ranks: int) -> None:
    shape = Shape(ranks)
    run.world(shape, mode="async").commit_at(2)
    control = run.world(shape, mode="async", seed=9)
    control.load()
    returns = run.items_that_return(control, 2)
    control.kill()
    world = run.world(shape, mode="async", gated=[shape.last])
    world.train_to(3)
    _save_held(run, world, shape.last)
    world.tell(f"overwrites its state in place on all ranks while the flush of rank {shape.last} is held")
    world.ranks.together("scramble")
    world.open_gates()
    world.wait()
    again = run.world(shape, mode="async", seed=9)
    run.expect_landing("commit.snapshot", again.load(), {3})
    run.expect_state("commit.snapshot", again, 3, only=returns)


@judges("retention.one-deleter", "retention.latest", "retention.drops")
def test_one_rank_deletes_and_no_rank_sees_the_resume_point_without_its_files(run: Scenario, ranks: int) -> None:
    shape = Shape(ranks)
    world = run.world(shape, mode=run.background_mode, keep_last_n=1, gated=True)
    deleting: dict[int, str] = {}

    def watch(rank: int, operation: Operation) -> None:
        old = [run.folder.layout.name.format(step=step) for step in (2, 4) if step < world.step]
        if operation.name in REMOVES and any(name in operation.paths[0].split("/")[0] for name in old):
            deleting.setdefault(rank, str(operation))
        look = run.folder.look()
        run.expect(
            "retention.latest",
            look.resume_point is None or look.resume_point in look.complete,
            expected="a complete resume point at every instant",
            seen=f"just before {operation} on rank {rank}: {look}",
        )

    for rank in range(shape.ranks):
        world.gate_of(rank).observe(partial(watch, rank))
    world.commit_at(2, 4, 6)
    for rank in range(shape.ranks):
        world.gate_of(rank).check()
    run.expect("retention.drops", run.folder.steps() == {6}, expected="step 6 alone", seen=str(run.folder))
    run.expect(
        "retention.one-deleter",
        len(deleting) == 1,
        expected="all deletions of old checkpoints by one rank",
        seen="; ".join(f"rank {rank}: {first}" for rank, first in sorted(deleting.items())),
    )


# -- who is interrupted ---------------------------------------------------------


@judges("interrupt.ranks")
def test_one_rank_that_is_interrupted_in_a_save_keeps_no_other_waiting(run: Scenario, fewest: int, mode: str) -> None:
    for rank in (0, fewest - 1):
        world = run.world(Shape(fewest), mode=mode, gated=[rank], timeout_s=_IMPATIENT_S)
        world.ranks.together("heed_interrupts", how="raise")
        world.load()
        world.commit_at(world.step + 1)
        begun = len(world.gate_of(rank).log)
        world.commit_at(world.step + 1)
        count = len(world.gate_of(rank).log) - begun
        for number in sorted({2 + count // 2, max(1, count - 2)}):
            world.train_to(world.step + 1)
            if _interrupted_save(world, rank, number):
                world.train_to(world.step + 1)
                raised = [error for of_rank in world.saved_or_raised() for error in of_rank]
                run.expect(
                    "interrupt.ranks",
                    not raised and run.folder.latest_or_newest() == world.step,
                    expected=f"the next save to succeed on every rank, and step {world.step} to be the resume point",
                    seen=f"{raised or 'no error'}; {run.folder}",
                )
        world.kill()
        again = run.world(Shape(fewest), mode=mode, seed=9)
        run.expect_landing("interrupt.ranks", again.load(), {world.step})
        again.kill()


def _interrupted_save(world: World, rank: int, number: int) -> bool:
    """Save and wait, with SIGINT to one rank at one of its operations; whether it came to that."""
    gate, is_struck = world.gate_of(rank), False
    gate.close(at(len(gate.log) + number))
    for begin in (world.begin_save, partial(world.ranks.begin, "wait")):
        begin()
        for _ in range(_LOOKS):  # a slow disk lets ranks stand still as well
            done = world.ranks.settled()
            if is_struck or gate.held() or len(done) == world.shape.ranks:
                break
        if gate.held() and not is_struck and not world.ranks.workers[rank].has_word():
            world.tell(f"has SIGINT come to rank {rank} before {gate.held()[0]}")
            world.ranks.workers[rank].interrupt()
            is_struck = True
            gate.open()
        for outcome in world.ranks.ends():
            world.tell(str(outcome)[:200])
    gate.open()
    return is_struck


# -- one of them fails --------------------------------------------------------


@judges("commit.rank-failure", "commit.failed-flush", "commit.failed-save")
def test_a_full_disk_on_one_rank_is_raised_on_all_and_commits_nothing(run: Scenario, team: Shape) -> None:
    _expect_full_disk_to_be_told(run, team, run.background_mode, team.last)


@judges("commit.rank-failure", "commit.failed-flush", "commit.failed-save")
def test_a_full_disk_on_rank_0_is_raised_on_all_and_commits_nothing(run: Scenario, fewest: int, mode: str) -> None:
    _expect_full_disk_to_be_told(run, Shape(fewest), mode, 0)


@judges("commit.rank-failure", "commit.failed-flush", "commit.failed-save")
def test_a_permission_that_is_refused_on_one_rank_is_raised_on_all(run: Scenario, fewest: int) -> None:
    _expect_failure_to_be_told(
        run,
        Shape(fewest),
        run.mode,
        fewest - 1,
        "may not make files",
        lambda operation: operation.writes and operation.name.startswith("open"),
        errno.EACCES,
    )


@judges("commit.rank-failure", "commit.failed-flush", "commit.failed-save")
def test_a_commit_that_fails_on_rank_0_is_raised_on_all(run: Scenario, fewest: int, mode: str) -> None:
    _expect_failure_to_be_told(
        run, Shape(fewest), mode, 0, "can't rename", lambda operation: "rename" in operation.name
    )


@judges("commit.rank-failure", "commit.failed-flush", "commit.failed-save", needs=("pointer",))
def test_a_pointer_that_can_not_be_moved_on_rank_0_is_raised_on_all(run: Scenario, fewest: int, mode: str) -> None:
    pointer = run.folder.layout.pointer

    def moves(operation: Operation) -> bool:
        return operation.writes and operation.paths[-1] == pointer

    _expect_failure_to_be_told(run, Shape(fewest), mode, 0, f"can't touch {pointer}", moves)


def _expect_full_disk_to_be_told(run: Scenario, shape: Shape, mode: str, rank: int) -> None:
    _expect_failure_to_be_told(run, shape, mode, rank, "finds the disk full", lambda operation: operation.writes_data)


def _expect_failure_to_be_told(
    run: Scenario, shape: Shape, mode: str, rank: int, how: str, picks: Picks, number: int = errno.ENOSPC
) -> None:
    world = run.world(shape, mode=mode, gated=[rank], timeout_s=_IMPATIENT_S)
    world.commit_at(2)
    world.train_to(4)
    gate = world.gate_of(rank)
    gate.fail(picks, number)
    world.tell(f"goes on, but rank {rank} {how}")
    raised = world.saved_or_raised()
    if not gate.failed:
        raise Unreached(f"rank {rank} did nothing in a save that could fail so")
    _expect_refused(run, raised, f"what failed on rank {rank}", committed=2, refused=[4])
    gate.stop_failing()
    world.tell(f"is well again on rank {rank}")
    world.commit_at(6)
    again = run.world(shape, mode=mode, seed=9)
    landed = again.load()
    run.expect_landing("commit.failed-save" if mode == "sync" else "commit.failed-flush", landed, {6})


@judges("commit.rank-failure", "resume.continue", "resume.exact")
def test_a_rank_that_is_killed_in_a_save_takes_it_with_it_and_nobody_waits_for_ever(run: Scenario, team: Shape) -> None:
    _expect_death_to_be_told(run, team, run.background_mode, team.last)


@judges("commit.rank-failure", "resume.continue", "resume.exact")
def test_rank_0_killed_in_a_save_takes_it_with_it_and_nobody_waits_for_ever(
    run: Scenario, fewest: int, mode: str
) -> None:
    _expect_death_to_be_told(run, Shape(fewest), mode, 0)


def _expect_death_to_be_told(run: Scenario, shape: Shape, mode: str, rank: int) -> None:
    world = run.world(shape, mode=mode, gated=[rank], timeout_s=_IMPATIENT_S)
    world.commit_at(2)
    world.train_to(4)
    gate = world.gate_of(rank)
    gate.close(lambda operation: operation.writes)
    world.begin_save()
    if not gate.wait_held(run.patience_s):
        raise Unreached(f"rank {rank} does nothing with files in a save, so it can't be killed at it")
    world.tell(f"is about to do {gate.held()[0]} on rank {rank}")
    world.kill(rank)
    raised = _raised_by_all_but(world, rank)
    _expect_refused(run, raised, f"that rank {rank} is gone", committed=2, refused=[4])
    world.kill()
    again = run.world(shape, mode=mode, seed=9)
    run.expect_landing("resume.continue", again.load(), {2})
    run.expect_state("resume.exact", again, 2)
    again.commit_at(4)


@judges("commit.rank-failure", "resume.lands", "resume.exact", needs=("pointer",))
def test_rank_0_killed_when_all_have_written_is_not_waited_for_for_ever(run: Scenario, fewest: int, mode: str) -> None:
    world = run.world(Shape(fewest), mode=mode, gated=[0], timeout_s=_IMPATIENT_S)
    world.commit_at(2)
    world.train_to(4)
    gate, pointer = world.gate_of(0), run.folder.layout.pointer
    gate.close(lambda operation: operation.writes and operation.paths[-1] == pointer)
    world.begin_save()
    if not gate.wait_held(run.patience_s):
        raise Unreached(f"rank 0 does not move {pointer} in a save, so it can't be killed at it")
    world.tell(f"is about to do {gate.held()[0]} on rank 0")
    world.kill(0)
    raised = _raised_by_all_but(world, 0)
    run.expect(
        "commit.rank-failure",
        all(raised),
        expected="every other rank to raise that rank 0 is gone, in save or in the wait after it",
        seen=_errors_by_rank(raised),
    )
    world.kill()
    again = run.world(Shape(fewest), mode=mode, seed=9)
    run.expect_landing("resume.lands", again.load(), {2, 4}, "2 is committed, and 4 nearly")
    run.expect_state("resume.exact", again, again.step)


@judges("commit.rank-failure", needs=("sync",))
def test_a_rank_that_stands_still_is_not_waited_for_longer_than_the_timeout(run: Scenario, fewest: int) -> None:
    ranks, world = fewest, run.world(Shape(fewest), mode="sync", timeout_s=_IMPATIENT_S)
    world.commit_at(2)
    world.train_to(4)
    world.strike(ranks - 1, signal.SIGSTOP)
    world.tell(f"is stopped, not killed, on rank {ranks - 1}; a collective waits {_IMPATIENT_S} s")
    others = range(ranks - 1)
    world.begin_save(on=others)
    raised = [[str(outcome.fault)] if outcome.fault else [] for outcome in world.ranks.ends()]
    _expect_refused(run, raised, f"that rank {ranks - 1} does not answer", committed=2, refused=[4])


@judges("commit.same-step")
def test_ranks_that_save_different_steps_are_all_told_so(run: Scenario, ranks: int) -> None:
    shape = Shape(ranks)
    world = run.world(shape, mode=run.background_mode, timeout_s=_IMPATIENT_S)
    world.commit_at(2)
    world.train_to(4)
    raised = world.saved_or_raised(step=lambda rank: 4 + (rank == shape.last))
    run.expect(
        "commit.same-step",
        all(raised) and run.folder.latest_or_newest() == 2 and run.folder.complete() == {2},
        expected=f"an error on every rank when rank {shape.last} saves step 5 and the others 4, and only step 2",
        seen=f"{_errors_by_rank(raised)}; {run.folder}",
    )


@judges("commit.groups-fit")
def test_a_process_group_that_covers_one_rank_alone_is_refused_by_all(run: Scenario, ranks: int) -> None:
    world, opened = run.world_alone(Shape(ranks), timeout_s=_IMPATIENT_S)
    raised = [[str(outcome.fault)] if outcome.fault else [] for outcome in opened]
    if not any(raised):
        raised = world.saved_or_raised(step=0)
    run.expect(
        "commit.groups-fit",
        all(raised) and not run.folder.steps(),
        expected="an error on every rank, and nothing saved, when each hands over a process group of its own",
        seen=f"{_errors_by_rank(raised)}; {run.folder}",
    )


# -- looking ------------------------------------------------------------------


def _names(path: Path) -> set[str]:
    return set(os.listdir(path)) if path.is_dir() else set()


def _shards(run: Scenario, step: int) -> list[Path]:
    path = run.folder.of(step)
    return [file for file in path.rglob("*") if file.is_file() and file.name not in run.folder.layout.required]


def _names_a(operation: Operation, names: tuple[str, ...]) -> bool:
    """Whether it is about a file of one of these names, or of one made from it, as `.metadata.tmp`."""
    return any(os.path.basename(path).startswith(names) for path in operation.paths)


def _listed(items: Iterable[object]) -> str:
    return ", ".join(map(str, items))


def _expect_losses(run: Scenario, world: World, clause: str, losses: list[list[str]]) -> None:
    expected = run.timeline(world.seed, shape=world.shape).losses_by_rank(world.step - len(losses[0]), world.step)
    run.expect(
        clause,
        losses == expected,
        expected=f"each rank's losses of a run that never saves, up to step {world.step}",
        seen=f"{losses} instead of {expected}",
    )


def _save_held(run: Scenario, world: World, rank: int) -> None:
    """A save that has returned on all ranks, while the flush of one is held at a file operation."""
    gate = world.gate_of(rank)
    gate.close(in_background)
    world.tell(f"goes on, but the flush of rank {rank} is held")
    world.begin_save()
    _let_go_until_replied(run, world, rank)
    while gate.wait_held(run.patience_s):
        world.ranks.begin("ping")
        if _let_go_until_replied(run, world, rank):
            return
    raise Unreached(f"the flush of rank {rank} could not be held with training free to go on; see commit.overlap")


def _let_go_until_replied(run: Scenario, world: World, rank: int) -> bool:
    """Take the replies of all ranks; whether they came without letting go what is held.

    A writer that keeps the interpreter's lock while it is held keeps its main thread as well.
    """
    gate, patience_s = world.gate_of(rank), world.ranks.workers[rank].patience_s
    is_first, deadline = True, time.monotonic() + patience_s
    while not world.ranks.reply_or_block() and time.monotonic() < deadline:  # `ends` finds out whether they hang
        if gate.held():
            is_first, deadline = False, time.monotonic() + patience_s
            gate.step()
    values(world.ranks.ends())
    return is_first


def _expect_all_wait(run: Scenario, world: World, holds: Picks, doing: str) -> None:
    gate = world.gate_of(0)
    gate.close(holds)
    world.tell(f"goes on, but rank 0 is held before it {doing}")
    world.begin_save()
    is_held = gate.wait_held(run.patience_s)
    done = world.ranks.settled()
    if is_held:
        run.expect(
            "commit.collective",
            not done,
            expected=f"save to return on no rank before rank 0 {doing}",
            seen=f"it has returned on rank {', '.join(map(str, done))}",
        )
    world.open_gates()
    world.ranks.ends()
    if not is_held:
        raise Unreached(f"rank 0 could not be held before it {doing}")
    world.wait()


def _expect_refused(run: Scenario, raised: list[list[str]], what: str, committed: int, refused: list[int]) -> None:
    run.expect(
        "commit.rank-failure",
        all(raised),
        expected=f"every rank to raise {what}, in save or in the wait after it",
        seen=_errors_by_rank(raised),
    )
    run.expect(
        "commit.rank-failure",
        run.folder.latest_or_newest() == committed and run.folder.complete().isdisjoint(refused),
        expected=f"latest still at step {committed}, and no complete {refused}",
        seen=str(run.folder),
    )


def _raised_by_all_but(world: World, dead: int) -> list[list[str]]:
    """What the save and the wait after it come to on the other ranks."""
    raised: list[list[str]] = [[] for _ in range(world.shape.ranks)]
    for outcome in (*world.ranks.ends(), *world.ranks.outcomes("wait")):
        raised[outcome.rank] += [str(outcome.fault)] if outcome.fault else []
    raised[dead] = ["it is dead"]
    return raised


def _errors_by_rank(raised: list[list[str]]) -> str:
    return "; ".join(f"rank {rank}: {'; '.join(texts) or 'no error'}" for rank, texts in enumerate(raised))


@judges("commit.gradients-said", needs=("distributed",))
def test_gradients_that_no_step_has_taken_are_said_however_they_are_divided(run: Scenario, shape: Shape) -> None:
    world = run.world(shape)
    for step, how in enumerate(["kept", "half", "kept"], start=1):
        world.train_to(step)
        if how == "half":
            world.ranks.together("accumulate", how=how)
            world.tell("accumulates half a batch's gradients")
        world.save()
        said = "gradient" in world.warnings
        world.wait()
        run.expect(
            "commit.gradients-said",
            said is (how == "half"),
            expected="a warning of gradients" if how == "half" else "no warning of gradients",
            seen=world.warnings or "no warning",
        )
