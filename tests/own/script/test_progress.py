"""Which lines of a script's output name its steps, and which of their numbers are compared."""

import pytest

from forge_conformance.scripts import progress
from forge_conformance.scripts.judge import Form, Line


def read(output: list[str]) -> tuple[Form, list[tuple[tuple[str, ...], tuple[str, ...]]]]:
    form = progress.guess(output)
    assert form is not None
    return form, [(line.key, line.values) for line in progress.read(form, output)]


@pytest.mark.parametrize(
    ("output", "lines"),
    [
        (["loading 3 files", "step 1 loss 0.5", "saved", "step 2 loss 0.4"], [(("1",), ("0.5",)), (("2",), ("0.4",))]),
        (["epoch 0 step 0: 0.5", "epoch 0 step 1: 0.4", "epoch 1 step 0: 0.3"], [
            (("0", "0"), ("0.5",)), (("0", "1"), ("0.4",)), (("1", "0"), ("0.3",)),
        ]),
        (["{'loss': 0.5, 'epoch': 0.3}", "{'loss': 0.6, 'epoch': 0.6}"], [(("0.3",), ("0.5",)), (("0.6",), ("0.6",))]),
        (["[10/100] loss=5e-1", "[20/100] loss=nan"], [(("10",), ("100", "5e-1")), (("20",), ("100", "nan"))]),
    ],
)  # fmt: skip
def test_a_line_that_recurs_with_a_growing_number_names_its_step(
    output: list[str], lines: list[tuple[tuple[str, ...], tuple[str, ...]]]
) -> None:
    assert read(output)[1] == lines


def test_a_number_that_is_called_a_step_is_preferred_to_one_that_only_grows() -> None:
    form, lines = read(["at 5 s: step 1", "at 6 s: step 2", "at 9 s: step 3"])
    assert [key for key, _ in lines] == [("1",), ("2",), ("3",)]
    assert form.keys == ("n1",)


@pytest.mark.parametrize("output", [[], ["hello"], ["step 1 loss 0.5"], ["took 3 s", "took 3 s"], ["a 2", "a 1"]])
def test_lines_that_do_not_grow_are_no_progress(output: list[str]) -> None:
    assert progress.guess(output) is None


def test_a_line_that_is_printed_again_counts_once() -> None:
    _, lines = read(["step 1 loss 0.5", "step 2 loss 0.4", "step 3 loss 0.3"])
    form = progress.guess(["step 1 loss 0.5", "step 2 loss 0.4"])
    assert form is not None
    again = progress.read(form, ["step 1 loss 0.5", "step 1 loss 0.9", "step 2 loss 0.4", "step 3 loss 0.3"])
    assert [(line.key, line.values) for line in again] == lines


def test_what_differs_between_two_runs_is_left_out_of_the_comparison() -> None:
    first, second = (
        ["step 1 loss 0.5 noise 3", "step 2 loss 0.4 noise 3"],
        ["step 1 loss 0.5 noise 3", "step 2 loss 0.4 noise 5"],
    )
    form, _ = read(first)
    kept, differing = progress.without(form, progress.read(form, first), progress.read(form, second))
    assert (kept.values, differing) == (("n1",), ("n2",))


def test_a_named_group_is_what_is_compared_and_without_one_it_is_the_whole_line() -> None:
    named = progress.from_pattern(r"it (?P<step>\d+) loss=(?P<value>\S+)", tolerance=0.1)
    one, other = named.read("it 3 loss=1.00 x"), named.read("it 3 loss=1.05 y")
    assert one is not None and other is not None
    assert named.is_equal(one, other)
    whole = progress.from_pattern(r"it (?P<step>\d+)")
    assert whole.read(" it 3 loss=1.00") == Line(("3",), ("it 3 loss=1.00",), "it 3 loss=1.00")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2026-11-30 16:57:47,620 - INFO - step {} loss {}", "2026-12-01 00:00:00,001 - INFO - step {} loss {}"),
        ("11/30/2026 16:57:47 - INFO - step {} loss {}", "12/01/2026 00:01:00 - INFO - step {} loss {}"),
        ("[16:57] step {} loss {}", "[16:58] step {} loss {}"),
        ("iter {}: loss {}, time 5.41ms, mfu -100.00%", "iter {}: loss {}, time 12.06ms, mfu 1.25%"),
        ("step {}: loss {} | dt 0.1 | 1203 tok/s", "step {}: loss {} | dt 0.2 | 800 tok/s"),
        ("step {} loss {} (1.5 s, 120 MB)", "step {} loss {} (2.5 s, 130 MB)"),
        ("{{'step': {}, 'loss': {}, 'step_time': 0.5}}", "{{'step': {}, 'loss': {}, 'step_time': 0.6}}"),
    ],
)
def test_what_a_clock_has_made_is_never_compared(one: str, other: str) -> None:
    """Two runs of one minute print the same minute, and a restart may print the next one."""
    form, _ = read([one.format(1, 0.5), one.format(2, 0.4)])
    assert [form.read(line.format(2, 0.4)) is not None for line in (one, other)] == [True, True]
    first, second = (progress.read(form, [line.format(2, 0.4)]) for line in (one, other))
    assert first[0].key == second[0].key == ("2",)
    assert first[0].values == second[0].values == ("0.4",)


BAR = [
    "  0%|          | 0/3 [00:00<?, ?it/s]",
    " 33%|###3      | 1/3 [00:00<00:00, 118.09it/s]",
    " 33%|###3      | 1/3 [00:00<00:00, 110.00it/s, loss=0.5, lr=0.01]",
    " 67%|######6   | 2/3 [00:00<00:00, 110.00it/s, loss=0.5, lr=0.01]",
    " 67%|######6   | 2/3 [00:00<00:00, 1.20s/it, loss=0.4, lr=0.01]",
    "100%|##########| 3/3 [01:00<00:00, 1.20s/it, loss=0.4, lr=0.01]",
    "100%|##########| 3/3 [01:00<00:00, 1.20s/it, loss=0.3, lr=0.01]",
]


def test_a_bar_says_of_each_step_what_it_draws_last() -> None:
    form, lines = read(BAR)
    assert form.is_bar
    assert lines == [(("-2",), ("0.5", "0.01")), (("-1",), ("0.4", "0.01")), (("0",), ("0.3", "0.01"))]
    assert progress.read(form, BAR)[0].text == "1/3 loss=0.5, lr=0.01"


@pytest.mark.parametrize(
    ("output", "lines"),
    [
        (["loss 0.5:  50%|## | 1/2 [00:00<00:00, 9.1it/s]", "loss 0.4: 100%|###| 2/2 [00:00<00:00, 9.1it/s]"],
         [(("-1",), ("0.5",)), (("0",), ("0.4",))]),
        (["Epoch 0:  50%|## | 1/2 [00:00<00:00, 9.1batch/s]", "Epoch 0: 100%|###| 2/2 [00:00<00:00, 9.1batch/s]",
          "Epoch 1:  50%|## | 1/2 [00:00<00:00, 9.1batch/s]", "Epoch 1: 100%|###| 2/2 [00:00<00:00, 9.1batch/s]"],
         [(("0", "-1"), ()), (("0", "0"), ()), (("1", "-1"), ()), (("1", "0"), ())]),
        (["7it [00:00, 9.1it/s, loss=2]", "8it [00:00, 9.1it/s, loss=1]"], [(("7",), ("2",)), (("8",), ("1",))]),
        (["step 1 loss 3", "step 2 loss 2", *BAR], [(("1",), ("3",)), (("2",), ("2",))]),
    ],
)  # fmt: skip
def test_bars_are_read_with_their_words_and_lines_are_preferred(
    output: list[str], lines: list[tuple[tuple[str, ...], tuple[str, ...]]]
) -> None:
    assert read(output)[1] == lines


@pytest.mark.parametrize("rest", ["9/30", "0/21"])
def test_a_restart_may_draw_all_steps_or_those_that_are_left(rest: str) -> None:
    whole = [f" 1%|#  | {step}/30 [00:00<00:00, 9.1it/s]" for step in range(31)]
    form, _ = read(whole)
    line = form.read(f"  0%|    | {rest} [00:00<?, ?it/s]")
    assert line is not None
    assert line.key == ("-21",)


def test_a_bar_that_leaves_out_steps_does_not_name_them() -> None:
    assert (
        progress.guess(
            [" 1%|#  | 0/9 [00:00<?, ?it/s]", *(f" 1%|#  | {at}/9 [00:01<00:01, 9.1it/s]" for at in (3, 4, 9))]
        )
        is None
    )
