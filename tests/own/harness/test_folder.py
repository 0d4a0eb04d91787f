"""The suite's own look at a checkpoint folder, while a manager changes it."""

import os
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
