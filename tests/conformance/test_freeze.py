"""Chapter freeze: which modules were frozen, recorded with a save and compared at a load."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from forge_conformance.judging.judge import Unreached, judges
from forge_conformance.runs.cases import case
from forge_conformance.runs.life import Life
from forge_conformance.runs.process import Raised
from forge_conformance.runs.scenario import Scenario
from forge_conformance.runs.state import ALL_KINDS
from forge_conformance.test_golden import require_fit
from forge_conformance.watch.gate import Operation
from forge_spec import freeze, layout

_DCP = case("golden/dcp-one-process")
ADAPTER, AUDIO, TEXT, VISION = "adapter", "audio", "text", "vision"


@judges("freeze.canonical")
def test_the_canonical_form_does_not_depend_on_order_or_repetition(run: Scenario) -> None:
    life = run.start()
    entries = [(VISION, True), (ADAPTER, False), (TEXT, True)]
    at_odds = itertools.permutations([(VISION, True), (ADAPTER, False), (VISION, False)])
    for given in [*itertools.permutations(entries), [*entries, entries[0]], [], entries[:1], *at_odds]:
        expected = freeze.canonical(given)
        seen = life.worker.call("canonical_freeze", specs=[list(entry) for entry in given])
        run.expect("freeze.canonical", seen == expected, expected=f"{expected} for {given}", seen=f"{seen}")


@pytest.mark.parametrize("shared", [[(VISION, True)], [(VISION, True), (AUDIO, False)]], ids=["one", "two"])
@judges("freeze.intersection", "freeze.absent")
def test_modules_that_only_one_side_names_are_not_compared(
    run: Scenario, mode: str, shared: list[tuple[str, bool]]
) -> None:
    _save_frozen(run, mode, [*shared, (TEXT, False)])
    life = run.start(mode=mode, seed=999)
    loaded = life.load(freeze_expected=freeze.canonical([(ADAPTER, True), *shared]))
    names = ", ".join(module for module, _ in shared)
    run.expect_landing("freeze.intersection", loaded, {2}, f"the lists agree on {names}, which both name")
    other = run.start(mode=mode, seed=999)
    run.expect_landing("freeze.absent", other.load(), {2}, "no expectation was given")


@pytest.mark.parametrize("agreed", [[], [(AUDIO, False)]], ids=["one-shared", "two-shared"])
@judges("freeze.mismatch")
def test_a_difference_on_a_shared_module_is_refused_before_anything_changes(
    run: Scenario, mode: str, agreed: list[tuple[str, bool]]
) -> None:
    saved, expected = [(VISION, True), (TEXT, False), *agreed], [(VISION, False), (ADAPTER, True), *agreed]
    _save_frozen(run, mode, saved)
    life = run.start(mode=mode, seed=999)
    life.train_to(1)
    before = life.digest()
    seen = freeze.Comparison(freeze.canonical(saved), freeze.canonical(expected))
    assert seen.is_mismatch, "the scenario is about a mismatch"
    naming = [*seen.differing, *seen.only_saved, *seen.only_expected, "True", "False"]
    with run.expect_error("freeze.mismatch", "ValueError", naming=naming, doing="a load with another freeze list"):
        life.load(freeze_expected=freeze.canonical(expected))
    run.expect_same("freeze.mismatch", life.digest(), before, ALL_KINDS, "the state before the refused load")


@judges("freeze.override")
def test_a_mismatch_that_is_to_be_ignored_is_a_warning(run: Scenario, mode: str) -> None:
    _save_frozen(run, mode, [(VISION, True)])
    life = run.start(mode=mode, seed=999, ignore_freeze_mismatch=True)
    loaded = life.load(freeze_expected=freeze.canonical([(VISION, False)]))
    run.expect_warning("freeze.override", life, VISION)
    run.expect_landing("freeze.override", loaded, {2}, "the mismatch is to be ignored")
    run.expect_state("freeze.override", life, 2)


@judges("freeze.absent")
def test_a_checkpoint_without_freeze_metadata_is_not_compared(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(2)
    life = run.start(mode=mode, seed=999)
    loaded = life.load(freeze_expected=freeze.canonical([(VISION, True)]))
    run.expect_landing("freeze.absent", loaded, {2}, "nothing was recorded to compare with")


@pytest.mark.parametrize("content", [b'{"step": 2, "vlm_freeze": [', b"", b"\0\0\0", b'{"step": 2, "note": "\xff"}'])
@judges("freeze.unreadable")
def test_metadata_that_cannot_be_parsed_is_a_warning_or_refused_by_name(
    run: Scenario, mode: str, content: bytes
) -> None:
    _save_frozen(run, mode, [(VISION, True)])
    life = _start_with_metadata(run, mode, 2, content)
    path = run.folder.of(2) if run.has("explicit") else None
    try:
        loaded = life.load(path, freeze_expected=freeze.canonical([(VISION, False)]))
    except Raised as error:
        run.expect(
            "freeze.unreadable",
            layout.METADATA in error.message,
            expected=f"a refusal that names {layout.METADATA}",
            seen=error.message,
        )
        return
    run.expect_warning("freeze.unreadable", life, layout.METADATA)
    run.expect_landing("freeze.unreadable", loaded, {2}, "the metadata is not needed for a load")


@pytest.mark.parametrize("content", [b'{"step": 4, "vlm_freeze": [', b'{"step": 4, "note": "\xff"}'])
@judges("freeze.unreadable", needs=("train-state",), layout=_DCP.layout)
def test_of_a_checkpoint_of_stock_dcp_metadata_that_cannot_be_parsed_is_a_warning(
    run: Scenario, mode: str, content: bytes, tmp_path: Path
) -> None:
    """Nothing in it tells what the metadata was, so there is nothing to refuse it for."""
    require_fit(run, _DCP, tmp_path / "theirs")
    _DCP.put_into(run.folder.path)
    run.judge.tell(f"the folder is made that of {_DCP.name}: {run.folder}")
    life = _start_with_metadata(run, mode, 4, content)
    loaded = life.load(freeze_expected=freeze.canonical([(VISION, False)]))
    run.expect_warning("freeze.unreadable", life, layout.METADATA)
    run.expect_landing("freeze.unreadable", loaded, {4}, "the metadata is not needed for a load")


@judges("freeze.whole-metadata")
def test_at_no_file_operation_is_the_metadata_there_in_part(run: Scenario, mode: str) -> None:
    life = run.start(mode=mode, gated=True)
    life.gate.observe(lambda operation: _watch_metadata(run, operation))
    for step in (2, 3):
        life.train_to(step)
        life.commit(extra={"vlm_freeze": freeze.canonical([(VISION, True)])})
    life.gate.check()
    run.expect("freeze.whole-metadata", {2, 3} <= run.folder.complete(), expected="2 and 3 saved", seen=str(run.folder))


@judges("freeze.zero-overlap")
def test_two_lists_with_no_module_in_common_are_reported(run: Scenario, mode: str) -> None:
    _save_frozen(run, mode, [(VISION, True)])
    life = run.start(mode=mode, seed=999)
    loaded = life.load(freeze_expected=freeze.canonical([(ADAPTER, True)]))
    run.expect_warning("freeze.zero-overlap", life, VISION, ADAPTER)
    run.expect_landing("freeze.zero-overlap", loaded, {2}, "nothing contradicts")


@judges("freeze.effective")
def test_the_list_in_force_is_the_base_overridden_by_the_stages_that_began(run: Scenario) -> None:
    life = run.start()
    base = [(VISION, True), (TEXT, True)]
    stages: list[tuple[int, list[tuple[str, bool]]]] = [
        (200, [(TEXT, False)]),
        (300, [(VISION, True)]),
        (100, [(VISION, False), (ADAPTER, True)]),
    ]
    for step in (0, 99, 100, 101, 199, 200, 299, 300, 10_000):
        expected = freeze.effective(step, base, stages)
        seen = sorted(tuple(entry) for entry in _effective(life, step, base, stages, None))
        run.expect("freeze.effective", seen == expected, expected=f"{expected} at step {step}", seen=f"{seen}")
    with run.expect_error("freeze.effective", "ValueError", naming=["typo"], doing="a stage for an unknown module"):
        _effective(life, 150, base, [(100, [("typo", True)])], [VISION, TEXT, ADAPTER])
    with run.expect_error("freeze.effective", "ValueError", naming=["typo"], doing="a base with an unknown module"):
        _effective(life, 0, [("typo", True)], [], [VISION, TEXT, ADAPTER])


@judges("freeze.drain-before-transition", needs=("layout",))
def test_a_flush_before_a_transition_commits_with_the_metadata_of_its_time(run: Scenario, flush_mode: str) -> None:
    recorded = freeze.canonical([(VISION, True)])
    life = run.start(mode=flush_mode, gated=True)
    life.train_to(2)
    if not life.save_held(extra={"vlm_freeze": recorded}):
        raise Unreached("its flush could not be held with save returned and training free to go on; see commit.overlap")
    life.worker.begin("flush")
    run.judge.tell("flush_pending_save is called while the flush is held")
    has_returned = life.worker.replies_or_blocks()
    run.expect(
        "freeze.drain-before-transition",
        not has_returned,
        expected="flush_pending_save to return only when the save in flight is committed",
        seen=f"it returned; {run.folder}",
    )
    life.open_gate()
    life.worker.reply()
    run.expect(
        "freeze.drain-before-transition",
        2 in run.folder.complete() and run.folder.latest_or_newest() == 2,
        expected="step 2 committed when flush_pending_save has returned",
        seen=str(run.folder),
    )
    metadata = json.loads((run.folder.of(2) / layout.METADATA).read_text())
    run.expect(
        "freeze.drain-before-transition",
        metadata.get("vlm_freeze") == recorded,
        expected=f"{recorded} recorded",
        seen=f"{metadata}",
    )


def _save_frozen(run: Scenario, mode: str, entries: list[tuple[str, bool]]) -> None:
    life = run.start(mode=mode)
    life.train_to(2)
    life.commit(extra={"vlm_freeze": freeze.canonical(entries)})


def _start_with_metadata(run: Scenario, mode: str, step: int, content: bytes) -> Life:
    (run.folder.of(step) / layout.METADATA).write_bytes(content)
    run.judge.tell(f"{layout.METADATA} of step {step} now contains {content!r}")
    return run.start(mode=mode, seed=999)


def _effective(life: Life, step: int, base: Any, stages: Any, valid_modules: list[str] | None) -> Any:
    return life.worker.call("effective_freeze", step=step, base=base, schedule=stages, valid_modules=valid_modules)


def _watch_metadata(run: Scenario, operation: Operation) -> None:
    for step, path in run.folder.entries().items():
        try:
            content = (path / layout.METADATA).read_text()
        except FileNotFoundError:
            continue
        run.expect(
            "freeze.whole-metadata",
            _is_json(content),
            expected=f"{layout.METADATA} of step {step} whole or not there at every instant",
            seen=f"just before {operation}: {content[:80]!r}",
        )


def _is_json(content: str) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return False
    return True
