"""Whether an argument is of the kind that its field takes.

Invariant: every refusal is one sentence with the field, the value and the way
out.  A wrong kind is a `TypeError`, a wrong value of the right kind a `ValueError`.
"""

import operator
import os
from collections.abc import Sequence, Set
from datetime import timedelta
from typing import Any


def check_integer(value: Any, field: str, at_least: int | None = None) -> None:
    """Refuse anything but an integer; a boolean counts as something else, although Python can count with it."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{field} is {value!r}; it must be an integer")
    if at_least is not None and number < at_least:
        raise ValueError(f"{field} is {value}; it must be {at_least} or more")


def check_text(value: Any, field: str) -> None:
    """Refuse anything but a string."""
    if not isinstance(value, str):
        raise TypeError(f"{field} is {value!r}; it must be a string")


def check_texts(value: Any, field: str) -> None:
    """Refuse anything but a list, or another sequence or set, of strings; one string is a collection of its letters."""
    if isinstance(value, str):
        raise TypeError(f"{field} is the string {value!r}; write a list, [{value!r}]")
    if not isinstance(value, Sequence | Set) or not all(isinstance(one, str) for one in value):
        raise TypeError(f"{field} is {value!r}; it must be a list of strings")


def check_boolean(value: Any, field: str) -> None:
    """Refuse anything but True and False: the string "false" counts as true."""
    if not isinstance(value, bool):
        raise TypeError(f"{field} is {value!r}; it must be True or False")


def check_duration(value: Any, field: str) -> None:
    """Refuse anything but a `timedelta` that is longer than nothing; seconds as a number are something else."""
    if not isinstance(value, timedelta):
        raise TypeError(f"{field} is {value!r}; it must be a datetime.timedelta")
    if value <= timedelta(0):
        raise ValueError(f"{field} is {value}; it must be longer than 0 seconds")


def check_path(value: Any, field: str) -> str:
    """Return the path as text; refuse what is not a path, the empty one, and one that no file system can hold."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise TypeError(f"{field} is {value!r}; it must be a path, as a string or a Path")
    if not text or "\0" in text:
        raise ValueError(f"{field} is {text!r}; write the path of a file or a directory")
    return text
