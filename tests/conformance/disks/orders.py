"""Other orders in which the ranks of a recording may have done the same.

A recording has one order of all ranks' operations: the one that happened.  Most
of it is chance, since between two messages each rank goes at its own speed.
Three things are not chance: a rank does its own steps in their order; it has
heard what others told it before; and it has found in the folder what it found.
Any order that keeps these three could have happened as well, and a death leaves
the disk of any of its beginnings.

A step at which a rank would have found something else than it did can't be
taken.  That rank gets no further in that order, and neither do ranks that wait
for it.

`orders` are the extreme ones, for each rank (and each given group of ranks):
the one in which it is as late as it can be at every moment, and the one in
which it is as early.  Among their beginnings are the extreme cuts that
`forge_spec.disk` speaks of.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from forge_conformance.runs.ledger import SharedMarks
from forge_conformance.watch.history import Counts, History, Step, Thing
from forge_conformance.watch.trace import Inode, Trace
from forge_spec.disk import Mark


class _Order:
    """An order that grows, step by step."""

    def __init__(self, steps: Sequence[Step], ranks: int) -> None:
        self._steps = steps
        self.own = [[number for number, step in enumerate(steps) if step.rank == rank] for rank in range(ranks)]
        self.done = [0] * ranks
        self._changed: dict[Thing, int] = {}
        self.taken: list[int] = []

    def next_of(self, rank: int) -> int | None:
        """The number of the step that the rank takes next; None at its end."""
        own, done = self.own[rank], self.done[rank]
        return own[done] if done < len(own) else None

    def may_take(self, number: int) -> bool:
        """Whether the rank of this step, which is its next, has heard and finds what it had heard and found."""
        step = self._steps[number]
        has_heard = all(heard <= done for heard, done in zip(step.heard, self.done, strict=True))
        return has_heard and all(self._changed.get(thing, -1) == by for thing, by in step.found.items())

    def take(self, number: int) -> None:
        """Go on with this step."""
        step = self._steps[number]
        self._changed.update(dict.fromkeys(step.changes, number))
        self.done[step.rank] += 1
        self.taken.append(number)

    def take_first(self, ranks: Collection[int]) -> bool:
        """Take, of the next steps of these ranks, the one that came first; whether there was one to take."""
        nexts = sorted(number for rank in ranks if (number := self.next_of(rank)) is not None)
        for number in nexts:
            if self.may_take(number):
                self.take(number)
                return True
        return False


def late(steps: Sequence[Step], ranks: int, group: Collection[int]) -> list[int]:
    """The order, by numbers of steps, in which these ranks do nothing that the others do not wait for."""
    order = _Order(steps, ranks)
    others = set(range(ranks)) - set(group)
    while order.take_first(others) or order.take_first(group):
        pass
    return order.taken


def early(steps: Sequence[Step], ranks: int, group: Collection[int]) -> list[int]:
    """The order in which the others do nothing that these ranks do not wait for, until these are done."""
    order = _Order(steps, ranks)
    pasts = _pasts(steps, ranks)
    for number in sorted(number for rank in group for number in order.own[rank]):
        ends = list(pasts[number])
        ends[steps[number].rank] += 1
        for needed in sorted(own for rank, end in enumerate(ends) for own in order.own[rank][order.done[rank] : end]):
            if order.next_of(steps[needed].rank) != needed or not order.may_take(needed):
                return order.taken
            order.take(needed)
    while order.take_first(range(ranks)):
        pass
    return order.taken


def _pasts(steps: Sequence[Step], ranks: int) -> list[Counts]:
    """For each step, how many steps of each rank come before it in every order."""
    pasts: list[Counts] = []
    own: list[list[int]] = [[] for _ in range(ranks)]
    for step in steps:
        known = list(step.heard)
        known[step.rank] = len(own[step.rank])
        before = [*step.found.values(), *(own[rank][count - 1] for rank, count in enumerate(known) if count)]
        for number in before:
            if number >= 0:
                after = list(pasts[number])
                after[steps[number].rank] += 1
                known = [max(pair) for pair in zip(known, after, strict=True)]
        pasts.append(tuple(known))
        own[step.rank].append(len(pasts) - 1)
    return pasts


def orders(trace: Trace, history: History, groups: Sequence[Collection[int]] = ()) -> Iterator[tuple[str, Trace]]:
    """The recording as it was, then as it may have been as well; each with what is special about it."""
    steps, ranks = history.steps, history.ranks
    all_groups = [frozenset({rank}) for rank in range(ranks)] + [frozenset(group) for group in groups if len(group) > 1]
    found = {tuple(range(len(steps))): ""}
    for word, order in (("late", late), ("early", early)):
        for group in all_groups:
            name = f"rank {' and '.join(map(str, sorted(group)))} {word}"
            found.setdefault(tuple(order(steps, ranks, group)), name)
    for taken, name in found.items():
        yield name, _reordered(trace, steps, taken, ranks)


def _reordered(trace: Trace, steps: Sequence[Step], taken: Sequence[int], ranks: int) -> Trace:
    """The trace in another order, in which what was there before comes first, and a save begins and ends for all."""
    before = range(trace.begins)
    effects = [at for number in taken if (at := steps[number].at) is not None and at >= trace.begins]
    kept = [*before, *_marks_of_all(trace, effects, ranks)]
    place = {at: new for new, at in enumerate(kept)}
    return replace(
        trace,
        effects=tuple(trace.effects[at] for at in kept),
        calls=tuple(trace.calls[at] for at in kept),
        inodes={number: _made(inode, place) for number, inode in trace.inodes.items()},
    )


def _made(inode: Inode, place: Mapping[int, int]) -> Inode:
    return replace(inode, made_at=place.get(inode.made_at, -1))


def _marks_of_all(trace: Trace, effects: Sequence[int], ranks: int) -> Iterator[int]:
    """A save is acknowledged, or has raised, when no rank is in it; all else is so with the first rank."""
    shared = SharedMarks(ranks)
    for at in effects:
        effect = trace.effects[at]
        if not isinstance(effect, Mark) or shared.counts(effect):
            yield at
