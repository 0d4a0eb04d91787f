"""How texts are laid out for people: one width, one way to wrap, a number with its noun."""

import textwrap
from collections.abc import Sequence

_WIDTH = 110


def wrapped(text: str, indent: int = 0, hanging: int = 4) -> str:
    """Paragraphs of a text: the first is wrapped, and the others, which may be tracebacks, are kept as they are."""
    first, *others = text.splitlines() or [""]
    filled = textwrap.fill(
        first,
        _WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * hanging,
        break_long_words=False,
        break_on_hyphens=False,  # names of tests, clauses and options are copied from a report
    )
    return "\n".join([filled, *(" " * hanging + line for line in others)])


def shortened(text: str, width: int = 300) -> str:
    """One line, without what is too much."""
    return textwrap.shorten(text, width, placeholder=" ...")


def one_line(text: str) -> str:
    """A cell of a Markdown table."""
    return shortened(text.replace("|", "\\|"))


def some(texts: Sequence[str], most: int = 6) -> str:
    """The first of these, and how many more there are.

    >>> some(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def for_xml(text: str) -> str:
    """XML has no place for control characters."""
    return "".join(character if character.isprintable() or character == "\n" else "?" for character in text)


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "point"), counted(1200, "point")
    ('1 point', '1,200 points')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
