"""How near saves and loads come to the limits of memory and disk, for one size of state, beside other ways to save.

    blocked     how long an asynchronous save keeps training from going on, over a warm copy of the same tensors
    save        until the call returns, over O_DIRECT + fsync, and over a buffered write + fsync, of the same bytes
    loader      verified; into fresh memory over a raw read into fresh memory, and into warm memory over one into that
    load        into model and optimizer, over a raw read of the file into warm memory

A way that leaves its files unsynced has a second row: with the missing syncs
made by the benchmark.
"""

import gc
import importlib
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
from measure import Budget, NotMeasured, Parts, Sample, Samples, Work, described, in_turns
from rivals import WAYS, Reference, Way, missing
from subject import CHUNK_BYTES, Size, Subject, Warm, subject, sync_tree

COPY, DIRECT, BUFFERED, READ = "warm copy", "O_DIRECT + fsync", "buffered + fsync", "raw read"
READ_FRESH = "raw read into fresh memory"
BLOCKED, DURABLE, SAVE, SYNCED, LOADER, LOAD = "blocked", "until written", "save", "save + fsync", "loader", "load"
LOADER_WARM = "loader into warm memory"
WITHOUT_HASHES, FSYNC = "without hashes", "fsync of"
FIRST, LATER = "first", "later"
TRAINED_S = 2.0
"""How long a run trains before its first save is measured."""
_STATES = 5.25
"""How many times the state is in memory at once: itself, its warm copy, two images of it, and what a load reads."""
_FILES = 14
"""How many times it is on the disk at once, at most."""


def study(size: Size, budget: Budget) -> tuple[int, int, Samples]:
    """Return bytes, tensors, and what was measured: the names are those above, of a way with its name before."""
    torch.set_num_threads(1)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # torch_checkpointing opens several for each tensor
    _check_room(size)
    _import_all(budget)
    budget.say("start", "state")
    model = subject(size)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        place, warm = Path(folder), Warm(model)
        ways, samples = _started(model, place, budget)
        reference = ways.pop(0)
        budget.say("start", f"{reference.name} {SAVE}")
        works = _limits(warm, place, reference) | _works(reference) | _apart(reference, place)
        always = set(works) - {FIRST}
        theirs = [_works(way) for way in ways]
        for way in ways:
            if why := _has_no_room(way, model, most):
                for kind in (SAVE, LOAD, BLOCKED) if way.keeps_memory and _is_tight(model) else (BLOCKED,):
                    samples[f"{way.name} {kind}"] = Sample(failure=why)
        # Stock DCP first, whose files ours are; then those that are expected to be fast.
        for several in [theirs[0], *sorted(theirs[1:], key=partial(_expected_s, budget))]:
            works |= {name: work for name, work in several.items() if name not in samples}
        return model.size_bytes, len(model.tensors), {**in_turns(works, budget, always), **samples}


def _import_all(budget: Budget) -> None:
    """Import what the ways need, and take it from the collector: no way pays for objects in the modules of another."""
    for needed in dict.fromkeys(way.needs for way in WAYS if not missing(way)):
        budget.say("start", f"import of {needed}")
        importlib.import_module(needed)
    gc.collect()
    gc.freeze()


def _started(model: Subject, place: Path, budget: Budget) -> tuple[list[Way], Samples]:
    """Return the ways, and why there are not all of them."""
    ways, failures = [], {}
    for way in (way for way in WAYS if not missing(way)):
        try:
            if why := budget.why_not(way.name):
                raise NotMeasured(why)
            budget.say("start", way.name)
            ways.append(way(model, place / way.__name__))
        except Exception as error:
            failures[way.name] = Sample(failure=described(error))
    return ways, failures


def _expected_s(budget: Budget, works: dict[str, Work]) -> float:
    return sum(budget.expected[name].seconds for name in works if name in budget.expected)


def _check_room(size: Size) -> None:
    """`NotMeasured` for a state that has no room in memory, with the files that loads are to find there, or on disk."""
    needed, there = size.megabytes * 1e6, {"memory": (_STATES, _available_bytes()), "disk": (_FILES, _free_bytes())}
    for what, (times, available) in there.items():
        if times * needed > available:
            raise NotMeasured(f"it takes {times * needed / 1e9:.0f} GB of {what}, and {available / 1e9:.0f} are free")


def _available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _free_bytes() -> int:
    return shutil.disk_usage(tempfile.gettempdir()).free


def _has_no_room(way: Way, model: Subject, most_files: int) -> str:
    """Return why a way can't save beside training here; empty if it can.

    A process without any file left measures nothing more, so there have to be twice as many.
    """
    if not way.saves_beside:
        return ""
    files, available = way.files_for_tensor * len(model.tensors), _available_bytes()
    if 2 * files >= most_files:
        return f"it opens {files:,} files or more, and {most_files:,} are allowed"
    if _is_tight(model):
        return f"it keeps memory of the size of the state, and only {available / 1e9:.0f} GB are free for all ways"
    return ""


def _is_tight(model: Subject) -> bool:
    """Return whether there is no room for further copies of the state, beside ours that are still to come."""
    return _STATES * model.size_bytes > _available_bytes()


def _limits(warm: Warm, place: Path, reference: Way) -> dict[str, Work]:
    assert isinstance(reference, Reference)
    reference.save(place)  # whose file is read raw

    def shards() -> Path:
        return next(reference.newest().glob("*.distcp"))

    loader = f"{reference.name} {LOADER}"
    loader_warm = f"{reference.name} {LOADER_WARM}"
    works: dict[str, Work] = {
        COPY: warm.copy,
        DIRECT: _into_new(place / "direct", warm.write_directly),
        BUFFERED: _into_new(place / "buffered", warm.write_buffered),
        READ: lambda: _warmly(reference.newest(), READ, lambda: warm.read(shards())),
        READ_FRESH: lambda: _warmly(reference.newest(), READ_FRESH, lambda: warm.read_fresh(shards())),
        loader: lambda: _warmly(reference.newest(), loader, reference.read),
    }
    if reference.reads_in_place():
        works[loader_warm] = lambda: _warmly(reference.newest(), loader_warm, lambda: reference.read(warm.copies))
    return works


def _works(way: Way) -> dict[str, Work]:
    places = _Places(way.folder)
    has_saved = False

    def save() -> Parts:
        nonlocal has_saved
        path = places.fresh("saved")
        begun = time.perf_counter()
        way.save(path)
        taken, has_saved = time.perf_counter() - begun, True
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
        if not has_saved:
            raise NotMeasured("there is no save to load")
        path = places.newest("saved")
        place = way.newest() if isinstance(way, Reference) else path if path.exists() else way.folder
        taken = _warmly(place, f"{way.name} {LOAD}", partial(way.load, path))
        way.subject.put_back()
        return taken

    works: dict[str, Work] = {f"{way.name} {SAVE}": save, f"{way.name} {LOAD}": load}
    return works | ({f"{way.name} {BLOCKED}": beside} if way.saves_beside else {})


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
    buffer = bytearray(CHUNK_BYTES)  # the whole file would count as memory of the work
    for file in place.rglob("*"):
        if file.is_file():
            with file.open("rb", buffering=0) as opened:
                while opened.readinto(buffer):
                    pass
    del buffer
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

    reference.beside = None  # its memory goes before the new one takes its own
    gc.collect()
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
    reference.beside = manager
    return taken


def _train(model: Subject) -> None:
    """One step of the optimizer: after the first one a manager makes memory for its copies, beside what follows."""
    for parameter in model.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model.optimizer.step()
    model.optimizer.zero_grad()
