"""Brings the state of a run into the folder as one checkpoint, for both designs.

    save = take the state, stage it, [in the background from here] write, sync, publish,
           point `latest` at it, retire

Invariants: all that can be refused is refused before the folder changes; until
the commit every file is under a hidden name, so a save that fails or dies leaves
the resume point as it was; and when the commit has succeeded, the save has.

With several ranks a save takes four collectives: all ranks have staged; those
who write shards together agree on who writes what, and again when they have, so
that the first of them writes the marker; and all have written, and then rank 0
commits.  Only rank 0 makes, renames and deletes directories.

`Saver` is the first design's; the second has its own methods in the place of
those under *what designs differ in* (`ephemeral_saver`).
"""

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from forge_ref import (
    collector,
    forms,
    layout,
    manifest,
    optimizers,
    own_values,
    publish,
    retire,
    state,
    storage,
    weights,
)
from forge_ref.arguments import check_integer
from forge_ref.config import AsyncCheckpointMode
from forge_ref.engine.leaves import Leaves, Packed
from forge_ref.errors import NotTakenBackError, RanksLostError, SaveError
from forge_ref.gradients import after_each_step
from forge_ref.interrupts import Deferral
from forge_ref.manifest import Seal
from forge_ref.messages import log as _log
from forge_ref.messages import logged
from forge_ref.plan import Planner
from forge_ref.run import RANKS, Run
from forge_ref.writer import Writer

Seals = frozenset[tuple[str, int, str]]
"""The files that a rank has written and that are sealed: name in the checkpoint, size in bytes, hash.

Plain data, to be sent to rank 0.
"""


@dataclass(frozen=True)
class Request:
    """What the caller of a save hands over."""

    step: int
    tokens_seen: int
    scheduler: Any | None
    dataloader: Any | None
    extra: Mapping[str, Any] | None
    is_ephemeral: bool = False
    """The second design records it."""
    in_background: bool = True
    """Whether to flush there, if the mode of the manager is asynchronous."""


@dataclass(frozen=True)
class Staged:
    """A checkpoint on its way to disk: where it is put together, and what goes there."""

    step: int
    path: Path
    shards: Leaves
    train_state: bytes
    metadata: Mapping[str, Any]
    own: Mapping[str, Any]
    """Values that may differ from rank to rank."""
    keeps_own: bool = False
    """Whether they do, so that each rank writes its own."""


class Saver:
    """Saves one run into its folder; `Writer` keeps other processes out of it."""

    step_field = "step"
    """What errors call the step."""
    optimizer_key = weights.OPTIMIZER
    """The key of the optimizer's state in a checkpoint."""
    describes_first = True
    """Whether what describes the shards of several ranks is there before `save` returns on any (commit.collective)."""

    def __init__(self, run: Run, take_over: bool = False) -> None:
        self._run = run
        self._writer = Writer(run.folder, run.checkpointer, take_over)
        self._planner = Planner(self.optimizer_key)
        self._is_prewarmed = False
        if run.checkpointer.mode is not AsyncCheckpointMode.disabled:
            after_each_step(run.optimizer, self.prewarm)

    def prewarm(self) -> None:
        """Once, when the moments are there: make what the first save needs, beside training."""
        if self._is_prewarmed:
            return
        self._is_prewarmed = True
        model, moments = self._run.model, tree_leaves(dict(self._run.optimizer.state))
        self._run.checkpointer.shards.prewarm(itertools.chain(model.parameters(), model.buffers(), moments))

    def save(self, request: Request) -> "Future[None]":
        """Save now; on return it is committed, or in flight.  Return the future of the flush."""
        if not self._run.ranks.are_many:  # with several ranks, one that raised here would leave the others waiting
            self._await_flight()
        calls, future = self._run.ranks.calls, Future[None]()
        with weights.ordinary_tensors(), self._run.deferral(first=1), collector.paused(), ExitStack() as undo:
            self._await_flight()  # also for what a signal handler has saved since
            stage = partial(self._stage, undo, request)
            staged, differ = calls.concluded(stage, self._note, _compared, own_values.merged)
            undo.pop_all()
            keeps_own = bool(staged.own) and self._run.ranks.stage in differ
            flush = partial(_heard, future, partial(self._flush, replace(staged, keeps_own=keeps_own)))
            if request.in_background:
                self._run.checkpointer.launch(flush)
            else:
                flush()
        return future

    # -- in the thread of the caller -------------------------------------------

    def _stage(self, undo: ExitStack, request: Request) -> Staged:
        """Take the state, and make room for it in the folder; `undo` removes what was made."""
        check_integer(request.step, self.step_field, at_least=0)
        check_integer(request.tokens_seen, "tokens_seen")
        step = int(operator.index(request.step))
        train_state = state.build_train_state(
            step, request.tokens_seen, request.scheduler, request.dataloader, request.extra
        )
        metadata = self._metadata(train_state, request)
        manifest.written(metadata, {})  # refuses what is too large
        content = self._serialized(train_state)
        shards, own = self._held(train_state, request.in_background)
        self._warn_of_gradients(step)
        path = layout.staged_path(self._run.folder, step, self._run.ranks.token)
        staged = Staged(step, path, shards, content, metadata, own)
        if self._run.ranks.is_first:
            self._make_room(undo, staged)
        return staged

    def _held(self, train_state: Mapping[str, Any], in_background: bool) -> tuple[Leaves, dict[str, Any]]:
        """Return this rank's shards as the flush may have them, and the values that other ranks may differ in."""
        ranks, checkpointer = self._run.ranks, self._run.checkpointer
        taken = taken_state(self._run.model, self._run.optimizer)
        held = checkpointer.hold(self._leaves(taken, train_state), in_background)
        own = own_values.of(self._run.model, taken, held.nested()) if ranks.are_many else {}
        return held if ranks.place == 0 else held.without(forms.FORMS), own  # forms are the same on all ranks

    def _warn_of_gradients(self, step: int) -> None:
        if self._run.gradients.has_accumulated():
            _log.warning(
                "step %d: gradients have been accumulated since the optimizer's last step, and no checkpoint holds "
                "gradients: a resume from this one goes on without them; save right after the optimizer's step",
                step,
            )

    def _note(self, staged: Staged) -> frozenset[own_values.Note]:
        """Return what ranks compare; values that arrive only in the flush can't be, so each rank keeps its own."""
        ranks = self._run.ranks
        is_known = not self._run.checkpointer.holds_later or not staged.own
        return frozenset({(staged.step, ranks.stage, own_values.checksum(staged.own) if is_known else ranks.rank)})

    def _make_room(self, undo: ExitStack, staged: Staged) -> None:
        publish.make(self._run.folder)
        self._check_names_free(staged.step)
        self._writer.begin()
        self._run.checkpointer.deletion.wait(layout.trash_path(staged.path))
        undo.callback(publish.abandon, staged.path)
        publish.stage(staged.path, staged.step, self._directories())
        if self._run.ranks.are_many and self.describes_first:
            try:
                self._describe(staged)
            except OSError as error:
                raise self._failed(staged, error) from error

    # -- in the background in an async mode ------------------------------------

    def _flush(self, staged: Staged) -> None:
        """Bring a staged checkpoint to disk and commit it."""
        committed = []

        def commit(markers: Seals) -> None:
            self._commit(staged, markers)
            committed.append(staged.step)

        try:
            self._run.ranks.flushes.together(partial(self._write, staged), frozenset, commit)
        except BaseException as error:
            if self._run.ranks.is_first:
                publish.abandon(staged.path)
            if not isinstance(error, Exception):  # an interrupt is its caller's, and not a failure of the save
                raise
            if isinstance(error, RanksLostError):
                outcome = "is committed, but not every rank was told" if committed else "failed"
                if not self._run.ranks.is_first:  # only rank 0 knows
                    outcome = "was cut short, or is committed, and this rank was not told"
                raise RanksLostError(f"saving step {staged.step} in {self._run.folder} {outcome}: {error}") from error
            raise self._failed(staged, error) from error

    def _failed(self, staged: Staged, error: Exception) -> SaveError:
        is_half = isinstance(error, NotTakenBackError)
        outcome = "a resume may find it or the checkpoint before it" if is_half else "nothing was committed"
        return SaveError(
            f"saving step {staged.step} in {self._run.folder} failed, {outcome}: {type(error).__name__}: {error}"
        )

    def _write(self, staged: Staged) -> Seals:
        """Write this rank's files; return the seals of the shards' marker and of what is beside it.

        The shards come first: ranks that write them wait for each other, and would wait for one that failed before.
        """
        path, shards = self._shards_in(staged.path), self._run.checkpointer.shards
        leaves = staged.shards
        if staged.keeps_own:
            leaves = own_values.added(leaves, staged.own, self._run.ranks.place)
        self._run.checkpointer.deletion.wait()
        with self._writer.naming_take_over():
            seal = storage.write(leaves, path, self._run.ranks.writers, shards)
            beside = self._write_beside(staged)
        seals = {**beside, str((path / layout.MARKER).relative_to(staged.path)): seal}
        return frozenset((name, seal.size_bytes, seal.xxh3) for name, seal in seals.items())

    def _commit(self, staged: Staged, markers: Seals) -> None:
        seals = {name: Seal(size_bytes, xxh3) for name, size_bytes, xxh3 in markers}
        with self._writer.naming_take_over():
            self._describe(staged, seals)
            for directory in (*(staged.path / name for name in self._directories()), staged.path):
                publish.sync(directory)
            with Deferral():
                self._publish(staged)
        with logged("clearing up after the commit of step %d", staged.step):  # the save has succeeded
            _log.info("committed step %d in %s", staged.step, self._run.folder)
            self._clear_up(staged)

    # -- what designs differ in --------------------------------------------------

    def _await_flight(self) -> None:
        """Wait for the save in flight; raises its failure."""
        self._run.checkpointer.wait()

    def _metadata(self, train_state: Mapping[str, Any], _request: Request) -> Mapping[str, Any]:
        return state.describe(train_state, self._run.config.is_dynamic_milestone(train_state["step"]))

    def _serialized(self, train_state: Mapping[str, Any]) -> bytes:
        """Return this rank's file of the train state; rank 0 alone has one, the others' parts are among the shards."""
        return state.serialized(train_state) if self._run.ranks.is_first else b""

    def _leaves(self, taken: Mapping[str, Any], train_state: Mapping[str, Any]) -> Leaves:
        """Return what goes into the shards, sharing memory with the run."""
        leaves, ranks = self._planner.leaves(taken), self._run.ranks
        own = (RANKS, str(ranks.place))
        return leaves.plus(own, Packed(state.own_part(train_state))) if ranks.are_many else leaves

    def _check_names_free(self, step: int) -> None:
        layout.check_names_free(self._run.folder, step)

    def _directories(self) -> Sequence[str]:
        """Return the directories in a checkpoint."""
        return self._run.ranks.stage_names

    def _shards_in(self, checkpoint: Path) -> Path:
        return self._run.ranks.directory(checkpoint)

    def _write_beside(self, _staged: Staged) -> dict[str, Seal]:
        """Write what this rank has beside its shards; return the seals by the names in the checkpoint."""
        return {}

    def _describe(self, staged: Staged, seals: Mapping[str, Seal] = MappingProxyType({})) -> None:
        """Write what rank 0 writes beside its shards; without seals while no shards are written."""
        own = {layout.TRAIN_STATE: Seal.of(staged.train_state)} if seals else {}
        publish.write(staged.path / layout.TRAIN_STATE, staged.train_state)
        publish.write(staged.path / layout.METADATA, manifest.written(staged.metadata, {**seals, **own}))

    def _publish(self, staged: Staged) -> None:
        publish.commit(staged.path, staged.step, self._writer.check)

    def _clear_up(self, staged: Staged) -> None:
        config, trash = self._run.config, layout.trash_path(staged.path)
        hidden = retire.sweep(trash)
        hidden += retire.retire(trash, staged.step, config.keep_last_n, config.is_dynamic_milestone)
        self._run.checkpointer.deletion.begin(hidden, trash, keeping=self._writer)


def _heard(future: "Future[None]", flush: Callable[[], None]) -> None:
    """Flush; the future gets what comes of it."""
    try:
        flush()
    except BaseException as error:
        future.set_exception(error)
        raise
    future.set_result(None)


def taken_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state of both as it is now, sharing memory with them.

    `ValueError` names a tensor on the meta device: it has no values to save.
    """
    weights.check_material(model, "save it")
    return {
        weights.MODEL: weights.model_state(model),
        weights.OPTIMIZER: optimizers.optimizer_state(model, optimizer),
    }


def _compared(notes: frozenset[own_values.Note]) -> frozenset[int | None]:
    """Return the stages in which ranks have values of their own; `ValueError` where ranks save different steps."""
    steps = {step for step, _, _ in notes}
    if len(steps) > 1:
        raise ValueError(f"ranks save different steps at once, from {min(steps)} to {max(steps)}; nothing was saved")
    return own_values.differing(notes)
