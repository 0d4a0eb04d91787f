"""What these tests share: the command as a user starts it, and a warm server for a manager that does as it is told."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from forge_conformance.runs.server import Server
from forge_fixtures import managers

MANAGERS = Path(managers.__file__).parent


@dataclass(frozen=True)
class Ran:
    """How a run of the command ended, and what it left."""

    status: int
    out: str
    err: str
    reports: Path

    @property
    def said(self) -> str:
        """Everything that the user saw, in one line."""
        return " ".join((self.out + self.err).split())

    @property
    def report(self) -> dict[str, Any]:
        """The report for programs."""
        report: dict[str, Any] = json.loads((self.reports / "report.json").read_text())
        return report

    @property
    def verdicts(self) -> dict[str, str]:
        """The verdict of each clause that was judged."""
        return {clause["slug"]: clause["verdict"] for clause in self.report["clauses"]}


@dataclass(frozen=True)
class Command:
    """`forge-conformance`, run in an empty folder."""

    folder: Path

    def __call__(self, *arguments: str, environment: dict[str, str] | None = None) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "forge_conformance.cli", *arguments],
            cwd=self.folder,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=1800,
        )
        return Ran(done.returncode, done.stdout, done.stderr, self.folder / "reports")

    def run(self, impl: str, *clauses: str, options: Sequence[str] = (), **environment: str) -> Ran:
        """`run` over a manager of these tests, or any other, by a few clauses."""
        impl = str(MANAGERS / impl) if impl.startswith(("honest.py", "faulty.py", "locking.py")) else impl
        chosen = [word for clause in clauses for word in ("--clause", clause)]
        reports = ("--out", str(self.folder / "reports"))
        return self("run", "--impl", impl, *reports, *chosen, *options, environment=environment)

    def of(self, name: str, source: str) -> str:
        """An `--impl` of a file with this source."""
        (self.folder / name).write_text(source)
        return name


@pytest.fixture(scope="package", autouse=True)
def _warm(warm: None) -> None:
    """What these tests judge is not how a server imports torch."""


@pytest.fixture
def forge(tmp_path: Path) -> Command:
    """The command."""
    return Command(tmp_path)


@pytest.fixture(scope="package")
def server(warm: None) -> Iterator[Server]:
    """A warm server for the commanded."""
    server = Server(f"{MANAGERS / 'commanded.py'}:Commanded", None, timeout_s=20)
    yield server
    server.close()
