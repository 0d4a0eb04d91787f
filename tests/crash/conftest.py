"""What these tests share: commands run under a recorder, and traces made by hand."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from forge_conformance.crash.ptrace import PtraceRecorder
from forge_conformance.crash.recorder import Control, Recorder, launch
from forge_conformance.crash.recorders import RECORDERS
from forge_conformance.crash.trace import Disk, Journal, Trace
from forge_conformance.harness.gate import is_supported

CAREFUL = Path(__file__).parent / "managers" / "careful.py"
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


@pytest.fixture(params=["seccomp", "ptrace"])
def program(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Program]:
    """A folder, and programs that run in it, under each recorder that works here."""
    if reason := RECORDERS[request.param].why_not():
        pytest.skip(f"--recorder {request.param}: {reason}")
    folder = tmp_path / "folder"
    folder.mkdir()
    yield Program(folder, request.param)
