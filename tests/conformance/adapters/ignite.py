"""Drives Ignite: each process runs one `Engine.run`, which pauses between two iterations until the suite's next call.

    forge-conformance run --impl forge_conformance.adapters.ignite:Ignite --python <one with pytorch-ignite, greenlet>

Ignite's `Checkpoint` is a handler of an engine's events, so the engine keeps
its loop.  It pauses where a handler may act: when the run starts, and after
each iteration.  A resume is that of Ignite's manual: `Checkpoint.load_objects`
before `Engine.run`.  Ignite leaves it to the user to name the file; this
script takes the one with the highest iteration.

Chosen among what the manual offers:

- `include_self=True`: the handler's list of its files is part of each
  checkpoint, since without it a run that resumes deletes nothing of the run before.
- `require_empty=False`: a restart finds the checkpoints of the run before.
- `n_saved=None` where all are to be kept.

An exception ends `Engine.run` for good: the next call of it returns at once
without an iteration.  So a new process has to go on.  Not claimed: `async`
and `pointer` (there are none), `rng` (a plain engine saves no stream),
`schedule` (events can't be asked), `exclude`, `peek`.
"""

import logging
import os
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver

from forge_conformance.adapter import Claims, Layout, Loaded, Settings, Training, Traits
from forge_conformance.adapters.loop import LoopAdapter

logging.getLogger("ignite").setLevel(logging.CRITICAL)

_ENDLESS = 1_000_000
"""Epochs, and iterations in each; no run comes to their end."""


class Ignite(LoopAdapter):
    """Each call of the suite lets the paused `Engine.run` go on."""

    claims: ClassVar[Claims] = Claims(
        level="core",
        capabilities=("sync", "retention", "explicit", "train-state", "dataloader"),
        without=("loader-later",),  # `load_objects` needs the loader
    )
    layout: ClassVar[Layout] = Layout(
        checkpoint=r"checkpoint_(?P<step>0|[1-9][0-9]*)\.pt",
        is_dir=False,
        required=(),
        pointer=None,
        name="checkpoint_{step}.pt",
    )
    traits: ClassVar[Traits] = Traits(counts_steps=True, dies_of_failed_save=True)
    distributions: ClassVar[tuple[str, ...]] = ("pytorch-ignite",)

    def __init__(self, settings: Settings, training: Training) -> None:
        super().__init__(settings, training)
        self._saver = DiskSaver(settings.folder, require_empty=False)
        self._trainer = Engine(lambda engine, batch: None)

    def run_loop(self, path: str | None, resumes: bool) -> None:
        run = self.training
        self._trainer = trainer = Engine(lambda engine, batch: self.took_step(run.train(1)))
        trainer.state_dict_user_keys.extend(["tokens_seen", "extra"])
        objects = {"trainer": trainer, "model": run.model, "optimizer": run.optimizer, "scheduler": run.scheduler}
        if hasattr(run.dataloader, "state_dict"):
            objects["dataloader"] = run.dataloader
        keep = self.settings.keep_last_n
        checkpoint = Checkpoint(dict(objects), self._saver, n_saved=keep if keep > 0 else None, include_self=True)
        trainer.add_event_handler(
            Events.STARTED | Events.ITERATION_COMPLETED, lambda: self.pause(lambda: checkpoint(trainer))
        )
        found = (path or self._newest()) if resumes else None
        if found is not None:
            Checkpoint.load_objects({**objects, "checkpointer": checkpoint}, found)
        trainer.run(max_epochs=_ENDLESS, epoch_length=_ENDLESS)

    def _newest(self) -> str | None:
        folder = os.path.expanduser(self.settings.folder)  # as the saver does
        found = (re.fullmatch(self.layout.checkpoint, name) for name in os.listdir(folder))
        newest = max((match for match in found if match), key=lambda match: int(match["step"]), default=None)
        return newest and os.path.join(folder, newest.string)

    def count(self) -> int:
        return int(self._trainer.state.iteration)

    def hand_over(self, tokens_seen: int, extra: Mapping[str, Any]) -> None:
        self._trainer.state.tokens_seen = tokens_seen
        self._trainer.state.extra = dict(extra)

    def loaded(self) -> Loaded:
        state = self._trainer.state
        return Loaded(self.count(), getattr(state, "tokens_seen", 0), getattr(state, "extra", {}))

    def wait(self) -> None:
        pass  # Ignite saves in the foreground only
