"""Chapter durable: a run is recorded, and the manager resumes from every disk that a loss of power may have left of it.

What is explored here is three scenarios; `forge-conformance crash` does them all,
with every write, and writes a script that replays each bad disk.
"""

import pytest

from forge_conformance.disks.explorer import Effort
from forge_conformance.disks.job import Job, explore
from forge_conformance.disks.result import Result
from forge_conformance.disks.scenarios import SCENARIOS
from forge_conformance.judging.judge import Unreached, judges
from forge_conformance.runs.scenario import Scenario
from forge_conformance.runs.workplace import Manager, Place
from forge_conformance.watch.backends import choose

_EFFORT = Effort(goes_on=5, deaths_again=0)
_STORAGES = ("ext4", "posix-strict", "nfs")


@pytest.mark.parametrize("storage", _STORAGES)
@judges("durable.power-loss", "durable.acknowledged")
def test_a_run_resumes_from_every_disk_that_a_loss_of_power_leaves(run: Scenario, mode: str, storage: str) -> None:
    _expect_to_come_back(run, mode, "steady", storage)


@judges("durable.acknowledged", "durable.power-loss")
def test_a_step_that_is_saved_again_is_not_taken_back_by_a_loss_of_power(run: Scenario, mode: str) -> None:
    _expect_to_come_back(run, mode, "resave", "ext4")


@judges("durable.acknowledged", "durable.power-loss")
def test_a_folder_that_the_manager_made_is_not_taken_back_by_a_loss_of_power(run: Scenario, mode: str) -> None:
    """Only a storage that promises no order between directories can show it."""
    _expect_to_come_back(run, mode, "new-folder", "posix-strict")


def _expect_to_come_back(run: Scenario, mode: str, scenario: str, storage: str) -> None:
    result = _explored(run, mode, scenario, storage)
    disks = sum(explored.totals.disks for explored in result.explored)
    deaths = sum(explored.totals.states for explored in result.explored)
    run.judge.tell(
        f"{SCENARIOS[scenario].says}: recorded in mode {mode}, and {disks} disks are built by the rules of {storage}"
    )
    for clause in ("durable.power-loss", "durable.acknowledged"):
        bad = [found for found in result.found if found.verdict.clause == clause]
        run.expect(
            clause,
            not bad,
            expected=f"to land on {bad[0].verdict.expected}" if bad else "",
            seen=f"after {sum(found.states for found in bad)} of {deaths} deaths it does not; after the simplest: "
            + "; ".join([bad[0].verdict.seen, *bad[0].missing])
            if bad
            else "",
            detail=bad[0].text if bad else "",
        )


@judges("durable.order")
def test_a_checkpoint_is_on_storage_before_it_is_complete_and_complete_before_it_is_named(
    run: Scenario, mode: str
) -> None:
    result = _explored(run, mode, "steady")
    if not result.orders_looked_at:
        raise Unreached("no checkpoint was made complete while the run was recorded")
    run.judge.tell(f"a run of five saves is recorded in mode {mode}")
    run.expect(
        "durable.order",
        not result.disorders,
        expected="everything on storage before what depends on it",
        seen="; ".join(disorder.what for disorder in result.disorders[:3]),
    )


def _explored(run: Scenario, mode: str, scenario: str, *storages: str) -> Result:
    recorder = choose(None)
    if recorder.is_coarse:
        raise Unreached(f"the only recorder that works here is {recorder.says}: {recorder.unseen}")
    place = Place(Manager(run.implementation.name), run.server, run.folder.path, run.kinds(), recorder)
    result = explore(Job(scenario, mode, storages, _EFFORT), place)
    if result.refusal:
        raise Unreached(result.refusal)
    return result
