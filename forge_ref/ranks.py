"""The processes that checkpoint together: the part of each, and their process groups.

Invariant: no two threads, neither ours nor those that train, ever share a
process group.  There is one for the thread that calls the manager and one for
the thread that flushes; pipeline stages, who write their shards on their own,
have one each for that.
"""

import importlib.util
import operator
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from forge_ref import layout
from forge_ref.arguments import check_integer
from forge_ref.channel import Channel

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for another: longer than any skew between ranks, the slowest disk of a save included."""

_NONE = -1
_SHOWN = 8  # ranks that an error lists


@dataclass(frozen=True)
class Ranks:
    """The ranks that take part in a manager's checkpoints, and the part of this one."""

    rank: int = 0
    size: int = 1
    stage: int | None = None
    """The pipeline stage of this process; None where there is no pipeline."""
    stages: int = 0
    """How many pipeline stages there are."""
    peers: Sequence[int] = (0,)
    """The ranks that write a directory of shards with this one, in order."""
    token: str = field(default_factory=layout.new_token)
    """What sets the names of this manager's saves apart; rank 0's, on every rank."""
    calls: Channel = field(default_factory=Channel)
    """For the thread that calls the manager."""
    flushes: Channel = field(default_factory=Channel)
    """For the thread that flushes."""
    writers: Channel = field(default_factory=Channel)
    """For the peers, while they write their shards, in that thread too."""

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that makes, renames and deletes directories."""
        return self.rank == 0

    @property
    def are_many(self) -> bool:
        """Whether there are other ranks."""
        return self.size > 1

    @property
    def place(self) -> int:
        """This process's place among its peers; it keeps its own streams and loader under this number."""
        return self.peers.index(self.rank)

    @property
    def stage_names(self) -> list[str]:
        """The directories that the stages have in a checkpoint; none without a pipeline."""
        return [layout.stage_name(stage) for stage in range(self.stages)]

    def directory(self, checkpoint: Path) -> Path:
        """Return where this process's shards are in a checkpoint."""
        return checkpoint if self.stage is None else checkpoint / layout.stage_name(self.stage)


def join(process_group: dist.ProcessGroup | None, pp_rank: int | None, timeout: timedelta = TIMEOUT) -> Ranks:
    """Make the groups of a new manager, and return its ranks; every rank of the job has to call this.

    `ValueError` on every rank if the process groups given to them, which may
    be None for all ranks, do not divide the ranks into stages 0, 1, 2 and so on,
    and for a negative `pp_rank` on any of them; `TypeError` for one that is not an integer.
    """
    is_alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
    if not is_alone and importlib.util.find_spec("numpy") is None:
        raise ModuleNotFoundError("several ranks need numpy, through which torch.distributed sends objects; install it")
    rank, size = (0, 1) if is_alone else (dist.get_rank(), dist.get_world_size())
    calls = Channel() if is_alone else Channel(rank, size, _group(None, timeout, "calls"))
    peers, row = _place(rank, size, process_group, pp_rank)

    def own() -> tuple[_Rows, str]:
        if pp_rank is not None:
            check_integer(pp_rank, "pp_rank", at_least=0)  # below 0 is the row's mark for None
        return {row: (1, (rank,))}, layout.new_token()

    rows, token = calls.merged(own, _both_with_first_token)
    first_ranks = _first_ranks(rows, size)
    stage, stages = (None, 0) if pp_rank is None else (operator.index(pp_rank), len(first_ranks))
    if is_alone:
        return Ranks(stage=stage, stages=stages, token=token)
    flushes = Channel(rank, size, _group(None, timeout, "flushes"))
    writers = flushes
    if stages > 1:
        # Every rank has to make each group; of a group that it is not in, it need not know all ranks.
        each = [peers if number == stage else [first] for number, first in enumerate(first_ranks)]
        groups = [_group(ranks, timeout, f"stage {number}") for number, ranks in enumerate(each)]
        writers = Channel(peers.index(rank), len(peers), groups[stage or 0], peers)
    return Ranks(rank, size, stage, stages, peers, token, calls, flushes, writers)


def _group(members: Iterable[int] | None, timeout: timedelta, what: str) -> dist.ProcessGroup:
    """Return a new gloo group: it needs no GPU, and its waits fail at the timeout."""
    ranks = None if members is None else list(members)
    group: dist.ProcessGroup = dist.new_group(ranks, timeout=timeout, backend="gloo", group_desc=f"forge_ref {what}")
    return group


_Row = tuple[int, int, int, int]
_Rows = Mapping[_Row, tuple[int, tuple[int, ...]]]
"""For each row how many ranks have it, and the first few of them: as many rows as stages, however many the ranks."""


def _place(
    rank: int, size: int, process_group: dist.ProcessGroup | None, pp_rank: int | None
) -> tuple[Sequence[int], _Row]:
    """Return the peers, and a row to compare: stage, first rank, size and checksum of the peers; size 0 is refused.

    Nothing is raised here, since the other ranks wait for this rank's row.
    """
    members: Sequence[int] = range(size)
    try:
        stage = _NONE if pp_rank is None else operator.index(pp_rank)
        if process_group is None and stage != _NONE and size > 1:
            members = []  # a stage among several ranks is known by its group alone
        elif process_group is not None:
            members = sorted(dist.get_process_group_ranks(process_group))
    except Exception:
        members, stage = [], _NONE
    if rank not in members:
        members = []
    first = members[0] if members else _NONE
    return members, (stage, first, len(members), zlib.crc32(repr(list(members)).encode()))


def _both(rows: _Rows, others: _Rows) -> _Rows:
    both = dict(rows)
    for row, (count, ranks) in others.items():
        counted, shown = both.get(row, (0, ()))
        both[row] = counted + count, (shown + ranks)[:_SHOWN]
    return both


def _both_with_first_token(one: tuple[_Rows, str], other: tuple[_Rows, str]) -> tuple[_Rows, str]:
    return _both(one[0], other[0]), one[1]


def _first_ranks(rows: _Rows, size: int) -> list[int]:
    """Return the first rank of each stage, in the order of the stages."""
    for (stage, _first, members, _checksum), (count, ranks) in rows.items():
        if members != count:
            shown = ", ".join(map(str, ranks)) + (", ..." if count > len(ranks) else "")
            raise ValueError(
                f"ranks [{shown}] of {size} have pp_rank {None if stage == _NONE else stage} and "
                f"{f'a process_group of {members} ranks' if members else 'no process_group with them in it'}, which "
                "does not fit: give each rank the process_group of all ranks of its stage, itself included"
            )
    numbers = sorted(stage for stage, *_ in rows)
    if numbers not in ([_NONE], list(range(len(rows)))):
        raise ValueError(
            f"the ranks' process groups have the pp_rank {[None if n == _NONE else n for n in numbers]}; "
            f"give each its own, from 0 to {len(rows) - 1}"
        )
    return [ranks[0] for _, (_, ranks) in sorted(rows.items())]
