"""The clauses are well formed, and every public function of a chapter shows what it does."""

import doctest
import importlib
import inspect
import re
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

import forge_spec
from forge_spec import BY_SLUG, CAPABILITIES, CHAPTERS, CLAUSES, Clause

SPEC = Path(inspect.getfile(forge_spec)).parent
SOURCES = sorted(SPEC.rglob("*.py"))
MODULES = [
    ".".join(["forge_spec", *path.relative_to(SPEC).with_suffix("").parts]).removesuffix(".__init__")
    for path in SOURCES
]


def name_of(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


@pytest.mark.parametrize("module", MODULES)
def test_every_example_says_what_happens(module: str) -> None:
    assert doctest.testmod(importlib.import_module(module)).failed == 0


@pytest.mark.parametrize("chapter", CHAPTERS, ids=name_of)
def test_every_public_function_of_a_chapter_has_an_example(chapter: ModuleType) -> None:
    functions = [function for _, function in inspect.getmembers(chapter, inspect.isfunction)]
    own = [f for f in functions if f.__module__ == chapter.__name__ and not f.__name__.startswith("_")]
    assert own
    assert [f.__name__ for f in own if ">>>" not in (f.__doc__ or "")] == []


def test_the_prose_names_the_chapters_in_their_reading_order() -> None:
    chapters = [name_of(chapter) for chapter in CHAPTERS]
    named = re.findall(r"`(\w+)`", forge_spec.__doc__ or "")
    assert [name for name in dict.fromkeys(named) if name in chapters] == chapters


def test_every_capability_that_can_be_claimed_is_judged_by_a_clause() -> None:
    needed = frozenset().union(*(clause.capabilities for clause in CLAUSES))
    assert sorted(CAPABILITIES.keys() - needed) == []


def test_no_slug_is_used_twice() -> None:
    assert sorted(BY_SLUG) == sorted(clause.slug for clause in CLAUSES)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=name_of)
def test_a_slug_begins_with_its_chapter(chapter: ModuleType) -> None:
    assert {clause.chapter for clause in chapter.CLAUSES} == {name_of(chapter)}


@pytest.mark.parametrize("chapter", CHAPTERS, ids=name_of)
def test_the_sections_of_a_chapter_begin_with_its_clauses_in_order(chapter: ModuleType) -> None:
    slugs = [clause.slug for clause in chapter.CLAUSES]
    sections = list(getattr(chapter, "SECTIONS", slugs[:1]))
    assert sections[0] == slugs[0]
    assert sections == [slug for slug in slugs if slug in sections]


@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.slug)
def test_a_clause_reads_as_the_book_prints_it(clause: Clause) -> None:
    assert re.fullmatch(r"[a-z]+\.[a-z0-9]+(-[a-z0-9]+)*", clause.slug)
    assert re.fullmatch(r"[a-z].*[^.]", clause.sentence), "it completes 'A checkpoint manager ... .'"
    assert re.fullmatch(r"[A-Z`].*\.", clause.why), "it is a sentence"
    assert re.fullmatch(r"[a-z`].*[^.]", clause.situation), "it completes 'Judged when ... .'"


@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.slug)
def test_a_clause_rests_on_clauses_that_its_level_contains(clause: Clause) -> None:
    assert all(BY_SLUG[slug].level <= clause.level for slug in clause.rests_on)


def test_no_clause_rests_on_itself_even_indirectly() -> None:
    graph = {clause.slug: clause.rests_on for clause in CLAUSES}
    assert set(TopologicalSorter(graph).static_order()) == set(BY_SLUG)
