"""May this pickle be read?  To load one is to run its author's code.

Invariants: the question is asked of the descriptor that is then read, opened
once and without following a final symlink, so nothing can be swapped in
between (trust.same-file); and what is plain data is loaded without running any
pickled code (trust.least).

Owner is who the kernel says owns the file.  Whoever can write as this user
needs no checkpoint to run code as this user.
"""

import dataclasses
import errno
import io
import logging
import os
import pickle
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import EnumMeta
from pathlib import Path, PurePosixPath
from typing import Any

import torch

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_log = logging.getLogger("forge_ref")


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of a file that may be unpickled.

    `PermissionError` for a symlink, a file that is not a regular one, and a
    foreign owner (trust.foreign-owner); a warning when others may write to it.
    """
    try:
        # O_NONBLOCK: a pipe in the place of the file must not hang the resume.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise PermissionError(f"{path} is a symlink; pickles are read from real files only: copy it here") from None
        raise
    try:
        _check(path, os.fstat(descriptor))
        yield descriptor
    finally:
        os.close(descriptor)


def _check(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise PermissionError(f"{path} is not a regular file; it is not read as part of a checkpoint")
    if found.st_uid != os.geteuid():
        raise PermissionError(
            f"{path} is owned by uid {found.st_uid} and this process runs as uid {os.geteuid()}: "
            "loading it would run its owner's code. If you trust it, inspect it and chown or copy it as yourself"
        )
    if found.st_mode & _OTHERS_WRITE:
        _log.warning(
            "%s has mode %s: others may write to it, and loading it runs what they wrote; chmod go-w it",
            path,
            _mode(found),
        )


def read(path: Path) -> bytes:
    """All of a file that may be unpickled; the errors are those of `opened`."""
    with opened(path) as descriptor, open(descriptor, "rb", closefd=False) as file:
        return file.read()


def warn_of_open_dirs(checkpoint: Path) -> None:
    """Warn when others may swap files in the checkpoint's directory or its folder (trust.directory)."""
    for directory in (checkpoint, checkpoint.parent):
        found = os.stat(directory)
        if found.st_mode & _OTHERS_WRITE and not found.st_mode & stat.S_ISVTX:
            _log.warning(
                "%s has mode %s: others may put their own files into it, and loading those runs their code; "
                "chmod go-w it",
                directory,
                _mode(found),
            )


def _mode(found: os.stat_result) -> str:
    return oct(stat.S_IMODE(found.st_mode))


_RECORDS = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
_VALUES = {("torch", "Size"), ("torch.serialization", "_get_layout")}


class MarkerUnpickler(pickle.Unpickler):
    """Knows DCP's own record classes and the values in them, and nothing that could run anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "PosixPath":  # where it was written to; the module's name depends on Python's version
            return PurePosixPath
        found = getattr(sys.modules.get(module), name, None)
        is_record = module in _RECORDS and (dataclasses.is_dataclass(found) or isinstance(found, EnumMeta))
        if is_record or isinstance(found, torch.dtype) or (module, name) in _VALUES:
            return found
        raise pickle.UnpicklingError(f"{module}.{name} is not part of a plain marker")


def loads_marker(blob: bytes) -> Any:
    """The content of DCP's `.metadata`; full unpickling only where another writer's marker needs it (trust.least)."""
    try:
        return MarkerUnpickler(io.BytesIO(blob)).load()
    except pickle.UnpicklingError:
        return pickle.loads(blob)


def loads_torch(blob: bytes) -> Any:
    """The value of a `torch.save`; full unpickling only where the content needs it (trust.least)."""
    try:
        return torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return torch.load(io.BytesIO(blob), map_location="cpu", weights_only=False)
