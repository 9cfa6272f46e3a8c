"""Quantised weights: codes of a few bits with a scale and an offset for each group of inputs.

`QuantizedWeight` is the definition, `PackedWeight` what the C++ kernels read. The formats of GGUF
files are held exactly; marco_fast.ops.quantize makes such weights from floats.
"""

from typing import Any, NamedTuple

import torch

from marco_fast.ops.tensors import tensor_of

__all__ = ["GROUP", "QuantizedWeight", "check_weight"]

GROUP = 32  # inputs whose codes lie together (csrc/cpu/base/quantized.h)


class QuantizedWeight(NamedTuple):
    """A matrix [out, in]: scale * mult * (code - zero) + offset * offset_mult.

    Attributes:
        codes: uint8 [out, in], 0 to 2^bits - 1. bits: 4, 5, 6 or 8.
        zero: the code that stands for 0, where there is no offset.
        scale: float16 [out, in / block], of each block of inputs. offset: the same, or None.
        mult: int8 [out, in / group], of each group of inputs, or None (1). offset_mult: the same.
    """

    codes: torch.Tensor
    bits: int
    zero: int
    scale: torch.Tensor
    offset: torch.Tensor | None = None
    mult: torch.Tensor | None = None
    offset_mult: torch.Tensor | None = None

    def dequantize(self) -> torch.Tensor:
        """The matrix in float32: the product of scale and code is exact, the sum rounded once."""
        out, inputs = self.codes.shape
        scale = _product(self.scale, self.mult)
        groups = self.codes.view(out, scale.shape[1], -1).float() - self.zero
        made = groups * scale[..., None]
        if self.offset is not None:
            offset = _product(self.offset, self.offset_mult)
            made = (made.view(out, offset.shape[1], -1) + offset[..., None]).view(out, inputs)
        return made.view(out, inputs)

    def rows(self, index: Any) -> "QuantizedWeight":
        """Some of the rows, or all in another order."""
        fields: list[Any] = [
            each[index] if isinstance(each, torch.Tensor) else each for each in self
        ]
        return QuantizedWeight(*fields)


def _product(base: torch.Tensor, mult: torch.Tensor | None) -> torch.Tensor:
    """float32 [out, in / group] of blocks and the factors of their groups."""
    if mult is None:
        return base.float()
    return base.float().repeat_interleave(mult.shape[1] // base.shape[1], dim=1) * mult


def check_weight(weight: QuantizedWeight) -> None:
    """Refuses what PackedWeight.of cannot pack.

    Raises:
        ValueError: its parts are not as QuantizedWeight says.
    """
    if not isinstance(weight, QuantizedWeight):
        raise ValueError(f"expected a QuantizedWeight, got {type(weight).__name__}")
    for name, each in weight._asdict().items():
        if isinstance(each, torch.Tensor) and tensor_of(name, each).device.type != "cpu":
            raise ValueError(f"expected {name} on a CPU, got it on {each.device}")
    if weight.bits not in (4, 5, 6, 8) or weight.codes.dim() != 2:
        raise ValueError(
            "expected codes [out, in] of 4, 5, 6 or 8 bits, got "
            f"{tuple(weight.codes.shape)} of {weight.bits!r}"
        )
    out, inputs = weight.codes.shape
    half, int8 = torch.float16, torch.int8
    kinds = [("scale", half), ("offset", half), ("mult", int8), ("offset_mult", int8)]
    sizes: dict[str, int] = {}
    for name, dtype in kinds:
        field = getattr(weight, name)
        if field is None:
            continue
        size = inputs // field.shape[1] if field.dim() == 2 and field.shape[1] else 0
        sizes[name] = size
        whole = size and field.shape == (out, inputs // size) and inputs % size == 0
        if not whole or not (size == 16 or size % GROUP == 0) or field.dtype != dtype:
            raise ValueError(
                f"expected {name} {dtype} [{out}, groups of 16 or of multiples of 32 inputs], got "
                f"{field.dtype} {tuple(field.shape)}"
            )
    same = [sizes.get(one, size) == size for one, size in
            (("offset", sizes["scale"]), ("offset_mult", sizes.get("mult", 0)))]  # fmt: skip
    if weight.codes.dtype != torch.uint8 or inputs % GROUP or not all(same):
        raise ValueError(
            "expected codes uint8 [out, in], in a multiple of 32, with scales and offsets of the "
            f"same groups, got {weight.codes.dtype} {(out, inputs)} with {sizes}"
        )
