"""Runs the process as another user, without root's file permissions.

The process keeps root's capabilities and gives away its user id alone.  So it
still finds whatever the suite's own user finds, the manager's environment and
folders below private ones; but who it is, and whose its files are, is another.
Threads that exist already would stay who they are, so this comes before
anything starts a thread.
"""

import ctypes
import os

_SET_SECUREBITS, _NO_SETUID_FIXUP = 28, 1 << 2
_CAPABILITY_VERSION = 0x20080522
_AGAINST_PERMISSIONS = 1 << 1 | 1 << 2
"""The bits of CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, which let root read and write whatever a file's mode says."""


def become(uid: int) -> None:
    """Be this user from here on: real, effective and saved; `OSError` where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_SECUREBITS, _NO_SETUID_FIXUP, 0, 0, 0):
        raise _failed("prctl")
    os.setresuid(uid, uid, uid)


def renounce() -> None:
    """Let permissions of files count for this process from here on, root's among them; `OSError` if that fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets):
        raise _failed("capget")
    for index in (0, 1):  # what is in effect, and what may come into effect
        sets[index] &= ~_AGAINST_PERMISSIONS
    if libc.capset(header, sets):
        raise _failed("capset")


def _failed(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")
