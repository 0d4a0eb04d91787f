"""Where a resume comes back, and whether what it brings back is, bit for bit, a save that was made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forge_conformance.harness.worker import Died, Hung, ManagerFault

from .processes import Digest, Processes, of_kinds
from .recording import Saved

OTHER_SEED = 999
"""Of who resumes: nothing that it has by itself is what was saved."""


@dataclass(frozen=True)
class Landing:
    """Where a resume came back."""

    word: str
    """`fresh`, `landed`, `mixed` (at a step, with no state that was saved there), `apart` (each rank at a step of its
    own), `refused`, `hung` or `died`."""
    step: int = 0
    saves: frozenset[int] = frozenset()
    """The saves whose state this is."""
    said: str = ""
    """The error, or what differs from the save of that step."""

    @property
    def is_alive(self) -> bool:
        """Whether the run can go on from here."""
        return self.word in ("fresh", "landed")


@dataclass(frozen=True)
class GoingOn:
    """What came of a run that went on: "" when it saved, and resumed at its last save; otherwise what went wrong."""

    trouble: str = ""


def come_back(
    processes: Processes,
    settings: Mapping[str, Any],
    saves: Sequence[Saved],
    fresh: Digest,
    kinds: Sequence[str],
    timeout_s: float | None = None,
) -> Landing:
    """Resume in fresh processes, whose state beforehand is another run's.

    Compared are the `kinds` of state that the manager claims to bring back;
    `fresh` is what such processes have when they find nothing.
    """
    try:
        processes.open(settings, OTHER_SEED, timeout_s)
        loaded = processes.load()
        state = of_kinds(processes.digest(), kinds)
    except ManagerFault as fault:
        return Landing(word_of(fault), said=str(fault))
    if len({one.step for one in loaded}) > 1:
        where = ", ".join(f"rank {rank} at step {one.step}" for rank, one in enumerate(loaded))
        return Landing("apart", said=where)
    if all(one.is_fresh for one in loaded):
        changed = differing(of_kinds(fresh, kinds), state)
        return Landing("mixed", said=f"fresh, with {changed}") if changed else Landing("fresh")
    return _match(loaded[0].step, state, saves)


def _match(step: int, state: Digest, saves: Sequence[Saved]) -> Landing:
    there = {number: saved for number, saved in enumerate(saves) if saved.step == step}
    same = frozenset(number for number, saved in there.items() if saved.state == state)
    if same:
        return Landing("landed", step, same)
    if not there:
        return Landing("mixed", step, said=f"step {step} was never saved")
    changed = " / ".join(differing(saved.state, state) for saved in there.values())
    return Landing("mixed", step, said=f"not the state that was saved: {changed}")


def word_of(fault: ManagerFault) -> str:
    """How a call ended that did not return."""
    if isinstance(fault, Hung):
        return "hung"
    return "died" if isinstance(fault, Died) else "refused"


def differing(wanted: Mapping[str, Any], seen: Mapping[str, Any]) -> str:
    """Which items of a state are not as wanted; "" if all are."""
    names = sorted(name for name in wanted.keys() | seen.keys() if wanted.get(name) != seen.get(name))
    return f"{len(names)} items differing ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
