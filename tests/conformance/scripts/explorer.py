"""Visits every distinct disk that a death of a script can leave, restarts from it, and judges what the restart does.

What a restart has to bring back is not known from any manager: a restart after an earlier death shows it.  If that one
left out so many progress lines, then no restart after a later death may repeat them (`Required`).  After a loss of
power this holds for what was acknowledged; see `Timeline.acknowledged`.

Invariants: equal disks are restarted from once; disks that are equal in everything that a restart read share its
outcome, and some of these are really tried as well (`Totals.confirmed`): if one comes out otherwise, that is said.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from forge_conformance.disks.states import KILL, Identity, State, States
from forge_conformance.disks.story import disk_of, shrink
from forge_conformance.judging.text import counted, shortened
from forge_conformance.scripts.judge import Task, Undisturbed, Verdict, judge
from forge_conformance.scripts.progress import timeless
from forge_conformance.scripts.recording import Timeline
from forge_conformance.scripts.restarts import Outcome, Restarter
from forge_conformance.watch.facts import Memory
from forge_conformance.watch.trace import Disk
from forge_spec.disk import Storage
from forge_spec.script import required

_SHOWN_LINES = 5
_USE = "to use what the run had saved. A script that resumes only with a flag needs --resume COMMAND, with this flag"


@dataclass
class Totals:
    """What an exploration did."""

    states: int = 0
    """Ways to end that were looked at; many leave the same disk."""
    disks: int = 0
    """Distinct ones."""
    bad: int = 0
    """Distinct disks with at least one bad verdict."""
    restarts: int = 0
    """Disks that were really restarted from."""
    confirmed: int = 0
    """Shared outcomes that were really tried and came out the same."""
    left_out: int = 0
    """Pairs of lost changes that were not tried."""
    skipped: int = 0
    """Deaths that there was no time for, spread over those that come after half of the time."""
    seconds: float = 0


@dataclass(frozen=True)
class Bad:
    """A way in which restarts go wrong, with its simplest example."""

    storage: str
    state: State
    disk: Disk
    task: Task
    outcome: Outcome
    verdict: Verdict
    states: int = 1
    """How many ways to end came out so."""
    lost: str = ""
    """Which rank alone was killed, in words; "" if all were."""


@dataclass(frozen=True)
class Explored:
    """What came of one storage."""

    storage: str
    totals: Totals
    bad: tuple[Bad, ...]
    contradiction: str = ""
    """Why this can't be believed; "" if nothing speaks against it."""
    is_cut_short: bool = False
    """Whether there was no time for all of it."""
    reached: int = 0
    """The last place of a death that there was time for."""
    note: str = ""
    """What else was seen, in a sentence."""
    disks: frozenset[bytes] = frozenset()
    """The digests of the distinct disks; another kind of death may leave the same ones."""
    bad_disks: frozenset[bytes] = frozenset()
    """Those of them that had a bad verdict after this kind of death."""


@dataclass
class Required:
    """What restarts after earlier kills have left out: from which cut on so many progress lines may not be repeated."""

    line: Timeline
    _landings: list[tuple[int, int]] = field(default_factory=list)

    def learn(self, cut: int, landing: int) -> None:
        """A restart after a kill at this cut left out so many lines; cuts come in order."""
        if landing > (self._landings[-1][1] if self._landings else 0):
            self._landings.append((cut, landing))

    @property
    def most(self) -> int:
        """The most that any restart has left out."""
        return self._landings[-1][1] if self._landings else 0

    def after_kill(self, cut: int) -> int:
        """Lines that must not be repeated after a kill at this cut."""
        return required(self._landings, cut)

    def acknowledged(self, cut: int) -> int:
        """The same where only what was acknowledged counts, as after a loss of power."""
        ends = [at for at, _ in self._landings[1:]] + [len(self.line.trace.effects) + 1]
        known = zip(self._landings, ends, strict=False)
        return required([(self.line.acknowledged(at, end) - 1, landing) for (at, landing), end in known], cut)


@dataclass
class Exploration:
    """One recording, and what has been learnt of its disks."""

    line: Timeline
    whole: Undisturbed
    restarter: Restarter
    required: Required
    coalesce: bool = True
    deadline: float = float("inf")
    """When to stop, by the monotonic clock."""
    memories: dict[tuple[int, bool], Memory[Outcome]] = field(default_factory=dict)
    """Outcomes by the goal that they were tried for, since a start that is stopped earlier has read less; and by
    whether there were files, which decides about the command."""
    met: dict[Identity, Outcome] = field(default_factory=dict)
    interned: dict[tuple[str, str, bytes], int] = field(default_factory=dict)
    has_results: bool = False
    tells: Callable[[str], None] = lambda line: None
    """Called with each new way to go wrong, as soon as it is seen."""
    is_interrupted: bool = False
    """Whether the user has ended it; then there is a result of what was tried."""
    _shared: int = 0
    _next_sample: int = 1

    def under(self, storage: Storage | None) -> Explored:
        """All disks of one storage; None for kills alone, which has to come first."""
        return _Walk(self, storage).explore()

    def task(self, cut: int, is_power_cut: bool) -> Task:
        """What a restart after this death has to do."""
        least = self.required.acknowledged(cut) if is_power_cut else self.required.after_kill(cut)
        goal = len(self.whole.lines) + 1 if self.has_results else self.line.goal(cut)
        return Task(self.line.reached(cut), least, goal)

    def outcome(self, identity: Identity, disk: Disk, goal: int, totals: Totals) -> tuple[Outcome, str]:
        """What comes of a disk, from memory or tried now; and a contradiction, if there is one."""
        known = self.met.get(identity)
        if known is not None and known.is_enough(goal):
            return known, ""
        holds_files = any(node.kind != "d" for node in disk.nodes.values())
        found = (memory.find(disk) for (_, same), memory in self.memories.items() if same == holds_files)
        shared = next((one for one in found if one is not None and one.is_enough(goal)), None)
        if shared is not None:
            self.met[identity] = shared
            return shared, self._confirmed(disk, goal, shared, totals) if self._is_sampled() else ""
        totals.restarts += 1
        outcome, facts = self.restarter.attempt(disk, goal)
        self.memories.setdefault((goal, holds_files), Memory()).learn(disk, facts, outcome)
        self.met[identity] = outcome
        return outcome, ""

    def _is_sampled(self) -> bool:
        """The 1st, 3rd, 9th and so on."""
        self._shared += 1
        while self._next_sample < self._shared:
            self._next_sample *= 3
        return self._next_sample == self._shared

    def _confirmed(self, disk: Disk, goal: int, shared: Outcome, totals: Totals) -> str:
        tried, _ = self.restarter.attempt(disk, goal)
        if _essence(tried, goal) == _essence(shared, goal):
            totals.confirmed += 1
            return ""
        return (
            f"two disks look equal to a restart, and came out differently: {_essence(shared, goal)} and "
            f"{_essence(tried, goal)}. What the script does depends on something other than its folder, or on chance."
        )


def _essence(outcome: Outcome, goal: int) -> tuple[object, ...]:
    last = outcome.last
    return (len(outcome.starts), last.landing, last.wrong, last.is_hung, last.has_failed, last.at >= goal)


class _Walk:
    def __init__(self, exploration: Exploration, storage: Storage | None) -> None:
        self._all = exploration
        self._storage = storage
        self._totals = Totals()
        self._bad: dict[tuple[str, ...], Bad] = {}
        self._bad_disks: set[Identity] = set()
        self._known: dict[Identity, bytes] = {}
        self._contradiction = ""
        self._comes_back = False
        self._landings = dict[int, int]()
        """By the lines that were printed before a death: how many a restart left out, after the last such death."""
        self._reached = 0

    def explore(self) -> Explored:
        begun = time.monotonic()
        states = States(self._all.line.trace, self._storage, self._all.coalesce, self._all.interned)
        try:
            is_cut_short = self._walk(states)
        except KeyboardInterrupt:
            self._all.is_interrupted = is_cut_short = True
            self._all.deadline = 0  # there is no time for the simplest examples either
        if self._storage is None and not is_cut_short:
            self._blame_if_never_used(states)
        totals = self._totals
        totals.disks, totals.bad, totals.left_out = len(self._known), len(self._bad_disks), states.counts.left_out
        name = KILL if self._storage is None else self._storage.name
        bad = tuple(self._explained())
        totals.seconds = time.monotonic() - begun
        bad_disks = frozenset(self._known[identity] for identity in self._bad_disks)
        disks = frozenset(self._known.values())
        note = self._landed(not is_cut_short) if self._storage is None else ""
        return Explored(name, totals, bad, self._contradiction, is_cut_short, self._reached, note, disks, bad_disks)

    def _landed(self, is_whole: bool) -> str:
        """After which lines restarts went on; where all deaths were tried, also which saves none went on from."""
        landings = sorted(set(self._landings.values()) - {0})
        if not landings:
            return ""
        unused = self._unused() if is_whole else []
        said = f" UNUSED: no restart went on from the saves after: {self._lines(unused)}." if unused else ""
        return f"Restarts went on after: {self._lines(landings)}.{said}"

    def _unused(self) -> list[int]:
        """Saves by the lines before them: they do all that a save has done which restarts go on from, and none does."""
        line = self._all.line
        saves = [lines for lines in sorted(self._landings) if lines - 1 in self._landings and line.operations_of(lines)]
        used = [lines for lines in saves if self._landings[lines] > self._landings[lines - 1]]
        return [
            lines
            for lines in saves
            if self._landings[lines] == self._landings[lines - 1] < lines
            and any(line.operations_of(one) <= line.operations_of(lines) for one in used)
        ]

    def _lines(self, numbers: Sequence[int]) -> str:
        texts = [shortened(timeless(self._all.whole.lines[number - 1].text), 60) for number in numbers]
        more = [f"and {counted(len(texts) - _SHOWN_LINES, 'more line')}"] if len(texts) > _SHOWN_LINES else []
        return "; ".join([*texts[:_SHOWN_LINES], *more])

    def _walk(self, states: States) -> bool:
        """Visit all; where the time is short, some of those after half of it, up to the last. Whether any was not."""
        begun = time.monotonic()
        half = begun + (self._all.deadline - begun) / 2
        middle, end = 0, len(self._all.line.trace.effects)
        for state in states:
            now = time.monotonic()
            if now > self._all.deadline:
                return True
            if self._contradiction:
                break
            if now < half:
                middle = state.cut
            if self._storage is None or state.is_power_cut:
                if now >= half and is_late((now - half) / (self._all.deadline - half), middle, state.cut, end):
                    self._totals.skipped += 1
                    continue
                self._visit(states, state)
                self._reached = state.cut
        return self._totals.skipped > 0

    def _visit(self, states: States, state: State) -> None:
        self._totals.states += 1
        disk = states.disk(state)
        identity = states.identity(disk)
        if identity not in self._known:
            self._known[identity] = disk.digest
        task = self._all.task(state.cut, state.is_power_cut)
        outcome, contradiction = self._all.outcome(identity, disk, task.goal, self._totals)
        self._contradiction = self._contradiction or contradiction
        verdict = judge(self._all.whole, task, outcome.last)
        self._comes_back = self._comes_back or outcome.landing > 0 or not verdict.is_fine
        if verdict.is_fine:
            if self._storage is None:
                self._landings[task.reached] = outcome.landing
                self._all.required.learn(state.cut, outcome.landing)
            return
        self._bad_disks.add(identity)
        self._blame(Bad(KILL if self._storage is None else self._storage.name, state, disk, task, outcome, verdict))

    def _blame_if_never_used(self, states: States) -> None:
        """No restart ever left anything out: then none of them used what the run saved."""
        if self._comes_back or not self._all.line.saves or not self._all.whole.lines:
            return
        end = State(len(self._all.line.trace.effects))
        states.walk_to(end.cut)
        disk = states.disk(end)
        task = replace(self._all.task(end.cut, is_power_cut=False), least=1)
        outcome, _ = self._all.outcome(states.identity(disk), disk, task.goal, self._totals)
        verdict = judge(self._all.whole, task, outcome.last)
        if not verdict.is_fine:
            verdict = replace(verdict, expected=_USE)
            self._known.setdefault(states.identity(disk), disk.digest)
            self._bad_disks.add(states.identity(disk))
            self._blame(Bad(KILL, end, disk, task, outcome, verdict))

    def _blame(self, bad: Bad) -> None:
        key = cause_of(bad.verdict)
        found = self._bad.get(key)
        if found is None:
            self._all.tells(f"{bad.storage}, operation {bad.state.cut}: {bad.verdict.word}, {bad.verdict.seen}")
        kept = bad if found is None or bad.state.complexity < found.state.complexity else found
        self._bad[key] = replace(kept, states=1 if found is None else found.states + 1)

    def _explained(self) -> Iterator[Bad]:
        """Each with as few missing effects as it needs."""
        trace = self._all.line.trace
        for bad in self._bad.values():
            if self._storage is None or time.monotonic() > self._all.deadline:
                yield bad
                continue

            def is_bad(disk: Disk, bad: Bad = bad) -> bool:
                outcome, _ = self._all.restarter.attempt(disk, bad.task.goal)
                return judge(self._all.whole, bad.task, outcome.last).word == bad.verdict.word

            state = shrink(trace, self._storage, bad.state, is_bad)
            yield replace(bad, state=state, disk=disk_of(trace, self._storage, state))


class RealEnds:
    """What restarts make of what processes leave that really end at chosen places; each is restarted from once."""

    def __init__(self, exploration: Exploration, name: str) -> None:
        """`name` is how they end."""
        self._all = exploration
        self._name = name
        self._begun = time.monotonic()
        self._totals = Totals()
        self._bad: dict[tuple[str, ...], Bad] = {}
        self._disks: set[bytes] = set()
        self._bad_disks: set[bytes] = set()
        self._reached = 0
        self.notes: dict[str, None] = {}
        """What else was seen, each sentence once."""

    def restart(self, state: State, disk: Disk, task: Task, lost: str = "") -> None:
        """Restart from what an end at this place has left, and judge it."""
        self._totals.states += 1
        self._totals.restarts += 1
        self._disks.add(disk.digest)
        self._reached = max(self._reached, state.cut)
        outcome, _ = self._all.restarter.attempt(disk, task.goal)
        verdict = judge(self._all.whole, task, outcome.last)
        if not verdict.is_fine:
            self._bad_disks.add(disk.digest)
            key = cause_of(verdict)
            first = self._bad.get(key, Bad(self._name, state, disk, task, outcome, verdict, states=0, lost=lost))
            self._bad[key] = replace(first, states=first.states + 1)

    def explored(self, is_cut_short: bool) -> Explored:
        """What came of all of them."""
        totals = self._totals
        totals.disks, totals.bad = len(self._disks), len(self._bad_disks)
        totals.seconds = time.monotonic() - self._begun
        return Explored(
            self._name,
            totals,
            tuple(self._bad.values()),
            is_cut_short=is_cut_short,
            reached=self._reached,
            note=" ".join(filter(None, self.notes)),
            disks=frozenset(self._disks),
            bad_disks=frozenset(self._bad_disks),
        )


def is_late(used: float, middle: int, cut: int, end: int) -> bool:
    """Whether more is used of the second half of the time than of the deaths that are left for it."""
    return used * max(1, end - middle) > cut - middle


def cause_of(verdict: Verdict) -> tuple[str, ...]:
    """What failures of one cause have in common: the verdict, and the error without its numbers and paths."""
    if verdict.word in ("refused", "stuck"):
        return (verdict.word, re.sub(r"0x[0-9a-f]+|[0-9]+", "N", verdict.seen.partition(": ")[2]))
    return (verdict.word,)
