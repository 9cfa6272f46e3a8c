"""Quantised weights: codes of a few bits with a scale and an offset for each group of inputs.

`QuantizedWeight` is the definition, `PackedWeight` what the C++ kernels read. The formats of GGUF
files are held exactly; marco_fast.ops.quantize makes such weights from floats.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from marco_fast.ops.backends import built
from marco_fast.ops.dtypes import DTYPE_CODES, cpp_view
from marco_fast.ops.isolation import isolated

__all__ = ["BITS", "GROUP", "PANEL", "PackedWeight", "QuantizedWeight", "quantizes"]

BITS = (4, 6, 8)  # of packed codes; those of 5 bits take 6
GROUP = 32  # inputs whose codes lie together (csrc/cpu/base/quantized.h)
PANEL = 32  # outputs that lie side by side


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


def quantizes() -> bool:
    """Whether this machine computes with quantised weights: where the C++ kernels are built."""
    return built()


class PackedWeight:
    """A quantised matrix as the C++ kernels read it, panel by panel, on a CPU.

    Attributes:
        shape: (out, in). bits: 4, 6 or 8.
        parts: codes int32 [panels, in / 32 * bits, 32], then scale, offset, mult and offset_mult
            [panels, in / block or group, 32] or None (csrc/cpu/base/quantized.h).
        int8_rows: whether what it is multiplied by is rounded to 8 bits first, with one scale per
            32 inputs: several times as fast, less exact.
        native: what C++ takes; valid as long as this object lives.
    """

    def __init__(
        self,
        parts: Sequence[torch.Tensor | None],
        bits: int,
        zero: int,
        shape: tuple[int, int],
        int8_rows: bool = False,
    ) -> None:
        from marco_fast import _C

        codes, scale, _, mult, offset_mult = self.parts = tuple(parts)
        assert codes is not None
        assert scale is not None
        self.bits, self.zero, self.shape, self.int8_rows = bits, zero, shape, int8_rows
        fine = mult if mult is not None else offset_mult
        self.native = _C.QuantizedPanels(
            [0 if each is None else each.data_ptr() for each in self.parts],
            bits=bits, zero=zero, block=shape[1] // scale.shape[1],
            group=shape[1] // (scale if fine is None else fine).shape[1],
            int8_rows=int8_rows, inputs=shape[1], outputs=shape[0],
        )  # fmt: skip

    @classmethod
    @isolated
    def of(cls, weight: QuantizedWeight) -> "PackedWeight":
        """Pack a quantised matrix; its own tensors are not needed afterwards.

        Raises:
            ValueError: its shapes are not as QuantizedWeight says, `in` is no multiple of 32, or a
                group is neither 16 inputs nor a multiple of 32.
        """
        from marco_fast import _C

        _check(weight)
        out, inputs = weight.codes.shape
        bits = min(each for each in BITS if each >= weight.bits)
        panels = -(-out // PANEL)
        words = torch.empty(panels, inputs // GROUP * bits, PANEL, dtype=torch.int32, device="cpu")
        codes = weight.codes.contiguous()
        _C.pack_codes(
            codes.data_ptr(), outputs=out, inputs=inputs, bits=bits, words=words.data_ptr(),
            threads=torch.get_num_threads(),
        )  # fmt: skip
        fields = (weight.scale, weight.offset, weight.mult, weight.offset_mult)
        return cls([words, *map(_in_panels, fields)], bits, weight.zero, (out, inputs))

    @classmethod
    def of_pieces(cls, pieces: Iterable[QuantizedWeight], outputs: int) -> "PackedWeight":
        """As `of`, from some rows at a time, so that never all codes are in memory.

        Args:
            pieces: all rows in their order; each but the last one has a multiple of 32.
            outputs: how many rows there are.
        """
        made: list[torch.Tensor | None] = []
        packed, panel = None, 0
        for piece in pieces:
            packed = cls.of(piece)
            if len(packed) == outputs:
                return packed
            made = made or [
                None if part is None else part.new_empty(-(-outputs // PANEL), *part.shape[1:])
                for part in packed.parts
            ]
            end = panel + -(-len(packed) // PANEL)
            for whole, part in zip(made, packed.parts, strict=True):
                if whole is not None and part is not None:
                    whole[panel:end] = part
            panel = end
        assert packed is not None
        return packed.like(made, outputs)

    def joins(self, other: "PackedWeight") -> bool:
        """Whether panels of both can be panels of one matrix."""
        mine, theirs = (
            [None if part is None else (part.shape[1], part.dtype) for part in each.parts]
            for each in (self, other)
        )
        whole = self.shape[0] % PANEL == 0 and self.shape[1] == other.shape[1]
        return whole and mine == theirs and (self.bits, self.zero) == (other.bits, other.zero)

    def joined(self, other: "PackedWeight") -> "PackedWeight":
        """The outputs of both, one after the other; only where `joins`."""
        parts = [
            None if one is None or two is None else torch.cat([one, two])
            for one, two in zip(self.parts, other.parts, strict=True)
        ]
        return self.like(parts, self.shape[0] + other.shape[0])

    def interleaved(self, other: "PackedWeight") -> "PackedWeight":
        """Panels of 16 outputs of each; only where `joins`, and both have as many outputs."""
        parts: list[torch.Tensor | None] = []
        for one, two in zip(self.parts, other.parts, strict=True):
            if one is None or two is None:
                parts.append(None)
                continue
            halves = [each.unflatten(-1, (2, PANEL // 2)) for each in (one, two)]
            mixed = torch.stack(halves, dim=-2).movedim(-3, 1)  # [panels, 2, rows, 2, 16]
            parts.append(mixed.flatten(-2).flatten(0, 1).contiguous())
        return self.like(parts, 2 * self.shape[0])

    def like(self, parts: Sequence[torch.Tensor | None], outputs: int) -> "PackedWeight":
        """Other parts of the same kind."""
        shape = (outputs, self.shape[1])
        return PackedWeight(parts, self.bits, self.zero, shape, self.int8_rows)

    def with_int8_rows(self) -> "PackedWeight":
        """The same memory; what it is multiplied by is rounded to 8 bits first."""
        return PackedWeight(self.parts, self.bits, self.zero, self.shape, True)

    @isolated
    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Rows [..., in] of the matrix in float32, as QuantizedWeight.dequantize has them.

        Args:
            index: int64 [...].

        Raises:
            IndexError: one of them is not a row.
        """
        ids = index.reshape(-1).contiguous()
        made = torch.empty(len(ids), self.shape[1], dtype=torch.float32, device="cpu")
        self.native.rows(cpp_view(ids), out=made.data_ptr(), threads=torch.get_num_threads())
        return made.view(*index.shape, self.shape[1])

    def dequantize(self) -> torch.Tensor:
        """The whole matrix in float32."""
        return self.rows(torch.arange(self.shape[0], device="cpu"))

    @isolated
    def product(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x [..., in] times the transposed matrix: [..., out] of x's dtype, summed in float32.

        float16 is multiplied in float32; bfloat16 in bfloat16 where the CPU multiplies pairs.
        """
        from marco_fast import _C

        rows = x.reshape(-1, self.shape[1])
        rows = rows.float() if rows.dtype not in (torch.float32, torch.bfloat16) else rows
        rows = rows.contiguous()
        made = torch.empty(len(rows), self.shape[0], dtype=torch.float32, device="cpu")
        if len(rows):
            _C.linear(
                _C.PackedLinear(self.native, bias=0), cpp_view(rows),
                dtype=DTYPE_CODES[rows.dtype], result=made.data_ptr(), accumulate=False, gated=0,
                threads=torch.get_num_threads(),
            )  # fmt: skip
        if bias is not None:
            made += bias
        return made.to(x.dtype).view(*x.shape[:-1], self.shape[0])

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(each.nbytes for each in self.parts if each is not None)


def _in_panels(rows: torch.Tensor | None) -> torch.Tensor | None:
    """[out, n] as [panels, n, 32], the last panel filled up with zeros."""
    if rows is None:
        return None
    filled = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % PANEL))
    return filled.view(-1, PANEL, rows.shape[1]).transpose(1, 2).contiguous()


def _check(weight: QuantizedWeight) -> None:
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
