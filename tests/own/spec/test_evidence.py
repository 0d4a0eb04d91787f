"""What stands behind a clause is what the code, the suite's tests, the mutants and the vectors say."""

import importlib
from pathlib import Path

import pytest

from forge_conformance.judging.judge import JUDGES
from forge_conformance.plugin import SUITE
from forge_spec import CLAUSES, Clause, evidence, vectors
from forge_spec.evidence import REPOSITORIES, Issue

ROOT = Path(__file__).parents[3]
FIXTURES = ROOT / "fixtures"
TESTS = (*evidence.tests_in(*SUITE), *evidence.folders_in(FIXTURES))
MUTANTS = evidence.mutants_in(FIXTURES / "mutants")


def test_the_tests_that_are_read_declare_what_they_declare_when_they_run() -> None:
    declared = set()
    for package, where in zip(("forge_conformance", "forge_distributed"), SUITE, strict=True):
        for path in where.glob("test_*.py"):
            for name, value in vars(importlib.import_module(f"{package}.{path.stem}")).items():
                if name.startswith("test_") and hasattr(value, JUDGES):
                    case = f"{path.stem.removeprefix('test_')}/{name.removeprefix('test_').replace('_', '-')}"
                    declared.add((case, getattr(value, JUDGES).clauses))
    assert {(test.name, test.clauses) for test in TESTS} == declared


@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.slug)
def test_a_clause_has_a_test_a_mutant_and_predicates_that_exist(clause: Clause) -> None:
    found = evidence.of(clause, TESTS, MUTANTS)
    assert found.tests
    assert found.mutants
    for predicate in found.predicates:
        assert hasattr(importlib.import_module(f"forge_spec.{predicate.chapter}"), predicate.name)
        assert predicate.path.is_file()


def test_every_case_of_the_vectors_is_counted_for_each_of_its_clauses() -> None:
    counted = sum(found.count for clause in CLAUSES for found in evidence.vectors_of(clause.slug))
    assert counted == sum(len(case["clauses"]) for chapter in vectors.CHAPTERS for case in vectors.cases(chapter))


def test_where_there_are_no_mutants_none_are_listed(tmp_path: Path) -> None:
    assert evidence.mutants_in(tmp_path / "fixtures") == ()


def test_an_issue_of_a_project_that_is_not_known_is_an_error() -> None:
    with pytest.raises(ValueError, match="#7 is cited of 'somebody'"):
        list(evidence.issues_in("Happened to somebody #7."))


def test_every_known_project_is_cited_by_a_mutant() -> None:
    assert {issue.project for mutant in MUTANTS for issue in mutant.issues} == set(REPOSITORIES)


def test_an_issue_has_its_address() -> None:
    assert Issue("Orbax", 605).url == "https://github.com/google/orbax/issues/605"
