"""Imports run one way: the specification knows nobody, the reference knows not it, and the suite not the reference.

Where each room lies is in `ROOMS`, the more particular first; what it may import is beside it, and nothing else.
The rooms of the suite stand on `FLOORS`: each imports from its own floor and from those before it.  Imports inside
functions and for type checkers count like all others, and there is no list of exceptions.
"""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
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
    Room("fixtures/mutants/bases/", "bases", ("forge_fixtures.managers",)),
    Room("fixtures/mutants/", "mutants", ("bases", "forge_ref", "forge_conformance.adapter", "torch", "numpy")),
    Room("fixtures/make/", "make", ("torch", "pytorch_lightning", "olmo_core", "forge_conformance")),
    Room(
        "fixtures/managers/",
        "forge_fixtures.managers",
        ("forge_fixtures.managers", "forge_conformance.adapter", "torch", "numpy"),
    ),
    Room("fixtures/", "forge_fixtures", ()),
    Room("spec/", "forge_spec", ("forge_spec",)),
    Room("forge_ref/", "forge_ref", ("forge_ref", "torch", "numpy", "xxhash")),
    Room(f"{SUITE}/__init__.py", "forge_conformance", ()),
    Room(f"{SUITE}/adapter.py", "forge_conformance.adapter", ()),
    Room(f"{SUITE}/worker/awkward.py", "forge_conformance.worker.awkward", (*WORKER, "torch")),
    Room(f"{SUITE}/worker/workload.py", "forge_conformance.worker.workload", (*WORKER, "torch", "numpy")),
    Room(f"{SUITE}/worker/variety.py", "forge_conformance.worker.variety", (*WORKER, "torch")),
    Room(f"{SUITE}/worker/odd.py", "forge_conformance.worker.odd", (*WORKER, "torch")),
    Room(f"{SUITE}/worker/ranks.py", "forge_conformance.worker.ranks", (*WORKER, "torch")),
    Room(f"{SUITE}/worker/practice.py", "forge_conformance.worker.practice", (*WORKER, "torch", "numpy")),
    Room(f"{SUITE}/worker/gpu.py", "forge_conformance.worker.gpu", (*WORKER, "torch")),
    Room(f"{SUITE}/worker/job.py", "forge_conformance.worker.job", (*WORKER, "torch")),
    Room(f"{SUITE}/worker/server.py", "forge_conformance.worker.server", (*WORKER, "torch")),
    Room(f"{SUITE}/worker/", "forge_conformance.worker", WORKER),
    Room(
        f"{SUITE}/adapters/",
        "forge_conformance.adapters",
        (
            "forge_conformance.adapter",
            "forge_conformance.adapters",
            "torch",
            "numpy",
            "greenlet",
            "pytorch_lightning",
            "olmo_core",
            "orbax",
            "ignite",
            "torch_checkpointing",
            "torchtitan",
            "transformers",
            "accelerate",
        ),
    ),
    Room(
        f"{SUITE}/plugin.py",
        "forge_conformance.plugin",
        ("forge_conformance", "forge_distributed", "forge_spec", "pytest"),
    ),
    Room(SUITE + "/", "forge_conformance", ("forge_conformance", "forge_spec", "pytest", "hypothesis")),
    Room("tests/distributed/", "forge_distributed", ("forge_conformance", "forge_spec", "pytest")),
)


FLOORS = (
    ("__init__",),
    ("adapter",),
    ("worker", "adapters"),
    ("judging",),
    ("watch",),
    ("runs",),
    ("disks", "deaths"),
    ("scripts",),
    ("tests",),
    ("plugin",),
    ("matrix",),
    ("report",),
    ("commands",),
    ("cli",),
)
"""The rooms of the suite; rooms of one floor do not know each other."""


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


def modules() -> dict[str, Path]:
    """Every module of the packages by its name."""
    found = {}
    for path in sources():
        room = room_of(path)
        own = path.relative_to(ROOT / room.path).with_suffix("").parts if room.path.endswith("/") else ()
        found[".".join([*room.name.split("."), *(part for part in own if part != "__init__")])] = path
    return found


@functools.cache
def graph() -> dict[str, set[str]]:
    """For each module, the modules of ours that it imports."""
    known = modules()
    return {name: {found for one in imports_of(path) if (found := _module(one, known))} for name, path in known.items()}


def _module(imported: str, known: dict[str, Path]) -> str | None:
    """The module that an import is of: `a.b`, or `a` where b is something in it."""
    above = imported.rpartition(".")[0]
    return imported if imported in known else above if above in known else None


def circle_in(imports: dict[str, set[str]]) -> list[str]:
    """The modules on one circle, each of which imports the next; none if there is no circle."""
    done: set[str] = set()

    def walk(name: str, above: list[str]) -> list[str]:
        if name in above:
            return above[above.index(name) :]
        if name in done:
            return []
        for imported in sorted(imports[name] - {name}):
            if found := walk(imported, [*above, name]):
                return found
        done.add(name)
        return []

    return next((found for name in imports if (found := walk(name, []))), [])


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle_in(graph()) == []


def room_on_floors(module: str) -> str:
    _, _, inside = module.partition(".")
    room = inside.partition(".")[0] or "__init__"
    return "tests" if room.startswith("test_") else room


def test_each_room_of_the_suite_knows_only_those_on_the_floors_before_it() -> None:
    floor_of = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    suite = {name: found for name, found in graph().items() if name.partition(".")[0] == "forge_conformance"}
    assert {room_on_floors(name) for name in suite} == floor_of.keys()
    upward = [
        f"{name} imports {imported}"
        for name, found in suite.items()
        for imported in sorted(found & suite.keys())
        if room_on_floors(name) != room_on_floors(imported)
        and floor_of[room_on_floors(imported)] >= floor_of[room_on_floors(name)]
    ]
    assert upward == []


def test_commands_do_not_import_each_other() -> None:
    shared = {"forge_conformance.commands.options"}
    commands = {name: found for name, found in graph().items() if name.startswith("forge_conformance.commands.")}
    assert {name: found & commands.keys() - shared for name, found in commands.items() if name not in shared} == {
        name: set() for name in commands if name not in shared
    }


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
