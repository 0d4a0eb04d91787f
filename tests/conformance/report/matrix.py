"""The matrix for a terminal, for a pull request, for programs, and as one page with the table itself."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forge_conformance import __version__
from forge_conformance.judging.text import counted, one_line, shortened, wrapped
from forge_conformance.judging.verdicts import CHAPTER_NAMES
from forge_conformance.matrix.outcome import IDLE_ASSERTION, IDLE_TEST, End, Matrix, Outcome
from forge_conformance.report.markup import Content, Html, prose, row, table, tag
from forge_conformance.report.page import anchor, cards, finder, page

_MARKS = {End.KILLED: "✓", End.ELSEWHERE: "✗", End.SURVIVES: "✗", End.NOT_JUDGED: "?", End.ERROR: "!"}
_CLASSES = {
    End.KILLED: "good",
    End.ELSEWHERE: "bad",
    End.SURVIVES: "bad",
    End.NOT_JUDGED: "not-judged",
    End.ERROR: "bad",
}


def console(matrix: Matrix) -> str:
    """A line for each mutant, by chapter; then what there is to tell; then the totals."""
    lines = [_title(matrix)]
    for chapter, outcomes in _by_chapter(matrix):
        lines += ["", chapter, *map(_line, outcomes)]
    failing = [line for line in matrix.lines if line.fails]
    lines += ["", *(_shortened(f"{line.kind}: {line.text}") for line in failing)] if failing else []
    for kind in (IDLE_TEST, IDLE_ASSERTION):
        idle = [line.text for line in matrix.lines if line.kind == kind]
        lines += ["", _shortened(f"{kind} ({len(idle)}): {', '.join(idle)}")] if idle else []
    return "\n".join([*lines, "", totals(matrix)])


def _shortened(text: str) -> str:
    return wrapped(shortened(text, 3000), 0, 2)


def totals(matrix: Matrix) -> str:
    """One sentence with all counts."""
    words = [f"{matrix.count(end)} {end}" for end in End if matrix.count(end)]
    covered = sum(bool(matrix.killed_by(clause.slug)) for clause in matrix.clauses)
    cpu_s = sum(one.trial.cpu_s for one in matrix.outcomes)
    clauses = "" if matrix.is_partial else f" {covered} of {len(matrix.clauses)} clauses are broken by a mutant;"
    taken = f"{cpu_s:.0f} s of processor time for mutants, {matrix.seconds:.0f} s in all"
    mutants = counted(len(matrix.outcomes), "mutant")
    return f"{mutants}: {', '.join(words)};{clauses} {taken}; exit status {int(matrix.status)}"


def _title(matrix: Matrix) -> str:
    return f"forge-conformance {__version__}: the suite judged by mutants of {_bases(matrix)}"


def _bases(matrix: Matrix) -> str:
    """The managers that the mutants are made from; files without their folders."""
    return ", ".join(Path(base.name).name for base in (matrix.base, *matrix.other_bases))


def _by_chapter(matrix: Matrix) -> Iterator[tuple[str, list[Outcome]]]:
    for chapter in CHAPTER_NAMES:
        outcomes = [one for one in matrix.outcomes if one.mutant.own.chapter == chapter]
        if outcomes:
            yield chapter, outcomes


def _line(one: Outcome) -> str:
    ends = "killed by" if one.end is End.KILLED else str(one.end)
    because = shortened(one.because)
    return f"  {_MARKS[one.end]} {one.mutant.name:<38} {ends} {because}"


def as_json(matrix: Matrix) -> dict[str, Any]:
    """Plain values: bases, mutants with everything that failed in them, clauses with what they kill, and the lines."""
    return {
        "suite_version": __version__,
        "is_partial": matrix.is_partial,
        "exit_status": int(matrix.status),
        "seconds": round(matrix.seconds, 1),
        "bases": [
            {"name": base.name, "exit_status": base.status, "verdicts": dict(base.verdicts), "seconds": base.seconds}
            for base in (matrix.base, *matrix.other_bases)
        ],
        "mutants": [_mutant_json(one) for one in matrix.outcomes],
        "clauses": {
            clause.slug: [one.mutant.name for one in matrix.killed_by(clause.slug)] for clause in matrix.clauses
        },
        "lines": [{"kind": line.kind, "text": line.text, "fails": line.fails} for line in matrix.lines],
    }


def _mutant_json(one: Outcome) -> dict[str, Any]:
    return {
        "name": one.mutant.name,
        "mistake": one.mutant.mistake,
        "base": one.base.name,
        "level": str(one.mutant.level),
        "clauses": list(one.mutant.clauses),
        "end": str(one.end),
        "because": one.because,
        "seen": one.seen,
        "is_hang": one.is_hang,
        "errors": one.errors,
        "failed": {slug: [finding.case for finding in findings] for slug, findings in one.failed.items()},
        "tests": {finding.case: finding.outcome for finding in one.trial.findings},
        "failed_at": sorted({f"{module}:{line}" for module, line in one.failed_at}),
        "cpu_seconds": round(one.trial.cpu_s, 2),
        "seconds": round(one.trial.wall_s, 2),
    }


def markdown(matrix: Matrix) -> str:
    """A summary for a pull request or a job page."""
    lines = [f"## {_title(matrix)}", "", totals(matrix), ""]
    lines += [f"- **{line.kind}**: {one_line(line.text)}" for line in matrix.lines if line.fails]
    lines += ["", "| mutant | mistake | ends | seconds of processor |", "|---|---|---|---|"]
    for one in matrix.outcomes:
        end = f"{one.end} by {one.because}" if one.end is End.KILLED else f"**{one.end}**: {one.because}"
        lines.append(
            f"| `{one.mutant.name}` | {one_line(one.mutant.mistake)} | {one_line(end)} | {one.trial.cpu_s:.1f} |"
        )
    return "\n".join([*lines, "", *(f"- {line.kind}: {line.text}" for line in matrix.lines if not line.fails)]) + "\n"


def html_page(matrix: Matrix) -> str:
    """One self-contained page: what there is to tell, clause by mutant, and what became of each mutant."""
    ends = [end for end in End if matrix.count(end)]
    made_from = f"forge-conformance {__version__}; mutants of {_bases(matrix)}"
    body: list[Content] = [tag("h1", _HEADLINE), tag("p", made_from, class_="soft"), tag("p", totals(matrix))]
    body.append(cards((matrix.count(end), tag("span", end, class_=f"mark {_CLASSES[end]}")) for end in ends))
    body += [tag("p", f"{line.kind}: {line.text}", class_="banner" if line.fails else "soft") for line in matrix.lines]
    body += [tag("h2", "Clauses and mutants", id="grid"), tag("p", _HOW_TO_READ, class_="soft")]
    body.append(tag("div", tag("table", _grid(matrix)), class_="grid"))
    body.append(tag("h2", "Mutants", id="mutants"))
    body.append(finder("the mutants", map(str, ends)))
    body.append(table(("mutant", "mistake", "ends", "by", "processor"), map(_row, matrix.outcomes), class_="mutants"))
    return page(_HEADLINE, body)


_HEADLINE = "The suite, judged by mutants"
_HOW_TO_READ = (
    "Green: the mutant's own clauses failed. Framed in red: its own clause did not fail. Yellow: another clause "
    "failed. Pale: tried, and it held."
)


def _grid(matrix: Matrix) -> Iterator[Html]:
    mutants = [one.mutant for one in matrix.outcomes]
    links = ((tag("a", one.name, href=f"#{one.name}"), one.mistake) for one in mutants)
    names = (tag("th", link, class_="head", title=mistake) for link, mistake in links)
    yield tag("tr", tag("th", class_="head side"), names)
    for clause in matrix.clauses:
        bare = "" if matrix.is_partial or matrix.killed_by(clause.slug) else " bare"
        chapter, _, rest = clause.slug.partition(".")
        side = tag("th", f"{chapter}.", tag("wbr"), rest, class_=f"side{bare}", title=clause.sentence)
        yield tag("tr", side, (_mark(one, clause.slug) for one in matrix.outcomes))


def _mark(one: Outcome, slug: str) -> Html:
    is_own, failed = slug in one.mutant.clauses, slug in one.failed and not one.errors
    held = any(finding.reached.get(slug) for finding in one.trial.findings)
    css = ("good" if failed else "own") if is_own else "too" if failed else "held" if held else ""
    said = f"{one.mutant.name}, {slug}: {'failed' if failed else 'held' if held else 'unreached'}"
    return tag("td", class_=css, title=said) if css else tag("td")


def _row(one: Outcome) -> Html:
    end = tag("span", one.end, class_=f"mark {_CLASSES[one.end]}")
    name = tag("td", tag("code", one.mutant.name), id=one.mutant.name)
    cells = (name, prose(one.mutant.mistake), end, one.because[:200], f"{one.trial.cpu_s:.1f} s")
    return row(*cells, title=one.seen, data_marks=anchor(one.end))


def files(matrix: Matrix) -> dict[str, str]:
    """The report's files by name."""
    return {
        "matrix.json": json.dumps(as_json(matrix), indent=2) + "\n",
        "matrix.md": markdown(matrix),
        "matrix.html": html_page(matrix),
        "console.txt": console(matrix) + "\n",
    }
