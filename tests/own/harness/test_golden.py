"""The folders of others find out managers that come back wrongly, and judge none that writes another format."""

import os
from typing import Any

Command = Any  # see conftest.py
Ran = Any

TRUSTING = """
import os
import forge_ref
from forge_ref import *

class CheckpointManager(forge_ref.CheckpointManager):
    def load(self, path=None, **more):
        latest = os.path.join(self.config.dir, "latest")
        named = latest if os.path.islink(latest) else None
        return super().load(named if path is None else path, **more)
"""
GUESSING = """
import os
import forge_ref
from forge_ref import *

class CheckpointManager(forge_ref.CheckpointManager):
    def load(self, path=None, **more):
        names = [name for name in os.listdir(self.config.dir) if name.startswith("step_")]
        newest = max(names, key=lambda name: int(name.split("_")[1].partition(".")[0]), default=None)
        named = None if newest is None else os.path.join(self.config.dir, newest)
        return super().load(named if path is None else path, **more)
"""
OF_ANOTHER_FORMAT = """
import forge_ref.weights
from forge_ref import *

forge_ref.weights.MODEL = "net"
forge_ref.weights.PARTS = ("net", "optimizer")
"""


def judged(forge: Command, source: str, case: str) -> Ran:
    forge.of("judged_manager.py", source)
    places = [str(forge.folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    options = ["--level", "strict", "--ranks", "none", "--case", case]
    return forge.run("judged_manager", options=options, PYTHONPATH=os.pathsep.join(places))


def failed(ran: Ran) -> set[str]:
    assert ran.status in (0, 1), ran.said
    return {failure["test"] for clause in ran.report["clauses"] for failure in clause["failures"]}


def test_a_manager_that_takes_latest_at_its_word_falls(forge: Command) -> None:
    ran = judged(forge, TRUSTING, "golden/torn-no-*")
    assert failed(ran) == {"golden/torn-no-marker", "golden/torn-no-train-state", "golden/torn-no-metadata"}


def test_a_manager_that_takes_the_greatest_number_falls(forge: Command) -> None:
    assert failed(judged(forge, GUESSING, "golden/torn-look-alikes")) == {"golden/torn-look-alikes"}


def test_a_manager_of_another_format_is_not_judged_by_them(forge: Command) -> None:
    ran = judged(forge, OF_ANOTHER_FORMAT, "golden/torn-no-marker")
    assert ran.status == 2, ran.said
    assert ran.verdicts["resume.fallback"] == "unreached"
    assert "this folder is not of its format: its shards name the model's tensors [], and these ['model." in ran.said


def test_a_manager_of_another_layout_has_no_such_cases(forge: Command) -> None:
    ran = forge.run("honest.py:Honest", options=["--case", "golden/*"])
    assert ran.status == 2, ran.said
