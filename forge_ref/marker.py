"""The marker of a directory of shards, DCP's `.metadata`, and the checks before anything in it is used.

Invariants: what `read` returns has the shape that DCP gives a marker, so that
nothing after it stumbles over an odd structure, which is looked at unless the
seal says that this manager wrote it; every shard that it names lies directly
beside it; and behind the pickle, where stock DCP never looks, are the seals of
the files of shards, which for them are hashes of the tables at their ends.
"""

import io
import json
import operator
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from forge_ref import files, trust
from forge_ref.errors import naming
from forge_ref.manifest import Seal

_END = struct.Struct("<Q8s")
_MAGIC = b"forgeref"


def read(path: Path, seal: Seal | None) -> tuple[Metadata, dict[str, Seal]]:
    """Return the marker, and the seals of the files of shards; `seal` is None if another manager wrote it.

    `PermissionError` for a file that is not trusted, `DamagedError` for one
    that is not what was written or holds something else than a marker.
    """
    with trust.opened(path) as file, naming(path):
        if seal is None:
            with open(file.descriptor, "rb", closefd=False) as stream:
                return _checked(trust.loads_marker(stream, path), is_sealed=False), _seals(file)
        content = file.content(saved=seal.size_bytes)
        seal.check(path, content)
        return _checked(trust.loads_marker(io.BytesIO(content), path), is_sealed=True), _seals(file)


def written(pickled: bytes, seals: Mapping[str, Seal]) -> bytes:
    """Return the content of the file: the marker, and behind it the seals of the files of shards."""
    said = json.dumps({name: (seal.size_bytes, seal.xxh3) for name, seal in seals.items()}).encode()
    return pickled + said + _END.pack(len(said), _MAGIC)


def _seals(file: files.Opened) -> dict[str, Seal]:
    size = file.found.st_size
    end = os.pread(file.descriptor, _END.size, max(0, size - _END.size))
    length, magic = _END.unpack(end) if len(end) == _END.size else (0, b"")
    if magic != _MAGIC or length > size:
        return {}
    said = os.pread(file.descriptor, length, size - len(end) - length)
    return {name: Seal(size_bytes, xxh3) for name, (size_bytes, xxh3) in json.loads(said).items()}


def is_ours(path: Path) -> bool:
    """Return whether this manager wrote the marker; False for another manager's, and for one that can't be read."""
    try:
        with files.opened(path) as file:
            return bool(_seals(file))
    except Exception:  # a load that needs the marker names what is wrong with it
        return False


def _checked(found: object, is_sealed: bool) -> Metadata:
    """Return the marker; `ValueError` says what is wrong with it."""
    if not isinstance(found, Metadata):
        raise ValueError(f"it contains a {type(found).__name__}, not DCP metadata")
    if not is_sealed:
        _check_entries(found)
    _check_stored(_mapping(found.storage_data))
    return found


def _check_entries(found: Metadata) -> None:
    for name, entry in _mapping(found.state_dict_metadata).items():
        if not isinstance(name, str) or not (isinstance(entry, BytesStorageMetadata) or _is_tensor(entry)):
            raise ValueError(f"its entry {name!r} does not describe a tensor or a pickled value")
    for name, keys in _mapping(found.planner_data or {}).items():
        if not (isinstance(keys, (tuple, list)) and keys and all(isinstance(key, (str, int)) for key in keys)):
            raise ValueError(f"it puts {name!r} at {keys!r}, which is not a place in a state")


def _mapping(value: object) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"it has {type(value).__name__} where a mapping belongs")
    return value


def _is_tensor(entry: object) -> bool:
    return (
        isinstance(entry, TensorStorageMetadata)
        and isinstance(entry.properties.dtype, torch.dtype)
        and _is_size(entry.size)
        and isinstance(entry.chunks, list)
        and all(_is_part(chunk, entry.size) for chunk in entry.chunks)
    )


def _is_part(chunk: object, size: torch.Size) -> bool:
    return (
        isinstance(chunk, ChunkStorageMetadata)
        and _is_size(chunk.offsets)
        and _is_size(chunk.sizes)
        and len(chunk.offsets) == len(chunk.sizes) == len(size)
        and all(map(operator.le, map(operator.add, chunk.offsets, chunk.sizes), size))
    )


def _is_size(value: object) -> bool:
    return isinstance(value, torch.Size) and min(value, default=0) >= 0


def _check_stored(stored: Mapping[Any, Any]) -> None:
    for index, info in stored.items():
        if not (isinstance(index, MetadataIndex) and _is_count(info.offset) and _is_count(info.length)):
            raise ValueError(f"it says that {index!r} is stored at {info!r}")
    for name in {info.relative_path for info in stored.values()}:
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
            raise ValueError(f"it names the shard {name!r}, and shards lie beside their marker, in no other place")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 0
