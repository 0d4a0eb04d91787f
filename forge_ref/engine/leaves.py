"""A state as names and values, under the names that stock DCP gives them.

A value with a fixed place in the file is a dense tensor, or a rank's piece of
one.  All others are *loose*: they are packed behind the fixed ones at each
save, because their size may change from one to the next.
"""

import copy
import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor

from forge_ref.pieces import Piece, is_plain, piece_of

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Packed:
    """Bytes of ours, which DCP reads as a tensor of bytes."""

    content: bytes


class Fixed(NamedTuple):
    """What decides where a tensor lies in the file, and what the marker says of it."""

    name: str
    dtype: torch.dtype
    shape: torch.Size
    requires_grad: bool
    place: tuple[torch.Size, torch.Size] | None
    """Of a piece: the shape of the whole, and where the piece begins in it."""

    def item(self) -> WriteItem:
        """Return the item in DCP's words."""
        size, start = self.place or (self.shape, _origin(len(self.shape)))
        properties = TensorProperties(self.dtype, requires_grad=self.requires_grad)
        data = TensorWriteData(ChunkStorageMetadata(start, self.shape), properties, size)
        kind = WriteItemType.TENSOR if self.place is None else WriteItemType.SHARD
        return WriteItem(MetadataIndex(self.name, start), kind, tensor_data=data)


@dataclass(frozen=True)
class Leaves:
    """A state, flat.  Values are shared with what they were taken from, or are those of a copy."""

    fixed: dict[str, torch.Tensor]
    loose: dict[str, Any]
    layout: list[Fixed]
    """Of the fixed ones, in their order: equal for states that lie in memory and file alike."""
    paths: dict[str, Path]
    """Where each was in the nested state."""
    unwritten: frozenset[str] = field(default_factory=frozenset)
    """Names that this rank does not write, although it has them."""

    def nested(self) -> dict[str, Any]:
        """Return all of them in the shape of the state that was flattened, bytes of ours as tensors."""
        values = {**self.fixed, **self.loose}
        return nested((self.paths[name], _as_tensor(value)) for name, value in values.items())

    def plus(self, path: tuple[str, str], value: Packed) -> "Leaves":
        """Return these and another one."""
        name = ".".join(path)
        return replace(self, loose={**self.loose, name: value}, paths={**self.paths, name: path})

    def without(self, part: str) -> "Leaves":
        """Return all but the loose ones under a top-level key."""
        loose = {name: value for name, value in self.loose.items() if self.paths[name][0] != part}
        return replace(self, loose=loose)

    def items(self) -> Iterator[WriteItem]:
        """Yield what this rank could write, in DCP's words."""
        for fixed in self.layout:
            if fixed.name not in self.unwritten:
                yield fixed.item()
        for name, value in self.loose.items():
            if name not in self.unwritten:
                yield _loose_item(name, value)


@functools.lru_cache
def _origin(dimensions: int) -> torch.Size:
    return torch.Size([0] * dimensions)


def _loose_item(name: str, value: Any) -> WriteItem:
    if isinstance(value, Packed):
        return Fixed(name, torch.uint8, torch.Size([len(value.content)]), False, None).item()
    if isinstance(value, torch.Tensor):
        item = Fixed(name, value.dtype, value.shape, value.requires_grad, None).item()
        item.tensor_data.properties.layout = value.layout  # type: ignore[union-attr]  # a tensor's item has it
        return item
    return WriteItem(MetadataIndex(name), WriteItemType.BYTE_IO)


def flatten(state: Mapping[Any, Any], known: Leaves | None = None) -> Leaves:
    """Return the leaves of nested mappings and lists; `ValueError` where two have the same name.

    Of a sharded tensor it is this rank's piece, and nothing on a rank that is
    not in its mesh.  To leaves that are `known` the others are added.
    """
    leaves = Leaves({}, {}, [], {}) if known is None else known
    for key, value in state.items():
        _flatten(str(key), (str(key),), value, leaves)
    return leaves


def _flatten(name: str, path: Path, value: Any, leaves: Leaves) -> None:
    place, is_fixed = None, is_plain(value)
    if not is_fixed:
        if isinstance(value, DTensor) and (value := piece_of(value)) is None:
            return
        if isinstance(value, Piece):
            place, value = (value.shape, value.offsets), value.values
            is_fixed = is_plain(value)
            if not is_fixed:
                raise ValueError(f"{name} has shards of type {type(value).__name__}, which DCP can't put together")
        elif isinstance(value, Mapping):
            for key, item in value.items():
                key = str(key)
                _flatten(f"{name}.{key}", (*path, key), item, leaves)
            return
        elif not _is_terminal(value):
            for index, item in enumerate(value):
                _flatten(f"{name}.{index}", (*path, index), item, leaves)
            return
    if name in leaves.paths:
        raise ValueError(f"two values have the name {name}; rename one of them")
    leaves.paths[name] = path
    if is_fixed:
        leaves.fixed[name] = value
        leaves.layout.append(Fixed(name, value.dtype, value.shape, value.requires_grad, place))
    else:
        leaves.loose[name] = value


def _is_terminal(value: Any) -> bool:
    """Return whether DCP writes it as one value: a list is one unless a tensor or a filled mapping is in it."""
    if not isinstance(value, list):
        return not isinstance(value, Mapping)
    return not any(
        isinstance(item, torch.Tensor) or (isinstance(item, (Mapping, list)) and not _is_terminal(item))
        for item in value
    )


def snapshot(value: Any) -> Any:
    """Return a copy of a loose value; of tensors in host memory."""
    if isinstance(value, Packed):
        return value
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    return copy.deepcopy(value)


def _as_tensor(value: Any) -> Any:
    return torch.frombuffer(bytearray(value.content), dtype=torch.uint8) if isinstance(value, Packed) else value


def nested(items: Iterable[tuple[Path, Any]]) -> dict[str, Any]:
    """Return nested dicts and lists of values at these places."""
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
