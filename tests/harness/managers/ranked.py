"""An honest manager for several ranks: each writes a file of its own, and rank 0 renames the whole into place.

Another base than the reference: plain `torch.save` of what a rank holds, a
barrier on a group of its own, and no DCP.  It can't resume on another number
of ranks, and does not say that it can.  Beside it, what goes wrong.
"""

import os
import random
import shutil
import threading
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.distributed as dist

from forge_conformance.adapter import Adapter, Claims, Layout, Loaded, Settings, Training


class Ranked(Adapter):
    """Keeps every claim."""

    claims = Claims("strict", ("sync", "distributed", "train-state", "rng", "dataloader"))
    layout = Layout(checkpoint=r"at-(?P<step>\d+)", required=("rank-0.pt",), pointer=None, name="at-{step}")

    def __init__(self, settings: Settings, training: Training) -> None:
        super().__init__(settings, training)
        self.folder = Path(settings.folder)
        self.several = dist.is_initialized() and dist.get_world_size() > 1
        self.rank = dist.get_rank() if self.several else 0
        self.group: Any = None
        if self.several:
            timeout = timedelta(seconds=settings.timeout_s or 60)
            self.group = dist.new_group(backend="gloo", timeout=timeout)
            alone = training.process_group is not None
            self.agree("a process group of some ranks was handed over, and this manager saves for all" if alone else "")

    def agree(self, problem: str, step: int = 0) -> None:
        """Raise on every rank what any of them has as a problem, or that their steps differ."""
        if not self.several:
            if problem:
                raise RuntimeError(problem)
            return
        said: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(said, (problem, step), group=self.group)
        problems = [problem for problem, _ in said if problem]
        if problems or len({step for _, step in said}) > 1:
            raise RuntimeError(problems[0] if problems else f"ranks save different steps: {[step for _, step in said]}")

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        if "step" in (extra or {}):
            raise ValueError("extra has the reserved key step")
        partial, final = self.folder / f"being-written-{step}", self.folder / f"at-{step}"
        self.agree("", step)
        if self.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        self.agree("")
        self.agree(self.attempt(step, tokens_seen, extra, parts, partial))
        self.agree(self.publish(partial, final) if self.rank == 0 else "")

    def publish(self, partial: Path, final: Path) -> str:
        """Rename the whole into place; what went wrong, if anything did."""
        replaced = self.folder / f"replaced-{final.name}"
        try:
            if final.exists():
                os.rename(final, replaced)
            os.rename(partial, final)
        except OSError as error:
            return f"rank 0: {error!r}"
        shutil.rmtree(replaced, ignore_errors=True)
        return ""

    def attempt(self, step: int, tokens_seen: int, extra: Any, parts: Sequence[str], partial: Path) -> str:
        """Write this rank's file; what went wrong, if anything did."""
        named = {"model": self.training.model, "optimizer": self.training.optimizer}
        named |= {part: getattr(self.training, part) for part in parts}
        state = {name: value.state_dict() for name, value in named.items() if hasattr(value, "state_dict")}
        streams = (random.getstate(), numpy.random.get_state(), torch.get_rng_state())
        try:
            torch.save({**state, "counts": (step, tokens_seen, extra or {}), "streams": streams}, self.mine(partial))
        except Exception as error:
            return f"rank {self.rank}: {error!r}"
        return ""

    def mine(self, path: Path) -> Path:
        return path / f"rank-{self.rank}.pt"

    def wait(self) -> None:
        pass

    def load(
        self,
        path: str | None,
        exclude: Sequence[str],
        freeze_expected: Sequence[Mapping[str, Any]] | None,
        parts: Sequence[str],
    ) -> Loaded:
        newest = self.heard_from_rank_0(self.newest())
        if newest is None:
            return Loaded()
        try:
            state, problem = torch.load(self.mine(Path(newest)), weights_only=False), ""
        except Exception as error:
            state, problem = {}, f"rank {self.rank}: {error!r}"
        self.agree(problem)
        self.training.model.load_state_dict(state["model"])
        self.training.optimizer.load_state_dict(state["optimizer"])
        for part in parts:
            getattr(self.training, part).load_state_dict(state[part])
        python, of_numpy, of_torch = state["streams"]
        random.setstate(python)
        numpy.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)
        return Loaded(*state["counts"])

    def newest(self) -> str | None:
        """The newest complete checkpoint, as this rank sees the folder."""
        steps = [int(entry.name[3:]) for entry in self.folder.glob("at-*") if (entry / "rank-0.pt").exists()]
        return str(self.folder / f"at-{max(steps)}") if steps else None

    def heard_from_rank_0(self, said: str | None) -> str | None:
        if not self.several:
            return said
        heard = [said]
        dist.broadcast_object_list(heard, src=0, group=self.group)
        return heard[0]


class Hasty(Ranked):
    """Writes under the final name, so that all looks complete when rank 0 has written its part."""

    def attempt(self, step: int, tokens_seen: int, extra: Any, parts: Sequence[str], partial: Path) -> str:
        final = self.folder / f"at-{step}"
        final.mkdir(exist_ok=True)
        return super().attempt(step, tokens_seen, extra, parts, final)

    def publish(self, partial: Path, final: Path) -> str:
        return ""


class Stuck(Ranked):
    """The last rank never comes to the end of a save."""

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        super().save(step, tokens_seen, extra, parts)
        if self.several and self.rank == dist.get_world_size() - 1:
            self.wait_for_what_never_comes()

    def wait_for_what_never_comes(self) -> None:
        threading.Event().wait()


class Deserter(Ranked):
    """The last rank ends itself in a save, without a word."""

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        if self.several and self.rank == dist.get_world_size() - 1:
            os._exit(3)
        super().save(step, tokens_seen, extra, parts)


class Soloist(Ranked):
    """Every rank looks for itself where to resume."""

    def heard_from_rank_0(self, said: str | None) -> str | None:
        return said


class Faithful(Ranked):
    """Waits for a dead rank without end."""

    def agree(self, problem: str, step: int = 0) -> None:
        try:
            super().agree(problem, step)
        except RuntimeError as error:
            if "closed by peer" in str(error).lower() or "connection" in str(error).lower():
                threading.Event().wait()
            raise
