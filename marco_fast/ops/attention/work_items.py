"""A plan and its work items on a device: what the programs of tree attention read there.

csrc/cpu/attention/work_items.h says what spans, chunks, token groups, work items and partials are.
Everything is one packed plan (ops/reference/work_items.py), brought to the device by one copy.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from marco_fast.ops.backends import built
from marco_fast.ops.reference.work_items import COUNTS, HEADER_WORDS, Sizes, section_words
from marco_fast.ops.reference.work_items import pack_plan as pack_by_reference

__all__ = [
    "TOKEN_GROUP",
    "Sections",
    "WorkItems",
    "chunk_tokens",
    "pack_again",
    "sections_of",
    "work_items",
]

# Tokens of a full token group. With chunk_tokens it defines a result's bits.
TOKEN_GROUP = 512
# Programs that fill a large GPU (132 processors) about four times.
ENOUGH_ITEMS = 512

if built():
    from marco_fast import _C

    _pack: Any = _C.pack_plan
else:
    _pack = pack_by_reference


def chunk_tokens(head_dim: int) -> int:
    """Tokens of a chunk: 64 KiB of K and V of one head at most, in half precision."""
    return 256 if head_dim <= 64 else 128


class Sections(NamedTuple):
    """Views of a packed plan, with the room that each section has.

    Attributes:
        header: [24] magic number, version, sizes and room.
        query_order to page_ids: the arrays of the plan, which documents them.
        items: [I, 6] the tokens and query heads of one program each, flat.
        chunks: [C, 2] segment and first token of each chunk, flat; an item's are consecutive.
        partial_begin: [Q + 1] query i's partials are [partial_begin[i], partial_begin[i + 1]).
        merges: [M] the queries whose result the merge writes.
    """

    header: torch.Tensor
    query_order: torch.Tensor
    query_segment: torch.Tensor
    query_lens: torch.Tensor
    segment_parents: torch.Tensor
    segment_lens: torch.Tensor
    query_begin: torch.Tensor
    own_end: torch.Tensor
    query_end: torch.Tensor
    page_begin: torch.Tensor
    page_ids: torch.Tensor
    items: torch.Tensor
    chunks: torch.Tensor
    partial_begin: torch.Tensor
    merges: torch.Tensor


@dataclass(eq=False)
class WorkItems:
    """A packed plan on its device, and what the host must know to launch its programs.

    Attributes:
        packed: [words] int32, the packed plan.
        sizes: of a launch. With room for later plans the most there may be; `packed` itself says
            how much of that is in use.
        sections: views of `packed`.
    """

    packed: torch.Tensor
    sizes: Sizes
    sections: Sections

    def overwrite(self, packed: np.ndarray) -> None:
        """Puts what `pack_again` returned in the place of what is there; does not wait."""
        with torch.inference_mode():  # where the array may have been made
            self.packed.copy_(_host(packed, self.packed.device), non_blocking=True)


def work_items(
    arrays: Any,
    *,
    heads: tuple[int, int, int, int],
    device: torch.device,
    tile_query_heads: int = 0,
    enough_items: int = ENOUGH_ITEMS,
    room: float = 1.0,
) -> WorkItems:
    """Makes the work items of a plan and copies everything to the device.

    Args:
        arrays: the plan's arrays.
        heads: num_heads, num_kv_heads, head_dim and page_size, as planned.
        device: where the kernels run.
        tile_query_heads: query heads of a work item, 16 or 32; 0: what costs least. No result
            depends on it.
        enough_items: programs that fill the device; a plan with less work gets shorter spans. No
            result depends on it.
        room: how many times as large as this plan a later one in its place may be.
    """
    options = (chunk_tokens(heads[2]), TOKEN_GROUP, tile_query_heads, enough_items)
    packed = _pack(arrays, heads, *options)
    sizes = sizes_of(packed)
    if room > 1:
        sizes = with_room(sizes, room)
        packed = _pack(arrays, heads, *options, sizes[-len(COUNTS) :])
    tensor = _host(packed, device).to(device, non_blocking=True)
    return WorkItems(tensor, sizes, sections_of(tensor, sizes))


def sizes_of(packed: np.ndarray) -> Sizes:
    """What a packed plan says that it holds."""
    return Sizes(*packed[2 : 2 + len(Sizes._fields)].tolist())


def sections_of(packed: torch.Tensor, room: Sizes) -> Sections:
    """Views of a packed plan with room for so much."""
    splits = [HEADER_WORDS]
    for words in section_words(room[-len(COUNTS) :]):
        splits += (words, -words % 4)
    header, *sections = packed.split_with_sizes(splits)
    return Sections(header, *sections[::2])


def with_room(sizes: Sizes, room: float) -> Sizes:
    """Sizes for plans of `room` times as many queries, segments, pages, chunks and items."""
    counts = {name: math.ceil(room * getattr(sizes, name)) for name in COUNTS}
    counts["merges"] = counts["queries"]
    partials = math.ceil(room * max(sizes.num_partials, 2 * counts["queries"]))
    return sizes._replace(num_partials=partials, **counts)


def pack_again(arrays: Any, like: WorkItems) -> np.ndarray:
    """The packed plan of other arrays, laid out as `like` is, for `like.overwrite`.

    Raises:
        ValueError: there is no room for it.
    """
    room = like.sizes
    options = (room.chunk_tokens, TOKEN_GROUP, room.tile_query_heads, ENOUGH_ITEMS)
    packed = _pack(arrays, room[:4], *options, room[-len(COUNTS) :])
    partials = sizes_of(packed).num_partials
    if partials > room.num_partials:
        raise ValueError(
            f"expected at most {room.num_partials} partials, the plan's room, got {partials}"
        )
    return packed


def _host(packed: np.ndarray, device: torch.device) -> torch.Tensor:
    host = torch.from_numpy(packed)
    return host.pin_memory() if device.type == "cuda" else host
