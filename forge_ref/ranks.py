"""The processes that checkpoint together, and how they come to one outcome.

Invariants: whatever one rank raises is raised by all of them, with the same
type and words; and no two threads, neither ours nor those that train, ever
share a process group.  Every collective of the package is issued here, but
for those that DCP issues on the group that it is given for its writing.

One rank speaks for all when something failed: the lowest that did.  So a
failure costs a broadcast and not a collection, whatever the number of ranks.
A rank that does not answer is another matter: there is nothing to be agreed
on with it, so whoever notices raises at once, and the rest at the timeout.
"""

import operator
import pickle
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist

from forge_ref import layout
from forge_ref.errors import RanksLostError

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for another: longer than any skew between ranks, the slowest disk of a save included."""

_ABSTAIN = torch.iinfo(torch.int64).max
_NONE = -1
_PACKET = 1 << 18  # bytes that always travel: nearly every message fits, and then one broadcast is enough
_LENGTH = 8
T = TypeVar("T")


class OnRankError(Exception):
    """An error and the rank it happened on; for passing on between ranks, it never leaves the package."""

    def __init__(self, rank: int, error: BaseException) -> None:
        super().__init__(rank, error)
        self.rank = rank
        self.error = error

    def told(self) -> Exception:
        """The error as every rank raises it: of the same type where that can be made from words alone."""
        words = f"rank {self.rank}: {self.error}"
        try:
            told = type(self.error)(words)
        except Exception:
            told = None
        if isinstance(told, Exception):
            return told
        return RuntimeError(f"rank {self.rank}: {type(self.error).__name__}: {self.error}")


def portable(error: Exception) -> Exception:
    """The error itself if it can travel between ranks, else one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def of_writing(failures: Mapping[int, tuple[BaseException, Any]], group: dist.ProcessGroup | None) -> BaseException:
    """The error of the first rank that DCP names in its collection of failures."""
    first = min(failures)
    error, _ = failures[first]
    return error if group is None else OnRankError(dist.get_global_rank(group, first), error)


@dataclass(frozen=True)
class Channel:
    """What all ranks say to one another from one thread; every rank has to make the same calls in the same order.

    Alone, without a group, a rank just does what it is asked to.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    issued: Counter[str] = field(default_factory=Counter)
    """How many collectives and messages there were, by name."""

    def together(self, job: Callable[[], T], step_of: Callable[[T], int] | None = None) -> T:
        """What `job` returns here; what it raises on any rank is raised on all of them.

        `step_of` takes the step from the outcome: `ValueError` on every rank
        if it is not the same on all of them (commit.same-step).
        """
        if self.group is None:
            return job()
        try:
            outcome = job()
        except RanksLostError:
            raise  # there is no asking those who do not answer
        except Exception as error:
            self._agree(error, None)
            raise AssertionError("ranks agreed on success where one failed") from error
        self._agree(None, None if step_of is None else step_of(outcome))
        return outcome

    def from_first(self, job: Callable[[], T]) -> T:
        """What `job` returns or raises on rank 0, on all of them: its value is plain data, and the rest do not run it.

        Nobody's own view of the folder matters then (resume.agreement).
        """
        if self.group is None:
            return job()
        said = b""
        if self.rank == 0:
            try:
                said = pickle.dumps((job(), None))
            except Exception as error:
                said = pickle.dumps((None, _on(0, error)))
        value, problem = pickle.loads(self._broadcast(said, source=0))
        if problem is not None:
            raise problem.told()
        return value  # type: ignore[no-any-return]

    def report(self, number: int, members: Sequence[int]) -> list[int]:
        """The numbers of these ranks, in their order, as rank 0 hears them; the others hear nothing."""
        heard = {self.rank: torch.tensor([number])}
        if self.rank == 0:
            for member in members:
                if member != 0:
                    heard[member] = torch.empty(1, dtype=torch.int64)
                    self._issue(dist.recv, heard[member], src=member)
            return [int(heard[member].item()) for member in members]
        if self.rank in members:
            self._issue(dist.send, heard[self.rank], dst=0)
        return []

    def gather(self, row: Sequence[int]) -> list[list[int]]:
        """The rows of all ranks, on all of them."""
        if self.group is None:
            return [list(row)]
        rows = [torch.empty(len(row), dtype=torch.int64) for _ in range(self.size)]
        self._issue(dist.all_gather, rows, torch.tensor(row))
        return [found.tolist() for found in rows]

    def _agree(self, problem: Exception | None, step: int | None) -> None:
        """One minimum over all ranks tells who failed first; over steps and their negatives, whether they differ."""
        lowest = _ABSTAIN if step is None else min(step, _ABSTAIN - 1)
        highest = _ABSTAIN if step is None else -lowest
        votes = torch.tensor([self.size if problem is None else self.rank, lowest, highest])
        self._issue(dist.all_reduce, votes, op=dist.ReduceOp.MIN)
        failed, lowest, highest = votes.tolist()
        if failed < self.size:
            self._raise_of(failed, problem)
        if lowest != _ABSTAIN and lowest != -highest:
            raise ValueError(
                f"ranks save different steps at once, from {lowest} to {-highest}, rank {self.rank} step {step}; "
                "nothing was saved"
            )

    def _raise_of(self, failed: int, problem: Exception | None) -> NoReturn:
        mine = b"" if problem is None else pickle.dumps(_on(self.rank, problem))
        said = pickle.loads(self._broadcast(mine if failed == self.rank else b"", source=failed))
        raise said.told() from problem

    def _broadcast(self, content: bytes, source: int) -> bytes:
        """The content of `source` on every rank."""
        framed = len(content).to_bytes(_LENGTH, "little") + content
        packet = self._pass_on(framed[:_PACKET], _PACKET, source)
        length = int.from_bytes(packet[:_LENGTH], "little")
        rest = max(0, _LENGTH + length - _PACKET)
        if rest:
            packet += self._pass_on(framed[_PACKET:], rest, source)
        return packet[_LENGTH : _LENGTH + length]

    def _pass_on(self, content: bytes, length: int, source: int) -> bytes:
        packet = torch.zeros(length, dtype=torch.uint8)
        if self.rank == source:
            packet[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        self._issue(dist.broadcast, packet, src=source)
        return bytes(packet.numpy().tobytes())

    def _issue(self, collective: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        self.issued[collective.__name__] += 1
        try:
            collective(*arguments, group=self.group, **named)
        except Exception as error:
            lost = RanksLostError(f"rank {self.rank} lost contact to the other {self.size - 1}: {error}")
            raise lost from error


def _on(rank: int, error: Exception) -> OnRankError:
    return error if isinstance(error, OnRankError) else OnRankError(rank, portable(error))


@dataclass(frozen=True)
class Ranks:
    """Who takes part in a manager's checkpoints, and which part this process has in it."""

    rank: int = 0
    size: int = 1
    stage: int | None = None
    """The pipeline stage of this process; None where there is no pipeline."""
    stages: tuple[tuple[int, ...], ...] = ((0,),)
    """The ranks that write each directory of shards together; one entry without a pipeline."""
    calls: Channel = field(default_factory=Channel)
    """For the thread that calls the manager."""
    flushes: Channel = field(default_factory=Channel)
    """For the thread that flushes."""
    writers: dist.ProcessGroup | None = None
    """For DCP, while it writes: the ranks of this process's stage."""

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that makes, renames and deletes directories."""
        return self.rank == 0

    @property
    def are_many(self) -> bool:
        """Whether there is anybody to come to an outcome with."""
        return self.size > 1

    @property
    def peers(self) -> tuple[int, ...]:
        """The ranks that write a directory of shards with this one."""
        return self.stages[self.stage or 0]

    @property
    def place(self) -> int:
        """This process's place among its peers; it keeps its own streams and loader under this number."""
        return self.peers.index(self.rank)

    @property
    def stage_names(self) -> list[str]:
        """The directories that the stages have in a checkpoint; none without a pipeline."""
        return [] if self.stage is None else [layout.stage_name(stage) for stage in range(len(self.stages))]

    def directory(self, checkpoint: Path) -> Path:
        """Where this process's shards are in a checkpoint."""
        return checkpoint if self.stage is None else checkpoint / layout.stage_name(self.stage)

    def report(self, number: int) -> list[int]:
        """Tell rank 0, for this process's stage, when its part of a flush is over; rank 0 hears one from each stage.

        One message from the first rank of each further stage, not a collective.
        """
        return self.flushes.report(number, [members[0] for members in self.stages])


def join(process_group: dist.ProcessGroup | None, pp_rank: int | None, timeout: timedelta = TIMEOUT) -> Ranks:
    """Make the groups of a new manager; every rank of the job has to come here.

    `ValueError` on every rank if the process groups given to them, which may
    be None for all ranks, do not divide the ranks into stages 0, 1, 2 and so on.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        stages = _stages([_row(0, 1, process_group, pp_rank)])
        return Ranks(stage=pp_rank, stages=stages)
    rank, size = dist.get_rank(), dist.get_world_size()
    calls = Channel(rank, size, _group(None, timeout, "calls"))
    stages = _stages(calls.gather(_row(rank, size, process_group, pp_rank)))
    flushes = Channel(rank, size, _group(None, timeout, "flushes"))
    writers = [_group(members, timeout, f"stage {stage}") for stage, members in enumerate(stages)]
    return Ranks(rank, size, pp_rank, stages, calls, flushes, writers[pp_rank or 0])


def _group(members: Iterable[int] | None, timeout: timedelta, what: str) -> dist.ProcessGroup:
    """Gloo, whatever training uses: it needs no GPU, and its collectives end with an error at the timeout."""
    ranks = None if members is None else list(members)
    group: dist.ProcessGroup = dist.new_group(ranks, timeout=timeout, backend="gloo", group_desc=f"forge_ref {what}")
    return group


def _row(rank: int, size: int, process_group: dist.ProcessGroup | None, pp_rank: int | None) -> list[int]:
    """What the ranks compare: stage, then first rank, size and checksum of the process group; no size if it is no use.

    Not one word of it may be raised here: the others wait for this rank's row.
    """
    try:
        members = list(range(size)) if process_group is None else sorted(dist.get_process_group_ranks(process_group))
        stage = _NONE if pp_rank is None else operator.index(pp_rank)
    except Exception:
        members, stage = [], _NONE
    if rank not in members:
        members = []
    return [stage, members[0] if members else _NONE, len(members), zlib.crc32(repr(members).encode())]


def _stages(rows: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for rank, row in enumerate(rows):
        groups.setdefault(tuple(row), []).append(rank)
    for (stage, _first, size, _checksum), members in groups.items():
        if size != len(members):
            shown = "None" if stage == _NONE else stage
            raise ValueError(
                f"ranks {members} of {len(rows)} have pp_rank {shown} and a process_group of {size} ranks, which does "
                "not fit: each rank has to be in the process_group it is given, and all ranks of that in the same stage"
            )
    numbers = sorted(stage for stage, *_ in groups)
    if numbers not in ([_NONE], list(range(len(groups)))):
        raise ValueError(
            f"the ranks' process groups have the pp_rank {numbers}; give each its own, from 0 to {len(groups) - 1}"
        )
    return tuple(tuple(members) for _, members in sorted(groups.items()))
