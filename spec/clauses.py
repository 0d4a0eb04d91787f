"""The form of a clause, the levels, and the capabilities.

A clause is one requirement on a checkpoint manager. Its slug is its stable name: reports, expected failures and
mutants refer to a clause by its slug and by nothing else.

Invariant: a clause is judged only where its situation has arisen. So a manager that does nothing passes
no clause that says *never*.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum


class Level(IntEnum):
    """How much is required; each level contains the levels below it."""

    CORE = 1
    STRICT = 2
    DURABLE = 3

    @classmethod
    def named(cls, name: str) -> "Level":
        """Return the level called `name`; the `ValueError` for an unknown name lists the levels.

        >>> Level.named("strict")
        <Level.STRICT: 2>
        """
        try:
            return cls[name.upper()]
        except KeyError:
            known = ", ".join(level.name.lower() for level in cls)
            raise ValueError(f"no level is called {name!r}; there are {known}") from None

    def __str__(self) -> str:
        return self.name.lower()


LEVELS: dict[Level, str] = {
    Level.CORE: "what the design of the shared API states: every manager that claims these semantics meets it",
    Level.STRICT: "what a manager needs to be relied upon; each clause is about a failure that happened to somebody",
    Level.DURABLE: "what holds after a loss of power, and not only after a kill",
}
"""Every level, each with what it requires."""


CAPABILITIES: dict[str, str] = {
    "layout": "the folder has the layout of the chapter `layout`: `step_N/` with marker, `train_state.pt` and "
    "`metadata.json`",
    "sync": "`save` can return when the checkpoint is committed",
    "async": "`save` can return while a flush writes the checkpoint in the background",
    "pinned": "an asynchronous save can stage its copy in page-locked memory",
    "schedule": "the manager decides which steps are saved",
    "window": "a named strategy can replace the interval in a window of steps",
    "retention": "old checkpoints beyond a limit are deleted",
    "pointer": "a pointer `latest` names the checkpoint that was committed last",
    "explicit": "the caller can name the checkpoint to load by its path",
    "exclude": "the caller can exclude parts of the state from a load",
    "partial": "a load can leave out single parameters: those that the caller names, and those that the model no "
    "longer has",
    "peek": "the caller can ask beforehand on which step an auto-resume would land",
    "train-state": "step, tokens seen, scheduler and the caller's extra are saved with the weights",
    "rng": "the states of random number generators are saved with the weights",
    "dataloader": "the position of a stateful data loader is saved with the weights",
    "loader-later": "a loader that is made after the load gets its position then; a part of `dataloader`",
    "gradients": "a save notices accumulated gradients that no optimizer step has used",
    "freeze": "the list of frozen modules is recorded, and compared at a resume",
    "trust": "pickles that another user owns are refused",
    "distributed": "several ranks save one checkpoint together",
    "pipeline": "ranks form pipeline stages, which save into directories `ppI/`",
    "reshard": "a checkpoint that N ranks saved loads on M ranks",
    "one-writer": "a second process that saves into the folder is refused, unless its caller takes the folder over",
    "gpu": "model and optimizer can be on an accelerator",
    "ephemeral": "hooks of the training loop save permanent and ephemeral checkpoints, and remove what was replaced",
    "step-layout": "what hooks save has the layout of the chapter `ephemeral`: `stepN/` with `model_and_optim/`, "
    "`train/` and `.metadata.json`",
    "fixed-steps": "single steps can be named at which hooks save a permanent checkpoint",
    "cooldown": "an ephemeral checkpoint keeps a distance, in steps, from the save before it",
    "max-permanent": "permanent checkpoints of hooks are removed beyond a limit",
    "script": "there is a training job that uses the manager: a command that can be started, killed and started again",
}
"""Everything that a manager may claim, each with what it means."""


PARTS: dict[str, frozenset[str]] = {"dataloader": frozenset({"loader-later"})}
"""Capabilities that come with another one: a manager that claims that one claims them too, unless it says without which
part."""


def with_parts(capabilities: Iterable[str]) -> frozenset[str]:
    """Return these capabilities and those that come with them.

    >>> sorted(with_parts({"rng", "dataloader"}))
    ['dataloader', 'loader-later', 'rng']
    """
    claimed = frozenset(capabilities)
    return claimed.union(*(PARTS[name] for name in claimed & PARTS.keys()))


@dataclass(frozen=True)
class Clause:
    """One requirement.

    `sentence` completes "A checkpoint manager ...": present tense, observable from outside. `why` says what happens
    to a run where it does not hold. `situation` is what has to happen before a verdict counts.
    `rests_on` lists the clauses without which this one can't hold either, so that a report can tell a cause from its
    consequences. `predicates` names the functions that decide it, in its chapter, or in another one after a dot.
    """

    slug: str
    level: Level
    sentence: str
    why: str
    situation: str
    capabilities: frozenset[str] = frozenset()
    rests_on: tuple[str, ...] = ()
    predicates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = self.capabilities - CAPABILITIES.keys()
        assert not unknown, f"{self.slug} needs unknown capabilities {sorted(unknown)}"

    @property
    def chapter(self) -> str:
        """The part of the slug before the dot: the module that defines the clause."""
        return self.slug.partition(".")[0]
