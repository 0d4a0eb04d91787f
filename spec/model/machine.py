"""A protocol as a table of rows, in a form in which all of its states can be visited.

A state is a tuple of named fields. A row says for which values of some fields it can be taken (`when`) and what it
changes (`effect`): a function whose parameters name the fields that it reads. Because it reads nothing else, its result
is computed once for each combination of these fields and then looked up. So rows can be written to be read, and the
search is still fast.

Invariant: a state and its packed form, one integer with some bits for each field, determine each other. No other module
knows the packed form.
"""

import inspect
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

State = TypeVar("State", bound=tuple[Any, ...])

Changes = Mapping[str, Hashable]
"""Fields and their new values."""

BITS = 12
"""For the values of one field, which are numbered in the order in which they occur."""


HANG = "hang"
"""In place of a slug, where a call that has begun can neither go on nor return."""


@dataclass(frozen=True)
class Row:
    """One thing that can happen.

    `effect` returns what changes, or None where the row can't be taken. Its parameters are fields, constants of the
    machine, or the name in `each`. With `each` the table has one such row for each value in that range. `sentence`
    describes the row, with the fields before it, the fields after it as `{new.field}`, and the value of `each`, also as
    an index. An `external` row is an action of the caller or a fault, which may happen or not; all others are actions
    of the protocol.
    """

    name: str
    when: Mapping[str, Collection[Hashable]]
    effect: Callable[..., Changes | None]
    sentence: str
    each: str = ""
    external: bool = False


@dataclass(frozen=True)
class Invariant:
    """What has to hold in every state, and `situation`, the situation that has to arise in one.

    Both are functions of fields and constants, as a row's effect is. `clause` is the slug of the clause that this
    formalises.
    """

    clause: str
    sentence: str
    holds: Callable[..., bool]
    situation: Callable[..., bool]


@dataclass(frozen=True)
class Label:
    """One row as it was taken: its name, and the value of `each`."""

    row: str
    each: int | None = None

    def __str__(self) -> str:
        return self.row if self.each is None else f"{self.row} {self.each}"


@dataclass(frozen=True)
class _Field:
    """The numbers of one field's values, and their position in the packed state."""

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
    """The results of a function of some fields, by their packed values: `reading[state & reading.mask]`."""

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
        """Return what is kept of the function's result."""
        return value


Check = tuple[int, Reading, Invariant]
"""The mask of the fields that an invariant reads, whether it holds for their values, and the invariant."""

Move = tuple[int, int, tuple[Check, ...]]
"""The mask of the fields that stay, the values of those that change, and the invariants that read one of these."""


class Rule(Reading):
    """One row of the table for one value of its `each`: a `Move` where it can be taken, else None."""

    def __init__(self, row: Row, each: int | None, machine: "Machine[Any]") -> None:
        own = {} if each is None else {row.each: each}
        super().__init__(row.effect, machine.fields, {**machine.constants, **own})
        self.row = row
        self.label = Label(row.name, each)
        self.own = own
        self.is_external = row.external
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
    """A table, its invariants, and the constants of one setting, ready to be searched."""

    def __init__(
        self,
        start: State,
        rows: Sequence[Row],
        invariants: Sequence[Invariant],
        constants: Mapping[str, Any],
        ranges: Mapping[str, Sequence[int]],
        is_idle: Callable[..., bool],
    ) -> None:
        """`start` is a named tuple; `ranges` has the values for each name that a row's `each` may have.

        `is_idle` says in which states no row of the protocol needs to be possible; elsewhere that is a hang.
        """
        self._shape = type(start)
        names: tuple[str, ...] = getattr(start, "_fields")  # noqa: B009  # a tuple to mypy, named to us
        self.fields = {name: _Field(name, BITS * place) for place, name in enumerate(names)}
        self.mask = (1 << BITS * len(names)) - 1
        self.constants = dict(constants)
        self.invariants = tuple(invariants)
        self.checks = tuple(self._check(invariant, invariant.holds) for invariant in invariants)
        self.situations = tuple(self._check(invariant, invariant.situation) for invariant in invariants)
        self.rules = tuple(
            Rule(row, each, self)
            for row in sorted(rows, key=lambda row: row.external)
            for each in (ranges[row.each] if row.each else (None,))
        )
        self.is_idle = Reading(is_idle, self.fields, self.constants)
        self.start = self.pack(start)
        control = {name for row in rows for name in row.when}
        self.control = sum(self.fields[name].mask for name in control)
        self.rules_at = _RulesAt(self)

    def _check(self, invariant: Invariant, predicate: Callable[..., bool]) -> Check:
        reading = Reading(predicate, self.fields, self.constants)
        return reading.mask, reading, invariant

    def pack(self, state: State) -> int:
        """Return the state as one integer."""
        return sum(place.pack(value) for place, value in zip(self.fields.values(), state, strict=True))

    def unpack(self, packed: int) -> State:
        """Return the state of a packed form."""
        return self._shape(*(place.unpack(packed) for place in self.fields.values()))

    def moves(self, packed: int) -> Iterator[tuple[Rule, int]]:
        """Each rule that can be taken in a state, and the state it leads to."""
        for mask, rule in self.rules_at[packed & self.control]:
            move = rule[packed & mask]
            if move is not None:
                yield rule, packed & move[0] | move[1]

    def is_stuck(self, packed: int) -> bool:
        """Return whether no row of the protocol can be taken, but only external ones, if any."""
        for mask, rule in self.rules_at[packed & self.control]:
            if not rule.is_external and rule[packed & mask] is not None:
                return False
        return True

    def sentence(self, rule: Rule, before: int, after: int) -> str:
        """Return the rule's sentence about one of its moves."""
        old, new = self.unpack(before), self.unpack(after)
        fields = dict(zip(self.fields, old, strict=True))
        sentence = rule.row.sentence
        for name, value in rule.own.items():
            sentence = sentence.replace(f"[{name}]", f"[{value}]")
        return sentence.format(**fields, **rule.own, **self.constants, new=new)


class _RulesAt(dict[int, tuple[tuple[int, Rule], ...]]):
    """Each rule whose `when` holds, with the mask that it reads, by the values of all fields that a `when` has."""

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
    """Return the table with one row changed; `ValueError` if it has no row of that name.

    >>> row = Row("train", {}, lambda now: {"now": now + 1}, "training goes on")
    >>> [changed.sentence for changed in with_row([row], "train", sentence="it stops")]
    ['it stops']
    """
    if name not in [row.name for row in rows]:
        raise ValueError(f"the table has no row {name!r}")
    return tuple(replace(row, **changes) if row.name == name else row for row in rows)
