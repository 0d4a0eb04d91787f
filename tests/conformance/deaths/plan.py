"""Which drills there are for a manager, and what comes of each: deaths, failing calls, and deaths in a row."""

import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from forge_conformance.deaths import failures
from forge_conformance.deaths.chain import Chain
from forge_conformance.deaths.drills import (
    SITUATIONS,
    Drill,
    Drilled,
    PreparedSituation,
    Tried,
    ends_of_bursts,
    spread,
    tally,
    team_of,
)
from forge_conformance.deaths.full import POINTS, FullDisk, small_disk
from forge_conformance.deaths.kinds import DEATHS
from forge_conformance.deaths.loads import Loads
from forge_conformance.judging.judge import CannotJudge
from forge_conformance.runs.process import is_block
from forge_conformance.runs.workplace import Place

DEATHS_TIER, ERRORS_TIER = "deaths", "errors"
_IN_A_ROW = 100
_RANKS = 2
_ERRORS_SAY = "a call fails, and every later call with the same cause, until the save has ended"
_LOADS_SAY = "a resume meets a call that fails once, or a path that may not be read"
_FULL_SAYS = "the disk is really full, and has room again afterwards"
_AGAIN_SAYS = "death after death over one folder, at random operations"


@dataclass(frozen=True)
class DrillSelection:
    """What of a drill is tried."""

    every: int = 0
    """Every so many operations; 0 leaves it to the kind of fault: a kill comes at all of them, a failure at all but
    the middle of bursts."""
    point: str = ""
    """Only this one."""
    in_a_row: int = _IN_A_ROW


def drills(
    tiers: Sequence[str], situations: Sequence[str], modes: Sequence[str], capabilities: frozenset[str]
) -> Iterator[Drill]:
    """All drills of these tiers that suit a manager with these capabilities."""
    for situation in [name for name in SITUATIONS if name in situations]:
        for mode in modes:
            if DEATHS_TIER in tiers:
                yield from _deaths(situation, mode, capabilities)
            if ERRORS_TIER in tiers:
                yield Drill(ERRORS_TIER, "fail", situation, mode)
                if mode == modes[0] and situation != "resave":  # neither changes what a resume reads
                    yield Drill(ERRORS_TIER, "load", situation, mode)
                if situation == "steady":
                    yield Drill(ERRORS_TIER, "full", situation, mode)


def _deaths(situation: str, mode: str, capabilities: frozenset[str]) -> Iterator[Drill]:
    ranks = (1, _RANKS) if "distributed" in capabilities and situation == "steady" else (1,)
    found = [Drill(DEATHS_TIER, name, situation, mode, count) for count in ranks for name in DEATHS]
    yield from (drill for drill in found if DEATHS[drill.kind].suits(drill))
    if situation == "steady":
        yield Drill(DEATHS_TIER, "again", situation, mode)


def drilled(drill: Drill, place: Place, selection: DrillSelection) -> Drilled:
    """What came of a drill; refused with a reason where it can't be gone through."""
    run = {"fail": _fail, "load": _load, "full": _full, "again": _again}.get(drill.kind, _die)
    try:
        return run(drill, place, selection)
    except CannotJudge as reason:
        return Drilled(drill, says(drill), refusal=str(reason), is_blocked=is_block(reason))


def says(drill: Drill) -> str:
    """What happens in a drill, in words."""
    said = {"fail": _ERRORS_SAY, "load": _LOADS_SAY, "full": _FULL_SAYS, "again": _AGAIN_SAYS}
    return said.get(drill.kind) or DEATHS[drill.kind].says


def _has_limit(place: Place) -> bool:
    return "retention" in place.server.implementation.capabilities


def _tally(
    prepared: PreparedSituation,
    selection: DrillSelection,
    names: Sequence[str],
    attempt: Callable[[str], Tried],
    chosen: Sequence[str],
) -> Drilled:
    if selection.point and selection.point not in names:
        raise CannotJudge(
            f"There is no point {selection.point}; those of this drill go from {names[0]} to {names[-1]}."
        )
    points = [selection.point] if selection.point else chosen
    left_out = 0 if selection.point else len(names) - len(points)
    return tally(prepared.drill, says(prepared.drill), points, attempt, left_out, prepared.changed)


def _die(drill: Drill, place: Place, selection: DrillSelection) -> Drilled:
    death = DEATHS[drill.kind]
    prepared = PreparedSituation(team_of(place, drill.ranks), drill, _has_limit(place))
    numbers = death.numbers(prepared)
    if not numbers:
        raise CannotJudge("Nothing of a save is done in the background, so no process can end meanwhile.")
    every = selection.every or (-(-len(numbers) // death.most) if death.most else 1)
    points = {f"{drill.name}/{number}": number for number in numbers}
    chosen = [f"{drill.name}/{numbers[at - 1]}" for at in spread(len(numbers), every)]
    found = _tally(prepared, selection, list(points), lambda name: death.dies(prepared, points[name]), chosen)
    return replace(found, outside=prepared.outside)


def _fail(drill: Drill, place: Place, selection: DrillSelection) -> Drilled:
    prepared = PreparedSituation(team_of(place, 1), drill, _has_limit(place))
    points = {
        f"{drill.name}/{number}/{errno.errorcode[error]}": (number, error)
        for number, operation in enumerate(prepared.operations, start=1)
        for error in failures.MAY_FAIL.get(operation.name, ())
    }
    names = list(points)
    every = (
        range(1, len(prepared.operations) + 1, selection.every)
        if selection.every
        else ends_of_bursts(prepared.operations)
    )
    chosen = [name for name in names if points[name][0] in every]
    found = _tally(prepared, selection, names, lambda name: failures.fail(prepared, *points[name]), chosen)
    return replace(found, outside=prepared.outside)


def _load(drill: Drill, place: Place, selection: DrillSelection) -> Drilled:
    prepared = PreparedSituation(team_of(place, 1), drill, _has_limit(place), is_watched=False)
    loads = Loads(prepared)
    obstacles = {
        f"{drill.name}/{number}/{errno.errorcode[one.error]}": one
        for number, one in enumerate(loads.obstacles(), start=1)
    }
    names = list(obstacles)
    every = range(1, len(names) + 1, selection.every) if selection.every else loads.ends_of_bursts()
    chosen = [names[number - 1] for number in every]
    return _tally(prepared, selection, names, lambda name: loads.meet(obstacles[name]), chosen)


def _full(drill: Drill, place: Place, selection: DrillSelection) -> Drilled:
    with small_disk(place) as team:
        disk = FullDisk(team, drill, _has_limit(place))
        points = {f"{drill.name}/{number}": number for number in range(1, POINTS + 1)}
        chosen = [f"{drill.name}/{number}" for number in spread(POINTS, selection.every or 1)]
        return _tally(disk.prepared, selection, list(points), lambda name: disk.fill(points[name]), chosen)


def _again(drill: Drill, place: Place, selection: DrillSelection) -> Drilled:
    """To come to one death again, all those before it are died first."""
    prepared = PreparedSituation(team_of(place, 1), drill, _has_limit(place))
    chain = Chain(prepared)
    points = {f"{drill.name}/{number}": number for number in range(1, selection.in_a_row + 1)}
    until = points.get(selection.point, len(points))
    names = list(points)[:until]
    return tally(drill, says(drill), names, lambda name: chain.die(points[name]), 0, prepared.changed)
