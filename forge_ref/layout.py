"""What a checkpoint folder looks like; nothing here changes it.

Invariant: a directory named `step_N` is whole from the instant it appears to
the instant it disappears.  All that is not whole has a hidden name:

    step_N/             a checkpoint: shards, `.metadata`, `train_state.pt`, `metadata.json`
    step_N/ppI/         the shards and `.metadata` of pipeline stage I, where there are stages
    latest              a relative symlink to the newest committed one
    .step_N.partial     being staged, or left by a run that died staging it
    .step_N.retired     being deleted
    .step_N.replaced    whole: moved aside for a re-save, where names can't be exchanged

Other managers leave torn `step_N` in the same layout, so completeness is
always looked at, never assumed.  Every other name belongs to somebody else.
"""

import itertools
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARKER = ".metadata"
TRAIN_STATE = "train_state.pt"
METADATA = "metadata.json"
LATEST = "latest"
MARKER_CHECKSUM = "marker_crc32"

_STEP = re.compile(r"step_(0|[1-9][0-9]*)")
_HIDDEN = re.compile(r"\.step_(0|[1-9][0-9]*)\.(partial|retired|replaced)(?:\.[1-9][0-9]*)?")
_STAGE = re.compile(r"pp(0|[1-9][0-9]*)")


@dataclass(frozen=True, order=True)
class StepDir:
    """A directory that holds, or should hold, the checkpoint of a step."""

    step: int
    path: Path

    @property
    def missing(self) -> list[str]:
        """What the directory lacks to be complete (commit.whole)."""
        return missing_files(self.path)

    @property
    def is_complete(self) -> bool:
        """Whether a resume can use it."""
        return not self.missing


@dataclass(frozen=True)
class Hidden:
    """A directory of ours under a hidden name; `role` is the middle of that name."""

    step: int
    role: str
    path: Path


def step_name(step: int) -> str:
    """The name of a step's directory."""
    return f"step_{step}"


def step_of(name: str) -> int | None:
    """The step that a name stands for; None for everybody else's names (layout.only-step-names)."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def staged_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is put together; every rank knows it without being told."""
    return folder / f".{step_name(step)}.partial"


def stage_name(stage: int) -> str:
    """The name of a pipeline stage's directory in a checkpoint."""
    return f"pp{stage}"


def hidden_names(step: int, role: str) -> Iterator[str]:
    """Names for a hidden directory: the first that is free will do, since a dead run's may still stand."""
    first = f".{step_name(step)}.{role}"
    yield first
    yield from (f"{first}.{n}" for n in itertools.count(1))


def step_dirs(folder: Path) -> list[StepDir]:
    """All step directories in numeric order, complete or torn; real directories only."""
    return sorted(StepDir(step, folder / name) for name in _directories(folder) if (step := step_of(name)) is not None)


def hidden_dirs(folder: Path) -> list[Hidden]:
    """All directories under our hidden names."""
    matches = ((name, _HIDDEN.fullmatch(name)) for name in _directories(folder))
    return [Hidden(int(match[1]), match[2], folder / name) for name, match in matches if match]


def _directories(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def stages(path: Path) -> list[str]:
    """The pipeline stages that a checkpoint has, or should have, in order of their rank (layout.stage-dirs).

    One whose directory is gone is among them if another tells of it: a later
    stage, or the record of their markers.
    """
    standing = [name for name in _directories(path) if _STAGE.fullmatch(name)]
    if not standing:
        return []
    numbers = {int(match[1]) for name in (*standing, *recorded_stages(path)) if (match := _STAGE.fullmatch(name))}
    gap = next(number for number in itertools.count() if number not in numbers)
    return [stage_name(number) for number in sorted(numbers | {gap}) if number <= max(numbers)]


def recorded_stages(path: Path) -> list[str]:
    """The stages that were saved, where the manager that saved them says so."""
    try:
        recorded = read_metadata(path).get(MARKER_CHECKSUM)
    except (OSError, ValueError):
        return []
    return list(recorded) if isinstance(recorded, dict) else []


def missing_files(path: Path) -> list[str]:
    """The files without which the directory is torn.

    A marker or train state of no bytes counts as missing: power loss leaves
    such files behind where a manager did not sync them.
    """
    markers = [f"{stage}/{MARKER}" for stage in stages(path)] or [MARKER]
    lacking = [name for name in (*markers, TRAIN_STATE) if not _has_file(path / name, at_least=1)]
    return lacking if _has_file(path / METADATA, at_least=0) else [*lacking, METADATA]


def _has_file(path: Path, at_least: int) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size >= at_least


def is_real_dir(path: Path) -> bool:
    """Whether the path is a directory itself, not a symlink to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def check_names_free(folder: Path, step: int) -> None:
    """`FileExistsError` if somebody else's file or symlink holds a name that a save of `step` needs.

    Asked before anything is written (layout.foreign-latest).
    """
    latest, target = folder / LATEST, folder / step_name(step)
    if os.path.lexists(latest) and not latest.is_symlink():
        raise FileExistsError(f"{latest} is no symlink, so it was not made by a checkpoint manager; move it away")
    if os.path.lexists(target) and not is_real_dir(target):
        raise FileExistsError(f"{target} is no directory, so step {step} can't be saved there; move it away")


def read_metadata(path: Path) -> dict[str, Any]:
    """What `metadata.json` says; `OSError` or `ValueError` if it can't be read."""
    content = json.loads((path / METADATA).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path / METADATA} holds no object but {type(content).__name__}")
    return content
