"""What is shipped works without this checkout: the sdist builds the wheel, and the wheel has all that is read later.

Built from a copy, because a build leaves things behind.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ROOMS = {
    "spec": "forge_spec",
    "forge_ref": "forge_ref",
    "tests/conformance": "forge_conformance",
    "tests/distributed": "forge_distributed",
    "fixtures": "forge_fixtures",
}
NOT_SHIPPED = ("fixtures/make/", "fixtures/mutants/")
"""How fixtures came about, and what judges the suite itself: for a checkout."""
FIXTURES = {
    f"forge_fixtures/{path.relative_to(ROOT / 'fixtures').as_posix()}"
    for room in ("vectors", "golden", "torn")
    for path in (ROOT / "fixtures" / room).rglob("*")
    if path.is_file()
}
DATA = FIXTURES | {
    "forge_fixtures/README.md",
    "forge_fixtures/case.schema.json",
    "forge_spec/py.typed",
    "forge_spec/BOOK.md",
    "forge_ref/py.typed",
    "forge_conformance/py.typed",
    "forge_distributed/py.typed",
    "forge_conformance/pytest.ini",
    "forge_conformance/PROTOCOL.md",
    "forge_conformance/report/page.css",
    "forge_conformance/report/page.js",
    "forge_conformance/report/schema.json",
    "forge_conformance/adapters/accelerate_state.xfail",
    "forge_conformance/adapters/dcp_recipe.xfail",
    "forge_conformance/adapters/ignite.xfail",
    "forge_conformance/adapters/lightning.xfail",
    "forge_conformance/adapters/olmo.xfail",
    "forge_conformance/adapters/orbax.xfail",
    "forge_conformance/adapters/titan.xfail",
    "forge_conformance/adapters/transformers_trainer.xfail",
    "forge_conformance/adapters/torch_checkpointing.xfail",
}


def python(*arguments: str, where: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=where, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source: Path, what: str, into: Path) -> Path:
    """`sdist` or `wheel`, by the build backend itself: no network, no isolation."""
    program = f"from setuptools import build_meta; print(build_meta.build_{what}({str(into)!r}))"
    return into / python("-c", program, where=source).split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the sdist."""
    base = tmp_path_factory.mktemp("built")
    copy = base / "copy"
    for room in ROOMS:
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    with tarfile.open(build(copy, "sdist", base)) as archive:
        archive.extractall(base / "unpacked", filter="data")
    (source,) = (base / "unpacked").iterdir()
    return build(source, "wheel", base)


def test_the_wheel_has_every_module_and_every_file_that_is_read_at_run_time(wheel: Path) -> None:
    modules = {
        f"{name}/{path.relative_to(ROOT / room).as_posix()}"
        for room, name in ROOMS.items()
        for path in (ROOT / room).rglob("*.py")
        if not path.relative_to(ROOT).as_posix().startswith(NOT_SHIPPED)
    }
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert shipped == modules | DATA


def test_every_file_beside_a_module_is_known_here() -> None:
    """A new file that is read at run time belongs in `DATA`, and in the package data of pyproject.toml."""
    beside = {
        f"{name}/{path.relative_to(ROOT / room).as_posix()}"
        for room, name in ROOMS.items()
        for path in (ROOT / room).rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert beside == DATA


def test_the_wheel_declares_the_command_the_plugin_and_the_licence(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    texts = {Path(name).name: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name}
    assert "forge-conformance = forge_conformance.cli:main" in texts["entry_points.txt"]
    assert "[pytest11]\nforge_conformance = forge_conformance.plugin" in texts["entry_points.txt"]
    assert "License-Expression: Apache-2.0" in texts["METADATA"]
    assert "LICENSE" in texts


def test_the_wheel_runs_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """Unpacked into a folder, as `pip install --target` does; a manager of the user's own is judged from there."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert "commit.sync" in python("-m", "forge_conformance.cli", "list", where=tmp_path, PYTHONPATH=str(site))
    where = "import forge_spec, forge_conformance.cli as cli; print(forge_spec.__file__, cli.__file__)"
    assert python("-c", where, where=tmp_path, PYTHONPATH=str(site)).count(str(site)) == 2
    manager = ROOT / "fixtures" / "managers" / "honest.py"
    shutil.copy(manager, tmp_path)
    options = ["--impl", "honest.py", "--clause", "commit.wait-idempotent"]
    ran = python("-m", "forge_conformance.cli", "run", *options, where=tmp_path, PYTHONPATH=str(site))
    assert "1 pass" in ran
