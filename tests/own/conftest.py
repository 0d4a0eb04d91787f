"""What the tests that judge managers share: one warm server, from which the servers of all of them are forked.

To import torch takes longer than most of them.  All processes of a test run share that server: whichever needs it first
starts it, and ends it when the others are done.
"""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

import pytest

from forge_conformance.runs.server import HOST, Server


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory, testrun_uid: str) -> Iterator[str]:
    """Where servers of this test run find the one that they may be forked from."""
    note = tmp_path_factory.getbasetemp().parent / f"host-{testrun_uid}"
    with open(f"{note}.turn", "w") as turn, open(note, "a+") as used:
        fcntl.flock(turn, fcntl.LOCK_EX)  # one process at a time looks and starts
        used.seek(0)
        door = used.read()
        with contextlib.nullcontext(door) if door else _opened(note) as opened:
            fcntl.flock(used, fcntl.LOCK_SH)
            fcntl.flock(turn, fcntl.LOCK_UN)
            yield opened
            if not door:
                fcntl.flock(turn, fcntl.LOCK_EX)
                fcntl.flock(used, fcntl.LOCK_EX)  # nobody uses it any more


@contextlib.contextmanager
def _opened(note: Path) -> Iterator[str]:
    """A server for our reference, which imports whatever these tests need; noted as long as it is there."""
    with contextlib.closing(Server("forge_ref", None)) as server:
        modes = server.implementation.modes
        server.rehearse(modes)
        server.rehearse(modes[:1], with_ranks=True)
        door = server.open_door()
        note.write_text(door)
        yield door
        note.write_text("")


@pytest.fixture(scope="package")
def warm(host: str) -> Iterator[None]:
    """Servers that start meanwhile are forks, but for those of a test that asks for `cold`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOST, host)
        yield


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this test starts, it starts as a user does, with nothing imported."""
    monkeypatch.delenv(HOST, raising=False)
