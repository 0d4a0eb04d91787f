"""Whatever changes between two saves, the second holds what is there; what has not changed is not planned again."""

import tempfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from forge_ref import CheckpointConfig, CheckpointManager, forms, plan, saving, storage
from forge_ref.engine.leaves import flatten

MODES = ("disabled", "async")


class Life:
    """A run that has taken a step, and saves one checkpoint after another."""

    def __init__(self, folder: Path, mode: str) -> None:
        torch.manual_seed(0)
        self.folder = folder
        self.model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.model(torch.randn(5, 3)).sum().backward()
        self.optimizer.step()
        self.step = 0
        config = CheckpointConfig(dir=str(folder), keep_last_n=2, async_mode=mode)
        self.manager = CheckpointManager(config, self.model, self.optimizer)

    @property
    def weight(self) -> torch.nn.Parameter:
        parameter = self.model[0].weight
        assert isinstance(parameter, torch.nn.Parameter)
        return parameter

    @property
    def moments(self) -> dict[Any, Any]:
        """Of the first parameter that has an entry."""
        return self.first_entry[1]

    @property
    def first_entry(self) -> tuple[torch.Tensor, dict[Any, Any]]:
        """The first parameter that has an entry, or one that gets it here; and the entry."""
        parameter = next(iter(self.optimizer.state), self.weight)
        return parameter, self.optimizer.state[parameter]

    def change(self, name: str) -> None:
        """Make one of the changes; the optimizer then has no parameters but the model's."""
        CHANGES[name](self)
        known = {id(parameter) for parameter in self.model.parameters()}
        for group in self.optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) in known]
        for parameter in [key for key in self.optimizer.state if id(key) not in known]:
            del self.optimizer.state[parameter]

    def state(self) -> dict[str, Any]:
        """A copy of what a save has to hold, by way of torch alone."""
        whole = self.optimizer.state_dict()
        known = {id(parameter): name for name, parameter in self.model.named_parameters()}
        names = [known[id(parameter)] for group in self.optimizer.param_groups for parameter in group["params"]]
        groups = [{**group, "params": [names[index] for index in group["params"]]} for group in whole["param_groups"]]
        entries = {names[index]: entry for index, entry in whole["state"].items()}
        return copied(
            {"model": dict(sorted(self.model.state_dict().items())), "state": entries, "param_groups": groups}
        )

    def save(self) -> None:
        """Save, change every value while the flush may be on its way, and put all back when it has ended."""
        self.step += 1
        self.manager.save(self.step)
        moments = [value for entry in self.optimizer.state.values() for value in entry.values()]
        tensors = [value for value in (*self.model.state_dict().values(), *moments) if is_dense(value)]
        kept = [(tensor, tensor.detach().clone()) for tensor in tensors if 0 not in tensor.stride()]
        with torch.no_grad():
            for tensor, _ in kept:
                tensor.zero_()
            self.manager.wait()
            for tensor, values in kept:
                tensor.copy_(values)

    def saved(self) -> dict[str, Any]:
        """What stands in the newest checkpoint."""
        path = self.folder / f"step_{self.step}"
        read = forms.unpack(storage.open_shards(path, None).read(lambda _: True), path)
        return {
            "model": dict(sorted(read["model"].items())),
            **{key: read["optimizer"][key] for key in ("state", "param_groups")},
        }

    def described(self) -> dict[str, tuple[Any, ...]]:
        """What stock DCP says of the tensors in it."""
        entries = FileSystemReader(self.folder / f"step_{self.step}").read_metadata().state_dict_metadata
        return {
            name: (entry.properties.dtype, entry.size, entry.properties.requires_grad)
            for name, entry in entries.items()
            if isinstance(entry, TensorStorageMetadata) and name.startswith(("model.", "optimizer.state."))
        }


def is_dense(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout is torch.strided


def copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return type(value)((key, copied(item)) for key, item in value.items())
    return [copied(item) for item in value] if type(value) is list else value


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one.to_dense(), other.to_dense())
    if isinstance(one, dict):
        return same(list(one), list(other)) and same(list(one.values()), list(other.values()))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_the_comparison_of_these_tests_tells_states_apart() -> None:
    ones = {"a": [torch.ones(2)]}
    assert same(ones, copied(ones))
    for other in (torch.zeros(2), torch.ones(2).double(), torch.ones(1, 2), torch.ones(1), 1.0):
        assert not same(ones, {"a": [other]})
    assert not same({"a": 1, "b": 1}, {"b": 1, "a": 1})
    assert not same({1: 1}, {True: 1})


def _data(make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Life], object]:
    """Give the same parameter other memory."""

    def change(life: Life) -> None:
        life.weight.data = make(life.weight.data)

    return change


def _moment(make: Callable[[Any], Any]) -> Callable[[Life], object]:
    def change(life: Life) -> None:
        before = life.moments.get("exp_avg")
        life.moments["exp_avg"] = make(before if is_dense(before) else torch.ones(2))

    return change


def _another_parameter(life: Life) -> None:
    life.model[2].weight = parameter = torch.nn.Parameter(torch.randn(4, 5))
    life.optimizer.param_groups[0]["params"].append(parameter)


def _exchanged(life: Life) -> None:
    one, other = life.model[0], life.model[2]
    one.weight, other.weight = other.weight, one.weight


def _exchanged_moments(life: Life) -> None:
    moments = life.moments
    if {"exp_avg", "exp_avg_sq"} <= moments.keys():
        moments["exp_avg"], moments["exp_avg_sq"] = moments["exp_avg_sq"], moments["exp_avg"]


def _other_class_of_entry(life: Life) -> None:
    parameter, entry = life.first_entry
    life.optimizer.state[parameter] = OrderedDict(entry)


def _order_of_moments(life: Life) -> None:
    moments = life.moments
    moments["step"] = moments.pop("step", torch.ones(()))


def _order_of_entries(life: Life) -> None:
    parameter, entry = life.first_entry
    del life.optimizer.state[parameter]
    life.optimizer.state[parameter] = entry


def _name(life: Life) -> None:
    bias = life.model[2]._parameters.pop("bias", None)
    life.model[2].register_parameter("renamed", torch.nn.Parameter(torch.ones(1)) if bias is None else bias)


def _group(life: Life) -> None:
    if len(life.optimizer.param_groups[0]["params"]) > 1:
        life.optimizer.add_param_group({"params": [life.optimizer.param_groups[0]["params"].pop()], "lr": 0.5})


def _hook(life: Life) -> None:
    life.model.register_state_dict_post_hook(
        lambda _m, values, prefix, _l: values.update({f"{prefix}more": torch.ones(2)})
    )


CHANGES: dict[str, Callable[[Life], object]] = {
    "nothing": lambda life: None,
    "values in place": lambda life: life.weight.data.add_(1),
    "the memory of a parameter": _data(torch.clone),
    "its shape": _data(lambda _: torch.randn(2, 7)),
    "its size alone": _data(lambda data: data[:1].clone()),
    "its type": _data(torch.Tensor.bfloat16),
    "how it lies in memory": _data(lambda data: torch.randn(3, 3).t()),
    "a view of another one's memory": _data(lambda data: torch.randn(9)[:1].expand(4)),
    "no elements": _data(lambda data: data.new_empty(0, 3)),
    "another parameter of that name": _another_parameter,
    "two parameters exchanged": _exchanged,
    "one frozen": lambda life: life.weight.requires_grad_(not life.weight.requires_grad),
    "one tied": lambda life: setattr(life.model[2], "weight", life.weight),
    "a parameter more": lambda life: life.model.register_parameter(
        f"more{life.step}", torch.nn.Parameter(torch.ones(2))
    ),
    "another name": _name,
    "a buffer more": lambda life: life.model[1].register_buffer(f"more{life.step}", torch.ones(2)),
    "a buffer that is not saved any more": lambda life: life.model[1]._non_persistent_buffers_set.add("running_mean"),
    "the type of a buffer": lambda life: life.model[1].register_buffer("running_var", torch.ones(3).double()),
    "a sparse buffer": lambda life: life.model.register_buffer("sparse", torch.eye(2).to_sparse()),
    "a name that a hook adds": _hook,
    "values of a moment": lambda life: [one.data.add_(1) for one in life.moments.values() if is_dense(one)],
    "a moment's memory": _moment(torch.clone),
    "a moment's shape": _moment(lambda _: torch.randn(2, 2, 2)),
    "a moment's type": _moment(torch.Tensor.double),
    "how a moment lies in memory": _moment(lambda _: torch.randn(3, 3).t()),
    "whether a moment requires gradients": _moment(lambda one: one.clone().requires_grad_()),
    "a number for a moment": _moment(lambda _: 3),
    "a parameter for a moment": _moment(lambda one: torch.nn.Parameter(one.clone())),
    "a sparse moment": _moment(lambda _: torch.eye(3).to_sparse()),
    "moments in a dict": _moment(lambda one: {"inner": one.clone()}),
    "two moments exchanged": _exchanged_moments,
    "a moment more": lambda life: life.moments.update(more=torch.ones(1)),
    "a moment under a number": lambda life: life.moments.update({1: torch.ones(1)}),
    "a moment under a truth value": lambda life: life.moments.update({True: torch.ones(2)}),
    "a moment less": lambda life: life.moments.pop("exp_avg_sq", None),
    "the order of moments": _order_of_moments,
    "no moments of a parameter": lambda life: life.moments.clear(),
    "moments in another kind of dict": _other_class_of_entry,
    "one parameter without an entry": lambda life: life.optimizer.state.pop(life.weight, None),
    "the order of the entries": _order_of_entries,
    "no state at all": lambda life: life.optimizer.state.clear(),
    "a rate": lambda life: life.optimizer.param_groups[0].update(lr=0.1 + life.step),
    "a rate in a tensor": lambda life: life.optimizer.param_groups[0].update(lr=torch.tensor(0.3)),
    "a setting more": lambda life: life.optimizer.param_groups[0].update(own=("text", None)),
    "another group": _group,
}


def _holds_what_is_there(life: Life) -> None:
    """Save; the checkpoint has every value, and stock DCP finds each tensor in it as taken without a plan."""
    taken = saving.taken_state(life.model, life.optimizer)
    planned, alone = plan.Planner().leaves(taken), flatten(forms.pack(taken))
    assert {one.name: one for one in planned.layout} == {one.name: one for one in alone.layout}
    assert {**planned.paths, "forms.optimizer": 0} == {**alone.paths, "forms.optimizer": 0}
    state = life.state()
    life.save()
    assert same(life.saved(), state)
    wanted = {one.name: (one.dtype, one.shape, one.requires_grad) for one in alone.layout}
    assert life.described() == {
        name: one for name, one in wanted.items() if name.startswith(("model.", "optimizer.state."))
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_save_after_a_change_holds_exactly_what_is_there(tmp_path: Path, change: str, mode: str) -> None:
    life = Life(tmp_path, mode)
    _holds_what_is_there(life)
    life.change(change)
    _holds_what_is_there(life)
    _holds_what_is_there(life)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(MODES), st.lists(st.sampled_from(list(CHANGES)), min_size=2, max_size=6))
def test_so_does_every_save_of_a_sequence_of_changes(mode: str, changes: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        life = Life(Path(folder), mode)
        for change in changes:
            life.change(change)
            _holds_what_is_there(life)


@pytest.mark.parametrize("mode", MODES)
def test_training_that_goes_on_is_not_planned_again_and_a_changed_model_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    planned, calls = plan._planned, Counter[Any]()

    def counting(prefix: Any, description: Any) -> Any:
        calls[prefix] += 1
        return planned(prefix, description)

    monkeypatch.setattr(plan, "_planned", counting)
    life = Life(tmp_path, mode)
    for change in ("nothing", "values in place", "the memory of a parameter", "a rate", "values of a moment"):
        life.change(change)
        life.optimizer.step()
        life.save()
    assert calls == {(): 1, ("optimizer", "state"): 1}
    life.change("its type")
    life.save()
    assert calls == {(): 2, ("optimizer", "state"): 1}
    life.change("a moment more")
    life.save()
    assert calls == {(): 2, ("optimizer", "state"): 2}


@pytest.mark.parametrize("mode", MODES)
def test_a_moment_that_has_lost_its_values_is_refused_after_a_plan_as_well(tmp_path: Path, mode: str) -> None:
    life = Life(tmp_path, mode)
    life.save()
    life.moments["exp_avg"] = life.moments["exp_avg"].to("meta")
    with pytest.raises(
        ValueError, match=r"optimizer\.state\.0\.weight\.exp_avg can't be saved: it is on the meta device"
    ):
        life.manager.save(2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.ones(3, device="meta"),
        lambda: torch.ones(3).numpy(),
    ],
    ids=["nested", "quantised", "sparse", "without values", "no tensor"],
)
def test_tensors_that_are_not_dense_make_no_rows(make: Callable[[], torch.Tensor]) -> None:
    assert plan._described({"weight": {"exp_avg": torch.ones(3)}}) is not None
    assert plan._described({"weight": {"exp_avg": torch.ones(3), "odd": make()}}) is None


def test_names_that_meet_are_told_apart_as_without_a_plan() -> None:
    """Parameter `a` with the moment `b.c`, and parameter `a.b` with the moment `c`."""
    rows = {"a": {"b.c": torch.ones(2), "d": torch.ones(3)}, "a.b": {"c": torch.zeros(2)}}
    taken = {"model": {"weight": torch.ones(1)}, "optimizer": {"state": rows, "param_groups": []}}
    leaves, unplanned = plan.Planner().leaves(taken), flatten(forms.pack(taken))
    assert leaves.paths == unplanned.paths
    assert len({path for path in leaves.paths.values() if path[0] == "optimizer"}) == 4
