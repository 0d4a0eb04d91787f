"""A model that has trained one step, its values as flat tensors, and what writes and reads them as they lie."""

import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

CHUNK_BYTES = 16 << 20
_VECTORS = 1000  # that one call takes
_PAGE = 4096


@dataclass(frozen=True)
class Size:
    """How large a state is: megabytes of parameters and moments together, and how many tensors these are."""

    name: str
    megabytes: int
    tensors: int


SIZES = {
    size.name: size
    for size in (
        Size("16MB", 16, 160),
        Size("256MB", 256, 160),
        Size("1GB", 1000, 160),
        Size("4GB", 4000, 160),
        Size("10k", 40, 10_000),
        Size("100k", 400, 100_000),
    )
}


@dataclass
class Subject:
    """A model with its optimizer."""

    model: Any
    optimizer: Any

    @cached_property
    def tensors(self) -> list[torch.Tensor]:
        """All of its values, without names."""
        moments = [value for entry in self.optimizer.state.values() for value in entry.values()]
        return [parameter.detach() for parameter in self.model.parameters()] + moments

    @cached_property
    def _moments(self) -> list[tuple[Any, dict[str, torch.Tensor]]]:
        return [(parameter, dict(entry)) for parameter, entry in self.optimizer.state.items()]

    def remember(self) -> None:
        """Remember the tensors of the optimizer."""
        _ = self._moments, self.tensors

    def put_back(self) -> None:
        """Put those tensors back after a load that has made others, so that all works find the same memory."""
        for parameter, entry in self._moments:
            self.optimizer.state[parameter].update(entry)

    @property
    def size_bytes(self) -> int:
        """Of all values."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def state(self) -> dict[str, Any]:
        """Return it as DCP's own helpers do."""
        weights, moments = get_state_dict(self.model, self.optimizer)
        return {"model": weights, "optimizer": moments}

    def put(self, state: dict[str, Any]) -> None:
        """Put a state in as DCP's own helpers do."""
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])

    def named(self) -> dict[str, torch.Tensor]:
        """Return all tensors under plain names."""
        return {f"t{number}": tensor for number, tensor in enumerate(self.tensors)}


def subject(size: Size) -> Subject:
    """Return a model whose parameters and moments are so large; of four tensors one is a step's count."""
    count = max(1, size.tensors // 4)
    length = size.megabytes * 1_000_000 // 3 // count // 4
    layers = [
        torch.nn.ParameterDict({f"p{i}": torch.nn.Parameter(torch.randn(length)) for i in range(10)})
        for _ in range(count // 10)
    ]
    model = torch.nn.ModuleList(layers)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    made = Subject(model, optimizer)
    made.remember()
    return made


class Warm:
    """Memory for a copy of the values, which is there already, and the limits that it serves to measure."""

    def __init__(self, subject: Subject) -> None:
        self._tensors = subject.tensors
        self._memory = _huge(-(-subject.size_bytes // _PAGE) * _PAGE)
        whole, at = torch.frombuffer(self._memory, dtype=torch.uint8), 0
        self.copies: list[torch.Tensor] = []
        for tensor in self._tensors:
            self.copies.append(whole[at : at + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
            at += tensor.nbytes
        self._sources, self._targets = (list(map(bytes_of, several)) for several in (self._tensors, self.copies))

    def copy(self) -> None:
        """Copy all tensors at once."""
        torch._foreach_copy_(self.copies, self._tensors)

    def write_directly(self, path: Path) -> None:
        """Write the memory around the page cache, in large chunks, until it is on storage."""
        descriptor = os.open(path / "bytes", os.O_CREAT | os.O_WRONLY | os.O_DIRECT)
        view = memoryview(self._memory)
        for start in range(0, len(view), CHUNK_BYTES):
            os.pwrite(descriptor, view[start : start + CHUNK_BYTES], start)
        os.close(descriptor)
        sync_tree(path)

    def write_buffered(self, path: Path) -> None:
        """Write the tensors as they lie, until they are on storage."""
        descriptor = os.open(path / "bytes", os.O_CREAT | os.O_WRONLY)
        _by_vectors(os.writev, descriptor, self._sources)
        os.close(descriptor)
        sync_tree(path)

    def read(self, path: Path) -> None:
        """Read as many bytes of a file into the copies as these hold."""
        descriptor = os.open(path, os.O_RDONLY)
        _by_vectors(os.readv, descriptor, self._targets)
        os.close(descriptor)

    def read_fresh(self, path: Path) -> None:
        """Read as many bytes into memory that the system has not given yet, asked for in huge pages as well."""
        descriptor, memory = os.open(path, os.O_RDONLY), _huge(len(self._memory))
        view, at, pieces = memoryview(memory), 0, []
        for target in self._targets:
            pieces.append(view[at : at + len(target)])
            at += len(target)
        _by_vectors(os.readv, descriptor, pieces)
        os.close(descriptor)


def _huge(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _by_vectors(call: Callable[[int, list[memoryview]], int], descriptor: int, pieces: list[memoryview]) -> None:
    group: list[memoryview] = []
    size = 0
    for piece in pieces:  # a call takes at most 2 GB and so many vectors
        if len(group) == _VECTORS or size + len(piece) > 1 << 30:
            call(descriptor, group)
            group, size = [], 0
        group.append(piece)
        size += len(piece)
    call(descriptor, group)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous tensor."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def sync_tree(path: Path) -> None:
    """Sync all files and directories below, the directory itself, and its name."""
    for place in (*path.rglob("*"), path, path.parent):
        descriptor = os.open(place, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
