"""Questions about names, files, the pointer and `metadata.json`."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from forge_spec import layout
from forge_spec.questions.form import Answer, Corner, Given, Question, no_grid

# -- answers by the predicates, and grids ------------------------------------------------


def _answer_name(given: Given) -> Answer:
    return {"step": layout.step_of(given["name"]) if given["is"] == "directory" else None}


def _grid_of_name() -> Iterator[tuple[str, Given]]:
    for number, kind in itertools.product((0, 1, 9, 10, 99, 100, 10**12), ("directory", "file", "link")):
        yield f"step-{number}-{kind}", {"name": f"step_{number}", "is": kind}


def _answer_complete(given: Given) -> Answer:
    return {"missing": list(layout.missing(given["files"], given["stages"]))}


def _grid_of_complete() -> Iterator[tuple[str, Given]]:
    for stages in (None, 1, 2):
        required = layout.required(stages)
        for count in range(len(required) + 1):
            for present in itertools.combinations(required, count):
                number = sum(1 << required.index(name) for name in present)
                yield f"stages-{stages or 0}-{number}", {"files": list(present), "stages": stages}


def _answer_pointer(given: Given) -> Answer:
    return {"survives_a_move": layout.is_relative(given["target"])}


def _answer_metadata(given: Given) -> Answer:
    errors = layout.metadata_errors(given["metadata"], given["step"], given["tokens_seen"], given["vlm_freeze"])
    if not isinstance(given["metadata"], Mapping):
        return {"is_object": not errors, "wrong": []}
    return {"is_object": True, "wrong": [error.partition(" ")[0] for error in errors]}


# -- corners ------------------------------------------------------------------------------


def _named(name: str, label: str, step: int | None, why: str, kind: str = "directory") -> Corner:
    return Corner("layout/name", label, ("layout.only-step-names",), {"name": name, "is": kind}, {"step": step}, why)


_LAYOUT = (
    _named("step_0", "zero", 0, "This is the one name in which the number begins with 0."),
    _named("step_10", "ten", 10, "The number has two digits, and the last is 0."),
    _named("step_007", "leading-zeros", None, "Step 7 has one name, `step_7`."),
    _named("step_00", "zero-twice", None, "Step 0 has one name, `step_0`."),
    _named(
        "step_100_backup",
        "backup",
        None,
        "This is a person's copy. Read as step 100 it would be deleted as the oldest.",
    ),
    _named("step_5.tmp", "temporary", None, "A killed writer left it."),
    _named("step_5_bak", "copy", None, "This is a person's copy."),
    _named("step_final", "word", None, "There is no number after `step_`."),
    _named("step_", "nothing", None, "There is no number after `step_`."),
    _named("step_-1", "minus", None, "No step is negative."),
    _named("step_+9", "plus", None, "Many parsers of numbers accept the sign."),
    _named("step_1_000", "underscore", None, "Some parsers of numbers accept the underscore."),
    _named("step_ 5", "blank", None, "Some parsers of numbers skip the blank."),
    _named("step_5\n", "line-feed", None, "`$` in a regular expression matches before a line feed."),
    _named("step_٣", "other-digits", None, "This is a digit in Unicode, but not one of 0 to 9."),
    _named("Step_5", "capital", None, "Names are compared with their case."),
    _named("xstep_5", "prefix", None, "The name has to match as a whole."),
    _named("5", "bare", None, "Other managers use such names."),
    _named("step_7", "file", None, "Only a directory is a checkpoint.", kind="file"),
    _named("step_8", "link", None, "A link is another name of a checkpoint, not another checkpoint.", kind="link"),
    Corner(
        "layout/complete",
        "marker-beside-its-stages",
        ("commit.whole", "layout.stage-dirs"),
        {"files": [".metadata", "pp0/.metadata", "train_state.pt", "metadata.json"], "stages": 2},
        {"missing": ["pp1/.metadata"]},
        "A marker in the directory itself counts for no stage.",
    ),
    Corner(
        "layout/complete",
        "no-shard",
        ("commit.whole",),
        {"files": [".metadata", "train_state.pt", "metadata.json"], "stages": None},
        {"missing": []},
        "The marker says that the shards are there; their number and names depend on the format.",
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
        "The target is the name of the entry beside the pointer.",
    ),
    Corner(
        "layout/pointer",
        "absolute",
        ("layout.latest-relative",),
        {"target": "/run/checkpoints/step_5"},
        {"survives_a_move": False},
        "It is right only as long as the folder is not moved.",
    ),
    Corner(
        "layout/pointer",
        "root",
        ("layout.latest-relative",),
        {"target": "/"},
        {"survives_a_move": False},
        "The path has one part, and that is not a name.",
    ),
    Corner(
        "layout/pointer",
        "by-way-of-the-parent",
        ("layout.latest-relative",),
        {"target": "../checkpoints/step_5"},
        {"survives_a_move": False},
        "It is relative, and still wrong when the folder has another name.",
    ),
)


def _metadata(label: str, content: Any, answer: list[str] | None, why: str, vlm_freeze: Any = None) -> Corner:
    """Return a corner about the `metadata.json` of a save of step 1 with 640 tokens."""
    given = {"metadata": content, "step": 1, "tokens_seen": 640, "vlm_freeze": vlm_freeze}
    expected = {"is_object": answer is not None, "wrong": answer or []}
    return Corner("layout/metadata", label, ("layout.metadata-json",), given, expected, why)


_FROZEN = [{"module": "vision", "frozen": True}]
_METADATA = (
    _metadata("whole", {"step": 1, "tokens_seen": 640}, [], "Both keys are there, and no freeze list was given."),
    _metadata("more", {"step": 1, "tokens_seen": 640, "host": "a"}, [], "A manager may write further keys."),
    _metadata("no-tokens", {"step": 1}, ["tokens_seen"], "Tools that count tokens read them from this file."),
    _metadata("step-as-text", {"step": "1", "tokens_seen": 640}, ["step"], "The step is a number, not a string."),
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
        "The list is the one in the extra.",
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
        "The extra had no freeze list.",
    ),
    _metadata("a-list", [1, 640], None, "A JSON list is not an object."),
)


CORNERS: tuple[Corner, ...] = (*_LAYOUT, *_METADATA)

# -- the questions ----------------------------------------------------------------------

QUESTIONS: tuple[Question, ...] = (
    Question(
        "layout/name",
        "of which step an entry of the folder is the checkpoint, by its name and type alone",
        {"name": "the name of the entry", "is": "directory, file, or link (a symlink to a directory)"},
        {"step": "its step; null: it is not a checkpoint"},
        _answer_name,
        lambda given: ("layout.only-step-names",),
        _grid_of_name,
    ),
    Question(
        "layout/complete",
        "what a checkpoint's directory lacks to be complete",
        {
            "files": "the files that are there, relative to the directory",
            "stages": "pipeline stages of the run; null: no pipeline",
        },
        {"missing": "the missing files, in any order; empty: the checkpoint is complete"},
        _answer_complete,
        lambda given: ("commit.whole", "resume.skips-torn"),
        _grid_of_complete,
    ),
    Question(
        "layout/pointer",
        "whether `latest` still works when the folder has been moved",
        {"target": "the target of the symlink"},
        {"survives_a_move": "true or false"},
        _answer_pointer,
        lambda given: ("layout.latest-relative",),
        no_grid,
    ),
    Question(
        "layout/metadata",
        "what is wrong with a `metadata.json`",
        {
            "metadata": "its content",
            "step": "the step that was saved",
            "tokens_seen": "the tokens seen that were saved with it",
            "vlm_freeze": "the freeze list in the caller's extra; null: there was none",
        },
        {"is_object": "whether it is a JSON object at all", "wrong": "the keys whose value is wrong or missing"},
        _answer_metadata,
        lambda given: ("layout.metadata-json",),
        no_grid,
    ),
)
