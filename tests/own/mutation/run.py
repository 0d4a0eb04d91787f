"""Changes our own code by one operator at a time, and asks whether a test notices.

    python tests/own/mutation/run.py [--module GLOB]... [--in DIRECTORY] [-j N]

mutmut makes the changes in the modules that `[tool.mutmut]` names, in a copy
of the rooms under their import names, since a mutant is found by its import
name; and runs the tests named there.  A mutant that no test kills is either in
`survivors.toml`, with the reason why it changes nothing that a caller can see,
or a test is missing.  An entry that no longer survives is wrong as well.

What mutmut does not change: properties, module-level values, and whatever is
decorated otherwise.
"""

import argparse
import fnmatch
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
SURVIVORS = Path(__file__).with_name("survivors.toml")
ROOMS = {"spec": "forge_spec", "forge_ref": "forge_ref"}
BESIDE = ("tests/own/spec", "tests/own/reference", "fixtures", "pyproject.toml")
"""What the tests need besides what they import."""
KILLED = {"killed", "timeout"}
"""A mutant that makes a test wait for ever has been noticed, too."""


@dataclass(frozen=True)
class Mutant:
    """One change of one function; numbers are not part of it, since they shift with every edit."""

    function: str
    was: str
    now: str

    def __str__(self) -> str:
        return f"[[survivor]]\nfunction = {_text(self.function)}\nwas = {_text(self.was)}\nnow = {_text(self.now)}"


def _text(value: str) -> str:
    return f"'''{value}'''"


def copy_into(directory: Path) -> None:
    """The rooms under their import names, with the tests beside them; what mutmut has kept there stays."""
    for source, name in [*ROOMS.items(), *((name, name) for name in BESIDE)]:
        at = directory / name
        at.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.rmtree(at, ignore_errors=True)
            shutil.copytree(ROOT / source, at, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, at)


def mutmut(directory: Path, *arguments: str, quietly: bool = True) -> str:
    """Its command; what it printed."""
    command = [sys.executable, "-m", "mutmut", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=directory, env=environment, stdout=subprocess.PIPE if quietly else None, text=True, check=False
    )
    if done.returncode != 0 and quietly:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout or ""


def results(directory: Path) -> dict[str, str]:
    """The status of every mutant by its name."""
    lines = (line.strip().rpartition(": ") for line in mutmut(directory, "results", "--all", "true").splitlines())
    return {name: status for name, _, status in lines if name}


def mutant(directory: Path, name: str) -> Mutant:
    """What this mutant changes."""
    lines = mutmut(directory, "show", name).splitlines()
    changes = {sign: [line[1:].strip() for line in lines if line[:1] == sign and line[:3] != 3 * sign] for sign in "-+"}
    module, _, mangled = name.partition("__mutmut_")[0].rpartition(".")
    function = mangled.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
    return Mutant(f"{module}.{function}", "\n".join(changes["-"]), "\n".join(changes["+"]))


def accepted() -> dict[Mutant, str]:
    """The survivors that are known, each with its reason."""
    entries: Iterable[Mapping[str, str]] = tomllib.loads(SURVIVORS.read_text(encoding="utf-8")).get("survivor", [])
    return {Mutant(entry["function"], entry["was"], entry["now"]): entry["why"] for entry in entries}


def complaints(found: Mapping[str, str], survivors: Iterable[Mutant], known: Mapping[Mutant, str]) -> Iterator[str]:
    """What is wrong, one thing after another."""
    unknown = [one for one in survivors if one not in known]
    yield from (f"no test notices:\n{one}\nwhy = ''" for one in unknown)
    stale = known.keys() - set(survivors)
    yield from (f"is in {SURVIVORS.name} and does not survive:\n{one}" for one in sorted(stale, key=str))
    other = {name: status for name, status in found.items() if status not in {*KILLED, "survived"}}
    yield from (f"{name} was not judged: {status}" for name, status in other.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if a mutant survives that is not accepted, or an accepted one does not."""
    parser = argparse.ArgumentParser(
        prog="python tests/own/mutation/run.py", description="Mutation testing of our code."
    )
    parser.add_argument(
        "--module", action="append", help="only mutants whose name begins so, such as forge_spec.layout"
    )
    parser.add_argument(
        "--in", dest="directory", type=Path, help="where to work; what has been judged there is not judged again"
    )
    parser.add_argument("-j", type=int, default=2, help="how many processes")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        directory = (options.directory or Path(temporary) / "copy").resolve()
        copy_into(directory)
        patterns = [f"{module}*" for module in options.module or ["*"]]
        mutmut(directory, "run", "--max-children", str(options.j), *patterns, quietly=False)
        found = {
            name: status
            for name, status in results(directory).items()
            if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
        }
        survivors = [mutant(directory, name) for name, status in found.items() if status == "survived"]
    known = {
        one: why
        for one, why in accepted().items()
        if any(fnmatch.fnmatch(one.function, pattern) for pattern in patterns)
    }
    wrong = list(complaints(found, survivors, known))
    print(*wrong, sep="\n\n")
    counts = Counter("accepted" if status == "survived" else status for status in found.values())
    print(f"{len(found)} mutants: " + ", ".join(f"{number} {status}" for status, number in sorted(counts.items())))
    return 1 if wrong or not found else 0


if __name__ == "__main__":
    sys.exit(main())
