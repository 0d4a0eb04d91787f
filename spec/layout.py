"""What a checkpoint looks like on disk, so that anybody can tell without the manager what a folder holds.

A checkpoint of step N is the directory `step_N`: the shards and their marker
`.metadata`, which is written last; `train_state.pt` with what only one rank
needs to write; and `metadata.json` for people and tools.  Under pipeline
parallelism each stage has its own shards and marker in `step_N/ppI`.

Invariants: a directory is a checkpoint by its name alone, and a complete one by
the presence of its markers and of both files, so a reader needs no lock and
opens nothing; everything else in the folder belongs to somebody else; and no
path in it is absolute, so the folder can be moved whole.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePosixPath

from forge_spec.clauses import Clause, Level

MARKER = ".metadata"
"""The file that DCP writes last: present when all shards of its directory are."""
TRAIN_STATE = "train_state.pt"
"""Step, tokens seen, scheduler, loader position, random streams and the caller's extra."""
METADATA = "metadata.json"
"""The same checkpoint for a person: step, tokens seen, which modules were frozen."""
LATEST = "latest"
"""The pointer: a symlink that names the newest committed checkpoint."""

_LAYOUT = frozenset({"layout"})

CLAUSES: tuple[Clause, ...] = (
    Clause(
        slug="layout.step-dir",
        level=Level.CORE,
        sentence="saves the checkpoint of step N as the directory `step_N` of its folder, "
        "with the shards, `.metadata`, `train_state.pt` and `metadata.json` in it",
        why="Launchers, evaluation jobs and the next manager find checkpoints by this shape; "
        "in any other, a finished save is invisible to them.",
        sometimes="a save was committed without pipeline stages",
        capabilities=_LAYOUT,
    ),
    Clause(
        slug="layout.stage-dirs",
        level=Level.CORE,
        sentence="saves the shards and the marker of pipeline stage I in `step_N/ppI`, "
        "and `train_state.pt` and `metadata.json` in `step_N` itself",
        why="Stages that share one directory overwrite each other's marker: "
        "the last one to finish declares the whole complete and describes only its own shards.",
        sometimes="a save of several pipeline stages was committed",
        capabilities=frozenset({"layout", "pipeline"}),
    ),
    Clause(
        slug="layout.latest-relative",
        level=Level.CORE,
        sentence="makes `latest` a symlink in the folder to the bare name of a checkpoint beside it",
        why="An absolute target breaks when the folder is moved, copied or mounted elsewhere: "
        "the moved run starts fresh, or resumes from the old place.",
        sometimes="a save was committed, and the folder was moved",
        capabilities=frozenset({"layout", "pointer"}),
    ),
    Clause(
        slug="layout.metadata-json",
        level=Level.CORE,
        sentence="writes `metadata.json` as a JSON object with `step` and `tokens_seen`, "
        "and with `vlm_freeze` exactly when the caller's extra carried it",
        why="Tools that plan a resume read this file instead of unpickling; a value that is missing "
        "or made up sends them to the wrong step or has the wrong modules compared.",
        sometimes="saves with and without `vlm_freeze` in the extra were committed",
        capabilities=_LAYOUT,
        rests_on=("layout.step-dir",),
    ),
    Clause(
        slug="layout.only-step-names",
        level=Level.STRICT,
        sentence="takes for a checkpoint only what bears exactly the name it would give itself (in the shared layout: "
        "a real directory called `step_` and a decimal number without leading zeros), and never counts, reads, "
        "deletes or trips over anything else",
        why="People keep copies beside their checkpoints: `step_100_backup` read as 100 is deleted "
        "as the oldest, and `step_final` ends the run in a `ValueError` after the commit.",
        sometimes="look-alikes stood in the folder while checkpoints were saved, deleted and resumed from",
    ),
    Clause(
        slug="layout.foreign-latest",
        level=Level.STRICT,
        sentence="answers a `latest` that is a real directory or file with an error that names it, "
        "at the latest from the first commit, and leaves it and every checkpoint as they were",
        why="Replaced, it takes somebody's data along; passed over, the run saves for days "
        "and no resume finds any of it.",
        sometimes="a save was to be committed where `latest` was a directory, and where it was a file",
        capabilities=frozenset({"pointer"}),
    ),
)

_STEP_NAME = re.compile(r"step_(0|[1-9][0-9]*)")


def step_of(name: str) -> int | None:
    """The step that an entry of this name is the checkpoint of, if it is a real directory.

    >>> step_of("step_0"), step_of("step_1000")
    (0, 1000)
    >>> [step_of(name) for name in ("step_007", "step_-1", "step_5.tmp", "step_final", "step_", "Step_5")]
    [None, None, None, None, None, None]

    Digits of other scripts and a trailing newline are no part of a name either:

    >>> step_of("step_٣"), step_of("step_5\\n")
    (None, None)
    """
    match = _STEP_NAME.fullmatch(name)
    return int(match[1]) if match else None


def required(stages: int | None = None) -> tuple[str, ...]:
    """The files without which a checkpoint is not complete, relative to its directory.

    `stages` counts pipeline stages; None means that there is no pipeline.

    >>> required()
    ('.metadata', 'train_state.pt', 'metadata.json')
    >>> required(stages=2)
    ('pp0/.metadata', 'pp1/.metadata', 'train_state.pt', 'metadata.json')
    """
    markers = (MARKER,) if stages is None else tuple(f"pp{stage}/{MARKER}" for stage in range(stages))
    return (*markers, TRAIN_STATE, METADATA)


def missing(files: Collection[str], stages: int | None = None) -> tuple[str, ...]:
    """What a directory that holds these files lacks to be complete.

    >>> missing({"__0_0.distcp", "train_state.pt", "metadata.json"})
    ('.metadata',)
    >>> missing({"pp0/.metadata", "train_state.pt", "metadata.json"}, stages=2)
    ('pp1/.metadata',)

    A marker beside the stages speaks for none of them:

    >>> missing({".metadata", "train_state.pt", "metadata.json"}, stages=1)
    ('pp0/.metadata',)
    """
    return tuple(path for path in required(stages) if path not in files)


def is_complete(files: Collection[str], stages: int | None = None) -> bool:
    """Whether a reader may resume from a directory that holds these files.

    >>> is_complete({".metadata", "__0_0.distcp", "train_state.pt", "metadata.json"})
    True
    >>> is_complete({".metadata", "__0_0.distcp", "metadata.json"}), is_complete(set())
    (False, False)
    """
    return not missing(files, stages)


def is_relative(target: str) -> bool:
    """Whether a pointer with this target still works when the folder is moved whole.

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
    """What is wrong with a parsed `metadata.json`, given what was saved.

    `vlm_freeze` is None when the caller's extra did not carry it.  Further
    keys are allowed.

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
    """The value as text, which unlike `==` tells True from 1; the order of an object's keys says nothing."""
    return json.dumps(mapping[key], sort_keys=True) if key in mapping else None


def _shown(mapping: Mapping[str, object], key: str) -> str:
    return repr(mapping[key]) if key in mapping else "absent"
