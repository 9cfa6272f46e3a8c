"""The paged KV cache of a forest: every node owns a segment of tokens, and a fork copies nothing.

A segment starts on a fresh page and shares none, so a node's KV is never copied on write.
"""

from operator import index

import numpy as np
import torch

from marco_fast.engine import huge_pages
from marco_fast.engine.node_table import Nodes, NodeTable
from marco_fast.errors import KVCacheFull
from marco_fast.ops.dtypes import FLOATS

__all__ = ["PagedKVCache"]


class PagedKVCache(NodeTable):
    """Pages of keys and values for the segments of a forest's nodes.

    `free_pages + used_pages == num_pages` after every call; a call that raises leaves everything as
    it was. A slot is `page * page_size + offset`. What unowned slots hold is undefined. When a node
    dies (see `release`) its pages return to the pool. Not for several threads at once. Every method
    raises IndexError for a node that does not live.

    Args:
        num_layers: layers of the model, >= 1.
        num_pages: pages of the pool, 1 to 2^31 - 1.
        page_size: tokens of a page, >= 1.
        num_kv_heads: KV heads of a layer, >= 1.
        head_dim: elements of a head, >= 1.
        dtype: float32, bfloat16 or float16.
        device: where k and v live.

    Attributes:
        k, v: one tensor per layer, [num_pages, num_kv_heads, page_size, head_dim].
        page_bytes: bytes of a page in all layers, keys and values together.

    Raises:
        ValueError: a size or the dtype is out of range.
    """

    def __init__(
        self,
        num_layers: int,
        num_pages: int,
        *,
        page_size: int = 16,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__()
        sizes = {"num_layers": num_layers, "num_pages": num_pages, "page_size": page_size}
        sizes |= {"num_kv_heads": num_kv_heads, "head_dim": head_dim}
        for name, size in sizes.items():
            if not 1 <= size < 2**31:
                raise ValueError(f"expected 1 <= {name} < 2^31, got {size}")
        if dtype not in FLOATS:
            raise ValueError(f"expected dtype float32, bfloat16 or float16, got {dtype}")
        self.num_pages, self.page_size = num_pages, page_size
        self.device = torch.device(device)
        shape = (num_pages, num_kv_heads, page_size, head_dim)
        # Not zeros: the system then gives memory to a page only when it is first written.
        self.k = [huge_pages.empty(shape, dtype, self.device) for _ in range(num_layers)]
        self.v = [huge_pages.empty(shape, dtype, self.device) for _ in range(num_layers)]
        self.page_bytes = 2 * num_layers * self.k[0][0].nbytes

        # A stack: the last is taken first, so a fresh pool hands out pages 0, 1, 2, ...
        self._free = np.arange(num_pages - 1, -1, -1, dtype=np.int32)
        self._num_free = num_pages
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

    def slot_mapping(self, node: int) -> torch.Tensor:
        """The slots of the node's own tokens, [length] int64 on the cache's device.

        Raises:
            ValueError: the node is evicted.
        """
        entry = self._resident_entry(node)
        return self._slots(entry, 0, int(self._lengths[entry]))

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
            ValueError: n < 0, or the node is evicted.
        """
        self.reserve_many([node], n)

    def reserve_many(self, nodes: Nodes, n: int) -> None:
        """`reserve(node, n)` for distinct nodes, for all or for none. Raises as `reserve` does."""
        self._reserved_entries(nodes, n)

    def extend(self, node: int, n: int) -> torch.Tensor:
        """Adds n tokens to `node`, taking pages where none are reserved.

        A node with children may be extended; that its descendants then see a longer path is the
        caller's concern.

        Returns:
            slot_mapping [n] int64 of the new tokens, on the cache's device.

        Raises:
            KVCacheFull: too few free pages.
            ValueError: n < 0, or the node is evicted.
        """
        self.reserve(node, n)
        entry = self._entry(node)
        begin = int(self._lengths[entry])
        slots = self._slots(entry, begin, begin + n)
        self._lengths[entry] = begin + n
        return slots

    def slots_ahead(self, nodes: Nodes, n: int) -> torch.Tensor:
        """The slots of the next n tokens of distinct nodes; takes pages where none are reserved.

        No node is extended: `extend_many` does that once the tokens are written.

        Returns:
            [n, len(nodes)] int64 slots, nodes in the order given, on the cache's device.

        Raises:
            KVCacheFull: too few free pages.
            ValueError: n < 0, a node is given twice, or is evicted.
        """
        entries = self._reserved_entries(nodes, n)
        tokens = self._lengths[entries] + np.arange(n)[:, None]
        pages = self._pages[entries, tokens // self.page_size]
        return self._to_device(pages * np.int64(self.page_size) + tokens % self.page_size)

    def extend_many(self, nodes: Nodes, n: int) -> None:
        """Adds n tokens to each of some distinct nodes, to all or to none.

        Their slots are those of `slots_ahead`. Raises as it does.
        """
        self._lengths[self._reserved_entries(nodes, n)] += n

    def truncate(self, node: int, n: int) -> None:
        """Keeps the first n tokens of `node` and frees its pages beyond them, reserved ones too.

        Raises:
            ValueError: n is negative or above the length, or the node has living children.
        """
        entry = self._entry(node)
        if self._children[entry]:
            raise ValueError(f"expected a node without children, got {node}")
        if not 0 <= index(n) <= self._lengths[entry]:
            raise ValueError(f"expected 0 <= n <= {self._lengths[entry]}, got {n}")
        self._lengths[entry] = n
        self._drop_pages(entry, -(-n // self.page_size))

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

    def restore(self, node: int) -> torch.Tensor:
        """Gives an evicted node pages for all its tokens, whose KV the caller then writes again.

        Returns:
            slot_mapping [length] int64, on the cache's device.

        Raises:
            KVCacheFull: too few free pages; the node stays evicted.
            ValueError: the node is not evicted.
        """
        entry = self._entry(node)
        if self._num_held[entry] >= 0:
            raise ValueError(f"expected an evicted node, got {node}")
        self._take_pages(np.array([entry]), 0)
        return self._slots(entry, 0, int(self._lengths[entry]))

    def _reserved_entries(self, nodes: Nodes, n: int) -> np.ndarray:
        """The entries of distinct resident nodes, each with the pages for n more tokens."""
        if index(n) < 0:
            raise ValueError(f"expected n >= 0, got {n}")
        entries = self._distinct_entries(nodes)
        self._check_resident(entries, self._num_held[entries])
        self._take_pages(entries, n)
        return entries

    def _take_pages(self, entries: np.ndarray, n: int) -> None:
        """Gives each of distinct entries the pages for n more tokens than it has, all or none."""
        num_held = np.maximum(self._num_held[entries], 0)
        num_wanted = -(-(self._lengths[entries].astype(np.int64) + n) // self.page_size)
        num_new = np.maximum(num_wanted - num_held, 0)
        needed = int(num_new.sum())
        if needed > self._num_free:
            raise KVCacheFull(needed, self._num_free, self.num_pages)
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

    def _slots(self, entry: int, begin: int, end: int) -> torch.Tensor:
        """The slots of the tokens [begin, end) of an entry."""
        column, offset = np.divmod(np.arange(begin, end), self.page_size)
        return self._to_device(self._pages[entry, column] * np.int64(self.page_size) + offset)

    def _to_device(self, slots: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(slots)
        return tensor if self.device.type == "cpu" else tensor.to(self.device)

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
