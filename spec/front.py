"""What stands before the chapters: the scope, how conformance is claimed, what a verdict means, and the notation."""

from collections.abc import Mapping

SCOPE = """
This specification says what a checkpoint manager for training must do, so that a run which is killed at any instant
goes on as if it had never stopped. It is about what can be observed from outside: the folder, the values that a load
restores, what calls return, raise and warn of, and when.

It covers one process and several ranks, synchronous and asynchronous saves, deletion of old checkpoints, resumes after
kills, interrupts and losses of power, and damaged or hostile files.

It does not cover speed, the format of shards, copies in remote storage, checkpoints that live in memory only, and the
decision to make a final save, which is the caller's.
"""

CLAIM = """
A manager claims a level and a set of capabilities. It is then judged by the clauses of that level and the levels below
it which need no other capability.

It conforms to its claim when each of these clauses has the verdict *pass*. A claim names the release of the manager,
the level, the capabilities, and the version of this suite. It lists each clause with the verdict *expected-fail* or
*unreached*, with the reason: the manager does not conform to the first, and nobody knows about the second.

`forge-conformance run --impl your.package.checkpoint` judges a manager and exits with 0 when no clause fails that was
not listed. `forge-conformance explain SLUG` prints all that is known of one clause.
"""

VERDICTS: Mapping[str, str] = {
    "pass": "the situation arose, as often as the report says, and the clause held each time",
    "fail": "the clause did not hold; the report says what was expected, what was observed, and what happened before",
    "expected-fail": "the clause did not hold, and a list of known failures names it with a reason",
    "unreached": "the situation never arose, for the reason that the report gives; never counted as a pass",
    "unclaimed": "the clause needs a capability that the manager does not claim; never counted as a pass",
    "error": "the suite itself failed, and nothing is known about the clause",
}
"""Every verdict on a clause, each with what it means."""

NOTATION = """
Each clause completes the sentence *A checkpoint manager …*. It begins with its number and its slug; in parentheses
follow its level and the capabilities that it needs. The slug never changes. The number is the place in this document,
and may change.

- *Why* says what happens to a run where the clause does not hold.
- *Judged when* names the situation that has to arise before a verdict counts.
- *Rests on* names the clauses without which this one can't hold either.
- *Evidence* lists what stands behind the clause: its predicates, the vectors about it, its invariant in the model of
  the whole manager, the tests that judge it, the mutants that break it, and the public issues that the mutants cite.
  It is computed from the files of the checkout.

Names in code font are those of the shared Python API (`save`, `wait`, `load`, `keep_last_n`). They stand for what
takes their place in another manager. `step_N` and `ppI` stand for the directories of step N and of pipeline stage I.

*Values and predicates*, at the end of each chapter, are Python functions over plain data. Their examples are run as
tests.
"""
