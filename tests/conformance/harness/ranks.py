"""Several ranks of one run, as one life: what is told to it is told to all, and each has an outcome.

The watchdog: whatever one rank does while others are missing, a command comes
to an end.  When some have not replied in time, every rank that is left is
asked for its stacks, all of them are killed, and the failure shows who stood
where.  So a hang is a verdict, never a suite that hangs.
"""

import select
import textwrap
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGKILL
from typing import TYPE_CHECKING, Any

from .gate import Gate
from .judge import Unreached
from .worker import ALL_PARTS, Died, Hung, Loaded, ManagerFault, Raised, Unsupported, Worker, loaded_from, settle

if TYPE_CHECKING:
    from .scenario import Scenario
    from .server import Server


@dataclass(frozen=True)
class Shape:
    """How many ranks there are, and how they divide the work."""

    ranks: int
    kind: str = "sharded"
    """`sharded`, `replicated` or `tensor`; see the worker's `ranks`."""
    stages: int = 0
    """Pipeline stages; 0 means that there is no pipeline."""

    def __str__(self) -> str:
        among = f", {self.stages} stages of {self.ranks // self.stages}" if self.stages else ""
        return f"{self.ranks} {'rank' if self.ranks == 1 else 'ranks'}, {self.kind}{among}"

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

    Told is the rank that ended by itself, if one did: what the others raised then is how they heard of it.
    """

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        faulty = [outcome for outcome in outcomes if outcome.fault is not None]
        first = min(faulty, key=lambda outcome: not isinstance(outcome.fault, Died))
        others = [other for other in faulty if other is not first]
        too = "".join(f"\n-- and {textwrap.shorten(str(other), 300)}" for other in others)
        super().__init__(f"On rank {first.rank} of {len(outcomes)}: {first.fault}{too}")
        self.traceback = first.fault.traceback if isinstance(first.fault, Raised) else ""
        self.is_refusal = all(isinstance(outcome.fault, Raised) for outcome in faulty)
        """Whether the manager said so itself, wherever something went wrong."""


class Ranks:
    """The worker processes of one run, driven side by side."""

    def __init__(self, workers: Sequence[Worker], shape: Shape) -> None:
        self.workers = list(workers)
        self.shape = shape

    @property
    def living(self) -> list[int]:
        """Ranks that were neither killed nor seen to end."""
        return [rank for rank, worker in enumerate(self.workers) if worker.is_alive]

    def begin(self, do: str, on: Collection[int] | None = None, **arguments: Any) -> None:
        """Start a command on all living ranks, or on some, and wait for none; callable arguments are asked per rank."""
        for rank in self.living if on is None else on:
            own = {key: value(rank) if callable(value) else value for key, value in arguments.items()}
            self.workers[rank].tell(do, **own)

    def ends(self) -> list[Outcome]:
        """What the running commands come to, by rank; `Hung` with every rank's stacks if one comes to nothing."""
        running = {rank: worker for rank in self.living if (worker := self.workers[rank]).pending is not None}
        found: dict[int, Outcome] = {}
        deadline = time.monotonic() + max((worker.patience_s for worker in running.values()), default=0)
        while len(found) < len(running):
            waiting = {rank: worker for rank, worker in running.items() if rank not in found}
            ready = [rank for rank, worker in waiting.items() if worker.has_word()]
            if not ready and time.monotonic() > deadline:
                raise self._hang(waiting, found)
            if not ready:
                descriptors = [fd for worker in waiting.values() for fd in worker.descriptors()]
                select.select(descriptors, [], [], max(0.0, deadline - time.monotonic()))
            found |= {rank: _outcome(rank, running[rank]) for rank in ready}
        return [found[rank] for rank in sorted(found)]

    def outcomes(self, do: str, on: Collection[int] | None = None, **arguments: Any) -> list[Outcome]:
        """Start a command and see what it comes to, by rank."""
        self.begin(do, on, **arguments)
        return self.ends()

    def together(self, do: str, **arguments: Any) -> list[Any]:
        """The values of a command that goes well on every rank; `OnRank` if it does not."""
        return values(self.outcomes(do, **arguments))

    def settled(self) -> list[int]:
        """The ranks whose command has come to an end when nothing moves any more in the others."""
        running = [rank for rank in self.living if self.workers[rank].pending is not None]
        done = settle([self.workers[rank] for rank in running])
        return [rank for rank in running if self.workers[rank] in done]

    def replied(self, timeout_s: float) -> bool:
        """Whether the running command comes to an end on every rank within this time."""
        deadline = time.monotonic() + timeout_s
        while waiting := [worker for worker in self.workers if worker.pending is not None and not worker.has_word()]:
            left_s = deadline - time.monotonic()
            if left_s < 0:
                return False
            select.select([fd for worker in waiting for fd in worker.descriptors()], [], [], left_s)
        return True

    def kill(self, ranks: Collection[int] | None = None) -> None:
        """SIGKILL to all of these at once, or to every rank."""
        struck = self.living if ranks is None else list(ranks)
        for rank in struck:
            self.workers[rank].strike()
        for rank in struck:
            self.workers[rank].kill()

    def strike(self, rank: int, number: int) -> None:
        """Send a signal to one rank."""
        self.workers[rank].strike(number)

    def _hang(self, waiting: Mapping[int, Worker], found: Mapping[int, Outcome]) -> Hung:
        doing = next(worker.pending or "a command" for worker in waiting.values())
        patience_s = max(worker.patience_s for worker in waiting.values())
        told = [f"-- {outcome}" for _, outcome in sorted(found.items())]
        told += [f"-- rank {rank} does not reply; its threads are at:\n{w.stacks()}" for rank, w in waiting.items()]
        silent = [rank for rank in range(self.shape.ranks) if rank not in waiting and rank not in found]
        told += [f"-- rank {', '.join(map(str, silent))} had ended before"] if silent else []
        self.kill()
        who = f"{doing} on rank {', '.join(map(str, waiting))} of {self.shape.ranks}"
        return Hung(who, patience_s, "\n".join(told))


def _outcome(rank: int, worker: Worker) -> Outcome:
    try:
        return Outcome(rank, worker.reply())
    except (ManagerFault, Unsupported) as fault:
        return Outcome(rank, fault=fault)


def values(outcomes: Sequence[Outcome]) -> list[Any]:
    """What every rank returned; `OnRank` if one did not."""
    if any(outcome.fault is not None for outcome in outcomes):
        raise OnRank(outcomes)
    return [outcome.value for outcome in outcomes]


class RanksTimeline:
    """Losses and fingerprints of an uninterrupted run of several ranks, by step and rank."""

    def __init__(self, server: "Server", seed: int, shape: Shape) -> None:
        self._ranks = Ranks([server.spawn() for _ in range(shape.ranks)], shape)
        self._ranks.together("prepare", seed=seed, place=places(server, shape))
        self._digests: list[list[dict[str, str]]] = [self._ranks.together("digest")]
        self._losses: list[list[str]] = [[""] * shape.ranks]

    def _extend(self, step: int) -> None:
        while len(self._digests) <= step:
            self._losses.append([loss for (loss,) in self._ranks.together("train", steps=1)])
            self._digests.append(self._ranks.together("digest"))

    def digest(self, step: int) -> list[dict[str, str]]:
        """The state of each rank after this many steps."""
        self._extend(step)
        return self._digests[step]

    def losses(self, after: int, until: int) -> list[list[str]]:
        """Of each rank, the losses of the steps after `after`, up to and including `until`."""
        self._extend(until)
        return [list(of_rank) for of_rank in zip(*self._losses[after + 1 : until + 1], strict=True)]


def places(
    server: "Server", shape: Shape, timeout_s: float = 60, is_alone: bool = False
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
    }


class World:
    """A life of several ranks, with a memory that becomes the story; see `Life` for the calls that both have.

    A call that goes wrong on any rank raises `OnRank`; `outcomes` tells of each.
    """

    def __init__(self, scenario: "Scenario", ranks: Ranks, name: str, settings: dict[str, Any], seed: int) -> None:
        self.scenario = scenario
        self.ranks = ranks
        self.shape = ranks.shape
        self.name = name
        self.settings = settings
        self.seed = seed
        self.step = 0

    def __enter__(self) -> "World":
        return self

    def __exit__(self, *_: object) -> None:
        self.ranks.kill()

    def tell(self, sentence: str) -> None:
        """Add to the story."""
        self.scenario.judge.tell(f"{self.name} {sentence}")

    def gate_of(self, rank: int) -> Gate:
        """Picks and observes the file operations of one rank."""
        gate = self.ranks.workers[rank].gate
        assert gate is not None, "world(gated=True) asks for gates"
        return gate

    def open_gates(self) -> None:
        """Let everything go on every rank."""
        self.tell("is no longer held")
        for worker in self.ranks.workers:
            if worker.is_alive and worker.gate is not None:
                worker.gate.open()

    def wait_held(self, ranks: Iterable[int], timeout_s: float) -> list[int]:
        """Those of these ranks that are held at an operation, once one of them is; none if none was within the time."""
        gates = {rank: self.gate_of(rank) for rank in ranks}
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for gate in gates.values():
                if gate.wait_held(0.02):
                    return [rank for rank, gate in gates.items() if gate.held()]
        return []

    @property
    def warnings(self) -> str:
        """Everything that any rank warned of during the last command."""
        return "\n".join(text for worker in self.ranks.workers for text in worker.warnings)

    def open(self, seed: int, timeout_s: float, is_alone: bool = False) -> list[Outcome]:
        """Make the training run and its manager on every rank, as a script does at its start."""
        settings = {"folder": str(self.scenario.folder.path), "timeout_s": timeout_s, **self.settings}
        place = places(self.scenario.server, self.shape, timeout_s, is_alone)
        return self.ranks.outcomes("open", settings=settings, seed=seed, place=place)

    def train_to(self, step: int) -> list[list[str]]:
        """Train until the run is at `step`; the losses of each rank."""
        if step == self.step:
            return [[] for _ in range(self.shape.ranks)]
        self.tell(f"trains from step {self.step} to {step}")
        losses = self.ranks.together("train", steps=step - self.step)
        self.step = step
        return losses

    def begin_save(
        self, step: int | Callable[[int], int] | None = None, on: Collection[int] | None = None, extra: Any = None
    ) -> None:
        """Start a save on all ranks or on some; `self.ranks.ends()` sees what it comes to."""
        where = "" if on is None else f" on rank {', '.join(map(str, on))}"
        what = f"step {self.step if step is None else step}" if not callable(step) else "a different step on each rank"
        with_extra = "" if extra is None else f" with extra {extra!r}"
        self.tell(f"saves {what}{with_extra}{where}")
        self.ranks.begin("save", on, step=step, extra=None if extra is None else repr(extra), parts=list(ALL_PARTS))

    def save(self, extra: Any = None) -> None:
        """Save at the run's step."""
        self.begin_save(extra=extra)
        values(self.ranks.ends())

    def wait(self) -> None:
        """Wait until all that was saved is committed."""
        self.tell("waits for its saves")
        self.ranks.together("wait")

    def commit(self, extra: Any = None) -> None:
        """Save and wait; a step that is not complete then makes the clause about just that fall."""
        self.save(extra)
        self.wait()
        folder = self.scenario.folder
        clause = "commit.sync" if self.settings["mode"] == "sync" else "commit.no-later-than"
        if self.step not in folder.complete():
            self.scenario.judge.fall(
                clause, expected=f"step {self.step} complete when save and wait have returned", seen=str(folder)
            )

    def commit_at(self, *steps: int) -> None:
        """Train to each of these steps and `commit` there."""
        for step in steps:
            self.train_to(step)
            self.commit()

    def saved_or_raised(self, step: int | Callable[[int], int] | None = None) -> list[list[str]]:
        """Of each rank, what a save and the wait after it raised; nothing where both went well."""
        raised: list[list[str]] = [[] for _ in range(self.shape.ranks)]
        self.begin_save(step)
        found = self.ranks.ends()
        self.tell("waits for its saves")
        for outcome in (*found, *self.ranks.outcomes("wait")):
            if outcome.fault is not None:
                raised[outcome.rank].append(str(outcome.fault))
                self.scenario.judge.tell(f"rank {outcome.rank}: {str(outcome.fault)[:160]}")
        return raised

    def begin_load(
        self,
        path: Path | str | None = None,
        parts: Sequence[str] = ALL_PARTS,
        freeze_expected: Callable[[int], Any] | None = None,
    ) -> None:
        """Start a resume on all ranks, each with the freeze list that is expected there."""
        self.tell("resumes" if path is None else f"loads {path}")
        named = None if path is None else str(path)
        self.ranks.begin("load", path=named, exclude=[], freeze_expected=freeze_expected, parts=list(parts))

    def load_outcomes(
        self,
        path: Path | str | None = None,
        parts: Sequence[str] = ALL_PARTS,
        freeze_expected: Callable[[int], Any] | None = None,
    ) -> list[Outcome]:
        """Resume; what it came to on each rank, `Loaded` or a fault.  The run is then at the lowest step landed on."""
        self.begin_load(path, parts, freeze_expected)
        found = [
            replace(outcome, value=None if outcome.fault else loaded_from(outcome.value))
            for outcome in self.ranks.ends()
        ]
        landed = {outcome.value.step for outcome in found if outcome.fault is None}
        self.step = min(landed, default=self.step)
        self.tell("; ".join(_landing(outcome) for outcome in found))
        return found

    def load(self, path: Path | str | None = None) -> list[Loaded]:
        """Resume; where each rank came back."""
        landed: list[Loaded] = values(self.load_outcomes(path))
        return landed

    def digest(self) -> dict[str, str]:
        """Fingerprints of the live state of all ranks."""
        return by_rank(self.ranks.together("digest"))

    def whole(self) -> list[dict[str, str]]:
        """Of each rank, fingerprints of the full values, however they are sharded."""
        whole: list[dict[str, str]] = self.ranks.together("whole")
        return whole

    def kill(self, *ranks: int) -> None:
        """SIGKILL to these ranks, or to all of them at once."""
        self.tell(f"is killed on rank {', '.join(map(str, ranks))}" if ranks else "is killed on all ranks")
        self.ranks.kill(ranks or None)
        self.scenario.judge.tell(f"the folder holds: {self.scenario.folder}")

    def strike(self, rank: int, number: int) -> None:
        """Send a signal other than SIGKILL to one rank."""
        assert number != SIGKILL, "kill() buries what it kills"
        self.ranks.strike(rank, number)


def _landing(outcome: Outcome) -> str:
    if outcome.fault is not None:
        return f"rank {outcome.rank}: {str(outcome.fault)[:160]}"
    loaded = outcome.value
    return f"rank {outcome.rank} " + ("comes back fresh" if loaded.is_fresh else f"comes back at step {loaded.step}")


def by_rank(digests: Sequence[dict[str, str]]) -> dict[str, str]:
    """Fingerprints of several ranks in one, the rank in each name behind its kind."""
    return {
        f"{kind}/rank {rank} {rest}": value
        for rank, digest in enumerate(digests)
        for name, value in digest.items()
        for kind, _, rest in [name.partition("/")]
    }
