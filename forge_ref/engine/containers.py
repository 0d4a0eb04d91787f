"""What `torch.save` writes around the bytes of a dense tensor.

A container depends on the type and the shape alone, since its checksums are
left out, which `torch.load` does not look at: the table has better ones.
"""

import functools
import io
import threading
from typing import IO, cast

import torch

_changing_options = threading.Lock()


class _Sink(io.RawIOBase):
    """Keeps what is written, in parts: a new one begins where something is skipped."""

    def __init__(self) -> None:
        self.parts = [b""]

    def writable(self) -> bool:
        return True

    def write(self, content: memoryview) -> int:  # type: ignore[override]
        self.parts[-1] += bytes(content)
        return len(content)

    def seek(self, _offset: int, _whence: int = 0) -> int:
        self.parts.append(b"")
        return 0


@functools.lru_cache(4096)
def container(dtype: torch.dtype, shape: torch.Size) -> tuple[bytes, bytes]:
    """Return what stands before and after the bytes of a contiguous tensor."""
    sink = _Sink()
    with _changing_options, torch.serialization.skip_data():
        before = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(False)
        try:
            torch.save(torch.empty(shape, dtype=dtype, device="cpu"), cast(IO[bytes], sink))
        finally:
            torch.serialization.set_crc32_options(before)
    prefix, *rest = sink.parts
    return prefix, b"".join(rest)
