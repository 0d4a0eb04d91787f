"""Which checkpoints are deleted, and when: the newest few stay, milestones stay, and the resume point always stays.

Two sets bound every deletion. *Must-keep* is what no manager may ever delete. *May-keep* is the most that may be left
right after a commit. Must-keep is a subset of may-keep. A manager at level core may leave anything between the two,
because it may let milestones and torn directories use up the limit. At level strict exactly may-keep is left of the
complete checkpoints.

Leftovers are torn directories, and what killed saves leave under other names. A manager may delete them after a commit
or leave them, as long as they cost no complete checkpoint its place and do not pile up. It must not delete what is in
flight, what `latest` names, or anything when the limit keeps all.

Invariants: at every instant of a deletion, and after a kill at any of them, the resume point is there, complete;
nothing is deleted before its replacement is committed; and checkpoints are ordered by number, never by name or time.
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
        sentence="never deletes anything in must-keep. Must-keep is: the complete checkpoints among the newest "
        "`keep_last_n` steps, unless they are above the step committed; every complete milestone; the target of "
        "`latest`; and everything in flight",
        why="Each step too many that is deleted is training that is lost for good. If it is the resume point, the run "
        "starts over.",
        situation="more checkpoints were committed than the limit keeps, and something was deleted",
        capabilities=_RETENTION,
        rests_on=("commit.sync", "commit.no-later-than"),
        predicates=("must_keep",),
    ),
    Clause(
        slug="retention.drops",
        level=Level.CORE,
        sentence="leaves, right after a commit, no complete checkpoint of this run outside may-keep. May-keep is: the "
        "newest `keep_last_n` complete ordinary checkpoints; milestones; the target of `latest`; everything in "
        "flight; and steps above the one committed",
        why="Checkpoints that should be gone fill the disk, and a full disk ends the run at a later save.",
        situation="more checkpoints were committed than the limit keeps",
        capabilities=_RETENTION,
        predicates=("may_keep",),
    ),
    Clause(
        slug="retention.off",
        level=Level.CORE,
        sentence="deletes nothing when `keep_last_n` is 0 or negative",
        why="Zero means *keep all*. Read as *keep none*, it empties the folder at the first commit.",
        situation="several checkpoints were committed with a limit of 0 and with a negative limit",
        capabilities=_RETENTION,
        rests_on=("retention.keeps",),
        predicates=("must_keep",),
    ),
    Clause(
        slug="retention.numeric",
        level=Level.CORE,
        sentence="orders checkpoints by their step as a number, whatever their names, times and inodes suggest",
        why="By name, step 10 is older than step 9. By time, a copy or a restored backup reverses the order. In both "
        "cases the newest checkpoint is deleted.",
        situation="the folder held steps with different numbers of digits, and times against the order of steps, when "
        "something was deleted",
        capabilities=_RETENTION,
        rests_on=("retention.keeps", "retention.drops"),
        predicates=("newest",),
    ),
    Clause(
        slug="retention.latest",
        level=Level.CORE,
        sentence="keeps the target of `latest` complete under any limit and at every instant of a deletion",
        why="It is the one checkpoint that the next resume asks for. Without it a killed run has nothing to resume "
        "from.",
        situation="a deletion was watched, or cut short by a kill, while `latest` had a target",
        capabilities=frozenset({"retention", "pointer"}),
        rests_on=("retention.keeps",),
        predicates=("must_keep",),
    ),
    Clause(
        slug="retention.in-flight",
        level=Level.CORE,
        sentence="keeps a checkpoint that is in flight from its dispatch until its own commit",
        why="The flush would write into a directory that is gone. The save fails, or succeeds with only the files "
        "that came after the deletion, which is worse.",
        situation="a commit deleted something while a later save was in flight",
        capabilities=frozenset({"retention", "async"}),
        rests_on=("retention.keeps",),
        predicates=("must_keep",),
    ),
    Clause(
        slug="retention.restart",
        level=Level.STRICT,
        sentence="counts the checkpoints of earlier processes in the folder like its own",
        why="A job that is requeued every few hours would start its count anew each time, and the disk fills although "
        "a limit is set.",
        situation="a process that started on a folder with earlier checkpoints committed beyond the limit",
        capabilities=_RETENTION,
        rests_on=("retention.drops",),
        predicates=("may_keep",),
    ),
    Clause(
        slug="retention.exempt-is-free",
        level=Level.STRICT,
        sentence="does not count milestones against `keep_last_n`: right after a commit, exactly may-keep is left of "
        "the complete checkpoints",
        why="A dense window fills the limit with milestones, and the run is left without a recent ordinary checkpoint "
        "to go back to.",
        situation="milestones and more ordinary checkpoints than the limit keeps were in the folder together after a "
        "commit",
        capabilities=frozenset({"retention", "window"}),
        rests_on=("retention.keeps", "retention.drops", "retention.numeric"),
        predicates=("survivors",),
    ),
    Clause(
        slug="retention.torn-is-free",
        level=Level.STRICT,
        sentence="does not count torn directories against `keep_last_n`, so that none of them costs a complete "
        "checkpoint its place",
        why="After a few kills the newest directories are all torn. If they count, they push out every checkpoint "
        "that a resume could use.",
        situation="torn directories were among the newest when a commit deleted something",
        capabilities=_RETENTION,
        rests_on=("retention.keeps", "retention.drops", "retention.numeric"),
        predicates=("survivors",),
    ),
    Clause(
        slug="retention.future",
        level=Level.STRICT,
        sentence="neither counts nor deletes, after a rewind, steps above the one just committed",
        why="If they count, the old higher steps leave no room for the new ones, and each new save is deleted as the "
        "oldest. If they are deleted, a rewind made by mistake can't be undone.",
        situation="a commit happened below more steps than the limit keeps",
        capabilities=_RETENTION,
        rests_on=("retention.keeps", "retention.drops", "retention.numeric"),
        predicates=("survivors",),
    ),
    Clause(
        slug="retention.class-is-remembered",
        level=Level.STRICT,
        sentence="keeps what was saved as a milestone when a later process is configured with another window or none",
        why="The first commit after a change of the configuration would delete, all at once, the early checkpoints "
        "that the window was set to keep.",
        situation="a process without the window that an earlier process had committed beyond its limit",
        capabilities=frozenset({"retention", "window"}),
        rests_on=("retention.keeps",),
        predicates=("must_keep",),
    ),
    Clause(
        slug="retention.unclassified",
        level=Level.STRICT,
        sentence="keeps a complete checkpoint if it can't tell whether it is a milestone, because its `metadata.json` "
        "can't be read or is not what was written. It does not count that checkpoint, and warns, naming it",
        why="One flipped bit would turn a milestone into an ordinary checkpoint, which the next commit deletes. What "
        "nobody can classify may be the one that was to be kept for good.",
        situation="a process without the window committed beyond its limit while the metadata of a milestone was "
        "damaged, or replaced by valid JSON that does not classify it",
        capabilities=frozenset({"retention", "window", "layout"}),
        rests_on=("retention.class-is-remembered",),
        predicates=("survivors",),
    ),
    Clause(
        slug="retention.after-commit",
        level=Level.CORE,
        sentence="deletes nothing before the checkpoint that replaces it is committed",
        why="If the deletion comes first, a kill in between leaves one checkpoint fewer than the limit promises: none "
        "at all with a limit of 1.",
        situation="a save that was to push out an older checkpoint was watched or killed before its commit",
        capabilities=_RETENTION,
        rests_on=("retention.keeps", "retention.drops"),
        predicates=("must_keep",),
    ),
    Clause(
        slug="retention.invalidate-first",
        level=Level.STRICT,
        sentence="makes a checkpoint incomplete before it removes anything else of it, so that a deletion that is cut "
        "short never leaves one that looks complete",
        why="A marker that outlives its shards makes the half-deleted step a candidate when a resume falls back. The "
        "resume crashes, or loads what is left.",
        situation="a deletion was watched at each of its file operations, or cut short at one",
        capabilities=_RETENTION,
        rests_on=("retention.drops",),
        predicates=("may_be_left",),
    ),
    Clause(
        slug="retention.failure-is-soft",
        level=Level.STRICT,
        sentence="lets the save succeed when a directory can't be deleted, or can't be classified because its "
        "metadata can't be read or a strategy raises. It logs which directory, leaves it there, and tries again at "
        "the next commit",
        why="A stuck file handle on a shared file system would end a run whose checkpoint is safe on disk, or its "
        "directory would stay for good. A save that is reported as failed while `latest` names it misleads its caller.",
        situation="a deletion failed, and could have succeeded at a later commit; an old checkpoint could not be "
        "classified as a milestone or an ordinary one",
        capabilities=_RETENTION,
        rests_on=("retention.drops",),
    ),
    Clause(
        slug="retention.debris",
        level=Level.STRICT,
        sentence="lets no leftovers pile up, however many saves in a row are killed. At most one directory is torn "
        "from writing and one from deleting. All that is beside the complete checkpoints takes no more room than "
        "three of them. What it can't delete does not count if it warns, naming it",
        why="A job that is preempted in each of its saves leaves a hidden gigabyte every time, and the disk is full "
        "although only two checkpoints are kept.",
        situation="a run was killed in save after save, and went on after each, over one folder",
        rests_on=("resume.lands",),
        predicates=("may_stand_beside",),
    ),
    Clause(
        slug="retention.one-deleter",
        level=Level.CORE,
        sentence="deletes from one rank only, and at no time lets any rank see a resume point that is partly deleted",
        why="Ranks that delete the same directory fail on each other's missing files. A rank that resumes meanwhile "
        "loads a step that the others no longer find.",
        situation="a commit of several ranks deleted something",
        capabilities=frozenset({"retention", "distributed"}),
        rests_on=("retention.drops",),
    ),
)

# The titles of the sections, each under its first clause.
SECTIONS: dict[str, str] = {
    "retention.keeps": "Which checkpoints stay, and which are deleted",
    "retention.exempt-is-free": "What does not count",
    "retention.after-commit": "How checkpoints are deleted",
}


@dataclass(frozen=True)
class Folder:
    """What is in a folder when a deletion is due, and what is known about it.

    A step in flight need not have a directory: a flush may write under another name. `milestones` are the steps that
    were saved as such. When the window has changed since, level core requires only those of the present window
    (`retention.class-is-remembered`). `unclassified` are complete steps that do not say whether they are milestones
    (`retention.unclassified`, at level strict). `committed` is the step whose commit causes the deletion; None means
    that nothing has been committed, so that nothing may be deleted.
    """

    complete: frozenset[int] = frozenset()
    torn: frozenset[int] = frozenset()
    milestones: frozenset[int] = frozenset()
    latest: int | None = None
    in_flight: frozenset[int] = frozenset()
    committed: int | None = None
    unclassified: frozenset[int] = frozenset()

    @property
    def standing(self) -> frozenset[int]:
        """The steps that have a directory."""
        return self.complete | self.torn

    @property
    def protected(self) -> frozenset[int]:
        """The steps that stay whatever the limit: the target of `latest` and what is in flight."""
        return self.in_flight if self.latest is None else self.in_flight | {self.latest}


def newest(steps: Iterable[int], count: int) -> frozenset[int]:
    """Return the `count` highest steps, or all if there are fewer.

    >>> sorted(newest({9, 10, 100}, 2))
    [10, 100]
    >>> sorted(newest({9}, 2)), sorted(newest({9}, 0))
    ([9], [])
    """
    return frozenset(sorted(steps, reverse=True)[:count])


def must_keep(folder: Folder, keep_last_n: int) -> frozenset[int]:
    """Return the steps in the folder that no manager may delete.

    This allows for the least exact way to count: torn directories, milestones, what is in flight and steps above the
    committed one may all use up the limit. Only complete checkpoints are required, and what is protected.

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

    After a rewind to 2 only the resume point is required:

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
    """Return the steps in the folder that may be left right after the commit; this binds complete ones only.

    >>> five = frozenset({1, 2, 3, 4, 5})
    >>> sorted(may_keep(Folder(complete=five, latest=5, committed=5), keep_last_n=2))
    [4, 5]

    Milestones are kept beside the limit, and torn directories below it do not count:

    >>> sorted(may_keep(Folder(complete=five, milestones=frozenset({1, 5}), latest=5, committed=5), keep_last_n=2))
    [1, 3, 4, 5]
    >>> sorted(may_keep(Folder(complete=five, torn=frozenset({0}), latest=5, committed=5), keep_last_n=2))
    [4, 5]

    Steps above the commit do not count, whether they are in flight or left from before a rewind:

    >>> sorted(may_keep(Folder(complete=five, latest=3, committed=3), keep_last_n=2))
    [2, 3, 4, 5]
    >>> sorted(may_keep(Folder(five, frozenset({6}), latest=5, in_flight=frozenset({6}), committed=5), keep_last_n=1))
    [5, 6]

    Nor do steps that can't be told from a milestone:

    >>> sorted(may_keep(Folder(complete=five, unclassified=frozenset({2}), latest=5, committed=5), keep_last_n=1))
    [2, 5]
    """
    if keep_last_n <= 0 or folder.committed is None:
        return folder.standing
    above = frozenset(step for step in folder.standing if step > folder.committed)
    exempt = folder.milestones | folder.unclassified
    ordinary = folder.complete - exempt - folder.in_flight - above
    return folder.standing & (newest(ordinary, keep_last_n) | exempt | folder.protected | above)


def survivors(folder: Folder, keep_last_n: int) -> frozenset[int]:
    """Return the complete checkpoints that are left after the commit at level strict: exactly these.

    >>> folder = Folder(frozenset({1, 2, 3, 4}), torn=frozenset({5}), milestones=frozenset({1}), latest=4, committed=4)
    >>> sorted(survivors(folder, keep_last_n=2))
    [1, 3, 4]
    """
    return folder.complete & may_keep(folder, keep_last_n)


@dataclass(frozen=True)
class Room:
    """What something takes of a disk: how many files and directories, and how many bytes."""

    entries: int = 0
    size_bytes: int = 0

    def __str__(self) -> str:
        return f"{self.entries} files and directories, {self.size_bytes:,} bytes"


def may_stand_beside(torn: Collection[int], complete: Collection[int], beside: Room, one: Room) -> bool:
    """Return whether a folder may hold this, however many saves in a row were killed in it.

    `beside` is all that is not part of a complete checkpoint, with torn directories and without the pointer. `one` is
    the largest complete checkpoint.

    >>> one = Room(entries=5, size_bytes=1000)
    >>> may_stand_beside(torn={2, 8}, complete={4, 6}, beside=Room(9, 1900), one=one)
    True

    Two were being written, or the leftovers have too many bytes, or too many empty files:

    >>> may_stand_beside(torn={8, 9}, complete={4, 6}, beside=Room(9, 1900), one=one)
    False
    >>> may_stand_beside(torn=(), complete={4}, beside=Room(16, 3200), one=one)
    False
    >>> may_stand_beside(torn=(), complete={4}, beside=Room(40, 0), one=one)
    False

    A few small files beside the room of three checkpoints are allowed:

    >>> may_stand_beside(torn=(), complete={4}, beside=Room(18, 3000), one=one)
    True
    """
    being_written = {step for step in torn if step > max(complete, default=-1)}
    has_room = beside.entries <= 3 * one.entries + 3 and beside.size_bytes <= 3 * one.size_bytes
    return len(being_written) <= 1 and len(set(torn) - being_written) <= 1 and has_room


def may_be_left(before: Collection[str], now: Collection[str], stages: int | None = None) -> bool:
    """Return whether a deletion that began with the files `before` may be cut short at the files `now`.

    >>> whole = {".metadata", "__0_0.distcp", "train_state.pt", "metadata.json"}
    >>> may_be_left(whole, whole)
    True
    >>> may_be_left(whole, whole - {".metadata"}), may_be_left(whole, set())
    (True, True)
    >>> may_be_left(whole, whole - {"__0_0.distcp"})
    False
    """
    return set(now) == set(before) or not is_complete(now, stages)
