"""Folders that are gone when their command is, however that ends.

A command removes its own folders, unless it is killed.  So each has a small
process beside it, which waits for the command's end and then removes what is
left.  It hears of the end by a pipe whose other end the command alone holds;
if nothing comes out of that first, the command was killed, and the janitor
stays until its processes no longer make the folder anew.  It belongs to a
session of its own, so that what ends the command spares it.  Before it removes
anything it kills the processes that carry a mark in their environment, if there
is one: programs of others may be in any session.
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_SCRIPT = r"""
import os, shutil, signal, sys, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
was_killed = not sys.stdin.buffer.read()

def marked():
    for name in os.listdir("/proc") if sys.argv[2] else ():
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                if sys.argv[2].encode() in file.read().split(b"\0"):
                    yield int(name)
        except (OSError, ValueError):
            pass

for pid in marked():
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
absent = 0
for _ in range(120):  # processes of a killed command may still write, until they notice as well
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    absent = 0 if os.path.lexists(sys.argv[1]) else absent + 1
    if absent > 10 * was_killed:
        break
    time.sleep(0.5)
"""


@contextlib.contextmanager
def folder(prefix: str, below: str | Path | None = None, mark: str = "") -> Iterator[Path]:
    """A temporary folder that goes at the end of the block, or soon after this process is gone.

    So do processes with `mark`, a `NAME=value`, in their environment.
    """
    made = Path(below or tempfile.gettempdir()) / f"{prefix}{secrets.token_hex(8)}"
    janitor = subprocess.Popen(  # before the folder is there: this process may be killed at any moment
        [sys.executable, "-IS", "-c", _SCRIPT, str(made), mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert janitor.stdin is not None, "it was asked for"
    ours = _Ours(janitor.stdin.fileno())
    try:
        made.mkdir(mode=0o700)
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        ours.is_open = False
        with contextlib.suppress(BrokenPipeError):  # somebody has killed the janitor
            janitor.stdin.write(b"the command is done")
            janitor.stdin.close()
        janitor.wait()


class _Ours:
    """This process's end of a pipe, which its forks close: they must not seem to be the command."""

    def __init__(self, descriptor: int) -> None:
        self.is_open = True
        self._descriptor = descriptor
        os.register_at_fork(after_in_child=self._close)

    def _close(self) -> None:
        if self.is_open:
            os.close(self._descriptor)
