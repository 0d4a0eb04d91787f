"""Drives accelerate's `Accelerator`: `save_state` and `load_state` with automatic names and a limit.

    forge-conformance run --impl forge_conformance.adapters.accelerate_state --python <one with accelerate, torch>

Model, optimizer and scheduler are prepared, as a script does before it trains.
What else the script has goes into an object that it registers for checkpointing:
its counts, its extra, and the position of its loader.

Chosen among what the manual offers:

- `ProjectConfiguration(automatic_checkpoint_naming=True, total_limit=...)`: the
  newest checkpoint is found, and old ones are deleted, in no other way.
- `iteration`, which names the next checkpoint, is set to the step before each
  save. Its own count starts at 0 in each process and meets the names there.
- `load_state(path)` for a checkpoint that is named, `load_state()` otherwise.
  It raises where there is nothing, so the script looks before it asks.

Not claimed: `exclude`, `peek` and `schedule` (there is no counterpart).
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

from forge_conformance.adapter import Adapter, Claims, Layout, Loaded, Settings, Training, Traits, Unsupported

_FOLDER = "checkpoints"


class AccelerateState(Adapter):
    """One `Accelerator`, whose project has the suite's folder as its folder of checkpoints."""

    claims: ClassVar[Claims] = Claims(
        level="core",
        capabilities=("sync", "retention", "explicit", "train-state", "rng", "dataloader"),
        without=("loader-later",),  # what is registered has to be there at the load
    )
    layout: ClassVar[Layout] = Layout(
        checkpoint=r"checkpoint_(?P<step>0|[1-9][0-9]*)",
        required=(
            "custom_checkpoint_0.pkl",
            "random_states_0.pkl",
            "scheduler.bin",
            "optimizer.bin",
            "model.safetensors",
        ),
        pointer=None,
        name="checkpoint_{step}",
    )
    traits: ClassVar[Traits] = Traits(names_folder=_FOLDER)
    distributions: ClassVar[tuple[str, ...]] = ("accelerate", "safetensors")

    def __init__(self, settings: Settings, training: Training) -> None:
        super().__init__(settings, training)
        self._rest = _Rest(training)
        self._is_prepared = False
        self._accelerator = Accelerator(
            cpu=True,
            project_config=ProjectConfiguration(
                project_dir=os.path.dirname(settings.folder),
                automatic_checkpoint_naming=True,
                total_limit=settings.keep_last_n if settings.keep_last_n > 0 else None,
            ),
        )
        self._accelerator.register_for_checkpointing(self._rest)

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        """Whatever `parts` says of the scheduler, it is saved: it was prepared with the optimizer."""
        self._prepare()
        self._rest.parts = parts
        self._rest.kept = {"step": step, "tokens_seen": tokens_seen, "extra": dict(extra or {})}
        self._accelerator.project_configuration.iteration = step
        self._accelerator.save_state()

    def wait(self) -> None:
        pass  # it saves in the foreground only

    def load(
        self,
        path: str | None,
        exclude: Sequence[str],
        freeze_expected: Sequence[Mapping[str, Any]] | None,
        parts: Sequence[str],
    ) -> Loaded:
        if exclude or freeze_expected is not None:
            raise Unsupported("load_state loads everything that is in a checkpoint")
        self._prepare()
        path = path or self.settings.load_path
        if path is None and not self._has_any():
            return Loaded()
        self._rest.parts = parts
        self._accelerator.load_state(path)
        return Loaded(**self._rest.kept)

    def train(self, steps: int) -> list[str]:
        self._prepare()
        return super().train(steps)

    def _prepare(self) -> None:
        """As a script does when all that it trains with is made."""
        if not self._is_prepared:
            run = self.training
            self._accelerator.prepare(run.model, run.optimizer, run.scheduler)
            self._is_prepared = True

    def _has_any(self) -> bool:
        try:
            return bool(os.listdir(self.settings.folder))
        except FileNotFoundError:
            return False


class _Rest:
    """What a script registers besides: it is saved by `state_dict` and comes back by `load_state_dict`."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self.parts: Sequence[str] = ()
        self.kept: dict[str, Any] = {}

    @property
    def _loader(self) -> Any:
        loader = self._training.dataloader
        return loader if "dataloader" in self.parts and hasattr(loader, "load_state_dict") else None

    def state_dict(self) -> dict[str, Any]:
        return {**self.kept, "dataloader": self._loader and self._loader.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        position = state.pop("dataloader")
        self.kept = state
        if position is not None and self._loader is not None:
            self._loader.load_state_dict(position)
