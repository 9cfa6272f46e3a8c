"""A plan's arrays on a device: what the programs of tree attention read there.

csrc/cpu/tree_items.h says what items, runs, chunks, groups and partials are. All of it is one int32
array, brought to the device by one copy.
"""

from dataclasses import dataclass
from typing import Any

import torch

from marco_fast.ops.backends import built

__all__ = ["GROUP_TOKENS", "TreeItems", "chunk_tokens", "tree_items"]

# Tokens of a full group of chunks. With chunk_tokens it defines a result's bits.
GROUP_TOKENS = 512
# Programs that fill a large GPU (132 processors) about four times.
ENOUGH_ITEMS = 512

SECTIONS = (
    "items", "chunks", "partial_begin", "merges", "query_order", "query_lens", "own_end",
    "segment_lens", "page_begin", "page_ids",
)  # fmt: skip
HEADER_WORDS = 16

if built():
    from marco_fast import _C

    _pack: Any = _C.make_tree_items
else:
    from marco_fast.ops.plain_tree_items import pack_tree_items

    _pack = pack_tree_items


def chunk_tokens(head_dim: int) -> int:
    """Tokens of a chunk: 64 KiB of K and V of one head at most, in half precision."""
    return 256 if head_dim <= 64 else 128


@dataclass(frozen=True, eq=False)
class TreeItems:
    """Views of one int32 array on the device, and the sizes of a launch.

    Attributes:
        counts: [16] how many words each of the arrays below holds, in their order.
        items: [I, 6] one program's tokens and rows each, flat.
        chunks: [C, 2] segment and first token of each chunk, flat; an item's are consecutive.
        partial_begin: [Q + 1] query i's partials are [partial_begin[i], partial_begin[i + 1]).
        merges: [M] the queries whose result the merge writes.
        query_order, query_lens, own_end, segment_lens, page_begin, page_ids: as in the plan.
        num_items, num_merges, num_partials: I, M and partial_begin[Q], or the most there may be.
        tile_rows: rows of an item: 16 or 32.
        chunk_tokens: tokens of a chunk.
    """

    counts: torch.Tensor
    items: torch.Tensor
    chunks: torch.Tensor
    partial_begin: torch.Tensor
    merges: torch.Tensor
    query_order: torch.Tensor
    query_lens: torch.Tensor
    own_end: torch.Tensor
    segment_lens: torch.Tensor
    page_begin: torch.Tensor
    page_ids: torch.Tensor
    num_items: int
    num_merges: int
    num_partials: int
    tile_rows: int
    chunk_tokens: int


def tree_items(
    native: Any,
    *,
    group: int,
    num_kv_heads: int,
    head_dim: int,
    device: torch.device,
    tile_rows: int = 0,
    enough_items: int = ENOUGH_ITEMS,
) -> TreeItems:
    """Makes the items of a plan and copies everything to the device.

    On a CPU query_lens is the plan's own array, so that the plan's advance is seen through it.

    Args:
        native: the plan's native object.
        group, num_kv_heads, head_dim: as planned.
        device: where the kernels run.
        tile_rows: rows of an item, 16 or 32; 0: what costs least. No result depends on it.
        enough_items: programs that fill the device; a plan with less work gets shorter runs. No
            result depends on it.
    """
    step = chunk_tokens(head_dim)
    packed = _pack(native, group, num_kv_heads, step, GROUP_TOKENS, tile_rows, enough_items)
    sizes = packed[: len(SECTIONS) + 1].tolist()
    host = torch.from_numpy(packed)
    if device.type == "cuda":
        host = host.pin_memory()
    whole = host.to(device, non_blocking=True)
    arrays, begin = {"counts": whole[:HEADER_WORDS]}, HEADER_WORDS
    ends = {}
    for name, size in zip(SECTIONS, sizes, strict=False):
        arrays[name] = whole[begin : begin + size]
        ends[name] = begin + size
        begin += -(-size // 4) * 4
    if device.type == "cpu":
        arrays["query_lens"] = torch.from_numpy(native.query_lens)
    return TreeItems(
        **arrays,
        num_items=sizes[0] // 6,
        num_merges=sizes[3],
        num_partials=int(packed[ends["partial_begin"] - 1]),
        tile_rows=sizes[len(SECTIONS)],
        chunk_tokens=step,
    )
