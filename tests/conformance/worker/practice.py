"""Trains runs of the suite's own in the process that all lives are forked from, so that each finds torch ready.

The first operation of each kind in a process costs torch many times what the next one does: it looks up schemas, tries
operations on tensors without data, reads source files for stack traces.  A life is short, so this is a good part of it.
The state of a run is written and read as well.

Invariants: no manager takes part; no thread is started; nothing is left that a life could see, but for modules.
Several ranks are practised by one process, over a group that sends nothing.  That group has more ranks than any run
has, because torch keeps, for a mesh of devices, how operations divide among its ranks, as one of them sees it: a life
of another rank must not find that.
"""

import contextlib
import gc
import io
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from .workload import Workload

try:
    import numpy
except ImportError:  # as in the workload
    numpy = None  # type: ignore[assignment]

_RANKS_OF_NO_RUN = 65
"""`--ranks` takes 64 at most."""


def is_harmless(work: Callable[[], None]) -> bool:
    """Do this; whether it goes well, and leaves the process as fit for forks as before.

    For a process that is not meant to fork: another torch may raise, or start a thread.
    """
    before = _threads()
    try:
        work()
    except Exception:
        return False
    return _threads() == before


def practise(with_ranks: bool) -> None:
    """Train once alone, and write and read what was trained, or train as one of several ranks."""
    with _without_a_trace():
        if with_ranks:
            _practise_ranks()
        else:
            training = Workload(0)
            _train(training)
            _write_and_read({"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()})
    gc.collect()


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def _train(training: Workload) -> None:
    training.train(2)
    training.digest()


def _write_and_read(state: dict[str, Any]) -> None:
    """In memory, by torch itself, as most managers do in one way or another."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    torch.load(buffer, weights_only=True)


def _practise_ranks() -> None:
    from .ranks import Place, UnheardRank, leave  # imports more of torch than one process needs

    try:
        _train(UnheardRank(0, Place(0, _RANKS_OF_NO_RUN, "sharded", stages=0, rendezvous="", timeout_s=60)))
    finally:
        leave()


@contextlib.contextmanager
def _without_a_trace() -> Iterator[None]:
    """Put back what training, and making a group, change for the whole process."""
    python, of_torch = random.getstate(), torch.get_rng_state()
    of_numpy = None if numpy is None else numpy.random.get_state()
    hook = sys.excepthook
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.excepthook = hook
        random.setstate(python)
        torch.set_rng_state(of_torch)
        if of_numpy is not None:
            numpy.random.set_state(of_numpy)
