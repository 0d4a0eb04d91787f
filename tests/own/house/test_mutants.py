"""Every mutant can be judged, and states its mistake, its consequence and the clause that it breaks."""

import ast
import subprocess
import sys
from pathlib import Path

from forge_conformance.matrix import mutants
from forge_spec import CLAUSES

FILES = mutants.files(mutants.HERE)
LOADS_EACH = """
import os, sys
import forge_ref  # once, and not in each of the processes below: it takes seconds
from forge_conformance.worker.implementation import find

for path in sys.argv[1:]:
    child = os.fork()  # a mutant changes the modules of its base
    if child == 0:
        try:
            find(path)
        except BaseException as error:
            print(f"{path}: {type(error).__name__}: {error}", flush=True)
        os._exit(0)
    if status := os.waitpid(child, 0)[1]:
        print(f"{path}: ended with {status}", flush=True)
print(f"{len(sys.argv) - 1} were tried")
"""


def test_every_mutant_can_be_loaded_as_a_manager() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADS_EACH, *map(str, FILES)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{len(FILES)} were tried"]


def test_every_mutant_says_between_its_mistake_and_its_clause_what_comes_of_it() -> None:
    assert FILES
    assert [path.name for path in FILES if not _tells(path)] == []


def test_every_clause_has_a_mutant_that_is_about_it() -> None:
    """Whoever claims it: the matrix asks it of what the mutants' bases claim."""
    about = {mutants.read(path).own.slug for path in FILES}
    assert [clause.slug for clause in CLAUSES if clause.slug not in about] == []


def _tells(path: Path) -> bool:
    """Whether there are a mistake, its story, and the lines that `mutants.read` reads, in this order and apart."""
    parts, mutant = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n"), mutants.read(path)
    return len(parts) > 2 and parts[0] == mutant.mistake and parts[-1].startswith(f"Clause: {mutant.own.slug}")
