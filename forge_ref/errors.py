"""Errors that no built-in exception says precisely enough.

Where a built-in one fits it is raised instead: `ValueError` for a bad value,
`FileNotFoundError` for a checkpoint that is not there, `FileExistsError` for a
name that somebody else holds, `PermissionError` for a file that is not trusted.
"""


class SaveError(RuntimeError):
    """A save failed.

    `latest` and the checkpoint it points at are as they were, the failed one
    is not committed, and the next save starts afresh; or, where the disk let
    nothing be changed back, the text says that.  The cause is chained.
    """


class NotTakenBackError(OSError):
    """A commit failed half-way, and the names that it had changed could not be changed back: a resume may find either.

    Both checkpoints are whole.
    """


class DamagedError(RuntimeError):
    """A file of a checkpoint is not what was written; the message names it.

    Raised before anything live has changed.
    """


class RanksLostError(RuntimeError):
    """A rank died, or was not heard of within the timeout; all that can be told so raise this.

    This rank has changed nothing live.  A save that was in flight may have
    been committed or not; `latest` tells.  The manager's groups are of no more
    use: start the job again.
    """
