"""The command over managers that are honest, boast, hang, make noise or fight: verdicts, exit statuses, reports.

Each run judges a clause or two; every exit status is seen, and whatever the manager does, what the user reads is ours.
"""

import contextlib
import itertools
import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

import forge_conformance
from forge_conformance.judging.verdicts import Report
from forge_conformance.report import run as render
from forge_conformance.report import stored
from forge_conformance.report.stored import State
from forge_fixtures import managers
from forge_spec.clauses import Level

SCHEMA = json.loads((Path(forge_conformance.__file__).parent / "report" / "schema.json").read_text())
MANAGERS = Path(managers.__file__).parent
HONEST = ("commit.overlap", "resume.dataloader", "resume.train-state")
BOASTED = ("commit.overlap", "resume.peek-agrees")
QUICK = "commit.wait-idempotent"

Command = Any  # see conftest.py
Ran = Any


def expect_one_story(ran: Ran) -> None:
    """Every file of the report says the same, to a program, a CI server and a reader."""
    report = ran.report
    jsonschema.Draft202012Validator(SCHEMA).validate(report)
    totals = report["totals"]
    suites = ElementTree.fromstring((ran.reports / "junit.xml").read_text()).findall("testsuite")
    counted = {
        key: sum(int(suite.get(key, "")) for suite in suites) for key in ("tests", "failures", "errors", "skipped")
    }
    skipped = totals["unclaimed"] + totals["unreached"] + totals["expected-fail"]
    assert counted == {
        "tests": sum(totals.values()),
        "failures": totals["fail"],
        "errors": totals["error"],
        "skipped": skipped,
    }
    assert sum(len(suite.findall("testcase/failure")) for suite in suites) == totals["fail"]
    summary = (ran.reports / "summary.md").read_text()
    notable = [slug for slug, verdict in ran.verdicts.items() if verdict in ("fail", "expected-fail", "unreached")]
    assert [slug for slug in notable if f"`{slug}`" not in summary] == []
    assert (ran.reports / "console.txt").read_text() in ran.out
    assert report["exit_status"] == ran.status
    assert "Traceback" not in ran.out + ran.err


def test_two_processes_side_by_side_find_what_one_finds(forge: Command) -> None:
    clauses = ("commit.overlap", QUICK)
    ran = [forge.run("faulty.py:Boaster", *clauses, options=("-n", n)) for n in "12"]
    one, two = ({test["test"]: test["outcome"] for test in each.report["tests"]} for each in ran)
    assert sorted(one.values()) == ["done", "done", "failed"]
    assert two == one
    assert [each.status for each in ran] == [1, 1]
    assert ran[0].verdicts == ran[1].verdicts == {"commit.overlap": "fail", QUICK: "pass"}


def test_an_honest_manager_of_another_layout_passes(forge: Command) -> None:
    ran = forge.run("honest.py", *HONEST)
    assert (ran.status, ran.verdicts) == (0, dict.fromkeys(HONEST, "pass"))
    assert ran.report["implementation"]["capabilities"] == [
        "async",
        "dataloader",
        "loader-later",
        "rng",
        "sync",
        "train-state",
    ]
    expect_one_story(ran)


def test_a_writer_that_keeps_the_interpreters_lock_is_not_accused(forge: Command) -> None:
    ran = forge.run("locking.py", "commit.overlap", "commit.snapshot", options=("--case", "commit/*"))
    assert ran.status == 0, ran.out
    assert ran.verdicts["commit.overlap"] == "pass"


def test_a_framework_that_draws_from_the_random_streams_when_it_is_made_is_compared_with_itself(forge: Command) -> None:
    clauses = ("commit.inert", "resume.exact", "resume.rng")
    cases = ("commit/a-run-that-saves*[sync]", "resume/a-resumed-run*", "resume/*random*")
    ran = forge.run("faulty.py:Drawing", *clauses, options=[part for case in cases for part in ("--case", case)])
    assert ran.status == 0, ran.out
    assert ran.verdicts["commit.inert"] == ran.verdicts["resume.exact"] == "pass"


def test_a_run_with_random_programs_leaves_nothing_but_its_report_in_the_working_directory(forge: Command) -> None:
    ran = forge.run("honest.py", "commit.sync", options=("--case", "agreement/*[sync-interval]"))
    assert [test["test"] for test in ran.report["tests"]] == [
        "agreement/the-manager-does-what-the-model-allows[sync-interval]"
    ]
    assert [path.name for path in forge.folder.iterdir()] == ["reports"]


def test_a_manager_that_claims_more_than_it_can_falls_by_name(forge: Command) -> None:
    ran = forge.run("faulty.py:Boaster", *BOASTED, options=("--level", "strict"))
    assert (ran.status, ran.verdicts) == (1, dict.fromkeys(BOASTED, "fail"))
    assert "FAIL commit.overlap (core)" in ran.said
    assert "no flush in the background" in ran.said
    assert "expected: every capability that is claimed to be there seen: peek(): peek" in ran.said
    assert "CAPABILITY peek is claimed, but the implementation lacks it" in ran.said
    assert "CAPABILITY schedule is there, but not claimed: it was not judged" in ran.said
    expect_one_story(ran)


def test_failures_that_were_expected_with_a_reason_do_not_fail_the_run(forge: Command) -> None:
    entries = forge.folder / "forgetful.xfail"
    entries.write_text("resume.train-state @ resume/*: it does not count\n")
    options = ("--claims", "sync,train-state", "--xfail-file", str(entries))
    ran = forge.run("faulty.py:Forgetful", "resume.train-state", options=options)
    assert (ran.status, ran.verdicts) == (0, {"resume.train-state": "expected-fail"})
    assert "it does not count" in ran.said
    seen = {failure["seen"] for failure in ran.report["clauses"][0]["failures"]}
    assert "load() returned 'step_3' (str) as step, which is a whole number" in seen
    expect_one_story(ran)


def test_a_run_writes_the_first_file_of_expected_failures_and_never_over_another(forge: Command) -> None:
    entries = forge.folder / "first.xfail"
    options = ("--claims", "sync,train-state", "--write-xfail", str(entries))
    ran = forge.run("faulty.py:Forgetful", "resume.train-state", options=options)
    assert (ran.status, ran.verdicts) == (1, {"resume.train-state": "fail"})
    assert "load() returned 'step_3' (str) as step" in entries.read_text()
    expected = ("--claims", "sync,train-state", "--xfail-file", str(entries))
    assert forge.run("faulty.py:Forgetful", "resume.train-state", options=expected).status == 0
    before = entries.read_text()
    again = forge.run("faulty.py:Forgetful", "resume.train-state", options=options)
    assert (again.status, entries.read_text()) == (2, before)
    assert f"--write-xfail {entries} is there already" in again.said


def test_an_expected_failure_that_no_longer_fails_fails_the_run(forge: Command) -> None:
    entries = forge.folder / "honest.xfail"
    entries.write_text(f"{QUICK}: waits twice\ncommit.overlap: judged another time\n")
    ran = forge.run("honest.py", QUICK, options=("--xfail-file", str(entries)))
    assert (ran.status, ran.verdicts) == (1, {QUICK: "pass"})
    assert ran.report["stale_expected_failures"] == [QUICK]
    assert f"STALE expected failure: {QUICK}" in ran.said
    expect_one_story(ran)


def test_where_nothing_could_be_judged_the_status_says_so(forge: Command) -> None:
    ran = forge.run("honest.py", "layout.step-dir")
    assert (ran.status, ran.verdicts) == (2, {"layout.step-dir": "unclaimed"})
    expect_one_story(ran)


@pytest.mark.usefixtures("cold")
def test_a_manager_that_kills_the_suites_own_process_is_an_error_and_no_verdict(forge: Command) -> None:
    ran = forge.run("faulty.py:Saboteur", "resume.skips-torn", options=("--claims", "sync"))
    assert (ran.status, ran.verdicts) == (3, {"resume.skips-torn": "error"})
    assert "no longer answers" in ran.said
    expect_one_story(ran)


def test_a_save_that_hangs_falls_with_the_line_where_it_was(forge: Command) -> None:
    ran = forge.run("faulty.py:Stuck", "resume.train-state", options=("--timeout", "3", "--claims", "sync,train-state"))
    assert (ran.status, ran.verdicts) == (1, {"commit.sync": "fail", "resume.train-state": "unreached"})
    assert "expected: the call to return" in ran.said
    assert "save() did not return within 3 s and was killed" in ran.said
    assert "in _sleep_for_ever" in ran.said
    assert "worker/commands.py" not in ran.out
    expect_one_story(ran)


def test_noise_closed_streams_and_processes_left_behind_disturb_no_verdict(forge: Command) -> None:
    heirs = forge.folder / "heirs"
    options = ("--claims", "sync,train-state")
    ran = forge.run("faulty.py:Noisy", "resume.train-state", options=options, NOISY_HEIRS=str(heirs))
    assert (ran.status, ran.verdicts) == (0, {"resume.train-state": "pass"})
    assert "noise noise" not in ran.said and "noise from below" not in ran.said
    left = heirs.read_text().split()
    assert len(left) >= 2
    assert [pid for pid in left if Path("/proc", pid).exists()] == []
    expect_one_story(ran)


def test_smoke_tells_what_it_reached(forge: Command) -> None:
    ran = forge("smoke", "--impl", str(MANAGERS / "honest.py"))
    assert ran.status == 0, ran.said
    assert "the folder holds 3.pt" in ran.said
    assert "a new process resumed at step 3" in ran.said


@pytest.mark.parametrize("ranks", ["3", "none"])
def test_a_failure_prints_the_command_that_sees_it_again(forge: Command, ranks: str) -> None:
    given = ("--claims=+peek", "--timeout", "15", "--ranks", ranks)
    ran = forge.run("faulty.py:Boaster", "resume.peek-agrees", options=("--level", "strict", *given))
    (line,) = [line.strip() for line in ran.out.splitlines() if line.startswith("  reproduce: ")]
    _, command, *words = shlex.split(line)
    assert command == "forge-conformance"
    again = forge(*words, "--out", str(forge.folder / "reports"))
    assert {"--claims=+peek", "--timeout=15", f"--ranks={ranks}"} <= set(words)
    assert [test["outcome"] for test in again.report["tests"]] == ["failed"]


def test_a_name_that_no_test_has_is_told_beside_one_that_a_test_has(forge: Command) -> None:
    known = "commit/waiting-with-nothing-pending-does-nothing[sync]"
    assert forge.run("honest.py", options=("--case", known)).status == 0
    ran = forge.run("honest.py", options=("--case", known, "--case", "commit/nobody-knows-this*"))
    assert (ran.status, ran.verdicts) == (2, {QUICK: "pass"})
    assert "--case 'commit/nobody-knows-this*': no test that ran has such a name" in ran.said
    assert "'commit/waiting" not in ran.err


def test_what_the_users_own_tests_are_told_is_not_for_the_suite(forge: Command) -> None:
    ran = forge.run("honest.py", QUICK, PYTEST_ADDOPTS="--collect-only -k nothing", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert (ran.status, ran.verdicts) == (0, {QUICK: "pass"}), ran.said


@pytest.mark.parametrize(
    ("faulty", "seen"),
    [
        ("Elsewhere", "it holds checkpoints/3.pt, where the layout asks for a file named like"),
        ("Misshapen", "it holds 3.pt, where the layout asks for a directory named like"),
    ],
)
def test_a_layout_that_does_not_fit_is_told_by_what_is_there(forge: Command, faulty: str, seen: str) -> None:
    smoke = forge("smoke", "--impl", f"{MANAGERS / 'faulty.py'}:{faulty}")
    assert (smoke.status, seen in smoke.said) == (1, True), smoke.said
    ran = forge.run(f"faulty.py:{faulty}", "commit.sync", options=("--case", "commit/when-*", "--claims", "sync"))
    assert (ran.status, ran.verdicts) == (1, {"commit.sync": "fail"})
    assert seen.replace("3.pt", "0.pt") in ran.said


@pytest.mark.parametrize(("ends", "processes"), [(signal.SIGINT, "1"), (signal.SIGTERM, "2")])
def test_an_interrupted_run_reports_what_it_has_found_and_leaves_nothing(
    forge: Command, ends: signal.Signals, processes: str
) -> None:
    temporary = forge.folder / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-m", "forge_conformance.cli", "run", "--impl", "forge_ref"]
    command += ["-n", processes, "--examples", "1"]
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTEST_DEBUG_TEMPROOT": str(forge.folder)}
    with subprocess.Popen(
        command,
        cwd=forge.folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_interrupts,
    ) as run:
        assert run.stderr is not None
        while (said := run.stderr.readline()) and not said.startswith("25/"):
            pass
        run.send_signal(ends)
        said = run.communicate(timeout=300)[0]
    report = json.loads((forge.folder / "reports/forge_ref/report.json").read_text())
    assert (run.returncode, report["exit_status"], report["is_partial"]) == (3, 3, True)
    assert 25 <= len(report["tests"]) < 200
    count = len(report["tests"])
    assert report["errors"] == [f"interrupted after {count} tests"]
    assert f"PARTIAL: interrupted after {count} tests. The rest was not judged." in said
    assert "ERROR of the suite" not in said
    assert list(temporary.iterdir()) == []


_NOBODY_AT_THE_DOOR = """
import sys
from forge_conformance import cli
from forge_conformance.commands import run
run._open_door = lambda *_: "/gone"
sys.argv[0] = "forge-conformance"
sys.exit(cli.main())
"""


def test_processes_that_can_not_fork_their_server_say_why_and_nothing_is_judged(forge: Command) -> None:
    options = ["--impl", "forge_ref", "--case", "commit/*", "-n", "2"]
    run = [sys.executable, "-c", _NOBODY_AT_THE_DOOR, "run", *options]
    done = subprocess.run(run, cwd=forge.folder, capture_output=True, text=True, timeout=300)
    said = " ".join(done.stdout.split())
    assert done.returncode == 3
    assert "that the others are forked from, was killed or does not answer." in said
    assert "if that is set: /gone (No such file or directory)." in said
    assert "nothing judged" in said
    assert "INTERNALERROR" not in said and "no test that ran has such a name" not in done.stderr


def test_an_adapter_that_can_be_imported_only_once_is_judged_by_several_processes(forge: Command) -> None:
    once = "import multiprocessing\n\nmultiprocessing.set_start_method('spawn')\n"
    (forge.folder / "once.py").write_text(once + (MANAGERS / "honest.py").read_text())
    ran = forge("run", "--impl", "once.py", "--clause", QUICK, "-n", "2")
    assert ran.status == 0, ran.said


def _heed_interrupts() -> None:
    """A shell starts what it runs in the background deaf to Ctrl-C, and all that comes of it with it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_reader_that_has_seen_enough_is_no_error(forge: Command) -> None:
    command = [sys.executable, "-m", "forge_conformance.cli", "list"]
    with subprocess.Popen(
        command, cwd=forge.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as listing:
        assert listing.stdout is not None and listing.stderr is not None
        listing.stdout.close()
        assert listing.stderr.read() == ""
    assert listing.returncode == 128 + signal.SIGPIPE


def test_a_report_that_cannot_be_written_is_shown_all_the_same(forge: Command) -> None:
    (forge.folder / "reports/report.json").mkdir(parents=True)
    ran = forge.run("honest.py", QUICK)
    assert ran.status == 3
    assert "1 pass" in ran.out and "Traceback" not in ran.err
    assert "report.json can't be written: it is a directory" in ran.err


@pytest.mark.parametrize(
    ("option", "value", "naming"),
    [
        ("--forge-impl", "no_such_package", "no_such_package"),
        ("--forge-level", "heroic", "heroic"),
        ("--forge-claims", "sync,asink", "there is no capability asink"),
        ("--forge-claims", "sync,cooldown", "no clause judges cooldown without ephemeral"),
    ],
)
def test_the_plugin_refuses_in_a_sentence(forge: Command, option: str, value: str, naming: str) -> None:
    options = {"--forge-impl": str(MANAGERS / "honest.py"), option: value}
    command = [sys.executable, "-m", "pytest", "--pyargs", "forge_conformance", *itertools.chain(*options.items())]
    ran = subprocess.run(command, cwd=forge.folder, capture_output=True, text=True, timeout=60)
    assert ran.returncode == pytest.ExitCode.USAGE_ERROR
    assert naming in ran.stdout + ran.stderr
    assert "INTERNALERROR" not in ran.stdout + ran.stderr


def _with(directory: Path) -> list[int]:
    """Processes whose temporary folder is below this one."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"TMPDIR={directory}".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize(
    ("command", "number", "is_stopped"),
    [
        (("run",), signal.SIGKILL, False),
        (("run",), signal.SIGKILL, True),
        (("run",), signal.SIGHUP, False),
        (("crash", "--tier", "disks"), signal.SIGKILL, True),
        (("crash", "--tier", "errors"), signal.SIGKILL, False),
    ],
    ids=["run", "run-stopped", "run-hung-up", "disks-stopped", "errors"],
)
@pytest.mark.usefixtures("cold")
def test_nothing_outlives_a_command_that_is_killed(
    command: tuple[str, ...], number: int, is_stopped: bool, tmp_path: Path
) -> None:
    """It is killed as soon as several processes of it are there; whatever they do then, they end, and so do folders.

    Stopped ones are as slow as can be to notice that the command is gone.
    """
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    arguments = [
        sys.executable,
        "-m",
        "forge_conformance.cli",
        *command,
        "--impl",
        str(MANAGERS / "honest.py"),
        "-n",
        "2",
    ]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    leader = subprocess.Popen(arguments, cwd=tmp_path, env={**os.environ, "TMPDIR": str(temporary)}, **quiet)
    _await(lambda: len(_with(temporary)) >= 3 and any(temporary.iterdir()))
    for pid in _with(temporary) if is_stopped else ():
        if pid != leader.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
    janitors = _janitors(_with(temporary))
    leader.send_signal(number)
    leader.wait()
    _await(lambda: not _with(temporary) and not any(map(_runs, janitors)))
    assert list(temporary.iterdir()) == []
    assert janitors
    assert [folder for folder in janitors.values() if os.path.lexists(folder)] == []


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()  # nobody may take note of its end
    return False


def _janitors(parents: list[int]) -> dict[int, str]:
    """The children of these processes that remove a folder in the end, wherever it is, and that folder."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().decode().split("\0") if entry.name.isdigit() else []
            if (
                words[1:3] == ["-IS", "-c"]
                and int(re.findall(r"^PPid:\s+(\d+)", (entry / "status").read_text(), re.M)[0]) in parents
            ):
                found[int(entry.name)] = words[4]
    return found


def _await(holds: Callable[[], bool]) -> None:
    """Return when this holds; five minutes are far more than it takes on the busiest machine."""
    deadline = time.monotonic() + 300
    while not holds():
        assert time.monotonic() < deadline, "it never came to that"
        select.select([], [], [], 0.1)


@pytest.mark.parametrize("command", [("list",), ("run", "--clause", QUICK, "--impl", str(MANAGERS / "honest.py"))])
def test_an_output_that_cannot_be_written_is_said_in_a_sentence(command: tuple[str, ...], tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "forge_conformance.cli", *command]
    with open("/dev/full", "w") as full:
        ran = subprocess.run(arguments, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ran.returncode == 3
    assert ran.stderr.splitlines()[-1] == "forge-conformance: the output can't be written: No space left on device"
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(("impl", "status"), [("nope.py", 2), (str(MANAGERS / "honest.py"), 3)])
def test_where_not_even_the_reason_can_be_written_the_status_says_it(impl: str, status: int, tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "forge_conformance.cli", "run", "--clause", QUICK, "--impl", impl]
    with open("/dev/full", "w") as full:
        ran = subprocess.run(arguments, cwd=tmp_path, stdout=full, stderr=full, check=False)
    assert ran.returncode == status


def test_a_closed_output_is_no_error(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "forge_conformance.cli", "list"]
    shell = " ".join(map(shlex.quote, arguments)) + " >&-"
    ran = subprocess.run(["sh", "-c", shell], cwd=tmp_path, stderr=subprocess.PIPE, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_clauses_above_the_level_are_refused_with_the_level_that_judges_them(forge: Command) -> None:
    ran = forge.run("honest.py", "place.home", "durable.power-loss", options=("--level", "core"))
    assert ran.status == 2
    assert "durable.power-loss (durable), place.home (strict): this run judges level core; add --level" in ran.said


def test_a_complete_report_of_the_same_is_printed_instead_of_judging_again(forge: Command) -> None:
    """The report of a part is made a whole one here, because a whole run takes minutes."""
    options = ("--claims", "sync", "--ranks", "none")
    first = forge.run("honest.py", "commit.sync", options=options)
    whole = forge.folder / "reports" / "report.json"
    values = {**first.report, "asked": [], "is_partial": False, "totals": {"made": "here"}}
    whole.write_text(json.dumps(values))
    assert "is replaced by" not in first.said
    again = forge.run("honest.py", options=(*options, "--unless-judged"))
    assert (again.status, again.report["totals"]) == (0, {"made": "here"})
    assert "1 pass" in again.said
    assert re.search(r"kept from \d{4}(-\d\d){2} \d\d:\d\d, judged by the same code", again.said)
    part = forge.run("honest.py", "commit.sync", options=(*options, "--unless-judged"))
    assert part.report["is_partial"] and part.report["totals"]["pass"] == 1
    assert "the complete report in" in part.said and "is replaced by one of only some tests, and kept" in part.said
    assert json.loads((forge.folder / "reports" / "report.json.before").read_text())["totals"] == {"made": "here"}
    again = forge.run("honest.py", "commit.s[y]nc", options=(*options, "--unless-judged"))
    assert "kept from" in again.said and again.report["asked"] == ["commit.sync"]


_TELLING = """import os
from forge_fixtures.managers.honest import Honest

class Telling(Honest):
    def save(self, *arguments):
        with open(os.environ["TOLD"], "w") as pipe:
            pipe.write("saves")
        super().save(*arguments)
"""


def test_a_run_that_is_killed_leaves_no_older_report_that_looks_complete(forge: Command) -> None:
    reports = forge.folder / "reports"
    reports.mkdir()
    (reports / "report.json").write_text("{}")
    os.mkfifo(forge.folder / "told")
    told = os.open(forge.folder / "told", os.O_RDONLY | os.O_NONBLOCK)
    impl = forge.of("telling.py", _TELLING)
    arguments = [sys.executable, "-m", "forge_conformance.cli", "run", "--impl", impl, "--out", str(reports)]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {**os.environ, "TOLD": str(forge.folder / "told")}
    run = subprocess.Popen([*arguments, "--unless-judged"], cwd=forge.folder, env=environment, **quiet)
    assert select.select([told], [], [], 300)[0] == [told]
    run.kill()
    run.wait()
    os.close(told)
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads((reports / "report.json").read_text()))
    one = stored.read(reports)
    assert one.state == (State.PARTIAL, "The run did not finish. No pass is shown.")
    assert "The run did not finish" in (reports / "console.txt").read_text()
    assert {path.name for path in reports.iterdir()} == {"report.json", *render.BESIDE}


def test_a_report_of_a_manager_that_no_longer_imports_gives_way_to_the_reason(forge: Command) -> None:
    impl = forge.of("mine.py", "from forge_fixtures.managers.honest import Honest as Mine\n")
    first = forge.run(f"{impl}:Mine", "commit.sync", options=("--claims", "sync"))
    assert first.status == 0
    before = (first.reports / "report.json").read_bytes()
    assert forge.run("other.py:Mine", "commit.sync").status == 2
    assert (first.reports / "report.json").read_bytes() == before
    forge.of("mine.py", "import no_such_package\n")
    ran = forge.run(f"{impl}:Mine", "commit.sync", options=("--unless-judged",))
    assert ran.status == 2 and "report.json now says that the manager was not judged" in ran.said
    one = stored.read(first.reports)
    assert one.state[0] is State.UNREADABLE
    assert one.trouble.startswith("Not judged: Importing mine.py:Mine raised ModuleNotFoundError: No module named")
    assert str(forge.folder) not in one.trouble
    assert (first.reports / "report.json.before").read_bytes() == before
    assert {path.name for path in first.reports.iterdir()} == {"report.json", "report.json.before", *render.BESIDE}
    assert forge.run(f"{impl}:Mine", "commit.sync").status == 2
    assert (first.reports / "report.json.before").read_bytes() == before


def test_a_mistake_in_the_command_leaves_the_report_that_is_there(forge: Command) -> None:
    first = forge.run("honest.py", "commit.sync", options=("--claims", "sync"))
    before = {path.name: path.read_bytes() for path in first.reports.iterdir()}
    assert first.status == 0 and {"report.json", *render.BESIDE} == before.keys()
    for mistake in (("--python", "/no/such/python"), ("--import-timeout", "0.001"), ("--device", "cuda")):
        assert forge.run("honest.py", options=mistake, CUDA_VISIBLE_DEVICES="").status == 2
        assert {path.name: path.read_bytes() for path in first.reports.iterdir()} == before


def test_a_file_that_is_no_report_is_not_replaced_by_the_reason_why_there_is_none(forge: Command) -> None:
    reports = forge.folder / "reports"
    reports.mkdir()
    (reports / "report.json").write_text("{")
    assert forge.run(forge.of("mine.py", "import no_such_package\n")).status == 2
    assert (reports / "report.json").read_text() == "{"


@pytest.mark.parametrize(
    "change",
    [
        {"is_partial": True},
        {"exit_status": 3},
        {"sources": "f" * 64},
        {"specification": "f" * 16},
        {"level": "strict"},
        {"ranks": [2]},
        {"options": ["--claims=sync"]},
        {"device": "cuda"},
        {"expected_failures": ["commit.sync: it is known"]},
        {"implementation": {}},
        {"suite_version": "0.0.1"},
    ],
)
def test_a_report_of_anything_else_is_no_answer(change: dict[str, Any]) -> None:
    asked = Report({"name": "made.up"}, Level.CORE, (), (), (), (), 1.0, sources="0" * 64)
    written = {**json.loads(json.dumps(render.as_json(asked))), "exit_status": 0}
    assert render.status_of(asked, written) == 0
    assert render.status_of(asked, {**written, **change}) is None
    assert render.status_of(asked, []) is None
    assert render.status_of(replace(asked, sources=""), {**written, "sources": ""}) is None
