"""SearchTree: selection against a brute-force WU-UCT, backup, slots, fixed-point confidence."""

import math

import numpy as np
import pytest

from marco_fast.search.config import SearchConfig
from marco_fast.search.selection import uct
from marco_fast.search.tree import SearchTree, child_seed, root_seed


def random_tree(rng: np.random.Generator, nodes: int, slots: int) -> SearchTree:
    """A tree grown at random, some visits completed, some in flight."""
    tree = SearchTree(7, slots)
    while len(tree) < nodes:
        free = [n for n in range(len(tree)) if tree.started[n] < slots and not tree.terminal[n]]
        if not free:
            break
        parent = int(rng.choice(free))
        ordinal = tree.start_child(parent)
        if rng.random() < 0.1:
            continue  # a slot handed out whose child is not there yet
        terminal = bool(rng.random() < 0.2)
        node = tree.add(parent, ordinal, [1], [-0.5], [0.5], end="eos" if terminal else None)
        tree.add_virtual(node, 1)
        if rng.random() < 0.7:
            tree.backup(node, float(rng.random()))
    return tree


def open_slots(tree: SearchTree, node: int) -> int:
    own = 0 if tree.terminal[node] else tree.slots - tree.started[node]
    return own + sum(open_slots(tree, child) for child in tree.children[node])


def brute_select(tree: SearchTree, c_uct: float, normalize: bool, virtual_loss: bool) -> int | None:
    """The definition, written down again without any bookkeeping."""
    if open_slots(tree, 0) == 0:
        return None
    told = [value for value in tree.end_value if not math.isnan(value)]
    low, high = (min(told), max(told)) if told else (0.0, 0.0)

    def exploit(value: float) -> float:
        return (value - low) / (high - low) if normalize and high > low else value

    node = 0
    while tree.terminal[node] or tree.started[node] >= tree.slots:
        parent_n = tree.visits[node] + tree.virtual_visits[node]
        scores = []
        for child in tree.children[node]:
            if open_slots(tree, child) == 0:
                continue
            n = tree.visits[child] + tree.virtual_visits[child]
            if virtual_loss:
                q = tree.value_sum[child] / max(1, n)
            elif tree.visits[child]:
                q = tree.value_sum[child] / tree.visits[child]
            elif tree.visits[node]:
                q = tree.value_sum[node] / tree.visits[node]
            else:
                q = low if normalize and high > low else 0.0
            explore = c_uct * math.sqrt(2 * math.log(max(1, parent_n)) / max(1, n))
            scores.append((exploit(q) + explore, -child))
        node = -max(scores)[1]
    return node


@pytest.mark.parametrize("virtual_loss", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("slots", [1, 2, 4, 7])
@pytest.mark.parametrize("seed", range(12))
def test_select_is_brute_force_uct(seed, slots, normalize, virtual_loss):
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, int(rng.integers(1, 60)), slots)
    for c_uct in (0.0, 0.3, 1.414, 50.0):
        config = SearchConfig(c_uct=c_uct, normalize=normalize, virtual_loss=virtual_loss)
        assert uct(tree, config) == brute_select(tree, c_uct, normalize, virtual_loss)


@pytest.mark.parametrize("seed", range(8))
def test_open_slots_are_kept_for_every_subtree(seed):
    tree = random_tree(np.random.default_rng(seed), 80, 3)
    assert [open_slots(tree, node) for node in range(len(tree))] == tree.open_slots


def test_backup_reaches_every_ancestor_once():
    tree = SearchTree(0, 2)
    a = tree.add(0, tree.start_child(0), [1], [-1.0], [0.5])
    b = tree.add(a, tree.start_child(a), [2], [-1.0], [1.0])
    other = tree.add(0, tree.start_child(0), [3], [-1.0], [1.0])
    tree.add_virtual(b, 1)
    assert tree.virtual_visits == [1, 1, 1, 0]
    tree.backup(b, 0.25)
    assert tree.visits == [1, 1, 1, 0]
    assert tree.virtual_visits == [0, 0, 0, 0]
    assert tree.value_sum == [0.25, 0.25, 0.25, 0.0]
    assert tree.value(other) == 0.0
    assert (tree.value_min, tree.value_max) == (0.25, 0.25)


def test_an_unvisited_child_counts_with_its_parents_mean_and_its_visits_in_flight():
    tree = SearchTree(0, 2)
    nodes = [tree.add(0, tree.start_child(0), [1], [-1.0], [0.5]) for _ in range(2)]
    tree.add_virtual(nodes[0], 1)
    tree.backup(nodes[0], 0.5)
    tree.add_virtual(nodes[1], 1)
    # equal means, equal visits with the one in flight: the older child
    assert uct(tree, SearchConfig(c_uct=1.0)) == nodes[0]
    tree.add_virtual(nodes[0], 1)
    assert uct(tree, SearchConfig(c_uct=1.0)) == nodes[1]


def test_path_confidence_is_the_same_bits_however_a_path_is_cut():
    rng = np.random.default_rng(3)
    confidences = [float(np.float32(c)) for c in rng.random(200)]
    means = set()
    for cuts in ([200], [1] * 200, [13, 50, 100, 37], [199, 1]):
        tree, node, begin = SearchTree(0, 4), 0, 0
        for length in cuts:
            piece = confidences[begin : begin + length]
            node = tree.add(node, tree.start_child(node), [0] * length, [-0.1] * length, piece)
            begin += length
        means.add(tree.path_confidence(node))
    assert len(means) == 1
    assert means.pop() == pytest.approx(np.mean(np.float64(confidences)), rel=1e-9)


def test_forced_tokens_count_in_no_mean():
    tree = SearchTree(0, 4)
    node = tree.add(0, tree.start_child(0), [1, 2, 3], [-0.1, None, -0.2], [0.25, None, 0.75])
    assert tree.path_confidence(node) == 0.5
    only_forced = tree.add(0, tree.start_child(0), [9], [None], [None])
    assert tree.path_confidence(only_forced) == 0.0
    assert tree.path_token_ids(node) == [1, 2, 3]


def test_seeds_depend_on_seed_question_and_ordinals_alone():
    seeds = {root_seed(s, q) for s in range(20) for q in ("a", "b", "a b", "")}
    seeds |= {child_seed(root_seed(0, "a"), ordinal) for ordinal in range(500)}
    assert len(seeds) == 580
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)
    tree = SearchTree(root_seed(5, "x"), 4)
    first, second = tree.start_child(0), tree.start_child(0)
    late = tree.add(0, second, [1], [-1.0], [1.0])
    early = tree.add(0, first, [1], [-1.0], [1.0])
    assert tree.seed[early] == child_seed(root_seed(5, "x"), 0)
    assert tree.seed[late] == child_seed(root_seed(5, "x"), 1)


def test_rows_are_what_tree_json_promises():
    tree = SearchTree(0, 4)
    node = tree.add(0, tree.start_child(0), [5, 6], [-0.5, None], [0.5, None], end="eos")
    tree.add_virtual(node, 1)
    tree.backup(node, 0.5)
    root, row = tree.rows()
    assert root == {
        "id": 0,
        "parent": -1,
        "token_ids": [],
        "logprobs": [],
        "confidences": [],
        "visits": 1,
        "value": 0.5,
        "path_confidence": 0.0,
        "terminal": False,
        "end": None,
    }
    assert row["parent"] == 0
    assert row["token_ids"] == [5, 6]
    assert row["logprobs"] == [-0.5, None]
    assert (row["terminal"], row["end"]) == (True, "eos")
