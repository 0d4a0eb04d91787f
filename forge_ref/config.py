"""What a run asks of its checkpoints, and when to save: pure functions of the step.

A configuration that could not be meant is refused when it is made, with a
`ValueError` that names the field and the value (schedule.validate).  What a
field promises has an observable effect (schedule.every-knob-acts).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from forge_ref.registry import registry

EXCLUDABLE = ("model", "optimizer", "scheduler", "dataloader", "rng")
"""What a load can leave untouched."""
EXPORT_DTYPES = ("float32", "bfloat16")


class AsyncCheckpointMode(StrEnum):
    """How a save gets to disk.

    `disabled`: before `save` returns.  `async_`: in the background, from a copy
    in host memory.  `async_pinned`: the same from page-locked memory that is
    kept from save to save, which only pays where state lives on a GPU.
    """

    disabled = "disabled"
    async_ = "async"
    async_pinned = "async_with_pinned_mem"


@dataclass(frozen=True)
class DynamicCheckpointWindow:
    """Steps `start` to `stop`, both included, in which a registered strategy replaces the interval.

    The steps it fires on are milestones: retention spares them.
    """

    start: int = 0
    stop: int = 512
    strategy: str = "power2"

    def __post_init__(self) -> None:
        if self.start < 0:
            raise ValueError(f"dyn_ckpt_window.start is {self.start}; it must be 0 or more")
        if self.stop < self.start:
            raise ValueError(f"dyn_ckpt_window.stop is {self.stop}, below start {self.start}")
        known = registry.list_dyn_ckpt_strategies()
        if self.strategy not in known:
            raise ValueError(f"dyn_ckpt_window.strategy is {self.strategy!r}; registered: {', '.join(known)}")

    def holds(self, step: int) -> bool:
        """Whether the step lies in the window."""
        return self.start <= step <= self.stop

    def is_milestone(self, step: int) -> bool:
        """Whether the strategy fires on a step of the window; never outside (schedule.strategy-in-window)."""
        return self.holds(step) and bool(registry.get_dyn_ckpt_strategy(self.strategy)(self, step))


@registry.register_dyn_ckpt_strategy("power2")
def _power2(window: DynamicCheckpointWindow, step: int) -> bool:
    offset = step - window.start
    return window.holds(step) and offset & (offset - 1) == 0  # 0 and the powers of two


@dataclass
class CheckpointConfig:
    """What a `CheckpointManager` is set up with.  Steps are training steps.

    Not frozen: launchers that this is a drop-in for patch single fields.

    dir: where checkpoints live; made at the first save.
    interval: outside the window, save at its multiples, 0 included.
    dyn_ckpt_window: a stretch of steps in which a strategy decides instead.
    async_mode: see `AsyncCheckpointMode`; its value as text does as well.
    keep_last_n: how many checkpoints stay besides milestones; 0 or less keeps all.
    load_path: resume from here rather than from `dir`, unless `load` names a path.
    export_dtype: what `CheckpointManager.export` casts weights to; checkpoints are never cast.
    exclude_from_loading: parts that every load leaves untouched, out of `EXCLUDABLE`.
    ignore_freeze_mismatch: let a load go on, with a warning, when freeze lists differ.
    """

    dir: str = "checkpoints"
    interval: int = 1000
    dyn_ckpt_window: DynamicCheckpointWindow | None = None
    async_mode: AsyncCheckpointMode = AsyncCheckpointMode.disabled
    keep_last_n: int = 3
    load_path: str | None = None
    export_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    exclude_from_loading: list[str] = field(default_factory=list)
    ignore_freeze_mismatch: bool = False

    def __post_init__(self) -> None:
        if self.interval <= 0:
            raise ValueError(f"interval is {self.interval}; it must be 1 or more")
        if self.export_dtype not in EXPORT_DTYPES:
            raise ValueError(f"export_dtype is {self.export_dtype!r}; known: {', '.join(EXPORT_DTYPES)}")
        modes = [str(mode) for mode in AsyncCheckpointMode]
        if self.async_mode not in modes:
            raise ValueError(f"async_mode is {self.async_mode!r}; known: {', '.join(modes)}")
        self.async_mode = AsyncCheckpointMode(self.async_mode)
        check_excludable(self.exclude_from_loading, "exclude_from_loading")

    def should_save(self, step: int) -> bool:
        """Whether a checkpoint is due (schedule.interval, schedule.window-replaces-interval)."""
        window = self.dyn_ckpt_window
        if window is not None and window.holds(step):
            return window.is_milestone(step)
        return step % self.interval == 0

    def is_dynamic_milestone(self, step: int) -> bool:
        """Whether retention spares a checkpoint saved at this step (schedule.milestone)."""
        return self.dyn_ckpt_window is not None and self.dyn_ckpt_window.is_milestone(step)


def check_excludable(keys: Iterable[str], where: str) -> frozenset[str]:
    """The keys as a set; `ValueError` names those that are no part of a checkpoint."""
    unknown = sorted(set(keys) - set(EXCLUDABLE))
    if unknown:
        raise ValueError(f"{where} names {unknown}; what a load can leave out is {', '.join(EXCLUDABLE)}")
    return frozenset(keys)
