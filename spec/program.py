"""A trace of the model as a program: what its caller did, and what happened to it, for a real manager to go through.

What the manager did by itself is not done by the program but waited for: every
action says which rows have to have been taken, since the action before it, when
its moment has come.  So a harness that can hold a manager at its file
operations can bring about the same order, and one that can't has at least the calls.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from forge_spec.machine import Label
from forge_spec.model import TABLE


@dataclass(frozen=True)
class Action:
    """Something that is done when the manager has taken the rows of `after`, in order, and nothing more."""

    after: tuple[Label, ...]


@dataclass(frozen=True)
class Start(Action):
    """New processes on all ranks, which resume: by themselves, or from the step that is named."""

    named: int | None = None


@dataclass(frozen=True)
class Train(Action):
    """Training goes on to the next step that may be saved."""


@dataclass(frozen=True)
class Save(Action):
    """`save` is called on all ranks, at the step where training stands."""


@dataclass(frozen=True)
class Wait(Action):
    """`wait` is called on all ranks."""


@dataclass(frozen=True)
class Kill(Action):
    """All ranks are killed."""


@dataclass(frozen=True)
class LoseRank(Action):
    """One rank is killed, and it is not rank 0."""


@dataclass(frozen=True)
class FillDisk(Action):
    """The next write fails for lack of space; after that there is some again."""


@dataclass(frozen=True)
class Remove(Action):
    """Somebody else removes `latest`, or from the directory of a step `train_state` or the last stage's `marker`."""

    what: str
    step: int | None = None


@dataclass(frozen=True)
class Finish(Action):
    """The program ends here, and what the trace is about can be seen."""


def program(trace: Iterable[Label]) -> tuple[Action, ...]:
    """The actions of a trace, the last of them a `Finish`.

    >>> for action in program([Label("start"), Label("resolve"), Label("load", 0), Label("go on"), Label("train")]):
    ...     print(type(action).__name__, *action.after, sep="; ")
    Start
    Train; resolve; load 0; go on
    Finish
    """
    actions: list[Action] = []
    after: list[Label] = []
    for label in trace:
        if label.row in _OF_THE_WORLD:
            actions.append(_action(label, tuple(after)))
            after.clear()
        else:
            after.append(label)
    return (*actions, Finish(tuple(after)))


_OF_THE_WORLD = frozenset(row.name for row in TABLE if row.world)


def _action(label: Label, after: tuple[Label, ...]) -> Action:
    match label:
        case Label("start"):
            return Start(after)
        case Label("rewind", step):
            return Start(after, named=step)
        case Label("train"):
            return Train(after)
        case Label("save"):
            return Save(after)
        case Label("wait"):
            return Wait(after)
        case Label("kill"):
            return Kill(after)
        case Label("lose rank"):
            return LoseRank(after)
        case Label("full"):
            return FillDisk(after)
        case Label("lose latest"):
            return Remove(after, "latest")
        case Label("lose marker", step):
            return Remove(after, "marker", step)
        case Label("lose train state", step):
            return Remove(after, "train_state", step)
    raise AssertionError(f"{label} is a row of the world without an action")
