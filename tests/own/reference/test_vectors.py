"""The reference answers the vectors as anybody's manager would: by its public API, and on real folders.

This is also what shows that the vectors can be used.  Not asked: what a manager
can't be asked from outside (`layout/complete`, `retention` with a flush in
flight, the places of deaths), which the conformance suite brings about.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_foreign
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

import forge_ref
from forge_ref import CheckpointConfig, DynamicCheckpointWindow, FreezeSpec, FreezeStage

VECTORS = Path(__file__).parents[3] / "fixtures" / "vectors"
_ELSEWHERE = "/run/checkpoints"
"""Where the folder of a case stands."""


def cases(question: str, is_askable: Callable[[Any], bool] = lambda given: True) -> Any:
    """A parametrisation over the cases of a question that the reference can be asked from outside."""
    chapter = json.loads((VECTORS / f"{question.partition('/')[0]}.json").read_text())
    asked = [case for case in chapter["cases"] if case["question"] == question and is_askable(case["given"])]
    assert asked
    return pytest.mark.parametrize("case", asked, ids=[case["id"].removeprefix(f"{question}/") for case in asked])


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return torch.nn.Linear(2, 1)


@pytest.fixture(scope="module")
def saved(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One checkpoint as another manager leaves it, to be copied under all names and cut down to all states."""
    folder = tmp_path_factory.mktemp("saved")
    manager(folder, model).save(1)
    (folder / "step_1" / "__0_0.distcp").stat()
    make_foreign(folder / "step_1", "{}")
    return folder / "step_1"


def manager(folder: Path | str, model: torch.nn.Module, **config: Any) -> forge_ref.CheckpointManager:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return forge_ref.CheckpointManager(CheckpointConfig(dir=str(folder), **config), model, optimizer)


def place(saved: Path, at: Path, files: list[str], step: int) -> None:
    """A copy of the real checkpoint, of another step, with these files alone."""
    at.mkdir(parents=True)
    for file in files:
        (at / file).parent.mkdir(exist_ok=True)
        shutil.copy(saved / Path(file).name, at / file)
    if "train_state.pt" in files:
        torch.save({"step": step, "tokens_seen": 0}, at / "train_state.pt")
    if "metadata.json" in files:
        (at / "metadata.json").write_text(json.dumps({"step": step, "tokens_seen": 0}))


def step_in(name: str) -> int:
    """The step that an entry claims to be of, however it is spelt; 0 if none."""
    return int("".join(filter(str.isdecimal, name)) or 0)


@cases("schedule/saves")
def test_steps_are_saved_as_they_say(case: Any) -> None:
    given = case["given"]
    ends, window = given["window"], None
    if ends is not None:
        name = "power2" if ends["strategy"] == "power2" else case["id"]
        if name not in forge_ref.registry.list_dyn_ckpt_strategies():
            forge_ref.registry.register_dyn_ckpt_strategy(name)(lambda window, step: step in ends["strategy"])
        window = DynamicCheckpointWindow(ends["start"], ends["stop"], name)
    config = CheckpointConfig(interval=given["interval"], dyn_ckpt_window=window)
    first, last = given["steps"]
    assert [step for step in range(first, last + 1) if config.should_save(step)] == case["expected"]["saves"]
    milestones = [step for step in range(first, last + 1) if config.is_dynamic_milestone(step)]
    assert milestones == case["expected"]["milestones"]


@cases("schedule/configuration")
def test_a_schedule_is_refused_where_they_refuse_it(case: Any) -> None:
    given, refused_for = case["given"], case["expected"]["refused_for"]

    def configure() -> None:
        window = None if given["start"] is None else DynamicCheckpointWindow(given["start"], given["stop"])
        CheckpointConfig(interval=given["interval"], dyn_ckpt_window=window)

    if refused_for:
        with pytest.raises(ValueError, match="|".join(refused_for)):
            configure()
    else:
        configure()


@cases("schedule/kinds")
def test_a_setting_is_refused_for_its_kind_where_they_refuse_it(case: Any) -> None:
    setting, value = case["given"]["setting"], case["given"]["value"]

    def configure() -> None:
        if setting in ("start", "stop"):
            DynamicCheckpointWindow(**{"start": 1, "stop": 3, setting: value})
        else:
            CheckpointConfig(**{setting: value})

    if case["expected"]["is_refused"]:
        with pytest.raises(TypeError, match=setting):
            configure()
    else:
        configure()


@cases("place/leads-to")
def test_a_folder_is_where_they_say(
    case: Any, model: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below a directory of this test, which takes the place of the root."""
    given, written = case["given"], case["given"]["written"]
    for name in ("working_directory", "home"):
        (tmp_path / given[name].lstrip("/")).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / given["working_directory"].lstrip("/"))
    monkeypatch.setenv("HOME", str(tmp_path / given["home"].lstrip("/")))
    made = manager(f"{tmp_path}{written}" if written.startswith("/") else written, model)
    monkeypatch.chdir(tmp_path)
    made.save(1)
    assert (tmp_path / case["expected"]["folder"].lstrip("/") / "step_1").is_dir()


@cases("place/stands")
def test_what_stands_in_the_place_is_refused_where_they_refuse_it(
    case: Any, model: torch.nn.Module, tmp_path: Path
) -> None:
    at, aim = tmp_path / "run", tmp_path / "aim"
    match case["given"]["stands"].split():
        case ["directory"]:
            at.mkdir()
        case ["file"]:
            at.touch()
        case ["link", *_, what]:
            at.symlink_to(aim)
            {"directory": aim.mkdir, "file": aim.touch, "nothing": lambda: None}[what]()
    if case["expected"]["is_refused"]:
        with pytest.raises(NotADirectoryError, match=str(at)):
            manager(at, model)
    else:
        assert manager(at, model).load()[0] == 0


@cases("place/mode")
def test_modes_are_what_they_say(case: Any, model: torch.nn.Module, tmp_path: Path) -> None:
    before = os.umask(int(case["given"]["umask"], 8))
    try:
        manager(tmp_path / "run", model).save(1)
    finally:
        os.umask(before)
    made = [path for path in (tmp_path / "run", *(tmp_path / "run").rglob("*")) if not path.is_symlink()]
    for kind, is_kind in (("directories", Path.is_dir), ("files", Path.is_file)):
        assert {f"{path.stat().st_mode & 0o777:03o}" for path in made if is_kind(path)} == {case["expected"][kind]}


@cases("layout/name")
def test_what_they_call_a_checkpoint_is_resumed_from(
    case: Any, saved: Path, model: torch.nn.Module, tmp_path: Path
) -> None:
    at, whole = tmp_path / "checkpoints" / case["given"]["name"], ["__0_0.distcp", ".metadata", "train_state.pt"]
    match case["given"]["is"]:
        case "directory":
            place(saved, at, [*whole, "metadata.json"], step_in(at.name))
        case "file":
            at.parent.mkdir()
            at.write_text("")
        case "link":
            place(saved, at.parent / "elsewhere", [*whole, "metadata.json"], step_in(at.name))
            at.symlink_to("elsewhere")
    assert manager(at.parent, model).peek_saved_step() == case["expected"]["step"]


@cases("commit/order")
def test_a_reader_resumes_where_they_say_at_every_event_of_a_save(
    case: Any, saved: Path, model: torch.nn.Module, tmp_path: Path
) -> None:
    folder, given = tmp_path / "checkpoints", case["given"]
    folder.mkdir()
    for name, files in given["folder"].items():
        place(saved, folder / name, files, step_in(name))
    point(folder, given["latest"])
    told = case["expected"]["resume_points"]
    for resume_point, event in zip(told, [*given["events"], None], strict=False):
        assert manager(folder, model).peek_saved_step() == resume_point
        assert manager(folder, model).load()[0] == (resume_point or 0)
        if event is not None:
            happen(folder, saved, event)


def point(folder: Path, target: str | None) -> None:
    (folder / "latest").unlink(missing_ok=True)
    if target is not None:
        (folder / "latest").symlink_to(target)


def happen(folder: Path, saved: Path, event: list[str]) -> None:
    match event:
        case ["write", path]:
            spare = folder.parent / "spare"
            place(saved, spare, [Path(path).name], step_in(path.partition("/")[0]))
            (folder / path).parent.mkdir(exist_ok=True)
            os.rename(spare / Path(path).name, folder / path)
            spare.rmdir()
        case ["remove", path]:
            (folder / path).unlink()
        case ["rename", old, new]:
            os.rename(folder / old, folder / new)
        case ["point", target]:
            point(folder, target)
        case ["returns", _]:
            pass
        case other:
            raise AssertionError(f"no such event: {other}")


@cases("commit/calls", lambda given: all(call[0] != "failing save" for call in given["calls"]))
def test_what_is_committed_when_the_calls_have_returned(case: Any, model: torch.nn.Module, tmp_path: Path) -> None:
    mode = {"sync": "disabled", "async": "async"}[case["given"]["mode"]]
    judged = manager(tmp_path, model, async_mode=mode, keep_last_n=0)
    for call in case["given"]["calls"]:
        judged.wait() if call[0] == "wait" else judged.save(call[1])
    pointer = tmp_path / "latest"
    latest = step_in(os.readlink(pointer)) if pointer.is_symlink() else None
    complete = {step_in(name) for name in os.listdir(tmp_path) if name.startswith("step_")}
    judged.wait()
    assert latest in case["expected"]["latest"]
    assert set(case["expected"]["committed"]) <= complete


def _is_due(given: Any) -> bool:
    """Whether a save of the committed step brings the folder to where the case begins."""
    return given["committed"] is not None and not given["in_flight"] and given["latest"] == f"step_{given['committed']}"


@cases("retention/deletion", _is_due)
def test_what_they_keep_stays_and_what_they_drop_goes(
    case: Any, saved: Path, model: torch.nn.Module, tmp_path: Path
) -> None:
    folder, given = tmp_path / "checkpoints", case["given"]
    folder.mkdir()
    whole = ["__0_0.distcp", ".metadata", "train_state.pt", "metadata.json"]
    for name, kind in given["folder"].items():
        if kind == "file":
            (folder / name).write_text("")
        elif kind == "link":
            (folder / name).symlink_to(next(name for name, kind in given["folder"].items() if kind == "complete"))
        elif name != given["latest"]:
            place(saved, folder / name, [] if kind == "torn" else whole, step_in(name))
            record_milestone(folder / name, step_in(name) in given["milestones"])
        if kind == "unreadable":
            (folder / name / "metadata.json").write_text("{")
    window = None
    if given["committed"] in given["milestones"]:
        window = DynamicCheckpointWindow(given["committed"], given["committed"])
    manager(folder, model, keep_last_n=given["keep_last_n"], dyn_ckpt_window=window).save(given["committed"])
    standing = set(os.listdir(folder))
    for level in ("core", "strict"):
        assert set(case["expected"][level]["must_stay"]) <= standing
        assert not set(case["expected"][level]["must_go"]) & standing


def record_milestone(checkpoint: Path, is_milestone: bool) -> None:
    """Under the key that the reference uses."""
    file = checkpoint / "metadata.json"
    if file.exists():
        file.write_text(json.dumps({**json.loads(file.read_text()), "milestone": is_milestone}))


@cases("resume/landing", lambda given: given["stages"] is None)
def test_a_load_takes_the_checkpoint_that_they_take(
    case: Any, saved: Path, model: torch.nn.Module, tmp_path: Path
) -> None:
    folder, given, expected = tmp_path / "run" / "checkpoints", case["given"], case["expected"]
    folder.mkdir(parents=True)
    for name, files in given["folder"].items():
        if files == "file":
            (folder / name).write_text("")
        elif files == "link":
            (folder / name).symlink_to(next(name for name in given["folder"] if name != "latest"))
        else:
            place(saved, folder / name, files, step_in(name))
    place(saved, tmp_path / "run" / "elsewhere" / "step_10", list(os.listdir(saved)), 10)

    def here(path: str | None) -> str | None:
        return None if path is None else path.replace(_ELSEWHERE, str(folder))

    point(folder, here(given["latest"]))
    judged = manager(folder, model, load_path=here(given["load_path"]))
    if expected["outcome"] == "refused":
        with pytest.raises((OSError, ValueError)):
            judged.load(here(given["path"]))
    else:
        reads_weights = expected["checkpoint"] is not None and "model" not in given["exclude"]
        with loads_weights(model, reads_weights):
            assert judged.load(here(given["path"]), exclude_keys=given["exclude"])[0] == expected["step"]


@contextmanager
def loads_weights(model: torch.nn.Module, expected: bool) -> Iterator[None]:
    """The weights tell: they are overwritten first, and those of the checkpoint are put back in the end."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    yield
    has_loaded = any(bool((parameter != 7).any()) for parameter in model.parameters())
    model.load_state_dict(before)
    assert has_loaded == expected


@cases("resume/extra")
def test_an_extra_is_refused_for_the_keys_that_they_name(case: Any) -> None:
    refused_for = case["expected"]["refused_for"]
    extra = dict.fromkeys(case["given"]["keys"], 1)
    if refused_for:
        with pytest.raises(ValueError, match="|".join(refused_for)):
            forge_ref.build_train_state(1, 0, extra=extra)
    else:
        assert extra.items() <= forge_ref.build_train_state(1, 0, extra=extra).items()


class Named(torch.nn.Module):
    """A model of parameters with these names."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        for name in names:
            owner: torch.nn.Module = self
            *modules, own = name.split(".")
            for module in modules:
                owner.add_module(module, getattr(owner, module, torch.nn.Module()))
                owner = getattr(owner, module)
            owner.register_parameter(own, torch.nn.Parameter(torch.zeros(2)))


@cases("resume/excluded")
def test_what_is_excluded_by_its_name_stays_as_they_say(case: Any, tmp_path: Path) -> None:
    given, expected = case["given"], case["expected"]
    model = Named(given["names"])
    judged = manager(tmp_path, model)
    judged.save(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    if expected["refused_for"]:
        with pytest.raises(ValueError, match=str(expected["refused_for"]).replace("[", "\\[")):
            judged.load(exclude_keys=given["exclude"])
        assert all(bool((parameter == 7).all()) for parameter in model.parameters())
        return
    judged.load(exclude_keys=given["exclude"])
    left = sorted(name for name, parameter in model.named_parameters() if bool((parameter == 7).all()))
    assert left == expected["untouched"]


def specs(entries: list[list[Any]]) -> list[FreezeSpec]:
    return [FreezeSpec(module, frozen) for module, frozen in entries]


@cases("freeze/canonical")
def test_freeze_lists_are_recorded_in_their_form(case: Any) -> None:
    assert forge_ref.canonical_freeze_meta(specs(case["given"]["entries"])) == case["expected"]["recorded"]


@cases("freeze/effective")
def test_the_freeze_list_in_force_is_theirs(case: Any) -> None:
    given, expected = case["given"], case["expected"]["in_force"]
    stages = [FreezeStage(stage["start_step"], tuple(specs(stage["entries"]))) for stage in given["schedule"]]

    def in_force() -> list[list[Any]]:
        listed = forge_ref.effective_freeze(given["step"], specs(given["base"]), stages, given["valid_modules"])
        return sorted([spec.module, spec.frozen] for spec in listed)

    if expected is None:
        with pytest.raises(ValueError, match="unknown modules"):
            in_force()
    else:
        assert in_force() == sorted(expected)


@cases("freeze/compare")
def test_a_load_is_refused_or_warned_of_by_its_freeze_list_as_they_say(
    case: Any, saved: Path, model: torch.nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given, expected = case["given"], case["expected"]
    whole = ["__0_0.distcp", ".metadata", "train_state.pt", "metadata.json"]
    place(saved, tmp_path / "step_1", whole, 1)
    point(tmp_path, "step_1")
    metadata = {"step": 1, "tokens_seen": 0}
    if isinstance(given["saved"], list):
        metadata["vlm_freeze"] = forge_ref.canonical_freeze_meta(specs(given["saved"]))
    (tmp_path / "step_1" / "metadata.json").write_text(json.dumps(metadata))
    if given["saved"] == "unreadable":  # as another manager may leave it; one of our own is refused
        dcp_save({"model": model.state_dict()}, checkpoint_id=tmp_path / "step_1", no_dist=True)
        (tmp_path / "step_1" / "metadata.json").write_text("{")
    wanted = None if given["expected"] is None else forge_ref.canonical_freeze_meta(specs(given["expected"]))
    judged = manager(tmp_path, model, ignore_freeze_mismatch=given["ignore"], exclude_from_loading=["optimizer"])
    if expected["outcome"] == "refused":
        with pytest.raises(ValueError, match=expected["differing"][0]):
            judged.load(vlm_freeze_expected=wanted)
    else:
        assert judged.load(vlm_freeze_expected=wanted)[0] == 1
        assert bool(caplog.messages) == expected["must_warn"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
@cases("trust/pickle", lambda given: given["reader"] == 0)
def test_pickles_of_others_are_refused_as_they_say(
    case: Any, saved: Path, model: torch.nn.Module, tmp_path: Path
) -> None:
    judge_trust(case, saved, model, tmp_path, case["given"]["owner"])


@cases("trust/pickle", lambda given: given["owner"] == given["reader"])
def test_own_pickles_are_warned_of_as_they_say(
    case: Any, saved: Path, model: torch.nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    judge_trust(case, saved, model, tmp_path, os.getuid())
    assert bool(caplog.messages) == ("warn" in case["expected"]["objections"])


def judge_trust(case: Any, saved: Path, model: torch.nn.Module, tmp_path: Path, owner: int) -> None:
    place(saved, tmp_path / "step_1", os.listdir(saved), 1)
    point(tmp_path, "step_1")
    file = tmp_path / "step_1" / "train_state.pt"
    os.chmod(file, int(case["given"]["mode"], 8))
    os.chown(file, owner, -1)
    if case["expected"]["objections"] == ["refuse"]:
        with pytest.raises(PermissionError, match=str(file)):
            manager(tmp_path, model).load()
    else:
        assert manager(tmp_path, model).load()[0] == 1


@cases("trust/directory", lambda given: given["mode"][1] == "7")  # others can't be opened by their owner
def test_open_directories_are_warned_of_as_they_say(
    case: Any, saved: Path, model: torch.nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place(saved, tmp_path / "step_1", os.listdir(saved), 1)
    point(tmp_path, "step_1")
    os.chmod(tmp_path / "step_1", int(case["given"]["mode"], 8))
    assert manager(tmp_path, model).load()[0] == 1
    assert bool(caplog.messages) == (case["expected"]["objections"] == ["warn"])
