"""One rank's file of shards as it lies in memory: a save is one copy into it, and a flush writes it as it is.

Around each slot the container is written once, when the image is made.  What
the rank holds and does not write lies behind, where no flush comes.
"""

import mmap
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import torch

from forge_ref.engine import flush
from forge_ref.engine.containers import container
from forge_ref.engine.leaves import Fixed
from forge_ref.engine.table import Extent, digest
from forge_ref.pinned import pin

_ALIGNMENT = 64
_WINDOW = 32 << 20  # bytes that are copied while those before them are written


def lay_out(written: Iterable[Fixed]) -> tuple[dict[str, Extent], int]:
    """Return where each of these lies in a file, and the size of the pages that hold them."""
    extents, end = {}, 0
    for one in written:
        prefix, suffix = container(one.dtype, one.shape)
        size = one.dtype.itemsize * one.shape.numel()
        length = len(prefix) + size + len(suffix)
        extents[one.name] = Extent(end, length, end + len(prefix), size)
        end = flush.up(end + length, _ALIGNMENT)
    return extents, flush.up(end)


def room_for(kinds: Mapping[tuple[torch.dtype, torch.Size], int]) -> mmap.mmap:
    """Return memory for a file with so many tensors of each type and shape, all of which the system has given."""
    size = 0
    for (dtype, shape), count in kinds.items():
        prefix, suffix = container(dtype, shape)
        size += count * flush.up(len(prefix) + dtype.itemsize * shape.numel() + len(suffix), _ALIGNMENT)
    memory = flush.pages(size)
    torch.frombuffer(memory, dtype=torch.uint8).zero_()
    return memory


class Image:
    """Room for tensors of this layout; those that are written are in the file, in their order."""

    def __init__(
        self,
        layout: Sequence[Fixed],
        written: Collection[str],
        is_pinned: bool = False,
        memory: mmap.mmap | None = None,
    ) -> None:
        """Use this memory, if it is large enough."""
        self.layout = layout
        self.extents, self.size = lay_out(one for one in layout if one.name in written)
        starts, end = {name: extent.start for name, extent in self.extents.items()}, self.size
        for one in layout:
            if one.name not in starts:
                starts[one.name] = end
                end = flush.up(end + one.dtype.itemsize * one.shape.numel(), _ALIGNMENT)
        if memory is None or len(memory) < end:
            memory = flush.pages(end)
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        if is_pinned:
            weakref.finalize(self, pin(whole))
        self.view = memoryview(memory)
        self.slots: dict[str, torch.Tensor] = {}
        for one in layout:
            start, size = starts[one.name], one.dtype.itemsize * one.shape.numel()
            slot = whole[start : start + size].view(one.dtype) if size else whole.new_empty(0, dtype=one.dtype)
            self.slots[one.name] = slot.view(one.shape)
            if (extent := self.extents.get(one.name)) is not None:
                prefix, suffix = container(one.dtype, one.shape)
                self.view[extent.offset : extent.start] = prefix
                self.view[extent.start + size : extent.offset + extent.length] = suffix

    def fits(self, layout: Sequence[Fixed], written: Collection[str] | None = None) -> bool:
        """Return whether this is the image of such a layout, and, if that is known, of such a file."""
        return self.layout == layout and (written is None or self.extents.keys() == written)

    @torch.no_grad()
    def stage(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy the values of all of them, which are the ones that the image was made for, in their order."""
        if tensors:
            torch._foreach_copy_(list(self.slots.values()), list(tensors.values()))

    def windows(self) -> Iterator[tuple[list[str], int]]:
        """Yield the names in the file in groups of some size, each with the end of the pages that are full with it."""
        names: list[str] = []
        start = 0
        for name, one in self.extents.items():
            names.append(name)
            end = one.offset + one.length
            if end - start >= _WINDOW:
                start = end // flush.PAGE * flush.PAGE
                yield names, start
                names = []
        yield names, self.size

    @torch.no_grad()
    def rows(self, names: Sequence[str], tensors: Mapping[str, torch.Tensor] | None) -> list[tuple[Extent, bytes]]:
        """Return these items of the file with the hashes of their values; copy these first, if they are not None."""
        if tensors and names:
            torch._foreach_copy_([self.slots[name] for name in names], [tensors[name] for name in names])
        extents = (self.extents[name] for name in names)
        return [(one, digest(self.view[one.start : one.start + one.size])) for one in extents]
