"""What a resume needs besides weights: step, tokens seen, scheduler, loader, random streams, the caller's extra.

Each rank has its own streams and loader; of the rest, rank 0's is saved.  It is
plain data and tensors wherever the parts allow, so that it loads without
running pickled code.  Restoring is all or nothing for the scheduler and the
streams, and where another rank fails for a loader that can say where it was; one
that itself refuses its state in mid-way can't be undone.
"""

import copy
import io
import json
import logging
import operator
import random
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch

_log = logging.getLogger("forge_ref")
RESERVED = ("step", "tokens_seen", "rng", "scheduler", "dataloader")
"""Keys of a train state that an extra can't have."""
OWN = ("rng", "dataloader")
"""Keys of a train state that each rank has its own values of."""


def get_rng_state() -> dict[str, Any]:
    """The random streams of this process: python, numpy where it is installed, torch, and cuda once it is in use."""
    state: dict[str, Any] = {"python": random.getstate(), "torch_cpu": torch.get_rng_state()}
    if (numpy := _numpy()) is not None:
        state["numpy"] = _plain(numpy.random.get_state(legacy=False))
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["torch_cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Continue the streams that the state holds; others go on as they are.

    Also takes states of managers that keep the numpy stream as an array, or
    one stream for cuda.
    """
    if "python" in state:
        random.setstate(_tuples(state["python"]))
    if "numpy" in state and (numpy := _numpy()) is not None:
        numpy.random.set_state(state["numpy"])
    if "torch_cpu" in state:
        torch.set_rng_state(state["torch_cpu"])
    if "torch_cuda" in state and torch.cuda.is_available():
        _set_cuda(state["torch_cuda"])


def _set_cuda(streams: torch.Tensor | list[torch.Tensor]) -> None:
    if isinstance(streams, torch.Tensor):
        torch.cuda.set_rng_state(streams)
        return
    for device, stream in enumerate(streams[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(stream, device)


def _numpy() -> Any:
    try:
        import numpy
    except ImportError:
        return None
    return numpy


def _plain(value: Any) -> Any:
    """Arrays as lists, so that no numpy code is needed to load them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def build_train_state(
    step: int,
    tokens_seen: int,
    scheduler: Any | None = None,
    dataloader: Any | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The train state as of now; it still shares objects with the parts it was taken from.

    A loader without `state_dict` is left out.  `ValueError` names the keys of
    `extra` that are reserved (resume.extra).
    """
    state: dict[str, Any] = {
        "step": operator.index(step),
        "tokens_seen": operator.index(tokens_seen),
        "rng": get_rng_state(),
    }
    if scheduler is not None:
        state["scheduler"] = scheduler.state_dict()
    if dataloader is not None and hasattr(dataloader, "state_dict"):
        state["dataloader"] = dataloader.state_dict()
    if taken := [key for key in RESERVED if key in (extra or {})]:
        raise ValueError(f"extra has the reserved keys {taken}; rename them ({', '.join(RESERVED)} are taken)")
    return {**state, **(extra or {})}


def restore_train_state(
    state: Mapping[str, Any], scheduler: Any | None = None, dataloader: Any | None = None
) -> tuple[int, int, dict[str, Any]]:
    """Put a train state back; returns step, tokens seen and the caller's extra.

    The random streams come last, because a loader may draw from them while it
    is restored.  If a part refuses, scheduler and streams are as they were.
    """
    with ExitStack() as undo:
        remember(undo, scheduler)
        if scheduler is not None and "scheduler" in state:
            scheduler.load_state_dict(state["scheduler"])
        if hasattr(dataloader, "load_state_dict") and "dataloader" in state:
            dataloader.load_state_dict(state["dataloader"])  # type: ignore[union-attr]
        set_rng_state(state.get("rng", {}))
        undo.pop_all()
    extra = {key: value for key, value in state.items() if key not in RESERVED}
    return state.get("step", 0), state.get("tokens_seen", 0), extra


def remember(undo: ExitStack, scheduler: Any | None, dataloader: Any | None = None) -> None:
    """Have scheduler, random streams and a loader put back as they are now when the stack unwinds.

    A loader that can't say where it is, or refuses to go back there, stays where it is.
    """
    streams = get_rng_state()
    undo.callback(set_rng_state, streams)
    if scheduler is not None:
        undo.callback(scheduler.load_state_dict, copy.deepcopy(scheduler.state_dict()))
    if hasattr(dataloader, "state_dict") and hasattr(dataloader, "load_state_dict"):
        undo.callback(_put_back, dataloader, copy.deepcopy(dataloader.state_dict()))  # type: ignore[union-attr]
        set_rng_state(streams)  # some loaders begin to draw when they are asked


def _put_back(dataloader: Any, before: Any) -> None:
    try:
        dataloader.load_state_dict(before)
    except Exception:  # of a loader's own making; what is being raised already says why the load failed
        _log.warning("the loader refuses the position that it had before the load", exc_info=True)


def serialized(train_state: Mapping[str, Any]) -> bytes:
    """The content of a file of it; what is in it is fixed from here on (commit.snapshot)."""
    buffer = io.BytesIO()
    torch.save(dict(train_state), buffer)
    return buffer.getvalue()


def own_part(train_state: Mapping[str, Any]) -> torch.Tensor:
    """What a rank keeps for itself: its random streams and its loader's position (resume.rng-per-rank).

    As bytes in a tensor, which DCP writes with the rank's shards.  A file for
    each rank would be thousands more, and a value for each stream as many
    more entries in the marker that every rank reads.
    """
    own = {key: train_state[key] for key in OWN if key in train_state}
    return torch.frombuffer(bytearray(serialized(own)), dtype=torch.uint8)


def streams_of_new_rank(saved: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """Streams for a rank that has none saved: its own, and the same ones whenever it resumes from this state."""
    seed = zlib.crc32(bytes(saved.get("torch_cpu", torch.empty(0)).numpy().tobytes()), rank)
    streams: dict[str, Any] = {
        "python": random.Random(seed).getstate(),
        "torch_cpu": torch.Generator().manual_seed(seed).get_state(),
    }
    if (numpy := _numpy()) is not None:
        streams["numpy"] = _plain(numpy.random.RandomState(seed).get_state(legacy=False))
    if torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
        streams["torch_cuda"] = [torch.Generator(f"cuda:{n}").manual_seed(seed).get_state() for n in devices]
    return {kind: stream for kind, stream in streams.items() if kind in saved}


def describe(train_state: Mapping[str, Any], milestone: bool) -> dict[str, Any]:
    """What `metadata.json` says of a checkpoint (layout.metadata-json).

    Whether the step was saved as a milestone is recorded here, because
    retention asks it of every checkpoint, long after the window that decided
    it is gone, and must not unpickle anything for it (retention.class-is-remembered).
    """
    described = {"step": train_state["step"], "tokens_seen": train_state["tokens_seen"], "milestone": milestone}
    if "vlm_freeze" in train_state:
        described["vlm_freeze"] = train_state["vlm_freeze"]
    json.dumps(described)  # what can't be written is refused before anything is
    return copy.deepcopy(described)
