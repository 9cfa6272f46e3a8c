"""Answers: when two are the same, and which finished path of a tree answers."""

import math
import re
from collections.abc import Callable

from marco_fast.search.numbers import as_int, shown
from marco_fast.search.tree import SearchTree

__all__ = ["ANSWERS", "AnswerFunction", "canonical", "choose_answer"]

AnswerFunction = Callable[[SearchTree, dict[int, str]], int | None]
"""(tree, answer text of each finished node, at least one) -> the node that answers, or None."""

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NUMBER = re.compile(r"(?:(?<!\w)-)?\d+(?:[./]\d+)*")
_TRAILING_ZEROS = re.compile(r"^(-?\d+)\.0+$|(\.\d*?[1-9])0+$")


def canonical(answer: str) -> str:
    """What two answers have in common that say the same: the key of votes, filters and grading.

    The numbers, in any order and each once, where there are any; else the text without case,
    surrounding punctuation, a leading "the" and differences of white space.
    """
    text = answer.strip().strip(".!\"'` \n。！").lower()
    numbers = _NUMBER.findall(_THOUSANDS.sub("", text).replace("−", "-"))
    if numbers:
        return " ".join(sorted({_TRAILING_ZEROS.sub(r"\1\2", each) for each in numbers}))
    return " ".join(text.removeprefix("the ").split())


def best_value(tree: SearchTree, answers: dict[int, str]) -> int:
    """The finished path with the highest value."""
    return max(answers, key=lambda node: (tree.end_value[node], -node))


def most_visits(tree: SearchTree, answers: dict[int, str]) -> int:
    """Down from the root by visits, then mean value, along nodes with an answer below them."""
    holds = {node for end in answers for node in tree.path(end)}
    node = 0
    while node not in answers:
        below = [child for child in tree.children[node] if child in holds]
        node = max(below, key=lambda each: (tree.visits[each], tree.value(each), -each))
    return node


def vote(tree: SearchTree, answers: dict[int, str]) -> int:
    """The best path of the answer whose paths have the largest sum of values."""
    weights: dict[str, float] = {}
    for node in sorted(answers):
        key = canonical(answers[node])
        weights[key] = weights.get(key, 0.0) + tree.end_value[node] / tree.value_unit
    winner = max(weights, key=weights.__getitem__)
    return best_value(tree, {n: text for n, text in answers.items() if canonical(text) == winner})


ANSWERS: dict[str, AnswerFunction] = {
    "value": best_value,
    "visits": most_visits,
    "vote": vote,
}


def choose_answer(
    tree: SearchTree, answers: dict[int, str], rule: str | AnswerFunction
) -> int | None:
    """The finished node that answers, ties to the older node.

    Args:
        tree: of a search.
        answers: the answer's text of every finished node; those not backed up do not count.
        rule: as SearchConfig.answer.

    Returns:
        A node, or None when no path is finished or the caller's own rule chooses none.

    Raises:
        ValueError: the caller's own rule returned a node that is not finished.
    """
    finished = {
        node: text for node, text in answers.items() if not math.isnan(tree.end_value[node])
    }
    if not finished:
        return None
    if isinstance(rule, str):
        return ANSWERS[rule](tree, finished)
    chosen = rule(tree, dict(finished))
    node = as_int(chosen)
    if chosen is not None and node not in finished:
        raise ValueError(f"expected an answer rule to return a finished node, got {shown(chosen)}")
    return node
