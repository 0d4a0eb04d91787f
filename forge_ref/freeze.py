"""Which modules were frozen: recorded with a checkpoint, compared before a load touches anything.

Lists with the same entries have one canonical form, in whatever order they
were written; only modules that both sides name are compared, so a checkpoint
can move to an architecture with other modules.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

Entries = Sequence[Mapping[str, Any]]
_log = logging.getLogger("forge_ref")


class Spec(Protocol):
    """Whatever names a module and says whether it is frozen."""

    @property
    def module(self) -> str: ...
    @property
    def frozen(self) -> bool: ...


SpecT = TypeVar("SpecT", bound=Spec)
SpecT_co = TypeVar("SpecT_co", bound=Spec, covariant=True)


class Stage(Protocol[SpecT_co]):
    """Specs that are in force from a step on."""

    @property
    def start_step(self) -> int: ...
    @property
    def specs(self) -> Iterable[SpecT_co]: ...


@dataclass(frozen=True)
class FreezeSpec:
    """A ready-made spec."""

    module: str
    frozen: bool = True


@dataclass(frozen=True)
class FreezeStage:
    """A ready-made stage."""

    start_step: int
    specs: tuple[FreezeSpec, ...]


def canonical_freeze_meta(specs: Iterable[Spec]) -> list[dict[str, object]]:
    """The form that is recorded and compared: sorted, equal entries once (freeze.canonical)."""
    entries = sorted({(spec.module, spec.frozen) for spec in specs})
    return [{"module": module, "frozen": frozen} for module, frozen in entries]


def effective_freeze(
    step: int,
    base: Iterable[SpecT],
    schedule: Iterable[Stage[SpecT]],
    valid_modules: Iterable[str] | None = None,
) -> list[SpecT]:
    """The specs in force at a step, one for each module; the last one named wins (freeze.effective).

    A stage is in force from its `start_step` on.  `ValueError` for a module
    outside `valid_modules`, in the base list or in a stage in force.
    """
    begun = sorted((stage for stage in schedule if stage.start_step <= step), key=lambda stage: stage.start_step)
    in_force = {spec.module: spec for specs in (base, *(stage.specs for stage in begun)) for spec in specs}
    if valid_modules is not None and (unknown := in_force.keys() - (valid := set(valid_modules))):
        raise ValueError(f"freeze list names unknown modules {sorted(unknown)}; known: {sorted(valid)}")
    return list(in_force.values())


def recorded(metadata: Mapping[str, Any], file: Path) -> Entries | None:
    """The freeze list that `metadata.json` records; None, with a warning, for something else in its place."""
    saved = metadata.get("vlm_freeze")
    if saved is None:
        return None
    is_list = isinstance(saved, list) and all(
        isinstance(entry, dict) and {"module", "frozen"} <= entry.keys() for entry in saved
    )
    if not is_list:
        _log.warning("%s has %r for a freeze list, so it is not compared", file, saved)
    return saved if is_list else None


def check_freeze(saved: Entries, expected: Entries, checkpoint: Path, ignore_mismatch: bool) -> None:
    """`ValueError` if a module that both sides name differs; a warning if that is to be ignored (freeze.mismatch)."""
    ours, theirs = _by_module(expected), _by_module(saved)
    shared = ours.keys() & theirs.keys()
    if saved and expected and not shared:
        _log.warning(
            "freeze lists of %s %s and of this run %s have no module in common: nothing was compared",
            checkpoint,
            sorted(theirs),
            sorted(ours),
        )
    if all(ours[module] == theirs[module] for module in shared):
        return
    message = (
        f"freeze lists differ at {checkpoint}: saved {_cut(saved, shared)}, this run {_cut(expected, shared)}"
        f" (only saved: {sorted(theirs.keys() - shared)}, only this run: {sorted(ours.keys() - shared)})"
    )
    if not ignore_mismatch:
        raise ValueError(f"{message}; set ignore_freeze_mismatch to load it all the same")
    _log.warning("%s; loaded all the same, since ignore_freeze_mismatch is set", message)


def _by_module(entries: Entries) -> dict[str, set[Any]]:
    states: dict[str, set[Any]] = {}
    for entry in entries:
        states.setdefault(entry["module"], set()).add(entry["frozen"])
    return states


def _cut(entries: Entries, shared: Iterable[str]) -> list[dict[str, Any]]:
    return [dict(entry) for entry in entries if entry["module"] in set(shared)]
