"""The attention that an Engine's model runs: one name in transformers' two registries.

A forward pass carries a batch object (`marco_batch=`) down to every attention layer. The object
knows the pages and the plan; the layers know nothing of trees.
"""

from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from marco_fast.engine.kv_cache import PagedKVCache
from marco_fast.errors import ModelError
from marco_fast.ops import TreeAttentionPlan, append_kv, tree_attention

__all__ = ["ATTENTION_NAME", "PromptBatch", "TreeBatch"]

ATTENTION_NAME = "marco_tree"


class Batch(Protocol):
    """What a forward pass hands to its attention layers."""

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor: ...


class TreeBatch:
    """Queries that each end somewhere in the tree: decoding, and recomputing evicted tokens.

    Args:
        cache: where K and V are kept.
        plan: which query reads which pages.
        slots: [Q] int64, where each query's own K and V go; replaced before every step.
    """

    def __init__(self, cache: PagedKVCache, plan: TreeAttentionPlan, slots: torch.Tensor) -> None:
        self.cache, self.plan, self.slots = cache, plan, slots
        self.out: torch.Tensor | None = None

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """q [1, num_heads, Q, head_dim] after RoPE -> [1, Q, num_heads, head_dim]."""
        k_cache, v_cache = self.cache.k[layer], self.cache.v[layer]
        q = q[0].transpose(0, 1)
        append_kv(k[0].transpose(0, 1), v[0].transpose(0, 1), k_cache, v_cache, self.slots)
        if self.out is None:
            self.out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        # One buffer serves all layers: a layer's output is consumed before the next layer's query.
        tree_attention(q, k_cache, v_cache, self.plan, scale=scale, out=self.out)
        return self.out.unsqueeze(0)


class PromptBatch:
    """Consecutive tokens of one prompt, through PyTorch's own attention.

    Args:
        cache: where K and V are kept.
        slots: [n] int64, the slots of the n tokens of this pass.
        path_slots: [t] int64, the slots of every token from the root to the last of them.
    """

    def __init__(self, cache: PagedKVCache, slots: torch.Tensor, path_slots: torch.Tensor) -> None:
        self.cache, self.slots = cache, slots
        self.pages = path_slots // cache.page_size
        self.offsets = path_slots % cache.page_size
        new, total = len(slots), len(path_slots)
        self.mask = None
        if new < total:
            self.mask = torch.ones(new, total, dtype=torch.bool).tril(total - new)
            self.mask = self.mask.to(slots.device)

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """q [1, num_heads, n, head_dim] after RoPE -> [1, n, num_heads, head_dim]."""
        k_cache, v_cache = self.cache.k[layer], self.cache.v[layer]
        append_kv(k[0].transpose(0, 1), v[0].transpose(0, 1), k_cache, v_cache, self.slots)
        group = q.shape[1] // k.shape[1]
        keys, values = (self._gather(each, group) for each in (k_cache, v_cache))
        out = torch.nn.functional.scaled_dot_product_attention(
            q, keys, values, attn_mask=self.mask, is_causal=self.mask is None, scale=scale
        )
        return out.transpose(1, 2)

    def _gather(self, cache: torch.Tensor, group: int) -> torch.Tensor:
        """[1, num_heads, t, head_dim] of the whole path."""
        path = cache[self.pages, :, self.offsets].transpose(0, 1)
        return path.repeat_interleave(group, dim=0).unsqueeze(0)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    marco_batch: Batch | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    if marco_batch is None:
        raise ModelError(
            f"expected marco_batch= in the forward call of a model whose attention is "
            f"{ATTENTION_NAME!r}, got none: run the model through marco_fast.Engine"
        )
    for name in ("softcap", "s_aux"):
        if options.get(name) is not None:
            raise ModelError(f"expected plain softmax attention, got a model that uses {name!r}")
    if attention_mask is not None:
        raise ModelError("expected no attention mask: the plan alone says what a token sees")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: int = module.layer_idx  # type: ignore[assignment]
    return marco_batch.attend(layer, query, key, value, scale), None


# Both registries: a mask name that is not registered silently turns masks into None.
AttentionInterface.register(ATTENTION_NAME, _attend)
AttentionMaskInterface.register(ATTENTION_NAME, lambda *args, **kwargs: None)
