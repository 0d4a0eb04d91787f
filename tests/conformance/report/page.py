"""What all reports share: the page that a browser shows, its parts, and how files are written.

Invariant: a page is one file. It loads nothing, and runs no script but the one that is part of it, which only filters,
opens what a link leads to, and opens everything in print.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path

from forge_conformance.judging.files import replace_text
from forge_conformance.report.markup import Content, Html, tag

_STYLE = files(__package__).joinpath("page.css").read_text(encoding="utf-8")
_SCRIPT = files(__package__).joinpath("page.js").read_text(encoding="utf-8")
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; "
    f"script-src 'sha256-{base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()}'"
)


def page(title: str, body: Iterable[Content]) -> str:
    """One self-contained HTML page."""
    head = (
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", title),
        tag("style", Html(_STYLE)),
    )
    main = tag("main", ((part, Html("\n")) for part in body))
    document = tag("html", tag("head", head), tag("body", main, tag("script", Html(_SCRIPT))), lang="en")
    return f"<!doctype html>\n{document}\n"


def folded(head: Content, *content: Content, is_open: bool = False, id_: str | None = None) -> Html:
    """Content below a headline that opens and closes it."""
    return tag("details", tag("summary", head), *content, open=is_open, id=id_)


def cards(values: Iterable[tuple[Content, Content]]) -> Html:
    """A few figures side by side, each with what it is about."""
    return tag("ul", (tag("li", tag("b", figure), what) for figure, what in values), class_="cards")


def finder(of: str, marks: Iterable[str]) -> Html:
    """A search and a choice of marks for everything on the page that has `data-marks`; hidden where no script runs."""
    boxes = (tag("label", tag("input", type="checkbox", value=anchor(mark)), " ", mark) for mark in marks)
    words = tag("input", type="search", placeholder=f"find in {of} ( / )", aria_label=f"find in {of}")
    return tag("div", words, boxes, tag("output", class_="soft"), class_="find", role="search", hidden=True)


def anchor(name: str) -> str:
    """What a link to a part of a page ends with: letters, digits, dots and hyphens.

    >>> anchor("resume/a-kill[sync, 2 ranks]")
    'resume-a-kill-sync-2-ranks'
    """
    return re.sub(r"[^\w.]+", "-", name).strip("-")


def write(contents: Mapping[str, str], directory: Path) -> list[str]:
    """Write all files, by name, into a directory that is made if need be; their paths. Each is replaced as a whole.

    `Unwritten` at the first that can't be written.
    """
    for name, content in contents.items():
        replace_text(directory / name, content)
    return [str(directory / name) for name in contents]
