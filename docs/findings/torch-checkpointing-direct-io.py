"""With its defaults, every save of torch_checkpointing fails where direct writes have to be aligned, as on ext4."""

import errno
import os
import sys
import tempfile

try:
    import torch
    from torch_checkpointing import CheckpointManager
    from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig
except ImportError as missing:
    print(f"can't run: {missing}")
    sys.exit(3)


def direct_writes_have_to_be_aligned(folder: str) -> bool:
    try:
        file = os.open(os.path.join(folder, "probe"), os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    except OSError:
        return False  # then the manager falls back, as documented
    try:
        os.write(file, b"unaligned")
    except OSError as error:
        return error.errno == errno.EINVAL
    finally:
        os.close(file)
    return False


def save(folder: str, name: str, **storage: bool) -> bool:
    """Save with a synchronous manager; return whether that worked."""
    config = CheckpointManager.Config.with_sync_save()
    if storage:
        config.storage_config = LocalFileSystemStorageConfig(**storage)
    manager = CheckpointManager(config)
    try:
        manager.save(os.path.join(folder, name), {"model": torch.nn.Linear(8, 1).state_dict(), "step": 100})
    except OSError as error:
        print(f"save raised {error!r}; the folder holds {sorted(os.listdir(folder))}")
        return False
    print(f"save returned; {name} holds {sorted(os.listdir(os.path.join(folder, name)))}")
    return True


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        if not direct_writes_have_to_be_aligned(folder):
            print(f"can't run: {folder} takes unaligned direct writes, or none; set TMPDIR to a folder on ext4 or XFS")
            return 3
        os.remove(os.path.join(folder, "probe"))
        print("with the defaults:", end=" ")
        works = save(folder, "step_100")
        print("with use_direct_io=False:", end=" ")
        save(folder, "step_200", use_direct_io=False)
    return 0 if works else 1


if __name__ == "__main__":
    sys.exit(main())
