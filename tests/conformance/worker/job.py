"""A training script as a user writes it, for a launcher to start: `torchrun ... path/to/worker job --impl NAME ...`.

It resumes, trains, saves every so often, and writes each loss to a file of its
rank.  One rank kills itself once, at a given step, in the middle of the first
attempt, so that the launcher has something to restart.  It takes no commands:
what it does is known from its files and its exit status.
"""

import argparse
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from forge_conformance.adapter import Settings

from .implementation import find
from .ranks import Place, RankWorkload


def main(arguments: Sequence[str]) -> None:
    """Train to the last step, whatever attempt this is."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--impl", required=True)
    parser.add_argument("--folder", required=True, help="of the checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="a directory for the files of the ranks")
    parser.add_argument("--mode", required=True)
    parser.add_argument("--stages", type=int, required=True)
    parser.add_argument("--until", type=int, required=True, help="the last step")
    parser.add_argument("--every", type=int, required=True, help="steps between saves")
    parser.add_argument("--dies-at", type=int, required=True, help="the step at which the last rank dies, once")
    options = parser.parse_args(arguments)

    rank, size, attempt = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"))
    place = Place(rank, size, "sharded", options.stages, str(options.out / f"rendezvous-{attempt}"), 60)
    training: Any = RankWorkload(attempt, place)
    manager = find(options.impl)(Settings(options.folder, options.mode), training)
    parts = ("scheduler", "dataloader")
    loaded = manager.load(None, (), None, parts)
    training.step, training.tokens_seen = loaded.step, loaded.tokens_seen
    with open(options.out / f"losses-{rank}", "a", buffering=1) as losses:
        print(f"attempt {attempt} resumes at {loaded.step}", file=losses)
        while training.step < options.until:
            (loss,) = manager.train(1)
            print(training.step, loss, file=losses)
            if attempt == 0 and rank == size - 1 and training.step == options.dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if training.step % options.every == 0:
                manager.save(training.step, training.tokens_seen, None, parts)
        manager.wait()
    dist.destroy_process_group()
