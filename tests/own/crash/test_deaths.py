"""Deaths and failures of real processes: a right manager passes each kind, and each mistake is caught by its clause."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from forge_conformance.cli import main
from forge_conformance.commands import crash as command
from forge_conformance.deaths import full
from forge_conformance.deaths.drills import SITUATIONS, Drill, Drilled
from forge_conformance.deaths.failures import MAY_FAIL, NAMES
from forge_conformance.deaths.kinds import DEATHS
from forge_conformance.deaths.plan import DrillSelection, drilled, drills
from forge_conformance.deaths.small import REFUSED
from forge_conformance.judging.verdicts import Status
from forge_conformance.report import crash as report
from forge_conformance.runs.workplace import Manager, Place, workplace
from forge_spec.clauses import Level

from .conftest import CAREFUL, expect_numbers_to_agree, needs_recorder, reported

pytestmark = needs_recorder
CARELESS = CAREFUL.with_name("careless.py")
RANKED = CAREFUL.with_name("ranked.py")
FEW = DrillSelection(every=7)


Tries = Callable[..., Drilled]


@contextmanager
def place_of(impl: str, timeout_s: float = 20) -> Iterator[Place]:
    manager = Manager(impl, timeout_s=timeout_s)
    with workplace(manager) as place:
        yield place


def tried(impl: str, drill: Drill, selection: DrillSelection = FEW) -> Drilled:
    with place_of(impl) as place:
        return drilled(drill, place, selection)


@pytest.fixture(scope="module")
def tries() -> Iterator[Tries]:
    """One of the managers in `careless.py` goes through a drill; all share one server."""
    with place_of(f"{CARELESS}:Chosen", timeout_s=10) as place:

        def goes_through(name: str, drill: Drill, selection: DrillSelection = FEW) -> Drilled:
            place.folder.with_name("chosen").write_text(name)
            return drilled(drill, place, selection)

        yield goes_through


def found(result: Drilled) -> set[tuple[str, str]]:
    assert not result.refusal, result.refusal
    assert result.points
    return {(bad.verdict.word, bad.verdict.clause) for bad in result.bad}


# -- deaths -----------------------------------------------------------------------

ALONE = [name for name, death in DEATHS.items() if not death.is_of_several]


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("kind", ALONE)
def test_a_right_manager_survives_each_kind_of_death(tries: Tries, kind: str, mode: str) -> None:
    drill = Drill("deaths", kind, "steady", mode)
    if not DEATHS[kind].suits(drill):
        assert (kind, mode) == ("exit", "sync")
        return
    result = tries({"sync": "Careful", "async": "Background"}[mode], drill, DrillSelection(every=9))
    assert [bad.text for bad in result.bad] == []
    assert result.refusal == ""
    assert result.points >= 2


@pytest.mark.parametrize("situation", SITUATIONS)
def test_killed_at_each_operation_a_right_manager_comes_back(tries: Tries, situation: str) -> None:
    result = tries("Careful", Drill("deaths", "kill", situation, "sync"), DrillSelection())
    assert [bad.text for bad in result.bad] == []
    assert result.points > 12
    assert result.left_out == result.not_possible == 0


LETHAL = [
    ("InPlace", "kill", "resave", "sync", "refused", "commit.resave"),
    ("Mixes", "kill", "resave", "sync", "mixed", "commit.resave"),
    ("NeverAgain", "kill", "steady", "sync", "stuck", "resume.continue"),
    ("LosesAtTerm", "term", "steady", "sync", "stale", "resume.after-kill"),
    ("LosesAtExit", "term-exit", "steady", "sync", "stale", "resume.after-kill"),
    ("PointsFirst", "exit", "steady", "async", "refused", "resume.after-kill"),
    ("LosesFlight", "interrupt", "steady", "async", "stale", "interrupt.nothing-lost"),
    ("TakesItForAFailure", "interrupt", "steady", "sync", "unheard", "interrupt.reaches-caller"),
    ("SweepsAtLoad", "stop", "steady", "sync", "disturbed", "commit.sync"),
]


@pytest.mark.parametrize(("name", "kind", "situation", "mode", "word", "clause"), LETHAL, ids=[x[0] for x in LETHAL])
def test_each_mistake_in_dying_is_caught_by_its_clause(
    tries: Tries, name: str, kind: str, situation: str, mode: str, word: str, clause: str
) -> None:
    every = 1 if situation == "resave" else 3  # which has few points
    result = tries(name, Drill("deaths", kind, situation, mode), DrillSelection(every=every))
    assert (word, clause) in found(result)
    assert ("the other process had deleted .staged" in " ".join(result.bad[0].text.split())) == (kind == "stop")
    for bad in result.bad:
        expect_numbers_to_agree(bad.text)


@pytest.mark.parametrize(
    "drill", [Drill("deaths", "kill", "steady", "sync"), Drill("errors", "fail", "steady", "sync")]
)
def test_what_never_comes_back_is_told_once_and_is_not_the_fault_of_what_happened(tries: Tries, drill: Drill) -> None:
    result = tries("LosesOne", drill, DrillSelection(every=9))
    (changed,) = [bad for bad in result.bad if bad.verdict.word == "changed"]
    assert (changed.verdict.clause, changed.points) == ("resume.exact", 1)
    assert "1 item differing (buffer/" in changed.text
    assert "mixed" not in {bad.verdict.word for bad in result.bad}


def test_a_process_that_does_not_end_is_told(tries: Tries) -> None:
    result = tries("NeverEnds", Drill("deaths", "exit", "first-save", "async"), DrillSelection(every=99))
    assert found(result) == {("hung", "commit.exit")}
    assert "normal exit did not return within" in result.bad[0].text


def test_of_two_ranks_one_or_all_die() -> None:
    with place_of(f"{RANKED}:Ranked") as place:
        for kind in ("kill-all", "kill-one"):
            result = drilled(Drill("deaths", kind, "steady", "sync", 2), place, DrillSelection(every=9))
            assert found(result) == set()


def test_a_checkpoint_that_one_rank_is_missing_from_is_found() -> None:
    drill = Drill("deaths", "kill-one", "steady", "sync", 2)
    result = tried(f"{RANKED}:Hasty", drill, DrillSelection(every=4))
    assert ("refused", "resume.after-kill") in found(result)
    for bad in result.bad:
        expect_numbers_to_agree(bad.text)


# -- deaths in a row --------------------------------------------------------------------


AGAIN = Drill("deaths", "again", "steady", "sync")


def test_debris_that_piles_up_is_caught_and_named(tries: Tries) -> None:
    result = tries("Piles", AGAIN, DrillSelection(in_a_row=15))
    assert found(result) == {("piled", "retention.debris")}
    assert re.search(r"\.staged-\d, \.staged-\d", result.bad[0].text), "each directory of a dead save is named"
    expect_numbers_to_agree(result.bad[0].text)


def test_debris_that_is_told_of_may_stand(tries: Tries) -> None:
    assert found(tries("PilesAndSays", AGAIN, DrillSelection(in_a_row=15))) == set()


def test_a_right_manager_piles_nothing_up(tries: Tries) -> None:
    assert found(tries("Careful", AGAIN, DrillSelection(in_a_row=30))) == set()


# -- failing calls --------------------------------------------------------------------


def test_every_errno_is_tried_at_every_call_that_can_return_it(tries: Tries) -> None:
    result = tries("Careful", Drill("errors", "fail", "first-save", "sync"), DrillSelection())
    assert result.points > 30
    words = {bad.verdict.word for bad in result.bad}
    assert words == {"phantom"}, "Careful does not take back a commit whose last sync fails; all else is right"
    assert {name.split("/")[-1] for name in (bad.point for bad in result.bad)} <= set(NAMES)
    assert set(NAMES) == {"ENOSPC", "EIO", "EROFS", "EDQUOT"}
    assert all(MAY_FAIL.values())


FAILING = [
    ("Careful", "steady", "sync", "hard", "retention.failure-is-soft"),
    ("Swallows", "steady", "sync", "swallowed", "commit.failed-save"),
    ("SwallowsInBackground", "steady", "async", "swallowed", "commit.failed-flush"),
    ("ForEver", "steady", "sync", "repeated", "commit.failed-save"),
    ("Twice", "steady", "sync", "repeated", "commit.failed-save"),
    ("MakesRoom", "steady", "sync", "lost", "commit.failed-save"),
    ("GivesUp", "steady", "sync", "died", "commit.failed-save"),
]


@pytest.mark.parametrize(("name", "situation", "mode", "word", "clause"), FAILING, ids=[x[0] for x in FAILING])
def test_each_mistake_in_failing_is_caught_by_its_clause(
    tries: Tries, name: str, situation: str, mode: str, word: str, clause: str
) -> None:
    result = tries(name, Drill("errors", "fail", situation, mode), DrillSelection(every=4))
    for bad in result.bad:
        expect_numbers_to_agree(bad.text)
    assert (word, clause) in found(result)
    of_careful = {("hard", "retention.failure-is-soft"), ("phantom", clause)}
    assert found(result) <= {(word, clause), *of_careful}


@pytest.mark.parametrize(("name", "words"), [("Careful", set()), ("Swallows", {"swallowed"})])
def test_a_disk_that_is_really_full_and_then_has_room(
    tries: Tries, monkeypatch: pytest.MonkeyPatch, name: str, words: set[str]
) -> None:
    monkeypatch.setenv("CHOSEN", name)
    result = tries(name, Drill("errors", "full", "steady", "sync"), DrillSelection(every=5))
    if "can't be mounted here" in result.refusal:
        pytest.skip(result.refusal)
    assert found(result) == {(word, "commit.failed-save") for word in words}


# -- resumes that can't read ------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [("Careful", set()), ("StartsAnew", {"lost"}), ("PassesOver", {"stale"}), ("PassesOverAndSays", set())],
)
def test_a_resume_that_can_not_read_raises_or_says_what_it_passes_over(
    tries: Tries, name: str, words: set[str]
) -> None:
    result = tries(name, Drill("errors", "load", "steady", "sync"), DrillSelection(every=1))
    assert found(result) == {(word, "place.checked") for word in words}
    assert (result.left_out, result.not_possible) == (0, 0)
    assert result.points > 10
    for bad in result.bad:
        assert re.search(r"point load/steady/sync/1/\d+/(EIO|EACCES): \1", bad.text)


def test_a_resume_that_passes_over_the_only_checkpoint_starts_from_nothing(tries: Tries) -> None:
    result = tries("StartsAnew", Drill("errors", "load", "first-save", "sync"), DrillSelection(every=1))
    assert found(result) == {("lost", "place.checked")}


# -- bad input --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "drill", [Drill("deaths", "kill", "steady", "sync"), Drill("errors", "fail", "steady", "sync")]
)
def test_a_manager_that_leaves_no_trace_in_its_folder_is_told_where_it_wrote(tries: Tries, drill: Drill) -> None:
    result = tries("Elsewhere", drill)
    assert "without changing anything in the folder" in result.refusal
    assert "checkpoints-beside" in result.refusal
    assert result.points == 0


def test_a_manager_that_hangs_in_its_load_is_refused_with_where_it_stands(tries: Tries) -> None:
    result = tries("HangsInLoad", Drill("deaths", "kill", "steady", "sync"))
    assert "could not be brought about" in result.refusal
    assert "load(" in result.refusal
    assert "did not return within" in result.refusal
    assert "in find" in result.refusal


def test_files_beside_the_folder_are_told_of(tries: Tries) -> None:
    result = tries("WritesBeside", Drill("deaths", "kill", "first-save", "sync"))
    assert [Path(path).name for path in result.outside] == ["checkpoints.log"]
    assert found(result) == set()


@pytest.mark.usefixtures("cold")  # a server that has started already would see another disk
def test_a_manager_that_needs_more_disk_than_there_is_is_told_so(tmp_path: Path) -> None:
    small = [sys.executable, str(Path(full.__file__).with_name("small.py")), "/dev/shm", str(40 << 20)]
    options = ["--impl", f"{CARELESS}:Huge", "--tier", "disks", "--tier", "deaths", "--scenario", "steady"]
    command = [*small, sys.executable, "-m", "forge_conformance.cli", "crash", *options, "--out", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "TMPDIR": "/dev/shm"}
    )
    if done.returncode == REFUSED:
        pytest.skip(done.stderr)
    said = " ".join(done.stdout.split())
    assert done.returncode == 2, done.stdout + done.stderr
    assert "NOT EXPLORED (steady, sync): Scenario 'steady'" in said
    assert "NOT TRIED (kill/steady/sync/1):" in said
    assert said.count("No space left on device") > 1
    assert said.count("itself is full") > 1


# -- the command ------------------------------------------------------------------------


def test_a_bad_point_is_reported_and_its_replay_tries_it_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    impl = f"{CARELESS}:Swallows"
    options = ["--tier", "errors", "--scenario", "first-save", "--every", "5", "--out", str(tmp_path)]
    assert main(["crash", "--impl", impl, *options]) == 1
    said = capsys.readouterr().out
    assert "FAILED commit.failed-save: swallowed" in said
    assert "s a point" in said
    drill, loads = json.loads((tmp_path / "crash.json").read_text())["drills"]
    assert (loads["kind"], loads["bad"]) == ("load", [])
    (bad,) = drill["bad"]
    assert drill["points"] >= bad["points"] > 1
    assert bad["story"] in (tmp_path / "crash.html").read_text().replace("&#x27;", "'").replace("&gt;", ">")
    program, *arguments = bad["replay"].split()
    assert program == "forge-conformance"
    assert main([*arguments, "--out", str(tmp_path)]) == 1
    (drill,) = json.loads((tmp_path / "crash.json").read_text())["drills"]
    assert (drill["points"], [one["point"] for one in drill["bad"]]) == (1, [bad["point"]])


def test_one_point_replaces_no_exploration_unless_it_is_asked_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = Path("reports/crash/crash.json")
    few = ["--tier", "errors", "--scenario", "first-save", "--mode", "sync", "--every", "40"]
    assert main(["crash", "--impl", f"{CARELESS}:Swallows", *few]) == 1
    assert "is replaced" not in capsys.readouterr().err
    before = whole.read_bytes()
    (bad, *_) = json.loads(before)["drills"][0]["bad"]
    point = bad["replay"].split()[1:]
    assert main(point) == 1
    assert "is replaced" not in capsys.readouterr().err
    assert whole.read_bytes() == before
    assert json.loads(Path("reports/crash-point/crash.json").read_text())["asked"]["point"] == bad["point"]

    def killed(*_: Any) -> None:
        assert whole.read_bytes() == before
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(command, "drilled", killed)
        main([*point, "--out", "reports/crash"])
    assert "the complete report in reports/crash is replaced by one that covers less" in capsys.readouterr().err
    assert whole.read_bytes() == before


def test_an_exploration_of_less_says_what_it_replaces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["crash", "--impl", f"{CAREFUL}:Careful", "--tier", "errors", "--every", "99", "--out", str(tmp_path)]
    first = [*options, "--scenario", "first-save", "--mode", "sync"]
    main([*first, "--scenario", "resave"])
    main([*first, "--scenario", "resave"])
    assert "is replaced" not in capsys.readouterr().err
    main(first)
    assert f"the complete report in {tmp_path} is replaced by one that covers less" in capsys.readouterr().err


def test_a_manager_that_counts_the_steps_saves_one_again_after_a_rewind() -> None:
    drill = Drill("deaths", "kill", "resave", "sync")
    for name, words in (("CountsItsOwnSteps", set()), ("MixesItsOwnSteps", {("mixed", "commit.resave")})):
        assert found(tried(f"{CAREFUL}:{name}", drill, DrillSelection(every=2))) == words
    assert "loads no step that is named" in tried(f"{CAREFUL}:NamesNoStep", drill).refusal


def test_what_is_beyond_the_level_is_told_and_not_counted(tries: Tries) -> None:
    result = tries("Swallows", Drill("errors", "fail", "first-save", "sync"), DrillSelection(every=9))
    found = reported(result)
    assert {report.level_of(cause.example.verdict) for cause in found.causes} == {Level.STRICT}
    assert found.status == Status.PASSED


def test_a_point_that_does_not_exist_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    point = ["--point", "kill/first-save/sync/1/9999"]
    assert main(["crash", "--impl", f"{CAREFUL}:Careful", *point, "--out", str(tmp_path)]) == 2
    assert "There is no point kill/first-save/sync/1/9999" in " ".join(capsys.readouterr().out.split())


def test_only_what_a_manager_claims_is_drilled() -> None:
    alone = list(drills(["deaths", "errors"], list(SITUATIONS), ["sync"], frozenset({"sync"})))
    assert {drill.ranks for drill in alone} == {1}
    assert "exit" not in {drill.kind for drill in alone}
    assert [drill.situation for drill in alone if drill.kind == "load"] == ["first-save", "steady"]
    several = drills(["deaths"], ["steady"], ["async"], frozenset({"async", "distributed"}))
    assert {drill.kind for drill in several} == {*DEATHS, "again"}
