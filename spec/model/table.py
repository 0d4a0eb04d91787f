"""The protocol: a whole manager as one table, with every order of saves, deletions, kills and resumes.

The chapters say what has to hold. `TABLE` is a protocol for which it holds, and `forge_spec.model.explore` visits all
that it can do in a scope: several ranks and pipeline stages; a kill between any two rows, also during a resume, any
number of times; a lost rank; a full disk; a rewind; the same step saved again by another process; a `latest` and a file
that somebody removed. Every state is what a reader finds at that moment, so readers need no rows.

A checkpoint is put together under a hidden name, train state and metadata first. Each rank writes its shard. A stage
whose shards are all there writes its marker. When every stage has, one rename (an exchange, over an older checkpoint)
publishes the directory, and one more points `latest` at it. Then the oldest checkpoints are deleted, each hidden by a
rename first. Whatever needs space on the disk is written before the publish; after it only names change.

The content of a file is a generation: the number of the save of its step that wrote it, from 1. `ABSENT` means not
written yet, `LOST` that somebody removed it. The ranks of a stage are interchangeable, so their shards are kept sorted.
Steps without a save in between are interchangeable too, so training goes from one step that may be saved to the next.

`acknowledged`, `begun` and `protected` are not part of the manager: they record what was promised so far.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import count
from typing import NamedTuple

from forge_spec import layout, resume, retention
from forge_spec.model.machine import Changes, Row

ABSENT, LOST = 0, -1
"""In place of the generation of a file that is not there."""


class Job(Enum):
    """What the processes of the run are doing, as their caller sees it."""

    DOWN = "not running"
    RESUMING = "started, and about to choose a checkpoint"
    LOADING = "loading the checkpoint that was chosen"
    TRAINING = "training"
    CALLING = "in `save`, before its own save has begun"
    SAVING = "in `save`, with its own save in progress"
    WAITING = "in `wait`"
    RANK_LOST = "without one of the ranks, and about to end"


class Flight(Enum):
    """How far the save in flight has come."""

    NONE = "nothing is in flight"
    STAGED = "its hidden directory is there"
    FLUSHING = "shards and markers are being written"
    PUBLISHED = "it has its own name"
    COMMITTED = "`latest` names it, and hidden directories of earlier processes are being deleted"
    RETIRING = "checkpoints beyond the limit are being deleted"
    DONE = "ended; the next call returns"
    FAILING = "failed, and its directory is still there"
    FAILED = "failed; the next call raises"


class Save(NamedTuple):
    """One save of a step. Two saves of a step that could be mistaken for one another have different generations."""

    step: int
    generation: int

    @property
    def text(self) -> str:
        """For a sentence."""
        return f"step {self.step}" if self.step else "a fresh start"


class Part(NamedTuple):
    """The files of one stage in a checkpoint's directory."""

    shards: tuple[int, ...]
    marker: int


class Directory(NamedTuple):
    """A checkpoint's directory: the generation of each file."""

    parts: tuple[Part, ...]
    train_state: int = ABSENT
    metadata: int = ABSENT


class Landed(NamedTuple):
    """What one stage has loaded."""

    step: int
    generations: frozenset[int]

    @property
    def text(self) -> str:
        """For a sentence."""
        return f"step {self.step}" if self.step else "nothing"


Folder = tuple[Directory | None, ...]
"""The directories of the steps 1, 2, ..."""

FRESH = Save(0, ABSENT)
"""Nothing to load: the run starts at step 0."""
UNKNOWN = Save(0, LOST)
"""No promise holds about a folder that somebody else has changed."""


class State(NamedTuple):
    """Everything at one moment: the job, the save in flight, the disk, the resume, and what was promised.

    What no longer matters is reset (a killed job has no step), so that states with the same future are equal.
    """

    job: Job
    now: int
    """The training step."""
    flight: Flight
    saving: Save | None
    staged: Directory | None
    """The hidden directory of the save in flight."""
    folder: Folder
    latest: int
    """The step that `latest` names; 0 if it is missing."""
    hidden: tuple[int, ...]
    """The steps of all other hidden directories, sorted."""
    to_delete: frozenset[int]
    """The steps that are to be deleted after this commit."""
    named: int
    """The step whose path the caller named for this resume; 0 for none."""
    target: Save | None
    """The save that rank 0 has chosen for all ranks to load."""
    landed: tuple[Landed | None, ...]
    """What each stage has loaded so far."""
    acknowledged: Save | None
    """The last save whose commit a call, or a resume, promised by returning."""
    begun: tuple[Save, ...]
    """The saves that began since and have not failed, in order."""
    protected: frozenset[int]
    """The steps that no deletion was allowed to remove."""
    peak: int
    """The highest step that this run has pointed `latest` at."""
    accidents: int
    """How many more files may be removed by somebody else."""


# -- what a state means, in terms of the chapters ---------------------------------


def at(folder: Folder, step: int) -> Directory | None:
    """Return the directory of a step; step 0 has none."""
    return folder[step - 1] if step else None


def put(folder: Folder, step: int, directory: Directory | None) -> Folder:
    """Return the folder with another directory, or none, for that step."""
    return (*folder[: step - 1], directory, *folder[step:])


def is_complete(directory: Directory | None) -> bool:
    """Return whether a reader finds every file there that the layout requires."""
    if directory is None:
        return False
    stages = len(directory.parts)
    *markers, train_state, metadata = layout.required(stages)
    found = [*(part.marker for part in directory.parts), directory.train_state, directory.metadata]
    names = [*markers, train_state, metadata]
    return layout.is_complete([name for name, number in zip(names, found, strict=True) if number > 0], stages)


def complete(folder: Folder) -> frozenset[int]:
    """Return the steps whose directories are complete."""
    return frozenset(step for step, directory in enumerate(folder, start=1) if is_complete(directory))


def torn(folder: Folder) -> frozenset[int]:
    """Return the steps whose directories are torn."""
    return frozenset(step for step, directory in enumerate(folder, start=1) if directory) - complete(folder)


def generations(directory: Directory | None) -> frozenset[int]:
    """Return the generations of the files in a directory."""
    if directory is None:
        return frozenset()
    files = [directory.train_state, directory.metadata]
    for part in directory.parts:
        files += [*part.shards, part.marker]
    return frozenset(files) - {ABSENT, LOST}


def resume_point(folder: Folder, latest: int) -> Save | None:
    """Return the save that an auto-resume has to land on now; None for a fresh start."""
    (landing,) = resume.may_land_on(complete(folder), latest or None)
    directory = at(folder, landing or 0)
    return None if landing is None or directory is None else Save(landing, directory.train_state)


def leaving(folder: Folder, committed: int, keep: int) -> frozenset[int]:
    """Return the steps to delete after a commit: complete ones that do not survive it, and torn ones below it."""
    return complete(folder) - survivors(folder, committed, keep) | {step for step in torn(folder) if step < committed}


def survivors(folder: Folder, committed: int, keep: int) -> frozenset[int]:
    """Return the complete steps that are left after a commit, by the chapter `retention`."""
    whole = complete(folder)
    return retention.survivors(retention.Folder(whole, torn(folder), latest=committed, committed=committed), keep)


def blank(stages: int, replicas: int) -> Directory:
    """Return a directory in which nothing has been written."""
    return Directory((Part((ABSENT,) * replicas, ABSENT),) * stages)


def with_part(directory: Directory, stage: int, part: Part) -> Directory:
    """Return the directory with another part of that stage."""
    return directory._replace(parts=(*directory.parts[:stage], part, *directory.parts[stage + 1 :]))


def _without(hidden: tuple[int, ...], step: int) -> tuple[int, ...]:
    return tuple(other for other in hidden if other != step)


def _and(hidden: tuple[int, ...], step: int) -> tuple[int, ...]:
    return tuple(sorted((*hidden, step)))


# -- effects: what each row changes, or None where it can't be taken ----------------


def after_stage(
    now: int,
    folder: Folder,
    hidden: tuple[int, ...],
    acknowledged: Save | None,
    begun: tuple[Save, ...],
    stages: int,
    replicas: int,
) -> Changes:
    """Deletes first what a killed process left under the hidden name of this step."""
    known = {save.generation for save in (acknowledged, *begun) if save and save.step == now}
    known |= generations(at(folder, now))
    saving = Save(now, next(number for number in count(1) if number not in known))
    return {
        "job": Job.SAVING,
        "flight": Flight.STAGED,
        "saving": saving,
        "staged": blank(stages, replicas),
        "hidden": _without(hidden, now),
        "begun": (*begun, saving),
    }


def after_describe(saving: Save, staged: Directory) -> Changes:
    described = staged._replace(train_state=saving.generation, metadata=saving.generation)
    return {"flight": Flight.FLUSHING, "staged": described}


def after_shard(saving: Save, staged: Directory, stage: int) -> Changes | None:
    part = staged.parts[stage]
    if ABSENT not in part.shards:
        return None
    written = part._replace(shards=tuple(sorted((*part.shards[1:], saving.generation))))
    return {"staged": with_part(staged, stage, written)}


def after_marker(saving: Save, staged: Directory, stage: int) -> Changes | None:
    part = staged.parts[stage]
    if ABSENT in part.shards or part.marker:
        return None
    return {"staged": with_part(staged, stage, part._replace(marker=saving.generation))}


def after_publish(
    saving: Save, staged: Directory, folder: Folder, hidden: tuple[int, ...], protected: frozenset[int]
) -> Changes | None:
    """The older directory of the step gets the hidden name."""
    if not all(part.marker for part in staged.parts):
        return None
    published = put(folder, saving.step, staged)
    return {
        "flight": Flight.PUBLISHED,
        "staged": None,
        "folder": published,
        "hidden": _and(hidden, saving.step) if at(folder, saving.step) else hidden,
        "protected": protected | complete(published) & {saving.step},
    }


def after_point(saving: Save, folder: Folder, protected: frozenset[int], peak: int, keep: int) -> Changes:
    """From the commit on, and no earlier, the checkpoints beyond the limit are not protected any more."""
    return {
        "flight": Flight.COMMITTED,
        "latest": saving.step,
        "peak": max(peak, saving.step),
        "protected": protected & survivors(folder, saving.step, keep),
    }


def after_choice(saving: Save, folder: Folder, hidden: tuple[int, ...], keep: int) -> Changes | None:
    return None if hidden else {"flight": Flight.RETIRING, "to_delete": leaving(folder, saving.step, keep)}


def after_hide(folder: Folder, hidden: tuple[int, ...], to_delete: frozenset[int]) -> Changes | None:
    if hidden or not to_delete:
        return None
    oldest = min(to_delete)
    return {"folder": put(folder, oldest, None), "hidden": (oldest,), "to_delete": to_delete - {oldest}}


def after_return(saving: Save) -> Changes:
    return {"job": Job.TRAINING, "flight": Flight.NONE, "saving": None, "acknowledged": saving, "begun": ()}


def after_early_return(saving: Save, acknowledged: Save | None, begun: tuple[Save, ...]) -> Changes:
    """Acknowledges the save before its own."""
    before = [acknowledged, *(save for save in begun if save != saving)]
    return {
        "job": Job.TRAINING,
        "acknowledged": before[-1],
        "begun": tuple(save for save in begun if save == saving),
    }


def after_raise(job: Job, acknowledged: Save | None, begun: tuple[Save, ...], is_async: bool) -> Changes | None:
    """A failed save does not count as begun any more; those that do were committed before it began."""
    if is_async and job is Job.SAVING:
        return None
    before = [acknowledged, *begun]
    return {"job": Job.TRAINING, "flight": Flight.NONE, "saving": None, "acknowledged": before[-1], "begun": ()}


def after_full_disk(
    job: Job, flight: Flight, saving: Save, begun: tuple[Save, ...], stages: int, replicas: int
) -> Changes:
    """A failure before the flush has begun is raised by the save's own call."""
    raises = Job.CALLING if flight is Flight.STAGED else job
    return {"job": raises, **_failing(saving, begun, stages, replicas)}


def _failing(saving: Save, begun: tuple[Save, ...], stages: int, replicas: int) -> dict[str, Hashable]:
    """Nobody reads what the failed save had written, so it makes no difference between states."""
    others = tuple(save for save in begun if save != saving)
    return {"flight": Flight.FAILING, "staged": blank(stages, replicas), "begun": others}


def after_lost_rank(
    flight: Flight, saving: Save, begun: tuple[Save, ...], stages: int, replicas: int
) -> Changes | None:
    """The save fails until all ranks have reported to rank 0 that they wrote; after that rank 0 goes on alone."""
    if stages * replicas == 1:
        return None
    cut = {"job": Job.RANK_LOST, "now": 0, "named": 0, "target": None, "landed": (None,) * stages}
    is_writing = flight in (Flight.STAGED, Flight.FLUSHING)
    return {**cut, **_failing(saving, begun, stages, replicas)} if is_writing else cut


def after_kill(saving: Save | None, staged: Directory | None, hidden: tuple[int, ...], stages: int) -> Changes:
    return {
        "job": Job.DOWN,
        "now": 0,
        "flight": Flight.NONE,
        "saving": None,
        "staged": None,
        "hidden": _and(hidden, saving.step) if saving and staged else hidden,
        "to_delete": frozenset(),
        "named": 0,
        "target": None,
        "landed": (None,) * stages,
        "peak": 0,
    }


def after_rewind(folder: Folder, step: int) -> Changes | None:
    return {"job": Job.RESUMING, "named": step} if is_complete(at(folder, step)) else None


def after_resolve(folder: Folder, latest: int, named: int) -> Changes:
    found = at(folder, named)
    target = Save(named, found.train_state) if found else resume_point(folder, latest)
    return {"job": Job.LOADING, "target": target or FRESH}


def after_load(folder: Folder, target: Save, landed: tuple[Landed | None, ...], stage: int) -> Changes | None:
    return after_landing(folder, target.step, landed, stage)


def after_landing(folder: Folder, step: int, landed: tuple[Landed | None, ...], stage: int) -> Changes | None:
    if landed[stage] is not None:
        return None
    directory = at(folder, step)
    found = frozenset(directory.parts[stage].shards) if directory else frozenset()
    return {"landed": (*landed[:stage], Landed(step, found), *landed[stage + 1 :])}


def after_going_on(
    target: Save, landed: tuple[Landed | None, ...], folder: Folder, latest: int, stages: int
) -> Changes | None:
    """Acknowledges the resume point, even if the caller named another checkpoint."""
    if None in landed:
        return None
    return {
        "job": Job.TRAINING,
        "now": target.step,
        "named": 0,
        "target": None,
        "landed": (None,) * stages,
        "acknowledged": resume_point(folder, latest),
        "begun": (),
    }


def after_lost_latest(latest: int, accidents: int) -> Changes | None:
    return {"latest": 0, **_accident(accidents)} if latest and accidents else None


def after_lost_marker(folder: Folder, protected: frozenset[int], accidents: int, step: int) -> Changes | None:
    """Removes the last stage's marker, so that the stages before it look complete."""
    found = at(folder, step)
    if not accidents or found is None or not is_complete(found):
        return None
    last = len(found.parts) - 1
    damaged = with_part(found, last, found.parts[last]._replace(marker=LOST))
    return {"folder": put(folder, step, damaged), "protected": protected - {step}, **_accident(accidents)}


def after_lost_train_state(folder: Folder, protected: frozenset[int], accidents: int, step: int) -> Changes | None:
    found = at(folder, step)
    if not accidents or found is None or not is_complete(found):
        return None
    return {
        "folder": put(folder, step, found._replace(train_state=LOST)),
        "protected": protected - {step},
        **_accident(accidents),
    }


def _accident(accidents: int) -> Mapping[str, Hashable]:
    return {"accidents": accidents - 1, "acknowledged": UNKNOWN, "begun": ()}


# -- the table ------------------------------------------------------------------------

ALIVE = frozenset(Job) - {Job.DOWN}
IN_CALL = frozenset({Job.CALLING, Job.SAVING, Job.WAITING})
DISPATCHED = frozenset(Flight) - {Flight.NONE, Flight.STAGED}

TABLE: tuple[Row, ...] = (
    # -- the manager, in the order of a save --
    Row(
        "stage",
        {"job": {Job.CALLING}, "flight": {Flight.NONE, Flight.DONE}},
        after_stage,
        "rank 0 makes a hidden directory for step {now}",
    ),
    Row(
        "describe",
        {"flight": {Flight.STAGED}},
        after_describe,
        "rank 0 writes train_state.pt and metadata.json of step {saving.step} there",
    ),
    Row(
        "return early",
        {"job": {Job.SAVING}, "flight": DISPATCHED},
        lambda saving, acknowledged, begun, is_async: (
            after_early_return(saving, acknowledged, begun) if is_async else None
        ),
        "`save` of step {saving.step} returns, and its flush goes on",
    ),
    Row(
        "shard",
        {"flight": {Flight.FLUSHING}},
        after_shard,
        "a rank of stage {stage} writes its shard of step {saving.step}",
        each="stage",
    ),
    Row(
        "marker",
        {"flight": {Flight.FLUSHING}},
        after_marker,
        "stage {stage} has all its shards and writes its marker of step {saving.step}",
        each="stage",
    ),
    Row(
        "publish",
        {"flight": {Flight.FLUSHING}},
        after_publish,
        "all stages have written, and rank 0 gives the directory its name, step_{saving.step}",
    ),
    Row(
        "point",
        {"flight": {Flight.PUBLISHED}},
        after_point,
        "rank 0 points `latest` at step {saving.step}",
    ),
    Row(
        "delete",
        {"flight": {Flight.COMMITTED, Flight.RETIRING}},
        lambda hidden: {"hidden": hidden[1:]} if hidden else None,
        "rank 0 deletes the hidden directory of step {hidden[0]}",
    ),
    Row(
        "choose",
        {"flight": {Flight.COMMITTED}},
        after_choice,
        "rank 0 chooses which steps to delete",
    ),
    Row(
        "hide",
        {"flight": {Flight.RETIRING}},
        after_hide,
        "rank 0 renames step {new.hidden[0]} to a hidden name, to delete it",
    ),
    Row(
        "end",
        {"flight": {Flight.RETIRING}},
        lambda hidden, to_delete: None if hidden or to_delete else {"flight": Flight.DONE},
        "nothing is left to delete, and the save of step {saving.step} ends",
    ),
    Row(
        "discard",
        {"flight": {Flight.FAILING}},
        lambda: {"flight": Flight.FAILED, "staged": None},
        "rank 0 deletes the hidden directory of step {saving.step}",
    ),
    Row(
        "return",
        {"job": {Job.SAVING}, "flight": {Flight.DONE}},
        lambda saving, is_async: None if is_async else after_return(saving),
        "`save` of step {saving.step} returns",
    ),
    Row(
        "return from wait",
        {"job": {Job.WAITING}, "flight": {Flight.DONE}},
        after_return,
        "`wait` returns: step {saving.step} is committed",
    ),
    Row(
        "raise",
        {"job": IN_CALL, "flight": {Flight.FAILED}},
        after_raise,
        "the call raises: the save of step {saving.step} failed",
    ),
    # -- the manager, in a resume --
    Row(
        "resolve",
        {"job": {Job.RESUMING}},
        after_resolve,
        "rank 0 reads the folder, and chooses {new.target.text} for all ranks",
    ),
    Row(
        "load",
        {"job": {Job.LOADING}},
        after_load,
        "stage {stage} loads {new.landed[stage].text}",
        each="stage",
    ),
    Row(
        "go on",
        {"job": {Job.LOADING}},
        after_going_on,
        "the run goes on from step {target.step}",
    ),
    # -- the caller --
    Row(
        "train",
        {"job": {Job.TRAINING}},
        lambda now, steps: {"now": now + 1} if now < steps else None,
        "training goes on to step {new.now}",
        external=True,
    ),
    Row(
        "save",
        {"job": {Job.TRAINING}},
        lambda now: {"job": Job.CALLING} if now else None,
        "`save` is called at step {now}",
        external=True,
    ),
    Row(
        "wait",
        {"job": {Job.TRAINING}, "flight": frozenset(Flight) - {Flight.NONE}},
        lambda: {"job": Job.WAITING},
        "`wait` is called",
        external=True,
    ),
    Row(
        "start",
        {"job": {Job.DOWN}},
        lambda: {"job": Job.RESUMING},
        "new processes start, and resume",
        external=True,
    ),
    Row(
        "rewind",
        {"job": {Job.DOWN}},
        after_rewind,
        "new processes start, and the caller names step {step} to load",
        each="step",
        external=True,
    ),
    # -- faults --
    Row(
        "kill",
        {"job": ALIVE},
        after_kill,
        "every rank is killed",
        external=True,
    ),
    Row(
        "lose rank",
        {"job": ALIVE - {Job.RANK_LOST}},
        after_lost_rank,
        "a rank other than rank 0 is killed, and the others are notified",
        external=True,
    ),
    Row(
        "full",
        {"job": ALIVE - {Job.RANK_LOST}, "flight": {Flight.STAGED, Flight.FLUSHING}},
        after_full_disk,
        "the disk is full: a write of step {saving.step} fails",
        external=True,
    ),
    Row(
        "lose latest",
        {"job": {Job.DOWN}},
        after_lost_latest,
        "somebody removes `latest`",
        external=True,
    ),
    Row(
        "lose marker",
        {"job": {Job.DOWN}},
        after_lost_marker,
        "somebody removes the last stage's marker of step {step}",
        each="step",
        external=True,
    ),
    Row(
        "lose train state",
        {"job": {Job.DOWN}},
        after_lost_train_state,
        "somebody removes train_state.pt of step {step}",
        each="step",
        external=True,
    ),
)
"""The protocol first, then its caller, then faults. Losing rank 0 is a kill, since rank 0 alone changes names."""


# -- how much of it is searched ----------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """One configuration of the run in the search."""

    is_async: bool
    keep: int

    def __str__(self) -> str:
        return f"{'async' if self.is_async else 'sync'}, keep_last_n={self.keep}"


@dataclass(frozen=True)
class Scope:
    """How far the search goes. Kills, lost ranks, full disks, rewinds and repeated saves are not limited."""

    steps: int = 3
    stages: int = 2
    replicas: int = 2
    """Ranks of one stage."""
    keep: tuple[int, ...] = (1, 2)
    modes: tuple[bool, ...] = (False, True)
    """Whether saves are asynchronous."""
    accidents: int = 1
    """How often somebody else removes a file."""

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Every configuration; each is searched by itself."""
        return tuple(Setting(is_async, keep) for is_async in self.modes for keep in self.keep)


FULL = Scope()
SMALL = Scope(steps=2, replicas=1)


def start(scope: Scope) -> State:
    """Return the state in which nothing is saved and no process runs."""
    return State(
        job=Job.DOWN,
        now=0,
        flight=Flight.NONE,
        saving=None,
        staged=None,
        folder=(None,) * scope.steps,
        latest=0,
        hidden=(),
        to_delete=frozenset(),
        named=0,
        target=None,
        landed=(None,) * scope.stages,
        acknowledged=None,
        begun=(),
        protected=frozenset(),
        peak=0,
        accidents=scope.accidents,
    )


def constants(scope: Scope, setting: Setting) -> Mapping[str, Hashable]:
    """Return what effects and invariants read besides the fields of a state."""
    return {
        "is_async": setting.is_async,
        "keep": setting.keep,
        "steps": scope.steps,
        "stages": scope.stages,
        "replicas": scope.replicas,
    }


def ranges(scope: Scope) -> Mapping[str, range]:
    """Return the values that the `each` of a row takes."""
    return {"stage": range(scope.stages), "step": range(1, scope.steps + 1)}


def is_idle(job: Job) -> bool:
    """Return whether no call and no resume is in progress, so that nobody waits for anything."""
    return job in (Job.DOWN, Job.TRAINING, Job.RANK_LOST)
