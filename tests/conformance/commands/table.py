"""`forge-conformance table`: the reports of several managers as one table, with a page and a badge for each."""

import argparse
import os
import sys
from collections.abc import Collection
from pathlib import Path

from forge_conformance.commands import options as shared
from forge_conformance.judging import files
from forge_conformance.judging.text import counted
from forge_conformance.judging.verdicts import Status
from forge_conformance.report import compact, findings, stored
from forge_conformance.report import table as render
from forge_conformance.report.page import write

HELP = "show the reports of several managers as one table, with a page and a badge for each"
_OUT = Path("reports/table")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "reports",
        nargs="*",
        type=Path,
        metavar="REPORT_DIR",
        help="an --out of `run`, with that of `crash` in its folder `crash`; added to the table that --out holds",
    )
    shared.add_out(parser, f"./{_OUT}")
    parser.add_argument("--findings", type=Path, metavar="DIR", help="pages about findings (DIR/../findings of --out)")
    parser.add_argument(
        "--check",
        type=Path,
        metavar="DIR",
        help="write nothing; fail if a table is not what its reports give today",
    )


def run(options: argparse.Namespace) -> int:
    """Write a table, or compare one: 0 if it is up to date, 1 if it is not, 2 if there is nothing to show."""
    if options.check is not None and (options.reports or options.out):
        raise shared.BadArgument("--check takes neither --out nor reports; it reads those in the table.")
    out = options.check or options.out or _OUT
    reports = [directory for directory in options.reports if directory.resolve() != out.resolve()]
    comparison = _comparison(reports, out, options.findings or out.parent / "findings")
    contents = render.files(comparison)
    if options.check is not None:
        return _check(contents, out)
    elsewhere = [directory for directory in reports if directory.resolve().parent != out.resolve()]
    named = {directory.resolve().name for directory in elsewhere}
    for name, content in contents.items():
        if not _is_damaged(name, content, named, out):
            write({Path(name).name: content}, out / Path(name).parent)
    for name in named:
        if f"{name}/crash/crash.json" not in contents:  # that of an earlier report
            (out / name / "crash" / "crash.json").unlink(missing_ok=True)
    print(f"{counted(len(comparison.managers), 'manager')}; written: {out}/README.md, {out}/index.html")
    return Status.PASSED


def _comparison(directories: list[Path], out: Path, pages: Path) -> render.Comparison:
    _check_named(directories, out)
    named = {directory.resolve().name: directory for directory in directories}
    if len(named) < len(directories):
        raise shared.BadArgument("two of the folders have the same name, which is the name in the table; rename one.")
    kept = {path.name: path for path in sorted(out.iterdir()) if path.is_dir()} if out.is_dir() else {}
    found = {**kept, **named}
    if not found:
        raise shared.BadArgument(f"there is no report to show: {out} holds none, and none is named.")
    managers = tuple(stored.read(found[name]) for name in sorted(found))
    try:
        return render.Comparison(managers, findings.read(pages, os.path.relpath(pages, out)))
    except OSError as error:
        raise shared.BadArgument(f"--findings {pages}: {error.filename} can't be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise shared.BadArgument(f"--findings {pages}: a page is not UTF-8 text: {error.reason}.") from None


def _check_named(directories: list[Path], out: Path) -> None:
    """A folder that is missing has a row that says so, if there are others, and it takes no kept report away."""
    missing = [directory for directory in directories if not directory.is_dir()]
    for directory in missing:
        if set("*?[") & set(str(directory)):  # a shell hands on a pattern that matches nothing
            raise shared.BadArgument(f"no folder matches {directory}; name folders that `run` wrote its report into.")
        if directory.exists() or (not out.is_dir() and len(missing) == len(directories)):
            raise shared.BadArgument(f"there is no folder {directory}; name folders that `run` wrote its report into.")
        if stored.read(out / directory.resolve().name).report:
            kept = f"{out} has a report of that name. Judge the manager, or leave the folder out to keep that report"
            raise shared.BadArgument(f"there is no folder {directory}, and {kept}.")
        print(f"forge-conformance: there is no folder {directory}; its row says so.", file=sys.stderr)


def _is_damaged(name: str, content: str, named: Collection[str], out: Path) -> bool:
    """Whether a kept report can't be shown. It stays as it is, so that somebody can repair it."""
    kept = Path(name).parts[0] not in named and name.endswith(("/report.json", "/crash.json"))
    return kept and compact.is_trouble(content) and _text(out / name) not in (None, content)


def _check(contents: dict[str, str], out: Path) -> Status:
    """Say which files are not what the reports and the specification of today give."""
    wrong = [name for name, content in contents.items() if _text(out / name) != content]
    there = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    wrong += [f"{name} (not part of the table)" for name in sorted(there - contents.keys())]
    if not wrong:
        print(f"{out} is up to date")
        return Status.PASSED
    print(f"{out} is not what its reports and the specification give today: {', '.join(wrong)}")
    for name in (name for name in wrong if name in contents and _is_damaged(name, contents[name], (), out)):
        print(f"{out / name} can't be shown; restore it, or judge the manager again")
    print(f"render it again: forge-conformance table --out {out}")
    return Status.FAILED


def _text(path: Path) -> str | None:
    try:
        return files.read_text(path)
    except (OSError, UnicodeDecodeError):
        return None
