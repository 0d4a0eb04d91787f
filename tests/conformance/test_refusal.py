"""Chapters resume and commit: loads and saves that the code or the state of the run itself makes fail.

The code of the run fails once, after it has taken what it was given.  A twin
of the run that loads nothing says how training has to go on.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from forge_conformance.judging.judge import Unreached, judges
from forge_conformance.runs.life import Life
from forge_conformance.runs.process import Raised
from forge_conformance.runs.scenario import Scenario
from forge_conformance.runs.state import ALL_KINDS, STATE

_OTHER = 999
"""The seed of runs that have yet to resume."""


@pytest.mark.parametrize("part", ["module", "optimizer", "scheduler", "dataloader"])
@judges("resume.code-that-raises")
def test_code_that_raises_in_mid_load_leaves_no_trace(run: Scenario, mode: str, part: str) -> None:
    if part == "dataloader" and not run.has("dataloader"):
        raise Unreached("the manager does not bring a loader back")
    first = run.start(mode=mode)
    _add_state(run, first, "extra", seed=1)
    first.train_to(4)
    saved = first.digest()
    first.commit()

    def arrange(life: Life) -> None:
        _add_state(run, life, "extra", seed=2)

    life, twin = (_trained_to_3(run, mode, arrange) for _ in range(2))
    _fail_once(run, life, part)
    _expect_refused_untouched(run, life, twin, "resume.code-that-raises")
    loaded = life.load(_path(run, 4))
    run.expect_landing("resume.code-that-raises", loaded, {4}, "nothing raises this time")
    run.expect_same("resume.code-that-raises", life.digest(), saved, STATE, "the state of step 4, when it was saved")


@judges("resume.code-that-raises")
def test_a_scheduler_that_holds_another_keeps_it(run: Scenario, mode: str) -> None:
    """Put back as a copy it would hold a copy of the optimizer as well, and the learning rate would stand still."""
    run.start(mode=mode).commit_at(4)

    def arrange(life: Life) -> None:
        life.worker.call("nest_scheduler")
        run.judge.tell("its scheduler is now one that warms up and then lets another one go on, which it holds")

    life, twin = (_trained_to_3(run, mode, arrange) for _ in range(2))
    _fail_once(run, life, "scheduler")
    _expect_refused_untouched(run, life, twin, "resume.code-that-raises")


@judges("resume.all-or-nothing")
def test_a_tensor_that_can_not_be_written_to_changes_nothing(run: Scenario, mode: str) -> None:
    first = run.start(mode=mode)
    _add_state(run, first, "buffer", seed=1)
    first.commit_at(4)

    def arrange(life: Life) -> None:
        _add_state(run, life, "buffer", seed=2)
        life.worker.call("expand")
        run.judge.tell("the elements of that buffer share memory from here on, as those of an expanded view do")

    life, twin = (_trained_to_3(run, mode, arrange) for _ in range(2))
    before = life.digest()
    try:
        life.load(_path(run, 4))
    except Raised:
        run.judge.tell("that is refused")
    else:
        raise Unreached("the load found a way to put values into a buffer whose elements share memory")
    _expect_untouched(run, life, twin, before, "resume.all-or-nothing")


@judges("commit.unsaveable")
def test_an_extra_that_can_not_be_saved_is_refused_by_its_key(run: Scenario, any_mode: str) -> None:
    life = run.start(mode=any_mode)
    life.commit_at(2)
    held = _held(run)
    life.train_to(4)
    before = life.digest()
    run.judge.tell(f"{life.name} saves step 4 with a function in its extra, under the key 'on_resume'")
    with run.expect_error("commit.unsaveable", naming=["on_resume"], doing="a save with a function in its extra"):
        life.worker.call("save", step=None, extra=None, parts=["scheduler", "dataloader"], unsaveable="on_resume")
        life.wait()
    run.expect("commit.unsaveable", _held(run) == held, expected=f"the folder as it was: {held}", seen=f"{_held(run)}")
    run.expect_same("commit.unsaveable", life.digest(), before, ALL_KINDS, "the state before the refused save")
    life.commit()
    _, loaded = run.resume(mode=any_mode)
    run.expect_landing("commit.unsaveable", loaded, {4}, "the save without the function works")


# -- arranging ------------------------------------------------------------------------


def _path(run: Scenario, step: int) -> Path | None:
    return run.folder.of(step) if run.has("explicit") else None


def _add_state(run: Scenario, life: Life, kind: str, seed: int) -> None:
    name = life.worker.call("add_state", kind=kind, seed=seed)
    what = {"extra": "state beside its tensors", "buffer": "a buffer of equal elements"}[kind]
    run.judge.tell(f"its model ends with a module, {name}, that has {what}")


def _fail_once(run: Scenario, life: Life, part: str) -> None:
    life.worker.call("fail_once", part=part)
    run.judge.tell(f"the {part} of {life.name} will raise the next time that it has taken a state")


def _trained_to_3(run: Scenario, mode: str, arrange: Callable[[Life], None]) -> Life:
    life = run.start(mode=mode, seed=_OTHER)
    arrange(life)
    life.train_to(3)
    return life


def _held(run: Scenario) -> list[str]:
    """All names in the folder, and all files below it."""
    return sorted({*os.listdir(run.folder.path), *run.folder.files()})


# -- judging --------------------------------------------------------------------------


def _expect_refused_untouched(run: Scenario, life: Life, twin: Life, clause: str) -> None:
    before = life.digest()
    with run.expect_error(clause, doing="the load"):
        life.load(_path(run, 4))
    _expect_untouched(run, life, twin, before, clause)


def _expect_untouched(run: Scenario, life: Life, twin: Life, before: dict[str, str], clause: str) -> None:
    """The state is what it was, and training goes on like that of the twin, which has loaded nothing."""
    run.expect_same(clause, life.digest(), before, ALL_KINDS, "the state before the refused load")
    losses, expected = life.train_to(6), twin.train_to(6)
    run.expect(clause, losses == expected, expected=f"the losses {expected} of a run without a load", seen=f"{losses}")
    run.expect_same(clause, life.digest(), twin.digest(), ALL_KINDS, "the state of a run without a load, 3 steps on")
