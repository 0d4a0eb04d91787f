"""The one way to open a file of a checkpoint, whatever has its name.

Invariants: a descriptor is of a regular file, opened once and without following
a final symlink; opening never waits, so a pipe or a device can't hang a resume;
and no more is read than the caller believes the file to hold, which is compared
with the file's size before any memory is taken.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from forge_ref.errors import DamagedError
from forge_ref.messages import printable


@dataclass(frozen=True)
class Opened:
    """A file that may be read; `found` is what the kernel says of this descriptor."""

    path: Path
    descriptor: int
    found: os.stat_result

    def content(self, at_most: int | None = None, saved: int | None = None) -> bytes:
        """Return all of the file; `DamagedError`, before anything is read, if it is larger than `at_most` bytes.

        `saved` is the size that it had when it was saved; a larger file is refused as well.
        """
        limit = at_most if saved is None else saved
        if limit is not None and self.found.st_size > limit:
            allowed = f"at most {limit:,} belong there" if saved is None else f"{limit:,} were saved"
            raise DamagedError(
                f"{self.path} is damaged, or of another save: it has {self.found.st_size:,} bytes, and {allowed}; "
                "resume from another checkpoint"
            )
        content = bytearray()
        while part := os.pread(self.descriptor, self.found.st_size - len(content), len(content)):
            content += part
        return bytes(content)


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """Open for reading; `PermissionError` for a symlink, and for whatever is not a regular file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise PermissionError(
                f"{printable(path)} is a symlink; a checkpoint is read from real files only: copy the file here"
            ) from None
        if error.errno == errno.ENXIO:  # a socket
            raise _not_regular(path) from None
        raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise _not_regular(path)
        yield Opened(path, descriptor, found)
    finally:
        os.close(descriptor)


def _not_regular(path: Path) -> PermissionError:
    return PermissionError(f"{printable(path)} is not a regular file; it is not read as part of a checkpoint")
