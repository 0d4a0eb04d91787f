"""`forge-conformance script` beside ckpt-chaos, a released tool with the same aim, on the same script, in one run.

Both judge `examples/scripts/plain.py`, each as its user would call it, one process at a time.  ckpt-chaos kills a run
at each of its points and resumes it; the resume command given to it first takes the digest of the folder, so that its
distinct states are counted as ours are.  That costs its points a bare Python each, a hundredth of what they take.

Times are processor seconds of everything that was started, because other work on the machine changes the others.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RIVAL = "ckpt-chaos"
SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "scripts" / "plain.py"
_NOTES = """
import hashlib, os, sys
noted, folder, *command = sys.argv[1:]
hashed = hashlib.sha256()
for where, names, files in sorted(os.walk(folder)):
    for name in sorted(names + files):
        path = os.path.join(where, name)
        content = b"" if os.path.isdir(path) else open(path, "rb").read()
        hashed.update(f"{os.path.relpath(path, folder)} {len(content)} ".encode() + content)
with open(noted, "a") as file:
    file.write(hashed.hexdigest() + "\\n")
os.execv(command[0], command)
"""
"""Notes which state a restart finds, and becomes the restart."""


@dataclass(frozen=True)
class Measured:
    """What one tool did."""

    points: int
    """Deaths that it judged."""
    states: int
    """Distinct states of the folder among them."""
    processor_s: float
    seconds: float

    @property
    def rate(self) -> float:
        """Deaths judged in a processor second."""
        return self.points / self.processor_s


def beside() -> None:
    """Run both, and print one column each, with the ratios."""
    if importlib.util.find_spec("ckpt_chaos") is None:
        sys.exit(f"script: {RIVAL} is not installed, so there is nothing to compare with. Run ./with-tox run -e bench.")
    rival = _rival()
    kills = _ours(["--deaths", "kill"])
    ext4 = _ours(["--deaths", "kill", "--storage", "ext4"])
    every = _ours(["--deaths", "kill", "--storage", "ext4", "--every-write"])
    columns = {RIVAL: rival, "kills": kills, "and ext4": ext4, "every write": every}
    print(
        f"{SCRIPT.name}, one process at a time; ours with kills alone, with losses of power under ext4 as well, and "
        "with each write of a burst as well"
    )
    rows = {
        "deaths judged": [f"{one.points:,}" for one in columns.values()],
        "distinct states": [f"{one.states:,}" for one in columns.values()],
        "processor seconds": [f"{one.processor_s:.1f}" for one in columns.values()],
        "seconds": [f"{one.seconds:.1f}" for one in columns.values()],
        "deaths a processor second": [f"{one.rate:.2f}" for one in columns.values()],
        "  as a ratio": [f"{one.rate / rival.rate:.1f} x" for one in columns.values()],
        "states a processor second": [f"{one.states / one.processor_s:.2f}" for one in columns.values()],
        "distinct states, as a ratio": [f"{one.states / rival.states:.1f} x" for one in columns.values()],
        "processor seconds, as a ratio": [f"{one.processor_s / rival.processor_s:.2f} x" for one in columns.values()],
    }
    print(f"{'':<30}" + "".join(f"{name:>14}" for name in columns))
    for name, cells in rows.items():
        print(f"{name:<30}" + "".join(f"{cell:>14}" for cell in cells))


def _rival() -> Measured:
    with tempfile.TemporaryDirectory() as where:
        noted = Path(where) / "states"
        notes = Path(where) / "notes.py"
        notes.write_text(_NOTES)
        train = f"{sys.executable} {SCRIPT} {{out}}"
        resume = f"{sys.executable} -IS {notes} {noted} {{out}} {train}"
        options = ["--work", f"{where}/work", "--step-regex", r"step (\d+)", "--resume-cmd", resume]
        command = [sys.executable, "-m", "ckpt_chaos", "run", *options, "--", *train.split()]
        said, processor_s, seconds = _ran(command, where)
        found = re.search(r"-> (\d+) crash points", said)
        states = noted.read_text().splitlines()
        if found is None or int(found[1]) != len(states):
            sys.exit(f"{RIVAL} did not resume each of its points:\n{said}")
        return Measured(len(states), len(set(states)), processor_s, seconds)


def _ours(options: Sequence[str]) -> Measured:
    with tempfile.TemporaryDirectory() as where:
        own = [sys.executable, "-m", "forge_conformance.cli", "script", *options, "--out", where]
        _, processor_s, seconds = _ran([*own, "--", sys.executable, str(SCRIPT), "{dir}"], where)
        report = json.loads((Path(where) / "script.json").read_text())
        return Measured(sum(one["states"] for one in report["explored"]), report["disks"], processor_s, seconds)


def _ran(command: Sequence[str], where: str) -> tuple[str, float, float]:
    """What a tool printed, and the processor seconds and seconds that it took; both exit with 1 for failures found."""
    before, begun = os.times(), time.perf_counter()
    done = subprocess.run(command, cwd=where, capture_output=True, text=True)
    seconds, after = time.perf_counter() - begun, os.times()
    if done.returncode not in (0, 1):
        sys.exit(f"{command[2]} failed:\n{done.stdout}{done.stderr}")
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return done.stdout, used, seconds
