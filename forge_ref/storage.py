"""Shards to and from disk, through DCP: stock DCP reads what is written here, and the reverse.

Invariants of a read: every file is opened once, by way of `trust`, and read
from that descriptor; every byte that reaches a tensor has been checked
against the checksum that was written with it; and all of it goes into fresh
host memory, shaped by what the checkpoint says of itself, so that no live
object is needed, let alone changed.
"""

import io
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.futures import Future

from forge_ref import layout, trust
from forge_ref.archive import checked_records, tensor_in_place
from forge_ref.errors import DamagedError


def write(state: dict[str, Any], path: Path) -> None:
    """Write shards and marker into a directory; raises the cause where DCP would wrap it."""
    try:
        save(state, storage_writer=_Writer(path), no_dist=True)
    except CheckpointException as error:
        _raise_cause(error)


class _Writer(FileSystemWriter):
    """The stock writer, except that the marker does not say where it was written, since directories are moved."""

    def storage_meta(self) -> StorageMeta:
        return StorageMeta(save_id=self.save_id)


def _raise_cause(error: CheckpointException) -> NoReturn:
    """DCP hides every error, an interrupt included, in an exception that is no `Exception`."""
    cause, _ = next(iter(error.failures.values()))
    raise cause from None


@dataclass(frozen=True)
class Shards:
    """What a directory of shards holds, known from its marker; the tensors are still on disk."""

    path: Path
    metadata: Metadata

    @property
    def parts(self) -> set[str]:
        """The top-level keys of the state that was saved."""
        return {str(self._keys(name)[0]) for name in self.metadata.state_dict_metadata}

    def read(self, parts: Iterable[str]) -> dict[str, Any]:
        """These parts as nested dicts; `DamagedError` names the file that is not what was written."""
        with _naming(self.path / layout.MARKER):
            return self._read(set(parts))

    def _read(self, parts: set[str]) -> dict[str, Any]:
        flat = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            if isinstance(entry, TensorStorageMetadata)
            else None
            for name, entry in self.metadata.state_dict_metadata.items()
            if self._keys(name)[0] in parts
        }
        planner = _Planner(flatten_state_dict=False, flatten_sharded_tensors=False)
        try:
            load(flat, storage_reader=_Reader(self.path, self.metadata), planner=planner, no_dist=True)
        except CheckpointException as error:
            _raise_cause(error)
        return _nested((self._keys(name), value) for name, value in flat.items())

    def _keys(self, name: str) -> tuple[str | int, ...]:
        """Where a flat name belongs in the nested state: dict keys are text there, list indices numbers."""
        return cast(tuple[str | int, ...], (self.metadata.planner_data or {}).get(name, (name,)))


def marker_checksum(path: Path) -> str:
    """The checksum of a directory's marker: the one file of a checkpoint whose format has none of its own."""
    return _checksum((path / layout.MARKER).read_bytes())


def _checksum(content: bytes) -> str:
    return f"{zlib.crc32(content):08x}"


def open_shards(path: Path, checksum: str | None) -> Shards:
    """Read the marker of a directory of shards, as the pickle that it is; other managers record no checksum of it."""
    marker = path / layout.MARKER
    content = trust.read(marker)
    if checksum is not None and checksum != _checksum(content):
        raise DamagedError(f"{marker} is damaged: its checksum is not {checksum}; resume from another checkpoint")
    with _naming(marker):
        metadata = trust.loads_marker(content)
    if not isinstance(metadata, Metadata):
        raise DamagedError(f"{marker} holds no DCP metadata but {type(metadata).__name__}")
    return Shards(path, metadata)


def _nested(items: Iterable[tuple[tuple[str | int, ...], Any]]) -> dict[str, Any]:
    root: dict[str | int, Any] = {}
    for keys, value in items:
        node = root
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = value
    return cast(dict[str, Any], _with_lists(root))


def _with_lists(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    if node and all(isinstance(key, int) for key in node):
        return [_with_lists(node[index]) for index in sorted(node)]
    return {key: _with_lists(value) for key, value in node.items()}


class _Planner(DefaultLoadPlanner):
    """The stock planner, except that plain values are loaded without running pickled code (trust.least)."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        self.state_dict[read_item.dest_index.fqn] = trust.loads_torch(value.getvalue())


class _Reader(FileSystemReader):
    """The stock reader, except that it reads trusted and verified bytes only."""

    def __init__(self, path: Path, metadata: Metadata) -> None:
        super().__init__(path)
        self._directory = path
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            by_file.setdefault(self.storage_data[item.storage_index].relative_path, []).append(item)
        longest = max((self.storage_data[item.storage_index].length for item in plan.items), default=0)
        buffer = memoryview(bytearray(longest))  # for one item after the other: fresh memory costs more than reading
        for name, items in by_file.items():
            file = self._directory / name
            with trust.opened(file) as descriptor:
                for item in items:
                    with _naming(file):
                        self._hand_over(item, self._read_item(file, descriptor, item, buffer), file, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read_item(self, file: Path, descriptor: int, item: ReadItem, buffer: memoryview) -> memoryview:
        """The archive of an item; it lies in the buffer until the next one is read."""
        stored = self.storage_data[item.storage_index]
        blob = buffer[: stored.length]
        _read_exactly(file, descriptor, stored.offset, blob)
        if not stored.transform_descriptors:
            return blob
        stream = self.transforms.transform_load_stream(item, stored.transform_descriptors, io.BytesIO(blob))
        return memoryview(bytearray(stream.read()))

    def _hand_over(self, item: ReadItem, blob: memoryview, file: Path, planner: LoadPlanner) -> None:
        records = checked_records(blob, file)
        if item.type == LoadItemType.BYTE_IO:
            planner.load_bytes(item, io.BytesIO(blob))
            return
        tensor = tensor_in_place(records)
        if tensor is None:
            tensor = torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True)
        for dimension, (offset, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
            tensor = tensor.narrow(dimension, offset, length)
        target = planner.resolve_tensor(item)
        target.copy_(tensor)
        planner.commit_tensor(item, target)


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Whatever goes wrong with the content of a file is a `DamagedError` that names it."""
    try:
        yield
    except (OSError, MemoryError, DamagedError):
        raise
    except Exception as error:
        raise DamagedError(
            f"{file} can't be read, {type(error).__name__}: {error}; resume from another checkpoint"
        ) from error


def _read_exactly(file: Path, descriptor: int, offset: int, into: memoryview) -> None:
    done = 0
    while done < len(into) and (count := os.preadv(descriptor, [into[done:]], offset + done)):
        done += count
    if done < len(into):
        raise DamagedError(f"{file} ends at byte {offset + done}, it is truncated; resume from another checkpoint")


def read_train_state(path: Path) -> Mapping[str, Any] | None:
    """The train state of a checkpoint; None if it has none, as imported weights do."""
    file = path / layout.TRAIN_STATE
    try:
        blob = trust.read(file)
    except FileNotFoundError:
        return None
    with _naming(file):
        checked_records(blob, file)
        state = trust.loads_torch(blob)
    if not isinstance(state, dict):
        raise DamagedError(f"{file} holds no train state but {type(state).__name__}")
    return state
