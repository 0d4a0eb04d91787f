"""Whether a save is durable when it says that it is done: read from a trace of its system calls.

    python benchmarks/durable.py WAY FOLDER    one save, between two marks: what strace follows

Data of a file is on storage if the file was synced after its last write, and a
name if its directory was synced after the name was made or moved there.  What
is not synced when the call returns can be lost with power.  Writes through a
memory map are not seen, and count as none.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from measure import Budget

BEGUN, ENDED = "/mark/begun", "/mark/ended"
_CALL = re.compile(r"(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)(?:<([^>]*)>)?")
_OF_DESCRIPTOR = re.compile(r"\d+<([^>]*)>")
_CALLS = "open,openat,creat,write,pwrite64,writev,pwritev,pwritev2,copy_file_range,sendfile,fsync,fdatasync,syncfs,sync"
_NAMES = "rename,renameat,renameat2,mkdir,mkdirat,link,linkat,symlink,symlinkat,unlink,unlinkat,rmdir,faccessat2,stat"
_QUERIES = "newfstatat,access,statx"


@dataclass
class Trace:
    """What is not on storage yet, of what was made in a folder."""

    folder: str
    unsynced_files: set[str] = field(default_factory=set)
    unsynced_directories: set[str] = field(default_factory=set)
    made: set[str] = field(default_factory=set)
    """What has a name since the save began; what was there before may be moved or deleted at any time."""
    syncs: int = 0

    def __str__(self) -> str:
        if not self.unsynced_files and not self.unsynced_directories:
            return f"yes, {self.syncs} syncs"
        lacking = [
            f"{len(found)} {what}"
            for found, what in ((self.unsynced_files, "files"), (self.unsynced_directories, "directories"))
            if found
        ]
        return f"no: {' and '.join(lacking)} not synced"


def study(ways: Sequence[str], budget: Budget) -> dict[str, str]:
    """Return this of several ways, traced two at a time, since no time is taken."""
    found = {way: f"not traced: {budget.stuck[way]}" for way in ways if way in budget.stuck}
    with ThreadPoolExecutor(2) as several:
        traced = {way: several.submit(of, way) for way in ways if way not in found}
        for way, saved in traced.items():
            budget.say("trace", way)
            found[way] = saved.result()
    return {way: found[way] for way in ways}


def of(way: str) -> str:
    """Return whether the way's synchronous save is durable, in words."""
    if shutil.which("strace") is None:
        return "not traced: strace is missing"
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "trace")
        command = ["strace", "-f", "-y", "-qq", "-s", "4096", "-o", str(log)]
        command += ["-e", f"trace={_CALLS},{_NAMES},{_QUERIES}", sys.executable, __file__, way, f"{folder}/saved"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
            return f"not traced: {said[-1][:80]}"
        return str(read(log.read_text(errors="replace").splitlines(), f"{folder}/saved"))


def read(lines: list[str], folder: str) -> Trace:
    """Return what of a save is not on storage at its end, by the lines of strace."""
    trace, is_on, unfinished = Trace(folder), False, dict[str, str]()
    for line in lines:
        line = _joined(line, unfinished)
        if BEGUN in line:
            is_on = True
        elif ENDED in line:
            return trace
        elif is_on and (match := _CALL.search(line)) and not match[3].startswith("-"):
            _apply(trace, match[1], match[2], match[4])
    raise ValueError("the trace has no end of a save")


def _joined(line: str, unfinished: dict[str, str]) -> str:
    """Return a call as one line; strace breaks it in two where another thread comes in between."""
    thread, _, rest = line.partition(" ")
    if rest.endswith("<unfinished ...>"):
        unfinished[thread] = line.removesuffix("<unfinished ...>")
        return ""
    if (resumed := re.match(r" *<\.\.\. \w+ resumed>(.*)", rest)) is not None:
        return unfinished.pop(thread, "") + resumed[1]
    return line


def _apply(trace: Trace, call: str, arguments: str, returned: str | None) -> None:
    of_descriptor = _OF_DESCRIPTOR.match(arguments)
    path = of_descriptor[1] if of_descriptor else ""
    if call in ("fsync", "fdatasync"):
        trace.syncs += 1
        trace.unsynced_files.discard(path)
        trace.unsynced_directories.discard(path)
    elif call in ("sync", "syncfs"):
        trace.syncs += 1
        trace.unsynced_files.clear()
        trace.unsynced_directories.clear()
    elif "write" in call or call in ("copy_file_range", "sendfile"):
        target = path if "write" in call else _OF_DESCRIPTOR.findall(arguments)[1 if call == "copy_file_range" else 0]
        if target.startswith(trace.folder):
            trace.unsynced_files.add(target)
    elif call in ("open", "openat", "creat"):
        if "O_CREAT" in arguments and returned and returned.startswith(trace.folder):
            trace.made.add(returned)
            trace.unsynced_directories.add(os.path.dirname(returned))
    elif call.startswith(("rename", "link", "symlink", "mkdir")):
        _named(trace, call, arguments)
    elif call.startswith(("unlink", "rmdir")):
        for gone in _paths(arguments):
            trace.unsynced_files.discard(gone)
            trace.unsynced_directories.discard(gone)


def _named(trace: Trace, call: str, arguments: str) -> None:
    paths = _paths(arguments)
    if not paths or not paths[-1].startswith(trace.folder):
        return
    is_move = call.startswith("rename") and "RENAME_EXCHANGE" not in arguments
    if is_move and paths[0] not in trace.made:
        return
    trace.made.add(paths[-1])
    trace.unsynced_directories.add(os.path.dirname(paths[-1]))
    if is_move:
        old, new = paths[0], paths[-1]
        for found in (trace.made, trace.unsynced_files, trace.unsynced_directories):
            moved = {path for path in found if path == old or path.startswith(f"{old}/")}
            found -= moved
            found |= {new + path.removeprefix(old) for path in moved}


def _paths(arguments: str) -> list[str]:
    """Return the paths among the arguments; a relative one is seen from the directory that stands before it."""
    found, directory = [], ""
    for match in re.finditer(r'(?:AT_FDCWD|\d+)<([^>]*)>|"((?:[^"\\]|\\.)*)"', arguments):
        if match[1] is not None:
            directory = match[1]
        elif match[2] is not None:
            found.append(os.path.normpath(os.path.join(directory, match[2])))
    return found


def _save(way: str, folder: str) -> None:
    """A save that has been made once before, so that what is made once is there."""
    import warnings

    import torch
    from rivals import WAYS
    from subject import Size, subject

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    (kind,) = (one for one in WAYS if one.name == way)
    saver = kind(subject(Size("traced", 4, 160)), Path(folder))
    saver.save(Path(folder, "first"))
    os.sync()
    os.path.exists(BEGUN)
    saver.save(Path(folder, "second"))
    os.path.exists(ENDED)


if __name__ == "__main__":
    _save(*sys.argv[1:])
