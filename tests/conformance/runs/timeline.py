"""The run that nothing disturbs.

It has a manager that never saves, because a framework may draw from the random
streams when it is made, and its users compare with such a run.  It says for
every step what losses and state have to be, bit for bit.
"""

from typing import Any

from forge_conformance.runs.group import ALONE, Ranks, Shape, places
from forge_conformance.runs.server import Server
from forge_conformance.runs.state import Digest, with_step_of


class Timeline:
    """Losses and fingerprints of one seed's uninterrupted run, by one process or by several ranks."""

    def __init__(self, server: Server, seed: int, shape: Shape = ALONE, variety: str | None = None) -> None:
        """With a variety, the worker's `variety` says what is trained."""
        self._ranks = Ranks(server, shape)
        place = {} if shape == ALONE else {"place": places(server, shape)}
        trained = {} if variety is None else {"variety": variety}
        self._ranks.together("open", settings=_settings(server), seed=seed, **place, **trained)
        self._digests = [self._ranks.digest()]
        self._losses: list[list[str]] = [[""] * shape.ranks]

    def _extend(self, step: int) -> None:
        while len(self._digests) <= step:
            self._losses.append([loss for (loss,) in self._ranks.together("train", steps=1)])
            self._digests.append(self._ranks.digest())

    def digest(self, step: int) -> Digest:
        """The state after this many steps."""
        self._extend(step)
        return self._digests[step]

    def digest_of_save(self, trained: int, step: int) -> Digest:
        """The state after so many steps as a save has it that is told another step."""
        return with_step_of(self.digest(trained), self.digest(step))

    def losses(self, after: int, until: int) -> list[str]:
        """The losses of the steps after `after`, up to and including `until`; of several ranks, those of rank 0."""
        self._extend(until)
        return [of_step[0] for of_step in self._losses[after + 1 : until + 1]]

    def losses_by_rank(self, after: int, until: int) -> list[list[str]]:
        """The same of each rank."""
        self._extend(until)
        return [list(of_rank) for of_rank in zip(*self._losses[after + 1 : until + 1], strict=True)]


def _settings(server: Server) -> dict[str, Any]:
    """The settings of a manager over an empty folder of its own."""
    folder = server.new_file("undisturbed")
    folder.mkdir()
    return {"folder": str(folder), "mode": server.implementation.plain_mode}
