"""Managers of the first design that are wrong in one row of the table, and the clause that each of them breaks.

Most of these mistakes were made and shipped by somebody.
"""

from forge_spec.model.design import Variant, also, does
from forge_spec.model.machine import HANG, Changes
from forge_spec.model.table import (
    ABSENT,
    ALIVE,
    DISPATCHED,
    FRESH,
    Directory,
    Flight,
    Folder,
    Job,
    Landed,
    Save,
    Scope,
    after_landing,
    after_publish,
    after_resolve,
    after_shard,
    after_stage,
    at,
    complete,
    is_complete,
    put,
    torn,
    with_part,
)
from forge_spec.retention import newest

SYNC = Scope(steps=2, replicas=1, modes=(False,))
ASYNC = Scope(steps=2, replicas=1, modes=(True,))
THREE_STEPS = Scope(replicas=1, keep=(2,), modes=(False,))


# -- a save ---------------------------------------------------------------------------


def _pruned_for(now: int, folder: Folder, keep: int) -> Changes:
    kept = newest(complete(folder) | {now}, keep)
    return {"folder": tuple(found if step in kept else None for step, found in enumerate(folder, start=1))}


def _publish_one_stage(saving: Save, staged: Directory, folder: Folder) -> Changes | None:
    if not staged.parts[0].marker:
        return None
    return {"flight": Flight.PUBLISHED, "staged": None, "folder": put(folder, saving.step, staged)}


def _publish_by_two_renames(
    saving: Save, staged: Directory, folder: Folder, hidden: tuple[int, ...], protected: frozenset[int]
) -> Changes | None:
    published = after_publish(saving, staged, folder, hidden, protected)
    if published is None or at(folder, saving.step) is None:
        return published
    return {"folder": put(folder, saving.step, None), "hidden": tuple(sorted((*hidden, saving.step)))}


def _write_in_place(saving: Save, staged: Directory, folder: Folder, stage: int) -> Changes | None:
    standing = at(folder, saving.step)
    if standing is None:
        return after_shard(saving, staged, stage)
    part = standing.parts[stage]
    if set(part.shards) == {saving.generation}:
        return None
    shards = tuple(sorted((*part.shards[1:], saving.generation)))
    return {"folder": put(folder, saving.step, with_part(standing, stage, part._replace(shards=shards)))}


def _publish_only_what_is_new(
    saving: Save, staged: Directory, folder: Folder, hidden: tuple[int, ...], protected: frozenset[int]
) -> Changes | None:
    published = after_publish(saving, staged, folder, hidden, protected)
    if published is None or not is_complete(at(folder, saving.step)):
        return published
    return {"flight": Flight.PUBLISHED, "staged": None}


def _clear_up_by_name(saving: Save, folder: Folder) -> Changes:
    return {"flight": Flight.FAILED, "staged": None, "folder": put(folder, saving.step, None)}


def _clear_up_the_one_before(folder: Folder, begun: tuple[Save, ...]) -> Changes:
    for save in begun:
        folder = put(folder, save.step, None)
    return {"flight": Flight.FAILED, "staged": None, "folder": folder}


def _roll_back(folder: Folder, latest: int) -> Changes:
    before = max((step for step in complete(folder) if step < latest), default=latest)
    return {"flight": Flight.FAILED, "staged": None, "latest": before}


def _publish_the_failed(job: Job, saving: Save, staged: Directory, folder: Folder) -> Changes:
    if job is Job.RANK_LOST:
        return {"flight": Flight.FAILED, "staged": None}
    return {"flight": Flight.PUBLISHED, "staged": None, "folder": put(folder, saving.step, staged)}


def _publish_without_a_rank(job: Job, saving: Save, staged: Directory, folder: Folder) -> Changes:
    if job is not Job.RANK_LOST:
        return {"flight": Flight.FAILED, "staged": None}
    return {"flight": Flight.PUBLISHED, "staged": None, "folder": put(folder, saving.step, staged)}


# -- deletion ------------------------------------------------------------------------


def _chosen(hidden: tuple[int, ...], due: frozenset[int]) -> Changes | None:
    return None if hidden else {"flight": Flight.RETIRING, "to_delete": due}


def _count_torn(saving: Save, folder: Folder, hidden: tuple[int, ...], keep: int) -> Changes | None:
    counted = torn(folder) | {step for step in complete(folder) if step <= saving.step}
    return _chosen(hidden, counted - newest(counted, keep) - {saving.step})


def _count_above(saving: Save, folder: Folder, hidden: tuple[int, ...], keep: int) -> Changes | None:
    return _chosen(hidden, complete(folder) - newest(complete(folder), keep) - {saving.step})


def _count_alone(folder: Folder, hidden: tuple[int, ...], keep: int) -> Changes | None:
    return _chosen(hidden, complete(folder) - newest(complete(folder), keep))


def _keep_one_less(saving: Save, folder: Folder, hidden: tuple[int, ...], keep: int) -> Changes | None:
    return _chosen(hidden, complete(folder) - newest(complete(folder), keep - 1) - {saving.step})


def _delete_in_place(folder: Folder, to_delete: frozenset[int]) -> Changes | None:
    if not to_delete:
        return None
    oldest = at(folder, min(to_delete))
    if oldest is None or not any(any(part.shards) for part in oldest.parts):
        return {"folder": put(folder, min(to_delete), None), "to_delete": to_delete - {min(to_delete)}}
    emptied = tuple(part._replace(shards=(ABSENT,) * len(part.shards)) for part in oldest.parts)
    return {"folder": put(folder, min(to_delete), oldest._replace(parts=emptied))}


# -- a resume --------------------------------------------------------------------------


def _resolve_newest_directory(folder: Folder, latest: int, named: int) -> Changes:
    standing = complete(folder) | torn(folder) if complete(folder) else frozenset[int]()
    return _load(folder, named or (latest if latest in complete(folder) else max(standing, default=0)))


def _resolve_what_there_is(folder: Folder, latest: int, named: int) -> Changes:
    if complete(folder):
        return after_resolve(folder, latest, named)
    return _load(folder, named or max(torn(folder), default=0))


def _resolve_by_markers(folder: Folder, latest: int, named: int) -> Changes:
    marked = {s for s, found in enumerate(folder, start=1) if found and all(part.marker > 0 for part in found.parts)}
    return _load(folder, named or (latest if latest in marked else max(marked, default=0)))


def _resolve_newest(folder: Folder, named: int) -> Changes:
    return _load(folder, named or max(complete(folder), default=0))


def _resolve_pointer_only(folder: Folder, latest: int, named: int) -> Changes:
    return _load(folder, 0) if not (named or latest) else after_resolve(folder, latest, named)


def _resolve_without_fallback(folder: Folder, latest: int, named: int) -> Changes:
    return _load(folder, 0) if latest in torn(folder) and not named else after_resolve(folder, latest, named)


def _load(folder: Folder, step: int) -> Changes:
    found = at(folder, step)
    return {"job": Job.LOADING, "target": Save(step, found.train_state) if found else FRESH}


def _load_for_oneself(
    folder: Folder, latest: int, named: int, landed: tuple[Landed | None, ...], stage: int
) -> Changes | None:
    own = {s for s, found in enumerate(folder, start=1) if found and found.parts[stage].marker > 0}
    return after_landing(folder, named or (latest if latest in own else max(own, default=0)), landed, stage)


VARIANTS: tuple[Variant, ...] = (
    Variant(
        "latest-early",
        "`latest` is moved when the save is dispatched",
        "stage",
        also(
            after_stage,
            lambda now: {"latest": now},
            "rank 0 makes a hidden directory for step {now}, and points `latest` at that step",
        ),
        "commit.deferred",
    ),
    Variant(
        "one-stage",
        "the commit waits for the marker of stage 0 alone",
        "publish",
        does(_publish_one_stage, "stage 0 has written, and rank 0 gives the directory its name, step_{saving.step}"),
        "commit.all-stages",
    ),
    Variant(
        "late-train-state",
        "train state and metadata are left for after the commit",
        "describe",
        does(lambda: {"flight": Flight.FLUSHING}, "rank 0 leaves the other files of step {saving.step} for later"),
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
        "`latest` is not moved by a synchronous save",
        "point",
        does(lambda: {"flight": Flight.COMMITTED}, "rank 0 treats step {saving.step} as committed"),
        "commit.sync",
        SYNC,
    ),
    Variant(
        "never-commits-behind",
        "`latest` is not moved by an asynchronous save",
        "point",
        does(lambda: {"flight": Flight.COMMITTED}, "rank 0 treats step {saving.step} as committed"),
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
        "what a flush has written when it fails is published anyway",
        "discard",
        does(_publish_the_failed, "rank 0 gives the incomplete directory of step {saving.step} its name"),
        "commit.failed-flush",
    ),
    Variant(
        "commits-without-a-rank",
        "when a rank is lost, the others commit what they have",
        "discard",
        does(_publish_without_a_rank, "rank 0 gives the incomplete directory of step {saving.step} its name"),
        "commit.rank-failure",
    ),
    Variant(
        "clears-up-by-name",
        "the clean-up after a failed save deletes the directory of its step, whoever wrote it",
        "discard",
        does(_clear_up_by_name, "rank 0 deletes everything of step {saving.step}"),
        "commit.failed-save",
        SYNC,
    ),
    Variant(
        "needs-room-too-late",
        "the new pointer is made after the publish, where the disk may be full",
        "full",
        {"when": {"job": ALIVE - {Job.RANK_LOST}, "flight": {Flight.STAGED, Flight.FLUSHING, Flight.PUBLISHED}}},
        "commit.failed-save",
        SYNC,
    ),
    Variant(
        "clears-up-too-much",
        "the clean-up after a save that did not start deletes the save before it, which is not acknowledged yet",
        "discard",
        does(_clear_up_the_one_before, "rank 0 deletes what is not acknowledged"),
        "commit.before-dispatch",
        ASYNC,
    ),
    Variant(
        "rolls-back",
        "a failed save moves `latest` back to the checkpoint before",
        "discard",
        does(_roll_back, "rank 0 gives up step {saving.step}, and points `latest` at step {new.latest}"),
        "commit.monotone",
    ),
    Variant(
        "in-place",
        "a step that is saved again is written over its old directory, under its old markers",
        "shard",
        does(_write_in_place, "a rank of stage {stage} writes its shard into step_{saving.step}, if that is there"),
        "commit.resave",
    ),
    Variant(
        "keeps-the-old",
        "a step that exists already is not written again",
        "publish",
        does(_publish_only_what_is_new, "rank 0 gives the directory its name, unless step_{saving.step} is there"),
        "resume.continue",
    ),
    Variant(
        "two-renames",
        "the old directory of a step that is saved again is moved aside before the new one comes",
        "publish",
        does(_publish_by_two_renames, "rank 0 moves step_{saving.step} aside, if it is there, and then the new one in"),
        "commit.atomic-pointer",
    ),
    Variant(
        "prune-early",
        "what a new save will push out is deleted when it is dispatched",
        "stage",
        also(
            after_stage,
            _pruned_for,
            "rank 0 makes a hidden directory for step {now}, and deletes what goes beyond {keep}",
        ),
        "retention.after-commit",
    ),
    Variant(
        "sweeps-what-is-in-flight",
        "hidden directories are deleted when a save is dispatched, including its own",
        "describe",
        does(
            lambda: {"flight": Flight.FLUSHING, "staged": None},
            "rank 0 deletes all hidden directories, including that of step {saving.step}",
        ),
        "retention.in-flight",
    ),
    Variant(
        "deletes-in-place",
        "a deletion removes the shards first, under the step's own name",
        "hide",
        does(_delete_in_place, "rank 0 deletes the shards of the oldest step, and then the rest"),
        "retention.invalidate-first",
    ),
    Variant(
        "keeps-one-less",
        "the new checkpoint is not counted among those that stay",
        "choose",
        does(_keep_one_less),
        "retention.keeps",
    ),
    Variant(
        "counts-torn",
        "the newest directories stay, torn ones among them",
        "choose",
        does(_count_torn),
        "retention.torn-is-free",
        THREE_STEPS,
    ),
    Variant(
        "counts-above",
        "after a rewind, steps above the commit use up the limit",
        "choose",
        does(_count_above),
        "retention.future",
        THREE_STEPS,
    ),
    Variant(
        "limit-alone",
        "the limit alone says what stays, not what `latest` names",
        "choose",
        does(_count_alone),
        "retention.latest",
    ),
    Variant(
        "never-prunes",
        "nothing is ever deleted",
        "choose",
        does(lambda: {"flight": Flight.RETIRING}),
        "retention.drops",
    ),
    Variant(
        "piles-up",
        "the leftovers of a killed save are moved aside and deleted only after a commit",
        "stage",
        also(
            after_stage,
            lambda hidden: {"hidden": hidden},
            "rank 0 moves aside what it finds, and makes a hidden directory for step {now}",
        ),
        "retention.debris",
    ),
    Variant(
        "refuses-leftovers",
        "a save does not begin while there is a hidden directory of a killed save",
        "stage",
        {"when": {"job": {Job.CALLING}, "flight": {Flight.NONE, Flight.DONE}, "hidden": {()}}},
        HANG,
    ),
    Variant(
        "swallows-failures",
        "a failed flush is forgotten, and the call that should raise never returns",
        "raise",
        does(lambda: None),
        HANG,
    ),
    Variant(
        "forgets-latest",
        "a new process removes `latest` until it has committed something itself",
        "start",
        does(lambda: {"job": Job.RESUMING, "latest": 0}, "new processes start, and remove `latest`"),
        "resume.after-kill",
    ),
    Variant(
        "takes-the-newest-directory",
        "where the target of `latest` is torn, the newest directory is loaded, complete or not",
        "resolve",
        does(_resolve_newest_directory),
        "resume.skips-torn",
    ),
    Variant(
        "takes-what-there-is",
        "with no complete checkpoint, a resume loads a torn one",
        "resolve",
        does(_resolve_what_there_is),
        "resume.all-torn",
    ),
    Variant(
        "never-falls-back",
        "a run whose `latest` names a torn checkpoint starts fresh",
        "resolve",
        does(_resolve_without_fallback),
        "resume.fallback",
    ),
    Variant(
        "looks-at-markers",
        "a resume loads any directory that has its markers",
        "resolve",
        does(_resolve_by_markers),
        "commit.whole",
    ),
    Variant(
        "trusts-latest-alone",
        "a run whose `latest` is missing starts fresh",
        "resolve",
        does(_resolve_pointer_only),
        "resume.pointer-is-a-hint",
    ),
    Variant(
        "ignores-latest",
        "a resume loads the newest complete checkpoint, whatever `latest` names",
        "resolve",
        does(_resolve_newest),
        "resume.lands",
    ),
    Variant(
        "ignores-the-name",
        "a resume ignores the checkpoint that the caller named",
        "resolve",
        does(lambda folder, latest: after_resolve(folder, latest, named=0)),
        "resume.explicit-honoured",
    ),
    Variant(
        "half-a-fallback",
        "a resume that falls back loads the shards of the checkpoint that `latest` names",
        "load",
        does(
            lambda folder, latest, named, landed, stage: after_landing(folder, named or latest, landed, stage),
            "stage {stage} loads the shards of {new.landed[stage].text}",
        ),
        "resume.one-step",
    ),
    Variant(
        "stages-apart",
        "each stage chooses by itself, and by its own marker only",
        "load",
        does(_load_for_oneself, "stage {stage} chooses by itself, and loads {new.landed[stage].text}"),
        "resume.agreement-across-stages",
    ),
    Variant(
        "never-saves",
        "`save` returns without doing anything",
        "stage",
        does(lambda: {"job": Job.TRAINING}, "`save` returns"),
        "resume.lands",
        is_lazy=True,
    ),
    Variant(
        "never-resumes",
        "no process ever starts",
        "start",
        does(lambda: None),
        "resume.lands",
        is_lazy=True,
    ),
)
"""In the order of a save, a deletion and a resume; `python -m forge_spec.model.explore --variant NAME` prints one."""
