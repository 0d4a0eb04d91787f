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
from collections.abc import Iterable
from pathlib import Path

from forge_ref import layout

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def stage(folder: Path, step: int, stages: Iterable[str] = ()) -> Path:
    """A new hidden directory to write the checkpoint of a step into, with one in it for each pipeline stage.

    What stands there, left by a run that died, makes way for it: the name has
    to be the one that the other ranks know without being told.
    """
    staged = layout.staged_path(folder, step)
    if os.path.lexists(staged):
        os.rename(staged, _make(folder, step, "retired"))
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


def publish(staged: Path, step: int) -> None:
    """Make the staged directory the checkpoint of its step.

    What stood there before has a hidden name then; it is swept once the new
    one is committed.
    """
    target = staged.parent / layout.step_name(step)
    if not layout.is_real_dir(target):
        os.rename(staged, target)
    elif not exchange(staged, target):
        replace_by_two_renames(staged, target, step)
    sync(staged.parent)


def exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one operation; False where the system can't."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2  # Python has no name for it
    except AttributeError:
        return False
    failed = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return not failed


def replace_by_two_renames(staged: Path, target: Path, step: int) -> None:
    """Move the old directory aside and the new one in; the old one returns if the new one can't take its place."""
    aside = _make(staged.parent, step, "replaced")
    os.rename(target, aside)  # takes the place of the empty directory
    try:
        os.rename(staged, target)
    except OSError:
        os.rename(aside, target)
        raise


def point_latest(folder: Path, step: int) -> None:
    """Swap `latest` to the checkpoint of a step; a reader sees the old one or the new one (commit.atomic-pointer)."""
    layout.check_names_free(folder, step)
    fresh = folder / f".{layout.LATEST}.partial"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(layout.step_name(step))
    os.rename(fresh, folder / layout.LATEST)
    sync(folder)


def discard(hidden: Path) -> None:
    """Remove a directory that is out of sight already; what can't be removed is swept after a later commit."""
    shutil.rmtree(hidden, ignore_errors=True)
