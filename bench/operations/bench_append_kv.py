"""append_kv on a CPU, beside PyTorch's indexed assignment.

make bench, or: pytest bench/operations/bench_append_kv.py --benchmark-only -s
"""

import pytest
import torch

import marco_fast as mf
from bench.common.trees import HEADS, PAGE
from bench.operations.timing import compare


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [1, 16, 64, 1024])
def test_append_kv(benchmark, tokens, dtype):
    """Keys and values of one layer of a 7B Qwen2, to slots all over a cache.

    There is no floor: the tokens are in the processor's caches, where the projection left them.
    """
    _, num_kv_heads, head_dim = HEADS["qwen2-7b"]
    rng = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, tokens, num_kv_heads, head_dim, generator=rng).to(dtype)
    num_pages = 4 * -(-tokens // PAGE)
    k_cache, v_cache = torch.zeros(2, num_pages, num_kv_heads, PAGE, head_dim, dtype=dtype)
    slot_mapping = torch.randperm(num_pages * PAGE, generator=rng)[:tokens]
    pages, offsets = slot_mapping // PAGE, slot_mapping % PAGE

    def ours() -> None:
        mf.append_kv(k, v, k_cache, v_cache, slot_mapping)

    def by_torch() -> None:
        k_cache[pages, :, offsets] = k
        v_cache[pages, :, offsets] = v

    ours()
    for cache, new in ((k_cache, k), (v_cache, v)):  # a wrong result is not timed
        assert torch.equal(cache[pages, :, offsets], new)
        assert cache.count_nonzero() == new.count_nonzero()
    compare(benchmark, ours, {"torch indexed assignment": by_torch}, threads=1)
