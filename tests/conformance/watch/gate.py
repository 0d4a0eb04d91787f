"""Answers the kernel filter of one worker: each file operation waits here until it may go on.

Invariants: operations are numbered in one total order over all threads and
children of the worker; an operation is observed before it happens, and what
observers see is the folder as a kill at that instant would leave it.  The gate
delays an operation, or makes it fail as a full or broken disk would; it never
does anything else to it.

Only operations on the watched folder count.  All others go on at once.
"""

import os
import platform
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from forge_conformance.worker.system_calls import AT_FDCWD, CALLS, REMOVES, WRITES

from .listener import Listener, ParkedCall


@dataclass(frozen=True)
class Operation:
    """One system call on the folder, before it happens."""

    number: int
    """Counts from 1 over the worker's life."""
    name: str
    """The kernel's name of the call."""
    paths: tuple[str, ...]
    """Relative to the folder; two for calls that name two files."""
    thread: int
    """The kernel's number of the thread that makes it."""
    is_main: bool
    """Whether the worker's main thread makes it: the thread that the manager was called on."""
    writes: bool
    """Whether it changes a file or directory; false for one that only reads or looks."""

    @property
    def writes_data(self) -> bool:
        """Whether it writes data to an open file."""
        return self.name in WRITES

    def removes(self, name: str) -> bool:
        """Whether the entry of this name in the folder, or something below it, is deleted or renamed."""
        return self.name in REMOVES and self.paths[0].split("/")[0] == name

    def __str__(self) -> str:
        who = "" if self.is_main else " (background)"
        return f"{self.name}({' -> '.join(self.paths)}){who}"


Picks = Callable[[Operation], bool]
Observes = Callable[[Operation], None]


def in_background(operation: Operation) -> bool:
    """Holds whatever the manager does off the thread that it was called on."""
    return not operation.is_main


def at(number: int) -> Picks:
    """Holds the operation with this number and all that come later."""
    return lambda operation: operation.number >= number


def spread(count: int, most: int) -> list[int]:
    """At most so many numbers from 1 to `count`, evenly."""
    return sorted({1 + count * n // most for n in range(most)})


class Gate:
    """The supervisor of one worker; lives in a thread of its own until the worker ends."""

    def __init__(self, listener: int, folder: Path, pid: int) -> None:
        self._listener = Listener(listener)
        self._folder = os.path.realpath(folder)
        self._pid = pid
        self._changed = threading.Condition()
        self._held: dict[int, Operation] = {}
        self._holds: Picks | None = None
        self._fails: tuple[Picks, int] | None = None
        self._observes: list[Observes] = []
        self.log: list[Operation] = []
        """Every operation so far, in order."""
        self.failed: list[Operation] = []
        """Those that were made to fail since `fail` was called last."""
        self.failure: BaseException | None = None
        """What an observer, or whatever picks operations, raised first; `check` raises it."""
        self._thread = threading.Thread(target=self._run, name=f"gate-{pid}", daemon=True)
        self._thread.start()

    @property
    def operations_done(self) -> int:
        """How many operations there were so far."""
        return len(self.log)

    # -- what a scenario does ---------------------------------------------------

    def close(self, holds: Picks = in_background) -> None:
        """From now on, hold every operation that `holds` picks."""
        with self._changed:
            self._holds = holds

    def open(self) -> None:
        """Let everything go, now and from now on."""
        with self._changed:
            self._holds = None
            self._release_all()

    def step(self) -> None:
        """Let go what is held; what comes next is held again."""
        with self._changed:
            self._release_all()

    def observe(self, observes: Observes) -> None:
        """Call `observes` before each operation from now on, on the gate's thread."""
        with self._changed:
            self._observes.append(observes)

    def forget(self) -> None:
        """Stop observing."""
        with self._changed:
            self._observes.clear()

    def fail(self, picks: Picks, error: int) -> None:
        """From now on every operation that `picks` picks fails with this errno, before it has changed anything."""
        with self._changed:
            self._fails = (picks, error)
            self.failed.clear()

    def stop_failing(self) -> None:
        """From now on no operation fails."""
        with self._changed:
            self._fails = None

    def check(self) -> None:
        """Raise what was raised on the gate's thread."""
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure

    def held(self) -> list[Operation]:
        """What waits at the gate now, in order."""
        with self._changed:
            return sorted(self._held.values(), key=lambda operation: operation.number)

    def held_threads(self) -> frozenset[int]:
        """Which threads wait at the gate now."""
        with self._changed:
            return frozenset(operation.thread for operation in self._held.values())

    def wait_held(self, timeout_s: float) -> bool:
        """Wait until something is held; false if nothing was within `timeout_s` or the worker ended."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._held) or not self._thread.is_alive(), timeout_s) and bool(
                self._held
            )

    def wait_failed(self, timeout_s: float) -> bool:
        """Wait until an operation was made to fail; false if none was within `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self.failed), timeout_s)

    def end(self) -> None:
        """Call when the worker is dead; returns when the last operation was answered."""
        self._thread.join(10)

    # -- the gate's own thread --------------------------------------------------

    def _run(self) -> None:
        try:
            self._listener.serve(self._take)
        finally:
            with self._changed:
                self._held.clear()
                self._changed.notify_all()

    def _take(self, call: ParkedCall) -> None:
        try:
            operation = self._operation(call)
        except (OSError, OverflowError, ValueError):  # it died while its memory was read, or names no memory of its own
            operation = None
        if operation is None:
            self._listener.let_go(call.identity)
            return
        self._let_observe(operation)
        with self._changed:
            if self._fails is not None and self._is_picked(self._fails[0], operation):
                self.failed.append(operation)
                self._changed.notify_all()
                self._listener.answer(call.identity, 0, self._fails[1])
            elif self._holds is not None and self._is_picked(self._holds, operation):
                self._held[call.identity] = operation
                self._changed.notify_all()
            else:
                self._listener.let_go(call.identity)

    def _is_picked(self, picks: Picks, operation: Operation) -> bool:
        try:
            return picks(operation)
        except BaseException as failure:  # goes to the test's thread, see `check`
            self.failure = self.failure or failure
            return False

    def _let_observe(self, operation: Operation) -> None:
        with self._changed:
            self.log.append(operation)
            observers = list(self._observes)
        for observes in observers:
            try:
                observes(operation)
            except BaseException as failure:  # goes to the test's thread, see `check`
                self.failure = self.failure or failure

    def _release_all(self) -> None:
        for identity in sorted(self._held, key=lambda i: self._held[i].number):
            self._listener.let_go(identity)
        self._held.clear()

    def _operation(self, call: ParkedCall) -> Operation | None:
        """What the call is about to do; None when it does not touch the folder."""
        known, arguments, thread = CALLS[call.name], call.arguments, call.thread
        if known.paths:
            paths = [
                self._named(thread, None if directory is None else arguments[directory], arguments[path])
                for directory, path in known.paths
            ]
        else:
            paths = [os.readlink(f"/proc/{thread}/fd/{_signed(arguments[0])}")]
        inside = [relative for path in paths if (relative := self._relative(path)) is not None]
        if not inside:
            return None
        writes = known.may_change(arguments)
        return Operation(len(self.log) + 1, call.name, tuple(inside), thread, thread == self._pid, writes)

    def _named(self, thread: int, directory: int | None, address: int) -> str:
        path = _string_at(thread, address)
        if path.startswith("/"):
            return os.path.normpath(path)
        descriptor = AT_FDCWD if directory is None else _signed(directory)
        base = f"/proc/{thread}/cwd" if descriptor == AT_FDCWD else f"/proc/{thread}/fd/{descriptor}"
        return os.path.normpath(os.path.join(os.readlink(base), path))

    def _relative(self, path: str) -> str | None:
        parent, name = os.path.split(path)
        resolved = os.path.join(os.path.realpath(parent), name)
        if resolved == self._folder:
            return "."
        return resolved[len(self._folder) + 1 :] if resolved.startswith(self._folder + "/") else None


def _signed(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def _string_at(thread: int, address: int) -> str:
    """The C string at an address of another process."""
    data = b""
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
        while b"\0" not in data:
            memory.seek(address + len(data))
            page = 4096 - (address + len(data)) % 4096
            chunk = memory.read(page)
            if not chunk:
                break
            data += chunk
    return os.fsdecode(data.split(b"\0")[0])


def is_supported() -> str | None:
    """None where this machine's kernel can hold file operations, else the reason why not."""
    if platform.system() != "Linux":
        return f"holding file operations needs Linux, this is {platform.system()}"
    try:
        with open("/proc/sys/kernel/seccomp/actions_avail") as actions:
            known = actions.read().split()
    except OSError as error:
        return f"this kernel does not say which seccomp actions it has ({error})"
    return None if "user_notif" in known else f"this kernel's seccomp has no user notification, only {known}"
