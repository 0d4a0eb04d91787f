"""The gate over a real worker: it holds, fails and shows each file operation, before the operation happens.

Nothing here sleeps: a held worker does not go on, however long it is looked at.
"""

import errno
import itertools
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from forge_conformance.runs import process as worker_module
from forge_conformance.runs.process import Died, Raised, Worker
from forge_conformance.runs.server import Server
from forge_conformance.watch.gate import Gate, Operation, at, in_background, is_supported

PATIENCE_S = 20
pytestmark = pytest.mark.skipif(is_supported() is not None, reason=str(is_supported()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder that the gate watches, in a directory that it does not."""
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


@pytest.fixture
def life(server: Server, folder: Path) -> Iterator[Worker]:
    worker = server.spawn(folder)
    if worker.gate is None:
        pytest.skip(f"file operations can't be held here: {server.filter_refusal}")
    worker.open({"folder": str(folder)}, seed=0)
    yield worker
    worker.kill()


def gate_of(life: Worker) -> Gate:
    assert life.gate is not None, "a gate was asked for"
    return life.gate


def tell(life: Worker, what: str, *arguments: object) -> None:
    life.begin_save(extra={"do": what, "with": arguments})


def do(life: Worker, what: str, *arguments: object) -> None:
    tell(life, what, *arguments)
    life.reply()


def opened(gate: Gate) -> list[str]:
    """What was opened for writing, in order."""
    return [operation.paths[0] for operation in gate.log if operation.name.startswith("open")]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_is_done_on_the_main_thread_goes_on_while_the_background_is_held(life: Worker, folder: Path) -> None:
    gate = life.close_gate(in_background)
    do(life, "write_by", "thread", "back")
    do(life, "write_by", "python", "front")
    assert gate.wait_held(PATIENCE_S)
    (held,) = gate.held()
    assert (held.paths, held.is_main) == (("back",), False)
    assert (folder / "front").read_text() == "written"
    assert not (folder / "back").exists()
    gate.open()
    life.wait()
    assert (folder / "back").read_text() == "written"


@pytest.mark.parametrize("number", [1, 3, 4])
def test_an_exact_operation_is_held_with_all_that_come_after(life: Worker, folder: Path, number: int) -> None:
    gate = life.close_gate(at(number))
    tell(life, "write_by", "python", "one", "two", "three")
    assert gate.wait_held(PATIENCE_S)
    assert [operation.number for operation in gate.held()] == [number]
    assert [operation.number for operation in gate.log] == list(range(1, number + 1))
    assert names(folder) == set(["one", "two", "three"][: number // 2])
    gate.step()
    assert gate.wait_held(PATIENCE_S)
    assert [operation.number for operation in gate.held()] == [number + 1]
    life.kill()
    assert names(folder) == set(["one", "two", "three"][: (number + 1) // 2])


@pytest.mark.parametrize("who", ["python", "c", "thread", "fork", "subprocess"])
def test_whoever_writes_is_seen(life: Worker, folder: Path, who: str) -> None:
    do(life, "write_by", who, "one", "two")
    life.wait()
    gate = gate_of(life)
    assert opened(gate) == ["one", "two"]
    assert [operation.paths for operation in gate.log if operation.name == "write"] == [("one",), ("two",)]
    assert {operation.is_main for operation in gate.log} == {who in ("python", "c")}
    assert names(folder) == {"one", "two"}


@pytest.mark.parametrize("who", ["fork", "subprocess"])
def test_another_process_is_in_the_background(life: Worker, folder: Path, who: str) -> None:
    gate = life.close_gate(in_background)
    tell(life, "write_by", who, "one")
    assert gate.wait_held(PATIENCE_S)
    assert [str(operation).endswith("(one) (background)") for operation in gate.held()] == [True]
    assert not life.replies_or_blocks()
    assert names(folder) == set()
    gate.open()
    life.reply()
    assert names(folder) == {"one"}


def test_a_process_inside_a_slow_file_operation_is_awaited(
    life: Worker, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operation lasts until the process was looked at many times over: a pipe opens when somebody reads it."""
    os.mkfifo(folder / "pipe")
    looks, readers = itertools.count(), []

    def read_at_last(pid: int, held: frozenset[int]) -> str:
        if next(looks) == 50:
            readers.append(os.open(folder / "pipe", os.O_RDONLY | os.O_NONBLOCK))
        return activity(pid, held)

    activity = worker_module._activity
    monkeypatch.setattr(worker_module, "_activity", read_at_last)
    tell(life, "write_by", "python", "pipe")
    assert life.replies_or_blocks(PATIENCE_S)
    life.reply()
    assert os.read(readers[0], 100) == b"written"
    os.close(readers[0])


def test_an_interrupted_process_that_is_held_stands_still(life: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel shows a thread that was held and then got a signal as one that waits for a disk."""
    looks = 0

    def counted(pid: int, held: frozenset[int]) -> str:
        nonlocal looks
        looks += 1
        return activity(pid, held)

    activity = worker_module._activity
    monkeypatch.setattr(worker_module, "_activity", counted)
    life.call("heed_interrupts", how="raise")
    gate = life.close_gate(at(2))
    tell(life, "write_by", "python", "one")
    assert gate.wait_held(PATIENCE_S)
    life.interrupt()
    assert not life.replies_or_blocks()
    assert looks < 200, "it was looked at until its time was up"
    gate.open()
    with pytest.raises(Raised, match="KeyboardInterrupt"):
        life.reply()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_an_operation_that_is_to_fail_fails_with_that_errno_and_changes_nothing(
    life: Worker, folder: Path, number: int
) -> None:
    gate = gate_of(life)
    gate.fail(lambda operation: operation.paths == ("two",), number)
    with pytest.raises(Raised) as caught:
        do(life, "write_by", "python", "one", "two", "three")
    assert f"[Errno {number}] {os.strerror(number)}" in caught.value.message
    assert [operation.paths for operation in gate.failed] == [("two",)]
    assert names(folder) == {"one"}
    gate.stop_failing()
    do(life, "write_by", "python", "two")
    assert names(folder) == {"one", "two"}


def test_what_an_observer_sees_is_the_folder_before_the_operation(life: Worker, folder: Path) -> None:
    seen: list[tuple[str, bool, int]] = []

    def look(operation: Operation) -> None:
        path = folder / operation.paths[0]
        seen.append((operation.name.rstrip("at"), path.exists(), path.stat().st_size if path.exists() else -1))

    gate = gate_of(life)
    gate.observe(look)
    do(life, "write_by", "python", "one")
    gate.forget()
    do(life, "write_by", "python", "two")
    gate.check()
    assert seen == [("open", False, -1), ("write", True, 0)]


@pytest.mark.parametrize("how", ["observe", "close", "fail"])
def test_what_is_raised_on_the_gates_thread_reaches_the_test_and_holds_nobody(life: Worker, how: str) -> None:
    def stumble(operation: Operation) -> bool:
        raise LookupError(f"at {operation}")

    gate = gate_of(life)
    if how == "fail":
        gate.fail(stumble, errno.EIO)
    else:
        getattr(gate, how)(stumble)
    do(life, "write_by", "python", "one")
    with pytest.raises(LookupError, match=r"at open(at)?\(one\)"):
        gate.check()
    gate.check()


def test_each_kind_of_operation_is_named_with_the_files_that_it_touches(life: Worker, folder: Path) -> None:
    do(life, "touch_all")
    told = [(operation.name, " ".join(operation.paths)) for operation in gate_of(life).log]
    expected = [
        ("mkdir", "d"), ("open", "d/f"), ("write", "d/f"), ("pwrite", "d/f"), ("writev", "d/f"), ("pwritev", "d/f"),
        ("fsync", "d/f"), ("fdatasync", "d/f"), ("ftruncate", "d/f"), ("fallocate", "d/f"), ("truncate", "d/f"),
        ("link", "d/f g"), ("symlink", "s"), ("rename", "d/f h"), ("unlink", "g"), ("rmdir unlinkat", "d"),
        ("rename", "h"),
    ]  # fmt: skip
    assert [paths for _, paths in told] == [paths for _, paths in expected]
    assert [
        name for (name, _), (known, _) in zip(told, expected, strict=True) if not name.startswith(tuple(known.split()))
    ] == []
    assert (folder.parent / "outside").read_bytes()[:1] == b"7"
    assert names(folder) == {"s"}


def test_what_happens_outside_the_folder_is_neither_counted_nor_held(life: Worker, folder: Path) -> None:
    gate = life.close_gate(lambda operation: True)
    do(life, "write_by", "python", "../outside", f"{folder}/../outside too")
    assert gate.log == []
    assert {"outside", "outside too"} <= names(folder.parent)


def test_a_path_that_lies_in_no_memory_is_the_kernels_business(life: Worker) -> None:
    do(life, "open_nowhere")
    do(life, "write_by", "python", "one")
    assert opened(gate_of(life)) == ["one"]


def test_reading_is_seen_only_where_it_was_asked_for(server: Server, folder: Path) -> None:
    (folder / "3.pt").touch()
    seen = {}
    for reads in (False, True):
        life = server.spawn(folder, reads=reads)
        life.open({"folder": str(folder)}, seed=0)
        do(life, "read", "3.pt")
        seen[reads] = [(operation.paths, operation.writes) for operation in gate_of(life).log]
        life.kill()
    assert seen == {False: [], True: [(("3.pt",), False)]}


@pytest.mark.parametrize("call", ["open", "read"])
def test_each_call_by_which_a_load_learns_of_a_file_can_fail(server: Server, folder: Path, call: str) -> None:
    (folder / "3.pt").write_bytes(b"content")
    life = server.spawn(folder, watch="loads")
    life.open({"folder": str(folder)}, seed=0)
    gate = gate_of(life)
    gate.fail(lambda operation: operation.name.startswith(call), errno.EIO)
    with pytest.raises(Raised, match="Input/output error"):
        do(life, "read", "3.pt")
    assert [(operation.paths, operation.writes) for operation in gate.failed] == [(("3.pt",), False)]
    gate.stop_failing()
    do(life, "read", "3.pt")
    assert {"openat", "newfstatat", "read"} & {operation.name for operation in gate.log} >= {"openat", "read"}
    life.kill()


@pytest.mark.parametrize("held", [False, True])
def test_the_gates_thread_ends_with_its_worker(life: Worker, held: bool) -> None:
    gate = life.close_gate(at(1))
    if held:
        tell(life, "write_by", "python", "one")
        assert gate.wait_held(PATIENCE_S)
    name = f"gate-{life.pid}"
    assert name in {thread.name for thread in threading.enumerate()}
    life.kill()
    assert name not in {thread.name for thread in threading.enumerate()}
    assert gate.held() == []
    assert not gate.wait_held(PATIENCE_S)


def test_a_worker_that_is_held_can_be_killed(life: Worker, folder: Path) -> None:
    gate = life.close_gate(in_background)
    do(life, "write_by", "thread", "back")
    assert gate.wait_held(PATIENCE_S)
    life.kill()
    life.kill()  # a second time does nothing
    assert not life.is_alive
    assert names(folder) == set()


def test_a_worker_that_is_killed_in_the_middle_says_so_when_it_is_asked(life: Worker) -> None:
    gate = life.close_gate(at(1))
    tell(life, "write_by", "python", "one")
    assert gate.wait_held(PATIENCE_S)
    os.kill(life.pid, signal.SIGKILL)
    with pytest.raises(Died, match="signal SIGKILL"):
        life.reply()
