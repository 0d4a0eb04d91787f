"""The processes of one run, one or several ranks, spoken to as one.

What goes wrong on any rank is raised once: a `ManagerFault` of the only rank,
or `OnRank`, which says where.  Fingerprints of several ranks are one, with the
rank in each name.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from forge_conformance.harness.gate import Gate
from forge_conformance.harness.ranks import OnRank, Outcome, Ranks, RanksTimeline, Shape, by_rank, places
from forge_conformance.harness.scenario import Timeline
from forge_conformance.harness.server import Server
from forge_conformance.harness.worker import ALL_PARTS, Loaded, ManagerFault, Raised, Supervisor, Worker, loaded_from

Digest = dict[str, str]
ALONE = Shape(1)
"""One process, which knows of no others."""
Supervise = Callable[[int, int, int], Supervisor]
"""From a rank, a listener and a process to who answers for it."""


class Undisturbed:
    """The run that nothing happens to, by one or several ranks."""

    def __init__(self, server: Server, seed: int, shape: Shape = ALONE) -> None:
        self._alone = Timeline(server, seed) if shape == ALONE else None
        self._ranks = None if shape == ALONE else RanksTimeline(server, seed, shape)

    def digest(self, step: int) -> Digest:
        """The state after this many steps."""
        if self._alone is not None:
            return self._alone.digest(step)
        assert self._ranks is not None, "there is one rank, or there are several"
        return by_rank(self._ranks.digest(step))

    def told(self, trained: int, step: int) -> Digest:
        """The same, with the counter of another step: what a save has that is told one."""
        counters = {name: value for name, value in self.digest(step).items() if name.startswith("counter/")}
        return {**self.digest(trained), **{name: at for name, at in counters.items() if name.endswith("step")}}


class Processes:
    """Killed together, at the latest when the server ends."""

    def __init__(
        self,
        server: Server,
        shape: Shape,
        watched: Path | None = None,
        watch: str = "writes",
        supervise: Supervise | None = None,
    ) -> None:
        """With a folder that is `watched`, `supervise` says who answers for each rank's calls on it."""
        self._shape = shape
        self._server = server
        self.workers: list[Worker] = []
        for rank in range(shape.ranks):
            answers = _for_rank(supervise, rank) if supervise else Gate
            self.workers.append(server.spawn(watched, watch=watch, supervise=answers))
        self.ranks = Ranks(self.workers, shape)
        self.warnings: list[str] = []
        """Everything that was warned of so far."""

    def open(self, settings: Mapping[str, Any], seed: int, timeout_s: float | None = None) -> None:
        """Make the training run and its manager; ranks wait for each other as long, or as a command may take."""
        if self._shape == ALONE:
            self._all("open", settings=dict(settings), seed=seed, place=None)
        else:
            timeout_s = timeout_s or self.workers[0].patience_s
            place = places(self._server, self._shape, timeout_s)
            self._all("open", settings={"timeout_s": timeout_s, **settings}, seed=seed, place=place)

    def train(self, steps: int) -> None:
        """Go on."""
        self._all("train", steps=steps)

    def outcomes(self, do: str, **arguments: Any) -> list[Outcome]:
        """What a command comes to on each rank."""
        found = self.ranks.outcomes(do, **arguments)
        self.warnings += [text for worker in self.workers for text in worker.warnings]
        return found

    def save(self) -> None:
        """Save at the run's step."""
        self._all("save", step=None, extra=None, parts=list(ALL_PARTS))

    def wait(self) -> None:
        """Wait until all that was saved is committed."""
        self._all("wait")

    def load(self, path: str | None = None) -> list[Loaded]:
        """Where each rank came back."""
        values = self._all("load", path=path, exclude=[], freeze_expected=None, parts=list(ALL_PARTS))
        return [loaded_from(value) for value in values]

    def digest(self) -> Digest:
        """Fingerprints of the state of all ranks."""
        values: list[Digest] = self._all("digest")
        return values[0] if self._shape == ALONE else by_rank(values)

    def strike(self) -> None:
        """SIGKILL to all, without waiting for what comes of it."""
        for worker in self.workers:
            worker.strike()

    def kill(self) -> None:
        """SIGKILL to all, and see them gone."""
        self.ranks.kill()

    def _all(self, do: str, **arguments: Any) -> list[Any]:
        return raised_once(self.outcomes(do, **arguments))


def of_kinds(digest: Digest, kinds: Sequence[str]) -> Digest:
    """What of a fingerprint the manager claims to bring back."""
    return {name: value for name, value in digest.items() if name.partition("/")[0] in kinds}


def raised_once(outcomes: Sequence[Outcome]) -> list[Any]:
    """The values on all ranks, or what went wrong."""
    faults = [outcome.fault for outcome in outcomes if outcome.fault is not None]
    if faults and len(outcomes) == 1:
        raise faults[0]
    if faults:
        raise OnRank(outcomes)
    return [outcome.value for outcome in outcomes]


def is_refusal(fault: ManagerFault) -> bool:
    """Whether a manager said itself that something went wrong."""
    return isinstance(fault, Raised) or (isinstance(fault, OnRank) and fault.is_refusal)


def _for_rank(supervise: Supervise, rank: int) -> Callable[[int, Path, int], Supervisor]:
    return lambda listener, _, pid: supervise(rank, listener, pid)
