"""What a training-checkpoint manager must do, as text that can be executed.

A long training run is killed many times: by the scheduler, by a full disk, by a
node that fails.  Its checkpoint manager is what turns each kill into a pause.
This specification says what that takes, clause by clause, together with small
functions that compute the right answer from plain data.  It knows no torch, no
file system and no implementation.

Read it in the order of a checkpoint's life.  `schedule` says when one is due.
`layout` says what it looks like on disk, and from what a stranger can tell that
it is complete.  `commit` says when it counts: written, complete, and only then
named by `latest`.  `retention` says what may go once it counts.  `resume` says
how a run comes back to it.  `freeze` and `trust` say which loads are refused
before they can do harm.  `durable` says what must hold when the power fails.

`model` puts commit, retention and resume together: the whole manager as one
table of what it does and what may happen to it.  `invariants` says what has to
hold in each of its states, `variants` has managers that are wrong in one row,
and `explore` visits everything that can happen, with `machine` to be fast at it;
`program` turns a trace of it into what a real manager has to go through, and
`paths` follows what was seen of a real one through it.
`bounds` is for looking at a real one: given the calls of one run, what its folder
may look like after each of them.  `disk` says which disks a kill or a loss of
power may leave, given what was done to a folder.  `clauses` defines the form of
a clause, the levels and the capabilities; `book` renders the chapters as the
document BOOK.md, and `vectors` as questions with their answers, of which
`corners` has those that were answered by hand.
"""

from collections.abc import Mapping
from types import MappingProxyType, ModuleType

from forge_spec import commit, durable, freeze, layout, resume, retention, schedule, trust
from forge_spec.clauses import CAPABILITIES, Clause, Level

CHAPTERS: tuple[ModuleType, ...] = (schedule, layout, commit, retention, resume, freeze, trust, durable)
"""The chapters in reading order."""

CLAUSES: tuple[Clause, ...] = tuple(clause for chapter in CHAPTERS for clause in chapter.CLAUSES)
"""Every clause, in reading order."""

BY_SLUG: Mapping[str, Clause] = MappingProxyType({clause.slug: clause for clause in CLAUSES})
"""Every clause under its slug."""

__all__ = [
    "BY_SLUG",
    "CAPABILITIES",
    "CHAPTERS",
    "CLAUSES",
    "Clause",
    "Level",
    "commit",
    "durable",
    "freeze",
    "layout",
    "resume",
    "retention",
    "schedule",
    "trust",
]
