"""TransformersRunner: a Hugging Face model, its attention swapped by name in two registries.

While a forward pass runs, an object computes the attention of every layer. The object knows the
pages and the plan; the layers know nothing of trees. It is not an argument of the forward pass:
some models hand no options down to their layers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from marco_fast.engine.branches import Segment
from marco_fast.engine.kv_cache import PagedKVCache
from marco_fast.engine.runner import PREFILL_BATCH, TreeBatch, compute_by_plan
from marco_fast.errors import ModelError
from marco_fast.ops import SampledTokens, append_kv, sample_confidence, tree_attention
from marco_fast.ops.isolation import exact_products, float32_default, isolated

__all__ = ["ATTENTION_NAME", "Attention", "Mask", "TransformersRunner", "forward", "set_attention"]

ATTENTION_NAME = "marco_tree"
OWN_MASK = "expected plain causal attention, got a mask that the model makes itself"
# What models hand to attention and what changes no result, whatever its value.
HARMLESS = {"cache_position", "output_attentions", "output_hidden_states", "output_router_logits"}
HARMLESS |= {"position_ids", "use_cache"}


class TransformersRunner:
    """A model's layers as transformers runs them.

    Args:
        model: a causal language model; its attention is swapped.
        cache: where K and V are kept.
        num_heads: query heads. context: positions that a path may have.
    """

    def __init__(self, model: Any, cache: PagedKVCache, *, num_heads: int, context: int) -> None:
        model.set_attn_implementation(ATTENTION_NAME)
        self.model, self.cache = model, cache
        self.num_heads, self.context = num_heads, context

    @isolated
    def sample(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        batch: TreeBatch,
        options: dict[str, Any],
    ) -> SampledTokens:
        """As Runner.sample, from the logits of the model's own head."""
        attention = TreeAttention(self.cache, batch, self.context)
        output = forward(self.model, token_ids[None], positions[None], attention)
        return sample_confidence(output.logits[0], **options)

    @isolated
    def write_kv(self, token_ids: list[int], positions: list[int], batch: TreeBatch) -> None:
        """As Runner.write_kv."""
        attention = TreeAttention(self.cache, batch, self.context)
        self._layers(token_ids, torch.tensor(positions, device="cpu"), attention)

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
            attention = PromptAttention(self.cache, slots[begin:end], path, self.context)
            self._layers(segment.tokens[begin:end], positions, attention)

    def _layers(self, token_ids: list[int], positions: torch.Tensor, attention: Any) -> None:
        """The model without its head, where it can do without: K and V are all that is wanted."""
        device = self.cache.device
        ids = torch.tensor([token_ids], device=device)
        forward(self.model.base_model, ids, positions.to(device)[None], attention)


class Attention(Protocol):
    """What computes the attention of a forward pass.

    Attributes:
        context: positions that a path may have.
    """

    context: int

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor: ...


@exact_products
@float32_default
@torch.inference_mode()
def forward(
    model: Any, token_ids: torch.Tensor, positions: torch.Tensor, attention: Attention
) -> Any:
    """One forward pass whose attention is swapped.

    Args:
        model: it has the attention "marco_tree".
        token_ids: [B, T] int64.
        positions: [1, T] int64.
        attention: what computes it.
    """
    before = _RUNNING.set(attention)
    try:
        return model(input_ids=token_ids, position_ids=positions, use_cache=False)
    finally:
        _RUNNING.reset(before)


@contextmanager
def set_attention(model: Any, name: str) -> Iterator[None]:
    """The model has attention of that name inside, and its own again afterwards."""
    own = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(own)


class TreeAttention:
    """One forward pass of a TreeBatch, by tree attention."""

    def __init__(self, cache: PagedKVCache, batch: TreeBatch, context: int) -> None:
        self.cache, self.plan, self.slots = cache, batch.plan, batch.slots
        self.context = context
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
        context: positions that a path may have.
    """

    def __init__(
        self, cache: PagedKVCache, slots: torch.Tensor, path_slots: torch.Tensor, context: int
    ) -> None:
        self.cache, self.slots, self.context = cache, slots, context
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
        return out.transpose(1, 2).contiguous()

    def _gather(self, cache: torch.Tensor, group: int) -> torch.Tensor:
        """[1, num_heads, t, head_dim] of the whole path."""
        path = cache[self.pages, :, self.offsets].transpose(0, 1)
        return path.repeat_interleave(group, dim=0).unsqueeze(0)


# The attention of the forward pass that runs in this context, which is one thread's.
_RUNNING: ContextVar[Attention | None] = ContextVar(ATTENTION_NAME, default=None)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    attention = _RUNNING.get()
    if attention is None:
        raise ModelError(
            f"expected a model whose attention is {ATTENTION_NAME!r} to be called by its engine, "
            "got a call of its own: run it through marco_fast.Engine"
        )
    if isinstance(attention_mask, Mask):
        attention.note_mask(attention_mask)
    elif attention_mask is not None:
        raise ModelError(OWN_MASK)
    options.setdefault("is_causal", getattr(module, "is_causal", None))
    for name, option in options.items():
        if option is not None and not _is_harmless(name, option, attention):
            shown = f" ({option})" if isinstance(option, int | float) else ""
            raise ModelError(f"expected plain causal attention, got {name!r}{shown} of the model")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: int = module.layer_idx  # type: ignore[assignment]
    return attention.attend(layer, query, key, value, scale), None


def _is_harmless(name: str, option: Any, attention: Attention) -> bool:
    """Whether what a model hands to its attention changes nothing; windows may only be noted."""
    if name == "is_causal":
        return option is True
    if name == "dropout":
        return option == 0
    if name in ("sliding_window", "chunk_size", "attention_chunk_size"):
        if hasattr(attention, "note_reach"):
            attention.note_reach(option)
            return True
        return bool(option >= attention.context)
    return name in HARMLESS


class Mask:
    """Stands for a mask while a model is looked at.

    Attributes:
        sees: `sees(b, h, q, k)`: whether token q may see token k; tensors of indices.
    """

    def __init__(self, sees: Callable[..., torch.Tensor]) -> None:
        self.sees = sees

    def __getitem__(self, part: Any) -> "Mask":
        return self

    def __getattr__(self, name: str) -> Any:
        raise ModelError(OWN_MASK)

    def __radd__(self, other: Any) -> Any:
        raise ModelError(OWN_MASK)


def _mask(*args: Any, mask_function: Any = None, **options: Any) -> Mask | None:
    """No mask: the plan alone says what a token sees. Attention that takes note gets a `Mask`."""
    noted = hasattr(_RUNNING.get(), "note_mask")
    return Mask(mask_function) if noted and mask_function else None


# Both registries: a mask name that is not registered silently turns masks into None.
AttentionInterface.register(ATTENTION_NAME, _attend)
AttentionMaskInterface.register(ATTENTION_NAME, _mask)
