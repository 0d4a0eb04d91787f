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
from forge_conformance.harness.worker import Died, Hung, ManagerFault, Worker

from .facts import WHOLE, Fact, Facts
from .recorders import RECORDERS, Kind
from .recording import Digest, Recorded
from .trace import Disk, Journal

_OTHER_SEED = 999


@dataclass(frozen=True)
class Landing:
    """Where a resume came back."""

    word: str
    """`fresh`, `landed`, `mixed` (at a step, with no state that was saved there), `refused`, `hung` or `died`."""
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
        worker = self._spawn(facts)
        try:
            landing = self._land(worker)
            of_landing = self._learnt(facts)
            going_on = self._go_on(worker, landing, facts) if goes_on and landing.is_alive else None
        finally:
            worker.kill()
        return Tried(landing, of_landing, going_on, self._learnt(facts), time.perf_counter() - begun)

    def _spawn(self, facts: Facts) -> Worker:
        self.resumes += 1
        watch = self._watch
        if watch.looks is None:
            return self._server.spawn()
        journal = Journal(self._folder)
        return self._server.spawn(
            self._folder,
            watch=watch.looks,
            supervise=lambda listener, _, pid: watch.start_looking(listener, pid, journal, facts),
        )

    def _learnt(self, facts: Facts) -> tuple[Fact, ...]:
        """What the outcome depended on; on everything, where nobody could watch."""
        return tuple(facts.seen) if self._watch.looks else (WHOLE,)

    def _land(self, worker: Worker) -> Landing:
        try:
            worker.open(dict(self._settings), _OTHER_SEED)
            loaded = worker.load()
            state = self._of_kinds(worker.digest())
        except Hung as fault:
            self._server.hangs += 1
            return Landing("hung", said=str(fault))
        except Died as fault:
            return Landing("died", said=str(fault))
        except ManagerFault as fault:
            return Landing("refused", said=str(fault))
        if loaded.is_fresh:
            changed = _differing(self._of_kinds(self._fresh), state)
            return Landing("mixed", said=f"fresh, with {changed}") if changed else Landing("fresh")
        return self._match(loaded.step, state)

    def _match(self, step: int, state: Digest) -> Landing:
        there = {number: saved for number, saved in enumerate(self._recorded.saves) if saved.step == step}
        same = frozenset(number for number, saved in there.items() if saved.state == state)
        if same:
            return Landing("landed", step, same)
        if not there:
            return Landing("mixed", step, said=f"step {step} was never saved")
        differing = [_differing(saved.state, state) for saved in there.values()]
        return Landing("mixed", step, said=f"not the state that was saved: {' / '.join(differing)}")

    def _of_kinds(self, digest: Digest) -> Digest:
        return {name: value for name, value in digest.items() if name.partition("/")[0] in self._kinds}

    def _go_on(self, worker: Worker, landing: Landing, facts: Facts) -> GoingOn:
        step, every = landing.step, self._recorded.every
        first = (step // every + 1) * every
        try:
            for target in (first, first + every):
                worker.train(target - step)
                step = target
                worker.save()
            worker.wait()
            wanted = self._of_kinds(worker.digest())
        except ManagerFault as fault:
            return GoingOn(f"going on from step {landing.step}: {fault}")
        finally:
            worker.kill()
        return self._comes_back(step, wanted, facts)

    def _comes_back(self, step: int, wanted: Digest, facts: Facts) -> GoingOn:
        worker = self._spawn(facts)
        try:
            worker.open(dict(self._settings), _OTHER_SEED + 1)
            loaded = worker.load()
            differing = _differing(wanted, self._of_kinds(worker.digest()))
        except ManagerFault as fault:
            return GoingOn(f"after going on to step {step} the next resume failed: {fault}")
        finally:
            worker.kill()
        if loaded.step != step:
            return GoingOn(f"after going on to step {step} the next resume came back at step {loaded.step}")
        return GoingOn(f"after going on to step {step} the next resume has {differing}" if differing else "")


def _differing(wanted: Mapping[str, Any], seen: Mapping[str, Any]) -> str:
    names = sorted(name for name in wanted.keys() | seen.keys() if wanted.get(name) != seen.get(name))
    return f"{len(names)} items differing ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
