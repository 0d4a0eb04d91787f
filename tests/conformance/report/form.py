"""The parts of a report's form that are relied on when it is read: what lacks one of them is named, and not shown."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

Form: TypeAlias = "type | tuple[type, ...] | dict[str, Form] | list[Form]"
"""A type; an object by its entries, of which those with a `?` may be missing; or a list by the form of its elements."""

_TROUBLE: Form = {"test": str, "seen": (str, type(None))}
FAILURE: Form = {"test": str, "seen": str, "expected": str, "story": [str], "detail": str}
_CLAUSE: Form = {
    **{"slug": str, "verdict": str, "digest?": str, "reason?": str, "reached?": int, "tests?": [str]},
    **{"because_of?": (str, type(None)), "failures?": [_TROUBLE]},
}
_CAUSE: Form = {"clause": str, "failed_tests": int, "consequences": [str], "same_error": [str]}
REPORT: Form = {
    **{"suite_version": str, "level": str, "is_partial": bool, "exit_status": int, "errors": [str]},
    "implementation": {"name": str, "capabilities": [str], "traits?": dict, "environment": {"versions?": dict}},
    **{"causes?": [_CAUSE], "clauses": [_CLAUSE], "ranks?": [int], "options?": [str], "asked?": [str]},
    **{"stale_expected_failures?": [str], "capability_mismatches?": [str], "expected_failures?": [str]},
}

_STORAGE: Form = {"storage": str, "is_cut_short": bool, "totals": {"disks": int, "bad": int}}
_OF_A_CAUSE: dict[str, Form] = {"verdict": str, "clause": str, "seen": str, "expected": str}
_RECORDING: Form = {
    **{"scenario": str, "mode": str, "refusal": str, "error": str, "storages?": [_STORAGE]},
    "bad?": [{**_OF_A_CAUSE, "story": str}],
}
_DRILL: Form = {
    **{"kind": str, "situation": str, "mode": str, "refusal": str, "error": str, "points": int},
    "bad": [{**_OF_A_CAUSE, "story": str, "points": int}],
}
CRASH: Form = {
    **{"implementation": str, "level": str, "interrupted": str, "recorder": {"says": str}},
    **{"asked?": dict, "environment": {"versions?": dict}, "exit": {"status": int, "why": str}},
    "causes": [{**_OF_A_CAUSE, "why": str, "times": int, "counts": bool, "where": [str], "replay": str}],
    **{"recordings": [_RECORDING], "drills": [_DRILL]},
}


_KINDS = {str: "text", int: "a whole number", bool: "true or false", dict: "an object"}


def misfits(values: Any, form: Form, where: str) -> Iterator[str]:
    """Everything in which values read from JSON do not have a form; `where` is what they are called.

    >>> list(misfits({"a": 1, "c": [2, "x"]}, {"a": str, "b": int, "c": [int], "d?": int}, "it"))
    ['it: a is not text', 'it: b is missing', 'it: c[1] is not a whole number']
    """
    if isinstance(form, dict):
        if not isinstance(values, Mapping):
            yield f"{where} is not an object"
            return
        for name, inner in form.items():
            plain = name.rstrip("?")
            if plain in values:
                yield from misfits(values[plain], inner, f"{where}: {plain}")
            elif plain == name:
                yield f"{where}: {name} is missing"
    elif isinstance(form, list):
        if not isinstance(values, list):
            yield f"{where} is not a list"
            return
        for at, value in enumerate(values):
            yield from misfits(value, form[0], f"{where}[{at}]")
    elif not isinstance(values, form):
        yield f"{where} is not {_KINDS[form] if isinstance(form, type) else 'text'}"
