"""Questions about the schedule: which steps are saved, and which settings are refused."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from forge_spec import schedule
from forge_spec.questions.form import Answer, Corner, Given, Question

# -- answers by the predicates, and grids ------------------------------------------------


def _window(given: Mapping[str, Any] | None) -> schedule.Window | None:
    if given is None:
        return None
    start, stop = given["start"], given["stop"]
    fires = schedule.power2(start, stop) if given["strategy"] == "power2" else frozenset(given["strategy"])
    return schedule.Window(start, stop, fires)


def _answer_saves(given: Given) -> Answer:
    window = _window(given["window"])
    first, last = given["steps"]
    steps = range(first, last + 1)
    return {
        "saves": [step for step in steps if schedule.should_save(step, given["interval"], window)],
        "milestones": [step for step in steps if schedule.is_milestone(step, window)],
    }


def _clauses_of_saves(given: Given) -> Iterable[str]:
    window = given["window"]
    if window is None:
        return ("schedule.interval", "schedule.milestone")
    inside = ("schedule.window-replaces-interval", "schedule.milestone", "schedule.interval")
    return (*inside, "schedule.power2" if window["strategy"] == "power2" else "schedule.strategy-in-window")


def _grid_of_saves() -> Iterator[tuple[str, Given]]:
    windows = [None, (0, 0), (0, 8), (1, 2), (3, 3), (3, 8), (5, 21), (6, 7), (8, 16), (10, 12)]
    for interval, window in itertools.product((1, 2, 3, 4, 7), windows):
        ends = None if window is None else {"start": window[0], "stop": window[1], "strategy": "power2"}
        label = f"interval-{interval}" + ("" if window is None else f"-window-{window[0]}-{window[1]}")
        yield label, {"interval": interval, "window": ends, "steps": [0, 40]}
    for fires in ([], [9, 10, 20, 21], [10, 15], list(range(31))):
        window_of = {"start": 10, "stop": 20, "strategy": fires}
        yield f"strategy-of-{len(fires)}", {"interval": 5, "window": window_of, "steps": [0, 30]}


def _answer_configuration(given: Given) -> Answer:
    return {"refused_for": list(schedule.schedule_errors(given["interval"], given["start"], given["stop"]))}


def _grid_of_configuration() -> Iterator[tuple[str, Given]]:
    ends = [(None, None), (-1, 3), (0, 0), (0, 1), (4, 4), (5, 4), (1, 0)]
    for interval, (start, stop) in itertools.product((-1, 0, 1, 2), ends):
        yield f"interval-{interval}-window-{start}-{stop}", {"interval": interval, "start": start, "stop": stop}


def _answer_kind(given: Given) -> Answer:
    return {"is_refused": not schedule.is_of_its_kind(given["setting"], given["value"])}


def _grid_of_kinds() -> Iterator[tuple[str, Given]]:
    values: dict[str, Any] = {
        "number": 2,
        "text": "2",
        "fraction": 2.5,
        "boolean": True,
        "nothing": None,
        "list": [2],
        "texts": ["model"],
        "no-texts": [],
        "object": {},
    }
    settings = (*schedule.INTEGERS, *schedule.BOOLEANS, *schedule.LISTS)
    for setting, (label, value) in itertools.product(settings, values.items()):
        yield f"{setting}-{label}", {"setting": setting, "value": value}


# -- corners ------------------------------------------------------------------------------


def _saves(interval: int, window: tuple[int, int, Any] | None, last: int) -> dict[str, Any]:
    ends = None if window is None else dict(zip(("start", "stop", "strategy"), window, strict=True))
    return {"interval": interval, "window": ends, "steps": [0, last]}


_SCHEDULE = (
    Corner(
        "schedule/saves",
        "step-0-is-a-multiple",
        ("schedule.interval",),
        _saves(5, None, 11),
        {"saves": [0, 5, 10], "milestones": []},
        "0 is a multiple of every interval; without a window nothing is a milestone.",
    ),
    Corner(
        "schedule/saves",
        "interval-1",
        ("schedule.interval",),
        _saves(1, None, 3),
        {"saves": [0, 1, 2, 3], "milestones": []},
        "The smallest interval saves every step.",
    ),
    Corner(
        "schedule/saves",
        "power2-from-0",
        ("schedule.power2", "schedule.window-replaces-interval"),
        _saves(100, (0, 16, "power2"), 20),
        {"saves": [0, 1, 2, 4, 8, 16], "milestones": [0, 1, 2, 4, 8, 16]},
        "The steps are start, then start + 1, 2, 4, ...; the stop, 16, is included.",
    ),
    Corner(
        "schedule/saves",
        "power2-counts-from-start",
        ("schedule.power2",),
        _saves(100, (5, 21, "power2"), 22),
        {"saves": [0, 5, 6, 7, 9, 13, 21], "milestones": [5, 6, 7, 9, 13, 21]},
        "The powers are distances from start, so 8 and 16 are not saved. Step 0 is saved because of the interval.",
    ),
    Corner(
        "schedule/saves",
        "stop-between-powers",
        ("schedule.power2",),
        _saves(100, (5, 20, "power2"), 22),
        {"saves": [0, 5, 6, 7, 9, 13], "milestones": [5, 6, 7, 9, 13]},
        "21 is one step beyond the stop, and the distance of the stop itself is not a power of two.",
    ),
    Corner(
        "schedule/saves",
        "interval-is-silent-inside",
        ("schedule.window-replaces-interval",),
        _saves(2, (3, 8, "power2"), 12),
        {"saves": [0, 2, 3, 4, 5, 7, 10, 12], "milestones": [3, 4, 5, 7]},
        "6 and 8 are multiples of 2 inside the window, where only the strategy decides; 2 and 10 are just outside.",
    ),
    Corner(
        "schedule/saves",
        "interval-is-silent-at-the-stop",
        ("schedule.window-replaces-interval",),
        _saves(4, (1, 8, "power2"), 12),
        {"saves": [0, 1, 2, 3, 5, 12], "milestones": [1, 2, 3, 5]},
        "8 is a multiple of 4, but it is the last step of the window, and the strategy does not fire there.",
    ),
    Corner(
        "schedule/saves",
        "window-of-one-step",
        ("schedule.window-replaces-interval", "schedule.milestone"),
        _saves(2, (3, 3, "power2"), 4),
        {"saves": [0, 2, 3, 4], "milestones": [3]},
        "start and stop may be the same step.",
    ),
    Corner(
        "schedule/saves",
        "window-of-step-0",
        ("schedule.window-replaces-interval", "schedule.milestone"),
        _saves(3, (0, 0, "power2"), 3),
        {"saves": [0, 3], "milestones": [0]},
        "Step 0 is a milestone here, because it is inside the window.",
    ),
    Corner(
        "schedule/saves",
        "strategy-outside-its-window",
        ("schedule.strategy-in-window", "schedule.milestone"),
        _saves(7, (10, 12, [9, 10, 12, 13, 14]), 15),
        {"saves": [0, 7, 10, 12, 14], "milestones": [10, 12]},
        "The strategy also fires at 9, 13 and 14, outside its window, where it does not count; the interval saves 14.",
    ),
    Corner(
        "schedule/saves",
        "strategy-that-never-fires",
        ("schedule.window-replaces-interval",),
        _saves(1, (2, 3, []), 5),
        {"saves": [0, 1, 4, 5], "milestones": []},
        "A strategy that never fires saves nothing in its window, whatever the interval.",
    ),
    Corner(
        "schedule/configuration",
        "interval-0",
        ("schedule.validate",),
        {"interval": 0, "start": None, "stop": None},
        {"refused_for": ["interval"]},
        "It would divide by zero at the first due step.",
    ),
    Corner(
        "schedule/configuration",
        "interval-minus-1",
        ("schedule.validate",),
        {"interval": -1, "start": None, "stop": None},
        {"refused_for": ["interval"]},
        "Every step is a multiple of -1.",
    ),
    Corner(
        "schedule/configuration",
        "stop-just-below-start",
        ("schedule.validate-window",),
        {"interval": 1, "start": 5, "stop": 4},
        {"refused_for": ["stop"]},
        "An empty window never fires.",
    ),
    Corner(
        "schedule/configuration",
        "stop-at-start",
        ("schedule.validate-window",),
        {"interval": 1, "start": 5, "stop": 5},
        {"refused_for": []},
        "A window of one step is allowed.",
    ),
    Corner(
        "schedule/configuration",
        "start-0",
        ("schedule.validate-window",),
        {"interval": 1, "start": 0, "stop": 0},
        {"refused_for": []},
        "A window may start at step 0.",
    ),
)


def _kind(label: str, setting: str, value: Any, is_refused: bool, why: str) -> Corner:
    given, expected = {"setting": setting, "value": value}, {"is_refused": is_refused}
    return Corner("schedule/kinds", label, ("schedule.kinds",), given, expected, why)


_KINDS = (
    _kind("a-number-as-text", "keep_last_n", "2", True, "It is compared with a number at the first commit."),
    _kind("a-whole-fraction", "interval", 3.0, True, "1e3 from a file is a float in some languages; write 1000."),
    _kind("true-for-one", "interval", True, True, "In some languages true is 1, and the run would save at every step."),
    _kind("nothing-for-no-limit", "keep_last_n", None, True, "0 keeps all; null is not a number."),
    _kind("all-are-kept", "keep_last_n", 0, False, "0 says that none is deleted."),
    _kind("less-than-none", "keep_last_n", -1, False, "0 or less keeps all."),
    _kind(
        "false-as-text",
        "ignore_freeze_mismatch",
        "false",
        True,
        "A string that is not empty is true in some languages.",
    ),
    _kind(
        "one-part-as-text",
        "exclude_from_loading",
        "model",
        True,
        "As a sequence it is five letters, and no letter is a part of the state.",
    ),
    _kind(
        "one-part-in-a-list",
        "exclude_from_loading",
        ["model"],
        False,
        "A list with one part is how one part is excluded.",
    ),
)


CORNERS: tuple[Corner, ...] = (*_SCHEDULE, *_KINDS)

# -- the questions ----------------------------------------------------------------------

QUESTIONS: tuple[Question, ...] = (
    Question(
        "schedule/saves",
        "which steps are saved, and which of them are milestones",
        {
            "interval": "steps outside the window are saved at its multiples",
            "window": "null, or `start` and `stop`, both included, and `strategy`: power2, or the list of steps "
            "on which a registered strategy fires, inside the window or not",
            "steps": "the first and the last step to ask about",
        },
        {"saves": "the steps that are saved", "milestones": "the steps that are milestones"},
        _answer_saves,
        _clauses_of_saves,
        _grid_of_saves,
    ),
    Question(
        "schedule/configuration",
        "whether a schedule is refused when it is configured",
        {
            "interval": "the interval",
            "start": "the first step of the window; null: there is no window",
            "stop": "the last step of the window, or null",
        },
        {"refused_for": "the error has to name one of these fields; empty: the configuration is accepted"},
        _answer_configuration,
        lambda given: ("schedule.validate",) if given["start"] is None else ("schedule.validate-window",),
        _grid_of_configuration,
    ),
    Question(
        "schedule/kinds",
        "whether a setting is refused because its value has another type than it takes",
        {"setting": "the name of the setting; `start` and `stop` are those of a window", "value": "its value"},
        {"is_refused": "whether an error names it when it is configured; only the type of the value is asked about"},
        _answer_kind,
        lambda given: ("schedule.kinds",),
        _grid_of_kinds,
    ),
)
