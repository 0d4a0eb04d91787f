"""Ranks die at file operations, again and again, and the run always goes on as if nothing had happened.

A run is killed, resumed, trained on, saved and killed again, over one folder.
Each death is at a random operation of a random rank, and takes in turn that one
alone, whereupon the others have to come to an end, and all ranks at once.  What
the next resume lands on must be the last committed step or the one that was
being saved, and every rank's losses and state from there on those of the
uninterrupted run.
"""

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from forge_conformance.judging.judge import Unreached, judges
from forge_conformance.runs.group import Shape
from forge_conformance.runs.life import World
from forge_conformance.runs.process import Hung
from forge_conformance.runs.scenario import Scenario
from forge_conformance.runs.state import STATE, Digest, differing
from forge_conformance.watch.gate import Operation, at

_DEATHS = 3
"""How often a run is killed unless `--examples` says otherwise."""
_CLAUSES = ("resume.exact", "resume.rng-per-rank", "commit.whole", "resume.continue", "commit.rank-failure")
_IMPATIENT_S = 5
_OTHER = 9


@dataclass
class _Record:
    """What the lives so far have left."""

    committed: int | None = None
    """The newest step that a wait has acknowledged."""
    saving: int | None = None
    """A later one that was being saved when the run died."""
    states: dict[int, list[Digest]] = field(default_factory=dict)
    """What was saved at each step."""

    def may_land_on(self) -> set[int | None]:
        """Where the next resume may come back."""
        return {self.committed} if self.saving is None else {self.committed, self.saving}

    def note(self, world: World) -> None:
        """What is about to be saved."""
        self.states.setdefault(world.step, []).append(world.digest(*STATE))


@judges(*_CLAUSES, needs=("distributed",))
def test_killed_at_random_operations_the_run_stays_the_same(
    run: Scenario, team: Shape, request: pytest.FixtureRequest
) -> None:
    _expect_to_survive(run, team, run.background_mode, request)


@judges(*_CLAUSES, needs=("distributed", "sync"))
def test_killed_at_random_operations_of_synchronous_saves_the_run_stays_the_same(
    run: Scenario, fewest: int, request: pytest.FixtureRequest
) -> None:
    _expect_to_survive(run, Shape(fewest), "sync", request)


def _expect_to_survive(run: Scenario, team: Shape, mode: str, request: pytest.FixtureRequest) -> None:
    asked = request.config.getoption("--forge-examples")
    dice = random.Random(None if asked else f"{team.label} {mode}")
    settings: dict[str, Any] = {"mode": mode, "keep_last_n": 2 if run.has("retention") else 0}
    record = _Record()
    for life in range(asked or _DEATHS):
        rank = dice.randrange(team.ranks)
        run.retell(f"after {life} deaths step {record.committed} is committed, and {record.saving} was being saved")
        world = run.world(team, seed=_OTHER if life else 0, gated=[rank], timeout_s=_IMPATIENT_S, **settings)
        _expect_back(run, world, record)
        _save_and_die(run, world, record, rank, dice, is_alone=life % 2 == 0)
    last = run.world(team, seed=_OTHER, **settings)
    _expect_back(run, last, record)
    last.commit_at(last.step + 1)
    again = run.world(team, seed=_OTHER, **settings)
    run.expect_landing("resume.continue", again.load(), {last.step}, "the run saved on after all these deaths")


def _expect_back(run: Scenario, world: World, record: _Record) -> None:
    """The resumed run is where it may be, and is the uninterrupted run from there on."""
    landed = world.load()
    run.expect_landing("commit.whole", landed, record.may_land_on(), "one is committed, one was being saved")
    if landed[0].is_fresh or run.has("rng", "dataloader"):
        run.expect_state("resume.exact", world, world.step, kinds=STATE)
    else:  # a run whose random streams or loaders begin anew at each resume has states of its own
        seen = world.digest(*STATE)
        nearest = min(record.states[world.step], key=lambda saved: len(differing(saved, seen)))
        run.expect_same("resume.exact", seen, nearest, STATE, f"a state that was saved at step {world.step}")
    if not landed[0].is_fresh:
        run.expect_state("resume.rng-per-rank", world, world.step, kinds=["rng"])
    began, losses = world.step, world.train_to(world.step + 2)
    if run.has("rng", "dataloader"):
        expected = run.timeline(shape=world.shape).losses_by_rank(began, world.step)
        run.expect("resume.exact", losses == expected, expected=f"the losses {expected}", seen=f"{losses}")


def _save_and_die(run: Scenario, world: World, record: _Record, rank: int, dice: random.Random, is_alone: bool) -> None:
    """Commit a step, begin to save a later one, and die at one of as many operations of a rank as the commit took."""
    gate = world.gate_of(rank)
    before = len(gate.log)
    record.note(world)
    world.commit()
    record.committed, record.saving = world.step, None
    operation = dice.randrange(1, len(gate.log) - before + 2)
    world.train_to(world.step + 1)
    record.note(world)
    gate.close(at(len(gate.log) + operation))
    world.begin_save()
    record.saving = world.step
    world.ranks.settled()
    world.wait_held([rank], 0.2)  # the flush of an asynchronous save may begin late; then it dies before that
    held = ", ".join(map(str, gate.held())) or "none is left"
    world.tell(f"is about to do operation {operation} of rank {rank}: {held}")
    if is_alone:
        _lose(run, world, rank)
    world.kill()


def _lose(run: Scenario, world: World, rank: int) -> None:
    """One rank dies alone; whatever becomes of the save, the others have to hear of it."""
    world.kill(rank)
    hang = ""
    try:
        for outcome in (*world.ranks.ends(), *world.ranks.outcomes("wait")):
            run.judge.tell(str(outcome)[:160])
    except Hung as error:
        hang = str(error)
    expected = f"every other rank to come to an end when rank {rank} has died"
    run.expect("commit.rank-failure", not hang, expected=expected, seen=hang)


@judges("resume.error-everywhere", needs=("distributed",))
def test_a_rank_that_dies_in_a_load_is_not_waited_for_for_ever(run: Scenario, team: Shape) -> None:
    _expect_death_to_be_raised(run, team, team.last)


@judges("resume.error-everywhere", needs=("distributed",))
def test_rank_0_dead_in_a_load_is_not_waited_for_for_ever(run: Scenario, fewest: int) -> None:
    _expect_death_to_be_raised(run, Shape(fewest), 0)


def _expect_death_to_be_raised(run: Scenario, shape: Shape, rank: int) -> None:
    run.world(shape).commit_at(2)
    world = run.world(shape, seed=_OTHER, timeout_s=_IMPATIENT_S, gated=[rank], reads=True)
    gate = world.gate_of(rank)
    gate.close(_is_of_a_checkpoint)
    world.begin_load()
    if not gate.wait_held(run.patience_s):
        raise Unreached(f"rank {rank} opens no file of a checkpoint in a load, so it can't die at it")
    world.tell(f"is about to do {gate.held()[0]} on rank {rank}")
    world.kill(rank)
    found = world.ranks.ends()
    run.expect(
        "resume.error-everywhere",
        all(outcome.fault is not None for outcome in found),
        expected=f"every other rank to raise, because rank {rank} has died in the load",
        seen="; ".join(map(str, found)),
    )
    world.kill()
    again = run.world(shape, seed=_OTHER)
    run.expect_landing("resume.error-everywhere", again.load(), {2}, "nothing was lost")


def _is_of_a_checkpoint(operation: Operation) -> bool:
    """Not the folder itself, nor its pointer: the first of these comes when a load has begun to read for good."""
    return any("/" in path for path in operation.paths)
