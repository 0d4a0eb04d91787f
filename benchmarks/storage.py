"""How near saves and loads come to the limits of memory and disk, for one size of state, beside other ways to save.

    blocked     how long an asynchronous save keeps training from going on, over a warm copy of the same tensors
    save        until the call returns, over O_DIRECT + fsync, and over a buffered write + fsync, of the same bytes
    loader      into fresh memory, verified, over a raw read of the file into warm memory
    load        into model and optimizer, over the same

A way that leaves its files unsynced has a second row: with the missing syncs
made by the benchmark.
"""

import os
import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import Parts, Sample, Samples, Work, described, in_turns
from rivals import WAYS, Reference, Way, missing
from subject import Size, Subject, Warm, subject, sync_tree

COPY, DIRECT, BUFFERED, READ = "warm copy", "O_DIRECT + fsync", "buffered + fsync", "raw read"
BLOCKED, DURABLE, SAVE, SYNCED, LOADER, LOAD = "blocked", "until written", "save", "save + fsync", "loader", "load"
WITHOUT_HASHES, FSYNC = "without hashes", "fsync of"
FIRST, LATER = "first", "later"
TRAINED_S = 2.0
"""How long a run trains before its first save is measured."""
_LARGE = 3_000
"""Megabytes from which on only those ways are measured that keep no copy of the state for the next save."""


def study(size: Size, rounds: int, budget_s: float) -> tuple[Subject, Samples]:
    """Return what was measured of a state of this size: the names are those above, of a way with its name before."""
    torch.set_num_threads(1)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # torch_checkpointing opens several for each tensor
    model = subject(size)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        warm, ways = Warm(model), []
        failures: Samples = {}
        for way in WAYS:
            if missing(way) or (size.megabytes > _LARGE and way.saves_beside and way is not Reference):
                continue
            try:
                ways.append(way(model, place / way.__name__))
            except Exception as error:
                failures[way.name] = Sample(failure=described(error))
        works = _limits(warm, place, ways[0])
        for way in ways:
            needed = way.files_for_tensor * len(model.tensors)
            has_files = 2 * needed < most  # with fewer the process is left without any, and measures nothing more
            if not has_files:
                why = f"it opens {needed:,} files or more, and {most:,} are allowed"
                failures[f"{way.name} {BLOCKED}"] = Sample(failure=why)
            try:
                works |= _works(way, has_files)
            except Exception as error:
                failures[way.name] = Sample(failure=described(error))
        works |= _apart(ways[0], place)
        return model, {**in_turns(works, rounds, budget_s), **failures}


def _limits(warm: Warm, place: Path, reference: Way) -> dict[str, Work]:
    assert isinstance(reference, Reference)
    reference.save(place)  # whose file is read raw
    return {
        COPY: warm.copy,
        DIRECT: _into_new(place / "direct", warm.write_directly),
        BUFFERED: _into_new(place / "buffered", warm.write_buffered),
        READ: lambda: _warmly(reference.newest(), READ, lambda: warm.read(next(reference.newest().glob("*.distcp")))),
        f"{reference.name} {LOADER}": lambda: _warmly(reference.newest(), f"{reference.name} {LOADER}", reference.read),
    }


def _works(way: Way, has_files: bool) -> dict[str, Work]:
    places = _Places(way.folder)

    def save() -> Parts:
        path = places.fresh("saved")
        begun = time.perf_counter()
        way.save(path)
        taken = time.perf_counter() - begun
        if isinstance(way, Reference):
            return {f"{way.name} {SAVE}": taken}
        sync_tree(path if path.exists() else way.folder)
        return {f"{way.name} {SAVE}": taken, f"{way.name} {SYNCED}": time.perf_counter() - begun}

    def beside() -> Parts:
        path = places.fresh("beside")
        begun = time.perf_counter()
        wait = way.begin(path)
        blocked = time.perf_counter() - begun
        wait()
        return {f"{way.name} {BLOCKED}": blocked, f"{way.name} {DURABLE}": time.perf_counter() - begun}

    def load() -> Parts:
        path = places.newest("saved")
        return _warmly(path if path.exists() else way.folder, f"{way.name} {LOAD}", partial(way.load, path))

    way.save(places.fresh("saved"))
    return {f"{way.name} {SAVE}": save, f"{way.name} {LOAD}": load} | (
        {f"{way.name} {BLOCKED}": beside} if way.saves_beside and has_files else {}
    )


class _Places:
    """Directories of one way, of which only the newest of each kind stands."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers: Counter[str] = Counter()

    def fresh(self, kind: str) -> Path:
        """Return a new path; what was there before is deleted."""
        shutil.rmtree(self.newest(kind), ignore_errors=True)
        self._numbers[kind] += 1
        return self.newest(kind)

    def newest(self, kind: str) -> Path:
        return self._folder / f"{kind}{self._numbers[kind]}"


def _into_new(folder: Path, write: Callable[[Path], object]) -> Work:
    places = _Places(folder)

    def work() -> None:
        path = places.fresh("raw")
        path.mkdir(parents=True)
        write(path)

    return work


def _warmly(place: Path, name: str, read: Callable[[], object]) -> Parts:
    """Return how long this takes with all files in the page cache."""
    for file in place.rglob("*"):
        if file.is_file():
            file.read_bytes()
    begun = time.perf_counter()
    read()
    return {name: time.perf_counter() - begun}


# -- what a part of a save costs -------------------------------------------------


def _apart(reference: Way, place: Path) -> dict[str, Work]:
    assert isinstance(reference, Reference)
    return {
        WITHOUT_HASHES: partial(_without_hashes, reference),
        FSYNC: partial(_fsyncs, reference),
        FIRST: partial(_first_and_later, reference, place),
    }


def _without_hashes(reference: Reference) -> Parts:
    """A save whose hashes are not computed; nobody reads it."""
    from forge_ref.engine import image

    digest = image.digest
    image.digest = lambda _: bytes(16)
    try:
        begun = time.perf_counter()
        reference.save(reference.folder)
        taken = time.perf_counter() - begun
    finally:
        image.digest = digest
    reference.save(reference.folder)  # what the next load finds
    return {WITHOUT_HASHES: taken}


def _fsyncs(reference: Reference) -> Parts:
    with _timed_fsyncs() as taken:
        reference.save(reference.folder)
    return {f"{FSYNC} {name}": seconds for name, seconds in taken.items()}


@contextmanager
def _timed_fsyncs() -> Iterator[Parts]:
    """The seconds of all fsyncs in this process, by what is synced."""
    taken: Parts = {}
    fsync = os.fsync

    def timed(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        begun = time.perf_counter()
        fsync(descriptor)
        name = "directories" if path.is_dir() else "shards" if path.suffix == ".distcp" else "small files"
        taken[name] = taken.get(name, 0.0) + time.perf_counter() - begun

    os.fsync = timed
    try:
        yield taken
    finally:
        os.fsync = fsync


def _first_and_later(reference: Reference, place: Path) -> Parts:
    """How long the first asynchronous save of a manager blocks, and the second, in a run that has trained a while."""
    from forge_ref import AsyncCheckpointMode

    shutil.rmtree(place / "Reference" / "new", ignore_errors=True)
    manager: Any = reference.manager("new", AsyncCheckpointMode.async_)
    begun = time.perf_counter()
    while time.perf_counter() - begun < TRAINED_S:
        _train(reference.subject)
    taken: Parts = {}
    for number, name in enumerate((FIRST, LATER)):
        begun = time.perf_counter()
        manager.save(number)
        taken[name] = time.perf_counter() - begun
        manager.wait()
    return taken


def _train(model: Subject) -> None:
    """One step of the optimizer: after the first one a manager makes memory for its copies, beside what follows."""
    for parameter in model.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model.optimizer.step()
    model.optimizer.zero_grad()
