"""One process at a time saves into a folder: locks, take-overs, forks and races, with real processes."""

import errno
import fcntl
import gc
import itertools
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from other_process import OtherProcess

from forge_ref import CheckpointConfig, CheckpointManager, FolderInUseError, SaveError, layout, publish, writer
from forge_ref.channel import OnRankError

Start = Callable[..., Any]
Same = Callable[[Any, Any], bool]
pytestmark = pytest.mark.usefixtures("without_fsync")

SCRIPT = """
import os, sys
sys.path.insert(0, {here!r})
import torch
from conftest import Run
from other_process import OtherProcess
os.fsync = lambda descriptor: None
torch.set_num_threads(1)  # as in the tests: the last bits of a sum depend on it
run = Run({folder!r}, {seed}, **{config!r})
"""
SAVES = """
run.save(1)
print("saved", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., OtherProcess]]:
    """Starts a process that runs some code with a run of its own over the test's folder."""
    started: list[OtherProcess] = []

    def start(code: str, seed: int = 0, **config: Any) -> OtherProcess:
        here, folder = str(Path(__file__).parent), tmp_path / "checkpoints"
        text = SCRIPT.format(here=here, folder=str(folder), seed=seed, config=config).replace(
            repr(str(folder)), f"__import__('pathlib').Path({str(folder)!r})", 1
        )
        one = OtherProcess(text + code)
        started.append(one)
        return one

    yield start
    for one in started:
        one.close()


def seen(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All that a resume may look at: which file it is, and its content."""
    found = {
        str(path.relative_to(folder)): (path.lstat().st_ino, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and not str(path.relative_to(folder)).startswith(".")
    }
    return {**found, "latest": (0, os.readlink(folder / "latest").encode())}


def test_a_second_process_is_refused_and_told_by_whom_since_when_and_what_to_do(
    start: Start, process: Callable[..., OtherProcess], tmp_path: Path
) -> None:
    holder = process(SAVES)
    assert holder.line() == "saved"
    run = start(seed=1)
    before = seen(run.folder)
    assert run.manager.peek_saved_step() == 1, "to look is free"
    with pytest.raises(FolderInUseError) as refused:
        run.save(1)
    since = json.loads((run.folder / ".writer").read_text())["since"]
    for said in (str(run.folder), socket.gethostname(), f"process {holder.pid} ", since, "take_over=True"):
        assert said in str(refused.value)
    assert seen(run.folder) == before
    assert not [name for name in os.listdir(run.folder) if name.startswith(".step") or name.startswith(".latest")]
    holder.kill()
    run.save(2)
    assert run.manager.peek_saved_step() == 2, "a dead holder locks nobody out"


def test_the_job_is_told_and_what_others_wrote_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77\x1b[31m")
    told = writer._who(writer._content_of_this_process())
    assert "(SLURM_JOB_ID=77\\x1b[31m)" in told
    assert "an unknown process" in writer._who(b"")
    assert "an unknown process" in writer._who(b'{"host": "a"}')


def test_a_folder_is_let_go_when_its_last_manager_is_gone(start: Start, process: Callable[..., OtherProcess]) -> None:
    run = start()
    run.save(1)
    del run
    gc.collect()
    assert process(SAVES).line() == "saved"


def test_managers_of_one_process_follow_one_another_and_wait_for_a_flush(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = start(async_mode="async"), start(seed=1)
    may_go_on, write = threading.Event(), publish.write

    def held(path: Path, content: bytes) -> None:
        if threading.current_thread() is not threading.main_thread():
            may_go_on.wait(60)
        write(path, content)

    monkeypatch.setattr(publish, "write", held)
    first.save(1)
    threading.Timer(0.2, may_go_on.set).start()
    second.save(2)
    first.manager.wait()
    assert (first.folder / "step_1").is_dir() and (first.folder / "step_2").is_dir()
    first.save(3)
    first.manager.wait()
    second.save(4)
    assert os.readlink(first.folder / "latest") == "step_4"


def test_two_threads_of_one_process_never_share_a_directory(start: Start) -> None:
    one, other = start(), start(seed=1)
    errors: list[BaseException] = []

    def save(run: Any) -> None:
        for step in range(1, 6):
            try:
                run.manager.save(step, step)
            except (SaveError, OSError) as error:
                errors.append(error)

    threads = [threading.Thread(target=save, args=(run,)) for run in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found in layout.step_dirs(one.folder):
        assert found.is_complete
        start(seed=2).load(found.path)


def test_a_forked_child_holds_nothing_and_can_not_save(start: Start, process: Callable[..., OtherProcess]) -> None:
    parent = process("""
run.save(1)
child = os.fork()
if child == 0:
    from forge_ref import FolderInUseError
    try:
        run.save(2)
    except FolderInUseError:
        print("child refused", flush=True)
    import signal
    while True:
        signal.pause()
print(child, flush=True)
sys.stdin.readline()
""")
    lines = {parent.line(), parent.line()}
    (child,) = lines - {"child refused"}
    assert "child refused" in lines
    try:
        parent.kill()
        os.kill(int(child), 0)
        start(seed=1).save(3)
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_what_is_read_of_the_folder_in_the_process_does_not_drop_the_lock(
    start: Start, process: Callable[..., OtherProcess]
) -> None:
    run = start()
    run.save(1)
    (run.folder / ".writer").read_bytes()
    assert "FolderInUseError" in process(SAVES, 1).line()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_where_files_can_not_be_locked_a_warning_says_so_once_and_nothing_mixes(
    start: Start,
    process: Callable[..., OtherProcess],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
) -> None:
    def unable(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "fcntl", unable)
    monkeypatch.setattr(writer, "_has_warned", False)
    run = start()
    run.save(1)
    run.save(2)
    start(seed=1).save(3)
    assert len([message for message in caplog.messages if "can't lock files" in message]) == 1
    other = process("run.train(1)\n" + SAVES, 1)
    assert other.line() == "saved"
    with pytest.raises(FolderInUseError, match=f"taken over: process {other.pid} "):
        run.save(4)


def test_other_errors_of_a_lock_are_raised(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    run = start()
    monkeypatch.setattr(fcntl, "fcntl", broken)
    with pytest.raises(OSError, match="input/output"):
        run.save(1)
    monkeypatch.undo()
    run.save(1)


@pytest.mark.parametrize("kind", ["directory", "link", "pipe"])
def test_a_name_that_somebody_else_holds_is_refused(start: Start, kind: str) -> None:
    run = start()
    run.folder.mkdir()
    place = run.folder / ".writer"
    {"directory": place.mkdir, "link": lambda: place.symlink_to("nowhere"), "pipe": lambda: os.mkfifo(place)}[kind]()
    with pytest.raises(FileExistsError, match="is not a regular file"):
        run.save(1)
    assert os.listdir(run.folder) == [".writer"]


def test_a_folder_that_was_emptied_or_put_back_is_held_anew(start: Start, process: Callable[..., OtherProcess]) -> None:
    run = start()
    run.save(1)
    (run.folder / ".writer").unlink()
    run.save(2)
    content = (run.folder / ".writer").read_bytes()
    (run.folder / ".writer").unlink()
    (run.folder / ".writer").write_bytes(content)
    run.save(3)
    assert "FolderInUseError" in process(SAVES, 1).line()


OTHER = """
import gc, os, sys
from pathlib import Path
os.fsync = lambda descriptor: None
sys.path.insert(0, {here!r})
from conftest import Run
for line in sys.stdin:
    what, folder, step = line.split(" ", 2)
    if what == "take":
        run = Run(Path(folder), 1)
        run.manager._saver._writer._takes_over = True
        run.train(2)
        run.save(int(step))
    else:
        run = None
        gc.collect()
    print("done", flush=True)
"""


class Taker:
    """Another process, which takes a folder over and saves there when it is told to, and lets go of it."""

    def __init__(self) -> None:
        code = OTHER.format(here=str(Path(__file__).parent))
        self.process = OtherProcess(code)

    def takes(self, folder: Path, step: int) -> None:
        self._do(f"take {folder} {step}")

    def lets_go(self) -> None:
        self._do("leave . 0")

    def _do(self, what: str) -> None:
        self.process.tell(what)
        assert self.process.line() == "done"


@pytest.fixture(scope="module")
def taker() -> Iterator[Taker]:
    taker = Taker()
    yield taker
    taker.process.close()


def renames(monkeypatch: pytest.MonkeyPatch, before: Callable[[str, str], None]) -> None:
    """Call `before` with both names before each rename and exchange."""
    rename, exchange = os.rename, publish.exchange

    def renaming(one: Any, other: Any) -> None:
        before(str(one), str(other))
        rename(one, other)

    def exchanging(one: Path, other: Path) -> bool:
        before(str(one), str(other))
        return exchange(one, other)

    monkeypatch.setattr(os, "rename", renaming)
    monkeypatch.setattr(publish, "exchange", exchanging)


@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "two-renames"])
@pytest.mark.parametrize("step", [3, 4], ids=["again", "new"])
def test_a_save_that_is_taken_over_right_before_a_rename_changes_nothing_any_more(
    tmp_path: Path, taker: Taker, monkeypatch: pytest.MonkeyPatch, step: int, exchanges: bool
) -> None:
    """Before each rename of a save, those of its pruning included."""
    if not exchanges:
        monkeypatch.setattr(publish, "exchange", lambda *_: False)
    for number in itertools.count():
        run = Run(tmp_path / str(number), keep_last_n=1)
        with monkeypatch.context() as patched:
            if not _is_taken_over_at(run, taker, patched, number, step):
                break
    assert number >= 3


def test_an_exchange_that_fails_is_an_error_and_not_taken_for_a_system_that_has_none(tmp_path: Path) -> None:
    """Else the first of two renames would take the step of whoever has taken the folder over."""
    (tmp_path / "step_3").mkdir()
    with pytest.raises(FileNotFoundError, match=r"gone.*step_3"):
        publish.exchange(tmp_path / "gone", tmp_path / "step_3")
    assert publish.exchange(tmp_path, tmp_path / "step_3") is False  # which the system can't, by EINVAL


def _is_taken_over_at(run: Run, taker: Taker, monkeypatch: pytest.MonkeyPatch, number: int, step: int) -> bool:
    """Whether the save has so many renames."""
    for saved in (1, 2, 3):
        run.save(saved)
    (run.folder / ".step_0.partial").mkdir()
    run.train(1)
    count, after = 0, dict[str, tuple[int, bytes]]()

    def before(one: str, other: str) -> None:
        nonlocal count
        if "replaced" not in one + other and count == number:  # the one that is not fenced, see `writer`
            taker.takes(run.folder, 3)
            after.update(seen(run.folder))
        count += 1

    renames(monkeypatch, before)
    try:
        run.save(step)
        is_saved = True
    except (SaveError, FolderInUseError):
        is_saved = False
    if not after:
        return count > number
    assert seen(run.folder) == after
    assert not is_saved or number > 0
    for _ in range(2):
        with pytest.raises(FolderInUseError, match="taken over"):
            run.save(5)
        taker.lets_go()
    assert seen(run.folder) == after
    assert Run(run.folder, 2).load()[0] == 3
    return True


def test_a_commit_after_a_take_over_says_so_whenever_it_came(
    start: Start, taker: Taker, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, write, is_taken = start(async_mode="async"), publish.write, False
    run.save(1)
    run.manager.wait()

    def writing(path: Path, content: bytes) -> None:
        nonlocal is_taken
        if not is_taken:
            taker.takes(run.folder, 7)
        is_taken = True
        write(path, content)

    monkeypatch.setattr(publish, "write", writing)
    run.save(2)
    with pytest.raises(SaveError, match=r"nothing was committed: FolderInUseError: .* was taken over: process"):
        run.manager.wait()
    assert sorted(name for name in os.listdir(run.folder) if name.startswith(".")) == [".writer"]


def test_who_was_taken_over_can_choose_to_take_it_back_with_a_new_manager(start: Start, taker: Taker) -> None:
    run = start()
    run.save(1)
    taker.takes(run.folder, 2)
    with pytest.raises(FolderInUseError):
        run.save(3)
    back = CheckpointManager(CheckpointConfig(dir=str(run.folder)), run.model, run.optimizer, take_over=True)
    back.save(3)
    assert back.peek_saved_step() == 3


def test_to_take_over_what_nobody_holds_is_to_save(start: Start) -> None:
    run = start()
    manager = CheckpointManager(CheckpointConfig(dir=str(run.folder)), run.model, run.optimizer, take_over=True)
    manager.save(1)
    manager.save(2)
    run.save(3)
    assert sorted(os.listdir(run.folder)) == [".writer", "latest", "step_1", "step_2", "step_3"]


def test_who_loses_its_new_file_to_another_take_over_looks_again(
    start: Start, taker: Taker, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start()
    taker.takes(run.folder, 1)
    lost: list[str] = []

    def before(one: str, other: str) -> None:
        if other.endswith("/.writer") and not lost:
            lost.append(one)
            os.unlink(one)  # as the other one does when it comes to hold the folder

    renames(monkeypatch, before)
    manager = CheckpointManager(CheckpointConfig(dir=str(run.folder)), run.model, run.optimizer, take_over=True)
    manager.save(2)
    taker.lets_go()
    assert len(lost) == 1
    assert json.loads((run.folder / ".writer").read_text())["pid"] == os.getpid()
    assert sorted(os.listdir(run.folder)) == [".writer", "latest", "step_1", "step_2"]


def test_what_fails_on_another_rank_after_a_take_over_is_blamed_on_it(start: Start, taker: Taker) -> None:
    run = start()
    run.save(1)
    taker.takes(run.folder, 2)
    with pytest.raises(FolderInUseError, match="was taken over"), run.manager._saver._writer.naming_take_over():
        raise OnRankError(0, FileNotFoundError("__0_0.distcp")).as_raised()
    taker.lets_go()


def test_a_file_of_another_user_that_is_dead_is_replaced(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start()
    run.folder.mkdir()
    (run.folder / ".writer").write_text("somebody else's")
    opened = os.open

    def refusing(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if str(path).endswith("/.writer") and flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "not yours")
        return opened(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refusing)
    run.save(1)
    run.save(2)
    assert json.loads((run.folder / ".writer").read_text())["pid"] == os.getpid()


RACES = """
from forge_ref import FolderInUseError, SaveError
refused = 0
print("ready", flush=True)
sys.stdin.readline()
for step in range(1, {steps} + 1):
    run.train(1)
    try:
        run.save(step, extra={{"of": {seed}}})
        run.manager.wait()
    except (FolderInUseError, SaveError):
        refused += 1
print(refused, flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_two_processes_that_save_the_same_steps_leave_whole_checkpoints_of_one_of_them(
    start: Start, process: Callable[..., OtherProcess], mode: str, equal: Same
) -> None:
    steps = 50
    both = [process(RACES.format(steps=steps, seed=seed), seed, async_mode=mode, keep_last_n=0) for seed in (0, 1)]
    for one in both:
        assert one.line() == "ready"
    for one in both:
        one.tell("go")
    assert sorted(int(one.line()) for one in both) == [0, steps]
    for one in both:
        one.kill()
    reader = start(seed=2)
    found = layout.step_dirs(reader.folder)
    assert [one.step for one in found] == list(range(1, steps + 1))
    (of,) = {reader.load(one.path)[2]["of"] for one in found}
    undisturbed, pictures = start(seed=of), []
    for _ in found:
        undisturbed.train(1)
        pictures.append({**undisturbed.picture(), "gradients": None})
    for one, picture in zip(found, pictures, strict=True):
        assert reader.load(one.path)[0] == one.step
        assert equal({**reader.picture(), "gradients": None}, picture)


def test_what_runs_that_died_before_they_committed_have_left_goes_before_the_next_commit(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start()
    run.save(1)
    run.manager = None
    gc.collect()
    for name in (".step_2.retired", ".step_2.retired.1", ".step_3.partial", f".step_2.{'a' * 16}.partial"):
        (run.folder / name).mkdir()
        (run.folder / name / "shard").write_bytes(b"half")
    (run.folder / f".step_2.{'a' * 16}.retired").mkdir()
    (run.folder / f".latest.{'a' * 16}.partial").symlink_to("step_2")
    seen_at_commit: list[str] = []
    real = publish.commit

    def commit(*arguments: Any) -> None:
        seen_at_commit.extend(sorted(name for name in os.listdir(run.folder) if name.startswith(".step_")))
        real(*arguments)

    monkeypatch.setattr(publish, "commit", commit)
    start(seed=1).save(2)
    assert [name.rpartition(".")[2] for name in seen_at_commit] == ["partial", "retired"], "its own, and no others"
