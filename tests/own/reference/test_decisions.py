"""What is decided from names and small files alone: whatever one operator more or less would change."""

import errno
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from forge_ref import CheckpointConfig, DynamicCheckpointWindow, freeze, layout, manifest, registry, resolve, retire
from forge_ref.config import check_excludable
from forge_ref.registry import Registry

WHOLE = (".metadata", "train_state.pt", "metadata.json")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Makes a directory with files of one byte; `metadata.json` says what it is told to, and has these seals."""

    def made(name: str, *files: str, seals: Sequence[str] = (), **metadata: object) -> Path:
        at = tmp_path / name
        at.mkdir(parents=True, exist_ok=True)
        described = manifest.written(metadata, {sealed: manifest.Seal.of(b"x") for sealed in seals})
        for file in files:
            (at / file).parent.mkdir(exist_ok=True)
            (at / file).write_bytes(described if file == "metadata.json" else b"x")
        return at

    return made


# -- registry -----------------------------------------------------------------------


def test_an_empty_registry_says_that_there_is_none() -> None:
    registry = Registry()
    assert registry.list_dyn_ckpt_strategies() == []
    with pytest.raises(KeyError, match=r"unknown strategy 'a'; registered: none"):
        registry.get_dyn_ckpt_strategy("a")


def test_registered_names_are_listed_in_their_order() -> None:
    registry = Registry()
    for name in ("b", "a"):
        assert registry.register_dyn_ckpt_strategy(name)(max) is max
    assert registry.list_dyn_ckpt_strategies() == ["b", "a"]
    with pytest.raises(ValueError, match=r"strategy 'a' is already registered; choose another name than b, a$"):
        registry.register_dyn_ckpt_strategy("a")(min)
    assert registry.get_dyn_ckpt_strategy("a") is max


# -- layout -------------------------------------------------------------------------


def test_stages_that_were_recorded_are_those_of_the_markers(make: Callable[..., Path]) -> None:
    at = make("step_1", "metadata.json", seals=["pp0/.metadata", "pp1/.metadata", "train_state.pt"])
    assert layout.recorded_stages(at) == ["pp0", "pp1"]
    assert layout.recorded_stages(make("step_2", "metadata.json", seals=[".metadata"])) == []
    assert layout.recorded_stages(make("step_3", "metadata.json")) == []
    assert layout.recorded_stages(make("step_4")) == []
    (make("step_5") / "metadata.json").write_text("{")
    assert layout.recorded_stages(make("step_5")) == []


def test_a_stage_whose_directory_is_gone_is_one_of_them_where_another_tells_of_it(make: Callable[..., Path]) -> None:
    assert layout.stages(make("none", ".metadata")) == []
    assert layout.stages(make("two", "pp0/a", "pp1/a")) == ["pp0", "pp1"]
    assert layout.stages(make("first", "pp1/a", "pp2/a")) == ["pp0", "pp1", "pp2"]
    last = make("last", "pp0/a", "metadata.json", seals=["pp0/.metadata", "pp1/.metadata"])
    assert layout.stages(last) == ["pp0", "pp1"]
    assert layout.stages(make("ten", *(f"pp{stage}/a" for stage in range(11)))) == [f"pp{n}" for n in range(11)]
    assert layout.stages(make("others", "pp01/a", "ppa/a", "xpp0/a")) == []


def test_what_is_missing_is_named_with_its_stage(make: Callable[..., Path]) -> None:
    assert layout.missing_files(make("whole", *WHOLE)) == []
    assert layout.missing_files(make("nothing")) == list(WHOLE)
    assert layout.missing_files(make("staged", "pp0/.metadata", "pp1/a", *WHOLE[1:])) == ["pp1/.metadata"]
    empty = make("empty", *WHOLE)
    for name in WHOLE:
        (empty / name).write_text("")
    assert layout.missing_files(empty) == [".metadata", "train_state.pt"], "metadata of no bytes is read with a warning"
    odd = make("odd", *WHOLE[1:])
    (odd / ".metadata").mkdir()
    assert layout.missing_files(odd) == [".metadata"]


def test_directories_are_known_by_their_names_in_numeric_order(make: Callable[..., Path], tmp_path: Path) -> None:
    for name in (
        "step_10",
        "step_9",
        "step_09",
        ".step_3.partial",
        ".step_4.retired.2",
        ".step_5.replaced",
        ".step_6.x",
    ):
        make(name)
    (tmp_path / "step_8").write_text("")
    (tmp_path / "step_7").symlink_to("step_9")
    assert [(found.step, found.path) for found in layout.step_dirs(tmp_path)] == [
        (9, tmp_path / "step_9"),
        (10, tmp_path / "step_10"),
    ]
    hidden = sorted((found.step, found.role, found.path.name) for found in layout.hidden_dirs(tmp_path))
    assert hidden == [
        (3, "partial", ".step_3.partial"),
        (4, "retired", ".step_4.retired.2"),
        (5, "replaced", ".step_5.replaced"),
    ]
    assert layout.step_dirs(tmp_path / "nowhere") == layout.hidden_dirs(tmp_path / "nowhere") == []
    assert layout.step_dirs(tmp_path / "step_8") == []


def test_hidden_names_go_on_counting(tmp_path: Path) -> None:
    names = layout.hidden_names(7, "retired")
    assert [next(names) for _ in range(3)] == [".step_7.retired", ".step_7.retired.1", ".step_7.retired.2"]
    staged = layout.staged_path(tmp_path, 7, "0123456789abcdef")
    assert staged == tmp_path / ".step_7.0123456789abcdef.partial"
    assert layout.trash_path(staged) == tmp_path / ".step_7.0123456789abcdef.retired"
    assert layout.pointer_path(staged) == tmp_path / ".latest.0123456789abcdef.partial"


def test_a_taken_name_is_refused_and_a_link_or_a_directory_is_not(make: Callable[..., Path], tmp_path: Path) -> None:
    layout.check_names_free(tmp_path, 1)
    make("step_1")
    (tmp_path / "latest").symlink_to("step_1")
    layout.check_names_free(tmp_path, 1)
    (tmp_path / "step_2").symlink_to("step_1")
    with pytest.raises(FileExistsError, match="step_2 is not a directory, so step 2 can't be saved there"):
        layout.check_names_free(tmp_path, 2)
    (tmp_path / "latest").unlink()
    make("latest")
    with pytest.raises(FileExistsError, match="latest is not a symlink"):
        layout.check_names_free(tmp_path, 1)


def test_a_link_to_a_directory_is_no_real_one(make: Callable[..., Path], tmp_path: Path) -> None:
    at = make("step_1")
    (tmp_path / "link").symlink_to("step_1")
    assert layout.is_real_dir(at)
    assert not layout.is_real_dir(tmp_path / "link")
    assert not layout.is_real_dir(tmp_path / "nowhere")


def test_metadata_that_is_no_object_is_refused_by_its_kind(make: Callable[..., Path]) -> None:
    at = make("step_1", "metadata.json", step=1)
    assert layout.read_metadata(at) == {"step": 1}
    (at / "metadata.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"metadata\.json contains a list, not a JSON object$"):
        layout.read_metadata(at)


# -- resolve ------------------------------------------------------------------------


def test_a_checkpoint_has_to_have_the_stages_of_the_run(make: Callable[..., Path], tmp_path: Path) -> None:
    staged = make("step_1", "pp0/.metadata", "pp1/.metadata", *WHOLE[1:])
    assert resolve.resume_point(tmp_path, None, needs_shards=True, stages=2) == staged
    assert resolve.resume_point(tmp_path, staged, needs_shards=True, stages=2) == staged
    with pytest.raises(ValueError, match=r"has the pipeline stages pp0, pp1, and this run has none;"):
        resolve.resume_point(tmp_path, staged, needs_shards=True)
    with pytest.raises(ValueError, match=r"has the pipeline stages pp0, pp1, and this run has 1;"):
        resolve.resume_point(tmp_path, staged, needs_shards=True, stages=1)
    with pytest.raises(ValueError, match=r"has the pipeline stages pp0, pp1, and this run has 3;"):
        resolve.resume_point(tmp_path, staged, needs_shards=True, stages=3)
    plain = make("elsewhere/step_2", *WHOLE)
    with pytest.raises(ValueError, match=r"has no pipeline stages, and this run has 2;"):
        resolve.resume_point(tmp_path, plain, needs_shards=True, stages=2)
    imported = make("imported", ".metadata")
    assert resolve.resume_point(tmp_path, imported, needs_shards=True, stages=2) == imported


def test_a_stage_that_the_run_has_and_the_directory_lacks_makes_it_torn(
    make: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older = make("step_1", "pp0/.metadata", "pp1/.metadata", *WHOLE[1:])
    make("step_2", "pp0/.metadata", *WHOLE[1:])
    (tmp_path / "latest").symlink_to("step_2")
    assert resolve.resume_point(tmp_path, None, needs_shards=True, stages=2) == older
    assert "latest names step_2, which is torn (no pp1/.metadata); resuming from the newest" in caplog.text
    make("step_2", "metadata.json", seals=["pp0/.metadata"])
    with pytest.raises(ValueError, match=r"has the pipeline stages pp0, and this run has 2;"):
        resolve.resume_point(tmp_path, None, needs_shards=True, stages=2)


def test_without_shards_the_target_is_taken_whatever_its_stages(make: Callable[..., Path], tmp_path: Path) -> None:
    torn = make("step_2", "train_state.pt")
    (tmp_path / "latest").symlink_to("step_2")
    assert resolve.resume_point(tmp_path, None, needs_shards=False, stages=2) == torn
    assert resolve.resume_point(tmp_path, torn, needs_shards=False, stages=2) == torn


@pytest.mark.parametrize("needs_shards", [True, False])
def test_a_named_path_that_is_no_checkpoint_is_refused_with_what_it_is(
    make: Callable[..., Path], tmp_path: Path, needs_shards: bool
) -> None:
    lacks = ".metadata" if needs_shards else "train_state.pt"
    empty = make("empty")
    with pytest.raises(FileNotFoundError, match=rf"^{empty}, which was named to load, has no {lacks}; it is torn or"):
        resolve.resume_point(tmp_path, empty, needs_shards)
    with pytest.raises(FileNotFoundError, match=rf"^no checkpoint at {tmp_path}/nowhere, which was named to load;"):
        resolve.resume_point(tmp_path, tmp_path / "nowhere", needs_shards)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=rf"^{tmp_path}/file, which was named to load, is a file;"):
        resolve.resume_point(tmp_path, tmp_path / "file", needs_shards)
    for step in range(1, 8):
        make(f"folder/step_{step}")
    listed = r"name one of them \(step_3, step_4, step_5, step_6, step_7\), or set dir to it"
    with pytest.raises(FileNotFoundError, match=rf"^{tmp_path}/folder, which was named to load, is a folder.*{listed}"):
        resolve.resume_point(tmp_path, tmp_path / "folder", needs_shards)


@pytest.mark.parametrize(
    ("said", "because"),
    [
        (None, "latest is missing"),
        ("step_7", "latest names step_7, which is not a checkpoint in"),
        ("../elsewhere/step_1", "latest names ../elsewhere/step_1, which is not a checkpoint in"),
        ("step_1_bak", "latest names step_1_bak, which is not a checkpoint in"),
    ],
)
def test_why_latest_was_not_followed_is_told(
    make: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    said: str | None,
    because: str,
) -> None:
    folder = tmp_path / "folder"
    for name in ("elsewhere/step_1", "folder/step_1", "folder/step_1_bak"):
        make(name, *WHOLE)
    newest = make("folder/step_10", *WHOLE)
    if said is not None:
        (folder / "latest").symlink_to(said)
    assert resolve.resume_point(folder, None, needs_shards=True) == newest
    (message,) = caplog.messages
    assert because in message
    assert message.endswith(f"; resuming from the newest complete checkpoint {newest}")
    assert "torn" not in message


def test_a_latest_that_is_a_directory_is_told_and_passed_over(
    make: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = make("step_1", *WHOLE)
    make("latest", *WHOLE)
    assert resolve.resume_point(tmp_path, None, needs_shards=True) == newest
    assert f"{tmp_path}/latest is not a symlink; resuming" in caplog.text


def test_torn_directories_alone_are_listed_with_what_they_lack(
    make: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make("step_1", ".metadata", "metadata.json")
    make("step_2")
    assert resolve.resume_point(tmp_path, None, needs_shards=True) is None
    listed = "step_1 (no train_state.pt), step_2 (no .metadata, train_state.pt, metadata.json); starting fresh"
    assert caplog.messages == [f"no complete checkpoint in {tmp_path}, only torn ones: {listed}"]


def test_a_torn_target_is_told_with_all_that_it_lacks(
    make: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = make("step_1", *WHOLE)
    make("step_2", "metadata.json")
    (tmp_path / "latest").symlink_to("step_2")
    assert resolve.resume_point(tmp_path, None, needs_shards=True) == whole
    told = f"{tmp_path}/latest names step_2, which is torn (no .metadata, train_state.pt)"
    assert caplog.messages == [f"{told}; resuming from the newest complete checkpoint {whole}"]


def test_a_torn_stage_is_told_where_nothing_else_stands(
    make: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make("step_2", "pp0/.metadata", *WHOLE[1:])
    assert resolve.resume_point(tmp_path, None, needs_shards=True, stages=2) is None
    listed = "only torn ones: step_2 (no pp1/.metadata); starting fresh"
    assert caplog.messages == [f"no complete checkpoint in {tmp_path}, {listed}"]


def test_an_empty_folder_is_a_fresh_start_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert resolve.resume_point(tmp_path, None, needs_shards=True) is None
    assert resolve.resume_point(tmp_path / "nowhere", None, needs_shards=True) is None
    assert caplog.messages == []


def test_what_was_moved_aside_counts_only_where_its_place_is_empty(make: Callable[..., Path], tmp_path: Path) -> None:
    aside = make(".step_5.replaced", *WHOLE)
    make(".step_9.retired", *WHOLE)
    make(".step_8.partial", *WHOLE)
    older = make("step_4", *WHOLE)
    assert resolve.resume_point(tmp_path, None, needs_shards=True) == aside
    make("step_5")
    assert resolve.resume_point(tmp_path, None, needs_shards=True) == older


# -- retire -------------------------------------------------------------------------


def no_milestone(step: int) -> bool:
    return False


BIN = ".step_9.0123456789abcdef.retired"


def bin_in(folder: Path) -> Path:
    """As a save makes it."""
    (folder / BIN).mkdir(exist_ok=True)
    return folder / BIN


def prune(folder: Path, committed: int, keep_last_n: int, is_milestone: Callable[[int], bool]) -> None:
    """Hide and delete."""
    trash = bin_in(folder)
    retire.delete(retire.retire(trash, committed, keep_last_n, is_milestone), trash)


def standing(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name != BIN)


def test_a_name_that_a_dead_run_has_left_is_passed_over(make: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("step_1", "step_2"):
        make(name, *WHOLE)
    make(".step_1.retired", "a")
    prune(tmp_path, 2, 1, no_milestone)
    assert standing(tmp_path) == [".step_1.retired", "step_2"], "what a dead run left is not for `retire` to clear up"


def test_what_can_not_be_looked_at_is_no_torn_checkpoint(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk does not answer: a resume raises, and retention keeps that checkpoint, and others as if it were not."""
    for name in ("step_1", "step_2", "step_3", "step_4"):
        make(name, *WHOLE)
    look = os.stat

    def fails_in_step_2(path: Any, *arguments: Any, **others: Any) -> os.stat_result:
        if "step_2/" in os.fspath(path):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return look(path, *arguments, **others)

    monkeypatch.setattr(os, "stat", fails_in_step_2)
    prune(tmp_path, 4, 2, no_milestone)
    assert standing(tmp_path) == ["step_2", "step_3", "step_4"]
    assert re.search(r"could not clear up \S+/step_2: .*Input/output error: .*; tried again", caplog.text)
    shutil.rmtree(tmp_path / "step_3")
    shutil.rmtree(tmp_path / "step_4")
    with pytest.raises(OSError, match=r"Input/output error: .*step_2/\.metadata"):
        resolve.resume_point(tmp_path, None, needs_shards=True)


def test_a_milestone_is_what_was_recorded_as_one(make: Callable[..., Path], tmp_path: Path) -> None:
    make("step_1", *WHOLE, milestone=True)
    make("step_2", *WHOLE, milestone=False)
    make("step_3", *WHOLE, milestone="yes")
    make("step_4", *WHOLE)
    (tmp_path / "step_4" / "metadata.json").write_text("{")
    make("step_5", *WHOLE)
    make("step_6", *WHOLE)
    prune(tmp_path, 6, 1, lambda step: step in (2, 3, 4))
    assert standing(tmp_path) == ["step_1", "step_3", "step_4", "step_6"]


def test_a_recorded_milestone_is_looked_at_once(make: Callable[..., Path], tmp_path: Path, caplog: Any) -> None:
    for step in (1, 2, 3):
        make(f"step_{step}", *WHOLE, milestone=step == 1)
    prune(tmp_path, 2, 1, no_milestone)
    (tmp_path / "step_1" / "metadata.json").write_text("{")
    prune(tmp_path, 3, 1, no_milestone)
    assert standing(tmp_path) == ["step_1", "step_3"]
    assert "step_1" not in caplog.text
    prune(tmp_path, 1, 1, no_milestone)
    assert "step_1 is kept whatever the limit" in caplog.text, "it was saved again, so it may be another one"


def test_a_resume_looks_at_no_checkpoint_below_the_newest_whole_one(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(1, 6):
        make(f"step_{step}", *(WHOLE if step < 4 else WHOLE[1:]))
    looked_at, missing_files = [], layout.missing_files

    def noted(path: Path) -> list[str]:
        looked_at.append(path.name)
        return missing_files(path)

    monkeypatch.setattr(layout, "missing_files", noted)
    assert resolve.resume_point(tmp_path, None, True) == tmp_path / "step_3"
    assert looked_at == ["step_5", "step_4", "step_3"]


def test_debris_below_a_commit_goes_and_above_it_stays(make: Callable[..., Path], tmp_path: Path) -> None:
    make("step_1", *WHOLE[1:])
    for name in ("step_2", "step_3"):
        make(name, *WHOLE)
    make("step_4", *WHOLE[1:])
    make("step_5", *WHOLE)
    prune(tmp_path, 3, 1, no_milestone)
    assert standing(tmp_path) == ["step_3", "step_4", "step_5"]


def test_the_step_just_committed_stays_also_if_it_looks_torn(make: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("step_1", "step_2"):
        make(name, *WHOLE)
    make("step_3", *WHOLE[1:])
    prune(tmp_path, 3, 1, no_milestone)
    assert standing(tmp_path) == ["step_2", "step_3"]


@pytest.mark.parametrize("limit", [0, -1])
def test_without_a_limit_nothing_goes(make: Callable[..., Path], tmp_path: Path, limit: int) -> None:
    for step in range(3):
        make(f"step_{step}", *WHOLE)
    make("step_1_of_others")
    (tmp_path / "step_0" / ".metadata").unlink()
    prune(tmp_path, 2, limit, no_milestone)
    assert standing(tmp_path) == ["step_0", "step_1", "step_1_of_others", "step_2"], "debris stays as well"


def test_a_sweep_clears_up_after_the_dead_and_brings_back_what_was_moved_aside(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    for name in (".step_1.partial", ".step_2.retired.1", ".step_3.replaced", ".step_4.replaced", "step_4", ".mine"):
        make(name, "a")
    (tmp_path / "step_4" / "b").write_text("")
    retire.delete(retire.sweep(bin_in(tmp_path)), None)
    assert standing(tmp_path) == [".mine", "step_3", "step_4"]
    assert standing(tmp_path / "step_4") == ["a", "b"]


def test_what_can_not_be_cleared_up_is_told_by_its_name_and_the_rest_goes(
    make: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2, 3):
        make(f"step_{step}", *WHOLE)
    rename = os.rename

    def refusing(source: Path, target: Path) -> None:
        if source.name == "step_1":
            raise PermissionError(13, "not yours", str(source))
        rename(source, target)

    monkeypatch.setattr("os.rename", refusing)
    prune(tmp_path, 3, 1, no_milestone)
    assert standing(tmp_path) == ["step_1", "step_3"]
    (message,) = caplog.messages
    assert message.startswith(f"could not clear up {tmp_path}/step_1: [Errno 13] not yours")
    assert message.endswith("; tried again after the next commit")


def refuse(path: Path) -> None:
    raise PermissionError(13, "not yours")


def test_a_sweep_tells_what_it_can_not_clear_up_and_goes_on(
    make: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (".step_1.partial", ".step_2.replaced"):
        make(name, "a")
    monkeypatch.setattr("shutil.rmtree", refuse)
    retire.delete(retire.sweep(bin_in(tmp_path)), None)
    assert standing(tmp_path) == ["step_2"]
    assert standing(tmp_path / BIN) == [".step_1.partial"]
    after = "[Errno 13] not yours; tried again after the next commit"
    assert caplog.messages == [f"could not clear up {tmp_path}/{BIN}/.step_1.partial: {after}"]


def test_what_was_hidden_and_not_deleted_stays_in_the_bin_which_is_told(
    make: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        make(f"step_{step}", *WHOLE)
    monkeypatch.setattr("shutil.rmtree", refuse)
    prune(tmp_path, 2, 1, no_milestone)
    assert standing(tmp_path) == ["step_2"]
    assert standing(tmp_path / BIN) == ["step_1"]
    stuck, left = caplog.messages
    after = "[Errno 13] not yours; tried again after the next commit"
    assert stuck == f"could not clear up {tmp_path}/{BIN}/step_1: {after}"
    assert left.startswith(f"could not clear up {tmp_path}/{BIN}: [Errno 39]")


def test_a_folder_that_can_not_be_listed_is_told_and_costs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.scandir", refuse)
    retire.delete(retire.sweep(bin_in(tmp_path)), None)
    prune(tmp_path, 3, 1, no_milestone)
    told = f"could not clear up {tmp_path}: [Errno 13] not yours; tried again after the next commit"
    assert caplog.messages == [told, told]


# -- freeze -------------------------------------------------------------------------

FROZEN_A, THAWED_A, FROZEN_B, FROZEN_C = (
    {"module": module, "frozen": frozen} for module, frozen in (("a", True), ("a", False), ("b", True), ("c", True))
)


def test_a_difference_is_told_with_both_sides_cut_to_what_they_share(caplog: pytest.LogCaptureFixture) -> None:
    told = (
        r"^freeze lists differ at run/step_1: it has \[\{'module': 'a', 'frozen': True\}\], "
        r"this run has \[\{'module': 'a', 'frozen': False\}\] "
        r"\(modules of the checkpoint alone: \['b'\], of this run alone: \['c'\]\)"
    )
    saved, expected, at = [FROZEN_A, FROZEN_B], [THAWED_A, FROZEN_C], Path("run/step_1")
    with pytest.raises(ValueError, match=rf"{told}; nothing was loaded; set ignore_freeze_mismatch to load it anyway$"):
        freeze.check_freeze(saved, expected, at, ignore_mismatch=False)
    assert caplog.messages == []
    freeze.check_freeze(saved, expected, at, ignore_mismatch=True)
    (message,) = caplog.messages
    assert re.match(rf"{told}; loading it anyway, because ignore_freeze_mismatch is set$", message)


def test_lists_that_agree_on_what_they_share_pass_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    for saved, expected in (([FROZEN_A, FROZEN_B], [FROZEN_C, FROZEN_A]), ([], [FROZEN_A]), ([FROZEN_A], []), ([], [])):
        freeze.check_freeze(saved, expected, Path("step_1"), ignore_mismatch=False)
    assert caplog.messages == []


def test_lists_with_nothing_in_common_are_told_with_their_modules(caplog: pytest.LogCaptureFixture) -> None:
    freeze.check_freeze([FROZEN_B, FROZEN_A], [FROZEN_C], Path("step_1"), ignore_mismatch=False)
    listed = "step_1 has a freeze list of the modules ['a', 'b'], and this run one of ['c']"
    assert caplog.messages == [f"{listed}: none is in both, so nothing is compared"]


def test_a_list_that_names_a_module_both_ways_differs_from_one_that_does_not() -> None:
    freeze.check_freeze([FROZEN_A, THAWED_A], [THAWED_A, FROZEN_A], Path("step_1"), ignore_mismatch=False)
    with pytest.raises(ValueError, match="freeze lists differ"):
        freeze.check_freeze([FROZEN_A, THAWED_A], [THAWED_A], Path("step_1"), ignore_mismatch=False)


@pytest.mark.parametrize("odd", ["frozen", {"a": True}, ["a"], [{"module": "a"}], [{"frozen": True}], [FROZEN_A, 7]])
def test_what_is_no_freeze_list_is_told_and_not_compared(odd: object, caplog: pytest.LogCaptureFixture) -> None:
    assert freeze.recorded({"vlm_freeze": odd}, Path("metadata.json")) is None
    assert caplog.messages == [
        f"metadata.json: vlm_freeze is {odd!r}, which is not a freeze list; freeze lists are not compared"
    ]


def test_a_recorded_list_is_taken_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    for listed in ([], [FROZEN_A], [FROZEN_A | {"since": 5}, FROZEN_B]):
        assert freeze.recorded({"vlm_freeze": listed}, Path("metadata.json")) is listed
    assert freeze.recorded({}, Path("metadata.json")) is None
    assert caplog.messages == []


def test_the_error_of_an_unknown_module_lists_those_that_are_known() -> None:
    spec = freeze.FreezeSpec
    with pytest.raises(
        ValueError, match=r"^the freeze list names unknown modules \['x', 'y'\]; known modules: \['a', 'b'\]$"
    ):
        freeze.effective_freeze(0, [spec("y"), spec("a"), spec("x")], [], ["b", "a"])
    assert freeze.effective_freeze(0, [spec("a")], [], ["b", "a"]) == [spec("a")]


def test_stages_that_begin_together_are_taken_in_their_order() -> None:
    spec, stage = freeze.FreezeSpec, freeze.FreezeStage
    both = [stage(9, (spec("a", True),)), stage(9, (spec("a", False),))]
    assert freeze.effective_freeze(9, [], both) == [spec("a", False)]
    later_first = [stage(20, (spec("a", False),)), stage(10, (spec("a", True),))]
    assert freeze.effective_freeze(20, [], later_first) == [spec("a", False)]
    assert freeze.effective_freeze(8, [], both) == []


# -- config -------------------------------------------------------------------------


def test_the_first_value_that_can_be_meant_is_taken() -> None:
    assert CheckpointConfig(interval=1).interval == 1
    assert DynamicCheckpointWindow(0, 0).is_milestone(0)
    with pytest.raises(ValueError, match=r"^interval is 0; it must be 1 or more$"):
        CheckpointConfig(interval=0)
    with pytest.raises(ValueError, match=r"^dyn_ckpt_window\.start is -1; it must be 0 or more$"):
        DynamicCheckpointWindow(start=-1)
    with pytest.raises(ValueError, match=r"^dyn_ckpt_window\.stop is 4; it must be 5, the start, or more$"):
        DynamicCheckpointWindow(5, 4)
    if "decisive" not in registry.list_dyn_ckpt_strategies():
        registry.register_dyn_ckpt_strategy("decisive")(lambda window, step: True)
    with pytest.raises(ValueError, match=r"^dyn_ckpt_window\.strategy is 'no'; registered: power2(, [\w/-]+)+$"):
        DynamicCheckpointWindow(strategy="no")
    with pytest.raises(ValueError, match=r"^export_dtype is 'int4'; known: float32, bfloat16$"):
        CheckpointConfig(export_dtype="int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^async_mode is 'no'; known: disabled, async, async_with_pinned_mem$"):
        CheckpointConfig(async_mode="no")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^exclude_from_loading is \['rng', 1\]; it must be a list of strings$"):
        CheckpointConfig(exclude_from_loading=["rng", 1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"^here is \['rng', ''\]; a name in it is empty$"):
        check_excludable(["rng", ""], "here")
    assert check_excludable(["rng", "model"], "here") == {"model", "rng"}


def test_a_schedule_without_a_window_has_no_milestones_and_power2_both_ends() -> None:
    assert [step for step in range(9) if CheckpointConfig(interval=4).should_save(step)] == [0, 4, 8]
    assert not CheckpointConfig(interval=4).is_dynamic_milestone(4)
    config = CheckpointConfig(interval=2, dyn_ckpt_window=DynamicCheckpointWindow(3, 8))
    assert [step for step in range(13) if config.should_save(step)] == [0, 2, 3, 4, 5, 7, 10, 12]
    assert [step for step in range(13) if config.is_dynamic_milestone(step)] == [3, 4, 5, 7]
    assert [step for step in range(30) if DynamicCheckpointWindow(5, 21).is_milestone(step)] == [5, 6, 7, 9, 13, 21]
