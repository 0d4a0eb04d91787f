"""Folders that several ranks of others wrote: all ranks come back from each at the one step that is allowed.

Those without stages are loaded on every number of ranks.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from forge_conformance.judging.judge import Unreached, judges
from forge_conformance.runs.cases import Case, cases, differs
from forge_conformance.runs.group import Shape, staged
from forge_conformance.runs.scenario import Scenario

_OTHER = 9
"""The seed of runs that have yet to resume: whatever is right afterwards was loaded."""


def _on_any_number(case: Case) -> Callable[[Scenario, int, Path], None]:
    @judges(*case.clauses, needs=case.needs, layout=case.layout)
    def test(run: Scenario, ranks: int, tmp_path: Path) -> None:
        _judge(run, case, Shape(ranks), tmp_path / "theirs")

    return test


def _in_stages(case: Case) -> Callable[[Scenario, int, Path], None]:
    @judges(*case.clauses, needs=case.needs, layout=case.layout)
    def test(run: Scenario, fewest: int, tmp_path: Path) -> None:
        _judge(run, case, staged(fewest), tmp_path / "theirs")

    return test


globals().update(
    {
        f"test_{case.name.replace('/', '_')}": (_in_stages if case.stages else _on_any_number)(case)
        for case in cases()
        if case.ranks > 1
    }
)


def _judge(run: Scenario, case: Case, shape: Shape, theirs: Path) -> None:
    _require_fit(run, case, shape, theirs)
    case.put_into(run.folder.path)
    run.judge.tell(f"the folder is made that of {case.name}: {case.fields['about']}")
    run.judge.tell(f"it holds: {run.folder}")
    world = run.world(shape, seed=_OTHER)
    run.expect_landing(case.clauses[0], world.load(), {case.lands})
    for rank, seen in enumerate(world.whole()):
        of = f"{case.lands}/pp{rank // (shape.ranks // shape.stages)}" if shape.stages else str(case.lands)
        saved = case.fingerprints(of)
        kinds = {name.partition("/")[0] for name in saved}
        run.expect_same(case.clauses[0], seen, saved, kinds, f"what was saved, on rank {rank}")


def _require_fit(run: Scenario, case: Case, shape: Shape, theirs: Path) -> None:
    """`Unreached` if what the manager itself writes differs inside from what the writers wrote."""
    world = run.world(shape)
    world.commit_at(1)
    world.kill()
    theirs.mkdir()
    whole = replace(case, fields=case.fields | {"then": []})
    whole.put_into(theirs)
    for stage in [f"pp{stage}" for stage in range(shape.stages)] or ["."]:
        reason = differs(run.folder.of(1) / stage, theirs / "step_2" / stage)
        if reason is not None:
            raise Unreached(f"this folder is not of its format: {reason}")
