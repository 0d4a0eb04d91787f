"""Takes a recording, visits every distinct disk that a death can leave of it, and judges each.

Invariants: equal disks are resumed from once, whatever storage leaves them; disks on which all facts that a
resume learns are equal share what came of it, and a sample of what was shared
is really tried as well (`Totals.confirmed`): if one ever comes out otherwise, the
exploration says so and is worth nothing.  A disk is judged anew wherever
another save has been acknowledged.
"""

import random
import re
import time
from dataclasses import dataclass, field, replace
from typing import Any

from forge_conformance.disks.recording import Recorded
from forge_conformance.disks.resumer import Resumer
from forge_conformance.disks.states import KILL, Identity, State, States
from forge_conformance.runs.landing import GoingOn, Landing
from forge_conformance.runs.verdict import Verdict, verdict_of
from forge_conformance.watch.facts import Memory
from forge_conformance.watch.trace import Disk
from forge_spec.disk import Mark, Storage
from forge_spec.durable import may_come_back

CONFIRMED_EVERY = 500
"""Of so many disks that share an outcome one is really tried, and the 1st, 3rd, 9th, 27th and so on besides."""


Outcome = tuple[Landing, GoingOn | None]
"""Where a resume came back, and what came of going on from there, if that was tried."""


@dataclass
class Totals:
    """What an exploration did."""

    states: int = 0
    """Ways to end that were looked at; many leave the same disk."""
    disks: int = 0
    """Distinct ones."""
    new: int = 0
    """Of these, the ones that no storage before had left."""
    bad: int = 0
    """Distinct disks with at least one bad verdict."""
    new_bad: int = 0
    """Of these, the ones that were good under every storage before."""
    resumes: int = 0
    """Processes that resumed; all other disks share what came of these."""
    went_on: int = 0
    """Disks from which the run was seen to go on, by itself or by what it shares."""
    confirmed: int = 0
    """Shared outcomes that were really tried and came out the same."""
    left_out: int = 0
    """Pairs of lost changes that were not tried."""
    seconds: float = 0

    def add(self, other: "Totals") -> None:
        """Sum up."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True)
class Bad:
    """A disk from which a resume does not come out as it must."""

    state: State
    verdict: Verdict
    states: int = 1
    """How many ways to end came out so."""


@dataclass(frozen=True)
class Explored:
    """What came of a recording under one storage."""

    recorded: Recorded
    storage: str
    totals: Totals
    bad: tuple[Bad, ...]
    cuts: dict[int, tuple[int, int]]
    """Per cut: disks first met there, and how many ways to end there are bad."""
    contradiction: str = ""
    """Why nothing of this can be believed; "" if nothing speaks against it."""
    is_cut_short: bool = False
    """Whether there was no time for all cuts."""


@dataclass
class Effort:
    """How much an exploration may take."""

    coalesce: bool = True
    goes_on: int = 60
    """Runs that go on after a resume, spread over the recording; each takes two more processes."""
    seconds: float = 600
    deaths_again: int = 2
    """Resumed runs that are recorded, to be killed in their turn."""

    @property
    def reduced(self) -> "Effort":
        """The same, with a quarter of the runs that go on: what is tried here was tried much like it before."""
        return replace(self, goes_on=-(-self.goes_on // 4))


@dataclass
class _Known:
    """What is known of one disk."""

    landing: Landing
    going_on: GoingOn | None
    is_bad: bool = False


class Explorer:
    """One storage (None: kills only); what is learnt on the way stays with the exploration."""

    def __init__(self, exploration: "Exploration", storage: Storage | None) -> None:
        self._all = exploration
        self._recorded = exploration.recorded
        self._storage = storage
        self._resumer = exploration.resumer
        self._effort = exploration.effort
        self._known: dict[Identity, _Known] = {}
        self._bad: dict[tuple[str, str, str], Bad] = {}
        self._random = random.Random(0)
        self._shared = 0
        self._next_sample = 1
        self._to_go_on = 0.0
        """Runs that may still go on from disks of the cuts so far; each cut has its share."""
        self.totals = Totals()
        self.cuts: dict[int, tuple[int, int]] = {}
        self.contradiction = ""

    def explore(self) -> Explored:
        """Visit them all, or as many as there is time for."""
        begun, before = time.perf_counter(), self._resumer.resumes
        states = States(self._recorded.trace, self._storage, self._effort.coalesce, self._all.interned)
        allowed: dict[int, frozenset[int | None]] = {}
        is_cut_short = False
        for state in states:
            if state.cut not in allowed:
                self._to_go_on += self._effort.goes_on / states.cuts
                allowed = {state.cut: allowed_after(self._recorded, state.cut)}
                is_cut_short = time.perf_counter() - begun > self._effort.seconds
                if is_cut_short or self.contradiction:
                    break
            self._visit(states, state, allowed[state.cut])
            self.totals.seconds = time.perf_counter() - begun
        self.totals.resumes = self._resumer.resumes - before
        self.totals.left_out = states.counts.left_out
        name = self._storage.name if self._storage else KILL
        bad = tuple(self._bad.values())
        return Explored(self._recorded, name, self.totals, bad, self.cuts, self.contradiction, is_cut_short)

    def _visit(self, states: States, state: State, allowed: frozenset[int | None]) -> None:
        disk = states.disk(state)
        identity = states.identity(disk)
        self.totals.states += 1
        known = self._known.get(identity)
        is_new = known is None
        if known is None:
            self.totals.disks += 1
            self.totals.new += identity not in self._all.met
            outcome = self._all.met[identity] = self._learn(identity, disk)
            known = self._known[identity] = _Known(*outcome)
            self.totals.went_on += known.going_on is not None
        is_hooked = self._recorded.is_hooked
        verdict = verdict_of(
            known.landing, known.going_on, allowed, self._recorded.saves, state.is_power_cut, is_hooked
        )
        is_bad = not verdict.is_good and (state.is_power_cut or self._storage is None)  # a kill is judged as a kill
        if is_bad:
            self._blame(state, verdict)
            self._count_bad(identity, known)
        met, bad = self.cuts.get(state.cut, (0, 0))
        self.cuts[state.cut] = (met + is_new, bad + is_bad)

    def _count_bad(self, identity: Identity, known: _Known) -> None:
        self.totals.bad += not known.is_bad
        self.totals.new_bad += identity not in self._all.blamed
        known.is_bad = True
        self._all.blamed.add(identity)

    def _blame(self, state: State, verdict: Verdict) -> None:
        key = (verdict.word, verdict.clause, re.sub(r"[0-9]+", "N", verdict.seen))
        found = self._bad.get(key)
        if found is None:
            self._bad[key] = Bad(state, verdict)
        else:
            is_simpler = state.complexity < found.state.complexity
            kept = Bad(state, verdict) if is_simpler else found
            self._bad[key] = replace(kept, states=found.states + 1)

    def _learn(self, identity: Identity, disk: Disk) -> Outcome:
        met = self._all.met.get(identity)
        if met is not None and self._is_enough(*met):
            return met
        landing, going_on = self._all.landings.find(disk), self._all.goings_on.find(disk)
        if landing is not None and self._is_enough(landing, going_on):
            if self._is_sampled():
                self._confirm(disk, landing, going_on)
            return landing, going_on
        return self._try(disk, landing)

    def _is_sampled(self) -> bool:
        self._shared += 1
        while self._next_sample < self._shared:
            self._next_sample *= 3
        return self._next_sample == self._shared or self._random.randrange(CONFIRMED_EVERY) == 0

    def _is_enough(self, landing: Landing, going_on: GoingOn | None) -> bool:
        return going_on is not None or not landing.is_alive or self._to_go_on <= 0

    def _try(self, disk: Disk, shared: Landing | None) -> Outcome:
        tried = self._resumer.attempt(disk, goes_on=self._to_go_on > 0)
        self._all.landings.learn(disk, tried.of_landing, tried.landing)
        if tried.going_on is not None:
            self._to_go_on -= 1
            self._all.goings_on.learn(disk, tried.of_going_on, tried.going_on)
        if shared is not None:
            self._compare(shared, tried.landing)
        return tried.landing, tried.going_on

    def _confirm(self, disk: Disk, landing: Landing, going_on: GoingOn | None) -> None:
        tried = self._resumer.attempt(disk, goes_on=going_on is not None)
        self._compare(landing, tried.landing)
        if going_on is not None:
            self._compare(going_on, tried.going_on)

    def _compare(self, shared: Any, tried: Any) -> None:
        if _apart_from_paths(shared) == _apart_from_paths(tried):
            self.totals.confirmed += 1
        else:
            self.contradiction = (
                f"two disks look equal to a resume, but came out differently: {shared} and then {tried}. What this "
                "manager resumes depends on something other than its folder, or on chance."
            )


def _apart_from_paths(outcome: Any) -> Any:
    """What has to be equal of an outcome; error texts may hold addresses and times."""
    if isinstance(outcome, Landing):
        return outcome.word, outcome.step, outcome.saves
    return bool(outcome.trouble) if isinstance(outcome, GoingOn) else outcome


def allowed_after(recorded: Recorded, cut: int) -> frozenset[int | None]:
    """Which saves may come back after a death there; None stands for a fresh start."""
    return may_come_back(effect for effect in recorded.trace.effects[:cut] if isinstance(effect, Mark))


@dataclass
class Exploration:
    """One recording under several storages, and what has been learnt of its disks under all of them."""

    recorded: Recorded
    resumer: Resumer
    effort: Effort
    landings: Memory[Landing] = field(default_factory=Memory)
    goings_on: Memory[GoingOn] = field(default_factory=Memory)
    met: dict[Identity, Outcome] = field(default_factory=dict)
    """What came of each disk so far."""
    blamed: set[Identity] = field(default_factory=set)
    """The bad ones among them."""
    interned: dict[tuple[str, str, bytes], int] = field(default_factory=dict)

    def under(self, storage: Storage | None) -> Explored:
        """All disks of one storage; None for kills alone."""
        return Explorer(self, storage).explore()

    def of(self, recorded: Recorded) -> "Exploration":
        """Another order of the same recording, or this one; what resumes depended on is the same."""
        return replace(self, recorded=recorded)

    def allowed(self, cut: int) -> frozenset[int | None]:
        """Which saves may come back after a death there."""
        return allowed_after(self.recorded, cut)

    def deaths(self, most: int) -> list[tuple[Disk, Landing]]:
        """Disks that a kill leaves and that a run can go on from, spread evenly over the recording."""
        found: list[tuple[Disk, Landing]] = []
        states = States(self.recorded.trace, None)
        everything = [(disk, self.landings.find(disk)) for disk in map(states.disk, states)]
        alive = [(disk, landing) for disk, landing in everything if landing is not None and landing.is_alive]
        for number in range(most):
            found += alive[len(alive) * (2 * number + 1) // (2 * most) :][:1]
        return found

    def outcome(self, disk: Disk, goes_on: bool) -> Outcome:
        """What comes of a disk, from memory or tried now."""
        landing, going_on = self.landings.find(disk), self.goings_on.find(disk)
        if landing is not None and (going_on is not None or not goes_on):
            return landing, going_on
        tried = self.resumer.attempt(disk, goes_on)
        return tried.landing, tried.going_on
