"""Folders that are gone when their command is, however that ends.

A command removes its own folders, unless it is killed.  So each has a small
process beside it, which waits for the command's end and then removes what is
left.  It hears of the end by a pipe whose other end the command alone holds;
if nothing comes out of that first, the command was killed, and the janitor
kills its processes, until none is left.  It knows them by their environment,
whatever session they are in: there is a mark in it, or a `TMPDIR` in the folder.
It belongs to a session of its own, so that what ends the command spares it.
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
folder, mark, is_always_killed = sys.argv[1:]
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
was_killed = not sys.stdin.buffer.read()

def carries(value):
    return value == mark or value.startswith(mark + "/")

def kill_all():
    # whether there were any that carry the mark
    found = False
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                values = os.fsdecode(file.read()).split("\0")
            with open(f"/proc/{name}/cmdline", "rb") as file:
                is_tracker = b"multiprocessing.resource_tracker" in file.read()  # it ends after the others, and tidies
            if any(map(carries, values)) and not is_tracker:
                os.kill(int(name), signal.SIGKILL)
                found = True
        except (OSError, ValueError):  # no process, not ours, or it has ended
            pass
    return found

quiet = 0  # rounds in which no process was left, and the folder had not been made anew
for _ in range(120):
    was_found = mark != "" and (was_killed or is_always_killed == "yes") and kill_all()
    shutil.rmtree(folder, ignore_errors=True)
    quiet = 0 if was_found or os.path.lexists(folder) else quiet + 1
    if quiet > 10 * was_killed:
        break
    time.sleep(0.5)  # no event tells of processes that are just beginning; no verdict waits for this
"""


@contextlib.contextmanager
def folder(
    prefix: str, below: str | Path | None = None, mark: str = "", is_for_temporary_files: bool = False
) -> Iterator[Path]:
    """A temporary folder that goes at the end of the block, or soon after this process was killed.

    Processes that have `mark`, a `NAME=value`, in their environment are killed
    then; after a kill, also those whose temporary files are in this folder, if
    that is what it is for.
    """
    made = Path(below or tempfile.gettempdir()) / f"{prefix}{secrets.token_hex(8)}"
    own = f"TMPDIR={made}" if is_for_temporary_files else ""
    janitor = subprocess.Popen(  # before the folder is there: this process may be killed at any moment
        [sys.executable, "-IS", "-c", _SCRIPT, str(made), mark or own, "yes" if mark else "no"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if name != "TMPDIR"},  # it must not kill itself
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
