"""transformers: `save_total_limit` deletes every directory whose name begins with `checkpoint-`, in the order of the
times of modification."""

import os
import shutil
import sys
import tempfile

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

try:
    import torch
    from transformers import PrinterCallback, Trainer, TrainingArguments
except ImportError as missing:
    print(f"can't run: {missing}")
    sys.exit(3)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.layer(inputs).square().mean()}


def trains(folder: str, steps: int, resume: bool, limit: int | None = None) -> None:
    """Train up to this step, and save after every two."""
    arguments = TrainingArguments(
        folder,
        max_steps=steps,
        save_steps=2,
        save_total_limit=limit,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(Model(), arguments, train_dataset=[{"inputs": torch.randn(4)} for _ in range(64)])
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)


def age(folder: str, times_s: dict[str, int]) -> None:
    """Give directories times of modification: all belong to the past."""
    for name, time_s in times_s.items():
        os.utime(f"{folder}/{name}", (time_s, time_s))


def standing(folder: str) -> str:
    return ", ".join(sorted(os.listdir(folder)))


def main() -> int:
    with tempfile.TemporaryDirectory() as base:
        folder = f"{base}/copy"
        trains(folder, steps=4, resume=False)
        shutil.copytree(f"{folder}/checkpoint-2", f"{folder}/checkpoint-best-of-march")
        age(folder, {"checkpoint-2": 1_000_000, "checkpoint-best-of-march": 1_000_000, "checkpoint-4": 2_000_000})
        print(f"a run saves, and the user keeps a copy: {standing(folder)}")
        trains(folder, steps=6, resume=True, limit=2)
        print(f"it goes on to step 6 with save_total_limit=2: {standing(folder)}")
        is_copy_gone = not os.path.exists(f"{folder}/checkpoint-best-of-march")

        folder = f"{base}/moved"
        trains(folder, steps=6, resume=False)
        age(folder, {"checkpoint-2": 3_000_000, "checkpoint-4": 2_000_000, "checkpoint-6": 1_000_000})
        print(f"another run saves, and a transfer reverses the times of its directories: {standing(folder)}")
        trains(folder, steps=8, resume=True, limit=2)
        print(f"it goes on to step 8 with save_total_limit=2: {standing(folder)}")
        is_newest_gone = not os.path.exists(f"{folder}/checkpoint-6")
    return 1 if is_copy_gone and is_newest_gone else 0


if __name__ == "__main__":
    sys.exit(main())
