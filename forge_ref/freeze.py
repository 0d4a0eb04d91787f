"""Which modules were frozen: recorded with a checkpoint, and compared before a load changes anything.

Lists with the same entries have one canonical form, whatever their order.  Only
modules that both lists name are compared, so a checkpoint can be loaded into an
architecture with other modules.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forge_ref.messages import log as _log

Entries = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class FreezeSpec:
    """A module, and whether it is frozen; any object with these attributes will do in its place."""

    module: str
    frozen: bool = True


@dataclass(frozen=True)
class FreezeStage:
    """Specs that are in force from a step on; any object with these attributes will do in its place."""

    start_step: int
    specs: tuple[FreezeSpec, ...]


def canonical_freeze_meta(specs: Iterable[Any]) -> list[dict[str, object]]:
    """Return the list as it is recorded and compared: sorted, without duplicates (freeze.canonical)."""
    entries = sorted({(spec.module, spec.frozen) for spec in specs})
    return [{"module": module, "frozen": frozen} for module, frozen in entries]


def effective_freeze(
    step: int, base: Iterable[Any], schedule: Iterable[Any], valid_modules: Iterable[str] | None = None
) -> list[Any]:
    """Return the specs in force at a step, one for each module; the last one for a module wins (freeze.effective).

    A stage is in force from its `start_step` on.  `ValueError` for a module
    outside `valid_modules`, in the base list or in a stage in force.
    """
    begun = sorted((stage for stage in schedule if stage.start_step <= step), key=lambda stage: stage.start_step)
    in_force = {spec.module: spec for specs in (base, *(stage.specs for stage in begun)) for spec in specs}
    if valid_modules is not None and (unknown := in_force.keys() - (valid := set(valid_modules))):
        raise ValueError(f"the freeze list names unknown modules {sorted(unknown)}; known modules: {sorted(valid)}")
    return list(in_force.values())


def recorded(metadata: Mapping[str, Any], file: Path) -> Entries | None:
    """Return the freeze list in `metadata.json`; None if there is none, or, with a warning, if it is something else."""
    saved = metadata.get("vlm_freeze")
    if saved is None:
        return None
    is_list = isinstance(saved, list) and all(map(_is_entry, saved))
    if not is_list:
        _log.warning("%s: vlm_freeze is %r, which is not a freeze list; freeze lists are not compared", file, saved)
    return saved if is_list else None


def check_expected(expected: Any) -> None:
    """`TypeError` unless this is a freeze list, as `canonical_freeze_meta` makes it."""
    is_list = isinstance(expected, Sequence) and all(map(_is_entry, expected))
    if not is_list:
        raise TypeError(
            f"vlm_freeze_expected is {expected!r}; it must be a list of mappings with the keys module, "
            "a string, and frozen, True or False"
        )


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("module"), str) and isinstance(entry.get("frozen"), bool)


def check_freeze(saved: Entries, expected: Entries, checkpoint: Path, ignore_mismatch: bool) -> None:
    """`ValueError` if a module that both sides name differs; a warning if that is to be ignored (freeze.mismatch)."""
    ours, theirs = _by_module(expected), _by_module(saved)
    shared = ours.keys() & theirs.keys()
    if saved and expected and not shared:
        _log.warning(
            "%s has a freeze list of the modules %s, and this run one of %s: none is in both, so nothing is compared",
            checkpoint,
            sorted(theirs),
            sorted(ours),
        )
    if all(ours[module] == theirs[module] for module in shared):
        return
    message = (
        f"freeze lists differ at {checkpoint}: it has {_cut(saved, shared)}, this run has {_cut(expected, shared)}"
        f" (modules of the checkpoint alone: {sorted(theirs.keys() - shared)}, "
        f"of this run alone: {sorted(ours.keys() - shared)})"
    )
    if not ignore_mismatch:
        raise ValueError(f"{message}; nothing was loaded; set ignore_freeze_mismatch to load it anyway")
    _log.warning("%s; loading it anyway, because ignore_freeze_mismatch is set", message)


def _by_module(entries: Entries) -> dict[str, set[Any]]:
    states: dict[str, set[Any]] = {}
    for entry in entries:
        states.setdefault(entry["module"], set()).add(entry["frozen"])
    return states


def _cut(entries: Entries, shared: Iterable[str]) -> list[dict[str, Any]]:
    return [dict(entry) for entry in entries if entry["module"] in set(shared)]
