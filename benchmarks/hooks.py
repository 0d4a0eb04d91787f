"""What the second design costs a training loop: times as ratios, and what the interpreter's audit events count.

Audit events are raised for each file that is opened, listed, renamed or removed by Python, whichever module does it.
"""

import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from forge_ref import CheckpointerCallback, TrainingRun
from forge_ref.ephemeral_folder import REQUIRED

ROUNDS = 7
OLD = 10_000
_FILES = ("open", "os.listdir", "os.scandir", "os.rename", "os.remove", "os.rmdir", "os.mkdir")
_REMOVES = ("os.rename", "os.remove", "os.rmdir")
_heard: list[tuple[str, str, int]] = []
"""Event, first argument, and thread, since the last `_hear`."""


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _FILES:
        _heard.append((event, str(arguments[0]), threading.get_ident()))


def _hear(call: Callable[[], object]) -> list[tuple[str, str, int]]:
    """Return the events of a call, and of other threads meanwhile."""
    _listen()
    _heard.clear()
    call()
    return list(_heard)


@cache
def _listen() -> None:
    """Hear audit events, from the first call on: a hook can't be removed."""
    sys.addaudithook(_audit)


def _bound(folder: str, **settings: Any) -> tuple[TrainingRun, CheckpointerCallback, Callable[[], None]]:
    """Return a run with the smallest model there is, its callback, and a step of it."""
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run, saver = TrainingRun(folder, model, optimizer), CheckpointerCallback(**settings)
    saver.trainer = run

    def step() -> None:
        model(torch.ones(1, 1)).backward()
        optimizer.step()
        run.global_step += 1

    return run, saver, step


def _in_turns(*calls: Callable[[], object], times: int = 1) -> list[float]:
    """Return the seconds that each call takes, as the median of rounds in turns."""
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, own in zip(calls, taken, strict=True):
            begun = time.perf_counter()
            for _ in range(times):
                call()
            own.append((time.perf_counter() - begun) / times)
    return [statistics.median(own) for own in taken]


def idle_hook() -> str:
    """What the hook after a batch costs when nothing is due, next to the smallest step that a model can take."""
    with tempfile.TemporaryDirectory() as folder:
        run, saver, step = _bound(folder, save_interval=10**9, ephemeral_save_interval=10**8)
        run.global_step = 1
        saver.pre_train()
        step_s, hook_s = _in_turns(step, saver.post_train_batch, times=2000)
        touched = _hear(lambda: [saver.post_train_batch() for _ in range(1000)])
    return (
        f"idle hook: {hook_s * 1e6:.2f} us, {hook_s / step_s:.1%} of a step of one weight ({step_s * 1e6:.0f} us); "
        f"{len(touched)} files opened, listed or changed in 1,000 of them"
    )


def start() -> str:
    """What a start costs over many checkpoints of earlier runs, next to a scandir of each of their directories."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1, OLD + 1):
            for name in REQUIRED:
                file = Path(folder, f"step{number * 10}", name)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps({"ephemeral": False, "version": "2.0"}))
        starts = [_starting(folder, limit) for limit in (None, OLD)]
        listings = [name for event, name, _ in _hear(starts[0]) if event in ("os.listdir", "os.scandir")]
        scanned_s, started_s, read_s = _in_turns(lambda: _scan(folder, 2), *starts)
    return (
        f"start over {OLD:,} permanent checkpoints: {len(listings)} listing, {started_s / scanned_s:.2f} x a scandir "
        f"of all their directories ({scanned_s:.2f} s); {read_s / scanned_s:.2f} x with a limit, which reads each kind"
    )


def _starting(folder: str, limit: int | None) -> Callable[[], None]:
    """Return the first hook of a run that has resumed after all these checkpoints."""
    run, saver, _ = _bound(folder, save_interval=10, ephemeral_save_interval=1, max_checkpoints=limit)
    run.global_step = 10 * OLD + 1

    def begin() -> None:
        saver.pre_train()
        saver._has_begun = False

    return begin


def _scan(folder: str, depth: int) -> None:
    with os.scandir(folder) as entries:
        inside = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    if depth:
        for path in inside:
            _scan(path, depth - 1)


def removals() -> str:
    """Which threads remove, of a run that saves an ephemeral checkpoint after each batch."""
    with tempfile.TemporaryDirectory() as folder:
        _, saver, step = _bound(folder, save_interval=50, ephemeral_save_interval=1)

        def train() -> None:
            saver.pre_train()
            for _ in range(20):
                step()
                saver.post_train_batch()
            saver.post_train()

        begun = [str(Path(folder, f"step{number}")) for number in range(30)]
        removed = [(name, thread) for event, name, thread in _hear(train) if event in _REMOVES]
        of_steps = [(name, thread) for name, thread in removed if name.startswith(tuple(begun))]
    own = sum(thread == threading.get_ident() for _, thread in of_steps)
    return f"removals: {len(of_steps)} operations on checkpoints, {own} of them on the training thread"
