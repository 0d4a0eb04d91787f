"""One JSON object per line over a stream socket; descriptors may ride along.

Invariant: nothing but this class ever writes to the socket, so a manager that
prints, or whose C++ libraries do, cannot break the conversation: standard
output and error go to the worker's log instead.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Closed(Exception):
    """The other side is gone; nothing more will come."""


@contextmanager
def short(path: Path) -> Iterator[str]:
    """A name of this file that fits into the address of a socket, which takes 107 bytes."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


class Channel:
    """One end of a conversation; blocking, one message at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = b""
        self._descriptors: list[int] = []

    def fileno(self) -> int:
        """The descriptor, to wait on; a message may also be buffered already (`has_message`)."""
        return self._socket.fileno()

    @property
    def has_message(self) -> bool:
        """Whether `receive` would return without waiting."""
        return b"\n" in self._buffer

    def send(self, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        """Raises `Closed` when nobody listens any more."""
        data = json.dumps(message).encode() + b"\n"
        try:
            if descriptors:
                sent = socket.send_fds(self._socket, [data], list(descriptors))
                data = data[sent:]
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError, OSError) as error:
            raise Closed(str(error)) from error

    def receive(self, timeout_s: float | None = None) -> dict[str, Any]:
        """The next message; `TimeoutError` after `timeout_s`, `Closed` at the end."""
        self._socket.settimeout(timeout_s)
        try:
            while b"\n" not in self._buffer:
                try:
                    data, descriptors, _, _ = socket.recv_fds(self._socket, 1 << 16, 4)
                except ConnectionResetError as error:
                    raise Closed(str(error)) from error
                self._descriptors += descriptors
                if not data:
                    raise Closed("end of conversation")
                self._buffer += data
        finally:
            self._settle()
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _settle(self) -> None:
        if self._socket.fileno() >= 0:
            self._socket.settimeout(None)

    def take_descriptor(self) -> int:
        """The oldest descriptor that came along and was not taken yet; the caller closes it."""
        return self._descriptors.pop(0)

    def close(self) -> None:
        """May be called twice."""
        self._socket.close()
        for descriptor in self._descriptors:
            socket.close(descriptor)
        self._descriptors.clear()
