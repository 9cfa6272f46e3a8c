"""Another forest in the place of a plan: the same numbers as a new plan, at the same addresses."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import marco_fast as mf
from marco_fast.ops.attention import work_items as items_module
from marco_fast.ops.attention.attend import AttentionInputs, AttentionOptions, AttentionResult
from marco_fast.ops.attention.packed_plan import packed_plan
from marco_fast.ops.backends import interpreting
from marco_fast.ops.reference.plan import PLAN_ARRAYS
from marco_fast.ops.reference.work_items import Sizes
from tests.support.trees import Forest, padded, random_forest

CPU = torch.device("cpu")
SHAPE = {"heads": 6, "kv_heads": 2, "head_dim": 16, "page_size": 8}
BACKENDS = ["cpu", "torch", *(["triton"] if interpreting() else [])]


def forest_of(seed: int, **changes) -> Forest:
    options = {"nodes": 8, "queries": 5, "max_len": 40, "partial": seed % 2 == 1, "roots": 0.2}
    forest = random_forest(seed, **{**SHAPE, **options, **changes})
    return replace(forest, spare_pages=400)  # caches of different forests hold each other's pages


def put(plan: mf.TreeAttentionPlan, forest: Forest) -> None:
    plan.update(
        forest.parents, forest.lens, forest.tables()[0], forest.leaves, leaf_lens=forest.leaf_lens
    )


def attend(forest: Forest, plan: mf.TreeAttentionPlan, backend: str, rows: int):
    """(out, lse) with q of `rows` rows, NaN beyond the forest's queries."""
    q = torch.full((rows, *forest.q.shape[1:]), torch.nan, dtype=forest.q.dtype)
    q[: len(forest.q)] = forest.q
    return mf.tree_attention(padded(q), *forest.caches(), plan, return_lse=True, backend=backend)


def same(left, right) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(6))
def test_equals_a_new_plan(seed, backend, monkeypatch):
    monkeypatch.setattr(items_module, "chunk_tokens", lambda head_dim: 8)
    monkeypatch.setattr(items_module, "TOKEN_GROUP", 24)
    plan = forest_of(seed, queries=4).plan(room=3.0)
    assert plan.max_queries == 12
    before = plan.items(CPU)
    address = before.packed.data_ptr()
    for other in (seed + 100, seed + 200):
        forest = forest_of(other, queries=[9, 2][other > seed + 100], nodes=11)
        put(plan, forest)
        assert plan.num_queries == len(forest.q)
        got = attend(forest, plan, backend, rows=12)
        want = forest.run(forest.plan(), backend=backend)
        assert same([each[: len(forest.q)] for each in got], want)
        assert (got[0][len(forest.q) :] == 0).all()
        assert (got[1][len(forest.q) :] == -np.inf).all()
        assert plan.items(CPU) is before
        assert before.packed.data_ptr() == address


@pytest.mark.skipif(not interpreting(), reason="a GPU is here: bench.gpu replays a captured graph")
def test_a_launch_that_was_prepared_before_follows():
    """What a captured graph has: the views and sizes of the first plan, and nothing of the plan."""
    from marco_fast.kernels import tree_attention as kernels

    plan = forest_of(1, partial=False).plan(room=4.0)
    items = plan.items(CPU)
    forest = forest_of(2, nodes=20, queries=11, partial=False)
    put(plan, forest)
    q = torch.zeros((plan.max_queries, *forest.q.shape[1:]))
    q[:11] = forest.q
    out, lse = torch.full_like(q, 7.0), torch.full(q.shape[:2], 7.0)
    workspace = torch.full((plan.workspace_numel,), torch.nan)

    class Captured:
        def items(self, device):
            return items

    kernels.tree_attention(
        AttentionInputs(q, *forest.caches(), Captured()),
        AttentionOptions(plan.scale, workspace),
        AttentionResult(out, lse),
    )
    assert same((out[:11], lse[:11]), forest.run(forest.plan(), backend="triton"))
    assert (out[11:] == 7).all()
    assert (lse[11:] == 7).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_advance_starts_anew(backend):
    forest = forest_of(4, partial=False, nodes=9, queries=9)
    childless = np.setdiff1d(np.arange(9), forest.parents)
    forest = replace(forest, leaves=childless, q=forest.q[: len(childless)], reserve=3)
    plan = forest.plan(max_new_tokens=2, room=2.0)
    plan.items(CPU)
    plan.advance()
    plan.advance()
    put(plan, forest)
    fresh = forest.plan(max_new_tokens=2)
    for each in (plan, fresh):
        each.advance(np.arange(len(childless)) % 2 == 0)
    caches = [torch.where(cache.isnan(), 0.5, cache) for cache in forest.caches()]
    got, want = (
        mf.tree_attention(forest.q, *caches, each, return_lse=True, backend=backend)
        for each in (plan, fresh)
    )
    assert same(got, want)
    plan.advance()
    with pytest.raises(ValueError, match="max_new_tokens"):
        plan.advance()


def test_a_plan_made_in_inference_mode():
    forest = forest_of(2, nodes=1, queries=1, partial=False)
    forest = replace(forest, reserve=1)
    with torch.inference_mode():
        plan = forest.plan(room=2.0, max_new_tokens=1)
        items = plan.items(CPU)
    plan.advance()
    put(plan, forest)
    plan.advance()
    assert items.sections.query_lens[:1].tolist() == plan.query_lens.tolist()


def test_what_does_not_fit_leaves_the_plan_as_it_was():
    forest = forest_of(3)
    plan = forest.plan(room=1.5)
    forest.run(plan)
    whole = plan.items(CPU).packed.clone()
    arrays = [getattr(plan, name).tolist() for name in PLAN_ARRAYS]
    deep = forest_of(5, nodes=60, queries=5, max_len=20, roots=0.0, partial=False)
    deep = replace(deep, spare_pages=0)
    cases = {
        "expected at most 8 leaves, the plan's room, got 9": forest_of(6, queries=9),
        "expected at most 6 segments, the plan's room, got": deep,
        "expected parents before children": replace(forest, parents=forest.parents[::-1].copy()),
    }
    for message, other in cases.items():
        with pytest.raises(ValueError, match=message):
            put(plan, other)
    with pytest.raises(IndexError, match="the pages of the cache, got"):
        put(plan, replace(forest, spare_pages=5000))
    assert arrays == [getattr(plan, name).tolist() for name in PLAN_ARRAYS]
    assert torch.equal(plan.items(CPU).packed, whole)
    assert same(forest.run(plan), forest.run(forest.plan()))


def flat(queries: int, tokens: int, shared: bool) -> Forest:
    """All queries in one segment of so many tokens, or each in one of its own."""
    nodes = 1 if shared else queries
    k, v = torch.randn(2, nodes, tokens, 2, 16)
    leaves = np.zeros(queries, int) if shared else np.arange(queries)
    q = torch.randn(queries, 6, 16)
    return Forest(np.full(nodes, -1), [*k], [*v], leaves, q, 8, spare_pages=50)


def test_a_tensor_that_was_enough_before_is_checked_again():
    plan = flat(4, 9, shared=True).plan(room=3.0)
    forest = flat(9, 9, shared=True)
    q = forest.q[:4].contiguous()
    mf.tree_attention(q, *forest.caches(), plan)
    put(plan, forest)
    with pytest.raises(ValueError, match="expected q"):
        mf.tree_attention(q, *forest.caches(), plan)


def test_more_partials_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(items_module, "chunk_tokens", lambda head_dim: 8)
    plan = flat(6, 32, shared=False).plan(room=1.5)
    plan.items(CPU)
    put(plan, flat(6, 48, shared=True))
    with pytest.raises(ValueError, match="at most 36 partials, the plan's room, got 42"):
        put(plan, flat(6, 56, shared=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_tiles_stay_as_first_planned(backend):
    plan = flat(1, 30, shared=True).plan(room=32.0)
    assert plan.items(CPU).sizes.tile_query_heads == 16
    forest = flat(32, 30, shared=True)
    assert forest.plan().items(CPU).sizes.tile_query_heads == 32
    put(plan, forest)
    assert same(forest.run(plan, backend=backend), forest.run(forest.plan(), backend=backend))


def test_room_counts_everything_that_may_grow():
    heads = {"num_heads": 6, "num_kv_heads": 2, "head_dim": 16, "page_size": 8}
    fixed = heads | {"chunk_tokens": 256, "tile_query_heads": 16, "num_pages_needed": 9}
    counts = {"queries": 3, "segments": 5, "pages": 7, "items": 1, "chunks": 1}
    more = {"queries": 5, "segments": 8, "pages": 11, "items": 2, "chunks": 2, "merges": 5}
    sizes = Sizes(**fixed, **counts, num_partials=0, merges=1)
    assert items_module.with_room(sizes, 1.5) == Sizes(**fixed, **more, num_partials=15)


@pytest.mark.parametrize("room", [0.5, float("nan"), 1e9])
def test_a_room_that_is_none(room):
    with pytest.raises(ValueError, match="expected room in 1"):
        forest_of(0).plan(room=room)


@pytest.mark.parametrize("rows", [4, 9])
def test_rows_of_q_between_the_queries_and_the_room(rows):
    forest = forest_of(0)
    plan = forest.plan(room=1.6)
    with pytest.raises(ValueError, match=r"expected q \[5\.\.8, 6, 16\]"):
        mf.tree_attention(torch.zeros(rows, 6, 16), *forest.caches(), plan)


def test_the_operator_takes_the_room(monkeypatch):
    pytest.importorskip("marco_fast.torch_library")
    forest = forest_of(2)
    packed = packed_plan(forest.plan(room=2.0))
    out, _ = torch.ops.marco_fast.tree_attention(forest.q, *forest.caches(), packed)
    assert torch.equal(out, forest.run()[0])
