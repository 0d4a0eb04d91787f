"""An optimizer's state as torch flattens it: `state.NAME.KEY` and `param_groups.NAME.KEY`, all in one dict.

Trainers that set `flatten_optimizer_state_dict` save it so.  Names of parameters
have dots in them, so the text can be taken apart only with the names at hand.
Groups are not recorded: each parameter has settings of its own.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

_STATE, _GROUPS = "state.", "param_groups."


def is_flattened(saved: Mapping[str, Any]) -> bool:
    """Return whether this is the flat form of an optimizer's state."""
    return "param_groups" not in saved and any(key.startswith(_GROUPS) for key in saved)


def owner(key: str, names: Collection[str]) -> str | None:
    """Return the parameter that a moment belongs to, by its key in the flat form; None for other keys."""
    return _split(key.removeprefix(_STATE), names)[0] if key.startswith(_STATE) else None


def nested(flat: Mapping[str, Any], live_groups: Sequence[Mapping[str, Any]], source: object) -> dict[str, Any]:
    """Return state and groups by names of parameters, in the groups that the live optimizer has.

    `ValueError` if parameters of one live group were saved with different
    settings.  A group without parameters, of which the flat form says nothing,
    stays as it is; a parameter that no live group has gets a group of its own.
    """
    names = {name for group in live_groups for name in group["params"]}
    settings = _by_name(flat, _GROUPS, names)
    groups = [_group(live, settings, source) for live in live_groups]
    others = [{**values, "params": [name]} for name, values in settings.items() if name not in names]
    return {"state": _by_name(flat, _STATE, names), "param_groups": [*filter(None, groups), *others]}


def _by_name(flat: Mapping[str, Any], section: str, names: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return the values of a section by name and key; keys of nested values are joined by dots."""
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for text, value in flat.items():
        if text.startswith(section):
            name, key = _split(text.removeprefix(section), names)
            *outer, last = key.split(".")
            node = found[name]
            for one in outer:
                node = node.setdefault(one, {})
            node[last] = value
    return dict(found)


def _split(text: str, names: Collection[str]) -> tuple[str, str]:
    """Return the longest of the names that the text begins with, and the rest; of an unknown name, the last word."""
    end = len(text)
    while (end := text.rfind(".", 0, end)) > 0:
        if text[:end] in names:
            return text[:end], text[end + 1 :]
    name, _, key = text.rpartition(".")
    return name, key


def _group(live: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]], source: object) -> dict[str, Any] | None:
    """Return a live group with the saved settings; None if none of its parameters was saved."""
    members = [name for name in live["params"] if name in settings]
    if not members:
        return None if live["params"] else dict(live)
    first = settings[members[0]]
    for name in members:
        keys = sorted(first.keys() | settings[name].keys())
        if differing := [key for key in keys if not _same(first, settings[name], key)]:
            raise ValueError(
                f"{source} has another {differing[0]} for {members[0]} than for {name}, and this optimizer has both in "
                "one group; build the optimizer with the groups it was saved with"
            )
    return {**first, "params": members}


def _same(one: Mapping[str, Any], other: Mapping[str, Any], key: str) -> bool:
    if key not in one or key not in other:
        return False
    if isinstance(one[key], torch.Tensor) and isinstance(other[key], torch.Tensor):
        return torch.equal(one[key], other[key])
    return bool(one[key] == other[key])
