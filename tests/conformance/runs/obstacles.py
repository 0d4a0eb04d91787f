"""What keeps a load from reading its folder: a call that fails once, or a path that may not be read.

Obstacles are made from the calls of a load to which nothing has happened.  A
call is named by what it does to which path and how often that was done before,
because threads of a load may change places.
"""

import errno
import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

from forge_conformance.watch.gate import Operation, Picks
from forge_conformance.worker.system_calls import CALLS

_OPENS = ("open", "openat")


@dataclass(frozen=True)
class Obstacle:
    """Why calls of a load fail."""

    error: int
    path: str
    call: str | None = None
    """The call that fails; None where the path may not be read, nor anything below it."""
    nth: int = 1
    """How often the call is made on this path until it fails, this one included."""

    def __str__(self) -> str:
        name = errno.errorcode[self.error]
        if self.call is None:
            return f"{name}: {self.path} may not be read, nor anything below it"
        again = f", number {self.nth} of these calls" if self.nth > 1 else ""
        return f"{name} once at {self.call}({self.path}){again}"

    def picks(self) -> Picks:
        """The calls that fail, of one load."""
        return self._is_below if self.call is None else self._once()

    def _once(self) -> Picks:
        calls = itertools.count(1)
        return lambda made: (made.name, made.paths[0]) == (self.call, self.path) and next(calls) == self.nth

    def _is_below(self, made: Operation) -> bool:
        """What is open already stays readable, and what stands at the path can be seen from above."""
        is_below = PurePath(self.path) in PurePath(made.paths[0]).parents
        return (is_below and CALLS[made.name].paths != ()) or (made.paths[0] == self.path and made.name in _OPENS)


def failing_calls(log: Iterable[Operation]) -> list[Obstacle]:
    """Each call that reads or looks, failing with EIO: a bad block, or a network that is gone (nfs(5), `soft`)."""
    counts: Counter[tuple[str, str]] = Counter()
    found = []
    for made in log:
        if not made.writes:
            counts[made.name, made.paths[0]] += 1
            found.append(Obstacle(errno.EIO, made.paths[0], made.name, counts[made.name, made.paths[0]]))
    return found


def closed_paths(log: Iterable[Operation]) -> list[Obstacle]:
    """Each file and directory that is opened for reading, and each directory above, with EACCES (open(2), stat(2))."""
    opened = [PurePath(made.paths[0]) for made in log if made.name in _OPENS and not made.writes]
    paths = dict.fromkeys(str(path) for one in opened for path in (one, *one.parents))
    return [Obstacle(errno.EACCES, path) for path in paths]
