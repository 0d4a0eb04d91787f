"""What a GPU did, told by its streams, and which memory of the process CUDA has locked.

A save that takes longer by itself than the work that is queued before it, seconds, counts as one that waits for it.
"""

import ctypes
import mmap
from collections.abc import Callable
from pathlib import Path

import torch

from .workload import Workload, local

_SIZE, _PRODUCTS = 8192, 200
"""Each product is a tera-operation in single precision: all together keep any GPU of today busy for seconds."""


class Busy:
    """Work queued on the stream that computes; `lasts` as long as that stream has not come to its end."""

    def __init__(self, device: torch.device) -> None:
        matrix = torch.full((_SIZE, _SIZE), 1e-4, device=device)
        for _ in range(_PRODUCTS):
            matrix = matrix @ matrix
        self._end = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch does not say
        self._end.record()

    def lasts(self) -> bool:
        """Whether the work is still going on."""
        return not self._end.query()  # type: ignore[no-untyped-call]  # the same


def pinned_bytes() -> int:
    """Page-locked memory: what torch has handed out, and what was the process's own and was locked later."""
    statistics = torch.cuda.memory.host_memory_stats()
    return int(statistics["allocated_bytes.current"]) + own_bytes(_is_pinned)


def own_bytes(is_counted: Callable[[int], bool]) -> int:
    """How much of the private memory that is there consists of pages whose address is counted."""
    return mmap.PAGESIZE * sum(
        is_counted(page) for start, end in _private_memory() for page in range(start, end, mmap.PAGESIZE)
    )


def _private_memory() -> list[tuple[int, int]]:
    """The first address and the end of each mapping that can be written and of which anything is in memory."""
    found: list[tuple[int, int]] = []
    bounds = (0, 0)
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, second, *_ = [*line.split(), ""]
        if not first.endswith(":"):
            start, _, end = first.partition("-")
            bounds = (int(start, 16), int(end, 16)) if second == "rw-p" else (0, 0)
        elif first == "Rss:" and second != "0" and bounds[1]:
            found.append(bounds)
    return found


def _is_pinned(address: int) -> bool:
    return torch.frombuffer((ctypes.c_char * 1).from_address(address), dtype=torch.uint8).is_pinned()


def state_bytes(training: Workload) -> int:
    """What a save has to copy off the device: parameters, buffers and moments."""
    moments = (value for state in training.optimizer.state.values() for value in state.values())
    tensors = [*training.model.parameters(), *training.model.buffers(), *moments]
    return sum(local(tensor).nbytes for tensor in tensors if isinstance(tensor, torch.Tensor) and tensor.is_cuda)
