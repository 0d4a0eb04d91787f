"""The suite over several ranks: another honest manager passes, and whatever goes wrong on a rank is a verdict."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forge_conformance.runs.group import OnRank, Ranks, Shape, places, values
from forge_conformance.runs.process import Hung, Raised
from forge_conformance.runs.server import Server
from forge_fixtures import managers

RANKED = str(Path(managers.__file__).with_name("ranked.py"))
TWO = ("--ranks", "2")


@pytest.fixture(scope="module")
def ranked() -> Iterator[Server]:
    """A warm server for the honest manager."""
    server = Server(f"{RANKED}:Ranked", None, timeout_s=5)
    server.rehearse(["sync"], with_ranks=True)
    yield server
    server.close()


def started(server: Server, folder: Path, ranks: int = 2) -> Ranks:
    shape = Shape(ranks)
    world = Ranks(server, shape)
    values(world.outcomes("open", settings={"folder": str(folder)}, seed=0, place=places(server, shape)))
    return world


def test_a_manager_of_another_make_passes_what_it_claims_for_several_ranks(forge: Any) -> None:
    clauses = ("commit.rank-failure", "commit.same-step", "commit.groups-fit", "resume.rng-per-rank")
    ran = forge.run(f"{RANKED}:Ranked", *clauses, options=TWO)
    assert {clause: ran.verdicts[clause] for clause in clauses} == dict.fromkeys(clauses, "pass"), ran.said
    assert ran.status == 0


def test_a_rank_that_never_comes_back_is_a_failure_that_shows_where_each_stands(forge: Any) -> None:
    options = (*TWO, "--timeout", "3")
    ran = forge.run(f"{RANKED}:Stuck", "commit.inert", options=(*options, "--case", "saves/ranks-that-save-train*"))
    assert ran.status == 1
    assert "rank 0: returned" in ran.said
    assert "rank 1 does not reply; its threads are at:" in ran.said
    assert "wait_for_what_never_comes" in ran.said


def test_a_rank_that_ends_itself_is_named(forge: Any) -> None:
    options = (*TWO, "--timeout", "5", "--case", "resumes/each-rank*")
    ran = forge.run(f"{RANKED}:Deserter", "resume.rng-per-rank", options=options)
    assert ran.status == 1
    assert "On rank 1 of 2: The process ended by itself (exit status 3)" in ran.said


def test_a_rank_that_waits_for_a_dead_one_without_end_is_a_failure_of_what_it_has_to_hear(forge: Any) -> None:
    options = (*TWO, "--timeout", "3", "--case", "deaths/killed-at-random-operations-of-synchronous*")
    ran = forge.run(f"{RANKED}:Faithful", "commit.rank-failure", options=options)
    assert ran.verdicts["commit.rank-failure"] == "fail", ran.said
    assert "every other rank to come to an end when rank" in ran.said


def test_ranks_that_look_for_themselves_disagree(forge: Any, tmp_path: Path) -> None:
    server = Server(f"{RANKED}:Soloist", None, timeout_s=5)
    try:
        world = started(server, tmp_path)
        world.together("save", step=0, extra=None, parts=["scheduler", "dataloader"])
        world.kill()
        again = started(server, tmp_path)
        (tmp_path / "at-0").rename(tmp_path / "gone")
        again.begin("load", on=[0], path=None, exclude=[], freeze_expected=None, parts=[])
        (fresh,) = values(again.ends())
        assert (fresh["step"], fresh["tokens_seen"]) == (0, 0)
        again.kill()
    finally:
        server.close()


def test_one_rank_alone_sees_the_directory_that_is_laid_over_the_folder(ranked: Server, tmp_path: Path) -> None:
    folder, view = tmp_path / "folder", tmp_path / "view"
    folder.mkdir()
    view.mkdir()
    (view / "at-7").mkdir()
    (view / "at-7" / "rank-0.pt").touch()
    first, second = ranked.spawn(), ranked.spawn()
    try:
        second.call("see", instead=str(view), of=str(folder))
    except Raised as refusal:
        pytest.skip(f"no process may mount anything here: {refusal.message}")
    assert list(folder.iterdir()) == []
    for worker, seed in ((first, 0), (second, 1)):
        worker.open({"folder": str(folder)}, seed)
    assert first.load().is_fresh
    with pytest.raises(Exception, match=r"at-7/rank-0\.pt|EOFError"):
        second.load()
    first.kill()
    second.kill()


def test_ranks_that_are_killed_together_are_gone_together(ranked: Server, tmp_path: Path) -> None:
    world = started(ranked, tmp_path, 4)
    world.kill([1, 2])
    assert world.living == [0, 3]
    world.kill()
    assert world.living == []


def test_a_command_that_fails_on_some_ranks_says_on_which(ranked: Server, tmp_path: Path) -> None:
    world = started(ranked, tmp_path, 4)
    outcomes = world.outcomes(
        "save", step=0, extra=lambda rank: "{'step': 1}" if rank > 1 else None, parts=[], on=[2, 3]
    )
    assert [outcome.rank for outcome in outcomes] == [2, 3]
    with pytest.raises(OnRank, match=r"On rank 2 of 2: .*reserved key step(.|\n)*-- and rank 3: "):
        values(outcomes)
    world.kill()


def test_a_command_that_comes_to_nothing_ends_with_every_stack_and_no_process(ranked: Server, tmp_path: Path) -> None:
    world = started(ranked, tmp_path)
    world.begin("save", on=[0], step=0, extra=None, parts=[])
    with pytest.raises(Hung, match=r"(?s)rank 0 does not reply.*all_gather_object"):
        world.ends()
    assert world.living == []


@pytest.mark.parametrize("ranks", ["0", "1", "two", "2,,4", "65"])
def test_a_number_of_ranks_that_is_none_is_refused_with_the_way_out(forge: Any, ranks: str) -> None:
    ran = forge("run", "--impl", "honest.py", "--ranks", ranks)
    assert ran.status == 2
    assert "is not a number of ranks from 2 to 64; write 2,4 or none" in ran.said


def test_without_ranks_their_clauses_are_unreached_and_never_passed(forge: Any) -> None:
    ran = forge.run(f"{RANKED}:Ranked", "resume.rng-per-rank", options=("--ranks", "none"))
    assert ran.verdicts == {"resume.rng-per-rank": "unreached"}
    assert ran.status == 2


def test_a_gpu_that_is_not_there_is_a_refusal(forge: Any) -> None:
    ran = forge("run", "--impl", f"{RANKED}:Ranked", "--device", "cuda", environment={"CUDA_VISIBLE_DEVICES": ""})
    assert ran.status == 2
    assert "--device cuda: the torch of" in ran.said
    assert "sees no GPU here" in ran.said
