"""What a restart of a training script is worth, told from the lines that it prints.

Invariant: this module needs nothing but the standard library and imports nothing of the suite.  A replay script
carries its text, so that both come to a verdict by the same rules.

A *progress line* names a step, and the values of that step.  The undisturbed run has a list of them.  A restart is
placed in this list by the first progress line that it prints: every line before that one is work that it did not
repeat.  All numbers here are positions in this list, counted from 0.

A progress bar draws a step several times, with the values of the step before first: what it draws last counts.  Its
steps are counted from the end, because a restart may draw a bar of the steps that are left.
"""

import fnmatch
import hashlib
import os
import re
import subprocess
from dataclasses import dataclass, field

FINE = "fine"
WORDS = {
    FINE: "it went on as the undisturbed run did",
    "refused": "it failed to start, and failed again at the second start",
    "hung": "it printed nothing more and did not end",
    "scratch": "it started from scratch beside a checkpoint that a restart could use before",
    "lost": "it went on from an older checkpoint than a restart could use before",
    "skipped": "it left out steps that no run had done",
    "short": "it ended without an error before the training was complete",
    "diverged": "it printed other values than the undisturbed run, or ended with other results",
    "stuck": "it went on, and failed at a later save or before its end",
}
"""Every verdict, in words."""


@dataclass(frozen=True)
class Line:
    """One progress line: which step it is about, and what it says of it."""

    key: tuple[str, ...]
    values: tuple[str, ...]
    text: str


_BAR = re.compile(
    r"^(?P<words>.*?)(?:\d+%\|[^|]*\|)?\s*(?P<done>\d+)(?:/(?P<total>\d+))?[a-z]* "
    r"\[[\d:]+(?:<[\d:?]+)?(?:, +[^],]*/[a-z]+)?(?:, )?(?P<said>[^]]*)\]"
)


def drawn(text: str) -> tuple[str, str] | None:
    """What a progress bar says, by its step, and as it is shown; without times; None if it is no bar."""
    match = _BAR.match(text.strip())
    if match is None:
        return None
    done, total = match["done"], match["total"]
    words = [match["words"].strip().rstrip(":"), match["said"].strip()]
    step = int(done) - int(total or 0)
    return " ".join(filter(None, [f"step {step}", *words])), " ".join(
        filter(None, [words[0], f"{done}/{total}" if total else done, words[1]])
    )


@dataclass(frozen=True)
class Form:
    """How a progress line looks: a pattern, the groups that name the step, and the groups that are compared."""

    pattern: str
    keys: tuple[str, ...]
    values: tuple[str, ...]
    """An empty name stands for the whole line."""
    tolerance: float = 0.0
    """The relative difference up to which two numbers are equal; 0 compares texts."""
    is_bar: bool = False
    """Whether a progress bar draws the lines."""

    def read(self, text: str) -> Line | None:
        """The progress line in a line of output; None if it is another line, or if no line is one."""
        if not self.pattern:
            return None
        shown = text.strip()
        if self.is_bar:
            said = drawn(text)
            if said is None:
                return None
            text, shown = said
        match = re.search(self.pattern, text)
        if match is None or any(match[name] is None for name in self.keys):
            return None
        values = tuple((match[name] or "") if name else shown for name in self.values)
        return Line(tuple(match[name] for name in self.keys), values, shown)

    def is_equal(self, one: Line, other: Line) -> bool:
        """Whether two lines of the same step say the same."""
        return all(self._is_near(a, b) for a, b in zip(one.values, other.values, strict=True))

    def _is_near(self, one: str, other: str) -> bool:
        if one == other or not self.tolerance:
            return one == other
        try:
            first, second = float(one), float(other)
        except ValueError:
            return False
        return abs(first - second) <= self.tolerance * max(abs(first), abs(second))


@dataclass(frozen=True)
class Undisturbed:
    """The run that nothing disturbed: what every restart has to arrive at."""

    lines: tuple[Line, ...]
    result: str = ""
    """What has to be equal at the end, apart from the lines; "" if nothing was named."""


@dataclass(frozen=True)
class Task:
    """What a restart after one death has to do."""

    reached: int
    """Progress lines that were printed before the death."""
    least: int
    """Progress lines that must not be repeated: a restart after an earlier death did not repeat them either."""
    goal: int
    """Progress lines after which it has shown that it can go on; more than there are: it has to come to its end."""


@dataclass
class Start:
    """One start of the command, followed line by line until its verdict is certain."""

    form: Form
    whole: Undisturbed
    goal: int
    landing: int | None = None
    """The position of its first progress line."""
    at: int = 0
    """The position that it has come to."""
    wrong: str = ""
    """The word for what it printed wrongly; "" if it did not."""
    seen: str = ""
    expected: str = ""
    is_hung: bool = False
    status: int | None = None
    """Its exit status; None if it was stopped because its verdict was certain."""
    result: str = ""
    tail: list[str] = field(default_factory=list)
    """Its last lines."""
    latest: Line | None = None
    """What a progress bar has drawn last of a step: it counts when the next step is drawn."""

    def hears(self, text: str) -> bool:
        """Take a line of output; whether the verdict is certain now."""
        self.tail = [*self.tail[-11:], text]
        line = self.form.read(text)
        if line is None or self.wrong:
            return bool(self.wrong)
        if self.form.is_bar:
            latest, self.latest = self.latest, line
            if latest is None or latest.key == line.key:
                return False
            line = latest
        self._takes(line)
        return bool(self.wrong) or self.at >= self.goal

    def ends(self, status: int | None) -> None:
        """It has ended by itself; None if it was stopped."""
        self.status = status
        if status == 0 and self.latest is not None and not self.wrong:
            self._takes(self.latest)

    def _takes(self, line: Line) -> None:
        where = next((at for at, known in enumerate(self.whole.lines) if known.key == line.key), None)
        if where is None:
            self._is_wrong("diverged", line.text, "a step that the undisturbed run had")
        elif self.landing is None:
            self.landing = where
            self._compare(where, line)
        elif where == self.at - 1:
            pass  # printed again, for example by another rank
        elif where != self.at:
            word = "skipped" if where > self.at else "diverged"
            self._is_wrong(word, line.text, self._said_before(self.at))
        else:
            self._compare(where, line)

    def _compare(self, where: int, line: Line) -> None:
        known = self.whole.lines[where]
        if not self.form.is_equal(known, line):
            self._is_wrong("diverged", line.text, known.text)
        self.at = where + 1

    def _said_before(self, where: int) -> str:
        return self.whole.lines[where].text if where < len(self.whole.lines) else "no more progress lines"

    def _is_wrong(self, word: str, seen: str, expected: str) -> None:
        self.wrong, self.seen, self.expected = word, seen, expected

    @property
    def has_failed(self) -> bool:
        """Whether it ended with an error."""
        return self.status not in (None, 0)


@dataclass(frozen=True)
class Verdict:
    """What a restart is worth, what was seen and what should have been."""

    word: str
    seen: str = ""
    expected: str = ""

    @property
    def is_fine(self) -> bool:
        """Whether nothing is wrong."""
        return self.word == FINE


def judge(whole: Undisturbed, task: Task, start: Start) -> Verdict:
    """The verdict on the last start after a death."""
    if start.is_hung:
        return Verdict("hung", f"no output, and no end, {_after(start)}", _goes_on(whole, task))
    if start.has_failed and not start.wrong:
        word = "refused" if start.landing is None else "stuck"
        return Verdict(word, f"exit status {start.status} {_after(start)}: {_last(start)}", _goes_on(whole, task))
    if start.wrong and start.landing is None:
        return Verdict(start.wrong, start.seen, start.expected)
    if not whole.lines:
        return _of_result(whole, start)
    landing = len(whole.lines) if start.landing is None else start.landing
    if landing < task.least:
        lines = task.least - landing
        repeated = f"{lines} progress lines are" if lines > 1 else "1 progress line is"
        return Verdict(
            "lost" if landing else "scratch",
            f"first progress line: {whole.lines[landing].text}, so {repeated} repeated",
            f"to go on after: {whole.lines[task.least - 1].text}",
        )
    if landing > task.reached + 1:
        seen = f"first progress line: {whole.lines[landing].text}" if start.landing is not None else "it ended at once"
        word = "short" if start.landing is None else "skipped"
        return Verdict(word, seen, f"to leave out nothing after: {whole.lines[task.reached].text}")
    if start.wrong:
        return Verdict(start.wrong, start.seen, start.expected)
    if start.status == 0 and start.landing is not None and start.at < len(whole.lines):
        seen = f"it ended after: {whole.lines[start.at - 1].text}"
        return Verdict("short", seen, f"to go on to: {whole.lines[-1].text}")
    return _of_result(whole, start)


def _of_result(whole: Undisturbed, start: Start) -> Verdict:
    if whole.result and start.status == 0 and start.result != whole.result:
        seen, known = start.result[:300], whole.result[:300]
        return Verdict("diverged", f"another result: {seen}", f"to end with: {known}")
    return Verdict(FINE)


def _goes_on(whole: Undisturbed, task: Task) -> str:
    return f"to go on after: {whole.lines[task.least - 1].text}" if task.least else "to start, and to go on to the end"


def _after(start: Start) -> str:
    return f"after {start.whole.lines[start.at - 1].text!r}" if start.at else "before the first progress line"


def _last(start: Start) -> str:
    said = [line.strip() for line in start.tail if line.strip()]
    return said[-1][:300] if said else "it printed nothing"


def result_of(folder: str, pattern: str, command: list[str]) -> str:
    """What a finished run left that has to be equal: files below the folder by name, or the output of a command."""
    if command:
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        return f"{done.stdout.strip()} (exit status {done.returncode})"
    if not pattern:
        return ""
    found = []
    for where, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(where, name)
            shown = os.path.relpath(path, folder)
            if fnmatch.fnmatch(shown, pattern):
                if not os.path.isfile(path):  # a pipe would be waited for
                    found.append(f"{shown} is not a regular file")
                    continue
                with open(path, "rb") as file:
                    found.append(f"{shown} {hashlib.sha256(file.read()).hexdigest()[:16]}")
    return ", ".join(sorted(found)) or f"no file matches {pattern}"
