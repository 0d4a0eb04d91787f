"""Which checkpoint a resume lands on.

A path that somebody named is loaded or refused with an error; no other
checkpoint takes its place.  Without one, `latest` is a hint: it is followed when it names
a complete checkpoint of its folder, else the newest complete one is taken, with
a warning that names both.  Only torn ones, or none, is a fresh start.

Nothing here changes the folder.
"""

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from forge_ref import layout
from forge_ref.layout import StepDir
from forge_ref.messages import log as _log

_SHOWN = 20  # torn checkpoints that a warning names


@dataclass(frozen=True)
class _Hint:
    """The target of `latest`: a directory of the folder, or the reason why it can't be followed."""

    target: Path | None
    says: str


def resume_point(folder: Path, named: Path | None, needs_shards: bool, stages: int = 0) -> Path | None:
    """Return the directory to load, for a run of so many pipeline stages; None for a fresh start.

    Without shards to load, what `latest` names is taken even if it is torn
    (resume.no-fallback-without-dcp).  `ValueError` if the checkpoint was saved
    with another number of stages.
    """
    found = _by_itself(folder, needs_shards, stages) if named is None else _as_named(named, needs_shards)
    if found is not None and needs_shards:
        _check_stages(found, stages)
    return found


def _by_itself(folder: Path, needs_shards: bool, stages: int) -> Path | None:
    hint = _read_latest(folder)
    if hint.target is not None and (not needs_shards or not _missing(hint.target, stages)):
        return hint.target
    return _newest_complete(folder, hint, stages)


def _missing(path: Path, stages: int) -> list[str]:
    """Return the files that a checkpoint lacks; if it records no stages, it needs those of the run."""
    missing, found = layout.missing_files(path), layout.stages(path)
    if not found or layout.recorded_stages(path):
        return missing
    return missing + [f"{layout.stage_name(stage)}/{layout.MARKER}" for stage in range(len(found), stages)]


def _check_stages(path: Path, stages: int) -> None:
    found = layout.stages(path)
    is_import = not found and not (path / layout.TRAIN_STATE).exists()
    if len(found) != stages and not is_import:
        has = f"has the pipeline stages {', '.join(found)}" if found else "has no pipeline stages"
        raise ValueError(f"{path} {has}, and this run has {stages or 'none'}; resume it with as many as saved it")


def _as_named(path: Path, needs_shards: bool) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}, which was named to load; check the path, or name none")
    if not path.is_dir():
        raise NotADirectoryError(f"{path}, which was named to load, is a file; name a checkpoint's directory")
    path = path.resolve()
    needed = layout.MARKER if needs_shards else layout.TRAIN_STATE
    if (path / needed).exists() or layout.stages(path):
        return path
    inside = [found.name for found in layout.step_dirs(path)]
    if inside:
        raise FileNotFoundError(
            f"{path}, which was named to load, is a folder of checkpoints; "
            f"name one of them ({', '.join(inside[-5:])}), or set dir to it and name none"
        )
    raise FileNotFoundError(f"{path}, which was named to load, has no {needed}; it is torn or not a checkpoint")


def _read_latest(folder: Path) -> _Hint:
    link = folder / layout.LATEST
    try:
        target_name = os.readlink(link)
    except (FileNotFoundError, NotADirectoryError):
        return _Hint(None, f"{link} is missing")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return _Hint(None, f"{link} is not a symlink")
    target = folder / target_name
    is_ours = layout.step_of(target.name) is not None and target.parent.resolve() == folder.resolve()
    if is_ours and layout.is_real_dir(target):
        return _Hint(target, f"{link} names {target_name}")
    return _Hint(None, f"{link} names {target_name}, which is not a checkpoint in {folder}")


def _newest_complete(folder: Path, hint: _Hint, stages: int) -> Path | None:
    standing = layout.step_dirs(folder)
    found = sorted((*standing, *_moved_aside(folder)), key=lambda found: found.step, reverse=True)
    newest = next((one for one in found if not _missing(one.path, stages)), None)  # no older one is looked at
    if newest is not None:
        lacks = "" if hint.target is None else f", which is torn (no {', '.join(_missing(hint.target, stages))})"
        _log.warning("%s%s; resuming from the newest complete checkpoint %s", hint.says, lacks, newest.path)
        return newest.path
    if standing:
        torn = [f"{found.name} (no {', '.join(_missing(found.path, stages))})" for found in standing[-_SHOWN:]]
        more = [f"{len(standing) - _SHOWN} more"] if len(standing) > _SHOWN else []
        listed = ", ".join([*more, *torn])
        _log.warning("no complete checkpoint in %s, only torn ones: %s; starting fresh", folder, listed)
    return None


def _moved_aside(folder: Path) -> list[StepDir]:
    """Return checkpoints that a run was replacing when it died."""
    return [
        StepDir(hidden.step, folder, hidden.path.name)
        for hidden in layout.hidden_dirs(folder)
        if hidden.role == "replaced" and not os.path.lexists(folder / layout.step_name(hidden.step))
    ]
