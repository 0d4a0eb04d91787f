"""The checkpoint folder, looked at by the suite itself, never through the manager.

What counts as a checkpoint, what makes it complete and where the pointer is,
comes from the adapter's `Layout`: data, not code, so that a look is cheap and
cannot be wrong in the manager's favour.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from forge_conformance.adapter import Layout
from forge_conformance.judging.text import some
from forge_spec.retention import Room

DANGLING = -1
"""What `latest` is when there is a pointer that leads to no checkpoint."""


@dataclass(frozen=True)
class Look:
    """What was there at one moment."""

    complete: frozenset[int]
    resume_point: int | None
    """See `Folder.latest_or_newest`."""
    shown: str

    def __str__(self) -> str:
        return self.shown


@dataclass(frozen=True)
class Folder:
    """A view, not a copy: every call looks again."""

    path: Path
    layout: Layout
    stages: int = 0
    """Pipeline stages that a complete checkpoint has; 0 means that there is no pipeline."""

    def __post_init__(self) -> None:
        assert self.path.is_absolute(), "managers run in other processes, with other working directories"

    def entries(self) -> dict[int, Path]:
        """Whatever is named and shaped like a checkpoint, by step, complete or not."""
        return dict(self._entries())

    def _entries(self) -> Iterator[tuple[int, Path]]:
        pattern = re.compile(self.layout.checkpoint)
        try:
            found = list(os.scandir(self.path))
        except FileNotFoundError:
            return
        for entry in found:
            match = pattern.fullmatch(entry.name)
            fits = entry.is_dir(follow_symlinks=False) if self.layout.is_dir else entry.is_file(follow_symlinks=False)
            if match and fits:
                yield int(match["step"]), Path(entry.path)

    def steps(self) -> frozenset[int]:
        """Steps that have an entry, complete or torn."""
        return frozenset(self.entries())

    def complete(self) -> frozenset[int]:
        """Steps whose checkpoint has everything that a resume needs."""
        return frozenset(step for step, path in self._entries() if not self.missing(path))

    def torn(self) -> frozenset[int]:
        """Steps that have an entry which is not complete."""
        return self.steps() - self.complete()

    def missing(self, path: Path) -> tuple[str, ...]:
        """What this entry lacks to be complete."""
        if not self.layout.is_dir:
            return () if _size(path) > 0 else (path.name,)
        return tuple(name for name in self.required() if _size(path / name) <= 0)

    def required(self) -> tuple[str, ...]:
        """Paths inside a checkpoint's directory without which it is not complete."""
        if not self.stages:
            return self.layout.required
        shared = [name for name in self.layout.required if name not in self.layout.required_of_stage]
        own = [f"{self.stage(n)}/{name}" for n in range(self.stages) for name in self.layout.required_of_stage]
        return (*own, *shared)

    def stage(self, number: int) -> str:
        """The name of a pipeline stage's directory in a checkpoint."""
        return self.layout.stage.format(stage=number)

    def of(self, step: int) -> Path:
        """Where the checkpoint of this step is, or would be."""
        return self.entries().get(step, self.path / self.layout.name.format(step=step))

    @property
    def pointer(self) -> Path:
        """Where the pointer is, or would be; only for layouts that have one."""
        assert self.layout.pointer is not None, "only scenarios of capability `pointer` ask"
        return self.path / self.layout.pointer

    def pointer_target(self) -> str | None:
        """What the pointer says, word for word; None when there is none."""
        try:
            if self.layout.pointer_kind == "symlink":
                return os.readlink(self.pointer)
            return self.pointer.read_text().strip()
        except OSError:
            return None

    def latest(self) -> int | None:
        """The step that the pointer leads to; None without a pointer, `DANGLING` when it leads nowhere.

        A manager may move the pointer and delete its old target between two
        looks, so a target counts as missing only while the pointer still names it.
        """
        target = self.pointer_target()
        while target is not None and not (self.path / target).exists():
            before, target = target, self.pointer_target()
            if target == before:
                return DANGLING
        if target is None:
            return None
        match = re.fullmatch(self.layout.checkpoint, os.path.basename(target.rstrip("/")))
        return int(match["step"]) if match else DANGLING

    def latest_or_newest(self) -> int | None:
        """What the pointer leads to or, without a pointer in this layout, the newest complete step."""
        return self.latest() if self.layout.pointer is not None else max(self.complete(), default=None)

    def look(self) -> Look:
        """What a flush in the background may change between two calls, all of one moment: two looks in a row agree."""
        before, now = None, self._glance()
        while now != before:
            before, now = now, self._glance()
        return now

    def _glance(self) -> Look:
        return Look(self.complete(), self.latest_or_newest(), str(self))

    def point_at(self, target: str | None) -> None:
        """Make the pointer lead to this name in the folder, by force; None removes it.

        A text is written in the manager's own form, which is a name or a whole path.
        """
        is_text = self.layout.pointer_kind == "text"
        before = (self.pointer_target() or "") if is_text else ""
        if os.path.lexists(self.pointer):
            self.pointer.unlink()
        if target is not None:
            if is_text:
                self.pointer.write_text(os.path.join(os.path.dirname(before), target))
            else:
                self.pointer.symlink_to(target)

    def tear(self, step: int, lacks: int = 0) -> str:
        """Make the checkpoint of this step torn, as a death before its marker leaves it; what it is now, in words.

        `lacks` counts, round and round, what is required of it: 0 is the marker.
        """
        path = self.of(step)
        if not self.layout.is_dir:
            path.write_bytes(b"")
            return "empty"
        name = self.required()[lacks % len(self.required())]
        (path / name).unlink()
        return f"without {name}"

    def files(self) -> list[str]:
        """Every file and link below the folder, relative to it, sorted."""
        return sorted(
            os.path.relpath(os.path.join(where, name), self.path)
            for where, _, names in os.walk(self.path)
            for name in names
        )

    def leftovers(self) -> dict[str, Room]:
        """What stands in the folder and is neither a complete checkpoint nor the pointer, by name."""
        complete = {path.name for path in map(self.of, self.complete())}
        names = [entry.name for entry in os.scandir(self.path)]
        return {name: room(self.path / name) for name in names if name not in (*complete, self.layout.pointer)}

    def largest(self) -> Room:
        """The room of the largest complete checkpoint."""
        rooms = [room(self.of(step)) for step in self.complete()]
        return max(rooms, key=lambda found: found.size_bytes, default=Room())

    def copy_to(self, destination: Path) -> None:
        """Copy the folder as it is now, links as links, without files that vanish meanwhile."""
        shutil.copytree(self.path, destination, symlinks=True, copy_function=_copy_if_there)

    def become(self, source: Path) -> None:
        """Make the folder equal to a copy of `source`, at the same path as before."""
        shutil.rmtree(self.path)
        shutil.copytree(source, self.path, symlinks=True)

    def __str__(self) -> str:
        torn = [f"{step} ({self._why_torn(self.of(step))})" for step in sorted(self.torn())]
        said = [f"complete {sorted(self.complete())}", f"torn {', '.join(torn)}" if torn else ""]
        said += [f"{self.layout.pointer} -> {self.pointer_target()}" if self.layout.pointer else "", self.unlike()]
        return ", ".join(part for part in said if part)

    def _why_torn(self, path: Path) -> str:
        """What this entry lacks to be complete, in words: files that are not there, and files without content."""
        if not self.layout.is_dir:
            return f"{path.name} is empty"
        missing = self.missing(path)
        absent = [name for name in missing if _size(path / name) < 0]
        empty = [name for name in missing if name not in absent]
        said = [f"without {', '.join(absent)}"] if absent else []
        return ", ".join([*said, *(f"{name} is empty" for name in empty)])

    def unlike(self) -> str:
        """Of a folder that has no checkpoint by its layout, what it holds and what was looked for; else nothing."""
        found = [name for name in self.files() if not name.startswith(".") and name != self.layout.pointer]
        if self.entries() or not found:
            return ""
        kind = "directory" if self.layout.is_dir else "file"
        return f"it holds {some(found)}, where the layout asks for a {kind} named like {self.layout.checkpoint}"


def _copy_if_there(source: str, target: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.copy2(source, target)


def room(path: Path) -> Room:
    """What a file, or a directory with all that is in it, takes."""
    below = [os.path.join(where, name) for where, dirs, files in os.walk(path) for name in (*dirs, *files)]
    sizes = [os.lstat(found).st_size for found in (str(path), *below) if not os.path.isdir(found)]
    return Room(1 + len(below), sum(sizes))


def together(rooms: Iterable[Room]) -> Room:
    """What several take in all."""
    found = list(rooms)
    return Room(sum(one.entries for one in found), sum(one.size_bytes for one in found))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
