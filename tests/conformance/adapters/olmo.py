"""Drives OLMo-core's checkpointing callback and its checkpointer, in as much of a trainer as they need.

    forge-conformance run --impl forge_conformance.adapters.olmo:Olmo --python <one with ai2-olmo-core>

The real `Trainer` builds models, data and metrics of its own, and can't be
handed a training run.  So the callback is bound to an object with the members
that it uses, each with the lines of the trainer's own that concern a checkpoint:
`save_checkpoint`, `save_checkpoint_async`, `run_bookkeeping_op`, and the state
dict of a train module, by the same functions of torch. A save is waited for as
the callback waits: until it is done, and then until the checkpointer has
finalized it. `load_path` is used in a folder without a checkpoint, as the
trainer does with `LoadStrategy.always`.

Claimed is what the callback promises, besides a way to save and to load.
Random streams and loaders are the trainer's business, and not judged here.
Releases before 2.5.0 have fewer fields in the callback, and do not record
which checkpoint is ephemeral; then less is claimed, and asked.
"""

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import torch.distributed.checkpoint.state_dict as dist_cp_sd
from olmo_core.train.callbacks.checkpointer import CheckpointerCallback, CheckpointRemovalStrategy
from olmo_core.train.checkpoint import Checkpointer
from olmo_core.utils import wait_for

from forge_conformance.adapter import CallbackAdapter, Claims, Loaded, Settings, Training, Traits, Unsupported

logging.getLogger("olmo_core").setLevel(logging.WARNING)

_LATER_FIELDS = {"fixed_steps": "fixed-steps", "ephemeral_cooldown": "cooldown", "max_checkpoints": "max-permanent"}
"""Fields that not every release has, and the capability that each stands for."""
_MISSING = _LATER_FIELDS.keys() - inspect.signature(CheckpointerCallback).parameters.keys()
_RECORDS_KIND = "ephemeral" in inspect.signature(Checkpointer.save).parameters


class Olmo(CallbackAdapter):
    """Each method is one call of the callback, or of its checkpointer."""

    claims: ClassVar[Claims] = Claims(
        level="core",
        capabilities=(
            "sync",
            "async",
            "explicit",
            "train-state",
            "ephemeral",
            "step-layout",
            *(capability for field, capability in _LATER_FIELDS.items() if field not in _MISSING),
        ),
    )
    traits: ClassVar[Traits] = Traits(load_path_is_fallback=True)
    distributions: ClassVar[tuple[str, ...]] = ("ai2-olmo-core",)

    def __init__(self, settings: Settings, training: Training) -> None:
        super().__init__(settings, training)
        fields = self.callback_fields(CheckpointRemovalStrategy)
        fields["fixed_steps"] = None if fields["fixed_steps"] is None else list(fields["fixed_steps"])
        fields = {name: value for name, value in fields.items() if name not in _MISSING}
        self.callback = CheckpointerCallback(**fields)
        self.run = _Run(settings.folder, training)
        self.callback.trainer = self.run

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        if step != self.training.step:
            raise Unsupported("the trainer names a checkpoint after its own step")
        super().save(step, tokens_seen, extra, parts)

    def count(self, step: int, tokens_seen: int) -> None:
        self.run.tokens_seen = tokens_seen

    def wait(self) -> None:
        if self.future is not None:
            futures.wait([self.future])  # an interrupt leaves the future to the next call
            super().wait()
            wait_for(
                lambda: self.run.checkpointer.dir_is_checkpoint(self.run.pending), "waiting to finalize checkpoint"
            )

    def load(
        self,
        path: str | None,
        exclude: Sequence[str],
        freeze_expected: Sequence[Mapping[str, Any]] | None,
        parts: Sequence[str],
    ) -> Loaded:
        if exclude or freeze_expected is not None:
            raise Unsupported("the checkpointer loads everything that is in a checkpoint")
        try:
            source = path or Checkpointer.latest_checkpoint(self.settings.folder)
        except FileNotFoundError:
            source = self.settings.load_path
        if source is None:
            return Loaded()
        loaded: Loaded = self.run.load(source)
        return loaded


class _Run:
    """What the callback uses of a trainer."""

    def __init__(self, folder: str, training: Training) -> None:
        self.save_folder = folder
        self.training = training
        self.module = _Module(training)
        self.checkpointer = Checkpointer(work_dir=Path(folder))
        self.checkpoint_loaded = False
        self.block_ephemeral_checkpoints = False
        self.tokens_seen = 0
        self.pending = ""
        """The checkpoint that is saved in the background."""
        self.extra: dict[str, Any] = {}
        self.thread = ThreadPoolExecutor(1)

    @property
    def global_step(self) -> int:
        return self.training.step

    def save_checkpoint(self, ephemeral: bool = False) -> str:
        path = self._path()
        self.checkpointer.save(path, self.module, self._state(), **_kind(ephemeral))
        return path

    def save_checkpoint_async(self, ephemeral: bool = False) -> tuple[str, "Future[None]"]:
        path = self.pending = self._path()
        future: Future[None] = self.checkpointer.save_async(path, self.module, self._state(), **_kind(ephemeral))
        return path, future

    def run_bookkeeping_op(self, op: Callable[..., object], *arguments: Any, **_: Any) -> None:
        self.thread.submit(op, *arguments)

    def load(self, path: str) -> Loaded:
        state = self.checkpointer.load(path, self.module)
        if state is None:
            return Loaded()
        self.training.scheduler.load_state_dict(state["scheduler"])
        self.checkpoint_loaded = True
        return Loaded(state["global_step"], state["global_train_tokens_seen"], state["extra"])

    def _path(self) -> str:
        return f"{self.save_folder}/{self.checkpointer.checkpoint_dirname(self.global_step)}"

    def _state(self) -> dict[str, Any]:
        return {
            "global_step": self.training.step,
            "global_train_tokens_seen": self.tokens_seen,
            "scheduler": self.training.scheduler.state_dict(),
            "extra": self.extra,
        }


def _kind(ephemeral: bool) -> dict[str, bool]:
    return {"ephemeral": ephemeral} if _RECORDS_KIND else {}


class _Module:
    """The state of a train module, as `TransformerTrainModule` has it."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def state_dict_to_save(self, optim: bool | None = None) -> dict[str, Any]:
        options = dist_cp_sd.StateDictOptions(flatten_optimizer_state_dict=True, cpu_offload=True)
        return self._state_dict(options)

    def state_dict_to_load(self, metadata: Any, optim: bool | None = None) -> dict[str, Any]:
        return self._state_dict(dist_cp_sd.StateDictOptions(flatten_optimizer_state_dict=True, strict=True))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        options = dist_cp_sd.StateDictOptions(flatten_optimizer_state_dict=True, strict=True)
        model, optimizer = self.training.model, self.training.optimizer
        dist_cp_sd.set_model_state_dict(model, state_dict["model"], options=options)
        dist_cp_sd.set_optimizer_state_dict(model, optimizer, state_dict["optim"], options=options)

    def _state_dict(self, options: dist_cp_sd.StateDictOptions) -> dict[str, Any]:
        model, optimizer = self.training.model, self.training.optimizer
        return {
            "model": dist_cp_sd.get_model_state_dict(model, options=options),
            "optim": dist_cp_sd.get_optimizer_state_dict(model, optimizer, options=options),
        }
