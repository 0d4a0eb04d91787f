"""A disk that is really full: the manager saves on a small one that runs out of room, and then has room again.

The disk is a tmpfs that only the manager's processes see (`small`); the suite
looks at it through one of them, and a file beside the checkpoints takes the
room away.  How much is left goes from nothing to more than a checkpoint takes.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from forge_conformance.deaths import small
from forge_conformance.deaths.drills import Drill, PreparedSituation, Tried, team_of
from forge_conformance.deaths.failures import Failure, try_failure
from forge_conformance.judging.judge import CannotJudge
from forge_conformance.runs.folder import Folder
from forge_conformance.runs.team import Team
from forge_conformance.runs.workplace import Place

_SIZE_BYTES = 32 << 20
_PAGE = 4096
POINTS = 16
"""How many amounts of room are tried."""


@contextmanager
def small_disk(place: Place) -> Iterator[Team]:
    """A team whose folder is on a small disk; `CannotJudge` where none can be mounted."""
    with tempfile.TemporaryDirectory(prefix="forge-small-") as base:
        inside = (sys.executable, small.__file__, base, str(_SIZE_BYTES))
        server = place.manager.server(inside)
        try:
            server.rehearse(server.implementation.usual_modes)
            folder = Path(base) / "checkpoints"
            yield replace(team_of(place, 1), server=server, folder=folder, seen=server.sees(folder))
        finally:
            server.close()


@dataclass
class FillerFile:
    """Takes the room away on the disk that a team's folder is on."""

    beside: Path

    def leave(self, room_bytes: int) -> None:
        """Take all but so much."""
        self.remove()
        disk = os.statvfs(self.beside.parent)
        with open(self.beside, "wb") as file:
            taken = disk.f_bavail * disk.f_frsize - room_bytes
            if taken > 0:
                os.posix_fallocate(file.fileno(), 0, taken)

    def remove(self) -> None:
        """Give it back."""
        self.beside.unlink(missing_ok=True)


class FullDisk:
    """Saves on a disk with ever more room."""

    def __init__(self, team: Team, drill: Drill, has_limit: bool) -> None:
        self._filler = FillerFile(team.here.parent / "filler")
        self._filler.remove()
        self.prepared = PreparedSituation(team, drill, has_limit, is_watched=False)
        folder = Folder(team.here, team.server.implementation.layout)
        largest = folder.largest()
        self._need_bytes = largest.size_bytes + largest.entries * _PAGE
        if not largest.size_bytes:
            raise CannotJudge(f"By the adapter's layout no checkpoint was committed: {folder}")

    def fill(self, number: int) -> Tried:
        """One amount of room, counted from 1: from none to half more than a checkpoint takes."""
        room_bytes = (number - 1) * self._need_bytes * 3 // 2 // (POINTS - 1) // _PAGE * _PAGE
        with self.prepared.about_to_save() as life:
            self._filler.leave(room_bytes)
            happened = f"the disk has room for {room_bytes:,} bytes, about {self._need_bytes:,} are needed"
            try:
                return try_failure(self.prepared, life, self._filler.remove, lambda: Failure(happened))
            finally:
                self._filler.remove()
