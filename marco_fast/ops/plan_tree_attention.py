"""plan_tree_attention: from a forest in the caller's terms to a TreeAttentionPlan."""

import numpy as np
import torch

from marco_fast.ops.attention_arguments import Ints, check_heads, int_array
from marco_fast.ops.native_plan import native_plan
from marco_fast.ops.tree_plan import TreeAttentionPlan

__all__ = ["plan_tree_attention"]


def plan_tree_attention(
    parents: Ints,
    segment_lens: Ints,
    block_table: torch.Tensor | np.ndarray,
    leaves: Ints,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    page_size: int,
    leaf_lens: Ints | None = None,
    max_new_tokens: int = 0,
    room: float = 1.0,
    device: torch.device | str = "cpu",
) -> TreeAttentionPlan:
    """Plans attention of Q queries, each over all tokens from a root to the segment it ends in.

    Args:
        parents: [N] int, the parent of each segment or -1; parents stand before their children.
        segment_lens: [N] int >= 0, tokens of each segment.
        block_table: [N, max_pages] int32, the pages of each segment in order; entries beyond the
            tokens (and the reserve for max_new_tokens) are not read.
        leaves: [Q] int, the segment each query ends in, in the order of q and out. Any segment may
            be a leaf, and the same one may be several queries' leaf.
        num_heads: query heads, a multiple of num_kv_heads.
        num_kv_heads: KV heads.
        head_dim: a multiple of 16 in 16..256.
        page_size: tokens of a page.
        leaf_lens: [Q] int, how many of its leaf's tokens each query sees; all by default.
        max_new_tokens: tokens that each leaf may gain by `advance` without a new plan. If above 0,
            leaves are distinct and without children, their pages already in block_table.
        room: how many times as many queries, segments, pages and programs as this plan a later one
            may have that takes its place by `update`; at least 1.
        device: where the tensors of the calls will be.

    Raises:
        ValueError: a shape, dtype or length not as above; a parent after its child; too few pages
            in a row of block_table.
        IndexError: a parent, leaf or page id out of range.
    """
    check_heads(num_heads, num_kv_heads, head_dim)
    if page_size < 1 or max_new_tokens < 0:
        raise ValueError(
            f"expected page_size >= 1 and max_new_tokens >= 0, got {page_size}, {max_new_tokens}"
        )
    if not 1 <= room < 2**16:
        raise ValueError(f"expected room in 1..65535, got {room}")
    leaf_array = int_array(leaves, "leaves")
    native = native_plan(
        parents, segment_lens, block_table, leaf_array, leaf_lens, page_size, max_new_tokens
    )
    return TreeAttentionPlan(
        native,
        leaf_array.size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        page_size=page_size,
        max_new_tokens=max_new_tokens,
        device=torch.device(device),
        room=room,
    )
