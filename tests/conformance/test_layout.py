"""Chapter layout: what a checkpoint looks like on disk."""

import json
import os
import shutil
from pathlib import Path

import pytest

from forge_conformance.judging.judge import Unreached, judges
from forge_conformance.runs.scenario import Scenario
from forge_conformance.watch.gate import Operation, Picks
from forge_spec import layout

_FIRST_OPERATIONS = 3
"""Of a save, after which something of it is there."""
FREEZE = [{"module": "adapter", "frozen": False}, {"module": "vision", "frozen": True}]


@judges("layout.step-dir")
def test_a_checkpoint_is_a_directory_of_its_step_with_shards_and_markers(run: Scenario, any_mode: str) -> None:
    life = run.start(mode=any_mode)
    life.save_at(3)
    life.wait()
    path = run.folder.path / "step_3"
    files = [str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()]
    missing = layout.missing(files)
    run.expect("layout.step-dir", not missing, expected=f"{path.name} with {layout.required()}", seen=f"{files}")
    shards = [name for name in files if name.endswith(".distcp")]
    run.expect("layout.step-dir", bool(shards), expected="shards (*.distcp) beside the markers", seen=f"{files}")


@judges("layout.latest-relative")
def test_the_folder_can_be_moved_whole(run: Scenario, mode: str, tmp_path: Path) -> None:
    run.start(mode=mode).commit_at(2, 4)
    target = run.folder.pointer_target()
    run.expect(
        "layout.latest-relative",
        target is not None and layout.is_relative(target),
        expected="the bare name of a checkpoint in the same folder",
        seen=repr(target),
    )
    moved = tmp_path / "moved"
    run.folder.path.rename(moved)
    life = run.start(seed=999, folder=str(moved))
    run.judge.tell("the whole folder was moved to another place")
    run.expect_landing("layout.latest-relative", life.load(), {4})


@judges("layout.metadata-json")
def test_the_metadata_is_readable_and_says_step_tokens_and_freeze(run: Scenario, mode: str) -> None:
    life = run.start(mode=mode)
    life.train_to(2)
    life.commit(extra={"note": "no freeze here"})
    life.train_to(3)
    life.commit(extra={"vlm_freeze": FREEZE})
    life.train_to(4)
    life.commit()
    life.train_to(5)
    life.commit(extra={"vlm_freeze": []})
    for step, freeze in ((2, None), (3, FREEZE), (4, None), (5, [])):
        path = run.folder.of(step) / layout.METADATA
        metadata = json.loads(path.read_text())
        errors = layout.metadata_errors(metadata, step, 32 * step, freeze)
        run.expect(
            "layout.metadata-json",
            not errors,
            expected=f"step {step}, tokens_seen {32 * step}, "
            + ("no vlm_freeze" if freeze is None else f"vlm_freeze {freeze}"),
            seen=f"{metadata}: {'; '.join(errors)}",
        )


@judges("layout.only-step-names", needs=("retention",))
def test_look_alikes_are_never_counted_read_or_deleted(run: Scenario, mode: str) -> None:
    life = run.start(mode=mode)
    life.commit_at(2)
    planted = _plant_look_alikes(run, of=2)
    before = {name: _contents(run.folder.path / name) for name in planted}
    limited = run.start(mode=mode, keep_last_n=2, seed=999)
    run.expect_landing("layout.only-step-names", limited.load(), {2}, "only step 2 is a checkpoint")
    limited.commit_at(4, 6)
    run.expect(
        "layout.only-step-names",
        {4, 6} <= run.folder.complete(),
        expected="steps 4 and 6, the newest two checkpoints, to be kept",
        seen=str(run.folder),
    )
    after = {name: _contents(run.folder.path / name) for name in planted}
    changed = [name for name in planted if before[name] != after[name]]
    run.expect("layout.only-step-names", not changed, expected=f"{planted} untouched", seen=f"changed: {changed}")
    _, loaded = run.resume(mode=mode)
    run.expect_landing("layout.only-step-names", loaded, {6})


@judges("layout.only-step-names")
def test_what_a_death_has_left_is_safe_under_another_name(run: Scenario) -> None:
    """A manager may delete its own debris, known by its name; somebody has put a copy aside to look into it."""
    life = run.start(gated=True)
    life.commit_at(2)
    life.train_to(4)
    before = set(os.listdir(run.folder.path))
    life.gate.close(_writes_in_something_new(run, before))
    life.begin_save()
    life.worker.replies_or_blocks()
    life.gate.wait_held(0.2)  # a flush in the background may begin late; then it dies before that
    life.kill()
    left = sorted(set(os.listdir(run.folder.path)) - before)
    if not left:
        raise Unreached("a save that is killed while it writes leaves nothing new in the folder")
    kept = {f"{name}{ending}": run.folder.path / name for name in left for ending in (" (copy)", ".kept-by-hand")}
    for name, original in kept.items():
        copy = shutil.copytree if original.is_dir() else shutil.copy2
        copy(original, run.folder.path / name)
    run.judge.tell(f"somebody copies it to {', '.join(map(repr, kept))}")
    contents = {name: _contents(run.folder.path / name) for name in kept}
    again, _ = run.resume()
    again.commit_at(6, 8)
    changed = [name for name in kept if _contents(run.folder.path / name) != contents[name]]
    run.expect(
        "layout.only-step-names",
        not changed,
        expected=f"{', '.join(map(repr, kept))} untouched",
        seen=f"changed or gone: {changed}; {run.folder}",
    )


@judges("layout.only-step-names")
def test_a_folder_of_look_alikes_alone_is_a_fresh_start(run: Scenario, tmp_path: Path) -> None:
    run.start().commit_at(2)
    _plant_look_alikes(run, of=2)
    target = run.folder.of(2)
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    if run.folder.layout.pointer is not None:
        run.folder.point_at(None)
    run.judge.tell("step 2 itself and the pointer were removed; only look-alikes are left")
    _, loaded = run.resume()
    run.expect_landing("layout.only-step-names", loaded, {None}, "nothing there has the name of a checkpoint")


@pytest.mark.parametrize("kind", ["directory", "file"])
@judges("layout.foreign-latest")
def test_a_pointer_name_that_is_taken_is_refused_at_the_first_commit(run: Scenario, mode: str, kind: str) -> None:
    pointer = run.folder.pointer
    if kind == "directory":
        pointer.mkdir()
        (pointer / "precious").write_text("somebody's data")
    elif run.folder.layout.pointer_kind == "symlink":
        pointer.write_text("somebody's data")
    else:
        raise Unreached("a pointer of kind text is a file: one that is taken can't be told from one that is used")
    run.judge.tell(f"{pointer.name} is a real {kind} before the run begins")
    with run.expect_error("layout.foreign-latest", naming=[pointer.name], doing="the first commit"):
        run.start(mode=mode).commit_at(2)
    kept = (pointer / "precious").exists() if kind == "directory" else pointer.read_text() == "somebody's data"
    run.expect("layout.foreign-latest", kept, expected=f"the {kind} as it was", seen=f"{run.folder.files()}")
    run.expect("layout.foreign-latest", not run.folder.torn(), expected="no half-made checkpoint", seen=str(run.folder))


def _writes_in_something_new(run: Scenario, before: set[str]) -> Picks:
    """All operations once a few have been on paths that are not inside what stood in the folder before."""
    begun = 0

    def picks(operation: Operation) -> bool:
        nonlocal begun
        begun += any(path.split("/")[0] not in before for path in operation.paths)
        return begun > _FIRST_OPERATIONS

    return picks


def _plant_look_alikes(run: Scenario, of: int) -> list[str]:
    """Names that resemble a checkpoint's and are none: complete copies of one, a file and a link."""
    original, name = run.folder.of(of), run.folder.layout.name
    planted = [
        name.format(step=word) for word in ("final", "100_backup", "50.tmp", "007", "+9", "\u0663")
    ]  # the last is a three
    for copy in planted:
        if run.folder.layout.is_dir:
            shutil.copytree(original, run.folder.path / copy)
        else:
            shutil.copy(original, run.folder.path / copy)
    odd, links = name.format(step=70), [name.format(step=step) for step in (1, 80)]
    if run.folder.layout.is_dir:
        (run.folder.path / odd).write_text("a file, not a directory")
        for link in links:
            os.symlink(original.name, run.folder.path / link)
    run.judge.tell(f"complete copies of {original.name} are put beside it: {', '.join(planted)}")
    if run.folder.layout.is_dir:
        run.judge.tell(f"and {odd}, which is a file, and {' and '.join(links)}, which are symlinks to {original.name}")
        planted += [odd, *links]
    return planted


def _contents(path: Path) -> object:
    if path.is_symlink():
        return os.readlink(path)
    if path.is_dir():
        return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    return path.read_bytes() if path.exists() else None
