"""The search: everything that a table can do, breadth first, so that what it finds first is shortest.

    python -m forge_spec.explore                          the whole scope: states, depth, states per second
    python -m forge_spec.explore --scope small            the same in seconds
    python -m forge_spec.explore --variant latest-early   what a broken manager does, as a story

Invariant: a state that has been seen is never entered again, and each but the
first has one parent, one row before it; so a trace is read off backwards, and
no other leads there in fewer rows.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from forge_spec import model
from forge_spec.invariants import INVARIANTS
from forge_spec.machine import HANG, Check, Label, Machine, Row, State
from forge_spec.model import FULL, SMALL, TABLE, Flight, Job, Scope, Setting
from forge_spec.variants import BY_NAME, Variant

SCOPES = {"full": FULL, "small": SMALL}

_Fallen = tuple[int, str, str]
"""A state, the clause that falls in it, and its sentence."""


@dataclass(frozen=True)
class Step:
    """One row that was taken, and the sentence about it."""

    label: Label
    story: str


@dataclass(frozen=True)
class Violation:
    """A state in which an invariant does not hold, and a shortest way to it.

    `clause` is the invariant's slug, or `HANG` where a call can neither go on nor return.
    """

    clause: str
    sentence: str
    trace: tuple[Step, ...]

    def __str__(self) -> str:
        lines = [f"{number:3}. {step.story}" for number, step in enumerate(self.trace, start=1)]
        return "\n".join([*lines, f"     {self.clause} falls: {self.sentence}"])


@dataclass(frozen=True)
class Found:
    """What a search has seen.

    `states` are counted once each, `transitions` with those that lead to a
    state that was known; `depth` is the number of rows to the farthest state.
    `reached` are the clauses whose situation arose, `taken` the rows that were
    taken in some state.  After a violation the search has ended, and these are
    what it had come to.
    """

    states: int
    transitions: int
    depth: int
    violation: Violation | None
    reached: frozenset[str]
    taken: frozenset[Label]
    seconds: float
    """Of this process, on one core."""

    @property
    def rate(self) -> float:
        """States a second."""
        return self.states / self.seconds


def search(machine: Machine[Any], max_depth: int | None = None) -> Found:
    """Visit every state that can be reached, or those within `max_depth` rows, until an invariant falls."""
    begun = time.process_time()
    parents = {machine.start: machine.start}
    level, depth, transitions = [machine.start], 0, 0
    waiting = list(machine.situations)
    fallen = _first_fallen(machine, machine.start)
    while level and fallen is None:
        waiting = [situation for situation in waiting if not _arises(situation, level)]
        fallen = _first_stuck(machine, level)
        if fallen or depth == max_depth:
            break
        level, moves, fallen = _next_level(machine, level, parents)
        transitions += moves
        depth += bool(level)
    return Found(
        states=len(parents),
        transitions=transitions,
        depth=depth,
        violation=fallen and _told(machine, parents, *fallen),
        reached=frozenset(i.clause for i in machine.invariants) - {i.clause for _, _, i in waiting},
        taken=frozenset(rule.label for rule in machine.rules if any(rule.values())),
        seconds=time.process_time() - begun,
    )


def _next_level(
    machine: Machine[Any], level: Sequence[int], parents: dict[int, int]
) -> tuple[list[int], int, _Fallen | None]:
    """The new states one row further, and how many moves there were; up to the first in which an invariant falls."""
    found: list[int] = []
    transitions, rules_at, control = 0, machine.rules_at, machine.control
    for state in level:
        for mask, rule in rules_at[state & control]:
            move = rule[state & mask]
            if move is None:
                continue
            transitions += 1
            keep, put, checks = move
            new = state & keep | put
            if new in parents:
                continue
            parents[new] = state
            found.append(new)
            for read, holds, invariant in checks:
                if not holds[new & read]:
                    return found, transitions, (new, invariant.clause, invariant.sentence)
    return found, transitions, None


def _arises(situation: Check, level: Sequence[int]) -> bool:
    read, arises, _ = situation
    return any(arises[state & read] for state in level)


def _first_fallen(machine: Machine[Any], state: int) -> _Fallen | None:
    fallen = (invariant for read, holds, invariant in machine.checks if not holds[state & read])
    return next(((state, invariant.clause, invariant.sentence) for invariant in fallen), None)


def _first_stuck(machine: Machine[Any], level: Sequence[int]) -> _Fallen | None:
    rest, may_rest = machine.may_rest.mask, machine.may_rest
    stuck = (state for state in level if not may_rest[state & rest] and machine.is_stuck(state))
    return next(((state, HANG, "what has begun can neither go on nor end") for state in stuck), None)


def _told(machine: Machine[Any], parents: dict[int, int], state: int, clause: str, sentence: str) -> Violation:
    path = [state]
    while path[-1] != machine.start:
        path.append(parents[path[-1]])
    path.reverse()
    return Violation(clause, sentence, tuple(_step(machine, *pair) for pair in pairwise(path)))


def _step(machine: Machine[Any], before: int, after: int) -> Step:
    rule = next(rule for rule, led_to in machine.moves(before) if led_to == after)
    return Step(rule.label, machine.tell(rule, before, after))


def follow(machine: Machine[State], labels: Iterable[Label]) -> Iterator[State]:
    """The states that a trace leads through, the first included; `ValueError` at the first row that can't be taken."""
    packed = machine.start
    yield machine.unpack(packed)
    for number, label in enumerate(labels, start=1):
        led_to = [after for rule, after in machine.moves(packed) if rule.label == label]
        if not led_to:
            possible = ", ".join(str(rule.label) for rule, _ in machine.moves(packed))
            raise ValueError(f"row {number}, {label}, can't be taken there; what can is {possible}")
        packed = led_to[0]
        yield machine.unpack(packed)


def manager(scope: Scope, setting: Setting, table: Iterable[Row] = TABLE) -> Machine[model.State]:
    """The manager in one setting, with nothing saved yet and no process running."""
    stages = range(scope.stages)
    start = model.State(
        job=Job.DOWN,
        now=0,
        flight=Flight.NONE,
        saving=None,
        staged=None,
        folder=(None,) * scope.steps,
        latest=0,
        debris=(),
        doomed=frozenset(),
        named=0,
        target=None,
        landed=(None,) * scope.stages,
        vouched=None,
        pending=(),
        owed=frozenset(),
        peak=0,
        accidents=scope.accidents,
    )
    constants = {
        "is_async": setting.is_async,
        "keep": setting.keep,
        "steps": scope.steps,
        "stages": scope.stages,
        "replicas": scope.replicas,
    }
    ranges = {"stage": stages, "step": range(1, scope.steps + 1)}
    return Machine(start, tuple(table), INVARIANTS, constants, ranges, may_rest)


def may_rest(job: Job) -> bool:
    """No call and no resume is under way, so nobody waits for anything."""
    return job in (Job.DOWN, Job.TRAINING, Job.CUT)


@dataclass(frozen=True)
class Explored:
    """The searches of all settings of a scope."""

    found: tuple[tuple[Setting, Found], ...]

    @property
    def states(self) -> int:
        """Of all settings together."""
        return sum(found.states for _, found in self.found)

    @property
    def rate(self) -> float:
        """States a second, over all settings."""
        return self.states / sum(found.seconds for _, found in self.found)

    @property
    def shortest(self) -> tuple[Setting, Violation] | None:
        """The violation with the fewest rows, and where it was found."""
        fallen = [(setting, found.violation) for setting, found in self.found if found.violation]
        return min(fallen, key=lambda pair: len(pair[1].trace), default=None)

    @property
    def unreached(self) -> tuple[str, ...]:
        """The clauses whose situation arose in no setting."""
        reached = frozenset[str]().union(*(found.reached for _, found in self.found))
        return tuple(invariant.clause for invariant in INVARIANTS if invariant.clause not in reached)

    @property
    def untaken(self) -> tuple[str, ...]:
        """The rows of the table that were taken in no setting."""
        taken = {label.row for _, found in self.found for label in found.taken}
        return tuple(row.name for row in TABLE if row.name not in taken)


def explore(scope: Scope, table: Iterable[Row] = TABLE) -> Explored:
    """Search each setting of a scope for itself; after a violation only for shorter ones."""
    rows, searched = tuple(table), list[tuple[Setting, Found]]()
    for setting in scope.settings:
        shortest = Explored(tuple(searched)).shortest
        limit = len(shortest[1].trace) - 1 if shortest else None
        searched.append((setting, search(manager(scope, setting, rows), limit)))
    return Explored(tuple(searched))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its result is the exit status: 0 if the search ended as it should."""
    parser = argparse.ArgumentParser(prog="python -m forge_spec.explore", description="Search the model.")
    parser.add_argument("--scope", choices=SCOPES, default="full", help="full takes minutes, small seconds")
    parser.add_argument("--variant", choices=BY_NAME, metavar="NAME", help="a broken manager: " + ", ".join(BY_NAME))
    options = parser.parse_args(arguments)
    if options.variant:
        return tell_variant(BY_NAME[options.variant])
    return tell_scope(SCOPES[options.scope])


def tell_scope(scope: Scope) -> int:
    """Search the manager itself, and print what there is to it."""
    print(scope)
    explored = explore(scope)
    for setting, found in explored.found:
        print(
            f"{setting}: {found.states:,} states, {found.transitions:,} transitions, "
            f"depth {found.depth}, {found.rate:,.0f} states a second"
        )
        if found.violation:
            print(found.violation)
    print(f"together: {explored.states:,} states, {explored.rate:,.0f} a second")
    if not explored.shortest:
        print("no invariant falls")
    print("situations that never arise:", ", ".join(explored.unreached) or "none")
    print("rows that are never taken:", ", ".join(explored.untaken) or "none")
    return 1 if explored.shortest or explored.unreached or explored.untaken else 0


def tell_variant(variant: Variant) -> int:
    """Search a broken manager, and print its shortest story."""
    explored = explore(variant.scope, variant.table)
    print(f"{variant.name}: {variant.mistake}")
    if explored.shortest is not None:
        setting, violation = explored.shortest
        print(f"{setting}, after {explored.states:,} states:", violation, sep="\n")
        return 0 if violation.clause == variant.falls else 1
    print(
        f"no invariant falls in {explored.states:,} states; never reached:", ", ".join(explored.unreached) or "nothing"
    )
    return 0 if variant.is_lazy and variant.falls in explored.unreached else 1


if __name__ == "__main__":
    sys.exit(main())
