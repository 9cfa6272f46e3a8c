"""PagedKVCache: random histories of every call against a dictionary of nodes."""

import dataclasses

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from marco_fast.engine.kv_cache import PagedKVCache
from marco_fast.errors import KVCacheFull
from tests.support.caches import num_nodes

PAGE = 4


@dataclasses.dataclass
class Segment:
    """What a node should be: its tokens as the distinct values written for them, its pages."""

    parent: int
    values: list
    num_held: int = 0
    owned: bool = True
    evicted: bool = False


class CacheAgainstModel(RuleBasedStateMachine):
    """A cache with too few pages for its nodes, and a dictionary that says what it must hold.

    Each rule foretells the outcome, error and all, from the dictionary; after each one the whole
    state is compared, and every slot that no token owns is overwritten with NaN.
    """

    num_pages = 10

    def __init__(self):
        super().__init__()
        self.cache = PagedKVCache(
            1,
            self.num_pages,
            page_size=PAGE,
            num_kv_heads=1,
            head_dim=1,
            dtype=torch.float32,
            device="cpu",
        )
        self.memory = [t.view(-1).numpy() for t in (self.cache.k[0], self.cache.v[0])]
        self.nodes = {}
        self.dead = []
        self.written = 0

    pick = st.integers(0, 999)
    picks = st.lists(pick, max_size=4)
    count = st.integers(0, 3 * PAGE)

    def node(self, pick):
        """A living node mostly, else one that has died or never was."""
        if pick % 10 == 9 or not self.nodes:
            return self.dead[pick % len(self.dead)] if self.dead else 10**9
        return [*self.nodes][pick % len(self.nodes)]

    def children(self, node):
        return [n for n, segment in self.nodes.items() if segment.parent == node]

    def free(self):
        return self.num_pages - sum(segment.num_held for segment in self.nodes.values())

    def pages_needed(self, nodes, n):
        """Pages that each of `nodes` lacks for n more tokens."""
        wanted = [-(-(len(self.nodes[node].values) + n) // PAGE) for node in nodes]
        return [max(0, w - self.nodes[x].num_held) for w, x in zip(wanted, nodes, strict=True)]

    def foretell(self, nodes, n):
        """The error that holding n more tokens for `nodes` must raise, or None."""
        if any(node not in self.nodes for node in nodes):
            return IndexError
        if len(set(nodes)) < len(nodes) or any(self.nodes[node].evicted for node in nodes):
            return ValueError
        return KVCacheFull if sum(self.pages_needed(nodes, n)) > self.free() else None

    def run(self, error, call, *args):
        """The call's result where `error` is None, else None after the error was seen."""
        if error is None:
            return call(*args)
        with pytest.raises(error) as caught:
            call(*args)
        assert caught.type is error
        if error is KVCacheFull:
            assert caught.value.free == self.free() < caught.value.needed
            assert caught.value.total == self.num_pages
        return None

    def hold(self, nodes, n):
        for node, pages in zip(nodes, self.pages_needed(nodes, n), strict=True):
            self.nodes[node].num_held += pages

    def write(self, node, slots, begin):
        """Gives the tokens from `begin` on distinct values and writes them through their slots."""
        values = [*range(self.written, self.written + len(slots))]
        self.written += len(slots)
        self.nodes[node].values[begin:] = values
        self.memory[0][slots] = values
        self.memory[1][slots] = np.negative(values)

    @precondition(lambda self: len(self.nodes) < 12)
    @rule()
    def add_root(self):
        self.born(self.cache.add_root(), -1)

    @precondition(lambda self: len(self.nodes) < 12)
    @rule(pick=pick)
    def fork(self, pick):
        parent = self.node(pick)
        child = self.run(None if parent in self.nodes else IndexError, self.cache.fork, parent)
        if child is not None:
            self.born(child, parent)

    def born(self, node, parent):
        assert node not in self.nodes
        assert node not in self.dead
        self.nodes[node] = Segment(parent, [])

    @rule(pick=pick)
    def release(self, pick):
        node = self.node(pick)
        known = node in self.nodes or node in self.dead
        error = None if node in self.nodes and self.nodes[node].owned else ValueError
        self.run(error if known else IndexError, self.cache.release, node)
        if error is None:
            self.nodes[node].owned = False
        while node in self.nodes and not self.nodes[node].owned and not self.children(node):
            self.dead.append(node)
            node = self.nodes.pop(node).parent

    @rule(pick=pick, n=count)
    def reserve(self, pick, n):
        node = self.node(pick)
        error = self.foretell([node], n)
        self.run(error, self.cache.reserve, node, n)
        if error is None:
            self.hold([node], n)

    @rule(pick=pick)
    def reserve_all_that_is_left(self, pick):
        node = self.node(pick)
        if node in self.nodes and not self.nodes[node].evicted:
            held = self.nodes[node].num_held
            n = (held + self.free()) * PAGE - len(self.nodes[node].values)
            self.cache.reserve(node, n)
            self.hold([node], n)
            assert self.cache.free_pages == 0

    @rule(picks=picks, n=count)
    def reserve_many(self, picks, n):
        nodes = [self.node(pick) for pick in picks]
        error = self.foretell(nodes, n)
        self.run(error, self.cache.reserve_many, nodes, n)
        if error is None:
            self.hold(nodes, n)

    @rule(pick=pick, n=count)
    def extend(self, pick, n):
        node = self.node(pick)
        error = self.foretell([node], n)
        slots = self.run(error, self.cache.extend, node, n)
        if error is None:
            self.hold([node], n)
            self.write(node, slots.numpy(), len(self.nodes[node].values))

    @rule(picks=picks, n=count, as_array=st.booleans())
    def extend_many(self, picks, n, as_array):
        nodes = [self.node(pick) for pick in picks]
        error = self.foretell(nodes, n)
        given = np.array(nodes) if as_array else nodes
        slots = self.run(error, self.cache.slots_ahead, given, n)
        self.run(error, self.cache.extend_many, given, n)
        if error is None:
            self.hold(nodes, n)
            for node, each in zip(nodes, slots.numpy().T, strict=True):
                self.write(node, each, len(self.nodes[node].values))

    @rule(pick=pick, n=count)
    def truncate(self, pick, n):
        node = self.node(pick)
        error = None if node in self.nodes else IndexError
        if error is None and (self.children(node) or n > len(self.nodes[node].values)):
            error = ValueError
        self.run(error, self.cache.truncate, node, n)
        if error is None:
            segment = self.nodes[node]
            del segment.values[n:]
            segment.num_held = min(segment.num_held, -(-n // PAGE))

    @rule(pick=pick)
    def evict(self, pick):
        node = self.node(pick)
        error = None if node in self.nodes else IndexError
        if error is None and self.nodes[node].evicted:
            error = ValueError
        self.run(error, self.cache.evict, node)
        if error is None:
            self.nodes[node].evicted, self.nodes[node].num_held = True, 0

    @rule(pick=pick)
    def restore(self, pick):
        node = self.node(pick)
        error = None if node in self.nodes else IndexError
        if error is None and not self.nodes[node].evicted:
            error = ValueError
        if error is None and sum(self.pages_needed([node], 0)) > self.free():
            error = KVCacheFull
        slots = self.run(error, self.cache.restore, node)
        if error is None:
            self.nodes[node].evicted = False
            self.hold([node], 0)
            self.write(node, slots.numpy(), 0)

    @invariant()
    def the_pool_is_whole(self):
        assert self.cache.free_pages == self.free()
        assert self.cache.free_pages + self.cache.used_pages == self.num_pages
        assert num_nodes(self.cache) == len(self.nodes)
        resident = [node for node, segment in self.nodes.items() if not segment.evicted]
        table = self.cache.block_table(resident)
        held = np.array([self.nodes[node].num_held for node in resident], np.int64)
        assert ((table >= 0) == (np.arange(table.shape[1]) < held[:, None])).all()
        pages = table[table >= 0].tolist()
        assert len(set(pages)) == len(pages) == self.cache.used_pages
        assert all(page < self.num_pages for page in pages)

    @invariant()
    def nodes_are_as_foretold(self):
        cache = self.cache
        lengths = [len(segment.values) for segment in self.nodes.values()]
        assert cache.lengths([*self.nodes]).tolist() == lengths
        for node, segment in self.nodes.items():
            assert cache.parent(node) == segment.parent
            above = [] if segment.parent < 0 else cache.path(segment.parent)
            assert cache.path(node) == [*above, node]
            assert cache.is_resident(node) is not segment.evicted
        for node in self.dead[-3:]:
            with pytest.raises(IndexError):
                cache.length(node)

    @invariant()
    def contents_survive(self):
        owned = np.zeros(self.num_pages * PAGE, np.bool_)
        for node, segment in self.nodes.items():
            if not segment.evicted:
                slots = self.cache.slot_mapping(node).numpy()
                assert self.memory[0][slots].tolist() == segment.values
                assert (self.memory[1][slots] == -self.memory[0][slots]).all()
                owned[slots] = True
        for memory in self.memory:
            memory[~owned] = np.nan

    def teardown(self):
        for node in [node for node, segment in self.nodes.items() if segment.owned]:
            self.cache.release(node)
        assert (self.cache.free_pages, num_nodes(self.cache)) == (self.num_pages, 0)


TestCacheAgainstModel = CacheAgainstModel.TestCase
# A tenfold share: an example is one history, and each step of it is checked.
TestCacheAgainstModel.settings = settings(
    max_examples=6 * settings.default.max_examples, stateful_step_count=60, deadline=None
)
