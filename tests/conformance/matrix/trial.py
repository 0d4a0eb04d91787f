"""One mutant, judged by the tests that its clauses select.

The tests whose first clause is one of the mutant's all run.  Those that judge
it on the way run after them, the most specific first, until the mutant's own
clause has failed.  Once it has failed by a hang nothing more is tried: each
would take as long again.  A test goes on after an assertion has failed, so that
those behind it are seen to fail as well; its verdict is the first.

Each trial is a process that is forked from one with everything imported, and
so is the mutant's server: what a mutant changes in the modules of its base is
gone with it, and neither pytest nor torch is imported again.
"""

import contextlib
import importlib
import io
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pytest

from forge_conformance.judging.judge import CannotJudge
from forge_conformance.judging.verdicts import Finding
from forge_conformance.matrix.mutants import Mutant
from forge_conformance.plugin import SUITE_ARGUMENTS, WARM_SERVER, Findings, declared_by
from forge_conformance.runs.server import Server
from forge_conformance.runs.workplace import first_contact

_SLOW_TO_IMPORT = ("test_agreement", "test_durable")
"""Tests that need what is slow to import: it is then paid for once, and not in each trial."""
_LIMIT_S = 1200
"""How long a trial may take: many times what the longest does, on a machine that does other things as well."""
T = TypeVar("T")


@dataclass(frozen=True)
class Trial:
    """What the tests found out about a mutant."""

    mutant: Mutant
    findings: tuple[Finding, ...] = ()
    hung: frozenset[str] = frozenset()
    """Tests in which a call did not return."""
    errors: tuple[str, ...] = ()
    """Why nothing could be found out, or not all."""
    cpu_s: float = 0
    wall_s: float = 0


class TrialRunner:
    """A place for one trial after the other, with a warm server of its own; `close` ends that."""

    def __init__(self, base: str, until_killed: bool = False) -> None:
        """`until_killed`: a mutant of one clause is tried no further once that clause has failed."""
        self._until_killed = until_killed
        for chapter in _SLOW_TO_IMPORT:
            importlib.import_module(f"forge_conformance.{chapter}")
        self._host = Server(base, None)
        modes = self._host.implementation.modes
        self._host.rehearse(modes)
        self._host.rehearse(modes[:1], with_ranks=True)

    def judge(self, mutant: Mutant) -> Trial:
        """Try the mutant in a process of its own."""
        begun = time.perf_counter()
        try:
            trial = _in_a_fork(lambda: _tried(self._host, mutant, self._until_killed))
        except ChildProcessError as error:
            trial = Trial(mutant, errors=(str(error),))
        return replace(trial, wall_s=time.perf_counter() - begun)

    def close(self) -> None:
        """Ends the server."""
        self._host.close()


def _in_a_fork(work: Callable[[], T]) -> T:
    """What `work` returns in a forked process; `ChildProcessError` if that comes to nothing."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        signal.alarm(_LIMIT_S)
        try:
            outcome: Any = work()
        except BaseException:
            outcome = ChildProcessError(f"the trial came to nothing:\n{traceback.format_exc()}")
        with open(writer, "wb") as out:
            pickle.dump(outcome, out)
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as said:
        content = said.read()
    _, status = os.waitpid(pid, 0)
    if not content:
        raise ChildProcessError(f"the trial ended with status {os.waitstatus_to_exitcode(status)} and said nothing")
    outcome = pickle.loads(content)
    if isinstance(outcome, ChildProcessError):
        raise outcome
    return outcome  # type: ignore[no-any-return]  # what `work` returned


def _tried(host: Server, mutant: Mutant, until_killed: bool) -> Trial:
    begun_s = time.process_time()
    try:
        server = host.fork(str(mutant.path))
    except CannotJudge as reason:
        return Trial(mutant, errors=(f"it does not load. {reason}",))
    found = _Found(mutant, server, until_killed)
    try:
        first_contact(server)
        output = _run(mutant, found)
    except CannotJudge as reason:
        return Trial(mutant, errors=(str(reason),))
    finally:
        server.close()
    errors = (*found.lost, *output)
    if not found.findings and not errors:
        errors = ("no test judges its clauses at its level and with its ranks",)
    own_s = time.process_time() - begun_s
    return Trial(mutant, tuple(found.findings), frozenset(found.hung), errors, own_s + server.cpu_s)


def _run(mutant: Mutant, found: "_Found") -> Sequence[str]:
    arguments = [
        *SUITE_ARGUMENTS,
        "--forge-impl",
        str(mutant.path),
        "--forge-level",
        str(mutant.level),
        "--forge-ranks",
        mutant.ranks,
    ]
    arguments += ["--forge-no-shrinking", "--forge-go-on"]
    arguments += [] if mutant.by_all_tests else ["--forge-clauses", ",".join(mutant.clauses)]
    arguments += ["--assert=plain"]  # verdicts come from no assertion, and to rewrite them takes longer than many tests
    output = io.StringIO()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, contextlib.redirect_stdout(output):
        status = pytest.main([*arguments, "--basetemp", folder], plugins=[found])
    good = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
    if status in good or (status == pytest.ExitCode.INTERRUPTED and found.is_enough):
        return ()
    return (f"pytest ended with status {int(status)}:\n{output.getvalue()[-3000:]}",)


class _Found(Findings):
    """A pytest plugin: orders the tests, ends them when there is no more to find out, and gathers what they found."""

    def __init__(self, mutant: Mutant, server: Server, until_killed: bool) -> None:
        super().__init__()
        self._goes_on = mutant.to_the_end or not until_killed or len(mutant.clauses) > 1
        self.hung: set[str] = set()
        self.is_enough = False
        self._mutant = mutant
        self._server = server

    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[WARM_SERVER] = self._server

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self._mutant.is_right:
            items[:] = list(filter(self._is_about, items)) or items  # some clauses come first in no test
        items.sort(key=lambda item: (not self._is_about(item), _breadth(item)))

    def _is_about(self, item: pytest.Item) -> bool:
        declared = declared_by(item)
        return declared is not None and declared.clauses[0] in self._mutant.clauses

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        outcome = yield
        own = self._mutant.own.slug
        failed = [one.case for one in self.findings if one.failure is not None and one.failure["clause"] == own]
        is_slow = not self.hung.isdisjoint(failed)
        goes_on = self._goes_on and nextitem is not None and (self._mutant.to_the_end or self._is_about(nextitem))
        if failed and nextitem is not None and (is_slow or not goes_on):
            self.is_enough = True
            item.session.shouldstop = "its own clause has failed"
        return outcome

    def gathers(self, values: dict[str, Any]) -> None:
        super().gathers(values)
        self.hung |= {values["case"]} if values.get("hung") else set()


def _breadth(item: pytest.Item) -> int:
    """How many clauses a test judges."""
    declared = declared_by(item)
    return len(declared.clauses) if declared is not None else sys.maxsize
