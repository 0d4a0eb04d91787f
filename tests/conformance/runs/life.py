"""The processes of a scenario: a `Life` is one process, a `World` the ranks of one run.

Each command to them becomes a sentence of the story that a failure prints.
`Worker` says what each command does and raises; a command of a `World` that goes wrong on any rank raises `OnRank`.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL
from typing import Any, Protocol, Self

from forge_conformance.judging.judge import Judge
from forge_conformance.runs import ways
from forge_conformance.runs.folder import Folder
from forge_conformance.runs.group import Outcome, Ranks, values
from forge_conformance.runs.process import (
    ALL_PARTS,
    Loaded,
    ManagerFault,
    Worker,
    loaded_from,
    replies_while_held,
    settle,
)
from forge_conformance.runs.server import Server
from forge_conformance.runs.state import Digest, of_kinds
from forge_conformance.watch.gate import Gate, Picks, in_background


class Surroundings(Protocol):
    """What a process needs of its scenario."""

    server: Server
    folder: Folder
    judge: Judge
    patience_s: float

    def make_way(self, saver: "AnyLife") -> None:
        """End the other processes over the folder of one that is about to save."""


class WrongStep(ManagerFault):
    """A load has put the run at a step from which the scenario can't go on."""


class AnyLife(ABC):
    """What a run has on one rank or on several."""

    def __init__(self, scenario: Surroundings, ranks: Ranks, name: str, settings: dict[str, Any]) -> None:
        self.scenario = scenario
        self.ranks = ranks
        self.shape = ranks.shape
        self.name = name
        self.settings = settings
        self.step = 0
        self.has_trained = False
        """Whether it has trained since it began or resumed."""
        self._traits = scenario.server.implementation.traits
        self.beginning = ways.Beginning(self._traits, scenario.folder)

    def require_usable(self) -> None:
        """`Unreached` if the manager, by its traits, can't be used here, or not yet."""
        self.beginning.require()
        ways.require_alive(self._traits, any(worker.has_failed_save for worker in self.ranks.workers))

    def _require_can_save(self, step: int | None = None) -> None:
        """`Unreached` if it can't be used, or can't save now, or not under this step."""
        self.require_usable()
        ways.require_trained(self._traits, self.has_trained)
        ways.require_step(self._traits, step, self.step)

    @property
    def steps_before_save(self) -> int:
        """How many steps it has to train before it can save."""
        return int(self._traits.saves_after_step and not self.has_trained)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.ranks.kill()

    def tell(self, sentence: str) -> None:
        """Add to the story."""
        self.scenario.judge.tell(f"{self.name} {sentence}")

    @property
    def warnings(self) -> str:
        """Everything that was warned of during the last command, on any rank."""
        return "\n".join(text for worker in self.ranks.workers for text in worker.warnings)

    def note(self, clause: str, *events: str) -> None:
        """The manager is asked now for what this clause is about; events are what is special about that."""
        self.scenario.judge.act = clause
        self.scenario.judge.happens(*events)

    def clause_of_commit(self, is_save: bool) -> str:
        """The clause about a save, or about the wait for it, as such."""
        return "commit.sync" if self.settings["mode"] == "sync" and is_save else "commit.no-later-than"

    def digest(self, *kinds: str) -> Digest:
        """Fingerprints of the live state of all ranks, of these kinds or of all."""
        if self.beginning.refusal is None:
            self.beginning.require()
        digest = self.ranks.digest()
        return of_kinds(digest, kinds) if kinds else digest

    @abstractmethod
    def train_to(self, step: int) -> Any:
        """Train until the run is at `step`; the losses."""

    @abstractmethod
    def save(self, extra: Any = None) -> None:
        """Save at the run's step."""

    def wait(self) -> None:
        """Wait until all that was saved is committed, and what is due for deletion is gone."""
        self.begin_wait()
        values(self.ranks.ends())
        self.finish_deletions()

    def begin_wait(self) -> None:
        """Start to wait; `self.ranks.ends()` sees what it comes to."""
        self.require_usable()
        self.tell("waits for its saves")
        self.note(self.clause_of_commit(is_save=False))
        self.ranks.begin("wait")

    def finish_deletions(self) -> None:
        """Wait until what is due for deletion is gone, if the manager deletes late; warnings of before are kept."""
        if not self._traits.deletes_late:
            return
        self.tell("waits for its deletions")
        self.note("retention.drops")
        workers = [self.ranks.workers[rank] for rank in self.ranks.living]
        heard = [worker.warnings for worker in workers]
        self.ranks.together("finish_deletions")
        for worker, before in zip(workers, heard, strict=True):
            worker.warnings = [*before, *worker.warnings]

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
        """Save and wait; a step that is not complete then makes the clause about just that fail, not the test's own.

        Under a limit that is retention, which rests on the clauses about the commit.
        """
        self.save(extra)
        self.wait()
        folder, limit = self.scenario.folder, self.settings.get("keep_last_n") or 0
        clause = self.clause_of_commit(is_save=True)
        if self.step not in folder.complete() and str(folder.path) == self.settings.get("folder", str(folder.path)):
            self.scenario.judge.record_failure(
                "retention.keeps" if limit > 0 else clause,
                expected=f"step {self.step} complete when save and wait have returned",
                seen=str(folder),
            )


class Life(AnyLife):
    """One process; see `Worker` for what each call does and raises."""

    @property
    def worker(self) -> Worker:
        """The process."""
        return self.ranks.workers[0]

    @property
    def gate(self) -> Gate:
        """Picks and observes the file operations of this process."""
        assert self.worker.gate is not None, "start(gated=True) asks for a gate"
        return self.worker.gate

    def train_to(self, step: int) -> list[str]:
        """Train until the run is at `step`; the losses."""
        self.require_usable()
        if step < self.step:
            raise WrongStep(f"The run is at step {self.step} where it should be at {step} or before.")
        if step == self.step:
            return []
        self.tell(f"trains from step {self.step} to {step}")
        self.note("commit.inert")
        losses = self.worker.train(step - self.step)
        self.step, self.has_trained = step, True
        return losses

    def train_to_next(self) -> int:
        """Train one step; the step that the run is at then."""
        self.train_to(self.step + 1)
        return self.step

    def save(
        self,
        extra: Any = None,
        step: int | None = None,
        parts: Sequence[str] = ALL_PARTS,
        tokens_seen: int | None = None,
    ) -> None:
        """Save at the run's step, or under another one, and with its own count of tokens, or another."""
        self._require_can_save(step)
        self.scenario.make_way(self)
        self._note_save(self.step if step is None else step)
        with_extra = "" if extra is None else f" with extra {extra!r}"
        with_tokens = "" if tokens_seen is None else f" and {tokens_seen} tokens seen"
        self.tell(f"saves step {self.step if step is None else step}{with_extra}{with_tokens}")
        self.worker.save(step, extra, parts, tokens_seen)

    def begin_save(self, extra: Any = None) -> None:
        """Start a save; `self.worker.reply()` ends it."""
        self._require_can_save()
        self.scenario.make_way(self)
        self._note_save(self.step)
        self.tell(f"begins to save step {self.step}")
        self.worker.begin_save(None, extra)

    def _note_save(self, step: int) -> None:
        """What distinguishes this save from one of a run that trains on and on."""
        standing = self.scenario.folder.steps()
        again = ["a save of a step that stands"] if step in standing else []
        below = ["a save below a step that stands"] if any(there > step for there in standing) else []
        other = ["a save under another step"] if step != self.step else []
        self.note(self.clause_of_commit(is_save=True), *again, *below, *other)

    def flush(self) -> None:
        """`flush_pending_save`."""
        self.require_usable()
        self.tell("flushes its save in flight")
        self.note(self.clause_of_commit(is_save=False))
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
        self.tell(where + (f" without {', '.join(exclude)}" if exclude else ""))
        self.note(
            "resume.lands", *(["a load of a path"] if path else []), *(["a load without parts"] if exclude else [])
        )
        self.beginning.loads()
        self.require_usable()
        loaded = self.worker.load(path, exclude, freeze_expected, parts)
        self.step, self.has_trained = loaded.step, False
        self.tell("starts fresh" if loaded.is_fresh else f"resumes from step {loaded.step}")
        return loaded

    def close_gate(self, holds: Picks = in_background, saying: str = "its background file operations are held") -> Gate:
        """From now on hold what `holds` picks."""
        self.tell(f"continues; from now on {saying}")
        self.scenario.judge.happens("a held operation")
        return self.worker.close_gate(holds)

    def open_gate(self) -> None:
        """Let everything go."""
        self.tell("is no longer held")
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
        self.begin_save(extra)
        was_let_go = not self._lets_go_until_replied()
        is_held = self._is_held_while_training_may_go_on()
        if was_let_go and not is_held:  # on a slow machine an operation may be let go too early, and the next one held
            memory.add(self.settings["mode"])
        held = ", ".join(str(operation) for operation in self.gate.held()) or "nothing"
        self.tell(f"has returned from save; held at the gate: {held}")
        return is_held

    def _lets_go_until_replied(self) -> bool:
        """Take the reply of the running command; whether it came without letting anything go."""
        _, is_all_held = replies_while_held(self.worker, self.gate.held, self.gate.step)
        self.worker.reply()  # finds out whether it hangs
        return is_all_held

    def _is_held_while_training_may_go_on(self) -> bool:
        while self._is_something_held():
            self.worker.begin("ping")
            if self._lets_go_until_replied():
                return True
        return False

    def _is_something_held(self) -> bool:
        """The flush may begin after `save` has returned; it is not awaited when the checkpoint is there already."""
        folder, step = self.scenario.folder, self.step
        return bool(self.gate.held()) or (
            step not in folder.complete() and self.gate.wait_held(self.scenario.patience_s)
        )

    def heed_interrupts(self, how: str = "raise") -> None:
        """From here on take SIGINT as a script that catches it (`raise`), sets a flag (`note`), or saves (`save`)."""
        does = {"raise": "catches KeyboardInterrupt", "note": "has a handler that sets a flag", "save": "saves"}
        self.tell(f"{does[how]} when SIGINT comes")
        self.worker.call("heed_interrupts", how=how)

    def interrupt(self) -> None:
        """SIGINT to the process, whatever it is doing."""
        held = f" before {self.gate.held()[0]}" if self.worker.gate and self.gate.held() else ""
        self.tell(f"gets SIGINT{held}")
        self.scenario.judge.happens("an interrupt")
        self.worker.interrupt()

    def settle(self) -> None:
        """Return when nothing in the process moves any more, while it has no command to do."""
        settle([self.worker])

    def interrupt_in(self, part: str, doing: str) -> None:
        """SIGINT at the end of the next call of this method of a part of the training."""
        self.tell(f"will get SIGINT when {part}.{doing}() has done its work")
        self.scenario.judge.happens("an interrupt")
        self.worker.call("interrupt_in", part=part, doing=doing)

    def renounce(self) -> None:
        """Let file permissions apply, also to root."""
        self.tell("may do only what permissions allow")
        self.scenario.judge.happens("permissions that apply")
        self.worker.call("renounce")

    def chdir(self, path: Path) -> None:
        """Change the working directory."""
        self.tell(f"changes to the directory {path}")
        self.scenario.judge.happens("another working directory")
        self.worker.call("chdir", path=str(path))

    def umask(self, mask: int) -> None:
        """Set the umask."""
        self.tell(f"has the umask {mask:03o}")
        self.scenario.judge.happens("another umask")
        self.worker.call("umask", mask=f"{mask:o}")

    def environment(self, **variables: Path | None) -> None:
        """Set these variables, or remove them."""
        self.tell("has " + ", ".join(f"{name}={value}" if value else f"no {name}" for name, value in variables.items()))
        self.scenario.judge.happens("another environment")
        values = {name: None if value is None else str(value) for name, value in variables.items()}
        self.worker.call("environment", variables=values)

    def process(self) -> dict[str, Any]:
        """What a manager has to leave as it is: see the command `process`."""
        described: dict[str, Any] = self.worker.call("process")
        return described

    def kill(self) -> None:
        """SIGKILL."""
        held = f" before {self.gate.held()[0]}" if self.worker.gate and self.gate.held() else ""
        self.tell(f"is killed{held}")
        self.scenario.judge.happens("a kill")
        self.worker.kill()
        self.scenario.judge.tell(f"the folder holds: {self.scenario.folder}")

    def exit(self) -> int:
        """The interpreter's normal end."""
        self.tell("ends normally")
        self.scenario.judge.happens("a normal end")
        return self.worker.exit()


class World(AnyLife):
    """The ranks of one run; `outcomes` of its `ranks` says what a command came to on each."""

    def __init__(self, scenario: Surroundings, ranks: Ranks, name: str, settings: dict[str, Any], seed: int) -> None:
        super().__init__(scenario, ranks, name, settings)
        self.seed = seed

    def gate_of(self, rank: int) -> Gate:
        """Picks and observes the file operations of one rank."""
        gate = self.ranks.workers[rank].gate
        assert gate is not None, "world(gated=True) asks for gates"
        return gate

    def open_gates(self) -> None:
        """Let everything go on every rank."""
        self.tell("is no longer held")
        self.scenario.judge.happens("a held operation")
        for worker in self.ranks.workers:
            if worker.is_alive and worker.gate is not None:
                worker.gate.open()

    def wait_held(self, ranks: Iterable[int], timeout_s: float) -> list[int]:
        """Those of these ranks that are held at an operation, once one of them is; none if none was within the time."""
        gates = {rank: self.gate_of(rank) for rank in ranks}
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for gate in gates.values():
                if gate.wait_held(0.02):
                    return [rank for rank, gate in gates.items() if gate.held()]
        return []

    def open(self, seed: int, timeout_s: float, is_alone: bool = False) -> list[Outcome]:
        """Make the training run and its manager on every rank, as a script does at its start.

        Settings that are callable are asked for each rank.
        """
        settings = {"folder": str(self.scenario.folder.path), **self.settings}
        return self.ranks.open(settings, seed, timeout_s, is_alone)

    def train_to(self, step: int) -> list[list[str]]:
        """Train until the run is at `step`; the losses of each rank."""
        self.require_usable()
        if step == self.step:
            return [[] for _ in range(self.shape.ranks)]
        self.tell(f"trains from step {self.step} to {step}")
        self.note("commit.inert")
        losses = self.ranks.together("train", steps=step - self.step)
        self.step, self.has_trained = step, True
        return losses

    def begin_save(
        self, step: int | Callable[[int], int] | None = None, on: Collection[int] | None = None, extra: Any = None
    ) -> None:
        """Start a save on all ranks or on some; `self.ranks.ends()` sees what it comes to."""
        self._require_can_save(None if callable(step) else step)
        where = "" if on is None else f" on rank {', '.join(map(str, on))}"
        what = f"step {self.step if step is None else step}" if not callable(step) else "a different step on each rank"
        with_extra = "" if extra is None else f" with extra {extra!r}"
        self.scenario.make_way(self)
        self.tell(f"saves {what}{with_extra}{where}")
        self.note(self.clause_of_commit(is_save=True), *([] if step is None else ["a save under another step"]))
        self.ranks.begin_save(step, on, extra)

    def save(self, extra: Any = None) -> None:
        """Save at the run's step."""
        self.begin_save(extra=extra)
        values(self.ranks.ends())

    def saved_or_raised(self, step: int | Callable[[int], int] | None = None) -> list[list[str]]:
        """Of each rank, what a save and the wait after it raised; nothing where both went well."""
        raised: list[list[str]] = [[] for _ in range(self.shape.ranks)]
        self.begin_save(step)
        found = self.ranks.ends()
        self.tell("waits for its saves")
        for outcome in (*found, *self.ranks.outcomes("wait")):
            if outcome.fault is not None:
                raised[outcome.rank].append(str(outcome.fault))
                self.scenario.judge.tell(f"rank {outcome.rank}: {str(outcome.fault)[:160]}")
        return raised

    def begin_load(
        self,
        path: Path | str | None = None,
        parts: Sequence[str] = ALL_PARTS,
        freeze_expected: Callable[[int], Any] | None = None,
    ) -> None:
        """Start a resume on all ranks, each with the freeze list that is expected there."""
        self.tell("resumes" if path is None else f"loads {path}")
        self.note("resume.lands", *([] if path is None else ["a load of a path"]))
        self.beginning.loads()
        named = None if path is None else str(path)
        self.ranks.begin("load", path=named, exclude=[], freeze_expected=freeze_expected, parts=list(parts))

    def load_outcomes(
        self,
        path: Path | str | None = None,
        parts: Sequence[str] = ALL_PARTS,
        freeze_expected: Callable[[int], Any] | None = None,
    ) -> list[Outcome]:
        """Resume; what it came to on each rank, `Loaded` or a fault.  The run is then at the lowest step landed on."""
        self.begin_load(path, parts, freeze_expected)
        found = [
            replace(outcome, value=None if outcome.fault else loaded_from(outcome.value))
            for outcome in self.ranks.ends()
        ]
        landed = {outcome.value.step for outcome in found if outcome.fault is None}
        self.step, self.has_trained = min(landed, default=self.step), False
        self.tell("; ".join(_landing(outcome) for outcome in found))
        return found

    def load(self, path: Path | str | None = None) -> list[Loaded]:
        """Resume; where each rank landed."""
        landed: list[Loaded] = values(self.load_outcomes(path))
        return landed

    def whole(self) -> list[dict[str, str]]:
        """Of each rank, fingerprints of the full values, however they are sharded."""
        whole: list[dict[str, str]] = self.ranks.together("whole")
        return whole

    def kill(self, *ranks: int) -> None:
        """SIGKILL to these ranks, or to all of them at once."""
        self.tell(f"is killed on rank {', '.join(map(str, ranks))}" if ranks else "is killed on all ranks")
        self.scenario.judge.happens("a kill")
        self.ranks.kill(ranks or None)
        self.scenario.judge.tell(f"the folder holds: {self.scenario.folder}")

    def strike(self, rank: int, number: int) -> None:
        """Send a signal other than SIGKILL to one rank."""
        assert number != SIGKILL, "kill() also reaps"
        self.scenario.judge.happens("a signal")
        self.ranks.workers[rank].strike(number)


def _landing(outcome: Outcome) -> str:
    if outcome.fault is not None:
        return f"rank {outcome.rank}: {str(outcome.fault)[:160]}"
    loaded = outcome.value
    return f"rank {outcome.rank} " + ("starts fresh" if loaded.is_fresh else f"resumes from step {loaded.step}")
