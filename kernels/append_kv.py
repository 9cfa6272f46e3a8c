"""Launches append_kv: the K and V of new tokens go into their slots of one layer's paged cache."""

from typing import Any

import torch
import triton

from marco_fast.kernels.append_kv_kernels import CacheRows, TokenRows, append_kv_kernel
from marco_fast.kernels.launch import launching

__all__ = ["append_kv"]


def tile(num_kv_heads: int, head_dim: int) -> tuple[int, int]:
    """BLOCK_HEAD and BLOCK_DIM: the whole row, and heads up to 1024 elements per program."""
    dim = triton.next_power_of_2(head_dim)
    return min(triton.next_power_of_2(num_kv_heads), max(1, 1024 // dim)), dim


def append_kv(inputs: Any, caches: Any) -> None:
    """Launches the copy.

    Slots on a CPU are checked before the launch, as the C++ kernel does.

    Args:
        inputs, caches: NewTokens and Caches of marco_fast.ops.attention.attend, checked.
    """
    (k, v, slot_mapping), (k_cache, v_cache) = inputs, caches
    tokens, heads, head_dim = k.shape
    num_pages, _, page_size, _ = k_cache.shape
    if slot_mapping.device.type == "cpu":
        check_slots(slot_mapping, num_pages * page_size)
    if tokens == 0 or heads == 0:
        return
    block_head, block_dim = tile(heads, head_dim)
    with launching(k.device):
        append_kv_kernel[(tokens, triton.cdiv(heads, block_head))](
            TokenRows(k, *k.stride()[:2]),
            TokenRows(v, *v.stride()[:2]),
            slot_mapping,
            CacheRows(k_cache, *k_cache.stride()[:2]),
            CacheRows(v_cache, *v_cache.stride()[:2]),
            num_pages,
            heads,
            page_size,
            head_dim,
            BLOCK_HEAD=block_head,
            BLOCK_DIM=block_dim,
            num_warps=1,
        )


def check_slots(slot_mapping: torch.Tensor, num_slots: int) -> None:
    """Raises IndexError for a slot that is neither -1 nor below num_slots."""
    bad = (slot_mapping < -1) | (slot_mapping >= num_slots)
    if bad.any():
        t = int(bad.nonzero()[0])
        raise IndexError(
            f"expected slot_mapping[{t}] in -1..{num_slots - 1}, got {int(slot_mapping[t])}"
        )
