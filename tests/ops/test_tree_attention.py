"""Tree attention against float64, path by path, on every instruction set and in hostile memory."""

import functools

import numpy as np
import pytest
import torch

import marco_fast as mf
from tests.support.attention_properties import check_close, expectation
from tests.support.tolerance import assert_close, assert_lse_close
from tests.support.trees import Forest, random_forest

GROUPS = [(1, 1), (2, 1), (3, 1), (4, 2), (7, 1), (8, 1), (12, 4), (14, 2)]
HEAD_DIMS = [16, 32, 64, 80, 96, 128, 256]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PAGE_SIZES = [16, 8, 24, 32, 1, 64, 128]

pytestmark = pytest.mark.usefixtures("one_thread")


@functools.cache
def shaped(number: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype):
    """A forest of this shape and what is wanted of it, computed once for all instruction sets."""
    forest = random_forest(
        number,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        page_size=PAGE_SIZES[number % len(PAGE_SIZES)],
        partial=number % 3 == 0,
    )
    return forest, expectation(forest)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize(("heads", "kv_heads"), GROUPS)
def test_every_shape_on_every_isa(heads, kv_heads, head_dim, dtype, isa):
    number = GROUPS.index((heads, kv_heads)) + HEAD_DIMS.index(head_dim) + DTYPES.index(dtype)
    forest, expected = shaped(number, heads, kv_heads, head_dim, dtype)
    check_close(forest.run(), forest, expected)


@pytest.mark.parametrize("seed", range(200))
def test_random_forests(seed):
    rng = np.random.default_rng(1000 + seed)
    group, kv_heads = rng.choice([1, 2, 3, 4, 7, 8]), rng.choice([1, 2, 4])
    forest = random_forest(
        seed,
        nodes=int(rng.integers(1, 40)),
        queries=int(rng.integers(1, 24)),
        heads=int(group * kv_heads),
        kv_heads=int(kv_heads),
        head_dim=int(rng.choice(HEAD_DIMS[:6])),
        page_size=int(rng.choice(PAGE_SIZES)),
        dtype=DTYPES[seed % 3],
        max_len=int(rng.choice([3, 17, 60])),
        partial=bool(seed % 2),
        roots=float(rng.choice([0.0, 0.2, 0.9])),
    )
    check_close(forest.run(), forest)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [511, 512, 513, 1040])
def test_long_segments_cross_chunks(length, dtype, isa):
    forest = random_forest(length, nodes=3, queries=4, max_len=30, dtype=dtype, page_size=32)
    k, v = torch.randn(2, length, 1, 32).to(dtype)
    long = Forest(
        np.array([-1, 0, 1]), [k, *forest.k[1:]], [v, *forest.v[1:]], np.array([0, 1, 2, 0]),
        forest.q, 32, np.array([length - 1, len(forest.k[1]), len(forest.k[2]), length // 2]),
    )  # fmt: skip
    check_close(long.run(), long)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_full_chunks_of_many_rows(head_dim, dtype, isa):
    """48 rows share 1,040 tokens: K and V of a whole chunk are copied for them."""
    forest = random_forest(
        9, nodes=3, queries=12, heads=4, kv_heads=1, head_dim=head_dim, max_len=30, dtype=dtype,
        page_size=32,
    )  # fmt: skip
    k, v = torch.randn(2, 1040, 1, head_dim).to(dtype)
    leaves = np.arange(12) % 2 + 1
    wide = Forest(
        np.array([-1, 0, 0]), [k, *forest.k[1:]], [v, *forest.v[1:]], leaves, forest.q, 32,
        np.array([len(forest.k[leaf]) for leaf in leaves]),
    )  # fmt: skip
    check_close(wide.run(), wide)


def test_wide_unit_and_stripes(isa):
    # More rows than one unit holds (512): stripes cut the queries for any number of threads.
    forest = random_forest(5, nodes=12, queries=150, heads=8, kv_heads=1, head_dim=16)
    check_close(forest.run(), forest)


def test_causal_queries_of_one_segment(isa):
    torch.manual_seed(0)
    prompt = torch.randn(2, 37, 2, 64)
    seen = np.random.default_rng(0).permutation(38)
    forest = Forest(
        np.array([-1]),
        [prompt[0]],
        [prompt[1]],
        np.zeros(38, int),
        torch.randn(38, 6, 64),
        16,
        seen,
    )
    check_close(forest.run(), forest)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_later_tokens_of_the_leaf_never_leak(dtype, isa):
    # Tokens that a query does not see may hold anything, infinities and NaN included.
    torch.manual_seed(1)
    k, v = torch.randn(2, 9, 1, 32).to(dtype)
    for seen in range(1, 9):
        hidden_k, hidden_v = k.clone(), v.clone()
        hidden_k[seen:], hidden_v[seen:] = torch.inf, torch.nan
        q = torch.randn(2, 7, 32).to(dtype)
        root, leaves = np.array([-1]), np.array([0, 0])
        poisoned = Forest(root, [hidden_k], [hidden_v], leaves, q, 16, np.array([seen, 9]))
        short = Forest(root, [k[:seen]], [v[:seen]], leaves[:1], q[:1], 16)
        out, lse = poisoned.run()
        want, want_lse = short.run()
        assert torch.equal(out[:1], want)
        assert torch.equal(lse[:1], want_lse)
        assert out[1].isnan().all()  # the other query does see them


def test_a_row_that_sees_less_than_its_neighbours_in_the_block(isa):
    # One segment, rows of one block seeing 1, 2, .. tokens: each equals a plan of its own.
    for dtype in DTYPES:
        forest = random_forest(3, nodes=1, queries=1, heads=1, max_len=0, dtype=dtype)
        k, v = torch.randn(2, 21, 1, 32).to(dtype)
        seen = np.arange(1, 22)
        q = torch.randn(21, 1, 32).to(dtype)
        together = Forest(forest.parents * 0 - 1, [k], [v], np.zeros(21, int), q, 16, seen)
        out, lse = together.run()
        for i in range(21):
            alone = Forest(
                np.array([-1]), [k[: i + 1]], [v[: i + 1]], np.array([0]), q[i : i + 1], 16
            )
            one, one_lse = alone.run()
            assert torch.equal(out[i : i + 1], one), (dtype, i)
            assert torch.equal(lse[i : i + 1], one_lse)


def test_empty_paths(isa):
    forest = random_forest(0, nodes=4, queries=5, max_len=0)
    out, lse = forest.run()
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.equal(lse, torch.full_like(lse, -torch.inf))


def test_an_empty_segment_changes_no_bit(isa):
    forest = random_forest(2, nodes=1, queries=1, roots=1.0)
    k, v = torch.randn(2, 5, 1, 32)
    none = k[:0]
    alone = Forest(np.array([-1]), [k], [v], np.array([0]), forest.q, 16)
    around = Forest(
        np.array([-1, 0, 1]), [none, k, none], [none, v, none], np.array([2]), forest.q, 16
    )
    for got, want in zip(around.run(), alone.run(), strict=True):
        assert torch.equal(got, want)


def test_one_token_gives_its_value_exactly(isa):
    for dtype in DTYPES:
        forest = random_forest(2, nodes=1, queries=3, roots=1.0, dtype=dtype)
        k, v = torch.randn(2, 1, 1, 32).to(dtype)
        out, _ = Forest(np.array([-1]), [k], [v], np.zeros(3, int), forest.q, 16).run()
        assert torch.equal(out, v.expand_as(out))


def test_no_queries(isa):
    forest = random_forest(1, queries=0)
    out, lse = forest.run()
    assert out.shape == (0, 7, 32)
    assert lse.shape == (0, 7)


@pytest.mark.parametrize("scale", [0.01, 1.0, -0.5])
def test_scale(scale, isa):
    forest = random_forest(8)
    out, lse = forest.run(scale=scale)
    want, want_lse = forest.want(scale)
    assert_close(out, want, atol=2e-6)
    assert_lse_close(lse, want_lse)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_poisoned_key_on_the_path_shows(bad, dtype, isa):
    q = torch.rand(3, 2, 32).to(dtype)
    k, v = torch.randn(2, 30, 1, 32).to(dtype)
    k[11] = bad
    parents, leaves = np.array([-1, -1, 0]), np.array([0, 1, 2])
    forest = Forest(parents, [v, v[:5], k], [v, v[:5], v], leaves, q, 16)
    out, lse = forest.run()
    assert out[:2].isfinite().all()
    assert out[2].isnan().all()
    assert lse[2].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torch_backend_agrees(dtype):
    forest = random_forest(6, dtype=dtype, partial=True)
    check_close(forest.run(backend="torch"), forest)


def test_reference_is_the_gathered_softmax():
    forest = random_forest(9, nodes=20, queries=10, partial=True, page_size=8)
    plan, caches = forest.plan(), forest.caches()
    out, lse = mf.reference.tree_attention(forest.q, *caches, plan, dtype=torch.float64)
    want, want_lse = forest.want()
    torch.testing.assert_close(out, want, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(lse, want_lse, rtol=1e-12, atol=1e-13)
    double = [x.double() for x in (forest.q, *caches)]
    again, _ = mf.reference.tree_attention(*double, plan, scale=plan.scale)
    assert again.dtype == torch.float64
    torch.testing.assert_close(again, want, rtol=1e-12, atol=1e-13)
