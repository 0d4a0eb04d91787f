"""One run of a manager, recorded: what it did to its folder, and what each of its saves has to bring back.

A scenario drives a few process lives over one folder.  Beginnings, returns and
failures of its saves become marks in the same order as the file operations; the
manager does not know.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forge_conformance.harness.scenario import Timeline
from forge_conformance.harness.server import CannotJudge, Server
from forge_conformance.harness.worker import ManagerFault, Raised, Worker

from .recorder import Control, Operation
from .recorders import RECORDERS, Kind
from .recorders import Recording as Watch
from .trace import Trace

Digest = dict[str, str]


@dataclass(frozen=True)
class Saved:
    """What a resume that comes back with this save has to be."""

    step: int
    state: Digest
    """Fingerprints of the kinds of state that the manager claims to bring back."""
    is_resave: bool = False


@dataclass(frozen=True)
class Recorded:
    """A run that has ended."""

    scenario: str
    mode: str
    trace: Trace
    saves: tuple[Saved, ...]
    settings: dict[str, Any]
    """How a resume configures the manager."""
    every: int
    """Steps between saves, for a run that goes on."""
    operations: int


class Recording:
    """A run that goes on."""

    def __init__(
        self,
        scenario: str,
        server: Server,
        folder: Path,
        mode: str,
        kinds: tuple[str, ...],
        timeline: Timeline,
        is_recorded: bool = True,
        saves: Sequence[Saved] = (),
        kind: Kind = RECORDERS["seccomp"],
    ) -> None:
        """What the folder holds already was saved by `saves`; `kind` is the recorder.

        Without `is_recorded` the same happens and nobody looks: to know what
        recording costs.
        """
        self.scenario = scenario
        self.server = server
        self.folder = folder
        self.mode = mode
        self.journal = kind.journal(folder)
        self.control = Control()
        self.saves: list[Saved] = list(saves)
        self.settings: dict[str, Any] = {"mode": mode}
        self.every = 2
        self._kinds = kinds
        self._timeline = timeline
        self.is_recorded = is_recorded
        self._kind = kind
        self._recorder: Watch | None = None

    @contextlib.contextmanager
    def life(self, **settings: Any) -> Iterator["RecordedLife"]:
        """A fresh process; killed at the end.  Its settings are those of later resumes as well."""
        self.settings = {"mode": self.mode, **settings}
        watched = self.folder if self.is_recorded else None
        worker = self.server.spawn(watched, watch=self._kind.watch, supervise=self._supervise)
        try:
            if self.is_recorded and self._recorder is None:
                raise CannotJudge(f"The manager's file operations can't be recorded: {self.server.filter_refusal}.")
            self.control.dies = worker.strike
            worker.open({"folder": str(self.folder), **self.settings}, seed=0)
            yield RecordedLife(self, worker)
        finally:
            worker.kill()
            recorder, self._recorder = self._recorder, None
            if recorder is not None and recorder.failure is not None:
                raise recorder.failure
            self.control.dies_at, self.control.is_dead = None, False

    def _supervise(self, listener: int, folder: Path, pid: int) -> Watch:
        self._recorder = self._kind.start(listener, pid, self.journal, self.control)
        return self._recorder

    def state_at(self, trained: int, step: int) -> Digest:
        """What the undisturbed run has after so many steps, with the counter that the save is told."""
        digest = dict(self._timeline.digest(trained))
        digest["counter/step"] = self._timeline.digest(step)["counter/step"]
        return digest

    def of_kinds(self, digest: Digest) -> Digest:
        """What of a fingerprint the manager claims to bring back."""
        return {name: value for name, value in digest.items() if name.partition("/")[0] in self._kinds}

    def end(self) -> Recorded:
        """`CannotJudge` if the manager left nothing in its folder."""
        trace = self.journal.end()
        if not any(call is not None for call in trace.calls):
            beside = f" It opened {', '.join(trace.outside[:3])} for writing instead." if trace.outside else ""
            raise CannotJudge(
                f"Scenario {self.scenario!r}: the manager saved without changing anything in the folder that it was "
                f"given, so there is nothing to explore.{beside}"
            )
        if trace.missed:
            raise CannotJudge(
                f"Scenario {self.scenario!r}: {', '.join(trace.missed[:3])} changed without a call that was recorded, "
                "so the disks that could be built would not be the manager's."
            )
        return Recorded(
            self.scenario, self.mode, trace, tuple(self.saves), self.settings, self.every, self.control.done
        )


class RecordedLife:
    """One process of a recording; its calls leave marks."""

    def __init__(self, recording: Recording, worker: Worker) -> None:
        self._recording = recording
        self.worker = worker
        self.step = 0
        self._is_undisturbed = True
        self._in_flight: int | None = None

    def load(self, path: str | None = None) -> None:
        """Resume, from a path or by itself."""
        self.step = self.worker.load(path).step
        self._is_undisturbed = False

    def save_at(self, *steps: int) -> None:
        """Train to each of these steps and save there."""
        for step in steps:
            self.train_to(step)
            self.save()

    def train_to(self, step: int) -> None:
        """Train until the run is at `step`."""
        self.worker.train(step - self.step)
        self.step = step

    def save(self, step: int | None = None) -> None:
        """Save, at the run's step or under another; an asynchronous save acknowledges the one before it."""
        number = self._begin(self.step if step is None else step)
        try:
            self.worker.save(step)
        except Raised:
            self._recording.journal.mark("raised", number)
            raise
        if self._recording.mode == "sync":
            self._recording.journal.mark("acknowledged", number)
            return
        self._acknowledge()
        self._in_flight = number

    def _begin(self, step: int) -> int:
        recording = self._recording
        digest = recording.state_at(self.step, step) if self._is_undisturbed else self.worker.digest()
        is_resave = any(saved.step == step for saved in recording.saves)
        recording.saves.append(Saved(step, recording.of_kinds(digest), is_resave))
        number = len(recording.saves) - 1
        recording.journal.mark("begins", number)
        return number

    def _acknowledge(self) -> None:
        if self._in_flight is not None:
            self._recording.journal.mark("acknowledged", self._in_flight)
        self._in_flight = None

    def wait(self) -> None:
        """Wait until all that was saved is committed."""
        try:
            self.worker.wait()
        except Raised:
            if self._in_flight is not None:
                self._recording.journal.mark("raised", self._in_flight)
            self._in_flight = None
            raise
        self._acknowledge()

    def dies_in_save(self, after: int) -> None:
        """Save at the run's step, and die before the operation that comes `after` so many of it.

        `CannotJudge` if the save came to its end before that.
        """
        control = self._recording.control
        with self._recording.journal.lock:
            control.dies_at = control.done + after + 1
        with contextlib.suppress(ManagerFault):
            self.save()
            self.wait()
        if self._recording.is_recorded and not control.is_dead:
            raise CannotJudge(
                f"Scenario {self._recording.scenario!r} lets a save die after {after} operations on the folder, and "
                f"the save of step {self.step} came to its end first."
            )

    @contextlib.contextmanager
    def failing(self, fails: Callable[[Operation], int]) -> Iterator[None]:
        """Meanwhile operations fail."""
        self._recording.control.fails = fails
        try:
            yield
        finally:
            self._recording.control.fails = lambda operation: 0
