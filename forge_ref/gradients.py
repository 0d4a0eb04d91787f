"""Whether gradients have come in since the optimizer's last step: no checkpoint holds them, so a save in between
loses what they were accumulated from.

It changes nothing: after each step it notes the gradients and their versions,
and a save compares.  A gradient that was kept, cleared or set to zero
since has not come in; and where parameters have changed without a step of this
optimizer, somebody else steps, and nothing is known.

A few parameters stand for all: a backward pass reaches nearly all of them, and
thousands would be noted at every step.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils.weak import TensorWeakRef

_SAMPLE = 16


@dataclass(frozen=True)
class _Mark:
    """A parameter and its gradient at one moment."""

    version: int
    gradient: TensorWeakRef | None
    gradient_version: int

    @classmethod
    def of(cls, parameter: torch.Tensor) -> "_Mark":
        gradient = parameter.grad
        if gradient is None:
            return cls(_version(parameter), None, 0)
        return cls(_version(parameter), TensorWeakRef(gradient), _version(gradient))

    def is_gradient(self, gradient: torch.Tensor) -> bool:
        """Return whether this is the same gradient with the same values."""
        known = self.gradient is not None and self.gradient() is gradient
        return known and self.gradient_version == _version(gradient)


class GradientWatch:
    """Watches one optimizer for as long as somebody holds the watch."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        self._sample = parameters[:: max(1, -(-len(parameters) // _SAMPLE))]
        self.note()
        if not after_each_step(optimizer, self.note):
            self._sample = []

    def note(self) -> None:
        """Note the gradients as they are: all of them are used, or were loaded."""
        self._marks = [_Mark.of(parameter) for parameter in self._sample]

    def has_accumulated(self) -> bool:
        """Return whether finite values were added to a gradient since the last step; a scaler skips others."""
        if any(_version(p) != mark.version for p, mark in zip(self._sample, self._marks, strict=True)):
            return False
        changed = [
            _local(p.grad)
            for p, mark in zip(self._sample, self._marks, strict=True)
            if p.grad is not None and not mark.is_gradient(p.grad)
        ]
        return any(bool(g.any()) for g in changed) and all(bool(g.isfinite().all()) for g in changed)


def after_each_step(optimizer: torch.optim.Optimizer, method: Callable[[], object]) -> bool:
    """Call a method after each step, as long as its object lives; return False for an optimizer that can't do that."""
    if not hasattr(optimizer, "register_step_post_hook"):
        return False
    weak = weakref.WeakMethod(method)

    def call(*_: object) -> None:
        if (alive := weak()) is not None:
            alive()

    handle = optimizer.register_step_post_hook(call)
    weakref.finalize(method.__self__, handle.remove)  # type: ignore[attr-defined]  # it is a method
    return True


def _local(tensor: torch.Tensor) -> Any:
    with torch.no_grad():
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        return local.coalesce().values() if local.is_sparse else local


def _version(tensor: torch.Tensor) -> int:
    """Return how often its memory was written to; 0 for an inference tensor, which nothing counts for."""
    with torch.no_grad():
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor  # a sharded tensor has no count of its own
        try:
            return int(local._version)
        except RuntimeError:
            return 0
