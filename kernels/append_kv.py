"""Writes the K and V of new tokens into their slots of one layer's paged cache.

One program owns one token and one tile of its heads: it reads the token's slot once, turns it into
a page and an offset, and copies both tensors' rows. A slot of -1 is skipped by a mask. The program
keeps no state, and the only intermediates are the tiles in flight.

Slots are not checked here, where that would need a synchronisation: a slot outside the cache is
skipped, so that it is never written.
"""

import torch
import triton
import triton.language as tl

from marco_fast.kernels.launch import launching

__all__ = ["append_kv"]


@triton.jit
def copy_rows(
    from_ptr,  # [T, num_kv_heads, head_dim]
    cache_ptr,  # [num_pages, num_kv_heads, page_size, head_dim]
    token,
    page,
    offset,
    offs_head,
    valid,
    stride_from_token,
    stride_from_head,
    stride_cache_page,
    stride_cache_head,
    head_dim,
    BLOCK_DIM: tl.constexpr,
):
    """One token's rows of one tensor; `valid` [BLOCK_HEAD] masks heads."""
    offs_dim = tl.arange(0, BLOCK_DIM)
    mask = valid[:, None] & (offs_dim < head_dim)[None, :]
    head = offs_head.to(tl.int64)[:, None]
    source = from_ptr + token * stride_from_token + head * stride_from_head + offs_dim[None, :]
    target = (
        cache_ptr
        + page * stride_cache_page
        + head * stride_cache_head
        + offset * head_dim
        + offs_dim[None, :]
    )
    tl.store(target, tl.load(source, mask=mask), mask=mask)


@triton.jit(
    do_not_specialize=["num_pages", "num_kv_heads", "page_size"],
    do_not_specialize_on_alignment=["slot_mapping_ptr"],
)
def append_kv_kernel(
    k_ptr,  # [T, num_kv_heads, head_dim]
    v_ptr,  # [T, num_kv_heads, head_dim]
    slot_mapping_ptr,  # [T] int64
    k_cache_ptr,  # [num_pages, num_kv_heads, page_size, head_dim]
    v_cache_ptr,  # [num_pages, num_kv_heads, page_size, head_dim]
    stride_k_token,
    stride_k_head,
    stride_v_token,
    stride_v_head,
    stride_k_cache_page,
    stride_k_cache_head,
    stride_v_cache_page,
    stride_v_cache_head,
    num_pages,
    num_kv_heads,
    page_size,
    head_dim,
    BLOCK_HEAD: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    offs_head = tl.program_id(1) * BLOCK_HEAD + tl.arange(0, BLOCK_HEAD)
    slot = tl.load(slot_mapping_ptr + token)
    inside = (slot >= 0) & (slot // page_size < num_pages)
    slot = tl.where(inside, slot, 0)
    page, offset = slot // page_size, slot % page_size
    valid = (offs_head < num_kv_heads) & inside
    copy_rows(
        k_ptr, k_cache_ptr, token, page, offset, offs_head, valid,
        stride_k_token, stride_k_head, stride_k_cache_page, stride_k_cache_head,
        head_dim, BLOCK_DIM,
    )  # fmt: skip
    copy_rows(
        v_ptr, v_cache_ptr, token, page, offset, offs_head, valid,
        stride_v_token, stride_v_head, stride_v_cache_page, stride_v_cache_head,
        head_dim, BLOCK_DIM,
    )  # fmt: skip


def tile(num_kv_heads: int, head_dim: int) -> tuple[int, int]:
    """BLOCK_HEAD and BLOCK_DIM: the whole row, and heads up to 1024 elements a program."""
    dim = triton.next_power_of_2(head_dim)
    return min(triton.next_power_of_2(num_kv_heads), max(1, 1024 // dim)), dim


def append_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """Launches the copy; arguments as marco_fast.append_kv, already checked.

    Slots on a CPU are checked before the launch, as the C++ kernel does.
    """
    tokens, heads, head_dim = k.shape
    num_pages, _, page_size, _ = k_cache.shape
    if slot_mapping.device.type == "cpu":
        check_slots(slot_mapping, num_pages * page_size)
    if tokens == 0 or heads == 0:
        return
    block_head, block_dim = tile(heads, head_dim)
    with launching(k.device):
        append_kv_kernel[(tokens, triton.cdiv(heads, block_head))](
            k,
            v,
            slot_mapping,
            k_cache,
            v_cache,
            k.stride(0),
            k.stride(1),
            v.stride(0),
            v.stride(1),
            k_cache.stride(0),
            k_cache.stride(1),
            v_cache.stride(0),
            v_cache.stride(1),
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
