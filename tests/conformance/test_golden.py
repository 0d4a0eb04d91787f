"""Folders that others wrote: a manager of their layout comes back from each, whole or torn, or refuses it aloud.

There is one test for each case of `fixtures/golden` and `fixtures/torn` that
one process wrote, and each judges the clauses that its `case.json` names.
"""

from collections.abc import Callable
from pathlib import Path

from forge_conformance.judging.judge import Unreached, judges
from forge_conformance.runs.cases import Case, cases, differs
from forge_conformance.runs.hooks import hooked
from forge_conformance.runs.life import Life
from forge_conformance.runs.scenario import Scenario


def _test_of(case: Case) -> Callable[[Scenario, Path], None]:
    @judges(*case.clauses, needs=case.needs, layout=case.layout)
    def test(run: Scenario, tmp_path: Path) -> None:
        require_fit(run, case, tmp_path / "theirs")
        case.put_into(run.folder.path)
        run.judge.tell(f"the folder is made that of {case.name}: {case.fields['about']}")
        run.judge.tell(f"it holds: {run.folder}")
        _judge(run, case)

    return test


globals().update({f"test_{case.name.replace('/', '_')}": _test_of(case) for case in cases() if case.ranks == 1})


def require_fit(run: Scenario, case: Case, theirs: Path) -> None:
    """`Unreached` if what the manager itself writes differs inside from what the writer wrote."""
    if not case.layout.is_dir:
        return
    with _begun(run, case) as life:
        life.commit_at(1)
    theirs.mkdir()
    (case.base or case).put_into(theirs)
    reason = differs(run.folder.of(1), theirs / str(case.fields["load"]["path"] or case.layout.name.format(step=4)))
    if reason is not None:
        raise Unreached(f"this folder is not of its format: {reason}")


def _begun(run: Scenario, case: Case) -> Life:
    """A fresh process of the design that the folder is of; its random state beforehand is that of another run."""
    return hooked(run, seed=999) if "ephemeral" in case.needs else run.start(seed=999)


def _judge(run: Scenario, case: Case) -> None:
    load, clause = case.fields["load"], case.clauses[0]
    path = None if load["path"] is None else run.folder.path / load["path"]
    life = _begun(run, case)
    if load["refuses"] is not None:
        with run.expect_error(clause, naming=[load["refuses"]], doing="a load"):
            life.load(path)
        return
    loaded = life.load(path)
    run.expect_landing(clause, loaded, {case.lands})
    saved = case.fingerprints(str(case.lands or 0))
    kinds = {name.partition("/")[0] for name in saved} & set(run.kinds())
    if saved:
        run.expect_same(case.clauses[-1], life.digest(), saved, kinds, "what was saved")
    life.commit_at(life.step + 1)
    loaded = _begun(run, case).load()
    run.expect_landing(clause, loaded, {life.step}, "the run went on beside what others left")
