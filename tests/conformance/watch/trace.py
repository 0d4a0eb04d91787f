"""What was done to a folder, as the effects that `forge_spec.disk` knows, and the disks that they make.

Invariants: effects stand in the order in which they happened, over all threads,
processes and ranks; a file or directory has one number for its whole life,
whatever it is called, and no number is used twice; applied to what the folder
held at the beginning, all of them make what it holds at the end (`differences`
says where that is not so, which is how changes that nobody saw come to light).
"""

import hashlib
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from forge_conformance.watch.caller import Place
from forge_conformance.watch.history import History
from forge_spec.disk import ROOT, Bytes, Effect, Entries, Mark, Size, Sync, after

_MOST_PATHS = 24


@dataclass(frozen=True)
class Inode:
    """A file, a directory or a symbolic link, apart from its names."""

    kind: str
    """`f`, `d` or `l`."""
    mode: int
    made_at: int
    """The place in the trace of the effect that made it; -1 for what was there before."""
    content: bytes = b""
    """What a file held when it was first seen; where a link leads."""


@dataclass(frozen=True)
class Call:
    """The call that brought an effect about."""

    rank: int
    thread: int
    is_main: bool
    text: str
    is_alone: bool = True
    """Whether its rank is the only one."""

    def __str__(self) -> str:
        who = "" if self.is_main else " (background)"
        return f"{self.text}{who}" if self.is_alone else f"rank {self.rank}: {self.text}{who}"


@dataclass(frozen=True)
class Node:
    """What stands at a path of a disk; `changed_at` is where in the trace it got this content, which tells its age."""

    kind: str
    mode: int
    changed_at: int
    content: bytes = b""


@dataclass(frozen=True)
class Disk:
    """What a folder holds: every path below it, without the folder itself."""

    nodes: Mapping[str, Node]

    @property
    def identity(self) -> frozenset[tuple[str, str, bytes]]:
        """Equal for disks with the same paths, kinds and contents."""
        return frozenset((path, node.kind, node.content) for path, node in self.nodes.items())

    @property
    def digest(self) -> bytes:
        """The same in a few bytes, for comparing disks of several processes."""
        hashed = hashlib.sha256()
        for path, node in sorted(self.nodes.items()):
            hashed.update(f"{path}\0{node.kind}\0{len(node.content)}\0".encode(errors="surrogateescape"))
            hashed.update(node.content)
        return hashed.digest()

    def names(self, directory: str) -> tuple[tuple[str, str], ...]:
        """Names and kinds of what stands in a directory, sorted."""
        below = f"{directory}/" if directory else ""
        found = ((path[len(below) :], node.kind) for path, node in self.nodes.items() if path.startswith(below))
        return tuple(sorted((name, kind) for name, kind in found if "/" not in name))

    def build(self, folder: Path, base_ns: int = 0) -> dict[tuple[int, int], str]:
        """Make an empty folder hold this; the paths by device and inode.

        Every file is a copy of its own, so that nobody can spoil another disk.
        A later change has a later modification time.
        """
        made = {}
        root = os.fspath(folder)
        for path in sorted(self.nodes):
            node, place = self.nodes[path], f"{root}/{path}"
            if node.kind == "d":
                os.mkdir(place, node.mode)
            elif node.kind == "l":
                os.symlink(os.fsdecode(node.content), place)
            else:
                descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, node.mode)
                with open(descriptor, "wb") as file:  # which writes all, or raises
                    file.write(node.content)
            found = os.lstat(place)
            made[found.st_dev, found.st_ino] = path
        for path, node in self.nodes.items():
            if node.kind != "l":
                os.utime(f"{root}/{path}", ns=(base_ns + node.changed_at * 1_000_000,) * 2)
        top = os.stat(root)
        made[top.st_dev, top.st_ino] = ""
        return made

    def listing(self) -> Iterator[str]:
        """What stands there, a path a line, as far as a person reads on."""
        for path in sorted(self.nodes)[:_MOST_PATHS]:
            node = self.nodes[path]
            zeros = ", all zeros" if node.content and not any(node.content) else ""
            yield {
                "d": f"{path}/",
                "l": f"{path} -> {node.content.decode(errors='replace')}",
                "f": f"{path}  {len(node.content)} bytes{zeros}",
            }[node.kind]
        if len(self.nodes) > _MOST_PATHS:
            yield f"and {len(self.nodes) - _MOST_PATHS} more"
        if not self.nodes:
            yield "(empty)"

    @staticmethod
    def read(folder: Path) -> "Disk":
        """What a folder holds now; devices, pipes and sockets are left out."""
        return Disk(dict(_nodes(folder)))

    def differences(self, other: "Disk") -> list[str]:
        """Paths at which kind or content differ, sorted."""
        paths = sorted(self.nodes.keys() | other.nodes.keys())
        return [path for path in paths if _seen(self.nodes.get(path)) != _seen(other.nodes.get(path))]


def _seen(node: Node | None) -> tuple[str, bytes] | None:
    return None if node is None else (node.kind, node.content)


def _nodes(folder: Path) -> Iterator[tuple[str, Node]]:
    for where, directories, files in os.walk(folder):
        for name in (*directories, *files):
            path = os.path.join(where, name)
            found = os.lstat(path)
            kind = kind_of(found)
            if kind:
                yield os.path.relpath(path, folder), Node(kind, stat.S_IMODE(found.st_mode), -1, _content(path, kind))


def kind_of(found: os.stat_result) -> str:
    """`f`, `d`, `l`, or "" for what is no part of a disk here."""
    kinds = {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l"}
    return kinds.get(stat.S_IFMT(found.st_mode), "")


def _content(path: str, kind: str) -> bytes:
    if kind == "l":
        return os.fsencode(os.readlink(path))
    return Path(path).read_bytes() if kind == "f" else b""


@dataclass(frozen=True)
class Trace:
    """A recording that has ended."""

    effects: tuple[Effect, ...]
    calls: tuple[Call | None, ...]
    """For each effect its call; None for marks and for what was there before."""
    inodes: Mapping[int, Inode]
    unseen: tuple[str, ...] = ()
    """What happened, or may have happened, to the folder without being recorded; in sentences."""
    outside: tuple[str, ...] = ()
    """Files beside the folder that were opened for writing."""
    missed: tuple[str, ...] = ()
    """Paths that changed at the end without a call that was recorded: then its disks are not the manager's."""
    instants: tuple[int, ...] | None = None
    """After how many effects the folder was seen to be as they make it; None where that is so after each."""

    @property
    def begins(self) -> int:
        """How many effects at the beginning stand for what was before: in the folder, and acknowledged."""
        return next((at for at in range(len(self.effects)) if not self._was_before(at)), len(self.effects))

    def _was_before(self, at: int) -> bool:
        effect = self.effects[at]
        return effect.word == "acknowledged" if isinstance(effect, Mark) else self.calls[at] is None

    def names(self, kept: Iterable[int]) -> dict[str, int]:
        """Paths and the inodes they stand for when just these changes of names have happened, in order."""
        directories: dict[int, dict[str, int]] = {}
        for at in kept:
            effect = self.effects[at]
            assert isinstance(effect, Entries), "only names are kept or lost here"
            for directory, name, inode in effect.changes:
                entries = directories.setdefault(directory, {})
                if inode is None:
                    entries.pop(name, None)
                else:
                    entries[name] = inode
        return dict(self._paths(directories, ROOT, "", frozenset({ROOT})))

    def _paths(
        self, directories: Mapping[int, Mapping[str, int]], directory: int, where: str, above: frozenset[int]
    ) -> Iterator[tuple[str, int]]:
        """A directory that lost changes have put into itself is not followed."""
        for name, inode in directories.get(directory, {}).items():
            yield where + name, inode
            if self.inodes[inode].kind == "d" and inode not in above:
                yield from self._paths(directories, inode, f"{where}{name}/", above | {inode})

    def disk(self, cut: int) -> Disk:
        """What a kill after `cut` effects leaves."""
        kept = [at for at, effect in enumerate(self.effects[:cut]) if isinstance(effect, Entries)]
        content: dict[int, tuple[int, bytes]] = {}
        for at, effect in enumerate(self.effects[:cut]):
            if isinstance(effect, Bytes | Size):
                before = content.get(effect.file, (-1, b""))[1]
                content[effect.file] = (at, after(before, effect))
        return Disk({path: self._node(inode, content) for path, inode in self.names(kept).items()})

    def _node(self, number: int, content: Mapping[int, tuple[int, bytes]]) -> Node:
        inode = self.inodes[number]
        at, held = content.get(number, (inode.made_at, b""))
        return Node(inode.kind, inode.mode, at, inode.content if inode.kind == "l" else held)


@dataclass
class Journal:
    """A recording that goes on; several recorders may write one.  `lock` is held from a call to its effect."""

    folder: Path
    history: History | None = None
    """What each rank did, heard and found, where there are several."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    effects: list[Effect] = field(default_factory=list)
    calls: list[Call | None] = field(default_factory=list)
    inodes: dict[int, Inode] = field(default_factory=dict)
    unseen: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    instants: list[int] | None = None
    _numbers: dict[tuple[int, int], int] = field(default_factory=dict)
    _maps: dict[int, tuple[int, str, bytes]] = field(default_factory=dict)
    """Files that were mapped shared and writable: a descriptor, the path, and what the trace makes of the content."""

    def __post_init__(self) -> None:
        self.folder = Path(os.path.realpath(self.folder))
        found = os.stat(self.folder)
        self._numbers[found.st_dev, found.st_ino] = ROOT
        self.inodes[ROOT] = Inode("d", stat.S_IMODE(found.st_mode), -1)
        for name in sorted(os.listdir(self.folder)):
            self._arrive(Place(str(self.folder), name), None)
        self.add(Sync(None), None)  # what was there before is old enough to be safe

    def add(self, effect: Effect, call: Call | None, rank: int | None = None) -> None:
        """What has just happened; of a mark, on which rank."""
        rank = rank if call is None else call.rank
        if self.history is not None and rank is not None:
            self.history.happens(rank, len(self.effects), effect)
        if isinstance(effect, Bytes | Size) and effect.file in self._maps:
            descriptor, path, content = self._maps[effect.file]
            self._maps[effect.file] = descriptor, path, after(content, effect)
        self.effects.append(effect)
        self.calls.append(call)

    def mark(self, word: str, save: int = -1, step: int = 0, rank: int = 0) -> None:
        """Something that the workload did; see `forge_spec.disk.Mark`."""
        with self.lock:
            self.look_at_maps()
            meets = self.history.meets if self.history and word in ("start", "lands", "kill") else lambda: None
            meets()
            self.add(Mark(word, save, step), None, rank)
            meets()

    def watch_map(self, descriptor: int, path: str) -> None:
        """A file is about to be mapped shared and writable."""
        number = self.number(os.fstat(descriptor))
        if number is not None and number not in self._maps:
            shown = os.path.relpath(path, self.folder)
            self._maps[number] = os.dup(descriptor), shown, os.pread(descriptor, os.fstat(descriptor).st_size, 0)
            self.unseen.append(f"when {shown} changed through a shared map: changes are seen at the next operation")

    def look_at_maps(self) -> None:
        """Note what has changed through maps since the last look: what a kill now leaves."""
        for number, (descriptor, path, content) in list(self._maps.items()):
            now = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
            if now != content:
                self.add(Bytes(number, 0, now), Call(0, 0, True, f"changes through a map of {path}"))

    def is_inside(self, path: str) -> bool:
        """Whether a path, free of links, is the folder or below it."""
        folder = str(self.folder)
        return path == folder or path.startswith(folder + "/")

    def number(self, found: os.stat_result) -> int | None:
        """The number of a file or directory; None for one that never was in the folder."""
        return self._numbers.get((found.st_dev, found.st_ino))

    def new(self, found: os.stat_result, content: bytes = b"") -> int:
        """A number for what has just been made."""
        number = len(self.inodes) + ROOT
        self._numbers[found.st_dev, found.st_ino] = number
        self.inodes[number] = Inode(kind_of(found), stat.S_IMODE(found.st_mode), len(self.effects), content)
        return number

    def directory(self, place: Place) -> int:
        """The number of the directory that a place is in."""
        number = self.number(os.stat(place.directory))
        assert number is not None, f"{place.directory} is inside, and everything there has a number"
        return number

    def made(self, place: Place, found: os.stat_result, call: Call | None, content: bytes = b"") -> int:
        """A name for something new."""
        directory, number = self.directory(place), self.new(found, content)
        self.add(Entries(((directory, place.name, number),)), call)
        return number

    def arrived(self, place: Place, found: os.stat_result, call: Call | None) -> None:
        """A name for what may have been somewhere else before: then its content comes with it, and is not safe."""
        number = self.number(found)
        if number is None:
            self._arrive(place, call)
        else:
            self.add(Entries(((self.directory(place), place.name, number),)), call)

    def _arrive(self, place: Place, call: Call | None) -> None:
        found = os.lstat(place.path)
        kind = kind_of(found)
        if not kind:
            return
        directory = self.directory(place)
        number = self.new(found, os.fsencode(os.readlink(place.path)) if kind == "l" else b"")
        if kind == "f" and found.st_size:
            self.add(Bytes(number, 0, Path(place.path).read_bytes()), call)  # before it has a name, so nobody sees half
        self.add(Entries(((directory, place.name, number),)), call)
        if kind == "d":
            for name in sorted(os.listdir(place.path)):
                self._arrive(Place(place.path, name), call)

    def end(self) -> Trace:
        """What was recorded; changes that are not in it are told by `unseen`."""
        with self.lock:
            self.look_at_maps()
            for descriptor, *_ in self._maps.values():
                os.close(descriptor)
            self._maps.clear()
            trace = Trace(tuple(self.effects), tuple(self.calls), dict(self.inodes))
            missed = trace.disk(len(self.effects)).differences(Disk.read(self.folder))
            unseen = list(dict.fromkeys(self.unseen))
            if missed:
                unseen.append(f"the folder has changes that no recorded call made: {', '.join(missed[:5])}")
            outside = tuple(dict.fromkeys(self.outside))
            instants = None if self.instants is None else tuple(dict.fromkeys(self.instants))
            return Trace(trace.effects, trace.calls, trace.inodes, tuple(unseen), outside, tuple(missed), instants)
