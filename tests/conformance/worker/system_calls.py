"""The system calls that the suite watches: their numbers, what each does, and which arguments name files.

This is the only such table.  The kernel filter takes numbers and kinds from it,
the gate and the recorders take paths and flags.

Calls that copy inside the kernel (`sendfile` and its kin), io_uring and
`openat2` would change files unseen.  They are refused, and programs fall back
to plain writes.
"""

import os
import platform
from dataclasses import KW_ONLY, dataclass

CHANGES, STORES, LOOKS, READS, SENDS = "changes", "stores", "looks", "reads", "sends"
REFUSED = "refused"
"""Kinds of calls.

`changes`: may change a file or directory, or brings it to storage.  `stores`: brings all to storage, maps a file, or
ends its use.  `looks`: only queries.  `reads`: reads data from an open file.
`sends`: sends a message to another process.  `refused`: returns ENOSYS in a watched process.
"""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
"""Flags of an open that may change a file."""
AT_FDCWD = -100

Argument = int
Paths = tuple[tuple[Argument | None, Argument], ...]
"""For each path of a call: the argument with the directory's descriptor (None: the working directory), and its own."""


@dataclass(frozen=True)
class SystemCall:
    """One call, as every machine has it."""

    name: str
    kind: str
    x86_64: int
    aarch64: int | None = None
    """None where the machine lacks the call."""
    paths: Paths = ()
    """Empty for a call that names its file by the descriptor in argument 0."""
    flags: Argument | None = None
    """The argument with the flags of an open."""
    _: KW_ONLY
    takes_room: bool = False
    """Whether it fails when the disk is full."""

    def number(self, machine: str) -> int | None:
        """The call's number; None where the machine lacks it."""
        return {"x86_64": self.x86_64, "aarch64": self.aarch64}.get(machine)

    def may_change(self, arguments: tuple[int, ...]) -> bool:
        """Whether the call may change a file or a directory; false for an open that only reads."""
        return self.kind == CHANGES and (self.flags is None or bool(arguments[self.flags] & WRITING))


_PLAIN: Paths = ((None, 0),)
_PLAIN_PAIR: Paths = ((None, 0), (None, 1))
_AT: Paths = ((0, 1),)
_AT_PAIR: Paths = ((0, 1), (2, 3))

CALLS: dict[str, SystemCall] = {
    call.name: call
    for call in (
        SystemCall("write", CHANGES, 1, 64, takes_room=True),
        SystemCall("pwrite64", CHANGES, 18, 68, takes_room=True),
        SystemCall("writev", CHANGES, 20, 66, takes_room=True),
        SystemCall("pwritev", CHANGES, 296, 70, takes_room=True),
        SystemCall("pwritev2", CHANGES, 328, 287, takes_room=True),
        SystemCall("ftruncate", CHANGES, 77, 46),
        SystemCall("truncate", CHANGES, 76, 45, _PLAIN),
        SystemCall("fallocate", CHANGES, 285, 47, takes_room=True),
        SystemCall("open", CHANGES, 2, None, _PLAIN, 1, takes_room=True),
        SystemCall("openat", CHANGES, 257, 56, _AT, 2, takes_room=True),
        SystemCall("creat", CHANGES, 85, None, _PLAIN, takes_room=True),
        SystemCall("mkdir", CHANGES, 83, None, _PLAIN, takes_room=True),
        SystemCall("mkdirat", CHANGES, 258, 34, _AT, takes_room=True),
        SystemCall("rmdir", CHANGES, 84, None, _PLAIN),
        SystemCall("unlink", CHANGES, 87, None, _PLAIN),
        SystemCall("unlinkat", CHANGES, 263, 35, _AT),
        SystemCall("rename", CHANGES, 82, None, _PLAIN_PAIR),
        SystemCall("renameat", CHANGES, 264, 38, _AT_PAIR),
        SystemCall("renameat2", CHANGES, 316, 276, _AT_PAIR),
        SystemCall("link", CHANGES, 86, None, _PLAIN_PAIR, takes_room=True),
        SystemCall("linkat", CHANGES, 265, 37, _AT_PAIR, takes_room=True),
        SystemCall("symlink", CHANGES, 88, None, ((None, 1),), takes_room=True),
        SystemCall("symlinkat", CHANGES, 266, 36, ((1, 2),), takes_room=True),
        SystemCall("fsync", CHANGES, 74, 82),
        SystemCall("fdatasync", CHANGES, 75, 83),
        SystemCall("close", STORES, 3, 57),
        SystemCall("mmap", STORES, 9, 222),
        SystemCall("msync", STORES, 26, 227),
        SystemCall("sync", STORES, 162, 81),
        SystemCall("syncfs", STORES, 306, 267),
        SystemCall("stat", LOOKS, 4, None, _PLAIN),
        SystemCall("lstat", LOOKS, 6, None, _PLAIN),
        SystemCall("newfstatat", LOOKS, 262, 79, _AT),
        SystemCall("statx", LOOKS, 332, 291, _AT),
        SystemCall("access", LOOKS, 21, None, _PLAIN),
        SystemCall("faccessat", LOOKS, 269, 48, _AT),
        SystemCall("faccessat2", LOOKS, 439, 439, _AT),
        SystemCall("readlink", LOOKS, 89, None, _PLAIN),
        SystemCall("readlinkat", LOOKS, 267, 78, _AT),
        SystemCall("getdents", LOOKS, 78, None),
        SystemCall("getdents64", LOOKS, 217, 61),
        SystemCall("chdir", LOOKS, 80, 49, _PLAIN),
        SystemCall("read", READS, 0, 63),
        SystemCall("pread64", READS, 17, 67),
        SystemCall("readv", READS, 19, 65),
        SystemCall("preadv", READS, 295, 69),
        SystemCall("preadv2", READS, 327, 286),
        SystemCall("sendto", SENDS, 44, 206),
        SystemCall("sendmsg", SENDS, 46, 211),
        SystemCall("sendmmsg", SENDS, 307, 269),
        SystemCall("sendfile", REFUSED, 40, 71),
        SystemCall("splice", REFUSED, 275, 76),
        SystemCall("copy_file_range", REFUSED, 326, 285),
        SystemCall("io_uring_setup", REFUSED, 425, 425),
        SystemCall("openat2", REFUSED, 437, 437),
    )
}
"""Every watched call under the kernel's name for it."""

WRITES = ("write", "pwrite64", "writev", "pwritev", "pwritev2")
"""The calls that write data to an open file."""
REMOVES = ("unlink", "unlinkat", "rmdir", "rename", "renameat", "renameat2")
"""The calls after which a name is no longer there."""


def numbers(machine: str, *kinds: str) -> dict[str, int]:
    """Name -> number of the calls of these kinds that a machine has."""
    found = {call.name: call.number(machine) for call in CALLS.values() if call.kind in kinds}
    return {name: number for name, number in found.items() if number is not None}


def names() -> dict[int, str]:
    """Number -> name on this machine, of all calls that can be handed over to a supervisor."""
    return {number: name for name, number in numbers(platform.machine(), CHANGES, STORES, LOOKS, READS, SENDS).items()}
