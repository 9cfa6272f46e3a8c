"""Device code of tree attention: each segment of a forest of paged KV is read once for all.

Stage 1: one program owns an item (csrc/cpu/attention/work_items.h) and one KV head: a run of chunks
of the tokens of a path, and a tile of the rows that read them; row = (query, head in its group), so
a group of any size fills a tile. It keeps each row's running (m, s, acc) in registers and leaves
one partial a row in the workspace, or the result where the run is the whole path. Scores never
reach memory.

Stage 2: one program owns a query and some heads, and folds its partials, root to leaf.

A row's bits depend on its path alone. Chunks start at fixed tokens of their segment and are summed
in tiles of BLOCK_TOKENS; chunks are folded to groups and groups to the result by one formula
(`fold`) in the order of the path, whether in registers or by stage 2; and every tile of rows uses
the same matrix instruction and the same order of sums. m is in units of log2; an empty state is
(-inf, 0, 0), and joining it changes nothing.

Lengths, pages and counts are read from the plan's arrays at run time, so a captured launch follows
`advance`.
"""

import triton
import triton.language as tl

from marco_fast.kernels.confidence_records import sum_in_order

__all__ = ["advance_kernel", "attend_kernel", "merge_kernel"]

LN_2 = tl.constexpr(0.6931471805599453)

# Read a number at a time: how they are aligned changes no code.
PLAN_ARRAYS = [
    "counts_ptr", "items_ptr", "chunks_ptr", "partial_begin_ptr", "merges_ptr", "query_order_ptr",
    "query_lens_ptr", "own_end_ptr", "segment_lens_ptr", "page_begin_ptr", "page_ids_ptr",
]  # fmt: skip


@triton.jit
def fold(m, s, acc, next_m, next_s, next_acc):
    """The state of two consecutive pieces of a path; an empty one keeps the other's bits."""
    top = tl.maximum(m, next_m)
    shift = tl.where(top == float("-inf"), 0.0, top)  # two empty ones: not inf - inf
    factor, next_factor = tl.exp2(m - shift), tl.exp2(next_m - shift)
    empty, next_empty = m == float("-inf"), next_m == float("-inf")
    joined = tl.fma(s, factor, next_s * next_factor)
    sums = tl.fma(acc, tl.broadcast_to(factor[:, None], acc.shape), next_acc * next_factor[:, None])
    s = tl.where(next_empty, s, tl.where(empty, next_s, joined))
    acc = tl.where(next_empty[:, None], acc, tl.where(empty[:, None], next_acc, sums))
    return top, s, acc


@triton.jit
def finish(m, s, acc):
    """The result and its lse (natural log): a state without tokens gives 0 and -inf."""
    nonzero = tl.where(s == 0.0, 1.0, s)
    return acc / nonzero[:, None], (m + tl.log2(nonzero)) * LN_2


@triton.jit
def attend_chunk(
    q,  # [BLOCK_ROWS, BLOCK_DIM]
    k_ptr,  # the KV head's first element
    v_ptr,
    pages_ptr,  # the segment's pages
    begin,  # the chunk's first token
    seen,  # [BLOCK_ROWS] how many of the chunk's tokens the row sees
    most,
    scale,  # includes log2(e)
    stride_k_page,
    stride_v_page,
    head_dim,
    page_size,
    page_magic,  # token // page_size == token * page_magic >> page_shift
    page_shift,
    BLOCK_TOKENS: tl.constexpr,
    PADDED: tl.constexpr,
):
    """The state of one chunk alone, its tokens in tiles that start at its own first token."""
    BLOCK_ROWS: tl.constexpr = q.shape[0]
    BLOCK_DIM: tl.constexpr = q.shape[1]
    offs_dim = tl.arange(0, BLOCK_DIM)
    m = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    s = tl.zeros([BLOCK_ROWS], tl.float32)
    acc = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
    for first in range(0, most, BLOCK_TOKENS):
        offs_token = first + tl.arange(0, BLOCK_TOKENS)
        valid = offs_token < most
        token = begin + offs_token
        page_number = ((token.to(tl.int64) * page_magic) >> page_shift).to(tl.int32)
        offset = token - page_number * page_size
        page = tl.load(pages_ptr + page_number, mask=valid, other=0).to(tl.int64)
        k_rows = k_ptr + page * stride_k_page + offset.to(tl.int64) * head_dim
        v_rows = v_ptr + page * stride_v_page + offset.to(tl.int64) * head_dim
        mask = valid[:, None]
        if PADDED:
            mask = mask & (offs_dim < head_dim)[None, :]
        k = tl.load(k_rows[:, None] + offs_dim[None, :], mask=mask, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(offs_token[None, :] < seen[:, None], scores, float("-inf"))
        top = tl.maximum(m, tl.max(scores, 1))
        shift = tl.where(top == float("-inf"), 0.0, top)
        factor = tl.exp2(m - shift)
        weights = tl.exp2(scores - shift[:, None])
        s = tl.fma(s, factor, sum_in_order(weights))
        v = tl.load(v_rows[:, None] + offs_dim[None, :], mask=mask, other=0.0)
        acc = tl.dot(weights.to(v.dtype), v, acc * factor[:, None], input_precision="ieee")
        m = top
    # A NaN score is dropped by the maximum but not by the sum; +inf keeps the state from passing
    # for an empty one, and every later fold gives NaN.
    return tl.where(s == s, m, float("inf")), s, acc


@triton.jit(
    do_not_specialize=[
        "num_heads", "group", "page_size", "page_magic", "page_shift", "chunk_tokens", "partials",
        "tiles_per_item", "wants_lse",
    ],
    do_not_specialize_on_alignment=["lse_ptr", *PLAN_ARRAYS],
)  # fmt: skip
def attend_kernel(
    q_ptr,  # [Q, num_heads, head_dim]
    k_ptr,  # [num_pages, num_kv_heads, page_size, head_dim]
    v_ptr,  # [num_pages, num_kv_heads, page_size, head_dim]
    out_ptr,  # [Q, num_heads, head_dim]
    lse_ptr,  # [Q, num_heads] float32
    workspace_ptr,  # acc [partials, num_heads, head_dim], then m, then s [partials, num_heads]
    counts_ptr,  # [0]: the number of items
    items_ptr,  # [items, 6]
    chunks_ptr,  # [chunks, 2]
    partial_begin_ptr,  # [Q + 1]
    query_order_ptr,  # [Q]
    query_lens_ptr,  # [Q]
    own_end_ptr,  # [segments]
    segment_lens_ptr,  # [segments]
    page_begin_ptr,  # [segments + 1]
    page_ids_ptr,
    scale,
    stride_q_query,
    stride_q_head,
    stride_k_page,
    stride_k_head,
    stride_v_page,
    stride_v_head,
    stride_out_query,
    stride_out_head,
    num_heads,
    group,
    head_dim,
    page_size,
    page_magic,
    page_shift,
    chunk_tokens,
    partials,
    tiles_per_item,
    wants_lse,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PADDED: tl.constexpr,
):
    item = tl.program_id(0) // tiles_per_item
    kv_head = tl.program_id(1)
    if item < tl.load(counts_ptr) // 6:
        item_ptr = items_ptr + item.to(tl.int64) * 6
        chunk_begin, chunk_end = tl.load(item_ptr), tl.load(item_ptr + 1)
        query_begin, query_end = tl.load(item_ptr + 2), tl.load(item_ptr + 3)
        place = tl.load(item_ptr + 5)

        row = tl.load(item_ptr + 4) + (tl.program_id(0) % tiles_per_item) * BLOCK_ROWS
        offs_row = row + tl.arange(0, BLOCK_ROWS)
        query = query_begin + offs_row // group
        valid = query < query_end
        head = kv_head * group + offs_row % group
        caller = tl.load(query_order_ptr + query, mask=valid, other=0).to(tl.int64)
        lens = tl.load(query_lens_ptr + query, mask=valid, other=0)

        offs_dim = tl.arange(0, BLOCK_DIM)
        mask = valid[:, None] & (offs_dim < head_dim)[None, :]
        q_rows = q_ptr + caller * stride_q_query + head.to(tl.int64) * stride_q_head
        q = tl.load(q_rows[:, None] + offs_dim[None, :], mask=mask, other=0.0)
        k_head_ptr = k_ptr + kv_head.to(tl.int64) * stride_k_head
        v_head_ptr = v_ptr + kv_head.to(tl.int64) * stride_v_head

        m = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
        s = tl.zeros([BLOCK_ROWS], tl.float32)
        acc = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
        for chunk in range(chunk_begin, chunk_end):
            chunk_ptr = chunks_ptr + 2 * chunk
            segment, begin = tl.load(chunk_ptr), tl.load(chunk_ptr + 1)
            own_end = tl.load(own_end_ptr + segment)
            seen = tl.where(query < own_end, lens, tl.load(segment_lens_ptr + segment)) - begin
            seen = tl.where(valid, tl.minimum(seen, chunk_tokens), 0)
            chunk_m, chunk_s, chunk_acc = attend_chunk(
                q, k_head_ptr, v_head_ptr, page_ids_ptr + tl.load(page_begin_ptr + segment), begin,
                seen, tl.max(seen, 0), scale, stride_k_page, stride_v_page,
                head_dim, page_size, page_magic, page_shift, BLOCK_TOKENS, PADDED,
            )  # fmt: skip
            m, s, acc = fold(m, s, acc, chunk_m, chunk_s, chunk_acc)

        # Read only now: the loop above needs every register.
        caller = tl.load(query_order_ptr + query, mask=valid, other=0).to(tl.int64)
        slot = tl.load(partial_begin_ptr + query, mask=valid, other=0)
        alone = slot == tl.load(partial_begin_ptr + query + 1, mask=valid, other=0)
        slot = (slot + place // 2).to(tl.int64) * num_heads + head

        out, lse = finish(m, s, acc)
        out_rows = out_ptr + caller * stride_out_query + head.to(tl.int64) * stride_out_head
        out_rows = out_rows[:, None] + offs_dim[None, :]
        tl.store(out_rows, out.to(out_ptr.dtype.element_ty), mask=mask & alone[:, None])
        lse_mask = valid & alone & (wants_lse != 0)
        tl.store(lse_ptr + caller * num_heads + head, lse, mask=lse_mask)

        partial = valid & ~alone
        partial_rows = workspace_ptr + slot[:, None] * head_dim + offs_dim[None, :]
        tl.store(partial_rows, acc, mask=mask & partial[:, None])
        states = tl.full([BLOCK_ROWS], partials, tl.int64) * num_heads
        m_rows = workspace_ptr + states * head_dim + slot
        tl.store(m_rows, m, mask=partial)
        # A negative sum marks a partial that goes on with the group of the one before.
        tl.store(m_rows + states, tl.where(place % 2 == 1, -s, s), mask=partial)


@triton.jit(
    do_not_specialize=["num_heads", "partials", "wants_lse"],
    do_not_specialize_on_alignment=["lse_ptr", *PLAN_ARRAYS],
)
def merge_kernel(
    out_ptr,  # [Q, num_heads, head_dim]
    lse_ptr,  # [Q, num_heads] float32
    workspace_ptr,  # as attend_kernel left it
    counts_ptr,  # [3]: the number of merges
    partial_begin_ptr,  # [Q + 1]
    merges_ptr,  # [merges]
    query_order_ptr,  # [Q]
    stride_out_query,
    stride_out_head,
    num_heads,
    head_dim,
    partials,
    wants_lse,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    if tl.program_id(0) < tl.load(counts_ptr + 3):
        query = tl.load(merges_ptr + tl.program_id(0))
        head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
        offs_dim = tl.arange(0, BLOCK_DIM)
        valid = head < num_heads
        mask = valid[:, None] & (offs_dim < head_dim)[None, :]
        begin, end = tl.load(partial_begin_ptr + query), tl.load(partial_begin_ptr + query + 1)

        # The state of the groups before, and of the group that the newest partial belongs to.
        m = tl.full([BLOCK_HEADS], float("-inf"), tl.float32)
        s = tl.zeros([BLOCK_HEADS], tl.float32)
        acc = tl.zeros([BLOCK_HEADS, BLOCK_DIM], tl.float32)
        group_m, group_s, group_acc = m, s, acc
        states = tl.full([BLOCK_HEADS], partials, tl.int64) * num_heads
        for partial in range(begin, end):
            slot = tl.full([BLOCK_HEADS], partial, tl.int64) * num_heads + head
            rows = workspace_ptr + slot[:, None] * head_dim + offs_dim[None, :]
            next_acc = tl.load(rows, mask=mask, other=0.0)
            m_rows = workspace_ptr + states * head_dim + slot
            next_m = tl.load(m_rows, mask=valid, other=float("-inf"))
            next_s = tl.load(m_rows + states, mask=valid, other=0.0)
            starts = ~(next_s < 0.0)
            # Where a group starts, the one before is done.
            done_m = tl.where(starts, group_m, float("-inf"))
            m, s, acc = fold(m, s, acc, done_m, group_s, group_acc)
            group_m = tl.where(starts, float("-inf"), group_m)
            group_m, group_s, group_acc = fold(
                group_m, group_s, group_acc, next_m, tl.abs(next_s), next_acc
            )
        m, s, acc = fold(m, s, acc, group_m, group_s, group_acc)

        out, lse = finish(m, s, acc)
        caller = tl.load(query_order_ptr + query).to(tl.int64)
        out_rows = out_ptr + caller * stride_out_query + head.to(tl.int64) * stride_out_head
        out_rows = out_rows[:, None] + offs_dim[None, :]
        tl.store(out_rows, out.to(out_ptr.dtype.element_ty), mask=mask)
        tl.store(lse_ptr + caller * num_heads + head, lse, mask=valid & (wants_lse != 0))


@triton.jit(
    do_not_specialize=["queries"],
    do_not_specialize_on_alignment=["active_ptr", *PLAN_ARRAYS],
)
def advance_kernel(
    query_lens_ptr,  # [Q]
    query_order_ptr,  # [Q]
    active_ptr,  # [Q] bool in the caller's order
    queries,
    ALL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offs_query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = offs_query < queries
    lens = tl.load(query_lens_ptr + offs_query, mask=valid)
    if ALL:
        grows = valid
    else:
        caller = tl.load(query_order_ptr + offs_query, mask=valid, other=0)
        grows = tl.load(active_ptr + caller, mask=valid, other=0) != 0
    tl.store(query_lens_ptr + offs_query, lens + grows.to(tl.int32), mask=valid)
