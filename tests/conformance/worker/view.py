"""Another view of the folder for one process: what a rank sees whose file system lags behind the others'.

The process gets a mount namespace of its own, in which another directory lies
over the folder; nobody else notices.  Threads that exist already stay in the
old one, so this comes before anything starts a thread.  Needs the right to
mount (root, or a container that allows it).
"""

import ctypes
import os

_NEW_NAMESPACE = 0x20000
_BIND, _RECURSIVE, _PRIVATE = 0x1000, 0x4000, 0x40000


def mount(instead: str, of: str) -> None:
    """Lay the directory `instead` over the directory `of`; `PermissionError` where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.unshare(_NEW_NAMESPACE), "unshare")
    _check(libc.mount(None, b"/", None, _RECURSIVE | _PRIVATE, None), "mount")
    _check(libc.mount(os.fsencode(instead), os.fsencode(of), None, _BIND, None), "mount")


def _check(result: int, call: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
