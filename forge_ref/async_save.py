"""Saving beside training: the state is copied, then flushed by a thread while training goes on.

Invariants: a flush sees the values of the time of the call (commit.snapshot);
at most one is in flight, and the next waits for it (commit.one-in-flight); and
its failure is raised exactly once, to whoever asks next (commit.failed-flush).
An interrupt in a wait changes none of this: the flush goes on, and the next
wait waits for it (interrupt.flush-is-found).

A normal exit of the interpreter waits for the flush, and a failure is logged at
once, so one that nobody asks for is seen all the same (commit.exit).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.stateful import Stateful

from forge_ref.background import Background
from forge_ref.channel import ALONE, Channel
from forge_ref.config import AsyncCheckpointMode
from forge_ref.engine.leaves import Leaves, flatten
from forge_ref.engine.writing import ShardWriter
from forge_ref.interrupts import Deferral
from forge_ref.messages import log as _log
from forge_ref.pinned import PinnedStaging
from forge_ref.retire import Deletion

State = dict[str, Any]
Flush = Callable[[], object]


class AsyncCheckpointer:
    """Writes state dicts in DCP's format, at once or in the background; see `AsyncCheckpointMode`."""

    def __init__(self, mode: AsyncCheckpointMode = AsyncCheckpointMode.disabled) -> None:
        self.mode = AsyncCheckpointMode(mode)
        self._flight: Background[None] | None = None
        staging: PinnedStaging | None = None
        if self.mode is AsyncCheckpointMode.async_pinned:
            if torch.cuda.is_available():
                staging = PinnedStaging()
            else:
                _log.warning("async_mode is %s, but there is no GPU to pin memory for; it acts like async", self.mode)
        self.shards = ShardWriter(staging)
        self.deletion = Deletion()
        """Of what commits have made superfluous."""

    def save(self, state_dict: State, checkpoint_id: str, process_group: dist.ProcessGroup | None = None) -> None:
        """Write a state dict into the directory `checkpoint_id`, overwriting shards that are there.

        First waits for the save before it, and raises its failure.  In a job of
        several ranks, those of `process_group`, or all, have to call this
        together; in an async mode the group's next collectives are the flush's,
        so it has to be one, with a CPU backend, that nothing else uses meanwhile.
        """
        self.wait()
        plain = {key: value.state_dict() if isinstance(value, Stateful) else value for key, value in state_dict.items()}
        channel = channel_for(process_group)
        with Deferral(1 if channel.group is None else None):
            self.launch(partial(self.shards.write, self.hold(flatten(plain)), Path(checkpoint_id), channel))

    def hold(self, leaves: Leaves, in_background: bool = True) -> Leaves:
        """Return the state for a flush: in an async mode a copy in host memory, else the state itself.

        Only for use when nothing is in flight, since its memory is used again.
        """
        is_copied = in_background and self.mode is not AsyncCheckpointMode.disabled
        return self.shards.hold(leaves) if is_copied else leaves

    def launch(self, flush: Flush) -> None:
        """Flush now, or in the background; the flush must hold all that it needs."""
        if self.mode is AsyncCheckpointMode.disabled:
            flush()
            return
        staging = self.shards.staging
        job = partial(_logging_failure, flush if staging is None else partial(staging.then, flush))
        with Deferral():  # the second interrupt of a save may come here, and a flush that has begun has to be known
            self._flight = Background("flush", job)

    def settle(self) -> None:
        """Return when nothing is in flight; a failure is left for `wait` to raise."""
        while (flight := self._flight) is not None:
            flight.await_end()
            if flight is self._flight:  # and not another, which a signal handler has begun meanwhile
                return

    def wait(self) -> None:
        """Return when nothing is in flight; raises the failure of a background save, once."""
        while (flight := self._flight) is not None:
            flight.await_end()
            # One line looks and changes: not even a tracer lets a handler begin another flight in between.  And no call
            # is made from here, so no interrupt can come before the failure is out.
            self._flight, has_ended = (None, True) if flight is self._flight else (self._flight, False)
            if has_ended and flight.error is not None:
                raise flight.error

    @property
    def holds_later(self) -> bool:
        """Whether the values of what `hold` returns arrive only when the flush begins."""
        return self.shards.staging is not None

    @property
    def is_pending(self) -> bool:
        """Whether a background save has been dispatched and not been waited for."""
        return self._flight is not None


def _logging_failure(flush: Flush) -> None:
    """Flush; log at once what it raises, since nobody may ask for it."""
    try:
        flush()
    except BaseException as error:
        _log.error("%s", error)
        raise


def channel_for(process_group: dist.ProcessGroup | None) -> Channel:
    """Return the channel to write over: of the given group, else of all ranks; `ALONE` if there is only one."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(process_group) == 1:
        return ALONE
    group = process_group if process_group is not None else dist.group.WORLD
    names = dist.get_process_group_ranks(group)
    return Channel(dist.get_rank(group), len(names), group, names)
