"""Where a resume landed, and whether the restored state equals a save, bit for bit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forge_conformance.runs.group import Ranks, values
from forge_conformance.runs.ledger import Saved
from forge_conformance.runs.process import Died, Hung, ManagerFault
from forge_conformance.runs.state import Digest, differing, listed, of_kinds

OTHER_SEED = 999
"""The seed of processes that resume: nothing that they have by themselves is what was saved."""


@dataclass(frozen=True)
class Landing:
    """Where a resume landed."""

    word: str
    """`fresh`, `landed`, `mixed` (at a step, with no state that was saved there), `apart` (each rank at a step of its
    own), `refused`, `hung` or `died`."""
    step: int = 0
    saves: frozenset[int] = frozenset()
    """The saves whose state this is."""
    said: str = ""
    """The error, or what differs from the save of that step."""
    differing: frozenset[str] = frozenset()
    """The items of the state that are not as they should be; of several saves of the step, of the most similar one."""

    @property
    def is_alive(self) -> bool:
        """Whether the run can go on from here."""
        return self.word in ("fresh", "landed")


@dataclass(frozen=True)
class Ignored:
    """Items of the state that are not compared, because they do not come back without any death either."""

    saved: frozenset[str] = frozenset()
    """Where a save is restored."""
    fresh: frozenset[str] = frozenset()
    """Where nothing is found."""


NOTHING = Ignored()
"""Everything is compared."""


@dataclass(frozen=True)
class GoingOn:
    """What came of a run that went on: "" when it saved, and resumed at its last save; otherwise what went wrong."""

    trouble: str = ""
    word: str = "stuck"
    """What it is called; `hung` where something never returned."""
    clause: str = ""
    """The clause that fails with it, if it is not the one about going on."""
    stands: tuple[int, ...] | None = None
    """The steps that had to stand then, where that is what is wrong."""


def come_back(
    ranks: Ranks,
    settings: Mapping[str, Any],
    saves: Sequence[Saved],
    fresh: Digest,
    kinds: Sequence[str],
    timeout_s: float | None = None,
    ignored: Ignored = NOTHING,
) -> Landing:
    """Resume in fresh processes, whose state beforehand is another run's.

    Compared are the `kinds` of state that the manager claims to bring back;
    `fresh` is what such processes have when they find nothing.
    """
    try:
        values(ranks.open(settings, OTHER_SEED, timeout_s))
        loaded = ranks.load()
        state = of_kinds(ranks.digest(), kinds)
    except ManagerFault as fault:
        return Landing(word_of(fault), said=str(fault))
    if len({one.step for one in loaded}) > 1:
        where = ", ".join(f"rank {rank} at step {one.step}" for rank, one in enumerate(loaded))
        return Landing("apart", said=where)
    if all(one.is_fresh for one in loaded):
        changed = differing(of_kinds(fresh, kinds), state) - ignored.fresh
        if changed:
            return Landing("mixed", said=f"fresh, with {listed(changed)}", differing=changed)
        return Landing("fresh")
    return _match(loaded[0].step, state, saves, ignored.saved)


def _match(step: int, state: Digest, saves: Sequence[Saved], ignored: frozenset[str]) -> Landing:
    there = {number: saved for number, saved in enumerate(saves) if saved.step == step}
    changed = {number: differing(saved.state, state) - ignored for number, saved in there.items()}
    same = frozenset(number for number, names in changed.items() if not names)
    if same:
        return Landing("landed", step, same)
    if not there:
        return Landing("mixed", step, said=f"step {step} was never saved")
    said = " / ".join(map(listed, changed.values()))
    return Landing(
        "mixed", step, said=f"not the state that was saved: {said}", differing=min(changed.values(), key=len)
    )


def word_of(fault: ManagerFault) -> str:
    """How a call ended that did not return."""
    if isinstance(fault, Hung):
        return "hung"
    return "died" if isinstance(fault, Died) else "refused"
