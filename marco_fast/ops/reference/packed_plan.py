"""A plan made of arrays, in plain Python: the specification of csrc/cpu/attention/packed_plan.h.

It serves where the extension was not built, and gives the same arrays and the same errors.
"""

from collections.abc import Sequence

import numpy as np

__all__ = ["PLAN_ARRAYS", "PlainPlanArrays"]

# The arrays of a TreeAttentionPlan from which the others follow.
PLAN_ARRAYS = (
    "query_order", "query_segment", "query_lens",
    "segment_parents", "segment_lens", "query_begin", "own_end", "query_end",
    "page_begin", "page_ids",
)  # fmt: skip


class PlainPlanArrays:
    """The arrays of a plan that has no more tokens to gain, checked.

    Args:
        arrays: those of PLAN_ARRAYS, int32, in that order; copied.
        page_size: tokens of a page, at least 1.

    Raises:
        ValueError, IndexError: they are not the arrays of a plan.
    """

    query_order: np.ndarray
    query_segment: np.ndarray
    query_lens: np.ndarray
    segment_parents: np.ndarray
    segment_lens: np.ndarray
    query_begin: np.ndarray
    own_end: np.ndarray
    query_end: np.ndarray
    page_begin: np.ndarray
    page_ids: np.ndarray

    def __init__(self, arrays: Sequence[np.ndarray], page_size: int) -> None:
        for name, array in zip(PLAN_ARRAYS, arrays, strict=True):
            setattr(self, name, array.copy())
        queries, segments = len(self.query_order), len(self.segment_lens)
        sizes = [queries] * 3 + [segments] * 5 + [segments + 1]
        if [len(array) for array in arrays[:-1]] != sizes:
            raise ValueError(
                "expected a plan's arrays: three [Q], five [A], page_begin [A + 1], page_ids"
            )
        for a in range(segments):
            self._check_segment(a, page_size)
        placed: set[int] = set()
        for i in range(queries):
            self._check_query(i, placed)
        self._check_intervals()
        for i, page in enumerate(self.page_ids):
            _check_id("page_ids", i, 0, 2**31 - 2, page)
        self._derive()

    def _check_segment(self, a: int, page_size: int) -> None:
        parent, tokens = int(self.segment_parents[a]), int(self.segment_lens[a])
        _check_id("segment_parents", a, -1, len(self.segment_lens) - 1, parent)
        if parent >= a:
            raise ValueError(
                f"expected parents before children, got segment_parents[{a}] = {parent}"
            )
        if tokens < 0:
            raise ValueError(f"expected segment_lens[{a}] >= 0, got {tokens}")
        first, last = int(self.page_begin[a]), int(self.page_begin[a + 1])
        if not 0 <= first <= last <= len(self.page_ids) or last - first < -(-tokens // page_size):
            raise ValueError(
                f"expected pages for {tokens} tokens from page_begin[{a}] on, got {first} to {last}"
            )
        low = 0 if parent < 0 else self.own_end[parent]
        high = len(self.query_order) if parent < 0 else self.query_end[parent]
        begin, own, end = self.query_begin[a], self.own_end[a], self.query_end[a]
        if not low <= begin <= own <= end <= high:
            raise ValueError(
                f"expected the queries of segment {a} in {low}..{high}, got {begin}, {own}, {end}"
            )

    def _check_query(self, i: int, placed: set[int]) -> None:
        order, segment = int(self.query_order[i]), int(self.query_segment[i])
        _check_id("query_order", i, 0, len(self.query_order) - 1, order)
        if order in placed:
            raise ValueError(f"expected each query once in query_order, got {order} again")
        placed.add(order)
        _check_id("query_segment", i, 0, len(self.segment_lens) - 1, segment)
        if not self.query_begin[segment] <= i < self.own_end[segment]:
            raise ValueError(f"expected query {i} in segment {segment}'s own interval")
        least = 0 if i == self.query_begin[segment] else self.query_lens[i - 1]
        most, length = self.segment_lens[segment], self.query_lens[i]
        if not least <= length <= most:
            raise ValueError(f"expected query_lens[{i}] in {least}..{most}, got {length}")

    def _check_intervals(self) -> None:
        below = np.bincount(self.query_segment, minlength=len(self.segment_lens))
        for a in reversed(range(len(below))):
            held = self.query_end[a] - self.query_begin[a]
            if below[a] != held:
                raise ValueError(f"expected {below[a]} queries at or below segment {a}, got {held}")
            if self.segment_parents[a] >= 0:
                below[self.segment_parents[a]] += below[a]

    def _derive(self) -> None:
        above = np.zeros(len(self.segment_lens), np.int64)
        for a, parent in enumerate(self.segment_parents):
            above[a] = 0 if parent < 0 else above[parent] + self.segment_lens[parent]
            longest = above[a] + self.segment_lens[a]
            if longest >= 2**31:
                raise ValueError(f"expected paths of at most 2^31 - 1 tokens, got {longest}")
        self.segment_ids = np.arange(len(above), dtype=np.int32)
        self.path_lens = (above[self.query_segment] + self.query_lens).astype(np.int32)
        self.num_pages_needed = int(self.page_ids.max(initial=-1)) + 1


def _check_id(name: str, index: int, low: int, high: int, got: int) -> None:
    if not low <= got <= high:
        raise IndexError(f"expected {name}[{index}] in {low}..{high}, got {got}")
