"""Writes a script that rebuilds one disk and restarts the training script over it, without the suite.

It needs a Python of 3.11 or later and what the training script itself needs.  It comes to a verdict by itself.
"""

import base64
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from forge_conformance.disks.rebuild import rebuild
from forge_conformance.scripts import judge, remap
from forge_conformance.scripts.explorer import Bad
from forge_conformance.scripts.preparation import Prepared
from forge_conformance.scripts.starts import OWN

_SCRIPT = '''"""Replays one death of a training script. Needs what the script needs, and nothing else.

{story}
"""

import base64
import json
import os
import pathlib
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
import zlib

COMMAND = {command!r}
FIRST = {first!r}  # what starts it over a folder without files
RANKS = {ranks!r}
WHERE = {where!r}  # the directory in which the command is started
FOLDER = {folder!r}  # where it was recorded: some scripts keep absolute paths
FORM = {form!r}  # how progress lines look
TASK = {task!r}  # what the restart has to do; see the text of the rules
RESULT = {result!r}
SILENCE_S = {silence_s!r}
IS_REMAPPED = {is_remapped!r}  # whether another folder takes the place of FOLDER, which is never touched then
OWN = {own!r}  # of the environment
SEEN = {seen!r}  # what was seen when this was found
PACKED = {packed!r}


def main() -> int:
    packed = json.loads(zlib.decompress(base64.b85decode(PACKED)))
    rules = module("rules", packed["rules"])
    if IS_REMAPPED:
        remap = module("remap", packed["remap"])
        remap.enter()
        os.makedirs(FOLDER, exist_ok=True)
        other = tempfile.mkdtemp()
        remap.bind(other, FOLDER)
        print("in the place of", FOLDER, "stands", other)
    try:
        made = rebuild(FOLDER, packed["disk"])
    except OSError as error:
        return lacks(f"The disk can't be rebuilt in {{FOLDER}}: {{error}}.")
    print("rebuilt", FOLDER, "with", len(packed["disk"]), "paths; starting:", *command(), flush=True)
    form = rules.Form(**{{**FORM, "keys": tuple(FORM["keys"]), "values": tuple(FORM["values"])}})
    lines = [rules.Line(tuple(key), tuple(values), text) for key, values, text in packed["lines"]]
    whole = rules.Undisturbed(tuple(lines), packed["result"])
    task = rules.Task(**TASK)
    try:
        started = start(rules, form, whole, task)
    except OSError as error:
        return lacks(f"The command can't be started in {{WHERE}}: {{error}}.", made)
    if started.has_failed and not started.wrong:
        print("it failed; starting it again over the folder that this left", flush=True)
        started = start(rules, form, whole, task)
    verdict = rules.judge(whole, task, started)
    if "ModuleNotFoundError" in verdict.seen and "ModuleNotFoundError" not in SEEN:
        return lacks(f"{{verdict.seen}}. Start it in the environment in which the script was judged.", made)
    print("seen:", verdict.seen or "what the undisturbed run did")
    print("what it rebuilt is left in", FOLDER)
    print("verdict:", verdict.word, flush=True)
    return 0 if verdict.is_fine else 1


def lacks(why: str, made: str | None = None) -> int:
    """Nothing can be said of the script, and what was made for that goes."""
    if made is not None and not IS_REMAPPED:
        shutil.rmtree(made, ignore_errors=True)
    print(f"Nothing was replayed. {{why}}", flush=True)
    return 3


def module(name: str, text: str):
    made = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), made.__dict__)
    return made


def start(rules, form, whole, task):
    """Follow all ranks until the verdict is certain; rank 0 is judged."""
    started = rules.Start(form, whole, task.goal)
    port = free_port()
    ranks = [launched(rank, port) for rank in range(RANKS)]
    last, rests, ended = time.monotonic(), {{}}, False
    outputs = {{rank.stdout.fileno(): number for number, rank in enumerate(ranks)}}
    while outputs and not ended:
        ready, _, _ = select.select(list(outputs), [], [], 0.2)
        for descriptor in ready:
            data = os.read(descriptor, 1 << 16)
            last = time.monotonic()
            *lines, rests[descriptor] = (rests.get(descriptor, b"") + data.replace(b"\\r", b"\\n")).split(b"\\n")
            for line in lines if outputs[descriptor] == 0 else []:
                if line.strip():
                    print("  |", line.decode(errors="replace"), flush=True)
                    ended = started.hears(line.decode(errors="replace")) or ended
            if not data:
                del outputs[descriptor]
        if any(rank.poll() for rank in ranks) and not ready:
            break
        if all(rank.poll() is not None for rank in ranks) and not ready:
            break
        if time.monotonic() - last > SILENCE_S:
            started.is_hung = ended = True
    if not ended:
        last = time.monotonic()
        ends = {{os.pidfd_open(rank.pid): rank for rank in ranks if rank.poll() is None}}
        while ends and not any(rank.poll() for rank in ranks):
            ready, _, _ = select.select(list(ends), [], [], max(0, last + SILENCE_S - time.monotonic()))
            if not ready:
                started.is_hung = True
                break
            for descriptor in ready:
                ends.pop(descriptor)
        else:
            started.ends(next((rank.poll() for rank in ranks if rank.poll()), 0))
    for rank in ranks:
        try:
            os.killpg(rank.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        rank.wait()
    if started.status == 0:
        started.result = rules.result_of(FOLDER, *RESULT)
    return started


def command():
    holds_files = any(path.is_symlink() or not path.is_dir() for path in pathlib.Path(FOLDER).rglob("*"))
    return COMMAND if holds_files else FIRST


def launched(rank: int, port: int):
    own = dict(OWN)
    if RANKS > 1:
        own |= {{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS)}}
        own |= {{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}}
    return subprocess.Popen(
        command(), cwd=WHERE, env={{**os.environ, **own}}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


{rebuild}


if __name__ == "__main__":
    sys.exit(main())
'''

_KEPT = ("PYTHONPATH",)
"""Of the environment in which a script was judged: without it, it may not find its modules."""


def script(bad: Bad, prepared: Prepared, story: str) -> str:
    """The text of the script."""
    stage, whole = prepared.stage, prepared.whole
    disk = [
        (path, node.kind, node.mode, node.changed_at, base64.b85encode(node.content).decode())
        for path, node in bad.disk.nodes.items()
    ]
    packed = {
        "disk": disk,
        "rules": inspect.getsource(judge),
        "remap": inspect.getsource(remap),
        "lines": [(line.key, line.values, line.text) for line in whole.lines],
        "result": whole.result,
    }
    return _SCRIPT.format(
        rebuild=inspect.getsource(rebuild).rstrip(),
        story=story.replace("\\", "/").replace('"""', "'''"),
        own=OWN | {name: os.environ[name] for name in _KEPT if name in os.environ},
        seen=bad.verdict.seen,
        command=_absolute(stage.command.at(stage.folder, is_restart=True)),
        first=_absolute(stage.command.at(stage.folder, is_restart=False)),
        ranks=stage.command.ranks,
        where=os.getcwd(),
        folder=str(stage.folder),
        form=asdict(prepared.form),
        task=asdict(bad.task),
        result=prepared.result_asked,
        is_remapped=stage.is_remapped,
        silence_s=prepared.silence_s,
        packed=base64.b85encode(zlib.compress(json.dumps(packed).encode(), 9)).decode(),
    )


def _absolute(words: Sequence[str]) -> list[str]:
    """The program is the same one whatever the PATH of the reader is."""
    return [shutil.which(words[0]) or words[0], *words[1:]]


def outcome(replay: Path, timeout_s: float) -> str:
    """The verdict that a script comes to alone, without our packages."""
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", replay.resolve()],
            capture_output=True, text=True, env=alone, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "hung"
    said = re.findall(r"^verdict: (\w+)$", done.stdout, re.M)
    return said[-1] if said else "died"
