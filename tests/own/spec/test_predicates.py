"""What holds of the predicates for all arguments, beyond their examples."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge_spec import commit, freeze, layout, resume, retention, schedule, trust

settings.register_profile("spec", derandomize=True, deadline=None, database=None)
repeatable = settings(settings.get_profile("spec"))

steps = st.integers(0, 12)
sets = st.frozensets(steps)
limits = st.integers(-1, 6)
entries = st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()))
windows = st.none() | st.builds(schedule.Window, steps, steps, sets)


@st.composite
def folders(draw: st.DrawFn) -> retention.Folder:
    complete = draw(sets)
    return retention.Folder(
        complete=complete,
        torn=draw(sets) - complete,
        milestones=draw(sets),
        latest=draw(st.none() | steps),
        in_flight=draw(st.frozensets(steps, max_size=1)),
        committed=draw(st.none() | steps),
        unclassified=complete & draw(sets),
    )


@st.composite
def forward_runs(draw: st.DrawFn) -> list[commit.Call]:
    calls: list[commit.Call] = []
    for step in sorted(draw(sets)):
        calls.append(commit.Save(step))
        if draw(st.booleans()):
            calls.append(commit.Wait())
    return calls


# -- schedule -----------------------------------------------------------------


@repeatable
@given(steps, st.integers(1, 9), windows)
def test_inside_a_window_exactly_the_milestones_are_saved(
    step: int, interval: int, window: schedule.Window | None
) -> None:
    if window is not None and step in window:
        assert schedule.should_save(step, interval, window) == schedule.is_milestone(step, window)
    else:
        assert not schedule.is_milestone(step, window)
        assert schedule.should_save(step, interval, window) == schedule.should_save(step, interval)


@repeatable
@given(steps, st.integers(0, 600))
def test_power2_begins_at_start_and_doubles_its_distance(start: int, length: int) -> None:
    first, *rest = sorted(schedule.power2(start, start + length))
    assert first == start
    assert [step - start for step in rest] == [2**k for k in range(length.bit_length())]


# -- layout -------------------------------------------------------------------


@repeatable
@given(st.text() | st.from_regex(r"step_[0-9]+.?", fullmatch=True))
def test_a_step_has_exactly_one_name(name: str) -> None:
    step = layout.step_of(name)
    assert step is None or name == f"step_{step}"
    assert all(layout.step_of(f"step_{number}") == number for number in range(3))


@repeatable
@given(st.none() | st.integers(1, 3), st.data())
def test_every_required_file_is_required(stages: int | None, data: st.DataObject) -> None:
    required = layout.required(stages)
    lost = data.draw(st.sampled_from(required))
    assert layout.is_complete(required, stages)
    assert layout.missing(set(required) - {lost}, stages) == (lost,)


# -- commit -------------------------------------------------------------------


@repeatable
@given(forward_runs(), st.booleans())
def test_the_pointer_is_never_behind_what_must_be_committed(calls: list[commit.Call], background: bool) -> None:
    committed = commit.must_be_committed(calls, background)
    assert all((latest or 0) >= max(committed, default=0) for latest in commit.may_be_latest(calls, background))


@repeatable
@given(forward_runs())
def test_after_a_wait_an_asynchronous_run_has_committed_what_a_synchronous_one_has(calls: list[commit.Call]) -> None:
    calls = [*calls, commit.Wait()]
    assert commit.must_be_committed(calls, background=True) == commit.must_be_committed(calls, background=False)
    assert commit.may_be_latest(calls, background=True) == commit.may_be_latest(calls, background=False)


@repeatable
@given(st.integers(0, 5), st.booleans())
def test_a_failure_followed_by_a_wait_is_raised_exactly_once(position: int, background: bool) -> None:
    calls: list[commit.Call] = [commit.Save(step, fails=step == position) for step in range(6)]
    assert len(commit.must_raise([*calls, commit.Wait()], background)) == 1
    assert position not in commit.must_be_committed([*calls, commit.Wait()], background)


@pytest.mark.parametrize("between", [[], [commit.Wait()]], ids=["nothing", "a-wait"])
def test_two_failing_saves_in_a_row_are_not_asked_about(between: list[commit.Call]) -> None:
    calls = [commit.Save(0), commit.Save(1, fails=True), *between, commit.Save(2, fails=True), commit.Wait()]
    if between:
        assert commit.must_raise(calls, background=True) == (2, 4)
    else:
        with pytest.raises(AssertionError, match=r"^two failing saves in a row$"):
            commit.must_raise(calls, background=True)


# -- retention ----------------------------------------------------------------


@repeatable
@given(folders(), limits)
def test_must_keep_lies_inside_may_keep(folder: retention.Folder, keep_last_n: int) -> None:
    assert retention.must_keep(folder, keep_last_n) <= retention.may_keep(folder, keep_last_n) <= folder.standing


@repeatable
@given(folders(), limits)
def test_what_survives_at_level_strict_is_allowed_at_level_core(folder: retention.Folder, keep_last_n: int) -> None:
    survivors = retention.survivors(folder, keep_last_n)
    assert folder.complete & retention.must_keep(folder, keep_last_n) <= survivors
    assert survivors <= retention.may_keep(folder, keep_last_n)


@repeatable
@given(folders(), st.integers(1, 6))
def test_a_manager_that_counts_every_directory_is_allowed_at_level_core(
    folder: retention.Folder, keep_last_n: int
) -> None:
    kept = folder.standing & (retention.newest(folder.standing, keep_last_n) | folder.milestones | folder.protected)
    if folder.committed is not None:
        assert retention.must_keep(folder, keep_last_n) <= kept
        assert folder.complete & kept <= retention.may_keep(folder, keep_last_n)


@repeatable
@given(folders(), st.integers(1, 6))
def test_a_higher_limit_never_keeps_less(folder: retention.Folder, keep_last_n: int) -> None:
    assert retention.must_keep(folder, keep_last_n) <= retention.must_keep(folder, keep_last_n + 1)
    assert retention.may_keep(folder, keep_last_n) <= retention.may_keep(folder, keep_last_n + 1)


ONE = retention.Room(entries=5, size_bytes=1000)
"""A complete checkpoint, beside which there is something else."""


@pytest.mark.parametrize(
    ("torn", "complete", "may"),
    [
        ({5}, set(), True),
        ({0}, set(), True),
        ({1, 5}, set(), False),
        ({0, 1}, set(), False),
        ({8}, {4, 6}, True),
        ({8, 9}, {4, 6}, False),
        ({2}, {4, 6}, True),
        ({2, 5}, {4, 6}, False),
        ({2, 8}, {4, 6}, True),
        ({2, 5, 8}, {4, 6}, False),
    ],
)
def test_one_save_and_one_deletion_may_be_torn(torn: set[int], complete: set[int], may: bool) -> None:
    assert retention.may_stand_beside(torn, complete, retention.Room(9, 1900), ONE) == may


@pytest.mark.parametrize(
    ("entries", "size_bytes", "may"), [(18, 3000, True), (19, 3000, False), (18, 3001, False), (0, 0, True)]
)
def test_beside_complete_checkpoints_there_is_room_for_three_and_three_small_files(
    entries: int, size_bytes: int, may: bool
) -> None:
    assert retention.may_stand_beside((), {4}, retention.Room(entries, size_bytes), ONE) == may


# -- resume -------------------------------------------------------------------


@repeatable
@given(sets, st.none() | steps)
def test_an_auto_resume_starts_fresh_only_if_nothing_is_complete(complete: frozenset[int], latest: int | None) -> None:
    landings = resume.may_land_on(complete, latest)
    assert landings <= complete if complete else landings == {None}


@repeatable
@given(st.none() | steps, st.none() | steps)
def test_after_a_kill_the_pointer_alone_decides(acknowledged: int | None, in_flight: int | None) -> None:
    whole = frozenset(step for step in (acknowledged, in_flight) if step is not None)
    for latest in (acknowledged, in_flight):
        assert resume.may_land_on(whole, latest) <= resume.after_kill(acknowledged, in_flight)


# -- freeze -------------------------------------------------------------------


@repeatable
@given(entries, st.randoms(use_true_random=False))
def test_the_canonical_form_does_not_depend_on_order_or_repetition(
    specs: list[freeze.Entry], shuffler: random.Random
) -> None:
    shuffled = specs * 2
    shuffler.shuffle(shuffled)
    assert freeze.canonical(shuffled) == freeze.canonical(specs)


@repeatable
@given(entries, entries)
def test_canonical_lists_mismatch_exactly_when_their_intersections_differ(
    saved: list[freeze.Entry], expected: list[freeze.Entry]
) -> None:
    seen = freeze.Comparison(freeze.canonical(saved), freeze.canonical(expected))
    cut_saved, cut_expected = freeze.intersection(seen.saved, seen.expected)
    assert seen.is_mismatch == (cut_saved != cut_expected)
    assert not (seen.is_mismatch and seen.has_zero_overlap)


@repeatable
@given(entries, st.dictionaries(steps, entries), steps)
def test_the_list_in_force_does_not_depend_on_the_order_of_the_stages(
    base: list[freeze.Entry], stages: dict[int, list[freeze.Entry]], step: int
) -> None:
    schedule_of_stages = list(stages.items())
    in_force = freeze.effective(step, base, schedule_of_stages)
    assert in_force == freeze.effective(step, base, schedule_of_stages[::-1])
    assert len(in_force) == len(dict(in_force))


# -- trust --------------------------------------------------------------------


@repeatable
@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 0o7777))
def test_a_pickle_is_loaded_without_a_warning_only_if_nobody_else_could_have_written_it(
    owner: int, reader: int, mode: int
) -> None:
    is_silent = not trust.judge_pickle(owner, reader, mode)
    assert is_silent == (owner == reader and mode & 0o020 == 0 and mode & 0o002 == 0)
