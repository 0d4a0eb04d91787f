"""Python's collector of cycles, which stands still while a checkpoint is loaded.

A load makes many objects that all live until its end.  Each time that they have
grown in number by a quarter the collector looks at every object of the process,
and finds nothing.  With thousands of tensors, much of the time of a load went there.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """Collect no cycles in the block; if the collector is off already, it stays off."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
