"""Drives any module that has the second design's API: `CheckpointerCallback`, and a `TrainingRun` to bind it to.

The run's step is the training's, set before each hook, as a training loop counts it.  Scheduler and loader are given
to the run when it is made, whatever a save is told.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import ModuleType
from typing import Any, ClassVar

from forge_conformance.adapter import CallbackAdapter, Claims, Loaded, Settings, Training

OF_HOOKS = ("ephemeral", "step-layout", "fixed-steps", "cooldown", "max-permanent")
"""What the second design promises."""
_ALWAYS = ("sync", "async", "explicit", "train-state", "rng", "distributed", *OF_HOOKS)
_NAMES = ("CheckpointerCallback", "TrainingRun")


def is_offered(module: ModuleType) -> bool:
    """Whether the module has the API."""
    return all(hasattr(module, name) for name in _NAMES)


def hooked(module: ModuleType) -> type[CallbackAdapter]:
    """The adapter for this module; it claims level strict."""

    class ModuleHooked(Hooked):
        claims = Claims(level="strict", capabilities=_ALWAYS)
        api = module

    return ModuleHooked


class Hooked(CallbackAdapter):
    """Each method is one call of the API."""

    api: ClassVar[ModuleType]

    def __init__(self, settings: Settings, training: Training) -> None:
        super().__init__(settings, training)
        timeout = {} if settings.timeout_s is None else {"timeout": timedelta(seconds=settings.timeout_s)}
        parts = (training.model, training.optimizer, training.scheduler, training.dataloader)
        self.callback = self.api.CheckpointerCallback(**self.callback_fields(self.api.CheckpointRemovalStrategy))
        self.run = self.api.TrainingRun(settings.folder, *parts, **timeout)
        self.callback.trainer = self.run

    def count(self, step: int, tokens_seen: int) -> None:
        self.run.global_step, self.run.tokens_seen = step, tokens_seen

    def load(
        self,
        path: str | None,
        exclude: Sequence[str],
        freeze_expected: Sequence[Mapping[str, Any]] | None,
        parts: Sequence[str],
    ) -> Loaded:
        if not self.run.load_checkpoint(*([] if path is None else [path])):
            return Loaded()
        return Loaded(self.run.global_step, self.run.tokens_seen, self.run.extra)
