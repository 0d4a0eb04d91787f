"""Whether what was observed of a real run is possible in the model.

Little of a manager can be observed from outside: which steps are complete, what `latest` names, when processes start
and end, when a save begins and whether it is acknowledged. Between two observations the model may take any rows that
change none of these. So a run is followed with the set of all states in which the model may be. If the set becomes
empty, no path of the model explains what was observed.

Invariant: the states kept are exactly those that are consistent with all observations so far.

The model is one protocol among those that keep the rules. A run that leaves it does something for which the model has
no row. That is reported as a question, and is not a failure by itself.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from forge_spec.model.machine import Machine, Rule
from forge_spec.model.table import Save, State, complete

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
    """One observation of a run; steps are counted from 1 among those that are ever saved.

    `start`: new processes begin, to load `step`, or in an auto-resume (0).
    `lands`: their load has landed on `step`; 0 is a fresh start.
    `begins`, `acknowledged`, `raised`: the save of `step`.
    `kill`: all processes are killed. `full`: a write fails for lack of space.
    `folder`: these steps are `complete` now, and `latest` names this one, or none (0); None where it is not observed.
    `replaced`: the directory of `step`, complete before and after, is another directory now.
    """

    what: str
    step: int = 0
    complete: frozenset[int] = frozenset()
    latest: int | None = None

    def __str__(self) -> str:
        if self.what == FOLDER:
            steps = ", ".join(map(str, sorted(self.complete))) or "no step"
            names = "" if self.latest is None else f", and `latest` names {self.latest or 'nothing'}"
            return f"complete: {steps}{names}"
        return {
            START: f"processes start, to load step {self.step}" if self.step else "processes start",
            LANDS: f"the run goes on from step {self.step}",
            BEGINS: f"the save of step {self.step} begins",
            ACKNOWLEDGED: f"the save of step {self.step} is acknowledged",
            RAISED: f"the save of step {self.step} raises",
            KILL: "every process is killed",
            FULL: "a write fails for lack of space",
            REPLACED: f"the directory of step {self.step} is replaced by another",
        }[self.what]


@dataclass(frozen=True)
class Unexpected:
    """The first observation that no path of the model explains, and what the model allows instead."""

    at: int
    """Its position among all observations."""
    seen: Seen
    possible: tuple[str, ...]
    """The next observable rows of the model, in sentences."""

    def __str__(self) -> str:
        instead = "; ".join(self.possible) or "nothing"
        return f"{self.seen}, where the model allows: {instead}"


def shown(row: str, before: State, after: State, with_latest: bool = True) -> Seen | None:
    """Return what can be observed of a row between these states; None if nothing can."""
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
    if row in _RETURNS and after.acknowledged != before.acknowledged:
        return Seen(ACKNOWLEDGED, _step(after.acknowledged))
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


def follow_seen(machine: Machine[State], seen: Sequence[Seen]) -> tuple[Unexpected | None, int]:
    """Return the first unexpected observation, if there is one, and the largest number of states kept at once."""
    follower = _Follower(machine, with_latest=any(one.latest is not None for one in seen))
    states, most = follower.silently({machine.start}), 0
    for at, one in enumerate(seen):
        after = follower.silently(follower.after(states, one))
        if not after:
            return Unexpected(at, one, follower.possible(states)), most
        states, most = after, max(most, len(after))
    return None, most


class _Follower:
    """The moves of a machine, by what can be observed of them."""

    def __init__(self, machine: Machine[State], with_latest: bool) -> None:
        self._machine = machine
        self._with_latest = with_latest
        self._unpacked: dict[int, State] = {}

    def silently(self, states: Iterable[int]) -> set[int]:
        """Return these states and all that can be reached from them without an observation."""
        found = set(states)
        new = list(found)
        while new:
            after = {led_to for state in new for _, led_to, seen in self._moves(state) if seen is None}
            new = list(after - found)
            found |= after
        return found

    def after(self, states: Iterable[int], seen: Seen) -> Iterator[int]:
        """The states right after this observation."""
        for state in states:
            yield from (led_to for _, led_to, shows in self._moves(state) if shows == seen)

    def possible(self, states: Iterable[int]) -> tuple[str, ...]:
        """Return sentences about the next observable rows of the manager and its caller."""
        sentences = {
            self._machine.sentence(rule, state, led_to)
            for state in states
            for rule, led_to, seen in self._moves(state)
            if seen is not None and seen.what not in (KILL, FULL)
        }
        return tuple(sorted(sentences))

    def _moves(self, state: int) -> Iterator[tuple[Rule, int, Seen | None]]:
        """Each move with what can be observed of it; nobody removes files while a run is watched, so not those rows."""
        for rule, led_to in self._machine.moves(state):
            if not rule.row.name.startswith("lose "):
                seen = shown(rule.row.name, self._state(state), self._state(led_to), self._with_latest)
                yield rule, led_to, seen

    def _state(self, packed: int) -> State:
        if packed not in self._unpacked:
            self._unpacked[packed] = self._machine.unpack(packed)
        return self._unpacked[packed]
