"""The Triton tree_attention in the interpreter: against float64, and what only a kernel can do."""

import numpy as np
import pytest
import torch

from marco_fast.ops.attention.attend import AttentionInputs, AttentionOptions, AttentionResult
from tests.support.attention_properties import check_close, equal
from tests.support.interpreted_attention import attend, small_forest
from tests.support.tolerance import assert_close, assert_lse_close
from tests.support.trees import Forest

pytest.importorskip("triton")

from marco_fast.kernels import tree_attention as kernels

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HEAD_DIMS = [16, 32, 48, 64, 80, 128, 144, 256]
GROUPS = [(1, 1), (3, 1), (8, 2), (5, 1), (14, 2)]
PAGE_SIZES = [16, 8, 1, 24]

pytestmark = pytest.mark.usefixtures("in_interpreter", "one_thread")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize(("heads", "kv_heads"), GROUPS)
def test_every_shape(heads, kv_heads, head_dim, dtype):
    number = HEAD_DIMS.index(head_dim) + GROUPS.index((heads, kv_heads))
    forest = small_forest(
        number, nodes=4, queries=3, heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype,
        page_size=PAGE_SIZES[number % 4],
    )  # fmt: skip
    check_close(attend(forest, tile_query_heads=[16, 32][number % 2]), forest)


@pytest.mark.parametrize("seed", range(60))
def test_random_forests(seed, chunks):
    rng = np.random.default_rng(seed)
    forest = small_forest(
        seed,
        nodes=int(rng.integers(1, 12)),
        queries=int(rng.integers(1, 8)),
        heads=int(rng.choice([1, 3, 4, 7])),
        page_size=int(rng.choice(PAGE_SIZES)),
        dtype=DTYPES[seed % 3],
        roots=float(rng.choice([0.0, 0.2, 0.9])),
    )
    check_close(attend(forest, enough_items=[1, 512][seed // 2 % 2]), forest)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [255, 256, 257, 700])
def test_long_segments_cross_chunks_and_groups(length, dtype):
    k, v = torch.randn(2, length, 1, 16).to(dtype)
    q = torch.randn(3, 3, 16).to(dtype)
    lens = np.array([9, length // 2, 9])
    forest = Forest(np.array([-1, 0]), [k, k[:9]], [v, v[:9]], np.array([1, 0, 1]), q, 16, lens)
    check_close(attend(forest, enough_items=1), forest)
    assert equal(attend(forest, enough_items=1), attend(forest, enough_items=10**6))


def test_a_hidden_key_may_be_anything():
    k, v = torch.randn(2, 9, 1, 32)
    q = torch.randn(2, 3, 32)
    hidden = k.clone()
    hidden[5:] = torch.nan
    root, leaves = np.array([-1]), np.array([0, 0])
    out, lse = attend(Forest(root, [hidden], [v], leaves, q, 16, np.array([5, 9])))
    want, want_lse = attend(Forest(root, [k[:5]], [v[:5]], leaves[:1], q[:1], 16))
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
    out, lse = attend(forest)
    assert out[:2].isfinite().all()
    assert not out[2].isfinite().any()
    if where != "one value":
        assert lse[2].isnan().all()


def test_empty_paths_and_segments(chunks):
    out, lse = attend(small_forest(0, nodes=4, queries=5, max_len=0, partial=False))
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.equal(lse, torch.full_like(lse, -torch.inf))
    k, v = torch.randn(2, 25, 1, 32)
    q = torch.randn(1, 7, 32)
    alone = Forest(np.array([-1]), [k], [v], np.array([0]), q, 16)
    none = k[:0]
    around = Forest(np.array([-1, 0, 1]), [none, k, none], [none, v, none], np.array([2]), q, 16)
    assert equal(attend(around), attend(alone))


def test_no_queries():
    out, lse = attend(small_forest(1, queries=0))
    assert out.shape == (0, 7, 32)
    assert lse.shape == (0, 7)


@pytest.mark.parametrize("scale", [0.01, 1.0, -0.5])
def test_scale(scale):
    forest = small_forest(8)
    out, lse = forest.run(scale=scale, backend="triton")
    want, want_lse = forest.want(scale)
    assert_close(out, want, atol=2e-6)
    assert_lse_close(lse, want_lse)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_token_gives_its_value_exactly(dtype):
    k, v = torch.randn(2, 1, 1, 32).to(dtype)
    q = torch.randn(3, 7, 32).to(dtype)
    out, _ = attend(Forest(np.array([-1]), [k], [v], np.zeros(3, int), q, 16))
    assert torch.equal(out, v.expand_as(out))


@pytest.mark.parametrize("chosen", [None, "some"])
def test_nothing_but_the_result_is_written(chosen, chunks):
    forest = small_forest(5, queries=6)
    plan, caches = forest.plan(), forest.caches()
    kept = [each.clone() for each in (forest.q, *caches)]
    workspace = torch.full((plan.workspace_numel + 64,), torch.nan)
    out = torch.full((8, 9, 48), 5.0)
    view = out[1:7, 1:8, 8:40]
    kernels.tree_attention(
        AttentionInputs(forest.q, *caches, plan),
        AttentionOptions(plan.scale, workspace[: plan.workspace_numel]),
        AttentionResult(view, None),
    )
    assert torch.equal(view, attend(forest)[0])
    view.fill_(5.0)
    assert (out == 5.0).all()
    assert workspace[-64:].isnan().all()
    for now, before in zip((forest.q, *caches), kept, strict=True):
        assert torch.equal(now.nan_to_num(7.0), before.nan_to_num(7.0))


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
