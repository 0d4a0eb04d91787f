"""A tiny deterministic training run, with every kind of state that a checkpoint carries."""

import copy
import os
import pickle
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from forge_ref import CheckpointConfig, CheckpointManager

sys.path.insert(0, str(Path(__file__).parent))  # for rank_workers, which the processes it starts import as well


def names(folder: Path) -> list[str]:
    """What stands there, but for who saves there; nothing if the folder is still to be made."""
    return sorted(name for name in os.listdir(folder) if name != ".writer") if folder.exists() else []


def make_foreign(checkpoint: Path, metadata: str, file: str = "metadata.json") -> None:
    """Make it one that another manager might have left: no checksums behind its markers, and this metadata."""
    for marker in checkpoint.rglob(".metadata"):
        marker.write_bytes(pickle.dumps(pickle.loads(marker.read_bytes())))
    (checkpoint / file).write_text(metadata)


class Loader:
    """A stateful loader: counts."""

    def __init__(self) -> None:
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Run:
    """One process life of a training run; `seed` sets it apart from others until it has resumed."""

    def __init__(self, folder: Path, seed: int = 0, **config: Any) -> None:
        random.seed(seed)
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim == 1]
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=100)
        self.loader = Loader()
        self.folder = folder
        self.manager = CheckpointManager(CheckpointConfig(dir=str(folder), **config), self.model, self.optimizer)

    def train(self, steps: int) -> list[float]:
        """The loss of each step; gradients stay in place, as real loops leave them."""
        losses = []
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = self.model(torch.randn(6, 4) * random.random()).pow(2).mean()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.loader.position += 1
            losses.append(loss.item())
        return losses

    def save(self, step: int, **arguments: Any) -> None:
        """Also wait in a synchronous mode: what retention has dropped is deleted then, for tests that look."""
        self.manager.save(step, 10 * step, scheduler=self.scheduler, dataloader=self.loader, **arguments)
        if self.manager.config.async_mode == "disabled":
            self.manager.wait()

    def load(self, path: Path | str | None = None, **arguments: Any) -> tuple[int, int, dict[str, Any]]:
        named = None if path is None else str(path)
        return self.manager.load(named, scheduler=self.scheduler, dataloader=self.loader, **arguments)

    def picture(self) -> dict[str, Any]:
        """Everything that a save must not, and a refused load may not, change; copied."""
        gradients = [None if p.grad is None else p.grad.clone() for p in self.model.parameters()]
        moments = {
            (i, name): value.clone()
            for i, p in enumerate(self.model.parameters())
            for name, value in self.optimizer.state.get(p, {}).items()
        }
        return {
            "parameters": copy.deepcopy(dict(self.model.state_dict())),
            "moments": moments,
            "groups": [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups],
            "gradients": gradients,
            "scheduler": dict(self.scheduler.state_dict()),
            "loader": self.loader.position,
            "rng": (random.getstate(), torch.get_rng_state()),
        }


def same(one: Any, other: Any) -> bool:
    """Bitwise equality, tensors inside containers included."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Run]:
    """Starts a run on the test's checkpoint folder."""
    return lambda seed=0, **config: Run(tmp_path / "checkpoints", seed, **config)


@pytest.fixture
def without_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of hundreds of saves in which no power is lost: they would spend most of their time in `fsync`."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def equal() -> Callable[[Any, Any], bool]:
    return same
