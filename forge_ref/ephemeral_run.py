"""What hooks save and act on: a training run, as small as it can be, with one thread for slow work.

    run = TrainingRun("checkpoints", model, optimizer, scheduler, loader)
    saver = CheckpointerCallback(save_interval=1000, ephemeral_save_interval=100)
    saver.trainer = run
    run.load_checkpoint()
    saver.pre_train()
    while run.global_step < 10_000:
        train_on(next(batches))
        run.global_step += 1
        saver.post_train_batch()
    saver.post_train()

Any other object with these members will do in its place.
"""

import operator
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch

from forge_ref import ephemeral_folder, paths, ranks
from forge_ref.async_save import AsyncCheckpointer
from forge_ref.config import AsyncCheckpointMode, CheckpointConfig
from forge_ref.ephemeral_saver import EphemeralResumer, EphemeralSaver
from forge_ref.gradients import GradientWatch
from forge_ref.messages import log as _log
from forge_ref.run import Run
from forge_ref.saving import Request


class Bookkeeping:
    """Does slow work in order, on a thread that lives as long as there is any, and that never holds up the exit."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._jobs: deque[tuple[str, Callable[[], object]]] = deque()
        self._is_running = False

    def run(self, name: str, job: Callable[[], object]) -> None:
        """Do this when all that came before is done; what it raises is logged."""
        with self._changing:
            self._jobs.append((name, job))
            if self._is_running:
                return
            self._is_running = True
        thread = threading.Thread(target=self._work, name="forge_ref bookkeeping", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread is to be had
            self._work()

    def _work(self) -> None:
        while True:
            with self._changing:
                if not self._jobs:
                    self._is_running = False
                    return
                name, job = self._jobs.popleft()
            try:
                job()
            except Exception as error:
                _log.warning("%s failed: %s", name, error)


class TrainingRun:
    """Not thread-safe: use it on the thread that trains, on every rank, in the same order."""

    def __init__(
        self,
        save_folder: str | os.PathLike[str],
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: Any | None = None,
        dataloader: Any | None = None,
        *,
        timeout: timedelta = ranks.TIMEOUT,
    ) -> None:
        """Make no file yet; with several ranks, all have to come here together.

        The folder is rank 0's, fixed here: `~` in the folder is expanded, and a relative one is seen from the
        present working directory.  `NotADirectoryError` if it can't be one.
        """
        joined = ranks.join(None, None, timeout)
        self.calls = joined.calls
        """What ranks agree through, on the thread that calls."""
        self.save_folder = self.calls.from_first(partial(paths.folder, save_folder, "save_folder", paths.here()))
        self.checkpointer = AsyncCheckpointer(AsyncCheckpointMode.async_)
        self.scheduler, self.dataloader = scheduler, dataloader
        config = CheckpointConfig(self.save_folder)
        run = Run(config, model, optimizer, self.save_folder, joined, self.checkpointer, GradientWatch(optimizer))
        self._saver = EphemeralSaver(run)
        self._resumer = EphemeralResumer(run, scheduler is not None)
        self.global_step = 0
        """The batches that were trained; the loop counts."""
        self.tokens_seen = 0
        self.extra: dict[str, Any] = {}
        """What else is to be saved with the train state; a load puts it back."""
        self.checkpoint_loaded = False
        """Whether the run was resumed."""
        self.block_ephemeral_checkpoints = False
        """True while no ephemeral checkpoint may be saved; rank 0's counts."""
        self._bookkeeping = Bookkeeping()

    def save_checkpoint(self, ephemeral: bool = False) -> Path:
        """Save now; return the directory, which is complete.

        First waits for the save in flight, whose failure is left to its own
        future.  Raises what `CheckpointManager.save` does, on every rank.
        """
        return self._save(ephemeral, in_background=False)[0]

    def save_checkpoint_async(self, ephemeral: bool = False) -> tuple[Path, "Future[None]"]:
        """Save from a copy in host memory; return the directory that is to be, and the flush's future.

        The rest is as for `save_checkpoint`; the future raises a `SaveError` if nothing was saved.
        """
        return self._save(ephemeral, in_background=True)

    def _save(self, ephemeral: bool, in_background: bool) -> tuple[Path, "Future[None]"]:
        objects = self.scheduler, self.dataloader, self.extra
        future = self._saver.save(Request(self.global_step, self.tokens_seen, *objects, ephemeral, in_background))
        return self.save_folder / ephemeral_folder.step_name(operator.index(self.global_step)), future

    def load_checkpoint(self, path: str | os.PathLike[str] | None = None) -> bool:
        """Resume from the highest complete step, or from the directory that is named; False for a fresh start.

        Model, optimizer, scheduler, loader and random streams are put back in
        place.  A directory with a bare marker in it holds weights alone, which
        leave the run at its step.  What is raised leaves everything as it was:
        see `CheckpointManager.load`.
        """
        resumed = self._resumer.load(path, self.scheduler, self.dataloader)
        if resumed is not None and not resumed.is_import:
            self.global_step, self.tokens_seen, self.extra = resumed.step, resumed.tokens_seen, resumed.extra
            self.checkpoint_loaded = True
        return resumed is not None

    def run_bookkeeping_op(
        self, function: Callable[..., object], *arguments: Any, op_name: str = "bookkeeping"
    ) -> None:
        """Call the function later, on a thread that does one thing at a time; what it raises is logged."""
        self._bookkeeping.run(op_name, partial(function, *arguments))
