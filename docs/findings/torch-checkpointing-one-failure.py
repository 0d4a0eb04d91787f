"""After one failed write, the asynchronous manager of torch_checkpointing fails at every later save, without a try."""

import logging
import os
import shutil
import sys
import tempfile

try:
    import torch
    from torch_checkpointing import CheckpointManager
    from torch_checkpointing.config import AsyncCheckpointSaverConfig
    from torch_checkpointing.staging import CheckpointStagerConfig
    from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig
except ImportError as missing:
    print(f"can't run: {missing}")
    sys.exit(3)

logging.getLogger("torch_checkpointing").setLevel(logging.CRITICAL)


def manager_without_cuda() -> CheckpointManager:
    """As the manual's page Troubleshooting has it, and with writes that ext4 accepts."""
    staging = CheckpointStagerConfig(use_pinned_memory=False, use_non_blocking_copy=False)
    return CheckpointManager(
        CheckpointManager.Config(
            save=AsyncCheckpointSaverConfig(staging_config=staging),
            storage_config=LocalFileSystemStorageConfig(use_direct_io=False),
        )
    )


def save(manager: CheckpointManager, folder: str, step: int) -> bool:
    """Save and wait; return whether the checkpoint is there."""
    target = os.path.join(folder, f"step_{step}")
    try:
        manager.save(target, {"model": torch.nn.Linear(8, 1).state_dict(), "step": step}).result()
        print(f"step {step}: saved", flush=True)
        return True
    except Exception as error:
        last_line = str(error).strip().splitlines()[-1].replace(folder, "...")
        print(f"step {step}: {last_line.partition(', and a rename')[0]}", flush=True)
        return False


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        manager = manager_without_cuda()
        if not save(manager, folder, 100):
            print("can't run: the first save failed")
            return 3
        shutil.copytree(os.path.join(folder, "step_100"), os.path.join(folder, "step_200"))
        print("a checkpoint of step 200 is there already, as after a run that went back")
        if save(manager, folder, 200):
            return 0
        shutil.rmtree(os.path.join(folder, "step_200"))
        print("it was removed, so nothing stands in the way any more")
        later = [save(manager, folder, step) for step in (200, 300, 400)]
        print(f"the folder holds {sorted(os.listdir(folder))}", flush=True)
        try:
            manager.close()
        except Exception:
            print("close raised the same error")
    return 0 if any(later) else 1


if __name__ == "__main__":
    sys.exit(main())
