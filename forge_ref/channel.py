"""How ranks come to one outcome: votes climb a tree, and the verdict comes down it.

Invariant: whatever one rank raises is raised by all of them, with the same
type and words; of several failures the lowest rank's.

Each rank merges the votes from below into its own, so none, rank 0 included,
exchanges more than about log2 of their number of messages.  Gloo's reduction
goes round a ring of all ranks instead, and ranks that are not next to a dead one
wait until the timeout.  Here a rank that loses contact reports it to the ranks
that it can reach, and then closes all its connections.  This is how ranks that
wait elsewhere learn about it, and they do the same.  Only a rank that hangs is
waited for until the timeout.

A job of one channel may talk over another, as when a pipeline stage writes: what
that one raises keeps its rank.
"""

import itertools
import operator
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
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
_ORIGIN = "_forge_ref_on_rank"
"""The attribute of a raised error that has the `OnRankError` it was made of."""
T = TypeVar("T")
N = TypeVar("N")
C = TypeVar("C")


class OnRankError(Exception):
    """An error and the rank that it happened on; sent between ranks, and never raised to a caller."""

    def __init__(self, rank: int, error: BaseException) -> None:
        super().__init__(rank, error)
        self.rank = rank
        self.error = error

    def as_raised(self) -> Exception:
        """Return the error as every rank raises it: of the same type if that can be made from a text alone."""
        words = f"rank {self.rank}: {self.error}"
        try:
            raised = type(self.error)(words)
        except Exception:
            raised = None
        if not isinstance(raised, Exception):
            raised = RuntimeError(f"rank {self.rank}: {type(self.error).__name__}: {self.error}")
        raised.__dict__[_ORIGIN] = self
        return raised


def _picklable(error: BaseException) -> BaseException:
    """Return the error if it can be pickled, else one with the same text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def disconnect(group: dist.ProcessGroup | None) -> None:
    """Close this rank's connections in a group, so that every wait for it there fails at once.

    Gloo has no call for it, but does it when the time of a receive is up.
    """
    if group is None:
        return
    with suppress(RuntimeError):
        nothing = dist.irecv(torch.empty(1, device="cpu"), group=group, tag=_UNUSED_TAG)
        nothing.wait(timedelta(milliseconds=1))  # type: ignore[union-attr]  # None only for those outside the group


def parent(rank: int) -> int:
    """Return the rank that this one sends its vote to, and receives the verdict from; rank 0 has none."""
    return rank & (rank - 1)


def children(rank: int, size: int) -> list[int]:
    """Return the ranks whose parent this is, those with fewest ranks below them first: their votes come sooner.

    Most are near by number, and so on the same machine.
    """
    steps = [1 << i for i in range(((rank & -rank) or size).bit_length())]
    return [rank + step for step in steps if not rank & (2 * step - 1) and rank + step < size]


@dataclass(frozen=True)
class _Message:
    """What is sent: a value, or the problem because of which there is none."""

    value: Any = None
    problem: OnRankError | None = None

    @property
    def is_loss(self) -> bool:
        return self.problem is not None and isinstance(self.problem.error, RanksLostError)

    def unless(self, losses: Iterable["_Message"]) -> "_Message":
        """Return this message, or the loss of a rank if there was one."""
        return reduce(lambda one, other: one.merged(other, lambda value, _: value), losses, self)

    def merged(self, other: "_Message", merge: Callable[[Any, Any], Any]) -> "_Message":
        """Return the merged values; of two problems the loss of a rank comes first, then the lowest rank's."""
        if self.problem is None and other.problem is None:
            return _Message(merge(self.value, other.value))
        if self.problem is None or other.problem is None:
            return self if self.problem is not None else other
        return min(
            self, other, key=lambda message: (not message.is_loss, message.problem.rank if message.problem else 0)
        )


@dataclass(frozen=True)
class Channel:
    """The messages of all ranks of a group from one thread; each has to make the same calls in the same order.

    Alone, without a group, a rank just calls the job.
    """

    rank: int = 0
    """This rank's place in the group."""
    size: int = 1
    group: dist.ProcessGroup | None = None
    names: Sequence[int] = ()
    """The numbers that the ranks of the group have in the job; without them, the group is all of it."""
    counted: Counter[str] = field(default_factory=Counter)
    """The `collectives` so far, each of them one pass down the tree or one up and down, and this rank's messages in
    them: `sent`, `received`, `sent_bytes`, `received_bytes`."""

    def together(
        self,
        job: Callable[[], T],
        note: Callable[[T], frozenset[Any]] = lambda _: frozenset(),
        conclude: Callable[[frozenset[Any]], None] = lambda _: None,
    ) -> T:
        """Return what `job` returns here; what it raises on any rank is raised on all of them.

        When all ranks have done it, rank 0 calls `conclude` with what they noted of
        their outcomes.  No rank returns before that has, and what it raises is raised
        on all of them as well.  One collective.
        """
        return self.concluded(job, note, conclude)[0]

    def concluded(
        self,
        job: Callable[[], T],
        note: Callable[[T], N],
        conclude: Callable[[N], C],
        merge: Callable[[N, N], N] = operator.or_,
    ) -> tuple[T, C]:
        """Return the same, and what `conclude` returned, on all ranks; `merge` makes one note of two."""
        if self.group is None:
            outcome = job()
            return outcome, conclude(note(outcome))
        mine, cause = _Message(), None
        try:
            outcome = job()
            mine = _Message(note(outcome))
        except BaseException as error:
            mine, cause = _Message(problem=self._problem(error)), error
        conclusion = self._value_of(self._agreed(mine, merge, conclude), cause)
        return outcome, conclusion

    def decided(self, job: Callable[[], N], conclude: Callable[[N], C]) -> C:
        """Return, on all ranks, what rank 0's `conclude` makes of all that the jobs return, united in their order.

        One collective; errors as above.
        """
        return self.concluded(job, lambda own: own, conclude)[1]

    def from_first(self, job: Callable[[], T]) -> T:
        """Return or raise on all ranks what `job` does on rank 0, which alone runs it; its value is plain data.

        So no rank's own view of the folder matters (resume.agreement).  One collective.
        """
        if self.group is None:
            return job()
        self.counted["collectives"] += 1
        message = self._attempted(job) if self.rank == 0 else self._receive_from(parent(self.rank))
        return self._value_of(self._pass_on(message))  # type: ignore[no-any-return]

    def merged(self, job: Callable[[], T], merge: Callable[[T, T], T]) -> T:
        """Return what `job` returns on all ranks merged, in their order; what it raises on any is raised on all.

        One collective.
        """
        if self.group is None:
            return job()
        mine = self._attempted(job)
        return self._value_of(self._agreed(mine, merge, lambda rows: rows))  # type: ignore[no-any-return]

    def _agreed(self, mine: _Message, merge: Callable[[Any, Any], Any], conclude: Callable[[Any], Any]) -> _Message:
        below = (self._receive_from(child) for child in children(self.rank, self.size))
        message = reduce(lambda one, other: one.merged(other, merge), below, mine)
        self.counted["collectives"] += 1
        if self.rank != 0:
            losses = self._send_to([parent(self.rank)], message)
            message = message.unless(losses) if losses else self._receive_from(parent(self.rank))
        elif message.problem is None:
            message = self._attempted(partial(conclude, message.value))
        return self._pass_on(message)

    def _attempted(self, job: Callable[[], Any]) -> _Message:
        try:
            return _Message(job())
        except BaseException as error:
            return _Message(problem=self._problem(error))

    def _problem(self, error: BaseException) -> OnRankError:
        """Return what the others are told; of an interrupt too, or they would wait."""
        return error.__dict__.get(_ORIGIN) or OnRankError(self._name(self.rank), _picklable(error))

    def _value_of(self, message: _Message, cause: BaseException | None = None) -> Any:
        """Return or raise it; an interrupt of this rank, which may be the `cause`, is raised here as what it is."""
        problem = message.problem
        if problem is None:
            return message.value
        mine = problem.error if problem.rank == self._name(self.rank) else None
        for own in (cause, mine):
            if own is not None and not isinstance(own, Exception):
                raise own
        raise problem.as_raised() from cause

    def _name(self, place: int) -> int:
        return self.names[place] if self.names else place

    def _pass_on(self, verdict: _Message) -> _Message:
        """Send to the ranks below, those with most ranks below them first; return the verdict."""
        verdict = verdict.unless(self._send_to(children(self.rank, self.size)[::-1], verdict))
        if verdict.is_loss:
            disconnect(self.group)
        return verdict

    def _send_to(self, peers: Iterable[int], message: _Message) -> list[_Message]:
        """Send to all of them at once; return a loss for each that could not be reached."""
        losses: list[_Message] = []
        content = pickle.dumps(message)
        framed = (len(content).to_bytes(_LENGTH, "little") + content).ljust(_PACKET, b"\0")
        parts = framed[:_PACKET], framed[_PACKET:]
        packets = [torch.frombuffer(bytearray(part), dtype=torch.uint8) for part in parts if part]
        begun = []
        for peer, packet in itertools.product(peers, packets):
            with self._contact(peer, losses):
                begun.append((peer, self._send(packet, self._name(peer))))
                self.counted.update(sent=1, sent_bytes=packet.nbytes)
        for peer, sending in begun:
            with self._contact(peer, losses):
                sending.wait()
        return losses

    def _receive_from(self, peer: int) -> _Message:
        losses: list[_Message] = []
        with self._contact(peer, losses):
            framed = self._bytes_from(peer, _PACKET)
            end = _LENGTH + int.from_bytes(framed[:_LENGTH], "little")
            if end > _PACKET:
                framed += self._bytes_from(peer, end - _PACKET)
            message: _Message = pickle.loads(framed[_LENGTH:end])
            return message
        return losses[0]

    def _bytes_from(self, peer: int, size_bytes: int) -> bytes:
        packet = torch.empty(size_bytes, dtype=torch.uint8, device="cpu")
        self._receive(packet, self._name(peer))
        self.counted.update(received=1, received_bytes=size_bytes)
        return packet.numpy().tobytes()

    @contextmanager
    def _contact(self, peer: int, losses: list[_Message]) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            lost = RanksLostError(f"lost contact to rank {self._name(peer)}: {error}")
            losses.append(_Message(problem=self._problem(lost)))

    def _send(self, packet: torch.Tensor, peer: int) -> dist.Work:
        return dist.isend(packet, peer, self.group)  # type: ignore[return-value]  # None only outside the group

    def _receive(self, packet: torch.Tensor, peer: int) -> None:
        dist.recv(packet, peer, self.group)


ALONE = Channel()
"""Of a process without others."""
