"""Drives torchtitan's `CheckpointManager`, as its trainer does, over a training run that is not torchtitan's.

    forge-conformance run --impl forge_conformance.adapters.titan:Titan --python <one with torchtitan>

The trainer makes the manager with a model, an optimizer, a scheduler, a loader
and `train_state`, and asks nothing of them but `state_dict` and
`load_state_dict`; so the run of the suite is handed over in their place:

- the optimizer in torchtitan's own `OptimizersContainer`, which flattens its
  state and names it after the parameters. It needs the names in the groups of
  the optimizer, and the adapter puts them there as torchtitan does;
- the loader with its state pickled under the rank, as torchtitan's loaders;
- the counters, and the caller's extra, as `train_state`. The manager restores
  what the run already has a place for, so the extra is pickled, too.

What the suite does not hand over has an empty state, which the manager accepts.

Chosen among what the manual offers: `interval=1`, since the suite decides when
to save; and for the run that `load_path` names, `initial_load_path` with
`initial_load_model_only=False`, which the manager uses in an empty folder.

Not claimed: `pinned`, which needs a GPU; `exclude`, because the model can't be
excluded; `schedule` and `peek`, because the manager can't be asked; `rng`,
because the trainer saves no random streams; and `pipeline`, whose layers have
names of their own in torchtitan, and the same names in each stage here.

Releases before 0.3.0 have the configuration in another place, their `save` returns nothing, and they wait for a save
by a method with a private name, which their next save calls.
"""

import os
import pickle
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from threading import Event
from typing import Any, ClassVar

import torch.distributed as dist
from torchtitan.components.checkpoint import CheckpointManager
from torchtitan.components.optimizer import OptimizersContainer

from forge_conformance.adapter import Adapter, Claims, Layout, Loaded, Settings, Training, Traits, Unsupported

_IS_OLD = not hasattr(CheckpointManager, "Config")
_CONFIG = "checkpoint_config" if _IS_OLD else "config"
_Config = import_module("torchtitan.config.job_config").Checkpoint if _IS_OLD else CheckpointManager.Config


class Titan(Adapter):
    """One `CheckpointManager` for the folder."""

    claims: ClassVar[Claims] = Claims(
        level="core",
        capabilities=("sync", "async", "retention", "explicit", "train-state", "dataloader", "distributed", "reshard"),
        without=("loader-later",),  # a loader has to be there when the manager is made
    )
    layout: ClassVar[Layout] = Layout(
        checkpoint=r"step-(?P<step>0|[1-9][0-9]*)", required=(".metadata",), pointer=None, name="step-{step}"
    )
    traits: ClassVar[Traits] = Traits(deletes_late=True, load_path_is_fallback=True, has_end=True, min_keep_last_n=2)
    distributions: ClassVar[tuple[str, ...]] = ("torchtitan",)

    def __init__(self, settings: Settings, training: Training) -> None:
        super().__init__(settings, training)
        if training.process_group is not None:
            raise Unsupported("the manager can't be given a process group: its checkpoints are of all ranks")
        if not dist.is_initialized():
            alone = dist.HashStore()  # type: ignore[attr-defined]  # documented there, and not listed in its `__all__`
            dist.init_process_group("gloo", store=alone, rank=0, world_size=1)
        self._state = _TrainState()
        self._scheduler, self._loader = _Scheduler(training), _Loader(training)
        config = _Config(
            enable=True,
            folder=settings.folder,
            interval=1,
            keep_latest_k=max(settings.keep_last_n, 0),
            async_mode="disabled" if settings.mode == "sync" else "async",
            initial_load_path=settings.load_path,
            initial_load_model_only=False,
        )
        self._manager = CheckpointManager(
            **{_CONFIG: config},
            dataloader=self._loader,
            model_parts=[training.model],
            optimizers=_Optimizers(training),
            lr_schedulers=self._scheduler,
            states={"train_state": self._state},
            sd_adapter=None,
        )

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        self._state.step, self._state.ntokens_seen, self._state.extra = step, tokens_seen, dict(extra or {})
        self._hand_over(parts)
        if self._manager.save(step) is False:
            raise RuntimeError(f"CheckpointManager.save({step}) returned False: nothing was saved")

    def wait(self) -> None:
        if _IS_OLD:
            self._manager._async_wait()
        else:
            self._manager.maybe_wait_for_saving()

    def load(
        self,
        path: str | None,
        exclude: Sequence[str],
        freeze_expected: Sequence[Mapping[str, Any]] | None,
        parts: Sequence[str],
    ) -> Loaded:
        if exclude or freeze_expected is not None:
            raise Unsupported("the manager loads everything that is in a checkpoint")
        self._hand_over(parts)
        if not self._manager.load(self._step(path)):
            return Loaded()
        return Loaded(self._state.step, self._state.ntokens_seen, self._state.extra)

    def finish_deletions(self) -> None:
        """Deletions are a queue; what stands at its end now is reached when all before it are done."""
        if self.settings.keep_last_n > 0 and self._manager.purge_thread.is_alive():
            reached = _Reached()
            self._manager.purge_queue.put(reached)
            reached.event.wait()

    def finish(self) -> None:
        self._manager.close()
        dist.destroy_process_group()

    def _hand_over(self, parts: Sequence[str]) -> None:
        self._scheduler.is_handed_over, self._loader.is_handed_over = "scheduler" in parts, "dataloader" in parts

    def _step(self, path: str | None) -> int:
        """A checkpoint is named by its step in the folder, and nothing else can be named."""
        if path is None:
            return -1
        folder, name = os.path.split(path)
        match = re.fullmatch(self.layout.checkpoint, name)
        if match is None or os.path.realpath(folder) != os.path.realpath(self.settings.folder):
            raise ValueError(f"{path} is not a step of {self.settings.folder}, and load_step names nothing else")
        return int(match["step"])


class _Optimizers(OptimizersContainer):
    """torchtitan's container, around an optimizer that it did not make."""

    def __init__(self, training: Training) -> None:
        self.optimizers, self.model_parts = [training.optimizer], [training.model]
        names = {parameter: name for name, parameter in training.model.named_parameters()}
        for group in training.optimizer.param_groups:
            group["param_names"] = [names[parameter] for parameter in group["params"]]


class _TrainState:
    """What torchtitan's trainer saves of itself, and the caller's extra."""

    def __init__(self) -> None:
        self.step, self.ntokens_seen = 0, 0
        self.extra: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "ntokens_seen": self.ntokens_seen, "extra": pickle.dumps(self.extra)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.ntokens_seen = state["step"], state["ntokens_seen"]
        self.extra = pickle.loads(state["extra"])


class _Scheduler:
    """The scheduler that the run has now."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self.is_handed_over = True

    def state_dict(self) -> dict[str, Any]:
        return dict(self._training.scheduler.state_dict()) if self.is_handed_over else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self._training.scheduler.load_state_dict(state)


class _Loader:
    """The loader of the run, with its state as `ParallelAwareDataloader` has it."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self._name = f"dp_rank_{dist.get_rank()}"
        self.is_handed_over = True

    def state_dict(self) -> dict[str, Any]:
        loader = self._training.dataloader
        if not self.is_handed_over or not hasattr(loader, "state_dict"):
            return {}
        return {self._name: pickle.dumps(loader.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self._training.dataloader.load_state_dict(pickle.loads(state[self._name]))


class _Reached(os.PathLike[str]):
    """A path to nothing, which notices that the thread that deletes has come to it."""

    def __init__(self) -> None:
        self.event = Event()

    @property  # type: ignore[misc]  # every object has this one, and it is writable
    def __class__(self) -> type:
        """Releases before 0.3.0 assert that what they delete is a `str`."""
        return str

    def __fspath__(self) -> str:
        self.event.set()
        return f"{os.sep}{id(self)} is the name of nothing"
