"""Managers that are wrong in one row of the table, and the clause by which each of them falls.

Most are mistakes that somebody has made and shipped.  What keeps the search
honest is that it finds every one of them, by the clause that is about it and by the
shortest story there is; and that a manager which does nothing, so that
nothing can go wrong, fails as well: there is a situation that it never reaches.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import Signature, signature
from types import MappingProxyType
from typing import Any

from forge_spec import model
from forge_spec.machine import HANG, Changes, Row, with_row
from forge_spec.model import (
    ABSENT,
    ALIVE,
    DISPATCHED,
    FRESH,
    SMALL,
    TABLE,
    Directory,
    Flight,
    Folder,
    Job,
    Landed,
    Save,
    Scope,
    at,
    complete,
    is_complete,
    put,
    torn,
)
from forge_spec.retention import newest

SYNC = Scope(steps=2, replicas=1, modes=(False,))
ASYNC = Scope(steps=2, replicas=1, modes=(True,))
THREE_STEPS = Scope(replicas=1, keep=(2,), modes=(False,))


@dataclass(frozen=True)
class Variant:
    """One row that is changed, where to look for the consequence, and the clause that falls.

    With `is_lazy` no state is wrong: that clause's situation never arises.
    """

    name: str
    mistake: str
    row: str
    change: Mapping[str, Any]
    falls: str
    scope: Scope = field(default=SMALL)
    is_lazy: bool = False

    @property
    def table(self) -> tuple[Row, ...]:
        """The table with that row."""
        return with_row(TABLE, self.row, **self.change)


def _does(effect: Callable[..., Changes | None], story: str = "") -> Mapping[str, Any]:
    """What changes in the row; where its sentence still says what happens, that stays."""
    return {"effect": effect, "story": story} if story else {"effect": effect}


# -- a save ---------------------------------------------------------------------------


def _also(effect: Callable[..., Changes | None], more: Callable[..., Changes], story: str) -> Mapping[str, Any]:
    """The effect, and what `more` changes beyond it; it reads what both of them read."""
    own, further = signature(effect).parameters, signature(more).parameters

    def both(**fields: Any) -> Changes | None:
        changes = effect(**{name: fields[name] for name in own})
        return None if changes is None else {**changes, **more(**{name: fields[name] for name in further})}

    both.__signature__ = Signature(list({**own, **further}.values()))  # type: ignore[attr-defined]  # read by `Reading`
    return _does(both, story)


def _pruned_for(now: int, folder: Folder, keep: int) -> Changes:
    kept = newest(complete(folder) | {now}, keep)
    return {"folder": tuple(found if step in kept else None for step, found in enumerate(folder, start=1))}


def _publish_one_stage(saving: Save, staged: Directory, folder: Folder) -> Changes | None:
    if not staged.parts[0].marker:
        return None
    return {"flight": Flight.PUBLISHED, "staged": None, "folder": put(folder, saving.step, staged)}


def _publish_by_two_renames(
    saving: Save, staged: Directory, folder: Folder, debris: tuple[int, ...], owed: frozenset[int]
) -> Changes | None:
    published = model.after_publish(saving, staged, folder, debris, owed)
    if published is None or at(folder, saving.step) is None:
        return published
    return {"folder": put(folder, saving.step, None), "debris": tuple(sorted((*debris, saving.step)))}


def _write_in_place(saving: Save, staged: Directory, folder: Folder, stage: int) -> Changes | None:
    standing = at(folder, saving.step)
    if standing is None:
        return model.after_shard(saving, staged, stage)
    part = standing.parts[stage]
    if set(part.shards) == {saving.generation}:
        return None
    shards = tuple(sorted((*part.shards[1:], saving.generation)))
    return {"folder": put(folder, saving.step, model.with_part(standing, stage, part._replace(shards=shards)))}


def _publish_only_what_is_new(
    saving: Save, staged: Directory, folder: Folder, debris: tuple[int, ...], owed: frozenset[int]
) -> Changes | None:
    published = model.after_publish(saving, staged, folder, debris, owed)
    if published is None or not is_complete(at(folder, saving.step)):
        return published
    return {"flight": Flight.PUBLISHED, "staged": None}


def _clear_up_by_name(saving: Save, folder: Folder) -> Changes:
    return {"flight": Flight.FAILED, "staged": None, "folder": put(folder, saving.step, None)}


def _clear_up_the_one_before(folder: Folder, pending: tuple[Save, ...]) -> Changes:
    for save in pending:
        folder = put(folder, save.step, None)
    return {"flight": Flight.FAILED, "staged": None, "folder": folder}


def _roll_back(folder: Folder, latest: int) -> Changes:
    before = max((step for step in complete(folder) if step < latest), default=latest)
    return {"flight": Flight.FAILED, "staged": None, "latest": before}


def _publish_the_failed(job: Job, saving: Save, staged: Directory, folder: Folder) -> Changes:
    if job is Job.CUT:
        return {"flight": Flight.FAILED, "staged": None}
    return {"flight": Flight.PUBLISHED, "staged": None, "folder": put(folder, saving.step, staged)}


def _publish_without_a_rank(job: Job, saving: Save, staged: Directory, folder: Folder) -> Changes:
    if job is not Job.CUT:
        return {"flight": Flight.FAILED, "staged": None}
    return {"flight": Flight.PUBLISHED, "staged": None, "folder": put(folder, saving.step, staged)}


# -- what leaves ------------------------------------------------------------------------


def _chosen(debris: tuple[int, ...], due: frozenset[int]) -> Changes | None:
    return None if debris else {"flight": Flight.RETIRING, "doomed": due}


def _count_torn(saving: Save, folder: Folder, debris: tuple[int, ...], keep: int) -> Changes | None:
    counted = torn(folder) | {step for step in complete(folder) if step <= saving.step}
    return _chosen(debris, counted - newest(counted, keep) - {saving.step})


def _count_above(saving: Save, folder: Folder, debris: tuple[int, ...], keep: int) -> Changes | None:
    return _chosen(debris, complete(folder) - newest(complete(folder), keep) - {saving.step})


def _count_alone(folder: Folder, debris: tuple[int, ...], keep: int) -> Changes | None:
    return _chosen(debris, complete(folder) - newest(complete(folder), keep))


def _keep_one_less(saving: Save, folder: Folder, debris: tuple[int, ...], keep: int) -> Changes | None:
    return _chosen(debris, complete(folder) - newest(complete(folder), keep - 1) - {saving.step})


def _delete_in_place(folder: Folder, doomed: frozenset[int]) -> Changes | None:
    if not doomed:
        return None
    oldest = at(folder, min(doomed))
    if oldest is None or not any(any(part.shards) for part in oldest.parts):
        return {"folder": put(folder, min(doomed), None), "doomed": doomed - {min(doomed)}}
    emptied = tuple(part._replace(shards=(ABSENT,) * len(part.shards)) for part in oldest.parts)
    return {"folder": put(folder, min(doomed), oldest._replace(parts=emptied))}


# -- coming back --------------------------------------------------------------------------


def _resolve_newest_directory(folder: Folder, latest: int, named: int) -> Changes:
    standing = complete(folder) | torn(folder) if complete(folder) else frozenset[int]()
    return _tell(folder, named or (latest if latest in complete(folder) else max(standing, default=0)))


def _resolve_what_there_is(folder: Folder, latest: int, named: int) -> Changes:
    if complete(folder):
        return model.after_resolve(folder, latest, named)
    return _tell(folder, named or max(torn(folder), default=0))


def _resolve_by_markers(folder: Folder, latest: int, named: int) -> Changes:
    marked = {s for s, found in enumerate(folder, start=1) if found and all(part.marker > 0 for part in found.parts)}
    return _tell(folder, named or (latest if latest in marked else max(marked, default=0)))


def _resolve_newest(folder: Folder, named: int) -> Changes:
    return _tell(folder, named or max(complete(folder), default=0))


def _resolve_pointer_only(folder: Folder, latest: int, named: int) -> Changes:
    return _tell(folder, 0) if not (named or latest) else model.after_resolve(folder, latest, named)


def _resolve_without_fallback(folder: Folder, latest: int, named: int) -> Changes:
    return _tell(folder, 0) if latest in torn(folder) and not named else model.after_resolve(folder, latest, named)


def _tell(folder: Folder, step: int) -> Changes:
    found = at(folder, step)
    return {"job": Job.LOADING, "target": Save(step, found.train_state) if found else FRESH}


def _load_for_oneself(
    folder: Folder, latest: int, named: int, landed: tuple[Landed | None, ...], stage: int
) -> Changes | None:
    own = {s for s, found in enumerate(folder, start=1) if found and found.parts[stage].marker > 0}
    return model.after_landing(folder, named or (latest if latest in own else max(own, default=0)), landed, stage)


VARIANTS: tuple[Variant, ...] = (
    Variant(
        "latest-early",
        "`latest` is moved when the save is dispatched",
        "stage",
        _also(
            model.after_stage,
            lambda now: {"latest": now},
            "rank 0 makes a hidden directory for step {now}, and points `latest` at that step",
        ),
        "commit.deferred",
    ),
    Variant(
        "one-stage",
        "the commit waits for the marker of stage 0 alone",
        "publish",
        _does(_publish_one_stage, "stage 0 has written, and rank 0 gives the directory its name, step_{saving.step}"),
        "commit.all-stages",
    ),
    Variant(
        "late-train-state",
        "train state and metadata are left for after the commit",
        "describe",
        _does(lambda: {"flight": Flight.FLUSHING}, "rank 0 leaves the other files of step {saving.step} for later"),
        "commit.whole",
        SYNC,
    ),
    Variant(
        "returns-at-once",
        "`save` returns before rank 0 has written train state and metadata",
        "return early",
        {"when": {"job": {Job.SAVING}, "flight": DISPATCHED | {Flight.STAGED}}},
        "commit.collective",
        ASYNC,
    ),
    Variant(
        "never-commits",
        "`latest` is left where it is in a synchronous save",
        "point",
        _does(lambda: {"flight": Flight.COMMITTED}, "rank 0 takes step {saving.step} for committed"),
        "commit.sync",
        SYNC,
    ),
    Variant(
        "never-commits-behind",
        "`latest` is left where it is in a save in the background",
        "point",
        _does(lambda: {"flight": Flight.COMMITTED}, "rank 0 takes step {saving.step} for committed"),
        "commit.no-later-than",
        ASYNC,
    ),
    Variant(
        "wait-does-not",
        "`wait` returns while the flush goes on",
        "return from wait",
        {"when": {"job": {Job.WAITING}, "flight": DISPATCHED}},
        "commit.no-later-than",
        ASYNC,
    ),
    Variant(
        "commits-the-failed",
        "what a flush has written when it fails is published all the same",
        "discard",
        _does(_publish_the_failed, "rank 0 gives what there is of step {saving.step} its name"),
        "commit.failed-flush",
    ),
    Variant(
        "commits-without-a-rank",
        "when a rank dies the others commit what there is",
        "discard",
        _does(_publish_without_a_rank, "rank 0 gives what there is of step {saving.step} its name"),
        "commit.rank-failure",
    ),
    Variant(
        "clears-up-by-name",
        "the clean-up after a failed save deletes the directory of its step, whoever wrote it",
        "discard",
        _does(_clear_up_by_name, "rank 0 deletes everything of step {saving.step}"),
        "commit.failed-save",
        SYNC,
    ),
    Variant(
        "needs-room-too-late",
        "the new pointer is made after the publish, where the disk may be full",
        "full",
        {"when": {"job": ALIVE - {Job.CUT}, "flight": {Flight.STAGED, Flight.FLUSHING, Flight.PUBLISHED}}},
        "commit.failed-save",
        SYNC,
    ),
    Variant(
        "clears-up-too-much",
        "the clean-up after a save that did not start takes the one before it, which no call has vouched for yet",
        "discard",
        _does(_clear_up_the_one_before, "rank 0 deletes what no call has vouched for"),
        "commit.before-dispatch",
        ASYNC,
    ),
    Variant(
        "rolls-back",
        "a failed save moves `latest` back to the checkpoint before",
        "discard",
        _does(_roll_back, "rank 0 gives up step {saving.step}, and points `latest` at step {new.latest}"),
        "commit.monotone",
    ),
    Variant(
        "in-place",
        "a step that is saved again is written over its old directory, under its old markers",
        "shard",
        _does(_write_in_place, "a rank of stage {stage} writes its shard into step_{saving.step}, if that is there"),
        "commit.resave",
    ),
    Variant(
        "keeps-the-old",
        "a step that stands already is not written again",
        "publish",
        _does(_publish_only_what_is_new, "rank 0 gives the directory its name, unless step_{saving.step} is there"),
        "resume.continue",
    ),
    Variant(
        "two-renames",
        "the old directory of a step that is saved again is moved aside before the new one comes",
        "publish",
        _does(
            _publish_by_two_renames, "rank 0 moves step_{saving.step} aside, if it is there, and then the new one in"
        ),
        "commit.atomic-pointer",
    ),
    Variant(
        "prune-early",
        "what a new save will push out is deleted when it is dispatched",
        "stage",
        _also(
            model.after_stage,
            _pruned_for,
            "rank 0 makes a hidden directory for step {now}, and deletes what goes beyond {keep}",
        ),
        "retention.after-commit",
    ),
    Variant(
        "sweeps-what-is-in-flight",
        "hidden directories are swept when a save is dispatched, its own among them",
        "describe",
        _does(
            lambda: {"flight": Flight.FLUSHING, "staged": None},
            "rank 0 sweeps the folder, and step {saving.step} with it",
        ),
        "retention.in-flight",
    ),
    Variant(
        "deletes-in-place",
        "a deletion takes the shards first, under the step's own name",
        "hide",
        _does(_delete_in_place, "rank 0 deletes the shards of the oldest step, and then the rest"),
        "retention.invalidate-first",
    ),
    Variant(
        "keeps-one-less",
        "the new checkpoint is not counted among those that stay",
        "choose",
        _does(_keep_one_less),
        "retention.keeps",
    ),
    Variant(
        "counts-torn",
        "the newest directories stay, torn ones among them",
        "choose",
        _does(_count_torn),
        "retention.torn-is-free",
        THREE_STEPS,
    ),
    Variant(
        "counts-above",
        "after a rewind, steps above the commit use up the limit",
        "choose",
        _does(_count_above),
        "retention.future",
        THREE_STEPS,
    ),
    Variant(
        "limit-alone",
        "the limit alone says what stays, not what `latest` names",
        "choose",
        _does(_count_alone),
        "retention.latest",
    ),
    Variant(
        "never-prunes",
        "nothing is ever too old",
        "choose",
        _does(lambda: {"flight": Flight.RETIRING}),
        "retention.drops",
    ),
    Variant(
        "piles-up",
        "what a killed save left is moved aside and swept only after a commit",
        "stage",
        _also(
            model.after_stage,
            lambda debris: {"debris": debris},
            "rank 0 moves aside what it finds, and makes a hidden directory for step {now}",
        ),
        "retention.debris",
    ),
    Variant(
        "refuses-leftovers",
        "a save does not begin while a hidden directory of a killed one stands",
        "stage",
        {"when": {"job": {Job.CALLING}, "flight": {Flight.NONE, Flight.DONE}, "debris": {()}}},
        HANG,
    ),
    Variant(
        "swallows-failures",
        "a failed flush is forgotten, and the call that should tell never ends",
        "raise",
        _does(lambda: None),
        HANG,
    ),
    Variant(
        "forgets-latest",
        "a new process removes `latest` until it has committed something itself",
        "start",
        _does(lambda: {"job": Job.RESUMING, "latest": 0}, "new processes start, and remove `latest`"),
        "resume.after-kill",
    ),
    Variant(
        "takes-the-newest-directory",
        "where what `latest` names is torn, the newest directory is taken, complete or not",
        "resolve",
        _does(_resolve_newest_directory),
        "resume.skips-torn",
    ),
    Variant(
        "takes-what-there-is",
        "with nothing complete, a resume takes what is torn",
        "resolve",
        _does(_resolve_what_there_is),
        "resume.all-torn",
    ),
    Variant(
        "never-falls-back",
        "a run whose `latest` names a torn checkpoint starts fresh",
        "resolve",
        _does(_resolve_without_fallback),
        "resume.fallback",
    ),
    Variant(
        "looks-at-markers",
        "a resume takes what has its markers",
        "resolve",
        _does(_resolve_by_markers),
        "commit.whole",
    ),
    Variant(
        "trusts-latest-alone",
        "a run whose `latest` is missing starts fresh",
        "resolve",
        _does(_resolve_pointer_only),
        "resume.pointer-is-a-hint",
    ),
    Variant(
        "ignores-latest",
        "a resume takes the newest complete checkpoint, whatever `latest` names",
        "resolve",
        _does(_resolve_newest),
        "resume.lands",
    ),
    Variant(
        "ignores-the-name",
        "a resume goes where it likes although the caller named a checkpoint",
        "resolve",
        _does(lambda folder, latest: model.after_resolve(folder, latest, named=0)),
        "resume.explicit-honoured",
    ),
    Variant(
        "half-a-fallback",
        "train state comes from the checkpoint that was fallen back to, shards from the one that `latest` names",
        "load",
        _does(
            lambda folder, latest, named, landed, stage: model.after_landing(folder, named or latest, landed, stage),
            "stage {stage} loads the shards of {new.landed[stage].told}",
        ),
        "resume.one-step",
    ),
    Variant(
        "stages-apart",
        "each stage looks for itself, and at its own marker only",
        "load",
        _does(_load_for_oneself, "stage {stage} looks for itself, and loads {new.landed[stage].told}"),
        "resume.agreement-across-stages",
    ),
    Variant(
        "never-saves",
        "`save` returns and has done nothing",
        "stage",
        _does(lambda: {"job": Job.TRAINING}, "`save` returns"),
        "resume.lands",
        is_lazy=True,
    ),
    Variant(
        "never-resumes",
        "no process ever starts",
        "start",
        _does(lambda: None),
        "resume.lands",
        is_lazy=True,
    ),
)
"""In the order of the chapters; `python -m forge_spec.explore --variant NAME` tells the story."""

BY_NAME: Mapping[str, Variant] = MappingProxyType({variant.name: variant for variant in VARIANTS})
"""Every variant under its name."""
