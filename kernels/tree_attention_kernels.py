"""Device code of tree attention: each segment of a forest of paged KV is read once for all.

Stage 1: one program owns one work item (csrc/cpu/attention/work_items.h) and one KV head. The item
is a span of a path, some consecutive chunks, and a tile of the query heads that read it; a query
head is a query and one head of its group, so a group of any size fills a tile. The program keeps
the running state (m, s, acc) of each query head in registers. It leaves one partial per query head
in the workspace, or the result where the span is the whole path. Scores never reach memory.

Stage 2: one program owns one query and some heads, and folds the query's partials, root to leaf.

The bits of a result depend on the query's path alone. Chunks start at fixed tokens of their segment
and are summed in tiles of `tile.tokens`. `fold` joins chunks to token groups, and token groups to
the result, in the order of the path, in registers or in stage 2; and every tile of query heads uses
the same matrix instruction and the same order of sums.

Lengths, pages and counts are read from the packed plan at run time, so a captured launch follows
`advance` and `update`.

Triton (3.6) specialises integers inside of NamedTuples, whatever do_not_specialize says: what
differs between plans or page sizes is a parameter of its own, or is read from the packed plan.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from marco_fast.kernels.attention_state import (
    State,
    fold,
    load_partial,
    no_tokens,
    store_partial,
    store_result,
)  # fmt: skip
from marco_fast.kernels.confidence_records import sum_in_order
from marco_fast.kernels.packed_plan import (
    NUM_ITEMS,
    NUM_MERGES,
    NUM_PARTIALS,
    TILE_QUERY_HEADS,
    tile_of_item,
)

__all__ = [
    "Caches", "Queries", "TileSizes", "advance_kernel", "attend_kernel", "merge_kernel",
]  # fmt: skip


class Queries(NamedTuple):
    """The queries and the scale of their scores."""

    ptr: Any  # [Q, num_heads, head_dim]
    stride_query: Any
    stride_head: Any
    scale: Any  # includes log2(e)


class Caches(NamedTuple):
    """One layer's K and V; both [num_pages, num_kv_heads, page_size, head_dim]."""

    k_ptr: Any
    v_ptr: Any
    stride_k_page: Any
    stride_k_head: Any
    stride_v_page: Any
    stride_v_head: Any


class TileSizes(NamedTuple):
    """Sizes of one attend_kernel program, each a tl.constexpr."""

    query_heads: Any
    tokens: Any  # per step
    dim: Any  # head_dim, padded to a power of two
    padded: Any  # whether dim > head_dim
    chunk_tokens: Any


class Paging(NamedTuple):
    """Where the tokens of a KV head lie."""

    k_ptr: Any  # the head's first element
    v_ptr: Any
    stride_k_page: Any
    stride_v_page: Any
    head_dim: Any
    page_size: Any
    page_magic: Any  # token // page_size == token * page_magic >> page_shift
    page_shift: Any


@triton.jit
def load_queries(queries, query_heads, head_dim, DIM: tl.constexpr):
    """q of the query heads, [query_heads, DIM]."""
    offs_dim = tl.arange(0, DIM)
    q_rows = queries.ptr + query_heads.caller * queries.stride_query
    q_rows = q_rows + query_heads.head.to(tl.int64) * queries.stride_head
    mask = query_heads.valid[:, None] & (offs_dim < head_dim)[None, :]
    return tl.load(q_rows[:, None] + offs_dim[None, :], mask=mask, other=0.0)


@triton.jit
def attend_chunk(
    q,  # [tile.query_heads, tile.dim]
    kv,  # Paging
    pages_ptr,  # the segment's pages
    begin,  # the chunk's first token
    seen,  # [tile.query_heads] how many of the chunk's tokens each sees
    scale,
    tile,  # TileSizes
):
    """The state of one chunk alone, its tokens in tiles that start at its own first token."""
    offs_dim = tl.arange(0, tile.dim)
    most = tl.max(seen, 0)
    state = no_tokens(tile.query_heads, tile.dim)
    for first in range(0, most, tile.tokens):
        offs_token = first + tl.arange(0, tile.tokens)
        valid = offs_token < most
        token = begin + offs_token
        page_number = ((token.to(tl.int64) * kv.page_magic) >> kv.page_shift).to(tl.int32)
        offset = token - page_number * kv.page_size
        page = tl.load(pages_ptr + page_number, mask=valid, other=0).to(tl.int64)
        k_rows = kv.k_ptr + page * kv.stride_k_page + offset.to(tl.int64) * kv.head_dim
        v_rows = kv.v_ptr + page * kv.stride_v_page + offset.to(tl.int64) * kv.head_dim
        mask = valid[:, None]
        if tile.padded:
            mask = mask & (offs_dim < kv.head_dim)[None, :]
        k = tl.load(k_rows[:, None] + offs_dim[None, :], mask=mask, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(offs_token[None, :] < seen[:, None], scores, float("-inf"))
        m = tl.maximum(state.m, tl.max(scores, 1))
        shift = tl.where(m == float("-inf"), 0.0, m)
        factor = tl.exp2(state.m - shift)
        weights = tl.exp2(scores - shift[:, None])
        s = tl.fma(state.s, factor, sum_in_order(weights))
        v = tl.load(v_rows[:, None] + offs_dim[None, :], mask=mask, other=0.0)
        acc = state.acc * factor[:, None]
        state = State(m, s, tl.dot(weights.to(v.dtype), v, acc, input_precision="ieee"))
    # A NaN score is dropped by the maximum but not by the sum; +inf keeps the state from passing
    # for an empty one, and every later fold gives NaN.
    return State(tl.where(state.s == state.s, state.m, float("inf")), state.s, state.acc)


@triton.jit
def attend_span(q, kv, plan, query_heads, chunk_begin, chunk_end, scale, tile):
    """The state of a work item: its chunks, each by itself, folded in the order of the path."""
    state = no_tokens(tile.query_heads, tile.dim)
    for chunk in range(chunk_begin, chunk_end):
        chunk_ptr = plan.chunks_ptr + 2 * chunk
        segment, begin = tl.load(chunk_ptr), tl.load(chunk_ptr + 1)
        own_end = tl.load(plan.own_end_ptr + segment)
        whole = tl.load(plan.segment_lens_ptr + segment)
        seen = tl.where(query_heads.query < own_end, query_heads.lens, whole) - begin
        seen = tl.where(query_heads.valid, tl.minimum(seen, tile.chunk_tokens), 0)
        pages_ptr = plan.page_ids_ptr + tl.load(plan.page_begin_ptr + segment)
        state = fold(state, attend_chunk(q, kv, pages_ptr, begin, seen, scale, tile))
    return state


@triton.jit
def store_span(
    result, workspace_ptr, plan, state, query_heads, ordinal_joins, group, head_dim, wants_lse
):
    """Writes the result of query heads that read one span, and one partial of each other one."""
    # Loaded only here: the loop over chunks needs every register.
    query, head, valid = query_heads.query, query_heads.head, query_heads.valid
    num_heads = group * tl.num_programs(1)
    caller = tl.load(plan.query_order_ptr + query, mask=valid, other=0).to(tl.int64)
    partial = tl.load(plan.partial_begin_ptr + query, mask=valid, other=0)
    alone = valid & (partial == tl.load(plan.partial_begin_ptr + query + 1, mask=valid, other=0))
    store_result(result, state, caller, head, alone, num_heads, head_dim, wants_lse)
    # A negative sum marks a partial that goes on with the token group of the one before.
    state = State(state.m, tl.where(ordinal_joins % 2 == 1, -state.s, state.s), state.acc)
    slot = (partial + ordinal_joins // 2).to(tl.int64) * num_heads + head
    partials = tl.load(plan.header_ptr + NUM_PARTIALS)
    store_partial(workspace_ptr, state, slot, valid & ~alone, partials, num_heads, head_dim)


@triton.jit(do_not_specialize=["group", "page_size", "page_magic", "page_shift", "wants_lse"])
def attend_kernel(
    queries,  # Queries
    caches,  # Caches
    plan,  # Plan of packed_plan.py
    result,  # Result of attention_state.py
    workspace_ptr,  # acc [partials, num_heads, head_dim], then m, then s [partials, num_heads]
    group,
    head_dim,
    page_size,
    page_magic,
    page_shift,
    wants_lse,
    tile,  # TileSizes
):
    tiles_per_item = tl.load(plan.header_ptr + TILE_QUERY_HEADS) // tile.query_heads
    item, kv_head = tl.program_id(0) // tiles_per_item, tl.program_id(1)
    if item < tl.load(plan.header_ptr + NUM_ITEMS):
        item_ptr = plan.items_ptr + item.to(tl.int64) * 6
        chunk_begin, chunk_end = tl.load(item_ptr), tl.load(item_ptr + 1)
        tile_number = tl.program_id(0) % tiles_per_item
        qh = tile_of_item(plan, item_ptr, tile_number, kv_head, group, tile.query_heads)
        q = load_queries(queries, qh, head_dim, tile.dim)
        kv = Paging(
            caches.k_ptr + kv_head.to(tl.int64) * caches.stride_k_head,
            caches.v_ptr + kv_head.to(tl.int64) * caches.stride_v_head,
            caches.stride_k_page, caches.stride_v_page, head_dim, page_size, page_magic, page_shift,
        )  # fmt: skip
        state = attend_span(q, kv, plan, qh, chunk_begin, chunk_end, queries.scale, tile)
        store_span(
            result,
            workspace_ptr,
            plan,
            state,
            qh,
            tl.load(item_ptr + 5),
            group,
            head_dim,
            wants_lse,
        )


@triton.jit(do_not_specialize=["num_heads", "wants_lse"])
def merge_kernel(
    plan,  # Plan of packed_plan.py
    result,  # Result of attention_state.py
    workspace_ptr,  # as attend_kernel left it
    num_heads,
    head_dim,
    wants_lse,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    if tl.program_id(0) < tl.load(plan.header_ptr + NUM_MERGES):
        partials = tl.load(plan.header_ptr + NUM_PARTIALS)
        query = tl.load(plan.merges_ptr + tl.program_id(0))
        head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
        valid = head < num_heads
        begin = tl.load(plan.partial_begin_ptr + query)
        end = tl.load(plan.partial_begin_ptr + query + 1)

        # The token groups before, and the one that the newest partial belongs to.
        state, group = no_tokens(BLOCK_HEADS, BLOCK_DIM), no_tokens(BLOCK_HEADS, BLOCK_DIM)
        for partial in range(begin, end):
            slot = tl.full([BLOCK_HEADS], partial, tl.int64) * num_heads + head
            part = load_partial(
                workspace_ptr, slot, valid, partials, num_heads, head_dim, BLOCK_DIM
            )
            starts = ~(part.s < 0.0)
            # Where a token group starts, the one before is done.
            done = tl.where(starts, group.m, float("-inf"))
            state = fold(state, State(done, group.s, group.acc))
            group = State(tl.where(starts, float("-inf"), group.m), group.s, group.acc)
            group = fold(group, State(part.m, tl.abs(part.s), part.acc))
        state = fold(state, group)

        caller = tl.load(plan.query_order_ptr + query).to(tl.int64)
        store_result(result, state, caller, head, valid, num_heads, head_dim, wants_lse)


@triton.jit(
    do_not_specialize=["queries"],
    do_not_specialize_on_alignment=["query_lens_ptr", "query_order_ptr", "active_ptr"],
)
def advance_kernel(
    query_lens_ptr,  # [Q]
    query_order_ptr,  # [Q]
    active_ptr,  # [Q] bool in the caller's order; None: every query grows
    queries,
    BLOCK: tl.constexpr,
):
    offs_query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = offs_query < queries
    lens = tl.load(query_lens_ptr + offs_query, mask=valid)
    grows = valid
    if active_ptr is not None:
        caller = tl.load(query_order_ptr + offs_query, mask=valid, other=0)
        grows = tl.load(active_ptr + caller, mask=valid, other=0) != 0
    tl.store(query_lens_ptr + offs_query, lens + grows.to(tl.int32), mask=valid)
