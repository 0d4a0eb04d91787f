"""Drives torch_checkpointing's `CheckpointManager` as its tutorial does, on a machine without CUDA.

    forge-conformance run --impl forge_conformance.adapters.torch_checkpointing --python <one with torch_checkpointing>

A checkpoint is a directory `step_N` with a file for each item.  A restart
takes the highest of them, as in the tutorial.  Its loop is followed to the
letter: the model's tensors are restored in place, the other items are handed
back, and `lock` is held while the state changes.

Not the default is `use_direct_io=False`.  With `True` every save on ext4 fails
(EINVAL): the file is opened with O_DIRECT and then written unaligned.  Staging
without pinned memory is what the manual asks for without CUDA.

Not claimed: `retention` and `pointer` (there are none), `rng` and `exclude`
(what is saved and loaded is the script's business), `distributed`.
"""

import os
import re
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any, ClassVar

from torch_checkpointing import CheckpointManager
from torch_checkpointing.config import AsyncCheckpointSaverConfig, SyncCheckpointSaverConfig
from torch_checkpointing.staging import CheckpointStagerConfig
from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

from forge_conformance.adapter import Adapter, Claims, Layout, Loaded, Settings, Training, Traits, Unsupported

_ITEMS = ("model", "optimizer", "scheduler", "dataloader", "step", "tokens_seen", "extra")


class TorchCheckpointing(Adapter):
    """One `CheckpointManager`, and the tutorial's choice of the newest directory."""

    claims: ClassVar[Claims] = Claims(
        level="core",
        capabilities=("sync", "async", "explicit", "train-state", "dataloader"),
        without=("loader-later",),
    )
    layout: ClassVar[Layout] = Layout(required=tuple(f"{item}_0.pt" for item in _ITEMS), pointer=None)
    traits: ClassVar[Traits] = Traits(has_end=True)
    distributions: ClassVar[tuple[str, ...]] = ("torch_checkpointing",)

    def __init__(self, settings: Settings, training: Training) -> None:
        super().__init__(settings, training)
        staging = CheckpointStagerConfig(use_pinned_memory=False, use_non_blocking_copy=False)
        in_background = AsyncCheckpointSaverConfig(staging_config=staging)
        self._manager = CheckpointManager(
            CheckpointManager.Config(
                save=SyncCheckpointSaverConfig() if settings.mode == "sync" else in_background,
                storage_config=LocalFileSystemStorageConfig(use_direct_io=False),
            )
        )
        self._write: futures.Future[Any] | None = None

    def train(self, steps: int) -> list[str]:
        losses: list[str] = []
        for _ in range(steps):
            with self._manager.lock():
                losses += self.training.train(1)
        return losses

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        run = self.training
        items = {
            "model": run.model.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "scheduler": run.scheduler.state_dict() if "scheduler" in parts else None,
            "dataloader": run.dataloader.state_dict() if "dataloader" in parts else None,
            "step": step,
            "tokens_seen": tokens_seen,
            "extra": dict(extra or {}),
        }
        self._write = self._manager.save(os.path.join(self.settings.folder, f"step_{step}"), items)

    def wait(self) -> None:
        if self._write is not None:
            futures.wait([self._write])  # an interrupt leaves the future to the next call
            write, self._write = self._write, None
            write.result()

    def finish(self) -> None:
        self._manager.close()

    def load(
        self,
        path: str | None,
        exclude: Sequence[str],
        freeze_expected: Sequence[Mapping[str, Any]] | None,
        parts: Sequence[str],
    ) -> Loaded:
        if exclude or freeze_expected is not None:
            raise Unsupported("leaving out and comparing are the script's")
        source = path or self.settings.load_path or self._newest()
        if source is None:
            return Loaded()
        run = self.training
        restored = self._manager.load(source, into=dict.fromkeys(_ITEMS) | {"model": run.model.state_dict()})
        run.optimizer.load_state_dict(restored["optimizer"])
        for part, target in (("scheduler", run.scheduler), ("dataloader", run.dataloader)):
            if part in parts and restored[part] is not None:
                target.load_state_dict(restored[part])
        return Loaded(restored["step"], restored["tokens_seen"], restored["extra"])

    def _newest(self) -> str | None:
        folder = self.settings.folder
        found = (re.fullmatch(r"step_(\d+)", entry.name) for entry in os.scandir(folder) if entry.is_dir())
        steps = [int(match[1]) for match in found if match]
        return os.path.join(folder, f"step_{max(steps)}") if steps else None
