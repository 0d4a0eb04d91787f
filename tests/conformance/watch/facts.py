"""What a process learns of a folder: of all that it holds, the part that a resume may depend on.

A *fact* is about the disk as it was built, before the process did anything:
what stands at a path, what a file holds, which names a directory has.  Whatever
a process can learn later follows from such facts and from what it did itself,
and a process that does the same with the same facts does the same: that is why
two disks on which all facts of a resume are equal share its verdict.

Paths are followed step by step, links included, so that every name on the way
is a fact of its own.  What the process made itself is none.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from forge_conformance.watch.caller import AT_SYMLINK_NOFOLLOW, Caller
from forge_conformance.watch.listener import Arguments
from forge_conformance.watch.trace import Disk
from forge_conformance.worker.system_calls import AT_FDCWD, CALLS

Value = TypeVar("Value")
Fact = tuple[str, str]
"""(`kind`, path), (`stat`, path), (`content`, path) or (`names`, path), relative to the folder."""
Answer = tuple[object, ...] | None

WHOLE: Fact = ("whole", "")
"""All that a disk holds, in one fact."""
_MOST_LINKS = 40
_NO_FOLLOW = {"unlinkat", "renameat2", "mkdirat", "symlinkat", "linkat", "readlinkat"}


def answer(disk: Disk, fact: Fact) -> Answer:
    """What the fact is on this disk."""
    about, path = fact
    node = disk.nodes.get(path)
    if about == "whole":
        return tuple(sorted((path, node.kind, node.changed_at, node.content) for path, node in disk.nodes.items()))
    if about == "names":
        return disk.names(path)
    if node is None:
        return None
    if about == "content":
        return (node.content,)
    if about == "kind":
        return (node.kind, node.content if node.kind == "l" else b"")
    return (node.kind, node.mode, node.changed_at, len(node.content))


class Facts:
    """The facts that a process has learnt, in the order in which it first did."""

    _EMPTIES: tuple[str, ...] = ("unlinkat", "renameat2")
    """Calls whose end depends on whether a directory is empty."""

    def __init__(self, folder: Path, built: Mapping[tuple[int, int], str]) -> None:
        """`built` are the paths of the disk by device and inode."""
        self._folder = os.path.realpath(folder)
        self._built = built
        self.seen: dict[Fact, None] = {}

    def see(self, caller: Caller, name: str, arguments: Arguments) -> None:
        """A call is about to be made."""
        if name == "getdents64":
            self._note("names", f"/proc/{caller.thread}/fd/{caller.number(arguments[0])}")
            return
        for directory, path in CALLS[name].paths:
            try:
                base = AT_FDCWD if directory is None else caller.number(arguments[directory])
                self._look(self._absolute(caller, base, caller.string(arguments[path])), name, arguments)
            except OSError:  # no such memory or directory: the call fails whatever the folder holds
                continue

    def _absolute(self, caller: Caller, base: int, path: str) -> str:
        if path.startswith("/"):
            return path
        if not path:
            raise FileNotFoundError("what a descriptor stands for was looked at when it was opened")
        at = f"/proc/{caller.thread}/" + ("cwd" if base == AT_FDCWD else f"fd/{base}")
        return os.path.join(os.readlink(at), path)

    def _look(self, path: str, name: str, arguments: Arguments) -> None:
        found = self._walk(path, follows=_follows(name, arguments))
        if found is None:
            return
        if name in ("newfstatat", "faccessat2", "openat"):
            self._note("stat", found)
        if name in ("openat", "linkat", "truncate"):
            self._note("content", found)
        if name in self._EMPTIES:
            self._note("names", found)

    def _walk(self, path: str, follows: bool) -> str | None:
        """Follow a path, noting every name on the way; where it ends, or None where nothing stands or it leads away."""
        for _ in range(_MOST_LINKS):
            parts = self._inside(path)
            if parts is None:
                return None
            here, turned = self._follow(parts, follows)
            if turned is None:
                return here
            path = turned
        return None

    def _inside(self, path: str) -> list[str] | None:
        """The names of a path below the folder; None if it is not there."""
        if not f"{path}/".startswith(f"{self._folder}/"):
            path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        if not f"{path}/".startswith(f"{self._folder}/"):
            return None
        return [part for part in path[len(self._folder) :].split("/") if part not in ("", ".")]

    def _follow(self, parts: list[str], follows: bool) -> tuple[str | None, str | None]:
        """Where the names lead; or, if one of them is a link, the path to go on with."""
        here = self._folder
        for at, part in enumerate(parts):
            if part == "..":
                return None, "/".join([os.path.dirname(here), *parts[at + 1 :]])
            self._entry(here, part)
            place, rest = f"{here}/{part}", parts[at + 1 :]
            if not os.path.lexists(place):
                return None, None
            if os.path.islink(place) and (rest or follows):
                return None, "/".join([os.path.join(here, os.readlink(place)), *rest])
            here = place
        return here, None

    def _entry(self, directory: str, name: str) -> None:
        origin = self._origin(directory)
        if origin is not None:
            self.seen.setdefault(("kind", os.path.join(origin, name)))

    def _note(self, about: str, path: str) -> None:
        origin = self._origin(path)
        fits = {"content": os.path.isfile, "names": os.path.isdir}.get(about, os.path.lexists)
        if origin is not None and fits(path):
            self.seen.setdefault((about, origin))

    def _origin(self, path: str) -> str | None:
        """Where what stands at a path stood on the disk; None for what the process has made."""
        try:
            found = os.stat(path) if path.startswith("/proc/") else os.lstat(path)
        except OSError:
            return None
        return self._built.get((found.st_dev, found.st_ino))


def _follows(name: str, arguments: Arguments) -> bool:
    if name == "openat":
        return not arguments[2] & os.O_NOFOLLOW
    if name == "newfstatat":
        return not arguments[3] & AT_SYMLINK_NOFOLLOW
    return name not in _NO_FOLLOW


class Memory(Generic[Value]):
    """What came of the disks that were tried, by the facts that decided it.

    A disk shares the outcome of another when every fact that the process learnt
    there is the same here.  Facts stand in the order in which they were
    learnt, so that each is asked once for all outcomes that begin alike.
    """

    def __init__(self) -> None:
        self._root: _Known[Value] = _Known()

    def find(self, disk: Disk) -> Value | None:
        """The outcome that this disk must have as well; None if no disk was like it."""
        return self._find(self._root, disk)

    def _find(self, known: "_Known[Value]", disk: Disk) -> Value | None:
        if known.value is not None:
            return known.value
        for fact, branches in known.next.items():
            branch = branches.get(answer(disk, fact))
            found = None if branch is None else self._find(branch, disk)
            if found is not None:
                return found
        return None

    def learn(self, disk: Disk, facts: Iterable[Fact], value: Value) -> None:
        """Keep an outcome with all facts that it may depend on."""
        known = self._root
        for fact in facts:
            known = known.next.setdefault(fact, {}).setdefault(answer(disk, fact), _Known())
        known.value = value


@dataclass
class _Known(Generic[Value]):
    """What is known after some facts: the outcome, or which fact is learnt next, and what follows from each answer."""

    value: Value | None = None
    next: dict[Fact, dict[Answer, "_Known[Value]"]] = field(default_factory=dict)
