"""A plan as one tensor and back: the same plan, or an error; never a read outside what is there."""

import re

import numpy as np
import pytest
import torch

import marco_fast as mf
from marco_fast.errors import BackendError
from marco_fast.ops.attention.packed_plan import launch_sizes, packed_plan, restore_plan
from marco_fast.ops.attention.work_items import WorkItems
from marco_fast.ops.reference.plan import PLAN_ARRAYS, plan_of_arrays
from marco_fast.ops.reference.work_items import COUNTS, MAGIC, Sizes
from tests.support.packed_plans import arrays_of, begin_of, forest_of
from tests.support.trees import Forest

CPU = torch.device("cpu")
INT32_MAX = 2**31 - 1
FIELDS = ("magic", "version", *Sizes._fields, *(f"room for {name}" for name in COUNTS))

pytestmark = pytest.mark.usefixtures("one_thread")


def small_plan(**changes) -> mf.TreeAttentionPlan:
    """Segments of 5, 3, 2 and 9 tokens; 0 is the parent of 1 and 2, 1 of 3."""
    table = np.arange(12, dtype=np.int32).reshape(4, 3)
    options = {"leaf_lens": [4, 2, 3, 9]} | changes
    return mf.plan_tree_attention(
        [-1, 0, 0, 1], [5, 3, 2, 9], table, [3, 2, 1, 3],
        num_heads=4, num_kv_heads=2, head_dim=16, page_size=4, **options,
    )  # fmt: skip


def changed(plan: mf.TreeAttentionPlan, word: int, value: int) -> torch.Tensor:
    packed = packed_plan(plan).clone()
    packed[word] = value
    return packed


@pytest.mark.parametrize("seed", range(30))
def test_a_restored_plan_is_the_same(seed):
    plan = forest_of(seed, nodes=1 + seed, queries=seed % 9, partial=seed % 2 == 0).plan(
        room=1.0 + seed % 3
    )
    packed = packed_plan(plan)
    reference, restored = plan_of_arrays(arrays_of(packed), 4), restore_plan(packed)
    assert (packed.dtype, packed.dim(), packed.device) == (torch.int32, 1, CPU)
    assert launch_sizes(plan) == []
    for name in (*PLAN_ARRAYS, "path_lens"):
        want = getattr(plan, name).tolist()
        assert getattr(restored, name).tolist() == want, name
        assert getattr(reference, name).tolist() == want, name
    assert restored.segment_ids.tolist() == reference.segment_ids.tolist()
    assert restored.arrays.num_pages_needed == reference.num_pages_needed
    assert restored.arrays.num_pages_needed == plan.arrays.num_pages_needed
    for name in ("num_heads", "num_kv_heads", "head_dim", "page_size", "num_queries", "scale"):
        assert getattr(restored, name) == getattr(plan, name)
    if plan.room == 1:
        assert restored.workspace_numel == plan.workspace_numel


def test_the_tensor_follows_the_plan_and_a_restored_plan_does_not():
    table = np.arange(4, dtype=np.int32).reshape(2, 2)
    heads = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "page_size": 4}
    plan = mf.plan_tree_attention([-1, 0], [3, 2], table, [1], max_new_tokens=2, room=2.0, **heads)
    packed = packed_plan(plan)
    before = restore_plan(packed)
    plan.advance()
    assert packed_plan(plan) is packed
    assert restore_plan(packed).path_lens.tolist() == [6]
    assert before.path_lens.tolist() == [5]
    assert before.segment_lens.tolist() == [3, 2]
    plan.update([-1], [1], table[:1], [0])
    assert restore_plan(packed).path_lens.tolist() == [1]
    plan = None
    assert restore_plan(packed).path_lens.tolist() == [1]
    with pytest.raises(ValueError, match="at most max_new_tokens = 0"):
        before.advance()


def test_the_tensor_may_have_strides():
    packed = packed_plan(small_plan())
    restored = restore_plan(torch.stack([packed, packed - 99], 1)[:, 0])
    for name, array in zip(PLAN_ARRAYS, arrays_of(packed), strict=True):
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
    plan = small_plan()
    packed = changed(plan, begin_of(packed_plan(plan), name) + index, value)
    with pytest.raises(error, match=re.escape(text)):
        restore_plan(packed)
    with pytest.raises(error, match=re.escape(text)):
        plan_of_arrays(arrays_of(packed), 4)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("magic", 0, f"expected a packed plan, which begins with {MAGIC}, 1, got [0, 1]"),
        ("version", 2, f"expected a packed plan, which begins with {MAGIC}, 1, got [{MAGIC}, 2]"),
        ("num_heads", 5, "num_heads to be a positive multiple"),
        ("num_kv_heads", 0, "the sizes of a packed plan in 0..2^31 - 1"),
        ("num_kv_heads", -2, "the sizes of a packed plan in 0..2^31 - 1"),
        ("head_dim", 24, "head_dim to be a multiple of 16"),
        ("head_dim", 272, "head_dim to be a multiple of 16"),
        ("page_size", 0, "the sizes of a packed plan in 0..2^31 - 1"),
        ("page_size", 2, "expected pages for 5 tokens"),
        ("chunk_tokens", 128, "expected a packed plan of"),
        ("tile_query_heads", 24, "expected a packed plan of"),
        ("num_pages_needed", 3, "expected num_pages_needed = 12 in the packed plan, got 3"),
        ("num_partials", -1, "the sizes of a packed plan in 0..2^31 - 1"),
        *((name, -1, "the sizes of a packed plan in 0..2^31 - 1") for name in COUNTS),
        *((name, 99, "expected a packed plan of") for name in COUNTS),
        *((f"room for {name}", 99, "expected a packed plan of") for name in COUNTS),
        *((f"room for {name}", -1, "expected a packed plan of") for name in COUNTS),
        *((f"room for {name}", INT32_MAX, "expected a packed plan of") for name in COUNTS),
    ],
)
def test_a_header_that_does_not_add_up_is_refused(field, value, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        restore_plan(changed(small_plan(), FIELDS.index(field), value))


@pytest.mark.parametrize("count", ["queries", "segments"])
def test_fewer_of_something_are_no_plan(count):
    packed = packed_plan(small_plan())
    less = changed(small_plan(), FIELDS.index(count), 3)
    with pytest.raises((ValueError, IndexError)):
        restore_plan(less)
    assert restore_plan(packed).num_queries == 4


def test_a_path_longer_than_int32_is_refused():
    columns = [0, 1], [1, 1], [0, 1], [-1, 0], [2**30, 2**30], [0, 0], [0, 2], [2, 2], [0, 1, 2]
    arrays = [np.array(column, np.int32) for column in (*columns, [0, 1])]
    counts = [2, 2, 2, 0, 0, 0]
    header = [MAGIC, 1, 4, 2, 16, 2**30, 256, 16, 2, 0, *counts, *counts, 0, 0]
    padded = [np.pad(array, (0, -len(array) % 4)) for array in arrays]
    packed = np.concatenate([header, *padded, [0] * 4]).astype(np.int32)
    with pytest.raises(ValueError, match=r"at most 2\^31 - 1 tokens, got 2147483648"):
        restore_plan(torch.from_numpy(packed))
    with pytest.raises(ValueError, match=r"at most 2\^31 - 1 tokens, got 2147483648"):
        plan_of_arrays(arrays, 2**30)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x: x.long(), "a packed plan as a 1-D int32 tensor, got torch.int64"),
        (lambda x: x[None], "a packed plan as a 1-D int32 tensor"),
        (lambda x: x[:-1], "expected a packed plan of"),
        (lambda x: torch.cat([x, x[:4]]), "expected a packed plan of"),
        (lambda x: x[:23], "expected a packed plan, which begins with"),
        (lambda x: x[:0], "expected a packed plan, which begins with"),
        (lambda x: x[1:], "expected a packed plan, which begins with"),
        (lambda x: x.to("meta"), "on a CPU without launch sizes"),
    ],
)
def test_tensors_of_another_form_are_refused(change, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        restore_plan(change(packed_plan(small_plan())))


@pytest.mark.parametrize("kind", ["reference", "extension"])
@pytest.mark.parametrize("number", range(9))
def test_an_array_of_another_length_is_refused(number, kind):
    check = plan_of_arrays
    if kind == "extension":
        check = pytest.importorskip("marco_fast._C").tree_plan_of_arrays
    arrays = arrays_of(packed_plan(small_plan()))
    for other in (arrays[number][:-1], np.append(arrays[number], arrays[number][-1:])):
        wrong = [*arrays[:number], other, *arrays[number + 1 :]]
        with pytest.raises(ValueError, match=r"expected a plan's arrays: three \[Q\], five \[A\]"):
            check(wrong, 4)


# To say whether these are those of the tensor would wait for the device.
UNCHECKED = ("num_heads", "page_size", "num_pages_needed", "num_partials")


def device_form(**options) -> tuple[Forest, mf.TreeAttentionPlan, WorkItems]:
    forest = forest_of(**({"seed": 1} | options))
    plan = forest.plan()
    return forest, plan, plan.items(CPU)


@pytest.mark.usefixtures("in_interpreter")
@pytest.mark.parametrize("seed", range(3))
def test_the_form_for_a_device_in_the_interpreter(seed):
    forest, plan, items = device_form(seed=seed, nodes=4, queries=3, partial=seed == 1)
    caches = forest.caches()
    want = mf.tree_attention(forest.q, *caches, plan, return_lse=True, backend="triton")
    restored = restore_plan(items.packed, [*items.sizes])
    got = mf.tree_attention(forest.q, *caches, restored, return_lse=True, backend="triton")
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    assert restored.workspace_numel == plan.workspace_numel
    with pytest.raises(IndexError, match="expected page ids below"):
        mf.tree_attention(forest.q, *(cache[:1] for cache in caches), restored, backend="triton")
    with pytest.raises(BackendError, match="only Triton kernels read"):
        mf.tree_attention(forest.q, *caches, restored, backend="torch")


@pytest.mark.usefixtures("in_interpreter")
def test_a_tensor_for_a_device_of_another_length_is_refused():
    _, _, items = device_form()
    for packed in (items.packed[:-4], torch.cat([items.packed, items.packed[:4]])):
        with pytest.raises(ValueError, match="expected a packed plan of"):
            restore_plan(packed, [*items.sizes])
    with pytest.raises(ValueError, match="expected a contiguous packed plan"):
        restore_plan(items.packed.repeat_interleave(2)[::2], [*items.sizes])
    with pytest.raises(ValueError, match="and 14 launch sizes, got"):
        restore_plan(items.packed, items.sizes[:-1])


@pytest.mark.usefixtures("in_interpreter")
@pytest.mark.parametrize("name", Sizes._fields)
@pytest.mark.parametrize("value", [-1, 10**6, 2**31])
def test_launch_sizes_that_do_not_fit_are_refused(name, value):
    _, _, items = device_form()
    sizes = items.sizes._replace(**{name: value})
    if value == 10**6 and name in UNCHECKED:
        assert restore_plan(items.packed, [*sizes]).workspace_numel > 0  # any such plan may be
        return
    with pytest.raises(ValueError, match=r"expected (a packed plan|the sizes|head_dim|num_heads)"):
        restore_plan(items.packed, [*sizes])


def test_launch_sizes_are_not_for_a_cpu(monkeypatch):
    _, _, items = device_form()
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="on a CPU without launch sizes"):
        restore_plan(items.packed, [*items.sizes])
