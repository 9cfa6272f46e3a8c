"""Quantising: the codes, scales and offsets that stand for a matrix of floats."""

import torch

from marco_fast.ops.quantized import GROUP, QuantizedWeight
from marco_fast.ops.tensors import tensor_of

__all__ = ["quantize"]

SHRUNK = (1.0, 0.95, 0.9, 0.85, 0.8)  # ranges that are tried for 4 bits


def quantize(weight: torch.Tensor, bits: int) -> QuantizedWeight:
    """Codes of 4 or 8 bits for a matrix, with one scale per 32 inputs.

    8 bits: symmetric, the largest magnitude is 127 steps. 4 bits: with an offset; of some ranges
    that leave a little of the extremes out, the one of the smallest squared error.

    Args:
        weight: [out, in] float, finite, in a multiple of 32.
        bits: 4 or 8.

    Raises:
        ValueError: bits, or the shape, is not as above, or the weight is not finite, or too large
            for scales of float16.
    """
    weight = tensor_of("weight", weight)
    if bits not in (4, 8) or weight.dim() != 2 or weight.shape[1] % GROUP or not weight.numel():
        raise ValueError(
            "expected 4 or 8 bits and a weight [out, in] with a multiple of 32 inputs, got "
            f"{bits!r} bits and {tuple(weight.shape)}"
        )
    groups = weight.detach().float().view(len(weight), -1, GROUP)
    if not groups.isfinite().all():
        raise ValueError("expected a finite weight to quantize, got NaN or infinity in it")
    largest = 65504 * (127 if bits == 8 else 1)  # 65504: of float16
    if groups.abs().max() > largest:
        raise ValueError(f"expected weights up to {largest} to quantize, got larger ones")
    if bits == 8:
        scale = (groups.abs().amax(-1) / 127).half()
        codes = (groups / _divisor(scale)).round_().clamp_(-127, 127) + 128
        return QuantizedWeight(codes.to(torch.uint8).view(weight.shape), 8, 128, scale)
    low, high = groups.amin(-1), groups.amax(-1)
    codes, scale, offset = _codes_of(groups, low, high)
    for share in SHRUNK[1:]:
        tried = _codes_of(groups, low * share, high * share)
        better = _error(groups, *tried) < _error(groups, codes, scale, offset)
        codes = torch.where(better[..., None], tried[0], codes)
        scale, offset = torch.where(better, tried[1], scale), torch.where(better, tried[2], offset)
    return QuantizedWeight(codes.view(weight.shape), 4, 0, scale, offset)


Codes = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # of 4 bits, their scales and offsets


def _codes_of(groups: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> Codes:
    """The codes whose range is [low, high], each the nearest."""
    offset = low.half()
    scale = ((high - offset.float()) / 15).clamp_min(0).half()
    codes = ((groups - offset[..., None]) / _divisor(scale)).round_().clamp_(0, 15)
    return codes.to(torch.uint8), scale, offset


def _error(
    groups: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor
) -> torch.Tensor:
    """The sum of squares of what the codes of each group miss."""
    made = codes * scale[..., None].float() + offset[..., None]
    return (made - groups).square_().sum(-1)


def _divisor(scale: torch.Tensor) -> torch.Tensor:
    """What codes are made by: 1 where a group is all the same and has no scale."""
    scale = scale.float()[..., None]
    return torch.where(scale > 0, scale, torch.ones_like(scale))
