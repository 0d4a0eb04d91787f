"""The recorder over ptrace: stops a process at every system call, and sees and does what the kernel filter's does.

For places where no listener can be had: a kernel before 5.14, a container whose
runtime keeps the one listener that a process can have, a policy against
filters.  All but opening is made in the caller's place, as there: the number of
the call is taken away, so that the kernel makes none, and the result is put
where the caller looks for it.  An open is made by the caller itself, between
two stops, because nobody else can give it a descriptor.

Whoever attaches is one thread, and all requests have to come from it.  So an
operation can be failed or be the last one, and can't be held.
"""

import contextlib
import ctypes
import errno
import os
import platform
import signal
import struct
import threading

from forge_conformance.watch import caller as calls
from forge_conformance.watch.caller import Caller
from forge_conformance.watch.facts import Facts
from forge_conformance.watch.listener import Arguments, ParkedCall
from forge_conformance.watch.recorder import Control, Recorder
from forge_conformance.watch.trace import Call, Journal
from forge_conformance.worker import filter as kernel_filter

_POKE_USER, _SYSCALL, _SEIZE, _INTERRUPT, _LISTEN, _SYSCALL_INFO = 6, 24, 0x4206, 0x4207, 0x4208, 0x420E
_OPTIONS = (
    0x1 | 0x2 | 0x4 | 0x8 | 0x10 | (1 << 20)
)  # tell calls from traps; follow children, threads, exec; end together
_EVENT_STOP = 128
_OF_THIS_THREAD, _THREADS_TOO = 0x20000000, 0x40000000
_ENTRY, _EXIT = 1, 2
_INFO = struct.Struct("=B3xIQQ7Q")
_NUMBER_AT, _RESULT_AT = 15 * 8, 10 * 8
"""Where the number and the result of a call lie in a stopped process, on x86_64."""
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_LIBC.ptrace.restype = ctypes.c_long
_MACHINES = ("x86_64",)
_MAP_SHARED, _PROT_WRITE = 1, 2


def why_not() -> str | None:
    """Why no process can be recorded so here, apart from being forbidden to; None if one can."""
    if platform.machine() not in _MACHINES:
        return f"how to change a call is written out for {', '.join(_MACHINES)}, and this is {platform.machine()}"
    return None


class PtraceRecorder(Recorder):
    """As `Recorder`, attached to a process that waits for it at the other end of `listener`."""

    def __init__(
        self,
        listener: int,
        pid: int,
        journal: Journal,
        control: Control | None = None,
        facts: Facts | None = None,
        rank: int = 0,
    ) -> None:
        """Returns when the process is watched, or can't be: see `failure`."""
        machine = platform.machine()
        watched = kernel_filter.watched(machine, "storing" if facts is None else "looks")
        self._watched = {number: name for name, number in watched.items()}
        self._refused = kernel_filter.refused(machine)
        self._results: dict[int, int] = {}
        """What calls that were made in a thread's place return to it."""
        self._status = 0
        self._is_attached = threading.Event()
        super().__init__(listener, pid, journal, control, facts, rank)
        self._is_attached.wait()

    def wait(self) -> int:
        """A tracer in the process of the parent is told of the end in its place."""
        self._thread.join()
        self.end()
        return os.waitstatus_to_exitcode(self._status)

    def release(self) -> None:
        raise NotImplementedError("under ptrace operations are never held: only the tracer's thread could let them go")

    def _run(self) -> None:
        try:
            self._attach()
        except OSError as error:
            self.failure = error
            return
        finally:
            self._listener.close()  # lets the process go on
            self._is_attached.set()
        with contextlib.suppress(ChildProcessError):  # all have ended
            while True:
                thread, status = os.waitpid(-1, _OF_THIS_THREAD | _THREADS_TOO)
                if os.WIFSTOPPED(status):
                    with contextlib.suppress(ProcessLookupError):  # killed meanwhile
                        self._stopped(thread, os.WSTOPSIG(status), status >> 16)
                else:
                    self._results.pop(thread, None)
                    self._status = status if thread == self._pid else self._status

    def _attach(self) -> None:
        for listed in os.listdir(f"/proc/{self._pid}/task"):
            thread = int(listed)
            _request(_SEIZE, thread, 0, _OPTIONS)
            _request(_INTERRUPT, thread)
            os.waitpid(thread, _THREADS_TOO)
            _request(_SYSCALL, thread)

    def _stopped(self, thread: int, number: int, event: int) -> None:
        if number == signal.SIGTRAP | 0x80:
            self._at_call(thread)
        elif event == _EVENT_STOP and number != signal.SIGTRAP:
            _request(_LISTEN, thread)  # it was stopped as by a shell, and stays so
        else:
            _request(_SYSCALL, thread, 0, 0 if event else number)

    def _at_call(self, thread: int) -> None:
        what, number, arguments = _call_of(thread)
        if what == _EXIT and thread in self._results:
            _request(_POKE_USER, thread, _RESULT_AT, self._results.pop(thread))
        if what == _ENTRY and number in self._refused:
            self._answer(thread, 0, errno.ENOSYS)
        elif what == _ENTRY and self._is_watched(number, arguments):
            self._take(ParkedCall(thread, thread, self._watched[number], arguments))
        else:
            _request(_SYSCALL, thread)

    def _is_watched(self, number: int, arguments: Arguments) -> bool:
        name = self._watched.get(number)
        return name is not None and (name != "mmap" or bool(arguments[3] & _MAP_SHARED and arguments[2] & _PROT_WRITE))

    def _answer(self, identity: int, value: int, error: int = 0) -> None:
        self._results[identity] = -error or value
        with contextlib.suppress(ProcessLookupError):  # the caller is dead
            _request(_POKE_USER, identity, _NUMBER_AT, -1)
            _request(_SYSCALL, identity)

    def _let_go(self, identity: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # the caller is dead
            _request(_SYSCALL, identity)

    def _open(self, identity: int, caller: Caller, arguments: Arguments, call: Call) -> None:
        flags = arguments[2]
        place = caller.place(arguments[0], arguments[1], calls.follows(flags))
        before = calls.standing(place)
        opened = _made(identity)
        if opened is None:
            return
        if opened >= 0:
            self._note_opened(os.stat(f"/proc/{caller.thread}/fd/{opened}"), before, place, flags, call)
        with contextlib.suppress(ProcessLookupError):
            _request(_SYSCALL, identity)


def _request(request: int, thread: int, address: int = 0, data: int = 0) -> int:
    ctypes.set_errno(0)
    done: int = _LIBC.ptrace(request, thread, address, data & 0xFFFFFFFFFFFFFFFF)
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace: {os.strerror(number)}")
    return done


def _call_of(thread: int) -> tuple[int, int, Arguments]:
    """Whether it enters or leaves a call; the number of the call, or its result, and the arguments."""
    buffer = ctypes.create_string_buffer(_INFO.size)
    _LIBC.ptrace(_SYSCALL_INFO, thread, _INFO.size, ctypes.addressof(buffer))
    what, _, _, _, first, *arguments = _INFO.unpack(buffer.raw)
    return what, first, tuple(arguments)


def _made(thread: int) -> int | None:
    """Let a thread make the call that it has entered; the result, or None if the thread has ended."""
    try:
        _request(_SYSCALL, thread)
        _, status = os.waitpid(thread, _THREADS_TOO)
    except (ProcessLookupError, ChildProcessError):
        return None
    if not os.WIFSTOPPED(status):
        return None
    _, result, _ = _call_of(thread)
    return result - (1 << 64) if result >> 63 else result
