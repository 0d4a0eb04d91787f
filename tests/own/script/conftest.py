"""What these tests share: small scripts, and the command run on them."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from forge_conformance.watch.gate import is_supported

needs_recorder = pytest.mark.skipif(is_supported() is not None, reason=str(is_supported()))

RIGHT = """
import json, os, sys
folder = sys.argv[1]
path = os.path.join(folder, "checkpoint.json")
step, total = 0, 1.0
if os.path.exists(path):
    step, total = json.load(open(path))
while step < 7:
    step, total = step + 1, total * 1.5
    print(f"step {step} loss {total:.4f}")
    if step % 2 == 0:
        with open(path + ".new", "w") as file:
            json.dump([step, total], file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path + ".new", path)
        opened = os.open(folder, os.O_RDONLY)
        os.fsync(opened)
        os.close(opened)
"""
IN_PLACE = """
import json, os, sys
path = os.path.join(sys.argv[1], "checkpoint.json")
step, total = 0, 1.0
if os.path.exists(path):
    step, total = json.load(open(path))
while step < 7:
    step, total = step + 1, total * 1.5
    print(f"step {step} loss {total:.4f}")
    if step % 2 == 0:
        with open(path, "w") as file:
            json.dump([step, total], file)
"""


@dataclass(frozen=True)
class Ran:
    """What the command came to."""

    status: int
    console: str
    errors: str
    """In one line, as `said`: where lines break depends on the length of paths."""
    out: Path

    @property
    def said(self) -> str:
        """What the console showed, in one line."""
        return " ".join(self.console.split())

    @property
    def report(self) -> dict[str, Any]:
        """The report as plain values."""
        report: dict[str, Any] = json.loads((self.out / "script.json").read_text())
        return report

    @property
    def verdicts(self) -> set[tuple[str, str, str]]:
        """Clause, verdict and kind of death of all that is bad."""
        return {(found["clause"], found["verdict"], found["storage"]) for found in self.report["found"]}


Judged = Callable[..., Ran]


@pytest.fixture
def judged(tmp_path: Path) -> Judged:
    """Run the command on a script, or on other words in its place."""

    def run(
        script: str, *options: str, words: list[str] | None = None, environment: dict[str, str] | None = None
    ) -> Ran:
        file = tmp_path / "train.py"
        file.write_text(script)
        out = tmp_path / "out"
        command = ["script", "--out", str(out), *options, "--", *(words or [sys.executable, str(file), "{dir}"])]
        done = subprocess.run(
            [sys.executable, "-m", "forge_conformance.cli", *command],
            cwd=tmp_path,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Ran(done.returncode, done.stdout, " ".join(done.stderr.split()), out)

    return run


def replayed(replay: Path) -> tuple[int, str]:
    """The exit status and the last line of a replay script, by a Python without packages; what it left is removed."""
    done = subprocess.run([sys.executable, "-IS", replay], capture_output=True, text=True)
    folder = re.search(r"^FOLDER = '(.*)'", replay.read_text(), re.M)
    assert folder, "every script says where it rebuilds"
    if done.returncode != 3 and folder[1].startswith("/dev/shm/forge-script-"):
        shutil.rmtree(Path(folder[1]).parent)
    return done.returncode, done.stdout.splitlines()[-1] if done.stdout else done.stderr
