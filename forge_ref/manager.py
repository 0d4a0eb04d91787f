"""Saves a training run's checkpoints, keeps a few of them, and resumes from one.

Control flow only; each step is computed by the module it is named after:

    save   = take the state, stage, [in the background from here] write, sync, publish,
             point `latest` at it, retire
    load   = resolve, read and verify everything into fresh memory, then apply

With several ranks each of them does its part, and they come to one outcome:
whatever fails on one is raised on all, and only rank 0 touches directories.
Between them a save takes two collectives beside DCP's, and a load takes two:

    save   = everybody is staged; [in the background from here] everybody has written, rank 0 commits, and tells
    load   = rank 0 tells what to load; everybody has read and verified it

One manager to a folder at a time: what other hidden directories it finds after
a commit it takes for those of dead runs.  A last save off the schedule, before
a run ends, is the caller's to ask for.
"""

import json
import logging
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist

from forge_ref import channel, freeze, layout, publish, ranks, resolve, retire, state, storage, trust, weights
from forge_ref.async_save import AsyncCheckpointer
from forge_ref.config import CheckpointConfig, check_excludable
from forge_ref.errors import NotTakenBackError, RanksLostError, SaveError

_RANKS = "ranks"
"""The key, beside model and optimizer, under which each rank has its own part of the train state."""
_Markers = frozenset[tuple[int | None, str]]
"""Pipeline stages and the checksums of their markers."""
_log = logging.getLogger("forge_ref")


@dataclass(frozen=True)
class _Staged:
    """A checkpoint on its way to disk: where it is put together, and what goes there."""

    step: int
    path: Path
    shards: dict[str, Any]
    train_state: bytes
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class _Source:
    """What rank 0 found to resume from, on its way to the other ranks."""

    path: Path
    metadata: Mapping[str, Any]
    train_state: bytes | None
    has_shards: bool
    has_stages: bool


@dataclass(frozen=True)
class _Loaded:
    """All that a load takes from disk, verified against the live objects."""

    train_state: Mapping[str, Any]
    model: dict[str, Any] | None
    optimizer: dict[str, Any] | None


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
    ) -> None:
        """Touches no file; with several ranks, all have to come here together.

        `process_group` is the ranks that share shards, those of one pipeline
        stage, and `pp_rank` the number of that stage; without stages all ranks
        share them.  `ValueError` on every rank if these do not fit together.
        `timeout` is how long a rank waits for the others, the slowest write of
        a save included.
        """
        self.config = config
        self.model = model
        self.optimizer = optimizer
        self._ranks = ranks.join(process_group, pp_rank, timeout)
        self._folder = Path(os.path.abspath(config.dir))
        self._checkpointer = AsyncCheckpointer(config.async_mode)
        self._loader_state: Any | None = None

    # -- saving ---------------------------------------------------------------

    def save(
        self,
        step: int,
        tokens_seen: int = 0,
        scheduler: Any | None = None,
        dataloader: Any | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Save now, whatever the schedule says; on return it is committed, or in flight in an async mode.

        First waits for the save in flight; if that one failed, its `SaveError`
        is raised here and nothing is saved (commit.failed-flush).  Everything
        that can be refused is refused before the folder changes: `ValueError`
        for a bad step or a reserved key in `extra`, `FileExistsError` for a
        name that is taken.

        Every rank raises what any of them does (commit.rank-failure), or
        `RanksLostError` when one does not answer; `ValueError` when they save
        different steps (commit.same-step).  Of `tokens_seen`, `scheduler` and `extra` rank 0's
        are saved; loader and random streams are saved for each rank.
        """
        self.wait()
        with ExitStack() as undo:
            stage = partial(self._stage, undo, step, tokens_seen, scheduler, dataloader, extra)
            staged = self._ranks.calls.together(stage, lambda staged: frozenset({staged.step}), _check_same_step)
            undo.pop_all()
        self._checkpointer.launch(partial(self._flush, staged))

    def _stage(
        self,
        undo: ExitStack,
        step: int,
        tokens_seen: int,
        scheduler: Any | None,
        dataloader: Any | None,
        extra: Mapping[str, Any] | None,
    ) -> _Staged:
        step = int(operator.index(step))
        if step < 0:
            raise ValueError(f"step is {step}; steps count from 0")
        train_state = state.build_train_state(step, tokens_seen, scheduler, dataloader, extra)
        metadata = state.describe(train_state, self.config.is_dynamic_milestone(step))
        content = state.serialized(train_state) if self._ranks.is_first else b""
        live = weights.take(self.model, self.optimizer)
        if self._ranks.are_many:
            live[_RANKS] = {str(self._ranks.place): state.own_part(train_state)}
        path = layout.staged_path(self._folder, step)
        staged = _Staged(step, path, self._checkpointer.hold(live), content, metadata)
        if self._ranks.is_first:
            self._make_room(undo, staged)
        return staged

    def _make_room(self, undo: ExitStack, staged: _Staged) -> None:
        publish.make(self._folder)
        layout.check_names_free(self._folder, staged.step)
        undo.callback(publish.discard, publish.stage(self._folder, staged.step, self._ranks.stage_names))
        if self._ranks.are_many:  # before `save` returns on any rank (commit.collective)
            try:
                self._describe(staged)
            except OSError as error:
                raise self._failed(staged, error) from error

    def _flush(self, staged: _Staged) -> None:
        """Bring a staged checkpoint to disk and commit it; in an async mode this runs in the background."""
        try:
            self._ranks.flushes.together(partial(self._write, staged), frozenset, partial(self._commit, staged))
        except Exception as error:
            if self._ranks.is_first:
                publish.discard(staged.path)
            if isinstance(error, RanksLostError):
                raise RanksLostError(f"saving step {staged.step} in {self._folder} was cut short: {error}") from error
            raise self._failed(staged, error) from error

    def _failed(self, staged: _Staged, error: Exception) -> SaveError:
        is_half = isinstance(error, NotTakenBackError)
        outcome = "a resume may find it or the checkpoint before it" if is_half else "nothing was committed"
        return SaveError(
            f"saving step {staged.step} in {self._folder} failed, {outcome}: {type(error).__name__}: {error}"
        )

    def _write(self, staged: _Staged) -> _Markers:
        """This rank's shards; the checksum of their marker, if this is the rank that tells of it."""
        path = self._ranks.directory(staged.path)
        try:
            storage.write(staged.shards, path, self._ranks.writers)
        except RanksLostError:
            channel.leave(self._ranks.writers)
            raise
        if self._ranks.place != 0:
            return frozenset()
        return frozenset({(self._ranks.stage, f"{storage.marker_checksum(path):08x}")})

    def _commit(self, staged: _Staged, markers: _Markers) -> None:
        recorded = dict(markers)
        by_stage = {layout.stage_name(stage): recorded[stage] for stage in range(self._ranks.stages)}
        self._describe(staged, {layout.MARKER_CHECKSUM: by_stage or recorded[None]})
        for directory in (*(staged.path / name for name in self._ranks.stage_names), staged.path):
            publish.sync(directory)
        publish.commit(staged.path, staged.step)
        _log.info("committed step %d in %s", staged.step, self._folder)
        retire.sweep(self._folder)
        retire.retire(self._folder, staged.step, self.config.keep_last_n, self.config.is_dynamic_milestone)

    def _describe(self, staged: _Staged, checksums: Mapping[str, Any] = MappingProxyType({})) -> None:
        metadata = {**staged.metadata, **checksums}
        publish.write(staged.path / layout.TRAIN_STATE, staged.train_state)
        publish.write(staged.path / layout.METADATA, json.dumps(metadata, indent=2).encode())

    def wait(self) -> None:
        """Return when nothing is in flight and all that was saved is committed; `SaveError`, once, if it is not.

        Call it before `torch.distributed` is shut down, or the save in flight
        is cut short.
        """
        self._checkpointer.wait()

    def flush_pending_save(self) -> None:
        """The same as `wait`: for callers that are about to change what a save has recorded."""
        self.wait()

    # -- resuming -------------------------------------------------------------

    def load(
        self,
        path: str | None = None,
        scheduler: Any | None = None,
        dataloader: Any | None = None,
        exclude_keys: Sequence[str] | None = None,
        vlm_freeze_expected: freeze.Entries | None = None,
    ) -> tuple[int, int, dict[str, Any]]:
        """Resume in place; returns step, tokens seen and the extra of the save, or `(0, 0, {})` for a fresh start.

        Waits for a save in flight, so that it lands on it.  Whatever is
        raised, model, optimizer, scheduler, random streams and a loader that can
        say where it is are as they were (resume.all-or-nothing): `FileNotFoundError` for a named path,
        `PermissionError` for a file that is not trusted, `DamagedError` for
        one that is not what was written, `ValueError` for a checkpoint that
        does not fit or a freeze list that differs.

        Every rank lands on what rank 0 finds, and raises what any of them
        raises.  A rank gets its own random streams and loader back, by its
        number (resume.rng-per-rank).  Resumed on more ranks, a new one gets
        streams of its own, the same at each resume from this checkpoint, and
        rank 0's loader state; on fewer, those of the rest are left.  A warning
        says so.

        Without a `dataloader` its state is kept for `apply_dataloader_state`.
        """
        self._checkpointer.settle()
        source = self._ranks.calls.from_first(partial(self._find, path, exclude_keys))
        if source is None:
            self._loader_state = None
            return 0, 0, {}
        with ExitStack() as undo:
            read = partial(self._read, source, exclude_keys, vlm_freeze_expected)
            prepare = partial(self._prepare, undo, read, scheduler, dataloader)
            loaded, resumed = self._ranks.calls.together(prepare)
            if loaded.model is not None:
                weights.load_model(self.model, loaded.model)
            undo.pop_all()
        self._loader_state = loaded.train_state.get("dataloader") if dataloader is None else None
        _log.info("resumed step %d from %s", resumed[0], source.path)
        return resumed

    def peek_saved_step(self, path: str | None = None) -> int | None:
        """The step that `load` would land on, errors included; None where it would start fresh (resume.peek-agrees).

        With several ranks, all have to ask together.
        """
        self._checkpointer.settle()
        return self._ranks.calls.from_first(partial(self._peek, path))

    def apply_dataloader_state(self, dataloader: Any) -> None:
        """Give a loader the state that `load` had no loader for: once, and quietly nothing if it can't take one."""
        kept, self._loader_state = self._loader_state, None
        if kept is not None and hasattr(dataloader, "load_state_dict"):
            dataloader.load_state_dict(kept)

    def _excluded(self, keys: Iterable[str] | None) -> frozenset[str]:
        return check_excludable(keys or (), "exclude_keys") | check_excludable(
            self.config.exclude_from_loading, "exclude_from_loading"
        )

    def _resume_point(self, path: str | None, needs_shards: bool) -> Path | None:
        named = path if path is not None else self.config.load_path
        return resolve.resume_point(self._folder, named, needs_shards, len(self._ranks.stage_names))

    def _peek(self, path: str | None) -> int | None:
        source = self._resume_point(path, not self._excluded(None).issuperset(weights.PARTS))
        if source is None:
            return None
        with suppress(OSError, ValueError, KeyError, TypeError):
            if (source / layout.TRAIN_STATE).exists():  # a load without it returns 0, whatever is said there
                return operator.index(layout.read_metadata(source)["step"])
        blob = storage.read_train_state(source)
        train_state = {} if blob is None else storage.loads_train_state(blob, source / layout.TRAIN_STATE)
        return operator.index(train_state.get("step", 0))

    def _find(self, path: str | None, exclude_keys: Sequence[str] | None) -> _Source | None:
        needs_shards = not self._excluded(exclude_keys).issuperset(weights.PARTS)
        source = self._resume_point(path, needs_shards)
        if source is None:
            return None
        trust.warn_of_open_dirs(source)
        train_state = storage.read_train_state(source)
        if train_state is None:
            _log.warning("%s has no %s: step, scheduler and random streams start afresh", source, layout.TRAIN_STATE)
        has_shards = needs_shards or not layout.missing_files(source)
        return _Source(source, _readable_metadata(source), train_state, has_shards, bool(layout.stages(source)))

    def _read(
        self, source: _Source, exclude_keys: Sequence[str] | None, expected_freeze: freeze.Entries | None
    ) -> _Loaded:
        """Everything that is wanted of a checkpoint, read and verified; nothing live has changed."""
        excluded = self._excluded(exclude_keys)
        self._check_freeze(source, expected_freeze)
        wanted = [part for part in weights.PARTS if part not in excluded]
        shards = self._open_shards(source) if wanted or (source.has_shards and self._ranks.are_many) else None
        saved = {} if shards is None else self._read_shards(shards, wanted, is_import=source.train_state is None)
        model, optimizer = saved.get(weights.MODEL), saved.get(weights.OPTIMIZER)
        train_state = self._train_state(source, shards, saved)
        return _Loaded(
            {key: value for key, value in train_state.items() if key not in excluded or key not in state.RESERVED},
            None
            if model is None
            else weights.match_model(self.model, model, source.path, is_import=source.train_state is None),
            None if optimizer is None else weights.match_optimizer(self.model, self.optimizer, optimizer, source.path),
        )

    def _check_freeze(self, source: _Source, expected: freeze.Entries | None) -> None:
        saved = freeze.recorded(source.metadata, source.path / layout.METADATA)
        if saved is not None and expected is not None:
            freeze.check_freeze(saved, expected, source.path, self.config.ignore_freeze_mismatch)

    def _open_shards(self, source: _Source) -> storage.Shards:
        path = self._ranks.directory(source.path) if source.has_stages else source.path
        recorded = source.metadata.get(layout.MARKER_CHECKSUM)
        return storage.open_shards(path, recorded.get(path.name) if isinstance(recorded, Mapping) else recorded)

    def _read_shards(self, shards: storage.Shards, wanted: list[str], is_import: bool) -> dict[str, Any]:
        """The wanted parts, and this rank's own; only imported weights may come without moments."""
        missing = [part for part in wanted if part not in shards.parts]
        if missing == [weights.OPTIMIZER] and is_import:
            _log.warning("%s holds weights without optimizer state; the optimizer stays as it is", shards.path)
        elif missing:
            raise ValueError(
                f"{shards.path} has no {' and no '.join(missing)}, only {sorted(shards.parts)}; "
                "exclude what it lacks, or save it under those keys"
            )
        own = (_RANKS, str(self._ranks.place)) if self._ranks.are_many else None
        return shards.read(lambda keys: keys[0] in wanted or keys == own, weights.places(self.model))

    def _train_state(
        self, source: _Source, shards: storage.Shards | None, saved: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Rank 0's train state, with this rank's own streams and loader in it."""
        if source.train_state is None:
            return {}
        train_state = storage.loads_train_state(source.train_state, source.path / layout.TRAIN_STATE)
        if shards is not None and self._ranks.place == 0:
            self._warn_of_other_ranks(shards)
        own = saved.get(_RANKS, {}).get(str(self._ranks.place))
        if shards is not None and own is not None:
            return {**train_state, **storage.loads_train_state(bytes(own.numpy()), shards.path)}
        if self._ranks.is_first or "rng" not in train_state:
            return train_state
        return {**train_state, "rng": state.streams_of_new_rank(train_state["rng"], self._ranks.rank)}

    def _warn_of_other_ranks(self, shards: storage.Shards) -> None:
        savers, readers = max(1, len(shards.under(_RANKS))), len(self._ranks.peers)
        if savers > readers:
            _log.warning("%s: of %d ranks' random streams and loaders %d go on", shards.path, savers, readers)
        elif savers < readers:
            _log.warning(
                "%s has random streams and loaders of %d ranks; %d more get new streams, and rank 0's loader state",
                shards.path,
                savers,
                readers - savers,
            )

    def _prepare(
        self, undo: ExitStack, read: Callable[[], _Loaded], scheduler: Any | None, dataloader: Any | None
    ) -> tuple[_Loaded, tuple[int, int, dict[str, Any]]]:
        """Read, and change what can be put back; the model can't cheaply, and comes when every rank is this far."""
        loaded = read()
        state.remember(undo, scheduler, dataloader if self._ranks.are_many else None)  # another rank may yet fail
        if loaded.optimizer is not None:
            undo.callback(weights.load_optimizer, self.optimizer, self.optimizer.state_dict())
            weights.load_optimizer(self.optimizer, loaded.optimizer)
        return loaded, state.restore_train_state(loaded.train_state, scheduler, dataloader)

    # -- beyond checkpoints ---------------------------------------------------

    def export(self, path: str) -> None:
        """Write the model's weights alone to one file, floating-point ones cast to `export_dtype`.

        For `torch.load`; it appears whole or not at all, and takes no part in resuming.
        With several ranks, all have to ask together, since training's groups
        put sharded weights together; rank 0 writes.  `ValueError` with
        pipeline stages: no rank has the whole model.
        """
        if self._ranks.stage is not None:
            raise ValueError(f"this run has {self._ranks.stages} pipeline stages; export from a run without")
        dtype = getattr(torch, self.config.export_dtype)
        exported = {
            name: value.to("cpu", dtype if value.is_floating_point() else value.dtype)
            for name, value in weights.whole(self.model).items()
            if isinstance(value, torch.Tensor)
        }
        self._ranks.calls.together(partial(self._write_export, exported, Path(path)))

    def _write_export(self, exported: Mapping[str, torch.Tensor], path: Path) -> None:
        if self._ranks.is_first:
            partial_path = Path(f"{path}.partial")
            publish.write(partial_path, state.serialized(exported))
            os.rename(partial_path, path)


def _readable_metadata(source: Path) -> dict[str, Any]:
    """What `metadata.json` says; nothing, with a warning, if it can't be read: no reason not to resume."""
    try:
        return layout.read_metadata(source)
    except FileNotFoundError:
        return {}  # imported weights have none
    except (OSError, ValueError) as error:
        _log.warning("%s can't be read, so its freeze list is not compared: %s", source / layout.METADATA, error)
        return {}


def _check_same_step(steps: frozenset[int]) -> None:
    if len(steps) > 1:
        raise ValueError(f"ranks save different steps at once, from {min(steps)} to {max(steps)}; nothing was saved")
