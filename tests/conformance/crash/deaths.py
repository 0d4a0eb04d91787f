"""Deaths in earnest: processes are killed, ended and stopped in the middle of a save, and fresh ones resume.

Each kind of death is a function that brings it about at the n-th file operation
of a save.  What may come back then is said by the marks that the save had left
by that time; nothing here knows what a manager does.
"""

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from forge_conformance.harness.ranks import OnRank
from forge_conformance.harness.worker import Hung, ManagerFault

from .drills import Drill, Heard, Stage, Tried
from .live import Life
from .recorder import Control, Operation, Recorder
from .trace import Disk
from .verdicts import Verdict

_A_WHILE_S = 2.0
"""How long a reply may take while an operation is held before the two are taken to hang together, and it is let go.
Too short a time lets it go earlier; no verdict depends on it."""
_PATIENCE_S = 5.0
"""How long an operation is waited for that a right manager makes at once."""


@dataclass(frozen=True)
class Death:
    """One way to die."""

    name: str
    says: str
    dies: Callable[[Stage, int], Tried]
    most: int = 0
    """How many points are enough, if nobody says otherwise; 0 means all."""
    is_of_several: bool = False
    """Whether it takes several ranks."""
    is_in_background: bool = False
    """Whether it takes a flush in the background."""

    def suits(self, drill: Drill) -> bool:
        """Whether it can happen in this drill."""
        return (drill.ranks > 1) == self.is_of_several and not (self.is_in_background and drill.mode == "sync")

    def numbers(self, stage: Stage) -> list[int]:
        """The operations of the save, counted from 1, at which it can happen."""
        return [
            number
            for number, operation in enumerate(stage.operations, start=1)
            if not (self.is_in_background and operation.is_main)
        ]


def kill(stage: Stage, number: int) -> Tried:
    """All processes are killed before an operation."""
    control = Control()
    with stage.about_to_save([control]) as life:
        heard = Heard(control, number)
        control.dies_at = control.done + number
        _through(stage, life)
    return _judged(stage, life, f"SIGKILL before {_named(stage, number)}", heard.done)


def kill_one(stage: Stage, number: int) -> Tried:
    """One rank is killed before an operation; the others are killed when they have come to an end."""
    controls = [Control() for _ in range(stage.team.shape.ranks)]
    rank = stage.operations[number - 1].rank
    own = sum(operation.rank == rank for operation in stage.operations[:number])
    with stage.about_to_save(controls) as life:
        heard = Heard(controls[rank], own)
        controls[rank].dies_at = controls[rank].done + own
        fault = _through(stage, life)
    happened = f"SIGKILL to rank {rank} alone before its {own}. operation, {stage.operations[number - 1]}"
    if isinstance(fault, Hung):
        verdict = Verdict("hung", "commit.rank-failure", str(fault), "every other rank to raise, or to return")
        return Tried(verdict, happened, tuple(heard.done))
    return _judged(stage, life, happened, heard.done)


def terminate(stage: Stage, number: int) -> Tried:
    """The process is told SIGTERM, for which Python has no handler unless the manager has made one."""
    return _terminated(stage, number, handles=False)


def terminate_handled(stage: Stage, number: int) -> Tried:
    """The same, in a script that ends itself when it is told so."""
    return _terminated(stage, number, handles=True)


def _terminated(stage: Stage, number: int, handles: bool) -> Tried:
    control = Control()
    with stage.about_to_save([control]) as life:
        (worker,) = life.workers
        if handles:
            life.call("exit_at_sigterm")

        def tell(operation: Operation) -> int:
            os.kill(worker.pid, signal.SIGTERM)
            return 0

        heard = Heard(control, number, tell)
        fault = _through(stage, life)
    happened = f"SIGTERM at {_named(stage, number)}" + (", with a handler that calls sys.exit" if handles else "")
    if heard.met is None:
        return Tried(None)
    if isinstance(fault, Hung):
        return Tried(_does_not_end(str(fault)), happened, tuple(heard.done))
    return _judged(stage, life, happened, heard.done)


def exit_in_flight(stage: Stage, number: int) -> Tried:
    """The script comes to its end while its flush is held at an operation, which then goes on."""
    control = Control()
    with stage.about_to_save([control]) as life:
        (worker,), (recorder,) = life.workers, life.recorders
        heard, before = Heard(control, number), control.done
        control.holds = lambda operation: not operation.is_main and operation.number >= before + number
        life.begin_save(stage.step())
        is_free = _replies(life, recorder)
        life.end_save()
        if not is_free or not _is_held(recorder):
            return Tried(None)
        happened = f"sys.exit while the flush was about to make {_named(stage, number)}"
        worker.tell("exit")
        _replies(life, recorder)
        worker.reply()
        worker.ends_or_blocks(_PATIENCE_S)  # the flush goes on only beside an interpreter that waits for it
        with recorder.changed:
            control.holds = lambda operation: False
        recorder.release()
        try:
            status = worker.await_end()
        except Hung as fault:
            return Tried(_does_not_end(str(fault)), happened, tuple(heard.done))
    if status:
        verdict = Verdict("died", "commit.exit", f"exit status {status}: {worker.output()[-500:]}", "exit status 0")
        return Tried(verdict, happened, tuple(heard.done))
    return _judged(stage, life, happened, heard.done)


def stop(stage: Stage, number: int) -> Tried:
    """The process is stopped; another one resumes meanwhile; it goes on, and another one resumes after it."""
    control = Control()
    with stage.about_to_save([control]) as life:
        (worker,), (recorder,) = life.workers, life.recorders
        heard, before = Heard(control, number), control.done
        control.holds = lambda operation: operation.number == before + number
        life.begin_save(stage.step())
        if not _is_held(recorder):
            return Tried(None)
        happened = f"SIGSTOP before {_named(stage, number)}, while another process resumed"
        worker.strike(signal.SIGSTOP)
        seen, meanwhile = Disk.read(stage.team.here), stage.meanwhile(life)
        if not meanwhile.is_good:
            return Tried(meanwhile, happened, tuple(heard.done), seen)
        worker.strike(signal.SIGCONT)
        recorder.release()
        try:
            life.end_save()
            life.wait()
        except ManagerFault as fault:
            clause = "commit.sync" if stage.drill.mode == "sync" else "commit.no-later-than"
            verdict = Verdict("disturbed", clause, str(fault), "the save to go on, and to be committed")
            return Tried(verdict, happened, tuple(heard.done), seen)
    return _judged(stage, life, f"{happened}; SIGCONT, and the save came to its end", heard.done)


def _through(stage: Stage, life: Life) -> ManagerFault | None:
    """Save and wait; what came in between."""
    try:
        stage.save(life)
        life.wait()
    except OnRank as fault:  # the others heard of the one that died; those that live come to their ends
        with suppress(ManagerFault):
            life.wait()
        return fault
    except ManagerFault as fault:
        return fault
    return None


def _judged(stage: Stage, life: Life, happened: str, done: Sequence[str]) -> Tried:
    verdict, left, went_on = stage.judged(life)
    return Tried(verdict, happened, tuple(done), left, went_on)


def _named(stage: Stage, number: int) -> str:
    return f"operation {number} of {len(stage.operations)}, {stage.operations[number - 1]}"


def _does_not_end(said: str) -> Verdict:
    return Verdict("hung", "commit.exit", said, "the process to end")


def _replies(life: Life, recorder: Recorder) -> bool:
    """Whether the running command replies while operations are held; each that it can't reply without is let go."""
    while not life.workers[0].replies_or_blocks(_A_WHILE_S):
        if not recorder.held():
            return False
        recorder.release()
    return True


def _is_held(recorder: Recorder) -> bool:
    with recorder.changed:
        return recorder.changed.wait_for(recorder.held, _PATIENCE_S) != []


DEATHS: Mapping[str, Death] = {
    death.name: death
    for death in (
        Death("kill", "SIGKILL before an operation", kill),
        Death("term", "SIGTERM at an operation", terminate, most=12),
        Death("term-exit", "SIGTERM at an operation, which the script answers with sys.exit", terminate_handled, 12),
        Death("exit", "the script ends while its flush goes on", exit_in_flight, 8, is_in_background=True),
        Death("stop", "SIGSTOP before an operation while another process resumes, then SIGCONT", stop, 8),
        Death("kill-all", "SIGKILL to all ranks at once, before an operation", kill, 16, is_of_several=True),
        Death("kill-one", "SIGKILL to one rank alone, before an operation", kill_one, 24, is_of_several=True),
    )
}
"""Every kind of death under its name."""
