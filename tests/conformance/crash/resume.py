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
from dataclasses import dataclass
from pathlib import Path

from forge_conformance.harness.server import CannotJudge, Server
from forge_conformance.harness.worker import ManagerFault

from .facts import WHOLE, Fact, Facts
from .landing import OTHER_SEED, GoingOn, Landing, come_back, differing
from .processes import Digest, Processes, of_kinds
from .recorders import RECORDERS, Kind
from .recording import Recorded
from .trace import Disk, Journal


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
        watch: Kind = RECORDERS["seccomp"],
    ) -> None:
        self._server = server
        self._folder = folder
        self._recorded = recorded
        self._kinds = kinds
        self._fresh = fresh
        self._watch = watch
        self._settings = {"folder": str(folder / recorded.below), **recorded.settings}
        self._base_ns = time.time_ns() - 86_400_000_000_000
        self.resumes = 0
        """Processes started so far."""

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
        processes = self._spawn(facts)
        try:
            landing = self._land(processes)
            of_landing = self._learnt(facts)
            going_on = self._go_on(processes, landing, facts) if goes_on and landing.is_alive else None
        finally:
            processes.kill()
        return Tried(landing, of_landing, going_on, self._learnt(facts), time.perf_counter() - begun)

    def _spawn(self, facts: Facts) -> Processes:
        watch, shape = self._watch, self._recorded.shape
        self.resumes += shape.ranks
        if watch.looks is None:
            return Processes(self._server, shape)
        journal = Journal(self._folder)
        return Processes(
            self._server,
            shape,
            self._folder,
            watch.looks,
            lambda _, listener, pid: watch.start_looking(listener, pid, journal, facts),
        )

    def _learnt(self, facts: Facts) -> tuple[Fact, ...]:
        """What the outcome depended on; on everything, where nobody could watch."""
        return tuple(facts.seen) if self._watch.looks else (WHOLE,)

    def _land(self, processes: Processes) -> Landing:
        recorded = self._recorded
        landing = come_back(processes, self._settings, recorded.saves, self._fresh, self._kinds)
        self._server.hangs += landing.word == "hung"
        return landing

    def _go_on(self, processes: Processes, landing: Landing, facts: Facts) -> GoingOn:
        step, every = landing.step, self._recorded.every
        first = (step // every + 1) * every
        try:
            for target in (first, first + every):
                processes.train(target - step)
                step = target
                processes.save()
            processes.wait()
            wanted = of_kinds(processes.digest(), self._kinds)
        except ManagerFault as fault:
            return GoingOn(f"going on from step {landing.step}: {fault}")
        finally:
            processes.kill()
        return self._comes_back(step, wanted, facts)

    def _comes_back(self, step: int, wanted: Digest, facts: Facts) -> GoingOn:
        processes = self._spawn(facts)
        try:
            processes.open(dict(self._settings), OTHER_SEED + 1)
            loaded = processes.load()
            changed = differing(wanted, of_kinds(processes.digest(), self._kinds))
        except ManagerFault as fault:
            return GoingOn(f"after going on to step {step} the next resume failed: {fault}")
        finally:
            processes.kill()
        if {one.step for one in loaded} != {step}:
            came = ", ".join(dict.fromkeys(str(one.step) for one in loaded))
            return GoingOn(f"after going on to step {step} the next resume came back at step {came}")
        return GoingOn(f"after going on to step {step} the next resume has {changed}" if changed else "")
