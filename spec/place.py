"""Where checkpoints are: the folder, whatever its name, and what a manager may change in the process that trains.

The folder is a string that somebody wrote into a configuration. Its meaning is fixed when the manager is made: `~` is
the home directory, and a relative path starts at the working directory of that moment. A path that can never become a
folder is refused before the run trains for it.

Invariants: the folder is the same from the first save to the last load, wherever the process goes; the umask decides
who may read a checkpoint; and of the process that trains, a manager changes only the files in the folder.
"""

import posixpath

from forge_spec.clauses import Clause, Level

CLAUSES: tuple[Clause, ...] = (
    Clause(
        slug="place.home",
        level=Level.STRICT,
        sentence="takes a leading `~`, in the name of its folder and in a path that is named to load, for the home "
        "directory, or refuses the name with an error. It never makes a directory that is called `~`",
        why="The checkpoints would be in a directory `~` below the directory in which the job was started. The next "
        "job, started elsewhere, starts fresh, and somebody cleans up with `rm -r ~`.",
        situation="a run whose folder begins with `~` saved, and another process resumed it",
        predicates=("leads_to",),
    ),
    Clause(
        slug="place.fixed",
        level=Level.STRICT,
        sentence="fixes a relative folder when the manager is made, or refuses it then. After a change of the working "
        "directory it saves where it would have saved before, and neither the folder nor a relative `load_path` leads "
        "to another run",
        why="A framework or the script itself changes the directory. The checkpoints of one run are then in two "
        "folders, and a resume finds one of them.",
        situation="the working directory changed between making the manager and its first save, between two saves, "
        "and before a load",
        predicates=("leads_to",),
    ),
    Clause(
        slug="place.any-name",
        level=Level.STRICT,
        sentence="saves into a folder of any name that the file system accepts, deletes in it, and resumes from it. "
        "Spaces, newlines, brackets, percent signs and other scripts are parts of a name, and a symlink on the way to "
        "the folder is followed",
        why="A name that is used as a pattern, a format string or a command finds nothing or something else. The run "
        "starts fresh, or deletes in another folder.",
        situation="a run in a folder of such a name saved, was killed, and was resumed by another process",
        predicates=("leads_to",),
    ),
    Clause(
        slug="place.checked",
        level=Level.STRICT,
        sentence="refuses a folder if its path, or a directory above it, is a file or a symlink to nothing. It raises "
        "an error that names this path, when it is made or at the latest at the load, and leaves what is there as it "
        "is. It refuses to resume from a folder that it may not read",
        why="Taken for an empty folder, it means a fresh start. The run trains until its first save fails, or beside "
        "the checkpoints of a disk that is not mounted yet.",
        situation="a manager was made, and asked to resume, where a file was, where a dangling symlink was, and where "
        "a folder was that may not be read",
        predicates=("can_be_folder",),
    ),
    Clause(
        slug="place.umask",
        level=Level.STRICT,
        sentence="gives every file that it makes the mode that the umask leaves of 666, and every directory the mode "
        "that it leaves of 777",
        why="Checkpoints of mode 600 can't be read by the colleague who evaluates them. Checkpoints that everybody "
        "can read give away what a umask of 077 was set to protect.",
        situation="checkpoints were saved under a umask that lets others read and under one that does not",
        predicates=("mode",),
    ),
    Clause(
        slug="place.process",
        level=Level.STRICT,
        sentence="leaves the process as it was: working directory, umask, environment and settings through saves and "
        "loads, and signal handlers through saves. Settings are blocked signals, alarms, priority, limits, and those "
        "of the interpreter and of libraries. Memory in use and the numbers of open descriptors, threads and children "
        "do not grow from one save or load to the next, also if saves fail",
        why="One more descriptor at each save ends the run at the limit, after a week. A signal handler that was "
        "replaced is the one that would have saved at the preemption.",
        situation="the process was compared before and after several saves and loads, and several saves that failed",
    ),
    Clause(
        slug="place.scratch",
        level=Level.STRICT,
        sentence="saves and resumes, also after a kill, whatever the temporary directory of the process is: on another "
        "file system, or missing. It leaves nothing in it",
        why="A checkpoint that is staged in the temporary directory can't be renamed into a folder on another disk, "
        "or fills the small disk of the node.",
        situation="a run saved, and was killed, with a temporary directory on another file system, and saved with one "
        "that does not exist",
    ),
)


def leads_to(written: str, working_directory: str, home: str) -> str:
    """Return the path of the folder, given what was configured and both directories when the manager is made.

    >>> leads_to("~/runs", "/job", home="/home/ada"), leads_to("runs/./a", "/job", home="/home/ada")
    ('/home/ada/runs', '/job/runs/a')

    A `~` stands for the home directory only where it is the whole first part of the path:

    >>> leads_to("./~", "/job", home="/home/ada"), leads_to("/data/~/a b", "/job", home="/home/ada")
    ('/job/~', '/data/~/a b')
    """
    expanded = posixpath.join(home, written[2:]) if written == "~" or written.startswith("~/") else written
    return posixpath.normpath(posixpath.join(working_directory, expanded))


def can_be_folder(stands: str) -> bool:
    """Return whether a folder can be there at the first save, given what its path leads to.

    `stands` is `nothing`, `directory`, `link to a directory`, `file`, `link to a file`, or `link to nothing`.

    >>> can_be_folder("nothing"), can_be_folder("link to a directory")
    (True, True)
    >>> can_be_folder("file"), can_be_folder("link to nothing")
    (False, False)
    """
    return stands in ("nothing", "directory", "link to a directory")


def mode(umask: int, is_directory: bool) -> int:
    """Return the mode of a directory or file that is made under a umask.

    >>> oct(mode(0o022, is_directory=True)), oct(mode(0o077, is_directory=False))
    ('0o755', '0o600')
    """
    return (0o777 if is_directory else 0o666) & ~umask
