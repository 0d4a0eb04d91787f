"""Runs each section of the page in a process of its own, so that none finds the memory or the threads of another.

Together they have so many minutes.  A section has its share of what is left when it begins: what one leaves is the next
ones', and what one takes too much they lack.  A step that does not come to an end, or whose process dies, is named, and
its section begins anew without it.  The larger states learn from the smaller ones what a work will take.
"""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import durable
import lost
import storage
import worlds
from measure import Budget, Expected, NotMeasured, Samples
from rivals import WAYS, Reference, missing
from subject import SIZES

SHARES = {
    "16MB": 30, "256MB": 70, "1GB": 100, "4GB": 110, "10k": 80, "100k": 345, "ranks": 45, "lost": 40, "durable": 20
}  # fmt: skip
"""Of the time of the whole page."""
_SMALLER = {"256MB": "16MB", "1GB": "256MB", "4GB": "1GB", "10k": "16MB", "100k": "10k"}
"""The state from which a larger one learns what its works will take."""
_STUCK_S = 120.0
"""Seconds that every step has; half of its section's, if that is more."""
_TRIES = 4
_START = "start"
_SILENT_S = 3.0
"""Seconds after which another line is printed within a round."""


class Failed(Exception):
    """Says why a section could not be measured."""


@dataclass
class Found:
    """What was measured, by section, and why the others were not."""

    results: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    failures: int = 0
    """How many of those failed; the others had no room here."""
    is_interrupted: bool = False


def with_smaller(names: Sequence[str]) -> list[str]:
    """Return these sections, and with 100k the one that it learns from: alone it could not tell what to leave out."""
    wanted = {*names, *([_SMALLER["100k"]] if "100k" in names else [])}
    return [name for name in SHARES if name in wanted]


def measure(names: Sequence[str], minutes: float) -> Found:
    """Measure these sections in as many minutes, of which only some are used if there are not all sections.

    An interrupt ends the section that it comes in; what was measured before is returned.
    """
    found, shares = Found(), [SHARES[name] for name in names]
    seconds = 60 * minutes * sum(shares) / sum(SHARES.values())
    progress, begun = _Progress(), time.monotonic()
    for at, name in enumerate(names):
        left_s = begun + seconds - time.monotonic()
        budget_s = max(10.0, left_s * shares[at] / sum(shares[at:]))
        progress.line(name, f"begins; it has {budget_s:.0f} s")
        try:
            expected, hopeless = _learnt(name, found.results)
            found.results[name] = _Section(name, budget_s, expected, hopeless, progress).run()
        except (Failed, NotMeasured) as error:  # the other sections are worth their time
            found.reasons[name] = str(error)
            found.failures += isinstance(error, Failed)
            progress.line(name, f"not measured: {error}")
        except KeyboardInterrupt:
            found.reasons[name], found.is_interrupted = "interrupted", True
            break
    return found


def _learnt(name: str, results: Mapping[str, Any]) -> tuple[dict[str, Expected], dict[str, str]]:
    """Return what the works of a state will take by those of a smaller one, and why some of them are not tried."""
    smaller = _SMALLER.get(name)
    if smaller is None or smaller not in results:
        return {}, {}
    one, other = SIZES[name], SIZES[smaller]
    times = max(one.megabytes / other.megabytes, one.tensors / other.tensors)
    samples: Samples = results[smaller][2]
    why = f"{times:.3g} times what {smaller} took"
    expected, hopeless = {}, {}
    for work, sample in samples.items():
        whole = samples.get(_whole(work), sample)
        if sample.failure:
            hopeless[work] = f"left out, since {smaller} could not be measured"
        else:
            expected[work] = Expected(times * whole.median, why)
    return expected, hopeless


def _whole(work: str) -> str:
    """Return the name of the time until the end of a work that has two times."""
    for part, whole in ((storage.BLOCKED, storage.DURABLE), (storage.SAVE, storage.SYNCED)):
        if work.endswith(f" {part}"):
            return work.removesuffix(part) + whole
    return work


class _Progress:
    """Lines on stderr: how long so far, which section, which step."""

    def __init__(self) -> None:
        self._begun = self._last = time.monotonic()

    @property
    def silent_s(self) -> float:
        """How long ago the last line was."""
        return time.monotonic() - self._last

    def line(self, section: str, said: str) -> None:
        self._last = time.monotonic()
        minutes, seconds = divmod(int(time.monotonic() - self._begun), 60)
        print(f"[{minutes:2}:{seconds:02}] {section}: {said}", file=sys.stderr, flush=True)


class _Section:
    """One section, from process to process until nothing is stuck."""

    def __init__(
        self, name: str, budget_s: float, expected: dict[str, Expected], hopeless: dict[str, str], progress: _Progress
    ) -> None:
        self._name, self._budget_s, self._expected, self._progress = name, budget_s, expected, progress
        self._stuck = dict(hopeless)

    def run(self) -> Any:
        """Return what was measured; `Failed` says why there is nothing."""
        begun = time.monotonic()
        for _ in range(_TRIES):
            left_s = max(self._budget_s / 2, begun + self._budget_s - time.monotonic())
            with (
                tempfile.TemporaryFile("w+") as errors,
                tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch,  # a killed process leaves its files
            ):
                outcome = self._once(left_s, errors, scratch)
                if isinstance(outcome, _Stuck):
                    if outcome.step in self._stuck or not outcome.can_be_left_out:
                        errors.seek(0)
                        raise Failed(f"{outcome.step}: {outcome.why}\n{errors.read()[-2000:]}".strip())
                    self._stuck[outcome.step] = outcome.why
                    self._progress.line(self._name, f"{outcome.step}: {outcome.why}; left out")
                    continue
            kind, content = outcome
            if kind == "no room":
                raise NotMeasured(content)
            return content
        raise Failed(f"{', '.join(self._stuck)}: {'; '.join(self._stuck.values())}")

    def _once(self, budget_s: float, errors: Any, scratch: str) -> Any:
        """Return the last message of a process, or where it was stuck."""
        messages, theirs = Pipe(duplex=False)
        process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "TMPDIR": scratch},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        assert process.stdin is not None
        with process.stdin as request:
            pickle.dump((self._name, budget_s, self._expected, self._stuck), request)
        theirs.close()
        try:
            return self._followed(messages, process, max(_STUCK_S, self._budget_s / 2))
        finally:
            messages.close()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has made
            process.wait()

    def _followed(self, messages: Connection, process: subprocess.Popen[bytes], most_s: float) -> Any:
        phase, step = _START, "process"
        while True:
            if not messages.poll(most_s):
                return _Stuck(phase, step, f"stopped after {most_s:.0f} s")
            try:
                kind, content = messages.recv()
            except EOFError:
                return _Stuck(phase, step, f"its process ended with status {process.wait()}")
            if kind != "step":
                return kind, content
            is_new, (phase, step) = content[0] != phase, content
            if is_new or not phase.startswith("round") or self._progress.silent_s > _SILENT_S:
                self._progress.line(self._name, f"{phase}, {step}")


@dataclass(frozen=True)
class _Stuck:
    """The step that did not come to an end."""

    phase: str
    step: str
    why: str

    @property
    def can_be_left_out(self) -> bool:
        """Whether it is a work or a way, and not what all of them need."""
        return self.phase != _START or self.step in {way.name for way in WAYS if way is not Reference}


# -- in the process of a section ------------------------------------------------


def _studies() -> dict[str, Callable[[Budget], Any]]:
    sizes = {name: lambda budget, size=size: storage.study(size, budget) for name, size in SIZES.items()}
    ways = [way.name for way in WAYS if not missing(way)]
    return sizes | {
        "ranks": lambda budget: worlds.study(256, budget),
        "lost": lambda budget: lost.study(SIZES["256MB"], budget),
        "durable": lambda budget: durable.study(ways, budget),
    }


def main() -> None:
    descriptor = int(sys.argv[1])
    messages = Connection(descriptor, readable=False)
    os.set_inheritable(descriptor, False)  # a process that outlives this one would keep it open
    name, budget_s, expected, stuck = pickle.load(sys.stdin.buffer)
    messages.send(("step", (_START, "process")))
    budget = Budget(budget_s, expected, stuck, lambda phase, step: messages.send(("step", (phase, step))))
    try:
        messages.send(("found", _studies()[name](budget)))
    except NotMeasured as error:
        messages.send(("no room", str(error)))


if __name__ == "__main__":
    main()
