"""Ways of working that the clauses leave free: with its trait a manager is not accused, and without it is.

`fixtures/managers/particular.py` has a right manager of each kind, and the same
one that says nothing of its way.
"""

from dataclasses import dataclass, fields
from typing import Any

import pytest

from forge_conformance.adapter import Traits
from forge_fixtures.managers import particular

MANAGERS = particular.__name__
SMALLEST = "retention/after-each-commit-the-newest-are-kept-and-the-rest-is-gone[sync-1]"

Command = Any  # see conftest.py


@dataclass(frozen=True)
class Way:
    """A trait, the manager that has it, and what comes of tests that it concerns."""

    trait: str
    manager: str
    outcomes: dict[str, str]
    """Test -> what it comes to when the trait is named; without it each of them fails."""


WAYS = (
    Way(
        "resumes_at_start",
        "ResumesAtStart",
        {"commit/the-second-save-of-a-step-is-the-one-that-counts[sync]": "unreached"},
    ),
    Way(
        "saves_after_step",
        "SavesAfterStep",
        {"commit/when-a-synchronous-save-returns-it-is-committed": "unreached"},
    ),
    Way(
        "dies_of_failed_save",
        "DiesOfFailedSave",
        {"commit/a-synchronous-save-that-fails-says-so-and-the-next-one-works": "unreached"},
    ),
    Way("deletes_late", "DeletesLate", {SMALLEST: "done"}),
    Way(
        "load_path_is_fallback",
        "LoadPathIsFallback",
        {"resume/a-checkpoint-that-load-path-names-is-loaded-and-not-the-newest[sync]": "unreached"},
    ),
    Way(
        "has_end",
        "HasEnd",
        {"commit/a-normal-exit-without-wait-ends-and-loses-at-most-the-last-step[async]": "done"},
    ),
    Way(
        "min_keep_last_n",
        "KeepsTwo",
        {SMALLEST: "unreached", "retention/a-run-prunes-on-after-a-save-that-failed[sync]": "done"},
    ),
    Way("names_folder", "NamesFolder", {"place/a-name-is-a-name[dash]": "unreached"}),
)


def judged(forge: Command, manager: str, *cases: str) -> Any:
    named = [word for case in cases for word in ("--case", case)]
    return forge.run(f"{MANAGERS}:{manager}", options=("--level", "strict", "--timeout", "8", *named))


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.trait)
def test_a_manager_is_not_accused_of_a_way_that_its_adapter_names(forge: Command, way: Way) -> None:
    ran = judged(forge, way.manager, *way.outcomes)
    assert {test["test"]: test["outcome"] for test in ran.report["tests"]} == way.outcomes, ran.out
    assert all(way.trait in test["reason"] for test in ran.report["tests"] if test["outcome"] == "unreached")
    assert way.trait in ran.report["implementation"]["traits"]
    assert f"traits: {way.trait}" in ran.said


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.trait)
def test_the_same_way_is_a_failure_where_nothing_is_said_of_it(forge: Command, way: Way) -> None:
    ran = judged(forge, f"Unsaid{way.manager}", *way.outcomes)
    assert {test["test"]: test["outcome"] for test in ran.report["tests"]} == dict.fromkeys(way.outcomes, "failed")
    assert ran.report["implementation"]["traits"] == {}


def test_a_manager_that_refuses_zero_is_given_the_number_that_keeps_all(forge: Command) -> None:
    off = "retention/a-limit-below-one-deletes-nothing[sync-0]"
    ran = judged(forge, "KeepsTwo", off, "commit/when-a-synchronous-save-returns-it-is-committed")
    outcomes = {test["test"]: test["outcome"] for test in ran.report["tests"]}
    assert outcomes == {off: "unreached", "commit/when-a-synchronous-save-returns-it-is-committed": "done"}


@pytest.mark.parametrize(("manager", "verdict"), [("LoaderAtHand", None), ("UnsaidLoaderAtHand", "fail")])
def test_a_part_of_a_capability_can_be_left_out_of_the_claims(
    forge: Command, manager: str, verdict: str | None
) -> None:
    ran = judged(forge, manager, "resume/a-loader-at-hand*[sync]", "resume/a-loader-made-after*[sync]")
    assert (ran.verdicts["resume.dataloader"], ran.verdicts.get("resume.dataloader-stash")) == ("pass", verdict)
    assert ("loader-later" in ran.report["implementation"]["capabilities"]) == (verdict == "fail")


def test_every_trait_is_listed_with_who_needs_it(forge: Command) -> None:
    said = forge("list", "--traits").said
    assert [field.name for field in fields(Traits) if f"{field.name}: " not in said] == []
    assert said.count("need it") + said.count("own count") + said.count("need a large number") >= len(fields(Traits))
