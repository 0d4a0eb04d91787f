"""What has to hold in every state of the model: one invariant for each clause that the model can express.

As a clause does, an invariant has a situation that has to arise somewhere in the search. An invariant whose situation
never arises fails.
"""

from collections.abc import Sequence

from forge_spec.model.machine import Invariant
from forge_spec.model.table import (
    ABSENT,
    FRESH,
    LOST,
    UNKNOWN,
    Directory,
    Flight,
    Folder,
    Job,
    Landed,
    Save,
    at,
    complete,
    generations,
    is_complete,
    leaving,
    resume_point,
    torn,
)

BEFORE_COMMIT = frozenset(Flight) - {Flight.COMMITTED, Flight.RETIRING, Flight.DONE}
LOOKING = frozenset({Job.DOWN, Job.RESUMING, Job.LOADING})


def _target_markers(folder: Folder, latest: int) -> list[int]:
    directory = at(folder, latest)
    return [part.marker for part in directory.parts] if directory else []


def _is_undescribed(directory: Directory | None) -> bool:
    """It has its markers, but not the files beside them, which have not been written."""
    if directory is None or not all(part.marker > 0 for part in directory.parts):
        return False
    return ABSENT in (directory.train_state, directory.metadata)


def _is_damaged(directory: Directory | None) -> bool:
    return directory is not None and LOST in (directory.train_state, *(part.marker for part in directory.parts))


def _has_one_generation(directory: Directory | None) -> bool:
    return not is_complete(directory) or len(generations(directory)) == 1


def _has_all_shards(directory: Directory | None) -> bool:
    return directory is None or not is_complete(directory) or all(min(part.shards) > 0 for part in directory.parts)


def _is_promised(folder: Folder, latest: int, acknowledged: Save | None, begun: tuple[Save, ...]) -> bool:
    return acknowledged == UNKNOWN or resume_point(folder, latest) in (acknowledged, *begun)


def _is_committed(
    job: Job,
    flight: Flight,
    saving: Save,
    folder: Folder,
    latest: int,
    acknowledged: Save | None,
    begun: tuple[Save, ...],
) -> bool:
    if flight is Flight.DONE and saving.step != latest:
        return False
    return job is not Job.TRAINING or _is_promised(folder, latest, acknowledged, begun)


def _lands(folder: Folder, latest: int, named: int, target: Save | None) -> bool:
    return target is None or bool(named) or target == (resume_point(folder, latest) or FRESH)


def _steps(landed: Sequence[Landed | None]) -> set[int]:
    return {part.step for part in landed if part}


def _is_above(folder: Folder, saving: Save | None) -> bool:
    return saving is not None and any(step > saving.step for step in complete(folder))


INVARIANTS: tuple[Invariant, ...] = (
    Invariant(
        "commit.monotone",
        "`latest` is not below a step that this run has pointed it at",
        lambda latest, peak: latest >= peak,
        lambda latest, peak, flight: flight is Flight.PUBLISHED and 0 < peak == latest,
    ),
    Invariant(
        "commit.all-stages",
        "the target of `latest` has the markers of all stages or of none",
        lambda folder, latest: ABSENT not in (markers := _target_markers(folder, latest)) or not any(markers),
        lambda staged, latest: bool(staged and latest) and len({bool(part.marker) for part in staged.parts}) == 2,
    ),
    Invariant(
        "commit.whole",
        "the target of `latest`, and the choice of a resume, has train state and metadata if it has its markers",
        lambda folder, latest, target: (
            not _is_undescribed(at(folder, latest)) and (target in (None, FRESH) or target.generation > 0)
        ),
        lambda job, folder: job is Job.LOADING and any(found and found.train_state == LOST for found in folder),
    ),
    Invariant(
        "commit.before-dispatch",
        "when a save has failed, the save before it is committed",
        lambda flight, folder, latest, begun: (
            flight is not Flight.FAILED or not begun or resume_point(folder, latest) == begun[-1]
        ),
        lambda job, flight, begun: job is Job.CALLING and flight is Flight.FAILED and bool(begun),
    ),
    Invariant(
        "commit.failed-save",
        "a synchronous save that fails leaves the resume point where it was",
        lambda flight, folder, latest, acknowledged, begun, is_async: (
            is_async or flight is not Flight.FAILED or _is_promised(folder, latest, acknowledged, begun)
        ),
        lambda job, flight, is_async: not is_async and job is Job.SAVING and flight is Flight.FAILED,
    ),
    Invariant(
        "commit.atomic-pointer",
        "while a step is saved again, the target of `latest` is there",
        lambda flight, saving, folder, latest, protected: (
            flight not in BEFORE_COMMIT
            or not saving
            or saving.step != latest
            or latest not in protected
            or at(folder, latest) is not None
        ),
        lambda flight, saving, latest: flight is Flight.PUBLISHED and bool(saving) and saving.step == latest,
    ),
    Invariant(
        "retention.after-commit",
        "until a save is committed, nothing is deleted",
        lambda flight, folder, protected: flight not in BEFORE_COMMIT or protected <= complete(folder),
        lambda flight, folder, keep: flight is Flight.PUBLISHED and len(complete(folder)) > keep,
    ),
    Invariant(
        "retention.latest",
        "the target of `latest` is complete once it has been committed",
        lambda folder, latest, protected: latest not in protected or is_complete(at(folder, latest)),
        lambda flight, latest, hidden: flight is Flight.RETIRING and bool(hidden) and bool(latest),
    ),
    Invariant(
        "commit.deferred",
        "the target of `latest` is complete, unless somebody removed a file of it",
        lambda folder, latest: not latest or is_complete(at(folder, latest)) or _is_damaged(at(folder, latest)),
        lambda flight, latest, is_async: is_async and flight is Flight.FLUSHING and bool(latest),
    ),
    Invariant(
        "retention.invalidate-first",
        "a directory that looks complete has all its shards",
        lambda folder: all(map(_has_all_shards, folder)),
        lambda flight, folder, hidden: flight is Flight.RETIRING and bool(hidden) and None in folder,
    ),
    Invariant(
        "commit.resave",
        "all files of a directory that looks complete are of one save",
        lambda folder: all(map(_has_one_generation, folder)),
        lambda flight, saving, folder: (
            flight is Flight.FLUSHING and saving is not None and at(folder, saving.step) is not None
        ),
    ),
    Invariant(
        "retention.future",
        "a commit below steps from before a rewind deletes nothing that is protected",
        lambda flight, saving, folder, protected: (
            flight in BEFORE_COMMIT or not _is_above(folder, saving) or protected <= complete(folder)
        ),
        lambda flight, saving, folder, keep: (
            flight is Flight.RETIRING and len([step for step in complete(folder) if step > saving.step]) >= keep
        ),
    ),
    Invariant(
        "retention.torn-is-free",
        "torn directories cost no complete checkpoint its place",
        lambda flight, folder, protected: flight in BEFORE_COMMIT or not torn(folder) or protected <= complete(folder),
        lambda flight, folder: flight is Flight.RETIRING and bool(torn(folder)),
    ),
    Invariant(
        "retention.keeps",
        "a commit deletes nothing that is protected",
        lambda flight, folder, protected: flight in BEFORE_COMMIT or protected <= complete(folder),
        lambda flight, folder, hidden: flight is Flight.RETIRING and bool(hidden) and None in folder,
    ),
    Invariant(
        "retention.drops",
        "when a save has ended, no complete checkpoint is beyond the limit",
        lambda flight, saving, folder, keep: (
            flight is not Flight.DONE or not complete(folder) & leaving(folder, saving.step, keep)
        ),
        lambda flight, folder: flight is Flight.DONE and None in folder,
    ),
    Invariant(
        "retention.debris",
        "no step has two hidden directories, and none has one when a save has ended",
        lambda flight, hidden: len(set(hidden)) == len(hidden) and (flight is not Flight.DONE or not hidden),
        lambda flight, hidden: flight is Flight.FLUSHING and bool(hidden),
    ),
    Invariant(
        "retention.in-flight",
        "the directory that is being written is there",
        lambda flight, staged: flight not in (Flight.STAGED, Flight.FLUSHING) or staged is not None,
        lambda flight, hidden: flight is Flight.FLUSHING and bool(hidden),
    ),
    Invariant(
        "commit.collective",
        "when `save` has returned, train state and metadata are written",
        lambda job, flight, staged: (
            job is not Job.TRAINING
            or flight not in (Flight.STAGED, Flight.FLUSHING)
            or staged is None
            or ABSENT not in (staged.train_state, staged.metadata)
        ),
        lambda job, flight: job is Job.TRAINING and flight in (Flight.FLUSHING, Flight.NONE),
    ),
    Invariant(
        "commit.rank-failure",
        "no save is published in which a rank was lost",
        lambda job, flight, saving, begun: (
            job is not Job.RANK_LOST or flight in (Flight.NONE, Flight.FAILING, Flight.FAILED) or saving in begun
        ),
        lambda job, flight: job is Job.RANK_LOST and flight is Flight.FAILED,
    ),
    Invariant(
        "commit.failed-flush",
        "a failed save is never published, and a failed asynchronous save leaves the resume point",
        lambda flight, saving, folder, latest, acknowledged, begun, is_async: (
            (flight in BEFORE_COMMIT - {Flight.PUBLISHED} or saving in begun)
            and (not is_async or flight is not Flight.FAILED or _is_promised(folder, latest, acknowledged, begun))
        ),
        lambda job, flight, is_async: is_async and job is Job.CALLING and flight is Flight.FAILED,
    ),
    Invariant(
        "commit.sync",
        "when a synchronous save has returned, it is the resume point, and `latest` names it",
        lambda job, flight, saving, folder, latest, acknowledged, begun, is_async: (
            is_async or _is_committed(job, flight, saving, folder, latest, acknowledged, begun)
        ),
        lambda job, acknowledged, is_async: not is_async and job is Job.TRAINING and bool(acknowledged),
    ),
    Invariant(
        "commit.no-later-than",
        "when the next call has returned, an asynchronous save is the resume point, and `latest` names it",
        lambda job, flight, saving, folder, latest, acknowledged, begun, is_async: (
            not is_async or _is_committed(job, flight, saving, folder, latest, acknowledged, begun)
        ),
        lambda job, acknowledged, begun, is_async: is_async and job is Job.TRAINING and bool(acknowledged and begun),
    ),
    Invariant(
        "resume.after-kill",
        "after a kill the resume point is the last acknowledged save, or one begun since",
        lambda job, folder, latest, acknowledged, begun: (
            job not in LOOKING or _is_promised(folder, latest, acknowledged, begun)
        ),
        lambda job, acknowledged, begun: job is Job.DOWN and bool(acknowledged and begun),
    ),
    Invariant(
        "resume.all-torn",
        "with only torn directories the run starts fresh",
        lambda folder, target: bool(complete(folder)) or not target or target == FRESH,
        lambda job, folder: job is Job.LOADING and bool(torn(folder)) and not complete(folder),
    ),
    Invariant(
        "resume.skips-torn",
        "an auto-resume never lands on a torn directory",
        lambda folder, named, target: (
            not target or bool(named) or target == FRESH or is_complete(at(folder, target.step))
        ),
        lambda job, folder, target: job is Job.LOADING and bool(target.step) and bool(torn(folder)),
    ),
    Invariant(
        "resume.fallback",
        "where the target of `latest` is torn, an auto-resume lands on the newest complete checkpoint",
        lambda folder, latest, named, target: latest not in torn(folder) or _lands(folder, latest, named, target),
        lambda job, folder, latest, target: job is Job.LOADING and latest in torn(folder) and target != FRESH,
    ),
    Invariant(
        "resume.pointer-is-a-hint",
        "where `latest` is missing, an auto-resume lands on the newest complete checkpoint",
        lambda folder, latest, named, target: bool(latest) or _lands(folder, latest, named, target),
        lambda job, latest, target: job is Job.LOADING and not latest and target != FRESH,
    ),
    Invariant(
        "resume.lands",
        "an auto-resume lands on the resume point",
        _lands,
        lambda job, target, acknowledged: job is Job.LOADING and target != FRESH and target == acknowledged,
    ),
    Invariant(
        "resume.explicit-honoured",
        "the checkpoint that the caller named is the one that is loaded",
        lambda named, target: not named or not target or target.step == named,
        lambda job, named, latest: job is Job.LOADING and 0 < named < latest,
    ),
    Invariant(
        "resume.agreement-across-stages",
        "all stages load the same step",
        lambda landed: len(_steps(landed)) <= 1,
        lambda landed, folder, stages: (
            stages > 1 and None not in landed and any(step > max(_steps(landed)) > 0 for step in torn(folder))
        ),
    ),
    Invariant(
        "resume.one-step",
        "everything that is loaded comes from one save",
        lambda landed, target: (
            None in landed
            or all(
                part.step == target.step == 0 or (part.step, set(part.generations)) == (target[0], {target[1]})
                for part in landed
            )
        ),
        lambda landed, folder: None not in landed and len(complete(folder)) > 1,
    ),
    Invariant(
        "resume.continue",
        "a save that has ended is the resume point, whatever leftovers there were at its step",
        lambda flight, saving, folder, latest: flight is not Flight.DONE or resume_point(folder, latest) == saving,
        lambda flight, saving, folder: flight is Flight.FLUSHING and saving.step in torn(folder),
    ),
)
"""The more specific ones first: of all that do not hold in a state, the first is reported."""
