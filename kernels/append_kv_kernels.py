"""Device code of append_kv: the K and V of new tokens go into their slots of a paged cache.

One program owns one token and one tile of its heads: it reads the token's slot once, turns it into
a page and an offset, and copies both tensors' rows. A slot of -1 is skipped by a mask. The program
keeps no state, and the only intermediates are the tiles in flight.

Slots are not checked here, where that would need a synchronisation: a slot outside the cache is
skipped, so that it is never written.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

__all__ = ["CacheRows", "TokenRows", "append_kv_kernel"]


class TokenRows(NamedTuple):
    """K or V of the new tokens."""

    ptr: Any  # [T, num_kv_heads, head_dim]
    stride_token: Any
    stride_head: Any


class CacheRows(NamedTuple):
    """K or V of one layer's cache."""

    ptr: Any  # [num_pages, num_kv_heads, page_size, head_dim]
    stride_page: Any
    stride_head: Any


@triton.jit
def copy_rows(tokens, cache, token, page, offset, offs_head, valid, head_dim, BLOCK_DIM):
    """One token's rows, from TokenRows to CacheRows; `valid` [BLOCK_HEAD] masks heads."""
    offs_dim = tl.arange(0, BLOCK_DIM)
    mask = valid[:, None] & (offs_dim < head_dim)[None, :]
    head = offs_head.to(tl.int64)[:, None]
    source = tokens.ptr + token * tokens.stride_token + head * tokens.stride_head
    source = source + offs_dim[None, :]
    target = cache.ptr + page * cache.stride_page + head * cache.stride_head + offset * head_dim
    target = target + offs_dim[None, :]
    tl.store(target, tl.load(source, mask=mask), mask=mask)


@triton.jit(
    do_not_specialize=["num_pages", "num_kv_heads", "page_size"],
    do_not_specialize_on_alignment=["slot_mapping_ptr"],
)
def append_kv_kernel(
    k,  # TokenRows
    v,  # TokenRows
    slot_mapping_ptr,  # [T] int64
    k_cache,  # CacheRows
    v_cache,  # CacheRows
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
    copy_rows(k, k_cache, token, page, offset, offs_head, valid, head_dim, BLOCK_DIM)
    copy_rows(v, v_cache, token, page, offset, offs_head, valid, head_dim, BLOCK_DIM)
