"""The command `forge-conformance`.

    smoke    a first contact: does the manager import, save, and come back after a kill?
    run      the suite; verdicts by chapter and clause
    crash    every disk that a death can leave, deaths and failures in earnest, and what a resume makes of them
    matrix   the suite itself, judged by managers with one mistake each
    list     the clauses, or the capabilities
    explain  one clause: what, why, and which tests judge it

`run` exits with 0 when every judged clause holds, 1 when one fell (or an
expected failure is stale), 2 when nothing could be judged, 3 for an error of
the suite itself or an interruption, after which the report is partial.
"""

import argparse
import contextlib
import difflib
import importlib
import io
import os
import re
import signal
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

import pytest

from forge_conformance import __version__
from forge_conformance.crash import command as explorer
from forge_conformance.harness.folder import Folder
from forge_conformance.harness.judge import JUDGES, Judges
from forge_conformance.harness.scenario import kinds_claimed
from forge_conformance.harness.server import CannotJudge, Implementation, Server
from forge_conformance.harness.worker import ManagerFault, Unsupported
from forge_conformance.matrix import command as matrix
from forge_conformance.matrix.mutants import of_clause
from forge_conformance.plugin import SUITE, WARM_SERVER
from forge_conformance.report import render
from forge_conformance.report.verdicts import (
    BadExpectations,
    Finding,
    Report,
    Status,
    capability_mismatches,
    is_case,
    judge,
    read_expected,
)
from forge_spec import BY_SLUG, CLAUSES
from forge_spec.clauses import CAPABILITIES, Level

_HERE = Path(__file__).resolve().parent
_TIMEOUT_S = 20.0
_RANKS = "2,4"
_OF_THE_USERS_TESTS = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_DISABLE_PLUGIN_AUTOLOAD")
"""Variables that would change the suite's own pytest."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status; see the module's text."""
    options = _parser().parse_args(arguments)
    try:
        _check_here()
        if hasattr(options, "out"):
            _check_directory(options.out or Path("reports"))
        with _ended_like_interrupted():
            status: int = options.command(options)
        sys.stdout.flush()
        return status
    except (CannotJudge, BadExpectations, BadArgument) as reason:
        print(f"forge-conformance: {reason}", file=sys.stderr)
        return Status.NOTHING_JUDGED
    except BrokenPipeError:  # whoever read our output has seen enough, as in `list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("forge-conformance: interrupted", file=sys.stderr)
        return Status.OUR_ERROR
    except Exception:
        print("forge-conformance: an error of the suite, not of the manager:", file=sys.stderr)
        traceback.print_exc()
        return Status.OUR_ERROR


def _server(options: argparse.Namespace) -> Server:
    return Server(options.impl, options.python, options.timeout, options.import_timeout, options.device)


def _check_here() -> None:
    """Relative names, an `--impl` beside them and the worker's imports all start from the working directory."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise BadArgument("the working directory is gone; change to one that is there.") from None


@contextlib.contextmanager
def _ended_like_interrupted() -> Iterator[None]:
    """SIGTERM ends a run like Ctrl-C: workers and temporary folders go, and what was found out is reported."""
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class BadArgument(Exception):
    """An option has a value that it can't have; the text names it and what it could be."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="forge-conformance", description="Judge a training-checkpoint manager.")
    parser.add_argument("--version", action="version", version=f"forge-conformance {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    smoke = commands.add_parser("smoke", help="first contact with a manager: seconds")
    run = commands.add_parser("run", help="judge a manager by every clause that it claims")
    for command in (smoke, run):
        command.add_argument("--impl", required=True, help="a drop-in module, module:Adapter, or file.py:Adapter")
        command.add_argument("--python", help="the Python that the manager lives in (default: this one)")
        command.add_argument(
            "--timeout", type=_seconds, default=_TIMEOUT_S, metavar="S", help="until a command counts as hung (20)"
        )
        command.add_argument(
            "--import-timeout", type=_seconds, default=120, metavar="S", help="when importing the manager does (120)"
        )
        command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where model and optimizer live")
    smoke.set_defaults(command=_smoke)
    run.add_argument("--level", help="core, strict or durable (default: what the manager claims)")
    run.add_argument("--claims", help="capabilities instead of those claimed: a,b,c; or changes to them: +a,-b")
    run.add_argument("--xfail-file", type=Path, help="expected failures, one `slug: reason` a line")
    run.add_argument("--out", type=Path, help="the directory of the report's files (./reports/NAME)")
    run.add_argument("--clause", action="append", metavar="SLUG", help="only tests that judge this clause; repeatable")
    run.add_argument(
        "--examples", type=_count, default=0, metavar="N", help="try N new random programs, not the usual few"
    )
    run.add_argument(
        "--case", action="append", metavar="PATTERN", help="only tests whose name in the report matches; repeatable"
    )
    run.add_argument(
        "--ranks",
        type=_ranks,
        default=_RANKS,
        metavar="N,M",
        help="ranks that distributed runs have (2,4), or none",
    )
    run.add_argument("-n", type=_count, default=1, metavar="N", help="processes that judge side by side (1)")
    run.set_defaults(command=_run)

    crash = commands.add_parser("crash", help="every disk that a death can leave, and deaths and failures in earnest")
    crash.add_argument("--impl", required=True, help="a drop-in module, module:Adapter, or file.py:Adapter")
    crash.add_argument("--python", help="the Python that the manager lives in (default: this one)")
    crash.add_argument("--timeout", type=_seconds, default=20, metavar="S", help="until a command counts as hung (20)")
    crash.add_argument("--import-timeout", type=_seconds, default=120, metavar="S", help="for importing it (120)")
    crash.add_argument("--level", help="core, strict or durable (default: what the manager claims)")
    crash.add_argument("--out", type=Path, help="the directory of the report's files (./reports/crash)")
    crash.add_argument("-n", type=_count, default=1, metavar="N", help="recordings explored side by side (1)")
    explorer.add_arguments(crash)
    crash.set_defaults(command=lambda options: explorer.run(options, _level))

    mutants = commands.add_parser("matrix", help="judge the suite: managers with one mistake each have to fall")
    mutants.add_argument("--out", type=Path, help="the directory of the report's files (./reports/matrix)")
    mutants.add_argument(
        "-n", type=_count, default=os.cpu_count() or 1, metavar="N", help="mutants tried side by side (one a core)"
    )
    matrix.add_arguments(mutants)
    mutants.set_defaults(command=matrix.run)

    listing = commands.add_parser("list", help="the clauses")
    listing.add_argument("--level", help="only up to this level")
    listing.add_argument("--capabilities", action="store_true", help="what an implementation may claim, instead")
    listing.set_defaults(command=_list)
    explain = commands.add_parser("explain", help="one clause: what, why, and which tests judge it")
    explain.add_argument("slug")
    explain.set_defaults(command=_explain)
    return parser


def _count(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return number


def _ranks(text: str) -> str:
    numbers = [] if text == "none" else text.split(",")
    wrong = [number for number in numbers if not number.isdigit() or not 2 <= int(number) <= 64]
    if wrong:
        raise argparse.ArgumentTypeError(
            f"{', '.join(map(repr, wrong))} is no number of ranks from 2 to 64; write 2,4 or none"
        )
    return ",".join(dict.fromkeys(numbers))


def _seconds(text: str) -> float:
    """More than none, as the options that wait need it."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds


# -- smoke ----------------------------------------------------------------------------


def _smoke(options: argparse.Namespace) -> int:
    """Save, kill, resume, and say what happened at each step."""
    begun = time.perf_counter()
    server = _server(options)
    try:
        said = _Steps(begun)
        implementation = server.implementation
        mode = "sync" if "sync" in implementation.capabilities else "async"
        claims = ", ".join(sorted(implementation.capabilities))
        said(f"imported {implementation.name}: level {implementation.level}, {claims}")
        return _smoke_lives(server, mode, said)
    finally:
        server.close()


def _smoke_lives(server: Server, mode: str, said: "_Steps") -> int:
    with tempfile.TemporaryDirectory(prefix="forge-smoke-") as folder:
        try:
            first = server.spawn()
            first.open({"folder": folder, "mode": mode}, seed=0)
            said("made the manager over an empty folder")
            first.train(3)
            first.save()
            first.wait()
            said(f"saved step 3; the folder holds {', '.join(sorted(p.name for p in Path(folder).iterdir()))}")
            looked = Folder(Path(folder), server.implementation.layout)
            if looked.latest_or_newest() != 3 or 3 not in looked.complete():
                print(f"FAIL: by the layout of the adapter, step 3 was not committed: {looked}")
                return Status.FAILED
            digest = first.digest()
            first.kill()
            said("killed the process")
            second = server.spawn()
            second.open({"folder": folder, "mode": mode}, seed=1)
            loaded = second.load()
            said(f"a new process resumed at step {loaded.step}")
            kinds = kinds_claimed(server.implementation.capabilities)
            return _compare(digest, second.digest(), loaded.step, kinds, said)
        except (ManagerFault, Unsupported) as fault:
            print(f"FAIL: {fault}")
            return Status.FAILED


def _compare(saved: dict[str, str], resumed: dict[str, str], step: int, kinds: Sequence[str], said: "_Steps") -> int:
    if step != 3:
        print(f"FAIL: it came back at step {step}, not at 3")
        return Status.FAILED
    differing = sorted(name for name in saved if saved[name] != resumed.get(name) and _kind(name) in kinds)
    if differing:
        print(f"FAIL: not the same as saved: {', '.join(differing)}")
        return Status.FAILED
    said(f"came back bit for bit: {', '.join(sorted({_kind(name) for name in saved} & set(kinds)))}")
    return Status.PASSED


def _kind(name: str) -> str:
    return name.partition("/")[0]


class _Steps:
    """Prints what was reached, with the time since the start."""

    def __init__(self, begun: float) -> None:
        self._begun = begun

    def __call__(self, sentence: str) -> None:
        print(f"{time.perf_counter() - self._begun:6.2f} s  {sentence}", flush=True)


# -- run ------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    begun = time.perf_counter()
    expected = read_expected(options.xfail_file) if options.xfail_file else ()
    only = _clauses(options.clause)
    _claims(options.claims, frozenset())
    _level(options.level or "core")
    out = options.out or Path("reports") / re.sub(r"[^A-Za-z0-9_.-]+", "-", options.impl)
    with contextlib.closing(_server(options)) as server:
        _first_contact(server, options.impl)
        implementation = server.implementation
        level = _level(options.level or implementation.level)
        claims = _claims(options.claims, implementation.capabilities)
        collected = _Collected(sys.stderr, server)
        pytest_status, output = _pytest(options, level, claims, only, collected)
    if options.case:
        only = frozenset(slug for finding in collected.findings for slug in finding.clauses)
    judged, stale = judge(collected.findings, level, claims, expected, only)
    report = Report(
        implementation=_described(implementation, options, claims),
        level=level,
        judged=judged,
        stale=stale,
        mismatches=capability_mismatches(claims, implementation.probe),
        findings=tuple(collected.findings),
        seconds=time.perf_counter() - begun,
        is_partial=only is not None or options.case is not None or collected.is_interrupted,
        errors=_our_errors(pytest_status, output, collected),
        options=tuple(_told(options)),
    )
    status = _publish(report, out)
    cases = [finding.case for finding in report.findings]
    lost = [repr(pattern) for pattern in options.case or () if not any(is_case(case, pattern) for case in cases)]
    if not lost or collected.is_interrupted:
        return status
    print(
        f"forge-conformance: of the tests that were asked for none is named like {', '.join(lost)}. The report has "
        "their names, chapter/what-it-shows[parameters]; level, claims and --clause choose among them as well.",
        file=sys.stderr,
    )
    return status or Status.NOTHING_JUDGED


def _publish(report: Report, out: Path) -> Status:
    """Files first: a terminal may go away meanwhile.  A report that can't be written is shown all the same."""
    try:
        said, status = f"written: {', '.join(render.write(report, out))}", report.status
    except OSError as error:
        said, status = f"forge-conformance: the report can't be written to {out}: {error}", Status.OUR_ERROR
    print(render.console(report, colour=sys.stdout.isatty()))
    print(said, file=sys.stdout if status is report.status else sys.stderr)
    return status


def _told(options: argparse.Namespace) -> Iterator[str]:
    """The options that decide which tests there are and how they go, where they are not the usual ones."""
    usual = {"python": None, "device": "cpu", "claims": None, "ranks": _RANKS, "examples": 0, "timeout": _TIMEOUT_S}
    for name, value in usual.items():
        given = getattr(options, name)
        if given != value:
            yield f"--{name}={given:g}" if name == "timeout" else f"--{name}={given or 'none'}"


def _first_contact(server: Server, impl: str) -> None:
    """`CannotJudge` if the manager does not even come to life."""
    mode = "sync" if "sync" in server.implementation.capabilities else "async"
    with tempfile.TemporaryDirectory(prefix="forge-contact-") as folder:
        worker = server.spawn()
        try:
            worker.open({"folder": folder, "mode": mode}, seed=0)
        except (ManagerFault, Unsupported) as fault:
            raise CannotJudge(
                f"{impl} was imported, but a manager over an empty folder could not be made, so nothing can be "
                f"judged. {fault}"
            ) from None
        finally:
            worker.kill()


def _check_directory(path: Path) -> None:
    """Looked at before anything runs, and made afterwards, so that a refusal leaves nothing behind."""
    nearest = next(above for above in (path, *path.absolute().parents) if above.exists())
    if not nearest.is_dir():
        raise BadArgument(f"--out {path} can't be made a directory: {nearest} is a file.")
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise BadArgument(f"--out {path} can't be written to: {error.strerror} in {nearest}.") from None


def _level(name: str) -> Level:
    try:
        return Level.named(name)
    except ValueError as error:
        raise BadArgument(f"{error}.") from None


def _claims(option: str | None, claimed: frozenset[str]) -> frozenset[str]:
    """`a,b` replaces what is claimed, `+a,-b` changes it."""
    words = [word.strip() for word in option.split(",") if word.strip()] if option else []
    changes = [word for word in words if word[0] in "+-"]
    names = {word.lstrip("+-") for word in words} | claimed
    unknown = sorted(names - CAPABILITIES.keys())
    if unknown:
        whose = "--claims names" if unknown[0] not in claimed else "the adapter claims"
        raise BadArgument(f"{whose} {', '.join(unknown)}, which is no capability; there are {', '.join(CAPABILITIES)}.")
    if changes and len(changes) != len(words):
        raise BadArgument(f"--claims {option} mixes names with changes; write either a,b,c or +a,-b.")
    if changes:
        added = {word[1:] for word in changes if word[0] == "+"}
        return (claimed | added) - {word[1:] for word in changes if word[0] == "-"}
    return frozenset(words) or claimed


def _clauses(slugs: list[str] | None) -> frozenset[str] | None:
    unknown = [slug for slug in slugs or [] if slug not in BY_SLUG]
    if unknown:
        near = [name for slug in unknown for name in difflib.get_close_matches(slug, BY_SLUG, 2)]
        meant = f" Did you mean {' or '.join(near)}?" if near else ""
        named = ", ".join(map(repr, unknown))
        raise BadArgument(f"there is no clause {named}; forge-conformance list shows them all.{meant}")
    return frozenset(slugs) if slugs else None


def _pytest(
    options: argparse.Namespace,
    level: Level,
    claims: frozenset[str],
    only: frozenset[str] | None,
    collected: "_Collected",
) -> tuple[int, str]:
    """Run the suite; pytest's exit status and what it printed, which is of interest only when it broke."""
    arguments = ["-c", str(_HERE / "pytest.ini"), f"--rootdir={_HERE}", *map(str, SUITE)]
    arguments += ["--forge-impl", options.impl, "--forge-level", str(level), "--forge-claims", ",".join(sorted(claims))]
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
    for name in _OF_THE_USERS_TESTS:
        os.environ.pop(name, None)
    output = io.StringIO()
    with _temporary_folder(), contextlib.redirect_stdout(output):
        status = int(pytest.main(arguments, plugins=[collected]))
    collected.end()
    return status, output.getvalue()


@contextlib.contextmanager
def _temporary_folder() -> Iterator[None]:
    """What the processes that judge leave when they are ended in the middle goes with this folder; theirs is in it."""
    before = os.environ.get("TMPDIR")
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # folders of failed tests are kept, as ever
    with tempfile.TemporaryDirectory(prefix="forge-run-", ignore_cleanup_errors=True) as folder:
        os.environ["TMPDIR"] = folder
        try:
            yield
        finally:
            os.environ.pop("TMPDIR") if before is None else os.environ.update(TMPDIR=before)


def _our_errors(pytest_status: int, output: str, collected: "_Collected") -> tuple[str, ...]:
    """Whatever kept tests from finding something out."""
    if collected.is_interrupted:
        return (f"interrupted after {len(collected.findings)} tests; what is missing was not judged",)
    broken = pytest_status in (pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERRUPTED)
    tail = (f"pytest ended with status {pytest_status}:\n{output[-3000:]}",) if broken else ()
    return (*collected.lost, *tail)


def _described(implementation: Implementation, options: argparse.Namespace, claims: frozenset[str]) -> dict[str, Any]:
    return {
        "name": implementation.name,
        "adapter": implementation.adapter,
        "claimed_level": implementation.level,
        "capabilities": sorted(claims),
        "environment": implementation.environment,
        "is_other_python": bool(options.python),
    }


class _Collected:
    """A pytest plugin of the controlling process: gathers findings, shows progress."""

    def __init__(self, stream: TextIO, server: Server) -> None:
        self.findings: list[Finding] = []
        self.lost: list[str] = []
        """Tests that ended without a finding: our errors."""
        self.is_interrupted = False
        self._stream = stream
        self._server = server
        self._total = 0
        self._failed = 0

    def pytest_configure(self, config: pytest.Config) -> None:
        if config.getoption("numprocesses", None):
            self._server.close()  # every process that judges has one of its own
        else:
            config.stash[WARM_SERVER] = self._server

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._total = len(session.items) or self._total

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: Sequence[str]) -> None:
        self._total = len(ids)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties = dict(report.user_properties)
        values = properties.get("forge")
        if isinstance(values, dict):
            self.findings.append(Finding.of(values))
            self._failed += values["outcome"] in ("failed", "error")
            self._show(values["case"])
        elif report.failed:
            self.lost.append(f"{report.nodeid}: {report.longrepr}")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.lost.append(f"{report.nodeid} could not be collected: {report.longrepr}")

    def pytest_keyboard_interrupt(self) -> None:
        self.is_interrupted = True

    def _show(self, case: str) -> None:
        done = len(self.findings)
        fell = f", {self._failed} fell" if self._failed else ""
        if self._stream.isatty():
            print(f"\r\033[K{done}/{self._total}{fell}  {case[:90]}", end="", file=self._stream, flush=True)
        elif done % 25 == 0 or done == self._total:
            print(f"{done}/{self._total} tests{fell}", file=self._stream, flush=True)

    def end(self) -> None:
        """Leave the terminal's line clean."""
        if self._stream.isatty():
            print("\r\033[K", end="", file=self._stream, flush=True)


# -- list and explain -----------------------------------------------------------------


def _list(options: argparse.Namespace) -> int:
    if options.capabilities:
        for name, meaning in CAPABILITIES.items():
            print(f"{name:<14} {meaning}")
        return 0
    level = _level(options.level) if options.level else Level.DURABLE
    for clause in CLAUSES:
        if clause.level <= level:
            needs = f" [{', '.join(sorted(clause.capabilities))}]" if clause.capabilities else ""
            head = f"{clause.slug} ({clause.level}){needs}"
            print(textwrap.fill(f"{head}: {clause.sentence}", 110, subsequent_indent="    "))
    return 0


def _explain(options: argparse.Namespace) -> int:
    (slug,) = _clauses([options.slug]) or (options.slug,)
    clause = BY_SLUG[slug]
    print(f"{clause.slug}, level {clause.level}")
    parts = {
        "must": f"a checkpoint manager {clause.sentence}",
        "why": clause.why,
        "judged when": clause.sometimes,
        "needs": ", ".join(sorted(clause.capabilities)) or "nothing but a manager",
        "rests on": ", ".join(clause.rests_on) or "no other clause",
    }
    for name, text in parts.items():
        print(textwrap.fill(f"{name}: {text}", 110, initial_indent="  ", subsequent_indent="    "))
    tests = sorted(case for case, declared in _tests() if slug in declared.clauses)
    print("  tests:" if tests else "  tests: none yet")
    for case in tests:
        print(f"    {case}")
    broken_by = [f"{mutant.name}: {mutant.sin}" for mutant in of_clause(slug)]
    print("  mutants:" if broken_by else "  mutants: none here")
    for mutant in broken_by:
        print(textwrap.fill(mutant, 110, initial_indent="    ", subsequent_indent="      "))
    return 0


def _tests() -> Iterator[tuple[str, Judges]]:
    """Every test of the suite with what it judges."""
    for package, where in zip(("forge_conformance", "forge_distributed"), SUITE, strict=True):
        for path in sorted(where.glob("test_*.py")):
            yield from _tests_of(importlib.import_module(f"{package}.{path.stem}"), path)


def _tests_of(module: ModuleType, path: Path) -> Iterator[tuple[str, Judges]]:
    for name, value in vars(module).items():
        declared = getattr(value, JUDGES, None)
        if name.startswith("test_") and declared is not None:
            yield f"{path.stem.removeprefix('test_')}/{name.removeprefix('test_').replace('_', '-')}", declared


if __name__ == "__main__":
    sys.exit(main())
