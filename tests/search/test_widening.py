"""Trees that close before the budget ends: they widen, and greedy ones end."""

import pytest

from marco_fast.search.config import SearchConfig
from marco_fast.search.mcts import Search, Ticket
from marco_fast.search.tree import SearchTree


def reply(search: Search, ticket: Ticket, tokens: list[int] | None = None) -> None:
    """The ticket's branch writes a whole reply in one action, by default a new one."""
    tokens = tokens or [len(search.tree)]
    search.grow(ticket, tokens, [-1.0] * len(tokens), [0.5] * len(tokens), end="eos")
    search.tell(ticket)


def step(search: Search, ticket: Ticket, *, more: bool = False) -> int:
    """The ticket's branch writes a new action that others may go on from."""
    node = search.grow(ticket, [len(search.tree)], [-1.0], [0.5], more=more)
    if not more:
        search.tell(ticket)
    return node


def test_a_search_of_short_replies_goes_on_until_its_budget_ends():
    """The first branches say that the replies are short; from then on all rows are busy."""
    search = Search("q", SearchConfig(expansions=64, children=4, parallel=16))
    busy = []
    while search.ask(16) or search.in_flight:
        busy.append(len(search.in_flight))
        reply(search, search.in_flight[0])
    assert (search.expansions, len(search.tree)) == (64, 65)
    assert busy == [4, 3, 2, 1, *[16] * 45, *range(15, 0, -1)]
    assert len({*search.tree.seed}) == 65


def test_the_root_gets_more_children_first_and_then_every_closed_node_below():
    search = Search("q", SearchConfig(children=2, parallel=1))
    (ticket,) = search.ask()
    open_node = step(search, ticket)
    nodes = []
    while len(nodes) < 9:
        (ticket,) = search.ask()
        nodes.append(ticket.node)
        reply(search, ticket)
    assert nodes == [0, open_node, open_node, 0, 0, open_node, open_node, 0, 0]


def test_a_node_added_later_starts_with_as_many_slots_as_any():
    search = Search("q", SearchConfig(children=2, parallel=1, c_uct=0.0))
    for _ in range(2):
        reply(search, search.ask()[0])
    late = step(search, search.ask()[0])
    assert search.tree.slots == 4
    assert search.tree.open_slots == [3, 0, 0, 2]
    assert [search.ask()[0].node for _ in range(1)] == [0]
    search.abandon(search.in_flight[0])
    search.tree.close(late, "context")
    assert search.tree.open_slots == [1, 0, 0, 0]


def test_the_first_widening_waits_for_what_is_in_flight():
    """It may open a node, and then the tree need not widen."""
    search = Search("q", SearchConfig(children=2, parallel=8))
    first, second = search.ask(8)
    reply(search, first)
    assert search.ask(8) == []
    assert not search.exhausted
    node = step(search, second, more=True)
    assert [ticket.node for ticket in search.ask(8)] == [node]


def test_a_tree_of_long_replies_stays_as_narrow_as_it_is():
    search = Search("q", SearchConfig(expansions=300, children=3, parallel=16))
    while tickets := search.ask(16):
        for ticket in tickets:
            step(search, ticket, more=True)
        for ticket in tickets:
            step(search, ticket)
    assert (search.expansions, search.tree.slots) == (300, 3)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"sample_top_k": 1}], ids=str)
def test_a_greedy_search_decodes_its_only_path_once(options):
    search = Search("q", SearchConfig(expansions=64, **options))
    assert search.config.greedy
    for _ in range(2):  # a path that its limit cuts goes on
        (ticket,) = search.ask(16)
        step(search, ticket, more=True)
        step(search, ticket)
    (ticket,) = search.ask(16)
    reply(search, ticket)
    assert search.ask(16) == []
    assert search.exhausted
    assert (search.expansions, search.tree.parent) == (3, [-1, 0, 1, 2, 3, 4])


def test_draws_that_may_differ_are_not_greedy():
    for options in ({"temperature": 1e-5}, {"sample_top_k": 2}, {"top_p": 1e-9}, {"min_p": 1.0}):
        assert not SearchConfig(**options).greedy


def test_a_closed_root_ends_the_search():
    search = Search("q", SearchConfig(children=3))
    for ticket in search.ask(8):
        reply(search, ticket)
    search.close(0, "kv_full")
    assert search.ask(8) == []
    assert search.exhausted


def test_a_rule_of_the_callers_own_goes_on_in_a_wider_tree():
    def oldest(tree: SearchTree, config: SearchConfig) -> int | None:
        free = (n for n in range(len(tree)) if tree.started[n] < tree.slots)
        return next((node for node in free if not tree.terminal[node]), None)

    search = Search("q", SearchConfig(select=oldest, children=2, expansions=20, parallel=3))
    while tickets := search.ask(3):
        for ticket in tickets:
            reply(search, ticket)
    assert search.expansions == 20


def test_a_rule_that_fails_leaves_the_tree_as_wide_as_it_was():
    calls = []

    def rule(tree: SearchTree, config: SearchConfig) -> int:
        calls.append(len(tree))
        if len(calls) == 5:
            raise ZeroDivisionError
        return 0

    search = Search("q", SearchConfig(select=rule, children=1))
    reply(search, search.ask()[0])
    before = (search.tree.slots, list(search.tree.open_slots), search.tree.started[0])
    with pytest.raises(ZeroDivisionError):
        search.ask(8)
    assert (search.tree.slots, search.tree.open_slots, search.tree.started[0]) == before
    assert [ticket.ordinal for ticket in search.ask(3)] == [1, 2, 3]
