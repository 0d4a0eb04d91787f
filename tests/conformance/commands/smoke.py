"""`forge-conformance smoke`: a first contact. Does the manager import, save, and resume after a kill?"""

import argparse
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from forge_conformance.commands import options as shared
from forge_conformance.judging.verdicts import Status
from forge_conformance.report.markup import visible
from forge_conformance.runs.folder import Folder
from forge_conformance.runs.process import ManagerFault, Unsupported
from forge_conformance.runs.server import Server
from forge_conformance.runs.state import kind_of, kinds_claimed

HELP = "first contact with a manager, in seconds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    shared.add_manager(parser)
    shared.add_device(parser)


def run(options: argparse.Namespace) -> int:
    """Save, kill, resume, and say what happened at each step."""
    say = _Steps()
    with shared.temporary_folder() as folder, contextlib.closing(shared.server(options)) as server:
        implementation = server.implementation
        claims = ", ".join(sorted(implementation.capabilities))
        say(f"imported {implementation.name}: level {implementation.level}, {claims}")
        checkpoints = folder / "checkpoints"
        checkpoints.mkdir()
        try:
            return _save_and_resume(server, str(checkpoints), say)
        except (ManagerFault, Unsupported) as fault:
            return _fail(str(fault))


def _save_and_resume(server: Server, folder: str, say: "_Steps") -> int:
    settings = {"folder": folder, "mode": server.implementation.plain_mode}
    first = server.spawn()
    first.open(settings, seed=0)
    say("made the manager over an empty folder")
    first.train(3)
    first.save()
    first.wait()
    say(f"saved step 3; the folder holds {', '.join(sorted(p.name for p in Path(folder).iterdir()))}")
    looked = Folder(Path(folder), server.implementation.layout)
    if looked.latest_or_newest() != 3 or 3 not in looked.complete():
        return _fail(f"by the layout of the adapter, step 3 was not committed: {looked}")
    digest = first.digest()
    first.kill()
    say("killed the process")
    second = server.spawn()
    second.open(settings, seed=1)
    loaded = second.load()
    say(f"a new process resumed at step {loaded.step}")
    if loaded.step != 3:
        return _fail(f"it resumed at step {loaded.step}, not at step 3")
    return _compare(digest, second.digest(), kinds_claimed(server.implementation.capabilities), say)


def _compare(saved: dict[str, str], resumed: dict[str, str], kinds: Sequence[str], say: "_Steps") -> int:
    differing = sorted(name for name in saved if saved[name] != resumed.get(name) and kind_of(name) in kinds)
    if differing:
        return _fail(f"not the same as saved: {', '.join(differing)}")
    say(f"restored bit for bit: {', '.join(sorted({kind_of(name) for name in saved} & set(kinds)))}")
    return Status.PASSED


def _fail(reason: str) -> int:
    print(f"FAIL: {visible(reason)}")
    return Status.FAILED


class _Steps:
    """Prints what was reached, with the time since the start."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()

    def __call__(self, sentence: str) -> None:
        print(f"{time.perf_counter() - self._begun:6.2f} s  {sentence}", flush=True)
