"""Only one process at a time saves into a folder: it holds a lock, which ends with the process.

The process that saves first holds the file `.writer`, under a lock of the
operating system, and writes into it who it is.  Another one is refused until
the lock is gone, or until its caller chooses to take the folder over.

A save of a process that was taken over must change nothing any more, even if
that process was stopped between two system calls.  Three rules ensure that:

1. Whatever a save puts into the folder, takes out of it or takes back is one
   rename, from or into a name that this save alone has: its staged directory, its
   pointer, its trash.
2. A save makes these names first, and then looks whether it still holds the
   folder; only then does it change other names.
3. Who comes to hold the folder first writes its name into `.writer`, and then moves
   away all such names that stand there.

So a save that found itself the holder made its names before the other looked
for them: each of its renames comes before that, or fails.  These rules need no
lock, so they also hold where a file system has none; a warning says so, once.
One thing remains: where names can't be exchanged, the first of the two renames
that replace a step goes to a name that anybody can make; it is taken back.

The lock belongs to an open file (F_OFD_SETLK), so that nobody who reads the
folder in this process drops it, as would happen to the older locks of a
process.  A forked child closes its copy at once.

Managers of one process share the lock, since one thread calls them: the one
that saves waits for the save of another that is in flight.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import struct
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

from forge_ref import layout, retire
from forge_ref.async_save import AsyncCheckpointer
from forge_ref.errors import FolderInUseError, NotTakenBackError
from forge_ref.interrupts import Deferral
from forge_ref.messages import log as _log

_FLOCK = "hhqqi0q"  # type, whence, start, length, pid
_BUSY = (errno.EAGAIN, errno.EACCES)
_CANNOT_LOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_NOT_OURS = (errno.EACCES, errno.EPERM)
_JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "TORCHELASTIC_RUN_ID")
_MOST_BYTES = 4096


class _Lock(Enum):
    """What came of an attempt to lock a file."""

    OURS = "this process has the lock"
    BUSY = "another process has it"
    IMPOSSIBLE = "nobody can have it on this file system"


@dataclass(eq=False)
class _Held:
    """What this process holds of a folder, as long as one of its managers does."""

    file: Path
    descriptor: int
    content: bytes
    """What this process wrote into the file; nobody else writes the same."""
    lost_to: str | None = None
    """Who has taken the folder over since."""
    saver: "weakref.ref[AsyncCheckpointer] | None" = None
    """Whose save may be in flight."""

    def release(self) -> None:
        """Let go of the lock; for use once, and in a forked child."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.release()


_held: "weakref.WeakValueDictionary[Path, _Held]" = weakref.WeakValueDictionary()
_changing = threading.RLock()
"""Held while the table changes, and over each fork: a child must know every descriptor that it has to close."""
_has_warned = False


def _after_fork_in_child() -> None:
    global _changing
    _changing = threading.RLock()
    for held in list(_held.values()):
        held.release()
    _held.clear()


os.register_at_fork(
    before=lambda: _changing.acquire(),
    after_in_parent=lambda: _changing.release(),
    after_in_child=_after_fork_in_child,
)


class Writer:
    """One manager's right to save into a folder."""

    def __init__(self, folder: Path, saver: AsyncCheckpointer, take_over: bool = False) -> None:
        """Touches no file.  `take_over` counts for the first save alone: who is taken over after that is refused."""
        self._folder = folder
        self._saver = saver
        self._takes_over = take_over
        self._mine: _Held | None = None

    def begin(self) -> None:
        """Come to hold the folder, before a save makes anything in it.

        `FolderInUseError` if another process holds it, or has taken it over.
        """
        place = self._folder.resolve()
        held = _held.get(place)
        if held is not None and held.saver is not None:
            other = held.saver()
            if other is not None and other is not self._saver:
                other.settle()
                other.deletion.wait()
        with Deferral(), _changing:
            held = self._still_held(_held.get(place))
            self._mine = held if held is not None else _take(self._folder, self._takes_over)
            self._mine.saver = weakref.ref(self._saver)
            _held[place] = self._mine
            if held is None:
                self._saver.deletion.begin(retire.move_leftovers_away(self._folder), None, keeping=self)
        self._takes_over = False

    def check(self) -> None:
        """Call when a save has made its own names, right before it changes others; `FolderInUseError` as `begin`."""
        if self._mine is not None:
            _check_kept(self._mine)

    @contextlib.contextmanager
    def naming_take_over(self) -> Iterator[None]:
        """Raise a `FolderInUseError` for what fails inside because another process has taken the folder over."""
        try:
            yield
        except NotTakenBackError:
            raise
        except OSError:
            with contextlib.suppress(OSError):
                self.check()
            raise

    def _still_held(self, held: _Held | None) -> _Held | None:
        """Return what this process holds; None if it holds nothing, or has to take hold of the folder again."""
        if held is None:
            return None
        try:
            _check_kept(held)
        except FolderInUseError:
            if self._takes_over:
                return None
            raise
        return held if _is_named(held.file, held.descriptor) else None  # None: somebody has tidied up


def _check_kept(held: _Held) -> None:
    """`FolderInUseError` if another process has written its name into the file; one that is gone tells of nobody."""
    if held.lost_to is None:
        try:
            found = _content(held)
        except FileNotFoundError:
            return
        if found != held.content:
            held.lost_to = _who(found)
    if held.lost_to is not None:
        raise FolderInUseError(
            f"{held.file.parent} was taken over: {held.lost_to} saves into it now. "
            "Nothing was saved, and nothing will be by this process; end it, or save into another folder"
        )


def _content(held: _Held) -> bytes:
    """Return the content of the file that has the name now; opening it asks the server, `stat` might not."""
    descriptor = _open(held.file, os.O_RDONLY)
    try:
        return os.pread(descriptor, _MOST_BYTES, 0)
    finally:
        os.close(descriptor)


def _take(folder: Path, take_over: bool) -> _Held:
    """Take hold of a folder."""
    file, content = folder / layout.WRITER, _content_of_this_process()
    while (descriptor := _attempt(file, content, take_over)) is None:
        pass  # another process has put a new file there meanwhile; look again
    return _Held(file, descriptor, content)  # from here on it closes the descriptor


def _attempt(file: Path, content: bytes, take_over: bool) -> int | None:
    """Return the file, locked and with this content; None if another process has put a new one there meanwhile."""
    with contextlib.ExitStack() as closing:
        descriptor, may_write = _opened(file)
        closing.callback(os.close, descriptor)
        lock = _lock(descriptor, fcntl.F_WRLCK if may_write else fcntl.F_RDLCK)
        if lock is _Lock.BUSY and not take_over:
            raise _refusal(file.parent, os.pread(descriptor, _MOST_BYTES, 0))
        if lock is not _Lock.OURS or not may_write:
            with contextlib.suppress(FileNotFoundError):
                return _replaced(file, content)
            return None
        if not _is_named(file, descriptor):
            return None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, content, 0)
        closing.pop_all()
        return descriptor


def _opened(file: Path) -> tuple[int, bool]:
    """Return the file, made if it is missing, and whether it may be written, as one of another user may not."""
    try:
        return _open(file, os.O_RDWR | os.O_CREAT), True
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
    return _open(file, os.O_RDONLY), False


def _open(file: Path, flags: int) -> int:
    try:
        descriptor = os.open(file, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR):
            raise FileExistsError(f"{file} is not a regular file; move it away") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileExistsError(f"{file} is not a regular file; move it away")
    return descriptor


def _replaced(file: Path, content: bytes) -> int:
    """Replace a file that can't be locked by a new one, which is locked before others can see it; return it."""
    fresh = layout.loose_path(file.parent, layout.WRITER, layout.new_token())
    descriptor = _open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        _lock(descriptor, fcntl.F_WRLCK)
        os.pwrite(descriptor, content, 0)
        os.rename(fresh, file)
    except BaseException:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    return descriptor


def _lock(descriptor: int, kind: int) -> _Lock:
    """Try to lock the whole file, and warn if the file system can't; return what came of it."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        if error.errno in _BUSY:
            return _Lock.BUSY
        if error.errno not in _CANNOT_LOCK:
            raise
        _warn_once(error)
        return _Lock.IMPOSSIBLE
    return _Lock.OURS


def _warn_once(error: OSError) -> None:
    global _has_warned
    if not _has_warned:
        _has_warned = True
        _log.warning(
            "the file system of the checkpoints can't lock files (%s): a second job that saves into the same folder "
            "is not refused, but takes it over from the first",
            error,
        )


def _is_named(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(file, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _content_of_this_process() -> bytes:
    job = next((f"{name}={os.environ[name]}" for name in _JOBS if os.environ.get(name)), None)
    content = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": job,
        "since": datetime.now(UTC).isoformat(" ", "seconds"),
        "token": layout.new_token(),
    }
    return json.dumps(content).encode()


def _who(content: bytes) -> str:
    """Return who wrote this, for an error."""
    try:
        recorded = json.loads(content)
        host, pid, since, job = recorded["host"], int(recorded["pid"]), recorded["since"], recorded["job"]
    except (ValueError, KeyError, TypeError):
        return "an unknown process"
    return f"process {pid} on {_plain(host)}{f' ({_plain(job)})' if job else ''}, since {_plain(since)},"


def _plain(text: object) -> str:
    """Return the text with escapes for all but plain ASCII: another process wrote it."""
    return ascii(str(text)[:200])[1:-1]


def _refusal(folder: Path, content: bytes) -> FolderInUseError:
    return FolderInUseError(
        f"{folder} is in use: {_who(content)} saves into it. Nothing was saved. Save into another folder, "
        "or wait until that process has ended; if it hangs, make this manager with take_over=True"
    )
