"""Observations of a run are followed through the model: every run of the model is possible, and others are not."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge_spec.model.designs import BY_NAME, FIRST
from forge_spec.model.explore import explore, follow
from forge_spec.model.machine import Machine
from forge_spec.model.paths import (
    ACKNOWLEDGED,
    BEGINS,
    FOLDER,
    KILL,
    LANDS,
    RAISED,
    START,
    Seen,
    Unexpected,
    follow_seen,
    shown,
)
from forge_spec.model.table import Scope, Setting, State


def of(is_async: bool = False, keep: int = 2, steps: int = 2, stages: int = 1) -> Machine[State]:
    return FIRST.machine(Scope(steps=steps, stages=stages, replicas=1, accidents=0), Setting(is_async, keep))


def folder(complete: Sequence[int], latest: int) -> Seen:
    return Seen(FOLDER, 0, frozenset(complete), latest)


SAVED_ONCE = [Seen(START), Seen(LANDS), Seen(BEGINS, 1), folder([1], 0), folder([1], 1), Seen(ACKNOWLEDGED, 1)]


def unexpected(seen: Sequence[Seen], machine: Machine[State] | None = None) -> Unexpected | None:
    return follow_seen(machine or of(), seen)[0]


def test_a_run_that_saves_is_killed_and_resumes_is_a_path() -> None:
    again = [Seen(BEGINS, 2), folder([1, 2], 1), Seen(KILL), Seen(START), Seen(LANDS, 1)]
    assert unexpected([*SAVED_ONCE, *again]) is None


@pytest.mark.parametrize(
    ("seen", "at"),
    [
        ([*SAVED_ONCE[:3], folder([], 1)], 3),
        ([*SAVED_ONCE[:3], Seen(ACKNOWLEDGED, 1)], 3),
        ([*SAVED_ONCE, Seen(BEGINS, 2), folder([], 1)], 7),
        ([*SAVED_ONCE, Seen(KILL), Seen(START), Seen(LANDS)], 8),
        ([*SAVED_ONCE, Seen(RAISED, 1)], 6),
    ],
    ids=["latest first", "acknowledged before it is there", "deleted first", "lost", "raised for nothing"],
)
def test_what_the_model_has_no_row_for_is_the_first_unexpected_observation(seen: list[Seen], at: int) -> None:
    found = unexpected(seen)
    assert found is not None
    assert (found.at, found.seen) == (at, seen[at])
    assert found.possible, "it says what is possible instead"


def test_an_asynchronous_save_is_acknowledged_by_the_next_call() -> None:
    seen = [Seen(START), Seen(LANDS), Seen(BEGINS, 1), folder([1], 0), folder([1], 1), Seen(BEGINS, 2)]
    acknowledged = [*seen, Seen(ACKNOWLEDGED, 1)]
    assert unexpected(acknowledged, of(is_async=True)) is None
    assert unexpected(acknowledged, of(is_async=False)) is not None, (
        "a synchronous one is, before anything else happens"
    )


@given(st.lists(st.integers(0, 50), max_size=60), st.booleans(), st.sampled_from([1, 2]))
@settings(deadline=None, max_examples=200)
def test_whatever_the_model_does_is_a_path_of_it(choices: list[int], is_async: bool, stages: int) -> None:
    machine = of(is_async, stages=stages)
    state, seen = machine.start, list[Seen]()
    for choice in choices:
        moves = [(rule, after) for rule, after in machine.moves(state) if not rule.row.name.startswith("lose ")]
        rule, after = moves[choice % len(moves)]
        one = shown(rule.row.name, machine.unpack(state), machine.unpack(after))
        seen += [one] if one else []
        state = after
    assert unexpected(seen, machine) is None


@pytest.mark.parametrize("name", ["latest-early", "one-stage", "wait-does-not", "prune-early", "limit-alone"])
def test_the_trace_of_a_broken_manager_is_not_a_path(name: str) -> None:
    _, variant = BY_NAME[name]
    scope, table = FIRST.scope_of(variant), FIRST.table_of(variant)
    shortest = explore(FIRST, scope, table).shortest
    assert shortest is not None
    setting, violation = shortest
    broken = FIRST.machine(scope, setting, table)
    labels = [step.label for step in violation.trace]
    states = list(follow(broken, labels))
    told = [shown(label.row, *pair) for label, pair in zip(labels, pairwise(states), strict=True)]
    right = FIRST.machine(scope, setting)
    assert unexpected([one for one in told if one], right) is not None
    assert unexpected([one for one in told if one], broken) is None
