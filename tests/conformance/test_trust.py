"""Chapter trust: pickles of another owner are refused before a byte of them runs.

Where the suite runs as root it gives files to a real second uid, and lives that
read what belongs to root are processes of that uid.  Anybody else can't make a
foreign file, and those clauses are then unreached.  Which
files are pickles is known of the shared layout alone, so tests about a file
need that as well.

The canary is a pickle that makes a directory when it is unpickled in full.
"""

import os
import re
import stat
from pathlib import Path

import pytest

from forge_conformance.judging.judge import Unreached, judges
from forge_conformance.runs.life import Life
from forge_conformance.runs.process import ManagerFault, Raised
from forge_conformance.runs.scenario import Scenario
from forge_conformance.runs.state import ALL_KINDS
from forge_conformance.watch.gate import Operation
from forge_spec import layout, trust

ROOT_UID, SECOND_UID = 0, 65534
PICKLES = [layout.TRAIN_STATE, layout.MARKER]
_OTHER_FILES = [*PICKLES, layout.METADATA]
_PICKLE_OF_TORCH = b"data.pkl"
"""The name of the pickle in an archive of `torch.save`, of which shards of DCP consist."""


@judges("trust.foreign-owner", "trust.no-canary", "trust.before-mutation", needs=("layout",))
def test_a_train_state_of_another_owner_is_refused(run: Scenario, mode: str, tmp_path: Path) -> None:
    _expect_refusal(run, mode, layout.TRAIN_STATE, tmp_path, clause="trust.foreign-owner")


@judges("trust.every-pickle", "trust.no-canary", "trust.before-mutation", needs=("layout",))
def test_a_marker_of_another_owner_is_refused_as_well(run: Scenario, mode: str, tmp_path: Path) -> None:
    _expect_refusal(run, mode, layout.MARKER, tmp_path, clause="trust.every-pickle")


@judges("trust.foreign-owner", "trust.no-canary", "trust.before-mutation", needs=("layout",))
def test_a_train_state_of_root_is_refused_by_everybody_else(run: Scenario, tmp_path: Path) -> None:
    """Root is another owner as well, which nobody can tell of a manager that runs as root itself."""
    _expect_refusal_of_roots(run, layout.TRAIN_STATE, tmp_path, clause="trust.foreign-owner")


@judges("trust.every-pickle", "trust.no-canary", "trust.before-mutation", needs=("layout",))
def test_a_marker_of_root_is_refused_by_everybody_else(run: Scenario, tmp_path: Path) -> None:
    _expect_refusal_of_roots(run, layout.MARKER, tmp_path, clause="trust.every-pickle")


@judges("trust.every-pickle", "trust.before-mutation", needs=("layout",))
def test_shards_of_another_owner_are_refused_as_well(run: Scenario, mode: str) -> None:
    run.start(mode=mode).commit_at(2)
    shards = [path for path in run.folder.of(2).rglob("*") if path.is_file() and path.name not in _OTHER_FILES]
    pickles = [path for path in shards if _PICKLE_OF_TORCH in path.read_bytes()]
    if not pickles:
        raise Unreached("its shards hold no pickle")
    for path in pickles:
        _give_away(path)
    run.judge.tell(f"{', '.join(path.name for path in pickles)} of step 2 now belong to uid {SECOND_UID}")
    life = run.start(mode=mode, seed=999)
    life.train_to(1)
    before = life.digest()
    refused = _try_load(life)
    said = str(refused or "no error")
    right = isinstance(refused, Raised) and "PermissionError" in refused.kinds
    run.expect(
        "trust.every-pickle",
        right and any(str(path) in said for path in pickles),
        expected="a PermissionError naming a shard",
        seen=said,
    )
    run.expect_same("trust.before-mutation", life.digest(), before, ALL_KINDS, "the state before the refused load")


@judges("trust.foreign-owner", needs=("explicit", "layout"))
def test_a_named_checkpoint_of_another_owner_is_refused_too(run: Scenario) -> None:
    run.start().commit_at(2)
    _give_away(run.folder.of(2) / layout.TRAIN_STATE)
    run.judge.tell(f"{layout.TRAIN_STATE} of step 2 now belongs to uid {SECOND_UID}")
    naming = [layout.TRAIN_STATE, str(SECOND_UID), str(os.geteuid())]
    with run.expect_error("trust.foreign-owner", "PermissionError", naming=naming, doing="the load"):
        run.start(seed=999).load(run.folder.of(2))


@judges("trust.no-canary", "trust.foreign-owner")
def test_one_owner_everywhere_is_not_refused(run: Scenario, mode: str) -> None:
    """The twin of every refusal: a manager that refuses everything trusts nobody, and resumes nothing."""
    run.start(mode=mode).commit_at(2)
    _, loaded = run.resume(mode=mode)
    for clause in ("trust.no-canary", "trust.foreign-owner"):
        run.expect_landing(clause, loaded, {2}, "every file belongs to the reader", reaches=False)


@pytest.mark.parametrize("mode_bits", [0o600, 0o644, 0o664, 0o646, 0o666], ids="{:o}".format)
@judges("trust.writable-warning", needs=("layout",))
def test_a_pickle_that_others_may_write_is_warned_of(run: Scenario, mode_bits: int) -> None:
    run.start().commit_at(2)
    (run.folder.of(2) / layout.TRAIN_STATE).chmod(mode_bits)
    run.judge.tell(f"{layout.TRAIN_STATE} gets mode {mode_bits:o}")
    life, loaded = run.resume()
    run.expect_landing("trust.writable-warning", loaded, {2}, "its owner is the reader")
    objections = trust.judge_pickle(os.geteuid(), os.geteuid(), mode_bits)
    if trust.Objection.WARN in objections:
        run.expect_warning("trust.writable-warning", life, layout.TRAIN_STATE, f"{mode_bits:o}")
    else:
        run.expect(
            "trust.writable-warning",
            layout.TRAIN_STATE not in life.warnings,
            expected=f"no warning about mode {mode_bits:o}",
            seen=life.warnings,
        )


@pytest.mark.parametrize("mode_bits", [0o666], ids="{:o}".format)
@judges("trust.every-pickle", needs=("layout",))
def test_a_marker_that_others_may_write_is_warned_of(run: Scenario, mode_bits: int) -> None:
    run.start().commit_at(2)
    (run.folder.of(2) / layout.MARKER).chmod(mode_bits)
    run.judge.tell(f"{layout.MARKER} gets mode {mode_bits:o}")
    life, _ = run.resume()
    run.expect_warning("trust.every-pickle", life, layout.MARKER, f"{mode_bits:o}", reaches=False)


@pytest.mark.parametrize("where", ["folder", "checkpoint"])
@pytest.mark.parametrize("mode_bits", [0o755, 0o775, 0o777, 0o1777], ids="{:o}".format)
@judges("trust.directory")
def test_a_directory_that_others_may_write_is_warned_of(run: Scenario, where: str, mode_bits: int) -> None:
    if where == "checkpoint" and not run.folder.layout.is_dir:
        raise Unreached("a checkpoint of one file has no directory of its own")
    run.start().commit_at(2)
    directory = run.folder.path if where == "folder" else run.folder.of(2)
    directory.chmod(mode_bits)
    run.judge.tell(f"the {where}, {directory.name}, gets mode {mode_bits:o}")
    life, loaded = run.resume()
    run.expect_landing("trust.directory", loaded, {2}, "a warning is no refusal")
    if trust.judge_directory(mode_bits):
        run.expect_warning("trust.directory", life, directory.name, f"{mode_bits:o}")
    else:
        wrong = [said for said in life.worker.warnings if directory.name in said and f"{mode_bits:o}" in said]
        expected = f"no warning about {directory.name} with mode {mode_bits:o}"
        run.expect("trust.directory", not wrong, expected=expected, seen="\n".join(wrong))


@pytest.mark.parametrize("name", PICKLES)
@judges("trust.same-file", needs=("layout",))
def test_a_pickle_that_is_a_link_is_not_followed(run: Scenario, tmp_path: Path, name: str) -> None:
    run.start().commit_at(2)
    path = run.folder.of(2) / name
    elsewhere = tmp_path / name
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    run.judge.tell(f"{name} of step 2 is now a symlink to a file elsewhere")
    _expect_no_load(run, 2, f"a checkpoint whose {name} is a link")


@pytest.mark.parametrize("swapped_at", [1, 2])
@pytest.mark.parametrize("name", PICKLES)
@judges("trust.same-file", "trust.no-canary", needs=("layout",))
def test_a_pickle_swapped_between_check_and_read_is_not_run(
    run: Scenario, tmp_path: Path, name: str, swapped_at: int
) -> None:
    run.start().commit_at(2)
    path, canary = run.folder.of(2) / name, tmp_path / "canary"
    trap = tmp_path / "trap"
    trap.write_bytes(_canary_pickle(canary))
    _give_away(trap)
    life = run.start(seed=999, gated=True, reads=True)
    opened: list[Operation] = []

    def swap(operation: Operation) -> None:
        if operation.name in ("open", "openat") and operation.paths[0].endswith(f"/{name}"):
            opened.append(operation)
            if len(opened) == swapped_at:
                os.replace(trap, path)

    life.gate.observe(swap)
    run.judge.tell(f"just before opening number {swapped_at} of {name}, another user's file takes its place")
    refused = _try_load(life)
    life.gate.check()
    run.expect(
        "trust.same-file", bool(opened), expected=f"{name} to be opened at all", seen="it was not", reaches=False
    )
    if len(opened) < swapped_at:
        raise Unreached(f"a load opens {name} less than {swapped_at} times")
    run.expect("trust.no-canary", not canary.exists(), expected="no code of the swapped file to run", seen="it ran")
    run.expect(
        "trust.same-file",
        bool(refused),
        expected="the swapped file to be refused by what was opened",
        seen=f"a load without an error, after {len(opened)} openings",
    )


@judges("trust.least", needs=("layout",))
def test_plain_state_is_loaded_without_running_pickled_code(run: Scenario, any_mode: str) -> None:
    life = run.start(mode=any_mode)
    life.train_to(2)
    life.commit(extra={"plain": [1, "two", {"three": 3.0}]})
    _, loaded = run.resume(mode=any_mode)
    asked = {name for file, names in loaded.globals.items() for name in names if not _is_of_marker(file, name)}
    run.expect_landing("trust.least", loaded, {2})
    run.expect(
        "trust.least",
        not asked,
        expected="all but the marker to be read as data",
        seen=f"a full unpickler that looked up {', '.join(sorted(asked)[:5])}",
    )


def _is_of_marker(file: str, name: str) -> bool:
    """Whether it is DCP's marker that asks; `file` is only what was opened last before it asked."""
    return file == layout.MARKER or name.startswith("torch.distributed.checkpoint.")


@judges("trust.least", needs=("layout",))
def test_a_foreign_pickle_that_needs_code_is_not_even_tried(run: Scenario, tmp_path: Path) -> None:
    """A reader that tries data first must not fall back to code for somebody else's file."""
    run.start().commit_at(2)
    path, canary = run.folder.of(2) / layout.TRAIN_STATE, tmp_path / "canary"
    path.write_bytes(_canary_pickle(canary))
    _give_away(path)
    run.judge.tell(f"{layout.TRAIN_STATE} of step 2 is a pickle of uid {SECOND_UID} that runs code")
    refused = _try_load(run.start(seed=999))
    run.expect(
        "trust.least",
        bool(refused) and not canary.exists(),
        expected="a refusal, and no code run",
        seen=f"{refused or 'no error'}; the code {'ran' if canary.exists() else 'did not run'}",
    )


def _expect_refusal(run: Scenario, mode: str, name: str, tmp_path: Path, clause: str) -> None:
    run.start(mode=mode).commit_at(2)
    canary = _set_trap(run, name, tmp_path, owner=SECOND_UID)
    _expect_refused(run, run.start(mode=mode, seed=999), name, canary, clause, SECOND_UID, os.geteuid())


def _expect_refusal_of_roots(run: Scenario, name: str, tmp_path: Path, clause: str) -> None:
    """The twin comes first: a user who is not root trusts its own files."""
    if os.geteuid() == ROOT_UID:
        os.chown(run.folder.path, SECOND_UID, SECOND_UID)
        run.judge.tell(f"the folder belongs to uid {SECOND_UID}")
    run.start(uid=SECOND_UID).commit_at(2)
    loaded = run.start(uid=SECOND_UID, seed=999).load()
    run.expect_landing(clause, loaded, {2}, "every file belongs to the reader", reaches=False)
    canary = _set_trap(run, name, tmp_path, owner=ROOT_UID)
    _expect_refused(run, run.start(uid=SECOND_UID, seed=999), name, canary, clause, ROOT_UID, SECOND_UID)


def _set_trap(run: Scenario, name: str, tmp_path: Path, owner: int) -> Path:
    """Put a canary pickle of this owner into step 2; what it makes when it is unpickled."""
    path, canary = run.folder.of(2) / name, tmp_path / "canary"
    path.write_bytes(_canary_pickle(canary))
    _give_away(path, owner)
    run.judge.tell(f"{name} of step 2 now belongs to uid {owner}, and makes {canary} when it is unpickled")
    return canary


def _expect_refused(run: Scenario, life: Life, name: str, canary: Path, clause: str, owner: int, reader: int) -> None:
    path = run.folder.of(2) / name
    objections = trust.judge_pickle(owner, reader, stat.S_IMODE(path.stat().st_mode))
    assert trust.Objection.REFUSE in objections, "the scenario is about a refusal"
    life.train_to(1)
    before = life.digest()
    refused = _try_load(life)
    run.expect("trust.no-canary", not canary.exists(), expected="no pickled code to run", seen=f"it ran, in {name}")
    right = isinstance(refused, Raised) and "PermissionError" in refused.kinds
    said = str(refused or "no error")
    besides = said.replace(str(run.folder.path), "")  # digits of the path name nobody
    names_both = all(re.search(rf"\b{uid}\b", besides) for uid in (owner, reader))
    run.expect(
        clause,
        right and str(path) in said and names_both,
        expected=f"a PermissionError naming {path}, its owner {owner} and the reader {reader}",
        seen=said,
    )
    run.expect_same("trust.before-mutation", life.digest(), before, ALL_KINDS, "the state before the refused load")


def _expect_no_load(run: Scenario, step: int, what: str) -> None:
    """Refused, or not taken for a checkpoint: in no case loaded."""
    life = run.start(seed=999)
    try:
        loaded = life.load()
    except Raised as error:
        run.judge.tell(f"{error}"[:300])
        return
    seen = f"loaded step {loaded.step}"
    run.expect("trust.same-file", loaded.step != step, expected=f"{what} to be refused", seen=seen, reaches=False)


def _try_load(life: Life) -> ManagerFault | None:
    try:
        life.load()
    except Raised as error:
        life.scenario.judge.tell(f"{error}"[:300])
        return error
    return None


def _canary_pickle(canary: Path) -> bytes:
    """A pickle whose whole content is a call of os.mkdir."""
    return b"cos\nmkdir\n(S'" + os.fsencode(canary) + b"'\ntR."


def _give_away(path: Path, owner: int = SECOND_UID) -> None:
    if os.geteuid() != 0:
        raise Unreached(
            f"making a file of another owner needs root, and the suite runs as uid {os.geteuid()}: "
            "run it as root in a container to have this judged"
        )
    os.chown(path, owner, owner)
