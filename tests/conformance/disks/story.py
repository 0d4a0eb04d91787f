"""Describes a bad disk: shrunk to what matters, with the operations around the death and the sync that was missing."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from forge_conformance.disks.states import Kept, State, States
from forge_conformance.judging.text import wrapped
from forge_conformance.runs.verdict import WORDS, Verdict, seen_and_expected
from forge_conformance.watch.trace import Disk, Trace
from forge_spec.disk import ROOT, Bytes, Entries, Mark, Size, Storage, Sync, may_lose

_AROUND = 8


@dataclass(frozen=True)
class Story:
    """A bad disk, as far as it could be shrunk."""

    state: State
    disk: Disk
    verdict: Verdict
    missing: tuple[str, ...]
    """What did not reach the disk, and which sync would have brought it there."""
    text: str


def disk_of(trace: Trace, storage: Storage | None, state: State) -> Disk:
    """The disk of one state."""
    states = States(trace, storage)
    states.walk_to(state.cut)
    return states.disk(state)


def shrink(trace: Trace, storage: Storage | None, state: State, is_bad: Callable[[Disk], bool]) -> State:
    """The same death with fewer missing effects, each of which the disk needs to be bad."""
    if storage is None:
        return state
    goes_on = True
    while goes_on:
        goes_on = False
        for smaller in _smaller(trace, storage, state):
            if is_bad(disk_of(trace, storage, smaller)):
                state, goes_on = smaller, True
                break
    return state


def _smaller(trace: Trace, storage: Storage, state: State) -> Iterator[State]:
    for number in state.content:
        yield replace(state, content={other: kept for other, kept in state.content.items() if other != number})
    for change in sorted(state.lost):
        fewer = state.lost - {change}
        if may_lose(trace.effects, state.cut, fewer, storage):
            yield replace(state, lost=fewer)


def tell(
    trace: Trace,
    storage: Storage | None,
    state: State,
    disk: Disk,
    verdict: Verdict,
    steps: tuple[int, ...],
    title: str,
) -> Story:
    """The whole story; `steps` are the steps of the saves, by their numbers."""
    missing = tuple(unstored(trace, state))
    death = "the power is cut" if state.is_power_cut else "the process is killed"
    when = f"after operation {state.cut} of {len(trace.effects)}"
    where = f"{title}; {f'a process resumes {when}' if verdict.word == 'changed' else f'{death} {when}'}"
    kind = f"storage {storage.name}" if storage and state.is_power_cut else "nothing is lost of what had happened"
    lines = [
        f"{verdict.word}: {WORDS[verdict.word]}  [{verdict.clause}]",
        wrapped(f"{where}; {kind}", 2, 4),
        "",
        "  what happened until then" if verdict.word == "changed" else "  what happened around the death",
        *around(trace, state, lambda at: _named(trace, at, steps)),
    ]
    if missing:
        lines += ["", "  what did not reach the disk", *(f"    {line}" for line in missing)]
    lines += ["", "  the folder as it is left", *(f"    {line}" for line in disk.listing())]
    lines += ["", *(wrapped(line, 2, 4) for line in seen_and_expected(verdict))]
    return Story(state, disk, verdict, missing, "\n".join(lines))


def around(trace: Trace, state: State, named: Callable[[int], str]) -> Iterator[str]:
    """The effects around a death, as lines; `named` says what an effect is, or "" if it is not shown."""
    first = max(0, min([state.cut - _AROUND, *state.lost]))
    places = range(first, min(len(trace.effects), state.cut + 3))
    near = [at for at in places if _is_shown(trace, at, state.cut) and named(at)]
    shown = near if len(near) < 3 * _AROUND else [*near[:_AROUND], -1, *near[-2 * _AROUND :]]
    is_past = False
    for at in shown:
        if at >= state.cut and not is_past:
            is_past = True
            yield "    ---- here ----"
        yield "      ..." if at < 0 else f"    {'x' if at in state.lost else ' '} {at + 1:5} {named(at)}"
    if not is_past:
        yield "    ---- here ----"


def _is_shown(trace: Trace, at: int, cut: int) -> bool:
    """Of a burst of writes to a file only the last, and the last before the death."""
    effect, after = trace.effects[at], trace.effects[at + 1 : at + 2]
    goes_on = isinstance(effect, Bytes) and any(isinstance(one, Bytes) and one.file == effect.file for one in after)
    return at == cut - 1 or not goes_on


def _named(trace: Trace, at: int, steps: tuple[int, ...]) -> str:
    effect = trace.effects[at]
    if isinstance(effect, Mark):
        return sentence(effect, steps)
    call = trace.calls[at]
    return str(call) if call is not None else "was there before"


def sentence(mark: Mark, steps: Sequence[int]) -> str:
    """What a mark says; `steps` are the steps of the saves."""
    match mark.word:
        case "start":
            return f"processes start{f', with a load of step {mark.step}' if mark.step else ''}"
        case "lands":
            return f"the run goes on from step {mark.step}"
        case "kill":
            return "every process is killed"
        case "full":
            return "a write finds no room"
    return f"the save of step {steps[mark.save]} {'is ' if mark.word == 'acknowledged' else ''}{mark.word}"


def unstored(trace: Trace, state: State) -> Iterator[str]:
    """What did not reach the disk, and which sync would have brought it there."""
    for change in sorted(state.lost):
        effect = trace.effects[change]
        assert isinstance(effect, Entries), "only names are lost here"
        directories = {directory for directory, _, _ in effect.changes}
        names = sorted({_path(trace, change, directory) or "the folder itself" for directory in directories})
        then = _synced_later(trace, change, directories)
        yield f"{trace.calls[change]}: its directory ({' and '.join(names)}) was not synced; {then}"
    for number, kept in state.content.items():
        path = _path(trace, state.cut, number)
        yield f"the content of {path}: {_form(kept)}; {_content_synced(trace, state, number)}"


def _content_synced(trace: Trace, state: State, number: int) -> str:
    last = max(
        at
        for at, effect in enumerate(trace.effects[: state.cut])
        if isinstance(effect, Bytes | Size) and effect.file == number
    )
    return f"the file was not synced; {_synced_later(trace, last, {number})}"


def _form(kept: Kept) -> str:
    forms = {"torn": "its last blocks are missing", "zeros": "it has its length, and all that is new reads as zeros"}
    if kept.form == "hole":
        return f"its block {kept.block} reads as zeros"
    written = f"only the first {kept.effects} of the writes to it are there" if kept.effects else "nothing was written"
    return forms.get(kept.form, written)


def _synced_later(trace: Trace, at: int, wanted: set[int]) -> str:
    for later, effect in enumerate(trace.effects[at:], start=at):
        if isinstance(effect, Sync) and (effect.of is None or effect.of in wanted):
            return f"an fsync of it came only as operation {later + 1}"
    return "no fsync of it ever came"


def _path(trace: Trace, cut: int, number: int) -> str:
    """What a file or directory was called when that had happened; its last name if it had none any more."""
    if number == ROOT:
        return ""
    for upto in range(cut + 1, 0, -1):
        paths = trace.names(at for at, effect in enumerate(trace.effects[:upto]) if isinstance(effect, Entries))
        for path, inode in paths.items():
            if inode == number:
                return path
    return f"file {number}"
