"""The cache at the border of integers and of types: KVCacheFull or a ValueError, and no change."""

import numpy as np
import pytest
import torch

from marco_fast.errors import KVCacheFull
from tests.support.caches import PAGE, num_nodes, seen, small_cache

COUNTS = ["reserve", "extend", "slots_ahead", "reserve_many", "extend_many"]


def ask(cache, call, node, n):
    nodes = [node] if call in ("slots_ahead", "reserve_many", "extend_many") else node
    return getattr(cache, call)(nodes, n)


@pytest.mark.parametrize("n", [8 * PAGE + 1, 2**31, 2**32, 2**62, 2**63 - 1])
@pytest.mark.parametrize("call", COUNTS)
def test_more_tokens_than_there_are_slots(call, n):
    cache = small_cache(8)
    node, other = cache.add_root(), cache.add_root()
    cache.extend(node, 3)
    cache.extend(other, 2 * PAGE)
    before = seen(cache, [node, other])
    needed = -(-(3 + n) // PAGE) - 1
    text = f"expected at least {needed} free KV pages, got 5 free of 8"
    with pytest.raises(KVCacheFull, match=text):
        ask(cache, call, node, n)
    assert seen(cache, [node, other]) == before


@pytest.mark.parametrize(
    "n",
    [
        2**63,
        2**64,
        10**400,
        -1,
        -(2**70),
        float("nan"),
        1.0,
        "1",
        None,
        True,
        [1],
        np.array([1]),
        torch.tensor(True),
        torch.tensor(1.5),
    ],
    ids=lambda n: repr(n)[:20],
)
@pytest.mark.parametrize("call", [*COUNTS, "truncate"])
def test_what_is_no_count(call, n):
    cache = small_cache(8)
    node = cache.add_root()
    cache.extend(node, 3)
    before = seen(cache, [node])
    with pytest.raises(ValueError, match=r"^expected (n|0 <= n)"):
        ask(cache, call, node, n)
    assert seen(cache, [node]) == before


@pytest.mark.parametrize("number", [np.int64, np.uint8, np.array, torch.tensor])
def test_what_counts_as_a_count(number):
    cache = small_cache(num_pages=number(8), page_size=number(PAGE))
    node = cache.add_root()
    assert cache.extend(node, number(3)).tolist() == [0, 1, 2]
    assert cache.slots_ahead([node], number(2)).tolist() == [[3], [4]]
    cache.extend_many([node], number(2))
    cache.truncate(node, number(1))
    assert cache.length(number(node)) == 1
    assert (cache.num_pages, cache.free_pages) == (8, 7)


@pytest.mark.parametrize("n", [0, 5, 2**40])
def test_of_no_node_any_count(n):
    cache = small_cache(8)
    assert cache.slots_ahead([], n).shape == (n, 0)
    cache.extend_many([], n)
    assert cache.free_pages == 8


def test_a_segment_has_less_than_2_31_tokens():
    cache = small_cache(5, page_size=2**29, dtype=torch.bfloat16)  # 10 GiB that nobody touches
    node = cache.add_root()
    cache.extend_many([node], 2**31 - 1)
    assert cache.length(node) == cache.lengths([node])[0] == 2**31 - 1
    before = (cache.length(node), cache.free_pages)
    for call in ("reserve", "extend_many"):
        with pytest.raises(ValueError, match=r"segments of less than 2\^31 tokens, got 2147483648"):
            ask(cache, call, node, 1)
    assert (cache.length(node), cache.free_pages) == before
    cache.truncate(node, 2**30)
    assert cache.slots_ahead([node], 1).tolist() == [[2**30]]


@pytest.mark.parametrize("name", ["num_pages", "page_size", "num_kv_heads", "head_dim"])
@pytest.mark.parametrize("size", [8.0, True, "8", None, float("nan"), 2**63, 10**400], ids=str)
def test_what_is_no_size(name, size):
    with pytest.raises(ValueError, match=rf"^expected 1 <= {name} < 2\^31, got"):
        small_cache(**{name: size})


@pytest.mark.parametrize("dim", [2**20, 2**31 - 1])
def test_more_memory_than_there_is(dim):
    sizes = {"num_pages": 2**31 - 1, "page_size": 2**20, "head_dim": dim}
    total = 2 * (2**31 - 1) * 2**20 * dim * 4
    with pytest.raises(
        ValueError, match=rf"^expected a KV cache that fits .* {total} bytes in all"
    ):
        small_cache(**sizes)


def test_devices():
    with pytest.raises(ValueError, match=r"^expected a device of PyTorch, got 'gpu'"):
        small_cache(device="gpu")


@pytest.mark.parametrize("node", [1.0, True, "0", None, float("nan")], ids=str)
def test_what_is_no_node(node):
    cache = small_cache(8)
    cache.add_root()
    for call in ("length", "fork", "release", "path", "parent", "evict", "is_resident"):
        with pytest.raises(ValueError, match=r"^expected a node as an integer, got"):
            getattr(cache, call)(node)
    with pytest.raises(ValueError, match=r"^expected .*nodes"):
        cache.lengths([node])
    assert num_nodes(cache) == 1


@pytest.mark.parametrize("node", [1, -1, 2**32, 2**63, -(2**70)])
def test_nodes_that_never_were(node):
    cache = small_cache(8)
    cache.add_root()
    with pytest.raises(IndexError, match=r"^expected a living node, got"):
        cache.length(node)
    with pytest.raises((IndexError, ValueError), match=r"^expected .*nodes"):
        cache.lengths([node])
