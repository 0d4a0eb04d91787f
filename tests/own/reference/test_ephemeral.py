"""The second design's callback: it answers the vectors, and works for any run and a loop of ten lines."""

import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_foreign
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from forge_ref import CheckpointerCallback, CheckpointRemovalStrategy, DamagedError, SaveError, TrainingRun
from forge_ref.ephemeral_run import Bookkeeping

VECTORS = json.loads((Path(__file__).parents[3] / "fixtures" / "vectors" / "ephemeral.json").read_text())
REQUIRED = ("model_and_optim/.metadata", "train/rank0.pt", ".metadata.json")


def cases(question: str, is_askable: Callable[[Any], bool] = lambda given: True) -> Any:
    asked = [case for case in VECTORS["cases"] if case["question"] == question and is_askable(case["given"])]
    assert asked
    return pytest.mark.parametrize("case", asked, ids=[case["id"].removeprefix(f"{question}/") for case in asked])


class Foreign:
    """A run that is not ours: it has the members that the callback uses, and no thread for bookkeeping."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        self.save_folder = str(folder)
        self.global_step = step
        self.checkpointer = object()
        self.checkpoint_loaded = step > 0
        self.block_ephemeral_checkpoints = False
        self.made: list[list[Any]] = []

    def save_checkpoint(self, ephemeral: bool = False) -> str:
        self.made.append([self.global_step, "ephemeral" if ephemeral else "permanent"])
        return str(plant(Path(self.save_folder), self.global_step, ephemeral))

    def save_checkpoint_async(self, ephemeral: bool = False) -> tuple[str, "Future[None]"]:
        done: Future[None] = Future()
        path = self.save_checkpoint(ephemeral)
        done.set_result(None)
        return path, done


def plant(folder: Path, step: int, is_ephemeral: bool | None) -> Path:
    path = folder / f"step{step}"
    for name in REQUIRED:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("{}")
    if is_ephemeral is not None:
        (path / ".metadata.json").write_text(json.dumps({"ephemeral": is_ephemeral, "version": "1"}))
    return path


def standing(folder: Path) -> list[int]:
    return sorted(int(name.removeprefix("step")) for name in os.listdir(folder) if name.startswith("step"))


def bound(run: Any, **settings: Any) -> CheckpointerCallback:
    callback = CheckpointerCallback(**{"pre_train_checkpoint": False, **settings})
    callback.trainer = run
    return callback


# -- the vectors ----------------------------------------------------------------


@cases("ephemeral/configuration")
def test_settings_are_refused_where_they_refuse_them(case: Any) -> None:
    if case["expected"]["refused_for"]:
        with pytest.raises(ValueError, match="|".join(case["expected"]["refused_for"])):
            CheckpointerCallback(**case["given"])
    else:
        CheckpointerCallback(**case["given"])


@cases("ephemeral/saves")
def test_steps_are_saved_as_they_say(case: Any, tmp_path: Path) -> None:
    given = case["given"]
    first, last = given["steps"]
    run = Foreign(tmp_path)
    callback = bound(run, **given["settings"], pre_train_checkpoint=given["last_saved"] == 0)
    callback.pre_train()
    run.made.clear()
    for run.global_step in range(first, last + 1):
        run.block_ephemeral_checkpoints = run.global_step in given["blocked"]
        callback.post_train_batch()
    assert run.made == case["expected"]["saves"]


@cases("ephemeral/collected", lambda given: given["settings"].get("ephemeral_save_interval") is not None)
def test_what_earlier_runs_left_is_collected_as_they_say(case: Any, tmp_path: Path) -> None:
    given = case["given"]
    for step, kind in given["standing"]:
        plant(tmp_path, step, None if kind is None else kind == "ephemeral")
    run, interval = Foreign(tmp_path, given["own_step"]), given["settings"]["ephemeral_save_interval"]
    callback = bound(run, save_async=False, **given["settings"])
    callback.pre_train()
    before = set(standing(tmp_path))
    run.global_step = next(
        step for step in range(100, 200) if step % interval == 0 and step % given["settings"]["save_interval"] != 0
    )
    callback.post_train_batch()
    run.global_step += 1
    callback.post_train_batch()
    own = {step for step, _ in run.made}
    assert sorted(before - set(standing(tmp_path)) - own) == case["expected"]["collected"]


@cases("ephemeral/removal")
def test_what_a_save_replaces_goes_as_they_say(case: Any, tmp_path: Path) -> None:
    given = case["given"]
    saved, kinds = given["saved"], dict(given["standing"])
    for step, kind in kinds.items():
        if step != saved:
            plant(tmp_path, step, kind == "ephemeral")
    intervals = {
        "permanent": {"save_interval": saved},
        "ephemeral": {"save_interval": None, "ephemeral_save_interval": saved},
    }
    callback = bound(Foreign(tmp_path, saved), max_checkpoints=given["max_checkpoints"], **intervals[kinds[saved]])
    callback.pre_train()
    for _ in range(2):
        callback.post_train_batch()
    assert sorted(kinds.keys() - set(standing(tmp_path))) == case["expected"]["goes"]


# -- a run that is not ours -----------------------------------------------------


def test_a_save_whose_directory_never_becomes_complete_is_an_error_that_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forge_ref.ephemeral._PATIENCE_S", 0)
    run = Foreign(tmp_path)
    run.save_checkpoint = lambda ephemeral=False: str(tmp_path / "step1")  # type: ignore[method-assign]
    callback = bound(run, save_interval=1, save_async=False)
    callback.pre_train()
    run.global_step = 1
    with pytest.raises(SaveError, match=r"step 1 has ended.*step1 has no train/rank0.pt"):
        callback.post_train_batch()
    assert not callback.checkpoint_pending


def test_a_callback_without_a_run_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="set its `trainer`"):
        CheckpointerCallback().pre_train()


def test_a_strategy_may_be_written_as_text_and_an_unknown_one_is_refused() -> None:
    assert CheckpointerCallback(remove="never").remove is CheckpointRemovalStrategy.never  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="remove is 'all'; known: ephemeral_only, all_non_permanent, never"):
        CheckpointerCallback(remove="all")  # type: ignore[arg-type]


def test_a_checkpoint_whose_kind_can_not_be_read_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (plant(tmp_path, 2, True) / ".metadata.json").write_text('{"ephemeral": tr')
    run = Foreign(tmp_path, 2)
    callback = bound(run, save_interval=100, ephemeral_save_interval=2, remove="all_non_permanent")
    callback.pre_train()
    for run.global_step in (4, 5):
        callback.post_train_batch()
    assert standing(tmp_path) == [2, 4]
    assert "step2 is kept, because its kind can't be read" in caplog.text


# -- a loop of ten lines --------------------------------------------------------


def trained(folder: Path, until: int, **settings: Any) -> tuple[TrainingRun, torch.nn.Module, list[float]]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout())
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    run = TrainingRun(folder, model, optimizer, scheduler)
    saver = CheckpointerCallback(save_interval=4, ephemeral_save_interval=2, **settings)
    saver.trainer = run
    run.load_checkpoint()
    saver.pre_train()
    losses = []
    while run.global_step < until:
        optimizer.zero_grad()
        loss = model(torch.randn(2, 4)).square().sum()
        loss.backward()
        optimizer.step()
        scheduler.step()
        run.global_step += 1
        losses.append(loss.item())
        saver.post_train_batch()
    saver.post_train()
    return run, model, losses


@pytest.mark.parametrize("in_background", [False, True])
def test_hooks_in_inference_mode_leave_tensors_that_can_be_trained(tmp_path: Path, in_background: bool) -> None:
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    saver = CheckpointerCallback(save_interval=1, save_async=in_background)
    saver.trainer = run = TrainingRun(tmp_path, model, optimizer)
    with torch.inference_mode():
        saver.pre_train()
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    run.global_step = 1
    with torch.inference_mode():
        saver.post_train_batch()
    saver.post_train()
    again = TrainingRun(tmp_path, model, optimizer := torch.optim.AdamW(model.parameters()))
    with torch.inference_mode():
        assert again.load_checkpoint()
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    assert again.global_step == 1


def test_a_loop_that_is_cut_in_two_computes_what_one_computes(tmp_path: Path) -> None:
    *_, whole = trained(tmp_path / "whole", 7)
    *_, begin = trained(tmp_path / "cut", 3)
    run, _, rest = trained(tmp_path / "cut", 7)
    assert begin + rest == whole
    assert run.checkpoint_loaded
    assert standing(tmp_path / "cut") == [0, 3, 4, 6, 7]


def test_stock_dcp_reads_the_shards(tmp_path: Path) -> None:
    _, model, _ = trained(tmp_path, 1)
    shards = tmp_path / "step1" / "model_and_optim"
    assert "model.0.weight" in FileSystemReader(shards).read_metadata().state_dict_metadata
    dcp_to_torch_save(shards, tmp_path / "all.pt")
    weight = torch.load(tmp_path / "all.pt", weights_only=False)["model"]["0.weight"]
    assert torch.equal(weight, model.state_dict()["0.weight"])


def test_weights_alone_are_loaded_from_a_directory_with_a_bare_marker(tmp_path: Path) -> None:
    _, model, _ = trained(tmp_path / "from", 3)
    other = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout())
    run = TrainingRun(tmp_path / "to", other, torch.optim.AdamW(other.parameters()))
    assert run.load_checkpoint(tmp_path / "from" / "step3" / "model_and_optim")
    assert torch.equal(other.state_dict()["0.weight"], model.state_dict()["0.weight"])
    assert (run.global_step, run.checkpoint_loaded) == (0, False)


@pytest.mark.parametrize("name", ["train/rank0.pt", "model_and_optim/.metadata", "model_and_optim/__0_0.distcp"])
def test_a_flipped_bit_is_refused_with_the_name_of_its_file(tmp_path: Path, name: str) -> None:
    trained(tmp_path, 3)
    file = tmp_path / "step3" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamagedError, match=file.name):
        trained(tmp_path, 7)


def test_files_of_two_saves_do_not_make_a_checkpoint(tmp_path: Path) -> None:
    trained(tmp_path, 3)
    trained(tmp_path, 7)
    (tmp_path / "step4" / "train" / "rank0.pt").replace(tmp_path / "step7" / "train" / "rank0.pt")
    with pytest.raises(DamagedError, match=r"rank0\.pt"):
        trained(tmp_path, 9)


@pytest.mark.parametrize("name", ["train/rank0.pt", "model_and_optim/.metadata", ".metadata.json"])
def test_the_file_of_another_save_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    trained(tmp_path, 3)
    trained(tmp_path, 7)
    shutil.copy(tmp_path / "step4" / name, tmp_path / "step7" / name)
    with pytest.raises(DamagedError, match=rf"^{tmp_path}/step7/{re.escape(name)} (is damaged, or|belongs to another)"):
        trained(tmp_path, 9)


def test_a_record_of_another_step_is_named_also_where_the_weights_are_the_same(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    run = TrainingRun(tmp_path, model, torch.optim.AdamW(model.parameters()))
    for run.global_step in (3, 7):
        run.save_checkpoint()
    shutil.copy(tmp_path / "step3" / ".metadata.json", tmp_path / "step7" / ".metadata.json")
    with pytest.raises(
        DamagedError, match=r"step7/.metadata.json belongs to another save: it says step 3, and not all"
    ):
        run.load_checkpoint()


def of_another_seed(folder: Path) -> tuple[TrainingRun, torch.nn.Module]:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout())
    optimizer = torch.optim.AdamW(model.parameters())
    return TrainingRun(folder, model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2)), model


@pytest.mark.parametrize("is_named", [False, True])
@pytest.mark.parametrize("record", ["{}", '{"ephemeral": false, "version": "2.0", "step": 3}'])
def test_a_checkpoint_whose_record_has_lost_its_checksums_is_refused_and_changes_nothing(
    tmp_path: Path, record: str, is_named: bool
) -> None:
    trained(tmp_path, 3)
    path = tmp_path / "step3"
    (path / ".metadata.json").write_text(record)
    run, model = of_another_seed(tmp_path)
    before = model.state_dict()["0.weight"].clone()
    with pytest.raises(DamagedError, match=r"/step3/\.metadata\.json is damaged: it lacks the checksums .*; put the"):
        run.load_checkpoint(path if is_named else None)
    assert torch.equal(model.state_dict()["0.weight"], before)
    assert (run.global_step, run.checkpoint_loaded) == (0, False)


def test_a_checkpoint_that_has_lost_its_record_is_refused_by_name_and_otherwise_the_one_before_resumes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(tmp_path, 6)
    path = tmp_path / "step6"
    (path / ".metadata.json").unlink()
    run, model = of_another_seed(tmp_path)
    before = model.state_dict()["0.weight"].clone()
    with pytest.raises(DamagedError, match=r"/step6/\.metadata\.json is missing, .*; put the file back, or"):
        run.load_checkpoint(path)
    assert torch.equal(model.state_dict()["0.weight"], before)
    assert run.load_checkpoint()
    assert run.global_step == 4
    assert f"step6 (no .metadata.json); resuming from {tmp_path / 'step4'}" in caplog.text


@pytest.mark.parametrize("record", ["{}", '{"ephemeral": false, "version": "3.0.0"}'])
def test_a_checkpoint_of_another_writer_needs_no_checksums(tmp_path: Path, record: str) -> None:
    _, model, _ = trained(tmp_path, 3)
    make_foreign(tmp_path / "step3", record, ".metadata.json")
    run, other = of_another_seed(tmp_path)
    assert run.load_checkpoint()
    assert run.global_step == 3
    assert torch.equal(other.state_dict()["0.weight"], model.state_dict()["0.weight"])


def test_a_checkpoint_of_another_writer_without_a_record_is_loaded_by_name_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(tmp_path, 3)
    path = tmp_path / "step3"
    make_foreign(path, "{}", ".metadata.json")
    (path / ".metadata.json").unlink()
    run, _ = of_another_seed(tmp_path)
    assert run.load_checkpoint(path)
    assert run.global_step == 3
    assert f"{path}/.metadata.json is missing, so no checksums of files are compared" in caplog.text


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_checkpoint_whose_record_has_lost_its_kind_is_kept_and_one_of_another_writer_goes_by_its_step(
    tmp_path: Path, is_ours: bool, caplog: pytest.LogCaptureFixture
) -> None:
    trained(tmp_path, 5)
    path = tmp_path / "step4"
    if is_ours:
        (path / ".metadata.json").write_text('{"version": "2.0"}')
    else:
        make_foreign(path, '{"version": "2.0"}', ".metadata.json")
    run, _ = of_another_seed(tmp_path)
    assert run.load_checkpoint()
    callback = bound(run, save_interval=100, ephemeral_save_interval=2, save_async=False)
    callback.pre_train()
    for run.global_step in (6, 7):
        callback.post_train_batch()
    callback.post_train()
    assert standing(tmp_path) == ([0, 4, 5, 6, 7] if is_ours else [0, 5, 6, 7])
    said = f"{path} is kept, because its kind can't be read: {path}/.metadata.json is damaged: it lacks the checksums"
    warned = [message for message in caplog.messages if message.startswith(said)]
    assert [message.endswith("with the checkpoint; delete it by hand") for message in warned] == [True] * is_ours


def test_a_copy_is_not_taken_for_the_step_in_its_name_and_may_have_a_name_of_its_own(tmp_path: Path) -> None:
    trained(tmp_path, 3)
    for name in ("step6", "best"):
        shutil.copytree(tmp_path / "step3", tmp_path / name)
    with pytest.raises(ValueError, match=r"step6 holds a checkpoint of step 3, .*; give it the name step3, or one"):
        trained(tmp_path, 7)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout())
    optimizer = torch.optim.AdamW(model.parameters())
    run = TrainingRun(tmp_path, model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2))
    assert run.load_checkpoint(tmp_path / "best")
    assert run.global_step == 3


@pytest.mark.parametrize("says", [{"global_step": 3}, {"global_step": 4}, {"global_step": "3"}, {}], ids=str)
def test_a_train_state_of_another_trainer_says_its_step_or_is_refused(tmp_path: Path, says: dict[str, Any]) -> None:
    trained(tmp_path, 3)
    file = tmp_path / "step3" / "train" / "rank0.pt"
    train_state = torch.load(file, weights_only=False)
    for ours in ("step", "global_step", "for_trainer"):
        del train_state[ours]
    torch.save({**train_state, **says}, file)
    make_foreign(tmp_path / "step3", '{"ephemeral": false, "version": "3.0.0"}', ".metadata.json")
    refusals = {4: "step3 holds a checkpoint of step 4", "3": "step is '3', not an integer"}
    if says.get("global_step") == 3:
        run, *_ = trained(tmp_path, 4)
        assert (run.global_step, run.checkpoint_loaded, run.extra) == (4, True, {})
        return
    message = refusals[says["global_step"]] if says else "rank0.pt has neither step nor global_step"
    with pytest.raises((ValueError, DamagedError), match=message):
        trained(tmp_path, 4)


def test_something_else_under_the_name_of_a_step_is_refused(tmp_path: Path) -> None:
    (tmp_path / "step3").write_text("notes")
    with pytest.raises(FileExistsError, match="step3 is not a directory, so step 3 can't be saved there"):
        trained(tmp_path, 3)


def test_bookkeeping_does_one_thing_after_the_other_and_logs_what_fails(caplog: pytest.LogCaptureFixture) -> None:
    bookkeeping, done, ended = Bookkeeping(), [], threading.Event()
    bookkeeping.run("the first", lambda: done.append(1))
    bookkeeping.run("the second", lambda: 1 / 0)
    bookkeeping.run("the third", lambda: done.append(3))
    bookkeeping.run("the last", ended.set)
    assert ended.wait(10)
    assert done == [1, 3]
    assert "the second failed: division by zero" in caplog.text


def test_a_run_warns_of_gradients_that_no_step_has_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = torch.nn.Linear(2, 1)
    run = TrainingRun(tmp_path, model, torch.optim.AdamW(model.parameters()))
    run.save_checkpoint()
    assert "gradients" not in caplog.text
    model(torch.ones(1, 2)).sum().backward()
    run.global_step = 1
    run.save_checkpoint()
    assert "step 1: gradients have been accumulated since the optimizer's last step" in caplog.text
