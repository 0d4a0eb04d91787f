"""The specification has one word for one thing: clauses use the words of `terms`, and none that these replace."""

import re
from pathlib import Path

import pytest

from forge_conformance.judging.verdicts import Verdict
from forge_conformance.matrix import mutants
from forge_spec import CAPABILITIES, CLAUSES, Clause
from forge_spec.clauses import LEVELS, Level
from forge_spec.front import VERDICTS
from forge_spec.questions import CORNERS, QUESTIONS, Corner
from forge_spec.terms import TERMS, Term, words_not_used


@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.slug)
def test_a_clause_uses_no_word_that_a_term_replaces(clause: Clause) -> None:
    assert list(words_not_used(f"{clause.sentence}. {clause.why} {clause.situation}.")) == []


@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.slug)
def test_no_sentence_of_a_clause_is_too_long_to_be_read_once(clause: Clause) -> None:
    sentences = re.split(r"(?<=[.;:]) ", f"{clause.sentence}. {clause.why} {clause.situation}.")
    assert [sentence for sentence in sentences if len(sentence.split()) > 32] == []


@pytest.mark.parametrize("corner", CORNERS, ids=lambda corner: f"{corner.question}/{corner.label}")
def test_the_reason_of_a_corner_uses_no_word_that_a_term_replaces(corner: Corner) -> None:
    assert list(words_not_used(corner.why)) == []


def test_questions_capabilities_levels_and_verdicts_use_no_word_that_a_term_replaces() -> None:
    asked = [text for one in QUESTIONS for text in (one.asks, *one.given.values(), *one.expected.values())]
    texts = [*asked, *CAPABILITIES.values(), *LEVELS.values(), *VERDICTS.values(), *(term.meaning for term in TERMS)]
    assert [(text, words) for text in texts if (words := list(words_not_used(text)))] == []


@pytest.mark.parametrize("path", mutants.files(mutants.HERE), ids=lambda path: path.stem)
def test_the_first_sentence_of_a_mutant_uses_no_word_that_a_term_replaces(path: Path) -> None:
    """`explain` and the book print it."""
    assert list(words_not_used(mutants.read(path).mistake)) == []


def test_no_term_is_defined_twice_and_each_meaning_is_a_sentence() -> None:
    names = [term.name for term in TERMS]
    assert len(names) == len(set(names))
    assert [term.name for term in TERMS if not re.fullmatch(r"[A-Z`].*\.", term.meaning)] == []


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.name)
def test_a_word_that_is_not_used_is_not_a_term(term: Term) -> None:
    assert not {other.name for other in TERMS} & set(term.not_used)


def test_the_verdicts_of_the_book_are_those_of_a_report() -> None:
    assert list(VERDICTS) == [str(verdict) for verdict in Verdict]


def test_every_level_has_its_meaning() -> None:
    assert list(LEVELS) == list(Level)
