"""The kernel filter: hands every system call that changes a file to the suite.

Installed in a fresh worker before the manager runs, inherited by its threads
and children, and not removable.  The kernel parks each such call until the
holder of the listener answers; see the suite's `watch/listener.py` for the other
end.  Needs Linux 5.5 and no privilege (`PR_SET_NO_NEW_PRIVS`).

Opening for reading is handed over only on request: imports would pay for it.
So are calls that read or only look, and those that decide what a loss of power may
leave; the crash explorer asks for them.
Which calls there are, and which of them are refused, says `system_calls`.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import struct

from .system_calls import CALLS, CHANGES, LOOKS, READS, REFUSED, SENDS, STORES, WRITING, numbers

_ARCHITECTURES = {"x86_64": (0xC000003E, 317), "aarch64": (0xC00000B7, 277)}
"""machine -> (its audit number, its number of the seccomp call)"""

WATCHES = ("writes", "reads", "loads", "storing", "looks", "talks")
"""How much is handed over: `writes` is what changes files; `reads` also opening for reading; `loads` also looks, and
reading itself; `storing` is what changes, maps, syncs and closes files; `looks` also looks; `talks` also messages."""

_MORE = {
    "loads": (LOOKS, READS),
    "storing": (STORES,),
    "looks": (STORES, LOOKS),
    "talks": (STORES, LOOKS, SENDS),
}
"""Which kinds of calls are handed over beside those that change files."""

_ALLOW, _NOTIFY, _ERRNO = 0x7FFF0000, 0x7FC00000, 0x00050000
_LOAD, _JUMP_EQUAL, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_SET_FLAGS, _WAKE_HERE = 0x40082104, 1
_SET_MODE_FILTER, _NEW_LISTENER, _WAIT_KILLABLE, _NO_NEW_PRIVS = 1, 8, 32, 38
_MAP_ARGUMENTS = ((3, 1), (2, 2))  # flags: MAP_SHARED; protection: PROT_WRITE

Instruction = tuple[int, int, int, int]


def refused(machine: str) -> frozenset[int]:
    """Numbers of the calls that answer "not implemented"."""
    return frozenset(numbers(machine, REFUSED).values())


def watched(machine: str, watch: str) -> dict[str, int]:
    """Name -> number of the calls that are handed over."""
    found = numbers(machine, CHANGES, *_MORE.get(watch, ()))
    if watch == "looks":
        del found["close"]  # it stores only what was written, and a process that looks has written nothing yet
    return found


def program(machine: str, watch: str, channel: int = -1) -> list[Instruction]:
    """The filter as classic BPF over `struct seccomp_data` (number at 0, machine at 4, arguments from 16).

    What is sent over the descriptor `channel` is nobody's business.
    """
    reads = watch in ("reads", "loads", "looks", "talks")
    audit, _ = _ARCHITECTURES[machine]
    code: list[Instruction] = [(_LOAD, 0, 0, 4), (_JUMP_EQUAL, 1, 0, audit), (_RETURN, 0, 0, _ALLOW), (_LOAD, 0, 0, 0)]
    for number in refused(machine):
        code += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    for name, number in watched(machine, watch).items():
        call = CALLS[name]
        if name == "mmap":
            code += [(_JUMP_EQUAL, 0, 7, number)]
            for argument, bit in _MAP_ARGUMENTS:
                code += [(_LOAD, 0, 0, 16 + 8 * argument), (_JUMP_ANY_BIT, 1, 0, bit), (_RETURN, 0, 0, _ALLOW)]
            code += [(_RETURN, 0, 0, _NOTIFY)]
        elif call.kind == SENDS:
            code += [
                (_JUMP_EQUAL, 0, 4, number),
                (_LOAD, 0, 0, 16),
                (_JUMP_EQUAL, 0, 1, channel & 0xFFFFFFFF),
                (_RETURN, 0, 0, _ALLOW),
                (_RETURN, 0, 0, _NOTIFY),
            ]
        elif call.flags is None or reads:
            code += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _NOTIFY)]
        else:
            code += [
                (_JUMP_EQUAL, 0, 4, number),
                (_LOAD, 0, 0, 16 + 8 * call.flags),
                (_JUMP_ANY_BIT, 1, 0, WRITING),
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
