"""Values that may differ from rank to rank under one name: buffers that are not sharded, and extra state.

DCP writes one rank's value of a name for all of them.  So ranks compare a
checksum of these values, on the way to the outcome that they come to anyway;
where it differs each keeps its own, by its number, as bytes in a tensor, and
rank 0's are there for ranks that a later run has more of (resume.rank-values).

Parameters and moments that are not sharded are equal on all ranks by the way
in which they are trained, and are not compared: that would cost as much as
writing them.
"""

import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from forge_ref import state, storage, weights
from forge_ref.engine.leaves import Leaves, Packed
from forge_ref.forms import FORMS

OWN = "own"
"""The key, beside model and optimizer, under which each rank has its own values, if they differ."""
Note = tuple[int, int | None, int]
"""A step, a pipeline stage, and the checksum of a rank's values in it."""


def of(model: torch.nn.Module, taken: Mapping[str, Any], packed: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of this rank by name, out of its packed and nested state, and the form that belongs to them."""
    names = weights.names_of_own_values(model, taken[weights.MODEL])
    values = {name: value for name, value in packed.get(weights.MODEL, {}).items() if name in names}
    form = packed.get(FORMS, {}).get(weights.MODEL)
    return {"values": values, "form": form} if values or form is not None else {}


def checksum(own: Mapping[str, Any]) -> int:
    """Return a checksum, equal for equal values on whatever device."""
    return zlib.crc32(_serialized(own)) if own else 0


def _serialized(own: Mapping[str, Any]) -> bytes:
    """Return the values alone, without the device or the larger tensor that they are a part of."""
    return state.serialized(tree_map_only(torch.Tensor, _alone, dict(own)), "own values of the rank")


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)


def merged(notes: frozenset[Note], others: frozenset[Note]) -> frozenset[Note]:
    """Return both, but of each step and stage no more than two, which is enough to know that they differ."""
    by_place: dict[tuple[int, int | None], list[Note]] = {}
    for note in sorted(notes | others, key=repr):
        by_place.setdefault(note[:2], []).append(note)
    return frozenset(note for same in by_place.values() for note in same[:2])


def differing(notes: frozenset[Note]) -> frozenset[int | None]:
    """Return the stages whose ranks have different values."""
    stages = [stage for _, stage, _ in notes]
    return frozenset(stage for stage in stages if stages.count(stage) > 1)


def added(leaves: Leaves, own: Mapping[str, Any], place: int) -> Leaves:
    """Return the leaves with a rank's own values; under their names only the first rank's are written."""
    with_own = leaves.plus((OWN, str(place)), Packed(_serialized(own)))
    if place == 0:
        return with_own
    of_model = ((name, path[1]) for name, path in leaves.paths.items() if path[0] == weights.MODEL)
    return replace(with_own, unwritten=frozenset(name for name, key in of_model if key in own["values"]))


def taken(saved: Mapping[str, Any], place: int, source: Path) -> dict[str, Any]:
    """Return what was read, with this rank's own values, and their form, in the place of the first rank's."""
    rest = {part: values for part, values in saved.items() if part != OWN}
    kept = saved.get(OWN, {}).get(str(place))
    if kept is None or weights.MODEL not in rest:
        return rest
    own = storage.loads_dict(kept.numpy().tobytes(), source)
    rest[weights.MODEL] = {**rest[weights.MODEL], **own["values"]}
    forms = {part: form for part, form in rest.pop(FORMS, {}).items() if part != weights.MODEL}
    if own["form"] is not None:  # None: this rank's values need no form, whatever the first rank's need
        forms[weights.MODEL] = own["form"]
    return {**rest, FORMS: forms} if forms else rest
