"""Makes a checkpoint visible in the folder: stage, sync, publish, point `latest` at it.

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
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from forge_ref import layout
from forge_ref.errors import NotTakenBackError

Undo = Callable[[], object]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
"""Errors by which a system says that it can't exchange names, and not that it could not do it now."""


def make(folder: Path) -> None:
    """Make the folder, and what is missing above it, where it is not there yet; the names are on storage then."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        with suppress(FileExistsError):  # another process has just made it
            _make_usable(place)
    folder.mkdir(exist_ok=True)
    for place in missing:
        sync(place.parent)


def stage(staged: Path, step: int, stages: Iterable[str] = ()) -> None:
    """Make the hidden directory to write the checkpoint of a step into, with one in it for each pipeline stage.

    Beside it an empty one is made, the save's trash directory.  What this manager
    could not remove of an earlier save of the step is moved away and deleted.
    """
    for fresh in (staged, layout.trash_path(staged)):
        if os.path.lexists(fresh):
            discard(move_away(fresh, step))
        _make_usable(fresh)
    for name in stages:
        (staged / name).mkdir()


def move_away(hidden: Path, step: int) -> Path:
    """Rename a hidden directory to a name that no save uses; return the new path."""
    retired = _make(hidden.parent, step, "retired")
    os.rename(hidden, retired)  # takes the place of the empty directory
    return retired


def _make_usable(path: Path) -> None:
    """Make a directory; `PermissionError` if the umask takes it from its own owner, and then there is none."""
    path.mkdir()
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        mode = stat.S_IMODE(path.stat().st_mode)
        path.rmdir()
        raise PermissionError(
            f"the umask of this process gives new directories mode {mode:03o}, so nothing can be written into {path}; "
            "set a umask that leaves the owner all rights, such as 022 or 077"
        )


def _make(folder: Path, step: int, role: str) -> Path:
    for name in layout.hidden_names(step, role):
        try:
            (folder / name).mkdir()
        except FileExistsError:
            continue
        return folder / name
    raise AssertionError("hidden names never run out")


def write(path: Path, content: bytes) -> None:
    """Write a file with this content; it is on storage when this returns."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Fsync a file, or the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit(staged: Path, step: int, check: Callable[[], object]) -> None:
    """Make the staged directory the checkpoint of its step, and point `latest` at it.

    An earlier checkpoint of the step gets a hidden name, and is deleted by `retire.sweep`.
    All that needs space is written before the first name changes, and then
    `check` is called, which raises if no name may change any more.  If something
    fails after that, the names are changed back, so that the resume point is
    the one it was (commit.failed-save); `NotTakenBackError` if that fails too.
    """
    folder, target = staged.parent, staged.parent / layout.step_name(step)
    pointer = _new_pointer(layout.pointer_path(staged), step)
    with _appearing(staged, target, step, check) as undo:
        if _names(folder / layout.LATEST) != target.name:
            _point(undo, pointer, folder / layout.LATEST, layout.trash_path(staged))
            sync(folder)
    with suppress(OSError):  # the next commit needs the name, and clears it first
        pointer.unlink(missing_ok=True)


def appear(staged: Path, target: Path, step: int, check: Callable[[], object]) -> None:
    """Make the staged directory visible under the name of `target`, in one operation; no pointer moves.

    What was there before is under the staged name then, or aside.  The rest is as for `commit`.
    """
    with _appearing(staged, target, step, check):
        pass


@contextmanager
def _appearing(staged: Path, target: Path, step: int, check: Callable[[], object]) -> Iterator[list[Undo]]:
    """Make the staged directory visible before the block; if the block fails, undo that and all that it registered."""
    check()
    undo = list[Undo]()
    try:
        _publish(undo, staged, target, step)
        sync(target.parent)
        yield undo
    except OSError as error:
        try:
            while undo:  # the last change first; nothing is changed back beneath one that stands
                undo.pop()()
        except OSError as again:
            raise NotTakenBackError(f"{error}; and what had changed could not be changed back: {again}") from error
        raise


def _publish(undo: list[Undo], staged: Path, target: Path, step: int) -> None:
    """Make the staged directory visible, and register what undoes it."""
    if not layout.is_real_dir(target):
        os.rename(staged, target)
        undo.append(partial(_into, layout.trash_path(staged), target))
    elif exchange(staged, target):
        undo.append(partial(_exchange_back, staged, target))
    else:
        aside = replace_by_two_renames(staged, target, step)
        undo.append(partial(_replace_back, layout.trash_path(staged), aside, target))


def _into(trash: Path, visible: Path) -> None:
    """Move into the trash; fails if another process has taken the folder over, because it has moved the trash."""
    os.rename(visible, trash / visible.name)


def _replace_back(trash: Path, aside: Path, target: Path) -> None:
    _into(trash, target)
    os.rename(aside, target)


def _point_back(pointer: Path, latest: Path, before: str) -> None:
    pointer.symlink_to(before)
    os.rename(pointer, latest)


def _exchange_back(one: Path, other: Path) -> None:
    if not exchange(one, other):
        raise OSError(f"{one} and {other} could not be exchanged back")


def _point(undo: list[Undo], pointer: Path, latest: Path, trash: Path) -> None:
    """Replace `latest` by a new one in one operation, and register what undoes it."""
    before = _names(latest)
    if before is None:
        os.rename(pointer, latest)
        undo.append(partial(_into, trash, latest))
    elif exchange(pointer, latest):
        undo.append(partial(_exchange_back, pointer, latest))
    else:
        os.rename(pointer, latest)
        undo.append(partial(_point_back, trash / layout.LATEST, latest, before))


def _names(latest: Path) -> str | None:
    """Return the target of `latest`; None if it is not a symlink."""
    try:
        return os.readlink(latest)
    except OSError:
        return None


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one operation; return False where the system can't."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2  # Python has no name for it
    except AttributeError:
        return False
    if not renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        return True
    error = ctypes.get_errno()
    if error in _NO_EXCHANGE:
        return False
    raise OSError(error, os.strerror(error), str(one), None, str(other))


def replace_by_two_renames(staged: Path, target: Path, step: int) -> Path:
    """Move the old directory aside and the new one in; return the path of the old one.

    If the new one can't take its place, the old one is moved back.
    """
    aside = _make(staged.parent, step, "replaced")
    os.rename(target, aside)  # takes the place of the empty directory
    try:
        os.rename(staged, target)
    except OSError:
        os.rename(aside, target)
        raise
    return aside


def _new_pointer(fresh: Path, step: int) -> Path:
    """Make the new `latest` beside the old one; one rename then replaces it (commit.atomic-pointer)."""
    layout.check_names_free(fresh.parent, step)
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(layout.step_name(step))
    return fresh


def abandon(staged: Path) -> None:
    """Remove all names of a save that failed: its staged directory, its trash and its pointer."""
    discard(staged)
    discard(layout.trash_path(staged))
    with suppress(OSError):
        layout.pointer_path(staged).unlink(missing_ok=True)


def discard(hidden: Path) -> None:
    """Remove a hidden directory; what can't be removed now is removed after a later commit."""
    shutil.rmtree(hidden, ignore_errors=True)
