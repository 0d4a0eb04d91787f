"""The names in a checkpoint folder, and which checkpoints are complete; nothing here changes the folder.

Invariant: a directory named `step_N` is whole from the instant it appears to
the instant it disappears.  All that is not whole has a hidden name:

    step_N/             a checkpoint: shards, `.metadata`, `train_state.pt`, `metadata.json`
    step_N/ppI/         the shards and `.metadata` of pipeline stage I, where there are stages
    latest              a relative symlink to the newest committed one
    .step_N.T.partial   being staged, or left by a run that died staging it
    .step_N.T.retired   the trash of the save of step N: what it deletes is moved there first
    .step_N.retired     taken from a run that died, or was taken over, to be deleted
    .step_N.replaced    whole: moved aside for a re-save, where names can't be exchanged
    .latest.T.partial   what `latest` will be
    .writer             who saves here, and the lock on that; `.writer.T.partial` is to take its place

T is 16 hexadecimal digits that set one manager's names apart from all others'.

Other managers leave torn `step_N` in the same layout, so completeness is
always looked at, never assumed.  Every other name belongs to somebody else.
"""

import errno
import itertools
import os
import re
import stat
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from forge_ref import manifest, marker
from forge_ref.errors import DamagedError

MARKER = ".metadata"
TRAIN_STATE = "train_state.pt"
METADATA = "metadata.json"
LATEST = "latest"
WRITER = ".writer"

_STEP = re.compile(r"step_(0|[1-9][0-9]*)")
_HIDDEN = re.compile(r"\.step_(0|[1-9][0-9]*)(?:\.([0-9a-f]{16}))?\.(partial|retired|replaced)(?:\.[1-9][0-9]*)?")
_LOOSE = re.compile(r"\.(?:latest|writer)(?:\.[0-9a-f]{16})?\.partial")
_STAGE = re.compile(r"pp(0|[1-9][0-9]*)")


@dataclass(frozen=True, order=True)
class StepDir:
    """A directory that holds, or should hold, the checkpoint of a step; most of many are never looked at."""

    step: int
    folder: Path
    name: str

    @cached_property
    def path(self) -> Path:
        """Where it is."""
        return self.folder / self.name

    @cached_property
    def missing(self) -> list[str]:
        """What the directory lacks to be complete (commit.whole); it is looked at once."""
        return missing_files(self.path)

    @property
    def is_complete(self) -> bool:
        """Whether a resume can use it."""
        return not self.missing


@dataclass(frozen=True)
class Hidden:
    """A directory of ours under a hidden name; `role` and the manager's `token`, if there is one, are parts of it."""

    step: int
    role: str
    path: Path
    token: str | None = None


def step_name(step: int) -> str:
    """Return the name of a step's directory."""
    return f"step_{step}"


def step_of(name: str) -> int | None:
    """Return the step that a name stands for; None for all other names (layout.only-step-names)."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def new_token() -> str:
    """Return random digits that no other manager has; they are not drawn from a random stream of the run."""
    return os.urandom(8).hex()


def staged_path(folder: Path, step: int, token: str) -> Path:
    """Return where a manager writes the checkpoint of a step; all its ranks can compute it."""
    return folder / f".{step_name(step)}.{token}.partial"


def trash_path(staged: Path) -> Path:
    """Return the trash directory of the save that is staged there: what it deletes is moved there first."""
    return staged.with_suffix(".retired")


def loose_path(folder: Path, name: str, token: str) -> Path:
    """Return the name of a new link or file, which is then renamed to `name`."""
    return folder / f".{name.lstrip('.')}.{token}.partial"


def pointer_path(staged: Path) -> Path:
    """Return the name of the new `latest` of the save that is staged there."""
    return loose_path(staged.parent, LATEST, staged.with_suffix("").suffix.removeprefix("."))


def stage_name(stage: int) -> str:
    """Return the name of a pipeline stage's directory in a checkpoint."""
    return f"pp{stage}"


def hidden_names(step: int, role: str) -> Iterator[str]:
    """Yield names for a hidden directory, of which the first free one is taken: dead runs may have left some."""
    first = f".{step_name(step)}.{role}"
    yield first
    yield from (f"{first}.{n}" for n in itertools.count(1))


def step_dirs(folder: Path, but: Container[int] = ()) -> list[StepDir]:
    """Return all step directories in numeric order, complete or torn, but no symlinks; `but` are steps to leave out."""
    steps = (step for name in directories(folder) if (step := step_of(name)) is not None and step not in but)
    return [StepDir(step, folder, step_name(step)) for step in sorted(steps)]


def hidden_dirs(folder: Path) -> list[Hidden]:
    """Return all directories with hidden names of this package."""
    return [hidden for name in directories(folder) if (hidden := hidden_dir(folder, name)) is not None]


def hidden_dir(folder: Path, name: str) -> Hidden | None:
    """Return what a directory of this name is; None if it is not a hidden name of this package."""
    match = _HIDDEN.fullmatch(name)
    return None if match is None else Hidden(int(match[1]), match[3], folder / name, match[2])


def loose_files(folder: Path) -> list[Path]:
    """Return the new links and files that were not renamed yet."""
    return [folder / name for name in os.listdir(folder) if _LOOSE.fullmatch(name)]


def directories(folder: Path) -> list[str]:
    """Return the names of all directories, but no symlinks; the listing says which they are, so none is looked at."""
    return [entry.name for entry in entries(folder) if entry.is_dir(follow_symlinks=False)]


def entries(folder: Path) -> list["os.DirEntry[str]"]:
    """Return what is in a folder; nothing if there is no folder."""
    try:
        with os.scandir(folder) as found:
            return list(found)
    except (FileNotFoundError, NotADirectoryError):
        return []


def stages(path: Path) -> list[str]:
    """Return the pipeline stages that a checkpoint has, or should have, in their order (layout.stage-dirs).

    A stage whose directory is missing is among them if a later stage exists, or if
    the metadata records its marker.
    """
    standing = [name for name in directories(path) if _STAGE.fullmatch(name)]
    if not standing:
        return []
    numbers = {int(match[1]) for name in (*standing, *recorded_stages(path)) if (match := _STAGE.fullmatch(name))}
    gap = next(number for number in itertools.count() if number not in numbers)
    return [stage_name(number) for number in sorted(numbers | {gap}) if number <= max(numbers)]


def recorded_stages(path: Path) -> list[str]:
    """Return the stages whose markers the metadata records; other managers record none."""
    try:
        recorded = manifest.seals(read_metadata(path))
    except (OSError, ValueError, DamagedError):
        return []
    return [stage for name in recorded if _STAGE.fullmatch(stage := name.removesuffix(f"/{MARKER}"))]


def missing_files(path: Path) -> list[str]:
    """Return the files that the directory lacks, and is torn without.

    A marker or train state of no bytes counts as missing: power loss leaves
    such files behind where a manager did not sync them.
    """
    markers = [f"{stage}/{MARKER}" for stage in stages(path)] or [MARKER]
    lacking = [name for name in (*markers, TRAIN_STATE) if not has_file(path / name)]
    return lacking if has_file(path / METADATA, at_least=0) else [*lacking, METADATA]


def has_file(path: Path, at_least: int = 1) -> bool:
    """Return whether it is a regular file of so many bytes; a link in the place of a stage has none."""
    if _STAGE.fullmatch(path.parent.name) and not is_real_dir(path.parent):
        return False
    found = _look(os.stat, path)
    return found is not None and stat.S_ISREG(found.st_mode) and found.st_size >= at_least


def is_real_dir(path: Path) -> bool:
    """Return whether the path is a directory itself, not a symlink to one."""
    found = _look(os.lstat, path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def _look(look: Callable[[Path], os.stat_result], path: Path) -> os.stat_result | None:
    """Return what stands there; None if nothing does.  A look that fails otherwise says neither, and is an error."""
    try:
        return look(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def check_names_free(folder: Path, step: int) -> None:
    """`FileExistsError` if somebody else's file or symlink holds a name that a save of `step` needs.

    Asked before anything is written (layout.foreign-latest).
    """
    latest = folder / LATEST
    if os.path.lexists(latest) and not latest.is_symlink():
        raise FileExistsError(f"{latest} is not a symlink, so it was not made by a checkpoint manager; move it away")
    check_no_file(folder / step_name(step), step)


def check_no_file(target: Path, step: int) -> None:
    """`FileExistsError` if what has the name of the step's directory is none."""
    if os.path.lexists(target) and not is_real_dir(target):
        raise FileExistsError(f"{target} is not a directory, so step {step} can't be saved there; move it away")


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the content of `metadata.json`; the errors are those of `manifest.read_sealed`."""
    return manifest.read_sealed(path / METADATA, partial(is_ours, path))


def is_ours(path: Path) -> bool:
    """Return whether a marker of the checkpoint says that this manager wrote it, whatever its metadata is now."""
    standing = (path / name for name in directories(path) if _STAGE.fullmatch(name))
    return any(marker.is_ours(directory / MARKER) for directory in (path, *standing))
