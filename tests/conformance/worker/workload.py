"""A training run that is deterministic to the bit and has every kind of state.

Parameters, buffers (batch norm), AdamW moments in two parameter groups, a
recursive learning-rate schedule, a shuffling loader with a position, and every
random number stream: each step draws from python, numpy and torch.  Dropping
any one of them from a checkpoint changes the losses that follow.

Gradients stay in place after a step, as they do in real loops that clear them
at the next one: a save has to cope with them, and must not touch them.
"""

import ctypes
import hashlib
import json
import random
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from .awkward import extra_states, scheduler_state

try:
    import numpy
except ImportError:  # the manager's environment decides; then there is no such stream to keep
    numpy = None  # type: ignore[assignment]

_BATCH, FEATURES, CLASSES, _SAMPLES = 4, 8, 3, 40
TOKENS_PER_STEP = _BATCH * FEATURES


class Loader:
    """A stateful loader: shuffles anew each epoch with a generator of its own."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.epoch, self.position, self.order = 0, 0, self._shuffle()

    def _shuffle(self) -> list[int]:
        return list(torch.randperm(_SAMPLES, generator=self.generator).tolist())

    def take(self) -> torch.Tensor:
        """Indices of the next batch."""
        if self.position + _BATCH > _SAMPLES:
            self.epoch, self.position, self.order = self.epoch + 1, 0, self._shuffle()
        batch = self.order[self.position : self.position + _BATCH]
        self.position += _BATCH
        return torch.tensor(batch)

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "position": self.position,
            "order": list(self.order),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.position, self.order = state["epoch"], state["position"], list(state["order"])
        self.generator.set_state(state["generator"])


class RefusingLoader(Loader):
    """A loader over other data, which takes nobody else's position."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise ValueError("this position belongs to another data set")


class Workload:
    """One training run; `seed` chooses the timeline, the data are the same in all of them."""

    process_group: Any = None
    stage: int | None = None
    scaler: torch.amp.GradScaler | None = None
    """What the losses are multiplied by before the gradients are computed; the optimizer then steps through it."""

    def __init__(self, seed: int, device: str = "cpu") -> None:
        seed_streams(seed)
        self.device = torch.device(device)
        self.model = self._placed(self._made_model())
        self._spread()
        self.optimizer = self._made_optimizer()
        self.scheduler: LRScheduler = CosineAnnealingLR(self.optimizer, T_max=1000)
        self.dataloader: Any = Loader(seed)
        self.step = 0
        self.tokens_seen = 0
        self.average: dict[str, Any] | None = None
        """What the caller of a manager keeps beside the model, if it does; see `begin_average`."""
        data = torch.Generator().manual_seed(4711)
        self._inputs = torch.randn(_SAMPLES, FEATURES, generator=data)
        self._targets = torch.randint(CLASSES, (_SAMPLES,), generator=data)

    # -- what several ranks and varieties do otherwise --------------------------

    _is_fused: bool | None = None
    """Whether the optimizer updates a whole group in one operation."""

    def _made_model(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, CLASSES)
        )

    def _placed(self, model: nn.Module) -> nn.Module:
        return model.to(self.device)

    def _made_optimizer(self) -> torch.optim.Optimizer:
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=0.01, fused=self._is_fused)

    def _spread(self) -> None:
        """Divide the model among ranks."""

    def _average_gradients(self) -> None:
        """Make the ranks' gradients equal."""

    def _share(self, loss: torch.Tensor) -> None:
        """Let the other ranks know."""

    # -- training -----------------------------------------------------------------

    def train(self, steps: int) -> list[str]:
        """The loss of each step, as exact hexadecimal text."""
        return [self._train_one().hex() for _ in range(steps)]

    def _train_one(self) -> float:
        loss = self._backward()
        self.optimizer.step()
        self.scheduler.step()
        self._share(loss.detach())
        self.step += 1
        self.tokens_seen += TOKENS_PER_STEP
        return float(loss.detach())

    def _backward(self) -> torch.Tensor:
        """Put the gradients of one batch in the place of those that there are."""
        self.optimizer.zero_grad(set_to_none=True)
        batch = self.dataloader.take()
        noise = torch.randn(_BATCH, FEATURES) * random.random()
        if numpy is not None:
            noise = noise + float(numpy.random.standard_normal())
        inputs = (self._inputs[batch] + 0.1 * noise).to(self.device)
        buffers = [buffer for buffer in self.model.buffers() if buffer.numel()]
        drift = sum(float(buffer.float().mean()) for buffer in buffers)  # batch norm itself waits for eval
        loss = nn.functional.cross_entropy(self.model(inputs), self._targets[batch].to(self.device)) * (1 + drift / 100)
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]
        self._average_gradients()
        return loss

    def accumulate(self, how: str) -> None:
        """Leave gradients that no step has taken: `half` of a batch's, or what a clearing leaves, `zero` or `none`."""
        if how == "half":
            self._backward()
        else:
            self.optimizer.zero_grad(set_to_none=how == "none")

    def scramble(self) -> None:
        """Overwrite parameters, buffers and moments in place, as the next steps of training would."""
        with torch.no_grad():
            for tensor in [*self.model.parameters(), *self.model.buffers()]:
                local(tensor).fill_(7)
            for state in self.optimizer.state.values():
                for value in state.values():
                    if isinstance(value, torch.Tensor):
                        local(value).fill_(7)
            for value in (self.average or {}).values():
                value.fill_(7)

    def begin_average(self) -> None:
        """Keep an average of the model's state by name, of other values than the model has, in its types."""
        self.average = {name: value.detach() * 3 for name, value in self.model.state_dict().items()}
        self.average["half"] = torch.full((3,), 1 / 3, dtype=torch.float16)

    def alter(self, how: str) -> str:
        """Make the model one that nothing was ever saved of; the name of the tensor that no checkpoint has a value for.

        `deeper` has a layer more, which is not trained; `wider` has more outputs.
        """
        if how == "deeper":
            self.model.append(nn.Linear(CLASSES, CLASSES, bias=False).to(self.device).requires_grad_(False))  # type: ignore[operator]
            return f"{len(self.model) - 1}.weight"  # type: ignore[arg-type]
        *_, (name, matrix) = ((name, p) for name, p in self.model.named_parameters() if p.ndim > 1)
        matrix.data = matrix.data.new_zeros(CLASSES + 1, *matrix.shape[1:])  # the optimizer goes on holding it
        return name

    def enlarge(self, size_bytes: int) -> None:
        """Let the model have one large tensor besides, which training leaves alone."""
        self.model.register_buffer("large", torch.arange(size_bytes // 8, device=self.device))

    def vary(self, seed: int) -> None:
        """Let the model have a tensor of every kind that real ones have beside matrices of one type; `train` is over.

        Of other types, with no element, with one and no dimension, in another order in memory, a part of a larger
        one, with values that are no numbers, and one that two layers share.
        """
        draw = torch.Generator().manual_seed(seed)
        plain = torch.randn(4, 6, generator=draw)
        types = (torch.float64, torch.bfloat16, torch.float16, torch.complex64)
        values = {str(kind).partition(".")[2]: plain.to(kind) * (1 + 2**-40) for kind in types}
        values |= {
            "int64": torch.randint(2**60, (5,), generator=draw),
            "uint8": torch.randint(256, (5,), generator=draw, dtype=torch.uint8),
            "bool": plain[0] > 0,
            "empty": plain[:0],
            "scalar": plain[0, 0].clone(),
            "turned": plain.t(),
            "part": torch.randn(64, 64, generator=draw)[3:5, 2:7],
            "no_numbers": torch.tensor([float("nan"), float("-inf"), -0.0]) if seed else torch.ones(3),
        }
        for name, value in values.items():
            self.model.register_buffer(f"odd_{name}", value.to(self.device))
        sharing = nn.Linear(16, CLASSES).to(self.device)
        sharing.weight = self.model[4].weight  # type: ignore[index]
        self.model.append(sharing)  # type: ignore[operator]

    def digest(self) -> dict[str, str]:
        """A fingerprint of every piece of state by name; the part of the name before the slash is its kind."""
        parameters = {name: p for name, p in self.model.named_parameters() if not (is_lazy(p) or p.is_meta)}
        kinds = {
            "parameter": parameters,
            "buffer": {**dict(self.model.named_buffers()), **extra_states(self.model)},
            "trained": {name: p.requires_grad for name, p in self.model.named_parameters()},
            "gradient": {name: p.grad for name, p in parameters.items() if p.grad is not None},
            "moment": self._moments(),
            "group": dict(enumerate(_hyperparameters(group) for group in self.optimizer.param_groups)),
            "scheduler": scheduler_state(self.scheduler),
            "loader": self.dataloader.state_dict() if hasattr(self.dataloader, "state_dict") else {},
            "rng": _streams(),
            "counter": {"step": self.step, "tokens_seen": self.tokens_seen},
        }
        return {f"{kind}/{name}": fingerprint(value) for kind, items in kinds.items() for name, value in items.items()}

    def whole(self) -> dict[str, str]:
        """The same of full values alone, however they are divided among ranks."""
        wanted = ("parameter", "buffer", "moment")
        return {name: value for name, value in self.digest().items() if name.partition("/")[0] in wanted}

    def _moments(self) -> dict[str, Any]:
        names: dict[Any, str] = {p: name for name, p in self.model.named_parameters()}
        return {
            f"{names[p]}.{moment}": value
            for p, state in self.optimizer.state.items()
            for moment, value in sorted(state.items())
        }


def settings_of_torch() -> dict[str, str]:
    """What torch has for all code of the process, by name."""
    return {
        "threads of torch": str(torch.get_num_threads()),
        "default type of torch": str(torch.get_default_dtype()),
        "gradients of torch": "on" if torch.is_grad_enabled() else "off",
        "deterministic algorithms of torch": str(torch.are_deterministic_algorithms_enabled()),
    }


def seed_streams(seed: int) -> None:
    """Begin every random stream of the process anew."""
    random.seed(seed)
    torch.manual_seed(seed)
    if numpy is not None:
        numpy.random.seed(seed)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a tensor; all of it unless it is sharded."""
    piece: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return piece


def _hyperparameters(group: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a parameter group; whether one is kept as a float or as a tensor is the manager's business."""
    wanted = ("lr", "initial_lr", "betas", "eps", "weight_decay")
    return {name: [float(x) for x in _as_list(group[name])] for name in wanted if name in group}


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def _streams() -> dict[str, Any]:
    streams: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if numpy is not None:
        state: Any = numpy.random.get_state()
        name, keys, *rest = state
        streams["numpy"] = [str(name), keys.tolist(), *rest]
    if torch.cuda.is_available():
        streams |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return streams


def fingerprint(value: Any) -> str:
    """Equal for equal bits; of a sharded tensor, those that this rank holds."""
    return hashlib.blake2b(_bytes(value), digest_size=8).hexdigest()


def with_fingerprints(value: Any) -> Any:
    """The value with the class and a fingerprint of each tensor in its place, so that it can be printed."""
    if isinstance(value, torch.Tensor):
        return f"{type(value).__name__} {fingerprint(value)}"
    if isinstance(value, dict):
        return {key: with_fingerprints(item) for key, item in value.items()}
    return type(value)(map(with_fingerprints, value)) if type(value) in (list, tuple) else value


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """The memory of what this rank holds of a tensor, in its logical order; needs no numpy."""
    tensor = local(tensor.detach()).cpu().contiguous()
    return ctypes.string_at(tensor.data_ptr(), tensor.nbytes) if tensor.numel() else b""


def _bytes(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype}{tuple(local(value).shape)}".encode() + raw_bytes(value)
    if isinstance(value, dict):
        return b"{" + b",".join(_bytes(k) + b":" + _bytes(v) for k, v in sorted(value.items())) + b"}"
    if isinstance(value, (list, tuple)):
        if all(type(item) is int for item in value):  # the streams are hundreds of numbers
            return json.dumps(value, separators=(",", ":")).encode()
        return b"[" + b",".join(map(_bytes, value)) + b"]"
    return json.dumps(value).encode()
