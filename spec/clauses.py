"""A clause is one thing that a checkpoint manager must do, as a value.

Its slug is the stable name: reports, expected failures and mutants refer to a
clause by slug and by nothing else.  A clause that says *never* is kept honest
by `sometimes`, the situation that has to arise before the clause counts as
judged: a manager that does nothing never reaches it.

Levels contain one another: an implementation that claims `strict` is held to
`core` as well.  A clause that needs a capability which an implementation does
not claim is *unclaimed* there, never passed.
"""

from dataclasses import dataclass
from enum import IntEnum


class Level(IntEnum):
    """How much is promised; each level contains the ones below it."""

    CORE = 1
    STRICT = 2
    DURABLE = 3

    @classmethod
    def named(cls, name: str) -> "Level":
        """The level called `name`; `ValueError` lists the names there are.

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


CAPABILITIES: dict[str, str] = {
    "layout": "the folder looks as the chapter `layout` says: step_N/ with marker, train_state.pt and metadata.json",
    "sync": "a save that returns when the checkpoint is complete",
    "async": "a save that returns while its flush goes on in the background",
    "pinned": "an asynchronous save that stages through page-locked memory",
    "schedule": "the manager decides which steps are saved",
    "window": "a window of steps in which a named strategy replaces the interval",
    "retention": "old checkpoints are deleted beyond a limit",
    "pointer": "a `latest` pointer names the newest committed checkpoint",
    "explicit": "a caller may name the checkpoint to load by its path",
    "exclude": "a caller may leave parts of the state out of a load",
    "peek": "the step that a resume would land on can be asked for beforehand",
    "train-state": "step, tokens seen, scheduler and the caller's extra travel with the weights",
    "rng": "random number streams travel with the weights",
    "dataloader": "the position of a stateful loader travels with the weights",
    "freeze": "which modules were frozen is recorded and compared on resume",
    "trust": "pickles of another owner are refused",
    "distributed": "several ranks save one checkpoint",
    "pipeline": "ranks are arranged in stages that save into ppI/ directories",
    "reshard": "a checkpoint of N ranks loads on M",
    "ephemeral": "temporary checkpoints beside permanent ones",
    "fixed-steps": "extra permanent checkpoints at listed steps",
    "gpu": "state lives on an accelerator",
}
"""Everything that an implementation may claim, each with what it means."""


WORDS: dict[str, str] = {
    "step": "the training counter",
    "checkpoint": "what exists on disk for one step",
    "shard": "one rank's piece of a checkpoint",
    "marker": "the file that is written when all shards are there: DCP's `.metadata`",
    "durable": "every byte that a resume of this step needs is on storage",
    "complete": "durable as a reader sees it: marker, `train_state.pt` and `metadata.json` are present",
    "torn": "said of a step's directory that is not complete",
    "committed": "complete, and `latest` has pointed at it; without a pointer, complete",
    "in flight": "dispatched and not yet committed",
    "acknowledged": "committed, as a call that returned has told its caller",
    "milestone": "a step that its window's strategy fires on; every other step is ordinary",
    "auto-resume": "a load that no caller named a path for",
    "resume point": "the step that an auto-resume would land on",
    "extra": "what the caller gave to be saved with the train state and returned by the load",
}
"""One word for one thing, in every chapter."""


@dataclass(frozen=True)
class Clause:
    """One MUST.

    `sentence` completes "A checkpoint manager ...": present tense, observable
    from outside.  `why` names what happens to a run when it does not hold.
    `sometimes` is the situation that must have arisen for a verdict.
    `rests_on` lists the slugs without which this one cannot hold either, so
    that a report can tell a root failure from its consequences.
    """

    slug: str
    level: Level
    sentence: str
    why: str
    sometimes: str
    capabilities: frozenset[str] = frozenset()
    rests_on: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = self.capabilities - CAPABILITIES.keys()
        assert not unknown, f"{self.slug} needs unknown capabilities {sorted(unknown)}"

    @property
    def chapter(self) -> str:
        """The part of the slug before the dot: the module that defines it."""
        return self.slug.partition(".")[0]
