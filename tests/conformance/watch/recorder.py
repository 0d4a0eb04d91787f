"""Records what processes do to a folder, and stops them at an exact operation.

A kernel filter hands over every call that could change a file (seccomp user
notification; see `worker/filter.py`, which the watched process installs and
whose threads and children inherit it).  For calls on the folder the recorder
makes the call itself, in the caller's place (`calls`), and answers with its
result.  So its order is the order in which things happened, and every effect is
known from the inside: nothing is guessed from a call that may still fail.

Operations are numbered from 1 over all that is recorded, failed ones included.
At an operation the recorder can hold the caller, make it fail with an errno
before anything has happened, or call `dies`, after which nothing is let go.

Changes through a shared writable map are seen at the next operation, and
listed in `Journal.unseen`.  A watched process is told that the kernel has no
io_uring and no calls that copy inside it, so programs use plain writes instead.
"""

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from forge_conformance.watch import caller as calls
from forge_conformance.watch.caller import Caller, Place
from forge_conformance.watch.causes import Causes
from forge_conformance.watch.facts import Facts
from forge_conformance.watch.listener import Arguments, Listener, ParkedCall
from forge_conformance.watch.trace import Call, Journal
from forge_conformance.worker.handover import hand_over, send_over
from forge_conformance.worker.system_calls import AT_FDCWD, CALLS, LOOKS, WRITES
from forge_spec.disk import Bytes, Close, Entries, Size, Sync

_EXCHANGE, _KEEP_SIZE, _MS_SYNC = 2, 1, 4
_ON_DESCRIPTORS = (*WRITES, "fsync", "fdatasync", "ftruncate", "fallocate")


class Continue(Exception):
    """The call does not concern the folder's content: the caller shall make it itself."""


@dataclass(frozen=True)
class Operation:
    """A call that is about to change the folder."""

    number: int
    rank: int
    is_main: bool
    name: str
    paths: tuple[str, ...]
    """Relative to the folder."""

    def __str__(self) -> str:
        return f"{self.name}({' -> '.join(self.paths)})"


@dataclass
class Control:
    """What a driver does to operations; one for all recorders of a run, guarded by the journal's lock."""

    done: int = 0
    """Operations so far."""
    dies_at: int | None = None
    """The operation that never happens: `dies` is called instead, and nothing is let go after it."""
    dies: Callable[[], None] = lambda: None
    fails: Callable[[Operation], int] = lambda operation: 0
    """The errno with which an operation fails; 0 lets it happen."""
    holds: Callable[[Operation], bool] = lambda operation: False
    """Which operations wait until `Recorder.release`."""
    died_before: Operation | None = None
    """The operation at which `dies` was called."""

    @property
    def is_dead(self) -> bool:
        """Whether `dies` was called."""
        return self.died_before is not None


class Recorder:
    """Answers for one process and all that it starts; lives in a thread of its own until they end."""

    def __init__(
        self,
        listener: int,
        pid: int,
        journal: Journal,
        control: Control | None = None,
        facts: Facts | None = None,
        rank: int = 0,
        causes: Causes | None = None,
    ) -> None:
        """With `causes`, what the rank hears and finds is noted as well; the filter has to hand over messages."""
        self._listener = Listener(listener)
        self._pid = pid
        self._journal = journal
        self.control = control or Control()
        self._facts = facts
        self._rank = rank
        self._causes = causes
        if causes is not None:
            causes.joins(rank, pid)
        self._processes: dict[int, int] = {}
        self._held: dict[int, tuple[Caller, str, Arguments, Operation]] = {}
        self.changed = threading.Condition(journal.lock)
        """Notified when an operation is held."""
        self.failure: BaseException | None = None
        """An error of the recorder's own; the recording is worth nothing then."""
        self._thread = threading.Thread(target=self._run, name=f"recorder-{pid}", daemon=True)
        self._thread.start()

    # -- what a driver does -----------------------------------------------------

    def release(self) -> None:
        """Let everything go that is held."""
        with self.changed:
            held, self._held = self._held, {}
            for identity, (caller, name, arguments, operation) in sorted(held.items()):
                try:
                    self._make(identity, caller, name, arguments, operation)
                except OSError as error:
                    self._answer(identity, 0, error.errno or errno.EIO)

    def held(self) -> list[Operation]:
        """What waits now, in order."""
        with self.changed:
            return sorted((operation for *_, operation in self._held.values()), key=lambda held: held.number)

    def held_threads(self) -> frozenset[int]:
        """Which threads wait now."""
        with self.changed:
            return frozenset(caller.thread for caller, *_ in self._held.values())

    @property
    def operations_done(self) -> int:
        """How many operations there were so far, of all that share its control."""
        return self.control.done

    def open(self) -> None:
        """The caller is dead: let nobody wait."""
        with self.changed:
            self._held.clear()

    def wait(self) -> int:
        """The exit status of a command that `launch` started, as `os.waitstatus_to_exitcode` has it; then ends."""
        _, status = os.waitpid(self._pid, 0)
        self.end()
        return os.waitstatus_to_exitcode(status)

    def end(self) -> None:
        """Return when the last call was answered; the watched processes have to be dead."""
        self._thread.join(10)
        for pidfd in self._processes.values():
            with contextlib.suppress(OSError):
                os.close(pidfd)
        self._processes.clear()

    # -- the recorder's own thread ------------------------------------------------

    def _run(self) -> None:
        self._listener.serve(self._take)

    def _take(self, parked: ParkedCall) -> None:
        """Answer a call, or leave it waiting."""
        with self._journal.lock:
            try:
                self._answer_call(parked)
            except Continue:
                self._let_go(parked.identity)
            except OSError as error:
                self._answer(parked.identity, 0, error.errno or errno.EIO)
            except BaseException as failure:
                self.failure = self.failure or failure
                self._answer(parked.identity, 0, errno.EIO)

    def _answer_call(self, parked: ParkedCall) -> None:
        """Every error in here is the caller's, as if its own call had failed."""
        name, arguments = calls.today(parked.name, parked.arguments)
        thread = parked.thread
        try:
            caller = Caller(thread, self._process(thread))
            paths = self._paths(caller, name, arguments)
        except (OSError, ValueError):  # no such memory, descriptor or directory: the kernel finds that out as well
            raise Continue from None
        if self._facts is not None:
            self._facts.see(caller, name, arguments)
        is_inside = any(self._journal.is_inside(path) for path in paths)
        if self._causes is not None:
            self._causes.see(self._rank, caller, name, arguments, is_inside)
        if not is_inside:
            self._note_outside(caller, name, arguments, paths)
            raise Continue
        if not self._changes(caller, name, arguments):
            raise Continue
        self._journal.look_at_maps()
        self.control.done += 1
        operation = Operation(self.control.done, self._rank, thread == self._pid, name, self._shown(paths))
        self._decide(parked.identity, caller, name, arguments, operation)

    def _decide(self, identity: int, caller: Caller, name: str, arguments: Arguments, operation: Operation) -> None:
        if self.control.dies_at == operation.number:
            self.control.died_before = operation
            self.control.dies()
        if self.control.is_dead:
            return
        if error := self.control.fails(operation):
            raise OSError(error, "made to fail")
        if self.control.holds(operation):
            self._held[identity] = (caller, name, arguments, operation)
            self.changed.notify_all()
            return
        self._make(identity, caller, name, arguments, operation)

    def _make(self, identity: int, caller: Caller, name: str, arguments: Arguments, operation: Operation) -> None:
        """Make the call and answer it."""
        call = self._call(caller, str(operation))
        if name == "openat":
            self._open(identity, caller, arguments, call)
            return
        self._answer(
            identity, getattr(self, f"_{name}" if name not in WRITES else "_write")(caller, name, arguments, call)
        )

    def _call(self, caller: Caller, text: str) -> Call:
        return Call(self._rank, caller.thread, caller.thread == self._pid, text, is_alone=self._causes is None)

    def _answer(self, identity: int, value: int, error: int = 0) -> None:
        self._listener.answer(identity, value, error)

    def _let_go(self, identity: int) -> None:
        self._listener.let_go(identity)

    def _process(self, thread: int) -> int:
        """A descriptor for the process of a thread; numbers of threads are used again."""
        pidfd = self._processes.get(thread)
        if pidfd is not None and _has_ended(pidfd):
            os.close(self._processes.pop(thread))
            pidfd = None
        if pidfd is None:
            with open(f"/proc/{thread}/status") as status:
                leader = next(int(line.split()[1]) for line in status if line.startswith("Tgid"))
            pidfd = self._processes[thread] = os.pidfd_open(leader)
        return pidfd

    # -- which calls count --------------------------------------------------------

    def _paths(self, caller: Caller, name: str, arguments: Arguments) -> tuple[str, ...]:
        """The paths that a call may change, free of links."""
        named = CALLS[name].paths[1:] if name == "linkat" else CALLS[name].paths  # what is linked stays as it is
        if CALLS[name].kind == LOOKS:
            return ()
        if named:
            follow = name == "truncate" or (name == "openat" and calls.follows(arguments[2]))
            return tuple(caller.named(arguments, *one, follow=follow).path for one in named)
        match name:
            case "mmap":
                return (caller.opened(arguments[4]),)
            case "msync":
                return caller.mapped(arguments[0])
            case "sync" | "syncfs":
                return (str(self._journal.folder),)
        return (caller.opened(arguments[0]),) if name in (*_ON_DESCRIPTORS, "close") else ()

    def _changes(self, caller: Caller, name: str, arguments: Arguments) -> bool:
        """Whether a call on the folder is one to record; notes what can't be recorded, and files that are closed."""
        match name:
            case "openat":
                return CALLS[name].may_change(arguments)
            case "mmap":
                with caller.descriptor(arguments[4]) as ours:
                    self._journal.watch_map(ours, caller.opened(arguments[4]))
                return False
            case "msync":
                self._stores_map(caller, arguments)
                return False
            case "close":
                self._closes(caller, arguments)
                return False
        return True

    def _stores_map(self, caller: Caller, arguments: Arguments) -> None:
        (path,) = caller.mapped(arguments[0])
        number = self._journal.number(os.stat(path))
        if arguments[2] & _MS_SYNC and number is not None:
            self._journal.look_at_maps()
            shown = os.path.relpath(path, self._journal.folder)
            self._journal.add(Sync(number, content_only=True), self._call(caller, f"msync({shown})"))

    def _closes(self, caller: Caller, arguments: Arguments) -> None:
        descriptor = f"/proc/{caller.thread}/fd/{caller.number(arguments[0])}"
        number = self._journal.number(os.stat(descriptor))
        writable = os.lstat(descriptor).st_mode & 0o200  # the link says how it was opened
        if writable and number is not None and self._journal.inodes[number].kind == "f":
            path = os.path.relpath(caller.opened(arguments[0]), self._journal.folder)
            self._journal.add(Close(number), self._call(caller, f"close({path})"))

    def _note_outside(self, caller: Caller, name: str, arguments: Arguments, paths: tuple[str, ...]) -> None:
        if name == "openat" and CALLS[name].may_change(arguments) and calls.is_regular(paths[0]):
            self._journal.outside.append(paths[0])

    def _shown(self, paths: tuple[str, ...]) -> tuple[str, ...]:
        folder = self._journal.folder
        return tuple(os.path.relpath(path, folder) if self._journal.is_inside(path) else path for path in paths)

    # -- the calls ------------------------------------------------------------------

    def _open(self, identity: int, caller: Caller, arguments: Arguments, call: Call) -> None:
        flags, mode = arguments[2], arguments[3]
        place = caller.place(arguments[0], arguments[1], calls.follows(flags))
        before = calls.standing(place)
        ours = calls.make_open(place.path, flags, mode, caller.umask)
        try:
            found = os.fstat(ours)
            self._note_opened(found, before, place, flags, call)
            closes = os.O_CLOEXEC if flags & os.O_CLOEXEC else 0
            self._listener.answer_with(identity, ours, closes)
        finally:
            os.close(ours)

    def _note_opened(
        self, found: os.stat_result, before: os.stat_result | None, place: Place, flags: int, call: Call
    ) -> None:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            self._journal.new(found)
        elif before is None:
            self._journal.made(place, found, call)
        elif flags & os.O_TRUNC and before.st_size:
            self._journal.add(Size(self._known(found), 0), call)

    def _known(self, found: os.stat_result) -> int:
        number = self._journal.number(found)
        assert number is not None, "it is inside, and everything there has a number"
        return number

    def _write(self, caller: Caller, name: str, arguments: Arguments, call: Call) -> int:
        with caller.descriptor(arguments[0]) as ours:
            written = calls.write(caller, ours, name, arguments)
            number = self._known(os.fstat(ours))
        if written.data:
            self._journal.add(Bytes(number, written.offset, written.data), call)
        if written.is_synced:
            self._journal.add(Sync(number), call)
        return len(written.data)

    def _fsync(self, caller: Caller, name: str, arguments: Arguments, call: Call) -> int:
        with caller.descriptor(arguments[0]) as ours:
            (os.fdatasync if name == "fdatasync" else os.fsync)(ours)
            self._journal.add(Sync(self._known(os.fstat(ours)), name == "fdatasync"), call)
        return 0

    _fdatasync = _fsync

    def _sync(self, caller: Caller, name: str, arguments: Arguments, call: Call) -> int:
        calls.sync_all("sync", None)
        self._journal.add(Sync(None), call)
        return 0

    def _syncfs(self, caller: Caller, name: str, arguments: Arguments, call: Call) -> int:
        with caller.descriptor(arguments[0]) as ours:
            calls.sync_all(name, ours)
            if os.fstat(ours).st_dev == os.stat(self._journal.folder).st_dev:
                self._journal.add(Sync(None), call)
        return 0

    def _ftruncate(self, caller: Caller, name: str, arguments: Arguments, call: Call) -> int:
        with caller.descriptor(arguments[0]) as ours:
            before = os.fstat(ours)
            os.ftruncate(ours, arguments[1])
        if before.st_size != arguments[1]:
            self._journal.add(Size(self._known(before), arguments[1]), call)
        return 0

    def _truncate(self, caller: Caller, name: str, arguments: Arguments, call: Call) -> int:
        place = caller.place(AT_FDCWD, arguments[0], follow=True)
        before = os.stat(place.path)
        os.truncate(place.path, arguments[1])
        if before.st_size != arguments[1]:
            self._journal.add(Size(self._known(before), arguments[1]), call)
        return 0

    def _fallocate(self, caller: Caller, name: str, arguments: Arguments, call: Call) -> int:
        with caller.descriptor(arguments[0]) as ours:
            before = os.fstat(ours).st_size
            calls.allocate(ours, arguments)
            found = os.fstat(ours)
            content = os.pread(ours, found.st_size, 0) if arguments[1] & ~_KEEP_SIZE and _can_read(ours) else None
        if found.st_size != before:
            self._journal.add(Size(self._known(found), found.st_size), call)
        if content is not None:
            self._journal.add(Bytes(self._known(found), 0, content), call)
        return 0

    def _mkdirat(self, caller: Caller, name: str, arguments: Arguments, call: Call) -> int:
        place = caller.place(arguments[0], arguments[1])
        calls.make_directory(place.path, arguments[2], caller.umask)
        self._journal.made(place, os.lstat(place.path), call)
        return 0

    def _symlinkat(self, caller: Caller, name: str, arguments: Arguments, call: Call) -> int:
        place, target = caller.place(arguments[1], arguments[2]), caller.string(arguments[0])
        os.symlink(target, place.path)
        self._journal.made(place, os.lstat(place.path), call, os.fsencode(target))
        return 0

    def _linkat(self, caller: Caller, name: str, arguments: Arguments, call: Call) -> int:
        found, place = calls.link(caller, arguments)
        self._journal.arrived(place, found, call)
        return 0

    def _unlinkat(self, caller: Caller, name: str, arguments: Arguments, call: Call) -> int:
        place = caller.place(arguments[0], arguments[1])
        directory = self._journal.directory(place)
        calls.remove(place.path, arguments[2])
        self._journal.add(Entries(((directory, place.name, None),)), call)
        return 0

    def _renameat2(self, caller: Caller, name: str, arguments: Arguments, call: Call) -> int:
        source, target = caller.place(arguments[0], arguments[1]), caller.place(arguments[2], arguments[3])
        moved, replaced = os.lstat(source.path), calls.standing(target)
        calls.rename(source.path, target.path, arguments[4])
        is_exchange = bool(arguments[4] & _EXCHANGE)
        if not is_exchange and replaced is not None and os.path.samestat(moved, replaced):
            return 0  # two names of one file: nothing happens
        self._renamed(source, target, moved, replaced if is_exchange else None, call)
        return 0

    def _renamed(
        self, source: Place, target: Place, moved: os.stat_result, back: os.stat_result | None, call: Call
    ) -> None:
        journal = self._journal
        leaves, comes = journal.is_inside(source.directory), journal.is_inside(target.directory)
        if leaves and comes:
            returned = None if back is None else self._known(back)
            changes = (
                (journal.directory(source), source.name, returned),
                (journal.directory(target), target.name, self._known(moved)),
            )
            journal.add(Entries(changes), call)
            return
        for is_inside, place, found in ((leaves, source, back), (comes, target, moved)):
            if is_inside and found is None:
                journal.add(Entries(((journal.directory(place), place.name, None),)), call)
            elif is_inside and found is not None:
                journal.arrived(place, found, call)


def launch(
    command: Sequence[str],
    journal: Journal,
    control: Control | None = None,
    rank: int = 0,
    watch: str = "storing",
    recorder: type[Recorder] = Recorder,
) -> tuple[int, Recorder]:
    """Start a command under a recorder; its process, and the recorder, whose `wait` has to be called.

    `OSError` where the kernel or a container forbids it; the command has not
    run then.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        _become(command, theirs, watch)
    theirs.close()
    with ours:
        said, descriptors, _, _ = socket.recv_fds(ours, 200, 1)
    if not descriptors:
        os.waitpid(pid, 0)
        raise OSError(errno.EPERM, said.decode() or "the process could not be watched")
    control = control or Control(dies=lambda: os.kill(pid, signal.SIGKILL))
    return pid, recorder(descriptors[0], pid, journal, control, rank=rank)


def _become(command: Sequence[str], connection: socket.socket, watch: str) -> NoReturn:
    try:
        try:
            hand_over(watch, connection.fileno(), lambda descriptor: send_over(connection, descriptor))
        except OSError as error:
            connection.send(str(error).encode())
            os._exit(127)
        os.execvp(command[0], list(command))
    finally:
        os._exit(127)


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _can_read(descriptor: int) -> bool:
    return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY
