"""A small PagedKVCache, all that a caller can see of one, and what append_kv is given."""

import numpy as np
import torch

from marco_fast.engine.kv_cache import PagedKVCache

PAGE = 4


def small_cache(num_pages=8, **options):
    sizes = {"page_size": PAGE, "num_kv_heads": 1, "head_dim": 1, "dtype": torch.float32}
    return PagedKVCache(1, num_pages, **{**sizes, "device": "cpu", **options})


def num_nodes(cache):
    """Nodes that live."""
    return len(cache._ids) - len(cache._spare_ids)


def seen(cache, nodes):
    """Everything a caller can see of some living nodes and of the pool."""
    return (
        cache.free_pages,
        cache.used_pages,
        num_nodes(cache),
        [(cache.parent(n), cache.path(n), cache.length(n), cache.is_resident(n)) for n in nodes],
        [cache.block_table([n]).tolist() for n in nodes if cache.is_resident(n)],
    )


def append_inputs(seed, tokens, heads, page_size, head_dim, dtype, pages=6):
    """Tokens with padded strides and caches that are slices of larger, NaN-filled tensors."""
    torch.manual_seed(seed)
    k, v = torch.randn(2, heads, tokens + 1, head_dim + 16).to(dtype)
    k, v = (x[:, :tokens, :head_dim].transpose(0, 1) for x in (k, v))
    pool = torch.full((2, pages, heads + 2, page_size, head_dim), torch.nan, dtype=dtype)
    slots = np.random.default_rng(seed).permutation(pages * page_size)[:tokens]
    return k, v, pool, torch.from_numpy(slots.astype(np.int64))


def same_caches(left, right) -> bool:
    return torch.equal(left.nan_to_num(nan=7e4), right.nan_to_num(nan=7e4))
