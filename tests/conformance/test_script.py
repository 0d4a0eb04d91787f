"""Chapter script: a training job is recorded, and restarted from every disk that a death of it can leave.

`forge-conformance script` does the same for any command, without an adapter, and writes a script that replays each bad
disk.
"""

import secrets
import shlex

import pytest

from forge_conformance.disks.states import KILL
from forge_conformance.judging.judge import CannotJudge, Unreached, judges
from forge_conformance.runs.scenario import Scenario
from forge_conformance.scripts.command import Command
from forge_conformance.scripts.judging import Effort, explore
from forge_conformance.scripts.preparation import Wishes, prepare
from forge_conformance.scripts.result import Result
from forge_conformance.scripts.signals import SIGNALS
from forge_conformance.scripts.starts import Stage
from forge_conformance.watch.backends import choose

_OF_KILLS = ("script.starts", "script.keeps-work", "script.same-run", "script.goes-on")
_PATIENCE_S = 600
"""For one kind of death; no verdict depends on it."""
_OF_POWER = ("script.power-loss", "script.acknowledged")


@judges(*_OF_KILLS)
def test_a_job_goes_on_from_every_disk_that_a_kill_leaves(run: Scenario) -> None:
    _expect_to_go_on(run, _OF_KILLS, _explored(run, KILL))


@judges("script.signal")
def test_a_job_that_a_signal_ends_goes_on_from_what_it_left(run: Scenario) -> None:
    _expect_to_go_on(run, ("script.signal",), _explored(run, KILL, *SIGNALS))


@pytest.mark.parametrize("storage", ["ext4", "posix-strict"])
@judges(*_OF_POWER)
def test_a_job_goes_on_from_every_disk_that_a_loss_of_power_leaves(run: Scenario, storage: str) -> None:
    _expect_to_go_on(run, _OF_POWER, _explored(run, KILL, storage))


def _expect_to_go_on(run: Scenario, clauses: tuple[str, ...], result: Result) -> None:
    disks, deaths = (sum(getattr(one.totals, name) for one in result.explored) for name in ("disks", "states"))
    run.judge.tell(f"{result.command} is recorded; {deaths} deaths leave {disks} disks, and it is restarted from each")
    for clause in clauses:
        found = [one for one in result.found if one.clause == clause]
        run.expect(
            clause,
            not found,
            expected=found[0].bad.verdict.expected if found else "",
            seen=f"after {sum(one.bad.states for one in found)} of {deaths} deaths not; after the simplest: "
            f"{found[0].bad.verdict.word}, {found[0].bad.verdict.seen}"
            if found
            else "",
            detail=found[0].text if found else "",
        )


def _believed(result: Result) -> Result:
    """The same; `Unreached` where nothing was found and not all was tried: a pass would then depend on the time."""
    for one in result.explored:
        if one.contradiction:
            raise Unreached(one.contradiction)
        if not result.found and one.is_cut_short:
            raise Unreached(f"not all deaths by {one.storage} could be tried in {_PATIENCE_S} s; try a shorter job")
        if not one.totals.disks:
            raise Unreached(f"no death by {one.storage} left a disk")
    return result


def _explored(run: Scenario, *deaths: str) -> Result:
    recorder = choose(None)
    if recorder.name != "seccomp":
        raise Unreached(f"a job is recorded by seccomp alone, and the recorder that works here is {recorder.name}")
    words = tuple(shlex.split(run.implementation.job))
    stage = Stage(Command(words, words), run.folder.path, secrets.token_hex(8))
    try:
        prepared = prepare(stage, Wishes(), run.judge.tell)
        if not prepared.whole.lines:
            raise Unreached("the job prints no progress lines")
        return _believed(explore(prepared, deaths, Effort(seconds=_PATIENCE_S, grace_s=10)))
    except CannotJudge as reason:
        raise Unreached(str(reason)) from None
    finally:
        stage.close()
