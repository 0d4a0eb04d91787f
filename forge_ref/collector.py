"""Python's collector of cycles, which stands still in a load, and in a save until it returns.

Both make many objects that all live until their end.  Each time that they have
grown in number by a quarter the collector looks at every object of the process,
and finds nothing.  With thousands of tensors, half of the time of a load or of a
first save went there.

Only calls of the script's own thread pause it: what a script does with the
collector beside a flush has to stay.
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
    try:
        gc.disable()  # an interrupt may come as soon as it returns
        yield
    finally:
        gc.enable()
