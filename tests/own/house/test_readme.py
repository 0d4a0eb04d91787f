"""README's promise of a small adapter is true: the one in docs/your-manager.md passes what it claims."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from forge_conformance.runs.server import HOST

ROOT = Path(__file__).resolve().parents[3]


def test_the_adapter_in_the_pages_is_a_whole_one_and_passes_what_it_claims(
    tmp_path: Path, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOST, host)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "your-manager.md").read_text(), re.DOTALL)
    (tmp_path / "mine.py").write_text(code)
    command = [sys.executable, "-m", "forge_conformance.cli", "run", "--impl", "mine.py:Mine", "--out", "report"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert done.returncode == 0, done.stdout
    assert report["totals"]["pass"] > 5
    unreached = {clause["slug"]: clause["reason"] for clause in report["clauses"] if clause["verdict"] == "unreached"}
    assert set(unreached) == {"resume.skips-torn"}
    assert "loss of power" in unreached["resume.skips-torn"]
