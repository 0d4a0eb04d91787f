"""The process that training shares with its manager: its surroundings, set and described.

What is set here is meant as if the process had been started so.
"""

import contextlib
import ctypes
import gc
import logging
import os
import resource
import signal
import tempfile
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_ME = Path("/proc/self")


def set_environment(variables: Mapping[str, str | None]) -> None:
    """Set variables, or remove those that are None; the temporary folder is looked for anew."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    tempfile.tempdir = None


def described() -> dict[str, Any]:
    """Return what a manager has to leave as it is; of the environment fingerprints alone, since it may hold secrets."""
    _give_back_free_memory()
    fields = dict(line.split(":\t", 1) for line in (_ME / "status").read_text().splitlines() if ":\t" in line)
    return {
        "working_directory": os.getcwd(),
        "umask": fields.get("Umask", "").strip(),
        "environment": {name: f"{zlib.crc32(os.fsencode(value)):08x}" for name, value in os.environ.items()},
        "handlers": {"caught": fields["SigCgt"], "ignored": fields["SigIgn"], **_handlers()},
        "settings": {"blocked signals": fields["SigBlk"], **_settings()},
        "descriptors": _descriptors(),
        "threads": sorted(_texts(_ME / "task", "comm")),
        "children": sum(len(text.split()) for text in _texts(_ME / "task", "children")),
        "memory_bytes": 1024 * int(fields["RssAnon"].split()[0]),
    }


def _give_back_free_memory() -> None:
    """Let the kernel have what nobody uses, so that what is left is in use."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library has no such call
        ctypes.CDLL(None).malloc_trim(0)


def _settings() -> dict[str, str]:
    """Return what all code of the process shares, by name."""
    filters = repr([(action, str(kind), str(module)) for action, _, kind, module, _ in warnings.filters])
    return {
        "alarm": "set" if signal.getitimer(signal.ITIMER_REAL)[0] else "not set",
        "priority": str(os.getpriority(os.PRIO_PROCESS, 0)),
        "limit of descriptors": str(resource.getrlimit(resource.RLIMIT_NOFILE)),
        "limit of a file's size": str(resource.getrlimit(resource.RLIMIT_FSIZE)),
        "garbage collector": "on" if gc.isenabled() else "off",
        "filters of warnings": f"{zlib.crc32(filters.encode()):08x}",
        "level of the log": f"{logging.root.level}, {logging.root.manager.disable}",
    }


def _handlers() -> dict[str, str]:
    return {str(number): _named(signal.getsignal(number)) for number in signal.valid_signals()}


def _named(handler: Any) -> str:
    """Return a name that is the same for two objects of one class, which frameworks make anew for each loop."""
    if callable(handler) and not isinstance(handler, signal.Handlers):
        kind = handler if hasattr(handler, "__qualname__") else type(handler)
        return f"{kind.__module__}.{kind.__qualname__}"
    return repr(handler)


def _descriptors() -> list[str]:
    """What each open descriptor leads to; the one that this is read from is gone when it is asked about."""
    found = []
    for number in os.listdir(_ME / "fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(_ME / "fd" / number))
    return sorted(found)


def _texts(directory: Path, name: str) -> Iterator[str]:
    """What is in the file of this name of each thread; one that ends meanwhile has none."""
    for entry in os.listdir(directory):
        with contextlib.suppress(OSError):
            yield (directory / entry / name).read_text().strip()
