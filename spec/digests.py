"""A short name for what a clause requires, so that a report can say whether a clause has changed since it was made.

Invariant: a digest changes when the clause's level, sentence, situation or capabilities change, or the code of a
predicate that decides it. It does not change with reasons, comments, docstrings, or the place of a clause in its
chapter. What a predicate calls is not part of it.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from forge_spec import CLAUSES
from forge_spec.clauses import Clause

_HERE = Path(__file__).resolve().parent
_DIGITS = 16


@cache
def of(clause: Clause) -> str:
    """Return the digest of one clause, in hexadecimal digits.

    >>> from dataclasses import replace
    >>> from forge_spec import BY_SLUG
    >>> clause = BY_SLUG["commit.monotone"]
    >>> of(clause) == of(replace(clause, why="another reason")), of(clause) == of(replace(clause, sentence="saves"))
    (True, False)
    """
    needs = ",".join(sorted(clause.capabilities))
    code = (line for name in clause.predicates for line in _code(clause, name))
    return _digest([clause.slug, str(clause.level), clause.sentence, clause.situation, needs, *code])


@cache
def of_specification() -> str:
    """Return the digest of all clauses."""
    return _digest(sorted(of(clause) for clause in CLAUSES))


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:_DIGITS]


def _code(clause: Clause, name: str) -> Iterator[str]:
    """The lines of a predicate without comments and docstrings; their text is the same in every version of Python."""
    chapter, _, function = name.rpartition(".")
    lines, definitions = _chapter(chapter or clause.chapter)
    node = definitions[function]
    left_out = {line for begin, end in _docstrings(node) for line in range(begin, end + 1)}
    for number in range(node.lineno, (node.end_lineno or node.lineno) + 1):
        line = lines[number - 1].strip()
        if number not in left_out and line and not line.startswith("#"):
            yield line


@cache
def _chapter(name: str) -> tuple[list[str], dict[str, ast.stmt]]:
    text = (_HERE / f"{name}.py").read_text(encoding="utf-8")
    return text.splitlines(), dict(_definitions(ast.parse(text)))


def _definitions(module: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    for node in module.body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                yield name, node


def _docstrings(node: ast.stmt) -> Iterator[tuple[int, int]]:
    """The first and last line of each text that stands alone."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant) and isinstance(inner.value.value, str):
            yield inner.lineno, inner.end_lineno or inner.lineno
