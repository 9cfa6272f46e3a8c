"""The paged KV cache of a forest: every node owns a segment of tokens, and a fork copies nothing.

A segment starts on a fresh page and shares none, so a node's KV is never copied on write.
"""

from math import prod

import numpy as np
import torch

from marco_fast.engine import huge_pages
from marco_fast.engine.node_table import Nodes
from marco_fast.engine.page_table import PageTable, checked_size, checked_tokens
from marco_fast.ops.dtypes import FLOATS
from marco_fast.ops.isolation import isolated
from marco_fast.ops.numbers import described

__all__ = ["PagedKVCache"]


class PagedKVCache(PageTable):
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
        num_pages, page_size: as given.

    Raises:
        ValueError: a size, the dtype or the device is none, or there is not so much memory.
    """

    @isolated
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
        layers, pages = checked_size("num_layers", num_layers), checked_size("num_pages", num_pages)
        heads, dim = checked_size("num_kv_heads", num_kv_heads), checked_size("head_dim", head_dim)
        tokens = checked_size("page_size", page_size)
        shape = (pages, heads, tokens, dim)
        if dtype not in FLOATS:
            raise ValueError(f"expected dtype float32, bfloat16 or float16, got {dtype}")
        try:
            self.device = torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"expected a device of PyTorch, got {described(device)}") from error
        self.page_bytes = 2 * layers * prod(shape[1:]) * dtype.itemsize
        try:
            # Not zeros: the system then gives memory to a page only when it is first written.
            self.k = [huge_pages.empty(shape, dtype, self.device) for _ in range(layers)]
            self.v = [huge_pages.empty(shape, dtype, self.device) for _ in range(layers)]
            super().__init__(pages, tokens)
        except (RuntimeError, MemoryError, OverflowError, TypeError) as error:
            raise ValueError(
                f"expected a KV cache that fits into memory, got {pages} pages of "
                f"{self.page_bytes} bytes, {pages * self.page_bytes} bytes in all"
            ) from error

    def slot_mapping(self, node: int) -> torch.Tensor:
        """The slots of the node's own tokens, [length] int64 on the cache's device.

        Raises:
            ValueError: the node is evicted.
        """
        entry = self._resident_entry(node)
        return self._slots(entry, 0, int(self._lengths[entry]))

    def extend(self, node: int, n: int) -> torch.Tensor:
        """Adds n tokens to `node`, taking pages where none are reserved.

        A node with children may be extended; that its descendants then see a longer path is the
        caller's concern.

        Returns:
            slot_mapping [n] int64 of the new tokens, on the cache's device.

        Raises:
            KVCacheFull: too few free pages.
            ValueError: as `reserve`.
        """
        n = checked_tokens(n)
        self.reserve(node, n)
        entry = self._entry(node)
        begin = int(self._lengths[entry])
        slots = self._slots(entry, begin, begin + n)
        self._lengths[entry] = begin + n
        return slots

    @isolated
    def slots_ahead(self, nodes: Nodes, n: int) -> torch.Tensor:
        """The slots of the next n tokens of distinct nodes; takes pages where none are reserved.

        No node is extended: `extend_many` does that once the tokens are written.

        Returns:
            [n, len(nodes)] int64 slots, nodes in the order given, on the cache's device.

        Raises:
            KVCacheFull: too few free pages.
            ValueError: as `reserve`, or a node is given twice.
        """
        n = checked_tokens(n)
        entries = self._reserved_entries(nodes, n)
        if len(entries) == 0:
            return torch.empty((n, 0), dtype=torch.int64, device=self.device)
        tokens = self._lengths[entries] + np.arange(n)[:, None]
        pages = self._pages[entries, tokens // self.page_size]
        return self._to_device(pages * np.int64(self.page_size) + tokens % self.page_size)

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

    def _slots(self, entry: int, begin: int, end: int) -> torch.Tensor:
        """The slots of the tokens [begin, end) of an entry."""
        column, offset = np.divmod(np.arange(begin, end), self.page_size)
        return self._to_device(self._pages[entry, column] * np.int64(self.page_size) + offset)

    @isolated
    def _to_device(self, slots: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(slots)
        return tensor if self.device.type == "cpu" else tensor.to(self.device)
