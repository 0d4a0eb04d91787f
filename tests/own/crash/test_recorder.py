"""The recorder over real programs: what it says happened makes, replayed, what really stands in the folder."""

import errno
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from forge_conformance.watch.caller import today
from forge_conformance.watch.recorder import Control, Operation, launch
from forge_conformance.watch.trace import Disk, Journal
from forge_spec.disk import STORAGES, Bytes, Close, Entries, Size, Sync, safe_entries

from .conftest import Program, needs_recorder

pytestmark = needs_recorder

PROGRAMS = {
    "files": """
with open("a", "wb") as file:
    file.write(b"one"); file.flush(); file.seek(1); file.write(b"X")
with open("a", "ab") as file:
    file.write(b"tail")
os.truncate("a", 5)
""",
    "directories": """
os.makedirs("a/b/c"); os.rename("a/b", "moved"); os.rmdir("moved/c"); os.mkdir("a/again")
""",
    "links": """
open("file", "w").write("x"); os.link("file", "other"); os.unlink("file")
os.symlink("other", "link"); os.symlink("nowhere", "dangling"); os.rename("link", "dangling")
open("dangling", "a").write("through the link")
""",
    "vectors": """
fd = os.open("v", os.O_CREAT | os.O_RDWR)
os.writev(fd, [b"ab", b"cd"]); os.pwrite(fd, b"far", 9000); os.pwritev(fd, [b"x", b"y"], 1)
os.ftruncate(fd, 9001); os.posix_fallocate(fd, 0, 10000); os.lseek(fd, 4, 0); os.write(fd, b"here"); os.close(fd)
""",
    "failures": """
calls = (lambda: os.mkdir("there/no"), lambda: os.unlink("no"), lambda: open("no/x", "w"))
for call in calls:
    try: call()
    except OSError: pass
open("there", "w").write("after failures")
""",
    "threads and children": """
def write(n): open(f"t{n}", "w").write(str(n) * 1000)
threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
if os.fork() == 0:
    write(7); os._exit(0)
os.wait()
""",
    "copies": """
open("a", "wb").write(os.urandom(100_000)); shutil.copyfile("a", "b")
shutil.copytree(".", "../beside"); shutil.move("../beside", "tree")
""",
    "unnamed": """
fd = os.open(".", os.O_TMPFILE | os.O_RDWR); os.write(fd, b"made without a name")
os.link(f"/proc/self/fd/{fd}", "named", dst_dir_fd=os.open(".", 0), follow_symlinks=True)
""",
    "an exchange": """
import ctypes
os.mkdir("a"); os.mkdir("b"); open("a/x", "w").write("x"); open("b/y", "w").write("y")
assert ctypes.CDLL(None).renameat2(-100, b"a", -100, b"b", 2) == 0
""",
    "another directory": """
os.mkdir("sub"); os.chdir("sub"); open("../up", "w").write("relative"); fd = os.open(".", 0)
os.mkdir("in", dir_fd=fd); os.rename("in", "on", src_dir_fd=fd, dst_dir_fd=fd)
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_trace_makes_what_the_folder_really_holds(program: Program, name: str) -> None:
    ran = program(PROGRAMS[name])
    assert ran.status == 0
    assert ran.trace.unseen == ()
    assert len(ran.calls) > 1
    assert ran.trace.disk(len(ran.trace.effects)).differences(ran.left) == []


def test_what_was_there_before_is_part_of_the_trace_and_safe(program: Program) -> None:
    (program.folder / "old").mkdir()
    (program.folder / "old" / "file").write_text("before")
    ran = program("os.unlink('old/file')")
    begins = ran.trace.disk(ran.trace.begins)
    assert begins.nodes["old/file"].content == b"before"
    assert Sync(None) in ran.trace.effects[: ran.trace.begins]


@pytest.mark.parametrize("dies_at", range(1, 10))
def test_a_kill_at_an_operation_leaves_the_predicted_disk(program: Program, tmp_path: Path, dies_at: int) -> None:
    source = "for n in range(3):\n with open(f'f{n}', 'w') as file: file.write('x' * 10)\n os.rename(f'f{n}', 'kept')"
    whole = program(source)
    other = Program(tmp_path / "killed", program.kind)
    other.folder.mkdir()
    control = Control(dies_at=dies_at)
    killed = other(source, control=_killing(control))
    assert killed.status == -signal.SIGKILL
    operations = [at for at, effect in enumerate(whole.trace.effects) if not isinstance(effect, Close | Sync)]
    assert whole.trace.disk(operations[dies_at - 1]).differences(killed.left) == []


def _killing(control: Control) -> Control:
    """Kills whoever is watched: these programs have one process, which the journal does not know yet.

    Children from before are those of other tests: servers, and what removes their folders.
    """
    before = _children()

    def dies() -> None:
        for child in _children() - before:
            os.kill(child, signal.SIGKILL)

    control.dies = dies
    return control


def _children() -> set[int]:
    listed = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {int(child) for children in listed for child in children.read_text().split()}


def test_an_operation_fails_with_the_errno_that_was_asked_for_and_changes_nothing(program: Program) -> None:
    def full(operation: Operation) -> int:
        return errno.ENOSPC if operation.name == "write" else 0

    ran = program(
        "try: fd = os.open('a', os.O_CREAT | os.O_WRONLY); os.write(fd, b'x')\nexcept OSError as e: os._exit(e.errno)",
        Control(fails=full),
    )
    assert ran.status == errno.ENOSPC
    assert ran.left.nodes["a"].content == b""


def test_an_operation_is_held_until_it_is_released(program: Program) -> None:
    control = Control(holds=lambda operation: operation.name == "mkdirat")
    journal = Journal(program.folder)
    pid, recorder = launch(
        [sys.executable, "-c", f"import os; os.mkdir({str(program.folder / 'd')!r})"], journal, control
    )
    with recorder.changed:
        assert recorder.changed.wait_for(lambda: recorder.held(), 20)
    assert [str(held) for held in recorder.held()] == ["mkdirat(d)"]
    assert not (program.folder / "d").exists()
    recorder.release()
    assert os.waitpid(pid, 0)[1] == 0
    recorder.end()
    assert (program.folder / "d").is_dir()


def test_two_ranks_make_one_trace_in_one_order(program: Program) -> None:
    journal, control = Journal(program.folder), Control()
    source = "import os, sys\nos.chdir(sys.argv[1])\nfor n in range(20): open(f'{sys.argv[2]}-{n}', 'w').write('x' * n)"
    ranks = [
        launch([sys.executable, "-c", source, str(program.folder), str(rank)], journal, control, rank)
        for rank in range(2)
    ]
    for pid, recorder in ranks:
        assert os.waitpid(pid, 0)[1] == 0
        recorder.end()
        assert recorder.failure is None
    trace = journal.end()
    assert trace.unseen == ()
    assert {call.rank for call in trace.calls if call is not None} == {0, 1}
    assert len(trace.disk(len(trace.effects)).nodes) == 40
    assert control.done == 40 + 38  # opened, and written to but for the two of no bytes


def test_changes_through_a_shared_map_are_seen_at_the_next_operation_and_said_to_be(program: Program) -> None:
    ran = program(
        "import mmap\nfd = os.open('m', os.O_CREAT | os.O_RDWR); os.ftruncate(fd, 4096)\n"
        "m = mmap.mmap(fd, 4096); m[:3] = b'map'; os.mkdir('d'); m[3:5] = b'on'; m.flush(); m[5:6] = b'!'"
    )
    assert ran.status == 0
    assert ran.trace.unseen == ("when m changed through a shared map: changes are seen at the next operation",)
    assert ran.trace.missed == ()
    made = ran.calls.index("mkdirat(d)")
    changed = "changes through a map of m"
    told = [call for call in ran.calls[made - 1 :] if not call.startswith("close")]
    assert told == [changed, "mkdirat(d)", changed, "msync(m)", changed]
    kept = ran.trace.disk(ran.trace.begins + made)
    assert kept.nodes["m"].content == b"map".ljust(4096, b"\0")
    assert ran.left.nodes["m"].content == b"mapon!".ljust(4096, b"\0")


def test_files_beside_the_folder_are_told_of(program: Program, tmp_path: Path) -> None:
    ran = program("open('../beside', 'w').write('x')")
    assert ran.trace.outside == (str(tmp_path / "beside"),)
    assert ran.calls == []


def test_the_mode_of_a_file_is_the_callers(program: Program) -> None:
    ran = program("os.umask(0o077); open('private', 'w'); os.umask(0o022); open('public', 'w'); os.mkdir('d', 0o700)")
    modes = {path: node.mode for path, node in ran.left.nodes.items()}
    assert modes == {"private": 0o600, "public": 0o644, "d": 0o700}
    assert {path: node.mode for path, node in ran.trace.disk(len(ran.trace.effects)).nodes.items()} == modes


def test_syncs_say_what_they_cover(program: Program) -> None:
    ran = program(
        "fd = os.open('a', os.O_CREAT | os.O_WRONLY); os.fsync(fd); os.fdatasync(fd)\n"
        "os.fsync(os.open('.', 0)); os.sync()\n"
        "fd = os.open('b', os.O_CREAT | os.O_WRONLY | os.O_DSYNC); os.write(fd, b'x')"
    )
    after = ran.trace.effects[ran.trace.begins :]
    assert [effect for effect in after if isinstance(effect, Sync)] == [
        Sync(2), Sync(2, content_only=True), Sync(1), Sync(None), Sync(3),
    ]  # fmt: skip


def kinds(effects: Iterator[object]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


def test_one_call_has_one_effect_and_a_call_without_one_has_none(program: Program) -> None:
    ran = program(
        "fd = os.open('a', os.O_CREAT | os.O_WRONLY); os.write(fd, b''); os.write(fd, b'x'); os.ftruncate(fd, 1)"
    )
    assert kinds(iter(ran.trace.effects[ran.trace.begins :])) == [kind.__name__ for kind in (Entries, Bytes)]
    assert Size not in {type(effect) for effect in ran.trace.effects}


@pytest.mark.parametrize("name", ["open", "creat", "mkdir", "rmdir", "unlink", "rename", "renameat", "link", "symlink"])
def test_calls_of_old_become_those_that_every_machine_has(name: str) -> None:
    assert today(name, (1, 2, 3, 4, 5, 6))[0] in {
        "openat", "mkdirat", "unlinkat", "renameat2", "linkat", "symlinkat",
    }  # fmt: skip


def test_a_disk_is_built_as_it_was_read(program: Program, tmp_path: Path) -> None:
    ran = program(PROGRAMS["links"] + PROGRAMS["directories"])
    copy = tmp_path / "copy"
    copy.mkdir()
    built = ran.left.build(copy)
    assert Disk.read(copy).differences(ran.left) == []
    assert set(built.values()) == {*ran.left.nodes, ""}


def test_the_folder_that_our_reference_makes_is_on_storage_with_all_above_it(tmp_path: Path) -> None:
    """Explorations begin with the folder there, so they can't find this."""
    source = "import sys; from pathlib import Path; from forge_ref import publish; publish.make(Path(sys.argv[1]))"
    journal = Journal(tmp_path)
    _, recorder = launch([sys.executable, "-c", source, str(tmp_path / "runs" / "one" / "checkpoints")], journal)
    assert recorder.wait() == 0
    effects = journal.end().effects
    made = {at for at, effect in enumerate(effects) if isinstance(effect, Entries)}
    assert len(made) == 3
    assert safe_entries(effects, len(effects), STORAGES["posix-strict"]) == made
