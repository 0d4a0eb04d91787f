"""Drives Orbax's `CheckpointManager`, with tensors turned into numpy arrays and back.

    forge-conformance run --impl forge_conformance.adapters.orbax:Orbax --python <one with orbax-checkpoint, torch>

Orbax saves a tree of arrays for JAX programs.  The training here is torch, so
the tree holds the same memory as numpy arrays: what is on disk, and when, is
Orbax's doing, and its files are written by tensorstore, in C++, from threads
of its own.  A checkpoint has two items: `state`, the arrays, and `run`, in
JSON, all that is no array.  After a restore the script puts the values where
they belong, as every script that uses Orbax does.

Chosen among what the manual offers:

- `save(..., force=True)`: the suite decides when to save, not the schedule.
- `max_to_keep=None` where all are to be kept.
- `restore(..., directory=)` for a checkpoint that is named by its path.

Not claimed: `schedule` (`should_save` depends on what stands in the folder,
not on the step alone), `pointer` (the newest directory is the newest
checkpoint), `exclude` (it is the script that leaves out).
"""

import ast
import logging
import os
import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from orbax import checkpoint as ocp

from forge_conformance.adapter import Adapter, Claims, Layout, Loaded, Settings, Training, Unsupported

logging.getLogger("absl").setLevel(logging.WARNING)

_ARRAY = "__array__"
"""A key of what stands for an array among values that are none; its value is the array's name."""
_TYPE = "__type__"
"""The key beside it of one that numpy has no type for, and that is kept as its bytes."""
_FOREIGN = (torch.bfloat16,)


class Orbax(Adapter):
    """One `CheckpointManager` over the folder."""

    claims: ClassVar[Claims] = Claims(
        level="core",
        capabilities=("sync", "async", "retention", "explicit", "peek", "train-state", "rng", "dataloader"),
    )
    layout: ClassVar[Layout] = Layout(
        checkpoint=r"(?P<step>0|[1-9][0-9]*)",
        required=("state/manifest.ocdbt", "state/_METADATA", "run/metadata"),
        pointer=None,
        name="{step}",
    )
    distributions: ClassVar[tuple[str, ...]] = ("orbax-checkpoint", "tensorstore", "jax")

    def __init__(self, settings: Settings, training: Training) -> None:
        super().__init__(settings, training)
        self._manager = ocp.CheckpointManager(
            settings.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=settings.keep_last_n if settings.keep_last_n > 0 else None,
                enable_async_checkpointing=settings.mode == "async",
            ),
        )
        self._waiting_loader_state: Any = None

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        run = self.training
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        values = {
            "model": run.model.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "scheduler": run.scheduler.state_dict() if "scheduler" in parts else None,
            "dataloader": run.dataloader.state_dict() if "dataloader" in parts else None,
            "rng": _streams(),
            "tokens_seen": tokens_seen,
            "extra": dict(extra or {}),
        }
        without_arrays = _parted(values, "", arrays)
        items = ocp.args.Composite(state=ocp.args.StandardSave(arrays), run=ocp.args.JsonSave(repr(without_arrays)))
        if not self._manager.save(step, args=items, force=True):
            raise RuntimeError(f"CheckpointManager.save({step}, force=True) returned False: nothing was saved")

    def wait(self) -> None:
        self._manager.wait_until_finished()

    def load(
        self,
        path: str | None,
        exclude: Sequence[str],
        freeze_expected: Sequence[Mapping[str, Any]] | None,
        parts: Sequence[str],
    ) -> Loaded:
        if exclude or freeze_expected is not None:
            raise Unsupported("Orbax hands back what was saved; leaving out and comparing are the script's")
        directory, step = self._source(path)
        if step is None:
            return Loaded()
        items = ocp.args.Composite(state=ocp.args.StandardRestore(), run=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items, directory=directory)
        values = _joined(ast.literal_eval(restored["run"]), restored["state"])
        self._put_back(values, parts)
        return Loaded(step, values["tokens_seen"], values["extra"])

    def _source(self, path: str | None) -> tuple[str | None, int | None]:
        """The folder, if it is another than the manager's, and the step."""
        path = path or self.settings.load_path
        if path is None:
            return None, self._manager.latest_step()
        directory, name = os.path.split(path)
        if not name.isdigit():
            raise ValueError(f"{path} is not named as Orbax names a checkpoint, by its step alone")
        return directory, int(name)

    def _put_back(self, values: dict[str, Any], parts: Sequence[str]) -> None:
        run = self.training
        self._waiting_loader_state = values["dataloader"]
        if "dataloader" in parts:
            self.apply_dataloader_state(run.dataloader)
        run.model.load_state_dict(values["model"])
        run.optimizer.load_state_dict(values["optimizer"])
        if "scheduler" in parts and values["scheduler"] is not None:
            run.scheduler.load_state_dict(values["scheduler"])
        _restart(values["rng"])

    def apply_dataloader_state(self, dataloader: Any) -> None:
        state, self._waiting_loader_state = self._waiting_loader_state, None
        if state is not None and hasattr(dataloader, "load_state_dict"):
            dataloader.load_state_dict(state)

    def peek(self, path: str | None) -> int | None:
        return self._source(path)[1]


def _parted(value: Any, name: str, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    """The value as a Python literal, and its tensors among the arrays under their places in it."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        is_foreign = value.dtype in _FOREIGN
        arrays[name] = (value.contiguous().view(torch.uint8) if is_foreign else value).numpy()
        return {_ARRAY: name, **({_TYPE: str(value.dtype).partition(".")[2]} if is_foreign else {})}
    if isinstance(value, dict):
        return {key: _parted(item, f"{name}/{key}", arrays) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_parted(item, f"{name}/{number}", arrays) for number, item in enumerate(value))
    if callable(value):
        raise TypeError(f"{name} is a {type(value).__name__}, which is not JSON serializable")  # as `json` says it
    return value


def _joined(value: Any, arrays: Mapping[str, Any]) -> Any:
    """What was parted."""
    if isinstance(value, dict):
        if _ARRAY in value:
            tensor = torch.from_numpy(np.array(arrays[value[_ARRAY]]))
            return tensor.view(getattr(torch, value[_TYPE])) if _TYPE in value else tensor
        return {key: _joined(item, arrays) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_joined(item, arrays) for item in value)
    return value


def _streams() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": [version, torch.tensor(words), gauss],
        "numpy": [name, torch.tensor([int(key) for key in keys]), *rest],
        "torch": torch.get_rng_state(),
    }


def _restart(streams: dict[str, Any]) -> None:
    version, words, gauss = streams["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, *rest = streams["numpy"]
    np.random.set_state((name, keys.numpy(), *rest))
    torch.set_rng_state(streams["torch"])
