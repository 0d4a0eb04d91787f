"""What the commands share: options and their values, progress, temporary folders, and how a report is published."""

import argparse
import contextlib
import difflib
import fnmatch
import functools
import itertools
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from forge_conformance.judging import files
from forge_conformance.judging.verdicts import Status, needs_of_unjudged, unjudged_claims
from forge_conformance.report.page import write
from forge_conformance.runs import janitor
from forge_conformance.runs.server import Server
from forge_spec import BY_SLUG
from forge_spec.clauses import CAPABILITIES, Level, with_parts
from forge_spec.disk import STORAGES

TIMEOUT_S = 20.0
IMPORT_TIMEOUT_S = 120.0


class BadArgument(Exception):
    """An option has a value that it can't have; the text names it and what it could be."""


# -- options --------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """An option has one value, unless it is repeatable; otherwise the last value would win in silence."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.given: dict[str, object] = {}
        for name in (None, "store"):
            self.register("action", name, _Once)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.given = {}
        return super().parse_known_args(args, namespace)


class _Once(argparse.Action):
    """Stores a value, and refuses another one for the same option."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, _: Any = None
    ) -> None:
        assert isinstance(parser, Parser), "only that one registers it"
        if self.option_strings:
            first = parser.given.setdefault(self.dest, values)
            if first != values:
                both = f"as {_shown(first)!r} and as {_shown(values)!r}"
                raise argparse.ArgumentError(self, f"given twice, {both}. Give it once.")
        setattr(namespace, self.dest, values)


def _shown(value: Any) -> str:
    return (
        ",".join(value)
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value) or "none"
    )


def add_manager(parser: argparse.ArgumentParser) -> None:
    """How to start the manager that is judged."""
    parser.add_argument("--impl", required=True, help="a drop-in module, module:Adapter, or file.py:Adapter")
    parser.add_argument(
        "--python",
        metavar="PATH",
        help="Python of the environment in which the manager is installed (default: this one)",
    )
    parser.add_argument(
        "--timeout", type=seconds, default=TIMEOUT_S, metavar="S", help="seconds until a command counts as hung (20)"
    )
    parser.add_argument(
        "--import-timeout",
        type=seconds,
        default=IMPORT_TIMEOUT_S,
        metavar="S",
        help="seconds until importing the manager counts as hung (120)",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where state lives."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device of model and optimizer (cpu)")


def add_level(parser: argparse.ArgumentParser) -> None:
    """The level that the manager is judged at."""
    parser.add_argument("--level", help="core, strict or durable (default: what the manager claims)")


def add_claims(parser: argparse.ArgumentParser) -> None:
    """What the manager is held to."""
    parser.add_argument("--claims", help="replace the claimed capabilities (a,b,c) or change them (+a,-b)")


def add_storages(parser: argparse.ArgumentParser, kill: str) -> None:
    """What a death may take away, and how much of it is tried; `kill` is the name of a death that takes nothing."""
    names = (kill, *STORAGES)
    parser.add_argument(
        "--storage",
        action="append",
        choices=[*names, "all"],
        help=f"what a death may take away: {', '.join(names)}, or all; repeatable ({kill}; at level durable, all)",
    )
    parser.add_argument("--every-write", action="store_true", help="do not leave out the middle of bursts of writes")
    parser.add_argument(
        "--check-replays",
        action="store_true",
        help="run each replay script alone and compare its verdict (seconds each)",
    )


def add_out(parser: argparse.ArgumentParser, usual: str) -> None:
    """Where the report goes; `usual` is shown."""
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"the directory of the report's files ({usual})")


def add_unless_judged(parser: argparse.ArgumentParser) -> None:
    """Whether a report that is there may do."""
    parser.add_argument(
        "--unless-judged",
        action="store_true",
        help="print the report that is in --out, if it is complete and of the same code, environment and options",
    )


def add_jobs(parser: argparse.ArgumentParser, what: str, usual: int = 1) -> None:
    """How much is done at once."""
    parser.add_argument("-n", type=count, default=usual, metavar="N", help=f"{what} at the same time ({usual})")


def count(text: str) -> int:
    """A positive integer."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return number


def count_or_none(text: str) -> int:
    """An integer from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of 0 or more")
    return int(text)


def seconds(text: str) -> float:
    """A positive number of seconds, as the options that wait need it."""
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return number


def level(name: str) -> Level:
    """The level of this name."""
    try:
        return Level.named(name)
    except ValueError as error:
        raise BadArgument(f"{error}.") from None


def clauses(patterns: Sequence[str] | None) -> frozenset[str] | None:
    """The clauses that were asked for, by their slugs or by patterns such as `commit.*`; None for all."""
    matching = {pattern: fnmatch.filter(BY_SLUG, pattern) for pattern in patterns or ()}
    unknown = [pattern for pattern, slugs in matching.items() if not slugs]
    if unknown:
        near = [name for slug in unknown for name in difflib.get_close_matches(slug, BY_SLUG, 2)]
        meant = f" Did you mean {' or '.join(near)}?" if near else ""
        named = ", ".join(map(repr, unknown))
        raise BadArgument(f"there is no clause {named}; forge-conformance list shows them all.{meant}")
    return frozenset(itertools.chain.from_iterable(matching.values())) if patterns else None


def claims(option: str | None, claimed: frozenset[str]) -> frozenset[str]:
    """The capabilities that count: `a,b` replaces those that are claimed, `+a,-b` changes them, None keeps them.

    Changes of no claims, before the manager has said what it claims, are checked for their words alone. What no
    clause judges once a claim is removed is left out as well, unless the option adds it; a line on stderr says so.
    """
    words = [word.strip() for word in option.split(",") if word.strip()] if option else []
    if option is not None and not words:
        raise BadArgument(f"--claims {option!r} names no capability; write a,b,c or +a,-b, or leave the option out.")
    changes = [word for word in words if word[0] in "+-"]
    names = {word.lstrip("+-") for word in words} | claimed
    unknown = sorted(names - CAPABILITIES.keys())
    if unknown:
        whose = "--claims names" if unknown[0] not in claimed else "the adapter claims"
        known = ", ".join(CAPABILITIES)
        raise BadArgument(f"{whose} {', '.join(unknown)}, which is not a capability; there are {known}.")
    if changes and len(changes) != len(words):
        raise BadArgument(f"--claims {option} mixes names with changes; write either a,b,c or +a,-b.")
    added, removed = ([word[1:] for word in changes if word[0] == sign] for sign in "+-")
    counting = (claimed | with_parts(added)) - with_parts(removed) if changes else with_parts(words) or claimed
    if changes and not claimed:
        return counting
    depending = sorted(needs_of_unjudged(counting).keys() - with_parts(added)) if removed else []
    counting -= frozenset(depending)
    unjudged = unjudged_claims(counting)
    if unjudged:
        raise BadArgument(f"--claims {option}: {unjudged}")
    if depending:
        named = ", ".join(depending)
        _say_once(f"--claims {option} also leaves out {named}: no clause judges them without what is removed.")
    return counting


@functools.cache
def _say_once(line: str) -> None:
    """Say it the first time alone: `crash` asks for the claims at each start of a server, also in other processes."""
    if multiprocessing.parent_process() is None:
        print(f"forge-conformance: {line}", file=sys.stderr)


def server(options: argparse.Namespace) -> Server:
    """A warm server for the manager."""
    return Server(options.impl, options.python, options.timeout, options.import_timeout, options.device)


def unusual(options: argparse.Namespace, more: Mapping[str, Any]) -> Iterator[str]:
    """The options that decide what is tried and how, where they are not the usual ones; `more` are a command's own."""
    usual = {"python": None, "claims": None, **more, "timeout": TIMEOUT_S, "import_timeout": IMPORT_TIMEOUT_S}
    for name, value in usual.items():
        given = getattr(options, name)
        if given != value:
            said = f"{given:g}" if isinstance(given, float) else given or "none"
            yield f"--{name.replace('_', '-')}={said}"


def check_directory(path: Path, option: str = "--out") -> None:
    """Looked at before anything runs, and made afterwards, so that a refusal leaves nothing behind."""
    nearest = next(above for above in (path, *path.absolute().parents) if above.exists())
    if not nearest.is_dir():
        raise BadArgument(f"{option} {path} can't be made a directory: {nearest} is a file.")
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise BadArgument(f"{option} {path} can't be written to: {error.strerror} in {nearest}.") from None


# -- while it runs --------------------------------------------------------------------


class Progress:
    """One line that is written over and over on a terminal; elsewhere some lines."""

    def __init__(self, total: int = 0, every: int = 1) -> None:
        """Elsewhere than on a terminal a line stands for `every` so many."""
        self.total = total
        self.done = 0
        self._every = every
        self._stream = sys.stderr

    def show(self, line: str, elsewhere: str | None = None) -> None:
        """One more is done."""
        self.done += 1
        if self._stream.isatty():
            print(f"\r\033[K{line}", end="", file=self._stream, flush=True)
        elif self.done % self._every == 0 or self.done == self.total:
            print(elsewhere or line, file=self._stream, flush=True)

    def end(self) -> None:
        """Leave the terminal's line clean."""
        if self._stream.isatty():
            print("\r\033[K", end="", file=self._stream, flush=True)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Everything temporary goes below this folder, so that nothing stays of processes that are ended in the middle."""
    before = os.environ.get("TMPDIR")
    with janitor.folder("forge-run-", is_for_temporary_files=True) as folder:
        os.environ["TMPDIR"], tempfile.tempdir = str(folder), None
        try:
            yield folder
        finally:
            os.environ.pop("TMPDIR") if before is None else os.environ.update(TMPDIR=before)
            tempfile.tempdir = None


# -- afterwards -----------------------------------------------------------------------


def judged_before(out: Path, name: str, answers: Callable[[Any], Status | None]) -> Status | None:
    """Show the report that is in `out`, if the values in its file `name` answer; its exit status, or None.

    `BadArgument` where such a file is, for example, a pipe: the new report could not be written either.
    """
    try:
        written = files.read_json(out / name)
        since = datetime.fromtimestamp((out / name).stat().st_mtime).astimezone()
        shown = files.read_text(out / "console.txt")
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        raise BadArgument(
            f"--unless-judged: {error.filename} can't be read: {error.strerror}. Remove it, or name another --out."
        ) from None
    status = answers(written)
    if status is not None:
        print(f"{shown}kept from {since:%Y-%m-%d %H:%M}, judged by the same code in the same environment: {out}")
    return status


def begin(contents: Mapping[str, str], name: str, out: Path) -> bool:
    """Replace a report in `out` by one of an unfinished run, `name` first: the run may be killed at any moment.

    Nothing is written where there is no report; the result says whether there was one.
    """
    if not (out / name).is_file():
        return False
    try:
        write({name: contents[name]}, out)
    except files.Unwritten as error:
        raise BadArgument(f"the report that is there can't be replaced: {error}.") from None
    with contextlib.suppress(files.Unwritten):  # the report will say so
        write(contents, out)
    return True


def write_scripts(scripts: Mapping[str, str], out: Path) -> bool:
    """Whether all of them could be written. If not, that is said, and the report is still to come."""
    try:
        write(scripts, out)
    except files.Unwritten as error:
        print(f"forge-conformance: replay scripts are missing: {error}", file=sys.stderr)
        return False
    return True


def publish(shown: str, contents: Mapping[str, str], out: Path, status: Status, kept: str = "") -> Status:
    """Write the report's files, show it, and return the exit status.

    Files first: a terminal may go away meanwhile.  A report that can't be written is shown all the same.  `kept` names
    files that were written before.
    """
    try:
        said = f"written: {', '.join([*write(contents, out), *([kept] if kept else [])])}"
    except files.Unwritten as error:
        said, status = f"forge-conformance: the report is not complete: {error}", Status.OUR_ERROR
    print(shown)
    print(said, file=sys.stdout if said.startswith("written") else sys.stderr)
    return status
