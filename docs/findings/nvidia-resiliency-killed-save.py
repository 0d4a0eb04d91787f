"""nvidia-resiliency-ext can't save an iteration again whose save was killed, so every restart ends at that iteration.

A process saves iteration 2 with `LocalCheckpointManager`, and is killed, by a
real SIGKILL, when `torch.save` has written the file of iteration 4.  Two more
processes go on from the latest checkpoint and save iteration 4, as a restarted
job does.  Exits with 1 if both saves raise, else with 0.  It needs no GPU: the
state stays on the CPU.
"""

import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

try:
    import torch
    import torch.distributed as dist
    from nvidia_resiliency_ext.checkpointing.local.base_state_dict import TensorAwareStateDict
    from nvidia_resiliency_ext.checkpointing.local.ckpt_managers.local_manager import LocalCheckpointManager
except ImportError as missing:
    print(f"can't run: {missing}")
    sys.exit(3)

STUCK = 20
"""The exit status of a restart that could not save the iteration at which the run had been killed."""


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        died = in_a_process(save_until_killed, folder)
        print(f"The first process was killed in the save of iteration 4: status {died}.")
        ended = [in_a_process(restart, folder) for _ in range(2)]
        print(f"The folder after 2 restarts: {', '.join(sorted(os.listdir(Path(folder, 'run', '0'))))}.")
    return 1 if died == -signal.SIGKILL and ended == [STUCK, STUCK] else 0


def in_a_process(work: Any, folder: str) -> int | None:
    """Its exit status, which is negative for a signal."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=(folder,))
    process.start()
    process.join()
    return process.exitcode


def save_until_killed(folder: str) -> None:
    manager = make_manager(folder)
    manager.save(State(), 2)
    write = torch.save

    def killed_when_written(*arguments: Any, **options: Any) -> None:
        write(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = killed_when_written
    manager.save(State(), 4)


def restart(folder: str) -> None:
    manager = make_manager(folder)
    print(f"A restart goes on from iteration {manager.find_latest()}; ", end="")
    try:
        manager.save(State(), 4)
    except Exception as error:
        print(f"its save of iteration 4 raises {type(error).__name__}: {error}", flush=True)
        sys.exit(STUCK)
    print("its save of iteration 4 returns.", flush=True)


def make_manager(folder: str) -> LocalCheckpointManager:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return LocalCheckpointManager(folder, session_id="run")


class State(TensorAwareStateDict):
    """One tensor, which stays where it is; the package's own class asks for a GPU."""

    def __init__(self) -> None:
        self.kept = {"weights": torch.ones(4)}

    @property
    def tensors(self) -> Iterable[torch.Tensor]:
        return self.kept.values()

    @property
    def is_hollow(self) -> bool:
        return False

    def pop_tensors(self) -> list[torch.Tensor]:
        return list(self.kept.values())

    def insert_tensors(self, tensor_data: Iterable[torch.Tensor]) -> None: ...
    def init_tensors(self) -> None: ...
    def copy_tensors_to_cpu(self, non_blocking: bool = False) -> None: ...
    def restore_tensor_device(self, non_blocking: bool = True) -> None: ...
    def to_state_dict(self) -> dict[str, torch.Tensor]:
        return self.kept


if __name__ == "__main__":
    sys.exit(main())
