"""How a checkpoint comes to stand in the folder: stage, sync, publish, point `latest` at it.

Invariants: `step_N` is whole whenever it is there, because everything is
written under a hidden name and one rename makes it visible; `latest` always
names a whole checkpoint, because one rename swaps it; and each step is on
storage before the next is issued, so the order also holds when power is lost.

A step that is saved again is exchanged with its new self in one operation.
Where the file system can't do that, the old one is moved aside under a name
that a resume finds, so it is never lost; only then is `step_N`, and with it
`latest`, missing for an instant.
"""

import ctypes
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from forge_ref import layout
from forge_ref.errors import NotTakenBackError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def make(folder: Path) -> None:
    """Make the folder, and what is missing above it, where it is not there yet; the names are on storage then."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in missing:
        sync(place.parent)


def stage(folder: Path, step: int, stages: Iterable[str] = ()) -> Path:
    """A new hidden directory to write the checkpoint of a step into, with one in it for each pipeline stage.

    What stands there, left by a run that died, makes way for it: the name has
    to be the one that the other ranks know without being told.  It goes at
    once, or a run that dies again and again would fill the disk.
    """
    staged = layout.staged_path(folder, step)
    if os.path.lexists(staged):
        retired = _make(folder, step, "retired")
        os.rename(staged, retired)
        discard(retired)
    staged.mkdir()
    for name in stages:
        (staged / name).mkdir()
    return staged


def _make(folder: Path, step: int, role: str) -> Path:
    for name in layout.hidden_names(step, role):
        try:
            (folder / name).mkdir()
        except FileExistsError:
            continue
        return folder / name
    raise AssertionError("hidden names never run out")


def write(path: Path, content: bytes) -> None:
    """A file with this content, on storage when this returns."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Bring a file, or the names in a directory, to storage."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit(staged: Path, step: int) -> None:
    """Make the staged directory the checkpoint of its step, and let `latest` point at it.

    What stood there before has a hidden name then; it is swept afterwards.
    All that needs room is written before the first name changes; if something
    fails after that, the names are changed back, so that the resume point is
    the one it was (commit.failed-save); `NotTakenBackError` if that fails too.
    """
    folder, target = staged.parent, staged.parent / layout.step_name(step)
    pointer = _new_pointer(folder, step)
    with _taken_back() as undo:
        undo.callback(_publish(staged, target, step))
        sync(folder)
        if _names(folder / layout.LATEST) != target.name:
            undo.callback(_point(pointer, folder / layout.LATEST))
            sync(folder)
        undo.pop_all()
    with suppress(OSError):  # the next commit needs the name, and clears it first
        pointer.unlink(missing_ok=True)


@contextmanager
def _taken_back() -> Iterator[ExitStack]:
    """Undo all that was noted if something fails."""
    undo = ExitStack()
    try:
        yield undo
    except OSError as error:
        try:
            undo.close()
        except OSError as again:
            raise NotTakenBackError(f"{error}; and what had changed could not be changed back: {again}") from error
        raise


def _publish(staged: Path, target: Path, step: int) -> Callable[[], object]:
    """Make the staged directory visible; what takes that back."""
    if not layout.is_real_dir(target):
        os.rename(staged, target)
        return partial(os.rename, target, staged)
    if exchange(staged, target):
        return partial(_exchange_back, staged, target)
    return partial(_replace_back, staged, target, replace_by_two_renames(staged, target, step))


def _replace_back(staged: Path, target: Path, aside: Path) -> None:
    os.rename(target, staged)
    os.rename(aside, target)


def _exchange_back(one: Path, other: Path) -> None:
    if not exchange(one, other):
        raise OSError(f"{one} and {other} could not change places again")


def _point(pointer: Path, latest: Path) -> Callable[[], object]:
    """Swap `latest` for a new one in one operation; what takes that back."""
    before = _names(latest)
    if before is None:
        os.rename(pointer, latest)
        return partial(os.unlink, latest)
    if exchange(pointer, latest):
        return partial(_exchange_back, pointer, latest)
    os.rename(pointer, latest)
    return partial(_point_back, pointer, latest, before)


def _point_back(pointer: Path, latest: Path, before: str) -> None:
    pointer.symlink_to(before)
    os.rename(pointer, latest)


def _names(latest: Path) -> str | None:
    """What `latest` says, if there is one."""
    try:
        return os.readlink(latest)
    except OSError:
        return None


def exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one operation; False where the system can't."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2  # Python has no name for it
    except AttributeError:
        return False
    failed = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return not failed


def replace_by_two_renames(staged: Path, target: Path, step: int) -> Path:
    """Move the old directory aside and the new one in; the old one returns if the new one can't take its place.

    Where the old one is now.
    """
    aside = _make(staged.parent, step, "replaced")
    os.rename(target, aside)  # takes the place of the empty directory
    try:
        os.rename(staged, target)
    except OSError:
        os.rename(aside, target)
        raise
    return aside


def _new_pointer(folder: Path, step: int) -> Path:
    """What `latest` will be, beside it; one rename swaps it, so no reader finds it missing (commit.atomic-pointer)."""
    layout.check_names_free(folder, step)
    fresh = folder / f".{layout.LATEST}.partial"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(layout.step_name(step))
    return fresh


def discard(hidden: Path) -> None:
    """Remove a directory that is out of sight already; what can't be removed is swept after a later commit."""
    shutil.rmtree(hidden, ignore_errors=True)
