"""What leaves the folder right after a commit.

Invariants: nothing leaves before the checkpoint that replaces it is committed;
the target of `latest`, milestones and steps above the committed one never do;
and what leaves is hidden by one rename before any file of it goes, so a
deletion that dies half-way never looks like a checkpoint.

A deletion that fails costs nothing but disk: it is logged, and since it starts
from what stands in the folder, the next commit tries again.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from forge_ref import layout
from forge_ref.layout import StepDir

_log = logging.getLogger("forge_ref")


def retire(folder: Path, committed: int, keep_last_n: int, is_milestone: Callable[[int], bool]) -> None:
    """Delete what retention does not spare; `is_milestone` judges checkpoints that do not say it themselves.

    For use right after `latest` was pointed at the step `committed`, which is
    the newest that counts and so among those that stay, whatever the limit.
    """
    with _soft(folder):
        for found in _leaving(folder, committed, keep_last_n, is_milestone):
            with _soft(found.path):
                shutil.rmtree(_hide(folder, found))


@contextmanager
def _soft(path: Path) -> Iterator[None]:
    """Log what stands in the way of clearing up; it has no bearing on the save (retention.failure-is-soft)."""
    try:
        yield
    except OSError as error:
        _log.warning("could not clear up %s: %s; tried again after the next commit", path, error)


def _leaving(folder: Path, committed: int, keep_last_n: int, is_milestone: Callable[[int], bool]) -> list[StepDir]:
    """The newest `keep_last_n` ordinary complete checkpoints stay; torn debris neither counts nor stays."""
    if keep_last_n <= 0:
        return []
    due = [found for found in layout.step_dirs(folder) if found.step <= committed]
    complete = [found for found in due if found.is_complete]
    milestones = {found for found in complete if _was_milestone(found, is_milestone)}
    ordinary = [found for found in complete if found not in milestones]
    spared = {*milestones, *ordinary[-keep_last_n:]}
    return [found for found in due if found not in spared]


def _was_milestone(found: StepDir, is_milestone: Callable[[int], bool]) -> bool:
    """As recorded when it was saved (retention.class-is-remembered); other managers do not record it."""
    try:
        recorded = layout.read_metadata(found.path).get("milestone")
    except (OSError, ValueError):
        recorded = None
    return recorded if isinstance(recorded, bool) else is_milestone(found.step)


def _hide(folder: Path, found: StepDir) -> Path:
    for name in layout.hidden_names(found.step, "retired"):
        if not os.path.lexists(folder / name):
            os.rename(found.path, folder / name)
            return folder / name
    raise AssertionError("hidden names never run out")


def sweep(folder: Path) -> None:
    """Clear up after runs that died: what was never published or is half deleted goes, what was moved aside returns.

    Only for use right after a commit, when nothing of this run is in flight.
    """
    with _soft(folder):
        for hidden in layout.hidden_dirs(folder):
            target = folder / layout.step_name(hidden.step)
            with _soft(hidden.path):
                if hidden.role == "replaced" and not os.path.lexists(target):
                    os.rename(hidden.path, target)
                else:
                    shutil.rmtree(hidden.path)
