"""A training run of several ranks: the same kinds of state as alone, divided as real runs divide them.

Each rank has its own data, its own loader and its own random streams, so that
one which gets another's is found out by its losses.  Training uses collectives
of its own at every step, on the group of all ranks and on that of its stage:
a manager that shares one of them with its flush meets it there.

*sharded* is FSDP2 over the ranks of a stage, *replicated* keeps all of the
model on each and averages gradients, *tensor* splits matrices by DTensor, and
its ranks see the same data, as those of one tensor-parallel group do.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from .workload import CLASSES, FEATURES, Loader, Workload, fingerprint, seed_streams

_UNEVEN = 7
"""No number of ranks divides it: shards are uneven, and with four ranks one of the last layer's is empty."""
_EVEN = 8
"""Tensor parallelism takes no other."""


@dataclass(frozen=True)
class Place:
    """Which of how many ranks this process is, and how they divide the work."""

    rank: int
    size: int
    kind: str
    """`sharded`, `replicated` or `tensor`."""
    stages: int
    """Pipeline stages; 0 means that there is no pipeline."""
    rendezvous: str
    """A file that the ranks find each other through."""
    timeout_s: float
    """How long a collective waits for a rank, in whatever group."""
    is_alone: bool = False
    """Whether the manager is handed, by mistake, a group of which this rank is the only member."""
    has_own: bool = False
    """Whether the model has a buffer, and extra state, that differ from rank to rank."""


def join(place: Place, device: torch.device) -> None:
    """Make the group of all ranks; every rank has to come here.

    Groups that are made later without a word about it wait as long as this
    one: `torch.distributed` would let them wait for half an hour.
    """
    timeout = timedelta(seconds=place.timeout_s)
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        setattr(distributed_c10d, name, timeout)
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(
        backend, init_method=f"file://{place.rendezvous}", rank=place.rank, world_size=place.size, timeout=timeout
    )


def leave() -> None:
    """Give up the group of all ranks, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


class Ticks(nn.Module):
    """A buffer that training changes, to the same value on all ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ticks", torch.zeros(3))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        ticks: Any = self.ticks
        ticks += 1
        return values


class Statistics(nn.Module):
    """A buffer and extra state of what this rank alone has seen, as batch norm has them that is not synchronized."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.seen: dict[int, float] = {}

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        mean: Any = self.mean
        mean += values.detach().mean()
        self.seen[len(self.seen)] = float(values.detach().mean())
        shift: torch.Tensor = mean.mean() / 10 + sum(self.seen.values()) / 100
        return values + shift

    def get_extra_state(self) -> Any:
        return self.seen

    def set_extra_state(self, state: Any) -> None:
        self.seen = dict(state)


class RankWorkload(Workload):
    """One rank of a training run; all ranks have to make theirs, and train, together."""

    _is_fused = True
    """Of operations on sharded tensors, the first of each kind in a process is slow."""

    def __init__(self, seed: int, place: Place, device: str = "cpu") -> None:
        self.place = place
        where = torch.device(f"cuda:{place.rank % torch.cuda.device_count()}" if device == "cuda" else device)
        self._join(where)
        self._mesh = self._replicas(where.type)
        if place.is_alone:
            self.process_group = [dist.new_group([rank]) for rank in range(place.size)][place.rank]
        super().__init__(1000 * seed + (self.stage or 0), str(where))
        own = 1000 * seed + 100 + (0 if place.kind == "tensor" else place.rank)
        seed_streams(own)
        self.dataloader = Loader(own)

    def _join(self, device: torch.device) -> None:
        join(self.place, device)

    def _replicas(self, device_type: str) -> DeviceMesh:
        """The ranks that share this one's layers; in a pipeline they have a group of their own."""
        if not self.place.stages:
            return init_device_mesh(device_type, (self.place.size,))
        by_stage = (self.place.stages, self.place.size // self.place.stages)
        mesh = init_device_mesh(device_type, by_stage, mesh_dim_names=("stages", "replicas"))
        self.stage = mesh.get_local_rank("stages")
        self.process_group = mesh.get_group("replicas")
        return mesh["replicas"]

    def _made_model(self) -> nn.Module:
        hidden = _EVEN if self.place.kind == "tensor" else _UNEVEN
        first, last = nn.Linear(FEATURES, hidden, bias=False), nn.Linear(hidden, CLASSES)
        own = [Statistics()] if self.place.has_own else []
        return nn.Sequential(first, Ticks(), nn.Dropout(0.2), nn.Tanh(), last, *own)

    def _spread(self) -> None:
        layers: Any = self.model
        match self.place.kind:
            case "sharded":
                fully_shard(layers, mesh=self._mesh)
            case "tensor":
                parallelize_module(layers, self._mesh, {"0": ColwiseParallel(), "4": RowwiseParallel()})
            case "replicated":
                pass
            case other:
                raise AssertionError(f"the suite knows no kind {other!r}")

    def _average_gradients(self) -> None:
        if self.place.kind != "replicated":
            return
        for gradient in [parameter.grad for parameter in self.model.parameters()]:
            assert gradient is not None, "every parameter takes part in the loss"
            dist.all_reduce(gradient, group=self._mesh.get_group())
            gradient /= self._mesh.size()

    def _share(self, loss: torch.Tensor) -> None:
        """As loops do that log one loss for all."""
        dist.all_reduce(loss.clone())

    def digest(self) -> dict[str, str]:
        if not self.place.has_own:
            return super().digest()
        extra = {name: value for name, value in self.model.state_dict().items() if name.endswith("_extra_state")}
        return {**super().digest(), **{f"buffer/{name}": fingerprint(sorted(v.items())) for name, v in extra.items()}}

    def whole(self) -> dict[str, str]:
        """A fingerprint of the full value of every parameter, buffer and moment; the ranks of a stage ask together."""
        values = {
            **{f"parameter/{name}": value for name, value in self.model.named_parameters()},
            **{f"buffer/{name}": value for name, value in self.model.named_buffers()},
            **{f"moment/{name}": value for name, value in self._moments().items()},
        }
        return {name: fingerprint(_full(value)) for name, value in sorted(values.items())}


class UnheardRank(RankWorkload):
    """A rank that is the only process of its run: nobody gets what it sends."""

    def _join(self, device: torch.device) -> None:
        from torch.testing._internal.distributed.fake_pg import FakeStore  # makes the group known to torch

        dist.init_process_group("fake", rank=self.place.rank, world_size=self.place.size, store=FakeStore())


def _full(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value
