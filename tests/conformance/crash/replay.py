"""Writes a script that rebuilds one disk and lets the manager resume from it, without the suite; and checks it.

It needs the manager, torch, and nothing of ours: the disk, the adapter and the
training run are inside it.  It comes to a verdict by itself, so that a report
whose scripts were checked has been confirmed by a program that shares neither
the harness nor the recorder with it.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Collection
from importlib import resources
from pathlib import Path

from .recording import Recorded
from .story import Story
from .trace import Disk

_SOURCES = ("adapter", "worker.workload", "worker.drop_in", "worker.implementation")
_OURS = "forge_conformance."

_SCRIPT = '''"""Replays one death of a checkpoint manager. Needs torch and the manager, nothing else.

{story}
"""

import base64
import json
import os
import shutil
import sys
import traceback
import types
import zlib

IMPLEMENTATION = {implementation!r}
FOLDER = {folder!r}  # where it was recorded: some managers keep absolute paths
SETTINGS = {settings!r}
SAVES = {saves!r}  # the step of each save, and fingerprints of the state that it saved
ALLOWED = {allowed!r}  # numbers of the saves that may come back; None is a fresh start
GOES_ON = {goes_on!r}  # whether the run goes on after the resume, saving every so many steps; 0 if not
PACKED = {packed!r}
PARTS = ("scheduler", "dataloader")


def main() -> int:
    packed = json.loads(zlib.decompress(base64.b85decode(PACKED)))
    find, workload, adapter = sources(packed["sources"])
    goal = json.loads(sys.argv[1]) if len(sys.argv) > 1 else None
    if goal is None:
        rebuild(packed["disk"])
        print("rebuilt", FOLDER, "with", len(packed["disk"]), "paths; it should come back at", {expected!r})
    settings = dict(SETTINGS)
    if settings.get("window"):
        settings["window"] = adapter.Window(**settings["window"])
    run = workload.Workload(999)
    fresh = run.digest()
    try:
        manager = find(IMPLEMENTATION)(adapter.Settings(folder=FOLDER, **settings), run)
        loaded = manager.load(None, (), None, PARTS)
        run.step, run.tokens_seen = loaded.step, loaded.tokens_seen
    except BaseException:  # DCP raises what is no Exception
        traceback.print_exc()
        return say("refused" if goal is None else "stuck")
    state = run.digest()
    print("came back at step", loaded.step)
    if goal is not None:
        same = loaded.step == goal["step"] and all(state.get(name) == value for name, value in goal["state"].items())
        return say("good" if same else "stuck")
    found = verdict(loaded, state, fresh)
    if found != "good" or not GOES_ON:
        return say(found)
    return go_on(manager, run)


def verdict(loaded, state, fresh) -> str:
    if (loaded.step, loaded.tokens_seen, dict(loaded.extra)) == (0, 0, {{}}):
        kept = all(state.get(name) == fresh.get(name) for name in SAVES[0][1])
        return ("good" if None in ALLOWED else "lost") if kept else "mixed"
    same = set()
    for number, (step, saved) in enumerate(SAVES):
        if step == loaded.step:
            differing = sorted(name for name in saved if saved[name] != state.get(name))
            outcome = ", ".join(differing) + " differ" if differing else "the same, bit for bit"
            print(f"  save {{number}} of step {{step}}: {{outcome}}")
            same |= set() if differing else {{number}}
    if not same or same & set(ALLOWED):
        return "good" if same else "mixed"
    acknowledged = [number for number in ALLOWED if number is not None]
    return "stale" if acknowledged and max(same) < min(acknowledged) else "phantom"


def go_on(manager, run) -> int:
    """Save twice more; then another process has to come back with the last of these saves."""
    try:
        for _ in range(2):
            manager.train((run.step // GOES_ON + 1) * GOES_ON - run.step)
            manager.save(run.step, run.tokens_seen, None, PARTS)
        manager.wait()
    except BaseException:  # DCP raises what is no Exception
        traceback.print_exc()
        return say("stuck")
    names = SAVES[0][1] if SAVES else ()
    goal = {{"step": run.step, "state": {{name: value for name, value in run.digest().items() if name in names}}}}
    print("went on to step", run.step)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *(["-P"] if sys.flags.safe_path else []), __file__, json.dumps(goal)])


def say(word: str) -> int:
    print("verdict:", word, flush=True)
    os._exit(0)  # whatever the manager still has running


def rebuild(disk: list) -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    os.makedirs(FOLDER)
    for path, kind, mode, _, content in sorted(disk):
        place = os.path.join(FOLDER, path)
        if kind == "d":
            os.mkdir(place, mode)
        elif kind == "l":
            os.symlink(os.fsdecode(base64.b85decode(content)), place)
        else:
            with open(place, "wb") as file:
                file.write(base64.b85decode(content))
            os.chmod(place, mode)
    for path, kind, _, age, _ in disk:
        if kind != "l":
            os.utime(os.path.join(FOLDER, path), ns=((1_600_000_000_000 + age) * 1_000_000,) * 2)


def sources(texts: dict) -> tuple:
    for package in ("forge_conformance", "forge_conformance.worker", "forge_conformance.adapters"):
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = []
    for name, text in texts.items():
        module = types.ModuleType(f"forge_conformance.{{name}}")
        module.__package__ = module.__name__.rpartition(".")[0]
        sys.modules[module.__name__] = module
        exec(compile(text, module.__name__, "exec"), module.__dict__)
    found = sys.modules
    return (
        found["forge_conformance.worker.implementation"].find,
        found["forge_conformance.worker.workload"],
        found["forge_conformance.adapter"],
    )


if __name__ == "__main__":
    sys.exit(main())
'''


def script(
    implementation: str, folder: Path, recorded: Recorded, disk: Disk, story: Story, allowed: Collection[int | None]
) -> str:
    """The text of the script."""
    nodes = [
        (path, node.kind, node.mode, node.changed_at, base64.b85encode(node.content).decode())
        for path, node in disk.nodes.items()
    ]
    packed = zlib.compress(json.dumps({"disk": nodes, "sources": _sources(implementation)}).encode(), 9)
    return _SCRIPT.format(
        story=story.text.replace("\\", "/").replace('"""', "'''"),
        implementation=implementation if ".py" not in implementation else _absolute(implementation),
        folder=str(folder),
        settings=recorded.settings,
        saves=[(saved.step, saved.state) for saved in recorded.saves],
        allowed=sorted(allowed, key=lambda save: -1 if save is None else save),
        goes_on=recorded.every if story.verdict.word == "stuck" else 0,
        expected=story.verdict.expected,
        packed=base64.b85encode(packed).decode(),
    )


def _sources(implementation: str) -> dict[str, str]:
    """Whatever of ours the script needs: an adapter that we bring along, too."""
    here = resources.files("forge_conformance")
    module = implementation.partition(":")[0]
    brought = (module.removeprefix(_OURS),) if module.startswith(_OURS) else ()
    return {name: (here / f"{name.replace('.', '/')}.py").read_text() for name in (*_SOURCES, *brought)}


def _absolute(implementation: str) -> str:
    """An adapter's file is found from wherever the script is started."""
    where, colon, name = implementation.partition(":")
    return f"{Path(where).resolve()}{colon}{name}"


def outcome(replay: Path, python: str | None, timeout_s: float) -> str:
    """The verdict that a script comes to alone: in the manager's Python, without our packages, in another directory."""
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    alone["OMP_NUM_THREADS"] = "1"
    try:
        done = subprocess.run(
            [python or sys.executable, "-P", replay.resolve()],
            capture_output=True, text=True, cwd=replay.parent, env=alone, timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "hung"
    finally:
        _clean(replay)
    said = re.findall(r"^verdict: (\w+)$", done.stdout, re.M)
    return said[-1] if said else "died"


def _clean(replay: Path) -> None:
    """The folder that it rebuilt goes, and the one above, which was made for the recording."""
    found = re.search(r"^FOLDER = '(.*)'", replay.read_text(), re.M)
    assert found, "every script says where it rebuilds"
    shutil.rmtree(Path(found[1]).parent, ignore_errors=True)
