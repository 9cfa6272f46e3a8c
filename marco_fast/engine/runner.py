"""Runner: computes a model's layers over an engine's KV cache. Scheduler and Engine see only this.

NativeRunner is one C++ call per step, for the models that it knows, on a CPU. TransformersRunner is
the Hugging Face model itself with its attention swapped.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from marco_fast.engine.branches import Segment
from marco_fast.engine.kv_cache import PagedKVCache
from marco_fast.ops import SampledTokens, TreeAttentionPlan, plan_tree_attention

__all__ = ["PREFILL_BATCH", "Runner", "TreeBatch", "compute_by_plan", "plan_segments"]

PREFILL_BATCH = 512  # prompt tokens of one forward pass: bounds the activations' memory


class TreeBatch:
    """Queries that each end in a segment: a decode step, or tokens whose KV is computed again.

    Args:
        plan: which query reads which pages.
        slots: [Q] int64, where each query's own K and V go; replaced before every step.
    """

    __slots__ = ("plan", "slots")

    def __init__(self, plan: TreeAttentionPlan, slots: torch.Tensor) -> None:
        self.plan, self.slots = plan, slots


class Runner(Protocol):
    """A model's layers over a KV cache.

    Attributes:
        cache: where K and V are kept.
        num_heads: query heads.
    """

    cache: PagedKVCache
    num_heads: int

    def sample(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        batch: TreeBatch,
        options: dict[str, Any],
    ) -> SampledTokens:
        """Decode one token of every query, and draw the token after it.

        Args:
            token_ids, positions: [Q] int64, on the model's device.
            batch: plan and slots of the Q queries.
            options: keyword arguments of `sample_confidence`.
        """

    def write_kv(self, token_ids: list[int], positions: list[int], batch: TreeBatch) -> None:
        """Compute K and V of one token of every query, and nothing else."""

    def compute(self, segment: Segment, slots: torch.Tensor, rows: int) -> None:
        """Compute K and V of all tokens of a segment; those in front of it are in the cache.

        Args:
            segment: its cache node has `slots` already.
            slots: [len(segment.tokens)] int64.
            rows: the most rows of a decode batch. More rows per pass than that may have other bits
                than decoding had, where a runner's bits depend on the batch.
        """


def plan_segments(
    runner: Runner, segments: Sequence[Segment], leaves: Sequence[Segment], **options: Any
) -> TreeAttentionPlan:
    """A plan of these segments, parents first, with one query at each of the leaves."""
    cache = runner.cache
    for index, each in enumerate(segments):
        each.index = index
    parents = np.array([-1 if each.parent is None else each.parent.index for each in segments])
    nodes = np.array([each.kv for each in segments], dtype=np.int64)
    _, num_kv_heads, page_size, head_dim = cache.k[0].shape
    return plan_tree_attention(
        parents,
        cache.lengths(nodes),
        cache.block_table(nodes),
        np.array([each.index for each in leaves]),
        num_heads=runner.num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        page_size=page_size,
        device=cache.device,
        **options,
    )


def compute_by_plan(runner: Runner, segment: Segment, slots: torch.Tensor, rows: int) -> None:
    """`Runner.compute` by tree attention, `rows` tokens per pass."""
    path = segment.path()
    for begin in range(0, len(segment.tokens), rows):
        end = min(begin + rows, len(segment.tokens))
        plan = plan_segments(
            runner, path, [segment] * (end - begin), leaf_lens=np.arange(begin + 1, end + 1)
        )
        positions = list(range(segment.start + begin, segment.start + end))
        batch = TreeBatch(plan, slots[begin:end])
        runner.write_kv(segment.tokens[begin:end], positions, batch)
