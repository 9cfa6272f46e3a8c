"""What must not change a bit of tree attention: order, neighbours, pages, threads, plans."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from compare import assert_close
from forests import Forest, random_forest

import marco_fast as mf

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def forest_of(seed: int, dtype: torch.dtype, **kwargs) -> Forest:
    # Few rows a query and several words of K, so that the blocks differ between two plans.
    heads, head_dim = [(7, 32), (3, 64), (1, 48), (2, 128)][seed % 4]
    options = {"nodes": 14, "queries": 9, "heads": heads, "head_dim": head_dim, "max_len": 50}
    options["partial"] = seed % 2 == 1
    return random_forest(seed, dtype=dtype, **{**options, **kwargs})


def equal(left, right) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_permuted_queries(seed, dtype, isa):
    forest = forest_of(seed, dtype)
    order = np.random.default_rng(seed).permutation(9)
    out, lse = forest.run()
    assert equal(forest.only(order).run(), (out[order], lse[order]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_each_query_alone(seed, dtype, isa):
    forest = forest_of(seed, dtype)
    out, lse = forest.run()
    for i in range(9):
        assert equal(forest.only([i]).run(), (out[i : i + 1], lse[i : i + 1]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_node_twice(dtype, isa):
    forest = forest_of(0, dtype)
    out, lse = forest.run()
    twice = forest.only([3, 3, 5, 3])
    assert equal(twice.run(), (out[[3, 3, 5, 3]], lse[[3, 3, 5, 3]]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("page_size", [1, 8, 16, 24, 128])
def test_renumbered_pages_and_page_size(page_size, dtype, isa):
    forest = forest_of(1, dtype)
    other = replace(forest, page_seed=99, spare_pages=40, page_size=page_size)
    assert equal(other.run(), forest.run())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_an_unrelated_request(seed, dtype, isa):
    forest, extra = (
        forest_of(seed, dtype, partial=False),
        forest_of(seed + 48, dtype, partial=False),
    )
    both = Forest(
        np.concatenate([extra.parents, np.where(forest.parents < 0, -1, forest.parents + 14)]),
        extra.k + forest.k,
        extra.v + forest.v,
        np.concatenate([forest.leaves + 14, extra.leaves]),
        torch.cat([forest.q, extra.q]),
        forest.page_size,
    )
    out, lse = both.run()
    assert equal((out[:9], lse[:9]), forest.run())


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
    forest = forest_of(3, dtype)
    out, lse = forest.run()
    scaled = replace(forest, v=[v * 2.0**power for v in forest.v])
    scaled_out, scaled_lse = scaled.run()
    assert torch.equal(scaled_lse, lse)
    normal = out.abs() > 1e-3  # subnormal halves round
    assert torch.equal(scaled_out[normal], (out * 2.0**power)[normal])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_split_segment_stays_close(dtype, isa):
    k, v = torch.randn(2, 60, 1, 64).to(dtype)
    q = torch.randn(1, 7, 64).to(dtype)
    whole = Forest(np.array([-1]), [k], [v], np.array([0]), q, 16)
    want, _ = whole.want()
    plain, _ = whole.run()
    for cut in (1, 7, 16, 32, 59):
        parts = Forest(
            np.array([-1, 0]), [k[:cut], k[cut:]], [v[:cut], v[cut:]], np.array([1]), q, 16
        )
        assert_close(parts.run()[0], want, plain, ulps=2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("node", range(6))
def test_sibling_leak(node, dtype, isa):
    # A segment's K and V moved by 1e3 change the queries below it and not a bit of any other.
    forest = forest_of(4, dtype, roots=0.1)
    below = []
    for leaf in forest.leaves:
        path = [int(leaf)]
        while forest.parents[path[-1]] >= 0:
            path.append(int(forest.parents[path[-1]]))
        below.append(node in path)
    k, v = list(forest.k), list(forest.v)
    k[node], v[node] = k[node] + 1e3, v[node] - 1e3
    (out, lse), (moved, moved_lse) = forest.run(), replace(forest, k=k, v=v).run()
    others = ~torch.tensor(below)
    assert equal((moved[others], moved_lse[others]), (out[others], lse[others]))
    if len(k[node]) and any(below):
        assert not torch.equal(moved, out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("start", [0, 9, 500])
def test_advance_equals_a_fresh_plan(start, dtype, isa):
    # From `start` tokens in the leaves, past page boundaries and (from 500) past a chunk of 512.
    torch.manual_seed(start)
    steps = 20
    prompt = torch.randn(2, 37, 1, 32).to(dtype)
    grown = [torch.randn(2, start + steps, 1, 32).to(dtype) for _ in range(3)]
    q = torch.randn(3, 7, 32).to(dtype)
    parents, leaves = np.array([-1, 0, 0, 0]), np.array([2, 1, 3])
    active = np.array([True, False, True])

    def at(lens: list[int], **options) -> Forest:
        k = [prompt[0], *(rows[0][:n] for rows, n in zip(grown, lens, strict=True))]
        v = [prompt[1], *(rows[1][:n] for rows, n in zip(grown, lens, strict=True))]
        return Forest(parents, k, v, leaves, q, 16, **options)

    first = at([start] * 3, reserve=steps)
    table, _ = first.tables()
    k_cache, v_cache = first.caches()
    plan = first.plan(max_new_tokens=steps)
    lens = [start] * 3
    for step in range(steps):
        grows = [True, True, True] if step % 3 else [bool(active[1]), bool(active[0]), True]
        plan.advance(None if step % 3 else active)
        nodes = [n for n in range(3) if grows[n]]
        slots = [int(table[n + 1, lens[n] // 16]) * 16 + lens[n] % 16 for n in nodes]
        rows = torch.stack([grown[n][:, lens[n]] for n in nodes], 1)
        mf.append_kv(rows[0], rows[1], k_cache, v_cache, torch.tensor(slots))
        lens = [n + grow for n, grow in zip(lens, grows, strict=True)]
        if step % 4 == 0 or step > 11:
            got = mf.tree_attention(q, k_cache, v_cache, plan, return_lse=True)
            assert equal(got, at(lens).run())


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
