"""Our goals, and what one run measured of them; where a goal is missed, the page says what the time goes into.

A goal is a bound on a ratio or on a difference of medians.  A work that failed or was not measured has none.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import lost
import worlds
from measure import Samples
from rivals import WAYS, Reference
from storage import (
    BLOCKED,
    BUFFERED,
    COPY,
    DIRECT,
    FIRST,
    LATER,
    LOAD,
    LOADER,
    LOADER_WARM,
    READ,
    READ_FRESH,
    SAVE,
    SYNCED,
    TRAINED_S,
    WITHOUT_HASHES,
)
from subject import SIZES

_OURS = Reference.name
_LARGE = ("256MB", "1GB", "4GB")
_PYTHON_PER_TENSOR = (
    "What is beyond is Python's and torch's work for each tensor: to take it, to make it, to set it."
    " It would take code in C++ that does this for many tensors at once."
)
_VERIFIED = "The limit computes no hashes, and reads no marker."
_HASHED = (
    "A thread computes the hashes beside the write, and shares the processors and the memory's bandwidth with it."
    " It would take a processor of its own."
)
_PREWARMED = "Its memory is made page by page beside training, and the first save waits for what is left of that."
_TOGETHER = (
    "The ranks share the processors, and wait for each other in four exchanges for a save and two for a load."
    " It would take a processor for each rank, and fewer exchanges."
)
_FRESH = (
    "The limit reads into memory that is there; a load makes its memory, which the system clears page by page."
    " It would take memory that is kept for loads: live values change only when all is verified."
)


@dataclass(frozen=True)
class Goal:
    """A bound, and what was measured."""

    said: str
    at_most: float
    measured: float
    unit: str = "x"
    if_missed: str = ""

    @property
    def is_met(self) -> bool:
        """Whether the bound is kept."""
        return self.measured <= self.at_most


def goals(found: Mapping[str, Any]) -> list[Goal]:
    """Return all goals of which something was measured."""
    sizes = {name: found[name][2] for name in found if name in SIZES}
    every = [goal for name, samples in sizes.items() for goal in _of_size(name, samples)]
    every += _of_ranks(found["ranks"]) if "ranks" in found else ()
    return every + (list(_of_loss(found["lost"])) if "lost" in found else [])


def ahead(found: Mapping[str, Any]) -> list[str]:
    """Return the works in which another way was faster than ours; its saves have the missing syncs added."""
    faster = []
    for name in (name for name in found if name in SIZES):
        samples: Samples = found[name][2]
        for ours, theirs in ((BLOCKED, BLOCKED), (SAVE, SYNCED), (LOAD, LOAD)):
            for way in (way for way in WAYS if way is not Reference):
                ratio = _ratio(samples, f"{way.name} {theirs}", f"{_OURS} {ours}")
                if ratio is not None and ratio < 1:
                    faster.append(f"{way.name}, {theirs} of {name}: {ratio:.2f} of the time")
    return faster


def _of_size(name: str, samples: Samples) -> Iterator[Goal]:
    is_large, is_small = name in _LARGE, name.endswith("k")
    bounds = [
        (is_large, BLOCKED, COPY, 1.1, "What is beyond is the work for each save: states, names, the writer's claim."),
        (name == "10k", BLOCKED, COPY, 3.5, _PYTHON_PER_TENSOR),
        (is_large, SAVE, DIRECT, 1.3, "The limit does not copy; a save copies into aligned memory while it writes."),
        (name == "10k", SAVE, BUFFERED, 1.0, _PYTHON_PER_TENSOR),
        (is_large, LOADER_WARM, READ, 1.15, _VERIFIED),
        (is_large, LOADER, READ_FRESH, 1.15, _VERIFIED),
        (is_large, LOAD, READ, 2.0, _FRESH),
        (is_small, LOAD, READ, 2.0, _PYTHON_PER_TENSOR),
    ]
    for applies, work, limit, at_most, why in bounds:
        ratio = _ratio(samples, f"{_OURS} {work}", limit) if applies else None
        if ratio is not None:
            yield Goal(f"{name}: {work} over {limit}", at_most, ratio, if_missed=why)
    first = _ratio(samples, FIRST, LATER)
    if is_large and first is not None:
        said = f"{name}: blocked by the first save, after {TRAINED_S:g} s of training, over blocked by the second"
        yield Goal(said, 1.25, first, if_missed=_PREWARMED)
    without = _ratio(samples, WITHOUT_HASHES, f"{_OURS} {SAVE}")
    if is_large and without is not None:
        yield Goal(f"{name}: hashes, of a save's time", 5, 100 * (1 - without), "%", _HASHED)


def _of_ranks(samples: Samples) -> list[Goal]:
    one, two = worlds.RANKS[:2]
    pairs = {
        work: (samples.get(f"{one}: {work}"), samples.get(f"{two}: {work}")) for work in ("tiny save", "tiny load")
    }
    return [
        Goal(f"{work}: two ranks beside one", 1.5, 1e3 * (second.median - first.median), "ms", _TOGETHER)
        for work, (first, second) in pairs.items()
        if first and second and not first.failure and not second.failure
    ]


def _of_loss(samples: Samples) -> Iterator[Goal]:
    steps = samples.get(f"{_OURS} steps")
    if steps and not steps.failure and not samples[lost.STEPS].failure:
        why = (
            "A flush reads all of the state for its hashes and writes it, beside training that uses the same memory."
            " It would take a processor and bandwidth that training does not use."
        )
        lost_s = steps.median - samples[lost.STEPS].median
        yield Goal("256MB: training lost beside a flush", 10, 1e3 * lost_s, "ms", why)


def _ratio(samples: Samples, work: str, limit: str) -> float | None:
    found = samples.get(work), samples.get(limit)
    if any(sample is None or sample.failure for sample in found):
        return None
    return samples[work].median / samples[limit].median
