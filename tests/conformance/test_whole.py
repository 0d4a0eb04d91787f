"""All files of a checkpoint belong to one save of one step, and what can't be classified is not deleted.

The files of the shared layout are known by name, so it is needed throughout.
A checkpoint that was tampered with may be refused, or passed over for an older
one; what counts is that the file is named and that no state is a mixture.
"""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from forge_conformance.judging.judge import Judge, Unreached, judges
from forge_conformance.runs.life import Life
from forge_conformance.runs.process import Loaded, Raised
from forge_conformance.runs.scenario import Scenario
from forge_spec import layout, retention

OLDER, NEWER = 2, 4
FROZEN = [{"module": "text", "frozen": False}, {"module": "vision", "frozen": True}]
THAWED = [{"module": "vision", "frozen": False}]
_PLACES = 24
"""Bytes of each file in which a bit is flipped."""


@pytest.mark.parametrize("file", ["a shard", layout.MARKER, layout.TRAIN_STATE, layout.METADATA])
@judges("resume.one-save")
def test_a_file_of_another_step_is_refused(run: Scenario, mode: str, file: str) -> None:
    run.start(mode=mode).commit_at(OLDER, NEWER)
    for name in _names(run, NEWER, file):
        shutil.copy2(run.folder.of(OLDER) / name, run.folder.of(NEWER) / name)
        run.judge.tell(f"{name} of step {NEWER} is replaced by that of step {OLDER}")
    _expect_no_mixture(run, mode, _names(run, NEWER, file))


@pytest.mark.parametrize("file", ["a shard", layout.MARKER, layout.TRAIN_STATE, layout.METADATA])
@judges("resume.one-save")
def test_a_file_of_an_earlier_save_of_the_step_is_refused(run: Scenario, mode: str, file: str, tmp_path: Path) -> None:
    """Another branch of the run has saved the step as well: every file has the same name and, mostly, the same size."""
    life = run.start(mode=mode, seed=5)
    life.train_to(NEWER)
    life.commit(extra={"branch": "the one that was given up"})
    shutil.copytree(run.folder.of(NEWER), tmp_path / "given-up")
    again = run.start(mode=mode)
    again.train_to(OLDER)
    again.commit(extra={"branch": "the one that goes on"})
    again.train_to(NEWER)
    again.commit(extra={"branch": "the one that goes on"})
    names = _names(run, NEWER, file)
    if all((tmp_path / "given-up" / name).read_bytes() == _read(run, NEWER, name) for name in names):
        raise Unreached(f"{file} is the same in both saves")
    for name in names:
        shutil.copy2(tmp_path / "given-up" / name, run.folder.of(NEWER) / name)
        run.judge.tell(f"{name} of step {NEWER} is replaced by that of an earlier save of this step")
    _expect_no_mixture(run, mode, names)


@pytest.mark.parametrize("older", [layout.METADATA, layout.TRAIN_STATE])
@judges("resume.one-save")
def test_metadata_that_records_nothing_lets_no_file_of_another_step_pass(run: Scenario, mode: str, older: str) -> None:
    """Of whichever writer it seems to be: what the other files are known by has gone."""
    run.start(mode=mode).commit_at(OLDER, NEWER)
    step = OLDER if older == layout.METADATA else NEWER
    (run.folder.of(NEWER) / layout.METADATA).write_text(_plain_metadata(step))
    run.judge.tell(f"{layout.METADATA} of step {NEWER} now contains {_plain_metadata(step)}")
    if older == layout.TRAIN_STATE:
        shutil.copy2(run.folder.of(OLDER) / older, run.folder.of(NEWER) / older)
        run.judge.tell(f"{older} of step {NEWER} is replaced by that of step {OLDER}")
    _expect_no_mixture(run, mode, sorted({layout.METADATA, older}))


@pytest.mark.parametrize("file", ["a shard", layout.MARKER, layout.TRAIN_STATE, layout.METADATA])
@judges("resume.intact")
def test_a_flipped_bit_changes_nothing_or_its_file_is_named(run: Scenario, file: str) -> None:
    _save_frozen(run)
    life = run.start(seed=999)
    (name, *_) = _names(run, NEWER, file)
    for place in _flipped(run, name):
        outcome = _attempt(life, name)
        if outcome is not None:
            _expect_exact(run, "resume.intact", life, outcome, place)


@judges("freeze.flipped-bit", "resume.intact")
def test_no_flipped_bit_switches_the_comparison_of_freeze_lists_off(run: Scenario) -> None:
    _save_frozen(run)
    life = run.start(seed=999)
    paths = itertools.cycle([None, run.folder.of(NEWER)] if run.has("explicit") else [None])
    for place, path in zip(_flipped(run, layout.METADATA, places=4 * _PLACES), paths, strict=False):
        outcome = _attempt(life, layout.METADATA, path=path, freeze_expected=THAWED, may_raise="vision")
        run.expect(
            "freeze.flipped-bit",
            outcome is None or outcome.step == OLDER,
            expected=f"a refusal that names {layout.METADATA} or vision, or a fallback to step {OLDER}, with {place}",
            seen=f"a load that compared nothing; warnings: {life.warnings!r}",
        )
        run.expect(
            "resume.intact",
            outcome is None or layout.METADATA in life.warnings,
            expected=f"a refusal, or a warning about {layout.METADATA}, with {place}",
            seen=f"a load that compared nothing; warnings: {life.warnings!r}",
        )


@judges("resume.named-by-its-step")
def test_a_checkpoint_under_the_name_of_another_step_is_not_taken_for_it(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(OLDER, NEWER)
    copy, best = run.folder.of(NEWER + 3), run.folder.path.parent / "best"
    for at in (copy, best):
        shutil.copytree(run.folder.of(OLDER), at)
    run.folder.point_at(copy.name)
    run.judge.tell(f"step {OLDER} is copied to {copy.name}, which the pointer names now, and to {best.name}")
    life = run.start(mode=mode, seed=999)
    for path in (None, copy) if run.has("explicit") else (None,):
        try:
            loaded = life.load(path)
        except Raised as error:
            _expect_named(run.judge, "resume.named-by-its-step", error.message, [copy.name], "a copy under its name")
            continue
        run.expect(
            "resume.named-by-its-step",
            path is None and loaded.step == NEWER and copy.name in life.warnings,
            expected=f"a refusal that names {copy.name}, or a fallback to step {NEWER} with a warning that does",
            seen=f"a load of step {loaded.step}; warnings: {life.warnings!r}",
        )
    if run.has("explicit"):
        loaded = life.load(best)
        run.expect_landing("resume.named-by-its-step", loaded, {OLDER}, "a copy may have a name that is no step's")
        run.expect_state("resume.named-by-its-step", life, OLDER)


@judges("resume.intact", needs=("peek",))
def test_no_flipped_bit_makes_peek_say_another_step(run: Scenario) -> None:
    _save_frozen(run)
    life = run.start(seed=999)
    for place in _flipped(run, layout.METADATA, places=4 * _PLACES):
        try:
            peeked = life.worker.call("peek", path=None)
        except Raised as error:
            _expect_named(run.judge, "resume.intact", str(error), [layout.METADATA], place)
            continue
        run.expect(
            "resume.intact",
            peeked == NEWER or (peeked == OLDER and layout.METADATA in life.warnings),
            expected=f"peek to say step {NEWER}, or to name {layout.METADATA}, with {place}",
            seen=f"step {peeked}; warnings: {life.warnings!r}",
        )


@pytest.mark.parametrize("how", ["cut short", "no text", "a flipped letter", "a link", "an empty object", "plain"])
@judges("retention.unclassified")
def test_a_milestone_that_nobody_can_tell_is_kept(run: Scenario, mode: str, how: str, tmp_path: Path) -> None:
    first = run.start(mode=mode, keep_last_n=1, window={"start": 1, "stop": 2, "strategy": "power2"})
    first.commit_at(1, 2)
    file = run.folder.of(1) / layout.METADATA
    _damage(file, how, tmp_path)
    run.judge.tell(f"{layout.METADATA} of step 1, a milestone, is now {how}")
    second, _ = run.resume(mode=mode, keep_last_n=1)
    warned: list[str] = []
    for step in (10, 12):
        second.train_to(step)
        for call in (second.save, second.wait):
            call()
            warned += second.worker.warnings
    kept = retention.survivors(
        retention.Folder(
            complete=frozenset({1, 2, 10, 12}),
            milestones=frozenset({2}),
            unclassified=frozenset({1}),
            latest=12,
            committed=12,
        ),
        keep_last_n=1,
    )
    run.expect(
        "retention.unclassified",
        run.folder.steps() == kept,
        expected=f"{sorted(kept)}: step 1, which may be a milestone, the milestone 2, and the newest",
        seen=str(run.folder),
    )
    run.expect(
        "retention.unclassified",
        any(run.folder.of(1).name in said and layout.METADATA in said for said in warned),
        expected=f"a warning about {layout.METADATA} of step 1",
        seen="\n".join(warned),
    )


# -- helpers ------------------------------------------------------------------------


def _names(run: Scenario, step: int, file: str) -> list[str]:
    """The names of the files that are meant, relative to the checkpoint."""
    if file != "a shard":
        return [file]
    known = {layout.MARKER, layout.TRAIN_STATE, layout.METADATA}
    path = run.folder.of(step)
    found = sorted(str(one.relative_to(path)) for one in path.rglob("*") if one.is_file() and one.name not in known)
    if not found:
        raise Unreached("its checkpoints have no shards beside the files that are known by name")
    return found


def _read(run: Scenario, step: int, name: str) -> bytes:
    return (run.folder.of(step) / name).read_bytes()


def _expect_no_mixture(run: Scenario, mode: str, names: list[str]) -> None:
    life = run.start(mode=mode, seed=999)
    try:
        loaded = life.load()
    except Raised as error:
        _expect_named(run.judge, "resume.one-save", error.message, names, "one of its files exchanged")
        return
    named = any(Path(name).name in life.warnings for name in names)
    run.expect(
        "resume.one-save",
        loaded.step != NEWER and named,
        expected=f"a refusal that names {' or '.join(names)}, or a fallback with a warning that does",
        seen=f"a load of step {loaded.step}; warnings: {life.warnings!r}",
    )
    run.expect_state("resume.one-save", life, loaded.step)


def _expect_named(judge: Judge, clause: str, said: str, names: list[str], place: str) -> None:
    judge.expect(
        clause,
        any(Path(name).name in said for name in names),
        expected=f"an error that names {' or '.join(names)}, with {place}",
        seen=said,
    )


def _save_frozen(run: Scenario) -> None:
    life = run.start()
    life.commit_at(OLDER)
    life.train_to(NEWER)
    life.commit(extra={"vlm_freeze": FROZEN, "note": "kept"})


def _flipped(run: Scenario, name: str, places: int = _PLACES) -> Iterator[str]:
    """With the file as it was but for one bit: where that is, for bytes all over the file and each bit in its turn."""
    file = run.folder.of(NEWER) / name
    content = file.read_bytes()
    for number in range(min(places, len(content))):
        at, bit = number * len(content) // places, number * 5 % 8
        file.write_bytes(content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :])
        yield f"bit {bit} of byte {at} of {name} flipped"
    file.write_bytes(content)
    run.judge.tell(f"one bit of {name} of step {NEWER} was flipped, in {places} places one after another")


def _attempt(life: Life, name: str, may_raise: str | None = None, **arguments: Any) -> Loaded | None:
    """What a load came back with; None for an error, which has to name the file, or what the load is refused for."""
    try:
        return life.load(**arguments)
    except Raised as error:
        allowed = [name] if may_raise is None else [name, may_raise]
        _expect_named(life.scenario.judge, "resume.intact", error.message, allowed, f"a flipped bit in {name}")
        return None


def _expect_exact(run: Scenario, clause: str, life: Life, loaded: Loaded, place: str) -> None:
    """A load came back: with what was saved, or, with a warning, on the older checkpoint."""
    has_warned = bool(life.warnings)
    extra = {"vlm_freeze": FROZEN, "note": "kept"}
    seen = (loaded.step, loaded.tokens_seen, loaded.extra)
    allowed = [(NEWER, 32 * NEWER, extra)] + ([(OLDER, 32 * OLDER, {})] if has_warned else [])
    run.expect(clause, seen in allowed, expected=f"what was saved, with {place}", seen=f"{seen}")
    run.expect_state(clause, life, loaded.step)


def _damage(file: Path, how: str, elsewhere: Path) -> None:
    content = file.read_bytes()

    def link() -> None:
        file.rename(elsewhere / file.name)
        file.symlink_to(elsewhere / file.name)

    ways: dict[str, Callable[[], object]] = {
        "cut short": lambda: file.write_bytes(content[: len(content) // 2]),
        "no text": lambda: file.write_bytes(b"\xff" + content[1:]),
        "a flipped letter": lambda: file.write_bytes(_with_a_letter_flipped(content)),
        "a link": link,
        "an empty object": lambda: file.write_text("{}"),
        "plain": lambda: file.write_text(_plain_metadata(json.loads(content)["step"])),
    }
    ways[how]()


def _plain_metadata(step: int) -> str:
    """What every manager with this layout records, and nothing else."""
    return json.dumps({"step": step, "tokens_seen": 32 * step})


def _with_a_letter_flipped(content: bytes) -> bytes:
    """In the name of the first key that is no part of the shared layout: the class is under such a key."""
    known = {"step", "tokens_seen", "vlm_freeze"}
    flags = [key for key, value in json.loads(content).items() if isinstance(value, bool) and key not in known]
    if not flags:
        raise Unreached("its metadata has no yes or no, by which a milestone could be told")
    at = content.index(f'"{flags[0]}"'.encode()) + 1
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
