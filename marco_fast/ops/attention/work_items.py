"""A plan's arrays on a device: what the programs of tree attention read there.

csrc/cpu/attention/work_items.h says what items, runs, chunks, groups and partials are. All of it is
one int32 array, brought to the device by one copy.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from marco_fast.ops.backends import built
from marco_fast.ops.reference.work_items import HEADER_WORDS, SECTIONS, pack_tree_items

__all__ = [
    "GROUP_TOKENS",
    "HEADER_WORDS",
    "SECTIONS",
    "TreeItems",
    "chunk_tokens",
    "pack_again",
    "tree_items",
]

# Tokens of a full group of chunks. With chunk_tokens it defines a result's bits.
GROUP_TOKENS = 512
# Programs that fill a large GPU (132 processors) about four times.
ENOUGH_ITEMS = 512

if built():
    from marco_fast import _C

    _pack: Any = _C.pack_plan
else:
    _pack = pack_tree_items


def chunk_tokens(head_dim: int) -> int:
    """Tokens of a chunk: 64 KiB of K and V of one head at most, in half precision."""
    return 256 if head_dim <= 64 else 128


@dataclass(eq=False)
class TreeItems:
    """Views of one int32 array on the device, and the sizes of a launch.

    With room for later plans the views and sizes are the most there may be, and `counts` says how
    much of each is in use.

    Attributes:
        counts: [16] how many words each of the arrays below holds, in their order.
        items: [I, 6] one program's tokens and rows each, flat.
        chunks: [C, 2] segment and first token of each chunk, flat; an item's are consecutive.
        partial_begin: [Q + 1] query i's partials are [partial_begin[i], partial_begin[i + 1]).
        merges: [M] the queries whose result the merge writes.
        query_order, query_lens, own_end, segment_lens, page_begin, page_ids: as in the plan.
        num_items, num_merges, num_partials: I, M and partial_begin[Q].
        tile_rows: rows of an item: 16 or 32.
        chunk_tokens: tokens of a chunk.
        whole: the array; None where only the views are at hand.
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
    whole: torch.Tensor | None = None

    def overwrite(self, packed: np.ndarray) -> None:
        """Puts what `pack_again` returned in the place of what is there; does not wait."""
        assert self.whole is not None
        with torch.inference_mode():  # where the array may have been made
            self.whole.copy_(_host(packed, self.whole.device), non_blocking=True)


def tree_items(
    native: Any,
    *,
    group: int,
    num_kv_heads: int,
    head_dim: int,
    device: torch.device,
    tile_rows: int = 0,
    enough_items: int = ENOUGH_ITEMS,
    room: float = 1.0,
) -> TreeItems:
    """Makes the items of a plan and copies everything to the device.

    Args:
        native: the plan's native object.
        group, num_kv_heads, head_dim: as planned.
        device: where the kernels run.
        tile_rows: rows of an item, 16 or 32; 0: what costs least. No result depends on it.
        enough_items: programs that fill the device; a plan with less work gets shorter runs. No
            result depends on it.
        room: how many times as large as this plan a later one in its place may be.
    """
    step = chunk_tokens(head_dim)
    options = (group, num_kv_heads, step, GROUP_TOKENS, tile_rows, enough_items)
    packed = _pack(native, *options)
    sizes = packed[: len(SECTIONS)].tolist()
    partials = _num_partials(packed, sizes)
    if room > 1:
        sizes = with_room(sizes, room)
        partials = math.ceil(room * max(partials, 2 * (sizes[2] - 1)))
        packed = _pack(native, *options, sizes)
    splits = [HEADER_WORDS]
    for size in sizes:
        splits += (size, -size % 4)
    whole = _host(packed, device).to(device, non_blocking=True)
    counts, *sections = whole.split_with_sizes(splits)
    return TreeItems(
        counts=counts,
        **dict(zip(SECTIONS, sections[::2], strict=True)),
        num_items=sizes[0] // 6,
        num_merges=sizes[3],
        num_partials=partials,
        tile_rows=int(packed[len(SECTIONS)]),
        chunk_tokens=step,
        whole=whole,
    )


def with_room(sizes: list[int], room: float) -> list[int]:
    """Words of each section with room for plans of `room` times as many segments, queries, pages,
    chunks and items."""
    items, chunks, _, _, queries, _, segments, _, _, pages = (math.ceil(room * n) for n in sizes)
    return [
        items + -items % 6, chunks + chunks % 2, queries + 1, queries, queries, queries, segments,
        segments, segments + 1, pages,
    ]  # fmt: skip


def pack_again(native: Any, like: TreeItems, *, group: int, num_kv_heads: int) -> np.ndarray:
    """The array of another plan, laid out as `like` is, for `like.overwrite`.

    Raises:
        ValueError: the plan does not fit.
    """
    sizes = [len(getattr(like, name)) for name in SECTIONS]
    options = (group, num_kv_heads, like.chunk_tokens, GROUP_TOKENS, like.tile_rows, ENOUGH_ITEMS)
    packed = _pack(native, *options, sizes)
    partials = _num_partials(packed, sizes)
    if partials > like.num_partials:
        raise ValueError(
            f"expected a plan of at most {like.num_partials} partials, its room, got {partials}"
        )
    return packed


def _num_partials(packed: np.ndarray, sizes: list[int]) -> int:
    """The last entry of partial_begin, the third section of an array with these sizes."""
    begin = HEADER_WORDS + sum(size + -size % 4 for size in sizes[:2])
    return int(packed[begin + packed[2] - 1])


def _host(packed: np.ndarray, device: torch.device) -> torch.Tensor:
    host = torch.from_numpy(packed)
    return host.pin_memory() if device.type == "cuda" else host
