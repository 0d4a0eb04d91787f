"""What must hold when the power fails: what was acknowledged is on storage, and all else that is left can be resumed.

A kill takes the process and leaves the disk; a loss of power takes whatever had
not reached the disk yet, and not in the order in which it was written.  Which
disks it may leave, for each kind of storage, is said in `forge_spec.disk`.

Invariant: a name never reaches storage before what it stands for.
"""

from collections.abc import Iterable

from forge_spec.clauses import Clause, Level
from forge_spec.disk import Mark

CLAUSES: tuple[Clause, ...] = (
    Clause(
        slug="durable.order",
        level=Level.DURABLE,
        sentence="brings a checkpoint to storage, its files and their names, before it makes the checkpoint complete "
        "under its own name, and that name before it lets `latest` point at it",
        why="Written in the right order and not synced, the pointer reaches the disk within a second and the shards "
        "within thirty: after a cut `latest` names files of no bytes.",
        sometimes="a save was recorded, operation by operation, until it was committed",
    ),
    Clause(
        slug="durable.power-loss",
        level=Level.DURABLE,
        sentence="resumes from every disk that a loss of power at any instant may leave, whole, on a step that was "
        "acknowledged or in flight, without an error that needs a person",
        why="One breaker takes all nodes of a job at once; a run that crashes at each restart, or trains on with files "
        "full of zeros, has lost more than its last hour.",
        sometimes="disks that the rules of a storage allow were built, and a new process resumed from each",
        rests_on=("resume.lands", "resume.exact"),
    ),
    Clause(
        slug="durable.acknowledged",
        level=Level.DURABLE,
        sentence="has brought to storage what a synchronous `save`, a `wait` or a `flush_pending_save` acknowledged, "
        "so that no loss of power after that takes it back",
        why="The caller deletes its other copies, or ends the allocation, on the strength of that return.",
        sometimes="the power was cut after a save was acknowledged and before the next one was",
        rests_on=("resume.lands",),
    ),
)


def may_come_back(marks: Iterable[Mark]) -> frozenset[int | None]:
    """Which saves an auto-resume may come back with after these marks; None stands for a fresh start.

    The last acknowledged one, or any that has begun since and has not raised.

    >>> sorted(may_come_back([Mark("begins", 0), Mark("acknowledged", 0), Mark("begins", 1)]))
    [0, 1]
    >>> may_come_back([Mark("begins", 0), Mark("raised", 0)]), may_come_back([])
    (frozenset({None}), frozenset({None}))

    An asynchronous save is acknowledged by the next call; what began before it is out of the question then:

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
