"""Chapter schedule: which steps are saved. The manager is asked; nothing is saved here."""

import pytest

from forge_conformance.harness.judge import Unreached, judges
from forge_conformance.harness.scenario import ALL_KINDS, Life, Scenario
from forge_spec import schedule

STEPS = list(range(0, 640))
WINDOWS = [(0, 8), (3, 3), (5, 21), (100, 108), (0, 512)]


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
    """Steps 2, 4 and 6 are due outside the window, and 3, 4 and 5 inside."""
    has_window = window is not None and run.has("window")
    power2 = schedule.power2_window(*window) if window and has_window else None
    settings = {"mode": mode, "interval": 2, "window": _window(*window, "power2") if window and has_window else None}

    def expect_due(life: Life) -> None:
        run.judge.tell(f"the run, at step {life.step}, asks which steps are due")
        saved = life.worker.call("should_save", steps=STEPS)
        inside = [step for step in STEPS if power2 and power2.start <= step <= power2.stop]
        outside = [step for step in STEPS if step not in inside]
        for clause, steps in (("schedule.window-replaces-interval", inside), ("schedule.interval", outside)):
            expected = [step for step in steps if schedule.should_save(step, 2, power2)]
            seen = [step for step in saved if step in steps]
            run.expect(
                clause,
                seen == expected,
                expected=_differing(expected, seen),
                seen=_differing(seen, expected),
                reaches=bool(steps),
            )

    with run.start(**settings) as life:
        for step in (2, 4, 6):
            life.commit_at(step)
            expect_due(life)
    for landing in (2, 4, 6) if run.has("explicit") else (6,):
        with run.start(seed=999, **settings) as life:
            run.expect_landing(
                "schedule.interval",
                life.load(run.folder.of(landing) if run.has("explicit") else None),
                {landing},
                reaches=False,
            )
            expect_due(life)


@pytest.mark.parametrize("start,stop", WINDOWS)
@judges("schedule.window-replaces-interval", "schedule.interval")
def test_inside_the_window_the_strategy_alone_decides_and_outside_the_interval(
    run: Scenario, start: int, stop: int
) -> None:
    life = run.start(interval=7, window={"start": start, "stop": stop})
    window = schedule.power2_window(start, stop)
    saved = life.worker.call("should_save", steps=STEPS)
    inside = [step for step in STEPS if start <= step <= stop]
    outside = [step for step in STEPS if step not in inside]
    for clause, steps in (("schedule.window-replaces-interval", inside), ("schedule.interval", outside)):
        expected = [step for step in steps if schedule.should_save(step, 7, window)]
        seen = [step for step in saved if step in steps]
        run.expect(clause, seen == expected, expected=_differing(expected, seen), seen=_differing(seen, expected))


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


def _window(start: int, stop: int, strategy: str) -> dict[str, object]:
    return {"start": start, "stop": stop, "strategy": strategy}


def _differing(these: list[int], those: list[int]) -> str:
    """`these`, with what those lack pointed out."""
    extra = sorted(set(these) - set(those))
    return f"{_short(these)}" + (f", of these {_short(extra)} on this side only" if extra else "")


def _short(steps: list[int]) -> str:
    return ", ".join(map(str, steps[:12])) + (f", ... ({len(steps)} steps)" if len(steps) > 12 else "")
