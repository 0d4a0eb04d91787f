"""Fingerprints of training state: their kinds, and how two of them differ.

A fingerprint is named `kind/what`.  Fingerprints of several ranks are one, with
the rank in each name.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

Digest = dict[str, str]
STATE = ("parameter", "buffer", "trained", "moment", "group", "scheduler")
"""Kinds of state that every manager has to bring back; or, as with which parameters are trained, to leave alone."""
ALL_KINDS = (*STATE, "gradient", "loader", "rng", "counter")
"""Every kind that a fingerprint has: what nothing may change that is refused, or that only saves."""


def kinds_claimed(capabilities: frozenset[str]) -> tuple[str, ...]:
    """Kinds of state that an implementation with these capabilities brings back."""
    optional = {"loader": "dataloader", "rng": "rng", "counter": "train-state"}
    return STATE + tuple(kind for kind, capability in optional.items() if capability in capabilities)


def kind_of(name: str) -> str:
    """The kind of state that a fingerprint of this name is of."""
    return name.partition("/")[0]


def of_kinds(digest: Digest, kinds: Iterable[str]) -> Digest:
    """The part of a fingerprint that is of these kinds."""
    wanted = set(kinds)
    return {name: value for name, value in digest.items() if kind_of(name) in wanted}


def by_rank(digests: Sequence[Digest]) -> Digest:
    """Fingerprints of several ranks in one, the rank in each name behind its kind."""
    return {
        f"{kind}/rank {rank} {rest}": value
        for rank, digest in enumerate(digests)
        for name, value in digest.items()
        for kind, _, rest in [name.partition("/")]
    }


def with_step_of(digest: Digest, other: Digest) -> Digest:
    """The same state with the step counter of another: what a save has that is told a step that is not its own."""
    counters = {name: at for name, at in other.items() if kind_of(name) == "counter" and name.endswith("step")}
    return {**digest, **counters}


def differing(wanted: Mapping[str, Any], seen: Mapping[str, Any]) -> frozenset[str]:
    """The items of a state that are not as wanted."""
    return frozenset(name for name in wanted.keys() | seen.keys() if wanted.get(name) != seen.get(name))


def listed(items: Collection[str]) -> str:
    """So many items differ, and the names of the first."""
    shown = ", ".join(sorted(items)[:3]) + (", ..." if len(items) > 3 else "")
    return f"{len(items)} item{'' if len(items) == 1 else 's'} differing ({shown})"
