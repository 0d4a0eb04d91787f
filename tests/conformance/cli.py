"""The command `forge-conformance`.

    smoke    a first contact: does the manager import, save, and resume after a kill?
    run      the suite; verdicts by chapter and clause
    crash    every disk that a death can leave, deaths and failures of real processes, and the resume from each
    script   a training script, judged by its restarts, without an adapter
    matrix   the suite itself, judged by managers with one mistake each
    table    the reports of several managers as one table, with a page and a badge for each
    list     the clauses, the capabilities or the traits
    explain  one clause: what, why, and which tests judge it

`run` exits with 0 when every judged clause holds, 1 when one fails (or an
expected failure is stale), 2 when nothing could be judged, 3 for an error of
the suite itself or an interruption, after which the report is partial.
"""

import argparse
import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from forge_conformance import __version__
from forge_conformance.commands import clauses, crash, matrix, run, script, smoke, table
from forge_conformance.commands.options import BadArgument, Parser, check_directory
from forge_conformance.judging.files import Unwritten
from forge_conformance.judging.judge import CannotJudge
from forge_conformance.judging.verdicts import BadExpectations, Status
from forge_conformance.runs.machine import MachineLacks

_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "smoke": (smoke.HELP, smoke.add_arguments, smoke.run),
    "run": (run.HELP, run.add_arguments, run.run),
    "crash": (crash.HELP, crash.add_arguments, crash.run),
    "script": (script.HELP, script.add_arguments, script.run),
    "matrix": (matrix.HELP, matrix.add_arguments, matrix.run),
    "table": (table.HELP, table.add_arguments, table.run),
    "list": (clauses.LIST_HELP, clauses.add_list_arguments, clauses.list_all),
    "explain": (clauses.EXPLAIN_HELP, clauses.add_explain_arguments, clauses.explain),
}
"""For each command what it is for, what adds its options, and what runs it."""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""Errors of a place that nothing can be written to any more."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status; see the module's text."""
    _open_closed_streams()
    options = _parser().parse_args(arguments)
    try:
        _check_here()
        if hasattr(options, "out"):
            check_directory(options.out or Path("reports"))
        with _ended_like_interrupted():
            status: int = options.command(options)
        sys.stdout.flush()
        return status
    except (CannotJudge, BadExpectations, BadArgument) as reason:
        _say(str(reason))
        return Status.NOTHING_JUDGED
    except MachineLacks as lack:
        _say(f"nothing can be judged on this machine. {lack}")
        return Status.OUR_ERROR
    except BrokenPipeError:  # whoever read our output has seen enough, as in `list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        _say("interrupted")
        return Status.OUR_ERROR
    except Unwritten as error:
        _say(str(error))
        return Status.OUR_ERROR
    except OSError as error:
        if error.filename is not None or error.errno not in _FULL:
            return _our_error()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left of it can't be printed either
        _say(f"the output can't be written: {error.strerror}")
        return Status.OUR_ERROR
    except Exception:
        return _our_error()


def _our_error() -> int:
    _say(f"an error of the suite, not of the manager:\n{traceback.format_exc().rstrip()}")
    return Status.OUR_ERROR


def _say(text: str) -> None:
    """Say on stderr why the command ends; where that can't be written either, the exit status has to do."""
    try:
        print(f"forge-conformance: {text}", file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _open_closed_streams() -> None:
    """Whoever closes a stream does not want to read it; Python then has None in its place."""
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115 -- it lives as long as the process
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115 -- the same


def _parser() -> Parser:
    parser = Parser(prog="forge-conformance", description="Judge a training-checkpoint manager.")
    parser.add_argument("--version", action="version", version=f"forge-conformance {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (says, add_arguments, runs) in _COMMANDS.items():
        command = commands.add_parser(name, help=says, description=f"{says[0].upper()}{says[1:]}.")
        add_arguments(command)
        command.set_defaults(command=runs)
    return parser


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


if __name__ == "__main__":
    sys.exit(main())
