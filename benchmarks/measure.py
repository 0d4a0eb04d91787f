"""Measures several works in turns: each round does all of them once, in an order of its own, so that what drifts meets
all alike.  A result is a median with its quartiles, and the memory that the work took at its peak.

A budget decides how often: a work that is too slow to be repeated is measured once, and one that is expected to take
more than is left is left out.  What a work will take is known from a smaller state, never written down.
"""

import gc
import os
import random
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Parts = dict[str, float]
"""Seconds by name, of the parts of a work."""
Work = Callable[[], Parts | None]
"""What is measured as a whole, unless it returns times of its own."""
FEWEST = 3
"""Rounds that have to fit into the budget; the slowest works are measured once until they do."""


class NotMeasured(Exception):
    """Says why something is not measured here."""


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


@dataclass(frozen=True)
class Expected:
    """What a work is expected to take."""

    seconds: float
    why: str
    """What it was computed from."""


@dataclass(frozen=True)
class Budget:
    """The time of one section, and what is known of its works before."""

    seconds: float
    expected: Mapping[str, Expected] = field(default_factory=dict)
    stuck: Mapping[str, str] = field(default_factory=dict)
    """Why works are not tried again, by their names."""
    say: Callable[[str, str], None] = lambda phase, step: None
    """Called before each step of a phase: who waits for the end sees which step does not come to one."""
    begun: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        """How many seconds are left."""
        return self.begun + self.seconds - time.monotonic()

    def why_not(self, name: str, reserved_s: float = 0.0) -> str:
        """Return why a work is left out when so many seconds are kept for others; empty if it is not."""
        left_s, expected = max(0.0, self.left_s - reserved_s), self.expected.get(name)
        if name in self.stuck or expected is None or expected.seconds <= left_s:
            return self.stuck.get(name, "")
        return f"left out: {expected.seconds:.0f} s expected, {expected.why}, and {left_s:.0f} s left for it"


def in_turns(works: Mapping[str, Work], budget: Budget, always: Collection[str] | None = None) -> Samples:
    """Return samples of as many rounds as the budget allows; `always` are measured, and repeated, whatever they take.

    They are the first ones if not all are. A first round finds out what works take, in the order given, and is kept
    only of those that are not repeated.
    """
    always = set(works if always is None else always)
    firsts, costs, samples = _first_round(works, budget, always)
    repeated = _repeated(costs, budget.left_s, always)
    for name in firsts.keys() - repeated.keys():
        _keep(samples, *firsts[name])
    number, round_s = 0, sum(repeated.values())
    while repeated and (not number or budget.left_s > round_s):
        begun, order = time.monotonic(), list(repeated)
        random.Random(number).shuffle(order)
        number += 1
        for name in order:
            budget.say(f"round {number}", name)
            try:
                _keep(samples, *_once(name, works[name]))
            except Exception as error:
                del repeated[name]
                samples[name] = Sample(failure=described(error))
        round_s = time.monotonic() - begun
    return samples


def _first_round(
    works: Mapping[str, Work], budget: Budget, always: Collection[str]
) -> tuple[dict[str, tuple[Parts, int]], dict[str, float], Samples]:
    """Return what each work took, how many seconds it costs with all around it, and those that were not measured."""
    firsts: dict[str, tuple[Parts, int]] = {}
    costs: dict[str, float] = {}
    samples: Samples = {}
    for name, work in works.items():
        reserved_s = sum(cost for other, cost in costs.items() if other in always)
        why_not = budget.stuck.get(name, "") if name in always else budget.why_not(name, reserved_s)
        if why_not:
            samples[name] = Sample(failure=why_not)
            continue
        budget.say("first round", name)
        begun = time.monotonic()
        try:
            firsts[name] = _once(name, work)
        except Exception as error:
            samples[name] = Sample(failure=described(error))
            continue
        costs[name] = max(time.monotonic() - begun, *firsts[name][0].values())
    return firsts, costs, samples


def _repeated(costs: Mapping[str, float], left_s: float, always: Collection[str]) -> dict[str, float]:
    """Return the works that are measured in further rounds, with what they cost."""
    repeated = dict(costs)
    for name in sorted(costs, key=costs.__getitem__, reverse=True):
        if name not in always and FEWEST * sum(repeated.values()) > left_s:
            del repeated[name]
    return repeated


def _keep(samples: Samples, parts: Parts, peak_bytes: int) -> None:
    for part, seconds in parts.items():
        sample = samples.setdefault(part, Sample())
        sample.seconds.append(seconds)
        sample.peak_bytes = max(sample.peak_bytes, peak_bytes)


def described(error: Exception) -> str:
    """Return one line about an error."""
    if isinstance(error, NotMeasured):
        return str(error)
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
