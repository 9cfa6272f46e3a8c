"""The arrays of a plan: made by C++ where the extension was built, by Python elsewhere."""

from typing import Any

import numpy as np
import torch

from marco_fast.ops.attention.checks import Ints, int_array, page_table
from marco_fast.ops.backends import built
from marco_fast.ops.reference.packed_plan import PlainPlanArrays
from marco_fast.ops.reference.plan import PlainTreePlan

__all__ = ["native_plan", "plan_of_arrays", "thread_words"]

if built():
    from marco_fast import _C

    _make_plan: Any = _C.make_tree_plan
    plan_of_arrays: Any = _C.tree_plan_of_arrays
    thread_words: Any = _C.tree_attention_words
else:
    _make_plan = PlainTreePlan
    plan_of_arrays = PlainPlanArrays

    def thread_words(queries: int, group: int, head_dim: int) -> int:
        return 0


def native_plan(
    parents: Ints,
    segment_lens: Ints,
    block_table: torch.Tensor | np.ndarray,
    leaves: np.ndarray,
    leaf_lens: Ints | None,
    page_size: int,
    max_new_tokens: int,
) -> Any:
    """The arrays of a plan; arguments as plan_tree_attention, `leaves` converted already."""
    return _make_plan(
        int_array(parents, "parents"),
        int_array(segment_lens, "segment_lens"),
        page_table(block_table),
        leaves,
        None if leaf_lens is None else int_array(leaf_lens, "leaf_lens"),
        page_size,
        max_new_tokens,
    )
