"""Argument checks of plan_tree_attention, tree_attention and append_kv."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from marco_fast.ops.dtypes import FLOATS

__all__ = [
    "Ints",
    "check_active",
    "check_caches",
    "check_heads",
    "check_pages",
    "check_planned",
    "int_array",
    "plan_inputs",
]

Ints = torch.Tensor | np.ndarray | Sequence[int]


def check_caches(
    k_cache: torch.Tensor, v_cache: torch.Tensor, num_kv_heads: int, head_dim: int
) -> None:
    """Raises ValueError unless both are [num_pages, num_kv_heads, page_size, head_dim]."""
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if cache.ndim != 4 or cache.shape[1] != num_kv_heads or cache.shape[3] != head_dim:
            raise ValueError(
                f"expected {name} [num_pages, {num_kv_heads}, page_size, {head_dim}], "
                f"got {list(cache.shape)}"
            )
        if cache.stride(3) != 1 or cache.stride(2) != head_dim:
            raise ValueError(
                f"expected {name} contiguous in its last two dimensions, "
                f"got strides {cache.stride()}"
            )
    if k_cache.shape != v_cache.shape:
        raise ValueError(
            f"expected caches of one shape, got {list(k_cache.shape)} and {list(v_cache.shape)}"
        )


def check_heads(num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    """Raises ValueError unless attention has kernels for these heads."""
    if num_kv_heads < 1 or num_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(
            "expected num_heads to be a positive multiple of num_kv_heads, "
            f"got {num_heads} and {num_kv_heads}"
        )
    if head_dim % 16 or not 16 <= head_dim <= 256:
        raise ValueError(f"expected head_dim to be a multiple of 16 in 16..256, got {head_dim}")


def int_array(values: Ints, name: str) -> np.ndarray:
    """The values as a 1-D array; ValueError unless they are integers."""
    if isinstance(values, torch.Tensor):
        values = values.cpu().numpy()
    array = np.asarray(values)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise ValueError(f"expected {name} as 1-D integers, got {array.dtype} {array.shape}")
    return array


def plan_inputs(
    parents: Ints,
    segment_lens: Ints,
    block_table: torch.Tensor | np.ndarray,
    leaves: np.ndarray,
    leaf_lens: Ints | None,
) -> tuple[Any, ...]:
    """Arguments of plan_tree_attention as arrays; ValueError unless they have its dtypes."""
    return (
        int_array(parents, "parents"),
        int_array(segment_lens, "segment_lens"),
        _page_table(block_table),
        leaves,
        None if leaf_lens is None else int_array(leaf_lens, "leaf_lens"),
    )


def check_active(active: torch.Tensor | np.ndarray | None, num_queries: int) -> None:
    """Raises ValueError unless it is [num_queries] bool, or None."""
    if active is None:
        return
    if active.dtype not in (torch.bool, np.dtype(bool)) or tuple(active.shape) != (num_queries,):
        raise ValueError(f"expected active [{num_queries}] bool, got {active.dtype} {active.shape}")


def _page_table(block_table: torch.Tensor | np.ndarray) -> np.ndarray:
    if isinstance(block_table, torch.Tensor):
        block_table = block_table.cpu().numpy()
    table = np.asarray(block_table)
    if table.ndim != 2 or table.dtype != np.int32:
        raise ValueError(
            f"expected block_table [N, max_pages] int32, got {table.dtype} {table.shape}"
        )
    return table


def check_pages(needed: int, pages: int) -> None:
    """`needed`: 1 + the largest page id of a plan; `pages` of a cache."""
    if needed > pages:
        raise IndexError(
            f"expected page ids below {pages}, the pages of the cache, got {needed - 1} in "
            "block_table"
        )


def check_planned(plan: Any, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor) -> None:
    """Raises unless the tensors of a call are as its TreeAttentionPlan has them."""
    heads = (plan.num_heads, plan.head_dim)
    rows = q.shape[0] if q.ndim == 3 else -1
    if (
        not plan.num_queries <= rows <= max(plan.num_queries, plan.max_queries)
        or tuple(q.shape[1:]) != heads
        or q.stride(-1) != 1
    ):
        most = f"..{plan.max_queries}" if plan.max_queries > plan.num_queries else ""
        raise ValueError(
            f"expected q [{plan.num_queries}{most}, {heads[0]}, {heads[1]}] with a contiguous last "
            f"dimension, got {list(q.shape)} with strides {q.stride()}"
        )
    check_caches(k_cache, v_cache, plan.num_kv_heads, plan.head_dim)
    if k_cache.shape[2] != plan.page_size:
        raise ValueError(f"expected pages of {plan.page_size}, got {k_cache.shape[2]}")
    if q.dtype not in FLOATS:
        raise ValueError(f"expected q as float32, bfloat16 or float16, got {q.dtype}")
    if not q.dtype == k_cache.dtype == v_cache.dtype:
        raise ValueError(
            "expected q, k_cache and v_cache of one dtype, "
            f"got {q.dtype}, {k_cache.dtype}, {v_cache.dtype}"
        )
    if not q.device == k_cache.device == v_cache.device:
        raise ValueError(
            "expected q, k_cache and v_cache on one device, "
            f"got {q.device}, {k_cache.device}, {v_cache.device}"
        )
    check_pages(plan.arrays.num_pages_needed, k_cache.shape[0])
