"""A run that saves, dies and comes back, as the crash explorer and the drills drive it.

A `SavingLife` is one life of one process or of several ranks; it notes in a
`Ledger` what each save was given and how it ended.  A `Team` says who lives over
which folder, and makes its lives; recorders may watch these, and their `Control`
kills, fails or holds a process at an exact operation.

Invariant: what a resume is compared with is the state that the save was handed,
whatever happened before.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forge_conformance.judging.judge import CannotJudge
from forge_conformance.runs import planned
from forge_conformance.runs.folder import Folder
from forge_conformance.runs.group import ALONE, Outcome, Ranks, Shape, values
from forge_conformance.runs.landing import NOTHING, GoingOn, Ignored, Landing, come_back
from forge_conformance.runs.ledger import EVERY, Ledger, Saved, next_two, stands
from forge_conformance.runs.planned import plan_of
from forge_conformance.runs.process import Died, Hung, ManagerFault, Raised, Worker
from forge_conformance.runs.server import Server
from forge_conformance.runs.state import Digest, of_kinds, with_step_of
from forge_conformance.watch.recorder import Control, Recorder
from forge_conformance.watch.trace import Disk, Journal
from forge_spec.ephemeral import saves

_WAITS_FOR_THE_DEAD_S = 5.0
"""How long ranks wait for one that may be dead."""


class DifferentSteps(ManagerFault):
    """Ranks of one run resumed at different steps."""


class SavingLife:
    """The processes of one life: what becomes of their saves is noted.

    A command that goes wrong raises the fault of the only process, or `OnRank`.
    """

    def __init__(
        self, ranks: Ranks, ledger: Ledger, folder: Path, kinds: tuple[str, ...], settings: Mapping[str, Any]
    ) -> None:
        """`folder` is where the suite finds the manager's; `kinds` of state are what a save has to bring back."""
        self.ranks = ranks
        self.ledger = ledger
        self.step = 0
        self.plan = plan_of(settings)
        """What hooks save, where they do."""
        self._folder = Folder(folder.absolute(), ranks.server.implementation.layout_under(settings))
        self._kinds = kinds
        self._is_sync = settings["mode"] == "sync"
        self._own: set[int] = set()
        """Steps that were saved here; a flush of one may still be on its way."""
        self._saving = 0
        self._in_flight: int | None = None

    def call(self, do: str, **arguments: Any) -> list[Any]:
        """The values of a command on all ranks that live."""
        return self.ranks.together(do, **arguments)

    def train_to(self, step: int) -> None:
        """Train until the run is at `step`."""
        if step != self.step:
            self.call("train", steps=step - self.step)
        self.step = step

    def save_at(self, *steps: int) -> None:
        """Train to each of these steps and save there."""
        for step in steps:
            self.train_to(step)
            self.save()

    def save(self, step: int | None = None) -> None:
        """Save, at the run's step or under another; an asynchronous save acknowledges the one before it."""
        self.begin_save(step)
        self.end_save()

    def begin_save(self, step: int | None = None) -> None:
        """Start a save."""
        own = self.step if step is None else step
        self._note_beginning(own, self._state_of(own))
        self.ranks.begin_save(step)

    def _note_beginning(self, step: int, state: Digest, kind: str = "") -> None:
        is_resave = step in self._own or stands(self._folder.layout, self._folder.path, step)
        self.ledger.saves.append(Saved(step, of_kinds(state, self._kinds), is_resave, kind))
        self._saving = len(self.ledger.saves) - 1
        self._own.add(step)
        for rank in range(self.ranks.shape.ranks):
            self.ledger.mark("begins", self._saving, rank)

    # -- where hooks save -------------------------------------------------------

    def pre_train(self) -> None:
        """The hook before the first batch."""
        self.call("pre_train")

    def batches_to(self, step: int) -> None:
        """Train to this step, with the hook after each batch, and note the saves that are due."""
        assert self.plan is not None, "hooks are configured"
        for own, kind in saves(self.plan, self.step + 1, step).items():
            self._batches(own - 1)
            self._note_beginning(own, self._state_at_hook(own), kind)
            self.ranks.begin("batches", steps=1)
            self.step = own
            self.end_save()
            if not self.ledger.saves[-1].state:
                state = of_kinds(self.ranks.digest(), self._kinds)
                self.ledger.saves[-1] = replace(self.ledger.saves[-1], state=state)
        self._batches(step)

    def _batches(self, step: int) -> None:
        if step != self.step:
            self.call("batches", steps=step - self.step)
        self.step = step

    def _state_at_hook(self, step: int) -> Digest:
        """The state that the hook of this step will save; empty if it is known only afterwards."""
        return {}

    def _state_of(self, step: int) -> Digest:
        """The state that a save of this step is handed now."""
        state = self.ranks.digest()
        before = next((saved.state for saved in self.ledger.saves if saved.step == step != self.step), {})
        return with_step_of(state, before)

    def end_save(self) -> None:
        """Wait for the save that was started to return."""
        outcomes = self.ranks.ends()
        self._note([one for one in outcomes if self._is_sync or one.fault is not None], self._saving)
        if not self._is_sync:
            self._note([one for one in outcomes if one.fault is None], self._in_flight)
            self._in_flight = self._saving if all(one.fault is None for one in outcomes) else None
        values(outcomes)

    def _note(self, outcomes: Sequence[Outcome], save: int | None) -> None:
        """What a call says of a save; a death, or an interrupt, says nothing of it."""
        for outcome in outcomes:
            if save is not None and not isinstance(outcome.fault, Died) and not is_interrupt(outcome.fault):
                self.ledger.mark("acknowledged" if outcome.fault is None else "raised", save, outcome.rank)

    def wait(self) -> None:
        """Wait until all that was saved is committed."""
        self.begin_wait()
        self.end_wait()

    def begin_wait(self) -> None:
        """Start to wait; where hooks save, training has ended."""
        self.ranks.begin("post_train" if self.plan else "wait")

    def end_wait(self) -> None:
        """Wait for that to return."""
        in_flight, self._in_flight = self._in_flight, None
        outcomes = self.ranks.ends()
        self._note(outcomes, in_flight)
        values(outcomes)

    def save_on(self, every: int = EVERY) -> None:
        """Make the run's next two saves, the one that was cut short among them, and wait."""
        steps = tuple(next_two(self.step, every))
        if self.plan:
            self.pre_train()
            self.batches_to(steps[-1])
        else:
            self.save_at(*steps)
        self.wait()


@dataclass(frozen=True)
class Team:
    """Who saves and resumes."""

    server: Server
    folder: Path
    """As its processes find it."""
    kinds: tuple[str, ...]
    """The kinds of state that the manager claims to bring back."""
    fresh: Digest
    """The state of a process that has loaded nothing."""
    shape: Shape = ALONE
    seen: Path | None = None
    """Where the suite finds the folder, if that is elsewhere."""
    every: int = EVERY
    """Steps between its saves."""
    rank_timeout_s: float | None = _WAITS_FOR_THE_DEAD_S
    """How long ranks wait for each other; None for as long as a command may take."""
    ignored: Ignored = NOTHING
    """What of the state is not compared."""
    starts: Callable[[], Ranks] | None = None
    """Makes the processes of a life that no `Control` drives; None for processes that nobody watches."""

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
    ) -> Iterator["TeamLife"]:
        """Fresh processes, killed at the end; one control is for all ranks, several are one for each."""
        life = TeamLife(self, settings, ledger, controls)
        try:
            yield life
        finally:
            life.kill()

    @contextmanager
    def life(
        self, settings: Mapping[str, Any], ledger: Ledger, controls: Sequence[Control] = ()
    ) -> Iterator["TeamLife"]:
        """The same, which have made their managers and loaded nothing."""
        with self.unopened(settings, ledger, controls) as life:
            values(life.ranks.open(life.settings, seed=0, timeout_s=self.rank_timeout_s))
            yield life

    def resume(self, settings: Mapping[str, Any], ledger: Ledger, goes_on: bool) -> tuple[Landing, GoingOn | None]:
        """Where fresh processes come back, and, if they shall go on, whether two more saves and a resume go well."""
        with self.unopened(settings, ledger.copy()) as life:
            landing = life.land()
            return landing, life.go_on(landing) if goes_on and landing.is_alive else None

    def comes_back(self, settings: Mapping[str, Any], ledger: Ledger, step: int) -> GoingOn:
        """Whether fresh processes come back with the last save, of this step, which was acknowledged."""
        landing, _ = self.resume(settings, ledger, goes_on=False)
        if landing.word == "landed" and landing.saves & ledger.allowed:
            return GoingOn()
        where = landing.said or (f"landed on step {landing.step}" if landing.step else "a fresh start")
        return GoingOn(
            f"after going on to step {step}, the next resume: {where}", "hung" if landing.word == "hung" else "stuck"
        )


class TeamLife(SavingLife):
    """The processes of one life; made by `Team`."""

    def __init__(self, team: Team, settings: Mapping[str, Any], ledger: Ledger, controls: Sequence[Control]) -> None:
        self.team = team
        self.settings = {"folder": str(team.folder), **settings}
        self.controls = controls
        self.recorders: list[Recorder] = []
        self.journal = Journal(team.folder) if controls else None
        super().__init__(self._started(), ledger, team.here, team.kinds, settings)
        if controls and team.server.filter_refusal is not None:
            self.kill()
            raise CannotJudge(f"The manager's file operations can't be stopped: {team.server.filter_refusal}.")
        for rank, control in enumerate(controls):
            control.dies = self.ranks.strike if len(controls) == 1 else self.workers[rank].strike

    def _started(self) -> Ranks:
        team = self.team
        if self.controls:
            return Ranks.supervised(team.server, team.shape, team.folder, "writes", self._supervise)
        return team.starts() if team.starts else Ranks(team.server, team.shape)

    @property
    def workers(self) -> list[Worker]:
        """The process of each rank."""
        return self.ranks.workers

    def _supervise(self, rank: int, listener: int, pid: int) -> Recorder:
        assert self.journal is not None, "a life with controls has a journal"
        control = self.controls[min(rank, len(self.controls) - 1)]
        self.recorders.append(Recorder(listener, pid, self.journal, control, rank=rank))
        return self.recorders[-1]

    def kill(self) -> None:
        """SIGKILL to whatever lives; raises what went wrong with a recorder."""
        self.ranks.kill()
        for recorder in self.recorders:
            if recorder.failure is not None:
                raise recorder.failure

    def load(self, path: str | None = None) -> None:
        """Resume.  `DifferentSteps` if ranks resumed at different ones."""
        loaded = self.ranks.load(path)
        if len({one.step for one in loaded}) > 1:
            where = ", ".join(str(one.step) for one in loaded)
            raise DifferentSteps(f"its ranks resumed at different steps: {where}")
        self.step = loaded[0].step

    def land(self) -> Landing:
        """Where these processes come back; the state that they have beforehand is another run's."""
        team = self.team
        saves, wait_s = self.ledger.saves, team.rank_timeout_s
        landing = come_back(self.ranks, self.settings, saves, team.fresh, team.kinds, wait_s, team.ignored)
        self.step = landing.step
        return landing

    def go_on(self, landing: Landing) -> GoingOn:
        """Make the run's next two saves, and resume in fresh processes."""
        kinds, made = {saved.step: saved.kind for saved in self.ledger.saves}, len(self.ledger.saves)
        before = {step: kinds[step] for step in self._folder.complete() if kinds.get(step)}
        try:
            self.save_on(self.team.every)
        except ManagerFault as fault:
            word = "hung" if isinstance(fault, Hung) else "stuck"
            return GoingOn(f"going on from step {landing.step}: {fault}", word)
        finally:
            self.kill()
        if self.plan:
            new = {saved.step: saved.kind for saved in self.ledger.saves[made:]}
            expected = planned.stands(before, landing.step, new, self.plan)
            wrong = planned.deviation(expected, self._folder.complete(), {**before, **new}, self.plan)
            if wrong.trouble:
                return wrong
        return self.team.comes_back(self.settings, self.ledger, self.step)


def is_interrupt(fault: Exception | None) -> bool:
    """Whether an interrupt came out of the call; what the call was about may have been done or not."""
    return isinstance(fault, Raised) and "KeyboardInterrupt" in fault.kinds
