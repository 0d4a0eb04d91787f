"""The command on small scripts: right ones are fine, wrong ones are found, and each finding is replayed without us."""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

from .conftest import IN_PLACE, RIGHT, Judged, needs_recorder, replayed

pytestmark = needs_recorder


def test_a_right_script_is_fine_after_every_kill_and_loss_of_power(judged: Judged) -> None:
    ran = judged(RIGHT, "--deaths", "kill", "--storage", "posix-strict", "--storage", "ext4")
    assert ran.status == 0, ran.said + ran.errors
    assert "progress line recognised: step 7 loss 17.0859 (7 lines in a run)" in ran.said
    assert "FINE at level durable" in ran.said
    assert [one["storage"] for one in ran.report["explored"]] == ["kill", "posix-strict", "ext4"]
    assert all(one["disks"] > 1 for one in ran.report["explored"])


def test_a_script_that_overwrites_its_file_is_refused_after_a_kill_and_the_replay_says_so_alone(judged: Judged) -> None:
    ran = judged(IN_PLACE)
    assert ran.status == 1, ran.said + ran.errors
    assert ran.verdicts == {("script.starts", "refused", "kill")}
    assert "openat(checkpoint.json)\n    ---- here ----" in ran.console
    assert "checkpoint.json  0 bytes" in ran.console
    assert replayed(ran.out / "replay-1.py") == (1, "verdict: refused")


def test_junit_has_a_case_for_each_kind_of_death_with_what_counts(judged: Judged) -> None:
    unsynced = RIGHT.replace("os.fsync(file.fileno())", "pass").replace("os.fsync(opened)", "pass")
    for level, outcome in (("durable", "failure"), ("core", "skipped")):
        ran = judged(unsynced, "--deaths", "kill", "--storage", "ext4", "--level", level)
        suite = ElementTree.parse(ran.out / "junit.xml").getroot()[0]
        assert {case.get("name"): [part.tag for part in case] for case in suite} == {"kill": [], "ext4": [outcome]}
        assert suite.get("failures") == str(int(level == "durable")), ElementTree.tostring(suite)


def test_a_replay_script_says_fine_once_the_script_is_mended(judged: Judged) -> None:
    ran = judged(IN_PLACE)
    tolerant = IN_PLACE.replace("os.path.exists(path)", "os.path.exists(path) and os.path.getsize(path)")
    (ran.out.parent / "train.py").write_text(tolerant)
    assert replayed(ran.out / "replay-1.py") == (0, "verdict: fine")


def test_a_failure_that_only_a_loss_of_power_shows_does_not_count_at_level_core(judged: Judged) -> None:
    unsynced = RIGHT.replace("os.fsync(file.fileno())", "pass").replace("os.fsync(opened)", "pass")
    counted = judged(unsynced, "--storage", "ext4", "--check-replays")
    assert counted.status == 1, counted.said + counted.errors
    assert {clause for clause, *_ in counted.verdicts} == {"script.power-loss", "script.acknowledged"}
    assert "replay scripts came to the same verdict by themselves" in counted.said
    assert "NOT REPRODUCED" not in counted.said
    free = judged(unsynced, "--storage", "ext4", "--level", "core")
    assert free.status == 0, free.said + free.errors


def test_a_script_that_never_looks_for_its_checkpoints_starts_from_scratch(judged: Judged) -> None:
    ran = judged(RIGHT.replace("os.path.exists(path)", "False"))
    assert ran.status == 1
    assert ran.verdicts == {("script.keeps-work", "scratch", "kill")}
    assert "A script that resumes only with a flag needs --resume COMMAND" in ran.said


def test_the_report_says_after_which_lines_restarts_went_on(judged: Judged) -> None:
    ran = judged(RIGHT, "--deaths", "kill")
    assert "kill: Restarts went on after: step 2 loss 2.2500; step 4 loss 5.0625; step 6 loss 11.3906." in ran.said


def test_each_new_way_to_go_wrong_is_told_at_once_and_again_with_its_cause(judged: Judged) -> None:
    ran = judged(IN_PLACE, "--deaths", "kill")
    assert "kill, operation 5: refused, exit status 1 before the first progress line: json" in ran.errors
    assert "second start; the restart: exit status 1 before the first progress line: json" in ran.said


NAMED = """
import json, os, sys
folder = sys.argv[1]
latest = os.path.join(folder, "latest")
step, total = 0, 1.0
if os.path.exists(latest):
    step, total = json.load(open(os.path.join(folder, open(latest).read() or "2.json")))
while step < 12:
    step, total = step + 1, total * 1.5
    print(f"step {step} loss {total:.4f}")
    if step % 2 == 0:
        with open(os.path.join(folder, f"{step}.json"), "w") as file:
            json.dump([step, total], file)
        with open(latest, "w") as file:
            file.write(f"{step}.json")
"""


def test_lost_work_is_counted(judged: Judged) -> None:
    """Where the name of the newest checkpoint is lost, the first one is taken."""
    ran = judged(NAMED, "--deaths", "kill")
    assert ("script.keeps-work", "lost", "kill") in ran.verdicts, ran.said
    assert "first progress line: step 3 loss 3.3750, so 2 progress lines are repeated" in ran.said


ALPHABETICAL = """
import json, os, sys
folder = sys.argv[1]
found = sorted(name for name in os.listdir(folder) if name.endswith(".json"))
step, total = json.load(open(os.path.join(folder, found[-1]))) if found else (0, 1.0)
while step < 12:
    step, total = step + 1, total * 1.5
    print(f"step {step} loss {total:.4f}")
    if step % 2 == 0:
        path = os.path.join(folder, f"{step}.json")
        with open(path + ".new", "w") as file:
            json.dump([step, total], file)
        os.replace(path + ".new", path)
"""


def test_saves_that_no_restart_goes_on_from_are_noted(judged: Judged) -> None:
    """Step 10 comes before step 8."""
    ran = judged(ALPHABETICAL, "--deaths", "kill")
    assert ran.status == 0, ran.said + ran.errors
    assert "UNUSED: no restart went on from the saves after: step 10 loss 57.6650; step 12 loss 129.7463." in ran.said
    assert "UNUSED" not in judged(RIGHT, "--deaths", "kill").said


def test_a_replay_that_can_not_be_made_says_so_and_is_no_verdict(judged: Judged, tmp_path: Path) -> None:
    ran = judged(IN_PLACE, "--deaths", "kill")
    replay = ran.out / "replay-1.py"
    written = replay.read_text()
    replay.write_text(written.replace(sys.executable, "/no/such/python"))
    status, said = replayed(replay)
    assert status == 3
    assert "Nothing was replayed. The command can't be started" in said
    (rebuilt,) = re.findall(r"^FOLDER = '(.*)'", written, re.M)
    assert not Path(rebuilt).parent.exists(), "it was made for the recording, and went with it"
    (tmp_path / "train.py").write_text("import no_such_module\n" + IN_PLACE)
    replay.write_text(written)
    status, said = replayed(replay)
    assert status == 3
    assert "Start it in the environment in which the script was judged" in said
    assert not Path(rebuilt).parent.exists()


def test_other_values_after_a_restart_are_a_divergence_unless_they_are_near(judged: Judged) -> None:
    wrong = RIGHT.replace("json.load(open(path))", "json.load(open(path)); total *= 1.00001")
    wrong = wrong.replace(":.4f", ":.9f")
    ran = judged(wrong)
    assert ran.verdicts == {("script.same-run", "diverged", "kill")}
    assert judged(wrong, "--tolerance", "0.01").status == 0


def test_a_script_whose_checkpoint_can_not_be_saved_again_is_stuck(judged: Judged) -> None:
    ran = judged(RIGHT.replace('open(path + ".new", "w")', 'open(path + ".new", "x")'))
    assert ran.verdicts == {("script.goes-on", "stuck", "kill")}
    assert "FileExistsError" in ran.said


def test_results_are_compared_at_the_end(judged: Judged) -> None:
    quiet = RIGHT.replace("loss {total:.4f}", "done").replace(
        "json.load(open(path))", "json.load(open(path)); total *= 1.5"
    )
    assert judged(quiet).status == 0
    ran = judged(quiet + "\nopen(folder + '/result.txt', 'w').write(str(total))\n", "--result", "result.txt")
    assert ran.verdicts == {("script.same-run", "diverged", "kill")}


def test_a_restart_command_of_its_own_is_used(judged: Judged) -> None:
    """As long as there is no file to resume from, whoever starts the script again does so as for the first time."""
    script = RIGHT.replace("os.path.exists(path)", "'--resume' in sys.argv")
    assert judged(script).verdicts == {("script.keeps-work", "scratch", "kill")}
    resume = ["--resume", f"{sys.executable} train.py {{dir}} --resume"]
    ran = judged(script, *resume)
    assert ran.verdicts == {("script.starts", "refused", "kill")}, "a first save leaves a file that is no checkpoint"
    assert "FileNotFoundError" in ran.said
    tolerant = script.replace(
        "'--resume' in sys.argv", "'--resume' in sys.argv and os.listdir(folder) != ['checkpoint.json.new']"
    )
    assert judged(tolerant, *resume).status == 0


HANDLER = """
import signal
def handler(*_):
    save()
    sys.exit(143)
signal.signal(signal.SIGTERM, handler)
"""
SAVES = """
import json, os, sys
path = os.path.join(sys.argv[1], "checkpoint.json")
state = json.load(open(path)) if os.path.exists(path) else [0, 1.0]
def save():
    with open(path + ".new", "w") as file:
        json.dump(state, file)
    os.replace(path + ".new", path)
"""
LOOP = """
while state[0] < 9:
    state[0] += 1
    state[1] *= 1.5
    print(f"step {state[0]} loss {state[1]:.4f}")
    if state[0] % 3 == 0:
        save()
"""


def test_the_save_of_a_handler_is_what_a_restart_goes_on_from(judged: Judged) -> None:
    right = judged(SAVES + HANDLER + LOOP, "--deaths", "kill,term")
    assert right.status == 0, right.said + right.errors
    early = LOOP.replace("    state[1] *= 1.5\n", "").replace('")\n', '")\n    state[1] *= 1.5\n', 1)
    wrong = judged(SAVES + HANDLER + early, "--deaths", "kill,term")
    assert wrong.verdicts == {("script.signal", "diverged", "term")}
    assert "SIGTERM comes after operation" in wrong.said


def test_a_save_of_a_handler_that_no_restart_uses_is_lost_work(judged: Judged) -> None:
    elsewhere = HANDLER.replace("save()", "save(); os.replace(path, path + '.emergency')")
    ran = judged(SAVES + elsewhere + LOOP, "--deaths", "term")
    assert ran.verdicts == {("script.signal", "scratch", "term")}


def test_a_script_that_ignores_a_signal_is_killed_after_its_time_and_that_is_said(judged: Judged) -> None:
    ignores = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: signal.pause())\n"
    ran = judged(SAVES + ignores + LOOP, "--deaths", "term", "--grace", "1", "--timeout", "1")
    assert ran.status == 0, ran.said + ran.errors
    assert "The script did not end within 1 s after SIGTERM, and was killed." in ran.said
    goes_on = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    assert "The script went on to its end after SIGTERM." in judged(SAVES + goes_on + LOOP, "--deaths", "term").said


def test_kinds_of_death_that_are_explored_side_by_side_come_to_the_same(judged: Judged) -> None:
    unsynced = RIGHT.replace("os.fsync(file.fileno())", "pass").replace("os.fsync(opened)", "pass")
    options = ["--deaths", "kill,term", "--storage", "ext4", "--storage", "posix-strict"]
    alone, beside = judged(unsynced, *options).report, judged(unsynced, *options, "-n", "2").report
    assert [(one["clause"], one["verdict"], one["deaths"]) for one in beside["found"]] == [
        (one["clause"], one["verdict"], one["deaths"]) for one in alone["found"]
    ]
    assert [one["storage"] for one in beside["explored"]] == ["kill", "term", "ext4", "posix-strict"]
    assert any(len(one["deaths"]) == 2 for one in alone["found"])
