"""Calls that fail: each operation of a save, with each errno that it may have.

Whatever the errno: an error has to be raised, once, or the step has to be there,
whole; nothing that was acknowledged may be lost; and when the cause is gone the
next save works.  Which error is raised is not judged.  A save that
failed must not come back, but for one case: where the folder became read-only
in the middle of it, no name can be changed back, and the save may stand, whole.
"""

import errno
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from forge_conformance.deaths.drills import Injection, PreparedSituation, Tried
from forge_conformance.runs.folder import Folder
from forge_conformance.runs.landing import GoingOn, word_of
from forge_conformance.runs.ledger import next_saved
from forge_conformance.runs.process import Died, Hung, ManagerFault, Raised
from forge_conformance.runs.team import TeamLife
from forge_conformance.runs.verdict import Verdict
from forge_conformance.watch.recorder import Control, Operation
from forge_conformance.watch.trace import Disk
from forge_conformance.worker.system_calls import CALLS, WRITES

_MAKES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
MAY_FAIL: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(WRITES, (errno.ENOSPC, errno.EDQUOT, errno.EIO)),  # write(2)
    "openat": _MAKES,  # open(2); the first two only for a file that is made
    "mkdirat": _MAKES,  # mkdir(2)
    "symlinkat": (*_MAKES, errno.EIO),  # symlink(2)
    "linkat": (*_MAKES, errno.EIO),  # link(2)
    "renameat2": (*_MAKES, errno.EIO),  # rename(2); EIO by IEEE Std 1003.1, rename()
    "unlinkat": (errno.EIO, errno.EROFS),  # unlink(2); EROFS also rmdir(2)
    "fsync": (errno.EIO, errno.ENOSPC, errno.EDQUOT),  # fsync(2); the last two for files on network file systems
    "fdatasync": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "ftruncate": (errno.EIO,),  # truncate(2)
    "truncate": (errno.EIO, errno.EROFS),
    "fallocate": (errno.EIO, errno.ENOSPC),  # fallocate(2)
}
"""Which call can return which errno, by the manual page named beside it (Linux man-pages 6, section 2)."""
NAMES: Mapping[str, int] = {errno.errorcode[number]: number for numbers in MAY_FAIL.values() for number in numbers}
"""The errnos under their names."""


def may_fail(operation: Operation, error: int, folder: Path) -> bool:
    """Whether this call may return this errno here and now."""
    if error not in MAY_FAIL.get(operation.name, ()):
        return False
    path = folder / operation.paths[0]
    if error in (errno.ENOSPC, errno.EDQUOT):
        if operation.name == "openat":
            return not os.path.lexists(path)
        if operation.name in ("fsync", "fdatasync"):
            return path.is_file()
    return True


def goes_on_failing(operation: Operation, error: int, folder: Path) -> bool:
    """Whether a call after the first failure has the same cause: no room for anybody, or nothing may change any more.

    A bad block (EIO) is met once.
    """
    if error in (errno.ENOSPC, errno.EDQUOT):
        return CALLS[operation.name].takes_room and may_fail(operation, error, folder)
    return error == errno.EROFS and may_fail(operation, error, folder)


def fail(prepared: PreparedSituation, number: int, error: int) -> Tried:
    """An operation fails, and what has the same cause after it; then the cause is gone, and the run goes on."""
    control, folder = Control(), prepared.team.here
    with prepared.about_to_save([control]) as life:
        injection = Injection(
            control,
            number,
            lambda operation: error if may_fail(operation, error, folder) else 0,
            lambda operation: error if injection.failed and goes_on_failing(operation, error, folder) else 0,
        )
        return try_failure(prepared, life, injection.stop_failing, lambda: _failure(prepared, injection, error))


def _failure(prepared: PreparedSituation, injection: Injection, error: int) -> "Failure | None":
    if injection.failed is None:
        return None
    happened = f"{errno.errorcode[error]} at operation {injection.number}, {injection.failed}"
    is_clearing, done = _is_clearing(prepared, injection.failed), tuple(injection.done)
    return Failure(happened, done, injection.number, is_clearing, error == errno.EROFS)


def _is_clearing(prepared: PreparedSituation, operation: Operation) -> bool:
    """Whether a directory or a checkpoint was to be deleted; a single file beside them is the commit's own."""
    path, layout = operation.paths[0], prepared.team.server.implementation.layout
    is_of_one = "/" in path or re.fullmatch(layout.checkpoint, path) is not None or (prepared.team.here / path).is_dir()
    return operation.name == "unlinkat" and is_of_one


@dataclass(frozen=True)
class Failure:
    """What failed."""

    happened: str
    operations: tuple[str, ...] = ()
    at: int = 0
    """The number of the operation that failed first."""
    is_clearing: bool = False
    """Whether it was a deletion of what is no longer wanted."""
    is_final: bool = False
    """Whether nothing in the folder can be changed any more, back included."""


def try_failure(
    prepared: PreparedSituation, life: TeamLife, stop_failing: Callable[[], None], failed: Callable[[], Failure | None]
) -> Tried:
    """A save under a failure, the cause gone, the next save; and what each of them leaves."""
    raised: list[str] = []
    clause = "commit.failed-save" if prepared.drill.mode == "sync" else "commit.failed-flush"
    for call in (partial(prepared.save, life), life.wait):
        try:
            call()
        except Raised as error:
            raised.append(str(error))
        except (Died, Hung) as fault:
            verdict = Verdict(word_of(fault), clause, str(fault), "an error, and a process that goes on")
            return _tried(failed(), verdict)
    stop_failing()
    failure = failed()
    if failure is None:
        return Tried(None)
    left, then = Disk.read(prepared.team.here), life.ledger.copy()
    if failure.is_final:
        then.marks = [mark for mark in then.marks if mark.word != "raised"]
    if len(raised) > 1:
        return _tried(failure, Verdict("repeated", clause, "; then ".join(raised), "one error"), left)
    later = _saves_again(prepared, life, resumes=prepared.is_new(left))
    life.kill()
    if later.trouble:
        said = (f"{raised[0]}; then, with the cause gone, " if raised else "") + later.trouble
        return _tried(
            failure,
            Verdict("hung" if later.word == "hung" else "repeated", clause, said, "the next save to work"),
            left,
        )
    prepared.team.rebuild(left)
    landing, _ = prepared.team.resume(prepared.settings, then, goes_on=False)
    return _tried(failure, _by_clause(prepared.verdict(then, landing), raised, clause, failure), left)


def _tried(failure: Failure | None, verdict: Verdict, left: Disk | None = None) -> Tried:
    if failure is None:
        return Tried(verdict, "nothing had failed yet", left=left)
    return Tried(verdict, failure.happened, failure.operations, failure.at, left)


def _by_clause(verdict: Verdict, raised: list[str], clause: str, failure: Failure) -> Verdict:
    """The same, by the clause about failures."""
    if verdict.is_good:
        return verdict
    if not raised:
        return Verdict("swallowed", clause, f"no error, and then {verdict.seen}", f"an error, or {verdict.expected}")
    seen = f"{raised[0]}; then {verdict.seen}"
    if verdict.word == "phantom" and failure.is_clearing:
        return Verdict("hard", "retention.failure-is-soft", seen, "a warning, and a save that succeeds")
    return Verdict(verdict.word, clause, seen, verdict.expected)


def _saves_again(prepared: PreparedSituation, life: TeamLife, resumes: bool) -> GoingOn:
    """The next save of the same process, and a resume after it; or just a look at what stands in the folder then."""
    step = next_saved(life.step)
    try:
        life.train_to(step)
        life.save()
        life.wait()
    except ManagerFault as fault:
        return GoingOn(str(fault), "hung" if isinstance(fault, Hung) else "stuck")
    life.kill()
    folder = Folder(prepared.team.here, prepared.team.server.implementation.layout)
    if step not in folder.complete() or folder.latest_or_newest() != step:
        return GoingOn(f"step {step} was saved, and is not committed: {folder}")
    return GoingOn() if not resumes else prepared.team.comes_back(prepared.settings, life.ledger, step)
