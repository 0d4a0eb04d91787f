"""Several ranks under the explorer: what is found is what another order of the same steps leaves."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from forge_conformance.disks.explorer import Effort
from forge_conformance.disks.job import Job, explore
from forge_conformance.disks.replay import outcome
from forge_conformance.disks.result import Result
from forge_conformance.disks.states import KILL
from forge_conformance.runs.workplace import Manager, Place, workplace
from forge_fixtures import managers

from .conftest import needs_recorder

pytestmark = needs_recorder
TOGETHER = Path(managers.__file__).with_name("together.py")


@contextmanager
def place_of(name: str) -> Iterator[Place]:
    manager = Manager(f"{TOGETHER}:{name}")
    with workplace(manager, with_ranks=True) as place:
        yield place


def explored(name: str, scenario: str = "ranks", goes_on: int = 0) -> Result:
    with place_of(name) as place:
        return explore(Job(scenario, "sync", (KILL,), Effort(goes_on=goes_on, deaths_again=0)), place)


def test_ranks_that_wait_for_each_other_leave_no_bad_disk_in_any_order() -> None:
    result = explored("Together", goes_on=1)
    assert [one.text for one in result.found] == []
    specials = {one.recorded.special for one in result.explored}
    assert {"", "rank 0 late", "rank 1 late"} <= specials
    orders = {one.recorded.special: [str(call) for call in one.recorded.trace.calls] for one in result.explored}
    # The order that was recorded may by chance be one of the others.
    derived = [tuple(order) for special, order in orders.items() if special]
    assert len(set(derived)) == len(derived), "they are different orders"
    assert len({tuple(sorted(order)) for order in orders.values()}) == 1, "of the same steps"
    assert [one.contradiction for one in result.explored] == [""] * len(result.explored)
    assert all(one.recorded.trace.unseen == () for one in result.explored)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Hasty", {("refused", "resume.after-kill")}), ("Each", {("apart", "resume.agreement")})],
)
def test_a_rank_that_publishes_before_the_others_are_done_is_found_by_letting_them_be_late(
    name: str, expected: set[tuple[str, str]], tmp_path: Path
) -> None:
    result = explored(name)
    found = {(one.verdict.word, one.verdict.clause) for one in result.found}
    assert found == expected, "\n\n".join(one.text for one in result.found)
    assert all("rank 0: renameat2(.partial -> step_" in one.text for one in result.found)
    script = tmp_path / "replay.py"
    script.write_text(result.found[0].replay)
    assert outcome(script, None, timeout_s=120) == result.found[0].verdict.word
    orders = {one.recorded.special: one.totals.bad for one in result.explored}
    assert orders.get("rank 1 late", orders[""]) > 0, f"bad disks by order: {orders}"


LOST = {"LosesStreams": ("resume.rng", "rng/rank 1 "), "LosesPosition": ("resume.dataloader", "loader/rank 1 ")}


@pytest.mark.parametrize("scenario", ["ranks", "stages"])
def test_a_manager_that_brings_the_own_state_of_each_rank_back_has_no_failure(scenario: str) -> None:
    result = explored("Complete", scenario, goes_on=1)
    assert (result.refusal, [one.text for one in result.found]) == ("", [])


@pytest.mark.parametrize(("name", "scenario"), [("LosesStreams", "ranks"), ("LosesPosition", "stages")])
def test_what_one_rank_never_gets_back_is_told_once_and_is_not_the_fault_of_a_death(name: str, scenario: str) -> None:
    clause, lost = LOST[name]
    result = explored(name, scenario, goes_on=1)
    assert [(one.verdict.word, one.verdict.clause) for one in result.found] == [("changed", clause)]
    (changed,) = result.found
    assert lost in changed.verdict.seen
    assert "rank 0" not in changed.verdict.seen
    assert {one.totals.bad for one in result.explored} == {0}
