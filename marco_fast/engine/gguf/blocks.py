"""The block formats of GGUF: raw bytes to codes, scales and offsets, or to floating-point numbers.

A row of a matrix is blocks of 32 inputs (256 for K-quants), each with a float16 scale of its own.
What a block holds is unpacked and nothing is rounded: `dequantize` of the result gives the numbers
that llama.cpp computes with, bit for bit.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from marco_fast.engine.quantized import QuantizedWeight

__all__ = ["BLOCKS", "OTHER_TYPES", "Block", "decode"]


class Parts(NamedTuple):
    """What a number of blocks hold; B blocks side by side, each a row here.

    Attributes:
        codes: [B, inputs] uint8. scale: [B, 1] float16. offset: [B, 1] float16, added to all.
        mult: [B, groups] int8, by which the scale of each group is multiplied; offset_mult: same.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor | None = None
    mult: torch.Tensor | None = None
    offset_mult: torch.Tensor | None = None


class Block(NamedTuple):
    """A format.

    Attributes:
        type: its number in a file. inputs, size: of a block, in inputs and in bytes.
        bits, zero: of a code. unpack: [B, size] uint8 to what the blocks hold; None: plain numbers.
        dtype: of plain numbers.
    """

    type: int
    inputs: int
    size: int
    bits: int = 0
    zero: int = 0
    unpack: Callable[[torch.Tensor], Parts] | None = None
    dtype: torch.dtype | None = None


def _half(raw: torch.Tensor, at: int) -> torch.Tensor:
    """The float16 at a place of every block, [B, 1]."""
    return raw[:, at : at + 2].contiguous().view(torch.float16)


def _bits(packed: torch.Tensor, width: int) -> torch.Tensor:
    """[..., n] bytes to [..., 8 / width, n]: the lowest bits of all bytes first; n in eights."""
    words = packed.clone(memory_format=torch.contiguous_format).view(torch.int64)  # 8 at a time
    made = torch.stack([words >> at for at in range(0, 8, width)], -2)
    made &= int.from_bytes(bytes([(1 << width) - 1] * 8), "little")
    return made.view(torch.uint8)


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """[..., n] bytes to [..., 2, n]: all low halves, then all high ones."""
    return _bits(packed, 4)


def _q4_0(raw: torch.Tensor) -> Parts:
    return Parts(_nibbles(raw[:, 2:]).flatten(1), _half(raw, 0))


def _q4_1(raw: torch.Tensor) -> Parts:
    return Parts(_nibbles(raw[:, 4:]).flatten(1), _half(raw, 0), _half(raw, 2))


# The eight bits of a byte as the fifth bits of eight codes, a byte each.
_BYTES = torch.arange(256, device="cpu")
EIGHT_FIFTHS = torch.stack([(_BYTES >> i & 1) << 8 * i + 4 for i in range(8)]).sum(0)


def _fifth_bits(raw: torch.Tensor, at: int) -> torch.Tensor:
    """Of 32 codes, from four bytes; already in their place."""
    return EIGHT_FIFTHS[raw[:, at : at + 4].long()].view(torch.uint8)


def _q5_0(raw: torch.Tensor) -> Parts:
    return Parts(_nibbles(raw[:, 6:]).flatten(1) | _fifth_bits(raw, 2), _half(raw, 0))


def _q5_1(raw: torch.Tensor) -> Parts:
    codes = _nibbles(raw[:, 8:]).flatten(1) | _fifth_bits(raw, 4)
    return Parts(codes, _half(raw, 0), _half(raw, 2))


def _q8_0(raw: torch.Tensor) -> Parts:
    return Parts(raw[:, 2:] ^ 128, _half(raw, 0))  # two's complement: +128


def _group_scales(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and minima of eight groups, of six bits each in twelve bytes; [B, 8] int8."""
    low, minima, both = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    scales = torch.cat([low & 63, both & 15 | low >> 2 & 48], 1)
    offsets = torch.cat([minima & 63, both >> 4 | minima >> 2 & 48], 1)
    return scales.view(torch.int8), offsets.view(torch.int8)


def _q4_k(raw: torch.Tensor) -> Parts:
    codes = _nibbles(raw[:, 16:].unflatten(1, (4, 32))).flatten(1)
    scales, offsets = _group_scales(raw)
    return Parts(codes, _half(raw, 0), -_half(raw, 2), scales, offsets)


def _q5_k(raw: torch.Tensor) -> Parts:
    codes = _nibbles(raw[:, 48:].unflatten(1, (4, 32))).flatten(1)
    codes |= _bits(raw[:, 16:48], 1).flatten(1) << 4
    scales, offsets = _group_scales(raw)
    return Parts(codes, _half(raw, 0), -_half(raw, 2), scales, offsets)


def _q6_k(raw: torch.Tensor) -> Parts:
    low = _nibbles(raw[:, :128].unflatten(1, (2, 64))).flatten(1)
    high = _bits(raw[:, 128:192].unflatten(1, (2, 32)), 2).flatten(1)
    scales = raw[:, 192:208].contiguous().view(torch.int8)
    return Parts(low | high << 4, _half(raw, 208), mult=scales)


BLOCKS = {
    "F32": Block(0, 1, 4, dtype=torch.float32),
    "F16": Block(1, 1, 2, dtype=torch.float16),
    "BF16": Block(30, 1, 2, dtype=torch.bfloat16),
    "Q8_0": Block(8, 32, 34, 8, 128, _q8_0),
    "Q4_0": Block(2, 32, 18, 4, 8, _q4_0),
    "Q4_1": Block(3, 32, 20, 4, 0, _q4_1),
    "Q5_0": Block(6, 32, 22, 5, 16, _q5_0),
    "Q5_1": Block(7, 32, 24, 5, 0, _q5_1),
    "Q4_K": Block(12, 256, 144, 4, 0, _q4_k),
    "Q5_K": Block(13, 256, 176, 5, 0, _q5_k),
    "Q6_K": Block(14, 256, 210, 6, 32, _q6_k),
}
# Types that are not read, by the numbers that files have for them.
OTHER_TYPES = dict(
    enumerate(
        "Q8_1 Q2_K Q3_K - - - Q8_K IQ2_XXS IQ2_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ2_S IQ4_XS I8 I16 "
        "I32 I64 F64 IQ1_M - Q4_0_4_4 Q4_0_4_8 Q4_0_8_8 TQ1_0 TQ2_0 IQ4_NL_4_4 IQ4_NL_4_8 "
        "IQ4_NL_8_8 MXFP4 NVFP4 Q1_0".split(),
        9,
    )
)


def decode(kind: str, raw: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor | QuantizedWeight:
    """The bytes of a tensor as plain numbers of its own dtype, or as codes and scales.

    Args:
        kind: a key of BLOCKS. raw: all its bytes, [size] uint8. shape: outputs first; two sizes if
            the kind is quantised.
    """
    block = BLOCKS[kind]
    if block.unpack is None:
        assert block.dtype is not None
        return raw.view(block.dtype).view(shape)
    outputs = shape[0]
    parts = block.unpack(raw.view(-1, block.size))

    def rows(part: torch.Tensor | None) -> torch.Tensor | None:
        return None if part is None else part.reshape(outputs, -1)

    return QuantizedWeight(
        codes=parts.codes.reshape(outputs, -1),
        bits=block.bits,
        zero=block.zero,
        scale=parts.scale.reshape(outputs, -1),
        offset=rows(parts.offset),
        mult=rows(parts.mult),
        offset_mult=rows(parts.offset_mult),
    )
