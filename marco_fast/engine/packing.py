"""Weights packed as csrc/cpu/decoder/ reads them, kept alive while C++ has their addresses."""

from collections.abc import Sequence
from typing import Any

import torch

from marco_fast.engine import huge_pages
from marco_fast.engine.quantized import PackedWeight, QuantizedLinear
from marco_fast.ops.quantized import PANEL

__all__ = ["PANEL", "Weights", "forget", "pack_bias", "pack_gated", "pack_linear"]


def pack_linear(weight: torch.Tensor) -> torch.Tensor:
    """[out, in] as panels of 32 outputs, the last one filled up with zeros.

    Returns:
        [panels, in, 32] float32, or [panels, in / 2, 32, 2] bfloat16.
    """
    outputs, inputs = weight.shape
    if outputs % PANEL:
        weight = torch.nn.functional.pad(weight, (0, 0, 0, -outputs % PANEL))
    if weight.dtype == torch.bfloat16:
        return weight.view(-1, PANEL, inputs // 2, 2).transpose(1, 2).contiguous()
    return weight.view(-1, PANEL, inputs).transpose(1, 2).contiguous()


def pack_gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Panels of 16 gates and their 16 values, from two [intermediate, in]."""
    pieces = [each.view(-1, PANEL // 2, each.shape[1]) for each in (gate, up)]
    return pack_linear(torch.cat(pieces, dim=1).flatten(0, 1))


def pack_bias(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """The bias of `pack_gated`'s outputs, in their order."""
    return torch.cat([gate.view(-1, PANEL // 2), up.view(-1, PANEL // 2)], dim=1).flatten()


def forget(linear: Any) -> None:
    """Gives a layer's weights up: they are packed elsewhere."""
    if isinstance(linear, QuantizedLinear):
        del linear.weight
        return
    nothing = torch.empty(0, dtype=linear.weight.dtype, device="cpu")
    linear.weight = torch.nn.Parameter(nothing, requires_grad=False)


class Weights:
    """Packs linear layers, and keeps what C++ has addresses of.

    Args:
        dtype: of the products' inputs, and of weights that are not quantised.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.kept: list[Any] = []

    def keep(self, tensor: torch.Tensor) -> int:
        """The address of a tensor."""
        self.kept.append(tensor)
        return tensor.data_ptr()

    def vector(self, weight: torch.Tensor) -> int:
        """The address of a vector in float32."""
        return self.keep(weight.detach().float().contiguous())

    def matrix(self, linear: Any) -> Any:
        """A layer's weights and bias as C++ knows them."""
        if isinstance(linear, QuantizedLinear):
            return self._quantized(linear.weight, linear.bias)
        return self._dense(pack_linear(linear.weight.detach()), linear.bias, linear.weight.shape)

    def side_by_side(self, linears: Sequence[Any]) -> list[Any]:
        """Layers of the same input: one product, or some where their weights are of other kinds."""
        if all(isinstance(each, torch.nn.Linear) for each in linears):
            weight = torch.cat([each.weight.detach() for each in linears])
            return [self._dense(pack_linear(weight), _joined(linears), weight.shape)]
        parts: list[tuple[Any, list[Any]]] = []  # quantised weights that are joined, their layers
        for each in linears:
            packed = each.weight if isinstance(each, QuantizedLinear) else None
            if packed is not None and parts and parts[-1][0] and parts[-1][0].joins(packed):
                joined, layers = parts.pop()
                parts.append((joined.joined(packed), [*layers, each]))
            else:
                parts.append((packed, [each]))
        return [
            self.matrix(layers[0]) if packed is None else self._quantized(packed, _joined(layers))
            for packed, layers in parts
        ]

    def gated(self, gate: Any, up: Any) -> Any:
        """Both layers as one, 16 outputs of each in a panel.

        Where only one is quantised, or both in other ways, they are not: exact, but larger.
        """
        bias = None if gate.bias is None else pack_bias(gate.bias, up.bias)
        both = [gate, up]
        if all(isinstance(each, QuantizedLinear) for each in both) and gate.weight.joins(up.weight):
            return self._quantized(gate.weight.interleaved(up.weight), bias)
        weights = [
            (each.weight.dequantize() if isinstance(each, QuantizedLinear) else each.weight)
            .detach().to(self.dtype)
            for each in both
        ]  # fmt: skip
        outputs, inputs = weights[0].shape
        return self._dense(pack_gated(*weights), bias, (2 * outputs, inputs))

    def _dense(self, packed: torch.Tensor, bias: torch.Tensor | None, shape: Sequence[int]) -> Any:
        from marco_fast import _C

        panels = self.keep(_in_huge_pages(packed))
        outputs, inputs = shape
        return _C.PackedLinear(panels=panels, bias=self._bias(bias), inputs=inputs, outputs=outputs)

    def _quantized(self, packed: PackedWeight, bias: torch.Tensor | None) -> Any:
        from marco_fast import _C

        parts = [None if part is None else _in_huge_pages(part) for part in packed.parts]
        moved = packed.like(parts, len(packed))
        self.kept.append(moved)
        return _C.PackedLinear(moved.native, bias=self._bias(bias))

    def _bias(self, bias: torch.Tensor | None) -> int:
        if bias is None:
            return 0
        return self.vector(torch.nn.functional.pad(bias.detach(), (0, -len(bias) % PANEL)))


def _joined(linears: Sequence[Any]) -> torch.Tensor | None:
    """The biases of layers, one after the other; None where there are none."""
    return None if linears[0].bias is None else torch.cat([each.bias for each in linears])


def _in_huge_pages(tensor: torch.Tensor) -> torch.Tensor:
    return huge_pages.empty(tensor.shape, tensor.dtype, tensor.device).copy_(tensor)
