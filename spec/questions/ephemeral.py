"""Questions about what hooks save, what they remove, and which settings they refuse."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from forge_spec import ephemeral
from forge_spec.questions.form import Answer, Corner, Given, Question

# -- answers by the predicates, and grids ------------------------------------------------

_SETTINGS = ("save_interval", "ephemeral_save_interval", "ephemeral_cooldown", "max_checkpoints")


def _plan(settings: Mapping[str, Any]) -> ephemeral.Plan:
    """Return the plan with the settings that are named; the others have the defaults of the API."""
    return ephemeral.Plan(**{**settings, "fixed_steps": frozenset(settings.get("fixed_steps", ()))})


def _answer_saves(given: Given) -> Answer:
    first, last = given["steps"]
    made = ephemeral.saves(_plan(given["settings"]), first, last, given["last_saved"], given["blocked"])
    return {"saves": [[step, kind] for step, kind in sorted(made.items())]}


def _clauses_of_saves(given: Given) -> Iterable[str]:
    yield from ("ephemeral.permanent", "ephemeral.between")
    if given["settings"].get("fixed_steps"):
        yield "ephemeral.fixed"
    if given["settings"].get("ephemeral_cooldown") is not None:
        yield "ephemeral.cooldown"
    if given["blocked"]:
        yield "ephemeral.blocked"


def _grid_of_saves() -> Iterator[tuple[str, Given]]:
    intervals, cooldowns = ((6, 2), (4, 3), (5, None), (None, 2)), (None, 1, 2, 3, 4)
    for (permanent, between), cooldown in itertools.product(intervals, cooldowns):
        settings = {
            "save_interval": permanent,
            "ephemeral_save_interval": between,
            "ephemeral_cooldown": cooldown,
            "fixed_steps": [3, 8],
        }
        given = {"settings": settings, "steps": [1, 14], "last_saved": 0, "blocked": []}
        yield f"every-{permanent}-and-{between}-cooldown-{cooldown}".lower(), given


def _answer_collected(given: Given) -> Answer:
    standing = {int(step): kind for step, kind in given["standing"]}
    return {"collected": sorted(ephemeral.collected(standing, given["own_step"], _plan(given["settings"])))}


def _grid_of_collected() -> Iterator[tuple[str, Given]]:
    unknown = [[step, None] for step in range(9)]
    recorded = [[step, "permanent" if step % 4 == 0 else "ephemeral"] for step in range(9)]
    for remove, (permanent, between) in itertools.product(ephemeral.STRATEGIES, ((4, 2), (6, 3), (6, None))):
        settings = {"save_interval": permanent, "ephemeral_save_interval": between, "remove": remove}
        for name, standing in (("unknown", unknown), ("recorded", recorded)):
            label = f"{remove.replace('_', '-')}-every-{permanent}-and-{between}-{name}".lower()
            yield label, {"standing": standing, "own_step": 7, "settings": settings}


def _answer_removal(given: Given) -> Answer:
    standing = {int(step): kind for step, kind in given["standing"]}
    return {"goes": sorted(ephemeral.leaving(standing, given["saved"], given["max_checkpoints"]))}


def _clauses_of_removal(given: Given) -> Iterable[str]:
    is_ephemeral = [given["saved"], "ephemeral"] in given["standing"]
    yield from ("ephemeral.replaced", "ephemeral.keeps") if is_ephemeral else ("ephemeral.limit",)
    if not is_ephemeral and any(step > given["saved"] for step, _ in given["standing"]):
        yield "ephemeral.above"


def _grid_of_removal() -> Iterator[tuple[str, Given]]:
    standing = [[step, "permanent" if step % 4 == 0 else "ephemeral"] for step in range(0, 17, 2)]
    for saved, limit in itertools.product((8, 10, 12, 16), (None, 1, 2, 3, 9)):
        yield f"step-{saved}-limit-{limit}".lower(), {"standing": standing, "saved": saved, "max_checkpoints": limit}


def _answer_configuration(given: Given) -> Answer:
    return {"refused_for": list(ephemeral.refused_for(**given))}


def _grid_of_configuration() -> Iterator[tuple[str, Given]]:
    unset = dict.fromkeys(_SETTINGS)
    for permanent, between in itertools.product((None, -1, 0, 1, 2), (None, -1, 0, 1, 2)):
        given = {"save_interval": permanent, "ephemeral_save_interval": between}
        yield f"every-{permanent}-and-{between}".lower(), {**unset, **given}
    for number in (-1, 0, 1):
        yield f"cooldown-{number}", {**unset, "ephemeral_cooldown": number}
        yield f"limit-{number}", {**unset, "max_checkpoints": number}


# -- corners ------------------------------------------------------------------------------

CORNERS: tuple[Corner, ...] = (
    Corner(
        "ephemeral/saves",
        "both-are-due",
        ("ephemeral.permanent", "ephemeral.between"),
        {
            "settings": {"save_interval": 4, "ephemeral_save_interval": 2},
            "steps": [1, 6],
            "last_saved": None,
            "blocked": [],
        },
        {"saves": [[2, "ephemeral"], [4, "permanent"], [6, "ephemeral"]]},
        "Where both are due it is the permanent one, and no second save.",
    ),
    Corner(
        "ephemeral/saves",
        "a-fixed-step-on-the-ephemeral-interval",
        ("ephemeral.fixed",),
        {
            "settings": {"save_interval": 10, "ephemeral_save_interval": 2, "fixed_steps": [4, 5]},
            "steps": [1, 6],
            "last_saved": None,
            "blocked": [],
        },
        {"saves": [[2, "ephemeral"], [4, "permanent"], [5, "permanent"], [6, "ephemeral"]]},
        "A fixed step is permanent, on an interval or on none.",
    ),
    Corner(
        "ephemeral/saves",
        "cooldown-ends-at-the-distance",
        ("ephemeral.cooldown",),
        {
            "settings": {"save_interval": 6, "ephemeral_save_interval": 2, "ephemeral_cooldown": 4},
            "steps": [1, 12],
            "last_saved": 0,
            "blocked": [],
        },
        {"saves": [[4, "ephemeral"], [6, "permanent"], [10, "ephemeral"], [12, "permanent"]]},
        "Step 4 is four steps after 0; step 8 is too near to 6; step 12 is permanent, two steps after 10.",
    ),
    Corner(
        "ephemeral/saves",
        "blocked-at-both-kinds",
        ("ephemeral.blocked",),
        {
            "settings": {"save_interval": 4, "ephemeral_save_interval": 2},
            "steps": [1, 6],
            "last_saved": None,
            "blocked": [2, 4],
        },
        {"saves": [[4, "permanent"], [6, "ephemeral"]]},
        "The permanent one is not held back, and a blocked one is not made up for.",
    ),
    Corner(
        "ephemeral/saves",
        "no-permanent-interval",
        ("ephemeral.between",),
        {
            "settings": {"save_interval": None, "ephemeral_save_interval": 3},
            "steps": [1, 6],
            "last_saved": None,
            "blocked": [],
        },
        {"saves": [[3, "ephemeral"], [6, "ephemeral"]]},
        "None turns the permanent ones off, and nothing else.",
    ),
    Corner(
        "ephemeral/collected",
        "the-one-that-the-run-resumed-from",
        ("ephemeral.collects",),
        {
            "standing": [[4, "permanent"], [6, "ephemeral"]],
            "own_step": 6,
            "settings": {"save_interval": 4, "ephemeral_save_interval": 2},
        },
        {"collected": [6]},
        "It is an old ephemeral one as well, and goes when the next one is complete.",
    ),
    Corner(
        "ephemeral/collected",
        "the-last-one-of-an-earlier-run",
        ("ephemeral.class-recorded",),
        {
            "standing": [[4, "permanent"], [7, "permanent"]],
            "own_step": 7,
            "settings": {"save_interval": 4, "ephemeral_save_interval": 2, "remove": "all_non_permanent"},
        },
        {"collected": []},
        "Step 7 lies on no interval, and was saved as permanent at the end of a run.",
    ),
    Corner(
        "ephemeral/collected",
        "the-intervals-have-changed",
        ("ephemeral.class-recorded",),
        {
            "standing": [[6, "permanent"], [8, "ephemeral"], [10, "ephemeral"]],
            "own_step": 10,
            "settings": {"save_interval": 5, "ephemeral_save_interval": 3},
        },
        {"collected": [8]},
        "Step 6 was saved as permanent; 8 is ephemeral on any interval; 10 is permanent by the new one, and stays.",
    ),
    Corner(
        "ephemeral/collected",
        "above-the-run",
        ("ephemeral.spares",),
        {
            "standing": [[0, "ephemeral"], [2, "ephemeral"], [6, "ephemeral"]],
            "own_step": 5,
            "settings": {"save_interval": 100, "ephemeral_save_interval": 2},
        },
        {"collected": [2]},
        "Step 6 is of a process that went further, and step 0 is never collected.",
    ),
    Corner(
        "ephemeral/removal",
        "all-that-are-older",
        ("ephemeral.replaced", "ephemeral.keeps"),
        {
            "standing": [[2, "ephemeral"], [4, "permanent"], [6, "ephemeral"], [8, "ephemeral"], [10, "ephemeral"]],
            "saved": 8,
            "max_checkpoints": 1,
        },
        {"goes": [2, 6]},
        "Not only the one before; the permanent one stays, and what is above is of another process.",
    ),
    Corner(
        "ephemeral/removal",
        "as-many-as-the-limit-of-hooks",
        ("ephemeral.limit",),
        {
            "standing": [[0, "permanent"], [2, "ephemeral"], [4, "permanent"], [8, "permanent"]],
            "saved": 8,
            "max_checkpoints": 3,
        },
        {"goes": []},
        "Three of three stay: step 0 counts, the ephemeral one does not.",
    ),
    Corner(
        "ephemeral/removal",
        "below-more-than-the-limit",
        ("ephemeral.above",),
        {
            "standing": [[2, "permanent"], [4, "permanent"], [8, "permanent"], [12, "permanent"]],
            "saved": 4,
            "max_checkpoints": 2,
        },
        {"goes": []},
        "Steps 8 and 12 are above the save, and don't count.",
    ),
    Corner(
        "ephemeral/configuration",
        "equal-intervals",
        ("ephemeral.validate",),
        {"save_interval": 4, "ephemeral_save_interval": 4, "ephemeral_cooldown": None, "max_checkpoints": None},
        {"refused_for": ["ephemeral_save_interval"]},
        "Every ephemeral save would be a permanent one.",
    ),
)

# -- the questions ----------------------------------------------------------------------

QUESTIONS: tuple[Question, ...] = (
    Question(
        "ephemeral/saves",
        "what hooks save after each batch of a run, and of which kind",
        {
            "settings": "fields of `CheckpointerCallback`, by name",
            "steps": "first and last step that is trained",
            "last_saved": "the step that this run has saved before; null: none",
            "blocked": "steps at which the run blocks ephemeral checkpoints",
        },
        {"saves": "pairs of a step and permanent or ephemeral"},
        _answer_saves,
        _clauses_of_saves,
        _grid_of_saves,
    ),
    Question(
        "ephemeral/collected",
        "which checkpoints of earlier runs hooks treat as old ephemeral ones",
        {
            "standing": "complete steps, each with its recorded kind; null: none is recorded",
            "own_step": "the step that the run begins at",
            "settings": "fields of `CheckpointerCallback`, by name",
        },
        {"collected": "the steps"},
        _answer_collected,
        lambda given: ("ephemeral.collects", "ephemeral.spares", "ephemeral.class-recorded"),
        _grid_of_collected,
    ),
    Question(
        "ephemeral/removal",
        "what hooks remove when a save is complete",
        {
            "standing": "complete steps, each with its kind",
            "saved": "the step whose save is complete",
            "max_checkpoints": "the limit of permanent ones, or null",
        },
        {"goes": "the steps that are removed; no other one is"},
        _answer_removal,
        _clauses_of_removal,
        _grid_of_removal,
    ),
    Question(
        "ephemeral/configuration",
        "what is refused when hooks are configured",
        {field: f"`{field}`, or null" for field in _SETTINGS},
        {"refused_for": "the fields; an error has to name one of them; empty: accepted"},
        _answer_configuration,
        lambda given: ("ephemeral.validate",),
        _grid_of_configuration,
    ),
)
