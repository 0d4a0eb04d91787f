"""Questions about what a commit deletes, and what a deletion that was cut short may leave."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from forge_spec import layout, retention
from forge_spec.questions.form import WHOLE, Answer, Corner, Given, Question

# -- answers by the predicates, and grids ------------------------------------------------


def _answer_deletion(given: Given) -> Answer:
    kinds = {step: kind for name, kind in given["folder"].items() if (step := _step_of(name, kind)) is not None}
    folder = retention.Folder(
        complete=frozenset(step for step, kind in kinds.items() if kind in ("complete", "unreadable")),
        torn=frozenset(step for step, kind in kinds.items() if kind == "torn"),
        milestones=frozenset(given["milestones"]),
        latest=None if given["latest"] is None else layout.step_of(given["latest"]),
        in_flight=frozenset(given["in_flight"]),
        committed=given["committed"],
        unclassified=frozenset(step for step, kind in kinds.items() if kind == "unreadable"),
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
    return layout.step_of(name) if kind in ("complete", "torn", "unreadable") else None


def _clauses_of_deletion(given: Given) -> Iterable[str]:
    yield from ("retention.keeps", "retention.drops")
    if given["keep_last_n"] <= 0:
        yield "retention.off"
    if given["milestones"]:
        yield "retention.exempt-is-free"
    if "torn" in given["folder"].values():
        yield "retention.torn-is-free"
    if "unreadable" in given["folder"].values():
        yield "retention.unclassified"
    if given["in_flight"]:
        yield "retention.in-flight"
    steps = [step for name, kind in given["folder"].items() if (step := _step_of(name, kind)) is not None]
    if given["committed"] is not None and max(steps, default=0) > given["committed"]:
        yield "retention.future"
    if len({len(str(step)) for step in steps}) > 1:
        yield "retention.numeric"
    if len(steps) < len(given["folder"]):
        yield "layout.only-step-names"


def _grid_of_deletion() -> Iterator[tuple[str, Given]]:
    steps = (9, 10, 11)
    for kinds in itertools.product(("complete", "torn", None), repeat=len(steps)):
        folder = {f"step_{step}": kind for step, kind in zip(steps, kinds, strict=True) if kind is not None}
        complete = [step for step, kind in zip(steps, kinds, strict=True) if kind == "complete"]
        for committed, limit, milestones in itertools.product(complete, (1, 2), ([], [9])):
            label = "-".join(str(kind)[0] for kind in kinds) + f"-at-{committed}-keep-{limit}"
            label += "-milestone" if milestones else ""
            yield label, deletion(folder, limit, committed, milestones=milestones)


def _answer_cut_short(given: Given) -> Answer:
    return {"allowed": retention.may_be_left(given["before"], given["now"], given["stages"])}


def _grid_of_cut_short() -> Iterator[tuple[str, Given]]:
    for stages in (None, 2):
        before = [*layout.required(stages), "__0_0.distcp"]
        for number in range(2 ** len(before)):
            now = [name for place, name in enumerate(before) if number >> place & 1]
            yield f"stages-{stages or 0}-{number}", {"before": before, "now": now, "stages": stages}


# -- corners ------------------------------------------------------------------------------


def deletion(folder: Mapping[str, str], keep_last_n: int, committed: int | None, **more: Any) -> dict[str, Any]:
    """Return what `retention/deletion` is asked about; `latest` names the step just committed unless it is given."""
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
        "Both stay: the step just committed counts.",
    ),
    Corner(
        "retention/deletion",
        "one-more-than-the-limit",
        ("retention.drops",),
        deletion(_complete(1, 2, 3), keep_last_n=2, committed=3),
        _stays(["step_2", "step_3"], ["step_2", "step_3"], ["step_1"]),
        "Exactly one is deleted.",
    ),
    Corner(
        "retention/deletion",
        "limit-0-keeps-all",
        ("retention.off",),
        deletion({**_complete(1, 2), "step_3": "torn"}, keep_last_n=0, committed=2),
        _stays(["step_1", "step_2", "step_3"], ["step_1", "step_2", "step_3"], []),
        "0 means that there is no limit; then leftovers are not deleted either.",
    ),
    Corner(
        "retention/deletion",
        "limit-minus-1-keeps-all",
        ("retention.off",),
        deletion(_complete(1, 2, 3), keep_last_n=-1, committed=3),
        _stays(["step_1", "step_2", "step_3"], ["step_1", "step_2", "step_3"], []),
        "A slice by -1 would keep all but one.",
    ),
    Corner(
        "retention/deletion",
        "nothing-committed",
        ("retention.after-commit",),
        deletion(_complete(1, 2, 3), keep_last_n=1, committed=None),
        _stays(["step_1", "step_2", "step_3"], ["step_1", "step_2", "step_3"], []),
        "Before a commit nothing is deleted, even what an earlier process left beyond the limit.",
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
        "The three milestones stay, and beside them two ordinary checkpoints.",
    ),
    Corner(
        "retention/deletion",
        "milestones-are-the-newest",
        ("retention.exempt-is-free",),
        deletion(_complete(10, 20, 21, 22), keep_last_n=2, committed=22, milestones=[21, 22]),
        _stays(["step_21", "step_22"], ["step_10", "step_20", "step_21", "step_22"], []),
        "At level core milestones may use up the limit; at level strict two ordinary checkpoints stay as well.",
    ),
    Corner(
        "retention/deletion",
        "unreadable-may-be-a-milestone",
        ("retention.unclassified",),
        deletion({"step_1": "unreadable", **_complete(2, 3, 4)}, keep_last_n=2, committed=4),
        _stays(["step_3", "step_4"], ["step_1", "step_3", "step_4"], ["step_2"]),
        "Step 1 may have been saved as a milestone, so it stays; at level core it may be deleted.",
    ),
    Corner(
        "retention/deletion",
        "unreadable-is-not-counted",
        ("retention.unclassified",),
        deletion({**_complete(1, 2), "step_3": "unreadable", **_complete(4)}, keep_last_n=2, committed=4),
        _stays(["step_3", "step_4"], ["step_2", "step_3", "step_4"], ["step_1"]),
        "Step 3 does not cost step 2 its place; at level core it may use up the limit.",
    ),
    Corner(
        "retention/deletion",
        "torn-is-free",
        ("retention.torn-is-free",),
        deletion({**_complete(1, 2, 3), "step_4": "torn", "step_5": "torn"}, keep_last_n=2, committed=3),
        _stays(["step_3"], ["step_2", "step_3"], ["step_1"]),
        "Two torn directories cost no complete checkpoint its place; at level core only the resume point has to stay.",
    ),
    Corner(
        "retention/deletion",
        "torn-below-is-nobodys-business",
        ("retention.torn-is-free",),
        deletion({"step_1": "torn", **_complete(2, 3)}, keep_last_n=2, committed=3),
        _stays(["step_2", "step_3"], ["step_2", "step_3"], []),
        "The torn directory may be deleted or left.",
    ),
    Corner(
        "retention/deletion",
        "after-a-rewind",
        ("retention.future",),
        deletion(_complete(10, 15, 20, 30, 40), keep_last_n=2, committed=15),
        _stays(["step_15"], ["step_10", "step_15", "step_20", "step_30", "step_40"], []),
        "20, 30 and 40 are from before the rewind, and are neither counted nor deleted.",
    ),
    Corner(
        "retention/deletion",
        "after-a-rewind-the-limit-still-holds",
        ("retention.future", "retention.drops"),
        deletion(_complete(5, 10, 15, 40), keep_last_n=2, committed=15),
        _stays(["step_15"], ["step_10", "step_15", "step_40"], ["step_5"]),
        "Up to the commit two checkpoints stay, and 5 is deleted.",
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
        "It is neither counted nor deleted.",
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
        "If they counted, both checkpoints would be deleted.",
    ),
    Corner(
        "retention/deletion",
        "pointer-below-the-limit",
        ("retention.latest",),
        deletion(_complete(1, 2, 3, 4), keep_last_n=1, committed=4, latest="step_2"),
        _stays(["step_2", "step_4"], ["step_2", "step_4"], ["step_1", "step_3"]),
        "The next resume asks for what `latest` names.",
    ),
)

_BOTH = ["pp0/.metadata", "pp1/.metadata", "train_state.pt", "metadata.json"]


def _cut(label: str, before: Sequence[str], now: Sequence[str], stages: int | None, allowed: bool, why: str) -> Corner:
    given = {"before": list(before), "now": list(now), "stages": stages}
    return Corner("retention/cut-short", label, ("retention.invalidate-first",), given, {"allowed": allowed}, why)


_CUT_SHORT = (
    _cut("not-begun", WHOLE, WHOLE, None, True, "Nothing is deleted yet."),
    _cut("all-gone", WHOLE, [], None, True, "Nothing is left, or an empty directory."),
    _cut("shard-first", WHOLE, WHOLE[1:], None, False, "It looks complete, and lacks a shard."),
    _cut(
        "marker-first",
        WHOLE,
        [name for name in WHOLE if name != ".metadata"],
        None,
        True,
        "Every reader finds it torn.",
    ),
    _cut("metadata-first", WHOLE, WHOLE[:3], None, True, "Any required file may be the first."),
    _cut(
        "marker-of-one-stage-first",
        [*_BOTH, "pp0/__0_0.distcp"],
        [*_BOTH[1:], "pp0/__0_0.distcp"],
        2,
        True,
        "Without the marker of one stage it is complete for no stage.",
    ),
    _cut("shard-of-a-stage-first", [*_BOTH, "pp0/__0_0.distcp"], _BOTH, 2, False, "It looks complete to both stages."),
)


CORNERS: tuple[Corner, ...] = (*_RETENTION, *_CUT_SHORT)

# -- the questions ----------------------------------------------------------------------

QUESTIONS: tuple[Question, ...] = (
    Question(
        "retention/deletion",
        "what is left of a folder right after a commit",
        {
            "keep_last_n": "the limit",
            "folder": "each entry: complete, torn, unreadable (complete, but its metadata can't be parsed), file, "
            "link (to a checkpoint), or foreign (another directory)",
            "milestones": "the steps that were saved as milestones",
            "latest": "the target of the pointer, after the commit",
            "in_flight": "steps that are in flight",
            "committed": "the step just committed; null: none yet",
        },
        {
            "core": "at level core, the entries that must stay and those that must be deleted; others may be either",
            "strict": "the same at level strict",
        },
        _answer_deletion,
        _clauses_of_deletion,
        _grid_of_deletion,
    ),
    Question(
        "retention/cut-short",
        "whether a deletion that is cut short may leave these files",
        {
            "before": "the files of the checkpoint before the deletion",
            "now": "the files that are left under its name",
            "stages": "pipeline stages of the run; null: no pipeline",
        },
        {"allowed": "true or false"},
        _answer_cut_short,
        lambda given: ("retention.invalidate-first",),
        _grid_of_cut_short,
    ),
)
