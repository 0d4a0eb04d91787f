"""What came of a training script, for a terminal, for the page of a job, for programs, and as a page."""

import html
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from forge_conformance import __version__
from forge_conformance.judging.text import counted, for_xml, one_line, shortened, wrapped
from forge_conformance.judging.verdicts import Expected, Status, is_case
from forge_conformance.report.markup import Content, tag
from forge_conformance.report.page import anchor, cards, folded, page
from forge_conformance.scripts.command import FOLDER
from forge_conformance.scripts.explorer import Explored
from forge_conformance.scripts.judge import WORDS
from forge_conformance.scripts.result import Found, Result
from forge_spec.clauses import Level

_SHOWN = 3
_ONLY_ENDED = "ended without an error; what they did was not compared (UNREACHED)"
_COLUMNS = "{:<16}{:>9}{:>8}{:>6}{:>10}{:>9}"


@dataclass(frozen=True)
class Report:
    """A judged script; everything that is rendered comes from here."""

    result: Result
    level: Level
    out: Path
    """The directory of the report's files."""
    expected: tuple[Expected, ...] = ()
    """Failures that are known, by clause and kind of death: `script.starts @ kill/refused: reason`."""

    @property
    def failures(self) -> list[Found]:
        """Causes that count at this level and are not expected."""
        return [one for one in self.result.found if one.level <= self.level and self.reason(one) is None]

    def reason(self, found: Found) -> str | None:
        """Why a cause is expected; None if it is not."""
        return next((entry.reason for entry in self.expected if _covers(entry, found)), None)

    @property
    def stale(self) -> list[Expected]:
        """Entries of the file that no cause matches any more."""
        return [entry for entry in self.expected if not any(_covers(entry, found) for found in self.result.found)]

    @property
    def status(self) -> Status:
        """What the command exits with."""
        result = self.result
        is_wrong = any(found.replayed not in ("", found.bad.verdict.word) for found in result.found)
        if result.interrupted or is_wrong or any(one.contradiction for one in result.explored):
            return Status.OUR_ERROR
        if self.failures or self.stale:
            return Status.FAILED
        return Status.PASSED if any(one.totals.disks for one in result.explored) else Status.NOTHING_JUDGED


def _covers(entry: Expected, found: Found) -> bool:
    """Whether an entry is about all kinds of death that show a cause."""
    cases = [f"{kind}/{found.bad.verdict.word}" for kind in found.deaths]
    return entry.slug == found.clause and all(is_case(case, entry.cases) for case in cases)


# -- terminal -------------------------------------------------------------------------


def console(report: Report) -> str:
    """Each storage, the causes, the simplest stories, the sums."""
    result = report.result
    lines = [f"restarts of {result.command}, level {report.level}", ""]
    if report.result.interrupted:
        lines += [f"PARTIAL: interrupted {report.result.interrupted}.", ""]
    lines.append(_COLUMNS.format("death", "deaths", "disks", "bad", "restarts", "seconds"))
    for one in result.explored:
        totals = one.totals
        counts = (totals.states, totals.disks, totals.bad, totals.restarts, round(totals.seconds))
        lines.append(_COLUMNS.format(one.storage, *map("{:,}".format, counts)))
    lines += ["", *_notes(report), *_causes(report)]
    for found in result.found[:_SHOWN]:
        lines += ["", found.text, "", f"  reproduce: python {report.out}/{found.name}"]
    if len(result.found) > _SHOWN:
        lines += ["", f"{len(result.found)} causes in all, each explained in {report.out}/script.html"]
    return "\n".join([*lines, "", *_sums(report)])


def _notes(report: Report) -> Iterator[str]:
    result = report.result
    yield from map(wrapped, result.prepared.notes)
    yield from (f"UNSEEN: {sentence}" for sentence in result.prepared.recorded.trace.unseen)
    for one in result.explored:
        if one.note:
            yield wrapped(f"{one.storage}: {one.note}")
        if one.contradiction:
            yield wrapped(f"INVALID RESULT ({one.storage}): {one.contradiction}")
        if one.totals.skipped:
            yield f"left out: {counted(one.totals.skipped, 'death')} by {one.storage} of the later ones (--seconds)"
        elif one.is_cut_short:
            why = "interrupted" if result.interrupted else "--seconds"
            yield f"left out: all deaths by {one.storage} after operation {one.reached} ({why})"
        if one.totals.left_out:
            yield f"left out: {one.totals.left_out:,} pairs of lost names ({one.storage})"


def _causes(report: Report) -> Iterator[str]:
    for found in report.result.found:
        bad = found.bad
        is_counted = found.level <= report.level
        beyond = "" if is_counted else f" (of level {found.level}, not counted at level {report.level})"
        reason = report.reason(found)
        word = "FAILED" if reason is None else f"expected ({reason})"
        yield f"{word} {found.clause}: {bad.verdict.word}, {found.counts}{beyond}"
        seen = bad.verdict.seen.replace(str(report.result.prepared.stage.folder), FOLDER)
        yield wrapped(f"{WORDS[bad.verdict.word]}; the restart: {shortened(seen, 200)}", 2, 4)
    yield from (f"STALE: {entry} is expected to fail, and does not" for entry in report.stale)


def _sums(report: Report) -> Iterator[str]:
    result = report.result
    tried = [found for found in result.found if found.replayed]
    if tried:
        same = sum(found.replayed == found.bad.verdict.word for found in tried)
        yield f"{same} of {len(tried)} replay scripts came to the same verdict by themselves"
    for found in tried:
        if found.replayed != found.bad.verdict.word:
            yield f"NOT REPRODUCED: {found.name} says {found.replayed}, the exploration {found.bad.verdict.word}"
    totals = [one.totals for one in result.explored]
    deaths, restarts, confirmed = (
        sum(getattr(one, name) for one in totals) for name in ("states", "restarts", "confirmed")
    )
    yield (
        f"{counted(deaths, 'death')}, {result.disks:,} distinct disks, {result.bad_disks:,} bad; "
        f"{restarts:,} were restarted from, and {confirmed:,} shared outcomes were tried again and confirmed; "
        f"{result.seconds:.0f} s"
    )
    if report.status == Status.PASSED:
        beyond = sum(found.level > report.level for found in result.found)
        more = f"; {counted(beyond, 'cause')} of a higher level, which --level durable counts" if beyond else ""
        is_part = any(one.is_cut_short for one in result.explored)
        so_far = ", as far as there was time," if is_part else ""
        went = "went on as the undisturbed run did" if result.prepared.whole.lines else _ONLY_ENDED
        yield f"FINE at level {report.level}: restarts{so_far} {went}{more}."


# -- files ----------------------------------------------------------------------------


def files(report: Report) -> dict[str, str]:
    """The report's files by name."""
    return {
        "script.json": json.dumps(as_json(report), indent=1) + "\n",
        "script.html": html_page(report),
        "summary.md": summary(report),
        "junit.xml": junit(report),
    }


def scripts(report: Report) -> dict[str, str]:
    """A replay script for each cause, by the name of its file."""
    return {found.name: found.replay for found in report.result.found}


def summary(report: Report) -> str:
    """Markdown for the page of a job."""
    lines = [f"### `{report.result.command}`: {'fine' if report.status == Status.PASSED else 'not fine'}", ""]
    lines += ["| death | deaths | disks | bad |", "|---|---|---|---|"]
    for one in report.result.explored:
        lines.append(f"| {one.storage} | {one.totals.states:,} | {one.totals.disks:,} | {one.totals.bad:,} |")
    if report.result.found:
        lines += ["", "| clause | verdict | deaths | what was seen |", "|---|---|---|---|"]
    for found in report.result.found:
        bad = found.bad
        cells = (f"`{found.clause}`", bad.verdict.word, found.counts, one_line(bad.verdict.seen))
        lines.append(f"| {' | '.join(cells)} |")
    for found in report.result.found:
        lines += ["", f"<details><summary>{html.escape(found.bad.verdict.word)}</summary>", "", "```"]
        lines += [found.text.replace("```", "'''"), "```", "", "</details>"]
    return "\n".join(lines) + "\n"


def junit(report: Report) -> str:
    """One test case per kind of death; it is skipped where not all was explored, or all failures are expected."""
    suites = ElementTree.Element("testsuites", name="forge-conformance")
    suite = ElementTree.SubElement(suites, "testsuite", name="script")
    for one in report.result.explored:
        case = ElementTree.SubElement(suite, "testcase", classname="forge.script", name=one.storage)
        _judged_case(case, one, report)
    if report.stale:
        case = ElementTree.SubElement(suite, "testcase", classname="forge.script", name="expected failures")
        _add(case, "failure", "no failure was seen for some expected ones", "\n".join(map(str, report.stale)))
    for key, name in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(key, str(len(suite.findall(f"testcase/{name}"))))
    suite.set("tests", str(len(suite)))
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _judged_case(case: ElementTree.Element, one: Explored, report: Report) -> None:
    found = [cause for cause in report.result.found if one.storage in cause.deaths]
    counts = [cause for cause in found if cause in report.failures]
    if one.contradiction:
        _add(case, "error", one.contradiction)
    elif counts:
        words = ", ".join(dict.fromkeys(cause.bad.verdict.word for cause in counts))
        _add(case, "failure", words, "\n\n".join(cause.text for cause in counts))
    elif one.is_cut_short or not one.totals.states:
        _add(case, "skipped", "not all was explored")
    elif found:
        _add(case, "skipped", "; ".join(report.reason(cause) or f"above level {report.level}" for cause in found))


def _add(case: ElementTree.Element, tag: str, message: str, text: str = "") -> None:
    ElementTree.SubElement(case, tag, message=for_xml(message)).text = for_xml(text) or None


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain values."""
    result = report.result
    return {
        "version": __version__,
        "command": result.command,
        "level": str(report.level),
        "status": int(report.status),
        "interrupted": report.result.interrupted,
        "notes": result.prepared.notes,
        "disks": result.disks,
        "bad_disks": result.bad_disks,
        "explored": [
            {
                "storage": one.storage,
                **vars(one.totals),
                "contradiction": one.contradiction,
                "cut_short": one.is_cut_short,
            }
            for one in result.explored
        ],
        "found": [
            {
                "clause": found.clause,
                "level": str(found.level),
                "verdict": found.bad.verdict.word,
                "storage": found.bad.storage,
                "deaths": found.deaths,
                "seen": found.bad.verdict.seen,
                "expected": found.bad.verdict.expected,
                "known": report.reason(found),
                "text": found.text,
                "replay": found.name,
                "replayed": found.replayed,
            }
            for found in result.found
        ],
    }


def html_page(report: Report) -> str:
    """One page: the causes with their stories, and what the terminal shows."""
    result = report.result
    body: list[Content] = [tag("h1", "Restarts of ", tag("code", result.command))]
    if result.interrupted:
        body.append(tag("p", f"Partial: interrupted {result.interrupted}.", class_="banner"))
    body.append(cards(_figures(report)))
    for found in result.found:
        head = f"{found.bad.verdict.word} [{found.clause}], {found.counts}"
        story = f"{found.text}\n\n  reproduce: python {report.out}/{found.name}"
        body.append(folded(head, tag("pre", story), is_open=True, id_=anchor(found.name)))
    return page("Restarts of a training script", [*body, tag("h2", "On the terminal"), tag("pre", console(report))])


def _figures(report: Report) -> Iterator[tuple[Content, Content]]:
    result = report.result
    yield len(report.failures), f"causes of failure at level {report.level}"
    yield f"{result.disks:,}", "distinct disks that a death leaves"
    yield f"{result.bad_disks:,}", "of them bad"
    for one in result.explored:
        yield f"{one.totals.bad:,} of {one.totals.disks:,}", f"disks are bad after {one.storage}"
