"""torch_checkpointing says that a save is durable, on a disk that can make nothing durable.

The kernel reports at fsync, and nowhere else, that written data never reached the disk. Here fsync and its like fail
with EIO, in this process and in all that it starts, by a filter of system calls (seccomp).
"""

import ctypes
import errno
import logging
import os
import platform
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

# The number of seccomp, that of openat, and those of sync, fsync, fdatasync, syncfs, sync_file_range and msync.
NUMBERS = {
    "x86_64": (317, 257, (162, 74, 75, 306, 277, 26)),
    "aarch64": (277, 56, (81, 82, 83, 267, 84, 227)),
}
LOAD, IS_EQUAL, HAS_BITS, RETURN = 0x20, 0x15, 0x45, 0x06
ALLOW, FAIL = 0x7FFF0000, 0x00050000 | errno.EIO
NUMBER_AT, FLAGS_OF_OPENAT_AT = 0, 32
NO_NEW_PRIVILEGES, SET_FILTER, FOR_ALL_THREADS = 38, 1, 1


class Step(ctypes.Structure):
    """An instruction: what it does, where it goes on if its test is true or false, and its operand."""

    _fields_ = (("code", ctypes.c_ushort), ("then", ctypes.c_ubyte), ("other", ctypes.c_ubyte), ("k", ctypes.c_uint))


class Program(ctypes.Structure):
    """A filter as the kernel takes it."""

    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.POINTER(Step)))


def let_every_sync_fail() -> bool:
    """Return whether fsync and its like fail from now on, and files opened with O_SYNC or O_DSYNC."""
    if platform.machine() not in NUMBERS:
        return False
    seccomp, openat, syncs = NUMBERS[platform.machine()]
    steps = [Step(LOAD, 0, 0, NUMBER_AT)]
    steps += [Step(IS_EQUAL, len(syncs) + 3 - place, 0, number) for place, number in enumerate(syncs)]
    steps += [Step(IS_EQUAL, 0, 2, openat), Step(LOAD, 0, 0, FLAGS_OF_OPENAT_AT), Step(HAS_BITS, 1, 0, os.O_DSYNC)]
    steps += [Step(RETURN, 0, 0, ALLOW), Step(RETURN, 0, 0, FAIL)]
    program = Program(len(steps), (Step * len(steps))(*steps))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    libc.syscall(seccomp, SET_FILTER, FOR_ALL_THREADS, ctypes.byref(program))
    return all(map(fails, (os.O_RDWR, os.O_RDWR | os.O_DSYNC)))


def fails(flags: int) -> bool:
    """Whether nothing that is written to a file opened with these flags can be made durable."""
    with tempfile.NamedTemporaryFile() as file:
        try:
            descriptor = os.open(file.name, flags)
        except OSError as error:
            return error.errno == errno.EIO
        try:
            os.fsync(descriptor)
            return False
        except OSError as error:
            return error.errno == errno.EIO
        finally:
            os.close(descriptor)


def main() -> int:
    if not let_every_sync_fail():
        print("can't run: this kernel takes no filter of system calls")
        return 3
    print("fsync and its like now fail: nothing that is written can become durable", flush=True)
    staging = CheckpointStagerConfig(use_pinned_memory=False, use_non_blocking_copy=False)
    config = CheckpointManager.Config(
        save=AsyncCheckpointSaverConfig(staging_config=staging),
        storage_config=LocalFileSystemStorageConfig(use_direct_io=False),
    )
    with tempfile.TemporaryDirectory() as folder:
        manager = CheckpointManager(config)
        try:
            target = os.path.join(folder, "step_100")
            manager.save(target, {"model": torch.nn.Linear(8, 1).state_dict(), "step": 100}).result()
            manager.close()
        except Exception as error:
            print(f"the save, or close, raised: {str(error).strip().splitlines()[-1]}")
            return 0
        print("save: its future has a result, which the manual calls durable; close returned as well")
        print(f"step_100 holds {sorted(os.listdir(target))}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
