"""One process of a training run, seen from the suite.

Every call is a command to the worker and blocks until its reply.  What can go
wrong is the manager's doing and has a type: `Raised` (it raised), `WrongAnswer`
(it returned what the contract does not know), `Hung` (no reply in time; the
worker was killed after its stacks were read) and `Died` (the process ended by
itself).  All of them carry what the manager was doing.
"""

import ast
import contextlib
import os
import re
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forge_conformance.judging.judge import CannotJudge
from forge_conformance.runs import machine
from forge_conformance.watch.gate import Gate, Picks, in_background
from forge_conformance.watch.listener import Supervisor
from forge_conformance.worker import system_calls
from forge_conformance.worker.channel import Channel, Closed

ALL_PARTS = ("scheduler", "dataloader")
ROUNDS = 5
"""How many times a command gets the time to reply in which its process goes on with file operations; the suite may be
slow to look at each of them."""


class ManagerFault(Exception):
    """The manager did something that a command does not allow; the text says what, in a paragraph."""


class Raised(ManagerFault):
    """The manager raised; `kinds` are the names of the exception's classes, most specific first."""

    def __init__(self, doing: str, error: dict[str, Any]) -> None:
        super().__init__(f"{doing} raised {_named(error)}")
        self.kinds: tuple[str, ...] = tuple(error["kinds"])
        self.message: str = error["message"]
        self.traceback: str = error["traceback"]


def _named(error: dict[str, Any]) -> str:
    return f"{error['type']}: {error['message']}" if error["message"] else f"{error['type']} (no message)"


class WrongAnswer(ManagerFault):
    """The manager returned what the contract does not know; no refusal, so not `Raised`."""


class Unsupported(Exception):
    """The adapter has no counterpart for this call, whatever it claims."""


class Hung(ManagerFault):
    """No reply in time; the worker is dead now."""

    def __init__(self, doing: str, timeout_s: float, stacks: str) -> None:
        late = f"{doing} did not return within {timeout_s:g} s and was killed"
        super().__init__(f"{late}. Its threads were at:\n{stacks}")


def is_block(reason: Exception) -> bool:
    """Whether something could not be judged because a call never returned."""
    return isinstance(reason.__cause__, Hung)


class Died(ManagerFault):
    """The process ended while a command was running; `status` is its exit code, or minus the signal."""

    def __init__(self, doing: str, status: int, log: str) -> None:
        said = f" Its last output was:\n{log}" if log.strip() else ""
        super().__init__(f"The process ended by itself ({ending(status)}) during {doing}.{said}")
        self.status = status


@dataclass(frozen=True)
class Loaded:
    """What a load returned."""

    step: int
    tokens_seen: int
    extra: Any
    globals: dict[str, list[str]] = field(default_factory=dict)
    """Per file, what its pickle made a full unpickler look up."""

    @property
    def is_fresh(self) -> bool:
        """Whether nothing was loaded, as far as the manager says."""
        return (self.step, self.tokens_seen, self.extra) == (0, 0, {})


def _if_given(variety: str | None) -> dict[str, str]:
    """Other people's workers need not know of varieties to do everything else."""
    return {} if variety is None else {"variety": variety}


class Worker:
    """Killed at the latest when its scenario ends."""

    def __init__(
        self, pid: int, channel: Channel, reap: Callable[[int], int], log: Path, timeout_s: Callable[[], float]
    ) -> None:
        self.pid = pid
        self._channel = channel
        self._reap = reap
        self._log = log
        self._timeout_s = timeout_s
        self._pending: str | None = None
        self.has_failed_save = False
        """Whether a save, or a wait for one, has raised."""
        self._is_leaving = False
        """Whether it has given its last reply, after which it closes its end and comes to its own."""
        self._status: int | None = None
        self._memory_kills = machine.memory_kills()
        self._process = os.pidfd_open(pid)
        """Readable when the process has ended; a child of it may hold the channel open for longer."""
        self._supervisor: Supervisor | None = None
        self.gate: Gate | None = None
        self.warnings: list[str] = []
        """Everything that the manager warned of in its last command."""

    # -- life and death ---------------------------------------------------------

    def greet(self, folder: Path | None, supervise: Callable[[int, Path, int], Supervisor] = Gate) -> str | None:
        """Finish the start; with a folder, take over its file operations. The reason if that is not possible."""
        reason = None
        if folder is not None:
            filtered = self._receive("starting")
            if filtered["filtered"]:
                self._supervisor = supervise(self._channel.take_descriptor(), folder, self.pid)
                self.gate = self._supervisor if isinstance(self._supervisor, Gate) else None
            else:
                reason = str(filtered["reason"])
        self._receive("starting")
        return reason

    @property
    def is_alive(self) -> bool:
        """Whether it was neither killed nor seen to end."""
        return self._status is None

    def kill(self) -> None:
        """SIGKILL, as a preemption or the memory killer would: the process and what it started, at once."""
        if self._status is None:
            self.strike()
            self._reap_and_close()

    def strike(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the process and what it started, and do not wait for what comes of it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self._process, number)
            os.killpg(self.pid, number)

    def interrupt(self) -> None:
        """Send SIGINT to the process alone, as Ctrl-C does; `heed_interrupts` says how it takes it."""
        signal.pidfd_send_signal(self._process, signal.SIGINT)

    def kill_alone(self) -> None:
        """SIGKILL to this process and to nothing that it started; returns when it is dead."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process, signal.SIGKILL)
        select.select([self._process], [], [])

    def exit(self) -> int:
        """The interpreter's normal end; the exit status. `Hung` if it does not come to an end."""
        self.begin("exit")
        self.reply()
        return self.await_end()

    def await_end(self) -> int:
        """The exit status of a process that is about to end by itself; `Hung` if it does not."""
        if not self._awaited([self._process], self._timeout_s()):
            raise self.hang("the interpreter's normal exit")
        return self._reap_and_close()

    def _reap_and_close(self) -> int:
        if self._status is None:
            self._status = self._reap(self.pid)  # with everything that it started
            if self._supervisor is not None:
                self._supervisor.open()
                self._supervisor.end()
            self._channel.close()
            os.close(self._process)
        return self._status

    def _ends_within(self, timeout_s: float) -> bool:
        return bool(select.select([self._process], [], [], timeout_s)[0])

    # -- commands ---------------------------------------------------------------

    def open(self, settings: dict[str, Any], seed: int, variety: str | None = None) -> None:
        """Make the training run, plain or of a variety, and its manager, as a script does at its start."""
        self.call("open", settings=settings, seed=seed, **_if_given(variety))

    def train(self, steps: int) -> list[str]:
        """The losses, as exact hexadecimal text."""
        losses: list[str] = self.call("train", steps=steps)
        return losses

    def save(
        self,
        step: int | None = None,
        extra: Any = None,
        parts: Sequence[str] = ALL_PARTS,
        tokens_seen: int | None = None,
    ) -> None:
        """Save under the run's own step, and with its own count of tokens, or others."""
        self.begin_save(step, extra, parts, tokens_seen)
        self.reply()

    def begin_save(
        self,
        step: int | None = None,
        extra: Any = None,
        parts: Sequence[str] = ALL_PARTS,
        tokens_seen: int | None = None,
    ) -> None:
        """Start a save and do not wait for it; `reply` does."""
        tokens = {} if tokens_seen is None else {"tokens_seen": tokens_seen}
        self.begin("save", step=step, extra=None if extra is None else repr(extra), parts=list(parts), **tokens)

    def wait(self) -> None:
        """Everything saved is committed when this returns."""
        self.call("wait")

    def flush(self) -> None:
        """`flush_pending_save`."""
        self.call("flush")

    def load(
        self,
        path: str | Path | None = None,
        exclude: Sequence[str] = (),
        freeze_expected: list[dict[str, Any]] | None = None,
        parts: Sequence[str] = ALL_PARTS,
    ) -> Loaded:
        """Resume."""
        value = self.call(
            "load",
            path=None if path is None else str(path),
            exclude=list(exclude),
            freeze_expected=freeze_expected,
            parts=list(parts),
        )
        return loaded_from(value)

    def digest(self) -> dict[str, str]:
        """A fingerprint of every piece of training state."""
        digest: dict[str, str] = self.call("digest")
        return digest

    def call(self, do: str, **arguments: Any) -> Any:
        """Any command; its value."""
        self.begin(do, **arguments)
        return self.reply()

    def begin(self, do: str, **arguments: Any) -> None:
        """Start a command; exactly one `reply` must follow unless the worker is killed."""
        assert self._pending is None, f"{self._pending} was not awaited"
        self._pending = _described(do, arguments)
        with contextlib.suppress(Closed):  # found out by the reply
            self._channel.send({"do": do, **arguments})

    def reply(self) -> Any:
        """The value of the command that was started last."""
        doing, self._pending = self._pending or "a command", None
        message = self._receive(doing)
        self._is_leaving = doing == _described("exit", {})
        self.warnings = message.get("warnings", [])
        if "error" in message:
            self.has_failed_save = self.has_failed_save or doing.startswith(("save(", "wait(", "flush("))
            raise _fault(doing, message["error"])
        return message["value"]

    def replies_or_blocks(self, busy_s: float | None = None) -> bool:
        """Wait until the running command has replied (true), or nothing in the process moves any more (false).

        See `settle` for what moves.  A thread that looks again and again
        whether it may go on moves; it is given `busy_s` of processor time.
        """
        return settle([self], busy_s=busy_s) == [self]

    def ends_or_blocks(self, at_most_s: float | None = None) -> bool:
        """The same of a process that was told to exit and has replied: until it is gone (true), or waits (false)."""
        assert self._is_leaving, "it was not told to exit"
        return settle([self], at_most_s) == [self]

    def has_word(self) -> bool:
        """Whether the reply of the running command is there, or will never come because the process has ended."""
        return self._channel.has_message or bool(select.select(self.descriptors(), [], [], 0)[0])

    def held_threads(self) -> frozenset[int]:
        """Which of its threads wait at a file operation that was not let go yet."""
        return frozenset() if self._supervisor is None else self._supervisor.held_threads()

    @property
    def operations_done(self) -> int:
        """How many of its file operations the suite has looked at, if it looks."""
        return 0 if self._supervisor is None else self._supervisor.operations_done

    def descriptors(self) -> list[int]:
        """Readable when a reply comes, or the process ends."""
        if self._status is not None:
            return []
        return [self._process] if self._is_leaving else [self._channel.fileno(), self._process]

    @property
    def patience_s(self) -> float:
        """How long a command may take."""
        return self._timeout_s()

    @property
    def pending(self) -> str | None:
        """The command whose reply is still to be taken."""
        return self._pending

    def stacks(self) -> str:
        """Where every thread of the process is, as far as it answers."""
        return readable(stacks_of(self.pid, self.output)) or "(no stacks: it did not answer a signal either)"

    def close_gate(self, holds: Picks = in_background) -> Gate:
        """Hold the operations that `holds` picks from now on."""
        assert self.gate is not None, "only a gated worker can be held"
        self.gate.close(holds)
        return self.gate

    def output(self) -> str:
        """What the process has printed so far, on standard output and error."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def _receive(self, doing: str) -> dict[str, Any]:
        timeout_s = self._timeout_s()
        try:
            self._await_word(timeout_s)
            return self._channel.receive(timeout_s)
        except TimeoutError:
            raise self.hang(doing) from None
        except Closed:
            if self._status is None and not self._ends_within(timeout_s):
                raise self.hang(doing) from None
            status = self._reap_and_close()
            if status == -signal.SIGKILL and machine.memory_kills() > self._memory_kills:
                raise CannotJudge(
                    f"A process was killed in {doing}, and the kernel has killed processes for want of memory "
                    "meanwhile: leave it more memory, or judge with fewer processes (-n)."
                ) from None
            raise Died(doing, status, self.output()[-2000:]) from None

    def _await_word(self, timeout_s: float) -> None:
        """Return when there is something to receive; `Closed` if the process has ended without a word."""
        if self._status is not None or self._channel.has_message:
            return
        word = self._channel.fileno()
        ready = self._awaited([word, self._process], timeout_s)
        if not ready:
            raise TimeoutError
        if word not in ready:
            raise Closed("the process has ended")

    def _awaited(self, descriptors: list[int], timeout_s: float) -> list[int]:
        """Those that are readable in time, of which there is more while the process goes on with file operations."""
        for _ in range(ROUNDS):
            done = self.operations_done
            ready, _, _ = select.select(descriptors, [], [], timeout_s)
            if ready or self.operations_done == done:
                return ready
        return []

    def hang(self, doing: str) -> Hung:
        """The fault of a process that does not do this in time; it is dead then."""
        stacks = self.stacks()
        self.kill()
        return Hung(doing, self._timeout_s(), stacks)


def loaded_from(value: dict[str, Any]) -> Loaded:
    """The value of a `load` command."""
    return Loaded(value["step"], value["tokens_seen"], _literal(value["extra"]), value["globals"])


def settle(workers: Sequence[Worker], at_most_s: float | None = None, busy_s: float | None = None) -> list[Worker]:
    """Those whose running command has replied when all have, or when nothing in the others moves any more.

    A thread that waits at the gate, for a lock, for another thread or for
    another process does not move: it is asleep and its count of context
    switches stands still.  Nor does one that wakes up now and then to see that
    it can't go on, see `_Polls`.  One inside a file operation that nobody holds
    moves, however long its disk takes.  With `busy_s`, what moves is waited for
    until it has taken so much processor time, of which a busy machine gives little.
    """
    quiet, before, polls, begun_s = 0, "", _Polls(), _ran_s(workers) if busy_s is not None else 0.0
    patience_s = max((worker.patience_s for worker in workers), default=0)
    deadline = time.monotonic() + (patience_s if at_most_s is None else at_most_s)
    while quiet < 10 and time.monotonic() < deadline:
        running = [worker for worker in workers if not worker.has_word()]
        if not running:
            break
        select.select([fd for worker in running for fd in worker.descriptors()], [], [], 0.01)
        now = "\n".join(_activity(worker.pid, worker.held_threads()) for worker in running)
        is_still = now == before and not _MOVES.search(now)
        quiet, before = (quiet + 1 if is_still else 0), now
        if polls.and_nothing_else([worker.pid for worker in running], now):
            break
        if busy_s is not None and _ran_s(workers) - begun_s > busy_s:
            break
    return [worker for worker in workers if worker.has_word()]


A_WHILE_S = 2.0
"""How much processor time a call may take while an operation of its process is held, before it is taken to look again
and again whether it may go on."""


def replies_while_held(worker: Worker, held: Callable[[], object], let_go: Callable[[], None]) -> tuple[bool, bool]:
    """Wait for the running command while operations are held; each that it can't reply without is let go.

    Return whether it has replied, and whether nothing was let go.  It has not replied if for as long as a command may
    take nothing came to be held: a process that seems to stand still may only wait for a slow machine.
    """
    is_all_held, deadline = True, time.monotonic() + worker.patience_s
    while not worker.replies_or_blocks(A_WHILE_S):
        if held():
            is_all_held, deadline = False, time.monotonic() + worker.patience_s
            let_go()
        elif time.monotonic() > deadline:
            return False, is_all_held
    return True, is_all_held


def _fault(doing: str, error: dict[str, Any]) -> Exception:
    match error["reason"]:
        case "unsupported":
            return Unsupported(f"{doing}: {error['message']}")
        case "wrong-answer":
            return WrongAnswer(f"{doing} {error['message']}")
        case _:
            return Raised(doing, error)


def connect() -> tuple[socket.socket, socket.socket]:
    """A conversation's two ends."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


_POLLING = tuple(f"Name:\t{name}" for name in ("gloo_tcp_loop", "pt_nccl_"))
"""Threads of `torch.distributed` that look around every few milliseconds, whatever happens."""


_FILE_OPERATIONS = frozenset(
    number
    for number, name in system_calls.names().items()
    if system_calls.CALLS[name].kind not in (system_calls.READS, system_calls.SENDS)  # they may wait for somebody
)
_WORKS = re.compile(r"D \(disk sleep\)|in a file operation")
_RUNS = re.compile(r"R \(running\)")
_MOVES = re.compile(rf"{_RUNS.pattern}|{_WORKS.pattern}")


class _Polls:
    """Whether threads of some processes have only looked, for a while, whether they may go on.

    Event loops and joins with a timeout wake up every few milliseconds.  They
    take next to no processor time for it, hardly wait for a processor, which a
    thread with work to do does on a busy machine, and touch no file.
    """

    _WHILE_S = 0.3
    _RUNS_AT_MOST, _WAITS_AT_MOST = 0.05, 0.25
    """Shares of the time, of all threads together."""

    def __init__(self) -> None:
        self._since_s = 0.0
        self._begun: dict[str, tuple[int, int]] | None = None

    def and_nothing_else(self, pids: Sequence[int], activity: str) -> bool:
        """Look once more; `activity` is what the threads are seen to do."""
        lasted_s = time.monotonic() - self._since_s
        if self._begun is not None and lasted_s < self._WHILE_S and not _WORKS.search(activity):
            return False
        if self._begun is not None and _RUNS.search(activity) and not _WORKS.search(activity):
            return False  # it may wait for a processor, which the kernel counts only when it gets one
        before, now = self._begun, _scheduled(pids)
        self._begun, self._since_s = now, time.monotonic()
        if not before or before.keys() != now.keys() or _WORKS.search(activity):
            return False
        ran, waited = (sum(now[task][kind] - before[task][kind] for task in now) / 1e9 for kind in (0, 1))
        return ran <= self._RUNS_AT_MOST * lasted_s and waited <= self._WAITS_AT_MOST * lasted_s


def _ran_s(workers: Sequence[Worker]) -> float:
    """The processor time of all their threads that live."""
    return sum(ran for ran, _ in _scheduled([worker.pid for worker in workers]).values()) / 1e9


def _scheduled(pids: Sequence[int]) -> dict[str, tuple[int, int]]:
    """For how many nanoseconds each thread has run and has waited for a processor; empty where the kernel won't say."""
    found: dict[str, tuple[int, int]] = {}
    for task in (task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()):
        with contextlib.suppress(OSError, ValueError):
            ran, waited, _ = map(int, (task / "schedstat").read_text().split())
            found[task.name] = (ran, waited)
    return found


def _activity(pid: int, held: frozenset[int]) -> str:
    """Changes whenever a thread of the process does anything, those aside that wake up to see that there is nothing.

    `held` are the threads whose file operation has not begun.  The kernel shows one that gets a signal meanwhile as
    one that waits for a disk.
    """
    lines: list[str] = []
    for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
        with contextlib.suppress(OSError):
            status = (task / "status").read_text()
            if status.startswith(_POLLING):
                continue
            if int(task.name) in held:
                status = status.replace("D (disk sleep)", "held")
            elif _is_in_file_operation(task):
                lines.append("in a file operation")
            lines += re.findall(r"^(?:State|voluntary_ctxt_switches|nonvoluntary_ctxt_switches):.*$", status, re.M)
    return "\n".join(lines)


def _is_in_file_operation(task: Path) -> bool:
    """False as well where the kernel does not say in which call a thread is."""
    try:
        number, *_ = (task / "syscall").read_text().split()
    except (OSError, ValueError):
        return False
    return number.isdigit() and int(number) in _FILE_OPERATIONS


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _described(do: str, arguments: dict[str, Any]) -> str:
    shown = ", ".join(
        f"{key}={value!r}" for key, value in arguments.items() if value not in (None, [], "") and key != "parts"
    )
    return f"{do}({shown})"


def ending(status: int) -> str:
    """How a process ended, in words."""
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def stacks_of(pid: int, output: Callable[[], str]) -> str:
    """What the process's faulthandler adds to its output when asked for every thread's stack.

    Complete when the output has not grown for a while, or after two seconds.
    """
    before = len(output())
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGUSR1)
    deadline, size = time.monotonic() + 2, -1
    while time.monotonic() < deadline and (size != len(output()) or size <= before):
        size = len(output())
        select.select([], [], [], 0.05)
    return output()[before:]


def readable(stacks: str) -> str:
    """Without the frames of the harness itself, which say nothing about the manager."""
    lines = [line for line in stacks.splitlines() if not re.search(r"conformance/worker/|<frozen ", line)]
    return "\n".join(lines)
