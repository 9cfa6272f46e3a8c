"""Branches that write what a sibling has written: one node, as many votes, draws of their own."""

import math
import sys

import numpy as np
import pytest

from marco_fast.search.answer import choose_answer
from marco_fast.search.config import SearchConfig
from marco_fast.search.mcts import Search, Ticket
from tests.support.searches import check_invariants


def say(search: Search, ticket: Ticket, *tokens: int, more: bool = False, end: str | None = None):
    scores = [0.5] * len(tokens)
    return search.grow(ticket, tokens, scores, scores, more=more, end=end, finished=end == "eos")


def begun(n: int = 3, **options) -> tuple[Search, list[Ticket]]:
    search = Search("q", SearchConfig(**({"children": 4} | options)))
    return search, search.ask(n)


def test_children_of_equal_tokens_are_one_path_with_a_vote_for_each_branch():
    search, tickets = begun()
    assert [say(search, each, 7, 8, end="eos") for each in tickets] == [1, 1, 1]
    for each in tickets:
        search.tell(each)
    tree = search.tree
    assert (len(tree), tree.children[0], tree.started[0]) == (2, [1], 3)
    assert (tree.visits, tree.ended, tree.virtual_visits) == ([3, 3], [0, 3], [0, 0])
    assert (search.expansions, tree.end_value[1]) == (3, 0.5)
    assert (tree.distinct_paths, tree.finished_paths) == (1, 1)


@pytest.mark.parametrize("tokens", [(7, 9), (7, 8, 8), (7,), (8, 8), (7, 9, 8)], ids=str)
def test_other_tokens_are_another_path(tokens):
    search, (first, second, _) = begun()
    assert [say(search, first, 7, 8, 8), say(search, second, *tokens)] == (
        [1, 1] if tokens == (7, 8, 8) else [1, 2]
    )


def test_a_branch_that_repeats_a_node_goes_on_with_draws_of_its_own_and_takes_no_slot():
    """Whether others said the same changes nothing in what it says next."""
    repeating, alone = begun(), begun()
    for search, tickets in (repeating, alone):
        for index, each in enumerate(tickets):
            say(search, each, 7 if search is repeating[0] else index, more=True)
    seeds = [[each.seed for each in tickets] for _, tickets in (repeating, alone)]
    assert seeds[0] == seeds[1]
    search, (first, second, third) = repeating
    tree = search.tree
    assert (tree.started[1], tree.open_slots) == (1, [4, 3])
    others = [search.ask()[0] for _ in range(4)]
    assert len({each.seed for each in (first, second, third, *others)}) == 7
    assert say(search, second, 1, end="eos") == 2  # no one has said that yet
    assert say(search, third, 1, end="eos") == 2
    assert tree.ordinal[2] == -1
    for each in (second, third):
        search.tell(each)
    assert (tree.visits[:3], tree.started[1]) == ([2, 2, 2], 4)


def test_an_abandoned_repeat_leaves_nothing_behind():
    search, (first, second, third) = begun()
    for each in (first, second, third):
        say(search, each, 7, more=True)
    slots = list(search.tree.open_slots)
    search.abandon(second)
    assert (search.tree.virtual_visits, search.tree.open_slots) == ([2, 2], slots)
    search.tell(third)  # where its rollout was cut
    assert (search.tree.open_slots, search.tree.ended) == (slots, [0, 1])
    search.abandon(first)  # it made the node, so its next slot is free again
    assert search.tree.open_slots == [each + 1 for each in slots]
    check_invariants(search)


def test_rollouts_that_meet_leave_each_node_once():
    search, tickets = begun(rollout_tokens=8)
    for each in tickets:
        for token in (7, 8):
            say(search, each, token, more=True)
        say(search, each, 9, end="eos")
        search.tell(each)
    assert (len(search.tree), search.rollout_nodes, search.tree.visits) == (4, 2, [3, 3, 3, 3])


def test_ends_that_differ_are_two_nodes_and_one_path():
    search, (first, second, third) = begun()
    nodes = [say(search, first, 7, end="eos"), say(search, second, 7, end="kv_full")]
    nodes.append(say(search, third, 7))
    assert nodes == [1, 2, 3]
    for each in (first, second, third):
        search.tell(each)
    assert (search.tree.distinct_paths, search.tree.finished_paths) == (1, 1)


def test_paths_cut_at_other_places_are_one_path():
    search, (first, second, third) = begun()
    say(search, first, 7, more=True)
    say(search, first, 8, end="eos")
    say(search, second, 7, 8, end="eos")
    say(search, third, 7, 9)
    assert search.tree.distinct_paths == 0
    for each in (first, second, third):
        search.tell(each)
    assert (search.tree.distinct_paths, search.tree.finished_paths) == (2, 1)


def test_a_closed_node_is_gone_on_from_by_branches_that_repeat_it():
    search, (first, second, _) = begun()
    say(search, first, 7)
    search.tell(first)
    search.close(1, "kv_full")
    assert say(search, second, 7, more=True) == 1
    assert search.tree.open_slots[1] == 0
    search.tell(second)
    assert search.tree.ended[1] == 2


def test_a_path_has_as_many_votes_as_branches():
    search, tickets = begun(4)
    for ticket, token, value in zip(tickets, (7, 7, 7, 8), (0.1, 0.1, 0.1, 0.9), strict=True):
        say(search, ticket, token, end="eos")
        search.tell(ticket, value)
    finals = {1: "a", 2: "b"}
    chosen = [choose_answer(search.tree, finals, finals, each) for each in ("vote", "majority")]
    assert chosen == [1, 1]


@pytest.mark.parametrize(
    "values",
    [(0.1,) * 7, (sys.float_info.max,) * 3, (5e-324,) * 5, (1 / 3, -1 / 3), (-1e308, 1e308, 1.0)],
    ids=str,
)
def test_the_value_of_a_repeated_path_is_the_mean(values):
    search, tickets = begun(len(values), children=8)
    for ticket, value in zip(tickets, values, strict=True):
        say(search, ticket, 7, end="eos")
        search.tell(ticket, value)
    if len({*values}) == 1:
        assert search.tree.end_value[1] == values[0]
    else:
        mean = math.fsum(value / len(values) for value in values)
        assert search.tree.end_value[1] == pytest.approx(mean, rel=1e-12, abs=1e-12 * max(values))


@pytest.mark.parametrize("seed", range(12))
def test_any_mixture_of_repeats_ends_and_given_up_branches_keeps_the_books(seed):
    rng = np.random.default_rng(seed)
    options = {"children": int(rng.integers(1, 4)), "parallel": int(rng.integers(1, 9))}
    search, flying = Search("q", SearchConfig(expansions=120, **options)), []
    while True:
        flying += search.ask(int(rng.integers(1, 9)))
        if not flying:
            break
        ticket = flying[int(rng.integers(len(flying)))]
        more = bool(rng.random() < 0.5)
        end = "eos" if not more and rng.random() < 0.8 else None
        say(search, ticket, int(rng.integers(3)), more=more, end=end)
        if not more:
            (search.abandon if rng.random() < 0.1 else search.tell)(ticket)
            flying.remove(ticket)
        check_books(search)
    assert (search.expansions, search.exhausted) == (120, False)
    check_invariants(search)


def check_books(search: Search) -> None:
    tree = search.tree
    below = [0] * len(tree)
    for node in range(len(tree) - 1, -1, -1):
        assert 0 <= tree.started[node] <= tree.slots
        below[node] += 0 if tree.terminal[node] else tree.slots - tree.started[node]
        if node:
            below[tree.parent[node]] += below[node]
    assert below == tree.open_slots
    assert tree.virtual_visits[0] == len(search.in_flight)
    for node in range(len(tree)):
        tokens = [(tree.token_ids[child], tree.end[child]) for child in tree.children[node]]
        assert all(each not in tokens[:index] for index, each in enumerate(tokens))
