"""What an interrupt may do: SIGINT comes in the middle of a call, the script catches it, and the run goes on.

Ctrl-C, the stop button of a notebook and many schedulers send SIGINT. The process goes on with the manager in it,
whatever the manager was doing, and the first thing that the script does is often an emergency save.

Invariants: each call is done or not done when the interrupt comes out of it; what was acknowledged stays acknowledged;
and a flush that an interrupted call was waiting for is waited for by the next call.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from forge_spec.clauses import Clause, Level

_ASYNC = frozenset({"async"})
_DISTRIBUTED = frozenset({"distributed"})

CLAUSES: tuple[Clause, ...] = (
    Clause(
        slug="interrupt.nothing-lost",
        level=Level.STRICT,
        sentence="loses nothing to an interrupt that the script catches, wherever in a `save` or a `wait` it comes. "
        "The resume point never moves back, and the interrupted save is committed whole or not at all. The next save "
        "and `wait` succeed, and a resume lands on that save",
        why="An emergency save after Ctrl-C is acknowledged, and the restart finds the checkpoint before it, or none.",
        situation="an interrupt came at file operations of a save, and another save followed it in the same process",
        rests_on=("resume.lands", "resume.exact"),
        predicates=("may_come_back",),
    ),
    Clause(
        slug="interrupt.flush-is-found",
        level=Level.STRICT,
        sentence="lets the next `save`, `wait`, `flush_pending_save` or `load` find a flush that an interrupted call "
        "was waiting for. That call waits for the flush, the flush's failure is still raised once, and the flush "
        "never overtakes a later save",
        why="Python before 3.13 takes a thread for ended when a join of it was interrupted. The flush then goes on "
        "unnoticed, moves `latest` back, and deletes the emergency save.",
        situation="an interrupt came while a call waited for a flush that was held back, and another save followed it",
        capabilities=_ASYNC,
        rests_on=("commit.no-later-than",),
    ),
    Clause(
        slug="interrupt.reaches-caller",
        level=Level.STRICT,
        sentence="passes an interrupt on to its caller as the exception that the script's handler raises (in Python "
        "`KeyboardInterrupt`). It never swallows it, and never turns it into an error of the save or load",
        why="A script that stops at Ctrl-C, but goes on after a failed save, trains on, and Ctrl-C seems to do "
        "nothing.",
        situation="an interrupt came in the middle of a call",
    ),
    Clause(
        slug="interrupt.load-is-whole",
        level=Level.STRICT,
        sentence="has changed nothing, or everything, when an interrupt comes out of `load`. Model, optimizer, "
        "scheduler, loader and random number generators are all as they were, or all as the checkpoint has them",
        why="A notebook goes on with the weights of the checkpoint and the moments of the run before it.",
        situation="an interrupt came at a file that a load opens, or while it puts a part of the state into its place",
        rests_on=("resume.exact",),
        predicates=("is_whole",),
    ),
    Clause(
        slug="interrupt.inert",
        level=Level.STRICT,
        sentence="leaves training as it was when an interrupt comes out of a save: parameters, buffers, optimizer, "
        "scheduler, loader and random number generators",
        why="The run that goes on after Ctrl-C would not be the run that would have gone on without it.",
        situation="an interrupt came at a file operation of a save, or while it asks a part for its state",
        predicates=("is_whole",),
    ),
    Clause(
        slug="interrupt.own-handler",
        level=Level.STRICT,
        sentence="lets the script's own handler for SIGINT run, once for each interrupt, and stay installed. Where "
        "the handler does not raise, the call goes on as if there had been no interrupt",
        why="Launchers and schedulers ask for a checkpoint by a signal whose handler sets a flag. A flag that is lost "
        "costs the allocation.",
        situation="an interrupt came in the middle of a save or a `wait`, with a handler that does not raise",
    ),
    Clause(
        slug="interrupt.saving-handler",
        level=Level.STRICT,
        sentence="survives a handler that saves, in the middle of a save or while a call waits for a flush. That save "
        "is made or raises, nothing that was acknowledged is lost, and the next save works",
        why="Two nested saves write into the same files. Neither can be resumed, and both were acknowledged.",
        situation="a handler saved while a save or a `wait` was going on",
        rests_on=("commit.resave",),
    ),
    Clause(
        slug="interrupt.ranks",
        level=Level.STRICT,
        sentence="ends the call on every rank when one of them is interrupted in a save, and lets the next save of "
        "all of them be committed",
        why="The interrupted rank leaves a collective that the others are in. They wait for half an hour, and the "
        "emergency save never begins.",
        situation="an interrupt came to one of several ranks at a file operation of a save",
        capabilities=_DISTRIBUTED,
        rests_on=("commit.collective",),
    ),
)


@dataclass(frozen=True)
class Save:
    """One save of a run; an asynchronous one includes the `wait` after it."""

    step: int
    was_interrupted: bool = False


def may_come_back(saves: Iterable[Save]) -> frozenset[int | None]:
    """Return the steps that a resume may land on after these saves; None stands for a fresh start.

    An interrupted save is committed or not, and nobody knows which. A save that returned is acknowledged, so no resume
    may land on a save before it.

    >>> sorted(may_come_back([Save(2), Save(4, was_interrupted=True)]))
    [2, 4]
    >>> may_come_back([Save(2), Save(4, was_interrupted=True), Save(6)])
    frozenset({6})
    >>> may_come_back([Save(2, was_interrupted=True)]) == {None, 2}
    True
    """
    possible: set[int | None] = {None}
    for save in saves:
        possible = {*possible, save.step} if save.was_interrupted else {save.step}
    return frozenset(possible)


def is_whole(before: Mapping[str, str], after: Mapping[str, str], saved: Mapping[str, str]) -> bool:
    """Return whether a load has changed nothing, or everything that was saved, given fingerprints of each part.

    >>> before, saved = {"weights": "a", "moments": "b"}, {"weights": "c", "moments": "d"}
    >>> is_whole(before, before, saved), is_whole(before, saved, saved)
    (True, True)
    >>> is_whole(before, {"weights": "c", "moments": "b"}, saved)
    False
    """
    return after == before or all(after.get(part) == value for part, value in saved.items())
