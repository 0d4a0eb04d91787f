"""One process life of a training run, seen from the suite.

Every call is a command to the worker and blocks until its reply.  What can go
wrong is the manager's doing and has a type: `Raised` (it raised), `WrongAnswer`
(it returned what the contract does not know), `Hung` (no reply in time; the
worker was killed after its stacks were read) and `Died` (the process ended by
itself).  All of them carry what the manager was doing.
"""

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
from typing import Any, Protocol

from forge_conformance.worker.channel import Channel, Closed

from .gate import Gate, Picks, in_background

ALL_PARTS = ("scheduler", "dataloader")


class ManagerFault(Exception):
    """The manager did something that a command does not allow; the text says what, in a paragraph."""


class Raised(ManagerFault):
    """The manager raised; `kinds` are the names of the exception's classes, most specific first."""

    def __init__(self, doing: str, error: dict[str, Any]) -> None:
        super().__init__(f"{doing} raised {error['type']}: {error['message'] or '(without a message)'}")
        self.kinds: tuple[str, ...] = tuple(error["kinds"])
        self.message: str = error["message"]
        self.traceback: str = error["traceback"]


class WrongAnswer(ManagerFault):
    """The manager returned what the contract does not know; no refusal, so not `Raised`."""


class Unsupported(Exception):
    """The adapter has no counterpart for this call, whatever it claims."""


class Hung(ManagerFault):
    """No reply in time; the worker is dead now."""

    def __init__(self, doing: str, timeout_s: float, stacks: str) -> None:
        late = f"{doing} did not return within {timeout_s:g} s and was killed"
        super().__init__(f"{late}. Its threads were at:\n{stacks}")


class Died(ManagerFault):
    """The process ended while a command was running; `status` is its exit code, or minus the signal."""

    def __init__(self, doing: str, status: int, log: str) -> None:
        said = f" Its last output was:\n{log}" if log.strip() else ""
        super().__init__(f"The process ended by itself ({ending(status)}) during {doing}.{said}")
        self.status = status


@dataclass(frozen=True)
class Loaded:
    """What a load came back with."""

    step: int
    tokens_seen: int
    extra: Any
    globals: dict[str, list[str]] = field(default_factory=dict)
    """Per file, what its pickle made a full unpickler look up."""

    @property
    def is_fresh(self) -> bool:
        """Whether nothing was loaded, as far as the manager says."""
        return (self.step, self.tokens_seen, self.extra) == (0, 0, {})


class Supervisor(Protocol):
    """Whoever answers for a worker's file operations."""

    def open(self) -> None:
        """Let everything go, now and from now on."""

    def end(self) -> None:
        """Return when the last operation of the dead worker was answered."""


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
        self._is_leaving = False
        """Whether it has given its last reply, after which it closes its end and comes to its own."""
        self._status: int | None = None
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
            self._bury()

    def strike(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the process and what it started, and do not wait for what comes of it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self._process, number)
            os.killpg(self.pid, number)

    def exit(self) -> int:
        """The interpreter's normal end; the exit status. `Hung` if it does not come to an end."""
        self.tell("exit")
        self.reply()
        return self.await_end()

    def await_end(self) -> int:
        """The exit status of a process that is about to end by itself; `Hung` if it does not."""
        if not self._ends_within(self._timeout_s()):
            raise self._hang("the interpreter's normal exit")
        return self._bury()

    def _bury(self) -> int:
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

    def open(self, settings: dict[str, Any], seed: int) -> None:
        """Make the training run and its manager, as a script does at its start."""
        self.call("open", settings=settings, seed=seed)

    def prepare(self, seed: int) -> None:
        """Make a training run without a manager."""
        self.call("prepare", seed=seed)

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
        self.tell_save(step, extra, parts, tokens_seen)
        self.reply()

    def tell_save(
        self,
        step: int | None = None,
        extra: Any = None,
        parts: Sequence[str] = ALL_PARTS,
        tokens_seen: int | None = None,
    ) -> None:
        """Start a save and do not wait for it; `reply` does."""
        tokens = {} if tokens_seen is None else {"tokens_seen": tokens_seen}
        self.tell("save", step=step, extra=None if extra is None else repr(extra), parts=list(parts), **tokens)

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
        self.tell(do, **arguments)
        return self.reply()

    def tell(self, do: str, **arguments: Any) -> None:
        """Start a command; exactly one `reply` must follow unless the worker is killed."""
        assert self._pending is None, f"{self._pending} was not awaited"
        self._pending = _described(do, arguments)
        with contextlib.suppress(Closed):  # found out by the reply
            self._channel.send({"do": do, **arguments})

    def reply(self, timeout_s: float | None = None) -> Any:
        """The value of the command that was started last."""
        doing, self._pending = self._pending or "a command", None
        message = self._receive(doing, timeout_s)
        self._is_leaving = doing == _described("exit", {})
        self.warnings = message.get("warnings", [])
        if "error" in message:
            raise _fault(doing, message["error"])
        return message["value"]

    def replies_or_blocks(self, at_most_s: float | None = None) -> bool:
        """Wait until the running command has replied (true), or nothing in the process moves any more (false).

        A thread that waits at the gate, for a lock or for another thread does
        not move: it is asleep and its count of context switches stands still.
        One that looks again and again whether it may go on moves; it is given `at_most_s`.
        """
        return settle([self], at_most_s) == [self]

    def ends_or_blocks(self, at_most_s: float | None = None) -> bool:
        """The same of a process that was told to exit and has replied: until it is gone (true), or waits (false)."""
        assert self._is_leaving, "it was not told to exit"
        return settle([self], at_most_s) == [self]

    def has_word(self) -> bool:
        """Whether the reply of the running command is there, or will never come because the process has ended."""
        return self._channel.has_message or bool(select.select(self.descriptors(), [], [], 0)[0])

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

    def _receive(self, doing: str, timeout_s: float | None = None) -> dict[str, Any]:
        timeout_s = self._timeout_s() if timeout_s is None else timeout_s
        try:
            self._await_word(timeout_s)
            return self._channel.receive(timeout_s)
        except TimeoutError:
            raise self._hang(doing) from None
        except Closed:
            if self._status is None and not self._ends_within(timeout_s):
                raise self._hang(doing) from None
            raise Died(doing, self._bury(), self.output()[-2000:]) from None

    def _await_word(self, timeout_s: float) -> None:
        """Return when there is something to receive; `Closed` if the process has ended without a word."""
        if self._status is not None or self._channel.has_message:
            return
        word = self._channel.fileno()
        ready, _, _ = select.select([word, self._process], [], [], timeout_s)
        if not ready:
            raise TimeoutError
        if word not in ready:
            raise Closed("the process has ended")

    def _hang(self, doing: str) -> Hung:
        stacks = self.stacks()
        self.kill()
        return Hung(doing, self._timeout_s(), stacks)


def loaded_from(value: dict[str, Any]) -> Loaded:
    """The value of a `load` command."""
    return Loaded(value["step"], value["tokens_seen"], _literal(value["extra"]), value["globals"])


def settle(workers: Sequence[Worker], at_most_s: float | None = None) -> list[Worker]:
    """Those whose running command has replied when all have, or when nothing in the others moves any more.

    A thread that waits at the gate, for a lock, for another thread or for
    another process does not move: it is asleep and its count of context
    switches stands still.
    """
    quiet, before = 0, ""
    patience_s = max((worker.patience_s for worker in workers), default=0)
    deadline = time.monotonic() + (patience_s if at_most_s is None else at_most_s)
    while quiet < 10 and time.monotonic() < deadline:
        running = [worker for worker in workers if not worker.has_word()]
        if not running:
            break
        select.select([fd for worker in running for fd in worker.descriptors()], [], [], 0.01)
        now = "\n".join(_activity(worker.pid) for worker in running)
        is_still = now == before and "R (running)" not in now
        quiet, before = (quiet + 1 if is_still else 0), now
    return [worker for worker in workers if worker.has_word()]


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


def _activity(pid: int) -> str:
    """Changes whenever a thread of the process does anything, those aside that wake up to see that there is nothing."""
    lines: list[str] = []
    for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
        with contextlib.suppress(OSError):
            status = (task / "status").read_text()
            if status.startswith(_POLLING):
                continue
            lines += re.findall(r"^(?:State|voluntary_ctxt_switches|nonvoluntary_ctxt_switches):.*$", status, re.M)
    return "\n".join(lines)


def _literal(text: str) -> Any:
    import ast

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
