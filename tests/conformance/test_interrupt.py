"""Chapter interrupt: SIGINT comes in the middle of a call, the script catches it, and goes on with an emergency save.

The gate holds an operation, the signal is sent, and the operation is let go; so
the interrupt comes there and nowhere else.  What happens between operations is
reached by parts of the training that send the signal when the manager has them
hand out their state, or take one.
"""

import contextlib
import errno
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from forge_conformance.judging.judge import Unreached, judges
from forge_conformance.runs.folder import DANGLING
from forge_conformance.runs.life import Life
from forge_conformance.runs.process import ALL_PARTS, Raised
from forge_conformance.runs.scenario import Scenario
from forge_conformance.runs.state import ALL_KINDS
from forge_conformance.watch.gate import Operation, at, in_background, spread
from forge_spec import commit, interrupt

_PARTS = ("model", "optimizer", "scheduler", "dataloader")
_LARGE = 1 << 20
_LOOKS = 50
"""How often a call is looked at that stands still with nothing held, before it is taken to hang."""
_INSTANTS = 32
"""Of a save that takes more operations than this, so many are interrupted: each costs a save and a resume besides."""
_MANY = 3
"""Waits in a row that are interrupted, each followed by an emergency save."""


@judges("interrupt.nothing-lost", "interrupt.reaches-caller", "interrupt.inert")
def test_interrupted_at_any_file_operation_of_a_save_the_run_goes_on(run: Scenario, mode: str) -> None:
    life = _life(run, mode)
    seen = _watched(run, life)
    for number in _numbers(life):
        run.retell(_so_far(life))
        before, step = life.step, life.train_to_next()
        digest = life.digest()
        came = _Interrupted(run, life).at(number, "save", "wait")
        if not came.was_reached:
            continue
        came.expect_that_it_reaches_the_caller()
        run.expect_same(
            "interrupt.inert", life.digest(), digest, ALL_KINDS, f"the state around the save of step {step}"
        )
        possible = interrupt.may_come_back([interrupt.Save(before), interrupt.Save(step, was_interrupted=True)])
        run.expect(
            "interrupt.nothing-lost",
            run.folder.latest_or_newest() in possible,
            expected=f"the resume point at one of {sorted(map(str, possible))}",
            seen=str(run.folder),
        )
        _expect_emergency_save(run, life, seen)


@pytest.mark.parametrize("part", _PARTS)
@judges("interrupt.inert", "interrupt.nothing-lost", "interrupt.reaches-caller")
def test_interrupted_while_a_part_hands_out_its_state_the_run_goes_on(run: Scenario, mode: str, part: str) -> None:
    life = _life(run, mode)
    seen = _watched(run, life)
    step = life.train_to_next()
    digest = life.digest()
    life.interrupt_in(part, "state_dict")
    came = _Interrupted(run, life).by_itself("save", "wait")
    if not came.was_reached:
        raise Unreached(f"a save does not call {part}.state_dict()")
    came.expect_that_it_reaches_the_caller()
    run.expect_same("interrupt.inert", life.digest(), digest, ALL_KINDS, f"the state around the save of step {step}")
    _expect_emergency_save(run, life, seen)


@judges("interrupt.reaches-caller", needs=("sync",))
def test_interrupted_while_a_large_tensor_is_written_the_caller_hears_of_it(run: Scenario) -> None:
    """Large writes are where libraries look for signals by themselves, in the middle of their own code."""
    life = run.start(mode="sync", gated=True)
    life.worker.call("enlarge", size_bytes=_LARGE)
    run.judge.tell(f"the model has a tensor of {_LARGE:,} bytes besides")
    life.heed_interrupts()
    life.commit_at(1)
    writes = [number for number, one in enumerate(_operations(life), start=1) if one.writes_data]
    for number in writes[::2]:  # a large tensor takes three of them
        life.train_to_next()
        came = _Interrupted(run, life).at(number, "save", "wait")
        if came.was_reached:
            came.expect_that_it_reaches_the_caller()


# -- waiting for a flush ------------------------------------------------------------


@pytest.mark.parametrize("call", ["wait", "flush", "save", "load"])
@judges("interrupt.flush-is-found", "interrupt.reaches-caller", "interrupt.nothing-lost")
def test_a_flush_whose_wait_was_interrupted_is_waited_for_by_the_next_call(
    run: Scenario, flush_mode: str, call: str
) -> None:
    life = _life(run, flush_mode)
    for _ in range(_MANY):
        step = _interrupt_a_wait(run, life, call)
        life.train_to(max(step, life.step) + 1)
        life.gate.close(lambda operation: False)  # what comes next goes on; what is held stays so
        life.begin_save()
        if life.worker.replies_or_blocks() and life.gate.held():
            life.worker.reply()
            life.worker.begin("wait")
            life.worker.replies_or_blocks()
            run.judge.tell(f"the save of step {life.step} does not wait for the flush of step {step}")
        life.open_gate()
        life.worker.reply()
        life.wait()
        life.settle()
        run.expect(
            "interrupt.flush-is-found",
            run.folder.latest_or_newest() == life.step and life.step in run.folder.complete(),
            expected=f"step {life.step}, which was acknowledged, complete and the resume point, although the flush of "
            f"step {step} had gone on after an interrupted {call}",
            seen=str(run.folder),
        )
        again, loaded = run.resume(mode=flush_mode)
        run.expect_landing("interrupt.flush-is-found", loaded, {life.step}, "its save was acknowledged")
        run.expect_state("interrupt.nothing-lost", again, life.step)
        again.worker.kill()


@pytest.mark.parametrize("call", ["wait", "flush"])
@judges("interrupt.flush-is-found")
def test_a_flush_that_fails_after_an_interrupted_wait_is_told_of_once(
    run: Scenario, flush_mode: str, call: str
) -> None:
    life = _life(run, flush_mode)
    before = life.step
    _interrupt_a_wait(run, life, call)
    life.gate.fail(in_background, errno.ENOSPC)
    run.judge.tell("the disk is full from here on for whatever is done in the background")
    life.open_gate()
    raised = [error for name in (call, call) if (error := _error(life, name)) is not None]
    life.gate.stop_failing()
    if not life.gate.failed:
        raise Unreached("the flush did nothing more that could fail")
    run.expect(
        "interrupt.flush-is-found",
        len(raised) == 1 and "KeyboardInterrupt" not in raised[0],
        expected=f"the failure of the flush to be raised once, by the {call} after the interrupted one",
        seen=f"{raised or 'no error'}",
    )
    run.expect(
        "interrupt.flush-is-found",
        run.folder.latest_or_newest() == before,
        expected=f"the resume point still at step {before}",
        seen=str(run.folder),
    )


# -- loading ------------------------------------------------------------------------


@judges("interrupt.load-is-whole", "interrupt.reaches-caller")
def test_interrupted_at_any_file_that_a_load_opens_nothing_or_everything_has_changed(run: Scenario) -> None:
    run.start().commit_at(2)
    saved = run.timeline().digest(2)
    reached = False
    for number in itertools.count(1):
        life = _other(run, gated=True, reads=True)
        before = life.digest()
        came = _Interrupted(run, life).at(number, "load")
        if not came.was_reached:
            break
        reached = True
        came.expect_that_it_reaches_the_caller()
        _expect_whole(run, life, before, saved)
        life.worker.kill()
    if not reached:
        raise Unreached("a load opens no file on the thread that it was called on")


@pytest.mark.parametrize("part", _PARTS)
@judges("interrupt.load-is-whole", "interrupt.reaches-caller")
def test_interrupted_while_a_part_takes_its_state_nothing_or_everything_has_changed(run: Scenario, part: str) -> None:
    run.start().commit_at(2)
    saved = run.timeline().digest(2)
    life = _other(run)
    before = life.digest()
    life.interrupt_in(part, "load_state_dict")
    came = _Interrupted(run, life).by_itself("load")
    if not came.was_reached:
        raise Unreached(f"a load does not call {part}.load_state_dict()")
    came.expect_that_it_reaches_the_caller()
    _expect_whole(run, life, before, saved)
    life.load()
    run.expect_state("interrupt.load-is-whole", life, 2)


# -- handlers of the script ---------------------------------------------------------


@judges("interrupt.own-handler", "interrupt.nothing-lost")
def test_a_handler_that_only_sets_a_flag_runs_once_and_the_save_is_made(run: Scenario, mode: str) -> None:
    life = _life(run, mode, "note")
    for number in _numbers(life, 7):
        life.train_to_next()
        came = _Interrupted(run, life).at(number, "save", "wait")
        if came.was_reached and not came.is_late:
            came.expect_own_handler()
            run.expect(
                "interrupt.own-handler",
                not came.faults and run.folder.latest_or_newest() == life.step,
                expected=f"step {life.step} committed, as if nothing had come",
                seen=f"{came.said}; {run.folder}",
            )


@judges("interrupt.own-handler")
def test_a_handler_that_only_sets_a_flag_runs_in_a_wait_too(run: Scenario, flush_mode: str) -> None:
    life = _life(run, flush_mode, "note")
    life.train_to_next()
    _require_held(life)
    life.worker.begin("wait")
    life.worker.replies_or_blocks()
    life.interrupt()
    has_returned = life.worker.replies_or_blocks()
    life.open_gate()
    life.worker.reply()
    taken = life.worker.call("interrupts")
    run.expect(
        "interrupt.own-handler",
        taken["noted"] == 1 and taken["is_installed"] and not has_returned,
        expected="the script's handler to run once, and the wait to go on",
        seen=f"{taken}, and wait {'returned while the flush was held' if has_returned else 'went on'}",
    )


@judges("interrupt.saving-handler")
def test_a_handler_that_saves_in_the_middle_of_a_save_loses_nothing(run: Scenario, mode: str) -> None:
    life = _life(run, mode, "save")
    seen = _watched(run, life)
    for number in _numbers(life):
        run.retell(_so_far(life))
        life.train_to_next()
        came = _Interrupted(run, life).at(number, "save", "wait")
        if not came.was_reached:
            continue
        run.judge.tell(f"the save of the handler {came.refusals or 'was made'}; {came.said}")
        _expect_emergency_save(run, life, seen, "interrupt.saving-handler")


@judges("interrupt.saving-handler")
def test_a_handler_that_saves_while_the_run_waits_for_a_flush_loses_nothing(run: Scenario, flush_mode: str) -> None:
    life = _life(run, flush_mode, "save")
    seen = _watched(run, life)
    life.train_to_next()
    _require_held(life)
    life.worker.begin("wait")
    life.worker.replies_or_blocks()
    life.interrupt()
    life.worker.replies_or_blocks()
    life.open_gate()
    with contextlib.suppress(Raised):
        life.worker.reply()
    run.expect(
        "interrupt.saving-handler",
        run.folder.latest_or_newest() == life.step,
        expected=f"step {life.step} committed when the wait has returned, in which a handler had saved it again",
        seen=str(run.folder),
    )
    _expect_emergency_save(run, life, seen, "interrupt.saving-handler")


def _so_far(life: Life) -> str:
    return f"{life.name} is at step {life.step}; saves of it were interrupted, and the one after each was committed"


# -- bringing it about --------------------------------------------------------------


class _Interrupted:
    """Calls that are interrupted once, and what came of them."""

    def __init__(self, run: Scenario, life: Life) -> None:
        self._run = run
        self._life = life
        self.was_reached = False
        self.is_late = False
        """Whether the signal was delivered when the manager had returned already."""
        self.faults: list[Raised] = []
        self.refusals: list[str] = []

    def at(self, number: int, *calls: str) -> "_Interrupted":
        """Interrupt them at this file operation, counted from here."""
        life = self._life
        life.gate.close(at(len(life.gate.log) + number))
        for call in calls:
            _begin(life, call)
            if not self.was_reached and _comes_to_be_held(life):
                life.interrupt()
                self.was_reached = True
                life.gate.open()
            self._end(life)
        life.gate.open()
        return self._taken()

    def by_itself(self, *calls: str) -> "_Interrupted":
        """The process sends the signal to itself in the middle of them."""
        for call in calls:
            _begin(self._life, call)
            self._end(self._life)
        self._taken()
        self.was_reached = bool(self._count)
        return self

    def _end(self, life: Life) -> None:
        try:
            life.worker.reply()
        except Raised as fault:
            self.faults.append(fault)
            self._run.judge.tell(str(fault)[:300])

    def _taken(self) -> "_Interrupted":
        self._heard = self._life.worker.call("interrupts")
        self._count = self._heard["raised"] + self._heard["noted"] + self._heard["late"]
        self.is_late = bool(self._heard["late"])
        self.refusals = self._heard["refusals"]
        return self

    @property
    def said(self) -> str:
        """What the calls raised, in words."""
        return "; ".join(map(str, self.faults)) or "no error"

    def expect_that_it_reaches_the_caller(self) -> None:
        """As `KeyboardInterrupt`, unless the calls were over by the time that it was delivered."""
        is_right = all("KeyboardInterrupt" in fault.kinds for fault in self.faults)
        self._run.expect(
            "interrupt.reaches-caller",
            is_right and (bool(self.faults) or self.is_late),
            expected="KeyboardInterrupt from the interrupted call",
            seen=self.said,
            detail=self.faults[0].traceback if self.faults else "",
            reaches=not self.is_late,
        )

    def expect_own_handler(self) -> None:
        """It ran once and is still in its place."""
        self._run.expect(
            "interrupt.own-handler",
            self._heard["noted"] == 1 and self._heard["is_installed"],
            expected="the script's handler to run once, and to stay installed",
            seen=f"{self._heard}",
        )


def _life(run: Scenario, mode: str, how: str = "raise") -> Life:
    """A run that has committed step 1, whose file operations can be held."""
    life = run.start(mode=mode, keep_last_n=2, gated=True)
    life.heed_interrupts(how)
    life.commit_at(1)
    return life


def _other(run: Scenario, **options: Any) -> Life:
    """Another run, which has trained a step and is about to load."""
    life = run.start(seed=999, **options)
    life.train_to(1)
    life.heed_interrupts()
    return life


def _numbers(life: Life, most: int = _INSTANTS) -> list[int]:
    """The operations of a save to interrupt, counted from 1.

    Of those that are alike and follow one another the first and last, and of these `most`.
    """
    numbered = enumerate(_operations(life), start=1)
    bursts = [[number for number, _ in burst] for _, burst in itertools.groupby(numbered, key=lambda one: str(one[1]))]
    numbers = [number for burst in bursts for number in dict.fromkeys((burst[0], burst[-1]))]
    return [numbers[place - 1] for place in spread(len(numbers), most)]


def _operations(life: Life) -> list[Operation]:
    """What a save does in the folder."""
    begun = len(life.gate.log)
    life.train_to_next()
    life.commit()
    return life.gate.log[begun:]


def _comes_to_be_held(life: Life) -> bool:
    """Whether the running call stands still with an operation held; false if it has replied.

    A slow disk lets it stand still as well; then it is looked at again.
    """
    for _ in range(_LOOKS):
        if life.worker.replies_or_blocks():
            return False
        if life.gate.held():
            return True
    return False


def _begin(life: Life, call: str) -> None:
    life.require_usable()
    if call == "save":
        life.begin_save()
    elif call == "load":
        life.worker.begin("load", path=None, exclude=[], freeze_expected=None, parts=list(ALL_PARTS))
    else:
        life.worker.begin(call)


def _error(life: Life, call: str) -> str | None:
    """What this call raised."""
    known: dict[str, Callable[[], object]] = {"save": life.save, "wait": life.wait, "flush": life.flush}
    try:
        known[call]()
    except Raised as error:
        life.scenario.judge.tell(f"{error}"[:300])
        return str(error)
    return None


def _require_held(life: Life) -> None:
    if not life.save_held():
        raise Unreached("its flush could not be held with save returned and training free to go on; see commit.overlap")


def _interrupt_a_wait(run: Scenario, life: Life, call: str) -> int:
    """Interrupt a call that waits for a flush, which is still held when this returns; the step that is flushed."""
    step = life.train_to_next()
    _require_held(life)
    if call == "save":
        life.train_to(step + 1)
    life.scenario.judge.tell(f"{life.name} calls {call}, which waits for the flush of step {step}")
    _begin(life, call)
    if life.worker.replies_or_blocks() or not life.gate.held():
        life.gate.open()
        with contextlib.suppress(Raised):
            life.worker.reply()
        raise Unreached(f"{call} does not wait for the flush before it on this machine")
    life.interrupt()
    if not life.worker.replies_or_blocks():
        life.gate.open()
        with contextlib.suppress(Raised):
            life.worker.reply()
        raise Unreached(f"an interrupt does not end {call} before the flush has ended")
    try:
        life.worker.reply()
    except Raised as fault:
        life.scenario.judge.tell(str(fault)[:300])
        kinds = fault.kinds
    else:
        kinds = ()
    run.expect(
        "interrupt.reaches-caller" if "interrupt.reaches-caller" in run.judge.clauses else "interrupt.flush-is-found",
        "KeyboardInterrupt" in kinds,
        expected=f"KeyboardInterrupt from the interrupted {call}",
        seen=f"{kinds[:1]}" if kinds else f"{call} returned while the flush was held",
    )
    return step


# -- judging ------------------------------------------------------------------------


def _watched(run: Scenario, life: Life) -> list[int]:
    """The steps that `latest` names, at every operation from here on."""
    seen: list[int] = []
    life.gate.observe(lambda operation: seen.extend(_named(run, operation)))
    return seen


def _named(run: Scenario, _: Operation) -> Sequence[int]:
    latest = run.folder.latest() if run.folder.layout.pointer else None
    return () if latest is None or latest == DANGLING else (latest,)


def _expect_emergency_save(
    run: Scenario, life: Life, seen: Sequence[int], clause: str = "interrupt.nothing-lost"
) -> None:
    """The next save goes well, a fresh process lands on it, and `latest` has moved forward only."""
    step = life.train_to_next()
    raised = [error for call in ("save", "wait") if (error := _error(life, call)) is not None]
    life.gate.check()
    run.expect(clause, not raised, expected="the next save and wait to succeed", seen=raised)
    run.expect(
        clause,
        run.folder.latest_or_newest() == step and step in run.folder.complete(),
        expected=f"step {step} complete, and the resume point",
        seen=str(run.folder),
    )
    run.expect(
        clause,
        commit.is_monotone(seen),
        expected="latest to move forward only",
        seen=f"{list(dict.fromkeys(seen))}",
    )
    again, loaded = run.resume(mode=life.settings["mode"])
    run.expect_landing(clause, loaded, {step}, "it was saved and acknowledged after the interrupt")
    run.expect_state(clause, again, step)
    again.worker.kill()


def _expect_whole(run: Scenario, life: Life, before: dict[str, str], saved: dict[str, str]) -> None:
    """Nothing has changed, or all that is claimed is as it was saved."""
    after, kinds = life.digest(), set(run.kinds()) - {"counter"}  # the caller never got step and tokens
    wanted = {name: value for name, value in saved.items() if name.partition("/")[0] in kinds}
    same = [name for name in wanted if after.get(name) == before.get(name)]
    loaded = [name for name, value in wanted.items() if after.get(name) == value]
    run.expect(
        "interrupt.load-is-whole",
        interrupt.is_whole(_of(before), _of(after), _of(wanted)),
        expected="everything as it was before the load, or everything as it was saved",
        seen=f"{len(loaded)} items are as saved and {len(same)} as they were, of {len(wanted)}: as saved are "
        f"{', '.join(sorted(set(loaded) - set(same))[:6])}",
    )


def _of(digest: dict[str, str]) -> dict[str, str]:
    """Without gradients, which a load may leave or drop, and what the caller counts."""
    return {name: value for name, value in digest.items() if name.partition("/")[0] not in ("gradient", "counter")}
