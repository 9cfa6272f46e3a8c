"""What must not change a bit of tree attention: order, neighbours, pages, threads, plans."""

import numpy as np
import pytest
import torch

import marco_fast as mf
from tests.support.attention_properties import (
    check_a_fresh_plan,
    check_alone,
    check_beside,
    check_leak,
    check_order,
    check_pages,
    check_scaled_values,
    equal,
)
from tests.support.tolerance import assert_close
from tests.support.trees import Forest, random_forest

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def forest_of(seed: int, dtype: torch.dtype, **kwargs) -> Forest:
    # Few rows a query and several words of K, so that the blocks differ between two plans.
    heads, head_dim = [(7, 32), (3, 64), (1, 48), (2, 128)][seed % 4]
    options = {"nodes": 14, "queries": 9, "heads": heads, "head_dim": head_dim, "max_len": 50}
    options["partial"] = seed % 2 == 1
    return random_forest(seed, dtype=dtype, **{**options, **kwargs})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_permuted_queries(seed, dtype, isa):
    order = np.random.default_rng(seed).permutation(9)
    check_order(forest_of(seed, dtype), order, Forest.run)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_each_query_alone(seed, dtype, isa):
    check_alone(forest_of(seed, dtype), Forest.run)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_node_twice(dtype, isa):
    check_order(forest_of(0, dtype), [3, 3, 5, 3], Forest.run)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("page_size", [1, 8, 16, 24, 128])
def test_renumbered_pages_and_page_size(page_size, dtype, isa):
    check_pages(forest_of(1, dtype), page_size, Forest.run)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_an_unrelated_request(seed, dtype, isa):
    forest, extra = (forest_of(seed + n, dtype, partial=False) for n in (0, 48))
    check_beside(forest, extra, Forest.run)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_thread_counts(dtype, isa):
    # Enough work for every team below.
    forest = forest_of(2, dtype, nodes=20, queries=40, heads=24, kv_heads=3, head_dim=64)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5, 8):
            torch.set_num_threads(threads)
            results.append(forest.run())
    finally:
        torch.set_num_threads(before)
    assert all(equal(result, results[0]) for result in results)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("power", [-3, 1, 4])
def test_v_scaled_by_a_power_of_two(power, dtype, isa):
    check_scaled_values(forest_of(3, dtype), power, Forest.run)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_split_segment_stays_close(dtype, isa):
    k, v = torch.randn(2, 60, 1, 64).to(dtype)
    q = torch.randn(1, 7, 64).to(dtype)
    whole = Forest(np.array([-1]), [k], [v], np.array([0]), q, 16)
    want, _ = whole.want()
    joined, _ = whole.run()
    for cut in (1, 7, 16, 32, 59):
        parts = Forest(
            np.array([-1, 0]), [k[:cut], k[cut:]], [v[:cut], v[cut:]], np.array([1]), q, 16
        )
        assert_close(parts.run()[0], want, joined, ulps=2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("node", range(6))
def test_sibling_leak(node, dtype, isa):
    check_leak(forest_of(4, dtype, roots=0.1), node, Forest.run)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("start", [0, 9, 500])
def test_advance_equals_a_fresh_plan(start, dtype, isa):
    # Past page boundaries, and from 500 past a chunk of 512.
    check_a_fresh_plan("cpu", dtype, prompt=37, start=start, heads=7, every=1)


def test_workspace_and_out_may_be_reused(isa):
    one, two = forest_of(5, torch.float32), forest_of(6, torch.float32, queries=4)
    plans = one.plan(), two.plan()
    workspace = torch.full((max(plan.workspace_numel for plan in plans),), torch.nan)
    for forest, plan in [(one, plans[0]), (two, plans[1]), (one, plans[0])]:
        caches = forest.caches()
        out = mf.tree_attention(forest.q, *caches, plan, workspace=workspace)
        assert torch.equal(out, mf.tree_attention(forest.q, *caches, plan))


def test_a_thousand_repeats_on_two_threads_are_equal():
    forest = forest_of(7, torch.bfloat16, nodes=20, queries=30, heads=14, kv_heads=2, head_dim=64)
    plan, caches = forest.plan(), forest.caches()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        first = mf.tree_attention(forest.q, *caches, plan)
        for _ in range(1000):
            assert torch.equal(mf.tree_attention(forest.q, *caches, plan), first)
    finally:
        torch.set_num_threads(before)
