"""accelerate: whatever stands in `checkpoints` is a checkpoint, with the first number in its name as its own."""

import os
import shutil
import sys
import tempfile

try:
    import torch
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration
except ImportError as missing:
    print(f"can't run: {missing}")
    sys.exit(3)


def prepared(project: str, iteration: int = 0) -> tuple[Accelerator, torch.nn.Module]:
    configuration = ProjectConfiguration(
        project_dir=project, automatic_checkpoint_naming=True, total_limit=4, iteration=iteration
    )
    accelerator = Accelerator(cpu=True, project_config=configuration)
    return accelerator, accelerator.prepare(torch.nn.Linear(1, 1))


def main() -> int:
    with tempfile.TemporaryDirectory() as project:
        folder = f"{project}/checkpoints"
        accelerator, model = prepared(project)
        for number in range(3):
            torch.nn.init.constant_(model.weight, number)
            accelerator.save_state()
        shutil.copytree(f"{folder}/checkpoint_0", f"{folder}/best-of-2026")
        shutil.copytree(f"{folder}/checkpoint_0", f"{folder}/checkpoint_0_baseline")
        print("the weight is 0 in checkpoint_0, 1 in checkpoint_1, 2 in checkpoint_2")
        print("the user copies checkpoint_0 to best-of-2026 and to checkpoint_0_baseline")
        accelerator, model = prepared(project, iteration=3)
        accelerator.load_state()
        print(f"a restart: load_state() resumes, and the weight is {model.weight.item():.0f}")
        accelerator.save_state()
        accelerator.save_state()
        standing = sorted(os.listdir(folder))
        print(f"with total_limit=4, after two more saves, there stands {', '.join(standing)}")
        return 1 if model.weight.item() == 0 or "checkpoint_0_baseline" not in standing else 0


if __name__ == "__main__":
    sys.exit(main())
