"""torchtitan deletes the checkpoint that it has just saved, if the run was rewound to an earlier step.

A run saves the steps 10, 20, 30 and 40.  It is started again with
`load_step=10` and `keep_latest_k=2`, trains two steps and saves step 12.  The
script then closes the manager, as the trainer does at its end, and resumes once
more.  Exits with 1 if step 12 is gone although its save returned True, else
with 0.
"""

import logging
import os
import sys
import tempfile
from typing import Any

try:
    import torch
    import torch.distributed as dist
    from torchtitan.components.checkpoint import CheckpointManager
    from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer, default_adamw
except ImportError as missing:
    print(f"can't run: {missing}")
    sys.exit(3)

logging.disable(logging.CRITICAL)


def main() -> int:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with tempfile.TemporaryDirectory() as folder:
        first = Run(folder, keep_latest_k=0)
        first.train_and_save(10, 20, 30, 40)
        first.manager.close()
        print(f"The first run saved: {contents(folder)}.")

        rewound = Run(folder, keep_latest_k=2)
        rewound.manager.load(step=10)
        print(f"The second run has load_step=10 and keep_latest_k=2; it resumes from step {rewound.step}.")
        (returned,) = rewound.train_and_save(12)
        rewound.manager.close()
        print(f"save(12) returned {returned}; after the deletions the folder holds {contents(folder)}.")

        third = Run(folder, keep_latest_k=2)
        third.manager.load()
        third.manager.close()
        print(f"A restart resumes from step {third.step}.")
        is_lost = returned and "step-12" not in os.listdir(folder)
    dist.destroy_process_group()
    return 1 if is_lost else 0


def contents(folder: str) -> str:
    return ", ".join(sorted(os.listdir(folder)))


class Run:
    """A training run as torchtitan's trainer makes one; it is its own train state."""

    def __init__(self, folder: str, keep_latest_k: int) -> None:
        self.step = 0
        self.model = torch.nn.Linear(4, 2)
        optimizer = default_adamw(lr=0.01)
        optimizer.implementation = "for-loop"
        self.optimizers: OptimizersContainer[Any] = optimizer.build(model_parts=[self.model])
        self.schedulers: LRSchedulersContainer = LRSchedulersContainer.Config(warmup_steps=1).build(
            optimizers=self.optimizers, training_steps=100
        )
        config = CheckpointManager.Config(enable=True, folder=folder, interval=1, keep_latest_k=keep_latest_k)
        self.manager = CheckpointManager(
            config,
            dataloader=None,
            model_parts=[self.model],
            optimizers=self.optimizers,
            lr_schedulers=self.schedulers,
            states={"train_state": self},
            sd_adapter=None,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]

    def train_and_save(self, *steps: int) -> list[bool]:
        """Train to each of the steps and save there; what the saves returned."""
        returned = []
        for step in steps:
            while self.step < step:
                self.optimizers.zero_grad()
                self.model(torch.ones(3, 4)).sum().backward()
                self.optimizers.step()
                self.schedulers.step()
                self.step += 1
            returned.append(self.manager.save(self.step))
        return returned


if __name__ == "__main__":
    sys.exit(main())
