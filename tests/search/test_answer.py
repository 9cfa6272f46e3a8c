"""Answers: which finished path answers, and what a vote cannot do whatever the values are."""

import itertools
import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from marco_fast.search.answer import ANSWERS, choose_answer, group_answers
from marco_fast.search.config import SearchConfig
from marco_fast.search.mcts import Search

VALUES = st.one_of(
    st.floats(0.0, 1.0), st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([0.5, 1])
)


def finished(search: Search, value: float, token: int = 0) -> int:
    """The node of one more path of the root, of one token."""
    (ticket,) = search.ask()
    action = [token or len(search.tree)]
    node = search.grow(ticket, action, [-1.0], [0.5], end="eos", finished=True)
    search.tell(ticket, value)
    return node


def voted(paths: list[tuple[str, float]]) -> tuple[Search, dict[int, str]]:
    """A search whose paths have these finals and values, in this order."""
    search = Search("q", SearchConfig(children=256, expansions=256))
    return search, {finished(search, value): final for final, value in paths}


def winner(paths: list[tuple[str, float]], rule: str = "vote") -> str:
    search, finals = voted(paths)
    node = choose_answer(search.tree, finals, finals, rule)
    groups = group_answers(search.tree, finals, finals, rule)
    assert node == groups[0].nodes[0]
    assert sorted(n for group in groups for n in group.nodes) == sorted(finals)
    assert math.fsum(group.support for group in groups) == pytest.approx(1.0)
    return finals[node]


def test_the_vote_is_by_rank():
    """The ranks 1 to 5 to the power of 1.2; equal values have their mean rank."""
    search, finals = voted([("a", 0.9), ("b", 0.8), ("b", 0.8), ("c", 0.1), ("b", 0.2)])
    groups = group_answers(search.tree, finals, finals, "vote")
    weights = {"b": 2 * 3.5**1.2 + 2**1.2, "a": 5**1.2, "c": 1.0}
    assert [group.final for group in groups] == list(weights)
    for group in groups:
        assert group.support == pytest.approx(weights[group.final] / sum(weights.values()))
    assert groups[0] == ("b", groups[0].support, 0.8, "b", (2, 3, 5))


def test_the_four_answer_rules():
    paths = [("12", 0.6), ("12", 0.7), ("7", 0.9), ("7", 0.8), ("12", 0.1)]
    assert [winner(paths, rule) for rule in ANSWERS] == ["7", "12", "7", "7"]
    search, finals = voted(paths)
    chosen = [choose_answer(search.tree, finals, finals, rule) for rule in ANSWERS]
    assert chosen == [3, 2, 3, 3]  # the winner's best path
    assert choose_answer(search.tree, {}, {}, "vote") is None
    assert group_answers(search.tree, {}, {}, "vote") == []


@pytest.mark.parametrize("rule", ["majority", "value", "visits", "own"])
def test_support_is_the_share_of_the_branches_where_no_ranks_vote(rule):
    search, finals = voted([("a", 0.9), ("b", 0.8), ("b", 0.7), ("b", 0.1)])
    rules = {"own": lambda tree, answers: 4}
    groups = group_answers(search.tree, finals, finals, rules.get(rule, rule))
    assert {group.final: group.support for group in groups} == {"a": 0.25, "b": 0.75}
    assert groups[0].final == ("a" if rule in ("value", "visits") else "b")


def test_the_chosen_path_speaks_for_its_group():
    search, finals = voted([("a", 0.9), ("b", 0.8), ("b", 0.7), ("b", 0.1)])
    groups = group_answers(search.tree, dict.fromkeys(finals, "A") | {3: "B"}, finals, "value")
    assert [group.nodes for group in groups] == [(1,), (2, 3, 4)]

    def third(tree, answers):
        return 3

    groups = group_answers(search.tree, dict.fromkeys(finals, "A") | {3: "B"}, finals, third)
    assert groups[0] == ("b", 0.75, 0.7, "B", (3, 2, 4))
    assert groups[1] == ("a", 0.25, 0.9, "A", (1,))


def test_a_rule_that_chooses_none_leaves_the_groups_by_support():
    search, finals = voted([("a", 0.9), ("b", 0.8), ("b", 0.7)])
    groups = group_answers(search.tree, finals, finals, lambda tree, answers: None)
    assert [group.final for group in groups] == ["b", "a"]


@given(st.lists(VALUES, min_size=8, max_size=8), st.integers(0, 7))
def test_seven_of_eight_that_agree_are_never_outvoted(values, place):
    finals = ["a"] * 8
    finals[place] = "b"
    assert winner(list(zip(finals, values, strict=True))) == "a"


@given(st.lists(VALUES, min_size=1, max_size=40), st.data())
def test_three_quarters_that_agree_are_never_outvoted(values, data):
    most = len(values) // 4
    others = data.draw(st.sets(st.integers(0, len(values) - 1), max_size=most))
    finals = ["b" if each in others else "a" for each in range(len(values))]
    assert winner(list(zip(finals, values, strict=True))) == "a"


def test_the_bound_holds_where_it_is_tightest_and_not_below():
    """Those that agree have the lowest values, all equal; the others agree too."""
    for size in range(1, 200):
        agree = -(-3 * size // 4)
        paths = [("a", 0.1)] * agree + [("b", 1.0 + each) for each in range(size - agree)]
        assert winner(paths) == "a"
    assert winner([("a", 0.1)] * 14 + [("b", 1.0 + each) for each in range(6)]) == "b"


@given(VALUES, VALUES)
def test_two_that_disagree_go_to_the_more_confident(first, second):
    assert winner([("a", first), ("b", second)]) == ("a" if first >= second else "b")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-20, 20)), min_size=1, max_size=24))
def test_a_vote_knows_no_more_of_a_value_than_its_rank(paths):
    usual = winner([(final, float(value)) for final, value in paths])
    for transform in (lambda x: 10.0**x, lambda x: 1e306 * x, lambda x: 0.99 + x * 1e-9, math.atan):
        assert winner([(final, transform(value)) for final, value in paths]) == usual


@given(st.lists(st.tuples(st.sampled_from("abcd"), VALUES), min_size=1, max_size=12), st.randoms())
def test_the_order_of_the_answers_changes_nothing(paths, random):
    search, finals = voted(paths)
    items = list(finals.items())
    random.shuffle(items)
    for rule in ANSWERS:
        found = group_answers(search.tree, dict(items), dict(items), rule)
        assert found == group_answers(search.tree, finals, finals, rule)


@pytest.mark.parametrize("rule", ANSWERS)
def test_ties_go_to_the_higher_value_then_to_the_older_node(rule):
    for paths in itertools.permutations([("b", 0.5), ("a", 0.5)]):
        assert winner(list(paths), rule) == paths[0][0]
    search, finals = voted([("a", 0.5), ("a", 0.1), ("b", 0.1), ("b", 0.5)])
    assert choose_answer(search.tree, finals, finals, rule) == 1
    assert winner([("a", 0.4), ("a", 0.5), ("b", 0.6), ("b", 0.1)], "majority") == "b"


def test_visits_follow_the_most_visited_way_to_an_answer():
    search = Search("q", SearchConfig(children=2, parallel=1))
    (ticket,) = search.ask()
    search.grow(ticket, [1], [-1.0], [0.5], more=True)
    often = search.grow(ticket, [1], [-1.0], [0.5], end="eos", finished=True)
    search.tell(ticket, 0.4)
    once = finished(search, 0.99)
    (ticket,) = search.ask()
    node = ticket.node
    search.grow(ticket, [2], [-1.0], [0.5], end="eos")
    search.tell(ticket, 0.1)
    assert node == 1  # a second visit below the first child
    answers = {often: "a", once: "b"}
    assert choose_answer(search.tree, answers, answers, "visits") == often


def test_a_callers_rule_answers():
    search, answers = voted([("a", 0.1), ("b", 0.9)])
    rules = [lambda tree, answers: min(answers), lambda tree, answers: None]
    assert [choose_answer(search.tree, answers, answers, rule) for rule in rules] == [1, None]
    with pytest.raises(ValueError, match="a finished node, got 0"):
        choose_answer(search.tree, answers, answers, lambda tree, answers: 0)


@pytest.mark.parametrize("rule", ANSWERS)
def test_a_path_in_flight_does_not_answer(rule):
    search = Search("q", SearchConfig(children=8))
    told = finished(search, 0.1)
    (ticket,) = search.ask()
    flying = search.grow(ticket, [7], [-1.0], [0.9], end="eos", finished=True)
    answers = {told: "a", flying: "b"}
    assert choose_answer(search.tree, answers, answers, rule) == told
    assert [group.nodes for group in group_answers(search.tree, answers, answers, rule)] == [(1,)]
