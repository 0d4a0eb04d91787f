"""The pages about failures of released managers, as their index and their texts name managers and clauses."""

import re
from collections.abc import Iterator
from pathlib import Path

from forge_conformance.judging import files
from forge_conformance.report.manager import Finding
from forge_conformance.report.stored import Stored
from forge_spec import BY_SLUG

_LINK = re.compile(r"\[([^]]+)\]\(([\w.-]+\.md)\)")


def read(directory: Path, link: str) -> tuple[Finding, ...]:
    """Return the findings of an index, `README.md`; none without one. `link` is what leads to the directory.

    `OSError` or `UnicodeDecodeError` if the index or one of its pages can't be read.
    """
    index = directory / "README.md"
    return tuple(_rows(index, link)) if index.exists() else ()


def _rows(index: Path, link: str) -> Iterator[Finding]:
    """Each line of the table whose first link is one of the pages."""
    for line in files.read_text(index).splitlines():
        match = _LINK.search(line)
        if not line.startswith("|") or match is None:
            continue
        title, name = match[1], match[2]
        page = index.parent / name
        text = files.read_text(page) if page.exists() else ""
        slugs = frozenset(re.findall(r"[a-z-]+\.[a-z0-9-]+", text)) & BY_SLUG.keys()
        yield Finding(title, f"{link}/{name}", line[match.end() :], slugs)


def about(findings: tuple[Finding, ...], stored: Stored) -> tuple[Finding, ...]:
    """Return those whose page is named after the manager's folder, or whose line names that or its package.

    A line that names versions is about no other ones.
    """
    folder = stored.name.removesuffix("-older")
    own = {_plain(folder), _plain(stored.release.partition(" ")[0])}
    return tuple(
        finding
        for finding in findings
        if finding.link.rpartition("/")[2].startswith(f"{folder}-") or own & _words(finding.manager)
        if _has_version(stored, re.findall(r"\d+(?:\.\d+)+", finding.manager))
    )


def _has_version(stored: Stored, named: list[str]) -> bool:
    own = [*stored.versions.values(), str(stored.environment.get("torch", "")).partition("+")[0]]
    return not named or any(f"{version}.".startswith(f"{one}.") for version in own for one in named)


def _words(text: str) -> set[str]:
    """Each word as it is, and the parts of those with hyphens.

    >>> sorted(_words("OLMo-core 3.0"))
    ['3.0', 'core', 'olmo', 'olmocore']
    """
    whole = re.findall(r"[\w.-]+", text.lower())
    return {_plain(word) for word in whole} | {part for word in whole for part in word.split("-")}


def _plain(name: str) -> str:
    return re.sub("[-_]", "", name.lower())
