"""The page about adapters for frameworks that own the loop: its example runs as it is printed, and passes."""

import re
from pathlib import Path
from typing import Any

PAGE = (Path(__file__).parents[3] / "docs/framework-adapters.md").read_text()
CASES = (
    "commit/when-a-synchronous-save-returns-it-is-committed",
    "resume/step-and-tokens-come-back[sync]",
    "resume/a-named-checkpoint-is-loaded-or-refused-never-replaced[sync]",
    "resume/killed-at-a-file-operation-the-run-comes-back-where-it-may[sync-3]",
    "commit/the-second-save-of-a-step-is-the-one-that-counts[sync]",
)

Command = Any  # see conftest.py


def example(forge: Command) -> str:
    framework, adapter, *_ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    forge.of("miniloop.py", framework)
    return f"{forge.of('mini.py', adapter)}:Mini"


def test_the_example_passes(forge: Command) -> None:
    cases = [word for case in CASES for word in ("--case", case)]
    ran = forge.run(example(forge), options=("--level", "strict", *cases))
    assert {test["test"]: test["outcome"] for test in ran.report["tests"]} == dict.fromkeys(CASES, "done"), ran.said
    assert ran.status == 0


def test_an_error_of_a_save_goes_through_the_loop_and_the_next_call_begins_another(forge: Command) -> None:
    case = "commit/a-synchronous-save-that-fails-says-so-and-the-next-one-works"
    ran = forge.run(example(forge), options=("--level", "strict", "--case", case))
    assert [test["outcome"] for test in ran.report["tests"]] == ["done"], ran.said
