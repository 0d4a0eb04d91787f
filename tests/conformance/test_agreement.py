"""The manager and the specification's bounds, side by side, over random programs.

A program is a list of actions: train, save, wait, kill (between calls, or at
the n-th file operation of a save), resume, rewind.  After each of them the
folder has to lie within these bounds, and what comes back has to be a
state that was saved at that step, to the bit; for a manager that claims every
stream there is only one such state, the timeline's.  Every list of actions is a program, so
Hypothesis can drop any action of a failing one: what a failure tells is the
shortest program that it found.

By default the same few programs are tried every time; `--examples N` tries N
new ones.
"""

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from hypothesis import strategies as st

from forge_conformance.judging.judge import ClauseFailure, judges
from forge_conformance.runs.folder import DANGLING
from forge_conformance.runs.life import Life
from forge_conformance.runs.process import Loaded, ManagerFault, Raised, Unsupported
from forge_conformance.runs.scenario import Scenario
from forge_conformance.watch.gate import Operation, at
from forge_spec import bounds as allowed
from forge_spec import resume, schedule
from forge_spec.schedule import Window

USUAL_PROGRAMS = 8
USUAL_SEED = 2
SHRINKING_S = 10
INTERVAL = 3
WINDOW = (0, 6)


@dataclass(frozen=True)
class Train:
    steps: int


@dataclass(frozen=True)
class Save:
    """Trains so many steps first; after none the step that was saved or resumed last is saved again."""

    after: int


@dataclass(frozen=True)
class Wait:
    pass


@dataclass(frozen=True)
class Kill:
    pass


@dataclass(frozen=True)
class KillInSave:
    """A save that dies at this file operation; one later than its last makes it a plain save."""

    after: int
    operation: int


@dataclass(frozen=True)
class SaveOnFullDisk:
    """Waits, trains so many steps and saves with no space on the disk, which there is again after the next wait."""

    after: int


@dataclass(frozen=True)
class Resume:
    """A new process, with another limit."""

    keep_last_n: int


@dataclass(frozen=True)
class Rewind:
    """A new process that loads an older checkpoint by its path: the n-th of those that stand, counted round."""

    which: int


Action = Train | Save | Wait | Kill | KillInSave | SaveOnFullDisk | Resume | Rewind

STEPS = st.sampled_from([1, 2, 3, 0])
_OFTEN: dict[st.SearchStrategy[Action], int] = {
    st.builds(Save, STEPS): 7,
    st.just(Wait()): 1,
    st.builds(Rewind, st.sampled_from([0, 0, 1, 2])): 3,
    st.builds(Resume, st.sampled_from([2, 3, 1, 0])): 1,
    st.builds(KillInSave, STEPS, st.integers(1, 60)): 1,
    st.builds(SaveOnFullDisk, STEPS): 1,
    st.builds(Train, st.integers(1, 3)): 1,
    st.just(Kill()): 1,
}
ACTIONS = st.sampled_from([action for action, times in _OFTEN.items() for _ in range(times)]).flatmap(lambda one: one)
PROGRAMS = st.sampled_from([1, 14, 14, 14]).flatmap(lambda length: st.lists(ACTIONS, min_size=length, max_size=16))
"""Long ones find more; short ones come first, so that a failing one becomes as short as it can."""


@judges(
    "resume.after-kill",
    "resume.lands",
    "resume.exact",
    "resume.one-step",
    "commit.sync",
    "commit.no-later-than",
    "commit.atomic-pointer",
    "commit.resave",
    "retention.keeps",
    "retention.drops",
    "retention.invalidate-first",
    "schedule.no-side-effects",
    "commit.failed-save",
    "commit.failed-flush",
    "resume.peek-agrees",
)
@pytest.mark.parametrize(("has_window", "is_watched"), [(False, False), (True, True)], ids=["interval", "window"])
def test_the_manager_does_what_the_model_allows(
    fresh_run: Callable[[], Scenario], mode: str, has_window: bool, is_watched: bool, pytestconfig: pytest.Config
) -> None:
    examples = pytestconfig.getoption("--forge-examples")
    giving_up = _GivingUp()

    @settings(
        max_examples=examples or USUAL_PROGRAMS,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate] if pytestconfig.getoption("--forge-no-shrinking") else [Phase.generate, Phase.shrink],
    )
    @given(PROGRAMS)
    def try_program(program: list[Action]) -> None:
        if giving_up.skips(program):
            return
        run = fresh_run()
        if run.judge.first is not None:
            return  # where a test goes on after a failure, one program that fails is enough
        try:
            Run(run, mode, has_window and run.has("window"), is_watched).perform(program)
        except (ClauseFailure, ManagerFault, Unsupported) as fault:
            clause = fault.failure.clause if isinstance(fault, ClauseFailure) else f"{run.judge.act}, {type(fault)}"
            if giving_up.failed(program, clause):
                raise

    (try_program if examples else seed(USUAL_SEED)(try_program))()


class _GivingUp:
    """Ends the search for a shorter program in time; those that are known to fail still do.

    A shorter one fails by the same clause, so that the verdict does not depend on the time.
    """

    def __init__(self) -> None:
        self._until: float | None = None
        self._clause = ""
        self._failing: list[list[Action]] = []

    def failed(self, program: list[Action], clause: str) -> bool:
        """Whether it failed as the first one did."""
        if self._until is None:
            self._until, self._clause = time.monotonic() + SHRINKING_S, clause
        if clause != self._clause:
            return False
        self._failing.append(program)
        return True

    def skips(self, program: list[Action]) -> bool:
        return self._until is not None and time.monotonic() > self._until and program not in self._failing


class Run:
    """One program: the manager's side in `_run`, the specification's in `_state`."""

    def __init__(self, run: Scenario, mode: str, has_window: bool, is_watched: bool) -> None:
        """`latest` is watched in some runs alone: in others a failure at every save would hide a later one."""
        self._run = run
        self._is_watched = is_watched and run.folder.layout.pointer is not None
        self._mode = mode
        self._window: Window | None = schedule.power2_window(*WINDOW) if has_window else None
        limit = run.limit(2) if run.has("retention") else 0
        has_pointer = run.folder.layout.pointer is not None
        self._state = allowed.State(keep_last_n=limit, background=mode != "sync", has_pointer=has_pointer)
        self._life: Life | None = None
        self._is_pointed = False
        """Whether `latest` has been seen."""
        self._begun: int | None = None
        """The step whose save was begun last."""
        self._saved: dict[int, list[dict[str, str]]] = {}
        self._resaved: int | None = None
        """The step that was saved last, if it stood already: what becomes of it then is another clause's business."""

    def perform(self, program: list[Action]) -> None:
        """Do it all; raises `ClauseFailure` at the first disagreement."""
        for action in program:
            match action:
                case Train(steps):
                    self._train(steps)
                case Save(after):
                    self._train_before_save(after)
                    self._save()
                case Wait():
                    self._wait()
                case Kill():
                    self._kill()
                case KillInSave(after, operation):
                    self._train_before_save(after)
                    self._kill_in_save(operation)
                case SaveOnFullDisk(after):
                    self._wait()
                    self._train_before_save(after)
                    self._save_on_full_disk()
                case Resume(keep_last_n):
                    self._kill()
                    self._resume(keep_last_n)
                case Rewind(which):
                    self._rewind(which)
        self._kill()
        self._resume(self._state.keep_last_n)

    # -- one action each --------------------------------------------------------

    def _alive(self) -> Life:
        if self._life is None:
            self._resume(self._state.keep_last_n)
        assert self._life is not None, "a resume leaves a living process"
        return self._life

    def _train(self, steps: int) -> None:
        life = self._alive()
        life.train_to(life.step + steps)

    def _train_before_save(self, steps: int) -> None:
        self._train(max(steps, self._alive().steps_before_save))

    def _wait(self) -> None:
        life = self._alive()
        life.wait()
        self._check_gate(life)
        self._agree(*allowed.after_wait(self._state))

    def _save_on_full_disk(self) -> None:
        """A save that gets through nevertheless is a save; one that does not raises once, and leaves all as it was."""
        life = self._alive()
        clause = "commit.failed-flush" if self._state.background else "commit.failed-save"
        if life.worker.gate is None or not self._run.judge.is_judged(clause):
            self._save()
            return
        self._note(life)
        life.gate.fail(lambda operation: operation.writes_data, errno.ENOSPC)
        self._run.judge.tell("the disk is full")
        raised: list[str] = []
        calls = [life.save, life.wait, life.wait]
        while calls and not (raised and self._run.implementation.traits.dies_of_failed_save):
            try:
                calls.pop(0)()
            except Raised as error:
                raised.append(str(error))
        has_failed = bool(life.gate.failed)
        life.gate.stop_failing()
        self._run.judge.tell("the disk has space again")
        self._check_gate(life)
        if raised and self._run.implementation.traits.dies_of_failed_save:
            self._kill()
        self._run.expect(
            clause,
            len(raised) <= 1 and (bool(raised) or life.step in self._run.folder.complete()),
            expected=f"the save of step {life.step} to raise once, or to be committed",
            seen=f"{raised or 'no error'}; {self._run.folder}",
            reaches=has_failed,
        )
        if raised:
            self._agree(*allowed.after_failure(self._state), blames=clause)
        else:
            state, bounds = allowed.after_save(self._state, life.step)
            self._agree(*(allowed.after_wait(state) if state.background else (state, bounds)))

    def _save(self) -> None:
        life = self._alive()
        self._note(life)
        life.save()
        if not self._state.background:
            life.finish_deletions()
        self._check_gate(life)
        self._agree(*allowed.after_save(self._state, life.step))

    def _kill(self) -> None:
        if self._life is not None:
            self._life.kill()
            self._life = None
            self._agree(*allowed.after_kill(self._state))

    def _kill_in_save(self, operation: int) -> None:
        life = self._alive()
        if life.worker.gate is None:
            self._save()
            return
        self._note(life)
        number = len(life.gate.log) + operation
        life.close_gate(at(number), saying=f"it is stopped at its file operation number {operation}")
        life.begin_save()
        if life.worker.replies_or_blocks() and not life.gate.held():
            life.worker.reply()
            life.open_gate()
            self._check_gate(life)
            self._agree(*allowed.after_save(self._state, life.step))
            return
        life.kill()
        self._life = None
        self._agree(*allowed.after_kill(self._state, saving=life.step))

    def _resume(self, keep_last_n: int) -> None:
        self._state = _limited(self._state, self._run.limit(keep_last_n) if self._run.has("retention") else 0)
        self._life = self._start()
        landing = self._may_land_on()
        peeked = self._ask("resume.peek-agrees", "peek", path=None) if self._run.has("peek") else None
        loaded = self._load(self._life)
        if self._run.has("peek"):
            self._run.expect(
                "resume.peek-agrees",
                peeked == loaded.step or (peeked is None and loaded.is_fresh),
                expected=f"peek to name the step that the load then lands on, {loaded.step}",
                seen=peeked,
                reaches=not loaded.is_fresh,
            )
        self._run.expect_landing("resume.lands", loaded, landing, reaches=landing != {None})
        clause = "commit.resave" if loaded.step == self._resaved else "resume.exact"
        self._expect_saved_state(clause, self._life, loaded.step)
        self._expect_due()

    def _may_land_on(self) -> frozenset[int | None]:
        """Without a pointer a manager goes by the number or by the time: after a rewind the last save may be lower."""
        complete = self._run.folder.complete()
        landing = resume.may_land_on(complete, self._run.folder.latest_or_newest())
        return landing if self._state.has_pointer else landing | (complete & {self._state.acknowledged, self._begun})

    def _load(self, life: Life) -> Loaded:
        """A fault in what is left of a step that was saved again is that clause's; below its level nothing is asked."""
        try:
            return life.load()
        except ManagerFault as fault:
            if self._resaved is None:
                raise
            expected = f"a resume to succeed after step {self._resaved} was saved again"
            self._run.expect("commit.resave", False, expected=expected, seen=str(fault))
            reject()

    def _rewind(self, which: int) -> None:
        stand = sorted(self._run.folder.complete())
        if not stand or not self._run.has("explicit"):
            return
        _, bounds = allowed.after_kill(self._state)
        self._kill()
        stand = sorted(self._run.folder.complete())
        step = stand[which % len(stand)]
        self._life = self._start()
        try:
            loaded = self._life.load(self._run.folder.of(step))
        except ManagerFault as fault:
            if step in bounds.must:
                raise
            expected = f"step {step}, which may be deleted, to load as long as it is complete"
            self._run.expect("retention.invalidate-first", False, expected=expected, seen=str(fault))
            reject()
        self._run.expect_landing("resume.one-step", loaded, {step}, "it was named")
        self._expect_saved_state("resume.one-step", self._life, step)

    def _start(self) -> Life:
        window: dict[str, Any] = {}
        if self._window is not None:
            window = {"window": {"start": WINDOW[0], "stop": WINDOW[1], "strategy": "power2"}}
        life = self._run.start(
            gated=self._run.can_gate(),
            seed=0,
            mode=self._mode,
            interval=INTERVAL,
            keep_last_n=self._state.keep_last_n,
            **window,
        )
        if life.worker.gate is not None and self._is_watched:
            life.gate.observe(self._watch_pointer)
        return life

    def _note(self, life: Life) -> None:
        """What is about to be saved: its state, whether it stands already, and whether it is a milestone."""
        self._begun = life.step
        self._resaved = life.step if life.step in self._state.complete else None
        if schedule.is_milestone(life.step, self._window):
            self._state = replace(self._state, milestones=self._state.milestones | {life.step})
        self._saved.setdefault(life.step, []).append(life.digest(*self._run.kinds()))

    def _expect_saved_state(self, clause: str, life: Life, step: int) -> None:
        """Step 0 can't be told from a fresh start, so nothing is asked of it; nor of a step that nobody saved."""
        if not step or step not in self._saved:
            return
        if self._run.has("rng", "dataloader"):
            self._run.expect_state(clause, life, step)
        seen = life.digest(*self._run.kinds())
        nearest = min(self._saved[step], key=lambda saved: sum(saved[name] != seen.get(name) for name in saved))
        self._run.expect_same(clause, seen, nearest, self._run.kinds(), f"a state that was saved at step {step}")

    # -- agreement --------------------------------------------------------------

    def _watch_pointer(self, operation: Operation) -> None:
        """Called before each file operation, on the gate's thread."""
        latest = self._run.folder.latest()
        self._run.expect(
            "commit.atomic-pointer",
            latest != DANGLING and (latest is not None or not self._is_pointed),
            expected="latest to stay once it is there, and to lead somewhere",
            seen=f"just before {operation}: {self._run.folder}",
            reaches=self._is_pointed,
        )
        self._is_pointed = self._is_pointed or latest is not None

    def _check_gate(self, life: Life) -> None:
        if life.worker.gate is not None:
            life.gate.check()

    def _ask(self, clause: str, question: str, **about: Any) -> Any:
        """The answer; that there is none is the fault of this clause."""
        try:
            return self._alive().worker.call(question, **about)
        except Unsupported as fault:
            self._run.judge.record_failure(
                clause, expected="every capability that is claimed to be there", seen=str(fault)
            )
            raise
        except ManagerFault as fault:
            self._run.judge.record_failure(clause, expected=f"an answer to {question}", seen=str(fault))
            raise

    def _expect_due(self) -> None:
        """What was saved, resumed or lost changes nothing about what is due."""
        if not self._run.has("schedule"):
            return
        asked = range(2 * WINDOW[1])
        expected = [step for step in asked if schedule.should_save(step, INTERVAL, self._window)]
        seen = self._ask("schedule.no-side-effects", "should_save", steps=list(asked))
        self._run.expect("schedule.no-side-effects", seen == expected, expected=f"{expected} to be due", seen=f"{seen}")

    def _agree(self, state: allowed.State, bounds: allowed.Bounds, blames: str = "") -> None:
        """A clause is reached where there is something to see: a checkpoint, a deletion, something that has to go.

        What lies outside the bounds is the fault of the clause about just that, unless there is one to blame.
        """
        look = self._run.folder.look()
        complete, latest, seen = look.complete, look.resume_point, str(look)
        returned = "commit.no-later-than" if state.background else "commit.sync"
        killed = "resume.after-kill" if self._resaved is None else "commit.resave"
        is_dead = self._life is None
        points, resume_point = allowed.resume_points(state, bounds), "latest" if state.has_pointer else "the newest"
        self._run.expect(
            blames or (killed if is_dead else returned),
            latest in points,
            expected=f"{resume_point} at one of {_shown(points)}",
            seen=seen,
            reaches=latest is not None,
        )
        self._run.expect(
            blames or ("commit.resave" if is_dead and self._resaved is not None else "retention.keeps"),
            bounds.must <= complete,
            expected=f"{_shown(bounds.must)} complete, with keep_last_n={state.keep_last_n}",
            seen=seen,
            reaches=not self._state.complete <= complete,
        )
        self._run.expect(
            blames or "retention.drops",
            complete <= bounds.may,
            expected=f"nothing but {_shown(bounds.may)}, with keep_last_n={state.keep_last_n}",
            seen=seen,
            reaches=not self._state.complete <= bounds.may,
        )
        self._run.expect(
            "commit.atomic-pointer",
            latest is None or latest in complete,
            expected="latest at a complete checkpoint",
            seen=seen,
            reaches=latest is not None,
        )
        self._state = allowed.adopt(state, complete, latest)


def _limited(state: allowed.State, keep_last_n: int) -> allowed.State:
    return replace(state, keep_last_n=keep_last_n)


def _shown(steps: Any) -> str:
    return ", ".join(map(str, sorted(steps, key=lambda s: -1 if s is None else s))) or "nothing"
