"""A life of another user: what befalls a plain user's run, where the suite itself is root.

The process keeps root's capabilities and gives away its user id alone.  So it
still finds whatever the suite's own user finds, the manager's environment and
folders below private ones; but who it is, and whose its files are, is another.
Threads that exist already would stay who they are, so this comes before
anything starts a thread.
"""

import ctypes
import os

_SET_SECUREBITS, _NO_SETUID_FIXUP = 28, 1 << 2


def become(uid: int) -> None:
    """Be this user from here on: real, effective and saved; `OSError` where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_SECUREBITS, _NO_SETUID_FIXUP, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl: {os.strerror(number)}")
    os.setresuid(uid, uid, uid)
