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
        ["step 1 loss 0.5 in 3 ms", "step 2 loss 0.4 in 3 ms"],
        ["step 1 loss 0.5 in 3 ms", "step 2 loss 0.4 in 5 ms"],
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
