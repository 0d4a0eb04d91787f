"""The manager on real folders: corners that a black-box suite can't reach or would not know to look for."""

import errno
import itertools
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_foreign, names

import forge_ref
from forge_ref import (
    CheckpointConfig,
    CheckpointManager,
    DamagedError,
    DynamicCheckpointWindow,
    SaveError,
    layout,
    publish,
)

Start = Callable[..., Any]
Same = Callable[[Any, Any], bool]
MODES = pytest.mark.parametrize("mode", ["disabled", "async", "async_with_pinned_mem"])


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".writer"}


@MODES
@pytest.mark.parametrize("steps", [0, 3])
def test_a_resumed_run_equals_the_uninterrupted_one(start: Start, mode: str, steps: int) -> None:
    run, resumed = start(async_mode=mode), start(seed=1)
    run.train(steps)
    run.save(steps, extra={"odd": (1, {2}, b"3", frozenset({4}))})
    losses = run.train(4)
    run.manager.wait()
    assert resumed.load() == (steps, 10 * steps, {"odd": (1, {2}, b"3", frozenset({4}))})
    assert resumed.loader.position == steps
    assert resumed.train(4) == losses


@MODES
@pytest.mark.parametrize("steps", [0, 3])
def test_saving_leaves_no_trace(start: Start, equal: Same, mode: str, steps: int) -> None:
    run = start(async_mode=mode)
    run.train(steps)
    before = run.picture()
    run.save(steps)
    run.manager.wait()
    assert equal(run.picture(), before)
    assert len(run.optimizer.state) == (6 if steps else 0)


def test_a_stateless_optimizer_is_not_stepped_by_a_save(start: Start) -> None:
    run = start()
    run.optimizer = run.manager.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.1)
    calls = []
    run.optimizer.register_step_pre_hook(lambda *_: calls.append(1))
    run.manager.save(0)
    run.manager.load()
    assert calls == []


def test_parameters_frozen_later_keep_their_moments(start: Start, equal: Same) -> None:
    run, resumed = start(), start(seed=1)
    run.train(2)
    for each in (run, resumed):
        each.model[0].weight.requires_grad_(False)
    run.save(2)
    resumed.load()
    assert equal(resumed.picture()["moments"], run.picture()["moments"])


def test_moments_come_back_in_their_own_precision(start: Start) -> None:
    run, resumed = start(), start(seed=1)
    for each in (run, resumed):
        each.model.to(torch.bfloat16)
    run.save(0)
    parameter = run.model[0].weight
    run.optimizer.state[parameter] = {
        "step": torch.tensor(1.0),
        "exp_avg": torch.full_like(parameter, 1 / 3).float() / 7,
    }
    run.save(1)
    resumed.load()
    moment = resumed.optimizer.state[resumed.model[0].weight]["exp_avg"]
    assert torch.equal(moment, run.optimizer.state[parameter]["exp_avg"])


def test_groups_without_parameters_keep_what_is_theirs(start: Start) -> None:
    run, resumed = start(), start(seed=1)
    for each in (run, resumed):
        each.optimizer.add_param_group({"params": []})
        each.optimizer.add_param_group({"params": []})
    for group, rate in zip(run.optimizer.param_groups, (0.1, 0.2, 0.3, 0.4), strict=True):
        group["lr"] = rate
    run.save(1)
    resumed.load()
    assert [group["lr"] for group in resumed.optimizer.param_groups] == [0.1, 0.2, 0.3, 0.4]


def test_weights_of_another_type_are_refused_by_a_resume(start: Start, equal: Same) -> None:
    start().save(1)
    resumed = start(seed=1)
    resumed.model.to(torch.bfloat16)
    before = resumed.picture()
    with pytest.raises(ValueError, match=r"other types than the model.*saved torch.float32, model torch.bfloat16"):
        resumed.load()
    assert equal(resumed.picture(), before)


def test_imported_weights_of_another_type_are_cast_and_that_is_said(start: Start, caplog: Any) -> None:
    run = start()
    run.save(1)
    (run.folder / "step_1" / "train_state.pt").unlink()
    resumed = start(seed=1)
    resumed.model.to(torch.bfloat16)
    assert resumed.load(run.folder / "step_1")[0] == 0
    assert torch.equal(resumed.model[0].weight, run.model[0].weight.to(torch.bfloat16))
    assert "cast to the types of the model" in caplog.text


def test_what_an_extra_calls_like_an_excluded_part_comes_back(start: Start) -> None:
    extra = {"model": "tiny", "optimizer": "adamw"}
    start().save(1, extra=extra)
    assert start(seed=1).load(exclude_keys=["model", "optimizer", "scheduler"])[2] == extra


_KINDS = {"model": "parameters", "optimizer": "moments", "scheduler": "scheduler", "dataloader": "loader", "rng": "rng"}


@pytest.mark.parametrize("excluded", _KINDS)
@pytest.mark.parametrize("by", ["exclude_keys", "exclude_from_loading"])
def test_what_is_excluded_stays(start: Start, equal: Same, excluded: str, by: str) -> None:
    run = start()
    run.train(3)
    run.save(3)
    saved, resumed = run.picture(), start(seed=1, **{by: [excluded]} if by == "exclude_from_loading" else {})
    before = resumed.picture()
    assert resumed.load(**{by: [excluded]} if by == "exclude_keys" else {})[0] == 3
    after = resumed.picture()
    for part, kind in _KINDS.items():
        assert equal(after[kind], (before if part == excluded else saved)[kind]), kind


def test_a_part_that_can_not_be_excluded_is_refused(start: Start) -> None:
    with pytest.raises(ValueError, match=r"exclude_keys names \['weights'\].*model"):
        start().load(exclude_keys=["weights"])


@MODES
def test_a_failed_save_is_told_once_and_leaves_nothing(start: Start, mode: str) -> None:
    run = start(async_mode=mode)
    run.save(1)
    run.manager.wait()
    with _files_limited_to(1000), pytest.raises(SaveError, match="step 2"):
        run.save(2)
        run.manager.wait()
    run.manager.wait()
    assert names(run.folder) == ["latest", "step_1"]
    run.save(3)
    run.manager.wait()
    assert os.readlink(run.folder / "latest") == "step_3"


@contextmanager
def _files_limited_to(size: int) -> Iterator[None]:
    """A real write error, without root or a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


_EXIT = """
import resource, signal, sys, torch, forge_ref
model = torch.nn.Linear(2, 2)
config = forge_ref.CheckpointConfig(dir=sys.argv[1], async_mode="async")
manager = forge_ref.CheckpointManager(config, model, torch.optim.SGD(model.parameters()))
if sys.argv[2] == "limited":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
manager.save(5)
"""


@pytest.mark.parametrize("disk", ["roomy", "limited"])
def test_exit_waits_for_a_flush_and_tells_of_its_failure(tmp_path: Path, disk: str) -> None:
    folder = tmp_path / "checkpoints"
    ended = subprocess.run(
        [sys.executable, "-c", _EXIT, str(folder), disk], capture_output=True, text=True, timeout=120, check=True
    )
    assert names(folder) == (["latest", "step_5"] if disk == "roomy" else [])
    assert ("saving step 5" in ended.stderr) == (disk == "limited")


def test_retention_spares_milestones_latest_and_the_future(start: Start) -> None:
    run = start(keep_last_n=2, dyn_ckpt_window=DynamicCheckpointWindow(2, 6))
    for step in (0, 1, 2, 3, 4, 7, 8, 9):
        run.save(step)
    assert names(run.folder) == ["latest", "step_2", "step_3", "step_4", "step_8", "step_9"]
    later = start(keep_last_n=1)  # without the window
    (run.folder / "step_5").mkdir()  # torn
    later.save(8)
    assert names(run.folder) == ["latest", "step_2", "step_3", "step_4", "step_8", "step_9"]


def test_what_belongs_to_others_stays(start: Start) -> None:
    run = start(keep_last_n=1)
    run.folder.mkdir()
    for name in ("step_final", "step_1_backup", "step_0.tmp", "step_007", "step_", ".step_x.partial"):
        (run.folder / name).mkdir()
    (run.folder / "step_3").write_text("a file")
    (run.folder / "step_4").symlink_to("step_final")
    before = names(run.folder)
    run.save(8)
    run.save(9)
    assert names(run.folder) == sorted([*before, "latest", "step_9"])
    assert start(seed=1).load()[0] == 9
    for step in (3, 4):
        with pytest.raises(FileExistsError, match=f"step_{step}"):
            run.save(step)


def test_a_foreign_latest_is_refused_before_anything_is_made(start: Start) -> None:
    run = start()
    (run.folder / "latest").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="latest"):
        run.save(1)
    assert names(run.folder) == ["latest"]


def test_leftovers_go_after_the_next_commit_and_not_before(start: Start) -> None:
    run = start()
    run.save(1)
    for name in (".step_2.partial", ".step_2.partial.1", ".step_0.retired"):
        (run.folder / name).mkdir()
        (run.folder / name / ".metadata").write_text("debris")
    resumed = start(seed=1)
    assert resumed.load()[0] == 1
    assert ".step_2.partial.1" in names(run.folder)
    resumed.save(2)
    assert names(run.folder) == ["latest", "step_1", "step_2"]


def test_a_replacement_by_renames_can_be_cut_anywhere(start: Start) -> None:
    run = start()
    run.save(1)
    step = run.folder / "step_1"
    staged = layout.staged_path(run.folder, 1, "0" * 16)
    publish.stage(staged, 1)
    publish.replace_by_two_renames(staged, step, 1)
    step.rmdir()  # cut between the renames: the new one is not in, the old one is aside
    resumed = start(seed=1)
    assert resumed.manager.peek_saved_step() == resumed.load()[0] == 1
    resumed.save(2)
    assert names(run.folder) == ["latest", "step_1", "step_2"]
    assert start(seed=1).load(step)[0] == 1


def test_a_resave_replaces_all_files(start: Start) -> None:
    run = start()
    run.save(1)
    (run.folder / "step_1" / "__7_0.distcp").write_text("of a larger world")
    run.train(1)
    run.save(1)
    assert "__7_0.distcp" not in names(run.folder / "step_1")
    assert names(run.folder) == ["latest", "step_1"]


@pytest.mark.parametrize(
    "target", [None, "step_9", "latest", "../elsewhere/step_3", "step_final"], ids=lambda target: str(target)
)
def test_the_pointer_is_a_hint(start: Start, target: str | None, caplog: Any) -> None:
    run = start()
    run.save(1)
    run.save(3)
    elsewhere = start().folder.parent / "elsewhere" / "step_3"
    elsewhere.mkdir(parents=True)
    (run.folder / "latest").unlink()
    if target is not None:
        (run.folder / "latest").symlink_to(target)
    resumed = start(seed=1)
    assert resumed.manager.peek_saved_step() == resumed.load()[0] == 3
    assert "latest" in caplog.text and str(run.folder / "step_3") in caplog.text


def test_torn_checkpoints_fall_back_and_then_start_fresh(start: Start, equal: Same, caplog: Any) -> None:
    run = start()
    run.save(1)
    run.save(2)
    (run.folder / "step_2" / "train_state.pt").unlink()
    resumed = start(seed=1)
    assert resumed.manager.peek_saved_step() == resumed.load()[0] == 1
    assert "step_2" in caplog.text and "step_1" in caplog.text
    (run.folder / "step_1" / ".metadata").write_bytes(b"")
    fresh = start(seed=1)
    before = fresh.picture()
    assert fresh.manager.peek_saved_step() is None
    assert fresh.load() == (0, 0, {})
    assert equal(fresh.picture(), before)
    assert names(run.folder) == ["latest", "step_1", "step_2"]


def test_a_named_path_is_honoured_or_refused(start: Start, tmp_path: Path) -> None:
    run = start()
    run.save(1)
    run.save(2)
    assert start(seed=1).load(run.folder / "step_1")[0] == 1
    assert start(seed=1, load_path=str(run.folder / "step_1")).load()[0] == 1
    assert start(seed=1).load(run.folder / "latest")[0] == 2
    for path, said in [
        (tmp_path / "gone", "gone"),
        (run.folder, "name one of them.*step_2"),
        (tmp_path, "no .metadata"),
    ]:
        with pytest.raises(FileNotFoundError, match=said):
            run.load(path)
        with pytest.raises(FileNotFoundError, match=said):
            run.manager.peek_saved_step(str(path))


def test_pipeline_checkpoints_are_told_apart_and_refused(start: Start) -> None:
    run = start(keep_last_n=1)
    run.save(1)
    stage = run.folder / "step_1" / "pp0"
    stage.mkdir()
    (run.folder / "step_1" / ".metadata").rename(stage / ".metadata")
    assert layout.step_dirs(run.folder)[0].is_complete
    with pytest.raises(ValueError, match="pp0"):
        start(seed=1).load()


def test_loader_state_waits_for_its_loader(start: Start) -> None:
    run = start()
    run.train(2)
    run.save(2)
    resumed = start(seed=1)
    resumed.manager.load()
    resumed.manager.apply_dataloader_state(resumed.loader)
    assert resumed.loader.position == 2
    resumed.loader.position = 0
    resumed.manager.apply_dataloader_state(resumed.loader)
    assert resumed.loader.position == 0
    resumed.manager.load()
    resumed.manager.apply_dataloader_state(object())  # takes no state: dropped quietly
    resumed.manager.apply_dataloader_state(resumed.loader)
    assert resumed.loader.position == 0


def test_export_casts_weights_and_nothing_else(start: Start, tmp_path: Path) -> None:
    run = start(export_dtype="bfloat16")
    run.manager.export(str(tmp_path / "weights.pt"))
    exported = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert exported["0.weight"].dtype == torch.bfloat16
    assert exported["1.num_batches_tracked"].dtype == torch.int64
    assert run.model[0].weight.dtype == torch.float32


class Unpicklable(torch.Tensor):
    """A tensor that is bound to its process, as handles of shared memory are."""

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        raise TypeError("bound to its process")


def test_an_export_names_the_weight_that_can_not_be_saved(start: Start, tmp_path: Path) -> None:
    run = start()
    run.model[1].register_buffer("odd", torch.ones(2).as_subclass(Unpicklable))
    with pytest.raises(ValueError, match=r"weights\['1\.odd'\] can't be saved, TypeError: bound to its process"):
        run.manager.export(str(tmp_path / "weights.pt"))
    assert not list(tmp_path.iterdir())


def test_a_bad_load_path_is_called_by_the_name_of_its_field(start: Start) -> None:
    run = start()
    run.manager.config.load_path = 3
    with pytest.raises(TypeError, match="load_path"):
        run.manager.peek_saved_step()


def test_saves_that_leave_the_same_directory_behind_leave_one_and_not_one_each(tmp_path: Path) -> None:
    staged = layout.staged_path(tmp_path, 3, "0" * 16)
    for _ in range(4):
        publish.stage(staged, 3)
        (staged / "shard").write_bytes(b"of a save that could not remove it")
    assert names(tmp_path) == [f".step_3.{'0' * 16}.partial", f".step_3.{'0' * 16}.retired"]
    assert os.listdir(staged) == ["shard"]


def test_a_pointer_that_can_not_be_made_fails_the_save_before_any_name_changes(start: Start) -> None:
    run = start()
    run.save(1)
    pointer = f".latest.{run.manager._run.ranks.token}.partial"
    (run.folder / pointer).mkdir()
    before = (run.folder / "step_1" / "train_state.pt").read_bytes()
    run.train(1)
    for step in (1, 2):
        with pytest.raises(SaveError, match=pointer):
            run.save(step)
    assert (run.folder / "step_1" / "train_state.pt").read_bytes() == before
    assert names(run.folder) == [pointer, "latest", "step_1"]


@pytest.mark.parametrize("before", [(), (1,), (1, 2)], ids=["first", "next", "again"])
@pytest.mark.parametrize("failing", [1, 2])
def test_a_commit_that_fails_at_a_sync_is_taken_back(
    start: Start, monkeypatch: pytest.MonkeyPatch, before: tuple[int, ...], failing: int
) -> None:
    run = start()
    for step in before:
        run.save(step)
    stood = contents(run.folder)
    run.train(1)
    with monkeypatch.context() as patched:
        patched.setattr(publish, "sync", _fails_at_sync_of(run.folder, failing if before != (1, 2) else 1))
        with pytest.raises(SaveError, match="nothing was committed"):
            run.save(2)
    assert contents(run.folder) == stood
    standing = [name for name in names(run.folder) if not name.startswith(".latest.")]
    assert standing == sorted([f"step_{step}" for step in before] + (["latest"] if before else []))
    run.save(2)
    assert os.readlink(run.folder / "latest") == "step_2"


def test_a_commit_that_can_not_be_taken_back_does_not_say_that_nothing_was_committed(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start()
    run.save(1)

    def stands_still(one: Path, other: Path) -> None:
        raise OSError("read-only")

    with monkeypatch.context() as patched:
        patched.setattr(publish, "sync", _fails_at_sync_of(run.folder, 2))
        patched.setattr(publish, "_exchange_back", stands_still)
        with pytest.raises(SaveError, match=r"a resume may find it or the checkpoint before it.*read-only"):
            run.save(2)
    assert (run.folder / "step_1").is_dir()


def _fails_at_sync_of(folder: Path, number: int) -> Callable[[Path], None]:
    """`sync`, except that its n-th call for this directory fails as a bad block does."""
    sync, calls = publish.sync, itertools.count(1)

    def failing(path: Path) -> None:
        if path == folder and next(calls) == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        sync(path)

    return failing


def test_a_log_handler_that_raises_fails_no_load(start: Start) -> None:
    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise LookupError("no room for the log")

    start().save(3)
    run, log, handler = start(seed=1), logging.getLogger("forge_ref"), Raising(logging.INFO)
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        assert run.load()[0] == 3
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


@pytest.mark.parametrize("said", ["true", "-3", '"x"', "7"])
def test_a_peek_believes_the_metadata_of_another_writer_no_more_than_the_load(start: Start, said: str) -> None:
    run = start()
    run.save(3)
    make_foreign(run.folder / "step_3", f'{{"step": {said}}}')
    assert run.manager.peek_saved_step() == start(seed=1).load()[0] == 3


def test_a_take_over_that_is_not_a_boolean_is_refused(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"take_over is 'false'; it must be True or False"):
        CheckpointManager(
            CheckpointConfig(dir=str(tmp_path)),
            model,
            torch.optim.SGD(model.parameters()),
            take_over="false",  # type: ignore[arg-type]
        )


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ({"rng": None}, "rng is None"),
        ({"rng": {"python": 3}}, "can't be read"),
        ({"rng": {"torch_cpu": torch.zeros(3, dtype=torch.uint8)}}, "can't be read"),
        ({"rng": {"numpy": [1]}}, "can't be read"),
        ({"rng": {"torch_cuda": 3}}, "torch_cuda"),
        ({"step": "3"}, "step is '3', not an integer"),
        ({"step": None}, "step is None"),
        ({"step": 3.5}, r"step is 3\.5"),
        ({"step": torch.tensor(3)}, r"step is tensor\(3\)"),
        ({"tokens_seen": "many"}, "tokens_seen is 'many'"),
    ],
)
def test_an_odd_train_state_of_another_manager_is_refused_by_its_file(
    start: Start, equal: Same, written: dict[str, Any], says: str
) -> None:
    start().save(3)
    make_foreign(step := start().folder / "step_3", "{}")
    torch.save({"step": 3, **written}, step / "train_state.pt")
    run = start(seed=1)
    run.train(2)
    before = run.picture()
    with pytest.raises(DamagedError, match=rf"step_3/train_state\.pt.*{says}"):
        run.load()
    assert equal(run.picture(), before)
    if "step" in written:
        with pytest.raises(DamagedError, match=r"step_3/train_state\.pt.*step is"):
            run.manager.peek_saved_step()
    if "rng" in written:
        assert run.load(exclude_keys=["rng"])[0] == 3


def test_what_retention_can_not_judge_is_told_with_one_way_out(start: Start, caplog: Any) -> None:
    run = start(keep_last_n=1)
    run.save(1)
    metadata = run.folder / "step_1" / "metadata.json"
    metadata.write_text(metadata.read_text().replace('"tokens_seen": 10', '"tokens_seen": 11'))
    run.save(2)
    (said,) = [text for text in caplog.messages if "kept whatever the limit" in text]
    assert said.count(";") == 1
    assert said.endswith("was written; put the right metadata.json back, or delete the checkpoint by hand")


def test_a_strategy_that_raises_at_the_save_is_named_with_its_step(start: Start) -> None:
    def raises(window: object, step: int) -> bool:
        raise LookupError("no such phase")

    forge_ref.registry.register_dyn_ckpt_strategy("raises")(raises)
    run = start(dyn_ckpt_window=forge_ref.DynamicCheckpointWindow(0, 9, "raises"))
    with pytest.raises(LookupError, match="no such phase") as caught:
        run.save(3)
    assert caught.value.__notes__ == ["raised by the checkpoint strategy 'raises', which was asked about step 3"]
