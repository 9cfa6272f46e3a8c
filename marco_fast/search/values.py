"""Values: how good a decoded path is, in [0, 1]. A search backs them up and answers by them."""

from collections.abc import Callable, Sequence

from marco_fast.search.tree import SearchTree, mean_confidence

__all__ = ["VALUES", "ValueFunction"]

ValueFunction = Callable[[Sequence[int], Sequence[float | None], str], float]
"""A caller's own value: (token_ids, confidences, text) of the whole path -> a finite float."""


def path(tree: SearchTree, node: int, before: int) -> float:
    """The mean confidence of all scored tokens from the root to `node`."""
    return tree.path_confidence(node)


def rollout(tree: SearchTree, node: int, before: int) -> float:
    """The mean confidence of the scored tokens behind `before`: the last action and its rollout."""
    return mean_confidence(
        tree.path_sum[node] - tree.path_sum[before],
        tree.path_count[node] - tree.path_count[before],
    )


def logprob(tree: SearchTree, node: int, before: int) -> float:
    """The geometric mean of the tokens' probabilities from the root to `node`."""
    return tree.path_probability(node)


VALUES: dict[str, Callable[[SearchTree, int, int], float]] = {
    "path": path,
    "rollout": rollout,
    "logprob": logprob,
}
"""Of the path that ends at `node`, whose branch went on from `before`."""
