"""One undisturbed run of a script, recorded: its file operations, and every line that it printed, in one order.

A line is taken at the very call that writes it, so that it stands exactly where it was printed among the file
operations, also with several processes and threads.
"""

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from forge_conformance.judging.judge import CannotJudge
from forge_conformance.scripts.judge import Form, Line
from forge_conformance.scripts.starts import Ended, Stage
from forge_conformance.watch.caller import Caller
from forge_conformance.watch.listener import Arguments
from forge_conformance.watch.recorder import Control, Operation, Recorder
from forge_conformance.watch.trace import Call, Journal, Trace
from forge_conformance.worker.system_calls import WRITES
from forge_spec.disk import Close, Mark

PRINTS = "prints"
"""The word of a mark for a line of output; its `step` is the line's number."""
_MOST_BYTES = 1 << 16


@dataclass
class Spoken:
    """What all processes of a run have printed so far, and whether a save is going on."""

    journal: Journal
    lines: list[str] = field(default_factory=list)
    saves: int = 0
    """Bursts of operations between two progress lines."""
    is_quiet: bool = True
    form: Form | None = None
    threads: list[int] = field(default_factory=list)
    """Which thread printed each line."""
    _rests: dict[tuple[str, int], str] = field(default_factory=lambda: defaultdict(str))

    def hears(self, pipe: str, thread: int, text: str) -> None:
        """A thread is about to write this to a stream."""
        *lines, rest = (self._rests[pipe, thread] + text.replace("\r", "\n")).split("\n")
        if text.startswith("\r"):  # a progress bar: the line is whole, and is overwritten by the next one
            lines, rest = [*lines, rest], ""
        self._rests[pipe, thread] = rest
        self._take(lines, thread)

    def ends(self) -> None:
        """Nothing more will be printed."""
        for (_, thread), rest in self._rests.items():
            self._take([rest], thread)
        self._rests.clear()

    def _take(self, lines: Sequence[str], thread: int) -> None:
        for line in filter(str.strip, lines):
            self.journal.mark(PRINTS, step=len(self.lines))
            self.lines.append(line)
            self.threads.append(thread)
            is_progress = self.form is None or not self.form.pattern or self.form.read(line) is not None
            self.is_quiet = self.is_quiet or is_progress

    def may_change(self, operation: Operation) -> bool:
        """Whether an operation that would change the folder may happen; after a progress line a save begins."""
        if self.is_quiet:
            self.journal.mark("begins", self.saves)
            self.saves += 1
            self.is_quiet = False
        return True


@dataclass
class Progress(Spoken):
    """The same, and how many different progress lines have been printed."""

    progress: int = 0
    _known: set[tuple[str, ...]] = field(default_factory=set)

    def hears(self, pipe: str, thread: int, text: str) -> None:
        said = len(self.lines)
        super().hears(pipe, thread, text)
        for line in self.lines[said:]:
            read = self.form.read(line) if self.form else None
            if read is not None and read.key not in self._known:
                self._known.add(read.key)
                self.progress += 1
                self.at_line()

    def at_line(self) -> None:
        """Called after each progress line that was not printed before."""


class ScriptRecorder(Recorder):
    """A recorder that hears what is printed as well."""

    def __init__(
        self,
        listener: int,
        pid: int,
        journal: Journal,
        control: Control,
        rank: int,
        spoken: Spoken,
    ) -> None:
        """Of several ranks the first one's output is heard."""
        self._spoken = spoken
        self._streams = frozenset[str]() if rank else _streams_of(pid)
        super().__init__(listener, pid, journal, control, rank=rank)

    def _note_outside(self, caller: Caller, name: str, arguments: Arguments, paths: tuple[str, ...]) -> None:
        if name in WRITES and paths and paths[0] in self._streams:
            self._spoken.hears(paths[0], caller.thread, _written(caller, name, arguments))
        super()._note_outside(caller, name, arguments, paths)

    def _make(self, identity: int, caller: Caller, name: str, arguments: Arguments, operation: Operation) -> None:
        if self._spoken.may_change(operation):  # otherwise its caller is dead, and waits for no answer
            super()._make(identity, caller, name, arguments, operation)


def _written(caller: Caller, name: str, arguments: Arguments) -> str:
    """What a call writes; of a vector, all pieces."""
    if name != "writev":
        return _text(caller, arguments[1], arguments[2])
    vectors = memoryview(bytes(memoryview(caller.memory(arguments[1], 16 * arguments[2])))).cast("Q")
    return "".join(_text(caller, vectors[2 * at], vectors[2 * at + 1]) for at in range(arguments[2]))


def _text(caller: Caller, address: int, size: int) -> str:
    return bytes(memoryview(caller.memory(address, min(size, _MOST_BYTES)))).decode(errors="replace")


@dataclass(frozen=True)
class Recorded:
    """A run that has ended."""

    trace: Trace
    output: tuple[str, ...]
    threads: tuple[int, ...]
    """Which thread printed each line."""
    ended: Ended
    operations: int


def record(stage: Stage, form: Form | None, silence_s: float) -> Recorded:
    """Run the command under the recorder, as it is."""
    journal = Journal(stage.folder)
    spoken, control = Spoken(journal, form=form), Control()
    recorders: list[ScriptRecorder] = []

    def supervise(rank: int, listener: int, pid: int) -> ScriptRecorder:
        recorders.append(ScriptRecorder(listener, pid, journal, control, rank, spoken))
        return recorders[-1]

    ended = stage.start(False, "storing", supervise).follow(lambda line: False, silence_s)
    for recorder in recorders:
        if recorder.failure is not None:
            raise recorder.failure
    spoken.ends()
    trace = journal.end()
    if trace.missed:
        raise CannotJudge(
            f"{', '.join(trace.missed[:3])} changed without a call that was recorded, so the disks that could be built "
            "would not be the script's."
        )
    return Recorded(trace, tuple(spoken.lines), tuple(spoken.threads), ended, control.done)


def _streams_of(pid: int) -> frozenset[str]:
    """The names of the pipes that a process prints to."""
    found: set[str] = set()
    for number in (1, 2):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/{pid}/fd/{number}"))
    return frozenset(found)


@dataclass(frozen=True)
class Timeline:
    """Where in the recording each progress line stands, where the folder changes, and what is acknowledged."""

    trace: Trace
    marks: tuple[tuple[int, Line], ...]
    """Each progress line with its place in the trace."""
    acknowledging: tuple[tuple[int, int], ...]
    """Places of the lines that acknowledge a save, with their threads: all progress lines, unless others are named."""
    is_named: bool = False
    """Whether lines were named that acknowledge a save."""

    def reached(self, cut: int) -> int:
        """How many progress lines were printed before this cut."""
        return sum(at < cut for at, _ in self.marks)

    def goal(self, cut: int) -> int:
        """Progress lines after which a restart has made the next save as well, and has gone on."""
        ends = [at for at, _ in self.marks]
        begins = [0, *ends]
        later = (at for at in range(self.reached(cut) + 1, len(ends)) if self._calls(begins[at], ends[at]))
        return next(later, len(ends)) + 1

    @property
    def saves(self) -> int:
        """In how many intervals between progress lines the folder changed."""
        return self.saves_before(len(self.trace.effects))

    def saves_before(self, cut: int) -> int:
        """The same before a cut."""
        return sum(isinstance(effect, Mark) and effect.word == "begins" for effect in self.trace.effects[:cut])

    def operations_after(self, lines: int) -> int:
        """Operations between this progress line, counted from 1, and the next one."""
        end = self.marks[lines][0] if lines < len(self.marks) else len(self.trace.effects)
        return len(self._operations(self.begin(lines), end))

    def operations_of(self, lines: int) -> frozenset[str]:
        """What is done between this progress line and the next one, without numbers: a step, or a process."""
        end = self.marks[lines][0] if lines < len(self.marks) else len(self.trace.effects)
        calls = self._calls(self.begin(lines), end)
        return frozenset(re.sub(r"\d+", "N", str(call)) for call in calls)

    def begin(self, lines: int) -> int:
        """The place of this progress line, counted from 1; 0 is the beginning."""
        return self.marks[lines - 1][0] if lines else 0

    def saves_of(self, rank: int) -> list[list[int]]:
        """The places of a rank's operations in each save, in order."""
        marks = ((at, effect) for at, effect in enumerate(self.trace.effects) if isinstance(effect, Mark))
        begins = [at for at, mark in marks if mark.word == "begins"]
        own = [at for at in self._operations(0, len(self.trace.effects)) if self._rank_of(at) == rank]
        ends = [*begins[1:], len(self.trace.effects)]
        return [[at for at in own if begin < at < end] for begin, end in zip(begins, ends, strict=True)]

    def _rank_of(self, at: int) -> int | None:
        call = self.trace.calls[at]
        return None if call is None else call.rank

    def place_of(self, mark: int, operations: int) -> int:
        """The cut before the n-th operation after a mark; for 0, the cut after the mark."""
        found = self._operations(mark, len(self.trace.effects))
        return found[operations - 1] if 0 < operations <= len(found) else mark + 1

    def _operations(self, begin: int, end: int) -> list[int]:
        """Places of calls that were counted as operations; one call may have several effects."""
        places: list[int] = []
        for at in range(begin, end):
            call = self.trace.calls[at]
            is_new = call is not None and not isinstance(self.trace.effects[at], Close)
            if is_new and (not places or call is not self.trace.calls[places[-1]]):
                places.append(at)
        return places

    def acknowledged(self, visible: int, next_visible: int) -> int:
        """The place at which a save counts as acknowledged that a restart finds from the cut `visible` on.

        That is the next line that acknowledges, printed by the thread that saved.  If others saved, the line says
        nothing of them; then it is when the next save is visible.
        """
        for at, thread in self.acknowledging:
            if at >= visible:
                before = max((place for place, _ in self.acknowledging if place < visible), default=0)
                is_own = all(call.thread == thread for call in self._calls(before, at))
                return at + 1 if self.is_named or is_own else next_visible
        return next_visible

    def _calls(self, begin: int, end: int) -> list[Call]:
        return [call for call in self.trace.calls[begin:end] if call is not None]


def timeline(recorded: Recorded, form: Form, saved: str = "") -> Timeline:
    """Progress lines that are printed again count once; `saved` is the pattern of lines that acknowledge a save."""
    marks: dict[tuple[str, ...], tuple[int, Line]] = {}
    named: list[tuple[int, int]] = []
    for at, effect in enumerate(recorded.trace.effects):
        if isinstance(effect, Mark) and effect.word == PRINTS:
            line = form.read(recorded.output[effect.step])
            if line is not None and (form.is_bar or line.key not in marks):
                marks[line.key] = (at, line)
            is_named = re.search(saved, recorded.output[effect.step]) if saved else line is not None
            named += [(at, recorded.threads[effect.step])] if is_named else []
    places = sorted(marks.values(), key=lambda mark: mark[0])
    return Timeline(recorded.trace, tuple(places), tuple(named), bool(saved))
