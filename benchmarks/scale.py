"""What coordination costs with many ranks: counted in real processes where there are few, derived where there are many.

    python benchmarks/run.py scale                        print it
    python benchmarks/run.py scale --write docs/SCALE.md  and write it down

Counted are the manager's messages (by its own counters) and the file operations
of every rank (under strace, which has to be installed).  Derived are the
messages for many ranks: the same code runs for each of them, over a wire that
is a dictionary; and the result is compared with what was counted before it is
believed.
"""

import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from scale_cost import section
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import forge_ref
from forge_ref import layout, own_values, ranks
from forge_ref.channel import Channel
from forge_ref.engine import writing
from forge_ref.engine.lead import Lead, Report, Writers
from forge_ref.engine.writing import ShardWriter
from forge_ref.manifest import Seal

COUNTED = ((2, 0), (4, 0), (8, 0), (16, 0), (4, 2), (16, 4))
"""Ranks and pipeline stages of the runs that are counted."""
DERIVED = ((8, 0), (1_000, 0), (16_000, 0), (16_000, 16))
MOST_PLANS = 1_000
"""Ranks of whom a first save is derived: a derivation holds all messages, and in a first save the plans are in them."""
PHASES = ("construct", "first save", "save", "load")
STEP = 7
LAYERS, WIDTH = 4, 64


# -- counted ------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """What a rank told others in the saves of a run: by save its report and the marker's seal."""

    plan: SavePlan
    writers: Writers | None
    """What the first rank of a stage has decided in the first save."""
    report: dict[str, Report]
    seal: dict[str, Seal]


@dataclass(frozen=True)
class Run:
    """What was counted in a run of real processes; lists are by rank, then by phase."""

    size: int
    stages: int
    said: list[dict[str, Counter[str]]]
    told: list[Told]
    files: list[dict[str, Counter[tuple[str, str]]]]
    sockets: list[int]
    entries: dict[str, int]
    source_bytes: int
    """The length of what rank 0 tells the others at a load."""


def count(size: int, stages: int, is_lazy: bool = False) -> Run:
    """A save and a load in `size` processes."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace")
        strace = ["strace", "-f", "-y", "-qq", "--seccomp-bpf", "-e", "trace=%file", "-o", str(trace)]
        environment = {**os.environ, "TORCH_GLOO_LAZY_INIT": str(int(is_lazy)), "OMP_NUM_THREADS": "1"}
        me = [sys.executable, __file__, folder, str(size), str(stages)]
        done = subprocess.run([*strace, *me], env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{size} ranks could not be counted:\n{done.stdout}{done.stderr}")
        found = pickle.loads(Path(folder, "found").read_bytes())
        checkpoint = Path(folder, "checkpoints", layout.step_name(STEP))
        entries = {
            str(path.relative_to(checkpoint)): len(os.listdir(path)) for path in (checkpoint, *checkpoint.glob("pp*"))
        }
        of_task = _operations(trace, folder)
    return Run(
        size,
        stages,
        said=[one["said"] for one in found],
        told=[Told(*one["told"]) for one in found],
        files=[of_task[one["pid"]] for one in found],
        sockets=[one["sockets"] for one in found],
        entries=entries,
        source_bytes=found[0]["source_bytes"],
    )


def _main(folder: str, size: int, stages: int) -> None:
    """The processes of a run; this is what strace follows."""
    torch.set_num_threads(1)
    forks = multiprocessing.get_context("fork")
    pipes, processes = [], []
    for rank in range(size):
        ours, theirs = forks.Pipe()
        process = forks.Process(target=_rank, args=(theirs, folder, rank, size, stages))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    found = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    Path(folder, "found").write_bytes(pickle.dumps(found))


def _rank(pipe: Any, folder: str, rank: int, size: int, stages: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    mesh = init_device_mesh("cpu", (stages or 1, size // (stages or 1)), mesh_dim_names=("pp", "dp"))
    model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    fully_shard(model, mesh=mesh["dp"])
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, WIDTH)).sum().backward()
    optimizer.step()
    group, stage = (mesh["dp"].get_group(), mesh.get_local_rank("pp")) if stages else (None, None)
    config = forge_ref.CheckpointConfig(dir=f"{folder}/checkpoints")
    before = _sockets()
    found = {"pid": threading.get_native_id(), "said": {}}

    def enter(phase: str) -> None:
        """File operations from here on belong to this phase; said to whoever reads the trace by asking for a file."""
        os.path.exists(f"{folder}/phase/{phase}")

    enter("construct")
    plans, decided, reports, seals = (_remember(*of) for of in _TOLD)
    manager = forge_ref.CheckpointManager(config, model, optimizer, group, stage)
    channels = {id(channel): channel for channel in _channels(manager)}.values()
    saves = {"first save": lambda: manager.save(STEP - 1), "save": lambda: manager.save(STEP)}
    jobs = {"construct": lambda: None, **saves, "load": manager.load}
    counted = Counter[str]()
    for phase, job in jobs.items():
        enter(phase)
        job()
        now = sum((channel.counted for channel in channels), Counter[str]())
        found["said"][phase], counted = now - counted, now
    enter("over")
    by_save = (dict(zip(saves, of, strict=True)) for of in (reports, seals))
    found["told"] = plans[0], decided[0] if decided else None, *by_save
    found["sockets"] = _sockets() - before
    found["source_bytes"] = len(pickle.dumps(manager._resumer._find(None, None)))
    dist.barrier()
    pipe.send(found)
    pipe.close()
    os._exit(0)  # the processes' libraries have nothing to say at their end


def _sockets() -> int:
    links = (Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
    return sum(os.path.lexists(link) and os.readlink(link).startswith("socket:") for link in links)


def _channels(manager: Any) -> Sequence[Channel]:
    ranks = manager._run.ranks
    return ranks.calls, ranks.flushes, ranks.writers


_TOLD = (writing, "plan_of"), (Lead, "decide"), (ShardWriter, "_write_file"), (ShardWriter, "write")


def _remember(owner: Any, name: str) -> list[Any]:
    """What the function returns from here on."""
    function, found = getattr(owner, name), []

    def remembering(*arguments: Any) -> Any:
        found.append(function(*arguments))
        return found[-1]

    setattr(owner, name, remembering)
    return found


_CALL = re.compile(r"(?P<task>\d+) +(?P<name>\w+)\((?P<arguments>.*)")
_CHANGES = ("mkdir", "rename", "unlink", "rmdir", "symlink", "link", "chmod")


def _operations(trace: Path, folder: str) -> dict[int, dict[str, Counter[tuple[str, str]]]]:
    """By task and phase: how often it did what in which directory below the folder."""
    found: dict[int, dict[str, Counter[tuple[str, str]]]] = {}
    phase: dict[int, str] = {}
    for line in trace.read_text().splitlines():
        call = _CALL.match(line)
        if call is None or folder not in line:
            continue
        task, path = int(call["task"]), _path(call["arguments"], folder)
        if path.startswith("phase/"):
            phase[task] = path.removeprefix("phase/")
        kind = _kind(call["name"], call["arguments"])
        if task in phase and path.startswith("checkpoints") and kind is not None:
            where = path if kind == "scan" else os.path.dirname(path)
            found.setdefault(task, {}).setdefault(phase[task], Counter())[kind, where] += 1
    return found


def _path(arguments: str, folder: str) -> str:
    """The first path of a call, below the folder; what is relative to a descriptor is put together."""
    base, name = re.match(r'(?:(?:AT_FDCWD|\d+)(?:<([^>]*)>)?, )?"([^"]*)"', arguments).groups()  # type: ignore[union-attr]  # every call of strace's class %file names a path
    whole = os.path.join(base or "", name)
    return os.path.relpath(whole, folder) if whole.startswith(folder) else ""


def _kind(name: str, arguments: str) -> str | None:
    if name.startswith("open"):
        return "create" if "O_CREAT" in arguments else "scan" if "O_DIRECTORY" in arguments else "open"
    if name.startswith(_CHANGES):
        return "change"
    asks_of_descriptor = ', "",' in arguments
    return None if asks_of_descriptor else "stat"


# -- derived ------------------------------------------------------------------


class _NotYet(BaseException):
    """A message is waited for that has not been sent; not an error, so nothing handles it."""


class _Arrived:
    def wait(self) -> None:
        pass


@dataclass(frozen=True)
class Simulated(Channel):
    """The channel itself, except that its wire is a dictionary; remembers the longest chain of messages up to here."""

    wire: dict[tuple[int, int, int], tuple[int, torch.Tensor]] = field(default_factory=dict)
    so_far: Counter[Any] = field(default_factory=Counter)

    def _send(self, packet: torch.Tensor, peer: int) -> Any:
        self.wire[self._name(self.rank), peer, self.so_far["to", peer]] = (self.so_far["chain"], packet)
        self.so_far["to", peer] += 1
        return _Arrived()

    def _receive(self, packet: torch.Tensor, peer: int) -> None:
        chain, sent = self.wire.get((peer, self._name(self.rank), self.so_far["from", peer]), (0, None))
        if sent is None:
            raise _NotYet
        packet.copy_(sent)
        self.so_far["from", peer] += 1
        self.so_far["chain"] = max(self.so_far["chain"], chain + 1)


def simulate(size: int, talk: Callable[[Channel], object]) -> list[Simulated]:
    """What each rank's channel counts when all of them talk: one after the other, again from the start if one waits."""
    wire: dict[tuple[int, int, int], tuple[int, torch.Tensor]] = {}
    finished: dict[int, Simulated] = {}
    order = range(size)
    while len(finished) < size:
        order = order[::-1]
        for rank in order:
            channel = Simulated(rank, size, object(), wire=wire)  # type: ignore[arg-type]  # any group will do
            try:
                talk(channel)
            except _NotYet:
                continue
            finished[rank] = channel
    return [finished[rank] for rank in range(size)]


def talks(size: int, stages: int, source: Any, told: Callable[[int], Told]) -> dict[str, Callable[[Channel], object]]:
    """What the ranks say to one another in each phase; the words are as long as the real ones."""
    each = size // (stages or 1)

    def construct(channel: Channel) -> None:
        first = channel.rank // each * each
        row = (first // each if stages else -1, first, each, 0xC0FFEE11)
        channel.merged(lambda: ({row: (1, (channel.rank,))}, layout.new_token()), ranks._both_with_first_token)
        channel.together(lambda: None)
        channel.from_first(lambda: Path("/run/checkpoints"))

    def save(channel: Channel, phase: str = "save") -> None:
        stage = channel.rank // each if stages else None
        notes = frozenset({(STEP, stage, 0)})
        channel.concluded(lambda: notes, frozenset, own_values.differing, own_values.merged)
        own, writers = told(channel.rank), channel
        if stage is not None:
            peers = range(each * stage, each * (stage + 1))
            writers = replace(channel, rank=channel.rank - peers[0], size=each, names=peers)
        plan, decided = (own.plan, own.writers) if phase == "first save" else (None, None)
        writers.decided(lambda: {writers.rank: plan} if plan is not None else {}, lambda _: decided)
        seal = writers.decided(lambda: {writers.rank: own.report[phase]}, lambda _: own.seal[phase])
        name = layout.MARKER if stage is None else f"{layout.stage_name(stage)}/{layout.MARKER}"
        channel.together(lambda: [(name, seal.size_bytes, seal.xxh3)], frozenset)

    def load(channel: Channel) -> None:
        channel.from_first(lambda: source)
        channel.together(lambda: None)

    saves = {"first save": partial(save, phase="first save"), "save": save}
    return {"construct": construct, **saves, "load": load}


def derive(size: int, stages: int, source_bytes: int, told: Callable[[int], Told]) -> dict[str, list[Simulated]]:
    """The channels of all ranks in each phase."""
    frame = len(pickle.dumps(bytes(source_bytes))) - source_bytes
    source = bytes(source_bytes - frame)
    of_phase = talks(size, stages, source, told)
    if size > MOST_PLANS:
        del of_phase["first save"]
    return {phase: simulate(size, talk) for phase, talk in of_phase.items()}


def markers_bytes(stages: int) -> int:
    """How much the record of the stages' markers adds to what is told at a load."""
    names = [f"{layout.stage_name(stage)}/{layout.MARKER}" for stage in range(stages)]
    seals = {name: {"size_bytes": 4096, "xxh3": f"{0xC0FFEE11 + at:032x}"} for at, name in enumerate(names)}
    return len(pickle.dumps(seals))


def check(run: Run) -> None:
    """The simulation is believed because it says of every rank what was counted there."""
    for phase, channels in derive(run.size, run.stages, run.source_bytes, run.told.__getitem__).items():
        for rank, channel in enumerate(channels):
            said = run.said[rank][phase]
            if channel.counted != said:
                sys.exit(
                    f"{run.size} ranks, {run.stages} stages, {phase}, rank {rank}: {said} was counted and "
                    f"{channel.counted} derived"
                )


# -- rendered -----------------------------------------------------------------


def study() -> str:
    """The whole study as Markdown."""
    if shutil.which("strace") is None:
        sys.exit("file operations are counted under strace, which is not installed here")
    runs = {(size, stages): count(size, stages) for size, stages in COUNTED}
    for run in runs.values():
        check(run)
    largest = runs[16, 0]
    lazy = count(16, 0, is_lazy=True)
    longer = {0: 0, 16: runs[16, 4].source_bytes - largest.source_bytes + markers_bytes(16) - markers_bytes(4)}
    derived = {
        (size, stages): derive(
            size, stages, largest.source_bytes + longer[stages], lambda rank: largest.told[min(rank, 1)]
        )
        for size, stages in DERIVED
    }
    return "".join(
        [
            _INTRODUCTION,
            _messages(derived),
            _connections(runs, lazy),
            _entries(runs),
            _file_operations(runs),
            _storm(largest),
            section(lambda size: max(channel.so_far["chain"] for channel in derived[size, 0]["save"])),
        ]
    )


_INTRODUCTION = f"""# What coordination costs at scale

Written by `python benchmarks/run.py scale --write docs/SCALE.md`. No number here is typed in by hand.

- *Counted*: runs of
  {", ".join(f"{size} ranks" + (f" in {stages} stages" if stages else "") for size, stages in COUNTED)}.
  Each rank is a process, with FSDP over gloo.
- *Multiplied*: [what a save costs](#what-a-save-costs), from constants of the machine that this was written on.
- *Derived*: the same code, run for each rank, with a dictionary in place of the network. For each counted run, rank
  and phase this gives exactly the messages and bytes that were counted.
"""


def _scale(size: int, stages: int) -> str:
    return f"{size:,} ranks" + (f", {stages} stages" if stages else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    shown = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *shown]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _messages(derived: dict[tuple[int, int], dict[str, list[Simulated]]]) -> str:
    rows = []
    for scale, phases in derived.items():
        for phase, channels in phases.items():
            first = channels[0].counted
            rows.append(
                (
                    f"{_scale(*scale)}: {phase}",
                    first["collectives"],
                    first["sent"] + first["received"],
                    max(channel.counted["sent"] + channel.counted["received"] for channel in channels),
                    max(channel.so_far["chain"] for channel in channels),
                    first["sent_bytes"] + first["received_bytes"],
                    sum(channel.counted["sent"] for channel in channels),
                )
            )
    head = (
        "",
        "collectives",
        "messages, rank 0",
        "busiest rank",
        "longest chain",
        "bytes through rank 0",
        "all messages",
    )
    most = max(size for size, _ in derived)
    return f"""
## Messages of the manager

A collective is one pass down the tree, or one up and one down. In the longest chain, each message has to wait for
the one before. In a ring of {most:,} ranks, which the library's own reduction uses, it would have
{2 * (most - 1):,} messages for each collective. What is longer than a packet takes two messages to each neighbour.

- A load sends the train state and `metadata.json` to all ranks.
- In the first save, rank 0 gets what each rank could write, here {3 * 2 * LAYERS} sharded tensors; these bytes grow
  with the number of tensors and of ranks. Later saves send it again only from ranks whose state is laid out
  differently. It is derived for up to {MOST_PLANS:,} ranks.
- In each save, rank 0 gets the seal of each rank's file. Pipeline stages divide this and the first save's bytes:
  the first rank of each stage gets those of its stage.

{_table(head, rows)}"""


def _connections(runs: dict[tuple[int, int], Run], lazy: Run) -> str:
    rows = [(_scale(*scale), max(run.sockets), run.sockets[0]) for scale, run in runs.items()]
    rows.append((f"{_scale(16, 0)}, TORCH_GLOO_LAZY_INIT=1", max(lazy.sockets), lazy.sockets[0]))
    return f"""
## Connections

A gloo group connects every rank with every other rank when it is made. The calling thread has one, the thread that
flushes has another, and each stage has its own. With PyTorch's `TORCH_GLOO_LAZY_INIT=1` only ranks that exchange
messages connect. But in the tests in which ranks die, with PyTorch 2.13, gloo then ended some of the surviving
processes; without this variable they raise an error. Sockets that the manager has added to a process after two saves
and a load:

{_table(("", "busiest rank", "rank 0"), rows)}"""


def _entries(runs: dict[tuple[int, int], Run]) -> str:
    beside = {run.entries["."] - run.size for (_, stages), run in runs.items() if not stages}
    in_stage = {
        n - run.size // stages for (_, stages), run in runs.items() if stages for n in list(run.entries.values())[1:]
    }
    (more,), (marker,) = beside, in_stage
    rows = [(_scale(size, stages), size // stages + marker if stages else size + more) for size, stages in DERIVED]
    return f"""
## Files in the fullest directory

Each rank writes one file. In every counted run there were {more} more files beside them without stages, and
{marker} more in the directory of a stage.

{_table(("", "files"), rows)}"""


_KINDS = ("open", "create", "scan", "stat", "change")


def _sum(counts: Counter[tuple[str, str]]) -> dict[str, int]:
    return {kind: sum(n for (found, _), n in counts.items() if found == kind) for kind in _KINDS}


def _file_operations(runs: dict[tuple[int, int], Run]) -> str:
    rows = []
    for scale, run in runs.items():
        for phase in PHASES:
            by_rank = [_sum(one.get(phase, Counter())) for one in run.files]
            others = [max(one[kind] for one in by_rank[1:]) for kind in _KINDS]
            if any(by_rank[0].values()) or any(others):
                rows.append((f"{_scale(*scale)}: {phase}, rank 0", *by_rank[0].values()))
                rows.append((f"{_scale(*scale)}: {phase}, each other, at most", *others))
    return f"""
## File operations

System calls that name a path in the folder of the checkpoints, counted with strace. Queries about an open file are not
counted.

{_table(("", *_KINDS), rows)}"""


def _storm(run: Run) -> str:
    first, other = (run.files[rank]["load"] for rank in (0, run.size - 1))
    shared = ("open", "scan", "stat")
    alone = {kind: _sum(first)[kind] - _sum(other)[kind] for kind in shared}
    by_place = Counter[str]()
    for (_, place), n in (first - other).items():
        by_place[place] += n
    total, each, busiest = sum(alone.values()), sum(_sum(other).values()), max(by_place.values())
    rows = [
        (_scale(size, 0), total, total * size, busiest * size, each * size) for size, stages in DERIVED if not stages
    ]
    return f"""
## File operations of all ranks in a load

Rank 0 alone finds the checkpoint, checks that it is complete, and reads the train state:
{", ".join(f"{kind} {n}" for kind, n in alone.items())}. If every rank did this itself, all would do it
at the same time and in the same directories. Every rank has to read the marker and its own values: {each} files, for
any number of ranks.

{_table(("", "now", "if every rank did it", "of these in one directory", "files opened for the shards"), rows)}"""


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
