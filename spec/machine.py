"""A protocol as a table of rows, in a form in which all of its states can be visited.

A state is a tuple of named fields.  A row says in which values of some fields it
can be taken (`when`) and what it changes (`effect`): a function whose parameters
name the fields that it reads.  It sees nothing else, so its result is computed once
for each combination of these, and looked up whenever it comes again; that is
what makes a search fast whose rows are written to be read.

Invariant: a state and its packed form, one integer with some bits for each
field, stand for one another; nothing outside this module knows how.
"""

import inspect
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

State = TypeVar("State", bound=tuple[Any, ...])

Changes = Mapping[str, Hashable]
"""Fields and their new values."""

BITS = 12
"""For the values of one field, numbered as they turn up."""


HANG = "hang"
"""Stands in for a slug where what falls is that something which has begun can neither go on nor end."""


@dataclass(frozen=True)
class Row:
    """One thing that can happen.

    `effect` returns what changes, or None where the row can't be taken.  Its
    parameters are fields, constants of the machine, or what `each` names: then
    the row stands for one of its kind for each value in that range.  `story`
    tells it in a sentence, with the fields before it, those after it as
    `{new.field}`, and what `each` names, also as an index.  A row of the `world` may happen or
    not; the others are the protocol's own.
    """

    name: str
    when: Mapping[str, Collection[Hashable]]
    effect: Callable[..., Changes | None]
    story: str
    each: str = ""
    world: bool = False


@dataclass(frozen=True)
class Invariant:
    """What has to hold in every state, and `sometimes`, the situation that has to arise in one.

    Both are functions of fields and constants, as a row's effect is.  `clause` is the
    slug that this formalises.
    """

    clause: str
    sentence: str
    holds: Callable[..., bool]
    sometimes: Callable[..., bool]


@dataclass(frozen=True)
class Label:
    """One row as it was taken: its name, and the value of what `each` names."""

    row: str
    each: int | None = None

    def __str__(self) -> str:
        return self.row if self.each is None else f"{self.row} {self.each}"


@dataclass(frozen=True)
class _Field:
    """The numbers of one field's values, and their place in the packed state."""

    name: str
    shift: int
    values: list[Hashable] = field(default_factory=list)
    numbers: dict[Hashable, int] = field(default_factory=dict)

    @property
    def mask(self) -> int:
        return ((1 << BITS) - 1) << self.shift

    def pack(self, value: Hashable) -> int:
        number = self.numbers.get(value)
        if number is None:
            number = self.numbers[value] = len(self.values)
            assert number < 1 << BITS, f"{self.name} has more values than {BITS} bits can number"
            self.values.append(value)
        return number << self.shift

    def unpack(self, packed: int) -> Any:
        return self.values[(packed & self.mask) >> self.shift]


class Reading(dict[int, Any]):
    """What a function of some fields says, by the packed values of these fields: `reading[state & reading.mask]`."""

    def __init__(self, function: Callable[..., Any], fields: Mapping[str, _Field], constants: Mapping[str, Any]):
        super().__init__()
        names = inspect.signature(function).parameters
        self.function = function
        self.fields = [fields[name] for name in names if name in fields]
        self.constants = {name: constants[name] for name in names if name not in fields}
        self.mask = sum(place.mask for place in self.fields)

    def __missing__(self, key: int) -> Any:
        arguments = {place.name: place.unpack(key) for place in self.fields}
        self[key] = value = self.derived(self.function(**arguments, **self.constants))
        return value

    def derived(self, value: Any) -> Any:
        """What is kept of the function's result."""
        return value


Check = tuple[int, Reading, Invariant]
"""The mask of the fields that an invariant reads, whether it holds there, and itself."""

Move = tuple[int, int, tuple[Check, ...]]
"""The fields that stay, the values of those that change, and the invariants that read one of these."""


class Rule(Reading):
    """One row of the table for one value of what it names: a `Move` where it can be taken, else None."""

    def __init__(self, row: Row, each: int | None, machine: "Machine[Any]") -> None:
        own = {} if each is None else {row.each: each}
        super().__init__(row.effect, machine.fields, {**machine.constants, **own})
        self.row = row
        self.label = Label(row.name, each)
        self.own = own
        self.is_world = row.world
        self.machine = machine

    def derived(self, value: Changes | None) -> Move | None:
        if value is None:
            return None
        fields = self.machine.fields
        changed = sum(fields[name].mask for name in value)
        put = sum(fields[name].pack(new) for name, new in value.items())
        checks = tuple(check for check in self.machine.checks if check[0] & changed)
        return self.machine.mask ^ changed, put, checks

    def may_be_taken(self, control: Mapping[str, Hashable]) -> bool:
        return all(control[name] in values for name, values in self.row.when.items())


class Machine(Generic[State]):
    """A table, what has to hold in it, and the constants of one setting, ready to be searched."""

    def __init__(
        self,
        start: State,
        rows: Sequence[Row],
        invariants: Sequence[Invariant],
        constants: Mapping[str, Any],
        ranges: Mapping[str, Sequence[int]],
        may_rest: Callable[..., bool],
    ) -> None:
        """`start` is a named tuple; `ranges` has the values of what a row's `each` may name.

        `may_rest` says where it is no hang that no row of the protocol's own can be taken.
        """
        self._shape = type(start)
        names: tuple[str, ...] = getattr(start, "_fields")  # noqa: B009  # a tuple to mypy, named to us
        self.fields = {name: _Field(name, BITS * place) for place, name in enumerate(names)}
        self.mask = (1 << BITS * len(names)) - 1
        self.constants = dict(constants)
        self.invariants = tuple(invariants)
        self.checks = tuple(self._check(invariant, invariant.holds) for invariant in invariants)
        self.situations = tuple(self._check(invariant, invariant.sometimes) for invariant in invariants)
        self.rules = tuple(
            Rule(row, each, self)
            for row in sorted(rows, key=lambda row: row.world)
            for each in (ranges[row.each] if row.each else (None,))
        )
        self.may_rest = Reading(may_rest, self.fields, self.constants)
        self.start = self.pack(start)
        control = {name for row in rows for name in row.when}
        self.control = sum(self.fields[name].mask for name in control)
        self.rules_at = _RulesAt(self)

    def _check(self, invariant: Invariant, predicate: Callable[..., bool]) -> Check:
        reading = Reading(predicate, self.fields, self.constants)
        return reading.mask, reading, invariant

    def pack(self, state: State) -> int:
        """The state as one integer."""
        return sum(place.pack(value) for place, value in zip(self.fields.values(), state, strict=True))

    def unpack(self, packed: int) -> State:
        """The state that this integer stands for."""
        return self._shape(*(place.unpack(packed) for place in self.fields.values()))

    def moves(self, packed: int) -> Iterator[tuple[Rule, int]]:
        """Each rule that can be taken in a state, and the state it leads to."""
        for mask, rule in self.rules_at[packed & self.control]:
            move = rule[packed & mask]
            if move is not None:
                yield rule, packed & move[0] | move[1]

    def is_stuck(self, packed: int) -> bool:
        """Whether the protocol has no row of its own to take: what happens next, if anything, is the world's."""
        for mask, rule in self.rules_at[packed & self.control]:
            if not rule.is_world and rule[packed & mask] is not None:
                return False
        return True

    def tell(self, rule: Rule, before: int, after: int) -> str:
        """The rule's sentence about one of its moves."""
        old, new = self.unpack(before), self.unpack(after)
        fields = dict(zip(self.fields, old, strict=True))
        story = rule.row.story
        for name, value in rule.own.items():
            story = story.replace(f"[{name}]", f"[{value}]")
        return story.format(**fields, **rule.own, **self.constants, new=new)


class _RulesAt(dict[int, tuple[tuple[int, Rule], ...]]):
    """What each rule reads, and the rule, where its `when` holds: by the values of all fields that any asks for."""

    def __init__(self, machine: Machine[Any]) -> None:
        super().__init__()
        self._machine = machine
        self._asked = [place for place in machine.fields.values() if place.mask & machine.control]

    def __missing__(self, control: int) -> tuple[tuple[int, Rule], ...]:
        values = {place.name: place.unpack(control) for place in self._asked}
        rules = (rule for rule in self._machine.rules if rule.may_be_taken(values))
        self[control] = found = tuple((rule.mask, rule) for rule in rules)
        return found


def with_row(rows: Sequence[Row], name: str, **changes: Any) -> tuple[Row, ...]:
    """The table with one row changed; `ValueError` if it has no row of that name.

    >>> row = Row("train", {}, lambda now: {"now": now + 1}, "training goes on")
    >>> [changed.story for changed in with_row([row], "train", story="it stops")]
    ['it stops']
    """
    if name not in [row.name for row in rows]:
        raise ValueError(f"the table has no row {name!r}")
    return tuple(replace(row, **changes) if row.name == name else row for row in rows)
