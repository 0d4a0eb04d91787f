"""What a test gets: process lives over one folder, and the means to judge them.

A `Life` is a worker with a memory: whatever it is told becomes a sentence of
the story that a failure prints.  The `Timeline` is the run that nothing
disturbs: it never sees a manager, and says for every step what the losses and
every piece of state have to be, to the bit.
"""

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from forge_spec.clauses import Level

from .folder import Folder
from .gate import Gate, Picks, in_background
from .gate import is_supported as gate_is_supported
from .judge import Judge, Unreached
from .ranks import Outcome, Ranks, RanksTimeline, Shape, World, by_rank, values
from .server import Implementation, Server
from .worker import ALL_PARTS, Loaded, ManagerFault, Raised, Worker

_A_WHILE_S = 2.0
"""How long a call may take while an operation of its process is held, before the two are taken to hang together.
Too short a time only lets the operation go earlier; no verdict depends on it."""
STATE = ("parameter", "buffer", "trained", "moment", "group", "scheduler")
"""Kinds of state that every manager has to bring back, or, of which parameters are trained, to leave alone."""
ALL_KINDS = (*STATE, "gradient", "loader", "rng", "counter")
"""Every kind that a fingerprint has: what nothing may change that is refused, or that only saves."""


def kinds_claimed(capabilities: frozenset[str]) -> tuple[str, ...]:
    """Kinds of state that an implementation with these capabilities brings back."""
    optional = {"loader": "dataloader", "rng": "rng", "counter": "train-state"}
    return STATE + tuple(kind for kind, capability in optional.items() if capability in capabilities)


class Timeline:
    """Losses and fingerprints of one seed's uninterrupted run, by step."""

    def __init__(self, server: Server, seed: int) -> None:
        self._worker = server.spawn()
        self._worker.prepare(seed)
        self._digests = [self._worker.digest()]
        self._losses: list[str] = [""]

    def _extend(self, step: int) -> None:
        while len(self._digests) <= step:
            self._losses += self._worker.train(1)
            self._digests.append(self._worker.digest())

    def digest(self, step: int) -> dict[str, str]:
        """The state after this many steps."""
        self._extend(step)
        return self._digests[step]

    def losses(self, after: int, until: int) -> list[str]:
        """The losses of the steps after `after`, up to and including `until`."""
        self._extend(until)
        return self._losses[after + 1 : until + 1]


class Astray(ManagerFault):
    """A load has put the run at a step from which the scenario can't go on."""


class Life:
    """One process life; see `Worker` for what each call does and raises."""

    def __init__(self, scenario: "Scenario", worker: Worker, name: str, settings: dict[str, Any]) -> None:
        self.scenario = scenario
        self.worker = worker
        self.name = name
        self.settings = settings
        self.step = 0

    def __enter__(self) -> "Life":
        return self

    def __exit__(self, *_: object) -> None:
        self.worker.kill()

    def _tell(self, sentence: str) -> None:
        self.scenario.judge.tell(f"{self.name} {sentence}")

    @property
    def gate(self) -> Gate:
        """Picks and observes the file operations of this life."""
        assert self.worker.gate is not None, "start(gated=True) asks for a gate"
        return self.worker.gate

    @property
    def warnings(self) -> str:
        """Everything that was warned of during the last command, in one text."""
        return "\n".join(self.worker.warnings)

    def train_to(self, step: int) -> list[str]:
        """Train until the run is at `step`; the losses."""
        if step < self.step:
            raise Astray(f"The run is at step {self.step} where it should be at {step} or before.")
        if step == self.step:
            return []
        self._tell(f"trains from step {self.step} to {step}")
        losses = self.worker.train(step - self.step)
        self.step = step
        return losses

    def save(
        self,
        extra: Any = None,
        step: int | None = None,
        parts: Sequence[str] = ALL_PARTS,
        tokens_seen: int | None = None,
    ) -> None:
        """Save at the run's step, or under another one, and with its own count of tokens, or another."""
        with_extra = "" if extra is None else f" with extra {extra!r}"
        with_tokens = "" if tokens_seen is None else f" and {tokens_seen} tokens seen"
        self._tell(f"saves step {self.step if step is None else step}{with_extra}{with_tokens}")
        self.worker.save(step, extra, parts, tokens_seen)

    def tell_save(self, extra: Any = None) -> None:
        """Start a save; `self.worker.reply()` ends it."""
        self._tell(f"begins to save step {self.step}")
        self.worker.tell_save(None, extra)

    def save_at(self, *steps: int) -> None:
        """Train to each of these steps and save there."""
        for step in steps:
            self.train_to(step)
            self.save()

    def commit_at(self, *steps: int) -> None:
        """Train to each of these steps and `commit` there."""
        for step in steps:
            self.train_to(step)
            self.commit()

    def commit(self, extra: Any = None) -> None:
        """Save and wait; a step that is not complete then makes the clause about just that fall, not the test's own.

        Under a limit that is retention, which rests on the clauses about the commit.
        """
        self.save(extra)
        self.wait()
        folder, limit = self.scenario.folder, self.settings.get("keep_last_n") or 0
        clause = "commit.sync" if self.settings["mode"] == "sync" else "commit.no-later-than"
        if self.step not in folder.complete() and str(folder.path) == self.settings.get("folder", str(folder.path)):
            self.scenario.judge.fall(
                "retention.keeps" if limit > 0 else clause,
                expected=f"step {self.step} complete when save and wait have returned",
                seen=str(folder),
            )

    def wait(self) -> None:
        """Wait until all that was saved is committed."""
        self._tell("waits for its saves")
        self.worker.wait()

    def flush(self) -> None:
        """`flush_pending_save`."""
        self._tell("flushes its pending save")
        self.worker.flush()

    def load(
        self,
        path: Path | str | None = None,
        exclude: Sequence[str] = (),
        freeze_expected: list[dict[str, Any]] | None = None,
        parts: Sequence[str] = ALL_PARTS,
    ) -> Loaded:
        """Resume."""
        where = "resumes" if path is None else f"loads {path}"
        self._tell(where + (f" without {', '.join(exclude)}" if exclude else ""))
        loaded = self.worker.load(path, exclude, freeze_expected, parts)
        self.step = loaded.step
        self._tell(f"comes back at step {loaded.step}" + (", as from a fresh start" if loaded.is_fresh else ""))
        return loaded

    def digest(self, *kinds: str) -> dict[str, str]:
        """Fingerprints of the live state, of these kinds or of all."""
        digest = self.worker.digest()
        return {name: value for name, value in digest.items() if not kinds or name.partition("/")[0] in kinds}

    def close_gate(self, holds: Picks = in_background, saying: str = "its background file operations are held") -> Gate:
        """From now on hold what `holds` picks."""
        self._tell(f"goes on, but from here {saying}")
        return self.worker.close_gate(holds)

    def open_gate(self) -> None:
        """Let everything go."""
        self._tell("is no longer held")
        self.gate.open()

    def save_held(self, extra: Any = None) -> bool:
        """An asynchronous save with its flush held at a file operation; whether it is, now that `save` has returned.

        An operation that the process can't go on without, because the writer
        keeps the interpreter's lock during it, is let go, and the next one is
        held.  False when the flush came to its end so, or has nothing to hold.
        """
        memory = self.scenario.server.saves_that_wait
        if self.settings["mode"] in memory:
            self.save(extra)
            return False
        self.close_gate()
        self.tell_save(extra)
        if not self._lets_go_until_replied() and not self.gate.held():
            memory.add(self.settings["mode"])
        is_held = self._is_held_while_training_may_go_on()
        held = ", ".join(str(operation) for operation in self.gate.held()) or "nothing"
        self._tell(f"has returned from save; held at the gate: {held}")
        return is_held

    def _lets_go_until_replied(self) -> bool:
        """Take the reply of the running command; whether it came without letting anything go."""
        is_first = True
        while not self.worker.replies_or_blocks(_A_WHILE_S):
            if self.gate.held():
                is_first = False
                self.gate.step()
            elif not self.worker.replies_or_blocks():
                break  # it waits for something else; `reply` finds out whether it hangs
        self.worker.reply()
        return is_first

    def _is_held_while_training_may_go_on(self) -> bool:
        while self._is_something_held():
            self.worker.tell("ping")
            if self._lets_go_until_replied():
                return True
        return False

    def _is_something_held(self) -> bool:
        """The flush may begin after `save` has returned; it is not awaited when the checkpoint is there already."""
        folder, step = self.scenario.folder, self.step
        return bool(self.gate.held()) or (
            step not in folder.complete() and self.gate.wait_held(self.scenario.patience_s)
        )

    def kill(self) -> None:
        """SIGKILL."""
        held = f" while {self.gate.held()[0]} is about to happen" if self.worker.gate and self.gate.held() else ""
        self._tell(f"is killed{held}")
        self.worker.kill()
        self.scenario.judge.tell(f"the folder holds: {self.scenario.folder}")

    def exit(self) -> int:
        """The interpreter's normal end."""
        self._tell("ends normally")
        return self.worker.exit()


class Scenario:
    """One test's folder and everything that happens to it."""

    def __init__(
        self,
        server: Server,
        folder: Folder,
        judge: Judge,
        timeline: Callable[[int], Timeline],
        ranks_timeline: Callable[[int, Shape], RanksTimeline],
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
        self._timelines = timeline
        self._ranks_timelines = ranks_timeline
        self._lives: list[Life | World] = []
        self._told_of = 0
        """How many lives the story knows."""

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
        self, *, gated: bool = False, reads: bool = False, seed: int = 0, uid: int | None = None, **settings: Any
    ) -> Life:
        """A fresh process that has made its manager over the scenario's folder and loaded nothing.

        With `uid` it is another user's; `Unreached` where that can't be had.
        """
        if gated:
            self.require_gate()
        settings = {"mode": self.mode, **settings}
        self._told_of += 1
        name = f"life {self._told_of}"
        shown = ", ".join(f"{key}={value!r}" for key, value in settings.items() if value is not None)
        self.judge.tell(f"{name} starts with {shown}")
        worker = self.server.spawn(self.folder.path if gated else None, reads=reads)
        life = Life(self, worker, name, settings)
        self._lives.append(life)
        if gated and worker.gate is None:
            raise Unreached(f"file operations can't be held: {self.server.filter_refusal}")
        if uid is not None:
            self._let_become(life, uid)
        worker.open({"folder": str(self.folder.path), **settings}, seed)
        return life

    def _let_become(self, life: Life, uid: int) -> None:
        try:
            life.worker.call("become", uid=uid)
        except Raised as error:
            raise Unreached(
                f"being another user needs root with its capabilities, and the suite runs as uid {os.geteuid()} "
                f"({error.message}): run it as root in a container to have this judged"
            ) from None
        self.judge.tell(f"{life.name} is a process of uid {uid}")

    def resume(self, *, gated: bool = False, reads: bool = False, **settings: Any) -> tuple[Life, Loaded]:
        """A fresh process that resumes; its random state beforehand is that of another run."""
        life = self.start(gated=gated, reads=reads, seed=999, **settings)
        return life, life.load()

    def world(
        self,
        shape: Shape,
        *,
        gated: Collection[int] | bool = (),
        reads: bool = False,
        seed: int = 0,
        views: Mapping[int, Path] | None = None,
        timeout_s: float = 60,
        **settings: Any,
    ) -> World:
        """The ranks of a fresh run, which have made their managers over the scenario's folder and loaded nothing.

        `gated` says whose file operations can be held, with `reads` those that
        open for reading as well; ranks in `views` see
        another directory at the folder's path.  `timeout_s` is what groups of
        processes have: by default a rank that waits for a lost one does so
        for longer than the suite waits for it.
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
        if not self.implementation.environment["has_numpy"]:
            raise Unreached(
                "torch.distributed sends objects between ranks through numpy, which the manager's Python lacks"
            )
        if self.server.device == "cuda":
            self.require_gpus(shape.ranks)
        self.folder = replace(self.folder, stages=shape.stages)  # what is complete depends on it
        held = range(shape.ranks) if gated is True else gated or ()
        settings = {"mode": self.mode, **settings}
        self._told_of += 1
        name = f"run {self._told_of}"
        shown = ", ".join(f"{key}={value!r}" for key, value in settings.items() if value is not None)
        self.judge.tell(f"{name} starts: {shape}; {shown}")
        watched = [self.folder.path if rank in held else None for rank in range(shape.ranks)]
        workers = [self.server.spawn(folder, reads=reads) for folder in watched]
        world = World(self, Ranks(workers, shape), name, settings, seed)
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

    def timeline(self, seed: int = 0) -> Timeline:
        """The undisturbed run of this seed."""
        return self._timelines(seed)

    def ranks_timeline(self, shape: Shape, seed: int = 0) -> RanksTimeline:
        """The undisturbed run of this seed by so many ranks."""
        return self._ranks_timelines(seed, shape)

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
        return self.folder.tear(step, lacks)

    def retell(self, sentence: str) -> None:
        """Begin the story anew, with what the first life has done; the next one to start is the second."""
        self.judge.story[:] = [sentence, f"the folder holds: {self.folder}"]
        self._told_of = 1

    # -- judging ----------------------------------------------------------------

    def expect(
        self, clause: str, holds: bool, *, expected: str, seen: Any, detail: str = "", reaches: bool = True
    ) -> None:
        """See `Judge.expect`."""
        self.judge.expect(clause, holds, expected=expected, seen=seen, detail=detail, reaches=reaches)

    def expect_state(
        self, clause: str, life: Life, step: int, kinds: Iterable[str] | None = None, seed: int = 0
    ) -> None:
        """The live state is the undisturbed run's at `step`, to the bit, in these kinds or in all claimed ones."""
        wanted = set(self.kinds() if kinds is None else kinds)
        self.expect_same(clause, life.digest(), self.timeline(seed).digest(step), wanted, f"the state of step {step}")

    def expect_states(
        self, clause: str, world: World, step: int, kinds: Iterable[str] | None = None, seed: int = 0
    ) -> None:
        """The live state of every rank is the undisturbed run's at `step`, in these kinds or in all claimed ones."""
        wanted = set(self.kinds() if kinds is None else kinds)
        expected = by_rank(self.ranks_timeline(world.shape, seed).digest(step))
        self.expect_same(clause, world.digest(), expected, wanted, f"the state of step {step} on every rank")

    def expect_landings(
        self, clause: str, landed: Sequence[Loaded], allowed: Iterable[int | None], because: str = ""
    ) -> None:
        """Every rank came back at the same one of these steps; None stands for a fresh start."""
        steps = set(allowed) | ({None} if 0 in set(allowed) else set())
        seen = [None if loaded.is_fresh else loaded.step for loaded in landed]
        self.expect(
            clause,
            len(set(seen)) == 1 and set(seen) <= steps,
            expected=f"all {len(seen)} ranks to come back at {_steps(steps)}{because and ', because ' + because}",
            seen=f"{', '.join(_steps({one}) for one in seen)}; the folder holds: {self.folder}",
        )

    def expect_same(
        self, clause: str, seen: dict[str, str], expected: dict[str, str], kinds: Iterable[str], what: str
    ) -> None:
        """Two fingerprints agree in all items of these kinds."""
        wanted = set(kinds)
        names = sorted(name for name in expected.keys() | seen.keys() if name.partition("/")[0] in wanted)
        differing = [name for name in names if expected.get(name) != seen.get(name)]
        shown = ", ".join(f"{name} ({_how(expected, seen, name)})" for name in differing[:6])
        more = f" and {len(differing) - 6} more" if len(differing) > 6 else ""
        self.expect(
            clause,
            not differing and bool(names),
            expected=f"{what}, bit for bit ({len(names)} items)",
            seen=f"{len(differing)} items differ: {shown}{more}",
        )

    def expect_landing(
        self, clause: str, loaded: Loaded, allowed: Iterable[int | None], because: str = "", reaches: bool = True
    ) -> None:
        """A resume came back at one of these steps; None stands for a fresh start, which step 0 can't be told from."""
        steps = set(allowed)
        steps |= {None} if 0 in steps else set()
        seen = None if loaded.is_fresh else loaded.step
        self.expect(
            clause,
            seen in steps,
            expected=f"to come back at {_steps(steps)}{because and ', because ' + because}",
            seen=f"{_steps({seen})}; the folder holds: {self.folder}",
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
            self.expect(clause, right and not silent, expected=expected, seen=str(error), detail=error.traceback)
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
            life.ranks.kill() if isinstance(life, World) else life.worker.kill()


def _how(expected: dict[str, str], seen: dict[str, str], name: str) -> str:
    if name not in seen:
        return "missing"
    return "unexpected" if name not in expected else "changed"


def _steps(steps: set[int | None]) -> str:
    ordered = sorted(steps, key=lambda step: (step is None, step))
    words = ["a fresh start" if step is None else f"step {step}" for step in ordered]
    return " or ".join(words) or "nowhere"
