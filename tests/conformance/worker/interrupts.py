"""How this process takes an interrupt (SIGINT), and how it brings one about inside a call.

Invariant: an interrupt is raised only out of one of the manager's calls, once in
each.  One that comes before or after it is counted as late and does nothing, so
the conversation with the suite goes on whenever a signal comes.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

WAYS = ("raise", "note", "save")
CALLS = ("save", "wait", "flush", "load")
"""Commands that an interrupt may come out of."""


class Interrupts:
    """This process's handler for SIGINT, once it is installed, and what became of the signals."""

    def __init__(self) -> None:
        self._how = ""
        self._saves: Callable[[], None] = lambda: None
        self._is_in_call = False
        self._counted = dict.fromkeys(("raised", "noted", "late"), 0)
        self._refusals: list[str] = []

    def heed(self, how: str, saves: Callable[[], None]) -> None:
        """From here on raise `KeyboardInterrupt` out of the manager's call, note the signal, or note it and save."""
        assert how in WAYS, f"{how} is not one of {WAYS}"
        self._how, self._saves = how, saves
        signal.signal(signal.SIGINT, self._on_interrupt)

    @contextmanager
    def in_call(self, do: str) -> Iterator[None]:
        """While a command runs; when the block is left, nothing is raised any more."""
        try:
            self._is_in_call = do in CALLS
            yield
        finally:
            self._is_in_call = False

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self._is_in_call:
            self._counted["late"] += 1
        elif self._how == "raise":
            self._counted["raised"] += 1
            self._is_in_call = False
            signal.default_int_handler(number, frame)
        else:
            self._counted["noted"] += 1
            if self._how == "save":
                self._save()

    def _save(self) -> None:
        try:
            self._saves()
        except Exception as error:
            self._refusals.append(f"{type(error).__name__}: {error}")

    def take(self) -> dict[str, Any]:
        """What has come of interrupts since the last time, and whether the handler is still in its place."""
        taken = {**self._counted, "refusals": self._refusals}
        self._counted, self._refusals = dict.fromkeys(self._counted, 0), []
        return {**taken, "is_installed": signal.getsignal(signal.SIGINT) == self._on_interrupt}


def interrupt_in(part: Any, method: str) -> None:
    """Let the next call of this method interrupt the process, when it has done its work.

    The object gets a class of its own for that, since what is stored on it may be saved with its state.
    """
    plain = type(part)

    def interrupted(self: Any, *arguments: Any, **options: Any) -> Any:
        self.__class__ = plain
        done = getattr(plain, method)(self, *arguments, **options)
        os.kill(os.getpid(), signal.SIGINT)
        return done

    part.__class__ = type(plain.__name__, (plain,), {method: interrupted, "__module__": plain.__module__})
