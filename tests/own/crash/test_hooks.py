"""Scenarios in which hooks save and remove: a right manager passes, and each mistake is caught by its clause."""

import json
from pathlib import Path

import pytest

from forge_conformance.cli import main
from forge_conformance.disks.explorer import Effort
from forge_conformance.disks.job import Job, explore
from forge_conformance.disks.scenarios import SCENARIOS
from forge_conformance.disks.states import KILL
from forge_conformance.runs.planned import deviation, stands
from forge_conformance.runs.workplace import Manager, workplace
from forge_spec.ephemeral import EPHEMERAL, PERMANENT, Plan

from .conftest import CAREFUL, expect_numbers_to_agree, needs_recorder

pytestmark = needs_recorder
HOOKED, FORGETFUL = CAREFUL.with_name("hooked.py"), CAREFUL.with_name("forgetful.py")
OF_HOOKS = [name for name, scenario in SCENARIOS.items() if "ephemeral" in scenario.needs]


def test_a_right_manager_survives_each_death_between_its_hooks() -> None:
    assert OF_HOOKS == ["ephemeral", "removal", "limit", "reconfigured"]
    with workplace(Manager(str(HOOKED))) as place:
        for scenario in OF_HOOKS:
            result = explore(Job(scenario, "sync", (KILL,), Effort(goes_on=12, deaths_again=1)), place)
            assert [one.text for one in result.found] == []
            assert result.refusal == ""
            assert min(one.totals.disks for one in result.explored) > 10


WRONG = [
    ("RemovesFirst", "ephemeral", "lost", "ephemeral.after-complete"),
    ("TakesAsideForGood", "removal", "stuck", "ephemeral.never-stuck"),
    ("ForgetsTheLimit", "limit", "left", "ephemeral.limit-restart"),
    ("GuessesTheKind", "reconfigured", "removed", "ephemeral.class-recorded"),
]


@pytest.mark.parametrize(("name", "scenario", "word", "clause"), WRONG, ids=[one[0] for one in WRONG])
def test_each_mistake_is_caught_in_its_scenario_and_replayed_without_the_suite(
    tmp_path: Path, name: str, scenario: str, word: str, clause: str
) -> None:
    options = ["--tier", "disks", "--scenario", scenario, "--second-deaths", "0", "--going-on", "4", "--check-replays"]
    assert main(["crash", "--impl", f"{FORGETFUL}:{name}", *options, "--out", str(tmp_path)]) == 1
    (recording,) = json.loads((tmp_path / "crash.json").read_text())["recordings"]
    assert (word, clause) in {(bad["verdict"], bad["clause"]) for bad in recording["bad"]}
    assert [bad["replayed"] for bad in recording["bad"]] == [bad["verdict"] for bad in recording["bad"]]
    for bad in recording["bad"]:
        expect_numbers_to_agree(bad["story"])


OLD = {2: EPHEMERAL, 4: PERMANENT, 6: EPHEMERAL}
STANDS = [
    ({}, 0, {2: EPHEMERAL, 4: EPHEMERAL}, Plan(6, 2), {4}),
    (OLD, 6, {8: EPHEMERAL}, Plan(4, 2), {4, 8}),
    (OLD, 6, {9: EPHEMERAL}, Plan(12, 3, remove="all_non_permanent"), {4, 9}),
    (OLD, 6, {9: EPHEMERAL}, Plan(12, 3, remove="never"), {2, 4, 6, 9}),
    (OLD, 4, {5: EPHEMERAL}, Plan(12, 5), {4, 5, 6}),
    ({2: PERMANENT, 4: PERMANENT}, 4, {6: PERMANENT}, Plan(2, max_checkpoints=2), {4, 6}),
]


@pytest.mark.parametrize(("before", "own_step", "made", "plan", "expected"), STANDS)
def test_what_stands_follows_from_what_stood_there_and_was_saved(
    before: dict[int, str], own_step: int, made: dict[int, str], plan: Plan, expected: set[int]
) -> None:
    assert stands(before, own_step, made, plan) == expected


def test_what_is_amiss_falls_by_the_clause_about_it() -> None:
    kinds = {2: EPHEMERAL, 3: PERMANENT, 4: PERMANENT, 6: EPHEMERAL}
    assert deviation({4, 6}, {4, 6}, kinds, Plan(4, 2)).trouble == ""
    assert deviation({4, 6}, {6}, kinds, Plan(4, 2)).clause == "ephemeral.keeps"
    assert deviation({4, 6}, {6}, kinds, Plan(4, 2, max_checkpoints=1)).clause == "ephemeral.limit"
    assert deviation({3, 6}, {6}, kinds, Plan(4, 2)).clause == "ephemeral.class-recorded"
    assert deviation({4, 6}, {2, 4, 6}, kinds, Plan(4, 2)).clause == "ephemeral.nothing-left"
    assert deviation({6}, {4, 6}, kinds, Plan(4, 2)).clause == "ephemeral.limit-restart"
