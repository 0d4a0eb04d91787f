"""The second design: hooks of the training loop decide, and save permanent and ephemeral checkpoints.

A long job on machines that may be taken away wants two kinds of checkpoints.
*Permanent* ones lie far apart and stay.  *Ephemeral* ones lie close together,
and each stays only until the next one is complete.  The training loop calls
three hooks: before training, after each batch, and after training.  The hook
decides whether a save is due and of which kind, and removes what was replaced.

    before training   at step 0 a permanent checkpoint; then, what earlier runs left is collected
    after a batch     take in the flush that has ended, remove what was replaced, save what is due
    after training    a last permanent checkpoint, everything awaited, everything removed

The folder has no pointer.  A resume takes the highest complete step:

    stepN/model_and_optim/     the shards, with DCP's marker
    stepN/train/rankR.pt       step, scheduler, loader and random streams of rank R
    stepN/.metadata.json       the kind, written last: without it there is no checkpoint

Invariants: nothing is removed before what replaces it is complete; nothing that
was saved as permanent is ever taken for ephemeral; and a directory that is
complete by its names can be loaded, at every instant.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from forge_spec.clauses import Clause, Level

_HOOKS = frozenset({"ephemeral"})
_FLUSHING = frozenset({"ephemeral", "async"})
_FIXED = frozenset({"ephemeral", "fixed-steps"})
_COOLDOWN = frozenset({"ephemeral", "cooldown"})
_LIMIT = frozenset({"ephemeral", "max-permanent"})
_NAMED = frozenset({"ephemeral", "step-layout"})
_RANKS = frozenset({"ephemeral", "distributed"})

CLAUSES: tuple[Clause, ...] = (
    Clause(
        slug="ephemeral.permanent",
        level=Level.CORE,
        sentence="saves a permanent checkpoint after the batch of each multiple of `save_interval`, also where an "
        "ephemeral one would be due, and at no other step unless it is fixed",
        why="A permanent checkpoint that is missing, or that was saved as ephemeral and removed, is lost for good.",
        situation="a run passed multiples of both intervals, of each one alone, and of neither",
        capabilities=_HOOKS,
        predicates=("due",),
    ),
    Clause(
        slug="ephemeral.between",
        level=Level.CORE,
        sentence="saves an ephemeral checkpoint after the batch of each multiple of `ephemeral_save_interval` at which "
        "no permanent one is due, and none where that interval is None",
        why="A missing ephemeral checkpoint costs a preempted job everything since the last permanent one.",
        situation="a run passed multiples of both intervals and of the ephemeral one alone; another run had none",
        capabilities=_HOOKS,
        rests_on=("ephemeral.permanent",),
        predicates=("due",),
    ),
    Clause(
        slug="ephemeral.fixed",
        level=Level.CORE,
        sentence="saves a permanent checkpoint after the batch of each step in `fixed_steps`, also where an ephemeral "
        "one would be due",
        why="A study is about just these steps, and no other checkpoint replaces them.",
        situation="a run passed a fixed step on the ephemeral interval, and one on no interval",
        capabilities=_FIXED,
        rests_on=("ephemeral.permanent",),
        predicates=("is_permanent_step", "due"),
    ),
    Clause(
        slug="ephemeral.cooldown",
        level=Level.CORE,
        sentence="saves no ephemeral checkpoint fewer than `ephemeral_cooldown` steps after the last save of either "
        "kind by this run, does so again from that distance on, and never holds back a permanent one",
        why="Two saves close together cost twice the time of one and protect nothing more.",
        situation="an ephemeral save came too soon after a permanent one, and another one came at just the distance",
        capabilities=_COOLDOWN,
        rests_on=("ephemeral.between",),
        predicates=("due", "saves"),
    ),
    Clause(
        slug="ephemeral.blocked",
        level=Level.CORE,
        sentence="saves no ephemeral checkpoint while the run blocks them, and permanent ones all the same",
        why="A run blocks them while it does something that a checkpoint must not fall into, such as an evaluation.",
        situation="ephemeral and permanent saves were due while the run blocked ephemeral ones, and after that",
        capabilities=_HOOKS,
        rests_on=("ephemeral.between",),
        predicates=("due",),
    ),
    Clause(
        slug="ephemeral.pre-train",
        level=Level.CORE,
        sentence="saves a permanent checkpoint at step 0 before training if `pre_train_checkpoint` is true, or is None "
        "and the run was not resumed, and none otherwise",
        why="Every later checkpoint is compared with the untrained weights, and no later process has them.",
        situation="runs began at step 0 with each value, and a resumed run began with None",
        capabilities=_HOOKS,
        predicates=("due_before_training",),
    ),
    Clause(
        slug="ephemeral.default-async",
        level=Level.CORE,
        sentence="saves in the background if `save_async` is None and there is no process group",
        why="A user who sets nothing expects that training goes on while the checkpoint is written.",
        situation="the flush of a run that left `save_async` unset was held",
        capabilities=_FLUSHING,
    ),
    Clause(
        slug="ephemeral.replaced",
        level=Level.CORE,
        sentence="removes every older ephemeral checkpoint at the latest in the first hook that finds the new "
        "ephemeral one complete",
        why="Ephemeral checkpoints that stay fill the disk, and a full disk ends the run at a later save.",
        situation="a run saved several ephemeral checkpoints, one after another",
        capabilities=_HOOKS,
        rests_on=("ephemeral.between",),
        predicates=("leaving", "may_stand"),
    ),
    Clause(
        slug="ephemeral.after-complete",
        level=Level.CORE,
        sentence="removes nothing before the checkpoint that replaces it is complete, and nothing for one whose save "
        "has failed",
        why="A job that is killed in between has lost the newest checkpoint and has no other.",
        situation="a run was watched, or its flush held or failed, before a replacement was complete",
        capabilities=_HOOKS,
        rests_on=("ephemeral.replaced",),
    ),
    Clause(
        slug="ephemeral.keeps",
        level=Level.CORE,
        sentence="never removes a permanent checkpoint where there is no limit, nor the newest ephemeral one",
        why="Permanent checkpoints are the result of the run. A preempted job resumes from the newest ephemeral one.",
        situation="a run with both kinds removed ephemeral checkpoints",
        capabilities=_HOOKS,
        rests_on=("ephemeral.replaced",),
        predicates=("leaving",),
    ),
    Clause(
        slug="ephemeral.collects",
        level=Level.CORE,
        sentence="treats what an earlier process left as old ephemeral checkpoints, which go when the next ephemeral "
        "one is complete and not before: with `ephemeral_only` multiples of `ephemeral_save_interval`, with "
        "`all_non_permanent` every other step too, with `never` none",
        why="Every preemption leaves one ephemeral checkpoint: a job that is preempted daily fills the disk.",
        situation="runs with each strategy resumed over an ephemeral checkpoint of an earlier run",
        capabilities=_HOOKS,
        rests_on=("ephemeral.replaced",),
        predicates=("collected",),
    ),
    Clause(
        slug="ephemeral.spares",
        level=Level.CORE,
        sentence="never collects step 0, a step above the run's own, a fixed step, or a multiple of `save_interval`",
        why="They are permanent, or of a process that went further. Once removed, they are lost for good.",
        situation="a run that collects something resumed over each of these",
        capabilities=_HOOKS,
        rests_on=("ephemeral.collects",),
        predicates=("spared",),
    ),
    Clause(
        slug="ephemeral.limit",
        level=Level.CORE,
        sentence="removes, when a permanent save is complete, the oldest permanent checkpoints above "
        "`max_checkpoints`, fixed steps among them, counts no ephemeral one, and removes no more than that",
        why="A limit that is too low by one loses a checkpoint; one that does not hold fills the disk.",
        situation="a run saved more permanent checkpoints than the limit, fixed and ephemeral ones among them",
        capabilities=_LIMIT,
        rests_on=("ephemeral.permanent",),
        predicates=("leaving",),
    ),
    Clause(
        slug="ephemeral.one-pending",
        level=Level.CORE,
        sentence="waits, before a save, until the save before it is finished",
        why="Two flushes at once write the state of one step into the directory of another.",
        situation="a save was due while the flush of the one before was held",
        capabilities=_FLUSHING,
    ),
    Clause(
        slug="ephemeral.pending",
        level=Level.CORE,
        sentence="says `checkpoint_pending` from the dispatch of a save until a hook has found it finished",
        why="Other callbacks ask it before they end a job or touch the folder.",
        situation="it was asked while a flush was held, and after a hook that followed its end",
        capabilities=_FLUSHING,
    ),
    Clause(
        slug="ephemeral.error-once",
        level=Level.CORE,
        sentence="raises the error of a failed flush once, in the first hook after its end, with the step or its "
        "directory in the message; the next save that is due is made",
        why="An error that is lost means days without a checkpoint; one that is raised at every batch ends the run.",
        situation="a flush failed, hooks followed, and a later save was due when the disk was well again",
        capabilities=_FLUSHING,
    ),
    Clause(
        slug="ephemeral.last",
        level=Level.CORE,
        sentence="saves a permanent checkpoint after training unless the last step is saved already, and returns when "
        "every save is finished",
        why="The last step is the result of the run, and it is rarely a multiple of an interval.",
        situation="a run ended on no interval, another on one, and another with a flush that was held",
        capabilities=_HOOKS,
    ),
    Clause(
        slug="ephemeral.disabled",
        level=Level.CORE,
        sentence="neither saves nor removes anything in any hook where `enabled` is false",
        why="A debugging run in the folder of a real one must not touch it.",
        situation="a disabled run passed all hooks over a folder in which an enabled one removes something",
        capabilities=_HOOKS,
    ),
    Clause(
        slug="ephemeral.lands",
        level=Level.CORE,
        sentence="resumes from the highest step whose directory is complete, by number, and starts afresh where there "
        "is none",
        why="The order of names puts step 9 above step 10; a torn directory has nothing to load.",
        situation="a run resumed over steps of different lengths, over torn directories, and over an empty folder",
        capabilities=_HOOKS,
        predicates=("resume_point",),
    ),
    Clause(
        slug="ephemeral.folder",
        level=Level.CORE,
        sentence="names the directory of a step `stepN`, with `model_and_optim/.metadata`, `train/rank0.pt`, and a "
        "`.metadata.json` whose `ephemeral` is true or false and which has a `version`",
        why="Other tools find checkpoints by these names, and tell by this file what may be removed.",
        situation="a permanent and an ephemeral checkpoint were looked at",
        capabilities=_NAMED,
    ),
    Clause(
        slug="ephemeral.validate",
        level=Level.CORE,
        sentence="refuses an interval, a cooldown or a limit below 1, and an ephemeral interval that is not below the "
        "permanent one, with an error that names the field",
        why="Zero divides at the first batch, hours after the job was queued.",
        situation="each of these was configured, and the nearest values that can be meant as well",
        capabilities=_HOOKS,
        predicates=("refused_for",),
    ),
    Clause(
        slug="ephemeral.soft-removal",
        level=Level.CORE,
        sentence="lets training go on when a removal fails, logs which directory it was, and tries it again by the end "
        "of the run",
        why="A file that can't be removed on a shared file system must not end a run whose checkpoint is complete.",
        situation="a removal failed, and could have succeeded later",
        capabilities=_HOOKS,
        rests_on=("ephemeral.replaced",),
    ),
    Clause(
        slug="ephemeral.rank-files",
        level=Level.CORE,
        sentence="saves a `train/rankR.pt` for each rank, and lets a rank that finds no file of its own number read "
        "that of rank 0",
        why="Ranks have their own loader positions; a job that resumes on more ranks must not fail for that.",
        situation="several ranks saved, and more ranks than that resumed",
        capabilities=_RANKS | _NAMED,
    ),
    Clause(
        slug="ephemeral.one-remover",
        level=Level.CORE,
        sentence="removes from one rank only",
        why="Ranks that remove one tree fail on each other's missing files.",
        situation="a run of several ranks removed something",
        capabilities=_RANKS,
        rests_on=("ephemeral.replaced",),
    ),
    Clause(
        slug="ephemeral.class-recorded",
        level=Level.STRICT,
        sentence="records with each checkpoint whether it is ephemeral, and goes by the record when a later run has "
        "other intervals: nothing saved as permanent is collected, and what was saved as ephemeral is, unless it is "
        "permanent by the present configuration",
        why="Guessed from the step number, the last checkpoint of the run before is removed after an interval was "
        "changed, and its ephemeral ones are never removed.",
        situation="a run with other intervals resumed over a permanent and an ephemeral checkpoint that the new "
        "intervals would take for the other kind",
        capabilities=_HOOKS,
        rests_on=("ephemeral.collects",),
        predicates=("collected",),
    ),
    Clause(
        slug="ephemeral.limit-restart",
        level=Level.STRICT,
        sentence="counts permanent checkpoints of earlier runs in `max_checkpoints` like its own",
        why="A job that is requeued every few hours starts its count anew each time: after three kills with a "
        "limit of 4 there are 12 directories.",
        situation="a run whose limit was used up by earlier runs saved a permanent checkpoint",
        capabilities=_LIMIT,
        rests_on=("ephemeral.limit",),
        predicates=("leaving",),
    ),
    Clause(
        slug="ephemeral.above",
        level=Level.STRICT,
        sentence="neither counts nor removes, after a rewind, checkpoints above the step just saved",
        why="Counted, they use up the limit, and each fresh save is removed as the oldest.",
        situation="a run that was rewound below more permanent checkpoints than its limit saved one",
        capabilities=_LIMIT | {"explicit"},
        rests_on=("ephemeral.limit",),
        predicates=("leaving",),
    ),
    Clause(
        slug="ephemeral.never-stuck",
        level=Level.STRICT,
        sentence="saves every step that is due, whatever a kill left under its name or beside it, also a second time "
        "over a complete checkpoint of that step",
        why="With `FileExistsError` at that step, each restart fails there again, until somebody removes the directory "
        "by hand.",
        situation="runs were killed in a flush and in a removal, and each time another run came to that step again",
        capabilities=_HOOKS,
    ),
    Clause(
        slug="ephemeral.invalidate-first",
        level=Level.STRICT,
        sentence="makes a checkpoint incomplete before anything else of it is removed",
        why="A kill in the middle would leave a directory that looks complete, and that no resume can load.",
        situation="a removal was watched at each of its file operations",
        capabilities=_HOOKS,
        rests_on=("ephemeral.replaced",),
        predicates=("may_be_left",),
    ),
    Clause(
        slug="ephemeral.whole",
        level=Level.STRICT,
        sentence="leaves, at every instant of a save, no directory that is complete by its names and can't be loaded "
        "bit for bit, and never fewer complete ones than before: also while it replaces a checkpoint of the same step",
        why="If a step is cleared before it is written anew, and the process is killed in between, the next resume "
        "takes the damaged directory, and the job does not start again.",
        situation="runs were killed at operations of a save, new and over the same step, and resumed",
        capabilities=_HOOKS,
        rests_on=("ephemeral.lands",),
    ),
    Clause(
        slug="ephemeral.agreement",
        level=Level.STRICT,
        sentence="comes to one outcome on all ranks in every hook, whatever each of them sees of the folder and "
        "however it is configured: rank 0's view decides, or all ranks raise",
        why="One rank raises, and the others wait for it in a broadcast until the job's time is up.",
        situation="ranks with different views of the folder, and ranks with different intervals, went through hooks",
        capabilities=_RANKS,
    ),
    Clause(
        slug="ephemeral.nothing-left",
        level=Level.STRICT,
        sentence="has removed everything that was to be removed when `post_train` returns",
        why="No later batch comes that would do it, so it stays in the folder.",
        situation="training ended right after a save that replaced something",
        capabilities=_HOOKS,
        rests_on=("ephemeral.replaced", "ephemeral.last"),
    ),
    Clause(
        slug="ephemeral.last-in-spite",
        level=Level.STRICT,
        sentence="makes the last save although the flush before it has failed, and then raises that error",
        why="The run would end without its last step because an older checkpoint could not be written.",
        situation="a flush failed right before the end of training, and the disk was well again by then",
        capabilities=_FLUSHING,
        rests_on=("ephemeral.last", "ephemeral.error-once"),
    ),
    Clause(
        slug="ephemeral.inert",
        level=Level.STRICT,
        sentence="leaves training as it is in every hook: a run with saves, the one before training among them, "
        "computes what a run without them computes, bit for bit",
        why="Reading an optimizer that has never stepped fills it in, and then its counter says 6 after 5 steps.",
        situation="a run that saved before training and in several batches was compared with one that never saved",
        capabilities=_HOOKS,
    ),
    Clause(
        slug="ephemeral.idle",
        level=Level.STRICT,
        sentence="touches no file in a hook at which nothing is due",
        why="The hook runs after every batch. One request to a shared file system each time, from each rank, slows "
        "down every other job.",
        situation="batches passed at which nothing was due, in flight or to be removed",
        capabilities=_HOOKS,
    ),
    Clause(
        slug="ephemeral.removal-aside",
        level=Level.STRICT,
        sentence="holds up neither a later batch, nor a later save, nor the exit of the process while a removal is "
        "slow",
        why="On an object store a removal takes minutes, and a thousand GPUs wait for it.",
        situation="a removal was held while batches passed, a save was made, and the process ended",
        capabilities=_HOOKS,
        rests_on=("ephemeral.replaced",),
    ),
    Clause(
        slug="ephemeral.left-alone",
        level=Level.STRICT,
        sentence="leaves checkpoints of another layout in its folder as they are, and warns, naming one of them. It "
        "does the same with a torn directory `stepN` that has a `.metadata.json`, or files that this layout does not "
        "have",
        why="Two tools may share a folder by mistake, and each would remove what the other needs. A user who expects a "
        "resume from the other tool's checkpoints has to learn that there is none. Whoever removes the train state of "
        "a permanent checkpoint to save space keeps its weights.",
        situation="runs that remove something went through their hooks in three folders: with checkpoints of two other "
        "tools; with another tool's directory that has the name of a step; with a permanent checkpoint without its "
        "train state",
        capabilities=_NAMED,
        predicates=("may_be_debris",),
    ),
    Clause(
        slug="ephemeral.named-by-its-step",
        level=Level.STRICT,
        sentence="refuses a directory `stepN` that holds the checkpoint of another step, naming the directory, or "
        "falls back with a warning that names it",
        why="A copy of step 2 under the name of step 6 is resumed as the newest, and four steps of training are lost "
        "without a word.",
        situation="a complete checkpoint was copied to the name of a higher step, and a run resumed",
        capabilities=_NAMED,
        rests_on=("ephemeral.lands",),
    ),
    Clause(
        slug="ephemeral.order",
        level=Level.STRICT,
        sentence="refuses a hook that comes out of order, with an error that names the hook that is missing",
        why="Without `pre_train` nothing of earlier runs is collected, and several ranks have no group to agree by.",
        situation="`post_train_batch` and `post_train` were called without `pre_train`, `pre_train` twice, and "
        "`post_train_batch` after `post_train`",
        capabilities=_HOOKS,
    ),
    Clause(
        slug="ephemeral.kinds",
        level=Level.STRICT,
        sentence="refuses a setting of another kind than it takes when it is configured, with a `ValueError` or a "
        "`TypeError` that names the field",
        why='`save_interval: "1000"` out of a file trains until the first batch divides by it.',
        situation="each of the settings was given a value of another kind",
        capabilities=_HOOKS,
        rests_on=("ephemeral.validate",),
    ),
    Clause(
        slug="ephemeral.storage-first",
        level=Level.DURABLE,
        sentence="brings everything in a checkpoint to storage before `.metadata.json` appears under the name of the "
        "step; in a removal, brings the absence of that file to storage before anything else is removed",
        why="After a loss of power the file would call a checkpoint complete whose shards are empty or missing.",
        situation="a save and a removal were watched at each of their file operations",
        capabilities=_NAMED,
        rests_on=("ephemeral.invalidate-first",),
    ),
)

_OF_A_SAVE = re.compile(r"train/rank\d+\.pt|model_and_optim/(\.metadata|[^/]*\.(distcp|tmp))|tmp\w{8}")
"""The files that a save of this layout writes before `.metadata.json`, temporary ones included."""
PERMANENT, EPHEMERAL = "permanent", "ephemeral"
"""The two kinds."""
STRATEGIES = ("ephemeral_only", "all_non_permanent", "never")
"""What a start may collect of what earlier runs left."""


@dataclass(frozen=True)
class Plan:
    """The settings that decide; None turns one off.

    `remove` is one of `STRATEGIES`.
    """

    save_interval: int | None = 250
    ephemeral_save_interval: int | None = None
    ephemeral_cooldown: int | None = None
    fixed_steps: frozenset[int] = frozenset()
    max_checkpoints: int | None = None
    remove: str = "ephemeral_only"


def is_permanent_step(step: int, plan: Plan) -> bool:
    """Whether a checkpoint at this step is permanent by the settings alone.

    >>> [step for step in range(1, 9) if is_permanent_step(step, Plan(4, fixed_steps=frozenset({3})))]
    [3, 4, 8]
    >>> is_permanent_step(4, Plan(None))
    False
    """
    return step in plan.fixed_steps or (plan.save_interval is not None and step % plan.save_interval == 0)


def due(step: int, plan: Plan, last_saved: int | None = None, is_blocked: bool = False) -> str | None:
    """The kind of the checkpoint that is due after the batch of this step; None for no checkpoint.

    `last_saved` is the step that this run has saved last, of either kind.

    >>> plan = Plan(6, 2)
    >>> [due(step, plan) for step in (1, 2, 6)]
    [None, 'ephemeral', 'permanent']
    >>> due(2, plan, is_blocked=True), due(6, plan, is_blocked=True)
    (None, 'permanent')

    The cooldown holds back ephemeral ones, until the distance is reached:

    >>> plan = Plan(6, 2, ephemeral_cooldown=4)
    >>> due(8, plan, last_saved=6), due(10, plan, last_saved=6), due(12, plan, last_saved=10)
    (None, 'ephemeral', 'permanent')
    >>> due(2, plan)
    'ephemeral'
    """
    if is_permanent_step(step, plan):
        return PERMANENT
    interval, cooldown = plan.ephemeral_save_interval, plan.ephemeral_cooldown
    if interval is None or step % interval != 0 or is_blocked:
        return None
    is_too_soon = cooldown is not None and last_saved is not None and step - last_saved < cooldown
    return None if is_too_soon else EPHEMERAL


def due_before_training(step: int, pre_train_checkpoint: bool | None, was_resumed: bool) -> bool:
    """Whether a permanent checkpoint is due before the first batch.

    >>> due_before_training(0, None, False), due_before_training(0, None, True)
    (True, False)
    >>> due_before_training(0, True, True), due_before_training(0, False, False), due_before_training(5, True, True)
    (True, False, False)
    """
    return step == 0 and (pre_train_checkpoint is True or (pre_train_checkpoint is None and not was_resumed))


def saves(
    plan: Plan, first: int, last: int, last_saved: int | None = None, blocked: Collection[int] = ()
) -> dict[int, str]:
    """What one run saves in the batches from `first` to `last`, and of which kind.

    `blocked` are the steps at which the run blocks ephemeral checkpoints.

    >>> saves(Plan(4, 2), 1, 6)
    {2: 'ephemeral', 4: 'permanent', 6: 'ephemeral'}
    >>> saves(Plan(4, 2, ephemeral_cooldown=3), 1, 8, last_saved=0)
    {4: 'permanent', 8: 'permanent'}
    """
    made: dict[int, str] = {}
    for step in range(first, last + 1):
        kind = due(step, plan, last_saved, step in blocked)
        if kind is not None:
            made[step] = kind
            last_saved = step
    return made


def spared(steps: Iterable[int], own_step: int, plan: Plan) -> frozenset[int]:
    """Of what earlier runs left, the steps that a start never collects, whatever is recorded of them.

    >>> sorted(spared({0, 2, 3, 4, 9}, own_step=4, plan=Plan(4, fixed_steps=frozenset({3}))))
    [0, 3, 4, 9]
    >>> sorted(spared({0, 1, 4, 5}, own_step=4, plan=Plan(None)))
    [0, 5]
    """
    return frozenset(step for step in steps if step == 0 or step > own_step or is_permanent_step(step, plan))


def collected(standing: Mapping[int, str | None], own_step: int, plan: Plan) -> frozenset[int]:
    """Of the complete checkpoints of earlier runs, those that count as old ephemeral ones.

    `standing` has the recorded kind of each step; None where nothing is
    recorded, which leaves the step number to decide.

    >>> left = {0: "permanent", 2: "ephemeral", 3: "permanent", 4: "permanent"}
    >>> sorted(collected(left, 4, Plan(4, 2))), sorted(collected(left, 4, Plan(4, 2, remove="never")))
    ([2], [])

    The record counts when the intervals have changed, as long as the new ones do not call the step permanent:

    >>> sorted(collected(left, 4, Plan(100, 3))), sorted(collected(left, 4, Plan(2, 1)))
    ([2], [])

    Without a record, one strategy takes multiples of the ephemeral interval, the other one takes everything:

    >>> unknown = {2: None, 3: None, 4: None}
    >>> sorted(collected(unknown, 4, Plan(4, 2))), sorted(collected(unknown, 4, Plan(4, 2, remove="all_non_permanent")))
    ([2], [2, 3])
    """
    candidates = standing.keys() - spared(standing, own_step, plan)
    return frozenset(step for step in candidates if _is_old_ephemeral(step, standing[step], plan))


def _is_old_ephemeral(step: int, recorded: str | None, plan: Plan) -> bool:
    if plan.remove == "never":
        return False
    if recorded is not None:
        return recorded == EPHEMERAL
    interval = plan.ephemeral_save_interval
    return plan.remove == "all_non_permanent" or (interval is not None and step % interval == 0)


def leaving(standing: Mapping[int, str], saved: int, max_checkpoints: int | None) -> frozenset[int]:
    """What is to be removed once the checkpoint `saved`, which is in `standing`, is complete.

    An ephemeral one replaces all that are older.  A permanent one pushes out
    the oldest permanent ones above the limit; steps above it don't count.

    >>> folder = {0: "permanent", 2: "ephemeral", 4: "permanent", 6: "ephemeral"}
    >>> sorted(leaving(folder, 6, None)), sorted(leaving(folder, 6, 1)), sorted(leaving(folder, 4, 1))
    ([2], [2], [0])
    >>> sorted(leaving({**folder, 8: "permanent"}, 4, 2))
    []
    """
    of_its_kind = sorted(step for step, kind in standing.items() if step <= saved and kind == standing[saved])
    if standing[saved] == EPHEMERAL:
        return frozenset(of_its_kind[:-1])
    return frozenset() if max_checkpoints is None else frozenset(of_its_kind[:-max_checkpoints])


def may_stand(standing: Mapping[int, str], saved: Iterable[int], max_checkpoints: int | None) -> frozenset[int]:
    """What may still stand when everything that was scheduled by these saves, in order, is removed; it must, too.

    >>> folder = {2: "ephemeral", 4: "permanent", 6: "ephemeral", 8: "permanent"}
    >>> sorted(may_stand(folder, [2, 4, 6, 8], None)), sorted(may_stand(folder, [2, 4, 6, 8], 1))
    ([4, 6, 8], [6, 8])
    """
    left = dict(standing)
    for step in saved:
        present = {other: kind for other, kind in left.items() if other <= step}
        for gone in leaving(present, step, max_checkpoints):
            del left[gone]
    return frozenset(left)


def resume_point(complete: Iterable[int]) -> int | None:
    """The step that a resume takes; None for a fresh start.

    >>> resume_point({9, 10, 2}), resume_point(set())
    (10, None)
    """
    return max(complete, default=None)


def may_be_left(before: Collection[str], now: Collection[str], required: Collection[str]) -> bool:
    """Whether a directory with these files may be found in the middle of its removal.

    It is whole, or it lacks something without which it is no checkpoint.

    >>> files = ["model_and_optim/.metadata", "model_and_optim/__0_0.distcp", "train/rank0.pt", ".metadata.json"]
    >>> needed = ["model_and_optim/.metadata", "train/rank0.pt", ".metadata.json"]
    >>> may_be_left(files, files, needed), may_be_left(files, files[:3], needed), may_be_left(files, [], needed)
    (True, True, True)
    >>> may_be_left(files, [files[0], *files[2:]], needed)
    False
    """
    return set(before) <= set(now) or not set(required) <= set(now)


def may_be_debris(files: Collection[str]) -> bool:
    """Whether a torn directory with these files may be what the death of a save or of a removal has left.

    >>> left = ["model_and_optim/.metadata", "model_and_optim/__0_0.distcp", "train/rank0.pt"]
    >>> may_be_debris([]), may_be_debris(left), may_be_debris(left[1:])
    (True, True, True)
    >>> may_be_debris([*left[:2], ".metadata.json"]), may_be_debris([*left, "model.safetensors"])
    (False, False)
    """
    return all(_OF_A_SAVE.fullmatch(name) for name in files)


def refused_for(
    save_interval: int | None = 250,
    ephemeral_save_interval: int | None = None,
    ephemeral_cooldown: int | None = None,
    max_checkpoints: int | None = None,
) -> tuple[str, ...]:
    """The fields for which a configuration is refused; an error has to name one of them.

    >>> refused_for(), refused_for(1), refused_for(2, 1, 1, 1), refused_for(None, 5)
    ((), (), (), ())
    >>> refused_for(0), refused_for(4, 0), refused_for(4, 4)
    (('save_interval',), ('ephemeral_save_interval',), ('ephemeral_save_interval',))
    >>> refused_for(ephemeral_save_interval=249), refused_for(ephemeral_save_interval=250)
    ((), ('ephemeral_save_interval',))
    >>> refused_for(4, 2, 0, 0)
    ('ephemeral_cooldown', 'max_checkpoints')
    """
    numbers = {
        "save_interval": save_interval,
        "ephemeral_save_interval": ephemeral_save_interval,
        "ephemeral_cooldown": ephemeral_cooldown,
        "max_checkpoints": max_checkpoints,
    }
    offending = {field: number is not None and number < 1 for field, number in numbers.items()}
    if save_interval is not None and ephemeral_save_interval is not None and not offending["save_interval"]:
        offending["ephemeral_save_interval"] |= ephemeral_save_interval >= save_interval
    return tuple(field for field, is_offending in offending.items() if is_offending)
