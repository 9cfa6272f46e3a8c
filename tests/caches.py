"""A small PagedKVCache, and all that a caller can see of one."""

import torch

from marco_fast.engine.kv_cache import PagedKVCache

PAGE = 4


def small_cache(num_pages=8, **options):
    sizes = {"page_size": PAGE, "num_kv_heads": 1, "head_dim": 1, "dtype": torch.float32}
    return PagedKVCache(1, num_pages, **{**sizes, "device": "cpu", **options})


def seen(cache, nodes):
    """Everything a caller can see of some living nodes and of the pool."""
    return (
        cache.free_pages,
        cache.used_pages,
        cache.num_nodes,
        [(cache.parent(n), cache.path(n), cache.length(n), cache.is_resident(n)) for n in nodes],
        [cache.block_table([n]).tolist() for n in nodes if cache.is_resident(n)],
    )
