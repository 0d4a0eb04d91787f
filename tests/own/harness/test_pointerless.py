"""A right manager without a pointer is judged by what it has: `forge-conformance run --level strict`, all of it."""

from typing import Any

from forge_fixtures.managers import pointerless

MANAGER = pointerless.__name__
ASKED = (
    "commit.sync",
    "retention.future",
    "retention.invalidate-first",
    "resume.lands",
    "resume.other-optimizer",
    "resume.peek-agrees",
)
"""Clauses that it claims: in tests of most of them a pointer was once taken for granted."""

Command = Any  # see conftest.py


def test_nothing_accuses_a_right_manager_without_a_pointer(forge: Command) -> None:
    # It never hangs, so a machine that stands still for a while may have time.
    ran = forge.run(f"{MANAGER}:Pointerless", options=("--level", "strict", "--timeout", "60", "-n", "4"))
    verdicts = ran.verdicts
    assert {slug: said for slug, said in verdicts.items() if said not in ("pass", "unclaimed")} == {}, ran.out
    assert {slug: verdicts[slug] for slug in ASKED} == dict.fromkeys(ASKED, "pass")
    assert {test["outcome"] for test in ran.report["tests"]} == {"done"}
    assert ran.status == 0
