"""What can't be judged is refused: exit status 2, one paragraph that names the cause, no traceback of ours.

Each row is a way in which a user's first attempt goes wrong.
"""

import argparse
import contextlib
import io
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from forge_conformance.cli import _parser, main
from forge_conformance.commands.options import BadArgument, claims
from forge_conformance.judging import files
from forge_conformance.plugin import unless_our_own
from forge_conformance.runs import machine
from forge_fixtures import managers

FAULTY = str(Path(managers.__file__).with_name("faulty.py"))
HONEST = str(Path(managers.__file__).with_name("honest.py"))


@dataclass(frozen=True)
class Refusal:
    """What the user sees of it."""

    status: int
    out: str
    err: str

    def names(self, *words: str) -> None:
        """It is a refusal, and names all of these."""
        said = " ".join((self.out + self.err).split())
        assert self.status == 2, said
        assert self.err.startswith(("forge-conformance: ", "usage: ")), said
        assert "Traceback" not in said
        assert [word for word in words if word not in said] == [], said


def attempt(*arguments: str) -> Refusal:
    """The command in this process: before anything is judged it starts no pytest of its own."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            status = main(arguments)
        except SystemExit as ended:
            status = int(ended.code or 0)
    return Refusal(int(status), out.getvalue(), err.getvalue())


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user stands."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def file_of(name: str, source: str) -> str:
    Path(name).write_text(source)
    return name


IMPORTS = {
    "raises": ("raise RuntimeError('no licence')", ["RuntimeError: no licence", "raises.py:1"]),
    "syntax": ("def :", ["SyntaxError", "syntax.py, line 1"]),
    "exits": ("import sys; sys.exit(4)", ["SystemExit: 4"]),
    "exits_hard": ("import os; os.write(1, b'last words'); os._exit(4)", ["exit status 4", "last words"]),
    "dies": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", ["SIGSEGV"]),
    "needs": ("import a_package_that_is_not_there", ["ModuleNotFoundError", "a_package_that_is_not_there"]),
    "empty": ("", ["lacks CheckpointConfig, CheckpointManager"]),
    "half": ("CheckpointConfig = dict", ["lacks CheckpointManager"]),
}


@pytest.mark.parametrize("name", IMPORTS)
def test_a_module_that_does_not_import_as_a_manager_is_refused(name: str) -> None:
    source, naming = IMPORTS[name]
    attempt("smoke", "--impl", file_of(f"{name}.py", source)).names(name, *naming)


def test_a_module_that_hangs_at_import_is_refused_with_the_line_where_it_was() -> None:
    impl = file_of("hangs.py", "import threading\n\n\nthreading.Event().wait()\n")
    refusal = attempt("run", "--impl", impl, "--import-timeout", "3")
    refusal.names("Importing hangs.py did not finish within 3 s", '/hangs.py", line 4 in <module>')
    assert "worker/server.py" not in refusal.err


@pytest.mark.parametrize(
    ("impl", "naming"),
    [
        ("", ["--impl is ''", "names no module"]),
        (":Adapter", ["--impl is ':Adapter'", "names no module"]),
        (f"{FAULTY}:Nobody", ["faulty.py has no 'Nobody'"]),
        ("no_such_package.checkpoint", ["no module no_such_package", "--python"]),
        ("json.no_such_module", ["json.no_such_module"]),
        ("nowhere/adapter.py", ["no such file", "nowhere/adapter.py"]),
        ("json:JSONEncoder", ["not a subclass of forge_conformance.adapter.Adapter"]),
        ("json:Adapter", ["has no 'Adapter'"]),
        (FAULTY, ["several adapters", "faulty.py:Boaster"]),
        (f"{FAULTY}:Saveless", ["does not define save, load"]),
        (f"{FAULTY}:Nameless", ["(?P<step>...)"]),
        (f"{FAULTY}:Overwriting", ["(?P<step>...)", "overwrites one file"]),
        (f"{FAULTY}:Misnamed", ["'{step}.pth'", "does not read back"]),
        (f"{FAULTY}:Wordy", ["'sync'", "tuple"]),
        (f"{FAULTY}:Listing", ["traits = ('counts_steps',)", "Traits(...)"]),
        (f"{FAULTY}:Undemanding", ["requires nothing"]),
        (f"{FAULTY}:Pointless", ["claims `pointer`"]),
        (f"{FAULTY}:Misspelt", ["asink", "does not exist", "async"]),
        (f"{FAULTY}:Partial", ["judges reshard without distributed;", "Also, no clause judges fixed-steps, cooldown"]),
        (f"{FAULTY}:Ambitious", ["'heroic'", "does not exist", "core, strict, durable"]),
        (f"{FAULTY}:Unborn", ["could not be made", "ConnectionError: the licence server did not answer"]),
    ],
)
def test_an_impl_that_leads_to_no_manager_is_refused(impl: str, naming: list[str]) -> None:
    attempt("run", "--impl", impl).names(impl.partition(":")[0], *naming)


def test_a_manager_that_hangs_when_it_is_made_is_refused_with_the_line_where_it_was() -> None:
    refusal = attempt("run", "--impl", f"{FAULTY}:Sleeper", "--timeout", "2")
    refusal.names("did not return within 2 s", "in _sleep_for_ever", "in __init__")


def test_a_python_that_is_not_there_is_refused() -> None:
    attempt("run", "--impl", HONEST, "--python", "no/such/python").names("no/such/python", "No such file")


def program_of(name: str, line: str) -> str:
    path = Path(name)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return str(path.resolve())


def test_a_python_without_torch_is_refused() -> None:
    """The same Python, without the packages of its environment."""
    bare = program_of("bare-python", f'exec "{sys.executable}" -I -S "$@"')
    attempt("run", "--impl", HONEST, "--python", bare).names("cannot import torch")


def test_something_else_than_a_python_is_refused() -> None:
    other = program_of("other", "echo I am a shell; exit 3")
    attempt("run", "--impl", HONEST, "--python", other).names("exit status 3", "I am a shell")


EXPECTATIONS: dict[str, tuple[bytes | None, list[str]]] = {
    "missing": (None, ["can't be read", "No such file"]),
    "no reason": (b"# fine\n\ncommit.sync\n", ["line 3", "'commit.sync'", "needs its reason"]),
    "unknown clause": (b"commit.synk: never did\n", ["line 1", "no clause 'commit.synk'"]),
    "no text": (b"commit.sync: caf\xe9\n", ["UTF-8"]),
}


@pytest.mark.parametrize("how", EXPECTATIONS)
def test_expected_failures_that_cannot_be_read_are_refused(how: str) -> None:
    content, naming = EXPECTATIONS[how]
    if content is not None:
        Path("expected.xfail").write_bytes(content)
    attempt("run", "--impl", HONEST, "--xfail-file", "expected.xfail").names("expected.xfail", *naming)


@pytest.mark.parametrize(
    ("options", "naming"),
    [
        (["--clause", "commit.synk"], ["no clause", "commit.synk"]),
        (["--clause", "comit.*"], ["no clause", "comit.*"]),
        (["--level", "heroic"], ["'heroic'", "core, strict, durable"]),
        (["--level", ""], ["''", "core, strict, durable"]),
        (["--claims", "sync,asink"], ["--claims", "asink", "async"]),
        (["--claims", "+telepathy"], ["--claims", "telepathy", "not a capability"]),
        (["--claims", ""], ["--claims ''", "no capability"]),
        (["--claims", "sync,fixed-steps"], ["--claims sync,fixed-steps: no clause", "fixed-steps without ephemeral;"]),
        (["--claims", "sync,reshard", "--case", "commit/*"], ["no clause judges reshard without distributed;"]),
        (["--xfail-file", "/dev/zero"], ["--xfail-file /dev/zero", "not a regular file"]),
        (["--claims", "+peek,async"], ["mixes"]),
        (["--out", "a-file/reports"], ["--out", "a-file/reports"]),
        (["--out", "/proc/reports"], ["--out", "/proc/reports", "can't be written to"]),
        (["--timeout", "0"], ["--timeout", "'0'"]),
        (["--timeout", "soon"], ["--timeout", "'soon'"]),
        (["--examples", "-3"], ["--examples", "'-3'"]),
        (["-n", "0"], ["-n", "'0'"]),
        (["--import-timeout", "-1"], ["--import-timeout", "'-1'"]),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_before_the_manager_is_touched(
    options: list[str], naming: list[str]
) -> None:
    Path("a-file").touch()
    impl = file_of("touched.py", "open('was-touched', 'w')")
    attempt("run", "--impl", impl, *options).names(*naming)
    assert not Path("was-touched").exists()


@pytest.mark.parametrize(
    "command", [["run", "--impl", HONEST], ["crash", "--impl", HONEST], ["matrix"]], ids=lambda words: words[0]
)
def test_a_place_where_no_report_can_be_is_refused_before_anything_runs(command: list[str]) -> None:
    Path("a-file").touch()
    attempt(*command, "--out", "a-file/reports").names("--out a-file/reports", "a-file is a file")


def test_a_refusal_leaves_no_directory_for_a_report() -> None:
    attempt("run", "--impl", "no_such_package").names("no_such_package")
    assert not Path("reports").exists()


def test_a_working_directory_that_is_gone_is_refused(folder: Path) -> None:
    gone = folder / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    try:
        attempt("smoke", "--impl", HONEST).names("working directory is gone")
    finally:
        os.chdir(folder)


def test_a_refusal_leaves_no_process_and_no_file_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    impl = file_of(
        "spawns.py",
        "import subprocess, sys\n"
        "waits = [sys.executable, '-S', '-c', 'import signal; signal.pause()']\n"
        "heir = subprocess.Popen(waits, start_new_session=True)\n"
        "open('heir', 'w').write(str(heir.pid))\n"
        "raise RuntimeError('too late')\n",
    )
    attempt("smoke", "--impl", impl).names("too late")
    assert not Path("/proc", Path("heir").read_text()).exists()
    assert list(temporary.iterdir()) == []


def test_a_folder_whose_only_mutant_lacks_its_bases_is_refused_and_nothing_is_judged() -> None:
    Path("mine").mkdir()
    Path("mine/mistake.py").write_text('"""Mistakes.\n\nClause: commit.sync\n"""\nfrom bases import change\n')
    attempt("matrix", "--mutants", "mine").names("mistake.py imports from bases", "copy or link", "no other mutant")
    assert not Path("reports").exists()


@pytest.mark.parametrize("command", ["run", "smoke", "crash"])
def test_a_machine_that_lets_nobody_write_a_checkpoint_is_no_verdict_on_the_manager(command: str) -> None:
    """A limit for files that is too small: whatever the manager did then, it would fail."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        refused = attempt(command, "--impl", HONEST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert refused.status == 3
    assert "nothing can be judged on this machine" in refused.err
    assert "the limit for a file is 100,000 bytes, see ulimit -f" in refused.err
    assert "Traceback" not in refused.err


def covered(mount: str, *command: str) -> list[str]:
    """The command after a mount that only it sees; skips where no such mount can be made."""
    place = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    if shutil.which(place[0]) is None:
        pytest.skip("there is no program unshare")
    tried = subprocess.run([*place, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"{mount} is not possible here: {tried.stderr.strip()}")
    return [*place, *command]


def refusal(*command: str) -> Refusal:
    """Of another process."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Refusal(done.returncode, done.stdout, done.stderr)


SUITE = (sys.executable, "-m", "forge_conformance.cli")


@pytest.mark.parametrize(
    "command",
    [
        *([name, "--impl", HONEST] for name in ("run", "smoke", "crash")),
        ["crash", "--impl", HONEST, "-n", "2"],
        ["crash", "--impl", HONEST, "--recorder", "seccomp"],
        ["script", "--", "true", "{dir}"],
    ],
    ids=" ".join,
)
def test_a_machine_without_proc_is_refused_in_a_sentence(command: list[str]) -> None:
    refused = refusal(*covered("mount -t tmpfs none /proc", *SUITE, *command))
    assert refused.status == 3, refused.err
    assert refused.err.startswith("forge-conformance: nothing can be judged on this machine. There is no /proc")
    assert len(refused.err.splitlines()) == 1


def full(place: str, *command: str) -> list[str]:
    """The command with a file system at this place that holds no more than a page."""
    Path(place).mkdir()
    return covered(f"mount -t tmpfs -o size=4k none {place}", *command)


def test_a_table_that_finds_no_room_names_the_file() -> None:
    Path("mine").mkdir()
    refused = refusal(*full("small", *SUITE, "table", "mine", "--out", "small/table"))
    assert refused.status == 3
    assert refused.err == "forge-conformance: small/table/README.md can't be written: No space left on device\n"


def test_expected_failures_that_find_no_room_are_named_and_the_report_is_kept() -> None:
    Path("small").mkdir()
    mount = "mount -t tmpfs -o size=4k none small && head -c 4096 /dev/zero > small/file"
    clause = ("--clause", "schedule.kinds", "--level", "strict", "--ranks", "none")
    command = (*SUITE, "run", "--impl", f"{FAULTY}:Boaster", "--out", "report", "--write-xfail", "small/x.xfail")
    refused = refusal(*covered(mount, *command, *clause))
    assert refused.status == 3
    assert refused.err.splitlines()[-1] == "forge-conformance: small/x.xfail can't be written: No space left on device"
    assert Path("report/report.json").is_file()


def test_a_failure_where_there_is_no_room_any_more_is_an_error_of_ours(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"clauses": ["commit.sync"], "reached": {}, "outcome": "failed", "failure": {"seen": "OSError"}}
    assert unless_our_own(found, str(folder / "checkpoints")) == found
    monkeypatch.setattr(machine, "_ROOM_BYTES", 1 << 62)
    ours = unless_our_own(found, str(folder / "checkpoints"))
    assert ours["outcome"] == "error"
    assert str(folder) in ours["reason"]
    assert "failure" not in ours


# -- files that are none ----------------------------------------------------------------

NO_FILES = {"device": "not a regular file", "pipe": "not a regular file", "endless": "larger than 256 MiB"}


def no_file(path: str, kind: str) -> str:
    """What a read of everything would wait for, or could not hold."""
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    if kind == "device":
        place.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.touch()
        os.truncate(place, 1 << 40)
    return path


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("option", ["--xfail-file", "--base-report"])
def test_what_an_option_names_is_a_regular_file_that_can_be_held(option: str, kind: str) -> None:
    named = no_file("named", kind)
    command = ["matrix", "--mutant", "always_fresh"] if option == "--base-report" else ["run", "--impl", HONEST]
    attempt(*command, option, named).names(f"{option} named can't be read", NO_FILES[kind])


@pytest.mark.parametrize(
    ("command", "name", "kind"),
    [
        (["run"], "report.json", "device"),
        (["run"], "report.json", "pipe"),
        (["run"], "report.json", "endless"),
        (["run"], "console.txt", "pipe"),
        (["crash", "--tier", "errors", "--scenario", "steady"], "crash.json", "pipe"),
    ],
)
def test_an_earlier_report_that_is_no_file_is_refused_before_anything_is_judged(
    command: list[str], name: str, kind: str
) -> None:
    Path("out").mkdir()
    for other in {"crash.json", "report.json"} - {name}:
        Path("out", other).write_text("{}")
    no_file(f"out/{name}", kind)
    attempt(*command, "--impl", HONEST, "--out", "out", "--unless-judged").names(f"out/{name}", NO_FILES[kind])


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", ["report.json", "crash/crash.json"])
def test_a_table_says_which_report_is_no_file(name: str, kind: str) -> None:
    no_file(f"mine/{name}", kind)
    done = attempt("table", "mine", "--out", "table")
    assert done.status == 0, done.err
    assert NO_FILES[kind] in Path("table/README.md").read_text() + Path("table/mine/README.md").read_text()


@pytest.mark.parametrize("kind", NO_FILES)
def test_a_page_of_findings_that_is_no_file_is_refused(kind: str) -> None:
    Path("mine").mkdir()
    no_file("pages/README.md", kind)
    attempt("table", "mine", "--out", "table", "--findings", "pages").names("pages/README.md", NO_FILES[kind])


@pytest.mark.parametrize("kind", NO_FILES)
def test_a_mutant_that_is_no_file_is_refused(kind: str) -> None:
    no_file("mine/mistake.py", kind)
    attempt("matrix", "--mutants", "mine").names("mistake.py can't be read", NO_FILES[kind])


def test_a_report_that_is_nested_without_end_is_not_json() -> None:
    Path("deep.json").write_text("[" * 100_000)
    attempt("matrix", "--base-report", "deep.json").names("deep.json", "nested too deeply")


def test_a_report_is_not_written_into_a_pipe() -> None:
    Path("mine").mkdir()
    no_file("table/README.md", "pipe")
    refused = attempt("table", "mine", "--out", "table")
    assert refused.status == 3
    assert refused.err == "forge-conformance: table/README.md can't be written: it is not a regular file\n"


# -- claims that depend on others ---------------------------------------------------------

CLAIMED = frozenset({"sync", "async", "distributed", "reshard", "pipeline", "peek"})


def test_claims_that_nothing_judges_without_a_removed_one_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert claims("-distributed,-async", CLAIMED) == {"sync", "peek"}
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--claims -distributed,-async also leaves out pipeline, reshard: no clause judges them" in said


def test_a_claim_that_is_added_is_refused_if_nothing_judges_it_without_a_removed_one() -> None:
    with pytest.raises(BadArgument, match="no clause judges reshard without distributed;"):
        claims("+reshard,-distributed", CLAIMED)


def test_a_report_that_is_a_link_stays_one_and_its_target_is_replaced() -> None:
    Path("kept").mkdir()
    Path("kept/report.json").write_text("old")
    Path("report.json").symlink_to("kept/report.json")
    files.replace_text(Path("report.json"), "new")
    assert Path("report.json").is_symlink()
    assert [(path.name, path.read_text()) for path in Path("kept").iterdir()] == [("report.json", "new")]


def test_a_report_is_written_without_the_file_that_another_process_is_writing() -> None:
    Path(".report.json.new").write_text("another's")
    files.replace_text(Path("report.json"), "new")
    assert Path(".report.json.new").read_text() == "another's"


# -- options that are given twice ---------------------------------------------------------

COMMANDS = {
    name: command
    for action in _parser()._actions
    if isinstance(action, argparse._SubParsersAction)
    for name, command in action.choices.items()
}
TAKE_ONE = [
    (name, option)
    for name, command in COMMANDS.items()
    for option in command._actions
    if option.option_strings and option.nargs != 0 and not isinstance(option, argparse._AppendAction)
]


def two_values_of(option: argparse.Action) -> list[str]:
    """Two that the option takes."""
    found = []
    for value in option.choices or ("1", "2", "4", "0.5", "0.25", "kill", "int"):
        with contextlib.suppress(argparse.ArgumentTypeError):
            if callable(option.type):
                option.type(value)
            found.append(str(value))
    assert len(found) >= 2, f"no two values for {option.option_strings}"
    return found[:2]


@pytest.mark.parametrize(
    ("command", "option"), TAKE_ONE, ids=[f"{name}{'/'.join(option.option_strings)}" for name, option in TAKE_ONE]
)
def test_an_option_that_is_not_repeatable_has_one_value(command: str, option: argparse.Action) -> None:
    first, second = two_values_of(option)
    name, *_ = option.option_strings
    refused = attempt(command, name, first, name, second)
    refused.names(f"argument {'/'.join(option.option_strings)}: given twice, as {first!r} and as {second!r}")
    options = [one for one in COMMANDS[command]._actions if one.option_strings]
    needed = [one for one in options if one.required and one is not option]
    others = [word for one in needed for word in (one.option_strings[0], "mine")]
    parsed = [_parser().parse_args([command, *others, *given]) for given in ((name, first), (name, first) * 2)]
    assert vars(parsed[0]) == vars(parsed[1])


def test_options_of_all_commands_are_looked_at() -> None:
    assert {name for name, _ in TAKE_ONE} == COMMANDS.keys() - {"explain"}


@pytest.mark.parametrize(
    ("command", "options", "naming"),
    [
        ("crash", ["--point", "A", "--point=B"], ["--point", "'A' and as 'B'"]),
        ("run", ["--claims", "sync", "--claims", "async"], ["--claims", "'sync' and as 'async'"]),
        ("run", ["--ranks", "2", "--ranks", "none"], ["--ranks", "'2' and as 'none'"]),
        ("run", ["--time", "20", "--timeout", "3.5"], ["--timeout", "'20' and as '3.5'"]),
        ("run", ["-n2", "-n", "3"], ["-n", "'2' and as '3'"]),
        ("run", ["-n2", "-n", "2", "-n", "3"], ["-n", "'2' and as '3'"]),
        ("script", ["--deaths", "kill,term", "--deaths", "int"], ["--deaths", "'kill,term' and as 'int'"]),
    ],
)
def test_both_values_of_an_option_are_named(command: str, options: list[str], naming: list[str]) -> None:
    attempt(command, "--impl", HONEST, *options).names("given twice", *naming)


def test_options_of_one_command_line_are_not_those_of_the_next() -> None:
    parser = _parser()
    for level in ("core", "strict"):
        assert parser.parse_args(["list", "--level", level]).level == level
