"""The specification's answers as data: for whoever writes a manager in another language.

    python -m forge_spec.vectors --write DIRECTORY  write one JSON file for each chapter
    python -m forge_spec.vectors --check DIRECTORY  exit with 1 if a file differs

A *case* is a question about a manager, what it is asked about, and the one
right answer.  The questions, corners and grids are in `forge_spec.questions`.

Invariant: nothing is written while a predicate and a corner disagree.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from forge_spec import BY_SLUG
from forge_spec.questions import ASKED, CORNERS, QUESTIONS
from forge_spec.questions.form import Given, Question

CHAPTERS: tuple[str, ...] = tuple(dict.fromkeys(question.chapter for question in QUESTIONS))
"""The chapters that have vectors; each is one file."""


def disagreements() -> list[str]:
    """Return a sentence for each corner to which the predicates give another answer than the hand.

    >>> disagreements()
    []
    """
    answers = ((corner, ASKED[corner.question].answer(corner.given)) for corner in CORNERS)
    return [
        f"{corner.question}/{corner.label}: by hand {corner.expected}, by the specification {answer}"
        for corner, answer in answers
        if answer != corner.expected
    ]


def cases(chapter: str) -> list[dict[str, Any]]:
    """Return every case of a chapter: question by question, corners first.

    >>> cases("layout")[0]["id"]
    'layout/name/zero'
    """
    asked = [question for question in QUESTIONS if question.chapter == chapter]
    return [case for question in asked for case in (*_corners_of(question), *_grid_of(question))]


def _corners_of(question: Question) -> Iterator[dict[str, Any]]:
    corners = (corner for corner in CORNERS if corner.question == question.name)
    for corner in corners:
        yield _case(question, corner.label, corner.given, corner.expected, corner.clauses) | {"why": corner.why}


def _grid_of(question: Question) -> Iterator[dict[str, Any]]:
    for label, given in question.grid():
        yield _case(question, f"grid-{label}", given, question.answer(given), question.judges(given))


def _case(question: Question, label: str, given: Given, expected: Given, clauses: Iterable[str]) -> dict[str, Any]:
    slugs = list(clauses)
    assert all(slug in BY_SLUG for slug in slugs), f"{question.name}/{label} names an unknown clause: {slugs}"
    about = {"id": f"{question.name}/{label}", "question": question.name, "clauses": slugs}
    return about | {"given": dict(given), "expected": dict(expected)}


def rendered(chapter: str) -> str:
    """Return the file of a chapter, with one case on each line, so that a diff shows the cases that changed."""
    asked = {
        question.name: {"asks": question.asks, "given": dict(question.given), "expected": dict(question.expected)}
        for question in QUESTIONS
        if question.chapter == chapter
    }
    lines = ",\n    ".join(json.dumps(case) for case in cases(chapter))
    head = json.dumps({"chapter": chapter, "questions": asked}, indent=2).removesuffix("\n}")
    return f'{head},\n  "cases": [\n    {lines}\n  ]\n}}\n'


def drifted(directory: Path) -> list[str]:
    """Return the chapters whose file in that directory differs from what is rendered, or is missing."""
    files = {chapter: directory / f"{chapter}.json" for chapter in CHAPTERS}
    return [c for c, file in files.items() if not file.exists() or file.read_text("utf-8") != rendered(c)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m forge_spec.vectors", description="The specification as data.")
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--write", type=Path, metavar="DIRECTORY", help="write one JSON file for each chapter there")
    choice.add_argument("--check", type=Path, metavar="DIRECTORY", help="exit with 1 if a file there differs")
    options = parser.parse_args(arguments)
    wrong = disagreements()
    if not wrong and options.write:
        options.write.mkdir(parents=True, exist_ok=True)
        for chapter in CHAPTERS:
            (options.write / f"{chapter}.json").write_text(rendered(chapter), encoding="utf-8")
    elif not wrong:
        hint = f"renew them with: python -m forge_spec.vectors --write {options.check}"
        wrong = [f"{chapter}.json is out of date; {hint}" for chapter in drifted(options.check)]
    print(*wrong, sep="\n", end="\n" if wrong else "", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
