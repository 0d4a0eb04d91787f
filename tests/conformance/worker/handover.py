"""Hands this process's file operations over to whoever records it, in the way that was asked for.

`audit` announces from inside, `ptrace` lets a tracer attach, every other word
is how much the kernel filter watches.  One descriptor is handed over in each
case; see those modules for what is said through it.
"""

import ctypes
import os
import signal
import socket
from collections.abc import Callable

from . import audit, filter

_SET_PTRACER, _ANYBODY = 0x59616D61, -1
_SET_DEATH_SIGNAL = 1


def send_over(connection: socket.socket, descriptor: int) -> None:
    """Send a descriptor over a socket that carries nothing else."""
    socket.send_fds(connection, [b"."], [descriptor])


def hand_over(watch: str, channel: int, send: Callable[[int], None]) -> None:
    """Call `send`, which sends the descriptor over `channel`; when this returns, file operations are watched.

    `OSError` where the kernel or a container forbids it; then `send` was not called and nothing is watched.
    Where `send` fails the process ends, since nobody would answer its file operations.
    """
    if watch == "ptrace":
        _await_tracer(send)
        return
    # Until the descriptor has arrived, nobody but this process could answer its calls: it would wait for itself.
    _die_with_the_parent(signal.SIGKILL)
    descriptor = audit.install() if watch == "audit" else filter.install(watch, channel)
    try:
        send(descriptor)
    except BaseException:  # the suite ended before the parent's death could be told: not even `close` would be answered
        os._exit(1)
    os.close(descriptor)
    _die_with_the_parent(0)


def _die_with_the_parent(number: int) -> None:
    """Get this signal when the parent ends; 0 for none."""
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, ctypes.c_ulong(number), 0, 0, 0)


def _await_tracer(send: Callable[[int], None]) -> None:
    """Whoever gets the descriptor attaches, and closes it then."""
    ctypes.CDLL(None).prctl(_SET_PTRACER, ctypes.c_ulong(_ANYBODY), 0, 0, 0)  # fails where nothing has to be permitted
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            send(theirs.fileno())
        ours.recv(1)
