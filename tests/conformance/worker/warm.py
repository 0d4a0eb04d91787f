"""Runs one script again and again, in forks of a process that has imported what the script imports.

`python path/to/worker warm CHANNEL`, by the Python that the script itself is started with.  Invariants: this process
never runs a line of the script, so each fork begins as a fresh interpreter does, but for the modules that are loaded;
and it forks only while it has one thread.  A fork ends as the script ends; see `_end`.

Modules of the script's own folder are never imported here: they may do anything.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from .channel import Channel, Closed
from .handover import hand_over, send_over


def main(arguments: Sequence[str]) -> None:
    """Serve until the suite goes away; in a fork, be the script."""
    channel = Channel(socket.socket(fileno=int(arguments[0])))
    runs = _Server(channel).serve()
    if runs is not None:
        _end(runs)


class _Server:
    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def serve(self) -> Callable[[], None] | None:
        """Answer the suite; returns only in a fork, with what it has to do, or when the suite is gone."""
        with contextlib.suppress(Closed):
            while True:
                request = self._channel.receive()
                match request["do"]:
                    case "import":
                        self._channel.send(self._import(request["path"], request["names"]))
                    case "spawn":
                        descriptors = [self._channel.take_descriptor() for _ in range(4)]
                        pid = os.fork()
                        if not pid:
                            self._channel.close()
                            return lambda: _become(request, descriptors)
                        for descriptor in descriptors:
                            os.close(descriptor)
                        self._channel.send({"pid": pid})
                    case "reap":
                        _, status = os.waitpid(request["pid"], 0)
                        self._channel.send({"status": os.waitstatus_to_exitcode(status)})
        return None

    def _import(self, path: str, names: Sequence[str]) -> dict[str, Any]:
        """Import what can be imported, and say whether this process may still be forked."""
        sys.path[0] = path
        for name in names:
            with contextlib.suppress(BaseException):  # a module may raise anything, and the script then gets it as well
                importlib.import_module(name)
        gc.collect()
        gc.freeze()
        torch = sys.modules.get("torch")
        has_gpu = torch is not None and torch.cuda.is_initialized()
        if _threads() > 1:
            _fork_once()
        return {"threads": _threads(), "has_gpu": has_gpu, "modules": len(sys.modules)}


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _fork_once() -> None:
    """Let those threads end that a library ends before each fork, and begins again in the fork, as OpenBLAS does."""
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)


def _become(request: dict[str, Any], descriptors: Sequence[int]) -> None:
    """Be the script: its output, its environment, its arguments."""
    output, errors, connection, told = descriptors
    os.setsid()
    for descriptor, own in ((output, 1), (errors, 2)):
        os.dup2(descriptor, own)
        os.close(descriptor)
    os.environ.update(request["environment"])
    _reseed()
    if request["tells"]:
        _tells_its_modules(told)
    with socket.socket(fileno=connection) as suite:
        if request["watch"]:
            hand_over(request["watch"], suite.fileno(), lambda descriptor: send_over(suite, descriptor))
    script, *_ = sys.argv = list(request["arguments"])
    for name in [name for name in sys.modules if name.partition(".")[0] == "forge_conformance"]:
        del sys.modules[name]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["is_module"]:
        sys.path[0] = os.getcwd()
        runpy.run_module(script, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.realpath(script))
        runpy.run_path(script, run_name="__main__")


def _end(runs: Callable[[], None]) -> None:
    """Run the script, and end as an interpreter does, without taking apart what was there before the script.

    An end by the interpreter takes all modules and libraries apart, which in a fork copies every page of them: ten
    times the time of a short restart.  Threads are waited for, exit functions run, and what the script made is freed,
    so that files which it left open are written.  The suite compares what such an end leaves in the folder with what
    the command itself leaves.
    """
    status = 1
    try:
        runs()
        status = 0
    except SystemExit as ends:
        status = _status(ends.code)
    except Exception:
        sys.excepthook(*sys.exc_info())
    threading._shutdown()  # type: ignore[attr-defined]  # the interpreter calls it for the same reason
    atexit._run_exitfuncs()
    gc.collect()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    ctypes.CDLL(None).fflush(None)
    os._exit(status)


def _status(code: object) -> int:
    """The exit status for an argument of `sys.exit`, as the interpreter has it."""
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    print(code, file=sys.stderr)
    return 1


def _reseed() -> None:
    """A fresh process has streams of its own; forks must not share those of their parent."""
    for name in ("random", "numpy.random"):
        if name in sys.modules:
            sys.modules[name].seed()


def _tells_its_modules(descriptor: int) -> None:
    """When it ends, so that the next fork finds them imported."""
    before, own = set(sys.modules), os.getpid()

    def tells() -> None:
        if os.getpid() == own:
            found = [[name, getattr(module, "__file__", None)] for name, module in list(sys.modules.items())]
            new = [[name, file] for name, file in found if name not in before and isinstance(file, str)]
            with contextlib.suppress(OSError), open(descriptor, "w", closefd=False) as out:
                json.dump(new, out)  # a file: a pipe would have to be read meanwhile

    atexit.register(tells)
