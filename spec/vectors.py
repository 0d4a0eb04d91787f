"""The specification's answers as data: for whoever writes a manager in another language.

    python -m forge_spec.vectors --write DIRECTORY  write one JSON file for each chapter there
    python -m forge_spec.vectors --check DIRECTORY  exit with 1 if a file says something else

A *case* is a question about a manager, what it is asked about, and the one
right answer.  Most cases are a grid around the places where managers go wrong
by one, answered by the predicates of the chapters.  The *corners* among them
were answered by hand first, each with its reason, in `forge_spec.corners`.

Invariant: nothing is written while a predicate and a hand disagree.
"""

import argparse
import itertools
import json
import posixpath
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forge_spec import BY_SLUG, commit, durable, freeze, layout, resume, retention, schedule, trust
from forge_spec.corners import CORNERS, FOLDER, WHOLE, Corner, deletion, landing
from forge_spec.disk import Mark

Given = Mapping[str, Any]
Answer = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """One thing that managers are asked, in the words of the data."""

    name: str
    """chapter/what."""
    asks: str
    given: Mapping[str, str]
    """What each field of `given` is."""
    expected: Mapping[str, str]
    """What each field of `expected` is."""
    answer: Callable[[Given], Answer]
    """By the chapter's predicates."""
    judges: Callable[[Given], Iterable[str]]
    """The clauses that a wrong answer breaks."""
    grid: Callable[[], Iterator[tuple[str, Given]]]
    """Cases besides the corners, each with a label."""

    @property
    def chapter(self) -> str:
        """The part of the name before the slash."""
        return self.name.partition("/")[0]


# -- schedule -----------------------------------------------------------------------


def _window(given: Mapping[str, Any] | None) -> schedule.Window | None:
    if given is None:
        return None
    start, stop = given["start"], given["stop"]
    fires = schedule.power2(start, stop) if given["strategy"] == "power2" else frozenset(given["strategy"])
    return schedule.Window(start, stop, fires)


def _saves(given: Given) -> Answer:
    window = _window(given["window"])
    first, last = given["steps"]
    steps = range(first, last + 1)
    return {
        "saves": [step for step in steps if schedule.should_save(step, given["interval"], window)],
        "milestones": [step for step in steps if schedule.is_milestone(step, window)],
    }


def _saves_judges(given: Given) -> Iterable[str]:
    window = given["window"]
    if window is None:
        return ("schedule.interval", "schedule.milestone")
    inside = ("schedule.window-replaces-interval", "schedule.milestone", "schedule.interval")
    return (*inside, "schedule.power2" if window["strategy"] == "power2" else "schedule.strategy-in-window")


def _saves_grid() -> Iterator[tuple[str, Given]]:
    windows = [None, (0, 0), (0, 8), (1, 2), (3, 3), (3, 8), (5, 21), (6, 7), (8, 16), (10, 12)]
    for interval, window in itertools.product((1, 2, 3, 4, 7), windows):
        ends = None if window is None else {"start": window[0], "stop": window[1], "strategy": "power2"}
        label = f"interval-{interval}" + ("" if window is None else f"-window-{window[0]}-{window[1]}")
        yield label, {"interval": interval, "window": ends, "steps": [0, 40]}
    for fires in ([], [9, 10, 20, 21], [10, 15], list(range(31))):
        window_of = {"start": 10, "stop": 20, "strategy": fires}
        yield f"strategy-of-{len(fires)}", {"interval": 5, "window": window_of, "steps": [0, 30]}


def _configuration(given: Given) -> Answer:
    return {"refused_for": list(schedule.schedule_errors(given["interval"], given["start"], given["stop"]))}


def _configuration_grid() -> Iterator[tuple[str, Given]]:
    ends = [(None, None), (-1, 3), (0, 0), (0, 1), (4, 4), (5, 4), (1, 0)]
    for interval, (start, stop) in itertools.product((-1, 0, 1, 2), ends):
        yield f"interval-{interval}-window-{start}-{stop}", {"interval": interval, "start": start, "stop": stop}


# -- layout -------------------------------------------------------------------------


def _name(given: Given) -> Answer:
    return {"step": layout.step_of(given["name"]) if given["is"] == "directory" else None}


def _name_grid() -> Iterator[tuple[str, Given]]:
    for number, kind in itertools.product((0, 1, 9, 10, 99, 100, 10**12), ("directory", "file", "link")):
        yield f"step-{number}-{kind}", {"name": f"step_{number}", "is": kind}


def _complete(given: Given) -> Answer:
    return {"missing": list(layout.missing(given["files"], given["stages"]))}


def _complete_grid() -> Iterator[tuple[str, Given]]:
    for stages in (None, 1, 2):
        required = layout.required(stages)
        for count in range(len(required) + 1):
            for present in itertools.combinations(required, count):
                number = sum(1 << required.index(name) for name in present)
                yield f"stages-{stages or 0}-{number}", {"files": list(present), "stages": stages}


def _pointer(given: Given) -> Answer:
    return {"survives_a_move": layout.is_relative(given["target"])}


def _metadata(given: Given) -> Answer:
    errors = layout.metadata_errors(given["metadata"], given["step"], given["tokens_seen"], given["vlm_freeze"])
    if not isinstance(given["metadata"], Mapping):
        return {"is_object": not errors, "wrong": []}
    return {"is_object": True, "wrong": [error.partition(" ")[0] for error in errors]}


# -- commit -------------------------------------------------------------------------


@dataclass(frozen=True)
class _View:
    """A folder as a reader sees it: which files each directory holds, and what `latest` says."""

    directories: Mapping[str, frozenset[str]]
    latest: str | None

    @property
    def complete(self) -> frozenset[int]:
        steps = ((layout.step_of(name), files) for name, files in self.directories.items())
        return frozenset(step for step, files in steps if step is not None and layout.is_complete(files))

    @property
    def target(self) -> int | None:
        return None if self.latest is None else layout.step_of(self.latest)

    @property
    def resume_point(self) -> int | None:
        (landing,) = resume.may_land_on(self.complete, self.target)
        return landing

    def after(self, event: Sequence[str]) -> "_View":
        directories, latest = dict(self.directories), self.latest
        match event:
            case ["write", path]:
                name, _, file = path.partition("/")
                directories[name] = directories.get(name, frozenset()) | {file}
            case ["remove", path]:
                name, _, file = path.partition("/")
                directories[name] -= {file}
            case ["rename", old, new]:
                directories[new] = directories.pop(old)
            case ["point", target]:
                latest = target
            case ["returns", _]:
                pass
            case other:
                raise ValueError(f"the vectors know no event {other!r}")
        return _View(directories, latest)


def _fallen(before: _View, events: Sequence[Sequence[str]], now: _View, saving: int) -> str | None:
    """The clause that the first of these events breaks, if it breaks one; the others come after it."""
    event, *later = events
    name = event[1].partition("/")[0]
    step = layout.step_of(name)
    if event[0] == "returns":
        return None if now.target == saving and saving in now.complete else "commit.no-later-than"
    if event[0] == "point":
        if not commit.may_point_at(now.target, now.complete):
            return "commit.deferred"
        return None if commit.is_monotone([before.target or 0, now.target or 0]) else "commit.monotone"
    if step not in before.complete:
        has_more = any(verb == "write" and about[0].startswith(f"{name}/") for verb, *about in later)
        return "resume.after-kill" if step in now.complete and has_more else None
    if event[0] == "write":
        return "commit.resave"
    if step == before.target:
        return "commit.resave" if step == saving else "retention.latest"
    if before.target != saving:
        return "retention.after-commit"
    is_left_well = retention.may_be_left(before.directories[name], now.directories.get(name, ()))
    return None if is_left_well else "retention.invalidate-first"


def _order(given: Given) -> Answer:
    view = _View({name: frozenset(files) for name, files in given["folder"].items()}, given["latest"])
    seen = [view.resume_point]
    for place, event in enumerate(given["events"]):
        after = view.after(event)
        clause = _fallen(view, given["events"][place:], after, given["saving"])
        if clause is not None:
            return {"breaks": clause, "at_event": place, "resume_points": seen}
        view = after
        seen.append(view.resume_point)
    return {"breaks": None, "at_event": None, "resume_points": seen}


def _order_judges(given: Given) -> Iterable[str]:
    broken = _order(given)["breaks"]
    return ("commit.deferred", "commit.whole", "resume.after-kill") if broken is None else (broken,)


def _order_grid() -> Iterator[tuple[str, Given]]:
    one = {"folder": {"step_10": list(WHOLE)}, "latest": "step_10", "saving": 20}
    words = {"shards": "__0_0.distcp", "marker": ".metadata", "state": "train_state.pt", "metadata": "metadata.json"}
    writes = {word: ["write", f"step_20/{file}"] for word, file in words.items()}
    for order in itertools.permutations([*words, "pointer"]):
        yield "-".join(order), {**one, "events": [writes.get(word, ["point", "step_20"]) for word in order]}
    two = {"folder": {"step_10": list(WHOLE), "step_20": list(WHOLE)}, "latest": "step_20", "saving": 20}
    for order in itertools.permutations(words):
        label = "delete-" + "-".join(order)
        yield label, {**two, "events": [["remove", f"step_10/{words[word]}"] for word in order]}


def _calls(given: Given) -> Answer:
    calls = [_call(call) for call in given["calls"]]
    background = given["mode"] == "async"
    has_failures = any(isinstance(call, commit.Save) and call.fails for call in calls)
    return {
        "raise": list(commit.must_raise(calls, background)),
        "committed": sorted(commit.must_be_committed(calls, background)),
        "latest": None if has_failures else _steps_or_null(commit.may_be_latest(calls, background)),
    }


def _call(call: Sequence[Any]) -> commit.Call:
    return commit.Wait() if call[0] == "wait" else commit.Save(call[1], fails=call[0] == "failing save")


def _steps_or_null(steps: Iterable[int | None]) -> list[int | None]:
    return sorted(steps, key=lambda step: (step is not None, step or 0))


def _calls_judges(given: Given) -> Iterable[str]:
    is_background = given["mode"] == "async"
    if any(call[0] == "failing save" for call in given["calls"]):
        return ("commit.failed-flush" if is_background else "commit.failed-save",)
    return ("commit.no-later-than" if is_background else "commit.sync",)


def _calls_grid() -> Iterator[tuple[str, Given]]:
    for mode, length in itertools.product(("sync", "async"), range(4)):
        for words in itertools.product(("save", "failing save", "wait"), repeat=length):
            if ("failing save", "failing save") in itertools.pairwise(words):
                continue
            calls = [[word] if word == "wait" else [word, place + 1] for place, word in enumerate(words)]
            label = "-".join([mode, *(word.split()[0] for word in words)])
            yield label, {"mode": mode, "calls": calls}


# -- retention ----------------------------------------------------------------------


def _deletion(given: Given) -> Answer:
    kinds = {step: kind for name, kind in given["folder"].items() if (step := _step_of(name, kind)) is not None}
    folder = retention.Folder(
        complete=frozenset(step for step, kind in kinds.items() if kind == "complete"),
        torn=frozenset(step for step, kind in kinds.items() if kind == "torn"),
        milestones=frozenset(given["milestones"]),
        latest=None if given["latest"] is None else layout.step_of(given["latest"]),
        in_flight=frozenset(given["in_flight"]),
        committed=given["committed"],
    )
    limit = given["keep_last_n"]
    must, survivors = retention.must_keep(folder, limit), retention.survivors(folder, limit)
    foreign = [name for name, kind in given["folder"].items() if _step_of(name, kind) is None]

    def names(steps: frozenset[int]) -> list[str]:
        return [name for name, kind in given["folder"].items() if _step_of(name, kind) in steps]

    return {
        "core": {"must_stay": names(must), "must_go": names(folder.complete - survivors)},
        "strict": {"must_stay": [*names(survivors | must), *foreign], "must_go": names(folder.complete - survivors)},
    }


def _step_of(name: str, kind: str) -> int | None:
    return layout.step_of(name) if kind in ("complete", "torn") else None


def _deletion_judges(given: Given) -> Iterable[str]:
    yield from ("retention.keeps", "retention.drops")
    if given["keep_last_n"] <= 0:
        yield "retention.off"
    if given["milestones"]:
        yield "retention.exempt-is-free"
    if "torn" in given["folder"].values():
        yield "retention.torn-is-free"
    if given["in_flight"]:
        yield "retention.in-flight"
    steps = [step for name, kind in given["folder"].items() if (step := _step_of(name, kind)) is not None]
    if given["committed"] is not None and max(steps, default=0) > given["committed"]:
        yield "retention.future"
    if len({len(str(step)) for step in steps}) > 1:
        yield "retention.numeric"
    if len(steps) < len(given["folder"]):
        yield "layout.only-step-names"


def _deletion_grid() -> Iterator[tuple[str, Given]]:
    steps = (9, 10, 11)
    for kinds in itertools.product(("complete", "torn", None), repeat=len(steps)):
        folder = {f"step_{step}": kind for step, kind in zip(steps, kinds, strict=True) if kind is not None}
        complete = [step for step, kind in zip(steps, kinds, strict=True) if kind == "complete"]
        for committed, limit, milestones in itertools.product(complete, (1, 2), ([], [9])):
            label = "-".join(str(kind)[0] for kind in kinds) + f"-at-{committed}-keep-{limit}"
            label += "-milestone" if milestones else ""
            yield label, deletion(folder, limit, committed, milestones=milestones)


def _cut_short(given: Given) -> Answer:
    return {"allowed": retention.may_be_left(given["before"], given["now"], given["stages"])}


def _cut_short_grid() -> Iterator[tuple[str, Given]]:
    for stages in (None, 2):
        before = [*layout.required(stages), "__0_0.distcp"]
        for number in range(2 ** len(before)):
            now = [name for place, name in enumerate(before) if number >> place & 1]
            yield f"stages-{stages or 0}-{number}", {"before": before, "now": now, "stages": stages}


# -- resume -------------------------------------------------------------------------


def _landing(given: Given) -> Answer:
    folder, stages = given["folder"], given["stages"]
    directories = {name: files for name, files in folder.items() if isinstance(files, list)}
    steps = {step: name for name in directories if (step := layout.step_of(name)) is not None}
    complete = frozenset(step for step, name in steps.items() if layout.is_complete(directories[name], stages))
    outcome = resume.resolve(
        given["path"],
        given["load_path"],
        complete,
        _pointed_at(given["latest"], steps),
        reads_shards=not {"model", "optimizer"} <= set(given["exclude"]),
    )
    match outcome:
        case resume.Fresh():
            return {"outcome": "fresh", "checkpoint": None, "step": 0}
        case resume.Step(step):
            return {"outcome": "lands", "checkpoint": steps[step], "step": step}
        case resume.Named(path):
            return _named(_entry(path), directories, stages)


def _entry(path: str) -> str | None:
    """The entry of the folder that a path leads to."""
    parent, name = posixpath.split(posixpath.normpath(posixpath.join(FOLDER, path)))
    return name if parent == FOLDER else None


def _pointed_at(target: str | None, steps: Mapping[int, str]) -> int | None:
    """The step that the pointer names, if that is one of the folder."""
    entry = None if target is None else _entry(target)
    return next((step for step, name in steps.items() if name == entry), None)


def _named(entry: str | None, directories: Mapping[str, Sequence[str]], stages: int | None) -> Answer:
    """A named checkpoint is taken as it is or refused; without its train state it is imported weights."""
    files = directories.get(entry or "", [])
    markers = {file for file in files if posixpath.basename(file) == layout.MARKER}
    fits = markers == {file for file in layout.required(stages) if posixpath.basename(file) == layout.MARKER}
    if entry is None or not fits:
        return {"outcome": "refused", "checkpoint": None, "step": None}
    step = layout.step_of(entry) if layout.TRAIN_STATE in files else 0
    return {"outcome": "lands", "checkpoint": entry, "step": step}


def _landing_judges(given: Given) -> Iterable[str]:
    if given["path"] is not None or given["load_path"] is not None:
        return ("resume.order", "resume.explicit-honoured", "resume.explicit-missing")
    answer = _landing(given)
    if answer["outcome"] == "fresh":
        return ("resume.all-torn" if given["folder"] else "resume.fresh",)
    if given["latest"] != answer["checkpoint"]:
        return ("resume.skips-torn", "resume.fallback", "resume.pointer-is-a-hint")
    return ("resume.lands", "resume.skips-torn")


def _landing_grid() -> Iterator[tuple[str, Given]]:
    steps = (9, 10, 11)
    torn = [file for file in WHOLE if file != layout.MARKER]
    for kinds in itertools.product(("complete", "torn", None), repeat=len(steps)):
        stand = [(f"step_{step}", kind) for step, kind in zip(steps, kinds, strict=True) if kind is not None]
        folder = {name: list(WHOLE) if kind == "complete" else torn for name, kind in stand}
        for latest in (None, "step_9", "step_10", "step_11", "step_12"):
            label = "-".join(str(kind)[0] for kind in kinds) + f"-latest-{latest}"
            yield label, landing(folder, latest)


def _after_kill(given: Given) -> Answer:
    steps = resume.after_kill(given["acknowledged"], given["in_flight"], given["dispatching"])
    return {"may_land_on": _steps_or_null(steps)}


def _after_kill_grid() -> Iterator[tuple[str, Given]]:
    for acknowledged, in_flight, dispatching in itertools.product((None, 10), (None, 20), (None, 30)):
        yield (
            f"{acknowledged}-{in_flight}-{dispatching}",
            {"acknowledged": acknowledged, "in_flight": in_flight, "dispatching": dispatching},
        )


def _extra(given: Given) -> Answer:
    return {"refused_for": sorted(resume.RESERVED & set(given["keys"]))}


# -- freeze -------------------------------------------------------------------------


def _entries(pairs: Iterable[Sequence[Any]]) -> list[freeze.Entry]:
    return [(module, frozen) for module, frozen in pairs]


def _canonical(given: Given) -> Answer:
    return {"recorded": freeze.canonical(_entries(given["entries"]))}


def _compare(given: Given) -> Answer:
    saved, expected = given["saved"], given["expected"]
    if not isinstance(saved, list) or expected is None:
        is_warned = saved == "unreadable" and expected is not None
        return {"outcome": "goes on", "must_warn": is_warned, "differing": []}
    seen = freeze.Comparison(freeze.canonical(_entries(saved)), freeze.canonical(_entries(expected)))
    is_refused = seen.is_mismatch and not given["ignore"]
    return {
        "outcome": "refused" if is_refused else "goes on",
        "must_warn": not is_refused and (seen.is_mismatch or seen.has_zero_overlap),
        "differing": list(seen.differing),
    }


def _compare_judges(given: Given) -> Iterable[str]:
    answer = _compare(given)
    if given["saved"] == "unreadable":
        return ("freeze.unreadable",)
    if given["saved"] is None or given["expected"] is None:
        return ("freeze.absent",)
    if answer["differing"]:
        return ("freeze.override",) if given["ignore"] else ("freeze.mismatch",)
    return ("freeze.intersection", "freeze.zero-overlap") if answer["must_warn"] else ("freeze.intersection",)


def _compare_grid() -> Iterator[tuple[str, Given]]:
    words = {None: "absent", True: "frozen", False: "thawed"}
    sides = list(itertools.product((None, True, False), repeat=2))
    for saved, expected in itertools.product(sides, repeat=2):
        label = "-".join(words[state] for state in (*saved, *expected))
        lists = [
            [[m, state] for m, state in zip(("a", "b"), side, strict=True) if state is not None]
            for side in (saved, expected)
        ]
        yield label, {"saved": lists[0], "expected": lists[1], "ignore": False}


def _effective(given: Given) -> Answer:
    stages = [(stage["start_step"], _entries(stage["entries"])) for stage in given["schedule"]]
    try:
        in_force = freeze.effective(given["step"], _entries(given["base"]), stages, given["valid_modules"])
    except ValueError:
        return {"outcome": "refused", "in_force": None}
    return {"outcome": "in force", "in_force": [list(entry) for entry in in_force]}


def _effective_grid() -> Iterator[tuple[str, Given]]:
    stages = [
        {"start_step": 200, "entries": [["a", False]]},
        {"start_step": 100, "entries": [["b", True], ["c", True]]},
    ]
    for step, base in itertools.product((0, 99, 100, 101, 199, 200, 201), ([], [["a", True]], [["c", False]])):
        label = f"step-{step}-base-{''.join(str(module) for module, _ in base) or 'empty'}"
        yield label, {"step": step, "base": base, "schedule": stages, "valid_modules": None}


# -- trust, durable -----------------------------------------------------------------

_MODES = ("0600", "0644", "0640", "0664", "0620", "0602", "0606", "0666", "0755", "1777", "1755", "0777", "0775")


def _pickle(given: Given) -> Answer:
    objections = trust.judge_pickle(given["owner"], given["reader"], int(given["mode"], 8))
    return {"objections": sorted(objections)}


def _pickle_grid() -> Iterator[tuple[str, Given]]:
    for (owner, reader), mode in itertools.product(((1000, 1000), (1001, 1000), (0, 1000), (1000, 0)), _MODES):
        yield f"{owner}-for-{reader}-{mode}", {"owner": owner, "reader": reader, "mode": mode}


def _directory(given: Given) -> Answer:
    return {"objections": sorted(trust.judge_directory(int(given["mode"], 8)))}


def _comes_back(given: Given) -> Answer:
    return {"may_come_back": _steps_or_null(durable.may_come_back(Mark(word, save) for word, save in given["marks"]))}


def _nothing() -> Iterator[tuple[str, Given]]:
    yield from ()


# -- the questions ------------------------------------------------------------------

QUESTIONS: tuple[Question, ...] = (
    Question(
        "schedule/saves",
        "which steps are saved, and which of them are milestones",
        {
            "interval": "outside the window, save at its multiples",
            "window": "null, or `start` and `stop`, both included, and `strategy`: power2, or the list of steps "
            "on which a registered strategy says yes, inside the window or not",
            "steps": "the first and the last step to ask about",
        },
        {"saves": "the steps that are saved", "milestones": "the steps that are milestones"},
        _saves,
        _saves_judges,
        _saves_grid,
    ),
    Question(
        "schedule/configuration",
        "whether a schedule is refused when it is configured",
        {"interval": "the interval", "start": "of the window; null: no window", "stop": "of the window, or null"},
        {"refused_for": "an error has to name one of these fields; empty: accepted"},
        _configuration,
        lambda given: ("schedule.validate",) if given["start"] is None else ("schedule.validate-window",),
        _configuration_grid,
    ),
    Question(
        "layout/name",
        "the checkpoint of which step an entry of the folder is, by its name and kind alone",
        {"name": "of the entry", "is": "directory, file, or link (a symlink to a directory)"},
        {"step": "its step; null: it is somebody else's"},
        _name,
        lambda given: ("layout.only-step-names",),
        _name_grid,
    ),
    Question(
        "layout/complete",
        "what a checkpoint's directory lacks to be complete",
        {"files": "that are there, relative to it", "stages": "pipeline stages of the run; null: no pipeline"},
        {"missing": "files, in any order; empty: it is complete"},
        _complete,
        lambda given: ("commit.whole", "resume.skips-torn"),
        _complete_grid,
    ),
    Question(
        "layout/pointer",
        "whether `latest` still works when the folder has been moved",
        {"target": "what the symlink says"},
        {"survives_a_move": "true or false"},
        _pointer,
        lambda given: ("layout.latest-relative",),
        _nothing,
    ),
    Question(
        "layout/metadata",
        "what is wrong with a `metadata.json`",
        {
            "metadata": "its content",
            "step": "that was saved",
            "tokens_seen": "that were saved with it",
            "vlm_freeze": "in the caller's extra; null: there was none",
        },
        {"is_object": "whether it is a JSON object at all", "wrong": "the keys whose value is wrong or missing"},
        _metadata,
        lambda given: ("layout.metadata-json",),
        _nothing,
    ),
    Question(
        "commit/order",
        "whether a save in the background may change the folder in this order, and where a reader of it would resume",
        {
            "folder": "each directory with its files before the first event",
            "latest": "what the pointer says then",
            "saving": "the step that is saved; the run moves forward",
            "events": "one after another: write or remove a file, rename a directory, point `latest`, or a `wait` "
            "that returns",
        },
        {
            "breaks": "the clause that the first forbidden event breaks; null: all are allowed",
            "at_event": "which event that is, counted from 0",
            "resume_points": "the step an auto-resume lands on (null: fresh) before the first event and after each "
            "allowed one, up to the forbidden one",
        },
        _order,
        _order_judges,
        _order_grid,
    ),
    Question(
        "commit/calls",
        "which calls of a run raise, and what is committed when the last of them has ended",
        {"mode": "sync or async", "calls": "save STEP, failing save STEP (its write fails), or wait"},
        {
            "raise": "the calls that raise, counted from 0; all others return",
            "committed": "at least these steps are committed",
            "latest": "the pointer names one of these (null in the list: no pointer yet); null: not asked",
        },
        _calls,
        _calls_judges,
        _calls_grid,
    ),
    Question(
        "retention/deletion",
        "what is left of a folder right after a commit",
        {
            "keep_last_n": "the limit",
            "folder": "each entry: complete, torn, file, link (to a checkpoint), or foreign (a directory)",
            "milestones": "steps that were saved as such",
            "latest": "what the pointer says, after the commit",
            "in_flight": "steps that are in flight",
            "committed": "the step just committed; null: none yet",
        },
        {
            "core": "at level core, the entries that must stay and those that must go; about others nothing is said",
            "strict": "the same at level strict",
        },
        _deletion,
        _deletion_judges,
        _deletion_grid,
    ),
    Question(
        "retention/cut-short",
        "whether a deletion may be found so when it was cut short",
        {
            "before": "the files of the checkpoint before it",
            "now": "those that are left under its name",
            "stages": "pipeline stages of the run; null: no pipeline",
        },
        {"allowed": "true or false"},
        _cut_short,
        lambda given: ("retention.invalidate-first",),
        _cut_short_grid,
    ),
    Question(
        "resume/landing",
        "which checkpoint a load takes",
        {
            "folder": f"what stands in {FOLDER}: a directory with its files, or `file`, or `link` (to a checkpoint)",
            "latest": "what the symlink says; null: there is none",
            "path": "named in the call, or null",
            "load_path": "configured, or null",
            "exclude": "parts that the load leaves out",
            "stages": "pipeline stages of the run; null: no pipeline",
        },
        {
            "outcome": "lands, fresh, or refused (an error, and nothing changes)",
            "checkpoint": "the entry that is loaded, or null",
            "step": "that the load returns; null if refused",
        },
        _landing,
        _landing_judges,
        _landing_grid,
    ),
    Question(
        "resume/after-kill",
        "where an auto-resume may land after a kill",
        {
            "acknowledged": "the last step that a returned call vouched for, or null",
            "in_flight": "dispatched after it, or null",
            "dispatching": "the step whose `save` the kill cut short, or null",
        },
        {"may_land_on": "any of these; null in the list: a fresh start"},
        _after_kill,
        lambda given: ("resume.after-kill",),
        _after_kill_grid,
    ),
    Question(
        "resume/extra",
        "whether a save refuses the caller's extra",
        {"keys": "of the extra"},
        {"refused_for": "the error has to name these; empty: accepted"},
        _extra,
        lambda given: ("resume.reserved-extra",),
        _nothing,
    ),
    Question(
        "freeze/canonical",
        "the form in which a freeze list is recorded",
        {"entries": "module and whether it is frozen"},
        {"recorded": "the JSON value of `vlm_freeze`"},
        _canonical,
        lambda given: ("freeze.canonical",),
        _nothing,
    ),
    Question(
        "freeze/compare",
        "what a load does about two freeze lists",
        {
            "saved": "recorded with the checkpoint; null: nothing; unreadable: `metadata.json` can't be parsed",
            "expected": "by the run, or null",
            "ignore": "whether a mismatch is to be ignored",
        },
        {
            "outcome": "refused or goes on",
            "must_warn": "whether it has to warn",
            "differing": "modules that both sides name and disagree on",
        },
        _compare,
        _compare_judges,
        _compare_grid,
    ),
    Question(
        "freeze/effective",
        "the freeze list in force at a step",
        {
            "step": "the step",
            "base": "module and whether it is frozen",
            "schedule": "stages, each in force from `start_step` on",
            "valid_modules": "all there are; null: not checked",
        },
        {"outcome": "in force or refused", "in_force": "the list, in any order; null if refused"},
        _effective,
        lambda given: ("freeze.effective",),
        _effective_grid,
    ),
    Question(
        "trust/pickle",
        "what speaks against unpickling a file",
        {"owner": "user id", "reader": "user id of the process", "mode": "octal"},
        {"objections": "refuse, warn, or none"},
        _pickle,
        lambda given: ("trust.foreign-owner", "trust.writable-warning"),
        _pickle_grid,
    ),
    Question(
        "trust/directory",
        "what speaks against a directory that a pickle is read from",
        {"mode": "octal"},
        {"objections": "warn, or none"},
        _directory,
        lambda given: ("trust.directory",),
        lambda: iter([(mode, {"mode": mode}) for mode in _MODES]),
    ),
    Question(
        "durable/comes-back",
        "which saves an auto-resume may come back with after a loss of power",
        {"marks": "begins, acknowledged or raised, and the number of the save"},
        {"may_come_back": "any of these saves; null in the list: a fresh start"},
        _comes_back,
        lambda given: ("durable.power-loss", "durable.acknowledged"),
        _nothing,
    ),
)

CHAPTERS: tuple[str, ...] = tuple(dict.fromkeys(question.chapter for question in QUESTIONS))
"""The chapters that have vectors; each is one file."""

ASKED: Mapping[str, Question] = {question.name: question for question in QUESTIONS}
"""Every question under its name."""


def disagreements() -> list[str]:
    """The corners that the predicates answer otherwise than the hand, in words.

    >>> disagreements()
    []
    """
    answers = ((corner, ASKED[corner.question].answer(corner.given)) for corner in CORNERS)
    return [
        f"{corner.question}/{corner.label}: by hand {corner.expected}, by the specification {answer}"
        for corner, answer in answers
        if answer != corner.expected
    ]


def cases(chapter: str) -> list[dict[str, Any]]:
    """Every case of a chapter, corners first, question by question.

    >>> cases("layout")[0]["id"]
    'layout/name/zero'
    """
    asked = [question for question in QUESTIONS if question.chapter == chapter]
    return [case for question in asked for case in (*_corners_of(question), *_grid_of(question))]


def _corners_of(question: Question) -> Iterator[dict[str, Any]]:
    corners: Iterable[Corner] = (corner for corner in CORNERS if corner.question == question.name)
    for corner in corners:
        yield _case(question, corner.label, corner.given, corner.expected, corner.clauses) | {"why": corner.why}


def _grid_of(question: Question) -> Iterator[dict[str, Any]]:
    for label, given in question.grid():
        yield _case(question, f"grid-{label}", given, question.answer(given), question.judges(given))


def _case(question: Question, label: str, given: Given, expected: Given, clauses: Iterable[str]) -> dict[str, Any]:
    slugs = list(clauses)
    assert all(slug in BY_SLUG for slug in slugs), f"{question.name}/{label} names an unknown clause: {slugs}"
    about = {"id": f"{question.name}/{label}", "question": question.name, "clauses": slugs}
    return about | {"given": dict(given), "expected": dict(expected)}


def rendered(chapter: str) -> str:
    """The file of a chapter: one case on a line, so that a change shows as itself."""
    asked = {
        question.name: {"asks": question.asks, "given": dict(question.given), "expected": dict(question.expected)}
        for question in QUESTIONS
        if question.chapter == chapter
    }
    lines = ",\n    ".join(json.dumps(case) for case in cases(chapter))
    head = json.dumps({"chapter": chapter, "questions": asked}, indent=2).removesuffix("\n}")
    return f'{head},\n  "cases": [\n    {lines}\n  ]\n}}\n'


def drifted(directory: Path) -> list[str]:
    """The chapters whose file there says something else, or is missing."""
    files = {chapter: directory / f"{chapter}.json" for chapter in CHAPTERS}
    return [c for c, file in files.items() if not file.exists() or file.read_text("utf-8") != rendered(c)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its result is the exit status."""
    parser = argparse.ArgumentParser(prog="python -m forge_spec.vectors", description="The specification as data.")
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--write", type=Path, metavar="DIRECTORY", help="write one file for each chapter there")
    choice.add_argument("--check", type=Path, metavar="DIRECTORY", help="exit with 1 if a file says something else")
    options = parser.parse_args(arguments)
    wrong = disagreements()
    if not wrong and options.write:
        options.write.mkdir(parents=True, exist_ok=True)
        for chapter in CHAPTERS:
            (options.write / f"{chapter}.json").write_text(rendered(chapter), encoding="utf-8")
    elif not wrong:
        hint = f"renew them with: python -m forge_spec.vectors --write {options.check}"
        wrong = [f"{chapter}.json has drifted; {hint}" for chapter in drifted(options.check)]
    print(*wrong, sep="\n", end="\n" if wrong else "", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
