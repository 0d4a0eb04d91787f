"""One run and its folder, call by call: what may be observed after each call.

The clauses leave some things to the manager: when a save whose files are all written is committed, and which old
checkpoints are deleted at level core. So this module predicts no folder. It gives *bounds* on the folder, and then
*adopts* what was observed as the state before the next call.

Invariant: between calls the folder is known exactly, except for the save that may be in flight. After a kill a call may
have done only a part of its work.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from forge_spec.retention import Folder, may_keep, must_keep


@dataclass(frozen=True)
class State:
    """What is known when a call has returned.

    `acknowledged` is the last acknowledged step, and `in_flight` the save that was dispatched and is not acknowledged.
    """

    keep_last_n: int
    background: bool
    complete: frozenset[int] = frozenset()
    latest: int | None = None
    milestones: frozenset[int] = frozenset()
    acknowledged: int | None = None
    in_flight: int | None = None
    has_pointer: bool = True
    """Whether `latest` is a pointer; without one the newest complete checkpoint is the resume point."""


@dataclass(frozen=True)
class Bounds:
    """What may be observed: the pointer names one of `latest`, and `must <= complete <= may`."""

    latest: frozenset[int | None]
    must: frozenset[int]
    may: frozenset[int]


def after_save(state: State, step: int) -> tuple[State, Bounds]:
    """Return the state and the bounds when a save has returned.

    A synchronous save is committed then. An asynchronous one is in flight, and the save before it is committed.

    >>> _, bounds = after_save(State(keep_last_n=1, background=False, complete=frozenset({2}), latest=2), 4)
    >>> bounds == Bounds(latest=frozenset({4}), must=frozenset({4}), may=frozenset({4}))
    True

    An asynchronous save may have been committed already, and its deletion may have happened:

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
    """Return the state and the bounds when `wait` or `flush_pending_save` has returned: nothing is in flight.

    >>> state = State(keep_last_n=0, background=True, complete=frozenset({2}), latest=2, in_flight=4)
    >>> state, bounds = after_wait(state)
    >>> state.acknowledged, sorted(bounds.must), bounds.latest
    (4, [2, 4], frozenset({4}))
    """
    if state.in_flight is None:
        return state, _after_commits(state, [])
    return replace(state, acknowledged=state.in_flight, in_flight=None), _after_commits(state, [state.in_flight])


def after_failure(state: State) -> tuple[State, Bounds]:
    """Return the state and the bounds when a save has raised, with nothing else in flight: all is as it was.

    >>> state = State(keep_last_n=1, background=True, complete=frozenset({2, 4}), latest=4, acknowledged=4)
    >>> after_failure(state) == (state, Bounds(latest=frozenset({4}), must=frozenset({2, 4}), may=frozenset({2, 4})))
    True
    """
    assert state.in_flight is None, "what is in flight may fail as well"
    return state, _after_commits(state, [])


def after_kill(state: State, saving: int | None = None) -> tuple[State, Bounds]:
    """Return the state and the bounds after a kill, between calls or, with `saving`, inside the save of that step.

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


def resume_points(state: State, bounds: Bounds) -> frozenset[int | None]:
    """Return the steps that may be the resume point; None where there may be no checkpoint.

    With a pointer these are the steps that it may name. Without one a rewind does not move the resume point: it is the
    highest complete step of whichever allowed folder is observed.

    >>> bounds = Bounds(latest=frozenset({5, 8}), must=frozenset({5}), may=frozenset({3, 5, 6, 8}))
    >>> sorted(resume_points(State(keep_last_n=2, background=True), bounds))
    [5, 8]
    >>> sorted(resume_points(State(keep_last_n=2, background=True, has_pointer=False), bounds))
    [5, 6, 8]
    >>> bounds = Bounds(latest=frozenset(), must=frozenset(), may=frozenset({3}))
    >>> resume_points(State(keep_last_n=2, background=True, has_pointer=False), bounds) == {None, 3}
    True
    """
    if state.has_pointer:
        return bounds.latest
    if not bounds.must:
        return frozenset({None, *bounds.may})
    return frozenset(step for step in bounds.may if step >= max(bounds.must))


def adopt(state: State, complete: frozenset[int], latest: int | None) -> State:
    """Return the state with the folder as it was observed."""
    return replace(state, complete=complete, latest=latest)


def _after_commits(state: State, commits: Sequence[int]) -> Bounds:
    """Return the bounds when exactly these commits have happened, each with its deletion."""
    latest, must, may = state.latest, state.complete, state.complete
    for step in commits:
        latest = step
        folder = Folder(complete=may | {step}, milestones=state.milestones, latest=step, committed=step)
        must = (must | {step}) & must_keep(folder, state.keep_last_n)
        certain = replace(folder, complete=must | {step})
        may = may_keep(folder, state.keep_last_n) | (folder.complete & may_keep(certain, state.keep_last_n))
    return Bounds(frozenset({latest}), must, may)


def _either(one: Bounds, other: Bounds) -> Bounds:
    """Return the bounds when either of the two may have happened."""
    return Bounds(one.latest | other.latest, one.must & other.must, one.may | other.may)
