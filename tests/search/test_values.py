"""Values of any size and kind: the tree stays whole, selection ends and is fair."""

import json
import math
import sys
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from marco_fast.search.config import SearchConfig
from marco_fast.search.mcts import Search

MOST, TINY = sys.float_info.max, 5e-324
MIXTURES = {
    "largest": [MOST],
    "smallest": [-MOST],
    "both ends": [MOST, -MOST],
    "both ends and usual": [0.7, -MOST, 0.1, MOST, -1.0],
    "1e308": [1e308, -1e308, 0.0],
    "denormal": [TINY, 0.0, -TINY, 2 * TINY],
    "denormal and largest": [TINY, MOST, -TINY],
    "usual, then huge": [0.5] * 40 + [MOST, -MOST] * 40,
    "steps": [10.0**power for power in range(-320, 309, 7)],
    "one rounding apart": [1.0, 1.0 + sys.float_info.epsilon],
}


def searched(values, expansions: int = 300, **options) -> Search:
    config = SearchConfig(expansions=expansions, children=3, parallel=4, **options)
    search = Search("q", config)
    told = 0
    while tickets := search.ask(4):
        for ticket in reversed(tickets):
            search.grow(ticket, [len(search.tree)], [-0.5], [0.5])
            search.tell(ticket, values[told % len(values)])
            told += 1
    return search


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("virtual_loss", [False, True])
@pytest.mark.parametrize("name", MIXTURES)
def test_finite_values_of_any_size_keep_the_tree_whole(name, normalize, virtual_loss):
    values = MIXTURES[name]
    search = searched(values, normalize=normalize, virtual_loss=virtual_loss)
    tree = search.tree
    assert (search.expansions, len(tree), search.in_flight) == (300, 301, [])
    assert all(0 <= parent < node for node, parent in enumerate(tree.parent) if node)
    assert tree.visits[0] == 300
    told = tree.end_value[1:]
    assert sorted(told) == sorted(values[each % len(values)] for each in range(300))
    for node in range(1, len(tree)):
        assert min(told) - 1e-300 <= tree.value(node) <= max(told)
    json.dumps(tree.rows(), allow_nan=False)


@pytest.mark.parametrize("value", [MOST, -MOST, 1e308, 0.1, TINY, 0.0, -7.0])
@pytest.mark.parametrize("normalize", [False, True])
def test_equal_values_give_equal_visits(value, normalize):
    tree = searched([value], normalize=normalize).tree
    visits = [tree.visits[child] for child in tree.children[0]]
    assert max(visits) - min(visits) <= 6
    assert tree.value(0) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("scale", [2.0**power for power in (-1000, -300, 300, 989, 1023)])
def test_normalized_values_select_alike_at_any_scale(scale):
    values = [each * scale for each in (0.25, 0.5, 1.0, 0.125)]
    usual = searched([0.25, 0.5, 1.0, 0.125], normalize=True).tree
    assert searched(values, normalize=True).tree.parent == usual.parent


def test_the_mean_of_a_node_is_that_of_its_values():
    tree = searched([MOST, -MOST, MOST / 2, 0.25]).tree
    for node in range(1, len(tree)):
        below = [n for n in range(node, len(tree)) if node in tree.path(n)]
        exact = sum(Fraction(tree.end_value[n]) for n in below) / len(below)
        assert abs(Fraction(tree.value(node)) - exact) <= Fraction(MOST) / 2**40


def told(value) -> float:
    search = Search("q", SearchConfig())
    (ticket,) = search.ask()
    search.grow(ticket, [1], [-1.0], [0.5])
    search.tell(ticket, value)
    (found,) = (each for each in search.tree.end_value if not math.isnan(each))
    assert type(found) is float
    return found


@pytest.mark.parametrize(
    "value",
    [0.5, Fraction(1, 2), Decimal("0.5"), np.float32(0.5), np.float64(0.5), np.array(0.5)],
    ids=repr,
)
def test_whatever_is_one_number_is_a_value(value):
    assert told(value) == 0.5


@pytest.mark.parametrize("value", [1, True, np.int64(1), np.bool_(True)], ids=repr)
def test_integers_and_verdicts_are_values(value):
    assert told(value) == 1.0


class Unprintable:
    def __repr__(self) -> str:
        raise ZeroDivisionError


NO_VALUES = {
    "nan": math.nan, "infinite": -math.inf, "int beyond float": 10**400, "more digits": 10**5000,
    "text": "0.5", "bytes": b"0.5", "complex": 1j, "numpy complex": np.complex64(1),
    "array": np.array([0.5, 0.5]), "array of one": np.array([0.5]), "list": [0.5], "dict": {},
    "signalling": Decimal("sNaN"), "huge decimal": Decimal("1e999"), "object": object(),
    "unprintable": Unprintable(), "numpy nan": np.float32("nan"),
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", NO_VALUES)
def test_what_is_no_finite_number_is_refused_and_nothing_is_done(name):
    search = Search("q", SearchConfig())
    (ticket,) = search.ask()
    search.grow(ticket, [1], [-1.0], [0.5])
    with pytest.raises(ValueError, match="expected a finite value of a path, got"):
        search.tell(ticket, NO_VALUES[name])
    assert (ticket.done, search.expansions, search.tree.visits) == (False, 0, [0, 0])
    search.tell(ticket, 0.25)
    assert search.tree.value(0) == 0.25
