"""What a test gets: processes over one folder, the undisturbed run, and the means to judge them."""

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from forge_conformance.judging.judge import Judge, Unreached
from forge_conformance.judging.text import some
from forge_conformance.runs import ways
from forge_conformance.runs.folder import Folder
from forge_conformance.runs.group import ALONE, LONG_S, Outcome, Ranks, Shape, values
from forge_conformance.runs.life import AnyLife, Life, World
from forge_conformance.runs.process import Loaded, Raised
from forge_conformance.runs.server import Implementation, Server
from forge_conformance.runs.state import kind_of, kinds_claimed
from forge_conformance.runs.timeline import Timeline
from forge_conformance.watch.gate import is_supported as gate_is_supported
from forge_spec.clauses import Level


class Scenario:
    """One test's folder and everything that happens to it."""

    def __init__(
        self,
        server: Server,
        folder: Folder,
        judge: Judge,
        timeline: Callable[[int, Shape, str | None], Timeline],
        capabilities: frozenset[str],
        level: Level,
    ) -> None:
        self.level = level
        self.server = server
        self.folder = folder
        self.judge = judge
        self.capabilities = capabilities
        self.patience_s = 5.0
        """How long a scenario waits for something that a right manager does at once."""
        self.lives_side_by_side = False
        """Whether several lives may save; else those before have ended by the time that another one does."""
        self._timelines = timeline
        self._lives: list[AnyLife] = []
        self._number_named = 0
        """How many processes and runs the story has named."""

    @property
    def implementation(self) -> Implementation:
        """What is judged."""
        return self.server.implementation

    def has(self, *capabilities: str) -> bool:
        """Whether all of these are claimed."""
        return self.capabilities.issuperset(capabilities)

    @property
    def mode(self) -> str:
        """The mode that scenarios use which are about something else."""
        return "sync" if self.has("sync") else "async"

    @property
    def background_mode(self) -> str:
        """The mode with a flush in the background, if there is one."""
        return "async" if self.has("async") else self.mode

    def start(
        self,
        *,
        gated: bool = False,
        reads: bool = False,
        loads: bool = False,
        seed: int = 0,
        uid: int | None = None,
        variety: str | None = None,
        arrange: Callable[[Life], object] | None = None,
        kind: type[Life] = Life,
        **settings: Any,
    ) -> Life:
        """A fresh process that has made its manager over the scenario's folder and loaded nothing.

        With `gated` its file operations can be held; with `reads` also those that open for reading, and with `loads`
        all by which a load learns of the folder.
        With `uid` it is another user's; `Unreached` where that can't be had.
        With a variety it trains something else; the worker's `variety` says what.
        `arrange` is what the process does before it makes its manager, `kind` what the test drives it by.
        """
        if gated:
            self.require_gate()
        ways.require_settings(self.implementation.traits, settings, self.folder)
        settings = {"mode": self.mode, **settings}
        self._number_named += 1
        name = f"process {self._number_named}"
        shown = ", ".join(f"{key}={value!r}" for key, value in settings.items() if value is not None)
        self.judge.happens(*_events(settings), *([] if variety is None else [f"a run that trains {variety}"]))
        worker = self.server.spawn(self.folder.path if gated else None, reads=reads, watch="loads" if loads else None)
        life = kind(self, Ranks(self.server, ALONE, [worker]), name, settings)
        self._lives.append(life)
        if gated and worker.gate is None:
            raise Unreached(f"file operations can't be held: {self.server.filter_refusal}")
        if uid is not None:
            self._let_become(life, uid)
        if arrange is not None:
            arrange(life)
        begins = "starts" if uid is None and arrange is None else "makes its manager"
        life.tell(f"{begins} with {shown}" + ("" if variety is None else f", and trains {variety!r}"))
        try:
            worker.open({"folder": str(self.folder.path), **settings}, seed, variety)
        except Raised as refusal:
            if not self.implementation.traits.resumes_at_start:
                raise
            life.beginning.refusal = refusal
        return life

    def limit(self, wanted: int) -> int:
        """Return the limit for `keep_last_n` that is nearest to this one among those that the manager accepts."""
        return ways.limit(self.implementation.traits, wanted)

    def _let_become(self, life: Life, uid: int) -> None:
        try:
            life.worker.call("become", uid=uid)
        except Raised as error:
            raise Unreached(
                f"being another user needs root with its capabilities, and the suite runs as uid {os.geteuid()} "
                f"({error.message}): run it as root in a container to have this judged"
            ) from None
        self.judge.tell(f"{life.name} runs as uid {uid}")
        self.judge.happens("another user")

    def make_way(self, saver: AnyLife) -> None:
        """End the other lives over the folder of one that is about to save, unless they are to live side by side."""
        for life in [] if self.lives_side_by_side else self._lives:
            is_other = life is not saver and life.settings.get("folder") == saver.settings.get("folder")
            if is_other and life.ranks.living:
                self.judge.tell(f"{life.name} has ended by now")
                life.ranks.kill()

    def resume(self, *, gated: bool = False, **settings: Any) -> tuple[Life, Loaded]:
        """A fresh process that resumes; its random state beforehand is that of another run."""
        life = self.start(gated=gated, seed=999, **settings)
        return life, life.load()

    def world(
        self,
        shape: Shape,
        *,
        gated: Collection[int] | bool = (),
        reads: bool = False,
        seed: int = 0,
        views: Mapping[int, Path] | None = None,
        timeout_s: float = LONG_S,
        **settings: Any,
    ) -> World:
        """The ranks of a fresh run, which have made their managers over the scenario's folder and loaded nothing.

        `gated` says whose file operations can be held, with `reads` those that
        open for reading as well; ranks in `views` see
        another directory at the folder's path.  `timeout_s` is what groups of
        processes have: by default a rank that waits for a lost one, or for one
        that the suite holds, does so for longer than any test takes.
        """
        world = self._world(shape, gated, reads, seed, views or {}, settings)
        values(world.open(seed, timeout_s))
        return world

    def world_alone(self, shape: Shape, timeout_s: float, **settings: Any) -> tuple[World, list[Outcome]]:
        """The same, but each rank hands its manager a process group of its own; and what that came to."""
        world = self._world(shape, (), False, 0, {}, settings)
        world.tell("hands each manager a process group of that rank alone")
        return world, world.open(0, timeout_s, is_alone=True)

    def _world(
        self,
        shape: Shape,
        gated: Collection[int] | bool,
        reads: bool,
        seed: int,
        views: Mapping[int, Path],
        settings: dict[str, Any],
    ) -> World:
        if gated:
            self.require_gate()
        ways.require_settings(self.implementation.traits, settings, self.folder)
        if not self.implementation.environment["has_numpy"]:
            raise Unreached(
                "torch.distributed sends objects between ranks through numpy, which the manager's Python lacks"
            )
        if self.server.device == "cuda":
            self.require_gpus(shape.ranks)
        self.folder = replace(self.folder, stages=shape.stages)  # what is complete depends on it
        held = range(shape.ranks) if gated is True else gated or ()
        settings = {"mode": self.mode, **settings}
        self._number_named += 1
        name = f"run {self._number_named}"
        shown = ", ".join(f"{key}={value!r}" for key, value in settings.items() if value is not None)
        self.judge.tell(f"{name} starts: {shape}; {shown}")
        self.judge.happens(*_events(settings), f"a run of {shape.label}")
        watched = [self.folder.path if rank in held else None for rank in range(shape.ranks)]
        workers = [self.server.spawn(folder, reads=reads) for folder in watched]
        world = World(self, Ranks(self.server, shape, workers), name, settings, seed)
        self._lives.append(world)
        if any(workers[rank].gate is None for rank in held):
            raise Unreached(f"file operations can't be held: {self.server.filter_refusal}")
        for rank, view in views.items():
            self._let_see(world, rank, view)
        return world

    def _let_see(self, world: World, rank: int, view: Path) -> None:
        try:
            world.ranks.workers[rank].call("see", instead=str(view), of=str(self.folder.path))
        except Raised as error:
            raise Unreached(f"a rank can't be given a view of the folder of its own: {error.message}") from None
        world.tell(f"has another view of the folder on rank {rank}: {replace(self.folder, path=view)}")
        self.judge.happens("another view of the folder")

    def require_gate(self) -> None:
        """`Unreached` where this machine cannot hold file operations."""
        if not self.can_gate():
            raise Unreached(f"file operations can't be held: {self.server.filter_refusal or gate_is_supported()}")

    def require_gpus(self, number: int) -> None:
        """`Unreached` where there are fewer, or where this run does not use them."""
        there = int(self.implementation.environment["gpus"])
        if self.server.device != "cuda":
            raise Unreached(f"this run is on the CPU, and there are {there} GPUs; run with --device cuda to use them")
        if there < number:
            raise Unreached(f"it takes {number} GPUs, and there {'is' if there == 1 else 'are'} {there}")

    def can_gate(self) -> bool:
        """Whether this machine can hold file operations, as far as is known."""
        return (self.server.filter_refusal or gate_is_supported()) is None

    def timeline(self, seed: int = 0, variety: str | None = None, shape: Shape = ALONE) -> Timeline:
        """The undisturbed run of this seed, by one process or by several ranks."""
        return self._timelines(seed, shape, variety)

    def kinds(self) -> tuple[str, ...]:
        """Kinds of state that this implementation claims to bring back."""
        return kinds_claimed(self.capabilities)

    def tear(self, step: int, lacks: int = 0) -> str:
        """Make a checkpoint torn, as a death before its marker leaves it; what it is now, in words.

        A checkpoint of one file that is renamed into place is never torn by a
        kill, only by a loss of power, which is not asked about at level core.
        """
        if not self.folder.layout.is_dir and self.level < Level.STRICT:
            raise Unreached("a checkpoint of one file is torn by a loss of power, which level core does not ask about")
        self.judge.happens("a torn checkpoint")
        return self.folder.tear(step, lacks)

    def retell(self, sentence: str) -> None:
        """Begin the story anew, with what the first life has done; the next one to start is the second."""
        self.judge.story[:] = [sentence, f"the folder holds: {self.folder}"]
        self._number_named = 1

    # -- judging ----------------------------------------------------------------

    def expect(
        self, clause: str, holds: bool, *, expected: str, seen: Any, detail: str = "", reaches: bool = True
    ) -> None:
        """See `Judge.expect`."""
        self.judge.expect(clause, holds, expected=expected, seen=seen, detail=detail, reaches=reaches)

    def expect_state(
        self,
        clause: str,
        life: AnyLife,
        step: int,
        kinds: Iterable[str] | None = None,
        seed: int = 0,
        only: Collection[str] | None = None,
    ) -> None:
        """The live state, of every rank, is the undisturbed run's at `step`, bit for bit.

        `kinds`: all claimed.  With `only` these items alone are asked about.
        """
        wanted = self.kinds() if kinds is None else kinds
        where = "" if life.shape == ALONE else " on every rank"
        expected, seen = self.timeline(seed, shape=life.shape).digest(step), life.digest()
        if only is not None:
            expected, seen = ({name: one[name] for name in one.keys() & set(only)} for one in (expected, seen))
        self.expect_same(clause, seen, expected, wanted, f"the state of step {step}{where}")

    def items_that_return(self, life: AnyLife, step: int) -> set[str]:
        """What an undisturbed save of this step, which was just resumed from, has brought back exactly.

        State that is lost in any case is for the clauses about that state, not
        for the one that the test is about.  `Unreached` if the resume did not
        come back at the step.
        """
        if life.step != step:
            raise Unreached(f"a save of step {step} that nothing disturbs is not resumed from; see resume.lands")
        expected, seen = self.timeline(shape=life.shape).digest(step), life.digest()
        returned = {name for name, value in expected.items() if seen.get(name) == value}
        lost = sorted({name for name in expected if kind_of(name) in self.kinds()} - returned)
        if lost:
            self.judge.tell(f"{len(lost)} items are lost without any disturbance, and left out: {', '.join(lost[:3])}")
        return returned

    def expect_same(
        self, clause: str, seen: dict[str, str], expected: dict[str, str], kinds: Iterable[str], what: str
    ) -> None:
        """Two fingerprints agree in all items of these kinds."""
        wanted = set(kinds)
        names = sorted(name for name in expected.keys() | seen.keys() if kind_of(name) in wanted)
        differing = [name for name in names if expected.get(name) != seen.get(name)]
        shown = some([f"{name} ({_how(expected, seen, name)})" for name in differing])
        self.expect(
            clause,
            not differing and bool(names),
            expected=f"{what}, bit for bit ({len(names)} items)",
            seen=f"{len(differing)} items differ: {shown}",
        )

    def expect_landing(
        self,
        clause: str,
        loaded: Loaded | Sequence[Loaded],
        allowed: Iterable[int | None],
        because: str = "",
        reaches: bool = True,
    ) -> None:
        """A resume landed, on every rank, on the same one of these steps.

        None stands for a fresh start, which can't be distinguished from step 0.
        """
        steps = set(allowed)
        steps |= {None} if 0 in steps else set()
        ranks = [loaded] if isinstance(loaded, Loaded) else loaded
        seen = [None if one.is_fresh else one.step for one in ranks]
        who = "" if len(ranks) == 1 else f"all {len(ranks)} ranks "
        self.expect(
            clause,
            len(set(seen)) == 1 and set(seen) <= steps,
            expected=f"{who}to land on {_steps(steps)}{because and ', because ' + because}",
            seen=f"{', '.join(_steps({one}) for one in seen)}; the folder holds: {self.folder}",
            reaches=reaches,
        )

    @contextlib.contextmanager
    def expect_error(self, clause: str, *kinds: str, naming: Sequence[str] = (), doing: str = "") -> Iterator[None]:
        """What happens inside is refused with one of these exception types, and the message contains every `naming`."""
        expected = f"{doing or 'the call'} to raise {' or '.join(kinds) or 'an error'}" + (
            f" naming {', '.join(naming)}" if naming else ""
        )
        try:
            yield
        except Raised as error:
            right = not kinds or bool(set(kinds) & set(error.kinds))
            silent = [name for name in naming if name not in error.message]
            lacks = f" (refused, but the error does not name {', '.join(silent)})" if right and silent else ""
            self.expect(clause, right and not silent, expected=expected, seen=f"{error}{lacks}", detail=error.traceback)
        else:
            self.expect(clause, False, expected=expected, seen="no error")

    def expect_warning(self, clause: str, life: Life, *naming: str, reaches: bool = True) -> None:
        """The last command of this life warned, in one text or several, and named all of these."""
        silent = [name for name in naming if name not in life.warnings]
        self.expect(
            clause,
            bool(life.warnings) and not silent,
            expected=f"a warning that names {', '.join(naming)}" if naming else "a warning",
            seen=repr(life.warnings) if life.warnings else "no warning",
            reaches=reaches,
        )

    def end(self) -> None:
        """Nothing of this scenario lives on."""
        for life in self._lives:
            life.ranks.kill()


def _events(settings: Mapping[str, Any]) -> list[str]:
    """What is special about a manager's settings; the folder is every test's own."""
    values = {key: value for key, value in settings.items() if key not in ("folder", "mode", "interval") and value}
    mode = [] if settings["mode"] == "sync" else [f"{settings['mode']} saves"]
    return mode + [f"{key}={re.sub(r'[0-9]+', '#', str(value))}" for key, value in values.items()]


def _how(expected: dict[str, str], seen: dict[str, str], name: str) -> str:
    if name not in seen:
        return "missing"
    return "unexpected" if name not in expected else "changed"


def _steps(steps: set[int | None]) -> str:
    ordered = sorted(steps, key=lambda step: (step is None, step))
    words = ["a fresh start" if step is None else f"step {step}" for step in ordered]
    return " or ".join(words) or "nowhere"
