"""What a flush takes from the training beside it: the same steps with a save at their begin, and without, in turns.

What is lost beside the time that `save` itself blocks is the flush's share of
processors, memory bandwidth and Python's lock.
"""

import tempfile
import time
from pathlib import Path

import torch
from measure import Budget, Parts, Samples, in_turns
from rivals import WAYS, Way, missing
from subject import Size, subject

STEPS, STEP = "steps alone", "a step"


def study(size: Size, budget: Budget) -> Samples:
    """Return the seconds of the steps alone, and of each way those that its flush lets them take longer."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = subject(size)
        ways = []
        for way in (way for way in WAYS if way.saves_beside and not missing(way) and way.name not in budget.stuck):
            budget.say("start", way.name)
            ways.append(way(model, Path(folder, way.__name__)))
        trained = torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(4)))
        optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3)
        batch = torch.randn(64, 512)
        flush_s = _flush(ways[0], Path(folder, "calibrated"))
        step_s = _steps(20, trained, optimizer, batch) / 20
        count = max(20, int(3 * flush_s / step_s))
        numbers = iter(range(1_000_000))

        def beside(way: Way) -> Parts:
            begun = time.perf_counter()
            wait = way.begin(Path(folder, f"saved{next(numbers)}"))
            blocked = time.perf_counter() - begun
            taken = _steps(count, trained, optimizer, batch)
            wait()
            return {f"{way.name} steps": taken, f"{way.name} blocked": blocked}

        def alone() -> Parts:
            taken = _steps(count, trained, optimizer, batch)
            return {STEPS: taken, STEP: taken / count}

        works = {STEPS: alone} | {f"{way.name} steps": (lambda way=way: beside(way)) for way in ways}
        return in_turns(works, budget, {STEPS, f"{ways[0].name} steps"})


def _flush(way: Way, path: Path) -> float:
    """Return how long a flush takes when nothing runs beside it."""
    way.begin(path.with_name("first"))()
    begun = time.perf_counter()
    way.begin(path)()
    return time.perf_counter() - begun


def _steps(count: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> float:
    begun = time.perf_counter()
    for _ in range(count):
        optimizer.zero_grad()
        model(batch).pow(2).mean().backward()
        optimizer.step()
    return time.perf_counter() - begun
