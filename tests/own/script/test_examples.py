"""The page of the examples says what was kept of another tool, and that is about the scripts as they are."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def test_what_another_tool_said_of_these_very_scripts_is_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import judge
    import rival

    said = rival.kept()
    assert {example.name for example in judge.EXAMPLES} == said.keys()
    page = (ROOT / "docs" / "examples.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| [")]
    assert [row.rpartition(" | ")[2].removesuffix(" |") for row in rows] == [
        said[example.name].cell for example in judge.EXAMPLES
    ]
    assert page.startswith(judge._HEAD)


def test_answers_about_another_text_of_a_script_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import rival

    monkeypatch.setattr(rival, "digest", lambda name: "another")
    with pytest.raises(SystemExit, match=r"rival.json is about another plain.py: run rival.py --write plain.py"):
        rival.kept()
