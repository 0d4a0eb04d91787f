"""What binds the files of a checkpoint, and the door that they are opened by; the files are real."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_foreign, names
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from forge_ref import (
    DamagedError,
    DynamicCheckpointWindow,
    archive,
    errors,
    files,
    layout,
    manifest,
    marker,
    messages,
    retire,
    storage,
)
from forge_ref.layout import StepDir
from forge_ref.manifest import Seal

Start = Callable[..., Any]


def test_metadata_says_again_what_was_written(tmp_path: Path) -> None:
    file = tmp_path / "metadata.json"
    content = {"step": 3, "rate": 0.1, "vlm_freeze": [{"module": "naïve\x1b", "frozen": True}], "none": None}
    seals = {".metadata": Seal(812, "0f3ac2d1"), "train_state.pt": Seal.of(b"x")}
    file.write_bytes(manifest.written(content, seals))
    read = manifest.read(file)
    assert manifest.seals(read) == seals
    assert {key: read[key] for key in content} == content
    file.write_bytes(manifest.written(content, {}))
    assert manifest.read(file) == content


def test_what_other_managers_write_is_read_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "metadata.json"
    for content in ({"step": 3}, {"files": ["a", "b"]}, {"files": {"a": 3, "b": {"size": 1}}}):
        file.write_text(json.dumps(content))
        assert manifest.read(file) == content
        assert manifest.seals(content) == {}


@pytest.mark.parametrize("without", ["step", "milestone", "metadata_xxh3"])
def test_metadata_that_lacks_something_is_damaged(tmp_path: Path, without: str) -> None:
    file = tmp_path / "metadata.json"
    file.write_bytes(manifest.written({"step": 3, "milestone": True}, {".metadata": Seal.of(b"x")}))
    content = json.loads(file.read_text())
    del content[without]
    file.write_text(json.dumps(content))
    with pytest.raises(DamagedError, match=r"metadata\.json is damaged: its content has hash"):
        manifest.read(file)


def test_metadata_that_is_too_deep_or_too_large_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "metadata.json"
    file.write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"metadata\.json: "):
        manifest.read(file)
    os.truncate(file, manifest.LIMIT + 1)
    with pytest.raises(DamagedError, match=r"metadata\.json is damaged, or of another save: it has 67,108,865 bytes"):
        manifest.read(file)
    with pytest.raises(ValueError, match="the metadata has 67,"):
        manifest.written({"note": "x" * manifest.LIMIT}, {})


def test_metadata_of_another_save_is_the_file_that_is_blamed(start: Start) -> None:
    run = start()
    for step in (1, 2):
        run.train(1)
        run.save(step)
    one, two = run.folder / "step_1", run.folder / "step_2"
    (two / "metadata.json").write_bytes((one / "metadata.json").read_bytes())
    for ask in (start(seed=1).load, start(seed=1).manager.peek_saved_step):
        with pytest.raises(DamagedError, match=r"step_2/metadata\.json belongs to another save"):
            ask()


def test_metadata_of_another_manager_that_cannot_be_parsed_is_a_warning(start: Start, caplog: Any) -> None:
    run = start()
    run.save(1)
    path = run.folder / "step_1"
    dcp_save({"model": run.model.state_dict()}, checkpoint_id=path, no_dist=True)
    (path / "metadata.json").write_text("{")
    assert start(seed=1).load(exclude_keys=["optimizer"])[0] == 1
    assert "metadata.json can't be read, so neither freeze lists nor checksums of files are compared" in caplog.text
    assert start(seed=1).manager.peek_saved_step() == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"step": 1, "note": "\xff"}', b"[1]", b"{}", b'{"step": 1}', b'{"step": 7, "vlm_freeze": []}'],
)
def test_own_metadata_that_is_not_what_was_written_is_refused_by_name_and_changes_nothing(
    start: Start, equal: Any, content: bytes
) -> None:
    run = start()
    run.save(1)
    path = run.folder / "step_1"
    (path / "metadata.json").write_bytes(content)
    resumed = start(seed=1)
    before = resumed.picture()
    for ask in (resumed.load, lambda: resumed.load(path), resumed.manager.peek_saved_step):
        with pytest.raises(DamagedError, match=r"step_1/metadata\.json is damaged: .*; put the right file back"):
            ask()
    assert equal(resumed.picture(), before)


def test_a_load_by_name_of_a_checkpoint_that_has_lost_its_metadata_is_refused_and_changes_nothing(
    start: Start, equal: Callable[[Any, Any], bool]
) -> None:
    run = start()
    run.save(1)
    path = run.folder / "step_1"
    (path / "metadata.json").unlink()
    resumed = start(seed=1)
    before = resumed.picture()
    for ask in (resumed.load, resumed.manager.peek_saved_step):
        with pytest.raises(DamagedError, match=r"step_1/metadata\.json is missing, .*; put the file back, or resume"):
            ask(path)
    assert equal(resumed.picture(), before)


def test_a_load_by_name_of_another_managers_without_metadata_says_that_nothing_is_compared(
    start: Start, caplog: Any
) -> None:
    run = start()
    run.save(1)
    path = run.folder / "step_1"
    make_foreign(path, "{}")
    (path / "metadata.json").unlink()
    assert start(seed=1).load(path)[0] == 1
    assert "metadata.json is missing, so neither freeze lists nor checksums of files are compared" in caplog.text


def test_a_milestone_whose_metadata_has_lost_its_checksums_is_kept_and_one_without_metadata_named(
    start: Start, caplog: Any
) -> None:
    run = start(keep_last_n=0, dyn_ckpt_window=DynamicCheckpointWindow(1, 2))
    for step in (1, 2):
        run.save(step)
    (run.folder / "step_1" / "metadata.json").write_text('{"step": 1, "tokens_seen": 10, "milestone": false}')
    (run.folder / "step_2" / "metadata.json").unlink()
    later = start(keep_last_n=1)
    later.save(3)
    assert names(run.folder) == ["latest", "step_1", "step_3"]
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    kept, deleted = warned
    assert "step_1 is kept whatever the limit" in kept
    assert "it lacks the checksums that this manager saved with the checkpoint; put the right" in kept
    assert "step_2 is torn and is deleted: its metadata.json, which says whether it is a milestone" in deleted


def test_a_copy_under_the_name_of_another_step_is_refused_and_under_a_free_name_loaded(start: Start) -> None:
    run = start()
    run.save(1)
    for copy in ("step_7", "best"):
        shutil.copytree(run.folder / "step_1", run.folder / copy)
    for ask in (start(seed=1).load, start(seed=1).manager.peek_saved_step):
        with pytest.raises(ValueError, match=r"step_7 holds a checkpoint of step 1, .* give it the name step_1"):
            ask(str(run.folder / "step_7"))
    assert start(seed=1).load(run.folder / "best")[0] == 1
    make_foreign(run.folder / "step_7", '{"step": 7}')
    for ask in (start(seed=1).load, start(seed=1).manager.peek_saved_step):
        with pytest.raises(ValueError, match=r"step_7 holds a checkpoint of step 1"):
            ask(str(run.folder / "step_7"))


def test_a_folder_of_checkpoints_may_be_moved(start: Start, tmp_path: Path) -> None:
    run = start()
    run.save(1)
    run.folder.rename(tmp_path / "elsewhere")
    assert start(seed=1).load(tmp_path / "elsewhere" / "latest")[0] == 1


def test_stock_dcp_passes_over_seals_and_tables(start: Start, tmp_path: Path) -> None:
    """Both ways: it reads what has them, and what it writes has none."""
    run = start()
    run.save(1)
    path = run.folder / "step_1"
    assert marker.is_ours(path / ".metadata")
    assert storage.open_shards(path, None).seals.keys() == {"__0_0.distcp"}
    into = {"model": {name: torch.empty_like(value) for name, value in run.model.state_dict().items()}}
    dcp_load(into, checkpoint_id=path, no_dist=True)
    dcp_save({"model": into["model"]}, checkpoint_id=tmp_path / "stock", no_dist=True)
    assert not marker.is_ours(tmp_path / "stock" / ".metadata")
    stock = storage.open_shards(tmp_path / "stock", None)
    assert stock.read(lambda _: True)["model"].keys() == into["model"].keys()


def _archived(values: list[torch.Tensor]) -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save(values, buffer)
    return buffer.getvalue()


def test_the_size_of_an_archive_is_compared_with_its_records(tmp_path: Path) -> None:
    content = _archived([torch.ones(10)])
    file = tmp_path / "archive"
    for blob, is_right in ((content, True), (b"\0" * (1 << 20) + content, False)):
        file.write_bytes(blob)
        with open(file, "rb") as opened:
            if is_right:
                archive.check_size(opened, file)
            else:
                with pytest.raises(DamagedError, match=r"archive has 1,05\d,\d+ bytes and lists records of"):
                    archive.check_size(opened, file)


def test_the_door_is_open_to_regular_files_alone(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.write_bytes(b"content")
    (tmp_path / "link").symlink_to(real)
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, why in (("link", "is a symlink"), ("directory", "not a regular file"), ("pipe", "not a regular file")):
        with pytest.raises(PermissionError, match=rf"{name}.* {why}"), files.opened(tmp_path / name):
            pass
    with pytest.raises(PermissionError, match="null is not a regular file"), files.opened(Path("/dev/null")):
        pass
    with files.opened(real) as file:
        assert file.content() == file.content(7) == b"content"
        with pytest.raises(DamagedError, match=r"real is damaged, .* has 7 bytes, and at most 6 belong there"):
            file.content(6)


def test_errors_keep_what_they_are_and_get_the_name_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "shard"
    with pytest.raises(OSError, match=r"shard") as system, errors.naming(file):
        os.pread(-1, 1, 0)
    assert system.value.filename == str(file)
    with pytest.raises(FileNotFoundError, match="nowhere"), errors.naming(file):
        os.stat(tmp_path / "nowhere")
    with pytest.raises(MemoryError, match="shard takes more memory"), errors.naming(file):
        raise MemoryError
    with pytest.raises(DamagedError, match=r"shard can't be read, KeyError: 'x'") as damaged, errors.naming(file):
        raise KeyError("x")
    assert isinstance(damaged.value.__cause__, KeyError)
    with pytest.raises(DamagedError, match=r"ValueError: \\x1b\[2J") as escaped, errors.naming(file):
        raise ValueError("\x1b[2J")
    assert escaped.value.__cause__ is None, "a traceback would show its text as it is"


def test_what_can_be_printed_is_left_as_it_is() -> None:
    assert messages.printable("/data/naïve run [1]/step_5") == "/data/naïve run [1]/step_5"
    assert messages.printable("a\x1b[2J\n\u202eb\udc80") == "a\\x1b[2J\\n\\u202eb\\udc80"


def test_what_fails_after_the_fact_is_logged_with_an_escaped_traceback(caplog: Any) -> None:
    with messages.logged("clearing up after step %d", 3):
        raise RuntimeError("\x1b[2J")
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "clearing up after step 3 failed")
    assert "in test_what_fails_after" in caplog.text and "RuntimeError: \\x1b[2J" in caplog.text


def test_log_records_are_escaped(caplog: Any) -> None:
    logging.getLogger("forge_ref").warning("%s was found", "\x1b]0;title\x07")
    assert caplog.messages == ["\\x1b]0;title\\x07 was found"]


def test_what_is_torn_has_no_class_and_what_cannot_be_read_has_an_unknown_one(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        (tmp_path / f"step_{step}").mkdir()
        for name in (".metadata", "train_state.pt", "metadata.json"):
            (tmp_path / f"step_{step}" / name).write_text("{}")
    (tmp_path / "step_1" / "metadata.json").unlink()  # torn
    (tmp_path / "step_2" / "metadata.json").unlink()
    (tmp_path / "step_2" / "metadata.json").symlink_to("/dev/zero")
    (tmp_path / "step_3" / "metadata.json").write_text("{")
    (tmp_path / "step_3" / ".metadata").unlink()  # torn, whatever its metadata is
    trash = layout.trash_path(layout.staged_path(tmp_path, 5, "0" * 16))
    trash.mkdir()
    assert len(retire.retire(trash, 5, 1, lambda step: False)) == 3
    assert [found.step for found in layout.step_dirs(tmp_path)] == [2, 5]
    assert not StepDir(2, tmp_path, "step_2").is_complete, "a resume passes it over"


def test_a_stage_that_is_a_link_is_one_of_another_checkpoint(tmp_path: Path) -> None:
    for step in (1, 2):
        for stage in ("pp0", "pp1"):
            (tmp_path / f"step_{step}" / stage).mkdir(parents=True)
            (tmp_path / f"step_{step}" / stage / ".metadata").write_text("x")
        for name in ("train_state.pt", "metadata.json"):
            (tmp_path / f"step_{step}" / name).write_text("{}")
    seals = {f"pp{stage}/.metadata": Seal.of(b"x") for stage in (0, 1)}
    (tmp_path / "step_2" / "metadata.json").write_bytes(manifest.written({}, seals))
    (tmp_path / "step_2" / "pp1" / ".metadata").unlink()
    (tmp_path / "step_2" / "pp1").rmdir()
    (tmp_path / "step_2" / "pp1").symlink_to("../step_1/pp1")
    assert layout.missing_files(tmp_path / "step_1") == []
    assert layout.missing_files(tmp_path / "step_2") == ["pp1/.metadata"]


@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_metadata_that_is_too_large_is_refused_before_anything_is_made(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    run = start(async_mode=mode)
    monkeypatch.setattr(manifest, "LIMIT", 20)
    with pytest.raises(ValueError, match=r"the metadata has .* bytes, and at most 20 are read again"):
        run.save(1)
    assert not run.folder.exists()
