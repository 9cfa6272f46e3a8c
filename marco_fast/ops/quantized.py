"""Quantised weights as the C++ kernels read them, and their products."""

from collections.abc import Iterable, Sequence

import torch

from marco_fast.ops.backends import built
from marco_fast.ops.dtypes import DTYPE_CODES, FLOATS, cpp_view
from marco_fast.ops.isolation import isolated
from marco_fast.ops.quantized_weight import GROUP, QuantizedWeight, check_weight
from marco_fast.ops.tensors import tensor_of

__all__ = ["BITS", "GROUP", "PANEL", "PackedWeight", "QuantizedWeight", "quantizes"]

BITS = (4, 6, 8)  # of packed codes; those of 5 bits take 6
PANEL = 32  # outputs that lie side by side in packed weights (csrc/cpu/base/quantized.h)


def quantizes() -> bool:
    """Whether this machine computes with quantised weights: where the C++ kernels are built."""
    return built()


class PackedWeight:
    """A quantised matrix as the C++ kernels read it, panel by panel, on a CPU.

    Make one by `PackedWeight.of`. An LM head of it is `lm_head_confidence(hidden, packed, ...)`.

    Attributes:
        shape: (out, in). bits: 4, 6 or 8.
        parts: codes int32 [panels, in / 32 * bits, 32], then scale, offset, mult and offset_mult
            [panels, in / block or group, 32] or None (csrc/cpu/base/quantized.h).
        int8_rows: whether what it is multiplied by is rounded to 8 bits first, with one scale per
            32 inputs: faster, less exact.
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

        check_weight(weight)
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
            index: whole numbers [...], on a CPU.

        Raises:
            IndexError: one of them is not a row.
            ValueError: they are no whole numbers, or not on a CPU.
        """
        index = tensor_of("index", index)
        if index.is_floating_point() or index.dtype == torch.bool or index.device.type != "cpu":
            raise ValueError(
                f"expected index of whole numbers on a CPU, got {index.dtype} on {index.device}"
            )
        ids = index.reshape(-1).long().contiguous()
        made = torch.empty(len(ids), self.shape[1], dtype=torch.float32, device="cpu")
        self.native.rows(cpp_view(ids), out=made.data_ptr(), threads=torch.get_num_threads())
        return made.view(*index.shape, self.shape[1])

    def dequantize(self) -> torch.Tensor:
        """The whole matrix in float32."""
        return self.rows(torch.arange(self.shape[0], device="cpu"))

    @isolated
    def product(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x [..., in] times the transposed matrix: [..., out] of x's dtype, summed in float32.

        float16 is multiplied in float32; bfloat16 in bfloat16 where the CPU multiplies pairs. The
        result is not differentiable.

        Args:
            x: float32, bfloat16 or float16, on a CPU. bias: float [out], or None.

        Raises:
            ValueError: x or bias is not as above.
        """
        from marco_fast import _C

        x = tensor_of("x", x)
        if x.dtype not in FLOATS or x.shape[-1:] != self.shape[1:] or x.device.type != "cpu":
            raise ValueError(
                f"expected x float [..., {self.shape[1]}] on a CPU, got {x.dtype} "
                f"{tuple(x.shape)} on {x.device}"
            )
        if bias is not None and bias.shape != self.shape[:1]:
            raise ValueError(f"expected bias [{self.shape[0]}], got {tuple(bias.shape)}")
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


def _in_panels(rows: torch.Tensor | None) -> torch.Tensor | None:
    """[out, n] as [panels, n, 32], the last panel filled up with zeros."""
    if rows is None:
        return None
    filled = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % PANEL))
    return filled.view(-1, PANEL, rows.shape[1]).transpose(1, 2).contiguous()
