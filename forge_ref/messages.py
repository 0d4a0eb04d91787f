"""The logger of the package, and texts without characters that control a terminal.

Names and values in a checkpoint are written by others.  A name may hold escape
sequences, line ends or marks that reverse the direction of writing.  Invariant:
every log record of the package, and every error text that repeats something
out of a checkpoint, has passed through `printable`.
"""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

log = logging.getLogger("forge_ref")


def printable(text: object) -> str:
    """Return the text with an escape sequence for each character that can't be printed."""
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in plain)


def some(items: list[str]) -> str:
    """Return the first few of these names, and how many more there are; nothing in it that a terminal would obey."""
    shown = printable(", ".join(items[:5]))
    return shown if len(items) <= 5 else f"{shown} and {len(items) - 5} more"


@contextmanager
def logged(doing: str, *arguments: object) -> Iterator[None]:
    """Log what fails in the block as an error with its traceback, and raise nothing.

    For use where the caller has already got what it asked for.
    """
    try:
        yield
    except Exception:
        with suppress(Exception):  # a log handler may be what failed
            log.exception(f"{doing} failed", *arguments)


class _Printable(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = printable(record.getMessage()), ()
        if record.exc_info and record.exc_info[0] is not None:
            lines = "".join(traceback.format_exception(*record.exc_info)).splitlines()
            record.exc_text = "\n".join(map(printable, lines))  # formatters show this text instead of their own
        return True


log.addFilter(_Printable())
