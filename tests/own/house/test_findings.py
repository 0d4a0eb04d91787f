"""Findings about released managers: each has a page, a script, a row in the index, and an environment that runs it.

That a script shows its failure is seen where its manager is installed, by `docs/findings/check.py` in tox.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "tox.ini").is_file())
FINDINGS = ROOT / "docs" / "findings"
PAGES = {path.stem for path in FINDINGS.glob("*.md")} - {"README"}


def test_each_page_has_a_script_a_row_in_the_index_and_an_environment() -> None:
    assert {path.stem for path in FINDINGS.glob("*.py")} - {"check"} == PAGES
    assert set(re.findall(r"^\| \[.+?\]\(([\w-]+)\.md\)", (FINDINGS / "README.md").read_text(), re.MULTILINE)) == PAGES
    ran = re.findall(r"docs/findings/check\.py((?:\s+\\?\s*[\w-]+)+?)\n(?!  )", (ROOT / "tox.ini").read_text())
    assert {name for names in ran for name in re.findall(r"[\w-]+", names)} == PAGES


@pytest.mark.parametrize("page", sorted(PAGES))
def test_a_script_needs_nothing_of_ours(page: str) -> None:
    assert re.findall(r"^\s*(?:import|from) (forge_\w+)", (FINDINGS / f"{page}.py").read_text(), re.MULTILINE) == []


@pytest.mark.parametrize(
    ("script", "status", "says"),
    [
        ("raise SystemExit(1)", 0, "the failure shows"),
        ("raise SystemExit(0)", 1, "does not show: the page is out of date"),
        ("raise SystemExit(3)", 1, "can't run here"),
        ("raise SystemExit(7)", 1, "the script itself failed, status 7"),
        ("raise ValueError('broken')", 1, "ValueError: broken"),
    ],
)
def test_the_command_tells_a_failure_that_shows_from_anything_else(
    tmp_path: Path, script: str, status: int, says: str
) -> None:
    shutil.copy(FINDINGS / "check.py", tmp_path)
    (tmp_path / "one.md").touch()
    (tmp_path / "one.py").write_text(script)
    ran = subprocess.run([sys.executable, tmp_path / "check.py", "one"], capture_output=True, text=True, check=False)
    assert ran.returncode == status and says in ran.stdout
    assert "the failure shows" not in ran.stdout or status == 0


def test_the_command_names_the_findings_there_are(tmp_path: Path) -> None:
    shutil.copy(FINDINGS / "check.py", tmp_path)
    (tmp_path / "one.md").touch()
    ran = subprocess.run([sys.executable, tmp_path / "check.py", "two"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "no finding is called two; they are: one\n")
