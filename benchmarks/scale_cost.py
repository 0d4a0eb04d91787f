"""What a save of a large model costs on many ranks: constants measured on this machine, multiplied.

Each constant is the fastest of several attempts, so that it is the work's own
and not its neighbours'.  Nothing here says how fast a cluster's storage is: a
rank is given what this machine's disk gives one process.
"""

import io
import pickle
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from subject import Size, Subject, Warm, bytes_of, subject
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan

import forge_ref
from forge_ref import trust
from forge_ref.engine import table
from forge_ref.engine.lead import Lead
from forge_ref.engine.leaves import Fixed

_ATTEMPTS = 5
_PIECES_OF, _TENSORS = 64, 100
"""Ranks and tensors of the state that the price of a piece is measured on."""
_VALUES = 3
"""Of each parameter: itself and two moments, in 4 bytes each."""
_MESSAGE_S = 100e-6
"""One message between two machines: assumed, not measured."""


@dataclass(frozen=True)
class Model:
    """A transformer, as far as a save depends on it."""

    name: str
    parameters: float
    layers: int
    width: int

    @property
    def tensors(self) -> int:
        """Parameters by name: nine in a layer, and three beside the layers."""
        return 9 * self.layers + 3


MODELS = (Model("70 B", 70e9, 80, 8_192), Model("1 T", 1e12, 128, 24_576))
RANKS = (1_000, 16_000)


@dataclass(frozen=True)
class Constants:
    """What this machine takes: seconds for a byte, for a tensor, for a piece of a tensor in the marker."""

    copy_s: float
    write_s: float
    hash_s: float
    stage_tensor_s: float
    plan_piece_s: float
    write_piece_s: float
    read_piece_s: float
    piece_bytes: float


def _fastest(job: Callable[[], object]) -> float:
    taken = []
    for _ in range(_ATTEMPTS):
        begun = time.perf_counter()
        job()
        taken.append(time.perf_counter() - begun)
    return min(taken)


def constants() -> Constants:
    """Measure them."""
    torch.set_num_threads(1)
    large, small = subject(Size("large", 256, 160)), subject(Size("small", 1, 2_000))
    with tempfile.TemporaryDirectory() as folder:
        warm, size = Warm(large), large.size_bytes
        path = Path(folder, "raw")
        path.mkdir()
        copy_s = _fastest(warm.copy) / size
        write_s = _fastest(lambda: warm.write_directly(path)) / size
        hash_s = _fastest(lambda: [table.digest(bytes_of(tensor)) for tensor in large.tensors]) / size
        stage_s = _staged(small, folder) / len(small.tensors)
    pieces = _PIECES_OF * _TENSORS
    plans = {rank: _plan(rank) for rank in range(_PIECES_OF)}
    plan_s = _fastest(lambda: Lead().decide(plans)) / pieces
    lead = Lead()
    lead.decide(plans)
    content = lead.marker({})
    described = pickle.loads(content)
    write_piece_s = _fastest(lambda: pickle.dumps(described)) / pieces
    read_piece_s = _fastest(lambda: _loaded(content)) / pieces
    return Constants(copy_s, write_s, hash_s, stage_s, plan_s, write_piece_s, read_piece_s, len(content) / pieces)


def _staged(small: Subject, folder: str) -> float:
    """Return how long an asynchronous save of small tensors blocks."""
    mode = forge_ref.AsyncCheckpointMode.async_
    config = forge_ref.CheckpointConfig(dir=folder, keep_last_n=1, async_mode=mode)
    manager, steps, taken = forge_ref.CheckpointManager(config, small.model, small.optimizer), iter(range(99)), []
    for _ in range(_ATTEMPTS):
        begun = time.perf_counter()
        manager.save(next(steps))
        taken.append(time.perf_counter() - begun)
        manager.wait()
    return min(taken)


def _plan(rank: int) -> SavePlan:
    """Return what a rank writes of tensors that are divided among the ranks by their rows."""
    whole, part = torch.Size([_PIECES_OF * 8, 8]), torch.Size([8, 8])
    place = whole, torch.Size([8 * rank, 0])
    names = [f"model.layers.{n}.feed_forward.weight" for n in range(_TENSORS)]
    items = [Fixed(name, torch.float32, part, True, place).item() for name in names]
    return SavePlan(items, storage_data=frozenset(), planner_data={name: tuple(name.split(".")) for name in names})


def _loaded(content: bytes) -> Metadata:
    return trust.loads_marker(io.BytesIO(content), Path(".metadata"))


def section(chain: Callable[[int], int]) -> str:
    """Return the section; `chain` is the longest chain of messages of a save on so many ranks."""
    found = constants()
    rows = [row for model in MODELS for ranks in RANKS for row in [_row(model, ranks, found, chain(ranks))]]
    head = (
        "",
        "GB a rank",
        "blocked, s",
        "shards written, s",
        "messages, s",
        "marker, GB",
        "marker written, s",
        "first plan, s",
        "marker read by each rank, s",
        "what dominates a save",
    )
    lines = [head, ("---", *["---:"] * (len(head) - 2), "---"), *rows]
    rendered = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"""
## What a save costs

Constants of this machine, one process on one core:

| | |
| --- | ---: |
| copy, GB/s | {1 / found.copy_s / 1e9:.1f} |
| direct writes, GB/s | {1 / found.write_s / 1e9:.2f} |
| hashes, beside the writes, GB/s | {1 / found.hash_s / 1e9:.1f} |
| a tensor that a save is blocked by, µs | {found.stage_tensor_s * 1e6:.1f} |
| a piece of a tensor in the marker, bytes | {found.piece_bytes:.0f} |
| in the first plan, µs | {found.plan_piece_s * 1e6:.1f} |
| when it is first pickled, µs | {found.write_piece_s * 1e6:.1f} |
| when it is read, µs | {found.read_piece_s * 1e6:.1f} |

Assumed: {_MESSAGE_S * 1e6:.0f} µs for a message, and that each rank writes as fast as one process does here.
Parameters and two moments, in 4 bytes each, are divided among all ranks by rows. A tensor with fewer rows than there
are ranks has as many pieces as rows. After the first save the layout is unchanged, so only the first one has a plan.
The marker is written on rank 0. At a load each rank reads all of it.

{rendered}
"""


def _row(model: Model, ranks: int, found: Constants, chain: int) -> tuple[str, ...]:
    rank_bytes = _VALUES * 4 * model.parameters / ranks
    pieces = _VALUES * model.tensors * min(ranks, model.width)
    blocked_s = rank_bytes * found.copy_s + (_VALUES + 1) * model.tensors * found.stage_tensor_s
    written_s = rank_bytes * max(found.write_s, found.hash_s)
    messages_s = chain * _MESSAGE_S
    marker_bytes = pieces * found.piece_bytes
    marker_s = marker_bytes * (found.write_s + found.hash_s)
    costs = {"shards": written_s, "the marker": marker_s, "messages": messages_s, "the copy": blocked_s}
    return (
        f"{model.name}, {ranks:,} ranks",
        f"{rank_bytes / 1e9:.2f}",
        f"{blocked_s:.3f}",
        f"{written_s:.2f}",
        f"{messages_s:.3f}",
        f"{marker_bytes / 1e9:.2f}",
        f"{marker_s:.2f}",
        f"{pieces * (found.plan_piece_s + found.write_piece_s):.1f}",
        f"{pieces * found.read_piece_s:.1f}",
        max(costs, key=lambda cost: costs[cost]),
    )
