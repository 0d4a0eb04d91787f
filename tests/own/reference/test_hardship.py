"""Disks that fill, that refuse direct writes or want them aligned, and memory that can't be had: nothing is lost."""

import ctypes
import errno
import fcntl
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, names

from forge_ref import SaveError
from forge_ref.engine import flush

Start = Callable[..., Run]
Write = Callable[[int, Any, int], int]


def is_direct(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_a_disk_that_fills_in_the_middle_of_a_direct_write_costs_that_save_alone(
    start: Start, monkeypatch: pytest.MonkeyPatch, equal: Callable[[Any, Any], bool], mode: str
) -> None:
    run, write, written = start(async_mode=mode), os.pwrite, list[int]()
    run.train(1)
    run.save(1)
    run.manager.wait()
    picture = run.picture()
    monkeypatch.setattr(flush, "_CHUNK", flush.PAGE)

    def fill(descriptor: int, content: Any, offset: int) -> int:
        if written:
            raise OSError(errno.ENOSPC, "no space left")
        written.append(write(descriptor, content, offset))
        return written[0]

    run.train(1)
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", fill)
        with pytest.raises(
            SaveError, match=r"saving step 2 in .* failed, nothing was committed: OSError.*no space left"
        ):
            run.save(2)
            run.manager.wait()
    assert written == [flush.PAGE]
    assert names(run.folder) == ["latest", "step_1"]
    run.save(2)
    run.manager.wait()
    other = start(seed=7)
    assert other.load(run.folder / "step_1")[0] == 1
    assert equal(other.picture()["parameters"], picture["parameters"])
    assert other.load()[0] == 2
    assert equal(other.picture()["moments"], run.picture()["moments"])


def test_direct_writes_fit_sectors_of_4096_bytes(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    run, write, direct = start(), os.pwrite, list[tuple[int, int, int]]()

    def noted(descriptor: int, content: Any, offset: int) -> int:
        if is_direct(descriptor):
            address = ctypes.addressof(ctypes.c_char.from_buffer(content))
            direct.append((address % 4096, len(content) % 4096, offset % 4096))
        return write(descriptor, content, offset)

    monkeypatch.setattr(os, "pwrite", noted)
    run.train(1)
    run.save(1)
    assert len(direct) > 1
    assert set(direct) == {(0, 0, 0)}


def test_a_direct_write_that_is_cut_short_goes_on_where_it_ended(
    start: Start, monkeypatch: pytest.MonkeyPatch, equal: Callable[[Any, Any], bool]
) -> None:
    """What is left begins in the middle of a sector, so that it is written the buffered way."""
    run, write, lengths = start(), os.pwrite, list[int]()

    def cut(descriptor: int, content: Any, offset: int) -> int:
        if not is_direct(descriptor):
            return write(descriptor, content, offset)
        if offset % 4096:
            raise OSError(errno.EINVAL, "not aligned")
        lengths.append(1000)
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        count = write(descriptor, content[:1000], offset)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
        return count

    run.train(1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", cut)
        run.save(1)
    assert lengths == [1000]
    other = start(seed=7)
    assert other.load()[0] == 1
    assert equal(other.picture()["parameters"], run.picture()["parameters"])


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder on a file system that is another than that of temporary files, and lies in memory."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        assert os.stat(folder).st_dev != os.stat(tempfile.gettempdir()).st_dev
        yield Path(folder)


def test_a_folder_on_another_file_system_than_temporary_files_is_saved_into(
    in_memory: Path, equal: Callable[[Any, Any], bool]
) -> None:
    run = Run(in_memory / "checkpoints", keep_last_n=1)
    run.train(1)
    for step in (1, 2, 2):
        run.save(step)
    assert names(run.folder) == ["latest", "step_2"]
    other = Run(in_memory / "checkpoints", seed=7)
    assert other.load()[0] == 2
    assert equal(other.picture()["parameters"], run.picture()["parameters"])


@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_memory_that_can_not_be_had_refuses_the_save_and_loses_nothing(
    start: Start, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    start().save(1)
    run = start(seed=1, async_mode=mode)
    run.load()
    with monkeypatch.context() as patched:
        patched.setattr(mmap, "mmap", refuse)
        run.train(1)  # after which memory for the first save is asked for beside training
        with pytest.raises((MemoryError, SaveError), match=r"has no .* bytes for a copy of what this rank saves"):
            run.save(2)
            run.manager.wait()
    assert names(run.folder) == ["latest", "step_1"]
    run.save(3)
    run.manager.wait()
    assert start(seed=2).load()[0] == 3


def test_the_first_asynchronous_save_copies_into_memory_that_was_made_beside_training(start: Start) -> None:
    run = start(async_mode="async")
    shards = run.manager._run.checkpointer.shards
    assert shards._room is None, "before the first step nobody knows the moments"
    run.train(1)
    assert shards._room is not None
    made = shards._room.result()
    run.save(1)
    run.manager.wait()
    assert shards._image is not None
    assert shards._image.view.obj is made
    run.train(1)
    assert shards._room is None, "it is made once"
