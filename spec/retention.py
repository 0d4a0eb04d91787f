"""What is deleted, and when: the newest few stay, milestones stay, the resume point always stays.

Two sets bound every deletion.  *Must-keep* is what no manager may ever delete.
*May-keep* is the most that may still stand right after a commit.  Must-keep
lies inside may-keep.  A manager at level core may move between the two, since
it may let milestones and torn directories use up the limit; at level strict
exactly may-keep survives.

Invariants: at every instant of a deletion, and after a kill at any of them, the
resume point stands whole; nothing is deleted before what replaces it is
committed; and order is the order of the numbers, never of names or times.

Torn directories are debris, and so is what dead saves leave under other names.
Unless one is in flight or `latest` points at it, or the limit keeps everything, a
manager may sweep it after a commit or leave it, as long as it costs no complete
checkpoint its place, and as long as debris does not pile up.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from forge_spec.clauses import Clause, Level
from forge_spec.layout import is_complete

_RETENTION = frozenset({"retention"})

CLAUSES: tuple[Clause, ...] = (
    Clause(
        slug="retention.keeps",
        level=Level.CORE,
        sentence="never deletes anything in must-keep: what is complete and not above the commit among the newest "
        "`keep_last_n` steps, every complete milestone, the target of `latest`, and everything in flight",
        why="One step too many deleted is training that can't be had back; "
        "with the resume point among it, the run starts over.",
        sometimes="more checkpoints were committed than the limit keeps, and something was deleted",
        capabilities=_RETENTION,
        rests_on=("commit.sync", "commit.no-later-than"),
    ),
    Clause(
        slug="retention.drops",
        level=Level.CORE,
        sentence="leaves, right after a commit, no complete checkpoint of this run outside may-keep: the newest "
        "`keep_last_n` complete ordinary ones, milestones, the target of `latest`, those in flight, "
        "and steps above the one committed",
        why="Checkpoints that should be gone fill the disk, and a full disk ends the run at a later save.",
        sometimes="more checkpoints were committed than the limit keeps",
        capabilities=_RETENTION,
    ),
    Clause(
        slug="retention.off",
        level=Level.CORE,
        sentence="deletes nothing when `keep_last_n` is 0 or negative",
        why="Zero means *keep all*; read as *keep none*, it empties the folder at the first commit.",
        sometimes="several checkpoints were committed with a limit of 0 and with a negative one",
        capabilities=_RETENTION,
        rests_on=("retention.keeps",),
    ),
    Clause(
        slug="retention.numeric",
        level=Level.CORE,
        sentence="orders checkpoints by their step as a number, whatever their names, times and inodes suggest",
        why="By name, step 10 is older than step 9; by time, a copy or a restore from backup reverses the order: "
        "either way the newest checkpoint is the one deleted.",
        sometimes="the folder held steps with different numbers of digits, and times against the order of steps, "
        "when something was deleted",
        capabilities=_RETENTION,
        rests_on=("retention.keeps", "retention.drops"),
    ),
    Clause(
        slug="retention.latest",
        level=Level.CORE,
        sentence="keeps the target of `latest` whole under any limit and at every instant of a deletion",
        why="It is the one checkpoint that the next resume asks for: without it a killed run has nothing to return to.",
        sometimes="a deletion was watched, or cut short by a kill, while `latest` had a target",
        capabilities=frozenset({"retention", "pointer"}),
        rests_on=("retention.keeps",),
    ),
    Clause(
        slug="retention.in-flight",
        level=Level.CORE,
        sentence="keeps a checkpoint that is in flight from its dispatch until its own commit",
        why="The flush writes into a directory that is gone: the save dies, or worse, "
        "succeeds with the files that came after the deletion.",
        sometimes="a commit deleted something while a later save was in flight",
        capabilities=frozenset({"retention", "async"}),
        rests_on=("retention.keeps",),
    ),
    Clause(
        slug="retention.exempt-is-free",
        level=Level.STRICT,
        sentence="does not count milestones against `keep_last_n`: right after a commit exactly may-keep survives "
        "of the complete checkpoints",
        why="A dense window fills the limit with milestones, and the run is left without any recent "
        "ordinary checkpoint to go back to.",
        sometimes="milestones and more ordinary checkpoints than the limit keeps stood together after a commit",
        capabilities=frozenset({"retention", "window"}),
        rests_on=("retention.keeps", "retention.drops", "retention.numeric"),
    ),
    Clause(
        slug="retention.torn-is-free",
        level=Level.STRICT,
        sentence="does not count torn directories against `keep_last_n`, so that none of them costs "
        "a complete checkpoint its place",
        why="After a few kills the newest directories are all torn; counted, they push out every checkpoint "
        "that a resume could use.",
        sometimes="torn directories stood among the newest when a commit deleted something",
        capabilities=_RETENTION,
        rests_on=("retention.keeps", "retention.drops", "retention.numeric"),
    ),
    Clause(
        slug="retention.future",
        level=Level.STRICT,
        sentence="neither counts nor deletes, after a rewind, steps above the one just committed",
        why="Counted, the stale steps leave no room for the new ones: each fresh save is pruned as the oldest. "
        "Deleted, a rewind made by mistake can't be undone.",
        sometimes="a commit happened below more steps than the limit keeps",
        capabilities=_RETENTION,
        rests_on=("retention.keeps", "retention.drops", "retention.numeric"),
    ),
    Clause(
        slug="retention.class-is-remembered",
        level=Level.STRICT,
        sentence="keeps what was saved as a milestone when a later run has another window or none",
        why="The first commit after a configuration change deletes, all at once, the early checkpoints "
        "that the window was set to keep.",
        sometimes="a run without the window that an earlier run had committed beyond its limit",
        capabilities=frozenset({"retention", "window"}),
        rests_on=("retention.keeps",),
    ),
    Clause(
        slug="retention.invalidate-first",
        level=Level.STRICT,
        sentence="makes a checkpoint incomplete before anything else of it goes, "
        "so that a deletion cut short never leaves one that looks complete",
        why="A marker that outlives its shards makes the half-deleted step a candidate for the next fallback: "
        "the resume crashes, or takes what is left.",
        sometimes="a deletion was watched at each of its file operations, or cut short at one",
        capabilities=_RETENTION,
        rests_on=("retention.drops",),
    ),
    Clause(
        slug="retention.failure-is-soft",
        level=Level.STRICT,
        sentence="lets the save succeed when a directory can't be deleted, logs which one, "
        "and tries again at the next commit",
        why="A stuck file handle on a shared file system would otherwise end a run whose checkpoint is safe on disk, "
        "or leave the directory standing for ever.",
        sometimes="a deletion failed, and could have succeeded at a later commit",
        capabilities=_RETENTION,
        rests_on=("retention.drops",),
    ),
    Clause(
        slug="retention.after-commit",
        level=Level.CORE,
        sentence="deletes nothing before the checkpoint that replaces it is committed",
        why="Delete first, and a kill in between leaves one checkpoint fewer than the limit promises: "
        "none at all with a limit of one.",
        sometimes="a save that was to push out an older checkpoint was watched or killed before its commit",
        capabilities=_RETENTION,
        rests_on=("retention.keeps", "retention.drops"),
    ),
    Clause(
        slug="retention.restart",
        level=Level.STRICT,
        sentence="counts the checkpoints of earlier runs in the folder like its own",
        why="A job that is requeued every few hours starts its count anew each time, "
        "and the disk fills although a limit is set.",
        sometimes="a process that started on a folder with earlier checkpoints committed beyond the limit",
        capabilities=_RETENTION,
        rests_on=("retention.drops",),
    ),
    Clause(
        slug="retention.debris",
        level=Level.STRICT,
        sentence="lets deaths pile nothing up: however many saves in a row are killed, at most one directory is torn "
        "from writing and one from deleting, and all that stands beside the complete checkpoints takes no more room "
        "than three of them, or it warns of what it can't clear away",
        why="A job that is preempted in each of its saves leaves a hidden gigabyte every time, and the disk is full "
        "although only two checkpoints are kept.",
        sometimes="a run was killed in save after save, and went on after each, over one folder",
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="retention.one-deleter",
        level=Level.CORE,
        sentence="deletes from one rank only, and at no time lets any rank see a resume point partly deleted",
        why="Ranks that delete the same tree fail on each other's missing files, "
        "and a rank that resumes meanwhile takes a step that the others no longer find.",
        sometimes="a commit of several ranks deleted something",
        capabilities=frozenset({"retention", "distributed"}),
        rests_on=("retention.drops",),
    ),
)


@dataclass(frozen=True)
class Folder:
    """What stands in a folder when a deletion is due, and what is known about it.

    A step in flight need not stand: whether a flush writes under the step's
    own name is the manager's business.  `milestones` are the steps saved as
    such; when the window has changed since, level core demands only those of
    the present one (`retention.class-is-remembered`).  `committed` is the step whose commit brings the deletion about;
    None means that nothing has been committed, so nothing may go.
    """

    complete: frozenset[int] = frozenset()
    torn: frozenset[int] = frozenset()
    milestones: frozenset[int] = frozenset()
    latest: int | None = None
    in_flight: frozenset[int] = frozenset()
    committed: int | None = None

    @property
    def standing(self) -> frozenset[int]:
        """Every step that has a directory."""
        return self.complete | self.torn

    @property
    def protected(self) -> frozenset[int]:
        """What stands whatever the limit: the target of `latest` and what is in flight."""
        return self.in_flight if self.latest is None else self.in_flight | {self.latest}


def newest(steps: Iterable[int], count: int) -> frozenset[int]:
    """The `count` highest steps, or all if there are fewer.

    >>> sorted(newest({9, 10, 100}, 2))
    [10, 100]
    >>> sorted(newest({9}, 2)), sorted(newest({9}, 0))
    ([9], [])
    """
    return frozenset(sorted(steps, reverse=True)[:count])


def must_keep(folder: Folder, keep_last_n: int) -> frozenset[int]:
    """The standing steps that no manager may delete.

    The most forgetful count is allowed for: torn directories, milestones,
    what is in flight and steps above the committed one may all use up the
    limit.  Only complete checkpoints are demanded, and what is protected.

    >>> five = frozenset({1, 2, 3, 4, 5})
    >>> sorted(must_keep(Folder(complete=five, latest=5, committed=5), keep_last_n=2))
    [4, 5]

    A limit of 0 keeps everything, and so does a folder without a commit:

    >>> sorted(must_keep(Folder(complete=five, latest=5, committed=5), keep_last_n=0))
    [1, 2, 3, 4, 5]
    >>> sorted(must_keep(Folder(complete=five), keep_last_n=2))
    [1, 2, 3, 4, 5]

    A torn directory and a milestone may use up the limit:

    >>> sorted(must_keep(Folder(complete=five, torn=frozenset({6}), latest=5, committed=5), keep_last_n=2))
    [5]
    >>> sorted(must_keep(Folder(complete=five, milestones=frozenset({1, 4}), latest=5, committed=5), keep_last_n=2))
    [1, 4, 5]

    After a rewind to 2 only the resume point is certain:

    >>> sorted(must_keep(Folder(complete=five, latest=2, committed=2), keep_last_n=2))
    [2]
    """
    if keep_last_n <= 0:
        return folder.standing
    if folder.committed is None:
        return folder.complete | folder.standing & folder.protected
    counted = newest(folder.standing | folder.in_flight, keep_last_n)
    recent = frozenset(step for step in counted if step <= folder.committed)
    return folder.complete & (recent | folder.milestones) | folder.standing & folder.protected


def may_keep(folder: Folder, keep_last_n: int) -> frozenset[int]:
    """The standing steps that may be left right after the commit; binding for complete ones only.

    >>> five = frozenset({1, 2, 3, 4, 5})
    >>> sorted(may_keep(Folder(complete=five, latest=5, committed=5), keep_last_n=2))
    [4, 5]

    Milestones come on top of the limit, torn directories below it don't count:

    >>> sorted(may_keep(Folder(complete=five, milestones=frozenset({1, 5}), latest=5, committed=5), keep_last_n=2))
    [1, 3, 4, 5]
    >>> sorted(may_keep(Folder(complete=five, torn=frozenset({0}), latest=5, committed=5), keep_last_n=2))
    [4, 5]

    What lies above the commit stays out of the count, in flight or left from before a rewind:

    >>> sorted(may_keep(Folder(complete=five, latest=3, committed=3), keep_last_n=2))
    [2, 3, 4, 5]
    >>> sorted(may_keep(Folder(five, frozenset({6}), latest=5, in_flight=frozenset({6}), committed=5), keep_last_n=1))
    [5, 6]
    """
    if keep_last_n <= 0 or folder.committed is None:
        return folder.standing
    above = frozenset(step for step in folder.standing if step > folder.committed)
    ordinary = folder.complete - folder.milestones - folder.in_flight - above
    return folder.standing & (newest(ordinary, keep_last_n) | folder.milestones | folder.protected | above)


def survivors(folder: Folder, keep_last_n: int) -> frozenset[int]:
    """At level strict, exactly the complete checkpoints that survive the commit.

    >>> folder = Folder(frozenset({1, 2, 3, 4}), torn=frozenset({5}), milestones=frozenset({1}), latest=4, committed=4)
    >>> sorted(survivors(folder, keep_last_n=2))
    [1, 3, 4]
    """
    return folder.complete & may_keep(folder, keep_last_n)


@dataclass(frozen=True)
class Room:
    """What something takes of a disk: files and directories, and what the files hold."""

    entries: int = 0
    size_bytes: int = 0

    def __str__(self) -> str:
        return f"{self.entries} files and directories, {self.size_bytes:,} bytes"


def may_stand_beside(torn: Collection[int], complete: Collection[int], beside: Room, one: Room) -> bool:
    """Whether a folder may look so however many saves died in it, one after another.

    `beside` is all that is no part of a complete checkpoint, torn directories
    included and the pointer not; `one` is the largest complete checkpoint.

    >>> one = Room(entries=5, size_bytes=1000)
    >>> may_stand_beside(torn={2, 8}, complete={4, 6}, beside=Room(9, 1900), one=one)
    True

    Two were being written, or too much stands there, or too many pieces of nothing:

    >>> may_stand_beside(torn={8, 9}, complete={4, 6}, beside=Room(9, 1900), one=one)
    False
    >>> may_stand_beside(torn=(), complete={4}, beside=Room(16, 3200), one=one)
    False
    >>> may_stand_beside(torn=(), complete={4}, beside=Room(40, 0), one=one)
    False

    A few small files beside three checkpoints are no heap:

    >>> may_stand_beside(torn=(), complete={4}, beside=Room(18, 3000), one=one)
    True
    """
    being_written = {step for step in torn if step > max(complete, default=-1)}
    has_room = beside.entries <= 3 * one.entries + 3 and beside.size_bytes <= 3 * one.size_bytes
    return len(being_written) <= 1 and len(set(torn) - being_written) <= 1 and has_room


def may_be_left(before: Collection[str], now: Collection[str], stages: int | None = None) -> bool:
    """Whether a deletion that began with the files `before` may be cut short at the files `now`.

    >>> whole = {".metadata", "__0_0.distcp", "train_state.pt", "metadata.json"}
    >>> may_be_left(whole, whole)
    True
    >>> may_be_left(whole, whole - {".metadata"}), may_be_left(whole, set())
    (True, True)
    >>> may_be_left(whole, whole - {"__0_0.distcp"})
    False
    """
    return set(now) == set(before) or not is_complete(now, stages)
