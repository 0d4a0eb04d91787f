"""What has to hold in every state of the second design: one invariant for each clause that its table can express.

As in the first design, an invariant has a situation that has to arise somewhere in the search.
"""

from forge_spec import ephemeral
from forge_spec.ephemeral import EPHEMERAL, PERMANENT, Plan
from forge_spec.model.ephemeral_table import (
    ABSENT,
    FAILURES,
    WRITTEN,
    Flight,
    Folder,
    Hook,
    Save,
    Steps,
    Task,
    begun_at,
    complete,
    recorded,
    torn,
)
from forge_spec.model.machine import Invariant

UNPUBLISHED = frozenset({Flight.WRITING, Flight.DESCRIBED, Flight.FAILED})


def _is_fresh(hook: Hook, resumed: int | None, now: int) -> bool:
    return hook is Hook.TRAINING and resumed is None and now == 0


def _is_after_a_batch(hook: Hook, resumed: int | None, now: int) -> bool:
    return hook is Hook.TRAINING and now > begun_at(resumed)


def _is_fixed(step: int, plan: Plan) -> bool:
    return step in plan.fixed_steps


def _is_on_interval(step: int, plan: Plan) -> bool:
    return plan.save_interval is not None and step % plan.save_interval == 0


def _is_between(step: int, plan: Plan) -> bool:
    interval = plan.ephemeral_save_interval
    return interval is not None and step % interval == 0 and not (_is_fixed(step, plan) or _is_on_interval(step, plan))


def _is_spared(step: int, plan: Plan) -> bool:
    return step == 0 or _is_fixed(step, plan) or _is_on_interval(step, plan)


def _is_saved_as(kind: str, now: int, saving: Save | None, folder: Folder) -> bool:
    """Return whether this step is complete or pending as this kind."""
    return saving == Save(now, kind) or recorded(folder).get(now) == kind


def _has_handed_over(hook: Hook, task: Task, flight: Flight) -> bool:
    """Return whether each hook that found a replacement complete has passed the place where it hands over."""
    if hook is Hook.BATCH and task is Task.DECIDE:
        return flight is Flight.NONE
    return hook is Hook.TRAINING and flight is Flight.WRITING


def _earlier(steps: Steps, resumed: int | None, own: Steps) -> Steps:
    """Return the steps among these that earlier processes have saved, and that count for this one."""
    return frozenset(step for step in steps if step <= begun_at(resumed)) - own


def _of_kind(folder: Folder, kind: str) -> Steps:
    return frozenset(step for step, found in recorded(folder).items() if found == kind)


def _exceeds(limit: int | None, folder: Folder, counted: Steps, leaving: Steps, own: Steps) -> bool:
    """Return whether too many of these steps are permanent and stay, after a permanent save of this process."""
    permanent = _of_kind(folder, PERMANENT)
    return limit is not None and bool(permanent & own) and len(permanent & counted - leaving) > limit


INVARIANTS: tuple[Invariant, ...] = (
    Invariant(
        "ephemeral.lands",
        "a resume takes the highest complete step, or starts afresh where there is none",
        lambda task, named, resumed, folder: (
            task is not Task.LOOK or named is not None or resumed == ephemeral.resume_point(complete(folder))
        ),
        lambda task, named, resumed, folder: (
            task is Task.LOOK and named is None and any(step > begun_at(resumed) for step in torn(folder))
        ),
    ),
    Invariant(
        "ephemeral.one-pending",
        "no save is dispatched while another one is pending",
        lambda overlaps: not overlaps,
        lambda task, flight: task is Task.AWAIT and flight is Flight.WRITING,
    ),
    Invariant(
        "ephemeral.error-once",
        "the error of a save is raised by one hook, and by no second one",
        lambda hook, flight, error: hook in (Hook.AFTER, Hook.ENDED) or error == (flight is Flight.FAILED),
        lambda task, flight: task is Task.TAKE_IN and flight is Flight.FAILED,
    ),
    Invariant(
        "ephemeral.pre-train",
        "a run that starts afresh has saved step 0 as permanent before its first batch",
        lambda hook, resumed, now, saving, folder, has_raised: (
            not _is_fresh(hook, resumed, now) or has_raised or _is_saved_as(PERMANENT, now, saving, folder)
        ),
        lambda hook, resumed, now, folder: _is_fresh(hook, resumed, now) and complete(folder) == {0},
    ),
    Invariant(
        "ephemeral.fixed",
        "a fixed step is saved as permanent",
        lambda hook, resumed, now, saving, folder, has_raised, plans, plan: (
            not (_is_after_a_batch(hook, resumed, now) and _is_fixed(now, plans[plan]))
            or has_raised
            or _is_saved_as(PERMANENT, now, saving, folder)
        ),
        lambda hook, resumed, now, plans, plan: _is_after_a_batch(hook, resumed, now) and _is_fixed(now, plans[plan]),
    ),
    Invariant(
        "ephemeral.permanent",
        "a multiple of `save_interval` is saved as permanent",
        lambda hook, resumed, now, saving, folder, has_raised, plans, plan: (
            not (_is_after_a_batch(hook, resumed, now) and _is_on_interval(now, plans[plan]))
            or has_raised
            or _is_saved_as(PERMANENT, now, saving, folder)
        ),
        lambda hook, resumed, now, plans, plan: (
            _is_after_a_batch(hook, resumed, now) and _is_on_interval(now, plans[plan])
        ),
    ),
    Invariant(
        "ephemeral.between",
        "a multiple of `ephemeral_save_interval` at which nothing permanent is due is saved as ephemeral",
        lambda hook, resumed, now, saving, folder, has_raised, plans, plan: (
            not (_is_after_a_batch(hook, resumed, now) and _is_between(now, plans[plan]))
            or has_raised
            or _is_saved_as(EPHEMERAL, now, saving, folder)
        ),
        lambda hook, resumed, now, plans, plan: _is_after_a_batch(hook, resumed, now) and _is_between(now, plans[plan]),
    ),
    Invariant(
        "ephemeral.invalidate-first",
        "no file is missing in a directory that is being removed and still looks complete",
        lambda folder, removing: all(
            ABSENT not in found.files for step in removing if (found := folder[step]) and found.record
        ),
        lambda folder, removing: bool(removing & torn(folder)),
    ),
    Invariant(
        "ephemeral.whole",
        "the files of a directory that looks complete are of one save, and a step that is saved again stays complete",
        lambda flight, saving, folder, protected: (
            all(not found or not found.record or set(found.files) == {WRITTEN} for found in folder)
            and (flight not in UNPUBLISHED or saving.step not in protected - complete(folder))
        ),
        lambda flight, saving, folder: flight is Flight.DESCRIBED and saving.step in complete(folder),
    ),
    Invariant(
        "ephemeral.above",
        "with checkpoints above the step of a rewound run, nothing is removed that is protected",
        lambda folder, protected, now: (
            not any(step > now for step in protected | complete(folder)) or protected <= complete(folder)
        ),
        lambda folder, removing, now, limit: (
            limit is not None and bool(removing) and any(step > now for step in _of_kind(folder, PERMANENT))
        ),
    ),
    Invariant(
        "ephemeral.spares",
        "nothing of earlier processes is removed that the present settings call permanent, except by the limit",
        lambda folder, protected, resumed, own, plans, plan: (
            not any(_is_spared(step, plans[plan]) for step in _earlier(protected - complete(folder), resumed, own))
        ),
        lambda folder, removing, resumed, own, plans, plan: (
            bool(removing)
            and any(
                _is_spared(step, plans[plan]) for step in _earlier(_of_kind(folder, EPHEMERAL), resumed, own) - removing
            )
        ),
    ),
    Invariant(
        "ephemeral.collects",
        "what earlier processes left goes when a save of this process is complete, and not before",
        lambda hook, task, flight, folder, protected, resumed, own, owed, removing, unremoved: (
            (bool(own) or protected <= complete(folder))
            and (
                not _has_handed_over(hook, task, flight)
                or _earlier(owed & _of_kind(folder, EPHEMERAL), resumed, own) <= removing | unremoved
            )
        ),
        lambda folder, resumed, own, removing: bool(_earlier(removing & _of_kind(folder, EPHEMERAL), resumed, own)),
    ),
    Invariant(
        "ephemeral.class-recorded",
        "nothing that earlier processes saved as permanent is removed, except by the limit",
        lambda folder, protected, resumed, own: not _earlier(protected - complete(folder), resumed, own),
        lambda folder, removing, resumed, own, plans, plan: (
            bool(removing)
            and any(
                _is_between(step, plans[plan])
                for step in _earlier(_of_kind(folder, PERMANENT), resumed, own) - removing
            )
        ),
    ),
    Invariant(
        "ephemeral.after-complete",
        "nothing is removed until what replaces it is complete, and nothing for a save that has failed",
        lambda flight, folder, protected, has_raised: (
            not (flight in UNPUBLISHED or has_raised) or protected <= complete(folder)
        ),
        lambda flight, saving, folder, own: (
            flight is Flight.FAILED and saving.kind == EPHEMERAL and bool(own & _of_kind(folder, EPHEMERAL))
        ),
    ),
    Invariant(
        "ephemeral.keeps",
        "nothing that is protected is removed, so that something is complete from the first save on",
        lambda folder, protected: protected <= complete(folder),
        lambda folder, removing, own: bool(removing) and bool(own & _of_kind(folder, PERMANENT)),
    ),
    Invariant(
        "ephemeral.soft-removal",
        "what could not be removed is tried again",
        lambda flight, owed, scheduled, removing, unremoved, failures: (
            failures == FAILURES or flight is Flight.ENDED or owed <= scheduled | removing | unremoved
        ),
        lambda hook, failures, removing: hook is Hook.AFTER and failures < FAILURES and bool(removing),
    ),
    Invariant(
        "ephemeral.replaced",
        "older ephemeral checkpoints go in the first hook that finds the new one complete",
        lambda hook, task, flight, folder, owed, removing, unremoved: (
            not _has_handed_over(hook, task, flight) or owed & _of_kind(folder, EPHEMERAL) <= removing | unremoved
        ),
        lambda hook, task, removing, own: hook is Hook.BATCH and task is Task.DECIDE and bool(removing & own),
    ),
    Invariant(
        "ephemeral.limit",
        "of the permanent checkpoints of this process, no more stay than the limit",
        lambda hook, task, flight, folder, own, removing, unremoved, limit: (
            not _has_handed_over(hook, task, flight) or not _exceeds(limit, folder, own, removing | unremoved, own)
        ),
        lambda folder, own, removing, limit: limit is not None and bool(removing & own & _of_kind(folder, PERMANENT)),
    ),
    Invariant(
        "ephemeral.limit-restart",
        "permanent checkpoints of earlier processes count as well",
        lambda hook, task, flight, folder, resumed, own, removing, unremoved, limit: (
            not _has_handed_over(hook, task, flight)
            or not _exceeds(limit, folder, own | _earlier(complete(folder), resumed, own), removing | unremoved, own)
        ),
        lambda folder, resumed, own, removing, limit: (
            limit is not None and bool(_earlier(removing & _of_kind(folder, PERMANENT), resumed, own))
        ),
    ),
    Invariant(
        "ephemeral.last-in-spite",
        "when `post_train` raises the error of an earlier save, the last step is complete",
        lambda hook, error, now, folder: hook is not Hook.ENDED or not error or now in complete(folder),
        lambda hook, error: hook is Hook.ENDED and error,
    ),
    Invariant(
        "ephemeral.last",
        "when `post_train` has returned, the last step is complete, and nothing is pending",
        lambda hook, flight, now, folder: hook is not Hook.ENDED or (now in complete(folder) and flight is Flight.NONE),
        lambda hook, task, flight: hook is Hook.AFTER and task is Task.AWAIT and flight is Flight.WRITING,
    ),
    Invariant(
        "ephemeral.never-stuck",
        "a process that has saved something leaves no torn and no hidden directories of earlier ones",
        lambda hook, own, folder, resumed, hidden: (
            hook is not Hook.ENDED or not own or not (_earlier(torn(folder), resumed, own) or hidden)
        ),
        lambda folder, removing, resumed, own: bool(_earlier(removing & torn(folder), resumed, own)),
    ),
    Invariant(
        "ephemeral.nothing-left",
        "when `post_train` has returned, everything is removed that had to be",
        lambda hook, owed, removing: hook is not Hook.ENDED or not owed | removing,
        lambda hook, task, scheduled: hook is Hook.AFTER and task is Task.CLEAR and bool(scheduled),
    ),
)
"""The more specific ones first: of all that do not hold in a state, the first is reported."""
