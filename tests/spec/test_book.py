"""The document says what the specification says."""

import inspect
import re
from pathlib import Path

import pytest

import forge_spec
from forge_spec import CLAUSES
from forge_spec.book import book, drift, main


def test_the_written_book_has_not_drifted() -> None:
    written = Path(inspect.getfile(forge_spec)).with_name("BOOK.md")
    assert drift(written) == [], f"renew it with: python -m forge_spec.book --write {written.name}"


def test_every_clause_has_one_anchor_and_every_link_leads_to_one() -> None:
    anchors = re.findall(r'<a id="([^"]+)"></a>', book())
    assert len(anchors) == len(set(anchors))
    assert {clause.slug for clause in CLAUSES} <= set(anchors)
    assert set(re.findall(r"\]\(#([^)]+)\)", book())) <= set(anchors)


def test_a_drifted_book_is_reported_with_the_way_to_renew_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "BOOK.md"
    assert main(["--write", str(path)]) == 0
    assert main(["--check", str(path)]) == 0
    path.write_text(path.read_text().replace("# What a training", "# Something else"))
    assert main(["--check", str(path)]) == 1
    assert f"--write {path}" in capsys.readouterr().err
