"""Verdicts and their reports, computed from findings made by hand: each verdict, each reason, each exit status.

The rows say what the tests of a run found out; nothing runs here.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

import forge_conformance
from forge_conformance.judging.judge import ClauseFailure, Judge
from forge_conformance.judging.verdicts import (
    MODES,
    BadExpectations,
    Expected,
    Finding,
    Judged,
    Report,
    Status,
    Verdict,
    capability_mismatches,
    causes,
    judge,
    read_expected,
    root_of,
    unjudged_claims,
)
from forge_conformance.plugin import found_out
from forge_conformance.report import run as render
from forge_conformance.report.page import write
from forge_conformance.runs.process import Died, WrongAnswer
from forge_spec import BY_SLUG, CLAUSES
from forge_spec.clauses import CAPABILITIES, Level, with_parts

SCHEMA = json.loads((Path(forge_conformance.__file__).parent / "report" / "schema.json").read_text())
SYNC, OVERLAP, SNAPSHOT = "commit.sync", "commit.overlap", "commit.snapshot"
BOTH = frozenset({"sync", "async"})


def held(*slugs: str, case: str = "commit/holds", times: int = 1) -> Finding:
    return Finding(case, slugs, dict.fromkeys(slugs, times), "done", 0.5)


def failing(slug: str, *others: str, case: str = "commit/fails") -> Finding:
    failure = {"clause": slug, "expected": "a | b", "seen": "c", "story": ("process 1 starts",), "detail": ""}
    return Finding(case, (slug, *others), {slug: 1}, "failed", 0.5, failure)


def unreached(slug: str, reason: str) -> Finding:
    return Finding("commit/unreached", (slug,), {}, "unreached", 0.5, reason=reason)


def ours(slug: str) -> Finding:
    return Finding("commit/ours", (slug,), {}, "error", 0.5, reason="KeyError: 'x'")


def verdict_of(slug: str, *findings: Finding, expected: tuple[Expected, ...] = ()) -> Judged:
    judged, _ = judge(findings, Level.DURABLE, BOTH, expected)
    return next(one for one in judged if one.clause.slug == slug)


def report_of(*findings: Finding, expected: tuple[Expected, ...] = (), **changes: Any) -> Report:
    only = changes.pop("only", None)
    judged, stale = judge(findings, Level.DURABLE, BOTH, expected, only)
    environment = {
        "python": "3",
        "executable": "python",
        "torch": "2",
        "gpus": 0,
        "has_numpy": True,
        "platform": "p",
        "versions": {"made": "1"},
    }
    implementation = {
        "name": "made.up",
        "adapter": "MadeUp",
        "claimed_level": "core",
        "capabilities": sorted(BOTH),
        "traits": {},
        "environment": environment,
        "is_other_python": False,
    }
    return replace(Report(implementation, Level.DURABLE, judged, stale, (), findings, 1.0), **changes)


def test_what_was_reached_and_never_failed_passes() -> None:
    one = verdict_of(SYNC, held(SYNC, times=2), held(SYNC, OVERLAP, times=3, case="commit/another"))
    assert (one.verdict, one.reached, one.cases) == (Verdict.PASS, 5, ("commit/holds", "commit/another"))


def test_one_failure_outweighs_all_that_held() -> None:
    one = verdict_of(SYNC, held(SYNC, times=9), failing(SYNC))
    assert (one.verdict, one.reached, [finding.case for finding in one.failures]) == (
        Verdict.FAIL,
        10,
        ["commit/fails"],
    )


def test_a_failure_outweighs_an_error_of_ours_and_that_outweighs_what_held() -> None:
    assert verdict_of(SYNC, ours(SYNC), failing(SYNC)).verdict is Verdict.FAIL
    one = verdict_of(SYNC, held(SYNC), ours(SYNC))
    assert (one.verdict, one.reason) == (Verdict.ERROR, "KeyError: 'x'")


def test_what_needs_an_unclaimed_capability_is_unclaimed_whatever_was_found() -> None:
    one = verdict_of("resume.peek-agrees", held("resume.peek-agrees"))
    assert (one.verdict, one.reason) == (Verdict.UNCLAIMED, "needs peek")


def seeing(slug: str, seen: str, case: str) -> Finding:
    one = failing(slug, case=case)
    assert one.failure is not None
    return replace(one, failure={**one.failure, "seen": seen})


def grouped(*findings: Finding, expected: tuple[Expected, ...] = ()) -> list[tuple[str, list[str], list[str]]]:
    report = report_of(*findings, expected=expected)
    shown = render.as_json(report)["causes"]
    return [(cause["clause"], cause["consequences"], cause["same_error"]) for cause in shown]


def test_what_failed_is_grouped_by_what_it_rests_on_the_cause_of_most_failures_first() -> None:
    alone = failing("layout.only-step-names", case="layout/x")
    assert grouped(alone, failing(SYNC, case="commit/a"), failing(SNAPSHOT, case="commit/b"), held(OVERLAP)) == [
        (SYNC, [SNAPSHOT], []),
        ("layout.only-step-names", [], []),
    ]


def test_what_failed_by_the_same_error_is_one_cause_whatever_its_numbers_and_paths() -> None:
    def said(step: int) -> str:
        return f"load raised ValueError: step {step} is not there, below /tmp/run-{step}/x"

    one = seeing("layout.only-step-names", said(3), "layout/x")
    assert grouped(one, seeing("resume.all-torn", said(17), "resume/y")) == [
        ("layout.only-step-names", [], ["resume.all-torn"]),
    ]
    assert len(grouped(one, seeing("resume.all-torn", "load raised ValueError: another", "resume/y"))) == 2


def test_a_consequence_of_an_expected_failure_is_a_cause_of_its_own() -> None:
    known = Expected(SYNC, "*", "known")
    assert grouped(failing(SYNC, case="commit/a"), failing(SNAPSHOT, case="commit/b"), expected=(known,)) == [
        (SNAPSHOT, [], []),
    ]


def test_causes_come_before_the_verdicts_of_the_clauses() -> None:
    shown = render.console(report_of(failing(SYNC, case="commit/a"), failing(SNAPSHOT, case="commit/b")))
    assert shown.index("2 clauses failed, by cause:") < shown.index(f"rest on it: {SNAPSHOT}") < shown.index("✗")


@pytest.mark.parametrize(
    ("findings", "reason"),
    [
        ([], "no test that judges it fits what is claimed and asked for"),
        ([unreached(SNAPSHOT, "no seccomp"), unreached(SNAPSHOT, "no seccomp")], "no seccomp"),
        ([failing(OVERLAP, SNAPSHOT)], f"every test that would reach it failed before, at {OVERLAP}"),
        ([Finding("commit/idle", (SNAPSHOT,), {}, "done", 0.5)], "it never arose"),
    ],
)
def test_what_no_test_reached_is_no_pass_and_says_why(findings: list[Finding], reason: str) -> None:
    one = verdict_of(SNAPSHOT, *findings)
    assert (one.verdict, one.reached, one.reason) == (Verdict.UNREACHED, 0, reason)


def test_a_failure_is_expected_only_in_the_cases_that_are_listed() -> None:
    entry = Expected(SYNC, "commit/*[async]", "known")
    listed, unlisted = failing(SYNC, case="commit/a[async]"), failing(SYNC, case="commit/a[sync]")
    assert verdict_of(SYNC, listed, expected=(entry,)).verdict is Verdict.EXPECTED_FAIL
    assert verdict_of(SYNC, listed, expected=(entry,)).reason == "known"
    one = verdict_of(SYNC, listed, unlisted, expected=(entry,))
    assert (one.verdict, one.failures) == (Verdict.FAIL, (unlisted,))


@pytest.mark.parametrize(
    ("findings", "is_stale"),
    [
        ([held(SYNC)], True),
        ([failing(SYNC)], False),
        ([failing(SYNC, case="commit/fails"), held(SYNC)], False),
        ([], False),
        ([ours(SYNC)], False),
        ([unreached(SYNC, "no seccomp")], False),
    ],
)
def test_an_expectation_is_stale_when_its_clause_was_judged_and_held(findings: list[Finding], is_stale: bool) -> None:
    entry = Expected(SYNC, "*", "known")
    assert judge(findings, Level.CORE, BOTH, (entry,))[1] == ((entry,) if is_stale else ())


def test_an_expectation_of_what_only_some_runs_show_is_never_stale() -> None:
    entry = Expected(SYNC, "*", "a race", is_sometimes=True)
    assert judge([held(SYNC)], Level.CORE, BOTH, (entry,))[1] == ()
    assert verdict_of(SYNC, failing(SYNC), expected=(entry,)).verdict is Verdict.EXPECTED_FAIL


def test_an_expectation_for_one_case_is_stale_though_its_clause_fails_in_another() -> None:
    entry = Expected(SYNC, "commit/holds", "known")
    judged, stale = judge([held(SYNC), failing(SYNC)], Level.CORE, BOTH, (entry,))
    assert stale == (entry,)
    assert Verdict.FAIL in {one.verdict for one in judged}
    assert str(entry) == "commit.sync @ commit/holds"


def test_an_expectation_outside_of_what_was_asked_for_is_not_stale() -> None:
    entry = Expected(SYNC, "*", "known")
    assert judge([held(SYNC, OVERLAP)], Level.CORE, BOTH, (entry,), only=frozenset({OVERLAP}))[1] == ()


def test_a_level_holds_to_its_own_clauses_and_to_those_below() -> None:
    for level in Level:
        judged, _ = judge([], level, BOTH)
        assert {one.clause for one in judged} == {clause for clause in CLAUSES if clause.level <= level}


def test_a_partial_run_judges_what_was_asked_for_and_nothing_else() -> None:
    judged, _ = judge([held(SYNC), held(OVERLAP)], Level.CORE, BOTH, only=frozenset({SYNC}))
    assert [(one.clause.slug, one.verdict) for one in judged] == [(SYNC, Verdict.PASS)]


def test_what_failed_on_the_way_fails_a_partial_run_too() -> None:
    findings = [held(SYNC), failing(OVERLAP)]
    judged, _ = judge(findings, Level.CORE, BOTH, only=frozenset({SYNC}))
    assert [(one.clause.slug, one.verdict) for one in judged] == [(SYNC, Verdict.PASS), (OVERLAP, Verdict.FAIL)]
    assert report_of(*findings, only=frozenset({SYNC})).status is Status.FAILED


NEEDED = {
    "window": "retention or schedule",
    "loader-later": "dataloader",
    "pipeline": "distributed or layout",
    "reshard": "distributed",
    "step-layout": "ephemeral",
    "fixed-steps": "ephemeral",
    "cooldown": "ephemeral",
    "max-permanent": "ephemeral",
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CAPABILITIES)
def test_a_capability_claimed_beside_a_mode_alone_is_judged_or_what_it_needs_is_named(name: str, mode: str) -> None:
    claimed = with_parts({mode, name})
    needed = NEEDED.get(name, "")
    said = f"no clause judges {name} without {needed}; claim {needed} too, or leave {name} out."
    assert unjudged_claims(claimed) == (said if needed else "")
    for way in needed.split(" or ") if needed else ():
        assert unjudged_claims(claimed | {way}) == ""
        assert any(clause.capabilities <= claimed | {way} for clause in CLAUSES if name in clause.capabilities)


def test_a_clause_that_failed_is_not_unclaimed() -> None:
    assert verdict_of("resume.peek-agrees", failing("resume.peek-agrees")).verdict is Verdict.FAIL


def test_an_expectation_for_a_case_that_a_partial_run_leaves_out_is_not_stale() -> None:
    entry = Expected(SYNC, "commit/another", "known")
    assert judge([held(SYNC)], Level.CORE, BOTH, (entry,), only=frozenset({SYNC}))[1] == ()
    assert judge([held(SYNC)], Level.CORE, BOTH, (entry,))[1] == (entry,)


def test_the_root_is_the_failed_clause_furthest_down() -> None:
    chain = next(
        (clause.slug, BY_SLUG[below].slug, BY_SLUG[below].rests_on[0])
        for clause in CLAUSES
        for below in clause.rests_on
        if BY_SLUG[below].rests_on
    )
    top, middle, bottom = chain

    def root(*slugs: str) -> str | None:
        failed = failing(top, case="top")
        found = root_of(BY_SLUG[top], [failed], [failed, *(failing(slug, case=slug) for slug in slugs)])
        assert found is None or found == (found[0], found[0])
        return found and found[0]

    assert root() is None
    assert root(middle) == middle
    assert root(middle, bottom) == bottom
    assert root(bottom) == bottom


def test_a_clause_rests_on_another_only_where_that_one_failed_without_anything_that_did_not_happen_here() -> None:
    rewind, kill = frozenset({"a save below a step that stands"}), frozenset({"a kill"})
    top, bottom = failing("resume.lands", case="top"), failing(SYNC, case="bottom")

    def root(above: frozenset[str], below: frozenset[str]) -> str | None:
        return verdict_of("resume.lands", replace(top, events=above), replace(bottom, events=below)).because_of

    assert root(kill, frozenset()) == SYNC
    assert root(kill | rewind, rewind) == SYNC
    assert root(kill, rewind) is None
    assert root(frozenset(), rewind) is None


def test_a_call_that_failed_explains_nothing_where_every_call_returned() -> None:
    top, bottom = failing("resume.lands", case="top"), replace(failing(SYNC, case="bottom"), is_of_a_call=True)

    def root(above: Finding) -> str | None:
        return verdict_of("resume.lands", above, bottom).because_of

    assert root(replace(top, is_of_a_call=True)) == SYNC
    assert top.failure is not None
    assert root(replace(top, failure={**top.failure, "seen": "refused: load() raised OSError: no"})) == SYNC
    assert root(replace(top, failure={**top.failure, "seen": "27 items differ"})) is None


def test_what_had_happened_by_a_failure_stays_with_it_whatever_another_program_does_then() -> None:
    judge = Judge((SYNC,), lambda slug: True)
    judge.happens("a kill")
    with pytest.raises(ClauseFailure) as caught:
        judge.expect(SYNC, False, expected="a", seen="b")
    judge.events.clear()
    assert found_out(judge, caught.value)["events"] == ["a kill"]


def test_a_fault_in_a_plain_save_is_one_of_the_clause_about_saving_where_the_test_rests_on_that() -> None:
    judge = Judge(("resume.lands",), lambda slug: True)
    judge.act = SYNC
    fault = Died("save()", -9, "")
    assert found_out(judge, fault)["failure"]["clause"] == SYNC
    judge.happens("a kill")
    assert found_out(judge, fault)["failure"]["clause"] == "resume.lands"
    wrong = Judge(("resume.train-state",), lambda slug: True)
    wrong.act = "resume.lands"
    assert found_out(wrong, WrongAnswer("load() returned nonsense"))["failure"]["clause"] == "resume.train-state"
    alone = Judge(("commit.own-group",), lambda slug: True)
    alone.act = SYNC
    assert found_out(alone, fault)["failure"]["clause"] == "commit.own-group"


@pytest.mark.parametrize(
    ("claimed", "probe", "sentences"),
    [
        ({"peek"}, {"peek": False}, ["peek is claimed, but the implementation lacks it"]),
        (set(), {"peek": True}, ["peek is there, but not claimed: it was not judged"]),
        ({"peek"}, {"peek": True, "async": False}, []),
        ({"peek"}, {}, []),
    ],
)
def test_claims_are_compared_with_what_is_visibly_there(
    claimed: set[str], probe: dict[str, bool], sentences: list[str]
) -> None:
    assert list(capability_mismatches(frozenset(claimed), probe)) == sentences


KNOWN = (Expected(SYNC, "*", "known"),)


@pytest.mark.parametrize(
    ("report", "status"),
    [
        (report_of(held(SYNC)), Status.PASSED),
        (report_of(failing(SYNC), expected=KNOWN), Status.PASSED),
        (report_of(held(SYNC), failing(OVERLAP)), Status.FAILED),
        (report_of(held(SYNC), expected=KNOWN), Status.FAILED),
        (report_of(), Status.NOTHING_JUDGED),
        (report_of(unreached(SYNC, "no seccomp")), Status.NOTHING_JUDGED),
        (report_of(held(OVERLAP), ours(SYNC)), Status.OUR_ERROR),
        (report_of(held(SYNC), errors=("pytest broke",)), Status.OUR_ERROR),
        (report_of(failing(SYNC), errors=("pytest broke",)), Status.OUR_ERROR),
    ],
)
def test_each_exit_status_has_its_reason_and_every_rendering_of_it_is_sound(report: Report, status: Status) -> None:
    assert report.status is status
    values = json.loads(json.dumps(render.as_json(report)))
    jsonschema.Draft202012Validator(SCHEMA).validate(values)
    cases = ElementTree.fromstring(render.junit(report)).findall("testsuite/testcase")
    assert [case.get("name") for case in cases] == [clause["slug"] for clause in values["clauses"]]
    assert f"exit status {int(status)}" in render.console(report)
    assert f"exit status {int(status)}" in render.markdown(report)


def test_without_a_way_to_save_that_is_the_reason() -> None:
    judged, _ = judge([], Level.CORE, frozenset({"pointer"}))
    reasons = {one.reason for one in judged if one.verdict is Verdict.UNREACHED}
    assert reasons == {"no way to save is claimed, of sync, async, pinned"}


def test_the_schema_is_a_schema_and_describes_every_field() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    told = SCHEMA["properties"] | {
        f"{kind}.{name}": field
        for kind, described in SCHEMA["$defs"].items()
        for name, field in described.get("properties", {}).items()
    }
    named = {"$ref", "const"}
    assert [name for name, field in told.items() if "description" not in field and not named & field.keys()] == []


@pytest.mark.parametrize(
    "change",
    [
        {"exit_status": 4},
        {"totals": {"pass": 1}},
        {"surprise": True},
        {"clauses": [{"slug": "commit.sync"}]},
    ],
)
def test_the_schema_refuses_what_is_no_report(change: dict[str, Any]) -> None:
    values = json.loads(json.dumps(render.as_json(report_of(held(SYNC), only=frozenset({SYNC})))))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values | change, SCHEMA)


def test_whatever_a_manager_says_is_rendered(tmp_path: Path) -> None:
    """Control characters, half characters of a file name, mark-up."""
    odd = failing(SYNC)
    assert odd.failure is not None
    odd = replace(odd, failure={**odd.failure, "seen": "\x1b[31m\x00 \udcff </failure> `|` é\nsecond line"})
    assert r"seen: \x1b[31m\x00 \udcff" in (console := render.console(report_of(odd))) and "\x1b" not in console
    write(render.files(report_of(odd)), tmp_path)
    body = ElementTree.parse(tmp_path / "junit.xml").find(".//failure")
    assert body is not None and "</failure>" in (body.text or "")
    assert "commit.sync" in (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "report.json").read_text())["totals"]["fail"] == 1


def test_the_errors_behind_the_one_that_was_raised_are_shown_the_first_one_first() -> None:
    finding = failing(SYNC)
    assert finding.failure is not None
    detail = (
        "Traceback (most recent call last):\n"
        '  File "writer.py", line 1, in write\n'
        "    raise OSError\n"
        "OSError: [Errno 28] No space left on device\n\n"
        "The above exception was the direct cause of the following exception:\n\n"
        "Traceback (most recent call last):\n"
        "theirs.CheckpointException: An error occurred\n"
    )
    failure = {**finding.failure, "seen": "save() raised CheckpointException: An error occurred", "detail": detail}
    shown = render.console(report_of(replace(finding, failure=failure)))
    assert "caused by: OSError: [Errno 28] No space left on device" in shown
    assert "An error occurred; caused by OSError" in " ".join(shown.split())
    assert shown.count("An error occurred") == 2  # in the summary and among the details


def test_errors_without_a_text_are_one_cause_where_they_come_from_one_place() -> None:
    def raised(slug: str, line: int) -> Finding:
        detail = f'Traceback (most recent call last):\n  File "load.py", line {line}, in read\nEOFError\n'
        finding = failing(slug)
        seen = "load() raised EOFError (no message)"
        return replace(finding, failure={**(finding.failure or {}), "seen": seen, "detail": detail})

    same = judge([raised(SYNC, 3), raised("resume.fresh", 3)], Level.DURABLE, BOTH)[0]
    apart = judge([raised(SYNC, 3), raised("resume.fresh", 4)], Level.DURABLE, BOTH)[0]
    assert (len(causes(same)), len(causes(apart))) == (1, 2)


def test_the_console_says_where_an_error_was_raised_and_which_one_is_behind_a_message_that_holds_a_traceback() -> None:
    finding = failing("resume.lands")
    assert finding.failure is not None
    message = (
        "load() raised CheckpointException: ranks [0]\n"
        "Traceback (most recent call last):\n"
        '  File "/lib/site-packages/theirs/load.py", line 3, in read\n'
        "RuntimeError: no key"
    )
    detail = (
        'Traceback (most recent call last):\n  File "/lib/site-packages/theirs/ranks.py", line 7, in all\n    raise\n'
    )

    def shown(**changes: str) -> str:
        return render.console(report_of(replace(finding, failure={**(finding.failure or {}), **changes})))

    assert "raised at: theirs/ranks.py:7, in all\n" in shown(seen="save() raised OSError (no message)", detail=detail)
    with_traceback = shown(seen=message, detail=detail)
    assert "load() raised CheckpointException: ranks [0]: RuntimeError: no key" in " ".join(with_traceback.split())
    assert "raised at" not in with_traceback + shown()


def test_a_file_of_expected_failures_that_a_run_wrote_makes_the_next_one_pass(tmp_path: Path) -> None:
    findings = (failing(SYNC, case="commit/x[sync-2]"), failing(OVERLAP, case="commit/y"), held(SNAPSHOT))
    path = tmp_path / "first.xfail"
    path.write_text(render.expectations(report_of(*findings)))
    entries = read_expected(path)
    assert [(entry.slug, entry.cases, entry.reason) for entry in entries] == [
        (SYNC, "commit/x[sync-2]", "c"),
        (OVERLAP, "commit/y", "c"),
    ]
    assert report_of(*findings, expected=entries).status is Status.PASSED


def test_expectations_are_read_with_their_reasons_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "known.xfail"
    lines = (
        "commit.sync: slow: very\ncommit.overlap @ commit/x[a-b]:   see #1\nsometimes commit.wait-idempotent: a race\n"
    )
    path.write_text(f"# known\n\n{lines}")
    assert read_expected(path) == (
        Expected("commit.sync", "*", "slow: very"),
        Expected("commit.overlap", "commit/x[a-b]", "see #1"),
        Expected("commit.wait-idempotent", "*", "a race", is_sometimes=True),
    )
    path.write_text("commit.sync:\n")
    with pytest.raises(BadExpectations, match="line 1"):
        read_expected(path)
