"""Chapter retention: what is deleted, what never is, and when.

Most tests watch a run at each of its file operations: what is on disk then is
what a kill at that instant would leave.
"""

import errno
import os
import shutil
from contextlib import suppress
from functools import partial

import pytest

from forge_conformance.judging.judge import Unreached, judges
from forge_conformance.runs.cases import case
from forge_conformance.runs.folder import together
from forge_conformance.runs.life import Life
from forge_conformance.runs.process import Raised
from forge_conformance.runs.scenario import Scenario
from forge_conformance.runs.ways import require_keeps_all
from forge_conformance.watch.gate import Operation, at
from forge_spec import layout, resume, retention

_DCP = case("golden/dcp-one-process")
"""Checkpoints 2 and 4 by another manager."""
_ODD_METADATA = {
    "nested beyond all depth": '{"step": 2, "note": ' + 100_000 * "[" + 100_000 * "]" + "}",
    "a list": "[2]",
    "cut short": '{"step": 2',
}
_DEATHS = 10


@pytest.mark.parametrize("keep_last_n", [1, 2, 3])
@judges("retention.keeps", "retention.drops")
def test_after_each_commit_the_newest_are_kept_and_the_rest_is_gone(run: Scenario, mode: str, keep_last_n: int) -> None:
    life = run.start(mode=mode, keep_last_n=keep_last_n)
    stood: frozenset[int] = frozenset()
    for step in (2, 4, 6, 7, 9):
        life.commit_at(step)
        stood |= {step}
        _expect_kept(run, stood, committed=step, keep_last_n=keep_last_n)
        stood &= run.folder.steps()


@judges("retention.drops", "retention.keeps", needs=("async",))
def test_saves_back_to_back_are_pruned_as_they_are_committed(run: Scenario) -> None:
    life = run.start(mode="async", keep_last_n=2)
    life.save_at(2, 4, 6, 8)
    life.wait()
    _expect_kept(run, frozenset({2, 4, 6, 8}), committed=8, keep_last_n=2)


@judges("retention.drops")
def test_a_run_that_comes_back_with_a_smaller_limit_has_it_at_its_next_commit(run: Scenario, mode: str) -> None:
    run.start(mode=mode, keep_last_n=4).commit_at(2, 4, 6, 8)
    life, loaded = run.resume(mode=mode, keep_last_n=1)
    life.commit_at(10)
    run.expect(
        "retention.drops",
        run.folder.complete() == {10},
        expected="step 10 alone with a limit of 1, where four stood",
        seen=str(run.folder),
        detail=f"the resume had landed on step {loaded.step}",
    )


@judges("retention.drops")
def test_a_run_prunes_on_after_a_save_that_failed(run: Scenario, mode: str) -> None:
    limit = run.limit(1)
    life = run.start(mode=mode, keep_last_n=limit, gated=True)
    life.commit_at(2)
    life.train_to(4)
    _save_on_full_disk(run, life)
    later = [6 + 2 * number for number in range(limit + 1)]
    try:
        life.commit_at(*later)
    except Raised as error:
        raise Unreached("a save after the one that failed fails as well; see commit.failed-flush") from error
    run.expect(
        "retention.drops",
        run.folder.complete() == set(later[1:]),
        expected=f"the steps {later[1:]} with a limit of {limit}",
        seen=str(run.folder),
    )


@judges("retention.after-commit")
def test_a_save_that_fails_deletes_nothing_even_under_a_smaller_limit(run: Scenario, any_mode: str) -> None:
    run.start(mode=any_mode, keep_last_n=5).commit_at(1, 2, 3, 4)
    life, loaded = run.resume(mode=any_mode, keep_last_n=2, gated=True)
    life.train_to(6)
    run.judge.tell(f"the folder holds: {run.folder}")  # a manager may have deleted as it began
    _save_on_full_disk(run, life)
    if 6 in run.folder.complete():
        raise Unreached("the save gets through although the disk is full")
    run.expect(
        "retention.after-commit",
        run.folder.complete() == {1, 2, 3, 4},
        expected="steps 1 to 4 to stand: with a limit of 2 there is more than that, but nothing was committed",
        seen=str(run.folder),
        detail=f"the resume had landed on step {loaded.step}",
    )


@judges("retention.keeps", "retention.drops")
def test_a_step_that_is_saved_again_uses_up_the_limit_once(run: Scenario, mode: str) -> None:
    life = run.start(mode=mode, keep_last_n=3)
    life.commit_at(2, 4, 6)
    for _ in range(2):
        try:
            life.commit()
        except Raised as error:
            raise Unreached(f"a step that stands is not saved again, see commit.resave: {error}") from error
        run.expect(
            "retention.keeps",
            {2, 4, 6} <= run.folder.complete(),
            expected="steps 2, 4 and 6, which are three however often one of them was saved",
            seen=str(run.folder),
        )
    life.commit_at(8)
    run.expect(
        "retention.drops",
        run.folder.complete() == {4, 6, 8},
        expected="steps 4, 6 and 8, the newest three",
        seen=str(run.folder),
    )


@pytest.mark.parametrize("keep_last_n", [0, -1])
@judges("retention.off")
def test_a_limit_below_one_deletes_nothing(run: Scenario, mode: str, keep_last_n: int) -> None:
    require_keeps_all(run.implementation.traits, keep_last_n)
    life = run.start(mode=mode, keep_last_n=keep_last_n)
    life.save_at(1, 2, 3, 4, 5)
    life.wait()
    run.expect(
        "retention.off",
        run.folder.complete() == {1, 2, 3, 4, 5},
        expected=f"all five checkpoints with keep_last_n={keep_last_n}",
        seen=str(run.folder),
    )


@judges("retention.numeric")
def test_order_is_by_number_whatever_names_times_and_inodes_say(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(8, 9, 10, 11)
    _scramble(run, order=(11, 8, 10, 9))
    life, loaded = run.resume(mode=mode, keep_last_n=3)
    life.save_at(100)
    life.wait()
    if run.folder.complete() == {8, 9, 10, 11, 100}:
        raise Unreached("nothing was deleted of what another process had saved; see retention.restart")
    run.expect(
        "retention.numeric",
        run.folder.complete() == {10, 11, 100},
        expected="steps 10, 11 and 100, the highest three",
        seen=str(run.folder),
        detail=f"the resume had landed on step {loaded.step}",
    )


@judges("retention.latest", "retention.after-commit", "retention.invalidate-first")
def test_at_every_instant_of_a_save_that_prunes_the_resume_point_stands(run: Scenario, mode: str) -> None:
    life = run.start(mode=mode, keep_last_n=1, gated=True)
    life.commit_at(2)
    for step in (4, 6):
        before = {old: _files(run, old) for old in run.folder.complete()}
        life.gate.observe(partial(_watch_pruning, run, before, step))
        life.commit_at(step)
        life.gate.check()
        life.gate.forget()
    run.expect(
        "retention.latest",
        run.folder.latest() == 6,
        expected="latest at 6, with a limit of 1",
        seen=str(run.folder),
        reaches=not {2, 4} <= run.folder.complete(),
    )


@pytest.mark.parametrize("keep_last_n", [1, 3])
@judges("retention.after-commit", "retention.invalidate-first", "retention.drops")
def test_without_a_pointer_too_nothing_goes_before_its_replacement_is_there(
    run: Scenario, mode: str, keep_last_n: int
) -> None:
    life = run.start(mode=mode, keep_last_n=keep_last_n, gated=True)
    life.commit_at(*range(1, keep_last_n + 1))
    before = {step: _files(run, step) for step in run.folder.complete()}
    if 1 not in before:
        raise Unreached(f"step 1 is gone although keep_last_n={keep_last_n} has room for it; see retention.keeps")
    life.gate.observe(partial(_watch_replacement, run, before, 7))
    life.commit_at(7)
    life.gate.check()
    _expect_replaced(run, {1: before[1]}, 7)


@judges("retention.latest", needs=("async",))
def test_a_rewound_latest_survives_a_limit_of_one(run: Scenario) -> None:
    run.start(mode="async").commit_at(10, 20, 30)
    life = run.start(mode="async", keep_last_n=1, seed=999, load_path=_rewind(run, 10))
    life.load()
    life.save_at(15, 16)
    life.wait()
    run.expect(
        "retention.latest",
        run.folder.latest() == 16 and 16 in run.folder.complete(),
        expected="latest at step 16, complete, although 20 and 30 are newer",
        seen=str(run.folder),
    )


@judges("retention.in-flight")
def test_a_save_in_flight_survives_the_commit_of_the_one_before(run: Scenario) -> None:
    run.start(mode="async").commit_at(50, 60, 70)
    life = run.start(mode="async", keep_last_n=1, seed=0)
    for step in (5, 6, 7):
        life.save_at(step)
        run.judge.tell(f"the folder holds: {run.folder}")
    life.wait()
    _expect_in_flight_kept(run)


@judges("retention.in-flight")
def test_while_its_flush_is_held_nothing_of_a_save_is_pruned(run: Scenario) -> None:
    """Of a save that is put together elsewhere nothing is to be seen until it is whole; then its end alone counts.

    The flushes before it are left time to write: a manager that deletes as it saves finds nothing to delete otherwise.
    """
    run.start(mode="async").commit_at(50, 60, 70)
    life = run.start(mode="async", keep_last_n=1, seed=0, gated=True)
    for step in (5, 6):
        life.save_at(step)
        life.settle()
    life.train_to(7)
    shown: list[int] = []
    life.gate.observe(partial(_watch_in_flight, run, 7, shown))
    if not life.save_held():
        raise Unreached("its flush could not be held with save returned and training free to go on; see commit.overlap")
    run.judge.tell(f"the folder holds: {run.folder}")
    life.open_gate()
    life.wait()
    life.gate.check()
    _expect_in_flight_kept(run)


@judges("retention.debris", "resume.lands")
def test_ten_deaths_in_a_row_pile_nothing_up(run: Scenario, mode: str) -> None:
    limit = 2 if run.has("retention") else 0
    life = run.start(gated=True, mode=mode, keep_last_n=limit)
    life.commit_at(2, 4)
    before = len(life.gate.log)
    life.commit_at(6)
    operations = len(life.gate.log) - before
    life.kill()
    warnings = ""
    for death in range(_DEATHS):
        life, loaded = run.resume(gated=True, mode=mode, keep_last_n=limit)
        run.expect(
            "resume.lands", not loaded.is_fresh, expected="to land on a checkpoint", seen=str(run.folder), reaches=False
        )
        warnings += life.warnings
        life.train_to(loaded.step + 2)
        life.gate.close(at(len(life.gate.log) + 1 + operations * (2 * death + 1) // (2 * _DEATHS)))
        life.begin_save()
        life.worker.replies_or_blocks()
        life.gate.wait_held(0.2)  # a flush in the background may begin late; then it dies before that
        life.kill()
        _expect_no_heap(run, warnings)


@judges("retention.debris", "resume.lands")
def test_deaths_at_the_same_instant_pile_nothing_up(run: Scenario) -> None:
    """Right before the pointer moves, or else the checkpoint gets its name: what was made for that stands there then.

    It takes so many deaths until a pile shows to which each of them adds but a name.
    """
    limit = 2 if run.has("retention") else 0
    with run.start(keep_last_n=limit) as first:
        first.commit_at(2, 4)
    warnings = ""
    for _ in range(3 * run.folder.largest().entries + 4):
        life, loaded = run.resume(gated=True, keep_last_n=limit)
        run.expect(
            "resume.lands", not loaded.is_fresh, expected="to land on a checkpoint", seen=str(run.folder), reaches=False
        )
        warnings += life.warnings
        life.train_to(loaded.step + 2)
        name = run.folder.layout.pointer or run.folder.layout.name.format(step=life.step)
        life.gate.close(partial(_concerns, name))
        life.begin_save()
        life.worker.replies_or_blocks()
        if not life.gate.wait_held(run.patience_s):
            raise Unreached(f"a save does nothing to {name} by that name")
        life.kill()
        _expect_no_heap(run, warnings)


@judges("retention.debris", "resume.lands", needs=("retention",))
def test_deaths_in_the_middle_of_a_deletion_pile_nothing_up(run: Scenario) -> None:
    """Each leaves nearly all of a checkpoint, so that it takes few of them until a pile shows."""
    with run.start(keep_last_n=1) as first:
        first.commit_at(2)
    warnings = ""
    for _ in range(5):
        life, loaded = run.resume(gated=True, keep_last_n=1)
        run.expect(
            "resume.lands", not loaded.is_fresh, expected="to land on a checkpoint", seen=str(run.folder), reaches=False
        )
        warnings += life.warnings
        life.train_to(loaded.step + 2)
        life.gate.close(partial(_goes_on_deleting, run, life.step))
        life.begin_save()
        life.worker.replies_or_blocks()
        if not life.gate.wait_held(run.patience_s):
            raise Unreached("no file is deleted of a checkpoint that is no longer complete")
        life.kill()
        _expect_no_heap(run, warnings)


def _save_on_full_disk(run: Scenario, life: Life) -> None:
    """A save and a wait, whatever they raise; then there is space again."""
    life.gate.fail(lambda operation: operation.writes_data, errno.ENOSPC)
    run.judge.tell("the disk is full")
    with suppress(Raised):
        life.save()
    with suppress(Raised, Unreached):  # a manager that a failed save has ended waits for nothing
        life.wait()
    if not life.gate.failed:
        raise Unreached("nothing that the save wrote into the folder could fail")
    life.gate.stop_failing()
    run.judge.tell("the disk has space again")


def _expect_no_heap(run: Scenario, warnings: str) -> None:
    folder = run.folder
    found = {name: room for name, room in folder.leftovers().items() if name not in warnings}
    torn = [step for step in folder.torn() if folder.of(step).name in found]
    beside, one = together(found.values()), folder.largest()
    run.expect(
        "retention.debris",
        retention.may_stand_beside(torn, folder.complete(), beside, one),
        expected=f"beside the complete checkpoints one torn directory at most, and the room of three ({one})",
        seen=f"{beside}: {', '.join(sorted(found))}; {folder}",
    )


@judges("retention.exempt-is-free", "retention.keeps", needs=("retention",))
def test_milestones_do_not_use_up_the_limit(run: Scenario, mode: str) -> None:
    window = {"start": 10, "stop": 18, "strategy": "power2"}
    life = run.start(mode=mode, keep_last_n=3, interval=2, window=window)
    committed: list[int] = []
    for step in (4, 6, 7, 8, 10, 11, 12, 14, 18, 20):
        life.commit_at(step)
        committed.append(step)
        milestones = frozenset(committed) & {10, 11, 12, 14, 18}
        folder = retention.Folder(complete=frozenset(committed), milestones=milestones, latest=step, committed=step)
        _expect_must_kept(run, folder, 3)
        expected = retention.survivors(folder, 3)
        run.expect(
            "retention.exempt-is-free",
            run.folder.complete() == expected,
            expected=f"exactly {sorted(expected)}: the newest three that are no milestones, and the milestones",
            seen=str(run.folder),
        )


@judges("retention.torn-is-free")
def test_torn_checkpoints_do_not_push_out_complete_ones(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(2, 4, 6)
    for lacks, torn in enumerate((7, 8, 9)):
        _plant_torn(run, torn, of=6, lacks=lacks)
    life, _ = run.resume(mode=mode, keep_last_n=3)
    life.commit_at(12)
    run.expect(
        "retention.torn-is-free",
        run.folder.complete() == {4, 6, 12},
        expected="steps 4, 6 and 12, the newest three complete ones",
        seen=str(run.folder),
    )


@judges("retention.future", needs=("explicit",))
def test_after_a_rewind_newer_steps_neither_count_nor_go(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(10, 20, 30, 40)
    life = run.start(mode=mode, keep_last_n=2, seed=999)
    life.load(run.folder.of(10))
    life.commit_at(12)
    run.expect(
        "retention.future",
        run.folder.complete() == {10, 12, 20, 30, 40},
        expected="10 and 12, the newest two up to the commit, and 20 to 40 untouched above it",
        seen=str(run.folder),
    )
    life.commit_at(14)
    run.expect(
        "retention.future",
        run.folder.complete() == {12, 14, 20, 30, 40},
        expected="12 and 14, the newest two up to the commit, and 20 to 40 untouched above it",
        seen=str(run.folder),
    )


@pytest.mark.parametrize("later", [None, {"start": 30, "stop": 40, "strategy": "power2"}])
@judges("retention.class-is-remembered")
def test_a_milestone_stays_exempt_when_the_window_changes(
    run: Scenario, mode: str, later: dict[str, object] | None
) -> None:
    first = run.start(mode=mode, keep_last_n=1, window={"start": 1, "stop": 5, "strategy": "power2"})
    first.commit_at(1, 2, 3)
    second, _ = run.resume(mode=mode, keep_last_n=1, window=later)
    second.commit_at(10, 12)
    run.expect(
        "retention.class-is-remembered",
        {1, 2, 3} <= run.folder.complete(),
        expected="the milestones 1, 2 and 3 of the first run, beside 12",
        seen=str(run.folder),
    )


@pytest.mark.parametrize("error", ["EACCES", "EBUSY", "EIO"])
@judges("retention.failure-is-soft")
def test_a_deletion_that_fails_does_not_fail_the_save_and_is_tried_again(run: Scenario, mode: str, error: str) -> None:
    """Without permission; with a file that somebody has open on NFS; on a disk that is failing."""
    life = run.start(mode=mode, keep_last_n=1, gated=True)
    life.commit_at(2)
    stuck = run.folder.of(2).name
    life.gate.fail(lambda operation: operation.removes(stuck), getattr(errno, error))
    run.judge.tell(f"from here every deletion of {stuck} fails with {error}")
    life.train_to(4)
    heard = ""
    for call in (life.save, life.wait):
        call()
        heard += life.warnings
    if not life.gate.failed:
        raise Unreached(f"{stuck} was not to be deleted by a name of its own, so its deletion could not fail")
    run.expect("retention.failure-is-soft", run.folder.latest_or_newest() == 4, expected="step 4", seen=str(run.folder))
    run.expect(
        "retention.failure-is-soft",
        stuck in heard,
        expected=f"a log message that names {stuck}, whose deletion failed",
        seen=repr(heard),
    )
    life.gate.stop_failing()
    run.judge.tell("deletions work again")
    life.commit_at(6, 8)
    run.expect(
        "retention.failure-is-soft",
        run.folder.complete() == {8},
        expected=f"only step 8 at a limit of 1: {stuck} was tried again",
        seen=str(run.folder),
    )


@judges("retention.failure-is-soft", "retention.drops")
def test_a_deletion_that_fails_keeps_no_other_from_being_made(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(2, 4, 6)
    life, _ = run.resume(mode=mode, keep_last_n=1, gated=True)
    stuck = run.folder.of(4).name
    life.gate.fail(lambda operation: operation.removes(stuck), errno.EACCES)
    run.judge.tell(f"from here every deletion of {stuck} fails with EACCES")
    life.train_to(8)
    life.save()
    life.wait()
    if not life.gate.failed:
        raise Unreached(f"{stuck} was not to be deleted by a name of its own, so its deletion could not fail")
    run.expect("retention.failure-is-soft", run.folder.latest_or_newest() == 8, expected="step 8", seen=str(run.folder))
    run.expect(
        "retention.drops",
        run.folder.complete() - {4} == {8},
        expected=f"step 8 alone at a limit of 1, beside {stuck}: in whatever order, one came after it",
        seen=str(run.folder),
    )


@pytest.mark.parametrize("odd", ["nested beyond all depth", "a list", "cut short"])
@judges("retention.failure-is-soft", needs=("layout",))
def test_an_old_checkpoint_whose_metadata_can_not_be_read_fails_no_save(run: Scenario, mode: str, odd: str) -> None:
    run.start(mode=mode).commit_at(2, 4)
    (run.folder.of(2) / "metadata.json").write_text(_ODD_METADATA[odd])
    run.judge.tell(f"metadata.json of step 2 is {odd} now")
    life, _ = run.resume(mode=mode, keep_last_n=1)
    _expect_saved_beside(run, life, 6, unjudged=[2])


@judges("retention.failure-is-soft", needs=("layout", "window"), layout=_DCP.layout)
def test_a_strategy_that_raises_for_an_old_checkpoint_fails_no_save(run: Scenario, mode: str) -> None:
    """Of a checkpoint by another manager nothing says whether it is a milestone, so the strategy is asked."""
    _DCP.put_into(run.folder.path)
    run.judge.tell(f"the folder is made that of another manager: {run.folder}")
    life = run.start(mode=mode, seed=999)
    life.worker.call("register_strategy", name="forgetful", fires=[8], raises=[2, 4])
    window = {"start": 0, "stop": 8, "strategy": "forgetful"}
    life.worker.open({"folder": str(run.folder.path), "mode": mode, "keep_last_n": 1, "window": window}, seed=999)
    run.judge.tell("a manager is made with a limit of 1, and a window whose strategy raises for steps 2 and 4")
    _expect_saved_beside(run, life, 6, unjudged=[2, 4])


def _expect_saved_beside(run: Scenario, life: Life, step: int, unjudged: list[int]) -> None:
    """The save succeeds, and what can't be told from a milestone is named, and stands."""
    life.train_to(step)
    heard = ""
    for call in (life.save, life.wait):
        call()
        heard += life.warnings
    names = [run.folder.of(old).name for old in unjudged]
    run.expect(
        "retention.failure-is-soft",
        run.folder.latest_or_newest() == step and step in run.folder.complete(),
        expected=f"step {step} committed",
        seen=str(run.folder),
    )
    run.expect(
        "retention.failure-is-soft",
        all(name in heard for name in names),
        expected=f"a log message that names {' and '.join(names)}, which can't be judged",
        seen=repr(heard),
    )
    run.expect(
        "retention.failure-is-soft",
        run.folder.steps() == {*unjudged, step},
        expected=f"step {step} at a limit of 1, beside {' and '.join(names)}, which may be milestones",
        seen=str(run.folder),
    )


@judges("retention.restart")
def test_checkpoints_of_earlier_runs_count(run: Scenario, mode: str) -> None:
    run.start(mode=mode, keep_last_n=2).commit_at(2, 4)
    second, _ = run.resume(mode=mode, keep_last_n=2)
    second.commit_at(6)
    third, _ = run.resume(mode=mode, keep_last_n=2)
    third.commit_at(8)
    run.expect(
        "retention.restart",
        run.folder.complete() == {6, 8},
        expected="steps 6 and 8: each of three runs found the limit of 2 used up by those before it",
        seen=str(run.folder),
    )


# -- looking ------------------------------------------------------------------------


def _expect_kept(run: Scenario, stood: frozenset[int], committed: int, keep_last_n: int) -> None:
    folder = retention.Folder(complete=stood, latest=committed, committed=committed)
    _expect_must_kept(run, folder, keep_last_n)
    may = retention.may_keep(folder, keep_last_n)
    run.expect(
        "retention.drops",
        run.folder.steps() <= may,
        expected=f"nothing but {sorted(may)} right after the commit of {committed} with keep_last_n={keep_last_n}",
        seen=str(run.folder),
        reaches=not stood <= may,
    )


def _expect_must_kept(run: Scenario, folder: retention.Folder, keep_last_n: int) -> None:
    """Where nothing was deleted, nothing was kept either."""
    must, complete = retention.must_keep(folder, keep_last_n), run.folder.complete()
    run.expect(
        "retention.keeps",
        must <= complete,
        expected=f"{sorted(must)} to be kept",
        seen=str(run.folder),
        reaches=not folder.complete <= complete,
    )


def _watch_in_flight(run: Scenario, step: int, shown: list[int], operation: Operation) -> None:
    stands = step in run.folder.steps()
    run.expect(
        "retention.in-flight",
        stands or step not in shown,
        expected=f"step {step}, which is in flight, to stand from when it first does",
        seen=f"just before {operation}: {run.folder}",
        reaches=False,
    )
    shown += [step] if stands else []


def _expect_in_flight_kept(run: Scenario) -> None:
    """Steps 5, 6 and 7 were saved in a row with a limit of 1, below the stale 50, 60 and 70."""
    has_deleted = not {5, 6} <= run.folder.steps()
    run.expect(
        "retention.in-flight",
        7 in run.folder.complete(),
        expected="step 7 complete, although stale steps 50 to 70 are above it and the limit is 1",
        seen=str(run.folder),
        reaches=has_deleted,
    )
    latest = None if run.folder.layout.pointer is None else 7
    _, loaded = run.resume(mode="async")
    allowed = resume.may_land_on(run.folder.complete(), latest)
    run.expect_landing("retention.in-flight", loaded, allowed, reaches=has_deleted)


def _files(run: Scenario, step: int) -> list[str]:
    path = run.folder.of(step)
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()) if path.is_dir() else []


def _watch_pruning(run: Scenario, before: dict[int, list[str]], step: int, operation: Operation) -> None:
    look = run.folder.look()
    run.expect(
        "retention.latest",
        look.resume_point in look.complete,
        expected="latest at a complete checkpoint at every instant",
        seen=f"just before {operation}: {look}",
        reaches=not before.keys() <= look.complete,
    )
    _watch_replacement(run, before, step, operation)


def _watch_replacement(run: Scenario, before: dict[int, list[str]], step: int, operation: Operation) -> None:
    gone = sorted(before.keys() - run.folder.complete())
    run.expect(
        "retention.after-commit",
        not gone or run.folder.latest_or_newest() == step,
        expected=f"steps {gone} to stand until step {step} is committed",
        seen=f"just before {operation}: {run.folder}",
        reaches=bool(gone),
    )
    for old, files in before.items():
        if run.folder.layout.is_dir:
            now = _files(run, old)
            run.expect(
                "retention.invalidate-first",
                _may_be_left(run, old, files, now),
                expected=f"step {old} whole or visibly incomplete at every instant of its deletion",
                seen=f"just before {operation}: it looks complete with {now} of {files}",
                reaches=now != files,
            )


def _expect_replaced(run: Scenario, before: dict[int, list[str]], step: int) -> None:
    """One file is gone at once, so that it is gone is all that its deletion can be asked."""
    kept = sorted(before.keys() & run.folder.complete())
    for clause in ("retention.drops", *(() if run.folder.layout.is_dir else ("retention.invalidate-first",))):
        run.expect(
            clause,
            not kept and step in run.folder.complete(),
            expected=f"after the commit of {step}, {sorted(before)} deleted",
            seen=str(run.folder),
        )


def _may_be_left(run: Scenario, step: int, before: list[str], now: list[str]) -> bool:
    """In a layout of the manager's own, what makes a checkpoint complete is what its adapter says."""
    if layout_is_shared(run):
        return retention.may_be_left(before, now)
    return now == before or step not in run.folder.complete()


def layout_is_shared(run: Scenario) -> bool:
    """Whether `forge_spec.layout` says what makes this manager's checkpoints complete."""
    return set(run.folder.layout.required) == set(layout.required())


def _concerns(name: str, operation: Operation) -> bool:
    return operation.writes and name in operation.paths


def _goes_on_deleting(run: Scenario, step: int, operation: Operation) -> bool:
    """Whether something goes when this step alone is left, committed, and what it replaces is incomplete."""
    return operation.name in ("unlink", "unlinkat", "rmdir") and (
        run.folder.complete() == {step} and run.folder.latest_or_newest() == step
    )


# -- arranging ----------------------------------------------------------------------


def _rewind(run: Scenario, step: int) -> str | None:
    """The load_path, or else a moved pointer, that makes the next run resume from an older step."""
    if run.has("explicit"):
        return str(run.folder.of(step))
    run.folder.point_at(run.folder.of(step).name)
    return None


def _scramble(run: Scenario, order: tuple[int, ...]) -> None:
    """Give the checkpoints new inodes and times in this order, so that neither follows their numbers."""
    for age, step in enumerate(order):
        path = run.folder.of(step)
        copy = path.with_name(f"copy-of-{path.name}")
        shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        copy.rename(path)
        for file in [path, *path.rglob("*")]:
            os.utime(file, (1_600_000_000 + age * 1000,) * 2)
    run.judge.tell(f"the checkpoints get new inodes and times in the order {order}, oldest first")


def _plant_torn(run: Scenario, step: int, of: int, lacks: int) -> None:
    original = run.folder.of(of)
    copy = original.with_name(run.folder.layout.name.format(step=step))
    shutil.copytree(original, copy) if original.is_dir() else shutil.copy(original, copy)
    run.judge.tell(f"a torn step {step} is put there, as a killed save leaves it: {run.tear(step, lacks)}")
