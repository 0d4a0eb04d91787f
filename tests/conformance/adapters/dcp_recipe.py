"""Drives plain `torch.distributed.checkpoint`, as PyTorch's recipes and most training scripts do.

    forge-conformance run --impl forge_conformance.adapters.dcp_recipe

There is no manager in DCP: a script saves into a folder for each step, and a
restart takes the folder with the highest step.  `AppState` is that of the
recipe "Getting Started with Distributed Checkpoint"; one asynchronous save at
a time, awaited before the next one, is that of the recipe for `async_save`.
Nothing is ever deleted.

Several ranks flush on a gloo group of their own, as where training has NCCL
and the flush has gloo: here training itself is on gloo.

Not claimed: `retention`, `pointer` (there are none), `train-state`, `rng`,
`dataloader` (the recipes save model and optimizer; the scheduler and the step
are here because a run can't go on without them), `exclude`.
"""

import os
import re
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any, ClassVar

import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.stateful import Stateful

from forge_conformance.adapter import Adapter, Claims, Layout, Loaded, Settings, Training, Unsupported


class AppState(Stateful):
    """Model and optimizer, as the recipe has them."""

    def __init__(self, model: Any, optimizer: Any) -> None:
        self.model = model
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state_dict["model"],
            optim_state_dict=state_dict["optimizer"],
        )


class DcpRecipe(Adapter):
    """`save` or `async_save` into `step_N`, and `load` from the highest of them."""

    claims: ClassVar[Claims] = Claims(
        level="core", capabilities=("sync", "async", "explicit", "distributed", "reshard")
    )
    layout: ClassVar[Layout] = Layout(required=(".metadata",), pointer=None)
    distributions: ClassVar[tuple[str, ...]] = ("torch",)

    def __init__(self, settings: Settings, training: Training) -> None:
        super().__init__(settings, training)
        self._group: Any = training.process_group
        if self._group is None and dist.is_initialized():
            self._group = dist.new_group(backend="gloo")
        self._flush: futures.Future[Any] | None = None

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        where = self._place(step)
        if self.settings.mode == "sync":
            state_dict_saver.save(self._state(step), checkpoint_id=where, process_group=self._group)
            return
        self.wait()
        flush = state_dict_saver.async_save(self._state(step), checkpoint_id=where, process_group=self._group)
        assert isinstance(flush, futures.Future), "it is something else only for stagers that go on in the background"
        self._flush = flush

    def wait(self) -> None:
        if self._flush is not None:
            futures.wait([self._flush])  # an interrupt leaves the future to the next call
            flush, self._flush = self._flush, None
            flush.result()

    def load(
        self,
        path: str | None,
        exclude: Sequence[str],
        freeze_expected: Sequence[Mapping[str, Any]] | None,
        parts: Sequence[str],
    ) -> Loaded:
        if exclude or freeze_expected is not None:
            raise Unsupported("the recipe loads everything that the state asks for")
        source = path or self.settings.load_path or self._newest()
        if source is None:
            return Loaded()
        state = self._state(0)
        state_dict_loader.load(state, checkpoint_id=source, process_group=self._group)
        return Loaded(state["step"])

    def _state(self, step: int) -> dict[str, Any]:
        run = self.training
        return {"app": AppState(run.model, run.optimizer), "scheduler": run.scheduler, "step": step}

    def _newest(self) -> str | None:
        found = (re.fullmatch(self.layout.checkpoint, name) for name in os.listdir(self.settings.folder))
        steps = [int(match["step"]) for match in found if match]
        return self._place(max(steps)) if steps else None

    def _place(self, step: int) -> str:
        return os.path.join(self.settings.folder, self.layout.name.format(step=step))
