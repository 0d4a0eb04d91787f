"""transformers: a Trainer that is killed while it saves over a checkpoint resumes the weights of one run with the
moments of another."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

try:
    import torch
    from safetensors.torch import load_file
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


class Optimizer(torch.optim.AdamW):
    """Its process can be killed when its state is asked for; in a save the weights are on disk by then."""

    kills = False

    def state_dict(self) -> dict[str, object]:
        if self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().state_dict()


class Watch(TrainerCallback):
    """Keeps what the run resumed with, and makes its optimizer kill it at step 4."""

    def __init__(self, optimizer: Optimizer, kills: bool) -> None:
        self.optimizer, self.kills = optimizer, kills

    def on_train_begin(self, args, state, control, model, **_) -> None:  # type: ignore[no-untyped-def]
        self.step, self.weight = state.global_step, model.layer.weight.detach().clone()
        self.moment = next((value["exp_avg"].clone() for value in self.optimizer.state.values()), None)

    def on_step_end(self, args, state, control, **_) -> None:  # type: ignore[no-untyped-def]
        self.optimizer.kills = self.kills and state.global_step == 4


def trains(folder: str, resume: bool | str, data: int, steps: int = 4, kills: bool = False) -> Watch:
    """A run of `steps` that saves every two of them; `data` numbers what it trains on."""
    torch.manual_seed(data)
    model = Model()
    optimizer = Optimizer(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1)
    watch = Watch(optimizer, kills)
    arguments = TrainingArguments(
        folder, max_steps=steps, save_steps=2, logging_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True
    )
    inputs = [{"inputs": torch.randn(4)} for _ in range(64)]
    trainer = Trainer(model, arguments, train_dataset=inputs, optimizers=(optimizer, scheduler), callbacks=[watch])
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    return watch


def kept(checkpoint: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight and its moment, as they are on disk."""
    state = torch.load(f"{checkpoint}/optimizer.pt")["state"]
    return load_file(f"{checkpoint}/model.safetensors")["layer.weight"], state[0]["exp_avg"]


def main() -> int:
    with tempfile.TemporaryDirectory() as base:
        folder, whole = f"{base}/run", f"{base}/whole"
        trains(folder, False, data=1)
        first = kept(f"{folder}/checkpoint-4")
        print("run 1 trains 4 steps and saves checkpoint-2 and checkpoint-4")
        shutil.copytree(folder, whole)
        trains(whole, f"{whole}/checkpoint-2", data=2)
        second = kept(f"{whole}/checkpoint-4")
        killed = subprocess.run([sys.executable, __file__, folder], stderr=subprocess.DEVNULL, check=False)
        if killed.returncode != -signal.SIGKILL:
            print(f"run 2 was not killed in its save of step 4; it ended with {killed.returncode}")
            return 3
        print("run 2 resumes from checkpoint-2 with other data, and is killed while it saves checkpoint-4 again")
        resumed = trains(folder, True, data=2, steps=5)
    runs = {"run 1": first, "run 2": second}
    weight = next((name for name, (value, _) in runs.items() if torch.equal(value, resumed.weight)), "no run")
    moment = next((name for name, (_, value) in runs.items() if torch.equal(value, resumed.moment)), "no run")
    print(f"run 3 resumes with resume_from_checkpoint=True, at step {resumed.step}, without an error")
    print(f"its weights are those of {weight} at step 4, its moments are those of {moment}")
    return 0 if weight == moment else 1


if __name__ == "__main__":
    if sys.argv[1:]:
        trains(sys.argv[1], f"{sys.argv[1]}/checkpoint-2", data=2, kills=True)
    else:
        sys.exit(main())
