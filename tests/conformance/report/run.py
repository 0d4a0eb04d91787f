"""The same report five times: for a terminal, a program, a CI server, a pull request and a browser."""

import json
import shlex
from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

from forge_conformance import __version__
from forge_conformance.judging.text import counted, for_xml, one_line, shortened, wrapped
from forge_conformance.judging.verdicts import (
    CHAPTER_NAMES,
    Cause,
    Finding,
    Judged,
    Report,
    Status,
    Verdict,
    causes,
    errors_behind,
    in_brief,
    raised_at,
)
from forge_conformance.report.manager import html_page
from forge_conformance.report.markup import visible
from forge_conformance.report.stored import SCHEMA_VERSION, Stored
from forge_spec import digests

_MARKS = {
    Verdict.PASS: "✓",
    Verdict.FAIL: "✗",
    Verdict.EXPECTED_FAIL: "~",
    Verdict.UNREACHED: "?",
    Verdict.UNCLAIMED: "·",
    Verdict.ERROR: "!",
}
_COLOURS = {
    Verdict.PASS: "32",
    Verdict.FAIL: "31;1",
    Verdict.EXPECTED_FAIL: "33",
    Verdict.UNREACHED: "35",
    Verdict.ERROR: "31",
}


def console(report: Report, colour: bool = False) -> str:
    """The causes of what failed, verdicts by chapter and clause, failures and how to reproduce them, and the totals."""
    grouped = causes(report.judged)
    lines = [_title(report), *_traits(report), ""]
    if grouped:
        lines += [totals(report), "", *_summary(grouped), ""]
    for chapter, judged in _by_chapter(report):
        lines.append(f"{chapter}")
        lines += [_line(one, colour) for one in judged if one.verdict is not Verdict.UNCLAIMED]
        unclaimed = [one.clause.slug.partition(".")[2] for one in judged if one.verdict is Verdict.UNCLAIMED]
        if unclaimed:
            lines.append(wrapped(f"{_MARKS[Verdict.UNCLAIMED]} unclaimed: {', '.join(unclaimed)}", 2, 4))
    for cause in grouped:
        for one in (cause.root, *cause.consequences, *cause.same_error):
            lines += ["", *_explained(one, report)]
    lines += [*_our_errors(report), *(["", partial] if (partial := _interrupted(report)) else [])]
    if report.stale:
        lines += ["", *(f"STALE expected failure: {entry} holds now; remove its line" for entry in report.stale)]
    lines += [f"CAPABILITY {mismatch}" for mismatch in report.mismatches]
    return "\n".join([*lines, "", totals(report)])


def totals(report: Report) -> str:
    """One sentence with all counts."""
    words = [f"{report.count(verdict)} {verdict}" for verdict in Verdict if report.count(verdict)]
    stale = f", {len(report.stale)} stale" if report.stale else ""
    tests = f"{len(report.findings)} tests in {report.seconds:.0f} s"
    return f"{', '.join(words) or 'nothing judged'}{stale} ({tests}); exit status {int(report.status)}"


def _title(report: Report) -> str:
    environment = report.implementation["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    judged = f"{report.implementation['name']}{f' ({versions})' if versions else ''}"
    where = f"python {environment['python']}, torch {environment['torch']}"
    return f"forge-conformance {__version__}: {judged} at level {report.level}, {where}"


def _traits(report: Report) -> list[str]:
    """Return the traits that the adapter names, which are why some tests are unreached, in one paragraph or none."""
    named = [name if value is True else f"{name}={value}" for name, value in report.implementation["traits"].items()]
    return [wrapped(f"traits: {', '.join(named)}", 2, 4)] if named else []


def _by_chapter(report: Report) -> list[tuple[str, list[Judged]]]:
    grouped = [(name, [one for one in report.judged if one.clause.chapter == name]) for name in CHAPTER_NAMES]
    return [(name, judged) for name, judged in grouped if judged]


def _line(one: Judged, colour: bool) -> str:
    mark = f"{_MARKS[one.verdict]} {one.verdict:<13}"
    if colour:
        mark = f"\033[{_COLOURS[one.verdict]}m{mark}\033[0m"
    count = f"reached {one.reached} time{'s' * (one.reached > 1)}" if one.reached else ""
    note = f"rests on {one.because_of}, which failed" if one.because_of and not one.reason else ""
    line = f"  {mark} {one.clause.slug:<32} {count:<20} {note}".rstrip()
    is_told_here = one.reason and one.verdict is not Verdict.ERROR
    return line + (f"\n{wrapped(one.reason, 18, 18)}" if is_told_here else "")


def _summary(grouped: Sequence[Cause]) -> Iterator[str]:
    """Each cause in a few lines: what was seen, and which other clauses very likely failed because of it."""
    clauses = sum(1 + len(cause.consequences) + len(cause.same_error) for cause in grouped)
    yield f"{counted(clauses, 'clause')} failed, by cause:"
    for number, cause in enumerate(grouped, 1):
        root = cause.root
        first = root.failures[0]
        assert first.failure is not None, "a failed clause has a failure"
        behind = "".join(f"; caused by {error}" for error in errors_behind(first)[:1])
        head = f"{number}. {root.clause.slug} ({root.clause.level}, {counted(cause.tests, 'failed test')}): "
        yield wrapped(visible(shortened(f"{head}{in_brief(first.failure['seen'])}{behind}")), 2, 5)
        for label, others in (("rest on it", cause.consequences), ("same error", cause.same_error)):
            if others:
                yield wrapped(f"{label}: {', '.join(one.clause.slug for one in others)}", 5, 7)


def _our_errors(report: Report) -> list[str]:
    """Each once, however many clauses it kept from being judged."""
    kept: dict[str, list[str]] = {error: [] for error in report.errors}
    for one in report.judged:
        if one.verdict is Verdict.ERROR:
            kept.setdefault(one.reason, []).append(one.clause.slug)
    lines: list[str] = []
    for error, slugs in kept.items():
        lines += ["", wrapped(f"ERROR of the suite, not of the manager: {error}", 0, 2)]
        if slugs:
            lines.append(wrapped(f"It kept these from being judged: {', '.join(slugs)}", 2, 4))
    return lines


def _interrupted(report: Report) -> str:
    """What nobody may overlook in the report of a run that did not finish; "" for any other."""
    return f"PARTIAL: interrupted {report.interrupted}. The rest was not judged." if report.interrupted else ""


def _explained(one: Judged, report: Report) -> list[str]:
    head = f"{one.verdict.upper()} {one.clause.slug} ({one.clause.level}): a checkpoint manager {one.clause.sentence}"
    lines = [wrapped(head, 0, 2), wrapped(f"why: {one.clause.why}", 2, 4)]
    if one.because_of is not None:
        same = "where nothing happened that did not happen here"
        lines.append(wrapped(f"It rests on {one.because_of}, which failed in {one.seen_in}, {same}.", 2, 4))
        lines.append("  Look there first.")
    lines += _seen(one.failures[0])
    others = [finding.case for finding in one.failures[1:]]
    if others:
        lines.append(wrapped(f"also in: {', '.join(others)}", 2, 4))
    return [*lines, f"  reproduce: {reproduce(one.failures[0], report)}"]


def _seen(finding: Finding) -> list[str]:
    assert finding.failure is not None, "a failed clause has a failure"
    failure = finding.failure
    lines = [wrapped(visible(f"{word}: {failure[word]}"), 2, 4) for word in ("expected", "seen")]
    lines += [wrapped(visible(f"caused by: {cause}"), 2, 4) for cause in errors_behind(finding)]
    lines += [wrapped(f"raised at: {place}", 2, 4)] if (place := raised_at(finding)) else []
    lines.append(f"  what happened, in {finding.case}:")
    return lines + [
        wrapped(visible(f"{number}. {sentence}"), 4, 7) for number, sentence in enumerate(failure["story"], 1)
    ]


def reproduce(finding: Finding, report: Report) -> str:
    """The command that runs this test alone, quoted for a shell."""
    name = report.implementation["name"]
    words = ["run", "--impl", name, *report.options, "--level", str(report.level), "--case", finding.case]
    return shlex.join(["forge-conformance", *words])


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain values, as `schema.json` describes them."""
    return {
        "schema_version": SCHEMA_VERSION,
        "suite_version": __version__,
        "sources": report.sources,
        "specification": digests.of_specification(),
        "implementation": report.implementation,
        "level": str(report.level),
        "ranks": list(report.ranks),
        "device": report.device,
        "options": list(report.options),
        "expected_failures": [entry.line for entry in report.expected],
        "asked": list(report.asked),
        "is_partial": report.is_partial,
        "totals": {str(verdict): report.count(verdict) for verdict in Verdict},
        "causes": [_cause_json(cause) for cause in causes(report.judged)],
        "clauses": [_clause_json(one) for one in report.judged],
        "stale_expected_failures": [str(entry) for entry in report.stale],
        "capability_mismatches": list(report.mismatches),
        "tests": [_finding_json(finding) for finding in report.findings],
        "errors": [*([f"interrupted {report.interrupted}"] if report.interrupted else []), *report.errors],
        "seconds": round(report.seconds, 3),
        "exit_status": int(report.status),
    }


QUESTION = (
    *("schema_version", "suite_version", "sources", "specification", "implementation", "level"),
    *("ranks", "device", "options", "expected_failures", "asked"),
)
"""What a run is about: two complete runs in which all of these are equal are about the same code and environment."""


def status_of(report: Report, written: Any) -> Status | None:
    """The exit status of a written report, as read from JSON, if it is complete and about the same; else None."""
    if not isinstance(written, dict) or not report.sources:
        return None
    asked = json.loads(json.dumps(as_json(report)))
    is_whole = written.get("is_partial") is False or bool(written.get("asked"))
    has_ended = written.get("exit_status") in (Status.PASSED, Status.FAILED)
    is_same = all(written.get(name) == asked[name] for name in QUESTION)
    return Status(written["exit_status"]) if is_whole and has_ended and is_same else None


def _cause_json(cause: Cause) -> dict[str, Any]:
    return {
        "clause": cause.root.clause.slug,
        "failed_tests": cause.tests,
        "consequences": [one.clause.slug for one in cause.consequences],
        "same_error": [one.clause.slug for one in cause.same_error],
    }


def _clause_json(one: Judged) -> dict[str, Any]:
    return {
        "slug": one.clause.slug,
        "digest": digests.of(one.clause),
        "chapter": one.clause.chapter,
        "level": str(one.clause.level),
        "capabilities": sorted(one.clause.capabilities),
        "sentence": one.clause.sentence,
        "why": one.clause.why,
        "verdict": str(one.verdict),
        "reached": one.reached,
        "because_of": one.because_of,
        "reason": one.reason,
        "tests": list(one.cases),
        "failures": [{"test": f.case, **(f.failure or {"seen": f.reason})} for f in one.failures],
    }


def _finding_json(finding: Finding) -> dict[str, Any]:
    return {
        "test": finding.case,
        "clauses": list(finding.clauses),
        "reached": finding.reached,
        "outcome": finding.outcome,
        "seconds": round(finding.seconds, 4),
        "reason": finding.reason,
    }


def junit(report: Report) -> str:
    """One test case per clause; unclaimed and unreached ones are skipped, with the reason."""
    suites = ElementTree.Element("testsuites", name="forge-conformance")
    for chapter, judged in _by_chapter(report):
        suite = ElementTree.SubElement(suites, "testsuite", name=chapter, tests=str(len(judged)))
        for key, verdicts in (
            ("failures", [Verdict.FAIL]),
            ("errors", [Verdict.ERROR]),
            ("skipped", [Verdict.UNCLAIMED, Verdict.UNREACHED, Verdict.EXPECTED_FAIL]),
        ):
            suite.set(key, str(sum(one.verdict in verdicts for one in judged)))
        for one in judged:
            _junit_case(suite, one, report)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _junit_case(suite: ElementTree.Element, one: Judged, report: Report) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=f"forge.{one.clause.chapter}", name=one.clause.slug)
    match one.verdict:
        case Verdict.FAIL | Verdict.ERROR:
            tag = "failure" if one.verdict is Verdict.FAIL else "error"
            body = ElementTree.SubElement(case, tag, message=for_xml(one.clause.sentence))
            text = _explained(one, report) if one.verdict is Verdict.FAIL else [one.reason]
            body.text = for_xml("\n".join(text))
        case Verdict.UNCLAIMED | Verdict.UNREACHED | Verdict.EXPECTED_FAIL:
            ElementTree.SubElement(case, "skipped", message=for_xml(f"{one.verdict}: {one.reason}"))


def markdown(report: Report) -> str:
    """A summary for a pull request or a job page."""
    lines = [f"## {_title(report)}", "", totals(report), ""]
    lines += [partial, ""] if (partial := _interrupted(report)) else []
    lines.append("| chapter | " + " | ".join(Verdict) + " |")
    lines.append("|---" * (len(Verdict) + 1) + "|")
    for chapter, judged in _by_chapter(report):
        counts = [str(sum(one.verdict is verdict for one in judged) or "") for verdict in Verdict]
        lines.append(f"| {chapter} | {' | '.join(counts)} |")
    grouped = causes(report.judged)
    if grouped:
        lines += ["", "### Causes", "", "```text", *_summary(grouped), "```"]
    for heading, verdicts in (
        ("Failed", (Verdict.FAIL, Verdict.ERROR)),
        ("Failed as expected", (Verdict.EXPECTED_FAIL,)),
        ("Unreached", (Verdict.UNREACHED,)),
    ):
        chosen = [one for one in report.judged if one.verdict in verdicts]
        if chosen:
            lines += ["", f"### {heading}", ""]
            lines += [f"- `{one.clause.slug}` ({one.clause.level}): {_because(one)}" for one in chosen]
    lines += [f"- stale expected failure: `{entry}`" for entry in report.stale]
    lines += [f"- capability: {mismatch}" for mismatch in report.mismatches]
    return "\n".join(lines) + "\n"


def _because(one: Judged) -> str:
    if one.reason:
        return one.reason
    finding = one.failures[0]
    assert finding.failure is not None, "a failed clause has a failure"
    root = f" (rests on `{one.because_of}`)" if one.because_of else ""
    return f"expected {one_line(finding.failure['expected'])}; seen {one_line(finding.failure['seen'])}{root}"


def expectations(report: Report) -> str:
    """A file for `--xfail-file` that lists each failure, by clause and test, with what was seen as its reason."""
    failed = [one for one in report.judged if one.verdict is Verdict.FAIL]
    entries = [
        f"{one.clause.slug} @ {finding.case}: {shortened(finding.failure['seen'])}"
        for one in failed
        for finding in one.failures
        if finding.failure is not None
    ]
    head = [
        f"# {_title(report)}",
        "# Each line is a clause, a test, and what was seen. Add the reason, and the public issue if there is one.",
        "",
    ]
    return "\n".join([*head, *entries]) + "\n"


BESIDE = ("junit.xml", "summary.md", "console.txt", "report.html")
"""The files beside `report.json`."""


def files(report: Report) -> dict[str, str]:
    """The report's files by name; `report.json` comes last, so that it is there only if the others are."""
    values = as_json(report)
    page = html_page(Stored(report.implementation["name"], values, {}))
    beside = dict(zip(BESIDE, (junit(report), markdown(report), console(report) + "\n", page), strict=True))
    return {**beside, "report.json": json.dumps(values, indent=2) + "\n"}
