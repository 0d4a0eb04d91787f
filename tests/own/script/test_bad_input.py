"""Scripts and commands that can't be judged, or not wholly: one clear sentence each, and the right exit status."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from .conftest import IN_PLACE, RIGHT, Judged, needs_recorder, replayed

pytestmark = needs_recorder


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["python", "train.py"], "the command does not say where its checkpoints are: write {dir}"),
        (["python", "absent.py", "{dir}"], "there is no file absent.py in"),
        (["no-such-program", "{dir}"], "there is no program no-such-program"),
        (["./train.py", "{dir}"], "./train.py is not executable"),
    ],
)
def test_a_command_that_can_not_be_started_is_refused_by_its_reason(
    judged: Judged, words: list[str], said: str
) -> None:
    ran = judged(RIGHT, words=words)
    assert ran.status == 2
    assert said in ran.errors


@pytest.mark.parametrize(
    ("script", "options", "said"),
    [
        ("import sys; sys.exit('no data')", [], "fails when nothing disturbs it (exit status 1)"),
        ("print('step 1'); print('step 2')", [], "changed nothing in its checkpoint folder"),
        ("print('hello')", ["--progress", r"epoch (?P<step>\d+)"], "matches no line of the undisturbed run"),
        ("print('hello')", ["--progress", "epoch"], "it has no group called step"),
        ("print('hello')", ["--progress", "("], "--progress '('"),
        ("import signal; signal.pause()", ["--start-timeout", "1"], "printed nothing for 1 s and did not end"),
        (
            "open('count', 'a').write('x'); n = len(open('count').read())\n"
            "for step in range(n, n + 5): print('step', step)\nopen(__import__('sys').argv[1] + '/c', 'w').write('x')",
            [],
            "did not go through the same steps",
        ),
    ],
)
def test_a_script_that_can_not_be_judged_is_refused_by_its_reason(
    judged: Judged, script: str, options: list[str], said: str
) -> None:
    ran = judged(script, *options)
    assert ran.status == 2, ran.said + ran.errors
    assert said in ran.errors


def test_what_is_written_elsewhere_is_said_where_nothing_is_written_to_the_folder(judged: Judged) -> None:
    ran = judged("open('elsewhere.pt', 'w').write('x')")
    assert ran.status == 2
    assert "elsewhere.pt for writing instead" in ran.errors


def test_values_that_differ_between_undisturbed_runs_are_said_and_not_compared(judged: Judged) -> None:
    flaky = RIGHT.replace("loss {total:.4f}", "loss {total:.4f} by {os.getpid()}")
    ran = judged(flaky)
    assert ran.status == 0, ran.said + ran.errors
    assert "FLAKY: two undisturbed runs differ" in ran.said
    wrong = judged(flaky.replace("json.load(open(path))", "json.load(open(path)); total += 1"))
    assert wrong.verdicts == {("script.same-run", "diverged", "kill")}


def test_a_script_without_progress_lines_is_judged_by_its_exit_alone(judged: Judged) -> None:
    silent = RIGHT.replace('print(f"step', 'print(end="") or str(f"step')
    ran = judged(silent)
    assert ran.status == 0, ran.said + ran.errors
    assert "UNREACHED: no progress line is recognised" in ran.said
    assert "restarts ended without an error; what they did was not compared" in ran.said
    assert ran.report["notes"][0].startswith("UNREACHED")
    assert all(one["states"] for one in ran.report["explored"]), "a signal needs no progress line"
    torn = silent.replace(".new", "")
    assert judged(torn).verdicts == {("script.starts", "refused", "kill")}


def test_a_script_that_hangs_after_a_death_is_hung(judged: Judged) -> None:
    waits = RIGHT.replace(
        "step, total = 0, 1.0", "step, total = 0, 1.0\nif os.path.exists(path + '.new'): os.read(os.pipe()[0], 1)"
    )
    ran = judged(waits, "--timeout", "1.5")
    assert ran.verdicts == {("script.starts", "hung", "kill")}


def test_processes_that_a_script_leaves_behind_are_ended(judged: Judged) -> None:
    """A server in a session of its own holds the output open, and would live for ever."""
    serves = "import subprocess\nsubprocess.Popen(['sleep', '4567'], start_new_session=True)\n" + RIGHT
    ran = judged(serves)
    assert ran.status == 0, ran.said + ran.errors
    assert "4567" not in subprocess.run(["ps", "axo", "args"], capture_output=True, text=True).stdout


def test_any_executable_can_be_judged(judged: Judged) -> None:
    shell = (
        'n=$(cat "$1/n" 2>/dev/null || echo 0); while [ $n -lt 5 ]; do n=$((n+1)); echo "step $n of 5"; '
        'echo $n > "$1/n.new"; mv "$1/n.new" "$1/n"; done'
    )
    ran = judged("", words=["sh", "-c", shell, "sh", "{dir}"])
    assert ran.status == 0, ran.said + ran.errors
    assert "Each start is a new process" in ran.said


def test_another_python_can_be_judged_by_its_path(judged: Judged) -> None:
    ran = judged(RIGHT, words=[sys.executable, "-B", "-W", "ignore", "train.py", "{dir}"])
    assert ran.status == 0, ran.said + ran.errors
    assert "restarts are warm" in ran.said


def test_a_fixed_folder_is_judged_and_never_touched(judged: Judged, tmp_path: Path) -> None:
    """What stands there before the run stands there after it, also after a replay."""
    place = tmp_path / "runs" / "mine"
    place.mkdir(parents=True)
    (place / "checkpoint.json").write_text("precious")
    ran = judged(IN_PLACE, "--dir", "runs/mine", words=[sys.executable, "train.py", str(place)])
    assert ran.status == 1, ran.said + ran.errors
    assert ran.verdicts >= {("script.starts", "refused", "kill")}
    assert replayed(ran.out / "replay-1.py") == (1, "verdict: refused")
    assert [path.read_text() for path in place.iterdir()] == ["precious"]


def test_a_fixed_folder_that_is_not_there_is_not_there_afterwards(judged: Judged, tmp_path: Path) -> None:
    ran = judged(RIGHT, "--dir", "absent", "--deaths", "kill", words=[sys.executable, "train.py", "absent"])
    assert ran.status == 0, ran.said + ran.errors
    assert not (tmp_path / "absent").exists()


def test_the_folder_in_which_the_command_is_started_can_be_the_one(
    judged: Judged, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Scripts of examples often write where they are started; relative names lead to the other folder, too."""
    script = tmp_path_factory.mktemp("elsewhere") / "train.py"
    script.write_text(IN_PLACE)
    (tmp_path / "checkpoint.json").write_text("precious")
    ran = judged(IN_PLACE, "--dir", ".", "--deaths", "kill", words=[sys.executable, str(script), "."])
    assert ran.status == 1, ran.said + ran.errors
    assert ran.verdicts >= {("script.starts", "refused", "kill")}
    assert replayed(ran.out / "replay-1.py") == (1, "verdict: refused")
    assert (tmp_path / "checkpoint.json").read_text() == "precious"


def test_a_folder_with_the_script_in_it_can_not_be_replaced(judged: Judged) -> None:
    ran = judged(RIGHT, "--dir", ".", words=[sys.executable, "train.py", "."])
    assert ran.status == 2
    assert "--dir .: train.py is in this folder" in ran.errors


BAR = """
def draw(said=""):
    if step in DRAWN:
        rate = f"{1 / time.process_time():.2f}it/s{said}"
        print(f"\\r{step * 100 // 7:3d}%|{'#' * step:<7}| {step}/7 [00:00<00:00, {rate}]", end="", file=sys.stderr)
"""
"""As tqdm draws on the error stream: over the line before, first with the loss of the step before, and a speed."""


def with_bar(script: str, drawn: Iterable[int] = range(8)) -> str:
    begins, steps, loop = script.replace("step, total = step + 1, total * 1.5", "step += 1").partition(
        "while step < 7:"
    )
    begins = f"import time\nDRAWN = {[*drawn]}\n{BAR}{begins}draw()\nsaid = ''\n"
    line = 'print(f"step {step} loss {total:.4f}")'
    return begins + steps + loop.replace(line, 'draw(said); total *= 1.5; said = f", loss={total:.4f}"; draw(said)')


def test_a_script_that_only_draws_a_bar_is_judged_by_what_it_draws(judged: Judged) -> None:
    ran = judged(with_bar(RIGHT))
    assert ran.status == 0, ran.said + ran.errors
    assert "progress line recognised: 7/7 loss=17.0859 (7 lines in a run)" in ran.said
    wrong = judged(with_bar(RIGHT.replace("json.load(open(path))", "json.load(open(path)); total += 1")))
    assert wrong.verdicts == {("script.same-run", "diverged", "kill")}
    assert replayed(wrong.out / "replay-1.py") == (1, "verdict: diverged")
    from_scratch = judged(with_bar(RIGHT.replace("os.path.exists(path)", "False")), "--deaths", "kill")
    assert from_scratch.verdicts == {("script.keeps-work", "scratch", "kill")}


def test_a_bar_that_leaves_out_steps_names_none_and_that_is_said(judged: Judged) -> None:
    ran = judged(with_bar(RIGHT, drawn=(0, 1, 2, 5, 7)), "--deaths", "kill")
    assert ran.status == 0, ran.said + ran.errors
    assert "BAR: the progress bar leaves out steps" in ran.said
    assert "UNREACHED: no progress line is recognised" in ran.said


def test_a_known_cause_is_expected_and_one_that_is_gone_is_stale(judged: Judged, tmp_path: Path) -> None:
    (tmp_path / "known").write_text("script.starts @ kill/refused: the file is overwritten in place\n")
    ran = judged(IN_PLACE, "--deaths", "kill", "--xfail-file", "known")
    assert ran.status == 0, ran.said + ran.errors
    assert "expected (the file is overwritten in place) script.starts" in ran.said
    stale = judged(RIGHT, "--deaths", "kill", "--xfail-file", "known")
    assert stale.status == 1
    assert "STALE: script.starts @ kill/refused" in stale.said


def test_kinds_of_death_that_do_not_exist_are_refused_by_their_names(judged: Judged) -> None:
    ran = judged(RIGHT, "--deaths", "kill,lightning")
    assert ran.status == 2
    assert "'lightning': there are kill, power, rank, term, int" in ran.errors


def test_imports_that_start_threads_are_made_anew_by_each_start(judged: Judged, tmp_path: Path) -> None:
    """A process with several threads can't be forked safely."""
    library = tmp_path / "library"
    library.mkdir()
    sleeps = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    (library / "has_a_thread.py").write_text(sleeps)
    finds = "import sys\nsys.path.append('library')\nimport has_a_thread\n" + RIGHT
    ran = judged(finds, "--deaths", "kill", environment={"PYTHONPATH": str(library)})
    assert ran.status == 0, ran.said + ran.errors
    assert "Each start is a new process, because its imports start threads." in ran.said


def test_threads_that_end_before_each_fork_hinder_none(judged: Judged, tmp_path: Path) -> None:
    """OpenBLAS, which numpy imports, starts its threads and ends them so."""
    library = tmp_path / "library"
    library.mkdir()
    works = "import os, threading\nends = threading.Event()\nworks = threading.Thread(target=ends.wait, daemon=True)\n"
    works += "works.start()\nos.register_at_fork(before=lambda: (ends.set(), works.join()))\n"
    (library / "has_a_worker.py").write_text(works)
    finds = "import has_a_worker\n" + RIGHT
    ran = judged(finds, "--deaths", "kill", environment={"PYTHONPATH": str(library)})
    assert ran.status == 0, ran.said + ran.errors
    assert "restarts are warm" in ran.said


def test_what_a_script_writes_at_its_very_end_is_written_by_a_restart(judged: Judged) -> None:
    """A file that is never closed, an exit function, and a buffer of the C library."""
    ends = "import atexit, ctypes\nlibc = ctypes.CDLL(None)\nlibc.fopen.restype = ctypes.c_void_p\n"
    ends += "log = open(os.path.join(folder, 'end-open'), 'w')\nlog.write('written late')\n"
    ends += "atexit.register(lambda: open(os.path.join(folder, 'end-exit'), 'w').write('later'))\n"
    ends += "stream = libc.fopen(os.path.join(folder, 'end-c').encode(), b'w')\n"
    ends += "libc.fputs(b'in C', ctypes.c_void_p(stream))\nsys.exit(None)\n"
    ran = judged(RIGHT + ends, "--deaths", "kill", "--result", "end-*")
    assert ran.status == 0, ran.said + ran.errors
    assert "restarts are warm" in ran.said


def test_what_only_the_end_of_the_interpreter_writes_is_written_by_a_cold_restart(
    judged: Judged, tmp_path: Path
) -> None:
    """Here a library that was imported beforehand keeps the writer."""
    library = tmp_path / "library" / "site-packages"
    library.mkdir(parents=True)
    keeps = "import os\nkept = None\nclass Writer:\n    def __init__(self, path):\n        self.path = path\n"
    keeps += "    def __del__(self, os=os):\n        os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY))\n"
    (library / "keeps_a_writer.py").write_text(keeps)
    uses = "import keeps_a_writer\n" + RIGHT
    uses += "keeps_a_writer.kept = keeps_a_writer.Writer(os.path.join(folder, 'end'))\n"
    ran = judged(uses, "--deaths", "kill", "--result", "end", environment={"PYTHONPATH": str(library)})
    assert ran.status == 0, ran.said + ran.errors
    assert "because a fork did not do what the script itself does" in ran.said


def test_several_ranks_are_started_as_torchrun_does(judged: Judged) -> None:
    both = "import os, sys\nassert os.environ['WORLD_SIZE'] == '2' and os.environ['MASTER_PORT']\n"
    both += "open(os.path.join(sys.argv[1], 'rank-' + os.environ['RANK']), 'w').close()\n"
    both += "if os.environ['LOCAL_RANK'] != '0': sys.exit()\n" + RIGHT
    ran = judged(both, "--deaths", "kill", "--ranks", "2")
    assert ran.status == 0, ran.said + ran.errors
    assert "7 lines in a run" in ran.said


def test_the_output_of_a_command_can_be_the_result(judged: Judged) -> None:
    counts = RIGHT + "\nopen(folder + '/starts', 'a').write('x')\n"
    shown = "sh -c 'wc -c < {dir}/starts'"
    ran = judged(counts, "--deaths", "kill", "--result-command", shown)
    assert ran.verdicts == {("script.same-run", "diverged", "kill")}
    assert "expected: to end with: 1 (exit status 0)" in ran.said
