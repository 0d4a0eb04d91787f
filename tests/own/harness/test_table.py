"""The table of several managers: what is no pass is never shown as one, and nothing on it is typed in."""

import doctest
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from forge_conformance.cli import main
from forge_conformance.judging.verdicts import Expected, Finding, Report, judge
from forge_conformance.report import badge, compact, failures, findings, form, markup, page, stored, table
from forge_conformance.report import run as render
from forge_conformance.report.manager import Around, html_page
from forge_conformance.report.markup import tag
from forge_conformance.report.stored import Mark, State, Stored
from forge_spec import BY_SLUG, CLAUSES, digests
from forge_spec.clauses import Level

SYNC, WAIT, NUMERIC = "commit.sync", "commit.wait-idempotent", "retention.numeric"
ODD = "</script><script>document.title='broken'</script><img src=x onerror=alert(1)> & \"quoted\" \x1b[31m \u202eleft"


def held(slug: str) -> Finding:
    return Finding("commit/holds[sync]", (slug,), {slug: 2}, "done", 0.1)


def failing(slug: str, seen: str = "the step before", case: str = "commit/fails[sync]") -> Finding:
    failure = {
        "clause": slug,
        "expected": "the last step",
        "seen": seen,
        "story": ["process 1 starts", "process 1 loads /tmp/test_a_kill7/step=2", "process 1 is killed"],
        "detail": 'Traceback:\n  File "/home/me/venv/lib/python3.11/site-packages/made/up.py"\n'
        '  File "/home/me/other/tests/conformance/adapter.py"\n  File "/home/me/cut/lib/python3.1; rank 1\nOSError: no',
    }
    return Finding(case, (slug,), {}, "failed", 0.1, failure)


def unreached(slug: str, reason: str) -> Finding:
    return Finding("commit/unreached", (slug,), {}, "unreached", 0.1, reason=reason)


def report_of(*found: Finding, level: Level = Level.CORE, version: str = "1.2", **changes: Any) -> dict[str, Any]:
    """The JSON of a run in which all clauses that the findings do not reach are unclaimed or unreached."""
    capabilities = frozenset({"sync"})
    expected = changes.pop("expected", ())
    judged, stale = judge(found, level, capabilities, expected)
    environment = {
        "python": "3.11.7",
        "executable": "/home/me/venv/bin/python",
        "torch": "2.13.0",
        "gpus": 0,
        "has_numpy": True,
        "platform": "Linux-of-mine",
        "versions": {"forge-ref": "0.1.0", "made-up": version},
    }
    implementation = {
        "name": "made.up:Adapter",
        "adapter": "Adapter",
        "claimed_level": "core",
        "capabilities": sorted(capabilities),
        "traits": changes.pop("traits", {}),
        "environment": environment,
        "is_other_python": False,
    }
    report = Report(implementation, level, judged, stale, (), found, 1.0, expected=expected, sources="0" * 64)
    values: dict[str, Any] = json.loads(json.dumps(render.as_json(replace(report, **changes))))
    return values


def all_hold(level: Level = Level.CORE) -> tuple[Finding, ...]:
    return tuple(held(clause.slug) for clause in CLAUSES if clause.level <= level)


def written(folder: Path, values: dict[str, Any] | str, crash: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True)
    text = values if isinstance(values, str) else json.dumps(values)
    (folder / "report.json").write_text(text, encoding="utf-8")
    if crash is not None:
        (folder / "crash").mkdir()
        (folder / "crash" / "crash.json").write_text(json.dumps(crash))
    return folder


def of(values: dict[str, Any], name: str = "made") -> Stored:
    return Stored(name, values, {})


def explored(storage: str = "kill", disks: int = 10, bad: int = 0, **changes: Any) -> dict[str, Any]:
    """The JSON of an exploration."""
    totals = {"states": 20, "disks": disks, "new": disks, "bad": bad, "seconds": 1.5}
    one = {"storage": storage, "totals": totals, "is_cut_short": False, "contradiction": ""}
    recording = {
        "scenario": "steady",
        "mode": "sync",
        "refusal": "",
        "is_blocked": False,
        "error": "",
        "storages": [one],
        "bad": [],
    }
    return {
        "version": "0.1.0",
        "specification": digests.of_specification(),
        "implementation": "made.up:Adapter",
        "environment": {},
        "level": "core",
        "recorder": {"name": "seccomp", "says": "seccomp"},
        "interrupted": "",
        "exit": {"status": 0, "why": "nothing fails"},
        "causes": [],
        "recordings": [recording],
        "drills": [],
        **changes,
    }


# -- what is no pass is never shown as one ----------------------------------------------


def test_a_manager_reaches_the_highest_level_whose_claimed_clauses_all_pass() -> None:
    assert of(report_of(*all_hold())).reached == "core"
    assert of(report_of(*all_hold(Level.STRICT), level=Level.STRICT)).reached == "strict"
    assert of(report_of(*all_hold(Level.STRICT), failing(NUMERIC), level=Level.STRICT)).reached in ("core", "none")
    assert of(report_of(*all_hold(), failing(SYNC))).reached == "none"
    known = (Expected(SYNC, "*", "it is known"),)
    assert of(report_of(*all_hold(), failing(SYNC), expected=known)).reached == "none"


def test_a_clause_that_is_unreached_by_a_trait_is_both_allowed_and_any_other_keeps_the_level_from_being_reached() -> (
    None
):
    others = tuple(one for one in all_hold() if one.clauses != (SYNC,))
    free = of(report_of(*others, unreached(SYNC, "the manager counts the steps itself (trait counts_steps), so no")))
    assert (free.mark(SYNC), free.reached) == (Mark.BOTH_ALLOWED, "core")
    bare = of(report_of(*others, unreached(SYNC, "this machine has no GPU")))
    assert (bare.mark(SYNC), bare.reached) == (Mark.UNREACHED, "none")


@pytest.mark.parametrize(
    ("spoil", "state", "reason"),
    [
        (lambda values: {**values, "is_partial": True}, State.PARTIAL, "asked for. No pass is shown."),
        (
            lambda values: {**values, "is_partial": True, "errors": ["interrupted after 3 tests; x"], "exit_status": 3},
            State.PARTIAL,
            "interrupted after 3 tests",
        ),
        (lambda values: {**values, "errors": ["KeyError: 'x'"], "exit_status": 3}, State.ERROR, "KeyError"),
        (lambda values: {**values, "schema_version": 7}, State.UNREADABLE, "schema version 7"),
        (lambda values: {"schema_version": 1}, State.UNREADABLE, "suite_version is missing"),
        (
            lambda values: {**values, "clauses": [{"slug": SYNC, "verdict": "fine"}]},
            State.UNREADABLE,
            "'fine' is not a verdict",
        ),
        (lambda values: {**values, "clauses": 7}, State.UNREADABLE, "the report: clauses is not a list"),
        (lambda values: {**values, "level": "high"}, State.UNREADABLE, "no level is called 'high'"),
        (lambda values: {**values, "clauses": [{"slug": 7, "verdict": "pass"}]}, State.UNREADABLE, "slug is not text"),
        (
            lambda values: {**values, "lines": [], "clauses": [{"failures": [{"story": [3], "detail": []}]}]},
            State.UNREADABLE,
            "its lines are not complete, IndexError",
        ),
        (lambda values: "[]", State.UNREADABLE, "schema version None"),
        (lambda values: json.dumps(values)[:-9], State.UNREADABLE, "not JSON"),
    ],
)
def test_a_report_that_can_not_be_relied_on_has_no_pass_and_says_why(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], Any], state: State, reason: str
) -> None:
    one = stored.read(written(tmp_path / "made", spoil(report_of(*all_hold()))))
    assert one.state[0] is state and reason in one.state[1]
    assert Mark.PASS not in {one.mark(clause.slug) for clause in CLAUSES}
    comparison = table.Comparison((one,))
    assert f"| {state}: " in table.markdown(comparison) and "✓ |" not in table.markdown(comparison)
    assert 'class="pass"' not in table.html(comparison)
    assert str(state) in badge.of(one).message and "of" not in badge.of(one).message.replace("error of", "").split()


def test_a_failure_in_a_partial_report_is_shown() -> None:
    one = of(report_of(failing(SYNC), held(WAIT), is_partial=True))
    assert (one.mark(SYNC), one.mark(WAIT)) == (Mark.FAIL, Mark.NOT_JUDGED)


def test_clauses_that_were_asked_for_are_judged_and_the_others_are_not() -> None:
    whole = report_of(held(WAIT), is_partial=True, asked=(WAIT,))
    chosen = {**whole, "clauses": [one for one in whole["clauses"] if one["slug"] == WAIT]}
    one = of(chosen)
    assert one.state == (State.SOME, "The others were not asked for.")
    assert (one.mark(WAIT), one.mark(SYNC), one.reached) == (Mark.PASS, Mark.NOT_JUDGED, "none")
    assert "not judged" in one.short_of
    interrupted = {**chosen, "errors": ["interrupted after 3 tests"], "exit_status": 3}
    assert (of(interrupted).state[0], of(interrupted).mark(WAIT)) == (State.PARTIAL, Mark.NOT_JUDGED)


def test_a_folder_without_a_report_is_shown(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    one = stored.read(tmp_path / "bare")
    assert one.state == (State.UNREADABLE, "There is no report.json.")
    assert "There is no report.json" in html_page(one)
    comparison = table.Comparison((of(report_of(*all_hold())), one))
    for shown in (table.markdown(comparison), table.html(comparison)):
        overview, clauses = re.split("## Clauses|id=.clauses.", shown)
        assert "no report: There is no report.json" in re.sub("<[^>]*>|\\\\", "", overview)
        assert "made" in clauses and "bare" not in clauses


def test_a_folder_that_is_not_there_has_a_row_and_takes_no_kept_report_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "good", report_of(*all_hold()))
    for _ in range(2):
        assert main(["table", "good", "missing", "--out", "out"]) == 0
        assert "there is no folder missing; its row says so" in capsys.readouterr().err
        assert "no report: The folder is not there. |" in Path("out/README.md").read_text()
    assert main(["table", "--check", "out"]) == 0
    shutil.rmtree("good")
    assert main(["table", "good", "missing", "--out", "out"]) == 2
    assert "there is no folder good, and out has a report of that name" in capsys.readouterr().err
    assert stored.read(Path("out/good")).reached == "core"


def test_the_folder_of_the_table_is_no_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "reports" / "made", report_of(*all_hold()))
    for _ in range(2):
        folders = [str(path) for path in sorted(Path("reports").iterdir())]
        assert main(["table", *folders, "--out", "reports/table"]) == 0
    assert [path.name for path in Path("reports/table").iterdir() if path.is_dir()] == ["made"]


def test_commands_that_install_the_packages_of_a_run_are_code() -> None:
    failed = of(report_of(failing(SYNC)), "mine")
    command = "tox run -e mine --notest"
    assert f"this installs them: `{command}`. The suite" in failures.markdown(failed, Around(home="../"))
    assert f"<code>{command}</code>. The suite" in html_page(failed, Around(home="../"))


def test_a_known_failure_is_counted_as_a_failure_beside_the_level() -> None:
    known = report_of(*all_hold(), failing(SYNC), failing(WAIT), expected=(Expected(SYNC, "*", "it is known"),))
    assert of(known).short_of == "core: 1 fail, 1 known fail"


def test_a_report_of_another_version_of_the_suite_says_so() -> None:
    made = report_of(*all_hold())
    assert "of the suite" not in table.markdown(table.Comparison((of(made),)))
    comparison = table.Comparison((of({**made, "suite_version": "0.0.7"}),))
    for shown in (table.markdown(comparison), table.html(comparison)):
        assert "complete; judged by version 0.0.7 of the suite" in shown


def test_a_clause_that_has_changed_since_is_out_of_date_and_one_that_is_new_is_not_judged() -> None:
    values = report_of(*all_hold())
    first, second, *others = [one for one in values["clauses"] if one["verdict"] == "pass"]
    first["digest"] = "0" * 16
    values["clauses"] = [first, *others, {**second, "slug": "commit.of-old"}]
    values["specification"] = "1" * 16
    one = of(values)
    assert one.state == (
        State.OUT_OF_DATE,
        "Since it was judged, the specification has changed: 1 clause changed, 1 clause new, 1 clause gone.",
    )
    assert (one.mark(first["slug"]), one.mark(second["slug"])) == (Mark.OUT_OF_DATE, Mark.NOT_JUDGED)
    assert (one.mark(others[0]["slug"]), one.reached) == (Mark.PASS, "none")
    assert badge.of(one).message == "made-up 1.2: out of date"
    assert "commit.of-old" in html_page(one)


def test_a_new_clause_about_something_unclaimed_is_not_held_against_a_manager() -> None:
    values = report_of(*all_hold())
    values["clauses"] = [one for one in values["clauses"] if one["slug"] != NUMERIC]
    values["specification"] = "1" * 16
    assert (of(values).mark(NUMERIC), of(values).reached) == (Mark.UNCLAIMED, "core")


def test_a_specification_that_has_changed_elsewhere_is_said_to_have_done_so() -> None:
    one = of({**report_of(*all_hold()), "specification": "1" * 16})
    assert one.state[1] == "Since it was judged, the specification has changed, but no clause of this level."


def test_a_value_of_a_wrong_kind_is_named_with_its_place(tmp_path: Path) -> None:
    one = stored.read(written(tmp_path / "made", {**report_of(*all_hold()), "errors": [0]}))
    assert one.trouble == "report.json can't be shown: the report: errors[0] is not text"


def test_a_report_that_does_not_name_its_specification_is_out_of_date() -> None:
    values = report_of(*all_hold())
    del values["specification"]
    values["clauses"] = [{name: one[name] for name in one if name != "digest"} for one in values["clauses"]]
    assert of(values).state[0] is State.OUT_OF_DATE
    assert of(values).mark(SYNC) is Mark.OUT_OF_DATE


def test_each_mark_on_a_page_can_be_chosen() -> None:
    values = report_of(*all_hold(), failing(SYNC), unreached(WAIT, "no GPU"))
    values["clauses"] = [{**one, "digest": "0" * 16} if one["slug"] == WAIT else one for one in values["clauses"][:-9]]
    values["specification"] = "1" * 16
    one = of(values)
    for shown in (html_page(one), table.html(table.Comparison((one,)))):
        marks = {mark for marks in re.findall('data-marks="([^"]*)"', shown) for mark in marks.split(",")}
        assert {"out-of-date", "fail", "pass", "unclaimed"} <= marks
        assert marks == set(re.findall('type="checkbox" value="([^"]*)"', shown))


# -- deaths ----------------------------------------------------------------------------


def test_deaths_are_counted_by_what_they_take_away() -> None:
    one = replace(of(report_of(held(SYNC))), crash=explored("ext4, links", disks=12, bad=5))
    assert (str(one.power), str(one.kills), str(one.real)) == ("7 of 12", "not explored", "not explored")
    cut = explored("kill")
    cut["recordings"][0]["storages"][0]["is_cut_short"] = True
    assert str(replace(one, crash=cut).kills) == "10 of 10, stopped by the time limit"


def test_causes_of_deaths_count_states_and_say_of_how_many() -> None:
    storages = [explored(storage)["recordings"][0]["storages"][0] for storage in ("ext4", "kill", "kill, second death")]
    cause = {"verdict": "lost", "clause": SYNC, "seen": "", "expected": "", "why": "no sync", "counts": True}
    cause |= {"times": 11, "where": ["steady, sync, ext4"], "replay": "python replay-1.py"}
    killed = {**cause, "where": ["steady, sync, kill"] * 2}
    order = {**cause, "where": ["steady, sync"]}
    recording = {**explored()["recordings"][0], "storages": storages}
    one = replace(of(report_of(held(SYNC))), crash=explored(recordings=[recording], causes=[cause, killed, order]))
    for shown in (html_page(one), failures.markdown(one, Around())):
        said = re.findall(r"(?i)on 11 of \d+ states|\b11 times", shown)
        assert [words.lower() for words in said] == ["on 11 of 20 states", "on 11 of 40 states", "11 times"]
        assert "Several states can leave the same disk." in shown
    assert '<td class="number">20</td><td class="number">10</td>' in html_page(one)


def test_a_kind_of_death_that_was_explored_of_no_manager_has_no_column() -> None:
    one, other = of(report_of(held(SYNC))), replace(of(report_of(held(SYNC)), "other"), crash=explored("kill"))
    for shown in (table.markdown, table.html):
        assert "survived" not in shown(table.Comparison((one,)))
        both = shown(table.Comparison((one, other)))
        assert "kills survived" in both and "not explored" in both
        assert "power survived" not in both and "faults survived" not in both


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"interrupted": "after 3 disks"}, "interrupted after 3 disks"),
        ({"exit": {"status": 3, "why": "the suite itself failed"}}, "error of the suite: the suite itself failed"),
        ({"specification": "1" * 16}, "explored by another version of the specification"),
    ],
)
def test_an_exploration_that_can_not_be_relied_on_says_why(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    one = stored.read(written(tmp_path / "made", report_of(held(SYNC)), explored(**changes)))
    assert one.crash_state == reason
    assert f"deaths: {reason}" in table.markdown(table.Comparison((one,)))


def test_an_exploration_that_is_none_is_not_shown_and_says_why(tmp_path: Path) -> None:
    one = stored.read(written(tmp_path / "made", report_of(held(SYNC)), {**explored(), "drills": [{}]}))
    assert one.crash_state == "crash.json can't be shown: the report: drills[0]: kind is missing"
    assert str(one.kills) == "not explored"


# -- releases and findings ---------------------------------------------------------------


def test_a_release_is_compared_with_the_next_older_one_of_the_same_adapter() -> None:
    now = of(report_of(held(SYNC), failing(WAIT), version="10.0"), "now")
    before = of(report_of(failing(SYNC), held(WAIT), version="9.1"), "before")
    first = of(report_of(version="2.0"), "first")
    other = of({**report_of(version="9.9"), "implementation": {**first.report["implementation"], "name": "x"}}, "other")
    comparison = table.Comparison((before, first, now, other))
    assert comparison.older(now) == before and comparison.older(before) == first and comparison.older(first) is None
    assert "+1 -1 against 9.1 |" in table.markdown(comparison)
    assert "In made-up 9.1: " in html_page(now, comparison.around(now))


@pytest.mark.parametrize("list_of", ["now", "before"])
def test_a_clause_that_fails_only_in_some_runs_says_nothing_about_a_release(list_of: str) -> None:
    by_chance = (Expected(WAIT, "*", "a race", is_sometimes=True),)
    lists = {list_of: by_chance}
    now = of(report_of(held(SYNC), failing(WAIT), version="10.0", expected=lists.get("now", ())), "now")
    before = of(report_of(failing(SYNC), held(WAIT), version="9.1", expected=lists.get("before", ())), "before")
    assert "+1 -0 against 9.1 |" in table.markdown(table.Comparison((before, now)))


def test_findings_are_those_whose_line_names_the_manager(tmp_path: Path) -> None:
    index = "| finding | manager | kind |\n|---|---|---|\n| [it forgets](forgets.md) | Made-Up 1.2 | data lost |\n"
    (tmp_path / "README.md").write_text(index + "| [another](other.md) | Unmade 2 | x |\n")
    (tmp_path / "forgets.md").write_text(f"See `{SYNC}` and `no.clause`.\n")
    found = findings.read(tmp_path, "../findings")
    one = of(report_of(failing(SYNC)))
    (own,) = findings.about(found, one)
    assert (own.title, own.link, own.clauses) == ("it forgets", "../findings/forgets.md", {SYNC})
    assert findings.about(found, of(report_of(failing(SYNC), version="1.1"))) == ()
    comparison = table.Comparison((one,), found)
    assert "[it forgets](../findings/forgets.md)" in table.markdown(comparison)
    assert 'href="../../findings/forgets.md"' in html_page(one, comparison.around(one))


# -- form ------------------------------------------------------------------------------


def test_the_compact_form_says_the_same_without_the_machine() -> None:
    values = report_of(*all_hold(), failing(SYNC), failing(SYNC, case="commit/fails[async]"))
    values["options"] = ["--python=/home/me/venv/bin/python", "--ranks=none"]
    text = compact.as_text(compact.report(values))
    for of_the_machine in ("/home/me", "--python", "test_a_kill7", "Linux-of-mine", BY_SLUG[SYNC].sentence, "seconds"):
        assert of_the_machine not in text
    back = of(compact.expanded(json.loads(text)))
    full = of(values)
    assert {line.slug: line.mark for line in back.lines} == {line.slug: line.mark for line in full.lines}
    first, second = back.by_slug[SYNC].failures
    assert (
        first["story"] == second["story"] == ["process 1 starts", "process 1 loads /tmp/step=2", "process 1 is killed"]
    )
    assert '  File "made/up.py"\n  File "tests/conformance/adapter.py"' in first["detail"]
    assert "--ranks=none" in html_page(back)
    assert compact.as_text(compact.report(back.report)) == text


def test_a_table_is_rendered_from_what_it_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = written(tmp_path / "made", report_of(*all_hold(), failing(SYNC, ODD)), explored("ext4", bad=2))
    out = tmp_path / "released"
    assert main(["table", str(made), "--out", str(out)]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main(["table", "--check", str(out)]) == 0
    assert main(["table", "--out", str(out)]) == 0
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    names = {path.relative_to(out).as_posix() for path in before}
    own = {
        f"made/{name}"
        for name in ("index.html", "README.md", "badge.svg", "badge.json", "report.json", "crash/crash.json")
    }
    assert names == {"README.md", "index.html", *own}
    (out / "index.html").write_text("typed in")
    (out / "notes.txt").write_text("")
    assert main(["table", "--check", str(out)]) == 1
    assert "index.html, notes.txt (not part of the table)" in capsys.readouterr().out


def test_why_a_report_can_not_be_shown_is_kept_and_a_kept_report_that_is_damaged_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = written(tmp_path / "good" / "made", report_of(*all_hold()), explored())
    bad = written(tmp_path / "bad" / "made", "[")
    out = tmp_path / "released"
    assert main(["table", str(good), "--out", str(out)]) == 0
    assert main(["table", str(bad), "--out", str(out)]) == 0
    assert main(["table", "--check", str(out)]) == 0
    assert "report.json is not JSON" in (out / "README.md").read_text()
    assert not (out / "made" / "crash" / "crash.json").exists()
    assert main(["table", str(good), "--out", str(out)]) == 0
    (out / "made" / "report.json").write_text("[")
    assert main(["table", "--out", str(out)]) == 0
    assert (out / "made" / "report.json").read_text() == "["
    assert main(["table", "--check", str(out)]) == 1
    assert "report.json can't be shown; restore it, or judge the manager again" in capsys.readouterr().out


def test_a_changed_clause_makes_a_kept_table_fail_until_it_is_rendered_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "released"
    assert main(["table", str(written(tmp_path / "made", report_of(*all_hold()))), "--out", str(out)]) == 0
    of_clause = digests.of
    monkeypatch.setattr(digests, "of", lambda clause: "f" * 16 if clause.slug == SYNC else of_clause(clause))
    monkeypatch.setattr(digests, "of_specification", lambda: "f" * 16)
    assert main(["table", "--check", str(out)]) == 1
    assert main(["table", "--out", str(out)]) == 0
    assert main(["table", "--check", str(out)]) == 0
    assert "made-up 1.2: out of date" in (out / "made" / "badge.svg").read_text()
    assert "1 clause changed" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no-such"], "there is no folder no-such"),
        (["no-*", "--out", "a"], "no folder matches no-*"),
        (["a/made", "no-[ab]", "--out", "a"], "no folder matches no-[ab]"),
        (["a/made", "b/made"], "the same name"),
        ([], "there is no report to show"),
        (["--check", "here", "--out", "there"], "--check takes neither"),
    ],
)
def test_a_table_refuses_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        written(tmp_path / name / "made", "{}")
    assert main(["table", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_whatever_a_story_holds_stays_text() -> None:
    values = report_of(failing(SYNC, ODD), failing(WAIT, case=f"commit/x[{ODD}]"), errors=(ODD,))
    shown = html_page(of(values, ODD))
    assert shown.count("<script>") == 1 and "<img" not in shown
    assert r"\x1b" in shown and r"\u202e" in shown and "\x1b" not in shown
    comparison = table.Comparison((of(values, ODD),))
    assert table.html(comparison).count("<script>") == 1 and "<img" not in table.html(comparison)
    assert tag("p", ODD, title=ODD).count("<") == 2


def test_a_page_without_a_report_has_its_reason_alone() -> None:
    lines = failures.markdown(Stored("bare", {}, {}, "Not judged: it is gone"), Around()).splitlines()
    assert lines == ["# bare", "", "no report: Not judged: it is gone.", "", "[All managers](../README.md)."]
    assert "[The whole report](index.html)" in failures.markdown(of(report_of(held(SYNC))), Around())


def test_whatever_a_story_holds_stays_within_its_block_of_markdown() -> None:
    odd = f"{ODD}\n```\n# a heading"
    shown = failures.markdown(of(report_of(failing(SYNC, odd), expected=(Expected(SYNC, "*", ODD),)), ODD), Around())
    outside = re.sub(r"^(`{3,})text\n.*?^\1$", "", shown, flags=re.DOTALL | re.MULTILINE)
    assert "# a heading" in shown and "# a heading" not in outside
    assert r"\x1b" in shown and "\x1b" not in shown and "\u202e" not in shown
    places = {f'<a id="{clause.slug}">' for clause in CLAUSES}
    assert set(re.findall(r"(?<!\\)<[^>]*>", outside)) - places == {"</a>"}


def test_why_a_clause_neither_passed_nor_failed_stands_behind_its_mark() -> None:
    one = of(report_of(held(SYNC), unreached(WAIT, f"this machine has no GPU {ODD}")))
    shown = failures.markdown(one, Around())
    assert f'- <a id="{WAIT}"></a>{WAIT}, *unreached*: this machine has no GPU' in shown
    assert shown.count('<a id="') == one.counts()[Mark.UNREACHED] and "<img" not in shown.replace(r"\<", "")
    assert f"| {WAIT} | [?](made/README.md#{WAIT}) |" in table.markdown(table.Comparison((one,)))


def test_a_badge_says_release_and_level_and_is_bound_to_the_specification() -> None:
    one = badge.of(of(report_of(*all_hold())))
    assert one.message == "made-up 1.2: level core"
    assert one.label == f"forge-conformance {digests.of_specification()[:7]}"
    assert json.loads(badge.endpoint(one)) == {
        "schemaVersion": 1,
        "label": one.label,
        "message": one.message,
        "color": one.colour,
    }
    judged = len([clause for clause in CLAUSES if clause.level == Level.CORE and clause.capabilities <= {"sync"}])
    bad = badge.of(of(report_of(*all_hold(), failing(SYNC))))
    assert bad.message == f"made-up 1.2: {judged - 1} of {judged} clauses"
    assert bad.message in badge.svg(bad)


@pytest.mark.parametrize("module", [failures, findings, form, markup, page], ids=lambda module: module.__name__)
def test_the_examples_of_rendering_say_what_happens(module: ModuleType) -> None:
    ran = doctest.testmod(module)
    assert ran.attempted > 0 and ran.failed == 0
