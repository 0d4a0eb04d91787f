"""The model does what the clauses require, the search visits all of it, and every broken manager fails."""

import re
from pathlib import Path
from typing import Any

import pytest

from forge_spec import BY_SLUG
from forge_spec.model import ephemeral_table as second
from forge_spec.model.design import Design, Variant
from forge_spec.model.designs import BY_NAME, DESIGNS, FIRST, SECOND
from forge_spec.model.explore import Explored, explore, follow, main, search
from forge_spec.model.machine import HANG, Invariant, Label
from forge_spec.model.program import Finish, Kill, Start, program
from forge_spec.model.table import SMALL, TABLE, Job

PAGE = Path(__file__).parents[3] / "docs" / "model.md"
Wrong = tuple[Design[Any], Variant]
BROKEN = [(design, variant) for design, variant in BY_NAME.values() if not variant.is_lazy]
LAZY = [(design, variant) for design, variant in BY_NAME.values() if variant.is_lazy]
OF_FIRST = [(design, variant) for design, variant in BROKEN if design is FIRST]


def name_of(wrong: Wrong) -> str:
    return wrong[1].name


def searched(wrong: Wrong) -> Explored:
    design, variant = wrong
    return explore(design, design.scope_of(variant), design.table_of(variant))


@pytest.fixture(scope="module", params=DESIGNS.values(), ids=DESIGNS)
def small(request: pytest.FixtureRequest) -> Explored:
    return explore(request.param, request.param.scopes["small"])


# -- the manager itself ---------------------------------------------------------


def test_every_invariant_holds_in_every_state(small: Explored) -> None:
    assert small.shortest is None, str(small.shortest)


def test_every_situation_that_an_invariant_is_about_arises(small: Explored) -> None:
    assert small.unreached == ()


def test_every_row_of_the_table_is_taken(small: Explored) -> None:
    assert small.untaken == ()


def test_the_page_of_the_model_says_how_many_states_the_small_scope_has(small: Explored) -> None:
    assert f"{small.states:,} states" in re.sub(r"\s+", " ", PAGE.read_text())


def test_every_invariant_formalises_a_clause_and_none_twice() -> None:
    clauses = [invariant.clause for design in DESIGNS.values() for invariant in design.invariants]
    assert set(clauses) <= set(BY_SLUG)
    assert len(clauses) == len(set(clauses))


def test_a_run_that_is_killed_while_it_resumes_can_resume_again() -> None:
    recovery = [Label("start"), Label("resolve"), Label("load", 0)]
    trace = [*recovery, Label("kill"), *recovery, Label("load", 1), Label("go on")]
    *_, last = follow(FIRST.machine(SMALL, SMALL.settings[0]), trace)
    assert last.job is Job.TRAINING


def test_what_a_death_leaves_of_a_removal_is_collected_by_the_next_process() -> None:
    saved = [Label("write"), Label("describe"), Label("publish")]
    hook = [Label("batch"), Label("take in"), Label("remove"), Label("decide"), Label("await"), Label("save")]
    first = [Label("start", 0), Label("resolve"), Label("look"), Label("decide"), Label("save"), *saved]
    dies = [*first, *hook, *saved, *hook, *saved, *hook, Label("unmark"), Label("kill")]
    again = [Label("start", 0), Label("resolve"), Label("look"), Label("decide"), *hook, *saved]
    ends = [Label("post_train"), Label("await"), Label("decide"), Label("delete"), Label("clear")]
    scope = second.Scope(ranks=1)
    states = list(follow(SECOND.machine(scope, second.Setting(is_async=True, limit=None)), [*dies, *again, *ends]))
    assert second.torn(states[len(dies)].folder) == {1}
    assert second.recorded(states[-1].folder) == {0: "permanent", 2: "ephemeral", 3: "permanent"}
    assert second.torn(states[-1].folder) == frozenset()


# -- managers that are wrong ------------------------------------------------------


@pytest.fixture(scope="module", params=BROKEN, ids=name_of)
def broken(request: pytest.FixtureRequest) -> tuple[Wrong, Explored]:
    return request.param, searched(request.param)


def test_a_broken_manager_breaks_the_clause_that_is_about_its_mistake(broken: tuple[Wrong, Explored]) -> None:
    (_, variant), explored = broken
    assert explored.shortest is not None, f"every invariant holds in {explored.states} states"
    _, violation = explored.shortest
    assert violation.clause == variant.breaks, str(violation)


def test_no_shorter_trace_leads_to_a_violation(broken: tuple[Wrong, Explored]) -> None:
    (design, variant), explored = broken
    assert explored.shortest is not None
    depth = len(explored.shortest[1].trace) - 1
    scope = design.scope_of(variant)
    for setting in scope.settings:
        found = search(design.machine(scope, setting, design.table_of(variant)), max_depth=depth)
        assert found.violation is None, f"{setting}: {found.violation}"
        assert found.depth == depth, "the search gave up before that depth"


def test_a_trace_is_a_path_of_the_manager_that_it_was_found_in(broken: tuple[Wrong, Explored]) -> None:
    (design, variant), explored = broken
    assert explored.shortest is not None
    setting, violation = explored.shortest
    labels = [step.label for step in violation.trace]
    machine = design.machine(design.scope_of(variant), setting, design.table_of(variant))
    states = list(follow(machine, labels))
    assert len(states) == len(labels) + 1


def test_a_printed_violation_has_one_sentence_for_each_row(broken: tuple[Wrong, Explored]) -> None:
    _, explored = broken
    assert explored.shortest is not None
    violation = explored.shortest[1]
    *told, failure = str(violation).splitlines()
    assert [line.split(". ", 1)[1] for line in told] == [step.sentence for step in violation.trace]
    assert f"{violation.clause} does not hold" in failure


@pytest.mark.parametrize("wrong", OF_FIRST, ids=name_of)
def test_a_program_does_or_awaits_each_row_of_its_trace(wrong: Wrong) -> None:
    explored = searched(wrong)
    assert explored.shortest is not None
    labels = [step.label for step in explored.shortest[1].trace]
    actions = program(labels)
    assert isinstance(actions[0], Start)
    assert isinstance(actions[-1], Finish)
    awaited = [label for action in actions for label in action.after]
    protocol = {row.name for row in TABLE if not row.external}
    assert awaited == [label for label in labels if label.row in protocol]
    assert len(actions) - 1 == len(labels) - len(awaited)


@pytest.mark.parametrize(
    "invariant",
    [invariant for design in DESIGNS.values() for invariant in design.invariants],
    ids=lambda invariant: invariant.clause,
)
def test_every_invariant_is_broken_by_some_variant(invariant: Invariant) -> None:
    assert invariant.clause in {variant.breaks for _, variant in BROKEN}


@pytest.mark.parametrize("wrong", LAZY, ids=name_of)
def test_a_manager_that_does_nothing_never_reaches_the_situation_of_its_clause(wrong: Wrong) -> None:
    explored = searched(wrong)
    assert explored.shortest is None
    assert wrong[1].breaks in explored.unreached


def test_each_variant_has_a_name_of_its_own_and_a_known_clause() -> None:
    assert len(BY_NAME) == sum(len(design.variants) for design in DESIGNS.values())
    assert {variant.breaks for _, variant in BY_NAME.values()} <= {*BY_SLUG, HANG}


# -- programs and the command -----------------------------------------------------


def test_a_kill_waits_for_what_the_manager_had_done_by_then() -> None:
    begun = [Label("start"), Label("resolve"), Label("load", 0), Label("load", 1), Label("go on")]
    saving = [Label("stage"), Label("describe"), Label("shard", 1)]
    actions = program([*begun, Label("train"), Label("save"), *saving, Label("kill")])
    assert actions[-2] == Kill(after=tuple(saving))


def test_a_row_that_can_not_be_taken_is_named_with_those_that_can() -> None:
    with pytest.raises(ValueError, match=r"row 2, publish, can't be taken there; what can is .*resolve"):
        list(follow(FIRST.machine(SMALL, SMALL.settings[0]), [Label("start"), Label("publish")]))


def test_the_command_counts_a_scope(capsys: pytest.CaptureFixture[str], small: Explored) -> None:
    assert main(["--scope", "small", "--design", small.design.name]) == 0
    printed = capsys.readouterr().out
    assert f"together: {small.states:,} states" in printed
    assert "every invariant holds" in printed


def test_the_command_prints_the_trace_of_a_variant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--variant", "latest-early"]) == 0
    printed = capsys.readouterr().out
    assert "commit.deferred does not hold" in printed
    assert "  8. rank 0 makes a hidden directory for step 1, and points `latest` at that step" in printed
