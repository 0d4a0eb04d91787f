"""Saving beside training: the state is copied, then flushed by a thread while training goes on.

Invariants: a flush sees the values of the time of the call (commit.snapshot);
at most one is in flight, and the next waits for it (commit.one-in-flight); and
its failure is raised exactly once, to whoever asks next (commit.failed-flush).

The thread is not a daemon, so a normal exit of the interpreter waits for it,
and it logs a failure at once, so one that nobody asks for is seen all the same
(commit.exit).
"""

import copy
import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.stateful import Stateful

from forge_ref import storage
from forge_ref.channel import OnRankError
from forge_ref.config import AsyncCheckpointMode
from forge_ref.pieces import Piece, in_pieces
from forge_ref.pinned import PinnedStaging

State = dict[str, Any]
Flush = Callable[[], None]
_log = logging.getLogger("forge_ref")


class _Flight(threading.Thread):
    """One flush in the background, and how it ended."""

    def __init__(self, flush: Flush) -> None:
        super().__init__(name="forge_ref flush", daemon=False)
        self._job: Flush | None = flush
        self.error: BaseException | None = None

    def run(self) -> None:
        assert self._job is not None, "a flight runs once"
        try:
            self._job()
        except BaseException as error:
            self.error = error
            _log.error("%s", error)
        finally:
            self._job = None  # frees the copy now, not when somebody waits


class AsyncCheckpointer:
    """Writes state dicts with DCP, at once or in the background; see `AsyncCheckpointMode`."""

    def __init__(self, mode: AsyncCheckpointMode = AsyncCheckpointMode.disabled) -> None:
        self.mode = AsyncCheckpointMode(mode)
        self._flight: _Flight | None = None
        self._staging: PinnedStaging | None = None
        if self.mode is AsyncCheckpointMode.async_pinned:
            if torch.cuda.is_available():
                self._staging = PinnedStaging()
            else:
                _log.warning("async_mode is %s and there is no GPU to pin memory for: it acts like async", self.mode)

    def save(self, state_dict: State, checkpoint_id: str, process_group: dist.ProcessGroup | None = None) -> None:
        """Write a state dict into the directory `checkpoint_id`, overwriting shards that are there.

        First waits for the save before it, and raises its failure.  In a job of
        several ranks, those of `process_group`, or all, have to call this
        together; in an async mode the group's next collectives are the flush's,
        so it has to be one, with a CPU backend, that nothing else uses meanwhile.
        """
        self.wait()
        plain = {key: value.state_dict() if isinstance(value, Stateful) else value for key, value in state_dict.items()}
        group = storage.group_for(process_group)
        self.launch(partial(_write, self.hold(in_pieces(plain)), Path(checkpoint_id), group))

    def hold(self, state: State) -> State:
        """The state as a flush may have it: in an async mode a copy in host memory, else the state itself.

        Only for use when nothing is in flight, since pinned memory is used again.
        """
        if self.mode is AsyncCheckpointMode.disabled:
            return state
        if self._staging is None:
            return cast(State, _to_host(state, _copied))
        self._staging.begin()
        return cast(State, _to_host(state, self._staging.copied))

    def launch(self, flush: Flush) -> None:
        """Flush now, or in the background; what it needs it must hold."""
        if self.mode is AsyncCheckpointMode.disabled:
            flush()
            return
        flight = _Flight(flush if self._staging is None else partial(self._staging.then, flush))
        try:
            flight.start()
        except RuntimeError:  # no thread is to be had, and the other ranks count on this one's flush
            flight.run()
        self._flight = flight

    def settle(self) -> None:
        """Return when nothing is in flight; how it ended is left for `wait` to tell."""
        if self._flight is not None and self._flight.is_alive():
            self._flight.join()

    def wait(self) -> None:
        """Return when nothing is in flight; raises the failure of a background save, once."""
        self.settle()
        flight, self._flight = self._flight, None
        if flight is not None and flight.error is not None:
            raise flight.error

    @property
    def is_pending(self) -> bool:
        """Whether a background save has been dispatched and not been waited for."""
        return self._flight is not None


def _write(state: State, path: Path, group: dist.ProcessGroup | None) -> None:
    try:
        storage.write(state, path, group)
    except OnRankError as error:
        raise error.told() from None


Copy = Callable[[torch.Tensor], torch.Tensor]


def _to_host(value: Any, copied: Copy) -> Any:
    """A copy in host memory that shares nothing with the original; always in the same order for the same structure."""
    if isinstance(value, torch.Tensor):
        return copied(value.detach())
    if isinstance(value, Piece):
        return value.holding(copied(value.values.detach()))
    if isinstance(value, Mapping):
        return {key: _to_host(item, copied) for key, item in value.items()}
    if isinstance(value, list):
        return [_to_host(item, copied) for item in value]
    return copy.deepcopy(value)


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("cpu", copy=True)
