"""Hands this process's file operations over to whoever records it, in the way that was asked for.

`audit` announces from inside, `ptrace` lets a tracer attach, every other word
is how much the kernel filter watches.  One descriptor is handed over in each
case; see those modules for what is said through it.
"""

import ctypes
import os
import socket
from collections.abc import Callable

from . import audit, filter

_SET_PTRACER, _ANYBODY = 0x59616D61, -1


def hand_over(watch: str, channel: int, send: Callable[[int], None]) -> None:
    """Call `send`, which sends the descriptor over `channel`; when this returns, file operations are watched.

    `OSError` where the kernel or a container forbids it; then `send` was not called and nothing is watched.
    """
    if watch == "ptrace":
        _await_tracer(send)
        return
    descriptor = audit.install() if watch == "audit" else filter.install(watch, channel)
    try:
        send(descriptor)
    finally:
        os.close(descriptor)


def _await_tracer(send: Callable[[int], None]) -> None:
    """Whoever gets the descriptor attaches, and closes it then."""
    ctypes.CDLL(None).prctl(_SET_PTRACER, ctypes.c_ulong(_ANYBODY), 0, 0, 0)  # fails where nothing has to be permitted
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            send(theirs.fileno())
        ours.recv(1)
