"""Chapters resume and commit: what comes back is what was saved, whatever it is, or the save says why not.

The worker's `variety` has the runs: between them they keep every kind of state
that optimizers and modules have.  What is asked is what `torch.save` and
`torch.load` of the same state dicts bring back; where that is nothing, a save
has to be refused.
"""

import pytest

from forge_conformance.judging.judge import judges
from forge_conformance.runs.life import Life
from forge_conformance.runs.process import Raised
from forge_conformance.runs.scenario import Scenario
from forge_conformance.runs.state import ALL_KINDS, STATE

KINDS = {
    "nested": "state",
    "text": "phase",
    "named": "whole",
    "stateless": "",
    "fields": "rule",
    "quantised": "moment",
    "precisions": "moment",
    "rate": "lr",
    "extra": "_extra_state",
    "history": "_extra_state",
    "growing": "rows",
    "observer": "_val",
    "lazy": "0.",
    "wrapped": "module.",
    "compiled": "_orig_mod.",
}
"""Varieties, each with what a refusal of its state has to name."""


@pytest.mark.parametrize("variety", KINDS)
@judges("resume.every-kind")
def test_state_of_every_kind_comes_back_or_is_refused(run: Scenario, mode: str, variety: str) -> None:
    life = run.start(mode=mode, variety=variety)
    life.train_to(3)
    try:
        life.save()
        life.wait()
    except Raised as refusal:
        run.expect(
            "resume.every-kind",
            KINDS[variety] in refusal.message,
            expected=f"{KINDS[variety]} to be restored, or a refusal that names it",
            seen=str(refusal),
        )
        return
    life.kill()
    again = run.start(mode=mode, variety=variety, seed=999)
    run.expect_landing("resume.every-kind", again.load(), {3}, "its save was completed")
    _expect_to_be_at(run, again, variety, 3)
    if run.has("rng", "dataloader"):
        losses = again.train_to(6)
        expected = run.timeline(0, variety).losses(3, 6)
        run.expect("resume.every-kind", losses == expected, expected=f"the losses {expected}", seen=f"{losses}")
        _expect_to_be_at(run, again, variety, 6)


@pytest.mark.parametrize("step", [5, 6])
@judges("resume.extra", "resume.exact")
def test_a_run_goes_on_with_the_loss_scaler_that_it_keeps_in_the_extra(run: Scenario, mode: str, step: int) -> None:
    """It skips steps 5 and 8; at step 5 its count of steps since then is zero, at step 6 it is one."""
    life = run.start(mode=mode, variety="scaled")
    life.train_to(step)
    extra = {"scaler": life.worker.call("scaler")}
    life.commit(extra=extra)
    life.kill()
    again = run.start(mode=mode, variety="scaled", seed=999)
    loaded = again.load()
    run.expect_landing("resume.extra", loaded, {step}, "its save was completed")
    run.expect("resume.extra", loaded.extra == extra, expected=f"{extra}", seen=f"{loaded.extra}")
    again.worker.call("scaler", state=loaded.extra["scaler"])
    run.judge.tell(f"{again.name} gives its loss scaler the state that is in the extra")
    _expect_to_be_at(run, again, "scaled", step, "resume.exact")
    if run.has("rng", "dataloader"):
        losses = again.train_to(9)
        expected = run.timeline(0, "scaled").losses(step, 9)
        run.expect("resume.exact", losses == expected, expected=f"the losses {expected}", seen=f"{losses}")


@judges("resume.every-kind")
def test_a_buffer_that_is_not_persistent_stays_as_it_is(run: Scenario, mode: str) -> None:
    """Such as a table that each process computes for the machine that it is on."""
    with run.start(mode=mode, variety="fleeting") as life:
        life.commit_at(3)
    again = run.start(mode=mode, variety="fleeting", seed=999)
    before = again.digest("buffer")
    run.expect_landing("resume.every-kind", again.load(), {3}, "its save was completed")
    expected = {**run.timeline(0, "fleeting").digest(3), "buffer/2.cache": before["buffer/2.cache"]}
    run.expect_same(
        "resume.every-kind", again.digest(), expected, STATE, "the state of step 3, with a cache of its own"
    )


def _expect_to_be_at(run: Scenario, life: Life, variety: str, step: int, clause: str = "resume.every-kind") -> None:
    expected = run.timeline(0, variety).digest(step)
    run.expect_same(clause, life.digest(), expected, STATE, f"the state of step {step}")


@judges("commit.refuses-the-unloadable")
def test_a_value_that_nobody_can_load_is_refused_and_costs_nothing(run: Scenario) -> None:
    """It appears in the state of the optimizer at step 4; in the background it is a failed flush, which has its own."""
    life = run.start(variety="unsavable")
    life.commit_at(2)
    life.train_to(4)
    _expect_refused_save(run, life)
    life.kill()
    again = run.start(variety="unsavable", seed=999)
    run.expect_landing("commit.refuses-the-unloadable", again.load(), {2}, "the save of step 4 was refused")


@judges("commit.refuses-the-unloadable")
def test_a_model_with_placeholders_is_not_saved(run: Scenario) -> None:
    life = run.start(variety="hollow")
    run.judge.tell("its last layer is on the device meta")
    _expect_refused_save(run, life)


def _expect_refused_save(run: Scenario, life: Life) -> None:
    before = run.folder.complete()
    with run.expect_error("commit.refuses-the-unloadable", doing=f"the save of step {life.step}"):
        life.save()
        life.wait()
    run.expect(
        "commit.refuses-the-unloadable",
        run.folder.complete() == before,
        expected=f"the complete checkpoints {sorted(before)}, as before",
        seen=str(run.folder),
    )


@judges("resume.fits")
def test_placeholders_are_not_taken_for_a_model_that_resumed(run: Scenario, mode: str) -> None:
    with run.start(mode=mode, variety="adam") as life:
        life.commit_at(3)
    hollow = run.start(mode=mode, variety="hollow", seed=999)
    run.judge.tell("its last layer is on the device meta")
    with run.expect_error("resume.fits", doing="loading into a model with a layer on the device meta"):
        hollow.load(run.folder.of(3) if run.has("explicit") else None)


@pytest.mark.parametrize("saved,live", [("sgd", "adam"), ("adam", "sgd"), ("one-group", "adam"), ("adam", "one-group")])
@judges("resume.other-optimizer", "resume.all-or-nothing")
def test_the_state_of_another_optimizer_is_refused(run: Scenario, mode: str, saved: str, live: str) -> None:
    with run.start(mode=mode, variety=saved) as life:
        life.commit_at(3)
    again = run.start(mode=mode, variety=live, seed=999)
    again.train_to(1)
    before = again.digest()
    with run.expect_error("resume.other-optimizer", doing=f"loading the optimizer state of {saved} into {live}"):
        again.load(run.folder.of(3) if run.has("explicit") else None)
    run.expect_same("resume.all-or-nothing", again.digest(), before, ALL_KINDS, "the state before the refused load")


@judges("resume.other-optimizer")
def test_parameters_in_another_order_get_what_is_theirs(run: Scenario, mode: str) -> None:
    """As when a layer is defined before another one since the save; shapes of some are the same."""
    with run.start(mode=mode, variety="adam") as life:
        life.train_to(3)
        saved = life.digest("parameter", "moment", "group")
        life.commit()
    again = run.start(mode=mode, variety="adam-in-another-order", seed=999)
    try:
        loaded = again.load(run.folder.of(3) if run.has("explicit") else None)
    except Raised as refused:
        run.expect("resume.other-optimizer", True, expected="its own state for each, or a refusal", seen=refused)
        return
    run.expect_landing("resume.other-optimizer", loaded, {3}, "its save was completed")
    swapped = {name: f"{name[:-1]}{1 - int(name[-1])}" for name in saved if name.startswith("group/")}
    expected = {swapped.get(name, name): value for name, value in saved.items()}
    kinds = ["parameter", "moment", "group"]
    run.expect_same("resume.other-optimizer", again.digest(), expected, kinds, "to each parameter its own state")


@judges("resume.surplus")
def test_what_the_model_no_longer_has_is_left_out_with_a_warning(run: Scenario, mode: str) -> None:
    life = run.start(mode=mode, variety="deeper")
    life.train_to(3)
    saved = life.digest("parameter", "buffer", "moment")
    life.commit()
    life.kill()
    again = run.start(mode=mode, variety="adam", seed=999)
    run.expect_landing("resume.surplus", again.load(), {3}, "its save was completed")
    run.expect_warning("resume.surplus", again, "5.weight")
    seen = again.digest("parameter", "buffer", "moment")
    kept = {name: value for name, value in saved.items() if not name.partition("/")[2].startswith("5.")}
    run.expect_same("resume.surplus", seen, kept, ["parameter", "buffer", "moment"], "what the model still has")


@pytest.mark.parametrize("name", ["1.", "1", "0.weight"])
@pytest.mark.parametrize("how", ["exclude_keys", "exclude_from_loading"])
@judges("resume.exclude-prefix")
def test_an_excluded_layer_stays_with_its_moments(run: Scenario, how: str, name: str) -> None:
    with run.start() as life:
        life.commit_at(3)
    again = run.start(seed=5, exclude_from_loading=[name] if how == "exclude_from_loading" else [])
    again.train_to(2)
    before = again.digest()
    again.load(run.folder.of(3) if run.has("explicit") else None, exclude=[name] if how == "exclude_keys" else [])
    loaded = run.timeline().digest(3)
    spared = [item for item in loaded if f"{item.partition('/')[2]}.".startswith(f"{name.rstrip('.')}.")]
    expected = {item: before[item] if item in spared else value for item, value in loaded.items()}
    run.expect_same(
        "resume.exclude-prefix",
        again.digest(),
        expected,
        ["parameter", "buffer", "moment"],
        f"{', '.join(spared)} as before and the rest as saved, with {name!r} in {how}",
    )


@judges("resume.exclude-prefix")
def test_a_name_that_is_in_no_model_is_refused(run: Scenario) -> None:
    with run.start() as life:
        life.commit_at(3)
        for name in ("optimiser", "0.wei", "00"):
            with run.expect_error("resume.exclude-prefix", naming=[name], doing=f"a load without {name!r}"):
                life.load(exclude=[name])
    with run.expect_error("resume.exclude-prefix", naming=["optimiser"], doing="making a manager that excludes it"):
        run.start(exclude_from_loading=["optimiser"])


@judges("commit.gradients-said")
def test_gradients_that_no_step_has_taken_are_said_and_no_others(run: Scenario, mode: str) -> None:
    life = run.start(mode=mode)
    for step, how in enumerate(["kept", "half", "kept", "zero", "none", "half"], start=1):
        life.train_to(step)
        if how != "kept":
            life.worker.call("accumulate", how=how)
            run.judge.tell({"half": "half a batch's gradients come in"}.get(how, f"gradients are cleared ({how})"))
        life.save()
        said = "gradient" in life.warnings
        life.wait()
        run.expect(
            "commit.gradients-said",
            said is (how == "half"),
            expected="a warning of gradients" if how == "half" else "no warning of gradients",
            seen=life.warnings or "no warning",
        )
