"""The warm server: pays for imports once, then forks one worker per process life.

Invariants: it never opens a manager itself, so every worker starts from the
same untouched state; it never starts a thread, so forking is safe; it reaps a
worker only when told to, so a pid that the suite knows never names another
process; and when the suite goes away it kills what is left and ends.

*Rehearsal*: a child that nobody judges trains, saves and loads once and says
which modules that made it import; the server imports those as well.  Workers
then start warm without inheriting anything that a manager did.
"""

import argparse
import contextlib
import faulthandler
import gc
import importlib
import importlib.metadata
import os
import platform
import signal
import socket
import sys
import tempfile
import traceback
from typing import Any

from .channel import Channel, Closed

_LOG = 2
"""Standard error: the suite gives the server a file there, and each worker one of its own."""


def main(arguments: list[str]) -> int:
    """Serve until the suite goes away; in a forked worker, return the worker's exit status instead."""
    parser = argparse.ArgumentParser(prog="worker")
    parser.add_argument("--impl", required=True)
    parser.add_argument("--channel", type=int, required=True, help="descriptor of the socket to the suite")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    os.dup2(_LOG, 1)  # whatever prints, prints to the log
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    channel = Channel(socket.socket(fileno=options.channel))
    server = Server(channel, options.device)
    try:
        channel.send(server.introduce(options.impl))
        worker = server.serve()
    except Closed:
        server.end_children()
        return 0
    return worker() if worker is not None else 0


class Server:
    """Its only state: the adapter class it found, and the children it has not reaped."""

    def __init__(self, channel: Channel, device: str) -> None:
        self._channel = channel
        self._device = device
        self._adapter: Any = None
        self._children: set[int] = set()

    def introduce(self, name: str) -> dict[str, Any]:
        """Import torch and the manager; what the suite needs to know about them, or why there is nothing to judge."""
        from .implementation import CannotJudge, find

        try:
            import torch
        except ImportError as error:
            return {"refusal": f"Python {sys.executable} cannot import torch ({error}); the training run needs it."}
        torch.set_num_threads(1)
        try:
            self._adapter = find(name)
        except CannotJudge as reason:
            return {"refusal": str(reason)}
        except BaseException as error:  # an import may raise anything, SystemExit included
            return {"refusal": _import_failure(name, error)}
        return self._introduction(name, str(torch.__version__))

    def _introduction(self, name: str, torch_version: str) -> dict[str, Any]:
        adapter = self._adapter
        layout = adapter.layout
        return {
            "implementation": name,
            "adapter": adapter.__qualname__,
            "level": adapter.claims.level,
            "capabilities": list(adapter.claims.capabilities),
            "layout": {field: getattr(layout, field) for field in layout.__dataclass_fields__},
            "probe": adapter.probe(),
            "environment": {
                "python": platform.python_version(),
                "executable": sys.executable,
                "torch": torch_version,
                "platform": platform.platform(),
                "versions": _versions(name, adapter.distributions),
            },
        }

    def serve(self) -> Any:
        """Answer the suite; returns only inside a forked worker, with the function that is its life."""
        while True:
            request = self._channel.receive()
            match request["do"]:
                case "spawn":
                    descriptors = [self._channel.take_descriptor(), self._channel.take_descriptor()]
                    worker = self._spawn(request, *descriptors)
                    if worker is not None:
                        return worker
                case "reap":
                    _, status = os.waitpid(request["pid"], 0)
                    self._children.discard(request["pid"])
                    self._channel.send({"status": os.waitstatus_to_exitcode(status)})
                case "rehearse":
                    self._channel.send({"imported": self._rehearse(request["modes"])})

    def _spawn(self, request: dict[str, Any], connection: int, log: int) -> Any:
        gc.freeze()
        pid = os.fork()
        if pid:
            os.close(connection)
            os.close(log)
            self._children.add(pid)
            self._channel.send({"pid": pid})
            return None
        self._become_worker(log)
        from .commands import Worker

        adapter, device = self._adapter, self._device
        return lambda: Worker(Channel(socket.socket(fileno=connection)), adapter, device).live(request)

    def _become_worker(self, log: int) -> None:
        os.setpgid(0, 0)  # what the manager starts belongs to this life and is killed with it
        self._children.clear()
        self._channel.close()
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        faulthandler.register(signal.SIGUSR1, all_threads=True)

    def _rehearse(self, modes: list[str]) -> int:
        before = set(sys.modules)
        for mode in modes:
            for name in _imported_by_a_life(self._adapter, self._device, mode):
                if name not in sys.modules:
                    with contextlib.suppress(BaseException):  # a module that was made, not imported
                        importlib.import_module(name)
        return len(set(sys.modules) - before)

    def end_children(self) -> None:
        """Kill and reap every worker that is left."""
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _imported_by_a_life(adapter: Any, device: str, mode: str) -> list[str]:
    """Names of the modules that one training, save and load imports, learnt in a child; none if it fails."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        with contextlib.suppress(BaseException), tempfile.TemporaryDirectory() as folder:
            signal.alarm(60)  # a manager that hangs here will be judged for it later
            from .commands import rehearse

            rehearse(adapter, device, folder, mode)
        os.write(writing, "\n".join(sys.modules).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        names = pipe.read().split("\n")
    os.waitpid(pid, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return [name for name in names if name]


def _import_failure(name: str, error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"Importing {name} raised {type(error).__name__}: {error}{where}. It has to import cleanly to be judged."


def _versions(name: str, distributions: tuple[str, ...]) -> dict[str, str]:
    top = name.partition(":")[0].partition(".")[0]
    found: dict[str, str] = {}
    for package in (*importlib.metadata.packages_distributions().get(top, []), *distributions):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
