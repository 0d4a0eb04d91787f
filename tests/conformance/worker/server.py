"""The warm server: pays for imports once, then forks one worker per process life.

Invariants: it never opens a manager itself, so every worker starts from the
same untouched state; it never starts a thread, so forking is safe; it reaps a
worker only when told to, so a pid that the suite knows never names another
process; nothing that a worker started outlives it, whatever process group it
moved to; and when the suite goes away it kills what is left and ends.

A server can also be a *host*: it opens a door, a socket with a name in the file system, and whoever knocks there gets
servers for any manager, forked from this one.  When a guest goes away, so does what was forked for it.

*Rehearsal*: a child that nobody judges trains, saves and loads once and says
which modules that made it import; the server imports those as well, and trains
a run of its own (`practice`).  Workers then start warm without inheriting
anything that a manager did.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import faulthandler
import gc
import importlib
import importlib.metadata
import importlib.util
import json
import linecache
import os
import platform
import select
import shlex
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from .channel import Channel, Closed, short

_LOG = 2
"""Standard error: the suite gives the server a file there, and each worker one of its own."""
_SET_CHILD_SUBREAPER = 36
_MADV_COLLAPSE, _LARGE_PAGE = 25, 1 << 21
_NEVER = 1 << 30
"""A number of new objects that no import makes."""


def main(arguments: list[str]) -> int:
    """Serve until the suite goes away; in a forked worker, return the worker's exit status instead."""
    parser = argparse.ArgumentParser(prog="worker")
    parser.add_argument("--impl", required=True)
    parser.add_argument("--channel", type=int, required=True, help="descriptor of the socket to the suite")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    os.dup2(_LOG, 1)  # whatever prints, prints to the log
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it, as no training job does
    for number in (signal.SIGTTIN, signal.SIGTTOU):  # who asks the terminal gets an error, and is not stopped
        signal.signal(number, signal.SIG_IGN)
    _adopt_orphans()
    return _serve(Channel(socket.socket(fileno=options.channel)), options.impl, options.device)


def _serve(channel: Channel, impl: str, device: str, adapter: Any = None) -> int:
    server = Server(channel, device, adapter)
    try:
        channel.send(server.introduce(impl))
        life = server.serve()
    except Closed:
        server.end_children()
        os._exit(0)  # nobody is left to hear of it, and taking torch down in order takes as long as several lives
    return life() if life is not None else 0


class Server:
    """Its state: the adapter class it found, the workers it has not reaped, what the import started besides, and
    whether memory is as it shall be when it forks."""

    def __init__(self, channel: Channel, device: str, adapter: Any = None) -> None:
        """With an `adapter` its manager is imported already, and is not imported again."""
        self._channel = channel
        self._device = device
        self._impl = ""
        self._adapter = adapter
        self._children: set[int] = set()
        self._helpers: set[int] = set()
        self._is_settled = False
        self._door: socket.socket | None = None
        self._guests: dict[Channel, set[int]] = {}
        """Suites that came in by the door, and what was forked for each."""
        self._asking = channel

    def introduce(self, name: str) -> dict[str, Any]:
        """Import the manager and torch; what the suite needs to know about them, or why there is nothing to judge."""
        from .implementation import CannotJudge, find

        if importlib.util.find_spec("torch") is None:
            return {"refusal": f"Python {sys.executable} cannot import torch, and the training run needs it."}
        try:
            with _no_collections():
                self._impl, self._adapter = name, self._adapter or find(name)
                version = _warm_torch()
            introduction = self._introduction(name, version)
        except CannotJudge as reason:
            return {"refusal": str(reason)}
        except BaseException as error:  # an import may raise anything, SystemExit included
            return {"refusal": _import_failure(name, error)}
        finally:
            self._helpers = _children()
        return introduction

    def _introduction(self, name: str, torch_version: str) -> dict[str, Any]:
        adapter = self._adapter
        return {
            "implementation": name,
            "adapter": adapter.__qualname__,
            "level": adapter.claims.level,
            "capabilities": list(adapter.claims.capabilities),
            "without": list(adapter.claims.without),
            "layout": dataclasses.asdict(adapter.layout),
            "hooked_layout": dataclasses.asdict(adapter.hooked_layout or adapter.layout),
            "traits": dataclasses.asdict(adapter.traits),
            "job": _job(adapter),
            "probe": adapter.probe(),
            "environment": {
                "python": platform.python_version(),
                "executable": sys.executable,
                "torch": torch_version,
                "gpus": _gpus(),
                "has_numpy": importlib.util.find_spec("numpy") is not None,
                "platform": platform.platform(),
                "versions": _versions(name, adapter.distributions),
            },
        }

    def serve(self) -> Any:
        """Answer the suite, and guests; returns only inside a forked child, with the function that is its life."""
        life = None
        while life is None:
            self._asking = self._next_to_ask()
            try:
                life = self._answer(self._asking.receive())
            except Closed:
                if self._asking is self._channel:
                    raise
                self._lose(self._asking)
        return life

    def _next_to_ask(self) -> Channel:
        """Whoever has a request; guests that come meanwhile are let in."""
        while self._door is not None:
            channels = {channel.fileno(): channel for channel in (self._channel, *self._guests)}
            ready = select.select([self._door.fileno(), *channels], [], [])[0]
            if self._door.fileno() not in ready:
                return channels[ready[0]]
            self._guests[Channel(self._door.accept()[0])] = set()
        return self._channel

    def _answer(self, request: dict[str, Any]) -> Any:
        """Do what is asked; in a forked child, return its life."""
        match request["do"]:
            case "spawn":
                descriptors = [self._asking.take_descriptor(), self._asking.take_descriptor()]
                return self._spawn(request, *descriptors)
            case "fork":
                descriptors = [self._asking.take_descriptor(), self._asking.take_descriptor()]
                return self._spawn_server(request, *descriptors)
            case "reap":
                status, cpu_s = self._reap(request["pid"])
                self._asking.send({"status": status, "cpu_s": cpu_s})
            case "rehearse":
                request.pop("do")
                self._asking.send({"imported": self._rehearse(**request)})
            case "open_door":
                self._door = socket.socket(socket.AF_UNIX)
                with short(Path(request["path"])) as name:
                    self._door.bind(name)
                self._door.listen()
                self._asking.send({})
        return None

    def _lose(self, guest: Channel) -> None:
        guest.close()
        for pid in self._guests.pop(guest) & self._children:
            _kill_group(pid)
            self._reap(pid)

    def _spawn(self, request: dict[str, Any], connection: int, log: int) -> Any:
        if not self._is_forked(connection, log):
            return None
        from .commands import Worker

        adapter, device = self._adapter, self._device
        return lambda: Worker(Channel(socket.socket(fileno=connection)), adapter, device).live(request)

    def _spawn_server(self, request: dict[str, Any], connection: int, log: int) -> Any:
        """A server for the same manager or another one, which finds imported what this one has imported."""
        if not self._is_forked(connection, log):
            return None
        if "environment" in request:  # a guest's, who may be elsewhere
            os.environ.clear()
            os.environ.update(request["environment"])
            os.chdir(request["folder"])
            sys.path[0] = request["folder"]
        os.environ["TMPDIR"], tempfile.tempdir = request["directory"], None
        device, adapter = self._device, self._adapter if request["impl"] == self._impl else None
        return lambda: _serve(Channel(socket.socket(fileno=connection)), request["impl"], device, adapter)

    def _is_forked(self, connection: int, log: int) -> bool:
        """Fork, and tell the suite of the child; true in the child."""
        if not self._is_settled:
            self._is_settled = True
            gc.freeze()
            _move_to_large_pages()
        pid = os.fork()
        if pid:
            os.close(connection)
            os.close(log)
            self._children.add(pid)
            self._guests.get(self._asking, set()).add(pid)
            self._asking.send({"pid": pid})
            return False
        self._become_child(log)
        return True

    def _become_child(self, log: int) -> None:
        os.setpgid(0, 0)  # what the manager starts belongs to this life and is killed with it
        _adopt_orphans()  # until this life ends; then the server does
        self._children.clear()
        for channel in (self._channel, *self._guests):
            channel.close()
        if self._door is not None:
            self._door.close()
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        faulthandler.register(signal.SIGUSR1, all_threads=True)

    def _reap(self, pid: int) -> tuple[int, float]:
        """Exit status and processor time of a child that has ended, when nothing of it is left."""
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        _kill_group(pid)  # while the worker still holds its number
        _, status, used = os.wait4(pid, 0)
        self._children.discard(pid)
        self._end_orphans()
        return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime

    def _end_orphans(self) -> None:
        while orphans := _children() - self._children - self._helpers:
            for orphan in orphans:
                os.kill(orphan, signal.SIGKILL)
                os.waitpid(orphan, 0)

    def _rehearse(self, modes: list[str], timeout_s: float, with_ranks: bool) -> int:
        before, may_practise = set(sys.modules), bool(modes)
        for mode in modes:
            learnt = self._learnt_from_a_life(mode, timeout_s, with_ranks)
            may_practise = may_practise and learnt["may_practise"]
            for name in learnt["imported"]:
                if name not in sys.modules:
                    with contextlib.suppress(BaseException):  # a module that was made, not imported
                        importlib.import_module(name)
            for file in learnt["read"]:
                linecache.getlines(file)
        if may_practise:
            from .practice import practise  # the manager's own import comes first

            practise(with_ranks)
        self._helpers = _children()
        self._is_settled = False
        return len(set(sys.modules) - before)

    def _learnt_from_a_life(self, mode: str, timeout_s: float, with_ranks: bool) -> dict[str, Any]:
        """What a training, a save and a load import, and which source files they read for stack traces.

        Learnt in a child, which also says whether this process may practise; nothing if it hangs.
        """
        with tempfile.TemporaryFile() as learnt, tempfile.TemporaryDirectory() as folder:
            pid = os.fork()
            if pid == 0:
                os.setpgid(0, 0)
                may_practise = False
                with contextlib.suppress(BaseException):
                    from .commands import rehearse
                    from .practice import is_harmless, practise

                    # A GPU that a process has woken is of no use to its forks.
                    may_practise = self._device == "cpu" and is_harmless(partial(practise, with_ranks))
                    rehearse(self._adapter, self._device, folder, mode, timeout_s, with_ranks)
                found = {"imported": list(sys.modules), "read": list(linecache.cache), "may_practise": may_practise}
                learnt.write(json.dumps(found).encode())
                learnt.flush()
                os._exit(0)
            if not _ends_within(pid, 10 * timeout_s):
                _kill_group(pid)
            self._reap(pid)
            learnt.seek(0)
            return {"imported": [], "read": [], "may_practise": False, **json.loads(learnt.read() or b"{}")}

    def end_children(self) -> None:
        """Kill and reap every worker that is left, and what the import started."""
        for pid in list(self._children):
            _kill_group(pid)
            self._reap(pid)
        self._helpers.clear()
        self._end_orphans()


def _job(adapter: Any) -> str:
    """The command of the adapter's training job, but for the folder; "" if it has none."""
    file = getattr(sys.modules.get(adapter.__module__), "__file__", None) or ""
    command: str = adapter.job.replace("{python}", shlex.quote(sys.executable)).replace("{file}", shlex.quote(file))
    return command


def _warm_torch() -> str:
    """Import what each life would import; the version."""
    import torch

    torch.set_num_threads(1)
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])  # the first optimizer of a process imports half of torch
    return str(torch.__version__)


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Leave garbage alone: what an import makes stays, and looking through it again and again is a fifth of its time.

    If the imported code has a threshold of its own, or turns the collector off, that stays.
    """
    usual = gc.get_threshold()
    gc.set_threshold(_NEVER)
    try:
        yield
    finally:
        gc.freeze()
        if gc.get_threshold()[0] == _NEVER:
            gc.set_threshold(*usual)


def _move_to_large_pages() -> None:
    """Let what is in memory so far lie in few large pages, where the kernel can do that (6.1).

    A fork copies the table of pages, and an end takes it down; both cost a fraction then.
    """
    madvise = ctypes.CDLL(None).madvise
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, access, *_, name = [*line.split(), ""][:6]
        start, end = (int(bound, 16) for bound in span.split("-"))
        start, end = -(-start // _LARGE_PAGE) * _LARGE_PAGE, end // _LARGE_PAGE * _LARGE_PAGE
        if access == "rw-p" and name in ("", "[heap]") and start < end:
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_COLLAPSE)


def _gpus() -> int:
    """How many GPUs torch sees.  Counted without waking them, or no forked worker could use them."""
    import torch

    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    return torch.cuda.device_count()


def _adopt_orphans() -> None:
    """Of all that descends from this process, make it the parent of what loses its own."""
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _children() -> set[int]:
    """The processes whose parent this one is now."""
    found: set[int] = set()
    for listed in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # that thread has just ended
            found |= {int(pid) for pid in listed.read_text().split()}
    return found


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _ends_within(pid: int, timeout_s: float) -> bool:
    descriptor = os.pidfd_open(pid)
    try:
        return bool(select.select([descriptor], [], [], timeout_s)[0])
    finally:
        os.close(descriptor)


def _import_failure(name: str, error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames and not isinstance(error, SyntaxError) else ""
    return f"Importing {name} raised {type(error).__name__}: {error}{where}. It has to import cleanly to be judged."


def _versions(name: str, distributions: tuple[str, ...]) -> dict[str, str]:
    top = name.partition(":")[0].partition(".")[0]
    found: dict[str, str] = {}
    for package in (*importlib.metadata.packages_distributions().get(top, []), *distributions):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
