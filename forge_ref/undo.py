"""Puts live objects back as they were before a load that failed, by identity.

A load runs code of the user's: schedulers, optimizers, loaders and modules
take their state through methods that may raise after they have changed
something.  What such an object holds is remembered as it stands in memory: the
objects in its attributes and containers, and a copy of the values of tensors.

Nothing is deep-copied.  A scheduler often holds its optimizer, or another
scheduler.  If it got copies of them back, it would set the learning rate of an
optimizer that nobody steps.

Invariant: putting back raises no `Exception`.  What can't be put back is logged,
so that the caller sees the error that made the load fail.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy

from forge_ref.messages import log as _log

_STATEFUL = ("state_dict", "load_state_dict")
"""What objects with a state of their own to load have."""


def later(undo: ExitStack, what: str, put_back: Callable[..., object], *arguments: Any) -> None:
    """Call this when the stack unwinds, and log its error as one of putting `what` back."""
    undo.callback(_attempt, what, put_back, *arguments)


def _attempt(what: str, put_back: Callable[..., object], *arguments: Any) -> None:
    try:
        put_back(*arguments)
    except Exception as error:  # the error that made the load fail is the one to raise
        _log.warning(
            "putting %s back as it was before the failed load failed, %s: %s; check it before training goes on",
            what,
            type(error).__name__,
            error,
        )


def remember(undo: ExitStack, what: str, roots: Iterable[object], leave: Iterable[object] = ()) -> None:
    """When the stack unwinds, let these objects hold what they hold now.

    This follows attributes, containers, and objects that have a state of their own to
    load, but no other modules and optimizers than the roots.  Objects in `leave` are
    not looked into.
    """
    seen = {id(item): item for item in leave}  # the objects, too: an identity is unique while its object lives
    pending: list[object] = []
    for root in roots:
        seen[id(root)] = root
        pending += [vars(root)] if hasattr(root, "__dict__") else []
    while pending:
        item = pending.pop()
        if id(item) not in seen:
            seen[id(item)] = item
            pending += _remember_one(undo, what, item)


def _remember_one(undo: ExitStack, what: str, item: Any) -> Iterator[object]:
    """Remember what one object holds, and yield the objects to look into next."""
    match item:
        case torch.Tensor():
            _remember_tensor(undo, what, item)
        case dict():
            later(undo, what, _refill, item, item.update, dict(item))
            yield from item.values()
        case list() | deque():
            later(undo, what, _refill, item, item.extend, list(item))
            yield from item
        case set():
            later(undo, what, _refill, item, item.update, set(item))
        case tuple():
            yield from item
        case torch.nn.Module() | torch.optim.Optimizer() | type():
            return
        case _ if hasattr(item, "__dict__") and all(hasattr(type(item), name) for name in _STATEFUL):
            yield vars(item)


def _refill(container: Any, fill: Callable[[Any], object], content: Any) -> None:
    container.clear()
    fill(content)


def _remember_tensor(undo: ExitStack, what: str, tensor: torch.Tensor) -> None:
    """Remember values and memory: loading code may overwrite the one, and replace the other."""
    if is_lazy(tensor):
        later(undo, what, _put_back_lazy, tensor, type(tensor))
        return
    with torch.no_grad():
        memory = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
        if memory.layout is not torch.strided:
            later(undo, what, _put_back_sparse, tensor, memory.clone())
            return
    if is_writable(memory):
        later(undo, what, _put_back_tensor, tensor, memory, memory.to("cpu", copy=True))


@torch.no_grad()
def _put_back_tensor(tensor: torch.Tensor, memory: torch.Tensor, values: torch.Tensor) -> None:
    if not isinstance(tensor, DTensor) and (
        tensor.shape != memory.shape or tensor.dtype != memory.dtype or tensor.data_ptr() != memory.data_ptr()
    ):
        tensor.data = memory
    memory.copy_(values)


@torch.no_grad()
def _put_back_sparse(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Give back indices and values; a sparse tensor has no memory of its own that could have been replaced."""
    tensor.copy_(values)


def _put_back_lazy(tensor: torch.Tensor, kind: type[torch.Tensor]) -> None:
    """Let a parameter or buffer that has got its shape be without one again."""
    if type(tensor) is not kind:
        tensor.data = tensor.new_empty(0)
        tensor.__class__ = kind


def is_writable(tensor: torch.Tensor) -> bool:
    """Return whether values can be copied into the tensor: its elements do not share memory, and torch allows it."""
    is_spread = tensor.layout is torch.strided and not tensor.is_contiguous()  # one without elements is contiguous
    is_expanded = is_spread and any(
        stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )
    return not is_expanded and (not tensor.is_inference() or torch.is_inference_mode_enabled())


def copied(value: Any) -> Any:
    """Return a copy of containers and tensors; all other objects are shared."""
    match value:
        case torch.Tensor():
            return value.detach().clone()
        case dict():  # and its subclasses, which torch's own tree functions take for leaves
            return {key: copied(item) for key, item in value.items()}
        case list():
            return [copied(item) for item in value]
        case _:
            return value
