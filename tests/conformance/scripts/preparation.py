"""What is found out about a script before it is judged: its progress lines, its saves, its own flakiness, its speed.

The command runs three times undisturbed, each time over an empty folder: as it is; as it is, under the recorder; and as
a fork of a process that has imported what it imports.  What differs between the first two is the script's own
flakiness, and is not compared in restarts.
"""

import errno
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from forge_conformance.judging.judge import CannotJudge
from forge_conformance.judging.text import counted, shortened
from forge_conformance.scripts import progress
from forge_conformance.scripts.command import as_python
from forge_conformance.scripts.judge import Form, Line, Undisturbed, drawn, result_of
from forge_conformance.scripts.recording import Recorded, Timeline, record, timeline
from forge_conformance.scripts.restarts import clear
from forge_conformance.scripts.starts import Ended, Stage
from forge_conformance.watch.trace import Disk

_LEAST_SILENCE_S = 20.0
_TIMES_SILENCE = 5
_NOTHING = Form("", (), ())
"""The form where no line is a progress line."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Wishes:
    """What the user says of the script."""

    progress: str = ""
    saved: str = ""
    result_pattern: str = ""
    result_command: tuple[str, ...] = ()
    tolerance: float = 0.0
    timeout_s: float = 0.0
    """How long a script may print nothing; 0: several times as long as it did undisturbed."""
    start_timeout_s: float = 600.0
    """How long an undisturbed run may print nothing."""
    is_warm: bool = True


@dataclass
class Prepared:
    """All of it."""

    stage: Stage
    form: Form
    whole: Undisturbed
    recorded: Recorded
    line: Timeline
    silence_s: float
    result_pattern: str = ""
    result_command: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    """What the report has to say about the script itself."""
    seconds: float = 0
    """How long an undisturbed run takes."""
    restart_s: float = 0
    """How long one takes that is started as restarts are."""

    @property
    def result_asked(self) -> tuple[str, list[str]]:
        """The pattern and the command that say what has to be equal at the end."""
        return self.result_pattern, [word.replace("{dir}", str(self.stage.folder)) for word in self.result_command]

    def result(self) -> str:
        """What the folder holds now that has to be equal at the end."""
        return result_of(str(self.stage.folder), *self.result_asked)


def prepare(stage: Stage, wishes: Wishes, say: Say) -> Prepared:
    """Run it undisturbed; `CannotJudge` if nothing can be judged."""
    first, ended = _undisturbed(stage, wishes)
    form = _form(first, wishes)
    lines = progress.read(form, first)
    recognised = _recognised(form, lines, first, wishes)
    if lines:
        say(recognised)
    result = _result(stage, wishes)
    left = _left(stage)
    recorded = _recorded(stage, form, wishes)
    left &= _left(stage)
    second = progress.read(form, recorded.output)
    prepared = Prepared(
        stage, form, Undisturbed(lines, result), recorded, timeline(recorded, form, wishes.saved), 0.0,
        wishes.result_pattern, wishes.result_command, seconds=ended.seconds, restart_s=ended.seconds,
    )  # fmt: skip
    prepared.notes += [] if lines else [recognised]
    if not lines and any(drawn(text) for text in first):
        prepared.notes.append(
            "BAR: the progress bar leaves out steps, so it does not say which step a restart begins with. Let it be "
            "drawn at each step: tqdm does so without a mininterval or miniters of its own, from version 4.66 on."
        )
    _compare(prepared, lines, second)
    if result and _result(stage, wishes) != result:
        prepared.whole = replace(prepared.whole, result="")
        prepared.notes.append("FLAKY: the results of two undisturbed runs differ, so results are not compared.")
    longest_s = max(ended.longest_silence_s, recorded.ended.longest_silence_s)
    prepared.silence_s = wishes.timeout_s or max(_LEAST_SILENCE_S, _TIMES_SILENCE * longest_s)
    _warm(prepared, wishes, left)
    for note in prepared.notes:
        say(note)
    say(_saves(prepared))
    return prepared


def _undisturbed(stage: Stage, wishes: Wishes) -> tuple[list[str], Ended]:
    output: list[str] = []
    clear(stage.folder)
    ended = stage.start(is_restart=False).follow(_into(output), wishes.start_timeout_s)
    if ended.is_hung:
        raise CannotJudge(
            f"The undisturbed run printed nothing for {wishes.start_timeout_s:g} s and did not end. A script that is "
            "judged has to come to its end: let it train fewer steps, or give --start-timeout more seconds."
        )
    if ended.status:
        last = "\n".join(f"  {line}" for line in output[-12:]) or "  (nothing)"
        is_full = any(os.strerror(errno.ENOSPC) in line for line in output[-12:])
        room = f" Make room in {stage.folder}, or let it train a smaller model." if is_full else ""
        raise CannotJudge(
            f"The script fails when nothing disturbs it (exit status {ended.status}), so no restart can be judged."
            f"{room} Its last lines were:\n{last}"
        )
    return output, ended


def _into(output: list[str]) -> Callable[[str], bool]:
    """Keep every line, to the end."""

    def hears(line: str) -> bool:
        output.append(line)
        return False

    return hears


def _form(output: Sequence[str], wishes: Wishes) -> Form:
    if not wishes.progress:
        found = progress.guess(output)
        return replace(found, tolerance=wishes.tolerance) if found else _NOTHING
    try:
        return progress.from_pattern(wishes.progress, wishes.tolerance)
    except re.error as error:
        raise CannotJudge(f"--progress {wishes.progress!r}: {error}.") from None


def _recognised(form: Form, lines: Sequence[Line], output: Sequence[str], wishes: Wishes) -> str:
    if lines:
        return f"progress line recognised: {shortened(lines[-1].text, 90)} ({counted(len(lines), 'line')} in a run)"
    if wishes.progress:
        shown = f" It printed, for example: {shortened(output[-1], 90)}" if output else " It printed nothing."
        raise CannotJudge(f"--progress {wishes.progress!r} matches no line of the undisturbed run.{shown}")
    return (
        "UNREACHED: no progress line is recognised, so only restarts that fail, hang or end with other results are "
        "found. Let the script print its step and loss, or name its lines with --progress."
    )


def _result(stage: Stage, wishes: Wishes) -> str:
    command = [word.replace("{dir}", str(stage.folder)) for word in wishes.result_command]
    return result_of(str(stage.folder), wishes.result_pattern, command)


def _recorded(stage: Stage, form: Form, wishes: Wishes) -> Recorded:
    clear(stage.folder)
    recorded = record(stage, form, wishes.start_timeout_s)
    if recorded.ended.status or recorded.ended.is_hung:
        last = "\n".join(f"  {line}" for line in recorded.output[-12:]) or "  (nothing)"
        raise CannotJudge(
            f"The script ran to its end, and failed in a second run, which was recorded (exit status "
            f"{recorded.ended.status}). A script that can't run twice keeps something outside its checkpoint folder. "
            f"Its last lines were:\n{last}"
        )
    if not any(call is not None for call in recorded.trace.calls):
        beside = _beside(recorded)
        wrote = f" It opened {', '.join(beside[:3])} for writing instead." if beside else ""
        raise CannotJudge(
            "The script changed nothing in its checkpoint folder, so no death can be judged. Write {dir} where it "
            f"takes the folder, or name the folder with --dir.{wrote}"
        )
    return recorded


def _beside(recorded: Recorded) -> list[str]:
    """Files that it wrote outside of its checkpoint folder, but for temporary ones and compiled modules."""
    spared = ("/dev/", f"{os.path.realpath(tempfile.gettempdir())}/")
    return [path for path in recorded.trace.outside if not path.startswith(spared) and "__pycache__" not in path]


def _compare(prepared: Prepared, first: Sequence[Line], second: Sequence[Line]) -> None:
    """What two undisturbed runs differ in is not compared afterwards."""
    outside = _beside(prepared.recorded)
    if outside:
        prepared.notes.append(
            f"OUTSIDE: the script also writes {', '.join(outside[:3])}. These files are not restored before a restart."
        )
    if [line.key for line in first] != [line.key for line in second]:
        here, there = _first_difference(first, second)
        raise CannotJudge(
            "Two undisturbed runs did not go through the same steps, so restarts can't be compared with them: "
            f"{here} and {there}. A script that goes on where its last run ended keeps something outside {{dir}}; "
            "where a progress bar leaves out steps, name other lines with --progress."
        )
    form, differing = progress.without(prepared.form, first, second)
    if differing:
        example = next(
            (one, other) for one, other in zip(first, second, strict=True) if not prepared.form.is_equal(one, other)
        )
        kept = "The other numbers are" if form.values else "Only the steps are"
        prepared.notes.append(
            f"FLAKY: two undisturbed runs differ, for example: {shortened(example[0].text, 60)} / "
            f"{shortened(example[1].text, 60)}. {kept} compared."
        )
        lines = progress.read(form, (line.text for line in first))
        prepared.form, prepared.whole = form, replace(prepared.whole, lines=lines)


def _first_difference(first: Sequence[Line], second: Sequence[Line]) -> tuple[str, str]:
    for one, other in zip(first, second, strict=False):
        if one.key != other.key:
            return one.text, other.text
    return f"{len(first)} progress lines", f"{len(second)} progress lines"


def _warm(prepared: Prepared, wishes: Wishes, left: frozenset[tuple[str, str, bool]]) -> None:
    """Let later starts be forks, if they do what the command itself does, and leave what it leaves each time."""
    stage = prepared.stage
    if any(
        re.fullmatch(r"(.*/)?(torchrun|accelerate)|torch\.distributed\.(run|launch)", word)
        for word in stage.command.again[:3]
    ):
        prepared.notes.append(
            "A launcher starts new processes. In its place, start the script itself, with --ranks N for several ranks: "
            "restarts are forks then, and take a tenth of the time."
        )
    script = as_python(stage.command.at(stage.folder, is_restart=True))
    if not wishes.is_warm or script is None:
        why = "it is not a Python script" if script is None else "--cold"
        prepared.notes.append(f"Each start is a new process ({why}).")
        return
    try:
        stage.warm_up(script)
        output: list[str] = []
        clear(stage.folder)
        ended = stage.start(is_restart=False).follow(_into(output), wishes.start_timeout_s)
        lines = progress.read(prepared.form, output)
        assert stage.warm is not None, "it was had"
        if ended.status != 0 or not _is_same(prepared, lines) or not left <= _left(stage):
            stage.warm.close()
            raise CannotJudge("a fork did not do what the script itself does")
        stage.warm.learn()
        prepared.restart_s = ended.seconds
    except CannotJudge as reason:
        stage.warm = None
        prepared.notes.append(f"Each start is a new process, because {reason}.")


def _left(stage: Stage) -> frozenset[tuple[str, str, bool]]:
    """What a run has left in the folder: paths, kinds, and whether there is content; sizes may change by chance."""
    return frozenset((path, node.kind, bool(node.content)) for path, node in Disk.read(stage.folder).nodes.items())


def _is_same(prepared: Prepared, lines: Sequence[Line]) -> bool:
    known = prepared.whole.lines
    return len(known) == len(lines) and all(
        one.key == other.key and prepared.form.is_equal(one, other) for one, other in zip(known, lines, strict=True)
    )


def _saves(prepared: Prepared) -> str:
    kind = "warm" if prepared.stage.warm else "cold"
    return (
        f"recorded: {counted(prepared.recorded.operations, 'operation')} on the checkpoint folder in "
        f"{counted(prepared.line.saves, 'save')}; a run takes {prepared.seconds:.1f} s; restarts are {kind}, take up "
        f"to {prepared.restart_s:.1f} s each, and one counts as hung after {prepared.silence_s:.0f} s without a line"
    )
