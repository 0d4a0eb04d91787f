"""Real ranks for tests: processes forked from one that has torch loaded, driven over pipes.

The driver sends every rank the same call, or each its own, and gets from each
a value or an `Error`.  Nothing waits for ever: a rank that does not answer is
a failure of the test, which shows where every rank stands.
"""

import faulthandler
import hashlib
import multiprocessing
import os
import random
import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import forge_ref

PATIENCE = 40.0  # seconds: far more than anything here takes, far less than a person would wait
_PRELOADED = ["torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor.parallel", "forge_ref"]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(_PRELOADED)


@dataclass(frozen=True)
class Error:
    """What a call raised on a rank."""

    kind: str
    text: str


class Loader:
    """A stateful loader: counts, or refuses, or kills its process."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.refuses = False
        self.is_deadly = False

    def state_dict(self) -> dict[str, int]:
        self._meet()
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._meet()
        self.position = state["position"]

    def _meet(self) -> None:
        if self.is_deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.refuses:
            raise LookupError("this loader refuses")


class Flush(Future[None]):
    """One that ends, at the latest, when somebody waits for it."""

    def result(self, timeout: float | None = None) -> None:
        if not self.done():
            self.set_result(None)
        super().result(timeout)


class ForeignRun:
    """A run that is not ours: rank 0 plants a checkpoint, and what a save raises it raises on one rank alone."""

    def __init__(self, rank: int, save_folder: str) -> None:
        self.rank = rank
        self.save_folder = save_folder
        self.global_step = 0
        self.checkpointer = object()
        self.checkpoint_loaded = self.block_ephemeral_checkpoints = False
        self.failing: int | None = None
        self.is_late = False
        self.flush: Future[None] | None = None

    def save_checkpoint(self, ephemeral: bool) -> str:
        if self.rank == self.failing:
            raise LookupError("this rank refuses")
        path = Path(self.save_folder) / f"step{self.global_step}"
        for name in ("train/rank0.pt", "model_and_optim/.metadata", ".metadata.json"):
            if self.rank == 0:
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_text(f'{{"ephemeral": {str(ephemeral).lower()}}}')
        return str(path)

    def save_checkpoint_async(self, ephemeral: bool) -> tuple[str, Future[None]]:
        assert self.flush is None or self.flush.done(), "the flush before is still running"
        path, self.flush = self.save_checkpoint(ephemeral), Flush()
        if not self.is_late:
            self.flush.set_result(None)
        return path, self.flush


class Rank:
    """One rank of a training run; every public method can be called by the driver."""

    def __init__(self, rank: int, size: int, where: Path, kind: str, timeout: float, seed: int, config: dict[str, Any]):
        self.rank = rank
        if size > 1:
            store = where / f"rendezvous-{seed}"
            limit = timedelta(seconds=PATIENCE)
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=limit)
        stages = int(kind[-1]) if kind.startswith("pipe") else 1
        stage, self.group = 0, None
        mesh = None
        if size > 1:
            mesh = init_device_mesh("cpu", (stages, size // stages), mesh_dim_names=("pp", "dp"))
            stage, mesh = mesh.get_local_rank("pp"), mesh["dp"]
        self.stage = stage if stages > 1 else None
        if self.stage is not None and mesh is not None:
            self.group = mesh.get_group()
        torch.manual_seed(seed + stage)
        self.model: torch.nn.Module = torch.nn.Sequential(
            torch.nn.Linear(6, 8 if kind == "2d" else 7), torch.nn.LayerNorm(7), torch.nn.Linear(7, 3)
        )
        self._spread(kind, mesh)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=50)
        self.loader = Loader(100 * rank)
        random.seed(1000 * seed + rank)
        torch.manual_seed(1000 * seed + rank)
        self.config = forge_ref.CheckpointConfig(dir=str(where / "checkpoints"), **config)
        self.timeout = timedelta(seconds=timeout)
        self.alone: Any = None

    def _spread(self, kind: str, mesh: Any) -> None:
        if mesh is None or kind == "same":
            return
        if kind == "ddp":
            self.model = torch.nn.parallel.DistributedDataParallel(self.model)
        elif kind == "tp":
            parallelize_module(self.model, mesh, {"0": ColwiseParallel(use_local_output=False)})
            self.model = self.model[0]  # enough to have sharded and uneven parameters
        elif kind == "2d":
            square = init_device_mesh("cpu", (mesh.size() // 2, 2), mesh_dim_names=("dp", "tp"))
            parallelize_module(self.model, square["tp"], {"0": ColwiseParallel(use_local_output=False)})
            self.model = self.model[0]
            fully_shard(self.model, mesh=square["dp"])
        else:
            fully_shard(self.model[0], mesh=mesh)
            fully_shard(self.model, mesh=mesh)

    def open(self, process_group: Any = "its own", pp_rank: Any = "its own", take_over: bool = True) -> None:
        """A run that starts later takes the folder over, unless it is told otherwise."""
        group = self.group if process_group == "its own" else process_group
        stage = self.stage if pp_rank == "its own" else pp_rank
        self.manager = forge_ref.CheckpointManager(
            self.config, self.model, self.optimizer, group, stage, timeout=self.timeout, take_over=take_over
        )

    def open_with_groups(self, members: list[list[int]], pp_rank: int | None) -> None:
        """With the group of these that the rank is in; a rank in none gets the first, as a mistaken caller gives it."""
        groups = [(self.rank in ranks, dist.new_group(ranks)) for ranks in members]
        self.open(max(groups, key=lambda group: group[0])[1], pp_rank)

    def train(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            self.optimizer.zero_grad()
            output = self.model(torch.randn(4, 6) * random.random())
            loss = output.pow(2).mean()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.loader.position += 1
            losses.append(float(loss.full_tensor() if isinstance(loss, DTensor) else loss))
        return losses

    def save(self, step: int, **arguments: Any) -> None:
        self.manager.save(step, 10 * step, self.scheduler, self.loader, **arguments)

    def save_often(self, steps: Sequence[int]) -> list[float]:
        """Back to back, with training's own collectives in between."""
        losses = []
        for step in steps:
            losses += self.train(1)
            self.save(step)
        self.manager.wait()
        return losses

    def wait(self) -> None:
        self.manager.wait()

    def load(self, path: str | None = None, **arguments: Any) -> tuple[int, int, dict[str, Any]]:
        return self.manager.load(path, self.scheduler, self.loader, **arguments)

    def peek(self) -> int | None:
        return self.manager.peek_saved_step()

    def export(self, path: str) -> None:
        self.manager.export(path)

    def interrupted(self, where: str, method: str, *arguments: Any) -> Any:
        """What a method gives, or `interrupted`; the checkpointer of rank 0 gets a SIGINT in its method `where`."""
        checkpointer = self.manager._run.checkpointer
        real = getattr(checkpointer, where)

        def meets() -> None:
            vars(checkpointer).pop(where)
            signal.raise_signal(signal.SIGINT)
            real()

        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.rank == 0:
            setattr(checkpointer, where, meets)
        try:
            return getattr(self, method)(*arguments)
        except KeyboardInterrupt:
            return "interrupted"

    def position(self) -> int:
        return self.loader.position

    def draws(self) -> list[float]:
        return [random.random(), float(torch.rand(1))]

    def digest(self, loader: bool = True) -> str:
        """Of everything that a resume brings back to this rank."""
        return _hashed(
            [value.to_local() if isinstance(value, DTensor) else value for _, value in self._tensors()],
            self.loader.position if loader else None,
            self.scheduler.state_dict(),
            random.getstate(),
            torch.get_rng_state(),
        )

    def whole(self) -> str:
        """Of the full values of parameters and moments, however they are sharded."""
        full = ((name, value.full_tensor() if isinstance(value, DTensor) else value) for name, value in self._tensors())
        return _hashed([value for _, value in sorted(full, key=lambda named: named[0])])

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in self.model.named_parameters():
            name = name.removeprefix("module.")
            yield name, parameter.detach()
            for kind, moment in sorted(self.optimizer.state.get(parameter, {}).items()):
                yield f"{name}.{kind}", moment

    def counts(self) -> list[Counter[str]]:
        """What has been counted so far: in the thread that calls, in the one that flushes, and there within a stage."""
        ranks = self.manager._run.ranks
        return [channel.counted.copy() for channel in (ranks.calls, ranks.flushes, ranks.writers)]

    def touched(self, method: str, *arguments: Any) -> list[str]:
        """The names in the checkpoints' folder that a call opens, scans or changes."""
        seen: list[str] = []
        folder = str(self.manager._run.folder)

        def hook(event: str, about: tuple[Any, ...]) -> None:
            if event.split(".")[0] in ("open", "os", "shutil"):
                seen.extend(found for found in about if isinstance(found, str) and found.startswith(folder))

        sys.addaudithook(hook)
        getattr(self, method)(*arguments)
        return sorted({os.path.basename(path) for path in seen})

    def save_alone(self, path: str) -> None:
        """With the checkpointer and a group, without the manager."""
        if self.alone is None:
            self.alone = (forge_ref.AsyncCheckpointer(forge_ref.AsyncCheckpointMode.async_), dist.new_group())
        checkpointer, group = self.alone
        checkpointer.save({"model": self.model.state_dict()}, path, group)
        checkpointer.wait()

    def begin_hooks(self, is_async: bool) -> None:
        self.foreign = ForeignRun(self.rank, self.config.dir)
        self.callback = forge_ref.CheckpointerCallback(1, pre_train_checkpoint=False, save_async=is_async)
        self.callback.trainer = self.foreign
        self.callback.pre_train()

    def batch(self, step: int, failing: int | None = None, is_late: bool = False) -> bool:
        """The hook after a batch, whose save fails on one rank; whether a save is pending then."""
        self.foreign.global_step, self.foreign.failing, self.foreign.is_late = step, failing, is_late
        self.callback.post_train_batch()
        return self.callback.checkpoint_pending

    def end_hooks(self) -> list[str]:
        self.callback.post_train()
        return sorted(os.listdir(self.config.dir))

    # -- mischief -------------------------------------------------------------

    def hold_something_odd(self) -> None:
        """The state has a value that can't be copied, and an error about it that can't be pickled."""
        self.optimizer.param_groups[0]["odd"] = _Odd()

    def hold_nothing_odd(self) -> None:
        del self.optimizer.param_groups[0]["odd"]

    def limit_files(self, size: int, deadly: bool = False) -> None:
        """Writes beyond the size fail, or kill the process where it stands."""
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if deadly else signal.SIG_IGN)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size if size >= 0 else hard, hard))

    def refuse_what_is_beside(self, error: type[BaseException]) -> None:
        """Fail where a rank writes what it has beside its shards, as each does in the second design."""

        def refuse(_staged: Any) -> NoReturn:
            raise error("no more files")

        self.manager._saver._write_beside = refuse

    def refuse_shards(self, error: type[BaseException]) -> None:
        """The same where it writes its shards."""

        def refuse(*_: Any) -> NoReturn:
            raise error("no more shards")

        self.manager._saver._run.checkpointer.shards._write_file = refuse

    def refuse_to_commit(self, error: type[BaseException]) -> None:
        """The same where rank 0 commits."""

        def refuse(*_: Any) -> NoReturn:
            raise error("no commit")

        self.manager._saver._commit = refuse

    def loader_refuses(self, refuses: bool = True) -> None:
        self.loader.refuses = refuses

    def loader_kills(self) -> None:
        self.loader.is_deadly = True

    def configure(self, directory: str, **fields: Any) -> None:
        """Go to a directory, and set fields of the configuration; `open` makes the next manager with them."""
        os.chdir(directory)
        for name, value in fields.items():
            setattr(self.config, name, value)

    def look_elsewhere(self, folder: str) -> None:
        """This rank's view of the folder is another one, as on a file system that lags behind."""
        elsewhere = replace(self.manager._run, folder=Path(folder))
        for part in (self.manager, self.manager._saver, self.manager._resumer):
            part._run = elsewhere


class _Odd:
    def __reduce__(self) -> Any:
        class LocalError(Exception):
            pass

        raise LocalError("too odd")


def _hashed(*values: Any) -> str:
    digest = hashlib.sha256()
    for value in values:
        for item in value if isinstance(value, list) else [value]:
            is_tensor = isinstance(item, torch.Tensor)
            digest.update(bytes(item.contiguous().view(-1).view(torch.uint8)) if is_tensor else repr(item).encode())
    return digest.hexdigest()


def _serve(pipe: Connection, stacks: str, *about: Any) -> None:
    torch.set_num_threads(1)
    with open(stacks, "w") as file:
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
        rank = _answered(pipe, partial(Rank, *about), silent=True)
        while rank is not None:
            method, arguments, named = pipe.recv()
            _answered(pipe, partial(getattr(rank, method), *arguments, **named))


def _answered(pipe: Connection, call: Callable[[], Any], silent: bool = False) -> Any:
    try:
        value = call()
    except (Exception, SystemExit) as error:
        pipe.send(Error(type(error).__name__, str(error)))
        return None
    pipe.send(None if silent else value)
    return value


class World:
    """The ranks of one run, as the driver sees them."""

    def __init__(self, where: Path, size: int, kind: str, timeout: float, seed: int, config: dict[str, Any]) -> None:
        self.where = where
        self.folder = where / "checkpoints"
        self.alive = list(range(size))
        self._stacks = [where / f"stacks-{seed}-{rank}" for rank in range(size)]
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = FORKS.Pipe()
            about = (theirs, str(self._stacks[rank]), rank, size, where, kind, timeout, seed, config)
            process = FORKS.Process(target=_serve, args=about, daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._collect(self.alive)

    def __call__(self, method: str, *arguments: Any, **named: Any) -> list[Any]:
        """What a call gives on each living rank."""
        return self.each(method, [(arguments, named)] * len(self._pipes))

    def each(self, method: str, calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]) -> list[Any]:
        """The same with arguments for each rank."""
        self.begin(method, calls)
        return self._collect(self.alive)

    def begin(self, method: str, calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]) -> None:
        """Send a call without waiting for what it gives."""
        for rank in self.alive:
            with suppress(OSError):  # it is dead, as will be found when its answer is asked for
                self._pipes[rank].send((method, *calls[rank]))

    def on(self, rank: int, method: str, *arguments: Any, **named: Any) -> Any:
        """A call on one rank alone."""
        self._pipes[rank].send((method, arguments, named))
        return self._collect([rank])[0]

    def results(self) -> list[Any]:
        """What a call that was begun gives on each living rank."""
        return self._collect(self.alive)

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        """Send a signal; after all but SIGSTOP the rank counts as dead."""
        os.kill(self._processes[rank].pid or 0, number)
        self.alive.remove(rank)

    def _collect(self, ranks: Sequence[int]) -> list[Any]:
        found = {}
        for rank in list(ranks):
            try:
                if not self._pipes[rank].poll(PATIENCE):
                    raise AssertionError(f"rank {rank} does not answer\n{self._where_they_stand()}")
                found[rank] = self._pipes[rank].recv()
            except (EOFError, ConnectionResetError):
                self.alive.remove(rank)  # it died of the call
        return list(found.values())

    def _where_they_stand(self) -> str:
        for rank in self.alive:
            os.kill(self._processes[rank].pid or 0, signal.SIGUSR1)
        multiprocessing.connection.wait([process.sentinel for process in self._processes], timeout=1)
        return "\n".join(f"-- rank {rank}\n{path.read_text()}" for rank, path in enumerate(self._stacks))

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


@contextmanager
def worlds(where: Path) -> Iterator[Callable[..., World]]:
    """Starts runs on one folder, and ends what is left of them."""
    started: list[World] = []

    def start(size: int, kind: str = "fsdp", timeout: float = 30, opened: bool = True, **config: Any) -> World:
        world = World(where, size, kind, timeout, len(started), config)
        started.append(world)
        if opened:
            assert world("open") == [None] * size
        return world

    try:
        yield start
    finally:
        for world in started:
            world.close()
