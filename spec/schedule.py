"""When to save: a pure function of the step.

An interval decides, except inside a window, where a strategy decides alone and
the interval is silent.  The window exists because the loss moves fastest at
the start of a run or of a phase: `power2` saves densely there and thins out.
The steps that a strategy fires on are *milestones*; `retention` spares them.

Invariants: the answer for a step depends on that step and on the configuration
and on nothing else, so a resumed run asks for the same checkpoints as the
uninterrupted one; and a configuration that could never be meant is refused
when it is made, not when the first save is due.
"""

from dataclasses import dataclass

from forge_spec.clauses import Clause, Level

_SCHEDULE = frozenset({"schedule"})
_WINDOW = frozenset({"schedule", "window"})

CLAUSES: tuple[Clause, ...] = (
    Clause(
        slug="schedule.interval",
        level=Level.CORE,
        sentence="asks for a save, outside any window, exactly at the multiples of `interval`, step 0 among them",
        why="A step too few and a kill costs an interval of training that the owner believed safe; "
        "a step too many and the run stops for I/O that nobody asked for.",
        sometimes="a step on the interval and a step off it were both asked about, outside any window",
        capabilities=_SCHEDULE,
    ),
    Clause(
        slug="schedule.window-replaces-interval",
        level=Level.CORE,
        sentence="leaves the decision to the strategy alone from `start` to `stop`, both ends included, "
        "whatever the interval says there",
        why="If the interval still fires inside, the folder holds checkpoints that are neither milestones nor wanted, "
        "and retention pays for them; if an end is left out, the one checkpoint the window was set for is missing.",
        sometimes="inside a window, a step was asked about on which interval and strategy disagree, "
        "and so were both of its ends",
        capabilities=_WINDOW,
    ),
    Clause(
        slug="schedule.power2",
        level=Level.CORE,
        sentence="with the strategy `power2` fires at `start` and at each `start + 2**k`, k = 0, 1, 2, ..., up to "
        "`stop`",
        why="Studies of early training compare runs at these steps; one that fires elsewhere can't be compared.",
        sometimes="every step of a `power2` window that does not start at 0 was asked about",
        capabilities=_WINDOW,
    ),
    Clause(
        slug="schedule.milestone",
        level=Level.CORE,
        sentence="calls a step a milestone when the strategy fires on it inside the window, "
        "and no step one when there is no window or the strategy is silent",
        why="Milestones are never pruned: a missed one is lost for good, a false one fills the disk.",
        sometimes="milestones and ordinary steps were asked about, with a window and without one",
        capabilities=_WINDOW,
        rests_on=("schedule.power2",),
    ),
    Clause(
        slug="schedule.strategy-in-window",
        level=Level.STRICT,
        sentence="calls no step outside the window a milestone, even if the strategy fires there",
        why="A strategy written for its own arithmetic fires without end; taken at its word, "
        "every checkpoint of the run becomes exempt from retention.",
        sometimes="a registered strategy fired outside its window",
        capabilities=_WINDOW,
        rests_on=("schedule.milestone", "schedule.registry"),
    ),
    Clause(
        slug="schedule.registry",
        level=Level.CORE,
        sentence="selects strategies by the name they were registered under, and answers a name taken twice and "
        "an unknown name with an error that lists the registered names",
        why="A silent overwrite changes the schedule of every run that selects that name; "
        "a typing error found at the first due save has already cost the run up to there.",
        sometimes="a strategy was registered and selected, a name was registered twice, and an unknown one was "
        "selected",
        capabilities=_WINDOW,
    ),
    Clause(
        slug="schedule.validate",
        level=Level.CORE,
        sentence="refuses an `interval` below 1 with a `ValueError` that names the field",
        why="Zero divides at the first due step, hours in; a negative interval saves at steps nobody would expect.",
        sometimes="a configuration with an interval of 0 and one with a negative interval were made",
        capabilities=_SCHEDULE,
    ),
    Clause(
        slug="schedule.validate-window",
        level=Level.CORE,
        sentence="refuses a window whose `start` is negative or whose `stop` is below `start` "
        "with a `ValueError` that names the field",
        why="Such a window never fires, and the dense checkpoints it was set for are missed without a word.",
        sometimes="a window with a negative start and one with stop below start were made",
        capabilities=_WINDOW,
    ),
    Clause(
        slug="schedule.no-side-effects",
        level=Level.STRICT,
        sentence="answers about the schedule without changing anything: asking twice, in any order, "
        "or about any other step gives the same answers, and folder and random streams stay as they were",
        why="Training loops, progress bars and planners all ask; if asking counts, the schedule depends on who looked.",
        sometimes="the same steps were asked about repeatedly and in another order",
        capabilities=_SCHEDULE,
    ),
    Clause(
        slug="schedule.every-knob-acts",
        level=Level.STRICT,
        sentence="shows an observable effect of every documented configuration field, `exclude_from_loading` among "
        "them",
        why="A field that nothing reads is a promise: the owner leaves the optimizer out of a load, "
        "and the load takes it in.",
        sometimes="two runs that differ in a single field were compared, for each field",
        capabilities=frozenset({"schedule", "exclude"}),
        rests_on=("resume.exclude",),
    ),
)


def power2(start: int, stop: int) -> frozenset[int]:
    """The steps on which `power2` fires.

    >>> sorted(power2(0, 16))
    [0, 1, 2, 4, 8, 16]
    >>> sorted(power2(100, 108))
    [100, 101, 102, 104, 108]
    >>> sorted(power2(5, 5)), sorted(power2(5, 4))
    ([5], [])
    """
    fires = {start} if start <= stop else set()
    offset = 1
    while start + offset <= stop:
        fires.add(start + offset)
        offset *= 2
    return frozenset(fires)


@dataclass(frozen=True)
class Window:
    """Steps `start` to `stop`, both included, and the steps its strategy fires on.

    `fires` may reach outside the window: a strategy is the user's code.

    >>> window = Window(10, 20, fires=frozenset({5, 10, 20}))
    >>> 10 in window, 20 in window, 5 in window
    (True, True, False)
    """

    start: int
    stop: int
    fires: frozenset[int]

    def __contains__(self, step: int) -> bool:
        """Whether the strategy decides at this step."""
        return self.start <= step <= self.stop


def power2_window(start: int, stop: int) -> Window:
    """The window with the strategy `power2`.

    >>> power2_window(8, 10) == Window(8, 10, frozenset({8, 9, 10}))
    True
    """
    return Window(start, stop, power2(start, stop))


def is_milestone(step: int, window: Window | None) -> bool:
    """Whether retention spares a checkpoint saved at this step.

    >>> window = Window(10, 20, fires=frozenset({5, 10, 20, 25}))
    >>> [step for step in range(30) if is_milestone(step, window)]
    [10, 20]
    >>> is_milestone(10, None)
    False
    """
    return window is not None and step in window and step in window.fires


def should_save(step: int, interval: int, window: Window | None = None) -> bool:
    """Whether a checkpoint is due.

    >>> [step for step in range(9) if should_save(step, interval=4)]
    [0, 4, 8]
    >>> window = power2_window(3, 8)
    >>> [step for step in range(13) if should_save(step, interval=4, window=window)]
    [0, 3, 4, 5, 7, 12]
    """
    if window is not None and step in window:
        return is_milestone(step, window)
    return step % interval == 0


def schedule_errors(interval: int, start: int | None = None, stop: int | None = None) -> tuple[str, ...]:
    """The fields for which a configuration is refused; an error has to name one of them.

    No window is `start` and `stop` both None.

    >>> schedule_errors(1), schedule_errors(1000, start=0, stop=0)
    ((), ())
    >>> schedule_errors(0), schedule_errors(-5)
    (('interval',), ('interval',))
    >>> schedule_errors(10, start=-1, stop=8), schedule_errors(10, start=9, stop=8)
    (('start',), ('stop',))
    """
    offending = {
        "interval": interval <= 0,
        "start": start is not None and start < 0,
        "stop": start is not None and stop is not None and stop < start,
    }
    return tuple(field for field, is_offending in offending.items() if is_offending)
