"""Two processes and one folder: the second one to save is refused, and no checkpoint is a mixture of both.

A job is submitted twice. A scheduler restarts it while its old node still runs. A colleague copies a script and forgets
to change the folder. Then two processes save the same steps into the same folder, and each of them works as it should.

The process that saves first *holds* the folder until it ends, in whatever way. A process that was killed holds nothing,
and neither does a child that it forked. Reading is always allowed. A process may hang where nobody can end it, so a
caller may choose to *take over* the folder. From then on the old process must change nothing that a resume looks at,
whatever it was about to do.

Invariant: whatever two processes do, each checkpoint that a resume loads was saved by one of them, every byte of it.
"""

from collections.abc import Iterable

from forge_spec.clauses import Clause, Level

_ONE_WRITER = frozenset({"one-writer"})

CLAUSES: tuple[Clause, ...] = (
    Clause(
        slug="writer.no-mixture",
        level=Level.STRICT,
        sentence="leaves no mixture when two processes save the same step into one folder at once. What a resume "
        "restores is, bit for bit, what one of the two saved",
        why="The shapes agree and each file is intact, so nobody notices. The run goes on with the weights of one job "
        "and the moments, the learning rate and the step of another.",
        situation="a process saved a step while another process was in the middle of saving it, and a new process "
        "resumed",
        rests_on=("resume.lands", "resume.exact"),
    ),
    Clause(
        slug="writer.refused",
        level=Level.STRICT,
        sentence="refuses a save into a folder that another living process saves into, and leaves every checkpoint "
        "and `latest` as they were",
        why="Two jobs that were submitted by mistake delete each other's checkpoints and move `latest` to and fro. It "
        "is chance which of the two runs a resume lands in.",
        situation="a second process saved while the first was alive, had saved, and was idle or flushing",
        capabilities=_ONE_WRITER,
    ),
    Clause(
        slug="writer.says-who",
        level=Level.STRICT,
        sentence="names in that refusal the folder, the host and process that hold it, and the day since which they "
        "hold it, in the form of ISO 8601",
        why="The owner has to find the other job among hundreds before one of the two can be ended.",
        situation="a save was refused because another process held the folder",
        capabilities=_ONE_WRITER,
        rests_on=("writer.refused",),
        predicates=("not_named",),
    ),
    Clause(
        slug="writer.dead-holder",
        level=Level.STRICT,
        sentence="saves into a folder whose holder was killed, without being asked to take it over",
        why="With a lock that outlives its owner, each preemption leads to a run that saves nothing, or needs a "
        "person.",
        situation="a process was killed after it had saved and while it saved, and a new process saved there",
        capabilities=_ONE_WRITER,
    ),
    Clause(
        slug="writer.fork-holds-nothing",
        level=Level.STRICT,
        sentence="releases the folder when the process that holds it ends, even if a child that it forked is still "
        "alive",
        why="Data loader workers that hang outlive a killed trainer, and the next job would wait until somebody finds "
        "them.",
        situation="a process forked a child after it had saved, and was killed, and a new process saved while the "
        "child was alive",
        capabilities=_ONE_WRITER,
        rests_on=("writer.dead-holder",),
    ),
    Clause(
        slug="writer.readers",
        level=Level.STRICT,
        sentence="never refuses a load, or a question on which step a load would land, because another process holds "
        "the folder",
        why="An evaluation job reads the checkpoints of a run that goes on.",
        situation="a process loaded from a folder that another process held, while that one was idle or in the middle "
        "of a save",
        capabilities=_ONE_WRITER,
    ),
    Clause(
        slug="writer.same-process",
        level=Level.STRICT,
        sentence="saves when an earlier manager of the same process has saved there, and loses nothing of a save that "
        "the earlier manager has in flight",
        why="Notebooks and hyperparameter searches make a new manager for the same folder; no other process is "
        "involved.",
        situation="two managers of one process saved into one folder, while the first was idle and while it was "
        "flushing",
        capabilities=_ONE_WRITER,
    ),
    Clause(
        slug="writer.take-over",
        level=Level.STRICT,
        sentence="saves in place of a process that holds the folder and does not make progress, if the caller chose "
        "to take the folder over",
        why="A node that hangs holds its lock without end, and often nobody can kill the process that runs there.",
        situation="a process that held the folder was stopped, idle or in the middle of a save, and another process "
        "was asked to take it over",
        capabilities=_ONE_WRITER,
    ),
    Clause(
        slug="writer.fenced",
        level=Level.STRICT,
        sentence="lets a process whose folder was taken over change nothing that a resume looks at. Its save in "
        "flight raises, whichever two operations it was stopped between, and so does each later save, even when the "
        "new process has ended",
        why="The old node wakes up after an hour and finishes the rename that it was about to make. Then `latest` "
        "names a step that the run has left behind, or a deletion removes what the new process has just saved.",
        situation="a process was stopped at an operation of its save, another process took the folder over and saved, "
        "and the first went on",
        capabilities=_ONE_WRITER,
        rests_on=("writer.take-over",),
    ),
)


def not_named(message: str, folder: str, host: str, pid: int, days: Iterable[str]) -> list[str]:
    """Return what a refusal does not name of the holder; any of these days will do, since clocks differ.

    >>> message = "/run is in use: process 7 on node-3, since 2026-11-29 10:00:00+00:00, saves into it"
    >>> not_named(message, "/run", "node-3", 7, ["2026-11-28", "2026-11-29"])
    []
    >>> not_named("/run is in use by process 77", "/run", "node-3", 7, ["2026-11-29"])
    ['the host node-3', 'the process 7', 'the day']
    """
    words = "".join(letter if letter.isalnum() else " " for letter in message).split()
    named = {
        f"the folder {folder}": folder in message,
        f"the host {host}": host in message,
        f"the process {pid}": str(pid) in words,
        "the day": any(day in message for day in days),
    }
    return [what for what, is_named in named.items() if not is_named]
