"""SIGINT at every line of the package: nothing is lost, nothing is half done, and the interrupt itself arrives."""

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from conftest import names

import forge_ref
from forge_ref import AsyncCheckpointer, SaveError, layout, publish, storage, writer
from forge_ref.background import Background
from forge_ref.interrupts import Deferral

Start = Callable[..., Any]
Same = Callable[[Any, Any], bool]
PACKAGE = str(Path(forge_ref.__file__).parent)
INTERRUPT = signal.SIGINT


def interrupt() -> None:
    signal.raise_signal(INTERRUPT)


@contextmanager
def handler(handles: Any) -> Iterator[None]:
    before = signal.signal(INTERRUPT, handles)
    try:
        yield
    finally:
        signal.signal(INTERRUPT, before)


@pytest.fixture(autouse=True)
def interrupts_raise() -> Iterator[None]:
    """A shell starts what it runs in the background with SIGINT ignored, and nothing here would be interrupted."""
    with handler(signal.default_int_handler):
        yield


pytestmark = pytest.mark.usefixtures("without_fsync")


class Lines:
    """Counts the lines of the package that the main thread comes by, and does something at one of them."""

    def __init__(self, at: int = 0, does: Callable[[], None] = interrupt) -> None:
        self.at, self.does, self.count = at, does, 0

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            self.count += 1
            if self.count == self.at:
                self.does()
        return self._trace if self.count <= self.at or not self.at else None

    def __enter__(self) -> "Lines":
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)


class Calls(Lines):
    """The same where a call begins or has returned: there, and where a loop goes round, Python looks for signals."""

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(PACKAGE):
            self.count += 1
            if self.count == self.at:
                self.does()

    def __enter__(self) -> "Calls":
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


def is_interrupted(call: Callable[[], Any], at: int) -> bool:
    """Whether the interrupt came out of the call; it has to, unless the call has fewer lines."""
    with Lines(at) as lines:
        try:
            call()
        except KeyboardInterrupt:
            return True
    assert lines.count < at, "the interrupt was swallowed"
    return False


# -- the block -----------------------------------------------------------------------


def test_a_deferred_interrupt_comes_at_the_end_of_the_block_and_once() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), Deferral():
        interrupt()
        interrupt()
        done.append(1)
    assert done == [1]
    assert signal.getsignal(INTERRUPT) is signal.default_int_handler


def test_beyond_the_first_an_interrupt_comes_at_once() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), Deferral(first=1):
        interrupt()
        done.append(1)
        interrupt()
        done.append(2)
    assert done == [1]
    assert signal.getsignal(INTERRUPT) is signal.default_int_handler


@pytest.mark.parametrize("becomes", [RuntimeError("unexpected pos"), None])
def test_an_interrupt_that_the_block_makes_something_else_of_comes_all_the_same(becomes: Exception | None) -> None:
    with pytest.raises(KeyboardInterrupt), Deferral(first=0):
        try:
            interrupt()
        except KeyboardInterrupt:
            if becomes is not None:
                raise becomes from None


def test_blocks_in_blocks_deliver_at_the_end_of_the_outermost() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), Deferral():
        with Deferral(first=0):
            interrupt()
            done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"]


def test_the_script_s_own_handler_runs_once_and_may_put_another_in_its_place() -> None:
    heard = []

    def own(number: int, _: object) -> None:
        heard.append(number)
        signal.signal(INTERRUPT, signal.SIG_IGN)

    with handler(own):
        with Deferral():
            interrupt()
            assert heard == []
        assert heard == [INTERRUPT]
        assert signal.getsignal(INTERRUPT) is signal.SIG_IGN
        with Deferral():
            interrupt()
            assert signal.getsignal(INTERRUPT) is signal.SIG_IGN


def test_a_handler_that_is_installed_in_the_block_stays() -> None:
    with handler(signal.default_int_handler):
        with Deferral():
            signal.signal(INTERRUPT, signal.SIG_IGN)
        assert signal.getsignal(INTERRUPT) is signal.SIG_IGN


def test_other_threads_leave_handlers_alone() -> None:
    seen = []

    def look() -> None:
        with Deferral():
            seen.append(signal.getsignal(INTERRUPT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


# -- the manager -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_interrupted_at_any_line_of_a_save_nothing_is_lost(start: Start, equal: Same, mode: str) -> None:
    run = start(async_mode=mode, keep_last_n=2)
    run.save(0)
    step, at = 0, 1
    while True:
        step += 1
        before = run.picture()
        was_interrupted = is_interrupted(lambda step=step: (run.save(step), run.manager.wait()), at)
        assert equal(run.picture(), before), at
        assert gc.isenabled(), at
        run.save(step + 1)
        run.manager.wait()
        assert os.readlink(run.folder / "latest") == f"step_{step + 1}", at
        assert not layout.hidden_dirs(run.folder), at
        if not was_interrupted:
            break
        step, at = step + 1, at + 9
    assert at > 60


def test_interrupted_at_any_line_of_a_load_all_is_as_before_or_all_is_loaded(start: Start, equal: Same) -> None:
    run = start()
    run.train(2)
    run.save(2)
    saved = {**run.picture(), "gradients": None}
    outcomes, at = set(), 1
    while True:
        resumed = start(seed=1)
        resumed.train(1)
        before = resumed.picture()
        was_interrupted = is_interrupted(resumed.load, at)
        after = resumed.picture()
        is_before = equal(after, before)
        assert is_before or equal({**after, "gradients": None}, saved), at
        assert gc.isenabled(), at
        if not was_interrupted:
            break
        outcomes.add(is_before)
        at += 13
    assert outcomes == {True, False}


def test_what_is_raised_inside_the_library_is_still_an_interrupt(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """DCP wraps it, and torch's writer in C++ makes a RuntimeError of it."""
    run = start()
    run.save(1)

    def write(*_: object) -> None:
        interrupt()  # is deferred
        try:
            interrupt()
        except KeyboardInterrupt:
            raise RuntimeError("unexpected pos") from None

    with monkeypatch.context() as patched:
        patched.setattr(storage, "write", write)
        with pytest.raises(KeyboardInterrupt):
            run.save(2)
    assert names(run.folder) == ["latest", "step_1"]
    run.save(3)
    assert run.load()[0] == 3


def test_the_second_interrupt_gives_a_synchronous_save_up(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    run, real = start(), storage.write
    run.save(1)

    def write(*arguments: Any) -> Any:
        seals = real(*arguments)
        interrupt()
        interrupt()
        return seals

    with monkeypatch.context() as patched:
        patched.setattr(storage, "write", write)
        with pytest.raises(KeyboardInterrupt):
            run.save(2)
    assert names(run.folder) == ["latest", "step_1"]


def test_no_number_of_interrupts_gives_up_a_commit_that_has_begun(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real = start(), publish.commit
    run.save(1)

    def commit(*arguments: Any) -> None:
        for _ in range(3):
            interrupt()
        real(*arguments)
        interrupt()

    with monkeypatch.context() as patched:
        patched.setattr(publish, "commit", commit)
        with pytest.raises(KeyboardInterrupt):
            run.save(2)
    assert run.load()[0] == 2


def test_a_failure_that_an_interrupt_comes_across_is_still_told_once(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(async_mode="async")

    def write(*_: object) -> None:
        raise OSError("no space left")

    at = 1
    with monkeypatch.context() as patched:
        patched.setattr(storage, "write", write)
        while True:
            run.save(at)
            told = []
            with Calls(at) as calls:
                try:
                    run.manager.wait()
                except (KeyboardInterrupt, SaveError) as error:
                    told.append(type(error))
            for _ in range(2):
                try:
                    run.manager.wait()
                except SaveError as error:
                    told.append(type(error))
            assert told.count(SaveError) == 1, at
            if calls.count < at:
                break
            at += 1
    assert at > 3


def test_an_interrupt_that_does_not_end_the_system_call_ends_the_wait_all_the_same() -> None:
    """It comes to another thread here, as it may, or right before the call; Python raises it on this one alone."""
    may_end, main = threading.Event(), threading.get_ident()
    job = Background("test", may_end.wait)

    def strike() -> None:
        while sys._current_frames()[main].f_code.co_name != "await_end":
            may_end.wait(0.001)
        signal.pthread_kill(threading.get_ident(), INTERRUPT)

    thread = threading.Thread(target=strike)
    threads_end = threading.Timer(60, may_end.set)  # so that a wait that goes on is a failure and no hang
    threads_end.start()
    with pytest.raises(KeyboardInterrupt):
        thread.start()
        job.await_end()
    assert not job.has_ended
    threads_end.cancel()
    may_end.set()
    job.await_end()
    assert job.has_ended


def test_of_60_emergency_saves_after_interrupted_waits_none_is_lost(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flush goes on while the wait for it is interrupted, and until the emergency save waits for it."""
    run, real, may_write = start(async_mode="async", keep_last_n=2), storage.write, threading.Event()
    main, may_look = threading.get_ident(), threading.Event()

    def write(*arguments: Any) -> Any:
        may_write.wait()
        return real(*arguments)

    def when_it_waits(does: Callable[[], object]) -> threading.Thread:
        def look() -> None:
            while sys._current_frames()[main].f_code.co_name != "await_end":
                may_look.wait(0.001)  # lets the others run
            does()

        thread = threading.Thread(target=look)
        thread.start()
        return thread

    monkeypatch.setattr(storage, "write", write)
    for step in range(0, 120, 2):
        may_write.clear()
        run.save(step)
        interrupts = when_it_waits(lambda: os.kill(os.getpid(), INTERRUPT))
        with pytest.raises(KeyboardInterrupt):
            run.manager.wait()
        interrupts.join()
        goes_on = when_it_waits(may_write.set)
        run.save(step + 1)
        run.manager.wait()
        goes_on.join()
        assert os.readlink(run.folder / "latest") == f"step_{step + 1}"
        assert [found.step for found in layout.step_dirs(run.folder)] == [step, step + 1]


def test_a_handler_that_saves_while_the_run_waits_for_a_flush(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    run, real, may_write = start(async_mode="async"), storage.write, threading.Event()

    def write(*arguments: Any) -> Any:
        may_write.wait()
        return real(*arguments)

    def own(*_: object) -> None:
        may_write.set()
        run.save(2)

    monkeypatch.setattr(storage, "write", write)
    with handler(own):
        run.save(1)
        threading.Timer(0.2, os.kill, (os.getpid(), INTERRUPT)).start()
        run.manager.wait()
    assert not run.manager._run.checkpointer.is_pending
    assert layout.step_dirs(run.folder)[-1].step == 2
    assert os.readlink(run.folder / "latest") == "step_2"


@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_a_handler_that_saves_at_any_line_of_a_save(start: Start, mode: str) -> None:
    run = start(async_mode=mode)
    heard: list[int] = []
    with handler(lambda *_: (heard.append(step + 1), run.save(step + 1))):
        step, at = 0, 1
        while True:
            with Lines(at) as lines, suppress(FileExistsError):
                run.save(step)
                run.manager.wait()
            run.manager.wait()
            if lines.count < at:
                break
            assert heard[-1:] == [step + 1], at
            whole = {found.step for found in layout.step_dirs(run.folder) if found.is_complete}
            assert {step, step + 1} <= whole, at
            assert not layout.hidden_dirs(run.folder), at
            step, at = step + 2, at + 13


@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_a_handler_that_saves_at_the_second_interrupt_runs_after_the_save(
    start: Start, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    run, real, threads = start(async_mode=mode), publish.stage, threading.active_count()
    heard: list[int] = []

    def stage(*arguments: Any) -> None:
        real(*arguments)
        if not heard:
            interrupt()
            interrupt()

    monkeypatch.setattr(publish, "stage", stage)
    with handler(lambda *_: (heard.append(2), run.save(2))):
        run.save(1)
    run.manager.wait()
    assert heard == [2]
    assert [found.step for found in layout.step_dirs(run.folder) if found.is_complete] == [1, 2]
    assert os.readlink(run.folder / "latest") == "step_2"
    assert not layout.hidden_dirs(run.folder)
    assert threading.active_count() == threads


def test_an_interrupted_export_leaves_nothing(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, real = start(), publish.write

    def write(*arguments: Any) -> None:
        real(*arguments)
        interrupt()

    monkeypatch.setattr(publish, "write", write)
    with pytest.raises(KeyboardInterrupt):
        run.manager.export(str(tmp_path / "weights.pt"))
    assert not list(tmp_path.iterdir())


def descriptors_of(file: Path) -> int:
    """How many descriptors of this process are the file's."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            count += os.readlink(f"/proc/self/fd/{name}") == str(file)
    return count


def test_interrupted_at_any_line_a_process_does_not_lock_itself_out(tmp_path: Path) -> None:
    at = 1
    while True:
        folder = tmp_path / str(at)
        folder.mkdir()
        right = writer.Writer(folder, AsyncCheckpointer())
        was_interrupted = is_interrupted(right.begin, at)
        assert descriptors_of(folder / ".writer") == (folder in writer._held), at
        right.begin()
        assert descriptors_of(folder / ".writer") == 1, at
        if not was_interrupted:
            break
        at += 1
    assert at > 20


def test_a_forked_child_does_not_wait_for_its_parent_s_flush(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write = threading.Event()
    monkeypatch.setattr(storage, "write", lambda *_: may_write.wait() and None)
    run = start(async_mode="async")
    run.save(1)
    child = os.fork()
    if child == 0:
        run.manager.wait()
        os._exit(7)
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    finally:
        may_write.set()
        with suppress(SaveError):
            run.manager.wait()
