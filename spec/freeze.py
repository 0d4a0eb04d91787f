"""Which modules were frozen: recorded with the checkpoint, and compared before a load changes anything.

Training that freezes a module and then unfreezes it, or the reverse, gives weights and moments that look alike and mean
different things. So the freeze list goes into `metadata.json` in a canonical form, and a resume that expects another
list is refused. A run with another architecture has other modules, so only the modules that both lists name are
compared.

Invariants: equal lists have equal canonical forms, however they were written; a refused load has changed nothing; and
the recorded list is the one that was in force when the weights were taken.

An *entry* is a pair (module, frozen). In files it is the object `{"module": ..., "frozen": ...}`.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from forge_spec.clauses import Clause, Level

_FREEZE = frozenset({"freeze"})

CLAUSES: tuple[Clause, ...] = (
    Clause(
        slug="freeze.canonical",
        level=Level.CORE,
        sentence="gives a freeze list one canonical form: sorted by module, equal entries once, as a list of "
        '`{"module", "frozen"}` objects, whatever order the entries came in',
        why="If the form depends on the order of a configuration file, an unchanged run is refused at its own "
        "checkpoint.",
        situation="the same entries were given in different orders and with repetitions",
        capabilities=_FREEZE,
        predicates=("canonical",),
    ),
    Clause(
        slug="freeze.intersection",
        level=Level.CORE,
        sentence="compares the saved and the expected list only on the modules that both name",
        why="Otherwise a checkpoint could never be loaded into an architecture with one more module.",
        situation="lists that agree on their shared modules, each naming one more of its own, were compared",
        capabilities=_FREEZE,
        predicates=("intersection",),
    ),
    Clause(
        slug="freeze.mismatch",
        level=Level.CORE,
        sentence="refuses, before any state is touched, a load whose lists differ on a shared module. The "
        "`ValueError` shows both sides and the modules that only one of them names",
        why="A module that was unfrozen goes on with moments it never had, or a frozen one changes. The run trains, "
        "and its result is not the one that was planned.",
        situation="a checkpoint was loaded with an expected list that differs on a shared module",
        capabilities=_FREEZE,
        predicates=("Comparison",),
    ),
    Clause(
        slug="freeze.override",
        level=Level.CORE,
        sentence="warns of the mismatch and goes on with the load when `ignore_freeze_mismatch` is set",
        why="Unfreezing modules in the middle of training is a common plan. Without this setting the owner edits "
        "`metadata.json` by hand.",
        situation="lists that differ on a shared module were compared with `ignore_freeze_mismatch` set",
        capabilities=_FREEZE,
        rests_on=("freeze.mismatch", "resume.exact"),
        predicates=("Comparison",),
    ),
    Clause(
        slug="freeze.absent",
        level=Level.CORE,
        sentence="compares nothing when the caller expects nothing or the checkpoint recorded nothing",
        why="Older checkpoints, and runs that freeze nothing, would be refused for lack of a record.",
        situation="a checkpoint without a record was loaded with an expected list, and one with a record without any",
        capabilities=_FREEZE,
    ),
    Clause(
        slug="freeze.unreadable",
        level=Level.CORE,
        sentence="warns, naming the file, when `metadata.json` can't be parsed, and goes on with the load; it may also "
        "refuse a checkpoint that it wrote itself, naming the file",
        why="Where no checksum of it is recorded, a file meant for people must not keep a run from resuming. Without "
        "the warning nobody learns that nothing was compared.",
        situation="a checkpoint with a damaged `metadata.json`, the manager's own or one of stock DCP, was loaded with "
        "an expected list",
        capabilities=frozenset({"freeze", "layout"}),
    ),
    Clause(
        slug="freeze.flipped-bit",
        level=Level.STRICT,
        sentence="still refuses a load whose lists differ on a shared module if one bit of the `metadata.json` that it "
        "wrote is flipped. The error names the module or the file. It may instead fall back to another checkpoint, "
        "with a warning that names the file",
        why="Most flipped bits make the file unparsable. If that only brings a warning, the check is off just when "
        "something is wrong with the checkpoint.",
        situation="bits all over `metadata.json` were flipped, one at a time, and the checkpoint was loaded each time "
        "with an expectation that differs on a shared module",
        capabilities=frozenset({"freeze", "layout"}),
        rests_on=("freeze.mismatch",),
    ),
    Clause(
        slug="freeze.whole-metadata",
        level=Level.STRICT,
        sentence="writes `metadata.json` whole or not at all: no kill leaves part of it under its name",
        why="Half a file counts as present, so the step looks complete, and its freeze list is never compared.",
        situation="a save was killed at each file operation around the writing of `metadata.json`",
        capabilities=frozenset({"freeze", "layout"}),
    ),
    Clause(
        slug="freeze.zero-overlap",
        level=Level.STRICT,
        sentence="warns when both lists have entries and no module in common",
        why="Nothing was compared, and it looks as though everything agreed. After a renaming of modules the "
        "comparison is off without any message.",
        situation="two non-empty lists without a shared module were compared",
        capabilities=_FREEZE,
        rests_on=("freeze.intersection",),
        predicates=("Comparison",),
    ),
    Clause(
        slug="freeze.effective",
        level=Level.CORE,
        sentence="computes the list in force at a step from the base list. Each stage of the freeze schedule whose "
        "`start_step` is not above the step overrides it module by module, in ascending order. An unknown module in "
        "the base list or in such a stage is refused with a `ValueError` that names it",
        why="If a stage is applied out of order or a step late, the wrong list is expected, and a good checkpoint is "
        "refused. A misspelt module is frozen in the configuration and nowhere else.",
        situation="steps before, at and after the start of several stages given out of order were asked about, and an "
        "unknown module was named",
        capabilities=_FREEZE,
        predicates=("effective",),
    ),
    Clause(
        slug="freeze.drain-before-transition",
        level=Level.CORE,
        sentence="returns from `flush_pending_save` only when the save in flight is committed, with the freeze list "
        "of the time of its call",
        why="The training loop unfreezes modules right after this call. A record that is written later describes the "
        "new list beside weights of the old one.",
        situation="`flush_pending_save` was called with a flush in flight, and the freeze list changed afterwards",
        capabilities=frozenset({"freeze", "async"}),
        rests_on=("commit.no-later-than",),
    ),
)

Entry = tuple[str, bool]
Recorded = Mapping[str, object]


def canonical(specs: Iterable[Entry]) -> list[dict[str, object]]:
    """Return the form in which a freeze list is recorded and compared.

    >>> canonical([("vision", True), ("adapter", False), ("vision", True)])
    [{'module': 'adapter', 'frozen': False}, {'module': 'vision', 'frozen': True}]

    Only equal entries are merged. A list that contradicts itself keeps both entries: to choose one would need the
    order, and the form does not depend on the order. In `effective` the order decides.

    >>> canonical([("vision", True), ("vision", False)])
    [{'module': 'vision', 'frozen': False}, {'module': 'vision', 'frozen': True}]
    """
    return [{"module": module, "frozen": frozen} for module, frozen in sorted(set(specs))]


def modules(entries: Iterable[Recorded]) -> frozenset[str]:
    """Return the modules that a recorded list names.

    >>> sorted(modules(canonical([("vision", True), ("adapter", False)])))
    ['adapter', 'vision']
    """
    return frozenset(str(entry["module"]) for entry in entries)


def intersection(saved: Iterable[Recorded], expected: Iterable[Recorded]) -> tuple[list[Recorded], list[Recorded]]:
    """Return both recorded lists without the modules that only one of them names, in their order.

    >>> saved = canonical([("vision", True), ("text", False)])
    >>> expected = canonical([("vision", False), ("adapter", True)])
    >>> intersection(saved, expected)
    ([{'module': 'vision', 'frozen': True}], [{'module': 'vision', 'frozen': False}])
    """
    saved, expected = list(saved), list(expected)
    shared = modules(saved) & modules(expected)
    return [entry for entry in saved if entry["module"] in shared], [
        entry for entry in expected if entry["module"] in shared
    ]


@dataclass(frozen=True)
class Comparison:
    """The comparison of two recorded lists: what a load decides by, and what its error shows.

    >>> seen = Comparison(canonical([("vision", True), ("text", False)]), canonical([("vision", False)]))
    >>> seen.differing, seen.only_saved, seen.only_expected, seen.is_mismatch
    (('vision',), ('text',), (), True)
    >>> Comparison(canonical([("vision", True)]), canonical([("adapter", True)])).has_zero_overlap
    True
    """

    saved: Collection[Recorded]
    expected: Collection[Recorded]

    @property
    def differing(self) -> tuple[str, ...]:
        """The shared modules on which the lists differ."""
        shared = sorted(modules(self.saved) & modules(self.expected))
        return tuple(module for module in shared if _states(self.saved, module) != _states(self.expected, module))

    @property
    def only_saved(self) -> tuple[str, ...]:
        """The modules that only the checkpoint names."""
        return tuple(sorted(modules(self.saved) - modules(self.expected)))

    @property
    def only_expected(self) -> tuple[str, ...]:
        """The modules that only the run names."""
        return tuple(sorted(modules(self.expected) - modules(self.saved)))

    @property
    def is_mismatch(self) -> bool:
        """Whether the load is refused, or warns under `ignore_freeze_mismatch`."""
        return bool(self.differing)

    @property
    def has_zero_overlap(self) -> bool:
        """Whether both lists have entries and no module in common."""
        return bool(self.saved) and bool(self.expected) and not modules(self.saved) & modules(self.expected)


def _states(entries: Iterable[Recorded], module: str) -> frozenset[object]:
    return frozenset(entry["frozen"] for entry in entries if entry["module"] == module)


def effective(
    step: int,
    base: Iterable[Entry],
    schedule: Iterable[tuple[int, Iterable[Entry]]],
    valid_modules: Collection[str] | None = None,
) -> list[Entry]:
    """Return the list in force at a step, one entry for each module, in no particular order.

    A stage of the schedule is a pair (start_step, entries). A module that is in force and not in `valid_modules` raises
    a `ValueError`.

    >>> base, schedule = [("vision", True)], [(200, [("text", True)]), (100, [("vision", False)])]
    >>> effective(99, base, schedule)
    [('vision', True)]
    >>> effective(100, base, schedule)
    [('vision', False)]
    >>> effective(200, base, schedule)
    [('text', True), ('vision', False)]
    >>> effective(0, base, schedule, valid_modules={"text"})
    Traceback (most recent call last):
    ValueError: unknown modules ['vision']

    The last of several entries for a module wins, and a stage that is not in force yet is not checked:

    >>> effective(0, [("vision", True), ("vision", False)], [(9, [("typo", True)])], valid_modules={"vision"})
    [('vision', False)]

    Stages with the same start are applied in their order:

    >>> effective(9, [], [(9, [("vision", True)]), (9, [("vision", False)])])
    [('vision', False)]
    """
    stages = sorted(((start, entries) for start, entries in schedule if start <= step), key=lambda stage: stage[0])
    in_force = dict(base)
    for _, entries in stages:
        in_force.update(entries)
    unknown = set() if valid_modules is None else in_force.keys() - set(valid_modules)
    if unknown:
        raise ValueError(f"unknown modules {sorted(unknown)}")
    return sorted(in_force.items())
