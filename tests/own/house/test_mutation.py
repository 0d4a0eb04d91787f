"""A run of mutants fails for a survivor that nobody accepted, for a stale entry, and for what it did not judge."""

import importlib.util
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]


def loaded() -> Any:
    spec = importlib.util.spec_from_file_location("mutation_run", ROOT / "tests" / "own" / "mutation" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RUN = loaded()
ONE = RUN.Mutant("forge_spec.layout.step_of", 'return "a" < b', 'return "a" <= b')
OTHER = RUN.Mutant("forge_spec.layout.missing", "x", "y")


def test_accepted_survivors_and_kills_are_all_right() -> None:
    statuses = {"a": "killed", "b": "survived", "c": "timeout"}
    assert list(RUN.complaints(statuses, [ONE], {ONE: "they never meet"})) == []


def test_a_survivor_is_told_in_the_form_that_accepts_it() -> None:
    (complaint,) = RUN.complaints({"a": "survived"}, [ONE], {})
    (entry,) = tomllib.loads(complaint.partition("\n")[2])["survivor"]
    assert RUN.Mutant(entry["function"], entry["was"], entry["now"]) == ONE


def test_an_entry_that_does_not_survive_is_wrong() -> None:
    (complaint,) = RUN.complaints({"a": "survived"}, [ONE], {ONE: "", OTHER: ""})
    assert complaint.startswith("is in survivors.toml and does not survive")
    assert "forge_spec.layout.missing" in complaint


def test_a_mutant_without_a_verdict_is_wrong() -> None:
    assert list(RUN.complaints({"a": "no tests"}, [], {})) == ["a was not judged: no tests"]


def test_every_accepted_survivor_has_a_reason() -> None:
    assert all(why.strip().endswith(".") for why in RUN.accepted().values())
