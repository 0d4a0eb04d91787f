"""`forge-conformance script`: judges any training script by its restarts, without an adapter.

The command runs undisturbed, is recorded, and is then restarted from every distinct disk that a death can have left.
"""

import argparse
import contextlib
import secrets
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from forge_conformance.commands import options as shared
from forge_conformance.disks.states import KILL
from forge_conformance.judging.judge import CannotJudge
from forge_conformance.judging.text import shortened
from forge_conformance.judging.verdicts import Status, read_expected
from forge_conformance.report import script as render
from forge_conformance.report.script import Report
from forge_conformance.runs import janitor, machine
from forge_conformance.runs.workplace import roomy
from forge_conformance.scripts import remap
from forge_conformance.scripts.command import FOLDER, Command, missing
from forge_conformance.scripts.explorer import Explored
from forge_conformance.scripts.judging import Effort, explore
from forge_conformance.scripts.lost_rank import LOST_RANK
from forge_conformance.scripts.preparation import Wishes, prepare
from forge_conformance.scripts.replay import outcome
from forge_conformance.scripts.signals import SIGNALS
from forge_conformance.scripts.starts import MARK, Stage
from forge_conformance.watch.backends import choose
from forge_spec.clauses import Level
from forge_spec.disk import STORAGES

POWER = "power"
HELP = "judge a training script by its restarts, without an adapter"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    _add_start(parser)
    _add_comparison(parser)
    _add_deaths(parser)
    _add_limits(parser)
    shared.add_out(parser, "./reports/script")
    shared.add_jobs(parser, "kinds of death that are explored")


def _add_start(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="*",
        metavar="-- COMMAND",
        help="how the script is started; {dir} stands for the folder of its checkpoints",
    )
    parser.add_argument(
        "--resume", metavar="COMMAND", help="command that restarts the script (default: the same command)"
    )
    parser.add_argument(
        "--dir",
        type=Path,
        metavar="PATH",
        help="folder of the checkpoints, if it is not in the command; for the test, another folder is mounted in its "
        "place",
    )
    parser.add_argument("--xfail-file", type=Path, metavar="FILE", help="expected failures, one `slug: reason` a line")


def _add_comparison(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--progress",
        default="",
        metavar="REGEX",
        help='regular expression for progress lines, with a group "step" and a group "value" that is compared',
    )
    parser.add_argument(
        "--saved", default="", metavar="REGEX", help="regular expression for lines that acknowledge a save"
    )
    parser.add_argument("--result", default="", metavar="GLOB", help="files of {dir} that have to be equal at the end")
    parser.add_argument("--result-command", default="", metavar="COMMAND", help="its output has to be equal at the end")
    parser.add_argument(
        "--tolerance",
        type=_tolerance,
        default=0.0,
        metavar="X",
        help="relative difference of equal numbers (0)",
    )


def _add_deaths(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ranks",
        type=shared.count,
        default=1,
        metavar="N",
        help="number of processes, started as torchrun starts them (1)",
    )
    shared.add_storages(parser, KILL)
    parser.add_argument(
        "--deaths",
        type=_deaths,
        default=(),
        metavar="A,B",
        help="kill, power (as --storage all), rank: one rank alone is killed, term and int: a signal, and time for its "
        "handler (kill,term,int, and rank with several ranks)",
    )
    parser.add_argument(
        "--grace", type=shared.seconds, default=30.0, metavar="S", help="seconds between a signal and SIGKILL (30)"
    )
    parser.add_argument("--level", help="core, strict or durable (core; with another --storage than kill, durable)")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cold",
        action="store_true",
        help="start a new process for each restart, not a fork with the imports done",
    )
    parser.add_argument(
        "--timeout",
        type=shared.seconds,
        metavar="S",
        help="seconds without output until a restart counts as hung (5 times the longest silence of the undisturbed "
        "runs)",
    )
    parser.add_argument(
        "--start-timeout",
        type=shared.seconds,
        default=600.0,
        metavar="S",
        help="the same limit for the undisturbed runs (600)",
    )
    parser.add_argument(
        "--seconds", type=shared.count, default=600, metavar="S", help="time limit for each storage, in seconds (600)"
    )


def _tolerance(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to below 1")
    return number


def run(options: argparse.Namespace) -> int:
    """The exit status: 0 if every restart is fine, 1 if one is not, 2 if nothing could be judged."""
    command, wishes = _command(options), _wishes(options)
    kinds = _kinds(options)
    level = _level(options)
    machine.check()
    recorder = choose(None)
    if recorder.name != "seccomp":
        raise CannotJudge(f"A script is recorded by seccomp alone, which is not possible here; {recorder.name} is.")
    mark = secrets.token_hex(8)
    expected = read_expected(options.xfail_file) if options.xfail_file else ()
    if options.dir is not None:
        _enter(options.dir)
    with (
        shared.temporary_folder(),
        janitor.folder("forge-script-", roomy(), f"{MARK}={mark}") as base,
    ):
        with _placed(base / "checkpoints", options.dir) as folder:
            stage, progress = (
                Stage(command, folder, mark, is_remapped=options.dir is not None),
                _Progress(len(kinds), folder),
            )
            try:
                prepared = prepare(stage, wishes, lambda line: print(line, flush=True))
                effort = Effort(not options.every_write, options.seconds, options.grace, options.n)
                result = explore(prepared, kinds, effort, progress.shows, progress.tells)
            finally:
                progress.end()
                stage.close()
        report = Report(result, level, options.out or Path("reports") / "script", expected)
        scripts = render.scripts(report)
        are_written = shared.write_scripts(scripts, report.out)
        if options.check_replays and are_written and not result.interrupted:
            report = _with_replays(report)
    kept = f"{report.out}/replay-*.py ({len(scripts)})" if scripts and are_written else ""
    status = report.status if are_written else Status.OUR_ERROR
    return shared.publish(render.console(report), render.files(report), report.out, status, kept)


def _command(options: argparse.Namespace) -> Command:
    first = tuple(options.words)
    if not first:
        raise shared.BadArgument("there is no command: write it after --, as in `-- python train.py {dir}`.")
    again = tuple(shlex.split(options.resume)) if options.resume else first
    command = Command(first, again, options.ranks)
    for words in (first, again):
        if reason := missing(words):
            raise shared.BadArgument(f"{shlex.join(words)}: {reason}.")
    if options.dir is not None and (inside := _inside(options.dir, (first, again))):
        raise shared.BadArgument(
            f"--dir {options.dir}: {inside} is in this folder, whose place another one takes, so it is not found. "
            "Start the command in a folder that holds nothing else, and name the script by its path."
        )
    if options.dir is None and not command.names_folder:
        raise shared.BadArgument(
            f"the command does not say where its checkpoints are: write {FOLDER} in their place, as in "
            f"`-- python train.py --out {FOLDER}`, or name the folder with --dir."
        )
    return command


def _inside(place: Path, commands: Iterable[Sequence[str]]) -> str:
    """A file that a command names and that stands below the place; "" if there is none."""
    words = (word for command in commands for word in command)
    below = place.resolve()
    scripts = (word for word in words if word.endswith((".py", ".sh")) and Path(word).is_file())
    return next((word for word in scripts if below in Path(word).resolve().parents), "")


def _enter(place: Path) -> None:
    try:
        remap.enter()
    except OSError as error:
        raise shared.BadArgument(
            f"--dir {place}: no other folder can take its place here ({error}). Write {FOLDER} into the command."
        ) from None


@contextlib.contextmanager
def _placed(folder: Path, place: Path | None) -> Iterator[Path]:
    """The checkpoint folder, or the place that it has taken; a place that was not there goes again."""
    folder.mkdir()
    if place is None:
        yield folder
        return
    place = place.absolute()
    is_ours = not place.exists()
    try:
        place.mkdir(parents=True, exist_ok=True)
        remap.bind(str(folder), str(place))
    except OSError as error:
        raise shared.BadArgument(f"--dir {place}: {error.strerror}.") from None
    try:
        yield place
    finally:
        remap.unbind(str(place))
        if is_ours:
            place.rmdir()


def _wishes(options: argparse.Namespace) -> Wishes:
    return Wishes(
        options.progress,
        options.saved,
        options.result,
        tuple(shlex.split(options.result_command)),
        options.tolerance,
        options.timeout or 0.0,
        options.start_timeout,
        not options.cold,
    )


def _deaths(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    known = (KILL, POWER, LOST_RANK, *SIGNALS)
    if wrong := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"{', '.join(map(repr, wrong))}: there are {', '.join(known)}")
    return names


def _kinds(options: argparse.Namespace) -> tuple[str, ...]:
    """The kinds of death in order; kills are always tried, since they show what a restart can bring back."""
    alone = (LOST_RANK,) if options.ranks > 1 else ()
    named = options.deaths or (KILL, *alone, *SIGNALS)
    if LOST_RANK in named and options.ranks == 1:
        raise shared.BadArgument("--deaths rank kills one rank of several: give --ranks 2 or more.")
    chosen = options.storage or (["all"] if POWER in named or _level(options) >= Level.DURABLE else [])
    storages = STORAGES if "all" in chosen else [name for name in chosen if name != KILL]
    return tuple(dict.fromkeys((KILL, *(name for name in named if name in (LOST_RANK, *SIGNALS)), *storages)))


def _level(options: argparse.Namespace) -> Level:
    if options.level is not None:
        return shared.level(options.level)
    is_by_power = POWER in options.deaths or any(name != KILL for name in options.storage or ())
    return Level.DURABLE if is_by_power else Level.CORE


def _with_replays(report: Report) -> Report:
    prepared = report.result.prepared
    patience_s = 3 * prepared.silence_s + 10 * prepared.seconds
    found, interrupted = list(report.result.found), ""
    try:
        for at, one in enumerate(found):
            found[at] = replace(one, replayed=outcome(report.out / one.name, patience_s))
    except KeyboardInterrupt:
        interrupted = "while the replay scripts ran"
    return replace(report, result=replace(report.result, found=tuple(found), interrupted=interrupted))


class _Progress(shared.Progress):
    """A line for each kind of death, and for each new way to go wrong."""

    def __init__(self, total: int, folder: Path) -> None:
        super().__init__(total)
        self._folder = str(folder)

    def shows(self, explored: Explored) -> None:
        """One more is explored."""
        totals = explored.totals
        self.show(f"{explored.storage}: {totals.disks:,} disks, {totals.bad:,} bad, {totals.restarts:,} restarts")

    def tells(self, line: str) -> None:
        """Something is wrong."""
        self.end()
        print(shortened(line.replace(self._folder, FOLDER), 160), file=sys.stderr, flush=True)
