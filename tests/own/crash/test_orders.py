"""The orders in which several ranks may have done what they did: all of them possible, the extreme ones among them."""

from collections.abc import Iterator, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from forge_conformance.disks.orders import early, late, orders
from forge_conformance.watch.history import History, Step
from forge_conformance.watch.trace import Call, Inode, Trace
from forge_spec.disk import ROOT, Bytes, Effect, Entries, Mark, extreme_cuts, is_consistent

RANKS = 3
MINE = [10 + rank for rank in range(RANKS)]
"""A file that only this rank writes."""
SHARED = 20

Act = tuple[int, str, int]
"""A rank, what it does, and to whom or with which name."""
ACTS: st.SearchStrategy[list[Act]] = st.lists(
    st.tuples(st.integers(0, RANKS - 1), st.sampled_from(["write", "send", "write"]), st.integers(0, RANKS - 1)),
    min_size=1,
    max_size=24,
)
ALL_ACTS: st.SearchStrategy[list[Act]] = st.lists(
    st.tuples(
        st.integers(0, RANKS - 1),
        st.sampled_from(["write", "send", "look", "name", "share"]),
        st.integers(0, RANKS - 1),
    ),
    min_size=1,
    max_size=24,
)


def history_of(acts: Sequence[Act]) -> History:
    history = History(RANKS)
    for at, (rank, does, other) in enumerate(acts):
        match does:
            case "send":
                history.speaks(rank, {other})
            case "look":
                history.looks(rank, ("name", ROOT, str(other)))
            case _:
                history.happens(rank, at, effect_of(rank, does, other))
    return history


def effect_of(rank: int, does: str, other: int) -> Effect:
    match does:
        case "name":
            return Entries(((ROOT, str(other), MINE[rank]),))
        case "share":
            return Bytes(SHARED, rank, b"x")
    return Bytes(MINE[rank], 0, b"x")


def each_order(history: History) -> Iterator[list[int]]:
    for rank in range(RANKS):
        yield late(history.steps, RANKS, {rank})
        yield early(history.steps, RANKS, {rank})


def is_possible(steps: Sequence[Step], order: Sequence[int]) -> bool:
    """Written anew and slowly: own order, everything heard, everything found as it was found."""
    changed: dict[object, int] = {}
    done = [0] * RANKS
    for number in order:
        step = steps[number]
        own = [n for n, other in enumerate(steps) if other.rank == step.rank]
        if own[done[step.rank]] != number or any(h > d for h, d in zip(step.heard, done, strict=True)):
            return False
        if any(changed.get(thing, -1) != by for thing, by in step.found.items()):
            return False
        changed.update(dict.fromkeys(step.changes, number))
        done[step.rank] += 1
    return True


@given(ALL_ACTS)
@settings(deadline=None)
def test_every_order_is_one_that_could_have_happened(acts: list[Act]) -> None:
    history = history_of(acts)
    assert is_possible(history.steps, range(len(history.steps))), "what happened could have happened"
    for order in each_order(history):
        assert is_possible(history.steps, order)


@given(ACTS)
@settings(deadline=None)
def test_where_ranks_only_send_messages_the_beginnings_hold_every_extreme_cut_and_only_consistent_ones(
    acts: list[Act],
) -> None:
    history = history_of(acts)
    clocks = clocks_of(acts)
    met = {cut for order in each_order(history) for cut in cuts_of(history.steps, order)}
    assert all(is_consistent(cut, clocks) for cut in met)
    assert set(extreme_cuts(clocks)) <= met
    assert all(len(order) == len(history.steps) for order in each_order(history)), "nobody finds anything else"


def clocks_of(acts: Sequence[Act]) -> list[list[tuple[int, ...]]]:
    """Vector clocks, where what is sent is read at once."""
    now = [[0] * RANKS for _ in range(RANKS)]
    clocks: list[list[tuple[int, ...]]] = [[] for _ in range(RANKS)]
    for rank, does, other in acts:
        if does == "send":
            if other != rank:
                now[other] = [max(pair) for pair in zip(now[other], now[rank], strict=True)]
        else:
            now[rank][rank] += 1
            clocks[rank].append(tuple(now[rank]))
    return clocks


def cuts_of(steps: Sequence[Step], order: Sequence[int]) -> Iterator[tuple[int, ...]]:
    done = [0] * RANKS
    yield tuple(done)
    for number in order:
        done[steps[number].rank] += 1
        yield tuple(done)


def test_a_rank_that_found_nothing_gets_no_further_where_something_stands() -> None:
    history = history_of([(0, "look", 1), (0, "write", 0), (1, "name", 1), (1, "write", 1)])
    assert late(history.steps, RANKS, {0}) == [2, 3], "rank 0 looked before rank 1 made the name"
    assert early(history.steps, RANKS, {1}) == [2, 3]
    assert early(history.steps, RANKS, {0}) == [0, 1, 2, 3]


def test_what_one_rank_makes_another_can_only_change_afterwards() -> None:
    history = history_of([(0, "name", 1), (1, "name", 1)])
    assert early(history.steps, RANKS, {1}) == [0, 1]


def test_the_orders_of_a_trace_keep_each_inode_with_its_effect_and_each_save_with_all_its_ranks() -> None:
    history = History(2)
    told: list[tuple[int, Effect]] = [
        (0, Mark("begins", 0)),
        (1, Mark("begins", 0)),
        (0, Entries(((ROOT, "a", 4),))),
        (1, Entries(((ROOT, "b", 5),))),
        (0, Mark("acknowledged", 0)),
        (1, Mark("acknowledged", 0)),
    ]
    for at, (rank, effect) in enumerate(told):
        history.happens(rank, at, effect)
    calls = tuple(None if isinstance(effect, Mark) else Call(rank, 1, True, "a call", False) for rank, effect in told)
    inodes = {ROOT: Inode("d", 0o755, -1), 4: Inode("f", 0o644, 2), 5: Inode("f", 0o644, 3)}
    trace = Trace(tuple(effect for _, effect in told), calls, inodes)
    found = dict(orders(trace, history))
    assert set(found) == {"", "rank 0 late", "rank 1 late"}, "with two ranks, one early is the other late"
    late_trace = found["rank 0 late"]
    assert late_trace.effects == (told[0][1], told[3][1], told[2][1], told[4][1])
    assert (late_trace.inodes[5].made_at, late_trace.inodes[4].made_at) == (1, 2)
    assert [str(call) for call in late_trace.calls if call] == ["rank 1: a call", "rank 0: a call"]
