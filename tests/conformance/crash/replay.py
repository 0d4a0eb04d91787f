"""Writes a script that rebuilds one disk and lets the manager resume from it, without the suite.

It needs the manager, torch, and nothing of ours: the disk, the adapter and the
training run are inside it.
"""

import base64
import json
import zlib
from importlib import resources
from pathlib import Path

from .recording import Recorded
from .story import Story
from .trace import Disk

_SOURCES = ("adapter", "worker.workload", "worker.drop_in", "worker.implementation")

_SCRIPT = '''"""Replays one death of a checkpoint manager. Needs torch and the manager, nothing else.

{story}
"""

import base64
import json
import os
import shutil
import sys
import types
import zlib

IMPLEMENTATION = {implementation!r}
FOLDER = {folder!r}  # where it was recorded: some managers keep absolute paths
SETTINGS = {settings!r}
SAVES = {saves!r}  # the step of each save, and fingerprints of the state that it saved
EXPECTED = {expected!r}
PACKED = {packed!r}


def main() -> int:
    packed = json.loads(zlib.decompress(base64.b85decode(PACKED)))
    rebuild(packed["disk"])
    find, workload, adapter = sources(packed["sources"])
    settings = dict(SETTINGS)
    if settings.get("window"):
        settings["window"] = adapter.Window(**settings["window"])
    run = workload.Workload(999)
    print("rebuilt", FOLDER, "with", len(packed["disk"]), "paths; it should come back at", EXPECTED)
    manager = find(IMPLEMENTATION)(adapter.Settings(folder=FOLDER, **settings), run)
    loaded = manager.load(None, (), None, ("scheduler", "dataloader"))
    run.step, run.tokens_seen = loaded.step, loaded.tokens_seen
    state = run.digest()
    print("came back at step", loaded.step)
    for number, (step, saved) in enumerate(SAVES):
        if step == loaded.step:
            differing = sorted(name for name in saved if saved[name] != state.get(name))
            outcome = ", ".join(differing) + " differ" if differing else "the same, bit for bit"
            print(f"  save {{number}} of step {{step}}: {{outcome}}")
    return 0


def rebuild(disk: list) -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    os.makedirs(FOLDER)
    for path, kind, mode, content in sorted(disk):
        place = os.path.join(FOLDER, path)
        if kind == "d":
            os.mkdir(place, mode)
        elif kind == "l":
            os.symlink(os.fsdecode(base64.b85decode(content)), place)
        else:
            with open(place, "wb") as file:
                file.write(base64.b85decode(content))
            os.chmod(place, mode)


def sources(texts: dict) -> tuple:
    for package in ("forge_conformance", "forge_conformance.worker"):
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


def script(implementation: str, folder: Path, recorded: Recorded, disk: Disk, story: Story) -> str:
    """The text of the script."""
    nodes = [(path, node.kind, node.mode, base64.b85encode(node.content).decode()) for path, node in disk.nodes.items()]
    here = resources.files("forge_conformance")
    texts = {name: (here / f"{name.replace('.', '/')}.py").read_text() for name in _SOURCES}
    packed = zlib.compress(json.dumps({"disk": nodes, "sources": texts}).encode(), 9)
    return _SCRIPT.format(
        story=story.text.replace("\\", "/").replace('"""', "'''"),
        implementation=implementation if ".py" not in implementation else _absolute(implementation),
        folder=str(folder),
        settings=recorded.settings,
        saves=[(saved.step, saved.state) for saved in recorded.saves],
        expected=story.verdict.expected,
        packed=base64.b85encode(packed).decode(),
    )


def _absolute(implementation: str) -> str:
    """An adapter's file is found from wherever the script is started."""
    where, colon, name = implementation.partition(":")
    return f"{Path(where).resolve()}{colon}{name}"
