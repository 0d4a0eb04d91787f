"""How near the reference's storage comes to the limits of memory and disk, beside torch.save and stock DCP.

In each round everything is done once, in an order of its own, so that what
drifts meets all alike; the results are medians, and their ratios to the limits
of the same run:

    blocked     the time that an asynchronous save takes away from training, over a warm copy of the same tensors
    save        until all is on storage, over O_DIRECT + fsync, and over a buffered write + fsync, of the same bytes
    loader      into fresh memory, verified; over a raw read of the file into warm memory
    resume      into model and optimizer; over the same
    hashes      of all pieces, over the synchronous save that computes them beside its writes
"""

import gc
import mmap
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

SIZES = ((16, 48), (256, 48), (120, 3_300))
"""Megabytes of parameters and moments together, and how many parameters they are divided into."""
_CHUNK = 16 << 20


def study(rounds: int) -> str:
    """Return tables in Markdown."""
    return "\n\n".join(_table(size_mb, count, rounds) for size_mb, count in SIZES)


@dataclass(frozen=True)
class _Subject:
    """A model that has trained, and its values as flat tensors."""

    model: Any
    optimizer: Any
    tensors: list[Any]

    @property
    def size(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def state(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import get_state_dict

        weights, moments = get_state_dict(self.model, self.optimizer)
        return {"model": weights, "optimizer": moments}

    def put(self, state: dict[str, Any]) -> None:
        from torch.distributed.checkpoint.state_dict import set_state_dict

        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def _subject(size_mb: int, count: int) -> _Subject:
    import torch

    length = size_mb * 1_000_000 // 3 // count // 4
    layers = [
        torch.nn.ParameterDict({f"p{i}": torch.nn.Parameter(torch.randn(length)) for i in range(10)})
        for _ in range(max(1, count // 10))
    ]
    model = torch.nn.ModuleList(layers)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    moments = [value for entry in optimizer.state.values() for value in entry.values()]
    return _Subject(model, optimizer, [parameter.detach() for parameter in model.parameters()] + moments)


def _table(size_mb: int, count: int, rounds: int) -> str:
    import torch

    torch.set_num_threads(1)
    subject = _subject(size_mb, count)
    with tempfile.TemporaryDirectory() as folder:
        works = _Bench(subject, Path(folder)).works()
        times: dict[str, list[float]] = {}
        for number in range(-2, rounds):
            order = list(works)
            random.Random(number).shuffle(order)
            for name in order:
                gc.collect()
                os.sync()
                begun = time.perf_counter()
                parts = works[name]()
                taken = parts or {name: time.perf_counter() - begun}
                for part, seconds in taken.items() if number >= 0 else ():
                    times.setdefault(part, []).append(seconds)
    return _rendered(subject, {name: statistics.median(all_) for name, all_ in times.items()}, rounds)


def _rendered(subject: _Subject, median: dict[str, float], rounds: int) -> str:
    limits = {
        "blocked": "copy",
        "save": "O_DIRECT + fsync",
        "loader": "raw read",
        "resume": "raw read",
    }
    rows = [
        ("copy", "copy"),
        ("stock async save, blocked", "blocked"),
        ("forge_ref async save, blocked", "blocked"),
        ("O_DIRECT + fsync", "save"),
        ("buffered + fsync", "save"),
        ("torch.save + fsync", "save"),
        ("stock save + fsync", "save"),
        ("forge_ref save", "save"),
        ("forge_ref async save, until durable", "save"),
        ("raw read", "loader"),
        ("forge_ref loader", "loader"),
        ("torch.load and set", "resume"),
        ("stock load and set", "resume"),
        ("forge_ref load", "resume"),
    ]
    lines = [
        f"{subject.size / 1e6:.0f} MB in {len(subject.tensors):,} tensors, medians of {rounds} rounds:",
        "",
        "| | ms | over its limit | over buffered + fsync |",
        "|---|---:|---:|---:|",
    ]
    for name, kind in rows:
        limit = median[limits.get(kind, name)]
        buffered = f"{median[name] / median['buffered + fsync']:.2f}" if kind == "save" else ""
        lines.append(f"| {name} | {median[name] * 1e3:.1f} | {median[name] / limit:.2f} | {buffered} |")
    hashes = median["hashes"] / median["forge_ref save"]
    return "\n".join([*lines, "", f"Hashes alone: {median['hashes'] * 1e3:.1f} ms, {hashes:.1%} of a save."])


class _Bench:
    """The same state as each of the ways to save has written it last, in folders of their own."""

    def __init__(self, subject: _Subject, folder: Path) -> None:
        import torch

        import forge_ref

        self._subject, self._folder = subject, folder
        self._steps = iter(range(1, 1_000_000))
        self._copies = [torch.empty_like(tensor) for tensor in subject.tensors]
        self._pages = mmap.mmap(-1, -(-subject.size // 4096) * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._pages[:] = bytes(len(self._pages))
        self._at_once = self._manager("at_once", forge_ref.AsyncCheckpointMode.disabled)
        self._behind = self._manager("behind", forge_ref.AsyncCheckpointMode.async_)
        self._at_once.save(next(self._steps))
        for write in (self._buffered, self._torch, self._stock):
            write()

    def _manager(self, name: str, mode: Any) -> Any:
        import forge_ref

        config = forge_ref.CheckpointConfig(dir=str(self._folder / name), keep_last_n=1, async_mode=mode)
        return forge_ref.CheckpointManager(config, self._subject.model, self._subject.optimizer)

    def works(self) -> dict[str, Callable[[], dict[str, float] | None]]:
        """Return what is measured by name; what returns times of its own is not timed as a whole."""
        warmly = {
            "raw read": (self._ours, lambda: _read(next(self._ours().glob("*.distcp")), self._copies)),
            "forge_ref loader": (self._ours, self._loader),
            "torch.load and set": (partial(self._newest, "torch"), self._torch_load),
            "stock load and set": (partial(self._newest, "stock"), self._stock_load),
            "forge_ref load": (self._ours, self._at_once.load),
        }
        return {
            "copy": self._copy,
            "O_DIRECT + fsync": lambda: self._fresh("direct", partial(_write_directly, memoryview(self._pages))),
            "buffered + fsync": self._buffered,
            "torch.save + fsync": self._torch,
            "stock save + fsync": self._stock,
            "stock async save": self._stock_asynchronous,
            "forge_ref save": lambda: self._at_once.save(next(self._steps)),
            "forge_ref async save": self._asynchronous,
            **{name: partial(_warmly, name, place, read) for name, (place, read) in warmly.items()},
            "hashes": self._hashes,
        }

    def _copy(self) -> None:
        import torch

        torch._foreach_copy_(self._copies, self._subject.tensors)

    def _fresh(self, name: str, write: Callable[[Path], object]) -> None:
        """Write into a new directory, as all of them do, and delete the one before."""
        old = sorted((self._folder / name).glob("*"))
        write(self._folder / name / f"{next(self._steps):09}")
        for path in old:
            shutil.rmtree(path)

    def _buffered(self) -> None:
        self._fresh("raw", partial(_write_buffered, self._subject.tensors))

    def _torch(self) -> None:
        self._fresh("torch", partial(_torch_save, self._subject))

    def _stock(self) -> None:
        self._fresh("stock", partial(_stock_save, self._subject))

    def _asynchronous(self) -> dict[str, float]:
        begun = time.perf_counter()
        self._behind.save(next(self._steps))
        blocked = time.perf_counter() - begun
        self._behind.wait()
        return {
            "forge_ref async save, blocked": blocked,
            "forge_ref async save, until durable": time.perf_counter() - begun,
        }

    def _stock_asynchronous(self) -> dict[str, float]:
        import torch.distributed.checkpoint as dcp

        begun = time.perf_counter()
        future = dcp.async_save(self._subject.state(), checkpoint_id=self._folder / "stock_behind")
        blocked = time.perf_counter() - begun
        future.result()
        return {"stock async save, blocked": blocked}

    def _newest(self, name: str) -> Path:
        return sorted((self._folder / name).glob("0*"))[-1]

    def _ours(self) -> Path:
        return self._folder / "at_once" / os.readlink(self._folder / "at_once" / "latest")

    def _torch_load(self) -> None:
        import torch

        self._subject.put(torch.load(self._newest("torch") / "state", weights_only=True))

    def _stock_load(self) -> None:
        import torch.distributed.checkpoint as dcp

        state = self._subject.state()
        dcp.load(state, checkpoint_id=self._newest("stock"))
        self._subject.put(state)

    def _loader(self) -> None:
        from forge_ref import layout, manifest, storage

        path = self._ours()
        seals = manifest.seals(layout.read_metadata(path))
        storage.open_shards(path, seals[layout.MARKER]).read(lambda _: True)

    def _hashes(self) -> None:
        from forge_ref.engine import table

        for tensor in self._subject.tensors:
            table.digest(_bytes_of(tensor))


def _warmly(name: str, place: Callable[[], Path], read: Callable[[], object]) -> dict[str, float]:
    """Return how long this takes with all files in the page cache; the same file is read raw, as it is laid out."""
    for file in place().iterdir():
        file.read_bytes()
    begun = time.perf_counter()
    read()
    return {name: time.perf_counter() - begun}


def _bytes_of(tensor: Any) -> memoryview:
    return memoryview(tensor.reshape(-1).numpy()).cast("B")


def _write_buffered(tensors: list[Any], path: Path) -> None:
    path.mkdir(parents=True)
    descriptor = os.open(path / "bytes", os.O_CREAT | os.O_WRONLY)
    pieces = [_bytes_of(tensor) for tensor in tensors]
    for start in range(0, len(pieces), 1000):
        os.writev(descriptor, pieces[start : start + 1000])
    os.close(descriptor)
    _sync_tree(path)


def _write_directly(pages: memoryview, path: Path) -> None:
    path.mkdir(parents=True)
    descriptor = os.open(path / "bytes", os.O_CREAT | os.O_WRONLY | os.O_DIRECT)
    for start in range(0, len(pages), _CHUNK):
        os.pwrite(descriptor, pages[start : start + _CHUNK], start)
    os.close(descriptor)
    _sync_tree(path)


def _torch_save(subject: _Subject, path: Path) -> None:
    import torch

    path.mkdir(parents=True)
    torch.save(subject.state(), path / "state")
    _sync_tree(path)


def _stock_save(subject: _Subject, path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    dcp.save(subject.state(), checkpoint_id=path)
    _sync_tree(path)


def _sync_tree(path: Path) -> None:
    for place in (*path.iterdir(), path):
        descriptor = os.open(place, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _read(path: Path, into: list[Any]) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    pieces = [_bytes_of(tensor) for tensor in into]
    for start in range(0, len(pieces), 1000):
        os.readv(descriptor, pieces[start : start + 1000])
    os.close(descriptor)
