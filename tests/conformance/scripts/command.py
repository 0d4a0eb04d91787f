"""The command that is judged: what is started, in which place, and what of it can be imported beforehand."""

import ast
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from forge_conformance.judging.files import read_text

FOLDER = "{dir}"
"""Stands for the checkpoint folder in a command."""


@dataclass(frozen=True)
class Command:
    """How the script is started for the first time, and how it is started again."""

    first: tuple[str, ...]
    again: tuple[str, ...]
    ranks: int = 1
    """Processes, each with the environment that torchrun gives it."""

    def at(self, folder: Path, is_restart: bool) -> list[str]:
        """The words of the command for this checkpoint folder."""
        return [word.replace(FOLDER, str(folder)) for word in (self.again if is_restart else self.first)]

    @property
    def names_folder(self) -> bool:
        """Whether the command says where the checkpoints are."""
        return any(FOLDER in word for word in self.first)


@dataclass(frozen=True)
class PythonScript:
    """A command that a Python runs: `python [options] script.py` or `python [options] -m module`."""

    interpreter: tuple[str, ...]
    """With its options."""
    arguments: tuple[str, ...]
    """The script or module, and its arguments."""
    is_module: bool

    @property
    def folder(self) -> Path:
        """Where the script's own modules are."""
        return Path.cwd() if self.is_module else Path(self.arguments[0]).resolve().parent

    def imports(self) -> list[str]:
        """What the script, and its own modules, import of others; by reading, since nothing of it is run."""
        start = self._module(self.arguments[0]) if self.is_module else Path(self.arguments[0])
        found: dict[str, None] = {}
        waiting, known = [start] if start else [], set()
        while waiting:
            path = waiting.pop()
            if path in known:
                continue
            known.add(path)
            for name in _imported(path):
                own = self._module(name)
                if own is None:
                    found[name] = None
                else:
                    waiting.append(own)
        return list(found)

    def is_own(self, file: str) -> bool:
        """Whether a module's file belongs to the script, and not to what is installed."""
        path = os.path.realpath(file)
        return "site-packages" not in path and path.startswith((f"{self.folder}/", f"{Path.cwd()}/"))

    def _module(self, name: str) -> Path | None:
        place = self.folder.joinpath(*name.split("."))
        files = (place.with_suffix(".py"), place / "__init__.py", place / "__main__.py")
        return next((file for file in files if file.is_file()), None)


def _imported(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(read_text(path))
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def as_python(words: Sequence[str]) -> PythonScript | None:
    """The Python script that a command starts; None if it starts something else, or code in an argument."""
    if not words or not re.fullmatch(r"python[0-9.]*", os.path.basename(words[0])):
        return None
    options = [words[0]]
    rest = list(words[1:])
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option == "-m" and rest:
            return PythonScript(tuple(options), tuple(rest), is_module=True)
        if option in ("-c", "-", "-i", "-m"):
            return None
        options.append(option)
        if option in ("-W", "-X") and rest:
            options.append(rest.pop(0))
    if not rest or not os.path.isfile(rest[0]):
        return None
    return PythonScript(tuple(options), tuple(rest), is_module=False)


def missing(words: Sequence[str]) -> str:
    """Why a command can't be started; "" if nothing speaks against it."""
    program = words[0]
    found = shutil.which(program)
    if found is None:
        there = os.path.exists(program)
        return f"{program} is not executable" if there else f"there is no program {program}"
    if re.fullmatch(r"python[0-9.]*", os.path.basename(program)):
        script = next((word for word in words[1:] if not word.startswith("-")), "")
        if script.endswith(".py") and not os.path.isfile(script):
            return f"there is no file {script} in {Path.cwd()}"
    return ""
