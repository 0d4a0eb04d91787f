"""What a manager was given to save, and what it said of each save: from that alone follows what may come back."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from forge_conformance.adapter import Layout
from forge_conformance.runs.state import Digest
from forge_spec.disk import Mark
from forge_spec.durable import may_come_back

EVERY = 2
"""Steps between the saves of a run, unless it says otherwise."""


@dataclass(frozen=True)
class Saved:
    """What a resume that comes back with this save has to be."""

    step: int
    state: Digest
    """Fingerprints of the kinds of state that the manager claims to bring back."""
    is_resave: bool = False
    """Whether a directory of that step stood there, whole or torn, when the save began; or was on its way there."""
    kind: str = ""
    """`permanent` or `ephemeral` where a hook saves."""


@dataclass
class Ledger:
    """The saves of a run, in order, and what became of each; marks stand for one rank each."""

    saves: list[Saved] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    ranks: int = 1

    def mark(self, word: str, save: int, rank: int = 0) -> None:
        """Note what became of a save on a rank; see `Mark`."""
        self.marks.append(Mark(word, save))

    @property
    def allowed(self) -> frozenset[int | None]:
        """The saves that a resume may come back with now; None stands for a fresh start."""
        shared = SharedMarks(self.ranks)
        return may_come_back(mark for mark in self.marks if shared.counts(mark))

    def copy(self) -> "Ledger":
        """One that goes its own way."""
        return Ledger(list(self.saves), list(self.marks), self.ranks)


class SharedMarks:
    """From marks of each rank to marks of the run: a save ends with its last rank, and begins with its first."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._counts: Counter[Mark] = Counter()

    def counts(self, mark: Mark) -> bool:
        """Whether, with this mark of one more rank, the same is true of the run."""
        self._counts[mark] += 1
        return self._counts[mark] == (self._ranks if mark.word in ("acknowledged", "raised") else 1)


def stands(layout: Layout, folder: Path, step: int) -> bool:
    """Whether the folder has a checkpoint of a step, whole or torn."""
    return os.path.lexists(folder / layout.name.format(step=step))


def next_saved(step: int, every: int = EVERY) -> int:
    """The next step that a run saves after this one.

    >>> next_saved(4), next_saved(5), next_saved(0, every=3)
    (6, 6, 3)
    """
    return (step // every + 1) * every


def next_two(step: int, every: int = EVERY) -> Iterator[int]:
    """The steps of the next two saves: the one that was cut short is among them."""
    first = next_saved(step, every)
    yield from (first, first + every)
