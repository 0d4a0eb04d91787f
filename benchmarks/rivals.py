"""Ways to save and load a state, each as its own users drive it, behind one interface.

A way saves into a new directory; what else it keeps between saves is its own
affair.  One that can save beside training says when the state may change again.
None is told to be durable beyond what it offers: the trace of its system calls
says what it is.
"""

import importlib.util
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed.checkpoint as dcp
from subject import Subject

import forge_ref
from forge_ref import collector, layout, manifest, storage
from forge_ref.engine import reading

Wait = Callable[[], object]


class Way:
    """One way to save and load."""

    name: ClassVar[str]
    needs: ClassVar[str] = "torch"
    """The module without which it can't be had."""
    saves_beside: ClassVar[bool] = False
    keeps_memory: ClassVar[bool] = False
    """Whether a process that has saved and loaded keeps more memory than before."""
    files_for_tensor: ClassVar[int] = 0
    """How many files an asynchronous save keeps open for each tensor."""

    def __init__(self, subject: Subject, folder: Path) -> None:
        self.subject = subject
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, path: Path) -> None:
        """Save, and return when the way says that it is done."""
        raise NotImplementedError

    def begin(self, path: Path) -> Wait:
        """Return when the state may change again; the result waits for the end."""
        raise NotImplementedError

    def load(self, path: Path) -> None:
        """Bring the values back into model and optimizer."""
        raise NotImplementedError


class Reference(Way):
    """forge_ref; it chooses the names of its directories itself."""

    name = "forge_ref"
    saves_beside = True

    def __init__(self, subject: Subject, folder: Path) -> None:
        super().__init__(subject, folder)
        self._steps = iter(range(1, 1_000_000))
        self._at_once = self.manager("at_once", forge_ref.AsyncCheckpointMode.disabled)
        self.beside: Any = self.manager("beside", forge_ref.AsyncCheckpointMode.async_)
        """The manager of the saves beside training, which has saved before."""

    def manager(self, name: str, mode: Any) -> Any:
        """Return a manager with a folder of its own."""
        config = forge_ref.CheckpointConfig(dir=str(self.folder / name), keep_last_n=1, async_mode=mode)
        return forge_ref.CheckpointManager(config, self.subject.model, self.subject.optimizer)

    def save(self, path: Path) -> None:
        self._at_once.save(next(self._steps))

    def begin(self, path: Path) -> Wait:
        self.beside.save(next(self._steps))
        return self.beside._run.checkpointer.wait

    def load(self, path: Path) -> None:
        self._at_once.load()

    def newest(self) -> Path:
        """Return the checkpoint that a load lands on."""
        return self.folder / "at_once" / os.readlink(self.folder / "at_once" / "latest")

    def read(self, memory: Sequence[torch.Tensor] = ()) -> None:
        """Read all of it, verified, and set nothing: into fresh memory, or, of large tensors, into this."""
        path, fresh, rooms = self.newest(), reading.fresh, defaultdict(list)
        for tensor in memory:
            rooms[tensor.shape, tensor.dtype].append(tensor)

        def room(size: torch.Size, dtype: torch.dtype) -> torch.Tensor:
            return rooms[size, dtype].pop() if rooms[size, dtype] else fresh(size, dtype)

        with collector.paused():  # as it is in a load
            seals = manifest.seals(layout.read_metadata(path))
            reading.fresh = room if rooms else fresh
            try:
                storage.open_shards(path, seals[layout.MARKER]).read(lambda _: True)
            finally:
                reading.fresh = fresh

    def reads_in_place(self) -> bool:
        """Return whether large tensors are most of the state: small ones are read by way of a buffer."""
        sizes = [tensor.nbytes for tensor in self.subject.tensors]
        return sum(size for size in sizes if size >= reading._LARGE) > 0.9 * sum(sizes)


class Stock(Way):
    """torch.distributed.checkpoint as it comes."""

    name = "stock DCP"
    saves_beside = True

    def save(self, path: Path) -> None:
        dcp.save(self.subject.state(), checkpoint_id=path)

    def begin(self, path: Path) -> Wait:
        return dcp.async_save(self.subject.state(), checkpoint_id=path).result

    def load(self, path: Path) -> None:
        state = self.subject.state()
        dcp.load(state, checkpoint_id=path)
        self.subject.put(state)


class TorchSave(Way):
    """One file by `torch.save`, of what model and optimizer give and take themselves, as PyTorch's tutorial has it."""

    name = "torch.save"

    def save(self, path: Path) -> None:
        path.mkdir()
        model, optimizer = self.subject.model, self.subject.optimizer
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path / "state.pt")

    def load(self, path: Path) -> None:
        loaded = torch.load(path / "state.pt", weights_only=True)
        self.subject.model.load_state_dict(loaded["model"])
        self.subject.optimizer.load_state_dict(loaded["optimizer"])


class Safetensors(Way):
    """One file of safetensors; it has no place for anything but tensors, so these are all that is saved and set."""

    name = "safetensors"
    needs = "safetensors"

    def save(self, path: Path) -> None:
        from safetensors.torch import save_file

        path.mkdir()
        save_file(self.subject.named(), path / "state.safetensors")

    def load(self, path: Path) -> None:
        from safetensors.torch import load_file

        loaded = load_file(path / "state.safetensors")
        torch._foreach_copy_(self.subject.tensors, [loaded[name] for name in self.subject.named()])


class TorchCheckpointing(Way):
    """torch_checkpointing, with direct writes off, which fail there, and without the GPU that it expects."""

    name = "torch_checkpointing"
    needs = "torch_checkpointing"
    saves_beside = True
    files_for_tensor = 2

    def __init__(self, subject: Subject, folder: Path) -> None:
        super().__init__(subject, folder)
        import torch_checkpointing as tc
        from torch_checkpointing.staging import CheckpointStagerConfig
        from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

        files = LocalFileSystemStorageConfig(use_direct_io=False)
        staging = CheckpointStagerConfig(use_pinned_memory=False, use_non_blocking_copy=False)
        configs = (tc.SyncCheckpointSaverConfig(), tc.AsyncCheckpointSaverConfig(staging_config=staging))
        self._at_once, self._beside = (
            tc.CheckpointManager.Config(save=saver, storage_config=files).build() for saver in configs
        )

    def save(self, path: Path) -> None:
        self._at_once.save(str(path), self.subject.state())

    def begin(self, path: Path) -> Wait:
        written = self._beside.save(str(path), self.subject.state())
        self._beside._staging_future.result()
        return written.result

    def load(self, path: Path) -> None:
        state = self.subject.state()
        self.subject.put(dict(self._at_once.load(str(path), into=state)))


class Orbax(Way):
    """Orbax's `CheckpointManager`; the tensors are given to it as arrays that share their memory."""

    name = "Orbax"
    needs = "orbax.checkpoint"
    saves_beside = True
    keeps_memory = True

    def __init__(self, subject: Subject, folder: Path) -> None:
        super().__init__(subject, folder)
        logging.getLogger("absl").setLevel(logging.WARNING)
        self._at_once, self._beside = (self._manager(name, name == "beside") for name in ("at_once", "beside"))
        self._steps = iter(range(1, 1_000_000))

    def _manager(self, name: str, is_beside: bool) -> Any:
        from orbax import checkpoint as ocp

        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=is_beside)
        return ocp.CheckpointManager((self.folder / name).absolute(), options=options)

    def _save(self, manager: Any) -> None:
        from orbax import checkpoint as ocp

        arrays = {name: tensor.numpy() for name, tensor in self.subject.named().items()}
        if not manager.save(next(self._steps), args=ocp.args.StandardSave(arrays), force=True):
            raise RuntimeError("save returned False")

    def save(self, path: Path) -> None:
        self._save(self._at_once)

    def begin(self, path: Path) -> Wait:
        self._save(self._beside)
        return self._beside.wait_until_finished

    def load(self, path: Path) -> None:
        from orbax import checkpoint as ocp

        loaded = self._at_once.restore(self._at_once.latest_step(), args=ocp.args.StandardRestore())
        values = [torch.from_numpy(loaded[name]) for name in self.subject.named()]
        torch._foreach_copy_(self.subject.tensors, values)


WAYS = (Reference, Stock, TorchSave, Safetensors, TorchCheckpointing, Orbax)


def missing(way: type[Way]) -> bool:
    """Return whether the way can't be had in this environment."""
    try:
        return importlib.util.find_spec(way.needs) is None
    except ModuleNotFoundError:
        return True
