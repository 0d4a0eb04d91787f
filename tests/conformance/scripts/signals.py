"""Lets a script be ended by a signal, as schedulers do, and judges what a restart makes of what it left.

The signal comes at a chosen progress line or file operation of a running script, which then has a grace time.  If it
has not ended by then it is killed.  A save that the main thread makes after a signal, which came at a progress line
between two saves, is an *emergency save*: if the script then ends before its time, the restart must not repeat any line
that was printed.
"""

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
from forge_conformance.scripts.starts import Ended
from forge_conformance.watch.recorder import Control, Operation
from forge_conformance.watch.trace import Disk, Journal

SIGNALS = {"term": signal.SIGTERM, "int": signal.SIGINT}


@dataclass(frozen=True)
class Point:
    """When a signal comes: at a progress line, or at so many operations after it."""

    lines: int
    """Progress lines that have been printed, this one included."""
    operations: int = 0


@dataclass
class _Signalled(Progress):
    """Listens to a run, and sends the signal when the point has come."""

    point: Point = Point(0)
    number: int = 0
    operations: int = 0
    """Since the line of the point."""
    sent_at: float = 0.0
    has_saved: bool = False
    """Whether the thread that handles signals has changed the folder since then."""
    pids: list[int] = field(default_factory=list)

    def at_line(self) -> None:
        if self.progress == self.point.lines and not self.point.operations:
            self._send()

    def may_change(self, operation: Operation) -> bool:
        self.has_saved = self.has_saved or (operation.is_main and bool(self.sent_at))
        if self.progress == self.point.lines and self.point.operations:
            self.operations += 1
            if self.operations == self.point.operations:
                self._send()
        return super().may_change(operation)

    def _send(self) -> None:
        self.sent_at = time.monotonic()
        for pid in self.pids:
            os.kill(pid, self.number)


def points(line: Timeline) -> Iterator[Point]:
    """A line between two saves, and the first, the middle and the last operation of a save that is not the first.

    Without lines: the first, the middle and the last operation of all.
    """
    if not line.marks:
        count = line.operations_after(0)
        yield from (Point(0, at) for at in sorted({1, (count + 1) // 2, count}))
        return
    counts = [line.operations_after(lines) for lines in range(1, len(line.marks))]
    quiet = [lines for lines, count in enumerate(counts, start=1) if not count]
    busy = [lines for lines, count in enumerate(counts, start=1) if count]
    if quiet or busy:
        yield Point((quiet or busy)[len(quiet or busy) // 2])
    if busy:
        lines = busy[len(busy) // 2]
        count = counts[lines - 1]
        yield from (Point(lines, at) for at in sorted({1, (count + 1) // 2, count}))


def under(exploration: Exploration, prepared: Prepared, name: str, grace_s: float) -> Explored:
    """End the script by this signal at each point; the kills have to have been explored before."""
    ends, is_cut_short = RealEnds(exploration, name), False
    for point in points(prepared.line):
        is_cut_short = time.monotonic() > exploration.deadline
        if is_cut_short:
            break
        disk, task, note = _ended(exploration, prepared, SIGNALS[name], point, grace_s)
        ends.notes[note] = None
        ends.restart(_state(prepared.line, point), disk, task)
    return ends.explored(is_cut_short)


def _state(line: Timeline, point: Point) -> State:
    return State(line.place_of(line.begin(point.lines), point.operations))


def _ended(
    exploration: Exploration, prepared: Prepared, number: int, point: Point, grace_s: float
) -> tuple[Disk, Task, str]:
    """What the script leaves that is ended there, what a restart has to do, and what is remarkable about its end."""
    stage, line = prepared.stage, prepared.line
    clear(stage.folder)
    journal = Journal(stage.folder)
    heard = _Signalled(journal, form=prepared.form, point=point, number=number)

    def supervise(rank: int, listener: int, pid: int) -> ScriptRecorder:
        heard.pids.append(pid)
        return ScriptRecorder(listener, pid, journal, Control(), rank, heard)

    def is_late(text: str) -> bool:
        return bool(heard.sent_at) and time.monotonic() - heard.sent_at > grace_s

    ended = stage.start(False, "storing", supervise).follow(is_late, max(grace_s, prepared.silence_s))
    before = line.begin(point.lines) + 1
    least = exploration.required.acknowledged(before)  # what was not may have come later in this run
    is_between = not point.operations and not line.operations_after(point.lines)
    has_ended_early = ended.status is not None and heard.progress < len(prepared.whole.lines)
    if is_between and has_ended_early and heard.has_saved:
        least = max(least, heard.progress - prepared.form.is_bar)  # a bar is drawn before its step is done
    goal = len(prepared.whole.lines) + 1 if exploration.has_results else line.goal(before)
    return Disk.read(stage.folder), Task(heard.progress, least, goal), _note(ended, heard, prepared, grace_s)


def _note(ended: Ended, heard: _Signalled, prepared: Prepared, grace_s: float) -> str:
    name = signal.Signals(heard.number).name
    if not heard.sent_at:
        return f"At some points no {name} came, because the script did not get there again."
    if ended.status is None:
        return f"The script did not end within {grace_s:g} s after {name}, and was killed."
    if heard.progress == len(prepared.whole.lines) and heard.point.lines < heard.progress - 1:
        return f"The script went on to its end after {name}."
    return ""
