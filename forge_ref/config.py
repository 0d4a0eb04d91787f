"""The settings of a manager, and the schedule that follows from them: a pure function of the step.

A value that can't be meant is refused when the configuration is made, with an
error that names the field and the value: a `ValueError` (schedule.validate), or
a `TypeError` if it is of another kind (schedule.kinds).  What a field promises
has an observable effect (schedule.every-knob-acts).
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from forge_ref.arguments import check_boolean, check_integer, check_path, check_text, check_texts
from forge_ref.registry import registry

EXCLUDABLE = ("model", "optimizer", "scheduler", "dataloader", "rng")
"""The parts of a checkpoint that a load can leave untouched."""
EXPORT_DTYPES = ("float32", "bfloat16")
"""The types that an export can cast weights to."""


class AsyncCheckpointMode(StrEnum):
    """When the checkpoint is written.

    `disabled`: before `save` returns.  `async_`: in the background, from a copy
    in host memory.  `async_pinned`: in the background, from page-locked memory
    that is kept from save to save; this is only faster for state on a GPU.
    """

    disabled = "disabled"
    async_ = "async"
    async_pinned = "async_with_pinned_mem"


@dataclass(frozen=True)
class DynamicCheckpointWindow:
    """Steps `start` to `stop`, both included, in which a registered strategy replaces the interval.

    The steps on which the strategy fires are milestones, which retention never deletes.
    `ValueError` and `TypeError` name a field that can't be meant.
    """

    start: int = 0
    stop: int = 512
    strategy: str = "power2"

    def __post_init__(self) -> None:
        check_integer(self.start, "dyn_ckpt_window.start", at_least=0)
        check_integer(self.stop, "dyn_ckpt_window.stop")
        check_text(self.strategy, "dyn_ckpt_window.strategy")
        if self.stop < self.start:
            raise ValueError(f"dyn_ckpt_window.stop is {self.stop}; it must be {self.start}, the start, or more")
        known = registry.list_dyn_ckpt_strategies()
        if self.strategy not in known:
            raise ValueError(f"dyn_ckpt_window.strategy is {self.strategy!r}; registered: {', '.join(known)}")

    def holds(self, step: int) -> bool:
        """Return whether the step lies in the window."""
        return self.start <= step <= self.stop

    def is_milestone(self, step: int) -> bool:
        """Return whether the strategy fires on this step; never outside the window (schedule.strategy-in-window)."""
        try:
            return self.holds(step) and bool(registry.get_dyn_ckpt_strategy(self.strategy)(self, step))
        except Exception as error:
            error.add_note(f"raised by the checkpoint strategy {self.strategy!r}, which was asked about step {step}")
            raise


@registry.register_dyn_ckpt_strategy("power2")
def _power2(window: DynamicCheckpointWindow, step: int) -> bool:
    offset = step - window.start
    return window.holds(step) and offset & (offset - 1) == 0  # 0 and the powers of two


@dataclass
class CheckpointConfig:
    """The settings of a `CheckpointManager`.  All steps are training steps.

    Not frozen, because launchers patch single fields; a manager therefore calls
    `check` again when it is made.

    dir: where checkpoints live; `~` is expanded, and a relative path fixed, when the
        manager is made; the folder itself is made at the first save.
    interval: outside the window, save at its multiples, 0 included.
    dyn_ckpt_window: a range of steps in which a strategy decides instead.
    async_mode: an `AsyncCheckpointMode`, or its value as a string.
    keep_last_n: how many checkpoints to keep besides milestones; 0 or less keeps all.
    load_path: resume from here rather than from `dir`, unless `load` names a path; written like `dir`.
    export_dtype: what `CheckpointManager.export` casts weights to; checkpoints are never cast.
    exclude_from_loading: what every load leaves untouched: parts, out of `EXCLUDABLE`, and names of parameters and
        buffers, or what such names begin with up to a dot; of a parameter its moments as well.
    ignore_freeze_mismatch: warn and load when freeze lists differ, instead of raising.
    """

    dir: str | os.PathLike[str] = "checkpoints"
    interval: int = 1000
    dyn_ckpt_window: DynamicCheckpointWindow | None = None
    async_mode: AsyncCheckpointMode = AsyncCheckpointMode.disabled
    keep_last_n: int = 3
    load_path: str | os.PathLike[str] | None = None
    export_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    exclude_from_loading: list[str] = field(default_factory=list)
    ignore_freeze_mismatch: bool = False

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Refuse values that can't be meant: `ValueError`, or `TypeError` for another kind of value."""
        check_path(self.dir, "dir")
        check_integer(self.interval, "interval", at_least=1)
        check_integer(self.keep_last_n, "keep_last_n")
        check_boolean(self.ignore_freeze_mismatch, "ignore_freeze_mismatch")
        check_texts(self.exclude_from_loading, "exclude_from_loading")
        if self.load_path is not None:
            check_path(self.load_path, "load_path")
        if not isinstance(self.dyn_ckpt_window, DynamicCheckpointWindow | None):
            raise TypeError(f"dyn_ckpt_window is {self.dyn_ckpt_window!r}; make it a DynamicCheckpointWindow, or None")
        if self.export_dtype not in EXPORT_DTYPES:
            raise ValueError(f"export_dtype is {self.export_dtype!r}; known: {', '.join(EXPORT_DTYPES)}")
        modes = [str(mode) for mode in AsyncCheckpointMode]
        if self.async_mode not in modes:
            raise ValueError(f"async_mode is {self.async_mode!r}; known: {', '.join(modes)}")
        self.async_mode = AsyncCheckpointMode(self.async_mode)
        check_excludable(self.exclude_from_loading, "exclude_from_loading")

    def should_save(self, step: int) -> bool:
        """Return whether a checkpoint is due (schedule.interval, schedule.window-replaces-interval)."""
        window = self.dyn_ckpt_window
        if window is not None and window.holds(step):
            return window.is_milestone(step)
        return step % self.interval == 0

    def is_dynamic_milestone(self, step: int) -> bool:
        """Return whether retention never deletes a checkpoint saved at this step (schedule.milestone)."""
        return self.dyn_ckpt_window is not None and self.dyn_ckpt_window.is_milestone(step)


def check_excludable(keys: Iterable[str], where: str) -> frozenset[str]:
    """Return the keys as a set; `ValueError` for one that is empty.

    Which names there are in a model, the manager knows.
    """
    if "" in (named := frozenset(keys)):
        raise ValueError(f"{where} is {list(keys)}; a name in it is empty")
    return named
