"""Saves a training run's checkpoints, keeps a few of them, and resumes from one.

Control flow only; each step is computed by the module it is named after:

    save   = take the state, stage, [in the background from here] write, sync, publish,
             point `latest` at it, retire
    load   = resolve, read and verify everything into fresh memory, then apply

One manager to a folder at a time: what other hidden directories it finds after
a commit it takes for those of dead runs.  A last save off the schedule, before
a run ends, is the caller's to ask for.
"""

import json
import logging
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from forge_ref import freeze, layout, publish, ranks, resolve, retire, state, storage, trust, weights
from forge_ref.async_save import AsyncCheckpointer
from forge_ref.config import CheckpointConfig, check_excludable
from forge_ref.errors import SaveError

_log = logging.getLogger("forge_ref")


@dataclass(frozen=True)
class _Staged:
    """A checkpoint on its way to disk: where it is put together, and what it holds besides shards."""

    step: int
    path: Path
    train_state: bytes
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class _Loaded:
    """All that a load takes from disk, verified against the live objects."""

    train_state: Mapping[str, Any]
    model: dict[str, Any] | None
    optimizer: dict[str, Any] | None


class CheckpointManager:
    """See the module.  Not thread-safe: call it from the thread that trains."""

    def __init__(
        self,
        config: CheckpointConfig,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        process_group: dist.ProcessGroup | None = None,
        pp_rank: int | None = None,
    ) -> None:
        """Touches no file.  `NotImplementedError` for more than one rank."""
        ranks.require_one_rank(process_group, pp_rank)
        self.config = config
        self.model = model
        self.optimizer = optimizer
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
        """
        self.wait()
        step = int(operator.index(step))
        if step < 0:
            raise ValueError(f"step is {step}; steps count from 0")
        train_state = state.build_train_state(step, tokens_seen, scheduler, dataloader, extra)
        content = state.serialized(train_state)
        metadata = state.describe(train_state, self.config.is_dynamic_milestone(step))
        live = weights.take(self.model, self.optimizer)
        self._folder.mkdir(parents=True, exist_ok=True)
        layout.check_names_free(self._folder, step)
        staged = _Staged(step, publish.stage(self._folder, step), content, metadata)
        self._checkpointer.dispatch(live, partial(self._flush, staged))

    def _flush(self, staged: _Staged, live: dict[str, Any]) -> None:
        """Bring a staged checkpoint to disk and commit it; in an async mode this runs in the background."""
        try:
            self._write(staged, live)
            self._commit(staged)
        except Exception as error:
            publish.discard(staged.path)
            raise SaveError(
                f"saving step {staged.step} in {self._folder} failed, nothing was committed: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _write(self, staged: _Staged, live: dict[str, Any]) -> None:
        storage.write(live, staged.path)
        metadata = {**staged.metadata, layout.MARKER_CHECKSUM: storage.marker_checksum(staged.path)}
        publish.write(staged.path / layout.TRAIN_STATE, staged.train_state)
        publish.write(staged.path / layout.METADATA, json.dumps(metadata, indent=2).encode())
        publish.sync(staged.path)

    def _commit(self, staged: _Staged) -> None:
        publish.publish(staged.path, staged.step)
        publish.point_latest(self._folder, staged.step)
        _log.info("committed step %d in %s", staged.step, self._folder)
        retire.sweep(self._folder)
        retire.retire(self._folder, staged.step, self.config.keep_last_n, self.config.is_dynamic_milestone)

    def wait(self) -> None:
        """Return when nothing is in flight and all that was saved is committed; `SaveError`, once, if it is not."""
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
        raised, model, optimizer, scheduler and random streams are as they
        were (resume.all-or-nothing): `FileNotFoundError` for a named path,
        `PermissionError` for a file that is not trusted, `DamagedError` for
        one that is not what was written, `ValueError` for a checkpoint that
        does not fit or a freeze list that differs.

        Without a `dataloader` its state is kept for `apply_dataloader_state`.
        """
        excluded = self._excluded(exclude_keys)
        source = self._resume_point(path, excluded)
        if source is None:
            return 0, 0, {}
        metadata = _readable_metadata(source)
        self._check_freeze(source, metadata, vlm_freeze_expected)
        loaded = self._read(source, metadata, excluded)
        resumed = self._apply(loaded, scheduler, dataloader)
        self._loader_state = loaded.train_state.get("dataloader") if dataloader is None else None
        _log.info("resumed step %d from %s", resumed[0], source)
        return resumed

    def peek_saved_step(self, path: str | None = None) -> int | None:
        """The step that `load` would land on, errors included; None where it would start fresh (resume.peek-agrees)."""
        source = self._resume_point(path, self._excluded(None))
        if source is None:
            return None
        try:
            return operator.index(layout.read_metadata(source)["step"])
        except (OSError, ValueError, KeyError, TypeError):
            train_state = storage.read_train_state(source) or {}
            return operator.index(train_state.get("step", 0))

    def apply_dataloader_state(self, dataloader: Any) -> None:
        """Give a loader the state that `load` had no loader for: once, and quietly nothing if it can't take one."""
        kept, self._loader_state = self._loader_state, None
        if kept is not None and hasattr(dataloader, "load_state_dict"):
            dataloader.load_state_dict(kept)

    def _excluded(self, keys: Iterable[str] | None) -> frozenset[str]:
        return check_excludable(keys or (), "exclude_keys") | check_excludable(
            self.config.exclude_from_loading, "exclude_from_loading"
        )

    def _resume_point(self, path: str | None, excluded: frozenset[str]) -> Path | None:
        self._checkpointer.settle()
        named = path if path is not None else self.config.load_path
        source = resolve.resume_point(self._folder, named, needs_shards=not excluded.issuperset(weights.PARTS))
        if source is not None and (stages := layout.stages(source)):
            raise NotImplementedError(f"{source} holds pipeline stages {stages}; this version loads none of them")
        return source

    def _check_freeze(self, source: Path, metadata: Mapping[str, Any], expected: freeze.Entries | None) -> None:
        saved = freeze.recorded(metadata, source / layout.METADATA)
        if saved is not None and expected is not None:
            freeze.check_freeze(saved, expected, source, self.config.ignore_freeze_mismatch)

    def _read(self, source: Path, metadata: Mapping[str, Any], excluded: frozenset[str]) -> _Loaded:
        """Everything that is wanted of a checkpoint, read and verified; nothing live has changed."""
        trust.warn_of_open_dirs(source)
        train_state = storage.read_train_state(source)
        if train_state is None:
            _log.warning("%s has no %s: step, scheduler and random streams start afresh", source, layout.TRAIN_STATE)
        wanted = [part for part in weights.PARTS if part not in excluded]
        shards = storage.open_shards(source, metadata.get(layout.MARKER_CHECKSUM)) if wanted else None
        saved = {} if shards is None else self._read_shards(shards, wanted, is_import=train_state is None)
        model, optimizer = saved.get(weights.MODEL), saved.get(weights.OPTIMIZER)
        return _Loaded(
            {key: value for key, value in (train_state or {}).items() if key not in excluded},
            None if model is None else weights.match_model(self.model, model, source),
            None if optimizer is None else weights.match_optimizer(self.model, self.optimizer, optimizer, source),
        )

    def _read_shards(self, shards: storage.Shards, wanted: list[str], is_import: bool) -> dict[str, Any]:
        """The wanted parts; only imported weights, which have no train state, may come without moments."""
        missing = [part for part in wanted if part not in shards.parts]
        if missing == [weights.OPTIMIZER] and is_import:
            _log.warning("%s holds weights without optimizer state; the optimizer stays as it is", shards.path)
        elif missing:
            raise ValueError(
                f"{shards.path} has no {' and no '.join(missing)}, only {sorted(shards.parts)}; "
                "exclude what it lacks, or save it under those keys"
            )
        return shards.read(part for part in wanted if part not in missing)

    def _apply(self, loaded: _Loaded, scheduler: Any | None, dataloader: Any | None) -> tuple[int, int, dict[str, Any]]:
        """Change the live objects; the model comes last, since it was verified and can't be undone cheaply."""
        with ExitStack() as undo:
            state.remember(undo, scheduler)
            if loaded.optimizer is not None:
                undo.callback(weights.load_optimizer, self.optimizer, self.optimizer.state_dict())
                weights.load_optimizer(self.optimizer, loaded.optimizer)
            resumed = state.restore_train_state(loaded.train_state, scheduler, dataloader)
            if loaded.model is not None:
                weights.load_model(self.model, loaded.model)
            undo.pop_all()
        return resumed

    # -- beyond checkpoints ---------------------------------------------------

    def export(self, path: str) -> None:
        """Write the model's weights alone to one file, floating-point ones cast to `export_dtype`.

        For `torch.load`; it appears whole or not at all, and takes no part in resuming.
        """
        dtype = getattr(torch, self.config.export_dtype)
        exported = {
            name: value.to("cpu", dtype if value.is_floating_point() else value.dtype)
            for name, value in weights.take(self.model, self.optimizer)[weights.MODEL].items()
            if isinstance(value, torch.Tensor)
        }
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
