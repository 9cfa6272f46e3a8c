"""Forests to attend over, their pages, and attention over private copies of each path."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

__all__ = [
    "HEADS",
    "PAGE",
    "Tree",
    "gathered",
    "many_small_nodes",
    "private",
    "private_attention",
    "prompt_and_branches",
    "search",
    "tables",
]

PAGE = 16
# query heads, KV heads, head size
HEADS = {"qwen2-7b": (28, 4, 128), "llama-1b": (32, 8, 64), "llama-3b": (24, 8, 128)}
HEADS["nano-marco"] = (7, 1, 32)


@dataclass(frozen=True)
class Tree:
    """A forest of segments; the newest token of each leaf is a query."""

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
    """Trees as MCTS makes them: branches at several depths, each below a random earlier segment."""
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


def tables(tree: Tree, page_size: int = PAGE) -> tuple[np.ndarray, int]:
    """(block table, number of pages); pages in random order, as in a cache after a while."""
    counts = [-(-n // page_size) for n in tree.lens]
    pages = np.random.default_rng(0).permutation(sum(counts)).astype(np.int32)
    table = np.full((len(counts), max(counts)), 2**30, np.int32)
    for n, end in enumerate(np.cumsum(counts)):
        table[n, : counts[n]] = pages[end - counts[n] : end]
    return table, sum(counts)


def gathered(cache: torch.Tensor, tree: Tree, table: np.ndarray) -> list[torch.Tensor]:
    """Each leaf's own contiguous copy of its path, [num_kv_heads, tokens, dim]."""
    segments = []
    for n, length in enumerate(tree.lens):
        pages = torch.from_numpy(table[n, : -(-length // PAGE)].astype(np.int64)).to(cache.device)
        segments.append(cache[pages].transpose(0, 1).flatten(1, 2)[:, :length])
    return [torch.cat([segments[n] for n in tree.path(leaf)], 1) for leaf in tree.leaves]


def private_attention(
    q: torch.Tensor, k: list[torch.Tensor], v: list[torch.Tensor]
) -> Callable[[], torch.Tensor]:
    """SDPA over private KV: one call where all paths are equally long, else one per length."""
    group = q.shape[1] // k[0].shape[0]
    by_length: dict[int, list[int]] = {}
    for i, rows in enumerate(k):
        by_length.setdefault(rows.shape[1], []).append(i)
    batches = [
        (
            torch.tensor(
                queries, device=q.device
            ),  # a list would be copied to the device at every call
            torch.stack([k[i] for i in queries]),
            torch.stack([v[i] for i in queries]),
        )
        for queries in by_length.values()
    ]

    def run() -> torch.Tensor:
        if len(batches) == 1:
            _, keys, values = batches[0]
            return scaled_dot_product_attention(q.unflatten(1, (-1, group)), keys, values)
        out = torch.empty_like(q.unflatten(1, (-1, group)))
        for queries, keys, values in batches:
            rows = q[queries].unflatten(1, (-1, group))
            out[queries] = scaled_dot_product_attention(rows, keys, values)
        return out

    return run
