"""accelerate: a kill in a save leaves a directory that `load_state()` takes at every restart, and fails on."""

import os
import signal
import subprocess
import sys
import tempfile

try:
    import torch
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration
except ImportError as missing:
    print(f"can't run: {missing}")
    sys.exit(3)


class Optimizer(torch.optim.AdamW):
    """Its process is killed when its state is asked for; then the weights are on disk already."""

    is_armed = False

    def state_dict(self) -> dict[str, object]:
        if self.is_armed:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().state_dict()


def prepared(project: str) -> tuple[Accelerator, Optimizer]:
    configuration = ProjectConfiguration(project_dir=project, automatic_checkpoint_naming=True)
    accelerator = Accelerator(cpu=True, project_config=configuration)
    model = torch.nn.Linear(4, 4)
    optimizer = Optimizer(model.parameters())
    accelerator.prepare(model, optimizer)
    return accelerator, optimizer


def saves_and_is_killed(project: str) -> None:
    accelerator, optimizer = prepared(project)
    accelerator.save_state()
    accelerator.save_state()
    optimizer.is_armed = True
    accelerator.save_state()


def main() -> int:
    with tempfile.TemporaryDirectory() as project:
        killed = subprocess.run([sys.executable, __file__, project], stderr=subprocess.DEVNULL, check=False)
        if killed.returncode != -signal.SIGKILL:
            print(f"the run was not killed in its third save; it ended with {killed.returncode}")
            return 3
        print("a run saves checkpoint_0 and checkpoint_1, and is killed in its third save; there stands")
        for name in sorted(os.listdir(f"{project}/checkpoints")):
            print(f"  {name}: {', '.join(sorted(os.listdir(f'{project}/checkpoints/{name}')))}")
        accelerator, _ = prepared(project)
        try:
            accelerator.load_state()
        except (OSError, RuntimeError) as error:
            print(f"a restart: load_state() raises {type(error).__name__}: {error}".replace(project, "..."))
            print("nothing in the folder has changed, so the next restart raises the same")
            return 1
    print("a restart: load_state() resumes")
    return 0


if __name__ == "__main__":
    if sys.argv[1:]:
        saves_and_is_killed(sys.argv[1])
    else:
        sys.exit(main())
