"""Layers of quantised weights, in the place of a transformers model's own, on a CPU."""

from typing import Any

import torch

from marco_fast.ops.quantize import quantize
from marco_fast.ops.quantized import PackedWeight, QuantizedWeight, quantizes

__all__ = [
    "PackedWeight",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "QuantizedWeight",
    "check_activations",
    "quantize",
    "quantizes",
    "round_activations",
]

ACTIVATIONS = (None, "int8")


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


def round_activations(model: Any, activations: str | None) -> None:
    """Sets how a model's quantised matrices are multiplied; as Engine.from_pretrained says.

    Raises:
        ValueError: activations is neither None nor "int8", or the model has no such matrix.
    """
    linears = [each for each in model.modules() if isinstance(each, QuantizedLinear)]
    check_activations(activations, bool(linears))
    for each in linears if activations else []:
        each.weight = each.weight.with_int8_rows()


def check_activations(activations: str | None, quantized: bool) -> None:
    """As round_activations, by whether a model has quantised matrices."""
    if activations not in ACTIVATIONS:
        raise ValueError(f"expected activations to be None or 'int8', got {activations!r}")
    if activations and not quantized:
        raise ValueError(
            "expected quantised weights on a CPU for activations='int8' (a GGUF file of them, or "
            "dtype='int8' or 'int4'), got a model without"
        )
