"""Lets the manager resume from a disk, in a fresh process, and says what came of it and what that depended on.

A resume that comes back goes on, where it is asked to: the next two saves of
the run are made, the second process is killed as well, and a third one resumes.
What a manager can't do after a death shows only then.
"""

import errno
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from forge_conformance.disks.recording import Recorded
from forge_conformance.judging.judge import CannotJudge
from forge_conformance.runs.group import Ranks
from forge_conformance.runs.landing import NOTHING, GoingOn, Ignored, Landing
from forge_conformance.runs.ledger import Ledger
from forge_conformance.runs.server import Server
from forge_conformance.runs.state import Digest
from forge_conformance.runs.team import Team
from forge_conformance.runs.verdict import Verdict, without_death
from forge_conformance.watch.backends import RECORDERS, Backend, RunningRecorder
from forge_conformance.watch.facts import WHOLE, Fact, Facts
from forge_conformance.watch.trace import Disk, Journal


@dataclass(frozen=True)
class Tried:
    """What came of a disk, and what each part of it depended on."""

    landing: Landing
    of_landing: tuple[Fact, ...]
    going_on: GoingOn | None
    of_going_on: tuple[Fact, ...]
    seconds: float


class Resumer:
    """Resumes the manager of one recording, over the folder that it was recorded in."""

    def __init__(
        self,
        server: Server,
        folder: Path,
        recorded: Recorded,
        kinds: tuple[str, ...],
        fresh: Digest,
        watch: Backend = RECORDERS["seccomp"],
        ignored: Ignored = NOTHING,
    ) -> None:
        self._folder = folder
        self._recorded = recorded
        self._watch = watch
        self._team = Team(
            server, folder / recorded.below, kinds, fresh, recorded.shape, every=recorded.every, rank_timeout_s=None,
            ignored=ignored,
        )  # fmt: skip
        self._base_ns = time.time_ns() - 86_400_000_000_000
        self._recorders: list[RunningRecorder] = []
        self.resumes = 0
        """Processes started so far."""

    @property
    def ignored(self) -> Ignored:
        """What of the state is not compared."""
        return self._team.ignored

    def look_without_death(self, has_end: bool = True) -> list[Verdict]:
        """Resume from the folder as it was before the first save and after the last one; what is wrong even then.

        Without `has_end` the recording stopped in the middle, and the second is left out.

        The items of the state that do not come back there are ignored from here on.
        """
        trace, verdicts = self._recorded.trace, list[Verdict]()
        for cut in (trace.begins, len(trace.effects))[: 1 + has_end]:
            landing = self.attempt(trace.disk(cut), goes_on=False).landing
            verdicts += without_death(landing)
            before, kind = self.ignored, "saved" if landing.step else "fresh"
            self._team = replace(
                self._team, ignored=replace(before, **{kind: getattr(before, kind) | landing.differing})
            )
        return verdicts

    def rebuild(self, disk: Disk) -> Mapping[tuple[int, int], str]:
        """Make the folder hold the disk, and nothing else."""
        for entry in os.scandir(self._folder):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
        try:
            return disk.build(self._folder, self._base_ns)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise CannotJudge(
                f"A disk of {sum(len(node.content) for node in disk.nodes.values()):,} bytes does not fit into "
                f"{self._folder}. Make room there, or, if that is in memory, give it less to do at once (-n)."
            ) from None

    def attempt(self, disk: Disk, goes_on: bool) -> Tried:
        """Build the disk and resume from it."""
        begun = time.perf_counter()
        facts = Facts(self._folder, self.rebuild(disk))
        team = replace(self._team, starts=lambda: self._started(facts))
        ledger = Ledger(list(self._recorded.saves), ranks=team.shape.ranks)
        with team.unopened(self._recorded.settings, ledger) as life:
            landing = life.land()
            team.server.hangs += landing.word == "hung"
            of_landing = self._learnt(facts)
            going_on = life.go_on(landing) if goes_on and landing.is_alive else None
        self._raise_failures()
        return Tried(landing, of_landing, going_on, self._learnt(facts), time.perf_counter() - begun)

    def _started(self, facts: Facts) -> Ranks:
        watch, team = self._watch, self._team
        self.resumes += team.shape.ranks
        if watch.looks is None:
            return Ranks(team.server, team.shape)
        journal = Journal(self._folder)
        return Ranks.supervised(
            team.server,
            team.shape,
            self._folder,
            watch.looks,
            lambda _, listener, pid: self._kept(watch.start_looking(listener, pid, journal, facts)),
        )

    def _kept(self, recorder: RunningRecorder) -> RunningRecorder:
        self._recorders.append(recorder)
        return recorder

    def _raise_failures(self) -> None:
        """A recorder that fails makes the manager's calls fail: then nothing that came of it is the manager's doing."""
        recorders, self._recorders = self._recorders, []
        for recorder in recorders:
            if recorder.failure is not None:
                raise recorder.failure

    def _learnt(self, facts: Facts) -> tuple[Fact, ...]:
        """What the outcome depended on; on everything, where nobody could watch."""
        return tuple(facts.seen) if self._watch.looks else (WHOLE,)
