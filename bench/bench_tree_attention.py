"""Tree attention on a CPU, beside PyTorch's attention on private KV and beside its floor.

make bench, or: pytest bench/bench_tree_attention.py --benchmark-only -s

The peer gets every branch's KV already gathered into one contiguous tensor, which costs it nothing
here, and the group folded into the query rows, its fastest form.
"""

import os
import statistics
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import marco_fast as mf
from bench.roofline import interleaved, read_bandwidth
from tests.compare import assert_close

THREADS = len(os.sched_getaffinity(0))
PAGE = 16
HEADS = {"qwen2-7b": (28, 4, 128), "llama-1b": (32, 8, 64), "llama-3b": (24, 8, 128)}
HEADS["nano-marco"] = (7, 1, 32)


@dataclass(frozen=True)
class Tree:
    """A forest and the nodes whose newest token is a query."""

    parents: list[int]
    lens: list[int]
    leaves: list[int]

    def path(self, node: int) -> list[int]:
        path = [node]
        while self.parents[path[-1]] >= 0:
            path.append(self.parents[path[-1]])
        return path[::-1]


def prompt_and_branches(prompt: int, branches: int, tokens: int) -> Tree:
    leaves = list(range(1, branches + 1))
    return Tree([-1, *[0] * branches], [prompt, *[tokens] * branches], leaves)


def private(branches: int, tokens: int) -> Tree:
    return Tree([-1] * branches, [tokens] * branches, list(range(branches)))


def search(trees: int, branches: int, depth: int, mini_step: int, prompt: int) -> Tree:
    """MCTS as it is: in each tree, branches at several depths below random earlier nodes."""
    rng = np.random.default_rng(trees * depth)
    parents, lens, leaves = [], [], []
    for _ in range(trees):
        levels = [[len(parents)]]
        parents.append(-1)
        lens.append(prompt)
        for level in range(1, depth + 1):
            width = min(branches, 2**level)
            levels.append([])
            for _ in range(width):
                levels[-1].append(len(parents))
                parents.append(int(rng.choice(levels[-2])))
                lens.append(int(rng.integers(1, mini_step + 1)) if level == depth else mini_step)
        leaves += levels[-1]
    return Tree(parents, lens, leaves)


def many_small_nodes() -> Tree:
    rng = np.random.default_rng(0)
    parents = [-1, *(int(rng.integers(max(0, n - 12), n)) for n in range(1, 400))]
    leaves = sorted(set(range(400)) - set(parents))
    return Tree(parents, rng.integers(1, 17, 400).tolist(), leaves)


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


def tables(tree: Tree) -> tuple[np.ndarray, int]:
    """Pages in random order, as a cache has them after a while."""
    counts = [-(-n // PAGE) for n in tree.lens]
    pages = np.random.default_rng(0).permutation(sum(counts)).astype(np.int32)
    table = np.full((len(counts), max(counts)), 2**30, np.int32)
    for n, end in enumerate(np.cumsum(counts)):
        table[n, : counts[n]] = pages[end - counts[n] : end]
    return table, sum(counts)


def gathered(cache: torch.Tensor, tree: Tree, table: np.ndarray) -> list[torch.Tensor]:
    """Each leaf's own contiguous copy of its path, [kv_heads, tokens, dim]."""
    segments = []
    for n, length in enumerate(tree.lens):
        pages = torch.from_numpy(table[n, : -(-length // PAGE)].astype(np.int64))
        segments.append(cache[pages].transpose(0, 1).flatten(1, 2)[:, :length])
    return [torch.cat([segments[n] for n in tree.path(leaf)], 1) for leaf in tree.leaves]


def private_attention(q: torch.Tensor, k: list[torch.Tensor], v: list[torch.Tensor]):
    """The peer: one call where all paths are equally long, else one call for each length."""
    group = q.shape[1] // k[0].shape[0]
    by_length: dict[int, list[int]] = {}
    for i, rows in enumerate(k):
        by_length.setdefault(rows.shape[1], []).append(i)
    batches = [
        (queries, torch.stack([k[i] for i in queries]), torch.stack([v[i] for i in queries]))
        for queries in by_length.values()
    ]

    def run() -> torch.Tensor:
        if len(batches) == 1:
            _, keys, values = batches[0]
            return scaled_dot_product_attention(q.unflatten(1, (-1, group)), keys, values)
        out = torch.empty(q.unflatten(1, (-1, group)).shape, dtype=q.dtype)
        for queries, keys, values in batches:
            rows = q[queries].unflatten(1, (-1, group))
            out[queries] = scaled_dot_product_attention(rows, keys, values)
        return out

    return run


@lru_cache
def peak(dtype: torch.dtype, threads: int) -> float:
    """FLOP per second of a large matrix product, the best of 5."""
    a, b = torch.randn(2, 1536, 1536).to(dtype)
    times = interleaved(lambda: a @ b, rounds=5)[0]
    return 2 * 1536**3 / min(times)


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
