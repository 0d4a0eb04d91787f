"""PROTOCOL.md against the code, both ways: every command, request and field is documented, and nothing else is."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import forge_conformance
from forge_conformance.adapter import Layout, Unsupported
from forge_conformance.runs.process import connect
from forge_conformance.runs.server import Server
from forge_conformance.worker import commands
from forge_conformance.worker.channel import Channel
from forge_conformance.worker.server import Server as WarmServer
from forge_conformance.worker.workload import TOKENS_PER_STEP, Workload

PAGE = (Path(forge_conformance.__file__).parent / "PROTOCOL.md").read_text()


def table(head: str) -> dict[str, list[str]]:
    """The rows of the table that begins with this heading: the names in the first column -> the cells after it."""
    _, _, below = PAGE.partition(f"| {head} |")
    rows = below.partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {name: rest for first, *rest in cells for name in re.findall(r"`([\w-]+)`", first)}


def named(cell: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", cell))


def test_every_command_is_documented_and_every_documented_command_is_there() -> None:
    methods = {name.removeprefix("do_") for name in vars(commands.Worker) if name.startswith("do_")}
    assert set(table("command")) == methods
    assert '{"do": "exit"}' in PAGE


def test_every_field_of_a_command_is_documented_with_it() -> None:
    for name, (documented, _) in table("command").items():
        parameters = set(inspect.signature(getattr(commands.Worker, f"do_{name}")).parameters) - {"self"}
        assert parameters <= named(documented), name


def test_every_request_to_the_server_is_documented() -> None:
    handled = set(re.findall(r'case "(\w+)"', inspect.getsource(WarmServer._answer)))
    asked = set(re.findall(r'"do": "(\w+)"', inspect.getsource(Server)))
    assert set(table("request")) == handled == asked


def test_a_server_introduces_itself_as_documented(server: Server) -> None:
    warm = WarmServer(Channel(connect()[0]), "cpu")
    refusal = warm.introduce("no_such_module_anywhere")
    assert set(refusal) == {"refusal"}
    introduction = warm.introduce(server.implementation.name)
    rows = table("field")
    assert set(introduction) == set(rows)
    assert set(introduction["layout"]) == {field.name for field in fields(Layout)}
    assert set(introduction["environment"]) == named(rows["environment"][0])


def test_an_error_has_the_fields_that_are_documented() -> None:
    error = commands._described(ValueError("no"))
    assert all(f"| `{name}` |" in PAGE for name in error)
    reasons = {commands._described(kind("no"))["reason"] for kind in (ValueError, commands.WrongAnswer, Unsupported)}
    assert all(f"`{reason}`:" in PAGE for reason in reasons)
    assert len(reasons) == 3


def test_every_kind_of_state_is_documented() -> None:
    run = Workload(seed=0)
    run.train(1)
    assert {name.partition("/")[0] for name in run.digest()} == set(table("kind"))
    assert f"Each step sees {TOKENS_PER_STEP} tokens" in PAGE
