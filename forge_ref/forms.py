"""Nested values of any shape, as tensors that DCP takes and one form that says what they were part of.

DCP makes text of every key, drops empty dicts, and knows no tuples.  So the
tensors travel by DCP, under the names that stock DCP gives them too, and beside
them a *form*: the same nest with a mark in the place of each tensor.  It keeps
types of keys, empty containers, tuples, numbers, text and None.

Invariants: what is packed comes back equal, or is refused by its name before
anything is written; the form is fixed when it is made (commit.snapshot); and it
loads without running pickled code wherever its values allow that (trust.least).
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy

from forge_ref import archive, storage
from forge_ref.engine.leaves import Packed
from forge_ref.errors import DamagedError
from forge_ref.pieces import Piece, is_plain, piece_of

FORMS = "forms"
"""The key, beside model and optimizer, under which a checkpoint has the form of each."""

Keys = tuple[str, ...]
Encoded = tuple[Any, ...]

_VALUES = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
"""Types that a pickle keeps as they are, and that load without running code."""
_TENSOR: Encoded = ("tensor",)
_NOTHING = object()
"""The mirror of what DCP gets nothing of; None is a value."""


def pack(
    state: Mapping[str, Mapping[str, Any]], known: Mapping[str, Mapping[str, Encoded]] = MappingProxyType({})
) -> dict[str, Any]:
    """Return each part as dicts of tensors and plain values, and under `FORMS` what `unpack` needs.

    Shares memory with the tensors; of sharded ones it has this rank's pieces.
    `known` has forms of values in these parts that are not here.  `ValueError`
    names a value that could not be loaded again.
    """
    packed: dict[str, Any] = {}
    forms: dict[str, Packed] = {}
    for part, values in state.items():
        packed[part], form = _packed_part(part, values)
        if form := {**form, **known.get(part, {})}:
            forms[part] = Packed(archive.of(form))
    return {**packed, FORMS: forms} if forms else packed


def unpack(saved: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """Return the parts as they were packed; one without a form, as other managers write it, is left as it is.

    `DamagedError` names the source where a form is not what was written.
    """
    unpacked = {part: values for part, values in saved.items() if part != FORMS}
    for part, form in saved.get(FORMS, {}).items():
        values = saved.get(part, {})
        encoded = storage.loads_dict(form.numpy().tobytes(), f"{source}, in the form of its {part},")
        try:
            unpacked[part] = {**values, **{key: _decoded(item, (key,), values) for key, item in encoded.items()}}
        except (LookupError, TypeError, ValueError) as error:
            raise DamagedError(
                f"{source} does not hold what the form of its {part} says ({error}); resume from another checkpoint"
            ) from error
    return unpacked


def of_rows(rows: Sequence[str], keys: Sequence[tuple[str, ...]]) -> Encoded:
    """Return the form of a dict of rows, which are dicts of tensors under these keys."""
    kinds = {kind: number for number, kind in enumerate(dict.fromkeys(keys))}
    return "rows", list(rows), list(kinds), [kinds[kind] for kind in keys]


def _packed_part(part: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Encoded]]:
    packer = _Packer(part)
    packed, form = {}, {}
    for key, value in values.items():
        name = packer.named("", key)
        try:
            encoded, mirrored = packer.encoded(value, name)
        except RecursionError:
            raise packer.refused(name, "nested too deeply, or contains itself") from None
        if mirrored is not _NOTHING:
            packed[name] = mirrored
        if encoded is not _TENSOR:  # as nearly everything in a model is
            form[key] = encoded
    return packed, form


class _Packer:
    """Encodes the values of one part; a mirror of them, of text keys and tensors, is what DCP gets.

    A path is the names that lead to a value, joined by dots, as DCP joins them.
    """

    def __init__(self, part: str) -> None:
        self._part = part
        self._taken: set[str] = set()
        self._shared: dict[tuple[str, ...], Encoded] = {}
        """Forms of dicts of tensors by their keys: those of moments are nearly all the same."""

    def named(self, path: str, key: object) -> str:
        """Return the key as text, changed where DCP would take two for the same."""
        text = key if type(key) is str else str(key)
        while (flat := f"{path}.{text}" if path else text) in self._taken:
            text += "~"
        self._taken.add(flat)
        return text

    def encoded(self, value: Any, path: str) -> tuple[Encoded, Any]:
        """Return the form of a value, and its mirror, which is `_NOTHING` if DCP gets nothing of it."""
        kind = type(value)
        if is_plain(value) and not value.is_meta:  # as nearly all are
            return _TENSOR, value
        if isinstance(value, (torch.Tensor, Piece)):
            return self._tensor(value, path)
        if kind in (dict, OrderedDict):
            return self._dict(value, path)
        if kind in (list, tuple):
            return self._sequence(value, path)
        if kind not in _VALUES:
            self._check(value, path)
            return ("value", value), _NOTHING
        return ("value", value), value

    def _tensor(self, value: torch.Tensor | Piece, path: str) -> tuple[Encoded, Any]:
        if isinstance(value, Piece):
            return _TENSOR, value
        self._refuse_without_values(value, path)
        if isinstance(value, DTensor):
            here = piece_of(value)
            return _TENSOR, _NOTHING if here is None else here
        self._check(value, path)
        return ("value", value.detach()), _NOTHING

    def _refuse_without_values(self, value: torch.Tensor, path: str) -> None:
        if is_lazy(value):
            raise self.refused(
                path, "not initialized: its layer has not seen a batch yet. Run one before the first save"
            )
        if value.device.type == "meta":
            raise self.refused(path, "on the meta device and has no values. Materialize the model before it is saved")

    def _dict(self, value: Mapping[Any, Any], path: str) -> tuple[Encoded, dict[str, Any]]:
        items, mirror = [], {}
        for key, item in value.items():
            if isinstance(key, torch.Tensor):
                raise self.refused(path, "a dict with tensors for keys, which would be other tensors after a load")
            if type(key) not in _VALUES:
                self._check(key, path)
            name = self.named(path, key)
            encoded, mirrored = self.encoded(item, f"{path}.{name}")
            items.append((key, encoded) if name == str(key) else (key, encoded, name))
            if not _is_empty(mirrored):
                mirror[name] = mirrored
        keys = tuple(mirror)
        if keys and type(value) is dict and items == [(key, _TENSOR) for key in keys]:
            return self._shared.setdefault(keys, ("tensors", keys)), mirror
        return ("dict" if type(value) is dict else "ordered", items), mirror

    def _sequence(self, value: list[Any] | tuple[Any, ...], path: str) -> tuple[Encoded, Any]:
        if all(type(item) in _VALUES for item in value):
            return ("value", value), value
        named = [(item, f"{path}.{self.named(path, index)}") for index, item in enumerate(value)]
        parts = [self.encoded(item, name) for item, name in named]
        encoded = ("list" if type(value) is list else "tuple", [part for part, _ in parts])
        mirrors = [mirror for _, mirror in parts]
        if all(isinstance(mirror, dict) and mirror for mirror in mirrors):
            return encoded, mirrors  # as stock DCP has the groups of parameters
        return encoded, {str(index): mirror for index, mirror in enumerate(mirrors) if not _is_empty(mirror)}

    def _check(self, value: Any, path: str) -> None:
        """`ValueError` unless the value can be pickled and loaded again; of tensors, without running pickled code."""
        if isinstance(value, Mapping) and any(isinstance(item, DTensor) for item in value.values()):
            raise self.refused(path, f"a {type(value).__name__} with sharded tensors; use a dict for them")
        buffer = io.BytesIO()
        is_tensor = isinstance(value, torch.Tensor)
        try:
            torch.save(value, buffer)
            buffer.seek(0)
            loaded = torch.load(buffer, map_location="cpu", weights_only=is_tensor)
        except pickle.UnpicklingError as error:
            raise self.refused(
                path,
                f"a tensor of type {type(value).__name__}, which can't be loaded without running code. "
                "Name its class in torch.serialization.add_safe_globals",
            ) from error
        except Exception as error:
            raise self.refused(path, f"a {type(value).__name__}, which can't be pickled: {error}") from error
        if type(loaded) is not type(value):
            raise self.refused(path, f"a {type(value).__name__} and would be loaded as a {type(loaded).__name__}")

    def refused(self, path: str, why: str) -> ValueError:
        return ValueError(f"{self._part}.{path} can't be saved: it is {why}")


def _is_empty(mirror: Any) -> bool:
    """Return whether DCP gets nothing of it; in a list it would then get the next one's number."""
    return mirror is _NOTHING or (isinstance(mirror, dict) and not mirror)


def _decoded(encoded: Encoded, path: Keys, saved: Any) -> Any:
    match encoded:
        case ("tensor",):
            return _at(path, saved)
        case ("value", value):
            return value
        case ("tensors", keys):
            return {key: _at((*path, key), saved) for key in keys}
        case ("rows", names, kinds, numbers):
            rows = _at(path, saved)
            return {
                name: {key: rows[name][key] for key in kinds[number]}
                for name, number in zip(names, numbers, strict=True)
            }
        case ("dict" | "ordered" as kind, items):
            pairs = ((key, _decoded(item, (*path, *(name or [str(key)])), saved)) for key, item, *name in items)
            return dict(pairs) if kind == "dict" else OrderedDict(pairs)
        case ("list" | "tuple" as kind, items):
            decoded = (_decoded(item, (*path, str(index)), saved) for index, item in enumerate(items))
            return list(decoded) if kind == "list" else tuple(decoded)
    raise ValueError(f"the form of {'.'.join(path)} is {encoded!r}")


def _at(path: Keys, saved: Any) -> Any:
    for key in path:
        saved = saved[int(key)] if isinstance(saved, list) else saved[key]
    return saved
