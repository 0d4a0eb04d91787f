"""Tells of one way in which a script's restarts go wrong: the death, the folder, the restart, and what it should do."""

from collections.abc import Iterator

from forge_conformance.disks.states import KILL
from forge_conformance.disks.story import around, unstored
from forge_conformance.judging.text import shortened, wrapped
from forge_conformance.scripts.explorer import Bad
from forge_conformance.scripts.judge import WORDS
from forge_conformance.scripts.recording import PRINTS, Recorded
from forge_conformance.scripts.signals import SIGNALS
from forge_spec.disk import Mark

_MOST_LINES = 8


def tell(bad: Bad, recorded: Recorded, command: str, clause: str) -> str:
    """The whole story."""
    trace, state = recorded.trace, bad.state
    death, kind = _death(bad)
    missing = list(unstored(trace, state))
    lines = [
        f"{bad.verdict.word}: {WORDS[bad.verdict.word]}  [{clause}]",
        wrapped(f"{command}; {death} after operation {state.cut} of {len(trace.effects)}; {kind}", 2, 4),
        "",
        "  what happened around the death",
        *around(trace, state, lambda at: _named(recorded, at)),
    ]
    if missing:
        lines += ["", "  what did not reach the disk", *(f"    {line}" for line in missing)]
    lines += ["", "  the folder as it is left", *(f"    {line}" for line in bad.disk.listing())]
    lines += ["", f"  what the restart printed{_twice(bad)}", *_printed(bad)]
    seen, expected = f"the restart: {bad.verdict.seen}", f"expected: {bad.verdict.expected}"
    lines += ["", wrapped(seen, 2, 4), wrapped(expected, 2, 4)]
    return "\n".join(lines)


def _death(bad: Bad) -> tuple[str, str]:
    """What happens, and what it takes away."""
    if bad.storage in SIGNALS:
        return f"{SIGNALS[bad.storage].name} comes", "the script had its grace time"
    if bad.lost:
        return bad.lost, "nothing is lost of what had happened"
    if bad.storage == KILL:
        return "the process is killed", "nothing is lost of what had happened"
    return "the power is cut", f"storage {bad.storage}"


def _twice(bad: Bad) -> str:
    return ", at its second start" if len(bad.outcome.starts) > 1 else ""


def _printed(bad: Bad) -> Iterator[str]:
    tail = bad.outcome.last.tail
    if not tail:
        yield "    (nothing)"
    yield from (f"    {line[:110]}" for line in tail[-_MOST_LINES:])


def _named(recorded: Recorded, at: int) -> str:
    effect = recorded.trace.effects[at]
    if isinstance(effect, Mark):
        return f"prints: {shortened(recorded.output[effect.step], 90)}" if effect.word == PRINTS else ""
    call = recorded.trace.calls[at]
    return str(call) if call is not None else "was there before"
