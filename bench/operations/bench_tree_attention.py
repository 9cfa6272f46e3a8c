"""Tree attention on a CPU, beside PyTorch's attention on private KV and beside its floor.

make bench, or: pytest bench/operations/bench_tree_attention.py --benchmark-only -s

The peer gets every branch's KV already gathered into one contiguous tensor, which costs it nothing
here, and the group folded into the query rows, its fastest form.
"""

import os
import statistics

import pytest
import torch

import marco_fast as mf
from bench.common.roofline import interleaved, peak, read_bandwidth
from bench.common.trees import (
    HEADS,
    PAGE,
    gathered,
    many_small_nodes,
    private,
    private_attention,
    prompt_and_branches,
    search,
    tables,
)
from tests.support.tolerance import assert_close

THREADS = len(os.sched_getaffinity(0))


TREES = {
    "prompt-1024-x16x64": prompt_and_branches(1024, 16, 64),
    "prompt-1024-x64x64": prompt_and_branches(1024, 64, 64),
    "nothing-shared-16x1088": private(16, 1088),
    "wide-root-4096-x64x1": prompt_and_branches(4096, 64, 1),
    "search-4x8-depth-6-steps-32": search(4, 8, 6, 32, 400),
    "many-nodes-of-1-16": many_small_nodes(),
}
CASES = [
    ("qwen2-7b", name, dtype) for name in TREES for dtype in (torch.float32, torch.bfloat16)
] + [
    (model, name, dtype)
    for model in ("llama-1b", "llama-3b", "nano-marco")
    for name in ("prompt-1024-x16x64", "nothing-shared-16x1088", "search-4x8-depth-6-steps-32")
    for dtype in (torch.float32, torch.bfloat16)
]


@pytest.mark.parametrize(("model", "name", "dtype"), CASES, ids=str)
def test_tree_attention(benchmark, model, name, dtype):
    heads, kv_heads, dim = HEADS[model]
    tree, (table, pages) = TREES[name], tables(TREES[name])
    torch.manual_seed(0)
    k_cache, v_cache = torch.randn(2, pages, kv_heads, PAGE, dim).to(dtype)
    q = torch.randn(len(tree.leaves), heads, dim).to(dtype)
    plan = mf.plan_tree_attention(
        tree.parents, tree.lens, table, tree.leaves,
        num_heads=heads, num_kv_heads=kv_heads, head_dim=dim, page_size=PAGE,
    )  # fmt: skip
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        out, workspace = torch.empty_like(q), torch.empty(plan.workspace_numel)

        def ours() -> torch.Tensor:
            return mf.tree_attention(q, k_cache, v_cache, plan, out=out, workspace=workspace)

        k, v = (gathered(cache, tree, table) for cache in (k_cache, v_cache))
        peer = private_attention(q, k, v)
        want, _ = mf.reference.tree_attention(q, k_cache, v_cache, plan, dtype=torch.float64)
        assert_close(ours(), want, peer().flatten(1, 2))
        mine, theirs = interleaved(ours, peer, rounds=25, budget=4.0)
        bandwidth, flops = read_bandwidth(THREADS), peak(dtype, THREADS)
        benchmark.pedantic(ours, rounds=5, warmup_rounds=1)
    finally:
        torch.set_num_threads(before)
    seen, unique = int(plan.path_lens.sum()), int(plan.segment_lens.sum())
    nbytes = 2 * unique * kv_heads * dim * q.element_size() + 2 * q.nbytes
    floor = max(nbytes / bandwidth, 4 * seen * heads * dim / flops)
    ours_median, peer_median = statistics.median(mine), statistics.median(theirs)
    benchmark.extra_info |= {
        "us": ours_median * 1e6,
        "us_quartiles": [t * 1e6 for t in statistics.quantiles(mine, n=4)],
        "peer_us": peer_median * 1e6,
        "ratio": peer_median / ours_median,
        "rho": seen / unique,
        "floor_us": floor * 1e6,
        "floor_share": floor / ours_median,
        "threads": THREADS,
    }
    print(
        f"\n{model} {name} {str(dtype)[6:]}: {ours_median * 1e6:.0f} us, private KV "
        f"{peer_median * 1e6:.0f} us = {peer_median / ours_median:.2f}x (rho {seen / unique:.2f}), "
        f"floor {floor * 1e6:.0f} us = {floor / ours_median:.0%}"
    )
