"""A packed plan that was tampered with: an error, or a plan that attends as its arrays say."""

import numpy as np
import pytest
import torch

import marco_fast as mf
from marco_fast.ops.attention.packed_plan import packed_plan, restore_plan
from marco_fast.ops.reference.plan import plan_of_arrays
from marco_fast.ops.reference.work_items import HEADER_WORDS
from tests.support.packed_plans import arrays_of, forest_of
from tests.support.tolerance import assert_close, assert_lse_close
from tests.support.trees import Forest

INT32_MAX = 2**31 - 1

pytestmark = pytest.mark.usefixtures("one_thread")


def corrupt(rng: np.random.Generator, words: np.ndarray) -> None:
    """Changes a word, or exchanges two."""
    one, other = rng.integers(words.size, size=2)
    kind = rng.integers(4)
    if kind == 0:
        words[[one, other]] = words[[other, one]]
    elif kind == 1:
        words[one] = np.clip(int(words[one]) + rng.choice([-1, 1]), -INT32_MAX, INT32_MAX)
    elif kind == 2:
        words[one] = rng.integers(-1, 12)
    else:
        words[one] = rng.choice([-(2**31), -2, 2**30, INT32_MAX])


def outcome(function, *args):
    """What it returns, or the kind and the text of its error."""
    try:
        return function(*args), None
    except (ValueError, IndexError) as error:
        return None, (type(error), str(error))


def check_attends(forest: Forest, plan: mf.TreeAttentionPlan) -> bool:
    """Whether the caches have the plan's pages; then it attends as its arrays say."""
    caches = [torch.randn_like(cache[:, :2]) for cache in forest.caches()]
    if plan.arrays.num_pages_needed > len(caches[0]):
        return False
    out, lse = mf.tree_attention(forest.q, *caches, plan, return_lse=True)
    want = mf.reference.tree_attention(forest.q, *caches, plan, dtype=torch.float64)
    assert_close(out, want[0], atol=1e-5)  # a token too many or too few changes the first digit
    assert_lse_close(lse, want[1])
    return True


@pytest.mark.parametrize("seed", range(8))
def test_corrupted_arrays_are_refused_or_are_a_plan(seed):
    """Both checks say the same; what they let pass attends as its arrays say, path by path."""
    rng = np.random.default_rng(seed)
    refused, ran = 0, 0
    for case in range(120):
        forest = forest_of(case, nodes=2 + case % 9, partial=case % 2 == 0)
        packed = packed_plan(forest.plan()).clone()
        arrays = arrays_of(packed)
        for _ in range(rng.integers(1, 3)):
            array = arrays[rng.integers(len(arrays))]
            if array.size:
                corrupt(rng, array)
        packed[8] = int(np.clip(int(arrays[-1].max(initial=-1)) + 1, 0, INT32_MAX))
        plan, error = outcome(restore_plan, packed)
        expected = outcome(plan_of_arrays, arrays, 4)[1]
        assert error == expected or "num_pages_needed" in str(error)
        refused += plan is None
        ran += plan is not None and check_attends(forest, plan)
    assert refused >= 60
    assert ran >= 5


@pytest.mark.parametrize("seed", range(8))
def test_a_corrupted_tensor_is_refused_or_is_a_plan(seed):
    """Any word, those of the header and of the work items too."""
    rng = np.random.default_rng(seed)
    refused, ran = 0, 0
    for case in range(120):
        forest = forest_of(case, nodes=2 + case % 9, partial=case % 2 == 0)
        packed = packed_plan(forest.plan(room=1.0 + case % 2)).clone()
        for _ in range(rng.integers(1, 3)):
            corrupt(rng, packed.numpy()[: HEADER_WORDS if case % 3 == 0 else None])
        plan, _ = outcome(restore_plan, packed)
        refused += plan is None
        if plan is not None and plan.num_queries == len(forest.q) and plan.head_dim == 16:
            heads = (plan.num_heads, plan.num_kv_heads, plan.page_size)
            ran += heads == (4, 2, 4) and check_attends(forest, plan)
    assert refused >= 40
    assert ran >= 20
