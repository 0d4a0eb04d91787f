"""A load of torch_checkpointing returns as if resumed where the checkpoint has no values for the model's parameters."""

import os
import sys
import tempfile

try:
    import torch
    from torch import nn
    from torch_checkpointing import CheckpointManager
    from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig
except ImportError as missing:
    print(f"can't run: {missing}")
    sys.exit(3)


def main() -> int:
    config = CheckpointManager.Config.with_sync_save()
    config.storage_config = LocalFileSystemStorageConfig(use_direct_io=False)
    manager = CheckpointManager(config)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "step_100")
        manager.save(path, {"model": nn.ModuleDict({"head": nn.Linear(8, 1)}).state_dict(), "step": 100})
        print("saved a model with the layer 'head'")

        model = nn.ModuleDict({"output": nn.Linear(8, 1)})  # the same layer after a change of its name
        before = {name: value.clone() for name, value in model.state_dict().items()}
        restored = manager.load(path, into={"model": model.state_dict(), "step": 0})
        kept = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        print(f"loaded into one with the layer 'output': step {restored['step']}, and no error")
        print(f"its weights are {'the random ones of before the load' if kept else 'others than before the load'}")

        path = os.path.join(folder, "step_200")
        manager.save(path, {"model": {"scale": torch.full((1,), 7.0)}})
        scale = torch.zeros(4)
        try:
            manager.load(path, into={"model": {"scale": scale}}, strict=True)
            print(f"a tensor of 1 element, loaded into one of 4 with strict=True: {scale.tolist()}")
        except RuntimeError as error:
            print(f"a tensor of 1 element is refused for one of 4: {error}")
    return 1 if kept else 0


if __name__ == "__main__":
    sys.exit(main())
