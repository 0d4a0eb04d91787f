"""One run and its folder, call by call: what may be seen after each of them.

A manager is free in what the clauses leave open: when a durable save is
committed, and which old checkpoints go at level core.  So nothing here
predicts a folder; it is said within which *bounds* the folder has to be, and what
is seen is then *adopted* as the state for the next call.

Invariant: between calls the folder is known exactly, except for the one
save that may be in flight; a kill adds that a call may have got only part of
its way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from forge_spec.retention import Folder, may_keep, must_keep


@dataclass(frozen=True)
class State:
    """What is known when a call has returned.

    `acknowledged` is the last step that a returned call vouched for;
    `in_flight` the save that was dispatched and that no call has vouched for.
    """

    keep_last_n: int
    background: bool
    complete: frozenset[int] = frozenset()
    latest: int | None = None
    milestones: frozenset[int] = frozenset()
    acknowledged: int | None = None
    in_flight: int | None = None


@dataclass(frozen=True)
class Bounds:
    """What may be seen: `latest` is one of these, and `must <= complete <= may`."""

    latest: frozenset[int | None]
    must: frozenset[int]
    may: frozenset[int]


def after_save(state: State, step: int) -> tuple[State, Bounds]:
    """A save has returned: it is committed, or in flight and the one before it committed.

    >>> _, bounds = after_save(State(keep_last_n=1, background=False, complete=frozenset({2}), latest=2), 4)
    >>> bounds == Bounds(latest=frozenset({4}), must=frozenset({4}), may=frozenset({4}))
    True

    In the background both the commit of the new step and the deletion that it
    brings about may have happened already, or not:

    >>> state = State(keep_last_n=1, background=True, complete=frozenset({2}), latest=2, acknowledged=2)
    >>> state, bounds = after_save(state, 4)
    >>> sorted(bounds.latest), sorted(bounds.must), sorted(bounds.may), state.in_flight
    ([2, 4], [], [2, 4], 4)
    """
    if not state.background:
        bounds = _after_commits(state, [step])
        return replace(state, acknowledged=step), bounds
    before = [] if state.in_flight is None else [state.in_flight]
    returned = replace(state, acknowledged=state.in_flight if before else state.acknowledged, in_flight=step)
    return returned, _either(_after_commits(state, before), _after_commits(state, [*before, step]))


def after_wait(state: State) -> tuple[State, Bounds]:
    """`wait` or `flush_pending_save` has returned: nothing is in flight.

    >>> state = State(keep_last_n=0, background=True, complete=frozenset({2}), latest=2, in_flight=4)
    >>> state, bounds = after_wait(state)
    >>> state.acknowledged, sorted(bounds.must), bounds.latest
    (4, [2, 4], frozenset({4}))
    """
    if state.in_flight is None:
        return state, _after_commits(state, [])
    return replace(state, acknowledged=state.in_flight, in_flight=None), _after_commits(state, [state.in_flight])


def after_failure(state: State) -> tuple[State, Bounds]:
    """A save has failed that nothing was in flight beside, and has been told as failed: all is as it was.

    >>> state = State(keep_last_n=1, background=True, complete=frozenset({2, 4}), latest=4, acknowledged=4)
    >>> after_failure(state) == (state, Bounds(latest=frozenset({4}), must=frozenset({2, 4}), may=frozenset({2, 4})))
    True
    """
    assert state.in_flight is None, "what is in flight may fail as well"
    return state, _after_commits(state, [])


def after_kill(state: State, saving: int | None = None) -> tuple[State, Bounds]:
    """The process is dead, killed between calls or, with `saving`, inside the save of that step.

    >>> state = State(keep_last_n=1, background=True, complete=frozenset({2}), latest=2, acknowledged=2, in_flight=4)
    >>> state, bounds = after_kill(state, saving=6)
    >>> sorted(bounds.latest), sorted(bounds.may), state.in_flight
    ([2, 4, 6], [2, 4, 6], None)
    """
    commits = [step for step in (state.in_flight, saving) if step is not None]
    bounds = _after_commits(state, [])
    for count in range(1, len(commits) + 1):
        bounds = _either(bounds, _after_commits(state, commits[:count]))
    return replace(state, in_flight=None), bounds


def adopt(state: State, complete: frozenset[int], latest: int | None) -> State:
    """The state with the folder as it was seen."""
    return replace(state, complete=complete, latest=latest)


def _after_commits(state: State, commits: Sequence[int]) -> Bounds:
    """The bounds when exactly these commits have happened, each with its deletion."""
    latest, must, may = state.latest, state.complete, state.complete
    for step in commits:
        latest = step
        folder = Folder(complete=may | {step}, milestones=state.milestones, latest=step, committed=step)
        must = (must | {step}) & must_keep(folder, state.keep_last_n)
        certain = replace(folder, complete=must | {step})
        may = may_keep(folder, state.keep_last_n) | (folder.complete & may_keep(certain, state.keep_last_n))
    return Bounds(frozenset({latest}), must, may)


def _either(one: Bounds, other: Bounds) -> Bounds:
    """What may be seen when it is open which of the two has happened."""
    return Bounds(one.latest | other.latest, one.must & other.must, one.may | other.may)
