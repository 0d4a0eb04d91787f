"""The warm server of one pytest process, seen from the suite.

`CannotJudge` is the only way in which it fails: one paragraph about the
manager or its environment, never a traceback of ours.
"""

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from forge_conformance.adapter import Layout, Traits
from forge_conformance.judging.judge import CannotJudge, NotImported
from forge_conformance.judging.verdicts import MODES, unjudged_claims
from forge_conformance.runs import machine
from forge_conformance.runs.process import Worker, connect, ending, readable, stacks_of
from forge_conformance.watch.gate import Gate
from forge_conformance.watch.listener import Supervisor
from forge_conformance.worker.channel import Channel, Closed, short
from forge_spec.clauses import CAPABILITIES, Level, with_parts

LEVELS = [str(level) for level in Level]
HOST = "FORGE_CONFORMANCE_HOST"
"""A variable that names the door of a server, for our own tests: servers that are started where it is set are forks of
that one, whichever manager they are for, and don't import torch again."""


class _Process(Protocol):
    """What is needed of a server's process."""

    @property
    def pid(self) -> int: ...
    def wait(self, timeout: float | None = None) -> int: ...


class _Host(Protocol):
    """A server that forks others; it can be asked one thing at a time."""

    def ask(
        self, request: dict[str, Any], descriptors: tuple[int, ...] = (), timeout_s: float = 60
    ) -> dict[str, Any]: ...


class _Fork:
    """A server's process that another server has forked, and that only that one can reap."""

    def __init__(self, pid: int, host: _Host) -> None:
        self.pid = pid
        self.cpu_s = 0.0
        self._host = host
        self._descriptor = os.pidfd_open(pid)
        self._status: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """The exit status; `subprocess.TimeoutExpired` as of other processes."""
        if self._status is None:
            if not select.select([self._descriptor], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            buried = self._host.ask({"do": "reap", "pid": self.pid})
            os.close(self._descriptor)
            self._status, self.cpu_s = buried["status"], buried["cpu_s"]
        return self._status


def _gone(door: str) -> str:
    return (
        "The process that had imported the manager, and that the others are forked from, was killed or does not "
        f"answer. Run this again, without {HOST} if that is set: {door}"
    )


class _Door:
    """The way to a host that another process has started."""

    def __init__(self, path: str) -> None:
        knocking = socket.socket(socket.AF_UNIX)
        try:
            with short(Path(path)) as name:
                knocking.connect(name)
        except OSError as error:
            knocking.close()
            raise CannotJudge(f"{_gone(path)} ({error.strerror}).") from None
        self._path = path
        self._channel = Channel(knocking)

    def ask(self, request: dict[str, Any], descriptors: tuple[int, ...] = (), timeout_s: float = 60) -> dict[str, Any]:
        """What the host replies, which has to know where this process is."""
        if request["do"] == "fork":
            environment = {name: value for name, value in os.environ.items() if name != HOST}
            request |= {"folder": str(Path.cwd()), "environment": environment}
        try:
            self._channel.send(request, descriptors)
            return self._channel.receive(timeout_s)
        except (Closed, TimeoutError):
            raise CannotJudge(f"{_gone(self._path)}.") from None

    def close(self) -> None:
        """The host then ends what it has forked for us."""
        self._channel.close()


_WORKER = Path(__file__).resolve().parents[1] / "worker"


def _frozen(value: Any) -> Any:
    """Lists came as tuples."""
    return tuple(value) if isinstance(value, list) else value


def _layout(fields: dict[str, Any]) -> Layout:
    return Layout(**{key: _frozen(value) for key, value in fields.items()})


@dataclass(frozen=True)
class Implementation:
    """What the manager's side said of itself when it was imported."""

    name: str
    adapter: str
    level: str
    capabilities: frozenset[str]
    layout: Layout
    hooked_layout: Layout
    traits: Traits
    probe: dict[str, bool]
    environment: dict[str, Any]
    job: str = ""
    """The command of its training job, with `{dir}` in it; "" if it has none."""

    def layout_under(self, settings: Mapping[str, Any]) -> Layout:
        """What checkpoints look like in a run with these settings."""
        return self.layout if settings.get("hooks") is None else self.hooked_layout

    @property
    def modes(self) -> list[str]:
        """The modes that it claims."""
        return [mode for mode in MODES if mode in self.capabilities]

    @property
    def usual_modes(self) -> list[str]:
        """The modes that are tried unless somebody asks for others."""
        return [mode for mode in self.modes if mode != "pinned"]

    @property
    def plain_mode(self) -> str:
        """The mode to use where it does not matter."""
        return (self.modes or ["async"])[0]


class Server:
    """Starts at once; `close` ends it and every worker of it."""

    def __init__(
        self,
        impl: str,
        python: str | None,
        timeout_s: float = 20,
        import_timeout_s: float = 120,
        device: str = "cpu",
        inside: Sequence[str] = (),
        host: "Server | None" = None,
        door: str = "",
    ) -> None:
        """`inside`: a command that starts the interpreter in its turn, for a server that sees another file system.

        `CannotJudge` if the manager can't be imported, `MachineLacks` if it could not be judged here.
        With a `host`, the `door` of one, or where `HOST` is set, it is a fork of that one's process, see `fork`.
        """
        machine.check()
        self.device = device
        self._impl = impl
        self._inside = inside
        if not (door or host or inside or python or device != "cpu"):
            door = os.environ.get(HOST, "")
        self._door = _Door(door) if door else None
        self._host: _Host | None = host or self._door
        self._directory = Path(tempfile.mkdtemp(prefix="forge-conformance-"))
        self._log = self._directory / "server.log"
        self._timeout_s = timeout_s
        self._import_timeout_s = import_timeout_s
        self._lives = 0
        self._named: list[Path] = []
        self._rehearsed: set[tuple[str | bool, ...]] = set()
        self.hangs = 0
        """Commands that did not return in time; each makes the suite less patient with the next."""
        self.saves_that_wait: set[str] = set()
        """Modes in which `save` was seen to return only after its own flush: no use holding that again."""
        self.filter_refusal: str | None = None
        """Why file operations can't be held here, once it was tried in vain."""
        ours, theirs = connect()
        try:
            with theirs, open(self._log, "wb") as log:
                self._process = self._started(python or sys.executable, theirs.fileno(), log.fileno())
        except BaseException:
            ours.close()
            shutil.rmtree(self._directory)
            raise
        self._channel = Channel(ours)
        try:
            self.implementation = self._introduce()
        except BaseException:
            self.close()
            raise

    def _started(self, interpreter: str, connection: int, log: int) -> "_Process":
        if self._host is not None:
            request = {"do": "fork", "impl": self._impl, "directory": str(self._directory)}
            return _Fork(self._host.ask(request, descriptors=(connection, log))["pid"], self._host)
        try:
            return subprocess.Popen(
                [
                    *self._inside,
                    interpreter,
                    str(_WORKER),
                    f"--impl={self._impl}",
                    f"--channel={connection}",
                    f"--device={self.device}",
                ],
                pass_fds=[connection],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,  # no session of its own: Linux shares processors out by session, and gates would wait
                env={**os.environ, "TMPDIR": str(self._directory)},  # what the killed leave there goes with us
            )
        except OSError as error:
            raise CannotJudge(f"--python {interpreter} could not be started: {error.strerror}.") from None

    def open_door(self) -> str:
        """Become a host, also for other processes; return the door that they pass to their servers."""
        path = str(self._directory / "door")
        self.ask({"do": "open_door", "path": path})
        return path

    def fork(self, impl: str) -> "Server":
        """A server for another manager, which finds imported what this one has imported, and nothing else of it.

        It lives in a process of its own; this one has to outlive it, and be asked nothing else meanwhile.
        """
        return Server(impl, None, self._timeout_s, self._import_timeout_s, self.device, host=self)

    def _introduce(self) -> Implementation:
        try:
            hello = self._channel.receive(self._import_timeout_s)
        except TimeoutError:
            stacks = stacks_of(self._process.pid, lambda: self._log.read_text(errors="replace"))
            os.killpg(self._process.pid, signal.SIGKILL)
            raise CannotJudge(
                f"Importing {self._impl} did not finish within {self._import_timeout_s:g} s. Its threads were "
                f"at:\n{readable(stacks) or '(no stacks: it did not answer a signal either)'}"
            ) from None
        except Closed:
            raise CannotJudge(
                f"The process that imported {self._impl} ended ({ending(self._ended())}) before it could be "
                f"asked anything. Its last output was:\n{self._said() or '(nothing)'}"
            ) from None
        if "refusal" in hello:
            raise NotImported(hello["refusal"])
        without = frozenset(hello.get("without", ()))
        unknown = sorted(without.union(hello["capabilities"]) - CAPABILITIES.keys())
        if unknown or hello["level"] not in LEVELS:
            raise CannotJudge(
                f"{self._impl} claims {', '.join(unknown) or 'level ' + repr(hello['level'])}, which does not "
                f"exist. Levels are {', '.join(LEVELS)}; capabilities are {', '.join(CAPABILITIES)}."
            )
        capabilities = with_parts(hello["capabilities"]) - without
        unjudged = unjudged_claims(capabilities)
        if unjudged:
            raise CannotJudge(f"The claims of {self._impl}: {unjudged}")
        if self.device == "cuda" and not hello["environment"]["gpus"]:
            raise CannotJudge(
                f"--device cuda: the torch of {hello['environment']['executable']} "
                f"({hello['environment']['torch']}) sees no GPU here."
            )
        return Implementation(
            name=hello["implementation"],
            adapter=hello["adapter"],
            level=hello["level"],
            capabilities=capabilities,
            layout=_layout(hello["layout"]),
            hooked_layout=_layout(hello.get("hooked_layout", hello["layout"])),  # a worker without hooks says none
            traits=Traits(**hello.get("traits", {})),  # a worker that was written before there were any has none
            probe=hello["probe"],
            environment=hello["environment"],
            job=hello.get("job", ""),
        )

    def _said(self) -> str:
        return readable(self._log.read_text(errors="replace"))[-1500:].strip()

    def rehearse(self, modes: list[str], with_ranks: bool = False) -> None:
        """Let the server import what lives in these modes will import, or those of several ranks; a fork has it all."""
        asked: tuple[str | bool, ...] = (*modes, with_ranks)
        if self._host is not None or asked in self._rehearsed:
            return
        self._rehearsed.add(asked)
        seconds = 11 * self._timeout_s * len(modes)  # ten calls, and some time to end them
        request = {"do": "rehearse", "modes": modes, "timeout_s": self._timeout_s, "with_ranks": with_ranks}
        self.ask(request, timeout_s=seconds + self._import_timeout_s)

    def spawn(
        self,
        folder: Path | None = None,
        reads: bool = False,
        watch: str | None = None,
        supervise: Callable[[int, Path, int], Supervisor] = Gate,
    ) -> Worker:
        """A new process; with a folder, its file operations pass through a gate, or another supervisor."""
        ours, theirs = connect()
        self._lives += 1
        log = self._directory / f"worker-{self._lives}.log"
        with open(log, "wb") as output, theirs:
            watched = watch or ("reads" if reads else "writes")
            request = {"do": "spawn", "filter": None if folder is None else watched}
            pid = self.ask(request, descriptors=(theirs.fileno(), output.fileno()))["pid"]
        worker = Worker(pid, Channel(ours), self._reap, log, self._patience_s)
        reason = worker.greet(folder, supervise)
        self.filter_refusal = self.filter_refusal or reason
        return worker

    def sees(self, path: Path) -> Path:
        """Where this process finds what the server and its workers see at a path."""
        return Path(f"/proc/{self._process.pid}/root{path}")

    @property
    def worker_path(self) -> Path:
        """Where the files lie that run in the manager's environment."""
        return _WORKER

    def new_file(self, kind: str) -> Path:
        """The name of a file that does not exist yet and goes when the server does."""
        self._named.append(self._directory / f"{kind}-{len(self._named) + 1}")
        return self._named[-1]

    def owns(self, path: str) -> bool:
        """Whether it is a file that the suite gave a name to."""
        return Path(path) in self._named

    def _patience_s(self) -> float:
        """After a few hangs the next ones are not worth the full wait; see also `Ranks.open`."""
        return self._timeout_s if self.hangs < 3 else self._timeout_s / 2

    def _reap(self, pid: int) -> int:
        status: int = self.ask({"do": "reap", "pid": pid})["status"]
        return status

    def ask(self, request: dict[str, Any], descriptors: tuple[int, ...] = (), timeout_s: float = 60) -> dict[str, Any]:
        """What its process replies; `CannotJudge` if nothing comes."""
        try:
            self._channel.send(request, descriptors)
            return self._channel.receive(timeout_s)
        except (Closed, TimeoutError):
            raise CannotJudge(
                f"The process that had imported {self._impl} no longer answers (asked to {request['do']}). "
                f"Its last output was:\n{self._said() or '(nothing)'}"
            ) from None

    def close(self) -> None:
        """Ends the server; it kills and reaps its workers when it notices."""
        self._channel.close()
        with contextlib.suppress(CannotJudge):  # whoever would know how it ended is gone
            self._ended()
        if self._door is not None:
            self._door.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def cpu_s(self) -> float:
        """Processor time that it and its workers took, once it is closed; known of a fork alone."""
        return self._process.cpu_s if isinstance(self._process, _Fork) else 0.0

    def _ended(self) -> int:
        """The exit status of the process, whose channel is closed."""
        try:
            return self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            return self._process.wait()
