"""OLMo-core can't save a step again whose asynchronous save was killed, so every restart ends at that step.

A process trains with `CheckpointerCallback(save_interval=2, save_async=True)`
and is killed, by a real SIGKILL, where the background flush of step 4 is about
to write its last file, `.metadata.json`.  Three more processes then run the
same program, as a restarted job does.  Exits with 1 if each of them ends with
an error at the save of step 4, else with 0.
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
    import numpy as np
    import torch
    from olmo_core.data import NumpyDataLoaderConfig, NumpyFSLDatasetConfig, TokenizerConfig
    from olmo_core.nn.transformer import TransformerConfig
    from olmo_core.optim import AdamWConfig
    from olmo_core.train import Duration, Trainer, TrainerConfig
    from olmo_core.train.callbacks import CheckpointerCallback
    from olmo_core.train.train_module import TransformerTrainModuleConfig
except ImportError as missing:
    print(f"can't run: {missing}")
    sys.exit(3)

KILLED_AT, RESTARTS = 4, 3


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        np.random.default_rng(0).integers(2, 250, 4096).astype(np.uint16).tofile(Path(folder, "tokens.npy"))
        died = in_a_process(train_until_killed, folder)
        print(f"The first process was killed in the asynchronous save of step {KILLED_AT}: status {died}.")
        ended = [in_a_process(restart, folder) for _ in range(RESTARTS)]
        print(f"The folder after {RESTARTS} restarts:")
        for path in sorted(Path(folder, "run").glob("step*")):
            print(f"  {path.name}: {', '.join(sorted(name.name for name in path.iterdir()))}")
    return 1 if died == -signal.SIGKILL and ended == [STUCK] * RESTARTS else 0


def in_a_process(work: Any, folder: str) -> int | None:
    """Its exit status, which is negative for a signal."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=(folder,))
    process.start()
    process.join()
    return process.exitcode


STUCK = 20
"""The exit status of a restart that could not save the step at which the run had been killed."""


def train_until_killed(folder: str) -> None:
    make = tempfile.NamedTemporaryFile

    def killed_in_the_directory(*arguments: Any, **options: Any) -> Any:
        if Path(options.get("dir") or "").name == f"step{KILLED_AT}":
            os.kill(os.getpid(), signal.SIGKILL)
        return make(*arguments, **options)

    tempfile.NamedTemporaryFile = killed_in_the_directory
    trainer(folder).fit()


def restart(folder: str) -> None:
    run = trainer(folder)
    run.maybe_load_checkpoint()
    print(f"A restart resumes from step {run.global_step}, ", end="")
    try:
        run.fit()
    except FileExistsError as error:
        print(f"and ends at step {run.global_step}: FileExistsError: {os.path.relpath(str(error), folder)}", flush=True)
        sys.exit(STUCK)
    print("and trains to its end.", flush=True)


def trainer(folder: str) -> Trainer:
    quiet()
    model = TransformerConfig.llama_like(d_model=32, vocab_size=256, n_layers=2, n_heads=2).build(init_device="cpu")
    module = TransformerTrainModuleConfig(
        rank_microbatch_size=32, max_sequence_length=32, optim=AdamWConfig(lr=1e-2)
    ).build(model, device=torch.device("cpu"))
    tokenizer = TokenizerConfig(vocab_size=256, eos_token_id=0, pad_token_id=1)
    dataset = NumpyFSLDatasetConfig(
        paths=[f"{folder}/tokens.npy"], sequence_length=32, tokenizer=tokenizer, work_dir=f"{folder}/work"
    ).build()
    loader = NumpyDataLoaderConfig(global_batch_size=64, seed=7, num_workers=0).build(dataset)
    saver = CheckpointerCallback(save_interval=2, save_async=True)
    config = TrainerConfig(save_folder=f"{folder}/run", metrics_collect_interval=1, max_duration=Duration.steps(8))
    built: Trainer = config.with_callback("checkpointer", saver).build(module, loader)
    return built


def quiet() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)


if __name__ == "__main__":
    sys.exit(main())
