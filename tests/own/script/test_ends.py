"""However the command ends, nothing of it stays: no process of the script, and no folder."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from forge_conformance import worker

from .conftest import IN_PLACE, RIGHT, needs_recorder

pytestmark = needs_recorder


def with_variable(name: str, value: Path) -> list[int]:
    """Processes that have this in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"{name}={value}".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def wait_until(holds: Callable[[], bool]) -> None:
    """Return when this holds; five minutes are far more than it takes on the busiest machine."""
    deadline = time.monotonic() + 300
    while not holds():
        assert time.monotonic() < deadline, "it never came to that"
        select.select([], [], [], 0.05)


SERVES = """
import os, subprocess, sys
open(os.environ["SEEN"], "a").write("started\\n")
subprocess.Popen(["sleep", "3456"], start_new_session=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("starts", [1, 4], ids=["at its first start", "while it is restarted"])
def test_nothing_outlives_the_command(number: int, starts: int, tmp_path: Path) -> None:
    """Its script starts a server in a session of its own each time."""
    (tmp_path / "train.py").write_text(SERVES + RIGHT)
    seen = tmp_path / "seen"
    seen.touch()
    command = [sys.executable, "-m", "forge_conformance.cli", "script", "--", sys.executable, "train.py", "{dir}"]
    own = {**os.environ, "SEEN": str(seen)}
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    leader = subprocess.Popen(command, cwd=tmp_path, env=own, **quiet)
    wait_until(lambda: len(seen.read_text().splitlines()) >= starts or leader.poll() is not None)
    leader.send_signal(number)
    leader.wait()
    wait_until(lambda: not with_variable("SEEN", seen))


@pytest.mark.parametrize(
    ("script", "explored"),
    [(RIGHT.replace("os.fsync(file.fileno())", "pass"), 1), (IN_PLACE, 0)],
    ids=["after a loss of power", "after a kill"],
)
def test_an_interrupted_run_reports_what_it_has_found_out(script: str, explored: int, tmp_path: Path) -> None:
    """It is interrupted while it waits for a script that never ends after such a death."""
    waits = script.replace(
        "step, total = json.load(open(path))",
        "\n    while not os.path.getsize(path): open(os.environ['SEEN'], 'w').write('x')\n"
        "    step, total = json.load(open(path))",
    )
    (tmp_path / "train.py").write_text(waits)
    seen = tmp_path / "seen"
    words = ["--deaths", "kill", "--storage", "ext4", "--timeout", "100", "--", sys.executable, "train.py", "{dir}"]
    command = [sys.executable, "-m", "forge_conformance.cli", "script", *words]
    with open(tmp_path / "said", "w") as said:
        own = {**os.environ, "SEEN": str(seen)}
        leader = subprocess.Popen(command, cwd=tmp_path, env=own, stdout=said, stderr=said)
        wait_until(lambda: seen.exists() or leader.poll() is not None)
        leader.send_signal(signal.SIGTERM)
        assert leader.wait() == 3
    assert f"PARTIAL: interrupted after {explored} of 2 kinds of death." in (tmp_path / "said").read_text()
    assert (tmp_path / "reports" / "script" / "script.json").is_file()


@pytest.mark.parametrize("watch", ["storing", "writes", "reads", "audit"])
def test_a_process_whose_watcher_is_gone_already_ends_and_does_not_wait_for_itself(watch: str) -> None:
    """Its watcher was killed before it could be told of that, so nobody will ever answer its file operations."""
    ours, theirs = socket.socketpair()
    ours.close()
    started = Path(worker.__file__).parent
    with theirs:
        command = [sys.executable, "-S", str(started), "watched", str(theirs.fileno()), watch, sys.executable, "-c", ""]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    try:
        assert process.wait(120) == 1
    finally:
        process.kill()
        process.wait()
