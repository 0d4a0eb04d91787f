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

from forge_conformance.harness.gate import is_supported
from forge_conformance.harness.server import CannotJudge
from forge_conformance.harness.worker import Supervisor

from . import ptrace, sightings
from .facts import Facts
from .ptrace import PtraceRecorder
from .recorder import Control, Recorder, launch
from .sightings import AuditRecorder, Sightings
from .trace import Journal


class Recording(Supervisor, Protocol):
    """A recorder at work."""

    failure: BaseException | None


@dataclass(frozen=True)
class Kind:
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
    start: Callable[[int, int, Journal, Control], Recording]
    start_looking: Callable[[int, int, Journal, Facts], Supervisor]
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
    """A tiny program is recorded in earnest: an old kernel, or a container, may lack any of a dozen things."""
    with tempfile.TemporaryDirectory(prefix="forge-crash-") as folder:
        journal = Journal(Path(folder))
        try:
            program = [sys.executable, "-IS", "-c", f"open({folder + '/tried'!r}, 'w').write('x')"]
            _, tried = launch(program, journal, watch=watch, recorder=recorder)
        except OSError as error:
            return f"the kernel, or the container, refuses: {error}"
        status = tried.wait()
        missed = ", ".join(journal.end().unseen)
        if tried.failure or status or missed:
            return f"recording a small program went wrong: {tried.failure or missed or f'status {status}'}"
    return None


def _never_looks(listener: int, pid: int, journal: Journal, facts: Facts) -> Supervisor:
    raise AssertionError("this recorder does not watch a resume")


RECORDERS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
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
        Kind(
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
        Kind(
            name="audit",
            says="Python's audit hooks, a COARSE recorder",
            unseen=sightings.UNSEEN,
            watch="audit",
            looks=None,
            journal=Sightings,
            start=AuditRecorder,
            start_looking=_never_looks,
            why_not=lambda: None,
        ),
    )
}
"""Every recorder under its name, best first."""


def choose(name: str | None) -> Kind:
    """The one that is asked for, or else the best that works here; `CannotJudge` if the one asked for does not."""
    for kind in [RECORDERS[name]] if name else RECORDERS.values():
        reason = kind.why_not()
        if reason is None:
            return kind
        if name:
            others = ", ".join(other for other in RECORDERS if other != name)
            raise CannotJudge(f"--recorder {name} is not possible here: {reason}. Others are {others}.")
    raise AssertionError("the last one works everywhere")
