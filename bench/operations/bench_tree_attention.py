"""Tree attention on a CPU, beside PyTorch's attention on private KV and beside its floor.

make bench, or: pytest bench/operations/bench_tree_attention.py --benchmark-only -s

The peer gets every branch's KV already gathered into one contiguous tensor, which is not timed, and
the query heads of a group as rows of one KV head, its fastest form.
"""

import os

import pytest
import torch

import marco_fast as mf
from bench.common.roofline import with_threads
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
from bench.operations.timing import compare
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
    num_heads, num_kv_heads, head_dim = HEADS[model]
    tree, (table, pages) = TREES[name], tables(TREES[name])
    torch.manual_seed(0)
    k_cache, v_cache = torch.randn(2, pages, num_kv_heads, PAGE, head_dim).to(dtype)
    q = torch.randn(len(tree.leaves), num_heads, head_dim).to(dtype)
    plan = mf.plan_tree_attention(
        tree.parents, tree.lens, table, tree.leaves,
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, page_size=PAGE,
    )  # fmt: skip
    out, workspace = torch.empty_like(q), torch.empty(plan.workspace_numel)

    def ours() -> torch.Tensor:
        return mf.tree_attention(q, k_cache, v_cache, plan, out=out, workspace=workspace)

    k, v = (gathered(cache, tree, table) for cache in (k_cache, v_cache))
    peer = private_attention(q, k, v)
    with with_threads(THREADS):
        want, _ = mf.reference.tree_attention(q, k_cache, v_cache, plan, dtype=torch.float64)
        assert_close(ours(), want, peer().flatten(1, 2))  # a wrong result is not timed
    seen, unique = int(plan.path_lens.sum()), int(plan.segment_lens.sum())
    benchmark.extra_info["rho"] = seen / unique
    compare(
        benchmark,
        ours,
        {"SDPA on gathered private KV": peer},
        threads=THREADS,
        nbytes=2 * unique * num_kv_heads * head_dim * q.element_size() + 2 * q.nbytes,
        flops=4 * seen * num_heads * head_dim,
        dtype=dtype,
        rounds=25,
        budget=4.0,
    )
