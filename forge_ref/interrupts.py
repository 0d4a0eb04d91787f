"""Interrupts (SIGINT) that come in the middle of something that has to be done as a whole.

Invariants: each block delivers an interrupt to the handler that the script has
installed, once, however many came; none is lost, whatever the code in the block
made of the exception, as torch's C++ writer does; and afterwards that
handler is in its place again, unless the script has installed another.

Python runs signal handlers on the main thread alone.  On other threads, and
where SIGINT is ignored or ends the process, a block changes nothing.
"""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Deferral:
    """A block at whose end interrupts are delivered; those that come after the first so many are delivered at once.

    With `first` None all are deferred.  With 0 each is delivered when it comes,
    and what the handler raises leaves the block, even if the code in it has
    turned that into another error.
    """

    def __init__(self, first: int | None = None) -> None:
        self._left = first
        self._handler: Callable[[int, FrameType | None], Any] | None = None
        self._kept: tuple[int, FrameType | None] | None = None
        self._raised: BaseException | None = None

    def __enter__(self) -> "Deferral":
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler) and threading.current_thread() is threading.main_thread():
            self._handler = handler
            signal.signal(signal.SIGINT, self)
        return self

    def defer_all(self) -> None:
        """From here to the end of the block no interrupt is delivered."""
        self._left = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The handler while the block runs."""
        assert self._handler is not None, "it is installed in place of another handler"
        if self._left != 0:
            self._left = None if self._left is None else self._left - 1
            self._kept = number, frame
            return
        self._kept = None
        try:
            self._handler(number, frame)
        except BaseException as error:
            self._raised = error
            self._put_back()  # at once, since the block may not have been entered yet, and then is never left
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._put_back()
        (kept, self._kept), (raised, self._raised) = (self._kept, None), (self._raised, None)
        if raised is not None and error is not raised:
            raise raised
        if kept is not None and self._handler is not None:
            self._handler(*kept)

    def _put_back(self) -> None:
        before = self._handler
        if signal.getsignal(signal.SIGINT) is self:
            signal.signal(signal.SIGINT, before)


def for_call(first: int, are_many: bool) -> Deferral:
    """Return the block for a call; with several ranks, all interrupts wait for its end.

    So do all of them in a save (`first` above 0) if the script has a handler of
    its own.  That handler may save, and one save must not run inside another.
    """
    raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return Deferral(None if are_many or (first > 0 and not raises) else first)
