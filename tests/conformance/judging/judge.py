"""Verdicts of one test: what each clause expected, what was seen, how often its situation arose.

Invariant: a clause is judged only by `expect`; a test that ends without having
called it for a clause has not reached that clause, and never passes it.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forge_conformance.adapter import Layout
from forge_spec import BY_SLUG


class Unreached(Exception):
    """The situation that the clause is about cannot be brought about here; the text is the reason."""


class CannotJudge(Exception):
    """There is nothing to judge; the text says why and what to do."""


class NotImported(CannotJudge):
    """There is no manager: what `--impl` names can't be imported in its Python, or is no adapter."""


@dataclass(frozen=True)
class Failure:
    """What a report needs to explain a failed clause to somebody who does not know the test."""

    clause: str
    expected: str
    seen: str
    story: tuple[str, ...]
    detail: str = ""
    events: frozenset[str] = frozenset()
    """Those of `Judge.events` that had happened by then."""


class ClauseFailure(AssertionError):
    """A clause does not hold."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.clause}: expected {failure.expected}; seen {failure.seen}")
        self.failure = failure


At = tuple[str, int]
"""A test's module, by its file's name, and a line of it."""


@dataclass
class Judge:
    """What one test finds out; the story is its scenario in words, in order."""

    clauses: tuple[str, ...]
    is_judged: Callable[[str], bool]
    """Whether the level and the claims cover a clause; what they don't cover is neither reached nor failed."""
    goes_on: bool = False
    """Whether the test goes on after a clause has failed, so that it is known which lines fail besides."""
    first: Failure | None = None
    """The first failure of a test that goes on: the verdict, since all others may follow from it."""
    failed_at: dict[At, None] = field(default_factory=dict)
    """The lines of the test that found something, in order."""
    reached: Counter[str] = field(default_factory=Counter)
    story: list[str] = field(default_factory=list)
    events: set[str] = field(default_factory=set)
    """What happened beyond training, saving, waiting and resuming in one process after another: settings, kills, held
    or failing operations, and whatever the test itself says that it arranged."""
    act: str | None = None
    """The clause about what a manager was asked to do last, as such: to save, wait, delete, resume or let train."""
    folder: str | None = None
    """Where the checkpoints are; a file that the suite misses there is the manager's fault."""

    def tell(self, sentence: str) -> None:
        """Add to the story; what a test says itself, and not the harness, is an event."""
        self.story.append(sentence)
        if _is_test(sys._getframe(1).f_code.co_filename) and not sentence.startswith("the folder holds"):
            self.happens(re.sub(r"\d+", "#", sentence))

    def happens(self, *events: str) -> None:
        """Note what explains a failure, and what an explanation has to have in common with it."""
        self.events.update(events)

    def expect(
        self, clause: str, holds: bool, *, expected: str, seen: Any, detail: str = "", reaches: bool = True
    ) -> None:
        """The situation of this clause arose; `ClauseFailure` unless it holds.

        `reaches=False` for a harmless situation beside that one: the clause can
        fail there, but a pass there does not count.
        """
        assert clause in BY_SLUG, f"there is no clause {clause}"
        assert clause in self.clauses, f"this test does not say that it judges {clause}"
        if not self.is_judged(clause):
            return
        self.reached[clause] += reaches
        if not holds:
            self._fail(clause, expected, str(seen) or "nothing", detail)

    def record_failure(self, clause: str, *, expected: str, seen: str) -> None:
        """This clause does not hold, found out on the way to another one."""
        self._fail(clause, expected, seen)

    def _fail(self, clause: str, expected: str, seen: str, detail: str = "") -> None:
        failure = Failure(clause, expected, seen, tuple(self.story), detail, frozenset(self.events))
        self.failed_at[_line_of_a_test()] = None
        if not self.goes_on:
            raise ClauseFailure(failure)
        self.first = self.first or failure


def _line_of_a_test() -> At:
    """The innermost line of a test's module that is being run by this thread."""
    frame = sys._getframe()
    while not _is_test(frame.f_code.co_filename):
        assert frame.f_back is not None, "only tests judge"
        frame = frame.f_back
    return Path(frame.f_code.co_filename).name, frame.f_lineno


def _is_test(file: str) -> bool:
    return Path(file).name.startswith("test_")


JUDGES = "forge_judges"
"""The attribute of a test function that says what it judges."""


@dataclass(frozen=True)
class Judges:
    """What a test declares.  The first clause is the one it is about.

    A fault of the manager is blamed on the first clause, or on the clause about the plain call in which it happened if
    the first one rests on that.
    """

    clauses: tuple[str, ...]
    needs: frozenset[str]
    layout: Layout | None = None


def judges(
    *clauses: str, needs: tuple[str, ...] = (), layout: Layout | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Declare which clauses a test judges.

    It runs only against implementations that claim what the first clause
    needs, and `needs` besides, and whose folders have this layout, if one is
    named.
    """
    unknown = [clause for clause in clauses if clause not in BY_SLUG]
    assert not unknown, f"no such clauses: {unknown}"
    declared = Judges(clauses, frozenset(needs) | BY_SLUG[clauses[0]].capabilities, layout)

    def mark(test: Callable[..., None]) -> Callable[..., None]:
        setattr(test, JUDGES, declared)
        return test

    return mark
