"""Drives Lightning: each process runs one `Trainer.fit`, which pauses between two batches until the suite's next call.

    forge-conformance run --impl forge_conformance.adapters.lightning:Lightning --python <one with lightning, greenlet>

Lightning lives inside a loop that it owns, so that loop is left to it whole:
set-up, resume, saving, deletion and the flush at the end are `Trainer.fit` and
`ModelCheckpoint` as released.  `LoopAdapter` runs `fit` beside the suite, and
it pauses where a callback may act: before the first batch, and after each
batch in the very hook in which `ModelCheckpoint` saves on a schedule.

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
from collections.abc import Callable, Iterator, Mapping
from itertools import repeat
from typing import Any, ClassVar

# The same release as the package `lightning`, under the name that this file does not take away from it.
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import AsyncCheckpointIO
from torch import nn

from forge_conformance.adapter import Claims, Layout, Loaded, Settings, Training, Traits
from forge_conformance.adapters.loop import LoopAdapter

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)

_KEPT = "forge_conformance"
"""The key in Lightning's checkpoint under which the module keeps what is its own."""


class Lightning(LoopAdapter):
    """Each call of the suite lets the paused `fit` go on."""

    claims: ClassVar[Claims] = Claims(
        level="core",
        capabilities=("sync", "async", "retention", "pointer", "explicit", "train-state", "dataloader"),
        without=("loader-later",),  # a loader has to be there when `fit` begins
    )
    layout: ClassVar[Layout] = Layout(
        # A step that is saved again beside its first file gets a version.
        checkpoint=r"step=(?P<step>0|[1-9][0-9]*)(-v[1-9][0-9]*)?\.ckpt",
        is_dir=False,
        required=(),
        pointer="last.ckpt",
        name="step={step}.ckpt",
    )
    traits: ClassVar[Traits] = Traits(counts_steps=True, has_end=True)
    distributions: ClassVar[tuple[str, ...]] = ("lightning", "pytorch-lightning")

    def __init__(self, settings: Settings, training: Training) -> None:
        super().__init__(settings, training)
        # Said at every save under manual optimization: that the optimizer has stepped already, which is meant.
        warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
        self._module = _Module(training, self.took_step)
        self._trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=1_000_000_000,  # never reached
            callbacks=[_PausingCheckpoint(settings, self.pause)],
            plugins=[AsyncCheckpointIO()] if settings.mode == "async" else None,
            default_root_dir=settings.folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def run_loop(self, path: str | None, resumes: bool) -> None:
        feed = _StatefulFeed if hasattr(self.training.dataloader, "load_state_dict") else _Feed
        self._module.kept = {} if resumes else self._module.kept
        ckpt_path = path or ("last" if resumes else None)
        self._trainer.fit(self._module, train_dataloaders=feed(self.training), ckpt_path=ckpt_path)

    def count(self) -> int:
        return int(self._trainer.global_step)

    def hand_over(self, tokens_seen: int, extra: Mapping[str, Any]) -> None:
        self._module.kept = {"tokens_seen": tokens_seen, "extra": extra}

    def loaded(self) -> Loaded:
        return Loaded(step=self.count(), **self._module.kept)

    def wait(self) -> None:
        """What the end of `fit` does for a background flush; the plugin begins anew at the next save."""
        self._trainer.strategy.checkpoint_io.teardown()


class _PausingCheckpoint(ModelCheckpoint):
    """Lightning's own callback, with the suite in place of the schedule."""

    def __init__(self, settings: Settings, pause: Callable[[Callable[[], object]], None]) -> None:
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
        self._pause = pause

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.on_train_batch_end(trainer, pl_module, None, None, 0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        save = super().on_train_batch_end
        self._pause(lambda: save(trainer, pl_module, outputs, batch, batch_idx))


class _Module(LightningModule):
    """The workload as Lightning sees it."""

    def __init__(self, workload: Training, took_step: Callable[[list[str]], None]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self._took_step = took_step
        self.workload = workload
        self.model: nn.Module = workload.model
        self.kept: dict[str, Any] = {}

    def configure_optimizers(self) -> Any:
        return [self.workload.optimizer], [self.workload.scheduler]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        bare = self.workload.optimizer
        self.workload.optimizer = self.optimizers()  # Lightning's wrapper, which counts the step
        try:
            self._took_step(self.workload.train(1))
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
