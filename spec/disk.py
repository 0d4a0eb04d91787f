"""Which disks a kill or a loss of power can leave, given what was done to a folder.

What was done is a *trace*: one order of *effects* on directories and files. Files and directories are numbers, since
names change; the folder itself is `ROOT`. A kill or a loss of power comes at a *cut*: the number of effects that had
happened.

After a kill, everything that had happened is there, and nothing else. With several ranks each one has its own order of
effects, and any combination of their cuts that no message contradicts may be left.

A loss of power leaves less. What had happened is in memory first. It is *safe* when an `fsync` of the file, or of the
directory for its names, has returned. What is not safe may be lost, in the ways that the storage allows:

- `ext4`: changes of names reach the disk in their order, through one journal. Content is written later, unless somebody
  asks for it (delayed allocation), so that a renamed file may be empty. An fsync brings the journal up to the last
  change of that file. The special treatment of a replacement by rename or truncation, `auto_da_alloc`, is not assumed,
  since a mount option turns it off.
  (Linux, Documentation/filesystems/ext4; Documentation/filesystems/ext4/journal.)
- `xfs` has the same rules: one log, in order; content is written later.
- `posix-strict`: each change of names is independent, and only an fsync of its directory makes it safe. Content that is
  not safe may be lost, old, torn at a block, or a file of the right length full of zeros. POSIX promises no more
  (fsync and rename in IEEE Std 1003.1; Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014, found file
  systems that use each of these liberties).
- `posix-settled`: the same, but everything older than the save before this one has reached the disk by itself, as it
  does within seconds on a machine that works.
- `nfs`: the server has changes of names on its disk before it answers (RFC 1813: procedures other than WRITE). Content
  is safe when the file was synced or closed (COMMIT, close-to-open).

Modes, owners, times and extended attributes are not part of a disk here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

ROOT = 1
"""The folder itself, in the numbering of files and directories."""
BLOCK = 4096
"""What a disk writes at once, in bytes: content may be torn between blocks, but not inside one."""


@dataclass(frozen=True)
class Entries:
    """Names change, all of them or none: an entry is made, linked, renamed, exchanged or removed.

    Each change is a directory, a name in it, and the file or directory of that name afterwards, or None.
    """

    changes: tuple[tuple[int, str, int | None], ...]


@dataclass(frozen=True)
class Bytes:
    """Content was written to a file."""

    file: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Size:
    """A file was truncated, or extended with zeros."""

    file: int
    size: int


@dataclass(frozen=True)
class Sync:
    """A file or directory was synced, or everything (None). With `content_only` it was done by fdatasync."""

    of: int | None
    content_only: bool = False


@dataclass(frozen=True)
class Close:
    """A file that was open for writing was closed."""

    file: int


@dataclass(frozen=True)
class Mark:
    """Something that happened without an effect on the disk.

    A save, counted from 0, `begins`, is `acknowledged` to the caller, or has `raised`. Processes `start`, to load
    `step` or, at 0, in an auto-resume. The run `lands` on `step`, where 0 is a fresh start. All processes are killed
    (`kill`). A write failed for lack of space (`full`). A job `prints` a line, which is counted by `step`.
    """

    word: str
    save: int = -1
    step: int = 0


Effect = Entries | Bytes | Size | Sync | Close | Mark
Trace = Sequence[Effect]


@dataclass(frozen=True)
class Storage:
    """What a kind of storage may lose.

    `keeps_order`: changes of names are lost only from the end. `keeps_names`: they are not lost at all.
    `syncs_at_close`: closing a file makes its content safe. `zeros`: lost content may read as zeros. `settles`: what is
    older than the save before this one is safe.
    """

    name: str
    keeps_order: bool = False
    keeps_names: bool = False
    syncs_at_close: bool = False
    zeros: bool = False
    settles: bool = False


STORAGES: Mapping[str, Storage] = {
    storage.name: storage
    for storage in (
        Storage("ext4", keeps_order=True),
        Storage("xfs", keeps_order=True),
        Storage("posix-settled", zeros=True, settles=True),
        Storage("posix-strict", zeros=True),
        Storage("nfs", keeps_order=True, keeps_names=True, syncs_at_close=True),
    )
}
"""Every kind of storage under its name."""


def touches(effect: Effect, number: int) -> bool:
    """Return whether an effect changes this file or directory, or its name.

    >>> touches(Entries(((ROOT, "a", 7),)), 7), touches(Entries(((ROOT, "a", 7),)), ROOT), touches(Bytes(7, 0, b"x"), 8)
    (True, True, False)
    """
    match effect:
        case Entries(changes):
            return any(number in (directory, named) for directory, _, named in changes)
        case Bytes(file) | Size(file):
            return file == number
    return False


def settled(trace: Trace, cut: int, storage: Storage) -> int:
    """Return how many effects at the beginning of the trace are safe because they are old.

    >>> trace = [Entries(((ROOT, "a", 7),)), Mark("begins", 0), Mark("begins", 1), Mark("begins", 2)]
    >>> [settled(trace, cut, STORAGES["posix-settled"]) for cut in (1, 2, 3, 4)]
    [0, 0, 1, 2]
    >>> settled(trace, 4, STORAGES["posix-strict"])
    0
    """
    if not storage.settles:
        return 0
    begins = [at for at, effect in enumerate(trace[:cut]) if isinstance(effect, Mark) and effect.word == "begins"]
    return begins[-2] if len(begins) > 1 else 0


def safe_entries(trace: Trace, cut: int, storage: Storage) -> frozenset[int]:
    """Return the changes of names, by their position in the trace, that no loss of power after `cut` effects undoes.

    A file is made in the folder, and the file is synced, but not the folder:

    >>> trace = [Entries(((ROOT, "a", 7),)), Bytes(7, 0, b"x"), Entries(((ROOT, "b", 8),)), Sync(7)]
    >>> sorted(safe_entries(trace, 4, STORAGES["posix-strict"])), sorted(safe_entries(trace, 4, STORAGES["ext4"]))
    ([], [0])
    >>> sorted(safe_entries([*trace, Sync(ROOT)], 5, STORAGES["posix-strict"]))
    [0, 2]
    >>> sorted(safe_entries(trace, 4, STORAGES["nfs"]))
    [0, 2]
    """
    before = settled(trace, cut, storage)
    entries = [at for at, effect in enumerate(trace[:cut]) if isinstance(effect, Entries)]
    if storage.keeps_names:
        return frozenset(entries)
    safe = {at for at in entries if at < before}
    for synced, effect in enumerate(trace[:cut]):
        if isinstance(effect, Sync):
            safe |= {at for at in entries if at < synced and _is_covered(trace, at, synced, effect, storage)}
    return frozenset(safe)


def _is_covered(trace: Trace, at: int, synced: int, sync: Sync, storage: Storage) -> bool:
    """Return whether a sync makes an earlier change of names safe."""
    if sync.of is None:
        return True
    if storage.keeps_order:
        later = (effect for effect in trace[at:synced] if not (sync.content_only and isinstance(effect, Entries)))
        return any(touches(effect, sync.of) for effect in later)
    change = trace[at]
    assert isinstance(change, Entries), "only names are asked about"
    return all(directory == sync.of for directory, _, _ in change.changes) or _was_synced_in_each(trace, at, synced)


def _was_synced_in_each(trace: Trace, at: int, synced: int) -> bool:
    """Return whether all directories of a change were synced, which makes a rename between directories safe."""
    change = trace[at]
    assert isinstance(change, Entries), "only names are asked about"
    done = {effect.of for effect in trace[at : synced + 1] if isinstance(effect, Sync)}
    return {directory for directory, _, _ in change.changes} <= done


def may_lose(trace: Trace, cut: int, lost: frozenset[int], storage: Storage) -> bool:
    """Return whether a loss of power after `cut` effects may undo exactly these changes of names.

    >>> trace = [Entries(((ROOT, "a", 7),)), Entries(((ROOT, "b", 8),)), Entries(((ROOT, "c", 9),))]
    >>> [may_lose(trace, 3, frozenset(lost), STORAGES["ext4"]) for lost in ([], [2], [1, 2], [1])]
    [True, True, True, False]
    >>> may_lose(trace, 3, frozenset([1]), STORAGES["posix-strict"])
    True
    >>> may_lose([*trace, Sync(ROOT)], 4, frozenset([1]), STORAGES["posix-strict"])
    False
    >>> may_lose(trace, 2, frozenset([2]), STORAGES["posix-strict"])
    False
    """
    entries = [at for at, effect in enumerate(trace[:cut]) if isinstance(effect, Entries)]
    if not lost <= set(entries) or lost & safe_entries(trace, cut, storage):
        return False
    return not storage.keeps_order or not lost or lost == {at for at in entries if at >= min(lost)}


def safe_content(trace: Trace, cut: int, storage: Storage) -> dict[int, int]:
    """Return for each file how many effects at the beginning of the trace its content on the disk includes at least.

    >>> trace = [Bytes(7, 0, b"x"), Sync(7), Bytes(7, 1, b"y"), Bytes(8, 0, b"z"), Close(8)]
    >>> safe_content(trace, 5, STORAGES["posix-strict"]), safe_content(trace, 5, STORAGES["nfs"])
    ({7: 1, 8: 0}, {7: 1, 8: 4})
    """
    before = settled(trace, cut, storage)
    safe: dict[int, int] = {}
    for at, effect in enumerate(trace[:cut]):
        match effect:
            case Bytes(file) | Size(file):
                safe.setdefault(file, before)
            case Sync(of):
                safe.update((file, max(at, safe[file])) for file in safe if of in (None, file))
            case Close(file) if storage.syncs_at_close and file in safe:
                safe[file] = max(at, safe[file])
    return safe


def after(content: bytes, effect: Effect) -> bytes:
    """Return a file's content after an effect on it.

    >>> after(b"abc", Bytes(7, 5, b"x")), after(b"abc", Bytes(7, 1, b"x")), after(b"abc", Size(7, 1))
    (b'abc\\x00\\x00x', b'axc', b'a')
    """
    match effect:
        case Bytes(_, offset, data):
            padded = content.ljust(offset, b"\0")
            return padded[:offset] + data + padded[offset + len(data) :]
        case Size(_, size):
            return content[:size].ljust(size, b"\0")
    return content


def versions(trace: Trace, cut: int, file: int, initial: bytes, storage: Storage) -> list[bytes]:
    """Return the content after each effect on the file, from the last content that is safe to that at the cut.

    >>> trace = [Bytes(7, 0, b"x"), Sync(7), Bytes(7, 1, b"y"), Bytes(7, 2, b"z")]
    >>> versions(trace, 4, 7, b"", STORAGES["posix-strict"])
    [b'x', b'xy', b'xyz']
    """
    safe = safe_content(trace, cut, storage).get(file, 0)
    content, found = initial, [initial]
    for at, effect in enumerate(trace[:cut]):
        if isinstance(effect, Bytes | Size) and effect.file == file:
            content = after(content, effect)
            found = [content] if at < safe else [*found, content]
    return found


def may_hold(content: bytes, versions: Sequence[bytes], storage: Storage) -> bool:
    """Return whether a file may have this content after a loss of power.

    Each block is that of some version, or zeros if it is new. The length is that of a version, or ends at a block
    between them.

    >>> old, new = b"a" * BLOCK, b"b" * (2 * BLOCK)
    >>> torn = new[:BLOCK]
    >>> [may_hold(content, [old, new], STORAGES["ext4"]) for content in (old, new, torn, b"", bytes(2 * BLOCK))]
    [True, True, True, False, False]
    >>> strict = STORAGES["posix-strict"]
    >>> [may_hold(content, [old, new], strict) for content in (torn + bytes(BLOCK), bytes(2 * BLOCK))]
    [True, False]
    """
    sizes = [len(version) for version in versions]
    at_block = len(content) % BLOCK == 0 and min(sizes) <= len(content) <= max(sizes)
    if len(content) not in sizes and not at_block:
        return False
    return all(
        any(version[start : start + BLOCK].startswith(block) for version in versions)
        or (storage.zeros and start >= len(versions[0]) and not any(block))
        for start, block in blocks(content)
    )


def blocks(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The content, block by block, each with its offset.

    >>> [(start, len(block)) for start, block in blocks(bytes(BLOCK + 1))]
    [(0, 4096), (4096, 1)]
    """
    for start in range(0, len(content), BLOCK):
        yield start, content[start : start + BLOCK]


def is_consistent(cut: Sequence[int], clocks: Sequence[Sequence[Sequence[int]]]) -> bool:
    """Return whether ranks may have been killed at these positions of their own orders.

    `cut` counts for each rank what it had done. `clocks[rank][n]` says how many operations of each rank were known to
    have happened when that rank had done its n-th. Rank 1 does its second operation only after a message that rank 0
    sent after its first:

    >>> clocks = [[(1, 0), (2, 0)], [(0, 1), (1, 2)]]
    >>> [is_consistent(cut, clocks) for cut in ((0, 0), (0, 1), (0, 2), (1, 2), (2, 0))]
    [True, True, False, True, True]
    """
    last = [clocks[rank][count - 1] for rank, count in enumerate(cut) if count]
    return all(known <= count for clock in last for known, count in zip(clock, cut, strict=True))


def extreme_cuts(clocks: Sequence[Sequence[Sequence[int]]]) -> Iterator[tuple[int, ...]]:
    """For each position of each rank, the cuts with the others as far behind, and as far ahead, as they may be.

    >>> clocks = [[(1, 0), (2, 0)], [(0, 1), (1, 2)]]
    >>> sorted(set(extreme_cuts(clocks)))
    [(0, 0), (0, 1), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2)]
    >>> all(is_consistent(cut, clocks) for cut in extreme_cuts(clocks))
    True
    """
    for rank, own in enumerate(clocks):
        for count in range(len(own) + 1):
            yield tuple(own[count - 1]) if count else (0,) * len(clocks)
            ahead = [len(others) for others in clocks]
            ahead[rank] = count
            yield tuple(
                count if other == rank else _furthest(clocks[other], rank, count, ahead[other])
                for other in range(len(clocks))
            )


def _furthest(clock: Sequence[Sequence[int]], rank: int, count: int, most: int) -> int:
    """Return how far a rank may be that knows of no more than `count` operations of `rank`."""
    return max((done for done in range(1, most + 1) if clock[done - 1][rank] <= count), default=0)
