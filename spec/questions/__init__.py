"""Questions with one right answer, in plain data: a file for each chapter, with its corners and its grid.

A *corner* is a case whose answer a person wrote down, with its reason, before any predicate was asked: here are the
mistakes that managers make.  The *grid* around the corners is answered by the predicates of the chapter.
`forge_spec.vectors` checks the predicates against the corners, and renders both as JSON.
"""

from collections.abc import Mapping

from forge_spec.questions import commit, durable, ephemeral, freeze, layout, place, resume, retention, schedule, trust
from forge_spec.questions.form import FOLDER, WHOLE, Corner, Question

_CHAPTERS = (schedule, place, layout, commit, retention, resume, freeze, trust, ephemeral, durable)

QUESTIONS: tuple[Question, ...] = tuple(question for chapter in _CHAPTERS for question in chapter.QUESTIONS)
"""Every question, chapter by chapter."""

CORNERS: tuple[Corner, ...] = tuple(corner for chapter in _CHAPTERS for corner in chapter.CORNERS)
"""Every corner, chapter by chapter."""

ASKED: Mapping[str, Question] = {question.name: question for question in QUESTIONS}
"""Every question under its name."""

__all__ = ["ASKED", "CORNERS", "FOLDER", "QUESTIONS", "WHOLE", "Corner", "Question"]
