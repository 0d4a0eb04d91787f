"""The ways to watch a process change a folder, best first; which of them are possible is tried out, not guessed.

seccomp  the kernel hands every call over before it is made
ptrace   a tracer stops every call: sees the same and is slower; for kernels before 5.14, and where a container
         keeps the one listener that a process can have
audit    Python announces its own calls from inside: coarse, and everywhere possible
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from forge_conformance.judging.judge import CannotJudge
from forge_conformance.watch import audit, ptrace
from forge_conformance.watch.audit import AuditRecorder, LookingJournal
from forge_conformance.watch.facts import Facts
from forge_conformance.watch.gate import is_supported
from forge_conformance.watch.listener import Supervisor
from forge_conformance.watch.ptrace import PtraceRecorder
from forge_conformance.watch.recorder import Control, Recorder, launch
from forge_conformance.watch.trace import Journal


class RunningRecorder(Supervisor, Protocol):
    """A recorder at work."""

    failure: BaseException | None


@dataclass(frozen=True)
class Backend:
    """A way to record."""

    name: str
    says: str
    """What it is, for the report."""
    unseen: str
    """What it can't see, so that nobody takes its verdicts for more; "" if that is nothing."""
    watch: str
    """What a worker hands over while it is recorded; see `worker/filter.py`."""
    looks: str | None
    """What one hands over that resumes, so that it is known what the outcome depended on; None: nothing."""
    journal: Callable[[Path], Journal]
    start: Callable[[int, int, Journal, Control], RunningRecorder]
    start_looking: Callable[[int, int, Journal, Facts], RunningRecorder]
    why_not: Callable[[], str | None]
    """Why it is not possible here; None if it is."""

    @property
    def is_coarse(self) -> bool:
        """Whether its verdicts are about a part of the deaths only."""
        return bool(self.unseen)


def _why_no_seccomp() -> str | None:
    return is_supported() or _tried("storing", Recorder)


def _why_no_ptrace() -> str | None:
    return ptrace.why_not() or _tried("ptrace", PtraceRecorder)


def _tried(watch: str, recorder: type[Recorder]) -> str | None:
    """A tiny program is really recorded: an old kernel, or a container, may lack any of a dozen things."""
    with tempfile.TemporaryDirectory(prefix="forge-crash-") as folder:
        journal = Journal(Path(folder))
        try:
            quiet = "import os; os.dup2(os.open(os.devnull, os.O_WRONLY), 2)"
            program = [sys.executable, "-IS", "-c", f"{quiet}; open({folder + '/tried'!r}, 'w').write('x')"]
            _, tried = launch(program, journal, watch=watch, recorder=recorder)
        except OSError as error:
            return f"the kernel, or the container, refuses: {error}"
        status = tried.wait()
        missed = ", ".join(journal.end().unseen)
        if tried.failure or status or missed:
            return f"a small program could not be recorded: {tried.failure or missed or f'status {status}'}"
    return None


def _never_looks(listener: int, pid: int, journal: Journal, facts: Facts) -> RunningRecorder:
    raise AssertionError("this recorder does not watch a resume")


RECORDERS: dict[str, Backend] = {
    kind.name: kind
    for kind in (
        Backend(
            name="seccomp",
            says="seccomp user notification, which sees every call, its data and its result",
            unseen="",
            watch="storing",
            looks="looks",
            journal=Journal,
            start=Recorder,
            start_looking=lambda listener, pid, journal, facts: Recorder(listener, pid, journal, facts=facts),
            why_not=_why_no_seccomp,
        ),
        Backend(
            name="ptrace",
            says="ptrace, which sees every call, its data and its result",
            unseen="",
            watch="ptrace",
            looks="ptrace",
            journal=Journal,
            start=PtraceRecorder,
            start_looking=lambda listener, pid, journal, facts: PtraceRecorder(listener, pid, journal, facts=facts),
            why_not=_why_no_ptrace,
        ),
        Backend(
            name="audit",
            says="Python's audit hooks, a COARSE recorder",
            unseen=audit.UNSEEN,
            watch="audit",
            looks=None,
            journal=LookingJournal,
            start=AuditRecorder,
            start_looking=_never_looks,
            why_not=lambda: None,
        ),
    )
}
"""Every recorder under its name, best first."""


def choose(name: str | None) -> Backend:
    """The one that is asked for, or else the best that works here; `CannotJudge` if the one asked for does not."""
    for kind in [RECORDERS[name]] if name else RECORDERS.values():
        reason = kind.why_not()
        if reason is None:
            return kind
        if name:
            others = ", ".join(other for other in RECORDERS if other != name)
            raise CannotJudge(f"--recorder {name} is not possible here: {reason}. Others are {others}.")
    raise AssertionError("the last one works everywhere")
