"""All that is known of a clause, as `forge-conformance explain` prints it, and the short form that `list` prints.

Everything is computed by `forge_spec.evidence` from the specification, the installed tests and the checkout's mutants.
"""

import ast
import inspect
import itertools
from collections.abc import Iterator
from pathlib import Path

from forge_conformance.adapter import Traits
from forge_conformance.judging.text import wrapped
from forge_conformance.plugin import SUITE
from forge_spec import CLAUSES, evidence
from forge_spec.clauses import CAPABILITIES, Clause, Level
from forge_spec.evidence import Evidence, Mutant

_ROOT = evidence.HERE.parent
"""The checkout, or the directory of an installed suite."""
_FIXTURES = next((_ROOT / name for name in ("fixtures", "forge_fixtures") if (_ROOT / name).is_dir()), None)


def listed(level: Level) -> Iterator[str]:
    """The clauses up to a level, one paragraph each."""
    for clause in CLAUSES:
        if clause.level <= level:
            needs = f" [{', '.join(_needs(clause))}]" if clause.capabilities else ""
            yield wrapped(f"{clause.slug} ({clause.level}){needs}: {clause.sentence}.", 0, 2)


def capabilities() -> Iterator[str]:
    """Everything that a manager may claim, one line each."""
    return (f"{name:<14} {meaning}" for name, meaning in CAPABILITIES.items())


def traits() -> Iterator[str]:
    """Everything that an adapter may say of its manager's ways, one paragraph each."""
    return (wrapped(f"{name}: {meaning}", 0, 4) for name, meaning in documented_traits())


def documented_traits() -> Iterator[tuple[str, str]]:
    """The fields of `Traits`, each with the text below it."""
    (definition,) = ast.parse(inspect.getsource(Traits)).body
    assert isinstance(definition, ast.ClassDef), "Traits is a class"
    for field, text in itertools.pairwise(definition.body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            yield ast.unparse(field.target), " ".join(str(text.value.value).split())


def explained(clause: Clause) -> Iterator[str]:
    """The clause, and what stands behind it: predicates, vectors, the model, tests, mutants and public issues."""
    yield f"{clause.slug}, level {clause.level}"
    yield wrapped(f"must: a checkpoint manager {clause.sentence}.", 2, 4)
    yield wrapped(f"why: {clause.why}", 2, 4)
    yield wrapped(f"judged when: {clause.situation}.", 2, 4)
    yield wrapped(f"needs: {', '.join(_needs(clause)) or 'no capability'}", 2, 4)
    yield wrapped(f"rests on: {', '.join(clause.rests_on) or 'no other clause'}", 2, 4)
    tests = evidence.tests_in(*SUITE) + (evidence.folders_in(_FIXTURES) if _FIXTURES else ())
    mutants = evidence.mutants_in(_FIXTURES / "mutants") if _FIXTURES else ()
    found = evidence.of(clause, tests, mutants)
    yield from _computed(found)
    yield from _section("tests", [test.name for test in found.tests], "none yet")
    if not mutants:
        yield wrapped("mutants: not installed; a checkout has them, with the issues that they cite", 2, 4)
        return
    yield from _section("mutants", [_described(mutant) for mutant in found.mutants], "none")
    yield from _section("public issues", [f"{issue}: {issue.url}" for issue in found.issues], "no mutant cites one")


def _computed(found: Evidence) -> Iterator[str]:
    predicates = [f"{_shown(predicate.path)}:{predicate.name}" for predicate in found.predicates]
    yield wrapped(f"predicates: {', '.join(predicates) or 'none; the tests compare what they see'}", 2, 4)
    yield from _section("vectors", [_counted(vectors) for vectors in found.vectors], "none")
    if found.model:
        yield wrapped(f"model: {found.model.sentence}; broken by {', '.join(found.model.variants)}", 2, 4)


def _counted(vectors: evidence.Vectors) -> str:
    file = _FIXTURES / "vectors" / f"{vectors.chapter}.json" if _FIXTURES else None
    where = _shown(file) if file else f"{vectors.chapter}.json, which is not installed"
    corners = f", with the corners {', '.join(vectors.corners)}" if vectors.corners else ""
    return f"{vectors.count} in {where}{corners}"


def _described(mutant: Mutant) -> str:
    cited = f" ({', '.join(map(str, mutant.issues))})" if mutant.issues else ""
    return f"{mutant.name}: {mutant.mistake}{cited}"


def _section(name: str, lines: list[str], without: str) -> Iterator[str]:
    yield f"  {name}:" if lines else f"  {name}: {without}"
    yield from (wrapped(line, 4, 6) for line in lines)


def _needs(clause: Clause) -> list[str]:
    return [capability for capability in CAPABILITIES if capability in clause.capabilities]


def _shown(path: Path) -> str:
    return path.relative_to(_ROOT).as_posix()
