"""What the suite needs of its own machine: /proc, room for checkpoints, large enough files, enough descriptors.

A manager that fails for want of these has shown nothing, so this is looked at
before a run, and again whenever something has failed.
"""

import contextlib
import os
import resource
import shutil
import tempfile
from pathlib import Path

_ROOM_BYTES = 16 << 20
"""What a few checkpoints of the suite's small models take, several times over."""
_HARDLY_ANY_BYTES = 1 << 20
_DESCRIPTORS = 256


class MachineLacks(Exception):
    """Nothing can be judged here; the text says what is missing and what to do."""


def check(directory: str | Path | None = None) -> None:
    """`MachineLacks` if checkpoints can't be written to this directory, or to that for temporary files."""
    if not os.path.exists("/proc/self/status"):
        raise MachineLacks("There is no /proc, where the suite sees what a process does: mount it (mount -t proc).")
    try:
        place = tempfile.gettempdir() if directory is None else str(directory)
        with tempfile.NamedTemporaryFile(prefix=".forge-room-", dir=place) as probe:
            os.posix_fallocate(probe.fileno(), 0, _ROOM_BYTES)
    except OSError as error:
        raise MachineLacks(_said(directory, error)) from None
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < _DESCRIPTORS:
        raise MachineLacks(
            f"A process may have {most} open files here, and {_DESCRIPTORS} are needed: raise the limit (ulimit -n)."
        )


def _said(directory: str | Path | None, error: OSError) -> str:
    place = directory or os.environ.get("TMPDIR") or "the directory for temporary files"
    most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = "" if most == resource.RLIM_INFINITY else f" (the limit for a file is {most:,} bytes, see ulimit -f)"
    return (
        f"A file of {_ROOM_BYTES >> 20} MiB can't be written in {place}: {error.strerror or error}{limit}. Make room "
        "there, or let TMPDIR name another place."
    )


def memory_kills() -> int:
    """How many processes the kernel has killed for want of memory so far; 0 where it does not say."""
    with contextlib.suppress(OSError):
        counts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
        return int(counts.get("oom_kill", 0))
    return 0


def disk_is_full(folder: Path) -> str:
    """A sentence for an error whose cause may be that the folder's disk is full; "" where it is not."""
    free = shutil.disk_usage(folder).free
    if free > _HARDLY_ANY_BYTES:
        return ""
    return (
        f" The disk of {folder} itself is full, {free:,} bytes are left: make room there, or let TMPDIR name another "
        "place."
    )
