"""Writes whole pages to storage in few large pieces, around the page cache where the file system allows it.

Direct writes take far less processor time than buffered ones, and leave the
cache to training.  Where they are refused (some network file systems, sectors
larger than a page) the same bytes are written the buffered way.
"""

import errno
import fcntl
import mmap
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

PAGE = 4096
_CHUNK = 16 << 20
_REFUSED = (errno.EINVAL, errno.EOPNOTSUPP)


def pages(size: int) -> mmap.mmap:
    """Return page-aligned memory of whole pages, huge ones where the system has them; `MemoryError` if it has none."""
    try:
        memory = mmap.mmap(-1, max(up(size), PAGE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(
            f"the system has no {size:,} bytes for a copy of what this rank saves ({error}); nothing was saved; "
            "let more ranks share the state, or leave more host memory free"
        ) from error
    with suppress(OSError):  # the kernel has none
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def up(size: int, to: int = PAGE) -> int:
    """Return the next multiple of `to`."""
    return -(-size // to) * to


def write(path: Path, parts: Iterable[memoryview]) -> None:
    """Write a new file of these parts, each of whole pages; it is on storage when this returns."""
    descriptor = _open(path)
    try:
        offset = 0
        for part in parts:
            for start in range(0, len(part), _CHUNK):
                _write_all(descriptor, part[start : start + _CHUNK], offset + start)
            offset += len(part)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_DIRECT, 0o666)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
    return os.open(path, flags, 0o666)


def _write_all(descriptor: int, chunk: memoryview, offset: int) -> None:
    done = 0
    while done < len(chunk):
        try:
            done += os.pwrite(descriptor, chunk[done:], offset + done)
        except OSError as error:
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            if error.errno not in _REFUSED or not flags & os.O_DIRECT:
                raise
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
