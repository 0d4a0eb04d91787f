"""The engine: an image that is used again writes nothing stale, and every byte that is read has been verified."""

import errno
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from forge_ref import DamagedError, storage
from forge_ref.engine import containers, flush, image, reading, table
from forge_ref.engine.leaves import flatten
from forge_ref.engine.writing import ShardWriter
from forge_ref.pieces import Piece

Same = Callable[[Any, Any], bool]
State = dict[str, Any]


def _stock(state: State, folder: Path) -> State:
    """What stock DCP reads, into tensors of the same types and shapes."""
    into = {
        name: torch.zeros_like(value, requires_grad=False) if isinstance(value, torch.Tensor) else None
        for name, value in state["model"].items()
    }
    read = {"model": into}
    dcp_load(read, checkpoint_id=folder, no_dist=True)
    return read


CHANGES: dict[str, Callable[[State], object]] = {
    "nothing": lambda model: None,
    "values": lambda model: model["weight"].add_(1),
    "another tensor under a name": lambda model: model.update(weight=torch.full((4, 3), 9.0)),
    "its type": lambda model: model.update(weight=model["weight"].to(torch.bfloat16)),
    "its shape": lambda model: model.update(weight=torch.ones(3, 4)),
    "whether it requires gradients": lambda model: model.update(weight=model["weight"].clone().requires_grad_()),
    "how it lies in memory": lambda model: model.update(weight=torch.arange(12.0).view(3, 4).t()),
    "a new tensor": lambda model: model.update(more=torch.full((5,), 3.0)),
    "one tensor less": lambda model: model.pop("bias"),
    "their order": lambda model: model.update(weight=model.pop("weight")),
    "a plain value": lambda model: model.update(note=model["note"] + 0.5),
    "the type of a plain value": lambda model: model.update(note=True),
    "the size of a plain value": lambda model: model.update(note="x" * 5000),
    "a tensor in the place of a plain value": lambda model: model.update(note=torch.ones(2)),
}


@pytest.mark.parametrize("is_held", [False, True], ids=["at once", "from a copy"])
@pytest.mark.parametrize("change", CHANGES)
def test_nothing_stale_is_written_whatever_has_changed(tmp_path: Path, equal: Same, change: str, is_held: bool) -> None:
    writer, model = ShardWriter(), {"weight": torch.randn(4, 3), "bias": torch.randn(3), "note": 1.0}
    for folder, alter in ((tmp_path / "first", lambda _: None), (tmp_path / "second", CHANGES[change])):
        alter(model)
        leaves = flatten({"model": model})
        seal = writer.write(writer.hold(leaves) if is_held else leaves, folder)
        plain = {name: value.detach() if isinstance(value, torch.Tensor) else value for name, value in model.items()}
        assert equal(storage.open_shards(folder, seal).read(lambda _: True), {"model": plain})
        assert equal(storage.open_shards(folder, None).read(lambda _: True), {"model": plain})
        assert equal(_stock({"model": model}, folder), {"model": plain})


def test_a_copy_for_the_flush_is_of_the_time_of_the_call(tmp_path: Path) -> None:
    writer, weight = ShardWriter(), torch.zeros(1000)
    for number in range(3):
        weight.fill_(number)
        held = writer.hold(flatten({"model": {"weight": weight}}))
        weight.fill_(-1)
        writer.write(held, tmp_path / str(number))
        read = storage.open_shards(tmp_path / str(number), None).read(lambda _: True)
        assert torch.equal(read["model"]["weight"], torch.full((1000,), float(number)))


def test_the_image_of_an_unchanged_state_is_used_again_and_of_a_changed_one_made_anew(tmp_path: Path) -> None:
    writer, weight = ShardWriter(), torch.zeros(1000)
    images = []
    for number, value in enumerate((weight, weight.clone(), weight.double())):
        writer.write(flatten({"model": {"weight": value}}), tmp_path / str(number))
        images.append(writer._image)
    assert images[0] is images[1] is not images[2]


def test_a_file_that_is_copied_while_it_is_written_is_whole(
    tmp_path: Path, equal: Same, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "_WINDOW", 2 * flush.PAGE)
    writer, state = ShardWriter(), {"model": {f"p{n}": torch.randn(n * 97 % 3001) for n in range(60)}}
    for number in range(2):
        for value in state["model"].values():
            value.add_(number)
        seal = writer.write(flatten(state), tmp_path / str(number))
        assert equal(storage.open_shards(tmp_path / str(number), seal).read(lambda _: True), state)
    assert writer._image is not None
    assert len(list(writer._image.windows())) > 20


def test_a_save_after_one_that_failed_is_whole(tmp_path: Path, equal: Same, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, state = ShardWriter(), {"model": {"weight": torch.ones(3)}}

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no space")

    for _ in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(flush, "write", refuse)
            with pytest.raises(OSError, match="no space"):
                writer.write(flatten(state), tmp_path / "failed")
        writer.write(flatten(state), tmp_path / "whole")
        assert equal(storage.open_shards(tmp_path / "whole", None).read(lambda _: True), state)


dtypes = st.sampled_from(
    [
        torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.uint8, torch.int64, torch.bool,
        torch.complex64, torch.uint16, torch.uint32, torch.float8_e4m3fn, torch.float8_e5m2,
    ]
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(dtypes, st.lists(st.integers(0, 5), max_size=4))
def test_a_container_is_what_torch_saves(tmp_path_factory: pytest.TempPathFactory, dtype: Any, size: list[int]) -> None:
    file = tmp_path_factory.mktemp("container") / "archive"
    tensor = torch.randint(0, 2, size).to(dtype)
    prefix, suffix = containers.container(dtype, tensor.shape)
    file.write_bytes(prefix + bytes(tensor.untyped_storage()) + suffix)
    loaded = torch.load(file, weights_only=True)
    assert (loaded.dtype, loaded.shape) == (dtype, tensor.shape)
    assert bytes(loaded.untyped_storage()) == bytes(tensor.untyped_storage())
    assert torch.serialization.get_crc32_options()


@pytest.mark.parametrize("refused", ["to open", "to write", "nothing"])
def test_where_direct_writes_are_refused_the_same_is_written_buffered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """The system is real; what it refuses is what some network file systems refuse."""
    real_open, real_write = os.open, os.pwrite

    def open_(path: Any, flags: int, *more: Any) -> int:
        if refused == "to open" and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "direct")
        return real_open(path, flags, *more)

    def pwrite(descriptor: int, content: Any, offset: int) -> int:
        import fcntl

        if refused == "to write" and offset and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "direct")
        return real_write(descriptor, content, offset)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(flush, "_CHUNK", flush.PAGE)
    memory = memoryview(flush.pages(5 * flush.PAGE))
    memory[:] = os.urandom(len(memory))
    flush.write(tmp_path / "file", [memory[: 3 * flush.PAGE], memory[3 * flush.PAGE :]])
    assert (tmp_path / "file").read_bytes() == memory


def test_each_flipped_bit_of_a_value_is_an_error_that_names_file_and_value(tmp_path: Path) -> None:
    large, whole = torch.randn(reading._LARGE // 4 + 3), torch.arange(12.0).view(4, 3)
    state = {"model": {"large": large, "small": torch.randn(7), "pieced": whole, "value": "text"}}
    seal = storage.write(state, tmp_path)
    file = tmp_path / "__0_0.distcp"
    content = file.read_bytes()
    entries = table.entries(table.read(os.open(file, os.O_RDONLY), len(content))[0])
    place = Piece(whole.shape, torch.Size([1, 0]), torch.empty(2, 3))
    found = []
    for entry in entries.values():
        damaged = bytearray(content)
        damaged[entry.start + entry.size // 2] ^= 0x10
        file.write_bytes(damaged)
        with pytest.raises(
            DamagedError, match=rf"{file} is damaged, or of another save, in model\.\w+: its hash"
        ) as error:
            shards = storage.open_shards(tmp_path, seal)
            shards.read(lambda _: True, lambda keys: place if keys == ("model", "pieced") else None)
        found.append(str(error.value).partition(" in model.")[2].partition(":")[0])
    assert sorted(found) == sorted(state["model"])


@pytest.mark.parametrize("width", [5, reading._LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    ("offset", "size"),
    [((1, 0), (2, 1.0)), ((2, 0), (1, 1.0)), ((1, 1), (2, 0.5))],
    ids=["as it was saved", "some of its rows", "some of its columns"],
)
def test_of_a_saved_piece_what_is_wanted_is_read_and_verified(
    tmp_path: Path, width: int, offset: tuple[int, int], size: tuple[int, float]
) -> None:
    whole = torch.arange(4.0 * width).view(4, width)
    seal = storage.write({"model": {"weight": Piece(whole.shape, torch.Size([1, 0]), whole[1:3].clone())}}, tmp_path)
    rows, columns = slice(offset[0], offset[0] + size[0]), slice(offset[1], offset[1] + int(size[1] * width))
    expected = whole[rows, columns]
    place = Piece(whole.shape, torch.Size(offset), torch.empty_like(expected))
    tracemalloc.start()
    read = storage.open_shards(tmp_path, seal).read(lambda _: True, lambda _: place)["model"]["weight"]
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert torch.equal(read.values, expected)
    is_between = peak_bytes > whole.nbytes // 2  # memory of Python's, through which the values went
    assert width == 5 or is_between == (expected.shape != (2, width))
    file = tmp_path / "__0_0.distcp"
    damaged = bytearray(file.read_bytes())
    damaged[damaged.index(whole[1].numpy().tobytes())] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(DamagedError, match=r"in model\.weight: its hash is not the one"):
        storage.open_shards(tmp_path, seal).read(lambda _: True, lambda _: place)


@pytest.mark.parametrize("where", ["end", "magic", "entry"])
def test_a_table_that_is_not_the_saved_one_is_an_error_that_names_the_file(tmp_path: Path, where: str) -> None:
    seal = storage.write({"model": {"weight": torch.ones(3)}}, tmp_path)
    file = tmp_path / "__0_0.distcp"
    damaged = bytearray(file.read_bytes())
    offset = int.from_bytes(damaged[-16:-8], "little")
    damaged[{"end": -1, "magic": -20, "entry": offset + 30}[where]] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(DamagedError, match=rf"{file} is damaged, or of another save: .* hashes at its end"):
        storage.open_shards(tmp_path, seal).read(lambda _: True)


def test_a_file_of_shards_of_another_save_is_refused(tmp_path: Path) -> None:
    for number in (1, 2):
        seal = storage.write({"model": {"weight": torch.full((3,), float(number))}}, tmp_path / str(number))
    (tmp_path / "1" / "__0_0.distcp").rename(tmp_path / "2" / "__0_0.distcp")
    with pytest.raises(DamagedError, match=r"2/__0_0\.distcp is damaged, or of another save"):
        storage.open_shards(tmp_path / "2", seal).read(lambda _: True)


def test_what_is_read_is_shared_out_and_an_error_of_one_thread_is_raised() -> None:
    done: list[int] = []

    def fail(_: object) -> None:
        raise DamagedError("here")

    jobs = [(1 << 24, lambda _, number=number: done.append(number)) for number in range(20)]
    reading._share_out(jobs)
    assert sorted(done) == list(range(20))
    with pytest.raises(DamagedError, match="here"):
        reading._share_out([*jobs, (1 << 25, fail)])


def test_two_values_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two values have the name a\.b; rename one"):
        flatten({"a": {"b": 1}, "a.b": 2})
