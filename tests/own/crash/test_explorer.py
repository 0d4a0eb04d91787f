"""The explorer over a manager that is right in everything, and over mutants of it that lack one thing each."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from forge_conformance.cli import main
from forge_conformance.commands import crash as command
from forge_conformance.disks.explorer import Effort
from forge_conformance.disks.job import Job, explore
from forge_conformance.disks.result import Result
from forge_conformance.disks.states import KILL
from forge_conformance.report import crash as report
from forge_conformance.runs.verdict import Verdict, seen_and_expected
from forge_conformance.runs.workplace import Manager, Place, workplace
from forge_spec.clauses import Level
from forge_spec.disk import Mark

from .conftest import CAREFUL, expect_numbers_to_agree, needs_recorder, reported

pytestmark = needs_recorder
QUICK = Effort(goes_on=3, deaths_again=0)


@contextmanager
def place_of(name: str, timeout_s: float = 20) -> Iterator[Place]:
    manager = Manager(f"{CAREFUL}:{name}", timeout_s=timeout_s)
    with workplace(manager) as place:
        yield place


def explored(name: str, scenario: str, *storages: str, effort: Effort = QUICK) -> Result:
    with place_of(name) as place:
        return explore(Job(scenario, "sync", storages, effort), place)


def found(result: Result) -> set[tuple[str, str]]:
    return {(one.verdict.word, one.verdict.clause) for one in result.found}


@pytest.fixture(scope="module")
def careful() -> Iterator[Place]:
    with place_of("Careful") as place:
        yield place


@pytest.mark.parametrize(
    "scenario", ["first-save", "new-folder", "steady", "resave", "fallback", "rewind", "disk-full"]
)
def test_a_manager_that_is_right_has_no_bad_disk(careful: Place, scenario: str) -> None:
    storages = (KILL, "ext4", "posix-strict", "nfs")
    result = explore(Job(scenario, "sync", storages, Effort(goes_on=4, deaths_again=1)), careful)
    assert [one.text for one in result.found] == []
    assert result.disorders == ()
    assert result.orders_looked_at > 0
    assert all(one.totals.disks > 5 for one in result.explored)
    assert [one.contradiction for one in result.explored] == [""] * 5


def test_a_recording_is_a_path_of_the_model_or_the_first_thing_that_is_not_is_told() -> None:
    (followed,) = explored("Careful", "steady", KILL).followed
    assert (followed.not_allowed, followed.not_compared) == ("", "")
    assert followed.seen > 20
    (followed,) = explored("DeletesFirst", "resave", KILL).followed
    assert (
        "the save of step 2 begins; then complete: 1, and `latest` names 2, where the model allows"
        in followed.not_allowed
    )


MISSING = [
    ("NoSyncOfState", "posix-strict", "the content of step_2/state", "no fsync of it ever came"),
    ("NoSyncOfState", "ext4", "the content of step_2/state", "no fsync of it ever came"),
    ("NoSyncOfStaged", "posix-strict", "openat(.staged/", "its directory"),
    ("NoSyncOfPointer", "posix-strict", "renameat2(.latest -> latest)", "its directory (the folder itself)"),
]


@pytest.mark.parametrize(("name", "storage", "what", "why"), MISSING, ids=[f"{one[0]}-{one[1]}" for one in MISSING])
def test_one_missing_fsync_is_found_and_named(name: str, storage: str, what: str, why: str) -> None:
    result = explored(name, "steady", storage)
    for one in result.found:
        expect_numbers_to_agree(one.text)
    missing = {line for one in result.found for line in one.missing}
    assert any(what in line and why in line and "was not synced" in line for line in missing), missing
    assert {clause for _, clause in found(result)} <= {"durable.power-loss", "durable.acknowledged"}


def test_a_folder_is_lost_with_all_that_was_synced_in_it_where_a_name_further_above_is_not_safe() -> None:
    result = explored("NoSyncFurtherAbove", "new-folder", "ext4", "posix-strict")
    assert found(result) == {("lost", "durable.acknowledged")}
    assert {one.storage for one in result.found} == {"posix-strict"}
    missing = {line for one in result.found for line in one.missing}
    assert all("mkdirat(runs" in line and "no fsync of it ever came" in line for line in missing), missing
    assert result.disorders == ()
    assert result.orders_looked_at == 2


def test_a_name_that_is_not_safe_before_the_pointer_is_out_of_order_even_if_no_resume_falls_for_it() -> None:
    result = explored("NoSyncOfRename", "steady", KILL)
    assert found(result) == set()
    assert {disorder.what.partition(" by ")[0] for disorder in result.disorders} == {
        f"the pointer came to name step_{step}" for step in (2, 4, 6, 8, 10)
    }
    (cause,) = reported(result).causes
    assert (cause.example.verdict.clause, cause.ways) == ("durable.order", 5)
    assert report.level_of(cause.example.verdict) == Level.DURABLE


def test_an_old_step_that_is_deleted_before_its_new_self_stands_costs_the_resume_point() -> None:
    result = explored("DeletesFirst", "resave", KILL)
    assert found(result) == {("stale", "commit.resave")}
    expect_numbers_to_agree(result.found[0].text)


def test_a_step_that_is_rewritten_in_place_is_told_as_torn() -> None:
    assert found(explored("InPlace", "resave", KILL)) == {("refused", "commit.resave")}


def test_a_mixture_of_two_saves_is_the_worst_and_is_told_with_what_differs() -> None:
    result = explored("Mixes", "resave", KILL)
    assert found(result) == {("mixed", "commit.resave")}
    assert "parameter/" in result.found[0].verdict.seen or "moment/" in result.found[0].verdict.seen


ALWAYS = [
    ("LosesOne", {("changed", "resume.exact")}),
    (
        "LosesOneAndMixes",
        {("changed", "resume.exact"), ("mixed", "commit.resave"), ("mixed", "durable.power-loss")},
    ),
    ("StartsElsewhere", {("changed", "resume.fresh")}),
]


@pytest.mark.parametrize(("name", "expected"), ALWAYS, ids=[name for name, _ in ALWAYS])
def test_what_never_comes_back_is_told_once_and_is_not_the_fault_of_a_death(
    name: str, expected: set[tuple[str, str]]
) -> None:
    result = explored(name, "resave", KILL, "ext4", effort=Effort(goes_on=4, deaths_again=1))
    assert found(result) == expected
    (changed,) = [one for one in result.found if one.verdict.word == "changed"]
    assert "1 item differing (buffer/1.running_mean)" in changed.verdict.seen
    assert all("running_mean" not in one.verdict.seen for one in result.found if one is not changed)
    expect_numbers_to_agree(changed.text)


def test_a_resume_that_waits_for_the_dead_is_hung() -> None:
    with place_of("Waits", timeout_s=2) as place:
        result = explore(Job("first-save", "sync", (KILL,), QUICK), place)
    assert found(result) == {("hung", "resume.after-kill")}
    assert "did not return within" in result.found[0].text


def test_a_resume_that_depends_on_something_else_than_its_folder_is_found_out() -> None:
    result = explored("Chancy", "steady", KILL, effort=Effort(goes_on=60, deaths_again=0))
    assert "depends on something other than its folder, or on chance" in result.explored[0].contradiction


def test_a_manager_that_can_never_save_again_is_stuck() -> None:
    result = explored("NeverAgain", "steady", KILL, effort=Effort(goes_on=60, deaths_again=0))
    assert found(result) == {("stuck", "resume.continue")}
    assert ".staged stands there already" in result.found[0].text


def test_a_manager_that_leaves_nothing_in_its_folder_is_told_so() -> None:
    refusal = explored("Elsewhere", "first-save", KILL).refusal
    assert "without changing anything in the folder" in refusal
    assert "checkpoints-beside" in refusal


def test_a_scenario_that_the_manager_refuses_is_told_and_the_others_are_explored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenarios = ["--tier", "disks", "--scenario", "first-save", "--scenario", "resave"]
    options = [*scenarios, "--storage", "kill", "--going-on", "0", "--second-deaths", "0", "--out", str(tmp_path)]
    status = main(["crash", "--impl", f"{CAREFUL}:RefusesResave", *options])
    said = " ".join(capsys.readouterr().out.split())
    assert status == 2
    assert "NOT EXPLORED (resave, sync)" in said
    assert "step 4 is saved already" in said
    assert "first-save sync kill" in said


def test_a_manager_on_stock_dcp_survives_kills_and_no_loss_of_power() -> None:
    manager = Manager(str(CAREFUL.with_name("dcp.py")))
    with workplace(manager) as place:
        result = explore(Job("first-save", "sync", (KILL, "ext4"), QUICK), place)
    kill, cut = result.explored
    assert kill.totals.disks > 5
    assert [bad.verdict.seen for bad in kill.bad] == []
    assert {bad.verdict.clause for bad in cut.bad} == {"durable.acknowledged"}


def test_a_save_of_one_operation_is_explored_where_something_can_come_between() -> None:
    with place_of("OneFile") as place:
        died = explore(Job("fallback", "sync", (KILL,), QUICK), place)
        full = explore(Job("disk-full", "sync", (KILL,), QUICK), place)
    assert died.refusal == ""
    assert [one.text for one in died.found] == []
    assert died.explored[0].recorded.trace.outside
    assert "nothing in that save needed room in the folder" in full.refusal


def test_a_scenario_that_the_adapter_has_no_counterpart_for_is_told() -> None:
    refusal = explored("OnlyItsOwnSteps", "resave", KILL).refusal
    assert "it counts the steps by itself" in refusal
    assert "could not be recorded in mode sync" in refusal


@pytest.mark.parametrize("name", ["CountsItsOwnSteps", "StartsByItself", "NamesNoStep"])
def test_a_manager_that_counts_the_steps_saves_one_again_after_a_rewind_or_in_another_run(name: str) -> None:
    result = explored(name, "resave", KILL)
    assert [one.text for one in result.found] == []
    recorded = result.explored[0].recorded
    first, second = [saved for saved in recorded.saves if saved.step == 4]
    assert second.is_resave
    assert first.state != second.state
    starts = [mark.step for mark in recorded.trace.effects if isinstance(mark, Mark) and mark.word == "start"]
    assert starts == [0, 0 if name == "NamesNoStep" else 2]


def test_a_manager_that_counts_the_steps_and_mixes_two_saves_of_one_is_found() -> None:
    assert {word for word, _ in found(explored("MixesItsOwnSteps", "resave", KILL))} == {"mixed"}


def test_a_scenario_has_the_nearest_limit_that_the_manager_accepts() -> None:
    result = explored("KeepsTwo", "keep-one", KILL)
    assert result.explored[0].recorded.settings["keep_last_n"] == 2
    assert [one.text for one in result.found] == []


def test_a_manager_that_writes_through_maps_is_explored_and_the_report_says_how() -> None:
    result = explored("Maps", "first-save", KILL, "posix-strict")
    assert [one.text for one in result.found] == []
    assert any("changed through a shared map" in said for said in result.explored[0].recorded.trace.unseen)


def test_an_interrupted_exploration_reports_what_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    (tmp_path / "crash.json").write_text("{}")

    def once(job: Job, place: Place) -> Result:
        assert json.loads((tmp_path / "crash.json").read_text())["interrupted"] == "before its end"
        if done:
            raise KeyboardInterrupt
        done.append(job)
        return explore(job, place)

    monkeypatch.setattr(command, "explore", once)
    options = [
        "--tier",
        "disks",
        "--storage",
        "kill",
        "--going-on",
        "0",
        "--second-deaths",
        "0",
        "--out",
        str(tmp_path),
    ]
    status = main(
        ["crash", "--impl", f"{CAREFUL}:Careful", "--scenario", "first-save", "--scenario", "steady", *options]
    )
    assert status == 3
    assert "PARTIAL: interrupted after 1 of 2 recordings and drills" in capsys.readouterr().out
    assert json.loads((tmp_path / "crash.json").read_text())["interrupted"] == "after 1 of 2 recordings and drills"


REPLAYED = [
    ("Mixes", "resave", "kill", "mixed"),
    ("RaisesNoException", "resave", "kill", "refused"),
    ("NeverAgain", "first-save", "kill", "stuck"),
    ("LosesOne", "first-save", "kill", "changed"),
    ("NoSyncFurtherAbove", "new-folder", "posix-strict", "lost"),
]


@pytest.mark.parametrize(("name", "scenario", "storage", "word"), REPLAYED)
def test_replay_scripts_are_checked_and_counted(
    name: str, scenario: str, storage: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--tier", "disks", "--storage", storage, "--second-deaths", "0", "--check-replays"]
    options += ["--out", str(tmp_path)]
    assert main(["crash", "--impl", f"{CAREFUL}:{name}", "--scenario", scenario, *options]) == 1
    said = capsys.readouterr().out
    (recording,) = json.loads((tmp_path / "crash.json").read_text())["recordings"]
    assert {bad["replayed"] for bad in recording["bad"]} == {word}
    count = len(recording["bad"])
    assert f"{count} of {count} replay scripts came to the same verdict by themselves" in said


def test_a_replay_that_comes_to_another_verdict_is_an_error_of_the_suite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "outcome", lambda replay, python, timeout_s: "good")
    options = [
        "--tier",
        "disks",
        "--scenario",
        "resave",
        "--storage",
        "kill",
        "--second-deaths",
        "0",
        "--check-replays",
    ]
    assert main(["crash", "--impl", f"{CAREFUL}:DeletesFirst", *options, "--out", str(tmp_path)]) == 3
    said = capsys.readouterr().out
    assert "0 of 1 replay scripts" in said
    assert "NOT REPRODUCED: replay-resave-sync-1.py says good, the exploration stale" in said


def test_a_story_calls_the_step_that_a_run_landed_on_a_resume_from_it() -> None:
    stale = Verdict("stale", "resume.after-kill", "step 2", "a fresh start or step 4")
    stuck = Verdict("stuck", "resume.continue", "after step 4, an error", "step 2, 4 to stand then", came_back=True)
    assert seen_and_expected(stale) == (
        "seen: a resume from step 2",
        "expected: a fresh start or a resume from step 4",
    )
    assert seen_and_expected(stuck) == ("seen: after step 4, an error", "expected: step 2, 4 to stand then")


def test_a_story_names_the_death_and_its_replay_shows_the_same_without_the_suite(tmp_path: Path) -> None:
    result = explored("NoSyncOfPointer", "steady", "posix-strict")
    stale = next(one for one in result.found if one.verdict.word == "stale")
    assert "---- here ----" in stale.text
    assert f"seen: a resume from {stale.verdict.seen}" in stale.text
    script = tmp_path / "replay.py"
    script.write_text(stale.replay)
    alone = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", script], capture_output=True, text=True, cwd=tmp_path, env=alone, timeout=120
    )
    (rebuilt,) = re.findall(r"^FOLDER = '(.*)'", stale.replay, re.M)
    shutil.rmtree(Path(rebuilt).parent)
    assert done.returncode == 1, done.stderr
    assert f"landed on {stale.verdict.seen}" in done.stdout
    assert "the same, bit for bit" in done.stdout


@pytest.mark.parametrize(
    ("flags", "manager", "lacking"), [(["-S", "-I"], None, "'torch'"), (["-P"], "no_such_manager", "no_such_manager")]
)
def test_a_replay_by_a_python_that_lacks_what_it_needs_has_no_verdict(
    tmp_path: Path, flags: list[str], manager: str | None, lacking: str
) -> None:
    (stale,) = explored("DeletesFirst", "resave", KILL).found
    script = tmp_path / "replay.py"
    named = f"IMPLEMENTATION = {manager!r}"
    script.write_text(re.sub("^IMPLEMENTATION = .*", named, stale.replay, flags=re.M) if manager else stale.replay)
    done = subprocess.run([sys.executable, *flags, script], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 3, done.stdout + done.stderr
    assert f"Nothing was replayed. {sys.executable} can't import torch and " in done.stdout
    assert lacking in done.stdout
    assert "verdict" not in done.stdout
    (rebuilt,) = re.findall(r"^FOLDER = '(.*)'", stale.replay, re.M)
    assert not Path(rebuilt).parent.exists(), "it was made for the recording, and went with it"


def test_the_command_reports_for_people_and_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--tier", "disks", "--scenario", "first-save", "--storage", "posix-strict", "--going-on", "0"]
    status = main(["crash", "--impl", f"{CAREFUL}:NoSyncOfState", *options, "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert status == 1
    assert "FAILED durable.power-loss" in said
    assert said.count("FAILED durable.order: disorder, 1 time;") == 2
    written = json.loads((tmp_path / "crash.json").read_text())
    assert written["totals"]["bad"] > 0
    (recording,) = written["recordings"]
    assert {bad["clause"] for bad in recording["bad"]} == {"durable.power-loss"}
    assert len(recording["orders"]["disorders"]) == 2
    assert "<table>" in (tmp_path / "crash.html").read_text()
    assert list(tmp_path.glob("replay-*.py"))
    (tmp_path / "crash.html").write_text("as it was")
    again = ["crash", "--impl", f"{CAREFUL}:NoSyncOfState", *options, "--out", str(tmp_path), "--unless-judged"]
    assert main(again) == 1
    assert ", judged by the same code in the same environment: " in capsys.readouterr().out
    assert (tmp_path / "crash.html").read_text() == "as it was"


def test_a_storage_that_does_not_exist_is_refused_with_those_that_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["crash", "--impl", "x", "--storage", "floppy"])
    assert "posix-strict" in capsys.readouterr().err
