"""The leaves of a run's state, by a plan that is kept from save to save.

Nearly all of a state are *rows*, dicts of dense tensors: the model's values are one, and the moments of each parameter
are another.  Where these go follows from their keys, types and shapes, the *description* of them.  Loops in C make one
at each save; while it equals that of the last save, so do names, layout and form.

Invariants: a plan depends on its description alone; tensors are taken anew at each save, and never kept; and what is
not made of rows is packed and flattened value by value.

Beside the copy, the rest of the blocked part of a save of many small tensors is then about evenly torch's own
`state_dict`s, and asking each tensor for its properties.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, repeat
from operator import attrgetter
from typing import Any

import torch

from forge_ref import forms, weights
from forge_ref.engine.leaves import Fixed, Leaves, Path, flatten
from forge_ref.pieces import PLAIN

_STATE = "state"


@dataclass(frozen=True)
class _Description:
    """All that decides where the tensors of some rows go."""

    rows: list[str]
    keys: list[tuple[str, ...]]
    """Of each row."""
    dtypes: list[torch.dtype]
    shapes: list[torch.Size]
    requires_grad: list[bool]


@dataclass(frozen=True)
class _Plan:
    """Where the tensors of rows with this description go."""

    description: _Description
    paths: dict[str, Path]
    layout: list[Fixed]
    form: forms.Encoded


class Planner:
    """Turns states into leaves, save after save; `optimizer_key` is what a checkpoint has the optimizer under."""

    def __init__(self, optimizer_key: str = weights.OPTIMIZER) -> None:
        self._optimizer_key = optimizer_key
        self._plans: dict[Path, _Plan] = {}

    def leaves(self, taken: Mapping[str, Mapping[str, Any]]) -> Leaves:
        """Return the leaves of what `saving.taken_state` gave, with its form; they share its memory.

        `ValueError` names a value that could not be loaded again.
        """
        leaves, optimizer, known = Leaves({}, {}, [], {}), dict(taken[weights.OPTIMIZER]), {}
        model = {} if self._added(leaves, (), {weights.MODEL: dict(taken[weights.MODEL])}) else taken[weights.MODEL]
        if form := self._added(leaves, (self._optimizer_key, _STATE), optimizer[_STATE]):
            del optimizer[_STATE]
            known = {weights.OPTIMIZER: {_STATE: form}}
        packed = forms.pack({weights.MODEL: model, weights.OPTIMIZER: optimizer}, known)
        named = {self._optimizer_key if part == weights.OPTIMIZER else part: values for part, values in packed.items()}
        return flatten(named, leaves)

    def _added(self, leaves: Leaves, prefix: Path, rows: Mapping[Any, Any]) -> forms.Encoded | None:
        """Add the leaves of rows, and return their form; None, and nothing is added, if they are no rows."""
        described = _described(rows)
        if described is None:
            return None
        description, tensors = described
        plan = self._plans.get(prefix)
        if plan is None or plan.description != description:
            plan = _planned(prefix, description)
            if plan is None:
                return None
            self._plans[prefix] = plan
        leaves.fixed.update(zip(plan.paths, tensors, strict=True))
        leaves.paths.update(plan.paths)
        leaves.layout.extend(plan.layout)
        return plan.form


def _described(rows: Mapping[Any, Any]) -> tuple[_Description, list[torch.Tensor]] | None:
    """Return the description of rows, and their tensors; None if they are anything but dicts of dense tensors."""
    entries = list(rows.values())
    if set(map(type, entries)) != {dict} or not all(entries):
        return None
    keys = list(map(tuple, entries))
    if {*map(type, rows), *map(type, chain.from_iterable(keys))} != {str}:
        return None
    tensors = list(chain.from_iterable(map(dict.values, entries)))
    if not PLAIN.issuperset(map(type, tensors)) or {*_each("layout", tensors)} != {torch.strided}:
        return None
    dtypes = list(_each("dtype", tensors))
    if any(_each("is_meta", tensors)) or any(_each("is_quantized", dict(zip(dtypes, tensors, strict=True)).values())):
        return None
    try:
        shapes = list(_each("shape", tensors))
    except RuntimeError:  # a nested tensor has none
        return None
    return _Description(list(rows), keys, dtypes, shapes, list(_each("requires_grad", tensors))), tensors


def _each(name: str, tensors: Iterable[torch.Tensor]) -> Iterable[Any]:
    return map(attrgetter(name), tensors)


def _planned(prefix: Path, description: _Description) -> _Plan | None:
    """Return the plan of rows with this description; None where two tensors would have the same name."""
    pairs = zip(description.rows, description.keys, strict=True)
    places: list[Path] = [(*prefix, row, key) for row, keys in pairs for key in keys]
    paths = {".".join(map(str, place)): place for place in places}
    if len(paths) < len(places):
        return None
    layout = list(map(Fixed, paths, description.dtypes, description.shapes, description.requires_grad, repeat(None)))
    return _Plan(description, paths, layout, forms.of_rows(description.rows, description.keys))
