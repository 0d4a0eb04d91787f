"""Starts the command, follows its output line by line, and ends it with everything that it has started.

Invariants: no process that a start has made outlives it, whatever session it moved to, because each carries a mark in
its environment; and where a start is watched, it is watched from its first instruction.

A start is *cold*, the command itself, or *warm*, a fork of a process that has imported what the script imports.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from forge_conformance.judging.judge import CannotJudge
from forge_conformance.runs.process import connect
from forge_conformance.scripts.command import Command, PythonScript, as_python
from forge_conformance.watch.listener import Supervisor
from forge_conformance.worker.channel import Channel, Closed

MARK = "FORGE_CONFORMANCE_SCRIPT"
"""The variable by which all processes of a command are known, until it ends."""
_PART = "FORGE_CONFORMANCE_STAGE"
"""The variable by which the processes of one stage are known."""
_WORKER = Path(__file__).resolve().parents[1] / "worker"
_IMPORT_S = 300.0
OWN = {"PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "0"}
"""What each start finds in its environment: lines come when they are printed, and a bar is drawn at each step."""
Supervise = Callable[[int, int, int], Supervisor]
"""Called with rank, listener and process; the recorder that answers from then on."""


class RunningRecorder(Supervisor, Protocol):
    """A recorder at work."""

    failure: BaseException | None


@dataclass
class Process:
    """One rank of a start."""

    pid: int
    streams: list[int]
    """Its output and error streams, to be read."""
    reap: Callable[[], int]
    """Return its exit status, once it has ended."""
    ended: int = field(init=False)

    def __post_init__(self) -> None:
        self.ended = os.pidfd_open(self.pid)


@dataclass
class Ended:
    """How a start ended; no status: it was stopped."""

    status: int | None = None
    is_hung: bool = False
    seconds: float = 0
    longest_silence_s: float = 0


class Stage:
    """A checkpoint folder, and the processes that work on it, one start at a time."""

    def __init__(self, command: Command, folder: Path, mark: str, is_remapped: bool = False) -> None:
        """`is_remapped`: only this process and its children see the folder at its place, so replays have to do that."""
        self.is_remapped = is_remapped
        self.base = folder.parent
        """Where other folders can be made."""
        self._part = mark
        self.command = command
        self.folder = folder
        self.mark = mark
        self.warm: Warm | None = None
        self.starts = 0
        """How many processes were started so far."""

    def start(self, is_restart: bool, watch: str | None = None, supervise: Supervise | None = None) -> "Running":
        """Start all ranks; with `watch`, each under a recorder."""
        words = self.command.at(self.folder, is_restart)
        running = Running(self)
        port = _free_port() if self.command.ranks > 1 else 0
        try:
            for rank in range(self.command.ranks):
                running.add(rank, words, self._environment(rank, port), watch, supervise)
        except BaseException:
            running.kill()
            raise
        self.starts += self.command.ranks
        return running

    def _environment(self, rank: int, port: int) -> dict[str, str]:
        own = {**OWN, **self._marks}
        if self.command.ranks == 1:
            return own
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.command.ranks}
        place |= {"LOCAL_WORLD_SIZE": self.command.ranks, "MASTER_PORT": port}
        return own | {"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in place.items()}

    @property
    def _marks(self) -> dict[str, str]:
        return {MARK: self.mark, _PART: self._part}

    def warm_up(self, script: PythonScript) -> None:
        """Let later starts be forks; `CannotJudge` if they can't."""
        self.warm = Warm(script, self._marks)

    def become(self, name: str) -> None:
        """In a fork of the suite: be a stage of its own, with a warm process of its own."""
        self._part = f"{self.mark}-{name}"
        if self.warm is not None:
            self.warm = self.warm.again(self._marks)

    def end_all(self) -> None:
        """Kill whatever carries the mark, but for the process that starts are forked from."""
        spared = self.warm.pid if self.warm else 0
        while found := [pid for pid in marked(self._part) if pid != spared]:
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    ends = os.pidfd_open(pid)
                    try:
                        os.kill(pid, signal.SIGKILL)
                        select.select([ends], [], [])
                    finally:
                        os.close(ends)

    def close(self) -> None:
        """End everything that was started."""
        self.end_all()
        if self.warm is not None:
            self.warm.close()


class Running:
    """A start that goes on."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._processes: list[Process] = []
        self._recorders: list[Supervisor] = []

    def add(
        self,
        rank: int,
        words: Sequence[str],
        environment: Mapping[str, str],
        watch: str | None,
        supervise: Supervise | None,
    ) -> None:
        """Start one rank."""
        ours, theirs = connect()
        with ours, theirs:
            warm = self._stage.warm
            begin = _begun if warm is None else warm.begin
            process = begin(words, environment, watch, theirs)
            self._processes.append(process)
            theirs.close()
            if watch is not None:
                assert supervise is not None, "whoever watches has a recorder"
                self._recorders.append(supervise(rank, _listener(ours), process.pid))

    def follow(self, hears: Callable[[str], bool], silence_s: float, fails: Callable[[], None] | None = None) -> Ended:
        """Give each line of output to `hears`, until that returns true, all has ended, or nothing comes for so long.

        With `fails`, the other ranks are still followed after one has failed, and this is called after each such one.
        """
        try:
            return _Follower(self._processes, silence_s, fails).follow(hears)
        finally:
            self.kill()

    @property
    def pids(self) -> list[int]:
        """The processes of all ranks."""
        return [process.pid for process in self._processes]

    def kill(self) -> None:
        """End all of it, and the recorders."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self._stage.end_all()
        for process in self._processes:
            process.reap()
            for descriptor in (*process.streams, process.ended):
                os.close(descriptor)
        self._processes.clear()
        recorders, self._recorders = self._recorders, []
        for recorder in recorders:
            recorder.end()


class _Follower:
    """Reads the output of all ranks."""

    def __init__(self, processes: Sequence[Process], silence_s: float, fails: Callable[[], None] | None) -> None:
        self._processes = processes
        self._silence_s = silence_s
        self._fails = fails
        self._rests: dict[int, bytes] = {}
        self._statuses: dict[int, int] = {}

    def follow(self, hears: Callable[[str], bool]) -> Ended:
        begun = last = time.monotonic()
        longest = 0.0
        poll = select.poll()
        for process in self._processes:
            for descriptor in (*process.streams, process.ended):
                poll.register(descriptor, select.POLLIN)
        ending = {process.ended: process for process in self._processes}
        while ending:
            left_s = self._silence_s - (time.monotonic() - last)
            events = poll.poll(max(0.0, left_s) * 1000)
            if not events and left_s > 0:
                continue
            if not events:
                return Ended(None, True, time.monotonic() - begun, self._silence_s)
            now = time.monotonic()
            longest, last = max(longest, now - last), now
            for descriptor, _ in events:
                if descriptor in ending:
                    continue
                data = os.read(descriptor, 1 << 16)
                if not data:
                    poll.unregister(descriptor)
                if any([hears(line) for line in self._lines(descriptor, data)]):
                    return Ended(None, False, now - begun, longest)
            for descriptor, _ in events:
                if descriptor in ending:
                    process = ending.pop(descriptor)
                    poll.unregister(descriptor)
                    if any([hears(line) for line in self._rest(process)]):
                        return Ended(None, False, now - begun, longest)
                    self._statuses[process.pid] = process.reap()
                    if self._statuses[process.pid] and self._fails is not None:
                        self._fails()
                    elif self._statuses[process.pid]:  # as torchrun, which then ends the other ranks
                        ending.clear()
        status = next((status for status in self._statuses.values() if status), 0)
        return Ended(status, False, time.monotonic() - begun, longest)

    def _lines(self, descriptor: int, data: bytes) -> list[str]:
        *lines, rest = (self._rests.get(descriptor, b"") + data.replace(b"\r", b"\n")).split(b"\n")
        if not data and rest:
            lines, rest = [*lines, rest], b""
        self._rests[descriptor] = rest
        return [line.decode(errors="replace") for line in lines if line.strip()]

    def _rest(self, process: Process) -> Iterator[str]:
        """What an ended process has still written; a child of it may hold the other end open."""
        for descriptor in process.streams:
            os.set_blocking(descriptor, False)
            with contextlib.suppress(BlockingIOError):
                while data := os.read(descriptor, 1 << 16):
                    yield from self._lines(descriptor, data)
            yield from self._lines(descriptor, b"")


def _listener(channel: socket.socket) -> int:
    said, descriptors, _, _ = socket.recv_fds(channel, 500, 1)
    if not descriptors:
        raise CannotJudge(f"The script's file operations can't be recorded: {said.decode() or 'it ended at once'}.")
    return descriptors[0]


def _begun(words: Sequence[str], environment: Mapping[str, str], watch: str | None, theirs: socket.socket) -> Process:
    """A cold start."""
    watched = [sys.executable, "-S", str(_WORKER), "watched", str(theirs.fileno()), watch] if watch else []
    (output, own_output), (errors, own_errors) = os.pipe(), os.pipe()
    started = subprocess.Popen(
        [*watched, *words],
        stdin=subprocess.DEVNULL,
        stdout=own_output,
        stderr=own_errors,
        pass_fds=[theirs.fileno()] if watch else [],
        start_new_session=True,
        env={**os.environ, **environment},
    )
    os.close(own_output)
    os.close(own_errors)
    return Process(started.pid, [output, errors], started.wait)


class Warm:
    """A process that has imported what the script imports; `close` ends it."""

    def __init__(self, first: PythonScript, marks: Mapping[str, str], names: Sequence[str] = ()) -> None:
        """`names`: modules that are known to be needed. `CannotJudge` if it can't be had; the reason is its text."""
        self._script = first
        self._names = [*first.imports(), *names]
        self._has_learnt = False
        ours, theirs = connect()
        with theirs:
            self._process = subprocess.Popen(
                [*first.interpreter, str(_WORKER), "warm", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **OWN, **marks},
                start_new_session=True,
            )
        self._channel = Channel(ours)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 -- it lives as long as this
        self.pid = self._process.pid
        self.load(self._names)

    def load(self, names: Sequence[str]) -> None:
        """Import these modules; `CannotJudge` if a fork would not be a fresh process any more."""
        said = self._ask({"do": "import", "path": str(self._script.folder), "names": list(names)})
        if said["threads"] > 1 or said["has_gpu"]:
            self.close()
            why = "start threads" if said["threads"] > 1 else "initialise CUDA"
            raise CannotJudge(f"its imports {why}")

    def learn(self) -> None:
        """Import what the first fork has imported besides, but for modules of the script's own."""
        self._said.seek(0)
        text = self._said.read()
        self._has_learnt = True
        found = json.loads(text) if text else []
        new = [name for name, file in found if not self._script.is_own(file)]
        self._names += new
        self.load(new)

    def again(self, marks: Mapping[str, str]) -> "Warm":
        """Another such process, for a fork of the suite that can't share this one."""
        other = Warm(self._script, marks, self._names)
        other._has_learnt = True
        return other

    def begin(
        self, words: Sequence[str], environment: Mapping[str, str], watch: str | None, theirs: socket.socket
    ) -> Process:
        """A warm start; a command that is no Python script of the same interpreter is started cold."""
        script = as_python(words)
        if script is None or script.interpreter != self._script.interpreter:
            return _begun(words, environment, watch, theirs)
        (output, own_output), (errors, own_errors) = os.pipe(), os.pipe()
        request = {
            "do": "spawn",
            "arguments": script.arguments,
            "is_module": script.is_module,
            "environment": environment,
            "watch": watch,
            "tells": not self._has_learnt and environment.get("RANK", "0") == "0",
        }
        descriptors = (own_output, own_errors, theirs.fileno(), self._said.fileno())
        pid: int = self._ask(request, descriptors)["pid"]
        os.close(own_output)
        os.close(own_errors)
        statuses: list[int] = []

        def reap() -> int:
            if not statuses:
                statuses.append(self._ask({"do": "reap", "pid": pid})["status"])
            return statuses[0]

        return Process(pid, [output, errors], reap)

    def _ask(self, request: dict[str, object], descriptors: tuple[int, ...] = ()) -> dict[str, int]:
        try:
            self._channel.send(request, descriptors)
            return self._channel.receive(_IMPORT_S)
        except (Closed, TimeoutError):
            self.close()
            raise CannotJudge("its imports end the process that makes them, or do not end") from None

    def close(self) -> None:
        """End it."""
        self._channel.close()
        self._process.kill()
        self._process.wait()
        self._said.close()


def marked(part: str) -> Iterator[int]:
    """The processes of a stage."""
    wanted = f"{_PART}={part}".encode()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                environment = Path(f"/proc/{name}/environ").read_bytes()
                if wanted in environment.split(b"\0") and _is_alive(int(name)):
                    yield int(name)


def _is_alive(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] not in ("Z", "X")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
