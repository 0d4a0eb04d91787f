"""Code of the run's own that a load calls and that may raise, and state that a load can't just copy.

Real runs have modules with state beside tensors, as FP8 layers do, schedulers
that hold other schedulers, and loaders that open files when they are given a
position.  All of it works, until it is made to fail, once.
"""

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LRScheduler

_WARM_UP_STEPS = 2


class Scaled(nn.Module):
    """Has extra state, which training changes and which changes the loss."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.scale = 1 + seed / 1000

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.scale *= 1.01
        return values * self.scale

    def get_extra_state(self) -> dict[str, float]:
        return {"scale": self.scale}

    def set_extra_state(self, state: dict[str, float]) -> None:
        self.scale = state["scale"]


class Shifted(nn.Module):
    """Has a buffer of equal elements, which can share their memory."""

    equal: torch.Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.register_buffer("equal", torch.full((3,), seed / 1000))

    def expand(self) -> None:
        """Same name, shape and values, in the memory of one element."""
        self.equal = self.equal[:1].expand(3)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values + self.equal


class WarmUp(LRScheduler):
    """Raises the learning rate over a few steps, and then lets another scheduler go on.

    As published ones do, it keeps the other one in an attribute, which its `state_dict` hands out as it is.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, after: LRScheduler) -> None:
        self.after = after
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        return [base * (self.last_epoch + 1) / _WARM_UP_STEPS for base in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        if self.last_epoch + 1 < _WARM_UP_STEPS:
            super().step()
        else:
            self.last_epoch += 1
            self.after.step()


class Chain(LRScheduler):
    """Lets several schedulers change the rate, one after another; its `state_dict` hands out the list that it keeps."""

    def __init__(self, optimizer: torch.optim.Optimizer, *links: LRScheduler) -> None:
        self.links: list[LRScheduler] = []
        super().__init__(optimizer)
        self.links += links

    def step(self, epoch: int | None = None) -> None:
        self.last_epoch += 1
        for link in self.links:
            link.step()
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]  # for `get_last_lr`, which loops call


KINDS = {"extra": Scaled, "buffer": Shifted}
"""What a model can be made to end with."""


def nested(optimizer: torch.optim.Optimizer, kind: str) -> LRScheduler:
    """A scheduler that holds another one (`inner`), or two of them in a list (`list`)."""
    cosine = CosineAnnealingLR(optimizer, T_max=1000)
    if kind == "inner":
        return WarmUp(optimizer, cosine)
    return Chain(optimizer, cosine, ExponentialLR(optimizer, gamma=0.9))


def fail_once(owner: Any, method: str) -> None:
    """The next call of the method does its work and then raises; after that the object is what it was."""
    usual = type(owner)

    def take_and_raise(self: Any, state: Any) -> None:
        self.__class__ = usual
        getattr(self, method)(state)
        raise OSError(f"{usual.__name__} could not open what belongs to its new state")

    owner.__class__ = type(usual.__name__, (usual,), {method: take_and_raise})


def extra_states(model: nn.Module) -> dict[str, Any]:
    """The extra state of each module that has one, by name."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, Scaled)}
    return {f"{name}.extra_state": module.get_extra_state() for name, module in found.items()}


def scheduler_state(scheduler: LRScheduler) -> dict[str, Any]:
    """Its state, with that of a scheduler which it holds as plain data."""
    return {key: _plain(value) for key, value in scheduler.state_dict().items()}


def _plain(value: Any) -> Any:
    if isinstance(value, LRScheduler):
        return scheduler_state(value)
    return list(map(_plain, value)) if isinstance(value, list) else value
