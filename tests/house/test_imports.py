"""Imports run one way: the specification knows nobody, the reference knows not it, and the suite not the reference.

Where each room lies is in `ROOMS`, the more particular first; what it may import is beside it, and nothing else.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUITE = "tests/conformance"


@dataclass(frozen=True)
class Room:
    """Files that begin with `path`, and what they may import besides the standard library."""

    path: str
    name: str
    """The import name of `path`."""
    may: tuple[str, ...]
    """Modules, each with all below it."""


WORKER = ("forge_conformance.adapter", "forge_conformance.worker")
ROOMS = (
    Room("fixtures/mutants/bases/", "bases", ("careful", "honest", "ranked")),
    Room("fixtures/mutants/", "mutants", ("bases", "forge_ref", "forge_conformance.adapter", "torch", "numpy")),
    Room("fixtures/make/", "make", ("torch", "pytorch_lightning", "forge_conformance")),
    Room("fixtures/", "forge_fixtures", ()),
    Room("spec/", "forge_spec", ("forge_spec",)),
    Room("forge_ref/", "forge_ref", ("forge_ref", "torch", "numpy")),
    Room(f"{SUITE}/__init__.py", "forge_conformance", ()),
    Room(f"{SUITE}/adapter.py", "forge_conformance.adapter", ()),
    Room(f"{SUITE}/worker/workload.py", "forge_conformance.worker.workload", (*WORKER, "torch", "numpy")),
    Room(f"{SUITE}/worker/ranks.py", "forge_conformance.worker.ranks", (*WORKER, "torch")),
    Room(f"{SUITE}/worker/gpu.py", "forge_conformance.worker.gpu", (*WORKER, "torch")),
    Room(f"{SUITE}/worker/job.py", "forge_conformance.worker.job", (*WORKER, "torch")),
    Room(f"{SUITE}/worker/server.py", "forge_conformance.worker.server", (*WORKER, "torch")),
    Room(f"{SUITE}/worker/", "forge_conformance.worker", WORKER),
    Room(
        f"{SUITE}/adapters/",
        "forge_conformance.adapters",
        ("forge_conformance.adapter", "torch", "numpy", "greenlet", "pytorch_lightning", "orbax"),
    ),
    Room(f"{SUITE}/plugin.py", "forge_conformance", ("forge_conformance", "forge_distributed", "forge_spec", "pytest")),
    Room(SUITE + "/", "forge_conformance", ("forge_conformance", "forge_spec", "pytest", "hypothesis")),
    Room("tests/distributed/", "forge_distributed", ("forge_conformance", "forge_spec", "pytest")),
)


def sources() -> list[Path]:
    """Every module of the packages."""
    return sorted(
        path
        for where in ("spec", "forge_ref", SUITE, "tests/distributed", "fixtures")
        for path in (ROOT / where).rglob("*.py")
    )


def room_of(path: Path) -> Room:
    where = path.relative_to(ROOT).as_posix()
    return next(room for room in ROOMS if where.startswith(room.path))


def imports_of(path: Path) -> Iterator[str]:
    """The full name of whatever a module imports, anywhere in it; of `from a import b`, both `a` and `a.b` would do."""
    room = room_of(path)
    inside = path.relative_to(ROOT / room.path).parent.parts if room.path.endswith("/") else ()
    package = [*room.name.split("."), *inside]
    if not room.path.endswith(("/", "__init__.py")):
        package.pop()  # the room is one module
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def is_allowed(imported: str, room: Room) -> bool:
    within = any(f"{imported}.".startswith(f"{allowed}.") for allowed in room.may)
    return within or imported.partition(".")[0] in sys.stdlib_module_names


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_module_imports_what_its_room_may(path: Path) -> None:
    room = room_of(path)
    assert [imported for imported in imports_of(path) if not is_allowed(imported, room)] == []


def test_every_room_is_there_and_says_all_that_it_needs() -> None:
    """A room that nobody lives in, or a permission that nobody uses, is a mistake of this page."""
    lived_in = {room: [path for path in sources() if room_of(path) == room] for room in ROOMS}
    assert [room.path for room, paths in lived_in.items() if not paths] == []
    used = {room: {imported for path in paths for imported in imports_of(path)} for room, paths in lived_in.items()}
    optional = {"numpy"}
    unused = [
        (room.path, allowed)
        for room in ROOMS
        for allowed in room.may
        if allowed not in (room.name, *WORKER, *optional)
        and not any(f"{imported}.".startswith(f"{allowed}.") for imported in used[room])
    ]
    assert unused == []


@pytest.mark.parametrize(
    ("imported", "absent"),
    [
        ("forge_spec", ["torch", "numpy", "pytest", "forge_ref", "forge_conformance"]),
        ("forge_ref", ["pytest", "forge_spec", "forge_conformance"]),
        ("forge_conformance", ["torch", "pytest", "forge_spec", "forge_ref"]),
        ("forge_conformance.adapter", ["torch", "pytest", "forge_spec", "forge_ref"]),
        ("forge_conformance.worker.workload", ["pytest", "forge_spec", "forge_ref"]),
        ("forge_conformance.plugin", ["torch", "numpy", "forge_ref"]),
        ("forge_conformance.cli", ["torch", "numpy", "forge_ref"]),
    ],
)
def test_what_is_imported_brings_along_no_more_than_it_may(imported: str, absent: list[str]) -> None:
    program = f"import sys, {imported}; print(*sorted(set(sys.argv[1:]) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program, *absent], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
