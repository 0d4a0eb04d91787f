"""Questions about the order of a save, and the calls of a run."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forge_spec import commit, layout, resume, retention
from forge_spec.questions.form import WHOLE, Answer, Corner, Given, Question, steps_or_null

# -- answers by the predicates, and grids ------------------------------------------------


@dataclass(frozen=True)
class _View:
    """A folder as a reader sees it: the files of each directory, and the target of `latest`."""

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
                raise ValueError(f"the vectors have no event {other!r}")
        return _View(directories, latest)


def _broken_clause(before: _View, events: Sequence[Sequence[str]], now: _View, saving: int) -> str | None:
    """Return the clause that the first of these events breaks, or None; the others follow it."""
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


def _answer_order(given: Given) -> Answer:
    view = _View({name: frozenset(files) for name, files in given["folder"].items()}, given["latest"])
    seen = [view.resume_point]
    for number, event in enumerate(given["events"]):
        after = view.after(event)
        clause = _broken_clause(view, given["events"][number:], after, given["saving"])
        if clause is not None:
            return {"breaks": clause, "at_event": number, "resume_points": seen}
        view = after
        seen.append(view.resume_point)
    return {"breaks": None, "at_event": None, "resume_points": seen}


def _clauses_of_order(given: Given) -> Iterable[str]:
    broken = _answer_order(given)["breaks"]
    return ("commit.deferred", "commit.whole", "resume.after-kill") if broken is None else (broken,)


def _grid_of_order() -> Iterator[tuple[str, Given]]:
    one = {"folder": {"step_10": list(WHOLE)}, "latest": "step_10", "saving": 20}
    words = {"shards": "__0_0.distcp", "marker": ".metadata", "state": "train_state.pt", "metadata": "metadata.json"}
    writes = {word: ["write", f"step_20/{file}"] for word, file in words.items()}
    for order in itertools.permutations([*words, "pointer"]):
        yield "-".join(order), {**one, "events": [writes.get(word, ["point", "step_20"]) for word in order]}
    two = {"folder": {"step_10": list(WHOLE), "step_20": list(WHOLE)}, "latest": "step_20", "saving": 20}
    for order in itertools.permutations(words):
        label = "delete-" + "-".join(order)
        yield label, {**two, "events": [["remove", f"step_10/{words[word]}"] for word in order]}


def _answer_calls(given: Given) -> Answer:
    calls = [_call(call) for call in given["calls"]]
    background = given["mode"] == "async"
    has_failures = any(isinstance(call, commit.Save) and call.fails for call in calls)
    return {
        "raise": list(commit.must_raise(calls, background)),
        "committed": sorted(commit.must_be_committed(calls, background)),
        "latest": None if has_failures else steps_or_null(commit.may_be_latest(calls, background)),
    }


def _call(call: Sequence[Any]) -> commit.Call:
    return commit.Wait() if call[0] == "wait" else commit.Save(call[1], fails=call[0] == "failing save")


def _clauses_of_calls(given: Given) -> Iterable[str]:
    is_background = given["mode"] == "async"
    if any(call[0] == "failing save" for call in given["calls"]):
        return ("commit.failed-flush" if is_background else "commit.failed-save",)
    return ("commit.no-later-than" if is_background else "commit.sync",)


def _grid_of_calls() -> Iterator[tuple[str, Given]]:
    for mode, length in itertools.product(("sync", "async"), range(4)):
        for words in itertools.product(("save", "failing save", "wait"), repeat=length):
            if ("failing save", "failing save") in itertools.pairwise(words):
                continue
            calls = [[word] if word == "wait" else [word, place + 1] for place, word in enumerate(words)]
            label = "-".join([mode, *(word.split()[0] for word in words)])
            yield label, {"mode": mode, "calls": calls}


# -- corners ------------------------------------------------------------------------------


def _order(events: Sequence[Sequence[str]], saving: int = 20, **folder: Sequence[str]) -> dict[str, Any]:
    """Return what `commit/order` is asked about, with `latest` at the newest checkpoint of the folder."""
    stand = {name: list(files) for name, files in (folder or {"step_10": WHOLE}).items()}
    newest = max((int(name.removeprefix("step_")) for name in stand if name.startswith("step_")), default=None)
    latest = None if newest is None else f"step_{newest}"
    return {"folder": stand, "latest": latest, "saving": saving, "events": [list(event) for event in events]}


def _writes(step: str, *files: str) -> list[tuple[str, str]]:
    return [("write", f"{step}/{file}") for file in files]


_POINT = ("point", "step_20")
CORNERS: tuple[Corner, ...] = (
    Corner(
        "commit/order",
        "shards-marker-pointer",
        ("commit.deferred", "commit.whole"),
        _order([*_writes("step_20", "__0_0.distcp", ".metadata"), _POINT]),
        {"breaks": "commit.deferred", "at_event": 2, "resume_points": [10, 10, 10]},
        "Train state and metadata are not there yet: weights of step 20 would be resumed as step 0.",
    ),
    Corner(
        "commit/order",
        "pointer-last",
        ("commit.deferred", "commit.whole"),
        _order([*_writes("step_20", "train_state.pt", "metadata.json", "__0_0.distcp", ".metadata"), _POINT]),
        {"breaks": None, "at_event": None, "resume_points": [10, 10, 10, 10, 10, 20]},
        "As long as `latest` names step 10, a reader resumes from step 10, even when step 20 is complete.",
    ),
    Corner(
        "commit/order",
        "first-save",
        ("commit.deferred", "resume.after-kill"),
        {
            "folder": {},
            "latest": None,
            "saving": 20,
            "events": [
                *map(list, _writes("step_20", "train_state.pt", "metadata.json", "__0_0.distcp", ".metadata")),
                ["point", "step_20"],
            ],
        },
        {"breaks": None, "at_event": None, "resume_points": [None, None, None, None, 20, 20]},
        "Without a pointer the newest complete checkpoint counts, so that step 20 counts from its marker on.",
    ),
    Corner(
        "commit/order",
        "marker-before-shards",
        ("resume.after-kill",),
        _order(_writes("step_20", "train_state.pt", "metadata.json", ".metadata", "__0_0.distcp")),
        {"breaks": "resume.after-kill", "at_event": 2, "resume_points": [10, 10, 10]},
        "With the marker the directory looks complete, and a shard is still missing.",
    ),
    Corner(
        "commit/order",
        "whole-by-one-rename",
        ("commit.deferred", "commit.whole"),
        _order([*_writes(".step_20.partial", *WHOLE), ("rename", ".step_20.partial", "step_20"), _POINT]),
        {"breaks": None, "at_event": None, "resume_points": [10, 10, 10, 10, 10, 10, 20]},
        "Under a name that is not a checkpoint's, any order is allowed.",
    ),
    Corner(
        "commit/order",
        "pointer-at-nothing",
        ("commit.deferred",),
        _order([_POINT]),
        {"breaks": "commit.deferred", "at_event": 0, "resume_points": [10]},
        "The pointer must not be first, even if a reader can fall back.",
    ),
    Corner(
        "commit/order",
        "wait-returns-before-the-pointer",
        ("commit.no-later-than",),
        _order([*_writes("step_20", *WHOLE), ("returns", "wait")]),
        {"breaks": "commit.no-later-than", "at_event": 4, "resume_points": [10, 10, 10, 10, 10]},
        "Complete is not committed: a load right after `wait` lands on step 10.",
    ),
    Corner(
        "commit/order",
        "wait-returns-after-the-pointer",
        ("commit.no-later-than",),
        _order([*_writes("step_20", *WHOLE), _POINT, ("returns", "wait")]),
        {"breaks": None, "at_event": None, "resume_points": [10, 10, 10, 10, 10, 20, 20]},
        "When `wait` returns, `latest` names the step.",
    ),
    Corner(
        "commit/order",
        "pointer-goes-back",
        ("commit.monotone",),
        _order([("point", "step_10")], step_10=WHOLE, step_20=WHOLE, saving=20),
        {"breaks": "commit.monotone", "at_event": 0, "resume_points": [20]},
        "Both steps are complete, but the run only moves forward, and so must its pointer.",
    ),
    Corner(
        "commit/order",
        "saved-again-in-place",
        ("commit.resave",),
        _order(_writes("step_20", "__0_0.distcp"), step_10=WHOLE, step_20=WHOLE),
        {"breaks": "commit.resave", "at_event": 0, "resume_points": [20]},
        "New shards under the old marker look complete and are a mixture.",
    ),
    Corner(
        "commit/order",
        "saved-again-marker-away-first",
        ("commit.resave",),
        _order([("remove", "step_20/.metadata")], step_10=WHOLE, step_20=WHOLE),
        {"breaks": "commit.resave", "at_event": 0, "resume_points": [20]},
        "It is not a mixture, but a kill now loses step 20, which was acknowledged.",
    ),
    Corner(
        "commit/order",
        "saved-again-over-debris",
        ("commit.resave",),
        _order(
            [*_writes("step_20", "__0_0.distcp", ".metadata"), _POINT],
            step_20=("__0_0.distcp", "train_state.pt", "metadata.json"),
            step_10=WHOLE,
        )
        | {"latest": "step_10"},
        {"breaks": None, "at_event": None, "resume_points": [10, 10, 10, 20]},
        "A torn directory may be written over: it is complete only when its marker is there.",
    ),
    Corner(
        "commit/order",
        "deleted-before-the-pointer-moves",
        ("retention.latest",),
        _order([*_writes("step_20", *WHOLE), ("remove", "step_10/.metadata")]),
        {"breaks": "retention.latest", "at_event": 4, "resume_points": [10, 10, 10, 10, 10]},
        "`latest` still names step 10.",
    ),
    Corner(
        "commit/order",
        "older-one-deleted-before-the-commit",
        ("retention.after-commit",),
        _order([("remove", "step_5/.metadata")], step_5=WHOLE, step_10=WHOLE),
        {"breaks": "retention.after-commit", "at_event": 0, "resume_points": [10]},
        "Nothing is deleted before its replacement is committed.",
    ),
    Corner(
        "commit/order",
        "deleted-shards-first",
        ("retention.invalidate-first",),
        _order([("remove", "step_10/__0_0.distcp")], step_10=WHOLE, step_20=WHOLE),
        {"breaks": "retention.invalidate-first", "at_event": 0, "resume_points": [20]},
        "A kill now leaves a step that looks complete and is not.",
    ),
    Corner(
        "commit/order",
        "deleted-marker-first",
        ("retention.invalidate-first",),
        _order([("remove", "step_10/.metadata"), ("remove", "step_10/__0_0.distcp")], step_10=WHOLE, step_20=WHOLE),
        {"breaks": None, "at_event": None, "resume_points": [20, 20, 20]},
        "At every instant the checkpoint is either complete or torn.",
    ),
    Corner(
        "commit/order",
        "deleted-by-one-rename",
        ("retention.invalidate-first",),
        _order([("rename", "step_10", ".step_10.retired")], step_10=WHOLE, step_20=WHOLE),
        {"breaks": None, "at_event": None, "resume_points": [20, 20]},
        "The rename hides it at once, so the order after it does not matter.",
    ),
    Corner(
        "commit/calls",
        "no-save",
        ("commit.wait-idempotent",),
        {"mode": "async", "calls": [["wait"], ["wait"]]},
        {"raise": [], "committed": [], "latest": [None]},
        "Nothing is in flight, so nothing happens.",
    ),
    Corner(
        "commit/calls",
        "sync",
        ("commit.sync",),
        {"mode": "sync", "calls": [["save", 1], ["save", 2]]},
        {"raise": [], "committed": [1, 2], "latest": [2]},
        "A synchronous save is committed when it returns.",
    ),
    Corner(
        "commit/calls",
        "one-in-flight",
        ("commit.no-later-than",),
        {"mode": "async", "calls": [["save", 1], ["save", 2]]},
        {"raise": [], "committed": [1], "latest": [1, 2]},
        "The second call has committed the first save, and may have committed its own.",
    ),
    Corner(
        "commit/calls",
        "first-in-flight",
        ("commit.no-later-than",),
        {"mode": "async", "calls": [["save", 1]]},
        {"raise": [], "committed": [], "latest": [None, 1]},
        "The first save may be committed already, or not.",
    ),
    Corner(
        "commit/calls",
        "failed-flush-is-told-once",
        ("commit.failed-flush",),
        {"mode": "async", "calls": [["save", 1], ["failing save", 2], ["save", 3], ["wait"], ["save", 4], ["wait"]]},
        {"raise": [2], "committed": [1, 4], "latest": None},
        "Only the next call raises the failure; whether step 3 was saved then is the manager's choice.",
    ),
    Corner(
        "commit/calls",
        "failed-save-is-told-at-once",
        ("commit.failed-save",),
        {"mode": "sync", "calls": [["save", 1], ["failing save", 2], ["save", 3]]},
        {"raise": [1], "committed": [1, 3], "latest": None},
        "The save itself raises, and the next one succeeds.",
    ),
)

# -- the questions ----------------------------------------------------------------------

QUESTIONS: tuple[Question, ...] = (
    Question(
        "commit/order",
        "whether a save in the background may change the folder in this order, and where a reader of it would resume",
        {
            "folder": "each directory with its files, before the first event",
            "latest": "the target of the pointer, before the first event",
            "saving": "the step that is saved; the run only moves forward",
            "events": "in order: a file is written or removed, a directory is renamed, `latest` moves, `wait` returns",
        },
        {
            "breaks": "the clause that the first forbidden event breaks; null: all are allowed",
            "at_event": "the number of that event, counted from 0",
            "resume_points": "the step an auto-resume lands on (null: fresh) before the first event and after each "
            "allowed one, up to the forbidden one",
        },
        _answer_order,
        _clauses_of_order,
        _grid_of_order,
    ),
    Question(
        "commit/calls",
        "which calls of a run raise, and what is committed when the last of them has ended",
        {"mode": "sync or async", "calls": "save STEP, failing save STEP (its write fails), or wait"},
        {
            "raise": "the calls that raise, counted from 0; all others return",
            "committed": "these steps are committed, and perhaps others",
            "latest": "the pointer names one of these (null in the list: no pointer yet); null: not asked",
        },
        _answer_calls,
        _clauses_of_calls,
        _grid_of_calls,
    ),
)
