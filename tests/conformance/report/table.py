"""Managers side by side: what each one reaches, chapter by chapter and clause by clause, as Markdown and as a page.

Invariants: nothing is typed in, so equal reports and an equal specification give equal files. Whatever is not a pass is
shown with its reason. What a manager does not claim is not held against it.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote

from forge_conformance.judging.text import one_line
from forge_conformance.judging.verdicts import CHAPTER_NAMES
from forge_conformance.report import badge, compact, explain, failures, findings
from forge_conformance.report.manager import SYMBOLS, Around, Finding, html_page, mark_of, ranks, trend
from forge_conformance.report.markup import Content, Html, row, table, tag
from forge_conformance.report.page import anchor, finder, folded, page
from forge_conformance.report.stored import FAILED, MEANINGS, Deaths, Mark, State, Stored
from forge_spec import CLAUSES, digests
from forge_spec.clauses import Level

TITLE = "Checkpoint managers, judged"
_DEATHS: dict[str, Callable[[Stored], Deaths]] = {
    "kills survived": lambda stored: stored.kills,
    "losses of power survived": lambda stored: stored.power,
    "faults survived": lambda stored: stored.real,
}

_FREE = "Ways of working in which the specification leaves a manager free."


@dataclass(frozen=True)
class Comparison:
    """The managers of a table, in its order, and all findings."""

    managers: tuple[Stored, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def judged(self) -> tuple[Stored, ...]:
        """The managers with a report; the others have a line with the reason, and nothing to say of a clause."""
        return tuple(stored for stored in self.managers if stored.report)

    def older(self, stored: Stored) -> Stored | None:
        """The newest release before this one behind the same adapter."""
        mine = _version(stored)
        others = [one for one in self.managers if one.report and one.adapter == stored.adapter and _version(one) < mine]
        return max(others, key=_version, default=None)

    @property
    def deaths(self) -> list[str]:
        """The kinds of deaths that were explored of any manager."""
        return [name for name, of in _DEATHS.items() if any(of(stored).tried for stored in self.managers)]

    @property
    def head(self) -> tuple[str, ...]:
        """The headings of the first table."""
        first = ("manager", "release", "level reached", *(str(level) for level in Level), *self.deaths)
        return (*first, "ranks", "Python, torch", "against an older release", "report", "findings")

    def about(self, stored: Stored) -> tuple[Finding, ...]:
        """The findings about a manager."""
        return findings.about(self.findings, stored)

    def around(self, stored: Stored) -> Around:
        """What its page shows beside its own reports."""
        pages = [replace(one, link=f"../{one.link}") for one in self.about(stored)]
        return Around(self.older(stored), pages, "../index.html")


def _version(stored: Stored) -> tuple[int, ...]:
    """The numbers of a release, without what follows them."""
    version = next(iter(stored.versions.values()), "")
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in match[0].split(".")) if match else ()


def files(comparison: Comparison) -> dict[str, str]:
    """Return every file by its path: the table, and for each manager its page, its badges and its compact reports."""
    comparison = replace(comparison, managers=tuple(map(stored_form, comparison.managers)))
    found = {"README.md": markdown(comparison), "index.html": html(comparison)}
    for stored in comparison.managers:
        own = badge.of(stored)
        found[f"{stored.name}/index.html"] = html_page(stored, comparison.around(stored))
        found[f"{stored.name}/README.md"] = failures.markdown(stored, comparison.around(stored))
        found[f"{stored.name}/badge.svg"] = badge.svg(own)
        found[f"{stored.name}/badge.json"] = badge.endpoint(own)
        if stored.report or stored.trouble:
            kept = compact.report(stored.report) if stored.report else compact.trouble(stored.trouble)
            found[f"{stored.name}/report.json"] = compact.as_text(kept)
        if stored.crash or stored.crash_trouble:
            explored = stored.crash or compact.trouble(stored.crash_trouble)
            found[f"{stored.name}/crash/crash.json"] = compact.as_text(explored)
    return found


def stored_form(stored: Stored) -> Stored:
    """Return what is kept of a manager's reports, which is all that a table and its pages are made from."""
    report = compact.expanded(compact.report(stored.report)) if stored.report else {}
    return replace(stored, report=report, crash=compact.crash(stored.crash) if stored.crash else {})


# -- cells --------------------------------------------------------------------------


def _of_level(stored: Stored, level: Level) -> str:
    """How many of the clauses that passed or failed passed."""
    if stored.level is None or level > stored.level:
        return "-"
    return _share(stored, level=level)


def _share(stored: Stored, level: Level | None = None, chapter: str = "") -> str:
    counts = stored.counts(level, chapter)
    failed = sum(counts[mark] for mark in FAILED)
    if counts[Mark.PASS] or failed:
        return f"{counts[Mark.PASS]} of {counts[Mark.PASS] + failed}"
    return next((str(mark) for mark in Mark if counts[mark]), "-")


def _environment(stored: Stored) -> str:
    environment = stored.environment
    return ", ".join(environment.get(name, "unknown") for name in ("python", "torch")) if environment else ""


def _state(stored: Stored) -> str:
    state, reason = stored.state
    suite = f"; judged by version {stored.other_suite} of the suite" if stored.other_suite else ""
    deaths = f"; deaths: {stored.crash_state}" if stored.crash_state else ""
    return f"{state}{f': {reason}' if reason else ''}{suite}{deaths}"


def _trend(comparison: Comparison, stored: Stored) -> str:
    older = comparison.older(stored)
    return f"{trend(stored, older)} against {next(iter(older.versions.values()))}" if older else ""


def _cells(comparison: Comparison, stored: Stored) -> list[str]:
    """A line of the first table but for its first and its last cell, which are links."""
    return [
        stored.release or stored.adapter,
        f"{stored.reached}{f' ({stored.short_of})' if stored.short_of else ''}",
        *(_of_level(stored, level) for level in Level),
        *(str(_DEATHS[name](stored)) for name in comparison.deaths),
        ranks(stored) if stored.report else "",
        _environment(stored),
        _trend(comparison, stored),
        _state(stored),
    ]


def _shown(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """The clauses that belong to a level at which somebody was judged, by chapter."""
    highest = max((stored.level for stored in comparison.managers if stored.level is not None), default=Level.CORE)
    return [
        (chapter, [clause.slug for clause in CLAUSES if clause.chapter == chapter and clause.level <= highest])
        for chapter in CHAPTER_NAMES
    ]


# -- Markdown -----------------------------------------------------------------------


def markdown(comparison: Comparison) -> str:
    """Return the table for a page of a repository."""
    judged = comparison.judged
    head = comparison.head
    lines = [f"# {TITLE}", "", *_introduction(comparison), "", _line(*head), _line(*("---" for _ in head))]
    for stored in comparison.managers:
        count = len(comparison.about(stored))
        cells = [failures.plain(cell) for cell in _cells(comparison, stored)]
        pages = f"[{count}](#findings)" if count else ""
        lines.append(_line(f"[{failures.plain(stored.name)}]({_link(stored)})", *cells, pages))
    lines += [*_findings(comparison), "", "## Clauses", ""]
    lines += [*(f"- {SYMBOLS[mark]} *{mark}*: {meaning}" for mark, meaning in MEANINGS.items())]
    for chapter, slugs in _shown(comparison):
        lines += ["", f"### {chapter}", "", _line("clause", *(failures.plain(stored.name) for stored in judged))]
        lines += [_line(*("---" for _ in range(len(judged) + 1)))]
        lines += [_line("*pass*", *(_share(stored, chapter=chapter) for stored in judged))]
        lines += [_line(slug, *(_linked(stored, slug) for stored in judged)) for slug in slugs]
    return "\n".join([*lines, "", "## Both allowed", "", *_allowed(comparison)]) + "\n"


def _findings(comparison: Comparison) -> Iterator[str]:
    told = [(stored, comparison.about(stored)) for stored in comparison.managers if comparison.about(stored)]
    yield from ["", "## Findings", ""] if told else []
    for stored, pages in told:
        links = "; ".join(f"[{failures.plain(one.title)}]({one.link})" for one in pages)
        yield f"- {failures.plain(stored.name)}: {links}"


def _introduction(comparison: Comparison) -> Iterator[str]:
    yield f"Judged by specification `{digests.of_specification()}`, which has {len(CLAUSES)} clauses. Every figure is"
    yield "computed from the reports in the folders beside this page, by `forge-conformance table`. A level is reached"
    yield "if each of its claimed clauses passes, and each of those of the levels below it. What keeps the next level"
    yield "from being reached stands in brackets. *x of y* counts the clauses that pass, of those that pass or fail."
    if comparison.deaths:
        yield "Kills and losses of power count the disks that a death can leave. A run survives one if it resumes as it"
        yield "has to. Losses of power count towards level durable alone."
    if "faults survived" in comparison.deaths:
        yield "Faults count deaths and failing calls of real processes."
    yield "Against an older release, *+1 -2* says that one clause fails there and passes now, and that two clauses pass"
    yield "there and fail now. A clause that fails only in some runs does not count."


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _linked(stored: Stored, slug: str) -> str:
    mark = stored.mark(slug)
    symbol = SYMBOLS[mark]
    return f"[{symbol}]({_link(stored)}#{anchor(slug)})" if mark in failures.TOLD else symbol


def _link(stored: Stored) -> str:
    """The page of a manager that can be read without a browser's page."""
    return f"{quote(stored.name)}/README.md"


def _allowed(comparison: Comparison) -> Iterator[str]:
    yield f"{_FREE} Without an entry, a manager works in the usual way."
    yield ""
    for name, meaning in explain.documented_traits():
        own = [f"{stored.name} ({stored.traits[name]})" for stored in comparison.managers if name in stored.traits]
        yield f"- `{name.partition(':')[0]}`: {meaning} {', '.join(own) or 'none'}."


# -- HTML ---------------------------------------------------------------------------


def html(comparison: Comparison) -> str:
    """Return the table as a page, with a link from each cell to its story."""
    return page(TITLE, [*_overview(comparison), *_matrix(comparison), *_both(comparison)])


def _overview(comparison: Comparison) -> Iterator[Html]:
    yield tag("a", "to the clauses", href="#clauses", class_="skip")
    yield tag("h1", TITLE)
    yield tag("p", re.sub("[`*]", "", " ".join(_introduction(comparison))), class_="soft")
    yield table(comparison.head, (_manager(comparison, stored) for stored in comparison.managers), class_="overview")
    told = [(stored, comparison.about(stored)) for stored in comparison.managers if comparison.about(stored)]
    if told:
        yield tag("h2", "Findings", id="findings")
        yield tag("ul", (tag("li", stored.name, ": ", _linked_pages(pages)) for stored, pages in told))


def _linked_pages(pages: Sequence[Finding]) -> list[Content]:
    links: list[Content] = [content for one in pages for content in (tag("a", one.title, href=one.link), "; ")]
    return links[:-1]


def _manager(comparison: Comparison, stored: Stored) -> Html:
    count = len(comparison.about(stored))
    state = _state(stored)
    said = tag("span", state, class_="" if state == State.COMPLETE else "banner")
    name = tag("th", tag("a", stored.name, href=f"{quote(stored.name)}/index.html"), scope="row")
    if not stored.report and not stored.crash:
        return row(name, tag("td", said, colspan=len(comparison.head) - 1), id=anchor(stored.name))
    cells: list[Content] = [*_cells(comparison, stored)[:-1], said]
    return row(name, *cells, tag("a", count, href="#findings") if count else "", id=anchor(stored.name))


def _matrix(comparison: Comparison) -> Iterator[Html]:
    yield tag("h2", "Clauses", id="clauses")
    meanings = tag("ul", (tag("li", mark_of(mark), " ", meaning) for mark, meaning in MEANINGS.items()))
    yield folded("what the marks mean", meanings)
    there = {stored.mark(slug) for stored in comparison.judged for _, slugs in _shown(comparison) for slug in slugs}
    yield finder("the clauses", [str(mark) for mark in Mark if mark in there])
    names = (tag("a", one.name, href=f"{quote(one.name)}/index.html") for one in comparison.judged)
    head = [tag("th", "clause", class_="first"), *(tag("th", name, class_="head", scope="col") for name in names)]
    yield table(head, (_chapter(comparison, *one) for one in _shown(comparison)), class_="matrix")


def _chapter(comparison: Comparison, chapter: str, slugs: Sequence[str]) -> Html:
    shares = (tag("td", tag("small", _share(stored, chapter=chapter))) for stored in comparison.judged)
    head = row(tag("th", tag("b", chapter), class_="first", scope="rowgroup"), *shares, id=f"chapter-{chapter}")
    return tag("tbody", head, (_clause(comparison, slug) for slug in slugs), data_group=True)


def _clause(comparison: Comparison, slug: str) -> Html:
    marks = [stored.mark(slug) for stored in comparison.judged]
    cells = [_cell(stored, slug, mark) for stored, mark in zip(comparison.judged, marks, strict=True)]
    name = tag("th", slug, class_="first", scope="row")
    return row(name, *cells, id=anchor(slug), data_marks=",".join(map(anchor, dict.fromkeys(marks))))


def _cell(stored: Stored, slug: str, mark: Mark) -> Html:
    line = stored.by_slug.get(slug)
    said = f"{stored.name}, {slug}: {mark}{f': {one_line(line.reason)}' if line and line.reason else ''}"
    link = tag("a", SYMBOLS[mark], href=f"{quote(stored.name)}/index.html#{anchor(slug)}", title=said, aria_label=said)
    return tag("td", link if line else SYMBOLS[mark], class_=anchor(mark))


def _both(comparison: Comparison) -> Iterator[Html]:
    yield tag("h2", "Both allowed", id="both-allowed")
    yield tag("p", _FREE)
    head = ("trait", "meaning", *(stored.name for stored in comparison.judged))
    rows = (
        row(name, meaning, *(_trait(stored, name) for stored in comparison.judged))
        for name, meaning in explain.documented_traits()
    )
    yield table(head, rows, class_="traits")


def _trait(stored: Stored, name: str) -> str:
    value = stored.traits.get(name)
    return "" if value is None else "yes" if value is True else str(value)
