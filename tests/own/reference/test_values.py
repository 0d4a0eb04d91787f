"""What comes back is what was saved: nested values, modules that size themselves, names that are left out."""

import copy
import enum
import logging
import zlib
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import names
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.state_dict_loader import load as stock_load

from forge_ref import CheckpointConfig, CheckpointManager, forms, gradients, optimizers, own_values, storage, weights
from forge_ref.engine.leaves import flatten
from forge_ref.errors import DamagedError

Optimizer = Callable[[torch.nn.Module], torch.optim.Optimizer]


def adam(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.1)


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def manager(folder: Path, model: torch.nn.Module, optimizer: Optimizer = adam, **config: Any) -> CheckpointManager:
    return CheckpointManager(CheckpointConfig(dir=str(folder), **config), model, optimizer(model))


def stepped(judged: CheckpointManager, values: torch.Tensor | None = None) -> CheckpointManager:
    judged.model(torch.ones(3, 4) if values is None else values).sum().backward()
    judged.optimizer.step()
    return judged


def linear() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))


# -- forms --------------------------------------------------------------------

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(max_size=4),
    st.binary(max_size=4),
    st.just(torch.float16),
    st.integers(0, 99).map(lambda number: torch.tensor([number, 1])),
)
keys = st.one_of(st.text(".~a1", max_size=3), st.integers(0, 3), st.booleans(), st.none(), st.tuples(st.integers(0, 2)))
nests = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
        st.dictionaries(keys, inner, max_size=3).map(OrderedDict),
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        pairs = zip(one.items(), other.items(), strict=True) if len(one) == len(other) else [((0, 0), (1, 1))]
        return all(same(key, named) and same(value, kept) for (key, value), (named, kept) in pairs)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text("abc.", min_size=1, max_size=3), nests, max_size=3))
@example({"a": [[{}], [torch.tensor([0, 1])]]})
def test_nested_values_of_every_shape_come_back_through_dcp(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    state = {"part": {"kept": torch.ones(1), "values": values}}
    storage.write(forms.pack(state), folder)
    saved = storage.open_shards(folder, None).read(lambda _: True)
    assert same(forms.unpack(saved, folder)["part"]["values"], values)


def test_plain_tensors_need_no_form() -> None:
    packed = forms.pack({"model": dict(linear().state_dict())})
    assert packed.keys() == {"model"}
    assert forms.unpack(packed, Path("here")) == packed


def test_a_form_without_its_tensors_is_damage(tmp_path: Path) -> None:
    packed = flatten(forms.pack({"part": {"a": {1: torch.ones(2)}}})).nested()
    with pytest.raises(DamagedError, match=r"here does not hold what the form of its part says.*another checkpoint"):
        forms.unpack({**packed, "part": {}}, Path("here"))


class Tagged(torch.Tensor):
    """Of a class that nobody has called safe."""


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    "value,why",
    [
        (lambda: 1, "function, which can't be pickled"),
        (iter([1]), ""),
        ({torch.ones(1): 1}, "a dict with tensors for keys"),
        (torch.ones(2, device="meta"), "on the meta device"),
        (torch.nn.UninitializedParameter(), "not initialized"),
        (torch.ones(2).as_subclass(Tagged), "type Tagged.*add_safe_globals"),
    ],
)
def test_what_no_load_could_take_is_refused_by_its_name(tmp_path: Path, value: Any, why: str) -> None:
    judged = stepped(manager(tmp_path / "run", linear()))
    judged.save(1)
    judged.optimizer.state[next(iter(judged.optimizer.state))]["odd"] = [{"inner": value}]
    if not why:  # pickles know how to go on with it
        judged.save(2)
        return
    with pytest.raises(ValueError, match=rf"^optimizer\.state\.0\.weight\.odd\.0\.inner can't be saved: .*{why}"):
        judged.save(2)
    assert names(tmp_path / "run") == ["latest", "step_1"]


def test_values_that_only_code_can_make_come_back_all_the_same(tmp_path: Path) -> None:
    judged = stepped(manager(tmp_path, linear()))
    judged.optimizer.param_groups[0]["colour"] = Colour.RED
    judged.save(1)
    again = manager(tmp_path, linear())
    again.load()
    assert again.optimizer.param_groups[0]["colour"] is Colour.RED


def test_stock_dcp_finds_moments_and_settings_under_its_own_names(tmp_path: Path) -> None:
    judged = stepped(manager(tmp_path, linear()))
    judged.save(1)
    wanted = {
        "optimizer.state.0.weight.exp_avg": torch.zeros(3, 4),
        "optimizer.state.0.weight.step": torch.zeros(()),
        "optimizer.param_groups.0.lr": 0.0,
        "optimizer.param_groups.0.foreach": 0,
    }
    stock_load(wanted, checkpoint_id=str(tmp_path / "step_1"), no_dist=True)
    weight = judged.model[0].weight  # type: ignore[index]
    assert torch.equal(wanted["optimizer.state.0.weight.exp_avg"], judged.optimizer.state[weight]["exp_avg"])
    assert wanted["optimizer.param_groups.0.lr"] == 0.1
    assert wanted["optimizer.param_groups.0.foreach"] is None


def test_a_checkpoint_from_before_there_were_forms_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = forms.pack
    without = lambda *state: {part: values for part, values in pack(*state).items() if part != forms.FORMS}  # noqa: E731
    monkeypatch.setattr(forms, "pack", without)
    judged = stepped(manager(tmp_path, linear()))
    judged.save(1)
    again = manager(tmp_path, linear())
    assert again.load()[0] == 1
    before, after = judged.optimizer.state_dict(), again.optimizer.state_dict()
    assert before["param_groups"] == after["param_groups"]
    assert all(same(before["state"][index], after["state"][index]) for index in before["state"])


# -- the optimizer ------------------------------------------------------------


def test_what_else_an_optimizer_has_in_its_state_dict_comes_back(tmp_path: Path) -> None:
    class Tuned(torch.optim.SGD):
        rate: Any = None

        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "tuner": {"rate": self.rate}}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.rate = state_dict["tuner"]["rate"]
            super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})

    judged = manager(tmp_path, linear(), lambda model: Tuned(model.parameters(), lr=0.1))
    judged.optimizer.rate = (3, torch.ones(2))  # type: ignore[attr-defined]
    judged.save(1)
    again = manager(tmp_path, linear(), lambda model: Tuned(model.parameters(), lr=0.1))
    again.load()
    assert same(again.optimizer.rate, (3, torch.ones(2)))  # type: ignore[attr-defined]


def test_another_class_is_refused_by_both_names(tmp_path: Path) -> None:
    stepped(manager(tmp_path, linear(), sgd)).save(1)
    with pytest.raises(ValueError, match=r"step_1 has the state of an optimizer of SGD, and this run's is AdamW.*excl"):
        manager(tmp_path, linear()).load()
    assert manager(tmp_path, linear(), exclude_from_loading=["optimizer"]).load()[0] == 1


def test_where_no_class_is_recorded_the_settings_tell(tmp_path: Path) -> None:
    model = linear()
    groups = [{"params": [0, 1, 2, 3], "lr": 0.1, "momentum": 0.9, "initial_lr": 0.1}]
    with pytest.raises(ValueError, match=r"another class, with momentum and without .*betas"):
        optimizers.match_optimizer(model, adam(model), {"state": {}, "param_groups": groups}, "here")
    older = {key: value for key, value in adam(model).param_groups[0].items() if key not in ("params", "fused")}
    for group in (older, {**older, "max_lr": 1.0}, {**older, "fused": None, "mine": 1}):
        matched = optimizers.match_optimizer(
            model, adam(model), {"state": {}, "param_groups": [{**group, "params": [0, 1, 2, 3]}]}, "here"
        )
        assert matched["param_groups"][0]["lr"] == 0.1


def test_a_group_that_the_optimizer_does_not_have_is_refused(tmp_path: Path) -> None:
    def two(model: torch.nn.Module) -> torch.optim.Optimizer:
        first, second = model
        return torch.optim.AdamW([{"params": first.parameters()}, {"params": second.parameters()}])

    stepped(manager(tmp_path, linear(), two)).save(1)
    fewer = manager(tmp_path, linear(), lambda model: torch.optim.AdamW(model[0].parameters()))  # type: ignore[index]
    with pytest.raises(ValueError, match=r"group of 1\.bias, 1\.weight, which this optimizer does not have"):
        fewer.load()


def test_surplus_moments_are_left_out_with_their_group(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def each(model: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW([{"params": layer.parameters()} for layer in model.children()])

    stepped(manager(tmp_path, torch.nn.Sequential(*linear().children(), torch.nn.Linear(2, 2)), each)).save(1)
    again = manager(tmp_path, linear(), each)
    assert again.load()[0] == 1
    said = [message for message in caplog.messages if "2.weight" in message]
    assert ["optimizer" in message for message in said] == [False, True]


class Window(dict[str, Any]):
    """A dict of a class of its own."""


class Steps(list[int]):
    """A list of a class of its own."""


@pytest.mark.parametrize("where", ["among moments", "nested", "the state of a parameter", "under a name", "at a name"])
@pytest.mark.parametrize(
    "value",
    [
        Counter("aab"),
        defaultdict(list, {1: [2]}),
        Window(window=[1, 2], sum=torch.ones(3, 4)),
        Steps([1, 2]),
        torch.quantize_per_tensor(torch.ones(3, 4), 0.1, 0, torch.quint8),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_an_optimizer_would_rebuild_come_back_as_they_were(tmp_path: Path, value: Any, where: str) -> None:
    def state(judged: CheckpointManager) -> Any:
        return judged.optimizer.state[judged.model[0].weight]  # type: ignore[index]

    judged = stepped(manager(tmp_path, linear(), sgd))
    named: Any = judged.optimizer.state
    match where:
        case "among moments":
            state(judged)["odd"] = value
        case "nested":
            state(judged)["odd"] = {"inner": [value]}
        case "the state of a parameter" if isinstance(value, dict):
            judged.optimizer.state[judged.model[0].weight] = value  # type: ignore[index]
        case "under a name":
            named["mine"] = {"odd": value}
        case "at a name":
            named["mine"] = value
    judged.save(1)
    again = manager(tmp_path, linear(), sgd)
    again.load()
    assert same(state(again), state(judged))
    assert same(again.optimizer.state.get("mine"), named.get("mine"))  # type: ignore[call-overload]


def test_a_value_that_is_put_back_as_one_is_on_the_device_of_its_parameter() -> None:
    parameter = torch.nn.Parameter(torch.empty(2, device="meta"))
    optimizer = torch.optim.SGD([parameter], lr=0.1)

    def saved() -> Window:
        inner = Window(sum=torch.ones(2), steps=Steps([torch.ones(2)]))  # type: ignore[list-item]
        return Window(sum=torch.ones(2), step=torch.tensor(3.0), inner=inner)

    groups = optimizer.state_dict()["param_groups"]
    optimizers.load_optimizer(optimizer, {"state": {0: {"odd": saved()}, "mine": saved()}, "param_groups": groups})
    for placed in (optimizer.state[parameter]["odd"], optimizer.state["mine"]):  # type: ignore[index]
        assert [type(placed), type(placed["inner"]), type(placed["inner"]["steps"])] == [Window, Window, Steps]
        assert [placed["sum"].device.type, placed["step"].device.type] == ["meta", "cpu"]
        assert [placed["inner"]["sum"].device.type, placed["inner"]["steps"][0].device.type] == ["meta", "meta"]


def test_a_dict_that_nobody_can_load_is_refused_by_its_name(tmp_path: Path) -> None:
    class Local(dict[str, Any]):
        pass

    judged = stepped(manager(tmp_path / "run", linear()))
    judged.optimizer.state[judged.model[0].weight]["odd"] = Local(a=1)  # type: ignore[index]
    with pytest.raises(ValueError, match=r"^optimizer\.state\.0\.weight\.odd can't be saved: it is a Local"):
        judged.save(1)
    assert names(tmp_path / "run") == []


def test_an_optimizer_of_another_model_is_refused_by_its_group(tmp_path: Path) -> None:
    other = torch.nn.Linear(5, 2)
    judged = manager(tmp_path, linear(), lambda model: torch.optim.SGD([*model.parameters(), other.weight], lr=0.1))
    with pytest.raises(ValueError, match=r"parameter of shape \(2, 5\), in its group 0, that the model"):
        judged.save(1)


@pytest.mark.parametrize("key", [0, True, 1.0])
def test_state_under_the_number_of_a_parameter_is_refused_by_its_key(tmp_path: Path, key: Any) -> None:
    """Torch mixes the two entries up, in its own `state_dict` as well."""
    judged = stepped(manager(tmp_path, linear(), sgd))
    judged.optimizer.state[key] = {"mine": torch.ones(2)}
    with pytest.raises(ValueError, match=rf"state has the key {key}, .* its parameter number {key}, 0\.(weight|bias);"):
        judged.save(1)
    assert names(tmp_path) == []
    del judged.optimizer.state[key]
    judged.optimizer.state[99] = {"mine": torch.ones(2)}
    judged.save(2)
    again = manager(tmp_path, linear(), sgd)
    assert again.load()[0] == 2
    assert same(again.optimizer.state[99], {"mine": torch.ones(2)})


# -- modes of torch -----------------------------------------------------------


@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_tensors_of_a_save_or_a_load_in_inference_mode_can_be_written_to_outside_of_it(
    tmp_path: Path, mode: str
) -> None:
    judged = stepped(manager(tmp_path, linear(), async_mode=mode))
    with torch.inference_mode():
        judged.save(1)
    stepped(judged).save(2)
    judged.wait()
    again = manager(tmp_path, linear())
    with torch.inference_mode():
        assert again.load()[0] == 2
    stepped(again)


def test_a_model_made_for_inference_can_be_loaded_where_it_can_be_written_to(tmp_path: Path) -> None:
    manager(tmp_path, linear()).save(1)
    with torch.inference_mode():
        model = linear()
        assert manager(tmp_path, model).load()[0] == 1
    with pytest.raises(ValueError, match="can't be written to"):
        manager(tmp_path, model).load()


def test_the_default_device_is_not_where_a_checkpoint_is_read_to(tmp_path: Path) -> None:
    judged = stepped(manager(tmp_path, linear()))
    with torch.device("meta"):
        judged.save(1)
    again = manager(tmp_path, linear())
    with torch.device("meta"):
        assert again.load()[0] == 1
    assert same(again.model.state_dict(), judged.model.state_dict())
    assert same(again.optimizer.state_dict(), judged.optimizer.state_dict())
    stepped(again)


# -- modules ------------------------------------------------------------------


def test_a_module_that_takes_no_other_shape_by_itself_is_asked_and_stays(tmp_path: Path) -> None:
    """Batch norm has a loading of its own, which compares shapes as well."""
    manager(tmp_path, torch.nn.Sequential(torch.nn.BatchNorm1d(3))).save(1)
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(4))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"does not fit the model: .*0\.running_mean: saved \(3,\), model \(4,\)"):
        manager(tmp_path, model).load()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Growing(torch.nn.Module):
    """Takes the saved length of its buffer by a hook."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.rows: torch.Tensor
        self.register_buffer("rows", torch.arange(float(length)))
        self.register_buffer("fleeting", torch.zeros(1), persistent=False)
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.register_load_state_dict_pre_hook(_resized)


def _resized(module: Any, state_dict: Any, prefix: str, *_: Any) -> None:
    module.rows = module.rows.new_zeros(state_dict[f"{prefix}rows"].shape)


@pytest.mark.parametrize("wrapped", [lambda model: model, torch.nn.Sequential, torch.compile])
def test_a_hook_may_size_a_buffer(tmp_path: Path, wrapped: Any) -> None:
    manager(tmp_path, wrapped(Growing(5))).save(1)
    model = Growing(2)
    model.fleeting += 3  # type: ignore[operator]
    manager(tmp_path, wrapped(model)).load()
    assert torch.equal(model.rows, torch.arange(5.0))
    assert torch.equal(model.fleeting, torch.full((1,), 3.0)), "what is not persistent is nobody's business"  # type: ignore[arg-type]


class Holding(torch.nn.Module):
    """Its hook holds the module itself, so a copy of the module has the hook of the original."""

    tries = 0
    """Of all of them: a load that is undone also undoes what a module counts in itself."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.arange(float(length)))
        self.register_buffer("columns", torch.arange(float(length)))
        self.weight = torch.nn.Parameter(torch.zeros(2))

        def resized(state_dict: Any, prefix: str, *_: Any) -> None:
            Holding.tries += 1
            self.rows = torch.zeros_like(state_dict[f"{prefix}rows"])
            self.columns = torch.zeros_like(state_dict[f"{prefix}columns"])

        self._register_load_state_dict_pre_hook(resized)


def test_a_hook_that_holds_its_module_sizes_it_and_is_asked_once(tmp_path: Path) -> None:
    manager(tmp_path, Holding(5)).save(1)
    model, before = Holding(2), Holding.tries
    manager(tmp_path, model).load()
    assert torch.equal(model.rows, torch.arange(5.0))
    assert torch.equal(model.columns, torch.arange(5.0))
    assert Holding.tries - before == 2, "once to find out, for both buffers, and once to load"


def test_a_module_that_has_tried_is_as_it_was_when_the_load_is_refused(tmp_path: Path) -> None:
    manager(tmp_path, torch.nn.Sequential(Holding(5), torch.nn.Linear(2, 2))).save(1)
    held = Holding(2)
    rows, columns = held.rows, held.columns
    with torch.no_grad():
        held.weight += 1
    with pytest.raises(ValueError, match=r"the model: 1\.weight: .*, 1\.bias: saved \(2,\), model \(3,\)$"):
        manager(tmp_path, torch.nn.Sequential(held, torch.nn.Linear(3, 3))).load()
    assert held.rows is rows
    assert held.columns is columns
    assert torch.equal(rows, torch.arange(2.0))
    assert torch.equal(held.weight, torch.ones(2))


def test_a_hook_is_found_below_a_child_called_module(tmp_path: Path) -> None:
    def model(length: int) -> torch.nn.Module:
        return torch.nn.Sequential(OrderedDict(module=torch.nn.Sequential(Growing(length))))

    manager(tmp_path, model(5)).save(1)
    judged = model(2)
    manager(tmp_path, judged).load()
    assert judged.state_dict()["module.0.rows"].shape == (5,)


def test_a_hook_of_the_model_itself_is_found_below_ddp(tmp_path: Path) -> None:
    class Alone(torch.nn.parallel.DistributedDataParallel):
        """Needs no process group."""

        def __init__(self, module: torch.nn.Module) -> None:
            torch.nn.Module.__init__(self)
            self.module = module

    manager(tmp_path, Alone(Growing(5))).save(1)
    judged = Growing(2)
    manager(tmp_path, Alone(judged)).load()
    assert torch.equal(judged.rows, torch.arange(5.0))


def test_a_layer_that_has_seen_no_batch_is_not_saved_and_takes_what_was(tmp_path: Path) -> None:
    judged = manager(tmp_path, torch.nn.Sequential(torch.nn.LazyLinear(3)))
    with pytest.raises(ValueError, match=r"model\.0\.weight can't be saved: it is not initialized"):
        judged.save(1)
    assert not list(tmp_path.iterdir())
    stepped(judged).save(1)
    again = manager(tmp_path, torch.nn.Sequential(torch.nn.LazyLinear(3)))
    again.load()
    assert torch.equal(again.model[0].weight, judged.model[0].weight)  # type: ignore[index]
    assert len(again.optimizer.state) == 2


def test_placeholders_are_refused_by_their_names(tmp_path: Path) -> None:
    stepped(manager(tmp_path, linear())).save(1)
    hollow = linear()
    hollow[1] = torch.nn.Linear(3, 2, device="meta")  # type: ignore[index]
    judged = manager(tmp_path, hollow)
    before = copy.deepcopy(hollow[0].state_dict())  # type: ignore[index]
    for attempt in (judged.load, lambda: judged.save(2)):
        with pytest.raises(ValueError, match=r"has 1\.bias, 1\.weight on the meta device"):
            attempt()
    assert all(torch.equal(value, before[name]) for name, value in hollow[0].state_dict().items())  # type: ignore[index]


def test_names_are_those_without_wrappers(tmp_path: Path) -> None:
    stepped(manager(tmp_path, linear())).save(1)
    model = linear()
    kept = model[1].weight.detach().clone()  # type: ignore[index]
    manager(tmp_path, torch.compile(model), exclude_from_loading=["1."]).load()  # type: ignore[arg-type]
    assert torch.equal(model[1].weight, kept)  # type: ignore[index]


def test_a_new_head_is_left_out_with_its_group(tmp_path: Path) -> None:
    """The checkpoint has no value for it and no group with it, and neither is asked for."""
    stepped(manager(tmp_path, linear())).save(1)
    model = torch.nn.Sequential(*linear().children(), torch.nn.Linear(2, 2))
    judged = stepped(manager(tmp_path, model, exclude_from_loading=["2"]))
    head = {name: value.clone() for name, value in judged.optimizer.state[model[2].weight].items()}
    assert judged.load()[0] == 1
    assert same(judged.optimizer.state[model[2].weight], head)


# -- gradients ----------------------------------------------------------------


def watched() -> tuple[torch.nn.Module, torch.optim.Optimizer, gradients.GradientWatch]:
    model = linear()
    optimizer = adam(model)
    return model, optimizer, gradients.GradientWatch(optimizer)


def backward(model: torch.nn.Module, scale: float = 1.0) -> None:
    (model(torch.ones(3, 4)).sum() * scale).backward()


def test_gradients_are_seen_until_a_step_takes_them() -> None:
    model, optimizer, watch = watched()
    assert not watch.has_accumulated()
    for clear in (lambda: None, optimizer.zero_grad, lambda: optimizer.zero_grad(set_to_none=False)):
        clear()
        assert not watch.has_accumulated()
        backward(model)
        assert watch.has_accumulated()
        backward(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert watch.has_accumulated()
        optimizer.step()
        assert not watch.has_accumulated()


def test_a_step_that_a_scaler_has_skipped_leaves_nothing_to_say() -> None:
    model, _, watch = watched()
    backward(model, float("inf"))
    assert not watch.has_accumulated()


def test_nothing_is_said_where_somebody_else_steps() -> None:
    model, _, watch = watched()
    other = adam(model)
    backward(model)
    other.step()
    backward(model)
    assert not watch.has_accumulated()


def test_a_watch_ends_with_its_manager(tmp_path: Path) -> None:
    model = linear()
    optimizer = adam(model)
    for _ in range(3):
        CheckpointManager(CheckpointConfig(dir=str(tmp_path)), model, optimizer)
    assert len(optimizer._optimizer_step_post_hooks) <= 1
    copy.deepcopy(optimizer)


def test_gradients_from_before_a_load_are_not_those_of_the_resumed_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    judged = stepped(manager(tmp_path, linear()))
    judged.save(1)
    backward(judged.model)
    judged.load()
    with caplog.at_level(logging.WARNING):
        judged.save(2)
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING and "gradients" in one.getMessage()]


def test_gradients_that_come_between_a_load_and_the_first_step_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    judged = stepped(manager(tmp_path, linear()))
    judged.save(1)
    judged.load()
    backward(judged.model)
    with caplog.at_level(logging.WARNING):
        judged.save(2)
    assert [one for one in caplog.records if one.levelno >= logging.WARNING and "gradients" in one.getMessage()]


# -- values of each rank ------------------------------------------------------


def test_notes_are_told_apart_by_step_and_stage_and_stay_few() -> None:
    notes = frozenset((5, stage, checksum) for stage in (0, 1) for checksum in range(4))
    merged = own_values.merged(notes, frozenset({(5, 2, 7)}))
    assert len(merged) == 5
    assert own_values.differing(merged) == {0, 1}
    assert own_values.differing(frozenset({(5, None, 1)})) == frozenset()


def test_equal_values_have_one_checksum() -> None:
    one, other = ({"values": {"mean": torch.ones(3) * number}, "form": None} for number in (1, 1))
    assert own_values.checksum(one) == own_values.checksum(other) != 0
    assert own_values.checksum({**one, "form": torch.zeros(1)}) != own_values.checksum(one)
    part = {"values": {"mean": torch.ones(3, 2).t()[0]}, "form": None}
    assert own_values.checksum(part) == own_values.checksum(one)
    assert own_values.checksum({}) == zlib.crc32(b"")


class Noting(torch.nn.Module):
    """Its extra state is what it was given."""

    def __init__(self, notes: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.notes = notes

    def get_extra_state(self) -> Any:
        return self.notes

    def set_extra_state(self, notes: Any) -> None:
        self.notes = notes


def test_a_rank_whose_value_needs_no_form_gets_it_without_the_first_rank_s_form(tmp_path: Path) -> None:
    written = []
    for place, notes in enumerate([{"seen": (1, 2)}, torch.tensor([3, 4])]):
        taken = {weights.MODEL: Noting(notes).state_dict()}
        leaves = flatten(forms.pack(taken))
        own = own_values.of(Noting(notes), taken, leaves.nested())
        written.append(own_values.added(leaves, own, place).nested())
    saved = {**written[0], own_values.OWN: {**written[0][own_values.OWN], **written[1][own_values.OWN]}}
    loaded = [forms.unpack(own_values.taken(saved, place, tmp_path), tmp_path)[weights.MODEL] for place in range(2)]
    assert loaded[0]["_extra_state"] == {"seen": (1, 2)}
    assert torch.equal(loaded[1]["_extra_state"], torch.tensor([3, 4]))


class Name(str):
    """Counts how often one is compared."""

    compared = 0

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Name.compared += 1
        return str.__eq__(self, other)


class Groups(list[Any]):
    """Counts how often somebody goes through it."""

    passes = 0

    def __iter__(self) -> Any:
        self.passes += 1
        return super().__iter__()


def test_state_that_belongs_to_no_parameter_costs_no_pass_over_all_parameters() -> None:
    passes = []
    for count in (1, 50):
        optimizer = sgd(torch.nn.ParameterList([torch.zeros(1) for _ in range(30)]))
        matched = optimizer.state_dict()
        matched["state"] = {Name(f"name {index}"): {"seen": torch.zeros(1)} for index in range(count)}
        groups = Groups(optimizer.param_groups)
        optimizer.param_groups = groups
        Name.compared = 0
        optimizers.load_optimizer(optimizer, matched)
        assert Name.compared <= 10 * count
        assert len(optimizer.state) == count
        passes.append(groups.passes)
    assert passes[0] == passes[1]


@pytest.mark.parametrize("kind", [list, dict])
def test_a_value_that_contains_itself_is_refused_by_its_name(kind: type) -> None:
    value: Any = kind()
    if isinstance(value, dict):
        value["again"] = value
    else:
        value.append(value)
    with pytest.raises(ValueError, match=r"model\.odd can't be saved: it is nested too deeply, or contains itself"):
        forms.pack({"model": {"odd": value}})


def test_a_model_made_for_inference_can_be_saved(tmp_path: Path) -> None:
    with torch.inference_mode():
        model = torch.nn.Linear(2, 2)
    judged = manager(tmp_path, model)
    judged.save(1)
    assert judged.peek_saved_step() == 1
