"""What one rank may have learnt from another: by a message, or from the folder.

A message is whatever a rank sends that another process could get: on a socket,
or by changing something outside the folder, such as the file through which
ranks find each other.  Of a connection over TCP it is known which rank is at its other end;
anything else may reach all.  What a rank was given when it started leads to
the suite, which is not a rank and gives each rank the same values.

Ranks that share memory talk unseen; `Journal.unseen` says so where they map it
from a file.
"""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from forge_conformance.watch.caller import Caller
from forge_conformance.watch.facts import Facts
from forge_conformance.watch.history import History, Thing
from forge_conformance.watch.listener import Arguments
from forge_conformance.watch.trace import Journal
from forge_conformance.worker.system_calls import CALLS, SENDS, WRITES

_ON_DESCRIPTORS = (*(call.name for call in CALLS.values() if call.kind == SENDS), *WRITES)
_NOBODY: frozenset[int] = frozenset()


class Causes:
    """What the recorders of all ranks of a run find out; called under the journal's lock."""

    def __init__(self, journal: Journal, history: History) -> None:
        self._journal = journal
        self._history = history
        self._looks = {rank: _Looks(journal, history, rank) for rank in range(history.ranks)}
        self._all = frozenset(range(history.ranks))
        self._processes: dict[int, int] = {}
        self._given: dict[int, frozenset[str]] = {}
        self._ends: dict[str, frozenset[int]] = {}

    def joins(self, rank: int, process: int) -> None:
        """A rank starts; what it has open now leads to the suite."""
        self._processes[rank] = process
        self._given[rank] = frozenset(target for _, target in _opened(process))

    def see(self, rank: int, caller: Caller, name: str, arguments: Arguments, is_inside: bool) -> None:
        """A rank is about to make a call."""
        if name == "mmap" and not is_inside:
            self._journal.unseen.append("a rank mapped a shared file: what ranks tell each other there is unseen")
        elif name in _ON_DESCRIPTORS and not is_inside:
            self._history.speaks(rank, self._hearers(rank, caller, arguments[0]))
        elif CALLS[name].paths and CALLS[name].may_change(arguments) and not is_inside:
            self._history.speaks(rank, self._all)
        else:
            self._looks[rank].see(caller, name, arguments)

    def _hearers(self, rank: int, caller: Caller, descriptor: int) -> Collection[int]:
        try:
            target = os.readlink(f"/proc/{caller.thread}/fd/{caller.number(descriptor)}")
        except OSError:  # it will fail
            return _NOBODY
        if target in self._given[rank] or target.startswith(("anon_inode:", "pipe:", "/dev/null")):
            return _NOBODY  # an event or a pipe leads to a thread or a child of its own
        if target not in self._ends:
            found = self._end_of(target)
            if found is None:
                return self._all
            self._ends[target] = found
        return self._ends[target]

    def _end_of(self, target: str) -> frozenset[int] | None:
        """The ranks at the other end of a connection; None if that can't be said, or not yet."""
        other = _peer(target)
        opened = {rank: {link for _, link in _opened(process)} for rank, process in self._processes.items()}
        return frozenset(rank for rank, links in opened.items() if other in links) or None


def _opened(process: int) -> Iterator[tuple[str, str]]:
    where = f"/proc/{process}/fd"
    try:
        names = os.listdir(where)
    except OSError:
        return
    for name in names:
        try:
            yield name, os.readlink(f"{where}/{name}")
        except OSError:
            continue


def _peer(target: str) -> str:
    """The other end of a TCP connection on this machine, as descriptors are shown; "" if there is none."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        rows = [line.split() for line in Path(table).read_text().splitlines()[1:]] if os.path.exists(table) else []
        own = next((row for row in rows if f"socket:[{row[9]}]" == target), None)
        for row in rows:
            if own is not None and (row[1], row[2]) == (own[2], own[1]) and row[9] != "0":
                return f"socket:[{row[9]}]"
    return ""


class _Looks(Facts):
    """What a rank finds in the folder, as things that ranks may change."""

    _EMPTIES: tuple[str, ...] = ("unlinkat",)
    """A rename replaces no directory but an empty one, which nobody else is about to fill."""

    def __init__(self, journal: Journal, history: History, rank: int) -> None:
        super().__init__(journal.folder, {})
        self._journal = journal
        self._history = history
        self._rank = rank

    def _entry(self, directory: str, name: str) -> None:
        self._find("name", directory, name)

    def _note(self, about: str, path: str) -> None:
        if about == "names":
            self._find("names", path)
        elif os.path.isfile(path):
            self._find("content", path)

    def _find(self, about: str, path: str, name: str = "") -> None:
        try:
            number = self._journal.number(os.stat(path))
        except OSError:
            return
        if number is not None:
            thing: Thing = (about, number, name)
            self._history.looks(self._rank, thing)
