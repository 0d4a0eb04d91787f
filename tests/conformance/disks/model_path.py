"""Whether a recording is a path of the specification's model: what could be seen of it, in the model's terms.

Looked at after every effect, as somebody would who watches the folder all the
time; the marks say what the caller saw.  Where nothing can be said (the model
has no milestones, and a recording may have holes), the reason is given.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from forge_conformance.adapter import Layout
from forge_conformance.disks.reader import Reader, reader
from forge_conformance.disks.recording import Recorded
from forge_conformance.disks.states import State, States
from forge_spec.disk import Bytes, Entries, Mark
from forge_spec.model.designs import FIRST
from forge_spec.model.paths import ACKNOWLEDGED, BEGINS, FOLDER, LANDS, RAISED, REPLACED, START, Seen, follow_seen
from forge_spec.model.table import Scope, Setting

_SAVES = {"begins": BEGINS, "acknowledged": ACKNOWLEDGED, "raised": RAISED}
_OF_STEP = {"start": START, "lands": LANDS}
_BEFORE = 5


@dataclass(frozen=True)
class Followed:
    """A recording against the model."""

    special: str
    """Which order of it; see `Recorded.special`."""
    seen: int = 0
    """How many things were seen."""
    states: int = 0
    """The most states of the model that could not be told apart."""
    not_allowed: str = ""
    """The first thing that no path of the model shows, with what came before it; "" if there is none."""
    not_compared: str = ""
    """Why the model has nothing to say of it; "" if it has."""


def followed(recorded: Recorded, layout: Layout) -> Followed:
    """The recording, as far as the model can follow it."""
    if recorded.settings.get("window"):
        return Followed(recorded.special, not_compared="the model has no milestones")
    if recorded.is_hooked:
        return Followed(recorded.special, not_compared="the model of the first design has no hooks")
    if recorded.trace.instants is not None:
        return Followed(recorded.special, not_compared="the recorder is coarse")
    if recorded.trace.unseen:
        return Followed(recorded.special, not_compared="the recording has holes")
    numbers = {step: number for number, step in enumerate(sorted({saved.step for saved in recorded.saves}), start=1)}
    stages = recorded.shape.stages or 1
    replicas = recorded.shape.ranks // stages
    scope = Scope(steps=len(numbers), stages=stages, replicas=replicas, accidents=0)
    setting = Setting(is_async=recorded.mode != "sync", keep=recorded.settings.get("keep_last_n", 0))
    seen = list(_seen(recorded, reader(recorded, layout), numbers))
    not_allowed, most = follow_seen(FIRST.machine(scope, setting), seen)
    if not_allowed is None:
        return Followed(recorded.special, len(seen), most)
    shown = [*(str(one) for one in seen[max(0, not_allowed.at - _BEFORE) : not_allowed.at]), f"then {not_allowed}"]
    steps = ", ".join(f"{number} is step {step}" for step, number in numbers.items())
    return Followed(recorded.special, len(seen), most, f"{'; '.join(shown)} (here {steps})")


def _seen(recorded: Recorded, reads: Reader, numbers: Mapping[int, int]) -> Iterator[Seen]:
    states, folder, inodes = States(recorded.trace, None, coalesce=False), (frozenset[int](), 0), dict[str, int]()
    for at, effect in enumerate(recorded.trace.effects):
        if isinstance(effect, Mark):
            yield _seen_by_caller(effect, recorded, numbers)
        if not isinstance(effect, Entries | Bytes):
            continue
        states.walk_to(at + 1)
        state = State(at + 1)
        disk, paths = states.disk(state), states.paths(state)
        whole = {name: paths[name] for name in reads.complete(disk)}
        now = _numbered(reads, whole, numbers), numbers.get(reads.step(reads.pointer(disk)) or 0, 0)
        if now != folder:
            yield Seen(FOLDER, 0, now[0], now[1] if reads.layout.pointer else None)
        for name in whole.keys() & inodes.keys():
            if whole[name] != inodes[name]:
                yield Seen(REPLACED, numbers.get(reads.step(name) or 0, 0))
        folder, inodes = now, whole


def _numbered(reads: Reader, names: Mapping[str, int], numbers: Mapping[int, int]) -> frozenset[int]:
    steps = {reads.step(name) for name in names}
    return frozenset(number for step, number in numbers.items() if step in steps)


def _seen_by_caller(mark: Mark, recorded: Recorded, numbers: Mapping[int, int]) -> Seen:
    if mark.word in _SAVES:
        return Seen(_SAVES[mark.word], numbers[recorded.saves[mark.save].step])
    return Seen(_OF_STEP.get(mark.word, mark.word), numbers.get(mark.step, 0))
