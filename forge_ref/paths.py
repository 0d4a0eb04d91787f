"""Where a path leads that a caller wrote, and whether a folder can stand there.

Invariants: `~` means the home directory; a relative path is fixed at the moment
at which it is asked about; symlinks are left to the kernel, so the folder is
found under the name that its owner gave it; and nothing is made here.
"""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from forge_ref.arguments import check_path


def here() -> str:
    """Return the working directory; the empty string if it was deleted, which only a relative path minds."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def located(path: str | os.PathLike[str], field: str, start: str) -> Path:
    """Return the absolute path that is meant, relative ones seen from `start`.

    `ValueError` if the path begins with `~` and that home directory is not known.
    """
    text = check_path(path, field)
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise ValueError(
            f"{field} is {text!r}, and the home directory {expanded.partition('/')[0]} is not known; "
            f"write the path in full, or ./{text} for a name that begins with ~"
        )
    if not os.path.isabs(expanded) and not start:
        raise FileNotFoundError(f"{field} is {text!r}, and the working directory was deleted; write the path in full")
    full = Path(start, expanded)
    return Path(os.path.realpath(full)) if ".." in full.parts else full


def folder(path: str | os.PathLike[str], field: str, start: str) -> Path:
    """Return the absolute path of a folder, which may be missing together with directories above it.

    `NotADirectoryError` if something stands in its place, or above it, that
    will never let it be made.  What may yet become right, such as a permission,
    is not asked about.
    """
    full = located(path, field, start)
    standing = next(place for place in (full, *full.parents) if os.path.lexists(place))
    obstacle = _obstacle(standing) or _long_name(full, standing)
    if obstacle is not None:
        raise NotADirectoryError(
            f"{field} is {full}, which can't be a folder: {obstacle}; move it away, or choose another path"
        )
    return full


def _obstacle(place: Path) -> str | None:
    """Return how the name stands in the way of a folder; None if it does not, or if that can't be seen now."""
    try:
        is_directory = stat.S_ISDIR(os.stat(place).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return f"{place} is a symlink to {os.readlink(place)}, which is missing"
    except OSError as error:  # a permission may still be given, and a disk may answer again
        return f"{place} is a symlink that leads to itself" if error.errno == errno.ELOOP else None
    return None if is_directory else f"{place} is not a directory"


def _long_name(full: Path, standing: Path) -> str | None:
    """Return the name that is still to be made and that the file system can't hold, if there is one."""
    with suppress(OSError):
        limit = os.pathconf(standing, "PC_NAME_MAX")
        for name in full.relative_to(standing).parts:
            if len(os.fsencode(name)) > limit:
                return f"{name} is longer than {limit} bytes"
    return None


def new_file(path: str | os.PathLike[str], field: str, start: str) -> Path:
    """Return the absolute path of a file that is to be written.

    `IsADirectoryError` if a directory has that name, `FileNotFoundError` if the
    directory that it would be in is missing.
    """
    full = located(path, field, start)
    if full.is_dir():
        raise IsADirectoryError(f"{field} is {full}, which is a directory; write the name of a file")
    if not full.parent.is_dir():
        raise FileNotFoundError(f"{field} is {full}, and the directory {full.parent} does not exist; make it first")
    return full
