"""When a save counts: a checkpoint is written first, is complete then, and is committed last.

To commit is to let `latest` point at a checkpoint; for a manager that has no
pointer, what is complete is committed.  Everything before that moment may be
lost without anybody noticing; from that moment on the caller relies on it.  A
synchronous save commits before it returns.  An asynchronous one returns while
its flush goes on, and is *in flight* until a later call, or the manager by
itself, commits it.

Invariants, at every instant and for every reader: `latest` names a complete
checkpoint or does not exist; in a run that only moves forward it never moves
back; a save in flight is resumed whole or not at all; and training can't tell
whether it is being saved.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from forge_spec.clauses import Clause, Level

_ASYNC = frozenset({"async"})
_POINTER = frozenset({"pointer"})
_DISTRIBUTED = frozenset({"distributed"})

CLAUSES: tuple[Clause, ...] = (
    Clause(
        slug="commit.sync",
        level=Level.CORE,
        sentence="has committed the checkpoint when a synchronous `save` returns: it is complete, "
        "and `latest`, where there is one, points at it",
        why="The job script ends the allocation as soon as the save returns; "
        "whatever was still to be done is not done any more.",
        sometimes="a synchronous save returned",
        capabilities=frozenset({"sync"}),
    ),
    Clause(
        slug="commit.deferred",
        level=Level.CORE,
        sentence="never lets `latest` name a checkpoint before it is complete, whenever a reader looks",
        why="A kill during the flush leaves the pointer on a checkpoint that can't be loaded, "
        "and every restart crashes on it.",
        sometimes="the folder was looked at while a flush was in flight",
        capabilities=frozenset({"async", "pointer"}),
    ),
    Clause(
        slug="commit.overlap",
        level=Level.CORE,
        sentence="returns from an asynchronous `save` while its flush is still going on",
        why="Training stands still for the whole write at every save, which is what asynchronous saving is there to "
        "avoid.",
        sometimes="a flush was held back from outside while an asynchronous save was called",
        capabilities=_ASYNC,
    ),
    Clause(
        slug="commit.no-later-than",
        level=Level.CORE,
        sentence="has committed an asynchronous save when the next `save` returns, "
        "and when `wait` or `flush_pending_save` returns",
        why="A commit that waits for the end of the run leaves a killed run at its very first checkpoint; "
        "a load right after `wait` finds nothing.",
        sometimes="a call returned that came after an asynchronous save",
        capabilities=_ASYNC,
    ),
    Clause(
        slug="commit.one-in-flight",
        level=Level.CORE,
        sentence="writes no shard of a new asynchronous save before the flush of the one before has ended",
        why="Flushes that pile up hold a copy of the state each, and the host runs out of memory; "
        "overtaking one another, they are committed out of order.",
        sometimes="a save was called while the flush of the one before was held back",
        capabilities=_ASYNC,
    ),
    Clause(
        slug="commit.atomic-pointer",
        level=Level.CORE,
        sentence="replaces `latest` in one step: once it exists, a reader that polls it never finds it missing, "
        "dangling or half written",
        why="A kill between removing the old pointer and making the new one leaves none: "
        "the next resume starts the run afresh beside its intact checkpoints.",
        sometimes="`latest` was watched while it moved from one checkpoint to the next",
        capabilities=_POINTER,
    ),
    Clause(
        slug="commit.monotone",
        level=Level.CORE,
        sentence="never moves `latest` back in a run whose saves only move forward",
        why="The next resume repeats training that was saved already, "
        "and retention may have deleted what the pointer came back to.",
        sometimes="`latest` was watched over several commits",
        capabilities=_POINTER,
    ),
    Clause(
        slug="commit.snapshot",
        level=Level.CORE,
        sentence="saves the values of the time of the call: parameters, buffers and optimizer state that change in "
        "place "
        "after an asynchronous `save` has returned change nothing on disk",
        why="The checkpoint mixes values of two steps: its loss jumps at the resume, and no error says why.",
        sometimes="training went on in place while a flush was held back, and the checkpoint was loaded",
        capabilities=_ASYNC,
        rests_on=("resume.lands", "resume.exact"),
    ),
    Clause(
        slug="commit.inert",
        level=Level.CORE,
        sentence="leaves the training process as it was: random streams, parameters, gradients, optimizer, scheduler "
        "and "
        "loader are untouched by a save, so that a run that saves has the losses of one that does not",
        why="Runs stop being comparable: the same seed gives another result under another save interval.",
        sometimes="two runs that differ only in whether they save were trained on after the save",
        rests_on=("commit.sync", "commit.no-later-than"),
    ),
    Clause(
        slug="commit.all-stages",
        level=Level.STRICT,
        sentence="moves `latest` only when every pipeline stage on every rank is durable",
        why="One stage is ready before the others; a kill then leaves `latest` on a checkpoint without half its "
        "layers, and the older ones are already pruned.",
        sometimes="the flush of one stage was held back while the others had ended",
        capabilities=frozenset({"distributed", "pipeline", "pointer"}),
        rests_on=("layout.stage-dirs",),
    ),
    Clause(
        slug="commit.whole",
        level=Level.STRICT,
        sentence="lets no step be resumed from that lacks `train_state.pt` or `metadata.json`, "
        "even if the shards and their marker are all there",
        why="The weights load and the step comes back as 0: the run repeats its whole schedule on trained weights.",
        sometimes="a save was killed after the marker and before one of the two files, or a flush outran them",
        capabilities=frozenset({"layout"}),
        rests_on=("layout.step-dir", "resume.exact"),
    ),
    Clause(
        slug="commit.before-dispatch",
        level=Level.STRICT,
        sentence="commits a previous save that is durable even if the `save` that finds it so fails to dispatch its "
        "own",
        why="Two saves are lost to one failure: the one that failed and the one that was already safe on disk.",
        sometimes="a save failed to start while the one before was durable and not yet committed",
        capabilities=_ASYNC,
        rests_on=("commit.no-later-than", "commit.failed-flush"),
    ),
    Clause(
        slug="commit.failed-flush",
        level=Level.STRICT,
        sentence="raises the failure of a flush exactly once, at the next `save`, `wait` or `flush_pending_save`, "
        "never commits that save, leaves the resume point where it was, and lets later saves succeed",
        why="Swallowed, the run trains for days without a checkpoint; raised for ever, "
        "one full disk ends every later save as well.",
        sometimes="a flush failed in the background, and saves followed it",
        capabilities=_ASYNC,
        rests_on=("commit.no-later-than",),
    ),
    Clause(
        slug="commit.failed-save",
        level=Level.STRICT,
        sentence="raises the failure of a synchronous save to its caller, leaves the resume point where it was (where "
        "nothing can be changed back, because the folder can't be changed any more, it may be this save, whole), and "
        "lets the next save succeed",
        why="A caller that is told nothing deletes its other copies; "
        "debris that blocks the next save turns one full disk into the end of the run.",
        sometimes="a synchronous save failed on a file operation, and another save followed it",
        capabilities=frozenset({"sync"}),
        rests_on=("commit.sync",),
    ),
    Clause(
        slug="commit.resave",
        level=Level.STRICT,
        sentence="saves a step whose directory exists without ever showing a mixture that looks complete, without "
        "costing the resume point there was, and without carrying a file of the old checkpoint into the new one",
        why="An emergency save often hits the step of a scheduled one: shards rewritten under the old marker "
        "load as weights of one time with moments of another, and no error tells.",
        sometimes="a step was saved again over a complete checkpoint and over a torn one, watched or killed",
        rests_on=("resume.lands", "resume.exact"),
    ),
    Clause(
        slug="commit.wait-idempotent",
        level=Level.CORE,
        sentence="does nothing in `wait` and `flush_pending_save` when nothing is pending, however often they are "
        "called",
        why="Exit handlers call them once more to be sure; that call must not be the one that raises or hangs.",
        sometimes="both were called before any save, and twice after one",
        rests_on=("commit.sync", "commit.no-later-than"),
    ),
    Clause(
        slug="commit.collective",
        level=Level.CORE,
        sentence="returns from `save` on no rank before rank 0 has written `train_state.pt` and `metadata.json`, "
        "and in synchronous mode has moved `latest`",
        why="A rank that is ahead uploads or resumes a checkpoint whose train state is not there yet.",
        sometimes="rank 0 was held back at these files while the other ranks saved",
        capabilities=_DISTRIBUTED,
    ),
    Clause(
        slug="commit.own-group",
        level=Level.CORE,
        sentence="completes asynchronous saves in quick succession without a hang: its own barriers, the background "
        "flush "
        "and training never share a process group",
        why="Two threads that issue collectives on one group meet in a different order on each rank, "
        "and the job stands still until the timeout kills it.",
        sometimes="several ranks saved back to back while flushes were in flight and training used its own collectives",
        capabilities=frozenset({"distributed", "async"}),
    ),
    Clause(
        slug="commit.rank-failure",
        level=Level.STRICT,
        sentence="raises on every rank, within the timeout, what fails on one of them, and commits nothing",
        why="The healthy ranks wait in a collective for one that has given up, "
        "or go on to commit a checkpoint without its shard.",
        sometimes="the save of one rank out of several failed",
        capabilities=_DISTRIBUTED,
    ),
    Clause(
        slug="commit.same-step",
        level=Level.STRICT,
        sentence="raises an error when ranks call `save` with different steps, and commits none of them",
        why="Ranks that have lost count of each other write shards of two steps that no load can tell apart.",
        sometimes="two ranks called the same save with different steps",
        capabilities=_DISTRIBUTED,
    ),
    Clause(
        slug="commit.groups-fit",
        level=Level.STRICT,
        sentence="refuses on every rank, when it is made or at the first save, a process group that does not cover the "
        "ranks that share shards, and writes nothing",
        why="Each of two groups believes that it is the whole run: both write shards of the same names, "
        "and the marker of one describes the values of the other.",
        sometimes="each rank handed over a group of which it is the only member",
        capabilities=_DISTRIBUTED,
    ),
    Clause(
        slug="commit.pinned",
        level=Level.STRICT,
        sentence="stages a save in its pinned mode into page-locked memory, beside the stream that computes: "
        "`save` returns while that stream is still busy with what was queued before",
        why="A copy into pageable memory, or one that waits for the device, blocks training for as long as a "
        "synchronous save would have staged.",
        sometimes="a save was called while the compute stream had seconds of work queued",
        capabilities=frozenset({"pinned", "gpu"}),
    ),
    Clause(
        slug="commit.exit",
        level=Level.STRICT,
        sentence="loses at most the last save in flight when a run ends without `wait`, and neither hangs the "
        "interpreter's normal exit nor hides there that a flush failed",
        why="A job that hangs at its end burns its allocation; one that exits with success after a failed flush "
        "is not started again.",
        sometimes="a process ended normally with a flush in flight, and with a failed one",
        capabilities=_ASYNC,
        rests_on=("resume.exact",),
    ),
)


def may_point_at(latest: int | None, complete: frozenset[int]) -> bool:
    """Whether a reader may find `latest` so while these checkpoints are complete.

    >>> may_point_at(10, complete=frozenset({10})), may_point_at(None, complete=frozenset({10}))
    (True, True)
    >>> may_point_at(20, complete=frozenset({10}))
    False
    """
    return latest is None or latest in complete


def is_monotone(seen: Sequence[int]) -> bool:
    """Whether `latest`, seen at these steps one after another, never moved back.

    >>> is_monotone([10, 10, 20]), is_monotone([]), is_monotone([20, 10])
    (True, True, False)
    """
    return all(earlier <= later for earlier, later in pairwise(seen))


@dataclass(frozen=True)
class Save:
    """A call of `save`; `fails` if its write or its flush will."""

    step: int
    fails: bool = False


@dataclass(frozen=True)
class Wait:
    """A call of `wait` or of `flush_pending_save`: both commit what is pending."""


Call = Save | Wait


def must_raise(calls: Sequence[Call], background: bool) -> tuple[int, ...]:
    """Which of these calls, counted from 0, have to raise; all others have to return.

    A failure surfaces at once in a synchronous save and at the next call after
    an asynchronous one (`background`).

    >>> must_raise([Save(1, fails=True), Save(2), Wait()], background=False)
    (0,)
    >>> must_raise([Save(1, fails=True), Save(2), Wait()], background=True)
    (1,)

    It surfaces once, and only if another call comes.  Whether a save that raises
    for the one before it was dispatched itself is left open, so it must not be
    one that fails.

    >>> must_raise([Save(1, fails=True), Wait(), Wait()], background=True)
    (1,)
    >>> must_raise([Save(1, fails=True)], background=True)
    ()
    """
    failing = [at for at, call in enumerate(calls) if isinstance(call, Save) and call.fails]
    if not background:
        return tuple(failing)
    assert all(later - earlier > 1 for earlier, later in pairwise(failing)), "two failing saves in a row"
    return tuple(at + 1 for at in failing if at + 1 < len(calls))


def must_be_committed(calls: Sequence[Call], background: bool) -> frozenset[int]:
    """The steps that are committed when the last of these calls has returned or raised.

    Nothing is asked of a save that fails, nor of one that raises for the save
    before it: whether that one was dispatched is the manager's choice.

    >>> calls = [Save(1), Save(2), Save(3)]
    >>> sorted(must_be_committed(calls, background=False))
    [1, 2, 3]
    >>> sorted(must_be_committed(calls, background=True))
    [1, 2]
    >>> sorted(must_be_committed([*calls, Wait()], background=True))
    [1, 2, 3]
    >>> sorted(must_be_committed([Save(1), Save(2, fails=True), Save(3), Save(4), Wait()], background=True))
    [1, 4]
    """
    raised = must_raise(calls, background)
    due = calls[:-1] if background else calls
    saves = (call for at, call in enumerate(due) if at not in raised and isinstance(call, Save))
    return frozenset(save.step for save in saves if not save.fails)


def may_be_latest(calls: Sequence[Call], background: bool) -> frozenset[int | None]:
    """What `latest` may name when the last of these calls has returned, if none of them fails.

    To commit earlier than at the next call is allowed, once the save is durable.

    >>> may_be_latest([], background=True)
    frozenset({None})
    >>> may_be_latest([Save(1), Save(2)], background=False)
    frozenset({2})
    >>> sorted(may_be_latest([Save(1), Save(2)], background=True))
    [1, 2]
    >>> may_be_latest([Save(1), Save(2), Wait()], background=True)
    frozenset({2})
    """
    steps = [None, *(call.step for call in calls if isinstance(call, Save))]
    in_flight = background and bool(calls) and isinstance(calls[-1], Save)
    return frozenset(steps[-2:] if in_flight else steps[-1:])
