"""What has to hold in every state of the model: the clauses that can be said of it.

Each names the clause that it formalises, and has beside it, as the clause has,
the situation that has to arise somewhere in the search: an invariant that is
never put to the test fails.
"""

from collections.abc import Sequence

from forge_spec.machine import Invariant
from forge_spec.model import (
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
    """It has its markers, and the files beside them have not been written."""
    if directory is None or not all(part.marker > 0 for part in directory.parts):
        return False
    return ABSENT in (directory.train_state, directory.metadata)


def _is_damaged(directory: Directory | None) -> bool:
    return directory is not None and LOST in (directory.train_state, *(part.marker for part in directory.parts))


def _has_one_generation(directory: Directory | None) -> bool:
    return not is_complete(directory) or len(generations(directory)) == 1


def _has_all_shards(directory: Directory | None) -> bool:
    return directory is None or not is_complete(directory) or all(min(part.shards) > 0 for part in directory.parts)


def _is_promised(folder: Folder, latest: int, vouched: Save | None, pending: tuple[Save, ...]) -> bool:
    return vouched == UNKNOWN or resume_point(folder, latest) in (vouched, *pending)


def _is_committed(
    job: Job,
    flight: Flight,
    saving: Save,
    folder: Folder,
    latest: int,
    vouched: Save | None,
    pending: tuple[Save, ...],
) -> bool:
    if flight is Flight.DONE and saving.step != latest:
        return False
    return job is not Job.TRAINING or _is_promised(folder, latest, vouched, pending)


def _lands(folder: Folder, latest: int, named: int, target: Save | None) -> bool:
    return target is None or bool(named) or target == (resume_point(folder, latest) or FRESH)


def _steps(landed: Sequence[Landed | None]) -> set[int]:
    return {part.step for part in landed if part}


def _is_above(folder: Folder, saving: Save | None) -> bool:
    return saving is not None and any(step > saving.step for step in complete(folder))


INVARIANTS: tuple[Invariant, ...] = (
    Invariant(
        "commit.monotone",
        "`latest` is not below what this run has pointed it at",
        lambda latest, peak: latest >= peak,
        lambda latest, peak, flight: flight is Flight.PUBLISHED and 0 < peak == latest,
    ),
    Invariant(
        "commit.all-stages",
        "what `latest` names has the markers of all stages or of none",
        lambda folder, latest: ABSENT not in (markers := _target_markers(folder, latest)) or not any(markers),
        lambda staged, latest: bool(staged and latest) and len({bool(part.marker) for part in staged.parts}) == 2,
    ),
    Invariant(
        "commit.whole",
        "what `latest` names, or a resume has chosen, has train state and metadata if it has its markers",
        lambda folder, latest, target: (
            not _is_undescribed(at(folder, latest)) and (target in (None, FRESH) or target.generation > 0)
        ),
        lambda job, folder: job is Job.LOADING and any(found and found.train_state == LOST for found in folder),
    ),
    Invariant(
        "commit.before-dispatch",
        "where a save has failed, the one before it is committed",
        lambda flight, folder, latest, pending: (
            flight is not Flight.FAILED or not pending or resume_point(folder, latest) == pending[-1]
        ),
        lambda job, flight, pending: job is Job.CALLING and flight is Flight.FAILED and bool(pending),
    ),
    Invariant(
        "commit.failed-save",
        "a synchronous save that fails leaves the resume point where it was",
        lambda flight, folder, latest, vouched, pending, is_async: (
            is_async or flight is not Flight.FAILED or _is_promised(folder, latest, vouched, pending)
        ),
        lambda job, flight, is_async: not is_async and job is Job.SAVING and flight is Flight.FAILED,
    ),
    Invariant(
        "commit.atomic-pointer",
        "while a step is saved again, what `latest` names is there",
        lambda flight, saving, folder, latest, owed: (
            flight not in BEFORE_COMMIT
            or not saving
            or saving.step != latest
            or latest not in owed
            or at(folder, latest) is not None
        ),
        lambda flight, saving, latest: flight is Flight.PUBLISHED and bool(saving) and saving.step == latest,
    ),
    Invariant(
        "retention.after-commit",
        "until a save is committed, everything is there that was",
        lambda flight, folder, owed: flight not in BEFORE_COMMIT or owed <= complete(folder),
        lambda flight, folder, keep: flight is Flight.PUBLISHED and len(complete(folder)) > keep,
    ),
    Invariant(
        "retention.latest",
        "what `latest` names has all its files as long as it has been committed",
        lambda folder, latest, owed: latest not in owed or is_complete(at(folder, latest)),
        lambda flight, latest, debris: flight is Flight.RETIRING and bool(debris) and bool(latest),
    ),
    Invariant(
        "commit.deferred",
        "what `latest` names is complete, unless a file of it was lost",
        lambda folder, latest: not latest or is_complete(at(folder, latest)) or _is_damaged(at(folder, latest)),
        lambda flight, latest, is_async: is_async and flight is Flight.FLUSHING and bool(latest),
    ),
    Invariant(
        "retention.invalidate-first",
        "a directory that looks complete has all its shards",
        lambda folder: all(map(_has_all_shards, folder)),
        lambda flight, folder, debris: flight is Flight.RETIRING and bool(debris) and None in folder,
    ),
    Invariant(
        "commit.resave",
        "a directory that looks complete is of one save",
        lambda folder: all(map(_has_one_generation, folder)),
        lambda flight, saving, folder: (
            flight is Flight.FLUSHING and saving is not None and at(folder, saving.step) is not None
        ),
    ),
    Invariant(
        "retention.future",
        "a commit below steps that are left from before a rewind costs none of what is owed",
        lambda flight, saving, folder, owed: (
            flight in BEFORE_COMMIT or not _is_above(folder, saving) or owed <= complete(folder)
        ),
        lambda flight, saving, folder, keep: (
            flight is Flight.RETIRING and len([step for step in complete(folder) if step > saving.step]) >= keep
        ),
    ),
    Invariant(
        "retention.torn-is-free",
        "torn directories cost no complete one its place",
        lambda flight, folder, owed: flight in BEFORE_COMMIT or not torn(folder) or owed <= complete(folder),
        lambda flight, folder: flight is Flight.RETIRING and bool(torn(folder)),
    ),
    Invariant(
        "retention.keeps",
        "a commit costs nothing of what is owed",
        lambda flight, folder, owed: flight in BEFORE_COMMIT or owed <= complete(folder),
        lambda flight, folder, debris: flight is Flight.RETIRING and bool(debris) and None in folder,
    ),
    Invariant(
        "retention.drops",
        "when a save has ended, nothing complete stands beyond the limit",
        lambda flight, saving, folder, keep: (
            flight is not Flight.DONE or not complete(folder) & leaving(folder, saving.step, keep)
        ),
        lambda flight, folder: flight is Flight.DONE and None in folder,
    ),
    Invariant(
        "retention.debris",
        "nothing hidden stands twice, nor at all when a save has ended",
        lambda flight, debris: len(set(debris)) == len(debris) and (flight is not Flight.DONE or not debris),
        lambda flight, debris: flight is Flight.FLUSHING and bool(debris),
    ),
    Invariant(
        "retention.in-flight",
        "what is being written is there",
        lambda flight, staged: flight not in (Flight.STAGED, Flight.FLUSHING) or staged is not None,
        lambda flight, debris: flight is Flight.FLUSHING and bool(debris),
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
        "nothing is published that a rank has died in",
        lambda job, flight, saving, pending: (
            job is not Job.CUT or flight in (Flight.NONE, Flight.FAILING, Flight.FAILED) or saving in pending
        ),
        lambda job, flight: job is Job.CUT and flight is Flight.FAILED,
    ),
    Invariant(
        "commit.failed-flush",
        "what has failed is never published, and a save in the background that fails leaves the resume point",
        lambda flight, saving, folder, latest, vouched, pending, is_async: (
            (flight in BEFORE_COMMIT - {Flight.PUBLISHED} or saving in pending)
            and (not is_async or flight is not Flight.FAILED or _is_promised(folder, latest, vouched, pending))
        ),
        lambda job, flight, is_async: is_async and job is Job.CALLING and flight is Flight.FAILED,
    ),
    Invariant(
        "commit.sync",
        "when a synchronous save has returned, it is the resume point, and `latest` names it",
        lambda job, flight, saving, folder, latest, vouched, pending, is_async: (
            is_async or _is_committed(job, flight, saving, folder, latest, vouched, pending)
        ),
        lambda job, vouched, is_async: not is_async and job is Job.TRAINING and bool(vouched),
    ),
    Invariant(
        "commit.no-later-than",
        "when the next call has returned, a save in the background is the resume point, and `latest` names it",
        lambda job, flight, saving, folder, latest, vouched, pending, is_async: (
            not is_async or _is_committed(job, flight, saving, folder, latest, vouched, pending)
        ),
        lambda job, vouched, pending, is_async: is_async and job is Job.TRAINING and bool(vouched and pending),
    ),
    Invariant(
        "resume.after-kill",
        "after a kill the resume point is the last save that was vouched for, or one begun since",
        lambda job, folder, latest, vouched, pending: (
            job not in LOOKING or _is_promised(folder, latest, vouched, pending)
        ),
        lambda job, vouched, pending: job is Job.DOWN and bool(vouched and pending),
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
        "where what `latest` names is torn, an auto-resume lands on the newest complete one",
        lambda folder, latest, named, target: latest not in torn(folder) or _lands(folder, latest, named, target),
        lambda job, folder, latest, target: job is Job.LOADING and latest in torn(folder) and target != FRESH,
    ),
    Invariant(
        "resume.pointer-is-a-hint",
        "where `latest` is missing, an auto-resume lands on the newest complete one",
        lambda folder, latest, named, target: bool(latest) or _lands(folder, latest, named, target),
        lambda job, latest, target: job is Job.LOADING and not latest and target != FRESH,
    ),
    Invariant(
        "resume.lands",
        "an auto-resume lands on the resume point",
        _lands,
        lambda job, target, vouched: job is Job.LOADING and target != FRESH and target == vouched,
    ),
    Invariant(
        "resume.explicit-honoured",
        "a checkpoint that the caller named is the one that is loaded",
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
        "everything that is loaded is of one save",
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
        "a save that has ended is the resume point, whatever was left at its step",
        lambda flight, saving, folder, latest: flight is not Flight.DONE or resume_point(folder, latest) == saving,
        lambda flight, saving, folder: flight is Flight.FLUSHING and saving.step in torn(folder),
    ),
)
"""The particular before the general: of what falls in one state, the first is told."""
