"""A rank's piece of a sharded tensor, so that only what this rank holds is copied, written and read.

DCP plans with `DTensor`s; but one of those puts its values on the device of
its mesh, while copies for a flush and values just read belong in host memory.
A piece has the same place in the whole, and its values wherever they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
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
        """The same place with other values."""
        return replace(self, values=values)

    def __create_write_items__(self, fqn: str, _object: Any) -> list[WriteItem]:
        """Asked for by DCP's planner, as of everything that knows how it is to be written."""
        properties = TensorProperties.create_from_tensor(self.values)
        data = TensorWriteData(chunk=self.chunk, properties=properties, size=self.shape)
        return [WriteItem(index=MetadataIndex(fqn, self.offsets), type=WriteItemType.SHARD, tensor_data=data)]


def box(tensor: torch.Tensor, offsets: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
    """The part of a tensor from these offsets on, so long in each dimension; a view."""
    for dimension, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        tensor = tensor.narrow(dimension, offset, length)
    return tensor


def piece_of(tensor: DTensor) -> Piece | None:
    """This rank's piece, sharing memory; None on a rank that the tensor's mesh leaves out."""
    if tensor.device_mesh.get_coordinate() is None:
        return None
    with torch.no_grad():  # with gradients, a local part is a view that training could not change in place
        local = tensor.to_local()
    (chunk,) = tensor.__create_chunk_list__()  # type: ignore[no-untyped-call]
    return Piece(tensor.shape, chunk.offsets, local.detach())


def in_pieces(value: Any) -> Any:
    """Nested dicts with each `DTensor` as this rank's piece; one that it has no piece of is left out.

    One in a list stays: DCP looks into lists for the sake of tensors only.
    """
    if isinstance(value, Mapping):
        taken = {key: in_pieces(item) for key, item in value.items()}
        return {key: item for key, item in taken.items() if item is not None or value[key] is None}
    if isinstance(value, list):
        return [item if isinstance(item, DTensor) else in_pieces(item) for item in value]
    return piece_of(value) if isinstance(value, DTensor) else value


@torch.no_grad()
def fill(tensor: DTensor, values: Piece | torch.Tensor) -> DTensor:
    """Put this rank's piece, or its part of a whole tensor, into the tensor; no other rank takes part."""
    piece = piece_of(tensor)
    if piece is not None:
        here = values.values if isinstance(values, Piece) else box(values, piece.offsets, piece.values.shape)
        piece.values.copy_(here)
    return tensor
