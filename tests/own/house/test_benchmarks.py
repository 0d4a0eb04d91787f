"""What the benchmarks compute beside times: which saves are durable, and the charts."""

import gc
import os
import subprocess
import sys
from multiprocessing import Pipe
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

import durable
import goals
import storage
from chart import chart
from measure import Budget, Expected, Sample, in_turns
from sections import Failed, _learnt, _Progress, _Section, _Stuck, with_smaller

BEGUN = 'faccessat2(AT_FDCWD, "/mark/begun", F_OK) = -1 ENOENT'
ENDED = 'newfstatat(AT_FDCWD, "/mark/ended", 0x7ffe, 0) = -1 ENOENT'
MAKE = 'openat(AT_FDCWD</>, "/f/new/a.tmp", O_WRONLY|O_CREAT|O_CLOEXEC, 0666) = 3</f/new/a.tmp>'
WRITE = 'pwrite64(3</f/new/a.tmp>, "x", 1, 0) = 1'
SYNC = "fsync(3</f/new/a.tmp>) = 0"
RENAME = 'rename("/f/new/a.tmp", "/f/new/a") = 0'
SYNC_DIRECTORY = "fsync(4</f/new>) = 0"


def said(*lines: str) -> str:
    numbered = [f"7 {line}" for line in (BEGUN, *lines, ENDED)]
    return str(durable.read(numbered, "/f"))


def test_a_save_is_durable_if_its_data_and_its_names_were_synced_after_they_were_made() -> None:
    assert said(MAKE, WRITE, SYNC, RENAME, SYNC_DIRECTORY) == "yes, 2 syncs"
    assert said(MAKE, WRITE, RENAME, SYNC_DIRECTORY) == "no: 1 files not synced"
    assert said(MAKE, WRITE, SYNC, RENAME) == "no: 1 directories not synced"
    assert said(MAKE, WRITE, SYNC, SYNC_DIRECTORY, RENAME) == "no: 1 directories not synced"
    assert said(MAKE, SYNC, WRITE, SYNC_DIRECTORY) == "no: 1 files not synced"
    assert said(MAKE, WRITE, RENAME, "sync() = 0") == "yes, 1 syncs"
    assert said('mkdir("/f/new", 0777) = 0') == "no: 1 directories not synced"


def test_what_was_there_before_the_save_may_be_moved_and_deleted_without_a_sync() -> None:
    assert said('rename("/f/old", "/f/new/old") = 0', 'unlink("/f/new/old") = 0') == "yes, 0 syncs"
    assert said(MAKE, WRITE, 'unlink("/f/new/a.tmp") = 0', SYNC_DIRECTORY) == "yes, 1 syncs"


def test_a_call_that_strace_breaks_in_two_and_one_that_fails_are_read_as_they_are() -> None:
    broken = [f"7 {BEGUN}", f"7 {MAKE}", "7 pwrite64(3</f/new/a.tmp>, <unfinished ...>", "8 fsync(9</f/b>) = 0"]
    broken += ['7 <... pwrite64 resumed>"x", 1, 0) = 1', f"7 {ENDED}"]
    assert durable.read(broken, "/f").unsynced_files == {"/f/new/a.tmp"}
    assert said(MAKE, WRITE, "fsync(3</f/new/a.tmp>) = -1 EIO", SYNC_DIRECTORY) == "no: 1 files not synced"
    with pytest.raises(ValueError, match="no end of a save"):
        durable.read([f"7 {BEGUN}"], "/f")


def test_a_chart_is_a_picture_with_a_line_for_each_way() -> None:
    drawn = ElementTree.fromstring(
        chart("Save", "MB", "ms", {"a & b": [(16, 5), (1000, 300)], "c": [(16, 9), (256, 70)]})
    )
    texts = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a & b", "c", "Save", "MB", "ms", "100"} <= set(texts)
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}circle"))) == 4


def test_a_goal_is_met_or_missed_by_medians_and_a_faster_rival_is_named() -> None:
    ours, rival = goals.WAYS[0].name, goals.WAYS[1].name
    seconds = {
        goals.COPY: [1.0, 1.0, 9.0],
        goals.DIRECT: [1.0],
        goals.READ: [1.0],
        f"{ours} {goals.BLOCKED}": [1.0, 1.05, 9.0],
        f"{ours} {goals.SAVE}": [1.5],
        f"{ours} {goals.LOAD}": [1.5],
        f"{rival} {goals.SYNCED}": [0.75],
        f"{rival} {goals.LOAD}": [1.6],
    }
    found = {"256MB": (256, 1, {name: Sample(taken) for name, taken in seconds.items()})}
    assert {goal.said: goal.is_met for goal in goals.goals(found)} == {
        f"256MB: {goals.BLOCKED} over {goals.COPY}": True,
        f"256MB: {goals.SAVE} over {goals.DIRECT}": False,
        f"256MB: {goals.LOAD} over {goals.READ}": True,
    }
    assert goals.ahead(found) == [f"{rival}, {goals.SYNCED} of 256MB: 0.50 of the time"]
    found["256MB"][2][f"{rival} {goals.SYNCED}"].failure = "no room"
    assert goals.ahead(found) == []


def test_a_work_that_is_too_slow_is_measured_in_the_first_round_alone_and_no_other_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sync", lambda: None)
    monkeypatch.setattr(gc, "collect", lambda: 0)
    works = {"slow": lambda: {"slow": 3000.0}, "fast": lambda: {"fast": 0.001}}
    samples = in_turns(works, Budget(0.5), always={"fast"})
    assert samples["slow"].seconds == [3000.0]
    assert len(samples["fast"].seconds) > 1


def test_what_the_others_are_compared_with_is_repeated_whatever_it_takes() -> None:
    samples = in_turns({"limit": lambda: {"limit": 3000.0}, "rival": lambda: {"rival": 1.0}}, Budget(0), {"limit"})
    assert samples["limit"].seconds == [3000.0]
    assert samples["rival"].seconds == [1.0]


def test_a_work_that_is_expected_to_take_more_than_is_left_is_left_out_and_says_why() -> None:
    expected = {"rival": Expected(100.0, "10 times what 10k took"), "limit": Expected(100.0, "10 times what 10k took")}
    samples = in_turns({"limit": lambda: None, "rival": lambda: None}, Budget(0, expected), {"limit"})
    assert samples["rival"].failure == "left out: 100 s expected, 10 times what 10k took, and 0 s left for it"
    assert not samples["limit"].failure


def test_a_larger_state_learns_from_a_smaller_one_what_its_works_will_take() -> None:
    ours, rival = goals.WAYS[0].name, goals.WAYS[1].name
    smaller = {
        f"{rival} {goals.BLOCKED}": Sample([0.4]),
        f"{rival} {storage.DURABLE}": Sample([3.0]),
        f"{ours} {goals.LOAD}": Sample(failure="no room"),
    }
    expected, hopeless = _learnt("100k", {"10k": (40, 10_000, smaller)})
    assert expected[f"{rival} {goals.BLOCKED}"] == Expected(30.0, "10 times what 10k took")
    assert hopeless == {f"{ours} {goals.LOAD}": "left out, since 10k could not be measured"}
    assert _learnt("100k", {}) == ({}, {})
    assert with_smaller(["100k", "lost"]) == ["10k", "100k", "lost"]


def test_a_section_begins_again_without_the_step_that_was_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    section = _Section("lost", 1.0, {}, {}, _Progress())
    outcomes = [_Stuck("start", "Orbax", "stopped after 60 s"), ("found", 1)]
    monkeypatch.setattr(section, "_once", lambda *_: outcomes.pop(0))
    assert section.run() == 1
    assert section._stuck == {"Orbax": "stopped after 60 s"}
    monkeypatch.setattr(section, "_once", lambda *_: _Stuck("start", "state", "status 1"))
    with pytest.raises(Failed, match="state: status 1"):
        section.run()


def test_a_step_that_does_not_end_and_a_process_that_dies_are_named() -> None:
    section = _Section("lost", 1.0, {}, {}, _Progress())
    for command, most_s, said in (("sleep 30", 0.2, "stopped after 0 s"), ("exit 3", 30, "ended with status 3")):
        messages, theirs = Pipe(duplex=False)
        with subprocess.Popen(["sh", "-c", command]) as process:
            theirs.send(("step", ("first round", "Orbax save")))
            if "sleep" not in command:
                theirs.close()
            stuck = section._followed(messages, process, most_s)
            process.kill()
        assert stuck.step == "Orbax save"
        assert said in stuck.why
