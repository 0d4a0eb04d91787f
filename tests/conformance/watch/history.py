"""What several ranks did to a folder, what each had heard from others by then, and what it found there.

A *step* is something that a rank did to the folder, or a time at which it
looked there.  What it had heard is taken from what others had sent before it
in the recording, whether it had read that by then or not.  So an order of steps
may be missed later (`disks.orders`), and none is invented.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from forge_spec.disk import Bytes, Effect, Entries, Size

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
    _received: list[list[int]] = field(init=False)
    """For each rank, how many steps of each other rank a message may have told it of."""
    _changed: dict[Thing, int] = field(default_factory=dict)
    _looked: dict[Thing, int] = field(default_factory=dict)
    """What the rank `_looking` found since anything else happened."""
    _looking: int = 0

    def __post_init__(self) -> None:
        self._done = [0] * self.ranks
        self._received = [[0] * self.ranks for _ in range(self.ranks)]

    def speaks(self, rank: int, to: Collection[int]) -> None:
        """A rank is about to send something; whoever gets it may know all that it has done and heard."""
        self._end_of_looks()
        for other in set(to) - {rank}:
            received = self._received[other]
            knows = [*self._received[rank]]
            knows[rank] = self._done[rank]
            self._received[other] = [max(pair) for pair in zip(received, knows, strict=True)]

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
        self._take(Step(rank, at, tuple(self._received[rank]), found, changes))

    def _end_of_looks(self) -> None:
        if self._looked:
            looked, self._looked = self._looked, {}
            self._take(Step(self._looking, None, tuple(self._received[self._looking]), looked))

    def _take(self, step: Step) -> None:
        self._changed.update(dict.fromkeys(step.changes, len(self.steps)))
        self._done[step.rank] += 1
        self.steps.append(step)
