"""Which nodes of a forest live: ids that are never reused, parents, holds.

The state is flat NumPy arrays with one entry per node, so a check of many nodes is one vector
operation. Entries are reused, ids are not, and so a stale id is always noticed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from marco_fast.ops.numbers import whole_number

__all__ = ["NodeTable", "Nodes"]

Nodes = Sequence[int] | np.ndarray

# id = generation * 2^32 + entry; its entry's generation grows each time its node dies.
GENERATION = 1 << 32
ENTRY_MASK = GENERATION - 1


class NodeTable:
    """Nodes that live while the caller or a living child holds them."""

    def __init__(self) -> None:
        # Per entry: the id that lives there (-1: none; matches none), its parent's id (-1: a root),
        # its living children, and whether the caller holds it.
        self._ids = np.empty(0, np.int64)
        self._parents = np.empty(0, np.int64)
        self._children = np.empty(0, np.int32)
        self._owned = np.empty(0, np.bool_)
        # The next id of every entry where nothing lives; the last is given out first.
        self._spare_ids: list[int] = []

    def add_root(self) -> int:
        """A new empty node without a parent, held by the caller."""
        return self._add(-1)

    def fork(self, node: int) -> int:
        """A new empty child of `node`, held by the caller; it holds its parent. Copies nothing.

        Raises:
            IndexError: `node` does not live.
        """
        node = whole_number("a node", node)
        entry = self._entry(node)
        child = self._add(node)
        self._children[entry] += 1
        return child

    def release(self, node: int) -> None:
        """Drops the caller's hold; the node dies once every descendant is released too.

        A released node with living descendants lives on and can be used like any other.

        Raises:
            ValueError: the node was released before.
            IndexError: no such node was ever made.
        """
        node = whole_number("a node", node)
        entry = node & ENTRY_MASK
        lives = node >= 0 and entry < len(self._ids) and self._ids[entry] == node
        if not lives and not self._was_made(node):
            raise IndexError(f"expected a node of this forest, got {node}")
        if not lives or not self._owned[entry]:
            raise ValueError(f"expected a node that is held, got {node}, which was released before")
        self._owned[entry] = False
        while not self._owned[entry] and self._children[entry] == 0:
            parent = int(self._parents[entry])
            self._spare_ids.append(node + GENERATION)
            self._ids[entry] = -1
            self._bury(entry)
            if parent < 0:
                return
            node, entry = parent, parent & ENTRY_MASK
            self._children[entry] -= 1

    def parent(self, node: int) -> int:
        """The parent of `node`, -1 for a root. Raises IndexError where `node` does not live."""
        return int(self._parents[self._entry(node)])

    def path(self, node: int) -> list[int]:
        """The nodes from the root to `node`, both included. Raises IndexError as `parent` does."""
        path = [whole_number("a node", node)]
        self._entry(path[0])
        while (parent := int(self._parents[path[-1] & ENTRY_MASK])) >= 0:
            path.append(parent)
        return path[::-1]

    def _add(self, parent: int) -> int:
        if not self._spare_ids:
            self._grow(max(16, 2 * len(self._ids)))
        node = self._spare_ids.pop()
        entry = node & ENTRY_MASK
        self._ids[entry] = node
        self._parents[entry] = parent
        self._children[entry] = 0
        self._owned[entry] = True
        return node

    def _grow(self, capacity: int) -> None:
        """Makes room for `capacity` entries; every allocation comes before the first change."""
        size = len(self._ids)
        grown = [
            np.concatenate([old, np.full(capacity - size, -1).astype(old.dtype)])
            for old in (self._ids, self._parents, self._children, self._owned)
        ]
        spare_ids = [*range(capacity - 1, size - 1, -1), *self._spare_ids]
        self._ids, self._parents, self._children, self._owned = grown
        self._spare_ids = spare_ids

    def _bury(self, entry: int) -> None:
        """Called when the node at `entry` has died."""

    def _was_made(self, node: int) -> bool:
        """Whether a node that does not live ever did."""
        entry = node & ENTRY_MASK
        if node < 0 or entry >= len(self._ids):
            return False
        living = int(self._ids[entry])
        if living >= 0:
            return node < living
        return node < next(spare for spare in self._spare_ids if spare & ENTRY_MASK == entry)

    def _entry(self, node: int) -> int:
        """Where `node` lives; IndexError where it does not, ValueError for what is no integer."""
        node = whole_number("a node", node)
        entry = node & ENTRY_MASK
        if entry >= len(self._ids) or self._ids[entry] != node:
            raise IndexError(f"expected a living node, got {node}")
        return entry

    def _entries(self, nodes: Nodes) -> np.ndarray:
        """`_entry` of each of `nodes`, [len(nodes)] int64."""
        given = nodes if isinstance(nodes, np.ndarray) else _array(nodes)
        if given.dtype != np.int64:
            if given.size and given.dtype.kind not in "iu":
                raise ValueError(f"expected integer nodes, got {given.dtype}")
            given = given.astype(np.int64)
        if given.ndim != 1:
            raise ValueError(f"expected nodes of shape [N], got {list(given.shape)}")
        entries = given & ENTRY_MASK
        try:
            living = self._ids[entries] == given
        except IndexError:  # an entry beyond all: rare, so that the check of bounds costs nothing
            beyond = entries >= len(self._ids)
            living = ~beyond & (self._ids[np.where(beyond, 0, entries)] == given)
        if not living.all():
            raise IndexError(f"expected living nodes, got {given[~living].tolist()}") from None
        return entries

    def _distinct_entries(self, nodes: Nodes) -> np.ndarray:
        """`_entries`, and ValueError where a node is given twice."""
        entries = self._entries(nodes)
        if len(set(entries.tolist())) != len(entries):
            raise ValueError(f"expected distinct nodes, got {np.asarray(nodes).tolist()}")
        return entries


def _array(nodes: Any) -> np.ndarray:
    try:
        return np.asarray(nodes)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"expected nodes as integers, got {type(nodes).__name__}") from error
