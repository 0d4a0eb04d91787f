"""A folder that is kept small, or is not: deletions beside training, and what many checkpoints cost, in operations."""

import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, names

from forge_ref import DynamicCheckpointWindow, TrainingRun, layout, storage
from forge_ref.retire import Deletion

FEW, MANY = 3, 300
EXIT = """
import shutil, sys, threading, torch, forge_ref
rmtree = shutil.rmtree
shutil.rmtree = lambda path: (threading.main_thread().join(), rmtree(path))
model = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
manager = forge_ref.CheckpointManager(forge_ref.CheckpointConfig(dir=sys.argv[1], keep_last_n=1), model, optimizer)
manager.save(1)
manager.save(2)
"""


def test_a_deletion_holds_up_no_save_and_no_load_but_the_next_save_writes_nothing_before_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, may_end, rmtree, order = Run(tmp_path, keep_last_n=1), threading.Event(), shutil.rmtree, list[str]()
    wait, write = Deletion.wait, storage.write

    def waited(deletion: Deletion, trash: Path | None = None) -> None:
        if trash is None:
            order.append("wait")
            may_end.set()
        wait(deletion, trash)

    def written(*arguments: Any) -> Any:
        order.append("write")
        return write(*arguments)

    monkeypatch.setattr(shutil, "rmtree", lambda path: (may_end.wait(), rmtree(path)))
    run.manager.save(1)
    run.manager.save(2)
    assert [name for name in names(tmp_path) if not name.startswith(".")] == ["latest", "step_2"]
    (hidden,) = layout.hidden_dirs(tmp_path)
    assert (hidden.role, os.listdir(hidden.path)) == ("retired", ["step_1"])
    assert run.manager.load()[0] == 2
    assert not may_end.is_set()
    monkeypatch.setattr(Deletion, "wait", waited)
    monkeypatch.setattr(storage, "write", written)
    run.manager.save(3)
    assert order[:2] == ["wait", "write"]
    run.manager.wait()
    assert names(tmp_path) == ["latest", "step_3"]


def test_a_step_that_is_saved_again_waits_for_the_deletion_of_its_first_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, may_end, rmtree, wait = Run(tmp_path, keep_last_n=1), threading.Event(), shutil.rmtree, Deletion.wait

    def waited(deletion: Deletion, trash: Path | None = None) -> None:
        if trash is not None and trash.exists():
            may_end.set()
        wait(deletion, trash)

    run.manager.save(1)
    monkeypatch.setattr(shutil, "rmtree", lambda path: (may_end.wait(), rmtree(path)))
    run.manager.save(2)
    monkeypatch.setattr(Deletion, "wait", waited)
    run.manager.save(2)
    run.manager.wait()
    assert may_end.is_set()
    assert names(tmp_path) == ["latest", "step_2"]


def test_a_normal_exit_waits_for_the_deletion(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", EXIT, str(tmp_path)], check=True)
    assert names(tmp_path) == ["latest", "step_2"]


def test_what_a_killed_deletion_left_goes_before_the_next_process_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill = EXIT.replace("threading.main_thread().join(), rmtree(path)", "ready.set(), threading.Event().wait()")
    kill = kill.replace("rmtree = ", "ready = threading.Event()\nrmtree = ", 1)
    died = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"{kill}ready.wait()\nimport os\nos.kill(os.getpid(), 9)", str(tmp_path)]
    )
    assert died.returncode == -9
    assert [one.role for one in layout.hidden_dirs(tmp_path)] == ["retired"]
    run, write, seen = Run(tmp_path, keep_last_n=1), storage.write, list[str]()

    def written(*arguments: Any) -> Any:
        seen.extend(one.role for one in layout.hidden_dirs(tmp_path))
        return write(*arguments)

    monkeypatch.setattr(storage, "write", written)
    assert run.manager.peek_saved_step() == 2
    run.save(3)
    assert sorted(seen) == ["partial", "retired"], "those of this save, and no others"
    assert names(tmp_path) == ["latest", "step_3"]


class Counted:
    """How many of the calls that name or read something in a file system this process makes."""

    NAMES = ("stat", "lstat", "scandir", "listdir", "open", "readlink", "access", "rename", "mkdir", "unlink", "rmdir")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: Counter[str] = Counter()
        for name in self.NAMES:
            monkeypatch.setattr(os, name, partial(self._call, name, getattr(os, name)))

    def _call(self, name: str, real: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        self.calls[name] += 1
        return real(*arguments, **options)

    def of(self, job: Callable[[], object]) -> Counter[str]:
        self.calls.clear()
        job()
        return Counter(self.calls)


@pytest.mark.parametrize("kept", ["all", "the newest", "milestones"])
def test_a_save_and_a_load_cost_as_many_calls_however_many_checkpoints_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    counted, found = Counted(monkeypatch), []
    for number in (FEW, MANY):
        folder = tmp_path / str(number)
        window = DynamicCheckpointWindow(0, 9) if kept == "milestones" else None
        run = Run(folder, keep_last_n=0 if kept == "all" else 2, dyn_ckpt_window=window)
        run.save(1)
        for step in range(1000, 1000 + number):
            shutil.copytree(folder / "step_1", folder / f"step_{step}", copy_function=os.link)
        run.save(2000)  # the first commit of a process looks at each checkpoint that it may have to delete, once
        costs = [counted.of(partial(run.save, 2001)), counted.of(run.load)]
        (folder / "latest").unlink()
        found.append([*costs, counted.of(run.load)])
        assert len(layout.step_dirs(folder)) == (2 if kept == "the newest" else number + 3)
    assert found[0] == found[1]


def test_a_resume_of_the_second_design_looks_at_no_checkpoint_below_the_newest_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, found = Counted(monkeypatch), []
    for number in (FEW, MANY):
        made = Run(tmp_path / "unused")
        run = TrainingRun(tmp_path / str(number), made.model, made.optimizer)
        first = run.save_checkpoint()
        for step in range(number):
            shutil.copytree(first, first.with_name(f"step{step + 1000}"), copy_function=os.link)
        run.global_step = 2000
        run.save_checkpoint()
        found.append([counted.of(run.save_checkpoint), counted.of(run.load_checkpoint)])
        assert run.global_step == 2000
    assert found[0] == found[1]
