"""Chapter commit: when a checkpoint counts, and what a reader or a kill may find before.

Flush timing is never guessed: the gate holds a background flush at its first
file operation, lets it go, fails it, or shows the folder at each operation.
"""

import errno
import itertools
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from forge_conformance.judging.judge import Unreached, judges
from forge_conformance.runs.folder import DANGLING
from forge_conformance.runs.life import Life
from forge_conformance.runs.process import Raised
from forge_conformance.runs.scenario import Scenario
from forge_conformance.runs.state import ALL_KINDS
from forge_conformance.watch.gate import Operation, Picks, in_background
from forge_spec import commit

_LAST_OPERATIONS = 10
"""Of a save, as many as change names rather than write."""
_LARGE_BYTES = 4 << 20
_MAY_BE_REFUSED = ("open", "creat", "mkdir", "rename", "link", "symlink", "truncate", "chmod")
"""What the names of system calls begin with for which a permission is needed."""
_QUESTIONS = {"peek": ("peek",), "should_save": ("schedule",), "milestones": ("window",)}
"""Calls that change nothing, with the capabilities that they take."""


@judges("commit.sync")
def test_when_a_synchronous_save_returns_it_is_committed(run: Scenario) -> None:
    life = run.start(mode="sync")
    for step in (0, 1, 3):
        life.save_at(step)
        run.expect(
            "commit.sync",
            step in run.folder.complete() and run.folder.latest_or_newest() == step,
            expected=f"step {step} complete, and latest at it, when save returned",
            seen=str(run.folder),
        )


@pytest.mark.parametrize("step", [3, 2])
@judges("commit.sync", "commit.no-later-than", needs=("pointer",))
def test_latest_names_the_save_that_was_committed_last_not_the_highest_step(
    run: Scenario, mode: str, step: int
) -> None:
    run.start(mode=mode).commit_at(2, 4)
    life = run.start(mode=mode, seed=1)
    life.save_at(step)
    life.wait()
    run.expect(
        "commit.sync" if mode == "sync" else "commit.no-later-than",
        run.folder.latest() == step,
        expected=f"latest at step {step}, which another run has saved where the steps 2 and 4 stood",
        seen=str(run.folder),
    )


@judges("commit.overlap")
def test_an_asynchronous_save_returns_while_its_flush_goes_on(run: Scenario, flush_mode: str) -> None:
    life = run.start(mode=flush_mode, gated=True)
    life.train_to(2)
    is_held = life.save_held()
    run.expect(
        "commit.overlap",
        is_held and 2 not in run.folder.complete(),
        expected="save to return while the files of step 2 are still to be written",
        seen=f"{'a held flush' if is_held else 'no flush in the background'}; {run.folder}",
    )


@judges("commit.deferred", "commit.atomic-pointer")
def test_at_every_file_operation_latest_is_at_a_complete_checkpoint(run: Scenario, flush_mode: str) -> None:
    life = run.start(mode=flush_mode, gated=True)
    seen: list[int] = []
    life.gate.observe(lambda operation: _watch_pointer(run, operation, seen))
    life.save_at(2, 4, 6)
    life.wait()
    life.gate.check()
    run.expect("commit.deferred", run.folder.latest() == 6, expected="latest at 6 in the end", seen=str(run.folder))


@judges("commit.atomic-pointer", needs=("sync",))
def test_at_every_file_operation_of_a_synchronous_run_latest_is_complete(run: Scenario) -> None:
    life = run.start(mode="sync", gated=True)
    seen: list[int] = []
    life.gate.observe(lambda operation: _watch_pointer(run, operation, seen, clause="commit.atomic-pointer"))
    life.save_at(2, 4, 6)
    life.gate.check()
    run.expect(
        "commit.atomic-pointer", run.folder.latest() == 6, expected="latest at 6 in the end", seen=str(run.folder)
    )


@pytest.mark.parametrize("step", [3, 1])
@judges("commit.atomic-pointer", needs=("pointer",))
def test_while_latest_moves_to_a_lower_step_it_is_at_a_complete_checkpoint(run: Scenario, mode: str, step: int) -> None:
    run.start(mode=mode).commit_at(2, 4)
    life = run.start(mode=mode, seed=1, gated=True)
    seen = [4]
    life.gate.observe(lambda operation: _watch_pointer(run, operation, seen, clause="commit.atomic-pointer"))
    life.save_at(step, 5)
    life.wait()
    life.gate.check()
    run.expect(
        "commit.atomic-pointer",
        run.folder.latest() == 5,
        expected=f"latest at 5 in the end, after step {step} was saved where 2 and 4 stood",
        seen=str(run.folder),
    )


@judges("commit.monotone")
def test_in_a_run_that_moves_forward_latest_never_moves_back(run: Scenario, mode: str) -> None:
    life = run.start(mode=mode, keep_last_n=2, gated=True)
    seen: list[int] = []
    life.gate.observe(lambda operation: seen.extend(_steps_named(run)))
    life.save_at(2, 9, 10, 11)
    life.wait()
    seen.extend(_steps_named(run))
    run.expect(
        "commit.monotone",
        commit.is_monotone(seen) and seen[-1:] == [11] and len(set(seen)) > 1,
        expected="latest to move forward only, and to arrive at step 11",
        seen=f"{list(dict.fromkeys(seen))}",
    )


@judges("commit.deferred")
def test_latest_does_not_name_a_save_whose_flush_is_held(run: Scenario, flush_mode: str) -> None:
    life = run.start(mode=flush_mode, gated=True)
    life.commit_at(2)
    life.train_to(4)
    _require_overlap(run, life.save_held())
    run.expect(
        "commit.deferred",
        run.folder.latest_or_newest() == 2,
        expected="latest at step 2 while the flush of step 4 is held",
        seen=str(run.folder),
    )
    life.open_gate()
    life.wait()
    run.expect(
        "commit.deferred", run.folder.latest_or_newest() == 4, expected="latest at 4 in the end", seen=str(run.folder)
    )


@judges("commit.no-later-than")
def test_a_save_is_committed_by_the_next_save_wait_or_flush(run: Scenario, flush_mode: str) -> None:
    life = run.start(mode=flush_mode)
    calls: list[commit.Call] = []
    for action in ("save", "save", "wait", "save", "flush", "save", "save", "flush"):
        if action == "save":
            life.save_at(life.step + 2)
            calls.append(commit.Save(life.step))
        else:
            life.wait() if action == "wait" else life.flush()
            calls.append(commit.Wait())
        must = commit.must_be_committed(calls, background=True)
        latest = commit.may_be_latest(calls, background=True)
        run.expect(
            "commit.no-later-than",
            must <= run.folder.complete() and (not must or run.folder.latest_or_newest() in latest),
            expected=f"{sorted(must)} committed when {action} returns, latest at one of {sorted(map(str, latest))}",
            seen=str(run.folder),
        )


@judges("commit.one-in-flight")
def test_a_new_save_awaits_the_flush_before_it(run: Scenario, flush_mode: str) -> None:
    life = run.start(mode=flush_mode, gated=True)
    life.train_to(2)
    _require_overlap(run, life.save_held())
    life.train_to(4)
    life.begin_save()
    has_returned = life.worker.replies_or_blocks()
    run.expect(
        "commit.one-in-flight",
        not has_returned and 4 not in run.folder.complete(),
        expected="save of step 4 to wait while the flush of step 2 is held",
        seen=f"save has {'returned' if has_returned else 'not returned'}; {run.folder}",
    )
    life.open_gate()
    life.worker.reply()
    life.wait()
    run.expect(
        "commit.one-in-flight",
        {2, 4} <= run.folder.complete(),
        expected="both complete in the end",
        seen=str(run.folder),
    )


@judges("commit.atomic-pointer")
def test_a_reader_polling_latest_never_finds_it_missing_or_dangling(run: Scenario, any_mode: str) -> None:
    life = run.start(mode=any_mode, keep_last_n=2)
    life.commit_at(1)
    with _Poller(run) as poller:
        life.save_at(*range(2, 12))
        life.wait()
    run.expect(
        "commit.atomic-pointer",
        not poller.bad,
        expected=f"latest at a checkpoint in each of {poller.looks} looks during ten saves",
        seen=f"{poller.bad[:3]}",
    )


@judges("commit.snapshot")
def test_changes_after_save_has_returned_do_not_reach_the_disk(run: Scenario, flush_mode: str) -> None:
    run.start(mode=flush_mode).commit_at(2)
    control, _ = run.resume()
    returns = run.items_that_return(control, 2)
    life = run.start(mode=flush_mode, gated=True)
    life.train_to(3)
    _require_overlap(run, life.save_held())
    life.train_to(5)
    life.worker.call("scramble")
    run.judge.tell("parameters, buffers and moments are overwritten in place while the flush is held")
    life.open_gate()
    life.wait()
    again, loaded = run.resume()
    run.expect_landing("commit.snapshot", loaded, {3})
    run.expect_state("commit.snapshot", again, 3, only=returns)


@judges("commit.snapshot", needs=("train-state",))
def test_what_is_large_and_what_is_in_the_extra_is_of_the_time_of_the_call(run: Scenario, flush_mode: str) -> None:
    """Averages of weights change at every step; large tensors are what a manager would rather not copy."""
    life = run.start(mode=flush_mode, gated=True)
    life.worker.call("enlarge", size_bytes=_LARGE_BYTES)
    life.worker.call("average")
    run.judge.tell(
        f"its model has a tensor of {_LARGE_BYTES:,} bytes; it hands over an average of its state in the extra"
    )
    life.train_to(3)
    large = life.digest("buffer")["buffer/large"]
    _require_overlap(run, life.save_held())
    handed = life.worker.call("handed_over")
    life.worker.call("scramble")
    run.judge.tell("both are overwritten in place while the flush is held")
    life.open_gate()
    life.wait()
    again = run.start(mode=flush_mode, seed=999)
    again.worker.call("enlarge", size_bytes=_LARGE_BYTES)
    loaded = again.load()
    run.expect_landing("commit.snapshot", loaded, {3})
    seen = again.digest("buffer")["buffer/large"]
    run.expect("commit.snapshot", seen == large, expected="the large tensor as it was", seen="other values")
    run.expect("commit.snapshot", repr(loaded.extra) == handed, expected=handed, seen=f"{loaded.extra}")


@judges("commit.inert")
def test_a_run_that_saves_is_the_run_that_does_not(run: Scenario, any_mode: str) -> None:
    life = run.start(mode=any_mode)
    for step in (0, 1, 4):
        losses = life.train_to(step)
        _expect_losses(run, losses, until=step)
        before = life.digest()
        life.save()
        run.expect_same("commit.inert", life.digest(), before, ALL_KINDS, f"the state around the save of step {step}")
        life.wait()
        run.expect_same("commit.inert", life.digest(), before, ALL_KINDS, f"the state after the wait at step {step}")
    _expect_losses(run, life.train_to(10), until=10)


@judges("commit.inert")
def test_saving_a_step_again_leaves_the_run_as_it_was_too(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(2, 4)
    life = run.start(mode=mode)
    for step in (2, 4):
        life.train_to(step)
        before = life.digest()
        if _errors(life, "save", "wait"):
            raise Unreached(f"step {step}, which stands already, is not saved again; see commit.resave")
        run.expect_same("commit.inert", life.digest(), before, ALL_KINDS, f"the state around step {step}, saved again")
    _expect_losses(run, life.train_to(6), until=6)


@judges("commit.whole", needs=("layout",))
@pytest.mark.parametrize("missing", [".metadata", "train_state.pt", "metadata.json"])
def test_a_checkpoint_that_lacks_one_of_its_parts_is_not_resumed(run: Scenario, mode: str, missing: str) -> None:
    run.start(mode=mode).commit_at(2, 4)
    (run.folder.of(4) / missing).unlink()
    run.judge.tell(f"{missing} of step 4 is gone, as if a kill had come before it was written")
    life, loaded = run.resume(mode=mode)
    run.expect_landing("commit.whole", loaded, {2}, f"step 4 has no {missing}")
    run.expect_state("commit.whole", life, 2)


@judges("commit.whole", "resume.lands", "resume.exact", "resume.continue")
def test_killed_at_any_file_operation_of_a_save_the_run_resumes_and_saves_on(
    run: Scenario, mode: str, tmp_path: Path
) -> None:
    limit = run.limit(1)
    life = run.start(mode=mode, keep_last_n=limit, gated=True)
    life.commit_at(2)
    disks = Disks(run, tmp_path)
    life.gate.observe(disks.take)
    life.save_at(4)
    life.wait()
    life.gate.check()
    life.kill()
    for disk, operation in disks.all():
        run.folder.become(disk)
        run.retell(f"process 1 commits step 2, saves step 4 and is killed just before {operation}")
        again, loaded = run.resume(mode=mode, keep_last_n=limit)
        run.expect_landing("commit.whole", loaded, {2, 4}, "2 was committed, 4 was being saved")
        run.expect_state("resume.exact", again, loaded.step)
        again.commit_at(4) if loaded.step == 2 else again.commit_at(5)
        again.commit_at(6)
        saved = again.digest()
        again.kill()
        last, landed = run.resume(mode=mode)
        run.expect_landing("resume.continue", landed, {6}, "the run went on after the kill and committed 6")
        run.expect_same("resume.lands", last.digest(), saved, run.kinds(), "the state that was saved at step 6")
        last.kill()


@judges("commit.whole", "resume.exact", needs=("layout",))
def test_a_run_killed_for_real_in_mid_flush_resumes(run: Scenario, flush_mode: str) -> None:
    life = run.start(mode=flush_mode, gated=True)
    life.commit_at(2)
    life.train_to(4)
    _require_overlap(run, life.save_held())
    for _ in range(3):
        life.gate.step()
        life.gate.wait_held(run.patience_s)
    life.kill()
    again, loaded = run.resume(mode=flush_mode)
    run.expect_landing("commit.whole", loaded, {2, 4} if 4 in run.folder.complete() else {2})
    run.expect_state("resume.exact", again, loaded.step)


@judges("commit.before-dispatch")
def test_a_durable_save_is_committed_even_if_the_next_dispatch_fails(run: Scenario, flush_mode: str) -> None:
    life = run.start(mode=flush_mode, gated=True)
    life.commit_at(2)
    life.train_to(4)
    life.save()
    life.train_to(6)
    name = run.folder.layout.name.format(step=6)
    named = re.compile(
        rf"(?<![0-9A-Za-z]){re.escape(name)}(?![0-9A-Za-z])"
    )  # and no file of step 4 with a 6 in its hash
    life.gate.fail(lambda operation: any(named.search(path.split("/")[0]) for path in operation.paths), errno.ENOSPC)
    run.judge.tell(f"the disk is full for everything named {name}")
    raised = _errors(life, "save", "wait")
    life.gate.stop_failing()
    if not life.gate.failed:
        raise Unreached("no operation of the failing save named its step")
    run.expect(
        "commit.before-dispatch",
        run.folder.latest_or_newest() == 4 and bool(raised),
        expected="the failed save of step 6 to raise, and step 4, flushed before, to be committed",
        seen=f"{raised or 'no error'}; {run.folder}",
    )


@pytest.mark.parametrize("surfaces_in", ["save", "wait", "flush"])
@judges("commit.failed-flush")
def test_a_failed_flush_surfaces_once_and_is_never_committed(run: Scenario, flush_mode: str, surfaces_in: str) -> None:
    life = _with_failed_flush(run, flush_mode)
    life.train_to(6)
    raised = _errors(life, surfaces_in)
    run.expect(
        "commit.failed-flush",
        bool(raised),
        expected=f"the failed flush to surface in the next {surfaces_in}",
        seen="no error",
    )
    run.expect(
        "commit.failed-flush",
        run.folder.latest_or_newest() == 2 and 4 not in run.folder.complete(),
        expected="latest still at step 2, and no complete step 4",
        seen=str(run.folder),
    )
    again = _errors(life, "wait", "flush")
    run.expect("commit.failed-flush", not again, expected="the error to surface exactly once", seen=f"again: {again}")
    life.train_to(8)
    life.save()
    life.wait()
    _, loaded = run.resume(mode=flush_mode)
    run.expect_landing("commit.failed-flush", loaded, {8}, "the next save works")


@judges("commit.failed-flush")
def test_a_flush_that_fails_again_is_told_of_again(run: Scenario, flush_mode: str) -> None:
    life = _with_failed_flush(run, flush_mode)
    _errors(life, "wait")
    life.train_to(6)
    _fail_flush(run, life)
    raised = _errors(life, "wait", "wait")
    run.expect(
        "commit.failed-flush",
        len(raised) == 1,
        expected="the second flush that fails to surface once, as the first did",
        seen=f"{raised or 'no error'}",
    )
    run.expect(
        "commit.failed-flush",
        run.folder.latest_or_newest() == 2,
        expected="the resume point still at step 2, since neither of the two was committed",
        seen=str(run.folder),
    )


@judges("commit.failed-flush")
def test_whoever_only_asks_does_not_hear_of_a_failed_flush_and_hides_nothing(run: Scenario, flush_mode: str) -> None:
    asked = [question for question, needs in _QUESTIONS.items() if run.has(*needs)]
    if not asked:
        raise Unreached(f"none of {', '.join(_QUESTIONS)} can be asked")
    life = _with_failed_flush(run, flush_mode)
    told = _errors(life, *asked)
    run.expect(
        "commit.failed-flush",
        not told,
        expected=f"no error from {', '.join(asked)}, which saves nothing and waits for nothing",
        seen=f"{told}",
        reaches=False,
    )
    raised = _errors(life, "wait", "flush")
    run.expect(
        "commit.failed-flush",
        len(raised) == 1,
        expected=f"the failed flush to surface once, in the wait after {', '.join(asked)}",
        seen=f"{raised or 'no error'}",
    )


@judges("commit.failed-flush")
def test_a_load_does_not_hide_a_failed_flush(run: Scenario, flush_mode: str) -> None:
    life = _with_failed_flush(run, flush_mode)
    in_load, raised = _errors(life, "load"), _errors(life, "wait", "flush")
    run.expect(
        "commit.failed-flush",
        len(raised) == 1 or (bool(in_load) and not raised),
        expected="the failed flush to surface once, although the run has gone back to step 2 in between",
        seen=f"{raised or 'no error'}",
    )


@judges("commit.failed-save")
def test_a_synchronous_save_that_fails_says_so_and_the_next_one_works(run: Scenario) -> None:
    life = run.start(mode="sync", gated=True)
    life.commit_at(2)
    life.train_to(4)
    life.gate.fail(lambda operation: operation.writes_data, errno.ENOSPC)
    run.judge.tell("the disk is full")
    raised = _errors(life, "save")
    life.gate.stop_failing()
    if not raised and 4 in run.folder.complete():
        raise Unreached("the save writes its files elsewhere and moves them here, so a full folder did not stop it")
    run.expect("commit.failed-save", bool(raised), expected="a save on a full disk to raise", seen="no error")
    run.expect(
        "commit.failed-save",
        run.folder.latest_or_newest() == 2 and 4 not in run.folder.complete(),
        expected="latest still at step 2, and no complete step 4",
        seen=str(run.folder),
    )
    life.commit_at(6)
    _, loaded = run.resume(mode="sync")
    run.expect_landing("commit.failed-save", loaded, {6}, "the disk has space again and the next save works")


@judges("commit.failed-save")
def test_a_permission_that_is_refused_is_a_failure_like_any_other(run: Scenario) -> None:
    """For each kind of call that a save makes, the first one of it; by one errno and by the other in turn."""
    life = run.start(mode="sync", gated=True)
    life.commit_at(1)
    begun = len(life.gate.log)
    life.commit_at(2)
    made = [operation for operation in life.gate.log[begun:] if operation.writes]
    calls = dict.fromkeys(one.name for one in made if one.name.startswith(_MAY_BE_REFUSED))
    for call, number in zip(calls, itertools.cycle([errno.EACCES, errno.EPERM])):
        before = life.step
        life.train_to(before + 1)
        life.gate.fail(_first(call), number)
        run.judge.tell(f"the first {call} of the save is refused with {errno.errorcode[number]}")
        raised = _errors(life, "save")
        life.gate.stop_failing()
        stands = life.step in run.folder.complete() and run.folder.latest_or_newest() == life.step
        run.expect(
            "commit.failed-save",
            stands or (bool(raised) and run.folder.latest_or_newest() == before),
            expected=f"step {life.step} committed all the same, or an error and latest still at {before}",
            seen=f"{raised or 'no error'}; {run.folder}",
        )
        life.commit_at(life.step + 1)


@judges("commit.failed-save")
def test_a_synchronous_save_that_fails_near_its_end_leaves_the_resume_point(run: Scenario) -> None:
    """By then names have changed: the checkpoint has its own, or `latest` names it already."""
    life = run.start(mode="sync", gated=True)
    life.commit_at(1)
    heard: list[str] = []
    for back in range(_LAST_OPERATIONS):
        life.commit_at(life.step + 1)  # clears up after the failure before, so that the next two saves do the same
        begun = len(life.gate.log)
        life.commit_at(life.step + 1)
        before, ended = life.step, len(life.gate.log)
        if back == ended - begun:
            break
        life.train_to(before + 1)
        life.gate.fail(_number(2 * ended - begun - back), errno.EIO)
        run.judge.tell(f"of the {ended - begun} operations of a save, number {ended - begun - back} fails with EIO")
        raised = _errors(life, "save")
        failed = ", ".join(map(str, life.gate.failed))
        life.gate.stop_failing()
        if raised:
            heard += raised
            again, loaded = run.resume(mode="sync")
            run.expect_landing("commit.failed-save", loaded, {before}, f"the save after it raised when {failed} failed")
            again.kill()
    if not heard:
        raise Unreached("no save fails because one of its last operations does")


@judges("commit.resave")
def test_saving_an_existing_step_again_never_mixes_two_and_never_loses_it(
    run: Scenario, mode: str, tmp_path: Path
) -> None:
    run.start(mode=mode).commit_at(2, 4)
    stray = run.folder.of(4) / "__7_0.distcp" if run.folder.layout.is_dir else None
    if stray is not None:
        stray.write_bytes(b"a shard of an earlier, larger world")
        run.judge.tell(f"a stray shard, {stray.name}, is put into step 4, as a run with more ranks leaves it")
    life = run.start(mode=mode, seed=1, gated=True)
    disks = Disks(run, tmp_path)
    life.train_to(4)
    life.gate.observe(disks.take)
    life.save()
    life.wait()
    life.gate.check()
    disks.take(None)
    life.kill()
    for disk, operation in disks.all():
        run.folder.become(disk)
        over = f"step 4{f' and the stray {stray.name} in it' if stray else ''}"
        run.retell(f"process 1, another run, saves its step 4 over {over}, and is killed just before {operation}")
        again, loaded = run.resume(mode=mode)
        run.expect_landing("commit.resave", loaded, {4}, "step 4 could be resumed before it was saved again")
        _expect_one_of_two(run, again, 4)
        again.kill()
    is_left = stray is not None and stray.exists()
    run.expect("commit.resave", not is_left, expected="no file of the earlier save in it", seen=f"{run.folder.files()}")


@judges("commit.resave", "commit.atomic-pointer", needs=("pointer",))
def test_while_a_step_is_saved_again_latest_never_leads_nowhere(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(2, 4)
    life = run.start(mode=mode, seed=1, gated=True)
    life.train_to(4)
    life.gate.observe(lambda operation: _watch_target(run, 4, operation))
    life.commit()
    life.gate.check()


@judges("commit.resave")
def test_the_second_save_of_a_step_is_the_one_that_counts(run: Scenario, mode: str) -> None:
    life = run.start(mode=mode)
    life.commit_at(2)
    other = run.start(mode=mode, seed=1)
    other.commit_at(2)
    again, loaded = run.resume(mode=mode)
    run.expect_landing("commit.resave", loaded, {2})
    run.expect_state("commit.resave", again, 2, seed=1)


@judges("commit.wait-idempotent")
def test_waiting_with_nothing_pending_does_nothing(run: Scenario, any_mode: str) -> None:
    life = run.start(mode=any_mode)
    for _ in range(2):
        life.wait()
        life.flush()
    run.expect("commit.wait-idempotent", not run.folder.steps(), expected="an empty folder", seen=str(run.folder))
    life.commit_at(2)
    files = run.folder.files()
    for _ in range(2):
        life.wait()
        life.flush()
    run.expect("commit.wait-idempotent", run.folder.files() == files, expected=f"{files}", seen=f"{run.folder.files()}")


@judges("commit.exit")
def test_a_normal_exit_without_wait_ends_and_loses_at_most_the_last_step(run: Scenario, flush_mode: str) -> None:
    life = run.start(mode=flush_mode, gated=True)
    life.commit_at(2)
    life.train_to(4)
    _require_overlap(run, life.save_held())
    life.worker.begin("exit")
    life.worker.reply()
    life.worker.ends_or_blocks()
    run.judge.tell("the script ends while the flush of step 4 is held; then the flush is let go")
    life.gate.open()
    status = life.worker.await_end()
    run.expect("commit.exit", status == 0, expected="exit status 0", seen=f"{status}: {life.worker.output()[-500:]}")
    again, loaded = run.resume(mode=flush_mode)
    run.expect_landing("commit.exit", loaded, {2, 4}, "at most the save in flight may be lost")
    run.expect_state("commit.exit", again, loaded.step)


@judges("commit.exit")
def test_a_normal_exit_does_not_hide_a_failed_flush(run: Scenario, flush_mode: str) -> None:
    life = _with_failing_flush(run, flush_mode)
    heard, printed = life.warnings, len(life.worker.output())
    status = life.exit()
    said = f"{heard}\n{life.warnings}\n{life.worker.output()[printed:]}".strip()
    run.expect(
        "commit.exit",
        status != 0 or re.search("error|exception|fail|no space", said, re.IGNORECASE) is not None,
        expected="an exit status other than 0, or a message about it, when the last flush has failed",
        seen=f"status {status} and {repr(said) if said else 'no message'}",
    )


# -- looking ------------------------------------------------------------------------


class Disks:
    """Copies of the folder as a kill at each file operation would leave it.

    Equal ones are kept once, and of a burst of writes to one file the first
    and the last: what lies between is a file cut short at another place.
    """

    def __init__(self, run: Scenario, directory: Path) -> None:
        self._run = run
        self._directory = directory / "disks"
        self._directory.mkdir()
        self._taken: list[tuple[object, str]] = []
        self._burst: list[tuple[str, ...]] = []

    def take(self, operation: Operation | None) -> None:
        """Copy the folder if it looks different from all copies so far."""
        look, now = tuple(self._look()), self._place(operation)
        if look in [taken for taken, _ in self._taken]:
            return
        if len(self._burst) > 2 and now == self._burst[-2]:
            shutil.rmtree(self._directory / str(len(self._taken) - 1))
            self._taken.pop()
        self._run.folder.copy_to(self._directory / str(len(self._taken)))
        self._taken.append((look, str(operation or "its end")))

    def _place(self, operation: Operation | None) -> tuple[str, ...]:
        """The file that is written to; the burst is as long as it stays the same."""
        is_write = operation is not None and operation.writes_data
        place = operation.paths if operation is not None and is_write else ()
        self._burst = [*self._burst, place] if place and self._burst[-1:] in ([], [place]) else [place][: bool(place)]
        return place

    def _look(self) -> list[object]:
        folder = self._run.folder.path
        found: list[object] = []
        for name in self._run.folder.files():
            path = folder / name
            try:
                found.append((name, path.readlink() if path.is_symlink() else path.read_bytes()))
            except FileNotFoundError:
                continue
        return found

    def all(self) -> list[tuple[Path, str]]:
        """Each distinct disk with the operation that had not happened yet."""
        return [(self._directory / str(number), operation) for number, (_, operation) in enumerate(self._taken)]


class _Poller:
    """Reads `latest` as fast as it can, in a thread of the suite."""

    def __init__(self, run: Scenario) -> None:
        self._run = run
        self._stop = threading.Event()
        self._has_looked = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self.looks = 0
        self.bad: list[str] = []
        self._error: Exception | None = None

    def _poll(self) -> None:
        try:
            while not self._stop.is_set():
                self._look()
                self._has_looked.set()
        except Exception as error:  # raised where the poller is left
            self._error = error
            self._has_looked.set()

    def _look(self) -> None:
        self.looks += 1
        latest = self._run.folder.latest()
        if latest is None or latest == DANGLING:
            self.bad.append("missing" if latest is None else f"leads nowhere: {self._run.folder.pointer_target()}")

    def __enter__(self) -> "_Poller":
        self._thread.start()
        self._has_looked.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error


def _watch_target(run: Scenario, step: int, operation: Operation) -> None:
    run.expect(
        "commit.atomic-pointer",
        run.folder.latest() == step,
        expected=f"latest at step {step} at every instant of saving that step again",
        seen=f"just before {operation}: {run.folder}",
    )


def _watch_pointer(run: Scenario, operation: Operation, seen: list[int], clause: str = "commit.deferred") -> None:
    look = run.folder.look()
    latest = look.resume_point
    if latest is None:
        run.expect(
            "commit.atomic-pointer",
            not seen,
            expected="latest to stay once it is there",
            seen=f"none before {operation}",
        )
        return
    run.expect(
        clause,
        commit.may_point_at(latest, look.complete),
        expected="latest at a complete checkpoint at every instant",
        seen=f"just before {operation}: {look}",
    )
    seen.append(latest)


def _steps_named(run: Scenario) -> list[int]:
    """The step at which `latest` is, if it is at one."""
    latest = run.folder.latest()
    return [] if latest is None or latest == DANGLING else [latest]


def _expect_losses(run: Scenario, losses: list[str], until: int) -> None:
    expected = run.timeline().losses(until - len(losses), until)
    run.expect(
        "commit.inert",
        losses == expected,
        expected=f"the losses of a run that never saves, up to step {until}",
        seen=f"{losses} instead of {expected}",
    )


def _expect_one_of_two(run: Scenario, life: Life, step: int) -> None:
    seen = life.digest(*run.kinds())
    ours = {seed: {k: v for k, v in run.timeline(seed).digest(step).items() if k in seen} for seed in (0, 1)}
    differing = {seed: sorted(name for name in seen if seen[name] != digest[name]) for seed, digest in ours.items()}
    run.expect(
        "commit.resave",
        not all(differing.values()),
        expected=f"step {step} of the first run or of the second, whole",
        seen=f"a mixture: {differing[0][:4]} are not of the first, {differing[1][:4]} not of the second",
    )


def _with_failing_flush(run: Scenario, mode: str) -> Life:
    """A run that has committed step 2 and whose flush of step 4 meets a full disk, and still does."""
    life = run.start(mode=mode, gated=True)
    life.commit_at(2)
    life.train_to(4)
    _begin_failing_flush(run, life)
    return life


def _begin_failing_flush(run: Scenario, life: Life) -> None:
    """A save whose flush meets a full disk, and still does."""
    life.gate.fail(in_background, errno.ENOSPC)
    run.judge.tell("the disk is full for whatever is done in the background")
    life.save()
    if not life.gate.wait_failed(run.patience_s):
        raise Unreached("the save did nothing in the background that could fail")


def _with_failed_flush(run: Scenario, mode: str) -> Life:
    """The same, with the flush ended and space on the disk again; nobody has been told."""
    life = _with_failing_flush(run, mode)
    _end_failing_flush(run, life)
    return life


def _end_failing_flush(run: Scenario, life: Life) -> None:
    life.worker.replies_or_blocks()
    life.gate.stop_failing()
    run.judge.tell("the disk has space again")


def _fail_flush(run: Scenario, life: Life) -> None:
    """Save with a flush that fails on a full disk, which then has space again; nobody has been told."""
    _begin_failing_flush(run, life)
    _end_failing_flush(run, life)


def _first(call: str) -> Picks:
    """Picks the first operation of this name that changes something."""
    picked: list[int] = []

    def picks(operation: Operation) -> bool:
        if not picked and operation.writes and operation.name == call:
            picked.append(operation.number)
        return operation.number in picked

    return picks


def _number(number: int) -> Picks:
    return lambda operation: operation.number == number


def _require_overlap(run: Scenario, is_held: bool) -> None:
    if not is_held:
        raise Unreached("its flush could not be held with save returned and training free to go on; see commit.overlap")


def _errors(life: Life, *calls: str) -> list[str]:
    """What these calls raised, one after another."""
    raised: list[str] = []
    known: dict[str, Callable[[], object]] = {
        "save": life.save,
        "wait": life.wait,
        "flush": life.flush,
        "load": life.load,
        "peek": lambda: life.worker.call("peek", path=None),
        "should_save": lambda: life.worker.call("should_save", steps=[life.step]),
        "milestones": lambda: life.worker.call("milestones", steps=[life.step]),
    }
    for call in calls:
        try:
            known[call]()
        except Raised as error:
            raised.append(str(error))
            life.scenario.judge.tell(f"{error}"[:300])
    return raised
