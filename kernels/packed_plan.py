"""The packed plan as the kernels of tree attention read it.

marco_fast/ops/reference/work_items.py draws its header and says what its sections are.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

__all__ = [
    "NUM_ITEMS",
    "NUM_MERGES",
    "NUM_PARTIALS",
    "TILE_QUERY_HEADS",
    "Plan",
    "QueryHeads",
    "tile_of_item",
]

# Words of the header.
TILE_QUERY_HEADS, NUM_PARTIALS = tl.constexpr(7), tl.constexpr(9)
NUM_ITEMS, NUM_MERGES = tl.constexpr(13), tl.constexpr(15)


class Plan(NamedTuple):
    """The header and the sections that a kernel reads; each starts at a multiple of 16 bytes."""

    header_ptr: Any
    query_order_ptr: Any  # [Q]
    query_lens_ptr: Any  # [Q]
    segment_lens_ptr: Any  # [segments]
    own_end_ptr: Any  # [segments]
    page_begin_ptr: Any  # [segments + 1]
    page_ids_ptr: Any  # [pages]
    items_ptr: Any  # [items, 6]
    chunks_ptr: Any  # [chunks, 2]
    partial_begin_ptr: Any  # [Q + 1]
    merges_ptr: Any  # [merges]


class QueryHeads(NamedTuple):
    """The query heads of a tile; each field [tile.query_heads]."""

    query: Any  # depth-first number
    head: Any
    valid: Any
    caller: Any  # the caller's index of the query
    lens: Any  # how many tokens of its own segment the query sees


@triton.jit
def tile_of_item(plan, item_ptr, tile_number, kv_head, group, TILE: tl.constexpr):
    """The query heads of one tile of a work item."""
    query_begin, query_end = tl.load(item_ptr + 2), tl.load(item_ptr + 3)
    offs_query_head = tl.load(item_ptr + 4) + tile_number * TILE + tl.arange(0, TILE)
    query = query_begin + offs_query_head // group
    head = kv_head * group + offs_query_head % group
    valid = query < query_end
    caller = tl.load(plan.query_order_ptr + query, mask=valid, other=0).to(tl.int64)
    lens = tl.load(plan.query_lens_ptr + query, mask=valid, other=0)
    return QueryHeads(query, head, valid, caller, lens)
