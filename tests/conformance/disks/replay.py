"""Writes a script that rebuilds one disk and lets the manager resume from it, without the suite; and checks it.

It needs the manager, torch, and nothing of ours: the disk, the adapter and the
training run are inside it.  It comes to a verdict by itself, so that a report
whose scripts were checked has been confirmed by a program that shares neither
the harness nor the recorder with it.
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
from collections.abc import Collection
from dataclasses import asdict
from importlib import resources
from pathlib import Path

from forge_conformance.adapter import Layout
from forge_conformance.disks.rebuild import rebuild
from forge_conformance.disks.recording import Recorded
from forge_conformance.disks.story import Story
from forge_conformance.watch.trace import Disk

_SOURCES = (
    "adapter",
    "worker.awkward",
    "worker.workload",
    "worker.ranks",
    "worker.hooked",
    "worker.drop_in",
    "worker.implementation",
)
_OURS = "forge_conformance."

_SCRIPT = '''"""Replays one death of a checkpoint manager. Needs torch and the manager, nothing else.

Exit status: 0 if all is good, 1 if the failure shows again, 3 if nothing could be replayed.

{story}
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
import types
import zlib

IMPLEMENTATION = {implementation!r}
FOLDER = {folder!r}  # where it was recorded: some managers keep absolute paths
CHECKPOINTS = {checkpoints!r}  # the folder that the manager is given: this one, or one below
SETTINGS = {settings!r}
SHAPE = {shape!r}  # how many ranks, and how they divide the work
SAVES = {saves!r}  # the step of each save, and fingerprints of the state that it saved
ALLOWED = {allowed!r}  # numbers of the saves that may come back; None is a fresh start
MIXED = {mixed!r}  # what it is called if no save has this state
STANDS = {stands!r}  # the steps that have to stand at the end, and what makes one complete; None where that is right
GOES_ON = {goes_on!r}  # whether the run goes on after the resume, saving every so many steps; 0 if not
PACKED = {packed!r}
PARTS = ("scheduler", "dataloader")
WENT_ON = "went on"


def main() -> int:
    packed = json.loads(zlib.decompress(base64.b85decode(PACKED)))
    if len(sys.argv) > 1:
        return live(packed["sources"], *map(json.loads, sys.argv[1:]))
    try:
        made = rebuild(FOLDER, packed["disk"])
    except OSError as error:
        return lacks(f"The disk can't be rebuilt in {{FOLDER}}: {{error}}.")
    print("rebuilt", FOLDER, "with", len(packed["disk"]), "paths; expected:", {expected!r})
    said = processes([None] * SHAPE["ranks"])
    lacking = [one["goal"] for one in said if one["word"] == "lacks"]
    if lacking:
        shutil.rmtree(made)
        return lacks(lacking[0])
    if all(one["word"] == WENT_ON for one in said):
        said = processes([one["goal"] for one in said])
    steps = {{one["step"] for one in said}} - {{None}}
    words = [one["word"] for one in said if one["word"] != "good"]
    word = "apart" if len(steps) > 1 else words[0] if words else "good"
    print("what it rebuilt is left in", FOLDER)
    print("verdict:", word, flush=True)
    return 0 if word == "good" else 1


def lacks(why: str) -> int:
    """Nothing can be said of the manager."""
    print(f"Nothing was replayed. {{why}}", flush=True)
    return 3


def processes(goals: list) -> list:
    """What each rank comes to, in processes that find each other through a file."""
    with tempfile.TemporaryDirectory() as place:
        flags = {{"isolated": "-I", "no_site": "-S", "safe_path": "-P"}}
        given = [flag for name, flag in flags.items() if getattr(sys.flags, name, False)]
        own = [sys.executable, *given, __file__]
        ranks = []
        for rank, goal in enumerate(goals):
            arguments = map(json.dumps, (rank, place + "/rendezvous", goal))
            ranks.append(subprocess.Popen([*own, *arguments], stdout=subprocess.PIPE, text=True))
        return [heard(rank, process.communicate()[0]) for rank, process in enumerate(ranks)]


def heard(rank: int, output: str) -> dict:
    *lines, last = output.splitlines() or [""]
    for line in lines:
        print(f"rank {{rank}}: {{line}}" if SHAPE["ranks"] > 1 else line)
    return json.loads(last) if last.startswith("{{") else {{"word": "died", "step": None}}


def live(texts: dict, rank: int, rendezvous: str, goal: dict) -> int:
    ctypes.CDLL(None).prctl(1, 9)  # ends with the process that started it
    try:
        find, workload, adapter = sources(texts)
        implementation = find(IMPLEMENTATION)
    except BaseException as error:
        what = f"{{sys.executable}} can't import torch and {{IMPLEMENTATION}} ({{type(error).__name__}}: {{error}})."
        way_out = "Start the script with the Python that has both, in the directory from which the suite was run."
        return say("lacks", None, f"{{what}} {{way_out}}")
    settings = dict(SETTINGS)
    if settings.get("window"):
        settings["window"] = adapter.Window(**settings["window"])
    if settings.get("hooks"):
        settings["hooks"] = adapter.Hooks(**settings["hooks"])
    run = training(workload, rank, rendezvous, settings)
    fresh = named(run, rank)
    try:
        manager = implementation(adapter.Settings(folder=CHECKPOINTS, **settings), run)
        loaded = manager.load(None, (), None, PARTS)
        run.step, run.tokens_seen = loaded.step, loaded.tokens_seen
    except BaseException:  # as some errors of torch are
        traceback.print_exc()
        return say("refused" if goal is None else "stuck")
    state = named(run, rank)
    print("landed on step", loaded.step)
    if goal is not None:
        same = loaded.step == goal["step"] and all(state.get(name) == value for name, value in goal["state"].items())
        return say("good" if same else "stuck")
    found = verdict(loaded, state, fresh)
    if found != "good" or not GOES_ON:
        return say(found, loaded.step)
    return go_on(manager, run, rank)


def training(workload, rank: int, rendezvous: str, settings: dict):
    if SHAPE["ranks"] == 1:
        return workload.Workload(999)
    settings["timeout_s"] = 20
    ranks = sys.modules["forge_conformance.worker.ranks"]
    place = ranks.Place(rank, SHAPE["ranks"], SHAPE["kind"], SHAPE["stages"], rendezvous, 20)
    return ranks.RankWorkload(999, place)


def named(run, rank: int) -> dict:
    """Fingerprints of the state, under the names that they have among those of all ranks."""
    if SHAPE["ranks"] == 1:
        return run.digest()
    parts = ((*name.partition("/"), value) for name, value in run.digest().items())
    return {{f"{{kind}}/rank {{rank}} {{rest}}": value for kind, _, rest, value in parts}}


def verdict(loaded, state, fresh) -> str:
    if (loaded.step, loaded.tokens_seen, dict(loaded.extra)) == (0, 0, {{}}):
        kept = all(state[name] == fresh[name] for name in SAVES[0][1] if name in state)
        return ("good" if None in ALLOWED else "lost") if kept else MIXED
    same = set()
    for number, (step, saved) in enumerate(SAVES):
        if step == loaded.step:
            differing = sorted(name for name in saved if name in state and saved[name] != state[name])
            outcome = ", ".join(differing) + " differ" if differing else "the same, bit for bit"
            print(f"  save {{number}} of step {{step}}: {{outcome}}")
            same |= set() if differing else {{number}}
    if not same or same & set(ALLOWED):
        return "good" if same else MIXED
    acknowledged = [number for number in ALLOWED if number is not None]
    return "stale" if acknowledged and max(same) < min(acknowledged) else "phantom"


def go_on(manager, run, rank: int) -> int:
    """Save twice more; then other processes have to come back with the last of these saves."""
    try:
        goal = (run.step // GOES_ON + 2) * GOES_ON
        if SETTINGS.get("hooks"):
            manager.pre_train()
        while run.step < goal:
            manager.train(1)
            if SETTINGS.get("hooks"):
                manager.post_train_batch()
            elif run.step % GOES_ON == 0:
                manager.save(run.step, run.tokens_seen, None, PARTS)
        manager.post_train() if SETTINGS.get("hooks") else manager.wait()
    except BaseException:
        traceback.print_exc()
        return say("stuck")
    wrong = deviation() if STANDS else "good"
    if wrong != "good":
        return say(wrong)
    names = SAVES[0][1] if SAVES else ()
    state = {{name: value for name, value in named(run, rank).items() if name in names}}
    print("went on to step", run.step)
    return say(WENT_ON, run.step, {{"step": run.step, "state": state}})


def deviation() -> str:
    """Whether other steps are complete than have to be."""
    steps, pattern, required = STANDS
    found = {{name: re.fullmatch(pattern, name) for name in os.listdir(CHECKPOINTS)}}
    full = [name for name in found if all(os.path.exists(os.path.join(CHECKPOINTS, name, own)) for own in required)]
    complete = {{int(found[name]["step"]) for name in full if found[name]}}
    print("complete are steps", sorted(complete), "and have to be", sorted(steps))
    return "removed" if set(steps) - complete else "left" if complete - set(steps) else "good"


def say(word: str, step: int | None = None, goal: dict | str | None = None) -> int:
    print(json.dumps({{"word": word, "step": step, "goal": goal}}), flush=True)
    os._exit(0)  # whatever the manager still has running


{rebuild}


def sources(texts: dict) -> tuple:
    sys.path.append(os.getcwd())
    for package in ("forge_conformance", "forge_conformance.worker", "forge_conformance.adapters"):
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = []
    for name, text in texts.items():
        if name == "worker.ranks" and SHAPE["ranks"] == 1:
            continue
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
    implementation: str,
    folder: Path,
    recorded: Recorded,
    disk: Disk,
    story: Story,
    allowed: Collection[int | None],
    layout: Layout,
) -> str:
    """The text of the script."""
    nodes = [
        (path, node.kind, node.mode, node.changed_at, base64.b85encode(node.content).decode())
        for path, node in disk.nodes.items()
    ]
    stands = story.verdict.stands
    packed = zlib.compress(json.dumps({"disk": nodes, "sources": _sources(implementation)}).encode(), 9)
    return _SCRIPT.format(
        rebuild=inspect.getsource(rebuild).rstrip(),
        story=story.text.replace("\\", "/").replace('"""', "'''"),
        implementation=implementation if ".py" not in implementation else _absolute(implementation),
        folder=str(folder),
        checkpoints=str(folder / recorded.below),
        settings=recorded.settings,
        shape=asdict(recorded.shape),
        saves=[(saved.step, saved.state) for saved in recorded.saves],
        allowed=sorted(allowed, key=lambda save: -1 if save is None else save),
        stands=None if stands is None else (sorted(stands), layout.checkpoint, layout.required),
        mixed="changed" if story.verdict.word == "changed" else "mixed",
        goes_on=recorded.every if story.verdict.came_back else 0,
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
    """The verdict that a script comes to alone: in the manager's Python, without our packages, in another directory.

    `unrun` if it could not come to one.
    """
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
    return said[-1] if said else "unrun" if done.returncode == 3 else "died"


def _clean(replay: Path) -> None:
    """The folder that it rebuilt goes, and the one above, which was made for the recording."""
    found = re.search(r"^FOLDER = '(.*)'", replay.read_text(), re.M)
    assert found, "every script says where it rebuilds"
    shutil.rmtree(Path(found[1]).parent, ignore_errors=True)
