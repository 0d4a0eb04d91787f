"""Checkpoints of OLMo-core's trainer and ours are interchangeable: optimizer state, train state, random streams."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint import save as dcp_save
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)

from forge_conformance.runs.cases import case
from forge_ref import TrainingRun, marker, trainer_state
from forge_ref.state import build_train_state, get_rng_state, set_rng_state

HERE = Path("rank0.pt")


class Loader:
    """Has the state of OLMo-core's loader as far as the trainer looks into it."""

    def __init__(self) -> None:
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": 3, "batches_processed": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["batches_processed"]


def model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))


def optimizer_of(net: torch.nn.Module, in_two_groups: bool = False) -> torch.optim.Optimizer:
    parameters = list(net.parameters())
    if not in_two_groups:
        return torch.optim.AdamW(parameters, lr=0.1)
    groups = [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.2, "weight_decay": 0.0}, {"params": []}]
    return torch.optim.AdamW(groups, lr=0.1)


def trained(in_two_groups: bool = False, steps: int = 2) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    net = model()
    optimizer = optimizer_of(net, in_two_groups)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(3, 4)).pow(2).sum().backward()
        optimizer.step()
    return net, optimizer


def as_trainers(folder: Path, net: torch.nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """A checkpoint of step 6 with the keys of the trainer's, by stock torch."""
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    shards = {
        "model": get_model_state_dict(net),
        "optim": get_optimizer_state_dict(net, optimizer, options=options),
    }
    dcp_save(shards, checkpoint_id=folder / "step6" / "model_and_optim")
    (folder / "step6" / "train").mkdir()
    torch.save(state, folder / "step6" / "train" / "rank0.pt")
    (folder / "step6" / ".metadata.json").write_text('{"ephemeral": false, "version": "3.0.0"}')


def trainers_state(**more: Any) -> dict[str, Any]:
    streams = get_rng_state()
    return {
        "global_step": 6,
        "global_train_tokens_seen": 60,
        "global_train_petaflops": 0.5,
        "max_steps": 100,
        "data_loader": {"epoch": 3, "batches_processed": 6},
        "epoch": 3,
        "world_size": 1,
        "rng": {
            "python": {"version": (3, 11), "state": streams["python"]},
            "torch": {"version": (2, 13), "state": streams["torch_cpu"]},
            "cuda": None,
        },
        "callbacks": {"speed_monitor": {}},
        **more,
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.fixture(autouse=True)
def streams_as_before() -> Iterator[None]:
    before = get_rng_state()
    yield
    set_rng_state(before)


@pytest.mark.parametrize("in_two_groups", [False, True])
def test_a_trainers_checkpoint_is_resumed_bit_for_bit(tmp_path: Path, in_two_groups: bool) -> None:
    net, optimizer = trained(in_two_groups)
    torch.manual_seed(5)
    random.seed(5)
    as_trainers(tmp_path, net, optimizer, trainers_state())
    drawn = (torch.rand(3), random.random())
    other, loader = model(), Loader()
    resumed = optimizer_of(other, in_two_groups)
    run = TrainingRun(tmp_path, other, resumed, dataloader=loader)
    assert run.load_checkpoint()
    assert (run.global_step, run.tokens_seen, run.extra, loader.position) == (6, 60, {}, 6)
    assert same(dict(other.state_dict()), dict(net.state_dict()))
    assert same(resumed.state_dict(), optimizer.state_dict())
    assert torch.equal(torch.rand(3), drawn[0]) and random.random() == drawn[1]


def test_what_has_no_counterpart_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net, optimizer = trained()
    as_trainers(tmp_path, net, optimizer, trainers_state())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    assert TrainingRun(tmp_path, net, optimizer, scheduler).load_checkpoint()
    assert "left out callbacks, epoch, global_train_petaflops, max_steps, which have no counterpart" in caplog.text
    assert "rank0.pt has no state of a scheduler; this run's scheduler stays as it is" in caplog.text


def test_one_group_is_not_filled_from_parameters_with_different_settings(tmp_path: Path) -> None:
    net, optimizer = trained(in_two_groups=True)
    as_trainers(tmp_path, net, optimizer, trainers_state())
    other = model()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    run = TrainingRun(tmp_path, other, optimizer_of(other))
    with pytest.raises(ValueError, match=r"another lr for 0\.weight than for 1\.weight, and this optimizer has both"):
        run.load_checkpoint()
    assert same(dict(other.state_dict()), before)


def test_a_parameter_that_was_not_saved_is_missed(tmp_path: Path) -> None:
    net, _ = trained()
    optimizer = torch.optim.AdamW(list(net.parameters())[:-1])
    optimizer.zero_grad()
    as_trainers(tmp_path, net, optimizer, trainers_state())
    other = model()
    with pytest.raises(ValueError, match="has no optimizer group of exactly"):
        TrainingRun(tmp_path, other, optimizer_of(other)).load_checkpoint()


def test_the_folder_that_olmo_core_wrote_needs_nothing_of_it_to_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case("golden/olmo").put_into(tmp_path)
    found, _ = marker.read(tmp_path / "step4" / "model_and_optim" / ".metadata", None)
    assert "optim.param_groups.0.weight.lr" in found.state_dict_metadata
    assert "unpickled in full" not in caplog.text


def test_a_checkpoint_of_ours_has_what_the_trainer_reads(tmp_path: Path) -> None:
    net, optimizer = trained()
    run = TrainingRun(tmp_path, net, optimizer, dataloader=Loader())
    run.global_step, run.tokens_seen = 7, 70
    path = run.save_checkpoint()
    saved = torch.load(path / "train" / "rank0.pt", weights_only=True)
    assert (saved["global_step"], saved["global_train_tokens_seen"], saved["epoch"], saved["world_size"]) == (
        7,
        70,
        3,
        1,
    )
    assert saved["data_loader"] == {"epoch": 3, "batches_processed": 0}
    assert saved["rng"]["python"]["state"] == random.getstate()
    assert torch.equal(saved["rng"]["torch"]["state"], torch.get_rng_state())
    assert isinstance(saved["rng"]["torch"]["version"], tuple)
    names = FileSystemReader(path / "model_and_optim").read_metadata().state_dict_metadata
    assert {"optim.state.0.weight.exp_avg", "optim.param_groups.0.params", "optim.param_groups.0.lr"} <= names.keys()


def test_an_extra_with_the_trainers_words_comes_back_as_it_was(tmp_path: Path) -> None:
    extra = {"epoch": "the third", "data_loader": [1], "global_step": None, "callbacks": 2}
    net, optimizer = trained()
    run = TrainingRun(tmp_path, net, optimizer)
    run.extra, run.global_step = dict(extra), 7
    run.save_checkpoint()
    again = TrainingRun(tmp_path, net, optimizer)
    assert again.load_checkpoint()
    assert (again.global_step, again.extra) == (7, extra)


def test_an_extra_with_the_key_of_the_list_is_refused() -> None:
    with pytest.raises(ValueError, match="extra has the reserved key 'for_trainer'"):
        trainer_state.with_trainers(build_train_state(1, 1, extra={"for_trainer": 1}), 1)


def test_a_train_state_of_ours_is_the_same_after_the_way_there_and_back() -> None:
    train_state = build_train_state(3, 30, dataloader=Loader(), extra={"loss": 0.5})
    back = trainer_state.without_trainers(trainer_state.with_trainers(train_state, 2), HERE)
    assert same(back, train_state)


def test_the_step_is_read_from_whichever_word_is_there() -> None:
    saved = trainer_state.with_trainers(build_train_state(3, 30), 1)
    del saved["step"]
    assert trainer_state.without_trainers(saved, HERE)["step"] == 3
    del saved["global_step"]
    assert "step" not in trainer_state.without_trainers(saved, HERE)


def test_a_train_state_without_the_trainers_words_is_left_as_it_is() -> None:
    assert trainer_state.without_trainers({"step": 3, "epoch": 2, "rng": "none"}, HERE) == {
        "step": 3,
        "epoch": 2,
        "rng": "none",
    }
