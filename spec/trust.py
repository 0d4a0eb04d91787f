"""What may be unpickled: to load a pickle is to run code of its author, so a load first asks who that is.

A training process can read every checkpoint that its user can read, and on a shared file system other users can write
many of them. Whoever writes a pickle that the run loads can run code as the owner of the run. So a file that another
user owns is refused, and a file or directory that others may write to leads to a warning.

A file can do harm without being a pickle: a pipe that blocks its reader, a device that never ends, a path that leads
out of the checkpoint, a size that is not true, a name with control characters for the terminal.

Invariants: the bytes that are checked are the bytes that are read; they are checked before any of them is unpickled and
before any live object changes; and a checkpoint, whoever wrote it, can't block a reader or use up its memory.

A user's own account is the boundary: whoever can write as the user needs no checkpoint to run code as the user.
"""

from enum import StrEnum

from forge_spec.clauses import Clause, Level

_TRUST = frozenset({"trust"})

CLAUSES: tuple[Clause, ...] = (
    Clause(
        slug="trust.foreign-owner",
        level=Level.CORE,
        sentence="refuses, with a `PermissionError`, a `train_state.pt` that another user owns, before a byte of it "
        "is unpickled. The message names the file, both user ids and what to do about it",
        why="Code of a stranger runs with the data, the keys and the jobs of the run's owner.",
        situation="a resume was asked of a checkpoint whose `train_state.pt` belongs to another user",
        capabilities=_TRUST,
        predicates=("judge_pickle",),
    ),
    Clause(
        slug="trust.writable-warning",
        level=Level.CORE,
        sentence="warns, naming the mode, when `train_state.pt` is writable by its group or by everybody, and does "
        "not warn when it is not",
        why="The next writer need not be the owner. But a warning at every load is read by nobody.",
        situation="a writable and a private `train_state.pt` were loaded",
        capabilities=_TRUST,
        predicates=("judge_pickle",),
    ),
    Clause(
        slug="trust.every-pickle",
        level=Level.STRICT,
        sentence="checks every pickle that it reads, including the `.metadata` of the shards",
        why="The marker is a pickle too, and is read first. A check of `train_state.pt` alone is easily avoided.",
        situation="a resume was asked of a checkpoint in which only `.metadata` belongs to another user",
        capabilities=_TRUST,
        rests_on=("trust.foreign-owner",),
        predicates=("judge_pickle",),
    ),
    Clause(
        slug="trust.same-file",
        level=Level.STRICT,
        sentence="reads a pickle from the descriptor whose owner and mode it checked, which it opened once and "
        "without following a final symlink",
        why="Between a check by path and a read by path the file can be replaced. A link to a file of the victim "
        "passes a check that the author of the link could not pass.",
        situation="a pickle was replaced between check and read, and one was a symlink",
        capabilities=_TRUST,
        rests_on=("trust.foreign-owner",),
    ),
    Clause(
        slug="trust.directory",
        level=Level.STRICT,
        sentence="warns, naming directory and mode, when the folder or the checkpoint's directory is writable by its "
        "group or by everybody and is not sticky",
        why="Whoever may write in a directory may replace a private file in it by another.",
        situation="a checkpoint was loaded out of a writable directory",
        capabilities=_TRUST,
        predicates=("judge_directory",),
    ),
    Clause(
        slug="trust.before-mutation",
        level=Level.STRICT,
        sentence="asks who owns a file before any live object changes: after a refusal model, optimizer, scheduler "
        "and random number generators are as they were",
        why="A caller that catches the error and goes on trains with the stranger's weights.",
        situation="a load was refused for its owner",
        capabilities=_TRUST,
        rests_on=("trust.foreign-owner",),
    ),
    Clause(
        slug="trust.no-canary",
        level=Level.STRICT,
        sentence="has run no code out of any pickle of a checkpoint when it raises a refusal",
        why="A refusal after the fact is a report, not a defence.",
        situation="a refused checkpoint contained a pickle that leaves a trace when it is loaded",
        capabilities=_TRUST,
        rests_on=("trust.foreign-owner",),
    ),
    Clause(
        slug="trust.least",
        level=Level.STRICT,
        sentence="loads state that is plain data without running any pickled code, and unpickles in full only what "
        "needs it, after the check",
        why="Most checkpoints need no code at all to load. Running it anyway makes every gap in the check exploitable.",
        situation="a checkpoint of plain data was loaded while every look-up of an unpickler was watched",
        capabilities=_TRUST,
    ),
    Clause(
        slug="trust.full-unpickling-said",
        level=Level.STRICT,
        sentence="warns when it unpickles a file in full, naming the file and the value in it that needs it. It does "
        "not warn of a file that it reads as data",
        why="To unpickle in full is to run code that the file names with the rights of the run. The owner of the run "
        "wants to know that it happens, and for which value.",
        situation="a checkpoint with plain data alone, and one with a value that is not plain data, were loaded",
        capabilities=frozenset({"trust", "layout", "train-state"}),
        rests_on=("trust.least",),
    ),
    Clause(
        slug="trust.regular-files",
        level=Level.STRICT,
        sentence="reads regular files only and never waits for any other file. A pipe, a socket, a directory, or a "
        "link to a device or a pipe may be in the place of a checkpoint's file. Then it refuses that file by its "
        "name, or skips the checkpoint with a warning. Such an entry that it only looks at does not stop it",
        why="A pipe in the place of `metadata.json` blocks every restart of the run, and a link to /dev/zero fills "
        "its memory. Backup tools leave such files.",
        situation="each kind was in the place of each file of the newest checkpoint, and in an older torn one",
        capabilities=frozenset({"trust", "layout"}),
        rests_on=("resume.skips-torn",),
    ),
    Clause(
        slug="trust.inside",
        level=Level.STRICT,
        sentence="reads no shard outside the checkpoint's directory, whatever path the marker gives for it, and names "
        "the marker in the error",
        why="A marker that names `../step_5/__0_0.distcp` loads the weights of step 5 as those of step 7. One that "
        "names another path reads whatever file its author likes.",
        situation="markers named the shards of another checkpoint by a relative path, by an absolute path, and "
        "through a linked directory",
        capabilities=frozenset({"trust", "layout"}),
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="trust.sizes",
        level=Level.STRICT,
        sentence="trusts no size and no structure that a checkpoint declares before it has looked at what is there. "
        "It refuses by name a marker that describes a larger tensor than its shards hold, a marker with a structure "
        "that no marker has, and a file that consists of a hole. It does not allocate the memory that they ask for",
        why="A restart that allocates a terabyte is killed by the kernel, or raises an error without the name of a "
        "file. Nobody learns which checkpoint to move away.",
        situation="a marker declared a huge tensor, markers had odd structures, and each small file was a hole of 40 "
        "gigabytes",
        capabilities=frozenset({"trust", "layout"}),
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="trust.escaped",
        level=Level.STRICT,
        sentence="repeats names and values out of a checkpoint with every control character escaped, in errors and in "
        "warnings",
        why="An escape sequence in the name of a tensor clears the terminal, rewrites its text or sets its title. A "
        "newline forges a line of the log.",
        situation="names with escape sequences and newlines were in the pointer, in the marker and in the freeze "
        "list, and an error or a warning repeated them",
        capabilities=frozenset({"trust", "layout"}),
    ),
)

# The titles of the sections, each under its first clause.
SECTIONS: dict[str, str] = {
    "trust.foreign-owner": "Who wrote a file",
    "trust.least": "Which code runs",
    "trust.regular-files": "Files that are not pickles",
}

OTHERS_WRITE = 0o022
"""The mode bits by which the group or everybody may write."""
STICKY = 0o1000
"""The mode bit of a directory in which only owners may replace files."""


class Objection(StrEnum):
    """What speaks against a pickle or a directory. Without an objection it is loaded without a message."""

    REFUSE = "refuse"
    WARN = "warn"


def judge_pickle(owner_uid: int, reader_uid: int, mode: int) -> frozenset[Objection]:
    """Return the objections to a pickle with this owner and mode.

    >>> judge_pickle(owner_uid=1000, reader_uid=1000, mode=0o644)
    frozenset()
    >>> judge_pickle(owner_uid=1000, reader_uid=1000, mode=0o664)
    frozenset({<Objection.WARN: 'warn'>})

    A refusal needs no warning beside it, and root is another user as well:

    >>> judge_pickle(owner_uid=0, reader_uid=1000, mode=0o666)
    frozenset({<Objection.REFUSE: 'refuse'>})
    """
    if owner_uid != reader_uid:
        return frozenset({Objection.REFUSE})
    return frozenset({Objection.WARN}) if mode & OTHERS_WRITE else frozenset()


def judge_directory(mode: int) -> frozenset[Objection]:
    """Return the objections to a directory of this mode that a pickle is read from.

    >>> judge_directory(0o755), judge_directory(0o1777)
    (frozenset(), frozenset())
    >>> judge_directory(0o775)
    frozenset({<Objection.WARN: 'warn'>})
    """
    return frozenset({Objection.WARN}) if mode & OTHERS_WRITE and not mode & STICKY else frozenset()
