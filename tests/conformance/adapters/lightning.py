"""Drives Lightning: one `Trainer.fit` lasts a process life, and pauses between two batches whenever the suite speaks.

    forge-conformance run --impl forge_conformance.adapters.lightning:Lightning --python <one with lightning, greenlet>

Lightning lives inside a loop that it owns, so that loop is left to it whole:
set-up, resume, saving, pruning and the flush at the end are `Trainer.fit` and
`ModelCheckpoint` as released.  `fit` runs as a coroutine on the thread that
the suite calls (a greenlet: it switches stacks, not threads).  It gives the
word back where a callback may act: before the first batch, and after each
batch in the very hook in which `ModelCheckpoint` saves on a schedule.  There it
learns whether to save now or to go on.

Chosen so that a run can be resumed, among what the manual offers:

- `save_last="link"`.  `fit(ckpt_path="last")` needs a `last.ckpt`.  With
  `True` that is a second full copy of each checkpoint, so the file that is
  resumed from would not be the one that the suite sees, counts and damages.
- `monitor="step", mode="max"`: the best `save_top_k` are the newest.
- `every_n_train_steps=1` for ever: the value is part of the name under which
  the callback finds its own state again.
- `max_steps`: a run that is counted in steps. In one counted in epochs a
  checkpoint from before the first batch does not bring the loader back.
- Manual optimization: the workload takes its whole step by itself, and
  Lightning counts it through the optimizer that it wraps.

An error in a hook ends `fit`, as it does anywhere; the next word begins a new
`fit` on what is in memory.  Not claimed, because Lightning has no counterpart:
`rng` (no stream is saved), `schedule` (it can't be asked), `exclude`, `peek`.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any, ClassVar

from greenlet import getcurrent, greenlet

# The same release as the package `lightning`, under the name that this file does not take away from it.
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import AsyncCheckpointIO
from torch import nn

from forge_conformance.adapter import Adapter, Claims, Layout, Loaded, Settings, Training, Unsupported

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)

_TRAIN, _SAVE = "train", "save"
_KEPT = "forge_conformance"
"""The key in Lightning's checkpoint under which the module keeps what is its own."""


class Lightning(Adapter):
    """Each method is one word to the paused `fit`."""

    claims: ClassVar[Claims] = Claims(
        level="core",
        capabilities=("sync", "async", "retention", "pointer", "explicit", "train-state", "dataloader"),
    )
    layout: ClassVar[Layout] = Layout(
        # A step that is saved again beside its first file gets a version.
        checkpoint=r"step=(?P<step>0|[1-9][0-9]*)(-v[1-9][0-9]*)?\.ckpt",
        is_dir=False,
        required=(),
        pointer="last.ckpt",
        name="step={step}.ckpt",
    )
    distributions: ClassVar[tuple[str, ...]] = ("lightning", "pytorch-lightning")

    def __init__(self, settings: Settings, training: Training) -> None:
        super().__init__(settings, training)
        # Said at every save under manual optimization: that the optimizer has stepped already, which is meant.
        warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
        self._module = _Module(training)
        self._trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=1_000_000_000,  # never reached
            callbacks=[_PausingCheckpoint(settings)],
            plugins=[AsyncCheckpointIO()] if settings.mode == "async" else None,
            default_root_dir=settings.folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        self._fit: greenlet | None = None

    def train(self, steps: int) -> list[str]:
        self._module.losses.clear()
        for _ in range(steps):
            self._say(_TRAIN)
        return list(self._module.losses)

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        """Scheduler and loader are Lightning's to save whatever `parts` says: it was given them when the run began."""
        self._enter_if_outside()
        if step != self._trainer.global_step:
            raise Unsupported(f"Lightning names a checkpoint after its own count of steps, {self._trainer.global_step}")
        self._module.kept = {"tokens_seen": tokens_seen, "extra": dict(extra or {})}
        self._say(_SAVE)

    def wait(self) -> None:
        """What the end of `fit` does for a background flush; the plugin begins anew at the next save."""
        self._trainer.strategy.checkpoint_io.teardown()

    def load(
        self,
        path: str | None,
        exclude: Sequence[str],
        freeze_expected: Sequence[Mapping[str, Any]] | None,
        parts: Sequence[str],
    ) -> Loaded:
        if exclude or freeze_expected is not None:
            raise Unsupported("Lightning loads everything that is in a checkpoint")
        if self._fit is not None:
            self._fit.throw()
        self._module.kept = {}
        self._enter(path or self.settings.load_path or "last")
        return Loaded(step=self._trainer.global_step, **self._module.kept)

    def _enter(self, ckpt_path: str | None) -> None:
        """Begin `fit`; it comes back here for the first time before its first batch."""
        feed = _StatefulFeed if hasattr(self.training.dataloader, "load_state_dict") else _Feed
        self._fit = greenlet(self._trainer.fit)
        self._fit.switch(self._module, train_dataloaders=feed(self.training), ckpt_path=ckpt_path)

    def _enter_if_outside(self) -> None:
        """A run that loads nothing names no checkpoint; one whose `fit` has died of an error goes on from there."""
        if self._fit is None or self._fit.dead:
            self._enter(None)

    def _say(self, word: str) -> None:
        self._enter_if_outside()
        assert self._fit is not None
        self._fit.switch(word)


class _PausingCheckpoint(ModelCheckpoint):
    """Lightning's own callback, with the suite in place of the schedule."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(
            dirpath=settings.folder,
            filename="{step}",
            monitor="step",
            mode="max",
            save_top_k=settings.keep_last_n if settings.keep_last_n > 0 else -1,
            save_last="link",
            every_n_train_steps=1,
            save_on_train_epoch_end=False,
        )
        # From the start it counts step 0 as saved already: an opinion of the schedule, and here the suite decides.
        self._last_global_step_saved = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.on_train_batch_end(trainer, pl_module, None, None, 0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        suite = getcurrent().parent
        assert suite is not None
        while suite.switch() == _SAVE:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class _Module(LightningModule):
    """The workload as Lightning sees it."""

    def __init__(self, workload: Training) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.workload = workload
        self.model: nn.Module = workload.model
        self.losses: list[str] = []
        self.kept: dict[str, Any] = {}

    def configure_optimizers(self) -> Any:
        return [self.workload.optimizer], [self.workload.scheduler]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        bare = self.workload.optimizer
        self.workload.optimizer = self.optimizers()  # Lightning's wrapper, which counts the step
        try:
            self.losses += self.workload.train(1)
        finally:
            self.workload.optimizer = bare

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[_KEPT] = self.kept

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.kept = checkpoint[_KEPT]


class _Feed:
    """Batches for ever, of nothing: the workload takes its own."""

    def __init__(self, workload: Training) -> None:
        self._workload = workload

    def __iter__(self) -> Iterator[int]:
        return repeat(0)


class _StatefulFeed(_Feed):
    """What Lightning saves and brings back of a stateful loader: here, where the workload's stands."""

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self._workload.dataloader.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._workload.dataloader.load_state_dict(state)
