"""The Triton tree_attention in the interpreter, where a few tiles take a second: forests for it."""

import torch

from marco_fast.ops.attention.work_items import work_items
from tests.support.trees import Forest, random_forest

__all__ = ["CPU", "attend", "small_forest"]

CPU = torch.device("cpu")


def small_forest(seed: int, **changes) -> Forest:
    options = {"nodes": 6, "queries": 4, "max_len": 40, "partial": seed % 2 == 1}
    return random_forest(seed, **{**options, **changes})


def attend(forest: Forest, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse), with work items made under `options` (tile_query_heads, enough_items)."""
    plan = forest.plan()
    if options:
        heads = (*forest.q_heads(), plan.head_dim, plan.page_size)
        plan._items[CPU] = work_items(plan.arrays, heads=heads, device=CPU, **options)
    return forest.run(plan, backend="triton")
