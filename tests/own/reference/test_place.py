"""Where paths lead, what is refused before a run trains, and what the umask decides."""

import os
import signal
import stat
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import names

import forge_ref
from forge_ref import CheckpointConfig, CheckpointManager, DynamicCheckpointWindow, paths

Start = Callable[..., Any]
NOBODY = 65534


def manager(**config: Any) -> CheckpointManager:
    model = torch.nn.Linear(2, 1)
    return CheckpointManager(CheckpointConfig(**config), model, torch.optim.SGD(model.parameters()))


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


# -- where a path leads -------------------------------------------------------------


def test_a_path_means_what_a_shell_and_the_kernel_would_make_of_it(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")
    leads = {
        "~": tmp_path / "home",
        "~/x y": tmp_path / "home" / "x y",
        "./~": tmp_path / "~",
        "x/~": tmp_path / "x" / "~",
        "run/./1/": tmp_path / "run" / "1",
        "link/run": tmp_path / "link" / "run",
        "link/../run": tmp_path / "a" / "run",
        str(tmp_path / "run"): tmp_path / "run",
        "$HOME/%d{}*": tmp_path / "$HOME" / "%d{}*",
    }
    for written, full in leads.items():
        assert paths.located(written, "dir", paths.here()) == full
    assert paths.located(Path("~/x"), "dir", "/elsewhere") == tmp_path / "home" / "x"
    assert paths.located("x", "dir", "/elsewhere") == Path("/elsewhere/x")


def test_a_home_directory_that_is_not_known_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^dir is '~nobody-at-all/x', .* ~nobody-at-all is not known; .*\./~nobody"):
        manager(dir="~nobody-at-all/x")
    with pytest.raises(ValueError, match=r"^load_path is '~nobody-at-all', "):
        manager(load_path="~nobody-at-all")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    with pytest.raises(ValueError, match=r"^dir is '~/x', and the home directory ~ is not known"):
        manager(dir="~/x")


def test_without_home_the_system_knows_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    monkeypatch.delenv("HOME")
    assert paths.located("~/x", "dir", "/") == Path(pwd.getpwuid(os.getuid()).pw_dir) / "x"


def test_only_a_relative_path_minds_that_the_working_directory_is_gone(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileNotFoundError, match=r"^dir is 'run', and the working directory was deleted"):
        manager(dir="run")
    made = manager(dir=tmp_path / "run")
    made.save(1)
    assert made.load()[0] == 1


def test_the_folder_is_fixed_and_a_path_in_a_call_is_seen_from_where_the_process_is(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    one = manager(dir="run")
    os.chdir(tmp_path / "deep")
    one.save(1)
    one.save(2)
    assert names(tmp_path / "run") == ["latest", "step_1", "step_2"]
    assert one.load("../run/step_1")[0] == one.peek_saved_step("../run/step_1") == 1
    with pytest.raises(FileNotFoundError, match="step_1"):
        one.load("run/step_1")
    os.chdir(tmp_path)
    named = manager(dir="other", load_path="run/step_1")
    os.chdir(tmp_path / "deep")
    assert named.load()[0] == named.peek_saved_step() == 1
    named.config.load_path = "run/step_2"  # launchers patch fields
    assert named.load()[0] == 2
    assert os.listdir(tmp_path / "deep") == []


def test_a_link_to_a_checkpoint_and_a_path_below_home_can_be_named(tmp_path: Path) -> None:
    one = manager(dir=Path("~/run"))
    one.save(1)
    (tmp_path / "best").symlink_to(tmp_path / "home" / "run" / "step_1")
    for named in ("best", Path("best"), "~/run/step_1", str(tmp_path / "best") + "/"):
        assert manager(dir="elsewhere").load(named)[0] == 1
    assert not (tmp_path / "elsewhere").exists()


def test_the_folder_may_have_any_name_and_need_not_be_there(tmp_path: Path) -> None:
    odd = os.fsdecode(b"not \xff text\n[1]*?%d{step}")
    for written in (odd, f"a/{odd}/b/c", "-rf", " ", "step_3", "~/" + odd, "n" * 255):
        manager(dir=written).save(3)
        assert manager(dir=written).load()[0] == 3
        assert manager(dir=paths.located(written, "dir", str(tmp_path))).load()[0] == 3


# -- what can't be a folder ---------------------------------------------------------


def test_what_can_not_be_a_folder_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("somebody's data")
    (tmp_path / "dangling").symlink_to("/mnt/not-there")
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "to-file").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(os.listdir(tmp_path))
    says = {
        "file": "file is not a directory; move it away",
        "file/below/it": "file is not a directory",
        "to-file": "to-file is not a directory",
        "pipe": "pipe is not a directory",
        "/dev/null": "/dev/null is not a directory",
        "dangling": "dangling is a symlink to /mnt/not-there, which is missing",
        "dangling/run": "dangling is a symlink to",
        "round": "round is a symlink that leads to itself",
        "n" * 256: "nnn is longer than 255 bytes",
        "a/" + "n" * 256 + "/run": "nnn is longer than 255 bytes",
    }
    for written, said in says.items():
        with pytest.raises(NotADirectoryError, match=said) as refused:
            manager(dir=written)
        assert str(refused.value).startswith(f"dir is {paths.located(written, 'dir', str(tmp_path))}, ")
    assert sorted(os.listdir(tmp_path)) == before
    assert (tmp_path / "file").read_text() == "somebody's data"


def test_making_a_manager_makes_nothing(tmp_path: Path) -> None:
    before = sorted(os.listdir(tmp_path))
    assert manager(dir="a/b").load() == (0, 0, {})
    assert sorted(os.listdir(tmp_path)) == before


def test_export_expands_refuses_and_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = manager(dir="run")
    one.export("~/weights.pt")
    one.export(Path("weights.pt"))
    assert torch.load("weights.pt").keys() == torch.load(tmp_path / "home" / "weights.pt").keys()
    with pytest.raises(IsADirectoryError, match=r"home, which is a directory; write the name of a file"):
        one.export("~")
    with pytest.raises(FileNotFoundError, match=r"the directory .*/missing does not exist; make it first"):
        one.export("missing/weights.pt")
    with pytest.raises(ValueError, match="the path to export to is ''"):
        one.export("")
    before = sorted(os.listdir(tmp_path))
    monkeypatch.setattr("os.rename", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        one.export("other.pt")
    assert sorted(os.listdir(tmp_path)) == before


# -- arguments ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "error", "says"),
    [
        ("dir", "", ValueError, "dir is ''; write the path"),
        ("dir", "a\0b", ValueError, r"dir is 'a\\x00b'"),
        ("dir", b"run", TypeError, "dir is b'run'; it must be a path"),
        ("dir", None, TypeError, "dir is None"),
        ("dir", 3, TypeError, "dir is 3"),
        ("load_path", "", ValueError, "load_path is ''"),
        ("load_path", ["run"], TypeError, r"load_path is \['run'\]"),
        ("interval", "2", TypeError, "interval is '2'; it must be an integer"),
        ("interval", 2.0, TypeError, "interval is 2.0"),
        ("interval", True, TypeError, "interval is True"),
        ("interval", None, TypeError, "interval is None"),
        ("interval", 0, ValueError, "interval is 0; it must be 1 or more"),
        ("keep_last_n", "2", TypeError, "keep_last_n is '2'"),
        ("keep_last_n", None, TypeError, "keep_last_n is None"),
        ("keep_last_n", float("nan"), TypeError, "keep_last_n is nan"),
        ("ignore_freeze_mismatch", "false", TypeError, "ignore_freeze_mismatch is 'false'; it must be True or False"),
        ("ignore_freeze_mismatch", 1, TypeError, "ignore_freeze_mismatch is 1"),
        (
            "exclude_from_loading",
            "model",
            TypeError,
            r"exclude_from_loading is the string 'model'; write .*\['model'\]",
        ),
        ("exclude_from_loading", None, TypeError, "exclude_from_loading is None; it must be a list of strings"),
        ("exclude_from_loading", [1], TypeError, r"exclude_from_loading is \[1\]"),
        ("dyn_ckpt_window", {"start": 0}, TypeError, "dyn_ckpt_window is {'start': 0}; make it a Dynamic"),
        ("async_mode", None, ValueError, "async_mode is None; known: disabled"),
        ("async_mode", ["async"], ValueError, "async_mode is"),
        ("export_dtype", torch.bfloat16, ValueError, "export_dtype is torch.bfloat16; known: float32"),
    ],
)
def test_a_field_that_can_not_be_meant_is_refused_when_made_and_when_used(
    field: str, value: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=f"^{says}"):
        CheckpointConfig(**{field: value})
    patched = CheckpointConfig()
    setattr(patched, field, value)
    model = torch.nn.Linear(2, 1)
    with pytest.raises(error, match=f"^{says}"):
        CheckpointManager(patched, model, torch.optim.SGD(model.parameters()))


@pytest.mark.parametrize(
    ("window", "says"),
    [
        ({"start": "1"}, "start is '1'"),
        ({"start": 1.0}, "start is 1.0"),
        ({"stop": None}, "stop is None"),
        ({"stop": True}, "stop is True"),
        ({"strategy": max}, "strategy is <built-in function max>; it must be a string"),
    ],
)
def test_a_field_of_a_window_is_refused_by_its_name(window: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError, match=rf"^dyn_ckpt_window\.{says}"):
        DynamicCheckpointWindow(**window)


def test_arguments_of_calls_are_refused_by_their_names(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters())
    config: Any = {"dir": "run"}
    with pytest.raises(TypeError, match=r"^config is dict; make it a CheckpointConfig"):
        CheckpointManager(config, model, optimizer)
    swapped: Any = (optimizer, model)
    with pytest.raises(TypeError, match=r"^model is SGD; it must be a torch.nn.Module"):
        CheckpointManager(CheckpointConfig(), *swapped)
    with pytest.raises(TypeError, match=r"^optimizer is Linear; it must be a torch.optim.Optimizer"):
        CheckpointManager(CheckpointConfig(), model, model)  # type: ignore[arg-type]
    for timeout, kind in ((60, TypeError), (timedelta(0), ValueError)):
        with pytest.raises(kind, match=r"^timeout is "):
            CheckpointManager(CheckpointConfig(), model, optimizer, timeout=timeout)  # type: ignore[arg-type]
    one: Any = manager(dir="run")
    one.save(1)
    for call, error, says in (
        (lambda: one.save("2"), TypeError, "step is '2'; it must be an integer"),
        (lambda: one.save(True), TypeError, "step is True"),
        (lambda: one.save(-1), ValueError, "step is -1; it must be 0 or more"),
        (lambda: one.save(2, tokens_seen=1e9), TypeError, "tokens_seen is 1000000000.0"),
        (lambda: one.load(exclude_keys="model"), TypeError, "exclude_keys is the string 'model'"),
        (
            lambda: one.load(vlm_freeze_expected=["vision"]),
            TypeError,
            r"vlm_freeze_expected is \['vision'\]; it must be",
        ),
        (lambda: one.load(path=3), TypeError, "the path to load is 3; it must be a path"),
        (lambda: one.load(path=""), ValueError, "the path to load is ''"),
    ):
        with pytest.raises(error, match=f"^{says}"):
            call()
    assert names(Path("run")) == ["latest", "step_1"]
    with pytest.raises(TypeError, match=r"^the name of a strategy is <function"):
        forge_ref.registry.register_dyn_ckpt_strategy(lambda window, step: True)  # type: ignore[arg-type]


# -- who may read and write ---------------------------------------------------------


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that everybody can reach, unlike pytest's."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o777)
        yield Path(made)


def as_nobody(job: Callable[[], object]) -> None:
    """Do it in a process that has no more rights than its mode bits give it."""
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            job()
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("umask", [0o777, 0o200, 0o400, 0o100], ids="{:03o}".format)
def test_a_umask_that_locks_the_owner_out_is_refused_and_leaves_nothing(open_place: Path, umask: int) -> None:
    def job() -> None:
        os.chdir(open_place)
        one = manager(dir=open_place / "a" / "run")
        os.umask(umask)
        with pytest.raises(PermissionError, match=rf"umask of this process .*mode {0o777 & ~umask:03o}, .* 022 or 077"):
            one.save(1)
        assert os.listdir(open_place) == []
        os.umask(0o022)
        one.save(1)
        os.umask(umask)
        with pytest.raises(PermissionError, match="umask"):
            one.save(2)
        assert names(open_place / "a" / "run") == ["latest", "step_1"]
        assert one.load()[0] == 1

    as_nobody(job)


def test_what_may_yet_become_right_is_not_refused(open_place: Path) -> None:
    def job() -> None:
        os.umask(0o022)
        os.chdir(open_place)
        run, locked = open_place / "run", open_place / "locked"
        one = manager(dir=run)
        one.save(1)
        run.chmod(0o555)
        assert manager(dir=run).load()[0] == 1
        with pytest.raises(PermissionError, match=str(run)):
            one.save(2)
        reader = manager(dir=open_place / "elsewhere", load_path=run / "step_1")
        assert reader.load()[0] == 1
        reader.save(2)
        run.chmod(0o755)
        one.save(2)
        locked.mkdir(mode=0o000)
        shut = manager(dir=locked / "run")
        with pytest.raises(PermissionError, match="locked"):
            shut.load()  # a fresh start would be wrong: who knows what is in there
        locked.chmod(0o755)
        assert shut.load() == (0, 0, {})

    as_nobody(job)


def test_folders_above_and_exports_follow_the_umask(tmp_path: Path) -> None:
    for umask in (0o077, 0o002, 0o022):
        before = os.umask(umask)
        try:
            one = manager(dir=f"top{umask}/run", async_mode="async")
            one.save(1)
            one.wait()
            one.export(f"weights{umask}.pt")
        finally:
            os.umask(before)
        for path in (Path(f"top{umask}"), *Path(f"top{umask}").rglob("*"), Path(f"weights{umask}.pt")):
            if not path.is_symlink():
                assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~umask


def test_handlers_and_the_temporary_folder_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    monkeypatch.setattr(tempfile, "_get_default_tempdir", lambda: (_ for _ in ()).throw(FileNotFoundError("none")))
    monkeypatch.setattr(tempfile, "tempdir", None)
    before = [signal.getsignal(number) for number in signal.valid_signals()]
    one = manager(dir="run", async_mode="async")
    one.save(1)
    one.wait()
    assert one.load()[0] == 1
    one.export("weights.pt")
    assert [signal.getsignal(number) for number in signal.valid_signals()] == before
