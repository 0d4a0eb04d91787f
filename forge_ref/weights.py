"""Model and optimizer state, between the live objects and nested dicts keyed by parameter names.

Invariants: taking the state leaves no trace in the live objects (commit.inert);
and a saved state is compared with the live objects in full before either of
them is changed (resume.all-or-nothing).

The optimizer is taken as it is.  One that has never stepped has no moments,
and gets none: an invented step counter would change the updates that follow.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
)
from torch.distributed.tensor import DTensor

from forge_ref.pieces import Piece, fill, in_pieces, piece_of

MODEL = "model"
OPTIMIZER = "optimizer"
PARTS = (MODEL, OPTIMIZER)
_log = logging.getLogger("forge_ref")


def take(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of both as it is now, sharing memory with them; of sharded tensors, this rank's pieces."""
    state = {MODEL: get_model_state_dict(model), OPTIMIZER: _named_optimizer_state(model, optimizer)}
    return cast(dict[str, Any], in_pieces(state))


def whole(model: torch.nn.Module) -> dict[str, Any]:
    """The model's full values, on the first rank only; all ranks that share the model take part."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def places(model: torch.nn.Module) -> Callable[[Sequence[object]], Piece | None]:
    """Where, in a saved tensor, this rank's piece of it is, by the keys of the tensor; None for all of it.

    Moments lie where their parameter does: an optimizer that has never
    stepped has none to ask.
    """
    sharded = {
        name: piece_of(value) for name, value in get_model_state_dict(model).items() if isinstance(value, DTensor)
    }

    def place_of(keys: Sequence[object]) -> Piece | None:
        match keys:
            case (part, str(name)) if part == MODEL:
                return sharded.get(name)
            case (part, "state", str(name), str()) if part == OPTIMIZER:
                return sharded.get(name)
        return None

    return place_of


class _AsItIs:
    """An optimizer as the state-dict helper sees it.

    Before it reads an optimizer without state, the helper fills it in by
    clearing gradients and taking a step.  This one claims to have state, so
    nothing is filled in, and hands out what is really there.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.state = {"claimed": True}
        self.param_groups = optimizer.param_groups
        self.state_dict = optimizer.state_dict


def _named_optimizer_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    stand_in = cast(torch.optim.Optimizer, _AsItIs(optimizer))
    try:
        return cast(dict[str, Any], get_optimizer_state_dict(model, (stand_in,)))
    except KeyError as error:
        raise ValueError("the optimizer holds a parameter that the model does not have; give both the same") from error


def match_model(
    model: torch.nn.Module, saved: Mapping[str, Any], source: object, is_import: bool = False
) -> dict[str, Any]:
    """The saved values that the model takes; `ValueError` names what it lacks, or has another shape or type.

    Saved names that the model does not know are left out with a warning; and
    only imported weights are cast, with a warning, since a resume would go on
    with other numbers than were saved (resume.exact).
    """
    live = get_model_state_dict(model)
    saved = {**{name: value for name, value in live.items() if _has_no_leaves(value)}, **saved}
    if missing := sorted(live.keys() - saved.keys()):
        raise ValueError(f"{source} lacks {_some(missing)} of the model; exclude 'model' to keep the model as it is")
    differing = [
        f"{name}: saved {_shape(saved[name])}, model {_shape(value)}"
        for name, value in live.items()
        if _shape(saved[name]) != _shape(value)
    ]
    if differing:
        raise ValueError(f"{source} does not fit the model: {_some(differing)}")
    if others := [
        f"{name}: saved {_dtype(saved[name])}, model {_dtype(value)}"
        for name, value in live.items()
        if isinstance(value, torch.Tensor) and _dtype(saved[name]) != _dtype(value)
    ]:
        if not is_import:
            raise ValueError(f"{source} has other types than the model, which has to have those: {_some(others)}")
        _log.warning("%s is cast to the types of the model: %s", source, _some(others))
    if unknown := sorted(saved.keys() - live.keys()):
        _log.warning("%s holds %s, which the model does not have; left out", source, _some(unknown))
    return {name: saved[name] for name in live}


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, (torch.Tensor, Piece)) else None


def _has_no_leaves(value: Any) -> bool:
    """Whether DCP writes nothing for a value, as for a module whose extra state is empty."""
    return isinstance(value, Mapping) and all(map(_has_no_leaves, value.values()))


def load_model(model: torch.nn.Module, matched: dict[str, Any]) -> None:
    """Put values that `match_model` gave into the model.

    A sharded parameter is filled in place and then handed to DCP's helper as
    itself, so that no second copy of it comes about on its device.
    """
    live = get_model_state_dict(model)
    values = {
        name: fill(target, value) if isinstance(target := live[name], DTensor) else value
        for name, value in matched.items()
    }
    set_model_state_dict(model, values)


def match_optimizer(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], source: object
) -> dict[str, Any]:
    """The saved state in the form that the optimizer takes; `ValueError` where parameters are grouped otherwise.

    A parameter without saved state had none: it has never been stepped.
    """
    live_groups = _named_optimizer_state(model, optimizer)["param_groups"]
    names = [name for group in live_groups for name in group["params"]]
    state, groups = _by_name(saved, names, source)
    position = {name: index for index, name in enumerate(names)}
    by_members: dict[frozenset[str], list[Mapping[str, Any]]] = defaultdict(list)
    for group in groups:
        by_members[frozenset(group["params"])].append(group)
    matched = []
    for live in live_groups:
        same = by_members[frozenset(live["params"])]
        if not same:
            raise ValueError(
                f"{source} has no optimizer group of exactly {_some(live['params'])}; "
                "build the optimizer with the groups it was saved with, or exclude 'optimizer'"
            )
        group = same.pop(0)  # groups without parameters are told apart by their order alone
        matched.append({**group, "params": [position[name] for name in live["params"]]})
    return {
        "state": {position[name]: entry for name, entry in state.items() if name in position},
        "param_groups": matched,
    }


def _by_name(
    saved: Mapping[str, Any], names: list[str], source: object
) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    """State and groups keyed by parameter names, also where they were saved by position."""
    state, groups = saved.get("state", {}), saved.get("param_groups")
    if groups is None:
        raise ValueError(f"{source} keeps optimizer state in a form without param_groups; exclude 'optimizer'")
    members = [member for group in groups for member in group["params"]]
    if any(isinstance(member, str) for member in members):
        return state, groups
    if len(members) != len(names):
        raise ValueError(f"{source} has an optimizer of {len(members)} parameters, this one has {len(names)}")
    return (
        {names[int(index)]: entry for index, entry in state.items()},
        [{**group, "params": [names[index] for index in group["params"]]} for group in groups],
    )


def load_optimizer(optimizer: torch.optim.Optimizer, matched: dict[str, Any]) -> None:
    """Put a state that `match_optimizer` gave into the optimizer, in the precision it was saved in.

    Of itself an optimizer casts moments to the type of their parameter.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {index: _like(parameters[index], entry) for index, entry in matched["state"].items()}
    optimizer.load_state_dict({**matched, "state": state})
    for index, entry in state.items():
        live = optimizer.state[parameters[index]]
        for name, value in entry.items():
            if isinstance(value, torch.Tensor) and live[name].dtype != value.dtype:
                live[name] = value.to(live[name].device)


def _like(parameter: torch.Tensor, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Moments of a sharded parameter, sharded as it is; those of another shape stay as they are."""
    if not isinstance(parameter, DTensor):
        return dict(entry)
    return {
        name: fill(cast(DTensor, torch.empty_like(parameter, dtype=_dtype(value))), value)
        if not isinstance(value, DTensor) and _shape(value) == tuple(parameter.shape)
        else value
        for name, value in entry.items()
    }


def _dtype(value: Piece | torch.Tensor) -> torch.dtype:
    return value.values.dtype if isinstance(value, Piece) else value.dtype


def _some(items: list[str]) -> str:
    shown = ", ".join(items[:5])
    return shown if len(items) <= 5 else f"{shown} and {len(items) - 5} more"
