"""Every assertion of the suite, and which of them were seen to fail.

An assertion is a call of a scenario's or judge's `expect...` or `record_failure` in a
test's module.  One that never fails on any of the mutants may be unable to:
somebody should break by hand what it is about, or write that mutant.
"""

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from forge_conformance.judging.judge import At


@dataclass(frozen=True)
class Assertion:
    """One call, by where it stands."""

    module: str
    first: int
    last: int
    test: str
    """The function or class that it is in, outermost."""

    def covers(self, at: At) -> bool:
        """Whether this line is one of its."""
        return at[0] == self.module and self.first <= at[1] <= self.last

    def __str__(self) -> str:
        return f"{self.module}:{self.first} in {self.test}"


def assertions(folders: Iterable[Path]) -> Iterator[Assertion]:
    """All of the suite, in order."""
    for path in sorted(path for folder in folders for path in folder.glob("test_*.py")):
        for outermost in ast.parse(path.read_text()).body:
            if isinstance(outermost, (ast.FunctionDef, ast.ClassDef)):
                for node in ast.walk(outermost):
                    if isinstance(node, ast.Call) and _is_assertion(node.func):
                        yield Assertion(path.name, node.lineno, node.end_lineno or node.lineno, outermost.name)


def _is_assertion(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else ""
    return name.startswith("expect") or name == "record_failure"


def never_failed(every: Sequence[Assertion], failures: Iterable[At]) -> list[Assertion]:
    """The assertions that no failure came from."""
    seen = set(failures)
    return [one for one in every if not any(one.covers(at) for at in seen)]
