"""The lifetime of nodes: holds, ids that are never reused, and the same errors from every call."""

import pytest
import torch

from marco_fast.engine.kv_cache import PagedKVCache
from tests.support.caches import num_nodes


@pytest.fixture
def cache():
    return PagedKVCache(
        1, 8, page_size=4, num_kv_heads=1, head_dim=1, dtype=torch.float32, device="cpu"
    )


def everything(cache, node):
    table = cache.block_table([node]).tolist()
    return table, cache.length(node), cache.path(node), cache.used_pages, num_nodes(cache)


def test_pages_return_when_every_descendant_is_released(cache):
    root = cache.add_root()
    child = cache.fork(root)
    leaf, sibling = cache.fork(child), cache.fork(child)
    for node in (root, child, leaf, sibling):
        cache.extend(node, 1)
    cache.release(root)
    cache.release(child)
    assert (cache.used_pages, num_nodes(cache)) == (4, 4)
    assert cache.path(leaf) == [root, child, leaf]
    cache.release(leaf)
    assert (cache.used_pages, num_nodes(cache)) == (3, 3)
    grandchild = cache.fork(sibling)
    cache.release(sibling)
    assert cache.used_pages == 3
    cache.release(grandchild)
    assert (cache.used_pages, num_nodes(cache)) == (0, 0)


def test_a_deep_chain_is_released_without_recursion(cache):
    nodes = [cache.add_root()]
    for _ in range(5000):
        nodes.append(cache.fork(nodes[-1]))
        cache.release(nodes[-2])
    assert cache.path(nodes[-1]) == nodes
    cache.release(nodes[-1])
    assert num_nodes(cache) == 0


def test_releasing_twice_raises(cache):
    root = cache.add_root()
    child = cache.fork(root)
    cache.extend(root, 1)
    cache.release(root)
    with pytest.raises(ValueError, match="released before"):
        cache.release(root)
    assert cache.used_pages == 1
    cache.release(child)
    for node in (root, child):
        with pytest.raises(ValueError, match="released before"):
            cache.release(node)
    reborn = [cache.add_root() for _ in range(4)]
    for node in (root, child):
        with pytest.raises(ValueError, match="released before"):
            cache.release(node)
    assert num_nodes(cache) == 4
    assert not {root, child} & set(reborn)


CALLS = {
    "fork": lambda cache, node: cache.fork(node),
    "parent": lambda cache, node: cache.parent(node),
    "path": lambda cache, node: cache.path(node),
    "length": lambda cache, node: cache.length(node),
    "lengths": lambda cache, node: cache.lengths([node]),
    "slot_mapping": lambda cache, node: cache.slot_mapping(node),
    "block_table": lambda cache, node: cache.block_table([node]),
    "reserve": lambda cache, node: cache.reserve(node, 0),
    "reserve_many": lambda cache, node: cache.reserve_many([node], 0),
    "extend": lambda cache, node: cache.extend(node, 0),
    "extend_many": lambda cache, node: cache.extend_many([node], 1),
    "slots_ahead": lambda cache, node: cache.slots_ahead([node], 0),
    "truncate": lambda cache, node: cache.truncate(node, 0),
    "is_resident": lambda cache, node: cache.is_resident(node),
    "evict": lambda cache, node: cache.evict(node),
    "restore": lambda cache, node: cache.restore(node),
}


@pytest.mark.parametrize("name", CALLS)
def test_stale_and_unknown_nodes_raise(cache, name):
    stale = cache.add_root()
    cache.release(stale)
    with pytest.raises(IndexError, match="expected"):
        CALLS[name](cache, stale)
    living = cache.add_root()
    cache.extend(living, 1)
    before = everything(cache, living)
    for node in (stale, living + 1, -1, -(2**32), 10**6, living + 2**32, 2**62, -(2**62)):
        assert node != living
        with pytest.raises(IndexError, match="expected"):
            CALLS[name](cache, node)
    with pytest.raises((TypeError, ValueError)):
        CALLS[name](cache, living + 0.5)
    assert everything(cache, living) == before


@pytest.mark.parametrize("node", [1, 16, -1, 2**32, 2**40])
def test_releasing_a_node_never_made_raises(cache, node):
    cache.add_root()
    with pytest.raises(IndexError, match=f"got {node}"):
        cache.release(node)
    assert num_nodes(cache) == 1
