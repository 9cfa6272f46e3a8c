"""Work items and the packed plan: the specification of work_items.h and pack in packed_plan.h.

Both are in csrc/cpu/attention. This serves where the extension was not built, and gives the same
array.

A packed plan is one int32 array, laid out the same on every device:

    word 0    MAGIC
         1    VERSION
         2    Sizes, in their order: what the array holds
        16    the last six of Sizes again: what the array has room for
        24    the sections, in the order of SECTIONS, each padded with zeros to its room and then to
              a multiple of 4 words
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from marco_fast.ops.reference.plan import PLAN_ARRAYS

__all__ = [
    "COUNTS", "HEADER_WORDS", "MAGIC", "SECTIONS", "VERSION", "Sizes", "pack_plan", "section_words",
]  # fmt: skip

MAGIC, VERSION = 0x4D467470, 1
HEADER_WORDS = 24
ITEM_WORDS = 6
COUNTS = ("queries", "segments", "pages", "items", "chunks", "merges")
SECTIONS = (*PLAN_ARRAYS, "items", "chunks", "partial_begin", "merges")


class Sizes(NamedTuple):
    """The numbers in the header of a packed plan.

    num_pages_needed is 1 + the largest page id, num_partials all partials of the queries together;
    the last six count what the sections hold.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    chunk_tokens: int
    tile_query_heads: int
    num_pages_needed: int
    num_partials: int
    queries: int
    segments: int
    pages: int
    items: int
    chunks: int
    merges: int


def section_words(counts: Sequence[int]) -> list[int]:
    """Words of each section that holds so many of COUNTS, without the padding."""
    queries, segments, pages, items, chunks, merges = counts
    plan = [queries] * 3 + [segments] * 5 + [segments + 1, pages]
    return [*plan, ITEM_WORDS * items, 2 * chunks, queries + 1, merges]


class Span:
    """Consecutive chunks (segment, first token) of a path that the same queries read.

    ordinal_joins: 2 * how many spans of the path come before, + 1 if the span goes on with the
    token group of the one before.
    """

    def __init__(self, begin: int, end: int, ordinal: int, joins: bool) -> None:
        self.begin, self.end, self.ordinal_joins = begin, end, 2 * ordinal + joins
        self.tokens = 0
        self.chunks: list[tuple[int, int]] = []


def pack_plan(
    plan: Any,
    heads: Sequence[int],
    chunk_tokens: int,
    token_group: int,
    tile_query_heads: int,
    enough_items: int,
    room: Sequence[int] | None = None,
) -> np.ndarray:
    """The packed plan.

    Args:
        plan: a plan's arrays.
        heads: num_heads, num_kv_heads, head_dim and page_size.
        chunk_tokens, token_group, tile_query_heads, enough_items: members of WorkItemsOptions.
        room: how many of each of COUNTS there is room for; by default for what there is.

    Raises:
        ValueError: there is more than there is room for.
    """
    group = heads[0] // heads[1]
    capacity = _capacities(plan)
    readers = (plan.query_end - plan.query_begin).tolist()
    work = sum(tokens * -(-n * group // 32) for tokens, n in zip(capacity, readers, strict=True))
    limit = min(token_group, work * heads[1] // max(1, enough_items))
    spans, spans_of_query = _cut(plan, capacity, chunk_tokens, token_group, limit)
    tile = tile_query_heads or min((16, 32), key=lambda tile: _cost(spans, group, tile))
    partials = np.cumsum([0, *(n if n > 1 else 0 for n in spans_of_query)])
    sections = [getattr(plan, name) for name in PLAN_ARRAYS]
    sections += _items(spans, group, tile)
    sections += [partials, [i for i, n in enumerate(spans_of_query) if n != 1]]
    counts = [len(sections[i]) for i in (0, 4, 9, 10, 11, 13)]
    counts[3], counts[4] = counts[3] // ITEM_WORDS, counts[4] // 2
    room = counts if room is None else room
    for name, count, most in zip(COUNTS, counts, room, strict=True):
        if count > most:
            raise ValueError(f"expected at most {most} {name}, the plan's room, got {count}")
    sizes = [*heads, chunk_tokens, tile, plan.num_pages_needed, int(partials[-1]), *counts]
    header = [MAGIC, VERSION, *sizes, *room]
    padded = [np.pad(header, (0, HEADER_WORDS - len(header)))]
    for section, words in zip(sections, section_words(room), strict=True):
        padded.append(np.pad(section, (0, words + -words % 4 - len(section))))
    return np.concatenate(padded).astype(np.int32)


def _items(spans: list[Span], group: int, tile: int) -> list[Any]:
    """The sections items and chunks."""
    begins: dict[Span, int] = {}
    chunks: list[tuple[int, int]] = []
    for span in spans:
        begins[span] = len(chunks)
        chunks += span.chunks
    items: list[int] = []
    for span in sorted(spans, key=lambda span: -(span.tokens // 16)):
        for query_head in range(0, (span.end - span.begin) * group, tile):
            begin = begins[span]
            items += [begin, begin + len(span.chunks), span.begin, span.end]
            items += [query_head, span.ordinal_joins]
    return [items, np.ravel(chunks)]


def _grows(plan: Any, a: int) -> bool:
    return plan.max_new_tokens > 0 and plan.own_end[a] > plan.query_begin[a]


def _capacities(plan: Any) -> list[int]:
    """Tokens of each segment that are, or may come to be, read."""
    lens = plan.segment_lens.tolist()
    for a in range(len(lens)):
        if _grows(plan, a):
            lens[a] += plan.max_new_tokens - int(plan.gained[plan.query_begin[a]])
    return lens


def _cost(spans: list[Span], group: int, tile: int) -> int:
    tiles = (-(-(span.end - span.begin) * group // tile) for span in spans)
    return sum(n * span.tokens * (32 + tile) for n, span in zip(tiles, spans, strict=True))


def _cut(
    plan: Any, capacity: list[int], chunk_tokens: int, token_group: int, limit: int
) -> tuple[list[Span], list[int]]:
    """The spans in order, and how many of them each query has."""
    spans: list[Span] = []
    counts = [0] * len(plan.query_order)
    ends: list[tuple[int, int, Span | None]] = []  # fill, spans, open span at a segment's end
    intervals = list(zip(plan.query_begin, plan.own_end, plan.query_end, strict=True))
    for a, (begin, own_end, end) in enumerate(intervals):
        parent = plan.segment_parents[a]
        fill, number, open_span = ends[parent] if parent >= 0 else (0, 0, None)
        if parent >= 0 and intervals[parent] != (begin, begin, end):
            open_span = None
        reader = int(begin)
        for first in range(0, capacity[a], chunk_tokens):
            while reader < own_end and not _grows(plan, a) and plan.query_lens[reader] <= first:
                counts[reader] = number
                reader += 1
            if fill == 0 or open_span is None or open_span.tokens >= limit:
                span = Span(reader, int(end), number, fill > 0)
                spans.append(span)
                number += 1
                open_span = span if fill == 0 else None
            else:
                span = open_span
            span.chunks.append((a, first))
            size = min(chunk_tokens, capacity[a] - first)
            span.tokens += size
            fill = fill + size if fill + size < token_group else 0
        counts[reader:own_end] = [number] * (int(own_end) - reader)
        ends.append((fill, number, open_span))
    return spans, counts
