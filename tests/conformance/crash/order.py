"""Whether a checkpoint was on storage before it was made complete, and complete before `latest` named it.

Looked for in the trace itself, by the strictest rules: it is found without
building a disk, and whether or not a resume would have fallen for it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from forge_conformance.adapter import Layout
from forge_spec.disk import STORAGES, Bytes, Entries

from .recording import Recorded
from .states import State, States
from .trace import Disk

_STRICT = STORAGES["posix-strict"]


@dataclass(frozen=True)
class Disorder:
    """Something was not safe when a checkpoint was made complete, or when the pointer came to name it."""

    at: int
    """The place in the trace of what came too early."""
    what: str
    """In words: what came too early, and what was not safe by then."""


def disorders(recorded: Recorded, layout: Layout) -> tuple[list[Disorder], int]:
    """What was out of order, and how many times there was something to be in order."""
    trace, required = recorded.trace, _required(layout, recorded.shape.stages if recorded.shape else 0)
    states = States(trace, _STRICT, coalesce=False)
    found: list[Disorder] = []
    looked, complete, named = 0, _complete(trace.disk(trace.begins), layout, required), None
    states.walk_to(trace.begins)
    for at in range(trace.begins, len(trace.effects)):
        if not isinstance(trace.effects[at], Entries | Bytes):
            continue
        states.walk_to(at)
        content, names = states.unsafe()
        states.walk_to(at + 1)
        disk = states.disk(State(at + 1))
        now, points = _complete(disk, layout, required), _pointer(disk, layout)
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
                found.append(Disorder(at, f"{event} by {trace.calls[at]}, and not on storage by then: {_some(below)}"))
        complete, named = now, points
    return found, looked


def _events(
    complete: frozenset[str], now: frozenset[str], named: str | None, points: str | None
) -> Iterator[tuple[str, str]]:
    for name in sorted(now - complete):
        yield f"{name} was made complete", name
    if points is not None and points != named:
        yield f"the pointer came to name {points}", points


def _required(layout: Layout, stages: int) -> tuple[str, ...]:
    if not stages:
        return layout.required
    shared = [name for name in layout.required if name not in layout.required_of_stage]
    own = [f"{layout.stage.format(stage=n)}/{name}" for n in range(stages) for name in layout.required_of_stage]
    return (*shared, *own)


def _complete(disk: Disk, layout: Layout, required: tuple[str, ...]) -> frozenset[str]:
    tops = {path: node for path, node in disk.nodes.items() if "/" not in path}
    names = [path for path, node in tops.items() if re.fullmatch(layout.checkpoint, path)]
    if not layout.is_dir:
        return frozenset(name for name in names if tops[name].content)
    return frozenset(
        name for name in names if all((node := disk.nodes.get(f"{name}/{part}")) and node.content for part in required)
    )


def _pointer(disk: Disk, layout: Layout) -> str | None:
    node = disk.nodes.get(layout.pointer) if layout.pointer else None
    said = node.content.decode(errors="replace").strip().rstrip("/") if node else ""
    return said.rpartition("/")[2] or None


def _some(paths: list[str]) -> str:
    return ", ".join(paths[:4]) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")
