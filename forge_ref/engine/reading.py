"""Reads values into fresh host memory, and checks every byte of them on the way.

Invariants: every file is opened once, by way of `trust`, and read from that
descriptor; no memory is taken for what its files are too small to hold; and a
value is what was saved, by the table at the end of its file, or, in files of
other writers, by the checksums that `torch.save` has left in them.

Of a file with a table, large tensors are read to where they stay, and small
ones many at a time; hashes are computed while the bytes are in the processor's
cache.  Threads share the work, since neither reading nor hashing holds Python up.

What a small tensor costs is what torch takes to make one and to look into the buffer for it, and its entry in the
marker: together several times as much as reading and hashing its bytes.
"""

import ctypes
import functools
import io
import mmap
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from forge_ref import archive, files, layout, trust
from forge_ref.background import Background
from forge_ref.engine import flush, table
from forge_ref.engine.loose import is_plain
from forge_ref.engine.table import Entry
from forge_ref.errors import DamagedError, naming
from forge_ref.manifest import Seal
from forge_ref.pieces import Piece, box

_SMALL = 1 << 16  # bytes up to which a tensor is read without a look at the sizes of its files before
_LARGE = 1 << 20  # bytes from which on a tensor is read by itself, to where it stays
_GAP = 1 << 16  # bytes between small ones that are read too, and not used
_RUN = 8 << 20  # bytes that small ones are read in at once
_STEP = 1 << 20  # bytes that stay in the cache between reading and hashing
_HUGE = 4 << 20  # bytes from which on memory is asked for in huge pages
_ALIGNMENT = 16  # of values in the file, so that those of every type can be looked at where they are in the buffer
_THREADS = 4


class _Request(NamedTuple):
    """An item of a file, and where its values go: into a tensor of their own, or into a part of one."""

    name: str
    stored: Any
    size: torch.Size
    """Of the tensor that is stored."""
    dtype: torch.dtype | None
    """None for a value that is not a tensor."""
    item: ReadItem | None = None
    """None for a tensor of its own."""
    into: torch.Tensor | None = None
    """Contiguous memory for all that is stored, if there is such; a tensor of its own gets it only when it is read."""


def fresh(size: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Return memory of its own, in huge pages if it is large: to make small ones takes much of the time of a read."""
    tensor = torch.empty(size, dtype=dtype, device="cpu")  # whatever the default device is
    if tensor.nbytes >= _HUGE:
        start = flush.up(tensor.data_ptr())
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(start), ctypes.c_size_t(tensor.data_ptr() + tensor.nbytes - start), mmap.MADV_HUGEPAGE
        )
    return tensor


class Reader:
    """Reads from one directory of shards, whose marker has been read; `seals` by the names of its files."""

    def __init__(self, directory: Path, metadata: Metadata, seals: Mapping[str, Seal]) -> None:
        self._directory = directory
        self._entries = metadata.state_dict_metadata
        self._seals = seals
        self._stored: dict[str, list[tuple[MetadataIndex, Any]]] = defaultdict(list)
        for index, stored in metadata.storage_data.items():
            self._stored[index.fqn].append((index, stored))

    def read(self, places: Mapping[str, Piece | None]) -> dict[str, Any]:
        """Return the values under these names; of a tensor that has the shape of its place, those of that piece."""
        memory: dict[str, Any] = dict.fromkeys(places)
        by_file: dict[str, list[_Request]] = defaultdict(list)
        for name, place in places.items():
            for request in self._requests(name, place, memory):
                by_file[request.stored.relative_path].append(request)
        for name, requests in by_file.items():
            file = self._directory / name
            with standing(file), trust.opened(file) as opened, naming(file):
                check_extent(file, opened.found.st_size, [request.stored for request in requests])
                if (seal := self._seals.get(name)) is None:
                    self._read_archives(opened, requests, memory)
                else:
                    _read_sealed(opened, seal, requests, memory)
        return memory

    def check_sizes(self, names: Iterable[str]) -> None:
        """`DamagedError` for a tensor of more bytes than are stored of it, and for a file too short for what it stores.

        For tensors that are read as a whole, so that all their files have to be there.  Small ones are left out, since
        little memory is taken for them.
        """
        by_file: dict[str, list[Any]] = defaultdict(list)
        for name in names:
            entry = self._entries[name]
            if not isinstance(entry, TensorStorageMetadata):
                continue
            size = entry.properties.dtype.itemsize * entry.size.numel()
            if size <= _SMALL:
                continue
            chunks = [stored for _, stored in self._stored[name]]
            for stored in chunks:
                by_file[stored.relative_path].append(stored)
            has_transforms = any(stored.transform_descriptors for stored in chunks)
            if size > sum(stored.length for stored in chunks) and not has_transforms:
                raise DamagedError(
                    f"{self._directory / layout.MARKER} lacks values of {name}: it has {size:,} bytes, and "
                    f"{sum(stored.length for stored in chunks):,} are stored; resume from another checkpoint"
                )
        for file_name, extents in by_file.items():
            file = self._directory / file_name
            with standing(file), files.opened(file) as opened:
                check_extent(file, opened.found.st_size, extents)

    def _requests(self, name: str, place: Piece | None, memory: dict[str, Any]) -> Iterator[_Request]:
        """Yield what to read for a value; a tensor may be in several files, in other pieces than are wanted here.

        Those go into memory that is made here, for all of them.
        """
        entry, stored = self._entries[name], self._stored[name]
        if not isinstance(entry, TensorStorageMetadata):
            yield _Request(name, stored[0][1], _NO_SIZE, None, _whole(LoadItemType.BYTE_IO, stored[0][0]))
            return
        piece = place if place is not None and place.shape == entry.size else None
        dtype = entry.properties.dtype
        if piece is None and len(stored) == len(entry.chunks) == 1 and entry.chunks[0].sizes == entry.size:
            yield _Request(name, stored[0][1], entry.size, dtype)
            return
        values = fresh(entry.size if piece is None else piece.values.shape, dtype)
        value = memory[name] = values if piece is None else piece.holding(values)
        start = torch.Size([0] * len(entry.size))
        here = value.chunk if isinstance(value, Piece) else ChunkStorageMetadata(start, value.shape)
        items = create_read_items_for_chunk_list(name, entry, [here])
        if sum(item.lengths.numel() for item in items) < here.sizes.numel():
            raise DamagedError(f"{self._directory} lacks values of {name}; resume from another checkpoint")
        by_index, sizes = dict(stored), {chunk.offsets: chunk.sizes for chunk in entry.chunks}
        for item in items:
            size = sizes[cast(torch.Size, item.storage_index.offset)]
            target = box(values, item.dest_offsets, item.lengths)
            into = target if item.lengths == size and target.is_contiguous() else None
            yield _Request(name, by_index[item.storage_index], size, dtype, item, into)

    def _read_archives(self, opened: files.Opened, requests: Sequence[_Request], memory: dict[str, Any]) -> None:
        """Read items that have no hash of ours."""
        transforms = FileSystemReader(self._directory).transforms
        buffer = memoryview(bytearray(max(request.stored.length for request in requests)))
        for request in requests:
            stored = request.stored
            blob = buffer[: stored.length]
            _read_exactly(opened, stored.offset, blob)
            if stored.transform_descriptors:
                item = request.item or _whole(LoadItemType.TENSOR, MetadataIndex(request.name))
                stream = transforms.transform_load_stream(item, stored.transform_descriptors, io.BytesIO(blob))
                blob = memoryview(bytearray(stream.read()))
            _hand_over(opened.path, request, blob, memory, is_sealed=False)


_NO_SIZE = torch.Size([0])


def _whole(kind: LoadItemType, index: MetadataIndex) -> ReadItem:
    return ReadItem(kind, index, _NO_SIZE, index, _NO_SIZE, _NO_SIZE)


def _hand_over(path: Path, request: _Request, blob: memoryview, memory: dict[str, Any], is_sealed: bool) -> None:
    """Put what is in an archive where it belongs."""
    records = archive.checked_records(blob, path)
    if request.dtype is None:
        memory[request.name] = trust.loads_torch(bytes(blob), path, is_sealed)
        return
    tensor = archive.tensor_in_place(records)
    if tensor is None:
        tensor = torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True)
    _put(request, tensor, memory)


def _put(request: _Request, tensor: torch.Tensor, memory: dict[str, Any]) -> None:
    item = request.item
    if item is None:
        assert request.dtype is not None
        memory[request.name] = fresh(request.size, request.dtype)
    value = memory[request.name]
    target = value.values if isinstance(value, Piece) else value
    if item is not None:
        tensor = box(tensor, item.storage_offsets, item.lengths)
        target = box(target, item.dest_offsets, item.lengths)
    target.copy_(tensor)


# -- files with a table -------------------------------------------------------


def _read_sealed(opened: files.Opened, seal: Seal, requests: Sequence[_Request], memory: dict[str, Any]) -> None:
    entries = _table(opened, seal)
    sealed = _Sealed(opened, memory)
    jobs: list[tuple[int, Callable[[mmap.mmap], None]]] = []
    small: list[tuple[_Request, Entry]] = []
    for request in sorted(requests, key=lambda request: request.stored.offset):
        entry = entries[request.stored.offset]
        is_raw = (request.item is None or request.into is not None) and entry.start != request.stored.offset
        if not is_raw or entry.size >= _LARGE or entry.start % _ALIGNMENT:
            read = sealed.read_large if is_raw else sealed.read_item
            if is_raw:
                kind = sealed.kind(request, entry)
                if request.into is None:
                    # Here, since what other threads make goes back to the system, and comes again page by page.
                    request = request._replace(into=fresh(*kind))
                    memory[request.name] = request.into
            jobs.append((entry.size, partial(read, request, entry)))
            continue
        if small and not _lies_beside(small[0][1], small[-1][1], entry):
            jobs.append((_RUN, partial(sealed.read_small, small)))
            small = []
        small.append((request, entry))
    if small:
        jobs.append((small[-1][1].start - small[0][1].start, partial(sealed.read_small, small)))
    _share_out(jobs)


def _lies_beside(first: Entry, last: Entry, entry: Entry) -> bool:
    """Return whether it costs less to read these entries at once than the next one by itself."""
    return entry.start - (last.start + last.size) <= _GAP and entry.start + entry.size - first.start <= _RUN


def _table(opened: files.Opened, seal: Seal) -> dict[int, Entry]:
    """Return the table; `DamagedError` if the file is not the one that was saved."""
    size = opened.found.st_size
    if size == seal.size_bytes:
        content, hashed = table.read(opened.descriptor, size)
        if hashed == seal.xxh3:
            return table.entries(content)
    raise DamagedError(
        f"{opened.path} is damaged, or of another save: it has {size:,} bytes, {seal.size_bytes:,} were saved, and the "
        "hashes at its end are not those of the save; resume from another checkpoint"
    )


@dataclass(frozen=True)
class _Sealed:
    """A file with a table, on its way into memory."""

    opened: files.Opened
    memory: dict[str, Any]
    plain: dict[bytes, Any] = field(default_factory=dict)
    """Plain values by their archives: many are equal, and to open an archive takes much longer than to read it."""

    def read_large(self, request: _Request, entry: Entry, _: mmap.mmap) -> None:
        """Read a tensor to where it stays."""
        assert request.into is not None
        into, hashed = _bytes_of(request.into), table.hasher()
        for at in range(0, entry.size, _STEP):
            step = into[at : at + _STEP]
            _read_exactly(self.opened, entry.start + at, step)
            hashed.update(step)
        self._check(request, entry, hashed.digest())

    def read_small(self, several: Sequence[tuple[_Request, Entry]], buffer: mmap.mmap) -> None:
        """Read tensors that lie beside one another, by way of the buffer."""
        first, last = several[0][1], several[-1][1]
        view = memoryview(buffer)[: last.start + last.size - first.start]
        _read_exactly(self.opened, first.start, view)
        kinds = [self.kind(*one) for one in several]
        flat = {dtype: torch.frombuffer(buffer, dtype=dtype) for _, dtype in set(kinds)}
        for (request, entry), (size, dtype) in zip(several, kinds, strict=True):
            at = entry.start - first.start
            self._check(request, entry, table.digest(view[at : at + entry.size]))
            values = flat[dtype].as_strided(size, _strides(size), at // dtype.itemsize)
            if request.into is None:
                self.memory[request.name] = values.clone()
            else:
                request.into.copy_(values)

    def read_item(self, request: _Request, entry: Entry, _: mmap.mmap) -> None:
        """Read what is a part of a tensor, or none that lies in a container of ours."""
        content = memoryview(bytearray(entry.size))
        _read_exactly(self.opened, entry.start, content)
        self._check(request, entry, table.digest(content))
        if request.dtype is None:
            self.memory[request.name] = self._value_of(bytes(content))
        elif entry.start == request.stored.offset:
            _hand_over(self.opened.path, request, content, self.memory, is_sealed=True)
        elif entry.size:
            size, dtype = self.kind(request, entry)
            _put(request, torch.frombuffer(content, dtype=dtype).view(size), self.memory)

    def _value_of(self, archived: bytes) -> Any:
        if archived in self.plain:
            return self.plain[archived]
        value = trust.loads_torch(archived, self.opened.path, is_sealed=True)
        if is_plain(value):
            self.plain[archived] = value
        return value

    def _check(self, request: _Request, entry: Entry, found: bytes) -> None:
        if found != entry.digest:
            raise DamagedError(
                f"{self.opened.path} is damaged, or of another save, in {request.name}: its hash is not the one that "
                "was saved; resume from another checkpoint"
            )

    def kind(self, request: _Request, entry: Entry) -> tuple[torch.Size, torch.dtype]:
        """Return size and type of what is stored; `DamagedError` if another number of bytes is stored."""
        assert request.dtype is not None
        if entry.size != (expected := request.dtype.itemsize * request.size.numel()):
            raise DamagedError(f"{self.opened.path} has {entry.size:,} bytes of {request.name}, not {expected:,}")
        return request.size, request.dtype


@functools.lru_cache(4096)
def _strides(size: torch.Size) -> tuple[int, ...]:
    """Return how many elements lie between two neighbours in each dimension of a contiguous tensor."""
    return torch.empty(size, device="meta").stride()


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous tensor."""
    return memoryview((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")


def _share_out(jobs: Sequence[tuple[int, Callable[[mmap.mmap], None]]]) -> None:
    """Do all jobs, on several threads if they are large; what one raises is raised when no thread reads any more."""
    pending = [job for _, job in sorted(jobs, key=lambda one: -one[0])][::-1]
    error: list[BaseException] = []

    def work() -> None:
        buffer = flush.pages(_RUN + _LARGE)
        while pending and not error:
            try:
                job = pending.pop()
            except IndexError:  # another thread has just taken the last one
                return
            try:
                job(buffer)
            except BaseException as raised:  # an interrupt comes here, too
                error.append(raised)
                raise

    size = sum(size for size, _ in jobs)
    count = min(_THREADS, len(os.sched_getaffinity(0)), -(-size // _RUN)) - 1
    others = [Background("read", work) for _ in range(count)]
    try:
        work()
    finally:
        for other in others:
            other.await_end()
    for other in others:
        other.result()


@contextmanager
def standing(file: Path) -> Iterator[None]:
    """`DamagedError` for a file of shards that is not there: the marker says that it was saved."""
    try:
        yield
    except FileNotFoundError as error:
        raise DamagedError(f"{file} is missing; resume from another checkpoint") from error


def check_extent(file: Path, size: int, stored: Iterable[Any]) -> None:
    """`DamagedError` for a file that is too short for what it is said to hold."""
    end = max(one.offset + one.length for one in stored)
    if size < end:
        raise DamagedError(
            f"{file} ends at byte {size:,}, and {end:,} were saved; it is truncated, resume from another checkpoint"
        )


def _read_exactly(opened: files.Opened, offset: int, into: memoryview) -> None:
    done = 0
    while done < len(into) and (count := os.preadv(opened.descriptor, [into[done:]], offset + done)):
        done += count
    if done < len(into):
        raise DamagedError(
            f"{opened.path} ends at byte {offset + done}, it is truncated; resume from another checkpoint"
        )
