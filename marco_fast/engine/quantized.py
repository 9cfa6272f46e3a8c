"""Layers of quantised weights, in the place of a transformers model's own, on a CPU."""

import torch

from marco_fast.ops.quantized import PackedWeight, QuantizedWeight, quantize, quantizes

__all__ = [
    "PackedWeight",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "QuantizedWeight",
    "quantize",
    "quantizes",
]


class QuantizedLinear(torch.nn.Module):
    """nn.Linear over quantised weights.

    Args:
        weight: [out, in]. bias: [out] float, or None.
    """

    def __init__(self, weight: QuantizedWeight | PackedWeight, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight = weight if isinstance(weight, PackedWeight) else PackedWeight.of(weight)
        self.out_features, self.in_features = self.weight.shape
        self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] -> [..., out] of its dtype."""
        return self.weight.product(x, self.bias)


class QuantizedEmbedding(torch.nn.Module):
    """nn.Embedding over quantised weights, which an LM head may share.

    Args:
        weight: [num_embeddings, embedding_dim].
        dtype: of what it gives.
    """

    def __init__(self, weight: QuantizedWeight | PackedWeight, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = weight if isinstance(weight, PackedWeight) else PackedWeight.of(weight)
        self.num_embeddings, self.embedding_dim = self.weight.shape
        self.dtype = dtype

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids [...] int64 -> [..., embedding_dim]."""
        return self.weight.rows(ids).to(self.dtype)
