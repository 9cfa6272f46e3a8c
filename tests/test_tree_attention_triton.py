"""The Triton tree_attention in the interpreter: against float64, bit by bit, in hostile memory."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from compare import assert_close, assert_lse_close
from forests import Forest, plain_attention, random_forest

import marco_fast as mf
from marco_fast.ops import tree_items as items_module
from marco_fast.ops.tree_items import tree_items

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("a GPU is here: Triton does not interpret", allow_module_level=True)

from marco_fast.kernels import tree_attention as kernels

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HEAD_DIMS = [16, 32, 48, 64, 80, 128, 144, 256]
GROUPS = [(1, 1), (3, 1), (8, 2), (5, 1), (14, 2)]
PAGE_SIZES = [16, 8, 1, 24]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[(8, 24), (16, 16), (0, 0)], ids=["chunks-of-8", "chunks-of-16", "chunks"])
def chunks(request, monkeypatch):
    """Small chunks, so that short segments have several and groups span segments; real ones."""
    set_chunks(monkeypatch, *request.param)


def set_chunks(monkeypatch, step: int, group: int) -> None:
    if step:
        monkeypatch.setattr(items_module, "chunk_tokens", lambda head_dim: step)
        monkeypatch.setattr(items_module, "GROUP_TOKENS", group)


def run(forest: Forest, plan=None, **options):
    """(out, lse) with items made under `options` (tile_rows, enough_items)."""
    plan = forest.plan() if plan is None else plan
    if options:
        heads, kv_heads = forest.q_heads()
        plan._items[CPU] = tree_items(
            plan.native, group=heads // kv_heads, num_kv_heads=kv_heads,
            head_dim=plan.head_dim, device=CPU, **options,
        )  # fmt: skip
    return forest.run(plan, backend="triton")


def check(forest: Forest, **options) -> None:
    want, want_lse = forest.want()
    out, lse = run(forest, **options)
    assert_close(out, want, plain_attention(forest, want))
    assert_lse_close(lse, want_lse)
    assert (out.dtype, lse.dtype) == (forest.q.dtype, torch.float32)


def equal(left, right) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def small(seed: int, **changes) -> Forest:
    options = {"nodes": 6, "queries": 4, "max_len": 40, "partial": seed % 2 == 1}
    return random_forest(seed, **{**options, **changes})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize(("heads", "kv_heads"), GROUPS)
def test_every_shape(heads, kv_heads, head_dim, dtype):
    number = HEAD_DIMS.index(head_dim) + GROUPS.index((heads, kv_heads))
    forest = small(
        number, nodes=4, queries=3, heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype,
        page_size=PAGE_SIZES[number % 4],
    )  # fmt: skip
    check(forest, tile_rows=[16, 32][number % 2])


@pytest.mark.parametrize("seed", range(60))
def test_random_forests(seed, chunks):
    rng = np.random.default_rng(seed)
    forest = small(
        seed,
        nodes=int(rng.integers(1, 12)),
        queries=int(rng.integers(1, 8)),
        heads=int(rng.choice([1, 3, 4, 7])),
        page_size=int(rng.choice(PAGE_SIZES)),
        dtype=DTYPES[seed % 3],
        roots=float(rng.choice([0.0, 0.2, 0.9])),
    )
    check(forest, enough_items=[1, 512][seed // 2 % 2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [255, 256, 257, 700])
def test_long_segments_cross_chunks_and_groups(length, dtype):
    k, v = torch.randn(2, length, 1, 16).to(dtype)
    q = torch.randn(3, 3, 16).to(dtype)
    lens = np.array([9, length // 2, 9])
    forest = Forest(np.array([-1, 0]), [k, k[:9]], [v, v[:9]], np.array([1, 0, 1]), q, 16, lens)
    check(forest, enough_items=1)
    assert equal(run(forest, enough_items=1), run(forest, enough_items=10**6))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_the_schedule_changes_no_bit(seed, dtype, chunks):
    # Row tiles, how many chunks a program folds, and the order of the programs.
    forest = small(seed, heads=7, nodes=9, queries=7, dtype=dtype, head_dim=[16, 64][seed % 2])
    want = run(forest, tile_rows=16, enough_items=1)
    for options in ({"tile_rows": 32, "enough_items": 1}, {"tile_rows": 16, "enough_items": 10**6}):
        assert equal(run(forest, **options), want)
    plan = forest.plan()
    items = tree_items(
        plan.native, group=7, num_kv_heads=1, head_dim=plan.head_dim, device=CPU, tile_rows=16
    )
    table = items.items.view(-1, 6)
    shuffled = table[torch.randperm(len(table))].flatten()
    merges = items.merges[torch.randperm(len(items.merges))]
    plan._items[CPU] = replace(items, items=shuffled, merges=merges)
    assert equal(forest.run(plan, backend="triton"), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_each_query_alone_and_in_another_order(seed, dtype, chunks):
    forest = small(seed, heads=3, nodes=9, queries=5, dtype=dtype)
    out, lse = run(forest)
    for i in range(5):
        assert equal(run(forest.only([i])), (out[i : i + 1], lse[i : i + 1]))
    order = [3, 0, 3, 4, 2, 1]
    assert equal(run(forest.only(order)), (out[order], lse[order]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("page_size", [1, 8, 24, 64])
def test_pages_change_no_bit(page_size, dtype):
    forest = small(1, dtype=dtype)
    other = replace(forest, page_seed=99, spare_pages=20, page_size=page_size)
    assert equal(run(other), run(forest))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_another_tree_changes_no_bit(seed, dtype, chunks):
    forest, extra = (small(seed + n, dtype=dtype, partial=False) for n in (0, 20))
    n = len(extra.parents)
    both = Forest(
        np.concatenate([extra.parents, np.where(forest.parents < 0, -1, forest.parents + n)]),
        extra.k + forest.k,
        extra.v + forest.v,
        np.concatenate([forest.leaves + n, extra.leaves]),
        torch.cat([forest.q, extra.q]),
        forest.page_size,
    )
    out, lse = run(both)
    assert equal((out[:4], lse[:4]), run(forest))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("node", range(5))
def test_sibling_leak(node, dtype, chunks):
    forest = small(4, nodes=5, queries=5, dtype=dtype, roots=0.1, partial=False)
    below = []
    for leaf in forest.leaves:
        path = [int(leaf)]
        while forest.parents[path[-1]] >= 0:
            path.append(int(forest.parents[path[-1]]))
        below.append(node in path)
    k, v = list(forest.k), list(forest.v)
    k[node], v[node] = k[node] + 1e3, v[node] - 1e3
    (out, lse), (moved, moved_lse) = run(forest), run(replace(forest, k=k, v=v))
    others = ~torch.tensor(below)
    assert equal((moved[others], moved_lse[others]), (out[others], lse[others]))
    if len(k[node]) and any(below):
        assert not torch.equal(moved, out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_causal_queries_equal_shorter_leaves(dtype, chunks):
    k, v = torch.randn(2, 21, 1, 32).to(dtype)
    seen = np.random.default_rng(0).permutation(22)
    q = torch.randn(22, 2, 32).to(dtype)
    together = Forest(np.array([-1]), [k], [v], np.zeros(22, int), q, 16, seen)
    out, lse = run(together)
    for i in (0, 5, 9, 21):
        n = seen[i]
        alone = Forest(np.array([-1]), [k[:n]], [v[:n]], np.array([0]), q[i : i + 1], 16)
        assert equal(run(alone), (out[i : i + 1], lse[i : i + 1]))
    check(together)


def test_a_hidden_key_may_be_anything():
    k, v = torch.randn(2, 9, 1, 32)
    q = torch.randn(2, 3, 32)
    hidden = k.clone()
    hidden[5:] = torch.nan
    root, leaves = np.array([-1]), np.array([0, 0])
    out, lse = run(Forest(root, [hidden], [v], leaves, q, 16, np.array([5, 9])))
    want, want_lse = run(Forest(root, [k[:5]], [v[:5]], leaves[:1], q[:1], 16))
    assert equal((out[:1], lse[:1]), (want, want_lse))
    assert out[1].isnan().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["one key", "every key", "one value"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_poisoned_token_on_the_path_shows(where, bad, dtype, chunks):
    q = torch.rand(3, 2, 32).to(dtype)
    k, v = torch.randn(2, 30, 1, 32).to(dtype)
    poisoned_k, poisoned_v = k.clone(), v.clone()
    (poisoned_v if where == "one value" else poisoned_k)[
        slice(None) if "every" in where else 11
    ] = bad
    parents, leaves = np.array([-1, -1, 0]), np.array([0, 1, 2])
    forest = Forest(parents, [v, v[:5], poisoned_k], [v, v[:5], poisoned_v], leaves, q, 16)
    out, lse = run(forest)
    assert out[:2].isfinite().all()
    assert not out[2].isfinite().any()
    if where != "one value":
        assert lse[2].isnan().all()


def test_empty_paths_and_segments(chunks):
    out, lse = run(small(0, nodes=4, queries=5, max_len=0, partial=False))
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.equal(lse, torch.full_like(lse, -torch.inf))
    k, v = torch.randn(2, 25, 1, 32)
    q = torch.randn(1, 7, 32)
    plain = Forest(np.array([-1]), [k], [v], np.array([0]), q, 16)
    none = k[:0]
    around = Forest(np.array([-1, 0, 1]), [none, k, none], [none, v, none], np.array([2]), q, 16)
    assert equal(run(around), run(plain))


def test_no_queries():
    out, lse = run(small(1, queries=0))
    assert out.shape == (0, 7, 32)
    assert lse.shape == (0, 7)


@pytest.mark.parametrize("scale", [0.01, 1.0, -0.5])
def test_scale(scale):
    forest = small(8)
    out, lse = forest.run(scale=scale, backend="triton")
    want, want_lse = forest.want(scale)
    assert_close(out, want, atol=2e-6)
    assert_lse_close(lse, want_lse)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_token_gives_its_value_exactly(dtype):
    k, v = torch.randn(2, 1, 1, 32).to(dtype)
    q = torch.randn(3, 7, 32).to(dtype)
    out, _ = run(Forest(np.array([-1]), [k], [v], np.zeros(3, int), q, 16))
    assert torch.equal(out, v.expand_as(out))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_v_scaled_by_a_power_of_two(dtype, chunks):
    forest = small(3, dtype=dtype)
    out, lse = run(forest)
    scaled_out, scaled_lse = run(replace(forest, v=[v * 4.0 for v in forest.v]))
    assert torch.equal(scaled_lse, lse)
    assert torch.equal(scaled_out[out.abs() > 1e-3], (out * 4.0)[out.abs() > 1e-3])


@pytest.mark.parametrize("chosen", [None, "some"])
def test_nothing_but_the_result_is_written(chosen, chunks):
    forest = small(5, queries=6)
    plan, caches = forest.plan(), forest.caches()
    kept = [each.clone() for each in (forest.q, *caches)]
    workspace = torch.full((plan.workspace_numel + 64,), torch.nan)
    out = torch.full((8, 9, 48), 5.0)
    view = out[1:7, 1:8, 8:40]
    kernels.tree_attention(
        forest.q, *caches, plan, plan.scale, view, None, workspace[: plan.workspace_numel]
    )
    assert torch.equal(view, run(forest)[0])
    view.fill_(5.0)
    assert (out == 5.0).all()
    assert workspace[-64:].isnan().all()
    for now, before in zip((forest.q, *caches), kept, strict=True):
        assert torch.equal(now.nan_to_num(7.0), before.nan_to_num(7.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("start", [0, 7])
def test_advance_equals_a_fresh_plan(start, dtype, chunks):
    torch.manual_seed(start)
    steps = 20
    prompt = torch.randn(2, 13, 1, 32).to(dtype)
    grown = [torch.randn(2, start + steps, 1, 32).to(dtype) for _ in range(3)]
    q = torch.randn(3, 3, 32).to(dtype)
    parents, leaves = np.array([-1, 0, 0, 0]), np.array([2, 1, 3])

    def at(lens: list[int], **options) -> Forest:
        k = [prompt[0], *(rows[0][:n] for rows, n in zip(grown, lens, strict=True))]
        v = [prompt[1], *(rows[1][:n] for rows, n in zip(grown, lens, strict=True))]
        return Forest(parents, k, v, leaves, q, 16, **options)

    first = at([start] * 3, reserve=steps)
    table, _ = first.tables()
    k_cache, v_cache = first.caches()
    plan = first.plan(max_new_tokens=steps)
    workspace = torch.full((plan.workspace_numel,), torch.nan)
    lens = [start] * 3
    for step in range(steps + 1):
        if step % 5 == 0:
            out = torch.full_like(q, torch.nan)
            got = mf.tree_attention(
                q, k_cache, v_cache, plan, return_lse=True, out=out, workspace=workspace,
                backend="triton",
            )  # fmt: skip
            assert equal(got, run(at(lens)))
        if step == steps:
            break
        active = None if step % 3 else np.array([True, False, step % 2 == 0])
        plan.advance(active)
        grows = [True] * 3 if active is None else [bool(active[i]) for i in (1, 0, 2)]
        nodes = [n for n in range(3) if grows[n]]
        slots = [int(table[n + 1, lens[n] // 16]) * 16 + lens[n] % 16 for n in nodes]
        rows = torch.stack([grown[n][:, lens[n]] for n in nodes], 1)
        mf.append_kv(rows[0], rows[1], k_cache, v_cache, torch.tensor(slots))
        lens = [n + grow for n, grow in zip(lens, grows, strict=True)]


@pytest.mark.parametrize("queries", [0, 1, 5, 256, 257, 600])
@pytest.mark.parametrize("masked", [False, True])
def test_advance_kernel(queries, masked):
    rng = np.random.default_rng(queries)
    lens = torch.from_numpy(rng.integers(0, 99, queries + 8).astype(np.int32))
    order = torch.from_numpy(rng.permutation(queries).astype(np.int32))
    active = torch.from_numpy(rng.random(queries) < 0.5) if masked else None
    want = lens.clone()
    want[:queries] += 1 if active is None else active[order.long()].int()
    kernels.advance(lens[:queries], order, active)
    assert torch.equal(lens, want)


@pytest.mark.parametrize("page_size", [*range(1, 40), 48, 100, 128, 1000, 4096, 2**20 + 1])
def test_division_by_the_page_size(page_size):
    magic, shift = kernels.division(page_size)
    n = np.r_[0:300, 2**31 - 300 : 2**31, np.random.default_rng(0).integers(0, 2**31, 1000)]
    near = (n // page_size * page_size)[:, None] + np.array([-1, 0])
    n = np.r_[n, near[near >= 0]].astype(np.int64)
    assert ((n * magic >> shift) == n // page_size).all()
    assert 2**31 <= magic < 2**32 or page_size == 1
