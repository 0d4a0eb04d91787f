"""What came of a script: what was explored, what is bad and for which cause, and which clause each cause is about."""

from dataclasses import dataclass

from forge_conformance.judging.text import counted
from forge_conformance.scripts.explorer import Bad, Explored
from forge_conformance.scripts.preparation import Prepared
from forge_conformance.scripts.signals import SIGNALS
from forge_spec import BY_SLUG
from forge_spec.clauses import Level

_OF_KILLS = {
    "refused": "script.starts",
    "hung": "script.starts",
    "scratch": "script.keeps-work",
    "lost": "script.keeps-work",
    "skipped": "script.same-run",
    "short": "script.same-run",
    "diverged": "script.same-run",
    "stuck": "script.goes-on",
}
_OF_POWER = {"scratch": "script.acknowledged", "lost": "script.acknowledged"}


@dataclass(frozen=True)
class Found:
    """A cause of failures, with its simplest example."""

    number: int
    bad: Bad
    deaths: dict[str, int]
    """How many deaths of each kind come out so."""
    text: str
    replay: str
    replayed: str = ""
    """The verdict that the replay script came to by itself; "" if it was not run."""

    @property
    def clause(self) -> str:
        """The clause that it is about."""
        return clause_of(self.bad)

    @property
    def counts(self) -> str:
        """The kinds of death with their numbers, in words."""
        (kind, number), *others = self.deaths.items()
        return ", ".join([f"{counted(number, 'death')} by {kind}", *(f"{n:,} by {name}" for name, n in others)])

    @property
    def level(self) -> Level:
        """The level of that clause."""
        return BY_SLUG[self.clause].level

    @property
    def name(self) -> str:
        """The name of its replay script."""
        return f"replay-{self.number}.py"


@dataclass(frozen=True)
class Result:
    """Everything about one script."""

    prepared: Prepared
    command: str
    """As the user wrote it."""
    explored: tuple[Explored, ...]
    found: tuple[Found, ...]
    seconds: float
    interrupted: str = ""
    """When it was, in words; "" if it came to its end."""

    @property
    def disks(self) -> int:
        """Distinct disks; one that several kinds of death leave counts once."""
        return len(frozenset[bytes]().union(*(one.disks for one in self.explored)))

    @property
    def bad_disks(self) -> int:
        """Those of them that had a bad verdict after some kind of death."""
        return len(frozenset[bytes]().union(*(one.bad_disks for one in self.explored)))


def clause_of(bad: Bad) -> str:
    """The clause that a bad verdict is about."""
    word = bad.verdict.word
    if bad.storage in SIGNALS:
        return "script.signal"
    if bad.state.is_power_cut:
        return _OF_POWER.get(word, "script.power-loss")
    return _OF_KILLS[word]
