"""A rank's piece of a sharded tensor, so that only what this rank holds is copied, written and read.

DCP plans with `DTensor`s; but one of those puts its values on the device of
its mesh, while copies for a flush and values just read belong in host memory.
A piece has the same place in the whole, and its values wherever they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Piece:
    """The values of one rank, and where they lie in a tensor of `shape`."""

    shape: torch.Size
    offsets: torch.Size
    values: torch.Tensor

    @property
    def chunk(self) -> ChunkStorageMetadata:
        """The place, in DCP's words."""
        return ChunkStorageMetadata(offsets=self.offsets, sizes=self.values.shape)

    def holding(self, values: torch.Tensor) -> "Piece":
        """Return a piece of the same place with other values."""
        return replace(self, values=values)


def box(tensor: torch.Tensor, offsets: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
    """Return a view of the part of a tensor that begins at these offsets and has these lengths."""
    for dimension, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        tensor = tensor.narrow(dimension, offset, length)
    return tensor


def piece_of(tensor: DTensor) -> Piece | None:
    """Return this rank's piece, sharing memory; None on a rank that is not in the tensor's mesh."""
    if tensor.device_mesh.get_coordinate() is None:
        return None
    with torch.no_grad():  # with gradients, a local part is a view that training could not change in place
        local = tensor.to_local()
    (chunk,) = tensor.__create_chunk_list__()  # type: ignore[no-untyped-call]
    return Piece(tensor.shape, chunk.offsets, local.detach())


PLAIN = frozenset({torch.Tensor, torch.nn.Parameter, torch.nn.Buffer})
"""Torch's own types of tensors."""


def is_plain(value: Any) -> bool:
    """Return whether it is a dense tensor of torch's own type, whose values are all there is to it."""
    return type(value) in PLAIN and value.layout is torch.strided and not (value.is_quantized or value.is_nested)


Copy = tuple[torch.Tensor, torch.Tensor]
"""Where values go, and the values."""


def copies_into(tensor: torch.Tensor, values: Piece | torch.Tensor) -> list[Copy]:
    """Return the copies that put this rank's piece, or its part of a whole tensor, into the tensor."""
    if not isinstance(tensor, DTensor):
        return [(tensor, values.values if isinstance(values, Piece) else values)]
    piece = piece_of(tensor)
    if piece is None:
        return []
    if isinstance(values, Piece):
        return [(piece.values, values.values)]
    return [(piece.values, box(values, piece.offsets, piece.values.shape))]


@torch.no_grad()
def fill(tensor: DTensor, values: Piece | torch.Tensor) -> DTensor:
    """Put this rank's piece, or its part of a whole tensor, into the tensor and return it."""
    for target, here in copies_into(tensor, values):
        target.copy_(here)
    return tensor


def shape_of(value: Any) -> tuple[int, ...] | None:
    """Return the shape of a whole tensor; None for what is neither a tensor nor a piece of one."""
    return tuple(value.shape) if isinstance(value, (torch.Tensor, Piece)) else None


def dtype_of(value: Piece | torch.Tensor) -> torch.dtype:
    """Return the type of the elements."""
    return value.values.dtype if isinstance(value, Piece) else value.dtype
