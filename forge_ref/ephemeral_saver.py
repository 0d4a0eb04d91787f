"""Saves and loads the checkpoints of the second design, on the engine of the first.

    save = take the state, stage, [in the background from here] write, sync, publish under the step's name
    load = find, read and verify everything into fresh memory, then put it in

Invariants: what stands under a step's name is whole, also while it replaces a
checkpoint of the same step; files of one checkpoint are bound to one save by
checksums in `.metadata.json`; with several ranks, what one raises all raise,
and only rank 0 looks at the folder and changes names in it.
"""

import operator
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch

from forge_ref import (
    channel,
    collector,
    ephemeral_folder,
    forms,
    layout,
    manifest,
    marker,
    optimizers,
    own_values,
    paths,
    publish,
    ranks,
    state,
    storage,
    trainer_state,
    trust,
    weights,
)
from forge_ref.arguments import check_integer
from forge_ref.async_save import AsyncCheckpointer
from forge_ref.config import AsyncCheckpointMode
from forge_ref.engine.leaves import Leaves
from forge_ref.ephemeral_folder import MARKER, METADATA, SHARDS, TRAIN
from forge_ref.errors import DamagedError, NotTakenBackError, RanksLostError, SaveError
from forge_ref.gradients import after_first_step
from forge_ref.interrupts import Deferral, for_call
from forge_ref.manifest import Seal
from forge_ref.messages import log as _log
from forge_ref.messages import logged, some
from forge_ref.pieces import Copy
from forge_ref.plan import Planner
from forge_ref.resuming import Loaded, put_in
from forge_ref.saving import taken_state, tensors_of
from forge_ref.writer import Writer

_OPTIM = "optim"
"""The key of the optimizer's state, beside `model`, as OLMo-core has it; older checkpoints of ours have `optimizer`."""
_Files = frozenset[tuple[str, int, str]]
"""What was written: names in the checkpoint, and what the seals have."""


@dataclass(frozen=True)
class Resumed:
    """What a load came back with."""

    step: int
    tokens_seen: int
    extra: dict[str, Any]
    is_import: bool
    """Whether these are weights without a train state."""


@dataclass(frozen=True)
class _Staged:
    """A checkpoint on its way to disk: where it is put together, and what goes there."""

    step: int
    path: Path
    shards: Leaves
    train_state: bytes
    metadata: Mapping[str, Any]

    @property
    def target(self) -> Path:
        return self.path.parent / ephemeral_folder.step_name(self.step)


@dataclass(frozen=True)
class _Source:
    """What rank 0 found to load, on its way to the other ranks."""

    path: Path
    metadata: Mapping[str, Any]
    is_import: bool


class Checkpointer:
    """Not thread-safe: call it from the thread that trains, on every rank, in the same order."""

    def __init__(
        self,
        save_folder: str | os.PathLike[str],
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: Any | None = None,
        dataloader: Any | None = None,
        timeout: timedelta = ranks.TIMEOUT,
    ) -> None:
        """Make no file yet; with several ranks, all have to come here together.

        The folder is rank 0's, fixed here.  `NotADirectoryError` if it can't be a folder.
        """
        self.model, self.optimizer, self.scheduler, self.dataloader = model, optimizer, scheduler, dataloader
        self._ranks = ranks.join(None, None, timeout)
        self.calls = self._ranks.calls
        """What ranks agree through, on the thread that calls."""
        self.folder = self.calls.from_first(partial(paths.folder, save_folder, "save_folder", paths.here()))
        self._flights = AsyncCheckpointer(AsyncCheckpointMode.async_)
        self._writer = Writer(self.folder, self._flights)
        self._planner = Planner(_OPTIM)
        after_first_step(optimizer, self.prewarm)

    def prewarm(self) -> None:
        """Make what the first save needs, beside training."""
        self._flights.shards.prewarm(tensors_of(self.model, self.optimizer))

    # -- saving ---------------------------------------------------------------

    def save(
        self, step: int, tokens_seen: int, extra: Mapping[str, Any], is_ephemeral: bool, in_background: bool
    ) -> tuple[Path, "Future[None]"]:
        """Save now; on return it is complete, or in flight.  Return where it will be, and the flush's future.

        First waits for the save in flight, whose failure is left to its own
        future.  Raises what `CheckpointManager.save` does, on every rank.
        """
        if not self._ranks.are_many:
            self._flights.settle()
        with weights.ordinary_tensors(), for_call(1, self._ranks.are_many), ExitStack() as undo:
            self._flights.settle()
            stage = partial(self._stage, undo, step, tokens_seen, extra, is_ephemeral, in_background)
            staged, _ = self.calls.concluded(stage, lambda made: frozenset({made.step}), _check_same)
            undo.pop_all()
            future: Future[None] = Future()
            flush = partial(self._flush, staged, future)
            if in_background:
                self._flights.launch(flush)
            else:
                flush()
        return staged.target, future

    def _stage(
        self,
        undo: ExitStack,
        step: int,
        tokens_seen: int,
        extra: Mapping[str, Any],
        is_ephemeral: bool,
        in_background: bool,
    ) -> _Staged:
        check_integer(step, "global_step", at_least=0)
        check_integer(tokens_seen, "tokens_seen")
        train_state = state.build_train_state(step, tokens_seen, self.scheduler, self.dataloader, extra)
        content = state.serialized(trainer_state.with_trainers(train_state, self._ranks.size))
        taken = taken_state(self.model, self.optimizer)
        held = self._flights.hold(self._planner.leaves(taken), in_background)
        if self._ranks.are_many and (own := own_values.of(self.model, taken, held.nested())):
            held = own_values.added(held, own, self._ranks.place)
        if self._ranks.place != 0:
            held = held.without(forms.FORMS)  # the same on all of them
        said = {"ephemeral": is_ephemeral, "version": ephemeral_folder.VERSION, "step": operator.index(step)}
        staged = _Staged(int(step), layout.staged_path(self.folder, int(step), self._ranks.token), held, content, said)
        if self._ranks.is_first:
            publish.make(self.folder)
            ephemeral_folder.check_name_free(self.folder, staged.step)
            self._writer.begin()
            undo.callback(publish.abandon, staged.path)
            publish.stage(staged.path, staged.step, (SHARDS, TRAIN))
        return staged

    def _flush(self, staged: _Staged, future: "Future[None]") -> None:
        """Bring a staged checkpoint to disk and publish it; `future` hears how that ends."""
        try:
            self._ranks.flushes.together(partial(self._write, staged), frozenset, partial(self._commit, staged))
        except BaseException as error:
            if self._ranks.is_first:
                publish.abandon(staged.path)
            failed = self._failed(staged, error) if isinstance(error, Exception) else error
            future.set_exception(failed)
            if failed is error:  # an interrupt is its caller's, and not a failure of the save
                raise
            raise failed from error
        future.set_result(None)

    def _failed(self, staged: _Staged, error: Exception) -> Exception:
        what = f"saving step {staged.step} in {self.folder}"
        if isinstance(error, RanksLostError):
            return RanksLostError(f"{what} was cut short, or not every rank heard that it is complete: {error}")
        is_half = isinstance(error, NotTakenBackError)
        outcome = "a resume may find it or the checkpoint before it" if is_half else "nothing was saved"
        return SaveError(f"{what} failed, {outcome}: {type(error).__name__}: {error}")

    def _write(self, staged: _Staged) -> _Files:
        """Write this rank's files; return the names and seals of those that `.metadata.json` vouches for."""
        name = ephemeral_folder.rank_file(self._ranks.rank)
        self._flights.deletion.wait()
        try:
            with self._writer.naming_take_over():
                publish.write(staged.path / name, staged.train_state)
                marker_seal = storage.write(
                    staged.shards, staged.path / SHARDS, self._ranks.writers, self._flights.shards
                )
        except RanksLostError:
            channel.disconnect(self._ranks.writers)
            raise
        seals = {name: Seal.of(staged.train_state)}
        if marker_seal is not None:
            seals[MARKER] = marker_seal
        return frozenset((name, seal.size_bytes, seal.xxh3) for name, seal in seals.items())

    def _commit(self, staged: _Staged, files: _Files) -> None:
        """On rank 0, when every rank has written: describe the checkpoint, and give it its name."""
        seals = {name: Seal(size_bytes, xxh3) for name, size_bytes, xxh3 in files}
        with self._writer.naming_take_over():
            publish.write(staged.path / METADATA, manifest.written(staged.metadata, seals))
            for directory in (staged.path / SHARDS, staged.path / TRAIN, staged.path):
                publish.sync(directory)
            with Deferral():
                publish.appear(staged.path, staged.target, staged.step, self._writer.check)
        with logged("clearing up after the save of step %d", staged.step):  # the save has succeeded
            _log.info("saved step %d in %s", staged.step, self.folder)
            ephemeral_folder.tidy(staged.path, staged.step)

    # -- resuming -------------------------------------------------------------

    def load(self, path: str | os.PathLike[str] | None = None) -> Resumed | None:
        """Resume in place from the highest complete step, or from the checkpoint that is named; None for a fresh start.

        A directory with a bare marker in it holds weights alone.  Waits for a
        save in flight.  Raises what `CheckpointManager.load` does, on every
        rank, and leaves everything as it was then.
        """
        with for_call(0, self._ranks.are_many) as deferral, weights.mode_to_load_in(self.model), collector.paused():
            self._flights.settle()
            source = self.calls.from_first(partial(self._find, path))
            if source is None:
                return None
            with ExitStack() as undo:
                copies, resumed = self.calls.together(partial(self._prepare, undo, deferral, source))
                undo.pop_all()
            weights.copy_all(copies)
        with suppress(Exception):
            _log.info("resumed step %s from %s", resumed.step, source.path)
        return resumed

    def _find(self, path: str | os.PathLike[str] | None) -> _Source | None:
        found = self._newest() if path is None else self._named(paths.located(path, "the path to load", paths.here()))
        if found is None:
            return None
        trust.warn_of_open_dirs(found)
        is_import = not (found / SHARDS).is_dir()
        return _Source(found, {} if is_import else _described(found), is_import)

    def _newest(self) -> Path | None:
        newest, torn = ephemeral_folder.newest(self.folder)
        if torn:
            lacking = some([f"{one.name} (no {ephemeral_folder.missing_files(one.path)[0]})" for one in torn])
            instead = "starting fresh" if newest is None else f"resuming from {newest.path}"
            _log.warning("%s holds torn checkpoints, %s; %s", self.folder, lacking, instead)
        return None if newest is None else newest.path

    def _named(self, path: Path) -> Path:
        needed = path / MARKER if (path / SHARDS).is_dir() else path / layout.MARKER
        if not needed.exists():
            raise FileNotFoundError(f"no checkpoint at {path}, which was named to load: {needed} does not exist")
        return path.resolve()

    def _prepare(self, undo: ExitStack, deferral: Deferral, source: _Source) -> tuple[list[Copy], Resumed]:
        """Read, and put in all that may fail, so that it can be undone; return the copies that are left to do."""
        live = weights.model_state(self.model)
        with _naming_the_odd_one(source, self._ranks.rank):
            saved = self._read(source, live)
            train_state = {} if source.is_import else self._train_state(source)
        model = weights.match_model(self.model, live, saved[weights.MODEL], source.path, source.is_import)
        optimizer = saved.get(weights.OPTIMIZER)
        if optimizer is not None:
            optimizer = optimizers.match_optimizer(self.model, self.optimizer, optimizer, source.path)
        deferral.defer_all()  # what comes now changes live objects
        loaded = Loaded(train_state, live, model, optimizer)
        copies, resumed = put_in(undo, loaded, self.model, self.optimizer, self.scheduler, self.dataloader)
        return copies, Resumed(*resumed, is_import=source.is_import)

    def _read(self, source: _Source, live: Mapping[str, Any]) -> dict[str, Any]:
        """Model and optimizer, read and verified; imported weights may come without the latter."""
        directory = source.path if source.is_import else source.path / SHARDS
        shards = storage.open_shards(directory, manifest.seals(source.metadata).get(MARKER))
        if weights.OPTIMIZER not in shards.parts:
            shards = replace(shards, renamed={_OPTIM: weights.OPTIMIZER})
        place = str(self._ranks.place)
        wanted = [part for part in weights.PARTS if part != weights.MODEL or not weights.is_empty(self.model)]
        missing = [part for part in wanted if part not in shards.parts]
        if missing == [weights.OPTIMIZER] and source.is_import:
            _log.warning("%s holds weights without optimizer state; the optimizer stays as it is", directory)
        elif missing:
            raise ValueError(
                f"{directory} has no {' and no '.join(missing)}; save both, under the keys model and {_OPTIM}"
            )
        parts = {*wanted, *((forms.FORMS, part) for part in wanted), (own_values.OWN, place)}
        is_wanted: Callable[[storage.Keys], bool] = lambda keys: keys[0] in parts or keys[:2] in parts  # noqa: E731
        saved = shards.read(is_wanted, weights.places(live))
        unpacked = forms.unpack(own_values.taken(saved, self._ranks.place, directory), directory)
        return {weights.MODEL: {}, **unpacked}

    def _train_state(self, source: _Source) -> Mapping[str, Any]:
        """Return this rank's train state, or rank 0's, with new random streams, where it has none of its own."""
        seals, rank = manifest.seals(source.metadata), self._ranks.rank
        for number in (rank, 0):
            name = ephemeral_folder.rank_file(number)
            blob = storage.read_train_state(source.path, seals.get(name), name)
            if blob is not None:
                break
            _log.warning("%s has no %s; this rank reads that of rank 0", source.path, name)
        else:
            raise FileNotFoundError(f"{source.path} has no {ephemeral_folder.rank_file(0)}; resume from another one")
        saved = storage.loads_dict(blob, source.path / name, name in seals)
        train_state = trainer_state.without_trainers(saved, source.path / name)
        _check_stepped(train_state, source.path / name)
        if self.scheduler is not None and "scheduler" not in train_state:
            _log.warning("%s has no state of a scheduler; this run's scheduler stays as it is", source.path / name)
        state.check_counters(train_state, source.path / name)
        ephemeral_folder.check_step(source.path, train_state["step"])
        state.check_streams(train_state, source.path / name)
        if number == rank or "rng" not in train_state:
            return train_state
        return {**train_state, "rng": state.streams_of_new_rank(train_state["rng"], rank)}


def _described(path: Path) -> dict[str, Any]:
    """Return what `.metadata.json` says; nothing, with a warning, if another manager wrote it and it can't be parsed.

    `DamagedError` if this manager wrote the checkpoint, as its marker shows.
    """
    try:
        return manifest.read(path / METADATA)
    except FileNotFoundError:
        return {}  # of a checkpoint that was named
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        if marker.is_ours(path / MARKER):
            raise DamagedError(
                f"{path / METADATA} is damaged: {error}; nothing was loaded, since the checksums are in that file; "
                "put the right file back, or resume from another checkpoint"
            ) from None
        _log.warning("%s can't be read, so no file is compared with its checksum: %s", path / METADATA, error)
        return {}


def _check_stepped(train_state: Mapping[str, Any], file: Path) -> None:
    """Raise `ValueError` if the train state has no step."""
    if "step" not in train_state:
        raise ValueError(
            f"{file} has neither step nor global_step, so nothing says where to go on; nothing was loaded; name "
            f"{file.parent.parent / SHARDS} to load its weights alone"
        )


@contextmanager
def _naming_the_odd_one(source: _Source, rank: int) -> Iterator[None]:
    """Name `.metadata.json` if it says another step, or vouches for none of the files beside it."""
    try:
        yield
    except DamagedError as error:
        seals = manifest.seals(source.metadata)
        names = {MARKER, ephemeral_folder.rank_file(0), ephemeral_folder.rank_file(rank)} & seals.keys()
        said, named = source.metadata.get("step"), ephemeral_folder.step_of(source.path)
        if seals and None not in (said, named) and said != named:
            reason = f"it says step {said}, and not all files beside it are of that step"
        elif not names or any(seals[name].fits(source.path / name) for name in names):
            raise
        else:
            reason = "the hashes in it match none of the files beside it"
        raise DamagedError(
            f"{source.path / METADATA} belongs to another save: {reason}; put the right file back, or resume from "
            "another checkpoint"
        ) from error


def _check_same(steps: frozenset[int]) -> None:
    if len(steps) > 1:
        raise ValueError(f"ranks save different steps at once, from {min(steps)} to {max(steps)}; nothing was saved")
