"""Announces what Python itself does to files, from inside the process: for kernels that let nobody watch from outside.

Python's audit hooks are told of each open, rename, deletion and so on before
it happens.  Each one that could change a file is announced, and waits for the
answer: go on, or fail with an errno.  So the order is known and an operation
can be failed or be the last, as with the kernel filter.

Nobody is told of what C++, Rust and child programs do, of what is written to an
open file, and of syncs.  Whoever records through this has to look at the folder
for that, and can't know when it happened.

An announcement carries a socket of its own for the answer, so that threads and
forked processes need no lock.  A hook can't be removed; it ends with the process.
"""

import json
import os
import socket
import sys
import threading
from typing import Any

from .system_calls import WRITING

_PATHS: dict[str, tuple[tuple[int, int | None], ...]] = {
    "open": ((0, None),), "os.mkdir": ((0, 2),), "os.rmdir": ((0, 1),), "os.remove": ((0, 1),),
    "os.rename": ((0, 2), (1, 3)), "os.link": ((1, 3),), "os.symlink": ((1, 2),), "os.truncate": ((0, None),),
}  # fmt: skip
"""Event -> its arguments that hold a path to change, each with the argument of the directory it starts from."""
_CALLS = {
    "open": "openat", "os.mkdir": "mkdirat", "os.rmdir": "unlinkat", "os.remove": "unlinkat",
    "os.rename": "renameat2", "os.link": "linkat", "os.symlink": "symlinkat", "os.truncate": "truncate",
}  # fmt: skip
"""Event -> the system call that it is about to make."""


def install() -> int:
    """Announce from now on; the descriptor of the other end, which the caller sends away and closes."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    busy = threading.local()

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _PATHS or getattr(busy, "is_announcing", False):
            return
        paths = _changed(event, arguments)
        if paths:
            busy.is_announcing = True
            try:
                _announce(ours, event, paths)
            finally:
                busy.is_announcing = False

    sys.addaudithook(on_event)
    return theirs.detach()


def _changed(event: str, arguments: tuple[Any, ...]) -> list[str]:
    """Absolute paths that are about to change; none where nothing is, or nobody knows which."""
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
        return []
    found = []
    for path, directory in _PATHS[event]:
        absolute = _absolute(arguments[path], -1 if directory is None else arguments[directory])
        if absolute is None:
            return []
        found.append(absolute)
    return found


def _absolute(path: Any, directory: Any) -> str | None:
    try:
        if isinstance(path, int):
            return os.readlink(f"/proc/self/fd/{path}")
        base = os.readlink(f"/proc/self/fd/{directory}") if isinstance(directory, int) and directory >= 0 else ""
        return os.path.abspath(os.path.join(base, os.fsdecode(path)))
    except (OSError, TypeError, ValueError):  # no such descriptor, or no path: the call will fail as well
        return None


def _announce(connection: socket.socket, event: str, paths: list[str]) -> None:
    """Return when the operation may happen; `OSError` with the errno that it is to fail with."""
    about = {"pid": os.getpid(), "thread": threading.get_native_id(), "name": _CALLS[event], "paths": paths}
    error = _answer(connection, json.dumps(about).encode())
    if error:
        raise OSError(error, os.strerror(error), paths[0])


def _answer(connection: socket.socket, message: bytes) -> int:
    """What is answered; 0 where nobody is left to answer."""
    ours, theirs = socket.socketpair()
    with ours:
        try:
            with theirs:
                socket.send_fds(connection, [message], [theirs.fileno()])
            return int(ours.recv(16) or b"0")
        except OSError:
            return 0
