"""A place to try a manager in: a warm server, a folder, and the undisturbed run.

The folder is in memory where there is room (`/dev/shm`), else where temporary
files go.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from forge_conformance.judging.judge import CannotJudge
from forge_conformance.runs import janitor, machine
from forge_conformance.runs.group import Shape
from forge_conformance.runs.landing import OTHER_SEED
from forge_conformance.runs.process import ManagerFault, Unsupported
from forge_conformance.runs.server import Server
from forge_conformance.runs.state import Digest, kinds_claimed
from forge_conformance.runs.timeline import Timeline
from forge_conformance.watch.backends import Backend, choose

_ROOM_BYTES = 1 << 30


@dataclass(frozen=True)
class Manager:
    """How to start what is explored; see `Server`."""

    impl: str
    python: str | None = None
    timeout_s: float = 20
    import_timeout_s: float = 120
    recorder: str | None = None
    """One of `RECORDERS`; None for the best that works."""
    claims: Callable[[frozenset[str]], frozenset[str]] | None = None
    """From the capabilities that the manager claims to those that it is held to; None keeps them."""

    def server(self, inside: Sequence[str] = ()) -> Server:
        """A warm server for it."""
        server = Server(self.impl, self.python, self.timeout_s, self.import_timeout_s, inside=inside)
        if self.claims is not None:
            claims = self.claims(server.implementation.capabilities)
            server.implementation = replace(server.implementation, capabilities=claims)
        return server


@dataclass(frozen=True)
class Place:
    """A warm server, a folder to build disks in, and the undisturbed run."""

    manager: Manager
    server: Server
    folder: Path
    kinds: tuple[str, ...]
    recorder: Backend
    has_ranks: bool = False
    """Whether the server is ready for several ranks."""
    _runs: dict[tuple[int, Shape], Timeline] = field(default_factory=dict)

    def undisturbed(self, shape: Shape) -> Timeline:
        """The run that is recorded, by one or several ranks."""
        return self._run(0, shape)

    def fresh(self, shape: Shape) -> Digest:
        """What a process has that resumes and finds nothing."""
        return self._run(OTHER_SEED, shape).digest(0)

    def _run(self, seed: int, shape: Shape) -> Timeline:
        if (seed, shape) not in self._runs:
            try:
                self._runs[seed, shape] = Timeline(self.server, seed, shape)
            except ManagerFault as fault:
                full = machine.disk_is_full(self.folder.parent)
                raise CannotJudge(f"A run that nothing disturbs could not begin. {fault}{full}") from fault
        return self._runs[seed, shape]


@contextlib.contextmanager
def workplace(manager: Manager, with_ranks: bool = False, below: Path | None = None) -> Iterator[Place]:
    """A place to explore in, for several ranks as well if the manager claims them; gone afterwards."""
    machine.check()  # before a recorder is tried, which needs the same
    recorder = choose(manager.recorder)
    # The server ends before the folder goes: a process of it that is still there could make the folder anew.
    folder = janitor.folder("forge-crash-", below or roomy())
    with folder as base, contextlib.closing(manager.server()) as server:
        claimed = server.implementation.capabilities
        has_ranks = with_ranks and "distributed" in claimed
        server.rehearse(server.implementation.usual_modes, has_ranks)
        yield Place(manager, server, base / "checkpoints", kinds_claimed(claimed), recorder, has_ranks)


def roomy() -> str | None:
    """A folder in memory that has room; None for where temporary files go."""
    memory = "/dev/shm"
    with contextlib.suppress(OSError):
        if shutil.disk_usage(memory).free > _ROOM_BYTES:
            return memory
    return None


def first_contact(server: Server) -> None:
    """`CannotJudge` if a manager can't even be made."""
    with tempfile.TemporaryDirectory(prefix="forge-contact-") as folder:
        worker = server.spawn()
        try:
            worker.open({"folder": folder, "mode": server.implementation.plain_mode}, seed=0)
        except (ManagerFault, Unsupported) as fault:
            raise CannotJudge(
                f"{server.implementation.name} was imported, but a manager over an empty folder could not be made, so "
                f"nothing can be judged. {fault}"
            ) from None
        finally:
            worker.kill()
