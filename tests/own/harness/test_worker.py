"""One process life, driven by hand: whatever a manager does, the suite gets one of four answers and goes on.

The four are a value, `Raised`, `WrongAnswer` or an end (`Died`, `Hung`), and each says what the manager was doing.
"""

import contextlib
import ctypes
import logging
import mmap
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forge_conformance.runs.process import (
    Died,
    Hung,
    Raised,
    Unsupported,
    Worker,
    WrongAnswer,
    _Polls,
    _scheduled,
    settle,
)
from forge_conformance.runs.server import HOST, Server
from forge_conformance.worker import commands, gpu
from forge_fixtures import managers

ANSWERS = {
    "nothing": "returned None (NoneType), which is not step, tokens_seen and extra",
    "a tuple": "returned (3, 96, {}) (tuple), which is not step, tokens_seen and extra",
    "a step in words": "returned '3' (str) as step, which is a whole number",
    "half a token": "returned 0.5 (float) as tokens_seen, which is a whole number",
    "a list for extra": "returned ['extra'] (list) as extra, which is a mapping",
    "an unprintable": (
        "returned something whose repr raises ZeroDivisionError (Unprintable) as extra, which is a mapping"
    ),
}


def test_locked_memory_of_the_process_itself_is_found_page_by_page() -> None:
    pages = 3
    with mmap.mmap(-1, pages * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[:] = b"x" * len(memory)
        buffer = ctypes.c_char.from_buffer(memory)
        start = ctypes.addressof(buffer)
        found = gpu.own_bytes(range(start, start + len(memory)).__contains__)
        del buffer
    assert found == pages * mmap.PAGESIZE


@pytest.fixture
def life(server: Server, tmp_path: Path) -> Iterator[Worker]:
    """A process life whose manager is made."""
    worker = server.spawn()
    worker.open({"folder": str(tmp_path)}, seed=0)
    yield worker
    worker.kill()


def do(life: Worker, what: str, *arguments: object) -> None:
    life.save(extra={"do": what, "with": arguments})


@pytest.mark.parametrize("path", ANSWERS)
def test_a_load_that_returns_something_else_is_told_from_one_that_raises(life: Worker, path: str) -> None:
    with pytest.raises(WrongAnswer) as caught:
        life.load(path)
    assert str(caught.value) == f"load(path='{path}') {ANSWERS[path]}"
    assert life.train(1)


def test_an_answer_that_cannot_be_sent_is_told(life: Worker) -> None:
    with pytest.raises(WrongAnswer, match=r"peek\(\) returned <object object at .*> \(object\), which is not made of"):
        life.call("peek", path=None)


def test_what_the_adapter_does_not_have_is_unsupported(life: Worker) -> None:
    with pytest.raises(Unsupported, match="should_save"):
        life.call("should_save", steps=[1])


@pytest.mark.parametrize(
    ("what", "kinds", "message"),
    [
        ("interrupt", ("KeyboardInterrupt", "BaseException", "object"), "said the manager"),
        ("fail_without_words", ("Wordless", "Exception", "BaseException", "object"), "(its own text can't be made)"),
    ],
)
def test_whatever_a_manager_raises_is_an_answer(life: Worker, what: str, kinds: tuple[str, ...], message: str) -> None:
    with pytest.raises(Raised) as caught:
        do(life, what)
    assert (caught.value.kinds, caught.value.message) == (kinds, message)
    assert f"in {what}" in caught.value.traceback
    assert "worker/commands.py" not in caught.value.traceback
    assert life.train(1)


@pytest.mark.parametrize(
    ("what", "arguments", "status", "told"),
    [
        ("die", [int(signal.SIGKILL)], -signal.SIGKILL, "signal SIGKILL"),
        ("die", [int(signal.SIGSEGV)], -signal.SIGSEGV, "signal SIGSEGV"),
        ("leave", [], 5, "exit status 5"),
        ("die_and_leave_an_heir", [], 7, "exit status 7"),
        ("close_everything", [], 0, "The connection to the suite is closed"),
    ],
)
def test_a_process_that_ends_by_itself_is_told_at_once(
    life: Worker, what: str, arguments: list[int], status: int, told: str
) -> None:
    with pytest.raises(Died) as caught:
        do(life, what, *arguments)
    assert caught.value.status == status
    assert told in str(caught.value) and "during save(" in str(caught.value)
    assert not life.is_alive


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[Server]:
    """A server that waits two seconds for a command."""
    commanded = Path(managers.__file__).with_name("commanded.py")
    server = Server(f"{commanded}:Commanded", None, timeout_s=2)
    yield server
    server.close()


def test_a_call_that_hangs_is_killed_and_its_stack_is_told(impatient: Server, tmp_path: Path) -> None:
    def stuck(life: Worker) -> None:
        (tmp_path / "stuck").touch()
        life.wait()

    calls: dict[str, Callable[[Worker], object]] = {
        "save": lambda life: do(life, "hang"),
        "load": lambda life: life.load("stuck"),
        "wait": stuck,
    }
    for name, call in calls.items():
        life = impatient.spawn()
        life.open({"folder": str(tmp_path)}, seed=0)
        with pytest.raises(Hung, match=rf"^{name}\(.*did not return within 2 s and was killed") as caught:
            call(life)
        assert [line.rpartition(" in ")[2] for line in str(caught.value).splitlines()[2:]][-2:] == ["hang", name]
        assert "worker/commands.py" not in str(caught.value)
        assert not Path("/proc", str(life.pid)).exists()


def test_a_child_that_comes_back_from_a_call_has_no_say(life: Worker) -> None:
    do(life, "come_back_twice")
    assert [len(life.train(steps)) for steps in (1, 2, 3)] == [1, 2, 3]


def test_a_log_call_whose_arguments_do_not_fit_raises_in_no_manager(life: Worker) -> None:
    do(life, "log_badly")
    assert "three" in life.output()


def test_what_a_thread_logs_while_the_process_begins_to_exit_is_heard_or_printed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The thread is past the list of handlers when its handler is removed."""
    heard = commands._Heard()
    heard.handle(logging.makeLogRecord({"msg": "the flush begins", "levelno": logging.ERROR}))
    heard.stop()
    heard.handle(logging.makeLogRecord({"msg": "the flush failed", "levelno": logging.ERROR}))
    assert heard.take() == ["the flush begins"]
    assert "the flush failed" in capfd.readouterr().err


def test_a_thread_that_only_looks_whether_it_may_go_on_counts_as_blocked(life: Worker) -> None:
    """Without that this would take the whole hour."""
    life.begin_save(extra={"do": "poll", "with": ()})
    assert settle([life], at_most_s=3600) == []


def test_a_call_that_works_has_the_processor_time_that_it_is_given_however_long_that_takes(life: Worker) -> None:
    life.begin_save(extra={"do": "work", "with": ()})
    begun = scheduled_s(life)
    assert not life.replies_or_blocks(busy_s=0.2)
    assert scheduled_s(life) - begun > 0.15  # what it took before the first look is not counted


def test_a_thread_that_works_is_not_taken_for_one_that_looks(life: Worker) -> None:
    """Asked when the kernel has counted what it does, which is the next time that it gets a processor."""
    life.begin_save(extra={"do": "work", "with": ()})
    polls = _Polls()
    for _ in range(5):
        assert not polls.and_nothing_else([life.pid], "")
        begun, begun_s = scheduled_s(life), time.monotonic()
        while time.monotonic() - begun_s < 0.35 or scheduled_s(life) - begun < 0.5 * (time.monotonic() - begun_s):
            select.select([], [], [], 0.01)


def scheduled_s(life: Worker) -> float:
    """For how long its threads have run or waited for a processor, as far as the kernel has counted it."""
    return sum(ran + waited for ran, waited in _scheduled([life.pid]).values()) / 1e9


def test_a_thread_that_waits_for_a_processor_is_not_taken_for_one_that_looks(life: Worker) -> None:
    """The kernel counts the time only when the thread gets one: until then it seems to have done nothing."""
    starved, looks = _Polls(), _Polls()
    while not looks.and_nothing_else([life.pid], ""):
        assert not starved.and_nothing_else([life.pid], "State:\tR (running)")
        select.select([], [], [], 0.01)
    assert not starved.and_nothing_else([life.pid], "State:\tR (running)")


@pytest.fixture
def heeding(life: Worker) -> Worker:
    """The same, in a script that catches interrupts."""
    life.call("heed_interrupts", how="raise")
    return life


def counts(life: Worker) -> dict[str, object]:
    taken: dict[str, object] = life.call("interrupts")
    return {name: taken[name] for name in ("raised", "noted", "late")}


@pytest.mark.usefixtures("cold")
def test_a_process_takes_interrupts_even_if_the_suite_runs_in_the_background_of_a_shell(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does, and the processes inherit it
    try:
        commanded = Path(managers.__file__).with_name("commanded.py")
        with contextlib.closing(Server(f"{commanded}:Commanded", None)) as server:
            worker = server.spawn()
            worker.open({"folder": str(tmp_path)}, seed=0)
            status = Path(f"/proc/{worker.pid}/status").read_text()
    finally:
        signal.signal(signal.SIGINT, before)
    (ignored,) = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigIgn:"))
    assert not ignored >> (signal.SIGINT - 1) & 1


def test_an_interrupt_out_of_a_call_is_told_and_one_between_calls_disturbs_nothing(heeding: Worker) -> None:
    heeding.begin_save(extra={"do": "hang", "with": ()})
    assert not heeding.replies_or_blocks()
    heeding.interrupt()
    with pytest.raises(Raised) as caught:
        heeding.reply()
    assert caught.value.kinds[0] == "KeyboardInterrupt"
    assert counts(heeding) == {"raised": 1, "noted": 0, "late": 0}
    for _ in range(20):
        heeding.interrupt()
        assert heeding.train(1)
    late = counts(heeding)["late"]
    assert isinstance(late, int)
    assert late >= 1


def test_a_part_of_the_training_interrupts_once_and_is_itself_again(heeding: Worker) -> None:
    before = heeding.digest()
    heeding.call("interrupt_in", part="dataloader", doing="state_dict")
    assert heeding.digest() == before
    assert counts(heeding) == {"raised": 0, "noted": 0, "late": 1}
    heeding.digest()
    assert counts(heeding)["late"] == 0


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_no_process_that_a_life_started_outlives_it(life: Worker, tmp_path: Path, depth: int) -> None:
    do(life, "fork", "heir", depth)
    heir = Path("/proc", (tmp_path / "heir").read_text())
    assert heir.exists()
    life.kill()
    assert not heir.exists()


def test_one_life_ends_without_the_children_of_another(server: Server, life: Worker, tmp_path: Path) -> None:
    do(life, "fork", "heir", 2)
    other = server.spawn()
    other.kill()
    assert Path("/proc", (tmp_path / "heir").read_text()).exists()
    assert life.train(1)


def test_a_life_that_ends_normally_says_how(life: Worker) -> None:
    assert life.exit() == 0
    assert not life.is_alive


def test_a_life_of_another_user_makes_files_of_that_user_wherever_its_own_may_go(
    server: Server, tmp_path: Path
) -> None:
    tmp_path.chmod(0o700)
    worker = server.spawn()
    if os.geteuid() != 0:
        with pytest.raises(Raised, match="PermissionError"):
            worker.call("become", uid=os.geteuid() + 1)
    else:
        worker.call("become", uid=65534)
        worker.open({"folder": str(tmp_path)}, seed=0)
        worker.train(1)
        worker.save()
        worker.wait()
        assert {path.stat().st_uid for path in tmp_path.rglob("*")} == {65534}
    worker.kill()


@pytest.fixture(scope="module")
def started() -> Iterator[Server]:
    """A server that is no fork of another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(HOST)
        server = Server(f"{Path(managers.__file__).with_name('commanded.py')}:Commanded", None)
    yield server
    server.close()


def test_a_server_shares_the_session_of_the_suite_which_answers_for_its_file_operations(started: Server) -> None:
    # Where sessions get processors in turn (sched_autogroup), a filtered process would wait for a suite that waits for
    # its turn.
    life = started.spawn()
    assert os.getsid(life.pid) == os.getsid(0)
    assert os.getpgid(life.pid) != os.getpgid(0)
    life.kill()


@pytest.mark.usefixtures("cold")
def test_a_closed_server_leaves_no_process(tmp_path: Path) -> None:
    commanded = Path(managers.__file__).with_name("commanded.py")
    server = Server(f"{commanded}:Commanded", None)
    lives = [server.spawn() for _ in range(2)]
    lives[0].open({"folder": str(tmp_path)}, seed=0)
    do(lives[0], "fork", "heir", 1)
    heir = os.pidfd_open(int((tmp_path / "heir").read_text()))
    server.close()
    assert select.select([heir], [], [], 10)[0] == [heir]
    os.close(heir)
    assert [life.pid for life in lives if Path("/proc", str(life.pid)).exists()] == []


@pytest.mark.usefixtures("cold")
def test_a_rehearsal_that_hangs_comes_to_an_end() -> None:
    faulty = Path(managers.__file__).with_name("faulty.py")
    with contextlib.closing(Server(f"{faulty}:Deaf", None, timeout_s=0.2)) as server:
        server.rehearse(["sync"])
        assert server.spawn().is_alive


def test_a_fresh_life_imports_nothing_that_was_rehearsed(started: Server, tmp_path: Path) -> None:
    started.rehearse(["sync"])
    life = started.spawn()
    born_with = set(life.call("list_strategies"))
    life.open({"folder": str(tmp_path)}, seed=0)
    life.train(2)
    life.save()
    life.wait()
    life.load()
    life.digest()
    assert {"torch", "forge_fixtures.managers.honest"} < born_with
    assert set(life.call("list_strategies")) - born_with == set()


_HERE = """import os
from forge_conformance.adapter import Claims
from forge_fixtures.managers.honest import Honest

class Here(Honest):
    claims = Claims(level=os.environ["LEVEL"], capabilities=("sync",))
"""


def test_a_server_that_finds_a_host_is_its_fork_and_lives_where_its_own_suite_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here.py").write_text(_HERE)
    monkeypatch.chdir(tmp_path)
    for level in ("core", "durable"):
        monkeypatch.setenv("LEVEL", level)
        with contextlib.closing(Server("here.py:Here", None)) as server:
            command = Path("/proc", str(server._process.pid), "cmdline").read_text()
            assert "--impl=forge_ref" in command, "it is not a program of its own"
            assert (server.implementation.adapter, server.implementation.level) == ("Here", level)


_GUEST = """import sys
from forge_conformance.runs.server import HOST, Server

server = Server(sys.argv[1], None)
print(server._process.pid, server.spawn().pid, flush=True)
sys.stdin.read()
"""


def test_what_a_host_has_forked_ends_with_the_process_that_asked_for_it(tmp_path: Path) -> None:
    commanded = Path(managers.__file__).with_name("commanded.py")
    arguments = [sys.executable, "-c", _GUEST, f"{commanded}:Commanded"]
    own = {**os.environ, "TMPDIR": str(tmp_path)}  # it is killed, and leaves its folder
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=own) as guest:
        assert guest.stdout is not None
        pids = [int(pid) for pid in guest.stdout.readline().split()]
        descriptors = [os.pidfd_open(pid) for pid in pids]
        os.kill(pids[0], signal.SIGSTOP)  # it does not notice by itself
        guest.kill()
    for descriptor in descriptors:
        assert select.select([descriptor], [], [], 60)[0] == [descriptor]
        os.close(descriptor)
