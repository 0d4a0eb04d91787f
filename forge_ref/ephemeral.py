"""The second design: a callback decides at hooks of the training loop what is saved, and removes what was replaced.

Permanent checkpoints lie far apart and stay; ephemeral ones lie close together,
and each goes when the next one is complete.  The order within a hook:

    after a batch = take in the flush that has ended, remove what was replaced, save what is due

Invariants: at most one save is pending, and while it is nothing is removed; a
save replaces others only when it is complete; and with several ranks all come
to one outcome in every hook, by one collective in a hook at which something is
pending or due, and by none in others; one more where the run is not ours, since
nothing says that its save raises on all ranks what it raises on one.

The callback saves through its `trainer`, which may be a `TrainingRun` or any
object with the members that the callback uses.
"""

import operator
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from forge_ref import ephemeral_folder, ranks
from forge_ref.arguments import check_boolean, check_integer
from forge_ref.channel import Channel
from forge_ref.ephemeral_folder import EPHEMERAL, PERMANENT, UNREADABLE
from forge_ref.errors import RanksLostError, SaveError
from forge_ref.interrupts import Deferral, for_call
from forge_ref.messages import log as _log
from forge_ref.messages import some
from forge_ref.removals import Removals

_PATIENCE_S = 30.0
"""How long a directory may take to look complete when its save has ended: a network file system shows it late."""


class CheckpointRemovalStrategy(StrEnum):
    """What a start collects of what earlier runs left, if its kind is not recorded: see `CheckpointerCallback`."""

    ephemeral_only = "ephemeral_only"
    all_non_permanent = "all_non_permanent"
    never = "never"


@dataclass(frozen=True)
class _Save:
    """A save that was dispatched."""

    step: int
    path: Path
    is_ephemeral: bool
    future: "Future[Any]"


_Steps = dict[int, Path]
"""Checkpoints that stand, by step."""


@dataclass
class CheckpointerCallback:
    """Bind it to a run (`callback.trainer = run`), and call its three hooks on every rank.

    save_interval: permanent checkpoints at its multiples; None for none.
    ephemeral_save_interval: ephemeral ones at its multiples in between; None for none.
    pre_train_checkpoint: whether step 0 is saved before training; None for unless the run was resumed.
    save_async: whether files are written in the background; None for wherever a CPU backend allows it.
    remove: what counts as an old ephemeral checkpoint of earlier runs, and goes when the next ephemeral one is
        complete: with `never` nothing, else what is recorded as ephemeral.  Where no kind is recorded, it is the
        multiples of `ephemeral_save_interval`, or with `all_non_permanent` everything.  Never step 0, a step above the
        run's own, a fixed step, or a multiple of `save_interval`.
    ephemeral_cooldown: an ephemeral save has to be this many steps after the last save of this run.
    fixed_steps: further steps at which a permanent checkpoint is saved.
    max_checkpoints: how many permanent ones are kept, those of earlier runs and at fixed steps included; None for all.
    enabled: False lets all hooks do nothing.

    `ValueError` and `TypeError` name a field that can't be meant.
    """

    save_interval: int | None = 250
    ephemeral_save_interval: int | None = None
    pre_train_checkpoint: bool | None = None
    save_async: bool | None = None
    remove: CheckpointRemovalStrategy = CheckpointRemovalStrategy.ephemeral_only
    ephemeral_cooldown: int | None = None
    fixed_steps: Sequence[int] | None = None
    max_checkpoints: int | None = None
    enabled: bool = True

    def __post_init__(self) -> None:
        self.check()
        self._trainer: Any = None
        self._calls = Channel()
        self._has_begun = False
        self._pending: _Save | None = None
        self._flush: Future[Any] | None = None
        self._last_saved: int | None = None
        self._ephemerals: _Steps = {}
        self._permanents: _Steps = {}
        self._debris: list[Path] = []
        self._scheduled: list[Path] = []
        self._removals = Removals()

    def check(self) -> None:
        """Refuse values that can't be meant; fields may have changed since the callback was made."""
        self._check_what_decides()
        for step in () if self.fixed_steps is None else self.fixed_steps:
            check_integer(step, "fixed_steps", at_least=0)
        for field in ("pre_train_checkpoint", "save_async"):
            if (value := getattr(self, field)) is not None:
                check_boolean(value, field)
        check_boolean(self.enabled, "enabled")
        if self.remove not in list(CheckpointRemovalStrategy):
            raise ValueError(f"remove is {self.remove!r}; known: {', '.join(CheckpointRemovalStrategy)}")
        self.remove = CheckpointRemovalStrategy(self.remove)

    def _check_what_decides(self) -> None:
        """Refuse the values of fields that every hook uses; this is quick."""
        for field in ("save_interval", "ephemeral_save_interval", "ephemeral_cooldown", "max_checkpoints"):
            if (value := getattr(self, field)) is not None:
                check_integer(value, field, at_least=1)
        permanent, between = self.save_interval, self.ephemeral_save_interval
        if permanent is not None and between is not None and between >= permanent:
            raise ValueError(f"ephemeral_save_interval is {between}; it must be below save_interval, {permanent}")
        if self.fixed_steps is not None and (
            isinstance(self.fixed_steps, str | bytes | bytearray | Mapping)
            or not isinstance(self.fixed_steps, Collection)
        ):
            raise TypeError(f"fixed_steps is {self.fixed_steps!r}; it must be a list of integers")

    # -- what it is bound to --------------------------------------------------

    @property
    def trainer(self) -> Any:
        """The run; `RuntimeError` before one is set."""
        if self._trainer is None:
            raise RuntimeError("this CheckpointerCallback has no run; set its `trainer` before the first hook")
        return self._trainer

    @trainer.setter
    def trainer(self, run: Any) -> None:
        self._trainer = run

    @property
    def step(self) -> int:
        """The run's step; `TypeError` or `ValueError` if it is not a number of batches."""
        step = self.trainer.global_step
        check_integer(step, "global_step", at_least=0)
        return operator.index(step)

    @property
    def save_folder(self) -> Path:
        """The run's folder."""
        return Path(self.trainer.save_folder)

    @property
    def checkpoint_pending(self) -> bool:
        """Whether a save was dispatched that no hook has found finished."""
        return self._pending is not None

    # -- the hooks ------------------------------------------------------------

    def pre_train(self) -> None:
        """Call once before the first batch, after a resume: agree, see what earlier runs left, save step 0.

        `RuntimeError` if it was called before, or for saves in the background
        over a process group that has no CPU backend; `ValueError` where ranks
        are configured differently.
        """
        if not self.enabled:
            return
        if self._has_begun:
            raise RuntimeError("pre_train() was called twice; call post_train() in between")
        self._calls = _channel(self.trainer)
        self._calls.together(self._check_start, lambda _: frozenset({repr(self)}), _check_same)
        self._settle_async()
        self._ephemerals, self._permanents, self._debris = self._calls.from_first(self._look)
        self._scheduled, self._last_saved = [], None
        self._has_begun = True
        wanted = self.pre_train_checkpoint
        if self.step == 0 and (wanted or (wanted is None and not self.trainer.checkpoint_loaded)):
            self._save(is_ephemeral=False, in_background=bool(self.save_async))

    def post_train_batch(self) -> None:
        """Call after each batch, when the step was counted.

        The error of a flush that has failed since is raised here, once; the
        save that is due in this hook is not made then.
        """
        if not self.enabled:
            return
        self._check_begun("post_train_batch")
        self._check_what_decides()
        self._take_in()
        if self._pending is None:
            self._remove_scheduled()
        is_ephemeral = self._due(self.step)
        if is_ephemeral is not None:
            self._save(is_ephemeral, in_background=bool(self.save_async))

    def post_train(self) -> None:
        """Call after the last batch: save it as permanent unless it is saved, await everything, remove everything.

        If the flush before has failed, its error is raised when that is done.
        """
        if not self.enabled:
            return
        self._check_begun("post_train")
        failure = None
        try:
            self._finish()
        except Exception as error:
            failure = error
        if self._is_unsaved():
            self._save(is_ephemeral=False, in_background=False)
        self._has_begun = False
        for _ in range(2):  # what could not be removed is tried once more
            self._scheduled += self._removals.take_failed()
            self._remove_scheduled()
            self._removals.wait()
        if failure is not None:
            raise failure

    def _check_start(self) -> None:
        self.check()
        _ = self.step  # which is checked where it is read

    def _check_begun(self, hook: str) -> None:
        if not self._has_begun:
            raise RuntimeError(
                f"{hook}() was called without pre_train(); call pre_train() before the first batch, and again after "
                "each post_train()"
            )

    def _settle_async(self) -> None:
        has_group = dist.is_available() and dist.is_initialized()
        can_flush = not has_group or "cpu" in dist.get_backend_config()
        self.save_async = can_flush if self.save_async is None else self.save_async
        if self.save_async and not can_flush:
            raise RuntimeError(
                "save_async is True, and the process group has no CPU backend; initialise it with one, such as "
                "cpu:gloo,cuda:nccl, or set save_async=False"
            )
        checkpointer = self.trainer.checkpointer
        if has_group and self.save_async and getattr(checkpointer, "process_group", self) is None:
            checkpointer.process_group = dist.new_group()

    # -- what is due ----------------------------------------------------------

    def _due(self, step: int) -> bool | None:
        """Return whether an ephemeral checkpoint is due (True), a permanent one (False), or none (None)."""
        if step == self._last_saved:
            return None
        if self._is_permanent(step):
            return False
        if self.ephemeral_save_interval is None or step % self.ephemeral_save_interval != 0:
            return None
        last, cooldown = self._last_saved, self.ephemeral_cooldown
        if cooldown is not None and last is not None and step - last < cooldown:
            return None
        is_blocked = self._calls.from_first(lambda: bool(self.trainer.block_ephemeral_checkpoints))
        return None if is_blocked else True

    def _is_permanent(self, step: int) -> bool:
        on_interval = self.save_interval is not None and step % self.save_interval == 0
        return on_interval or step in (self.fixed_steps or ())

    def _is_unsaved(self) -> bool:
        """Return whether the last step has no checkpoint yet, of this run or of the one that it resumed."""
        step = self.step
        if step == self._last_saved:
            return False
        path = self.save_folder / ephemeral_folder.step_name(step)
        was_resumed = self.trainer.checkpoint_loaded and self._last_saved is None
        return not (was_resumed and self._calls.from_first(lambda: ephemeral_folder.is_complete(path)))

    # -- saving ---------------------------------------------------------------

    def _save(self, is_ephemeral: bool, in_background: bool) -> None:
        self._finish()
        self._remove_scheduled()  # here as well: where each flush takes longer than the interval, all hooks find one
        step = self.step
        self._removals.wait(self.save_folder / ephemeral_folder.step_name(step))
        with Deferral(None if in_background or self._calls.size > 1 else 1):  # what was dispatched has to be known
            dispatch = partial(self._dispatch, step, is_ephemeral, in_background)
            self._pending = dispatch() if _agrees_by_itself(self.trainer) else self._calls.together(dispatch)
            self._last_saved = step
        if not in_background:
            self._finish()

    def _dispatch(self, step: int, is_ephemeral: bool, in_background: bool) -> _Save:
        """Let the run save; first waits for a flush whose save another rank has refused, as nothing else has."""
        if self._flush is not None:
            with suppress(Exception):  # every rank has raised the error of that save
                self._flush.result()
        if in_background:
            path, self._flush = self.trainer.save_checkpoint_async(ephemeral=is_ephemeral)
        else:
            path, self._flush = self.trainer.save_checkpoint(ephemeral=is_ephemeral), _ended()
        return _Save(step, Path(path), is_ephemeral, self._flush)

    def _take_in(self) -> None:
        """Find out whether the pending save is finished, on all ranks; its error is raised, once."""
        self._look_at_pending(_has_ended, _stands)

    def _finish(self) -> None:
        """Wait until the pending save is finished, on all ranks; its error is raised, once."""
        self._look_at_pending(_await_flush, _await_complete)

    def _look_at_pending(self, look: Callable[[_Save], bool], judge: Callable[[_Save, frozenset[bool]], bool]) -> None:
        """Take over the pending save if `judge` says on rank 0, of what all ranks see, that it is finished."""
        if (save := self._pending) is None:
            return
        with for_call(0, self._calls.size > 1) as deferral:
            try:
                look_here, judge_all = partial(look, save), partial(judge, save)
                _, is_finished = self._calls.concluded(look_here, lambda ended: frozenset({ended}), judge_all)
            except Exception:
                self._forget()
                raise
            deferral.defer_all()
            if is_finished:
                self._take_over(save)

    def _forget(self) -> None:
        """The pending save, which is the last one, has failed: it replaces nothing, and its step is not saved."""
        self._pending = self._last_saved = None

    def _take_over(self, save: _Save) -> None:
        """The save is complete: schedule what it replaces."""
        self._pending = None
        for kind in (self._ephemerals, self._permanents):
            kind.pop(save.step, None)  # the same step may have been saved as the other kind
        kind = self._ephemerals if save.is_ephemeral else self._permanents
        kind[save.step] = save.path
        counted = sorted(step for step in kind if step <= save.step)
        limit = 1 if save.is_ephemeral else self.max_checkpoints
        replaced = [] if limit is None else counted[:-limit]
        due = [*self._scheduled, *self._debris, *self._removals.take_failed(), *(kind.pop(step) for step in replaced)]
        self._scheduled, self._debris = [path for path in due if path != save.path], []

    # -- removing -------------------------------------------------------------

    def _look(self) -> tuple[_Steps, _Steps, list[Path]]:
        """On rank 0, what earlier runs left in the folder: ephemeral checkpoints, permanent ones, and debris."""
        contents = ephemeral_folder.contents(self.save_folder)
        _say_what_stays(self.save_folder, contents)
        ephemerals: _Steps = {}
        permanents: _Steps = {}
        for found in contents.complete:
            kind = None if found.step > self.step else self._kind_of(found.step, found.path)
            if kind == EPHEMERAL:
                ephemerals[found.step] = found.path
            elif kind == PERMANENT:
                permanents[found.step] = found.path
        if self.remove == CheckpointRemovalStrategy.never:
            return {}, permanents, []
        debris = [found.path for found in contents.debris if found.step <= self.step]
        for path in debris:
            _log.warning(
                "%s is what a save or a removal that was cut short has left; it is removed after the next save", path
            )
        return ephemerals, permanents, debris

    def _kind_of(self, step: int, path: Path) -> str | None:
        """Return what a checkpoint of an earlier run counts as: the present configuration only adds permanent ones."""
        if self.max_checkpoints is None and (step == 0 or self._is_permanent(step)):
            return PERMANENT  # nothing removes it, so its record need not be read
        recorded = ephemeral_folder.recorded(path)
        if recorded == UNREADABLE:
            return None
        if step == 0 or self._is_permanent(step) or recorded == PERMANENT:
            return PERMANENT
        between = self.ephemeral_save_interval
        is_guessed = self.remove == CheckpointRemovalStrategy.all_non_permanent or (
            between is not None and step % between == 0
        )
        return EPHEMERAL if recorded == EPHEMERAL or is_guessed else None

    def _remove_scheduled(self) -> None:
        """Rank 0 removes, on the bookkeeping thread if the run has one."""
        scheduled, self._scheduled = self._scheduled, []
        if self._calls.rank == 0:
            for path in scheduled:
                self._removals.begin(path, getattr(self.trainer, "run_bookkeeping_op", None))


def _say_what_stays(folder: Path, contents: ephemeral_folder.Contents) -> None:
    """Warn of all that looks like a checkpoint here, and is neither used nor removed."""
    if contents.others:
        _log.warning(
            "%s holds checkpoints of another layout, such as %s; they are left alone, and no resume finds them",
            folder,
            contents.others[0],
        )
    for found in contents.pruned:
        _log.warning(
            "%s is kept: %s is missing or empty, and a death leaves no %s beside that; put the file back, or delete "
            "the directory by hand",
            found.path,
            ", ".join(ephemeral_folder.missing_files(found.path)),
            ephemeral_folder.METADATA,
        )
    for found in contents.foreign:
        _log.warning(
            "%s holds %s of another tool; it is left alone, and no resume finds it",
            found.path,
            some(ephemeral_folder.foreign_names(found.path)),
        )


def _channel(trainer: Any) -> Channel:
    """Return what the ranks agree through: the run's own where it has one, else a group of the callback's own."""
    return trainer.calls if _agrees_by_itself(trainer) else ranks.join(None, None).calls


def _agrees_by_itself(trainer: Any) -> bool:
    """Return whether the run is one of ours: what a save of it raises on one rank, it raises on all."""
    return isinstance(getattr(trainer, "calls", None), Channel)


def _ended() -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_result(None)
    return future


def _has_ended(save: _Save) -> bool:
    """Return whether the flush has ended on this rank; raises its error."""
    return save.future.done() and _await_flush(save)


def _await_flush(save: _Save) -> bool:
    """Return True when the flush has ended on this rank; raises its error with the step and the directory."""
    try:
        save.future.result()
        return True
    except (SaveError, RanksLostError):  # of a run of ours, which has said both
        raise
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        raise SaveError(f"saving step {save.step} in {save.path} failed, and it replaces nothing: {problem}") from error


def _stands(save: _Save, ended: frozenset[bool]) -> bool:
    """On rank 0: whether the flush has ended everywhere, and the checkpoint is to be seen."""
    return False not in ended and ephemeral_folder.is_complete(save.path)


def _await_complete(save: _Save, _ended: frozenset[bool]) -> bool:
    """On rank 0: return True when the checkpoint, whose flush has ended everywhere, is to be seen."""
    deadline = time.monotonic() + _PATIENCE_S
    while not ephemeral_folder.is_complete(save.path):
        if time.monotonic() > deadline:
            lacking = ", ".join(ephemeral_folder.missing_files(save.path))
            raise SaveError(
                f"the save of step {save.step} has ended, and {save.path} has no {lacking}; it is no checkpoint"
            )
        time.sleep(0.1)
    return True


def _check_same(configured: frozenset[str]) -> None:
    if len(configured) > 1:
        raise ValueError(f"ranks are configured differently: {' and '.join(sorted(configured)[:2])}")
