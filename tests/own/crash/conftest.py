"""What these tests share: commands run under a recorder, and traces made by hand."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from forge_conformance.adapter import Layout, Traits
from forge_conformance.deaths.drills import Drilled
from forge_conformance.disks.result import Result
from forge_conformance.report.crash import RecordingSetup, Report
from forge_conformance.runs.server import Implementation
from forge_conformance.watch.backends import RECORDERS
from forge_conformance.watch.gate import is_supported
from forge_conformance.watch.ptrace import PtraceRecorder
from forge_conformance.watch.recorder import Control, Recorder, launch
from forge_conformance.watch.trace import Disk, Journal, Trace
from forge_fixtures import managers
from forge_spec.clauses import Level


def expect_numbers_to_agree(story: str) -> None:
    """The operation that the sentence names is the one that the list has on the right side of the death."""
    said = re.search(r"(before|at|after|before its) operation (\d+)", " ".join(story.split()))
    assert said, story
    number = int(said[2]) + (said[1] == "after")
    listed, _, later = story.partition("---- here ----")
    before, behind = ([int(at) for at in re.findall(r"^ {4}[x ] +(\d+) ", part, re.M)] for part in (listed, later))
    assert before[-1:] == ([number - 1] if number > 1 else []), story
    assert behind[:1] == [] or behind[0] >= number, story


def reported(*done: Result | Drilled, level: Level = Level.CORE) -> Report:
    """The report on these recordings and drills."""
    about = Implementation("honest", "Honest", str(level), frozenset(), Layout(), Layout(), Traits(), {}, {})
    results = tuple(one for one in done if isinstance(one, Result))
    drilled = tuple(one for one in done if isinstance(one, Drilled))
    again = "forge-conformance crash --impl honest"
    return Report(about, level, results, drilled, again, Path("out"), RecordingSetup(RECORDERS["seccomp"]))


CAREFUL = Path(managers.__file__).with_name("careful.py")
needs_recorder = pytest.mark.skipif(is_supported() is not None, reason=str(is_supported()))


@dataclass
class Ran:
    """A program that ran in a folder under the recorder."""

    folder: Path
    journal: Journal
    status: int
    recorder: Recorder
    trace: Trace = field(init=False)

    def __post_init__(self) -> None:
        assert self.recorder.failure is None, self.recorder.failure
        self.trace = self.journal.end()

    @property
    def calls(self) -> list[str]:
        """The recorded calls, in order."""
        return [str(call) for call in self.trace.calls if call is not None]

    @property
    def left(self) -> Disk:
        """What the folder really holds."""
        return Disk.read(self.folder)


@dataclass(frozen=True)
class Program:
    """Runs Python source with the folder as its working directory."""

    folder: Path
    kind: str = "seccomp"

    def __call__(self, source: str, control: Control | None = None) -> Ran:
        journal = Journal(self.folder)
        prelude = f"import os, threading, shutil\nos.chdir({str(self.folder)!r})\n"
        recorder_of = {"seccomp": Recorder, "ptrace": PtraceRecorder}
        command = [sys.executable, "-S", "-c", prelude + source]
        _, recorder = launch(command, journal, control, 0, RECORDERS[self.kind].watch, recorder_of[self.kind])
        return Ran(self.folder, journal, recorder.wait(), recorder)


@pytest.fixture(scope="package", autouse=True)
def _warm(warm: None) -> None:
    """What these tests judge is not how a server imports torch."""


@pytest.fixture(params=["seccomp", "ptrace"])
def program(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Program]:
    """A folder, and programs that run in it, under each recorder that works here."""
    if reason := RECORDERS[request.param].why_not():
        pytest.skip(f"--recorder {request.param}: {reason}")
    folder = tmp_path / "folder"
    folder.mkdir()
    yield Program(folder, request.param)
