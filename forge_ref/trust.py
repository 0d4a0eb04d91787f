"""Which pickles may be read: loading one can run its author's code.

Invariants: owner and mode are those of the descriptor that is then read, so
nothing can be swapped in between (trust.same-file; `files` opens it); what is
plain data is loaded without running any pickled code (trust.least); and where
that does not suffice, the log says which file runs code, and for what.

Owner is who the kernel says owns the file.  Whoever can write as this user
needs no checkpoint to run code as this user.
"""

import dataclasses
import io
import os
import pickle
import pickletools
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import EnumMeta
from pathlib import Path, PurePosixPath
from typing import IO, Any

import torch

from forge_ref import archive, files
from forge_ref.messages import log as _log
from forge_ref.messages import printable

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@contextmanager
def opened(path: Path) -> Iterator[files.Opened]:
    """A file that may be unpickled.

    `PermissionError` for a symlink, a file that is not a regular one, and a
    foreign owner (trust.foreign-owner); a warning when others may write to it.
    """
    with files.opened(path) as file:
        _check(path, file.found)
        yield file


def _check(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        raise PermissionError(
            f"{printable(path)} is owned by uid {found.st_uid} and this process runs as uid {os.geteuid()}: "
            "loading it would run its owner's code. If you trust it, inspect it and chown or copy it as yourself"
        )
    if found.st_mode & _OTHERS_WRITE:
        _log.warning(
            "%s has mode %s: others may write to it, and loading it runs what they wrote; chmod go-w it",
            path,
            _mode(found),
        )


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
_OF_OLMO = ("olmo_core.distributed.checkpoint.filesystem", "_StorageInfo")
"""OLMo-core's record of where an item is stored.  It has the fields of DCP's own, which is loaded in its place."""
_VALUES = {("torch", "Size"), ("torch.serialization", "_get_layout")}


class _NotPlainError(pickle.UnpicklingError):
    """A pickle names a class or a function that is not plain data."""


class MarkerUnpickler(pickle.Unpickler):
    """Knows DCP's own record classes and the values in them, and nothing that could run anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "PosixPath":  # where it was written to; the module's name depends on Python's version
            return PurePosixPath
        if (module, name) == _OF_OLMO:
            module = _RECORDS[1]
        found = getattr(sys.modules.get(module), name, None)
        is_record = module in _RECORDS and (dataclasses.is_dataclass(found) or isinstance(found, EnumMeta))
        if is_record or isinstance(found, torch.dtype) or (module, name) in _VALUES:
            return found
        raise _NotPlainError(f"{module}.{name} is not part of a plain marker")


def loads_marker(stream: IO[bytes], path: Path) -> Any:
    """Return the content of `.metadata`; another writer's marker may need full unpickling (trust.least)."""
    try:
        return MarkerUnpickler(stream).load()
    except _NotPlainError as error:
        _tell_of_full_unpickling(path, str(error))
        stream.seek(0)
        return pickle.load(stream)


def loads_torch(blob: bytes, path: Path | str, is_sealed: bool = False) -> Any:
    """Return the value of a `torch.save`; full unpickling only if the content needs it (trust.least).

    `is_sealed`: a checksum that was recorded at the save covers it.
    `UnpicklingError` for a pickle that is cut off, or is not one; nothing of it runs.
    """
    try:
        return torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = _reason(error)
        if not _has_end(blob):
            raise pickle.UnpicklingError(reason) from None
        _tell_of_full_unpickling(path, reason, is_sealed)
        return torch.load(io.BytesIO(blob), map_location="cpu", weights_only=False)


def _reason(error: pickle.UnpicklingError) -> str:
    """Return the first sentence of why torch refused; it stands between two paragraphs of advice."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
    return text.partition(". ")[0].removesuffix(".")


def _has_end(blob: bytes) -> bool:
    """Return whether the pickle in an archive of `torch.save` can be followed to its end; nothing of it is run."""
    try:
        for _ in pickletools.genops(bytes(archive.checked_records(blob, Path())["data.pkl"])):
            pass
    except Exception:  # of an archive that is none, or of a pickle that is none
        return False
    return True


def _tell_of_full_unpickling(path: Path | str, reason: str, is_sealed: bool = False) -> None:
    saved = "; its checksum matches the save, so the saved values require it" if is_sealed else ""
    _log.warning("%s is unpickled in full, which may run code: %s%s", path, reason, saved)
