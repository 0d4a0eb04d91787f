"""Resumes from an intact folder that can't be read: each call fails once, and each path may not be read.

A fresh process may raise, or resume from the last save as it was saved; or it
resumes from an older one and warns, naming the last.  A fresh start beside
checkpoints is always bad.  The folder stays as it is, or the next process to
resume has to find the last save all the same.
"""

from dataclasses import replace

from forge_conformance.deaths.drills import PreparedSituation, Tried, ends_of_bursts
from forge_conformance.judging.judge import CannotJudge
from forge_conformance.runs.group import Ranks
from forge_conformance.runs.landing import Landing
from forge_conformance.runs.obstacles import Obstacle, closed_paths, failing_calls
from forge_conformance.runs.verdict import GOOD, Verdict
from forge_conformance.watch.gate import Gate
from forge_conformance.watch.trace import Disk

_CLAUSE = "place.checked"


class Loads:
    """Resumes after the save of a situation, to which nothing has happened."""

    def __init__(self, prepared: PreparedSituation) -> None:
        self._prepared = prepared
        with prepared.about_to_save() as life:
            prepared.save(life)
            life.wait()
            self._ledger = life.ledger.copy()
        self._disk = Disk.read(prepared.team.here)
        self._last = prepared.team.server.implementation.layout.name.format(step=self._ledger.saves[-1].step)
        gate, landing, _ = self._resume(None)
        if prepared.verdict(self._ledger, landing).word != GOOD:
            raise CannotJudge(
                f"A process did not resume from the last save, with nothing gone wrong yet. {landing.said}"
            )
        self._calls = [made for made in gate.log if not made.writes]

    def obstacles(self) -> list[Obstacle]:
        """Everything that can keep a resume from reading."""
        return failing_calls(self._calls) + closed_paths(self._calls)

    def ends_of_bursts(self) -> list[int]:
        """The obstacles without those in the middle of bursts; counted from 1."""
        return ends_of_bursts(self._calls) + list(range(len(self._calls) + 1, len(self.obstacles()) + 1))

    def meet(self, obstacle: Obstacle) -> Tried:
        """A resume that meets it."""
        gate, landing, warnings = self._resume(obstacle)
        if not gate.failed:
            return Tried(None)
        left = Disk.read(self._prepared.team.here)
        verdict = self._verdict(landing, warnings)
        if verdict.is_good and left.identity != self._disk.identity:
            landing, _ = self._prepared.team.resume(self._prepared.settings, self._ledger, goes_on=False)
            verdict = self._prepared.verdict(self._ledger, landing)
        return Tried(verdict if verdict.is_good else replace(verdict, clause=_CLAUSE), str(obstacle), left=left)

    def _verdict(self, landing: Landing, warnings: str) -> Verdict:
        verdict = self._prepared.verdict(self._ledger, landing)
        if landing.word == "refused" or (verdict.word == "stale" and self._last in warnings):
            return Verdict(GOOD)
        return replace(verdict, expected=f"an error, or {verdict.expected}")

    def _resume(self, obstacle: Obstacle | None) -> tuple[Gate, Landing, str]:
        prepared, gates = self._prepared, list[Gate]()

        def supervise(_: int, listener: int, pid: int) -> Gate:
            gate = Gate(listener, prepared.team.folder, pid)
            if obstacle is not None:
                gate.fail(obstacle.picks(), obstacle.error)
            gates.append(gate)
            return gate

        def starts() -> Ranks:
            return Ranks.supervised(prepared.team.server, prepared.team.shape, prepared.team.folder, "loads", supervise)

        prepared.team.rebuild(self._disk)
        with replace(prepared.team, starts=starts).unopened(prepared.settings, self._ledger.copy()) as life:
            if not gates:
                reason = prepared.team.server.filter_refusal
                raise CannotJudge(f"The manager's file operations can't be stopped: {reason}.")
            landing = life.land()
        gates[0].check()
        return gates[0], landing, "\n".join(life.ranks.warnings)
