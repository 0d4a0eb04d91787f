"""Every recorder under the explorer: ptrace sees what the kernel filter sees, the coarse one never looks as good."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from forge_conformance.cli import main
from forge_conformance.disks.explorer import Effort
from forge_conformance.disks.job import Job, explore
from forge_conformance.disks.result import Result
from forge_conformance.disks.states import KILL, States
from forge_conformance.judging.judge import CannotJudge
from forge_conformance.runs.workplace import Manager, workplace
from forge_conformance.watch.audit import LookingJournal
from forge_conformance.watch.backends import RECORDERS, choose
from forge_conformance.watch.trace import Disk

from .conftest import CAREFUL

QUICK = Effort(goes_on=2, deaths_again=0)


@pytest.fixture(params=list(RECORDERS))
def recorder(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of each recorder that works here."""
    if reason := RECORDERS[request.param].why_not():
        pytest.skip(f"--recorder {request.param}: {reason}")
    yield request.param


def explored(name: str, scenario: str, recorder: str, *storages: str) -> Result:
    manager = Manager(f"{CAREFUL}:{name}", recorder=recorder)
    with workplace(manager) as place:
        return explore(Job(scenario, "sync", storages, QUICK), place)


def found(result: Result) -> set[tuple[str, str]]:
    return {(one.verdict.word, one.verdict.clause) for one in result.found}


def test_a_manager_that_is_right_has_no_bad_disk_whoever_records_it(recorder: str) -> None:
    result = explored("Careful", "fallback", recorder, KILL)
    assert result.refusal == ""
    assert [one.text for one in result.found] == []
    assert result.explored[0].totals.disks > 15


def test_a_resume_point_that_is_deleted_first_is_found_whoever_records_it(recorder: str) -> None:
    assert found(explored("DeletesFirst", "resave", recorder, KILL)) == {("stale", "commit.resave")}


def test_ptrace_finds_what_the_kernel_filter_finds_to_the_last_disk() -> None:
    for name in ("seccomp", "ptrace"):
        if reason := RECORDERS[name].why_not():
            pytest.skip(f"--recorder {name}: {reason}")
    one, other = (explored("NoSyncOfState", "first-save", name, KILL, "posix-strict") for name in ("seccomp", "ptrace"))
    assert found(one)
    assert found(one) == found(other)
    for mine, its in zip(one.explored, other.explored, strict=True):
        assert mine.totals.disks > 5
        for count in ("states", "disks", "bad"):
            assert getattr(mine.totals, count) == getattr(its.totals, count)
        assert mine.cuts == its.cuts
    calls = [[str(call) for call in result.explored[0].recorded.trace.calls] for result in (one, other)]
    assert calls[0] == calls[1]


def test_a_coarse_recording_says_so_everywhere_and_never_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--tier", "disks", "--scenario", "first-save", "--storage", "all"]
    options += ["--going-on", "0", "--second-deaths", "0"]
    status = main(["crash", "--impl", f"{CAREFUL}:Careful", "--recorder", "audit", *options, "--out", str(tmp_path)])
    said = " ".join(capsys.readouterr().out.split())
    assert status == 2
    assert "0 bad" in said
    assert "a COARSE recorder" in said
    assert "UNSEEN: it sees Python's own opens" in said
    assert re.search(r"UNREACHED: .*ext4.*posix-strict.*durable.order", said)
    written = json.loads((tmp_path / "crash.json").read_text())
    assert written["recorder"]["is_coarse"]
    assert "posix-strict" in written["recorder"]["unreached"]
    assert [one["storage"] for one in written["recordings"][0]["storages"]] == ["kill"]
    assert "COARSE" in (tmp_path / "crash.html").read_text()


def test_losses_of_power_alone_are_refused_by_a_coarse_recorder(capsys: pytest.CaptureFixture[str]) -> None:
    impl = ["--impl", f"{CAREFUL}:Careful", "--recorder", "audit"]
    assert main(["crash", *impl, "--storage", "ext4", "--storage", "nfs"]) == 2
    assert "ext4, nfs: nothing can be explored" in capsys.readouterr().err


def test_the_best_recorder_that_works_is_taken_and_one_that_does_not_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, reason in (("seccomp", "the kernel is of 2015"), ("ptrace", "a policy forbids it")):
        monkeypatch.setitem(RECORDERS, name, replace(RECORDERS[name], why_not=lambda reason=reason: reason))
    assert choose(None).name == "audit"
    with pytest.raises(CannotJudge, match=r"--recorder seccomp .* the kernel is of 2015.*ptrace, audit"):
        choose("seccomp")


def test_deaths_are_tried_only_where_the_folder_was_looked_at(tmp_path: Path) -> None:
    journal = LookingJournal(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("one")
    journal.look("rename(a -> b)")
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "b" / "file").write_text("two")
    (tmp_path / "link").symlink_to("b")
    journal.look("unlink(link)")
    (tmp_path / "link").unlink()
    trace = journal.end()
    states = States(trace, None)
    seen = [{path: node.content for path, node in states.disk(state).nodes.items()} for state in states]
    assert seen == [
        {},
        {"a": b"", "a/file": b"one"},
        {"b": b"", "b/file": b"two", "link": b"b"},
        {"b": b"", "b/file": b"two"},
    ]
    assert trace.disk(len(trace.effects)).differences(Disk.read(tmp_path)) == []
