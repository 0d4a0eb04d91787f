"""What a resume from a disk is worth, and which clause fails with it."""

import re
from dataclasses import dataclass

from forge_conformance.runs.landing import GoingOn, Landing
from forge_conformance.runs.ledger import Saved
from forge_conformance.runs.state import kind_of, listed

GOOD = "good"
WORDS = {
    GOOD: "it resumed from an allowed save and continued from there",
    "stale": "it resumed from a save older than the last acknowledged one",
    "lost": "it started from step 0 although a save was acknowledged",
    "phantom": "it resumed from a save that had failed or was never made",
    "refused": "it raised an error instead of resuming",
    "mixed": "it restored a state that no save had",
    "changed": "part of the state is not restored, even without a death",
    "apart": "its ranks resumed at different steps",
    "hung": "it hangs: a load, a save, a wait or an exit does not return",
    "died": "the process that resumed ended by itself",
    "stuck": "it resumed, but a later save, or the resume after that save, failed",
    "removed": "it resumed and continued, and a checkpoint that had to stay is gone",
    "left": "it resumed and continued, and a checkpoint that had to be removed is still there",
    "swallowed": "a call failed, no error was raised, and the save can't be resumed",
    "repeated": "the failure was raised more than once, or a save after it failed although its cause was gone",
    "hard": "a deletion failed, and with it a save whose checkpoint is safe",
    "disturbed": "a save that was stopped for a while did not come to its end",
    "unheard": "an interrupt became another error, or was swallowed",
    "piled": "leftovers of interrupted saves pile up",
}
"""Every verdict, in words."""


@dataclass(frozen=True)
class Verdict:
    """One way in which a disk is good or bad."""

    word: str
    clause: str = ""
    """The clause that fails; "" when none does."""
    seen: str = ""
    expected: str = ""
    came_back: bool = False
    """Whether the resume itself was right, and what went wrong came later."""
    stands: tuple[int, ...] | None = None
    """The steps that had to stand at the end, where that is what is wrong."""

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
    is_hooked: bool = False,
) -> Verdict:
    """What this outcome is worth where these saves may come back; None among them stands for a fresh start.

    With `is_hooked` it is hooks that save, and the clauses about them are the ones that fail.
    """
    word = _word(landing, allowed)
    expected = _expected(allowed, saves)
    if word != GOOD:
        is_resave = any(save is not None and saves[save].is_resave for save in allowed)
        return Verdict(word, _clause(word, is_power_cut, is_resave, is_hooked), _seen(landing), expected)
    if going_on is not None and going_on.trouble:
        usual = "ephemeral.never-stuck" if is_hooked else "resume.continue"
        clause = "durable.power-loss" if is_power_cut else going_on.clause or usual
        stands = going_on.stands
        aim = "to save on, and to resume at the last of these saves"
        aim = aim if stands is None else f"step {', '.join(map(str, sorted(stands)))} to stand then"
        return Verdict(going_on.word, clause, going_on.trouble, aim, True, stands)
    return Verdict(GOOD)


def seen_and_expected(verdict: Verdict) -> tuple[str, str]:
    """The two lines of a story; where the resume itself is judged, a step is a resume from it."""
    if verdict.came_back:
        return f"seen: {verdict.seen}", f"expected: {verdict.expected}"
    seen = re.sub(r"^step (?=\d)", "a resume from step ", verdict.seen)
    expected = re.sub(r"(^| or )step (?=\d)", r"\1a resume from step ", verdict.expected)
    return f"seen: {seen}", f"expected: {expected}"


_CLAUSES = {"rng": "resume.rng", "loader": "resume.dataloader", "counter": "resume.train-state"}
"""The clauses about what comes back; of other kinds of state it is `resume.exact`."""


def without_death(landing: Landing) -> list[Verdict]:
    """What is wrong with the state that a resume brings back from a folder that no death has touched, by clause."""
    found: dict[str, list[str]] = {}
    for name in landing.differing:
        clause = _CLAUSES.get(kind_of(name), "resume.exact") if landing.step else "resume.fresh"
        found.setdefault(clause, []).append(name)
    where = f"step {landing.step}" if landing.step else "a fresh start"
    return [
        Verdict("changed", clause, f"{where}, {listed(names)}", f"{where}, bit for bit")
        for clause, names in sorted(found.items())
    ]


def _word(landing: Landing, allowed: frozenset[int | None]) -> str:
    if landing.word == "fresh":
        return GOOD if None in allowed else "lost"
    if landing.word != "landed":
        return landing.word
    if landing.saves & allowed:
        return GOOD
    acknowledged = [save for save in allowed if save is not None]
    return "stale" if acknowledged and max(landing.saves) < min(acknowledged) else "phantom"


def _clause(word: str, is_power_cut: bool, is_resave: bool, is_hooked: bool) -> str:
    if word == "apart":
        return "resume.agreement"
    if is_power_cut:
        return "durable.acknowledged" if word in ("stale", "lost") else "durable.power-loss"
    if is_hooked:
        return "ephemeral.after-complete" if word in ("stale", "lost") else "ephemeral.whole"
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
