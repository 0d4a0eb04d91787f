"""Archives of `torch.save`: made, checked against their checksums, and a tensor taken out of one without a copy.

Such an archive is a zip file whose records are not compressed: `data.pkl`
says what the value looks like, `data/0` and so on are the bytes of its
tensors.  Torch writes a checksum with each record and never looks at it
again; here every record is checked before anything is made of it.
"""

import collections
import io
import os
import pickle
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.serialization import StorageType

from forge_ref.errors import DamagedError

_LENGTHS_AT = 26  # in a record's own header: how long its name is, and the extra field after it
_HEADER = 30
_ROOM = 1 << 16  # bytes that a record may take beside its content: its headers, its name twice, padding
_READABLE = (pickle.UnpicklingError, KeyError, TypeError, AttributeError)

Records = dict[str, memoryview]


def of(value: Any) -> bytes:
    """Return the archive of a value."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


class _InMemory(io.RawIOBase):
    """Memory as a file; unlike `BytesIO` it makes no copy."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._at = 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self._view)}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        piece = self._view[self._at : self._at + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


def check_size(file: BinaryIO, path: Path) -> None:
    """`DamagedError` for a file that is larger than the records that it lists, before any of them is read."""
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        listed = [entry.file_size for entry in archive.infolist()]
    if size > sum(listed) + _ROOM * (len(listed) + 1):
        raise DamagedError(
            f"{path} has {size:,} bytes and lists records of {sum(listed):,}, so it is damaged; "
            "resume from another checkpoint"
        )


def checked_records(blob: bytes | memoryview, file: Path) -> Records:
    """Return the records by name, without the name of the archive; `DamagedError` if one is not what was written.

    Under `torch.serialization.set_crc32_options(False)` every checksum is
    written as 0; of such an archive only the structure can be checked.
    """
    view = memoryview(blob)
    with zipfile.ZipFile(_InMemory(view)) as archive:
        entries = archive.infolist()
    has_checksums = any(entry.CRC for entry in entries)
    records = {}
    for entry in entries:
        start = entry.header_offset + _HEADER + sum(struct.unpack_from("<HH", view, entry.header_offset + _LENGTHS_AT))
        record = view[start : start + entry.file_size]
        if len(record) < entry.file_size or (has_checksums and zlib.crc32(record) != entry.CRC):
            raise DamagedError(f"{file} is damaged in {entry.filename}; resume from another checkpoint")
        records[entry.filename.partition("/")[2]] = record
    return records


def tensor_in_place(records: Records) -> torch.Tensor | None:
    """Return the tensor in the archive, sharing its memory; None for anything but one plain tensor.

    The archive has to be in writable memory, as torch asks of what it shares.
    """
    try:
        if records["byteorder"].tobytes() != sys.byteorder.encode():
            return None
        value = _TensorUnpickler(records).load()
    except _READABLE:
        return None
    return value if isinstance(value, torch.Tensor) else None


class _TensorUnpickler(pickle.Unpickler):
    """Knows how a plain tensor is pickled, and nothing else."""

    def __init__(self, records: Records) -> None:
        super().__init__(io.BytesIO(records["data.pkl"]))
        self._records = records

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuilt
        if module == "torch" and name.endswith("Storage"):
            return StorageType(name).dtype  # type: ignore[no-untyped-call]  # torch does not say
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        raise pickle.UnpicklingError(f"{module}.{name} is not part of a plain tensor")

    def persistent_load(self, pid: Any) -> torch.Tensor:
        _kind, dtype, key, _device, _numel = pid
        record = self._records[f"data/{key}"]
        return torch.frombuffer(record, dtype=dtype) if record.nbytes else torch.empty(0, dtype=dtype, device="cpu")


def _rebuilt(
    storage: torch.Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *more: Any
) -> torch.Tensor:
    """Return the tensor; `more` is whether it requires gradients, hooks, and flags such as conjugation."""
    if any(more[1:]):
        raise pickle.UnpicklingError("hooks and flags are not part of a plain tensor")
    return storage.as_strided(size, stride, offset)
