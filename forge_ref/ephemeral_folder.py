"""What hooks leave in a folder: the second design's names, which other tools know as well.

    stepN/model_and_optim/     the shards, and DCP's marker
    stepN/train/rankR.pt       the train state of rank R
    stepN/.metadata.json       whether it is ephemeral; without this file there is no checkpoint

What is not whole has the hidden names of `layout`, and never these.  Other
writers assemble under the step's own name, so completeness is always looked
at.  There is no pointer: the highest complete step is the newest.

Invariant: `.metadata.json` goes before anything else of a checkpoint does, and
its removal is on storage by then.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from forge_ref import layout, manifest, marker, publish
from forge_ref.errors import DamagedError, without_way_out
from forge_ref.layout import StepDir
from forge_ref.messages import log as _log
from forge_ref.messages import some

SHARDS, TRAIN, METADATA = "model_and_optim", "train", ".metadata.json"
MARKER = f"{SHARDS}/{layout.MARKER}"
REQUIRED = (f"{TRAIN}/rank0.pt", MARKER, METADATA)
VERSION = "2.0"
"""Of the layout, as other tools read it."""
PERMANENT, EPHEMERAL, UNREADABLE = "permanent", "ephemeral", "unreadable"

_STEP = re.compile(r"step(0|[1-9][0-9]*)")
_OWN_NAMES = {
    "": re.compile(rf"{re.escape(METADATA)}|tmp[a-z0-9_]{{8}}"),
    SHARDS: re.compile(rf"{re.escape(layout.MARKER)}|.*\.(distcp|tmp)"),
    TRAIN: re.compile(r"rank(0|[1-9][0-9]*)\.pt"),
}
"""The files that writers of this layout put into each directory of a checkpoint, temporary ones included."""
_OF_OTHERS = re.compile(
    r"latest|step_\d+|(checkpoint|global_step|epoch|iter)[-_=]?\d+.*|.*\.(ckpt|pt|pth|safetensors)", re.IGNORECASE
)


def step_name(step: int) -> str:
    """The name of a step's directory."""
    return f"step{step}"


def step_of(name: str) -> int | None:
    """The step that a name stands for; None for all other names."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def rank_file(rank: int) -> str:
    """The file of a rank's train state, in a checkpoint."""
    return f"{TRAIN}/rank{rank}.pt"


def missing_files(path: Path) -> list[str]:
    """The files without which the directory is no checkpoint; empty ones, as a loss of power leaves, included."""
    return [name for name in REQUIRED if not layout.has_file(path / name)]


def is_complete(path: Path) -> bool:
    """Whether a resume can use the directory."""
    return layout.is_real_dir(path) and not missing_files(path)


@dataclass(frozen=True)
class Contents:
    """What one listing of a folder has found; directories in numeric order of their steps."""

    complete: list[StepDir] = field(default_factory=list)
    """Those that a resume can use."""
    debris: list[StepDir] = field(default_factory=list)
    """What the death of a save or of a removal has left under the name of a step."""
    pruned: list[StepDir] = field(default_factory=list)
    """Torn ones with a `.metadata.json`, which a save writes last and a removal takes first: no death left them."""
    foreign: list[StepDir] = field(default_factory=list)
    """Torn ones that hold what no writer of this layout puts there, except for imported weights."""
    others: list[str] = field(default_factory=list)
    """Names that look like checkpoints of another layout."""


def foreign_names(path: Path) -> list[str]:
    """What is in the directory of a step that no writer of this layout puts there."""
    return sorted(
        str(Path(part, entry.name))
        for part, own in _OWN_NAMES.items()
        for entry in layout.entries(path / part)
        if not (entry.name in _OWN_NAMES and not part and entry.is_dir(follow_symlinks=False))
        and not (own.fullmatch(entry.name) and entry.is_file(follow_symlinks=False))
    )


def _is_of_this_layout(path: Path) -> bool:
    """Whether a save may replace the directory: it is empty, or has a name of this layout in it."""
    names = {entry.name for entry in layout.entries(path)}
    return not names or not names.isdisjoint({SHARDS, TRAIN, METADATA})


def contents(folder: Path) -> Contents:
    """Look into the folder: list it once, however many directories there are, and look at each of them once.

    Among the complete ones is one that a save was replacing when it died, where the system can't exchange names.
    """
    standing, others = _standing(folder)
    found = Contents(others=sorted(others))
    for one in standing:
        if not missing_files(one.path):
            found.complete.append(one)
        elif os.path.lexists(one.path / METADATA):
            found.pruned.append(one)
        elif not foreign_names(one.path):
            found.debris.append(one)
        elif not (one.path / layout.MARKER).exists():
            found.foreign.append(one)
    return found


def newest(folder: Path) -> tuple[StepDir | None, list[StepDir]]:
    """Return the highest complete step, and the torn ones above it; none below it is looked at."""
    torn = list[StepDir]()
    for one in reversed(_standing(folder)[0]):
        if not missing_files(one.path):
            return one, torn[::-1]
        torn.append(one)
    return None, torn[::-1]


def _standing(folder: Path) -> tuple[list[StepDir], list[str]]:
    """Return the directories of steps in numeric order, and names that look like checkpoints of another layout."""
    found, aside, others = dict[int, str](), dict[int, str](), list[str]()
    for entry in layout.entries(folder):
        name, is_dir = entry.name, entry.is_dir(follow_symlinks=False)
        if is_dir and (step := step_of(name)) is not None:
            found[step] = name
        elif is_dir and (hidden := layout.hidden_dir(folder, name)) and hidden.role == "replaced":
            aside[hidden.step] = name
        elif _OF_OTHERS.fullmatch(name):
            others.append(name)
    aside = {step: name for step, name in aside.items() if not missing_files(folder / name)}
    return [StepDir(step, folder, name) for step, name in sorted({**aside, **found}.items())], others


def recorded(path: Path) -> str | None:
    """The kind that was recorded at the save; None where nothing is.

    `UNREADABLE`, with a warning, where it can't be told.  It is read back and not
    guessed from the step: intervals change from run to run (ephemeral.class-recorded).
    """
    try:
        is_ephemeral = manifest.read_sealed(path / METADATA, partial(marker.is_ours, path / MARKER)).get("ephemeral")
    except (OSError, ValueError, DamagedError) as error:
        _log.warning("%s is kept, because its kind can't be read: %s; delete it by hand", path, without_way_out(error))
        return UNREADABLE
    return None if not isinstance(is_ephemeral, bool) else EPHEMERAL if is_ephemeral else PERMANENT


def check_name_free(folder: Path, step: int) -> None:
    """`FileExistsError` if what has the name that a save of `step` needs is not a directory of this layout."""
    target = folder / step_name(step)
    if layout.is_real_dir(target) and not _is_of_this_layout(target):
        raise FileExistsError(
            f"{target} holds {some(foreign_names(target))} of another tool, so step {step} can't be saved there; "
            "move it away"
        )
    layout.check_no_file(target, step)


def tidy(staged: Path, step: int) -> None:
    """Remove what the save that has just been published there has replaced."""
    publish.abandon(staged)
    for path in _hidden(staged.parent, step, "replaced"):
        publish.discard(path)


def remove(path: Path) -> None:
    """Remove a checkpoint, or go on with a removal that failed; a death leaves nothing that looks complete.

    `OSError` if it fails; it can be tried again.
    """
    step = step_of(path.name)
    assert step is not None, f"{path} is not the directory of a step"
    if layout.is_real_dir(path):
        with suppress(FileNotFoundError):
            os.unlink(path / METADATA)
        publish.sync(path)
        publish.move_away(path, step)
    for hidden in _hidden(path.parent, step, "retired"):
        shutil.rmtree(hidden)


def _hidden(folder: Path, step: int, role: str) -> Iterator[Path]:
    """Directories of this role that belong to no save in flight."""
    for one in layout.hidden_dirs(folder):
        if (one.step, one.role, one.token) == (step, role, None):
            yield one.path
