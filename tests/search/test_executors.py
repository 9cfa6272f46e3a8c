"""What an executor of one's own may hand to Search: refused before anything has changed."""

import copy
import json
import math
from decimal import Decimal

import numpy as np
import pytest

from marco_fast.search.config import SearchConfig
from marco_fast.search.mcts import Search, Ticket

NAN, INF = math.nan, math.inf
WHOLE = ([1, 2], [-0.1, -0.2], [0.5, 0.25])


def state(search: Search) -> dict:
    """Everything that a search knows, comparable."""
    columns = {k: v for k, v in vars(search.tree).items() if isinstance(v, list)}
    assert {len(each) for each in columns.values()} == {len(search.tree)}
    flying = [(id(t), dict(vars(t))) for t in search.in_flight]
    counts = (search.asked, search.expansions, search.rollout_nodes)
    return copy.deepcopy([repr(columns), repr(search.tree._returned), flying, counts])


def begun() -> tuple[Search, Ticket]:
    search = Search("q", SearchConfig(children=2))
    first, second = search.ask(2)
    search.grow(first, *WHOLE, more=True)
    return search, second


BAD_COLUMNS = {
    "nan confidence": ([1], [-0.1], [NAN]),
    "infinite confidence": ([1], [-0.1], [INF]),
    "nan between": ([1, 2, 3], [-0.1] * 3, [0.5, NAN, 0.5]),
    "text confidence": ([1], [-0.1], ["0.5"]),
    "negative confidence": ([1], [-0.1], [-0.01]),
    "confidence above 1": ([1], [-0.1], [1.5]),
    "True as confidence": ([1], [-0.1], [True]),
    "complex confidence": ([1], [-0.1], [0.5j]),
    "decimal nan": ([1], [-0.1], [Decimal("NaN")]),
    "numpy nan": ([1], [-0.1], [np.float32(NAN)]),
    "None for one score alone": ([1, 2], [-0.1, -0.1], [0.5, None]),
    "None for the other alone": ([1, 2], [None, -0.1], [0.5, 0.5]),
    "nan logprob": ([1], [NAN], [0.5]),
    "infinite logprob": ([1], [-INF], [0.5]),
    "logprob below any float32": ([1], [-1e308], [0.5]),
    "logprob whose probability is no float": ([1], [1e3], [0.5]),
    "text logprob": ([1], ["-0.1"], [0.5]),
    "negative id": ([-1], [-0.1], [0.5]),
    "id beyond int32": ([2**31], [-0.1], [0.5]),
    "float id": ([1.0], [-0.1], [0.5]),
    "nan id": ([NAN], [-0.1], [0.5]),
    "True as id": ([True], [-0.1], [0.5]),
    "None as id": ([None], [-0.1], [0.5]),
    "text beside an id": ([1, "2"], [-0.1] * 2, [0.5] * 2),
    "no list": (1, [-0.1], [0.5]),
    "None for a list": ([1], None, [0.5]),
    "nothing": ([], [], []),
    "lengths": ([1, 2], [-0.1], [0.5, 0.5]),
    "lengths of generators": ((each for each in [1, 2]), iter([-0.1]), iter([0.5])),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", BAD_COLUMNS)
@pytest.mark.parametrize("options", [{}, {"more": True}, {"end": "eos"}], ids=str)
def test_columns_that_are_not_as_said_change_nothing(name, options):
    search, ticket = begun()
    before = state(search)
    columns = [list(each) if hasattr(each, "__next__") else each for each in BAD_COLUMNS[name]]
    with pytest.raises(ValueError, match="expected"):
        search.grow(ticket, *columns, **options)
    assert state(search) == before
    search.grow(ticket, *WHOLE)
    search.tell(ticket)
    assert len(json.dumps(search.tree.rows(), allow_nan=False)) > 100


def test_numbers_of_other_libraries_are_stored_as_plain_ones():
    search, ticket = begun()
    ids, logprobs, confidences = np.array([1, 2]), np.float32([-0.5, 0]), iter([Decimal(1), 0.5])
    node = search.grow(ticket, ids, logprobs, confidences)
    tree = search.tree
    columns = (tree.token_ids[node], tree.logprobs[node], tree.confidences[node])
    assert columns == ([1, 2], [-0.5, 0.0], [1.0, 0.5])
    assert [type(each) for column in columns for each in column] == [int] * 2 + [float] * 4


def test_a_list_that_is_changed_afterwards_does_not_change_the_tree():
    search, ticket = begun()
    columns = copy.deepcopy(WHOLE)
    node = search.grow(ticket, *columns)
    for each in columns:
        each.clear()
    assert search.tree.token_ids[node] == WHOLE[0]
    assert search.tree.confidences[node] == WHOLE[2]


def test_a_probability_may_be_above_one_by_rounding():
    search, ticket = begun()
    search.grow(ticket, [1], [1e-6], [1.0000002])
    search.tell(ticket)
    assert search.tree.end_value[2] == pytest.approx(1.0)


def misuses() -> dict:
    def foreign(search: Search, call) -> None:
        (ticket,) = Search("other", search.config).ask()
        call(ticket)

    return {
        "grow of another": lambda s, t: foreign(s, lambda other: s.grow(other, *WHOLE)),
        "tell of another": lambda s, t: foreign(s, lambda other: s.tell(other, 0.5)),
        "abandon of another": lambda s, t: foreign(s, s.abandon),
        "tell before grow": lambda s, t: s.tell(t),
        "end and more": lambda s, t: s.grow(t, *WHOLE, end="reply", more=True),
        "an end that there is not": lambda s, t: s.grow(t, *WHOLE, end="stop"),
        "finished but cut off": lambda s, t: s.grow(t, *WHOLE, end="context", finished=True),
        "finished without an end": lambda s, t: s.grow(t, *WHOLE, finished=True),
    }


@pytest.mark.parametrize("name", misuses())
def test_a_call_out_of_turn_changes_nothing(name):
    search, ticket = begun()
    before = state(search)
    with pytest.raises(ValueError, match="expected"):
        misuses()[name](search, ticket)
    assert state(search) == before


@pytest.mark.parametrize("end", ["tell", "abandon"])
def test_nothing_follows_the_end_of_a_branch(end):
    search, ticket = begun()
    search.grow(ticket, *WHOLE)
    before = state(search)
    with pytest.raises(ValueError, match=r"expected tell\(\)"):
        search.grow(ticket, *WHOLE)
    assert state(search) == before
    getattr(search, end)(ticket)
    before = state(search)
    with pytest.raises(ValueError, match="told or abandoned"):
        search.grow(ticket, *WHOLE)
    search.tell(ticket)
    search.abandon(ticket)
    assert state(search) == before


@pytest.mark.parametrize("abandoned", [[0], [1], [3], [0, 2], [3, 1], [0, 1, 2, 3]], ids=str)
def test_an_abandoned_child_is_asked_for_again_with_the_same_seed(abandoned):
    search = Search("q", SearchConfig(children=4, expansions=4))
    tickets = search.ask(4)
    assert search.ask() == []
    for each in abandoned:
        search.abandon(tickets[each])
    again = search.ask(4)
    assert [(t.node, t.ordinal, t.seed) for t in again] == [
        (tickets[each].node, tickets[each].ordinal, tickets[each].seed)
        for each in sorted(abandoned)
    ]
    assert search.ask() == []


def test_a_search_whose_calls_fail_now_and_then_equals_one_whose_calls_do_not():
    def searched(failing: int) -> Search:
        search, calls = Search("q", SearchConfig(expansions=60, children=3, parallel=1)), 0
        while tickets := search.ask():
            calls += 1
            if failing and calls % failing == 0:
                search.abandon(tickets[0])
                continue
            search.grow(tickets[0], [tickets[0].seed % 1000], [-0.5], [tickets[0].seed % 97 / 97])
            search.tell(tickets[0])
        return search

    whole, failing = searched(0), searched(3)
    assert failing.expansions == 60
    assert failing.tree.rows() == whole.tree.rows()


def test_one_failure_of_an_only_child_does_not_end_the_search():
    search = Search("q", SearchConfig(children=1, expansions=3))
    for _ in range(5):
        search.abandon(search.ask()[0])
        assert not search.exhausted
    (ticket,) = search.ask()
    search.grow(ticket, *WHOLE)
    search.tell(ticket)
    assert (search.asked, search.expansions) == (1, 1)


def test_a_rollout_that_is_given_up_keeps_its_nodes_and_frees_its_next_slot():
    search = Search("q", SearchConfig(children=1, expansions=1))
    (ticket,) = search.ask()
    search.grow(ticket, *WHOLE, more=True)
    assert search.tree.open_slots[0] == 0
    search.abandon(ticket)
    (again,) = search.ask()
    assert (again.node, again.ordinal, again.seed) == (1, 0, ticket.seed)
    assert search.tree.virtual_visits == [1, 1]


def test_a_rollout_told_where_an_action_ends_frees_the_slot_of_the_next():
    search = Search("q", SearchConfig(children=1))
    (ticket,) = search.ask()
    search.grow(ticket, *WHOLE, more=True)
    search.tell(ticket)
    assert [each.node for each in search.ask()] == [1]


def test_a_closed_node_gets_no_child_and_what_is_in_flight_there_may_be_given_up():
    search = Search("q", SearchConfig(children=2))
    (ticket,) = search.ask()
    search.grow(ticket, *WHOLE)
    search.tell(ticket)
    search.ask()
    (below,) = search.ask()
    assert below.node == 1
    search.close(1, "kv_full")
    search.close(1, "context")
    assert search.tree.open_slots == [0, 0]
    search.abandon(below)
    assert search.tree.open_slots == [0, 0]
    assert search.ask() == []


@pytest.mark.parametrize("failure", [ZeroDivisionError, KeyboardInterrupt])
def test_a_rule_that_fails_at_its_second_child_hands_out_none(failure):
    calls = []

    def rule(tree, config):
        calls.append(len(tree))
        if len(calls) == 2:
            raise failure
        return 0

    search = Search("q", SearchConfig(select=rule))
    before = state(search)
    with pytest.raises(failure):
        search.ask(3)
    assert (search.in_flight, search.asked) == ([], 0)
    assert state(search)[0] == before[0]
    assert [each.ordinal for each in search.ask(3)] == [0, 1, 2]


@pytest.mark.parametrize("wrong", [True, math.nan, [], "0", np.array([0, 1]), -(2**70)], ids=repr)
def test_a_rule_must_return_an_integer(wrong):
    search = Search("q", SearchConfig(select=lambda tree, config: wrong))
    with pytest.raises(ValueError, match="free child slot, or None, got"):
        search.ask()
    assert (search.asked, search.in_flight) == (0, [])
