"""The coarse recorder: looks at the folder before everything that Python announces it will change.

Used where the kernel lets nobody watch a process.  `worker/audit.py` announces
from inside, and waits; meanwhile what the folder holds is exactly what a kill
at that instant would leave.  So the disks that are found are real ones, and
few: what C++ or Rust did between two announcements was done in some order that
nobody saw, and is one step here.  Of syncs nothing is known, so nothing can be
said about a loss of power.
"""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forge_conformance.judging.text import some
from forge_conformance.watch.caller import is_regular
from forge_conformance.watch.recorder import Control, Operation
from forge_conformance.watch.trace import Call, Journal, Trace, kind_of
from forge_spec.disk import ROOT, Bytes, Entries, Size

_SENTENCES = {
    "begins": "the save began",
    "start": "processes started",
    "lands": "the run went on",
    "kill": "all were killed",
    "full": "a write found no room",
}
UNSEEN = (
    "it sees Python's own opens, renames and deletions and nothing else: no write, no sync, nothing that C++, Rust or "
    "a child program does; so kills alone, and only at the instants between"
)


@dataclass
class LookingJournal(Journal):
    """A recording that learns what happened by looking; each look is an instant at which a death was possible."""

    instants: list[int] | None = field(default_factory=list)
    _entries: dict[int, dict[str, int]] = field(default_factory=lambda: {ROOT: {}})
    _contents: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for effect in self.effects:
            if isinstance(effect, Entries):
                for directory, name, number in effect.changes:
                    assert number is not None, "what was there before only arrives"
                    self._entries.setdefault(directory, {})[name] = number
            elif isinstance(effect, Bytes):
                self._contents[effect.file] = effect.data

    def look(self, before: str) -> None:
        """Note what has changed since the last look; `before` says in words what is about to happen."""
        entries, contents = self._read()
        self._note_names(entries, before)
        for number, content in contents.items():
            if content != self._contents.get(number, b""):
                self._note_content(number, content, before)
        self._entries, self._contents = entries, contents
        self._is_instant()

    def mark(self, word: str, save: int = -1, step: int = 0, rank: int = 0) -> None:
        with self.lock:
            self.look(_SENTENCES.get(word) or f"the save was {word}")
            super().mark(word, save, step, rank)
            self._is_instant()

    def end(self) -> Trace:
        with self.lock:
            self.look("the end")
        return super().end()

    def _is_instant(self) -> None:
        assert self.instants is not None, "it is filled from the beginning"
        self.instants.append(len(self.effects))

    def _read(self) -> tuple[dict[int, dict[str, int]], dict[int, bytes]]:
        """Every directory's names, and every file's content, by number."""
        alive = {number for names in self._entries.values() for number in names.values()}
        entries: dict[int, dict[str, int]] = {}
        contents: dict[int, bytes] = {}
        todo = [(ROOT, self.folder)]
        while todo:
            directory, where = todo.pop()
            names = entries[directory] = {}
            for name, found in _standing(where):
                number = names[name] = self._number_of(where / name, found, alive)
                if kind_of(found) == "d":
                    todo.append((number, where / name))
                elif kind_of(found) == "f":
                    with contextlib.suppress(FileNotFoundError):  # native code has removed it meanwhile
                        contents[number] = (where / name).read_bytes()
        return entries, contents

    def _number_of(self, path: Path, found: os.stat_result, alive: set[int]) -> int:
        """An inode that has no name any more may be another file now."""
        known, kind = self.number(found), kind_of(found)
        content = b""
        if kind == "l":
            with contextlib.suppress(FileNotFoundError):
                content = os.fsencode(os.readlink(path))
        if (
            known in alive
            and self.inodes[known].kind == kind
            and (kind != "l" or self.inodes[known].content == content)
        ):
            return known
        number = self.new(found, content)
        alive.add(number)
        return number

    def _note_names(self, entries: dict[int, dict[str, int]], before: str) -> None:
        came = _all(entries) - _all(self._entries)
        went = {
            (directory, name)
            for directory, name, _ in _all(self._entries) - _all(entries)
            if directory in entries and name not in entries[directory]
        }
        changes = [*((directory, name, None) for directory, name in sorted(went)), *sorted(came)]
        if changes:
            said = [f"{name} {'went' if number is None else 'came'}" for _, name, number in changes]
            self.add(Entries(tuple(changes)), _looked(some(said), before))

    def _note_content(self, number: int, content: bytes, before: str) -> None:
        call = _looked(f"file {number} changed to {len(content)} bytes", before)
        if self._contents.get(number):
            self.add(Size(number, 0), call)
        if content:
            self.add(Bytes(number, 0, content), call)


def _standing(where: Path) -> Iterator[tuple[str, os.stat_result]]:
    try:
        names = sorted(os.listdir(where))
    except FileNotFoundError:  # native code has removed it meanwhile
        return
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(where / name)
            if kind_of(found):
                yield name, found


def _all(entries: dict[int, dict[str, int]]) -> set[tuple[int, str, int]]:
    return {(directory, name, number) for directory, names in entries.items() for name, number in names.items()}


def _looked(what: str, before: str) -> Call:
    return Call(0, 0, True, f"{what}; seen before {before}")


class AuditRecorder:
    """Answers the announcements of one process and its children; lives in a thread of its own until they end."""

    def __init__(
        self, listener: int, pid: int, journal: Journal, control: Control | None = None, rank: int = 0
    ) -> None:
        assert isinstance(journal, LookingJournal), "announcements do not say what was done, so the journal has to look"
        self._socket = socket.socket(fileno=listener)
        self._pid = pid
        self._journal = journal
        self._rank = rank
        self._waiting: list[int] = []
        self.control = control or Control()
        self.failure: BaseException | None = None
        """An error of the recorder's own; the recording is worth nothing then."""
        self._thread = threading.Thread(target=self._run, name=f"audit-recorder-{pid}", daemon=True)
        self._thread.start()

    def open(self) -> None:
        """The caller is dead, and with it all that waits."""

    def held_threads(self) -> frozenset[int]:
        """None: whoever announces an operation waits for an answer, and not inside the operation."""
        return frozenset()

    @property
    def operations_done(self) -> int:
        """How many operations were announced so far."""
        return self.control.done

    def end(self) -> None:
        """Return when the last announcement was answered; the watched processes have to be dead."""
        self._thread.join(10)
        for descriptor in self._waiting:
            os.close(descriptor)
        self._waiting.clear()

    def _run(self) -> None:
        with self._socket:
            while True:
                try:
                    message, descriptors, _, _ = socket.recv_fds(self._socket, 1 << 16, 1)
                except ConnectionResetError:
                    return
                if not message:
                    return
                self._receive(json.loads(message), *descriptors)

    def _receive(self, about: dict[str, Any], descriptor: int) -> None:
        error: int | None = 0
        with self._journal.lock:
            try:
                error = self._decide(about)
            except BaseException as failure:
                self.failure = self.failure or failure
        if error is None:
            self._waiting.append(descriptor)
            return
        with contextlib.suppress(OSError):  # the caller may be dead
            os.write(descriptor, str(error).encode())
        os.close(descriptor)

    def _decide(self, about: dict[str, Any]) -> int | None:
        """The errno to fail with, 0 to go on, None to wait for ever."""
        journal, control = self._journal, self.control
        paths = [
            os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)) for path in about["paths"]
        ]
        if not any(journal.is_inside(path) for path in paths):
            if about["name"] == "openat" and is_regular(paths[0]):
                journal.outside.append(paths[0])
            return 0
        if control.is_dead:
            return None
        control.done += 1
        shown = tuple(os.path.relpath(path, journal.folder) if journal.is_inside(path) else path for path in paths)
        operation = Operation(control.done, self._rank, about["thread"] == self._pid, about["name"], shown)
        journal.look(str(operation))
        if control.dies_at == operation.number:
            control.died_before = operation
            control.dies()
            return None
        return control.fails(operation)
