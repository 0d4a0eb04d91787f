"""The form of a question, and of a corner: a case whose answer was written by hand before any predicate was asked.

Invariant: an expected answer of a corner is a literal, never computed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Given = Mapping[str, Any]
Answer = dict[str, Any]

FOLDER = "/run/checkpoints"
"""Where the folder of a case stands, for paths that are written in full."""
WHOLE = ("__0_0.distcp", ".metadata", "train_state.pt", "metadata.json")
"""The files of a complete checkpoint without pipeline stages."""


@dataclass(frozen=True)
class Corner:
    """One case with an answer by hand, and the reason for it."""

    question: str
    label: str
    clauses: tuple[str, ...]
    given: Given
    expected: Mapping[str, Any]
    why: str


@dataclass(frozen=True)
class Question:
    """One question that every manager can be asked, in the words of the data."""

    name: str
    """chapter/what."""
    asks: str
    given: Mapping[str, str]
    """What each field of `given` is."""
    expected: Mapping[str, str]
    """What each field of `expected` is."""
    answer: Callable[[Given], Answer]
    """By the chapter's predicates."""
    judges: Callable[[Given], Iterable[str]]
    """The clauses that a wrong answer breaks."""
    grid: Callable[[], Iterator[tuple[str, Given]]]
    """Cases besides the corners, each with a label."""

    @property
    def chapter(self) -> str:
        """The part of the name before the slash."""
        return self.name.partition("/")[0]


def no_grid() -> Iterator[tuple[str, Given]]:
    """For a question whose corners are all of its cases."""
    yield from ()


def steps_or_null(steps: Iterable[int | None]) -> list[int | None]:
    """Return the steps in order, as JSON has them: null, a fresh start, is the first."""
    return sorted(steps, key=lambda step: (step is not None, step or 0))
