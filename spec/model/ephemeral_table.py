"""The protocol of the second design: a callback at hooks of the training loop, as one table.

The chapter `ephemeral` says what has to hold. `TABLE` is a protocol for which it holds, and `forge_spec.model.explore`
visits all that it can do in a scope: every order of hooks, flushes and removals; a kill between any two rows, any
number of times; a lost rank; a full disk; a removal that fails; a rewind; new processes with other settings; a file
that somebody removed.

A checkpoint is put together under a hidden name. Each rank writes its files there, rank 0 writes the record of its
kind last, and one rename (an exchange, over an older checkpoint of the step) gives it the name of its step. A removal
takes the record away first, and then the rest. Flushes and removals go on beside the training: their rows may be taken
between any two rows of a hook. The cooldown and the run's block are left out: they only make a save not due.

A hook takes in the flush that has ended, hands what was replaced to the thread that removes, and saves what is due. A
hook of a synchronous save waits for its own flush. What the callback remembers is lost with its process, and a new one
looks into the folder.

`own`, `protected`, `owed`, `has_raised` and `overlaps` are not part of the manager: they record what it has saved, must
not remove, has to remove, and has done wrong, by the predicates of the chapter.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from forge_spec import ephemeral
from forge_spec.ephemeral import EPHEMERAL, PERMANENT, Plan
from forge_spec.model.machine import Changes, Row

ABSENT, FOREIGN, WRITTEN = 0, 1, 2
"""The files of one rank in a directory: not there, of an earlier save of the step, or of the save of the record."""


class Hook(Enum):
    """Where the training loop is, as its caller sees it."""

    DOWN = "not running"
    TRAINING = "between two hooks"
    BEFORE = "in `pre_train`"
    BATCH = "in `post_train_batch`"
    AFTER = "in `post_train`"
    ENDED = "`post_train` has returned"
    RANK_LOST = "without one of the ranks, and about to end"


class Task(Enum):
    """What a hook does next."""

    NONE = "nothing: no hook is in progress"
    RESUME = "choose the checkpoint to resume from"
    LOOK = "look at what earlier processes left"
    TAKE_IN = "find out whether the pending save has ended"
    REMOVE = "hand over what was replaced"
    DECIDE = "decide whether a save is due"
    AWAIT = "wait for the pending save"
    SAVE = "dispatch the save that is due"
    FINISH = "wait for its own synchronous save"
    CLEAR = "wait for the removals"


class Flight(Enum):
    """How far the pending save has come."""

    NONE = "nothing is pending"
    WRITING = "the ranks are writing"
    DESCRIBED = "the record is written"
    ENDED = "it has its own name; the next hook takes it in"
    FAILED = "failed; the next hook raises"


class Directory(NamedTuple):
    """A checkpoint's directory: its recorded kind, None without a record; and the files of each rank, sorted."""

    record: str | None
    files: tuple[int, ...]


class Save(NamedTuple):
    """The pending save."""

    step: int
    kind: str


Folder = tuple[Directory | None, ...]
"""The directories of the steps 0, 1, ..."""
Steps = frozenset[int]
NOTHING: Steps = frozenset()


class State(NamedTuple):
    """Everything at one moment: the loop, the pending save, the disk, what the callback remembers, what is promised.

    What no longer matters is reset, so that states with the same future are equal.
    """

    hook: Hook
    task: Task
    plan: int
    """The settings of this process, as an index of `PLANS`."""
    named: int | None
    """The step whose directory the caller named for this resume."""
    resumed: int | None
    """The step that this process has resumed from; None for a fresh start."""
    now: int
    """The training step."""
    flight: Flight
    saving: Save | None
    """The pending save."""
    staged: Directory | None
    """The hidden directory of the pending save."""
    folder: Folder
    hidden: tuple[int, ...]
    """The steps of hidden directories that killed processes left."""
    is_saved: bool
    """Whether this process has saved the step `now`."""
    ephemerals: Steps
    """What the callback knows as ephemeral checkpoints."""
    permanents: Steps
    debris: Steps
    """What it found torn at its start."""
    scheduled: Steps
    """What goes when the next hook hands it over."""
    removing: Steps
    """What the thread that removes has been given."""
    unremoved: Steps
    """What that thread could not remove."""
    error: bool
    """Whether a save has failed and no hook has raised it yet."""
    own: Steps
    """The steps that this process has completed."""
    protected: Steps
    """The steps that no removal is allowed to take."""
    owed: Steps
    """The steps that have to be removed."""
    has_raised: bool
    """Whether the hook of the step `now` has raised."""
    overlaps: bool
    """Whether a save was dispatched while another one was pending."""
    failures: int
    """How many more removals of this process may fail."""
    accidents: int
    """How many more files may be removed by somebody else."""


# -- what a state means, in terms of the chapter ----------------------------------


def put(folder: Folder, step: int, directory: Directory | None) -> Folder:
    """Return the folder with another directory, or none, for that step."""
    return (*folder[:step], directory, *folder[step + 1 :])


def complete(folder: Folder) -> Steps:
    """Return the steps whose directories are complete by their names: the record is written last."""
    return frozenset(step for step, found in enumerate(folder) if found and found.record)


def torn(folder: Folder) -> Steps:
    """Return the steps whose directories are torn."""
    return frozenset(step for step, found in enumerate(folder) if found and not found.record)


def recorded(folder: Folder) -> dict[int, str]:
    """Return the recorded kind of each complete step."""
    return {step: found.record for step, found in enumerate(folder) if found and found.record}


def begun_at(resumed: int | None) -> int:
    """Return the step at which a process has begun."""
    return resumed or 0


def classes(folder: Folder, plan: Plan, resumed: int | None, own: Steps) -> dict[int, str]:
    """Return the kind that each complete checkpoint counts as, by the chapter; above a rewind none counts."""
    begun = begun_at(resumed)
    left = {step: kind for step, kind in recorded(folder).items() if step not in own and step <= begun}
    old = ephemeral.collected(left, begun, plan)
    known = {step: kind for step, kind in recorded(folder).items() if step in own}
    for step, kind in left.items():
        if step in old:
            known[step] = EPHEMERAL
        elif kind == PERMANENT or step in ephemeral.spared(left, begun, plan):
            known[step] = PERMANENT
    return known


def blank(ranks: int) -> Directory:
    """Return a directory in which nothing is written, or whose files no longer matter."""
    return Directory(None, (ABSENT,) * ranks)


# -- effects: what each row changes, or None where it can't be taken ----------------


def after_resolve(folder: Folder, named: int | None) -> Changes:
    target = ephemeral.resume_point(complete(folder)) if named is None else named
    return {"task": Task.LOOK, "resumed": target, "now": target or 0}


def after_look(folder: Folder, resumed: int | None, plans: tuple[Plan, ...], plan: int) -> Changes:
    """What is found above the step of a rewind is not remembered."""
    known = classes(folder, plans[plan], resumed, own=NOTHING)
    return {
        "task": Task.DECIDE,
        "named": None,
        "ephemerals": frozenset(step for step, kind in known.items() if kind == EPHEMERAL),
        "permanents": frozenset(step for step, kind in known.items() if kind == PERMANENT),
        "debris": frozenset(step for step in torn(folder) if step <= begun_at(resumed)),
    }


def taken_in(
    flight: Flight,
    saving: Save | None,
    ephemerals: Steps,
    permanents: Steps,
    debris: Steps,
    scheduled: Steps,
    unremoved: Steps,
    limit: int | None,
) -> dict[str, Hashable]:
    """Return what changes when a hook looks at the pending save: one that has ended schedules what it replaces."""
    if flight is not Flight.ENDED or saving is None:
        return {}
    step, kinds = saving.step, {EPHEMERAL: ephemerals, PERMANENT: permanents}
    kinds = {kind: steps - {step} for kind, steps in kinds.items()}
    kinds[saving.kind] |= {step}
    counted = sorted(other for other in kinds[saving.kind] if other <= step)
    kept = 1 if saving.kind == EPHEMERAL else limit
    replaced = frozenset(counted[:-kept]) if kept else NOTHING
    kinds[saving.kind] -= replaced
    return {
        "flight": Flight.NONE,
        "saving": None,
        "ephemerals": kinds[EPHEMERAL],
        "permanents": kinds[PERMANENT],
        "debris": NOTHING,
        "scheduled": (scheduled | debris | unremoved | replaced) - {step},
        "unremoved": NOTHING,
    }


def after_removal(flight: Flight, scheduled: Steps, removing: Steps) -> Changes:
    """While a save is pending nothing is handed over."""
    due = NOTHING if flight is not Flight.NONE else scheduled
    return {"task": Task.DECIDE, "scheduled": scheduled - due, "removing": removing | due}


def after_await(
    hook: Hook,
    flight: Flight,
    saving: Save | None,
    ephemerals: Steps,
    permanents: Steps,
    debris: Steps,
    scheduled: Steps,
    removing: Steps,
    unremoved: Steps,
    limit: int | None,
) -> Changes:
    """Hands over here as well: where each flush takes longer than the interval, all hooks find one."""
    changes = taken_in(flight, saving, ephemerals, permanents, debris, scheduled, unremoved, limit)
    changes = {"scheduled": scheduled, **changes}
    due = changes["scheduled"]
    assert isinstance(due, frozenset)
    task = Task.SAVE if hook is Hook.BATCH else Task.DECIDE
    return {**changes, "scheduled": NOTHING, "removing": removing | due, "task": task}


def after_finish(
    hook: Hook,
    flight: Flight,
    saving: Save | None,
    ephemerals: Steps,
    permanents: Steps,
    debris: Steps,
    scheduled: Steps,
    unremoved: Steps,
    limit: int | None,
) -> Changes:
    taken = taken_in(flight, saving, ephemerals, permanents, debris, scheduled, unremoved, limit)
    return {**returned(hook), **taken}


def after_failure(hook: Hook, task: Task, saving: Save, now: int, is_saved: bool) -> Changes:
    """After training the error of an earlier save is kept, so that the last step is saved all the same."""
    forgotten = {"flight": Flight.NONE, "saving": None, "is_saved": is_saved and saving.step != now}
    if hook is Hook.AFTER and task is Task.AWAIT:
        return forgotten
    return {**forgotten, "hook": Hook.TRAINING, "task": Task.NONE, "error": False, "has_raised": True}


def after_decision(
    hook: Hook, resumed: int | None, now: int, is_saved: bool, folder: Folder, plans: tuple[Plan, ...], plan: int
) -> Changes:
    if hook is Hook.BEFORE:
        is_due = ephemeral.due_before_training(now, None, resumed is not None)
        return {"task": Task.SAVE} if is_due else returned(hook)
    if hook is Hook.BATCH:
        return {"task": Task.AWAIT} if ephemeral.due(now, plans[plan]) else returned(hook)
    is_the_resumed_one = now == resumed and now in complete(folder)
    return {"task": Task.CLEAR if is_saved or is_the_resumed_one else Task.SAVE}


def after_dispatch(
    hook: Hook, now: int, flight: Flight, plans: tuple[Plan, ...], plan: int, is_async: bool, ranks: int
) -> Changes:
    """Deletes first the hidden directories that killed processes left."""
    kind = ephemeral.due(now, plans[plan]) if hook is Hook.BATCH else PERMANENT
    waits = hook is Hook.AFTER or not is_async
    return {
        **({"task": Task.FINISH} if waits else returned(hook)),
        "flight": Flight.WRITING,
        "saving": Save(now, kind or PERMANENT),
        "staged": blank(ranks),
        "hidden": (),
        "is_saved": True,
        "overlaps": flight is not Flight.NONE,
    }


def returned(hook: Hook) -> dict[str, Hashable]:
    """Return what changes when a hook has done its work; the one after training still has to clear up."""
    if hook is Hook.AFTER:
        return {"task": Task.CLEAR}
    return {"hook": Hook.TRAINING, "task": Task.NONE}


def after_write(staged: Directory) -> Changes | None:
    if ABSENT not in staged.files:
        return None
    return {"staged": staged._replace(files=tuple(sorted((*staged.files[1:], WRITTEN))))}


def after_description(saving: Save, staged: Directory) -> Changes | None:
    if ABSENT in staged.files:
        return None
    return {"flight": Flight.DESCRIBED, "staged": staged._replace(record=saving.kind)}


def after_publish(
    saving: Save,
    staged: Directory,
    folder: Folder,
    resumed: int | None,
    own: Steps,
    protected: Steps,
    owed: Steps,
    plans: tuple[Plan, ...],
    plan: int,
    limit: int | None,
) -> Changes:
    """From now on, and no earlier, what the checkpoint replaces is owed and not protected any more."""
    published, own = put(folder, saving.step, staged), own | {saving.step}
    replaced = ephemeral.leaving(classes(published, plans[plan], resumed, own), saving.step, limit)
    left_torn = frozenset(step for step in torn(published) if step <= begun_at(resumed))
    return {
        "flight": Flight.ENDED,
        "staged": None,
        "folder": published,
        "own": own,
        "protected": (protected | {saving.step}) - replaced,
        "owed": (owed | replaced | left_torn) - {saving.step},
    }


def after_unmark(folder: Folder, removing: Steps, ranks: int) -> Changes | None:
    step = min(removing, default=None)
    if step is None or step not in complete(folder):
        return None
    return {"folder": put(folder, step, blank(ranks))}


def after_delete(folder: Folder, removing: Steps, own: Steps, owed: Steps) -> Changes | None:
    step = min(removing, default=None)
    if step is None or step in complete(folder):
        return None
    gone = {step}
    return {"folder": put(folder, step, None), "removing": removing - gone, "own": own - gone, "owed": owed - gone}


def after_failed_removal(removing: Steps, unremoved: Steps, failures: int) -> Changes | None:
    if not removing or not failures:
        return None
    step = min(removing)
    return {"removing": removing - {step}, "unremoved": unremoved | {step}, "failures": failures - 1}


def after_clearing(folder: Folder, scheduled: Steps, removing: Steps, unremoved: Steps) -> Changes | None:
    """What could not be removed is tried again before the hook returns."""
    if removing:
        return None
    if scheduled or unremoved:
        return {"scheduled": NOTHING, "unremoved": NOTHING, "removing": scheduled | unremoved}
    return {
        "hook": Hook.ENDED,
        "task": Task.NONE,
        "ephemerals": NOTHING,
        "permanents": NOTHING,
        "debris": NOTHING,
        "protected": complete(folder),
    }


def after_kill(staged: Directory | None, saving: Save | None, folder: Folder, hidden: tuple[int, ...]) -> Changes:
    return {
        "hook": Hook.DOWN,
        "task": Task.NONE,
        "plan": 0,
        "named": None,
        "resumed": None,
        "now": 0,
        "flight": Flight.NONE,
        "saving": None,
        "staged": None,
        "hidden": tuple(sorted((*hidden, saving.step))) if staged and saving else hidden,
        "is_saved": False,
        **{name: NOTHING for name in REMEMBERED},
        "error": False,
        "own": NOTHING,
        "protected": complete(folder),
        "owed": NOTHING,
        "has_raised": False,
        "failures": FAILURES,
    }


def after_lost_rank(flight: Flight, ranks: int) -> Changes | None:
    """A save fails in which not all ranks have reported to rank 0 that they wrote; after that rank 0 goes on alone."""
    if ranks == 1:
        return None
    cut = {"hook": Hook.RANK_LOST, "task": Task.NONE, "named": None, "error": flight is Flight.FAILED}
    return {**cut, **_failed()} if flight is Flight.WRITING else cut


def _failed() -> dict[str, Hashable]:
    return {"flight": Flight.FAILED, "staged": None, "error": True}


def after_lost_record(folder: Folder, protected: Steps, accidents: int, step: int, ranks: int) -> Changes | None:
    if not accidents or step not in complete(folder):
        return None
    return {
        "folder": put(folder, step, blank(ranks)),
        "protected": protected - {step},
        "accidents": accidents - 1,
    }


# -- the table ------------------------------------------------------------------------

REMEMBERED = ("ephemerals", "permanents", "debris", "scheduled", "removing", "unremoved")
FAILURES = 1
"""How many removals of one process may fail."""
ALIVE = frozenset(Hook) - {Hook.DOWN}
PENDING = frozenset(Flight) - {Flight.FAILED}

TABLE: tuple[Row, ...] = (
    # -- the hooks, in their order --
    Row(
        "resolve",
        {"task": {Task.RESUME}},
        after_resolve,
        "the run resumes at step {new.now}",
    ),
    Row(
        "look",
        {"task": {Task.LOOK}},
        after_look,
        "`pre_train` looks into the folder",
    ),
    Row(
        "take in",
        {"task": {Task.TAKE_IN}, "flight": PENDING},
        lambda flight, saving, ephemerals, permanents, debris, scheduled, unremoved, limit: {
            "task": Task.REMOVE,
            **taken_in(flight, saving, ephemerals, permanents, debris, scheduled, unremoved, limit),
        },
        "the hook looks at the pending save, if there is one",
    ),
    Row(
        "remove",
        {"task": {Task.REMOVE}},
        after_removal,
        "the hook hands over what was replaced, unless a save is pending",
    ),
    Row(
        "decide",
        {"task": {Task.DECIDE}},
        after_decision,
        "the hook decides whether a checkpoint of step {now} is due",
    ),
    Row(
        "await",
        {"task": {Task.AWAIT}, "flight": {Flight.NONE, Flight.ENDED}},
        after_await,
        "the save before is finished, and the hook hands over what it replaced",
    ),
    Row(
        "save",
        {"task": {Task.SAVE}},
        after_dispatch,
        "the hook dispatches the {new.saving.kind} save of step {now}",
    ),
    Row(
        "finish",
        {"task": {Task.FINISH}, "flight": {Flight.ENDED}},
        after_finish,
        "the save of step {saving.step} is finished, and the hook takes it in",
    ),
    Row(
        "raise",
        {"task": {Task.TAKE_IN, Task.AWAIT, Task.FINISH}, "flight": {Flight.FAILED}},
        after_failure,
        "the error of the save of step {saving.step} is raised, or kept until training has ended",
    ),
    Row(
        "clear",
        {"task": {Task.CLEAR}},
        after_clearing,
        "`post_train` hands over what is left to remove, and returns when there is nothing",
    ),
    # -- the flush --
    Row(
        "write",
        {"flight": {Flight.WRITING}},
        after_write,
        "a rank writes its files of step {saving.step}",
    ),
    Row(
        "describe",
        {"flight": {Flight.WRITING}},
        after_description,
        "all ranks have written, and rank 0 writes the record of step {saving.step}: {saving.kind}",
    ),
    Row(
        "publish",
        {"flight": {Flight.DESCRIBED}},
        after_publish,
        "rank 0 gives the directory its name, step{saving.step}",
    ),
    # -- the thread that removes --
    Row(
        "unmark",
        {},
        after_unmark,
        "the record of a checkpoint is removed; to be removed: {removing}",
    ),
    Row(
        "delete",
        {},
        after_delete,
        "the rest of a directory is removed; to be removed: {new.removing}",
    ),
    # -- the training loop --
    Row(
        "batch",
        {"hook": {Hook.TRAINING}},
        lambda now, steps: (
            {
                "hook": Hook.BATCH,
                "task": Task.TAKE_IN,
                "now": now + 1,
                "is_saved": False,
                "has_raised": False,
            }
            if now < steps
            else None
        ),
        "step {new.now} is trained, and `post_train_batch` is called",
        external=True,
    ),
    Row(
        "post_train",
        {"hook": {Hook.TRAINING}},
        lambda: {"hook": Hook.AFTER, "task": Task.AWAIT, "has_raised": False},
        "`post_train` is called at step {now}",
        external=True,
    ),
    Row(
        "start",
        {"hook": {Hook.DOWN}},
        lambda settings: {"hook": Hook.BEFORE, "task": Task.RESUME, "plan": settings},
        "new processes start with settings {settings}, and resume",
        each="settings",
        external=True,
    ),
    Row(
        "rewind",
        {"task": {Task.RESUME}, "named": {None}},
        lambda folder, step: {"named": step} if step in complete(folder) else None,
        "the caller names step {step} to load",
        each="step",
        external=True,
    ),
    # -- faults --
    Row(
        "kill",
        {"hook": ALIVE},
        after_kill,
        "every rank is killed",
        external=True,
    ),
    Row(
        "lose rank",
        {"hook": ALIVE - {Hook.RANK_LOST}},
        after_lost_rank,
        "a rank other than rank 0 is killed, and the others are notified",
        external=True,
    ),
    Row(
        "full",
        {"hook": ALIVE - {Hook.RANK_LOST}, "flight": {Flight.WRITING}},
        _failed,
        "the disk is full: a write of step {saving.step} fails",
        external=True,
    ),
    Row(
        "fail to remove",
        {},
        after_failed_removal,
        "a file can't be removed; to be tried again: {new.unremoved}",
        external=True,
    ),
    Row(
        "lose record",
        {"hook": {Hook.DOWN}},
        after_lost_record,
        "somebody removes the record of step {step}",
        each="step",
        external=True,
    ),
)
"""The callback first, then what goes on beside it, then the loop, then faults."""


# -- how much of it is searched ----------------------------------------------------------

PLANS = (
    Plan(save_interval=3, ephemeral_save_interval=1),
    Plan(save_interval=None, ephemeral_save_interval=2, fixed_steps=frozenset({1})),
)
"""The settings that a process may start with. Each calls a step permanent that the other one does not."""


@dataclass(frozen=True)
class Setting:
    """What does not change from process to process in one search."""

    is_async: bool
    limit: int | None

    def __str__(self) -> str:
        return f"{'async' if self.is_async else 'sync'}, max_checkpoints={self.limit}"


@dataclass(frozen=True)
class Scope:
    """How far the search goes. Kills, lost ranks, full disks, rewinds and changed settings are not limited."""

    steps: int = 3
    ranks: int = 4
    limits: tuple[int | None, ...] = (None, 1, 2)
    modes: tuple[bool, ...] = (False, True)
    """Whether saves are asynchronous."""
    accidents: int = 1
    """How often somebody else removes a file."""

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Every configuration; each is searched by itself."""
        return tuple(Setting(is_async, limit) for is_async in self.modes for limit in self.limits)


FULL = Scope()
SMALL = Scope(ranks=2, limits=(1,))


def start(scope: Scope) -> State:
    """Return the state in which nothing is saved and no process runs."""
    return State(
        hook=Hook.DOWN,
        task=Task.NONE,
        plan=0,
        named=None,
        resumed=None,
        now=0,
        flight=Flight.NONE,
        saving=None,
        staged=None,
        folder=(None,) * (scope.steps + 1),
        hidden=(),
        is_saved=False,
        ephemerals=NOTHING,
        permanents=NOTHING,
        debris=NOTHING,
        scheduled=NOTHING,
        removing=NOTHING,
        unremoved=NOTHING,
        error=False,
        own=NOTHING,
        protected=NOTHING,
        owed=NOTHING,
        has_raised=False,
        overlaps=False,
        failures=FAILURES,
        accidents=scope.accidents,
    )


def constants(scope: Scope, setting: Setting) -> Mapping[str, Hashable]:
    """Return what effects and invariants read besides the fields of a state."""
    return {
        "is_async": setting.is_async,
        "limit": setting.limit,
        "steps": scope.steps,
        "ranks": scope.ranks,
        "plans": PLANS,
    }


def ranges(scope: Scope) -> Mapping[str, range]:
    """Return the values that the `each` of a row takes."""
    return {"settings": range(len(PLANS)), "step": range(scope.steps + 1)}


def is_idle(task: Task) -> bool:
    """Return whether no hook is in progress, so that nobody waits for anything."""
    return task is Task.NONE
