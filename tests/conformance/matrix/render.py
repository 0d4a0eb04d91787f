"""The matrix for a terminal, for a pull request, for programs, and as one page with the table itself."""

import html
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forge_conformance import __version__
from forge_spec import CHAPTERS

from .outcome import IDLE_ASSERTION, IDLE_TEST, End, Line, Matrix, Outcome

_WIDTH = 110
_MARKS = {End.KILLED: "✓", End.ELSEWHERE: "✗", End.SURVIVES: "✗", End.NOT_JUDGED: "?", End.ERROR: "!"}
_CLASSES = {End.KILLED: "good", End.ELSEWHERE: "bad", End.SURVIVES: "bad", End.NOT_JUDGED: "not", End.ERROR: "bad"}


def console(matrix: Matrix) -> str:
    """A line for each mutant, by chapter; then what there is to tell; then the totals."""
    lines = [_title(matrix)]
    for chapter, outcomes in _by_chapter(matrix):
        lines += ["", chapter, *map(_line, outcomes)]
    told = [line for line in matrix.lines if line.fails]
    lines += ["", *(_wrapped(f"{line.kind}: {line.text}") for line in told)] if told else []
    for kind in (IDLE_TEST, IDLE_ASSERTION):
        idle = [line.text for line in matrix.lines if line.kind == kind]
        lines += ["", _wrapped(f"{kind} ({len(idle)}): {', '.join(idle)}")] if idle else []
    return "\n".join([*lines, "", totals(matrix)])


def totals(matrix: Matrix) -> str:
    """One sentence with all counts."""
    words = [f"{matrix.count(end)} {end}" for end in End if matrix.count(end)]
    covered = sum(bool(matrix.killers(clause.slug)) for clause in matrix.clauses)
    cpu_s = sum(one.trial.cpu_s for one in matrix.outcomes)
    clauses = "" if matrix.is_partial else f" {covered} of {len(matrix.clauses)} clauses are broken by a mutant;"
    taken = f"{cpu_s:.0f} s of processor time for mutants, {matrix.seconds:.0f} s in all"
    mutants = f"{len(matrix.outcomes)} mutant{'' if len(matrix.outcomes) == 1 else 's'}"
    return f"{mutants}: {', '.join(words)};{clauses} {taken}; exit status {int(matrix.status)}"


def _title(matrix: Matrix) -> str:
    bases = ", ".join(base.name for base in (matrix.base, *matrix.other_bases))
    return f"forge-conformance {__version__}: the suite judged by mutants of {bases}"


def _by_chapter(matrix: Matrix) -> Iterator[tuple[str, list[Outcome]]]:
    for chapter in (module.__name__.rpartition(".")[2] for module in CHAPTERS):
        outcomes = [one for one in matrix.outcomes if one.mutant.own.chapter == chapter]
        if outcomes:
            yield chapter, outcomes


def _line(one: Outcome) -> str:
    ends = "killed by" if one.end is End.KILLED else str(one.end)
    because = textwrap.shorten(one.because, 300, placeholder=" ...")
    return f"  {_MARKS[one.end]} {one.mutant.name:<38} {ends} {because}"


def _wrapped(text: str) -> str:
    return textwrap.fill(textwrap.shorten(text, 3000, placeholder=" ..."), _WIDTH, subsequent_indent="  ")


def as_json(matrix: Matrix) -> dict[str, Any]:
    """Plain values: bases, mutants with all that fell in them, clauses with their killers, and the lines."""
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
        "clauses": {clause.slug: [one.mutant.name for one in matrix.killers(clause.slug)] for clause in matrix.clauses},
        "lines": [{"kind": line.kind, "text": line.text, "fails": line.fails} for line in matrix.lines],
    }


def _mutant_json(one: Outcome) -> dict[str, Any]:
    return {
        "name": one.mutant.name,
        "sin": one.mutant.sin,
        "base": one.base.name,
        "level": str(one.mutant.level),
        "clauses": list(one.mutant.clauses),
        "end": str(one.end),
        "because": one.because,
        "seen": one.seen,
        "is_hang": one.is_hang,
        "errors": one.errors,
        "fallen": {slug: [finding.case for finding in findings] for slug, findings in one.fallen.items()},
        "tests": {finding.case: finding.outcome for finding in one.trial.findings},
        "fell_at": sorted({f"{module}:{line}" for module, line in one.fell_at}),
        "cpu_seconds": round(one.trial.cpu_s, 2),
        "seconds": round(one.trial.wall_s, 2),
    }


def markdown(matrix: Matrix) -> str:
    """A summary for a pull request or a job page."""
    lines = [f"## {_title(matrix)}", "", totals(matrix), ""]
    lines += [f"- **{line.kind}**: {_cell(line.text)}" for line in matrix.lines if line.fails]
    lines += ["", "| mutant | sin | ends | seconds of processor |", "|---|---|---|---|"]
    for one in matrix.outcomes:
        end = f"{one.end} by {one.because}" if one.end is End.KILLED else f"**{one.end}**: {one.because}"
        lines.append(f"| `{one.mutant.name}` | {_cell(one.mutant.sin)} | {_cell(end)} | {one.trial.cpu_s:.1f} |")
    return "\n".join([*lines, "", *(f"- {line.kind}: {line.text}" for line in matrix.lines if not line.fails)]) + "\n"


def _cell(text: str) -> str:
    return textwrap.shorten(text.replace("|", "\\|"), 300, placeholder=" ...")


_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem; color: #222; } code, pre { font-size: 12px; }
table { border-collapse: collapse; font-size: 12px; }
td, th { white-space: nowrap; text-align: left; font-weight: 400; }
table.list td { padding: 0 1rem 0 0; } tr:hover { background: #eef3f8; }
div.grid { overflow: auto; max-height: 90vh; border: 1px solid #ddd; }
.grid td { min-width: 13px; height: 13px; border: 1px solid #eee; padding: 0; } .grid td.good { background: #4a9d5b; }
.grid td.own { background: #fff; outline: 2px solid #c0392b; outline-offset: -2px; }
.grid td.too { background: #f0c36d; }
.grid td.held { background: #e6eee8; }
.grid th.head { vertical-align: bottom; padding: 2px 0; position: sticky; top: 0; background: #fff; }
.grid th.head span { writing-mode: vertical-rl; transform: rotate(180deg); }
.grid th.side { position: sticky; left: 0; background: #fff; padding: 0 .7rem 0 .3rem; }
.bad, th.bare { color: #c0392b; font-weight: 600; }
.good { color: #2d7a3e; } .not { color: #888; }
"""


def page(matrix: Matrix) -> str:
    """One self-contained page: what there is to tell, clause by mutant, and what became of each mutant."""
    body = [f"<h1>{html.escape(_title(matrix))}</h1><p>{html.escape(totals(matrix))}</p>"]
    body += [_told(line) for line in matrix.lines]
    body.append(
        "<p>Green: the mutant's own clauses fell. Framed in red: its own clause did not. Yellow: another clause fell "
        "on the way. Grey: tried, and it held.</p>"
    )
    body.append(f"<div class=grid><table>{''.join(_grid(matrix))}</table></div>")
    body.append("<h2>Mutants</h2><table class=list>")
    body += [_row(one) for one in matrix.outcomes]
    head = f"<!doctype html><meta charset=utf-8><title>Mutants</title><style>{_STYLE}</style>"
    return head + "\n".join([*body, "</table>"]) + "\n"


def _told(line: Line) -> str:
    return f"<div{' class=bad' if line.fails else ''}>{html.escape(f'{line.kind}: {line.text}')}</div>"


def _grid(matrix: Matrix) -> Iterator[str]:
    heads = [(one.mutant.name, _quoted(one.mutant.sin)) for one in matrix.outcomes]
    heads = [(one.mutant.name, _quoted(one.mutant.sin)) for one in matrix.outcomes]
    names = "".join(f"<th class=head title='{sin}'><span>{name}</span></th>" for name, sin in heads)
    yield f"<tr><th class='head side'></th>{names}</tr>"
    for clause in matrix.clauses:
        bare = "" if matrix.is_partial or matrix.killers(clause.slug) else " bare"
        cells = "".join(_mark(one, clause.slug) for one in matrix.outcomes)
        yield f"<tr><th class='side{bare}' title='{_quoted(clause.sentence)}'>{clause.slug}</th>{cells}</tr>"


def _mark(one: Outcome, slug: str) -> str:
    is_own, fell = slug in one.mutant.clauses, slug in one.fallen and not one.errors
    held = any(finding.reached.get(slug) for finding in one.trial.findings)
    css = ("good" if fell else "own") if is_own else "too" if fell else "held" if held else ""
    if not css:
        return "<td></td>"
    said = f"{one.mutant.name}, {slug}: {'fell' if fell else 'held' if held else 'unreached'}"
    return f"<td class={css} title='{_quoted(said)}'></td>"


def _row(one: Outcome) -> str:
    end = f"<span class={_CLASSES[one.end]}>{one.end}</span>"
    words = [f"<code>{one.mutant.name}</code>", html.escape(one.mutant.sin), end, html.escape(one.because[:200])]
    cells = "".join(f"<td>{word}</td>" for word in (*words, f"{one.trial.cpu_s:.1f} s"))
    return f"<tr title='{_quoted(one.seen)}'>{cells}</tr>"


def _quoted(text: str) -> str:
    return html.escape(text, quote=True)


def write(matrix: Matrix, directory: Path) -> list[str]:
    """All files into a directory that is made if need be; their names."""
    directory.mkdir(parents=True, exist_ok=True)
    contents = {
        "matrix.json": json.dumps(as_json(matrix), indent=2) + "\n",
        "matrix.md": markdown(matrix),
        "matrix.html": page(matrix),
        "console.txt": console(matrix) + "\n",
    }
    for name, content in contents.items():
        (directory / name).write_text(content, encoding="utf-8", errors="backslashreplace")
    return [str(directory / name) for name in contents]
