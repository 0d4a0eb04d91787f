"""When to save: the answer for a step depends on that step and the configuration only.

Outside a window the interval decides. Inside a window a strategy decides, and the interval has no say. A window is for
the start of a run or of a phase, where the loss changes fastest: `power2` saves often there, and then less and less.
The steps on which a strategy fires are *milestones*, which are never deleted.

Invariants: a resumed run asks for the same saves as an uninterrupted one; and a configuration that makes no sense is
refused when it is made, not when the first save is due.
"""

from dataclasses import dataclass

from forge_spec.clauses import Clause, Level

_SCHEDULE = frozenset({"schedule"})
_WINDOW = frozenset({"schedule", "window"})

CLAUSES: tuple[Clause, ...] = (
    Clause(
        slug="schedule.interval",
        level=Level.CORE,
        sentence="asks for a save, outside any window, exactly at the multiples of `interval`, including step 0",
        why="With a step too few, a kill costs an interval of training that the owner believed safe. With a step too "
        "many, the run stops for I/O that nobody asked for.",
        situation="a step that is a multiple of the interval and one that is not were asked about, outside any window",
        capabilities=_SCHEDULE,
        predicates=("should_save",),
    ),
    Clause(
        slug="schedule.window-replaces-interval",
        level=Level.CORE,
        sentence="lets the strategy alone decide from `start` to `stop`, both included, whatever the interval says "
        "there",
        why="If the interval still acts inside, the folder fills with checkpoints that nobody asked for. If an end is "
        "left out, the one checkpoint that the window was set for is missing.",
        situation="inside a window, steps were asked about on which interval and strategy disagree, among them both "
        "ends",
        capabilities=_WINDOW,
        predicates=("should_save",),
    ),
    Clause(
        slug="schedule.power2",
        level=Level.CORE,
        sentence="with the strategy `power2` fires at `start` and at each `start + 2**k`, k = 0, 1, 2, ..., up to "
        "`stop`",
        why="Studies of early training compare runs at these steps. A run that saves at other steps can't be compared.",
        situation="every step of a `power2` window that does not start at 0 was asked about",
        capabilities=_WINDOW,
        predicates=("power2",),
    ),
    Clause(
        slug="schedule.milestone",
        level=Level.CORE,
        sentence="calls a step a milestone when the strategy fires on it inside the window, and no step when there is "
        "no window or the strategy does not fire",
        why="Milestones are never deleted. A missed milestone is lost for good, and a false one fills the disk.",
        situation="milestones and ordinary steps were asked about, with a window and without one",
        capabilities=_WINDOW,
        rests_on=("schedule.power2",),
        predicates=("is_milestone",),
    ),
    Clause(
        slug="schedule.strategy-in-window",
        level=Level.STRICT,
        sentence="calls no step outside the window a milestone, even if the strategy fires there",
        why="A strategy that was written without its window in mind fires without end, and every checkpoint of the "
        "run would be exempt from deletion.",
        situation="a registered strategy fired outside its window",
        capabilities=_WINDOW,
        rests_on=("schedule.milestone", "schedule.registry"),
        predicates=("is_milestone",),
    ),
    Clause(
        slug="schedule.registry",
        level=Level.CORE,
        sentence="selects a strategy by the name it was registered under. It answers a name that is taken, and an "
        "unknown name, with an error that lists the registered names",
        why="If a second registration replaces the first, the schedule of every run that selects the name changes. A "
        "typing error that is found at the first due save has already cost the run up to there.",
        situation="a strategy was registered and selected, a name was registered twice, and an unknown name was "
        "selected",
        capabilities=_WINDOW,
    ),
    Clause(
        slug="schedule.validate",
        level=Level.CORE,
        sentence="refuses an `interval` below 1 with a `ValueError` that names the field",
        why="Zero divides at the first due step, hours into the run. A negative interval saves at steps that nobody "
        "would expect.",
        situation="a configuration with an interval of 0 and one with a negative interval were made",
        capabilities=_SCHEDULE,
        predicates=("schedule_errors",),
    ),
    Clause(
        slug="schedule.validate-window",
        level=Level.CORE,
        sentence="refuses a window whose `start` is negative or whose `stop` is below `start`, with a `ValueError` "
        "that names the field",
        why="Such a window never fires, and the checkpoints it was set for are missing without any message.",
        situation="a window with a negative start and one with its stop below its start were made",
        capabilities=_WINDOW,
        predicates=("schedule_errors",),
    ),
    Clause(
        slug="schedule.kinds",
        level=Level.STRICT,
        sentence="refuses, when it is configured, a setting of another type than it takes, with a `ValueError` or a "
        "`TypeError` that names the field. Wrong types are a string, a float, a boolean or null for an integer, and a "
        "string for a boolean or for a list of strings",
        why='`keep_last_n: "2"` from a file trains until the first commit compares it with a number, and '
        '`ignore_freeze_mismatch: "false"` is true.',
        situation="each of the settings was given a value of another type",
        capabilities=frozenset({"schedule", "retention"}),
        predicates=("is_of_its_kind",),
    ),
    Clause(
        slug="schedule.no-side-effects",
        level=Level.STRICT,
        sentence="answers about the schedule without changing anything. Asking twice, in another order, or about "
        "other steps gives the same answers. The folder and the random number generators stay as they were",
        why="Training loops, progress bars and planners all ask. If asking changed something, the schedule would "
        "depend on who asked.",
        situation="the same steps were asked about repeatedly and in another order",
        capabilities=_SCHEDULE,
    ),
    Clause(
        slug="schedule.every-knob-acts",
        level=Level.STRICT,
        sentence="shows an observable effect of every documented configuration field, including `exclude_from_loading`",
        why="A field that nothing reads is a broken promise: the owner excludes the optimizer from a load, and the "
        "load restores it.",
        situation="two runs that differ in a single field were compared, for each field",
        capabilities=frozenset({"schedule", "exclude"}),
        rests_on=("resume.exclude",),
    ),
)


def power2(start: int, stop: int) -> frozenset[int]:
    """Return the steps on which `power2` fires.

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
    """The steps `start` to `stop`, both included, and the steps on which its strategy fires.

    `fires` may reach outside the window: a strategy is the user's code.

    >>> window = Window(10, 20, fires=frozenset({5, 10, 20}))
    >>> 10 in window, 20 in window, 5 in window
    (True, True, False)
    """

    start: int
    stop: int
    fires: frozenset[int]

    def __contains__(self, step: int) -> bool:
        """Return whether the strategy decides at this step."""
        return self.start <= step <= self.stop


def power2_window(start: int, stop: int) -> Window:
    """Return the window with the strategy `power2`.

    >>> power2_window(8, 10) == Window(8, 10, frozenset({8, 9, 10}))
    True
    """
    return Window(start, stop, power2(start, stop))


def is_milestone(step: int, window: Window | None) -> bool:
    """Return whether a checkpoint of this step is never deleted.

    >>> window = Window(10, 20, fires=frozenset({5, 10, 20, 25}))
    >>> [step for step in range(30) if is_milestone(step, window)]
    [10, 20]
    >>> is_milestone(10, None)
    False
    """
    return window is not None and step in window and step in window.fires


def should_save(step: int, interval: int, window: Window | None = None) -> bool:
    """Return whether a save is due at this step.

    >>> [step for step in range(9) if should_save(step, interval=4)]
    [0, 4, 8]
    >>> window = power2_window(3, 8)
    >>> [step for step in range(13) if should_save(step, interval=4, window=window)]
    [0, 3, 4, 5, 7, 12]
    """
    if window is not None and step in window:
        return is_milestone(step, window)
    return step % interval == 0


INTEGERS = ("interval", "keep_last_n", "start", "stop")
"""The settings that are integers; `start` and `stop` belong to a window."""
BOOLEANS = ("ignore_freeze_mismatch",)
"""The settings that are booleans."""
LISTS = ("exclude_from_loading",)
"""The settings that are lists of strings."""


def is_of_its_kind(field: str, value: object) -> bool:
    """Return whether a setting of this name takes values of this type.

    >>> is_of_its_kind("keep_last_n", 2), is_of_its_kind("keep_last_n", -1)
    (True, True)
    >>> [is_of_its_kind("keep_last_n", value) for value in ("2", 2.0, True, None, [2])]
    [False, False, False, False, False]

    A string that is not empty is true in Python, even `"false"`; and a string is a sequence of letters:

    >>> is_of_its_kind("ignore_freeze_mismatch", "false"), is_of_its_kind("exclude_from_loading", "model")
    (False, False)
    >>> is_of_its_kind("ignore_freeze_mismatch", False), is_of_its_kind("exclude_from_loading", ["model"])
    (True, True)
    """
    if field in INTEGERS:
        return isinstance(value, int) and not isinstance(value, bool)
    if field in BOOLEANS:
        return isinstance(value, bool)
    assert field in LISTS, f"no setting is called {field}"
    return isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value)


def schedule_errors(interval: int, start: int | None = None, stop: int | None = None) -> tuple[str, ...]:
    """Return the fields for which a configuration is refused; the error has to name one of them.

    Without a window, `start` and `stop` are None.

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
