"""How ranks come to one outcome: votes climb a tree, and the verdict comes down it.

Invariant: whatever one rank raises is raised by all of them, with the same
type and words; of several failures the lowest rank's.

Each rank merges the votes from below into its own, so none, rank 0 included,
exchanges more than about log2 of their number of messages.  The library's own
reduction goes round a ring of all ranks instead, and leaves those who are not
next to a dead one waiting until the timeout.  Here a rank that loses contact
says so to those it can reach and then closes all its connections.  By that
those hear of it who wait for it elsewhere, be it in DCP's collectives, and do
the same; only a rank that stands still is waited for until the timeout.
"""

import itertools
import operator
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial, reduce
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from forge_ref.errors import RanksLostError

_PACKET = 512  # bytes that always travel: nearly every vote and verdict fits, and then one message is enough
_LENGTH = 8
_UNUSED_TAG = 1
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


def leave(group: dist.ProcessGroup | None) -> None:
    """Close this rank's connections in a group: whoever waits for it there hears so at once, whatever it waits with.

    Gloo has no call for it, but does it when the time of a receive is up.
    """
    if group is None:
        return
    with suppress(RuntimeError):
        nothing = dist.irecv(torch.empty(1), group=group, tag=_UNUSED_TAG)
        nothing.wait(timedelta(milliseconds=1))  # type: ignore[union-attr]  # None only for those outside the group


def parent(rank: int) -> int:
    """The rank that hears this one's vote and tells it the verdict; not asked of rank 0, at the top."""
    return rank & (rank - 1)


def children(rank: int, size: int) -> list[int]:
    """The ranks whose parent this is, those with fewest ranks below them first: their votes come sooner.

    Most are near by number, and so on the same machine.
    """
    steps = [1 << i for i in range(((rank & -rank) or size).bit_length())]
    return [rank + step for step in steps if not rank & (2 * step - 1) and rank + step < size]


@dataclass(frozen=True)
class _Said:
    """What travels: a value, or the problem because of which there is none."""

    value: Any = None
    problem: OnRankError | None = None

    @property
    def is_loss(self) -> bool:
        return self.problem is not None and isinstance(self.problem.error, RanksLostError)

    def unless(self, losses: Iterable["_Said"]) -> "_Said":
        """This, but for what was lost on the way."""
        return reduce(lambda one, other: one.merged(other, lambda value, _: value), losses, self)

    def merged(self, other: "_Said", merge: Callable[[Any, Any], Any]) -> "_Said":
        """Both values merged; of problems a lost rank's goes before all others, and then the lowest rank's."""
        if self.problem is None and other.problem is None:
            return _Said(merge(self.value, other.value))
        if self.problem is None or other.problem is None:
            return self if self.problem is not None else other
        return min(self, other, key=lambda said: (not said.is_loss, said.problem.rank if said.problem else 0))


@dataclass(frozen=True)
class Channel:
    """What all ranks say to one another from one thread; every rank has to make the same calls in the same order.

    Alone, without a group, a rank just does what it is asked to.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    counted: Counter[str] = field(default_factory=Counter)
    """The `collectives` so far, each of them one pass down the tree or one up and down, and this rank's messages in
    them: `sent`, `received`, `sent_bytes`, `received_bytes`."""

    def together(
        self,
        job: Callable[[], T],
        note: Callable[[T], frozenset[Any]] = lambda _: frozenset(),
        conclude: Callable[[frozenset[Any]], None] = lambda _: None,
    ) -> T:
        """What `job` returns here; what it raises on any rank is raised on all of them.

        When all ranks are through with it, rank 0 calls `conclude` with what
        they noted of their outcomes; nobody returns before that has, and what
        it raises is raised on all of them as well.  One collective.
        """
        if self.group is None:
            outcome = job()
            conclude(note(outcome))
            return outcome
        mine, cause = _Said(), None
        try:
            outcome = job()
            mine = _Said(note(outcome))
        except Exception as error:
            mine, cause = _Said(problem=_on(self.rank, error)), error
        _opened(self._agreed(mine, operator.or_, conclude), cause)
        return outcome

    def from_first(self, job: Callable[[], T]) -> T:
        """What `job` returns or raises on rank 0, on all of them: its value is plain data, and the rest do not run it.

        Nobody's own view of the folder matters then (resume.agreement).  One collective.
        """
        if self.group is None:
            return job()
        self.counted["collectives"] += 1
        said = self._attempted(job) if self.rank == 0 else self._hear(parent(self.rank))
        return _opened(self._pass_on(said))  # type: ignore[no-any-return]

    def merged(self, row: T, merge: Callable[[T, T], T]) -> T:
        """The rows of all ranks merged, in their order, on all of them.  One collective."""
        if self.group is None:
            return row
        return _opened(self._agreed(_Said(row), merge, lambda rows: rows))  # type: ignore[no-any-return]

    def _agreed(self, mine: _Said, merge: Callable[[Any, Any], Any], conclude: Callable[[Any], Any]) -> _Said:
        below = (self._hear(child) for child in children(self.rank, self.size))
        said = reduce(lambda one, other: one.merged(other, merge), below, mine)
        self.counted["collectives"] += 1
        if self.rank != 0:
            losses = self._tell([parent(self.rank)], said)
            said = said.unless(losses) if losses else self._hear(parent(self.rank))
        elif said.problem is None:
            said = self._attempted(partial(conclude, said.value))
        return self._pass_on(said)

    def _attempted(self, job: Callable[[], Any]) -> _Said:
        try:
            return _Said(job())
        except Exception as error:
            return _Said(problem=_on(self.rank, error))

    def _pass_on(self, verdict: _Said) -> _Said:
        """To those below; the ones with most ranks below them first."""
        verdict = verdict.unless(self._tell(children(self.rank, self.size)[::-1], verdict))
        if verdict.is_loss:
            leave(self.group)
        return verdict

    def _tell(self, peers: Iterable[int], said: _Said) -> list[_Said]:
        """Send to all of them, not waiting for one before it is the other's turn; who could not be reached."""
        losses: list[_Said] = []
        content = pickle.dumps(said)
        framed = (len(content).to_bytes(_LENGTH, "little") + content).ljust(_PACKET, b"\0")
        packets = [_packet(part) for part in (framed[:_PACKET], framed[_PACKET:]) if part]
        begun = []
        for peer, packet in itertools.product(peers, packets):
            with self._contact(peer, losses):
                begun.append((peer, self._send(packet, peer)))
                self.counted.update(sent=1, sent_bytes=packet.nbytes)
        for peer, sending in begun:
            with self._contact(peer, losses):
                sending.wait()
        return losses

    def _hear(self, peer: int) -> _Said:
        losses: list[_Said] = []
        with self._contact(peer, losses):
            framed = self._bytes_from(peer, _PACKET)
            end = _LENGTH + int.from_bytes(framed[:_LENGTH], "little")
            if end > _PACKET:
                framed += self._bytes_from(peer, end - _PACKET)
            said: _Said = pickle.loads(framed[_LENGTH:end])
            return said
        return losses[0]

    def _bytes_from(self, peer: int, size_bytes: int) -> bytes:
        packet = torch.empty(size_bytes, dtype=torch.uint8)
        self._receive(packet, peer)
        self.counted.update(received=1, received_bytes=size_bytes)
        return packet.numpy().tobytes()

    @contextmanager
    def _contact(self, peer: int, losses: list[_Said]) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            lost = RanksLostError(f"lost contact to rank {peer}: {error}")
            losses.append(_Said(problem=OnRankError(self.rank, lost)))

    def _send(self, packet: torch.Tensor, peer: int) -> dist.Work:
        return dist.isend(packet, peer, self.group)  # type: ignore[return-value]  # None only outside the group

    def _receive(self, packet: torch.Tensor, peer: int) -> None:
        dist.recv(packet, peer, self.group)


def _packet(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _opened(said: _Said, cause: Exception | None = None) -> Any:
    if said.problem is not None:
        raise said.problem.told() from cause
    return said.value


def _on(rank: int, error: Exception) -> OnRankError:
    return error if isinstance(error, OnRankError) else OnRankError(rank, portable(error))
