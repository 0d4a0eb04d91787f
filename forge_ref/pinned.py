"""Staging from a GPU through page-locked memory, without a wait for the device.

The stream that computes is given one thing to do: a copy of each tensor on the
device itself, which comes after all that was queued before it and ahead of
whatever changes the tensor next (commit.snapshot).  From there a stream of our
own brings it to page-locked host memory while training computes on; the flush
waits for that stream, the caller never does (commit.pinned).

It costs the state once more in device memory until it has arrived.  Where
that is not to be had, a tensor is copied directly, and the compute stream
waits until it has been: slower, and still the values of the time of the call.
"""

from collections.abc import Callable

import torch


class PinnedStaging:
    """One save's staging at a time; page-locked memory is used again for the same tensors of the next save."""

    def __init__(self) -> None:
        self._memory: list[torch.Tensor] = []
        self._used = 0
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def copied(self, tensor: torch.Tensor) -> torch.Tensor:
        """Where a copy of the tensor will be once `then` goes on; it holds nothing of worth before."""
        if not tensor.is_cuda:
            return tensor.to("cpu", copy=True)
        target = self._next_memory(tensor)
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
        return target

    def _next_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        place, self._used = self._used, self._used + 1
        if place == len(self._memory):
            self._memory.append(torch.empty(0))
        kept = self._memory[place]
        if kept.shape != tensor.shape or kept.dtype != tensor.dtype or not kept.is_pinned():
            self._memory[place] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return self._memory[place]

    def begin(self) -> None:
        """The next tensor is the first of a save."""
        self._used = 0

    def then(self, flush: Callable[[], None]) -> None:
        """Flush when every copy has arrived."""
        for stream in self._streams.values():
            stream.synchronize()
        flush()


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch does not say
