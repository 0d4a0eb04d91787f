"""What a mutant's file says of it.

A mutant is a manager with one mistake, in a file of its own that is named by
its mistake, and that `--impl` takes.  Its docstring begins with the mistake in one
sentence, says what comes of it and where it happened, and ends with lines for
this module:

    Clause: commit.deferred     the clause that has to catch it, and those that can't be told from it
    Level: durable              the level it is judged at (strict)
    Ranks: 2,4                  numbers of ranks (2 where its own clause needs several, else none)
    Base: bases/honest.py       the right manager that it was made from, beside it (the reference)
    Tests: all                  every test of its level runs, and not only those about its clauses: for the few that are
                                wrong everywhere, so that assertions fail which hold for whoever makes one mistake
    Tests: to the end           those about its clauses go on when its own has failed, for an assertion that comes late
"""

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from forge_conformance.judging.files import read_text
from forge_spec import BY_SLUG
from forge_spec.clauses import Clause, Level

HERE = Path(__file__).resolve().parents[3] / "fixtures" / "mutants"
"""Where the mutants are in a checkout; they are not installed."""
_FIELD = re.compile(r"(Clause|Level|Ranks|Base|Tests): (.+)")


class BadMutant(Exception):
    """The file does not say what a mutant has to say; the text names file and reason."""


@dataclass(frozen=True)
class Mutant:
    """A wrong manager, and the clauses that say so."""

    path: Path
    mistake: str
    clauses: tuple[str, ...]
    """The first is its own."""
    level: Level = Level.STRICT
    ranks: str = ""
    base: Path | None = None
    by_all_tests: bool = False
    """Whether every test runs, be it about its clauses or not."""
    to_the_end: bool = False
    """Whether tests go on to be run when its own clause has failed."""
    is_right: bool = False
    """Whether it is no mutant but what some were made from: then only the tests about its clauses run."""

    @property
    def name(self) -> str:
        """What it is called everywhere."""
        return self.path.stem

    @property
    def own(self) -> Clause:
        """The clause that has to catch it."""
        return BY_SLUG[self.clauses[0]]


def read(path: Path) -> Mutant:
    """The mutant in this file; `BadMutant` if it does not say what it has to."""
    try:
        tree = ast.parse(read_text(path))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadMutant(f"{path} can't be read: {error}") from None
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    if "bases" in imported and not (path.parent / "bases").exists():
        raise BadMutant(f"{path} imports from bases, which has to lie beside it: copy or link {HERE / 'bases'}")
    text = ast.get_docstring(tree) or ""
    found = (_FIELD.fullmatch(line.strip()) for line in text.splitlines())
    fields: dict[str, str] = {match[1]: match[2] for match in found if match}
    clauses = tuple(slug.strip() for slug in fields.get("Clause", "").split(",") if slug.strip())
    unknown = [slug for slug in clauses if slug not in BY_SLUG]
    if not clauses or unknown:
        wrong = f"names {', '.join(unknown)}, which is no clause" if unknown else "has no line `Clause: ...`"
        raise BadMutant(f"the docstring of {path} {wrong}; forge-conformance list shows them all")
    several = BY_SLUG[clauses[0]].capabilities & {"distributed", "pipeline"}
    base = path.parent / fields["Base"] if "Base" in fields else None
    if base is not None and not base.is_file():
        raise BadMutant(f"{path} has the base {fields['Base']}, and there is no {base}")
    try:
        level = Level.named(fields.get("Level", "strict"))
    except ValueError as error:
        raise BadMutant(f"{path}: {error}") from None
    tests = fields.get("Tests")
    if tests not in (None, "all", "to the end"):
        raise BadMutant(
            f"the docstring of {path} says `Tests: {tests}`; write `Tests: all`, `to the end`, or no such line"
        )
    return Mutant(
        path,
        text.partition("\n")[0],
        clauses,
        level,
        fields.get("Ranks", "2" if several else ""),
        base,
        by_all_tests=tests == "all",
        to_the_end=tests is not None,
    )


def base_of(impl: str, mutants: Iterable[Mutant], clauses: Iterable[str] = ()) -> Mutant:
    """What these mutants were made from, to be judged by all of their clauses, and by others."""
    made = list(mutants)
    slugs = sorted({slug for one in made for slug in one.clauses}.union(clauses))
    level = max((one.level for one in made), default=Level.STRICT)
    return Mutant(Path(impl), "", tuple(slugs), level, max((one.ranks for one in made), default=""), is_right=True)


def files(directory: Path) -> list[Path]:
    """The files of all mutants there."""
    return sorted(path for path in directory.glob("*.py") if not path.name.startswith("_"))
