"""The training run that managers save: deterministic to the bit, and no kind of its state may be left out.

Were a kind without effect on the losses, a manager that drops it would pass.
"""

import copy
import random
from typing import Any

import numpy
import pytest
import torch

from forge_conformance.runs.state import ALL_KINDS
from forge_conformance.worker.variety import VariedWorkload
from forge_conformance.worker.workload import Workload

BEFORE, AFTER = 13, 6
"""Steps until the state is taken, across an epoch of the loader, and steps in which the losses are compared."""

Taken = dict[str, Any]


def take(run: Workload) -> Taken:
    """Every kind of state, by itself."""
    optimizer = run.optimizer.state_dict()
    return copy.deepcopy(
        {
            "parameters": dict(run.model.named_parameters()),
            "buffers": dict(run.model.named_buffers()),
            "moments": optimizer["state"],
            "groups": optimizer["param_groups"],
            "scheduler": run.scheduler.state_dict(),
            "loader": run.dataloader.state_dict(),
            "python": random.getstate(),
            "numpy": numpy.random.get_state(),
            "torch": torch.get_rng_state(),
        }
    )


def give(run: Workload, taken: Taken) -> None:
    """Bring back the kinds that are there."""
    own = run.optimizer.state_dict()
    state = {"state": taken.get("moments", own["state"]), "param_groups": taken.get("groups", own["param_groups"])}
    run.optimizer.load_state_dict(state)
    tensors = {**taken.get("parameters", {}), **taken.get("buffers", {})}
    run.model.load_state_dict(tensors, strict=False)
    for kind, restore in (
        ("scheduler", run.scheduler.load_state_dict),
        ("loader", run.dataloader.load_state_dict),
        ("python", random.setstate),
        ("numpy", numpy.random.set_state),
        ("torch", torch.set_rng_state),
    ):
        if kind in taken:
            restore(taken[kind])


def losses_after(taken: Taken) -> list[str]:
    """How another run goes on with this state; what is missing is as it was there."""
    run = Workload(seed=1)
    run.train(BEFORE - 2)
    give(run, copy.deepcopy(taken))
    return run.train(AFTER)


@pytest.fixture(scope="module")
def undisturbed() -> tuple[Taken, list[str]]:
    """The state after some steps, and the losses from there."""
    run = Workload(seed=0)
    run.train(BEFORE)
    taken = take(run)
    return taken, run.train(AFTER)


def test_the_same_seed_is_the_same_run_to_the_bit() -> None:
    runs = []
    for _ in range(2):
        run = Workload(seed=0)
        runs.append((run.train(BEFORE), run.digest()))
    assert runs[0] == runs[1]


def test_another_seed_is_another_run() -> None:
    assert Workload(seed=0).train(3) != Workload(seed=1).train(3)


def test_with_its_whole_state_another_run_goes_on_as_this_one(undisturbed: tuple[Taken, list[str]]) -> None:
    taken, losses = undisturbed
    assert losses_after(taken) == losses


@pytest.mark.parametrize(
    "kind", ["parameters", "buffers", "moments", "groups", "scheduler", "loader", "python", "numpy", "torch"]
)
def test_whatever_kind_of_state_is_dropped_the_losses_differ(kind: str, undisturbed: tuple[Taken, list[str]]) -> None:
    taken, losses = undisturbed
    assert losses_after({name: value for name, value in taken.items() if name != kind}) != losses


def test_every_kind_of_state_has_a_fingerprint_that_follows_it() -> None:
    run = Workload(seed=0)
    run.train(BEFORE)
    before = run.digest()
    run.train(1)
    after = run.digest()
    kinds = {name.partition("/")[0] for name in before}
    changed = {name.partition("/")[0] for name in before if before[name] != after[name]}
    assert kinds == set(ALL_KINDS)
    assert changed == kinds - {"trained"}
    next(run.model.parameters()).requires_grad_(False)
    assert [name for name, value in run.digest().items() if value != after[name]] == ["trained/0.weight"]


def test_a_fingerprint_is_of_values_not_of_objects() -> None:
    run = Workload(seed=0)
    run.train(2)
    before = run.digest()
    give(run, take(run))
    assert run.digest() == before


def test_scrambling_reaches_parameters_buffers_and_moments() -> None:
    run = Workload(seed=0)
    run.train(2)
    before = run.digest()
    run.scramble()
    after = run.digest()
    same = {name.partition("/")[0] for name in before if before[name] == after[name]}
    assert same.isdisjoint({"parameter", "buffer", "moment"})


def test_the_loss_scaler_skips_steps_before_and_after_the_saves() -> None:
    run, skipped = VariedWorkload("scaled", 0), []
    for step in range(1, 10):
        before = [parameter.detach().clone() for parameter in run.model.parameters()]
        run.train(1)
        if all(map(torch.equal, before, run.model.parameters())):
            skipped.append(step)
    assert skipped == [5, 8]


def test_a_step_without_a_loss_leaves_the_loss_scaler_alone() -> None:
    run = VariedWorkload("scaled", 0)
    assert run.scaler is not None
    before = run.scaler.state_dict()
    for parameter in run.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    run.optimizer.step()
    assert run.optimizer.state and run.scaler.state_dict() == before


@pytest.mark.parametrize("lost", [{"scale": 2.0**17}, {"_growth_tracker": 0}])
def test_a_loss_scaler_that_starts_anew_changes_the_losses(lost: dict[str, Any]) -> None:
    losses = []
    for change in ({}, lost):
        run = VariedWorkload("scaled", 0)
        run.train(6)
        assert run.scaler is not None
        run.scaler.load_state_dict({**run.scaler.state_dict(), **change})
        losses.append(run.train(3))
    assert losses[0] != losses[1]
