"""Search: ask/tell against a bandit, tickets in any order, budgets, answers, options."""

import math
from dataclasses import fields

import numpy as np
import pytest

from marco_fast.search.mcts import Search, SearchConfig, Ticket, choose_answer


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
        search.grow(ticket, [1], [-1.0], [1.0], terminal=True)
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


def finished(search: Search, value: float, *, more_visits: int = 0) -> int:
    (ticket,) = search.ask()
    node = search.grow(ticket, [1], [-1.0], [0.5], terminal=True, finished=True)
    search.tell(ticket, value)
    return node


def test_the_three_answer_rules():
    def nodes(rule):
        search = Search("q", SearchConfig(answer=rule, children=16))
        made = [finished(search, value) for value in (0.6, 0.7, 0.9, 0.5)]
        answers = dict(zip(made, ("12", "12.", "7", " 12 "), strict=True))
        return search, made, answers

    search, made, answers = nodes("value")
    assert choose_answer(search.tree, answers, search.config.answer) == made[2]
    search, made, answers = nodes("vote")
    assert (
        choose_answer(search.tree, answers, search.config.answer) == made[1]
    )  # 12: 1.8 against 0.9; its best path answers
    search, made, answers = nodes("visits")
    assert (
        choose_answer(search.tree, answers, search.config.answer) == made[2]
    )  # one visit each: the better value
    assert choose_answer(search.tree, {}, search.config.answer) is None


def test_visits_follow_the_most_visited_way_to_an_answer():
    search = Search("q", SearchConfig(answer="visits", children=2, parallel=1))
    (ticket,) = search.ask()
    search.grow(ticket, [1], [-1.0], [0.5], more=True)
    often = search.grow(ticket, [1], [-1.0], [0.5], terminal=True, finished=True)
    search.tell(ticket, 0.4)
    once = finished(search, 0.99)
    (ticket,) = search.ask()
    node = ticket.node
    search.grow(ticket, [1], [-1.0], [0.5], terminal=True)
    search.tell(ticket, 0.1)
    assert node == 1  # a second visit below the first child
    answers = {often: "a", once: "b"}
    assert choose_answer(search.tree, answers, search.config.answer) == often


def test_ties_go_to_the_older_node():
    search = Search("q", SearchConfig(children=8))
    first, second = finished(search, 0.5), finished(search, 0.5)
    assert choose_answer(search.tree, {second: "b", first: "a"}, search.config.answer) == first


BAD = [
    ("action", "leap"),
    ("action", None),
    ("value", "best"),
    ("answer", ""),
    ("step_tokens", 0),
    ("step_tokens", 1.5),
    ("step_tokens", True),
    ("max_step_tokens", -1),
    ("expansions", 0),
    ("children", 0),
    ("children", 257),
    ("parallel", 0),
    ("rollout_tokens", -1),
    ("c_uct", math.nan),
    ("c_uct", math.inf),
    ("c_uct", -0.1),
    ("temperature", -1e-9),
    ("temperature", math.nan),
    ("temperature", "hot"),
    ("top_p", 0),
    ("top_p", 0.0),
    ("top_p", 1.01),
    ("top_k", 0),
    ("top_k", 33),
    ("seed", 2**63),
    ("seed", None),
    ("max_tokens", 0),
    ("max_seconds", -1.0),
    ("max_seconds", math.inf),
    ("reflect", 1),
    ("normalize", "yes"),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda each: str(each))
def test_options_out_of_range_are_refused_with_what_was_expected(name, value):
    with pytest.raises(ValueError, match=f"expected {name} to be .*") as caught:
        SearchConfig(**{name: value})
    assert "got" in str(caught.value)


def test_the_edges_of_the_ranges_are_allowed():
    SearchConfig(temperature=0, top_p=1, c_uct=0, rollout_tokens=0, max_seconds=0, seed=-(2**63))
    SearchConfig(value=lambda tokens, confidences, text: 0.0)


def test_a_config_is_json_ready():
    values = SearchConfig(value=ordinals).to_dict()
    assert values["value"] == "ordinals"
    assert {*values} == {each.name for each in fields(SearchConfig)}
