"""What may be unpickled: to load a pickle is to run its author's code, so ask first who that is.

A training process can read every checkpoint its user can, and on a shared file
system others can write many of them.  Whoever can write a pickle that the run
will load, runs code as the owner of the run.  A file of another owner is
therefore refused; a file or folder that others may write to is warned about.

Invariants: the question is asked of the very bytes that are then read, and it
is answered before any of them is unpickled and before any live object changes.

A user's own account is the boundary: whoever can write as the user needs no
checkpoint to run code as the user.
"""

from enum import StrEnum

from forge_spec.clauses import Clause, Level

_TRUST = frozenset({"trust"})

CLAUSES: tuple[Clause, ...] = (
    Clause(
        slug="trust.foreign-owner",
        level=Level.CORE,
        sentence="refuses a `train_state.pt` owned by another user with a `PermissionError` before a byte of it is "
        "unpickled; the message names the file, both user ids and what to do about it",
        why="Code of a stranger runs with the data, the keys and the jobs of the run's owner.",
        sometimes="a resume was asked of a checkpoint whose `train_state.pt` belongs to another user",
        capabilities=_TRUST,
    ),
    Clause(
        slug="trust.writable-warning",
        level=Level.CORE,
        sentence="warns, naming the mode, when `train_state.pt` is writable by its group or by everybody, "
        "and does not warn when it is not",
        why="The next writer need not be the owner; but a warning at every load is one that nobody reads.",
        sometimes="a writable and a private `train_state.pt` were loaded",
        capabilities=_TRUST,
    ),
    Clause(
        slug="trust.before-mutation",
        level=Level.STRICT,
        sentence="asks before any live object changes: after a refusal model, optimizer, scheduler "
        "and random streams are as they were",
        why="A caller that catches the error and goes on trains with the stranger's weights.",
        sometimes="a load was refused for its owner",
        capabilities=_TRUST,
        rests_on=("trust.foreign-owner",),
    ),
    Clause(
        slug="trust.same-file",
        level=Level.STRICT,
        sentence="reads a pickle from the descriptor whose owner and mode it checked, "
        "opened once and without following a final symlink",
        why="Between a check by path and a read by path the file can be swapped, "
        "and a link to a file of the victim's passes a check that the linker could not.",
        sometimes="a pickle was replaced between check and read, and one was a symlink",
        capabilities=_TRUST,
        rests_on=("trust.foreign-owner",),
    ),
    Clause(
        slug="trust.every-pickle",
        level=Level.STRICT,
        sentence="asks of every pickle that it reads, the shards' `.metadata` among them",
        why="The marker is a pickle too, and is read first: a gate in front of `train_state.pt` alone is walked "
        "around.",
        sometimes="a resume was asked of a checkpoint in which only `.metadata` belongs to another user",
        capabilities=_TRUST,
        rests_on=("trust.foreign-owner",),
    ),
    Clause(
        slug="trust.directory",
        level=Level.STRICT,
        sentence="warns, naming directory and mode, when the folder or the checkpoint's directory is writable "
        "by its group or by everybody and is not sticky",
        why="Whoever may write in a directory may put another file in the place of one that is private.",
        sometimes="a checkpoint was loaded out of a writable directory",
        capabilities=_TRUST,
    ),
    Clause(
        slug="trust.least",
        level=Level.STRICT,
        sentence="loads state that is plain data without running any pickled code, "
        "and unpickles in full only what needs it, after the check",
        why="Most checkpoints need no code at all to load; running it anyway turns every gap in the check "
        "into an open door.",
        sometimes="a checkpoint of plain data was loaded while every look-up of an unpickler was watched",
        capabilities=_TRUST,
    ),
    Clause(
        slug="trust.no-canary",
        level=Level.STRICT,
        sentence="has run no code out of any pickle of a checkpoint when it raises a refusal",
        why="A refusal after the fact is a report, not a defence.",
        sometimes="a refused checkpoint contained a pickle that leaves a trace when it is loaded",
        capabilities=_TRUST,
        rests_on=("trust.foreign-owner",),
    ),
)

OTHERS_WRITE = 0o022
"""The mode bits by which the group or everybody may write."""
STICKY = 0o1000
"""The mode bit of a directory in which only owners may replace files."""


class Objection(StrEnum):
    """What speaks against a pickle or a directory; no objection means that it is loaded in silence."""

    REFUSE = "refuse"
    WARN = "warn"


def judge_pickle(owner_uid: int, reader_uid: int, mode: int) -> frozenset[Objection]:
    """The objections to a pickle with this owner and mode.

    >>> judge_pickle(owner_uid=1000, reader_uid=1000, mode=0o644)
    frozenset()
    >>> judge_pickle(owner_uid=1000, reader_uid=1000, mode=0o664)
    frozenset({<Objection.WARN: 'warn'>})

    A refusal needs no warning beside it, and root is another owner as well:

    >>> judge_pickle(owner_uid=0, reader_uid=1000, mode=0o666)
    frozenset({<Objection.REFUSE: 'refuse'>})
    """
    if owner_uid != reader_uid:
        return frozenset({Objection.REFUSE})
    return frozenset({Objection.WARN}) if mode & OTHERS_WRITE else frozenset()


def judge_directory(mode: int) -> frozenset[Objection]:
    """The objections to a directory of this mode that a pickle is read from.

    >>> judge_directory(0o755), judge_directory(0o1777)
    (frozenset(), frozenset())
    >>> judge_directory(0o775)
    frozenset({<Objection.WARN: 'warn'>})
    """
    return frozenset({Objection.WARN}) if mode & OTHERS_WRITE and not mode & STICKY else frozenset()
