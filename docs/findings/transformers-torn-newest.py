"""transformers: a Trainer that is killed in a save fails at every restart, beside whole checkpoints."""

import os
import signal
import subprocess
import sys
import tempfile

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

try:
    import torch
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
except ImportError as missing:
    print(f"can't run: {missing}")
    sys.exit(3)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.layer(inputs).square().mean()}


class KilledInItsSecondSave(TrainerCallback):
    """The process is killed when the model is asked for its state at step 4: the directory is made by then."""

    def on_step_end(self, args, state, control, model, **_) -> None:  # type: ignore[no-untyped-def]
        if state.global_step == 4:
            model.register_state_dict_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))


def trains(folder: str, resume: bool, *callbacks: TrainerCallback) -> None:
    arguments = TrainingArguments(
        folder, max_steps=6, save_steps=2, logging_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True
    )
    inputs = [{"inputs": torch.randn(4)} for _ in range(64)]
    trainer = Trainer(Model(), arguments, train_dataset=inputs, callbacks=list(callbacks))
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        killed = subprocess.run([sys.executable, __file__, folder], stderr=subprocess.DEVNULL, check=False)
        if killed.returncode != -signal.SIGKILL:
            print(f"the run was not killed in its second save; it ended with {killed.returncode}")
            return 3
        print("a run is killed in its second save; there stands")
        for name in sorted(os.listdir(folder)):
            print(f"  {name}: {', '.join(sorted(os.listdir(f'{folder}/{name}'))) or 'nothing'}")
        try:
            trains(folder, True)
        except (OSError, ValueError) as error:
            print(
                f"a restart with resume_from_checkpoint=True raises {type(error).__name__}: {error}".replace(
                    folder, "..."
                )
            )
            print("nothing in the folder has changed, so the next restart raises the same")
            return 1
    print("a restart with resume_from_checkpoint=True goes on")
    return 0


if __name__ == "__main__":
    if sys.argv[1:]:
        trains(sys.argv[1], False, KilledInItsSecondSave())
    else:
        sys.exit(main())
