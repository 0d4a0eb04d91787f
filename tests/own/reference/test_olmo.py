"""OLMo-core's own trainer, with its model, loader and optimizer, resumes our checkpoints, and we resume its.

For the tox environment `olmo`, which installs ai2-olmo-core; skipped elsewhere.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("olmo_core", reason="runs in the tox environment olmo")

import numpy as np
from olmo_core.data import NumpyDataLoaderConfig, NumpyFSLDatasetConfig, TokenizerConfig
from olmo_core.nn.transformer import TransformerConfig
from olmo_core.optim import AdamWConfig, CosWithWarmup
from olmo_core.train import Duration, Trainer, TrainerConfig
from olmo_core.train.callbacks import CheckpointerCallback
from olmo_core.train.train_module import TransformerTrainModuleConfig
from olmo_core.utils import seed_all

from forge_ref import TrainingRun


def trainer(folder: Path, steps: int, seed: int = 0) -> Trainer:
    """The smallest one there is; a checkpoint after the last step."""
    seed_all(seed)
    model = TransformerConfig.llama_like(d_model=32, vocab_size=256, n_layers=2, n_heads=2).build(init_device="cpu")
    module = TransformerTrainModuleConfig(
        rank_microbatch_size=32,
        max_sequence_length=32,
        optim=AdamWConfig(lr=1e-2),
        scheduler=CosWithWarmup(warmup_steps=2, t_max=100),
    ).build(model, device=torch.device("cpu"))
    tokenizer = TokenizerConfig(vocab_size=256, eos_token_id=0, pad_token_id=1)
    dataset = NumpyFSLDatasetConfig(
        paths=[str(tokens(folder.parent))],
        sequence_length=32,
        tokenizer=tokenizer,
        work_dir=str(folder.parent / "work"),
    ).build()
    loader = NumpyDataLoaderConfig(global_batch_size=64, seed=7, num_workers=0).build(dataset)
    saver = CheckpointerCallback(save_interval=1000, pre_train_checkpoint=False, save_async=False)
    config = TrainerConfig(save_folder=str(folder), metrics_collect_interval=1, max_duration=Duration.steps(steps))
    built: Trainer = config.with_callback("checkpointer", saver).build(module, loader)
    return built


def tokens(folder: Path) -> Path:
    path = folder / "tokens.npy"
    np.random.default_rng(0).integers(2, 250, 4096).astype(np.uint16).tofile(path)
    return path


def run_of(one: Trainer, folder: Path) -> TrainingRun:
    """A run of ours over the model, the optimizer and the loader of a trainer."""
    run = TrainingRun(folder, one.train_module.model, one.train_module.optim, dataloader=one.data_loader)
    run.global_step, run.tokens_seen = one.global_step, one.global_train_tokens_seen
    return run


def state(one: Trainer) -> list[Any]:
    module, streams = one.train_module, one.state_dict()["rng"]
    torch_stream = streams["torch"]["state"]
    return [module.model.state_dict(), module.optim.state_dict(), one.data_loader.state_dict(), torch_stream]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_the_trainer_resumes_ours_and_goes_on_as_if_it_were_its_own(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", steps=8)
    whole.fit()
    first = trainer(tmp_path / "first", steps=4)
    first.fit()
    run_of(first, tmp_path / "ours").save_checkpoint()
    resumed = trainer(tmp_path / "ours", steps=8, seed=9)
    assert resumed.maybe_load_checkpoint()
    assert (resumed.global_step, resumed.global_train_tokens_seen) == (4, first.global_train_tokens_seen)
    assert same(state(resumed), state(first))
    resumed = trainer(tmp_path / "ours", steps=8, seed=9)
    resumed.fit()
    assert same(state(resumed)[:2], state(whole)[:2])


def test_we_resume_the_trainers(tmp_path: Path) -> None:
    first = trainer(tmp_path / "theirs", steps=4)
    first.fit()
    before = state(first)
    other = trainer(tmp_path / "unused", steps=4, seed=9)
    run = run_of(other, tmp_path / "theirs")
    assert run.load_checkpoint()
    assert (run.global_step, run.tokens_seen, run.extra) == (4, first.global_train_tokens_seen, {})
    assert same(state(other), before)
