"""Drives any module that has the drop-in API: no adapter code needed there.

Every name is looked up in the module that `--impl` named.  `CheckpointConfig`
and `CheckpointManager` are the duty; whatever else is there extends the claims.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import ModuleType
from typing import Any, ClassVar

from forge_conformance.adapter import Adapter, CallbackAdapter, Claims, Loaded, Settings, Training, Unsupported

from . import hooked

_MODES = {"sync": "disabled", "async": "async", "pinned": "async_with_pinned_mem"}
_DUTY = ("CheckpointConfig", "CheckpointManager")
_OPTIONAL = {
    "async": ("AsyncCheckpointMode",),
    "pinned": ("AsyncCheckpointMode",),
    "window": ("DynamicCheckpointWindow", "registry"),
    "freeze": ("canonical_freeze_meta", "effective_freeze"),
}
_OF_RANKS = ("distributed", "pipeline", "reshard", "gpu")
"""Offered where the manager can be told which ranks share its shards."""
_OF_WRITERS = ("one-writer",)
"""Offered where the manager can be told to take a folder over."""
_ALWAYS = (
    "layout", "sync", "schedule", "retention", "pointer", "explicit", "exclude", "partial", "peek", "train-state",
    "rng", "dataloader", "gradients", "trust",
)  # fmt: skip
"""What the design itself promises; a drop-in is held to it unless `--claims` says otherwise."""


def missing_names(module: ModuleType) -> list[str]:
    """What a drop-in module cannot do without and this one does not have."""
    return [name for name in _DUTY if not hasattr(module, name)]


def drop_in(module: ModuleType) -> type[Adapter]:
    """The adapter for this module; it claims level strict and what the module has names for."""
    offered = [capability for capability, names in _OPTIONAL.items() if all(hasattr(module, name) for name in names)]
    offered += _OF_RANKS if _takes(module.CheckpointManager, "process_group", "pp_rank") else ()
    offered += _OF_WRITERS if _takes(module.CheckpointManager, "take_over") else ()

    if hooked.is_offered(module):
        offered += hooked.OF_HOOKS

    class ModuleDropIn(DropIn):
        claims = Claims(level="strict", capabilities=(*_ALWAYS, *offered))
        hooked_layout = CallbackAdapter.layout
        api = module

        def __new__(cls, settings: Settings, training: Training) -> Any:
            if settings.hooks is None:
                return super().__new__(cls)
            return hooked.hooked(module)(settings, training)

    return ModuleDropIn


def _takes(manager: Any, *names: str) -> bool:
    """Whether it can be made with arguments of these names."""
    try:
        return inspect.signature(manager).parameters.keys() >= set(names)
    except (TypeError, ValueError):  # it does not say
        return False


@dataclass(frozen=True)
class _FreezeSpec:
    module: str
    frozen: bool


@dataclass(frozen=True)
class _FreezeStage:
    start_step: int
    specs: tuple[_FreezeSpec, ...]


def _specs(pairs: Iterable[tuple[str, bool]]) -> tuple[_FreezeSpec, ...]:
    return tuple(_FreezeSpec(module, frozen) for module, frozen in pairs)


def _as_list(value: object) -> object:
    """A tuple of the settings as the list that the API takes; what is of another kind as it is, for it to refuse."""
    return list(value) if isinstance(value, tuple | list) else value


class DropIn(Adapter):
    """Each method is one call of the drop-in API."""

    api: ClassVar[ModuleType]

    def __init__(self, settings: Settings, training: Training) -> None:
        super().__init__(settings, training)
        self.config = self._config(settings)
        self.manager = self.api.CheckpointManager(
            self.config,
            training.model,
            training.optimizer,
            **self._about_ranks(settings, training),
            **({"take_over": True} if settings.take_over else {}),
        )

    def _about_ranks(self, settings: Settings, training: Training) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        if training.process_group is not None:
            arguments |= {"process_group": training.process_group, "pp_rank": training.stage}
        if settings.timeout_s is not None and _takes(self.api.CheckpointManager, "timeout"):
            arguments["timeout"] = timedelta(seconds=settings.timeout_s)
        return arguments

    def _config(self, settings: Settings) -> Any:
        fields: dict[str, Any] = {
            "dir": settings.folder,
            "interval": settings.interval,
            "keep_last_n": settings.keep_last_n,
            "load_path": settings.load_path,
            "exclude_from_loading": _as_list(settings.exclude_from_loading),
            "ignore_freeze_mismatch": settings.ignore_freeze_mismatch,
        }
        if settings.mode != "sync":
            fields["async_mode"] = self.api.AsyncCheckpointMode(_MODES[settings.mode])
        if settings.window is not None:
            fields["dyn_ckpt_window"] = self.api.DynamicCheckpointWindow(
                start=settings.window.start, stop=settings.window.stop, strategy=settings.window.strategy
            )
        return self.api.CheckpointConfig(**fields)

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        arguments: dict[str, Any] = {"tokens_seen": tokens_seen, **self._parts(parts)}
        if extra is not None:
            arguments["extra"] = extra  # the very object: a manager has to leave it as it is
        self.manager.save(step, **arguments)

    def _parts(self, parts: Sequence[str]) -> dict[str, Any]:
        return {part: getattr(self.training, part) for part in parts}

    def wait(self) -> None:
        self.manager.wait()

    def flush(self) -> None:
        self.manager.flush_pending_save()

    def load(
        self,
        path: str | None,
        exclude: Sequence[str],
        freeze_expected: Sequence[Mapping[str, Any]] | None,
        parts: Sequence[str],
    ) -> Loaded:
        arguments: dict[str, Any] = {**self._parts(parts)}
        if path is not None:
            arguments["path"] = path
        if exclude:
            arguments["exclude_keys"] = list(exclude)
        if freeze_expected is not None:
            arguments["vlm_freeze_expected"] = [dict(entry) for entry in freeze_expected]
        answer: Any = self.manager.load(**arguments)
        return Loaded(*answer) if isinstance(answer, (tuple, list)) and len(answer) == 3 else answer

    def should_save(self, step: int) -> bool:
        answer: bool = self.config.should_save(step)
        return answer

    def is_milestone(self, step: int) -> bool:
        answer: bool = self.config.is_dynamic_milestone(step)
        return answer

    def peek(self, path: str | None) -> int | None:
        answer: int | None = self.manager.peek_saved_step(*([] if path is None else [path]))
        return answer

    def apply_dataloader_state(self, dataloader: Any) -> None:
        self.manager.apply_dataloader_state(dataloader)

    @classmethod
    def register_strategy(cls, name: str, fires: Callable[[int, int, int], bool]) -> None:
        register = cls._named("registry").register_dyn_ckpt_strategy(name)
        register(lambda window, step: fires(step, window.start, window.stop))

    @classmethod
    def list_strategies(cls) -> list[str]:
        return list(cls._named("registry").list_dyn_ckpt_strategies())

    @classmethod
    def canonical_freeze(cls, specs: Iterable[tuple[str, bool]]) -> list[dict[str, Any]]:
        return [dict(entry) for entry in cls._named("canonical_freeze_meta")(_specs(specs))]

    @classmethod
    def effective_freeze(
        cls,
        step: int,
        base: Iterable[tuple[str, bool]],
        schedule: Iterable[tuple[int, Iterable[tuple[str, bool]]]],
        valid_modules: Iterable[str] | None,
    ) -> list[tuple[str, bool]]:
        stages = [_FreezeStage(start, _specs(pairs)) for start, pairs in schedule]
        valid = None if valid_modules is None else set(valid_modules)
        active = cls._named("effective_freeze")(step, _specs(base), stages, valid)
        return [(spec.module, bool(spec.frozen)) for spec in active]

    @classmethod
    def _named(cls, name: str) -> Any:
        try:
            return getattr(cls.api, name)
        except AttributeError:
            raise Unsupported(f"{cls.api.__name__} has no {name}") from None

    @classmethod
    def probe(cls) -> dict[str, bool]:
        manager = cls.api.CheckpointManager
        methods = {"peek": "peek_saved_step", "dataloader": "apply_dataloader_state"}
        return {
            **{capability: all(hasattr(cls.api, n) for n in names) for capability, names in _OPTIONAL.items()},
            **{capability: hasattr(manager, method) for capability, method in methods.items()},
            **{capability: _takes(manager, "process_group", "pp_rank") for capability in ("distributed", "pipeline")},
            "one-writer": _takes(manager, "take_over"),
            "ephemeral": hooked.is_offered(cls.api),
        }
