"""Faults on real processes: a fault meets a manager about to save, and what it leaves is judged.

A *drill* is one kind of fault in one situation and mode; a *point* is one
try of it, mostly at one file operation of the save.  Before each point the
folder is made what it was before the save, so that every point can be replayed
alone by its name: `--point kill/steady/async/1/17`.

After a death a fresh process resumes from each point.  Whether the run can go on from
there is tried where the folder's names are others than at the points before.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from forge_conformance.judging.judge import CannotJudge
from forge_conformance.judging.text import wrapped
from forge_conformance.runs.group import Shape
from forge_conformance.runs.landing import GoingOn, Ignored, Landing
from forge_conformance.runs.ledger import Ledger
from forge_conformance.runs.machine import disk_is_full
from forge_conformance.runs.process import ManagerFault, Unsupported
from forge_conformance.runs.team import Team, TeamLife
from forge_conformance.runs.verdict import WORDS, Verdict, seen_and_expected, verdict_of, without_death
from forge_conformance.runs.workplace import Place
from forge_conformance.watch.recorder import Control, Operation
from forge_conformance.watch.trace import Disk

_BEFORE, _LATER = 8, 3
"""Operations that a story shows around a fault."""


@dataclass(frozen=True)
class Situation:
    """What stood in the folder before the save, and which save it is."""

    name: str
    says: str
    before: tuple[int, ...]
    """The steps that were saved before."""
    trains_to: int
    saves: int
    """The step that is saved; another than the run's own where a step is saved again."""


SITUATIONS: Mapping[str, Situation] = {
    situation.name: situation
    for situation in (
        Situation("first-save", "the first save ever, into an empty folder", (), 2, 2),
        Situation("steady", "a save of step 6 with a limit of two, after steps 2 and 4", (2, 4), 6, 6),
        Situation("resave", "step 4 is saved again with another state", (2, 4), 5, 4),
    )
}
"""Every situation under its name; the names are those of scenarios."""


@dataclass(frozen=True)
class Drill:
    """One kind of fault in one situation and mode, on so many ranks."""

    tier: str
    kind: str
    situation: str
    mode: str
    ranks: int = 1

    @property
    def name(self) -> str:
        """The beginning of its points' names."""
        return f"{self.kind}/{self.situation}/{self.mode}/{self.ranks}"


@dataclass(frozen=True)
class Bad:
    """A way in which points of a drill are bad, with its first example."""

    point: str
    verdict: Verdict
    text: str
    points: int = 1


@dataclass(frozen=True)
class Drilled:
    """What came of a drill."""

    drill: Drill
    says: str
    points: int = 0
    went_on: int = 0
    seconds: float = 0
    bad: tuple[Bad, ...] = ()
    left_out: int = 0
    """Points that were not tried because of `--every`."""
    not_possible: int = 0
    """Points at which the fault could not be brought about."""
    outside: tuple[str, ...] = ()
    """Files beside the folder that a save opened for writing."""
    refusal: str = ""
    """Why nothing could be tried; "" if something was."""
    is_blocked: bool = False
    """Whether the reason is a call that never returned."""
    error: str = ""
    """The traceback of an error of the suite; "" if there was none."""


@dataclass(frozen=True)
class Tried:
    """What came of a point: a verdict, or None if the fault could not be brought about there."""

    verdict: Verdict | None
    happened: str = ""
    """What the fault was, in words."""
    operations: tuple[str, ...] = ()
    """What the save did, in order, from its beginning."""
    at: int = 0
    """The number of the operation before which the fault came; 0 where it came with no operation."""
    left: Disk | None = None
    """The folder as a resume found it."""
    went_on: bool = False


def tally(
    drill: Drill,
    says: str,
    names: Sequence[str],
    attempt: Callable[[str], Tried],
    left_out: int,
    changed: Sequence[Verdict] = (),
) -> Drilled:
    """Try these points, and count what came of them; `changed` is what is wrong with the state without any fault."""
    begun = time.perf_counter()
    found_before = "a process resumes after the save, to which nothing has happened"
    bad: dict[tuple[str, str], Bad] = {
        (one.word, one.clause): Bad(names[0], one, _story(drill, says, names[0], Tried(one, found_before), one))
        for one in changed
    }
    not_possible = went_on = 0
    for name in names:
        tried = attempt(name)
        went_on += tried.went_on
        if tried.verdict is None:
            not_possible += 1
        elif not tried.verdict.is_good:
            key = (tried.verdict.word, tried.verdict.clause)
            found = bad.get(key)
            first = found or Bad(name, tried.verdict, _story(drill, says, name, tried, tried.verdict), 0)
            bad[key] = replace(first, points=first.points + 1)
    seconds = time.perf_counter() - begun
    return Drilled(
        drill, says, len(names) - not_possible, went_on, seconds, tuple(bad.values()), left_out, not_possible
    )


def _story(drill: Drill, says: str, name: str, tried: Tried, verdict: Verdict) -> str:
    situation = SITUATIONS[drill.situation]
    ranks = f" on {drill.ranks} ranks" if drill.ranks > 1 else ""
    lines = [
        f"{verdict.word}: {WORDS[verdict.word]}  [{verdict.clause}]",
        wrapped(f"{drill.situation}, {drill.mode}{ranks}: {situation.says}; {says}", 2, 4),
        wrapped(f"point {name}: {tried.happened}", 2, 4),
    ]
    if tried.operations:
        lines += ["", "  the operations of the save", *_around(tried.operations, tried.at or len(tried.operations) + 1)]
    if tried.left is not None:
        lines += ["", "  the folder as it was left", *(f"    {line}" for line in tried.left.listing())]
    lines += ["", *(wrapped(line, 2, 4) for line in seen_and_expected(verdict))]
    return "\n".join(lines)


def _around(operations: Sequence[str], at: int) -> Iterator[str]:
    """The operations around the one with this number, counted from 1; of a burst of equal ones just the last."""
    numbered = enumerate(zip(operations, [*operations[1:], ""], strict=True), start=1)
    shown = [(number, one) for number, (one, after) in numbered if one != after or number == at - 1]
    before, later = ([line for line in shown if (line[0] < at) == is_before] for is_before in (True, False))
    yield from ["      ..."] if len(before) > _BEFORE else []
    yield from (f"    {number:5} {one}" for number, one in before[-_BEFORE:])
    yield "    ---- here ----"
    yield from (f"    {number:5} {one}" for number, one in later[:_LATER])
    yield from ["      ..."] if len(later) > _LATER else []


class PreparedSituation:
    """A situation, ready to be gone through as often as there are points."""

    def __init__(self, team: Team, drill: Drill, has_limit: bool, is_watched: bool = True) -> None:
        """Saves what stands there before; `CannotJudge` if that can't be done.

        With `is_watched` its file operations can be met, and are known from a rehearsal.
        """
        self.team = team
        self.drill = drill
        self.situation = SITUATIONS[drill.situation]
        several = len(self.situation.before) > 1
        self.settings: dict[str, Any] = {"mode": drill.mode} | ({"keep_last_n": 2} if has_limit and several else {})
        self._ledger = Ledger(ranks=team.shape.ranks)
        self._names: set[tuple[str, ...]] = set()
        self._judged: dict[object, Verdict] = {}
        """By the folder as it was left, and what might come back."""
        self.team.rebuild(Disk({}))
        try:
            if self.situation.before:
                with self.team.life(self.settings, self._ledger) as life:
                    self.save_at(life, *self.situation.before)
            self._disk = Disk.read(self.team.here)
            control = Control()
            with self.about_to_save([control] if is_watched else ()) as life:
                self.operations = self._rehearsed(life, control)
                life.kill()
                opened = dict.fromkeys(life.journal.outside if life.journal else ())
                self.outside = tuple(path for path in opened if not team.server.owns(path))
                self.changed = self._look_without_death(life)
        except (ManagerFault, Unsupported) as fault:
            raise CannotJudge(
                f"Situation {drill.situation!r} ({self.situation.says}) could not be brought about in mode "
                f"{drill.mode}, so nothing can be tried in it. {fault}{disk_is_full(team.here)}"
            ) from fault
        if is_watched and not self.operations:
            beside = f" It opened {', '.join(self.outside[:3])} for writing instead." if self.outside else ""
            raise CannotJudge(
                "The manager saved without changing anything in the folder that it was given, so there is no "
                f"operation at which something could go wrong.{beside}"
            )

    def save_at(self, life: TeamLife, *steps: int) -> None:
        """Train to each of these steps, and commit there."""
        for step in steps:
            life.train_to(step)
            life.save()
        life.wait()

    def _rehearsed(self, life: TeamLife, control: Control) -> tuple[Operation, ...]:
        """What the save does when nothing goes wrong."""
        done: list[Operation] = []

        def hear(operation: Operation) -> int:
            done.append(operation)
            return 0

        control.fails = hear
        self.save(life)
        life.wait()
        return tuple(done)

    def _look_without_death(self, life: TeamLife) -> list[Verdict]:
        """Resume from the undisturbed save; what does not come back even then is ignored from here on."""
        landing, _ = self.team.resume(self.settings, life.ledger, goes_on=False)
        if landing.step:
            self.team = replace(self.team, ignored=Ignored(saved=landing.differing))
        return without_death(landing)

    @contextmanager
    def about_to_save(self, controls: Sequence[Control] = ()) -> Iterator[TeamLife]:
        """The folder as it was before the save, and a life that has resumed and trained up to it."""
        with self.team.life(self.settings, self.begin(), controls) as life:
            if self._rewinds:
                self._rewind(life)
                yield life
                return
            if self.situation.before:
                life.load()
            if life.step != (self.situation.before or (0,))[-1]:
                raise CannotJudge(
                    f"A resume after saves of steps {', '.join(map(str, self.situation.before))} landed on step "
                    f"{life.step}, with nothing gone wrong yet."
                )
            life.train_to(self.situation.trains_to)
            yield life

    @property
    def _rewinds(self) -> bool:
        """Whether a step is saved again by going back, because the manager counts the steps itself."""
        is_again = self.situation.saves != self.situation.trains_to
        return is_again and self.team.server.implementation.traits.counts_steps

    def _rewind(self, life: TeamLife) -> None:
        implementation, first = self.team.server.implementation, self.situation.before[0]
        if "explicit" not in implementation.capabilities:
            raise CannotJudge(
                "The manager counts the steps itself (trait counts_steps) and loads no step that is named (capability "
                "explicit), so it does not save a step again."
            )
        life.load(str(self.team.folder / implementation.layout.name.format(step=first)))
        life.call("scramble")  # the second save holds another state
        life.train_to(self.situation.saves)

    def begin(self) -> Ledger:
        """Make the folder what it was before the save; what is known of it then."""
        self.team.rebuild(self._disk)
        return self._ledger.copy()

    def step(self) -> int | None:
        """What is said to `save`: None for the run's own step."""
        is_own = self._rewinds or self.situation.saves == self.situation.trains_to
        return None if is_own else self.situation.saves

    def save(self, life: TeamLife) -> None:
        """The save that something happens to."""
        life.save(self.step())

    def judged(self, life: TeamLife) -> tuple[Verdict, Disk, bool]:
        """What fresh processes make of the folder as it is; the folder, and whether the run went on from there.

        Of points that leave the same one is resumed from, as of equal disks wherever they are explored.
        """
        left = Disk.read(self.team.here)
        key = (left.identity, life.ledger.allowed, len(life.ledger.saves))
        if key in self._judged:
            return self._judged[key], left, False
        landing, going_on = self.team.resume(self.settings, life.ledger, self.is_new(left))
        verdict = self._judged[key] = self.verdict(life.ledger, landing, going_on)
        return verdict, left, going_on is not None

    def meanwhile(self, life: TeamLife) -> Verdict:
        """What a fresh process makes of the folder beside a save that will go on.

        It resumes at every point, wherever another has left the same folder: it is the save that it may disturb.
        """
        landing, _ = self.team.resume(self.settings, life.ledger, False)
        return self.verdict(life.ledger, landing)

    def is_new(self, left: Disk) -> bool:
        """Whether no point before has left these names."""
        names = tuple(sorted(left.nodes))
        is_new = names not in self._names
        self._names.add(names)
        return is_new

    def verdict(self, ledger: Ledger, landing: Landing, going_on: GoingOn | None = None) -> Verdict:
        """What this outcome is worth."""
        return verdict_of(landing, going_on, ledger.allowed, tuple(ledger.saves), is_power_cut=False)


@dataclass
class Injection:
    """Lets something happen at one operation of a save, and notes all of them."""

    control: Control
    number: int
    """The operation, counted from the beginning of the save, at which something happens."""
    happens: Callable[[Operation], int] = lambda operation: 0
    """Called before that operation; the errno with which it fails, or 0."""
    then: Callable[[Operation], int] = lambda operation: 0
    """Called before all later ones."""
    done: list[str] = field(default_factory=list)
    met: Operation | None = None
    """The operation with that number, when it has come."""
    failed: Operation | None = None
    """The same, if it failed."""

    def __post_init__(self) -> None:
        self._before = self.control.done
        self.control.fails = self._meets

    def _meets(self, operation: Operation) -> int:
        at = self.number_of(operation)
        if at == self.number:
            self.met = operation
            error = self.happens(operation)
            self.failed = operation if error else None
        else:
            error = self.then(operation) if at > self.number else 0
        self.done.append(f"{operation} failed with {os.strerror(error)}" if error else str(operation))
        return error

    def number_of(self, operation: Operation) -> int:
        """Its number, counted from the beginning of the save."""
        return operation.number - self._before

    def tried(self, verdict: Verdict, happened: str, left: Disk | None = None, went_on: bool = False) -> Tried:
        """What came of it."""
        return Tried(verdict, happened, tuple(self.done), self.number, left, went_on)

    def stop_failing(self) -> None:
        """From now on nothing happens."""
        self.control.fails = lambda operation: 0


def team_of(place: Place, ranks: int) -> Team:
    """One process, or several ranks that share the model."""
    shape = Shape(ranks)
    return Team(place.server, place.folder, place.kinds, place.fresh(shape), shape)


def ends_of_bursts(operations: Sequence[object]) -> list[int]:
    """Of operations that are alike and follow one another the first, the middle and the last; counted from 1."""
    found: list[int] = []
    numbered = enumerate(operations, start=1)
    for _, burst in itertools.groupby(numbered, key=lambda one: str(one[1])):
        numbers = [number for number, _ in burst]
        found += dict.fromkeys((numbers[0], numbers[len(numbers) // 2], numbers[-1]))
    return found


def spread(count: int, every: int) -> list[int]:
    """Every so many of the numbers from 1 to `count`, the last one included.

    >>> spread(7, 3), spread(2, 1)
    ([1, 4, 7], [1, 2])
    """
    return sorted({*range(1, count + 1, every), count} - {0})
