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
from typing import Any

from forge_conformance.harness.server import CannotJudge, Server
from forge_conformance.harness.worker import Died, Hung, ManagerFault

from .facts import WHOLE, Fact, Facts
from .processes import Digest, Processes
from .recorders import RECORDERS, Kind
from .recording import Recorded
from .trace import Disk, Journal

OTHER_SEED = 999
"""Of who resumes: nothing that it has by itself is what was saved."""


@dataclass(frozen=True)
class Landing:
    """Where a resume came back."""

    word: str
    """`fresh`, `landed`, `mixed` (at a step, with no state that was saved there), `apart` (each rank at a step of its
    own), `refused`, `hung` or `died`."""
    step: int = 0
    saves: frozenset[int] = frozenset()
    """The saves whose state this is."""
    said: str = ""
    """The error, or what differs from the save of that step."""

    @property
    def is_alive(self) -> bool:
        """Whether the run can go on from here."""
        return self.word in ("fresh", "landed")


@dataclass(frozen=True)
class GoingOn:
    """What came of a run that went on: "" when it saved, and resumed at its last save; otherwise what went wrong."""

    trouble: str = ""


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
        self._settings = {"folder": str(folder), **recorded.settings}
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
        try:
            processes.open(dict(self._settings), OTHER_SEED)
            loaded = processes.load()
            state = self._of_kinds(processes.digest())
        except Hung as fault:
            self._server.hangs += 1
            return Landing("hung", said=str(fault))
        except Died as fault:
            return Landing("died", said=str(fault))
        except ManagerFault as fault:
            return Landing("refused", said=str(fault))
        if len({one.step for one in loaded}) > 1:
            where = ", ".join(f"rank {rank} at step {one.step}" for rank, one in enumerate(loaded))
            return Landing("apart", said=where)
        if all(one.is_fresh for one in loaded):
            changed = differing(self._of_kinds(self._fresh), state)
            return Landing("mixed", said=f"fresh, with {changed}") if changed else Landing("fresh")
        return self._match(loaded[0].step, state)

    def _match(self, step: int, state: Digest) -> Landing:
        there = {number: saved for number, saved in enumerate(self._recorded.saves) if saved.step == step}
        same = frozenset(number for number, saved in there.items() if saved.state == state)
        if same:
            return Landing("landed", step, same)
        if not there:
            return Landing("mixed", step, said=f"step {step} was never saved")
        changed = " / ".join(differing(saved.state, state) for saved in there.values())
        return Landing("mixed", step, said=f"not the state that was saved: {changed}")

    def _of_kinds(self, digest: Digest) -> Digest:
        return {name: value for name, value in digest.items() if name.partition("/")[0] in self._kinds}

    def _go_on(self, processes: Processes, landing: Landing, facts: Facts) -> GoingOn:
        step, every = landing.step, self._recorded.every
        first = (step // every + 1) * every
        try:
            for target in (first, first + every):
                processes.train(target - step)
                step = target
                processes.save()
            processes.wait()
            wanted = self._of_kinds(processes.digest())
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
            changed = differing(wanted, self._of_kinds(processes.digest()))
        except ManagerFault as fault:
            return GoingOn(f"after going on to step {step} the next resume failed: {fault}")
        finally:
            processes.kill()
        if {one.step for one in loaded} != {step}:
            came = ", ".join(dict.fromkeys(str(one.step) for one in loaded))
            return GoingOn(f"after going on to step {step} the next resume came back at step {came}")
        return GoingOn(f"after going on to step {step} the next resume has {changed}" if changed else "")


def differing(wanted: Mapping[str, Any], seen: Mapping[str, Any]) -> str:
    """Which items of a state are not as wanted; "" if all are."""
    names = sorted(name for name in wanted.keys() | seen.keys() if wanted.get(name) != seen.get(name))
    return f"{len(names)} items differing ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
