"""Questions about the folder: where it is, what may be in its place, and the modes of what is made."""

from forge_spec import place
from forge_spec.questions.form import Answer, Corner, Given, Question, no_grid

# -- answers by the predicates, and grids ------------------------------------------------


def _answer_leads_to(given: Given) -> Answer:
    return {"folder": place.leads_to(given["written"], given["working_directory"], given["home"])}


def _answer_stands(given: Given) -> Answer:
    return {"is_refused": not place.can_be_folder(given["stands"])}


def _answer_mode(given: Given) -> Answer:
    umask = int(given["umask"], 8)
    return {
        "directories": f"{place.mode(umask, is_directory=True):03o}",
        "files": f"{place.mode(umask, is_directory=False):03o}",
    }


# -- corners ------------------------------------------------------------------------------


def _leads(label: str, written: str, folder: str, why: str) -> Corner:
    given = {"written": written, "working_directory": "/job", "home": "/home/ada"}
    clauses = ("place.home", "place.fixed", "place.any-name")
    return Corner("place/leads-to", label, clauses, given, {"folder": folder}, why)


def _stands(label: str, stands: str, is_refused: bool, why: str) -> Corner:
    return Corner("place/stands", label, ("place.checked",), {"stands": stands}, {"is_refused": is_refused}, why)


def _mode(label: str, umask: str, directories: str, files: str, why: str) -> Corner:
    expected = {"directories": directories, "files": files}
    return Corner("place/mode", label, ("place.umask",), {"umask": umask}, expected, why)


CORNERS: tuple[Corner, ...] = (
    _leads("home", "~/runs", "/home/ada/runs", "A shell would have expanded `~`; a configuration file has no shell."),
    _leads("home-alone", "~", "/home/ada", "The home directory itself may be the folder."),
    _leads("a-directory-called-tilde", "./~", "/job/~", "Only a leading tilde means the home directory."),
    _leads("tilde-within", "/data/~/run", "/data/~/run", "Only a leading tilde means the home directory."),
    _leads("tilde-at-the-end", "run~", "/job/run~", "A tilde at the end is a part of the name."),
    _leads(
        "relative",
        "runs/a",
        "/job/runs/a",
        "A relative path starts at the working directory of the moment when the manager is made.",
    ),
    _leads("absolute", "/data/run", "/data/run", "For an absolute path neither directory matters."),
    _leads("trailing-slash", "/data/run/", "/data/run", "It is the same folder."),
    _leads("pattern", "/data/run[1]*", "/data/run[1]*", "A name is not a pattern."),
    _leads("format", "/data/{step}%s", "/data/{step}%s", "A name is not a format."),
    _leads("variable", "/data/$HOME", "/data/$HOME", "Variables are left to the shell."),
    _stands("nothing", "nothing", False, "It is made with the first save."),
    _stands("directory", "directory", False, "It may hold checkpoints."),
    _stands(
        "link-to-a-directory", "link to a directory", False, "Folders on other disks are often linked in this way."
    ),
    _stands("file", "file", True, "No save can succeed there."),
    _stands("link-to-a-file", "link to a file", True, "No save can succeed there."),
    _stands("link-to-nothing", "link to nothing", True, "The disk that the link leads to may not be mounted yet."),
    _mode("usual", "022", "755", "644", "Everybody may read."),
    _mode("a-group-that-works-together", "002", "775", "664", "The group may delete checkpoints as well."),
    _mode("private", "077", "700", "600", "Nobody else may read."),
    _mode("none", "000", "777", "666", "Files are not made executable under any umask."),
)

# -- the questions ----------------------------------------------------------------------

QUESTIONS: tuple[Question, ...] = (
    Question(
        "place/leads-to",
        "where the folder of a manager is",
        {
            "written": "the folder as it is configured",
            "working_directory": "the working directory of the process when the manager is made",
            "home": "the home directory when the manager is made",
        },
        {"folder": "the path at which checkpoints are saved and found, even if the working directory changes later"},
        _answer_leads_to,
        lambda given: ("place.home", "place.fixed", "place.any-name"),
        no_grid,
    ),
    Question(
        "place/stands",
        "whether a folder is refused for what its path leads to",
        {"stands": "nothing, directory, link to a directory, file, link to a file, or link to nothing"},
        {"is_refused": "whether an error names it, at the load at the latest"},
        _answer_stands,
        lambda given: ("place.checked",),
        no_grid,
    ),
    Question(
        "place/mode",
        "the modes of the directories and files that are made",
        {"umask": "the umask of the process, octal"},
        {"directories": "their mode, octal", "files": "their mode, octal"},
        _answer_mode,
        lambda given: ("place.umask",),
        lambda: iter([(umask, {"umask": umask}) for umask in ("027", "007", "066", "037")]),
    ),
)
