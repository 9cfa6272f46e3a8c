"""Search: ask/tell against a bandit, tickets in any order, budgets, a caller's own rule."""

import math

import numpy as np
import pytest

from marco_fast.search.config import SearchConfig
from marco_fast.search.mcts import Search, Ticket
from marco_fast.search.tree import SearchTree


def drive(search: Search, value_of, order=None, batch: int = 8, rollout: int = 0) -> None:
    """Answer every ticket with value_of(path of ordinals), in a shuffled order if asked to."""
    flying: list[Ticket] = []
    while True:
        flying += search.ask(batch)
        if not flying:
            return
        ticket = flying.pop(0 if order is None else int(order.integers(len(flying))))
        for extra in range(rollout + 1):
            value = value_of(ordinals(search, ticket) if extra == 0 else None)
            c = [min(1.0, max(0.0, value))] * 4
            search.grow(ticket, [1, 2, 3, 4], [-1.0] * 4, c, more=extra < rollout)
        search.tell(ticket)


def ordinals(search: Search, ticket: Ticket) -> tuple[int, ...]:
    tree = search.tree
    return (*(tree.ordinal[node] for node in tree.path(ticket.node)[1:]), ticket.ordinal)


def check_invariants(search: Search) -> None:
    tree = search.tree
    assert all(v == 0 for v in tree.virtual_visits) or search.in_flight
    for node in range(len(tree)):
        below = sum(tree.visits[child] for child in tree.children[node])
        ended = 0 if math.isnan(tree.end_value[node]) else 1
        assert tree.visits[node] == below + ended
        assert len(tree.children[node]) <= tree.started[node] <= tree.slots


@pytest.mark.parametrize("children", [1, 2, 4])
@pytest.mark.parametrize("parallel", [1, 3, 16])
@pytest.mark.parametrize("rollout", [0, 2])
def test_every_expansion_is_told_once(children, parallel, rollout):
    config = SearchConfig(expansions=100, children=children, parallel=parallel)
    search = Search("q", config)
    rng = np.random.default_rng(0)
    drive(search, lambda path: rng.random(), order=rng, rollout=rollout)
    assert search.expansions == 100
    assert search.rollout_nodes == 100 * rollout
    assert len(search.tree) == 1 + 100 * (1 + rollout)
    assert search.tree.visits[0] == 100
    check_invariants(search)


def test_the_search_finds_the_better_arm():
    """A bandit whose second first-level child leads to better values gets most of the visits."""

    def value(path):
        return 0.9 if path[0] == 1 else 0.2

    search = Search("q", SearchConfig(expansions=200, c_uct=0.3, parallel=4))
    drive(search, value)
    top = search.tree.children[0]
    visits = {search.tree.ordinal[node]: search.tree.visits[node] for node in top}
    assert visits[1] > 0.6 * sum(visits.values())


def test_more_exploration_spreads_visits():
    def spread(c_uct: float) -> float:
        search = Search("q", SearchConfig(expansions=300, c_uct=c_uct, parallel=2))
        drive(search, lambda path: 0.9 if path[0] == 1 else 0.5)
        visits = np.array([search.tree.visits[node] for node in search.tree.children[0]])
        return visits.max() / visits.sum()

    assert spread(0.05) > spread(1.414) > spread(50.0)


def test_normalizing_tells_close_values_apart():
    def share(normalize: bool) -> float:
        config = SearchConfig(expansions=300, c_uct=0.5, normalize=normalize, parallel=2)
        search = Search("q", config)
        drive(search, lambda path: 0.905 if path[0] == 1 else 0.9)
        visits = {search.tree.ordinal[n]: search.tree.visits[n] for n in search.tree.children[0]}
        return visits[1] / sum(visits.values())

    assert share(True) > 1.5 * share(False)


@pytest.mark.parametrize("seed", range(10))
def test_any_order_of_telling_keeps_the_books(seed):
    rng = np.random.default_rng(seed)
    search = Search("q", SearchConfig(expansions=60, parallel=12))
    drive(search, lambda path: rng.random(), order=rng, batch=int(rng.integers(1, 12)), rollout=1)
    check_invariants(search)


def test_parallel_and_expansions_bound_what_is_in_flight():
    search = Search("q", SearchConfig(expansions=10, children=8, parallel=3))
    assert len(search.ask(100)) == 3
    assert search.ask(100) == []
    ticket = search.in_flight[0]
    search.grow(ticket, [1], [-1.0], [1.0])
    search.tell(ticket)
    assert len(search.ask(100)) == 1


def test_a_blocked_tree_hands_out_nothing_and_is_not_exhausted():
    search = Search("q", SearchConfig(children=2, parallel=8))
    tickets = search.ask(8)
    assert len(tickets) == 2  # the root's slots; nothing below exists yet
    assert not search.exhausted
    search.grow(
        tickets[0], [1], [-1.0], [1.0], more=True
    )  # in flight, but its node can be selected
    assert [each.node for each in search.ask(8)] == [1]


def test_a_tree_of_terminal_nodes_is_exhausted():
    search = Search("q", SearchConfig(children=3))
    for ticket in search.ask(8):
        search.grow(ticket, [1], [-1.0], [1.0], end="eos")
        search.tell(ticket)
    assert search.ask(8) == []
    assert search.exhausted
    assert search.expansions == 3


def test_telling_twice_changes_nothing():
    search = Search("q", SearchConfig())
    (ticket,) = search.ask()
    search.grow(ticket, [1], [-1.0], [0.5])
    search.tell(ticket)
    before = (list(search.tree.visits), list(search.tree.value_sum), search.expansions)
    search.tell(ticket, 0.9)
    search.abandon(ticket)
    assert (list(search.tree.visits), list(search.tree.value_sum), search.expansions) == before


def test_an_abandoned_ticket_leaves_no_visit():
    search = Search("q", SearchConfig())
    first, second = search.ask(2)
    search.grow(first, [1], [-1.0], [0.5], more=True)
    search.abandon(first)
    search.abandon(second)
    assert search.tree.virtual_visits == [0, 0]
    assert search.tree.visits == [0, 0]
    assert search.in_flight == []


def test_a_rollouts_nodes_can_be_selected_and_have_its_visit():
    search = Search("q", SearchConfig(children=1, expansions=5))
    (ticket,) = search.ask()
    for more in (True, True, False):
        search.grow(ticket, [1], [-1.0], [0.5], more=more)
    search.tell(ticket)
    assert search.tree.visits == [1, 1, 1, 1]
    assert search.tree.rollout == [False, False, True, True]
    (following,) = search.ask()
    assert following.node == 3  # with one child a node the chain is the only way down


def test_the_value_is_the_geometric_mean_probability():
    search = Search("q", SearchConfig(value="logprob", children=1))
    (ticket,) = search.ask(1)
    search.grow(ticket, [1, 2], [math.log(0.5), None], [0.9, None], more=True)
    search.grow(ticket, [3, 4], [math.log(0.1), math.log(0.2)], [0.1, 0.1])
    search.tell(ticket)
    assert search.tree.end_value[ticket.node] == pytest.approx(0.01 ** (1 / 3), rel=1e-12)
    assert Search("q", SearchConfig()).tree.path_probability(0) == 0.0


@pytest.mark.parametrize(("value", "expected"), [("path", 0.5), ("rollout", 0.75)])
def test_the_value_is_of_the_path_or_of_the_last_rollout(value, expected):
    search = Search("q", SearchConfig(children=1, value=value))
    (first,) = search.ask()
    search.grow(first, [1, 2], [-1.0] * 2, [0.25, 0.25])
    search.tell(first)
    (second,) = search.ask()
    search.grow(second, [1], [-1.0], [0.5], more=True)
    search.grow(second, [1], [-1.0], [1.0])
    search.tell(second)
    assert search.tree.end_value[3] == expected


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_must_be_finite(value):
    search = Search("q", SearchConfig())
    (ticket,) = search.ask()
    search.grow(ticket, [1], [-1.0], [0.5])
    with pytest.raises(ValueError, match="finite value"):
        search.tell(ticket, value)
    assert not ticket.done  # nothing was half done
    search.tell(ticket, 0.5)


def test_misuse_of_a_ticket_is_refused():
    search = Search("q", SearchConfig())
    (ticket,) = search.ask()
    with pytest.raises(ValueError, match="at least one action"):
        search.tell(ticket)
    for columns in (([], [], []), ([1], [], [0.5]), ([1, 2], [-1.0, -1.0], [0.5])):
        with pytest.raises(ValueError, match="of one length above 0"):
            search.grow(ticket, *columns)
    search.abandon(ticket)
    with pytest.raises(ValueError, match="told or abandoned"):
        search.grow(ticket, [1], [-1.0], [0.5])


def deepest(tree: SearchTree, config: SearchConfig) -> int | None:
    """A rule of a caller's own: the youngest node with a free slot."""
    free = [n for n in range(len(tree)) if tree.started[n] < tree.slots and not tree.terminal[n]]
    return np.int64(free[-1]) if free else None


def test_a_callers_rule_selects():
    search = Search("q", SearchConfig(select=deepest, expansions=5, children=2, parallel=1))
    drive(search, lambda path: 0.5)
    assert search.tree.parent == [-1, 0, 1, 2, 3, 4]
    assert {type(each) for each in search.tree.parent} == {int}


@pytest.mark.parametrize("wrong", [-1, 7, 1, 0, "root", 0.0])
def test_a_rule_must_return_a_node_that_can_have_a_child(wrong):
    search = Search("q", SearchConfig(select=lambda tree, config: wrong, children=1))
    search.tree.add(0, search.tree.start_child(0), [1], [-1.0], [0.5], end="eos")
    with pytest.raises(ValueError, match=f"free child slot, or None, got {wrong!r}"):
        search.ask()
    assert (search.asked, search.in_flight) == (0, [])
