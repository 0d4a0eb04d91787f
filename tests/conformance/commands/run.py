"""`forge-conformance run`: judges a manager by every clause that it claims."""

import argparse
import contextlib
import io
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from forge_conformance.adapter import Traits
from forge_conformance.commands import options as shared
from forge_conformance.judging import files
from forge_conformance.judging.judge import NotImported
from forge_conformance.judging.text import counted
from forge_conformance.judging.verdicts import (
    MODES,
    Expected,
    Report,
    Status,
    capability_mismatches,
    is_case,
    judge,
    read_expected,
)
from forge_conformance.plugin import LOST, SUITE_ARGUMENTS, WARM_SERVER, Findings
from forge_conformance.report import compact, stored
from forge_conformance.report import run as render
from forge_conformance.report.page import write
from forge_conformance.runs.server import Implementation, Server
from forge_conformance.runs.sources import fingerprint
from forge_conformance.runs.workplace import first_contact
from forge_spec import BY_SLUG
from forge_spec.clauses import Level

HELP = "judge a manager by every clause that it claims"
_BEFORE = "report.json.before"
_RANKS = "2,4"
_NO_END = "The run did not finish"
_OF_THE_USERS_TESTS = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_DISABLE_PLUGIN_AUTOLOAD")
"""Variables that would change the suite's own pytest."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    shared.add_manager(parser)
    shared.add_device(parser)
    shared.add_level(parser)
    shared.add_claims(parser)
    parser.add_argument("--xfail-file", type=Path, metavar="FILE", help="expected failures, one `slug: reason` a line")
    parser.add_argument(
        "--write-xfail", type=Path, metavar="FILE", help="write this run's failures into a new file for --xfail-file"
    )
    shared.add_out(parser, "./reports/NAME")
    shared.add_unless_judged(parser)
    parser.add_argument(
        "--clause",
        action="append",
        metavar="SLUG",
        help="only tests that judge this clause, or those that match a pattern such as 'commit.*'; repeatable",
    )
    parser.add_argument(
        "--examples",
        type=shared.count,
        default=0,
        metavar="N",
        help="try N new random programs instead of the usual few",
    )
    parser.add_argument(
        "--case", action="append", metavar="PATTERN", help="only tests whose name in the report matches; repeatable"
    )
    parser.add_argument(
        "--ranks", type=_ranks, default=_RANKS, metavar="N,M", help="ranks that distributed runs have (2,4), or none"
    )
    shared.add_jobs(parser, "processes that judge")


def _ranks(text: str) -> str:
    numbers = [] if text == "none" else text.split(",")
    wrong = [number for number in numbers if not number.isdigit() or not 2 <= int(number) <= 64]
    if wrong:
        raise argparse.ArgumentTypeError(
            f"{', '.join(map(repr, wrong))} is not a number of ranks from 2 to 64; write 2,4 or none"
        )
    return ",".join(dict.fromkeys(numbers))


def run(options: argparse.Namespace) -> int:
    """The exit status: 0 when every judged clause holds, 1 when one fails or an expected failure is stale."""
    begun = time.perf_counter()
    expected, only = _checked(options)
    out = options.out or Path("reports") / re.sub(r"[^A-Za-z0-9_.-]+", "-", options.impl)
    with shared.temporary_folder() as folder, _met(options, out) as server:
        implementation = server.implementation
        level = shared.level(implementation.level if options.level is None else options.level)
        claims = shared.claims(options.claims, implementation.capabilities)
        _check_level(only, level)
        asked = () if options.case else tuple(sorted(only or ()))
        report = replace(_unjudged(implementation, options, level, claims, expected), asked=asked)
        is_whole = not (options.case or options.write_xfail)
        if options.unless_judged and is_whole:
            status = shared.judged_before(out, "report.json", partial(render.status_of, report))
            if status is not None:
                return status
        _say_if_whole(out, is_partial=only is not None or bool(options.case))
        shared.begin(render.files(replace(report, is_partial=True, errors=(_NO_END,))), "report.json", out)
        collected = _Collected(server)
        pytest_status, output = _pytest(options, level, claims, only, collected, folder)
    errors = () if collected.is_interrupted else _our_errors(pytest_status, output, collected)
    report = replace(_judged(report, collected, claims, only, options.case), errors=errors)
    return _published(replace(report, seconds=time.perf_counter() - begun), options, out, collected.is_interrupted)


def _checked(options: argparse.Namespace) -> tuple[tuple[Expected, ...], frozenset[str] | None]:
    """The expected failures, and the clauses that are asked for; a bad option is refused before anything starts."""
    expected = read_expected(options.xfail_file) if options.xfail_file else ()
    only = shared.clauses(options.clause)
    shared.claims(options.claims, frozenset())
    if options.write_xfail is not None:
        _check_new(options.write_xfail)
    if options.level is not None:
        shared.level(options.level)
    return expected, only


def _check_level(only: frozenset[str] | None, level: Level) -> None:
    above = {slug: BY_SLUG[slug].level for slug in sorted(only or ()) if BY_SLUG[slug].level > level}
    if only and len(above) == len(only):
        named = ", ".join(f"{slug} ({its})" for slug, its in above.items())
        raise shared.BadArgument(
            f"--clause: {named}: this run judges level {level}; add --level {min(above.values())}."
        )


def _judged(
    report: Report,
    collected: "_Collected",
    claims: frozenset[str],
    only: frozenset[str] | None,
    cases: list[str] | None,
) -> Report:
    """The report with a verdict on each clause; with `cases`, on those that the tests which ran are about."""
    findings = tuple(collected.findings)
    if cases:
        only = frozenset(slug for finding in findings for slug in finding.clauses)
    judged, stale = judge(findings, report.level, claims, report.expected, only)
    return replace(
        report,
        judged=judged,
        stale=stale,
        findings=findings,
        is_partial=only is not None or cases is not None or collected.is_interrupted,
        interrupted=f"after {counted(len(findings), 'test')}" if collected.is_interrupted else "",
    )


def _published(report: Report, options: argparse.Namespace, out: Path, is_interrupted: bool) -> int:
    """Show and write the report; the exit status."""
    shown = render.console(report, colour=sys.stdout.isatty())
    status = shared.publish(shown, render.files(report), out, report.status)
    if options.write_xfail is not None:
        files.write_text(options.write_xfail, render.expectations(report))
        print(f"written: {options.write_xfail}")
    lost = [] if is_interrupted or report.errors else _without_a_test(options.case or (), report)
    if lost:
        print(
            f"forge-conformance: --case {', '.join(map(repr, lost))}: no test that ran has such a name. Names are "
            "chapter/what-it-shows[parameters], as in the report. --level, --claims and --clause also leave out tests.",
            file=sys.stderr,
        )
    return status or (Status.NOTHING_JUDGED if lost else status)


@contextlib.contextmanager
def _met(options: argparse.Namespace, out: Path) -> Iterator[Server]:
    """A server for a manager that can be made. If it can't be imported, an older report of it gives way to the reason.

    Any other refusal may be due to a mistake in the command, and the report stays.
    """
    try:
        server = shared.server(options)
    except NotImported as reason:
        _give_way(out, options.impl, str(reason))
        raise
    with contextlib.closing(server):
        first_contact(server)
        yield server


def _give_way(out: Path, impl: str, reason: str) -> None:
    """Write why nothing could be judged in the place of a report of this manager, which is kept beside.

    A file that is no report, and the report of another manager, stay.
    """
    earlier = stored.read(out)
    if not earlier.report or earlier.adapter != impl:
        return
    said = reason.partition("\n")[0].replace(f"{Path.cwd()}/", "").rstrip(".:")
    instead = compact.as_text(compact.trouble(f"Not judged: {said}"))
    try:
        write({_BEFORE: files.read_text(out / "report.json"), "report.json": instead}, out)
    except OSError as error:
        print(f"forge-conformance: the report that is there can't be replaced: {error}.", file=sys.stderr)
        return
    now = f"{out}/report.json now says that the manager was not judged"
    print(f"forge-conformance: {now}. The earlier report is {out}/{_BEFORE}.", file=sys.stderr)


def _say_if_whole(out: Path, is_partial: bool) -> None:
    """A whole report took minutes: nobody loses it to one of some tests."""
    earlier = stored.read(out).report
    if is_partial and earlier.get("is_partial") is False:
        write({_BEFORE: files.read_text(out / "report.json")}, out)
        print(
            f"forge-conformance: the complete report in {out} is replaced by one of only some tests, and kept as "
            f"{_BEFORE}.",
            file=sys.stderr,
        )


def _unjudged(
    implementation: Implementation,
    options: argparse.Namespace,
    level: Level,
    claims: frozenset[str],
    expected: tuple[Expected, ...],
) -> Report:
    """What the run is about, without any finding."""
    return Report(
        implementation=_described(implementation, options, claims),
        level=level,
        judged=(),
        stale=(),
        mismatches=capability_mismatches(claims, implementation.probe),
        findings=(),
        seconds=0,
        sources="" if options.python else fingerprint(options.impl),
        options=tuple(shared.unusual(options, {"device": "cpu", "ranks": _RANKS, "examples": 0})),
        ranks=tuple(int(number) for number in options.ranks.split(",") if number),
        device=options.device,
        expected=expected,
    )


def _without_a_test(patterns: Sequence[str], report: Report) -> list[str]:
    """The patterns of `--case` that no test matches."""
    cases = [finding.case for finding in report.findings]
    return [pattern for pattern in patterns if not any(is_case(case, pattern) for case in cases)]


def _check_new(path: Path) -> None:
    """The reasons that somebody has written into a file are worth more than what a run can say."""
    if path.exists():
        raise shared.BadArgument(f"--write-xfail {path} is there already; name a new file.")
    shared.check_directory(path.parent, "--write-xfail")


def _pytest(
    options: argparse.Namespace,
    level: Level,
    claims: frozenset[str],
    only: frozenset[str] | None,
    collected: "_Collected",
    folder: Path,
) -> tuple[int, str]:
    """Run the suite, its own files in `folder`; pytest's exit status and output, of interest only when it broke."""
    arguments = [
        *SUITE_ARGUMENTS,
        "--forge-impl",
        options.impl,
        "--forge-level",
        str(level),
        "--forge-claims",
        ",".join(sorted(claims)),
    ]
    arguments += ["--forge-timeout", str(options.timeout), "--forge-import-timeout", str(options.import_timeout)]
    arguments += ["--forge-examples", str(options.examples), "--forge-ranks", options.ranks]
    arguments += ["--forge-device", options.device]
    if options.python:
        arguments += ["--forge-python", options.python]
    if only:
        arguments += ["--forge-clauses", ",".join(sorted(only))]
    for pattern in options.case or ():
        arguments += ["--forge-cases", pattern]
    if options.n > 1:
        arguments += ["-n", str(options.n), "--dist", "worksteal"]
    # The server of another Python can't fork one for each process that judges, and a GPU is not inherited.
    is_shared = options.n > 1 and not options.python and options.device == "cpu"
    if is_shared:
        arguments += ["--forge-door", _open_door(collected.server, claims, bool(options.ranks))]
    if options.n == 1 or is_shared:  # before pytest, which would call an error here its own
        collected.server.rehearse([mode for mode in MODES if mode in claims])
    for name in _OF_THE_USERS_TESTS:
        os.environ.pop(name, None)
    output = io.StringIO()
    # Hypothesis keeps its files in the working directory otherwise, which is the user's.
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(folder / "hypothesis"))
    with contextlib.redirect_stdout(output):
        status = int(pytest.main(arguments, plugins=[collected]))
    collected.end()
    return status, output.getvalue()


def _open_door(server: Server, claims: frozenset[str], with_ranks: bool) -> str:
    """Let each process that judges fork its server from this one, which has rehearsed what these would import."""
    if with_ranks and "distributed" in claims:
        server.rehearse([mode for mode in MODES if mode in claims][:1], with_ranks=True)
    return server.open_door()


def _our_errors(pytest_status: int, output: str, collected: "_Collected") -> tuple[str, ...]:
    """Whatever kept tests from finding something out."""
    broken = pytest_status in (pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERRUPTED)
    tail = (f"pytest ended with status {pytest_status}:\n{output[-3000:]}",)
    return (*collected.lost, *(collected.gone or (tail if broken else ())))


def _described(implementation: Implementation, options: argparse.Namespace, claims: frozenset[str]) -> dict[str, Any]:
    return {
        "name": implementation.name,
        "adapter": implementation.adapter,
        "claimed_level": implementation.level,
        "capabilities": sorted(claims),
        "traits": _unusual_traits(implementation.traits),
        "environment": implementation.environment,
        "is_other_python": bool(options.python),
    }


def _unusual_traits(traits: Traits) -> dict[str, Any]:
    """Return the traits that the adapter names, by name; the others have their defaults."""
    usual = asdict(Traits())
    return {name: value for name, value in asdict(traits).items() if value != usual[name]}


class _Collected(Findings):
    """The controlling process's pytest plugin: gathers findings, shows progress."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.is_interrupted = False
        self.server = server
        self.gone: list[str] = []
        """Why processes that judge have ended; pytest then says that something is wrong inside it."""
        self._progress = shared.Progress(every=25)
        self._failed = 0

    def pytest_configure(self, config: pytest.Config) -> None:
        if not config.getoption("numprocesses", None):  # otherwise each process that judges has its own
            config.stash[WARM_SERVER] = self.server

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._progress.total = len(session.items) or self._progress.total

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: Sequence[str]) -> None:
        self._progress.total = len(ids)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        reason = getattr(node, "workeroutput", {}).get(LOST)  # a process that was killed has left nothing
        if reason is not None and reason not in self.gone:
            self.gone.append(reason)

    def gathers(self, values: dict[str, Any]) -> None:
        super().gathers(values)
        self._failed += values["outcome"] in ("failed", "error")
        failed = f", {self._failed} failed" if self._failed else ""
        done = f"{len(self.findings)}/{self._progress.total}"
        self._progress.show(f"{done}{failed}  {values['case'][:90]}", f"{done} tests{failed}")

    def pytest_keyboard_interrupt(self) -> None:
        self.is_interrupted = True

    def end(self) -> None:
        """Leave the terminal's line clean."""
        self._progress.end()
