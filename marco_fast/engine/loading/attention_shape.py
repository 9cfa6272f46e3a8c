"""The heads that a model's attention has, as its layers ask for them, not as a configuration says.

Configurations name heads in many ways, and some layers repeat them before attention. One forward
pass of a few tokens tells what the KV cache must hold.
"""

from typing import Any, NamedTuple

import torch

from marco_fast.engine.loading.architectures import NO_INTERFACE, RIGHT, check_head_dim
from marco_fast.engine.loading.check import NO_NUMBERS, TOLERANCE, distance, looked_at
from marco_fast.engine.transformers_runner import ATTENTION_NAME, Mask, forward, set_attention
from marco_fast.errors import ModelError

__all__ = ["AttentionShape", "attention_shape"]

BLOCK = 1 << 20  # positions that a mask is asked for at once: bounds the memory
TOKENS = 4  # of each of the two rows of the forward pass


class AttentionShape(NamedTuple):
    """What a layer's attention gets, and how many tokens back all layers see, at most `context`."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    reach: int


class Apart:
    """Attention of every token to itself alone; it notes which layers asked.

    Args:
        context: positions that a path may have.
        device: that of the model.
    """

    def __init__(self, context: int, device: torch.device) -> None:
        self.context, self.device = context, device
        self.layers: list[int] = []
        self.shapes: set[tuple[int, int, int, int]] = set()  # heads, KV heads, sizes of K and V
        self.masks: set[Mask] = set()
        self.reach = context  # how many positions all masks and windows let see the first token
        self.causal = True  # whether no mask lets a token see the one behind it

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """q [B, num_heads, T, head_dim] -> [B, T, num_heads, head_dim]."""
        self.layers.append(layer)
        self.shapes.add((q.shape[1], k.shape[1], k.shape[3], v.shape[3]))
        own = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
        return own.transpose(1, 2).contiguous()

    def note_mask(self, mask: Mask) -> None:
        """A layer attends by this mask."""
        if mask in self.masks:
            return
        self.masks.add(mask)
        first = torch.zeros((), dtype=torch.int64, device=self.device)
        self.causal &= not mask.sees(first, first, first, first + 1)
        for begin in range(0, self.reach, BLOCK):
            at = torch.arange(begin, min(begin + BLOCK, self.reach), device=self.device)
            seen = int(mask.sees(first, first, at, first).expand(len(at)).cumprod(0).sum())
            if seen < len(at):
                self.note_reach(begin + seen)
                break

    def note_reach(self, tokens: int) -> None:
        """A layer sees no more tokens than that."""
        self.reach = min(self.reach, tokens)


def attention_shape(model: Any, context: int) -> AttentionShape:
    """What the KV cache of a model must hold.

    Raises:
        ModelError: tokens meet elsewhere than in softmax attention, once a layer, over keys and
            values of one shape; or the model's forward pass raised an error.
    """
    apart = Apart(context, model.device)
    one, other = _logits(model, apart)
    got, errors = _cause(apart), (other - one).masked_fill(one == -torch.inf, 0)
    # The rows of a right model are equal, bit for bit, but for experts that other tokens chose.
    if not got and not distance(errors, one) <= TOLERANCE.get(model.dtype, 0.0) / 10:
        got = "whose layers carry something from token to token beside attention"
    if got:
        raise ModelError(f"{RIGHT}, got {model.config.model_type!r}, {got}")
    num_heads, num_kv_heads, head_dim, _ = apart.shapes.pop()
    check_head_dim(head_dim)
    layers = max(apart.layers) + 1
    return AttentionShape(layers, num_heads, num_kv_heads, head_dim, apart.reach)


def _logits(model: Any, apart: Apart) -> torch.Tensor:
    """[2, TOKENS - 1, V] logits of all tokens but the first, which differs between the two."""
    with set_attention(model, ATTENTION_NAME), looked_at(model):
        ids = torch.arange(TOKENS, device=model.device).repeat(2, 1)
        ids[1, 0] = TOKENS
        positions = ids[:1].clone()
        logits = forward(model, ids % model.config.vocab_size, positions, apart).logits[:, 1:]
        logits = logits.float()
    if not (logits < torch.inf).all():
        raise ModelError(NO_NUMBERS)
    return logits


def _cause(apart: Apart) -> str | None:
    """Why the layers that asked for attention cannot have it from the cache."""
    layers = sorted(set(apart.layers))
    if not layers:
        return NO_INTERFACE
    if len(layers) < len(apart.layers):
        twice = next(each for each in layers if apart.layers.count(each) > 1)
        return f"whose layer {twice} attends more than once a token"
    if not apart.causal:
        return "which reads in both directions"
    if len(apart.shapes) > 1:
        shapes = "; ".join(f"{h} heads, {kv} of KV, of {k}" for h, kv, k, _ in sorted(apart.shapes))
        return f"whose layers have different heads ({shapes})"
    ((_, _, keys, values),) = apart.shapes
    return None if keys == values else f"whose keys have {keys} elements and its values {values}"
