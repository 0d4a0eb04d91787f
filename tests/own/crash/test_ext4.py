"""The rules for ext4 against a real one: an image is copied while it is mounted, which is what a loss of power leaves.

What the block device has got by then is in the image's file; mounting the copy
replays its journal, as the next boot would.  Each disk found so has to be one
that the rules allow.  Without the right to mount there is nothing to see here.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from forge_conformance.disks.states import Walk
from forge_conformance.watch.recorder import Control, Operation
from forge_conformance.watch.trace import Disk, Trace
from forge_spec.disk import STORAGES, Entries, may_hold, versions

from .conftest import Program, needs_recorder

pytestmark = needs_recorder
EXT4 = STORAGES["ext4"]

PROGRAMS = {
    "renames without a sync": """
for n in range(6):
    with open("tmp", "wb") as file: file.write(bytes([65 + n]) * 9000)
    os.rename("tmp", "pointer")
    with open(f"other{n}", "wb") as file: file.write(b"o"); file.flush(); os.fsync(file.fileno())
""",
    "directories and syncs of them": """
for n in range(5):
    os.mkdir(f"d{n}")
    for m in range(3):
        with open(f"d{n}/f{m}", "wb") as file: file.write(os.urandom(5000 * m))
    if n % 2: fd = os.open(f"d{n}", 0); os.fsync(fd); os.close(fd)
    if n > 1: shutil.rmtree(f"d{n - 2}")
""",
    "growing and cutting": """
fd = os.open("log", os.O_CREAT | os.O_WRONLY)
for n in range(8):
    os.write(fd, bytes([97 + n]) * 6000)
    if n == 3: os.fsync(fd)
    if n == 5: os.ftruncate(fd, 10000); os.lseek(fd, 0, 2)
    if n == 6: os.fdatasync(fd)
    os.rename("log", "log2"); os.rename("log2", "log")
""",
}


@contextmanager
def mounted(image: Path, at: Path, options: str) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", f"loop,{options}", image, at], check=True, capture_output=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True, capture_output=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    try:
        with path.open("wb") as file:
            file.truncate(8 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", path], check=True, capture_output=True)
        with mounted(path, tmp_path / "tried", "noauto_da_alloc"):
            pass
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no ext4 image can be made and mounted here: {error}")
    return path


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_a_real_ext4_leaves_is_allowed_by_the_rules(image: Path, tmp_path: Path, name: str) -> None:
    copies: list[Path] = []

    def copy(operation: Operation) -> int:
        copies.append(tmp_path / f"copy-{operation.number}")
        shutil.copyfile(image, copies[-1])
        return 0

    with mounted(image, tmp_path / "mount", "noauto_da_alloc") as mount:
        (mount / "folder").mkdir()
        os.sync()
        ran = Program(mount / "folder")(PROGRAMS[name], Control(fails=copy))
        assert ran.status == 0
    cuts = [at for at in range(ran.trace.begins, len(ran.trace.effects)) if ran.trace.calls[at] is not None]
    operations = [at for at in cuts if "close(" not in str(ran.trace.calls[at])]
    assert len(copies) == len(operations) > 20
    is_whole = []
    for cut, left in zip(operations, copies, strict=True):
        with mounted(left, tmp_path / "seen", "noauto_da_alloc") as seen:
            disk = Disk.read(seen / "folder")
        assert is_allowed(ran.trace, cut, disk), f"after {cut} effects: {sorted(disk.nodes)}"
        is_whole.append(ran.trace.disk(cut).differences(disk) == [])
    assert not all(is_whole), "nothing was ever lost, so nothing was tested"


def is_allowed(trace: Trace, cut: int, disk: Disk) -> bool:
    """Whether the journal may have ended somewhere so that these names, and these contents, are left."""
    walk = Walk(trace, EXT4)
    walk.go_to(cut)
    unsafe = walk.unsafe_names
    entries = [at for at, effect in enumerate(trace.effects[:cut]) if isinstance(effect, Entries)]
    ends = ([at for at in entries if at not in unsafe[start:]] for start in range(len(unsafe) + 1))
    return any(_fits(trace, cut, trace.names(kept), disk) for kept in ends)


def _fits(trace: Trace, cut: int, names: dict[str, int], disk: Disk) -> bool:
    if names.keys() != disk.nodes.keys():
        return False
    return all(
        may_hold(disk.nodes[path].content, versions(trace.effects, cut, number, b"", EXT4), EXT4)
        for path, number in names.items()
        if trace.inodes[number].kind == "f"
    )
