"""Saves and loads of one, two and four ranks in turns: the same state, divided among them, and what ranks cost alone.

Each world is a group of processes that stay; one process tells each of them
what to do, so that the worlds take turns.  A rank's time counts from a barrier,
and the slowest rank's is the result.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from measure import Budget, Parts, Samples, in_turns

RANKS = (1, 2, 4)
_LAYERS, _TINY = 16, 8
_IMPORTED = ["torch.distributed.checkpoint", "torch.distributed.fsdp", "forge_ref", "subject"]
"""What the ranks need, imported once: each of them would take seconds for it."""


def study(megabytes: int, budget: Budget) -> Samples:
    """Return seconds of `ranks: work`, for a state of this size and for a tiny one."""
    with tempfile.TemporaryDirectory() as folder:
        worlds = {}
        try:
            for ranks in RANKS:
                for width in (_width(megabytes), _TINY):
                    budget.say("start", f"ranks: {ranks}, width: {width}")
                    worlds[ranks, width == _TINY] = _World(ranks, width, Path(folder, f"{ranks}_{width}"))
            for (ranks, _), world in worlds.items():
                budget.say("start", f"ranks: {ranks}, first saves")
                world.await_start()
            works: dict[str, Callable[[], Parts]] = {}
            for (ranks, is_tiny), world in worlds.items():
                for work in ("save", "load") if is_tiny else ("save", "blocked", "load", "stock save", "stock load"):
                    name = f"{ranks}: {'tiny ' if is_tiny else ''}{work}"
                    works[name] = lambda name=name, world=world, work=work: {name: world.do(work)}
            return in_turns(works, budget)
        finally:
            for world in worlds.values():
                world.close()


def _width(megabytes: int) -> int:
    """Return the width of a model whose parameters and moments are so large together."""
    return int((megabytes * 1_000_000 / 3 / 4 / _LAYERS) ** 0.5) // 8 * 8


class _World:
    """Processes that wait for a word."""

    def __init__(self, ranks: int, width: int, folder: Path) -> None:
        folder.mkdir()
        processes = get_context("forkserver")
        processes.set_forkserver_preload(_IMPORTED)
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(ranks):
            ours, theirs = processes.Pipe()
            process = processes.Process(target=_rank, args=(theirs, rank, ranks, width, str(folder)), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def await_start(self) -> None:
        """Return when all of them wait for a word."""
        for pipe in self._pipes:
            pipe.recv()

    def do(self, work: str) -> float:
        """Let all ranks do it; return the seconds of the slowest."""
        for pipe in self._pipes:
            pipe.send(work)
        answers = [pipe.recv() for pipe in self._pipes]
        if failed := [answer for answer in answers if isinstance(answer, str)]:
            raise RuntimeError(failed[0])
        return max(answers)

    def close(self) -> None:
        for pipe in self._pipes:
            with suppress(BrokenPipeError):  # a process that has died
                pipe.send(None)
        for process in self._processes:
            process.join()


def _rank(pipe: Connection, rank: int, ranks: int, width: int, folder: str) -> None:
    import warnings

    import torch
    import torch.distributed as dist

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    works = _works(torch, dist, ranks, width, folder)
    for work in ("save", "stock save"):  # what the first load finds
        works[work]()
    pipe.send(None)
    while (work := pipe.recv()) is not None:
        dist.barrier()
        try:
            pipe.send(works[work]())
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")
    dist.destroy_process_group()


def _works(torch: Any, dist: Any, ranks: int, width: int, folder: str) -> dict[str, Callable[[], float]]:
    import torch.distributed.checkpoint as dcp
    from subject import Subject
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    import forge_ref

    model = torch.nn.Sequential(*(torch.nn.Linear(width, width, bias=False) for _ in range(_LAYERS)))
    fully_shard(model, mesh=init_device_mesh("cpu", (ranks,)))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, width)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    subject, steps = Subject(model, optimizer), iter(range(1, 1_000_000))
    at_once, beside = (
        forge_ref.CheckpointManager(
            forge_ref.CheckpointConfig(dir=f"{folder}/{mode}", keep_last_n=1, async_mode=mode), model, optimizer
        )
        for mode in ("disabled", "async")
    )

    def timed(job: Callable[[], object]) -> float:
        begun = time.perf_counter()
        job()
        return time.perf_counter() - begun

    def blocked() -> float:
        taken = timed(lambda: beside.save(next(steps)))
        beside.wait()
        return taken

    def stock_load() -> None:
        state = subject.state()
        dcp.load(state, checkpoint_id=f"{folder}/stock")
        subject.put(state)

    return {
        "save": lambda: timed(lambda: at_once.save(next(steps))),
        "blocked": blocked,
        "load": lambda: timed(at_once.load),
        "stock save": lambda: timed(lambda: dcp.save(subject.state(), checkpoint_id=f"{folder}/stock")),
        "stock load": lambda: timed(stock_load),
    }
