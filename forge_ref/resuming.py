"""Brings a checkpoint back into the live objects of a run, for both designs.

    load = resolve, read and verify everything into fresh memory, then put it in: first all that
           may fail, so that it can be undone, and when all ranks are that far copies that can't

Invariants: rank 0 alone decides which checkpoint it is; nothing live changes
before all that is wanted of it was read, verified and compared with the live
objects; and a load that raises has changed nothing (resume.all-or-nothing).

With several ranks a load takes two collectives: rank 0 sends what to load; and
all ranks have put in what may fail, so that only copies are left.

`Resumer` is the first design's; the second has its own methods in the place of
those under *what designs differ in* (`ephemeral_saver`).
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from forge_ref import (
    collector,
    forms,
    freeze,
    layout,
    manifest,
    optimizers,
    own_values,
    paths,
    resolve,
    source,
    state,
    storage,
    trust,
    weights,
)
from forge_ref.arguments import check_texts
from forge_ref.config import EXCLUDABLE, check_excludable
from forge_ref.messages import log as _log
from forge_ref.messages import some
from forge_ref.pieces import Copy
from forge_ref.ranks import Ranks
from forge_ref.run import RANKS, Run
from forge_ref.source import Source

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Resumed:
    """What a load came back with."""

    step: int
    tokens_seen: int
    extra: dict[str, Any]
    is_import: bool
    """Whether these are weights without a train state."""


@dataclass(frozen=True)
class Loaded:
    """All that a load takes from disk, verified against the live objects."""

    train_state: Mapping[str, Any]
    live: Mapping[str, Any]
    """The model's own values by name, sharing memory with it; empty where no shards are read."""
    model: dict[str, Any] | None
    optimizer: dict[str, Any] | None


class Resumer:
    """Loads checkpoints into one run; `start` is the directory that a relative `load_path` is seen from."""

    if_parts_lack = "exclude what it lacks, or save it under those keys"
    """The way out that an error names for a checkpoint without model or optimizer."""

    def __init__(self, run: Run, start: str) -> None:
        self._run = run
        self._start = start
        self._loader_state: Any | None = None

    def load(
        self,
        path: PathLike | None,
        scheduler: Any | None,
        dataloader: Any | None,
        exclude_keys: Sequence[str] | None = None,
        vlm_freeze_expected: freeze.Entries | None = None,
    ) -> Resumed | None:
        """Do what `CheckpointManager.load` promises; None for a fresh start."""
        calls, model = self._run.ranks.calls, self._run.model
        with self._run.deferral(first=0) as deferral, weights.mode_to_load_in(model), collector.paused():
            self._run.checkpointer.settle()
            found = calls.from_first(partial(self._find, path, exclude_keys))
            if found is None:
                self._loader_state = None
                return None

            def read() -> Loaded:
                loaded = self._read(found, exclude_keys, vlm_freeze_expected)
                deferral.defer_all()  # from here on live objects change
                return loaded

            with ExitStack() as undo:
                prepare = partial(self._prepare, undo, read, scheduler, dataloader)
                loaded, copies, resumed = calls.together(prepare)
                undo.pop_all()
            self._loader_state = loaded.train_state.get("dataloader") if dataloader is None else None
            weights.copy_all(copies)
            self._run.gradients.note()
            with suppress(Exception):  # the load has succeeded, whatever a log handler does
                _log.info("resumed step %s from %s", resumed[0], found.path)
            return Resumed(*resumed, is_import=found.train_state is None)

    def peek(self, path: PathLike | None) -> int | None:
        """Return what `CheckpointManager.peek_saved_step` promises; for rank 0."""
        point = self._resume_point(path, not self._excluded(None).issuperset(weights.PARTS))
        return None if point is None else source.saved_step(point)

    def apply_dataloader_state(self, dataloader: Any) -> None:
        """See `CheckpointManager.apply_dataloader_state`."""
        kept, self._loader_state = self._loader_state, None
        if kept is not None and hasattr(dataloader, "load_state_dict"):
            dataloader.load_state_dict(kept)

    # -- which checkpoint, and what of it ---------------------------------------

    def _excluded(self, keys: Iterable[str] | None) -> frozenset[str]:
        """Return what the call and the configuration exclude."""
        check_texts(keys or (), "exclude_keys")
        model, ranks, configured = self._run.model, self._run.ranks, self._run.config.exclude_from_loading
        in_call = known_keys(keys or (), "exclude_keys", model, ranks)
        return in_call | known_keys(configured, "exclude_from_loading", model, ranks)

    def _resume_point(self, path: PathLike | None, needs_shards: bool) -> Path | None:
        named = path if path is not None else self._run.config.load_path
        if named is not None:
            where = "load_path" if path is None else "the path to load"
            named = paths.located(named, where, self._start if path is None else paths.here())
        return resolve.resume_point(self._run.folder, named, needs_shards, len(self._run.ranks.stage_names))

    # -- reading ----------------------------------------------------------------

    def _read(
        self, found: Source, exclude_keys: Sequence[str] | None, expected_freeze: freeze.Entries | None
    ) -> Loaded:
        """Return all that is wanted of a checkpoint, as the live objects take it; none of them has changed."""
        excluded = self._excluded(exclude_keys)
        self._check_freeze(found, expected_freeze)
        wanted = [part for part in weights.PARTS if part not in excluded]
        shards = self._open_shards(found) if wanted or (found.has_shards and self._run.ranks.are_many) else None
        is_import = found.train_state is None
        live = {} if shards is None else weights.model_state(self._run.model)
        saved = {} if shards is None else self._read_shards(shards, live, wanted, is_import)
        train_state = self._train_state(found, shards, saved)
        left_out = excluded.intersection(EXCLUDABLE).difference(weights.PARTS)
        kept = {key: value for key, value in train_state.items() if key not in left_out}
        file = self._train_state_file(found.path)
        state.check_counters(kept, file)
        state.check_streams(kept, file)
        self._check_step(found.path, kept)
        model, optimizer = saved.get(weights.MODEL), saved.get(weights.OPTIMIZER)
        spared = excluded.difference(EXCLUDABLE)
        if model is not None:
            model = weights.match_model(self._run.model, live, model, found.path, is_import, spared)
        if optimizer is not None:
            optimizer = optimizers.match_optimizer(self._run.model, self._run.optimizer, optimizer, found.path, spared)
        return Loaded(kept, live, model, optimizer)

    def _check_freeze(self, found: Source, expected: freeze.Entries | None) -> None:
        if expected is not None:
            freeze.check_expected(expected)
        saved = freeze.recorded(found.metadata, found.path / layout.METADATA)
        if saved is not None and expected is not None:
            freeze.check_freeze(saved, expected, found.path, self._run.config.ignore_freeze_mismatch)

    def _read_shards(
        self, shards: storage.Shards, live: Mapping[str, Any], wanted: list[str], is_import: bool
    ) -> dict[str, Any]:
        """Return the wanted parts, and this rank's own; only imported weights may come without moments."""
        ranks = self._run.ranks
        wanted = [part for part in wanted if part != weights.MODEL or not weights.is_empty(self._run.model)]
        missing = [part for part in wanted if part not in shards.parts]
        if missing == [weights.OPTIMIZER] and is_import:
            _log.warning("%s holds weights without optimizer state; the optimizer stays as it is", shards.path)
        elif missing:
            holds = f"only {some(sorted(shards.parts))}" if shards.parts else "and its marker lists nothing at all"
            raise ValueError(f"{shards.path} has no {' and no '.join(missing)}, {holds}; {self.if_parts_lack}")
        place, parts = str(ranks.place), {*wanted, *((forms.FORMS, part) for part in wanted)}
        if ranks.are_many:
            parts |= {(RANKS, place), (own_values.OWN, place)}
        saved = shards.read(lambda keys: keys[0] in parts or keys[:2] in parts, weights.places(live))
        return forms.unpack(own_values.taken(saved, ranks.place, shards.path), shards.path)

    def _warn_of_other_ranks(self, shards: storage.Shards) -> None:
        savers, readers = max(1, len(shards.under(RANKS))), len(self._run.ranks.peers)
        if savers != readers and shards.under(own_values.OWN):
            outcome = "further ranks get rank 0's" if savers < readers else f"those of {readers} are restored"
            _log.warning("%s has buffers that differ between its %d ranks; %s", shards.path, savers, outcome)
        if savers > readers:
            _log.warning("%s: restored random streams and loaders for %d of %d ranks", shards.path, readers, savers)
        elif savers < readers:
            _log.warning(
                "%s has random streams and loaders of %d ranks; %d more get new streams, and rank 0's loader state",
                shards.path,
                savers,
                readers - savers,
            )

    # -- putting it in ------------------------------------------------------------

    def _prepare(
        self, undo: ExitStack, read: Callable[[], Loaded], scheduler: Any | None, dataloader: Any | None
    ) -> tuple[Loaded, list[Copy], tuple[int, int, dict[str, Any]]]:
        """Put in all that may fail, so that it can be undone; return the copies that are left to do."""
        loaded, model, optimizer = read(), self._run.model, self._run.optimizer
        by_copying = loaded.model is not None and weights.loads_by_copying(model, loaded.live)
        optimizers.remember_optimizer(undo, optimizer)  # first, so put back last: a scheduler may change its groups
        state.remember_parts(undo, loaded.train_state, scheduler, dataloader)
        if loaded.model is not None and not by_copying:
            weights.remember_model(undo, model)
            weights.load_model(model, loaded.live, loaded.model)
        if loaded.optimizer is not None:
            optimizers.load_optimizer(optimizer, loaded.optimizer)
        resumed = state.put_in(loaded.train_state, scheduler, dataloader)
        return loaded, weights.copies(loaded.live, loaded.model) if loaded.model and by_copying else [], resumed

    # -- what designs differ in ---------------------------------------------------

    def _find(self, path: PathLike | None, exclude_keys: Sequence[str] | None) -> Source | None:
        needs_shards = not self._excluded(exclude_keys).issuperset(weights.PARTS)
        point = self._resume_point(path, needs_shards)
        if point is None:
            return None
        trust.warn_of_open_dirs(point)
        metadata, train_state = source.read(point)
        if train_state is None:
            _log.warning("%s has no %s: step, scheduler and random streams start afresh", point, layout.TRAIN_STATE)
        has_shards = needs_shards or not layout.missing_files(point)
        return Source(point, metadata, train_state, has_shards, bool(layout.stages(point)))

    def _open_shards(self, found: Source) -> storage.Shards:
        path = self._run.ranks.directory(found.path) if found.has_stages else found.path
        recorded = manifest.seals(found.metadata)
        name = f"{path.name}/{layout.MARKER}" if found.has_stages else layout.MARKER
        return storage.open_shards(path, recorded.get(name))

    def _train_state(self, found: Source, shards: storage.Shards | None, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return rank 0's train state, with this rank's own streams and loader state in it."""
        if found.train_state is None:
            return {}
        ranks, is_sealed = self._run.ranks, layout.TRAIN_STATE in manifest.seals(found.metadata)
        train_state = storage.loads_dict(found.train_state, found.path / layout.TRAIN_STATE, is_sealed)
        if shards is not None and ranks.place == 0:
            self._warn_of_other_ranks(shards)
        own = saved.get(RANKS, {}).get(str(ranks.place))
        if shards is not None and own is not None:
            return {**train_state, **storage.loads_dict(bytes(own.numpy()), shards.path)}
        if ranks.is_first:
            return train_state
        return state.with_new_streams(train_state, ranks.rank, self._train_state_file(found.path))

    def _train_state_file(self, checkpoint: Path) -> Path:
        return checkpoint / layout.TRAIN_STATE

    def _check_step(self, checkpoint: Path, train_state: Mapping[str, Any]) -> None:
        source.check_step(checkpoint, train_state)


def known_keys(keys: Iterable[str], where: str, model: torch.nn.Module, ranks: Ranks) -> frozenset[str]:
    """Return the keys; `ValueError` for one that is neither a part nor a name in the model, or the beginning of one.

    In a pipeline no rank knows all names, so none is refused there.
    """
    excluded = check_excludable(keys, where)
    if ranks.stage is None:
        weights.check_names(model, excluded.difference(EXCLUDABLE), where, EXCLUDABLE)
    return excluded
