"""PagedKVCache: evicted nodes keep their length and place, and come back with pages."""

import pytest

from marco_fast.errors import KVCacheFull
from tests.support.caches import PAGE, seen, small_cache


@pytest.fixture
def cache():
    return small_cache()


def test_evict_and_restore(cache):
    root = cache.add_root()
    child = cache.fork(root)
    cache.extend(root, PAGE + 1)
    cache.extend(child, 2)
    cache.reserve(root, 2 * PAGE)
    cache.evict(root)
    assert (cache.used_pages, cache.length(root)) == (1, PAGE + 1)
    assert not cache.is_resident(root)
    assert cache.is_resident(child)
    assert cache.path(child) == [root, child]
    for call in (
        lambda: cache.reserve(root, 0),
        lambda: cache.reserve_many([child, root], 0),
        lambda: cache.extend(root, 0),
        lambda: cache.extend_many([child, root], 1),
        lambda: cache.slots_ahead([child, root], 0),
        lambda: cache.slot_mapping(root),
        lambda: cache.block_table([child, root]),
        lambda: cache.evict(root),
    ):
        with pytest.raises(ValueError, match="evicted"):
            call()
    assert (cache.used_pages, cache.length(child)) == (1, 2)
    slots = cache.restore(root)
    assert cache.is_resident(root)
    assert slots.tolist() == cache.slot_mapping(root).tolist()
    assert (len(slots), cache.used_pages) == (PAGE + 1, 3)
    with pytest.raises(ValueError, match="expected an evicted node"):
        cache.restore(root)


def test_restore_without_room_leaves_the_node_evicted():
    cache = small_cache(3)
    node, other = cache.add_root(), cache.add_root()
    cache.extend(node, 2 * PAGE)
    cache.evict(node)
    cache.extend(other, 2 * PAGE)
    before = seen(cache, [node, other])
    with pytest.raises(KVCacheFull) as error:
        cache.restore(node)
    assert (error.value.needed, error.value.free) == (2, 1)
    assert seen(cache, [node, other]) == before
    cache.truncate(node, 1)
    assert len(cache.restore(node)) == 1


def test_an_evicted_node_can_be_released_and_its_place_reused(cache):
    node = cache.add_root()
    cache.extend(node, 1)
    cache.evict(node)
    cache.release(node)
    again = cache.add_root()
    assert cache.is_resident(again)
    assert cache.length(again) == 0
    assert cache.free_pages == cache.num_pages
