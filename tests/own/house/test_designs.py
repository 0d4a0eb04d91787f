"""The page about the two designs shows what runs of today's reference leave."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_drawing_of_the_same_run_under_both_designs_is_of_today() -> None:
    command = [sys.executable, "benchmarks/two_designs.py", "--check", "docs/two-designs.md"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
