"""Putting values in can't half fail: whatever code raises in a load, and whenever, all is as it was."""

import logging
import random
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, SequentialLR

import forge_ref
from forge_ref import state, weights
from forge_ref.undo import remember

Start = Callable[..., Run]
Same = Callable[[Any, Any], bool]


class Refused(BaseException):
    """Not even an `Exception`, as an interrupt."""


class Noted(torch.nn.Module):
    """A module with extra state that takes none while it refuses, not even its own."""

    def __init__(self) -> None:
        super().__init__()
        self.notes = {"seen": [torch.zeros(2)]}
        self.refuses: type[BaseException] | None = None

    def get_extra_state(self) -> dict[str, Any]:
        return {"notes": self.notes}

    def set_extra_state(self, extra: dict[str, Any]) -> None:
        self.notes["seen"] += extra["notes"]["seen"]
        self.notes["seen"][0].add_(1)
        if self.refuses is not None:
            raise self.refuses("not these notes")

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values


class Growing(torch.nn.Module):
    """A module that loads by its own code, which replaces tensors, their memory, and their values."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("kept", "replaced", "moved"):
            self.register_buffer(name, torch.rand(3))

    def _load_from_state_dict(self, saved: dict[str, Any], prefix: str, *about: Any) -> None:
        self.kept.fill_(7)  # type: ignore[operator]
        self.replaced = torch.zeros(4)
        self.moved.data = torch.ones(5)  # type: ignore[union-attr]
        raise LookupError("not this module")

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values


class Holding(LRScheduler):
    """A scheduler that hands out another in its state, and takes no state but breaks its own."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.after = CosineAnnealingLR(optimizer, T_max=100)
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def step(self, epoch: int | None = None) -> None:
        self.after.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.after.last_epoch = 99
        self.base_lrs.append(5.0)
        self.optimizer.param_groups[0]["lr"] = 5.0
        raise LookupError("not this scheduler")


class Writing(torch.optim.AdamW):
    """An optimizer that takes no state but writes into the one that it has."""

    __qualname__ = "AdamW"  # another class would be refused before it is asked

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for group in self.param_groups:
            group["lr"] = 5.0
            group["betas"] = (0.0, 0.0)
        for entry in self.state.values():
            entry["exp_avg"].fill_(7)
            entry["step"] = torch.tensor(0.0)
        self.state.popitem()
        raise LookupError("not this optimizer")


def resumed_later(start: Start, change: Callable[[Run], None]) -> Run:
    """A run with state of its own, beside a checkpoint of another one; both are changed."""
    first = start()
    change(first)
    first.train(2)
    first.save(2)
    second = start(seed=1)
    change(second)
    second.train(3)
    return second


def refused_untouched(run: Run, same: Same, kind: type[BaseException], says: str) -> None:
    before, objects = run.picture(), [id(tensor) for tensor in (*run.model.parameters(), *run.model.buffers())]
    with pytest.raises(kind, match=says):
        run.load()
    assert same(run.picture(), before)
    assert [id(tensor) for tensor in (*run.model.parameters(), *run.model.buffers())] == objects


@pytest.mark.parametrize("kind", [LookupError, KeyboardInterrupt, Refused])
def test_a_module_that_refuses_its_extra_state(
    start: Start, equal: Same, caplog: Any, kind: type[BaseException]
) -> None:
    noted = Noted()
    run = resumed_later(start, lambda run: run.model.append(noted))
    noted.refuses, notes, seen = kind, noted.notes, noted.notes["seen"][0]
    refused_untouched(run, equal, kind, "not these notes")
    assert noted.notes is notes
    assert len(notes["seen"]) == 1
    assert notes["seen"][0] is seen
    assert equal(seen, torch.zeros(2))
    if issubclass(kind, Exception):
        assert "putting the extra state of 3 back" in caplog.text
    noted.refuses = None
    assert run.load()[0] == 2


def test_a_module_that_replaces_what_it_holds(start: Start, equal: Same) -> None:
    run = resumed_later(start, lambda run: run.model.append(Growing()))
    refused_untouched(run, equal, LookupError, "not this module")


@pytest.mark.parametrize("hook", ["register_load_state_dict_pre_hook", "register_load_state_dict_post_hook"])
def test_a_hook_of_a_module(start: Start, equal: Same, hook: str) -> None:
    def refuse(*about: Any) -> None:
        raise LookupError("not this hook")

    run = resumed_later(start, lambda run: None)
    getattr(run.model[2], hook)(refuse)
    refused_untouched(run, equal, LookupError, "not this hook")


def test_an_optimizer_that_writes_into_its_moments(start: Start, equal: Same, monkeypatch: pytest.MonkeyPatch) -> None:
    run = resumed_later(start, lambda run: None)
    run.optimizer.__class__ = Writing
    refused_untouched(run, equal, LookupError, "not this optimizer")


def test_a_scheduler_that_holds_another_keeps_it_and_its_optimizer(start: Start, equal: Same) -> None:
    run = resumed_later(start, lambda run: None)
    run.scheduler = holding = Holding(run.optimizer)  # type: ignore[assignment]
    after = holding.after
    before = (dict(after.state_dict()), list(holding.base_lrs), run.optimizer.param_groups[0]["lr"])
    with pytest.raises(LookupError, match="not this scheduler"):
        run.load()
    assert holding.after is after
    assert after.optimizer is run.optimizer
    assert equal((dict(after.state_dict()), list(holding.base_lrs), run.optimizer.param_groups[0]["lr"]), before)


class WarmUp(LRScheduler):
    """A scheduler of the published kind: its state has the scheduler that it holds."""

    def __init__(self, optimizer: torch.optim.Optimizer, after: Any) -> None:
        self.after = after
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def step(self, epoch: int | None = None) -> None:
        for after in self.after if isinstance(self.after, list) else [self.after]:
            after.step()
        self._last_lr = self.get_lr()


def _held_alone(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return WarmUp(optimizer, CosineAnnealingLR(optimizer, T_max=9))


def _held_in_a_list(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return WarmUp(optimizer, [CosineAnnealingLR(optimizer, T_max=9)])


def _held_by_one_that_is_held(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return WarmUp(optimizer, _held_alone(optimizer))


def _held_in_a_sequence(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return SequentialLR(optimizer, [_held_alone(optimizer), _held_alone(optimizer)], milestones=[50])


@pytest.mark.parametrize("exclude", [[], ["optimizer"], ["0"]], ids=["all", "no optimizer", "not one layer"])
def test_a_scheduler_that_empties_the_moments_and_refuses_leaves_them(
    start: Start, equal: Same, monkeypatch: pytest.MonkeyPatch, exclude: list[str]
) -> None:
    run = resumed_later(start, lambda run: None)

    def refuse(state: object) -> None:
        for entry in run.optimizer.state.values():
            entry.clear()
        raise LookupError("not this scheduler")

    monkeypatch.setattr(run.scheduler, "load_state_dict", refuse)
    before = run.picture()
    with pytest.raises(LookupError, match="not this scheduler"):
        run.load(exclude_keys=exclude)
    assert equal(run.picture(), before)


@pytest.mark.parametrize("made", [_held_alone, _held_in_a_list, _held_by_one_that_is_held, _held_in_a_sequence])
@pytest.mark.parametrize("is_of_another_manager", [False, True])
def test_a_scheduler_that_another_one_holds_goes_on(
    start: Start, monkeypatch: pytest.MonkeyPatch, made: Any, is_of_another_manager: bool
) -> None:
    first, second = start(), start(seed=1)
    for run in (first, second):
        run.scheduler = made(run.optimizer)
    first.train(3)
    with monkeypatch.context() as patch:
        if is_of_another_manager:
            patch.setattr(state, "_as_states", lambda handed_out: handed_out)
        first.save(3)
    second.load()
    for run in (first, second):
        run.train(4)
    assert second.optimizer.param_groups[0]["lr"] == first.optimizer.param_groups[0]["lr"] != 0.01


def test_a_scheduler_that_refuses_leaves_the_one_that_it_holds(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    first, run = start(), start(seed=1)
    first.scheduler = _held_alone(first.optimizer)  # type: ignore[assignment]
    first.train(3)
    first.save(3)
    run.scheduler = holding = WarmUp(run.optimizer, CosineAnnealingLR(run.optimizer, T_max=9))  # type: ignore[assignment]
    after, before = holding.after, holding.after.state_dict()

    def refuse(state: object) -> None:
        raise LookupError("not this scheduler")

    monkeypatch.setattr(holding, "load_state_dict", refuse)
    with pytest.raises(LookupError, match="not this scheduler"):
        run.load()
    assert holding.after is after
    assert after.state_dict() == before


def test_random_streams_of_another_torch(start: Start, equal: Same, monkeypatch: pytest.MonkeyPatch) -> None:
    def odd_streams() -> dict[str, Any]:
        return {"python": random.getstate(), "torch_cpu": torch.zeros(7, dtype=torch.uint8)}

    first = start()
    first.train(2)
    with monkeypatch.context() as patch:
        patch.setattr(state, "get_rng_state", odd_streams)
        first.save(2)
    run = start(seed=1)
    run.train(3)
    refused_untouched(run, equal, (RuntimeError, TypeError), "RNG state")  # type: ignore[arg-type]


def test_a_loader_that_can_not_say_where_it_is_can_be_resumed(start: Start) -> None:
    first = start()
    first.train(2)
    first.save(2)
    run = start(seed=1)

    def refuse() -> dict[str, int]:
        raise RuntimeError("not begun")

    run.loader.state_dict = refuse  # type: ignore[method-assign]
    assert run.load()[0] == 2
    assert run.loader.position == 2


def test_a_tensor_whose_elements_share_memory_is_named(start: Start, equal: Same) -> None:
    run = resumed_later(start, lambda run: None)
    run.model[1].running_mean = torch.zeros(1).expand(8)
    refused_untouched(run, equal, ValueError, r"1\.running_mean .* can't be written to: .* clone it")


def test_a_lazy_layer_is_lazy_again() -> None:
    layer = torch.nn.LazyLinear(2)
    with pytest.raises(LookupError), ExitStack() as undo:
        weights.remember_model(undo, layer)
        layer.load_state_dict(torch.nn.Linear(3, 2).state_dict())
        assert layer.weight.shape == (2, 3)
        raise LookupError
    assert layer.has_uninitialized_params()
    layer.load_state_dict(torch.nn.Linear(4, 2).state_dict())
    assert layer.weight.shape == (2, 4)


def test_torchs_own_code_needs_no_copy_of_what_is_overwritten(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the model was copied")

    run = resumed_later(start, lambda run: None)
    monkeypatch.setattr(weights, "remember_model", refuse)
    assert run.load()[0] == 2


def test_an_interrupt_in_the_last_copies_comes_when_all_is_copied() -> None:
    class Interrupting(torch.Tensor):
        at = 0

        @classmethod
        def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
            if function is torch.Tensor.copy_:
                cls.at += 1
                if cls.at == 1:
                    raise KeyboardInterrupt
            return super().__torch_function__(function, types, arguments, options or {})

    targets = [torch.zeros(2), torch.zeros(2).as_subclass(Interrupting), torch.zeros(2)]
    with pytest.raises(KeyboardInterrupt):
        weights.copy_all([(target, torch.ones(2)) for target in targets])
    assert [target.tolist() for target in targets] == [[1.0, 1.0]] * 3


def test_a_model_without_a_state_can_be_saved_and_resumed(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.ReLU())
    optimizer = torch.optim.SGD([{"params": []}], lr=0.5)
    manager = forge_ref.CheckpointManager(forge_ref.CheckpointConfig(dir=str(tmp_path / "run")), model, optimizer)
    manager.save(3, 30, extra={"note": 1})
    manager.export(str(tmp_path / "weights.pt"))
    assert manager.load() == (3, 30, {"note": 1})


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"f": lambda: None}, r"extra\['f'\] can't be saved"),
        ({"a": 1, "g": {"h": {3: (lambda: None)}}}, r"extra\['g'\]\['h'\]\[3\] can't be saved"),
        ({"l": [lambda: None]}, r"extra\['l'\] can't be saved"),
        ({"vlm_freeze": {1, 2}}, r"extra\['vlm_freeze'\] can't be saved as JSON"),
    ],
)
def test_an_extra_that_can_not_be_saved_is_named(start: Start, extra: dict[str, Any], named: str) -> None:
    run = start()
    with pytest.raises(ValueError, match=named):
        run.save(1, extra=extra)
    assert not run.folder.exists()


@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_nothing_that_raises_after_the_commit_makes_a_failure_of_it(start: Start, mode: str) -> None:
    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "committed" in record.msg:
                raise RuntimeError("no log server")

    log, handler = logging.getLogger("forge_ref"), Raising()
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        run = start(async_mode=mode)
        run.save(1)
        run.manager.wait()
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
    assert (run.folder / "latest").resolve().name == "step_1"


TABLE = torch.tensor([[0.0, 1.0], [2.0, 0.0]])


@pytest.mark.parametrize(
    ("make", "loaded"),
    [
        (torch.Tensor.to_sparse, 5 * TABLE),
        (torch.Tensor.to_sparse, torch.ones(2, 2)),
        (torch.Tensor.to_sparse_csr, 5 * TABLE),
    ],
    ids=["coo", "coo-with-more-values", "csr"],
)
def test_a_sparse_tensor_gets_its_values_back(
    make: Callable[[torch.Tensor], torch.Tensor], loaded: torch.Tensor
) -> None:
    model = torch.nn.Module()
    model.table = torch.nn.Buffer(make(TABLE))
    held = model.table
    with ExitStack() as undo:
        remember(undo, "the model", [model])
        held.copy_(make(loaded))
    assert model.table is held
    assert torch.equal(held.to_dense(), TABLE)
