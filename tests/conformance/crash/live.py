"""A manager that lives, dies and comes back in earnest: its processes over a folder, and what a resume has to be.

A `Team` is who saves and resumes: one process, or one for each rank, of one
server over one folder.  A `Life` of it may be watched by recorders, whose
`Control` kills, fails or holds it at an exact operation.  The `Ledger` knows
what its saves hold and how they ended, over as many lives as there are; which
of them may come back follows from that alone.

Invariant: fingerprints are taken right before each save, so that what a resume
is compared with is what was handed over, whatever happened before.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forge_conformance.harness.ranks import Outcome, Shape
from forge_conformance.harness.server import CannotJudge, Server
from forge_conformance.harness.worker import ALL_PARTS, ManagerFault, Worker
from forge_spec.disk import Mark
from forge_spec.durable import may_come_back

from .landing import GoingOn, Landing, come_back
from .processes import ALONE, Digest, Processes, of_kinds, raised_once
from .recorder import Control, Recorder
from .recording import Saved, stands
from .trace import Disk, Journal

EVERY = 2
"""Steps between the saves of a run."""
_HARDLY_ANY_BYTES = 1 << 20
_PATIENCE_S = 5.0
"""How long a rank waits for another one that is dead."""


@dataclass
class Ledger:
    """The saves of a run, in order, and what became of them."""

    saves: list[Saved] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)

    def begin(self, step: int, state: Digest, is_resave: bool) -> int:
        """A save begins; its number."""
        self.saves.append(Saved(step, state, is_resave))
        self.mark("begins", len(self.saves) - 1)
        return len(self.saves) - 1

    def mark(self, word: str, save: int) -> None:
        """What became of a save; see `Mark`."""
        self.marks.append(Mark(word, save))

    @property
    def allowed(self) -> frozenset[int | None]:
        """The saves that a resume may come back with now; None stands for a fresh start."""
        return may_come_back(self.marks)

    def copy(self) -> "Ledger":
        """One that goes its own way."""
        return Ledger(list(self.saves), list(self.marks))


@dataclass(frozen=True)
class Team:
    """Who saves and resumes."""

    server: Server
    folder: Path
    """As its processes find it."""
    kinds: tuple[str, ...]
    """What of a state the manager claims to bring back."""
    fresh: Digest
    """What a process has that has loaded nothing."""
    shape: Shape = ALONE
    seen: Path | None = None
    """Where the suite finds the folder, if that is elsewhere."""

    @property
    def here(self) -> Path:
        """Where the suite finds the folder."""
        return self.seen or self.folder

    def rebuild(self, disk: Disk) -> None:
        """Make the folder hold the disk, and nothing else."""
        shutil.rmtree(self.here, ignore_errors=True)
        self.here.mkdir(parents=True, exist_ok=True)
        disk.build(self.here)

    @contextmanager
    def unopened(
        self, settings: Mapping[str, Any], ledger: Ledger, controls: Sequence[Control] = ()
    ) -> Iterator["Life"]:
        """Fresh processes, killed at the end; one control is for all ranks, several are one for each."""
        life = Life(self, settings, ledger, controls)
        try:
            yield life
        finally:
            life.kill()

    @contextmanager
    def life(self, settings: Mapping[str, Any], ledger: Ledger, controls: Sequence[Control] = ()) -> Iterator["Life"]:
        """The same, which have made their managers and loaded nothing."""
        with self.unopened(settings, ledger, controls) as life:
            life.open()
            yield life

    def resume(self, settings: Mapping[str, Any], ledger: Ledger, goes_on: bool) -> tuple[Landing, GoingOn | None]:
        """Where fresh processes come back, and, if they shall go on, whether two more saves and a resume go well."""
        with self.unopened(settings, ledger.copy()) as life:
            landing = life.land()
            return landing, life.go_on(landing) if goes_on and landing.is_alive else None


class Life:
    """The processes of one life; made by `Team`."""

    def __init__(self, team: Team, settings: Mapping[str, Any], ledger: Ledger, controls: Sequence[Control]) -> None:
        self.team = team
        self.ledger = ledger
        self.settings = {"folder": str(team.folder), **settings}
        self.controls = controls
        self.recorders: list[Recorder] = []
        self.step = 0
        self._own: set[int] = set()
        """Steps that were saved here; a flush of one may still be on its way."""
        self._in_flight: int | None = None
        self._is_sync = settings["mode"] == "sync"
        self.journal = Journal(team.folder) if controls else None
        watched, supervise = (team.folder, self._supervise) if controls else (None, None)
        self.processes = Processes(team.server, team.shape, watched, "writes", supervise)
        if controls and team.server.filter_refusal is not None:
            self.kill()
            raise CannotJudge(f"The manager's file operations can't be stopped: {team.server.filter_refusal}.")
        for rank, control in enumerate(controls):
            control.dies = self.processes.strike if len(controls) == 1 else self.workers[rank].strike

    @property
    def workers(self) -> list[Worker]:
        """The process of each rank."""
        return self.processes.workers

    @property
    def warnings(self) -> list[str]:
        """Everything that was warned of so far."""
        return self.processes.warnings

    def _supervise(self, rank: int, listener: int, pid: int) -> Recorder:
        assert self.journal is not None, "who is watched has a journal"
        control = self.controls[min(rank, len(self.controls) - 1)]
        self.recorders.append(Recorder(listener, pid, self.journal, control, rank=rank))
        return self.recorders[-1]

    def kill(self) -> None:
        """SIGKILL to whatever lives; raises what went wrong with a recorder."""
        self.processes.kill()
        for recorder in self.recorders:
            if recorder.failure is not None:
                raise recorder.failure

    # -- commands, to all ranks side by side ---------------------------------------

    def call(self, do: str, **arguments: Any) -> list[Any]:
        """The values of a command; the fault of the one rank, or `OnRank`."""
        return raised_once(self.outcomes(do, **arguments))

    def outcomes(self, do: str, **arguments: Any) -> list[Outcome]:
        """What a command came to on each rank that lives."""
        return self.processes.outcomes(do, **arguments)

    def open(self) -> None:
        """Make the training run and its manager."""
        self.processes.open(self.settings, seed=0, timeout_s=_PATIENCE_S)

    def load(self, path: str | None = None) -> list[bool]:
        """Resume; of each rank, whether it came back fresh.  `Astray` if ranks came back at different steps."""
        loaded = self.processes.load(path)
        steps = sorted({one.step for one in loaded})
        if len(steps) > 1:
            raise Astray(f"its ranks came back at different steps: {', '.join(str(one.step) for one in loaded)}")
        self.step = steps[0]
        return [one.is_fresh for one in loaded]

    def digest(self) -> Digest:
        """Fingerprints of all ranks, of the kinds that are claimed."""
        return of_kinds(self.processes.digest(), self.team.kinds)

    def train_to(self, step: int) -> None:
        """Train until the run is at `step`."""
        if step != self.step:
            self.call("train", steps=step - self.step)
        self.step = step

    def save(self, step: int | None = None) -> None:
        """Save, at the run's step or under another; an asynchronous save acknowledges the one before it."""
        self.begin_save(step)
        self.end_save()

    def begin_save(self, step: int | None = None) -> None:
        """Start a save."""
        state = self.digest()
        if step is not None:
            state |= self._counted(step)
        own = self.step if step is None else step
        is_resave = own in self._own or stands(self.team.server, self.team.here, own)
        self._saving = self.ledger.begin(own, state, is_resave)
        self._own.add(own)
        self.processes.ranks.begin("save", step=step, extra=None, parts=list(ALL_PARTS))

    def _counted(self, step: int) -> Digest:
        """The counter of a step that was saved before, as a save is told it that is not of the run's own step."""
        before = next(saved.state for saved in self.ledger.saves if saved.step == step)
        return {name: value for name, value in before.items() if name.startswith("counter/") and name.endswith("step")}

    def end_save(self) -> None:
        """Wait for the save that was started to return; what it did is noted, unless a process died in it."""
        self._note(self.processes.ranks.ends(), self._saving)
        if self._is_sync:
            self.ledger.mark("acknowledged", self._saving)
            return
        self._acknowledge()
        self._in_flight = self._saving

    def wait(self) -> None:
        """Wait until all that was saved is committed."""
        in_flight, self._in_flight = self._in_flight, None
        self._note(self.outcomes("wait"), in_flight)
        self._in_flight = in_flight
        self._acknowledge()

    def _note(self, outcomes: Sequence[Outcome], save: int | None) -> None:
        has_died = len(self.processes.ranks.living) < self.team.shape.ranks
        faulty = any(outcome.fault is not None for outcome in outcomes)
        if faulty and not has_died and save is not None:
            self.ledger.mark("raised", save)
        raised_once(outcomes)

    def _acknowledge(self) -> None:
        if self._in_flight is not None and len(self.processes.ranks.living) == self.team.shape.ranks:
            self.ledger.mark("acknowledged", self._in_flight)
        self._in_flight = None

    # -- coming back and going on ---------------------------------------------------

    def land(self) -> Landing:
        """Where these processes come back; what they have beforehand is another run's."""
        team = self.team
        landing = come_back(self.processes, self.settings, self.ledger.saves, team.fresh, team.kinds, _PATIENCE_S)
        self.step = landing.step
        return landing

    def go_on(self, landing: Landing) -> GoingOn:
        """Make the run's next two saves, the one that was cut short among them, and resume in fresh processes."""
        first = first_free(self.step)
        try:
            for target in (first, first + EVERY):
                self.train_to(target)
                self.save()
            self.wait()
            wanted = self.ledger.saves[-1].step
        except ManagerFault as fault:
            return GoingOn(f"going on from step {landing.step}: {fault}")
        finally:
            self.kill()
        return comes_back(self.team, self.settings, self.ledger, wanted)


def comes_back(team: Team, settings: Mapping[str, Any], ledger: Ledger, step: int) -> GoingOn:
    """Whether fresh processes come back with the last save, which was acknowledged."""
    landing, _ = team.resume(settings, ledger, goes_on=False)
    if landing.word == "landed" and landing.saves & ledger.allowed:
        return GoingOn()
    where = landing.said or (f"came back at step {landing.step}" if landing.step else "came back fresh")
    return GoingOn(f"after going on to step {step}, the next resume: {where}")


def room_told(folder: Path) -> str:
    """A sentence for who has given the manager a disk that is full, and does not know; "" where it is not."""
    free = shutil.disk_usage(folder).free
    if free > _HARDLY_ANY_BYTES:
        return ""
    return (
        f" The disk of {folder} itself is full, {free:,} bytes are left: make room there, or let TMPDIR name another "
        "place."
    )


class Astray(ManagerFault):
    """Ranks of one run went to different places."""


def first_free(step: int) -> int:
    """The next step that the run saves after this one."""
    return (step // EVERY + 1) * EVERY
