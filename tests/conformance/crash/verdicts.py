"""What a resume from a disk is worth, and which clause falls with it."""

from dataclasses import dataclass

from .landing import GoingOn, Landing
from .recording import Saved

GOOD = "good"
WORDS = {
    GOOD: "it came back with a save that it may come back with, and went on from there",
    "stale": "it came back with an older save than the last one acknowledged",
    "lost": "it started afresh although a save was acknowledged",
    "phantom": "it came back with a save that had failed, or was never made",
    "refused": "it raised an error instead of coming back",
    "mixed": "it came back with a state that no save had: nobody would notice",
    "apart": "its ranks came back at different steps",
    "hung": "it did not come back at all",
    "died": "the process that resumed ended by itself",
    "stuck": "it came back and could not go on: a later save, or the resume after it, went wrong",
    "swallowed": "a call failed, nobody was told, and what was saved can't be resumed",
    "repeated": "the failure was raised more than once, or a save after it failed although its cause was gone",
    "hard": "what could not be deleted made a save fail whose checkpoint is safe",
    "disturbed": "a save that was stopped for a while did not come to its end",
    "piled": "what dead saves leave piles up",
}
"""Every verdict, in words."""


@dataclass(frozen=True)
class Verdict:
    """One way in which a disk is good or bad."""

    word: str
    clause: str = ""
    """The clause that falls; "" when none does."""
    seen: str = ""
    expected: str = ""

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong."""
        return self.word == GOOD


def verdict_of(
    landing: Landing,
    going_on: GoingOn | None,
    allowed: frozenset[int | None],
    saves: tuple[Saved, ...],
    is_power_cut: bool,
) -> Verdict:
    """What this outcome is worth where these saves may come back; None among them stands for a fresh start."""
    word = _word(landing, allowed)
    expected = _expected(allowed, saves)
    if word != GOOD:
        is_resave = any(save is not None and saves[save].is_resave for save in allowed)
        return Verdict(word, _clause(word, is_power_cut, is_resave), _seen(landing), expected)
    if going_on is not None and going_on.trouble:
        clause = "durable.power-loss" if is_power_cut else "resume.continue"
        return Verdict("stuck", clause, going_on.trouble, "to save on, and to resume at the last of these saves")
    return Verdict(GOOD)


def _word(landing: Landing, allowed: frozenset[int | None]) -> str:
    if landing.word == "fresh":
        return GOOD if None in allowed else "lost"
    if landing.word != "landed":
        return landing.word
    if landing.saves & allowed:
        return GOOD
    acknowledged = [save for save in allowed if save is not None]
    return "stale" if acknowledged and max(landing.saves) < min(acknowledged) else "phantom"


def _clause(word: str, is_power_cut: bool, is_resave: bool) -> str:
    if word == "apart":
        return "resume.agreement"
    if is_power_cut:
        return "durable.acknowledged" if word in ("stale", "lost") else "durable.power-loss"
    if is_resave:
        return "commit.resave"
    return "commit.failed-save" if word == "phantom" else "resume.after-kill"


def _expected(allowed: frozenset[int | None], saves: tuple[Saved, ...]) -> str:
    steps = dict.fromkeys(
        "a fresh start" if save is None else f"step {saves[save].step}"
        for save in sorted(allowed, key=lambda save: -1 if save is None else save)
    )
    return " or ".join(steps)


def _seen(landing: Landing) -> str:
    match landing.word:
        case "fresh":
            return "a fresh start"
        case "landed":
            return f"step {landing.step}"
        case "mixed":
            return f"step {landing.step}, {landing.said}" if landing.step else landing.said
    return landing.said
