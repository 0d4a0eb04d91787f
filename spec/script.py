"""What any training job may expect after a death, whatever saves its checkpoints: judged by what the job prints.

The other chapters look at a manager through its calls. This one looks at a whole job from outside: a command, the
folder of its checkpoints, and the *progress lines* in which it names its steps and their values. So it needs no
adapter, and it also covers what stands around the manager: the loop, the loader, the seeds, the launcher.

What must be restored is not known from any manager. It is shown by the job itself: a restart after an earlier death
left out so many progress lines, so none after a later death may repeat them.

Invariant: nothing is required of a restart that no other restart, or the undisturbed run, has done.
"""

from collections.abc import Sequence

from forge_spec.clauses import Clause, Level

_SCRIPT = frozenset({"script"})

CLAUSES: tuple[Clause, ...] = (
    Clause(
        slug="script.starts",
        level=Level.CORE,
        sentence="lets the job that uses it start again after a kill at any instant, over the folder as the kill left "
        "it: at the first start or, if that one fails, at the second",
        why="Nobody watches at night. A job that ends with the same error at each restart has lost the allocation, and "
        "often the newest checkpoint has to be deleted by hand.",
        situation="a job was recorded, and restarted from every disk that a kill can have left",
        capabilities=_SCRIPT,
    ),
    Clause(
        slug="script.keeps-work",
        level=Level.CORE,
        sentence="lets a restart repeat no work that a restart after an earlier kill did not have to repeat. It never "
        "lets the job start from scratch beside a checkpoint that could be used before",
        why="A job that falls back to step 0 without a word looks healthy in every dashboard. It overwrites its good "
        "checkpoints with new ones of low steps.",
        situation="a restart after one kill left out progress lines, and a restart after a later kill was followed",
        capabilities=_SCRIPT,
        predicates=("required",),
    ),
    Clause(
        slug="script.same-run",
        level=Level.CORE,
        sentence="lets a restart go on as the undisturbed job did: the same steps without a gap, the same values, and "
        "the same result at the end",
        why="Weights of one save with moments of another, a loader that begins anew, or a step that is counted twice "
        "raise no error. The loss jumps, and nobody can repeat the run.",
        situation="a restart printed progress lines that two undisturbed runs agree on",
        capabilities=_SCRIPT,
        predicates=("is_same_run",),
    ),
    Clause(
        slug="script.goes-on",
        level=Level.CORE,
        sentence="lets a restarted job save again, and come to its end",
        why="What a killed save left makes a later save fail: the job starts, trains for an hour, fails at its save, "
        "and does so at every restart.",
        situation="a restart printed progress lines, and came to the steps at which it saves",
        capabilities=_SCRIPT,
    ),
    Clause(
        slug="script.signal",
        level=Level.CORE,
        sentence="lets the job that uses it end at SIGTERM or SIGINT within the grace time without losing anything "
        "that a kill would have kept. A restart goes on from the save that a handler made before the job ended",
        why="Schedulers announce a preemption by a signal. A handler that saves in the middle of a save, or writes a "
        "step that is not complete, turns a harmless end into a lost run.",
        situation="a signal came to a running job at a progress line or an operation of a save, and it was restarted",
        capabilities=_SCRIPT,
        rests_on=("script.starts", "script.same-run"),
    ),
    Clause(
        slug="script.power-loss",
        level=Level.DURABLE,
        sentence="lets the job that uses it start again, go on as the undisturbed job did and save again, from every "
        "disk that a loss of power at any instant may leave",
        why="A loss of power or a crashed node leaves a renamed file empty. The job fails at every restart, with older "
        "checkpoints overwritten.",
        situation="disks that the rules of a storage allow were built, and the job was restarted from each",
        capabilities=_SCRIPT,
        rests_on=("script.starts",),
    ),
    Clause(
        slug="script.acknowledged",
        level=Level.DURABLE,
        sentence="lets no loss of power take back a checkpoint that the job has acknowledged. A job acknowledges a "
        "save by the line that says so, or by going on to its next progress line",
        why="The line in the log says that step 40,000 is saved. After the loss of power the job goes on from step 0.",
        situation="the power was cut after a save was acknowledged, and the job was restarted",
        capabilities=_SCRIPT,
        rests_on=("script.keeps-work",),
        predicates=("required",),
    ),
)


def required(landings: Sequence[tuple[int, int]], cut: int) -> int:
    """Return how many progress lines a restart must not repeat after a death at this cut.

    `landings` has, for earlier deaths, the cut and the lines that a restart left out; after a loss of power the cut is
    that of the acknowledgement. A death at the same cut shows nothing about itself.

    >>> [required([(3, 0), (5, 2), (9, 4)], cut) for cut in (3, 5, 6, 9, 10)]
    [0, 0, 2, 2, 4]
    >>> required([(5, 4), (9, 2)], 10)
    4
    """
    return max((left_out for at, left_out in landings if at < cut), default=0)


def is_same_run(undisturbed: Sequence[str], restart: Sequence[str], reached: int) -> bool:
    """Return whether a restart printed progress lines of the undisturbed run, without a gap and without a jump ahead.

    `reached` is how many lines were printed before the death. The job may have saved one step more than it printed.

    >>> whole = ["step 1", "step 2", "step 3", "step 4"]
    >>> is_same_run(whole, ["step 2", "step 3"], reached=2), is_same_run(whole, ["step 4"], reached=2)
    (True, True)
    >>> is_same_run(whole, ["step 4"], reached=1), is_same_run(whole, ["step 2", "step 4"], reached=2)
    (False, False)
    >>> is_same_run(whole, [], reached=4)
    True
    """
    if not restart:
        return reached + 1 >= len(undisturbed)
    begins = [at for at in range(len(undisturbed)) if list(undisturbed[at : at + len(restart)]) == list(restart)]
    return any(at <= reached + 1 for at in begins)
