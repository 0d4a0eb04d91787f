"""Whether a checkpoint was on storage before it was made complete, and complete before `latest` named it.

Looked for in the trace itself, by the strictest rules: it is found without
building a disk, and whether or not a resume would have been misled by it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from forge_conformance.adapter import Layout
from forge_conformance.disks.reader import reader
from forge_conformance.disks.recording import Recorded
from forge_conformance.disks.states import State, States
from forge_conformance.judging.text import some
from forge_spec.disk import STORAGES, Bytes, Entries

_STRICT = STORAGES["posix-strict"]


@dataclass(frozen=True)
class Disorder:
    """Something was not safe when a checkpoint was made complete, or when the pointer came to name it."""

    at: int
    """The number of the operation that came too early."""
    what: str
    """In words: what came too early, and what was not safe by then."""


def disorders(recorded: Recorded, layout: Layout) -> tuple[list[Disorder], int]:
    """What was out of order, and how many times there was something to be in order."""
    trace, reads = recorded.trace, reader(recorded, layout)
    states = States(trace, _STRICT, coalesce=False)
    found: list[Disorder] = []
    looked, complete, named = 0, reads.complete(trace.disk(trace.begins)), None
    states.walk_to(trace.begins)
    for at in range(trace.begins, len(trace.effects)):
        if not isinstance(trace.effects[at], Entries | Bytes):
            continue
        states.walk_to(at)
        content, names = states.unsafe()
        states.walk_to(at + 1)
        disk = states.disk(State(at + 1))
        now, points = reads.complete(disk), reads.pointer(disk)
        for event, name in _events(complete, now, named, points):
            looked += 1
            # its own name has to be safe before the pointer, and not before itself
            own = content | names if event.startswith("the pointer") else content
            paths = states.paths(State(at + 1)).items()
            below = sorted(
                path
                for path, number in paths
                if (number in content | names and path.startswith(f"{name}/")) or (path == name and number in own)
            )
            if below:
                found.append(
                    Disorder(at + 1, f"{event} by {trace.calls[at]}, and not on storage by then: {some(below)}")
                )
        complete, named = now, points
    return found, looked


def _events(
    complete: frozenset[str], now: frozenset[str], named: str | None, points: str | None
) -> Iterator[tuple[str, str]]:
    for name in sorted(now - complete):
        yield f"{name} was made complete", name
    if points is not None and points != named:
        yield f"the pointer came to name {points}", points
