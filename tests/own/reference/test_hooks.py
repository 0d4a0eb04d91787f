"""What the second design's callback decides, remembers and says, where a run or its folder does something unusual."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from forge_ref import CheckpointerCallback, ephemeral, ephemeral_folder, removals
from forge_ref.errors import SaveError

REQUIRED = ephemeral_folder.REQUIRED
TOKEN = "0123456789abcdef"


class Run:
    """A run whose flushes end when the test says so, and which notes what it is asked for."""

    def __init__(self, folder: Path, step: int = 0, *, was_resumed: bool | None = None) -> None:
        self.save_folder = str(folder)
        self.global_step = step
        self.checkpointer = object()
        self.checkpoint_loaded = step > 0 if was_resumed is None else was_resumed
        self.block_ephemeral_checkpoints = False
        self.made: list[tuple[int, str, str]] = []
        self.flushes: list[Future[None]] = []

    def save_checkpoint(self, ephemeral: bool) -> str:
        return self._save(ephemeral, "now")

    def save_checkpoint_async(self, ephemeral: bool) -> tuple[str, "Future[None]"]:
        path = self._save(ephemeral, "in the background")
        self.flushes.append(Future())
        return path, self.flushes[-1]

    def _save(self, ephemeral: bool, how: str) -> str:
        self.made.append((self.global_step, "ephemeral" if ephemeral else "permanent", how))
        return str(plant(Path(self.save_folder), self.global_step, ephemeral))


class Bookkeeping:
    """The member of a run that calls functions later: here, when the test says so."""

    def __init__(self, *problems: Exception) -> None:
        self.problems = list(problems)
        self.names: list[str] = []

    def __call__(self, function: Any, *arguments: Any, op_name: str) -> None:
        self.names.append(op_name)
        if self.problems:
            raise self.problems.pop()
        function(*arguments)


def plant(folder: Path, step: int, is_ephemeral: bool, lacks: str = "") -> Path:
    path = folder / f"step{step}"
    for name in REQUIRED:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(json.dumps({"ephemeral": is_ephemeral}))
    if lacks:
        (path / lacks).unlink()
    return path


def begun(run: Run, **settings: Any) -> CheckpointerCallback:
    callback = CheckpointerCallback(**{"pre_train_checkpoint": False, "save_async": False, **settings})
    callback.trainer = run
    callback.pre_train()
    return callback


def batches(callback: CheckpointerCallback, *steps: int) -> None:
    for callback.trainer.global_step in steps:
        callback.post_train_batch()


def standing(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if "step" in name)


# -- order and settings ---------------------------------------------------------


def test_a_hook_out_of_order_says_which_one_it_is_and_which_one_is_missing(tmp_path: Path) -> None:
    callback = CheckpointerCallback(save_async=False)
    callback.trainer = Run(tmp_path)
    for hook in ("post_train_batch", "post_train"):
        message = (
            rf"^{hook}\(\) was called without pre_train\(\); call pre_train\(\) before the first batch, and again "
            r"after each post_train\(\)$"
        )
        with pytest.raises(RuntimeError, match=message):
            getattr(callback, hook)()
    callback.pre_train()
    with pytest.raises(RuntimeError, match=r"^pre_train\(\) was called twice; call post_train\(\) in between$"):
        callback.pre_train()
    callback.post_train()
    with pytest.raises(RuntimeError, match=r"^post_train_batch\(\) was called without pre_train"):
        callback.post_train_batch()
    callback.pre_train()


def test_a_disabled_callback_does_nothing_in_any_order(tmp_path: Path) -> None:
    callback = CheckpointerCallback(enabled=False, save_interval=1)
    callback.trainer = Run(tmp_path)
    for hook in (callback.post_train, callback.post_train_batch, callback.pre_train, callback.pre_train):
        hook()
    assert callback.trainer.made == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"save_interval": "4"}, "^save_interval is '4'"),
        ({"save_interval": True}, "^save_interval is True"),
        ({"save_interval": 0}, "^save_interval is 0"),
        ({"ephemeral_save_interval": 2.0}, "^ephemeral_save_interval is 2.0"),
        ({"ephemeral_save_interval": 0}, "^ephemeral_save_interval is 0"),
        ({"save_interval": 4, "ephemeral_save_interval": 4}, "^ephemeral_save_interval is 4; .* save_interval, 4$"),
        ({"ephemeral_cooldown": 0}, "^ephemeral_cooldown is 0"),
        ({"max_checkpoints": 0}, "^max_checkpoints is 0"),
        ({"pre_train_checkpoint": "yes"}, "^pre_train_checkpoint is 'yes'"),
        ({"save_async": 1}, "^save_async is 1"),
        ({"enabled": None}, "^enabled is None"),
        ({"fixed_steps": "12"}, "^fixed_steps is '12'; it must be a list of integers$"),
        ({"fixed_steps": b"ab"}, "^fixed_steps is b'ab'; it must be a list of integers$"),
        ({"fixed_steps": {1: 2}}, "^fixed_steps is {1: 2}; it must be a list of integers$"),
        ({"fixed_steps": 12}, "^fixed_steps is 12; it must be a list of integers$"),
        ({"fixed_steps": [1, -1]}, "^fixed_steps is -1"),
        ({"fixed_steps": ["3"]}, "^fixed_steps is '3'"),
        ({"remove": "all"}, "^remove is 'all'; known: ephemeral_only, all_non_permanent, never$"),
    ],
)
def test_a_setting_that_can_not_be_meant_is_refused_by_its_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        CheckpointerCallback(**settings)


def test_the_smallest_settings_that_can_be_meant_are_taken() -> None:
    CheckpointerCallback(
        save_interval=2, ephemeral_save_interval=1, ephemeral_cooldown=1, max_checkpoints=1, fixed_steps=[0]
    )


def test_a_setting_that_changed_since_is_looked_at_before_training(tmp_path: Path) -> None:
    callback = CheckpointerCallback()
    callback.trainer = Run(tmp_path)
    callback.save_interval = 0
    with pytest.raises(ValueError, match=r"^save_interval is 0"):
        callback.pre_train()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("save_interval", 0, "^save_interval is 0; it must be 1 or more$"),
        ("ephemeral_save_interval", 4, "^ephemeral_save_interval is 4; it must be below save_interval, 4$"),
        ("fixed_steps", 3, "^fixed_steps is 3; it must be a list of integers$"),
    ],
)
def test_a_setting_that_changed_in_training_is_looked_at_in_the_next_hook(
    tmp_path: Path, field: str, value: Any, message: str
) -> None:
    callback = begun(Run(tmp_path), save_interval=4)
    setattr(callback, field, value)
    with pytest.raises((ValueError, TypeError), match=message):
        batches(callback, 1)


@pytest.mark.parametrize("step", ["x", 1.0, True, None, -1])
def test_a_step_that_is_not_a_number_of_batches_is_refused_in_each_hook(tmp_path: Path, step: Any) -> None:
    callback = CheckpointerCallback(save_async=False)
    callback.trainer = Run(tmp_path, was_resumed=False)
    callback.trainer.global_step = step
    with pytest.raises((ValueError, TypeError), match=r"^global_step is "):
        callback.pre_train()
    callback.trainer.global_step = 0
    callback.pre_train()
    with pytest.raises((ValueError, TypeError), match=r"^global_step is "):
        batches(callback, step)


# -- the last save --------------------------------------------------------------


def test_the_last_step_is_saved_as_permanent_and_not_in_the_background(tmp_path: Path) -> None:
    run = Run(tmp_path)
    callback = begun(run, save_async=True)
    batches(callback, 1, 2, 3)
    callback.post_train()
    assert run.made == [(3, "permanent", "now")]


def test_a_last_step_that_a_hook_has_saved_is_not_saved_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    callback = begun(run, save_interval=2)
    batches(callback, 1, 2)
    callback.post_train()
    assert [step for step, *_ in run.made] == [2]


@pytest.mark.parametrize(
    ("was_resumed", "lacks", "saved"),
    [(True, "", []), (True, ".metadata.json", [4]), (False, "", [4])],
    ids=["stands", "is torn", "is of another run"],
)
def test_the_step_that_a_run_resumed_is_not_saved_again_if_it_stands(
    tmp_path: Path, was_resumed: bool, lacks: str, saved: list[int]
) -> None:
    plant(tmp_path, 4, False, lacks)
    run = Run(tmp_path, 4, was_resumed=was_resumed)
    begun(run).post_train()
    assert [step for step, *_ in run.made] == saved


def test_what_stood_at_a_step_that_the_run_has_trained_anew_is_saved_again(tmp_path: Path) -> None:
    for step in (4, 5):
        plant(tmp_path, step, False)
    run = Run(tmp_path, 3)
    callback = begun(run, save_interval=4)
    batches(callback, 4, 5)
    callback.post_train()
    assert [step for step, *_ in run.made] == [4, 5]


def test_an_earlier_error_is_raised_when_the_last_step_is_saved(tmp_path: Path) -> None:
    run = Run(tmp_path)
    callback = begun(run, save_interval=2, save_async=True)
    batches(callback, 2, 3)
    run.flushes[0].set_exception(SaveError("step 2 is lost"))
    with pytest.raises(SaveError, match="step 2 is lost"):
        callback.post_train()
    assert run.made[-1] == (3, "permanent", "now")


# -- a save and its end ---------------------------------------------------------


def test_a_save_is_pending_until_a_hook_finds_its_flush_ended_and_its_directory_complete(tmp_path: Path) -> None:
    run = Run(tmp_path)
    callback = begun(run, save_interval=2, save_async=True)
    batches(callback, 2, 3)
    assert callback.checkpoint_pending  # its directory is complete, and its flush has not ended
    run.flushes[0].set_result(None)
    assert callback.checkpoint_pending
    record = tmp_path / "step2" / ".metadata.json"
    content = record.read_text()
    record.unlink()
    batches(callback, 5)
    assert callback.checkpoint_pending  # its flush has ended, and a network file system shows the record late
    record.write_text(content)
    batches(callback, 7)
    assert not callback.checkpoint_pending


def test_the_error_of_a_flush_is_raised_by_one_hook_and_its_step_is_not_saved(tmp_path: Path) -> None:
    run = Run(tmp_path)
    callback = begun(run, save_interval=2, save_async=True)
    batches(callback, 2)
    run.flushes[0].set_exception(SaveError("step 2 is lost"))
    with pytest.raises(SaveError, match="step 2 is lost"):
        batches(callback, 3)
    run.global_step = 2  # a loop that goes back and ends there
    callback.post_train()
    assert run.made == [(2, "permanent", "in the background"), (2, "permanent", "now")]


@pytest.mark.parametrize("at_the_end", [False, True])
def test_the_error_of_a_flush_of_any_run_says_which_step_it_was_and_where(tmp_path: Path, at_the_end: bool) -> None:
    run = Run(tmp_path)
    callback = begun(run, save_interval=2, save_async=True)
    batches(callback, 2)
    run.flushes[0].set_exception(OSError(28, "No space left on device"))
    said = rf"^saving step 2 in {tmp_path}/step2 failed, and it replaces nothing: OSError: \[Errno 28\] No space"
    with pytest.raises(SaveError, match=said) as raised:
        callback.post_train() if at_the_end else batches(callback, 3)
    assert isinstance(raised.value.__cause__, OSError)


def test_a_save_waits_for_its_directory_to_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, waited = Run(tmp_path), list[float]()

    def appear(seconds: float) -> None:
        waited.append(seconds)
        plant(tmp_path, 2, False)

    monkeypatch.setattr(ephemeral.time, "sleep", appear)
    run.save_checkpoint = lambda ephemeral: str(tmp_path / "step2")  # type: ignore[method-assign]
    batches(begun(run, save_interval=2), 2)
    assert waited == [0.1]


def test_a_directory_that_stays_torn_is_an_error_that_lists_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ephemeral, "_PATIENCE_S", -1)
    run = Run(tmp_path)
    run.save_checkpoint = lambda ephemeral: str(tmp_path / "step2")  # type: ignore[method-assign]
    lacking = "has no train/rank0.pt, model_and_optim/.metadata, .metadata.json; it is no checkpoint$"
    with pytest.raises(SaveError, match=lacking):
        batches(begun(run, save_interval=2), 2)


# -- what goes ------------------------------------------------------------------


def test_an_own_ephemeral_checkpoint_goes_when_the_next_one_stands(tmp_path: Path) -> None:
    batches(begun(Run(tmp_path), save_interval=100, ephemeral_save_interval=2), 2, 4, 5)
    assert standing(tmp_path) == ["step4"]


def test_a_step_that_is_saved_again_as_the_other_kind_counts_as_that_one(tmp_path: Path) -> None:
    plant(tmp_path, 4, False)
    callback = begun(Run(tmp_path, 4), save_interval=5, ephemeral_save_interval=2, max_checkpoints=1)
    batches(callback, 4, 5, 7)
    assert standing(tmp_path) == ["step4", "step5"]


def test_torn_directories_go_after_a_save_and_imported_weights_stay(tmp_path: Path) -> None:
    plant(tmp_path, 1, False, lacks=".metadata.json")
    (tmp_path / "step2").mkdir()
    (tmp_path / "step2" / ".metadata").write_text("weights")
    plant(tmp_path, 9, False, lacks="train/rank0.pt")
    callback = begun(Run(tmp_path, 3), save_interval=4)
    assert standing(tmp_path) == ["step1", "step2", "step9"]
    batches(callback, 4, 5)
    assert standing(tmp_path) == ["step2", "step4", "step9"]


def pruned(folder: Path) -> str:
    """A directory whose train state somebody removed to save space; what a run says of it."""
    path = plant(folder, 2, False, lacks="train/rank0.pt")
    (path / "train").rmdir()
    return (
        f"{path} is kept: train/rank0.pt is missing or empty, and a death leaves no .metadata.json beside that; put "
        "the file back, or delete the directory by hand"
    )


def emptied(folder: Path) -> str:
    """The same, with a record that has no content."""
    path = plant(folder, 2, False)
    (path / ".metadata.json").write_text("")
    return (
        f"{path} is kept: .metadata.json is missing or empty, and a death leaves no .metadata.json beside that; put "
        "the file back, or delete the directory by hand"
    )


def exported(folder: Path) -> str:
    """A directory of another tool with the name of a step."""
    for name in ("model.safetensors", "logs/events"):
        (folder / "step2" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "step2" / name).write_text("precious")
    path = folder / "step2"
    return f"{path} holds logs, model.safetensors of another tool; it is left alone, and no resume finds it"


def mixed(folder: Path) -> str:
    """Files of ours, a file that we do not write, and a link in the place of one that we do."""
    path = plant(folder, 2, False, lacks=".metadata.json")
    (path / "train" / "notes").write_text("precious")
    (path / "model_and_optim" / "__0_0.distcp").symlink_to("/elsewhere")
    foreign = "model_and_optim/__0_0.distcp, train/notes"
    return f"{path} holds {foreign} of another tool; it is left alone, and no resume finds it"


@pytest.mark.parametrize("arrange", [pruned, emptied, exported, mixed])
def test_a_torn_directory_that_no_death_has_left_stays_and_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, arrange: Callable[[Path], str]
) -> None:
    said = arrange(tmp_path)
    files = sorted((tmp_path / "step2").rglob("*"))
    callback = begun(Run(tmp_path, 3), save_interval=4, ephemeral_save_interval=1, remove="all_non_permanent")
    batches(callback, 4, 5, 6)
    callback.post_train()
    assert sorted((tmp_path / "step2").rglob("*")) == files
    assert caplog.messages == [said]


def test_what_a_death_has_left_is_named_before_it_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = plant(tmp_path, 2, False, lacks=".metadata.json")
    for name in ("tmp0a_bcdef", "train/rank1.pt", "model_and_optim/__1_0.distcp", "model_and_optim/tmp12.tmp"):
        (path / name).write_text("")
    (tmp_path / "step3").mkdir()
    callback = begun(Run(tmp_path, 3), save_interval=4)
    assert caplog.messages == [
        f"{tmp_path / name} is what a save or a removal that was cut short has left; it is removed after the next save"
        for name in ("step2", "step3")
    ]
    batches(callback, 4, 5)
    assert standing(tmp_path) == ["step4"]


@pytest.mark.parametrize("name", ["model.safetensors", ".metadata"], ids=["of another tool", "imported weights"])
def test_no_save_takes_the_name_of_a_directory_that_is_not_of_this_layout(tmp_path: Path, name: str) -> None:
    ephemeral_folder.check_name_free(tmp_path, 2)
    plant(tmp_path, 2, False, lacks="train/rank0.pt")
    (tmp_path / "step3").mkdir()
    for step in (2, 3):
        ephemeral_folder.check_name_free(tmp_path, step)
    (tmp_path / "step3" / name).write_text("")
    message = rf"step3 holds {name} of another tool, so step 3 can't be saved there; move it away$"
    with pytest.raises(FileExistsError, match=message):
        ephemeral_folder.check_name_free(tmp_path, 3)


def test_a_thread_that_takes_no_work_is_logged_and_the_removal_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path)
    run.run_bookkeeping_op = bookkeeping = Bookkeeping(OSError("no thread"))  # type: ignore[attr-defined]
    callback = begun(run, save_interval=100, ephemeral_save_interval=2)
    batches(callback, 2, 4, 5)
    step2 = tmp_path / "step2"
    assert caplog.messages == [f"could not remove {step2}: no thread; tried again after the next save"]
    assert standing(tmp_path) == ["step2", "step4"]
    batches(callback, 6, 7)
    assert standing(tmp_path) == ["step6"]
    assert bookkeeping.names == [f"removing {step2}", f"removing {step2}", f"removing {tmp_path / 'step4'}"]


def test_a_removal_that_fails_is_logged_and_tried_again_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = begun(Run(tmp_path), save_interval=100, ephemeral_save_interval=2)
    batches(callback, 2, 4)
    record = tmp_path / "step2" / ".metadata.json"
    record.unlink()
    record.mkdir()  # so that it can't be removed as a file
    batches(callback, 5)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"could not remove {tmp_path / 'step2'}: [Errno ")
    record.rmdir()
    callback.post_train()
    assert standing(tmp_path) == ["step4", "step5"]


def test_several_removals_that_failed_are_all_tried_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.run_bookkeeping_op = Bookkeeping(OSError(), OSError())  # type: ignore[attr-defined]
    callback = begun(run, save_interval=1, max_checkpoints=1)
    batches(callback, 1, 2, 3)
    callback.post_train()
    assert standing(tmp_path) == ["step3"]


class Dropping(Bookkeeping):
    """One that takes work and lets it lie."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[Callable[[], object]] = []

    def __call__(self, function: Any, *arguments: Any, op_name: str) -> None:
        self.jobs.append(partial(function, *arguments))


def test_removals_that_nobody_begins_are_made_without_the_run_and_never_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path)
    run.run_bookkeeping_op = bookkeeping = Dropping()  # type: ignore[attr-defined]
    callback = begun(run, save_interval=100, ephemeral_save_interval=2)
    callback._removals.patience_s = 0
    batches(callback, 2, 4, 6, 7)
    assert standing(tmp_path) == ["step2", "step4", "step6"]
    callback.post_train()
    assert standing(tmp_path) == ["step6", "step7"]
    assert caplog.messages == [
        f"run_bookkeeping_op has not begun to remove {tmp_path / name} within 0 seconds; it is removed without it"
        for name in ("step2", "step4")
    ]
    plant(tmp_path, 2, False)
    for job in bookkeeping.jobs:
        job()
    assert standing(tmp_path) == ["step2", "step6", "step7"]


def test_a_save_does_not_wait_for_a_removal_of_its_step_that_nobody_begins(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.run_bookkeeping_op = bookkeeping = Dropping()  # type: ignore[attr-defined]
    callback = begun(run, save_interval=100, ephemeral_save_interval=2)
    callback._removals.patience_s = 0
    batches(callback, 2, 4, 5, 2)  # a loop that goes back
    for job in bookkeeping.jobs:
        job()
    assert ephemeral_folder.is_complete(tmp_path / "step2")


def test_a_removal_that_has_begun_is_waited_for_without_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    has_begun, is_awaited, limits = threading.Event(), threading.Event(), list[float | None]()
    remove, wait = ephemeral_folder.remove, removals.wait

    def watched(futures: Any, timeout: float | None, until: str) -> Any:
        limits.append(timeout)
        is_awaited.set()
        return wait(futures, timeout, until)

    def slowly(path: Path) -> None:
        has_begun.set()
        assert is_awaited.wait(30)
        remove(path)

    monkeypatch.setattr(removals, "wait", watched)
    monkeypatch.setattr(ephemeral_folder, "remove", slowly)
    run = Run(tmp_path)
    run.run_bookkeeping_op = lambda job, removal, op_name: threading.Thread(  # type: ignore[attr-defined]
        target=job, args=[removal]
    ).start()
    callback = begun(run, save_interval=100, ephemeral_save_interval=2)
    callback._removals.patience_s = 0
    batches(callback, 2, 4, 5)
    assert has_begun.wait(30)
    callback.post_train()
    assert standing(tmp_path) == ["step4", "step5"]
    assert limits == [None]
    assert caplog.messages == []


def test_a_removal_that_is_called_again_while_it_runs_is_done_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    jobs, removed, remove = list[Callable[[], None]](), list[str](), ephemeral_folder.remove

    def now(job: Callable[[Any], None], removal: Any, op_name: str) -> None:
        jobs.append(partial(job, removal))
        jobs[-1]()

    def called_again(path: Path) -> None:
        removed.append(path.name)
        jobs[-1]()
        remove(path)

    monkeypatch.setattr(ephemeral_folder, "remove", called_again)
    run = Run(tmp_path)
    run.run_bookkeeping_op = now  # type: ignore[attr-defined]
    callback = begun(run, save_interval=100, ephemeral_save_interval=2)
    batches(callback, 2, 4, 5)
    assert removed == ["step2"]
    assert standing(tmp_path) == ["step4"]
    assert caplog.messages == []


def test_an_interrupted_removal_is_tried_again_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = begun(Run(tmp_path), save_interval=100, ephemeral_save_interval=2)
    batches(callback, 2, 4)

    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(ephemeral_folder, "remove", interrupted)
        batches(callback, 5)
    callback.post_train()
    assert standing(tmp_path) == ["step4", "step5"]


def test_a_run_that_asks_learns_that_a_removal_has_no_part_in_collectives(tmp_path: Path) -> None:
    run, asked = Run(tmp_path), list[bool]()

    def bookkeeping(job: Any, *arguments: Any, op_name: str = "", distributed: bool = True) -> None:
        asked.append(distributed)
        job(*arguments)

    run.run_bookkeeping_op = bookkeeping  # type: ignore[attr-defined]
    batches(begun(run, save_interval=100, ephemeral_save_interval=2), 2, 4, 5)
    assert asked == [False]
    assert standing(tmp_path) == ["step4"]


# -- the folder -----------------------------------------------------------------


def test_checkpoints_of_other_tools_are_named_and_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("step_2", "epoch=3-step=9.ckpt", "notes"):
        (tmp_path / name).mkdir()
    callback = begun(Run(tmp_path), save_interval=1)
    batches(callback, 1)
    callback.post_train()
    assert caplog.messages == [
        f"{tmp_path} holds checkpoints of another layout, such as epoch=3-step=9.ckpt; they are left alone, and no "
        "resume finds them"
    ]
    assert sorted(os.listdir(tmp_path)) == ["epoch=3-step=9.ckpt", "notes", "step1", "step_2"]


def test_a_checkpoint_whose_kind_can_not_be_read_is_named_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = plant(tmp_path, 2, True)
    (path / ".metadata.json").write_text("[")
    assert ephemeral_folder.recorded(path) == ephemeral_folder.UNREADABLE
    assert caplog.messages[0].startswith(f"{path} is kept, because its kind can't be read: ")
    assert "Expecting value" in caplog.messages[0]
    assert caplog.messages[0].endswith("; delete it by hand")


def test_one_listing_finds_what_is_complete_torn_and_of_others(tmp_path: Path) -> None:
    for step in (10, 9):
        plant(tmp_path, step, False)
    plant(tmp_path, 3, False, lacks="train/rank0.pt")
    (tmp_path / "step4").symlink_to("step9")
    (tmp_path / "step5").write_text("a file")
    (tmp_path / "latest").symlink_to("step9")
    for step, lacks in ((7, ""), (8, ".metadata.json"), (9, "")):
        plant(tmp_path, step if step != 9 else 99, False, lacks).rename(tmp_path / f".step_{step}.replaced")
    plant(tmp_path, 6, False).rename(tmp_path / f".step_6.{TOKEN}.partial")
    found = ephemeral_folder.contents(tmp_path)
    assert [(one.step, one.path.name) for one in found.complete] == [
        (7, ".step_7.replaced"),
        (9, "step9"),
        (10, "step10"),
    ]
    assert [one.path.name for one in found.pruned] == ["step3"]
    assert not found.debris and not found.foreign
    assert found.others == ["latest"]


def test_a_folder_that_is_not_there_has_nothing_in_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    nothing = ephemeral_folder.Contents()
    assert ephemeral_folder.contents(tmp_path / "none") == ephemeral_folder.contents(tmp_path / "file") == nothing


@pytest.mark.parametrize("name", REQUIRED)
def test_an_empty_file_and_a_directory_in_the_place_of_a_file_count_as_missing(tmp_path: Path, name: str) -> None:
    path = plant(tmp_path, 1, False)
    (path / name).write_text("1")
    assert ephemeral_folder.is_complete(path)
    (path / name).write_text("")
    assert ephemeral_folder.missing_files(path) == [name]
    (path / name).unlink()
    (path / name).mkdir()
    assert ephemeral_folder.missing_files(path) == [name]
    assert not ephemeral_folder.is_complete(path)


HIDDEN = [
    ".step_2.retired",
    ".step_2.retired.1",
    ".step_2.replaced",
    f".step_2.{TOKEN}.retired",
    f".step_2.{TOKEN}.partial",
    ".step_3.retired",
    ".step_3.replaced",
]


def with_hidden(folder: Path) -> Path:
    for name in HIDDEN:
        (folder / name).mkdir()
        (folder / name / "file").write_text("")
    return folder


@pytest.mark.parametrize("lacks", ["", ".metadata.json"], ids=["complete", "torn"])
def test_a_removal_takes_what_removals_of_its_step_have_left_and_nothing_else(tmp_path: Path, lacks: str) -> None:
    path = plant(with_hidden(tmp_path), 2, True, lacks)
    ephemeral_folder.remove(path)
    assert standing(tmp_path) == sorted(set(HIDDEN) - {".step_2.retired", ".step_2.retired.1"})
    ephemeral_folder.remove(path)


def test_a_save_clears_away_its_own_names_and_what_it_has_replaced(tmp_path: Path) -> None:
    with_hidden(tmp_path)
    ephemeral_folder.tidy(tmp_path / f".step_2.{TOKEN}.partial", 2)
    assert standing(tmp_path) == [".step_2.retired", ".step_2.retired.1", ".step_3.replaced", ".step_3.retired"]


# -- ranks ----------------------------------------------------------------------


@pytest.fixture
def group(request: pytest.FixtureRequest) -> Iterator[None]:
    """A process group of this process alone, with the backends that the test names."""
    dist.init_process_group(request.param, store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Grouped:
    """A checkpointer that may have a process group for what it writes in the background."""

    def __init__(self, process_group: Any = None) -> None:
        self.process_group = process_group


@pytest.mark.parametrize("group", ["gloo"], indirect=True)
def test_over_a_cpu_backend_saves_are_in_the_background_and_get_a_group_of_their_own(
    group: None, tmp_path: Path
) -> None:
    run = Run(tmp_path)
    run.checkpointer = Grouped()
    assert begun(run, save_async=None).save_async is True
    assert run.checkpointer.process_group not in (None, dist.group.WORLD)
    run.checkpointer = Grouped(dist.group.WORLD)
    begun(run, save_async=None)
    assert run.checkpointer.process_group is dist.group.WORLD
    run.checkpointer = Grouped()
    assert begun(run, save_async=False).save_async is False
    assert run.checkpointer.process_group is None


@pytest.mark.parametrize("group", ["cuda:gloo"], indirect=True)
def test_without_a_cpu_backend_saves_in_the_background_are_refused(group: None, tmp_path: Path) -> None:
    callback = CheckpointerCallback(save_async=None)
    callback.trainer = Run(tmp_path)
    callback._settle_async()
    assert callback.save_async is False
    callback.save_async = True
    message = (
        r"^save_async is True, and the process group has no CPU backend; initialise it with one, such as "
        r"cpu:gloo,cuda:nccl, or set save_async=False$"
    )
    with pytest.raises(RuntimeError, match=message):
        callback._settle_async()


def test_without_a_process_group_saves_are_in_the_background(tmp_path: Path) -> None:
    assert begun(Run(tmp_path), save_async=None).save_async is True


def test_ranks_that_are_configured_differently_are_refused_with_both_configurations() -> None:
    ephemeral._check_same(frozenset({"one"}))
    with pytest.raises(ValueError, match=r"^ranks are configured differently: one and two$"):
        ephemeral._check_same(frozenset({"two", "one"}))
