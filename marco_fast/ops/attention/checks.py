"""Argument checks of plan_tree_attention, tree_attention and append_kv."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from marco_fast.ops.dtypes import FLOATS
from marco_fast.ops.numbers import described, real, whole
from marco_fast.ops.tensors import tensor_of

__all__ = [
    "Ints",
    "active_mask",
    "check_caches",
    "check_heads",
    "check_pages",
    "check_planned",
    "int_array",
    "plan_device",
    "plan_inputs",
    "plan_room",
    "plan_sizes",
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


def check_heads(num_heads: Any, num_kv_heads: Any, head_dim: Any) -> tuple[int, int, int]:
    """The three as ints; ValueError unless attention has kernels for these heads."""
    heads, kv_heads, dim = whole(num_heads), whole(num_kv_heads), whole(head_dim)
    if heads is None or kv_heads is None or kv_heads < 1 or heads < 1 or heads % kv_heads:
        raise ValueError(
            "expected num_heads to be a positive multiple of num_kv_heads, "
            f"got {described(num_heads)} and {described(num_kv_heads)}"
        )
    if heads >= 2**31:
        raise ValueError(f"expected num_heads below 2^31, got {heads}")
    if dim is None or dim % 16 or not 16 <= dim <= 256:
        raise ValueError(
            f"expected head_dim to be a multiple of 16 in 16..256, got {described(head_dim)}"
        )
    return heads, kv_heads, dim


def plan_sizes(page_size: Any, max_new_tokens: Any) -> tuple[int, int]:
    """Both as ints; ValueError where one is out of range."""
    size, tokens = whole(page_size), whole(max_new_tokens)
    if size is None or tokens is None or not (1 <= size < 2**31 and 0 <= tokens < 2**31):
        raise ValueError(
            "expected page_size >= 1 and max_new_tokens >= 0, integers below 2^31, got "
            f"{described(page_size)}, {described(max_new_tokens)}"
        )
    return size, tokens


def plan_room(room: Any) -> float:
    """The argument `room` of plan_tree_attention."""
    factor = real(room)
    if factor is None or not 1 <= factor < 2**16:
        raise ValueError(f"expected room in 1..65535, got {described(room)}")
    return factor


def plan_device(device: Any) -> torch.device:
    """The argument `device` of plan_tree_attention."""
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"expected device as PyTorch names it, got {described(device)}") from error


def int_array(values: Ints, name: str) -> np.ndarray:
    """The values as a 1-D array that int64 can hold; ValueError unless they are integers."""
    array = _array(values, name, "1-D integers")
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise ValueError(f"expected {name} as 1-D integers, got {array.dtype} {array.shape}")
    if array.dtype == np.uint64 and array.max(initial=0) > np.iinfo(np.int64).max:
        raise ValueError(f"expected {name} below 2^63, got {array.max()}")
    return array


def _array(values: Any, name: str, wanted: str) -> np.ndarray:
    """The values on the host; ValueError where they are no array."""
    if isinstance(values, np.ndarray):
        return values
    if hasattr(values, "__dlpack__") and not isinstance(values, np.generic):
        return tensor_of(name, values, wanted).cpu().numpy()
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"expected {name} as {wanted}, got {described(values)}") from error


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


def active_mask(active: Any, num_queries: int) -> torch.Tensor | None:
    """The argument `active` of advance, where it is; ValueError unless it is [num_queries] bool."""
    if active is None:
        return None
    wanted = f"[{num_queries}] bool"
    if not hasattr(active, "__dlpack__"):
        active = _array(active, "active", wanted)
        if active.dtype != bool:
            raise ValueError(f"expected active {wanted}, got {active.dtype} {active.shape}")
    mask = tensor_of("active", active, wanted)
    if mask.dtype != torch.bool or mask.shape != (num_queries,):
        raise ValueError(f"expected active {wanted}, got {mask.dtype} {tuple(mask.shape)}")
    return mask.contiguous()


def _page_table(block_table: torch.Tensor | np.ndarray) -> np.ndarray:
    table = _array(block_table, "block_table", "[N, max_pages] int32")
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
