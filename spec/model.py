"""The whole manager as one table: every order of saving, flushing, deleting, dying and coming back.

The chapters say what has to hold; `TABLE` is a protocol of which it does hold, and
`forge_spec.explore` visits all that it can do in a scope: several ranks and
pipeline stages, a kill between any two of its rows, in a recovery too, any
number of times; a rank that is lost; a full disk; a rewind; the same step saved
again by another run; a `latest` that somebody lost, and a file.  Every state is
what a reader finds who looks at that moment, so nobody has to be modelled
looking.

How a checkpoint comes to stand: it is put together under a hidden name, train
state and metadata first; each rank writes its shard; a stage whose shards are
all there writes its marker; when every stage has, one rename (an exchange, over
an older one) publishes it, one more points `latest` at it, and then the oldest
leave, each hidden by a rename before it is deleted.  Whatever needs room is
written before the publish; after it only names change.

Contents are generations: which save of its step wrote a file, numbered from 1;
`ABSENT` for none yet, `LOST` for one that somebody took away.  The ranks of a
stage are interchangeable, so their shards are kept sorted; so are steps without
a save in between, so training goes from one step of a save to the next.

`vouched`, `pending` and `owed` are no part of the manager: they remember what
has been promised so far.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import count
from typing import NamedTuple

from forge_spec import layout, resume, retention
from forge_spec.machine import Changes, Row

ABSENT, LOST = 0, -1
"""What stands for the generation of a file that is not there."""


class Job(Enum):
    """What the processes of the run are doing, as their caller sees it."""

    DOWN = "dead"
    RESUMING = "started, and about to look for a checkpoint"
    LOADING = "told what to load"
    TRAINING = "training"
    CALLING = "in `save`, before it has begun its own"
    SAVING = "in `save`, with its own under way"
    WAITING = "in `wait`"
    CUT = "without one of the ranks, and about to end"


class Flight(Enum):
    """How far the save in flight has come."""

    NONE = "nothing is in flight"
    STAGED = "its hidden directory is there"
    FLUSHING = "shards and markers are being written"
    PUBLISHED = "it has its own name"
    COMMITTED = "`latest` names it, and what earlier runs left hidden is leaving"
    RETIRING = "what the limit does not spare is leaving"
    DONE = "ended; the next call returns"
    FAILING = "failed, and its directory is still there"
    FAILED = "failed; the next call raises"


class Save(NamedTuple):
    """One save of a step: no two of a step that can be mistaken for one another have the same generation."""

    step: int
    generation: int

    @property
    def told(self) -> str:
        """For a story."""
        return f"step {self.step}" if self.step else "nothing"


class Part(NamedTuple):
    """What one stage has in a checkpoint's directory."""

    shards: tuple[int, ...]
    marker: int


class Directory(NamedTuple):
    """A checkpoint's directory: of which generation each file is."""

    parts: tuple[Part, ...]
    train_state: int = ABSENT
    metadata: int = ABSENT


class Landed(NamedTuple):
    """What one stage has loaded."""

    step: int
    generations: frozenset[int]

    @property
    def told(self) -> str:
        """For a story."""
        return f"step {self.step}" if self.step else "nothing"


Folder = tuple[Directory | None, ...]
"""The directories of the steps 1, 2, ..."""

FRESH = Save(0, ABSENT)
"""Nothing to load: the run begins at step 0."""
UNKNOWN = Save(0, LOST)
"""Nobody can be held to a promise about a folder that somebody else has changed."""


class State(NamedTuple):
    """Everything at one moment: the job, the save in flight, the disk, the resume, and what is remembered.

    What is over is forgotten (a killed job stands at no step), so that states are the same that go on the same.
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
    debris: tuple[int, ...]
    """The steps of all other hidden directories, sorted."""
    doomed: frozenset[int]
    """The steps that are to leave after this commit."""
    named: int
    """The step whose path the caller named for this resume; 0 for none."""
    target: Save | None
    """What rank 0 told the others to load."""
    landed: tuple[Landed | None, ...]
    """What each stage has loaded so far."""
    vouched: Save | None
    """The last save that a returned call, or a resume, said was committed."""
    pending: tuple[Save, ...]
    """Saves begun since, and not failed, in order."""
    owed: frozenset[int]
    """The steps that no deletion has been allowed to take."""
    peak: int
    """The highest step that this run has pointed `latest` at."""
    accidents: int
    """How many more things may go missing that the manager did not touch."""


# -- what a state says, in the words of the chapters ------------------------------


def at(folder: Folder, step: int) -> Directory | None:
    """The directory of a step; there is none of step 0."""
    return folder[step - 1] if step else None


def put(folder: Folder, step: int, directory: Directory | None) -> Folder:
    """The folder with another directory, or none, for that step."""
    return (*folder[: step - 1], directory, *folder[step:])


def is_complete(directory: Directory | None) -> bool:
    """Whether a reader finds every file there that the layout requires."""
    if directory is None:
        return False
    stages = len(directory.parts)
    *markers, train_state, metadata = layout.required(stages)
    found = [*(part.marker for part in directory.parts), directory.train_state, directory.metadata]
    names = [*markers, train_state, metadata]
    return layout.is_complete([name for name, number in zip(names, found, strict=True) if number > 0], stages)


def complete(folder: Folder) -> frozenset[int]:
    """The steps whose directories are complete."""
    return frozenset(step for step, directory in enumerate(folder, start=1) if is_complete(directory))


def torn(folder: Folder) -> frozenset[int]:
    """The steps whose directories are not."""
    return frozenset(step for step, directory in enumerate(folder, start=1) if directory) - complete(folder)


def generations(directory: Directory | None) -> frozenset[int]:
    """Of which saves there are files in it."""
    if directory is None:
        return frozenset()
    files = [directory.train_state, directory.metadata]
    for part in directory.parts:
        files += [*part.shards, part.marker]
    return frozenset(files) - {ABSENT, LOST}


def resume_point(folder: Folder, latest: int) -> Save | None:
    """The save that an auto-resume has to land on now; None for a fresh start."""
    (landing,) = resume.may_land_on(complete(folder), latest or None)
    directory = at(folder, landing or 0)
    return None if landing is None or directory is None else Save(landing, directory.train_state)


def leaving(folder: Folder, committed: int, keep: int) -> frozenset[int]:
    """What goes after a commit: all but the survivors, and torn ones not above it."""
    return complete(folder) - survivors(folder, committed, keep) | {step for step in torn(folder) if step < committed}


def survivors(folder: Folder, committed: int, keep: int) -> frozenset[int]:
    """The complete steps that a commit leaves standing, as the chapter on retention says."""
    whole = complete(folder)
    return retention.survivors(retention.Folder(whole, torn(folder), latest=committed, committed=committed), keep)


def blank(stages: int, replicas: int) -> Directory:
    """A directory in which nothing has been written."""
    return Directory((Part((ABSENT,) * replicas, ABSENT),) * stages)


def with_part(directory: Directory, stage: int, part: Part) -> Directory:
    """The directory with something else from that stage."""
    return directory._replace(parts=(*directory.parts[:stage], part, *directory.parts[stage + 1 :]))


def _without(debris: tuple[int, ...], step: int) -> tuple[int, ...]:
    return tuple(other for other in debris if other != step)


def _and(debris: tuple[int, ...], step: int) -> tuple[int, ...]:
    return tuple(sorted((*debris, step)))


# -- effects: what each row changes, or None where it can't be taken ----------------


def after_stage(
    now: int,
    folder: Folder,
    debris: tuple[int, ...],
    vouched: Save | None,
    pending: tuple[Save, ...],
    stages: int,
    replicas: int,
) -> Changes:
    """What a dead run left under the hidden name of this step is deleted first."""
    known = {save.generation for save in (vouched, *pending) if save and save.step == now}
    known |= generations(at(folder, now))
    saving = Save(now, next(number for number in count(1) if number not in known))
    return {
        "job": Job.SAVING,
        "flight": Flight.STAGED,
        "saving": saving,
        "staged": blank(stages, replicas),
        "debris": _without(debris, now),
        "pending": (*pending, saving),
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
    saving: Save, staged: Directory, folder: Folder, debris: tuple[int, ...], owed: frozenset[int]
) -> Changes | None:
    """What stood there before has the hidden name then."""
    if not all(part.marker for part in staged.parts):
        return None
    published = put(folder, saving.step, staged)
    return {
        "flight": Flight.PUBLISHED,
        "staged": None,
        "folder": published,
        "debris": _and(debris, saving.step) if at(folder, saving.step) else debris,
        "owed": owed | complete(published) & {saving.step},
    }


def after_point(saving: Save, folder: Folder, owed: frozenset[int], peak: int, keep: int) -> Changes:
    """With the commit, and no earlier, what it pushes out is not owed any more."""
    return {
        "flight": Flight.COMMITTED,
        "latest": saving.step,
        "peak": max(peak, saving.step),
        "owed": owed & survivors(folder, saving.step, keep),
    }


def after_choice(saving: Save, folder: Folder, debris: tuple[int, ...], keep: int) -> Changes | None:
    return None if debris else {"flight": Flight.RETIRING, "doomed": leaving(folder, saving.step, keep)}


def after_hide(folder: Folder, debris: tuple[int, ...], doomed: frozenset[int]) -> Changes | None:
    if debris or not doomed:
        return None
    oldest = min(doomed)
    return {"folder": put(folder, oldest, None), "debris": (oldest,), "doomed": doomed - {oldest}}


def after_return(saving: Save) -> Changes:
    return {"job": Job.TRAINING, "flight": Flight.NONE, "saving": None, "vouched": saving, "pending": ()}


def after_early_return(saving: Save, vouched: Save | None, pending: tuple[Save, ...]) -> Changes:
    """It vouches for the save before its own."""
    before = [vouched, *(save for save in pending if save != saving)]
    return {
        "job": Job.TRAINING,
        "vouched": before[-1],
        "pending": tuple(save for save in pending if save == saving),
    }


def after_raise(job: Job, vouched: Save | None, pending: tuple[Save, ...], is_async: bool) -> Changes | None:
    """A save that has failed is not pending any more; what is, was committed before it began."""
    if is_async and job is Job.SAVING:
        return None
    before = [vouched, *pending]
    return {"job": Job.TRAINING, "flight": Flight.NONE, "saving": None, "vouched": before[-1], "pending": ()}


def after_full_disk(
    job: Job, flight: Flight, saving: Save, pending: tuple[Save, ...], stages: int, replicas: int
) -> Changes:
    """Before its flush has begun, a failure is raised by the save's own call."""
    raises = Job.CALLING if flight is Flight.STAGED else job
    return {"job": raises, **_failing(saving, pending, stages, replicas)}


def _failing(saving: Save, pending: tuple[Save, ...], stages: int, replicas: int) -> dict[str, Hashable]:
    """What it had written by then nobody will look at, so it makes no difference between states."""
    others = tuple(save for save in pending if save != saving)
    return {"flight": Flight.FAILING, "staged": blank(stages, replicas), "pending": others}


def after_lost_rank(
    flight: Flight, saving: Save, pending: tuple[Save, ...], stages: int, replicas: int
) -> Changes | None:
    """Before all have told rank 0 that they have written, the save fails with it; after that rank 0 goes on alone."""
    if stages * replicas == 1:
        return None
    cut = {"job": Job.CUT, "now": 0, "named": 0, "target": None, "landed": (None,) * stages}
    is_writing = flight in (Flight.STAGED, Flight.FLUSHING)
    return {**cut, **_failing(saving, pending, stages, replicas)} if is_writing else cut


def after_kill(saving: Save | None, staged: Directory | None, debris: tuple[int, ...], stages: int) -> Changes:
    return {
        "job": Job.DOWN,
        "now": 0,
        "flight": Flight.NONE,
        "saving": None,
        "staged": None,
        "debris": _and(debris, saving.step) if saving and staged else debris,
        "doomed": frozenset(),
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
    """What an auto-resume would land on is vouched for from now on, even if the caller named another."""
    if None in landed:
        return None
    return {
        "job": Job.TRAINING,
        "now": target.step,
        "named": 0,
        "target": None,
        "landed": (None,) * stages,
        "vouched": resume_point(folder, latest),
        "pending": (),
    }


def after_lost_latest(latest: int, accidents: int) -> Changes | None:
    return {"latest": 0, **_accident(accidents)} if latest and accidents else None


def after_lost_marker(folder: Folder, owed: frozenset[int], accidents: int, step: int) -> Changes | None:
    """The last stage's, so that the stages before it look complete."""
    found = at(folder, step)
    if not accidents or found is None or not is_complete(found):
        return None
    last = len(found.parts) - 1
    damaged = with_part(found, last, found.parts[last]._replace(marker=LOST))
    return {"folder": put(folder, step, damaged), "owed": owed - {step}, **_accident(accidents)}


def after_lost_train_state(folder: Folder, owed: frozenset[int], accidents: int, step: int) -> Changes | None:
    found = at(folder, step)
    if not accidents or found is None or not is_complete(found):
        return None
    return {
        "folder": put(folder, step, found._replace(train_state=LOST)),
        "owed": owed - {step},
        **_accident(accidents),
    }


def _accident(accidents: int) -> Mapping[str, Hashable]:
    return {"accidents": accidents - 1, "vouched": UNKNOWN, "pending": ()}


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
        lambda saving, vouched, pending, is_async: after_early_return(saving, vouched, pending) if is_async else None,
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
        lambda debris: {"debris": debris[1:]} if debris else None,
        "rank 0 deletes what is hidden of step {debris[0]}",
    ),
    Row(
        "choose",
        {"flight": {Flight.COMMITTED}},
        after_choice,
        "rank 0 looks which steps leave now",
    ),
    Row(
        "hide",
        {"flight": {Flight.RETIRING}},
        after_hide,
        "rank 0 hides step {new.debris[0]}, to delete it",
    ),
    Row(
        "end",
        {"flight": {Flight.RETIRING}},
        lambda debris, doomed: None if debris or doomed else {"flight": Flight.DONE},
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
    # -- the manager, coming back --
    Row(
        "resolve",
        {"job": {Job.RESUMING}},
        after_resolve,
        "rank 0 looks at the folder, and tells all ranks to load {new.target.told}",
    ),
    Row(
        "load",
        {"job": {Job.LOADING}},
        after_load,
        "stage {stage} loads {new.landed[stage].told}",
        each="stage",
    ),
    Row(
        "go on",
        {"job": {Job.LOADING}},
        after_going_on,
        "the run goes on from step {target.step}",
    ),
    # -- its caller --
    Row(
        "train",
        {"job": {Job.TRAINING}},
        lambda now, steps: {"now": now + 1} if now < steps else None,
        "training goes on to step {new.now}",
        world=True,
    ),
    Row(
        "save",
        {"job": {Job.TRAINING}},
        lambda now: {"job": Job.CALLING} if now else None,
        "`save` is called at step {now}",
        world=True,
    ),
    Row(
        "wait",
        {"job": {Job.TRAINING}, "flight": frozenset(Flight) - {Flight.NONE}},
        lambda: {"job": Job.WAITING},
        "`wait` is called",
        world=True,
    ),
    Row(
        "start",
        {"job": {Job.DOWN}},
        lambda: {"job": Job.RESUMING},
        "new processes start, and resume",
        world=True,
    ),
    Row(
        "rewind",
        {"job": {Job.DOWN}},
        after_rewind,
        "new processes start, and the caller names step {step} to load",
        each="step",
        world=True,
    ),
    # -- what happens to it --
    Row(
        "kill",
        {"job": ALIVE},
        after_kill,
        "every rank is killed",
        world=True,
    ),
    Row(
        "lose rank",
        {"job": ALIVE - {Job.CUT}},
        after_lost_rank,
        "a rank other than rank 0 dies, and the others hear of it",
        world=True,
    ),
    Row(
        "full",
        {"job": ALIVE - {Job.CUT}, "flight": {Flight.STAGED, Flight.FLUSHING}},
        after_full_disk,
        "the disk is full: a write of step {saving.step} fails",
        world=True,
    ),
    Row(
        "lose latest",
        {"job": {Job.DOWN}},
        after_lost_latest,
        "`latest` gets lost",
        world=True,
    ),
    Row(
        "lose marker",
        {"job": {Job.DOWN}},
        after_lost_marker,
        "the last stage's marker of step {step} gets lost",
        each="step",
        world=True,
    ),
    Row(
        "lose train state",
        {"job": {Job.DOWN}},
        after_lost_train_state,
        "train_state.pt of step {step} gets lost",
        each="step",
        world=True,
    ),
)
"""The protocol first, then its caller, then what happens to it.  Rank 0's death is a kill: it alone touches names."""


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
    """How far the search goes.  Kills, lost ranks, full disks, rewinds and re-saves are not counted: any number."""

    steps: int = 3
    stages: int = 2
    replicas: int = 2
    """Ranks of one stage."""
    keep: tuple[int, ...] = (1, 2)
    modes: tuple[bool, ...] = (False, True)
    """Whether saves are asynchronous."""
    accidents: int = 1
    """How often something gets lost that the manager did not touch."""

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Every configuration; each is searched for itself."""
        return tuple(Setting(is_async, keep) for is_async in self.modes for keep in self.keep)


FULL = Scope()
SMALL = Scope(steps=2, replicas=1)
