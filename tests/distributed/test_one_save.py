"""All files of a checkpoint belong to one save, also those that one rank alone reads."""

import shutil
from pathlib import Path

from forge_conformance.judging.judge import Unreached, judges
from forge_conformance.runs.group import Shape
from forge_conformance.runs.life import World
from forge_conformance.runs.scenario import Scenario
from forge_conformance.runs.state import ALL_KINDS
from forge_spec import layout

_KNOWN = {layout.MARKER, layout.TRAIN_STATE, layout.METADATA}


@judges("resume.one-save", needs=("distributed",))
def test_a_shard_of_another_step_is_refused_by_all_ranks_whoever_reads_it(run: Scenario, team: Shape) -> None:
    run.world(team).commit_at(2, 4)
    world = run.world(team, seed=7)
    world.train_to(1)
    before = world.digest()
    for shard in _shards(run, 4):
        aside = shard.with_name("aside")
        shard.rename(aside)
        shutil.copy2(run.folder.of(2) / shard.relative_to(run.folder.of(4)), shard)
        run.judge.tell(f"{shard.name} of step 4 is replaced by that of step 2")
        _expect_refused(run, world, shard, before)
        aside.rename(shard)


def _shards(run: Scenario, step: int) -> list[Path]:
    path = run.folder.of(step)
    found = sorted(one for one in path.rglob("*") if one.is_file() and one.name not in _KNOWN)
    if not found:
        raise Unreached("its checkpoints have no shards beside the files that are known by name")
    return found


def _expect_refused(run: Scenario, world: World, shard: Path, before: dict[str, str]) -> None:
    world.tell("resumes")
    outcomes = world.ranks.outcomes("load", path=None, exclude=[], freeze_expected=None, parts=["scheduler"])
    said = [str(outcome.fault) for outcome in outcomes]
    run.expect(
        "resume.one-save",
        all(outcome.fault is not None and shard.name in str(outcome.fault) for outcome in outcomes),
        expected=f"an error on every rank that names {shard.name}",
        seen="; ".join(said),
    )
    what = "the state of every rank before the refused load"
    run.expect_same("resume.one-save", world.digest(), before, ALL_KINDS, what)
