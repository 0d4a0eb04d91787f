"""What is different where checkpoints of the second design are saved and loaded: see `saving` and `resuming`.

Each rank has a file of its own for the train state, no pointer moves, and a save
deletes nothing but what it replaces under its own name.

Invariants: what stands under a step's name is whole, also while it replaces a
checkpoint of the same step; files of one checkpoint are bound to one save by
checksums in `.metadata.json`; with several ranks, what one raises all raise,
and only rank 0 looks at the folder and changes names in it.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from forge_ref import (
    ephemeral_folder,
    freeze,
    layout,
    manifest,
    marker,
    paths,
    publish,
    source,
    state,
    storage,
    trainer_state,
    trust,
    weights,
)
from forge_ref.engine.leaves import Leaves
from forge_ref.ephemeral_folder import MARKER, METADATA, SHARDS, TRAIN
from forge_ref.manifest import Seal
from forge_ref.messages import log as _log
from forge_ref.messages import some
from forge_ref.resuming import Loaded, PathLike, Resumer
from forge_ref.run import Run
from forge_ref.saving import Request, Saver, Staged
from forge_ref.source import Source

_OPTIM = "optim"
"""The key of the optimizer's state, beside `model`, as OLMo-core has it; older checkpoints of ours have `optimizer`."""


class EphemeralSaver(Saver):
    """Saves one run into its folder as the second design does it."""

    step_field = "global_step"
    optimizer_key = _OPTIM
    describes_first = False

    def _await_flight(self) -> None:
        """Wait for the save in flight; its failure is left to its own future."""
        self._run.checkpointer.settle()

    def _metadata(self, train_state: Mapping[str, Any], request: Request) -> Mapping[str, Any]:
        return {"ephemeral": request.is_ephemeral, "version": ephemeral_folder.VERSION, "step": train_state["step"]}

    def _serialized(self, train_state: Mapping[str, Any]) -> bytes:
        return state.serialized(trainer_state.with_trainers(train_state, self._run.ranks.size))

    def _leaves(self, taken: Mapping[str, Any], _train_state: Mapping[str, Any]) -> Leaves:
        return self._planner.leaves(taken)

    def _check_names_free(self, step: int) -> None:
        ephemeral_folder.check_name_free(self._run.folder, step)

    def _directories(self) -> Sequence[str]:
        return (SHARDS, TRAIN)

    def _shards_in(self, checkpoint: Path) -> Path:
        return checkpoint / SHARDS

    def _write_beside(self, staged: Staged) -> dict[str, Seal]:
        name = ephemeral_folder.rank_file(self._run.ranks.rank)
        publish.write(staged.path / name, staged.train_state)
        return {name: Seal.of(staged.train_state)}

    def _describe(self, staged: Staged, seals: Mapping[str, Seal] = MappingProxyType({})) -> None:
        publish.write(staged.path / METADATA, manifest.written(staged.metadata, seals))

    def _publish(self, staged: Staged) -> None:
        target = self._run.folder / ephemeral_folder.step_name(staged.step)
        publish.appear(staged.path, target, staged.step, self._writer.check)

    def _clear_up(self, staged: Staged) -> None:
        ephemeral_folder.tidy(staged.path, staged.step)


class EphemeralResumer(Resumer):
    """Loads into one run as the second design does it: whole checkpoints, each rank its own train state."""

    if_parts_lack = f"save both, under the keys model and {_OPTIM}"

    def __init__(self, run: Run, has_scheduler: bool) -> None:
        super().__init__(run, paths.here())
        self._has_scheduler = has_scheduler

    def _find(self, path: PathLike | None, _exclude_keys: Sequence[str] | None) -> Source | None:
        found = self._newest() if path is None else _named(paths.located(path, "the path to load", paths.here()))
        if found is None:
            return None
        trust.warn_of_open_dirs(found)
        is_import = not (found / SHARDS).is_dir()
        if is_import:
            return Source(found, {}, None, has_shards=True, has_stages=False)
        is_ours = partial(marker.is_ours, found / MARKER)
        metadata = source.said(found / METADATA, is_ours, "no checksums of files are")
        return Source(found, metadata, b"", has_shards=True, has_stages=False)

    def _newest(self) -> Path | None:
        folder = self._run.folder
        newest, torn = ephemeral_folder.newest(folder)
        if torn:
            lacking = some([f"{one.name} (no {ephemeral_folder.missing_files(one.path)[0]})" for one in torn])
            instead = "starting fresh" if newest is None else f"resuming from {newest.path}"
            _log.warning("%s holds torn checkpoints, %s; %s", folder, lacking, instead)
        return None if newest is None else newest.path

    def _read(
        self, found: Source, exclude_keys: Sequence[str] | None, expected_freeze: freeze.Entries | None
    ) -> Loaded:
        names = {MARKER, *(ephemeral_folder.rank_file(rank) for rank in (0, self._run.ranks.rank))}
        named = ephemeral_folder.step_of(found.path.name)
        with source.naming_odd_metadata(found.path / METADATA, found.metadata, names, named):
            return super()._read(found, exclude_keys, expected_freeze)

    def _open_shards(self, found: Source) -> storage.Shards:
        path = found.path if found.train_state is None else found.path / SHARDS
        shards = storage.open_shards(path, manifest.seals(found.metadata).get(MARKER))
        return shards if weights.OPTIMIZER in shards.parts else replace(shards, renamed={_OPTIM: weights.OPTIMIZER})

    def _train_state(
        self, found: Source, _shards: storage.Shards | None, _saved: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Return this rank's train state, or rank 0's, with new random streams, where it has none of its own."""
        if found.train_state is None:
            return {}
        seals, rank, file = manifest.seals(found.metadata), self._run.ranks.rank, self._train_state_file(found.path)
        name, own = f"{TRAIN}/{file.name}", ephemeral_folder.rank_file(rank)
        blob = storage.read_train_state(found.path, seals.get(name), name)
        if blob is None:
            raise FileNotFoundError(f"{found.path} has no {name}; resume from another one")
        train_state = trainer_state.without_trainers(storage.loads_dict(blob, file, name in seals), file)
        _check_stepped(train_state, file)
        if self._has_scheduler and "scheduler" not in train_state:
            _log.warning("%s has no state of a scheduler; this run's scheduler stays as it is", file)
        if name == own:
            return train_state
        _log.warning("%s has no %s; this rank reads that of rank 0", found.path, own)
        return state.with_new_streams(train_state, rank, file)

    def _train_state_file(self, checkpoint: Path) -> Path:
        own, first = (checkpoint / ephemeral_folder.rank_file(rank) for rank in (self._run.ranks.rank, 0))
        return own if os.path.lexists(own) else first

    def _check_step(self, checkpoint: Path, train_state: Mapping[str, Any]) -> None:
        source.check_step(checkpoint, train_state, ephemeral_folder.step_of, ephemeral_folder.step_name)


def _named(path: Path) -> Path:
    needed = path / MARKER if (path / SHARDS).is_dir() else path / layout.MARKER
    if not needed.exists():
        raise FileNotFoundError(f"no checkpoint at {path}, which was named to load: {needed} does not exist")
    return path.resolve()


def _check_stepped(train_state: Mapping[str, Any], file: Path) -> None:
    """Raise `ValueError` if the train state has no step."""
    if "step" not in train_state:
        raise ValueError(
            f"{file} has neither step nor global_step, so nothing says where to go on; nothing was loaded; name "
            f"{file.parent.parent / SHARDS} to load its weights alone"
        )
