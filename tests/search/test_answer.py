"""Answers: which finished path answers, and when two answers are the same."""

import pytest

from marco_fast.search.answer import ANSWERS, canonical, choose_answer
from marco_fast.search.config import SearchConfig
from marco_fast.search.mcts import Search


def finished(search: Search, value: float, *, more_visits: int = 0) -> int:
    (ticket,) = search.ask()
    node = search.grow(ticket, [1], [-1.0], [0.5], end="eos", finished=True)
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
    often = search.grow(ticket, [1], [-1.0], [0.5], end="eos", finished=True)
    search.tell(ticket, 0.4)
    once = finished(search, 0.99)
    (ticket,) = search.ask()
    node = ticket.node
    search.grow(ticket, [1], [-1.0], [0.5], end="eos")
    search.tell(ticket, 0.1)
    assert node == 1  # a second visit below the first child
    answers = {often: "a", once: "b"}
    assert choose_answer(search.tree, answers, search.config.answer) == often


def test_ties_go_to_the_older_node():
    search = Search("q", SearchConfig(children=8))
    first, second = finished(search, 0.5), finished(search, 0.5)
    assert choose_answer(search.tree, {second: "b", first: "a"}, search.config.answer) == first


def test_a_callers_rule_answers():
    search = Search("q", SearchConfig(children=8))
    low, high = finished(search, 0.1), finished(search, 0.9)
    answers = {low: "a", high: "b"}
    assert choose_answer(search.tree, answers, lambda tree, answers: min(answers)) == low
    assert choose_answer(search.tree, answers, lambda tree, answers: None) is None
    with pytest.raises(ValueError, match="a finished node, got 0"):
        choose_answer(search.tree, answers, lambda tree, answers: 0)


@pytest.mark.parametrize("rule", ANSWERS)
def test_a_path_in_flight_does_not_answer(rule):
    search = Search("q", SearchConfig(children=8))
    told = finished(search, 0.1)
    (ticket,) = search.ask()
    flying = search.grow(ticket, [1], [-1.0], [0.9], end="eos", finished=True)
    assert choose_answer(search.tree, {told: "a", flying: "b"}, rule) == told


@pytest.mark.parametrize(
    "same",
    [
        ("12", "12.", " 12 ", "12 apples", "12.0", "\u221212 and -12"[1:3]),
        ("1,234", "1234", "$1,234.00"),
        ("-3", "\u22123"),
        ("2.5", "2.50"),
        ("Tom", "tom.", " TOM\n"),
        ("the red one", "Red  one!"),
        ("3 and 4", "4, 3"),
    ],
)
def test_answers_that_say_the_same_have_one_key(same):
    assert len({canonical(each) for each in same}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [("12", "1.2"), ("3", "-3"), ("1/2", "12"), ("Tom", "Tim"), ("3 and 4", "3"), ("100", "10")],
)
def test_answers_that_differ_have_two_keys(one, other):
    assert canonical(one) != canonical(other)
