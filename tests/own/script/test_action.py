"""The GitHub action: what its step runs is run here by a shell, as a runner would."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from .conftest import IN_PLACE, needs_recorder

pytestmark = needs_recorder
ROOT = Path(__file__).resolve().parents[3]


def test_the_step_judges_the_command_and_adds_the_report_to_the_page_of_the_job(tmp_path: Path) -> None:
    step = tmp_path / "step.sh"
    step.write_text(textwrap.dedent((ROOT / "action.yml").read_text().rpartition("run: |\n")[2]))
    (tmp_path / "train.py").write_text(IN_PLACE)
    command = tmp_path / "forge-conformance" / "bin" / "forge-conformance"
    command.parent.mkdir(parents=True)
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m forge_conformance.cli "$@"\n')
    command.chmod(0o755)
    given = {
        "COMMAND": f"'{sys.executable}' train.py {{dir}}",
        "OPTIONS": "--deaths kill",
        "OUT": "the report",
        "RUNNER_TEMP": str(tmp_path),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "page.md"),
    }
    shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(step)]
    done = subprocess.run(shell, cwd=tmp_path, env={**os.environ, **given}, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "| `script.starts` | refused |" in (tmp_path / "page.md").read_text()
    assert (tmp_path / "the report" / "replay-1.py").is_file()
