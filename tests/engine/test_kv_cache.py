"""PagedKVCache: pages, slots, reservation, truncation, and that a failing call changes nothing."""

import sys

import numpy as np
import pytest
import torch

from marco_fast.engine.kv_cache import PagedKVCache
from marco_fast.errors import KVCacheFull
from tests.support.caches import PAGE, num_nodes, seen, small_cache


@pytest.fixture
def cache():
    return small_cache()


def test_layout():
    cache = PagedKVCache(
        3, 5, page_size=8, num_kv_heads=2, head_dim=6, dtype=torch.bfloat16, device="cpu"
    )
    assert len(cache.k) == len(cache.v) == 3
    for tensor in cache.k + cache.v:
        assert tensor.shape == (5, 2, 8, 6)
        assert tensor.dtype == torch.bfloat16
        assert tensor.is_contiguous()
    assert len({tensor.data_ptr() for tensor in cache.k + cache.v}) == 6
    assert cache.page_bytes == 3 * 2 * 2 * 8 * 6 * 2
    assert (cache.num_pages, cache.used_pages, cache.free_pages) == (5, 0, 5)
    assert (cache.page_size, num_nodes(cache)) == (8, 0)


@pytest.mark.parametrize("name", ["num_pages", "page_size", "num_kv_heads", "head_dim"])
@pytest.mark.parametrize("size", [0, -1, 2**31])
def test_sizes_out_of_range(name, size):
    with pytest.raises(ValueError, match=rf"expected 1 <= {name} < 2\^31, got {size}"):
        small_cache(**{name: size})


def test_no_layers_and_wrong_dtype():
    with pytest.raises(ValueError, match="num_layers"):
        PagedKVCache(0, 1, num_kv_heads=1, head_dim=1, dtype=torch.float32, device="cpu")
    with pytest.raises(ValueError, match=r"expected dtype .* got torch\.int8"):
        small_cache(dtype=torch.int8)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_pool_touches_no_memory():
    def resident_bytes():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    before = resident_bytes()
    cache = small_cache(num_pages=2**15, num_kv_heads=8, head_dim=256)
    assert cache.page_bytes * cache.num_pages == 2**31
    assert resident_bytes() - before < 2**26


def test_extend_maps_tokens_to_consecutive_slots_of_its_pages(cache):
    node = cache.add_root()
    first = cache.extend(node, 3)
    second = cache.extend(node, 3)
    assert first.dtype == torch.int64
    assert first.device == cache.k[0].device
    assert cache.length(node) == 6
    pages = cache.block_table([node])[0]
    expected = [int(pages[t // PAGE]) * PAGE + t % PAGE for t in range(6)]
    assert first.tolist() + second.tolist() == expected
    assert cache.slot_mapping(node).tolist() == expected
    assert cache.used_pages == 2


def test_extend_by_zero_takes_nothing(cache):
    node = cache.add_root()
    assert cache.extend(node, 0).shape == (0,)
    assert cache.slot_mapping(node).shape == (0,)
    assert (cache.length(node), cache.used_pages) == (0, 0)
    assert cache.block_table([node]).tolist() == [[-1]]


def test_fork_copies_nothing_and_segments_share_no_page(cache):
    root = cache.add_root()
    cache.extend(root, 1)
    children = [cache.fork(root) for _ in range(3)]
    assert cache.used_pages == 1
    assert cache.lengths(children).tolist() == [0, 0, 0]
    for child in children:
        assert cache.extend(child, 1).item() % PAGE == 0
    assert len(set(cache.block_table([root, *children]).ravel().tolist())) == 4
    assert [cache.parent(n) for n in [root, *children]] == [-1, root, root, root]
    assert cache.path(cache.fork(children[1]))[:2] == [root, children[1]]


def test_block_table_rows_in_the_order_given(cache):
    a, b = cache.add_root(), cache.add_root()
    cache.extend(a, 1)
    cache.extend(b, 2 * PAGE + 1)
    table = cache.block_table([b, a, b])
    assert table.dtype == np.int32
    assert table.shape == (3, 3)
    assert table.flags.c_contiguous
    assert table.tolist() == [[1, 2, 3], [0, -1, -1], [1, 2, 3]]
    assert cache.lengths(np.array([b, a])).tolist() == [2 * PAGE + 1, 1]
    assert cache.lengths([a]).dtype == np.int32
    assert cache.block_table([]).shape[0] == len(cache.lengths([])) == 0


def test_results_are_copies(cache):
    node = cache.add_root()
    cache.extend(node, 2)
    cache.block_table([node])[:] = 99
    cache.lengths([node])[:] = 99
    cache.path(node).clear()
    assert cache.block_table([node]).tolist() == [[0]]
    assert cache.length(node) == 2


def test_reserved_pages_are_used_before_others(cache):
    node, other = cache.add_root(), cache.add_root()
    cache.extend(node, 3)
    cache.reserve(node, PAGE + 2)
    assert (cache.length(node), cache.used_pages) == (3, 3)
    reserved = cache.block_table([node])[0]
    assert (reserved >= 0).all()
    cache.reserve(node, 1)
    assert cache.used_pages == 3
    cache.extend(other, 1)
    cache.extend(node, PAGE + 2)
    assert cache.block_table([node])[0].tolist() == reserved.tolist()
    assert cache.used_pages == 4


def test_extend_many_adds_tokens_to_each_in_the_order_given():
    batched, single = small_cache(64), small_cache(64)
    for cache in (batched, single):
        nodes = [cache.add_root() for _ in range(5)]
        for i, node in enumerate(nodes):
            cache.extend(node, i)
    for n in [1] * PAGE + [0, 3, PAGE, 2 * PAGE + 1]:
        order = nodes[::-1]
        got = batched.slots_ahead(order, n)
        batched.extend_many(order, n)
        assert got.dtype == torch.int64
        single.reserve_many(order, n)
        assert got.T.tolist() == [single.extend(node, n).tolist() for node in order]
    assert seen(batched, nodes) == seen(single, nodes)
    assert batched.slots_ahead([], 2).shape == (2, 0)


def test_slots_ahead_are_those_of_the_next_tokens_and_extend_nothing():
    cache = small_cache(64)
    nodes = [cache.add_root() for _ in range(3)]
    for i, node in enumerate(nodes):
        cache.extend(node, 3 * i)
    ahead = cache.slots_ahead(nodes, 2 * PAGE)
    assert [cache.length(node) for node in nodes] == [0, 3, 6]
    assert cache.slots_ahead(nodes, 2 * PAGE).tolist() == ahead.tolist()
    for begin, n in ((0, 1), (1, PAGE), (1 + PAGE, PAGE - 1)):
        assert cache.slots_ahead(nodes, n).tolist() == ahead[begin : begin + n].tolist()
        cache.extend_many(nodes, n)
    assert [cache.slot_mapping(node)[-2 * PAGE :].tolist() for node in nodes] == ahead.T.tolist()


def test_batched_calls_are_all_or_nothing():
    cache = small_cache(3)
    nodes = [cache.add_root() for _ in range(3)]
    cache.extend(nodes[0], 1)
    cache.extend(nodes[1], PAGE)
    cache.evict(dead := cache.add_root())
    before = seen(cache, nodes)
    with pytest.raises(KVCacheFull) as error:
        cache.extend_many(nodes, 1)
    assert (error.value.needed, error.value.free, error.value.total) == (2, 1, 3)
    with pytest.raises(KVCacheFull, match="expected at least 5 free KV pages, got 1 free of 3"):
        cache.reserve_many(nodes, PAGE + 1)
    for wrong in ([nodes[0], nodes[0]], [nodes[0], dead]):
        with pytest.raises(ValueError, match="expected"):
            cache.extend_many(wrong, 1)
        with pytest.raises(ValueError, match="expected"):
            cache.reserve_many(wrong, 1)
    with pytest.raises(IndexError):
        cache.extend_many([nodes[0], 7], 1)
    with pytest.raises(ValueError, match="expected n >= 0, got -1"):
        cache.extend_many(nodes[:2], -1)
    assert seen(cache, nodes) == before
    assert cache.slots_ahead(nodes[:2], 1).shape == (1, 2)


def test_full_pool_leaves_everything_as_it_was():
    cache = small_cache(2)
    node = cache.add_root()
    cache.extend(node, PAGE + 1)
    before = seen(cache, [node])
    for call in (cache.extend, cache.reserve):
        with pytest.raises(KVCacheFull) as error:
            call(node, 2 * PAGE)
        assert (error.value.needed, error.value.free, error.value.total) == (2, 0, 2)
        assert seen(cache, [node]) == before
    cache.extend(node, PAGE - 1)
    assert cache.free_pages == 0


@pytest.mark.parametrize("length", range(2 * PAGE + 2))
def test_truncate_frees_whole_pages_beyond(length):
    cache = small_cache()
    node = cache.add_root()
    slots = cache.extend(node, 2 * PAGE + 1).tolist()
    cache.reserve(node, 2 * PAGE)
    cache.truncate(node, length)
    assert cache.length(node) == length
    assert cache.used_pages == -(-length // PAGE)
    assert cache.slot_mapping(node).tolist() == slots[:length]
    cache.extend(node, 8 * PAGE - length)
    assert sorted(cache.slot_mapping(node).tolist()) == [*range(8 * PAGE)]


def test_truncate_errors(cache):
    node = cache.add_root()
    cache.extend(node, 3)
    for n in (-1, 4):
        with pytest.raises(ValueError, match=f"expected 0 <= n <= 3, got {n}"):
            cache.truncate(node, n)
    child = cache.fork(node)
    with pytest.raises(ValueError, match="expected a node without children"):
        cache.truncate(node, 1)
    assert cache.length(node) == 3
    cache.release(child)
    cache.truncate(node, 1)
    assert cache.length(node) == 1


@pytest.mark.parametrize("call", ["reserve", "extend"])
def test_wrong_counts(cache, call):
    node = cache.add_root()
    with pytest.raises(ValueError, match="expected n >= 0, got -1"):
        getattr(cache, call)(node, -1)
    with pytest.raises(ValueError, match=r"expected n as an integer, got 1\.5"):
        getattr(cache, call)(node, 1.5)
    assert (cache.length(node), cache.used_pages) == (0, 0)
    with pytest.raises(ValueError, match="shape"):
        cache.lengths(np.zeros((1, 1), np.int64))


@pytest.mark.parametrize("allocator", ["full", "concatenate", "zeros"])
def test_out_of_memory_while_growing_leaves_everything_as_it_was(monkeypatch, allocator):
    cache = small_cache(64)
    nodes = [cache.add_root()]
    while len(nodes) < num_nodes(cache) + len(cache._spare_ids):
        nodes.append(cache.add_root())
    cache.extend(nodes[0], PAGE)
    before = seen(cache, nodes)

    def fail(*_args, **_options):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(np, allocator, fail)
        with pytest.raises(MemoryError):
            cache.fork(nodes[0])
        if allocator == "full":
            with pytest.raises(MemoryError):
                cache.extend(nodes[0], 40 * PAGE)
    assert seen(cache, nodes) == before
    cache.truncate(nodes[0], 0)
    cache.extend(cache.fork(nodes[0]), 40 * PAGE)
    assert cache.used_pages == 40


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_slots_are_on_the_device():
    cache = small_cache(device="cuda")
    node = cache.add_root()
    assert cache.extend(node, 3).device == cache.k[0].device
    ahead = cache.slots_ahead([node], 1)
    assert ahead.device == cache.k[0].device
    assert ahead.tolist() == [[3]]
