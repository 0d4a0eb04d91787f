"""Chapter schedule: which steps are saved. The manager is asked, and its saves and loads must not matter."""

from collections.abc import Callable
from typing import Any

import pytest

from forge_conformance.judging.judge import Unreached, judges
from forge_conformance.runs.life import Life
from forge_conformance.runs.scenario import Scenario
from forge_conformance.runs.state import ALL_KINDS
from forge_spec import schedule

STEPS = list(range(0, 640))
WINDOWS = [(0, 8), (3, 3), (5, 21), (100, 108), (0, 512)]
_SETTINGS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "interval": lambda value: {"interval": value},
    "keep_last_n": lambda value: {"keep_last_n": value},
    "start": lambda value: {"window": {"start": value, "stop": 8}},
    "stop": lambda value: {"window": {"start": 0, "stop": value}},
    "ignore_freeze_mismatch": lambda value: {"ignore_freeze_mismatch": value},
    "exclude_from_loading": lambda value: {"exclude_from_loading": value},
}
"""Each setting that has a kind, and how it is set."""
_VALUES: list[Any] = [2, "2", 2.0, True, None, ["model"], "model", "false"]
_CLAIMS = {"start": "window", "stop": "window", "ignore_freeze_mismatch": "freeze", "exclude_from_loading": "exclude"}
"""The capability with which a setting comes; those of the clause itself for the others."""


@pytest.mark.parametrize("interval", [1, 7, 100])
@judges("schedule.interval")
def test_without_a_window_the_multiples_of_the_interval_are_saved(run: Scenario, interval: int) -> None:
    life = run.start(interval=interval)
    expected = [step for step in STEPS if schedule.should_save(step, interval, None)]
    seen = life.worker.call("should_save", steps=STEPS)
    run.expect(
        "schedule.interval", seen == expected, expected=_differing(expected, seen), seen=_differing(seen, expected)
    )


@pytest.mark.parametrize("start,stop", WINDOWS)
@judges("schedule.power2", "schedule.milestone")
def test_power2_fires_at_the_start_and_at_powers_of_two_after_it(run: Scenario, start: int, stop: int) -> None:
    life = run.start(interval=10, window={"start": start, "stop": stop})
    milestones = life.worker.call("milestones", steps=STEPS)
    fired = sorted(schedule.power2(start, stop) & set(STEPS))
    inside = [step for step in milestones if start <= step <= stop]
    run.expect("schedule.power2", inside == fired, expected=_differing(fired, inside), seen=_differing(inside, fired))
    outside = sorted(set(milestones) - set(inside))
    run.expect("schedule.milestone", not outside, expected="no milestone outside the window", seen=outside)


@judges("schedule.milestone")
def test_without_a_window_there_are_no_milestones(run: Scenario) -> None:
    milestones = run.start(interval=10).worker.call("milestones", steps=STEPS)
    run.expect("schedule.milestone", milestones == [], expected="no milestones", seen=milestones)


@pytest.mark.parametrize("window", [None, (3, 5)], ids=["interval", "window"])
@judges("schedule.interval", "schedule.window-replaces-interval")
def test_what_is_due_does_not_depend_on_what_was_saved_or_resumed(
    run: Scenario, mode: str, window: tuple[int, int] | None
) -> None:
    window = window if run.has("window") else None
    settings: dict[str, Any] = {"mode": mode, "window": _window(*window, "power2") if window else None}
    with run.start(interval=2, **settings) as life:
        for step in (2, 4, 6):
            life.commit_at(step)
            _expect_due(run, life, 2, window)
    landings = ((2, 2), (4, 2), (6, 2), (6, 3)) if run.has("explicit") else ((6, 2), (6, 3))
    for landing, interval in landings:
        with run.start(seed=999, interval=interval, **settings) as life:
            loaded = life.load(run.folder.of(landing) if run.has("explicit") else None)
            if loaded.step != landing:
                raise Unreached(f"the run does not land on step {landing}; see resume.lands")
            _expect_due(run, life, interval, window)


@pytest.mark.parametrize("start,stop", WINDOWS)
@judges("schedule.window-replaces-interval", "schedule.interval")
def test_inside_the_window_the_strategy_alone_decides_and_outside_the_interval(
    run: Scenario, start: int, stop: int
) -> None:
    life = run.start(interval=7, window={"start": start, "stop": stop})
    _expect_due(run, life, 7, (start, stop))


@judges("schedule.registry", "schedule.window-replaces-interval")
def test_a_registered_strategy_is_selectable_by_its_name(run: Scenario) -> None:
    other = run.start()
    other.worker.call("register_strategy", name="only-seven-and-nine", fires=[7, 9])
    other.worker.call("register_strategy", name="only-eight", fires=[8])
    names = other.worker.call("list_strategies")
    run.expect(
        "schedule.registry",
        {"power2", "only-seven-and-nine", "only-eight"} <= set(names),
        expected="power2 and the strategies registered just now in the list",
        seen=names,
    )
    naming = ["power2", "only-seven-and-nine", "only-eight"]
    with run.expect_error("schedule.registry", naming=naming, doing="a name taken twice"):
        other.worker.call("register_strategy", name="only-eight", fires=[7])
    settings = {"folder": str(run.folder.path), "interval": 5, "window": _window(5, 10, "only-eight")}
    other.worker.open(settings, seed=0)
    seen = other.worker.call("should_save", steps=list(range(0, 21)))
    run.expect("schedule.registry", 8 in seen, expected="a save at 8, where it fires and power2 does not", seen=seen)
    run.expect(
        "schedule.window-replaces-interval",
        seen == [0, 8, 15, 20],
        expected="0, 15, 20 by the interval, 8 by the strategy, and 5 and 10 not at all: both ends are inside",
        seen=seen,
    )


@judges("schedule.registry")
def test_an_unknown_strategy_is_an_error_that_lists_the_known_ones(run: Scenario) -> None:
    life = run.start()
    life.worker.call("register_strategy", name="only-seven", fires=[7])
    naming = ["power3", "power2", "only-seven"]
    with run.expect_error("schedule.registry", naming=naming, doing="selecting the strategy power3"):
        life.worker.open({"folder": str(run.folder.path), "window": _window(0, 10, "power3")}, seed=0)
        life.worker.call("milestones", steps=[1])


@judges("schedule.strategy-in-window")
def test_a_strategy_that_fires_outside_its_window_makes_no_milestone(run: Scenario) -> None:
    life = run.start()
    life.worker.call("register_strategy", name="everywhere", fires=STEPS)
    life.worker.open({"folder": str(run.folder.path), "window": _window(10, 12, "everywhere")}, seed=0)
    seen = life.worker.call("milestones", steps=STEPS)
    run.expect("schedule.strategy-in-window", seen == [10, 11, 12], expected="10, 11, 12", seen=_short(seen))


@pytest.mark.parametrize("window", [None, (0, 8)])
@pytest.mark.parametrize("interval", [0, -1])
@judges("schedule.validate")
def test_an_interval_below_one_is_refused(run: Scenario, interval: int, window: tuple[int, int] | None) -> None:
    if window is not None and not run.has("window"):
        raise Unreached("an interval beside a window takes a window")
    with run.expect_error(
        "schedule.validate", "ValueError", naming=schedule.schedule_errors(interval), doing=f"interval={interval}"
    ):
        run.start(interval=interval, window=_window(*window, "power2") if window else None)


@pytest.mark.parametrize("start,stop", [(-1, 5), (6, 5)])
@judges("schedule.validate-window")
def test_a_window_that_is_no_range_is_refused(run: Scenario, start: int, stop: int) -> None:
    naming = schedule.schedule_errors(1000, start, stop)
    with run.expect_error("schedule.validate-window", "ValueError", naming=naming, doing=f"a window {start}..{stop}"):
        run.start(window=_window(start, stop, "power2"))


@pytest.mark.parametrize("step", [0, 5])
@judges("schedule.validate-window")
def test_a_window_of_one_step_is_a_range_and_is_not_refused(run: Scenario, step: int) -> None:
    milestones = run.start(window=_window(step, step, "power2")).worker.call("milestones", steps=STEPS)
    run.expect("schedule.validate-window", milestones == [step], expected=f"{step} alone", seen=_short(milestones))


@pytest.mark.parametrize("setting", _SETTINGS)
@judges("schedule.kinds")
def test_a_setting_of_another_kind_is_refused(run: Scenario, setting: str) -> None:
    if not run.has(_CLAIMS.get(setting, "schedule")):
        raise Unreached(f"{setting} is a setting of managers that claim {_CLAIMS[setting]}")
    worker = run.start().worker
    for value in _VALUES:
        settings = {"folder": str(run.folder.path), "mode": run.mode, **_SETTINGS[setting](value)}
        run.judge.tell(f"a manager is made with {setting}={value!r}")
        if schedule.is_of_its_kind(setting, value):
            worker.open(settings, seed=0)
            continue
        with run.expect_error(
            "schedule.kinds", "ValueError", "TypeError", naming=[setting], doing=f"{setting}={value!r}"
        ):
            worker.open(settings, seed=0)


@pytest.mark.parametrize("window", [None, (3, 9)])
@judges("schedule.no-side-effects")
def test_asking_changes_nothing(run: Scenario, window: tuple[int, int] | None) -> None:
    with_window = window is not None and run.has("window")
    life = run.start(interval=3, window=_window(*window, "power2") if window and with_window else None)
    life.train_to(4)
    before, files = life.digest(), run.folder.files()
    steps = list(range(0, 30))
    first = life.worker.call("should_save", steps=steps)
    if run.has("window"):
        life.worker.call("milestones", steps=steps)
    again = sorted(life.worker.call("should_save", steps=steps[::-1]))
    run.expect("schedule.no-side-effects", first == again, expected=f"the same answer twice: {first}", seen=again)
    run.expect("schedule.no-side-effects", run.folder.files() == files, expected=f"{files}", seen=run.folder.files())
    run.expect_same("schedule.no-side-effects", life.digest(), before, ALL_KINDS, "the state")


def _expect_due(run: Scenario, life: Life, interval: int, window: tuple[int, int] | None) -> None:
    """The manager's answer for each step, about those inside a power2 window and those outside."""
    run.judge.tell(
        f"{life.name}, at step {life.step}, asks which of {STEPS[0]} to {STEPS[-1]} its interval of {interval} saves"
    )
    power2 = None if window is None else schedule.power2_window(*window)
    saved = life.worker.call("should_save", steps=STEPS)
    inside = [step for step in STEPS if window is not None and window[0] <= step <= window[1]]
    outside = [step for step in STEPS if step not in inside]
    for clause, steps in (("schedule.window-replaces-interval", inside), ("schedule.interval", outside)):
        expected = [step for step in steps if schedule.should_save(step, interval, power2)]
        seen = [step for step in saved if step in steps]
        run.expect(
            clause,
            seen == expected,
            expected=_differing(expected, seen),
            seen=_differing(seen, expected),
            reaches=bool(steps),
        )


def _window(start: int, stop: int, strategy: str) -> dict[str, object]:
    return {"start": start, "stop": stop, "strategy": strategy}


def _differing(these: list[int], those: list[int]) -> str:
    """`these`, with what those lack pointed out."""
    extra = sorted(set(these) - set(those))
    return _short(these) + (f"; here and not on the other side: {_short(extra)}" if extra else "")


def _short(steps: list[int]) -> str:
    return ", ".join(map(str, steps[:12])) + (f", ... ({len(steps)} steps)" if len(steps) > 12 else "")
