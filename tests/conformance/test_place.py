"""Chapter place: the folder, whatever its name, and the process that a manager shares with training."""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from forge_conformance.judging.judge import Unreached, judges
from forge_conformance.runs.life import Life
from forge_conformance.runs.obstacles import Obstacle, closed_paths, failing_calls, lasting_failures
from forge_conformance.runs.process import Raised
from forge_conformance.runs.scenario import Scenario
from forge_conformance.runs.state import ALL_KINDS
from forge_conformance.watch.gate import at
from forge_conformance.worker.system_calls import WRITES
from forge_spec import place

NAMES = {
    "spaces": " two  spaces ",
    "line-end": "line\nend",
    "brackets": "run[12]",
    "star": "run*",
    "question-mark": "run?",
    "braces": "{step} {0}",
    "percent": "100%d %(step)s %",
    "other-scripts": "Läufe-実験-\u0663",
    "dash": "-rf",
    "quotes": 'it\'s "so" $HOME `id` ; #',
    "backslash": "a\\tb\\",
    "tilde-at-the-end": "run~",
    "hidden": ".run",
    "not-utf-8": os.fsdecode(b"run-\xff"),
    "long": "n" * 200,
    "like-a-checkpoint": "step_7",
    "like-the-pointer": "latest",
}
NEIGHBOURS = ("run1", "run2", "runner", "run3", "end", "tmp")
"""What some of these names mean when they are taken for patterns, or cut in pieces."""
UMASKS = [0o022, 0o077, 0o002, 0o027]
LARGE_BYTES = 4 << 20
SAVES = 8
"""What grows by one with each of so many saves grows with the run, if it does so again after them."""
ROUNDS = 3


# -- what a name means --------------------------------------------------------------


@judges("place.home")
def test_a_tilde_is_the_home_directory(run: Scenario, mode: str, tmp_path: Path) -> None:
    home, job, later = _directories(tmp_path, "home", "job", "later")
    _move(run, home / "runs" / "a")
    try:
        life = run.start(mode=mode, folder="~/runs/a", arrange=lambda life: _arrive(life, job, HOME=home))
        life.commit_at(2)
    except Raised as refused:
        _expect_no_tilde(run, tmp_path)
        run.expect("place.home", True, expected="the home directory, or an error", seen=refused)
        return
    _expect_no_tilde(run, tmp_path)
    _expect_saved(run, "place.home", {2})
    life.kill()
    again = run.start(mode=mode, folder="~/runs/a", seed=999, arrange=lambda life: _arrive(life, later, HOME=home))
    run.expect_landing("place.home", again.load(), {2}, "the home directory is the same")


@judges("place.home", needs=("explicit",))
def test_a_tilde_in_a_named_path_is_the_home_directory(run: Scenario, tmp_path: Path) -> None:
    home, job = _directories(tmp_path, "home", "job")
    _move(run, home / "runs")
    run.start().commit_at(2, 4)
    named = f"~/runs/{run.folder.of(2).name}"
    asked: list[tuple[dict[str, Any], str | None]] = [({"load_path": named}, None), ({}, named)]
    for how, path in asked:
        life = run.start(seed=999, arrange=lambda life: _arrive(life, job, HOME=home), **how)
        try:
            run.expect_landing("place.home", life.load(path), {2}, f"{named} was named")
        except Raised as refused:
            run.expect("place.home", True, expected="step 2, or an error", seen=refused)
    _expect_no_tilde(run, tmp_path)


@judges("place.fixed")
def test_a_relative_folder_stays_where_it_was_when_the_manager_was_made(
    run: Scenario, mode: str, tmp_path: Path
) -> None:
    made, then, later = _directories(tmp_path, "made", "then", "later")
    _move(run, made / "runs")
    for other in (then, later):
        (other / "runs").mkdir()  # so that a save there would succeed
    life = _made_or_refused(run, mode=mode, folder="runs", arrange=lambda life: life.chdir(made))
    if life is None:
        return
    life.chdir(then)
    life.save_at(2)
    life.chdir(later)  # in an asynchronous mode while the flush goes on
    life.wait()
    life.commit_at(4)
    strays = sorted(str(path) for other in (then, later) for path in (other / "runs").iterdir())
    run.expect("place.fixed", not strays, expected=f"all in {run.folder.path}", seen=f"also {', '.join(strays)}")
    _expect_saved(run, "place.fixed", {2, 4})
    run.expect_landing("place.fixed", life.load(), {4}, "the folder is the same")
    life.kill()
    again = run.start(mode=mode, folder="runs", seed=999, arrange=lambda life: life.chdir(made))
    again.chdir(then)
    run.expect_landing("place.fixed", again.load(), {4}, "the manager was made where the folder is")
    run.expect_state("place.fixed", again, 4)


@judges("place.fixed", needs=("explicit", "layout"))
def test_a_relative_load_path_never_leads_to_another_run(run: Scenario, tmp_path: Path) -> None:
    made, then = _directories(tmp_path, "made", "then")
    for seed, where in ((5, then), (0, made)):
        _move(run, where / "runs")
        run.start(seed=seed).commit_at(2)
    load_path = f"runs/{run.folder.of(2).name}"
    life = _made_or_refused(run, load_path=load_path, seed=999, arrange=lambda life: life.chdir(made))
    if life is None:
        return
    life.chdir(then)
    try:
        run.expect_landing("place.fixed", life.load(), {2}, f"{load_path} was there when the manager was made")
    except Raised as refused:
        run.expect("place.fixed", True, expected="step 2, or an error", seen=refused)
    else:
        run.expect_state("place.fixed", life, 2)


@pytest.mark.parametrize("name", NAMES)
@judges("place.any-name")
def test_a_name_is_a_name(run: Scenario, name: str, tmp_path: Path) -> None:
    _expect_use(run, tmp_path / "runs" / NAMES[name])


@pytest.mark.parametrize("how", ["link", "link-above", "slash", "dots"])
@judges("place.any-name")
def test_there_are_several_ways_to_write_a_folder(run: Scenario, how: str, tmp_path: Path) -> None:
    """`dots` leads through a symlink, so the part before them can't be left out."""
    real, other = tmp_path / "runs" / "real", tmp_path / "elsewhere" / "deep"
    other.mkdir(parents=True)
    real.mkdir(parents=True)
    (tmp_path / "link").symlink_to(real)
    (tmp_path / "to-deep").symlink_to(other)
    written = {
        "link": (tmp_path / "link", f"{tmp_path}/link"),
        "link-above": (tmp_path / "link" / "run", f"{tmp_path}/link/run"),
        "slash": (real, f"{real}/"),
        "dots": (tmp_path / "elsewhere" / "run", f"{tmp_path}/to-deep/../run"),
    }
    _expect_use(run, *written[how])
    run.expect("place.any-name", (tmp_path / "link").is_symlink(), expected="the link to stay", seen="it is gone")


def _expect_use(run: Scenario, at: Path, written: str | None = None) -> None:
    """Saving, deleting, dying and resuming there, beside folders with similar names."""
    _move(run, at)
    folder: dict[str, Any] = {"folder": written or str(at), "keep_last_n": 2 if run.has("retention") else 0}
    life = run.start(**folder)
    _save_at(life, 2, 4)
    neighbours = [at.parent / name for name in NEIGHBOURS]
    for neighbour in neighbours:
        shutil.copytree(at, neighbour, symlinks=True)
    before = [_listed(neighbour) for neighbour in neighbours]
    _save_at(life, 6, 8)
    kept = {6, 8} if run.has("retention") else {2, 4, 6, 8}
    _expect_saved(run, "place.any-name", kept)
    life.kill()
    again = run.start(seed=999, **folder)
    run.expect_landing("place.any-name", again.load(), {8}, f"it is in {written or str(at)!r}")
    run.expect_state("place.any-name", again, 8)
    _save_at(again, 10)
    _expect_saved(run, "place.any-name", {8, 10} if run.has("retention") else {*kept, 10})
    changed = [neighbour.name for neighbour, was in zip(neighbours, before, strict=True) if _listed(neighbour) != was]
    run.expect("place.any-name", not changed, expected="other folders as they were", seen=f"changed: {changed}")


# -- what can't be a folder ---------------------------------------------------------


@pytest.mark.parametrize("stands", ["file", "link to a file", "link to nothing", "file above"])
@judges("place.checked")
def test_what_can_not_be_a_folder_is_refused_before_the_run_trains(run: Scenario, stands: str, tmp_path: Path) -> None:
    obstacle = tmp_path / "taken"
    if stands.startswith("link"):
        (tmp_path / "file").write_text("somebody's data")
        obstacle.symlink_to("file" if stands == "link to a file" else "not-mounted")
    else:
        obstacle.write_text("somebody's data")
    at = obstacle / "run" if stands == "file above" else obstacle
    before = _listed(tmp_path)
    run.judge.tell(f"{obstacle} is a {stands.removesuffix(' above')} before the run begins")
    with run.expect_error("place.checked", naming=[obstacle.name], doing=f"a folder where a {stands} stands"):
        run.start(folder=str(at)).load()
    run.expect("place.checked", _listed(tmp_path) == before, expected=f"{before}", seen=f"{_listed(tmp_path)}")


@judges("place.checked")
def test_a_folder_that_may_not_be_looked_into_is_not_taken_for_an_empty_one(run: Scenario, mode: str) -> None:
    with run.start(mode=mode) as life:
        life.commit_at(2)
    run.folder.path.chmod(0)
    try:
        with run.expect_error("place.checked", doing="a resume from a folder of mode 000"):
            run.start(mode=mode, seed=999, arrange=Life.renounce).load()
    finally:
        run.folder.path.chmod(0o755)
    again = run.start(mode=mode, seed=999, arrange=Life.renounce)
    run.expect_landing("place.checked", again.load(), {2}, "its mode is what it was")


# -- what can't be read -------------------------------------------------------------


@pytest.mark.parametrize("saved", [(2, 4), (4,)], ids=["last-of-two", "only-one"])
@judges("place.checked", "resume.all-or-nothing")
def test_a_checkpoint_that_can_not_be_read_is_not_taken_for_another_or_for_none(
    run: Scenario, saved: tuple[int, ...]
) -> None:
    """Each call by which a load learns of the folder fails once, and then each file and directory may not be read."""
    run.start().commit_at(*saved)
    held = _listed(run.folder.path)
    life = run.start(gated=True, loads=True, seed=999)
    life.load()
    returned = run.items_that_return(life, 4)
    so_far, done = len(run.judge.story), len(life.gate.log)
    life.load()  # what the first one has imported or remembered is not read again
    made = life.gate.log[done:]
    once = [one for one in failing_calls(made) if one.nth == 1]
    obstacles = once + lasting_failures(made) + closed_paths(made)
    if not obstacles:
        raise Unreached("a process that has resumed reads nothing in its folder when it resumes again")
    for number, obstacle in enumerate(obstacles):
        tried = f"{life.name} resumes {number} more times, each time with another obstacle, and trains a step"
        run.judge.story[so_far:] = [tried] if number else []
        _expect_refused_or_right(run, life, obstacle, saved, returned)
    life.kill()
    _, loaded = run.resume()
    run.expect_landing("place.checked", loaded, {4}, "everything can be read again")
    found = _listed(run.folder.path)
    run.expect("place.checked", found == held, expected=f"the folder as it was: {held}", seen=f"{found}")


def _expect_refused_or_right(
    run: Scenario, life: Life, obstacle: Obstacle, saved: tuple[int, ...], returned: set[str]
) -> None:
    """The load raises and changes nothing, or lands on the last save, or says that it could not and lands before it."""
    life.train_to_next()
    before = life.digest()
    life.gate.fail(obstacle.picks(), obstacle.error)
    run.judge.tell(str(obstacle))
    try:
        loaded = life.load()
    except Raised as refusal:
        if not life.gate.failed:
            raise
        run.expect("place.checked", True, expected="an error, or the last save", seen=refusal)
        run.expect_same("resume.all-or-nothing", life.digest(), before, ALL_KINDS, "the state before the refused load")
    else:
        last = run.folder.of(4).name
        is_named = last in life.warnings
        why = f"{'a' if is_named else 'no'} warning names {last}" if len(saved) > 1 else "nothing else was saved"
        because = f"it did not raise, and {why}"
        if life.gate.failed:
            run.expect_landing("place.checked", loaded, saved if is_named else {4}, because)
            run.expect_state("place.checked", life, loaded.step, only=returned)
    finally:
        life.gate.stop_failing()
        life.gate.check()


# -- who may read it ----------------------------------------------------------------


@pytest.mark.parametrize("umask", UMASKS, ids="{:03o}".format)
@judges("place.umask")
def test_modes_are_what_the_umask_leaves(run: Scenario, mode: str, umask: int) -> None:
    life = run.start(mode=mode, arrange=lambda life: life.umask(umask))
    life.commit_at(2, 4)
    _expect_modes(run, umask)
    life.kill()
    again = run.start(mode=mode, seed=999, arrange=lambda life: life.umask(umask))
    run.expect_landing("place.umask", again.load(), {4}, "its owner may read it")
    again.commit_at(6)
    _expect_modes(run, umask)


@judges("place.umask")
def test_others_can_not_read_what_is_still_being_written(run: Scenario, flush_mode: str) -> None:
    life = run.start(gated=True, mode=flush_mode, arrange=lambda life: life.umask(0o077))
    life.commit_at(1)
    life.train_to(2)
    if not life.save_held():
        raise Unreached("a flush can't be held while the save returns")
    _expect_modes(run, 0o077)
    life.open_gate()
    life.wait()


def _expect_modes(run: Scenario, umask: int) -> None:
    wrong = []
    for path in sorted(run.folder.path.rglob("*")):
        found = path.lstat().st_mode
        if not stat.S_ISLNK(found) and stat.S_IMODE(found) != place.mode(umask, stat.S_ISDIR(found)):
            wrong.append(f"{path.relative_to(run.folder.path)} has mode {stat.S_IMODE(found):03o}")
    run.expect(
        "place.umask",
        not wrong,
        expected=f"directories of mode {place.mode(umask, True):03o} and files of mode {place.mode(umask, False):03o}",
        seen=", ".join(wrong),
    )


# -- the process --------------------------------------------------------------------


_OF_ALL_THREADS = ("working_directory", "umask", "environment")


@judges("place.process")
def test_saves_leave_the_process_as_it_was(run: Scenario, any_mode: str) -> None:
    life = run.start(mode=any_mode)
    life.worker.call("enlarge", size_bytes=LARGE_BYTES)
    run.judge.tell(f"its model has a tensor of {LARGE_BYTES:,} bytes")
    at_first = life.process()
    life.commit_at(1)
    _expect_same(run, at_first, life.process(), ("settings",), "the first save")
    life.commit_at(2)  # what is made once and kept is there now
    before, steps = life.process(), count(3)

    def commit_next() -> None:
        step = next(steps)
        life.commit_at(step)
        _expect_same(
            run, before, life.process(), (*_OF_ALL_THREADS, "handlers", "settings"), f"the save of step {step}"
        )

    _expect_no_growth(run, life, commit_next, "saves")


@judges("place.process")
def test_saves_that_fail_leave_the_process_as_it_was(run: Scenario) -> None:
    life = run.start(mode="sync", gated=True)
    life.commit_at(1)
    calls = {"sync": ("fsync", "fdatasync"), "write": WRITES}
    for how in calls:
        _save_or_fail(run, life, calls[how])
    before = life.process()

    def fail_in_each_way() -> None:
        for how in calls:
            _save_or_fail(run, life, calls[how])

    _expect_no_growth(run, life, fail_in_each_way, "saves that failed")
    _expect_same(run, before, life.process(), (*_OF_ALL_THREADS, "handlers", "settings"), "saves that failed")


def _save_or_fail(run: Scenario, life: Life, calls: tuple[str, ...]) -> None:
    """Save with these system calls failing; whether that is an error is for the chapter commit to judge."""
    life.train_to_next()
    life.gate.fail(lambda operation: operation.name in calls, errno.EIO)
    run.judge.tell(f"{' and '.join(calls)} fail with EIO")
    with suppress(Raised):
        life.save()
    life.gate.stop_failing()


@judges("place.process")
def test_loads_leave_the_process_as_it_was(run: Scenario) -> None:
    """A framework that resumes as its loop begins may handle signals in that loop."""
    run.start().commit_at(2)
    life = run.start(seed=999)
    life.load()
    before = life.process()

    def load() -> None:
        life.load()
        _expect_same(run, before, life.process(), (*_OF_ALL_THREADS, "settings"), "a load")

    _expect_no_growth(run, life, load, "loads")


@judges("place.process")
def test_a_flush_leaves_the_process_as_it_is_while_it_goes_on(run: Scenario, flush_mode: str) -> None:
    """Working directory and umask belong to all threads: training would meanwhile use them."""
    life = run.start(gated=True, mode=flush_mode)
    life.commit_at(1)
    before = life.process()
    life.train_to(2)
    if not life.save_held():
        raise Unreached("a flush can't be held while the save returns")
    _expect_same(run, before, life.process(), (*_OF_ALL_THREADS, "handlers"), "a flush that is held back")
    life.open_gate()
    life.wait()


def _expect_same(run: Scenario, before: dict[str, Any], after: dict[str, Any], names: Iterable[str], what: str) -> None:
    for name in names:
        run.expect(
            "place.process",
            before[name] == after[name],
            expected=f"the {name.replace('_', ' ')} as before {what}",
            seen=_change(before[name], after[name]),
        )


def _change(before: Any, after: Any) -> str:
    if not isinstance(before, dict):
        return f"{before} before, {after} after"
    return ", ".join(
        f"{key} was {before.get(key, 'missing')}, is {after.get(key, 'missing')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    )


def _expect_no_growth(run: Scenario, life: Life, repeat: Callable[[], None], what: str) -> None:
    """Repeat something until nothing grows any more: a pool of threads, and what each of them keeps, has an end."""
    grown: dict[str, str] = {}
    for number in range(ROUNDS):
        before = life.process()
        for _ in range(SAVES):
            repeat()
        now = _grown(before, life.process())
        grown = {name: said for name, said in now.items() if number == 0 or name in grown}
        if not grown:
            break
    run.expect(
        "place.process",
        not grown,
        expected=f"no growth from one of the {what} to the next, "
        f"with {before['memory_bytes']:,} bytes of memory before the last {SAVES}",
        seen=f"{', '.join(grown.values())} after another {SAVES} {what}, as after those before",
    )


def _grown(before: dict[str, Any], after: dict[str, Any]) -> dict[str, str]:
    """What there is more of, by one or more for each repetition, and how much."""
    found = {}
    for name in ("descriptors", "threads"):
        grown = len(after[name]) - len(before[name])
        new = ", ".join(sorted(set(after[name]) - set(before[name])))
        if grown >= SAVES:
            found[name] = f"{grown} more {name} ({new or 'of the same names'})"
    children = after["children"] - before["children"]
    if children >= SAVES:
        found["children"] = f"{children} more children"
    size_bytes = after["memory_bytes"] - before["memory_bytes"]
    if size_bytes >= SAVES * LARGE_BYTES // 2:
        found["memory"] = f"{size_bytes:,} more bytes of memory"
    return found


# -- the temporary folder -----------------------------------------------------------


@judges("place.scratch")
def test_the_temporary_folder_may_be_on_another_disk(run: Scenario, mode: str) -> None:
    with _on_another_disk(run.folder.path) as scratch:
        _expect_no_need_of(run, mode, scratch)
        left = [entry.name for entry in scratch.iterdir()]
        run.expect("place.scratch", not left, expected="nothing in the temporary folder", seen=f"it holds {left}")


@contextmanager
def _on_another_disk(folder: Path) -> Iterator[Path]:
    """An empty directory on another file system than the folder."""
    here = folder.stat().st_dev
    for where in (Path("/dev/shm"), Path("/var/tmp"), Path("/tmp"), Path("/run"), Path.home()):
        if where.is_dir() and where.stat().st_dev != here and os.access(where, os.W_OK | os.X_OK):
            with tempfile.TemporaryDirectory(prefix="forge-scratch-", dir=where) as scratch:
                yield Path(scratch)
            return
    raise Unreached("there is no second file system that may be written to")


@pytest.mark.parametrize("after", [2, 4])
@judges("place.scratch")
def test_with_the_temporary_folder_on_another_disk_a_kill_costs_nothing_either(run: Scenario, after: int) -> None:
    """From there a file comes by a copy and not by a rename, and for as long as it takes half of it is here."""
    with _on_another_disk(run.folder.path) as scratch:
        life = run.start(gated=True, arrange=lambda life: life.environment(TMPDIR=scratch))
        life.commit_at(2)
        life.train_to(4)
        begun = len(life.gate.log)
        life.close_gate(at(begun + after), saying=f"it stops before file operation number {after}")
        life.begin_save()
        if not life.gate.wait_held(run.patience_s):
            raise Unreached(f"a save has fewer than {after} file operations in its folder")
        life.kill()
        again = run.start(seed=999, arrange=lambda life: life.environment(TMPDIR=scratch))
        run.expect_landing("place.scratch", again.load(), {2, 4}, "2 was committed, 4 was being saved")
        run.expect_state("place.scratch", again, again.step)


@judges("place.scratch")
def test_the_temporary_folder_may_be_missing(run: Scenario, mode: str, tmp_path: Path) -> None:
    _expect_no_need_of(run, mode, tmp_path / "missing")


def _expect_no_need_of(run: Scenario, mode: str, scratch: Path) -> None:
    with run.start(mode=mode, arrange=lambda life: life.environment(TMPDIR=scratch)) as life:
        life.commit_at(2, 4)
        _expect_saved(run, "place.scratch", {2, 4})
        life.kill()
    again = run.start(mode=mode, seed=999, arrange=lambda life: life.environment(TMPDIR=scratch))
    run.expect_landing("place.scratch", again.load(), {4}, f"only TMPDIR is {scratch}")
    run.expect_state("place.scratch", again, 4)


# -- helpers ------------------------------------------------------------------------


def _directories(below: Path, *names: str) -> list[Path]:
    made = [below / name for name in names]
    for path in made:
        path.mkdir()
    return made


def _move(run: Scenario, at: Path) -> None:
    """From here on the folder of the scenario is this one, which is made."""
    at.mkdir(parents=True, exist_ok=True)
    run.folder = replace(run.folder, path=at)
    run.judge.folder = str(at)


def _arrive(life: Life, at: Path, **environment: Path) -> None:
    life.environment(**environment)
    life.chdir(at)


def _save_at(life: Life, *steps: int) -> None:
    """Save and wait at each of these steps; where they are is for the test to judge."""
    for step in steps:
        life.save_at(step)
        life.wait()


def _made_or_refused(run: Scenario, **settings: Any) -> Life | None:
    """A process with its manager; None if that refuses to be made with a relative path, which loses nothing."""
    try:
        return run.start(**settings)
    except Raised as refused:
        run.expect("place.fixed", True, expected="a manager, or an error", seen=refused)
        return None


def _expect_saved(run: Scenario, clause: str, steps: set[int]) -> None:
    run.expect(
        clause,
        run.folder.complete() == steps,
        expected=f"the complete steps {sorted(steps)} in {run.folder.path}",
        seen=f"{run.folder}",
    )


def _expect_no_tilde(run: Scenario, below: Path) -> None:
    strays = sorted(str(path) for path in below.rglob("~*"))
    run.expect("place.home", not strays, expected="no directory called ~", seen=f"{', '.join(strays[:3])}")


def _listed(directory: Path) -> list[tuple[str, int, str]]:
    """Every name below, with its size and what it leads to."""
    found = sorted(directory.rglob("*"))
    return [(str(path), path.lstat().st_size, os.readlink(path) if path.is_symlink() else "") for path in found]
