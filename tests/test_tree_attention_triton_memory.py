"""The Triton tree_attention at the edges of memory: guard pages and addresses beyond 2^31."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from compare import assert_close, assert_lse_close
from forests import plain_attention, random_forest
from inputs import against_guard
from test_tree_attention_memory import huge

import marco_fast as mf

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("a GPU is here: Triton does not interpret", allow_module_level=True)


def guarded(x: torch.Tensor) -> torch.Tensor:
    return against_guard(x) if x.numel() else x


def run_guarded(seeds: range) -> None:
    """Every tensor ends right before a page that may not be touched; a fault ends the process."""
    from marco_fast.kernels import tree_attention as kernels

    for seed in seeds:
        rng = np.random.default_rng(seed)
        forest = random_forest(
            seed,
            nodes=6,
            queries=4,
            heads=int(rng.choice([1, 3, 7])),
            head_dim=int(rng.choice([16, 48, 80, 128])),
            page_size=int(rng.choice([1, 8, 16])),
            dtype=[torch.float32, torch.bfloat16, torch.float16][seed % 3],
            partial=bool(seed % 2),
        )
        plan = forest.plan()
        caches = [cache[: plan.native.num_pages_needed] for cache in forest.caches()]
        k_cache, v_cache = (guarded(cache.contiguous()) for cache in caches)
        q, out = guarded(forest.q), guarded(torch.zeros_like(forest.q))
        lse = guarded(torch.zeros(forest.q.shape[:2]))
        items = plan.items(torch.device("cpu"))
        for name in ("items", "chunks", "partial_begin", "merges", "query_order", "page_ids"):
            object.__setattr__(items, name, guarded(getattr(items, name)))
        words = items.num_partials * plan.num_heads * (plan.head_dim + 2)
        workspace = guarded(torch.full((words,), torch.nan))
        kernels.tree_attention(q, k_cache, v_cache, plan, plan.scale, out, lse, workspace)
        want, want_lse = forest.want()
        assert_close(out, want, plain_attention(forest, want))
        assert_lse_close(lse, want_lse)


def test_nothing_outside_is_touched():
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from test_tree_attention_triton_memory import run_guarded; run_guarded(range(24))\n"
        "print('done')"
    )
    done = subprocess.run([sys.executable, "-c", code, *sys.path], capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr


def test_addresses_beyond_int32():
    pages, heads, page_size, dim = 2**31 // (2 * 16 * 128) + 40, 2, 16, 128
    k_cache, v_cache = huge(pages, heads, page_size, dim), huge(pages, heads, page_size, dim)
    table = np.array([[pages - 1, 3], [pages - 30, pages - 2]], np.int32)
    shape = {"num_heads": 6, "num_kv_heads": 2, "head_dim": 128, "page_size": 16}
    k, v, q = (torch.randn(50, n, dim).bfloat16() for n in (heads, heads, 6))
    at = np.r_[np.repeat(table[0], 16)[:20], np.repeat(table[1], 16)[:30]].astype(np.int64)
    slots = torch.from_numpy(at * 16 + np.r_[np.arange(20), np.arange(30)] % 16)
    mf.append_kv(k, v, k_cache, v_cache, slots, backend="cpu")
    plan = mf.plan_tree_attention([-1, 0], [20, 30], table, [1, 0], **shape)
    # Rows of q and out as far apart.
    room = huge(pages, heads, page_size, dim).view(2, -1)
    stride = room.stride(0)
    far_q = room.view(-1).as_strided((2, 6, dim), (stride, dim, 1))
    far_out = room.view(-1).as_strided((2, 6, dim), (stride, dim, 1), 6 * dim)
    far_q.copy_(q[:2])
    out = mf.tree_attention(far_q, k_cache, v_cache, plan, out=far_out, backend="triton")
    near = [torch.zeros(4, heads, page_size, dim).bfloat16() for _ in range(2)]
    low = np.array([[0, 1], [2, 3]], np.int32)
    low_slots = torch.from_numpy(np.r_[np.arange(20), 32 + np.arange(30)])
    mf.append_kv(k, v, *near, low_slots, backend="cpu")
    plan = mf.plan_tree_attention([-1, 0], [20, 30], low, [1, 0], **shape)
    assert torch.equal(out, mf.tree_attention(q[:2], *near, plan, backend="triton"))
