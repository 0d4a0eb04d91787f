"""Managers for several ranks: one that is right, and mistakes that show only when ranks are not equally fast."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from forge_conformance.adapter import Adapter, Claims, Layout, Loaded, Settings, Training


class Together(Adapter):
    """Each rank writes its file, all wait for all, and rank 0 renames the whole into place; never the same step twice.

    Without several ranks it does the same alone.
    """

    claims = Claims("strict", ("sync", "distributed"))
    layout = Layout(checkpoint=r"step_(?P<step>\d+)", required=("rank-0",), pointer=None)

    def __init__(self, settings: Settings, training: Training) -> None:
        super().__init__(settings, training)
        self.folder = Path(settings.folder)
        self.several = dist.is_initialized()
        self.rank = dist.get_rank() if self.several else 0
        self.group: Any = dist.new_group(backend="gloo") if self.several else None

    def meet(self) -> None:
        if self.several:
            dist.barrier(group=self.group)

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        partial, final = self.folder / ".partial", self.folder / f"step_{step}"
        if self.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            os.mkdir(partial)
        self.meet()
        with open(partial / f"rank-{self.rank}", "wb") as file:
            self.all_have_opened()
            torch.save(self.state(step, tokens_seen, extra), file)
        self.all_have_written()
        if self.rank == 0:
            os.rename(partial, final)
        self.all_are_done()

    def all_have_opened(self) -> None:
        self.meet()

    def all_have_written(self) -> None:
        self.meet()

    def all_are_done(self) -> None:
        self.meet()

    def state(self, step: int, tokens_seen: int, extra: Any) -> Any:
        own = self.training
        whole = [part.state_dict() for part in (own.model, own.optimizer, own.scheduler)]
        return *whole, (step, tokens_seen, extra or {})

    def wait(self) -> None:
        pass

    def load(
        self,
        path: str | None,
        exclude: Sequence[str],
        freeze_expected: Sequence[Mapping[str, Any]] | None,
        parts: Sequence[str],
    ) -> Loaded:
        newest = self.newest()
        if newest is None:
            return Loaded()
        model, optimizer, scheduler, counts = torch.load(newest / f"rank-{self.rank}", weights_only=False)
        self.training.model.load_state_dict(model)
        self.training.optimizer.load_state_dict(optimizer)
        self.training.scheduler.load_state_dict(scheduler)
        return Loaded(*counts)

    def newest(self) -> Path | None:
        steps = [int(entry.name[5:]) for entry in self.folder.glob("step_*")]
        return self.folder / f"step_{max(steps)}" if steps else None


class Hasty(Together):
    """Rank 0 publishes when its own file is written, and nobody waits for it to be done."""

    def all_have_written(self) -> None:
        pass

    def all_are_done(self) -> None:
        pass


class Each(Hasty):
    """Every rank looks for the newest step of which its own file can be read."""

    def newest(self) -> Path | None:
        steps = [
            int(entry.parent.name[5:]) for entry in self.folder.glob(f"step_*/rank-{self.rank}") if is_whole(entry)
        ]
        return self.folder / f"step_{max(steps)}" if steps else None


def is_whole(path: Path) -> bool:
    try:
        torch.load(path, weights_only=False)
    except Exception:
        return False
    return True
