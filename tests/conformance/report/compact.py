"""The form in which reports are kept beside the specification, without what it says itself and what the machine adds.

Left out are the sentences of clauses, the list of tests, times, paths, kernel and Python's place, with `--python`. Kept
are verdicts, reasons, failures with their stories, versions, and what a reader needs to see a failure again. Stories
and tracebacks repeat one another, so each of their lines is written once, and failures have its number.

Invariant: the compact form of a compact report, once expanded, is the same.
"""

import json
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from forge_spec.evidence import HERE

_REPORT = (
    *("schema_version", "suite_version", "sources", "specification", "implementation", "level", "ranks", "device"),
    *(
        "options",
        "expected_failures",
        "asked",
        "is_partial",
        "causes",
        "stale_expected_failures",
        "capability_mismatches",
    ),
    *("errors", "exit_status"),
)
_CLAUSE = ("slug", "digest", "verdict", "reached", "because_of", "reason", "tests", "failures")
_CRASH = (
    "version",
    "specification",
    "implementation",
    "environment",
    "level",
    "recorder",
    "interrupted",
    "exit",
    "causes",
)
_RECORDING = ("scenario", "mode", "refusal", "is_blocked", "error", "storages", "bad")
_DRILL = ("kind", "situation", "mode", "ranks", "says", "refusal", "is_blocked", "error", "points", "bad")
_OF_THE_MACHINE = ("executable", "platform", "gpus", "has_numpy")

_PATHS = (
    (re.compile(r"(?:/[\w.@+~-]+)*/forge-run-[0-9a-f]+(?:/pytest-of-[^/\s]+/pytest-\d+)?(?:/popen-gw\d+)?"), "/tmp"),
    (re.compile(r"(?:/[\w.@+~-]+)*/(?:site|dist)-packages/"), ""),
    (re.compile(r"(?:/[\w.@+~-]+)*/lib/python3\.\d+/"), ""),
    (re.compile(re.escape(f"{HERE.parent}/")), ""),
    (re.compile(r"(?:/[\w.@+~-]+)+/(?=tests/conformance/)"), ""),
    (re.compile(r"/tmp/test_\w*\d(?!\w)"), "/tmp"),
    # What a shortened text has left of one.
    (re.compile(r"(?:/[\w.@+~-]+)*/\.(?:tox|venv)(?:/[\w.@+~-]*)*"), "..."),
    (re.compile(r"(?:/[\w.@+~-]+)*/lib/python3[.\d]*(?![.\w/])"), "..."),
)
"""Parts of paths that differ from machine to machine or from run to run, and what takes their place."""


def report(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the compact form of a report."""
    kept: dict[str, Any] = _cleaned({name: values[name] for name in _REPORT if name in values})
    kept["options"] = [one for one in kept.get("options", ()) if not one.startswith("--python=")]
    implementation = dict(kept["implementation"])
    implementation["environment"] = _without(implementation.get("environment", {}), *_OF_THE_MACHINE)
    numbers: dict[str, int] = {}
    clauses = [_in_order(_cleaned({name: one[name] for name in _CLAUSE if one.get(name)})) for one in values["clauses"]]
    for failure in _failures(clauses):
        _replace(failure, lambda line: numbers.setdefault(line, len(numbers)), lambda text: text.split("\n"))
    return {**kept, "implementation": implementation, "clauses": clauses, "lines": list(numbers)}


def _in_order(clause: dict[str, Any]) -> dict[str, Any]:
    """Return it with its tests by name; in a report they stand as they ended, which differs from run to run."""
    by_name = {"tests": sorted(clause.get("tests", ()))}
    by_name["failures"] = sorted(clause.get("failures", ()), key=lambda failure: str(failure["test"]))
    return {**clause, **{name: values for name, values in by_name.items() if values}}


def expanded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a compact report with the lines of its stories in their places; any other one is returned as it is."""
    if "lines" not in values:
        return dict(values)
    lines = values["lines"]
    found = json.loads(json.dumps(_without(values, "lines")))
    for failure in _failures(found["clauses"]):
        _replace(failure, lambda number: lines[number], list)
        failure["detail"] = "\n".join(failure["detail"])
    return dict(found)


def _failures(clauses: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        failure for clause in clauses for failure in clause.get("failures", ()) if {"story", "detail"} <= failure.keys()
    ]


def _replace(failure: dict[str, Any], by: Callable[[Any], Any], split: Callable[[Any], list[Any]]) -> None:
    failure["story"] = [by(line) for line in failure["story"]]
    failure["detail"] = [by(line) for line in split(failure["detail"])]


def crash(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the compact form of an exploration; a replay script, which is not kept, gives way to a command."""
    kept: dict[str, Any] = {name: values[name] for name in _CRASH if name in values}
    kept["environment"] = _without(kept.get("environment", {}), *_OF_THE_MACHINE)
    kept["causes"] = [{**one, "replay": _again(one, values["implementation"])} for one in values["causes"]]
    kept["recordings"] = [_chosen(one, _RECORDING) for one in values["recordings"]]
    kept["drills"] = [_chosen(one, _DRILL) for one in values["drills"]]
    for storage in (storage for one in kept["recordings"] for storage in one.get("storages", ())):
        storage["totals"] = _without(storage["totals"], "seconds")
    found: dict[str, Any] = _cleaned(kept)
    return found


def _again(cause: Mapping[str, Any], implementation: str) -> str:
    """The command that shows a cause again, without a script."""
    if not cause["replay"].startswith("python "):
        return str(cause["replay"])
    scenario, mode, storage, *_ = cause["where"][0].split(", ")
    options = f"--tier disks --scenario {scenario} --mode {mode} --storage {storage}"
    return f"forge-conformance crash --impl {shlex.quote(implementation)} {options}"


def trouble(sentence: str) -> dict[str, Any]:
    """Return what is kept in the place of a file that can't be shown: why, as `stored` reads it again."""
    return {"trouble": _cleaned(sentence)}


def is_trouble(text: str) -> bool:
    """Whether a file holds the reason why there is none, and nothing else."""
    values = json.loads(text)
    return isinstance(values, dict) and values.keys() == {"trouble"}


def as_text(values: Mapping[str, Any]) -> str:
    """Return JSON with a line for each entry, and for each entry of a list, so that versions can be compared."""
    entries = [f"{json.dumps(name)}: {_entry(value)}" for name, value in values.items()]
    return "{\n" + ",\n".join(entries) + "\n}\n"


def _entry(value: Any) -> str:
    if not isinstance(value, list) or not value:
        return json.dumps(value, separators=(",", ":"))
    return "[\n" + ",\n".join(json.dumps(one, separators=(",", ":")) for one in value) + "\n]"


def _chosen(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


def _without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _cleaned(values: Any) -> Any:
    """The same values, without the machine's paths in their texts."""
    if isinstance(values, str):
        for path, shown in _PATHS:
            values = path.sub(shown, values)
        return values
    if isinstance(values, Mapping):
        return {name: _cleaned(value) for name, value in values.items()}
    return [_cleaned(value) for value in values] if isinstance(values, list | tuple) else values
