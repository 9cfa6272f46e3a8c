"""What changes no bit of the Triton tree_attention: schedule, neighbours, pages, advancing."""

import numpy as np
import pytest
import torch

from marco_fast.ops.attention.work_items import work_items
from tests.support.attention_properties import (
    check_a_fresh_plan,
    check_alone,
    check_beside,
    check_close,
    check_leak,
    check_order,
    check_pages,
    check_scaled_values,
    equal,
)
from tests.support.interpreted_attention import CPU, attend, small_forest
from tests.support.trees import Forest

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

pytestmark = pytest.mark.usefixtures("in_interpreter", "one_thread")


# Each dtype with each size of heads.
@pytest.mark.parametrize("seed", range(6))
def test_the_schedule_changes_no_bit(seed, chunks):
    # Row tiles, how many chunks a program folds, and the order of the programs.
    forest = small_forest(
        seed, heads=7, nodes=9, queries=7, dtype=DTYPES[seed % 3], head_dim=[16, 64][seed % 2]
    )
    want = attend(forest, tile_query_heads=16, enough_items=1)
    for tile, enough in ((32, 1), (16, 10**6)):
        assert equal(attend(forest, tile_query_heads=tile, enough_items=enough), want)
    plan = forest.plan()
    heads = (7, 1, plan.head_dim, plan.page_size)
    items = work_items(plan.arrays, heads=heads, device=CPU, tile_query_heads=16)
    table, merges = items.sections.items.view(-1, 6), items.sections.merges
    table.copy_(table[torch.randperm(len(table))])
    merges.copy_(merges[torch.randperm(len(merges))])
    plan._items[CPU] = items
    assert equal(forest.run(plan, backend="triton"), want)


@pytest.mark.parametrize("seed", range(3))
def test_each_query_alone_and_in_another_order(seed, chunks):
    forest = small_forest(seed, heads=3, nodes=9, queries=5, dtype=DTYPES[seed])
    check_alone(forest, attend)
    check_order(forest, [3, 0, 3, 4, 2, 1], attend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("page_size", [1, 8, 24, 64])
def test_pages_change_no_bit(page_size, dtype):
    check_pages(small_forest(1, dtype=dtype), page_size, attend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_another_tree_changes_no_bit(seed, dtype, chunks):
    forest, extra = (small_forest(seed + n, dtype=dtype, partial=False) for n in (0, 20))
    check_beside(forest, extra, attend)


@pytest.mark.parametrize("node", range(5))
def test_sibling_leak(node, chunks):
    forest = small_forest(4, nodes=5, queries=5, dtype=DTYPES[node % 3], roots=0.1, partial=False)
    check_leak(forest, node, attend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_causal_queries_equal_shorter_leaves(dtype, chunks):
    k, v = torch.randn(2, 21, 1, 32).to(dtype)
    seen = np.random.default_rng(0).permutation(22)
    q = torch.randn(22, 2, 32).to(dtype)
    together = Forest(np.array([-1]), [k], [v], np.zeros(22, int), q, 16, seen)
    out, lse = attend(together)
    for i in (0, 5, 9, 21):
        n = seen[i]
        alone = Forest(np.array([-1]), [k[:n]], [v[:n]], np.array([0]), q[i : i + 1], 16)
        assert equal(attend(alone), (out[i : i + 1], lse[i : i + 1]))
    check_close((out, lse), together)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_v_scaled_by_a_power_of_two(dtype, chunks):
    check_scaled_values(small_forest(3, dtype=dtype), 2, attend)


@pytest.mark.parametrize(
    ("dtype", "start"), [(torch.float32, 0), (torch.bfloat16, 7), (torch.float16, 7)], ids=str
)
def test_advance_equals_a_fresh_plan(start, dtype, chunks):
    check_a_fresh_plan("triton", dtype, prompt=13, start=start, heads=3, every=5)
