"""The suite's own look at a checkpoint folder, while a manager changes it."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from forge_conformance.adapter import Layout
from forge_conformance.runs.folder import DANGLING, Folder


@dataclass(frozen=True)
class MovedMeanwhile(Folder):
    """A folder whose manager moves the pointer, and deletes its old target, right after the first look at it."""

    def pointer_target(self) -> str | None:
        found = super().pointer_target()
        if found == "step_2":
            self.point_at("step_4")
            os.rmdir(self.path / "step_2")
        return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    for step in (2, 4):
        (tmp_path / f"step_{step}").mkdir()
    (tmp_path / "latest").symlink_to("step_2")
    return tmp_path


def test_a_pointer_that_moves_between_two_looks_is_not_dangling(path: Path) -> None:
    assert MovedMeanwhile(path, Layout()).latest() == 4


def test_a_pointer_whose_target_is_gone_dangles(path: Path) -> None:
    os.rmdir(path / "step_2")
    assert Folder(path, Layout()).latest() == DANGLING


@pytest.mark.parametrize("form", ["step_2", "{path}/step_2"], ids=["name", "path"])
def test_a_pointer_that_is_text_is_moved_in_the_form_in_which_the_manager_writes_it(path: Path, form: str) -> None:
    folder = Folder(path, Layout(pointer="last", pointer_kind="text"))
    written = form.format(path=path)
    (path / "last").write_text(written)
    folder.point_at("step_4")
    assert (folder.pointer_target(), folder.latest()) == (written.replace("step_2", "step_4"), 4)
    folder.point_at(None)
    assert folder.latest() is None


def test_a_torn_checkpoint_is_described_by_the_files_that_are_missing_and_those_that_are_empty(path: Path) -> None:
    layout = Layout(required=("marker", "state", "metadata"), pointer=None)
    for step, written in ((2, {"marker": b"", "state": b"1"}), (4, {"marker": b"1", "state": b"1", "metadata": b"1"})):
        for name, content in written.items():
            (path / f"step_{step}" / name).write_bytes(content)
    assert str(Folder(path, layout)) == "complete [4], torn 2 (without metadata, marker is empty)"


def test_a_torn_checkpoint_of_one_file_is_empty(tmp_path: Path) -> None:
    layout = Layout(checkpoint=r"(?P<step>\d+)\.pt", is_dir=False, required=(), pointer=None, name="{step}.pt")
    (tmp_path / "4.pt").touch()
    assert str(Folder(tmp_path, layout)) == "complete [], torn 4 (4.pt is empty)"


def test_a_look_is_of_one_moment_though_a_commit_comes_between(tmp_path: Path) -> None:
    layout = Layout(required=("marker",))
    commits = iter([5, 7])

    class Changing(Folder):
        """A commit and a deletion come after each of the first two looks at what is complete."""

        def complete(self) -> frozenset[int]:
            before = super().complete()
            if (step := next(commits, None)) is not None:
                _commit(self.path, step, layout)
                shutil.rmtree(self.of(step - 2))
            return before

    _commit(tmp_path, 3, layout)
    look = Changing(tmp_path, layout).look()
    assert (look.complete, look.resume_point, str(look)) == ({7}, 7, "complete [7], latest -> step_7")


def _commit(path: Path, step: int, layout: Layout) -> None:
    (path / layout.name.format(step=step)).mkdir()
    (path / layout.name.format(step=step) / "marker").write_text("whole")
    Folder(path, layout).point_at(layout.name.format(step=step))
