"""Lightning removes `last.ckpt` before it makes the new link, so a kill in between restarts the run from step 0.

A process trains with `ModelCheckpoint(save_last="link")` and is killed, by a
real SIGKILL, where Lightning calls `os.symlink` for the third time.  A second
process resumes with `fit(ckpt_path="last")`, as a restarted job does.  Exits
with 1 if it starts from scratch beside complete checkpoints, else with 0.
"""

import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

try:
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint
    from lightning.pytorch.demos.boring_classes import BoringModel
except ImportError as missing:
    print(f"can't run: {missing}")
    sys.exit(3)

EVERY, KILLED_AT = 5, 15


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        died = in_a_process(train_until_killed, folder)
        print(f"A process saved every {EVERY} steps, and was killed in the save of step {KILLED_AT}: status {died}.")
        print(f"The folder: {', '.join(contents(folder))}.")
        in_a_process(restart, folder)
        step = int(Path(folder, "restarted-at").read_text())
        print(f'fit(ckpt_path="last") in a new process begins at step {step}.')
        return 1 if died == -signal.SIGKILL and step == 0 else 0


def in_a_process(work: Any, folder: str) -> int | None:
    """Its exit status, which is negative for a signal."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=(folder,))
    process.start()
    process.join()
    return process.exitcode


def contents(folder: str) -> list[str]:
    return sorted(name for name in os.listdir(folder) if ".ckpt" in name)


def train_until_killed(folder: str) -> None:
    link = os.symlink

    def killed_in_the_third(*arguments: Any, **options: Any) -> None:
        if len(contents(folder)) == KILLED_AT // EVERY:
            os.kill(os.getpid(), signal.SIGKILL)
        link(*arguments, **options)

    os.symlink = killed_in_the_third  # type: ignore[assignment]
    trainer(folder).fit(BoringModel())


def restart(folder: str) -> None:
    class Begins(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            Path(folder, "restarted-at").write_text(str(trainer.global_step))

    trainer(folder, Begins()).fit(BoringModel(), ckpt_path="last")


def trainer(folder: str, *callbacks: Callback) -> Trainer:
    quiet()
    checkpoints = ModelCheckpoint(
        folder, "{step}", monitor="step", mode="max", save_top_k=3, save_last="link", every_n_train_steps=EVERY
    )
    return Trainer(
        accelerator="cpu",
        max_steps=20,
        limit_val_batches=0,
        callbacks=[checkpoints, *callbacks],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def quiet() -> None:
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
