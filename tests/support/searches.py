"""Searches for the tests of solve(): a question, a small budget, and how close numbers must be."""

import math
import os
from pathlib import Path

import marco_fast
from marco_fast import SearchConfig
from marco_fast.search.mcts import Search

# Two float32 programs of one model: sums in another order, 2 to 6 layers, logits of about +-30.
ATOL = 2e-4
NANO = Path(marco_fast.__file__).parent / "models" / "nano-marco"
QUESTION = "How many times does the letter r occur in strawberry?"
SMALL = SearchConfig(expansions=10, step_tokens=8, rollout_tokens=24, parallel=6, temperature=1.0)


def same_tree(a, b) -> bool:
    return a.tree.rows() == b.tree.rows()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def count_calls(target, name: str) -> list[tuple]:
    """Record the calls of a method from now on."""
    calls: list[tuple] = []
    method = getattr(target, name)

    def recorded(*args):
        calls.append(args)
        return method(*args)

    setattr(target, name, recorded)
    return calls


def check_invariants(search: Search) -> None:
    """The books of a search: visits, ends, slots."""
    tree = search.tree
    assert all(v == 0 for v in tree.virtual_visits) or search.in_flight
    for node in range(len(tree)):
        below = sum(tree.visits[child] for child in tree.children[node])
        assert tree.visits[node] == below + tree.ended[node]
        assert math.isnan(tree.end_value[node]) == (tree.ended[node] == 0)
        own = [child for child in tree.children[node] if tree.ordinal[child] >= 0]
        assert len(own) <= tree.started[node] <= tree.slots
