"""Kills one rank of several and lets the others go on, as where a process is lost; judges what a restart makes of it.

The rank is killed before a chosen operation of its own, or at a progress line.  What the others do then depends on who
watches them, so each death is tried in both ways.  A launcher such as torchrun notices it: the others get SIGTERM at
once.  Where nobody notices, they go on until they end by themselves.  In both ways, who has printed nothing for the
grace time is killed.

A death of all ranks shows none of this: there a rank never does anything after another one has died.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from forge_conformance.disks.states import State
from forge_conformance.scripts.explorer import Exploration, Explored, RealEnds
from forge_conformance.scripts.judge import Task
from forge_conformance.scripts.preparation import Prepared
from forge_conformance.scripts.recording import Progress, ScriptRecorder, Timeline
from forge_conformance.scripts.restarts import clear
from forge_conformance.watch.recorder import Control, Operation
from forge_conformance.watch.trace import Disk, Journal

LOST_RANK = "rank"
"""This kind of death."""


@dataclass(frozen=True)
class Loss:
    """Which rank is killed, when, and whether the others are told."""

    rank: int
    cut: int
    """The place in the recording."""
    operation: int = 0
    """The operation of this rank, counted from 1, that never happens; 0: at a progress line."""
    lines: int = 0
    """Progress lines that have been printed then, if it is at a line."""
    is_noticed: bool = True


def losses(line: Timeline, ranks: int) -> Iterator[Loss]:
    """For each rank a line, and the first, the middle and the last operation that it has in its middle save."""
    for rank in range(ranks):
        for is_noticed in (True, False):
            middle = len(line.marks) // 2
            if middle:
                at, _ = line.marks[middle - 1]
                yield Loss(rank, at + 1, 0, middle, is_noticed)
            saves = [save for save in line.saves_of(rank) if save]
            if saves:
                before = sum(map(len, saves[: len(saves) // 2]))
                save = saves[len(saves) // 2]
                for number in sorted({1, (len(save) + 1) // 2, len(save)}):
                    yield Loss(rank, save[number - 1], before + number, 0, is_noticed)


@dataclass
class _Losing(Progress):
    """Listens to a run, and kills the rank when its time has come."""

    loss: Loss = Loss(0, 0)
    operations: int = 0
    """Of this rank."""
    progress_at_loss: int | None = None
    """None while nothing has happened."""
    has_noticed: bool = False
    """Whether the launcher has ended the others."""
    pids: dict[int, int] = field(default_factory=dict)
    """Of each rank."""

    def at_line(self) -> None:
        if self.progress == self.loss.lines:
            self._kill()

    def may_change(self, operation: Operation) -> bool:
        if operation.rank == self.loss.rank:
            self.operations += 1
            if self.operations == self.loss.operation:
                self._kill()
            if self.progress_at_loss is not None:
                return False
        return super().may_change(operation)

    def others_end(self) -> None:
        """What the launcher does when a rank has failed."""
        if self.loss.is_noticed and not self.has_noticed:
            self.has_noticed = True
            for rank, pid in self.pids.items():
                if rank != self.loss.rank:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)

    def _kill(self) -> None:
        self.progress_at_loss = self.progress
        os.kill(self.pids[self.loss.rank], signal.SIGKILL)


def under(exploration: Exploration, prepared: Prepared, grace_s: float) -> Explored:
    """Lose each rank at each place; the kills have to have been explored before."""
    ends, is_cut_short = RealEnds(exploration, LOST_RANK), False
    for loss in losses(prepared.line, prepared.stage.command.ranks):
        is_cut_short = time.monotonic() > exploration.deadline
        if is_cut_short:
            break
        disk, task, note = _lost(exploration, prepared, loss, grace_s)
        ends.notes[note] = None
        if task is not None:
            ends.restart(State(loss.cut), disk, task, _words(loss))
    return ends.explored(is_cut_short)


def _words(loss: Loss) -> str:
    others = "the others get SIGTERM" if loss.is_noticed else "the others go on until they end by themselves"
    return f"rank {loss.rank} alone is killed, and {others}"


def _lost(exploration: Exploration, prepared: Prepared, loss: Loss, grace_s: float) -> tuple[Disk, Task | None, str]:
    """What the others leave, what a restart has to do, and what is remarkable; no task if the rank was not lost."""
    stage, line = prepared.stage, prepared.line
    clear(stage.folder)
    journal = Journal(stage.folder)
    heard = _Losing(journal, form=prepared.form, loss=loss)

    def supervise(rank: int, listener: int, pid: int) -> ScriptRecorder:
        heard.pids[rank] = pid
        return ScriptRecorder(listener, pid, journal, Control(), rank, heard)

    ended = stage.start(False, "storing", supervise).follow(lambda line: False, grace_s, heard.others_end)
    disk = Disk.read(stage.folder)
    if heard.progress_at_loss is None:
        return disk, None, "At some places no rank was killed, because the script did not get there again."
    before = line.marks[heard.progress_at_loss - 1][0] + 1 if heard.progress_at_loss else 0
    goal = len(prepared.whole.lines) + 1 if exploration.has_results else line.goal(before)
    note = (
        f"At some places the other ranks printed nothing for {grace_s:g} s, and were killed." if ended.is_hung else ""
    )
    return disk, Task(heard.progress, exploration.required.acknowledged(before), goal), note
