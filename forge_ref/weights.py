"""The model's values, between the live modules and dicts keyed by names.

Invariants: taking the values leaves no trace in the modules (commit.inert); and
saved values are compared with the live ones in full before any of them is
changed (resume.all-or-nothing).  Where loading runs code that is not torch's
own, what it changes can be put back (resume.code-that-raises); all other loading
is plain copies, which can't fail.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy

from forge_ref import flattened
from forge_ref.interrupts import Deferral
from forge_ref.messages import log as _log
from forge_ref.messages import some
from forge_ref.pieces import Copy, Piece, copies_into, dtype_of, fill, is_plain, piece_of, shape_of
from forge_ref.undo import copied, is_writable, later, remember

MODEL = "model"
OPTIMIZER = "optimizer"
PARTS = (MODEL, OPTIMIZER)
_EXTRA_STATE = "_extra_state"
"""How torch names what a module's `get_extra_state` gives."""
_WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module"})
Spared = frozenset[str]
"""Names in the model, or what they begin with up to a dot, that a load leaves as they are."""
_OF_TORCH = (
    "torch.nn.", "torch.optim.", "torch.distributed.fsdp._fully_shard.", "torch.distributed.algorithms._checkpoint."
)  # fmt: skip
"""Where code is defined whose part in a load is nothing but copying.  FSDP2's makes sure that parameters are sharded,
and that of activation checkpointing takes a word out of names."""
_MODULE_CODE = (
    "state_dict", "_save_to_state_dict", "get_extra_state",
    "load_state_dict", "_load_from_state_dict", "set_extra_state",
)  # fmt: skip
_MODULE_HOOKS = (
    "_state_dict_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"
)  # fmt: skip


def check_material(model: torch.nn.Module, doing: str) -> None:
    """`ValueError` names the parameters and buffers on the meta device, which have neither values nor room for them."""
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    if hollow := sorted(name for name, tensor in tensors if tensor.is_meta):
        raise ValueError(
            f"the model has {some(hollow)} on the meta device; give them memory (`to_empty`, and their values) "
            f"before you {doing}"
        )


def ordinary_tensors() -> AbstractContextManager[object]:
    """Return a context outside the caller's inference mode: nobody else could write to tensors that are made in it."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def mode_to_load_in(model: torch.nn.Module) -> AbstractContextManager[object]:
    """Return the same, unless the model itself was made in inference mode, and so can be written to only there."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    is_for_inference = any(tensor.is_inference() for tensor in tensors if not is_lazy(tensor))
    return nullcontext() if is_for_inference else ordinary_tensors()


def names_of_own_values(model: torch.nn.Module, values: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of buffers and extra states: nothing keeps their values equal on all ranks."""
    places = {buffer.data_ptr() for buffer in model.buffers() if is_plain(buffer)}
    return frozenset(
        name
        for name, value in values.items()
        if name.rpartition(".")[2] == _EXTRA_STATE or (is_plain(value) and value.data_ptr() in places)
    )


def model_state(model: torch.nn.Module) -> dict[str, Any]:
    """Return the model's own values by name, sharing memory with it.

    Torch's helper refuses a model without any, and looks every name up in the
    modules, which is needed only where some wrap others.
    """
    if is_empty(model):
        return {}
    return get_model_state_dict(model) if _has_wrappers(model) else model.state_dict()


def _has_wrappers(model: torch.nn.Module) -> bool:
    """Return whether names of the state dict may be other ones than those in the model."""
    return any(
        isinstance(module, torch.nn.parallel.DistributedDataParallel)
        or hasattr(type(module), "_fqn_modifiers")
        or not module._modules.keys().isdisjoint(_WRAPPERS)
        for module in model.modules()
    )


def names_of_parameters(model: torch.nn.Module) -> dict[int, str]:
    """Return the names of the parameters in the state dict, by identity; of one that has several, the first."""
    owners = _clean_names(model) if _has_wrappers(model) else {}
    found = {}
    for name, parameter in model.named_parameters():
        owner, _, word = name.rpartition(".")
        found[id(parameter)] = f"{owners[owner]}.{word}".removeprefix(".") if owners else name
    return found


def is_empty(model: torch.nn.Module) -> bool:
    """Return whether the model has nothing that a checkpoint could hold."""
    return next(itertools.chain(model.parameters(), model.buffers()), None) is None and not model.state_dict()


def whole(model: torch.nn.Module) -> dict[str, Any]:
    """Return the model's full values, on the first rank only; all ranks that share the model take part."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return {} if is_empty(model) else get_model_state_dict(model, options=options)


def places(live: Mapping[str, Any]) -> Callable[[Sequence[object]], Piece | None]:
    """Return a function from the keys of a saved tensor to this rank's piece of it; None for all of it.

    Moments lie where their parameter does: an optimizer that has never
    stepped has none to ask.
    """
    sharded = {name: piece_of(value) for name, value in live.items() if isinstance(value, DTensor)}
    if not sharded:
        return lambda _: None

    def place_of(keys: Sequence[object]) -> Piece | None:
        match keys:
            case (part, str(name)) if part == MODEL:
                return sharded.get(name)
            case (part, "state", str(name), *_) if part == OPTIMIZER:
                return sharded.get(name)
            case (part, str(key)) if part == OPTIMIZER:
                return sharded.get(flattened.owner(key, sharded) or "")
        return None

    return place_of


def match_model(
    model: torch.nn.Module,
    live: Mapping[str, Any],
    saved: Mapping[str, Any],
    source: object,
    is_import: bool = False,
    spared: Spared = frozenset(),
) -> dict[str, Any]:
    """Return the saved values that the model takes; `ValueError` names what is missing, or has another shape or type.

    It also names a tensor of the model that can't be written to.

    Saved names that the model does not know are left out with a warning; and
    only imported weights are cast, with a warning, since a resume would go on
    with other numbers than were saved (resume.exact).  What is spared keeps the
    value that it has.  Extra state, lazy layers and modules with a loading of
    their own decide about shapes themselves.
    """
    check_material(model, "load it")
    if spared:
        live = {name: value for name, value in live.items() if not is_below(name, spared)}
        saved = {name: value for name, value in saved.items() if not is_below(name, spared)}
    saved = {**{name: value for name, value in live.items() if _has_no_leaves(value)}, **saved}
    if missing := sorted(live.keys() - saved.keys()):
        raise ValueError(f"{source} lacks {some(missing)} of the model; exclude 'model' to keep the model as it is")
    fixed = {name: value for name, value in live.items() if not _takes_any_shape(name, value)}
    unlike = [name for name, value in fixed.items() if shape_of(saved[name]) != shape_of(value)]
    sized_by_module = _sized_by_their_module(model, saved, unlike)
    differing = [
        f"{name}: saved {shape_of(saved[name])}, model {shape_of(live[name])}"
        for name in unlike
        if name not in sized_by_module
    ]
    if differing:
        raise ValueError(f"{source} does not fit the model: {some(differing)}")
    if others := [
        f"{name}: saved {dtype_of(saved[name])}, model {dtype_of(value)}"
        for name, value in fixed.items()
        if isinstance(value, torch.Tensor) and dtype_of(saved[name]) != dtype_of(value)
    ]:
        if not is_import:
            raise ValueError(
                f"{source} has other types than the model: {some(others)}; build the model with the saved types, "
                "or exclude 'model'"
            )
        _log.warning("%s is cast to the types of the model: %s", source, some(others))
    if unknown := sorted(saved.keys() - live.keys()):
        _log.warning("%s holds %s, which the model does not have; left out", source, some(unknown))
    _check_writable(live, live)
    return {name: saved[name] for name in live}


def is_below(name: str, prefixes: Collection[str]) -> bool:
    """Return whether a name is one of these, or begins with one and a dot: `layers.10` is not below `layers.1`."""
    return any(f"{name}.".startswith(f"{prefix.removesuffix('.')}.") for prefix in prefixes)


def check_names(model: torch.nn.Module, prefixes: Collection[str], where: str, parts: Collection[str]) -> None:
    """`ValueError` names the prefixes that no parameter or buffer of the model has."""
    names = model_state(model) if prefixes else {}
    if unknown := sorted(prefix for prefix in prefixes if not any(is_below(name, [prefix]) for name in names)):
        raise ValueError(
            f"{where} names {unknown}, which the model does not have; a load can leave out {', '.join(parts)}, "
            "and parameters and buffers by their names, or by the beginning of their names up to a dot"
        )


def _takes_any_shape(name: str, value: Any) -> bool:
    return name.rpartition(".")[2] == _EXTRA_STATE or (isinstance(value, torch.Tensor) and is_lazy(value))


def _sized_by_their_module(model: torch.nn.Module, saved: Mapping[str, Any], unlike: Sequence[str]) -> set[str]:
    """Return the names whose module takes the saved shape by a loading of its own, as growing buffers have it.

    Each such module tries once, and is put back as it was.  A copy could not
    try for it: a hook may hold the module itself.
    """
    modules = _named_modules(model) if unlike else {}
    by_owner: dict[str, list[str]] = defaultdict(list)
    for name in unlike:
        by_owner[name.rpartition(".")[0]].append(name)
    taken: set[str] = set()
    for owner, names in by_owner.items():
        module = modules.get(owner)
        if module is not None and _loads_by_itself(module):
            values = {key: saved[f"{owner}.{key}" if owner else key] for key in _own_names(saved, owner)}
            if _takes(module, values):
                taken.update(names)
    return taken


def _takes(module: torch.nn.Module, values: Mapping[str, Any]) -> bool:
    """Return whether a module loads these values without an error; it is as before afterwards."""
    with Deferral(), ExitStack() as undo, suppress(Exception):  # an error of the module's own code answers the question
        remember_model(undo, module)
        module.load_state_dict(values, strict=False)
        return True
    return False


def _own_names(saved: Mapping[str, Any], owner: str) -> list[str]:
    prefix = f"{owner}." if owner else ""
    return [name[len(prefix) :] for name in saved if name.startswith(prefix) and "." not in name[len(prefix) :]]


def _loads_by_itself(module: torch.nn.Module) -> bool:
    is_own = type(module)._load_from_state_dict is not torch.nn.Module._load_from_state_dict
    return is_own or bool(module._load_state_dict_pre_hooks)


def _named_modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Return the modules by the names of the state dict."""
    names = _clean_names(model)
    return {names[wrapped]: module for wrapped, module in model.named_modules()}


def _clean_names(model: torch.nn.Module) -> dict[str, str]:
    """Return the names of the modules without the prefixes of compilers, checkpointing and DDP."""
    names = {"": ""}
    modules = dict(model.named_modules(remove_duplicate=False))
    for wrapped in modules:
        above, _, word = wrapped.rpartition(".")
        is_ddp = isinstance(modules[above], torch.nn.parallel.DistributedDataParallel)
        is_added = word in _WRAPPERS or (word == "module" and is_ddp)
        names[wrapped] = names[above] if is_added or not word else f"{names[above]}.{word}".removeprefix(".")
    return names


def _has_no_leaves(value: Any) -> bool:
    """Return whether DCP writes nothing for a value, as for a module whose extra state is empty."""
    return isinstance(value, Mapping) and all(map(_has_no_leaves, value.values()))


def _check_writable(live: Mapping[str, Any], names: Iterable[str]) -> None:
    for name in names:
        if type(value := live[name]) is torch.Tensor and not is_writable(value):
            raise ValueError(
                f"{name} of the model can't be written to: its elements share memory, as those of an expanded view do, "
                "or it is an inference tensor; clone it before the load, or exclude 'model'"
            )


def loads_by_copying(model: torch.nn.Module, live: Mapping[str, Any]) -> bool:
    """Return whether all loading code of the model is torch's own, which does nothing but copy values."""
    return all(type(value) in (torch.Tensor, DTensor) for value in live.values()) and not any(
        has_own_code(module, _MODULE_CODE, _MODULE_HOOKS) for module in model.modules()
    )


def copies(live: Mapping[str, Any], matched: Mapping[str, Any]) -> list[Copy]:
    """Return the copies that put values of `match_model` into a model that loads by copying.

    They can't fail, unless a device does.
    """
    return [copy for name, value in matched.items() for copy in copies_into(live[name], value)]


def copy_all(pending: Sequence[Copy]) -> None:
    """Make these copies.

    SIGINT is deferred here, but a handler of another signal may raise in between.
    Then all are made again before its error is raised, so it leaves no mixture.
    """
    try:
        _copy(pending)
    except BaseException:
        _copy(pending)
        raise


@torch.no_grad()
def _copy(pending: Iterable[Copy]) -> None:
    for target, values in pending:
        target.copy_(values)


def has_own_code(owner: object, methods: Iterable[str], hooks: Iterable[str]) -> bool:
    """Return whether any of these methods or hooks is not torch's own: it may do or raise anything."""
    code = [getattr(type(owner), name, None) for name in methods]
    code += [vars(owner)[name] for name in methods if name in vars(owner)]
    code += [getattr(hook, "hook", hook) for name in hooks for hook in getattr(owner, name, {}).values()]
    return any(not str(getattr(part, "__module__", "")).startswith(_OF_TORCH) for part in code if part is not None)


def remember_model(undo: ExitStack, model: torch.nn.Module) -> None:
    """When the stack unwinds, put the model back as it is now; until then the stack holds a copy in host memory."""
    remember(undo, "the model", model.modules())
    for name, module in model.named_modules():
        if type(module).set_extra_state is not torch.nn.Module.set_extra_state:
            extra = copied(module.get_extra_state())
            later(undo, f"the extra state of {name or 'the model'}", module.set_extra_state, extra)


def load_model(model: torch.nn.Module, live: Mapping[str, Any], matched: dict[str, Any]) -> None:
    """Put values that `match_model` gave into the model, by the modules' own code.

    A sharded parameter is filled in place and then handed to DCP's helper as
    itself, so that no second copy of it comes about on its device.  What is
    not among the values stays as it is.
    """
    values = {
        name: fill(target, value) if isinstance(target := live[name], DTensor) else value
        for name, value in matched.items()
    }
    set_model_state_dict(model, values, options=StateDictOptions(strict=live.keys() <= values.keys()))
