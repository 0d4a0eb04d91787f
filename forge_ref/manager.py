"""The manager of one training run's checkpoints: saves, keeps a few of them, and resumes from one.

The public API alone; `saving` and `resuming` say how each is done, and in which order.

With several ranks each of them does its part, and they come to one outcome:
whatever fails on one is raised on all, and only rank 0 touches directories.

An interrupt (SIGINT) leaves each call done or undone.  It is delivered at once
where the caller waits or a file is read, and at the end where names or live
objects change; with several ranks, at the end of the call whatever it does, so
that no rank misses what all of them do together.

One process at a time saves into a folder; a second one is refused, see
`writer`.  A last save off the schedule, before a run ends, is the caller's to
ask for.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from forge_ref import freeze, paths, publish, ranks, resuming, state, weights
from forge_ref.arguments import check_boolean, check_duration
from forge_ref.async_save import AsyncCheckpointer
from forge_ref.config import CheckpointConfig
from forge_ref.gradients import GradientWatch
from forge_ref.ranks import Ranks
from forge_ref.resuming import Resumer
from forge_ref.run import Run
from forge_ref.saving import Request, Saver


class CheckpointManager:
    """See the module.  Not thread-safe: call it from the thread that trains, on every rank, in the same order."""

    def __init__(
        self,
        config: CheckpointConfig,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        process_group: dist.ProcessGroup | None = None,
        pp_rank: int | None = None,
        *,
        timeout: timedelta = ranks.TIMEOUT,
        take_over: bool = False,
    ) -> None:
        """Make no file yet; with several ranks, all have to come here together.

        The folder is rank 0's `config.dir`, fixed here: `~` is expanded, and a
        relative path is seen from the present working directory.
        `NotADirectoryError` if it can't be a folder, because a file or a
        symlink to nowhere stands in its place.  `ValueError` and `TypeError`
        name an argument, or a field of `config`, that can't be meant.

        `process_group` is the ranks that share shards, those of one pipeline
        stage, and `pp_rank` the number of that stage, from 0 on; of several ranks
        each has to name both, while one process alone is the only stage, 0.
        Without stages all ranks share them.  `ValueError` on every rank if these do not fit together, and
        for a name in `exclude_from_loading` that the model does not have.
        `timeout` is how long a rank waits for the others, the slowest write of
        a save included.  With `take_over` the first save takes the folder from
        a process that holds it, on rank 0's word; what that one has in flight
        is not committed any more, and it can't save there again.
        """
        self.config = config
        self.model = model
        self.optimizer = optimizer
        check_duration(timeout, "timeout")
        check_boolean(take_over, "take_over")
        start = paths.here()
        joined = ranks.join(process_group, pp_rank, timeout)
        joined.calls.together(partial(_check, config, model, optimizer, joined, start))
        folder = joined.calls.from_first(partial(paths.folder, config.dir, "dir", start))
        checkpointer = AsyncCheckpointer(config.async_mode)
        self._run = Run(config, model, optimizer, folder, joined, checkpointer, GradientWatch(optimizer))
        self._saver = Saver(self._run, take_over)
        self._resumer = Resumer(self._run, start)

    # -- saving ---------------------------------------------------------------

    def save(
        self,
        step: int,
        tokens_seen: int = 0,
        scheduler: Any | None = None,
        dataloader: Any | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Save now, whatever the schedule says; on return the save is committed, or in flight in an async mode.

        First waits for the save in flight; if that one failed, its `SaveError`
        is raised here and nothing is saved (commit.failed-flush).  Everything
        that can be refused is refused before the folder changes: `ValueError`
        for a bad step, for a key of `extra` that is reserved, and for a value
        that can't be saved or could not be loaded again, `TypeError` for a step
        or `tokens_seen` that is not an integer, `FileExistsError` for a name
        that is taken, `PermissionError` for a folder, or a umask, under which
        nothing can be written, `FolderInUseError` for a folder that another
        process saves into.  If that process took it over later, it is the cause
        of a `SaveError`.  When the checkpoint is committed, nothing that fails
        afterwards is raised: it is logged (retention.failure-is-soft).

        Between saves the manager keeps one image of what this rank saves in host
        memory, which every save is copied into.  In an async mode a thread makes
        that memory after the optimizer's first step, so that the first save need
        not.  `MemoryError` if the system has none: nothing is saved then.

        A warning says so when gradients have been accumulated since the last
        step of the optimizer: they are not saved (commit.gradients-said).

        Every rank raises what any of them does (commit.rank-failure), or
        `RanksLostError` when one does not answer; `ValueError` when they save
        different steps (commit.same-step).  Of `tokens_seen`, `scheduler` and `extra` rank 0's
        are saved; loader and random streams are saved for each rank.

        An interrupt while one process waits for its save in flight is delivered
        at once, and nothing is saved.  After that, and with several ranks from
        the beginning, it is delivered when this save has been made as if none
        had come: dispatched in an async mode, else committed.  A synchronous
        save of one process is given up at the second interrupt, if SIGINT has
        Python's own handler; nothing is committed, unless it has been already.

        A signal handler may itself save.  In the middle of a save it runs
        when that one is made; while `wait` waits, the two come one after the other.
        With several ranks a handler must not call the manager.
        """
        self._saver.save(Request(step, tokens_seen, scheduler, dataloader, extra))

    def wait(self) -> None:
        """Return when nothing is in flight and all that was saved is committed; `SaveError`, once, if it is not.

        What retention has dropped is deleted by then.  The next save waits for that as well before it writes, and so
        does a normal exit of the interpreter.

        Call it before `torch.distributed` is shut down, or the save in flight
        is cut short.  An interrupt ends the wait and not the save, which the next
        call waits for.
        """
        self._run.checkpointer.wait()
        self._run.checkpointer.deletion.wait()

    def flush_pending_save(self) -> None:
        """Do the same as `wait`; for callers that are about to change what a save has recorded."""
        self.wait()

    # -- resuming -------------------------------------------------------------

    def load(
        self,
        path: str | os.PathLike[str] | None = None,
        scheduler: Any | None = None,
        dataloader: Any | None = None,
        exclude_keys: Sequence[str] | None = None,
        vlm_freeze_expected: freeze.Entries | None = None,
    ) -> tuple[int, int, dict[str, Any]]:
        """Resume in place; return step, tokens seen and the extra of the save, or `(0, 0, {})` for a fresh start.

        `path` names a checkpoint's directory, or a symlink to one; `~` is
        expanded, and a relative one is seen from the present working directory,
        as everywhere.  (A relative `load_path` is seen from where the manager was made.)

        Until it is all read and verified, what this rank loads takes host memory
        of its own beside the live objects.

        In inference mode ordinary tensors come of it all the same, unless the model itself was made in that mode.

        Waits for a save in flight, so that it lands on it.  Whatever is
        raised, model, optimizer, scheduler, random streams and a loader that can
        say where it is are as they were (resume.all-or-nothing): `FileNotFoundError` for a named path,
        `PermissionError` for a file that is not trusted, `DamagedError` for
        one that is not what was written, `ValueError` for a checkpoint that
        does not fit or stands under the name of another step, a tensor that can't be written to or a freeze list that
        differs, and what scheduler, loader, optimizer or a module's own code
        raise while they take their state (resume.code-that-raises).  For the
        last, a model with such code is copied to host memory until it is loaded.

        Every rank lands on what rank 0 finds, and raises what any of them
        raises.  A rank gets its own random streams and loader back, by its
        number (resume.rng-per-rank), and buffers that differed from rank to rank
        (resume.rank-values).  Resumed on more ranks, a new one gets streams of
        its own, the same at each resume from this checkpoint, and rank 0's
        loader state and buffers; on fewer, those of the rest are left.  A
        warning says so.

        `exclude_keys` are parts to leave as they are (`config.EXCLUDABLE`), and
        names of parameters and buffers, or what they begin with up to a dot; of
        a parameter its moments stay as well, while the settings of its group are
        loaded (resume.exclude-prefix).  `ValueError` for a name that is neither;
        in a pipeline, where no rank knows all names, such a name has no effect.
        Surplus saved values are left out with a warning (resume.surplus).

        Without a `dataloader` its state is kept for `apply_dataloader_state`.

        An interrupt that comes while files are read is delivered at once, and
        everything is as it was; after that it is delivered when all of the
        checkpoint is in place.
        """
        resumed = self._resumer.load(path, scheduler, dataloader, exclude_keys, vlm_freeze_expected)
        return (0, 0, {}) if resumed is None else (resumed.step, resumed.tokens_seen, resumed.extra)

    def peek_saved_step(self, path: str | os.PathLike[str] | None = None) -> int | None:
        """Return the step that `load` would land on; None where it would start fresh (resume.peek-agrees).

        Raises what `load` would raise about the files that it looks at.  With
        several ranks, all have to ask together.
        """
        with self._run.deferral(first=0):
            self._run.checkpointer.settle()
            return self._run.ranks.calls.from_first(partial(self._resumer.peek, path))

    def apply_dataloader_state(self, dataloader: Any) -> None:
        """Give a loader the state that `load` had no loader for, once; do nothing if it has no `load_state_dict`."""
        self._resumer.apply_dataloader_state(dataloader)

    # -- beyond checkpoints ---------------------------------------------------

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write the model's weights alone to one file, floating-point ones cast to `export_dtype`.

        For `torch.load`; it appears whole or not at all, and takes no part in resuming.
        `~` in the path is expanded; `IsADirectoryError` if it is a directory,
        `FileNotFoundError` if the directory that the file would be in is missing.
        An interrupt leaves no part of the file; with several ranks it is delivered
        when the file is written.  With several ranks, all have to ask together, since training's groups
        put sharded weights together; rank 0 writes.  `ValueError` with
        pipeline stages: no rank has the whole model.
        """
        if self._run.ranks.stage is not None:
            raise ValueError(f"this run has {self._run.ranks.stages} pipeline stages; export from a run without")
        with self._run.deferral(first=0):
            file = self._run.ranks.calls.from_first(lambda: paths.new_file(path, "the path to export to", paths.here()))
            dtype = getattr(torch, self.config.export_dtype)
            exported = {
                name: value.to("cpu", dtype if value.is_floating_point() else value.dtype)
                for name, value in weights.whole(self.model).items()
                if isinstance(value, torch.Tensor)
            }
            self._run.ranks.calls.together(partial(self._write_export, exported, file))

    def _write_export(self, exported: Mapping[str, torch.Tensor], path: Path) -> None:
        if self._run.ranks.is_first:
            partial_path = Path(f"{path}.partial")
            try:
                publish.write(partial_path, state.serialized(exported, "weights"))
                os.rename(partial_path, path)
            except BaseException:
                with suppress(OSError):
                    partial_path.unlink(missing_ok=True)
                raise


def _check(
    config: CheckpointConfig, model: torch.nn.Module, optimizer: torch.optim.Optimizer, joined: Ranks, start: str
) -> None:
    """Refuse arguments that can't be meant; fields of the configuration may have changed since it was made."""
    if not isinstance(config, CheckpointConfig):
        raise TypeError(f"config is {type(config).__name__}; make it a CheckpointConfig")
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model is {type(model).__name__}; it must be a torch.nn.Module")
    if not hasattr(optimizer, "param_groups"):
        raise TypeError(f"optimizer is {type(optimizer).__name__}; it must be a torch.optim.Optimizer")
    config.check()
    if config.load_path is not None:
        paths.located(config.load_path, "load_path", start)
    resuming.known_keys(config.exclude_from_loading, "exclude_from_loading", model, joined)
