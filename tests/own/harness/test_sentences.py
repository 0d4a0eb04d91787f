"""The sentences of a failure: what a call that should raise was expected and seen to do, and how texts are wrapped."""

from typing import Any

import pytest

from forge_conformance.judging.judge import ClauseFailure, Judge
from forge_conformance.judging.text import wrapped
from forge_conformance.runs.process import Raised
from forge_conformance.runs.scenario import Scenario
from forge_spec.clauses import Level

CLAUSE = "place.checked"


@pytest.fixture
def run() -> Scenario:
    """One that only judges: it has no process and no folder."""
    absent: Any = None
    return Scenario(absent, absent, Judge((CLAUSE,), lambda clause: True), absent, frozenset(), Level.STRICT)


def raised(message: str) -> Raised:
    """A load that raised a `FileNotFoundError`."""
    error = {
        "type": "FileNotFoundError",
        "kinds": ["FileNotFoundError", "OSError", "Exception"],
        "message": message,
        "traceback": "line 7, in load",
    }
    return Raised("load()", error)


def refused(run: Scenario, error: Raised | None, *kinds: str, naming: tuple[str, ...] = (), doing: str = "") -> None:
    with run.expect_error(CLAUSE, *kinds, naming=naming, doing=doing):
        if error is not None:
            raise error


def test_an_error_of_the_right_kind_that_names_everything_is_right(run: Scenario) -> None:
    refused(run, raised("no step_4 in /runs"), "OSError", "ValueError", naming=("step_4", "/runs"))
    assert run.judge.first is None
    assert run.judge.reached == {CLAUSE: 1}


@pytest.mark.parametrize(
    ("error", "asked", "expected", "seen"),
    [
        (None, {}, "the call to raise an error", "no error"),
        (
            None,
            {"kinds": ("ValueError", "OSError"), "naming": ("step_4", "latest"), "doing": "a load of step 4"},
            "a load of step 4 to raise ValueError or OSError naming step_4, latest",
            "no error",
        ),
        (
            raised("gone"),
            {"kinds": ("ValueError",), "naming": ("step_4",), "doing": "the load"},
            "the load to raise ValueError naming step_4",
            "load() raised FileNotFoundError: gone",
        ),
        (
            raised("no step_4"),
            {"naming": ("step_4", "latest", "/runs"), "doing": "the load"},
            "the load to raise an error naming step_4, latest, /runs",
            "load() raised FileNotFoundError: no step_4 (refused, but the error does not name latest, /runs)",
        ),
        (
            raised(""),
            {"kinds": ("KeyError",)},
            "the call to raise KeyError",
            "load() raised FileNotFoundError (no message)",
        ),
    ],
    ids=["no error", "no error of a kind", "another kind", "names too little", "no message"],
)
def test_what_is_not_refused_rightly_says_what_was_expected_and_seen(
    run: Scenario, error: Raised | None, asked: dict[str, Any], expected: str, seen: str
) -> None:
    with pytest.raises(ClauseFailure) as failed:
        refused(run, error, *asked.get("kinds", ()), naming=asked.get("naming", ()), doing=asked.get("doing", ""))
    failure = failed.value.failure
    assert (failure.expected, failure.seen) == (expected, seen)
    assert failure.detail == ("" if error is None else "line 7, in load")
    assert str(failed.value) == f"{CLAUSE}: expected {expected}; seen {seen}"


def test_what_is_not_the_managers_error_is_no_refusal(run: Scenario) -> None:
    with pytest.raises(LookupError), run.expect_error(CLAUSE):
        raise LookupError
    assert not run.judge.reached


def test_a_paragraph_is_wrapped_and_its_later_lines_hang() -> None:
    lines = wrapped("seen: " + "word " * 40, indent=2, hanging=4).splitlines()
    assert [line[: len(line) - len(line.lstrip())] for line in lines] == ["  ", "    "]
    assert max(map(len, lines)) <= 110 < len(" ".join(lines))


def test_lines_of_a_traceback_are_kept_as_they_are_and_hang() -> None:
    line = '  File "manager.py", line 7, in load' + " and more" * 20
    assert wrapped(f"seen: it raised\n{line}\n\n    x = 1", 2, 4).splitlines() == [
        "  seen: it raised",
        f"    {line}",
        "    ",
        "        x = 1",
    ]


@pytest.mark.parametrize("name", ["/runs/" + "a" * 120, "resume.no-fallback-without-dcp-" * 5])
def test_names_are_never_broken(name: str) -> None:
    assert wrapped(f"seen: {name} is gone").split() == ["seen:", name, "is", "gone"]


def test_nothing_is_one_empty_line() -> None:
    assert wrapped("", 2) == ""
