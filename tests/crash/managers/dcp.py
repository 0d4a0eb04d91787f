"""What most managers do: stock `torch.distributed.checkpoint`, and a commit of its own around it.

The shards go to a directory under a hidden name, which is renamed; a symbolic
link to it is replaced by another rename.  Nothing is synced besides what DCP
syncs by itself, so it survives kills and no loss of power.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from forge_conformance.adapter import Adapter, Claims, Layout, Loaded, Settings, Training


class StockDcp(Adapter):
    """Data, then pointer, then deletion of what is too old."""

    claims = Claims("core", ("sync", "pointer", "retention", "explicit"))
    layout = Layout(required=(".metadata",))

    def __init__(self, settings: Settings, training: Training) -> None:
        super().__init__(settings, training)
        self.folder = Path(settings.folder)

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        staged, target = self.folder / f".{step}", self.folder / f"step_{step}"
        shutil.rmtree(staged, ignore_errors=True)
        dcp.save(self.state() | {"step": step}, checkpoint_id=staged, no_dist=True)
        if target.exists():
            shutil.rmtree(self.folder / ".old", ignore_errors=True)
            os.rename(target, self.folder / ".old")
        os.rename(staged, target)
        link = self.folder / ".latest"
        link.unlink(missing_ok=True)
        link.symlink_to(target.name)
        os.rename(link, self.folder / "latest")
        for old in self.steps()[: -self.settings.keep_last_n or len(self.steps())] if self.settings.keep_last_n else []:
            if old <= step:
                shutil.rmtree(self.folder / f"step_{old}")

    def state(self) -> dict[str, Any]:
        run = self.training
        return {
            "model": run.model.state_dict(),
            "optimizer": get_optimizer_state_dict(run.model, run.optimizer),
            "scheduler": run.scheduler.state_dict(),
        }

    def steps(self) -> list[int]:
        names = (name.removeprefix("step_") for name in os.listdir(self.folder) if name.startswith("step_"))
        return sorted(int(name) for name in names)

    def wait(self) -> None:
        pass

    def load(
        self,
        path: str | None,
        exclude: Sequence[str],
        freeze_expected: Sequence[Mapping[str, Any]] | None,
        parts: Sequence[str],
    ) -> Loaded:
        source = Path(path) if path else self.folder / "latest"
        if not source.exists():
            return Loaded()
        state = self.state() | {"step": 0}
        dcp.load(state, checkpoint_id=source, no_dist=True)
        run = self.training
        run.model.load_state_dict(state["model"])
        set_optimizer_state_dict(run.model, run.optimizer, state["optimizer"])
        run.scheduler.load_state_dict(state["scheduler"])
        return Loaded(state["step"])
