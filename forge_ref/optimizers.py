"""The optimizer's state, between the live optimizer and dicts keyed by names of parameters.

It is taken as it is.  An optimizer that has never stepped has no moments, and
gets none: an invented step counter would change the updates that follow.

Invariants: taking the state leaves no trace in the optimizer (commit.inert); a
saved state is compared with the live one in full before that is changed; and
what is loaded has the types and the precision that were saved.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only

from forge_ref import flattened, weights
from forge_ref.messages import log as _log
from forge_ref.messages import printable, some
from forge_ref.pieces import PLAIN, Piece, dtype_of, fill, shape_of
from forge_ref.undo import remember

_KIND, _OTHERS, _BESIDE = "kind", "others", "beside"
"""Keys of an optimizer's saved state, beside `state` and `param_groups`: the name of its class, the state that belongs
to no parameter, and what else its `state_dict` had."""
_PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter, DTensor)
_DICTS = (dict, OrderedDict)
"""Types that can be built anew from their items; a dict of another class, such as a `Counter`, is filled instead."""
_OF_SCHEDULERS = frozenset(
    {"params", "param_names", "initial_lr", "min_lr", "max_lr", "base_momentum", "max_momentum", "swa_lr"}
)
"""Keys of a parameter group that do not belong to the optimizer's kind."""
_OPTIMIZER_CODE = ("load_state_dict", "__setstate__")
_OPTIMIZER_HOOKS = ("_optimizer_load_state_dict_pre_hooks", "_optimizer_load_state_dict_post_hooks")


def optimizer_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return its state dict by names of parameters; state under other keys is under `_OTHERS`.

    Torch's helper would fill in an optimizer without state, by clearing gradients and taking a step.
    """
    whole, known = optimizer.state_dict(), weights.names_of_parameters(model)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    try:
        names = {position: known[id(parameter)] for position, parameter in enumerate(parameters)}
    except KeyError as error:
        in_groups = ((number, one) for number, group in enumerate(optimizer.param_groups) for one in group["params"])
        number, strange = next((number, one) for number, one in in_groups if id(one) not in known)
        raise ValueError(
            f"the optimizer holds a parameter of shape {tuple(strange.shape)}, in its group {number}, that the model "
            "does not have; build the optimizer from this model's parameters"
        ) from error
    _check_keys(optimizer, names)
    state, groups = whole.pop("state"), whole.pop("param_groups")
    return {
        "state": {names[key]: entry for key, entry in state.items() if key in names},
        "param_groups": [{**group, "params": [names[position] for position in group["params"]]} for group in groups],
        _KIND: type(optimizer).__qualname__,
        _OTHERS: {key: entry for key, entry in state.items() if key not in names},
        _BESIDE: whole,
    }


def _check_keys(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> None:
    """`ValueError` for a key that torch takes for the number of a parameter: it mixes the two entries up."""
    for key in getattr(optimizer, "state", {}):
        if not isinstance(key, torch.Tensor) and key in names:
            raise ValueError(
                f"the optimizer's state has the key {key!r}, which can't be told from its parameter number {key!r}, "
                f"{names[key]}; store that state under text"
            )


def match_optimizer(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    saved: Mapping[str, Any],
    source: object,
    spared: weights.Spared = frozenset(),
) -> dict[str, Any]:
    """Return the saved state as the optimizer takes it; `ValueError` for another optimizer, or other groups.

    A parameter without saved state had none: it has never been stepped.  State
    of a parameter that the model no longer has is left out with a warning, and
    what is spared keeps the state that it has.
    """
    live = optimizer_state(model, optimizer)
    names = [name for group in live["param_groups"] for name in group["params"]]
    if flattened.is_flattened(saved):
        saved = flattened.nested(saved, live["param_groups"], source)
    state, groups = _by_name(saved, names, source)
    _check_kind(optimizer, saved.get(_KIND), groups, source)
    ignored = {name for name in names if weights.is_below(name, spared)} | _surplus(model, names, groups, source)
    position = {name: index for index, name in enumerate(names)}
    state = {
        **{name: entry for name, entry in state.items() if name not in ignored},
        **{name: entry for name, entry in live["state"].items() if name in ignored},
    }
    return {
        **saved.get(_BESIDE, {}),
        "state": {
            **{position[name]: entry for name, entry in state.items() if name in position},
            **saved.get(_OTHERS, {}),
        },
        "param_groups": [
            {**group, "params": [position[name] for name in members["params"]]}
            for members, group in _paired(live["param_groups"], groups, ignored, source)
        ],
    }


def _check_kind(
    optimizer: torch.optim.Optimizer, kind: str | None, groups: Sequence[Mapping[str, Any]], source: object
) -> None:
    """`ValueError` for the state of another optimizer; where no class is recorded, its settings have to fit."""
    live = type(optimizer).__qualname__
    lacking = {key for group in groups for key in optimizer.defaults.keys() - group.keys()}
    unknown = {key for group in groups for key in group.keys() - optimizer.defaults.keys() - _OF_SCHEDULERS}
    if kind is None and lacking and unknown:
        kind = f"another class, with {some(sorted(unknown))} and without {some(sorted(lacking))}"
    if kind is not None and kind != live:
        raise ValueError(
            f"{source} has the state of an optimizer of {printable(kind)}, and this run's is {live}; "
            "resume with the class that was saved, or exclude 'optimizer'"
        )


def _surplus(
    model: torch.nn.Module, names: Collection[str], groups: Sequence[Mapping[str, Any]], source: object
) -> set[str]:
    """Return the saved parameters that are no longer in the model."""
    saved = {name for group in groups for name in group["params"]}
    surplus = saved.difference(names)
    surplus -= weights.model_state(model).keys() if surplus else set()
    if surplus:
        _log.warning(
            "%s holds optimizer state of %s, which the model does not have; left out", source, some(sorted(surplus))
        )
    return surplus


def _paired(
    live_groups: Sequence[Mapping[str, Any]],
    groups: Sequence[Mapping[str, Any]],
    ignored: Collection[str],
    source: object,
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Return each live group with the saved one of the same members; `ValueError` if a group has no partner."""
    by_members: dict[frozenset[str], list[Mapping[str, Any]]] = defaultdict(list)
    for group in groups:
        by_members[frozenset(group["params"]).difference(ignored)].append(group)
    paired = []
    for live in live_groups:
        same = by_members[frozenset(live["params"]).difference(ignored)]
        if not same:
            raise ValueError(
                f"{source} has no optimizer group of exactly {some(live['params'])}; "
                "build the optimizer with the groups it was saved with, or exclude 'optimizer'"
            )
        paired.append((live, same.pop(0)))  # groups without parameters are told apart by their order alone
    if left := [members for members, rest in by_members.items() if members and rest]:
        raise ValueError(
            f"{source} has an optimizer group of {some(sorted(left[0]))}, which this optimizer does not have; "
            "build the optimizer with the groups it was saved with, or exclude 'optimizer'"
        )
    return paired


def _by_name(
    saved: Mapping[str, Any], names: list[str], source: object
) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    """Return state and groups keyed by parameter names, also if they were saved by position."""
    state, groups = saved.get("state", {}), saved.get("param_groups")
    if groups is None:
        raise ValueError(
            f"{source} has optimizer state without param_groups, which can't be loaded; exclude 'optimizer'"
        )
    members = [member for group in groups for member in group["params"]]
    if any(isinstance(member, str) for member in members):
        return state, groups
    if len(members) != len(names):
        raise ValueError(
            f"{source} has the state of an optimizer of {len(members)} parameters, and this run's has {len(names)}; "
            "build the optimizer with the parameters it was saved with, or exclude 'optimizer'"
        )
    return (
        {names[int(index)]: entry for index, entry in state.items()},
        [{**group, "params": [names[index] for index in group["params"]]} for group in groups],
    )


def remember_optimizer(undo: ExitStack, optimizer: torch.optim.Optimizer) -> None:
    """When the stack unwinds, put the optimizer back as it is now.

    The values of moments are copied only where code that is not torch's loads them: torch's leaves the old ones alone.
    """
    leave: list[object] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not _has_own_loading(optimizer):
        entries = [entry for entry in optimizer.state.values() if isinstance(entry, Mapping)]
        leave += [value for entry in entries for value in entry.values() if isinstance(value, torch.Tensor)]
    inner = [value for value in vars(optimizer).values() if isinstance(value, torch.optim.Optimizer)]
    remember(undo, "the optimizer", [optimizer, *inner], leave)


def load_optimizer(optimizer: torch.optim.Optimizer, matched: dict[str, Any]) -> None:
    """Put a state that `match_optimizer` gave into the optimizer, in the precision it was saved in.

    Of itself an optimizer casts moments to the type of their parameter, and
    makes a generator's name of text.
    """
    owners = dict(enumerate(parameter for group in optimizer.param_groups for parameter in group["params"]))
    devices = {parameter.device for parameter in owners.values()}
    if not _has_own_loading(optimizer) and _stay_as_they_are(owners, devices, matched["state"]):
        # torch takes what is under no number as it is, and would look up the group of each tensor of all others
        moments = {owners[key]: dict(entry) for key, entry in matched["state"].items()}
        optimizer.load_state_dict({**matched, "state": moments})
        return
    state = {
        key: _like(owners[key], entry) if key in owners else _on_device(devices, entry)
        for key, entry in matched["state"].items()
    }
    optimizer.load_state_dict({**matched, "state": {key: _guarded(entry) for key, entry in state.items()}})
    for key, entry in state.items():
        owner = owners.get(key, key)
        if owner in optimizer.state:
            optimizer.state[owner] = _restored(optimizer.state[owner], entry)


def _has_own_loading(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether code that is not torch's takes part in a load."""
    return weights.has_own_code(optimizer, _OPTIMIZER_CODE, _OPTIMIZER_HOOKS)


def _stay_as_they_are(
    owners: Mapping[int, torch.Tensor], devices: Collection[torch.device], state: Mapping[Any, Any]
) -> bool:
    """Return whether all of this state are plain tensors on the one device of all parameters, each of a parameter."""
    if not owners.keys() >= state.keys() or {*map(type, state.values())} != {dict}:
        return False
    tensors = list(chain.from_iterable(map(dict.values, state.values())))
    are_plain = {*map(type, tensors)} == {torch.Tensor} and PLAIN.issuperset(map(type, owners.values()))
    return are_plain and {*map(attrgetter("device"), tensors)} == devices


@dataclass(frozen=True)
class _Kept:
    """A value that an optimizer would convert or rebuild when it loads its state."""

    value: Any


def _guarded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _guarded(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_guarded, value))
    return _Kept(value) if _is_taken_apart(value) else value


def _is_taken_apart(value: Any) -> bool:
    """Return whether an optimizer would change what the value is: torch converts tensors, and rebuilds iterables."""
    if isinstance(value, torch.Tensor):
        return type(value) not in _PLAIN_TENSORS or value.is_quantized
    return isinstance(value, Iterable)


def _restored(loaded: Any, saved: Any) -> Any:
    """Return what an optimizer has loaded, in the types that were saved, unless it chose another type itself."""
    if isinstance(loaded, _Kept):
        return loaded.value
    if isinstance(loaded, torch.Tensor) and isinstance(saved, torch.Tensor):
        return loaded if loaded.dtype == saved.dtype else saved.to(loaded.device)
    if type(loaded) in _DICTS and isinstance(saved, dict):
        items = {key: _restored(item, saved[key]) if key in saved else item for key, item in loaded.items()}
        if type(saved) not in _DICTS:
            return _filled(saved, items)
        return OrderedDict(items) if isinstance(saved, OrderedDict) else items
    if type(loaded) is type(saved) and type(saved) in (list, tuple) and len(loaded) == len(saved):
        return type(saved)(map(_restored, loaded, saved))
    return loaded


def _on_device(devices: Collection[torch.device], value: Any) -> Any:
    """Return state that belongs to no parameter on the one device that all parameters are on.

    Of itself an optimizer leaves such state where it was.
    """
    if len(devices) != 1:
        return value
    (device,) = devices
    return _moved(value, device)


def _filled(value: dict[Any, Any], items: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a dict of whatever class with these items; it was made by the load, so nobody else sees the change."""
    for key, item in items.items():
        value[key] = item
    return value


def _moved(value: Any, device: torch.device) -> Any:
    """Return the value with its tensors on the device, except those of no dimension, such as counters of steps."""
    if isinstance(value, dict) and type(value) not in _DICTS:
        return _filled(value, {key: _moved(item, device) for key, item in value.items()})
    if isinstance(value, list) and type(value) is not list:
        value[:] = [_moved(item, device) for item in value]
        return value
    return tree_map_only(torch.Tensor, lambda tensor: tensor.to(device) if tensor.ndim else tensor, value)


def _like(parameter: torch.Tensor, value: Any) -> Any:
    """Return moments of a sharded parameter, sharded as it is; those of another shape are left as they are."""
    if type(value) in _DICTS:
        return type(value)((key, _like(parameter, item)) for key, item in value.items())
    if isinstance(value, dict):
        return _filled(value, {key: _like(parameter, item) for key, item in value.items()})
    if type(value) in (list, tuple):
        return type(value)(_like(parameter, item) for item in value)
    is_whole = isinstance(value, (torch.Tensor, Piece)) and not isinstance(value, DTensor)
    if isinstance(parameter, DTensor) and is_whole and shape_of(value) == tuple(parameter.shape):
        return fill(cast(DTensor, torch.empty_like(parameter, dtype=dtype_of(value))), value)
    return _moved(value, parameter.device) if _is_taken_apart(value) else value
