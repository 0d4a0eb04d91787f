"""Python's collector of cycles, which stands still while a checkpoint is loaded or staged.

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
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
