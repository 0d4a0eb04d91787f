"""Several ranks: real processes over gloo, real files, real disk errors, real deaths."""

import itertools
import math
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_foreign, names
from rank_workers import PATIENCE, Error, World, worlds
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from forge_ref import channel

Start = Callable[..., World]
MODES = pytest.mark.parametrize("mode", ["disabled", "async"])
SHORT = 3  # seconds that a rank waits for the others, where some never answer
LONG = 100 * PATIENCE  # the same where it must not come to that


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with worlds(tmp_path) as starter:
        yield starter


def everywhere(found: list[Any], kind: str, *says: str) -> None:
    """Every rank raised this, and in the same words."""
    assert found and all(isinstance(error, Error) for error in found), found
    assert {error.kind for error in found} == {kind}, found
    assert len({error.text for error in found}) == 1, found
    for words in says:
        assert words in found[0].text


def lost(found: list[Any], world: World, survivors: int) -> None:
    """All but the dead ranks know of it."""
    assert [error.kind for error in found] == ["RanksLostError"] * len(world.alive) == ["RanksLostError"] * survivors


def saved(world: World, step: int, **arguments: Any) -> list[Any]:
    """What a save raises on each rank, at once or when it is waited for."""
    return [now or later for now, later in zip(world("save", step, **arguments), world("wait"), strict=True)]


# -- what is saved comes back -------------------------------------------------


@MODES
@pytest.mark.parametrize(("kind", "size"), [("fsdp", 2), ("ddp", 2), ("tp", 2), ("fsdp", 4), ("2d", 4), ("pipe2", 4)])
def test_a_resumed_run_equals_the_uninterrupted_one(start: Start, kind: str, size: int, mode: str) -> None:
    run = start(size, kind, async_mode=mode)
    run("train", 2)
    assert run("save", 2, extra={"phase": 3}) == [None] * size
    losses = run("train", 2)
    assert run("wait") == [None] * size
    resumed = start(size, kind)
    assert resumed("peek") == [2] * size
    assert resumed("load") == [(2, 20, {"phase": 3})] * size
    assert resumed("position") == [100 * rank + 2 for rank in range(size)]
    assert resumed("train", 2) == losses
    assert resumed("digest") == run("digest")
    shards = ["pp0", "pp1"] if kind == "pipe2" else [".metadata", *(f"__{rank}_0.distcp" for rank in range(size))]
    assert names(run.folder) == ["latest", "step_2"]
    assert names(run.folder / "step_2") == sorted([*shards, "metadata.json", "train_state.pt"])


@pytest.mark.parametrize("kinds", [["fsdp"] * 4, ["ddp"] * 4, ["ddp", "fsdp", "same", "ddp"]], ids="-".join)
def test_the_number_of_ranks_may_change(start: Start, kinds: list[str]) -> None:
    values = ""
    for step, (size, kind) in enumerate(zip((4, 2, 1, 4), kinds, strict=True)):
        run = start(size, kind)
        if step == 0:
            run("train", 2)
            values = run("whole")[0]
        else:
            assert run("load") == [(step - 1, 10 * (step - 1), {})] * size
        assert run("whole") == [values] * size
        assert run("save", step) == [None] * size


@MODES
def test_a_second_run_is_refused_on_every_rank_and_the_first_one_too_when_it_was_taken_over(
    start: Start, mode: str
) -> None:
    run, other, third = start(2, async_mode=mode), start(2, async_mode=mode), start(1)
    assert saved(run, 1) == [None] * 2
    assert other("open", take_over=False) == [None] * 2
    everywhere(saved(other, 2), "FolderInUseError", "rank 0: ", "is in use: process ", "take_over=True")
    assert names(run.folder) == ["latest", "step_1"]
    assert third("load") == [(1, 10, {})], "to read is free"
    assert saved(third, 3) == [None]
    everywhere(saved(run, 4), "FolderInUseError", "rank 0: ", "was taken over: process ")
    assert names(run.folder) == ["latest", "step_1", "step_3"]


def test_a_resave_by_fewer_ranks_leaves_nothing_of_the_others(start: Start) -> None:
    run, fewer = start(4), start(2)
    run("save", 1)
    assert fewer("load") == [(1, 10, {})] * 2
    assert saved(fewer, 1) == [None] * 2
    assert names(run.folder) == ["latest", "step_1"]
    assert [name for name in names(run.folder / "step_1") if "distcp" in name] == ["__0_0.distcp", "__1_0.distcp"]


def test_streams_follow_their_rank_and_new_ranks_get_their_own(start: Start) -> None:
    run = start(2)
    run("train", 1)
    run("save", 1)
    own = run("draws")
    assert own[0] != own[1]
    more, again = (start(4) for _ in range(2))
    assert more("load") == [(1, 10, {})] * 4
    draws = more("draws")
    assert draws[:2] == own
    assert len(set(map(tuple, draws))) == 4
    again("load")
    assert again("draws") == draws
    assert more("position") == [1, 101, 1, 1]


def test_stock_dcp_reads_it(start: Start, tmp_path: Path) -> None:
    run = start(2)
    run("train", 1)
    run("save", 1)
    dcp_to_torch_save(run.folder / "step_1", tmp_path / "all.pt")
    read = torch.load(tmp_path / "all.pt", weights_only=True)
    assert read["model"]["0.weight"].shape == read["optimizer"]["state"]["0.weight"]["exp_avg"].shape == (7, 6)
    assert run("export", str(tmp_path / "weights.pt")) == [None, None]
    exported = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert torch.equal(exported["0.weight"], read["model"]["0.weight"].to(torch.bfloat16))


@pytest.mark.parametrize("kind", ["fsdp", "pipe2"])
def test_saves_back_to_back_do_not_meet_each_other_or_training(start: Start, kind: str) -> None:
    run, steps = start(4, kind, async_mode="async", keep_last_n=2), list(range(12))
    losses = run("save_often", steps)
    assert all(isinstance(found, list) for found in losses), losses
    assert names(run.folder) == ["latest", "step_10", "step_11"]


def test_a_save_takes_four_collectives_and_a_load_two(start: Start) -> None:
    run, size, each = start(8, "pipe2", async_mode="async"), 8, 4
    run("train", 1)
    begun = run("counts")
    to_begin = 3  # they compare the groups they were given, check their arguments, and hear of the folder
    assert [calls["collectives"] for calls, *_ in begun] == [to_begin] * size
    assert saved(run, 1) == [None] * size
    after_first = run("counts")
    assert saved(run, 2) == [None] * size
    after = run("counts")
    run("load")
    loaded = run("counts")
    for rank in range(size):
        calls, flushes, writers = (now - before for now, before in zip(after[rank], after_first[rank], strict=True))
        read, *unchanged = (now - before for now, before in zip(loaded[rank], after[rank], strict=True))
        assert [calls["collectives"], flushes["collectives"], writers["collectives"]] == [1, 1, 2]
        assert [read["collectives"], *unchanged] == [2, Counter(), Counter()]
        neighbours = len(channel.children(rank, size)) + (rank > 0)
        for count in (calls, flushes):
            assert count["sent"] == count["received"] == neighbours <= math.log2(size)
        place = rank % each
        of_stage = len(channel.children(place, each)) + (place > 0)
        assert 2 * of_stage <= writers["sent"] <= 4 * of_stage <= 4 * math.log2(each)


def test_the_folder_is_the_one_that_rank_0_means(start: Start, tmp_path: Path) -> None:
    run = start(2)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    run.each("configure", [((str(tmp_path / name),), {"dir": "run"}) for name in ("a", "b")])
    assert run("open") == [None, None]
    run("train", 1)
    assert saved(run, 1) == [None, None]
    assert names(tmp_path / "a" / "run") == ["latest", "step_1"]
    assert names(tmp_path / "b") == []


def test_what_one_rank_refuses_is_refused_by_all_of_them(start: Start, tmp_path: Path) -> None:
    run, here = start(2), str(tmp_path)
    (tmp_path / "file").write_text("")
    run("configure", here, dir="file")
    everywhere(run("open"), "NotADirectoryError", "rank 0: dir is", "is not a directory")
    run("configure", here, dir="run")
    run.on(1, "configure", here, keep_last_n="2")
    everywhere(run("open"), "TypeError", "rank 1: keep_last_n is '2'")
    run("configure", here, keep_last_n=2)
    assert run("open") == [None, None]


def test_only_rank_0_touches_more_than_the_shards(start: Start) -> None:
    run = start(8)
    run("train", 1)
    at_save, at_load = run("touched", "save", 1), run("touched", "load")
    assert {"latest", "metadata.json", "step_1"} <= {*at_save[0], *at_load[0]}
    for rank in range(1, 8):
        assert at_save[rank] == [f"__{rank}_0.distcp"]
        assert at_load[rank] == [".metadata", "__0_0.distcp", f"__{rank}_0.distcp"]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 1000, 16000])
def test_the_tree_reaches_every_rank_once_and_nobody_has_many_neighbours(size: int) -> None:
    below = {rank: channel.children(rank, size) for rank in range(size)}
    assert sorted(itertools.chain.from_iterable(below.values())) == list(range(1, size))
    assert all(channel.parent(child) == rank < child for rank, found in below.items() for child in found)
    assert max(map(len, below.values())) == math.ceil(math.log2(size))


# -- one rank fails -----------------------------------------------------------


@MODES
@pytest.mark.parametrize(("kind", "size", "failing"), [("fsdp", 2, 1), ("ddp", 2, 0), ("pipe2", 4, 3), ("pipe2", 4, 0)])
def test_a_full_disk_on_one_rank_fails_the_save_of_all(
    start: Start, kind: str, size: int, failing: int, mode: str
) -> None:
    run = start(size, kind, async_mode=mode)
    run("train", 1)
    assert saved(run, 1) == [None] * size
    run.on(failing, "limit_files", 700)
    everywhere(saved(run, 2), "SaveError", "step 2", "nothing was committed", f"rank {failing}")
    assert names(run.folder) == ["latest", "step_1"]
    run.on(failing, "limit_files", -1)
    assert run("wait") == [None] * size
    assert saved(run, 3) == [None] * size
    assert os.readlink(run.folder / "latest") == "step_3"
    assert run("load") == [(3, 30, {})] * size


@pytest.mark.parametrize("kind", ["same", "pipe2"])
def test_a_rank_that_fails_beside_its_shards_fails_the_save_of_all_at_once(start: Start, kind: str) -> None:
    run = start(4, kind, timeout=LONG)
    run.on(3, "refuse_what_is_beside", OSError)
    everywhere(saved(run, 1), "SaveError", "OSError: rank 3: no more files")
    assert run("open") == [None] * 4
    assert saved(run, 1) == [None] * 4


@pytest.mark.parametrize("kind", ["same", "pipe2"])
def test_an_exit_in_the_middle_of_the_shards_leaves_no_rank_waiting(start: Start, kind: str) -> None:
    run = start(4, kind, timeout=LONG)
    run.on(3, "refuse_shards", SystemExit)
    *others, exiting = run("save", 1)
    everywhere(others, "SaveError", "rank 3: SystemExit: no more shards")
    assert exiting.kind == "SystemExit"


def test_an_exit_in_the_commit_leaves_no_rank_waiting(start: Start) -> None:
    run = start(2, timeout=LONG)
    run.on(0, "refuse_to_commit", SystemExit)
    exiting, other = run("save", 1)
    assert exiting.kind == "SystemExit"
    everywhere([other], "SaveError", "rank 0: SystemExit: no commit")


@MODES
def test_what_one_rank_refuses_is_refused_by_all_at_once(start: Start, mode: str) -> None:
    run = start(2, async_mode=mode)
    run("save", 1)
    before = run("digest")
    everywhere(run.each("save", [((2,), {}), ((2,), {"extra": {"rng": 0}})]), "ValueError", "rank 1", "reserved", "rng")
    everywhere(run.each("save", [((-2,), {}), ((2,), {})]), "ValueError", "rank 0", "step is -2")
    run.on(1, "loader_refuses")
    everywhere(run("save", 2), "LookupError", "rank 1", "this loader refuses")
    everywhere(run("load"), "LookupError", "rank 1", "this loader refuses")
    run.on(1, "loader_refuses", False)
    differing = run.each("save", [((4,), {}), ((5,), {})])
    assert [error.kind for error in differing] == ["ValueError"] * 2
    assert all("from 4 to 5" in error.text for error in differing)
    assert run("wait") == [None, None]
    assert names(run.folder) == ["latest", "step_1"]
    assert run("digest") == before
    assert saved(run, 2) == [None, None]
    assert names(run.folder) == ["latest", "step_1", "step_2"]


@pytest.mark.parametrize("failing", [[3], [3, 2], [1, 2, 3], [0, 3]])
def test_of_several_failures_all_hear_of_the_lowest_ranks(start: Start, failing: list[int]) -> None:
    run = start(4)
    run("save", 1)
    before = run("digest", loader=False)
    for rank in failing:
        run.on(rank, "loader_refuses")
    for method in (partial(run, "save", 2), partial(run, "load")):
        everywhere(method(), "LookupError", f"rank {min(failing)}: this loader refuses")
    assert names(run.folder) == ["latest", "step_1"]
    assert run("digest", loader=False) == before


@MODES
def test_a_state_that_can_not_be_saved_is_refused_by_all(start: Start, mode: str) -> None:
    run = start(2, async_mode=mode)
    run.on(1, "hold_something_odd") if mode == "async" else run("hold_something_odd")
    everywhere(saved(run, 1), "ValueError", "optimizer.param_groups.0.odd can't be saved", "too odd")
    assert names(run.folder) == []
    run.on(1, "hold_nothing_odd") if mode == "async" else run("hold_nothing_odd")
    assert saved(run, 1) == [None, None]


def test_a_checkpointer_alone_saves_with_a_group(start: Start, tmp_path: Path) -> None:
    run = start(2)
    assert run("save_alone", str(tmp_path / "alone")) == [None, None]
    dcp_to_torch_save(tmp_path / "alone", tmp_path / "all.pt")
    run.on(1, "limit_files", 700)
    found = run("save_alone", str(tmp_path / "again"))
    everywhere(found, found[0].kind, "rank 1")  # of which kind depends on which of torch's writers met it


def test_a_name_that_is_taken_is_refused_by_all(start: Start) -> None:
    run = start(2)
    run.folder.mkdir()
    (run.folder / "latest").mkdir()
    everywhere(run("save", 1), "FileExistsError", "rank 0", "latest is not a symlink")
    assert names(run.folder) == ["latest"]


def test_damage_is_raised_by_all_before_anything_changes(start: Start) -> None:
    run = start(2)
    run("train", 1)
    run("save", 1)
    run("train", 1)
    before = run("digest", loader=False)
    for name in ("__1_0.distcp", ".metadata", "train_state.pt"):
        file = run.folder / "step_1" / name
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) // 2))
        everywhere(run("load"), "DamagedError", "rank ", name)
        file.write_bytes(whole)
    assert run("digest", loader=False) == before
    assert run("load") == [(1, 10, {})] * 2


def test_a_rank_that_is_refused_a_file_refuses_for_all(start: Start) -> None:
    run = start(2)
    run("train", 1)
    run("save", 1)
    run("train", 1)
    before = run("digest", loader=False)
    shard = run.folder / "step_1" / "__1_0.distcp"
    shard.rename(shard.with_suffix(".away"))
    shard.symlink_to(shard.with_suffix(".away"))
    everywhere(run("load"), "PermissionError", "rank ", "is a symlink")
    shard.unlink()
    everywhere(run("load"), "DamagedError", "rank ", "__1_0.distcp is missing")
    shard.with_suffix(".away").rename(shard)
    everywhere(run("load", "nowhere"), "FileNotFoundError", "rank 0", "nowhere")
    everywhere(
        run.each("load", [((), {}), ((), {"exclude_keys": ["weights"]})]), "ValueError", "rank 1", "exclude_keys"
    )
    assert run("digest", loader=False) == before


def test_ranks_land_on_what_rank_0_sees(start: Start, tmp_path: Path) -> None:
    run = start(2)
    run("train", 1)
    run("save", 1)
    run.on(1, "look_elsewhere", str(tmp_path / "empty"))
    assert run("peek") == [1, 1]
    assert run("load") == [(1, 10, {})] * 2
    assert saved(run, 2) != [None, None]  # rank 1 has no directory to write to, and nobody makes it one
    run.on(1, "look_elsewhere", str(run.folder))
    run.on(0, "look_elsewhere", str(tmp_path / "empty"))
    assert run("peek") == [None, None]
    assert run("load") == [(0, 0, {})] * 2


# -- a rank dies --------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "size", "dying", "mode"),
    [("fsdp", 4, 2, "async"), ("pipe2", 4, 3, "disabled"), ("fsdp", 2, 0, "async"), ("pipe2", 8, 0, "async")],
)
def test_a_rank_that_dies_while_it_writes_takes_the_save_with_it(
    start: Start, kind: str, size: int, dying: int, mode: str
) -> None:
    run = start(size, kind, async_mode=mode, timeout=LONG)
    run("train", 1)
    assert saved(run, 1) == [None] * size
    run.on(dying, "limit_files", 700, deadly=True)
    found = [error for error in (*run("save", 2), *run("wait")) if error is not None]
    lost(found, run, size - 1)
    assert os.readlink(run.folder / "latest") == "step_1"
    assert "step_2" not in names(run.folder)
    again = start(size, kind)  # as torchrun starts the job again
    assert again("load") == [(1, 10, {})] * size
    assert saved(again, 2) == [None] * size
    assert names(run.folder) == ["latest", "step_1", "step_2"]


@pytest.mark.parametrize("method", ["save", "load"])
@pytest.mark.parametrize(("size", "dying"), [(4, 3), (4, 2), (4, 0), (8, 7), (8, 4), (8, 0)])
def test_a_death_is_known_to_all_long_before_the_timeout(start: Start, size: int, dying: int, method: str) -> None:
    run = start(size, "ddp", timeout=LONG)
    assert saved(run, 1) == [None] * size
    run.on(dying, "loader_kills")
    lost(run(method, *([2] if method == "save" else [])), run, size - 1)
    lost(run("load"), run, size - 1)
    assert [name for name in names(run.folder) if not name.startswith(".")] == ["latest", "step_1"]


def test_a_rank_that_is_killed_or_stands_still_is_not_waited_for(start: Start) -> None:
    for number in (signal.SIGKILL, signal.SIGSTOP):
        run = start(2, timeout=SHORT)
        assert saved(run, 1) == [None, None]
        run.kill(1, number)
        assert [error.kind for error in run("save", 2)] == ["RanksLostError"]
        assert names(run.folder) == ["latest", "step_1"]
        run.begin("load", [((), {})] * 2)
        assert [error.kind for error in run.results()] == ["RanksLostError"]


@MODES
def test_an_interrupt_in_a_wait_leaves_no_rank_in_a_collective(start: Start, mode: str) -> None:
    run = start(2, timeout=SHORT, async_mode=mode)
    assert run("save", 1) == [None] * 2
    assert run("interrupted", "wait", "save", 2) == ["interrupted", None]
    assert run("interrupted", "settle", "peek") == ["interrupted", 2]
    assert run("interrupted", "settle", "load") == ["interrupted", (2, 20, {})]
    assert run("wait") == [None] * 2
    assert names(run.folder) == ["latest", "step_1", "step_2"]


# -- who shares what ----------------------------------------------------------


def test_groups_that_do_not_fit_are_refused_by_all(start: Start) -> None:
    run = start(4, "ddp", opened=False)
    for groups, stages, says in [
        ([[0, 1]], [None] * 4, "ranks [2, 3] of 4 have pp_rank None and no process_group with them in it"),
        ([[0, 1], [2, 3]], [None] * 4, "give each its own"),
        ([[0, 1], [2, 3]], [0, 0, 2, 2], "pp_rank [0, 2]"),
        ([[0, 1], [2, 3]], [0, 1, 1, 1], "ranks [0] of 4 have pp_rank 0 and a process_group of 2 ranks"),
        ([[0, 1, 2, 3]], [0, 0, 1, 1], "ranks [0, 1] of 4 have pp_rank 0 and a process_group of 4 ranks"),
    ]:
        everywhere(run.each("open_with_groups", [((groups, stage), {}) for stage in stages]), "ValueError", says)
    one_negative = [(([[0, 1], [2, 3]], stage), {}) for stage in (0, 0, 1, -1)]
    everywhere(run.each("open_with_groups", one_negative), "ValueError", "rank 3", "pp_rank is -1")
    alone = "ranks [0, 1, 2, 3] of 4 have pp_rank 0 and no process_group with them in it"
    everywhere(run("open", process_group=None, pp_rank=0), "ValueError", alone)
    assert not run.folder.exists()
    assert run.each("open_with_groups", [(([[0, 1], [2, 3]], stage), {}) for stage in (1, 1, 0, 0)]) == [None] * 4
    assert saved(run, 1) == [None] * 4
    assert names(run.folder / "step_1") == ["metadata.json", "pp0", "pp1", "train_state.pt"]
    assert run("load") == [(1, 10, {})] * 4


def test_stages_have_to_fit_the_checkpoint(start: Start) -> None:
    run, flat = start(4, "pipe2"), start(2, "fsdp")
    for step in (1, 2):
        run("train", 1)
        assert saved(run, step) == [None] * 4
    before, flat_before = run("digest"), flat("digest")
    everywhere(flat("load"), "ValueError", "rank 0", "has the pipeline stages pp0, pp1, and this run has none")
    assert flat("digest") == flat_before
    assert saved(flat, 0) == [None] * 2
    everywhere(run("load", str(run.folder / "step_0")), "ValueError", "has no pipeline stages, and this run has 2")
    shutil.rmtree(run.folder / "step_2" / "pp1")
    shutil.copytree(run.folder / "step_1" / "pp1", run.folder / "step_2" / "pp1")
    everywhere(run("load", str(run.folder / "step_2")), "DamagedError", "rank 2", "of another save")
    assert run("digest") == before
    shutil.rmtree(run.folder / "step_2" / "pp1")
    everywhere(run("load", str(run.folder / "step_2")), "FileNotFoundError", "pp1")
    shutil.rmtree(run.folder / "step_0")
    assert run("load") == [(1, 10, {})] * 4


def test_a_stage_that_nothing_tells_of_is_missed_all_the_same(start: Start) -> None:
    run = start(2, "pipe2")
    for step in (1, 2):
        assert saved(run, step) == [None] * 2
    make_foreign(run.folder / "step_2", '{"step": 2}')
    assert run("peek") == [2, 2]
    shutil.rmtree(run.folder / "step_2" / "pp1")
    assert run("peek") == [1, 1]
    assert run("load") == [(1, 10, {})] * 2


def test_pipeline_replicas_may_come_and_go(start: Start) -> None:
    run = start(4, "pipe2")
    run("train", 2)
    run("save", 2)
    fewer = start(2, "pipe2")
    assert fewer("load") == [(2, 20, {})] * 2
    assert fewer("whole") == run("whole")[::2]
    assert saved(fewer, 3) == [None] * 2
    more = start(4, "pipe2")
    assert more("load") == [(3, 30, {})] * 4
    assert more("whole") == run("whole")


# -- hooks of a run that is not ours --------------------------------------------


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("failing", [0, 1])
def test_a_save_that_raises_on_one_rank_of_a_run_that_is_not_ours_raises_on_all(
    start: Start, is_async: bool, failing: int
) -> None:
    world = start(2, "same", opened=False)
    assert world("begin_hooks", is_async) == [None, None]
    assert world("batch", 1) == [is_async, is_async]
    everywhere(world("batch", 2, failing, is_late=True), "LookupError", f"rank {failing}: this rank refuses")
    assert world("batch", 3) == [is_async, is_async]  # which waits for the flush of step 2 where there is one
    ended = world("end_hooks")
    assert ended[0] == ended[1]
    assert {"step1", "step3"} <= set(ended[0])
