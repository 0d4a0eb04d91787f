"""What a change costs: saves and loads of 200 MB by this checkout's forge_ref, over those of another checkout's.

Each of the two is a process of its own, alive for all rounds, and they take
turns in the order ABBA, so that what drifts meets both.  A round is one
synchronous save, one asynchronous save (the time that training is blocked, then
that until it is committed) and one load from the page cache.
"""

import importlib.util
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
WHAT = ("save", "blocked by an async save", "async save until committed", "load")


def compare(against: Path, rounds: int) -> str:
    """Return a table of ratios: below 1 this checkout is faster."""
    package = against / "forge_ref" / "__init__.py"
    if not package.is_file():
        raise SystemExit(f"--against {against}: there is no {package}; name a checkout, or a folder with its forge_ref")
    times: dict[str, dict[str, list[float]]] = {}
    turns = list(itertools.islice(itertools.cycle(["ours", "theirs", "theirs", "ours"]), 2 + 2 * rounds))
    with tempfile.TemporaryDirectory() as folder, _side(HERE, folder) as ours, _side(against, folder) as theirs:
        sides = {"ours": ours, "theirs": theirs}
        for name in turns:
            for what, seconds in _ask(sides[name]).items():
                times.setdefault(what, {}).setdefault(name, []).append(seconds)
    lines = [f"200 MB, this checkout over {against}, {rounds} rounds in turns; ratio of medians (quartiles of rounds):"]
    for what in (*WHAT, "processor time of a round"):
        one, other = times[what]["ours"][1:], times[what]["theirs"][1:]  # the first of each pays for cold buffers
        pairs = [a / b for a, b in zip(one, other, strict=True)]
        low, _, high = statistics.quantiles(pairs, n=4)
        mine, before = statistics.median(one), statistics.median(other)
        lines.append(
            f"  {what}: {mine / before:.3f} ({low:.3f} to {high:.3f}), "
            f"{mine * 1e3:.0f} ms over {before * 1e3:.0f} ms; fastest over fastest {min(one) / min(other):.3f}"
        )
    return "\n".join(lines)


def _side(checkout: Path, folder: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", __file__, str(checkout), folder]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _ask(side: subprocess.Popen[str]) -> dict[str, float]:
    """Have it go through one round; seconds by name."""
    assert side.stdin is not None and side.stdout is not None, "both were piped"
    side.stdin.write("\n")
    side.stdin.flush()
    answer: dict[str, float] = json.loads(side.stdout.readline())
    return answer


def _forge_ref_of(checkout: Path) -> Any:
    """Import the package from there, whichever is installed."""
    where = checkout / "forge_ref"
    spec = importlib.util.spec_from_file_location(
        "forge_ref", where / "__init__.py", submodule_search_locations=[str(where)]
    )
    assert spec is not None and spec.loader is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules["forge_ref"] = module
    spec.loader.exec_module(module)
    return module


def _warm(folder: Path) -> None:
    """Bring all files into the page cache: a save may have written past it."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.read_bytes()


def _serve(checkout: Path, folder: str) -> None:
    """One round for each line of standard input."""
    import torch

    forge_ref = _forge_ref_of(checkout)
    torch.set_num_threads(1)
    model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(16)))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 1024)).sum().backward()
    optimizer.step()
    managers = []
    for mode in ("disabled", "async"):
        at = tempfile.mkdtemp(prefix=f"{mode}-", dir=folder)
        config = forge_ref.CheckpointConfig(dir=at, keep_last_n=1, async_mode=forge_ref.AsyncCheckpointMode(mode))
        managers.append(forge_ref.CheckpointManager(config, model, optimizer))
    at_once, behind = managers
    for step, _ in enumerate(sys.stdin, 1):
        used, begun = time.process_time(), time.perf_counter()
        at_once.save(step)
        saved = time.perf_counter()
        behind.save(step)
        returned = time.perf_counter()
        behind.wait()
        committed = time.perf_counter()
        warming = time.process_time()
        _warm(Path(at_once.config.dir))
        used += time.process_time() - warming
        warm = time.perf_counter()
        at_once.load()
        parts = (saved - begun, returned - saved, committed - saved, time.perf_counter() - warm)
        row = {**dict(zip(WHAT, parts, strict=True)), "processor time of a round": time.process_time() - used}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.argv[2])
