"""Questions about where a run resumes after a loss of power."""

from forge_spec import durable
from forge_spec.disk import Mark
from forge_spec.questions.form import Answer, Corner, Given, Question, no_grid, steps_or_null

# -- answers by the predicates, and grids ------------------------------------------------


def _answer_comes_back(given: Given) -> Answer:
    return {"may_come_back": steps_or_null(durable.may_come_back(Mark(word, save) for word, save in given["marks"]))}


# -- corners ------------------------------------------------------------------------------


CORNERS: tuple[Corner, ...] = (
    Corner(
        "durable/comes-back",
        "nothing-saved",
        ("durable.power-loss",),
        {"marks": []},
        {"may_come_back": [None]},
        "Nothing was saved, so the run starts fresh.",
    ),
    Corner(
        "durable/comes-back",
        "acknowledged-and-one-begun",
        ("durable.power-loss", "durable.acknowledged"),
        {"marks": [["begins", 0], ["acknowledged", 0], ["begins", 1]]},
        {"may_come_back": [0, 1]},
        "Either the acknowledged save or the one in flight is allowed.",
    ),
    Corner(
        "durable/comes-back",
        "raised",
        ("durable.power-loss",),
        {"marks": [["begins", 0], ["acknowledged", 0], ["begins", 1], ["raised", 1]]},
        {"may_come_back": [0]},
        "A save that raised is not restored.",
    ),
    Corner(
        "durable/comes-back",
        "acknowledged-past-another",
        ("durable.acknowledged",),
        {"marks": [["begins", 0], ["begins", 1], ["acknowledged", 1]]},
        {"may_come_back": [1]},
        "No save that began before the acknowledged one may be restored.",
    ),
    Corner(
        "durable/comes-back",
        "acknowledged-by-the-next-call",
        ("durable.acknowledged",),
        {"marks": [["begins", 0], ["begins", 1], ["acknowledged", 0]]},
        {"may_come_back": [0, 1]},
        "The call that began save 1 acknowledged save 0, so a fresh start is not allowed any more.",
    ),
)

# -- the questions ----------------------------------------------------------------------

QUESTIONS: tuple[Question, ...] = (
    Question(
        "durable/comes-back",
        "which saves an auto-resume may restore after a loss of power",
        {"marks": "in order: a save begins, is acknowledged, or raised; and the number of the save, from 0"},
        {"may_come_back": "one of these saves; null in the list: a fresh start"},
        _answer_comes_back,
        lambda given: ("durable.power-loss", "durable.acknowledged"),
        no_grid,
    ),
)
