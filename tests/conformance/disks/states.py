"""The disks that a trace can leave: after a kill, and after a loss of power.

Rules are in `forge_spec.disk`; here the states that they allow are walked
through, in one pass and quickly.  What is allowed is far more than can be
looked at, so these are the extreme ones: of the changes of names that are not
safe none is lost, all, each alone, all but each, every end of them, and every
pair; and with each of these, of the content that is not safe, everything is
kept, everything is lost, and each file alone is lost, torn, full of zeros, or
has a hole.  A burst of writes to one file is entered at its beginning, in its
middle and at its end, and the hole is its first block; unless `coalesce` is
off, then every write and every block has its turn.  `Counts.left_out` says how
many pairs were not tried because there were too many of them.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from forge_conformance.watch.trace import Disk, Node, Trace
from forge_spec.disk import BLOCK, Bytes, Close, Effect, Entries, Mark, Size, Storage, Sync, after

KILL = "kill"
"""Named as a storage is: nothing is lost of what had happened."""
MOST_PAIRS = 60
"""Pairs of lost changes that are tried at one cut."""

Identity = tuple[int, ...]


@dataclass(frozen=True)
class Kept:
    """What a file holds of what was written to it: so many effects, as they were or in another form."""

    effects: int
    form: str = "whole"
    """`whole`; `torn`: cut at a block; `zeros`: from a block on it reads as zeros; `hole`: one block does."""
    block: int = 0
    """Which block that is."""


@dataclass(frozen=True)
class State:
    """One way in which a death can end."""

    cut: int
    """Effects that had happened."""
    lost: frozenset[int] = frozenset()
    """Changes of names among them, by their place in the trace, that did not reach the disk."""
    content: Mapping[int, Kept] = field(default_factory=dict)
    """Files of which not everything did."""

    @property
    def complexity(self) -> tuple[int, int]:
        """To be compared: the fewest missing effects first, then the earliest cut."""
        return len(self.lost) + len(self.content), self.cut

    @property
    def is_power_cut(self) -> bool:
        """Whether more is lost than a kill can take."""
        return bool(self.lost or self.content)


@dataclass
class Counts:
    """What a walk left out."""

    left_out: int = 0


def cuts(trace: Trace, coalesce: bool = True) -> list[int]:
    """How much may have happened when a death comes, one number for each place that is worth a look."""
    if trace.instants is not None:
        return sorted({trace.begins, *(instant for instant in trace.instants if instant > trace.begins)})
    burst: list[int] = []
    found = [trace.begins]
    for at, effect in enumerate(trace.effects):
        if at < trace.begins or isinstance(effect, Sync | Close):
            continue
        if burst and not _goes_on(trace, burst[-1], at):
            found += _ends(burst, coalesce)
            burst = []
        burst.append(at)
    return found + _ends(burst, coalesce)


def _goes_on(trace: Trace, before: int, at: int) -> bool:
    one, other = trace.effects[before], trace.effects[at]
    return isinstance(one, Bytes) and isinstance(other, Bytes) and one.file == other.file


def _ends(burst: list[int], coalesce: bool) -> list[int]:
    if not burst:
        return []
    chosen = {burst[0], burst[len(burst) // 2], burst[-1]} if coalesce else set(burst)
    return [at + 1 for at in sorted(chosen)]


@dataclass
class _File:
    """What is known of a file at a cut."""

    effects: list[Effect] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    safe: int = 0
    """How many of its effects are on the disk for certain."""


class Walk:
    """Goes along a trace and knows, at each cut, what is safe; see `forge_spec.disk` for why."""

    def __init__(self, trace: Trace, storage: Storage | None) -> None:
        self.trace = trace
        self._storage = storage
        self.at = 0
        self.names: list[int] = []
        self.files: dict[int, _File] = {}
        self._waits_for: dict[int, set[int]] = {}
        """Changes of names that are not safe, and the directories that have still to be synced."""
        self._touched: dict[int, int] = {}
        self._content_touched: dict[int, int] = {}
        self._begun: list[int] = []

    def go_to(self, cut: int) -> None:
        """Let everything up to this cut happen."""
        for at in range(self.at, cut):
            self._happens(at, self.trace.effects[at])
        self.at = cut

    @property
    def unsafe_names(self) -> list[int]:
        """Changes of names that may be lost, in order."""
        return sorted(self._waits_for)

    @property
    def unsafe_files(self) -> dict[int, _File]:
        """Files that may hold less than was written to them."""
        return {number: file for number, file in self.files.items() if file.safe < len(file.effects)}

    def _happens(self, at: int, effect: Effect) -> None:
        match effect:
            case Entries(changes):
                self.names.append(at)
                if self._storage and not self._storage.keeps_names:
                    self._waits_for[at] = {directory for directory, _, _ in changes}
                for directory, _, named in changes:
                    self._touched[directory] = at
                    if named is not None:
                        self._touched[named] = at
            case Bytes(number) | Size(number):
                file = self.files.setdefault(number, _File())
                file.effects.append(effect)
                file.places.append(at)
                self._touched[number] = self._content_touched[number] = at
            case Sync(of, content_only):
                self._syncs(at, of, content_only)
            case Close(number) if self._storage and self._storage.syncs_at_close and number in self.files:
                self.files[number].safe = len(self.files[number].effects)
            case Mark("begins"):
                self._begins(at)

    def _syncs(self, at: int, of: int | None, content_only: bool) -> None:
        for number, file in self.files.items():
            if of in (None, number):
                file.safe = len(file.effects)
        if of is None:
            self._waits_for.clear()
        elif self._storage and self._storage.keeps_order:
            last = (self._content_touched if content_only else self._touched).get(of, -1)
            self._waits_for = {change: waits for change, waits in self._waits_for.items() if change > last}
        else:
            for change in list(self._waits_for):
                self._waits_for[change].discard(of)
                if not self._waits_for[change]:
                    del self._waits_for[change]

    def _begins(self, at: int) -> None:
        self._begun.append(at)
        if self._storage and self._storage.settles and len(self._begun) > 1:
            before = self._begun[-2]
            self._waits_for = {change: waits for change, waits in self._waits_for.items() if change >= before}
            for file in self.files.values():
                file.safe = max(file.safe, sum(place < before for place in file.places))


class States:
    """All states of a trace under one storage, or, without one, after a kill."""

    def __init__(
        self,
        trace: Trace,
        storage: Storage | None,
        coalesce: bool = True,
        interned: dict[tuple[str, str, bytes], int] | None = None,
    ) -> None:
        """With the same `interned`, identities can be compared across storages."""
        self.trace = trace
        self.storage = storage
        self._coalesce = coalesce
        self.counts = Counts()
        self._cuts = cuts(trace, coalesce)
        self._walk = Walk(trace, storage)
        self._contents: dict[tuple[int, int], bytes] = {}
        self._nodes: dict[tuple[int, Kept], Node] = {}
        self._paths: dict[tuple[int, ...], dict[str, int]] = {}
        self._interned = {} if interned is None else interned

    def __iter__(self) -> Iterator[State]:
        for cut in self._cuts:
            self._walk.go_to(cut)
            yield State(cut)
            if self.storage is not None:
                yield from self._power_cuts(cut, self.storage)

    @property
    def cuts(self) -> int:
        """How many places a death is looked at in."""
        return len(self._cuts)

    def walk_to(self, cut: int) -> None:
        """Reach a cut without iterating."""
        self._walk.go_to(cut)

    def disk(self, state: State) -> Disk:
        """The disk of a state at the cut that has been reached."""
        paths = self.paths(state)
        return Disk({path: self._node(number, state) for path, number in paths.items()})

    def unsafe(self) -> tuple[frozenset[int], frozenset[int]]:
        """Files whose content, and what of whose names some, are not safe at the cut that has been reached."""
        changes = (self.trace.effects[at] for at in self._walk.unsafe_names)
        named = {number for change in changes if isinstance(change, Entries) for *_, number in change.changes}
        return frozenset(self._walk.unsafe_files), frozenset(number for number in named if number is not None)

    def identity(self, disk: Disk) -> Identity:
        """Equal for disks with the same paths, kinds and contents."""
        intern = self._interned
        keys = ((path, node.kind, node.content) for path, node in disk.nodes.items())
        return tuple(sorted(intern.setdefault(key, len(intern)) for key in keys))

    # -- loss of power ------------------------------------------------------------

    def _power_cuts(self, cut: int, storage: Storage) -> Iterator[State]:
        unsafe = self._walk.unsafe_names
        for lost in self._losses(unsafe, storage):
            live = set(self.paths(State(cut, lost)).values())
            files = {number: file for number, file in self._walk.unsafe_files.items() if number in live}
            for content in self._contents_left(files, storage):
                if lost or content:
                    yield State(cut, lost, content)

    def _losses(self, unsafe: list[int], storage: Storage) -> Iterable[frozenset[int]]:
        ends = [frozenset(unsafe[start:]) for start in range(len(unsafe) + 1)]
        if storage.keeps_order:
            return ends
        everything = frozenset(unsafe)
        pairs = list(itertools.combinations(unsafe, 2))
        self.counts.left_out += max(0, len(pairs) - MOST_PAIRS)
        singles = [frozenset({change}) for change in unsafe]
        return dict.fromkeys(
            [*ends, *singles, *(everything - one for one in singles), *map(frozenset, pairs[-MOST_PAIRS:])]
        )

    def _contents_left(self, files: Mapping[int, _File], storage: Storage) -> Iterator[Mapping[int, Kept]]:
        yield {}
        gone = {number: Kept(file.safe) for number, file in files.items()}
        if len(gone) > 1:
            yield gone
        for number, file in files.items():
            yield {number: Kept(file.safe)}
            count = len(file.effects)
            if count - file.safe > 1:
                yield {number: Kept((file.safe + count) // 2)}
            if _torn_size(self._content(number, count)) > len(self._content(number, file.safe)):
                yield {number: Kept(count, "torn")}
            if storage.zeros:
                yield {number: self._zeros(number, file)}
                yield from ({number: Kept(count, "hole", block)} for block in self._holes(number, file))
        if storage.zeros and len(gone) > 1:
            yield {number: self._zeros(number, file) for number, file in files.items()}

    def _zeros(self, number: int, file: _File) -> Kept:
        return Kept(len(file.effects), "zeros", self._first_new(number, file))

    def _first_new(self, number: int, file: _File) -> int:
        """The first block that the safe version of a file does not have."""
        return -(-len(self._content(number, file.safe)) // BLOCK)

    def _holes(self, number: int, file: _File) -> range:
        """Blocks of a file that may read as zeros, if there are several."""
        size = len(self._content(number, len(file.effects)))
        blocks = range(self._first_new(number, file), -(-size // BLOCK)) if size > BLOCK else range(0)
        return blocks[:1] if self._coalesce else blocks

    # -- disks -----------------------------------------------------------------------

    def paths(self, state: State) -> dict[str, int]:
        """The paths of a state at the cut that has been reached, and the files they stand for."""
        kept = tuple(at for at in self._walk.names if at not in state.lost)
        found = self._paths.get(kept)
        if found is None:
            if len(self._paths) > 2000:
                self._paths.clear()
            found = self._paths[kept] = self.trace.names(kept)
        return found

    def _node(self, number: int, state: State) -> Node:
        inode = self.trace.inodes[number]
        file = self._walk.files.get(number)
        if inode.kind != "f" or file is None:
            return Node(inode.kind, inode.mode, inode.made_at, inode.content)
        kept = state.content.get(number) or Kept(len(file.effects))
        node = self._nodes.get((number, kept))
        if node is None:
            changed_at = file.places[kept.effects - 1] if kept.effects else inode.made_at
            node = self._nodes[number, kept] = Node("f", inode.mode, changed_at, self._in_form(number, kept))
        return node

    def _in_form(self, number: int, kept: Kept) -> bytes:
        content = self._content(number, kept.effects)
        if kept.form == "torn":
            return content[: _torn_size(content)]
        if kept.form == "hole":
            start, end = kept.block * BLOCK, min(len(content), (kept.block + 1) * BLOCK)
            return content[:start] + bytes(end - start) + content[end:]
        if kept.form == "zeros":
            return content[: kept.block * BLOCK].ljust(len(content), b"\0")
        return content

    def _content(self, number: int, effects: int) -> bytes:
        """What the file held after so many of its effects."""
        known = effects
        while known and (number, known) not in self._contents:
            known -= 1
        content = self._contents.get((number, known), b"")
        for effect in self._walk.files[number].effects[known:effects]:
            content = after(content, effect)
        self._contents[number, effects] = content
        return content


def _torn_size(content: bytes) -> int:
    """How much of a content is left in bytes when its last block is not."""
    return max(0, len(content) - 1) // BLOCK * BLOCK
