"""Managers of the second design that are wrong in one row of the table, and the clause that each of them breaks.

Several of these mistakes are in a released manager of this design.
"""

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

from forge_spec import ephemeral
from forge_spec.ephemeral import EPHEMERAL, PERMANENT, Plan
from forge_spec.model.design import Variant, also, does, seeing, unless
from forge_spec.model.ephemeral_table import (
    ABSENT,
    FOREIGN,
    NOTHING,
    Directory,
    Flight,
    Folder,
    Hook,
    Save,
    Scope,
    Steps,
    Task,
    after_await,
    after_clearing,
    after_decision,
    after_dispatch,
    after_failed_removal,
    after_failure,
    after_finish,
    after_look,
    after_resolve,
    after_write,
    begun_at,
    complete,
    put,
    recorded,
    returned,
    torn,
)
from forge_spec.model.machine import HANG, Changes

NO_LIMIT = Scope(ranks=1, limits=(None,))
ASYNC = Scope(ranks=1, limits=(1,), modes=(True,))
BEING_WRITTEN = (Flight.WRITING, Flight.DESCRIBED)


def _with(**settings: Any) -> Callable[[tuple[Plan, ...]], tuple[Plan, ...]]:
    """Return a function that changes these settings in all plans."""
    return lambda plans: tuple(replace(plan, **settings) for plan in plans)


# -- a save and its error ------------------------------------------------------------


def _write_in_place(saving: Save, staged: Directory, folder: Folder) -> Changes | None:
    standing = folder[saving.step]
    if standing is None or standing.record is None or FOREIGN in standing.files:
        return after_write(staged)
    return {"folder": put(folder, saving.step, standing._replace(files=(FOREIGN, *standing.files[1:])))}


def _swallow(saving: Save, now: int, is_saved: bool, hook: Hook, task: Task) -> Changes:
    forgotten = {"flight": Flight.NONE, "saving": None, "is_saved": is_saved and saving.step != now}
    return {**forgotten, **({"task": Task.REMOVE} if task is Task.TAKE_IN else {})}


def _raise_for_ever() -> Changes:
    return {"hook": Hook.TRAINING, "task": Task.NONE, "error": False, "has_raised": True}


def _end_with_the_error(hook: Hook, task: Task, saving: Save, now: int, is_saved: bool) -> Changes:
    ends = {"hook": Hook.ENDED, "task": Task.NONE} if hook is Hook.AFTER and task is Task.AWAIT else {}
    return {**after_failure(hook, task, saving, now, is_saved), **ends}


# -- what earlier processes left -------------------------------------------------------


def _resume_from_newest_directory(folder: Folder, named: int | None) -> Changes:
    standing = complete(folder) | torn(folder)
    return after_resolve(folder, max(standing, default=None) if named is None else named)


def _kinds_by_number(folder: Folder, resumed: int | None, plans: tuple[Plan, ...], plan: int) -> Changes:
    found = {step for step in complete(folder) if step <= begun_at(resumed)}
    permanent = {step for step in found if step == 0 or ephemeral.is_permanent_step(step, plans[plan])}
    return {"permanents": frozenset(permanent), "ephemerals": frozenset(found - permanent)}


def _kinds_by_record(folder: Folder, resumed: int | None) -> Changes:
    found = {step: kind for step, kind in recorded(folder).items() if step <= begun_at(resumed)}
    return {
        "permanents": frozenset(step for step, kind in found.items() if kind == PERMANENT),
        "ephemerals": frozenset(step for step, kind in found.items() if kind == EPHEMERAL),
    }


def _collect_at_once(folder: Folder, resumed: int | None, plans: tuple[Plan, ...], plan: int) -> Changes:
    ephemerals = after_look(folder, resumed, plans, plan)["ephemerals"]
    return {"removing": ephemerals, "ephemerals": NOTHING}


# -- what goes ------------------------------------------------------------------------


def _count_above(saving: Save, folder: Folder, limit: int | None, changes: Changes) -> Changes:
    """Remove, as the oldest, what has just been saved."""
    above = [step for step, kind in recorded(folder).items() if step > saving.step and kind == PERMANENT]
    if saving.kind == EPHEMERAL or limit is None or len(above) < limit:
        return {}
    own = {saving.step}
    return {"scheduled": _steps(changes["scheduled"]) | own, "permanents": _steps(changes["permanents"]) - own}


def _replace_ephemerals(saving: Save, ephemerals: Steps, changes: Changes) -> Changes:
    if saving.kind == EPHEMERAL:
        return {}
    return {"scheduled": _steps(changes["scheduled"]) | ephemerals, "ephemerals": NOTHING}


def _hand_over_nothing(removing: Steps, changes: Changes) -> Changes:
    return {"scheduled": _steps(changes["removing"]) - removing, "removing": removing}


def _steps(value: Hashable) -> Steps:
    assert isinstance(value, frozenset)
    return value


def _unmark_last(folder: Folder, removing: Steps, ranks: int) -> Changes | None:
    step = min(removing, default=None)
    if step is None or step not in complete(folder):
        return None
    return {"folder": put(folder, step, Directory(recorded(folder)[step], (ABSENT,) * ranks))}


VARIANTS: tuple[Variant, ...] = (
    Variant(
        "lands-on-debris",
        "a resume takes the highest directory, complete or not",
        "resolve",
        does(_resume_from_newest_directory),
        "ephemeral.lands",
    ),
    Variant(
        "untrained-weights-unsaved",
        "step 0 is not saved before training",
        "decide",
        also(after_decision, lambda hook, changes: returned(hook) if hook is Hook.BEFORE else changes),
        "ephemeral.pre-train",
    ),
    Variant(
        "fixed-steps-unread",
        "a fixed step that lies on no interval is not saved",
        "decide",
        seeing(after_decision, plans=_with(fixed_steps=frozenset())),
        "ephemeral.fixed",
    ),
    Variant(
        "permanent-ones-only",
        "no ephemeral checkpoint is saved",
        "decide",
        seeing(after_decision, plans=_with(ephemeral_save_interval=None)),
        "ephemeral.between",
    ),
    Variant(
        "ephemeral-wins",
        "where both kinds are due, an ephemeral checkpoint is saved",
        "save",
        seeing(after_dispatch, plans=_with(save_interval=None)),
        "ephemeral.permanent",
    ),
    Variant(
        "last-step-unsaved",
        "the last step is not saved unless it lies on an interval",
        "decide",
        also(after_decision, lambda hook, changes: {"task": Task.CLEAR} if hook is Hook.AFTER else changes),
        "ephemeral.last",
    ),
    Variant(
        "two-at-once",
        "a save begins while the one before is being written",
        "await",
        {
            "when": {"task": {Task.AWAIT}, "flight": frozenset(Flight) - {Flight.FAILED}},
            **unless(after_await, lambda hook, flight: hook is Hook.AFTER and flight in BEING_WRITTEN),
        },
        "ephemeral.one-pending",
        ASYNC,
    ),
    Variant(
        "refuses-debris",
        "a step whose directory a killed process left is never saved",
        "save",
        unless(after_dispatch, lambda now, folder: now in torn(folder)),
        HANG,
    ),
    Variant(
        "clears-the-step-first",
        "the directory of the step is deleted before its new files are written",
        "save",
        also(after_dispatch, lambda folder, now: {"folder": put(folder, now, None)}),
        "ephemeral.whole",
    ),
    Variant(
        "writes-over-the-old-files",
        "a step that is saved again is written over its old directory, under its old record",
        "write",
        does(_write_in_place),
        "ephemeral.whole",
    ),
    Variant(
        "record-early",
        "the record is written before all ranks have written",
        "describe",
        does(lambda saving, staged: {"flight": Flight.DESCRIBED, "staged": staged._replace(record=saving.kind)}),
        "ephemeral.whole",
    ),
    Variant(
        "error-unsaid",
        "the error of a save is not raised",
        "raise",
        does(_swallow, "the error of the save of step {saving.step} is not raised"),
        "ephemeral.error-once",
    ),
    Variant(
        "error-again-and-again",
        "a save that has failed stays pending, and every hook raises its error",
        "raise",
        does(_raise_for_ever),
        "ephemeral.error-once",
    ),
    Variant(
        "error-ends-the-run",
        "`post_train` raises the error of an earlier save instead of saving the last step",
        "raise",
        does(_end_with_the_error),
        "ephemeral.last-in-spite",
        ASYNC,
    ),
    Variant(
        "kinds-by-number",
        "the kind of what earlier processes left is guessed from the number of the step",
        "look",
        also(after_look, _kinds_by_number),
        "ephemeral.class-recorded",
    ),
    Variant(
        "kinds-by-record-alone",
        "what is recorded as ephemeral is collected, although the settings call its step permanent",
        "look",
        also(after_look, _kinds_by_record),
        "ephemeral.spares",
    ),
    Variant(
        "collects-nothing",
        "what earlier processes saved as ephemeral is not remembered, and stays",
        "look",
        also(after_look, lambda: {"ephemerals": NOTHING}),
        "ephemeral.collects",
    ),
    Variant(
        "collects-at-once",
        "what earlier processes saved as ephemeral is removed before anything replaces it",
        "look",
        also(after_look, _collect_at_once),
        "ephemeral.collects",
    ),
    Variant(
        "debris-stays",
        "torn directories of earlier processes are not remembered, and stay",
        "look",
        also(after_look, lambda: {"debris": NOTHING}),
        "ephemeral.never-stuck",
    ),
    Variant(
        "staging-stays",
        "the hidden directories of killed processes are not deleted",
        "save",
        also(after_dispatch, lambda hidden: {"hidden": hidden}),
        "ephemeral.never-stuck",
        ASYNC,
    ),
    Variant(
        "counts-its-own",
        "the limit counts what this process has saved",
        "look",
        also(after_look, lambda: {"permanents": NOTHING}),
        "ephemeral.limit-restart",
    ),
    Variant(
        "counts-above-a-rewind",
        "permanent checkpoints above the step of a rewound run use up the limit",
        "finish",
        also(after_finish, _count_above),
        "ephemeral.above",
    ),
    Variant(
        "one-too-many",
        "one permanent checkpoint more than the limit stays",
        "finish",
        seeing(after_finish, limit=lambda limit: limit and limit + 1),
        "ephemeral.limit",
    ),
    Variant(
        "no-limit-is-one",
        "without a limit only the newest permanent checkpoint stays",
        "finish",
        seeing(after_finish, limit=lambda limit: limit or 1),
        "ephemeral.keeps",
        NO_LIMIT,
    ),
    Variant(
        "permanent-replaces-all",
        "a permanent checkpoint replaces the ephemeral ones",
        "finish",
        also(after_finish, _replace_ephemerals),
        "ephemeral.keeps",
        NO_LIMIT,
    ),
    Variant(
        "removes-at-dispatch",
        "older ephemeral checkpoints are removed when the save that replaces them is dispatched",
        "save",
        also(after_dispatch, lambda removing, ephemerals: {"removing": removing | ephemerals, "ephemerals": NOTHING}),
        "ephemeral.after-complete",
    ),
    Variant(
        "failure-replaces",
        "a save that has failed replaces the older ephemeral checkpoints",
        "raise",
        also(after_failure, lambda removing, ephemerals: {"removing": removing | ephemerals, "ephemerals": NOTHING}),
        "ephemeral.after-complete",
    ),
    Variant(
        "hands-over-late",
        "a hook that has taken in a save does not hand over what it replaced",
        "remove",
        does(lambda: {"task": Task.DECIDE}),
        "ephemeral.replaced",
        NO_LIMIT,
    ),
    Variant(
        "waits-for-an-idle-hook",
        "where each flush lasts until the next save, nothing is handed over",
        "await",
        also(after_await, _hand_over_nothing),
        "ephemeral.replaced",
        NO_LIMIT,
    ),
    Variant(
        "record-removed-last",
        "a removal begins with the files of the ranks",
        "unmark",
        does(_unmark_last, "the files of the ranks are removed; to be removed: {removing}"),
        "ephemeral.invalidate-first",
    ),
    Variant(
        "gives-up",
        "a removal that has failed is not tried again",
        "fail to remove",
        also(after_failed_removal, lambda unremoved: {"unremoved": unremoved}),
        "ephemeral.soft-removal",
    ),
    Variant(
        "leaves-at-the-end",
        "`post_train` returns although something is still to be removed",
        "clear",
        also(after_clearing, lambda: {"hook": Hook.ENDED, "task": Task.NONE}),
        "ephemeral.nothing-left",
    ),
)
"""In the order of a save, a start and a removal; `python -m forge_spec.model.explore --variant NAME` prints one."""
