"""What the hooks have scheduled for removal: done on the run's thread for slow work, or by who waits for it.

Invariant: each removal is begun once: by the run, or, where the run lets it
lie, by whoever waits for it.  One that has begun is waited for without limit.
"""

import inspect
import threading
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forge_ref import ephemeral_folder
from forge_ref.messages import log as _log

_PATIENCE_S = 60.0
"""How long the run may let a removal lie while none is under way; then who waits for it does it."""


@dataclass(frozen=True)
class _Removal:
    """The removal of a directory, handed over to whoever does it."""

    path: Path
    future: "Future[None]" = field(default_factory=Future)
    """Running once it has begun; cancelled if somebody else does it instead."""


class Removals:
    """What is being removed, on whichever thread, and what could not be."""

    def __init__(self) -> None:
        self.patience_s = _PATIENCE_S
        self._begun: list[_Removal] = []
        self._failed: list[Path] = []
        self._beginning = threading.Lock()

    def begin(self, path: Path, run_bookkeeping_op: Any | None) -> None:
        """Remove the checkpoint; nothing that fails here is raised."""
        removal = _Removal(path)
        self._begun = [*self._open(), removal]
        if run_bookkeeping_op is None:
            self._remove(removal)
            return
        try:
            run_bookkeeping_op(self._remove, removal, op_name=f"removing {path}", **_alone(run_bookkeeping_op))
        except Exception as error:
            if removal.future.cancel():
                self._note_failure(path, error)

    def _remove(self, removal: _Removal) -> None:
        """Remove it, unless somebody else has: a new checkpoint may have the name by now."""
        with self._beginning:
            has_begun = removal.future.running() or removal.future.done()
            if has_begun or not removal.future.set_running_or_notify_cancel():
                return
        try:
            ephemeral_folder.remove(removal.path)
        except BaseException as error:
            self._note_failure(removal.path, error)
            if not isinstance(error, Exception):  # an interrupt
                raise
        finally:
            removal.future.set_result(None)

    def _note_failure(self, path: Path, problem: BaseException) -> None:
        _log.warning("could not remove %s: %s; tried again after the next save", path, problem)
        self._failed.append(path)

    def take_failed(self) -> list[Path]:
        """Return what is to be tried again; each only once."""
        return [self._failed.pop(0) for _ in range(len(self._failed))]

    def _open(self) -> list[_Removal]:
        return [removal for removal in self._begun if not removal.future.done()]

    def wait(self, path: Path | None = None) -> None:
        """Return when nothing is being removed, or nothing under this name.

        One that has begun, here or under another name, is waited for without limit.
        """
        while lying := [removal for removal in self._open() if path in (None, removal.path)]:
            pending = [removal.future for removal in self._open()]
            patience_s = None if any(future.running() for future in pending) else self.patience_s
            has_ended = bool(wait(pending, patience_s, FIRST_COMPLETED).done)
            if has_ended or any(future.running() for future in pending):
                continue
            for removal in lying:
                if removal.future.cancel():
                    _log.warning(
                        "run_bookkeeping_op has not begun to remove %s within %g seconds; it is removed without it",
                        removal.path,
                        self.patience_s,
                    )
                    self.begin(removal.path, None)


def _alone(run_bookkeeping_op: Any) -> dict[str, bool]:
    """Return how to tell a run, where it asks, that a removal has no part in collectives and may be beside others."""
    try:
        is_asked = "distributed" in inspect.signature(run_bookkeeping_op).parameters
    except (TypeError, ValueError):  # it can't be looked into
        is_asked = False
    return {"distributed": False} if is_asked else {}
