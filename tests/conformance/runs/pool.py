"""Work that processes share: what each piece comes to, as soon as it is done.

Invariants: an interrupt reaches the command alone; and however the command
leaves, by the end, an error or an interrupt, the processes end, and nothing
waits for a lock that one of them held.  `multiprocessing.Pool` may wait for such
a lock for ever.
"""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, Literal, TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def done_side_by_side(
    work: Callable[[Item], Outcome],
    items: Sequence[Item],
    processes: int,
    start: Literal["fork", "spawn"],
    begin: Callable[..., None],
    arguments: tuple[Any, ...],
) -> Iterator[Outcome]:
    """Yield what comes of each item as soon as it is there; the items begin in their order.

    `begin` is called with the arguments in each process, once, and has to call `leave_signals_to_the_command`.
    """
    context = multiprocessing.get_context(start)
    with ProcessPoolExecutor(min(processes, len(items)), context, begin, arguments) as pool:
        try:
            with _without_interrupts():  # which the processes inherit, until they have begun
                submitted = [pool.submit(work, item) for item in items]
            for done in as_completed(submitted):
                yield done.result()
        except BaseException:
            for process in multiprocessing.active_children():  # a piece of work may take minutes
                process.terminate()
            pool.shutdown(cancel_futures=True)
            raise


def leave_signals_to_the_command() -> None:
    """In a process that works for the command: it hears an interrupt, and ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Let SIGINT wait, for this thread and for what it starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
