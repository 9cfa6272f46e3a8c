"""The planner: its arrays, its specification in Python, growth, and bad input."""

import numpy as np
import pytest
import torch

import marco_fast as mf
from marco_fast.ops.reference.plan import ReferencePlan
from tests.support.trees import random_forest

ARRAYS = [
    "query_order", "query_segment", "query_lens", "path_lens", "segment_ids", "segment_parents",
    "segment_lens", "query_begin", "own_end", "query_end", "page_begin", "page_ids",
]  # fmt: skip
SHAPE = {"num_heads": 7, "num_kv_heads": 1, "head_dim": 32, "page_size": 16}


def small_plan(**changes):
    """Two roots, 0 with children 1 and 2, 3 alone; queries end in 2, 1, 3."""
    arguments = {
        "parents": [-1, 0, 0, -1],
        "segment_lens": [20, 3, 0, 40],
        "block_table": np.array([[5, 1, 9], [2, 9, 9], [0, 9, 9], [3, 4, 6]], np.int32),
        "leaves": [2, 1, 3],
        **SHAPE,
        **changes,
    }
    return mf.plan_tree_attention(**arguments)


def test_a_small_plan_by_hand():
    plan = small_plan()
    assert plan.query_order.tolist() == [1, 0, 2]
    assert plan.query_segment.tolist() == [1, 2, 3]
    assert plan.query_lens.tolist() == [3, 0, 40]
    assert plan.path_lens.tolist() == [23, 20, 40]
    assert plan.segment_ids.tolist() == [0, 1, 2, 3]
    assert plan.segment_parents.tolist() == [-1, 0, 0, -1]
    assert plan.query_begin.tolist() == [0, 0, 1, 2]
    assert plan.own_end.tolist() == [0, 1, 2, 3]
    assert plan.query_end.tolist() == [2, 1, 2, 3]
    assert plan.page_begin.tolist() == [0, 2, 3, 3, 6]
    assert plan.page_ids.tolist() == [5, 1, 2, 3, 4, 6]


@pytest.mark.parametrize("seed", range(60))
def test_invariants_of_random_plans(seed):
    rng = np.random.default_rng(seed)
    forest = random_forest(
        seed,
        nodes=int(rng.integers(1, 60)),
        queries=int(rng.integers(0, 40)),
        head_dim=16,
        page_size=int(rng.choice([1, 8, 16])),
        partial=bool(seed % 2),
        roots=float(rng.choice([0.0, 0.3])),
    )
    plan, lens = forest.plan(), forest.lens
    assert sorted(plan.query_order.tolist()) == list(range(len(forest.leaves)))
    assert (plan.segment_parents < np.arange(len(plan.segment_ids))).all()
    seen = {i: [] for i in range(len(forest.leaves))}  # every (query, token), from the intervals
    for a, n in enumerate(plan.segment_ids):
        for position in range(plan.query_begin[a], plan.query_end[a]):
            own = position < plan.own_end[a]
            count = plan.query_lens[position] if own else lens[n]
            assert count <= plan.segment_lens[a] <= lens[n]
            seen[int(plan.query_order[position])] += [(int(n), t) for t in range(count)]
        own_lens = plan.query_lens[plan.query_begin[a] : plan.own_end[a]]
        assert (np.diff(own_lens) >= 0).all()
        pages = plan.page_ids[plan.page_begin[a] : plan.page_begin[a + 1]]
        assert pages.tolist() == forest.tables()[0][n, : len(pages)].tolist()
        assert len(pages) == -(-int(plan.segment_lens[a]) // forest.page_size)
    for i, leaf in enumerate(forest.leaves):
        want = [
            (int(leaf), t)
            for t in range(lens[leaf] if forest.leaf_lens is None else forest.leaf_lens[i])
        ]
        n = int(forest.parents[leaf])
        while n >= 0:
            want += [(n, t) for t in range(lens[n])]
            n = int(forest.parents[n])
        assert sorted(seen[i]) == sorted(want)
        assert plan.path_lens[plan.query_order.tolist().index(i)] == len(want)


@pytest.mark.parametrize("seed", range(60))
def test_equals_its_specification(seed):
    rng = np.random.default_rng(seed)
    forest = random_forest(seed, nodes=30, queries=12, head_dim=16, partial=bool(seed % 2))
    table, _ = forest.tables()
    reserve = 0
    leaves, leaf_lens = forest.leaves, forest.leaf_lens
    if seed % 3 == 0:
        childless = np.setdiff1d(np.arange(30), forest.parents)
        leaves, leaf_lens, reserve = rng.permutation(childless)[:6], None, 20
        table = np.concatenate([table % 50, rng.integers(0, 50, (30, 2), np.int32)], 1)
        table = table.astype(np.int32)
    plan = mf.plan_tree_attention(
        forest.parents, forest.lens, table, leaves, leaf_lens=leaf_lens, num_heads=1,
        num_kv_heads=1, head_dim=16, page_size=16, max_new_tokens=reserve,
    )  # fmt: skip
    reference = ReferencePlan(forest.parents, forest.lens, table, leaves, leaf_lens, 16, reserve)
    for step in range(4 if reserve else 1):
        for name in ARRAYS:
            assert getattr(plan, name).tolist() == getattr(reference, name).tolist(), name
            assert getattr(plan, name).dtype == np.int32
        assert plan.arrays.num_pages_needed == reference.num_pages_needed
        if reserve:
            active = rng.random(len(leaves)) < 0.5 if step else None
            plan.advance(active)
            reference.advance(active)


@pytest.mark.parametrize("kind", [list, np.int64, np.int32, torch.int64, torch.int32])
def test_kinds_of_integers(kind):
    def given(values):
        if kind is list:
            return list(values)
        return (
            torch.tensor(values, dtype=kind)
            if isinstance(kind, torch.dtype)
            else np.array(values, kind)
        )

    table = np.array([[5, 1, 9], [2, 9, 9], [0, 9, 9], [3, 4, 6]], np.int32)
    plan = small_plan(
        parents=given([-1, 0, 0, -1]), segment_lens=given([20, 3, 0, 40]), leaves=given([2, 1, 3]),
        leaf_lens=given([0, 2, 33]), block_table=torch.from_numpy(table),
    )  # fmt: skip
    assert plan.query_lens.tolist() == [2, 0, 33]
    assert plan.segment_lens.tolist() == [20, 2, 0, 33]


def test_the_plan_keeps_nothing_of_the_callers():
    lens, table = np.array([20]), np.array([[3, 4]], np.int32)
    plan = mf.plan_tree_attention(np.array([-1]), lens, table, np.array([0]), **SHAPE)
    lens[:], table[:] = 5, 99
    assert plan.segment_lens.tolist() == [20]
    assert plan.page_ids.tolist() == [3, 4]


def test_advance():
    plan = small_plan(segment_lens=[20, 3, 0, 40], max_new_tokens=3, leaves=[2, 1, 3])
    plan.advance()
    plan.advance(torch.tensor([True, False, False]))
    assert plan.path_lens.tolist() == [24, 22, 41]  # depth-first order: queries 1, 0, 2
    assert plan.segment_lens.tolist() == [20, 4, 2, 41]
    plan.advance(np.array([True, False, True]))
    before = [getattr(plan, name).tolist() for name in ARRAYS]
    with pytest.raises(ValueError, match="max_new_tokens = 3 new tokens, query 0"):
        plan.advance()
    assert before == [getattr(plan, name).tolist() for name in ARRAYS]
    with pytest.raises(ValueError, match="active"):
        plan.advance(np.array([True, False]))
    with pytest.raises(ValueError, match="active"):
        plan.advance(np.array([1, 0, 1]))


def test_advance_without_room():
    with pytest.raises(ValueError, match="max_new_tokens = 0"):
        small_plan().advance()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"parents": [-1, 0, 4, -1]}, IndexError, r"parents\[2\] in -1..3, got 4"),
        ({"parents": [-2, 0, 0, -1]}, IndexError, r"parents\[0\]"),
        ({"parents": [-1, 2, 0, -1]}, ValueError, "parents before children"),
        ({"parents": [-1, 1, 0, -1]}, ValueError, "parents before children"),
        ({"parents": [-1, 0, 0]}, ValueError, r"segment_lens \[N\]"),
        ({"parents": [-1.0, 0.0, 0.0, -1.0]}, ValueError, "parents as 1-D integers"),
        ({"segment_lens": [20, -1, 0, 40]}, ValueError, r"segment_lens\[1\] >= 0"),
        ({"segment_lens": [20, 3, 0, 49]}, ValueError, "at least 4 pages for node 3, got 3"),
        ({"leaves": [2, 4, 3]}, IndexError, r"leaves\[1\] in 0..3, got 4"),
        ({"leaves": [2, -1, 3]}, IndexError, r"leaves\[1\]"),
        ({"leaves": [[2], [1]]}, ValueError, "leaves as 1-D integers"),
        ({"leaf_lens": [0, 4, 40]}, ValueError, r"leaf_lens\[1\] in 0..3, got 4"),
        ({"leaf_lens": [0, -1, 40]}, ValueError, r"leaf_lens\[1\]"),
        ({"leaf_lens": [0, 3]}, ValueError, r"leaf_lens \[Q\]"),
        ({"leaves": [1, 1, 3], "max_new_tokens": 1}, ValueError, "distinct leaves"),
        ({"leaves": [0, 3], "max_new_tokens": 1}, ValueError, "leaves without children"),
        ({"leaf_lens": [0, 3, 40], "max_new_tokens": 1}, ValueError, "no leaf_lens"),
        ({"max_new_tokens": 9}, ValueError, "at least 4 pages for node 3"),
        ({"max_new_tokens": -1}, ValueError, "max_new_tokens >= 0"),
        ({"num_heads": 7, "num_kv_heads": 2}, ValueError, "multiple of num_kv_heads"),
        ({"num_kv_heads": 0}, ValueError, "multiple of num_kv_heads"),
        ({"head_dim": 24}, ValueError, "multiple of 16"),
        ({"head_dim": 272}, ValueError, "multiple of 16"),
        ({"page_size": 0}, ValueError, "page_size >= 1"),
        ({"block_table": np.zeros((4, 3))}, ValueError, "block_table"),
        ({"block_table": np.zeros(4, np.int32)}, ValueError, "block_table"),
        ({"block_table": np.full((4, 3), -1, np.int32)}, IndexError, "page ids >= 0"),
        ({"segment_lens": [2**31 - 1, 3, 0, 40], "page_size": 2**30}, ValueError, "at most 2"),
    ],
)  # fmt: skip
def test_bad_input(changes, error, message):
    with pytest.raises(error, match=message):
        small_plan(**changes)


@pytest.mark.parametrize("n", [0, 1])
def test_nothing_to_plan(n):
    plan = mf.plan_tree_attention(
        [-1] * n, [0] * n, np.zeros((n, 1), np.int32), [], **SHAPE, max_new_tokens=0
    )
    assert plan.num_queries == 0
    assert len(plan.segment_ids) == 0


def test_deep_chain_needs_no_stack():
    n = 100_000
    plan = mf.plan_tree_attention(
        np.arange(n) - 1, np.ones(n, int), np.zeros((n, 1), np.int32), [n - 1], **SHAPE
    )
    assert plan.path_lens.tolist() == [n]
