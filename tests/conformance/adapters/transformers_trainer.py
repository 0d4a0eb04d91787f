"""Drives the `Trainer` of transformers: each process runs one `Trainer.train`, which pauses between two batches.

    forge-conformance run --impl forge_conformance.adapters.transformers_trainer --python <one with transformers,
        accelerate, greenlet>

The loop is left to the Trainer whole: set-up, resume, the step of optimizer and
scheduler, saving and deletion are its own.  `LoopAdapter` runs `train` beside
the suite.  It pauses before the first batch, where a resume is complete, and
after each batch in the hook after which the Trainer saves on a schedule.

Chosen among what the manual offers:

- `get_last_checkpoint` finds what is resumed, as in the example scripts:
  `resume_from_checkpoint=True` raises where there is no checkpoint.
- `save_strategy="no"`: the suite decides when, and calls the method that a
  schedule calls, `_save_checkpoint`.
- The counts and the extra of the suite are the state of a callback, an
  `ExportableState`, with `restore_callback_states_from_checkpoint`. Such a
  state has to be JSON, so the extra is pickled, as text.
- `seed`: the Trainer begins all random streams anew when it is made, here with
  the seed that the run began with.

The workload takes its whole step by itself, so during it optimizer and
scheduler do not step; the Trainer steps them afterwards.  After an error
`train` begins with step 0, so a failed save ends the process.  Not claimed:
`dataloader` (no position is saved; a resume skips batches by their count),
`schedule` (it can't be asked), `exclude`, `peek`.
"""

import base64
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from itertools import repeat
from typing import Any, ClassVar

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here comes from the hub

import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from forge_conformance.adapter import Claims, Layout, Loaded, Settings, Training, Traits
from forge_conformance.adapters.loop import LoopAdapter

logging.enable_propagation()  # so that the suite hears its warnings


class TransformersTrainer(LoopAdapter):
    """Each call of the suite lets the paused `train` go on."""

    claims: ClassVar[Claims] = Claims(
        level="core", capabilities=("sync", "retention", "explicit", "train-state", "rng")
    )
    layout: ClassVar[Layout] = Layout(
        checkpoint=r"checkpoint-(?P<step>0|[1-9][0-9]*)",
        required=("trainer_state.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"),
        pointer=None,
        name="checkpoint-{step}",
    )
    traits: ClassVar[Traits] = Traits(counts_steps=True, dies_of_failed_save=True)
    distributions: ClassVar[tuple[str, ...]] = ("transformers", "accelerate", "safetensors")

    def __init__(self, settings: Settings, training: Training) -> None:
        super().__init__(settings, training)
        arguments = TrainingArguments(
            output_dir=settings.folder,
            max_steps=1_000_000_000,  # never reached
            max_grad_norm=0,
            save_strategy="no",
            save_total_limit=settings.keep_last_n if settings.keep_last_n > 0 else None,
            restore_callback_states_from_checkpoint=True,
            seed=torch.initial_seed(),
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        self._trainer = _Trainer(training, arguments, self.took_step)
        self._trainer.add_callback(_Pause(self._trainer, self.pause))
        self._trainer.add_callback(_Kept())

    def run_loop(self, path: str | None, resumes: bool) -> None:
        if resumes:
            self.hand_over(0, {})  # what a run has that finds nothing
            path = path or get_last_checkpoint(os.path.expanduser(self.settings.folder))
        trainer, run = self._trainer, self.training
        trainer.optimizer, trainer.lr_scheduler = run.optimizer, run.scheduler
        trainer.train(resume_from_checkpoint=path)

    def count(self) -> int:
        return int(self._trainer.state.global_step)

    def hand_over(self, tokens_seen: int, extra: Mapping[str, Any]) -> None:
        self._kept.tokens_seen, self._kept.extra = tokens_seen, extra

    def loaded(self) -> Loaded:
        return Loaded(self.count(), self._kept.tokens_seen, self._kept.extra)

    @property
    def _kept(self) -> "_Kept":
        """The callback of now: a resume puts another one in the place of it."""
        (kept,) = [callback for callback in self._trainer.callback_handler.callbacks if isinstance(callback, _Kept)]
        return kept

    def wait(self) -> None:
        pass  # it saves in the foreground only


class _Trainer(Trainer):
    """The Trainer, with the workload's own batch and gradients."""

    def __init__(
        self, workload: Training, arguments: TrainingArguments, took_step: Callable[[list[str]], None]
    ) -> None:
        super().__init__(workload.model, arguments)
        self._workload = workload
        self._took_step = took_step

    def get_train_dataloader(self) -> DataLoader[Any]:
        """With a generator of its own: as an epoch begins, a loader draws from that, or else from torch's stream."""
        return DataLoader(_Feed(), batch_size=1, generator=torch.Generator())

    def training_step(self, *_: Any) -> torch.Tensor:
        run = self._workload
        optimizer, scheduler = run.optimizer, run.scheduler
        run.optimizer, run.scheduler = _StepsLater(optimizer), _StepsLater(scheduler)
        try:
            losses = run.train(1)
        finally:
            run.optimizer, run.scheduler = optimizer, scheduler
        self._took_step(losses)
        return torch.tensor(float.fromhex(losses[0]))


class _StepsLater:
    """An optimizer or a scheduler whose step is left to the Trainer."""

    def __init__(self, part: Any) -> None:
        self._part = part

    def step(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


class _Pause(TrainerCallback):
    """Lets the suite act where a run may be saved."""

    def __init__(self, trainer: Trainer, pause: Callable[[Callable[[], object]], None]) -> None:
        self._save = lambda: trainer._save_checkpoint(trainer.model, trial=None)
        self._pause = pause
        self._begins = False

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._begins = True

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if self._begins:
            self._begins = False
            self._pause(self._save)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._pause(self._save)


class _Kept(TrainerCallback, ExportableState):
    """What the caller of a save hands over; a resume makes a new one out of `state`."""

    def __init__(self, tokens_seen: int = 0, extra: str | None = None) -> None:
        self.tokens_seen = tokens_seen
        self.extra: Mapping[str, Any] = {} if extra is None else pickle.loads(base64.b64decode(extra))

    def state(self) -> dict[str, Any]:
        extra = base64.b64encode(pickle.dumps(self.extra)).decode()
        return {"args": {"tokens_seen": self.tokens_seen, "extra": extra}, "attributes": {}}


class _Feed(IterableDataset[dict[str, int]]):
    """Batches for ever, of nothing: the workload takes its own."""

    def __iter__(self) -> Iterator[dict[str, int]]:
        return repeat({"nothing": 0})
