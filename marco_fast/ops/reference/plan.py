"""The planner of tree attention in Python: the specification of csrc/cpu/attention/plan.cpp.

It serves where the extension was not built, and gives the same arrays and the same errors.
`plan_of_arrays` does so for the check of arrays in csrc/cpu/attention/packed_plan.h.
"""

from collections.abc import Sequence

import numpy as np

__all__ = ["PLAN_ARRAYS", "ReferencePlan", "plan_of_arrays"]

# The arrays of a TreeAttentionPlan from which the others follow.
PLAN_ARRAYS = (
    "query_order", "query_segment", "query_lens", "segment_parents", "segment_lens", "query_begin",
    "own_end", "query_end", "page_begin", "page_ids",
)  # fmt: skip


class ReferencePlan:
    """The arrays of a TreeAttentionPlan, which documents them; arguments as plan_tree_attention."""

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

    def __init__(
        self,
        parents: np.ndarray,
        segment_lens: np.ndarray,
        block_table: np.ndarray,
        leaves: np.ndarray,
        leaf_lens: np.ndarray | None,
        page_size: int,
        max_new_tokens: int,
    ) -> None:
        sizes = {len(parents), len(segment_lens), len(block_table)}
        if len(sizes) > 1 or (leaf_lens is not None and len(leaf_lens) != len(leaves)):
            raise ValueError("expected segment_lens [N], leaf_lens [Q], block_table [N, max_pages]")
        self.max_new_tokens = max_new_tokens
        self._check_segments(parents, segment_lens)
        self._check_leaves(parents, segment_lens, leaves, leaf_lens)
        self._number(parents, leaves, leaf_lens)
        self._measure(segment_lens, leaves, leaf_lens)
        self._collect_pages(block_table, page_size)
        self.gained = np.zeros(len(leaves), np.int32)

    def _check_segments(self, parents: np.ndarray, lens: np.ndarray) -> None:
        for n, (parent, length) in enumerate(zip(parents, lens, strict=True)):
            if not -1 <= parent < len(parents):
                raise IndexError(f"expected parents[{n}] in -1..{len(parents) - 1}, got {parent}")
            if parent >= n:
                raise ValueError(f"expected parents before children, got parents[{n}] = {parent}")
            if not 0 <= length < 2**31:
                raise ValueError(f"expected segment_lens[{n}] >= 0 and below 2^31, got {length}")

    def _check_leaves(
        self, parents: np.ndarray, lens: np.ndarray, leaves: np.ndarray, seen: np.ndarray | None
    ) -> None:
        for i, leaf in enumerate(leaves):
            if not 0 <= leaf < len(parents):
                raise IndexError(f"expected leaves[{i}] in 0..{len(parents) - 1}, got {leaf}")
            if seen is not None and not 0 <= seen[i] <= lens[leaf]:
                raise ValueError(f"expected leaf_lens[{i}] in 0..{lens[leaf]}, got {seen[i]}")
        if not self.max_new_tokens:
            return
        if seen is not None:
            raise ValueError("expected no leaf_lens with max_new_tokens > 0, got both")
        if len(set(leaves.tolist())) != len(leaves):
            raise ValueError("expected distinct leaves with max_new_tokens > 0")
        if set(leaves.tolist()) & set(parents.tolist()):
            raise ValueError("expected leaves without children with max_new_tokens > 0")

    def _number(self, parents: np.ndarray, leaves: np.ndarray, seen: np.ndarray | None) -> None:
        children: list[list[int]] = [[] for _ in parents]
        for n, parent in enumerate(parents):
            if parent >= 0:
                children[parent].append(n)
        own: list[list[int]] = [[] for _ in parents]
        for i, leaf in enumerate(leaves):
            own[leaf].append(i)
        order: list[int] = []
        spans: dict[int, tuple[int, int, int]] = {}
        stack = [(n, False) for n in reversed(range(len(parents))) if parents[n] < 0]
        begins: dict[int, tuple[int, int]] = {}
        while stack:
            n, leaving = stack.pop()
            if leaving:
                if len(order) > begins[n][0]:
                    spans[n] = (*begins[n], len(order))
                continue
            begin = len(order)
            order += own[n] if seen is None else sorted(own[n], key=lambda i: seen[i])
            begins[n] = (begin, len(order))
            stack.append((n, True))
            stack.extend((child, False) for child in reversed(children[n]))
        ids = sorted(spans)
        position = {n: a for a, n in enumerate(ids)}
        self.query_order = np.array(order, np.int32)
        self.query_segment = np.array([position[int(leaves[i])] for i in order], np.int32)
        self.segment_ids = np.array(ids, np.int32)
        self.segment_parents = np.array([position.get(int(parents[n]), -1) for n in ids], np.int32)
        table = np.array([spans[n] for n in ids], np.int32).reshape(-1, 3)
        self.query_begin, self.own_end, self.query_end = (table[:, i].copy() for i in range(3))

    def _measure(self, lens: np.ndarray, leaves: np.ndarray, seen: np.ndarray | None) -> None:
        order = self.query_order
        visible = lens[leaves[order]] if seen is None else seen[order]
        self.query_lens = visible.astype(np.int32)
        whole = lens[self.segment_ids]
        above = np.zeros(len(self.segment_ids), np.int64)
        read = np.zeros(len(self.segment_ids), np.int32)
        for a, parent in enumerate(self.segment_parents):
            above[a] = 0 if parent < 0 else above[parent] + whole[parent]
            deeper = self.query_end[a] > self.own_end[a]
            read[a] = whole[a] if deeper else self.query_lens[self.own_end[a] - 1]
        self.segment_lens = read
        longest = (above + whole).max(initial=0) + self.max_new_tokens
        if longest >= 2**31:
            raise ValueError(f"expected paths of at most 2^31 - 1 tokens, got {longest}")
        self.path_lens = (above[self.query_segment] + self.query_lens).astype(np.int32)

    def _collect_pages(self, table: np.ndarray, page_size: int) -> None:
        begin, ids = [0], []
        for a, n in enumerate(self.segment_ids):
            grows = self.own_end[a] > self.query_begin[a]
            capacity = int(self.segment_lens[a]) + (self.max_new_tokens if grows else 0)
            count = -(-capacity // page_size)
            if count > table.shape[1]:
                raise ValueError(
                    f"expected block_table with at least {count} pages for node {n}, "
                    f"got {table.shape[1]}"
                )
            if count and not 0 <= table[n, :count].min() <= table[n, :count].max() < 2**31 - 1:
                raise IndexError(
                    f"expected page ids >= 0 in block_table[{n}], got {table[n, :count].min()}"
                )
            ids += table[n, :count].tolist()
            begin.append(len(ids))
        self.page_begin, self.page_ids = np.array(begin, np.int32), np.array(ids, np.int32)
        self.num_pages_needed = max(ids, default=-1) + 1

    def advance(self, active: np.ndarray | None) -> None:
        """Adds one token to the leaf of every (active) query; active is in the caller's order."""
        grow = np.ones(len(self.query_order), bool) if active is None else active[self.query_order]
        full = grow & (self.gained >= self.max_new_tokens)
        if full.any():
            raise ValueError(
                f"expected at most max_new_tokens = {self.max_new_tokens} new tokens, "
                f"query {self.query_order[full][0]} has them all"
            )
        self.gained += grow
        self.query_lens += grow
        self.path_lens += grow
        self.segment_lens[self.query_segment[grow]] += 1


def plan_of_arrays(arrays: Sequence[np.ndarray], page_size: int) -> ReferencePlan:
    """The plan that these arrays make; its leaves gain no tokens.

    The arrays may come from anywhere: whatever is not a plan is an error, so that no kernel reads
    what is not there.

    Args:
        arrays: those of PLAN_ARRAYS, int32, in that order; copied.
        page_size: tokens of a page, at least 1.

    Raises:
        ValueError, IndexError: they are not the arrays of a plan.
    """
    plan = ReferencePlan.__new__(ReferencePlan)
    for name, array in zip(PLAN_ARRAYS, arrays, strict=True):
        setattr(plan, name, array.copy())
    queries, segments = len(plan.query_order), len(plan.segment_lens)
    sizes = [queries] * 3 + [segments] * 5 + [segments + 1]
    if [len(array) for array in arrays[:-1]] != sizes:
        raise ValueError(
            "expected a plan's arrays: three [Q], five [A], page_begin [A + 1], page_ids"
        )
    for a in range(segments):
        _check_segment(plan, a, page_size)
    seen: set[int] = set()
    for i in range(queries):
        _check_query(plan, i, seen)
    _check_intervals(plan)
    for i, page in enumerate(plan.page_ids):
        _check_id("page_ids", i, 0, 2**31 - 2, page)
    _derive(plan)
    return plan


def _check_segment(plan: ReferencePlan, a: int, page_size: int) -> None:
    parent, tokens = int(plan.segment_parents[a]), int(plan.segment_lens[a])
    _check_id("segment_parents", a, -1, len(plan.segment_lens) - 1, parent)
    if parent >= a:
        raise ValueError(f"expected parents before children, got segment_parents[{a}] = {parent}")
    if tokens < 0:
        raise ValueError(f"expected segment_lens[{a}] >= 0, got {tokens}")
    first, last = int(plan.page_begin[a]), int(plan.page_begin[a + 1])
    if not 0 <= first <= last <= len(plan.page_ids) or last - first < -(-tokens // page_size):
        raise ValueError(
            f"expected pages for {tokens} tokens from page_begin[{a}] on, got {first} to {last}"
        )
    low = 0 if parent < 0 else plan.own_end[parent]
    high = len(plan.query_order) if parent < 0 else plan.query_end[parent]
    begin, own, end = plan.query_begin[a], plan.own_end[a], plan.query_end[a]
    if not low <= begin <= own <= end <= high:
        raise ValueError(
            f"expected the queries of segment {a} in {low}..{high}, got {begin}, {own}, {end}"
        )


def _check_query(plan: ReferencePlan, i: int, seen: set[int]) -> None:
    order, segment = int(plan.query_order[i]), int(plan.query_segment[i])
    _check_id("query_order", i, 0, len(plan.query_order) - 1, order)
    if order in seen:
        raise ValueError(f"expected each query once in query_order, got {order} again")
    seen.add(order)
    _check_id("query_segment", i, 0, len(plan.segment_lens) - 1, segment)
    if not plan.query_begin[segment] <= i < plan.own_end[segment]:
        raise ValueError(f"expected query {i} in segment {segment}'s own interval")
    least = 0 if i == plan.query_begin[segment] else plan.query_lens[i - 1]
    most, length = plan.segment_lens[segment], plan.query_lens[i]
    if not least <= length <= most:
        raise ValueError(f"expected query_lens[{i}] in {least}..{most}, got {length}")


def _check_intervals(plan: ReferencePlan) -> None:
    below = np.bincount(plan.query_segment, minlength=len(plan.segment_lens))
    for a in reversed(range(len(below))):
        held = plan.query_end[a] - plan.query_begin[a]
        if below[a] != held:
            raise ValueError(f"expected {below[a]} queries at or below segment {a}, got {held}")
        if plan.segment_parents[a] >= 0:
            below[plan.segment_parents[a]] += below[a]


def _derive(plan: ReferencePlan) -> None:
    """Fills in the arrays that follow from the others."""
    above = np.zeros(len(plan.segment_lens), np.int64)
    for a, parent in enumerate(plan.segment_parents):
        above[a] = 0 if parent < 0 else above[parent] + plan.segment_lens[parent]
        longest = above[a] + plan.segment_lens[a]
        if longest >= 2**31:
            raise ValueError(f"expected paths of at most 2^31 - 1 tokens, got {longest}")
    plan.segment_ids = np.arange(len(above), dtype=np.int32)
    plan.path_lens = (above[plan.query_segment] + plan.query_lens).astype(np.int32)
    plan.num_pages_needed = int(plan.page_ids.max(initial=-1)) + 1
    plan.max_new_tokens = 0
    plan.gained = np.zeros(len(plan.query_order), np.int32)


def _check_id(name: str, index: int, low: int, high: int, got: int) -> None:
    if not low <= got <= high:
        raise IndexError(f"expected {name}[{index}] in {low}..{high}, got {got}")
