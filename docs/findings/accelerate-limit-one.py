"""accelerate: `total_limit=1` deletes the only checkpoint before it saves the next one."""

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


def prepared(project: str) -> tuple[Accelerator, torch.nn.Module]:
    configuration = ProjectConfiguration(project_dir=project, automatic_checkpoint_naming=True, total_limit=1)
    accelerator = Accelerator(cpu=True, project_config=configuration)
    model = torch.nn.Linear(4, 4)
    return accelerator, accelerator.prepare(model, torch.optim.AdamW(model.parameters()))[0]


def saves_twice(project: str) -> None:
    """Save checkpoint_0 and checkpoint_1, and be killed in the second save: when it makes its directory."""
    accelerator, _ = prepared(project)
    accelerator.save_state()
    print(f"a run with total_limit=1 has saved; there stands {standing(project)}")
    sys.stdout.flush()

    def kill(event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.mkdir" and str(arguments[0]).endswith("checkpoint_1"):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill)
    accelerator.save_state()


def standing(project: str) -> list[str]:
    return sorted(os.listdir(os.path.join(project, "checkpoints")))


def main() -> int:
    with tempfile.TemporaryDirectory() as project:
        killed = subprocess.run([sys.executable, __file__, project], stderr=subprocess.DEVNULL, check=False)
        if killed.returncode != -signal.SIGKILL:
            print(f"the run was not killed in its second save; it ended with {killed.returncode}")
            return 3
        print(f"it is killed in its next save; there stands {standing(project)}")
        accelerator, _ = prepared(project)
        try:
            accelerator.load_state()
        except IndexError as error:
            print(f"a restart: load_state() raises {type(error).__name__}: {error}")
            return 1
        print("a restart: load_state() resumes")
        return 0


if __name__ == "__main__":
    if sys.argv[1:]:
        saves_twice(sys.argv[1])
    else:
        sys.exit(main())
