"""One run of a manager, recorded: what it did to its folder, and what each of its saves has to bring back.

A scenario drives a few process lives over one folder.  Beginnings, returns and
failures of its saves become marks in the same order as the file operations; the
manager does not know.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forge_conformance.harness.ranks import Outcome, Shape
from forge_conformance.harness.server import CannotJudge, Server
from forge_conformance.harness.worker import ALL_PARTS, ManagerFault, Raised

from .causes import Causes
from .interleavings import History, orders
from .processes import ALONE, Digest, Processes, Undisturbed, is_refusal, of_kinds, raised_once
from .recorder import Control, Operation, Recorder
from .recorders import RECORDERS, Kind
from .recorders import Recording as Watch
from .trace import Trace


@dataclass(frozen=True)
class Saved:
    """What a resume that comes back with this save has to be."""

    step: int
    state: Digest
    """Fingerprints of the kinds of state that the manager claims to bring back."""
    is_resave: bool = False
    """Whether a directory of that step stood there, whole or torn, when the save began; or was on its way there."""


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
    below: str = ""
    """Where the manager's folder is, seen from the one that was recorded; "" if it is that one."""
    shape: Shape = ALONE
    """How many ranks there were, and how they divided the work."""
    special: str = ""
    """What is special about it: a death that came before, or another order in which ranks may have done the same."""
    others: tuple["Recorded", ...] = ()
    """The other orders."""


def stands(server: Server, folder: Path, step: int) -> bool:
    """Whether the folder has a checkpoint of a step, whole or torn."""
    return os.path.lexists(folder / server.implementation.layout.name.format(step=step))


class Recording:
    """A run that goes on."""

    def __init__(
        self,
        scenario: str,
        server: Server,
        folder: Path,
        mode: str,
        kinds: tuple[str, ...],
        timeline: Undisturbed,
        is_recorded: bool = True,
        saves: Sequence[Saved] = (),
        shape: Shape = ALONE,
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
        self.shape = shape
        self._history = None if shape == ALONE else History(shape.ranks)
        self.journal = kind.journal(folder)
        self.journal.history = self._history
        self._causes = Causes(self.journal, self._history) if self._history else None
        self.control = Control()
        self.saves: list[Saved] = list(saves)
        self.settings: dict[str, Any] = {"mode": mode}
        self.every = 2
        self.below = ""
        """Where the manager's folder is, seen from the recorded one; a scenario may say so before its first life."""
        self._kinds = kinds
        self._timeline = timeline
        self.is_recorded = is_recorded
        self._kind = kind
        self._recorders: list[Watch] = []

    @property
    def checkpoints(self) -> Path:
        """The manager's folder."""
        return self.folder / self.below

    @contextlib.contextmanager
    def life(self, **settings: Any) -> Iterator["RecordedLife"]:
        """A fresh process; killed at the end.  Its settings are those of later resumes as well."""
        self.settings = {"mode": self.mode, **settings}
        watched = self.folder if self.is_recorded else None
        watch = "talks" if self._history else self._kind.watch
        processes = Processes(self.server, self.shape, watched, watch, self._supervise)
        try:
            if self.is_recorded and len(self._recorders) < len(processes.workers):
                raise CannotJudge(f"The manager's file operations can't be recorded: {self.server.filter_refusal}.")
            self.control.dies = processes.strike
            processes.open({"folder": str(self.checkpoints), **self.settings}, seed=0)
            yield RecordedLife(self, processes)
        finally:
            processes.kill()
            self.journal.mark("kill")
            recorders, self._recorders = self._recorders, []
            for recorder in recorders:
                if recorder.failure is not None:
                    raise recorder.failure
            self.control.dies_at, self.control.is_dead = None, False

    def _supervise(self, rank: int, listener: int, pid: int) -> Watch:
        several = (
            None
            if self._causes is None
            else Recorder(listener, pid, self.journal, self.control, rank=rank, causes=self._causes)
        )
        self._recorders.append(several or self._kind.start(listener, pid, self.journal, self.control))
        return self._recorders[-1]

    def state_at(self, trained: int, step: int) -> Digest:
        """What the undisturbed run has after so many steps, with the counter that the save is told."""
        return self._timeline.told(trained, step)

    def saves_state(self, step: int, digest: Digest, is_resave: bool) -> int:
        """Note what a save of this step has to bring back; its number."""
        self.saves.append(Saved(step, of_kinds(digest, self._kinds), is_resave))
        return len(self.saves) - 1

    def end(self) -> Recorded:
        """`CannotJudge` if the manager left nothing in its folder."""
        trace = self.journal.end()
        trace = replace(trace, outside=tuple(path for path in trace.outside if not self.server.owns(path)))
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
        recorded = Recorded(
            self.scenario, self.mode, trace, tuple(self.saves), self.settings, self.every, self.control.done, self.below
        )
        if self._history is None:
            return recorded
        stages = [self.shape.members(stage) for stage in range(self.shape.stages)]
        own, *others = [
            replace(recorded, trace=order, shape=self.shape, special=special)
            for special, order in orders(trace, self._history, stages)
        ]
        return replace(own, others=tuple(others))


class RecordedLife:
    """The process, or the ranks, of one life of a recording; its calls leave marks."""

    def __init__(self, recording: Recording, processes: Processes) -> None:
        self._recording = recording
        self.processes = processes
        self.step = 0
        self._is_undisturbed = True
        self._has_started = False
        self._own: set[int] = set()
        """Steps that were saved here; a flush of one may still be on its way."""
        self._in_flight: int | None = None

    def load(self, step: int | None = None) -> None:
        """Resume, from the checkpoint of a step or by itself."""
        self._starts(step)
        name = self._recording.server.implementation.layout.name.format(step=step)
        path = None if step is None else str(self._recording.checkpoints / name)
        self.step = min(loaded.step for loaded in self.processes.load(path))
        self._recording.journal.mark("lands", step=self.step)
        self._is_undisturbed = False

    def _starts(self, step: int | None = None) -> None:
        self._recording.journal.mark("start", step=step or 0)
        self._has_started = True

    def save_at(self, *steps: int) -> None:
        """Train to each of these steps and save there."""
        for step in steps:
            self.train_to(step)
            self.save()

    def train_to(self, step: int) -> None:
        """Train until the run is at `step`."""
        self.processes.train(step - self.step)
        self.step = step

    def save(self, step: int | None = None) -> None:
        """Save, at the run's step or under another; an asynchronous save acknowledges the one before it."""
        number = self._begin(self.step if step is None else step)
        outcomes = self.processes.outcomes("save", step=step, extra=None, parts=list(ALL_PARTS))
        if self._recording.mode == "sync":
            self._marks(outcomes, number)
        else:
            self._marks([outcome for outcome in outcomes if isinstance(outcome.fault, Raised)], number)
            self._marks([outcome for outcome in outcomes if outcome.fault is None], self._in_flight)
            self._in_flight = number if all(outcome.fault is None for outcome in outcomes) else None
        raised_once(outcomes)

    def _begin(self, step: int) -> int:
        recording = self._recording
        if not self._has_started:  # and looked for nothing
            self._starts()
            recording.journal.mark("lands")
        digest = recording.state_at(self.step, step) if self._is_undisturbed else self.processes.digest()
        is_resave = step in self._own or stands(recording.server, recording.checkpoints, step)
        number = recording.saves_state(step, digest, is_resave)
        self._own.add(step)
        for rank in range(len(self.processes.workers)):
            recording.journal.mark("begins", number, rank=rank)
        return number

    def _marks(self, outcomes: Sequence[Outcome], number: int | None) -> None:
        for outcome in outcomes:
            if number is not None and (outcome.fault is None or isinstance(outcome.fault, Raised)):
                word = "acknowledged" if outcome.fault is None else "raised"
                self._recording.journal.mark(word, number, rank=outcome.rank)

    def wait(self) -> None:
        """Wait until all that was saved is committed."""
        number, self._in_flight = self._in_flight, None
        outcomes = self.processes.outcomes("wait")
        self._marks(outcomes, number)
        raised_once(outcomes)

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
        control, journal = self._recording.control, self._recording.journal
        failed: list[Operation] = []

        def found(operation: Operation) -> int:
            error = fails(operation)
            if error and not failed:
                journal.mark("full")
                failed.append(operation)
            return error

        control.fails = found
        try:
            yield
        finally:
            control.fails = lambda operation: 0

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Where the manager may say that something went wrong."""
        try:
            yield
        except ManagerFault as fault:
            if not is_refusal(fault):
                raise
