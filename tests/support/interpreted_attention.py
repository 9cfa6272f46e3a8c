"""The Triton tree_attention in the interpreter, where a few tiles take a second: forests for it."""

import torch

from marco_fast.ops.attention.work_items import tree_items
from tests.support.trees import Forest, random_forest

__all__ = ["CPU", "attend", "small_forest"]

CPU = torch.device("cpu")


def small_forest(seed: int, **changes) -> Forest:
    options = {"nodes": 6, "queries": 4, "max_len": 40, "partial": seed % 2 == 1}
    return random_forest(seed, **{**options, **changes})


def attend(forest: Forest, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse), with items made under `options` (tile_rows, enough_items)."""
    plan = forest.plan()
    if options:
        heads, kv_heads = forest.q_heads()
        plan._items[CPU] = tree_items(
            plan.native, group=heads // kv_heads, num_kv_heads=kv_heads,
            head_dim=plan.head_dim, device=CPU, **options,
        )  # fmt: skip
    return forest.run(plan, backend="triton")
