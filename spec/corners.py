"""Corners: questions whose answer was written down by hand, with its reason, before any predicate was asked.

Here are the mistakes that managers make: an end of a window left out, a folder
sorted by name, a limit that counts debris, a pointer taken at its word.  An
expected answer is a literal and never computed.  `forge_spec.vectors` says what
each question means, holds the predicates to these answers, and renders both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FOLDER = "/run/checkpoints"
"""Where the folder of a case stands, for paths that are written in full."""
WHOLE = ("__0_0.distcp", ".metadata", "train_state.pt", "metadata.json")
"""The files of a complete checkpoint without pipeline stages."""


@dataclass(frozen=True)
class Corner:
    """One case, as `forge_spec.vectors` has them."""

    question: str
    label: str
    clauses: tuple[str, ...]
    given: Mapping[str, Any]
    expected: Mapping[str, Any]
    why: str


def landing(folder: Mapping[str, Any], latest: str | None, **more: Any) -> dict[str, Any]:
    """What `resume/landing` is asked about, with the usual for all that is not named."""
    usual: dict[str, Any] = {"path": None, "load_path": None, "exclude": [], "stages": None}
    return {"folder": dict(folder), "latest": latest, **usual, **more}


def deletion(folder: Mapping[str, str], keep_last_n: int, committed: int | None, **more: Any) -> dict[str, Any]:
    """What `retention/deletion` is asked about; `latest` is at the step just committed unless it is named."""
    usual: dict[str, Any] = {
        "milestones": [],
        "latest": None if committed is None else f"step_{committed}",
        "in_flight": [],
    }
    return {"keep_last_n": keep_last_n, "folder": dict(folder), **usual, "committed": committed, **more}


def _complete(*steps: int) -> dict[str, str]:
    return {f"step_{step}": "complete" for step in steps}


def _stays(core: Sequence[str], strict: Sequence[str], goes: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    return {
        "core": {"must_stay": list(core), "must_go": list(goes)},
        "strict": {"must_stay": list(strict), "must_go": list(goes)},
    }


def _lands(checkpoint: str, step: int) -> dict[str, Any]:
    return {"outcome": "lands", "checkpoint": checkpoint, "step": step}


_FRESH = {"outcome": "fresh", "checkpoint": None, "step": 0}
_REFUSED = {"outcome": "refused", "checkpoint": None, "step": None}
_NO_MARKER = ["__0_0.distcp", "train_state.pt", "metadata.json"]
_NO_TRAIN_STATE = ["__0_0.distcp", ".metadata", "metadata.json"]
_NO_METADATA = ["__0_0.distcp", ".metadata", "train_state.pt"]
_SHARDS_ALONE = ["__0_0.distcp", ".metadata"]
_STAGED = ["pp0/__0_0.distcp", "pp0/.metadata", "pp1/__0_0.distcp", "pp1/.metadata", "train_state.pt", "metadata.json"]
_ONE_STAGE_TORN = ["pp0/__0_0.distcp", "pp0/.metadata", "pp1/__0_0.distcp", "train_state.pt", "metadata.json"]
_TEN = list(WHOLE)
_TWENTY = list(WHOLE)


def _saves(interval: int, window: tuple[int, int, Any] | None, last: int) -> dict[str, Any]:
    ends = None if window is None else dict(zip(("start", "stop", "strategy"), window, strict=True))
    return {"interval": interval, "window": ends, "steps": [0, last]}


_SCHEDULE = (
    Corner(
        "schedule/saves",
        "step-0-is-a-multiple",
        ("schedule.interval",),
        _saves(5, None, 11),
        {"saves": [0, 5, 10], "milestones": []},
        "0 is a multiple of every interval; without a window nothing is a milestone.",
    ),
    Corner(
        "schedule/saves",
        "interval-1",
        ("schedule.interval",),
        _saves(1, None, 3),
        {"saves": [0, 1, 2, 3], "milestones": []},
        "The smallest interval saves every step.",
    ),
    Corner(
        "schedule/saves",
        "power2-from-0",
        ("schedule.power2", "schedule.window-replaces-interval"),
        _saves(100, (0, 16, "power2"), 20),
        {"saves": [0, 1, 2, 4, 8, 16], "milestones": [0, 1, 2, 4, 8, 16]},
        "start, then start + 1, 2, 4, ...; 16 is the stop, and included.",
    ),
    Corner(
        "schedule/saves",
        "power2-counts-from-start",
        ("schedule.power2",),
        _saves(100, (5, 21, "power2"), 22),
        {"saves": [0, 5, 6, 7, 9, 13, 21], "milestones": [5, 6, 7, 9, 13, 21]},
        "The powers are distances from start: 8 and 16 are none of them. Step 0 comes of the interval.",
    ),
    Corner(
        "schedule/saves",
        "stop-between-powers",
        ("schedule.power2",),
        _saves(100, (5, 20, "power2"), 22),
        {"saves": [0, 5, 6, 7, 9, 13], "milestones": [5, 6, 7, 9, 13]},
        "21 is one beyond the stop, and the stop itself is no power away.",
    ),
    Corner(
        "schedule/saves",
        "interval-is-silent-inside",
        ("schedule.window-replaces-interval",),
        _saves(2, (3, 8, "power2"), 12),
        {"saves": [0, 2, 3, 4, 5, 7, 10, 12], "milestones": [3, 4, 5, 7]},
        "6 and 8 are multiples of 2 inside the window, where only the strategy speaks; 2 and 10 are just outside.",
    ),
    Corner(
        "schedule/saves",
        "interval-is-silent-at-the-stop",
        ("schedule.window-replaces-interval",),
        _saves(4, (1, 8, "power2"), 12),
        {"saves": [0, 1, 2, 3, 5, 12], "milestones": [1, 2, 3, 5]},
        "8 is a multiple of 4 and the last step of the window, and the strategy is silent there.",
    ),
    Corner(
        "schedule/saves",
        "window-of-one-step",
        ("schedule.window-replaces-interval", "schedule.milestone"),
        _saves(2, (3, 3, "power2"), 4),
        {"saves": [0, 2, 3, 4], "milestones": [3]},
        "start and stop may be the same step.",
    ),
    Corner(
        "schedule/saves",
        "window-of-step-0",
        ("schedule.window-replaces-interval", "schedule.milestone"),
        _saves(3, (0, 0, "power2"), 3),
        {"saves": [0, 3], "milestones": [0]},
        "Step 0 is a milestone here, because the window decides it.",
    ),
    Corner(
        "schedule/saves",
        "strategy-outside-its-window",
        ("schedule.strategy-in-window", "schedule.milestone"),
        _saves(7, (10, 12, [9, 10, 12, 13, 14]), 15),
        {"saves": [0, 7, 10, 12, 14], "milestones": [10, 12]},
        "The strategy says yes at 9, 13 and 14, where nobody asks it; 14 is saved by the interval alone.",
    ),
    Corner(
        "schedule/saves",
        "strategy-that-never-fires",
        ("schedule.window-replaces-interval",),
        _saves(1, (2, 3, []), 5),
        {"saves": [0, 1, 4, 5], "milestones": []},
        "A silent strategy saves nothing in its window, whatever the interval.",
    ),
    Corner(
        "schedule/configuration",
        "interval-0",
        ("schedule.validate",),
        {"interval": 0, "start": None, "stop": None},
        {"refused_for": ["interval"]},
        "It would divide by zero at the first due step.",
    ),
    Corner(
        "schedule/configuration",
        "interval-minus-1",
        ("schedule.validate",),
        {"interval": -1, "start": None, "stop": None},
        {"refused_for": ["interval"]},
        "Every step is a multiple of -1.",
    ),
    Corner(
        "schedule/configuration",
        "stop-just-below-start",
        ("schedule.validate-window",),
        {"interval": 1, "start": 5, "stop": 4},
        {"refused_for": ["stop"]},
        "An empty window never fires.",
    ),
    Corner(
        "schedule/configuration",
        "stop-at-start",
        ("schedule.validate-window",),
        {"interval": 1, "start": 5, "stop": 5},
        {"refused_for": []},
        "One step is a window.",
    ),
    Corner(
        "schedule/configuration",
        "start-0",
        ("schedule.validate-window",),
        {"interval": 1, "start": 0, "stop": 0},
        {"refused_for": []},
        "0 is a step.",
    ),
)


def _named(name: str, label: str, step: int | None, why: str, kind: str = "directory") -> Corner:
    return Corner("layout/name", label, ("layout.only-step-names",), {"name": name, "is": kind}, {"step": step}, why)


_LAYOUT = (
    _named("step_0", "zero", 0, "The one name in which the number begins with 0."),
    _named("step_10", "ten", 10, "Two digits, of which the last is 0."),
    _named("step_007", "leading-zeros", None, "7 has one name, `step_7`."),
    _named("step_00", "zero-twice", None, "0 has one name, `step_0`."),
    _named("step_100_backup", "backup", None, "A person's copy. Read as 100 it is pruned as the oldest."),
    _named("step_5.tmp", "temporary", None, "Left by a writer that died."),
    _named("step_5_bak", "copy", None, "A person's copy, too."),
    _named("step_final", "word", None, "No number."),
    _named("step_", "nothing", None, "No number."),
    _named("step_-1", "minus", None, "No step is negative."),
    _named("step_+9", "plus", None, "Parsers of numbers take the sign."),
    _named("step_1_000", "underscore", None, "Some parsers of numbers take the underscore."),
    _named("step_ 5", "blank", None, "Some parsers of numbers skip the blank."),
    _named("step_5\n", "line-feed", None, "`$` in a regular expression lets a line feed pass."),
    _named("step_٣", "other-digits", None, "A digit in Unicode, and no decimal digit of ours."),
    _named("Step_5", "capital", None, "Another name."),
    _named("xstep_5", "prefix", None, "The name has to match as a whole."),
    _named("5", "bare", None, "Other managers name theirs so."),
    _named("step_7", "file", None, "Only a directory is a checkpoint.", kind="file"),
    _named("step_8", "link", None, "A link is another name of a checkpoint, not another checkpoint.", kind="link"),
    Corner(
        "layout/complete",
        "marker-beside-its-stages",
        ("commit.whole", "layout.stage-dirs"),
        {"files": [".metadata", "pp0/.metadata", "train_state.pt", "metadata.json"], "stages": 2},
        {"missing": ["pp1/.metadata"]},
        "A marker in the directory itself speaks for no stage.",
    ),
    Corner(
        "layout/complete",
        "no-shard",
        ("commit.whole",),
        {"files": [".metadata", "train_state.pt", "metadata.json"], "stages": None},
        {"missing": []},
        "The marker vouches for the shards: their number and names are the format's business.",
    ),
    Corner(
        "layout/complete",
        "nothing",
        ("commit.whole",),
        {"files": [], "stages": None},
        {"missing": [".metadata", "train_state.pt", "metadata.json"]},
        "An empty directory is torn.",
    ),
    Corner(
        "layout/pointer",
        "bare",
        ("layout.latest-relative",),
        {"target": "step_5"},
        {"survives_a_move": True},
        "The name of the entry beside it.",
    ),
    Corner(
        "layout/pointer",
        "absolute",
        ("layout.latest-relative",),
        {"target": "/run/checkpoints/step_5"},
        {"survives_a_move": False},
        "Right as long as the folder stays where it is.",
    ),
    Corner(
        "layout/pointer",
        "root",
        ("layout.latest-relative",),
        {"target": "/"},
        {"survives_a_move": False},
        "One part, and no name.",
    ),
    Corner(
        "layout/pointer",
        "by-way-of-the-parent",
        ("layout.latest-relative",),
        {"target": "../checkpoints/step_5"},
        {"survives_a_move": False},
        "Relative, and still wrong when the folder is called something else.",
    ),
)


def _metadata(label: str, content: Any, answer: list[str] | None, why: str, vlm_freeze: Any = None) -> Corner:
    """Of a save of step 1 with 640 tokens."""
    given = {"metadata": content, "step": 1, "tokens_seen": 640, "vlm_freeze": vlm_freeze}
    expected = {"is_object": answer is not None, "wrong": answer or []}
    return Corner("layout/metadata", label, ("layout.metadata-json",), given, expected, why)


_FROZEN = [{"module": "vision", "frozen": True}]
_METADATA = (
    _metadata("whole", {"step": 1, "tokens_seen": 640}, [], "Both are there, and nothing was frozen."),
    _metadata("more", {"step": 1, "tokens_seen": 640, "host": "a"}, [], "Further keys are the manager's business."),
    _metadata("no-tokens", {"step": 1}, ["tokens_seen"], "A plan that counts tokens takes this file's word."),
    _metadata("step-as-text", {"step": "1", "tokens_seen": 640}, ["step"], "A number is a number."),
    _metadata("step-as-truth", {"step": True, "tokens_seen": 640}, ["step"], "In some languages true equals 1."),
    _metadata(
        "frozen-in-another-order",
        {"step": 1, "tokens_seen": 640, "vlm_freeze": [{"frozen": True, "module": "vision"}]},
        [],
        "The keys of an object have no order.",
        vlm_freeze=_FROZEN,
    ),
    _metadata(
        "frozen-and-recorded",
        {"step": 1, "tokens_seen": 640, "vlm_freeze": [{"module": "vision", "frozen": True}]},
        [],
        "As the extra had it.",
        vlm_freeze=_FROZEN,
    ),
    _metadata(
        "frozen-and-not-recorded",
        {"step": 1, "tokens_seen": 640},
        ["vlm_freeze"],
        "Nothing would be compared on resume.",
        vlm_freeze=_FROZEN,
    ),
    _metadata(
        "recorded-and-not-frozen",
        {"step": 1, "tokens_seen": 640, "vlm_freeze": []},
        ["vlm_freeze"],
        "Nobody said anything about freezing.",
    ),
    _metadata("a-list", [1, 640], None, "Not an object."),
)


def _order(events: Sequence[Sequence[str]], saving: int = 20, **folder: Sequence[str]) -> dict[str, Any]:
    """Over a folder whose newest checkpoint `latest` names."""
    stand = {name: list(files) for name, files in (folder or {"step_10": WHOLE}).items()}
    newest = max((int(name.removeprefix("step_")) for name in stand if name.startswith("step_")), default=None)
    latest = None if newest is None else f"step_{newest}"
    return {"folder": stand, "latest": latest, "saving": saving, "events": [list(event) for event in events]}


def _writes(step: str, *files: str) -> list[tuple[str, str]]:
    return [("write", f"{step}/{file}") for file in files]


_POINT = ("point", "step_20")
_COMMIT = (
    Corner(
        "commit/order",
        "shards-marker-pointer",
        ("commit.deferred", "commit.whole"),
        _order([*_writes("step_20", "__0_0.distcp", ".metadata"), _POINT]),
        {"breaks": "commit.deferred", "at_event": 2, "resume_points": [10, 10, 10]},
        "Train state and metadata are not there yet: weights of step 20 would come back as step 0.",
    ),
    Corner(
        "commit/order",
        "pointer-last",
        ("commit.deferred", "commit.whole"),
        _order([*_writes("step_20", "train_state.pt", "metadata.json", "__0_0.distcp", ".metadata"), _POINT]),
        {"breaks": None, "at_event": None, "resume_points": [10, 10, 10, 10, 10, 20]},
        "As long as `latest` names step 10, a reader takes step 10, however complete step 20 is.",
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
        "Without a pointer the newest complete one counts, so the marker makes the difference.",
    ),
    Corner(
        "commit/order",
        "marker-before-shards",
        ("resume.after-kill",),
        _order(_writes("step_20", "train_state.pt", "metadata.json", ".metadata", "__0_0.distcp")),
        {"breaks": "resume.after-kill", "at_event": 2, "resume_points": [10, 10, 10]},
        "With the marker the directory looks complete, and a shard is still to come.",
    ),
    Corner(
        "commit/order",
        "whole-by-one-rename",
        ("commit.deferred", "commit.whole"),
        _order([*_writes(".step_20.partial", *WHOLE), ("rename", ".step_20.partial", "step_20"), _POINT]),
        {"breaks": None, "at_event": None, "resume_points": [10, 10, 10, 10, 10, 10, 20]},
        "Under a name that is no checkpoint's, any order will do.",
    ),
    Corner(
        "commit/order",
        "pointer-at-nothing",
        ("commit.deferred",),
        _order([_POINT]),
        {"breaks": "commit.deferred", "at_event": 0, "resume_points": [10]},
        "The pointer first is the pointer wrong, even if a reader that falls back survives it.",
    ),
    Corner(
        "commit/order",
        "wait-returns-before-the-pointer",
        ("commit.no-later-than",),
        _order([*_writes("step_20", *WHOLE), ("returns", "wait")]),
        {"breaks": "commit.no-later-than", "at_event": 4, "resume_points": [10, 10, 10, 10, 10]},
        "Complete is not committed: a load right after `wait` comes back at step 10.",
    ),
    Corner(
        "commit/order",
        "wait-returns-after-the-pointer",
        ("commit.no-later-than",),
        _order([*_writes("step_20", *WHOLE), _POINT, ("returns", "wait")]),
        {"breaks": None, "at_event": None, "resume_points": [10, 10, 10, 10, 10, 20, 20]},
        "Now it is.",
    ),
    Corner(
        "commit/order",
        "pointer-goes-back",
        ("commit.monotone",),
        _order([("point", "step_10")], step_10=WHOLE, step_20=WHOLE, saving=20),
        {"breaks": "commit.monotone", "at_event": 0, "resume_points": [20]},
        "Both are complete; the run only moves forward, and so does its pointer.",
    ),
    Corner(
        "commit/order",
        "saved-again-in-place",
        ("commit.resave",),
        _order(_writes("step_20", "__0_0.distcp"), step_10=WHOLE, step_20=WHOLE),
        {"breaks": "commit.resave", "at_event": 0, "resume_points": [20]},
        "New shards under the old marker look complete, and are a mixture.",
    ),
    Corner(
        "commit/order",
        "saved-again-marker-away-first",
        ("commit.resave",),
        _order([("remove", "step_20/.metadata")], step_10=WHOLE, step_20=WHOLE),
        {"breaks": "commit.resave", "at_event": 0, "resume_points": [20]},
        "No mixture, but a kill now has lost step 20, which was acknowledged.",
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
        "What is torn may be written over: it is complete only when its marker is there.",
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
        "Nothing goes before what replaces it is committed.",
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
        "At every instant it is either whole or torn.",
    ),
    Corner(
        "commit/order",
        "deleted-by-one-rename",
        ("retention.invalidate-first",),
        _order([("rename", "step_10", ".step_10.retired")], step_10=WHOLE, step_20=WHOLE),
        {"breaks": None, "at_event": None, "resume_points": [20, 20]},
        "Hidden at once; what goes first from there on does not matter.",
    ),
    Corner(
        "commit/calls",
        "no-save",
        ("commit.wait-idempotent",),
        {"mode": "async", "calls": [["wait"], ["wait"]]},
        {"raise": [], "committed": [], "latest": [None]},
        "Nothing is pending, and nothing happens.",
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
        "The second call has committed the first save; to have committed its own as well is allowed.",
    ),
    Corner(
        "commit/calls",
        "first-in-flight",
        ("commit.no-later-than",),
        {"mode": "async", "calls": [["save", 1]]},
        {"raise": [], "committed": [], "latest": [None, 1]},
        "The very first save may or may not have a pointer yet.",
    ),
    Corner(
        "commit/calls",
        "failed-flush-is-told-once",
        ("commit.failed-flush",),
        {"mode": "async", "calls": [["save", 1], ["failing save", 2], ["save", 3], ["wait"], ["save", 4], ["wait"]]},
        {"raise": [2], "committed": [1, 4], "latest": None},
        "The next call tells of it, and no other; whether step 3 was then saved is the manager's choice.",
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

_RETENTION = (
    Corner(
        "retention/deletion",
        "step-10-is-newer-than-step-9",
        ("retention.numeric",),
        deletion(_complete(9, 10), keep_last_n=1, committed=10),
        _stays(["step_10"], ["step_10"], ["step_9"]),
        "By name, `step_9` comes last.",
    ),
    Corner(
        "retention/deletion",
        "digits-grow",
        ("retention.numeric",),
        deletion(_complete(8, 9, 10, 99, 100), keep_last_n=3, committed=100),
        _stays(["step_10", "step_99", "step_100"], ["step_10", "step_99", "step_100"], ["step_8", "step_9"]),
        "By name, the newest three would be 8, 9 and 99.",
    ),
    Corner(
        "retention/deletion",
        "as-many-as-the-limit",
        ("retention.keeps",),
        deletion(_complete(1, 2), keep_last_n=2, committed=2),
        _stays(["step_1", "step_2"], ["step_1", "step_2"], []),
        "Two of two stay: the one just committed counts.",
    ),
    Corner(
        "retention/deletion",
        "one-more-than-the-limit",
        ("retention.drops",),
        deletion(_complete(1, 2, 3), keep_last_n=2, committed=3),
        _stays(["step_2", "step_3"], ["step_2", "step_3"], ["step_1"]),
        "Exactly one goes.",
    ),
    Corner(
        "retention/deletion",
        "limit-0-keeps-all",
        ("retention.off",),
        deletion({**_complete(1, 2), "step_3": "torn"}, keep_last_n=0, committed=2),
        _stays(["step_1", "step_2", "step_3"], ["step_1", "step_2", "step_3"], []),
        "0 is no limit; then debris is not touched either.",
    ),
    Corner(
        "retention/deletion",
        "limit-minus-1-keeps-all",
        ("retention.off",),
        deletion(_complete(1, 2, 3), keep_last_n=-1, committed=3),
        _stays(["step_1", "step_2", "step_3"], ["step_1", "step_2", "step_3"], []),
        "A slice by a negative number would keep all but one.",
    ),
    Corner(
        "retention/deletion",
        "nothing-committed",
        ("retention.after-commit",),
        deletion(_complete(1, 2, 3), keep_last_n=1, committed=None),
        _stays(["step_1", "step_2", "step_3"], ["step_1", "step_2", "step_3"], []),
        "Before a commit nothing goes, also what an earlier run has left beyond the limit.",
    ),
    Corner(
        "retention/deletion",
        "milestones-are-free",
        ("retention.exempt-is-free", "retention.keeps"),
        deletion(_complete(1, 2, 4, 10, 20, 30), keep_last_n=2, committed=30, milestones=[1, 2, 4]),
        _stays(
            ["step_1", "step_2", "step_4", "step_20", "step_30"],
            ["step_1", "step_2", "step_4", "step_20", "step_30"],
            ["step_10"],
        ),
        "Three milestones, and beside them two ordinary ones.",
    ),
    Corner(
        "retention/deletion",
        "milestones-are-the-newest",
        ("retention.exempt-is-free",),
        deletion(_complete(10, 20, 21, 22), keep_last_n=2, committed=22, milestones=[21, 22]),
        _stays(["step_21", "step_22"], ["step_10", "step_20", "step_21", "step_22"], []),
        "At level core they may use up the limit; at level strict the two ordinary ones stay as well.",
    ),
    Corner(
        "retention/deletion",
        "torn-is-free",
        ("retention.torn-is-free",),
        deletion({**_complete(1, 2, 3), "step_4": "torn", "step_5": "torn"}, keep_last_n=2, committed=3),
        _stays(["step_3"], ["step_2", "step_3"], ["step_1"]),
        "Two torn ones on top take no complete one's place; at level core only the resume point is certain.",
    ),
    Corner(
        "retention/deletion",
        "torn-below-is-nobodys-business",
        ("retention.torn-is-free",),
        deletion({"step_1": "torn", **_complete(2, 3)}, keep_last_n=2, committed=3),
        _stays(["step_2", "step_3"], ["step_2", "step_3"], []),
        "To sweep the debris or to leave it are both right.",
    ),
    Corner(
        "retention/deletion",
        "after-a-rewind",
        ("retention.future",),
        deletion(_complete(10, 15, 20, 30, 40), keep_last_n=2, committed=15),
        _stays(["step_15"], ["step_10", "step_15", "step_20", "step_30", "step_40"], []),
        "20, 30 and 40 are from before the rewind: neither counted nor deleted.",
    ),
    Corner(
        "retention/deletion",
        "after-a-rewind-the-limit-still-holds",
        ("retention.future", "retention.drops"),
        deletion(_complete(5, 10, 15, 40), keep_last_n=2, committed=15),
        _stays(["step_15"], ["step_10", "step_15", "step_40"], ["step_5"]),
        "Below the commit two stay, and 5 goes.",
    ),
    Corner(
        "retention/deletion",
        "in-flight-stays",
        ("retention.in-flight",),
        deletion({**_complete(1, 2), "step_3": "torn"}, keep_last_n=1, committed=2, in_flight=[3]),
        _stays(["step_2", "step_3"], ["step_2", "step_3"], ["step_1"]),
        "It looks torn, because it is being written.",
    ),
    Corner(
        "retention/deletion",
        "backup-is-not-the-oldest",
        ("layout.only-step-names",),
        deletion({"step_100_backup": "foreign", **_complete(200, 300)}, keep_last_n=1, committed=300),
        _stays(["step_300"], ["step_300", "step_100_backup"], ["step_200"]),
        "It neither counts nor goes.",
    ),
    Corner(
        "retention/deletion",
        "look-alikes-are-not-the-newest",
        ("layout.only-step-names",),
        deletion(
            {**_complete(1, 2), "step_007": "foreign", "step_8": "file", "step_9": "link"},
            keep_last_n=2,
            committed=2,
        ),
        _stays(["step_1", "step_2"], ["step_1", "step_2", "step_007", "step_8", "step_9"], []),
        "Counted, they would push out both checkpoints.",
    ),
    Corner(
        "retention/deletion",
        "pointer-below-the-limit",
        ("retention.latest",),
        deletion(_complete(1, 2, 3, 4), keep_last_n=1, committed=4, latest="step_2"),
        _stays(["step_2", "step_4"], ["step_2", "step_4"], ["step_1", "step_3"]),
        "Whatever `latest` names is what the next resume asks for.",
    ),
)

_BOTH = ["pp0/.metadata", "pp1/.metadata", "train_state.pt", "metadata.json"]


def _cut(label: str, before: Sequence[str], now: Sequence[str], stages: int | None, allowed: bool, why: str) -> Corner:
    given = {"before": list(before), "now": list(now), "stages": stages}
    return Corner("retention/cut-short", label, ("retention.invalidate-first",), given, {"allowed": allowed}, why)


_CUT_SHORT = (
    _cut("not-begun", WHOLE, WHOLE, None, True, "Nothing of it is gone."),
    _cut("all-gone", WHOLE, [], None, True, "Not even a name is left, or an empty directory."),
    _cut("shard-first", WHOLE, WHOLE[1:], None, False, "It looks complete, and lacks a shard."),
    _cut("marker-first", WHOLE, [name for name in WHOLE if name != ".metadata"], None, True, "It is torn for all."),
    _cut("metadata-first", WHOLE, WHOLE[:3], None, True, "Any file without which it is not complete will do."),
    _cut(
        "marker-of-one-stage-first",
        [*_BOTH, "pp0/__0_0.distcp"],
        [*_BOTH[1:], "pp0/__0_0.distcp"],
        2,
        True,
        "Without the marker of one stage it is complete for none.",
    ),
    _cut("shard-of-a-stage-first", [*_BOTH, "pp0/__0_0.distcp"], _BOTH, 2, False, "It looks complete to both."),
)

_PAIR = {"step_10": _TEN, "step_20": _TWENTY}


def _lands_on(label: str, clause: str, given: dict[str, Any], expected: dict[str, Any], why: str) -> Corner:
    return Corner("resume/landing", label, (clause,), given, expected, why)


_RESUME = (
    _lands_on(
        "pointer-at-the-older",
        "resume.lands",
        landing(_PAIR, "step_10"),
        _lands("step_10", 10),
        "`latest` decides as long as what it names is complete: somebody has rewound.",
    ),
    _lands_on(
        "pointer-at-the-torn-newest",
        "resume.fallback",
        landing({**_PAIR, "step_30": _NO_MARKER}, "step_30"),
        _lands("step_20", 20),
        "The newest complete one, not the oldest.",
    ),
    _lands_on(
        "pointer-at-the-torn-oldest",
        "resume.fallback",
        landing({"step_5": _NO_MARKER, **_PAIR}, "step_5"),
        _lands("step_20", 20),
        "The newest complete one, though it is newer than what `latest` named.",
    ),
    _lands_on(
        "fallback-by-number",
        "resume.fallback",
        landing({"step_9": list(WHOLE), "step_10": list(WHOLE), "step_11": _NO_MARKER}, "step_11"),
        _lands("step_10", 10),
        "By name, `step_9` comes last.",
    ),
    _lands_on(
        "no-train-state",
        "commit.whole",
        landing({"step_10": _TEN, "step_20": _NO_TRAIN_STATE}, "step_20"),
        _lands("step_10", 10),
        "Shards and marker are there; the step would come back as 0.",
    ),
    _lands_on(
        "no-metadata",
        "commit.whole",
        landing({"step_10": _TEN, "step_20": _NO_METADATA}, "step_20"),
        _lands("step_10", 10),
        "All three files make a checkpoint complete.",
    ),
    _lands_on(
        "empty-directory",
        "resume.skips-torn",
        landing({"step_10": _TEN, "step_20": []}, "step_10"),
        _lands("step_10", 10),
        "Made and never filled.",
    ),
    _lands_on(
        "no-pointer",
        "resume.pointer-is-a-hint",
        landing(_PAIR, None),
        _lands("step_20", 20),
        "Copy tools drop links.",
    ),
    _lands_on(
        "dangling",
        "resume.pointer-is-a-hint",
        landing(_PAIR, "step_30"),
        _lands("step_20", 20),
        "What it names was deleted.",
    ),
    _lands_on(
        "pointer-at-itself",
        "resume.pointer-is-a-hint",
        landing(_PAIR, "latest"),
        _lands("step_20", 20),
        "Following it never ends.",
    ),
    _lands_on(
        "pointer-out-of-the-folder",
        "resume.pointer-is-a-hint",
        landing(_PAIR, "../elsewhere/step_10"),
        _lands("step_20", 20),
        "Another run's checkpoint, even if it exists.",
    ),
    _lands_on(
        "absolute-and-of-this-folder",
        "resume.lands",
        landing(_PAIR, "/run/checkpoints/step_10"),
        _lands("step_10", 10),
        "Not how a manager writes it, and still the name of a step of this folder.",
    ),
    _lands_on(
        "absolute-and-moved-away-from",
        "resume.pointer-is-a-hint",
        landing(_PAIR, "/old/place/step_10"),
        _lands("step_20", 20),
        "The folder has been moved, and its pointer has stayed behind.",
    ),
    _lands_on(
        "pointer-at-a-backup",
        "layout.only-step-names",
        landing({**_PAIR, "step_30_backup": list(WHOLE)}, "step_30_backup"),
        _lands("step_20", 20),
        "What has no checkpoint's name is none, whoever points at it.",
    ),
    _lands_on(
        "look-alikes-only",
        "layout.only-step-names",
        landing({"step_007": list(WHOLE), "step_final": list(WHOLE), "step_8": "file"}, None),
        _FRESH,
        "Nothing there is a checkpoint.",
    ),
    _lands_on(
        "link-with-a-step-name",
        "layout.only-step-names",
        landing({**_PAIR, "step_30": "link"}, None),
        _lands("step_20", 20),
        "The link is no checkpoint of step 30, though it leads to a complete one.",
    ),
    _lands_on("empty-folder", "resume.fresh", landing({}, None), _FRESH, "Every run begins so."),
    _lands_on(
        "nothing-but-torn",
        "resume.all-torn",
        landing({"step_10": _NO_MARKER, "step_20": _NO_TRAIN_STATE}, "step_20"),
        _FRESH,
        "A run that was killed in its first saves starts again, by itself.",
    ),
    _lands_on(
        "named-before-configured",
        "resume.order",
        landing(_PAIR, "step_20", path="/run/checkpoints/step_10", load_path="/run/checkpoints/step_20"),
        _lands("step_10", 10),
        "The call is nearer than the configuration.",
    ),
    _lands_on(
        "configured-before-latest",
        "resume.order",
        landing(_PAIR, "step_20", load_path="/run/checkpoints/step_10"),
        _lands("step_10", 10),
        "`latest` is asked last.",
    ),
    _lands_on(
        "named-and-torn",
        "resume.explicit-honoured",
        landing({**_PAIR, "step_30": _NO_MARKER}, "step_20", path="/run/checkpoints/step_30"),
        _REFUSED,
        "A name is literal: no fallback.",
    ),
    _lands_on(
        "named-and-missing",
        "resume.explicit-missing",
        landing(_PAIR, "step_20", path="/run/checkpoints/step_77"),
        _REFUSED,
        "A typing error is no fresh start.",
    ),
    _lands_on(
        "configured-and-missing",
        "resume.explicit-missing",
        landing(_PAIR, "step_20", load_path="/run/checkpoints/step_77"),
        _REFUSED,
        "Nor is it in the configuration.",
    ),
    _lands_on(
        "named-weights-alone",
        "resume.imported-weights",
        landing({"step_10": _TEN, "imported": _SHARDS_ALONE}, "step_10", path="/run/checkpoints/imported"),
        _lands("imported", 0),
        "Weights from elsewhere have no train state, and begin at step 0.",
    ),
    _lands_on(
        "train-state-alone",
        "resume.no-fallback-without-dcp",
        landing({"step_10": _TEN, "step_20": _NO_MARKER}, "step_20", exclude=["model", "optimizer"]),
        _lands("step_20", 20),
        "No shard is read, so none is missed.",
    ),
    _lands_on(
        "train-state-and-weights",
        "resume.fallback",
        landing({"step_10": _TEN, "step_20": _NO_MARKER}, "step_20", exclude=["optimizer"]),
        _lands("step_10", 10),
        "Weights are read: the fallback applies.",
    ),
    _lands_on(
        "two-stages-one-torn",
        "resume.agreement-across-stages",
        landing({"step_10": _STAGED, "step_20": _ONE_STAGE_TORN}, "step_20", stages=2),
        _lands("step_10", 10),
        "Stage 0 has step 20 and stage 1 has not: both come back at step 10.",
    ),
    _lands_on(
        "two-stages-whole",
        "resume.lands",
        landing({"step_10": _STAGED, "step_20": _STAGED}, "step_20", stages=2),
        _lands("step_20", 20),
        "Both stages have it.",
    ),
    _lands_on(
        "two-stages-and-a-run-without",
        "resume.stages-fit",
        landing({"step_10": _STAGED}, "step_10", path="/run/checkpoints/step_10"),
        _REFUSED,
        "Half a model is no model.",
    ),
    _lands_on(
        "no-stages-and-a-run-with-two",
        "resume.stages-fit",
        landing({"step_10": _TEN}, "step_10", path="/run/checkpoints/step_10", stages=2),
        _REFUSED,
        "Nobody knows which half is whose.",
    ),
    Corner(
        "resume/after-kill",
        "killed-in-the-first-save",
        ("resume.after-kill",),
        {"acknowledged": None, "in_flight": 10, "dispatching": None},
        {"may_land_on": [None, 10]},
        "Whole or not at all.",
    ),
    Corner(
        "resume/after-kill",
        "killed-in-the-next-call",
        ("resume.after-kill",),
        {"acknowledged": 10, "in_flight": 20, "dispatching": 30},
        {"may_land_on": [10, 20, 30]},
        "That call commits step 20, and may have got further.",
    ),
    Corner(
        "resume/after-kill",
        "killed-with-nothing-in-flight",
        ("resume.after-kill",),
        {"acknowledged": 10, "in_flight": None, "dispatching": None},
        {"may_land_on": [10]},
        "An acknowledged step is not lost.",
    ),
    Corner(
        "resume/extra",
        "step",
        ("resume.reserved-extra",),
        {"keys": ["epoch", "step"]},
        {"refused_for": ["step"]},
        "The run would resume at the step that the extra says.",
    ),
    Corner(
        "resume/extra",
        "every-key-of-the-train-state",
        ("resume.reserved-extra",),
        {"keys": ["step", "tokens_seen", "scheduler", "dataloader", "rng"]},
        {"refused_for": ["dataloader", "rng", "scheduler", "step", "tokens_seen"]},
        "All of them, and no others.",
    ),
    Corner(
        "resume/extra",
        "a-key-that-resembles-one",
        ("resume.reserved-extra",),
        {"keys": ["steps", "Step", "vlm_freeze"]},
        {"refused_for": []},
        "Keys are compared as they are.",
    ),
)


def _compared(
    label: str,
    clause: str,
    saved: Any,
    expected: Any,
    answer: tuple[str, bool, list[str]],
    why: str,
    ignore: bool = False,
) -> Corner:
    outcome, must_warn, differing = answer
    given = {"saved": saved, "expected": expected, "ignore": ignore}
    told = {"outcome": outcome, "must_warn": must_warn, "differing": differing}
    return Corner("freeze/compare", label, (clause,), given, told, why)


_STAGES_OF_FREEZING = [
    {"start_step": 200, "entries": [["vision", True]]},
    {"start_step": 100, "entries": [["vision", False], ["adapter", True]]},
]


def _in_force(label: str, step: int, expected: list[list[Any]] | None, why: str, **more: Any) -> Corner:
    usual = {"base": [["vision", True]], "schedule": _STAGES_OF_FREEZING, "valid_modules": None}
    answer = {"outcome": "refused" if expected is None else "in force", "in_force": expected}
    return Corner("freeze/effective", label, ("freeze.effective",), {"step": step, **usual, **more}, answer, why)


_FREEZE = (
    Corner(
        "freeze/canonical",
        "order-and-repetition",
        ("freeze.canonical",),
        {"entries": [["vision", True], ["adapter", False], ["vision", True]]},
        {"recorded": [{"module": "adapter", "frozen": False}, {"module": "vision", "frozen": True}]},
        "Sorted by module, equal entries once.",
    ),
    Corner(
        "freeze/canonical",
        "nothing",
        ("freeze.canonical",),
        {"entries": []},
        {"recorded": []},
        "An empty list is a list.",
    ),
    Corner(
        "freeze/canonical",
        "one-module-both-ways",
        ("freeze.canonical",),
        {"entries": [["vision", True], ["vision", False]]},
        {"recorded": [{"module": "vision", "frozen": False}, {"module": "vision", "frozen": True}]},
        "Both stay: to choose would need the order that the form is independent of.",
    ),
    Corner(
        "freeze/canonical",
        "capitals",
        ("freeze.canonical",),
        {"entries": [["b", True], ["B", True], ["a", True]]},
        {
            "recorded": [
                {"module": "B", "frozen": True},
                {"module": "a", "frozen": True},
                {"module": "b", "frozen": True},
            ]
        },
        "Sorted by code point.",
    ),
    _compared(
        "more-on-both-sides",
        "freeze.intersection",
        [["vision", True], ["text", False]],
        [["adapter", True], ["vision", True]],
        ("goes on", False, []),
        "They agree on vision, which is all that both name.",
    ),
    _compared(
        "differ-on-a-shared-one",
        "freeze.mismatch",
        [["vision", True], ["text", False]],
        [["adapter", True], ["vision", False]],
        ("refused", False, ["vision"]),
        "vision was frozen, and is to be trained.",
    ),
    _compared(
        "differ-on-one-of-two",
        "freeze.mismatch",
        [["text", False], ["vision", True]],
        [["text", False], ["vision", False]],
        ("refused", False, ["vision"]),
        "To agree on one is not to agree.",
    ),
    _compared(
        "difference-ignored",
        "freeze.override",
        [["vision", True]],
        [["vision", False]],
        ("goes on", True, ["vision"]),
        "With a warning.",
        ignore=True,
    ),
    _compared(
        "nothing-in-common",
        "freeze.zero-overlap",
        [["vision", True]],
        [["visual", True]],
        ("goes on", True, []),
        "Nothing was compared, and somebody should know: a module was renamed.",
    ),
    _compared(
        "saved-empty",
        "freeze.zero-overlap",
        [],
        [["vision", True]],
        ("goes on", False, []),
        "Nothing was recorded to compare with.",
    ),
    _compared(
        "nothing-recorded",
        "freeze.absent",
        None,
        [["vision", True]],
        ("goes on", False, []),
        "An older checkpoint.",
    ),
    _compared(
        "nothing-expected",
        "freeze.absent",
        [["vision", True]],
        None,
        ("goes on", False, []),
        "A run that asks for nothing.",
    ),
    _compared(
        "unreadable",
        "freeze.unreadable",
        "unreadable",
        [["vision", False]],
        ("goes on", True, []),
        "The weights are intact; that nothing was compared has to be said.",
    ),
    _in_force("before-the-first-stage", 99, [["vision", True]], "One step before it begins."),
    _in_force(
        "at-the-first-stage", 100, [["adapter", True], ["vision", False]], "A stage is in force from its start on."
    ),
    _in_force("just-before-the-second", 199, [["adapter", True], ["vision", False]], "The first one still."),
    _in_force(
        "at-the-second-stage",
        200,
        [["adapter", True], ["vision", True]],
        "The later stage wins, though it is written first; what it does not name stays.",
    ),
    _in_force(
        "stages-in-order-of-their-start",
        200,
        [["vision", False]],
        "The stage that begins last wins, whatever it says.",
        schedule=[
            {"start_step": 100, "entries": [["vision", True]]},
            {"start_step": 200, "entries": [["vision", False]]},
        ],
    ),
    _in_force("unknown-module", 100, None, "adapter is in force and unknown.", valid_modules=["vision"]),
    _in_force(
        "unknown-module-later",
        99,
        [["vision", True]],
        "A stage that is not in force yet is not looked at.",
        valid_modules=["vision"],
    ),
    _in_force(
        "named-twice",
        0,
        [["vision", False]],
        "The last one named wins.",
        base=[["vision", True], ["vision", False]],
        schedule=[],
    ),
)


def _pickle(label: str, owner: int, reader: int, mode: str, objections: list[str], why: str) -> Corner:
    clauses = ("trust.foreign-owner",) if objections == ["refuse"] else ("trust.writable-warning",)
    given = {"owner": owner, "reader": reader, "mode": mode}
    return Corner("trust/pickle", label, clauses, given, {"objections": objections}, why)


_TRUST = (
    _pickle("own-and-private", 1000, 1000, "0644", [], "Others may read it."),
    _pickle("own-and-group-writable", 1000, 1000, "0664", ["warn"], "The next writer need not be the owner."),
    _pickle("own-and-world-writable", 1000, 1000, "0602", ["warn"], "The group may not, everybody may."),
    _pickle("of-root", 0, 1000, "0644", ["refuse"], "root is another owner as well."),
    _pickle("for-root", 1000, 0, "0644", ["refuse"], "Of all readers, root has the most to lose."),
    _pickle("foreign-and-writable", 1001, 1000, "0666", ["refuse"], "A refusal needs no warning beside it."),
    Corner(
        "trust/directory",
        "sticky",
        ("trust.directory",),
        {"mode": "1777"},
        {"objections": []},
        "Everybody may write, and only owners may replace.",
    ),
    Corner(
        "trust/directory",
        "open",
        ("trust.directory",),
        {"mode": "0777"},
        {"objections": ["warn"]},
        "Whoever writes here can swap a private file.",
    ),
)

_DURABLE = (
    Corner(
        "durable/comes-back",
        "nothing-saved",
        ("durable.power-loss",),
        {"marks": []},
        {"may_come_back": [None]},
        "A fresh start.",
    ),
    Corner(
        "durable/comes-back",
        "acknowledged-and-one-begun",
        ("durable.power-loss", "durable.acknowledged"),
        {"marks": [["begins", 0], ["acknowledged", 0], ["begins", 1]]},
        {"may_come_back": [0, 1]},
        "The acknowledged one, or the one in flight.",
    ),
    Corner(
        "durable/comes-back",
        "raised",
        ("durable.power-loss",),
        {"marks": [["begins", 0], ["acknowledged", 0], ["begins", 1], ["raised", 1]]},
        {"may_come_back": [0]},
        "What has raised does not come back.",
    ),
    Corner(
        "durable/comes-back",
        "acknowledged-past-another",
        ("durable.acknowledged",),
        {"marks": [["begins", 0], ["begins", 1], ["acknowledged", 1]]},
        {"may_come_back": [1]},
        "What began before the acknowledged one is out of the question.",
    ),
    Corner(
        "durable/comes-back",
        "acknowledged-by-the-next-call",
        ("durable.acknowledged",),
        {"marks": [["begins", 0], ["begins", 1], ["acknowledged", 0]]},
        {"may_come_back": [0, 1]},
        "The call that began save 1 has vouched for save 0: no fresh start any more.",
    ),
)

CORNERS: tuple[Corner, ...] = (
    *_SCHEDULE,
    *_LAYOUT,
    *_METADATA,
    *_COMMIT,
    *_RETENTION,
    *_CUT_SHORT,
    *_RESUME,
    *_FREEZE,
    *_TRUST,
    *_DURABLE,
)
"""Every corner, in the order of the chapters."""
