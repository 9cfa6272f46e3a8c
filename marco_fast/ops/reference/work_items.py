"""The items of tree attention: the specification of csrc/cpu/attention/work_items.h.

It serves where the extension was not built, and gives the same array.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["pack_tree_items"]

HEADER_WORDS = 16
SECTIONS = (
    "items", "chunks", "partial_begin", "merges", "query_order", "query_lens", "own_end",
    "segment_lens", "page_begin", "page_ids",
)  # fmt: skip


class Run:
    """Consecutive chunks (segment, first token) of a path with the same readers."""

    def __init__(self, begin: int, end: int, ordinal: int, joins: bool) -> None:
        self.begin, self.end, self.place = begin, end, 2 * ordinal + joins
        self.tokens = 0
        self.chunks: list[tuple[int, int]] = []


def pack_tree_items(
    plan: Any,
    group: int,
    kv_heads: int,
    chunk_tokens: int,
    group_tokens: int,
    tile_rows: int,
    enough_items: int,
    room: Sequence[int] | None = None,
) -> np.ndarray:
    """One int32 array: 10 section sizes and tile_rows in 16 words, then the sections, each padded
    to a multiple of 4 words, after `room` words each where given. The other arguments are the
    members of TreeItemsOptions.

    Raises:
        ValueError: a section has more words than there is room.
    """
    capacity = _capacities(plan)
    readers = (plan.query_end - plan.query_begin).tolist()
    work = sum(tokens * -(-n * group // 32) for tokens, n in zip(capacity, readers, strict=True))
    limit = min(group_tokens, work * kv_heads // max(1, enough_items))
    runs, counts = _cut(plan, capacity, chunk_tokens, group_tokens, limit)
    tile_rows = tile_rows or min((16, 32), key=lambda tile: _cost(runs, group, tile))
    begins: dict[Run, int] = {}
    chunks: list[tuple[int, int]] = []
    for run in runs:
        begins[run] = len(chunks)
        chunks += run.chunks
    items: list[int] = []
    for run in sorted(runs, key=lambda run: -(run.tokens // 16)):
        for row in range(0, (run.end - run.begin) * group, tile_rows):
            first = begins[run]
            items += [first, first + len(run.chunks), run.begin, run.end, row, run.place]
    partials = np.cumsum([0, *(n if n > 1 else 0 for n in counts)])
    sections = [
        items, np.ravel(chunks), partials, [i for i, n in enumerate(counts) if n != 1],
        plan.query_order, plan.query_lens, plan.own_end, plan.segment_lens, plan.page_begin,
        plan.page_ids,
    ]  # fmt: skip
    header = [*map(len, sections), tile_rows]
    padded = []
    for name, section, size in zip(SECTIONS, sections, room or header, strict=False):
        if len(section) > size:
            raise ValueError(
                f"expected a plan of at most {size} words of {name}, its room, got {len(section)}"
            )
        padded.append(np.pad(section, (0, size + -size % 4 - len(section))))
    padded.insert(0, np.pad(header, (0, HEADER_WORDS - len(header))))
    return np.concatenate(padded).astype(np.int32)


def _grows(plan: Any, a: int) -> bool:
    return plan.max_new_tokens > 0 and plan.own_end[a] > plan.query_begin[a]


def _capacities(plan: Any) -> list[int]:
    """Tokens of each segment that are, or may come to be, read."""
    lens = plan.segment_lens.tolist()
    for a in range(len(lens)):
        if _grows(plan, a):
            lens[a] += plan.max_new_tokens - int(plan.gained[plan.query_begin[a]])
    return lens


def _cost(runs: list[Run], group: int, tile: int) -> int:
    return sum(-(-(run.end - run.begin) * group // tile) * run.tokens * (32 + tile) for run in runs)


def _cut(
    plan: Any, capacity: list[int], chunk_tokens: int, group_tokens: int, limit: int
) -> tuple[list[Run], list[int]]:
    """The runs in order, and how many of them each query has."""
    runs: list[Run] = []
    counts = [0] * len(plan.query_order)
    ends: list[tuple[int, int, Run | None]] = []  # fill, runs and open run at a segment's end
    spans = list(zip(plan.query_begin, plan.own_end, plan.query_end, strict=True))
    for a, (begin, own_end, end) in enumerate(spans):
        parent = plan.segment_parents[a]
        fill, number, open_run = ends[parent] if parent >= 0 else (0, 0, None)
        if parent >= 0 and spans[parent] != (begin, begin, end):
            open_run = None
        reader = int(begin)
        for first in range(0, capacity[a], chunk_tokens):
            while reader < own_end and not _grows(plan, a) and plan.query_lens[reader] <= first:
                counts[reader] = number
                reader += 1
            if fill == 0 or open_run is None or open_run.tokens >= limit:
                run = Run(reader, int(end), number, fill > 0)
                runs.append(run)
                number += 1
                open_run = run if fill == 0 else None
            else:
                run = open_run
            run.chunks.append((a, first))
            size = min(chunk_tokens, capacity[a] - first)
            run.tokens += size
            fill = fill + size if fill + size < group_tokens else 0
        counts[reader:own_end] = [number] * (int(own_end) - reader)
        ends.append((fill, number, open_run))
    return runs, counts
