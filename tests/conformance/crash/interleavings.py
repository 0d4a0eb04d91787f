"""The orders in which several ranks may have done what they did.

A recording has one order of all ranks' operations: the one that happened.  Most
of it is chance, since between two messages each rank goes at its own speed.
What is not chance: a rank does its own steps in their order; it has heard what
others told it before; and it has found in the folder what it found.  Any order
that keeps these three is one that could have happened as well, and a death
leaves the disk of any of its beginnings.

A *step* is something that a rank did to the folder, or a time at which it
looked there.  What it had heard is taken from what others had sent before it
in the recording, whether it had read that by then or not: so an order may be
missed, and never one invented.  A step at which a rank would have found
something else than it did can't be taken; that rank gets no further in that
order, and neither does who waits for it.

`orders` are the extreme ones, for each rank (and each given group of ranks):
the one in which it is as late as it can be at every moment, and the one in
which it is as early.  Among their beginnings are the extreme cuts that
`forge_spec.disk` speaks of.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from forge_spec.disk import Bytes, Effect, Entries, Mark, Size

if TYPE_CHECKING:
    from .trace import Inode, Trace

Thing = tuple[str, int, str]
"""What one may find: ("name", directory, name), ("names", directory, ""), ("content", file, "")."""
Counts = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One step of one rank."""

    rank: int
    at: int | None
    """Its effect's place in the trace; None for a look."""
    heard: Counts
    """Of each rank, how many of its steps had happened when the last message came that may have told of them."""
    found: Mapping[Thing, int]
    """What was looked at, and the step that had changed it last, by its number over all ranks; -1 if none had."""
    changes: frozenset[Thing] = frozenset()


def changed_by(effect: Effect) -> frozenset[Thing]:
    """The things that an effect changes.

    >>> sorted(changed_by(Entries(((1, "a", 7),)))), sorted(changed_by(Bytes(7, 0, b"x")))
    ([('name', 1, 'a'), ('names', 1, '')], [('content', 7, '')])
    """
    match effect:
        case Entries(changes):
            names = {("name", directory, name) for directory, name, _ in changes}
            return frozenset(names | {("names", directory, "") for directory, _, _ in changes})
        case Bytes(file) | Size(file):
            return frozenset({("content", file, "")})
    return frozenset()


@dataclass
class History:
    """What the ranks of a recording did, heard and found, so far."""

    ranks: int
    steps: list[Step] = field(default_factory=list)
    _done: list[int] = field(init=False)
    _told: list[list[int]] = field(init=False)
    """For each rank what it may have heard."""
    _changed: dict[Thing, int] = field(default_factory=dict)
    _looked: dict[Thing, int] = field(default_factory=dict)
    """What the rank `_looking` found since anything else happened."""
    _looking: int = 0

    def __post_init__(self) -> None:
        self._done = [0] * self.ranks
        self._told = [[0] * self.ranks for _ in range(self.ranks)]

    def speaks(self, rank: int, to: Collection[int]) -> None:
        """A rank is about to send something; whoever gets it may know all that it has done and heard."""
        self._end_of_looks()
        for other in set(to) - {rank}:
            told = self._told[other]
            knows = [*self._told[rank]]
            knows[rank] = self._done[rank]
            self._told[other] = [max(pair) for pair in zip(told, knows, strict=True)]

    def meets(self) -> None:
        """All ranks wait for one another, as they do where processes start or are gone."""
        for rank in range(self.ranks):
            self.speaks(rank, range(self.ranks))

    def looks(self, rank: int, thing: Thing) -> None:
        """A rank is about to learn what this is."""
        if rank != self._looking:
            self._end_of_looks()
        self._looking = rank
        self._looked[thing] = self._changed.get(thing, -1)

    def happens(self, rank: int, at: int, effect: Effect) -> None:
        """A rank did what is at this place of the trace now."""
        self._end_of_looks()
        changes = changed_by(effect)
        found = {thing: self._changed.get(thing, -1) for thing in changes if thing[0] != "names"}
        self._take(Step(rank, at, tuple(self._told[rank]), found, changes))

    def _end_of_looks(self) -> None:
        if self._looked:
            looked, self._looked = self._looked, {}
            self._take(Step(self._looking, None, tuple(self._told[self._looking]), looked))

    def _take(self, step: Step) -> None:
        self._changed.update(dict.fromkeys(step.changes, len(self.steps)))
        self._done[step.rank] += 1
        self.steps.append(step)


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


def orders(trace: "Trace", history: History, groups: Sequence[Collection[int]] = ()) -> Iterator[tuple[str, "Trace"]]:
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


def _reordered(trace: "Trace", steps: Sequence[Step], taken: Sequence[int], ranks: int) -> "Trace":
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


def _made(inode: "Inode", place: Mapping[int, int]) -> "Inode":
    return replace(inode, made_at=place.get(inode.made_at, -1))


def _marks_of_all(trace: "Trace", effects: Sequence[int], ranks: int) -> Iterator[int]:
    """A save is acknowledged, or has raised, when no rank is in it; all else is so with the first rank."""
    told: dict[Mark, int] = {}
    for at in effects:
        effect = trace.effects[at]
        if not isinstance(effect, Mark):
            yield at
            continue
        told[effect] = told.get(effect, 0) + 1
        if told[effect] == (ranks if effect.word in ("acknowledged", "raised") else 1):
            yield at
