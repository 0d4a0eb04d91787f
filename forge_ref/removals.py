"""What the hooks have scheduled for removal: done on the run's thread for slow work, or by who waits for it.

Invariant: each removal is begun once: by the run, or, where the run lets it
lie, by whoever waits for it.  One that has begun is waited for without limit.
"""

import inspect
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forge_ref import ephemeral_folder
from forge_ref.messages import log as _log

_PATIENCE_S = 60.0
"""How long the run may let a removal lie while none is under way; then who waits for it does it."""


@dataclass(eq=False)
class _Removal:
    """The removal of a directory, handed over to whoever does it."""

    path: Path
    has_begun: bool = False


class Removals:
    """What is being removed, on whichever thread, and what could not be."""

    def __init__(self) -> None:
        self.patience_s = _PATIENCE_S
        self._changed = threading.Condition()
        self._changes = 0
        self._open: list[_Removal] = []
        self._failed: list[Path] = []

    def begin(self, path: Path, run_bookkeeping_op: Any | None) -> None:
        """Remove the checkpoint; nothing that fails here is raised."""
        removal = _Removal(path)
        with self._changed:
            self._open.append(removal)
        if run_bookkeeping_op is None:
            self._remove(removal)
            return
        try:
            run_bookkeeping_op(self._remove, removal, op_name=f"removing {path}", **_alone(run_bookkeeping_op))
        except Exception as error:
            if self._is_to_begin(removal):
                self._end(removal, error)

    def _is_to_begin(self, removal: _Removal) -> bool:
        """Begin it; return False if somebody else has: a new checkpoint may have the name by now."""
        with self._changed:
            has_begun, removal.has_begun = removal.has_begun, True
            self._changes += 1
            self._changed.notify_all()
        return not has_begun

    def _remove(self, removal: _Removal) -> None:
        if self._is_to_begin(removal):
            self._carry_out(removal)

    def _carry_out(self, removal: _Removal) -> None:
        try:
            ephemeral_folder.remove(removal.path)
        except BaseException as error:
            self._end(removal, error)
            if not isinstance(error, Exception):  # an interrupt
                raise
        else:
            self._end(removal, None)

    def _end(self, removal: _Removal, problem: BaseException | None) -> None:
        if problem is not None:
            _log.warning("could not remove %s: %s; tried again after the next save", removal.path, problem)
        with self._changed:
            self._open.remove(removal)
            self._failed += [] if problem is None else [removal.path]
            self._changes += 1
            self._changed.notify_all()

    def take_failed(self) -> list[Path]:
        """Return what is to be tried again; each only once."""
        with self._changed:
            failed, self._failed = self._failed, []
        return failed

    def wait(self, path: Path | None = None) -> None:
        """Return when nothing is being removed, or nothing under this name."""
        while (lying := self._lying(path)) is not None:
            for removal in filter(self._is_to_begin, lying):
                _log.warning(
                    "run_bookkeeping_op has not begun to remove %s within %g seconds; it is removed without it",
                    removal.path,
                    self.patience_s,
                )
                self._carry_out(removal)

    def _lying(self, path: Path | None) -> list[_Removal] | None:
        """Wait for a change; return what is awaited if none came, and None if nothing is awaited.

        A change is waited for without limit while a removal is under way.
        """
        with self._changed:
            awaited = [removal for removal in self._open if path in (None, removal.path)]
            if not awaited:
                return None
            before, is_running = self._changes, any(removal.has_begun for removal in self._open)
            has_changed = self._changed.wait_for(
                lambda: self._changes != before, None if is_running else self.patience_s
            )
            return [] if has_changed else awaited


def _alone(run_bookkeeping_op: Any) -> dict[str, bool]:
    """Return how to tell a run, where it asks, that a removal has no part in collectives and may be beside others."""
    try:
        is_asked = "distributed" in inspect.signature(run_bookkeeping_op).parameters
    except (TypeError, ValueError):  # it can't be looked into
        is_asked = False
    return {"distributed": False} if is_asked else {}
