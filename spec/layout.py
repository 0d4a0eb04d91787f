"""What a checkpoint looks like on disk, so that a reader can tell without the manager what a folder holds.

A checkpoint of step N is the directory `step_N`. It holds the shards; their marker `.metadata`, which is written last;
`train_state.pt` with what one rank alone needs to write; and `metadata.json` for people and tools. With pipeline
parallelism each stage has its own shards and marker in `step_N/ppI`.

Invariants: a directory is a checkpoint by its name alone, and a complete one by the presence of its markers and of both
files, so a reader needs no lock and opens no file; everything else in the folder belongs to somebody else; and no path
in it is absolute, so that the folder can be moved.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePosixPath

from forge_spec.clauses import Clause, Level

MARKER = ".metadata"
"""The file that DCP writes last: it is there when all shards of its directory are."""
TRAIN_STATE = "train_state.pt"
"""Step, tokens seen, scheduler, loader position, random states and the caller's extra."""
METADATA = "metadata.json"
"""For people and tools: step, tokens seen, which modules were frozen."""
LATEST = "latest"
"""The pointer: a symlink that names the checkpoint that was committed last."""

_LAYOUT = frozenset({"layout"})

CLAUSES: tuple[Clause, ...] = (
    Clause(
        slug="layout.step-dir",
        level=Level.CORE,
        sentence="saves the checkpoint of step N as the directory `step_N` of its folder, with the shards, "
        "`.metadata`, `train_state.pt` and `metadata.json` in it",
        why="Launchers, evaluation jobs and the next manager find checkpoints by this layout. They don't find a "
        "finished save in any other.",
        situation="a save was committed without pipeline stages",
        capabilities=_LAYOUT,
        predicates=("required", "missing"),
    ),
    Clause(
        slug="layout.stage-dirs",
        level=Level.CORE,
        sentence="saves the shards and the marker of pipeline stage I in `step_N/ppI`, and `train_state.pt` and "
        "`metadata.json` in `step_N` itself",
        why="Stages that share one directory overwrite each other's marker. The marker of the last stage declares the "
        "whole checkpoint complete and describes its own shards only.",
        situation="a save of several pipeline stages was committed",
        capabilities=frozenset({"layout", "pipeline"}),
        predicates=("required", "missing"),
    ),
    Clause(
        slug="layout.latest-relative",
        level=Level.CORE,
        sentence="makes `latest` a symlink in the folder whose target is the bare name of a checkpoint beside it",
        why="An absolute target breaks when the folder is moved, copied or mounted elsewhere. The moved run starts "
        "fresh, or resumes from the old place.",
        situation="a save was committed, and the folder was moved",
        capabilities=frozenset({"layout", "pointer"}),
        predicates=("is_relative",),
    ),
    Clause(
        slug="layout.metadata-json",
        level=Level.CORE,
        sentence="writes `metadata.json` as a JSON object with `step` and `tokens_seen`, and with `vlm_freeze` "
        "exactly when the caller's extra had it",
        why="Tools that plan a resume read this file instead of unpickling. A value that is missing or invented sends "
        "them to the wrong step, or has the wrong modules compared.",
        situation="saves with and without `vlm_freeze` in the extra were committed",
        capabilities=_LAYOUT,
        rests_on=("layout.step-dir",),
        predicates=("metadata_errors",),
    ),
    Clause(
        slug="layout.only-step-names",
        level=Level.STRICT,
        sentence="takes for a checkpoint only what has exactly the name that it would give itself. It never counts, "
        "reads, deletes or fails on anything else. In the shared layout this is a directory, not a link to one, "
        "called `step_` and a decimal number without leading zeros",
        why="People keep copies beside their checkpoints. `step_100_backup` read as step 100 is deleted as the "
        "oldest, and `step_final` ends the run with a `ValueError` after the commit.",
        situation="entries with similar names were in the folder while checkpoints were saved, deleted and resumed "
        "from",
        predicates=("step_of",),
    ),
    Clause(
        slug="layout.foreign-latest",
        level=Level.STRICT,
        sentence="answers a `latest` that is a directory or a file with an error that names it, at the first commit "
        "at the latest. It leaves it and every checkpoint as they were",
        why="If it is replaced, somebody's data is gone. If it is ignored, the run saves for days and no resume finds "
        "any of it.",
        situation="a save was to be committed where `latest` was a directory, and where it was a file",
        capabilities=frozenset({"pointer"}),
    ),
)

_STEP_NAME = re.compile(r"step_(0|[1-9][0-9]*)")


def step_of(name: str) -> int | None:
    """Return the step whose checkpoint a directory of this name is, or None.

    >>> step_of("step_0"), step_of("step_1000")
    (0, 1000)
    >>> [step_of(name) for name in ("step_007", "step_-1", "step_5.tmp", "step_final", "step_", "Step_5")]
    [None, None, None, None, None, None]

    Digits of other scripts and a trailing newline are not part of such a name either:

    >>> step_of("step_٣"), step_of("step_5\\n")
    (None, None)
    """
    match = _STEP_NAME.fullmatch(name)
    return int(match[1]) if match else None


def required(stages: int | None = None) -> tuple[str, ...]:
    """Return the files without which a checkpoint is not complete, relative to its directory.

    `stages` counts pipeline stages; None means that there is no pipeline.

    >>> required()
    ('.metadata', 'train_state.pt', 'metadata.json')
    >>> required(stages=2)
    ('pp0/.metadata', 'pp1/.metadata', 'train_state.pt', 'metadata.json')
    """
    markers = (MARKER,) if stages is None else tuple(f"pp{stage}/{MARKER}" for stage in range(stages))
    return (*markers, TRAIN_STATE, METADATA)


def missing(files: Collection[str], stages: int | None = None) -> tuple[str, ...]:
    """Return the files that a directory with these files lacks to be complete.

    >>> missing({"__0_0.distcp", "train_state.pt", "metadata.json"})
    ('.metadata',)
    >>> missing({"pp0/.metadata", "train_state.pt", "metadata.json"}, stages=2)
    ('pp1/.metadata',)

    A marker beside the directories of the stages counts for none of them:

    >>> missing({".metadata", "train_state.pt", "metadata.json"}, stages=1)
    ('pp0/.metadata',)
    """
    return tuple(path for path in required(stages) if path not in files)


def is_complete(files: Collection[str], stages: int | None = None) -> bool:
    """Return whether a reader may resume from a directory with these files.

    >>> is_complete({".metadata", "__0_0.distcp", "train_state.pt", "metadata.json"})
    True
    >>> is_complete({".metadata", "__0_0.distcp", "metadata.json"}), is_complete(set())
    (False, False)
    """
    return not missing(files, stages)


def is_relative(target: str) -> bool:
    """Return whether a pointer with this target still works when the folder is moved.

    >>> is_relative("step_5"), is_relative("./step_5")
    (True, True)
    >>> is_relative("/data/run/step_5"), is_relative("../run/step_5"), is_relative("..")
    (False, False, False)
    >>> is_relative(""), is_relative(".")
    (False, False)
    """
    parts = PurePosixPath(target).parts
    return len(parts) == 1 and parts[0] not in ("/", "..")


def metadata_errors(
    metadata: object,
    step: int,
    tokens_seen: int,
    vlm_freeze: Sequence[Mapping[str, object]] | None,
) -> tuple[str, ...]:
    """Return what is wrong with a parsed `metadata.json`, given what was saved.

    `vlm_freeze` is None when the caller's extra did not have it. Further keys are allowed.

    >>> metadata_errors({"step": 5, "tokens_seen": 640, "host": "a"}, 5, 640, None)
    ()
    >>> metadata_errors({"step": 4}, 5, 640, None)
    ('step is 4, not 5', 'tokens_seen is absent, not 640')
    >>> metadata_errors({"step": 5, "tokens_seen": 640, "vlm_freeze": []}, 5, 640, None)
    ('vlm_freeze is [], not absent',)
    >>> metadata_errors({"step": True, "tokens_seen": 0}, 1, 0, None)
    ('step is True, not 1',)
    >>> metadata_errors([5, 640], 5, 640, None)
    ('not a JSON object',)
    """
    if not isinstance(metadata, Mapping):
        return ("not a JSON object",)
    expected: dict[str, object] = {"step": step, "tokens_seen": tokens_seen}
    if vlm_freeze is not None:
        expected["vlm_freeze"] = [dict(entry) for entry in vlm_freeze]
    keys = ("step", "tokens_seen", "vlm_freeze")
    wrong = (key for key in keys if _as_json(metadata, key) != _as_json(expected, key))
    return tuple(f"{key} is {_shown(metadata, key)}, not {_shown(expected, key)}" for key in wrong)


def _as_json(mapping: Mapping[str, object], key: str) -> str | None:
    """Return the value as text: unlike `==` this distinguishes True from 1, and the order of keys does not matter."""
    return json.dumps(mapping[key], sort_keys=True) if key in mapping else None


def _shown(mapping: Mapping[str, object], key: str) -> str:
    return repr(mapping[key]) if key in mapping else "absent"
