"""The one door to files that a user named, or that lie in a folder that a user named.

Invariant: reading and writing come to an end, and an error names the file. A device or a pipe is neither read nor
written, and nobody waits for it. A file that is larger than any report is not read.
"""

import contextlib
import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, cast

_MOST_BYTES = 256 << 20
"""Many times the largest report."""


class Unwritten(OSError):
    """A file could not be written; `filename` is always its path."""

    def __str__(self) -> str:
        return f"{self.filename} can't be written: {self.strerror}"


def read_text(path: Path) -> str:
    """The text of a regular file; `OSError` if it is not one or is too large, `UnicodeDecodeError` if no text."""
    with _opened(path, os.O_RDONLY, "rb") as file:
        content = file.read(_MOST_BYTES + 1) if os.fstat(file.fileno()).st_size <= _MOST_BYTES else None
    if content is None or len(content) > _MOST_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {_MOST_BYTES >> 20} MiB", str(path))
    return content.decode("utf-8")


def read_json(path: Path) -> Any:
    """What a file of JSON holds; `OSError` as above, and `ValueError` if it is no JSON."""
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_text(path: Path, text: str) -> None:
    """Write a regular file, in folders that are made if need be; `Unwritten` if that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _opened(path, os.O_WRONLY | os.O_CREAT, "wb") as file:
            file.truncate()
            file.write(text.encode("utf-8", errors="backslashreplace"))
    except OSError as error:
        raise Unwritten(error.errno, error.strerror, str(path)) from None


def replace_text(path: Path, text: str) -> None:
    """As `write_text`; whoever reads it, even after a kill in between, finds the old text or the new one.

    A symbolic link stays; the file that it names is replaced.
    """
    real = Path(os.path.realpath(path))
    new = real.with_name(f".{real.name}.{os.getpid()}.new")
    try:
        if real.exists():
            _opened(real, os.O_RDONLY, "rb").close()  # what is not regular is not replaced either
        write_text(new, text)
        new.replace(real)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink()
        raise Unwritten(error.errno, error.strerror, str(path)) from None


def _opened(path: Path, flags: int, mode: str) -> BinaryIO:
    """A regular file, opened without waiting for anybody."""
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY, 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or a pipe that nobody reads
            raise _irregular(path) from None
        raise
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise (
            _irregular(path)
            if kind != stat.S_IFDIR
            else IsADirectoryError(errno.EISDIR, "it is a directory", str(path))
        )
    return cast(BinaryIO, open(descriptor, mode))


def _irregular(path: Path) -> OSError:
    return OSError(errno.EINVAL, "it is not a regular file", str(path))
