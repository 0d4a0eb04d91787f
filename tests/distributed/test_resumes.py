"""Several ranks resume: who lands where, with what, and who hears of it when one of them is refused.

"Exact" is what it is for one rank: every rank's state and losses equal those
of a run of as many ranks that was never interrupted, bit for bit.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from forge_conformance.judging.judge import Unreached, judges
from forge_conformance.runs.folder import Folder
from forge_conformance.runs.group import OnRank, Outcome, Shape, staged
from forge_conformance.runs.life import World
from forge_conformance.runs.scenario import Scenario
from forge_conformance.runs.state import ALL_KINDS, STATE

_REFUSABLE = tuple(kind for kind in ALL_KINDS if kind not in ("gradient", "counter"))
_EXTRA = {"phase": 2, "note": ("naïve", b"\x00\xff")}
_OTHER = 9
"""The seed of runs that have yet to resume: whatever is right afterwards was loaded."""


@judges("resume.exact", "resume.lands", "resume.dataloader", "resume.rng-per-rank", needs=("distributed",))
def test_a_resumed_run_goes_on_as_the_uninterrupted_one(run: Scenario, shape: Shape) -> None:
    run.world(shape).commit_at(3)
    again = run.world(shape, seed=_OTHER)
    run.expect_landing("resume.lands", again.load(), {3}, "its save was completed")
    run.expect_state("resume.exact", again, 3, kinds=STATE)
    run.expect_state("resume.dataloader", again, 3, kinds=["loader"])
    if run.has("rng", "dataloader"):
        run.expect_state("resume.rng-per-rank", again, 3, kinds=["rng"])
        losses = again.train_to(6)
        expected = run.timeline(shape=shape).losses_by_rank(3, 6)
        run.expect("resume.exact", losses == expected, expected=f"the losses {expected}", seen=f"{losses}")


@judges("resume.rng-per-rank")
def test_each_rank_gets_its_own_streams_back(run: Scenario, team: Shape) -> None:
    run.world(team).commit_at(3)
    again = run.world(team, seed=_OTHER)
    again.load()
    run.expect_state("resume.rng-per-rank", again, 3, kinds=["rng"])


@judges("resume.extra", needs=("distributed",))
def test_every_rank_gets_the_callers_extra(run: Scenario, team: Shape) -> None:
    world = run.world(team)
    world.train_to(3)
    world.commit(extra=_EXTRA)
    landed = run.world(team, seed=_OTHER).load()
    seen = [loaded.extra for loaded in landed]
    run.expect("resume.extra", seen == [_EXTRA] * team.ranks, expected=f"{_EXTRA} on every rank", seen=f"{seen}")


@judges("freeze.mismatch", "resume.error-everywhere", needs=("distributed",))
def test_a_freeze_list_that_differs_on_any_rank_alone_is_refused_on_every_rank(run: Scenario, fewest: int) -> None:
    """As where each rank builds its own part of the model, and expects the modules of that part."""
    shape = Shape(fewest)
    world = run.world(shape)
    world.train_to(2)
    world.commit(extra={"vlm_freeze": [{"module": "vision", "frozen": True}]})
    for odd in range(fewest):
        again = run.world(shape, seed=_OTHER)
        before = again.digest()
        run.judge.tell(f"rank {odd} expects vision to be trained, the others expect it frozen, as it was")
        found = again.load_outcomes(freeze_expected=partial(_expecting_vision_trained_on, odd))
        seen = "; ".join(f"rank {outcome.rank}: {_landing(outcome)}" for outcome in found)
        run.expect(
            "freeze.mismatch",
            _names_vision(found[odd]),
            expected=f"an error on rank {odd} that names vision",
            seen=seen,
        )
        run.expect(
            "resume.error-everywhere",
            all(_names_vision(outcome) for outcome in found),
            expected=f"the error of rank {odd}, which names vision, on every rank",
            seen=seen,
        )
        run.expect_same("freeze.mismatch", again.digest(), before, _REFUSABLE, "every rank's state before the load")
        again.kill()


def _names_vision(outcome: Outcome) -> bool:
    return outcome.fault is not None and "vision" in str(outcome.fault)


@judges("resume.one-step", needs=("distributed", "reshard", "rng"))
def test_a_rank_that_is_new_to_a_checkpoint_gets_nothing_of_an_older_one(run: Scenario, fewest: int) -> None:
    """Two ranks save, one goes on and saves, and there are two again: of the second the newest one knows nothing."""
    many, one = Shape(fewest), Shape(1)
    world = run.world(many)
    world.commit_at(2)
    before = world.digest()
    world.kill()
    alone = run.world(one, seed=_OTHER)
    run.expect_landing("resume.one-step", alone.load(), {2}, "its save was completed")
    alone.commit_at(4)
    alone.kill()
    again = run.world(many, seed=_OTHER)
    run.expect_landing("resume.one-step", again.load(), {4}, "its save was completed")
    seen = again.digest()
    streams = [name for name in seen if name.startswith(f"rng/rank {many.last} ")]
    stale = [name for name in streams if seen[name] == before.get(name)]
    run.expect(
        "resume.one-step",
        bool(streams) and not stale,
        expected=f"random streams on rank {many.last} that are not those of step 2, since the step is 4",
        seen=f"{stale or 'none'} as they were at step 2",
    )


@judges("resume.exclude", needs=("distributed",))
def test_what_is_excluded_stays_on_every_rank(run: Scenario, fewest: int) -> None:
    shape = Shape(fewest)
    run.world(shape).commit_at(3)
    for excluded, kind in (("rng", "rng"), ("dataloader", "loader")):
        if not run.has(excluded):
            continue
        again = run.world(shape, seed=_OTHER, exclude_from_loading=[excluded])
        before = again.digest()
        run.expect_landing("resume.exclude", again.load(), {3})
        run.expect_same("resume.exclude", again.digest(), before, [kind], f"{excluded} of every rank, excluded")
        run.expect_state("resume.exclude", again, 3, kinds=["parameter", "moment"])
        again.kill()


@judges("resume.fresh", needs=("distributed",))
def test_with_nothing_to_load_no_rank_changes(run: Scenario, team: Shape) -> None:
    world = run.world(team)
    before = world.digest()
    run.expect_landing("resume.fresh", world.load(), {None}, "the folder is empty")
    run.expect_same("resume.fresh", world.digest(), before, ALL_KINDS, "every rank's state before the load")


@judges("resume.fallback", "resume.one-step", "resume.continue", needs=("distributed", "pointer"))
def test_all_ranks_fall_back_to_the_newest_complete_step_and_save_on(run: Scenario, ranks: int) -> None:
    shape = Shape(ranks)
    run.world(shape).commit_at(2, 4)
    run.judge.tell(f"a kill has left step 4 {run.tear(4)}, and latest is at it")
    again = run.world(shape, seed=_OTHER)
    run.expect_landing("resume.fallback", again.load(), {2}, "4 is torn")
    run.expect_state("resume.one-step", again, 2, kinds=STATE)
    again.commit_at(4, 5)
    last = run.world(shape, seed=_OTHER)
    run.expect_landing("resume.continue", last.load(), {5}, "the run went on over the debris")


def _expecting_vision_trained_on(odd: int, rank: int) -> list[dict[str, object]]:
    return [{"module": "vision", "frozen": rank != odd}]


# -- agreement ----------------------------------------------------------------


def _without_newest(view: Folder) -> None:
    newest = view.of(4)
    shutil.rmtree(newest) if newest.is_dir() else newest.unlink()
    if view.layout.pointer is not None:
        view.point_at(view.of(2).name)


def _without_pointer(view: Folder) -> None:
    view.point_at(None)


def _without_train_state(view: Folder) -> None:
    (view.of(4) / "train_state.pt").unlink()


def _without_anything(view: Folder) -> None:
    shutil.rmtree(view.path)
    view.path.mkdir()


@dataclass(frozen=True)
class _View:
    """What one rank does not see yet."""

    change: Callable[[Folder], None]
    needs: tuple[str, ...] = ()
    has_shards: bool = False
    """Whether all that the rank has to read itself is there nevertheless."""


_VIEWS = {
    "the-newest-step": _View(_without_newest),
    "the-pointer": _View(_without_pointer, needs=("pointer",), has_shards=True),
    "the-train-state": _View(_without_train_state, needs=("layout",), has_shards=True),
    "anything": _View(_without_anything),
}


@judges("resume.agreement")
def test_ranks_land_on_the_same_step_when_one_does_not_see_all_of_the_folder(
    run: Scenario, ranks: int, tmp_path: Path
) -> None:
    _expect_agreement_over_views(run, Shape(ranks), ranks - 1, tmp_path)


@judges("resume.agreement")
def test_ranks_land_on_the_same_step_when_rank_0_does_not_see_all_of_the_folder(
    run: Scenario, fewest: int, tmp_path: Path
) -> None:
    _expect_agreement_over_views(run, Shape(fewest), 0, tmp_path)


def _expect_agreement_over_views(run: Scenario, shape: Shape, rank: int, tmp_path: Path) -> None:
    run.world(shape).commit_at(2, 4)
    for lacks, what in _VIEWS.items():
        if not run.has(*what.needs):
            continue
        view = replace(run.folder, path=tmp_path / lacks)
        run.folder.copy_to(view.path)
        what.change(view)
        run.retell(f"{shape} have committed steps 2 and 4, and rank {rank} does not see {lacks.replace('-', ' ')} yet")
        with run.world(shape, seed=_OTHER, views={rank: view.path}) as again:
            _expect_agreement(run, again, must_land=what.has_shards and rank != 0)


def _expect_agreement(run: Scenario, world: World, must_land: bool) -> None:
    found = world.load_outcomes()
    landed = {_landing(outcome) for outcome in found}
    run.expect(
        "resume.agreement",
        len(landed) == 1 and not (must_land and landed == {"an error"}),
        expected="all ranks to land on the same step" + ("" if must_land else ", or an error on all of them"),
        seen="; ".join(f"rank {outcome.rank}: {_landing(outcome)}" for outcome in found),
    )
    if found[0].fault is None and not found[0].value.is_fresh:
        run.expect_state("resume.agreement", world, world.step, kinds=STATE)


@judges("resume.peek-agrees", needs=("distributed", "pointer"))
def test_every_rank_peeks_at_the_step_that_all_of_them_land_on(run: Scenario, fewest: int, tmp_path: Path) -> None:
    shape = Shape(fewest)
    run.world(shape).commit_at(2, 4)
    view = replace(run.folder, path=tmp_path / "view")
    run.folder.copy_to(view.path)
    view.point_at(view.of(2).name)
    world = run.world(shape, seed=_OTHER, views={shape.last: view.path})
    world.tell("peeks on every rank")
    peeked = world.ranks.together("peek", path=None)
    run.expect("resume.peek-agrees", peeked == [4] * fewest, expected="every rank to peek at step 4", seen=peeked)
    run.expect_landing("resume.peek-agrees", world.load(), {4}, "rank 0 sees that it is the latest")


@judges("resume.agreement-across-stages")
def test_stages_land_on_the_newest_step_that_all_of_them_have(run: Scenario, ranks: int, tmp_path: Path) -> None:
    shape = staged(ranks)
    run.world(shape).commit_at(2, 4)
    run.folder.copy_to(tmp_path / "whole")
    for torn in range(2):
        run.folder.become(tmp_path / "whole")
        for name in run.folder.layout.required_of_stage:
            (run.folder.of(4) / run.folder.stage(torn) / name).unlink()
        run.retell(f"{shape} have committed steps 2 and 4; 4 is torn in stage {torn} alone, and latest is at it")
        with run.world(shape, seed=_OTHER) as again:
            landed = again.load()
            run.expect_landing("resume.agreement-across-stages", landed, {2}, f"stage {torn} has no complete step 4")
            run.expect_state("resume.agreement-across-stages", again, 2, kinds=STATE)


# -- refusals -----------------------------------------------------------------


@judges("resume.error-everywhere", "resume.all-or-nothing", needs=("explicit",))
def test_a_named_path_that_is_missing_is_an_error_on_every_rank(run: Scenario, ranks: int) -> None:
    run.world(Shape(ranks)).commit_at(2)
    world = _trained(run, Shape(ranks))
    _expect_refused(run, world, run.folder.of(7), f"that {run.folder.of(7).name} does not exist")


@judges("resume.error-everywhere", "resume.all-or-nothing", needs=("explicit", "layout"))
def test_a_damaged_file_is_an_error_on_every_rank(run: Scenario, ranks: int) -> None:
    shape = Shape(ranks)
    run.world(shape).commit_at(2)
    step, world = run.folder.of(2), _trained(run, shape)
    for path in (step / "train_state.pt", step / ".metadata", _shards(step)[-1]):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        run.judge.tell(f"of the files of step 2, {path.name} is cut short")
        _expect_refused(run, world, step, f"that {path.name} is damaged")
        path.write_bytes(content)


@judges("resume.damage", "resume.all-or-nothing", needs=("explicit", "distributed"))
def test_a_flipped_bit_in_what_any_rank_reads_is_an_error_that_names_the_file(run: Scenario, fewest: int) -> None:
    saved = run.world(Shape(fewest))
    saved.commit_at(2)
    step, world = run.folder.of(2), _trained(run, Shape(fewest))
    for rank, weights in enumerate(saved.ranks.together("weights")):
        path, place = _find(step, bytes.fromhex(weights))
        whole = path.read_bytes()
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        run.judge.tell(f"one bit of the weights of rank {rank}, in {path.name} of step 2, is flipped")
        _expect_refused(run, world, step, f"that {path.name} is damaged", "resume.damage", naming=path.name)
        path.write_bytes(whole)
    run.judge.tell("all bits are as they were")
    run.expect_landing("resume.damage", world.load(step), {2}, "nothing is damaged")


@judges("resume.error-everywhere", "resume.all-or-nothing", needs=("explicit", "layout", "trust"))
def test_a_refused_pickle_is_an_error_on_every_rank(run: Scenario, ranks: int) -> None:
    if os.getuid() != 0:
        raise Unreached("to give a file another owner takes root")
    run.world(Shape(ranks)).commit_at(2)
    os.chown(run.folder.of(2) / "train_state.pt", 12345, 12345)
    run.judge.tell("train_state.pt of step 2 belongs to another owner")
    world = _trained(run, Shape(ranks))
    _expect_refused(run, world, run.folder.of(2), "that train_state.pt is not trusted")


@judges(
    "trust.every-pickle",
    "resume.error-everywhere",
    "resume.all-or-nothing",
    needs=("explicit", "layout", "distributed", "pipeline"),
)
def test_the_marker_of_each_stage_is_asked_about_by_whoever_reads_it(run: Scenario, fewest: int) -> None:
    if os.getuid() != 0:
        raise Unreached("to give a file another owner takes root")
    shape = staged(fewest)
    run.world(shape).commit_at(2)
    world = _trained(run, shape)
    for stage in range(2):
        name = f"{run.folder.stage(stage)}/.metadata"
        os.chown(run.folder.of(2) / name, 12345, 12345)
        run.judge.tell(f"{name} of step 2 belongs to another owner, and nothing else does")
        _expect_refused(run, world, run.folder.of(2), f"that {name} is not trusted", "trust.every-pickle")
        os.chown(run.folder.of(2) / name, os.geteuid(), -1)
    run.judge.tell("all belongs to the reader again")
    run.expect_landing("trust.every-pickle", world.load(run.folder.of(2)), {2}, "each marker is its reader's")


@judges("resume.error-everywhere", "resume.all-or-nothing", needs=("explicit", "layout"))
def test_a_shard_that_one_rank_does_not_see_is_an_error_on_every_rank(
    run: Scenario, ranks: int, tmp_path: Path
) -> None:
    shape = Shape(ranks)
    run.world(shape).commit_at(2)
    view = tmp_path / "view"
    run.folder.copy_to(view)
    for shard in _shards(view / run.folder.of(2).name):
        shard.unlink()
    world = _trained(run, shape, views={shape.last: view})
    _expect_refused(run, world, run.folder.of(2), f"that rank {shape.last} finds no shards")


# -- other worlds -------------------------------------------------------------


@judges("resume.reshard", "resume.continue")
def test_a_run_resumes_on_more_ranks_and_on_fewer(run: Scenario, ranks: int) -> None:
    _expect_to_move(run, ranks, "sharded")


@judges("resume.reshard", "resume.continue")
def test_a_tensor_parallel_run_resumes_on_more_ranks_and_on_fewer(run: Scenario, fewest: int) -> None:
    _expect_to_move(run, fewest, "tensor")


def _expect_to_move(run: Scenario, ranks: int, kind: str) -> None:
    saved = run.world(Shape(ranks, kind))
    saved.commit_at(2)
    full = saved.whole()[0]
    saved.kill()
    sizes = [size for size in (1, 2, 4) if size != ranks]
    for number, size in enumerate(sizes):
        again = run.world(Shape(size, kind), seed=_OTHER)
        _expect_full(run, again, [full] * size, 2 + number)
        again.commit_at(3 + number)
        full = again.whole()[0]
        again.kill()
    last = run.world(Shape(ranks, kind), seed=_OTHER)
    run.expect_landing("resume.continue", last.load(), {2 + len(sizes)}, "the run went on with other numbers of ranks")


@judges("resume.reshard")
def test_a_run_resumes_with_its_work_divided_otherwise(run: Scenario, ranks: int) -> None:
    saved = run.world(Shape(ranks, "sharded"))
    saved.commit_at(2)
    full = saved.whole()[0]
    _expect_full(run, run.world(Shape(ranks, "replicated"), seed=_OTHER), [full] * ranks, 2)


@judges("resume.reshard", needs=("pipeline",))
def test_a_pipeline_resumes_with_other_numbers_of_replicas(run: Scenario, ranks: int) -> None:
    shape = staged(ranks)
    saved = run.world(shape)
    saved.commit_at(2)
    whole = saved.whole()
    by_stage = [whole[shape.members(stage)[0]] for stage in range(2)]
    for other in [Shape(size, stages=2) for size in (2, 4) if size != ranks]:
        again = run.world(other, seed=_OTHER)
        expected = [by_stage[rank // (other.ranks // 2)] for rank in range(other.ranks)]
        _expect_full(run, again, expected, 2)


@judges("resume.stages-fit", "resume.all-or-nothing")
def test_a_checkpoint_whose_stages_are_not_those_of_the_run_is_refused_by_all(run: Scenario, ranks: int) -> None:
    shape, flat = staged(ranks), Shape(ranks)
    run.world(shape).commit_at(2, 4, 6, 8)
    run.world(flat, seed=1).commit_at(1)
    first, second, third = (run.folder.stage(number) for number in range(3))
    shutil.rmtree(run.folder.of(4) / second)
    shutil.rmtree(run.folder.of(6) / second)
    shutil.copytree(run.folder.of(2) / second, run.folder.of(6) / second)
    shutil.copytree(run.folder.of(8) / second, run.folder.of(8) / third)
    run.judge.tell(f"step 4 loses {second}; {second} of step 6 is replaced by that of step 2")
    run.judge.tell(f"step 8 has {third} beside the others; step 1 has no stages")
    clause, world = "resume.stages-fit", _trained(run, shape)
    _expect_refused(run, world, run.folder.of(4), f"that {second} is missing", clause)
    _expect_refused(run, world, run.folder.of(6), f"that {second} is of another step than {first}", clause)
    _expect_refused(run, world, run.folder.of(8), f"that there is {third}, and the run has two stages", clause)
    _expect_refused(run, world, run.folder.of(1), "that the checkpoint has no stages", clause)
    flat_world = _trained(run, flat)
    _expect_refused(run, flat_world, run.folder.of(2), "that the checkpoint has stages, and the run none", clause)


# -- looking ------------------------------------------------------------------


def _shards(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*.distcp") if file.is_file())


def _find(path: Path, content: bytes) -> tuple[Path, int]:
    """The file below the path that holds these bytes, and the place of one in their middle."""
    for file in sorted(found for found in path.rglob("*") if found.is_file()):
        if content and (place := file.read_bytes().find(content)) >= 0:
            return file, place + len(content) // 2
    raise Unreached("the weights that a rank holds are in no file as they are in memory")


def _landing(outcome: Outcome) -> str:
    if outcome.fault is not None:
        return "an error"
    return "fresh" if outcome.value.is_fresh else f"step {outcome.value.step}"


def _trained(run: Scenario, shape: Shape, views: dict[int, Path] | None = None) -> World:
    """A run with state of its own, which a refused load has to leave alone.

    Groups of processes wait far longer than the suite does: a rank that is
    left to its timeout is caught as a hang.
    """
    world = run.world(shape, seed=_OTHER, views=views)
    world.train_to(1)
    return world


def _expect_refused(
    run: Scenario, world: World, path: Path, what: str, clause: str = "resume.error-everywhere", naming: str = ""
) -> None:
    """A load of this path raises on every rank, with this name, and leaves all of them as they were."""
    before = world.digest()
    found = world.load_outcomes(path, parts=["scheduler"])
    run.expect(
        clause,
        all(outcome.fault is not None and naming in str(outcome.fault) for outcome in found),
        expected=f"an error on every rank, {what}",
        seen="; ".join(f"rank {outcome.rank}: {_landing(outcome)}" for outcome in found),
        detail="\n".join(str(outcome.fault) for outcome in found if outcome.fault is not None),
    )
    _expect_untouched(run, world, before)


def _expect_untouched(run: Scenario, world: World, before: dict[str, str]) -> None:
    what = "every rank's state before the refused load"
    run.expect_same("resume.all-or-nothing", world.digest(), before, _REFUSABLE, what)


def _expect_full(run: Scenario, world: World, full: list[dict[str, str]], step: int) -> None:
    """Every rank has these full values, however the world divides them."""
    run.expect_landing("resume.reshard", world.load(), {step})
    pairs = zip(world.whole(), full, strict=True)
    differing = sorted({name for mine, wanted in pairs for name in wanted if mine.get(name) != wanted[name]})
    run.expect(
        "resume.reshard",
        not differing and all(full),
        expected=f"the full values that were saved ({len(full[0])} tensors), on each of {world.shape.ranks} ranks",
        seen=f"{len(differing)} differ: {differing[:6]}",
    )


@judges("resume.rank-values")
def test_each_rank_gets_its_own_statistics_back(run: Scenario, fewest: int) -> None:
    """A buffer and extra state of what each rank has seen, in a model that all of them have."""
    shape = Shape(fewest, "replicated", has_own=True)
    for mode in dict.fromkeys((run.mode, run.background_mode)):
        world = run.world(shape, mode=mode)
        world.train_to(3)
        try:
            world.commit()
        except OnRank as refusal:
            named = refusal.is_refusal and any(name in str(refusal) for name in ("mean", "_extra_state"))
            run.expect("resume.rank-values", named, expected="a refusal that names one", seen=str(refusal))
            return
        world.kill()
        again = run.world(shape, mode=mode, seed=_OTHER)
        run.expect_landing("resume.rank-values", again.load(), {3}, "its save was completed")
        run.expect_state("resume.rank-values", again, 3, kinds=STATE)
        if run.has("rng", "dataloader"):
            losses = again.train_to(5)
            expected = run.timeline(shape=shape).losses_by_rank(3, 5)
            run.expect("resume.rank-values", losses == expected, expected=f"the losses {expected}", seen=f"{losses}")
        again.kill()
