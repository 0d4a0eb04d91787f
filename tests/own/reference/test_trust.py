"""Which files are read at all; the files are real, and so are their owners and modes."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import make_foreign

from forge_ref import trust
from forge_ref.errors import DamagedError

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
    with pytest.raises(PermissionError, match="not a regular file"), trust.opened(tmp_path / "pipe"):
        pass


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


def _warned_of(caplog: Any) -> list[str]:
    return [text for text in caplog.messages if "unpickled in full" in text]


def test_full_unpickling_is_told_in_one_sentence(start: Start, caplog: Any) -> None:
    run = start()
    run.save(1, extra={"odd": Path("here")})
    start(seed=1).load()
    (said,) = _warned_of(caplog)
    assert said.startswith(f"{run.folder / 'step_1' / 'train_state.pt'} is unpickled in full, which may run code: Un")
    assert "Please" not in said
    assert ".;" not in said


def test_full_unpickling_of_a_form_is_told_with_its_part(start: Start, caplog: Any) -> None:
    run = start()
    run.optimizer.param_groups[0]["odd"] = Path("here")
    run.save(1)
    start(seed=1).load()
    (said,) = _warned_of(caplog)
    assert said.startswith(f"{run.folder / 'step_1'}, in the form of its optimizer, is unpickled in full")


@pytest.mark.parametrize("is_marker", [False, True])
@pytest.mark.parametrize("content", [b"garbage", pickle.dumps({"a": Path("here")})[:-1], pickle.dumps([1, 2])[:-1]])
def test_what_is_cut_off_is_damage_and_no_reason_to_run_code(
    start: Start, caplog: Any, is_marker: bool, content: bytes
) -> None:
    run = start()
    run.save(1)
    step = run.folder / "step_1"
    make_foreign(step, "{}")
    file = step / (".metadata" if is_marker else "train_state.pt")
    if is_marker:
        content = file.read_bytes()[:200] if content[:1] == b"\x80" else content
        file.write_bytes(content)
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/version", "3")
    with pytest.raises(DamagedError, match=f"{file} can't be read"):
        start(seed=1).load()
    assert not _warned_of(caplog)
