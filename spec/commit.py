"""When a save counts: a checkpoint is written first, is then complete, and is committed last.

To commit is to let `latest` name a checkpoint. For a manager without a pointer, a checkpoint that is complete is
committed. Until that instant a save may be lost; from that instant on the caller relies on it. A synchronous save
commits before it returns. An asynchronous save returns while its flush goes on. It is *in flight* until a later call,
or the manager by itself, commits it.

Invariants, at every instant and for every reader: `latest` names a complete checkpoint or does not exist; in a run that
only moves forward it never moves back; a save in flight is resumed whole or not at all; and training does not depend on
whether it is saved.
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
        sentence="has committed the checkpoint when a synchronous `save` returns: it is complete, and `latest`, where "
        "there is one, names it",
        why="The job script ends the allocation as soon as the save returns. Whatever was left to be done is never "
        "done.",
        situation="a synchronous save returned",
        capabilities=frozenset({"sync"}),
        predicates=("must_be_committed", "may_be_latest"),
    ),
    Clause(
        slug="commit.overlap",
        level=Level.CORE,
        sentence="returns from an asynchronous `save` while its flush is still going on",
        why="Otherwise training waits for the whole write at every save, which asynchronous saving is meant to avoid.",
        situation="a flush was held back from outside while an asynchronous save was called",
        capabilities=_ASYNC,
    ),
    Clause(
        slug="commit.no-later-than",
        level=Level.CORE,
        sentence="has committed an asynchronous save when the next `save` returns, and when `wait` or "
        "`flush_pending_save` returns",
        why="If commits wait for the end of the run, a killed run resumes from its very first checkpoint, and a load "
        "right after `wait` finds nothing.",
        situation="a call returned that came after an asynchronous save",
        capabilities=_ASYNC,
        predicates=("must_be_committed", "may_be_latest"),
    ),
    Clause(
        slug="commit.one-in-flight",
        level=Level.CORE,
        sentence="writes no shard of a new asynchronous save before the flush of the save before it has ended",
        why="Each flush holds a copy of the state, so that several at once use up the memory of the host. If one "
        "overtakes another, they are committed out of order.",
        situation="a save was called while the flush of the save before it was held back",
        capabilities=_ASYNC,
    ),
    Clause(
        slug="commit.wait-idempotent",
        level=Level.CORE,
        sentence="does nothing in `wait` and `flush_pending_save` when nothing is in flight, however often they are "
        "called",
        why="Exit handlers call them once more to be sure. That call must not raise or hang.",
        situation="both were called before any save, and twice after one",
        rests_on=("commit.sync", "commit.no-later-than"),
    ),
    Clause(
        slug="commit.deferred",
        level=Level.CORE,
        sentence="never lets `latest` name a checkpoint before it is complete, whenever a reader looks",
        why="A kill during the flush leaves the pointer at a checkpoint that can't be loaded, and every restart "
        "crashes on it.",
        situation="the folder was looked at while a flush was in flight",
        capabilities=frozenset({"async", "pointer"}),
        predicates=("may_point_at",),
    ),
    Clause(
        slug="commit.atomic-pointer",
        level=Level.CORE,
        sentence="replaces `latest` in one step: once it exists, a reader that polls it never finds it missing, "
        "dangling or half written",
        why="A kill between the removal of the old pointer and the making of the new one leaves none. The next resume "
        "then starts fresh beside intact checkpoints.",
        situation="`latest` was watched while it moved from one checkpoint to the next",
        capabilities=_POINTER,
    ),
    Clause(
        slug="commit.monotone",
        level=Level.CORE,
        sentence="never moves `latest` back in a run whose saves only move forward",
        why="The next resume repeats training that was saved already, and the checkpoint that the pointer went back "
        "to may have been deleted.",
        situation="`latest` was watched over several commits",
        capabilities=_POINTER,
        predicates=("is_monotone",),
    ),
    Clause(
        slug="commit.snapshot",
        level=Level.CORE,
        sentence="saves the values of the time of the call: parameters, buffers, optimizer state and tensors of the "
        "caller's extra that change in place after an asynchronous `save` has returned change nothing on disk",
        why="The checkpoint would mix values of two steps. Its loss jumps at the resume, and no error says why.",
        situation="training went on in place while a flush was held back, and the checkpoint was loaded",
        capabilities=_ASYNC,
        rests_on=("resume.lands", "resume.exact"),
    ),
    Clause(
        slug="commit.inert",
        level=Level.CORE,
        sentence="leaves the training process as it was: a save changes no random number generator, parameter, "
        "gradient, optimizer, scheduler, loader or extra. A run that saves has the losses of a run that does not",
        why="Runs can't be compared any more: the same seed gives another result with another save interval.",
        situation="two runs that differ only in whether they save were trained on after the save",
        rests_on=("commit.sync", "commit.no-later-than"),
    ),
    Clause(
        slug="commit.whole",
        level=Level.STRICT,
        sentence="lets no resume use a step that lacks `train_state.pt` or `metadata.json`, even if the shards and "
        "their marker are all there",
        why="The weights load and the step is 0: the run repeats its whole schedule on trained weights.",
        situation="a save was killed after the marker and before one of the two files, or its flush ended before they "
        "were written",
        capabilities=frozenset({"layout"}),
        rests_on=("layout.step-dir", "resume.exact"),
        predicates=("layout.is_complete",),
    ),
    Clause(
        slug="commit.resave",
        level=Level.STRICT,
        sentence="saves a step whose directory exists already without ever showing a mixture that looks complete. It "
        "does not lose the resume point, and carries no file of the old checkpoint into the new one",
        why="An emergency save often hits the step of a scheduled save. Shards that are rewritten under the old "
        "marker load as weights of one time with moments of another, and no error says so.",
        situation="a step was saved again over a complete checkpoint and over a torn one, watched or killed",
        rests_on=("resume.lands", "resume.exact"),
    ),
    Clause(
        slug="commit.pinned",
        level=Level.STRICT,
        sentence="stages a save in its pinned mode in page-locked memory, and does not block on the stream that "
        "computes: `save` returns while that stream is still busy with work that was queued before",
        why="A copy into pageable memory, or one that waits for the device, blocks training for as long as a "
        "synchronous save takes to stage.",
        situation="a save was called while the compute stream had seconds of work queued",
        capabilities=frozenset({"pinned", "gpu"}),
    ),
    Clause(
        slug="commit.unsaveable",
        level=Level.STRICT,
        sentence="refuses an extra with a value that can't be saved, naming its key, and leaves the folder and the "
        "run as they were",
        why="An extra has dozens of values. An error that only says that a function can't be pickled leaves the "
        "caller to guess which one, and the run saves nothing.",
        situation="a save was asked for with a function in its extra, and a save without it followed",
        capabilities=frozenset({"layout", "train-state"}),
    ),
    Clause(
        slug="commit.refuses-the-unloadable",
        level=Level.STRICT,
        sentence="refuses at the save a value that no load could restore, and leaves the folder as it was. Examples "
        "are a tensor without memory and a function defined on the spot",
        why="A checkpoint that is committed and can't be loaded takes the place of one that could be.",
        situation="a save was asked for with such a value in the model and in the optimizer",
        rests_on=("commit.failed-save",),
    ),
    Clause(
        slug="commit.gradients-said",
        level=Level.STRICT,
        sentence="warns at a save when gradients have been accumulated that no optimizer step has used, and at no "
        "other save",
        why="No checkpoint holds gradients, so a save in the middle of an accumulated batch silently loses half of "
        "it. A warning at every save is read by nobody.",
        situation="a save came after a backward pass without an optimizer step, and others came after a step, with "
        "gradients kept, cleared and set to zero",
        capabilities=frozenset({"gradients"}),
    ),
    Clause(
        slug="commit.failed-save",
        level=Level.STRICT,
        sentence="raises the failure of a synchronous save to its caller, leaves the resume point where it was, and "
        "lets the next save succeed. Only if the folder can't be changed any more, so that nothing can be undone, the "
        "resume point may be this save, complete",
        why="A caller that gets no error deletes its other copies. Leftovers that block the next save turn one full "
        "disk into the end of the run.",
        situation="a synchronous save failed at a file operation, and another save followed it",
        capabilities=frozenset({"sync"}),
        rests_on=("commit.sync",),
        predicates=("must_raise", "must_be_committed"),
    ),
    Clause(
        slug="commit.failed-flush",
        level=Level.STRICT,
        sentence="raises the failure of a flush exactly once, at the next `save`, `wait` or `flush_pending_save`. It "
        "never commits that save, leaves the resume point where it was, and lets later saves succeed",
        why="If the failure is never raised, the run trains for days without a checkpoint. If it is raised again and "
        "again, one full disk ends every later save as well.",
        situation="a flush failed in the background, and saves followed it",
        capabilities=_ASYNC,
        rests_on=("commit.no-later-than",),
        predicates=("must_raise", "must_be_committed"),
    ),
    Clause(
        slug="commit.before-dispatch",
        level=Level.STRICT,
        sentence="commits a previous save whose files are all written, even if the `save` that finds it so fails to "
        "dispatch its own",
        why="One failure would cost two saves: the one that failed, and the one that was on disk already.",
        situation="a save failed to start while the save before it was written and not yet committed",
        capabilities=_ASYNC,
        rests_on=("commit.no-later-than", "commit.failed-flush"),
        predicates=("must_be_committed",),
    ),
    Clause(
        slug="commit.exit",
        level=Level.STRICT,
        sentence="loses at most the last save in flight when a process ends without `wait`. It does not hang the "
        "interpreter's normal exit, and does not hide there that a flush failed",
        why="A job that hangs at its end uses up its allocation. A job that exits with success after a failed flush "
        "is not restarted.",
        situation="a process ended normally with a flush in flight, and with a failed flush",
        capabilities=_ASYNC,
        rests_on=("resume.exact",),
    ),
    Clause(
        slug="commit.collective",
        level=Level.CORE,
        sentence="returns from `save` on no rank before rank 0 has written `train_state.pt` and `metadata.json`, and, "
        "in synchronous mode, has moved `latest`",
        why="A rank that is ahead uploads or resumes a checkpoint whose train state is not there yet.",
        situation="rank 0 was held back at these files while the other ranks saved",
        capabilities=_DISTRIBUTED,
    ),
    Clause(
        slug="commit.all-stages",
        level=Level.STRICT,
        sentence="moves `latest` only when the files of every pipeline stage, from every rank, are written",
        why="One stage is ready before the others. A kill then leaves `latest` at a checkpoint without half of its "
        "layers, and the older checkpoints are deleted already.",
        situation="the flush of one stage was held back while the others had ended",
        capabilities=frozenset({"distributed", "pipeline", "pointer"}),
        rests_on=("layout.stage-dirs",),
        predicates=("may_point_at",),
    ),
    Clause(
        slug="commit.rank-failure",
        level=Level.STRICT,
        sentence="raises on every rank, within the timeout, a failure of one of them, and commits nothing",
        why="The healthy ranks would wait in a collective for a rank that has given up, or commit a checkpoint "
        "without its shard.",
        situation="the save of one rank out of several failed",
        capabilities=_DISTRIBUTED,
    ),
    Clause(
        slug="commit.same-step",
        level=Level.STRICT,
        sentence="raises an error when ranks call `save` with different steps, and commits none of them",
        why="Ranks that disagree on the step write shards of two steps that no load can tell apart.",
        situation="two ranks called the same save with different steps",
        capabilities=_DISTRIBUTED,
    ),
    Clause(
        slug="commit.own-group",
        level=Level.CORE,
        sentence="completes asynchronous saves in quick succession without a hang: its own barriers, the background "
        "flush and training never share a process group",
        why="Two threads that issue collectives on one group meet in a different order on each rank, and the job "
        "hangs until its timeout.",
        situation="several ranks saved in quick succession while flushes were in flight and training used its own "
        "collectives",
        capabilities=frozenset({"distributed", "async"}),
    ),
    Clause(
        slug="commit.groups-fit",
        level=Level.STRICT,
        sentence="refuses on every rank, when it is made or at the first save, a process group that does not cover "
        "the ranks that share shards, and writes nothing",
        why="Each of two groups takes itself for the whole run. Both write shards of the same names, and the marker "
        "of one describes the values of the other.",
        situation="each rank passed a group of which it is the only member",
        capabilities=_DISTRIBUTED,
    ),
)

# The titles of the sections, each under its first clause.
SECTIONS: dict[str, str] = {
    "commit.sync": "When a save is committed",
    "commit.deferred": "The pointer",
    "commit.snapshot": "What is saved",
    "commit.failed-save": "Failures",
    "commit.collective": "Several ranks",
}


def may_point_at(latest: int | None, complete: frozenset[int]) -> bool:
    """Return whether a reader may find `latest` at this step while these checkpoints are complete.

    >>> may_point_at(10, complete=frozenset({10})), may_point_at(None, complete=frozenset({10}))
    (True, True)
    >>> may_point_at(20, complete=frozenset({10}))
    False
    """
    return latest is None or latest in complete


def is_monotone(seen: Sequence[int]) -> bool:
    """Return whether `latest`, observed at these steps in this order, never moved back.

    >>> is_monotone([10, 10, 20]), is_monotone([]), is_monotone([20, 10])
    (True, True, False)
    """
    return all(earlier <= later for earlier, later in pairwise(seen))


@dataclass(frozen=True)
class Save:
    """A call of `save`; `fails` says that its write or its flush fails."""

    step: int
    fails: bool = False


@dataclass(frozen=True)
class Wait:
    """A call of `wait` or of `flush_pending_save`: both commit what is in flight."""


Call = Save | Wait


def must_raise(calls: Sequence[Call], background: bool) -> tuple[int, ...]:
    """Return which of these calls, counted from 0, have to raise; all others have to return.

    A failure is raised by a synchronous save itself, and by the call after an asynchronous one (`background`).

    >>> must_raise([Save(1, fails=True), Save(2), Wait()], background=False)
    (0,)
    >>> must_raise([Save(1, fails=True), Save(2), Wait()], background=True)
    (1,)

    It is raised once, and only if another call comes. Whether a save that raises for the save before it was dispatched
    itself is left open, so that save must not fail.

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
    """Return the steps that have to be committed when the last of these calls has returned or raised.

    Nothing is required of a save that fails, nor of one that raises for the save before it: whether that one was
    dispatched is the manager's choice.

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
    """Return what `latest` may name when the last of these calls has returned, if none of them fails.

    A manager may commit earlier than at the next call, once all files of the save are written.

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
