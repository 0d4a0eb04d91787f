"""A digest changes with what a clause requires, and with nothing else."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from forge_spec import BY_SLUG, CLAUSES, digests
from forge_spec.clauses import Level

MONOTONE = BY_SLUG["commit.monotone"]


def test_each_clause_has_a_digest_of_its_own() -> None:
    assert len({digests.of(clause) for clause in CLAUSES}) == len(CLAUSES)


@pytest.mark.parametrize(
    "change",
    [
        {"level": Level.DURABLE},
        {"sentence": "saves"},
        {"situation": "it saved"},
        {"capabilities": frozenset({"peek"})},
        {"predicates": ()},
    ],
)
def test_a_digest_changes_with_each_part_that_requires_something(change: dict[str, object]) -> None:
    assert digests.of(replace(MONOTONE, **change)) != digests.of(MONOTONE)  # type: ignore[arg-type] -- one of its fields


def test_a_digest_does_not_change_with_the_reason_or_what_the_clause_rests_on() -> None:
    assert digests.of(replace(MONOTONE, why="another reason", rests_on=())) == digests.of(MONOTONE)


@pytest.mark.parametrize(
    ("change", "is_another"),
    [
        (lambda text: text.replace("def is_monotone(", "# A comment.\n\n\ndef is_monotone("), False),
        (lambda text: _within(text, '"""', '"""Another docstring. '), False),
        (lambda text: _within(text, "return ", "return not "), True),
    ],
)
def test_a_digest_changes_with_the_code_of_a_predicate_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[str], str], is_another: bool
) -> None:
    before = digests.of(MONOTONE)
    shutil.copy(Path(digests.__file__).parent / "commit.py", tmp_path)
    path = tmp_path / "commit.py"
    changed = change(path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)
    monkeypatch.setattr(digests, "_HERE", tmp_path)
    digests._chapter.cache_clear()
    try:
        assert (digests.of.__wrapped__(MONOTONE) != before) is is_another
    finally:
        digests._chapter.cache_clear()


def _within(text: str, old: str, new: str) -> str:
    """The text with the first `old` of the predicate replaced."""
    head, name, body = text.partition("def is_monotone(")
    return head + name + body.replace(old, new, 1)
