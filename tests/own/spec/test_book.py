"""The document says what the specification says, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

from forge_spec import CLAUSES, evidence
from forge_spec.book import Checkout, book, drift, main

WRITTEN = evidence.HERE / "BOOK.md"
BOOK = WRITTEN.read_text()


def test_the_written_book_has_not_drifted() -> None:
    assert drift(WRITTEN) == [], f"renew it with: python -m forge_spec.book --write spec/{WRITTEN.name}"


def test_two_renderings_are_the_same() -> None:
    checkout = Checkout.around(WRITTEN)
    assert book(checkout) == book(Checkout.at(checkout.root))


def test_every_clause_has_one_anchor_and_every_link_leads_to_one() -> None:
    anchors = re.findall(r'<a id="([^"]+)"></a>', BOOK)
    assert len(anchors) == len(set(anchors))
    assert {clause.slug for clause in CLAUSES} <= set(anchors)
    assert set(re.findall(r"\]\(#([^)]+)\)", BOOK)) <= set(anchors)


def test_every_link_to_a_file_leads_to_one() -> None:
    links = set(re.findall(r"\]\(([^)#:]+)\)", BOOK))
    assert links
    assert [link for link in sorted(links) if not (WRITTEN.parent / link).is_file()] == []


def test_a_drifted_book_is_reported_with_the_way_to_renew_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "BOOK.md"
    assert main(["--write", str(path)]) == 0
    assert main(["--check", str(path)]) == 0
    path.write_text(path.read_text().replace("# What a checkpoint", "# Something else"))
    assert main(["--check", str(path)]) == 1
    assert f"--write {path}" in capsys.readouterr().err


def test_without_a_checkout_the_command_fails_and_says_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evidence, "HERE", tmp_path / "site" / "forge_spec")
    assert main(["--check", str(tmp_path / "BOOK.md")]) == 1
    assert f"{tmp_path / 'site'} is not a checkout" in capsys.readouterr().err
