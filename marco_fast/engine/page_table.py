"""How many tokens each node of a forest has, and which pages of a pool hold them."""

import numpy as np

from marco_fast.engine.node_table import Nodes, NodeTable
from marco_fast.errors import KVCacheFull
from marco_fast.ops.numbers import described, whole, whole_number

__all__ = ["PageTable", "checked_size", "checked_tokens"]


class PageTable(NodeTable):
    """Nodes with a segment of tokens each, on pages of their own; PagedKVCache documents it.

    Args:
        num_pages: pages of the pool, 1 to 2^31 - 1.
        page_size: tokens of a page, 1 to 2^31 - 1.

    Raises:
        ValueError: a size is out of range.
        MemoryError: there is not so much memory.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        super().__init__()
        self.num_pages = checked_size("num_pages", num_pages)
        self.page_size = checked_size("page_size", page_size)
        # A stack: the last is taken first, so a fresh pool hands out pages 0, 1, 2, ...
        self._free = np.arange(self.num_pages - 1, -1, -1, dtype=np.int32)
        self._num_free = self.num_pages
        # Per entry: its tokens, its pages (-1: evicted), and their ids, padded with -1.
        self._lengths = np.empty(0, np.int32)
        self._num_held = np.empty(0, np.int32)
        self._pages = np.empty((0, 4), np.int32)

    @property
    def free_pages(self) -> int:
        """Pages that no node holds."""
        return self._num_free

    @property
    def used_pages(self) -> int:
        """Pages that nodes hold, reserved ones included."""
        return self.num_pages - self._num_free

    def length(self, node: int) -> int:
        """Tokens of the node's own segment."""
        return int(self._lengths[self._entry(node)])

    def lengths(self, nodes: Nodes) -> np.ndarray:
        """`length` of each node, [len(nodes)] int32."""
        return self._lengths[self._entries(nodes)]

    def block_table(self, nodes: Nodes) -> np.ndarray:
        """The page ids of each node, reserved pages included.

        Returns:
            [len(nodes), max_pages] int32, rows in the order given, unused entries -1; max_pages is
            what the largest of these nodes holds, at least 1.

        Raises:
            ValueError: a node is evicted.
        """
        entries = self._entries(nodes)
        num_held = self._num_held[entries]
        self._check_resident(entries, num_held)
        return self._pages[entries, : num_held.max(initial=1)]

    def reserve(self, node: int, n: int) -> None:
        """Makes sure that `node` has the pages for n more tokens; its length stays.

        Raises:
            KVCacheFull: too few free pages.
            ValueError: n is negative or no integer, the node is evicted, or its segment would
                have 2^31 tokens or more.
        """
        self.reserve_many([node], n)

    def reserve_many(self, nodes: Nodes, n: int) -> None:
        """`reserve(node, n)` for distinct nodes, for all or for none. Raises as `reserve` does."""
        self._reserved_entries(nodes, n)

    def extend_many(self, nodes: Nodes, n: int) -> None:
        """Adds n tokens to each of some distinct nodes, to all or to none.

        Their slots are those of `slots_ahead`. Raises as it does.
        """
        entries = self._reserved_entries(nodes, n)
        if len(entries):  # of none, any count
            self._lengths[entries] += checked_tokens(n)

    def truncate(self, node: int, n: int) -> None:
        """Keeps the first n tokens of `node` and frees its pages beyond them, reserved ones too.

        Raises:
            ValueError: n is negative or above the length, or the node has living children.
        """
        entry = self._entry(node)
        if self._children[entry]:
            raise ValueError(f"expected a node without children, got {node}")
        kept = whole(n)
        if kept is None or not 0 <= kept <= self._lengths[entry]:
            raise ValueError(f"expected 0 <= n <= {self._lengths[entry]}, got {described(n)}")
        self._lengths[entry] = kept
        self._drop_pages(entry, -(-kept // self.page_size))

    def is_resident(self, node: int) -> bool:
        """Whether the node is not evicted."""
        return bool(self._num_held[self._entry(node)] >= 0)

    def evict(self, node: int) -> None:
        """Gives back the pages of `node`; its length and its entry in the forest stay.

        Raises:
            ValueError: the node is evicted already.
        """
        entry = self._resident_entry(node)
        self._drop_pages(entry, 0)
        self._num_held[entry] = -1

    def _reserved_entries(self, nodes: Nodes, n: int) -> np.ndarray:
        """The entries of distinct resident nodes, each with the pages for n more tokens."""
        n = checked_tokens(n)
        entries = self._distinct_entries(nodes)
        self._check_resident(entries, self._num_held[entries])
        self._take_pages(entries, n)
        return entries

    def _take_pages(self, entries: np.ndarray, n: int) -> None:
        """Gives each of distinct entries the pages for n more tokens than it has, all or none."""
        num_held = np.maximum(self._num_held[entries], 0)
        if n > self.num_pages * self.page_size and len(entries):  # int64 would not hold the sums
            lengths = self._lengths[entries].tolist()
            wanted = sum(-(-(length + n) // self.page_size) for length in lengths)
            raise KVCacheFull(wanted - int(num_held.sum()), self._num_free, self.num_pages)
        tokens = self._lengths[entries].astype(np.int64) + n
        num_wanted = -(-tokens // self.page_size)
        num_new = np.maximum(num_wanted - num_held, 0)
        needed = int(num_new.sum())
        if needed > self._num_free:
            raise KVCacheFull(needed, self._num_free, self.num_pages)
        if (longest := int(tokens.max(initial=0))) >= 2**31:
            raise ValueError(f"expected segments of less than 2^31 tokens, got {longest}")
        self._widen(int(num_wanted.max(initial=0)))
        end = self._num_free
        for i in num_new.nonzero()[0].tolist():
            first, count = int(num_held[i]), int(num_new[i])
            self._pages[entries[i], first : first + count] = self._free[end - count : end][::-1]
            end -= count
        self._num_held[entries] = num_held + num_new
        self._num_free = end

    def _drop_pages(self, entry: int, keep: int) -> None:
        """Frees the pages of an entry but its first `keep`."""
        held = int(self._num_held[entry])
        if held <= keep:  # an evicted node holds -1
            return
        end = self._num_free + held - keep
        self._free[self._num_free : end] = self._pages[entry, keep:held][::-1]
        self._pages[entry, keep:held] = -1
        self._num_held[entry] = keep
        self._num_free = end

    def _resident_entry(self, node: int) -> int:
        entry = self._entry(node)
        self._check_resident(np.array([entry]), self._num_held[[entry]])
        return entry

    def _check_resident(self, entries: np.ndarray, num_held: np.ndarray) -> None:
        if (num_held < 0).any():
            evicted = self._ids[entries[num_held < 0]]
            raise ValueError(f"expected resident nodes, got {evicted.tolist()}, which are evicted")

    def _widen(self, width: int) -> None:
        """Makes room for `width` pages in a row of the block table."""
        if width > self._pages.shape[1]:
            capacity, old = self._pages.shape
            pages = np.full((capacity, max(width, 2 * old)), -1, np.int32)
            pages[:, :old] = self._pages
            self._pages = pages

    def _grow(self, capacity: int) -> None:
        size, width = self._pages.shape
        pages = np.full((capacity, width), -1, np.int32)
        pages[:size] = self._pages
        new = np.zeros(capacity - size, np.int32)
        lengths = np.concatenate([self._lengths, new])
        num_held = np.concatenate([self._num_held, new])
        super()._grow(capacity)
        self._pages, self._lengths, self._num_held = pages, lengths, num_held

    def _bury(self, entry: int) -> None:
        self._drop_pages(entry, 0)
        self._lengths[entry] = 0
        self._num_held[entry] = 0


def checked_size(name: str, value: int) -> int:
    """The size as an int; ValueError unless it is in 1..2^31 - 1."""
    size = whole(value)
    if size is None or not 1 <= size < 2**31:
        raise ValueError(f"expected 1 <= {name} < 2^31, got {described(value)}")
    return size


def checked_tokens(n: int) -> int:
    """How many tokens a caller asks for."""
    tokens = whole_number("n", n)
    if tokens < 0:
        raise ValueError(f"expected n >= 0, got {tokens}")
    if tokens >= 2**63:
        raise ValueError(f"expected n < 2^63, got {tokens}")
    return tokens
