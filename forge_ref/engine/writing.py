"""Writes a rank's shards and, on the first rank, the marker: by a plan that is kept.

Ranks that write together agree twice: on who writes what, and when all have
written, so that the first of them writes the marker.  A rank whose state is laid
out as at the last save says just that; if all do, the plan is that of the last
save.

Invariants: a rank keeps a plan only when the exchange about it has ended well on
it, so after one that failed anywhere all send theirs again; all shards are on
storage before the marker is written; and one rank makes the directory, before
any opens its file in it.
"""

import mmap
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.distributed.tensor import DTensor

from forge_ref import layout, publish
from forge_ref.background import Background
from forge_ref.channel import ALONE, Channel
from forge_ref.engine import flush
from forge_ref.engine.image import Image, room_for
from forge_ref.engine.lead import Lead, Plans, Report, Reports, Writers, file_name, plan_of
from forge_ref.engine.leaves import Leaves, Packed, snapshot
from forge_ref.engine.loose import Tail
from forge_ref.manifest import Seal
from forge_ref.pieces import is_plain
from forge_ref.pinned import PinnedStaging

T = TypeVar("T")


@dataclass(frozen=True)
class _Agreed:
    """What this rank writes, for a state of this key."""

    key: Any
    fixed: frozenset[str]
    loose: list[str]


class ShardWriter:
    """Writes one rank's shards, save after save."""

    def __init__(self, staging: PinnedStaging | None = None) -> None:
        self.staging = staging
        self._image: Image | None = None
        self._agreed: _Agreed | None = None
        """None while an exchange about it is under way, and after one that failed."""
        self._lead = Lead()
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

    def write(self, leaves: Leaves, path: Path, channel: Channel = ALONE) -> Seal:
        """Bring shards and marker to storage, in a directory; return the seal of the marker.

        All ranks of the channel write; what fails on one is raised on all of them.
        """
        key = leaves.layout, list(leaves.loose), leaves.unwritten
        known = self._agreed if self._agreed is not None and self._agreed.key == key else None
        self._agreed = None

        def plan() -> Plans:
            return {} if known is not None else {channel.rank: plan_of(leaves)}

        writers = channel.decided(plan, partial(self._decide, path))

        def write_file() -> Reports:
            self._agreed = known if writers is None else _agreed(key, leaves, writers, channel.rank)
            assert self._agreed is not None, "a rank that keeps no plan has sent one"
            report = self._write_file(leaves, path / file_name(channel.rank), self._agreed)
            return {} if report is None else {channel.rank: report}

        return channel.decided(write_file, partial(self._write_marker, path))

    def _decide(self, path: Path, plans: Plans) -> Writers | None:
        path.mkdir(parents=True, exist_ok=True)
        return self._lead.decide(plans)

    def _write_marker(self, path: Path, reports: Reports) -> Seal:
        """The marker does not say where it was written, since directories are moved."""
        content = self._lead.marker(reports)
        partial_path = path / f"{layout.MARKER}.tmp"
        publish.write(partial_path, content)
        os.replace(partial_path, path / layout.MARKER)
        publish.sync(path / layout.MARKER)
        return Seal.of(content)

    def _write_file(self, leaves: Leaves, file: Path, agreed: _Agreed) -> Report | None:
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
            flush.write(file, parts())
        except BaseException:
            self._image = None  # a thread may still copy into it
            raise
        ((pages, hashed),) = ends
        sizes = [len(value.content) if isinstance(value, Packed) else None for value in values]
        places = [(one.offset, one.length, size) for one, size in zip(tail.extents, sizes, strict=True)]
        return Report(Seal(image.size + len(pages), hashed.hex()), tuple(places))

    def _imaged(self, leaves: Leaves, written: frozenset[str]) -> tuple[Image, dict[str, torch.Tensor] | None]:
        """Return the image to write, and what is still to be copied into it; None if it is staged already."""
        image = self._image
        if image is None or not image.fits(leaves.layout, written):
            self._image = image = None  # before there is another one; the leaves hold what they need of it
            self._image = image = Image(leaves.layout, written, self.staging is not None)
        return image, None if leaves.fixed is image.slots else leaves.fixed


def _agreed(key: Any, leaves: Leaves, writers: Writers, place: int) -> _Agreed:
    names = [item.index.fqn for item in leaves.items() if writers.get(item.index, place) == place]
    loose = [name for name in names if name in leaves.loose]
    return _Agreed(key, frozenset(names).difference(loose), loose)


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
