"""What the first of the ranks that write together does for all: it decides who writes what, and makes the marker.

Invariant: of a state that is laid out as before, who writes what stays as it
was, and so does the marker, but for the places of values that change their size.
"""

import functools
import pickle
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan

from forge_ref import marker
from forge_ref.engine.image import lay_out
from forge_ref.engine.leaves import Fixed, Leaves
from forge_ref.manifest import Seal

_SMALL = 1 << 16  # bytes that are read sooner than a file is opened


@dataclass(frozen=True)
class Report:
    """What a rank has written: its file, and where in it each loose value is; with a size if that is bytes of ours."""

    seal: Seal
    loose: tuple[tuple[int, int, int | None], ...]


Plans = Mapping[int, SavePlan]
"""What ranks could write, by their places; those of whom nothing has changed are not among them."""
Reports = Mapping[int, Report]
"""By the places of the ranks; those that have nothing to write are not among them."""
Writers = Mapping[MetadataIndex, int]
"""The place of the rank that writes a value, for each that several ranks have; a rank writes all others that it has."""


@functools.cache
def file_name(place: int) -> str:
    """Return the name of a rank's file, as stock DCP names it: always the same object, which a pickle holds once."""
    return f"__{place}_0.distcp"


def plan_of(leaves: Leaves) -> SavePlan:
    """Return what a rank could write, in DCP's words."""
    return SavePlan(list(leaves.items()), storage_data=frozenset(leaves.loose), planner_data=leaves.paths)


class Lead:
    """What the first rank knows of all, from save to save."""

    def __init__(self) -> None:
        self._plans: Plans = {}
        """As they came, before it was decided who writes what."""
        self._decided: dict[int, SavePlan] = {}
        self._described = Metadata({})
        self._marker: tuple[Any, bytes] | None = None
        """What is pickled of the last one, and where the loose values are in it."""

    def decide(self, changed: Plans) -> Writers | None:
        """Return who writes what; None if no rank's plan has changed."""
        if not changed:
            return None
        asked = {**self._plans, **changed}
        self._plans = {}  # a failure from here on makes no rank keep anything
        decided, self._described = _global_plan(list(asked.values()))
        self._decided = dict(zip(asked, decided, strict=True))
        self._described.state_dict_metadata = _shared(self._described.state_dict_metadata)
        self._described.storage_data = {}
        for place, plan in self._decided.items():
            items = {item.index.fqn: item for item in plan.items if item.index.fqn not in plan.storage_data}
            extents, _ = lay_out(_fixed(item) for item in items.values())
            for name, one in extents.items():
                self._described.storage_data[items[name].index] = _StorageInfo(file_name(place), one.offset, one.length)
        self._plans, self._marker = asked, None
        having = Counter(item.index for plan in asked.values() for item in plan.items)
        return {
            item.index: place for place, plan in self._decided.items() for item in plan.items if having[item.index] > 1
        }

    def marker(self, reports: Reports) -> bytes:
        """Return the marker for what the ranks have written."""
        loose = {place: report.loose for place, report in reports.items()}
        if self._marker is None or self._marker[0] != loose:
            self._marker = loose, pickle.dumps(self._filled_in(loose))
        return marker.written(self._marker[1], {file_name(place): report.seal for place, report in reports.items()})

    def _filled_in(self, places: Mapping[int, Any]) -> Metadata:
        entries = dict(self._described.state_dict_metadata)
        stored = dict(self._described.storage_data)
        for place, plan in self._decided.items():
            loose = [item.index for item in plan.items if item.index.fqn in plan.storage_data]
            for index, (offset, length, size) in zip(loose, places.get(place, ()), strict=True):
                stored[index] = _StorageInfo(file_name(place), offset, length)
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
