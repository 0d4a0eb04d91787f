"""The processes of one run, one or several ranks: each command goes to all of them, and each has an outcome.

The watchdog: whatever one rank does while others are missing, a command comes
to an end.  When some have not replied in time, every rank that is left is
asked for its stacks, all of them are killed, and the failure shows who stood
where.  So a hang is a verdict, never a suite that hangs.
"""

import select
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from forge_conformance.judging.judge import Unreached
from forge_conformance.judging.text import shortened
from forge_conformance.runs.process import (
    A_WHILE_S,
    ALL_PARTS,
    ROUNDS,
    Died,
    Hung,
    Loaded,
    ManagerFault,
    Raised,
    Unsupported,
    Worker,
    loaded_from,
    settle,
)
from forge_conformance.runs.server import Server
from forge_conformance.runs.state import Digest, by_rank
from forge_conformance.watch.listener import Supervisor


@dataclass(frozen=True)
class Shape:
    """How many ranks there are, and how they divide the work."""

    ranks: int
    kind: str = "sharded"
    """`sharded`, `replicated` or `tensor`; see the worker's `ranks`.  `alone` is `ALONE`."""
    stages: int = 0
    """Pipeline stages; 0 means that there is no pipeline."""
    has_own: bool = False
    """Whether the model has a buffer and extra state that differ from rank to rank."""

    def __str__(self) -> str:
        among = f", {self.stages} stages of {self.ranks // self.stages}" if self.stages else ""
        own = ", with a buffer and extra state of its own on each" if self.has_own else ""
        return f"{self.ranks} {'rank' if self.ranks == 1 else 'ranks'}, {self.kind}{among}{own}"

    @property
    def label(self) -> str:
        """The same, in the name of a test."""
        return f"{self.ranks}-{f'{self.stages}-stages' if self.stages else self.kind}"

    @property
    def last(self) -> int:
        """The rank with the highest number; in the last stage, if there are stages."""
        return self.ranks - 1

    def members(self, stage: int) -> range:
        """The ranks of a stage."""
        replicas = self.ranks // self.stages
        return range(stage * replicas, (stage + 1) * replicas)


ALONE = Shape(1, kind="alone")
"""One process, which knows of no others; a run of one rank has process groups all the same."""
Supervise = Callable[[int, int, int], Supervisor]
"""From a rank, a listener and a process to who answers for it."""

_WAITS = 0.8
"""Of the time that a command may take, what ranks wait for each other at most."""
LONG_S = 1800.0
"""How long ranks wait for each other where no test is about that: torch's own default, longer than any test takes."""


def staged(ranks: int) -> Shape:
    """Two stages of so many ranks."""
    if ranks % 2:
        raise Unreached(f"{ranks} ranks can't be divided into two stages; run with --ranks 2,4")
    return Shape(ranks, stages=2)


@dataclass(frozen=True)
class Outcome:
    """What a command came to on one rank: a value, or what went wrong."""

    rank: int
    value: Any = None
    fault: ManagerFault | Unsupported | None = None

    def __str__(self) -> str:
        return f"rank {self.rank}: {self.fault or 'returned'}"


class OnRank(ManagerFault):
    """Something went wrong on a rank where nothing should; the text says on which and what.

    A rank that ended by itself comes first: what the others raised then is how they learnt of it.
    """

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        faulty = [outcome for outcome in outcomes if outcome.fault is not None]
        first = min(faulty, key=lambda outcome: not isinstance(outcome.fault, Died))
        others = [other for other in faulty if other is not first]
        too = "".join(f"\n-- and {shortened(str(other))}" for other in others)
        super().__init__(f"On rank {first.rank} of {len(outcomes)}: {first.fault}{too}")
        self.traceback = first.fault.traceback if isinstance(first.fault, Raised) else ""
        self.is_refusal = all(isinstance(outcome.fault, Raised) for outcome in faulty)
        """Whether the manager said so itself, wherever something went wrong."""


class Ranks:
    """The worker processes of one run, driven side by side; killed at the latest when the server ends."""

    def __init__(self, server: Server, shape: Shape, workers: Sequence[Worker] = ()) -> None:
        """Without `workers`, fresh ones that nobody watches."""
        self.server = server
        self.shape = shape
        self.workers = list(workers) or [server.spawn() for _ in range(shape.ranks)]
        self.warnings: list[str] = []
        """Everything that commands have warned of so far."""

    @classmethod
    def supervised(cls, server: Server, shape: Shape, folder: Path, watch: str, supervise: Supervise) -> "Ranks":
        """Fresh workers; `supervise` says who answers for each rank's calls on the folder."""
        workers = [
            server.spawn(folder, watch=watch, supervise=_for_rank(supervise, rank)) for rank in range(shape.ranks)
        ]
        return cls(server, shape, workers)

    @property
    def living(self) -> list[int]:
        """Ranks that were neither killed nor seen to end."""
        return [rank for rank, worker in enumerate(self.workers) if worker.is_alive]

    def begin(self, do: str, on: Collection[int] | None = None, **arguments: Any) -> None:
        """Start a command on all living ranks, or on some, and wait for none; callable arguments are asked per rank."""
        for rank in self.living if on is None else on:
            own = {key: value(rank) if callable(value) else value for key, value in arguments.items()}
            self.workers[rank].begin(do, **own)

    def ends(self) -> list[Outcome]:
        """What the running commands come to, by rank; `Hung` with every rank's stacks if one comes to nothing."""
        running = {rank: worker for rank in self.living if (worker := self.workers[rank]).pending is not None}
        found: dict[int, Outcome] = {}
        patience_s = max((worker.patience_s for worker in running.values()), default=0)
        deadline, rounds_left, done = time.monotonic() + patience_s, ROUNDS - 1, _operations_done(running)
        while len(found) < len(running):
            waiting = {rank: worker for rank, worker in running.items() if rank not in found}
            ready = [rank for rank, worker in waiting.items() if worker.has_word()]
            if not ready and time.monotonic() > deadline:
                before, done = done, _operations_done(running)
                if done == before or not rounds_left:
                    raise self._hang(waiting, found)
                deadline, rounds_left = time.monotonic() + patience_s, rounds_left - 1
            if not ready:
                descriptors = [fd for worker in waiting.values() for fd in worker.descriptors()]
                select.select(descriptors, [], [], max(0.0, deadline - time.monotonic()))
            found |= {rank: _outcome(rank, running[rank]) for rank in ready}
        self.warnings += [text for worker in running.values() for text in worker.warnings]
        return [found[rank] for rank in sorted(found)]

    def outcomes(self, do: str, on: Collection[int] | None = None, **arguments: Any) -> list[Outcome]:
        """Start a command and see what it comes to, by rank."""
        self.begin(do, on, **arguments)
        return self.ends()

    def together(self, do: str, **arguments: Any) -> list[Any]:
        """The values of a command that goes well on every rank; see `values` for what is raised if it does not."""
        return values(self.outcomes(do, **arguments))

    def open(
        self, settings: Mapping[str, Any], seed: int, timeout_s: float | None = None, is_alone: bool = False
    ) -> list[Outcome]:
        """Make the training run and its manager on every rank; what that came to.

        Ranks wait for each other for `timeout_s`, or for as long as a command may take; and not so long that a command
        which fails for that comes too late, unless it is `LONG_S`.  With `is_alone` each rank hands its manager a
        process group of its own.  A setting that is callable is asked for the value of each rank.
        """
        if self.shape == ALONE:
            return self.outcomes("open", settings=dict(settings), seed=seed, place=None)
        patience_s = self.workers[0].patience_s
        timeout_s = timeout_s or patience_s
        timeout_s = timeout_s if timeout_s == LONG_S else min(timeout_s, _WAITS * patience_s)
        place = places(self.server, self.shape, timeout_s, is_alone)
        settings = {"timeout_s": timeout_s, **settings}
        return self.outcomes("open", settings=partial(_of_rank, settings), seed=seed, place=place)

    def begin_save(
        self, step: int | Callable[[int], int] | None = None, on: Collection[int] | None = None, extra: Any = None
    ) -> None:
        """Start a save at the run's step or under another; `ends` sees what it comes to."""
        self.begin("save", on, step=step, extra=None if extra is None else repr(extra), parts=list(ALL_PARTS))

    def load(self, path: str | None = None) -> list[Loaded]:
        """Resume; where each rank came back."""
        values = self.together("load", path=path, exclude=[], freeze_expected=None, parts=list(ALL_PARTS))
        return [loaded_from(value) for value in values]

    def digest(self) -> Digest:
        """Fingerprints of the state of all ranks, in one."""
        digests: list[Digest] = self.together("digest")
        return digests[0] if self.shape == ALONE else by_rank(digests)

    def settled(self) -> list[int]:
        """The ranks whose command has come to an end when nothing moves any more in the others."""
        running = [rank for rank in self.living if self.workers[rank].pending is not None]
        done = settle([self.workers[rank] for rank in running])
        return [rank for rank in running if self.workers[rank] in done]

    def reply_or_block(self) -> bool:
        """Whether the running command comes to an end on every rank; false when nothing moves any more in the others.

        A rank that only looks again and again whether it may go on does not count as moving, see `settle`.
        """
        running = [worker for rank in self.living if (worker := self.workers[rank]).pending is not None]
        return len(settle(running, busy_s=A_WHILE_S)) == len(running)

    def kill(self, ranks: Collection[int] | None = None) -> None:
        """SIGKILL to all of these at once, or to every rank."""
        struck = self.living if ranks is None else list(ranks)
        for rank in struck:
            self.workers[rank].strike()
        for rank in struck:
            self.workers[rank].kill()

    def strike(self) -> None:
        """SIGKILL to all, without waiting for what comes of it."""
        for worker in self.workers:
            worker.strike()

    def _hang(self, waiting: Mapping[int, Worker], found: Mapping[int, Outcome]) -> Hung:
        doing = next(worker.pending or "a command" for worker in waiting.values())
        if self.shape == ALONE:
            return self.workers[0].hang(doing)
        patience_s = max(worker.patience_s for worker in waiting.values())
        lines = [f"-- {outcome}" for _, outcome in sorted(found.items())]
        lines += [f"-- rank {rank} does not reply; its threads are at:\n{w.stacks()}" for rank, w in waiting.items()]
        silent = [rank for rank in range(self.shape.ranks) if rank not in waiting and rank not in found]
        lines += [f"-- rank {', '.join(map(str, silent))} had ended before"] if silent else []
        self.kill()
        who = f"{doing} on rank {', '.join(map(str, waiting))} of {self.shape.ranks}"
        return Hung(who, patience_s, "\n".join(lines))


def _of_rank(settings: Mapping[str, Any], rank: int) -> dict[str, Any]:
    return {key: value(rank) if callable(value) else value for key, value in settings.items()}


def _outcome(rank: int, worker: Worker) -> Outcome:
    try:
        return Outcome(rank, worker.reply())
    except (ManagerFault, Unsupported) as fault:
        return Outcome(rank, fault=fault)


def values(outcomes: Sequence[Outcome]) -> list[Any]:
    """What every rank returned; else the fault of the only rank, or `OnRank`, which says where."""
    faults = [outcome.fault for outcome in outcomes if outcome.fault is not None]
    if faults and len(outcomes) == 1:
        raise faults[0]
    if faults:
        raise OnRank(outcomes)
    return [outcome.value for outcome in outcomes]


def is_refusal(fault: ManagerFault) -> bool:
    """Whether a manager said itself that something went wrong."""
    return isinstance(fault, Raised) or (isinstance(fault, OnRank) and fault.is_refusal)


def _operations_done(workers: Mapping[int, Worker]) -> int:
    return sum(worker.operations_done for worker in workers.values())


def _for_rank(supervise: Supervise, rank: int) -> Callable[[int, Path, int], Supervisor]:
    return lambda listener, _, pid: supervise(rank, listener, pid)


def places(
    server: Server, shape: Shape, timeout_s: float = LONG_S, is_alone: bool = False
) -> Callable[[int], dict[str, Any]]:
    """What each rank of a run is told about its place; they find each other through a file of their own."""
    rendezvous = str(server.new_file("rendezvous"))
    return lambda rank: {
        "rank": rank,
        "size": shape.ranks,
        "kind": shape.kind,
        "stages": shape.stages,
        "rendezvous": rendezvous,
        "timeout_s": timeout_s,
        "is_alone": is_alone,
        "has_own": shape.has_own,
    }
