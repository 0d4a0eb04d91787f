"""Makes a stopped process's file calls in its place.

The kernel holds a call of another process and shows its number and arguments.
What is written here reads the rest from that process's memory, makes the call
itself, and says how it ended: so the order of calls is the order in which they
were made, results are known, and what was written is what was read once.

The calls of old are turned into those that took their place (`open` into
`openat`), which are all that newer machines have.
"""

import array
import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from forge_conformance.watch.listener import Arguments
from forge_conformance.worker.system_calls import AT_FDCWD

_AT_REMOVEDIR, _AT_SYMLINK_FOLLOW, _AT_EMPTY_PATH = 0x200, 0x400, 0x1000
_PIDFD_GETFD = 438  # the same on every machine
_RWF_SYNCS = 0x2 | 0x4
_LIBC = ctypes.CDLL(None, use_errno=True)
_PAGE = mmap.PAGESIZE

_TODAY: dict[str, Callable[[Arguments], tuple[str, Arguments]]] = {
    "open": lambda a: ("openat", (AT_FDCWD, *a)),
    "creat": lambda a: ("openat", (AT_FDCWD, a[0], os.O_CREAT | os.O_WRONLY | os.O_TRUNC, a[1])),
    "mkdir": lambda a: ("mkdirat", (AT_FDCWD, *a)),
    "rmdir": lambda a: ("unlinkat", (AT_FDCWD, a[0], _AT_REMOVEDIR)),
    "unlink": lambda a: ("unlinkat", (AT_FDCWD, a[0], 0)),
    "rename": lambda a: ("renameat2", (AT_FDCWD, a[0], AT_FDCWD, a[1], 0)),
    "renameat": lambda a: ("renameat2", (*a[:4], 0)),
    "link": lambda a: ("linkat", (AT_FDCWD, a[0], AT_FDCWD, a[1], 0)),
    "symlink": lambda a: ("symlinkat", (a[0], AT_FDCWD, a[1])),
    "stat": lambda a: ("newfstatat", (AT_FDCWD, a[0], 0, 0)),
    "lstat": lambda a: ("newfstatat", (AT_FDCWD, a[0], 0, AT_SYMLINK_NOFOLLOW)),
    "statx": lambda a: ("newfstatat", (a[0], a[1], 0, a[2])),
    "access": lambda a: ("faccessat2", (AT_FDCWD, a[0], a[1], 0)),
    "faccessat": lambda a: ("faccessat2", (*a[:3], 0)),
    "readlink": lambda a: ("readlinkat", (AT_FDCWD, *a)),
    "chdir": lambda a: ("faccessat2", (AT_FDCWD, a[0], 0, 0)),
    "getdents": lambda a: ("getdents64", a),
}
AT_SYMLINK_NOFOLLOW = 0x100


def today(name: str, arguments: Arguments) -> tuple[str, Arguments]:
    """The call that took this one's place, and its arguments.

    >>> today("creat", (4096, 0o600)) == ("openat", (-100, 4096, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600))
    True
    """
    translated = _TODAY.get(name)
    return (name, arguments) if translated is None else translated(arguments)


@dataclass(frozen=True)
class Place:
    """Where a path leads: the directory it ends in, free of links, and the last name; "" for the directory itself."""

    directory: str
    name: str

    @property
    def path(self) -> str:
        """The whole of it."""
        return os.path.join(self.directory, self.name) if self.name else self.directory


class Caller:
    """A thread that the kernel holds in a call."""

    def __init__(self, thread: int, pidfd: int) -> None:
        self.thread = thread
        self._pidfd = pidfd

    def memory(self, address: int, size: int) -> mmap.mmap | bytes:
        """A copy of its memory, aligned as direct writes need it; `OSError` where there is none."""
        if not size:
            return b""
        copy = mmap.mmap(-1, size)
        done = 0
        while done < size:
            done += self._read(address + done, (ctypes.c_char * (size - done)).from_buffer(copy, done))
        return copy

    def string(self, address: int) -> str:
        """The C string at an address."""
        found = b""
        while b"\0" not in found:
            at = address + len(found)
            piece = ctypes.create_string_buffer(_PAGE - at % _PAGE)  # a read must not run into what is not mapped
            count = self._read(at, piece)
            found += piece.raw[:count]
        return os.fsdecode(found[: found.index(b"\0")])

    def _read(self, address: int, into: "ctypes.Array[ctypes.c_char]") -> int:
        ours = struct.pack("QQ", ctypes.addressof(into), len(into))
        theirs = struct.pack("QQ", address, len(into))
        done: int = _LIBC.process_vm_readv(self.thread, ours, 1, theirs, 1, 0)
        if done <= 0:
            raise OSError(ctypes.get_errno() or errno.EFAULT, "the caller has no such memory")
        return done

    def number(self, value: int) -> int:
        """A register as a signed 32-bit number: a descriptor."""
        value &= 0xFFFFFFFF
        return value - (1 << 32) if value >> 31 else value

    def opened(self, descriptor: int) -> str:
        """The path that a descriptor of it was opened by; of a file that is gone, the path it had."""
        path = os.readlink(f"/proc/{self.thread}/fd/{self.number(descriptor)}")
        return path.removesuffix(" (deleted)")

    def mapped(self, address: int) -> tuple[str, ...]:
        """The path of the file that is mapped at an address; none if there is no file."""
        with open(f"/proc/{self.thread}/maps") as maps:
            for line in maps:
                where, *_, path = line.rstrip("\n").split(maxsplit=5)
                first, last = (int(end, 16) for end in where.split("-"))
                if first <= address < last and path.startswith("/"):
                    return (path.removesuffix(" (deleted)"),)
        return ()

    def named(self, arguments: Arguments, directory: int | None, path: int, follow: bool = False) -> Place:
        """Where the path of a call leads; `directory` and `path` are numbers of arguments."""
        return self.place(AT_FDCWD if directory is None else arguments[directory], arguments[path], follow)

    def place(self, directory: int, address: int, follow: bool = False) -> Place:
        """Where a path leads; with `follow`, where it leads to if its last name is a link."""
        path = self.string(address)
        if not path:
            raise OSError(errno.ENOENT, "an empty path")
        if not path.startswith("/"):
            base = self.number(directory)
            at = f"/proc/{self.thread}/" + ("cwd" if base == AT_FDCWD else f"fd/{base}")
            path = os.path.join(os.readlink(at), path)
        return self._ending(path, follow)

    def _ending(self, path: str, follow: bool) -> Place:
        if path.startswith("/proc/self/"):
            path = f"/proc/{self.thread}/" + path[len("/proc/self/") :]
        parent, name = os.path.split(path.rstrip("/") or "/")
        directory = os.path.realpath(parent)
        if name in ("", ".", ".."):
            return Place(os.path.realpath(path), "")
        if follow and os.path.islink(os.path.join(directory, name)) and not directory.startswith("/proc/"):
            return Place(*os.path.split(os.path.realpath(os.path.join(directory, name))))
        return Place(directory, name)

    @property
    def umask(self) -> int:
        """What it takes from the modes of new files."""
        with open(f"/proc/{self.thread}/status") as status:
            said = next((line.split()[1] for line in status if line.startswith("Umask")), None)
        if said is None:
            raise OSError(errno.ESRCH, "the caller is dead")
        return int(said, 8)

    @contextlib.contextmanager
    def descriptor(self, number: int) -> Iterator[int]:
        """Its open file as a descriptor of ours: the same position, the same flags."""
        ours: int = _LIBC.syscall(_PIDFD_GETFD, self._pidfd, self.number(number), 0)
        if ours < 0:
            raise OSError(ctypes.get_errno(), "the caller has no such descriptor")
        try:
            yield ours
        finally:
            os.close(ours)


@dataclass(frozen=True)
class Written:
    """What a write did: where, and which bytes; `is_synced` if it returned only when they were safe."""

    offset: int
    data: bytes
    is_synced: bool


def write(caller: Caller, descriptor: int, name: str, arguments: Arguments) -> Written:
    """`write`, `pwrite64`, `writev`, `pwritev`, `pwritev2` on a descriptor of ours."""
    data = _gathered(caller, arguments) if "v" in name.removesuffix("2") else caller.memory(arguments[1], arguments[2])
    at = None if name in ("write", "writev") else _offset(arguments[3])
    flags = arguments[5] if name == "pwritev2" else 0
    if at == -1 and name == "pwritev2":
        at = None
    count = os.write(descriptor, data) if at is None else os.pwritev(descriptor, [data], at, flags)
    opened = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    if at is None:
        end = os.lseek(descriptor, 0, os.SEEK_CUR)
    else:
        end = os.fstat(descriptor).st_size if opened & os.O_APPEND else at + count
    is_synced = bool(opened & os.O_DSYNC or flags & _RWF_SYNCS)
    return Written(end - count, bytes(memoryview(data)[:count]), is_synced)


def _gathered(caller: Caller, arguments: Arguments) -> mmap.mmap | bytes:
    count = arguments[2]
    vectors = array.array("Q", bytes(memoryview(caller.memory(arguments[1], 16 * count))))
    pieces = [bytes(memoryview(caller.memory(vectors[2 * i], vectors[2 * i + 1]))) for i in range(count)]
    joined = b"".join(pieces)
    if not joined:
        return b""
    copy = mmap.mmap(-1, len(joined))
    copy[:] = joined
    return copy


def _offset(register: int) -> int:
    return register - (1 << 64) if register >> 63 else register


def make_open(path: str, flags: int, mode: int, umask: int) -> int:
    """A descriptor of ours for the file, made with the caller's modes."""
    with _masked(umask):
        return os.open(path, flags & ~os.O_CLOEXEC, mode & 0o7777)


def make_directory(path: str, mode: int, umask: int) -> None:
    """`mkdir` with the caller's modes."""
    with _masked(umask):
        os.mkdir(path, mode & 0o7777)


@contextlib.contextmanager
def _masked(umask: int) -> Iterator[None]:
    before = os.umask(umask)
    try:
        yield
    finally:
        os.umask(before)


def remove(path: str, flags: int) -> None:
    """`unlinkat`."""
    if flags & _AT_REMOVEDIR:
        os.rmdir(path)
    else:
        os.unlink(path)


def rename(source: str, target: str, flags: int) -> None:
    """`renameat2`, exchanges and refusals to replace included."""
    if _LIBC.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


def link(caller: Caller, arguments: Arguments) -> tuple[os.stat_result, Place]:
    """`linkat`; what was linked, and its new name."""
    target = caller.place(arguments[2], arguments[3])
    flags = arguments[4]
    if flags & _AT_EMPTY_PATH and not caller.string(arguments[1]):
        source, follow = f"/proc/{caller.thread}/fd/{caller.number(arguments[0])}", _AT_SYMLINK_FOLLOW
    else:
        source, follow = caller.place(arguments[0], arguments[1]).path, flags & _AT_SYMLINK_FOLLOW
    if _LIBC.linkat(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target.path), follow):
        raise OSError(ctypes.get_errno(), "linkat")
    return os.lstat(target.path), target


def allocate(descriptor: int, arguments: Arguments) -> None:
    """`fallocate` in all its kinds."""
    _LIBC.fallocate64.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if _LIBC.fallocate64(descriptor, arguments[1], arguments[2], arguments[3]):
        raise OSError(ctypes.get_errno(), "fallocate")


def sync_all(name: str, descriptor: int | None) -> None:
    """`sync` or `syncfs`."""
    if name == "sync" or descriptor is None:
        os.sync()
    elif _LIBC.syncfs(descriptor):
        raise OSError(ctypes.get_errno(), "syncfs")


def is_regular(path: str) -> bool:
    """Whether a file of a disk stands there: no device, pipe or socket; a name without a file counts."""
    if path.startswith(("/proc/", "/sys/")):
        return False
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True


def follows(flags: int) -> bool:
    """Whether an open with these flags follows a link in the last place."""
    return not flags & os.O_NOFOLLOW and flags & (os.O_CREAT | os.O_EXCL) != os.O_CREAT | os.O_EXCL


def standing(place: Place) -> os.stat_result | None:
    """What stands there, links not followed; None for nothing."""
    try:
        return os.lstat(place.path)
    except FileNotFoundError:
        return None
