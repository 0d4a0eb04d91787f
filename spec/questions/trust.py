"""Questions about owners and modes of pickles and directories."""

import itertools
from collections.abc import Iterator

from forge_spec import trust
from forge_spec.questions.form import Answer, Corner, Given, Question

# -- answers by the predicates, and grids ------------------------------------------------


_MODES = ("0600", "0644", "0640", "0664", "0620", "0602", "0606", "0666", "0755", "1777", "1755", "0777", "0775")


def _answer_pickle(given: Given) -> Answer:
    objections = trust.judge_pickle(given["owner"], given["reader"], int(given["mode"], 8))
    return {"objections": sorted(objections)}


def _grid_of_pickle() -> Iterator[tuple[str, Given]]:
    for (owner, reader), mode in itertools.product(((1000, 1000), (1001, 1000), (0, 1000), (1000, 0)), _MODES):
        yield f"{owner}-for-{reader}-{mode}", {"owner": owner, "reader": reader, "mode": mode}


def _answer_directory(given: Given) -> Answer:
    return {"objections": sorted(trust.judge_directory(int(given["mode"], 8)))}


# -- corners ------------------------------------------------------------------------------


def _pickle(label: str, owner: int, reader: int, mode: str, objections: list[str], why: str) -> Corner:
    clauses = ("trust.foreign-owner",) if objections == ["refuse"] else ("trust.writable-warning",)
    given = {"owner": owner, "reader": reader, "mode": mode}
    return Corner("trust/pickle", label, clauses, given, {"objections": objections}, why)


CORNERS: tuple[Corner, ...] = (
    _pickle("own-and-private", 1000, 1000, "0644", [], "Others may read it, but not write to it."),
    _pickle("own-and-group-writable", 1000, 1000, "0664", ["warn"], "The next writer need not be the owner."),
    _pickle("own-and-world-writable", 1000, 1000, "0602", ["warn"], "Everybody may write to it."),
    _pickle("of-root", 0, 1000, "0644", ["refuse"], "root is another user as well."),
    _pickle("for-root", 1000, 0, "0644", ["refuse"], "For root, too, the owner is another user."),
    _pickle("foreign-and-writable", 1001, 1000, "0666", ["refuse"], "A refusal needs no warning beside it."),
    Corner(
        "trust/directory",
        "sticky",
        ("trust.directory",),
        {"mode": "1777"},
        {"objections": []},
        "Everybody may add files, but only owners may replace theirs.",
    ),
    Corner(
        "trust/directory",
        "open",
        ("trust.directory",),
        {"mode": "0777"},
        {"objections": ["warn"]},
        "Whoever may write here can replace a private file.",
    ),
)

# -- the questions ----------------------------------------------------------------------

QUESTIONS: tuple[Question, ...] = (
    Question(
        "trust/pickle",
        "what speaks against unpickling a file",
        {
            "owner": "the user id of the owner",
            "reader": "the user id of the process",
            "mode": "the mode of the file, octal",
        },
        {"objections": "refuse, warn, or none"},
        _answer_pickle,
        lambda given: ("trust.foreign-owner", "trust.writable-warning"),
        _grid_of_pickle,
    ),
    Question(
        "trust/directory",
        "what speaks against a directory that a pickle is read from",
        {"mode": "the mode of the directory, octal"},
        {"objections": "warn, or none"},
        _answer_directory,
        lambda given: ("trust.directory",),
        lambda: iter([(mode, {"mode": mode}) for mode in _MODES]),
    ),
)
