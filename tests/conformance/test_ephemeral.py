"""Chapter ephemeral: what hooks of the training loop save, of which kind, and what they remove.

Most tests train a few batches, let what has begun in the background come to its
end, and look at the folder.  Removal may be on a thread of its own, so it is
looked for after that as well.
"""

import contextlib
import errno
import os
import random
import shutil
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest

from forge_conformance.judging.judge import Unreached, judges
from forge_conformance.runs.group import Shape
from forge_conformance.runs.hooks import HookedLife, begun, hooked, hooked_world, kind_of, look_at_hooks, resumed
from forge_conformance.runs.life import World
from forge_conformance.runs.process import Raised
from forge_conformance.runs.scenario import Scenario
from forge_conformance.runs.state import ALL_KINDS
from forge_conformance.watch.gate import Operation, at
from forge_conformance.worker.system_calls import REMOVES
from forge_spec import ephemeral

_SYNCING = ("fsync", "fdatasync", "syncfs", "sync_file_range")
_SIX_AND_TWO: dict[str, Any] = {"save_interval": 6, "ephemeral_save_interval": 2}


# -- what is saved --------------------------------------------------------------


@judges("ephemeral.permanent", "ephemeral.between", "ephemeral.keeps", "ephemeral.replaced")
def test_a_run_saves_at_its_intervals_and_permanent_ones_where_both_are_due(run: Scenario, mode: str) -> None:
    life = begun(run, mode=mode, save_interval=5, ephemeral_save_interval=2)
    _walk(run, life, ephemeral.Plan(5, 2), until=11)


@judges("ephemeral.between", "ephemeral.permanent")
def test_without_an_ephemeral_interval_there_are_permanent_ones_alone(run: Scenario) -> None:
    life = begun(run, save_interval=3)
    _walk(run, life, ephemeral.Plan(3), until=4)


@judges("ephemeral.between", "ephemeral.replaced")
def test_without_a_permanent_interval_there_are_ephemeral_ones_alone(run: Scenario) -> None:
    life = begun(run, save_interval=None, ephemeral_save_interval=2)
    _walk(run, life, ephemeral.Plan(None, 2), until=5)


@judges("ephemeral.fixed")
def test_a_fixed_step_is_permanent_on_the_ephemeral_interval_and_on_none(run: Scenario, mode: str) -> None:
    settings = {"save_interval": 100, "ephemeral_save_interval": 2}
    life = begun(run, mode=mode, fixed_steps=[4, 5], **settings)
    for step in range(1, 8):
        life.settled_batches_to(step)
        if step in (4, 5):
            _expect_kind(run, "ephemeral.fixed", step, ephemeral.PERMANENT)
    run.expect(
        "ephemeral.fixed",
        {4, 5} <= run.folder.complete(),
        expected="the fixed steps 4 and 5, which a later ephemeral checkpoint does not replace",
        seen=str(run.folder),
    )


@judges("ephemeral.cooldown")
def test_an_ephemeral_one_keeps_its_distance_from_the_save_before_it(run: Scenario) -> None:
    life = hooked(run, ephemeral_cooldown=4, **{**_SIX_AND_TWO, "pre_train_checkpoint": True})
    life.pre_train()
    life.settle()
    plan = ephemeral.Plan(**_SIX_AND_TWO, ephemeral_cooldown=4)
    due = ephemeral.saves(plan, 1, 12, last_saved=0)
    for step in range(1, 13):
        life.settled_batches_to(step)
        run.expect(
            "ephemeral.cooldown",
            (step in run.folder.complete()) == (step in due),
            expected=f"the saves {_listed(due)}, with a cooldown of 4 and step 0 saved",
            seen=f"after step {step}: {run.folder}",
            reaches=step % 2 == 0,
        )


@judges("ephemeral.blocked")
def test_while_the_run_blocks_them_no_ephemeral_one_is_saved(run: Scenario, mode: str) -> None:
    life = begun(run, mode=mode, save_interval=4, ephemeral_save_interval=2)
    life.block_ephemeral(True)
    for step in (2, 4):
        life.settled_batches_to(step)
    run.expect(
        "ephemeral.blocked",
        run.folder.complete() == {4},
        expected="step 4, which is permanent, and not step 2",
        seen=str(run.folder),
    )
    life.block_ephemeral(False)
    life.settled_batches_to(6)
    run.expect(
        "ephemeral.blocked",
        run.folder.complete() == {4, 6},
        expected="step 6 as well, when nothing is blocked any more",
        seen=str(run.folder),
    )


@pytest.mark.parametrize("wanted", [True, None, False])
@judges("ephemeral.pre-train")
def test_untrained_weights_are_saved_before_training_if_wanted(run: Scenario, mode: str, wanted: bool | None) -> None:
    life = hooked(run, mode=mode, pre_train_checkpoint=wanted)
    life.pre_train()
    life.settle()
    expected = {0} if ephemeral.due_before_training(0, wanted, was_resumed=False) else set()
    run.expect(
        "ephemeral.pre-train",
        run.folder.complete() == expected,
        expected=f"{_listed(expected)} with pre_train_checkpoint={wanted}",
        seen=str(run.folder),
    )
    if expected:
        _expect_kind(run, "ephemeral.pre-train", 0, ephemeral.PERMANENT)
    life.batches_to(1)


@judges("ephemeral.pre-train")
def test_a_run_that_resumed_at_step_0_does_not_save_it_again(run: Scenario) -> None:
    begun(run, pre_train_checkpoint=True).kill()
    before = _identity(run, 0)
    life = resumed(run, pre_train_checkpoint=None)
    run.expect(
        "ephemeral.pre-train",
        _identity(run, 0) == before,
        expected="step 0 as it was saved by the run before",
        seen="another file in its place",
        detail=f"the resume had landed on step {life.step}",
    )


@judges("ephemeral.default-async")
def test_a_run_that_says_nothing_about_it_saves_in_the_background(run: Scenario) -> None:
    life = begun(run, mode="unset", gated=True, save_interval=1)
    is_held = life.batch_held()
    run.expect(
        "ephemeral.default-async",
        is_held and 1 not in run.folder.complete(),
        expected="the hook to return while its flush is held",
        seen=str(run.folder) if is_held else f"nothing could be held in the background; {run.folder}",
    )


@judges("ephemeral.last")
def test_the_last_step_is_saved_as_permanent_if_it_lies_on_no_interval(run: Scenario, mode: str) -> None:
    life = begun(run, mode=mode, **_SIX_AND_TWO)
    life.batches_to(7)
    life.post_train()
    run.expect(
        "ephemeral.last", 7 in run.folder.complete(), expected="step 7 complete as post_train returns", seen=run.folder
    )
    _expect_kind(run, "ephemeral.last", 7, ephemeral.PERMANENT)


@pytest.mark.parametrize("last", [2, 6])
@judges("ephemeral.last")
def test_a_last_step_that_is_saved_already_is_not_saved_again(run: Scenario, mode: str, last: int) -> None:
    life = begun(run, mode=mode, **_SIX_AND_TWO)
    life.settled_batches_to(last)
    before = _identity(run, last)
    life.post_train()
    run.expect(
        "ephemeral.last",
        _identity(run, last) == before,
        expected=f"step {last} as the hook after its batch has saved it",
        seen=f"another file in its place, or none: {run.folder}",
    )


@judges("ephemeral.last", needs=("async",))
def test_training_does_not_end_before_its_last_flush(run: Scenario) -> None:
    life = begun(run, mode="async", gated=True, **_SIX_AND_TWO)
    life.batches_to(1)
    if not life.batch_held():
        raise Unreached("the flush of step 2 could not be held while its hook returned; see ephemeral.default-async")
    life.worker.begin("post_train")
    has_returned = life.worker.replies_or_blocks()
    run.expect(
        "ephemeral.last",
        not has_returned,
        expected="post_train to wait while the flush of step 2 is held",
        seen="it has returned",
    )
    life.open_gate()
    if not has_returned:
        life.worker.reply()
    run.expect("ephemeral.last", 2 in run.folder.complete(), expected="step 2 complete", seen=str(run.folder))


@judges("ephemeral.last-in-spite")
def test_the_last_step_is_saved_although_its_flush_has_failed(run: Scenario) -> None:
    life = begun(run, mode="async", gated=True, **_SIX_AND_TWO)
    life.batches_to(1)
    _fail_flush(run, life, 2)
    raised = ""
    try:
        life.post_train()
    except Raised as error:
        raised = str(error)
    run.expect(
        "ephemeral.last-in-spite",
        2 in run.folder.complete(),
        expected="step 2 saved at the end of training, when the disk has space again",
        seen=f"{run.folder}; post_train raised {raised or 'nothing'}",
    )
    run.expect(
        "ephemeral.last-in-spite", bool(raised), expected="the error of the flush that had failed", seen="no error"
    )


@judges("ephemeral.disabled")
def test_a_disabled_callback_does_nothing_over_a_folder_in_which_there_is_much_to_do(run: Scenario) -> None:
    first = begun(run, save_interval=4, ephemeral_save_interval=1)
    first.settled_batches_to(3)
    first.kill()
    before = run.folder.files()
    life = resumed(run, enabled=False, save_interval=4, ephemeral_save_interval=1, pre_train_checkpoint=True)
    life.batches_to(6)
    life.post_train()
    life.settle()
    run.expect(
        "ephemeral.disabled", run.folder.files() == before, expected=f"as before: {before}", seen=run.folder.files()
    )


@judges("ephemeral.inert")
def test_a_run_with_hooks_computes_what_a_run_without_computes(run: Scenario, mode: str) -> None:
    life = hooked(run, mode=mode, save_interval=3, ephemeral_save_interval=1, pre_train_checkpoint=True)
    before = life.digest()
    life.pre_train()
    run.expect_same("ephemeral.inert", life.digest(), before, ALL_KINDS, "the state around the save before training")
    for step in range(1, 6):
        losses = life.batches_to(step)
        run.expect(
            "ephemeral.inert",
            losses == run.timeline().losses(step - 1, step),
            expected=f"the loss of step {step} as in a run without hooks: {run.timeline().losses(step - 1, step)}",
            seen=losses,
        )
    run.expect_same("ephemeral.inert", life.digest(), run.timeline().digest(5), ALL_KINDS, "the state of step 5")


@judges("ephemeral.idle")
def test_a_hook_at_which_nothing_is_due_touches_no_file(run: Scenario, mode: str) -> None:
    life = begun(run, mode=mode, gated=True, reads=True, save_interval=8, ephemeral_save_interval=4)
    _expect_idle(run, life, 1, 3)
    for step in (4, 8):
        life.settled_batches_to(step)
        life.settled_batches_to(step + 1)  # takes in what has ended
        _expect_idle(run, life, step + 2, step + 3)


def _expect_idle(run: Scenario, life: HookedLife, first: int, last: int) -> None:
    before = len(life.gate.log)
    life.batches_to(last)
    life.settle()
    touched = [str(operation) for operation in life.gate.log[before:]]
    run.expect(
        "ephemeral.idle",
        not touched,
        expected=f"no file operation in the hooks of steps {first} to {last}",
        seen=touched,
    )


# -- what is removed ------------------------------------------------------------


@judges("ephemeral.replaced", "ephemeral.keeps")
def test_each_ephemeral_one_goes_when_the_next_one_is_complete(run: Scenario, mode: str) -> None:
    life = begun(run, mode=mode, save_interval=3, ephemeral_save_interval=1)
    _walk(run, life, ephemeral.Plan(3, 1), until=6)


@judges("ephemeral.replaced", needs=("async",))
def test_where_each_flush_lasts_until_the_next_save_nothing_piles_up(run: Scenario) -> None:
    """Every hook finds a save in flight, so that none comes at which it is not."""
    life = begun(run, mode="async", gated=True, save_interval=100, ephemeral_save_interval=1)
    stood = []
    for _ in range(5):  # the gate stays closed: what is held is let go while the next hook waits for it
        if not life.batch_held():
            raise Unreached("a flush could not be held while its hook returned; see ephemeral.default-async")
        stood.append(len(run.folder.complete()))
    life.open_gate()
    life.settle()
    run.expect(
        "ephemeral.replaced",
        len(run.folder.complete()) <= 3,
        expected="at most three of five ephemeral checkpoints: the newest, the one before, and one that is going",
        seen=f"{run.folder}; there were {stood} after each hook",
    )


@judges("ephemeral.keeps")
def test_permanent_ones_and_the_newest_ephemeral_one_stay(run: Scenario, mode: str) -> None:
    life = begun(run, mode=mode, save_interval=3, ephemeral_save_interval=2)
    for last, newest in ((9, 8), (10, 8), (11, 10)):
        life.settled_batches_to(last)
        run.expect(
            "ephemeral.keeps",
            {3, 6, 9, newest} <= run.folder.complete(),
            expected=f"the permanent steps 3, 6 and 9, and the ephemeral one of step {newest}",
            seen=str(run.folder),
        )


@judges("ephemeral.after-complete", "ephemeral.replaced", needs=("async",))
def test_nothing_goes_while_what_replaces_it_is_in_flight(run: Scenario) -> None:
    life = begun(run, mode="async", gated=True, save_interval=100, ephemeral_save_interval=2)
    life.settled_batches_to(3)
    if not life.batch_held():
        raise Unreached("the flush of step 4 could not be held while its hook returned; see ephemeral.default-async")
    life.batches_to(5)
    run.expect(
        "ephemeral.after-complete",
        2 in run.folder.complete(),
        expected="step 2 to stand while step 4, which replaces it, is in flight",
        seen=str(run.folder),
    )
    life.open_gate()
    life.settle()
    life.settled_batches_to(7)
    run.expect(
        "ephemeral.replaced",
        run.folder.complete() & {2, 4} == {4},
        expected="step 4 without step 2, when a hook has found step 4 complete",
        seen=str(run.folder),
    )


@judges("ephemeral.after-complete", needs=("async",))
def test_a_save_that_failed_replaces_nothing(run: Scenario) -> None:
    life = begun(run, mode="async", gated=True, save_interval=100, ephemeral_save_interval=3)
    life.settled_batches_to(3)
    life.settled_batches_to(5)
    _fail_flush(run, life, 6)
    for step in (7, 8):
        with contextlib.suppress(Raised):
            life.batches_to(step)
    life.settle()
    run.expect(
        "ephemeral.after-complete",
        3 in run.folder.complete(),
        expected="step 3 to stand, since step 6 could not be saved",
        seen=str(run.folder),
    )


@judges("ephemeral.after-complete", "ephemeral.invalidate-first", "ephemeral.replaced")
def test_at_every_instant_a_replacement_is_complete_before_anything_goes(run: Scenario, mode: str) -> None:
    life = begun(run, mode=mode, gated=True, save_interval=100, ephemeral_save_interval=2)
    life.settled_batches_to(3)
    files = _files(run, 2)
    life.gate.observe(partial(_watch_removal, run, 2, files, 4))
    life.settled_batches_to(4)
    life.settled_batches_to(5)
    life.gate.check()
    for clause in ("ephemeral.replaced", "ephemeral.after-complete", "ephemeral.invalidate-first"):
        run.expect(clause, run.folder.complete() == {4}, expected="step 4 in the place of step 2", seen=run.folder)


@judges("ephemeral.invalidate-first")
def test_a_removal_is_no_checkpoint_at_any_of_its_instants(run: Scenario, mode: str) -> None:
    life = begun(run, mode=mode, gated=True, save_interval=100, ephemeral_save_interval=1)
    for step in (1, 2, 3):
        life.settled_batches_to(step)
        life.gate.check()
        life.gate.forget()
        life.gate.observe(partial(_watch_removal, run, step, _files(run, step), step + 1))
    life.settled_batches_to(4)
    life.gate.check()
    run.expect(
        "ephemeral.invalidate-first", not {1, 2} & run.folder.steps(), expected="steps 1 and 2 gone", seen=run.folder
    )


@pytest.mark.parametrize("strategy", ["ephemeral_only", "all_non_permanent", "never"])
@judges("ephemeral.collects")
def test_what_an_earlier_run_left_goes_with_the_next_ephemeral_save(run: Scenario, mode: str, strategy: str) -> None:
    first = begun(run, mode=mode, save_interval=100, ephemeral_save_interval=3)
    first.settled_batches_to(3)
    first.kill()
    interval = 2 if strategy == "all_non_permanent" else 3
    life = resumed(run, mode=mode, save_interval=100, ephemeral_save_interval=interval, remove=strategy)
    due = 4 if interval == 2 else 6
    life.settled_batches_to(due - 1) if due - 1 > life.step else life.settle()
    run.expect(
        "ephemeral.collects",
        3 in run.folder.complete(),
        expected=f"step 3 to stand until step {due} is complete",
        seen=str(run.folder),
    )
    life.settled_batches_to(due)
    life.settled_batches_to(due + 1)
    goes = strategy != "never"
    run.expect(
        "ephemeral.collects",
        run.folder.complete() == ({due} if goes else {3, due}),
        expected=f"step {due} {'in the place of' if goes else 'beside'} step 3 with remove={strategy!r}",
        seen=str(run.folder),
    )


@judges("ephemeral.collects", needs=("step-layout",))
def test_what_has_no_recorded_kind_goes_by_its_step(run: Scenario) -> None:
    """Older releases of other managers record none."""
    _plant_unrecorded(run, 3, 4, 5)
    life = resumed(run, save_interval=100, ephemeral_save_interval=2)
    life.settled_batches_to(6)
    life.settled_batches_to(7)
    run.expect(
        "ephemeral.collects",
        run.folder.complete() == {3, 5, 6},
        expected="step 4 to go, a multiple of the ephemeral interval, and 3 and 5 to stay",
        seen=str(run.folder),
    )


@judges("ephemeral.spares")
def test_a_start_collects_nothing_that_is_permanent_or_above_it(run: Scenario) -> None:
    fixed = {"fixed_steps": [3]} if run.has("fixed-steps") else {}
    begun(run, save_interval=100, ephemeral_save_interval=1, pre_train_checkpoint=True).batches_to(1)
    first = resumed(run, save_interval=8, ephemeral_save_interval=2, remove="never", **fixed)
    for step in (3, 8, 10):
        first.settled_batches_to(step)
    first.settled_batches_to(11)
    first.kill()
    stood = run.folder.complete()
    named = run.folder.of(8) if run.has("explicit") else None
    life = resumed(run, named, save_interval=8, ephemeral_save_interval=3, remove="all_non_permanent", **fixed)
    own_step = life.step
    for step in (own_step + 3 - own_step % 3, own_step + 6 - own_step % 3):  # two ephemeral saves
        life.settled_batches_to(step)
    life.settled_batches_to(life.step + 1)
    plan = ephemeral.Plan(8, 3, fixed_steps=frozenset(fixed.get("fixed_steps", ())), remove="all_non_permanent")
    spared = ephemeral.spared(stood, own_step, plan)
    run.expect(
        "ephemeral.spares",
        spared <= run.folder.complete(),
        expected=f"{_listed(spared)} to stay of {_listed(stood)}, for a run that began at step {own_step}",
        seen=str(run.folder),
        reaches=1 in stood and 1 not in run.folder.complete(),
    )


@judges("ephemeral.limit")
def test_permanent_ones_above_the_limit_go_oldest_first_and_ephemeral_ones_do_not_count(
    run: Scenario, mode: str
) -> None:
    fixed = [4] if run.has("fixed-steps") else []
    settings: dict[str, Any] = {"save_interval": 3, "ephemeral_save_interval": 2, "max_checkpoints": 2}
    life = hooked(run, mode=mode, **{**settings, "pre_train_checkpoint": True}, fixed_steps=fixed or None)
    life.pre_train()
    life.settle()
    plan = ephemeral.Plan(**settings, fixed_steps=frozenset(fixed))
    _walk(run, life, plan, until=13, stands={0: ephemeral.PERMANENT}, clause="ephemeral.limit")


@judges("ephemeral.limit-restart")
def test_permanent_ones_of_earlier_runs_use_up_the_limit(run: Scenario, mode: str) -> None:
    settings = {"mode": mode, "save_interval": 2, "max_checkpoints": 2}
    life = begun(run, **settings)
    life.settled_batches_to(2)
    life.settled_batches_to(4)
    for last in (6, 8):
        life.kill()
        life = resumed(run, **settings)
        life.settled_batches_to(last)
        life.settled_batches_to(last + 1)
        run.expect(
            "ephemeral.limit-restart",
            run.folder.complete() == {last - 2, last},
            expected=f"steps {last - 2} and {last} with a limit of 2",
            seen=str(run.folder),
        )


@judges("ephemeral.above")
def test_after_a_rewind_permanent_ones_above_the_run_neither_count_nor_go(run: Scenario) -> None:
    first = begun(run, save_interval=2)
    for step in (2, 4, 6, 8):
        first.settled_batches_to(step)
    first.kill()
    life = resumed(run, run.folder.of(2), save_interval=2, max_checkpoints=2)
    for step, left in ((4, {2, 4, 6, 8}), (6, {4, 6, 8})):
        try:
            life.settled_batches_to(step)
        except Raised as error:
            raise Unreached(f"a step that stands is not saved again, see ephemeral.never-stuck: {error}") from error
        life.settled_batches_to(step + 1)
        run.expect(
            "ephemeral.above",
            run.folder.complete() == left,
            expected=f"{_listed(left)}: the newest two up to step {step}, and what is above",
            seen=str(run.folder),
        )


@pytest.mark.parametrize("strategy", ["ephemeral_only", "all_non_permanent"])
@judges("ephemeral.class-recorded")
def test_a_run_with_other_intervals_goes_by_what_was_recorded(run: Scenario, strategy: str) -> None:
    first = begun(run, save_interval=4, ephemeral_save_interval=3)
    first.settled_batches_to(3)
    first.settled_batches_to(4)
    first.kill()
    life = resumed(run, save_interval=100, ephemeral_save_interval=2, remove=strategy)
    life.settled_batches_to(6)
    life.settled_batches_to(7)
    run.expect(
        "ephemeral.class-recorded",
        run.folder.complete() == {4, 6},
        expected="step 4, which was saved as permanent, and step 6, without step 3, which was saved as ephemeral",
        seen=str(run.folder),
    )


@judges("ephemeral.class-recorded")
def test_the_last_step_of_an_earlier_run_stays_although_it_lies_on_no_interval(run: Scenario) -> None:
    first = begun(run, **_SIX_AND_TWO)
    first.batches_to(5)
    first.post_train()
    life = resumed(run, remove="all_non_permanent", **_SIX_AND_TWO)
    life.settled_batches_to(8)
    life.settled_batches_to(9)
    run.expect(
        "ephemeral.class-recorded",
        {5, 6, 8} <= run.folder.complete(),
        expected="step 5, which was saved as permanent at the end of a run, beside steps 6 and 8",
        seen=str(run.folder),
    )


@pytest.mark.parametrize("program", range(3))
@judges("ephemeral.class-recorded", "ephemeral.lands", "ephemeral.keeps", "ephemeral.replaced")
def test_processes_that_change_their_settings_leave_what_the_rules_say(run: Scenario, program: int) -> None:
    """A random program: each process has other settings, trains on for some batches, and dies or comes to its end."""
    draw = random.Random(program)
    standing: dict[int, str] = {}
    for _ in range(5):
        plan = ephemeral.Plan(
            draw.choice((3, 4, 5, None)), draw.choice((1, 2)), remove=draw.choice(ephemeral.STRATEGIES)
        )
        settings: dict[str, Any] = {
            "save_interval": plan.save_interval,
            "ephemeral_save_interval": plan.ephemeral_save_interval,
        }
        life = hooked(run, seed=999 if standing else 0, remove=plan.remove, **settings)
        run.expect_landing("ephemeral.lands", life.load(), {ephemeral.resume_point(standing)})
        life.pre_train()
        old = ephemeral.collected(standing, life.step, plan)
        _train_as_planned(run, life, plan, standing, old, until=life.step + draw.randint(1, 6))
        if draw.random() < 0.5:
            life.post_train()
            standing.setdefault(life.step, ephemeral.PERMANENT)
        life.kill()
        standing = {step: standing[step] for step in sorted(run.folder.complete() & standing.keys())}


def _train_as_planned(
    run: Scenario, life: HookedLife, plan: ephemeral.Plan, standing: dict[int, str], old: frozenset[int], until: int
) -> None:
    """Compare the folder after each hook; `old` are the ephemeral ones that the next one of this run replaces."""
    scheduled: frozenset[int] = frozenset()
    for step in range(life.step + 1, until + 1):
        life.settled_batches_to(step)
        gone, scheduled = scheduled, frozenset()
        kind = ephemeral.due(step, plan)
        if kind is not None:
            standing[step] = kind
        if kind == ephemeral.EPHEMERAL:
            scheduled, old = old, frozenset({step})
        for replaced in gone:
            del standing[replaced]
        complete = run.folder.complete()
        must = standing.keys() - scheduled
        for clause in ("ephemeral.class-recorded", "ephemeral.keeps"):
            seen, reached = str(run.folder), bool(gone)
            run.expect(clause, must <= complete, expected=f"{_listed(must)} to stand", seen=seen, reaches=reached)
        run.expect("ephemeral.replaced", not gone & complete, expected=f"{_listed(gone)} gone", seen=str(run.folder))


@judges("ephemeral.nothing-left")
def test_what_was_to_be_removed_is_gone_when_post_train_returns(run: Scenario, mode: str) -> None:
    life = begun(run, mode=mode, save_interval=100, ephemeral_save_interval=2)
    life.batches_to(4)
    life.post_train()
    run.expect(
        "ephemeral.nothing-left",
        run.folder.steps() == {4},
        expected="step 4 alone, in the place of step 2",
        seen=str(run.folder),
    )


@judges("ephemeral.soft-removal")
def test_a_removal_that_fails_is_logged_and_tried_again(run: Scenario, mode: str) -> None:
    life = begun(run, mode=mode, gated=True, save_interval=100, ephemeral_save_interval=2)
    life.settled_batches_to(3)
    stuck = run.folder.of(2).name
    life.gate.fail(lambda operation: operation.removes(stuck), errno.EBUSY)
    run.judge.tell(f"from here every removal of {stuck} fails with EBUSY")
    heard = ""
    for step in (4, 5, 6):
        life.settled_batches_to(step)
        heard += life.warnings
        life.worker.call("ping")  # what was logged meanwhile, on whichever thread
        heard += life.warnings
    if not life.gate.failed:
        raise Unreached(f"{stuck} was not removed by a name of its own, so its removal could not fail")
    run.expect(
        "ephemeral.soft-removal",
        stuck in heard,
        expected=f"a log message that names {stuck}, whose removal failed, and no error in any hook",
        seen=repr(heard),
    )
    life.gate.stop_failing()
    run.judge.tell("removals work again")
    life.post_train()
    life.settle()
    run.expect(
        "ephemeral.soft-removal",
        run.folder.complete() == {6},
        expected=f"step 6 alone: {stuck} was tried again by the end of the run",
        seen=str(run.folder),
    )


@judges("ephemeral.removal-aside")
def test_a_removal_that_does_not_come_to_its_end_holds_up_nothing(run: Scenario, mode: str) -> None:
    life = begun(run, mode=mode, gated=True, save_interval=6, ephemeral_save_interval=2)
    life.settled_batches_to(3)
    name = run.folder.of(2).name
    life.close_gate(partial(_is_slow_removal, run, 2), f"what removes {name} is held, once it is no checkpoint")
    life.settled_batches_to(4)
    life.begin_batches_to(5)
    is_free = life.worker.replies_or_blocks()
    if not is_free and not life.gate.held():
        raise Unreached(f"{name} is not removed by a name of its own")
    run.expect(
        "ephemeral.removal-aside",
        is_free,
        expected=f"the hook of step 5 to return while the removal of {name} is held",
        seen=f"it waits; held at the gate: {', '.join(map(str, life.gate.held()))}",
    )
    if not is_free:
        life.open_gate()
        life.worker.reply()
        return
    life.worker.reply()
    if not life.gate.wait_held(run.patience_s):
        raise Unreached(f"{name} is not removed by a name of its own")
    life.settled_batches_to(6)
    run.expect(
        "ephemeral.removal-aside",
        6 in run.folder.complete(),
        expected=f"step 6 saved while the removal of {name} is held",
        seen=str(run.folder),
    )
    life.worker.begin("exit")
    life.worker.reply()
    has_ended = life.worker.ends_or_blocks()
    run.expect(
        "ephemeral.removal-aside",
        has_ended,
        expected=f"the process to end while the removal of {name} is held",
        seen="it waits",
    )
    life.open_gate()


@judges("ephemeral.left-alone", "ephemeral.replaced")
def test_checkpoints_of_other_tools_are_left_alone_and_warned_of(run: Scenario) -> None:
    look_at_hooks(run)
    others = {"step_0": "metadata.json", "checkpoint-500": "model.safetensors"}
    for name, file in others.items():
        (run.folder.path / name).mkdir()
        (run.folder.path / name / file).write_text("{}")
    (run.folder.path / "latest").symlink_to("step_0")
    run.judge.tell(f"the folder holds {', '.join(others)} and latest, which other tools have left")
    before = [name for name in run.folder.files()]
    life = begun(run, save_interval=100, ephemeral_save_interval=2)
    heard = life.warnings
    life.batches_to(5)
    life.post_train()
    left = [name for name in before if not os.path.lexists(run.folder.path / name)]
    run.expect("ephemeral.left-alone", not left, expected=f"{before} as they were", seen=f"missing: {left}")
    run.expect(
        "ephemeral.left-alone",
        any(name in heard for name in (*others, "latest")),
        expected=f"a warning that names {' or '.join(others)}",
        seen=repr(heard),
    )
    run.expect("ephemeral.replaced", 2 not in run.folder.complete(), expected="step 2 removed", seen=run.folder)


@pytest.mark.parametrize("foreign", [None, "model.safetensors"])
@judges("ephemeral.left-alone", "ephemeral.replaced")
def test_a_torn_directory_that_no_death_has_left_is_left_alone_and_warned_of(
    run: Scenario, foreign: str | None
) -> None:
    first = begun(run, save_interval=1)
    first.settled_batches_to(2)
    first.kill()
    torn = run.folder.of(1)
    shutil.rmtree(torn / "train" if foreign is None else torn)
    if foreign is not None:
        torn.mkdir()
        (torn / foreign).write_text("weights")
    before = _files(run, 1)
    assert not ephemeral.may_be_debris(before)
    whose = "lost its train state" if foreign is None else "been replaced by that of another tool"
    run.judge.tell(f"{torn.name} has {whose} and holds {', '.join(before)}")
    life = resumed(run, save_interval=100, ephemeral_save_interval=2, remove="all_non_permanent")
    heard = life.warnings
    life.batches_to(7)
    life.post_train()
    left = _files(run, 1)
    run.expect("ephemeral.left-alone", left == before, expected=f"{before} as they were", seen=left)
    run.expect("ephemeral.left-alone", torn.name in heard, expected=f"a warning that names {torn.name}", seen=heard)
    run.expect("ephemeral.replaced", 4 not in run.folder.complete(), expected="step 4 removed", seen=run.folder)


# -- flushes --------------------------------------------------------------------


@judges("ephemeral.one-pending")
def test_a_save_waits_for_the_one_before(run: Scenario) -> None:
    life = begun(run, mode="async", gated=True, save_interval=100, ephemeral_save_interval=1)
    if not life.batch_held():
        raise Unreached("the flush of step 1 could not be held while its hook returned; see ephemeral.default-async")
    life.begin_batches_to(2)
    has_returned = life.worker.replies_or_blocks()
    run.expect(
        "ephemeral.one-pending",
        not has_returned,
        expected="the hook of step 2 to wait while the flush of step 1 is held",
        seen=f"it has returned; {run.folder}",
    )
    life.open_gate()
    if not has_returned:
        life.worker.reply()
    life.settle()
    run.expect("ephemeral.one-pending", 2 in run.folder.complete(), expected="step 2 complete", seen=str(run.folder))


@judges("ephemeral.pending")
def test_a_checkpoint_is_pending_until_a_hook_has_found_it_finished(run: Scenario) -> None:
    life = begun(run, mode="async", gated=True, save_interval=100, ephemeral_save_interval=2)
    life.batches_to(1)
    run.expect("ephemeral.pending", not life.is_pending(), expected="no save in flight after step 1", seen="one")
    if not life.batch_held():
        raise Unreached("the flush of step 2 could not be held while its hook returned; see ephemeral.default-async")
    run.expect("ephemeral.pending", life.is_pending(), expected="in flight while the flush is held", seen="not")
    life.batches_to(3)
    run.expect(
        "ephemeral.pending", life.is_pending(), expected="in flight after a hook that found the flush held", seen="not"
    )
    life.open_gate()
    life.settle()
    life.settled_batches_to(4)
    life.batches_to(5)
    run.expect(
        "ephemeral.pending",
        not life.is_pending(),
        expected="no save in flight after a hook that found it ended",
        seen="one",
    )


@judges("ephemeral.error-once")
def test_the_error_of_a_flush_is_raised_once_in_the_next_hook(run: Scenario) -> None:
    life = begun(run, mode="async", gated=True, save_interval=100, ephemeral_save_interval=2)
    life.batches_to(1)
    _fail_flush(run, life, 2)
    with run.expect_error("ephemeral.error-once", naming=("2",), doing="the hook of step 3, after the flush of step 2"):
        life.batches_to(3)
    for step in (4, 5):
        try:
            life.settled_batches_to(step)
        except Raised as error:
            run.expect("ephemeral.error-once", False, expected=f"no error at step {step}", seen=str(error))
    run.expect(
        "ephemeral.error-once", 4 in run.folder.complete(), expected="step 4 saved on the well disk", seen=run.folder
    )


# -- coming back ----------------------------------------------------------------


@judges("ephemeral.lands")
def test_a_resume_takes_the_highest_complete_step(run: Scenario, mode: str) -> None:
    first = begun(run, mode=mode, save_interval=9, ephemeral_save_interval=1)
    for step in (9, 10):
        first.settled_batches_to(step)
    first.kill()
    for age, step in enumerate((10, 9)):
        for path in (run.folder.of(step), *run.folder.of(step).rglob("*")):
            os.utime(path, (1_600_000_000 + age * 1000,) * 2)
    life = hooked(run, seed=999)
    run.expect_landing("ephemeral.lands", life.load(), {10}, "it is the highest")
    run.expect_state("ephemeral.lands", life, 10)
    for lacks in range(max(1, len(run.folder.required()))):
        copy = run.folder.path.with_name(f"whole-{lacks}")
        run.folder.copy_to(copy)
        run.judge.tell(f"step 10 is {run.folder.tear(10, lacks)}")
        run.expect_landing("ephemeral.lands", hooked(run, seed=999).load(), {9}, "step 10 is torn")
        run.folder.become(copy)


@judges("ephemeral.named-by-its-step")
def test_a_copy_under_the_name_of_a_higher_step_is_not_taken_for_it(run: Scenario, mode: str) -> None:
    first = begun(run, mode=mode, save_interval=2)
    first.settled_batches_to(4)
    first.kill()
    copy = run.folder.path / run.folder.layout.name.format(step=6)
    shutil.copytree(run.folder.of(2), copy)
    run.judge.tell(f"step 2 is copied to {copy.name}")
    life = hooked(run, seed=999)
    try:
        loaded = life.load()
    except Raised as error:
        is_named, seen = copy.name in error.message, str(error)
    else:
        is_named = loaded.step == 4 and copy.name in life.warnings
        seen = f"a load of step {loaded.step}; warnings: {life.warnings!r}"
    run.expect(
        "ephemeral.named-by-its-step",
        is_named,
        expected=f"a refusal that names {copy.name}, or a fallback to step 4 with a warning that does",
        seen=seen,
    )


@judges("ephemeral.lands")
def test_a_resume_from_an_empty_folder_starts_fresh(run: Scenario) -> None:
    run.expect_landing("ephemeral.lands", hooked(run).load(), {None})


@judges("ephemeral.folder")
def test_a_checkpoint_says_of_which_kind_it_is(run: Scenario, mode: str) -> None:
    life = begun(run, mode=mode, save_interval=3, ephemeral_save_interval=2)
    for step, kind in ((2, ephemeral.EPHEMERAL), (3, ephemeral.PERMANENT)):
        life.settled_batches_to(step)
        path = run.folder.path / f"step{step}"
        for name in ("model_and_optim/.metadata", "train/rank0.pt", ".metadata.json"):
            run.expect(
                "ephemeral.folder", (path / name).is_file(), expected=f"{path.name}/{name}", seen=run.folder.files()
            )
        _expect_kind(run, "ephemeral.folder", step, kind)
        run.expect(
            "ephemeral.folder",
            '"version"' in (path / ".metadata.json").read_text(),
            expected="a version in .metadata.json",
            seen=(path / ".metadata.json").read_text(),
        )


_DEATHS = (0.0, 0.3, 0.6, 0.9, 1.0)
"""Where a run dies, as a fraction of the operations of a save."""


@pytest.mark.parametrize("when", _DEATHS)
@judges("ephemeral.never-stuck", "ephemeral.whole")
def test_a_run_comes_past_the_step_at_which_the_one_before_died(run: Scenario, mode: str, when: float) -> None:
    settings = {"mode": mode, "save_interval": 100, "ephemeral_save_interval": 2}
    _die_in_save(run, begun(run, gated=True, **settings), when=when)
    again = resumed(run, **settings)
    run.expect("ephemeral.whole", again.step in (2, 4), expected="to land on step 2 or 4", seen=f"step {again.step}")
    run.expect_state("ephemeral.whole", again, again.step)
    again.settled_batches_to(6)
    again.settled_batches_to(7)
    run.expect(
        "ephemeral.never-stuck",
        run.folder.steps() == {6},
        expected="step 6 alone: each save that was due was made, and what the death left is gone",
        seen=str(run.folder),
    )


@judges("ephemeral.never-stuck")
def test_debris_under_the_name_of_a_step_does_not_stop_its_save(run: Scenario, mode: str) -> None:
    settings = {"mode": mode, "save_interval": 100, "ephemeral_save_interval": 2}
    first = begun(run, **settings)
    first.settled_batches_to(2)
    first.kill()
    torn = run.folder.path / run.folder.layout.name.format(step=4)
    (shutil.copytree if run.folder.layout.is_dir else shutil.copy)(run.folder.of(2), torn)
    run.judge.tell(f"a torn step 4 is put there, {run.folder.tear(4, lacks=-1)}")
    again = resumed(run, **settings)
    again.settled_batches_to(4)
    run.expect("ephemeral.never-stuck", 4 in run.folder.complete(), expected="step 4 complete", seen=str(run.folder))


@judges("ephemeral.never-stuck")
def test_a_step_is_saved_again_over_a_complete_one(run: Scenario, mode: str) -> None:
    first = begun(run, mode=mode, save_interval=2)
    first.settled_batches_to(4)
    first.kill()
    again = begun(run, mode=mode, save_interval=2, seed=1)
    for step in (2, 4):
        again.settled_batches_to(step)
    again.settled_batches_to(5)
    later = hooked(run, seed=999)
    run.expect_landing("ephemeral.never-stuck", later.load(), {4})
    run.expect_state("ephemeral.never-stuck", later, 4, seed=1)


@pytest.mark.parametrize("when", _DEATHS)
@judges("ephemeral.whole")
def test_a_death_in_a_save_over_the_same_step_leaves_one_of_the_two(run: Scenario, mode: str, when: float) -> None:
    first = begun(run, mode=mode, save_interval=2)
    first.settled_batches_to(2)
    first.settled_batches_to(4)
    first.kill()
    again = begun(run, mode=mode, save_interval=100, ephemeral_save_interval=2, seed=1, gated=True)
    again.gate.observe(partial(_watch_standing, run, {2, 4}))
    try:
        _die_in_save(run, again, when=when)
    except Raised as error:
        raise Unreached(f"a step that stands is not saved again, see ephemeral.never-stuck: {error}") from error
    later = hooked(run, seed=999)
    run.expect_landing("ephemeral.whole", later.load(), {4}, "one of two saves of step 4 is whole")
    digest = later.digest()
    old, new = (run.timeline(seed).digest(4) for seed in (0, 1))
    either = new if digest.get("rng/torch") == new.get("rng/torch") else old
    run.expect_same("ephemeral.whole", digest, either, run.kinds(), "the state of step 4 of one of two saves")


@judges("ephemeral.never-stuck", "ephemeral.lands")
def test_a_death_in_the_middle_of_a_removal_leaves_nothing_in_the_way(run: Scenario) -> None:
    settings = {"save_interval": 100, "ephemeral_save_interval": 2}
    for picked in range(4):
        life = begun(run, gated=True, **settings) if picked == 0 else resumed(run, gated=True, **settings)
        start = life.step - life.step % 2
        for step in (start + 2, start + 3, start + 4):
            life.settled_batches_to(step)
        name = run.folder.of(start + 2).name
        seen: list[Operation] = []
        life.close_gate(partial(_nth_removal, name, seen, picked), f"operation {picked} of the removal is held")
        life.begin_batches_to(start + 5)
        life.worker.replies_or_blocks()
        life.gate.wait_held(1)
        life.kill()
        later = hooked(run, seed=999)
        run.expect_landing("ephemeral.lands", later.load(), {start + 4}, "it was complete before the removal began")
    last = resumed(run, **settings)
    last.settled_batches_to(last.step + 2)
    last.settled_batches_to(last.step + 1)
    run.expect(
        "ephemeral.never-stuck",
        run.folder.steps() == {last.step - 1} and len(run.folder.leftovers()) < 4,
        expected=f"step {last.step - 1} alone, and no leftovers of four removals",
        seen=f"{run.folder}; {sorted(run.folder.leftovers())}",
    )


# -- refusals -------------------------------------------------------------------

_REFUSED: tuple[dict[str, Any], ...] = (
    {"save_interval": 0},
    {"save_interval": -1},
    {"save_interval": 4, "ephemeral_save_interval": 0},
    {"save_interval": 4, "ephemeral_save_interval": 4},
    {"save_interval": 4, "ephemeral_save_interval": 5},
    {"ephemeral_cooldown": 0},
    {"max_checkpoints": 0},
)
_TAKEN: tuple[dict[str, Any], ...] = (
    {"save_interval": 1},
    {"save_interval": 4, "ephemeral_save_interval": 3},
    {"save_interval": 2, "ephemeral_save_interval": 1, "ephemeral_cooldown": 1, "max_checkpoints": 1},
)


@judges("ephemeral.validate")
def test_settings_that_can_not_be_meant_are_refused_by_their_name(run: Scenario) -> None:
    for settings in _TAKEN:
        hooked(run, **_claimed(run, settings)).kill()
    for settings in _REFUSED:
        if _claimed(run, settings) != settings:
            continue
        (field,) = ephemeral.refused_for(**settings)
        with run.expect_error("ephemeral.validate", naming=(field,), doing=f"a run with {settings}"):
            hooked(run, **settings)


@judges("ephemeral.kinds")
def test_settings_of_another_kind_are_refused_by_their_name(run: Scenario) -> None:
    wrong: dict[str, tuple[Any, ...]] = {
        "save_interval": ("4", 4.5, True),
        "ephemeral_save_interval": ("2",),
        "ephemeral_cooldown": ("2",),
        "max_checkpoints": (2.5,),
        "fixed_steps": (["4"],),
        "pre_train_checkpoint": ("false",),
        "enabled": ("false",),
    }
    for field, values in wrong.items():
        for value in values:
            if not _claimed(run, {field: value}):
                continue
            with run.expect_error(
                "ephemeral.kinds", "ValueError", "TypeError", naming=(field,), doing=f"a run with {field}={value!r}"
            ):
                hooked(run, **{field: value})


@judges("ephemeral.order")
def test_hooks_out_of_order_are_refused_with_the_name_of_the_missing_one(run: Scenario) -> None:
    life = hooked(run, save_interval=1)
    with run.expect_error("ephemeral.order", naming=("pre_train",), doing="a batch without pre_train"):
        life.batches_to(1)
    with run.expect_error("ephemeral.order", naming=("pre_train",), doing="post_train without pre_train"):
        life.post_train()
    other = begun(run, save_interval=1)
    with run.expect_error("ephemeral.order", naming=("post_train",), doing="pre_train for the second time"):
        other.pre_train()
    other.batches_to(1)
    other.post_train()
    run.expect("ephemeral.order", 1 in run.folder.complete(), expected="step 1, in order", seen=str(run.folder))
    with run.expect_error("ephemeral.order", naming=("pre_train",), doing="a batch after post_train"):
        other.batches_to(2)


# -- several ranks --------------------------------------------------------------


@judges("ephemeral.rank-files", "ephemeral.lands")
def test_each_rank_has_a_file_and_a_new_rank_reads_that_of_rank_0(run: Scenario, fewest: int, mode: str) -> None:
    world = hooked_world(run, Shape(fewest, "replicated"), mode=mode, hooks={"save_interval": 2})
    world.ranks.together("pre_train")
    world.ranks.together("batches", steps=2)
    world.ranks.together("post_train")
    files = [f"train/rank{rank}.pt" for rank in range(fewest)]
    run.expect(
        "ephemeral.rank-files",
        all((run.folder.of(2) / name).is_file() for name in files),
        expected=f"{files} in step 2",
        seen=run.folder.files(),
    )
    same = hooked_world(run, Shape(fewest, "replicated"), seed=999, hooks={"save_interval": 2})
    run.expect_landing("ephemeral.lands", same.load(), {2})
    run.expect_state("ephemeral.rank-files", same, 2)
    more = hooked_world(run, Shape(fewest + 1, "replicated"), seed=999, hooks={"save_interval": 2})
    run.expect_landing("ephemeral.rank-files", more.load(), {2}, "a rank without a file reads rank 0's")


@judges("ephemeral.one-remover", "ephemeral.replaced")
def test_one_rank_alone_removes(run: Scenario, fewest: int, mode: str) -> None:
    hooks = {"save_interval": 100, "ephemeral_save_interval": 1, "pre_train_checkpoint": False}
    world = hooked_world(run, Shape(fewest, "replicated"), mode=mode, gated=True, hooks=hooks)
    world.ranks.together("pre_train")
    world.ranks.together("batches", steps=3)
    world.ranks.together("post_train")
    removers = {
        rank
        for rank in range(fewest)
        for operation in world.gate_of(rank).log
        if operation.removes(run.folder.layout.name.format(step=1))
    }
    run.expect(
        "ephemeral.one-remover",
        len(removers) == 1,
        expected="one rank that removes step 1",
        seen=f"ranks {sorted(removers)}; {run.folder}",
    )
    run.expect("ephemeral.replaced", run.folder.complete() == {3}, expected="step 3 alone", seen=str(run.folder))


@judges("ephemeral.agreement")
def test_ranks_with_different_views_of_the_folder_come_to_one_outcome(run: Scenario, fewest: int, mode: str) -> None:
    hooks = {"save_interval": 100, "ephemeral_save_interval": 1, "pre_train_checkpoint": False}
    first = hooked_world(run, Shape(fewest, "replicated"), hooks=hooks)
    first.ranks.together("pre_train")
    first.ranks.together("batches", steps=1)
    first.ranks.together("post_train")
    first.kill()
    other = run.folder.path.with_name("other-view")
    run.folder.copy_to(other)
    shutil.rmtree(other / run.folder.of(1).name)
    world = hooked_world(
        run, Shape(fewest, "replicated"), mode=mode, seed=999, views={fewest - 1: other}, timeout_s=8, hooks=hooks
    )
    _expect_one_outcome(run, world, "load", path=None, exclude=[], freeze_expected=None, parts=[])
    for do, arguments in (("pre_train", {}), ("batches", {"steps": 1}), ("batches", {"steps": 1}), ("post_train", {})):
        if not _expect_one_outcome(run, world, do, **arguments):
            break


@judges("ephemeral.agreement")
def test_ranks_with_different_intervals_follow_rank_0_or_all_raise(run: Scenario, fewest: int) -> None:
    def hooks(rank: int) -> dict[str, Any]:
        return {"save_interval": 2 + rank, "pre_train_checkpoint": False}

    world = hooked_world(run, Shape(fewest, "replicated"), timeout_s=8, hooks=hooks)
    calls: dict[str, dict[str, Any]] = {"pre_train": {}, "batches": {"steps": 6}, "post_train": {}}
    if all(_expect_one_outcome(run, world, do, **arguments) for do, arguments in calls.items()):
        run.expect(
            "ephemeral.agreement",
            run.folder.complete() == {2, 4, 6},
            expected="the steps of rank 0, whose interval is 2: [2, 4, 6]",
            seen=str(run.folder),
        )


def _expect_one_outcome(run: Scenario, world: World, do: str, **arguments: Any) -> bool:
    """Every rank returns, or every rank raises; whether they return."""
    world.tell(f"calls {do} on all ranks")
    outcomes = world.ranks.outcomes(do, **arguments)
    raised = [outcome.rank for outcome in outcomes if outcome.fault is not None]
    run.expect(
        "ephemeral.agreement",
        len(raised) in (0, len(outcomes)),
        expected=f"one outcome of {do} on all {len(outcomes)} ranks",
        seen="; ".join(str(outcome)[:200] for outcome in outcomes),
    )
    return not raised


# -- storage --------------------------------------------------------------------


@judges("ephemeral.storage-first")
def test_a_checkpoint_is_on_storage_before_its_metadata_is_there(run: Scenario, mode: str) -> None:
    life = begun(run, mode=mode, gated=True, save_interval=100, ephemeral_save_interval=1)
    life.settled_batches_to(1)
    _expect_stored(run, life.gate.log, run.folder.of(1).name)
    begin = len(life.gate.log)
    life.settled_batches_to(2)
    life.settled_batches_to(3)
    _expect_removal_stored(run, life.gate.log[begin:], run.folder.layout.name.format(step=1))


def _expect_stored(run: Scenario, log: list[Operation], name: str) -> None:
    """Each file that was written is synced after its last write, and so is each directory before the file counts."""
    published = [one for one in log if _is_published(one, name)]
    if not published:
        raise Unreached(f"nothing is renamed to {name} or into it")
    before = [one for one in log if one.number < published[0].number]
    written: dict[str, int] = {}
    for one in before:
        if one.writes_data:
            written[one.paths[0]] = one.number
        elif one.name.startswith("rename") and one.paths[0] in written:
            written[one.paths[-1]] = written.pop(one.paths[0])
    synced = {one.paths[0]: one.number for one in before if one.name in _SYNCING}
    lacking = [path for path, number in written.items() if synced.get(path, 0) < number and not _is_lock(path)]
    run.expect(
        "ephemeral.storage-first",
        not lacking and bool(written),
        expected=f"each file synced before {published[0]}",
        seen=f"not synced: {lacking}" if written else "nothing was written before that",
    )
    places = {os.path.dirname(path) for path in written if not _is_lock(path)}
    unsynced = sorted(places - synced.keys())
    run.expect("ephemeral.storage-first", not unsynced, expected="each directory of these synced too", seen=unsynced)


def _is_published(operation: Operation, name: str) -> bool:
    is_rename = operation.name.startswith("rename")
    return is_rename and operation.paths[-1] in (name, f"{name}/.metadata.json")


def _is_lock(path: str) -> bool:
    return "/" not in path  # beside the checkpoints


def _expect_removal_stored(run: Scenario, log: list[Operation], name: str) -> None:
    removed = [index for index, one in enumerate(log) if one.removes(name)]
    first = next((index for index in removed if log[index].paths[0] == f"{name}/.metadata.json"), None)
    if first is None:
        raise Unreached(f"{name}/.metadata.json is not removed under that name")
    later = [index for index in removed if index > first]
    between = log[first + 1 : later[0]] if later else log[first + 1 :]
    run.expect(
        "ephemeral.storage-first",
        first == removed[0] and any(one.name in _SYNCING and one.paths[0] in (name, ".") for one in between),
        expected=f"{name} synced between the removal of its .metadata.json and that of anything else",
        seen=", ".join(str(log[index]) for index in removed[:3]),
    )


# -- looking --------------------------------------------------------------------


def _walk(
    run: Scenario,
    life: HookedLife,
    plan: ephemeral.Plan,
    until: int,
    stands: Mapping[int, str] | None = None,
    clause: str | None = None,
) -> None:
    """Train batch by batch, and compare the folder after each hook; `clause` is judged for all that is amiss."""
    left = dict(stands or {})
    scheduled: frozenset[int] = frozenset()
    due = ephemeral.saves(plan, life.step + 1, until, max(left, default=None))
    for step in range(life.step + 1, until + 1):
        life.settled_batches_to(step)
        complete, gone = run.folder.complete(), scheduled
        left = {old: kind for old, kind in left.items() if old not in gone}
        kind = due.get(step)
        for wanted, slug in ((ephemeral.PERMANENT, "ephemeral.permanent"), (ephemeral.EPHEMERAL, "ephemeral.between")):
            if kind == wanted:
                left[step] = wanted
                if (clause or slug) in run.judge.clauses:
                    run.expect(clause or slug, step in complete, expected=f"step {step} saved", seen=str(run.folder))
                    _expect_kind(run, clause or slug, step, wanted)
        if kind is None:
            _expect_no_save(run, plan, step)
        scheduled = frozenset() if kind is None else ephemeral.leaving(left, step, plan.max_checkpoints)
        _expect_standing(run, left, scheduled, gone, clause)


def _expect_no_save(run: Scenario, plan: ephemeral.Plan, step: int) -> None:
    """A save that was not due breaks the clause of its kind."""
    is_saved = step in run.folder.complete()
    recorded = kind_of(run, step) if is_saved else None
    is_ephemeral = recorded == ephemeral.EPHEMERAL or (recorded is None and plan.ephemeral_save_interval is None)
    clause = "ephemeral.between" if is_saved and is_ephemeral else "ephemeral.permanent"
    if clause in run.judge.clauses:
        run.expect(clause, not is_saved, expected=f"no save at step {step}", seen=str(run.folder))


def _expect_standing(
    run: Scenario, left: Mapping[int, str], scheduled: frozenset[int], gone: frozenset[int], clause: str | None
) -> None:
    complete = run.folder.complete()
    declared = run.judge.clauses
    keeps, replaced = clause or "ephemeral.keeps", clause or "ephemeral.replaced"
    if keeps in declared:
        must = left.keys() - scheduled
        run.expect(keeps, must <= complete, expected=f"{_listed(must)} to stand", seen=str(run.folder))
    if replaced in declared:
        run.expect(
            replaced,
            not gone & complete,
            expected=f"{_listed(gone)} removed, which later ones have replaced",
            seen=str(run.folder),
            reaches=bool(gone),
        )


def _expect_kind(run: Scenario, clause: str, step: int, kind: str) -> None:
    recorded = kind_of(run, step)
    run.expect(
        clause, recorded in (None, kind), expected=f"step {step} saved as {kind}", seen=f"as {recorded}", reaches=False
    )


def _watch_removal(run: Scenario, old: int, files: list[str], new: int, operation: Operation) -> None:
    complete, now = run.folder.complete(), _files(run, old)
    if "ephemeral.after-complete" in run.judge.clauses:
        run.expect(
            "ephemeral.after-complete",
            now == files or new in complete,
            expected=f"step {old} untouched until step {new} is complete",
            seen=f"just before {operation}: {run.folder}",
            reaches=now != files,
        )
    run.expect(
        "ephemeral.invalidate-first",
        ephemeral.may_be_left(files, now, run.folder.required()) or not run.folder.layout.is_dir,
        expected=f"step {old} whole or visibly incomplete at every instant of its removal",
        seen=f"just before {operation}: it looks complete with {now} of {files}",
        reaches=now != files,
    )


def _files(run: Scenario, step: int) -> list[str]:
    path = run.folder.of(step)
    if not path.is_dir():
        return [path.name] if path.exists() else []
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def _identity(run: Scenario, step: int) -> tuple[int, int] | None:
    """Changes when the checkpoint of a step is saved again."""
    path = run.folder.of(step)
    path = path / run.folder.required()[-1] if run.folder.layout.is_dir else path
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None


def _is_slow_removal(run: Scenario, step: int, operation: Operation) -> bool:
    """Whether this is a part of a removal that may take long: all but the one operation that makes it incomplete."""
    is_over = not run.folder.layout.is_dir or step not in run.folder.complete()
    return is_over and operation.removes(run.folder.layout.name.format(step=step))


def _nth_removal(name: str, seen: list[Operation], picked: int, operation: Operation) -> bool:
    """Whether a removal of this directory, wherever it was moved to, has come so far."""
    is_removal = operation.removes(name) or (bool(seen) and operation.name in REMOVES)
    seen += [operation] if is_removal else []
    return is_removal and len(seen) > picked


def _listed(steps: Any) -> str:
    return ", ".join(map(str, sorted(steps))) or "nothing"


# -- arranging ------------------------------------------------------------------


def _fail_flush(run: Scenario, life: HookedLife, step: int) -> None:
    """The batch of this step, whose flush finds a full disk; then the disk has space again."""
    life.gate.fail(lambda operation: operation.writes_data and not operation.is_main, errno.ENOSPC)
    run.judge.tell("what is written in the background finds a full disk")
    with contextlib.suppress(Raised):
        life.batches_to(step)
    if not life.gate.wait_failed(run.patience_s):
        raise Unreached(f"nothing that the save of step {step} wrote in the background could fail")
    life.settle()
    life.gate.stop_failing()
    run.judge.tell("the disk has space again")
    if step in run.folder.complete():
        raise Unreached("the save gets through although the disk is full")


def _die_in_save(run: Scenario, life: HookedLife, when: float) -> None:
    """Save step 2, then be killed at that part of the operations of step 4; step 2 stands at each instant."""
    life.settled_batches_to(2)
    operations = len(life.gate.log)
    life.settled_batches_to(3)
    life.gate.observe(partial(_watch_standing, run, {2}))
    held = len(life.gate.log) + 1 + int(when * operations)
    life.close_gate(at(held), f"operation {int(when * operations)} of {operations} of the save is held")
    life.begin_batches_to(4)
    life.worker.replies_or_blocks()
    life.gate.wait_held(0.3)
    life.gate.check()
    life.kill()


def _watch_standing(run: Scenario, whole: set[int], operation: Operation) -> None:
    run.expect(
        "ephemeral.whole",
        whole <= run.folder.complete(),
        expected=f"{_listed(whole)} complete at every instant of the save",
        seen=f"just before {operation}: {run.folder}",
    )


def _plant_unrecorded(run: Scenario, *steps: int) -> None:
    """Checkpoints of another writer that do not say of which kind they are."""
    life = begun(run, save_interval=1)
    for step in range(1, max(steps) + 1):
        life.settled_batches_to(step)
    for step in steps:
        path = run.folder.of(step)
        life.worker.call("rewrite_marker", path=str(path / "model_and_optim" / ".metadata"), how="nothing")
        (path / ".metadata.json").write_text('{"version": "1.0"}')
    life.kill()
    for step in set(range(1, max(steps) + 1)) - set(steps):
        shutil.rmtree(run.folder.of(step))
    run.judge.tell(f"steps {_listed(steps)} stand as of another writer, and do not say of which kind they are")


def _claimed(run: Scenario, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that the manager has."""
    needs = {"ephemeral_cooldown": "cooldown", "max_checkpoints": "max-permanent", "fixed_steps": "fixed-steps"}
    return {field: value for field, value in settings.items() if field not in needs or run.has(needs[field])}
