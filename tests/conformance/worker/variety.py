"""Training runs that have, between them, every kind of state that optimizers and modules keep.

Each is the plain run of `workload` with another optimizer, another module in
its model or around it, or a loss scaler, by name.  What is odd in a state
changes the updates or the outputs that follow, so a value that was dropped or
changed shows in the losses; and a fingerprint here tells a tuple from a list, a
number from its text, and an empty dict from none.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .workload import CLASSES, FEATURES, Workload, fingerprint

Groups = list[dict[str, Any]]


def exact(value: Any) -> str:
    """A fingerprint of a nested value, types of keys and containers included."""
    return hashlib.blake2b(repr(_described(value)).encode(), digest_size=8).hexdigest()


def _described(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        kind = "Tensor" if type(value) in (torch.Tensor, nn.Parameter) else type(value).__name__
        return kind, fingerprint(value.whole() if isinstance(value, Coded) else value)
    if isinstance(value, dict):
        return "dict", sorted((repr(key), _described(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [_described(item) for item in value]
    return type(value).__name__, value if not callable(value) else "callable"


# -- optimizers: gradient descent, with what each remembers --------------------


class _Descent(torch.optim.Optimizer):
    """Its rule, `_direction`, says where to go and changes the state of the parameter."""

    def __init__(self, groups: Groups, lr: float = 0.05, **defaults: Any) -> None:
        super().__init__(groups, {"lr": lr, **defaults})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    direction = self._direction(parameter.grad.clone(), self.state[parameter], group)
                    parameter.add_(direction, alpha=-group["lr"])

    def _direction(self, gradient: torch.Tensor, state: dict[Any, Any], group: dict[str, Any]) -> Any:
        raise NotImplementedError


class _Nested(_Descent):
    """Numbers, dicts with numbers for keys, lists and tuples with tensors in them, None, an empty dict."""

    def _direction(self, gradient: torch.Tensor, state: dict[Any, Any], group: dict[str, Any]) -> Any:
        if not state:
            state |= {"count": 0, "window": {}, "queue": [], "pair": (0.5, None), "nothing": {}, 7: {"rest": None}}
        state["count"] += 1
        state["window"][state["count"] % 3] = gradient
        state["queue"] = [*state["queue"], gradient.mean()][-2:]
        state["pair"] = (state["pair"][0] * 0.9, gradient.abs().max())
        assert state["nothing"] == {} and state[7] == {"rest": None}, "nobody changes these"
        recent = torch.stack([state["window"][key] for key in sorted(state["window"])]).mean(0)
        return recent * (1 + state["pair"][0]) + sum(state["queue"])


class _Phases(_Descent):
    """Text."""

    def _direction(self, gradient: torch.Tensor, state: dict[Any, Any], group: dict[str, Any]) -> Any:
        state["phase"] = (state.get("phase", "warm") + "up")[-7:]
        return gradient * (1 + state["phase"].count("u"))


class _Global(_Descent):
    """State of the whole, under a name and not under a parameter."""

    def _direction(self, gradient: torch.Tensor, state: dict[Any, Any], group: dict[str, Any]) -> Any:
        whole = self.state["whole"]  # type: ignore[index]  # torch keeps what is under other keys as it is
        whole["count"] = whole.get("count", 0) + 1
        whole["norm"] = whole.get("norm", torch.zeros(3)) * 0.9 + gradient.norm()
        state["momentum"] = state.get("momentum", torch.zeros_like(gradient)) * 0.9 + gradient
        return state["momentum"] / (1 + whole["norm"][0] * whole["count"])


class _Fields(_Descent):
    """No state but that of its groups: numbers, text, tuples and None, others in each group, and changing."""

    def _direction(self, gradient: torch.Tensor, state: dict[Any, Any], group: dict[str, Any]) -> Any:
        group["taken"] += 1
        group["span"] = (group["span"][0] * 0.97, None)
        return gradient * group["span"][0] * len(group["rule"]) / group["taken"]


class Coded(torch.Tensor):
    """A tensor that is kept as 8-bit codes and a scale, as quantised moments are."""

    codes: torch.Tensor
    scale: torch.Tensor

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scale: torch.Tensor) -> "Coded":
        made: Coded = torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32, device=codes.device)
        made.codes, made.scale = codes, scale
        return made

    @classmethod
    def of(cls, values: torch.Tensor) -> "Coded":
        scale = values.abs().max().clamp(min=1e-12) / 127
        return cls((values / scale).round().to(torch.int8), scale)

    def whole(self) -> torch.Tensor:
        return self.codes.float() * self.scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], *_: Any) -> "Coded":
        return Coded(inner["codes"], inner["scale"])

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Coded({tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        name = function.overloadpacket
        if name in (torch.ops.aten.detach, torch.ops.aten.clone, torch.ops.aten._to_copy, torch.ops.aten.alias):
            return cls(args[0].codes.clone(), args[0].scale.clone())
        raise NotImplementedError(f"{name} of coded values")


torch.serialization.add_safe_globals([Coded])


class _Quantised(_Descent):
    """Moments of a type of their own, which torch loads without running code."""

    def _direction(self, gradient: torch.Tensor, state: dict[Any, Any], group: dict[str, Any]) -> Any:
        before = state["moment"].whole() if "moment" in state else torch.zeros_like(gradient)
        state["moment"] = Coded.of(before * 0.9 + gradient)
        return state["moment"].whole()


class _Precisions(_Descent):
    """Moments in 32 bits of parameters in 16, and moments in 16 bits of parameters in 32."""

    def _direction(self, gradient: torch.Tensor, state: dict[Any, Any], group: dict[str, Any]) -> Any:
        kind = torch.float32 if gradient.dtype == torch.bfloat16 else torch.bfloat16
        before = state.get("moment", torch.zeros_like(gradient, dtype=kind))
        state["moment"] = before * 0.9 + gradient.to(before.dtype)
        return state["moment"].to(gradient.dtype)


class _Scaler(torch.amp.GradScaler):
    """Knows whether it has scaled a loss that no step has used."""

    is_due = False

    def scale(self, outputs: Any) -> Any:
        self.is_due = True
        return super().scale(outputs)


class _Scaled(torch.optim.AdamW):
    """Steps through a loss scaler, as optimizers of frameworks do: not at all where a gradient is not finite.

    So each step is one call of its `step`, a skipped one too, for whoever counts the calls.  torch's own functions
    fill a fresh optimizer before a load by a step without a loss.  Such a step does not use the scaler.
    """

    def __init__(self, groups: Groups, device: str) -> None:
        super().__init__(groups, lr=0.01)
        self.scaler = _Scaler(device, init_scale=2.0**17, growth_interval=2)

    def step(self, closure: Any = None) -> Any:
        if not self.scaler.is_due:
            return super().step()
        inner: Any = _Inner(self.param_groups, super().step)
        self.scaler.step(inner)
        self.scaler.update()
        self.scaler.is_due = False


@dataclass(frozen=True)
class _Inner:
    """What a scaler needs of an optimizer."""

    param_groups: Groups
    step: Callable[[], Any]


class _Unsavable(_Descent):
    """From step 4 on something that nobody can save, let alone load."""

    def _direction(self, gradient: torch.Tensor, state: dict[Any, Any], group: dict[str, Any]) -> Any:
        state["count"] = state.get("count", 0) + 1
        if state["count"] >= 4:
            state["rule"] = lambda: gradient
        return gradient


# -- modules: each passes on what it gets, changed by what it remembers --------


class _Recorder(nn.Module):
    """Extra state of text, numbers and tensors, which grows; in a fresh model there is none of it."""

    def __init__(self) -> None:
        super().__init__()
        self.scales: dict[int, torch.Tensor] = {}

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.scales[len(self.scales)] = values.detach().abs().max()
        return values * (1 + sum(self.scales.values(), torch.zeros(())) / 100)

    def get_extra_state(self) -> Any:
        return {"scales": dict(self.scales), "recipe": ("delayed", None), "nothing": {}}

    def set_extra_state(self, state: Any) -> None:
        assert state["recipe"] == ("delayed", None) and state["nothing"] == {}, "as it was given"
        self.scales = dict(state["scales"])


class _History(nn.Module):
    """Extra state that is one tensor, longer than in a fresh model, as of 8-bit layers."""

    def __init__(self) -> None:
        super().__init__()
        self.history = torch.zeros(0)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.history = torch.cat([self.history, values.detach().abs().max().reshape(1)])
        return values * (1 + self.history.mean() / 100)

    def get_extra_state(self) -> Any:
        return self.history

    def set_extra_state(self, state: Any) -> None:
        self.history = state.clone()


class _Memory(nn.Module):
    """A buffer that grows, with a loading of its own that takes the saved length."""

    rows: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(0, 16))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.rows = torch.cat([self.rows, values.detach()[:1]])
        return values + self.rows.mean(0) / 10

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        if (saved := state_dict.get(f"{prefix}rows")) is not None:
            self.rows = self.rows.new_zeros(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class _Half(nn.Module):
    """A parameter in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, dtype=torch.bfloat16))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values * self.weight


class _Fleeting(nn.Module):
    """A buffer that is not persistent: each process has its own, which nobody saves or restores."""

    cache: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.randn(4), persistent=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values


class _Observer(nn.Module):
    """The bounds of each channel, which quantisation watches; a fresh observer has seen no channel."""

    def __init__(self) -> None:
        super().__init__()
        from torch.ao.quantization.observer import PerChannelMinMaxObserver

        self.watch = PerChannelMinMaxObserver(ch_axis=1)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.watch(values.detach())
        return values * (1 + self.watch.max_val.mean() / 100)


class _Wrapper(nn.Module):
    """Puts the prefix `module.` before every name in a model, as DistributedDataParallel does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = model

    def forward(self, values: torch.Tensor) -> Any:
        return self.module(values)


class _Short(nn.Module):
    """Values and their gradients go through half precision, which has no room for large ones."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values.half().float()


# -- the table ----------------------------------------------------------------


def _layers(*between: nn.Module, first: nn.Module | None = None, last: nn.Module | None = None) -> nn.Sequential:
    first = first or nn.Linear(FEATURES, 16)
    last = last or nn.Linear(16, CLASSES)
    return nn.Sequential(first, nn.BatchNorm1d(16), *between, nn.Dropout(0.2), nn.ReLU(), last)


def _compiled() -> nn.Module:
    """Names with the prefix `_orig_mod.`; no compiler is needed, as the traced operations run as they are."""
    compiled: nn.Module = torch.compile(_layers(), backend="eager")  # type: ignore[assignment]  # a module, for a module
    return compiled


def _grouped(model: nn.Module, **fields: tuple[Any, Any]) -> Groups:
    parameters = list(model.parameters())
    halves = parameters[::2], parameters[1::2]
    return [
        {"params": half, **{key: values[index] for key, values in fields.items()}} for index, half in enumerate(halves)
    ]


def _adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(_grouped(model, weight_decay=(0.1, 0.0)), lr=0.01)


def _scaled(model: nn.Module) -> torch.optim.Optimizer:
    return _Scaled(_grouped(model), next(model.parameters()).device.type)


def _in_another_order(model: nn.Module) -> torch.optim.Optimizer:
    """The same groups, the last one first, and in each of them the last parameter first."""
    groups = [{**group, "params": group["params"][::-1]} for group in _grouped(model, weight_decay=(0.1, 0.0))]
    return torch.optim.AdamW(groups[::-1], lr=0.01)


@dataclass(frozen=True)
class Variety:
    """What is trained, and by which optimizer."""

    model: Callable[[], nn.Module] = _layers
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = _adam


VARIETIES = {
    "adam": Variety(),
    "nested": Variety(optimizer=lambda model: _Nested(_grouped(model))),
    "text": Variety(optimizer=lambda model: _Phases(_grouped(model))),
    "named": Variety(optimizer=lambda model: _Global(_grouped(model))),
    "stateless": Variety(optimizer=lambda model: torch.optim.SGD(_grouped(model, lr=(0.1, 0.05)), lr=0.1)),
    "fields": Variety(
        optimizer=lambda model: _Fields(
            [
                *_grouped(model, rule=("slow", "fastest"), span=((1.0, None), (0.5, None)), taken=(1, 2)),
                {"params": [], "rule": "idle", "span": (0.25, None), "taken": 0},
            ]
        )
    ),
    "quantised": Variety(optimizer=lambda model: _Quantised(_grouped(model))),
    "precisions": Variety(model=lambda: _layers(_Half()), optimizer=lambda model: _Precisions(_grouped(model))),
    "rate": Variety(optimizer=lambda model: torch.optim.AdamW(_grouped(model), lr=torch.tensor(0.01))),
    "adam-in-another-order": Variety(optimizer=_in_another_order),
    "unsavable": Variety(optimizer=lambda model: _Unsavable(_grouped(model))),
    "extra": Variety(model=lambda: _layers(_Recorder())),
    "history": Variety(model=lambda: _layers(_History())),
    "growing": Variety(model=lambda: _layers(_Memory())),
    "fleeting": Variety(model=lambda: _layers(_Fleeting())),
    "observer": Variety(model=lambda: _layers(_Observer())),
    "wrapped": Variety(model=lambda: _Wrapper(_layers())),
    "compiled": Variety(model=_compiled),
    "scaled": Variety(model=lambda: _layers().append(_Short()), optimizer=_scaled),
    "lazy": Variety(model=lambda: _layers(first=nn.LazyLinear(16))),
    "hollow": Variety(model=lambda: _layers(last=nn.Linear(16, CLASSES, device="meta"))),
    "deeper": Variety(model=lambda: _layers().append(nn.Linear(CLASSES, CLASSES))),
    "sgd": Variety(optimizer=lambda model: torch.optim.SGD(_grouped(model), lr=0.1, momentum=0.9)),
    "one-group": Variety(optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=0.01)),
}
"""By name; the suite asks for them with the command `open`."""


class VariedWorkload(Workload):
    """The run of one variety."""

    def __init__(self, name: str, seed: int, device: str = "cpu") -> None:
        self._variety = VARIETIES[name]
        super().__init__(seed, device)
        self.scaler = getattr(self.optimizer, "scaler", None)

    def _placed(self, model: nn.Module) -> nn.Module:
        return model if any(parameter.is_meta for parameter in model.parameters()) else model.to(self.device)

    def _made_model(self) -> nn.Module:
        return self._variety.model()

    def _made_optimizer(self) -> torch.optim.Optimizer:
        return self._variety.optimizer(self.model)

    def digest(self) -> dict[str, str]:
        extra = {name: value for name, value in self.model.state_dict().items() if name.endswith("_extra_state")}
        state = {key: entry for key, entry in self.optimizer.state.items() if isinstance(key, str)}
        fields = [
            {key: value for key, value in group.items() if key not in ("params", "param_names")}
            for group in self.optimizer.param_groups
        ]
        return {
            **super().digest(),
            **{f"buffer/{name}": exact(value) for name, value in extra.items()},
            **{f"moment/{key}": exact(entry) for key, entry in state.items()},
            **{f"group/fields of {index}": exact(group) for index, group in enumerate(fields)},
        }

    def _moments(self) -> dict[str, Any]:
        names: dict[Any, str] = {p: name for name, p in self.model.named_parameters()}
        return {
            names[p]: exact(entry) for p, entry in self.optimizer.state.items() if isinstance(p, torch.Tensor) and entry
        }
