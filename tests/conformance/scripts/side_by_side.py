"""Explores several kinds of death at the same time, each in a process of its own.

Every one of them finds a checkpoint folder of its own at the same path, because some scripts keep absolute paths: the
process has a mount namespace.  Kills are explored before, since they show what a restart can bring back.
"""

import contextlib
import ctypes
import os
import pickle
import select
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from forge_conformance.judging.judge import CannotJudge
from forge_conformance.scripts import remap
from forge_conformance.scripts.explorer import Explored
from forge_conformance.scripts.starts import Stage

_PDEATHSIG = 1


def is_possible() -> bool:
    """Whether a process can have a mount namespace here."""
    pid = os.fork()
    if not pid:
        with contextlib.suppress(OSError):
            remap.enter()
            os._exit(0)
        os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def explore(stage: Stage, kinds: Sequence[str], at_once: int, work: Callable[[str], Explored]) -> Iterator[Explored]:
    """What `work` returns for each kind, in the order in which they are done."""
    waiting, running = list(kinds), dict[int, int]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                kind = waiting.pop(0)
                reader, writer = os.pipe()
                pid = os.fork()
                if not pid:
                    os.close(reader)
                    _be_one(stage, kind, work, writer)
                os.close(writer)
                running[reader] = pid
            ready, _, _ = select.select(list(running), [], [])
            for reader in ready:
                yield _result(reader, running.pop(reader))
    finally:
        for reader, pid in running.items():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)
            os.close(reader)


def _result(reader: int, pid: int) -> Explored:
    with open(reader, "rb") as said:
        content = said.read()
    os.waitpid(pid, 0)
    found = pickle.loads(content) if content else CannotJudge("A process that explored ended and said nothing.")
    if isinstance(found, BaseException):
        raise found
    assert isinstance(found, Explored), "a process says what it explored, or why it did not"
    return found


def _be_one(stage: Stage, kind: str, work: Callable[[str], Explored], writer: int) -> None:
    """In a fork: explore a kind over a folder of its own, and end."""
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    found: Explored | BaseException
    try:
        remap.enter()
        with tempfile.TemporaryDirectory(dir=Path(stage.base)) as folder:
            remap.bind(folder, str(stage.folder))
            stage.become(kind)
            try:
                found = work(kind)
            finally:
                stage.close()
                remap.unbind(str(stage.folder))
    except CannotJudge as reason:
        found = reason
    except BaseException:
        found = RuntimeError(f"{kind} could not be explored:\n{traceback.format_exc()}")
    with contextlib.suppress(OSError), open(writer, "wb") as out:
        pickle.dump(found, out)
    sys.stdout.flush()
    os._exit(0)
