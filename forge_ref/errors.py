"""Errors for which no built-in exception fits.

Where a built-in one fits it is raised instead: `ValueError` for a bad value,
`TypeError` for a value of another kind, `FileNotFoundError` for a checkpoint
that does not exist, `FileExistsError` for a name that is taken,
`NotADirectoryError` for a folder that can't be one, and `PermissionError` for a
file that is not trusted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from forge_ref.messages import printable


class SaveError(RuntimeError):
    """A save failed.

    The failed checkpoint is not committed, `latest` and the checkpoint that it
    points at are unchanged, and the next save starts afresh.  If the disk let
    nothing be changed back, the message says so.  The cause is chained.
    """


class NotTakenBackError(OSError):
    """A commit failed half-way, and the names that it had changed could not be changed back.

    A resume finds the new checkpoint or the one before it; both are whole.
    """


class DamagedError(RuntimeError):
    """The content of a checkpoint's file is not what was written; the message names the file.

    No live object has changed.  What the text repeats out of the checkpoint is
    escaped.
    """

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))


def without_way_out(error: Exception) -> str:
    """Return what is wrong; of a `DamagedError` without its way out, where a load's is not the one to name."""
    return str(error).partition("; ")[0] if isinstance(error, DamagedError) else str(error)


class RanksLostError(RuntimeError):
    """A rank died, or did not answer within the timeout; every rank that notices raises this.

    No live object of this rank has changed.  A save that was in flight may have
    been committed or not; `latest` shows which.  The process groups of the
    manager can't be used any more: start the job again.
    """


class FolderInUseError(RuntimeError):
    """Another process saves into this folder, or has taken it over; the message says who, and since when.

    Nothing was saved, and nothing in the folder has changed.
    """


@contextmanager
def naming(file: Path | str) -> Iterator[None]:
    """Raise whatever goes wrong with the content of a file with the name of the file, mostly as a `DamagedError`.

    Errors of the system and a lack of memory keep their types.
    """
    try:
        yield
    except DamagedError:
        raise
    except OSError as error:
        if error.errno is None or error.filename is not None:  # its text names the file
            raise
        raise OSError(error.errno, error.strerror, str(file)) from error
    except MemoryError as error:
        raise MemoryError(f"{printable(file)} takes more memory to read than this process can get") from error
    except Exception as error:
        is_plain = printable(error) == str(error)  # else a traceback would show its text as it is
        raise DamagedError(
            f"{file} can't be read, {type(error).__name__}: {error}; resume from another checkpoint"
        ) from (error if is_plain else None)
