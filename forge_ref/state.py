"""What a resume needs besides weights: step, tokens seen, scheduler, loader, random streams, the caller's extra.

Each rank has its own streams and loader; of the rest, rank 0's is saved.  It is
plain data and tensors wherever the parts allow, so that it loads without
running pickled code.  Restoring is all or nothing for the scheduler, the
streams and a loader that can say where it was.
"""

import copy
import json
import numbers
import operator
import random
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from forge_ref import archive
from forge_ref.errors import DamagedError, naming
from forge_ref.messages import log as _log
from forge_ref.undo import copied, later, remember

RESERVED = ("step", "tokens_seen", "rng", "scheduler", "dataloader")
"""Keys of a train state that an extra can't have."""
OWN = ("rng", "dataloader")
"""Keys of a train state that each rank has its own values of."""
_SHOWN_DEPTH = 5
"""How many keys of nested mappings lead an error to a value."""


def get_rng_state() -> dict[str, Any]:
    """Return the random streams: python, numpy if it is installed, torch, and cuda once it is in use."""
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


def check_counters(state: Mapping[str, Any], file: Path) -> None:
    """`DamagedError` names the file if the step or the number of tokens in it is not an integer."""
    for key in ("step", "tokens_seen"):
        value = state.get(key, 0)
        if not isinstance(value, numbers.Integral) or isinstance(value, bool):
            raise DamagedError(f"{file}: {key} is {value!r:.80}, not an integer; resume from another checkpoint")


def check_streams(state: Mapping[str, Any], file: Path) -> None:
    """`DamagedError` names the file if its random streams can't be continued; no live stream changes."""
    streams = state.get("rng", {})
    with naming(file):
        if not isinstance(streams, Mapping):
            raise TypeError(f"rng is {streams!r:.80}, not a mapping")
        if "python" in streams:
            random.Random().setstate(_tuples(streams["python"]))
        if "numpy" in streams and (numpy := _numpy()) is not None:
            numpy.random.RandomState().set_state(streams["numpy"])
        if "torch_cpu" in streams:
            torch.Generator().set_state(streams["torch_cpu"])
        if "torch_cuda" in streams and not isinstance(streams["torch_cuda"], torch.Tensor | list):
            raise TypeError("rng['torch_cuda'] is not a list of tensors")


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
    """Return arrays as lists, so that no numpy code is needed to load them."""
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
    """Return the train state as of now; it shares objects with the parts that it was taken from.

    A loader without `state_dict` is left out.  `ValueError` names the keys of
    `extra` that are reserved (resume.extra).
    """
    if not isinstance(extra, Mapping | None):
        raise TypeError(f"extra is {extra!r}; it must be a mapping")
    state: dict[str, Any] = {
        "step": operator.index(step),
        "tokens_seen": operator.index(tokens_seen),
        "rng": get_rng_state(),
    }
    if scheduler is not None:
        _check_scheduler(scheduler, "state_dict")
        state["scheduler"] = _as_states(scheduler.state_dict())
    if dataloader is not None and hasattr(dataloader, "state_dict"):
        state["dataloader"] = dataloader.state_dict()
    if taken := [key for key in RESERVED if key in (extra or {})]:
        raise ValueError(f"extra has the reserved keys {taken}; rename them ({', '.join(RESERVED)} are taken)")
    return {**state, **(extra or {})}


def restore_train_state(
    state: Mapping[str, Any], scheduler: Any | None = None, dataloader: Any | None = None
) -> tuple[int, int, dict[str, Any]]:
    """Put a train state back; return step, tokens seen and the caller's extra.

    If a part refuses, scheduler, streams and a loader that can say where it is are as they were.
    """
    with ExitStack() as undo:
        remember_parts(undo, state, scheduler, dataloader)
        resumed = put_in(state, scheduler, dataloader)
        undo.pop_all()
    return resumed


def _check_scheduler(scheduler: Any, *methods: str) -> None:
    for method in methods:
        if not callable(getattr(scheduler, method, None)):
            raise TypeError(f"scheduler is {scheduler!r}; it must have the method `{method}`")


def _as_states(handed_out: Any) -> Any:
    """Return a scheduler's state with that of each scheduler in it in the place of the scheduler itself.

    Many that hold another one hand it out as it is.  Pickled, it would come back
    as a copy with an optimizer of its own, and the learning rate would stand still.
    """
    if isinstance(handed_out, LRScheduler):
        return _as_states(handed_out.state_dict())
    if type(handed_out) in (dict, OrderedDict):
        return type(handed_out)((key, _as_states(value)) for key, value in handed_out.items())
    if type(handed_out) in (list, tuple):
        return type(handed_out)(map(_as_states, handed_out))
    return handed_out


def _with_live(handed_out: Any, saved: Any) -> Any:
    """Return the saved state with live schedulers, which take their own states, where the live state has them.

    `handed_out` is the live state.  Other managers save the inner scheduler itself, which is asked for its state.
    """
    if isinstance(handed_out, LRScheduler) and isinstance(saved, dict | LRScheduler):
        own = saved if isinstance(saved, dict) else saved.state_dict()
        handed_out.load_state_dict(_with_live(handed_out.state_dict(), own))
        return handed_out
    if type(handed_out) in (dict, OrderedDict) and type(saved) is type(handed_out):
        return type(saved)((key, _with_live(handed_out.get(key), value)) for key, value in saved.items())
    if type(handed_out) in (list, tuple) and type(saved) is type(handed_out) and len(saved) == len(handed_out):
        return type(saved)(map(_with_live, handed_out, saved))
    return saved


def put_in(state: Mapping[str, Any], scheduler: Any | None, dataloader: Any | None) -> tuple[int, int, dict[str, Any]]:
    """Put a train state back; if a part raises, what has changed until then stays changed.

    The random streams come last, because a loader may draw from them while it is restored.
    """
    if scheduler is not None and "scheduler" in state:
        scheduler.load_state_dict(_with_live(scheduler.state_dict(), state["scheduler"]))
    if hasattr(dataloader, "load_state_dict") and "dataloader" in state:
        dataloader.load_state_dict(state["dataloader"])  # type: ignore[union-attr]
    set_rng_state(state.get("rng", {}))
    extra = {key: value for key, value in state.items() if key not in RESERVED}
    return state.get("step", 0), state.get("tokens_seen", 0), extra


def remember_parts(undo: ExitStack, state: Mapping[str, Any], scheduler: Any | None, dataloader: Any | None) -> None:
    """When the stack unwinds, put scheduler, random streams and loader back as they are now.

    The loader by its own method, if this state has a position for it.  The scheduler by
    its method, for what can't be seen from outside, and then by what it held.
    """
    streams = get_rng_state()
    later(undo, "the random streams", set_rng_state, streams)
    if scheduler is not None:
        _check_scheduler(scheduler, "state_dict", "load_state_dict")
        remember(undo, "the scheduler", [scheduler])
        later(undo, "the scheduler", scheduler.load_state_dict, copied(scheduler.state_dict()))
    if "dataloader" in state and all(hasattr(dataloader, name) for name in ("state_dict", "load_state_dict")):
        _remember_loader(undo, dataloader)
        set_rng_state(streams)  # some loaders begin to draw when they are asked


def _remember_loader(undo: ExitStack, dataloader: Any) -> None:
    try:
        position = copy.deepcopy(dataloader.state_dict())
    except Exception as error:  # as of one that has no position before it is iterated
        _log.info("the loader can't say where it is, so a refused load may leave it moved: %s", error)
    else:
        later(undo, "the loader", dataloader.load_state_dict, position)


def serialized(train_state: Mapping[str, Any], owner: str = "extra") -> bytes:
    """Return the content of a file of it; what is in it is fixed from here on (commit.snapshot).

    `ValueError` names the key of a value that can't be saved (commit.unsaveable).
    It calls a key that is not reserved one of `owner`.
    """
    try:
        return archive.of(dict(train_state))
    except Exception as error:
        named = {key if key in RESERVED else f"{owner}[{key!r}]": value for key, value in train_state.items()}
        found = (place for name, value in named.items() for place in _unsaveable(name, value))
        name, cause = next(found, ("the train state", error))
        raise ValueError(
            f"{name} can't be saved, {type(cause).__name__}: {cause}; give the save plain values and tensors"
        ) from error


def _unsaveable(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Exception]]:
    """Yield the keys of values that can't be pickled, each with the reason, innermost first."""
    try:
        archive.of(value)
    except Exception as error:
        if isinstance(value, Mapping) and depth < _SHOWN_DEPTH:
            for key, item in value.items():
                yield from _unsaveable(f"{name}[{key!r}]", item, depth + 1)
        yield name, error


def own_part(train_state: Mapping[str, Any]) -> bytes:
    """Return what each rank saves for itself: random streams and its loader's position (resume.rng-per-rank).

    As bytes, which are written with the rank's shards.  A file for each rank
    would be thousands more, and a value for each stream as many more entries in
    the marker that every rank reads.
    """
    own = {key: train_state[key] for key in OWN if key in train_state}
    return serialized(own)


def with_new_streams(train_state: Mapping[str, Any], rank: int, file: Path) -> Mapping[str, Any]:
    """Return the train state of another rank for one that has none saved, with random streams of its own.

    They are the same at each resume from this state; the errors are those of `check_streams`.
    """
    check_streams(train_state, file)
    return {**train_state, "rng": _streams_of(rank, train_state["rng"])} if "rng" in train_state else train_state


def _streams_of(rank: int, saved: Mapping[str, Any]) -> dict[str, Any]:
    seed = zlib.crc32(bytes(saved.get("torch_cpu", torch.empty(0, device="cpu")).numpy().tobytes()), rank)
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
    """Return what `metadata.json` records of a checkpoint (layout.metadata-json).

    Whether the step was saved as a milestone is recorded here, because
    retention asks it of every checkpoint, long after the window that decided
    it is gone, and must not unpickle anything for it (retention.class-is-remembered).
    """
    described = {"step": train_state["step"], "tokens_seen": train_state["tokens_seen"], "milestone": milestone}
    if "vlm_freeze" in train_state:
        described["vlm_freeze"] = train_state["vlm_freeze"]
    try:
        json.dumps(described)  # what can't be written is refused before anything is
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"extra['vlm_freeze'] can't be saved as JSON, {type(error).__name__}: {error}") from error
    return copy.deepcopy(described)
