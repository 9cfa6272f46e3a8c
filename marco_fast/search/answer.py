"""Answers: which finished path of a tree answers, by a vote or by its own value.

A vote is over the branches of the search: a path that ended k of them has k votes. Answers are the
same where their finals (search/final.py) are equal texts.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from marco_fast.search.numbers import as_int, shown
from marco_fast.search.tree import SearchTree

__all__ = [
    "ANSWERS",
    "AnswerFunction",
    "AnswerGroup",
    "choose_answer",
    "group_answers",
]

AnswerFunction = Callable[[SearchTree, dict[int, str]], int | None]
"""(tree, answer text of each finished node, at least one) -> the node that answers, or None."""

RANK_POWER = 1.2


class AnswerGroup(NamedTuple):
    """The finished paths whose answers say the same.

    Attributes:
        final: what they say, in the form that is compared.
        support: their share of the vote, in [0, 1]: by rank weights under the rule "vote", under
            any other rule by how many branches ended there.
        confidence: the value of the path that speaks for them: the chosen one where it is among
            them, else the best. answer: that path's.
        nodes: their last nodes: the one that speaks for them, then the best value first.
    """

    final: str
    support: float
    confidence: float
    answer: str
    nodes: tuple[int, ...]


def rank_weights(tree: SearchTree, nodes: list[int]) -> dict[int, float]:
    """What each path's votes weigh together, by the rank of its value alone.

    Of n branches the best has rank n and the worst rank 1, branches of equal values share their
    mean rank, and a branch weighs rank ** 1.2 (a Borda count). So a path that stands apart, such as
    a loop that the model is sure of, weighs no more than a rank: branches that agree and are at
    least three quarters of all cannot be outvoted, whatever the values; of two that disagree the
    one of the higher value wins.

    Args:
        tree: of a search.
        nodes: the last nodes of its finished paths.
    """
    weights: dict[int, float] = {}
    votes: dict[float, int] = {}
    for node in nodes:
        votes[tree.end_value[node]] = votes.get(tree.end_value[node], 0) + tree.ended[node]
    below, weight_of = 0, {}
    for value in sorted(votes):
        weight_of[value] = (below + (votes[value] + 1) / 2) ** RANK_POWER
        below += votes[value]
    for node in nodes:
        weights[node] = tree.ended[node] * weight_of[tree.end_value[node]]
    return weights


def counts(tree: SearchTree, nodes: list[int]) -> dict[int, float]:
    """How many branches ended at each node."""
    return {node: float(tree.ended[node]) for node in nodes}


def most_visits(tree: SearchTree, answers: Mapping[int, str]) -> int:
    """Down from the root by visits, then mean value, along nodes with an answer below them."""
    holds = {node for end in answers for node in tree.path(end)}
    node = 0
    while node not in answers:
        below = [child for child in tree.children[node] if child in holds]
        node = max(below, key=lambda each: (tree.visits[each], tree.value(each), -each))
    return node


ANSWERS = ("vote", "majority", "value", "visits")


def choose_answer(
    tree: SearchTree,
    answers: Mapping[int, str],
    finals: Mapping[int, str],
    rule: str | AnswerFunction,
) -> int | None:
    """The finished node that answers.

    Args:
        tree: of a search.
        answers: the answer's text of every finished node; those not backed up do not count.
        finals: what each of these answers says; equal texts say the same.
        rule: as SearchConfig.answer. "vote" and "majority" choose the final of the largest weight
            (`rank_weights`) or of the most branches, and its path of the highest value. Ties go to
            the higher value, then to the older node.

    Returns:
        A node, or None when no path is finished or the caller's own rule chooses none.

    Raises:
        ValueError: the caller's own rule returned a node that is not finished.
    """
    nodes = _told(tree, answers)
    if not nodes:
        return None
    if not isinstance(rule, str):
        chosen = rule(tree, {node: answers[node] for node in nodes})
        found = as_int(chosen)
        if chosen is not None and found not in nodes:
            got = shown(chosen)
            raise ValueError(f"expected an answer rule to return a finished node, got {got}")
        return found
    if rule == "visits":
        return most_visits(tree, {node: answers[node] for node in nodes})
    return _ranked(tree, nodes, finals, rule)[0][0]


def group_answers(
    tree: SearchTree,
    answers: Mapping[int, str],
    finals: Mapping[int, str],
    rule: str | AnswerFunction,
) -> list[AnswerGroup]:
    """The finished paths by what they say, the best group first.

    The arguments are those of choose_answer(), whose node is the first of the first group, unless
    a rule of the caller's own chooses none. The others follow by support, then by their best value;
    under the rule "value" by their best value alone.

    Raises:
        ValueError: as choose_answer() does.
    """
    nodes = _told(tree, answers)
    chosen = choose_answer(tree, answers, finals, rule)
    weights = _weights(tree, nodes, rule)
    total = math.fsum(weights.values())
    groups = []
    for group in _ranked(tree, nodes, finals, rule):
        first = chosen if chosen in group else group[0]
        groups.append(
            AnswerGroup(
                finals[first],
                math.fsum(weights[node] for node in group) / total,
                tree.end_value[first],
                answers[first],
                (first, *(node for node in group if node != first)),
            )
        )
    groups.sort(key=lambda each: each.nodes[0] != chosen)  # stable: the rest keep their order
    return groups


def _told(tree: SearchTree, answers: Mapping[int, str]) -> list[int]:
    """The nodes that answer and whose path is backed up, oldest first."""
    return sorted(node for node in answers if tree.ended[node])


def _weights(tree: SearchTree, nodes: list[int], rule: str | AnswerFunction) -> dict[int, float]:
    """Each path's weight in the vote."""
    return rank_weights(tree, nodes) if rule == "vote" else counts(tree, nodes)


def _ranked(
    tree: SearchTree, nodes: list[int], finals: Mapping[int, str], rule: str | AnswerFunction
) -> list[list[int]]:
    """The nodes of each final, the best first; the final of the best first."""
    weights = _weights(tree, nodes, rule)
    groups: dict[str, list[int]] = {}
    for node in sorted(nodes, key=lambda each: (-tree.end_value[each], each)):
        groups.setdefault(finals[node], []).append(node)
    if rule == "value":
        return list(groups.values())
    # A sum that is rounded once depends on no order, and sort() keeps the best value first.
    return sorted(groups.values(), key=lambda group: -math.fsum(weights[node] for node in group))
