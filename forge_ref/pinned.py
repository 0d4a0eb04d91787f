"""Staging from a GPU through page-locked memory, without a wait for the device.

The stream that computes is given one thing to do: a copy of each tensor on the
device itself, which comes after all that was queued before it and ahead of
whatever changes the tensor next (commit.snapshot).  From there a stream of our
own brings it to page-locked host memory while training computes on; the flush
waits for that stream, and the caller never does (commit.pinned).

It costs the state once more in device memory until it has arrived.  Where
that is not to be had, a tensor is copied directly, and the compute stream
waits until it has been: slower, and still the values of the time of the call.
"""

from collections.abc import Callable, Iterable

import torch


class PinnedStaging:
    """Brings values into memory that `pin` has locked; one save at a time."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    @torch.no_grad()
    def stage(self, targets: Iterable[torch.Tensor], tensors: Iterable[torch.Tensor]) -> None:
        """Let the targets hold the values when `then` flushes; what they hold before is undefined."""
        for target, tensor in zip(targets, tensors, strict=True):
            self._stage(target, tensor.detach())

    def _stage(self, target: torch.Tensor, tensor: torch.Tensor) -> None:
        if not tensor.is_cuda:
            target.copy_(tensor)
            return
        compute = torch.cuda.current_stream(tensor.device)
        if tensor.device not in self._streams:
            self._streams[tensor.device] = _stream(tensor.device)
        ours = self._streams[tensor.device]
        try:
            source = tensor.clone()
        except torch.cuda.OutOfMemoryError:
            source = tensor
        ours.wait_stream(compute)
        with torch.cuda.stream(ours):
            target.copy_(source, non_blocking=True)
        source.record_stream(ours)  # its memory is not given to others before the copy is done
        if source is tensor:
            compute.wait_stream(ours)

    def then(self, flush: Callable[[], object]) -> None:
        """Flush when every copy has arrived."""
        for stream in self._streams.values():
            stream.synchronize()
        flush()


def pin(memory: torch.Tensor) -> Callable[[], object]:
    """Lock the pages of this memory, so that a GPU can copy into it by itself.  Return a callable that unlocks them."""
    cudart, address = torch.cuda.cudart(), memory.data_ptr()  # type: ignore[no-untyped-call]
    cudart.cudaHostRegister(address, memory.nbytes, 0)  # where that is refused, copies are slower, and as right
    return lambda: cudart.cudaHostUnregister(address)


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch does not say
