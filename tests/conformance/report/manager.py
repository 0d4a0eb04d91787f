"""The page of one manager: a summary on one screen, the causes, what deaths left, and every clause with its stories.

Every clause and every failure has an address, so that a link to it can be sent.
"""

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forge_conformance.judging.text import counted, shortened
from forge_conformance.report.markup import Content, Html, prose, row, table, tag
from forge_conformance.report.page import anchor, cards, finder, folded, page
from forge_conformance.report.stored import FAILED, MEANINGS, Deaths, Line, Mark, State, Stored, chapters
from forge_spec.clauses import CAPABILITIES, Level

SYMBOLS: Mapping[Mark, str] = {
    Mark.PASS: "✓",
    Mark.FAIL: "✗",
    Mark.EXPECTED_FAIL: "✗",
    Mark.ERROR: "!",
    Mark.OUT_OF_DATE: "↻",
    Mark.NOT_JUDGED: "-",
    Mark.UNREACHED: "?",
    Mark.BOTH_ALLOWED: "=",
    Mark.UNCLAIMED: "·",
}


@dataclass(frozen=True)
class Finding:
    """A page about a failure of a released manager."""

    title: str
    link: str
    manager: str
    """What its index says of the manager."""
    clauses: frozenset[str]
    """The clauses that the page names."""


@dataclass(frozen=True)
class Around:
    """What a page shows beside the reports of its manager."""

    older: Stored | None = None
    """An older release behind the same adapter."""
    findings: Sequence[Finding] = ()
    home: str = ""
    """The link to the table that the page belongs to; "" for a page that stands alone."""


_ALONE = Around()


def html_page(stored: Stored, around: Around = _ALONE) -> str:
    """Return the whole page."""
    title = f"{stored.name}: {stored.release}" if stored.release else stored.name
    return page(title, [*_head(stored, around), *_causes(stored), *_deaths(stored), *_clauses(stored, around)])


# -- summary ------------------------------------------------------------------------


def _head(stored: Stored, around: Around) -> Iterator[Html]:
    yield tag("a", "to the clauses", href="#clauses", class_="skip")
    if around.home:
        yield tag("p", tag("a", "all managers", href=around.home))
    yield tag("h1", stored.name, " ", tag("small", stored.release))
    state, reason = stored.state
    if state is not State.COMPLETE:
        yield tag("p", tag("b", state, ": "), reason, class_="banner")
    if not stored.report:
        return
    yield tag("p", _judged_by(stored), class_="soft")
    yield cards(_figures(stored))
    yield from _notes(stored, around)


def _judged_by(stored: Stored) -> Content:
    report = stored.report
    versions = ", ".join(f"{name} {version}" for name, version in stored.versions.items())
    environment = stored.environment
    return (
        f"{stored.adapter}{f' ({versions})' if versions else ''}, judged at level {report['level']} by "
        f"forge-conformance {report['suite_version']}, specification {report.get('specification', 'unknown')}; Python "
        f"{environment.get('python', 'unknown')}, torch {environment.get('torch', 'unknown')}; "
        f"{ranks(stored)}; exit status {report['exit_status']}"
    )


def ranks(stored: Stored) -> str:
    """How many ranks tests for several ranks had, and where the state was."""
    numbers = stored.report.get("ranks") if "distributed" in stored.capabilities else []
    if numbers is None:
        return "ranks unknown"
    several = f"{', '.join(map(str, [1, *numbers]))} ranks" if numbers else "one process"
    return several + (" on GPUs" if stored.report.get("device") == "cuda" else "")


def _figures(stored: Stored) -> Iterator[tuple[Content, Content]]:
    counts = stored.counts()
    yield stored.reached, f"level reached{f'; {stored.short_of}' if stored.short_of else ''}"
    for level in Level:
        if stored.level is not None and level <= stored.level:
            own = stored.counts(level)
            passed, failed = own[Mark.PASS], sum(own[mark] for mark in FAILED)
            yield f"{passed} of {passed + failed}", f"clauses judged at level {level} pass"
    for mark in Mark:
        if mark is not Mark.PASS and counts[mark]:
            yield counts[mark], mark_of(mark)
    for what, deaths in (("kills", stored.kills), ("losses of power", stored.power), ("faults", stored.real)):
        yield _survived(deaths), f"{what} survived: {deaths}"


def _survived(deaths: Deaths) -> str:
    return f"{100 * (deaths.tried - deaths.bad) // deaths.tried} %" if deaths.tried else "-"


def mark_of(mark: Mark) -> Html:
    """A mark with its symbol and its meaning."""
    return tag("span", f"{SYMBOLS[mark]} {mark}", class_=f"mark {anchor(mark)}", title=MEANINGS[mark])


def _notes(stored: Stored, around: Around) -> Iterator[Html]:
    traits = [name if value is True else f"{name}={value}" for name, value in stored.traits.items()]
    if traits:
        yield tag("p", "Traits, in which the specification leaves a manager free: ", ", ".join(traits), ".")
    unclaimed = [name for name in CAPABILITIES if name not in stored.capabilities]
    if unclaimed:
        yield tag("p", f"Not claimed, and not held against it: {', '.join(unclaimed)}.", class_="soft")
    for sentence in stored.report.get("capability_mismatches", ()):
        yield tag("p", f"Capability: {sentence}.")
    for entry in stored.report.get("stale_expected_failures", ()):
        yield tag("p", f"An expected failure is stale, because its clause holds: {entry}.", class_="banner")
    if around.older is not None:
        yield tag("p", f"Against {around.older.release}: ", _trend_links(trend(stored, around.older)), ".")
    if around.findings:
        yield tag("p", "Findings: ", _listed(tag("a", one.title, href=one.link) for one in around.findings), ".")
    if around.home and (again := how_to_repeat(stored)):
        yield tag("p", prose(again), class_="soft")


def _listed(parts: Iterator[Html]) -> Html:
    return Html(", ".join(parts))


@dataclass(frozen=True)
class Trend:
    """The clauses that passed in one of two releases and failed in the other."""

    better: tuple[str, ...]
    worse: tuple[str, ...]

    def __str__(self) -> str:
        return f"+{len(self.better)} -{len(self.worse)}" if self.better or self.worse else "±0"


def trend(stored: Stored, older: Stored) -> Trend:
    """Compare with an older release; a clause counts if it passed or failed in both, and not by chance."""
    slugs = [line.slug for line in stored.lines if line.slug not in stored.sometimes | older.sometimes]
    marks = [(slug, older.mark(slug), stored.mark(slug)) for slug in slugs]
    better = tuple(slug for slug, before, now in marks if before in FAILED and now is Mark.PASS)
    worse = tuple(slug for slug, before, now in marks if before is Mark.PASS and now in FAILED)
    return Trend(better, worse)


def _trend_links(found: Trend) -> Iterator[Content]:
    for slugs, what in ((found.better, "now pass"), (found.worse, "now fail")):
        yield f"{counted(len(slugs), 'clause')} {what}"
        yield (": ", _listed(_to(slug) for slug in slugs)) if slugs else None
        yield "; " if what == "now pass" else None


def _to(slug: str) -> Html:
    return tag("a", slug, href=f"#{anchor(slug)}")


# -- causes -------------------------------------------------------------------------


def _causes(stored: Stored) -> Iterator[Html]:
    """What has to be fixed, and then the known failures."""
    causes = stored.report.get("causes", ())
    if causes:
        yield tag("h2", "Causes", id="causes")
        yield tag("p", "Each is a clause to look at first, with those that very likely failed because of it.")
        yield tag("ol", (_cause(cause, stored) for cause in causes))
    known = [line for line in stored.lines if line.mark is Mark.EXPECTED_FAIL]
    if known:
        yield tag("h2", "Known failures", id="known")
        yield tag("ul", (tag("li", _to(line.slug), f": {shortened(line.reason, 400)}") for line in known))


def _cause(cause: Mapping[str, Any], stored: Stored) -> Html:
    line = stored.by_slug.get(cause["clause"])
    seen = line.failures[0]["seen"] if line and line.failures else ""
    failed = counted(cause["failed_tests"], "failed test")
    parts: list[Content] = [_to(cause["clause"]), f" ({failed}): {shortened(seen)}"]
    for label, key in (("rest on it", "consequences"), ("same error", "same_error")):
        if cause[key]:
            parts.append(tag("div", f"{label}: ", _listed(_to(slug) for slug in cause[key])))
    return tag("li", parts)


# -- deaths -------------------------------------------------------------------------


def _deaths(stored: Stored) -> Iterator[Html]:
    if not stored.crash and not stored.crash_trouble:
        return
    yield tag("h2", "What deaths leave", id="deaths")
    if stored.crash_state:
        yield tag("p", stored.crash_state, ".", class_="banner")
    if not stored.crash:
        return
    yield tag("p", f"Recorded by {stored.crash['recorder']['says']}; {stored.crash['exit']['why']}.", class_="soft")
    yield table(("scenario", "mode", "storage", "states", "disks", "bad", ""), _storages(stored.crash))
    yield tag("p", STATES, class_="soft")
    causes = enumerate(stories_of_deaths(stored), 1)
    yield tag("ol", (_cause_of_deaths(number, cause, story, stored) for number, (cause, story) in causes))
    for one in (*stored.crash["recordings"], *stored.crash["drills"]):
        where = one.get("scenario") or f"{one['kind']}, {one['situation']}"
        if one["refusal"] or one["error"]:
            yield tag("p", f"{where}, {one['mode']}: {one['refusal'] or one['error']}", class_="soft")


def _storages(crash: Mapping[str, Any]) -> Iterator[Html]:
    for recording in crash["recordings"]:
        for one in recording.get("storages", ()):
            bad = one["totals"]["bad"]
            cells = (recording["scenario"], recording["mode"], one["storage"])
            numbers = (
                *(_number(one["totals"].get(name, 0)) for name in ("states", "disks")),
                _number(bad, "bad" if bad else ""),
            )
            cut = "stopped by the time limit" if one["is_cut_short"] else ""
            yield row(*cells, *numbers, cut)


def _number(value: int, css: str = "") -> Html:
    return tag("td", f"{value:,}", class_=f"number {css}".strip())


def stories_of_deaths(stored: Stored) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Every cause of an exploration, with the story of one death; "" where there is none."""
    for cause in stored.crash.get("causes", ()):
        yield cause, _story_of_death(cause, stored.crash)


def _cause_of_deaths(number: int, cause: Mapping[str, Any], story: str, stored: Stored) -> Html:
    head = f"{cause['verdict']}, {how_often(cause, stored.crash)}; for example {cause['where'][0]}"
    beyond = "" if cause["counts"] else f", above level {stored.crash['level']}"
    return tag(
        "li",
        _to(cause["clause"]),
        f": {head}{beyond}: {shortened(cause['why'])}",
        folded("what happened", tag("pre", story)) if story else None,
        tag("p", "reproduce: ", tag("code", cause["replay"])),
        id=f"death-{number}",
    )


STATES = "A state is a moment of death with what it takes away. Several states can leave the same disk."
"""What numbers of causes count, beside a table that counts disks."""


def how_often(cause: Mapping[str, Any], crash: Mapping[str, Any]) -> str:
    """On how many states of how many a cause shows; how many times, where it does not count states."""
    states: Counter[str] = Counter()
    for one in crash["recordings"]:
        for storage in one.get("storages", ()):
            death = storage["storage"].partition(",")[0]  # without which of several, as causes name it
            states[f"{one['scenario']}, {one['mode']}, {death}"] += storage["totals"].get("states", 0)
    if not states.keys() >= {*cause["where"]}:
        return counted(cause["times"], "time")
    tried = sum(states[where] for where in {*cause["where"]})
    return f"on {cause['times']:,} of {counted(tried, 'state')}" if tried else f"on {counted(cause['times'], 'state')}"


def _story_of_death(cause: Mapping[str, Any], crash: Mapping[str, Any]) -> str:
    """The story that belongs to a cause: that of its first place, or of its command."""
    same = [
        bad["story"]
        for one in (*crash["recordings"], *crash["drills"])
        for bad in one.get("bad", ())
        if all(bad[name] == cause[name] for name in ("verdict", "clause", "seen", "expected"))
    ]
    return str(same[0]) if same else ""


# -- clauses ------------------------------------------------------------------------


def _clauses(stored: Stored, around: Around) -> Iterator[Html]:
    yield tag("h2", "Clauses", id="clauses")
    yield finder("the clauses", [mark for mark in Mark if stored.counts()[mark]])
    for chapter, lines in chapters(stored.lines):
        if lines:
            head = tag("h3", chapter, " ", tag("small", _counted_marks(lines)), id=f"chapter-{chapter}")
            yield tag("section", head, _chapter(lines, stored, around), data_group=True)


def _chapter(lines: Sequence[Line], stored: Stored, around: Around) -> Iterator[Html]:
    yield from (_clause(line, stored, around) for line in lines if line.mark is not Mark.UNCLAIMED)
    unclaimed = [_clause(line, stored, around) for line in lines if line.mark is Mark.UNCLAIMED]
    if unclaimed:
        yield tag("details", tag("summary", counted(len(unclaimed), "unclaimed clause")), unclaimed, data_group=True)


def _counted_marks(lines: Sequence[Line]) -> str:
    counts = Counter(line.mark for line in lines)
    return ", ".join(f"{counts[mark]} {mark}" for mark in Mark if counts[mark])


def _clause(line: Line, stored: Stored, around: Around) -> Html:
    content: list[Content] = [_name(line)]
    if line.clause:
        content.append(tag("p", prose(f"A checkpoint manager {line.clause.sentence}.")))
    if line.reason:
        content.append(tag("p", shortened(line.reason, 2000), class_="soft"))
    content += _beside(line, around)
    content += [_failure(number, line, stored) for number in range(len(line.failures))]
    content += [tag("p", f"{one['test']}: {one['seen']}") for one in line.troubles]
    if line.clause:
        content.append(folded("why, and when it is judged", *_about(line)))
    return tag("article", content, class_="clause", id=anchor(line.slug), data_marks=anchor(line.mark))


def _name(line: Line) -> Html:
    level = str(line.clause.level) if line.clause else "a clause of an earlier specification"
    reached = line.said.get("reached", 0)
    said = f"{level}, reached {counted(reached, 'time')}" if reached else level
    return tag("h4", mark_of(line.mark), tag("a", line.slug, href=f"#{anchor(line.slug)}"), tag("small", said))


def _beside(line: Line, around: Around) -> Iterator[Html]:
    if line.said.get("because_of"):
        yield tag("p", "It rests on ", _to(line.said["because_of"]), ", which failed. Look there first.")
    before = around.older.mark(line.slug) if around.older else line.mark
    if around.older and before is not line.mark:
        yield tag("p", f"In {around.older.release}: ", mark_of(before))
    for finding in around.findings:
        if line.slug in finding.clauses and line.mark in FAILED:
            yield tag("p", "Finding: ", tag("a", finding.title, href=finding.link))


def _about(line: Line) -> Iterator[Html]:
    assert line.clause is not None, "a clause that is gone has no text"
    tests = line.said.get("tests", ())
    values = [("why", line.clause.why), ("judged when", line.clause.situation)]
    values += [("needs", ", ".join(sorted(line.clause.capabilities)))] if line.clause.capabilities else []
    yield tag("dl", ((tag("dt", name), tag("dd", prose(value))) for name, value in values))
    if tests:
        yield tag("p", f"Judged in {counted(len(tests), 'test')}:")
        yield tag("ul", (tag("li", tag("code", test)) for test in tests))


def _failure(number: int, line: Line, stored: Stored) -> Html:
    failure = line.failures[number]
    return folded(
        failure["test"],
        tag("dl", ((tag("dt", name), tag("dd", failure[name])) for name in ("expected", "seen"))),
        tag("ol", (tag("li", sentence) for sentence in failure["story"]), class_="story"),
        _traceback(number, line),
        tag("p", "reproduce: ", tag("code", reproduce(failure["test"], stored))),
        id_=_failure_anchor(line, failure),
    )


def _traceback(number: int, line: Line) -> Html | None:
    """The traceback, or where it stands already."""
    detail = line.failures[number]["detail"]
    same = next((one for one in line.failures[:number] if one["detail"] == detail), None)
    if not detail:
        return None
    if same is None:
        return folded("traceback", tag("pre", detail))
    return tag("p", "the traceback of ", tag("a", same["test"], href=f"#{_failure_anchor(line, same)}"))


def _failure_anchor(line: Line, failure: Mapping[str, Any]) -> str:
    return f"{anchor(line.slug)}--{anchor(failure['test'])}"


def how_to_repeat(stored: Stored) -> str:
    """Where the commands of failures have to be run, with code between backticks.

    It is "" if nothing fails, or no package is known.
    """
    if not stored.release or not any(line.mark in FAILED for line in stored.lines):
        return ""
    packages = {**stored.versions, "torch": stored.environment.get("torch", "")}
    listed = ", ".join(f"{name} {version}".strip() for name, version in packages.items())
    said = (
        "To see a failure again, run its command with the packages of this run. "
        f"They are the suite, {listed}, and what else the adapter imports."
    )
    if not re.fullmatch(r"[\w.-]+", stored.name):
        return said  # no environment has such a name
    return (
        f"{said} If tox.ini has the environment `{stored.name}`, this installs them: "
        f"`tox run -e {stored.name} --notest`. The suite's command is then `.tox/{stored.name}/bin/forge-conformance`."
    )


def reproduce(test: str, stored: Stored) -> str:
    """The command that runs one test alone."""
    report = stored.report
    words = ["run", "--impl", stored.adapter, *report.get("options", ()), "--level", report["level"], "--case", test]
    return shlex.join(["forge-conformance", *words])
