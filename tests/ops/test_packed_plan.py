"""A plan as arrays and back: the same plan, or an error; never a read outside what is there."""

import re

import numpy as np
import pytest
import torch

import marco_fast as mf
from marco_fast.errors import BackendError
from marco_fast.ops.attention.packed_plan import (
    ITEM_ARRAYS,
    item_arguments,
    plan_arguments,
    restore_plan,
)
from marco_fast.ops.reference.packed_plan import PLAN_ARRAYS, PlainPlanArrays
from tests.support.tolerance import assert_close, assert_lse_close
from tests.support.trees import Forest, random_forest

DERIVED = ("segment_ids", "path_lens")
SIZES = [4, 2, 16, 4]
INT32_MAX = 2**31 - 1

pytestmark = pytest.mark.usefixtures("one_thread")


def forest_of(seed: int, **kwargs) -> Forest:
    shape = {"nodes": 8, "queries": 6, "heads": 4, "kv_heads": 2, "head_dim": 16, "page_size": 4}
    return random_forest(seed, max_len=11, **(shape | kwargs))


def small_plan() -> mf.TreeAttentionPlan:
    """Segments of 5, 3, 2 and 9 tokens; 0 is the parent of 1 and 2, 1 of 3."""
    table = np.arange(12, dtype=np.int32).reshape(4, 3)
    return mf.plan_tree_attention(
        [-1, 0, 0, 1], [5, 3, 2, 9], table, [3, 2, 1, 3], leaf_lens=[4, 2, 3, 9],
        num_heads=4, num_kv_heads=2, head_dim=16, page_size=4,
    )  # fmt: skip


def changed(name: str, index: int, value: int) -> list[torch.Tensor]:
    arrays = [array.clone() for array in plan_arguments(small_plan())[0]]
    arrays[PLAN_ARRAYS.index(name)][index] = value
    return arrays


@pytest.mark.parametrize("seed", range(30))
def test_a_restored_plan_is_the_same(seed):
    plan = forest_of(seed, nodes=1 + seed, queries=seed % 9, partial=seed % 2 == 0).plan()
    arrays, sizes = plan_arguments(plan)
    plain = PlainPlanArrays([array.numpy() for array in arrays], sizes[3])
    restored = restore_plan(arrays, sizes)
    assert [array.dtype for array in arrays] == [torch.int32] * 10
    for name in (*PLAN_ARRAYS, "path_lens"):
        want = getattr(plan, name).tolist()
        assert getattr(restored, name).tolist() == want, name
        assert getattr(plain, name).tolist() == want, name
    assert restored.segment_ids.tolist() == plain.segment_ids.tolist()
    assert restored.native.num_pages_needed == plain.num_pages_needed
    assert restored.native.num_pages_needed == plan.native.num_pages_needed
    for name in ("num_heads", "num_kv_heads", "head_dim", "page_size", "num_queries", "scale"):
        assert getattr(restored, name) == getattr(plan, name)
    assert restored.workspace_numel == plan.workspace_numel


def test_arrays_follow_the_plan_and_a_restored_plan_does_not():
    table = np.arange(4, dtype=np.int32).reshape(2, 2)
    heads = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "page_size": 4}
    plan = mf.plan_tree_attention([-1, 0], [3, 2], table, [1], max_new_tokens=2, **heads)
    arguments = plan_arguments(plan)
    before = restore_plan(*arguments)
    plan.advance()
    assert restore_plan(*arguments).path_lens.tolist() == [6]
    assert before.path_lens.tolist() == [5]
    assert before.segment_lens.tolist() == [3, 2]
    plan = None
    assert restore_plan(*arguments).path_lens.tolist() == [6]
    with pytest.raises(ValueError, match="at most max_new_tokens = 0"):
        before.advance()


def test_arrays_may_have_strides():
    arrays, sizes = plan_arguments(small_plan())
    strided = [torch.stack([array, array - 99], 1)[:, 0] for array in arrays]
    restored = restore_plan(strided, sizes)
    for name, array in zip(PLAN_ARRAYS, arrays, strict=True):
        assert getattr(restored, name).tolist() == array.tolist()


# Queries in depth-first order: [2 (of segment 1)], [0, 3 (of 3)], [1 (of 2)].
@pytest.mark.parametrize(
    ("name", "index", "value", "error", "text"),
    [
        ("query_order", 0, 4, IndexError, "expected query_order[0] in 0..3, got 4"),
        ("query_order", 3, -1, IndexError, "expected query_order[3] in 0..3, got -1"),
        ("query_order", 3, 2, ValueError, "expected each query once in query_order, got 2 again"),
        ("query_segment", 1, 4, IndexError, "expected query_segment[1] in 0..3, got 4"),
        ("query_segment", 1, -1, IndexError, "expected query_segment[1] in 0..3, got -1"),
        ("query_segment", 1, 1, ValueError, "expected query 1 in segment 1's own interval"),
        ("query_segment", 0, 3, ValueError, "expected query 0 in segment 3's own interval"),
        ("query_lens", 2, 10, ValueError, "expected query_lens[2] in 4..9, got 10"),
        ("query_lens", 2, 3, ValueError, "expected query_lens[2] in 4..9, got 3"),
        ("query_lens", 1, -1, ValueError, "expected query_lens[1] in 0..9, got -1"),
        ("segment_parents", 1, 4, IndexError, "expected segment_parents[1] in -1..3, got 4"),
        ("segment_parents", 0, -2, IndexError, "expected segment_parents[0] in -1..3, got -2"),
        ("segment_parents", 2, 2, ValueError, "before children, got segment_parents[2] = 2"),
        ("segment_parents", 3, 2, ValueError, "expected the queries of segment 3 in 4..4, got 1"),
        ("segment_parents", 3, 0, ValueError, "expected 1 queries at or below segment 1, got 3"),
        ("segment_lens", 0, -1, ValueError, "expected segment_lens[0] >= 0, got -1"),
        ("segment_lens", 0, 9, ValueError, "pages for 9 tokens from page_begin[0] on, got 0 to 2"),
        ("segment_lens", 3, INT32_MAX, ValueError, "expected pages for 2147483647 tokens"),
        ("query_begin", 0, -1, ValueError, "queries of segment 0 in 0..4, got -1, 0, 4"),
        ("query_begin", 2, 2, ValueError, "expected query_lens[3] in 9..2, got 2"),
        ("own_end", 1, 4, ValueError, "queries of segment 1 in 0..4, got 0, 4, 3"),
        ("own_end", 0, 1, ValueError, "queries of segment 1 in 1..4, got 0, 1, 3"),
        ("query_end", 0, 5, ValueError, "queries of segment 0 in 0..4, got 0, 0, 5"),
        ("query_end", 1, 4, ValueError, "expected 3 queries at or below segment 1, got 4"),
        ("page_begin", 0, -1, ValueError, "tokens from page_begin[0] on, got -1 to 2"),
        ("page_begin", 4, 8, ValueError, "tokens from page_begin[3] on, got 4 to 8"),
        ("page_begin", 2, 1, ValueError, "tokens from page_begin[1] on, got 2 to 1"),
        ("page_ids", 6, -1, IndexError, "expected page_ids[6] in 0..2147483646, got -1"),
        ("page_ids", 0, INT32_MAX, IndexError, "page_ids[0] in 0..2147483646, got 2147483647"),
    ],
)
def test_what_is_no_plan_is_refused(name, index, value, error, text):
    arrays = changed(name, index, value)
    with pytest.raises(error, match=re.escape(text)):
        restore_plan(arrays, SIZES)
    with pytest.raises(error, match=re.escape(text)):
        PlainPlanArrays([array.numpy() for array in arrays], 4)


def test_a_path_longer_than_int32_is_refused():
    columns = [0, 1], [1, 1], [0, 1], [-1, 0], [2**30, 2**30], [0, 0], [0, 2], [2, 2], [0, 1, 2]
    arrays = [torch.tensor(column, dtype=torch.int32) for column in (*columns, [0, 1])]
    with pytest.raises(ValueError, match=r"at most 2\^31 - 1 tokens, got 2147483648"):
        restore_plan(arrays, [4, 2, 16, 2**30])
    with pytest.raises(ValueError, match=r"at most 2\^31 - 1 tokens, got 2147483648"):
        PlainPlanArrays([array.numpy() for array in arrays], 2**30)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda arrays, sizes: (arrays[:9], sizes), "expected a plan's 10 arrays and 4 sizes"),
        (
            lambda arrays, sizes: ([*arrays, arrays[0]], sizes),
            "expected a plan's 10 arrays and 4 sizes",
        ),
        (lambda arrays, sizes: (arrays, sizes[:3]), "expected a plan's 10 arrays and 4 sizes"),
        (lambda arrays, sizes: ([x.long() for x in arrays], sizes), "1-D int32 tensors"),
        (lambda arrays, sizes: ([x[None] for x in arrays], sizes), "1-D int32 tensors"),
        (
            lambda arrays, sizes: ([*arrays[:9], arrays[9].to("meta")], sizes),
            "1-D int32 tensors on cpu, got",
        ),
        (lambda arrays, sizes: (arrays, [5, 2, 16, 4]), "num_heads to be a positive multiple"),
        (lambda arrays, sizes: (arrays, [4, 2, 24, 4]), "head_dim to be a multiple of 16"),
        (lambda arrays, sizes: (arrays, [4, 2, 272, 4]), "head_dim to be a multiple of 16"),
        (lambda arrays, sizes: (arrays, [4, 0, 16, 4]), "the sizes of a plan in 1..2^31 - 1"),
        (lambda arrays, sizes: (arrays, [4, 2, 16, 2**31]), "the sizes of a plan in 1..2^31 - 1"),
    ],
)
def test_lists_of_another_form_are_refused(change, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        restore_plan(*change(*plan_arguments(small_plan())))


@pytest.mark.parametrize("place", range(9))
def test_an_array_of_another_length_is_refused(place):
    arrays, _ = plan_arguments(small_plan())
    for other in (arrays[place][:-1], torch.cat([arrays[place], arrays[place][-1:]])):
        wrong = [*arrays[:place], other, *arrays[place + 1 :]]
        with pytest.raises(ValueError, match=r"expected a plan's arrays: three \[Q\], five \[A\]"):
            restore_plan(wrong, SIZES)
        with pytest.raises(ValueError, match=r"expected a plan's arrays: three \[Q\], five \[A\]"):
            PlainPlanArrays([array.numpy() for array in wrong], 4)


def corrupt(rng: np.random.Generator, arrays: list[np.ndarray]) -> None:
    """Changes an entry of an array, or exchanges two."""
    array = arrays[rng.integers(len(arrays))]
    if not array.size:
        return
    one, other = rng.integers(array.size, size=2)
    kind = rng.integers(4)
    if kind == 0:
        array[[one, other]] = array[[other, one]]
    elif kind == 1:
        array[one] = np.clip(int(array[one]) + rng.choice([-1, 1]), -INT32_MAX, INT32_MAX)
    elif kind == 2:
        array[one] = rng.integers(-1, 12)
    else:
        array[one] = rng.choice([-(2**31), -2, 2**30, INT32_MAX])


def outcome(function, *args):
    """What it returns, or the kind and the text of its error."""
    try:
        return function(*args), None
    except (ValueError, IndexError) as error:
        return None, (type(error), str(error))


@pytest.mark.parametrize("seed", range(8))
def test_corrupted_arrays_are_refused_or_are_a_plan(seed):
    """Both checks say the same; what they let pass attends as its arrays say, path by path."""
    rng = np.random.default_rng(seed)
    refused, ran = 0, 0
    for case in range(120):
        forest = forest_of(case, nodes=2 + case % 9, partial=case % 2 == 0)
        good, sizes = plan_arguments(forest.plan())
        arrays = [array.numpy().copy() for array in good]
        for _ in range(rng.integers(1, 3)):
            corrupt(rng, arrays)
        plan, error = outcome(restore_plan, [*map(torch.from_numpy, arrays)], sizes)
        assert error == outcome(PlainPlanArrays, arrays, sizes[3])[1]
        refused += plan is None
        caches = [torch.randn_like(cache[:, :2]) for cache in forest.caches()]
        if plan is None or plan.native.num_pages_needed > len(caches[0]):
            continue
        ran += 1
        out, lse = mf.tree_attention(forest.q, *caches, plan, return_lse=True)
        want = mf.reference.tree_attention(forest.q, *caches, plan, dtype=torch.float64)
        assert_close(out, want[0], atol=1e-5)  # a token too many or too few changes the first digit
        assert_lse_close(lse, want[1])
    assert refused >= 60
    assert ran >= 5


@pytest.mark.usefixtures("in_interpreter")
@pytest.mark.parametrize("seed", range(3))
def test_the_form_for_a_device_in_the_interpreter(seed):
    forest = forest_of(seed, nodes=4, queries=3, partial=seed == 1)
    plan = forest.plan()
    arrays, sizes = item_arguments(plan, torch.device("cpu"))
    caches = forest.caches()
    want = mf.tree_attention(forest.q, *caches, plan, return_lse=True, backend="triton")
    restored = restore_plan(arrays, sizes)
    got = mf.tree_attention(forest.q, *caches, restored, return_lse=True, backend="triton")
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    assert restored.workspace_numel == plan.workspace_numel
    with pytest.raises(IndexError, match="expected page ids below"):
        mf.tree_attention(forest.q, *(cache[:1] for cache in caches), restored, backend="triton")
    with pytest.raises(BackendError, match="only Triton kernels read"):
        mf.tree_attention(forest.q, *caches, restored, backend="torch")


@pytest.mark.usefixtures("in_interpreter")
@pytest.mark.parametrize(
    "name", ["counts", "items", "partial_begin", "merges", "query_order", "query_lens", "own_end"]
)
def test_arrays_for_a_device_that_are_too_short_are_refused(name):
    arrays, sizes = item_arguments(forest_of(1).plan(), torch.device("cpu"))
    place = ITEM_ARRAYS.index(name)
    arrays[place] = arrays[place][:-1]
    with pytest.raises(ValueError, match="expected the arrays of a plan on a device, got"):
        restore_plan(arrays, sizes)


@pytest.mark.usefixtures("in_interpreter")
@pytest.mark.parametrize(
    ("place", "value"), [(5, -1), (5, 10**6), (6, -1), (6, 10**6), (7, -1), (8, 24), (9, 64)]
)
def test_sizes_of_a_launch_beyond_its_arrays_are_refused(place, value):
    arrays, sizes = item_arguments(forest_of(1).plan(), torch.device("cpu"))
    sizes[place] = value
    with pytest.raises(ValueError, match="expected the arrays of a plan on a device, got"):
        restore_plan(arrays, sizes)
