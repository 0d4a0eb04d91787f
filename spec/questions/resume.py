"""Questions about where a load lands, and what it leaves alone."""

import itertools
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from forge_spec import layout, resume
from forge_spec.questions.form import FOLDER, WHOLE, Answer, Corner, Given, Question, no_grid, steps_or_null

# -- answers by the predicates, and grids ------------------------------------------------


def _answer_landing(given: Given) -> Answer:
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
    """Return the entry of the folder that a path leads to, or None."""
    parent, name = posixpath.split(posixpath.normpath(posixpath.join(FOLDER, path)))
    return name if parent == FOLDER else None


def _pointed_at(target: str | None, steps: Mapping[int, str]) -> int | None:
    """Return the step that the pointer names, if it is a step of the folder."""
    entry = None if target is None else _entry(target)
    return next((step for step, name in steps.items() if name == entry), None)


def _named(entry: str | None, directories: Mapping[str, Sequence[str]], stages: int | None) -> Answer:
    """Return what a load of a named checkpoint does; without its train state it has imported weights."""
    files = directories.get(entry or "", [])
    markers = {file for file in files if posixpath.basename(file) == layout.MARKER}
    fits = markers == {file for file in layout.required(stages) if posixpath.basename(file) == layout.MARKER}
    if entry is None or not fits:
        return {"outcome": "refused", "checkpoint": None, "step": None}
    step = layout.step_of(entry) if layout.TRAIN_STATE in files else 0
    return {"outcome": "lands", "checkpoint": entry, "step": step}


def _clauses_of_landing(given: Given) -> Iterable[str]:
    if given["path"] is not None or given["load_path"] is not None:
        return ("resume.order", "resume.explicit-honoured", "resume.explicit-missing")
    answer = _answer_landing(given)
    if answer["outcome"] == "fresh":
        return ("resume.all-torn" if given["folder"] else "resume.fresh",)
    if given["latest"] != answer["checkpoint"]:
        return ("resume.skips-torn", "resume.fallback", "resume.pointer-is-a-hint")
    return ("resume.lands", "resume.skips-torn")


def _grid_of_landing() -> Iterator[tuple[str, Given]]:
    steps = (9, 10, 11)
    torn = [file for file in WHOLE if file != layout.MARKER]
    for kinds in itertools.product(("complete", "torn", None), repeat=len(steps)):
        stand = [(f"step_{step}", kind) for step, kind in zip(steps, kinds, strict=True) if kind is not None]
        folder = {name: list(WHOLE) if kind == "complete" else torn for name, kind in stand}
        for latest in (None, "step_9", "step_10", "step_11", "step_12"):
            label = "-".join(str(kind)[0] for kind in kinds) + f"-latest-{latest}"
            yield label, landing(folder, latest)


def _answer_after_kill(given: Given) -> Answer:
    steps = resume.after_kill(given["acknowledged"], given["in_flight"], given["dispatching"])
    return {"may_land_on": steps_or_null(steps)}


def _grid_of_after_kill() -> Iterator[tuple[str, Given]]:
    for acknowledged, in_flight, dispatching in itertools.product((None, 10), (None, 20), (None, 30)):
        yield (
            f"{acknowledged}-{in_flight}-{dispatching}",
            {"acknowledged": acknowledged, "in_flight": in_flight, "dispatching": dispatching},
        )


def _answer_extra(given: Given) -> Answer:
    return {"refused_for": sorted(resume.RESERVED & set(given["keys"]))}


def _answer_excluded(given: Given) -> Answer:
    refused = resume.unknown(given["names"], given["exclude"])
    left = frozenset() if refused else resume.untouched(given["names"], given["exclude"])
    return {"refused_for": sorted(refused), "untouched": sorted(left)}


# -- corners ------------------------------------------------------------------------------


def landing(folder: Mapping[str, Any], latest: str | None, **more: Any) -> dict[str, Any]:
    """Return what `resume/landing` is asked about, with the usual value for what is not given."""
    usual: dict[str, Any] = {"path": None, "load_path": None, "exclude": [], "stages": None}
    return {"folder": dict(folder), "latest": latest, **usual, **more}


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


_PAIR = {"step_10": _TEN, "step_20": _TWENTY}


def _lands_on(label: str, clause: str, given: dict[str, Any], expected: dict[str, Any], why: str) -> Corner:
    return Corner("resume/landing", label, (clause,), given, expected, why)


_RESUME = (
    _lands_on(
        "pointer-at-the-older",
        "resume.lands",
        landing(_PAIR, "step_10"),
        _lands("step_10", 10),
        "`latest` decides as long as its target is complete: the run was rewound.",
    ),
    _lands_on(
        "pointer-at-the-torn-newest",
        "resume.fallback",
        landing({**_PAIR, "step_30": _NO_MARKER}, "step_30"),
        _lands("step_20", 20),
        "The run falls back to the newest complete checkpoint, not to the oldest.",
    ),
    _lands_on(
        "pointer-at-the-torn-oldest",
        "resume.fallback",
        landing({"step_5": _NO_MARKER, **_PAIR}, "step_5"),
        _lands("step_20", 20),
        "The newest complete checkpoint counts, even if it is newer than the target of `latest`.",
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
        "Shards and marker are there, but the step would be resumed as 0.",
    ),
    _lands_on(
        "no-metadata",
        "commit.whole",
        landing({"step_10": _TEN, "step_20": _NO_METADATA}, "step_20"),
        _lands("step_10", 10),
        "A checkpoint is complete with all three files only.",
    ),
    _lands_on(
        "empty-directory",
        "resume.skips-torn",
        landing({"step_10": _TEN, "step_20": []}, "step_10"),
        _lands("step_10", 10),
        "The directory was made and nothing was written into it.",
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
        "The target was deleted.",
    ),
    _lands_on(
        "pointer-at-itself",
        "resume.pointer-is-a-hint",
        landing(_PAIR, "latest"),
        _lands("step_20", 20),
        "A link to itself can't be followed.",
    ),
    _lands_on(
        "pointer-out-of-the-folder",
        "resume.pointer-is-a-hint",
        landing(_PAIR, "../elsewhere/step_10"),
        _lands("step_20", 20),
        "It is another run's checkpoint, even if it exists.",
    ),
    _lands_on(
        "absolute-and-of-this-folder",
        "resume.lands",
        landing(_PAIR, "/run/checkpoints/step_10"),
        _lands("step_10", 10),
        "A manager does not write it so, but it leads to a step of this folder.",
    ),
    _lands_on(
        "absolute-and-moved-away-from",
        "resume.pointer-is-a-hint",
        landing(_PAIR, "/old/place/step_10"),
        _lands("step_20", 20),
        "The folder was moved, and its pointer still names the old place.",
    ),
    _lands_on(
        "pointer-at-a-backup",
        "layout.only-step-names",
        landing({**_PAIR, "step_30_backup": list(WHOLE)}, "step_30_backup"),
        _lands("step_20", 20),
        "A directory without a checkpoint's name is not a checkpoint, even if `latest` names it.",
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
        "The link is not a checkpoint of step 30, even if it leads to a complete one.",
    ),
    _lands_on("empty-folder", "resume.fresh", landing({}, None), _FRESH, "Every run begins in this way."),
    _lands_on(
        "nothing-but-torn",
        "resume.all-torn",
        landing({"step_10": _NO_MARKER, "step_20": _NO_TRAIN_STATE}, "step_20"),
        _FRESH,
        "A run that was killed in its first saves starts again without a person.",
    ),
    _lands_on(
        "named-before-configured",
        "resume.order",
        landing(_PAIR, "step_20", path="/run/checkpoints/step_10", load_path="/run/checkpoints/step_20"),
        _lands("step_10", 10),
        "The call takes precedence over the configuration.",
    ),
    _lands_on(
        "configured-before-latest",
        "resume.order",
        landing(_PAIR, "step_20", load_path="/run/checkpoints/step_10"),
        _lands("step_10", 10),
        "`latest` is used last.",
    ),
    _lands_on(
        "named-and-torn",
        "resume.explicit-honoured",
        landing({**_PAIR, "step_30": _NO_MARKER}, "step_20", path="/run/checkpoints/step_30"),
        _REFUSED,
        "A named checkpoint is loaded or refused; the load does not fall back.",
    ),
    _lands_on(
        "named-and-missing",
        "resume.explicit-missing",
        landing(_PAIR, "step_20", path="/run/checkpoints/step_77"),
        _REFUSED,
        "A typing error must not lead to a fresh start.",
    ),
    _lands_on(
        "configured-and-missing",
        "resume.explicit-missing",
        landing(_PAIR, "step_20", load_path="/run/checkpoints/step_77"),
        _REFUSED,
        "A typing error in the configuration must not lead to a fresh start either.",
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
        "No shard is read, so a missing marker does not matter.",
    ),
    _lands_on(
        "train-state-and-weights",
        "resume.fallback",
        landing({"step_10": _TEN, "step_20": _NO_MARKER}, "step_20", exclude=["optimizer"]),
        _lands("step_10", 10),
        "Weights are read, so the load falls back.",
    ),
    _lands_on(
        "two-stages-one-torn",
        "resume.agreement-across-stages",
        landing({"step_10": _STAGED, "step_20": _ONE_STAGE_TORN}, "step_20", stages=2),
        _lands("step_10", 10),
        "Stage 0 has step 20 and stage 1 does not, so both land on step 10.",
    ),
    _lands_on(
        "two-stages-whole",
        "resume.lands",
        landing({"step_10": _STAGED, "step_20": _STAGED}, "step_20", stages=2),
        _lands("step_20", 20),
        "Both stages have the step.",
    ),
    _lands_on(
        "two-stages-and-a-run-without",
        "resume.stages-fit",
        landing({"step_10": _STAGED}, "step_10", path="/run/checkpoints/step_10"),
        _REFUSED,
        "A run without stages needs the whole model in one place.",
    ),
    _lands_on(
        "no-stages-and-a-run-with-two",
        "resume.stages-fit",
        landing({"step_10": _TEN}, "step_10", path="/run/checkpoints/step_10", stages=2),
        _REFUSED,
        "Nothing says which half belongs to which stage.",
    ),
    Corner(
        "resume/after-kill",
        "killed-in-the-first-save",
        ("resume.after-kill",),
        {"acknowledged": None, "in_flight": 10, "dispatching": None},
        {"may_land_on": [None, 10]},
        "The save is resumed whole or not at all.",
    ),
    Corner(
        "resume/after-kill",
        "killed-in-the-next-call",
        ("resume.after-kill",),
        {"acknowledged": 10, "in_flight": 20, "dispatching": 30},
        {"may_land_on": [10, 20, 30]},
        "That call commits step 20, and may have committed its own.",
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
        "The run would resume at the step in the extra.",
    ),
    Corner(
        "resume/extra",
        "every-key-of-the-train-state",
        ("resume.reserved-extra",),
        {"keys": ["step", "tokens_seen", "scheduler", "dataloader", "rng"]},
        {"refused_for": ["dataloader", "rng", "scheduler", "step", "tokens_seen"]},
        "All of them are refused, and no others.",
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

_TWELVE_LAYERS = ["embed", "layers.1.bias", "layers.1.weight", "layers.11.weight", "head.weight"]


def _leaves(label: str, exclude: list[str], untouched: list[str], refused_for: list[str], why: str) -> Corner:
    given = {"names": _TWELVE_LAYERS, "exclude": exclude}
    expected = {"refused_for": refused_for, "untouched": untouched}
    return Corner("resume/excluded", label, ("resume.exclude-prefix",), given, expected, why)


_EXCLUDED = (
    _leaves("nothing", [], [], [], "Everything is loaded."),
    _leaves("a-name", ["head.weight"], ["head.weight"], [], "The whole name is excluded."),
    _leaves("a-name-without-a-dot", ["embed"], ["embed"], [], "This is a parameter of the model itself."),
    _leaves(
        "up-to-a-dot", ["layers.1."], ["layers.1.bias", "layers.1.weight"], [], "Everything in the layer is excluded."
    ),
    _leaves("without-the-dot", ["layers.1"], ["layers.1.bias", "layers.1.weight"], [], "Layer 11 is another layer."),
    _leaves("the-letters-alone", ["layers.1.w"], [], ["layers.1.w"], "The prefix ends inside a name."),
    _leaves("a-typing-error", ["haed."], [], ["haed."], "Ignored, it would let the head be overwritten."),
    _leaves("one-of-two-is-wrong", ["head", "haed"], [], ["haed"], "The load is refused, so nothing is loaded."),
    _leaves(
        "a-part-and-a-name",
        ["rng", "head"],
        ["head.weight"],
        [],
        "Parts of the state and names in the model may be mixed.",
    ),
    _leaves(
        "the-whole-model",
        ["model"],
        ["embed", "head.weight", "layers.1.bias", "layers.1.weight", "layers.11.weight"],
        [],
        "The part `model` excludes all names.",
    ),
)


CORNERS: tuple[Corner, ...] = (*_RESUME, *_EXCLUDED)

# -- the questions ----------------------------------------------------------------------

QUESTIONS: tuple[Question, ...] = (
    Question(
        "resume/landing",
        "which checkpoint a load lands on",
        {
            "folder": f"the entries of {FOLDER}: a directory with its files, or `file`, or `link` (to a checkpoint)",
            "latest": "the target of the symlink; null: there is none",
            "path": "the path named in the call, or null",
            "load_path": "the configured path, or null",
            "exclude": "the parts of the state that the load excludes",
            "stages": "pipeline stages of the run; null: no pipeline",
        },
        {
            "outcome": "lands, fresh, or refused (an error, and nothing changes)",
            "checkpoint": "the entry that is loaded, or null",
            "step": "the step that the load returns; null if refused",
        },
        _answer_landing,
        _clauses_of_landing,
        _grid_of_landing,
    ),
    Question(
        "resume/after-kill",
        "where an auto-resume may land after a kill",
        {
            "acknowledged": "the last acknowledged step, or null",
            "in_flight": "the step dispatched after it, or null",
            "dispatching": "the step whose `save` the kill cut short, or null",
        },
        {"may_land_on": "the load lands on one of these; null in the list: a fresh start"},
        _answer_after_kill,
        lambda given: ("resume.after-kill",),
        _grid_of_after_kill,
    ),
    Question(
        "resume/extra",
        "whether a save refuses the caller's extra",
        {"keys": "the keys of the extra"},
        {"refused_for": "the error has to name these; empty: it is accepted"},
        _answer_extra,
        lambda given: ("resume.reserved-extra",),
        no_grid,
    ),
    Question(
        "resume/excluded",
        "which values in the model a load leaves as they are",
        {"names": "the names of the parameters and buffers of the model", "exclude": "what the load excludes"},
        {
            "refused_for": "the error has to name these; empty: it is accepted",
            "untouched": "these names keep their values; the rest is loaded",
        },
        _answer_excluded,
        lambda given: ("resume.exclude-prefix",),
        no_grid,
    ),
)
