"""Several ranks load, and putting the values in fails on one of them: all raise, and all are as they were."""

import pytest

from forge_conformance.judging.judge import Unreached, judges
from forge_conformance.runs.group import Shape, staged
from forge_conformance.runs.life import World
from forge_conformance.runs.scenario import Scenario
from forge_conformance.runs.state import ALL_KINDS, STATE

_CLAUSE = "resume.refused-by-all"
_OTHER = 9


@pytest.mark.parametrize("part", ["module", "optimizer", "scheduler", "dataloader"])
@judges(_CLAUSE)
def test_code_that_raises_on_any_rank_alone_refuses_the_load_of_all(run: Scenario, fewest: int, part: str) -> None:
    _expect_refused_by_all(run, Shape(fewest), part)


@judges(_CLAUSE, needs=("pipeline",))
def test_code_that_raises_in_one_stage_refuses_the_load_of_all(run: Scenario, fewest: int) -> None:
    _expect_refused_by_all(run, staged(fewest), "module")


@judges(_CLAUSE)
def test_a_tensor_that_one_rank_can_not_write_to_refuses_the_load_of_all(run: Scenario, fewest: int) -> None:
    shape = Shape(fewest)
    saved = _started(run, shape, "buffer", seed=0)
    saved.commit_at(2)
    for odd in range(fewest):
        world = _started(run, shape, "buffer", seed=_OTHER)
        world.train_to(1)
        world.ranks.outcomes("expand", on=[odd])
        run.judge.tell(f"the elements of that buffer share memory from here on, on rank {odd} alone")
        _expect_refused(run, world, odd, may_succeed=True)
        world.kill()


def _expect_refused_by_all(run: Scenario, shape: Shape, part: str) -> None:
    if part == "dataloader" and not run.has("dataloader"):
        raise Unreached("the manager does not bring a loader back")
    saved = _started(run, shape, "extra", seed=0)
    saved.commit_at(2)
    state = saved.digest()
    world = _started(run, shape, "extra", seed=_OTHER)
    world.train_to(1)
    for odd in range(shape.ranks):
        world.ranks.outcomes("fail_once", on=[odd], part=part)
        run.judge.tell(f"the {part} of rank {odd} alone will raise the next time that it has taken a state")
        _expect_refused(run, world, odd)
    run.expect_landing(_CLAUSE, world.load(), {2}, "nothing raises this time")
    run.expect_same(_CLAUSE, world.digest(), state, STATE, "every rank's state of step 2, when it was saved")


def _started(run: Scenario, shape: Shape, kind: str, seed: int) -> World:
    world = run.world(shape, seed=seed)
    name, *_ = world.ranks.together("add_state", kind=kind, seed=seed)
    what = {"extra": "state beside its tensors", "buffer": "a buffer of equal elements"}[kind]
    run.judge.tell(f"the model of every rank ends with a module, {name}, that has {what}")
    return world


def _expect_refused(run: Scenario, world: World, odd: int, may_succeed: bool = False) -> None:
    before = world.digest()
    found = world.load_outcomes()
    raised = [outcome.rank for outcome in found if outcome.fault is not None]
    if not raised and may_succeed:
        raise Unreached("the load found a way to put values into a buffer whose elements share memory")
    run.expect(
        _CLAUSE,
        len(raised) == world.shape.ranks,
        expected=f"an error on every rank, since putting the values in fails on rank {odd}",
        seen=f"an error on rank {', '.join(map(str, raised)) or 'none'} alone",
        detail="\n".join(str(outcome.fault) for outcome in found if outcome.fault is not None),
    )
    run.expect_same(_CLAUSE, world.digest(), before, ALL_KINDS, "every rank's state before the refused load")
