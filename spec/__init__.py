"""What a checkpoint manager for training must do, as text that can be executed.

A long training run is killed many times: by the scheduler, by a full disk, by a node that fails. Its checkpoint
manager decides whether a kill costs a pause or the run. This specification says what that takes, clause by clause,
with small functions that compute the right answer from plain data.

The chapters follow a checkpoint from the making of the manager to the resume. `schedule` says which steps are saved.
`place` says where the folder is, and what a manager may change in the process that trains. `writer` says which process
may save into the folder. `layout` says what a checkpoint looks like on disk. `commit` says when a save counts.
`interrupt` says what SIGINT may do to it, and `durable` what a loss of power may do. `retention` says which checkpoints
are deleted. `resume` says on which step a run goes on, and with which state. `freeze` and `trust` say which loads are
refused. `ephemeral` is a second design, in which hooks of the training loop save and remove. `script` is about a
whole training job, seen from outside.

Beside the chapters:

- `clauses` has the form of a clause, the levels and the capabilities; `terms` the words; `front` the scope, the
  verdicts and the notation.
- `disk` says which disks a kill or a loss of power may leave; `bounds` says what a folder may hold after each call.
- The package `model` has the whole manager as one table, and a search of everything that can happen to it.
- The package `questions` has what managers can be asked in plain data; `vectors` renders it as JSON.
- `digests` has a digest for each clause, so that a report can say what it judged.
- `evidence` computes what stands behind a clause; `book` renders all of this as BOOK.md.

Nothing here imports torch, a manager or the suite: the standard library is enough.
"""

from collections.abc import Mapping
from types import MappingProxyType, ModuleType

from forge_spec import (
    commit,
    durable,
    ephemeral,
    freeze,
    interrupt,
    layout,
    place,
    resume,
    retention,
    schedule,
    script,
    trust,
    writer,
)
from forge_spec.clauses import CAPABILITIES, Clause, Level

CHAPTERS: tuple[ModuleType, ...] = (
    schedule,
    place,
    writer,
    layout,
    commit,
    interrupt,
    durable,
    retention,
    resume,
    freeze,
    trust,
    ephemeral,
    script,
)
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
    "ephemeral",
    "freeze",
    "interrupt",
    "layout",
    "place",
    "resume",
    "retention",
    "schedule",
    "script",
    "trust",
    "writer",
]
