"""Deletes what a commit has made superfluous: hides it at once, by one rename each, and deletes it in the background.

Invariants: nothing is deleted before the checkpoint that replaces it is
committed; the target of `latest`, milestones, steps above the committed one and
what may be a milestone are never deleted; and a checkpoint is moved into the
save's trash directory before any file of it is deleted.  So a deletion that dies
half-way never looks like a checkpoint, and one that was decided before another
process took the folder over fails, because that process has moved the trash.
At most one deletion is under way: the next save writes nothing before it has
ended, so the folder never takes more room than if everything were deleted at once.

Nothing that fails here fails the save, which is committed: a deletion, the
metadata of an old checkpoint, or a strategy that raises.  It is logged, and the
next commit tries again.
"""

import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from forge_ref import layout, publish
from forge_ref.background import Background
from forge_ref.errors import without_way_out
from forge_ref.interrupts import Deferral
from forge_ref.layout import StepDir
from forge_ref.messages import log as _log

_milestones: dict[Path, set[int]] = defaultdict(set)
"""By folder, steps that were seen to be recorded as milestones: they are never deleted, and not looked at again."""


class Deletion:
    """The deletions of one manager, of which at most one is under way."""

    def __init__(self) -> None:
        self._running: Background[None] | None = None
        self._trash: Path | None = None

    def begin(self, doomed: Sequence[Path], trash: Path | None, keeping: object) -> None:
        """Delete these, and the trash directory that they may be in, when the deletion before has ended.

        Without any, the empty trash directory goes at once.  Until a deletion has ended `keeping` is not collected: who
        holds the folder, and so keeps others from deleting there.
        """
        self.wait()
        if not doomed:
            delete((), trash)
            return
        with Deferral():  # a deletion that has begun has to be known
            self._trash = trash
            self._running = Background("deletion", partial(delete, doomed, trash, keeping))

    def wait(self, trash: Path | None = None) -> None:
        """Return when nothing is being deleted, or nothing in this trash directory, which a step saved again needs."""
        if (running := self._running) is not None and trash in (None, self._trash):
            running.await_end()


def delete(doomed: Iterable[Path], trash: Path | None, _keeping: object = None) -> None:
    """Delete hidden directories, then the trash directory; what is kept lives until that is done."""
    for hidden in doomed:
        with _soft(hidden):
            shutil.rmtree(hidden)
    if trash is not None:
        with _soft(trash):
            trash.rmdir()


def retire(trash: Path, committed: int, keep_last_n: int, is_milestone: Callable[[int], bool]) -> list[Path]:
    """Hide what retention does not keep; return it, to be deleted.

    `is_milestone` judges checkpoints whose metadata does not record it.
    For use right after `latest` was pointed at the step `committed`, which is
    the newest that counts, so it is kept whatever the limit.
    """
    folder, hidden = trash.parent, list[Path]()
    with _soft(folder):
        for found in _leaving(folder, committed, keep_last_n, is_milestone):
            with _soft(found.path):
                _warn_of_a_lost_class(found)
                hidden.append(_hide(trash, found.path))
    return hidden


@contextmanager
def _soft(path: Path) -> Iterator[None]:
    """Log an error of clearing up and raise nothing (retention.failure-is-soft)."""
    try:
        yield
    except Exception as error:
        is_ours = not isinstance(error, OSError)  # a mistake in this package, which its traceback shows
        level = logging.ERROR if is_ours else logging.WARNING
        _log.log(level, "could not clear up %s: %s; tried again after the next commit", path, error, exc_info=is_ours)


def _leaving(folder: Path, committed: int, keep_last_n: int, is_milestone: Callable[[int], bool]) -> list[StepDir]:
    """Return what is to be deleted: all but the newest `keep_last_n` complete checkpoints that are not milestones.

    Torn ones are deleted and do not count; what may be a milestone is kept and does not count.  The committed
    one stays, whatever it looks like: `latest` names it.
    """
    if keep_last_n <= 0:
        return []
    known = _milestones[folder]
    known.discard(committed)  # it may have been another one when it was looked at
    due = [found for found in layout.step_dirs(folder, known) if found.step <= committed]
    due = [found for found in due if _can_be_seen(found)]
    complete = [found for found in due if not _lacks_a_file(found)]
    milestones = {found for found in complete if _may_be_milestone(found, is_milestone)}
    ordinary = [found for found in complete if found not in milestones]
    spared = {*milestones, *ordinary[-keep_last_n:]}
    return [found for found in due if found not in spared and found.step != committed]


def _can_be_seen(found: StepDir) -> bool:
    """Return whether its files can be looked at; one of which nothing is known is neither deleted nor counted."""
    with _soft(found.path):
        _ = found.missing
        return True
    return False


def _lacks_a_file(found: StepDir) -> bool:
    """Return whether it is torn; one whose metadata is there and can't be read is not."""
    return bool(set(found.missing) - ({layout.METADATA} if os.path.lexists(found.path / layout.METADATA) else set()))


def _warn_of_a_lost_class(found: StepDir) -> None:
    """Warn if a checkpoint is deleted that this manager saved whole, and that has lost only its metadata."""
    if found.missing == [layout.METADATA] and layout.is_ours(found.path):
        _log.warning(
            "%s is torn and is deleted: its %s, which says whether it is a milestone, was there when it was saved, "
            "and is missing",
            found.path,
            layout.METADATA,
        )


def _may_be_milestone(found: StepDir, is_milestone: Callable[[int], bool]) -> bool:
    """Return whether it was saved as a milestone (retention.class-is-remembered); other managers do not record it.

    True, with a warning, if its metadata can't be read or is not what was written (retention.unclassified).
    """
    try:
        recorded = layout.read_metadata(found.path).get("milestone")
        if recorded is True:
            _milestones[found.folder].add(found.step)
        return recorded if isinstance(recorded, bool) else is_milestone(found.step)
    except Exception as error:  # a strategy is code of the user's, and metadata may be anything
        _log.warning(
            "%s is kept whatever the limit, because it may be a milestone, %s: %s; put the right %s back, or delete "
            "the checkpoint by hand",
            found.path,
            type(error).__name__,
            without_way_out(error),
            layout.METADATA,
        )
        return True


def _hide(trash: Path, path: Path) -> Path:
    os.rename(path, trash / path.name)
    return trash / path.name


def sweep(trash: Path) -> list[Path]:
    """Hide what runs that died staged; return it and what they deleted in part, to be deleted.

    What they had moved aside is moved back.  Only for use right after a commit,
    when nothing of this run is in flight but the trash directory.
    """
    folder, swept = trash.parent, list[Path]()
    with _soft(folder):
        for hidden in layout.hidden_dirs(folder):
            target = folder / layout.step_name(hidden.step)
            with _soft(hidden.path):
                if hidden.role == "replaced" and not os.path.lexists(target):
                    os.rename(hidden.path, target)
                elif hidden.path != trash:
                    swept.append(hidden.path if hidden.role == "retired" else _hide(trash, hidden.path))
    return swept


def move_leftovers_away(folder: Path) -> list[Path]:
    """Rename whatever a save of a dead run, or of one that was taken over, could still rename.

    For use by a process that has come to hold the folder, before it makes names
    of its own.  Return what was being staged or deleted, to be deleted before
    anything is written: a run that dies again and again before it commits would
    fill the disk.
    """
    retired = list[Path]()
    with _soft(folder):
        for loose in layout.loose_files(folder):
            loose.unlink(missing_ok=True)
        armed = False
        for hidden in layout.hidden_dirs(folder):
            if hidden.role == "partial" or hidden.token:
                armed = True
                with _soft(hidden.path):
                    retired.append(publish.move_away(hidden.path, hidden.step))
            elif hidden.role == "retired":
                retired.append(hidden.path)
        if armed:
            publish.sync(folder)
    return retired
