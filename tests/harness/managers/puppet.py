"""A manager that does as it is told: `save` calls what its extra names, `load` answers what its path names."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from honest import Honest

from forge_conformance.adapter import Claims, Loaded

ANSWERS: dict[str, Any] = {
    "nothing": None,
    "a tuple": (3, 96, {}),
    "a step in words": Loaded("3"),  # type: ignore[arg-type]
    "half a token": Loaded(3, 0.5),  # type: ignore[arg-type]
    "a list for extra": Loaded(3, 96, ["extra"]),  # type: ignore[arg-type]
    "an unprintable": Loaded(3, 96, type("Unprintable", (), {"__repr__": lambda self: 1 / 0})()),
}


class Puppet(Honest):
    """Honest as long as it is told nothing."""

    claims = Claims("core", ("sync",))

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        if extra is None:
            super().save(step, tokens_seen, extra, parts)
        else:
            getattr(self, extra["do"])(*extra.get("with", ()))

    def load(
        self,
        path: str | None,
        exclude: Sequence[str],
        freeze_expected: Sequence[Mapping[str, Any]] | None,
        parts: Sequence[str],
    ) -> Loaded:
        if path == "stuck":
            self.hang()
        loaded: Loaded = super().load(None, exclude, freeze_expected, parts) if path is None else ANSWERS[path]
        return loaded

    def wait(self) -> None:
        super().wait()
        if (self.folder / "stuck").exists():
            self.hang()

    def peek(self, path: str | None) -> int | None:
        return object()  # type: ignore[return-value]

    @classmethod
    def list_strategies(cls) -> list[str]:
        """No strategies: which modules this process has imported."""
        return sorted(sys.modules)

    # -- ends -----------------------------------------------------------------

    def hang(self) -> None:
        threading.Event().wait()

    def die(self, number: int) -> None:
        os.kill(os.getpid(), number)
        signal.pause()

    def die_and_leave_an_heir(self) -> None:
        """The heir has a copy of every descriptor, the suite's channel among them."""
        if os.fork():
            os._exit(7)
        signal.pause()

    def leave(self) -> None:
        sys.exit(5)

    def interrupt(self) -> None:
        raise KeyboardInterrupt("said the manager")

    def fail_without_words(self) -> None:
        raise type("Wordless", (Exception,), {"__str__": lambda self: 1 / 0})

    def close_everything(self) -> None:
        os.closerange(3, 1024)

    def come_back_twice(self) -> None:
        """Forks for a flush, and lets the child return to whoever called save."""
        os.fork()

    def log_badly(self) -> None:
        import logging

        logging.getLogger("puppet").warning("%d checkpoints", "three")

    def fork(self, name: str, depth: int) -> None:
        """A descendant `depth` generations down, in a session of its own, that writes its number and stays."""
        reading, writing = os.pipe()
        if os.fork() == 0:
            for _ in range(depth):
                if os.fork():
                    os._exit(0)
            os.setsid()
            (self.folder / name).write_text(str(os.getpid()))
            os.write(writing, b"!")
            signal.pause()
        os.read(reading, 1)

    # -- files ----------------------------------------------------------------

    def write_by(self, who: str, *names: str) -> None:
        """Write files, and wait until they are written unless it is for a thread to do."""
        paths = [str(self.folder / name) for name in names]
        if who == "thread":
            self.flushing = self.thread.submit(_in_python, paths)
        else:
            _WRITERS[who](paths)

    def read(self, name: str) -> None:
        (self.folder / name).read_bytes()

    def touch_all(self) -> None:
        """One of each kind of operation, by way of relative paths, descriptors and links."""
        os.chdir(self.folder)
        os.mkdir("d")
        directory = os.open("d", os.O_RDONLY)
        file = os.open("f", os.O_RDWR | os.O_CREAT, dir_fd=directory)
        os.write(file, b"12")
        os.pwrite(file, b"34", 0)
        os.writev(file, [b"5", b"6"])
        os.pwritev(file, [b"7"], 0)
        os.fsync(file)
        os.fdatasync(file)
        os.ftruncate(file, 1)
        os.posix_fallocate(file, 0, 8)
        os.truncate("d/f", 1)
        os.link("d/f", "g")
        os.symlink("d", "s")
        os.rename("s/f", "h")
        os.unlink("g")
        os.rmdir("d")
        os.rename("h", "../outside")

    def open_nowhere(self) -> int:
        """System calls whose path lies in no memory; what they answer is the kernel's business."""
        opened = ctypes.CDLL(None).open
        opened.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
        for address in (0, 1, 2**63, 2**64 - 1):
            assert opened(address, os.O_WRONLY, 0) == -1
        return 0


def _in_python(paths: list[str]) -> None:
    for path in paths:
        with open(path, "w") as file:
            file.write("written")


def _in_c(paths: list[str]) -> None:
    """No Python sees these calls: no audit hook, no patched `open`."""
    libc = ctypes.CDLL(None)
    for path in paths:
        file = libc.open(path.encode(), os.O_WRONLY | os.O_CREAT, 0o600)
        libc.write(file, b"written", 7)
        libc.close(file)


def _in_fork(paths: list[str]) -> None:
    child = os.fork()
    if child == 0:
        _in_python(paths)
        os._exit(0)
    os.waitpid(child, 0)


def _in_subprocess(paths: list[str]) -> None:
    writes = "import sys; [open(path, 'w').write('written') for path in sys.argv[1:]]"
    subprocess.run([sys.executable, "-S", "-c", writes, *paths], check=True)


_WRITERS: dict[str, Callable[[list[str]], None]] = {
    "python": _in_python,
    "c": _in_c,
    "fork": _in_fork,
    "subprocess": _in_subprocess,
}
