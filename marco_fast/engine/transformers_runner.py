"""TransformersRunner: a Hugging Face model, its attention swapped by name in two registries.

A forward pass carries an object (`marco_batch=`) down to every attention layer. The object knows
the pages and the plan; the layers know nothing of trees.
"""

from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from marco_fast.engine.branches import Segment
from marco_fast.engine.kv_cache import PagedKVCache
from marco_fast.engine.runner import PREFILL_BATCH, TreeBatch, compute_by_plan
from marco_fast.errors import ModelError
from marco_fast.ops import SampledTokens, append_kv, sample_confidence, tree_attention
from marco_fast.ops.isolation import exact_products, float32_default, isolated

__all__ = ["ATTENTION_NAME", "TransformersRunner"]

ATTENTION_NAME = "marco_tree"


class TransformersRunner:
    """A model's layers as transformers runs them.

    Args:
        model: a causal language model; its attention is swapped.
        cache: where K and V are kept.
    """

    def __init__(self, model: Any, cache: PagedKVCache) -> None:
        model.set_attn_implementation(ATTENTION_NAME)
        self.model, self.cache = model, cache
        self.num_heads: int = model.config.num_attention_heads

    @isolated
    @exact_products
    @float32_default
    @torch.inference_mode()
    def sample(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        batch: TreeBatch,
        options: dict[str, Any],
    ) -> SampledTokens:
        """As Runner.sample, from the logits of the model's own head."""
        output = self.model(
            input_ids=token_ids[None],
            position_ids=positions[None],
            use_cache=False,
            marco_batch=TreeAttention(self.cache, batch),
        )
        return sample_confidence(output.logits[0], **options)

    @isolated
    def write_kv(self, token_ids: list[int], positions: list[int], batch: TreeBatch) -> None:
        """As Runner.write_kv."""
        self._layers(
            token_ids, torch.tensor(positions, device="cpu"), TreeAttention(self.cache, batch)
        )

    @isolated
    def compute(self, segment: Segment, slots: torch.Tensor, rows: int) -> None:
        """As Runner.compute: a prompt by PyTorch's attention, other segments as they were decoded.

        With one branch at a time the products are then those of decoding.
        """
        if not segment.prompt:
            compute_by_plan(self, segment, slots, rows)
            return
        before = [self.cache.slot_mapping(each.kv) for each in segment.path()[:-1]]
        path_slots = torch.cat([*before, slots])
        for begin in range(0, len(segment.tokens), PREFILL_BATCH):
            end = min(begin + PREFILL_BATCH, len(segment.tokens))
            positions = torch.arange(segment.start + begin, segment.start + end, device="cpu")
            path = path_slots[: segment.start + end]
            attention = PromptAttention(self.cache, slots[begin:end], path)
            self._layers(segment.tokens[begin:end], positions, attention)

    @exact_products
    @float32_default
    @torch.inference_mode()
    def _layers(self, token_ids: list[int], positions: torch.Tensor, attention: Any) -> None:
        """The model without its head: K and V are all that is wanted."""
        device = self.cache.device
        base = getattr(self.model, self.model.base_model_prefix)
        base(
            input_ids=torch.tensor([token_ids], device=device),
            position_ids=positions.to(device)[None],
            use_cache=False,
            marco_batch=attention,
        )


class Attention(Protocol):
    """What a forward pass hands to its attention layers."""

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor: ...


class TreeAttention:
    """One forward pass of a TreeBatch, by tree attention."""

    def __init__(self, cache: PagedKVCache, batch: TreeBatch) -> None:
        self.cache, self.plan, self.slots = cache, batch.plan, batch.slots
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


class PromptAttention:
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
            every = torch.ones(new, total, dtype=torch.bool, device=slots.device)
            self.mask = every.tril(total - new)

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
    marco_batch: Attention | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    if marco_batch is None:
        raise ModelError(
            f"expected marco_batch= in the forward call of a model whose attention is "
            f"{ATTENTION_NAME!r}, got none: run the model through marco_fast.Engine"
        )
    for name in ("softcap", "s_aux"):
        if options.get(name) is not None:
            raise ModelError(f"expected softmax attention alone, got a model that uses {name!r}")
    if attention_mask is not None:
        raise ModelError("expected no attention mask: the plan alone says what a token sees")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: int = module.layer_idx  # type: ignore[assignment]
    return marco_batch.attend(layer, query, key, value, scale), None


# Both registries: a mask name that is not registered silently turns masks into None.
AttentionInterface.register(ATTENTION_NAME, _attend)
AttentionMaskInterface.register(ATTENTION_NAME, lambda *args, **kwargs: None)
