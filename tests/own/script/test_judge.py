"""The verdict on a restart is that of the specification, for every short restart of a short run."""

import itertools

import pytest

from forge_conformance.scripts.explorer import is_late
from forge_conformance.scripts.judge import Form, Line, Start, Task, Undisturbed, judge
from forge_spec.script import is_same_run

FORM = Form(r"step (?P<step>\d+) loss (?P<value>\S+)", ("step",), ("value",))
TEXTS = [f"step {step} loss {step * 0.5}" for step in range(1, 5)]
WHOLE = Undisturbed(tuple(line for text in TEXTS if (line := FORM.read(text))))


def started(texts: list[str], goal: int, status: int | None = 0) -> Start:
    start = Start(FORM, WHOLE, goal)
    if not any([start.hears(text) for text in texts]):
        start.status = status
    return start


@pytest.mark.parametrize("reached", range(5))
def test_a_restart_is_the_same_run_where_the_specification_says_so(reached: int) -> None:
    other = "step 2 loss 9"
    for count in range(4):
        for chosen in itertools.product([*TEXTS, other], repeat=count):
            texts = [text for at, text in enumerate(chosen) if at == 0 or chosen[at - 1] != text]
            is_whole = not texts or texts[-1] == TEXTS[-1]
            verdict = judge(WHOLE, Task(reached, 0, 5), started(texts, 5))
            assert verdict.is_fine == (is_same_run(TEXTS, texts, reached) and is_whole), (texts, verdict)


@pytest.mark.parametrize(
    ("texts", "task", "status", "word"),
    [
        (TEXTS[2:], Task(2, 2, 9), 0, "fine"),
        (TEXTS[1:], Task(2, 2, 9), 0, "lost"),
        (TEXTS, Task(2, 2, 9), 0, "scratch"),
        (["Traceback", "KeyError: 1"], Task(2, 2, 9), 1, "refused"),
        ([TEXTS[2], "Traceback", "KeyError: 1"], Task(2, 2, 9), 1, "stuck"),
        (TEXTS[2:3], Task(2, 2, 9), 0, "short"),
        ([], Task(2, 2, 9), 0, "short"),
        ([], Task(4, 4, 9), 0, "fine"),
        (TEXTS[3:], Task(1, 0, 9), 0, "skipped"),
        (["step 3 loss 7"], Task(2, 2, 9), 0, "diverged"),
        (["step 99 loss 7"], Task(2, 0, 9), 0, "diverged"),
        (["step 1 loss 7"], Task(2, 2, 9), 0, "scratch"),
    ],
)
def test_each_way_to_go_on_has_its_word(texts: list[str], task: Task, status: int, word: str) -> None:
    assert judge(WHOLE, task, started(texts, task.goal, status)).word == word


def test_a_restart_is_stopped_as_soon_as_its_verdict_is_certain() -> None:
    enough = Start(FORM, WHOLE, goal=3)
    assert [enough.hears(text) for text in (TEXTS[1], "noise", TEXTS[2])] == [False, False, True]
    wrong = Start(FORM, WHOLE, goal=4)
    assert [wrong.hears(text) for text in (TEXTS[1], TEXTS[3])] == [False, True]


def test_a_hang_says_where_it_came_to() -> None:
    start = started(TEXTS[2:3], 9, None)
    start.is_hung = True
    verdict = judge(WHOLE, Task(2, 2, 9), start)
    assert (verdict.word, verdict.expected) == ("hung", f"to go on after: {TEXTS[1]}")
    assert TEXTS[2] in verdict.seen


def test_results_are_compared_only_at_the_end() -> None:
    whole = Undisturbed(WHOLE.lines, "weights 1")
    start = started(TEXTS[2:], 9)
    start.result = "weights 2"
    assert judge(whole, Task(2, 2, 9), start).word == "diverged"
    start.status = None
    assert judge(whole, Task(2, 2, 9), start).is_fine


@pytest.mark.parametrize(
    ("one", "other", "is_near"),
    [("1.0", "1.0", True), ("1.0", "1.05", True), ("1.0", "1.2", False), ("a", "b", False)],
)
def test_numbers_are_near_within_the_tolerance(one: str, other: str, is_near: bool) -> None:
    form = Form("", (), ("value",), tolerance=0.1)
    assert form.is_equal(Line((), (one,), ""), Line((), (other,), "")) == is_near


def test_where_the_time_is_short_the_last_deaths_are_tried_as_well_as_the_first() -> None:
    """Half of the time went by until operation 20 of 100; now each death takes an eighth of the other half."""
    used, tried = 0.0, []
    for cut in range(20, 101):
        if not is_late(used, 20, cut, 100):
            tried.append(cut)
            used += 0.125
    assert tried == [20, 30, 40, 50, 60, 70, 80, 90, 100]
