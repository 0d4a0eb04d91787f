"""Shards to and from disk, through DCP: stock DCP reads what is written here, and the reverse.

Invariants of a write: a rank has its shards on storage before the marker is
written, and only one rank makes the directory.  Of a read: every file is
opened once, by way of `trust`, and read from that descriptor; every byte that
reaches a tensor has been checked against the checksum that was written with
it; and all of it goes into fresh host memory, no more than this rank holds, so
that no live object is changed.  Ranks read on their own: nobody waits here.
"""

import io
import itertools
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from forge_ref import layout, publish, trust
from forge_ref.archive import checked_records, tensor_in_place
from forge_ref.channel import OnRankError, portable
from forge_ref.errors import DamagedError, RanksLostError
from forge_ref.pieces import Piece, box

Keys = tuple[str | int, ...]
_SMALL = 1 << 16  # bytes that are read sooner than a file is opened


def group_for(process_group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """The group to write with: the given one, else that of all ranks; None where there is but one rank."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(process_group) == 1:
        return None
    return process_group if process_group is not None else dist.group.WORLD


def write(state: dict[str, Any], path: Path, group: dist.ProcessGroup | None = None) -> None:
    """Write shards and marker into a directory, and bring them to storage.

    With a group, all its ranks write; what fails on one is raised on all of
    them as an `OnRankError`.  Alone, the cause is raised as it is.
    """
    try:
        save(state, storage_writer=_Writer(path), planner=_SavePlanner(), process_group=group, no_dist=group is None)
    except CheckpointException as error:  # DCP hides every error in it, an interrupt included; it is no `Exception`
        raise _first_of(error.failures, group) from None
    except Exception as error:
        if group is None:
            raise
        raise RanksLostError(f"lost contact to other ranks while writing {path}: {error}") from error


def _first_of(failures: Mapping[int, tuple[BaseException, Any]], group: dist.ProcessGroup | None) -> BaseException:
    """The error of the first rank that DCP names in its collection of failures."""
    first = min(failures)
    error, _ = failures[first]
    return error if group is None else OnRankError(dist.get_global_rank(group, first), error)


@contextmanager
def _portable() -> Iterator[None]:
    """DCP passes errors on between ranks, and the others would wait in vain for one that can't be pickled."""
    try:
        yield
    except Exception as error:
        told = portable(error)
        if told is error:
            raise
        raise told from error


class _SavePlanner(DefaultSavePlanner):
    """The stock planner, except that it knows pieces of sharded tensors, and puts what is small into one file.

    Stock gives each value that all ranks have to another rank, so that they
    write equally much; a resume has every rank open all those ranks' files.
    """

    def create_local_plan(self) -> SavePlan:
        with _portable():
            return super().create_local_plan()

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        seen: set[MetadataIndex] = set()
        plans = []
        for plan in all_plans:
            plans.append(replace(plan, items=[item for item in plan.items if item.index not in seen]))
            seen |= {item.index for item in plan.items if (item.tensor_storage_size() or 0) <= _SMALL}
        return super().create_global_plan(plans)

    def lookup_object(self, index: MetadataIndex) -> Any:
        found = self.state_dict.get(index.fqn)
        return found.values if isinstance(found, Piece) else super().lookup_object(index)


class _Writer(FileSystemWriter):
    """The stock writer, except for three things.

    The marker does not say where it was written, since directories are moved;
    one rank makes the directory, before the others hear their plan; and files
    are synced when they are written in full, which stock does too early.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, sync_files=False)
        self._directory = path

    def storage_meta(self) -> StorageMeta:
        return StorageMeta(save_id=self.save_id)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        self._directory.mkdir(parents=True, exist_ok=True)
        return super().prepare_global_plan(plans)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        with _portable():
            written = super().write_data(plan, planner)
            for name in {result.storage_data.relative_path for result in written.value()}:
                publish.sync(self._directory / name)
            return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        with _portable():
            super().finish(metadata, results)
            publish.sync(self._directory / layout.MARKER)


@dataclass(frozen=True)
class Shards:
    """What a directory of shards holds, known from its marker; the tensors are still on disk."""

    path: Path
    metadata: Metadata

    @property
    def parts(self) -> set[str]:
        """The top-level keys of the state that was saved."""
        return {str(self._keys(name)[0]) for name in self.metadata.state_dict_metadata}

    def read(
        self, is_wanted: Callable[[Keys], bool], place_of: Callable[[Keys], Piece | None] = lambda _: None
    ) -> dict[str, Any]:
        """What is wanted, as nested dicts; of a tensor that has a place here, only the values of that place.

        `DamagedError` names the file that is not what was written.
        """
        with _naming(self.path / layout.MARKER):
            names = {name: keys for name in self.metadata.state_dict_metadata if is_wanted(keys := self._keys(name))}
            into = {name: self._memory(name, place_of(keys)) for name, keys in names.items()}
            _Reader(self.path, self.metadata).read_into(into)
            return _nested((names[name], value) for name, value in into.items())

    def _memory(self, name: str, place: Piece | None) -> Any:
        """Fresh memory for a tensor, or for this rank's piece of it; None for other values."""
        entry = self.metadata.state_dict_metadata[name]
        if not isinstance(entry, TensorStorageMetadata):
            return None
        dtype = entry.properties.dtype
        if place is None or place.shape != entry.size:
            return torch.empty(entry.size, dtype=dtype)
        return place.holding(torch.empty(place.values.shape, dtype=dtype))

    def under(self, part: str) -> list[Keys]:
        """Everything that was saved under a top-level key."""
        return [keys for name in self.metadata.state_dict_metadata if (keys := self._keys(name))[0] == part]

    def _keys(self, name: str) -> Keys:
        """Where a flat name belongs in the nested state: dict keys are text there, list indices numbers."""
        return cast(Keys, (self.metadata.planner_data or {}).get(name, (name,)))


def marker_checksum(path: Path) -> int:
    """The checksum of a directory's marker: the one file of a checkpoint whose format has none of its own."""
    return zlib.crc32((path / layout.MARKER).read_bytes())


def open_shards(path: Path, checksum: str | None) -> Shards:
    """Read the marker of a directory of shards, as the pickle that it is; other managers record no checksum of it."""
    marker = path / layout.MARKER
    content = trust.read(marker)
    if checksum is not None and checksum != (found := f"{zlib.crc32(content):08x}"):
        raise DamagedError(
            f"{marker} is damaged, or of another checkpoint: its checksum is {found} and was {checksum}; "
            "resume from another checkpoint"
        )
    with _naming(marker):
        metadata = trust.loads_marker(content)
    if not isinstance(metadata, Metadata):
        raise DamagedError(f"{marker} holds no DCP metadata but {type(metadata).__name__}")
    return Shards(path, metadata)


def _nested(items: Iterable[tuple[Keys, Any]]) -> dict[str, Any]:
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


class _Reader(FileSystemReader):
    """The stock reader, except that it reads trusted and verified bytes only."""

    def __init__(self, path: Path, metadata: Metadata) -> None:
        super().__init__(path)
        self._directory = path
        self.set_up_storage_reader(metadata, is_coordinator=False)
        self._entries = metadata.state_dict_metadata

    def read_into(self, memory: dict[str, Any]) -> None:
        """Fill tensors and pieces, and put other values in their place."""
        by_file: dict[str, list[ReadItem]] = {}
        for name, value in memory.items():
            for item in self._items(name, value):
                by_file.setdefault(self.storage_data[item.storage_index].relative_path, []).append(item)
        every = itertools.chain.from_iterable(by_file.values())
        longest = max((self.storage_data[item.storage_index].length for item in every), default=0)
        buffer = memoryview(bytearray(longest))  # for one item after the other: fresh memory costs more than reading
        for name, items in by_file.items():
            file = self._directory / name
            with trust.opened(file) as descriptor:
                for item in items:
                    with _naming(file):
                        self._hand_over(item, self._read_item(file, descriptor, item, buffer), file, memory)

    def _items(self, name: str, value: Any) -> list[ReadItem]:
        """What has to be read for a value; a tensor may lie in several files, in other pieces than are wanted here."""
        entry = self._entries[name]
        if not isinstance(entry, TensorStorageMetadata):
            return [_whole(LoadItemType.BYTE_IO, MetadataIndex(name))]
        start = torch.Size([0] * len(entry.size))
        here = value.chunk if isinstance(value, Piece) else ChunkStorageMetadata(start, value.shape)
        items = create_read_items_for_chunk_list(name, entry, [here])
        if sum(item.lengths.numel() for item in items) < here.sizes.numel():
            raise DamagedError(f"{self._directory} lacks values of {name}; resume from another checkpoint")
        return items

    def _read_item(self, file: Path, descriptor: int, item: ReadItem, buffer: memoryview) -> memoryview:
        """The archive of an item; it lies in the buffer until the next one is read."""
        stored = self.storage_data[item.storage_index]
        blob = buffer[: stored.length]
        _read_exactly(file, descriptor, stored.offset, blob)
        if not stored.transform_descriptors:
            return blob
        stream = self.transforms.transform_load_stream(item, stored.transform_descriptors, io.BytesIO(blob))
        return memoryview(bytearray(stream.read()))

    def _hand_over(self, item: ReadItem, blob: memoryview, file: Path, memory: dict[str, Any]) -> None:
        records, name = checked_records(blob, file), item.dest_index.fqn
        if item.type == LoadItemType.BYTE_IO:
            memory[name] = trust.loads_torch(bytes(blob))
            return
        tensor = tensor_in_place(records)
        if tensor is None:
            tensor = torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True)
        target = memory[name].values if isinstance(memory[name], Piece) else memory[name]
        found = box(tensor, item.storage_offsets, item.lengths)
        box(target, item.dest_offsets, item.lengths).copy_(found)


def _whole(kind: LoadItemType, index: MetadataIndex) -> ReadItem:
    nothing = torch.Size([0])
    return ReadItem(kind, index, nothing, index, nothing, nothing)


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


def read_train_state(path: Path) -> bytes | None:
    """The file of a checkpoint's train state, trusted and verified; None if it has none, as imported weights do."""
    file = path / layout.TRAIN_STATE
    try:
        blob = trust.read(file)
    except FileNotFoundError:
        return None
    with _naming(file):
        checked_records(blob, file)
    return blob


def loads_train_state(blob: bytes, path: Path) -> Mapping[str, Any]:
    """The train state in that file, or a rank's own part of it; `path` is where it comes from."""
    with _naming(path):
        state = trust.loads_torch(blob)
    if not isinstance(state, dict):
        raise DamagedError(f"{path} holds no train state but {type(state).__name__}")
    return state
