"""Python's collector of cycles, which stands still while a checkpoint is loaded.

A load makes many objects that all live until its end.  Each time that they have
grown in number by a quarter the collector looks at every object of the process,
and finds nothing.  With thousands of tensors, much of the time of a load went there.
"""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_changing = threading.Lock()
_paused = 0
_was_enabled = False


@contextmanager
def paused() -> Iterator[None]:
    """Collect no cycles in the block; afterwards the collector is as it was before the first of several blocks."""
    global _paused, _was_enabled
    with _changing:
        if _paused == 0:
            _was_enabled = gc.isenabled()
            gc.disable()
        _paused += 1
    try:
        yield
    finally:
        with _changing:
            _paused -= 1
            if _paused == 0 and _was_enabled:
                gc.enable()
