"""What a checkpoint says of itself, before any of its shards is read.

Invariants: `metadata.json` and the train state are of one save, or the file that
is not is named; a checkpoint of this manager is not read without the checksums that
were saved with it, unless only its shards are there, which are imported weights then;
and a directory with the name of a step holds that step.
"""

import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from forge_ref import layout, manifest, state, storage
from forge_ref.errors import DamagedError
from forge_ref.messages import log as _log


@dataclass(frozen=True)
class Source:
    """What rank 0 found to resume from, on its way to the other ranks."""

    path: Path
    metadata: Mapping[str, Any]
    train_state: bytes | None
    """Rank 0's, empty where each rank reads its own; None for imported weights."""
    has_shards: bool
    has_stages: bool


def read(path: Path) -> tuple[dict[str, Any], bytes | None]:
    """Return what `metadata.json` says, and the train state; None for one that imported weights do not have.

    `DamagedError` names the file that is not what was saved, or not of the same save as the other.
    """
    metadata = _metadata(path)
    markers = [f"{stage}/{layout.MARKER}" for stage in layout.stages(path)] or [layout.MARKER]
    with naming_odd_metadata(path / layout.METADATA, metadata, markers):
        return metadata, storage.read_train_state(path, manifest.seals(metadata).get(layout.TRAIN_STATE))


@contextmanager
def naming_odd_metadata(
    file: Path, metadata: Mapping[str, Any], names: Iterable[str], named: int | None = None
) -> Iterator[None]:
    """For what is found damaged in the block, name the metadata if that is of another save than the files beside it.

    `names` are files that it may vouch for, `named` is the step in the directory's name, if that counts.
    """
    try:
        yield
    except DamagedError as error:
        seals, said = manifest.seals(metadata), metadata.get("step")
        vouched_for = [seals[name].fits(file.parent / name) for name in names if name in seals]
        if seals and None not in (said, named) and said != named:
            reason = f"it says step {said}, and not all files beside it are of that step"
        elif any(vouched_for) or not vouched_for:
            raise
        else:
            reason = "the hashes in it match none of the files beside it"
        raise DamagedError(
            f"{file} belongs to another save: {reason}; put the right file back, or resume from another checkpoint"
        ) from error


def _metadata(path: Path) -> dict[str, Any]:
    """Return what `metadata.json` says; see `said`.  Nothing for imported weights: shards alone."""
    file = path / layout.METADATA
    if not os.path.lexists(file) and not (path / layout.TRAIN_STATE).exists():
        return {}
    return said(file, partial(layout.is_ours, path), "neither freeze lists nor checksums of files are")


def said(file: Path, is_ours: Callable[[], bool], uncompared: str) -> dict[str, Any]:
    """Return what a file of metadata says; nothing, with a warning, if another manager's is missing or can't be parsed.

    `DamagedError` if this manager wrote the checkpoint and the file is missing
    or not what was written, parsed or not.  `PermissionError` for one that is
    not a regular file.
    """
    try:
        return manifest.read_sealed(file, is_ours)
    except FileNotFoundError:
        _log.warning("%s is missing, so %s compared", file, uncompared)
        return {}
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        if is_ours():
            raise DamagedError(
                f"{file} is damaged: {error}; nothing was loaded, since {uncompared} compared without that file; "
                "put the right file back, or resume from another checkpoint"
            ) from None
        _log.warning("%s can't be read, so %s compared: %s", file, uncompared, error)
        return {}


def saved_step(path: Path) -> int:
    """Return the step that a load of this checkpoint returns; its errors are those that the load would raise."""
    metadata, blob = read(path)
    if blob is None:  # a load without a train state returns 0, whatever the metadata says
        return 0
    recorded: Mapping[str, Any] = metadata
    if layout.TRAIN_STATE not in manifest.seals(metadata):  # with a seal both are of one save and have the same step
        recorded = storage.loads_dict(blob, path / layout.TRAIN_STATE)
        state.check_counters(recorded, path / layout.TRAIN_STATE)
    check_step(path, recorded)
    return operator.index(recorded.get("step", 0))


def check_step(
    path: Path,
    train_state: Mapping[str, Any],
    step_of: Callable[[str], int | None] = layout.step_of,
    step_name: Callable[[int], str] = layout.step_name,
) -> None:
    """`ValueError` if the directory has the name of another step than the one that was saved in it."""
    named, saved = step_of(path.name), train_state.get("step")
    if named is not None and saved is not None and named != saved:
        raise ValueError(
            f"{path} holds a checkpoint of step {saved}, so it is a copy, or was renamed; nothing was loaded; "
            f"give it the name {step_name(saved)}, or one that is not a step's, or load another checkpoint"
        )
