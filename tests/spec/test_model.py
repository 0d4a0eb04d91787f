"""The model does what the clauses ask, the search sees everything that it does, and no broken manager gets past it."""

import re
from pathlib import Path

import pytest

from forge_spec import BY_SLUG
from forge_spec.explore import Explored, explore, follow, main, manager, search
from forge_spec.invariants import INVARIANTS
from forge_spec.machine import HANG, Label
from forge_spec.model import SMALL, TABLE, Job
from forge_spec.program import Finish, Kill, Start, program
from forge_spec.variants import VARIANTS, Variant

README = Path(__file__).parents[2] / "README.md"
BROKEN = [variant for variant in VARIANTS if not variant.is_lazy]
LAZY = [variant for variant in VARIANTS if variant.is_lazy]


def name_of(variant: Variant) -> str:
    return variant.name


@pytest.fixture(scope="module")
def small() -> Explored:
    return explore(SMALL)


# -- the manager itself ---------------------------------------------------------


def test_no_invariant_falls_in_any_state(small: Explored) -> None:
    assert small.shortest is None, str(small.shortest)


def test_every_situation_that_an_invariant_is_about_arises(small: Explored) -> None:
    assert small.unreached == ()


def test_every_row_of_the_table_is_taken(small: Explored) -> None:
    assert small.untaken == ()


def test_the_readme_says_how_many_states_the_small_scope_has(small: Explored) -> None:
    assert f"{small.states:,} states" in re.sub(r"\s+", " ", README.read_text())


def test_every_invariant_formalises_a_clause_and_none_twice() -> None:
    clauses = [invariant.clause for invariant in INVARIANTS]
    assert set(clauses) <= set(BY_SLUG)
    assert len(clauses) == len(set(clauses))


def test_a_run_that_is_killed_in_its_recovery_recovers_all_the_same() -> None:
    recovery = [Label("start"), Label("resolve"), Label("load", 0)]
    trace = [*recovery, Label("kill"), *recovery, Label("load", 1), Label("go on")]
    *_, last = follow(manager(SMALL, SMALL.settings[0]), trace)
    assert last.job is Job.TRAINING


# -- managers that are wrong ------------------------------------------------------


@pytest.fixture(scope="module", params=BROKEN, ids=name_of)
def broken(request: pytest.FixtureRequest) -> tuple[Variant, Explored]:
    return request.param, explore(request.param.scope, request.param.table)


def test_a_broken_manager_falls_by_the_clause_that_is_about_its_mistake(broken: tuple[Variant, Explored]) -> None:
    variant, explored = broken
    assert explored.shortest is not None, f"nothing falls in {explored.states} states"
    _, violation = explored.shortest
    assert violation.clause == variant.falls, str(violation)


def test_no_shorter_trace_leads_to_a_violation(broken: tuple[Variant, Explored]) -> None:
    variant, explored = broken
    assert explored.shortest is not None
    depth = len(explored.shortest[1].trace) - 1
    for setting in variant.scope.settings:
        found = search(manager(variant.scope, setting, variant.table), max_depth=depth)
        assert found.violation is None, f"{setting}: {found.violation}"
        assert found.depth == depth, "the search gave up before that depth"


def test_a_trace_is_a_path_of_the_manager_that_it_was_found_in(broken: tuple[Variant, Explored]) -> None:
    variant, explored = broken
    assert explored.shortest is not None
    setting, violation = explored.shortest
    labels = [step.label for step in violation.trace]
    states = list(follow(manager(variant.scope, setting, variant.table), labels))
    assert len(states) == len(labels) + 1


def test_a_story_has_one_sentence_for_each_row(broken: tuple[Variant, Explored]) -> None:
    _, explored = broken
    assert explored.shortest is not None
    violation = explored.shortest[1]
    *told, fallen = str(violation).splitlines()
    assert [line.split(". ", 1)[1] for line in told] == [step.story for step in violation.trace]
    assert f"{violation.clause} falls" in fallen


def test_a_program_does_or_awaits_each_row_of_its_trace(broken: tuple[Variant, Explored]) -> None:
    _, explored = broken
    assert explored.shortest is not None
    labels = [step.label for step in explored.shortest[1].trace]
    actions = program(labels)
    assert isinstance(actions[0], Start)
    assert isinstance(actions[-1], Finish)
    awaited = [label for action in actions for label in action.after]
    protocol = {row.name for row in TABLE if not row.world}
    assert awaited == [label for label in labels if label.row in protocol]
    assert len(actions) - 1 == len(labels) - len(awaited)


@pytest.mark.parametrize("invariant", INVARIANTS, ids=lambda invariant: invariant.clause)
def test_every_invariant_falls_for_some_broken_manager(invariant: object) -> None:
    assert getattr(invariant, "clause") in {variant.falls for variant in BROKEN}  # noqa: B009


@pytest.mark.parametrize("variant", LAZY, ids=name_of)
def test_a_manager_that_does_nothing_never_reaches_what_it_is_there_for(variant: Variant) -> None:
    explored = explore(variant.scope, variant.table)
    assert explored.shortest is None
    assert variant.falls in explored.unreached


def test_each_variant_has_a_name_of_its_own_and_a_known_clause() -> None:
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS)
    assert {variant.falls for variant in VARIANTS} <= {*BY_SLUG, HANG}


# -- programs and the command -----------------------------------------------------


def test_a_kill_waits_for_what_the_manager_had_done_by_then() -> None:
    begun = [Label("start"), Label("resolve"), Label("load", 0), Label("load", 1), Label("go on")]
    saving = [Label("stage"), Label("describe"), Label("shard", 1)]
    actions = program([*begun, Label("train"), Label("save"), *saving, Label("kill")])
    assert actions[-2] == Kill(after=tuple(saving))


def test_a_row_that_can_not_be_taken_is_named_with_those_that_can() -> None:
    with pytest.raises(ValueError, match=r"row 2, publish, can't be taken there; what can is .*resolve"):
        list(follow(manager(SMALL, SMALL.settings[0]), [Label("start"), Label("publish")]))


def test_the_command_counts_a_scope(capsys: pytest.CaptureFixture[str], small: Explored) -> None:
    assert main(["--scope", "small"]) == 0
    printed = capsys.readouterr().out
    assert f"together: {small.states:,} states" in printed
    assert "no invariant falls" in printed


def test_the_command_tells_the_story_of_a_variant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--variant", "latest-early"]) == 0
    printed = capsys.readouterr().out
    assert "commit.deferred falls" in printed
    assert "  8. rank 0 makes a hidden directory for step 1, and points `latest` at that step" in printed
