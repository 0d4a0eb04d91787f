"""The other end of the kernel filter: receives each parked system call, and answers it.

Invariants: one thread receives, in the order in which the kernel hands calls
over; a call waits until it is answered; an answer to a process that has died is
dropped.  `serve` returns when the last filtered process has ended.

The structures are those of `seccomp_unotify(2)`.
"""

import contextlib
import fcntl
import os
import select
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from forge_conformance.worker import system_calls

_RECEIVE, _RESPOND, _ADD_DESCRIPTOR = 0xC0502100, 0xC0182101, 0x40182103
_NOTIFICATION = struct.Struct("QIIiIQ6Q")
_RESPONSE = struct.Struct("QqiI")
_ADDED = struct.Struct("QIIII")
_CONTINUE, _ADD_AND_ANSWER = 1, 2

Arguments = tuple[int, ...]


class Supervisor(Protocol):
    """Whoever answers for a process's file operations."""

    def open(self) -> None:
        """Let everything go, now and from now on."""

    def end(self) -> None:
        """Return when the last operation of the dead process was answered."""

    def held_threads(self) -> frozenset[int]:
        """The kernel's numbers of the threads whose operation waits until it is let go."""

    @property
    def operations_done(self) -> int:
        """How many operations it has looked at so far; a process of which this grows has not come to a stop."""


@dataclass(frozen=True)
class ParkedCall:
    """A system call that waits for its answer."""

    identity: int
    thread: int
    name: str
    arguments: Arguments


class Listener:
    """The descriptor that a filtered process has handed over; closed when `serve` returns, or by `close`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._names = system_calls.names()

    def serve(self, takes: Callable[[ParkedCall], None]) -> None:
        """Give each call to `takes`, until no filtered process is left."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        try:
            while True:
                for _, event in poll.poll():
                    if event & select.POLLIN:
                        self._receive(takes)
                    elif event & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
                        return
        finally:
            self.close()

    def _receive(self, takes: Callable[[ParkedCall], None]) -> None:
        buffer = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self._descriptor, _RECEIVE, buffer)
        except OSError:  # the caller was killed between the poll and here
            return
        identity, thread, _, number, _, _, *arguments = _NOTIFICATION.unpack(buffer)
        takes(ParkedCall(identity, thread, self._names[number], tuple(arguments)))

    def let_go(self, identity: int) -> None:
        """The caller makes the call itself, now."""
        self._respond(_RESPONSE.pack(identity, 0, 0, _CONTINUE))

    def answer(self, identity: int, value: int, error: int = 0) -> None:
        """The call returns this value, or fails with this errno, and is not made."""
        self._respond(_RESPONSE.pack(identity, value, -error, 0))

    def _respond(self, response: bytes) -> None:
        with contextlib.suppress(OSError):  # the caller may be dead
            fcntl.ioctl(self._descriptor, _RESPOND, response)

    def answer_with(self, identity: int, descriptor: int, flags: int) -> None:
        """The call returns a copy of this descriptor of ours; `flags` are those of the copy."""
        added = _ADDED.pack(identity, _ADD_AND_ANSWER, descriptor, 0, flags)
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # the caller is dead, its file is there
            fcntl.ioctl(self._descriptor, _ADD_DESCRIPTOR, added)

    def close(self) -> None:
        """Give the descriptor up; whoever waits at its other end goes on."""
        os.close(self._descriptor)
