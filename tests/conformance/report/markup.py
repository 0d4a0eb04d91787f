"""Text becomes HTML here and nowhere else.

Invariant: whatever is not `Html` is escaped, so no story, error or name can become part of a page's structure.
Characters that can't be seen, and those that reverse the direction of text, are shown by their names.
"""

import html
import re
from collections.abc import Iterable
from typing import TypeAlias


class Html(str):
    """A piece of a page."""

    __slots__ = ()


Content: TypeAlias = str | int | float | Iterable["Content"] | None

_VOID = frozenset({"br", "hr", "input", "meta", "wbr"})
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def text(content: Content) -> Html:
    """Return content as HTML; of a sequence all its parts, and nothing for None.

    >>> text(["<b>", Html("<b>"), None, 3, "\\x1b"])
    '&lt;b&gt;<b>3\\\\x1b'
    """
    if isinstance(content, Html):
        return content
    if content is None:
        return Html()
    if isinstance(content, str):
        return Html(html.escape(visible(content)))
    if isinstance(content, Iterable):
        return Html("".join(map(text, content)))
    return Html(content)


def visible(words: str) -> str:
    r"""Return text in which the characters that can't be seen, or reverse its direction, have their names.

    >>> print(visible("\x1b[1m"))
    \x1b[1m
    """
    return _UNSEEN.sub(_named, words)


def _named(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def tag(name: str, /, *content: Content, **attributes: str | int | bool | None) -> Html:
    """Return an element. `class_` and the like lose their last underscore; True is an attribute alone, None is none.

    >>> tag("a", "x < y", href="?a&b", class_="cell", hidden=True, title=None)
    '<a href="?a&amp;b" class="cell" hidden>x &lt; y</a>'
    """
    shown = "".join(_attribute(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    return Html(f"<{name}{shown}>" if name in _VOID else f"<{name}{shown}>{text(content)}</{name}>")


def _attribute(key: str, value: str | int | bool | None) -> str:
    if value is None or value is False:
        return ""
    return f" {key}" if value is True else f' {key}="{text(str(value))}"'


def prose(words: str) -> Html:
    """Return text of the specification, in which code stands between backticks.

    >>> prose("returns when `save` does")
    'returns when <code>save</code> does'
    """
    return text([tag("code", part) if at % 2 else part for at, part in enumerate(words.split("`"))])


def table(head: Iterable[Content], rows: Iterable[Html], **attributes: str | int | bool | None) -> Html:
    """Return a table with a line of headings; rows are `tr` or `tbody` elements."""
    cells = [cell if _is_cell(cell) else tag("th", cell, scope="col") for cell in head]
    return tag("div", tag("table", tag("thead", tag("tr", cells)), *rows, **attributes), class_="wide")


def row(*cells: Content, **attributes: str | int | bool | None) -> Html:
    """Return a line of a table; a cell that is a `td` or `th` already stays as it is."""
    return tag("tr", (cell if _is_cell(cell) else tag("td", cell) for cell in cells), **attributes)


def _is_cell(content: Content) -> bool:
    return isinstance(content, Html) and content.startswith(("<td", "<th"))
