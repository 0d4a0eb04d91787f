"""How `crash` ends: the exit status is that of the worst thing it saw, and what is asked for is what is explored."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from forge_conformance.cli import main
from forge_conformance.commands import crash as command
from forge_conformance.deaths.drills import Bad, Drill, Drilled
from forge_conformance.disks.job import Job, explore
from forge_conformance.disks.result import Result
from forge_conformance.judging.verdicts import Status
from forge_conformance.runs.verdict import Verdict
from forge_conformance.runs.workplace import Place
from forge_spec.clauses import Level

from .conftest import CAREFUL, needs_recorder, reported

pytestmark = needs_recorder
DRILL = Drill("deaths", "kill", "steady", "sync")
FIRST_SAVE = ["--tier", "disks", "--scenario", "first-save"]


def crash(out: Path, name: str, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit status and the report; without runs that go on, unless the options say otherwise."""
    none = [word for few in ("--going-on", "--second-deaths") if few not in options for word in (few, "0")]
    status = main(["crash", "--impl", str(CAREFUL.with_name(name)), *none, *options, "--out", str(out)])
    return status, json.loads((out / "crash.json").read_text())


def failed(word: str, clause: str) -> Drilled:
    return Drilled(DRILL, "", 1, bad=(Bad("kill/steady/sync/1/1", Verdict(word, clause), ""),))


ENDS = [
    ([Drilled(DRILL, "", 1)], Status.PASSED),
    ([failed("stuck", "resume.continue")], Status.PASSED),
    ([Drilled(DRILL, "", refusal="it did not begin")], Status.NOTHING_JUDGED),
    ([failed("stale", "resume.after-kill")], Status.FAILED),
    ([failed("hung", "resume.continue")], Status.FAILED),
    ([Drilled(DRILL, "", refusal="save(2) did not return", is_blocked=True)], Status.FAILED),
    ([Drilled(DRILL, "", error="Traceback")], Status.OUR_ERROR),
]


@pytest.mark.parametrize("number", range(len(ENDS)))
def test_the_exit_status_is_that_of_the_worst(number: int) -> None:
    """Each of these is worse than, or as bad as, all before it; `stuck` is of level strict, and not counted here."""
    done, status = ENDS[number]
    assert reported(*done).status == status
    milder = [one for before, _ in ENDS[:number] for one in before]
    assert reported(*milder, *done).status == status


def test_what_is_above_the_level_counts_at_its_own() -> None:
    stuck = failed("stuck", "resume.continue")
    assert reported(stuck, level=Level.STRICT).status == Status.FAILED


def test_a_run_that_is_blocked_for_ever_fails_at_level_core(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*FIRST_SAVE, "--level", "core", "--timeout", "3", "--going-on", "9"]
    status, report = crash(tmp_path, "careful.py:BlocksAgain", *options)
    assert status == 1
    assert [(cause["verdict"], cause["clause"]) for cause in report["causes"]] == [("hung", "resume.continue")]
    assert "FAILED resume.continue: hung" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "status"), [("NeverAgain", 2), ("BlocksAgain", 1)])
def test_a_second_death_that_changes_nothing_is_reported_beside_the_rest(
    tmp_path: Path, name: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*FIRST_SAVE, "--level", "core", "--timeout", "3", "--second-deaths", "1"]
    ended, report = crash(tmp_path, f"careful.py:{name}", *options)
    assert ended == status
    (recording,) = report["recordings"]
    assert "The second death on disk 1, a fresh start, could not be explored. save" in recording["refusal"]
    assert recording["storages"][0]["totals"]["disks"] > 5
    assert "1 recording of 1 could not be gone through as a whole" in capsys.readouterr().out


def test_a_save_that_never_returns_is_a_failure_and_not_only_a_refusal(tmp_path: Path) -> None:
    options = [*FIRST_SAVE, "--tier", "deaths", "--point", "kill/first-save/sync/1/3", "--timeout", "2"]
    status, report = crash(tmp_path, "careful.py:Blocks", *options)
    assert status == 1
    (drill,) = report["drills"]
    assert drill["is_blocked"]
    assert "did not return within 2 s" in drill["refusal"]


def test_an_error_of_the_suite_costs_one_recording_and_is_the_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(job: Job, place: Place) -> Result:
        if job.scenario == "steady":
            raise RuntimeError("the suite is wrong here")
        return explore(job, place)

    monkeypatch.setattr(command, "explore", broken)
    status, report = crash(tmp_path, "careful.py:DeletesFirst", *FIRST_SAVE, "--scenario", "steady")
    assert status == 3
    assert [bool(one["error"]) for one in report["recordings"]] == [False, True]
    said = capsys.readouterr().out
    assert "exit status 3: the suite itself failed" in said
    assert "ERROR OF THE SUITE (steady, sync)" in said


# -- what is explored -------------------------------------------------------------------


def test_every_mode_that_is_named_is_explored(tmp_path: Path) -> None:
    _, report = crash(tmp_path, "careless.py:Chosen", *FIRST_SAVE, "--mode", "sync", "--mode", "async")
    assert [one["mode"] for one in report["recordings"]] == ["sync", "async"]


@pytest.mark.parametrize("claims", ["sync,pointer,explicit", "-retention"])
def test_claims_decide_which_scenarios_suit(tmp_path: Path, claims: str, capsys: pytest.CaptureFixture[str]) -> None:
    scenario = ["--tier", "disks", "--scenario", "keep-one"]
    status, report = crash(tmp_path, "careful.py:Careful", *scenario)
    assert (status, len(report["recordings"])) == (0, 1)
    again = ["crash", "--impl", str(CAREFUL), "--out", str(tmp_path)]
    assert main([*again[:2], f"{CAREFUL}:Careful", *again[3:], *scenario, f"--claims={claims}"]) == 2
    assert "--scenario keep-one needs retention, which" in capsys.readouterr().err


def test_claims_are_part_of_the_command_that_repeats_a_failure(tmp_path: Path) -> None:
    claims = "--claims=+async,-retention"
    _, report = crash(tmp_path, "careful.py:DeletesFirst", "--point", "kill/resave/sync/1/10", claims, "--level=strict")
    assert [claims in cause["replay"] for cause in report["causes"]] == [True]


def test_a_claim_that_is_none_is_refused_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crash", "--impl", "no_such_module", "--claims", "sync,speed"]) == 2
    assert "--claims names speed, which is not a capability" in capsys.readouterr().err


def test_replay_scripts_that_can_not_be_written_do_not_lose_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "replay-one.py")
    monkeypatch.setattr("forge_conformance.report.crash.scripts", lambda report: {"replay-one.py": ""})
    status, report = crash(tmp_path, "careful.py:Careful", "--tier", "deaths", "--point", "kill/first-save/sync/1/3")
    assert status == Status.OUR_ERROR
    assert report["drills"]
    assert f"replay scripts are missing: {tmp_path}/replay-one.py can't be written" in capsys.readouterr().err
