"""The pages about failures of released managers, as their index and their texts name managers and clauses."""

import re
from collections.abc import Iterator
from pathlib import Path

from forge_conformance.report.manager import Finding
from forge_conformance.report.stored import Stored
from forge_spec import BY_SLUG

_LINK = re.compile(r"\[([^]]+)\]\(([\w.-]+\.md)\)")


def read(directory: Path, link: str) -> tuple[Finding, ...]:
    """Return the findings of an index, `README.md`; none without one. `link` is what leads to the directory."""
    index = directory / "README.md"
    return tuple(_rows(index, link)) if index.is_file() else ()


def _rows(index: Path, link: str) -> Iterator[Finding]:
    """Each line of the table whose first link is one of the pages."""
    for line in index.read_text(encoding="utf-8").splitlines():
        match = _LINK.search(line)
        if not line.startswith("|") or match is None:
            continue
        title, name = match[1], match[2]
        page = index.parent / name
        text = page.read_text(encoding="utf-8") if page.is_file() else ""
        slugs = frozenset(re.findall(r"[a-z-]+\.[a-z0-9-]+", text)) & BY_SLUG.keys()
        yield Finding(title, f"{link}/{name}", line[match.end() :], slugs)


def about(findings: tuple[Finding, ...], stored: Stored) -> tuple[Finding, ...]:
    """Return those whose line names the manager: its folder, without `-older`, or one of its packages."""
    own = {stored.name.removesuffix("-older"), *stored.versions}
    words = {re.sub(r"[\W_]+", "", name.lower()) for name in own}
    return tuple(finding for finding in findings if words & set(re.findall(r"\w+", _plain(finding.manager))))


def _plain(cell: str) -> str:
    return re.sub(r"(?<=\w)[-_](?=\w)", "", cell.lower())
