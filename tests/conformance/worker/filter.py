"""The kernel filter: hands every system call that changes a file to the suite.

Installed in a fresh worker before the manager runs, inherited by its threads
and children, and not removable.  The kernel parks each such call until the
holder of the listener answers; see the suite's `harness/gate.py` for the other
end.  Needs Linux 5.5 and no privilege (`PR_SET_NO_NEW_PRIVS`).

Opening for reading is handed over only on request: imports would pay for it.
So are calls that only look, and those that decide what a loss of power may
leave; the crash explorer asks for them.
Copying inside the kernel (`sendfile` and its kin) and io_uring would change
files unseen, so they answer "not implemented", and programs fall back to
plain writes.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import struct

_ARCHITECTURES = {"x86_64": (0xC000003E, 317), "aarch64": (0xC00000B7, 277)}
"""machine -> (its audit number, its number of the seccomp call)"""

_NUMBERS = {
    "x86_64": {
        "write": 1, "open": 2, "pwrite64": 18, "writev": 20, "fsync": 74, "fdatasync": 75, "truncate": 76,
        "ftruncate": 77, "rename": 82, "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86, "unlink": 87,
        "symlink": 88, "openat": 257, "mkdirat": 258, "unlinkat": 263, "renameat": 264, "linkat": 265,
        "symlinkat": 266, "fallocate": 285, "pwritev": 296, "renameat2": 316, "pwritev2": 328,
    },
    "aarch64": {
        "mkdirat": 34, "unlinkat": 35, "symlinkat": 36, "linkat": 37, "renameat": 38, "truncate": 45,
        "ftruncate": 46, "fallocate": 47, "openat": 56, "write": 64, "writev": 66, "pwrite64": 68,
        "pwritev": 70, "fsync": 82, "fdatasync": 83, "renameat2": 276, "pwritev2": 287,
    },
}  # fmt: skip

_REFUSED = {
    "x86_64": {"sendfile": 40, "splice": 275, "copy_file_range": 326, "io_uring_setup": 425, "openat2": 437},
    "aarch64": {"sendfile": 71, "splice": 76, "copy_file_range": 285, "io_uring_setup": 425, "openat2": 437},
}

_STORING = {
    "x86_64": {"close": 3, "mmap": 9, "msync": 26, "sync": 162, "syncfs": 306},
    "aarch64": {"close": 57, "sync": 81, "mmap": 222, "msync": 227, "syncfs": 267},
}
"""What brings data to storage beside `fsync`, and shared writable maps, whose changes are seen late."""

_LOOKS = {
    "x86_64": {
        "stat": 4, "lstat": 6, "access": 21, "getdents": 78, "chdir": 80, "readlink": 89, "getdents64": 217,
        "newfstatat": 262, "readlinkat": 267, "faccessat": 269, "statx": 332, "faccessat2": 439,
    },
    "aarch64": {
        "faccessat": 48, "chdir": 49, "getdents64": 61, "readlinkat": 78, "newfstatat": 79, "statx": 291,
        "faccessat2": 439,
    },
}  # fmt: skip
"""What tells a process of a file without opening it."""

_SENDS = {
    "x86_64": {"sendto": 44, "sendmsg": 46, "sendmmsg": 307},
    "aarch64": {"sendto": 206, "sendmsg": 211, "sendmmsg": 269},
}
"""What, beside writing, tells another process something."""

WATCHES = ("writes", "reads", "storing", "looks", "talks")
"""How much is handed over: what changes files; and opening for reading; or what stores; or all of it and looks; or
that and messages."""

_ALLOW, _NOTIFY, _ERRNO = 0x7FFF0000, 0x7FC00000, 0x00050000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_LOAD, _JUMP_EQUAL, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_SET_FLAGS, _WAKE_HERE = 0x40082104, 1
_SET_MODE_FILTER, _NEW_LISTENER, _WAIT_KILLABLE, _NO_NEW_PRIVS = 1, 8, 32, 38
_MAP_ARGUMENTS = ((3, 1), (2, 2))  # flags: MAP_SHARED; protection: PROT_WRITE

Instruction = tuple[int, int, int, int]


def names() -> dict[int, str]:
    """System-call number -> name, of the calls that the filter hands over on this machine."""
    machine = platform.machine()
    tables = (_NUMBERS, _STORING, _LOOKS, _SENDS)
    return {number: name for table in tables for name, number in table.get(machine, {}).items()}


def refused(machine: str) -> frozenset[int]:
    """Numbers of the calls that answer "not implemented"."""
    return frozenset(_REFUSED[machine].values())


def watched(machine: str, watch: str) -> dict[str, int]:
    """Name -> number of the calls that are handed over."""
    more = {"storing": (_STORING,), "looks": (_STORING, _LOOKS), "talks": (_STORING, _LOOKS, _SENDS)}.get(watch, ())
    found = dict(_NUMBERS[machine])
    for table in more:
        found |= table[machine]
    if watch == "looks":
        del found["close"]  # it stores only what was written, and who looks has written nothing yet
    return found


def program(machine: str, watch: str, channel: int = -1) -> list[Instruction]:
    """The filter as classic BPF over `struct seccomp_data` (number at 0, machine at 4, arguments from 16).

    What is sent over the descriptor `channel` is nobody's business.
    """
    reads = watch in ("reads", "looks", "talks")
    audit, _ = _ARCHITECTURES[machine]
    code: list[Instruction] = [(_LOAD, 0, 0, 4), (_JUMP_EQUAL, 1, 0, audit), (_RETURN, 0, 0, _ALLOW), (_LOAD, 0, 0, 0)]
    for number in refused(machine):
        code += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    for name, number in watched(machine, watch).items():
        flags_argument = {"open": 1, "openat": 2}.get(name)
        if name == "mmap":
            code += [(_JUMP_EQUAL, 0, 7, number)]
            for argument, bit in _MAP_ARGUMENTS:
                code += [(_LOAD, 0, 0, 16 + 8 * argument), (_JUMP_ANY_BIT, 1, 0, bit), (_RETURN, 0, 0, _ALLOW)]
            code += [(_RETURN, 0, 0, _NOTIFY)]
        elif name in _SENDS[machine]:
            code += [
                (_JUMP_EQUAL, 0, 4, number),
                (_LOAD, 0, 0, 16),
                (_JUMP_EQUAL, 0, 1, channel & 0xFFFFFFFF),
                (_RETURN, 0, 0, _ALLOW),
                (_RETURN, 0, 0, _NOTIFY),
            ]
        elif flags_argument is None or reads:
            code += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _NOTIFY)]
        else:
            code += [
                (_JUMP_EQUAL, 0, 4, number),
                (_LOAD, 0, 0, 16 + 8 * flags_argument),
                (_JUMP_ANY_BIT, 1, 0, _WRITING),
                (_RETURN, 0, 0, _ALLOW),
                (_RETURN, 0, 0, _NOTIFY),
            ]
    return [*code, (_RETURN, 0, 0, _ALLOW)]


def install(watch: str = "writes", channel: int = -1) -> int:
    """Filter the calling thread and all that it starts; the listener's descriptor, which the caller sends away.

    It may do that over `channel`, whatever is watched.

    A call that was handed over waits for its answer even if a signal comes,
    where the kernel can do that (5.19): who answers may have made it already.
    Who answers is woken on the caller's own core (6.6), which takes a third of the time.

    `OSError` where the kernel or a container forbids it; then nothing is filtered.
    """
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no system-call table for {machine}; known are {', '.join(_ARCHITECTURES)}")
    libc = ctypes.CDLL(None, use_errno=True)
    instructions = program(machine, watch, channel)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *i) for i in instructions))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(instructions), ctypes.addressof(code)))
    libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    listener = -1
    for flags in (_NEW_LISTENER | _WAIT_KILLABLE, _NEW_LISTENER):
        if listener < 0:
            listener = libc.syscall(_ARCHITECTURES[machine][1], _SET_MODE_FILTER, flags, header)
    if listener < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"the kernel does not let this process filter its system calls: {os.strerror(number)}")
    with contextlib.suppress(OSError):  # an older kernel wakes it on any core
        fcntl.ioctl(listener, _SET_FLAGS, _WAKE_HERE)
    return listener
