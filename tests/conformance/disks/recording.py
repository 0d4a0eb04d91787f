"""One run of a manager, recorded: what it did to its folder, and the state of each of its saves.

A scenario drives a few processes over one folder.  Beginnings, returns and
failures of its saves become marks in the same order as the file operations; the
manager does not know.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forge_conformance.disks.orders import orders
from forge_conformance.judging.judge import CannotJudge
from forge_conformance.runs.group import ALONE, Ranks, Shape, is_refusal, values
from forge_conformance.runs.ledger import EVERY, Ledger, Saved
from forge_conformance.runs.process import ManagerFault
from forge_conformance.runs.server import Server
from forge_conformance.runs.state import Digest
from forge_conformance.runs.team import SavingLife
from forge_conformance.runs.timeline import Timeline
from forge_conformance.watch.backends import RECORDERS, Backend, RunningRecorder
from forge_conformance.watch.causes import Causes
from forge_conformance.watch.history import History
from forge_conformance.watch.recorder import Control, Operation, Recorder
from forge_conformance.watch.trace import Journal, Trace
from forge_conformance.worker.system_calls import REMOVES


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

    @property
    def is_hooked(self) -> bool:
        """Whether hooks have saved."""
        return self.settings.get("hooks") is not None


class JournalLedger(Ledger):
    """Marks stand in the journal, between the file operations."""

    def __init__(self, journal: Journal, saves: list[Saved]) -> None:
        super().__init__(saves)
        self._journal = journal

    def mark(self, word: str, save: int, rank: int = 0) -> None:
        self._journal.mark(word, save, rank=rank)


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
        shape: Shape = ALONE,
        kind: Backend = RECORDERS["seccomp"],
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
        self.ledger = JournalLedger(self.journal, list(saves))
        self.settings: dict[str, Any] = {"mode": mode}
        self.every = EVERY
        self.below = ""
        """Where the manager's folder is, seen from the recorded one; a scenario may say so before its first life."""
        self.kinds = kinds
        self.timeline = timeline
        self.is_recorded = is_recorded
        self.has_died = False
        """Whether a scenario has let a process die."""
        self._kind = kind
        self._recorders: list[RunningRecorder] = []

    @property
    def checkpoints(self) -> Path:
        """The manager's folder."""
        return self.folder / self.below

    @contextlib.contextmanager
    def life(self, seed: int = 0, **settings: Any) -> Iterator["RecordedLife"]:
        """A fresh process; killed at the end.  Its settings are those of later resumes as well.

        With another seed it is another run.
        """
        self.settings = {"mode": self.mode, **settings}
        watch = "talks" if self._history else self._kind.watch
        ranks = (
            Ranks.supervised(self.server, self.shape, self.folder, watch, self._supervise)
            if self.is_recorded
            else Ranks(self.server, self.shape)
        )
        try:
            if self.is_recorded and len(self._recorders) < self.shape.ranks:
                raise CannotJudge(f"The manager's file operations can't be recorded: {self.server.filter_refusal}.")
            self.control.dies = ranks.strike
            values(ranks.open({"folder": str(self.checkpoints), **self.settings}, seed=seed))
            yield RecordedLife(self, ranks, is_undisturbed=seed == 0)
        finally:
            ranks.kill()
            self.journal.mark("kill")
            recorders, self._recorders = self._recorders, []
            for recorder in recorders:
                if recorder.failure is not None:
                    raise recorder.failure
            self.has_died |= self.control.is_dead
            self.control.dies_at = self.control.died_before = None

    def _supervise(self, rank: int, listener: int, pid: int) -> RunningRecorder:
        several = (
            None
            if self._causes is None
            else Recorder(listener, pid, self.journal, self.control, rank=rank, causes=self._causes)
        )
        self._recorders.append(several or self._kind.start(listener, pid, self.journal, self.control))
        return self._recorders[-1]

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
            self.scenario,
            self.mode,
            trace,
            tuple(self.ledger.saves),
            self.settings,
            self.every,
            self.control.done,
            self.below,
        )
        if self._history is None:
            return recorded
        stages = [self.shape.members(stage) for stage in range(self.shape.stages)]
        own, *others = [
            replace(recorded, trace=order, shape=self.shape, special=special)
            for special, order in orders(trace, self._history, stages)
        ]
        return replace(own, others=tuple(others))


class RecordedLife(SavingLife):
    """One life of a recording; starts, landings and what becomes of saves leave marks."""

    def __init__(self, recording: Recording, ranks: Ranks, is_undisturbed: bool) -> None:
        """`is_undisturbed`: it is the run that the timeline knows, as long as it has loaded nothing."""
        super().__init__(ranks, recording.ledger, recording.checkpoints, recording.kinds, recording.settings)
        self._recording = recording
        self._is_undisturbed = is_undisturbed
        self._has_started = False

    def load(self, step: int | None = None) -> None:
        """Resume, from the checkpoint of a step or by itself."""
        self._starts(step)
        name = self._folder.layout.name.format(step=step)
        path = None if step is None else str(self._recording.checkpoints / name)
        self.step = min(loaded.step for loaded in self.ranks.load(path))
        self._recording.journal.mark("lands", step=self.step)
        self._is_undisturbed = False

    def _starts(self, step: int | None = None) -> None:
        self._recording.journal.mark("start", step=step or 0)
        self._has_started = True

    def begin_save(self, step: int | None = None) -> None:
        """Start a save; a life that has loaded nothing goes on from step 0."""
        self._starts_afresh()
        super().begin_save(step)

    def pre_train(self) -> None:
        self._starts_afresh()
        super().pre_train()

    def _starts_afresh(self) -> None:
        if not self._has_started:
            self._starts()
            self._recording.journal.mark("lands")

    def _state_at_hook(self, step: int) -> Digest:
        return self._recording.timeline.digest(step) if self._is_undisturbed else {}

    def dies_in_removal(self, of: int, until: int) -> None:
        """Train up to a step, and die right after the first operation that removes the checkpoint of step `of`.

        `CannotJudge` if nothing is removed.
        """
        control, name = self._recording.control, str(self._folder.of(of).name)

        def sees(operation: Operation) -> int:
            removes = operation.name in REMOVES and operation.paths[0].split("/")[0] == name
            if removes and control.dies_at is None:
                control.dies_at = operation.number + 1
            return 0

        control.fails = sees
        try:
            self.batches_to(until)
            self.wait()
        except ManagerFault:
            pass
        finally:
            control.fails = lambda operation: 0
        if self._recording.is_recorded and not control.is_dead:
            raise CannotJudge(
                f"Scenario {self._recording.scenario!r} lets a process die in the removal of step {of}, and nothing "
                "happened in the folder after the first operation of it."
            )

    def _state_of(self, step: int) -> Digest:
        if self._is_undisturbed:  # then nobody has to be asked
            return self._recording.timeline.digest_of_save(self.step, step)
        return self.ranks.digest()

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

        def fails_and_marks(operation: Operation) -> int:
            error = fails(operation)
            if error and not failed:
                journal.mark("full")
                failed.append(operation)
            return error

        control.fails = fails_and_marks
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
