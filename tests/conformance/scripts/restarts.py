"""Restarts a script over one disk: what came of it, and what of the folder that depended on."""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from forge_conformance.judging.judge import CannotJudge
from forge_conformance.scripts.judge import Form, Start, Undisturbed
from forge_conformance.scripts.starts import Stage
from forge_conformance.watch.facts import Fact, Facts
from forge_conformance.watch.recorder import Recorder
from forge_conformance.watch.trace import Disk, Journal

_DAY_NS = 86_400_000_000_000


@dataclass(frozen=True)
class Outcome:
    """What came of a disk: one start, or two if the first failed."""

    starts: tuple[Start, ...]

    @property
    def last(self) -> Start:
        """The start that counts."""
        return self.starts[-1]

    def is_enough(self, goal: int) -> bool:
        """Whether more would be learnt by going further."""
        last = self.last
        return last.status is not None or last.is_hung or bool(last.wrong) or last.at >= goal

    @property
    def landing(self) -> int:
        """How many progress lines it did not repeat."""
        return len(self.last.whole.lines) if self.last.landing is None else self.last.landing


class Restarter:
    """Restarts over the disks of one recording."""

    def __init__(
        self, stage: Stage, form: Form, whole: Undisturbed, silence_s: float, result: Callable[[], str] = lambda: ""
    ) -> None:
        """`result` says what the folder holds at the end of a run that has to be equal."""
        self._stage = stage
        self._form = form
        self._whole = whole
        self._silence_s = silence_s
        self._result = result
        self._base_ns = time.time_ns() - _DAY_NS
        self._hangs = 0

    def attempt(self, disk: Disk, goal: int) -> tuple[Outcome, tuple[Fact, ...]]:
        """Build the disk and restart, twice if the first start fails."""
        facts = Facts(self._stage.folder, self._rebuild(disk))
        starts = [self._start(goal, facts)]
        if starts[0].has_failed and not starts[0].wrong:
            starts.append(self._start(goal, facts))
        return Outcome(tuple(starts)), tuple(facts.seen)

    def again(self, goal: int) -> Start:
        """Restart over the folder as it is."""
        return self._start(goal, None)

    def _start(self, goal: int, facts: Facts | None) -> Start:
        journal = Journal(self._stage.folder)
        recorders: list[Recorder] = []

        def supervise(rank: int, listener: int, pid: int) -> Recorder:
            recorders.append(Recorder(listener, pid, journal, facts=facts, rank=rank))
            return recorders[-1]

        start = Start(self._form, self._whole, goal)
        running = self._stage.start(_holds_files(self._stage.folder), None if facts is None else "looks", supervise)
        ended = running.follow(start.hears, self._patience_s)
        self._hangs += ended.is_hung
        for recorder in recorders:
            if recorder.failure is not None:
                raise recorder.failure
        start.ends(ended.status)
        start.is_hung = ended.is_hung
        if start.status == 0:
            start.result = self._result()
        return start

    @property
    def _patience_s(self) -> float:
        """After a few hangs the next ones are not worth the full wait."""
        return self._silence_s if self._hangs < 3 else max(2.0, self._silence_s / 4)

    def _rebuild(self, disk: Disk) -> Mapping[tuple[int, int], str]:
        clear(self._stage.folder)
        try:
            return disk.build(self._stage.folder, self._base_ns)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            size = sum(len(node.content) for node in disk.nodes.values())
            raise CannotJudge(
                f"A disk of {size:,} bytes does not fit into {self._stage.folder}. Make room there, or let the script "
                "train a smaller model."
            ) from None


def _holds_files(folder: Path) -> bool:
    """Whether there is anything to resume from; whoever finds none starts the job as for the first time."""
    return any(path.is_symlink() or not path.is_dir() for path in folder.rglob("*"))


def clear(folder: Path) -> None:
    """Empty the checkpoint folder, or make it."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry.path)
