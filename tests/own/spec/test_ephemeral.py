"""What holds of the predicates of the chapter `ephemeral` for all arguments, beyond their examples."""

from hypothesis import given, settings
from hypothesis import strategies as st

from forge_spec import ephemeral
from forge_spec.ephemeral import EPHEMERAL, PERMANENT, Plan

settings.register_profile("spec", derandomize=True, deadline=None, database=None)
repeatable = settings(settings.get_profile("spec"))

steps = st.integers(0, 12)
intervals = st.none() | st.integers(1, 6)
kinds = st.sampled_from((PERMANENT, EPHEMERAL))
folders = st.dictionaries(steps, kinds, min_size=1)
limits = st.none() | st.integers(1, 5)
plans = st.builds(
    Plan,
    intervals,
    intervals,
    intervals,
    st.frozensets(steps, max_size=3),
    limits,
    st.sampled_from(ephemeral.STRATEGIES),
)


@repeatable
@given(plans, st.frozensets(steps))
def test_neither_a_block_nor_a_cooldown_moves_a_permanent_save(plan: Plan, blocked: frozenset[int]) -> None:
    made = ephemeral.saves(plan, 1, 24, last_saved=0, blocked=blocked)
    permanent = {step for step, kind in made.items() if kind == PERMANENT}
    assert permanent == {step for step in range(1, 25) if ephemeral.is_permanent_step(step, plan)}


@repeatable
@given(plans, st.frozensets(steps))
def test_an_ephemeral_save_keeps_its_distance_and_is_never_blocked(plan: Plan, blocked: frozenset[int]) -> None:
    made = ephemeral.saves(plan, 1, 24, last_saved=0, blocked=blocked)
    for before, step in zip([0, *made], made, strict=False):
        if made[step] == EPHEMERAL:
            assert step not in blocked
            assert plan.ephemeral_cooldown is None or step - before >= plan.ephemeral_cooldown


@repeatable
@given(folders, st.data(), limits)
def test_a_save_replaces_only_older_ones_of_its_kind(
    standing: dict[int, str], data: st.DataObject, limit: int | None
) -> None:
    saved = data.draw(st.sampled_from(sorted(standing)))
    gone = ephemeral.leaving(standing, saved, limit)
    assert all(step < saved and standing[step] == standing[saved] for step in gone)
    alike = {step for step in standing if step <= saved and standing[step] == standing[saved]}
    kept = 1 if standing[saved] == EPHEMERAL else limit
    assert len(alike - gone) == (len(alike) if kept is None else min(kept, len(alike)))
    assert all(old < new for old in gone for new in alike - gone)


@repeatable
@given(st.dictionaries(steps, st.none() | kinds), steps, plans)
def test_nothing_that_is_spared_or_recorded_as_permanent_is_collected(
    standing: dict[int, str | None], own_step: int, plan: Plan
) -> None:
    collected = ephemeral.collected(standing, own_step, plan)
    assert collected <= standing.keys()
    assert not collected & ephemeral.spared(standing, own_step, plan)
    assert PERMANENT not in {standing[step] for step in collected}
    assert plan.remove != "never" or not collected


@repeatable
@given(plans)
def test_without_a_limit_every_permanent_save_stands_and_of_the_ephemeral_ones_the_last(plan: Plan) -> None:
    made = ephemeral.saves(plan, 1, 24)
    left = ephemeral.may_stand(made, made, None)
    between = [step for step, kind in made.items() if kind == EPHEMERAL]
    assert left == {step for step, kind in made.items() if kind == PERMANENT} | set(between[-1:])
