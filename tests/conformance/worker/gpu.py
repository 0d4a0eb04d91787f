"""What a GPU did, told by its streams and by torch's account of page-locked memory, never by a clock."""

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
    """Page-locked memory that torch has handed out in this process."""
    statistics = torch.cuda.memory.host_memory_stats()
    return int(statistics["allocated_bytes.current"])


def state_bytes(training: Workload) -> int:
    """What a save has to copy off the device: parameters, buffers and moments."""
    moments = (value for state in training.optimizer.state.values() for value in state.values())
    tensors = [*training.model.parameters(), *training.model.buffers(), *moments]
    return sum(local(tensor).nbytes for tensor in tensors if isinstance(tensor, torch.Tensor) and tensor.is_cuda)
