"""The search counts each state once, finds a shortest trace first, and detects a hang: on tables checked by hand."""

from collections.abc import Sequence
from typing import NamedTuple

import pytest

from forge_spec.model.explore import search
from forge_spec.model.machine import HANG, Invariant, Label, Machine, Row, with_row


class Clock(NamedTuple):
    """Hands that only go forward."""

    hour: int
    minute: int


TABLE = (
    Row("tick", {}, lambda minute: {"minute": minute + 1} if minute < 2 else None, "it is {new.hour}:{new.minute}"),
    Row("strike", {}, lambda hour, last: {"hour": hour + 1} if hour < last else None, "it strikes {new.hour}"),
)


def clock(*, allowed: int = 9, rows: Sequence[Row] = TABLE, rests: bool = True) -> Machine[Clock]:
    below = Invariant("clock.sum", "stays small", lambda hour, minute: hour + minute <= allowed, lambda hour: hour == 3)
    return Machine(Clock(0, 0), rows, [below], {"last": 3}, {}, lambda hour: rests)


def test_each_state_is_counted_once_and_each_way_into_it_as_a_transition() -> None:
    found = search(clock())
    assert (found.states, found.transitions, found.depth) == (4 * 3, 3 * 3 + 4 * 2, 3 + 2)
    assert found.violation is None


def test_a_violation_is_reported_with_a_shortest_trace() -> None:
    violation = search(clock(allowed=2)).violation
    assert violation is not None
    assert len(violation.trace) == 3
    assert violation.trace[0].sentence in ("it is 0:1", "it strikes 1")


def test_an_invariant_that_does_not_hold_at_the_start_is_found_without_a_row() -> None:
    violation = search(clock(allowed=-1)).violation
    assert violation is not None
    assert violation.trace == ()


def test_a_search_to_a_depth_ends_there() -> None:
    found = search(clock(allowed=2), max_depth=2)
    assert (found.violation, found.depth) == (None, 2)


def test_a_situation_that_never_arises_and_a_row_that_is_never_taken_are_known() -> None:
    found = search(clock(rows=with_row(TABLE, "strike", effect=lambda: None)))
    assert found.reached == frozenset()
    assert found.taken == {Label("tick")}


def test_a_state_in_which_a_call_can_neither_go_on_nor_return_is_a_hang() -> None:
    violation = search(clock(rests=False)).violation
    assert violation is not None
    assert violation.clause == HANG
    assert len(violation.trace) == 3 + 2


def test_an_external_row_does_not_end_a_hang() -> None:
    violation = search(clock(rests=False, rows=with_row(TABLE, "tick", external=True))).violation
    assert violation is not None
    assert (violation.clause, len(violation.trace)) == (HANG, 3)


def test_a_row_is_taken_only_where_its_fields_have_the_values_that_it_asks_for() -> None:
    found = search(clock(rows=with_row(TABLE, "tick", when={"hour": {0}})))
    assert found.states == 3 * 4
    assert found.transitions == 3 * 3 + 2


def test_one_row_may_be_taken_for_several_values() -> None:
    rows = [Row("set", {"hour": {0}}, lambda to: {"hour": to}, "it strikes {to}", each="to")]
    machine = Machine(Clock(0, 0), rows, [], {}, {"to": [1, 2, 5]}, lambda: True)
    assert search(machine).taken == {Label("set", 1), Label("set", 2), Label("set", 5)}


def test_a_state_is_what_it_was_packed_from() -> None:
    machine = clock()
    for state in (Clock(0, 0), Clock(3, 1), Clock(17, 4)):
        assert machine.unpack(machine.pack(state)) == state


def test_a_row_that_is_to_be_changed_has_to_exist() -> None:
    with pytest.raises(ValueError, match="no row 'chime'"):
        with_row(TABLE, "chime", external=True)
