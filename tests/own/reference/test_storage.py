"""Shards: stock DCP reads ours, we read stock's, and damage is told from a missing checksum."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from forge_ref import AsyncCheckpointer, AsyncCheckpointMode, CheckpointConfig, CheckpointManager, DamagedError, storage
from forge_ref.pieces import Piece

Start = Callable[..., Any]
Same = Callable[[Any, Any], bool]


def test_stock_dcp_reads_what_the_manager_writes(start: Start, equal: Same, tmp_path: Path) -> None:
    run = start()
    run.train(2)
    run.save(2)
    dcp_to_torch_save(run.folder / "step_2", tmp_path / "all.pt")
    read = torch.load(tmp_path / "all.pt", weights_only=True)
    assert equal(read["model"], dict(run.model.state_dict()))
    assert equal(read["optimizer"]["state"], get_optimizer_state_dict(run.model, run.optimizer)["state"])
    into = {"model": {name: torch.empty_like(value) for name, value in run.model.state_dict().items()}}
    dcp_load(into, checkpoint_id=run.folder / "step_2", no_dist=True)
    assert equal(into["model"], dict(run.model.state_dict()))


def test_the_marker_does_not_say_where_it_was_written(start: Start) -> None:
    run = start()
    run.save(0)
    assert str(run.folder).encode() not in (run.folder / "step_0" / ".metadata").read_bytes()


def test_values_of_every_kind_come_back(equal: Same, tmp_path: Path) -> None:
    tensors = {
        "empty": torch.zeros(3, 0),
        "scalar": torch.tensor(3.5),
        "transposed": torch.arange(12.0).view(3, 4).t(),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "view": torch.arange(100)[10:20],
        "expanded": torch.ones(1).expand(4),
        "conjugated": torch.randn(3, dtype=torch.complex64).conj(),
        **{str(dtype): torch.ones(3).to(dtype) for dtype in (torch.bfloat16, torch.float64, torch.bool, torch.uint16)},
    }
    values = {"list": [1, {"inner": torch.ones(2)}], "tuple": (1, 2), "none": None, "set": {1}, "module": torch.nn.ReLU}
    storage.write({"model": tensors, "optimizer": values}, tmp_path)
    read = storage.open_shards(tmp_path, None).read(lambda _: True)
    assert equal(read, {"model": tensors, "optimizer": values})


def test_of_a_tensor_with_a_place_only_that_is_read(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(4, 3)
    storage.write({"model": {"weight": whole, "other": whole}}, tmp_path)
    place = Piece(whole.shape, torch.Size([1, 0]), torch.empty(2, 3))
    shards = storage.open_shards(tmp_path, None)
    read = shards.read(lambda _: True, lambda keys: place if keys == ("model", "weight") else None)
    assert torch.equal(read["model"]["weight"].values, whole[1:3])
    assert torch.equal(read["model"]["other"], whole)
    shards.metadata.state_dict_metadata["model.weight"].chunks.clear()
    with pytest.raises(DamagedError, match=r"lacks values of model\.weight"):
        shards.read(lambda _: True)


def test_the_checkpointer_alone_saves_what_it_was_given(tmp_path: Path) -> None:
    checkpointer, value = AsyncCheckpointer(AsyncCheckpointMode.async_), torch.ones(2)
    checkpointer.save({"model": {"value": value, "list": [value]}}, str(tmp_path))
    value.zero_()
    assert checkpointer.is_pending
    checkpointer.wait()
    assert not checkpointer.is_pending
    into = {"model": {"value": torch.zeros(2), "list": [torch.zeros(2)]}}
    dcp_load(into, checkpoint_id=tmp_path, no_dist=True)
    assert torch.equal(into["model"]["value"], torch.ones(2))
    (tmp_path / "occupied").write_text("a file")
    checkpointer.save({"model": {"value": value}}, str(tmp_path / "occupied"))
    with pytest.raises(OSError, match="occupied"):
        checkpointer.wait()
    checkpointer.wait()


class _Stateful(torch.nn.Linear):
    """A layer with extra state, which DCP does not write when it is empty."""

    def __init__(self, extra: dict[str, int]) -> None:
        super().__init__(2, 2)
        self.extra = extra

    def get_extra_state(self) -> dict[str, int]:
        return self.extra

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.extra = state


@pytest.mark.parametrize("extra", [{}, {"scale": 3}])
def test_extra_state_of_modules_comes_back(tmp_path: Path, extra: dict[str, int]) -> None:
    saved, loaded = _Stateful(extra), _Stateful({})
    for model in (saved, loaded):
        config = CheckpointConfig(dir=str(tmp_path))
        manager = CheckpointManager(config, model, torch.optim.SGD(model.parameters()))
        manager.save(1) if model is saved else manager.load()
    assert loaded.extra == extra
    assert torch.equal(loaded.weight, saved.weight)


def test_a_folder_of_another_dcp_user_loads_its_weights(start: Start, equal: Same, tmp_path: Path, caplog: Any) -> None:
    other, run = start(), start(seed=1)
    dcp_save({"model": other.model.state_dict()}, checkpoint_id=tmp_path / "weights", no_dist=True)
    before = run.picture()
    assert run.load(tmp_path / "weights") == (0, 0, {})
    assert run.manager.peek_saved_step(str(tmp_path / "weights")) == 0
    after = run.picture()
    assert equal(after.pop("parameters"), dict(other.model.state_dict()))
    before.pop("parameters")
    assert equal(after, before)
    assert "without optimizer state" in caplog.text


def test_moments_that_were_saved_by_position_load(start: Start, equal: Same, tmp_path: Path) -> None:
    other, run = start(), start(seed=1)
    other.train(3)
    state = {"model": other.model.state_dict(), "optimizer": other.optimizer.state_dict()}
    dcp_save(state, checkpoint_id=tmp_path / "raw", no_dist=True)
    run.load(tmp_path / "raw")
    assert equal(run.picture()["moments"], other.picture()["moments"])


def test_a_folder_under_other_keys_is_refused_by_name(start: Start, tmp_path: Path) -> None:
    run = start()
    dcp_save({"net": run.model.state_dict()}, checkpoint_id=tmp_path / "other", no_dist=True)
    with pytest.raises(ValueError, match=r"no model and no optimizer, only net"):
        run.load(tmp_path / "other")


def test_a_checkpoint_of_nothing_is_refused_in_a_whole_sentence(start: Start, tmp_path: Path) -> None:
    dcp_save({}, checkpoint_id=tmp_path / "empty", no_dist=True)
    with pytest.raises(ValueError, match="has no model and no optimizer, and its marker lists nothing at all; exclude"):
        start().load(tmp_path / "empty")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_a_save_and_a_load_give_no_warning(start: Start, mode: str) -> None:
    run = start(async_mode=mode)
    run.train(1)
    run.save(1)
    assert run.load()[0] == 1


def test_a_checkpoint_of_another_model_is_refused_before_anything_changes(
    start: Start, equal: Same, tmp_path: Path
) -> None:
    run = start()
    state = {**run.model.state_dict(), "0.weight": torch.zeros(5, 4)}
    dcp_save({"model": state}, checkpoint_id=tmp_path / "wide", no_dist=True)
    before = run.picture()
    with pytest.raises(ValueError, match=r"0.weight: saved \(5, 4\), model \(8, 4\)"):
        run.load(tmp_path / "wide", exclude_keys=["optimizer"])
    state.pop("0.weight")
    dcp_save({"model": state}, checkpoint_id=tmp_path / "narrow", no_dist=True)
    with pytest.raises(ValueError, match=r"lacks 0\.weight"):
        run.load(tmp_path / "narrow", exclude_keys=["optimizer"])
    assert equal(run.picture(), before)


@contextmanager
def _without_checksums() -> Iterator[None]:
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(True)


def test_a_checkpoint_without_checksums_is_no_damaged_one(start: Start) -> None:
    run, resumed = start(), start(seed=1)
    with _without_checksums():
        run.save(3)
    losses = run.train(2)
    assert resumed.load() == (3, 30, {})
    assert resumed.train(2) == losses


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "train_state.pt"])
@pytest.mark.parametrize("how", ["flipped", "truncated"])
def test_damage_is_an_error_that_names_the_file(start: Start, equal: Same, name: str, how: str) -> None:
    run, resumed = start(), start(seed=1)
    run.train(1)
    run.save(1)
    file = run.folder / "step_1" / name
    content = bytearray(file.read_bytes())
    if how == "flipped":
        content[content.index(_bytes_in(run)[name])] ^= 0x10  # archives are padded with bytes that do not matter
    else:
        del content[len(content) // 2 :]
    file.write_bytes(content)
    before = resumed.picture()
    with pytest.raises(DamagedError, match=str(file)):
        resumed.load()
    assert equal(resumed.picture(), before)


def _bytes_in(run: Any) -> dict[str, bytes]:
    """For each file, bytes that are sure to be in it."""
    weights = bytes(run.model[0].weight.untyped_storage())
    return {"__0_0.distcp": weights, ".metadata": b"model.0.weight", "train_state.pt": b"tokens_seen"}


def test_metadata_json_says_what_people_and_retention_ask(start: Start) -> None:
    run = start()
    run.save(4, extra={"vlm_freeze": [{"module": "a", "frozen": True}]})
    run.save(5)
    said = json.loads((run.folder / "step_4" / "metadata.json").read_text())
    assert (said["step"], said["tokens_seen"], said["milestone"]) == (4, 40, False)
    assert said["vlm_freeze"] == [{"module": "a", "frozen": True}]
    assert "vlm_freeze" not in json.loads((run.folder / "step_5" / "metadata.json").read_text())


def test_loading_trusted_plain_state_warns_of_nothing(start: Start, caplog: Any) -> None:
    run = start()
    run.save(1)
    caplog.set_level(logging.WARNING)
    start(seed=1).load()
    assert [record for record in caplog.records if record.name == "forge_ref"] == []


def test_shards_that_are_missing_are_named(start: Start, equal: Same) -> None:
    start().save(1)
    run = start(seed=1)
    file = run.folder / "step_1" / "__0_0.distcp"
    file.unlink()
    before = run.picture()
    with pytest.raises(DamagedError, match=rf"^{file} is missing; resume from another checkpoint$"):
        run.load()
    assert equal(run.picture(), before)


@pytest.mark.parametrize("name", [".metadata", "train_state.pt"])
def test_a_file_that_has_grown_is_told_with_both_sizes(start: Start, name: str) -> None:
    run = start()
    run.save(1)
    file = run.folder / "step_1" / name
    size = len(content := file.read_bytes())
    file.write_bytes(content + b"more")
    with pytest.raises(DamagedError, match=f"{file} .* has {size + 4:,} bytes, and {size:,} were saved"):
        start(seed=1).load()
