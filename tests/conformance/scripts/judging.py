"""A script judged: prepared, restarted from every disk of each kind of death, and what is bad explained."""

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from forge_conformance.disks.states import KILL
from forge_conformance.scripts import lost_rank, side_by_side, signals
from forge_conformance.scripts.explorer import Bad, Exploration, Explored, Required, cause_of
from forge_conformance.scripts.preparation import Prepared
from forge_conformance.scripts.replay import script
from forge_conformance.scripts.restarts import Restarter
from forge_conformance.scripts.result import Found, Result, clause_of
from forge_conformance.scripts.story import tell
from forge_spec.disk import STORAGES


@dataclass(frozen=True)
class Effort:
    """How much an exploration may take."""

    coalesce: bool = True
    """Whether the middle of bursts of writes is left out."""
    seconds: float = 600
    """For each kind of death."""
    grace_s: float = 30
    """How long a script may go on after a signal."""
    at_once: int = 1
    """Kinds of death that are explored at the same time."""


def explore(
    prepared: Prepared,
    deaths: Sequence[str],
    effort: Effort,
    says: Callable[[Explored], None] = lambda one: None,
    tells: Callable[[str], None] = lambda line: None,
) -> Result:
    """Restart from every disk that these kinds of death can leave: kills, which come first, storages and signals.

    An interrupt ends it; what was found out before is in the result. `says` is called with each kind of death that is
    explored, `tells` with a line for each new way to go wrong.
    """
    begun = time.monotonic()
    restarter = Restarter(prepared.stage, prepared.form, prepared.whole, prepared.silence_s, prepared.result)
    exploration = Exploration(
        prepared.line,
        prepared.whole,
        restarter,
        Required(prepared.line),
        coalesce=effort.coalesce,
        has_results=bool(prepared.whole.result),
        tells=tells,
    )
    explored: list[Explored] = []
    interrupted = ""
    try:
        for one in _each(exploration, prepared, deaths, effort):
            explored.append(one)
            says(one)
        if exploration.is_interrupted:
            interrupted = f"after {len(explored) - 1} of {len(deaths)} kinds of death"
    except KeyboardInterrupt:
        if not explored:
            raise
        interrupted = f"after {len(explored)} of {len(deaths)} kinds of death"
    command = shlex.join(prepared.stage.command.first)
    explored.sort(key=lambda one: list(deaths).index(one.storage))
    found = tuple(_found(prepared, explored, command))
    return Result(prepared, command, tuple(explored), found, time.monotonic() - begun, interrupted)


def _each(exploration: Exploration, prepared: Prepared, deaths: Sequence[str], effort: Effort) -> Iterator[Explored]:
    def under(name: str) -> Explored:
        exploration.deadline = time.monotonic() + effort.seconds
        if name in signals.SIGNALS:
            return signals.under(exploration, prepared, name, effort.grace_s)
        if name == lost_rank.LOST_RANK:
            return lost_rank.under(exploration, prepared, effort.grace_s)
        return exploration.under(STORAGES.get(name))

    first, *others = deaths
    yield under(first)
    if exploration.is_interrupted:
        return
    if effort.at_once > 1 and len(others) > 1 and side_by_side.is_possible():
        yield from side_by_side.explore(prepared.stage, others, effort.at_once, under)
    else:
        for name in others:
            if not exploration.is_interrupted:
                yield under(name)


def _found(prepared: Prepared, explored: Sequence[Explored], command: str) -> Iterator[Found]:
    """Each cause once, with the example of the first kind of death that shows it.

    What a kill shows as well is not the fault of a signal.
    """
    causes: dict[tuple[str, ...], list[Bad]] = {}
    for one in explored:
        for bad in one.bad:
            cause = cause_of(bad.verdict)
            of_kills = (clause_of(replace(bad, storage=KILL)), *cause)
            key = of_kills if one.storage in signals.SIGNALS and of_kills in causes else (clause_of(bad), *cause)
            causes.setdefault(key, []).append(bad)
    for number, same in enumerate(causes.values(), start=1):
        text = tell(same[0], prepared.recorded, command, clause_of(same[0]))
        deaths = {bad.storage: bad.states for bad in same}
        yield Found(number, same[0], deaths, text, script(same[0], prepared, text))
