"""Chapter resume: where a new process comes back, with what, and what it refuses.

Every resuming process starts from another random seed, so whatever is right
afterwards was loaded.  "Exact" means equal to the timeline, bit for bit.
"""

import ast
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from forge_conformance.judging.judge import Unreached, judges
from forge_conformance.runs.life import Life
from forge_conformance.runs.process import ALL_PARTS, Raised
from forge_conformance.runs.scenario import Scenario
from forge_conformance.runs.state import ALL_KINDS, STATE
from forge_conformance.watch.gate import at
from forge_spec import resume

EXTRA = {"epoch": 3, "note": "naïve", "nested": {"list": [1, 2.5, None, True]}, "pair": (1, "two"), "raw": b"\x00\xff"}
NOTHING: dict[str, object] = {"zero": 0, "no": False, "none": None, "text": "", "list": [], "dict": {}, "tuple": ()}
"""What a test for truth takes for nothing; each value says something of its own."""
FREEZE = [{"module": "vision", "frozen": True}]


@judges("resume.lands", "resume.exact")
def test_a_completed_save_is_what_the_next_process_resumes(run: Scenario, any_mode: str) -> None:
    run.start(mode=any_mode).commit_at(2, 5)
    life, loaded = run.resume(mode=any_mode)
    run.expect_landing("resume.lands", loaded, {5}, "its save was completed")
    run.expect_state("resume.exact", life, 5)


@judges("resume.exact", "resume.moments")
def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(4)
    life, _ = run.resume(mode=mode)
    run.expect_state("resume.moments", life, 4, kinds=["moment"])
    losses = life.train_to(12)
    if run.has("rng", "dataloader"):
        expected = run.timeline().losses(4, 12)
        run.expect("resume.exact", losses == expected, expected=f"the losses {expected}", seen=f"{losses}")
        run.expect_state("resume.exact", life, 12)
    else:
        run.expect_state("resume.exact", run.resume(mode=mode)[0], 4)


@pytest.mark.parametrize("kind", ["inner", "list"])
@judges("resume.every-kind")
def test_a_scheduler_that_holds_another_goes_on_with_it(run: Scenario, mode: str, kind: str) -> None:
    """A copy of the inner one would set the learning rate of a copy of the optimizer."""
    life = run.start(mode=mode)
    _nest_scheduler(run, life, kind)
    try:
        life.commit_at(4)
    except Raised as refusal:
        run.expect(
            "resume.every-kind",
            "scheduler" in str(refusal),
            expected="the scheduler to be saved, or to be refused by its name",
            seen=str(refusal),
        )
        return
    saved = life.digest()
    life.kill()
    again, twin = (run.start(mode=mode, seed=seed) for seed in (999, 0))
    _nest_scheduler(run, again, kind)
    _nest_scheduler(run, twin, kind)
    run.expect_landing("resume.every-kind", again.load(run.folder.of(4) if run.has("explicit") else None), {4})
    run.expect_same("resume.every-kind", again.digest(), saved, STATE, "the state of step 4, when it was saved")
    losses, expected = again.train_to(8), twin.train_to(8)[4:]
    rates, undisturbed = again.digest("group"), twin.digest("group")
    run.expect_same("resume.every-kind", rates, undisturbed, ["group"], "the learning rates of a run without a break")
    if run.has("rng", "dataloader"):
        run.expect("resume.every-kind", losses == expected, expected=f"the losses {expected}", seen=f"{losses}")


@judges("resume.exact", "resume.lands", "resume.rng")
def test_a_run_goes_back_to_a_checkpoint_in_its_own_process(run: Scenario, any_mode: str) -> None:
    """As one does whose loss has become NaN: what it has gathered since must not show."""
    life = run.start(mode=any_mode)
    saved = {step: _committed(life, step) for step in (0, 2)}
    life.train_to(3)
    run.expect_landing("resume.lands", life.load(), {2}, "this process has saved it")
    _expect_exactly(run, life, saved[2])
    saved[4] = _committed(life, 4)
    life.train_to(6)
    run.expect_landing("resume.lands", life.load(), {4}, "this process has saved it, after it had loaded step 2")
    _expect_exactly(run, life, saved[4])
    if run.has("explicit"):
        life.load(run.folder.of(0))
        _expect_exactly(run, life, saved[0])
    if run.has("rng", "dataloader"):
        back = life.step
        losses, expected = life.train_to(back + 3), run.timeline().losses(back, back + 3)
        run.expect("resume.exact", losses == expected, expected=f"the losses {expected}", seen=f"{losses}")


def _committed(life: Life, step: int) -> dict[str, str]:
    """The state that is committed at this step; without random streams a run that went back takes another way."""
    life.train_to(step)
    saved = life.digest()
    life.commit()
    return saved


def _expect_exactly(run: Scenario, life: Life, saved: dict[str, str]) -> None:
    """The whole state, the streams for the clause about them."""
    seen, what = life.digest(), f"the state of step {life.step}, when it was saved"
    run.expect_same("resume.exact", seen, saved, set(run.kinds()) - {"rng"}, what)
    if run.has("rng"):
        run.expect_same("resume.rng", seen, saved, ["rng"], what)


@judges("resume.exact")
def test_tensors_of_every_kind_come_back(run: Scenario, any_mode: str) -> None:
    life = run.start(mode=any_mode)
    life.train_to(2)
    _vary(run, life, seed=1)
    saved = life.digest()
    life.commit()
    again = run.start(mode=any_mode, seed=999)
    _vary(run, again, seed=0)
    again.load()
    run.expect_same("resume.exact", again.digest(), saved, STATE, "the state of step 2, when it was saved")


@judges("resume.moments", "resume.exact")
def test_what_is_frozen_at_the_save_has_its_moments_afterwards(run: Scenario, any_mode: str) -> None:
    """Frozen after it was trained, as in a run by stages: a later stage thaws it again."""
    life = run.start(mode=any_mode)
    life.train_to(3)
    life.worker.call("freeze")
    run.judge.tell("the first weight matrix is frozen from here on")
    life.train_to(4)
    saved = life.digest()
    life.commit()
    again, _ = run.resume(mode=any_mode)
    run.expect_same("resume.moments", again.digest(), saved, ["moment"], "the moments of step 4, when it was saved")
    run.expect_same("resume.exact", again.digest(), saved, ["parameter"], "the weights of step 4, when it was saved")
    again.worker.call("freeze")
    run.judge.tell("it is frozen in the resumed run, too")
    again.load(run.folder.of(4) if run.has("explicit") else None)
    run.expect_same("resume.moments", again.digest(), saved, ["moment"], "the moments of step 4, when it was saved")
    run.expect_same("resume.exact", again.digest(), saved, ["trained"], "what was trained, before the load and after")


@judges("resume.train-state", "resume.lands", "resume.exact")
def test_a_folder_below_the_checkpoint_of_another_run_has_its_own_steps(run: Scenario, mode: str) -> None:
    """As of a branch of that run: its name has a step in it, too."""
    above = run.folder.layout.name.format(step=900)
    branch = run.folder.path / above / "branch"
    branch.mkdir(parents=True)
    with run.start(mode=mode, folder=str(branch)) as life:
        life.train_to(2)
        life.save()
        life.wait()
    with run.start(mode=mode, seed=999, folder=str(branch)) as life:
        loaded = life.load()
        run.expect(
            "resume.train-state",
            (loaded.step, loaded.tokens_seen) == (2, 32 * 2),
            expected=f"step 2, the last one saved into {above}/branch",
            seen=f"step {loaded.step}, {loaded.tokens_seen} tokens",
        )
        run.expect_state("resume.exact", life, 2)


@judges("resume.exact")
def test_interrupted_again_and_again_the_run_stays_the_same(run: Scenario, mode: str) -> None:
    life = run.start(mode=mode)
    for step in (1, 3, 4, 8):
        life.commit_at(step)
        life.kill()
        life, loaded = run.resume(mode=mode)
        run.expect("resume.exact", loaded.step == step, expected=f"step {step}", seen=loaded.step)
        if run.has("rng", "dataloader"):
            run.expect_state("resume.exact", life, step)


@judges("resume.exact")
def test_a_checkpoint_from_before_the_first_step_is_exact_too(run: Scenario, any_mode: str) -> None:
    life = run.start(mode=any_mode)
    life.save()
    life.wait()
    again = run.start(mode=any_mode, seed=999)
    again.load()
    run.expect_state("resume.exact", again, 0)
    if run.has("rng", "dataloader"):
        losses, expected = again.train_to(3), run.timeline().losses(0, 3)
        run.expect("resume.exact", losses == expected, expected=f"the losses {expected}", seen=f"{losses}")


@judges("resume.exact")
def test_a_save_before_the_first_step_has_no_bearing_on_the_next(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(0, 3)
    life, _ = run.resume(mode=mode)
    run.expect_state("resume.exact", life, 3)


@judges("resume.moments")
def test_moments_come_back_into_an_optimizer_that_has_never_stepped(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(3)
    life = run.start(mode=mode, seed=999)
    run.expect(
        "resume.moments", not life.digest("moment"), expected="a fresh optimizer without moments", seen="moments"
    )
    life.load()
    run.expect_state("resume.moments", life, 3, kinds=["moment"])


@judges("resume.rng")
def test_every_random_stream_comes_back(run: Scenario, any_mode: str) -> None:
    run.start(mode=any_mode).commit_at(3)
    life, _ = run.resume(mode=any_mode)
    run.expect_state("resume.rng", life, 3, kinds=["rng"])


@judges("resume.train-state", "resume.exact")
def test_step_and_tokens_come_back(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(3)
    life, loaded = run.resume(mode=mode)
    run.expect(
        "resume.train-state",
        (loaded.step, loaded.tokens_seen) == (3, 96),
        expected="step 3 and 96 tokens",
        seen=f"step {loaded.step} and {loaded.tokens_seen} tokens",
    )
    run.expect_state("resume.exact", life, 3, kinds=["scheduler"])


@pytest.mark.parametrize("tokens", [2**31, 2**53 + 1])
@judges("resume.train-state")
def test_as_many_tokens_as_a_long_run_sees_come_back(run: Scenario, mode: str, tokens: int) -> None:
    life = run.start(mode=mode)
    life.train_to(2)
    life.save(tokens_seen=tokens)
    life.wait()
    _, loaded = run.resume(mode=mode)
    run.expect("resume.train-state", loaded.tokens_seen == tokens, expected=f"{tokens} tokens", seen=loaded.tokens_seen)


@judges("resume.order")
def test_a_named_path_comes_before_load_path_and_that_before_latest(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(2, 4, 6)
    configured = str(run.folder.of(2))
    for explicit, load_path, latest in ((4, 2, 6), (None, 2, 6), (None, None, 6), (None, None, 4)):
        run.folder.point_at(run.folder.of(latest).name)
        run.judge.tell(f"latest is made to point at step {latest}")
        life = run.start(mode=mode, seed=999, load_path=None if load_path is None else configured)
        loaded = life.load(None if explicit is None else run.folder.of(explicit))
        outcome = resume.resolve(
            None if explicit is None else str(explicit),
            None if load_path is None else str(load_path),
            run.folder.complete(),
            run.folder.latest(),
        )
        step = int(outcome.path) if isinstance(outcome, resume.Named) else _step(outcome)
        run.expect_landing("resume.order", loaded, {step})
        run.expect_state("resume.order", life, step or 0, kinds=["parameter"])


@judges("resume.fresh")
def test_with_nothing_to_load_nothing_changes(run: Scenario, any_mode: str) -> None:
    life = run.start(mode=any_mode, seed=5)
    before = life.digest()
    loaded = life.load()
    run.expect("resume.fresh", loaded.is_fresh, expected="step 0, 0 tokens, empty extra", seen=loaded)
    run.expect_same("resume.fresh", life.digest(), before, ALL_KINDS, "the state before the load")


@judges("resume.fallback", "resume.skips-torn", "resume.one-step")
def test_with_a_torn_latest_the_newest_complete_checkpoint_is_taken(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(2, 9, 10, 11)
    torn, complete = run.folder.of(11).name, run.folder.of(10).name
    run.judge.tell(f"{torn} is made torn, as a crash in mid-flush leaves it: {run.tear(11)}; latest is at it")
    life, loaded = run.resume(mode=mode)
    run.expect_landing("resume.fallback", loaded, {10}, "11 is torn")
    run.expect_warning("resume.fallback", life, torn, complete)
    run.expect_state("resume.one-step", life, 10)


@judges("resume.fallback")
def test_the_newest_complete_checkpoint_may_be_above_a_torn_latest(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(2, 4, 6)
    run.folder.point_at(run.folder.of(4).name)
    run.judge.tell(f"latest is at step 4, as after a rewind, and step 4 is made torn: {run.tear(4)}")
    life, loaded = run.resume(mode=mode)
    run.expect_landing("resume.fallback", loaded, {6}, "it is the newest complete checkpoint")
    run.expect_warning("resume.fallback", life, run.folder.of(4).name, run.folder.of(6).name)


@judges("resume.skips-torn", "resume.continue")
def test_a_torn_newest_checkpoint_is_passed_over_and_written_again(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(2, 4, 6)
    run.judge.tell(f"step 6 is made torn, as a crash leaves it: {run.tear(6)}")
    if run.folder.layout.pointer is not None:
        run.folder.point_at(run.folder.of(4).name)
    life, loaded = run.resume(mode=mode)
    run.expect_landing("resume.skips-torn", loaded, {4}, "6 is torn")
    life.commit_at(6)
    life.kill()
    life, loaded = run.resume(mode=mode)
    run.expect_landing("resume.continue", loaded, {6}, "it was saved again over the debris")
    life.commit_at(8)
    life.kill()
    _, loaded = run.resume(mode=mode)
    run.expect_landing("resume.continue", loaded, {8})


@judges("resume.continue")
def test_a_run_saves_on_over_a_torn_checkpoint_of_its_step(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(2, 4)
    run.judge.tell(f"step 4 is made torn, as a crash leaves it: {run.tear(4)}")
    if run.folder.layout.pointer is not None:
        run.folder.point_at(run.folder.of(2).name)
    _expect_to_go_on(run, mode)


@judges("resume.continue")
@pytest.mark.parametrize("after", [3, 6])
def test_a_run_that_was_killed_in_a_save_saves_on_over_what_that_left(run: Scenario, mode: str, after: int) -> None:
    life = run.start(mode=mode, gated=True)
    life.commit_at(2)
    life.train_to(4)
    life.close_gate(at(len(life.gate.log) + after), saying=f"it stops before file operation number {after}")
    life.begin_save()
    if not life.gate.wait_held(run.patience_s):
        raise Unreached(f"a save has fewer than {after} file operations")
    life.kill()
    _expect_to_go_on(run, mode)


@judges("resume.one-step")
def test_everything_comes_from_the_one_step_that_is_loaded(run: Scenario, mode: str) -> None:
    life = run.start(mode=mode)
    for step in (2, 4, 6):
        life.train_to(step)
        life.commit(extra={"saved_at": step} if run.has("train-state") else None)
    target = 2 if run.has("explicit") else 6
    again = run.start(mode=mode, seed=999)
    loaded = again.load(run.folder.of(2) if run.has("explicit") else None)
    run.expect_landing("resume.one-step", loaded, {target})
    run.expect_state("resume.one-step", again, target)
    if run.has("train-state"):
        extra = loaded.extra
        run.expect("resume.one-step", extra == {"saved_at": target}, expected=f"saved_at={target}", seen=extra)


@judges("resume.one-step", needs=("explicit", "freeze"))
def test_the_freeze_list_that_is_compared_is_that_of_the_step_that_is_loaded(run: Scenario, mode: str) -> None:
    life = run.start(mode=mode)
    frozen, thawed = ([{"module": "vision", "frozen": is_frozen}] for is_frozen in (True, False))
    for step, entries in ((2, frozen), (4, thawed)):
        life.train_to(step)
        life.commit(extra={"vlm_freeze": entries})
    try:
        seen = f"step {run.start(mode=mode, seed=999).load(run.folder.of(2), freeze_expected=frozen).step}"
    except Raised as error:
        seen = str(error)
    run.expect("resume.one-step", seen == "step 2", expected="step 2, whose own list is the one expected", seen=seen)
    with run.expect_error("resume.one-step", doing="loading step 2 with the freeze list of step 4"):
        run.start(mode=mode, seed=999).load(run.folder.of(2), freeze_expected=thawed)


@judges("resume.explicit-honoured")
def test_a_named_checkpoint_is_loaded_or_refused_never_replaced(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(2, 4, 6)
    life = run.start(mode=mode, seed=999)
    run.expect_landing("resume.explicit-honoured", life.load(run.folder.of(4)), {4}, "it was named")
    run.expect_state("resume.explicit-honoured", life, 4, kinds=["parameter", "moment"])
    run.judge.tell(f"step 4 is made torn, as a crash leaves it: {run.tear(4)}")
    other = run.start(mode=mode, seed=999)
    with run.expect_error("resume.explicit-honoured", doing="loading the torn step 4 by its name"):
        other.load(run.folder.of(4))


@judges("resume.explicit-honoured")
def test_a_checkpoint_that_load_path_names_is_loaded_and_not_the_newest(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(4, 6)
    life = run.start(mode=mode, seed=999, load_path=str(run.folder.of(4)))
    run.expect_landing("resume.explicit-honoured", life.load(), {4}, "load_path names it")
    run.expect_state("resume.explicit-honoured", life, 4, kinds=["parameter", "moment"])


@judges("resume.imported-weights")
def test_a_folder_of_bare_weights_loads_and_starts_at_zero(run: Scenario, mode: str, tmp_path: Path) -> None:
    run.start(mode=mode).commit_at(4)
    imported = tmp_path / "imported"
    shutil.copytree(run.folder.of(4), imported)
    for name in ("train_state.pt", "metadata.json"):
        (imported / name).unlink()
    run.judge.tell("a copy of step 4 without train_state.pt and metadata.json stands for imported weights")
    life = run.start(mode=mode, seed=999)
    loaded = life.load(imported)
    run.expect("resume.imported-weights", loaded.is_fresh, expected="step 0, 0 tokens, empty extra", seen=loaded)
    run.expect_state("resume.imported-weights", life, 4, kinds=["parameter", "buffer"])


@pytest.mark.parametrize("how", ["named in the call", "load_path"])
@judges("resume.explicit-missing")
def test_a_named_path_that_is_not_there_is_an_error(run: Scenario, how: str) -> None:
    run.start().commit_at(2)
    nowhere = run.folder.path / "nowhere" / "step_77"
    life = run.start(seed=999, load_path=str(nowhere) if how == "load_path" else None)
    before = life.digest()
    with run.expect_error("resume.explicit-missing", naming=[str(nowhere)], doing=f"a path {how} that does not exist"):
        life.load(None if how == "load_path" else nowhere)
    run.expect_same("resume.explicit-missing", life.digest(), before, ALL_KINDS, "the state before the load")


@judges("resume.no-fallback-without-dcp")
def test_a_load_of_the_train_state_alone_stays_with_latest(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(2, 4)
    run.judge.tell(f"step 4 is made torn: {run.tear(4)}; its train state is still there")
    life = run.start(mode=mode, seed=999)
    before = life.digest("parameter", "moment")
    loaded = life.load(exclude=["model", "optimizer"])
    run.expect_landing("resume.no-fallback-without-dcp", loaded, {4}, "no shard is read")
    run.expect_same(
        "resume.no-fallback-without-dcp",
        life.digest("parameter", "moment"),
        before,
        ["parameter", "moment"],
        "excluded state",
    )


@pytest.mark.parametrize("pointer", ["missing", "dangling", "self", "outside"])
@judges("resume.pointer-is-a-hint")
def test_a_lost_pointer_does_not_lose_the_run(run: Scenario, mode: str, pointer: str, tmp_path: Path) -> None:
    run.start(mode=mode).commit_at(2, 4)
    outside = tmp_path / run.folder.of(9).name
    if run.folder.layout.is_dir:
        shutil.copytree(run.folder.of(2), outside)
    else:
        shutil.copy(run.folder.of(2), outside)
    targets = {
        "missing": None,
        "dangling": run.folder.of(9).name,
        "self": run.folder.pointer.name,
        "outside": os.path.relpath(outside, run.folder.path),
    }
    run.folder.point_at(targets[pointer])
    run.judge.tell(f"latest is {pointer}: {run.folder.pointer_target()}")
    life, loaded = run.resume(mode=mode)
    run.expect_landing("resume.pointer-is-a-hint", loaded, {4}, "it is the newest complete checkpoint of the folder")
    life.commit_at(6)
    run.expect("resume.pointer-is-a-hint", run.folder.latest() == 6, expected="latest at 6 again", seen=str(run.folder))


@judges("resume.all-torn")
def test_with_nothing_but_torn_checkpoints_the_run_starts_fresh_and_says_so(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(2, 4)
    for step in (2, 4):
        run.judge.tell(f"step {step} is made torn, as a crash leaves it: {run.tear(step)}")
    files, names = run.folder.files(), [run.folder.of(step).name for step in (2, 4)]
    life, loaded = run.resume(mode=mode)
    run.expect_landing("resume.all-torn", loaded, {None}, "nothing complete is there")
    run.expect_warning("resume.all-torn", life, *names)
    run.expect("resume.all-torn", run.folder.files() == files, expected="nothing deleted", seen=f"{run.folder.files()}")
    life.commit_at(1)
    _, loaded = run.resume(mode=mode)
    run.expect_landing("resume.all-torn", loaded, {1}, "the run went on and committed it")


@judges("resume.peek-agrees")
def test_peek_names_the_step_that_load_lands_on(run: Scenario, mode: str) -> None:
    _expect_peek(run, None, "an empty folder")
    run.start(mode=mode).commit_at(2, 4, 6)
    _expect_peek(run, 6, "three checkpoints")
    run.tear(6)
    _expect_peek(run, 4, "a torn latest")
    if run.folder.layout.pointer is not None:
        run.folder.point_at(None)
        _expect_peek(run, 4, "a torn newest checkpoint and no pointer")
        run.folder.point_at(run.folder.of(2).name)
        _expect_peek(run, 2, "a pointer at an older checkpoint")
    for step in (2, 4):
        run.tear(step)
    _expect_peek(run, None, "torn checkpoints only")


@judges("resume.peek-agrees", needs=("layout", "pointer", "exclude", "train-state"))
def test_peek_knows_that_a_load_of_the_train_state_alone_stays_with_latest(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(2, 4)
    run.tear(4)
    excluded = ["model", "optimizer"]
    _expect_peek(run, 4, "a torn latest, and no shard is to be read", exclude_from_loading=excluded)


@judges("resume.peek-agrees", needs=("explicit",))
def test_peek_follows_a_named_path(run: Scenario, tmp_path: Path) -> None:
    run.start().commit_at(2, 4, 6)
    life = run.start(seed=999)
    peeked = life.worker.call("peek", path=str(run.folder.of(2)))
    run.expect("resume.peek-agrees", peeked == 2, expected="2, the named step", seen=peeked)
    life.kill()
    configured = str(run.folder.of(4))
    _expect_peek(run, 4, f"a load_path, {configured}", load_path=configured)
    copied = tmp_path / "kept"
    shutil.copytree(configured, copied) if os.path.isdir(configured) else shutil.copy(configured, copied)
    try:
        run.start(seed=999, load_path=str(copied)).load()
    except Raised:
        run.judge.tell(
            f"{copied}, a copy of step 4, is refused: checkpoints are known by their names, which peek may read"
        )
    else:
        _expect_peek(run, 4, f"a load_path, {copied}, which is a copy of step 4", load_path=str(copied))


@judges("resume.peek-agrees", needs=("layout", "explicit", "train-state"))
def test_peek_does_not_take_the_step_of_imported_weights_from_their_metadata(run: Scenario, tmp_path: Path) -> None:
    run.start().commit_at(4)
    imported = tmp_path / "imported"
    shutil.copytree(run.folder.of(4), imported)
    (imported / "train_state.pt").unlink()
    run.judge.tell("a copy of step 4 without train_state.pt stands for imported weights")
    life = run.start(seed=999)
    peeked = life.worker.call("peek", path=str(imported))
    loaded = life.load(imported)
    run.expect(
        "resume.peek-agrees",
        (peeked or 0) == loaded.step,
        expected=f"step {loaded.step}, which the load returns",
        seen=f"peek says {peeked}",
    )


@pytest.mark.parametrize("how", ["exclude_keys", "exclude_from_loading"])
@pytest.mark.parametrize(
    "excluded,kinds,travels_with",
    [
        ("model", ["parameter", "buffer"], ()),
        ("optimizer", ["moment"], ()),
        ("scheduler", ["scheduler"], ("train-state",)),
        ("rng", ["rng"], ("rng",)),
        ("dataloader", ["loader"], ("dataloader",)),
    ],
)
@judges("resume.exclude")
def test_what_is_excluded_stays_and_the_rest_is_loaded(
    run: Scenario, how: str, excluded: str, kinds: list[str], travels_with: tuple[str, ...]
) -> None:
    if not run.has(*travels_with):
        raise Unreached(f"{excluded} does not travel with a checkpoint: {travels_with[0]} is not claimed")
    run.start().commit_at(3)
    configured = [excluded] if how == "exclude_from_loading" else []
    life = run.start(seed=5, exclude_from_loading=configured)
    life.train_to(2)
    before = life.digest()
    life.load(run.folder.of(3) if run.has("explicit") else None, exclude=[] if configured else [excluded])
    run.expect_same("resume.exclude", life.digest(), before, kinds, f"{excluded} as it was, excluded by {how}")
    loaded = set(run.kinds()) - set(kinds) - {"group", "scheduler"}  # those depend on each other
    run.expect_state("resume.exclude", life, 3, kinds=loaded)


@judges("resume.exclude", needs=("dataloader",))
def test_an_excluded_loader_gets_nothing_later_either(run: Scenario) -> None:
    run.start().commit_at(3)
    life = run.start(seed=5)
    life.train_to(2)
    before = life.digest("loader")
    loaded = life.load(run.folder.of(3) if run.has("explicit") else None, exclude=["dataloader"], parts=["scheduler"])
    run.expect_landing("resume.exclude", loaded, {3}, "the rest is loaded")
    life.worker.call("apply_dataloader_state")
    run.judge.tell("apply_dataloader_state is called")
    run.expect_same("resume.exclude", life.digest(), before, ["loader"], "the loader, which was excluded from the load")


@pytest.mark.parametrize("configured,in_call", [("optimizer", "model"), ("model", "optimizer")])
@judges("resume.exclude")
def test_what_call_and_configuration_exclude_adds_up(run: Scenario, configured: str, in_call: str) -> None:
    run.start().commit_at(3)
    life = run.start(seed=5, exclude_from_loading=[configured])
    life.train_to(2)
    before = life.digest()
    loaded = life.load(run.folder.of(3) if run.has("explicit") else None, exclude=[in_call])
    both = f"model and optimizer as they were, {configured} excluded by the configuration and {in_call} by the call"
    run.expect_same("resume.exclude", life.digest(), before, ["parameter", "buffer", "moment"], both)
    run.expect_landing("resume.exclude", loaded, {3}, "the rest is loaded")


@judges("schedule.every-knob-acts")
def test_every_setting_that_a_load_depends_on_has_an_effect(run: Scenario) -> None:
    """The settings of a save have theirs in the chapters schedule, retention and commit."""
    life = run.start()
    life.train_to(2)
    life.commit(extra={"vlm_freeze": FREEZE})
    life.commit_at(4)
    outcomes = {
        "nothing set": _outcome(run, {}),
        "load_path": _outcome(run, {"load_path": str(run.folder.of(2))}),
        "exclude_from_loading": _outcome(run, {"load_path": str(run.folder.of(2)), "exclude_from_loading": ["model"]}),
    }
    same = [name for name, outcome in outcomes.items() if list(outcomes.values()).count(outcome) > 1]
    run.expect(
        "schedule.every-knob-acts",
        not same,
        expected=f"three different outcomes of a load with {', '.join(outcomes)}",
        seen=f"the same outcome with {' and '.join(same)}",
    )
    empty = run.start(folder=str(run.folder.path / "elsewhere"), seed=999)
    run.expect("schedule.every-knob-acts", empty.load().is_fresh, expected="nothing in another dir", seen="a step")


@judges("schedule.every-knob-acts", needs=("freeze", "explicit"))
def test_the_switch_for_freeze_mismatches_has_an_effect(run: Scenario) -> None:
    life = run.start()
    life.train_to(2)
    life.commit(extra={"vlm_freeze": FREEZE})
    expected = [{"module": "vision", "frozen": False}]
    seen = []
    for ignore in (False, True):
        again = run.start(seed=999, ignore_freeze_mismatch=ignore)
        try:
            again.load(freeze_expected=expected)
            seen.append("loaded")
        except Raised:
            seen.append("refused")
    run.expect("schedule.every-knob-acts", seen == ["refused", "loaded"], expected="refused, loaded", seen=f"{seen}")


@judges("resume.extra")
def test_the_callers_extra_comes_back_equal(run: Scenario, any_mode: str) -> None:
    life = run.start(mode=any_mode)
    life.train_to(2)
    extra = {**EXTRA, **NOTHING}
    life.commit(extra=extra)
    _, loaded = run.resume(mode=any_mode)
    run.expect("resume.extra", loaded.extra == extra, expected=f"{extra}", seen=f"{loaded.extra}")
    run.expect(
        "resume.extra",
        {k: type(v) for k, v in loaded.extra.items()} == {k: type(v) for k, v in extra.items()},
        expected="tuples and bytes as what they were",
        seen=f"{loaded.extra}",
    )


@judges("resume.extra", "commit.inert", "resume.exact")
def test_an_average_of_the_weights_in_the_extra_comes_back_and_stays_out_of_the_model(run: Scenario, mode: str) -> None:
    """The same objects are handed over at each save, as scripts do that keep such an average."""
    life = run.start(mode=mode)
    life.worker.call("average")
    run.judge.tell("it keeps an average of its weights, which it hands over in the extra of each save")
    handed: list[dict[str, Any]] = []
    for step in (2, 3):
        life.train_to(step)
        before = life.digest()
        life.save(extra={"epoch": step})
        handed.append(ast.literal_eval(life.worker.call("handed_over")))
        life.wait()
        run.expect_same("commit.inert", life.digest(), before, ALL_KINDS, "the state before the save")
        expected = {"epoch": step, "average": handed[0].get("average")}
        run.expect("commit.inert", handed[-1] == expected, expected=f"the caller's {expected}", seen=handed[-1])
    again, loaded = run.resume(mode=mode)
    run.expect("resume.extra", loaded.extra == handed[-1], expected=f"{handed[-1]}", seen=f"{loaded.extra}")
    run.expect_state("resume.exact", again, 3, kinds=["parameter", "buffer"])


@pytest.mark.parametrize("how", ["exclude_keys", "exclude_from_loading"])
@judges("resume.extra", needs=("exclude",))
def test_an_extra_that_is_called_like_an_excluded_part_comes_back(run: Scenario, mode: str, how: str) -> None:
    extra = {"model": "tiny", "optimizer": "adamw", "phase": 2}
    life = run.start(mode=mode)
    life.train_to(2)
    try:
        life.commit(extra=extra)
    except Raised as error:
        raise Unreached(f"names of parts are reserved here: {error}") from error
    parts = ["model", "optimizer"]
    again = run.start(mode=mode, exclude_from_loading=parts if how == "exclude_from_loading" else [])
    loaded = again.load(exclude=parts if how == "exclude_keys" else [])
    run.expect(
        "resume.extra",
        loaded.extra == extra,
        expected=f"{extra}, with model and optimizer excluded",
        seen=f"{loaded.extra}",
    )


@judges("resume.reserved-extra", needs=("layout",))
def test_the_key_of_a_part_that_is_not_saved_is_refused_as_well(run: Scenario, mode: str) -> None:
    """In another format than the shared one a part may have no key."""
    life = run.start(mode=mode)
    life.train_to(2)
    for part in ("scheduler", "dataloader"):
        _expect_reserved(run, life, part, parts=())
    run.expect("resume.reserved-extra", not run.folder.steps(), expected="nothing written", seen=str(run.folder))


@pytest.mark.parametrize("key", sorted(resume.RESERVED & {"step", "tokens_seen"}))
@judges("resume.reserved-extra")
def test_a_reserved_key_in_extra_is_refused_at_save_time(run: Scenario, mode: str, key: str) -> None:
    life = run.start(mode=mode)
    life.commit_at(2)
    life.train_to(4)
    _expect_reserved(run, life, key)
    run.expect(
        "resume.reserved-extra",
        run.folder.steps() == {2},
        expected="nothing written for step 4",
        seen=str(run.folder),
    )
    life.save()
    life.wait()
    _, loaded = run.resume(mode=mode)
    run.expect_landing("resume.reserved-extra", loaded, {4}, "the save without the key works")


def _expect_reserved(run: Scenario, life: Life, key: str, parts: Sequence[str] = ALL_PARTS) -> None:
    """The save is refused; `Unreached` if it is accepted and loses nothing: then it is no key of the train state."""
    extra, doing = {key: 999}, f"a save with extra={{{key!r}: 999}}" + ("" if parts else " and no parts")
    try:
        life.save(extra=extra, parts=parts)
        life.wait()
    except Raised as error:
        with run.expect_error("resume.reserved-extra", naming=[key], doing=doing):
            raise error
        return
    life.kill()
    seen = "no error"
    try:
        loaded = run.start(mode=life.settings["mode"], seed=999).load(parts=parts)
    except Raised as error:
        seen += f" at the save; {error}"
    else:
        if (loaded.step, loaded.tokens_seen, loaded.extra) == (life.step, 32 * life.step, extra):
            raise Unreached("the extra has keys of its own here: a resume gives all of it back beside step and tokens")
        seen += f", and then a resume at step {loaded.step} with {loaded.tokens_seen} tokens and extra={loaded.extra}"
    run.expect("resume.reserved-extra", False, expected=f"{doing} to raise an error naming {key}", seen=seen)


@judges("resume.dataloader")
def test_a_loader_at_hand_gets_its_position_back(run: Scenario, any_mode: str) -> None:
    run.start(mode=any_mode).commit_at(12)
    life, _ = run.resume(mode=any_mode)
    run.expect_state("resume.dataloader", life, 12, kinds=["loader"])


@judges("resume.dataloader-stash")
def test_a_loader_made_after_the_load_gets_its_position_once(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(3)
    life = run.start(mode=mode, seed=999)
    before = life.digest("loader")
    life.load(parts=["scheduler"])
    run.expect_same("resume.dataloader-stash", life.digest(), before, ["loader"], "the loader that was not handed over")
    life.worker.call("apply_dataloader_state")
    run.judge.tell("apply_dataloader_state is called")
    run.expect_state("resume.dataloader-stash", life, 3, kinds=["loader"])
    life.train_to(5)
    moved = life.digest("loader")
    life.worker.call("apply_dataloader_state")
    run.judge.tell("apply_dataloader_state is called a second time")
    run.expect_same("resume.dataloader-stash", life.digest(), moved, ["loader"], "a loader that had moved on")


@judges("resume.dataloader-stash")
def test_a_loader_without_state_drops_it_quietly(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(3)
    life = run.start(mode=mode, seed=999)
    life.load(parts=["scheduler"])
    life.worker.call("replace_dataloader", kind="stateless", seed=0)
    life.worker.call("apply_dataloader_state")
    run.judge.tell("apply_dataloader_state is called with a loader that has no load_state_dict: no error")
    life.worker.call("replace_dataloader", kind="stateful", seed=7)
    fresh = life.digest("loader")
    life.worker.call("apply_dataloader_state")
    run.expect_same("resume.dataloader-stash", life.digest(), fresh, ["loader"], "the next loader")


@judges("resume.dataloader-stash")
def test_a_loader_gets_nothing_of_a_load_before_the_last(run: Scenario, mode: str, tmp_path: Path) -> None:
    run.start(mode=mode).commit_at(3)
    life = run.start(mode=mode, seed=999)
    life.load(parts=["scheduler"])
    empty = tmp_path / "empty"
    empty.mkdir()
    run.folder.become(empty)
    run.judge.tell("the folder is emptied")
    if not life.load(parts=["scheduler"]).is_fresh:
        raise Unreached("the second load, of an empty folder, is no fresh start; see resume.fresh")
    life.worker.call("replace_dataloader", kind="stateful", seed=7)
    fresh = life.digest("loader")
    life.worker.call("apply_dataloader_state")
    run.judge.tell("apply_dataloader_state is called with a new loader")
    what = "a new loader, after a load that found nothing"
    run.expect_same("resume.dataloader-stash", life.digest(), fresh, ["loader"], what)


@judges("resume.all-or-nothing", needs=("layout",))
def test_an_unreadable_train_state_changes_nothing(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(4)
    (run.folder.of(4) / "train_state.pt").write_bytes(b"not a checkpoint" * 40)
    run.judge.tell("train_state.pt of step 4 is overwritten with garbage")
    _expect_refused_untouched(run, mode)


@pytest.mark.parametrize("how", ["deeper", "wider"])
@judges("resume.fits")
def test_a_checkpoint_of_another_model_is_refused(run: Scenario, mode: str, how: str) -> None:
    run.start(mode=mode).commit_at(4)
    life = run.start(mode=mode, seed=999)
    name = _altered(run, life, how)
    with run.expect_error("resume.fits", naming=[name], doing="loading what does not fit the model"):
        life.load(run.folder.of(4) if run.has("explicit") else None)


@pytest.mark.parametrize("how", ["deeper", "wider"])
@judges("resume.fits")
def test_no_resume_starts_fresh_because_nothing_fits(run: Scenario, mode: str, how: str) -> None:
    """Nor does it look for an older one: whoever changed the model has to say what is to become of the old weights."""
    run.start(mode=mode).commit_at(2, 4)
    life = run.start(mode=mode, seed=999)
    name = _altered(run, life, how)
    with run.expect_error("resume.fits", naming=[name], doing="a resume of what does not fit the model"):
        life.load()


@pytest.mark.parametrize("how", ["deeper", "wider"])
@judges("resume.all-or-nothing")
def test_a_model_that_does_not_fit_stays_as_it_is(run: Scenario, mode: str, how: str) -> None:
    run.start(mode=mode).commit_at(4)
    life = run.start(mode=mode, seed=999)
    life.train_to(3)
    _altered(run, life, how)
    before = life.digest()
    try:
        life.load(run.folder.of(4) if run.has("explicit") else None)
    except Raised:
        run.judge.tell("that is refused")
    else:
        raise Unreached("a checkpoint that does not fit the model is not refused; see resume.fits")
    run.expect_same("resume.all-or-nothing", life.digest(), before, ALL_KINDS, "the state before the refused load")


@judges("resume.all-or-nothing", needs=("freeze",))
def test_a_freeze_mismatch_changes_nothing(run: Scenario, mode: str) -> None:
    life = run.start(mode=mode)
    life.train_to(4)
    life.commit(extra={"vlm_freeze": FREEZE})
    _expect_refused_untouched(run, mode, freeze_expected=[{"module": "vision", "frozen": False}])


@judges("resume.all-or-nothing", needs=("dataloader",))
def test_a_loader_that_refuses_its_position_changes_nothing_else(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(4)
    life = run.start(mode=mode, seed=999)
    life.train_to(3)
    life.worker.call("replace_dataloader", kind="refusing", seed=7)
    run.judge.tell("its loader is now one that raises when it is given a position")
    before = life.digest()
    with run.expect_error("resume.all-or-nothing", doing="the load"):
        life.load(run.folder.of(4) if run.has("explicit") else None)
    others = set(ALL_KINDS) - {"loader"}
    run.expect_same("resume.all-or-nothing", life.digest(), before, others, "all but the loader before the load")


@judges("resume.damage")
def test_a_truncated_shard_is_an_error_that_names_it(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(4)
    shard = _shard(run, 4)
    os.truncate(shard, shard.stat().st_size // 2)
    run.judge.tell(f"{shard.name} of step 4 is cut to half its size")
    life = run.start(mode=mode, seed=999)
    with run.expect_error("resume.damage", naming=[shard.name], doing="loading a truncated shard"):
        life.load(run.folder.of(4) if run.has("explicit") else None)


@pytest.mark.parametrize("tensor", ["weights", "moments"])
@judges("resume.damage")
def test_a_flipped_bit_in_a_tensor_is_an_error_that_names_the_file(run: Scenario, mode: str, tensor: str) -> None:
    life = run.start(mode=mode)
    life.commit_at(4)
    shard, place = _find(run, 4, bytes.fromhex(life.worker.call(tensor)))
    data = bytearray(shard.read_bytes())
    data[place] ^= 0x10
    shard.write_bytes(data)
    run.judge.tell(f"one bit of the {tensor} in {shard.name} of step 4 is flipped")
    again = run.start(mode=mode, seed=999)
    with run.expect_error("resume.damage", naming=[shard.name], doing="loading a shard with a flipped bit"):
        again.load(run.folder.of(4) if run.has("explicit") else None)


@judges("resume.after-kill", "resume.one-step")
@pytest.mark.parametrize("after", [1, 2, 3, 4, 6, 9, 14, 20])
def test_killed_at_a_file_operation_the_run_comes_back_where_it_may(run: Scenario, mode: str, after: int) -> None:
    life = run.start(mode=mode, gated=True)
    life.commit_at(2)
    begun = len(life.gate.log)
    life.train_to(4)
    life.close_gate(at(begun + after), saying=f"it stops before file operation number {after}")
    life.begin_save()
    if not life.gate.wait_held(run.patience_s):
        life.open_gate()
        life.worker.reply()
        run.judge.tell("that save returns before it comes to so many")
        life.wait()
    life.kill()
    again, loaded = run.resume(mode=mode)
    run.expect_landing("resume.after-kill", loaded, resume.after_kill(acknowledged=2, in_flight=4))
    run.expect_state("resume.one-step", again, loaded.step)


# -- helpers ------------------------------------------------------------------------


def _expect_to_go_on(run: Scenario, mode: str) -> None:
    """The next run saves step 4 over what is left of it, and the one after that goes on from there."""
    for committed in (4, 5):
        life, _ = run.resume(mode=mode)
        life.commit_at(max(committed, life.step))
        life.kill()
    _, loaded = run.resume(mode=mode)
    run.expect_landing("resume.continue", loaded, {5}, "it was committed after step 4, which was saved again")


def _step(outcome: resume.Outcome) -> int | None:
    return outcome.step if isinstance(outcome, resume.Step) else None


def _expect_peek(run: Scenario, step: int | None, situation: str, **settings: Any) -> None:
    run.judge.tell(f"there is {situation}: {run.folder}")
    life = run.start(seed=999, **settings)
    peeked = life.worker.call("peek", path=None)
    loaded = life.load()
    landed = None if loaded.is_fresh else loaded.step
    run.expect(
        "resume.peek-agrees",
        peeked == landed,
        expected=f"peek and load to agree with {situation}",
        seen=f"peek says {peeked}, load lands on {landed}",
    )
    life.kill()
    if landed != step:
        raise Unreached(f"peek and load agree on {landed} with {situation}, where {step} is right; see resume.lands")


def _outcome(run: Scenario, settings: dict[str, Any]) -> tuple[Any, ...]:
    life = run.start(seed=999, **settings)
    loaded = life.load()
    weights = tuple(sorted(life.digest("parameter").values()))
    life.kill()
    return loaded.step, weights


def _nest_scheduler(run: Scenario, life: Life, kind: str) -> None:
    life.worker.call("nest_scheduler", kind=kind)
    holds = "that warms up and then lets another one go on, which it holds" if kind == "inner" else "that holds a list"
    run.judge.tell(f"{life.name} has a scheduler now {holds}")


def _vary(run: Scenario, life: Life, seed: int) -> None:
    life.worker.call("vary", seed=seed)
    run.judge.tell("its model gets tensors of other types, shapes and orders, and a matrix that two layers share")


def _altered(run: Scenario, life: Life, how: str) -> str:
    """Make the model another one; the name of a tensor that no checkpoint has a value for."""
    name: str = life.worker.call("alter", how=how)
    run.judge.tell(f"its model is now {how} than the one that was saved: {name} is new, or has another shape")
    return name


def _expect_refused_untouched(run: Scenario, mode: str, **arguments: Any) -> None:
    life: Life = run.start(mode=mode, seed=999)
    life.train_to(3)
    before = life.digest()
    path = run.folder.of(4) if run.has("explicit") else None
    with run.expect_error("resume.all-or-nothing", doing="the load"):
        life.load(path, **arguments)
    run.expect_same("resume.all-or-nothing", life.digest(), before, ALL_KINDS, "the state before the refused load")


def _shard(run: Scenario, step: int) -> Path:
    """The largest file of a checkpoint: where the tensors are."""
    path = run.folder.of(step)
    return path if path.is_file() else max((f for f in path.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def _find(run: Scenario, step: int, content: bytes) -> tuple[Path, int]:
    """The file of a checkpoint that holds these bytes, and where; the middle of its largest file if none does."""
    path = run.folder.of(step)
    for file in [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file()):
        place = file.read_bytes().find(content)
        if place >= 0:
            return file, place + len(content) // 2
    return _shard(run, step), _shard(run, step).stat().st_size // 2
