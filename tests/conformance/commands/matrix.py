"""`forge-conformance matrix`: every mutant by the tests that its clauses select, the base by all of them.

Mutants are tried side by side, each runner with a warm server of its own.  The
base, which has to be right in all that its mutants are wrong in, is judged
afterwards by `forge-conformance run`.  Other bases, and all of them where only
some mutants were asked for, are tried among the mutants, by the clauses of those.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from forge_conformance import __version__
from forge_conformance.commands import options as shared
from forge_conformance.judging import files
from forge_conformance.judging.judge import CannotJudge
from forge_conformance.matrix import mutants as fixtures
from forge_conformance.matrix.assertions import assertions
from forge_conformance.matrix.mutants import BadMutant, Mutant
from forge_conformance.matrix.outcome import Base, Matrix, Outcome, in_order
from forge_conformance.matrix.trial import Trial, TrialRunner
from forge_conformance.plugin import SUITE
from forge_conformance.report import matrix as render
from forge_conformance.runs.pool import done_side_by_side, leave_signals_to_the_command
from forge_conformance.runs.sources import fingerprint
from forge_spec.clauses import Level

HELP = "judge the suite: managers with one mistake each have to fail"

_runner: TrialRunner | CannotJudge | None = None
"""The runner of a process that tries mutants, or why it has none."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    shared.add_out(parser, "./reports/matrix")
    shared.add_jobs(parser, "mutants that are tried", os.cpu_count() or 1)
    parser.add_argument("--mutants", type=Path, default=fixtures.HERE, metavar="DIR", help="directory of the mutants")
    parser.add_argument(
        "--base", default="forge_ref", metavar="IMPL", help="manager that the mutants were made from (forge_ref)"
    )
    parser.add_argument(
        "--base-report",
        type=Path,
        metavar="FILE",
        help="report.json of the whole suite on the base, as `run --out` writes it. The suite runs again if it is "
        "missing or the code has changed.",
    )
    parser.add_argument(
        "--until-killed",
        action="store_true",
        help="stop testing a mutant once its clause has failed; unused tests and assertions are then not reported",
    )
    parser.add_argument("--clause", action="append", metavar="SLUG", help="only mutants of this clause; repeatable")
    parser.add_argument("--mutant", action="append", metavar="NAME", help="only this one; repeatable")


def run(options: argparse.Namespace) -> int:
    """The exit status: 1 where the suite has a hole, 3 where a mutant is no good."""
    begun = time.perf_counter()
    chosen, unread = _chosen(options)
    out = options.out or Path("reports") / "matrix"
    told = reported(options.base, chosen, options.base_report) if options.base_report else None
    is_partial = bool(options.clause or options.mutant)
    for reason in unread:
        print(reason, file=sys.stderr, flush=True)
    with shared.temporary_folder():
        queue = [*chosen, *_bases(options.base, chosen, options.clause or (), is_partial)]
        tried, interrupted = _until_interrupted(_trials(queue, options), len(queue))
        bases = {trial.mutant.path: Base.tried(trial) for trial in tried if trial.mutant.is_right}
        base = bases.pop(Path(options.base), Base(options.base))
        if not is_partial and not interrupted:
            try:
                base = told or _judged(options.base, chosen, out / "base", options.n)
            except KeyboardInterrupt:
                interrupted = "while the whole suite judged the base"
    trials = [trial for trial in tried if not trial.mutant.is_right]
    outcomes = [
        Outcome(trial, base if trial.mutant.base is None else bases.get(trial.mutant.base, base)) for trial in trials
    ]
    matrix = Matrix(
        base,
        in_order(outcomes),
        tuple(unread),
        tuple(bases.values()),
        frozenset(options.clause) if options.clause else None,
        is_partial=bool(options.mutant or interrupted),
        interrupted=interrupted,
        seconds=time.perf_counter() - begun,
        until_killed=options.until_killed,
        assertions=tuple(assertions(SUITE)),
    )
    return shared.publish(render.console(matrix), render.files(matrix), out, matrix.status)


def _until_interrupted(trials: Iterator[Trial], total: int) -> tuple[list[Trial], str]:
    """The trials, or those until somebody interrupted them, and when that was."""
    tried: list[Trial] = []
    try:
        for trial in trials:
            tried.append(trial)
    except KeyboardInterrupt:
        if not tried:
            raise
        return tried, f"after {len(tried)} of {total} trials"
    return tried, ""


def _chosen(options: argparse.Namespace) -> tuple[list[Mutant], list[str]]:
    """The mutants that were asked for, and what is wrong with files that are none."""
    asked = shared.clauses(options.clause) or frozenset()
    found: list[Mutant] = []
    unread: list[str] = []
    for path in fixtures.files(options.mutants.absolute()):
        if options.mutant and path.stem not in options.mutant:
            continue
        try:
            found.append(fixtures.read(path))
        except BadMutant as reason:
            unread.append(str(reason))
    if unread and not found:
        raise CannotJudge(f"{'; '.join(unread)}. There is no other mutant to judge.")
    missing = sorted(set(options.mutant or ()) - {mutant.name for mutant in found} - {Path(u).stem for u in unread})
    if missing and not unread:
        raise CannotJudge(f"there is no mutant {', '.join(missing)} in {options.mutants}.")
    chosen = [mutant for mutant in found if not asked or asked.intersection(mutant.clauses)]
    if not chosen and not unread and not asked:
        raise CannotJudge(
            f"there are no mutants in {options.mutants}; they are in fixtures/mutants of a checkout: pass --mutants."
        )
    return chosen, unread


# -- mutants --------------------------------------------------------------------------


def _trials(mutants: Sequence[Mutant], options: argparse.Namespace) -> Iterator[Trial]:
    """Each as soon as it has ended; bases and those with several ranks, which take longest, begin first."""
    queue = sorted(mutants, key=lambda mutant: (not mutant.is_right, not mutant.ranks, mutant.name))
    if not queue:
        return
    begins = (options.base, options.until_killed)
    progress = shared.Progress(len(queue), every=10)
    try:
        for number, trial in enumerate(done_side_by_side(_judge, queue, options.n, "fork", _begin, begins), 1):
            done = f"{number}/{len(queue)}"
            progress.show(f"{done}  {_ending(trial)}  {trial.mutant.name}", f"{done} trials")
            yield trial
    finally:
        progress.end()


def _begin(base: str, until_killed: bool) -> None:
    """In each process that tries mutants, once."""
    global _runner
    leave_signals_to_the_command()
    try:
        _runner = TrialRunner(base, until_killed)
    except CannotJudge as reason:  # raised here, another process would begin instead, and another
        _runner = reason


def _judge(mutant: Mutant) -> Trial:
    assert _runner is not None, "a process begins before it judges"
    if isinstance(_runner, CannotJudge):
        raise CannotJudge(f"--base: {_runner}")
    return _runner.judge(mutant)


def _ending(trial: Trial) -> str:
    failed = {finding.failure["clause"] for finding in trial.findings if finding.failure is not None}
    return "error" if trial.errors else "killed" if trial.mutant.own.slug in failed else "alive"


# -- bases ----------------------------------------------------------------------------


def _bases(base: str, mutants: Sequence[Mutant], asked: Sequence[str], is_partial: bool) -> Iterator[Mutant]:
    """The bases that are tried beside their mutants, by the clauses of these; one without mutants is left out."""
    made = [one for one in mutants if one.base is None]
    if is_partial and (made or (asked and not mutants)):
        yield fixtures.base_of(base, made, asked)
    for path in sorted({one.base for one in mutants if one.base is not None}):
        yield fixtures.base_of(str(path), [one for one in mutants if one.base == path])


def reported(impl: str, mutants: Sequence[Mutant], path: Path) -> Base | None:
    """The same from a report; None if there is none, or the code has changed since.

    `CannotJudge` unless it is a whole one, of this base, by this suite, at their level.
    """
    try:
        report = files.read_json(path)
        said = report["implementation"]["name"], report["suite_version"], report["level"], report["is_partial"]
    except (FileNotFoundError, NotADirectoryError):
        print(f"There is no {path}, so the whole suite judges {impl} afterwards.", file=sys.stderr, flush=True)
        return None
    except OSError as error:
        raise CannotJudge(f"--base-report {path} can't be read: {error.strerror}. {_how(impl, mutants)}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CannotJudge(f"--base-report {path} is not a report of a run: {error!r}. {_how(impl, mutants)}") from None
    wanted = impl, __version__, str(_level(mutants)), False
    if said != wanted:
        named = ("implementation", "suite_version", "level", "is_partial")
        other = ", ".join(
            f"{name} {one!r} and not {two!r}" for name, one, two in zip(named, said, wanted, strict=True) if one != two
        )
        raise CannotJudge(f"--base-report {path} is another run's: {other}. {_how(impl, mutants)}")
    if report.get("sources") != fingerprint(impl):
        print(f"{path} is of other code, so the whole suite judges {impl} afterwards.", file=sys.stderr, flush=True)
        return None
    return Base.of(impl, report)


def _how(impl: str, mutants: Sequence[Mutant]) -> str:
    return f"Make it with: forge-conformance run --impl {impl} --level {_level(mutants)} --out DIR"


def _level(mutants: Sequence[Mutant]) -> Level:
    """The highest of theirs."""
    return max((mutant.level for mutant in mutants), default=Level.CORE)


def _judged(impl: str, mutants: Sequence[Mutant], out: Path, processes: int) -> Base:
    """What the whole suite says of a base, at the highest level of its mutants; `CannotJudge` if it says nothing."""
    level = _level(mutants)
    print(f"the whole suite judges {impl} at level {level}, which takes minutes", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "forge_conformance.cli", "run", "--impl", impl, "--ranks", "2"]
    command += ["--level", str(level), "-n", str(processes), "--out", str(out)]
    report = out / "report.json"
    report.unlink(missing_ok=True)  # an older one is kept where nothing can be judged
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        return Base.of(impl, files.read_json(report))
    except (OSError, KeyError) as error:
        raise CannotJudge(f"the base {impl} can't be judged: {done.stderr.strip()[-2000:] or error}") from None
