"""Chapter writer: two real processes and one folder.

Their saves are interleaved by holding each at its file operations, never by
timing.  Two lives that save different states have different seeds, so that a
mixture shows; what a resume may come back with is known from their timelines.
"""

import contextlib
import datetime
import shutil
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from forge_conformance.judging.judge import Unreached, judges
from forge_conformance.runs.life import Life
from forge_conformance.runs.process import ManagerFault, Raised
from forge_conformance.runs.scenario import Scenario
from forge_conformance.watch.gate import Operation, at, spread
from forge_spec import writer

_FIRST, _SECOND = 4, 3
"""At how many operations of its save the first process is held, and at how many the second one meanwhile."""
_WRITES = 3
"""At how many operations that change no name a save is taken over."""
_ROUNDS = 8
Picture = dict[str, tuple[int, bytes]]


def _picture(run: Scenario) -> Picture:
    """All that a resume may look at: for each file of a checkpoint which one it is and what it holds; the pointer."""
    found: Picture = {}
    for entry in run.folder.entries().values():
        files = [entry] if entry.is_file() else sorted(path for path in entry.rglob("*") if path.is_file())
        found |= {str(path.relative_to(run.folder.path)): (path.stat().st_ino, path.read_bytes()) for path in files}
    if run.folder.layout.pointer is not None:
        found["(pointer)"] = (0, (run.folder.pointer_target() or "").encode())
    return found


def _changed(before: Picture, after: Picture) -> str:
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return f"changed: {', '.join(names[:6])}{' and more' if len(names) > 6 else ''}" if names else "nothing changed"


def _fault(life: Life) -> ManagerFault | None:
    """What came of a save that has begun, and of waiting for it."""
    try:
        if life.worker.pending:
            life.worker.reply()
        life.wait()
    except ManagerFault as fault:
        return fault
    return None


def _saved(life: Life, step: int) -> ManagerFault | None:
    """Train to a step, save there and wait; what was raised."""
    life.train_to(step)
    life.begin_save()
    return _fault(life)


def _side_by_side(run: Scenario) -> Scenario:
    run.lives_side_by_side = True
    return run


def _second(run: Scenario, gated: bool = False) -> Life:
    """Another process, which takes the folder over where a manager would refuse it otherwise."""
    settings: dict[str, Any] = {"take_over": True} if run.has("one-writer") else {}
    return run.start(gated=gated, seed=1, **settings)


def _expect_no_mixture(run: Scenario) -> None:
    """What a new process comes back with was saved by one of the two; an error is no mixture."""
    with run.start(seed=999) as reader:
        try:
            loaded = reader.load()
        except Raised as error:
            run.judge.tell(f"a resume is refused: {error}")
            return
        seen, kinds = reader.digest(), set(run.kinds())
    sources = {seed: run.timeline(seed).digest(loaded.step) for seed in (0, 1)}
    wanted = [name for name in sources[0] if name.partition("/")[0] in kinds and sources[0][name] != sources[1][name]]
    of = {seed: [name for name in wanted if seen.get(name) == sources[seed][name]] for seed in sources}
    run.expect(
        "writer.no-mixture",
        any(of[seed] == wanted for seed in of) or loaded.is_fresh,
        expected=f"the state of step {loaded.step} of one of the two runs ({len(wanted)} items tell them apart)",
        seen=f"{len(of[0])} items of the first run and {len(of[1])} of the second, among them "
        f"{', '.join(of[0][:3] + of[1][:3])}; {run.folder}",
        reaches=not loaded.is_fresh,
    )


def _operations_of_a_save(run: Scenario) -> list[Operation]:
    """What a process does that saves for the first time, in a folder with checkpoints."""
    with run.start(gated=True, seed=5) as life:
        life.commit_at(1)
    with run.start(gated=True, seed=5) as life:
        life.commit_at(2)
        return life.gate.log


def _hold_in_save(run: Scenario, life: Life, number: int) -> bool:
    """Begin to save, up to this operation; whether it is held there."""
    life.gate.close(at(len(life.gate.log) + number))
    life.begin_save()
    life.worker.replies_or_blocks()
    if not life.gate.wait_held(0.0 if life.worker.has_word() else run.patience_s):
        return False
    run.judge.tell(f"{life.name} is held, about to do {life.gate.held()[0]}")
    return True


@judges("writer.no-mixture")
def test_a_step_that_two_processes_save_at_once_is_the_one_of_either(run: Scenario) -> None:
    """The first is held in its save, then the second, and then the first goes on, and the second."""
    count, held = len(_operations_of_a_save(_side_by_side(run))), 0
    for step, first_at in enumerate(spread(count, _FIRST), start=3):
        for second_at in spread(count, _SECOND):
            shutil.rmtree(run.folder.path)
            run.folder.path.mkdir()
            run.retell(f"two processes save step {step}, each held once")
            with run.start(gated=True) as first, _second(run, gated=True) as second:
                first.train_to(step)
                second.train_to(step)
                held += _hold_in_save(run, first, first_at) and _hold_in_save(run, second, second_at)
                for life in (first, second):
                    life.open_gate()
                    run.judge.tell(f"{life.name}: {_fault(life) or 'its save has come to its end'}")
            _expect_no_mixture(run)
    if not held:
        raise Unreached("no two saves could be held at file operations at once")


@judges("writer.no-mixture")
def test_two_processes_that_race_leave_no_mixture(run: Scenario, any_mode: str) -> None:
    _side_by_side(run)
    both = [run.start(seed=seed, mode=any_mode) for seed in (0, 1)]
    for step in range(2, 2 + _ROUNDS):
        for life in both:
            life.train_to(step)
        for life in both:
            life.begin_save()
        for life in both:
            run.judge.tell(f"{life.name}: {_fault(life) or 'its save has come to its end'}")
        _expect_no_mixture(run)


@judges("writer.refused")
def test_a_second_process_that_saves_is_refused(run: Scenario, any_mode: str) -> None:
    first = _side_by_side(run).start(mode=any_mode)
    first.commit_at(2, 4)
    second = run.start(mode=any_mode, seed=1)
    before = _picture(run)
    for step in (4, 6):
        _expect_refused(run, _saved(second, step), before, "while the first one is idle")
    first.commit_at(6)
    run.expect("writer.refused", 6 in run.folder.complete(), expected="the first one to save on", seen=str(run.folder))


@judges("writer.says-who", "writer.refused")
def test_a_refusal_says_who_holds_the_folder_and_since_when(run: Scenario, mode: str) -> None:
    days = _days()
    first = _side_by_side(run).start(mode=mode)
    first.commit_at(2)
    before = _picture(run)
    fault = _saved(run.start(mode=mode, seed=1), 4)
    _expect_refused(run, fault, before, "while the first one is idle")
    message = fault.message if isinstance(fault, Raised) else ""
    unsaid = writer.not_named(message, str(run.folder.path), socket.gethostname(), first.worker.pid, days | _days())
    run.expect(
        "writer.says-who",
        not unsaid,
        expected="an error with the folder, the host, the process, and the day since when",
        seen=f"{message!r}, which lacks {', '.join(unsaid)}",
    )


@judges("writer.refused")
def test_a_second_process_is_refused_while_the_first_one_flushes(run: Scenario, flush_mode: str) -> None:
    first = _side_by_side(run).start(mode=flush_mode, gated=True)
    first.commit_at(2)
    second = run.start(mode=flush_mode, seed=1)
    first.train_to(4)
    if not first.save_held():
        raise Unreached("its flush could not be held with save returned and training free to go on; see commit.overlap")
    _expect_refused(run, _saved(second, 4), _picture(run), "while the first one flushes")
    first.open_gate()
    fault = _fault(first)
    run.expect(
        "writer.refused",
        fault is None and 4 in run.folder.complete(),
        expected="the first one to commit what it had in flight",
        seen=f"{fault or 'no error'}; {run.folder}",
    )


def _expect_refused(run: Scenario, fault: ManagerFault | None, before: Picture, when: str) -> None:
    after = _picture(run)
    run.expect(
        "writer.refused",
        isinstance(fault, Raised) and after == before,
        expected=f"the second process's save to raise {when}, and to change no checkpoint",
        seen=f"{fault or 'no error'}; {_changed(before, after)}; {run.folder}",
    )


def _days() -> set[str]:
    """Today, wherever the clock of the manager may stand."""
    now = datetime.datetime.now(datetime.UTC)
    return {(now + datetime.timedelta(hours=hours)).date().isoformat() for hours in (-14, 0, 14)}


@judges("writer.dead-holder")
def test_whoever_holds_the_folder_and_is_killed_locks_nobody_out(run: Scenario, mode: str) -> None:
    with _side_by_side(run).start(mode=mode) as first:
        first.commit_at(2)
    with run.start(mode=mode, seed=1) as following:
        _expect_saves(run, "writer.dead-holder", following, 4, "its holder is dead")
    for number in (1, 4, 16):
        step = 6 + 2 * number
        life = run.start(mode=mode, gated=True)
        life.train_to(step)
        _hold_in_save(run, life, number)
        life.kill()
        with run.start(mode=mode, seed=1) as following:
            _expect_saves(run, "writer.dead-holder", following, step, "its holder was killed in a save")


def _expect_saves(run: Scenario, clause: str, life: Life, step: int, because: str) -> None:
    fault = _saved(life, step)
    run.expect(
        clause,
        fault is None and step in run.folder.complete(),
        expected=f"a new process to save step {step}, since {because}",
        seen=f"{fault or 'no error'}; {run.folder}",
    )


@judges("writer.fork-holds-nothing")
def test_a_forked_child_does_not_hold_the_folder_for_its_dead_parent(run: Scenario, any_mode: str) -> None:
    life = _side_by_side(run).start(mode=any_mode)
    life.commit_at(2)
    child = life.worker.call("fork_sleeper")
    life.commit_at(4)
    life.worker.kill_alone()
    run.judge.tell(f"{life.name} is killed; a child that it had forked, process {child}, lives on")
    following = run.start(mode=any_mode, seed=1)
    if not Path(f"/proc/{child}").exists():
        raise Unreached("the child has ended as well")
    _expect_saves(run, "writer.fork-holds-nothing", following, 6, "only a child of its holder lives")


@judges("writer.readers")
def test_whoever_reads_is_never_refused(run: Scenario, mode: str) -> None:
    holder = _side_by_side(run).start(mode=mode, gated=True)
    holder.commit_at(2, 4)
    _expect_reads(run, mode, {4}, "while another process is idle that holds the folder")
    holder.train_to(6)
    if _hold_in_save(run, holder, 8):
        _expect_reads(run, mode, {4, 6}, "while another process is in the middle of a save")
    holder.open_gate()
    fault = _fault(holder)
    run.expect(
        "writer.readers",
        fault is None and 6 in run.folder.complete(),
        expected="the readers not to disturb the save",
        seen=f"{fault or 'no error'}; {run.folder}",
    )


def _expect_reads(run: Scenario, mode: str, steps: set[int], when: str) -> None:
    with run.start(mode=mode, seed=999) as reader:
        try:
            peeked = reader.worker.call("peek", path=None) if run.has("peek") else None
            seen: object = reader.load().step
        except Raised as error:
            peeked, seen = None, error
    run.expect(
        "writer.readers",
        seen in steps and (peeked is None or peeked in steps),
        expected=f"to load one of {sorted(steps)} {when}",
        seen=f"{seen}; a look beforehand said {peeked}" if run.has("peek") else str(seen),
    )


@judges("writer.same-process")
def test_managers_of_one_process_follow_one_another(run: Scenario, any_mode: str) -> None:
    life = run.start(mode=any_mode)
    life.commit_at(2)
    for step in (4, 6):
        _make_anew(life)
        fault = _saved(life, step)
        run.expect(
            "writer.same-process",
            fault is None and step in run.folder.complete(),
            expected=f"a new manager of the same process to save step {step}",
            seen=f"{fault or 'no error'}; {run.folder}",
        )


@judges("writer.same-process")
def test_a_new_manager_of_the_process_loses_nothing_that_the_old_one_has_in_flight(
    run: Scenario, flush_mode: str
) -> None:
    life = run.start(mode=flush_mode, gated=True)
    life.commit_at(2)
    life.train_to(4)
    if not life.save_held():
        raise Unreached("its flush could not be held with save returned and training free to go on; see commit.overlap")
    _make_anew(life)
    life.train_to(6)
    life.begin_save()
    life.worker.replies_or_blocks()
    life.open_gate()
    fault = _fault(life)
    run.expect(
        "writer.same-process",
        fault is None and {4, 6} <= run.folder.complete(),
        expected="steps 4 and 6, saved by two managers, both complete",
        seen=f"{fault or 'no error'}; {run.folder}",
    )


def _make_anew(life: Life) -> None:
    """Another training run and manager in the same process."""
    life.scenario.judge.tell(f"{life.name} makes a new manager for the folder")
    life.worker.open({"folder": str(life.scenario.folder.path), **life.settings}, 0)
    life.step = 0


@judges("writer.take-over", "writer.fenced")
def test_a_process_that_hangs_can_be_taken_over_and_is_refused_from_then_on(run: Scenario, any_mode: str) -> None:
    old = _side_by_side(run).start(mode=any_mode)
    old.commit_at(2, 4)
    with _stopped(run, old):
        new = run.start(mode=any_mode, seed=1, take_over=True)
        _expect_taken_over(run, new, 4)
        _expect_taken_over(run, new, 6)
    before = _picture(run)
    _expect_fenced(run, old, before, 6)
    new.kill()
    _expect_fenced(run, old, before, 8)
    with run.start(mode=any_mode, seed=999) as last:
        last.load()
        run.expect_state("writer.take-over", last, 6, seed=1)


@dataclass(frozen=True)
class _Case:
    """What was saved before, what the old process saves then, before step 6, and what the new one saves meanwhile."""

    base: tuple[int, ...]
    first: int
    meanwhile: tuple[int, ...]


_CASES = {
    "a new step": _Case((2,), 4, (2, 3)),  # the new one saves what the old one is about to delete
    "the same step": _Case((2, 4, 6), 5, (6, 7)),
}


@pytest.mark.parametrize("case", _CASES)
@judges("writer.fenced", "writer.take-over")
def test_stopped_at_any_operation_of_its_save_a_process_that_is_taken_over_changes_nothing_more(
    run: Scenario, mode: str, tmp_path: Path, case: str
) -> None:
    """The old process holds the folder, and saves step 6."""
    told, limit = _CASES[case], 2 if run.has("retention") else 0
    with _side_by_side(run).start(mode=mode, keep_last_n=0) as base:
        base.commit_at(*told.base)
    start, held = tmp_path / "start", 0
    run.folder.copy_to(start)
    with run.start(mode=mode, keep_last_n=limit, gated=True) as old:
        old.commit_at(told.first)
        before = len(old.gate.log)
        old.commit_at(6)
        operations = old.gate.log[before:]
    for number in _worth_stopping_at(operations):
        run.folder.become(start)
        run.retell(f"process 1 has committed {', '.join(map(str, told.base))}")
        with run.start(mode=mode, keep_last_n=limit, gated=True) as old:
            old.commit_at(told.first)
            old.train_to(6)
            at_first = _picture(run)
            if not _hold_in_save(run, old, number):
                continue
            held += 1
            is_committed = run.folder.latest_or_newest() == 6 and _picture(run) != at_first
            with _stopped(run, old), run.start(mode=mode, keep_last_n=limit, seed=1, take_over=True) as new:
                for step in told.meanwhile:
                    _expect_taken_over(run, new, step)
                picture = _picture(run)
            old.open_gate()
            _expect_unchanged(run, picture, _fault(old), raises=not is_committed)
            _expect_fenced(run, old, picture, 8)
        if run.has("pointer"):
            with run.start(mode=mode, seed=999) as last:
                last.load()
                run.expect_state("writer.fenced", last, told.meanwhile[-1], seed=1)
    if not held:
        raise Unreached("its saves could not be held at a file operation")


def _worth_stopping_at(operations: list[Operation]) -> list[int]:
    """All that change a name, but for files that are made or deleted one by one, and some of the rest."""
    rest = [number for number, one in enumerate(operations, start=1) if not _changes_names(one)]
    return sorted(
        {number for number, one in enumerate(operations, start=1) if _changes_names(one)}
        | {rest[place - 1] for place in spread(len(rest), _WRITES)}
    )


def _changes_names(operation: Operation) -> bool:
    return operation.name.startswith(("rename", "symlink", "link"))


@contextlib.contextmanager
def _stopped(run: Scenario, life: Life) -> Iterator[None]:
    run.judge.tell(f"{life.name} is stopped (SIGSTOP)")
    life.worker.strike(signal.SIGSTOP)
    try:
        yield
    finally:
        life.worker.strike(signal.SIGCONT)
    run.judge.tell(f"{life.name} goes on (SIGCONT)")


def _expect_taken_over(run: Scenario, new: Life, step: int) -> None:
    fault = _saved(new, step)
    run.expect(
        "writer.take-over",
        fault is None and step in run.folder.complete() and (not run.has("pointer") or run.folder.latest() == step),
        expected=f"step {step} to be saved by the process that takes the folder over",
        seen=f"{fault or 'no error'}; {run.folder}",
    )


def _expect_fenced(run: Scenario, old: Life, before: Picture, step: int) -> None:
    """A save of the old process raises and changes nothing."""
    _expect_unchanged(run, before, _saved(old, step), raises=True)


def _expect_unchanged(run: Scenario, before: Picture, fault: ManagerFault | None, raises: bool) -> None:
    after = _picture(run)
    run.expect(
        "writer.fenced",
        after == before and (isinstance(fault, Raised) or not raises),
        expected="no checkpoint and no pointer to change" + (", and the save to raise" if raises else ""),
        seen=f"{fault or 'no error'}; {_changed(before, after)}; {run.folder}",
    )
