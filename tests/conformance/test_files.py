"""What stands in the place of a checkpoint's files, and what a marker says of them: nothing of it is believed unseen.

A marker that was changed is one of stock DCP, beside a `metadata.json` that says
no more than the shared layout asks for: so no checksum of the manager's own
tells of the change, as none would in a checkpoint of another writer.
"""

import json
import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from forge_conformance.judging.judge import Unreached, judges
from forge_conformance.runs.life import Life
from forge_conformance.runs.process import Raised
from forge_conformance.runs.scenario import Scenario
from forge_conformance.runs.state import ALL_KINDS
from forge_spec import layout

OLDER, NEWER = 2, 4
_MEMORY = 2 << 30
"""Bytes that a reader may take; far more than any checkpoint of the suite needs."""
_HOLE = 40 << 30
_ESCAPES = "\x1b[31m\x07\nforged: line"


@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a directory", "a link to a device", "a link to a pipe"])
@judges("trust.regular-files")
def test_what_is_no_file_is_neither_waited_for_nor_read(run: Scenario, kind: str, tmp_path: Path) -> None:
    run.start().commit_at(OLDER, NEWER)
    life = _limited(run)
    for name in _every_file(run, NEWER):
        with _in_the_place_of(run.folder.of(NEWER) / name, kind, tmp_path):
            run.judge.tell(f"{name} of step {NEWER} is {kind}")
            _expect_refused(run, "trust.regular-files", life, [name], f"{kind} in the place of {name}")


@pytest.mark.parametrize("kind", ["a pipe", "a link to a device"])
@judges("trust.regular-files", needs=("retention",))
def test_a_torn_checkpoint_that_is_only_looked_at_stops_nobody(run: Scenario, kind: str, tmp_path: Path) -> None:
    """It looks like one in stages, so that a reader asks its metadata how many there are."""
    run.start().commit_at(OLDER, NEWER, 6)
    torn = run.folder.of(NEWER)
    (torn / run.folder.stage(0)).mkdir()
    (torn / layout.MARKER).unlink()
    with _in_the_place_of(torn / layout.METADATA, kind, tmp_path):
        run.judge.tell(f"step {NEWER} is torn, and its {layout.METADATA} is {kind}; step 6 is torn: {run.tear(6)}")
        life = _limited(run, keep_last_n=1)
        loaded = life.load()
        run.expect_landing("trust.regular-files", loaded, {OLDER}, "the others are torn")
        life.commit_at(8)
        run.expect(
            "trust.regular-files",
            8 in run.folder.complete(),
            expected="step 8 committed beside it",
            seen=str(run.folder),
        )


@pytest.mark.parametrize("how", ["relative", "absolute", "through a link"])
@judges("trust.inside")
def test_a_marker_leads_to_no_file_outside_its_checkpoint(run: Scenario, how: str) -> None:
    run.start().commit_at(OLDER, NEWER)
    older = run.folder.of(OLDER)
    prefix = {"relative": f"../{older.name}/", "absolute": f"{older}/", "through a link": "beside/"}[how]
    if how == "through a link":
        (run.folder.of(NEWER) / "beside").symlink_to(f"../{older.name}")
    life = _limited(run)
    _make_foreign(run, life, "elsewhere", prefix)
    run.judge.tell(f"the marker of step {NEWER} names shards at {prefix}")
    _expect_refused(run, "trust.inside", life, [layout.MARKER], f"shards at {prefix}")


@judges("trust.inside", "trust.sizes")
def test_a_marker_of_another_writer_that_is_right_is_not_refused(run: Scenario) -> None:
    """The twin of every refusal here."""
    run.start().commit_at(OLDER, NEWER)
    life = _limited(run)
    _make_foreign(run, life, "nothing")
    loaded = life.load()
    for clause in ("trust.inside", "trust.sizes"):
        run.expect_landing(clause, loaded, {NEWER}, "nothing is wrong with it", reaches=False)
    run.expect_state("trust.inside", life, NEWER)


_STRUCTURES = [
    "stored-nowhere",
    "stored-before-the-file",
    "no-list-of-chunks",
    "too-deep",
    "below-a-value",
    "no-marker",
]


@pytest.mark.parametrize("how", ["huge", *_STRUCTURES])
@judges("trust.sizes")
def test_a_marker_is_not_taken_at_its_word(run: Scenario, how: str) -> None:
    run.start().commit_at(OLDER, NEWER)
    life = _limited(run)
    _make_foreign(run, life, how)
    run.judge.tell(f"the marker of step {NEWER} describes something that can't be: {how}")
    refused = _expect_refused(run, "trust.sizes", life, [str(run.folder.of(NEWER))], f"a marker that is {how}")
    _expect_no_memory_taken(run, refused)


@pytest.mark.parametrize("is_foreign", [False, True], ids=["own", "of-another-writer"])
@pytest.mark.parametrize("name", [layout.MARKER, layout.TRAIN_STATE, layout.METADATA])
@judges("trust.sizes")
def test_a_file_that_is_a_hole_takes_no_memory(run: Scenario, name: str, is_foreign: bool) -> None:
    run.start().commit_at(OLDER, NEWER)
    life = _limited(run)
    if is_foreign:
        _make_foreign(run, life, "nothing")
    file = run.folder.of(NEWER) / name
    file.write_bytes(b"")
    os.truncate(file, _HOLE)
    run.judge.tell(f"{name} of step {NEWER} is a hole of {_HOLE:,} bytes")
    _expect_no_memory_taken(run, _expect_refused(run, "trust.sizes", life, [name], f"{name} of 40 gigabytes"))


@judges("trust.full-unpickling-said")
def test_full_unpickling_is_told_and_reading_data_is_not(run: Scenario) -> None:
    life = run.start()
    life.train_to(OLDER)
    life.commit(extra={"plain": [1, "two"]})
    reader = run.start(seed=999)
    loaded = reader.load()
    run.expect_landing("trust.full-unpickling-said", loaded, {OLDER}, reaches=False)
    run.expect(
        "trust.full-unpickling-said",
        layout.TRAIN_STATE not in reader.warnings,
        expected="no warning about plain data",
        seen=reader.warnings,
        reaches=False,
    )
    life.train_to(NEWER)
    life.worker.call("save_object")
    life.wait()
    run.judge.tell(f"{life.name} saves step {NEWER} with a slice in its extra, which is no plain data")
    loaded = reader.load()
    if not any("slice" in name for names in loaded.globals.values() for name in names):
        raise Unreached("the value is restored without being unpickled in full")
    run.expect_warning("trust.full-unpickling-said", reader, layout.TRAIN_STATE, "slice")


@judges("trust.escaped", needs=("pointer",))
def test_a_pointer_with_escapes_is_told_escaped(run: Scenario) -> None:
    run.start().commit_at(OLDER)
    run.folder.point_at(f"step_9{_ESCAPES}")
    run.judge.tell(f"the pointer names {f'step_9{_ESCAPES}'!r}")
    life = run.start(seed=999)
    _expect_escaped(run, life, lambda: life.load(), "step_9")


@judges("trust.escaped")
def test_a_tensor_with_escapes_in_its_name_is_told_escaped(run: Scenario) -> None:
    run.start().commit_at(NEWER)
    life = run.start(seed=999)
    name = _make_foreign(run, life, "doubled", _ESCAPES)
    run.judge.tell(f"the marker has the tensor {name} once more, as {name + _ESCAPES!r}")
    _expect_escaped(run, life, lambda: life.load(), name.partition(".")[2])


@judges("trust.escaped", needs=("freeze",))
def test_a_module_with_escapes_in_its_name_is_told_escaped(run: Scenario) -> None:
    life = run.start()
    life.train_to(NEWER)
    life.commit(extra={"vlm_freeze": [{"module": f"vision{_ESCAPES}", "frozen": True}]})
    reader = run.start(seed=999)
    expected = [{"module": "text", "frozen": True}]
    _expect_escaped(run, reader, lambda: reader.load(freeze_expected=expected), "vision")


# -- helpers ------------------------------------------------------------------------


def _limited(run: Scenario, **settings: Any) -> Life:
    """A process that comes back later, and may not take much memory: a wrong manager would take all there is."""
    life = run.start(seed=999, **settings)
    life.worker.call("limit_memory", more_bytes=_MEMORY)
    return life


def _every_file(run: Scenario, step: int) -> list[str]:
    path = run.folder.of(step)
    return sorted(str(one.relative_to(path)) for one in path.rglob("*") if one.is_file())


@contextmanager
def _in_the_place_of(file: Path, kind: str, elsewhere: Path) -> Iterator[None]:
    aside, target = elsewhere / "aside", elsewhere / "target"
    file.rename(aside)

    def link_to_pipe() -> None:
        os.mkfifo(target)
        file.symlink_to(target)

    ways: dict[str, Callable[[], object]] = {
        "a pipe": lambda: os.mkfifo(file),
        "a socket": lambda: _bind(file),
        "a directory": lambda: file.mkdir(),
        "a link to a device": lambda: file.symlink_to("/dev/zero"),
        "a link to a pipe": link_to_pipe,
    }
    ways[kind]()
    try:
        yield
    finally:
        if os.path.lexists(file.parent):  # the checkpoint may have been deleted meanwhile
            shutil.rmtree(file) if stat.S_ISDIR(os.lstat(file).st_mode) else file.unlink()
            aside.rename(file)
        target.unlink(missing_ok=True)


def _bind(file: Path) -> None:
    """A socket at this path, however long that is."""
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
            bound.bind(f"/proc/self/fd/{directory}/{file.name}")
    finally:
        os.close(directory)


def _make_foreign(run: Scenario, life: Life, how: str, value: str = "") -> str:
    """Make step 4 one that another writer might have left, with a marker changed in this way; what that is about."""
    checkpoint = run.folder.of(NEWER)
    name: str = life.worker.call("rewrite_marker", path=str(checkpoint / layout.MARKER), how=how, value=value)
    (checkpoint / layout.METADATA).write_text(json.dumps({"step": NEWER, "tokens_seen": 32 * NEWER}))
    run.judge.tell(f"step {NEWER} gets the marker and the {layout.METADATA} of another writer")
    return name


def _expect_no_memory_taken(run: Scenario, refused: Raised | None) -> None:
    """A refusal that came of a lack of memory has asked for it; where there is more, it would have taken it."""
    asked = refused is not None and ("MemoryError" in refused.kinds or "allocate memory" in refused.message)
    run.expect("trust.sizes", not asked, expected="a refusal before memory is asked for", seen=str(refused))


def _expect_refused(run: Scenario, clause: str, life: Life, names: list[str], what: str) -> Raised | None:
    """An error that names one of these and leaves everything as it was, or a fallback with a warning that does."""
    before = life.digest()
    try:
        loaded = life.load()
    except Raised as error:
        named = any(name in error.message for name in names)
        run.expect(clause, named, expected=f"{what} to be refused by the name {' or '.join(names)}", seen=str(error))
        run.expect_same(clause, life.digest(), before, ALL_KINDS, "the state before the refused load")
        return error
    run.expect(
        clause,
        loaded.step != NEWER and any(name in life.warnings for name in names),
        expected=f"{what} to be refused, or passed over with a warning that names {' or '.join(names)}",
        seen=f"a load of step {loaded.step}; warnings: {life.warnings!r}",
    )
    return None


def _expect_escaped(run: Scenario, life: Life, call: Callable[[], object], near: str) -> None:
    """Whatever the call says repeats the name, and nothing of it that a terminal would obey."""
    said = ""
    try:
        call()
    except Raised as error:
        said = error.message
    said = "\n".join(one for one in (said, *life.worker.warnings) if near in one)
    if "forged: line" not in said:
        raise Unreached(f"nothing that it says repeats the name: {said!r}")
    run.expect(
        "trust.escaped",
        "\x1b" not in said and "\x07" not in said and "\nforged" not in said,
        expected="its control characters escaped",
        seen=repr(said),
    )
