"""What came of one recording: what was explored, what is bad, and what it cost."""

from dataclasses import dataclass

from forge_conformance.disks.durable_order import Disorder
from forge_conformance.disks.explorer import Explored
from forge_conformance.disks.model_path import Followed
from forge_conformance.runs.verdict import Verdict


@dataclass(frozen=True)
class Found:
    """A way in which disks are bad, with its simplest example."""

    name: str
    storage: str
    verdict: Verdict
    states: int
    missing: tuple[str, ...]
    text: str
    replay: str
    replayed: str = ""
    """The verdict that the replay script came to by itself; "" if it was not run."""


@dataclass(frozen=True)
class Result:
    """Everything about one recording."""

    scenario: str
    mode: str
    explored: tuple[Explored, ...] = ()
    found: tuple[Found, ...] = ()
    disorders: tuple[Disorder, ...] = ()
    orders_looked_at: int = 0
    followed: tuple[Followed, ...] = ()
    """What the model says of the recording, and of its other orders."""
    recorded_s: float = 0
    unrecorded_s: float = 0
    seconds: float = 0
    refusal: str = ""
    """Why nothing could be explored, or not the second deaths; "" if everything was."""
    is_blocked: bool = False
    """Whether the reason is a call that never returned."""
    error: str = ""
    """The traceback of an error of the suite; "" if there was none."""
