"""A design of a checkpoint manager as it is searched: its table and invariants, its scopes, and what breaks them.

A variant is wrong in one row of the table. It keeps the search honest: the search has to find it, by the clause that is
about the mistake, with a shortest trace. A manager that does nothing can do nothing wrong, so it has to fail in another
way: there is a situation that it never reaches.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature, signature
from typing import Any, Generic, Protocol

from forge_spec.model.machine import Changes, Invariant, Machine, Row, State, with_row


class Scope(Protocol):
    """How far a search goes."""

    @property
    def settings(self) -> tuple[Any, ...]:
        """Every configuration; each is searched by itself."""
        ...


@dataclass(frozen=True)
class Variant:
    """One changed row, the clause that it breaks, and the scope to search if it is not the small one.

    With `is_lazy` no state is wrong, but the situation of that clause never arises.
    """

    name: str
    mistake: str
    row: str
    change: Mapping[str, Any]
    breaks: str
    scope: Scope | None = None
    is_lazy: bool = False


def does(effect: Callable[..., Changes | None], sentence: str = "") -> Mapping[str, Any]:
    """Return what changes in the row; without a new sentence the old one still describes it."""
    return {"effect": effect, "sentence": sentence} if sentence else {"effect": effect}


def also(effect: Callable[..., Changes | None], more: Callable[..., Changes], sentence: str = "") -> Mapping[str, Any]:
    """Return the effect together with what `more` changes; a parameter `changes` of it is what the effect changes."""

    def both(fields: Mapping[str, Any]) -> Changes | None:
        changes = _applied(effect, fields)
        return None if changes is None else {**changes, **_applied(more, {**fields, "changes": changes})}

    return does(_reading(both, effect, more), sentence)


def unless(effect: Callable[..., Changes | None], is_refused: Callable[..., bool]) -> Mapping[str, Any]:
    """Return the effect, which can't be taken where `is_refused` holds."""

    def refusing(fields: Mapping[str, Any]) -> Changes | None:
        return None if _applied(is_refused, fields) else _applied(effect, fields)

    return does(_reading(refusing, effect, is_refused))


def seeing(effect: Callable[..., Changes | None], **instead: Callable[[Any], Any]) -> Mapping[str, Any]:
    """Return the effect where it reads something else instead of these fields and constants."""

    def mistaken(fields: Mapping[str, Any]) -> Changes | None:
        changes: Changes | None = _applied(
            effect, {**fields, **{name: other(fields[name]) for name, other in instead.items()}}
        )
        return changes

    return does(_reading(mistaken, effect))


def _applied(function: Callable[..., Any], fields: Mapping[str, Any]) -> Any:
    return function(**{name: fields[name] for name in signature(function).parameters})


def _reading(function: Callable[[Mapping[str, Any]], Any], *parts: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with the parameters of all its parts, since a row reads nothing else."""
    names = dict.fromkeys(name for part in parts for name in signature(part).parameters if name != "changes")

    def read(**fields: Any) -> Any:
        return function(fields)

    parameters = [Parameter(name, Parameter.KEYWORD_ONLY) for name in names]
    read.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # read by `Reading`
    return read


@dataclass(frozen=True)
class Design(Generic[State]):
    """Everything that a search needs to know. `start`, `constants` and `ranges` are those of a `Machine`."""

    name: str
    room: str
    """What the names of its modules begin with."""
    table: tuple[Row, ...]
    invariants: tuple[Invariant, ...]
    scopes: Mapping[str, Scope]
    """`full` takes minutes at most, and `small` seconds."""
    variants: tuple[Variant, ...]
    start: Callable[[Any], State]
    constants: Callable[[Any, Any], Mapping[str, Any]]
    ranges: Callable[[Any], Mapping[str, Sequence[int]]]
    is_idle: Callable[..., bool]

    def machine(self, scope: Scope, setting: Any, table: Sequence[Row] | None = None) -> Machine[State]:
        """Return the manager in one setting, with nothing saved yet and no process running."""
        rows = self.table if table is None else table
        constants, ranges = self.constants(scope, setting), self.ranges(scope)
        return Machine(self.start(scope), rows, self.invariants, constants, ranges, self.is_idle)

    def table_of(self, variant: Variant) -> tuple[Row, ...]:
        """Return the table with the row of a variant changed."""
        return with_row(self.table, variant.row, **variant.change)

    def scope_of(self, variant: Variant) -> Scope:
        """Return the scope in which a variant is searched."""
        return variant.scope or self.scopes["small"]
