"""Configuration, registry, freeze lists, random streams: what is decided without a folder."""

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import forge_ref
from forge_ref import AsyncCheckpointMode, CheckpointConfig, DynamicCheckpointWindow, freeze, registry

Same = Callable[[Any, Any], bool]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: CheckpointConfig(interval=0), "interval is 0"),
        (lambda: CheckpointConfig(interval=-3), "interval is -3"),
        (lambda: CheckpointConfig(export_dtype="int4"), "export_dtype is 'int4'"),  # type: ignore[arg-type]
        (lambda: CheckpointConfig(async_mode="later"), "async_mode is 'later'.*async_with_pinned_mem"),  # type: ignore[arg-type]
        (lambda: CheckpointConfig(exclude_from_loading=[""]), r"exclude_from_loading is \[''\].*empty"),
        (lambda: DynamicCheckpointWindow(start=-1), "start is -1"),
        (lambda: DynamicCheckpointWindow(start=5, stop=4), "stop is 4"),
        (lambda: DynamicCheckpointWindow(strategy="powr2"), "strategy is 'powr2'.*power2"),
    ],
)
def test_a_value_that_can_not_be_meant_is_refused_by_name(make: Callable[[], Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()


def test_modes_may_be_given_as_text() -> None:
    config = CheckpointConfig(async_mode="async_with_pinned_mem")  # type: ignore[arg-type]
    assert config.async_mode is AsyncCheckpointMode.async_pinned


def test_a_window_replaces_the_interval_and_bounds_its_strategy() -> None:
    @registry.register_dyn_ckpt_strategy("everywhere")
    def everywhere(window: DynamicCheckpointWindow, step: int) -> bool:
        return True

    config = CheckpointConfig(interval=5, dyn_ckpt_window=DynamicCheckpointWindow(11, 15))
    assert [step for step in range(21) if config.should_save(step)] == [0, 5, 10, 11, 12, 13, 15, 20]
    config = CheckpointConfig(dyn_ckpt_window=DynamicCheckpointWindow(3, 4, "everywhere"))
    assert [step for step in range(9) if config.is_dynamic_milestone(step)] == [3, 4]


def test_registry_errors_list_what_is_registered() -> None:
    with pytest.raises(ValueError, match=r"'power2' is already registered.*power2"):
        registry.register_dyn_ckpt_strategy("power2")(lambda window, step: True)
    with pytest.raises(KeyError, match=r"unknown strategy 'nope'.*power2"):
        registry.get_dyn_ckpt_strategy("nope")
    assert "power2" in registry.list_dyn_ckpt_strategies()


def test_freeze_lists_are_canonical_and_resolve_by_step() -> None:
    spec = forge_ref.FreezeSpec
    assert forge_ref.canonical_freeze_meta([spec("b"), spec("a", False), spec("b")]) == [
        {"module": "a", "frozen": False},
        {"module": "b", "frozen": True},
    ]
    schedule = [forge_ref.FreezeStage(20, (spec("a", False),)), forge_ref.FreezeStage(10, (spec("b"),))]
    assert forge_ref.effective_freeze(9, [spec("a")], schedule) == [spec("a")]
    assert forge_ref.effective_freeze(20, [spec("a")], schedule) == [spec("a", False), spec("b")]
    with pytest.raises(ValueError, match=r"unknown modules \['b'\]"):
        forge_ref.effective_freeze(10, [spec("a")], schedule, {"a"})


def test_random_streams_are_plain_data_and_come_back(equal: Same) -> None:
    state = forge_ref.get_rng_state()
    drawn = (random.random(), torch.rand(3))
    forge_ref.set_rng_state(state)
    assert equal((random.random(), torch.rand(3)), drawn)


def test_the_numpy_stream_is_also_taken_in_its_tuple_form() -> None:
    numpy = pytest.importorskip("numpy")
    legacy = {"numpy": numpy.random.get_state()}
    drawn = numpy.random.rand(3)
    forge_ref.set_rng_state(legacy)
    assert (numpy.random.rand(3) == drawn).all()


def test_a_train_state_refuses_reserved_keys_and_undoes_a_half_restored_one(equal: Same) -> None:
    with pytest.raises(ValueError, match=r"\['step', 'rng'\]"):
        forge_ref.build_train_state(1, 2, extra={"rng": 0, "step": 3, "mine": 1})

    def refuse(state: object) -> None:
        raise RuntimeError("not this loader")

    scheduler = torch.optim.lr_scheduler.ConstantLR(torch.optim.SGD([torch.zeros(1)], lr=1.0))
    state = forge_ref.build_train_state(1, 2, scheduler, SimpleNamespace(state_dict=dict))
    scheduler.last_epoch = 7
    random.random()
    before = (scheduler.state_dict()["last_epoch"], random.getstate())
    with pytest.raises(RuntimeError, match="not this loader"):
        forge_ref.restore_train_state(state, scheduler, SimpleNamespace(load_state_dict=refuse))
    assert equal((scheduler.state_dict()["last_epoch"], random.getstate()), before)


def test_a_stage_among_others_needs_its_ranks() -> None:
    parameter = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"pp_rank \[1\]"):
        forge_ref.CheckpointManager(CheckpointConfig(), parameter, torch.optim.SGD(parameter.parameters()), pp_rank=1)


@pytest.mark.parametrize(
    ("stage", "error", "says"),
    [
        (-1, ValueError, "^pp_rank is -1; it must be 0 or more$"),
        (-2, ValueError, "^pp_rank is -2; it must be 0 or more$"),
        (False, TypeError, "^pp_rank is False; it must be an integer$"),
        (0.0, TypeError, "^pp_rank is 0.0; it must be an integer$"),
    ],
)
def test_a_stage_has_to_be_a_number_from_0_on(stage: Any, error: type[Exception], says: str) -> None:
    model = torch.nn.Linear(1, 1)
    with pytest.raises(error, match=says):
        forge_ref.CheckpointManager(CheckpointConfig(), model, torch.optim.SGD(model.parameters()), pp_rank=stage)


def test_a_parameter_with_the_name_of_a_counter_can_be_excluded(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1)
    model.register_buffer("step", torch.tensor(5.0))
    optimizer = torch.optim.SGD(model.parameters())
    manager = forge_ref.CheckpointManager(CheckpointConfig(dir=tmp_path), model, optimizer)
    manager.save(1, 10)
    model.step.fill_(6.0)  # type: ignore[operator]
    assert manager.load(exclude_keys=["step"]) == (1, 10, {})
    assert model.step == 6.0


def test_one_process_alone_can_be_a_pipeline_of_one_stage(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1)
    config, optimizer = CheckpointConfig(dir=tmp_path), torch.optim.SGD(model.parameters())
    manager = forge_ref.CheckpointManager(config, model, optimizer, pp_rank=0)
    manager.save(1)
    assert manager.load()[0] == 1
    with pytest.raises(ValueError, match="step_1 has the pipeline stages pp0, and this run has none"):
        forge_ref.CheckpointManager(config, model, optimizer).load()


@pytest.mark.parametrize(
    "entry",
    [{"module": ["vision"], "frozen": True}, {"module": "vision", "frozen": [1]}, {"module": None, "frozen": True}],
)
def test_a_freeze_list_of_other_kinds_is_refused_or_not_compared(entry: dict[str, Any], caplog: Any) -> None:
    with pytest.raises(TypeError, match=r"vlm_freeze_expected is .* must be a list of mappings"):
        freeze.check_expected([entry])
    assert freeze.recorded({"vlm_freeze": [entry]}, Path("here")) is None
    assert "not a freeze list" in caplog.text


def test_arguments_of_another_kind_are_named_by_a_save() -> None:
    with pytest.raises(TypeError, match=r"extra is \[1\]; it must be a mapping"):
        forge_ref.build_train_state(1, 2, extra=[1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"scheduler is 3; .*`state_dict`"):
        forge_ref.build_train_state(1, 2, scheduler=3)
    with pytest.raises(TypeError, match=r"scheduler is 3; .*`state_dict`"):
        forge_ref.restore_train_state({}, scheduler=3)
