"""One training run as its checkpoints see it: what a save takes its state from, and what a load puts it back into.

Invariant: nothing here changes after a manager is made, except the fields of
the configuration, which launchers patch.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from forge_ref.async_save import AsyncCheckpointer
from forge_ref.config import CheckpointConfig
from forge_ref.gradients import GradientWatch
from forge_ref.interrupts import Deferral, for_call
from forge_ref.ranks import Ranks

RANKS = "ranks"
"""The key, beside model and optimizer, under which each rank has its own part of the train state."""


@dataclass(frozen=True)
class Run:
    """The live objects, the folder, and the processes that checkpoint together."""

    config: CheckpointConfig
    """Of the first design; where a callback decides, nothing but the folder is set."""
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    folder: Path
    """Rank 0's folder of checkpoints, on every rank."""
    ranks: Ranks
    checkpointer: AsyncCheckpointer
    gradients: GradientWatch

    def deferral(self, first: int) -> Deferral:
        """Return the block for a call, see `for_call`."""
        return for_call(first, self.ranks.are_many)
