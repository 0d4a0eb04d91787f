"""A job on a thread of its own: a flush, a deletion, hashes.

Invariants: the thread is not a daemon, so a normal exit of the interpreter
waits for it; and an interrupt in a wait changes nothing, since the job goes on
and the next wait waits again.
"""

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_LOOK_S = 1.0
"""A wait lasts so long at most: a signal that comes right before it, or to another thread, does not end it."""


class Background(threading.Thread, Generic[T]):
    """A job that has begun; it has ended already where no thread is to be had, as when the interpreter ends.

    Nobody joins it: before Python 3.13 a thread whose join was interrupted
    counts as ended, although it runs on.
    """

    def __init__(self, what: str, job: Callable[[], T]) -> None:
        super().__init__(name=f"forge_ref {what}", daemon=False)
        self._job: Callable[[], T] | None = job
        self._process = os.getpid()
        self._running = threading.Lock()
        self._running.acquire()
        self._outcome: list[T] = []
        self.has_ended = False
        """Set by the job itself."""
        self.error: BaseException | None = None
        try:
            self.start()
        except RuntimeError:
            self.run()

    def run(self) -> None:
        assert self._job is not None, "a job runs once"
        try:
            self._outcome.append(self._job())
        except BaseException as error:
            self.error = error
        finally:
            self._job = None  # frees what it holds now, not when somebody waits
            self.has_ended = True
            self._running.release()

    def await_end(self) -> None:
        """Return when the job has ended; an interrupt may come, and the next call waits again."""
        while not self.has_ended and self._process == os.getpid():  # a forked child has no such thread
            if self._running.acquire(timeout=_LOOK_S):
                self._running.release()

    def outcome(self) -> T | None:
        """Return what the job does, when it has ended; None if it failed."""
        self.await_end()
        return self._outcome[0] if self._outcome else None

    def result(self) -> T:
        """Return or raise what the job does, when it has ended."""
        self.await_end()
        if self.error is not None:
            raise self.error
        return self._outcome[0]
