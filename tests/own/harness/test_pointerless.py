"""A right manager without a pointer is judged by what it has: the highest complete step is where a run resumes.

The whole of it is `forge-conformance run --level strict`; here are the tests in which a pointer was once taken for
granted.
"""

from typing import Any

from forge_fixtures.managers import pointerless

MANAGER = pointerless.__name__
CASES = (
    "agreement/*[sync-interval]",
    "resume/peek-names-the-step-that-load-lands-on[sync]",
    "retention/without-a-pointer-too-nothing-goes-before-its-replacement-is-there[sync-1]",
    "retention/after-a-rewind-newer-steps-neither-count-nor-go[sync]",
)

Command = Any  # see conftest.py


def test_no_test_that_takes_a_pointer_for_granted_accuses_a_manager_without_one(forge: Command) -> None:
    cases = [word for case in CASES for word in ("--case", case)]
    ran = forge.run(f"{MANAGER}:Pointerless", options=("--level", "strict", *cases))
    assert [test["outcome"] for test in ran.report["tests"]] == ["done"] * len(CASES), ran.out
    assert ran.status == 0
    expected = ("resume.lands", "resume.peek-agrees", "retention.future", "retention.invalidate-first", "commit.sync")
    assert {slug: ran.verdicts[slug] for slug in expected} == dict.fromkeys(expected, "pass")
