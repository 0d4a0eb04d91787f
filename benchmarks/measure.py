"""Measures several works in turns: each round does all of them once, in an order of its own, so that what drifts meets
all alike.  A result is a median with its quartiles, and the memory that the work took at its peak.
"""

import gc
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Parts = dict[str, float]
"""Seconds by name, of the parts of a work."""
Work = Callable[[], Parts | None]
"""What is measured as a whole, unless it returns times of its own."""
FEWEST = 3
"""Rounds that are measured whatever they take."""
_SLOW = 1 / 12
"""Of the budget: a work that takes more than this in the first round is measured there alone."""


@dataclass
class Sample:
    """What was measured of one work, or why it could not be."""

    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    failure: str = ""

    @property
    def median(self) -> float:
        """In seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles, in seconds."""
        if len(self.seconds) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


Samples = dict[str, Sample]


def in_turns(works: Mapping[str, Work], rounds: int, budget_s: float) -> Samples:
    """Return samples of so many rounds, or of fewer when the budget is spent.

    The first round is not kept, except for works that are too slow for another one.
    """
    samples: Samples = {}
    left, begun = dict(works), time.monotonic()
    for number in range(-1, rounds):
        order = list(left)
        random.Random(number).shuffle(order)
        for name in order:
            try:
                parts, peak_bytes = _once(name, left[name])
            except Exception as error:
                del left[name]
                samples[name] = Sample(failure=described(error))
                continue
            is_slow = number < 0 and max(parts.values()) > _SLOW * budget_s
            if is_slow:
                del left[name]
            for part, seconds in parts.items() if number >= 0 or is_slow else ():
                sample = samples.setdefault(part, Sample())
                sample.seconds.append(seconds)
                sample.peak_bytes = max(sample.peak_bytes, peak_bytes)
        if number + 1 >= FEWEST and time.monotonic() - begun > budget_s:
            break
    return samples


def described(error: Exception) -> str:
    """Return one line about an error."""
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0][:80]}"


def _once(name: str, work: Work) -> tuple[Parts, int]:
    gc.collect()
    os.sync()
    before = _reset_peak()
    begun = time.perf_counter()
    parts = work()
    taken = time.perf_counter() - begun
    return parts or {name: taken}, _status("VmHWM") - before


def _reset_peak() -> int:
    """Let the peak of the resident memory begin anew; return the memory that is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"/proc/self/status has no {name}")
