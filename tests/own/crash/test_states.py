"""The states that are walked through are those that the specification's rules allow, on random traces."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge_conformance.disks.states import State, States, Walk, cuts
from forge_conformance.watch.facts import Memory, answer
from forge_conformance.watch.trace import Call, Disk, Inode, Node, Trace
from forge_spec.disk import (
    ROOT,
    STORAGES,
    Bytes,
    Close,
    Effect,
    Entries,
    Mark,
    Size,
    Storage,
    Sync,
    may_hold,
    may_lose,
    safe_content,
    safe_entries,
    versions,
)

DIRECTORIES = (ROOT, 2, 3)
FILES = (4, 5)
NAMES = st.sampled_from("abc")
CALL = Call(0, 1, True, "a call")


def rename(source: tuple[int, str], target: tuple[int, str], moved: int) -> Effect:
    return Entries(((*source, None), (*target, moved)))


EFFECTS: st.SearchStrategy[Effect] = st.one_of(
    st.builds(
        lambda d, n, i: Entries(((d, n, i),)), st.sampled_from(DIRECTORIES), NAMES, st.sampled_from((2, 3, *FILES))
    ),
    st.builds(lambda d, n: Entries(((d, n, None),)), st.sampled_from(DIRECTORIES), NAMES),
    st.builds(
        rename,
        st.tuples(st.sampled_from(DIRECTORIES), NAMES),
        st.tuples(st.sampled_from(DIRECTORIES), NAMES),
        st.sampled_from(FILES),
    ),
    st.builds(Bytes, st.sampled_from(FILES), st.sampled_from((0, 3, 5000)), st.sampled_from((b"x", b"y" * 6000))),
    st.builds(Size, st.sampled_from(FILES), st.sampled_from((0, 4096, 7000))),
    st.builds(Sync, st.sampled_from((None, *DIRECTORIES, *FILES)), st.booleans()),
    st.builds(Close, st.sampled_from(FILES)),
    st.builds(Mark, st.just("begins"), st.integers(0, 9)),
)


def trace_of(effects: Sequence[Effect]) -> Trace:
    kinds = dict.fromkeys(DIRECTORIES, "d") | dict.fromkeys(FILES, "f")
    inodes = {number: Inode(kind, 0o644, -1) for number, kind in kinds.items()}
    return Trace(tuple(effects), tuple(None if isinstance(effect, Mark) else CALL for effect in effects), inodes)


TRACES = st.lists(EFFECTS, max_size=12).map(trace_of)


@pytest.mark.parametrize("storage", STORAGES.values(), ids=STORAGES)
@settings(max_examples=50, deadline=None, database=None, derandomize=True)
@given(trace=TRACES)
def test_what_the_walk_takes_for_safe_is_what_the_specification_says(storage: Storage, trace: Trace) -> None:
    for cut in range(len(trace.effects) + 1):
        walk = Walk(trace, storage)
        walk.go_to(cut)
        entries = {at for at, effect in enumerate(trace.effects[:cut]) if isinstance(effect, Entries)}
        assert set(walk.unsafe_names) == entries - safe_entries(trace.effects, cut, storage)
        by_rule = safe_content(trace.effects, cut, storage)
        safe = {number: sum(place < by_rule[number] for place in file.places) for number, file in walk.files.items()}
        assert {number: file.safe for number, file in walk.files.items()} == safe


@pytest.mark.parametrize("storage", STORAGES.values(), ids=STORAGES)
@settings(max_examples=30, deadline=None, database=None, derandomize=True)
@given(trace=TRACES)
def test_every_state_is_allowed_by_the_specification(storage: Storage, trace: Trace) -> None:
    states = States(trace, storage, coalesce=False)
    for state in states:
        assert may_lose(trace.effects, state.cut, state.lost, storage)
        disk = states.disk(state)
        for path, number in states.paths(state).items():
            if trace.inodes[number].kind == "f":
                allowed = versions(trace.effects, state.cut, number, b"", storage)
                assert may_hold(disk.nodes[path].content, allowed, storage)


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(trace=TRACES)
def test_without_a_storage_every_state_is_the_disk_of_a_kill(trace: Trace) -> None:
    states = States(trace, None, coalesce=False)
    for state in states:
        assert not state.is_power_cut
        assert states.disk(state) == trace.disk(state.cut)


def test_of_a_burst_of_writes_the_ends_and_the_middle_are_entered() -> None:
    burst = [Bytes(4, at, b"x") for at in range(9)]
    trace = trace_of([Entries(((ROOT, "a", 4),)), *burst, Sync(4), Mark("begins", 0)])
    assert cuts(trace) == [0, 1, 2, 6, 10, 12]
    assert cuts(trace, coalesce=False) == [*range(11), 12]


def test_a_lost_rename_leaves_the_old_name() -> None:
    trace = trace_of([Entries(((ROOT, "a", 4),)), Sync(None), rename((ROOT, "a"), (ROOT, "b"), 4)])
    states = States(trace, STORAGES["ext4"])
    found = {tuple(states.disk(state).nodes) for state in states if state.cut == 3}
    assert found == {("b",), ("a",)}


def test_a_file_may_be_empty_after_its_rename_on_ext4_and_full_of_zeros_where_nothing_is_promised() -> None:
    trace = trace_of([Entries(((ROOT, "a", 4),)), Bytes(4, 0, b"data"), rename((ROOT, "a"), (ROOT, "b"), 4)])

    def contents(storage: str) -> set[bytes]:
        states = States(trace, STORAGES[storage])
        disks = [states.disk(state) for state in states if state.cut == 3]
        return {disk.nodes["b"].content for disk in disks if "b" in disk.nodes}

    assert contents("ext4") == {b"", b"data"}
    assert contents("posix-strict") == {b"", b"data", b"\0\0\0\0"}


def test_equal_disks_have_one_identity_however_they_came_about() -> None:
    trace = trace_of([Entries(((ROOT, "a", 4),)), Entries(((ROOT, "b", 5),)), Entries(((ROOT, "b", None),))])
    states = States(trace, None)
    identities = [states.identity(states.disk(state)) for state in states]
    assert identities[1] == identities[3]
    assert len(set(identities)) == 3


# -- sharing what came of a disk -------------------------------------------------------


def disk(**contents: str) -> Disk:
    return Disk({path: Node("f", 0o644, 0, content.encode()) for path, content in contents.items()})


LEARNT = [
    (("content", "a"), disk(a="1", b="x"), disk(a="1", b="y"), disk(a="2", b="x")),
    (("kind", "c"), disk(a="1"), disk(a="2"), disk(a="1", c="")),
    (("stat", "a"), disk(a="1"), disk(a="2"), disk(a="22")),
    (("names", ""), disk(a="1"), disk(a="2"), disk(a="1", b="")),
]


@pytest.mark.parametrize(("fact", "tried", "alike", "other"), LEARNT, ids=[learnt[0][0] for learnt in LEARNT])
def test_a_disk_shares_an_outcome_if_and_only_if_the_facts_are_equal(
    fact: tuple[str, str], tried: Disk, alike: Disk, other: Disk
) -> None:
    memory: Memory[str] = Memory()
    memory.learn(tried, [fact], "outcome")
    assert answer(tried, fact) == answer(alike, fact) != answer(other, fact)
    assert (memory.find(alike), memory.find(other)) == ("outcome", None)


def test_an_outcome_that_learnt_more_is_not_shared_on_less() -> None:
    memory: Memory[str] = Memory()
    memory.learn(disk(a="1", b="1"), [("content", "a"), ("content", "b")], "both")
    memory.learn(disk(a="2"), [("content", "a")], "one")
    found: Callable[[Disk], str | None] = memory.find
    assert [found(disk(a="1", b="1")), found(disk(a="1", b="2")), found(disk(a="2", b="9"))] == ["both", None, "one"]
    assert State(3).is_power_cut is False
