"""Whether what a run was seen to do is a path of the model.

What can be seen of a manager from outside is little: which steps are complete,
where `latest` leads, when processes start and die, when a save begins and what
its caller is told.  Between two things that were seen the model may take any
rows of its own that show nothing.  So a run is followed with all states at once
in which the model may be by now; where none is left, the run did what no path
of the model does.

Invariant: the states kept are exactly those that show what was seen last.

The model is one protocol among those that keep the rules: a run that leaves it
does something that it has no row for, which is a question first, not yet a fault.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from forge_spec.machine import Machine, Rule
from forge_spec.model import Save, State, complete

START, LANDS, BEGINS, ACKNOWLEDGED, RAISED, KILL, FULL, FOLDER, REPLACED = (
    "start",
    "lands",
    "begins",
    "acknowledged",
    "raised",
    "kill",
    "full",
    "folder",
    "replaced",
)
_RETURNS = frozenset({"return", "return early", "return from wait"})


@dataclass(frozen=True)
class Seen:
    """One thing that was seen of a run; steps are counted from 1 among those that are ever saved.

    `start`: new processes, told to load `step`, or 0 for by themselves.
    `lands`: they have, at `step`; 0 is a fresh start.
    `begins`, `acknowledged`, `raised`: the save of `step`.
    `kill`: of all processes.  `full`: a write found no room.
    `folder`: these steps are `complete` now, and `latest` leads to this one, or to none (0); None where nobody looks.
    `replaced`: the directory of `step`, complete before and after, is another one now.
    """

    what: str
    step: int = 0
    complete: frozenset[int] = frozenset()
    latest: int | None = None

    def __str__(self) -> str:
        if self.what == FOLDER:
            steps = ", ".join(map(str, sorted(self.complete))) or "nothing"
            names = "" if self.latest is None else f", and `latest` names {self.latest or 'nothing'}"
            return f"complete is {steps}{names}"
        return {
            START: f"processes start, told to load step {self.step}" if self.step else "processes start",
            LANDS: f"the run goes on from step {self.step}",
            BEGINS: f"the save of step {self.step} begins",
            ACKNOWLEDGED: f"the save of step {self.step} is acknowledged",
            RAISED: f"the save of step {self.step} raises",
            KILL: "every process is killed",
            FULL: "a write finds no room",
            REPLACED: f"step {self.step} is another directory now",
        }[self.what]


@dataclass(frozen=True)
class Strange:
    """The first thing that was seen which no path of the model shows, and what the model could have shown instead."""

    at: int
    """Its place among all that was seen."""
    seen: Seen
    possible: tuple[str, ...]
    """The next rows of the model that could have been seen, in sentences."""

    def __str__(self) -> str:
        instead = "; ".join(self.possible) or "nothing more"
        return f"{self.seen}, where the model knows: {instead}"


def shown(row: str, before: State, after: State, with_latest: bool = True) -> Seen | None:
    """What is seen when the model takes a row between these states; None if that shows nothing."""
    match row:
        case "start":
            return Seen(START)
        case "rewind":
            return Seen(START, after.named)
        case "go on":
            return Seen(LANDS, after.now)
        case "save":
            return Seen(BEGINS, before.now)
        case "raise":
            return Seen(RAISED, _step(before.saving))
        case "kill" | "full":
            return Seen(row)
    if row in _RETURNS and after.vouched != before.vouched:
        return Seen(ACKNOWLEDGED, _step(after.vouched))
    folder = _folder(after, with_latest)
    if folder != _folder(before, with_latest):
        return Seen(FOLDER, 0, *folder)
    if row == "publish":
        return Seen(REPLACED, _step(before.saving))
    return None


def _folder(state: State, with_latest: bool) -> tuple[frozenset[int], int | None]:
    return complete(state.folder), state.latest if with_latest else None


def _step(save: Save | None) -> int:
    return save.step if save else 0


def follow_seen(machine: Machine[State], seen: Sequence[Seen]) -> tuple[Strange | None, int]:
    """The first strange thing, if there is one, and the most states that had to be kept at once."""
    follower = _Follower(machine, with_latest=any(one.latest is not None for one in seen))
    states, most = follower.silently({machine.start}), 0
    for at, one in enumerate(seen):
        after = follower.silently(follower.after(states, one))
        if not after:
            return Strange(at, one, follower.possible(states)), most
        states, most = after, max(most, len(after))
    return None, most


class _Follower:
    """The moves of a machine, by what they show."""

    def __init__(self, machine: Machine[State], with_latest: bool) -> None:
        self._machine = machine
        self._with_latest = with_latest
        self._unpacked: dict[int, State] = {}

    def silently(self, states: Iterable[int]) -> set[int]:
        """These states and all that can be reached from them without anything to see."""
        found = set(states)
        new = list(found)
        while new:
            after = {led_to for state in new for _, led_to, seen in self._moves(state) if seen is None}
            new = list(after - found)
            found |= after
        return found

    def after(self, states: Iterable[int], seen: Seen) -> Iterator[int]:
        """The states right after this was seen."""
        for state in states:
            yield from (led_to for _, led_to, shows in self._moves(state) if shows == seen)

    def possible(self, states: Iterable[int]) -> tuple[str, ...]:
        """Sentences about what the manager and its caller could do from here that would be seen."""
        told = {
            self._machine.tell(rule, state, led_to)
            for state in states
            for rule, led_to, seen in self._moves(state)
            if seen is not None and seen.what not in (KILL, FULL)
        }
        return tuple(sorted(told))

    def _moves(self, state: int) -> Iterator[tuple[Rule, int, Seen | None]]:
        """Each move and what it shows, accidents aside, which nobody arranges while a run is watched."""
        for rule, led_to in self._machine.moves(state):
            if not rule.row.name.startswith("lose "):
                seen = shown(rule.row.name, self._state(state), self._state(led_to), self._with_latest)
                yield rule, led_to, seen

    def _state(self, packed: int) -> State:
        if packed not in self._unpacked:
            self._unpacked[packed] = self._machine.unpack(packed)
        return self._unpacked[packed]
