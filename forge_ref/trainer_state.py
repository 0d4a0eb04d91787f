"""The train state in the words of OLMo-core's trainer, so that its checkpoints resume here, and ours there.

    step           global_step
    tokens_seen    global_train_tokens_seen
    dataloader     data_loader, epoch
    rng            rng, each stream with the version of its library; `torch` and `cuda` for torch's

A file of ours has both, and a list of the keys that stand in it for the trainer
alone.  Objects are shared between the two, and a pickle has each of them once.
"""

import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from forge_ref.messages import log as _log
from forge_ref.messages import some

_FOR_TRAINER = "for_trainer"
"""The key of the list."""
_OURS = {"global_step": "step", "global_train_tokens_seen": "tokens_seen", "data_loader": "dataloader"}
"""What has a counterpart here."""
_TRAINERS = frozenset({*_OURS, "global_train_petaflops", "max_steps", "epoch", "world_size", "callbacks"})
_STREAMS = {"torch": "torch_cpu", "cuda": "torch_cuda"}
_VERSIONED = ("python", "numpy", *_STREAMS)


def with_trainers(train_state: Mapping[str, Any], ranks: int) -> dict[str, Any]:
    """Return the train state with what the trainer reads; keys that an extra has keep its values.

    A trainer that has no use for the values of the extra still finds them under
    these names.  `ValueError` if the extra has the key of the list.
    """
    if _FOR_TRAINER in train_state:
        raise ValueError(f"extra has the reserved key {_FOR_TRAINER!r}; rename it")
    loader = train_state.get("dataloader")
    trainers = {name: train_state[ours] for name, ours in _OURS.items() if ours in train_state}
    trainers["epoch"] = loader.get("epoch", 1) if isinstance(loader, Mapping) else 1
    trainers["world_size"] = ranks
    added = {name: value for name, value in trainers.items() if name not in train_state}
    return {**train_state, "rng": _versioned(train_state["rng"]), **added, _FOR_TRAINER: list(added)}


def without_trainers(saved: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return the train state in our words, whoever wrote it; the trainer's part that has no counterpart is left out."""
    rng = saved.get("rng")
    train_state = {**saved, "rng": _plain(rng)} if isinstance(rng, Mapping) else dict(saved)
    added = train_state.pop(_FOR_TRAINER) if isinstance(saved.get(_FOR_TRAINER), list) else ()
    is_trainers = not added and "global_step" in train_state and "step" not in train_state
    left_out = _TRAINERS.intersection(train_state if is_trainers else added)
    for name, ours in _OURS.items():
        if name in left_out and name in train_state and ours not in train_state:
            train_state[ours] = train_state[name]
    if is_trainers and (lost := left_out - _OURS.keys() - {"world_size"}):
        _log.warning("%s: left out %s, which have no counterpart in this run", file, some(sorted(lost)))
    return {key: value for key, value in train_state.items() if key not in left_out}


def _versioned(streams: Mapping[str, Any]) -> dict[str, Any]:
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    trainers = {"python": streams["python"], "torch": streams["torch_cpu"]}
    if "numpy" in streams:
        import numpy

        versions["numpy"], trainers["numpy"] = numpy.__version__, streams["numpy"]
    if "torch_cuda" in streams:
        versions["cuda"] = str(torch.version.cuda)
        trainers["cuda"] = streams["torch_cuda"][torch.cuda.current_device()]
    versioned = {kind: {"version": _major_minor(versions[kind]), "state": stream} for kind, stream in trainers.items()}
    return {**streams, **versioned}


def _major_minor(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _plain(streams: Mapping[str, Any]) -> dict[str, Any]:
    """Return the streams under our names; those of ours that are there besides are kept."""
    plain = {
        kind: stream["state"] if kind in _VERSIONED and isinstance(stream, Mapping) and "version" in stream else stream
        for kind, stream in streams.items()
    }
    for name, ours in _STREAMS.items():
        stream = plain.pop(name, None)
        if stream is not None:
            plain.setdefault(ours, stream)
    return plain
