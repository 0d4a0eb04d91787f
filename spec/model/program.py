"""A trace of the model as a program: the calls and faults that bring it about on a real manager.

A program contains what the caller did and which faults happened. It waits for what the manager does by itself: every
action lists the rows that have to be taken before it, since the action before. A harness that can hold a manager at its
file operations can bring about the same order. One that can't has at least the calls.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from forge_spec.model.machine import Label
from forge_spec.model.table import TABLE


@dataclass(frozen=True)
class Action:
    """Something that is done when the manager has taken the rows of `after`, in this order, and no others."""

    after: tuple[Label, ...]


@dataclass(frozen=True)
class Start(Action):
    """New processes start on all ranks and resume: in an auto-resume, or from the step that is named."""

    named: int | None = None


@dataclass(frozen=True)
class Train(Action):
    """Training goes on to the next step that may be saved."""


@dataclass(frozen=True)
class Save(Action):
    """`save` is called on all ranks, at the current step."""


@dataclass(frozen=True)
class Wait(Action):
    """`wait` is called on all ranks."""


@dataclass(frozen=True)
class Kill(Action):
    """All ranks are killed."""


@dataclass(frozen=True)
class LoseRank(Action):
    """One rank other than rank 0 is killed."""


@dataclass(frozen=True)
class FillDisk(Action):
    """The next write fails for lack of space; after that there is space again."""


@dataclass(frozen=True)
class Remove(Action):
    """Somebody removes `latest`, or from the directory of a step `train_state` or the last stage's `marker`."""

    what: str
    step: int | None = None


@dataclass(frozen=True)
class Finish(Action):
    """The program ends here, and the violation of the trace can be observed."""


def program(trace: Iterable[Label]) -> tuple[Action, ...]:
    """Return the actions of a trace; the last is a `Finish`.

    >>> for action in program([Label("start"), Label("resolve"), Label("load", 0), Label("go on"), Label("train")]):
    ...     print(type(action).__name__, *action.after, sep="; ")
    Start
    Train; resolve; load 0; go on
    Finish
    """
    actions: list[Action] = []
    after: list[Label] = []
    for label in trace:
        if label.row in _EXTERNAL:
            actions.append(_action(label, tuple(after)))
            after.clear()
        else:
            after.append(label)
    return (*actions, Finish(tuple(after)))


_EXTERNAL = frozenset(row.name for row in TABLE if row.external)


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
    raise AssertionError(f"{label} is an external row without an action")
