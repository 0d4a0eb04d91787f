"""Writes a rank's shards and, on the first rank, the marker: through DCP's collectives, by a plan that is kept.

Ranks that write together send their plans to the first of them, which decides
who writes what is on several, and describes the whole in the marker.  A rank
whose state is laid out as at the last save says just that; if all do, the plan
and the marker's description are those of the last save.

Invariants: a rank keeps a plan only when it has come back from the first rank,
so after a save that failed anywhere all send theirs again; all shards are on
storage before the marker is written; and one rank makes the directory.
"""

import mmap
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from forge_ref import layout, marker, publish
from forge_ref.background import Background
from forge_ref.channel import OnRankError, picklable
from forge_ref.engine import flush
from forge_ref.engine.image import Image, lay_out, room_for
from forge_ref.engine.leaves import Fixed, Leaves, Packed, snapshot
from forge_ref.engine.loose import Tail
from forge_ref.errors import RanksLostError
from forge_ref.manifest import Seal
from forge_ref.pieces import is_plain
from forge_ref.pinned import PinnedStaging

T = TypeVar("T")
_SMALL = 1 << 16  # bytes that are read sooner than a file is opened
_SAME = SavePlan([], usable=False)
"""On the way to the first rank and back: as at the last save."""


@dataclass(frozen=True)
class _Agreed:
    """What this rank writes, as the first rank has decided it for a state of this key."""

    key: Any
    file: str
    fixed: frozenset[str]
    loose: list[str]


@dataclass(frozen=True)
class _Report:
    """What a rank has written: its file, and where in it each loose value is; with a size if that is bytes of ours."""

    file: str
    seal: Seal
    loose: tuple[tuple[int, int, int | None], ...]


class ShardWriter:
    """Writes one rank's shards, save after save."""

    def __init__(self, staging: PinnedStaging | None = None) -> None:
        self.staging = staging
        self._image: Image | None = None
        self._agreed: _Agreed | None = None
        """None from the moment a plan is sent until it has come back."""
        self._lead = _Lead()
        self._room: Background[mmap.mmap] | None = None

    def prewarm(self, values: Iterable[Any]) -> None:
        """Make the memory for a copy of the tensors among these beside training, with room for what is around them.

        Else the first `hold` makes it, which takes several times as long as a copy.
        """
        local = (value.to_local() if isinstance(value, DTensor) else value for value in values)
        kinds = Counter((tensor.dtype, tensor.shape) for tensor in local if is_plain(tensor))
        self._room = Background("memory", partial(room_for, kinds))

    def hold(self, leaves: Leaves) -> Leaves:
        """Return a copy in host memory; only for use when no write is in flight, whose memory is used again."""
        if self._image is None or not self._image.fits(leaves.layout):
            self._image = None  # before there is another one
            names = (one.name for one in leaves.layout if one.name not in leaves.unwritten)
            room, self._room = self._room, None
            memory = None if room is None else room.outcome()
            self._image = Image(leaves.layout, frozenset(names), self.staging is not None, memory)
        if self.staging is None:
            self._image.stage(leaves.fixed)
        else:
            self.staging.stage(self._image.slots.values(), leaves.fixed.values())
        loose = {name: snapshot(value) for name, value in leaves.loose.items()}
        return replace(leaves, fixed=self._image.slots, loose=loose)

    def write(self, leaves: Leaves, path: Path, group: dist.ProcessGroup | None = None) -> Seal | None:
        """Bring shards and marker to storage, in a directory; return the seal of the marker on the first rank.

        With a group, all its ranks write; what fails on one is raised on all of
        them as an `OnRankError`.  Alone, the cause is raised as it is.
        """
        planner = _Planner(leaves, self._agreed, self._lead)
        storage = _Storage(path, partial(self._write_file, leaves, path), self._lead)
        self._agreed = None
        try:
            if group is None:
                _write_alone(planner, storage)
            else:
                _write_together(planner, storage, group)
        finally:
            self._agreed = planner.agreed
        return storage.seal

    def _write_file(self, leaves: Leaves, path: Path, agreed: _Agreed) -> _Report | None:
        if not agreed.fixed and not agreed.loose:
            return None
        image, live = self._imaged(leaves, agreed.fixed)
        values = [leaves.loose[name] for name in agreed.loose]
        tail = Tail(values, image.size)
        ends: list[tuple[memoryview, bytes]] = []

        def parts() -> Iterator[memoryview]:
            rows, start = [], 0
            for hashes, end in _one_ahead((partial(image.rows, names, live), end) for names, end in image.windows()):
                rows += hashes
                yield image.view[start:end]
                start = end
            ends.append(tail.pages([*rows, *tail.rows()]))
            yield ends[0][0]

        try:
            flush.write(path / agreed.file, parts())
        except BaseException:
            self._image = None  # a thread may still copy into it
            raise
        ((pages, hashed),) = ends
        sizes = [len(value.content) if isinstance(value, Packed) else None for value in values]
        places = [(one.offset, one.length, size) for one, size in zip(tail.extents, sizes, strict=True)]
        return _Report(agreed.file, Seal(image.size + len(pages), hashed.hex()), tuple(places))

    def _imaged(self, leaves: Leaves, written: frozenset[str]) -> tuple[Image, dict[str, torch.Tensor] | None]:
        """Return the image to write, and what is still to be copied into it; None if it is staged already."""
        image = self._image
        if image is None or not image.fits(leaves.layout, written):
            self._image = image = None  # before there is another one; the leaves hold what they need of it
            self._image = image = Image(leaves.layout, written, self.staging is not None)
        return image, None if leaves.fixed is image.slots else leaves.fixed


def _one_ahead(jobs: Iterable[tuple[Callable[[], T], int]]) -> Iterator[tuple[T, int]]:
    """Yield what each job returns, while another thread does the next one."""
    before: tuple[Background[T], int] | None = None
    for job, end in jobs:
        begun = Background("hashes", job), end
        if before is not None:
            yield before[0].result(), before[1]
        before = begun
    if before is not None:
        yield before[0].result(), before[1]


def _write_alone(planner: "_Planner", storage: "_Storage") -> None:
    """Do what DCP's `save` does in one process, without its warning about that, which a filter may make an error."""
    plans, metadata = planner.create_global_plan([planner.create_local_plan()])
    (plan,) = storage.prepare_global_plan(plans)
    storage.finish(metadata, [storage.write_data(planner.finish_plan(plan), planner).value()])


def _write_together(planner: "_Planner", storage: "_Storage", group: dist.ProcessGroup) -> None:
    try:
        save({}, storage_writer=storage, planner=planner, process_group=group)
    except CheckpointException as error:  # DCP hides every error in it, an interrupt included; it is no `Exception`
        first = min(error.failures)
        raise OnRankError(dist.get_global_rank(group, first), error.failures[first][0]) from None
    except Exception as error:
        raise RanksLostError(f"lost contact to other ranks while writing {storage.path}: {error}") from error


@contextmanager
def _picklable_errors() -> Iterator[None]:
    """Raise errors in a form that can be pickled: DCP sends them to other ranks, which would wait forever."""
    try:
        yield
    except Exception as error:
        sent = picklable(error)
        if sent is error:
            raise
        raise sent from error


class _Lead:
    """What the first rank knows of all, from save to save."""

    def __init__(self) -> None:
        self._plans: list[SavePlan] = []
        """As they came, before it was decided who writes what."""
        self._decided: list[SavePlan] = []
        self._described = Metadata({})
        self._marker: tuple[Any, bytes] | None = None
        """What is pickled of the last one, and where the loose values are in it."""

    def decide(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Return the final plans; `_SAME` for all of them if no rank's has changed."""
        if not any(plan.usable for plan in plans):
            return plans
        known = self._plans or plans
        self._plans = []  # a failure from here on makes no rank keep anything
        merged = [plan if plan.usable else known[place] for place, plan in enumerate(plans)]
        decided, self._described = _global_plan(merged)
        self._decided = [replace(plan, storage_data=f"__{place}_0.distcp") for place, plan in enumerate(decided)]
        self._described.state_dict_metadata = _shared(self._described.state_dict_metadata)
        self._described.storage_data = {}
        for plan, asked in zip(self._decided, merged, strict=True):
            items = {item.index.fqn: item for item in plan.items if item.index.fqn not in asked.storage_data}
            extents, _ = lay_out(_fixed(item) for item in items.values())
            for name, one in extents.items():
                self._described.storage_data[items[name].index] = _StorageInfo(
                    plan.storage_data, one.offset, one.length
                )
        self._plans, self._marker = merged, None
        return [replace(plan, planner_data=None) for plan in self._decided]

    def marker(self, reports: list[_Report | None]) -> bytes:
        """Return the marker for what the ranks have written."""
        places = [None if report is None else report.loose for report in reports]
        if self._marker is None or self._marker[0] != places:
            self._marker = places, pickle.dumps(self._filled_in(places))
        return marker.written(self._marker[1], {report.file: report.seal for report in reports if report is not None})

    def _filled_in(self, places: list[Any]) -> Metadata:
        entries = dict(self._described.state_dict_metadata)
        stored = dict(self._described.storage_data)
        for plan, asked, found in zip(self._decided, self._plans, places, strict=True):
            loose = [item.index for item in plan.items if item.index.fqn in asked.storage_data]
            for index, (offset, length, size) in zip(loose, found or (), strict=True):
                stored[index] = _StorageInfo(plan.storage_data, offset, length)
                if size is not None:
                    entries[index.fqn] = _bytes_entry(entries[index.fqn], size)
        return Metadata(
            entries,
            planner_data=self._described.planner_data,
            storage_data=stored,
            storage_meta=StorageMeta(),
            version=CURRENT_DCP_VERSION,
        )


def _shared(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return equal entries as one object, which a pickle holds once: a marker of many tensors is then read faster."""
    known: dict[Any, Any] = {}
    return {name: known.setdefault(_identity(entry), entry) for name, entry in entries.items()}


def _identity(entry: Any) -> object:
    """Return what tells apart the entries of this writer."""
    if not isinstance(entry, TensorStorageMetadata):
        return type(entry)
    properties, chunks = entry.properties, tuple((chunk.offsets, chunk.sizes) for chunk in entry.chunks)
    return properties.dtype, properties.layout, properties.requires_grad, entry.size, chunks


def _bytes_entry(entry: Any, size: int) -> TensorStorageMetadata:
    whole = torch.Size([size])
    return TensorStorageMetadata(entry.properties, whole, [ChunkStorageMetadata(torch.Size([0]), whole)])


def _fixed(item: Any) -> Fixed:
    data = item.tensor_data
    return Fixed(item.index.fqn, data.properties.dtype, data.chunk.sizes, data.properties.requires_grad, None)


def _global_plan(plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
    """Return who writes what, and what is written: of values that several ranks have, small ones go to the first.

    Stock gives each value that all ranks have to another rank, so that they
    write equally much; a resume has every rank open all those ranks' files.
    """
    seen: set[MetadataIndex] = set()
    kept = []
    for plan in plans:
        kept.append(replace(plan, items=[item for item in plan.items if item.index not in seen]))
        seen |= {item.index for item in plan.items if (item.tensor_storage_size() or 0) <= _SMALL}
    return DefaultSavePlanner().create_global_plan(kept)


class _Planner(SavePlanner):
    """DCP's questions about the plan."""

    def __init__(self, leaves: Leaves, last: _Agreed | None, lead: _Lead) -> None:
        self._leaves = leaves
        self._last = last
        self._lead = lead
        self._key = leaves.layout, list(leaves.loose), leaves.unwritten
        self.agreed: _Agreed | None = None
        """What has come back from the first rank."""

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        pass

    def create_local_plan(self) -> SavePlan:
        with _picklable_errors():
            if self._last is not None and self._last.key == self._key:
                return _SAME
            leaves = self._leaves
            return SavePlan(list(leaves.items()), storage_data=frozenset(leaves.loose), planner_data=leaves.paths)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        return self._lead.decide(all_plans), Metadata({})

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        if new_plan.usable:
            names = [item.index.fqn for item in new_plan.items]
            loose = [name for name in names if name in self._leaves.loose]
            self.agreed = _Agreed(self._key, new_plan.storage_data, frozenset(names).difference(loose), loose)
        else:
            self.agreed = self._last
        return new_plan

    def resolve_data(self, write_item: Any) -> Any:
        raise AssertionError("the writer has the data")


class _Storage(StorageWriter):
    """DCP's questions about the files; the marker does not say where it was written, since directories are moved."""

    def __init__(self, path: Path, write_file: Callable[[_Agreed], _Report | None], lead: _Lead) -> None:
        self.path = path
        self._write_file = write_file
        self._lead = lead
        self.seal: Seal | None = None
        """Of the marker; on the first rank, when all is written."""

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *_: Any, **__: Any) -> None:
        pass

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        self.path.mkdir(parents=True, exist_ok=True)
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        with _picklable_errors():
            written: Future[Any] = Future()
            assert isinstance(planner, _Planner) and planner.agreed is not None, "a plan comes before its data"
            written.set_result(self._write_file(planner.agreed))
            return written

    def finish(self, metadata: Metadata, results: list[Any]) -> None:
        with _picklable_errors():
            content = self._lead.marker(results)
            partial_path = self.path / f"{layout.MARKER}.tmp"
            publish.write(partial_path, content)
            os.replace(partial_path, self.path / layout.MARKER)
            publish.sync(self.path / layout.MARKER)
            self.seal = Seal.of(content)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True
