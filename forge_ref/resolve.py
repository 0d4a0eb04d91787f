"""Which checkpoint a resume lands on.

A path that somebody named is taken as it is or refused aloud; there is no
second choice.  Without one, `latest` is a hint: it is followed when it names
a complete checkpoint of its folder, else the newest complete one is taken, with
a warning that names both.  Only torn ones, or none, is a fresh start.

Nothing here changes the folder.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from forge_ref import layout
from forge_ref.layout import StepDir

_log = logging.getLogger("forge_ref")


@dataclass(frozen=True)
class _Hint:
    """What `latest` says: a directory of the folder, or why it can't be followed."""

    target: Path | None
    says: str


def resume_point(folder: Path, named: str | None, needs_shards: bool) -> Path | None:
    """The directory to load; None for a fresh start.

    Without shards to load, what `latest` names is taken even if it is torn
    (resume.no-fallback-without-dcp).
    """
    if named is not None:
        return _as_named(Path(named), needs_shards)
    hint = _read_latest(folder)
    if hint.target is not None and (not needs_shards or not layout.missing_files(hint.target)):
        return hint.target
    return _newest_complete(folder, hint)


def _as_named(path: Path, needs_shards: bool) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}, which was named to load; check the path, or name none")
    if not path.is_dir():
        raise NotADirectoryError(f"{path}, which was named to load, is a file; name a checkpoint's directory")
    path = path.resolve()
    needed = layout.MARKER if needs_shards else layout.TRAIN_STATE
    if (path / needed).exists() or layout.stages(path):
        return path
    inside = [found.path.name for found in layout.step_dirs(path)]
    if inside:
        raise FileNotFoundError(
            f"{path}, which was named to load, is a folder of checkpoints; "
            f"name one of them ({', '.join(inside[-5:])}), or set dir to it and name none"
        )
    raise FileNotFoundError(f"{path}, which was named to load, has no {needed}; it is torn or no checkpoint")


def _read_latest(folder: Path) -> _Hint:
    link = folder / layout.LATEST
    try:
        said = os.readlink(link)
    except FileNotFoundError:
        return _Hint(None, f"{link} is missing")
    except OSError:
        return _Hint(None, f"{link} is no symlink")
    target = folder / said
    is_ours = layout.step_of(target.name) is not None and target.parent.resolve() == folder.resolve()
    if is_ours and layout.is_real_dir(target):
        return _Hint(target, f"{link} names {said}")
    return _Hint(None, f"{link} names {said}, which is no checkpoint in {folder}")


def _newest_complete(folder: Path, hint: _Hint) -> Path | None:
    standing = layout.step_dirs(folder)
    complete = [found for found in (*standing, *_moved_aside(folder)) if found.is_complete]
    if complete:
        newest = max(complete, key=lambda found: found.step)
        _log.warning("%s%s; resuming from the newest complete checkpoint %s", hint.says, _lacks(hint), newest.path)
        return newest.path
    if standing:
        torn = ", ".join(f"{found.path.name} (no {', '.join(found.missing)})" for found in standing)
        _log.warning("no complete checkpoint in %s, only torn ones: %s; starting fresh", folder, torn)
    return None


def _lacks(hint: _Hint) -> str:
    return "" if hint.target is None else f", which is torn (no {', '.join(layout.missing_files(hint.target))})"


def _moved_aside(folder: Path) -> list[StepDir]:
    """Checkpoints that a run was replacing when it died."""
    return [
        StepDir(hidden.step, hidden.path)
        for hidden in layout.hidden_dirs(folder)
        if hidden.role == "replaced" and not os.path.lexists(folder / layout.step_name(hidden.step))
    ]
