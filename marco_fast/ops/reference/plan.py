"""The planner of tree attention in plain Python: the specification of csrc/cpu/attention/plan.cpp.

It serves where the extension was not built, and gives the same arrays and the same errors.
"""

import numpy as np

__all__ = ["PlainTreePlan"]


class PlainTreePlan:
    """The arrays of a TreeAttentionPlan, which documents them; arguments as plan_tree_attention."""

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
        self._check_nodes(parents, segment_lens)
        self._check_leaves(parents, segment_lens, leaves, leaf_lens)
        self._number(parents, leaves, leaf_lens)
        self._measure(segment_lens, leaves, leaf_lens)
        self._collect_pages(block_table, page_size)
        self.gained = np.zeros(len(leaves), np.int32)

    def _check_nodes(self, parents: np.ndarray, lens: np.ndarray) -> None:
        for n, (parent, length) in enumerate(zip(parents, lens, strict=True)):
            if not -1 <= parent < len(parents):
                raise IndexError(f"expected parents[{n}] in -1..{len(parents) - 1}, got {parent}")
            if parent >= n:
                raise ValueError(f"expected parents before children, got parents[{n}] = {parent}")
            if not 0 <= length < 2**31:
                raise ValueError(f"expected segment_lens[{n}] >= 0, got {length}")

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
