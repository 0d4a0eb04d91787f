"""Death after death over one folder: each process resumes, saves, and dies at a random operation of that save.

After each death it is looked at what has piled up beside the complete
checkpoints, as `forge_spec.retention` allows it.  The dice are thrown the same
way in each run, so the n-th death is reached again by dying the same n times.
"""

import random

from forge_conformance.deaths.drills import Injection, PreparedSituation, Tried
from forge_conformance.judging.text import some
from forge_conformance.runs.folder import Folder, together
from forge_conformance.runs.ledger import Ledger, next_saved
from forge_conformance.runs.process import Hung, ManagerFault, Raised
from forge_conformance.runs.verdict import Verdict
from forge_conformance.watch.recorder import Control
from forge_conformance.watch.trace import Disk
from forge_spec.retention import Room, may_stand_beside


class Chain:
    """A run that dies again and again."""

    def __init__(self, prepared: PreparedSituation, seed: int = 0) -> None:
        self._prepared = prepared
        self._dice = random.Random(seed)
        self._folder = Folder(prepared.team.here, prepared.team.server.implementation.layout)
        self._ledger = self._begin()
        self._one = self._folder.largest()
        self._excused: set[str] = set()
        self.most = Room()
        """The most that was seen beside the complete checkpoints."""

    def _begin(self) -> Ledger:
        return self._prepared.begin()

    def die(self, number: int) -> Tried:
        """Resume, save, die; whether the resume was right, and what is left."""
        prepared, control = self._prepared, Control()
        operation = self._dice.randint(1, len(prepared.operations))
        before = Disk.read(prepared.team.here)
        with prepared.team.unopened(prepared.settings, self._ledger, [control]) as life:
            landing = life.land()
            verdict = prepared.verdict(self._ledger, landing)
            if not verdict.is_good:
                self._ledger = self._begin()
                return Tried(verdict, f"the resume before death {number} in a row", left=before)
            injection = Injection(control, operation)
            control.dies_at = control.done + operation
            try:
                life.train_to(next_saved(life.step))
                life.save()
                life.wait()
            except (Raised, Hung) as fault:
                word = "hung" if isinstance(fault, Hung) else "stuck"
                stuck = Verdict(word, "resume.continue", str(fault), "to save on after each death")
                self._ledger = self._begin()
                return Tried(stuck, f"the save before death {number} in a row", tuple(injection.done), left=before)
            except ManagerFault:
                pass  # it died
            self._excuse(life.ranks.warnings)
        happened = f"death {number} in a row, before operation {operation} of a save, {control.died_before}"
        if not control.is_dead:
            injection.number = len(injection.done) + 1
            happened = f"death {number} in a row, after a save of {len(injection.done)} operations"
        return injection.tried(self._verdict(), happened, Disk.read(prepared.team.here))

    def _excuse(self, warnings: list[str]) -> None:
        """What was warned of, by name, is no pile that grows unseen."""
        self._excused |= {name for name in self._folder.leftovers() if any(name in text for text in warnings)}

    def _verdict(self) -> Verdict:
        folder = self._folder
        found = {name: room for name, room in folder.leftovers().items() if name not in self._excused}
        torn = [step for step in folder.torn() if folder.of(step).name in found]
        beside, complete = together(found.values()), folder.complete()
        self.most = max(self.most, beside, key=lambda room: room.size_bytes)
        one = max(self._one, folder.largest(), key=lambda room: room.size_bytes)
        if may_stand_beside(torn, complete, beside, one):
            return Verdict("good")
        expected = f"at most one directory torn from writing, one from deleting, and three times {one}"
        return Verdict("piled", "retention.debris", f"{beside}: {some(sorted(found))}", expected)
