"""The smallest honest manager: one file per step, written beside its place and renamed into it.

A layout of its own, no pointer, and a background flush on one thread; whoever
lies, hangs or crashes in these tests derives from it and changes one thing.
"""

import copy
import os
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import torch

from forge_conformance.adapter import Adapter, Claims, Layout, Loaded, Settings, Training


class Honest(Adapter):
    """Keeps every claim."""

    claims = Claims("core", ("sync", "async", "train-state", "rng", "dataloader"))
    layout = Layout(
        checkpoint=r"(?P<step>0|[1-9][0-9]*)\.pt", is_dir=False, required=(), pointer=None, name="{step}.pt"
    )

    def __init__(self, settings: Settings, training: Training) -> None:
        super().__init__(settings, training)
        self.folder = Path(settings.folder)
        self.thread = ThreadPoolExecutor(1)
        self.flushing: Future[None] | None = None
        self.of_loader: dict[str, Any] | None = None

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        self.wait()
        named = {"model": self.training.model, "optimizer": self.training.optimizer}
        named |= {part: getattr(self.training, part) for part in parts}
        state = {name: value.state_dict() for name, value in named.items() if hasattr(value, "state_dict")}
        counts = {"counts": (step, tokens_seen, dict(extra or {})), "streams": _streams()}
        snapshot = copy.deepcopy({**state, **counts})
        if self.settings.mode == "sync":
            self.write(step, snapshot)
        else:
            self.flushing = self.thread.submit(self.write, step, snapshot)

    def write(self, step: int, state: dict[str, Any]) -> None:
        with open(self.folder / "being-written", "wb") as file:
            torch.save(state, file)
        os.replace(self.folder / "being-written", self.folder / f"{step}.pt")

    def wait(self) -> None:
        flushing, self.flushing = self.flushing, None
        if flushing is not None:
            flushing.result()

    def load(
        self,
        path: str | None,
        exclude: Sequence[str],
        freeze_expected: Sequence[Mapping[str, Any]] | None,
        parts: Sequence[str],
    ) -> Loaded:
        whole = [int(file.stem) for file in self.folder.glob("*.pt") if file.stat().st_size]
        if not whole:
            self.of_loader = None
            return Loaded()
        state = torch.load(self.folder / f"{max(whole)}.pt", weights_only=False)
        for name in ("model", "optimizer", *(part for part in parts if part != "dataloader")):
            getattr(self.training, name).load_state_dict(state[name])
        self.of_loader = state.get("dataloader")
        if "dataloader" in parts:
            self.apply_dataloader_state(self.training.dataloader)
        _restore(state["streams"])
        return Loaded(*state["counts"])

    def apply_dataloader_state(self, dataloader: Any) -> None:
        if self.of_loader is not None and hasattr(dataloader, "load_state_dict"):
            dataloader.load_state_dict(self.of_loader)
        self.of_loader = None


def _streams() -> tuple[Any, ...]:
    return random.getstate(), numpy.random.get_state(), torch.get_rng_state()


def _restore(streams: tuple[Any, ...]) -> None:
    random.setstate(streams[0])
    numpy.random.set_state(streams[1])
    torch.set_rng_state(streams[2])
