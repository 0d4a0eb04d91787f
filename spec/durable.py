"""What must hold after a loss of power: what was acknowledged is on storage, and everything else can be resumed.

A kill ends the process and leaves the disk. A loss of power also takes what had not reached the disk yet, and not in
the order in which it was written. `forge_spec.disk` says which disks it may leave, for each kind of storage.

Invariant: a name never reaches storage before the files that it stands for.
"""

from collections.abc import Iterable

from forge_spec.clauses import Clause, Level
from forge_spec.disk import Mark

CLAUSES: tuple[Clause, ...] = (
    Clause(
        slug="durable.order",
        level=Level.DURABLE,
        sentence="brings the files of a checkpoint and their names to storage before it makes the checkpoint complete "
        "under its own name. It brings that name to storage before it lets `latest` name the checkpoint",
        why="Written in the right order but without fsync, the pointer reaches the disk within a second and the "
        "shards within thirty. After a loss of power `latest` names files of no bytes.",
        situation="a save was recorded, operation by operation, until it was committed",
    ),
    Clause(
        slug="durable.power-loss",
        level=Level.DURABLE,
        sentence="resumes from every disk that a loss of power at any instant may leave. It lands on a step that was "
        "acknowledged or in flight, restores it exactly, and raises no error that needs a person",
        why="One breaker stops all nodes of a job at once. A run that crashes at each restart, or trains on with "
        "files full of zeros, has lost more than its last hour.",
        situation="disks that the rules of a storage allow were built, and a new process resumed from each",
        rests_on=("resume.lands", "resume.exact"),
        predicates=("may_come_back", "disk.may_lose", "disk.may_hold"),
    ),
    Clause(
        slug="durable.acknowledged",
        level=Level.DURABLE,
        sentence="has brought to storage what a synchronous `save`, a `wait` or a `flush_pending_save` acknowledged, "
        "so that no later loss of power takes it away",
        why="Because the call returned, the caller deletes its other copies or ends the allocation.",
        situation="the power was cut after a save was acknowledged and before the next one was",
        rests_on=("resume.lands",),
        predicates=("may_come_back",),
    ),
)


def may_come_back(marks: Iterable[Mark]) -> frozenset[int | None]:
    """Return the saves that an auto-resume may restore after these marks; None stands for a fresh start.

    These are the last acknowledged save, and every save that has begun since and has not raised.

    >>> sorted(may_come_back([Mark("begins", 0), Mark("acknowledged", 0), Mark("begins", 1)]))
    [0, 1]
    >>> may_come_back([Mark("begins", 0), Mark("raised", 0)]), may_come_back([])
    (frozenset({None}), frozenset({None}))

    An asynchronous save is acknowledged by the next call. From then on no save before it may be restored:

    >>> marks = [Mark("begins", 0), Mark("begins", 1), Mark("acknowledged", 0)]
    >>> sorted(may_come_back(marks)), may_come_back([*marks, Mark("acknowledged", 1)])
    ([0, 1], frozenset({1}))
    """
    acknowledged: int | None = None
    open_saves: list[int] = []
    for mark in marks:
        match mark.word:
            case "begins":
                open_saves.append(mark.save)
            case "raised":
                open_saves.remove(mark.save)
            case "acknowledged":
                acknowledged = mark.save
                if mark.save in open_saves:
                    open_saves = open_saves[open_saves.index(mark.save) + 1 :]
    return frozenset({acknowledged, *open_saves})
