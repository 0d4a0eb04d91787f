"""Questions about freeze lists: their form, their comparison, and the list in force at a step."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from forge_spec import freeze
from forge_spec.questions.form import Answer, Corner, Given, Question, no_grid

# -- answers by the predicates, and grids ------------------------------------------------


def _entries(pairs: Iterable[Sequence[Any]]) -> list[freeze.Entry]:
    return [(module, frozen) for module, frozen in pairs]


def _answer_canonical(given: Given) -> Answer:
    return {"recorded": freeze.canonical(_entries(given["entries"]))}


def _answer_compare(given: Given) -> Answer:
    saved, expected = given["saved"], given["expected"]
    if not isinstance(saved, list) or expected is None:
        is_warned = saved == "unreadable" and expected is not None
        return {"outcome": "goes on", "must_warn": is_warned, "differing": []}
    seen = freeze.Comparison(freeze.canonical(_entries(saved)), freeze.canonical(_entries(expected)))
    is_refused = seen.is_mismatch and not given["ignore"]
    return {
        "outcome": "refused" if is_refused else "goes on",
        "must_warn": not is_refused and (seen.is_mismatch or seen.has_zero_overlap),
        "differing": list(seen.differing),
    }


def _clauses_of_compare(given: Given) -> Iterable[str]:
    answer = _answer_compare(given)
    if given["saved"] == "unreadable":
        return ("freeze.unreadable",)
    if given["saved"] is None or given["expected"] is None:
        return ("freeze.absent",)
    if answer["differing"]:
        return ("freeze.override",) if given["ignore"] else ("freeze.mismatch",)
    return ("freeze.intersection", "freeze.zero-overlap") if answer["must_warn"] else ("freeze.intersection",)


def _grid_of_compare() -> Iterator[tuple[str, Given]]:
    words = {None: "absent", True: "frozen", False: "thawed"}
    sides = list(itertools.product((None, True, False), repeat=2))
    for saved, expected in itertools.product(sides, repeat=2):
        label = "-".join(words[state] for state in (*saved, *expected))
        lists = [
            [[m, state] for m, state in zip(("a", "b"), side, strict=True) if state is not None]
            for side in (saved, expected)
        ]
        yield label, {"saved": lists[0], "expected": lists[1], "ignore": False}


def _answer_effective(given: Given) -> Answer:
    stages = [(stage["start_step"], _entries(stage["entries"])) for stage in given["schedule"]]
    try:
        in_force = freeze.effective(given["step"], _entries(given["base"]), stages, given["valid_modules"])
    except ValueError:
        return {"outcome": "refused", "in_force": None}
    return {"outcome": "in force", "in_force": [list(entry) for entry in in_force]}


def _grid_of_effective() -> Iterator[tuple[str, Given]]:
    stages = [
        {"start_step": 200, "entries": [["a", False]]},
        {"start_step": 100, "entries": [["b", True], ["c", True]]},
    ]
    for step, base in itertools.product((0, 99, 100, 101, 199, 200, 201), ([], [["a", True]], [["c", False]])):
        label = f"step-{step}-base-{''.join(str(module) for module, _ in base) or 'empty'}"
        yield label, {"step": step, "base": base, "schedule": stages, "valid_modules": None}


# -- corners ------------------------------------------------------------------------------


def _compared(
    label: str,
    clause: str,
    saved: Any,
    expected: Any,
    answer: tuple[str, bool, list[str]],
    why: str,
    ignore: bool = False,
) -> Corner:
    outcome, must_warn, differing = answer
    given = {"saved": saved, "expected": expected, "ignore": ignore}
    told = {"outcome": outcome, "must_warn": must_warn, "differing": differing}
    return Corner("freeze/compare", label, (clause,), given, told, why)


_STAGES_OF_FREEZING = [
    {"start_step": 200, "entries": [["vision", True]]},
    {"start_step": 100, "entries": [["vision", False], ["adapter", True]]},
]


def _in_force(label: str, step: int, expected: list[list[Any]] | None, why: str, **more: Any) -> Corner:
    usual = {"base": [["vision", True]], "schedule": _STAGES_OF_FREEZING, "valid_modules": None}
    answer = {"outcome": "refused" if expected is None else "in force", "in_force": expected}
    return Corner("freeze/effective", label, ("freeze.effective",), {"step": step, **usual, **more}, answer, why)


CORNERS: tuple[Corner, ...] = (
    Corner(
        "freeze/canonical",
        "order-and-repetition",
        ("freeze.canonical",),
        {"entries": [["vision", True], ["adapter", False], ["vision", True]]},
        {"recorded": [{"module": "adapter", "frozen": False}, {"module": "vision", "frozen": True}]},
        "Sorted by module, equal entries once.",
    ),
    Corner(
        "freeze/canonical",
        "nothing",
        ("freeze.canonical",),
        {"entries": []},
        {"recorded": []},
        "An empty list is recorded as an empty list.",
    ),
    Corner(
        "freeze/canonical",
        "one-module-both-ways",
        ("freeze.canonical",),
        {"entries": [["vision", True], ["vision", False]]},
        {"recorded": [{"module": "vision", "frozen": False}, {"module": "vision", "frozen": True}]},
        "Both stay: to choose one would need the order, and the form does not depend on the order.",
    ),
    Corner(
        "freeze/canonical",
        "capitals",
        ("freeze.canonical",),
        {"entries": [["b", True], ["B", True], ["a", True]]},
        {
            "recorded": [
                {"module": "B", "frozen": True},
                {"module": "a", "frozen": True},
                {"module": "b", "frozen": True},
            ]
        },
        "Modules are sorted by code point.",
    ),
    _compared(
        "more-on-both-sides",
        "freeze.intersection",
        [["vision", True], ["text", False]],
        [["adapter", True], ["vision", True]],
        ("goes on", False, []),
        "They agree on vision, the only module that both name.",
    ),
    _compared(
        "differ-on-a-shared-one",
        "freeze.mismatch",
        [["vision", True], ["text", False]],
        [["adapter", True], ["vision", False]],
        ("refused", False, ["vision"]),
        "vision was frozen, and is to be trained.",
    ),
    _compared(
        "differ-on-one-of-two",
        "freeze.mismatch",
        [["text", False], ["vision", True]],
        [["text", False], ["vision", False]],
        ("refused", False, ["vision"]),
        "One module that agrees is not enough.",
    ),
    _compared(
        "difference-ignored",
        "freeze.override",
        [["vision", True]],
        [["vision", False]],
        ("goes on", True, ["vision"]),
        "The load goes on with a warning.",
        ignore=True,
    ),
    _compared(
        "nothing-in-common",
        "freeze.zero-overlap",
        [["vision", True]],
        [["visual", True]],
        ("goes on", True, []),
        "Nothing was compared, so the load warns: a module was renamed.",
    ),
    _compared(
        "saved-empty",
        "freeze.zero-overlap",
        [],
        [["vision", True]],
        ("goes on", False, []),
        "Nothing was recorded to compare with.",
    ),
    _compared(
        "nothing-recorded",
        "freeze.absent",
        None,
        [["vision", True]],
        ("goes on", False, []),
        "An older checkpoint has no record.",
    ),
    _compared(
        "nothing-expected",
        "freeze.absent",
        [["vision", True]],
        None,
        ("goes on", False, []),
        "A run that expects nothing compares nothing.",
    ),
    _compared(
        "unreadable",
        "freeze.unreadable",
        "unreadable",
        [["vision", False]],
        ("goes on", True, []),
        "The weights are intact, but the load warns that nothing was compared.",
    ),
    _in_force("before-the-first-stage", 99, [["vision", True]], "The first stage begins one step later."),
    _in_force(
        "at-the-first-stage", 100, [["adapter", True], ["vision", False]], "A stage is in force from its start step on."
    ),
    _in_force(
        "just-before-the-second", 199, [["adapter", True], ["vision", False]], "The first stage is still in force."
    ),
    _in_force(
        "at-the-second-stage",
        200,
        [["adapter", True], ["vision", True]],
        "The later stage wins, even if it is written first; modules that it does not name stay as they were.",
    ),
    _in_force(
        "stages-in-order-of-their-start",
        200,
        [["vision", False]],
        "The stage that begins last wins.",
        schedule=[
            {"start_step": 100, "entries": [["vision", True]]},
            {"start_step": 200, "entries": [["vision", False]]},
        ],
    ),
    _in_force("unknown-module", 100, None, "The module adapter is in force and unknown.", valid_modules=["vision"]),
    _in_force(
        "unknown-module-later",
        99,
        [["vision", True]],
        "A stage that is not in force yet is not checked.",
        valid_modules=["vision"],
    ),
    _in_force(
        "named-twice",
        0,
        [["vision", False]],
        "The last entry for a module wins.",
        base=[["vision", True], ["vision", False]],
        schedule=[],
    ),
)

# -- the questions ----------------------------------------------------------------------

QUESTIONS: tuple[Question, ...] = (
    Question(
        "freeze/canonical",
        "the form in which a freeze list is recorded",
        {"entries": "module and whether it is frozen"},
        {"recorded": "the JSON value of `vlm_freeze`"},
        _answer_canonical,
        lambda given: ("freeze.canonical",),
        no_grid,
    ),
    Question(
        "freeze/compare",
        "what a load does, given two freeze lists",
        {
            "saved": "the list recorded with the checkpoint; null: none; unreadable: `metadata.json` can't be parsed, "
            "in a checkpoint that records no checksum of it",
            "expected": "the list that the run expects, or null",
            "ignore": "whether a mismatch is to be ignored",
        },
        {
            "outcome": "refused or goes on",
            "must_warn": "whether it has to warn",
            "differing": "the modules on which the lists differ, of those that both name",
        },
        _answer_compare,
        _clauses_of_compare,
        _grid_of_compare,
    ),
    Question(
        "freeze/effective",
        "the freeze list in force at a step",
        {
            "step": "the step",
            "base": "module and whether it is frozen",
            "schedule": "the stages, each in force from `start_step` on",
            "valid_modules": "all modules that exist; null: not checked",
        },
        {"outcome": "in force or refused", "in_force": "the list, in any order; null if refused"},
        _answer_effective,
        lambda given: ("freeze.effective",),
        _grid_of_effective,
    ),
)
