"""The search: everything that a table can do, breadth first, so that the first violation found has a shortest trace.

    python -m forge_spec.model.explore                          both designs: states, depth, states per second
    python -m forge_spec.model.explore --design second          one of them
    python -m forge_spec.model.explore --scope small            fewer steps and ranks, in seconds
    python -m forge_spec.model.explore --variant latest-early   a broken manager, with a shortest trace

Invariant: a state is visited once, and each state but the first has one parent, one row before it. So a trace is read
off backwards, and no other trace leads there in fewer rows.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from forge_spec.model.design import Design, Scope
from forge_spec.model.designs import BY_NAME, DESIGNS
from forge_spec.model.machine import HANG, Check, Label, Machine, Row, State

_Failure = tuple[int, str, str]
"""A state, the clause that does not hold in it, and the clause's sentence."""


@dataclass(frozen=True)
class Step:
    """One row that was taken, and the sentence about it."""

    label: Label
    sentence: str


@dataclass(frozen=True)
class Violation:
    """A state in which an invariant does not hold, and a shortest way to it.

    `clause` is the invariant's slug, or `HANG` where a call can neither go on nor return.
    """

    clause: str
    sentence: str
    trace: tuple[Step, ...]

    def __str__(self) -> str:
        lines = [f"{number:3}. {step.sentence}" for number, step in enumerate(self.trace, start=1)]
        return "\n".join([*lines, f"     {self.clause} does not hold: {self.sentence}"])


@dataclass(frozen=True)
class Searched:
    """The result of a search.

    `states` are counted once each, `transitions` including those to a known state. `depth` is the number of rows to the
    farthest state. `reached` are the clauses whose situation arose, and `taken` the rows that were taken in some state.
    A search ends at the first violation, so all of these are what it had visited by then.
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


def search(machine: Machine[Any], max_depth: int | None = None) -> Searched:
    """Visit every state that can be reached, or those within `max_depth` rows, until an invariant does not hold."""
    begun = time.process_time()
    parents = {machine.start: machine.start}
    level, depth, transitions = [machine.start], 0, 0
    waiting = list(machine.situations)
    failure = _first_failure(machine, machine.start)
    while level and failure is None:
        waiting = [situation for situation in waiting if not _arises(situation, level)]
        failure = _first_stuck(machine, level)
        if failure or depth == max_depth:
            break
        level, moves, failure = _next_level(machine, level, parents)
        transitions += moves
        depth += bool(level)
    return Searched(
        states=len(parents),
        transitions=transitions,
        depth=depth,
        violation=failure and _violation(machine, parents, *failure),
        reached=frozenset(i.clause for i in machine.invariants) - {i.clause for _, _, i in waiting},
        taken=frozenset(rule.label for rule in machine.rules if any(rule.values())),
        seconds=time.process_time() - begun,
    )


def _next_level(
    machine: Machine[Any], level: Sequence[int], parents: dict[int, int]
) -> tuple[list[int], int, _Failure | None]:
    """Return the new states one row further and the number of moves, up to the first violation."""
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


def _first_failure(machine: Machine[Any], state: int) -> _Failure | None:
    failure = (invariant for read, holds, invariant in machine.checks if not holds[state & read])
    return next(((state, invariant.clause, invariant.sentence) for invariant in failure), None)


def _first_stuck(machine: Machine[Any], level: Sequence[int]) -> _Failure | None:
    rest, is_idle = machine.is_idle.mask, machine.is_idle
    stuck = (state for state in level if not is_idle[state & rest] and machine.is_stuck(state))
    return next(((state, HANG, "a call that has begun can neither go on nor return") for state in stuck), None)


def _violation(machine: Machine[Any], parents: dict[int, int], state: int, clause: str, sentence: str) -> Violation:
    path = [state]
    while path[-1] != machine.start:
        path.append(parents[path[-1]])
    path.reverse()
    return Violation(clause, sentence, tuple(_step(machine, *pair) for pair in pairwise(path)))


def _step(machine: Machine[Any], before: int, after: int) -> Step:
    rule = next(rule for rule, led_to in machine.moves(before) if led_to == after)
    return Step(rule.label, machine.sentence(rule, before, after))


def follow(machine: Machine[State], labels: Iterable[Label]) -> Iterator[State]:
    """The states of a trace, including the first; `ValueError` at the first row that can't be taken."""
    packed = machine.start
    yield machine.unpack(packed)
    for number, label in enumerate(labels, start=1):
        led_to = [after for rule, after in machine.moves(packed) if rule.label == label]
        if not led_to:
            possible = ", ".join(str(rule.label) for rule, _ in machine.moves(packed))
            raise ValueError(f"row {number}, {label}, can't be taken there; what can is {possible}")
        packed = led_to[0]
        yield machine.unpack(packed)


@dataclass(frozen=True)
class Explored:
    """The searches of all settings of a scope."""

    design: Design[Any]
    found: tuple[tuple[Any, Searched], ...]

    @property
    def states(self) -> int:
        """Of all settings together."""
        return sum(found.states for _, found in self.found)

    @property
    def rate(self) -> float:
        """States a second, over all settings."""
        return self.states / sum(found.seconds for _, found in self.found)

    @property
    def shortest(self) -> tuple[Any, Violation] | None:
        """The violation with the fewest rows, and its setting."""
        failure = [(setting, found.violation) for setting, found in self.found if found.violation]
        return min(failure, key=lambda pair: len(pair[1].trace), default=None)

    @property
    def unreached(self) -> tuple[str, ...]:
        """The clauses whose situation arose in no setting."""
        reached = frozenset[str]().union(*(found.reached for _, found in self.found))
        return tuple(one.clause for one in self.design.invariants if one.clause not in reached)

    @property
    def untaken(self) -> tuple[str, ...]:
        """The rows of the table that were taken in no setting."""
        taken = {label.row for _, found in self.found for label in found.taken}
        return tuple(row.name for row in self.design.table if row.name not in taken)


def explore(design: Design[Any], scope: Scope, table: Iterable[Row] | None = None) -> Explored:
    """Search each setting of a scope by itself; after a violation only for shorter ones."""
    rows = design.table if table is None else tuple(table)
    searched = list[tuple[Any, Searched]]()
    for setting in scope.settings:
        shortest = Explored(design, tuple(searched)).shortest
        limit = len(shortest[1].trace) - 1 if shortest else None
        searched.append((setting, search(design.machine(scope, setting, rows), limit)))
    return Explored(design, tuple(searched))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0 if the search ended as expected."""
    parser = argparse.ArgumentParser(prog="python -m forge_spec.model.explore", description="Search the model.")
    parser.add_argument("--design", choices=DESIGNS, help="search one design (default: both)")
    parser.add_argument("--scope", choices=("full", "small"), default="full", help="full takes minutes, small seconds")
    parser.add_argument(
        "--variant", choices=BY_NAME, metavar="NAME", help="search a broken manager: " + ", ".join(BY_NAME)
    )
    options = parser.parse_args(arguments)
    if options.variant:
        return print_variant(options.variant)
    designs = [DESIGNS[options.design]] if options.design else DESIGNS.values()
    return max([print_scope(design, options.scope) for design in designs])


def print_scope(design: Design[Any], name: str) -> int:
    """Search the manager itself and print the results; return the exit status."""
    print(f"{design.name} design, {design.scopes[name]}")
    explored = explore(design, design.scopes[name])
    for setting, found in explored.found:
        print(
            f"{setting}: {found.states:,} states, {found.transitions:,} transitions, "
            f"depth {found.depth}, {found.rate:,.0f} states a second"
        )
        if found.violation:
            print(found.violation)
    print(f"together: {explored.states:,} states, {explored.rate:,.0f} a second")
    if not explored.shortest:
        print("every invariant holds")
    print("situations that never arise:", ", ".join(explored.unreached) or "none")
    print("rows that are never taken:", ", ".join(explored.untaken) or "none")
    return 1 if explored.shortest or explored.unreached or explored.untaken else 0


def print_variant(name: str) -> int:
    """Search a broken manager and print the shortest trace to its violation; return the exit status."""
    design, variant = BY_NAME[name]
    explored = explore(design, design.scope_of(variant), design.table_of(variant))
    print(f"{variant.name}: {variant.mistake}")
    if explored.shortest is not None:
        setting, violation = explored.shortest
        print(f"{setting}, after {explored.states:,} states:", violation, sep="\n")
        return 0 if violation.clause == variant.breaks else 1
    print(
        f"every invariant holds in {explored.states:,} states; situations that never arise:",
        ", ".join(explored.unreached) or "none",
    )
    return 0 if variant.is_lazy and variant.breaks in explored.unreached else 1


if __name__ == "__main__":
    sys.exit(main())
