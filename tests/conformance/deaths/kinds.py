"""Deaths of real processes: they are killed, ended and stopped in the middle of a save, and fresh ones resume.

Each kind of death is a function that brings it about at the n-th file operation
of a save.  What may come back then is said by the marks that the save had left
by that time; nothing here knows what a manager does.
"""

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from forge_conformance.deaths.drills import Drill, Injection, PreparedSituation, Tried
from forge_conformance.judging.text import some
from forge_conformance.runs.group import OnRank
from forge_conformance.runs.process import A_WHILE_S, Hung, ManagerFault, replies_while_held, settle
from forge_conformance.runs.team import TeamLife, is_interrupt
from forge_conformance.runs.verdict import Verdict
from forge_conformance.watch.recorder import Control, Operation, Recorder
from forge_conformance.watch.trace import Disk

_PATIENCE_S = 5.0
"""How long an operation is waited for that a right manager makes at once."""
_LOOKS = 50
"""How often a call is looked at that stands still with nothing held, before it is taken to hang."""
_NOTHING_LOST = "interrupt.nothing-lost"


@dataclass(frozen=True)
class Death:
    """One way to die."""

    name: str
    says: str
    dies: Callable[[PreparedSituation, int], Tried]
    most: int = 0
    """How many points are enough, if nobody says otherwise; 0 means all."""
    is_of_several: bool = False
    """Whether it takes several ranks."""
    is_in_background: bool = False
    """Whether it takes a flush in the background."""

    def suits(self, drill: Drill) -> bool:
        """Whether it can happen in this drill."""
        return (drill.ranks > 1) == self.is_of_several and not (self.is_in_background and drill.mode == "sync")

    def numbers(self, prepared: PreparedSituation) -> list[int]:
        """The operations of the save, counted from 1, at which it can happen."""
        return [
            number
            for number, operation in enumerate(prepared.operations, start=1)
            if not (self.is_in_background and operation.is_main)
        ]


def kill(prepared: PreparedSituation, number: int) -> Tried:
    """All processes are killed before an operation."""
    control = Control()
    with prepared.about_to_save([control]) as life:
        injection = Injection(control, number)
        control.dies_at = control.done + number
        fault = _through(prepared, life)
    if control.died_before is None:
        return _missed(prepared, injection, fault)
    return _judged(prepared, life, f"SIGKILL before {_named(prepared, injection, control.died_before)}", injection)


def kill_one(prepared: PreparedSituation, number: int) -> Tried:
    """One rank is killed before an operation; the others are killed when they have come to an end."""
    controls = [Control() for _ in range(prepared.team.shape.ranks)]
    rank = prepared.operations[number - 1].rank
    own = sum(operation.rank == rank for operation in prepared.operations[:number])
    with prepared.about_to_save(controls) as life:
        injection = Injection(controls[rank], own)
        controls[rank].dies_at = controls[rank].done + own
        fault = _through(prepared, life)
    if controls[rank].died_before is None:
        return _missed(prepared, injection, fault)
    happened = f"SIGKILL to rank {rank} alone before its operation {own}, {controls[rank].died_before}"
    if isinstance(fault, Hung):
        verdict = Verdict("hung", "commit.rank-failure", str(fault), "every other rank to raise, or to return")
        return injection.tried(verdict, happened)
    return _judged(prepared, life, happened, injection)


def terminate(prepared: PreparedSituation, number: int) -> Tried:
    """The process gets SIGTERM, for which Python has no handler unless the manager has made one."""
    return _terminated(prepared, number, handles=False)


def terminate_handled(prepared: PreparedSituation, number: int) -> Tried:
    """The same, in a script that ends itself then."""
    return _terminated(prepared, number, handles=True)


def _terminated(prepared: PreparedSituation, number: int, handles: bool) -> Tried:
    control = Control()
    with prepared.about_to_save([control]) as life:
        (worker,) = life.workers
        if handles:
            life.call("exit_at_sigterm")

        def tell(operation: Operation) -> int:
            os.kill(worker.pid, signal.SIGTERM)
            return 0

        injection = Injection(control, number, tell)
        fault = _through(prepared, life)
    if injection.met is None:
        return _missed(prepared, injection, fault)
    handled = ", with a handler that calls sys.exit" if handles else ""
    happened = f"SIGTERM before {_named(prepared, injection, injection.met)}{handled}"
    if isinstance(fault, Hung):
        return injection.tried(_does_not_end(str(fault)), happened)
    return _judged(prepared, life, happened, injection)


def exit_in_flight(prepared: PreparedSituation, number: int) -> Tried:
    """The script comes to its end while its flush is held at an operation, which then goes on."""
    control = Control()
    with prepared.about_to_save([control]) as life:
        (worker,), (recorder,) = life.workers, life.recorders
        injection, before = Injection(control, number), control.done
        control.holds = lambda operation: not operation.is_main and operation.number >= before + number
        life.begin_save(prepared.step())
        has_replied, _ = replies_while_held(worker, recorder.held, recorder.release)
        life.end_save()
        if not has_replied or not _is_held(recorder):
            return Tried(None)
        happened = f"sys.exit while the flush was held before {_named(prepared, injection, recorder.held()[0])}"
        worker.begin("exit")
        replies_while_held(worker, recorder.held, recorder.release)
        worker.reply()
        worker.ends_or_blocks(_PATIENCE_S)  # the flush goes on only beside an interpreter that waits for it
        with recorder.changed:
            control.holds = lambda operation: False
        recorder.release()
        try:
            status = worker.await_end()
        except Hung as fault:
            return injection.tried(_does_not_end(str(fault)), happened)
    if status:
        verdict = Verdict("died", "commit.exit", f"exit status {status}: {worker.output()[-500:]}", "exit status 0")
        return injection.tried(verdict, happened)
    return _judged(prepared, life, happened, injection)


def stop(prepared: PreparedSituation, number: int) -> Tried:
    """The process is stopped; another one resumes meanwhile; it goes on, and another one resumes after it."""
    control = Control()
    with prepared.about_to_save([control]) as life:
        (worker,), (recorder,) = life.workers, life.recorders
        injection, before = Injection(control, number), control.done
        control.holds = lambda operation: operation.number == before + number
        life.begin_save(prepared.step())
        if not _is_held(recorder):
            return Tried(None)
        happened = f"SIGSTOP before {_named(prepared, injection, recorder.held()[0])}, while another process resumed"
        worker.strike(signal.SIGSTOP)
        seen, meanwhile = Disk.read(prepared.team.here), prepared.meanwhile(life)
        deleted = sorted(seen.nodes.keys() - Disk.read(prepared.team.here).nodes)
        if not meanwhile.is_good:
            return injection.tried(meanwhile, happened, seen)
        worker.strike(signal.SIGCONT)
        recorder.release()
        try:
            life.end_save()
            life.wait()
        except ManagerFault as fault:
            clause = "commit.sync" if prepared.drill.mode == "sync" else "commit.no-later-than"
            word = "hung" if isinstance(fault, Hung) else "disturbed"
            by_other = f"; the other process had deleted {some(deleted)}" if deleted else ""
            verdict = Verdict(word, clause, f"{fault}{by_other}", "the save to go on, and to be committed")
            return injection.tried(verdict, happened, seen)
    return _judged(prepared, life, f"{happened}; SIGCONT, and the save came to its end", injection)


def interrupt(prepared: PreparedSituation, number: int) -> Tried:
    """SIGINT comes at an operation; the script catches it, makes an emergency save, and is killed after that.

    A flush that waits at the operation is let go as late as the emergency save allows.
    """
    control = Control()
    with prepared.about_to_save([control]) as life:
        (recorder,) = life.recorders
        life.call("heed_interrupts", how="raise")
        injection, before = Injection(control, number), control.done
        control.holds = lambda operation: operation.number >= before + number
        faults = [_ended(life, lambda: life.begin_save(prepared.step()), life.end_save, control)]
        faults.append(_ended(life, life.begin_wait, life.end_wait, control))
        (taken,) = life.call("interrupts")
        if not taken["raised"]:  # it came too late, or not at all
            recorder.release()
            return Tried(None)
        assert injection.met is not None, "it was interrupted while that was held"
        operation = _named(prepared, injection, injection.met)
        happened = f"SIGINT before {operation}, caught by the script, which saved again and was killed"
        unheard = [fault for fault in faults if fault is not None and not is_interrupt(fault)]
        if unheard or not any(faults):
            seen = "; ".join(map(str, unheard)) or "the call returned as if nothing had come"
            word = _word(unheard, "unheard")
            verdict = Verdict(word, "interrupt.reaches-caller", seen, "KeyboardInterrupt from the call")
            return injection.tried(verdict, happened)
        life.train_to(life.step + 1)
        again = [_ended(life, life.begin_save, life.end_save), _ended(life, life.begin_wait, life.end_wait)]
        recorder.release()
        settle(life.workers)
        if any(again):
            seen = "; ".join(str(fault) for fault in again if fault is not None)
            verdict = Verdict(_word(again, "stuck"), _NOTHING_LOST, seen, "the next save to succeed")
            return injection.tried(verdict, happened)
    tried = _judged(prepared, life, happened, injection)
    assert tried.verdict is not None, "it was judged"
    return tried if tried.verdict.is_good else replace(tried, verdict=replace(tried.verdict, clause=_NOTHING_LOST))


def _nothing(_: Operation) -> bool:
    return False


def _ended(
    life: TeamLife, begin: Callable[[], None], end: Callable[[], None], interrupted: Control | None = None
) -> ManagerFault | None:
    """What a call came to; where it stands still because an operation is held, that is let go.

    With a control the process is interrupted first, and no further operation is held.
    """
    (worker,), (recorder,) = life.workers, life.recorders
    begin()
    looks = 0
    while not (has_replied := worker.replies_or_blocks(A_WHILE_S)) and not recorder.held() and looks < _LOOKS:
        looks += 1  # a slow disk lets it stand still as well
    if not has_replied and recorder.held():
        if interrupted is not None and interrupted.holds is not _nothing:
            with recorder.changed:
                interrupted.holds = _nothing
            worker.interrupt()
        if not worker.replies_or_blocks(A_WHILE_S):
            recorder.release()
    try:
        end()
    except ManagerFault as fault:
        return fault
    return None


def _through(prepared: PreparedSituation, life: TeamLife) -> ManagerFault | None:
    """Save and wait; what came in between."""
    try:
        prepared.save(life)
        life.wait()
    except OnRank as fault:  # the others hear of the one that died; those that live come to their ends
        try:
            life.wait()
        except Hung as hang:
            return hang
        except ManagerFault:
            pass
        return fault
    except ManagerFault as fault:
        return fault
    return None


def _judged(prepared: PreparedSituation, life: TeamLife, happened: str, injection: Injection) -> Tried:
    verdict, left, went_on = prepared.judged(life)
    return injection.tried(verdict, happened, left, went_on)


def _missed(prepared: PreparedSituation, injection: Injection, fault: ManagerFault | None) -> Tried:
    """The save had no such operation: it did other ones than in the rehearsal, or came to no end."""
    if not isinstance(fault, Hung):
        return Tried(None)
    clause = "commit.sync" if prepared.drill.mode == "sync" else "commit.no-later-than"
    injection.number = len(injection.done) + 1
    return injection.tried(Verdict("hung", clause, str(fault), "the save to return"), "nothing had happened to it")


def _word(faults: Sequence[ManagerFault | None], otherwise: str) -> str:
    return "hung" if any(isinstance(fault, Hung) for fault in faults) else otherwise


def _named(prepared: PreparedSituation, injection: Injection, operation: Operation) -> str:
    """The operation before which something happens; from here on the injection has its number."""
    injection.number = injection.number_of(operation)
    return f"operation {injection.number} of {len(prepared.operations)}, {operation}"


def _does_not_end(said: str) -> Verdict:
    return Verdict("hung", "commit.exit", said, "the process to end")


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
        Death("interrupt", "SIGINT at an operation, which the script catches to save again", interrupt, most=12),
        Death("stop", "SIGSTOP before an operation while another process resumes, then SIGCONT", stop, 8),
        Death("kill-all", "SIGKILL to all ranks at once, before an operation", kill, 16, is_of_several=True),
        Death("kill-one", "SIGKILL to one rank alone, before an operation", kill_one, 24, is_of_several=True),
    )
}
"""Every kind of death under its name."""
