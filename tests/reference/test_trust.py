"""Which files are read at all; the files are real, and so are their owners and modes."""

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forge_ref import trust

Start = Callable[..., Any]
Same = Callable[[Any, Any], bool]
PICKLES = pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "train_state.pt"])


@PICKLES
def test_a_symlink_is_refused_before_anything_changes(start: Start, equal: Same, name: str) -> None:
    start().save(1)
    run = start(seed=1)
    file = run.folder / "step_1" / name
    file.rename(run.folder / "elsewhere")
    file.symlink_to(run.folder / "elsewhere")
    before = run.picture()
    with pytest.raises(PermissionError, match=f"{name} is a symlink"):
        run.load()
    assert equal(run.picture(), before)


@PICKLES
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_foreign_file_is_refused_before_anything_changes(start: Start, equal: Same, name: str) -> None:
    start().save(1)
    run = start(seed=1)
    os.chown(run.folder / "step_1" / name, 4711, -1)
    before = run.picture()
    with pytest.raises(PermissionError, match=rf"{name} is owned by uid 4711.*uid 0.*chown"):
        run.load()
    assert equal(run.picture(), before)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PermissionError, match="not a regular file"):
        trust.read(tmp_path / "pipe")


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_what_others_may_write_to_is_warned_of(start: Start, caplog: Any, mode: int) -> None:
    run = start()
    run.save(1)
    step = run.folder / "step_1"
    (step / "train_state.pt").chmod(mode)
    step.chmod(mode)
    start(seed=1).load()
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any(str(step / "train_state.pt") in text and oct(mode) in text for text in warned)
    assert any(text.startswith(f"{step} ") and oct(mode) in text for text in warned)
    caplog.clear()
    step.chmod(mode | 0o1000)
    (step / "train_state.pt").chmod(0o600)
    start(seed=1).load()
    assert not any("mode" in record.getMessage() for record in caplog.records if record.levelname == "WARNING")


class _Opens:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def test_a_marker_that_is_plain_runs_no_code(start: Start, tmp_path: Path) -> None:
    run = start()
    run.save(1)
    marker = (run.folder / "step_1" / ".metadata").read_bytes()
    plain = trust.MarkerUnpickler  # what is tried first
    assert plain(io.BytesIO(marker)).load() == pickle.loads(marker)
    with pytest.raises(pickle.UnpicklingError, match="open"):
        plain(io.BytesIO(pickle.dumps(_Opens(tmp_path / "trace")))).load()
    assert not (tmp_path / "trace").exists()
